//! What an operation costs, in instructions.
//!
//! Under `-icount shift=0` with `-cpu max` the counter runs at 1 GHz and one tick is one instruction, whoever executes
//! it. Each figure is the mean of [`ROUNDS`] rounds of a loop in assembly, its own two or three instructions included.
//! Interrupts go to vectors of four instructions, so that the figures speak of the hypervisor and not of this kernel.

use crate::{check_eq, harness::Check};
use core::{
    arch::{asm, global_asm},
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};
use keel_test_kernel::{
    arch,
    gicv2::{self, gicc},
    irq,
    its::{self, command::*},
    machine::Machine,
    mmio, mrs, msr, platform, power, println, smp,
    time::{self, Timer},
};

global_asm!(include_str!("bench.S"));

unsafe extern "C" {
    static bench_vectors: u8;
    static bench_echo_vectors: u8;
    static bench_start_entry: u8;
    static bench_vectors_v2: u8;
    static bench_echo_vectors_v2: u8;
}

/// Rounds of each loop.
const ROUNDS: u64 = 1000;

/// Ticks of one round of `$body`, which may use x0 to x7 and the named operands; the counter x9 is the loop's.
macro_rules! ticks {
    ([$($body:literal),+ $(,)?] $(, $($operand:tt)*)?) => {{
        let start = time::now();
        // SAFETY: each body makes calls or touches registers and devices of the platform, keeps sp, and names
        // what it clobbers; the memory it may write belongs to no Rust object but atomics.
        unsafe {
            asm!(
                "mov x9, {rounds}",
                "2:",
                $($body,)+
                "subs x9, x9, #1",
                "b.ne 2b",
                "isb",
                rounds = in(reg) ROUNDS,
                out("x0") _, out("x1") _, out("x2") _, out("x3") _, out("x4") _, out("x5") _, out("x6") _, out("x7") _,
                out("x9") _,
                $($($operand)*)?
            )
        };
        time::now() - start
    }};
}

/// Handing a CPU over to another vCPU and getting it back: two changes. Of a machine whose two vCPUs have one CPU.
pub fn run_switch(machine: &'static Machine) {
    if hand_over_by_interrupt(machine).is_err() {
        println!("bench vcpu_switch FAILED: {}", crate::harness::reason());
        return;
    }
    if !machine.under_keel() {
        println!("bench vcpu_yield skipped: needs KVM_HC_SCHED_YIELD");
        return;
    }
    STOP.store(0, SeqCst);
    FLAG.store(0, SeqCst);
    if crate::harness::start(machine, 1, hand_over, 0).is_err() {
        println!("bench vcpu_yield FAILED: {}", crate::harness::reason());
        return;
    }
    while FLAG.load(SeqCst) == 0 {
        give_way();
    }
    let before = FLAG.load(SeqCst);
    let total = ticks!(["mov w0, {id:w}", "mov x1, #1", "hvc #0"], id = in(reg) SCHED_YIELD);
    let turns = FLAG.load(SeqCst) - before;
    STOP.store(1, SeqCst);
    // Each round is two changes, if the other one had its turn each time.
    if turns < ROUNDS - 1 {
        println!("bench vcpu_yield skipped: {turns} of {ROUNDS} rounds changed vCPU");
    } else {
        report("vcpu_yield", total / 2);
    }
    while !keel_test_kernel::smp::is_off(machine, 1) {
        give_way();
    }
}

/// An SGI to the other vCPU and WFI, and the same back: two changes of vCPU, with what brings them about.
fn hand_over_by_interrupt(machine: &'static Machine) -> Check {
    FLAG.store(0, SeqCst);
    STOP.store(0, SeqCst);
    irq::enable(IPI, 0);
    irq::set_handler(Some(|_| {
        if arch::cpu() == 1 {
            FLAG.fetch_add(1, SeqCst);
            irq::send(IPI, CALLER.load(SeqCst));
        }
    }));
    CALLER.store(machine.cpus()[0], SeqCst);
    crate::harness::start(machine, 1, answer, 1)?;
    let other = machine.cpus()[1];
    let turn = || {
        let before = FLAG.load(SeqCst);
        irq::send(IPI, other);
        while FLAG.load(SeqCst) == before {
            // Interrupts are masked, so that none is missed between the look and WFI.
            arch::wfi();
            arch::with_irqs(|| {});
        }
    };
    turn();
    let start = time::now();
    (0..ROUNDS).for_each(|_| turn());
    report("vcpu_switch", (time::now() - start) / 2);
    STOP.store(1, SeqCst);
    irq::send(IPI, other);
    crate::harness::join(machine, 1)?;
    irq::init(machine);
    Ok(())
}

