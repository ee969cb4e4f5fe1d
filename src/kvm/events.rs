//! KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS: errors that are pending for a vCPU; and what becomes of the machine's own.
//!
//! A virtual SError is hardware's while its vCPU is on a CPU: HCR_EL2.VSE stays set until the guest unmasks PSTATE.A and
//! takes it, or defers it with ESB. What is here is the state of a vCPU that no CPU holds, the rules of KVM's call, and the
//! decision what a physical SError that a guest met means for it. A set event cannot be taken back, only a reset clears it.
//!
//! Source: Linux, Documentation/virt/kvm/api.rst, 4.31 and 4.32; DDI 0587, 2.3 for the kinds of error.

use super::{Errno, uapi::VcpuEvents};
use crate::arch::serror::{IDS, ISS, Severity, Syndrome};

/// The syndrome of a virtual SError for which nobody named one: IDS set, the rest clear.
pub const NO_SYNDROME: u64 = IDS;

/// The errors that are pending for a vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// A virtual SError, with VSESR_EL2.
    pub serror: Option<u64>,
    /// A synchronous external abort, taken before the next instruction.
    pub abort: bool,
}

/// What KVM_SET_VCPU_EVENTS asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Make a virtual SError pending, with this VSESR_EL2; one that is pending gets it instead of its own.
    pub serror: Option<u64>,
    /// Make an external abort pending.
    pub abort: bool,
}

impl Change {
    /// Checks a call on a machine with or without FEAT_RAS (KVM_CAP_ARM_INJECT_SERROR_ESR). Everything is checked before
    /// anything is done.
    ///
    /// # Errors
    ///
    /// `EINVAL` if a reserved field is not zero, for a syndrome where the CPU cannot be given one, and for one with bits
    /// above 24. A syndrome without an SError is not looked at.
    pub fn check(events: &VcpuEvents, has_ras: bool) -> Result<Self, Errno> {
        if events.pad != [0; 5] || events.reserved != [0; 12] {
            return Err(Errno::EINVAL);
        }
        let serror = match (events.serror_pending != 0, events.serror_has_esr != 0) {
            (false, _) => None,
            (true, false) => Some(NO_SYNDROME),
            (true, true) if has_ras && events.serror_esr & !ISS == 0 => Some(events.serror_esr),
            (true, true) => return Err(Errno::EINVAL),
        };
        Ok(Self { serror, abort: events.ext_dabt_pending != 0 })
    }
}

impl Pending {
    /// KVM_SET_VCPU_EVENTS.
    pub fn change(&mut self, change: Change) {
        self.serror = change.serror.or(self.serror);
        self.abort |= change.abort;
    }

    /// KVM_GET_VCPU_EVENTS.
    pub fn get(&self, has_ras: bool) -> VcpuEvents {
        VcpuEvents {
            serror_pending: self.serror.is_some().into(),
            serror_has_esr: has_ras.into(),
            serror_esr: self.serror.filter(|_| has_ras).unwrap_or(0),
            ..VcpuEvents::default()
        }
    }
}

/// What a physical SError that was taken out of a guest, or is pending when its CPU changes hands, means for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is lost: it goes on where it was.
    Resume,
    /// It gets a virtual SError.
    Inject,
    /// The error may be anywhere in what it has: it stops.
    Stop,
}

