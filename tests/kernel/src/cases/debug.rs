//! Self-hosted debug: breakpoints, watchpoints and single step are the guest's own.

use crate::{
    check, check_eq,
    harness::{Case, Check, Under::*, case, join, skip, start},
};
use core::{
    arch::{asm, naked_asm},
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
};
use keel_test_kernel::{
    arch,
    exceptions::{State, set_sync_handler},
    exec::{self, EC_DATA_ABORT, EC_STEP},
    machine::Machine,
    mmio, mrs, msr,
    platform::{GICD, HOLE, MAX_CPUS},
    power, time,
};

/// The cases.
pub const CASES: &[Case] = &[
    case("debug/registers", 1, Any, registers),
    case("debug/os_lock", 1, Any, os_lock),
    case("debug/brk", 1, Any, brk),
    case("debug/os_double_lock", 1, Any, os_double_lock),
    case("debug/claim_tags", 1, Any, claim_tags),
    case("debug/single_step", 1, Any, single_step),
    case("debug/step_over_a_call", 1, Any, step_over_a_call),
    case("debug/step_over_an_smc", 1, Keel, step_over_an_smc),
    case("debug/step_over_a_device", 1, Any, step_over_a_device),
    case("debug/step_over_a_system_register", 1, Any, step_over_a_system_register),
    case("debug/step_into_an_abort", 1, Any, step_into_an_abort),
    case("debug/breakpoint", 1, Any, breakpoint),
    case("debug/watchpoint", 1, Any, watchpoint),
    case("debug/watchpoint_on_a_device", 1, Any, watchpoint_on_a_device),
    case("debug/each_cpu_its_own", 2, Any, each_cpu_its_own),
];

const EC_BREAKPOINT: u64 = 0x31;
const EC_WATCHPOINT: u64 = 0x35;
const EC_BRK: u64 = 0x3c;
const EC_SVC: u64 = 0x15;
/// SPSR.SS and SPSR.D.
const SPSR_SS: u64 = 1 << 21;
const SPSR_D: u64 = 1 << 9;
/// MDSCR_EL1.SS, KDE and MDE.
const SS: u64 = 1;
const KDE: u64 = 1 << 13;
const MDE: u64 = 1 << 15;

const VALUE: u64 = 0x0000_1234_5678_9abc;

fn registers(_: &Machine) -> Check {
    let breakpoints = mrs!("id_aa64dfr0_el1") >> 12 & 15;
    check!(breakpoints >= 1, "ID_AA64DFR0_EL1.BRPs: {breakpoints}, 2 breakpoints are the least");
    msr!("dbgbcr0_el1", 0);
    msr!("dbgwcr0_el1", 0);
    msr!("dbgbvr0_el1", VALUE);
    msr!("dbgbvr1_el1", !3 & 0xffff_8888_7777);
    msr!("dbgwvr0_el1", VALUE & !7);
    msr!("mdscr_el1", KDE);
    // They stay over exits.
    power::hvc(0xc600_ffff, [0; 3]);
    let found = (mrs!("dbgbvr0_el1"), mrs!("dbgbvr1_el1"), mrs!("dbgwvr0_el1"), mrs!("mdscr_el1"));
    msr!("mdscr_el1", 0);
    check_eq!(found, (VALUE, !3 & 0xffff_8888_7777, VALUE & !7, KDE), "DBGBVR0, DBGBVR1, DBGWVR0, MDSCR");
    // BAS and PMC of a disabled breakpoint.
    msr!("dbgbcr0_el1", 0xf << 5 | 1 << 1);
    check_eq!(mrs!("dbgbcr0_el1") & (0xf << 5 | 7), 0xf << 5 | 1 << 1, "DBGBCR0_EL1");
    msr!("dbgbcr0_el1", 0);
    Ok(())
}

