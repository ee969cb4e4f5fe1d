//! PSCI: every function, each of its errors, and two CPUs that want the same thing.

use crate::{
    check, check_eq,
    harness::{Case, Check, Under::*, case, eventually, join, start},
};
use core::{
    arch::naked_asm,
    cell::UnsafeCell,
    mem::offset_of,
    sync::atomic::{AtomicI64, AtomicU32, AtomicUsize, Ordering::SeqCst},
};
use keel_test_kernel::{
    arch, irq,
    machine::Machine,
    mrs, platform, power,
    smp::is_off,
    time::{self, Timer},
};

/// The cases.
pub const CASES: &[Case] = &[
    case("psci/version", 1, Any, version),
    case("psci/features", 1, Any, features),
    case("psci/migrate_info_type", 1, Any, migrate_info_type),
    case("psci/not_supported", 1, Keel, not_supported),
    case("psci/cpu_on_state", 2, Any, cpu_on_state),
    case("psci/cpu_on_32", 2, Keel, cpu_on_32),
    case("psci/cpu_on_already", 2, Any, cpu_on_already),
    case("psci/cpu_on_invalid", 1, Any, cpu_on_invalid),
    case("psci/cpu_on_reserved_bits", 2, Keel, cpu_on_reserved_bits),
    case("psci/cpu_off_on_100", 2, Any, cpu_off_on_100),
    case("psci/cpu_on_race", 3, Any, cpu_on_race),
    case("psci/all_cpus_at_once", 2, Any, all_cpus_at_once),
    case("psci/affinity_info", 2, Any, affinity_info),
    case("psci/affinity_info_levels", 2, Keel, affinity_info_levels),
    case("psci/cpu_suspend", 1, Any, cpu_suspend),
    case("psci/cpu_suspend_32_by_smc", 1, Keel, cpu_suspend_32_by_smc),
    case("psci/system_reset2_invalid", 1, Keel, system_reset2_invalid),
];

const SUCCESS: u64 = 0;
const NOT_SUPPORTED: u64 = -1_i64 as u64;
const INVALID_PARAMETERS: u64 = -2_i64 as u64;
const ALREADY_ON: u64 = -4_i64 as u64;
const ON_PENDING: u64 = -5_i64 as u64;

fn version(machine: &Machine) -> Check {
    let version = power::hvc(power::PSCI_VERSION, [0; 3])[0];
    if machine.under_keel() {
        check_eq!(version, 0x10001, "PSCI_VERSION");
    } else {
        check!(version >= 2, "PSCI_VERSION: {version:#x}, expected 0.2 or newer");
    }
    Ok(())
}

/// PSCI_FEATURES' answer for each function of version 1.1.
const FEATURES: [(u32, u64); 31] = [
    (0x8400_0000, SUCCESS),
    (0x8400_0001, SUCCESS),
    (0xc400_0001, SUCCESS),
    (0x8400_0002, SUCCESS),
    (0x8400_0003, SUCCESS),
    (0xc400_0003, SUCCESS),
    (0x8400_0004, SUCCESS),
    (0xc400_0004, SUCCESS),
    (0x8400_0005, NOT_SUPPORTED),
    (0xc400_0005, NOT_SUPPORTED),
    (0x8400_0006, SUCCESS),
    (0x8400_0007, NOT_SUPPORTED),
    (0xc400_0007, NOT_SUPPORTED),
    (0x8400_0008, SUCCESS),
    (0x8400_0009, SUCCESS),
    (0x8400_000a, SUCCESS),
    (0x8400_000b, NOT_SUPPORTED),
    (0x8400_000c, NOT_SUPPORTED),
    (0xc400_000c, NOT_SUPPORTED),
    (0x8400_000d, NOT_SUPPORTED),
    (0x8400_000e, NOT_SUPPORTED),
    (0xc400_000e, NOT_SUPPORTED),
    (0x8400_000f, NOT_SUPPORTED),
    (0x8400_0010, NOT_SUPPORTED),
    (0x8400_0012, SUCCESS),
    (0xc400_0012, SUCCESS),
    (0x8400_0013, NOT_SUPPORTED),
    (0xc400_0014, NOT_SUPPORTED),
    (0x8400_0015, NOT_SUPPORTED),
    (0xc400_0015, NOT_SUPPORTED),
    (0x8000_0000, SUCCESS),
];