/// Who is answered.
static CALLER: AtomicU64 = AtomicU64::new(0);

/// The other vCPU: answers each SGI.
fn answer(cpu: usize) {
    irq::enable(IPI, cpu);
    while STOP.load(SeqCst) == 0 {
        arch::wfi();
        arch::with_irqs(|| {});
    }
}

/// KVM_HC_SCHED_YIELD, as keel numbers generic hypercalls.
const SCHED_YIELD: u32 = 0xc600_010b;

fn give_way() {
    power::hvc(SCHED_YIELD, [0, 0, 0]);
}

/// The other vCPU: counts its turns.
fn hand_over(_: usize) {
    while STOP.load(SeqCst) == 0 {
        FLAG.fetch_add(1, SeqCst);
        give_way();
    }
}

fn report(name: &str, total: u64) {
    println!("bench {name} {} insn", (total + ROUNDS / 2) / ROUNDS);
}

/// What is measured between two CPUs.
type Bench = fn(&Machine) -> Check;
const TWO_CPUS: [(&str, Bench); 2] = [("ipi", ipi), ("vcpu_start", vcpu_start)];

/// Runs all benchmarks.
pub fn run(machine: &'static Machine) {
    println!("bench: counter at {} Hz", time::frequency());
    calls(machine);
    devices();
    maintenance();
    interrupts(machine);
    lpi(machine);
    memory_fault(machine);
    for (name, bench) in TWO_CPUS {
        if machine.cpus().len() < 2 {
            println!("bench {name} skipped: needs 2 CPUs");
        } else if bench(machine).is_err() {
            println!("bench {name} FAILED: {}", crate::harness::reason());
        }
    }
    println!("bench: done");
}

fn calls(machine: &Machine) {
    report("empty_loop", ticks!(["nop"]));
    report("hvc_fast", ticks!(["mov w0, {id:w}", "hvc #0"], id = in(reg) power::SMCCC_VERSION));
    report("psci_version", ticks!(["mov w0, {id:w}", "hvc #0"], id = in(reg) power::PSCI_VERSION));
    report("hvc_rust", ticks!(["mov w0, {id:w}", "hvc #0"], id = in(reg) 0xc600_ffff_u32));
    if machine.under_keel() {
        report("smc_unknown", ticks!(["mov w0, {id:w}", "smc #0"], id = in(reg) 0xc600_ffff_u32));
    } else {
        println!("bench smc_unknown skipped: undefined without EL2 and EL3");
    }
}

fn devices() {
    let load = |address: usize| ticks!(["ldr w0, [{address}]"], address = in(reg) address);
    report("gicd_read", load(platform::GICD + 4));
    report("gicd_isenabler", load(platform::GICD + 0x104));
    if irq::is_v2() {
        report("gicd_itargetsr", load(platform::GICD + 0x800));
        report("gicc_read", load(platform::GICC + gicc::PMR));
    } else {
        report("gicr_read", load(platform::GICR + 8));
    }
    report("mmio_read", load(platform::PL011 + 0x18));
    let mask = mmio::read32(platform::PL011 + 0x38);
    report(
        "mmio_write",
        ticks!(["str {value:w}, [{address}]"], value = in(reg) mask, address = in(reg) platform::PL011 + 0x38),
    );
    report("rtc_read", load(platform::PL031));
    report("id_reg", ticks!(["mrs x0, id_aa64pfr0_el1"]));
    report("midr", ticks!(["mrs x0, midr_el1"]));
    report("ctr", ticks!(["mrs x0, ctr_el0"]));
    report("cntvct", ticks!(["mrs x0, cntvct_el0"]));
    report("cntpct", ticks!(["mrs x0, cntpct_el0"]));
    if matches!(mrs!("id_aa64dfr0_el1") >> 8 & 0xf, 0 | 0xf) {
        println!("bench pmu_read skipped: there is no PMU");
    } else {
        report("pmu_read", ticks!(["mrs x0, pmccntr_el0"]));
        report("pmu_write", ticks!(["msr pmevtyper0_el0, xzr"]));
    }
}

/// The first access to a page of RAM that nobody has touched since the machine started.
fn memory_fault(machine: &Machine) {
    const PAGE: usize = 4096;
    // The loader puts kernel, RAM disk and tree at the beginning or end of RAM.
    let middle = (machine.memory_base + machine.memory_size / 2).next_multiple_of(PAGE);
    report(
        "memory_fault",
        ticks!(
            ["str xzr, [x10]", "add x10, x10, {page}"],
            page = const PAGE, inout("x10") middle => _,
        ),
    );
}

