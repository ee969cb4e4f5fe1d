//! PV time: the time a vCPU waited for its CPU, in a structure that the guest reads.
//!
//! Source: Arm DEN0057, Paravirtualized Time for Arm-based Systems. Only stolen time is there, as in KVM. The structure
//! is the VM's memory; [`STRUCTURE_BYTES`] of it belong to each vCPU for which an address was configured.

use super::smccc::{FunctionId, NOT_SUPPORTED, SUCCESS};
use super::table::{self, Function};
use super::{Call, HypercallHost, Outcome};

/// Bytes of a vCPU's structure, and its alignment (DEN0057, 3.2.2).
pub const STRUCTURE_BYTES: u64 = 64;
/// Offset of `stolen_time`, u64 nanoseconds, little-endian; revision and attributes before it are zero.
pub const STOLEN_TIME: u64 = 8;

/// PV_TIME_FEATURES: whether a function of PV time can be used by this vCPU.
pub(super) fn features(host: &impl HypercallHost, call: &Call<'_>) -> Outcome {
    let [queried, ..] = call.arguments();
    let known = table::find(FunctionId(queried as u32))
        .is_some_and(|row| matches!(row.function, Function::PvTimeFeatures | Function::PvTimeStolen));
    Outcome::code(if known && host.stolen_time().is_some() { SUCCESS } else { NOT_SUPPORTED })
}

/// PV_TIME_ST: where this vCPU's structure is; counting starts from zero.
pub(super) fn stolen_time(host: &impl HypercallHost) -> Outcome {
    match host.stolen_time() {
        Some(address) => Outcome::StolenTime { address },
        None => Outcome::code(NOT_SUPPORTED),
    }
}