fn features(machine: &Machine) -> Check {
    let query = |id: u64| power::hvc(power::PSCI_FEATURES, [id, 0, 0])[0];
    if machine.under_keel() {
        for (id, expected) in FEATURES {
            check_eq!(query(id.into()), expected, "PSCI_FEATURES({id:#x})");
        }
        check_eq!(query(0xffff_ffff_8400_0000), SUCCESS, "PSCI_FEATURES with an upper half");
    } else {
        check_eq!(query(power::CPU_ON.into()), SUCCESS, "PSCI_FEATURES(CPU_ON)");
    }
    for id in [0x8400_001f, 0xc400_0000, 0xc400_0002, 0x1234_5678, 0xffff_ffff, 0] {
        check_eq!(query(id), NOT_SUPPORTED, "PSCI_FEATURES({id:#x})");
    }
    Ok(())
}

fn migrate_info_type(_: &Machine) -> Check {
    check_eq!(power::hvc(power::MIGRATE_INFO_TYPE, [0; 3])[0], 2, "MIGRATE_INFO_TYPE");
    Ok(())
}

fn not_supported(_: &Machine) -> Check {
    for (id, _) in FEATURES.into_iter().filter(|(_, answer)| *answer == NOT_SUPPORTED) {
        check_eq!(power::hvc(id, [0; 3]), [NOT_SUPPORTED, 0, 0, 0], "{id:#x}");
    }
    // 64-bit forms that do not exist, and the functions of PSCI 0.1.
    for id in [0xc400_0000, 0xc400_0002, 0xc400_0008, 0xc400_000a, 0x95c1_ba5e, 0x95c1_ba5f, 0x95c1_ba60, 0x95c1_ba61] {
        check_eq!(power::hvc(id, [0; 3]), [NOT_SUPPORTED, 0, 0, 0], "{id:#x}");
    }
    Ok(())
}

/// What a CPU finds in its registers at the entry point, before it has an MMU or a stack.
#[repr(C, align(64))]
pub struct Entry {
    /// CurrentEL.
    pub current_el: u64,
    /// DAIF.
    pub daif: u64,
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// SPSel.
    pub spsel: u64,
    /// MPIDR_EL1.
    pub mpidr: u64,
    /// x0.
    pub context: u64,
    /// x1 and x2.
    pub x: [u64; 2],
}

struct EntryCell(UnsafeCell<Entry>);
// SAFETY: the started CPU writes it while the boot CPU waits, and the boot CPU reads it when that one is off.
unsafe impl Sync for EntryCell {}

static ENTRY: EntryCell =
    EntryCell(UnsafeCell::new(Entry { current_el: 0, daif: 0, sctlr: 0, spsel: 0, mpidr: 0, context: 0, x: [0; 2] }));

/// Entry point of a CPU: in x0 = context id. Writes `ENTRY`, then turns the CPU off. No stack, MMU off.
#[unsafe(naked)]
unsafe extern "C" fn bare_entry() -> ! {
    naked_asm!(
        "adrp x9, {entry}",
        "add  x9, x9, :lo12:{entry}",
        "mrs  x10, CurrentEL",
        "mrs  x11, daif",
        "mrs  x12, sctlr_el1",
        "mrs  x13, spsel",
        "mrs  x14, mpidr_el1",
        "stp  x10, x11, [x9, {current_el}]",
        "stp  x12, x13, [x9, {sctlr}]",
        "stp  x14, x0, [x9, {mpidr}]",
        "stp  x1, x2, [x9, {x}]",
        "dsb  sy",
        "movz w0, 0x8400, lsl 16",
        "movk w0, 0x0002",
        "hvc  0",
        "0: wfe",
        "b 0b",
        entry = sym ENTRY,
        current_el = const offset_of!(Entry, current_el),
        sctlr = const offset_of!(Entry, sctlr),
        mpidr = const offset_of!(Entry, mpidr),
        x = const offset_of!(Entry, x),
    )
}

