//! The CPU's random number generator, FEAT_RNG.

use super::features;

/// A random word, or `None` where the CPU has no generator or it has nothing to give (RNDR clears NZCV but sets Z then).
pub fn word() -> Option<u64> {
    if !features::has_rng() {
        return None;
    }
    let (value, failed): (u64, u64);
    // SAFETY: RNDR exists (checked above); it writes a register and the flags.
    unsafe {
        core::arch::asm!("mrs {}, S3_3_C2_C4_0", "cset {}, eq", out(reg) value, out(reg) failed, options(nostack, nomem))
    };
    (failed == 0).then_some(value)
}
