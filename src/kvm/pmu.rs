//! The rules of KVM_ARM_VCPU_PMU_V3_CTRL and KVM_ARM_VCPU_TIMER_CTRL: which interrupts, and which events.
//!
//! Source: Linux, Documentation/virt/kvm/devices/vcpu.rst, groups 0 and 1. What is here is the arithmetic of it; whose turn it is to
//! ask is the business of `Vcpu::set_device_attr`.

use super::{Errno, uapi::PmuEventFilter};
use crate::arch::pmuv3::EventSet;

/// Events of PMUv3, and from FEAT_PMUv3p1 on (ID_AA64DFR0_EL1.PMUVer 4).
const EVENTS: usize = 1 << 10;
const EVENTS_V3P1: usize = 1 << 16;

/// Private peripheral interrupts.
pub const PPIS: core::ops::Range<u32> = 16..32;
/// Shared ones.
const SPIS: core::ops::Range<u32> = 32..1020;

/// What was said about a vCPU's PMU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PmuSetup {
    /// KVM_ARM_VCPU_PMU_V3_IRQ.
    pub interrupt: Option<u32>,
    /// KVM_ARM_VCPU_PMU_V3_INIT.
    pub initialised: bool,
}

/// How many events a PMU of this version has.
pub const fn events(version: u8) -> usize {
    if version >= 4 { EVENTS_V3P1 } else { EVENTS }
}

/// Checks KVM_ARM_VCPU_PMU_V3_IRQ = `intid` for a vCPU that has `own`; `others`: what every vCPU of the VM has, this one
/// included.
///
/// # Errors
///
/// `EINVAL` if it is neither PPI nor SPI, a PPI unlike another vCPU's, or an SPI that one has; `EBUSY` if this one has one.
pub fn check_interrupt(intid: u64, own: PmuSetup, others: impl IntoIterator<Item = Option<u32>>) -> Result<u32, Errno> {
    let intid = u32::try_from(intid).map_err(|_| Errno::EINVAL)?;
    let is_private = PPIS.contains(&intid);
    if !is_private && !SPIS.contains(&intid) {
        return Err(Errno::EINVAL);
    }
    if others.into_iter().flatten().any(|other| (other == intid) != is_private) {
        return Err(Errno::EINVAL);
    }
    if own.interrupt.is_some() { Err(Errno::EBUSY) } else { Ok(intid) }
}

/// Carries out KVM_ARM_VCPU_PMU_V3_FILTER on a VM's filter; `ran`: a vCPU has run. The first call decides what holds for
/// events that none names: it allows, then they are denied; or it denies, then they are allowed.
///
/// # Errors
///
/// `EINVAL` for an unknown action, or events beyond those that the PMU's version has; `EBUSY` if a vCPU has run; `ENOMEM`.
pub fn filter_events(
    filter: &mut Option<EventSet>,
    range: &PmuEventFilter,
    version: u8,
    ran: bool,
) -> Result<(), Errno> {
    const ALLOW: u8 = 0;
    const DENY: u8 = 1;
    let (first, end) = (usize::from(range.base_event), usize::from(range.base_event) + usize::from(range.nevents));
    if end > events(version) || !matches!(range.action, ALLOW | DENY) {
        return Err(Errno::EINVAL);
    }
    if ran {
        return Err(Errno::EBUSY);
    }
    let set = match filter {
        Some(set) => set,
        None => filter.insert(EventSet::new(events(version), range.action == DENY).map_err(|_| Errno::ENOMEM)?),
    };
    (first..end).for_each(|event| set.set(event, range.action == ALLOW));
    Ok(())
}

/// The timers of KVM_ARM_VCPU_TIMER_CTRL by attribute, with the interrupts they have at first: EL1's virtual and physical
/// timer, EL2's virtual and physical one (which no guest has).
pub const TIMER_INTERRUPTS: [u32; 4] = [27, 30, 28, 26];

/// Checks KVM_ARM_VCPU_TIMER_IRQ_*: returns the place and the interrupt.
///
/// # Errors
///
/// In KVM's order: `EINVAL` for no PPI, `EBUSY` if a vCPU has run, `ENXIO` for an unknown timer.
pub fn check_timer(attribute: u64, intid: u64, ran: bool) -> Result<(usize, u32), Errno> {
    let intid = u32::try_from(intid).ok().filter(|intid| PPIS.contains(intid)).ok_or(Errno::EINVAL)?;
    if ran {
        return Err(Errno::EBUSY);
    }
    let place = usize::try_from(attribute).ok().filter(|&place| place < TIMER_INTERRUPTS.len()).ok_or(Errno::ENXIO)?;
    Ok((place, intid))
}