fn maintenance() {
    report("dc_isw", ticks!(["dc isw, {set}"], set = in(reg) 0_u64));
    report("dc_cisw", ticks!(["dc cisw, {set}"], set = in(reg) 0_u64));
    report("tlbi_vmalle1is", ticks!(["tlbi vmalle1is", "dsb ish"]));
}

/// Runs `f` with this CPU's vectors replaced.
fn with_vectors<R>(vectors: *const u8, f: impl FnOnce() -> R) -> R {
    let old = mrs!("vbar_el1");
    msr!("vbar_el1", vectors as u64);
    let result = f();
    arch::irq_disable();
    msr!("vbar_el1", old);
    result
}

fn interrupts(machine: &Machine) {
    const SGI: u32 = 1;
    let me = machine.cpus()[0];
    let affinity = (me >> 8 & 0xff) << 16 | (me >> 16 & 0xff) << 32 | (me >> 32 & 0xff) << 48;
    let sgi1r = affinity | u64::from(SGI) << 24;
    let sgir = platform::GICD + 0xf00;
    if irq::is_v2() {
        report("sgir_no_target", ticks!(["str {value:w}, [{sgir}]"], value = in(reg) SGI, sgir = in(reg) sgir));
    } else {
        report("sgi1r_no_target", ticks!(["msr S3_0_C12_C11_5, {value}"], value = in(reg) sgi1r));
    }
    irq::enable(SGI, 0);
    irq::enable(platform::VIRTUAL_TIMER_INTID, 0);
    let to_me = sgi1r | 1 << (me & 15);
    let vectors = if irq::is_v2() { &raw const bench_vectors_v2 } else { &raw const bench_vectors };
    with_vectors(vectors, || {
        // From the write to the end of the handler and back.
        arch::irq_enable();
        report(
            "sgi_self",
            if irq::is_v2() {
                ticks!(
                    ["mov x27, xzr", "str {value:w}, [{sgir}]", "3:", "cbz x27, 3b"],
                    value = in(reg) gicv2::TO_SELF << 24 | SGI, sgir = in(reg) sgir,
                    in("x25") platform::GICC, in("x26") 2_u64, out("x27") _, out("x28") _,
                )
            } else {
                ticks!(
                    ["mov x27, xzr", "msr S3_0_C12_C11_5, {value}", "isb", "3:", "cbz x27, 3b"],
                    value = in(reg) to_me, in("x26") 2_u64, out("x27") _, out("x28") _,
                )
            },
        );
        // From programming a deadline that has passed to the end of the handler and back.
        report(
            "timer_irq",
            ticks!(
                ["mov x27, xzr", "mrs x0, cntvct_el0", "msr cntv_cval_el0, x0", "mov x1, #1", "msr cntv_ctl_el0, x1", "isb",
                 "3:", "cbz x27, 3b"],
                in("x25") platform::GICC, in("x26") 2_u64, out("x27") _, out("x28") _,
            ),
        );
        arch::irq_disable();
    });
    // Acknowledging and ending alone, the interrupt being pending already and masked in PSTATE.
    let (mut acknowledge, mut end) = (0, 0);
    for _ in 0..ROUNDS {
        if irq::is_v2() {
            gicv2::send(gicv2::TO_SELF, 0, SGI);
        } else {
            msr!("S3_0_C12_C11_5", to_me);
        }
        while mrs!("isr_el1") & 1 << 7 == 0 {
            arch::relax();
        }
        let before = time::now();
        let (between, after);
        if irq::is_v2() {
            let intid = irq::acknowledge();
            between = time::now();
            irq::end(intid);
            after = time::now();
        } else {
            let intid = mrs!("S3_0_C12_C12_0");
            between = time::now();
            msr!("S3_0_C12_C12_1", intid);
            after = time::now();
        }
        acknowledge += between - before;
        end += after - between;
    }
    report("ack", acknowledge);
    report("eoi", end);
    // How long after its deadline the timer ends a WFI.
    let mut late = 0;
    for _ in 0..ROUNDS {
        Timer::Virtual.set_compare(time::now() + 20_000);
        Timer::Virtual.set_control(time::ENABLE);
        while Timer::Virtual.control() & time::ISTATUS == 0 {
            arch::wfi();
        }
        late += time::now() - Timer::Virtual.compare();
        Timer::Virtual.stop();
    }
    report("wfi_wake", late);
    irq::init(machine);
}

