//! PSCI: power states of a VM's vCPUs and of the VM.
//!
//! Source: Arm DEN0022, Power State Coordination Interface; the choices it leaves open are KVM's: a suspend is a WFI,
//! CPU_ON takes effect at once (so ON_PENDING is never seen), entry addresses are not checked, the last vCPU may switch
//! itself off, and no call is ever DENIED.

use super::smccc::FunctionId;
use super::table::{self, Discovery};
use super::{Call, HypercallHost, Outcome};

/// SUCCESS (DEN0022, 5.2.2).
pub const SUCCESS: i64 = 0;
/// NOT_SUPPORTED.
pub const NOT_SUPPORTED: i64 = -1;
/// INVALID_PARAMETERS.
pub const INVALID_PARAMETERS: i64 = -2;
/// ALREADY_ON.
pub const ALREADY_ON: i64 = -4;
/// INTERNAL_FAILURE.
pub const INTERNAL_FAILURE: i64 = -6;

/// MIGRATE_INFO_TYPE's answer: there is no trusted OS that would have to move (DEN0022, 5.1.8).
pub(super) const MIGRATION_NOT_REQUIRED: i64 = 2;
/// AFFINITY_INFO's answer when a vCPU in question is on.
const AFFINITY_ON: i64 = 0;
/// AFFINITY_INFO's answer when all vCPUs in question are off.
const AFFINITY_OFF: i64 = 1;

/// The bits of MPIDR_EL1 that are affinity: Aff3 in 39:32, Aff2 to Aff0 in 23:0.
pub const AFFINITY_MASK: u64 = 0xff_00ff_ffff;

/// Bits 29:24 of the ids that KVM chose for PSCI 0.1, 0x95c1_ba5e to 0x95c1_ba61.
pub(super) const V0_1_OWNER: u32 = 0x15;

/// A version of PSCI that a VM can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.1, with KVM's private function ids.
    V0_1,
    /// 0.2.
    V0_2,
    /// 1.0.
    V1_0,
    /// 1.1.
    V1_1,
    /// 1.2.
    V1_2,
    /// 1.3.
    V1_3,
}

impl Version {
    /// As PSCI_VERSION returns it: major in bits 31:16, minor in 15:0.
    pub const fn encoding(self) -> u32 {
        match self {
            Self::V0_1 => 0x0_0001,
            Self::V0_2 => 0x0_0002,
            Self::V1_0 => 0x1_0000,
            Self::V1_1 => 0x1_0001,
            Self::V1_2 => 0x1_0002,
            Self::V1_3 => 0x1_0003,
        }
    }

    /// The version with this encoding, if keel has it.
    pub const fn from_encoding(encoding: u32) -> Option<Self> {
        match encoding {
            0x0_0001 => Some(Self::V0_1),
            0x0_0002 => Some(Self::V0_2),
            0x1_0000 => Some(Self::V1_0),
            0x1_0001 => Some(Self::V1_1),
            0x1_0002 => Some(Self::V1_2),
            0x1_0003 => Some(Self::V1_3),
            _ => None,
        }
    }
}

/// A vCPU as PSCI sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuPower {
    /// Its MPIDR_EL1. Bits that are not affinity do not matter.
    pub mpidr: u64,
    /// Whether it is on; suspended counts as on.
    pub on: bool,
}

/// What came of a CPU_ON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuOnResult {
    /// The vCPU was off and is starting.
    Started,
    /// The vCPU was on already.
    AlreadyOn,
    /// The machine's firmware, which starts this one, answered with this error.
    Refused(i64),
}

/// What a guest asked for its whole VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemEvent {
    /// SYSTEM_OFF.
    Off,
    /// SYSTEM_OFF2, HIBERNATE_OFF: off, with the guest's memory saved by itself.
    Hibernate,
    /// SYSTEM_RESET.
    Reset,
    /// SYSTEM_RESET2: an architectural warm reset (0) or a vendor's type (0x8000_0000 and above), and its cookie.
    Reset2 {
        /// The reset type.
        reset_type: u64,
        /// The cookie, meaningful for vendor types.
        cookie: u64,
    },
}

/// PSCI_FEATURES: the flags of a function that the VM's version has, else NOT_SUPPORTED.
pub(super) fn features(host: &impl HypercallHost, call: &Call<'_>) -> Outcome {
    let [queried, ..] = call.arguments();
    let known = table::find(FunctionId(queried as u32)).filter(|row| row.is_there(host, call));
    Outcome::code(match known.map(|row| row.discovery) {
        Some(Discovery::PsciFeatures(flags)) => i64::from(flags),
        _ => NOT_SUPPORTED,
    })
}

/// CPU_ON: start the vCPU that x1 names at x2 with x3 in its x0.
pub(super) fn cpu_on(host: &impl HypercallHost, call: &Call<'_>) -> Outcome {
    let [target, entry, context] = call.arguments();
    let found = (target & !AFFINITY_MASK == 0)
        .then(|| (0..host.vcpu_count()).find(|&index| host.vcpu_power(index).mpidr & AFFINITY_MASK == target))
        .flatten();
    Outcome::code(match found.map(|index| host.cpu_on(index, entry, context)) {
        Some(CpuOnResult::Started) => SUCCESS,
        Some(CpuOnResult::Refused(error)) => error,
        Some(CpuOnResult::AlreadyOn) if host.psci_version() > Version::V0_1 => ALREADY_ON,
        // 0.1 has no code of its own for it.
        Some(CpuOnResult::AlreadyOn) | None => INVALID_PARAMETERS,
    })
}

/// AFFINITY_INFO: whether any vCPU of the affinity group that x1 names at level x2 is on.
pub(super) fn affinity_info(host: &impl HypercallHost, call: &Call<'_>) -> Outcome {
    let [target, level, _] = call.arguments();
    if target & !AFFINITY_MASK != 0 || level > 3 {
        return Outcome::code(INVALID_PARAMETERS);
    }
    let mask = AFFINITY_MASK & (u64::MAX << (8 * level));
    let mut state = INVALID_PARAMETERS;
    for index in 0..host.vcpu_count() {
        let vcpu = host.vcpu_power(index);
        if (vcpu.mpidr ^ target) & mask == 0 {
            if vcpu.on {
                return Outcome::code(AFFINITY_ON);
            }
            state = AFFINITY_OFF;
        }
    }
    Outcome::code(state)
}

/// SYSTEM_RESET2: types that the specification reserves are refused. The type is compared with all bits that the
/// convention of the call passes.
pub(super) fn system_reset2(call: &Call<'_>) -> Outcome {
    /// The first type that belongs to vendors (DEN0022, 5.1.13).
    const VENDOR_TYPES: u64 = 0x8000_0000;
    let [reset_type, cookie, _] = call.arguments();
    // A number of 32 bits in the 64-bit form too (DEN0022, 5.1.13: int32).
    let reset_type = u64::from(reset_type as u32);
    if reset_type != 0 && reset_type < VENDOR_TYPES {
        return Outcome::code(INVALID_PARAMETERS);
    }
    Outcome::System(SystemEvent::Reset2 { reset_type, cookie })
}

/// SYSTEM_OFF2: the only type is HIBERNATE_OFF, 1, which 0 stands for too; the cookie must be zero.
pub(super) fn system_off2(call: &Call<'_>) -> Outcome {
    match call.arguments() {
        [0 | 1, 0, _] => Outcome::System(SystemEvent::Hibernate),
        _ => Outcome::code(INVALID_PARAMETERS),
    }
}