/// Whether a VM may run with these interrupts: its two timers', and each vCPU's PMU's.
///
/// # Errors
///
/// `EINVAL` if the timers share one, or a PMU has one of theirs.
pub fn check_private(timers: [u32; 2], pmus: impl IntoIterator<Item = Option<u32>>) -> Result<(), Errno> {
    let clash = timers[0] == timers[1] || pmus.into_iter().flatten().any(|intid| timers.contains(&intid));
    if clash { Err(Errno::EINVAL) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNSET: PmuSetup = PmuSetup { interrupt: None, initialised: false };

    fn has(intid: u32) -> PmuSetup {
        PmuSetup { interrupt: Some(intid), initialised: false }
    }

    #[test]
    fn pmu_interrupts() {
        for bad in [0, 15, 1020, 1 << 32 | 23, u64::MAX] {
            assert_eq!(check_interrupt(bad, UNSET, []), Err(Errno::EINVAL));
        }
        assert_eq!(check_interrupt(23, UNSET, [None, None]), Ok(23));
        assert_eq!(check_interrupt(23, UNSET, [Some(23), None]), Ok(23));
        assert_eq!(check_interrupt(24, UNSET, [Some(23), None]), Err(Errno::EINVAL));
        // The rule compares a vCPU with itself too: another PPI is invalid before it is busy.
        assert_eq!(check_interrupt(23, has(23), [Some(23)]), Err(Errno::EBUSY));
        assert_eq!(check_interrupt(24, has(23), [Some(23)]), Err(Errno::EINVAL));
        assert_eq!(check_interrupt(40, UNSET, [None, Some(40)]), Err(Errno::EINVAL));
        assert_eq!(check_interrupt(41, UNSET, [None, Some(40)]), Ok(41));
        assert_eq!(check_interrupt(40, has(40), [Some(40)]), Err(Errno::EINVAL));
        assert_eq!(check_interrupt(41, has(40), [Some(40)]), Err(Errno::EBUSY));
        // As in KVM, an SPI beside PPIs is not noticed, but a PPI beside an SPI is.
        assert_eq!(check_interrupt(40, UNSET, [Some(23)]), Ok(40));
        assert_eq!(check_interrupt(23, UNSET, [Some(40)]), Err(Errno::EINVAL));
    }

    fn range(base_event: u16, nevents: u16, action: u8) -> PmuEventFilter {
        PmuEventFilter { base_event, nevents, action, pad: [0xff; 3] }
    }

    #[test]
    fn the_first_filter_decides_on_the_rest() {
        let mut filter = None;
        assert_eq!(filter_events(&mut filter, &range(0x11, 1, 0), 4, false), Ok(()));
        let set = filter.as_ref().unwrap();
        assert_eq!([0x11, 0x08, 0x00, 0x1e, 0x4000].map(|event| set.counts(event)), [true, false, true, true, false]);
        assert_eq!(filter_events(&mut filter, &range(0x10, 2, 1), 4, false), Ok(()));
        assert!(!filter.unwrap().counts(0x11));

        let mut filter = None;
        assert_eq!(filter_events(&mut filter, &range(0x08, 0, 1), 1, false), Ok(()));
        assert!(filter.as_ref().unwrap().counts(0x08), "no events: only the default is set");
        assert_eq!(filter_events(&mut filter, &range(0, 1024, 1), 1, false), Ok(()));
        let set = filter.unwrap();
        assert_eq!([0x08, 0x00, 0x1e].map(|event| set.counts(event)), [false, true, true]);
    }

    #[test]
    fn filters_are_checked() {
        let mut filter = None;
        assert_eq!(filter_events(&mut filter, &range(0xffff, 2, 0), 6, false), Err(Errno::EINVAL));
        assert_eq!(filter_events(&mut filter, &range(1023, 2, 0), 1, false), Err(Errno::EINVAL));
        assert_eq!(filter_events(&mut filter, &range(0, 1, 2), 6, false), Err(Errno::EINVAL));
        assert_eq!(filter_events(&mut filter, &range(0xffff, 2, 0), 6, true), Err(Errno::EINVAL));
        assert_eq!(filter_events(&mut filter, &range(0, 1, 0), 6, true), Err(Errno::EBUSY));
        assert_eq!(filter, None);
        assert_eq!(filter_events(&mut filter, &range(0xffff, 1, 0), 6, false), Ok(()));
    }

    #[test]
    fn timers() {
        assert_eq!(check_timer(0, 20, false), Ok((0, 20)));
        assert_eq!(check_timer(3, 31, false), Ok((3, 31)));
        for intid in [15, 32, 1 << 32 | 20] {
            assert_eq!(check_timer(9, intid, true), Err(Errno::EINVAL));
        }
        assert_eq!(check_timer(9, 20, true), Err(Errno::EBUSY));
        assert_eq!(check_timer(4, 20, false), Err(Errno::ENXIO));
    }

    #[test]
    fn interrupts_of_one_vcpu_differ() {
        assert_eq!(check_private([27, 30], [Some(23), Some(23), None]), Ok(()));
        assert_eq!(check_private([27, 27], []), Err(Errno::EINVAL));
        assert_eq!(check_private([27, 30], [None, Some(30)]), Err(Errno::EINVAL));
    }
}
