//! PMUv3's registers by encoding, a guest's values of them, and sets of its events.
//!
//! A guest's registers are values while no CPU holds them; [`guest_pmu`](super) moves them into and out of one. Its accesses
//! are not looked at as a rule: only those of a guest whose events are filtered, or whose overflow interrupt is a shared one
//! that it has not served yet; every other has its counters to itself.

use alloc::{collections::TryReserveError, vec::Vec};

/// CPU_CYCLES, which the cycle counter counts too.
pub const CPU_CYCLES: u64 = 0x11;
/// SW_INCR and CHAIN count what software and another counter do: no filter's (KVM_ARM_VCPU_PMU_V3_FILTER).
const NEVER_FILTERED: [u64; 2] = [0, 0x1e];
/// PMEVTYPERn_EL0.P, U: EL1, EL0 are not counted; NSH: EL2 is (Arm ARM D24.5).
const P: u64 = 1 << 31;
const U: u64 = 1 << 30;
const NSH: u64 = 1 << 27;
/// PMCR_EL0.E: the counters below MDCR_EL2.HPMN and the cycle counter count (Arm ARM D24.5).
pub(super) const PMCR_E: u64 = 1 << 0;
/// PMCR_EL0.P: the event counters become 0.
pub(super) const PMCR_P: u64 = 1 << 1;
/// PMCR_EL0.C: the cycle counter becomes 0.
pub(super) const PMCR_C: u64 = 1 << 2;
/// PMCR_EL0.LC: PMCCNTR_EL0 overflows at 64 bits. RES1 where EL0 has no AArch32.
pub const PMCR_LC: u64 = 1 << 6;
/// PMCR_EL0 below the fields that describe the PMU.
const PMCR_CONTROLS: u64 = 0xff;
/// PMCR_EL0.N: how many event counters there are.
pub(super) const PMCR_N_SHIFT: u32 = 11;
/// PMCR_EL0.N, in place.
const PMCR_N: u64 = 0x1f;
/// The cycle counter's bit in PMCNTENSET_EL0 and its like.
pub(super) const CYCLE_COUNTER: u64 = 1 << 31;
/// Event counters that the architecture has room for.
pub(super) const MAX_COUNTERS: usize = 31;
/// ID_AA64DFR0_EL1.PMUVer from FEAT_PMUv3p5 on.
const PMU_V3P5: u8 = 6;
/// PMEVTYPERn_EL0.evtCount.
const EVENT: u64 = 0xffff;

/// A register of PMUv3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PmuRegister {
    /// PMCR_EL0.
    Control,
    /// PMCNTENSET_EL0.
    EnableSet,
    /// PMCNTENCLR_EL0.
    EnableClear,
    /// PMINTENSET_EL1.
    InterruptSet,
    /// PMINTENCLR_EL1.
    InterruptClear,
    /// PMOVSSET_EL0.
    OverflowSet,
    /// PMOVSCLR_EL0.
    OverflowClear,
    /// PMSWINC_EL0.
    SoftwareIncrement,
    /// PMSELR_EL0.
    Select,
    /// PMCEIDn_EL0.
    CommonEvents(u8),
    /// PMMIR_EL1.
    MachineIdentification,
    /// PMUSERENR_EL0.
    UserEnable,
    /// PMCCNTR_EL0.
    Cycles,
    /// PMCCFILTR_EL0.
    CycleFilter,
    /// PMEVCNTRn_EL0.
    Counter(u8),
    /// PMEVTYPERn_EL0.
    EventType(u8),
    /// PMXEVCNTR_EL0.
    SelectedCounter,
    /// PMXEVTYPER_EL0.
    SelectedType,
}