/// Clears `ENTRY`, in memory and not only in the cache: the CPU that writes it has its caches off.
pub fn clear_entry() {
    // SAFETY: no CPU that could write it is on.
    unsafe { core::ptr::write_bytes(ENTRY.0.get(), 0, 1) };
    arch::flush_dcache(ENTRY.0.get() as usize, size_of::<Entry>());
}

/// Waits until the CPU at `bare_entry` has come and gone, and gives what it wrote.
pub fn read_entry(machine: &Machine, cpu: usize) -> Check<&'static Entry> {
    let field = |offset: usize| {
        arch::flush_dcache(ENTRY.0.get() as usize, size_of::<Entry>());
        // SAFETY: the address is one of the fields of ENTRY; it may be written meanwhile, hence volatile.
        unsafe { ENTRY.0.get().cast::<u8>().add(offset).cast::<u64>().read_volatile() }
    };
    eventually("the started CPU reaches its entry point", || field(offset_of!(Entry, current_el)) != 0)?;
    eventually("the started CPU turns itself off", || is_off(machine, cpu))?;
    arch::flush_dcache(ENTRY.0.get() as usize, size_of::<Entry>());
    // SAFETY: the writer is off.
    Ok(unsafe { &*ENTRY.0.get() })
}

/// Entry point for CPU_ON: writes [`Entry`] and turns its CPU off.
pub fn bare_address() -> u64 {
    bare_entry as *const () as u64
}

fn cpu_on_state(machine: &Machine) -> Check {
    for context in [0x55, 0xfedc_ba98_7654_3210, 0] {
        clear_entry();
        let target = machine.cpus()[1];
        check_eq!(power::hvc(power::CPU_ON, [target, bare_address(), context])[0], SUCCESS, "CPU_ON");
        let entry = read_entry(machine, 1)?;
        check_eq!(entry.context, context, "x0 at entry");
        check_eq!(entry.current_el, 1 << 2, "CurrentEL at entry");
        check_eq!(entry.daif, 0xf << 6, "DAIF at entry");
        check_eq!(entry.spsel, 1, "SPSel at entry");
        // M, C and I: MMU and caches off.
        check_eq!(entry.sctlr & (1 | 1 << 2 | 1 << 12), 0, "SCTLR_EL1 at entry ({:#x})", entry.sctlr);
        check_eq!(entry.mpidr & keel_test_kernel::machine::MPIDR_AFFINITY, target, "MPIDR_EL1 at entry");
    }
    Ok(())
}

fn cpu_on_32(machine: &Machine) -> Check {
    clear_entry();
    let upper = 0xffff_ffff_0000_0000;
    let answer = power::hvc(0x8400_0003, [upper | machine.cpus()[1], upper | bare_address(), upper | 0x77])[0];
    check_eq!(answer, SUCCESS, "the 32-bit CPU_ON");
    check_eq!(read_entry(machine, 1)?.context, 0x77, "x0 at entry");
    Ok(())
}

static HOLD: AtomicU32 = AtomicU32::new(0);

fn hold(_: usize) {
    while HOLD.load(SeqCst) != 0 {
        arch::relax();
    }
}

fn cpu_on_already(machine: &Machine) -> Check {
    let on = |cpu: usize| power::hvc(power::CPU_ON, [machine.cpus()[cpu], bare_address(), 0])[0];
    check_eq!(on(0), ALREADY_ON, "CPU_ON of the caller");
    HOLD.store(1, SeqCst);
    start(machine, 1, hold, 0)?;
    eventually("CPU 1 is on", || power::hvc(power::AFFINITY_INFO, [machine.cpus()[1], 0, 0])[0] == 0)?;
    let answer = on(1);
    HOLD.store(0, SeqCst);
    check_eq!(answer, ALREADY_ON, "CPU_ON of a running CPU");
    join(machine, 1)
}

fn cpu_on_invalid(machine: &Machine) -> Check {
    let absent = machine.cpus().iter().max().copied().unwrap_or(0) + 1;
    for target in [absent, 0xff, 0x00ff_ffff, 0xff_0000_0000] {
        check_eq!(
            power::hvc(power::CPU_ON, [target, bare_address(), 0])[0],
            INVALID_PARAMETERS,
            "CPU_ON of {target:#x}"
        );
    }
    Ok(())
}

