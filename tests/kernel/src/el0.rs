//! A few instructions at EL0, and what became of them.
//!
//! The code is the kernel's own, seen through an alias of its memory that EL0 may execute ([`boot::USER`]). It may use x0 to
//! x18, has no stack, and ends with SVC, or with whatever exception it takes.

use crate::{arch, boot, platform};
use core::{
    arch::naked_asm,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

/// ESR.EC of SVC from AArch64.
pub const EC_SVC: u64 = 0x15;
/// ESR.EC of a trapped MSR, MRS or system instruction.
pub const EC_SYSTEM: u64 = 0x18;

/// The syndrome of the last exception from EL0.
static ESR: AtomicU64 = AtomicU64::new(0);

/// Such code is running.
static RUNNING: AtomicBool = AtomicBool::new(false);

/// Code for EL0: its x0 is `argument` of [`run`], and the x0 it leaves is the value.
pub type Code = unsafe extern "C" fn();

/// Runs `code`: its x0, and the class of the exception that ended it.
pub fn run(code: Code, argument: u64) -> (u64, u64) {
    let entry = code as usize - platform::RAM + boot::USER;
    RUNNING.store(true, Relaxed);
    // SAFETY: the contract of `Code`: it touches no memory, and leaves x19 to x30 alone.
    let value = unsafe { enter(entry as u64, argument) };
    arch::isb();
    (value, ESR.load(Relaxed) >> 26)
}

/// Called by the handler of exceptions from EL0: where the kernel goes on, and with which PSTATE. `None` if EL0 was entered by
/// somebody else.
pub fn ended(esr: u64) -> Option<(usize, u64)> {
    ESR.store(esr, Relaxed);
    // EL1h, everything masked but SError, as the kernel runs.
    RUNNING.swap(false, Relaxed).then_some((leave as *const () as usize, 0x2c5))
}

/// Goes to `entry` at EL0 with everything masked. Comes back through [`leave`].
#[unsafe(naked)]
unsafe extern "C" fn enter(entry: u64, argument: u64) -> u64 {
    naked_asm!("msr elr_el1, x0", "mov x2, #0x3c0", "msr spsr_el1, x2", "mov x0, x1", "eret")
}

/// Returns to the caller of [`enter`], with EL0's x0.
#[unsafe(naked)]
unsafe extern "C" fn leave() {
    naked_asm!("ret")
}
