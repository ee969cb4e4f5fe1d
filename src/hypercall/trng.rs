//! TRNG: random bits by call.
//!
//! Source: Arm DEN0098, True Random Number Generator Firmware Interface 1.0. Its result codes are its own. Where nothing
//! honest is behind the call the answer is NO_ENTROPY, which tells the guest to try again later.

use super::smccc::FunctionId;
use super::table::{self, Discovery};
use super::{Call, HypercallHost, Outcome};

/// The version TRNG_VERSION reports, 1.0: major in bits 30:16, minor in 15:0.
pub const VERSION: u64 = 0x1_0000;

/// SUCCESS (DEN0098, 2).
pub const SUCCESS: i64 = 0;
/// NOT_SUPPORTED.
pub const NOT_SUPPORTED: i64 = -1;
/// INVALID_PARAMETERS.
pub const INVALID_PARAMETERS: i64 = -2;
/// NO_ENTROPY.
pub const NO_ENTROPY: i64 = -3;

/// The UUID of this implementation, 41b07d5f-33ef-4a93-bc62-390b8c42238b, in the register order of TRNG_GET_UUID: x0 has
/// the first four bytes of the UUID, lowest byte first.
pub const UUID: [u64; 4] = [0x5f7d_b041, 0x934a_ef33, 0x0b39_62bc, 0x8b23_428c];

/// TRNG_FEATURES: whether a function of this interface is there.
pub(super) fn features(host: &impl HypercallHost, call: &Call<'_>) -> Outcome {
    let [queried, ..] = call.arguments();
    let known = table::find(FunctionId(queried as u32))
        .is_some_and(|row| row.discovery == Discovery::TrngFeatures && row.is_there(host, call));
    Outcome::code(if known { SUCCESS } else { NOT_SUPPORTED })
}

/// TRNG_RND: x1 bits, right-aligned over x1:x2:x3, of which each holds `width` (32 or 64); bits above are zero.
pub(super) fn random(host: &impl HypercallHost, call: &Call<'_>, width: u32) -> Outcome {
    let [bits, ..] = call.arguments();
    // Of the 64-bit form too KVM looks at the lower half only.
    let bits = u64::from(bits as u32);
    if bits == 0 || bits > 3 * u64::from(width) {
        return Outcome::code(INVALID_PARAMETERS);
    }
    let mut words = [0; 3];
    if !host.random(&mut words) {
        return Outcome::code(NO_ENTROPY);
    }
    // words[0] is the least significant one, which goes to x3.
    let mut left = bits as u32;
    for word in &mut words {
        let here = left.min(width);
        *word &= u64::MAX.unbounded_shr(64 - here);
        left -= here;
    }
    let [low, middle, high] = words;
    Outcome::Return([SUCCESS as u64, high, middle, low])
}
