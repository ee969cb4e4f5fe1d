//! TLB maintenance (Arm ARM D8.17): what stage 2 and EL2's own map need.

use super::addr::Ipa;
use super::sysreg::{dsb_ish, isb};

macro_rules! tlbi {
    ($operation:literal) => {{
        // SAFETY: TLB maintenance removes cached translations; valid ones are walked again.
        unsafe { core::arch::asm!(concat!("tlbi ", $operation), options(nostack, preserves_flags)) };
    }};
    ($operation:literal, $argument:expr) => {{
        let argument: u64 = $argument;
        // SAFETY: as above.
        unsafe { core::arch::asm!(concat!("tlbi ", $operation, ", {}"), in(reg) argument, options(nostack, preserves_flags)) };
    }};
}

/// Makes earlier page-table writes visible to walks before what follows.
pub fn publish_tables() {
    dsb_ish();
    isb();
}

/// Drops all translations of EL1 and EL0, stages 1 and 2, of the VMID in VTTBR_EL2, on all CPUs.
pub fn flush_vmid() {
    dsb_ish();
    tlbi!("vmalls12e1is");
    dsb_ish();
    isb();
}

/// Drops the stage-2 translation of `ipa` for the VMID in VTTBR_EL2 on all CPUs, and every stage-1 one of that VMID
/// (which may have been combined with it).
pub fn flush_ipa(ipa: Ipa) {
    dsb_ish();
    tlbi!("ipas2e1is", ipa.0 >> 12);
    dsb_ish();
    tlbi!("vmalle1is");
    dsb_ish();
    isb();
}

/// Drops all EL1 and EL0 translations of every VMID on all CPUs.
pub fn flush_all_guests() {
    dsb_ish();
    tlbi!("alle1is");
    dsb_ish();
    isb();
}

/// Drops EL2's own translations on all CPUs.
pub fn flush_el2() {
    dsb_ish();
    tlbi!("alle2is");
    dsb_ish();
    isb();
}

/// Drops this CPU's EL1 and EL0 translations of the VMID in VTTBR_EL2: a vCPU of the same VM ran here before.
pub fn flush_local_vmid() {
    tlbi!("vmalle1");
    // SAFETY: barriers only.
    unsafe { core::arch::asm!("dsb nsh", "isb", options(nostack, preserves_flags)) };
}