fn os_lock(machine: &Machine) -> Check {
    msr!("oslar_el1", 1);
    let locked = mrs!("oslsr_el1");
    msr!("oslar_el1", 0);
    let unlocked = mrs!("oslsr_el1");
    check_eq!(locked & 2, 2, "OSLSR_EL1.OSLK after locking");
    check_eq!(unlocked & 2, 0, "OSLSR_EL1.OSLK after unlocking");
    // It is this CPU's. (That it keeps breakpoints out is not tried: QEMU's does not.)
    msr!("oslar_el1", 1);
    power::psci(power::PSCI_VERSION, [0; 3]);
    if machine.cpus().len() > 1 {
        start(machine, 1, |_| FIRST.store(mrs!("oslsr_el1"), SeqCst), 0)?;
        join(machine, 1)?;
    }
    let locked = mrs!("oslsr_el1");
    msr!("oslar_el1", 0);
    check_eq!(locked & 2, 2, "OSLSR_EL1.OSLK after a call, and after CPU 1 has run");
    // OSLAR_EL1 cannot be read, nor OSLSR_EL1 written.
    for word in [exec::mrs(9, (2, 0, 1, 0, 4)), exec::msr(9, (2, 0, 1, 1, 4))] {
        let outcome = exec::run_with(word, &[(9, 1)]);
        check_eq!(outcome.trap.map(|trap| trap.class()), Some(exec::EC_UNKNOWN), "class of {word:#x}");
    }
    check_eq!(mrs!("oslsr_el1") & 2, 0, "OSLSR_EL1.OSLK");
    Ok(())
}

/// Whether ID_AA64DFR0_EL1.DoubleLock says that the lock is there: 0 does.
fn os_double_lock(_: &Machine) -> Check {
    let is_there = mrs!("id_aa64dfr0_el1") >> 36 & 15 == 0;
    check_eq!(mrs!("osdlr_el1"), 0, "OSDLR_EL1");
    if !is_there {
        msr!("osdlr_el1", 1);
        let found = mrs!("osdlr_el1");
        // The lock would keep this out.
        let result = at_breakpoint();
        msr!("osdlr_el1", 0);
        check_eq!(found, 0, "OSDLR_EL1 without FEAT_DoubleLock, after 1 was written");
        check_eq!((result, CLASS.load(SeqCst)), (42, EC_BREAKPOINT), "a breakpoint behind it: result and class");
    }
    Ok(())
}

fn claim_tags(machine: &Machine) -> Check {
    // DBGCLAIMSET_EL1, DBGCLAIMCLR_EL1: reading the second one says which are set.
    msr!("S2_0_C7_C9_6", 0xff);
    check_eq!(mrs!("S2_0_C7_C9_6"), 0, "DBGCLAIMCLR_EL1 after all were cleared");
    msr!("S2_0_C7_C8_6", 0x5a);
    let found = mrs!("S2_0_C7_C9_6");
    if machine.cpus().len() > 1 {
        start(machine, 1, |_| FIRST.store(mrs!("S2_0_C7_C9_6"), SeqCst), 0)?;
        join(machine, 1)?;
        check_eq!(FIRST.load(SeqCst), 0, "DBGCLAIMCLR_EL1 of CPU 1");
    }
    power::psci(power::PSCI_VERSION, [0; 3]);
    let later = mrs!("S2_0_C7_C9_6");
    msr!("S2_0_C7_C9_6", 0xff);
    // KVM has no claim tags.
    check!(found == 0x5a || found == 0, "DBGCLAIMCLR_EL1: {found:#x}, of 0x5a");
    check_eq!(later, found, "DBGCLAIMCLR_EL1 after a call");
    Ok(())
}

fn brk(_: &Machine) -> Check {
    let outcome = exec::run_with(0xd420_0000 | 0x1234 << 5, &[]);
    let Some(trap) = outcome.trap else {
        check!(false, "BRK was not taken");
        return Ok(());
    };
    check_eq!((trap.class(), trap.esr & 0xffff), (EC_BRK, 0x1234), "class and comment of ESR {:#x}", trap.esr);
    check_eq!(outcome.changed(&[]), None, "registers after BRK");
    Ok(())
}

static FIRST: AtomicU64 = AtomicU64::new(0);
static SECOND: AtomicU64 = AtomicU64::new(0);
static CLASS: AtomicU64 = AtomicU64::new(0);

/// SVC: step the next instruction. Step exception: note where, and stop stepping.
fn step_handler(esr: u64, state: &mut State) -> bool {
    match esr >> 26 & 0x3f {
        EC_SVC => {
            FIRST.store(state.elr, SeqCst);
            msr!("mdscr_el1", SS | KDE);
            state.spsr = (state.spsr & !SPSR_D) | SPSR_SS;
            true
        }
        EC_STEP => {
            SECOND.store(state.elr, SeqCst);
            msr!("mdscr_el1", 0);
            state.spsr = (state.spsr | SPSR_D) & !SPSR_SS;
            true
        }
        _ => false,
    }
}