fn cpu_on_reserved_bits(machine: &Machine) -> Check {
    for bit in [24, 25, 30, 31, 40, 41, 63] {
        let target = machine.cpus()[1] | 1 << bit;
        check_eq!(
            power::hvc(power::CPU_ON, [target, bare_address(), 0])[0],
            INVALID_PARAMETERS,
            "CPU_ON with bit {bit}"
        );
    }
    check!(is_off(machine, 1), "CPU 1 was started all the same");
    Ok(())
}

static CAME: AtomicUsize = AtomicUsize::new(0);

fn come(argument: usize) {
    CAME.fetch_add(argument, SeqCst);
}

fn cpu_off_on_100(machine: &Machine) -> Check {
    CAME.store(0, SeqCst);
    for round in 1..=100 {
        start(machine, 1, come, round)?;
        join(machine, 1)?;
    }
    check_eq!(CAME.load(SeqCst), 5050, "sum of 1 to 100");
    Ok(())
}

fn all_cpus_at_once(machine: &Machine) -> Check {
    let cpus = machine.cpus().len();
    for _ in 0..10 {
        CAME.store(0, SeqCst);
        for cpu in 1..cpus {
            start(machine, cpu, come, cpu)?;
        }
        for cpu in 1..cpus {
            join(machine, cpu)?;
        }
        check_eq!(CAME.load(SeqCst), cpus * (cpus - 1) / 2, "sum of the CPU numbers");
    }
    Ok(())
}

static GO: AtomicUsize = AtomicUsize::new(0);
static TARGET: AtomicUsize = AtomicUsize::new(0);
static ANSWER: AtomicI64 = AtomicI64::new(0);
static ROUNDS: AtomicUsize = AtomicUsize::new(0);
/// Rounds under keel, and where a round takes longer.
const ROUNDS_UNDER_KEEL: usize = 3000;
const ROUNDS_ELSEWHERE: usize = 100;

/// The other racer: in each round waits for the start, calls CPU_ON, leaves the answer.
fn racer(_: usize) {
    for round in 1..=ROUNDS.load(SeqCst) {
        if !time::wait_until(|| GO.load(SeqCst) >= round) {
            return;
        }
        if GO.load(SeqCst) == usize::MAX {
            return;
        }
        let answer = power::hvc(power::CPU_ON, [TARGET.load(SeqCst) as u64, bare_address(), 2])[0];
        ANSWER.store(answer as i64, SeqCst);
    }
}

fn cpu_on_race(machine: &Machine) -> Check {
    GO.store(0, SeqCst);
    let rounds = if machine.value("hyp") == Some("keel") { ROUNDS_UNDER_KEEL } else { ROUNDS_ELSEWHERE };
    ROUNDS.store(rounds, SeqCst);
    TARGET.store(machine.cpus()[2] as usize, SeqCst);
    start(machine, 1, racer, 0)?;
    let result = race(machine);
    GO.store(usize::MAX, SeqCst);
    result.and(join(machine, 1))
}

fn race(machine: &Machine) -> Check {
    const NO_ANSWER: i64 = 1000;
    for round in 1..=ROUNDS.load(SeqCst) {
        clear_entry();
        ANSWER.store(NO_ANSWER, SeqCst);
        GO.store(round, SeqCst);
        let mine = power::hvc(power::CPU_ON, [machine.cpus()[2], bare_address(), 1])[0];
        eventually("the other CPU has its answer", || ANSWER.load(SeqCst) != NO_ANSWER)?;
        let other = ANSWER.load(SeqCst) as u64;
        let entry = read_entry(machine, 2)?;
        // The one that came late may find the CPU already off again, and start it a second time.
        let refused = |answer| answer == ALREADY_ON || answer == ON_PENDING;
        let won = match (mine, other) {
            (SUCCESS, other) if refused(other) => entry.context == 1,
            (mine, SUCCESS) if refused(mine) => entry.context == 2,
            (SUCCESS, SUCCESS) => true,
            _ => false,
        };
        check!(won, "round {round}: answers {} and {}, context {}", mine as i64, other as i64, entry.context);
        if (mine, other) == (SUCCESS, SUCCESS) {
            // Give the second start time to end.
            time::delay(1000);
            read_entry(machine, 2)?;
        }
    }
    Ok(())
}

