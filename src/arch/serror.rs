//! SErrors: what their syndromes say, and collecting the ones that are pending on this CPU.
//!
//! An SError is asynchronous: what causes it and where it is taken are apart. EL2 runs with PSTATE.A set, so an error of a
//! guest that has not been taken when keel is entered stays pending, and is taken when the guest goes on: in its context,
//! at no cost to an exit. Only where the CPU changes hands does somebody have to look (`collect`): with FEAT_RAS by an
//! error synchronization barrier, which defers what is pending into DISR_EL1, elsewhere by taking it there and then.
//!
//! Source: Arm ARM D1.3.4 and D24.2.40 (ESR_EL2, SError exceptions), D24.2.35 (DISR_EL1); RAS: DDI 0587.

use super::esr;
use core::fmt;

/// ISS, bit 24: the syndrome is IMPLEMENTATION DEFINED.
pub const IDS: u64 = 1 << 24;
/// The ISS of an SError: bits 24:0.
pub const ISS: u64 = 0x01ff_ffff;
/// DFSC of an asynchronous SError.
const DFSC_ASYNCHRONOUS: u64 = 0x11;
/// DISR_EL1.A, bit 31: an SError was deferred.
#[cfg(target_os = "none")]
const DISR_A: u64 = 1 << 31;

/// How bad an SError is (AET, DDI 0587 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// CE: it was corrected.
    Corrected,
    /// UEO: nothing has consumed it; the program may go on.
    Restartable,
    /// UER: it was contained, and software may recover.
    Recoverable,
    /// UEU: it was contained, but the state it was found in is lost.
    Unrecoverable,
    /// UC: it may have spread anywhere. Also what a syndrome with reserved or without any severity has to be taken for.
    Uncontainable,
    /// The syndrome is the implementation's own.
    Unknown,
}

/// The syndrome of an SError: an ESR_ELx with EC 0x2f.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syndrome {
    /// ESR_ELx.
    pub esr: u64,
    /// The CPU has FEAT_RAS, without which the ISS is IMPLEMENTATION DEFINED.
    pub has_ras: bool,
}

impl Syndrome {
    /// How bad it is.
    pub const fn severity(self) -> Severity {
        let iss = esr::iss(self.esr);
        if !self.has_ras || iss & IDS != 0 {
            return Severity::Unknown;
        }
        if iss & 0x3f != DFSC_ASYNCHRONOUS {
            return Severity::Uncontainable;
        }
        match iss >> 10 & 7 {
            1 => Severity::Unrecoverable,
            2 => Severity::Restartable,
            3 => Severity::Recoverable,
            6 => Severity::Corrected,
            _ => Severity::Uncontainable,
        }
    }
}

impl fmt::Display for Syndrome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let iss = esr::iss(self.esr);
        let severity = match self.severity() {
            Severity::Corrected => "corrected (CE)",
            Severity::Restartable => "restartable (UEO)",
            Severity::Recoverable => "recoverable (UER)",
            Severity::Unrecoverable => "unrecoverable (UEU)",
            Severity::Uncontainable if iss & 0x3f != DFSC_ASYNCHRONOUS => "uncategorized",
            Severity::Uncontainable => "uncontainable (UC)",
            Severity::Unknown => return write!(f, "SError with an implementation-defined syndrome {iss:#x}"),
        };
        let external = if iss >> 9 & 1 != 0 { ", from outside the CPU (EA)" } else { "" };
        write!(f, "SError, {severity}{external}")
    }
}

#[cfg(target_os = "none")]
mod hardware {
    use super::{DISR_A, ISS, Syndrome};
    use crate::arch::{
        esr::{self, ec},
        features,
        sysreg::{dsb_sy, isb, read_sysreg, write_sysreg},
    };

    unsafe extern "C" {
        fn take_serror() -> u64;
    }

    /// ISR_EL1.A: an SError is pending.
    const ISR_A: u64 = 1 << 8;

    /// Whether an SError is pending on this CPU.
    pub fn is_pending() -> bool {
        read_sysreg!("isr_el1") & ISR_A != 0
    }