/// Decides. The error is the guest's: nobody else ran since it was entered. Where the CPU does not say how bad it is, the
/// guest is told that something is, as KVM does; it is for it to go on or to panic.
pub fn judge(syndrome: Syndrome) -> Verdict {
    match syndrome.severity() {
        Severity::Corrected | Severity::Restartable => Verdict::Resume,
        Severity::Recoverable | Severity::Unrecoverable | Severity::Unknown => Verdict::Inject,
        Severity::Uncontainable => Verdict::Stop,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PENDING: VcpuEvents = VcpuEvents {
        serror_pending: 1,
        serror_has_esr: 0,
        ext_dabt_pending: 0,
        pad: [0; 5],
        serror_esr: 0,
        reserved: [0; 12],
    };

    fn serror(events: VcpuEvents, has_ras: bool) -> Result<Option<u64>, Errno> {
        Change::check(&events, has_ras).map(|change| change.serror)
    }

    #[test]
    fn syndromes() {
        let with = |esr| VcpuEvents { serror_has_esr: 1, serror_esr: esr, ..PENDING };
        for (events, without_ras, with_ras) in [
            (PENDING, Ok(Some(IDS)), Ok(Some(IDS))),
            (VcpuEvents { serror_esr: u64::MAX, ..PENDING }, Ok(Some(IDS)), Ok(Some(IDS))),
            (with(0), Err(Errno::EINVAL), Ok(Some(0))),
            (with(1 << 24), Err(Errno::EINVAL), Ok(Some(1 << 24))),
            (with(0x01ff_ffff), Err(Errno::EINVAL), Ok(Some(0x01ff_ffff))),
            (with(1 << 25), Err(Errno::EINVAL), Err(Errno::EINVAL)),
            (with(1 << 63), Err(Errno::EINVAL), Err(Errno::EINVAL)),
            (VcpuEvents { serror_pending: 0x80, ..PENDING }, Ok(Some(IDS)), Ok(Some(IDS))),
            (VcpuEvents { serror_pending: 0, ..with(u64::MAX) }, Ok(None), Ok(None)),
        ] {
            assert_eq!(serror(events, false), without_ras, "{events:x?} without RAS");
            assert_eq!(serror(events, true), with_ras, "{events:x?} with RAS");
        }
    }

    #[test]
    fn reserved_fields() {
        for byte in 0..5 {
            let mut events = PENDING;
            events.pad[byte] = 1;
            assert_eq!(serror(events, true), Err(Errno::EINVAL));
        }
        for word in 0..12 {
            let mut events = VcpuEvents { serror_pending: 0, ..PENDING };
            events.reserved[word] = 1 << 31;
            assert_eq!(serror(events, true), Err(Errno::EINVAL));
        }
    }

    #[test]
    fn a_bad_syndrome_lets_no_abort_through() {
        let events = VcpuEvents { ext_dabt_pending: 1, serror_has_esr: 1, serror_esr: 1 << 25, ..PENDING };
        assert_eq!(Change::check(&events, true), Err(Errno::EINVAL));
        let events = VcpuEvents { ext_dabt_pending: 2, ..PENDING };
        assert_eq!(Change::check(&events, true), Ok(Change { serror: Some(IDS), abort: true }));
    }

    #[test]
    fn verdicts() {
        let judge = |iss: u64, has_ras| judge(Syndrome { esr: 0x2f << 26 | iss, has_ras });
        for (aet, verdict) in [
            Verdict::Stop,
            Verdict::Inject,
            Verdict::Resume,
            Verdict::Inject,
            Verdict::Stop,
            Verdict::Stop,
            Verdict::Resume,
            Verdict::Stop,
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(judge((aet as u64) << 10 | 0x11, true), verdict, "AET {aet}");
        }
        assert_eq!(judge(0, true), Verdict::Stop);
        assert_eq!(judge(IDS, true), Verdict::Inject);
        assert_eq!(judge(6 << 10 | 0x11, false), Verdict::Inject);
    }

    fn any_events() -> impl Strategy<Value = VcpuEvents> {
        (any::<[bool; 3]>(), any::<u64>(), 0_u32..64).prop_map(|([pending, esr, abort], value, shift)| VcpuEvents {
            serror_pending: pending.into(),
            serror_has_esr: esr.into(),
            ext_dabt_pending: abort.into(),
            serror_esr: value >> shift,
            ..VcpuEvents::default()
        })
    }

    proptest! {
        /// Whatever is set, what was pending stays pending; and what is read back can be set, to the same effect.
        #[test]
        fn nothing_is_cancelled(calls in proptest::collection::vec(any_events(), 1..8), has_ras: bool) {
            let mut pending = Pending::default();
            for events in calls {
                let before = pending;
                if let Ok(change) = Change::check(&events, has_ras) {
                    pending.change(change);
                }
                prop_assert!(before.serror.is_none() || pending.serror.is_some());
                let found = pending.get(has_ras);
                prop_assert_eq!(found.serror_has_esr != 0, has_ras);
                prop_assert!(found.serror_pending != 0 || found.serror_esr == 0);
                prop_assert_eq!(found.ext_dabt_pending, 0);
                let mut copy = Pending::default();
                copy.change(Change::check(&found, has_ras).unwrap_or(Change { serror: None, abort: false }));
                if has_ras {
                    prop_assert_eq!(copy.serror, pending.serror);
                }
            }
        }
    }
}