impl PmuRegister {
    /// The register with this op0, op1, CRn, CRm and op2 (Arm ARM D24.5), if it is one of PMUv3's.
    pub const fn decode(fields: [u8; 5]) -> Option<Self> {
        Some(match fields {
            [3, 0, 9, 14, 1] => Self::InterruptSet,
            [3, 0, 9, 14, 2] => Self::InterruptClear,
            [3, 0, 9, 14, 6] => Self::MachineIdentification,
            [3, 3, 9, 12, 0] => Self::Control,
            [3, 3, 9, 12, 1] => Self::EnableSet,
            [3, 3, 9, 12, 2] => Self::EnableClear,
            [3, 3, 9, 12, 3] => Self::OverflowClear,
            [3, 3, 9, 12, 4] => Self::SoftwareIncrement,
            [3, 3, 9, 12, 5] => Self::Select,
            [3, 3, 9, 12, n @ 6..=7] => Self::CommonEvents(n - 6),
            [3, 3, 9, 13, 0] => Self::Cycles,
            [3, 3, 9, 13, 1] => Self::SelectedType,
            [3, 3, 9, 13, 2] => Self::SelectedCounter,
            [3, 3, 9, 14, 0] => Self::UserEnable,
            [3, 3, 9, 14, 3] => Self::OverflowSet,
            [3, 3, 14, 15, 7] => Self::CycleFilter,
            [3, 3, 14, crm @ 8..=11, n] => Self::Counter((crm - 8) * 8 + n),
            [3, 3, 14, crm @ 12..=15, n] => Self::EventType((crm - 12) * 8 + n),
            _ => return None,
        })
    }

    /// Its bits, where there are this many event counters: some have one for each counter.
    const fn bits(self, counters: u8) -> u64 {
        match self {
            Self::EnableSet
            | Self::EnableClear
            | Self::InterruptSet
            | Self::InterruptClear
            | Self::OverflowSet
            | Self::OverflowClear => CYCLE_COUNTER | ((1 << counters) - 1),
            _ => u64::MAX,
        }
    }
}

/// A guest's registers, while no CPU holds them.
#[derive(Clone, Debug, Default)]
pub struct GuestPmu {
    /// PMCR_EL0 as EL1 reads it, but for N.
    pub(super) control: u64,
    /// PMCNTENSET_EL0.
    pub(super) enabled: u64,
    /// PMINTENSET_EL1.
    pub(super) interrupts: u64,
    /// PMOVSSET_EL0.
    pub(super) overflows: u64,
    /// PMSELR_EL0.
    pub(super) select: u64,
    /// PMUSERENR_EL0.
    pub(super) user: u64,
    /// PMCCNTR_EL0.
    pub(super) cycles: u64,
    /// PMCCFILTR_EL0.
    pub(super) cycle_filter: u64,
    /// PMEVCNTRn_EL0 and PMEVTYPERn_EL0.
    pub(super) counters: [[u64; 2]; MAX_COUNTERS],
    /// Its events are filtered: what it wrote to PMEVTYPERn_EL0 and PMCCFILTR_EL0 is here, not in the machine.
    pub is_filtered: bool,
}

/// How many event counters PMCR_EL0.N says there are.
pub const fn counters_in(control: u64) -> u8 {
    (control >> PMCR_N_SHIFT & PMCR_N) as u8
}

impl GuestPmu {
    /// Where a register is that is a value and no more.
    fn place(&mut self, register: PmuRegister) -> Option<&mut u64> {
        Some(match register {
            PmuRegister::EnableSet | PmuRegister::EnableClear => &mut self.enabled,
            PmuRegister::InterruptSet | PmuRegister::InterruptClear => &mut self.interrupts,
            PmuRegister::OverflowSet | PmuRegister::OverflowClear => &mut self.overflows,
            PmuRegister::Select => &mut self.select,
            PmuRegister::UserEnable => &mut self.user,
            PmuRegister::Cycles => &mut self.cycles,
            PmuRegister::CycleFilter => &mut self.cycle_filter,
            PmuRegister::Counter(n) => &mut self.counters.get_mut(usize::from(n))?[0],
            PmuRegister::EventType(n) => &mut self.counters.get_mut(usize::from(n))?[1],
            _ => return None,
        })
    }

