//! The exception handlers behind aarch64-rt's vectors.
//!
//! A synchronous exception belongs to the instruction under test ([`crate::exec`]) or to the test that installed a
//! handler, else it is a panic with the syndrome. IRQs go to [`crate::irq`].

use crate::{arch, el0, exec, irq, mrs, platform::MAX_CPUS};
use aarch64_rt::{ExceptionHandlers, RegisterStateRef, exception_handlers};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

struct Handlers;

exception_handlers!(Handlers);

/// Handles a synchronous exception: given ESR and ELR, whether it was expected. It may have changed SPSR's saved copy
/// through the reference.
pub type SyncHandler = fn(esr: u64, state: &mut State) -> bool;

/// What a handler may change of the interrupted program.
#[derive(Debug)]
pub struct State {
    /// Where the program goes on.
    pub elr: u64,
    /// PSTATE with which it goes on.
    pub spsr: u64,
}

static SYNC: AtomicUsize = AtomicUsize::new(0);

/// Installs a handler for synchronous exceptions that no instruction under test took.
pub fn set_sync_handler(handler: Option<SyncHandler>) {
    SYNC.store(handler.map_or(0, |handler| handler as usize), Relaxed);
}

static SERRORS_EXPECTED: AtomicBool = AtomicBool::new(false);

/// SErrors that a CPU took while they were expected: how many, and the ESR_EL1 of the last.
struct Serrors {
    count: AtomicU64,
    esr: AtomicU64,
}

static SERRORS: [Serrors; MAX_CPUS] =
    [const { Serrors { count: AtomicU64::new(0), esr: AtomicU64::new(0) } }; MAX_CPUS];

/// Says whether SErrors are expected, on any CPU. They are counted from 0 then.
pub fn expect_serrors(expected: bool) {
    for cpu in &SERRORS {
        cpu.count.store(0, Relaxed);
    }
    SERRORS_EXPECTED.store(expected, Relaxed);
}

/// How many this CPU has taken, and the ESR_EL1 of the last one.
pub fn serrors() -> (u64, u64) {
    let of = &SERRORS[arch::cpu()];
    (of.count.load(Relaxed), of.esr.load(Relaxed))
}

impl Handlers {
    fn synchronous(mut register_state: RegisterStateRef) {
        let elr = register_state.elr as u64;
        if let Some(next) = exec::caught(elr, false) {
            // SAFETY: the program goes on behind the instruction under test, in code that expects any register value.
            unsafe { register_state.get_mut() }.elr = next as usize;
            return;
        }
        let esr = mrs!("esr_el1");
        let handler = SYNC.load(Relaxed);
        if handler != 0 {
            // SAFETY: only set_sync_handler stores here, and it stores functions of this type.
            let handler: SyncHandler = unsafe { core::mem::transmute(handler) };
            let mut state = State { elr, spsr: register_state.spsr };
            if handler(esr, &mut state) {
                // SAFETY: the handler's contract: the program goes on where the test wants it.
                let saved = unsafe { register_state.get_mut() };
                saved.elr = state.elr as usize;
                saved.spsr = state.spsr;
                return;
            }
        }
        let far = mrs!("far_el1");
        panic!("unexpected exception: ESR {esr:#x} (class {:#x}) FAR {far:#x} ELR {elr:#x}", esr >> 26);
    }
}

impl ExceptionHandlers for Handlers {
    extern "C" fn sync_current(register_state: RegisterStateRef) {
        Self::synchronous(register_state);
    }

    extern "C" fn sync_lower(mut register_state: RegisterStateRef) {
        if let Some(next) = el0::ended(mrs!("esr_el1")) {
            // SAFETY: the registers are what the code for EL0 left, which is what its caller expects.
            let saved = unsafe { register_state.get_mut() };
            (saved.elr, saved.spsr) = next;
        } else {
            Self::synchronous(register_state);
        }
    }

    extern "C" fn irq_current(_: RegisterStateRef) {
        irq::taken();
    }

    extern "C" fn fiq_current(register_state: RegisterStateRef) {
        panic!("unexpected FIQ at {:#x}", register_state.elr);
    }

    extern "C" fn serror_current(register_state: RegisterStateRef) {
        if SERRORS_EXPECTED.load(Relaxed) {
            let of = &SERRORS[arch::cpu()];
            of.esr.store(mrs!("esr_el1"), Relaxed);
            of.count.fetch_add(1, Relaxed);
            return;
        }
        if exec::caught(register_state.elr as u64, true).is_none() {
            panic!("unexpected SError: ESR {:#x} ELR {:#x}", mrs!("esr_el1"), register_state.elr);
        }
    }
}