/// From adding INT to the queue to the end of the LPI's handler and back.
fn lpi(machine: &Machine) {
    const EVENT: u32 = 0;
    if !machine.has_its {
        println!("bench lpi skipped: there is no ITS");
        return;
    }
    let ready = its::start(machine, its::USUAL);
    its::configure(its::LPI, 0x80, true);
    let commands = [mapd(0, 5, its::itt(0)), mapti(0, EVENT, its::LPI, 0), inv(0, EVENT), sync(0)];
    if !ready || !its::run(commands) {
        println!("bench lpi FAILED: the ITS does not carry out its commands");
        return;
    }
    let command = int(0, EVENT);
    let mask = its::fill(command) as u64 - 1;
    let offset = mmio::read64(its::CWRITER);
    with_vectors(&raw const bench_vectors, || {
        arch::irq_enable();
        report(
            "lpi",
            ticks!(
                ["mov x27, xzr", "add x0, {queue}, {offset}", "stp {first}, {second}, [x0]", "stp xzr, xzr, [x0, #16]",
                 "dsb ishst", "add {offset}, {offset}, #32", "and {offset}, {offset}, {mask}",
                 "str {offset}, [{cwriter}]", "3:", "cbz x27, 3b"],
                queue = in(reg) its::queue(), offset = inout(reg) offset => _, mask = in(reg) mask,
                first = in(reg) command[0], second = in(reg) command[1], cwriter = in(reg) its::CWRITER,
                in("x26") 2_u64, out("x27") _, out("x28") _,
            ),
        );
        arch::irq_disable();
    });
    its::stop(machine);
    irq::init(machine);
}

/// Set by the handler of the other CPU.
static FLAG: AtomicU64 = AtomicU64::new(0);
/// Tells the other CPU to end.
static STOP: AtomicU64 = AtomicU64::new(0);
const IPI: u32 = 2;
const READY: u64 = 3;

/// The other CPU: waits for interrupts, whose handler writes 1 to FLAG, until STOP is set.
fn echo(cpu: usize) {
    irq::enable(IPI, cpu);
    FLAG.store(READY, SeqCst);
    let vectors = if irq::is_v2() { &raw const bench_echo_vectors_v2 } else { &raw const bench_echo_vectors };
    with_vectors(vectors, || {
        // SAFETY: the handler clobbers x28, reads x25, and writes FLAG through x27, all named here.
        unsafe {
            asm!(
                "msr daifclr, #2",
                "2:",
                "wfi",
                "ldar x0, [{stop}]",
                "cbz x0, 2b",
                "msr daifset, #2",
                stop = in(reg) &raw const STOP,
                in("x25") platform::GICC, in("x27") &raw const FLAG, out("x28") _, out("x0") _, options(nostack),
            );
        }
    });
}

/// From the write of ICC_SGI1R to the acknowledgement by the other CPU, seen in memory.
fn ipi(machine: &Machine) -> Check {
    FLAG.store(0, SeqCst);
    STOP.store(0, SeqCst);
    crate::harness::start(machine, 1, echo, 1)?;
    crate::harness::eventually("the other CPU is ready", || FLAG.load(SeqCst) == READY)?;
    let other = machine.cpus()[1];
    let mut total = 0;
    for _ in 0..ROUNDS {
        FLAG.store(0, SeqCst);
        // Let the other one come to its WFI.
        time::delay(20);
        let start = time::now();
        irq::send(IPI, other);
        while FLAG.load(SeqCst) == 0 {
            arch::relax();
        }
        total += time::now() - start;
    }
    report("ipi", total);
    STOP.store(1, SeqCst);
    irq::send(IPI, other);
    crate::harness::join(machine, 1)
}

/// Where a started CPU leaves the counter.
static STARTED: AtomicU64 = AtomicU64::new(0);

/// From CPU_ON to the other CPU's first instruction.
fn vcpu_start(machine: &Machine) -> Check {
    let mut total = 0;
    let started = (&raw const STARTED) as usize;
    for _ in 0..ROUNDS {
        crate::harness::eventually("the other CPU is off", || smp::is_off(machine, 1))?;
        STARTED.store(0, SeqCst);
        // The other one writes with its MMU off, past the caches.
        arch::flush_dcache(started, size_of::<u64>());
        let start = time::now();
        let result =
            power::psci(power::CPU_ON, [machine.cpus()[1], (&raw const bench_start_entry) as u64, started as u64]);
        check_eq!(result[0], 0, "CPU_ON");
        crate::harness::eventually("the other CPU starts", || {
            arch::flush_dcache(started, size_of::<u64>());
            STARTED.load(SeqCst) != 0
        })?;
        total += STARTED.load(SeqCst) - start;
    }
    report("vcpu_start", total);
    Ok(())
}