fn single_step(_: &Machine) -> Check {
    msr!("oslar_el1", 0);
    for _ in 0..3 {
        FIRST.store(0, SeqCst);
        SECOND.store(0, SeqCst);
        set_sync_handler(Some(step_handler));
        let count: u64;
        // SAFETY: the handler of this test takes the SVC and the step, and changes nothing but its notes.
        unsafe { asm!("svc #0", "add {0}, {0}, #1", "add {0}, {0}, #1", inout(reg) 0_u64 => count, options(nostack)) };
        set_sync_handler(None);
        check_eq!(count, 2, "instructions that ran");
        check_eq!(SECOND.load(SeqCst), FIRST.load(SeqCst) + 4, "ELR of the step exception");
    }
    Ok(())
}

/// Steps over an instruction: with `x0` to `x3` from `registers`, which get what it leaves. The step begins at the
/// instruction and has to end right behind it, and nothing of what follows may have been executed.
macro_rules! step_over {
    ($what:literal, $instruction:literal, $registers:expr) => {{
        let registers: &mut [u64; 4] = $registers;
        FIRST.store(0, SeqCst);
        SECOND.store(0, SeqCst);
        msr!("oslar_el1", 0);
        set_sync_handler(Some(step_handler));
        let behind: u64;
        // SAFETY: the handler takes the SVC and the step and changes nothing but its notes; the instruction is named with
        // what it clobbers.
        unsafe {
            asm!("mov x9, #0", "svc #0", $instruction, "add x9, x9, #1", "add x9, x9, #1",
                 inout("x0") registers[0], inout("x1") registers[1], inout("x2") registers[2], inout("x3") registers[3],
                 out("x9") behind, options(nostack))
        };
        set_sync_handler(None);
        let (first, second) = (FIRST.load(SeqCst), SECOND.load(SeqCst));
        check_eq!(behind, 2, concat!("instructions behind ", $what));
        check_eq!(second.wrapping_sub(first), 4, concat!("bytes that a step over ", $what, " went"));
    }};
}

fn step_over_a_call(_: &Machine) -> Check {
    // Answered by the first lines of keel's vectors, and not; where the call is made by SMC, HVC is undefined.
    if power::by_smc() {
        return skip("no calls by HVC");
    }
    for id in [0x8400_0000_u64, 0x8000_0000, 0xc600_ffff] {
        let mut registers = [id, 0, 0, 0];
        step_over!("HVC", "hvc #0", &mut registers);
        check!(registers[0] != id, "the call {id:#x} has no answer");
    }
    Ok(())
}

fn step_over_an_smc(_: &Machine) -> Check {
    for id in [0x8400_0000_u64, 0xc600_ffff] {
        let mut registers = [id, 0, 0, 0];
        step_over!("SMC", "smc #0", &mut registers);
        check!(registers[0] != id, "the call {id:#x} has no answer");
    }
    Ok(())
}

fn step_over_a_device(_: &Machine) -> Check {
    let typer = mmio::read32(GICD + 4);
    let mut registers = [0, GICD as u64 + 4, 0, 0];
    step_over!("a load from a device", "ldr w0, [x1]", &mut registers);
    check_eq!(registers[0], typer.into(), "GICD_TYPER");
    let at = GICD + 0x420;
    let mut registers = [0x4848_4848, at as u64, 0, 0];
    step_over!("a store to a device", "str w0, [x1]", &mut registers);
    check_eq!(mmio::read32(at) & 0xf8f8_f8f8, 0x4848_4848, "GICD_IPRIORITYR8");
    mmio::write32(at, 0x8080_8080);
    Ok(())
}