    /// A register of a guest that has this many event counters, in this version of the PMU
    /// (ID_AA64DFR0_EL1.PMUVer). What sets bits and what clears them read alike; what only has an effect, or describes the
    /// PMU, is 0.
    pub fn get(&mut self, register: PmuRegister, counters: u8, version: u8) -> u64 {
        match register {
            PmuRegister::Counter(n) if version < PMU_V3P5 => {
                self.counters.get(usize::from(n)).map_or(0, |[counter, _]| *counter as u32 as u64)
            }
            PmuRegister::Control => self.control & PMCR_CONTROLS | u64::from(counters) << PMCR_N_SHIFT,
            _ => self.place(register).map_or(0, |value| *value & register.bits(counters)),
        }
    }

    /// Sets a register, to the value that [`get`](Self::get) gave, be it one that sets bits or one that clears them.
    /// PMCR_EL0.P and C do what they say when a CPU is given the guest. `fixed`: what of PMCR_EL0 is RES1.
    pub fn set(&mut self, register: PmuRegister, value: u64, fixed: u64) {
        match register {
            PmuRegister::Control => self.control = value & PMCR_CONTROLS | fixed,
            _ => {
                if let Some(place) = self.place(register) {
                    *place = value;
                }
            }
        }
    }

    /// Carries out PMCR_EL0.P and C, for the first `count` event counters.
    #[cold]
    pub fn reset_counters(&mut self, count: usize) {
        if self.control & PMCR_P != 0 {
            self.counters.iter_mut().take(count).for_each(|[counter, _]| *counter = 0);
        }
        if self.control & PMCR_C != 0 {
            self.cycles = 0;
        }
        self.control &= !(PMCR_P | PMCR_C);
    }

    /// Whether its overflow interrupt is asked for, by one of this many event counters or the cycle counter.
    pub fn output(&self, counters: u8) -> bool {
        let asked = self.overflows & self.interrupts & PmuRegister::OverflowSet.bits(counters);
        self.control & PMCR_E != 0 && asked != 0
    }
}

/// A set of events: those that a guest may count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventSet(Vec<u64>);

impl EventSet {
    /// Of `events` (a power of two from 64 on), all or none.
    ///
    /// # Errors
    ///
    /// There is no memory for it.
    pub fn new(events: usize, all: bool) -> Result<Self, TryReserveError> {
        let mut words = Vec::new();
        words.try_reserve_exact(events / 64)?;
        words.resize(events / 64, if all { u64::MAX } else { 0 });
        Ok(Self(words))
    }

    /// Puts an event in or takes it out; one that there is no room for is neither.
    pub fn set(&mut self, event: usize, is_in: bool) {
        if let Some(word) = self.0.get_mut(event / 64) {
            let bit = 1 << (event % 64);
            *word = if is_in { *word | bit } else { *word & !bit };
        }
    }

    /// Whether the event that an evtCount names is counted.
    pub fn counts(&self, event: u64) -> bool {
        // As many bits of evtCount mean something as there are events.
        let event = event as usize & (self.0.len() * 64).wrapping_sub(1);
        NEVER_FILTERED.contains(&(event as u64))
            || self.0.get(event / 64).is_some_and(|word| word & 1 << (event % 64) != 0)
    }

    /// What PMEVTYPERn_EL0 has to hold for what a guest wrote to it: at most that, and nothing of an event that it may not
    /// count.
    pub fn event_type(&self, written: u64) -> u64 {
        if self.counts(written & EVENT) { written & !NSH } else { written & EVENT | P | U }
    }

    /// The same for PMCCFILTR_EL0.
    pub fn cycle_filter(&self, written: u64) -> u64 {
        if self.counts(CPU_CYCLES) { written & !NSH } else { P | U }
    }

