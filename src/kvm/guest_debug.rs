//! KVM_SET_GUEST_DEBUG: a vCPU whose debug exceptions are its maker's (Linux, Documentation/virt/kvm/api.rst, 4.87).
//!
//! While there is a debugger, every debug exception of the guest ends the run (MDCR_EL2.TDE). The guest's own debug registers
//! are in memory then, where its accesses, which trap (MDCR_EL2.TDA), find them; the CPU has those that the debugger gave, or
//! the guest's.

use super::Errno;
use crate::arch::registers::{Debug, Debugger};

/// Bytes of `struct kvm_guest_debug`.
pub const BYTES: usize = 520;

/// KVM_GUESTDBG_*.
mod control {
    pub const ENABLE: u32 = 1 << 0;
    pub const SINGLESTEP: u32 = 1 << 1;
    pub const USE_SW_BP: u32 = 1 << 16;
    pub const USE_HW: u32 = 1 << 17;
    pub const ALL: u32 = ENABLE | SINGLESTEP | USE_SW_BP | USE_HW;
}

/// The debugger that `struct kvm_guest_debug` describes; `None` if it says that there is none. `word` reads the structure's 64-bit
/// word at an offset.
///
/// # Errors
///
/// `EINVAL` for a bit of `control` that arm64 does not have.
pub fn parse(word: impl Fn(usize) -> u64) -> Result<Option<Debugger>, Errno> {
    let control = word(0) as u32;
    if control & !control::ALL != 0 {
        return Err(Errno::EINVAL);
    }
    if control & control::ENABLE == 0 {
        return Ok(None);
    }
    // dbg_bcr, dbg_bvr, dbg_wcr, dbg_wvr: 16 words each, from byte 8 on.
    let pairs = |controls: usize| core::array::from_fn(|n| [word(controls + 8 * (16 + n)), word(controls + 8 * n)]);
    let hardware = Debug { breakpoints: pairs(8), watchpoints: pairs(8 + 2 * 128) };
    let steps = control & control::SINGLESTEP != 0;
    Ok(Some(Debugger { steps, hardware: (control & control::USE_HW != 0).then_some(hardware) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls() {
        for bit in 0..32 {
            let known = matches!(bit, 0 | 1 | 16 | 17);
            assert_eq!(parse(|at| if at == 0 { 1 << bit } else { 0 }).is_ok(), known, "{bit}");
        }
        assert!(parse(|at| if at == 0 { 0x3_0002 } else { 0 }).unwrap().is_none());
        let debugger = parse(|at| if at == 0 { 0x1_0003 | 0xffff_ffff << 32 } else { 0 }).unwrap().unwrap();
        assert!(debugger.steps && debugger.hardware.is_none());
    }

    #[test]
    fn registers() {
        let debugger = parse(|at| if at == 0 { 0x2_0001 } else { at as u64 }).unwrap().unwrap();
        let hardware = debugger.hardware.unwrap();
        assert!(!debugger.steps);
        assert_eq!(hardware.breakpoints[0], [136, 8]);
        assert_eq!(hardware.breakpoints[15], [136 + 120, 8 + 120]);
        assert_eq!(hardware.watchpoints[0], [392, 264]);
        assert_eq!(hardware.watchpoints[15], [512, 384]);
    }
}
