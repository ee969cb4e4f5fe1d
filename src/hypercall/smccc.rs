//! SMCCC: function ids, its result codes, and the Arm architecture calls.
//!
//! Source: Arm DEN0028, SMC Calling Convention 1.1; where KVM's answers are narrower than the specification's, KVM's.

use super::table::{self, Discovery, Function};
use super::{Call, HypercallHost, Outcome, psci};

/// The version SMCCC_VERSION reports, 1.1: major in bits 30:16, minor in 15:0.
pub const VERSION: u64 = 0x1_0001;

/// SUCCESS (DEN0028, 6.1).
pub const SUCCESS: i64 = 0;
/// NOT_SUPPORTED: the function does not exist, or not for this caller.
pub const NOT_SUPPORTED: i64 = -1;
/// NOT_REQUIRED: the function exists and this machine has no need of it.
pub const NOT_REQUIRED: i64 = -2;

/// A function id: w0 of a call (DEN0028, 2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FunctionId(pub u32);

impl FunctionId {
    /// Bit 30: the call uses 64-bit arguments and results.
    #[inline]
    pub const fn is_64_bit(self) -> bool {
        self.0 & (1 << 30) != 0
    }

    /// The call uses 32-bit arguments and results. The ids of PSCI 0.1, whose owner SMCCC reserves, are older than the
    /// convention: they are neither this nor [`Self::is_64_bit`], and their arguments are as wide as the caller is.
    #[inline]
    pub const fn is_32_bit(self) -> bool {
        !self.is_64_bit() && self.owner() != psci::V0_1_OWNER
    }

    /// Bits 29:24: who defines the call (0 Arm, 4 standard secure, 5 standard hypervisor, 6 vendor hypervisor).
    #[inline]
    pub const fn owner(self) -> u32 {
        self.0 >> 24 & 0x3f
    }

    /// The specification's name of the function, if keel has it; for logs.
    pub fn name(self) -> Option<&'static str> {
        table::find(self).map(|row| row.name)
    }
}

/// A vulnerability of CPUs that one of SMCCC's workaround calls is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vulnerability {
    /// CVE-2017-5715, WORKAROUND_1.
    SpectreV2,
    /// CVE-2018-3639, speculative store bypass, WORKAROUND_2.
    SpectreV4,
    /// CVE-2022-23960, WORKAROUND_3.
    SpectreBhb,
}

/// How the machine stands with a vulnerability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mitigation {
    /// The CPUs are not affected.
    Unaffected,
    /// They are, and entering EL2 by the call, or firmware behind it, mitigates.
    Mitigated,
    /// They are, and nothing can be done.
    Vulnerable,
}

/// SMCCC_ARCH_FEATURES: only calls that keel's table gives to it are known, which leaves out SMCCC_VERSION and
/// SMCCC_ARCH_FEATURES themselves, as KVM does.
pub(super) fn arch_features(host: &impl HypercallHost, call: &Call<'_>) -> Outcome {
    let [queried, ..] = call.arguments();
    let code = match table::find(FunctionId(queried as u32)) {
        // The workarounds are reported whatever the conduit of the question.
        Some(row) if row.discovery == Discovery::ArchFeatures => match row.function {
            Function::Workaround(vulnerability) => workaround_state(host, vulnerability),
            _ if row.is_there(host, call) => SUCCESS,
            _ => NOT_SUPPORTED,
        },
        _ => NOT_SUPPORTED,
    };
    Outcome::code(code)
}

/// What discovery of a workaround answers (DEN0028, 7.5 to 7.7).
fn workaround_state(host: &impl HypercallHost, vulnerability: Vulnerability) -> i64 {
    /// The call exists, but this PE does not need it.
    const EXISTS_UNNEEDED: i64 = 1;
    match (vulnerability, host.mitigation(vulnerability)) {
        (_, Mitigation::Vulnerable) => NOT_SUPPORTED,
        // A guest with SSBS switches the mitigation itself; the call has nothing to add.
        (Vulnerability::SpectreV4, Mitigation::Mitigated) if host.guest_has_ssbs() => NOT_SUPPORTED,
        (Vulnerability::SpectreV4, _) => NOT_REQUIRED,
        (_, Mitigation::Mitigated) => SUCCESS,
        (_, Mitigation::Unaffected) => EXISTS_UNNEEDED,
    }
}