    /// Takes the SError that is pending on this CPU away, if there is one. HCR_EL2.AMO is 1, PSTATE.A is set.
    pub fn collect() -> Option<Syndrome> {
        if !features::has_ras() {
            return collect_without_ras();
        }
        let deferred = defer();
        (deferred & DISR_A != 0).then(|| {
            write_sysreg!("S3_0_C12_C1_1", 0);
            // IDS and the ISS have the places that they have in ESR_ELx.
            Syndrome { esr: ec::SERROR << 26 | esr::IL | deferred & ISS, has_ras: true }
        })
    }

    /// Whether [`collect`] would find one, on a CPU that has FEAT_RAS or not.
    #[inline(always)]
    pub fn is_there(has_ras: bool) -> bool {
        if has_ras {
            return defer() & DISR_A != 0;
        }
        dsb_sy();
        isb();
        is_pending()
    }

    /// Has a pending one wait in DISR_EL1, and reads that.
    #[inline(always)]
    fn defer() -> u64 {
        // SAFETY: ESB; it may write DISR_EL1 and changes nothing else.
        unsafe { core::arch::asm!("hint #16", options(nostack, preserves_flags)) };
        read_sysreg!("S3_0_C12_C1_1") // DISR_EL1
    }

    #[inline(never)]
    fn collect_without_ras() -> Option<Syndrome> {
        dsb_sy();
        isb();
        if !is_pending() {
            return None;
        }
        // SAFETY: boot/vectors.S: clears PSTATE.A for one instruction, at which the vectors of this CPU, which are
        // keel's, answer an SError; it keeps to the C ABI.
        let esr = unsafe { take_serror() };
        // One that was withdrawn meanwhile has no syndrome.
        (esr != 0).then_some(Syndrome { esr, has_ras: false })
    }
}

#[cfg(target_os = "none")]
pub use hardware::{collect, is_pending, is_there};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::format;

    fn severity(iss: u64) -> Severity {
        Syndrome { esr: 0x2f << 26 | esr::IL | iss, has_ras: true }.severity()
    }

    #[test]
    fn severities() {
        for (aet, expected) in [
            (0, Severity::Uncontainable),
            (1, Severity::Unrecoverable),
            (2, Severity::Restartable),
            (3, Severity::Recoverable),
            (4, Severity::Uncontainable),
            (5, Severity::Uncontainable),
            (6, Severity::Corrected),
            (7, Severity::Uncontainable),
        ] {
            assert_eq!(severity(aet << 10 | 0x11), expected, "AET {aet}");
            // EA says where it came from, not how bad it is.
            assert_eq!(severity(aet << 10 | 1 << 9 | 0x11), expected, "AET {aet} with EA");
            // Without DFSC 0x11, AET is RES0.
            assert_eq!(severity(aet << 10), Severity::Uncontainable);
            assert_eq!(severity(IDS | aet << 10 | 0x11), Severity::Unknown);
        }
        let esr = 0x2f << 26 | 6 << 10 | 0x11;
        assert_eq!(Syndrome { esr, has_ras: false }.severity(), Severity::Unknown);
    }

    #[test]
    fn words() {
        let text = |iss, has_ras| format!("{}", Syndrome { esr: 0x2f << 26 | esr::IL | iss, has_ras });
        assert_eq!(text(0x11, true), "SError, uncontainable (UC)");
        assert_eq!(text(3 << 10 | 1 << 9 | 0x11, true), "SError, recoverable (UER), from outside the CPU (EA)");
        assert_eq!(text(0, true), "SError, uncategorized");
        assert_eq!(text(IDS | 0x42, true), "SError with an implementation-defined syndrome 0x1000042");
        assert_eq!(text(0x42, false), "SError with an implementation-defined syndrome 0x42");
    }

    proptest! {
        /// Only what says in full that it is harmless is harmless.
        #[test]
        fn harmless(esr: u64, has_ras: bool) {
            let found = Syndrome { esr, has_ras }.severity();
            let iss = esr & 0x01ff_ffff;
            let says_so = has_ras && iss >> 24 == 0 && iss & 0x3f == 0x11;
            prop_assert_eq!(found == Severity::Corrected, says_so && iss >> 10 & 7 == 6);
            prop_assert_eq!(found == Severity::Restartable, says_so && iss >> 10 & 7 == 2);
            prop_assert_eq!(found == Severity::Unknown, !has_ras || iss >> 24 & 1 == 1);
        }
    }
}
