//! Self-hosted debug: breakpoints, watchpoints and single step are the guest's own.

use crate::{
    check, check_eq,
    harness::{Case, Check, Under::*, case},
};
use core::{
    arch::{asm, naked_asm},
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};
use keel_test_kernel::{
    exceptions::{State, set_sync_handler},
    exec::{self, EC_STEP},
    machine::Machine,
    mrs, msr, power,
};

/// The cases.
pub const CASES: &[Case] = &[
    case("debug/registers", 1, Any, registers),
    case("debug/os_lock", 1, Any, os_lock),
    case("debug/brk", 1, Any, brk),
    case("debug/single_step", 1, Any, single_step),
    case("debug/breakpoint", 1, Any, breakpoint),
    case("debug/watchpoint", 1, Any, watchpoint),
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

fn os_lock(_: &Machine) -> Check {
    msr!("oslar_el1", 1);
    let locked = mrs!("oslsr_el1");
    msr!("oslar_el1", 0);
    let unlocked = mrs!("oslsr_el1");
    check_eq!(locked & 2, 2, "OSLSR_EL1.OSLK after locking");
    check_eq!(unlocked & 2, 0, "OSLSR_EL1.OSLK after unlocking");
    msr!("osdlr_el1", 0);
    check_eq!(mrs!("osdlr_el1"), 0, "OSDLR_EL1");
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
    // The step over a hypercall ends behind it.
    SECOND.store(0, SeqCst);
    set_sync_handler(Some(step_handler));
    // SAFETY: as above; the call clobbers x0 to x3.
    unsafe {
        asm!("svc #0", "hvc #0", "nop",
             inout("x0") 0x8400_0000_u64 => _, out("x1") _, out("x2") _, out("x3") _, options(nostack))
    };
    set_sync_handler(None);
    let second = SECOND.load(SeqCst);
    let first = FIRST.load(SeqCst);
    // One or two instructions on: whether the step ends before or after the instruction behind a call is left open.
    check!(second == first + 4 || second == first + 8, "a step over HVC at {first:#x} ended at {second:#x}");
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

fn breakpoint(_: &Machine) -> Check {
    let address = broken as *const () as u64;
    let mut result = 0;
    with_points(|| {
        msr!("dbgbvr0_el1", address);
        // E, EL1, all four bytes.
        msr!("dbgbcr0_el1", 1 | 1 << 1 | 0xf << 5);
        result = broken(41);
    });
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
