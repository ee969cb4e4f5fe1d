//! The event counters that keel keeps for itself: instructions retired at EL2, and below it.
//!
//! MDCR_EL2.HPMN two below PMCR_EL0.N gives the last two event counters to EL2, whatever guests do with the others (Arm
//! ARM D13.5). QEMU 10 lets EL1 reach all of them, so there a guest that has a PMU can disturb the figures.

use super::{
    features,
    sysreg::{isb, read_sysreg, write_sysreg},
};

/// PMEVTYPERn: INST_RETIRED (0x08); P and U exclude EL1 and EL0, NSH includes EL2.
const INST_RETIRED_AT_EL2: u64 = (1 << 31) | (1 << 30) | (1 << 27) | 0x08;
/// PMEVTYPERn: INST_RETIRED at EL1 and EL0: nothing excluded, NSH = 0.
const INST_RETIRED_BELOW: u64 = 0x08;
/// MDCR_EL2.HPME: the counters from HPMN on count.
const HPME: u64 = 1 << 7;
/// Counters that keel keeps: the last for EL2, the one before it for EL1 and EL0.
const KEPT: u64 = 2;

/// Starts counting on this CPU. `None` when it has no PMU or too few event counters; otherwise the MDCR_EL2 bits, HPMN
/// and HPME, that every guest must run with.
pub fn start() -> Option<u64> {
    if !features::has_pmu() {
        return None;
    }
    let counters = (read_sysreg!("pmcr_el0") >> 11) & 0x1f;
    // HPMN = 0 would need FEAT_HPMN0.
    let first = counters.checked_sub(KEPT).filter(|&first| first > 0)?;
    write_sysreg!("mdcr_el2", first | HPME);
    for (counter, event) in [(first, INST_RETIRED_BELOW), (first + 1, INST_RETIRED_AT_EL2)] {
        write_sysreg!("pmselr_el0", counter);
        isb();
        write_sysreg!("pmxevtyper_el0", event);
        write_sysreg!("pmxevcntr_el0", 0);
        write_sysreg!("pmcntenset_el0", 1 << counter);
    }
    isb();
    Some(first | HPME)
}

/// MDCR_EL2 bits for guests when keel keeps no counters: HPMN = all of them, as 0 is CONSTRAINED UNPREDICTABLE without
/// FEAT_HPMN0 (Arm ARM, MDCR_EL2.HPMN).
pub fn all_counters() -> u64 {
    if features::has_pmu() { (read_sysreg!("pmcr_el0") >> 11) & 0x1f } else { 0 }
}

/// The counters that keel does not count with: their bits in PMCNTENSET_EL0 and its like.
pub(super) fn not_kept() -> u64 {
    let mdcr = read_sysreg!("mdcr_el2");
    let kept = if mdcr & HPME == 0 { 0 } else { ((1 << KEPT) - 1) << (mdcr & 0x1f) };
    u64::from(u32::MAX) & !kept
}

/// Event counters of the guest that this CPU holds: MDCR_EL2.HPMN.
#[inline]
pub(super) fn guest_counters() -> usize {
    (read_sysreg!("mdcr_el2") & 0x1f) as usize
}

fn read(nth: u64) -> u32 {
    let mdcr = read_sysreg!("mdcr_el2");
    if mdcr & HPME == 0 {
        return 0;
    }
    // Not from HPMN: a guest may have fewer counters than there are for guests.
    let first = (read_sysreg!("pmcr_el0") >> 11 & 0x1f) - KEPT;
    // It may be a guest's, which this CPU holds.
    let selected = read_sysreg!("pmselr_el0");
    write_sysreg!("pmselr_el0", first + nth);
    isb();
    let count = read_sysreg!("pmxevcntr_el0") as u32;
    write_sysreg!("pmselr_el0", selected);
    count
}

/// Instructions retired at EL2 on this CPU since [`start`], modulo 2^32; 0 if nothing counts.
pub fn read_el2() -> u32 {
    read(1)
}

/// Instructions retired at EL1 and EL0 on this CPU since [`start`], modulo 2^32; 0 if nothing counts.
pub fn read_guest() -> u32 {
    read(0)
}
