//! EL2 stage 1: register values and the moment of turning it on (Arm ARM D8.1).

use super::addr::Pa;
use super::hcr::SCTLR_EL2_KEEL;
use super::sysreg::{isb, read_sysreg, write_sysreg};

/// MAIR_EL2: attribute 0 = Normal write-back, attribute 1 = Device-nGnRnE.
pub const MAIR: u64 = 0x00_ff;

/// log2 of the physical address space in bytes that ID_AA64MMFR0_EL1.PARange reports, at most 48: larger addresses need
/// FEAT_LPA2 descriptors.
pub fn pa_bits() -> u32 {
    match read_sysreg!("id_aa64mmfr0_el1") & 0xf {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        _ => 48,
    }
}

/// The value of a PS or IPS field for [`pa_bits`].
pub fn ps_field() -> u64 {
    (read_sysreg!("id_aa64mmfr0_el1") & 0xf).min(5)
}

/// TCR_EL2: 48-bit addresses, 4 KiB granule, inner-shareable write-back walks; RES1 bits 31 and 23.
pub fn tcr() -> u64 {
    (1 << 31) | (1 << 23) | (ps_field() << 16) | (0b11 << 12) | (0b01 << 10) | (0b01 << 8) | (64 - 48)
}

/// SCTLR_EL2 with the MMU on.
pub const SCTLR: u64 = SCTLR_EL2_KEEL;

/// Turns EL2's MMU and caches on.
///
/// # Safety
///
/// `root` must be the level-0 table of an identity map that covers the image with its rights, including the running code,
/// the stack and everything referred to; tables and data written so far must not be in caches.
pub unsafe fn enable(root: Pa) {
    write_sysreg!("mair_el2", MAIR);
    write_sysreg!("tcr_el2", tcr());
    write_sysreg!("ttbr0_el2", root.0);
    // SAFETY: the caller vouches for the map; stale translations and instructions are dropped before it is used.
    unsafe {
        core::arch::asm!(
            "tlbi alle2",
            "tlbi alle1",
            "ic iallu",
            "dsb nsh",
            "isb",
            "msr sctlr_el2, {sctlr}",
            "isb",
            sctlr = in(reg) SCTLR,
            options(nostack, preserves_flags)
        );
    }
    isb();
}