fn step_over_a_system_register(machine: &Machine) -> Check {
    let mut registers = [0; 4];
    step_over!("MRS of an ID register", "mrs x0, id_aa64pfr0_el1", &mut registers);
    check_eq!(registers[0], mrs!("id_aa64pfr0_el1"), "ID_AA64PFR0_EL1");
    if machine.has_gicv3 {
        step_over!("MRS of ICC_SRE_EL1", "mrs x0, S3_0_C12_C12_5", &mut registers);
        check_eq!(registers[0], mrs!("S3_0_C12_C12_5"), "ICC_SRE_EL1");
        registers = [0; 4];
        step_over!("MSR of ICC_SGI1R_EL1 without targets", "msr S3_0_C12_C11_5, x0", &mut registers);
    }
    registers = [0; 4];
    step_over!("MSR of OSLAR_EL1", "msr oslar_el1, x0", &mut registers);
    Ok(())
}

/// SVC: step the next instruction. Data abort: note SPSR.SS, and step over it. Step exception: as ever.
fn abort_handler(esr: u64, state: &mut State) -> bool {
    if esr >> 26 & 0x3f != EC_DATA_ABORT {
        return step_handler(esr, state);
    }
    CLASS.store(state.spsr & SPSR_SS, SeqCst);
    state.elr += 4;
    true
}

fn step_into_an_abort(_: &Machine) -> Check {
    CLASS.store(0, SeqCst);
    FIRST.store(0, SeqCst);
    SECOND.store(0, SeqCst);
    msr!("oslar_el1", 0);
    set_sync_handler(Some(abort_handler));
    // SAFETY: the handler takes the SVC, the abort and the step.
    unsafe { asm!("svc #0", "ldr wzr, [{hole}]", "nop", "nop", "nop", hole = in(reg) HOLE, options(nostack)) };
    set_sync_handler(None);
    // The load was not executed: the step is still to be made, of what is behind it.
    check_eq!(CLASS.load(SeqCst), SPSR_SS, "SPSR_EL1.SS of the abort");
    check_eq!(SECOND.load(SeqCst).wrapping_sub(FIRST.load(SeqCst)), 8, "bytes to where the step ended");
    Ok(())
}

/// A breakpoint or watchpoint: note it, switch it off, go on.
fn point_handler(esr: u64, state: &mut State) -> bool {
    CLASS.store(esr >> 26 & 0x3f, SeqCst);
    FIRST.store(state.elr, SeqCst);
    msr!("dbgbcr0_el1", 0);
    msr!("dbgwcr0_el1", 0);
    msr!("mdscr_el1", 0);
    matches!(esr >> 26 & 0x3f, EC_BREAKPOINT | EC_WATCHPOINT)
}

/// Adds 1. Its address is where the breakpoint is.
#[unsafe(naked)]
extern "C" fn broken(_: u64) -> u64 {
    naked_asm!("add x0, x0, #1", "ret")
}

/// Runs `f` with debug exceptions let in and the handler of points installed.
fn with_points(f: impl FnOnce()) {
    msr!("oslar_el1", 0);
    CLASS.store(0, SeqCst);
    FIRST.store(0, SeqCst);
    set_sync_handler(Some(point_handler));
    msr!("mdscr_el1", KDE | MDE);
    // SAFETY: PSTATE.D only; debug exceptions have a handler.
    unsafe { asm!("msr daifclr, #8", "isb", options(nostack)) };
    f();
    // SAFETY: as above.
    unsafe { asm!("msr daifset, #8", "isb", options(nostack)) };
    msr!("mdscr_el1", 0);
    set_sync_handler(None);
}

/// Calls [`broken`] with a breakpoint on it; what it answers to 41.
fn at_breakpoint() -> u64 {
    let mut result = 0;
    with_points(|| {
        msr!("dbgbvr0_el1", broken as *const () as u64);
        // E, EL1, all four bytes.
        msr!("dbgbcr0_el1", 1 | 1 << 1 | 0xf << 5);
        result = broken(41);
        msr!("dbgbcr0_el1", 0);
    });
    result
}

fn breakpoint(_: &Machine) -> Check {
    let address = broken as *const () as u64;
    let result = at_breakpoint();
    check_eq!(result, 42, "what the function returned");
    check_eq!(CLASS.load(SeqCst), EC_BREAKPOINT, "class of the exception");
    check_eq!(FIRST.load(SeqCst), address, "ELR of the exception");
    Ok(())
}

static WATCHED: AtomicU64 = AtomicU64::new(0);

