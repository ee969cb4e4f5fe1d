//! EL2 stage 1: register values and the moment of turning it on (Arm ARM D8.1).

use super::addr::Pa;
use super::hcr::SCTLR_EL2_KEEL;
use super::sysreg::isb;
use aarch64_cpu::registers::{ID_AA64MMFR0_EL1, MAIR_EL2, TCR_EL2, TTBR0_EL2};
use tock_registers::interfaces::{Readable, Writeable};

/// MAIR_EL2: attribute 0 = Normal write-back, attribute 1 = Device-nGnRnE.
pub const MAIR: u64 = MAIR_EL2::Attr0_Normal_Inner::WriteBack_NonTransient_ReadWriteAlloc.value
    | MAIR_EL2::Attr0_Normal_Outer::WriteBack_NonTransient_ReadWriteAlloc.value
    | MAIR_EL2::Attr1_Device::nonGathering_nonReordering_noEarlyWriteAck.value;

/// log2 of the physical address space in bytes that ID_AA64MMFR0_EL1.PARange reports, at most 48: larger addresses need
/// FEAT_LPA2 descriptors.
pub fn pa_bits() -> u32 {
    match ID_AA64MMFR0_EL1.read(ID_AA64MMFR0_EL1::PARange) {
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
    ID_AA64MMFR0_EL1.read(ID_AA64MMFR0_EL1::PARange).min(5)
}

/// TCR_EL2: 48-bit addresses, 4 KiB granule, inner-shareable write-back walks; RES1 bits 31 and 23.
pub fn tcr() -> u64 {
    let fields = TCR_EL2::TG0::KiB_4
        + TCR_EL2::SH0::Inner
        + TCR_EL2::ORGN0::WriteBack_ReadAlloc_WriteAlloc_Cacheable
        + TCR_EL2::IRGN0::WriteBack_ReadAlloc_WriteAlloc_Cacheable
        + TCR_EL2::T0SZ.val(64 - 48)
        + TCR_EL2::PS.val(ps_field());
    (1 << 31) | (1 << 23) | fields.value
}

/// SCTLR_EL2 with the MMU on.
pub const SCTLR: u64 = SCTLR_EL2_KEEL;

/// Whether EL2 may read the byte at `address`, or with `write` write it, by the live map. Uses PAR_EL1, so only while no
/// guest's registers are on this CPU.
pub fn allows(address: Pa, write: bool) -> bool {
    let result: u64;
    // SAFETY: AT accesses nothing but the translation tables, and leaves its answer in PAR_EL1.
    unsafe {
        if write {
            core::arch::asm!("at s1e2w, {}", in(reg) address.0, options(nostack, preserves_flags));
        } else {
            core::arch::asm!("at s1e2r, {}", in(reg) address.0, options(nostack, preserves_flags));
        }
        core::arch::asm!("isb", "mrs {}, par_el1", out(reg) result, options(nostack, preserves_flags));
    }
    // F, bit 0: the translation failed.
    result & 1 == 0
}

/// Where the guest whose registers are on this CPU has the virtual address `address`, by its own stage 1; `None` if nothing
/// that EL1 may read is there (any more). What HPFAR_EL2 does not say for permission faults (Arm ARM D24.2.58).
pub fn guest_address(address: u64) -> Option<super::addr::Ipa> {
    let par = super::sysreg::read_sysreg!("par_el1");
    // SAFETY: AT accesses nothing but the guest's translation tables, through stage 2, and leaves its answer in PAR_EL1.
    unsafe { core::arch::asm!("at s1e1r, {}", in(reg) address, options(nostack, preserves_flags)) };
    isb();
    let result = super::sysreg::read_sysreg!("par_el1");
    super::sysreg::write_sysreg!("par_el1", par);
    // F, bit 0: the translation failed. PA, bits 51:12.
    (result & 1 == 0).then_some(super::addr::Ipa(result & 0x000f_ffff_ffff_f000 | address & 0xfff))
}

/// Turns EL2's MMU and caches on.
///
/// # Safety
///
/// `root` must be the level-0 table of an identity map that covers the image with its rights, including the running code,
/// the stack and everything referred to; tables and data written so far must not be in caches.
pub unsafe fn enable(root: Pa) {
    MAIR_EL2.set(MAIR);
    TCR_EL2.set(tcr());
    TTBR0_EL2.set(root.0);
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