fn affinity_info(machine: &Machine) -> Check {
    let info = |target, level| power::hvc(power::AFFINITY_INFO, [target, level, 0])[0];
    let (me, other) = (machine.cpus()[0], machine.cpus()[1]);
    check_eq!(info(me, 0), 0, "level 0 of the caller");
    check_eq!(info(other, 0), 1, "level 0 of a stopped CPU");
    HOLD.store(1, SeqCst);
    start(machine, 1, hold, 0)?;
    let on = eventually("AFFINITY_INFO says that CPU 1 is on", || info(other, 0) == 0);
    HOLD.store(0, SeqCst);
    on?;
    join(machine, 1)?;
    check_eq!(info(other, 0), 1, "level 0 after CPU_OFF");
    Ok(())
}

fn affinity_info_levels(machine: &Machine) -> Check {
    let info = |target, level| power::hvc(power::AFFINITY_INFO, [target, level, 0])[0];
    let (me, other) = (machine.cpus()[0], machine.cpus()[1]);
    // The other CPU is in the caller's cluster, which is on.
    check!(me >> 8 == other >> 8, "CPU 1 is not in the boot CPU's cluster");
    for level in 1..=3 {
        check_eq!(info(other, level), 0, "level {level}");
    }
    for level in [4, 5, 0xffff_ffff, 1 << 32] {
        check_eq!(info(me, level), INVALID_PARAMETERS, "level {level:#x}");
    }
    for target in [0x00ff_ffff, 0xff_0000_0000] {
        check_eq!(info(target, 0), INVALID_PARAMETERS, "AFFINITY_INFO of {target:#x}");
    }
    for bit in [24, 31, 40, 63] {
        check_eq!(info(me | 1 << bit, 0), INVALID_PARAMETERS, "AFFINITY_INFO with bit {bit}");
    }
    // The lowest level named hides the bits below it.
    check_eq!(info(me | 0xff, 1), 0, "level 1 with other low bits");
    Ok(())
}

/// Suspends by `call` until the virtual timer, masked in PSTATE, wakes it.
fn suspend(call: impl Fn() -> u64) -> Check {
    const SLEEP_US: u64 = 20_000;
    irq::enable(platform::VIRTUAL_TIMER_INTID, 0);
    Timer::Virtual.arm(SLEEP_US);
    let deadline = Timer::Virtual.compare();
    let answer = call();
    let woke = time::now();
    Timer::Virtual.stop();
    check_eq!(answer, SUCCESS, "CPU_SUSPEND");
    // It may wake early, as WFI may, but then the timer cannot have been the reason; keel has no other.
    check!(woke >= deadline, "woke {} ticks early", deadline - woke);
    check!(woke < deadline + time::micros(time::PATIENCE_US), "woke {} ticks late", woke - deadline);
    check_eq!(mrs!("CurrentEL"), 4, "CurrentEL after the suspend");
    Ok(())
}

fn cpu_suspend(_: &Machine) -> Check {
    for _ in 0..5 {
        suspend(|| power::hvc(power::CPU_SUSPEND, [0; 3])[0])?;
    }
    Ok(())
}

fn cpu_suspend_32_by_smc(_: &Machine) -> Check {
    // A power-down state too: registers are kept, the entry point is not used.
    for power_state in [0, 1 << 16, 0xffff_ffff] {
        suspend(|| power::smc(0x8400_0001, [power_state, 0, 0])[0])?;
    }
    Ok(())
}

fn system_reset2_invalid(_: &Machine) -> Check {
    for kind in [1, 2, 0x7fff_ffff] {
        for id in [0x8400_0012, 0xc400_0012] {
            let answer = power::hvc(id, [kind, 0, 0])[0];
            check_eq!(answer, INVALID_PARAMETERS, "SYSTEM_RESET2({kind:#x}) by {id:#x}");
        }
    }
    Ok(())
}