fn watchpoint(_: &Machine) -> Check {
    WATCHED.store(7, SeqCst);
    with_points(|| {
        msr!("dbgwvr0_el1", WATCHED.as_ptr() as u64);
        // E, EL1, stores, all eight bytes.
        msr!("dbgwcr0_el1", 1 | 1 << 1 | 2 << 3 | 0xff << 5);
        let read = WATCHED.load(SeqCst);
        if CLASS.load(SeqCst) == 0 {
            WATCHED.store(read + 1, SeqCst);
        }
    });
    check_eq!(CLASS.load(SeqCst), EC_WATCHPOINT, "class of the exception");
    check_eq!(WATCHED.load(SeqCst), 8, "the watched value");
    Ok(())
}

fn watchpoint_on_a_device(machine: &Machine) -> Check {
    let typer = mmio::read32(GICD + 4);
    let mut found = 0;
    with_points(|| {
        msr!("dbgwvr0_el1", (GICD + 4) as u64 & !7);
        // E, EL1, loads, the upper four bytes.
        msr!("dbgwcr0_el1", 1 | 1 << 1 | 1 << 3 | 0xf0 << 5);
        found = mmio::read32(GICD + 4);
        msr!("dbgwcr0_el1", 0);
    });
    check_eq!(found, typer, "GICD_TYPER");
    // A register that is emulated is no memory of stage 2: its data abort comes first, and the watchpoint never.
    let expected = if machine.under_keel() || machine.is_root() { 0 } else { EC_WATCHPOINT };
    check_eq!(CLASS.load(SeqCst), expected, "class of the exception");
    Ok(())
}

/// Adds 2.
#[unsafe(naked)]
extern "C" fn also_broken(_: u64) -> u64 {
    naked_asm!("add x0, x0, #2", "ret")
}

/// Where each CPU's breakpoint was hit last, and how often.
static HITS: [(AtomicU64, AtomicUsize); MAX_CPUS] = [const { (AtomicU64::new(0), AtomicUsize::new(0)) }; MAX_CPUS];

fn hit(esr: u64, state: &mut State) -> bool {
    let (at, count) = &HITS[arch::cpu()];
    at.store(state.elr, SeqCst);
    count.fetch_add(1, SeqCst);
    msr!("dbgbcr0_el1", 0);
    esr >> 26 & 0x3f == EC_BREAKPOINT
}

const ROUNDS: usize = 40;

/// Breaks at a function of its own, and calls both all the time.
fn break_often(cpu: usize) {
    let address = if cpu.is_multiple_of(2) { broken } else { also_broken } as *const () as u64;
    let (at, count) = &HITS[cpu];
    let mut wrong = 0;
    msr!("oslar_el1", 0);
    msr!("mdscr_el1", KDE | MDE);
    msr!("dbgbvr0_el1", address);
    for round in 0..ROUNDS {
        at.store(0, SeqCst);
        msr!("dbgbcr0_el1", 1 | 1 << 1 | 0xf << 5);
        // Longer than a time slice now and then.
        let until = time::now() + time::frequency() / if round % 10 == 0 { 100 } else { 5000 };
        while time::now() < until {
            arch::relax();
        }
        // SAFETY: PSTATE.D only; debug exceptions have a handler.
        unsafe { asm!("msr daifclr, #8", "isb", options(nostack)) };
        let sum = broken(0) + also_broken(0);
        // SAFETY: as above.
        unsafe { asm!("msr daifset, #8", "isb", options(nostack)) };
        wrong += usize::from(sum != 3 || at.load(SeqCst) != address || mrs!("dbgbvr0_el1") != address);
    }
    msr!("mdscr_el1", 0);
    count.fetch_add(wrong << 32, SeqCst);
}

fn each_cpu_its_own(machine: &Machine) -> Check {
    let cpus = machine.cpus().len();
    for (at, count) in &HITS {
        at.store(0, SeqCst);
        count.store(0, SeqCst);
    }
    set_sync_handler(Some(hit));
    for cpu in 1..cpus {
        start(machine, cpu, break_often, cpu)?;
    }
    break_often(0);
    for cpu in 1..cpus {
        join(machine, cpu)?;
    }
    set_sync_handler(None);
    for (cpu, (_, count)) in HITS.iter().enumerate().take(cpus) {
        check_eq!(count.load(SeqCst), ROUNDS, "hits of CPU {cpu}'s breakpoint, and wrong rounds above bit 32");
    }
    Ok(())
}