    /// PMCEIDn_EL0 without the events that are not counted: bits 31:0 are the events from 32n on, 63:32 those from 0x4000 + 32n.
    pub fn common_events(&self, n: u8, machine: u64) -> u64 {
        let event = |bit: u64| (if bit < 32 { bit } else { 0x4000 + bit - 32 }) + 32 * u64::from(n);
        // PMUv3 without FEAT_PMUv3p1 has no events from 0x4000 on.
        let exists = |event: u64| (event as usize) < self.0.len() * 64;
        (0..64).filter(|&bit| exists(event(bit)) && self.counts(event(bit))).fold(0, |mask, bit| mask | 1 << bit)
            & machine
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_encodings() {
        for (fields, register) in [
            ([3, 3, 9, 12, 0], PmuRegister::Control),
            ([3, 3, 14, 8, 0], PmuRegister::Counter(0)),
            ([3, 3, 14, 11, 6], PmuRegister::Counter(30)),
            ([3, 3, 14, 12, 0], PmuRegister::EventType(0)),
            ([3, 3, 14, 15, 6], PmuRegister::EventType(30)),
            ([3, 3, 14, 15, 7], PmuRegister::CycleFilter),
            ([3, 3, 9, 12, 7], PmuRegister::CommonEvents(1)),
            ([3, 0, 9, 14, 1], PmuRegister::InterruptSet),
        ] {
            assert_eq!(PmuRegister::decode(fields), Some(register));
        }
        for other in [[3, 3, 9, 13, 3], [3, 0, 9, 14, 3], [3, 0, 9, 9, 0], [2, 3, 9, 12, 0], [3, 3, 14, 2, 1]] {
            assert_eq!(PmuRegister::decode(other), None);
        }
    }

    #[test]
    fn an_event_that_is_not_counted_can_be_programmed() {
        let mut set = EventSet::new(1024, false).unwrap();
        set.set(0x11, true);
        assert_eq!(set.event_type(0x11 | NSH), 0x11);
        assert_eq!(set.event_type(0x11 | P), 0x11 | P);
        assert_eq!(set.event_type(0x08), 0x08 | P | U);
        assert_eq!(set.event_type(0x08 | NSH | 1 << 29 | 1 << 28), 0x08 | P | U, "not through NSK and NSU either");
        assert_eq!(set.event_type(0x00), 0, "SW_INCR");
        assert_eq!(set.event_type(0x1e), 0x1e, "CHAIN");
        assert_eq!(set.cycle_filter(NSH | U), U);
        set.set(0x11, false);
        assert_eq!(set.cycle_filter(0), P | U);
        assert_eq!(set.event_type(0x411), 0x411 | P | U, "evtCount has ten bits then");
    }

    #[test]
    fn common_events_are_those_that_count() {
        let mut set = EventSet::new(1 << 16, true).unwrap();
        for event in [0x11, 0x23, 0x4005, 0x4021] {
            set.set(event, false);
        }
        assert_eq!(set.common_events(0, u64::MAX), !(1 << 0x11 | 1 << 37));
        assert_eq!(set.common_events(1, u64::MAX), !(1 << 3 | 1 << 33));
        assert_eq!(set.common_events(1, 0xff), 0xf7);
        assert_eq!(EventSet::new(1024, true).unwrap().common_events(0, u64::MAX), 0xffff_ffff);
    }

    proptest! {
        /// Whatever is written, EL2 is not counted and an event outside the set counts nowhere.
        #[test]
        fn nothing_counts_that_should_not(written: u64, allowed in proptest::collection::vec(0usize..1 << 16, 0..64)) {
            let mut set = EventSet::new(1 << 16, false).unwrap();
            allowed.iter().for_each(|&event| set.set(event, true));
            let held = set.event_type(written);
            prop_assert_eq!(held & EVENT, written & EVENT);
            prop_assert_eq!(held & NSH, 0);
            let event = (written & EVENT) as usize;
            if !allowed.contains(&event) && event != 0 && event != 0x1e {
                prop_assert_eq!(held & !EVENT, P | U);
            }
        }
    }
}
