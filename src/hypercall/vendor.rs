//! The vendor hypervisor's calls, owner 6: KVM's own services.
//!
//! Source: Linux, Documentation/virt/kvm/arm/hypercalls.rst, ptp_kvm.rst and pvtime.rst; the numbers are bit positions in
//! FEATURES' answer. The page states of protected guests describe what a guest lets others see; as long as no VM may
//! look into another's memory they are bookkeeping that a guest can rely on, with every error it has to expect.

use super::services::Service;
use super::smccc::NOT_SUPPORTED;
use super::{Call, Clock, HypercallHost, Outcome, PageState};

/// KVM's UID, 28b46fb6-2ec5-11e9-a9ca-4b564d003a74, by which guests know whose calls these are.
pub const UID: [u64; 4] = [0xb66f_b428, 0xe911_c52e, 0x564b_caa9, 0x743a_004d];

/// INVALID_PARAMETER (SMCCC, 6.1).
pub const INVALID_PARAMETER: i64 = -3;

/// The granule of page states, bytes.
pub const GRANULE: u64 = 4096;

/// Version of the DISCOVER_IMPL calls, 1.0.
const DISCOVERY_VERSION: u64 = 0x1_0000;

/// Bits of FEATURES' first word for the calls of protected guests: 2, 3, 4 and 7.
const PROTECTED_MEMORY: u64 = 1 << 2 | 1 << 3 | 1 << 4 | 1 << 7;

/// FEATURES: bit n of x0 to x3, taken as one number, says that function n is there.
pub(super) fn features(host: &impl HypercallHost) -> Outcome {
    let services = host.services();
    let protected = if services.has(Service::ProtectedMemory) { PROTECTED_MEMORY } else { 0 };
    Outcome::Return([services.vendor | protected, 0, services.vendor_2, 0])
}

/// PTP: wall clock and counter of one instant, each in two 32-bit halves.
pub(super) fn ptp(host: &impl HypercallHost, call: &Call<'_>) -> Outcome {
    let [counter, ..] = call.arguments();
    let Some(Clock { nanoseconds, virtual_counter, physical_counter }) = host.clock() else {
        return Outcome::code(NOT_SUPPORTED);
    };
    let counter = match counter {
        0 => virtual_counter,
        1 => physical_counter,
        _ => return Outcome::code(NOT_SUPPORTED),
    };
    Outcome::Return([nanoseconds >> 32, nanoseconds & 0xffff_ffff, counter >> 32, counter & 0xffff_ffff])
}

/// HYP_MEMINFO: the granule of page states.
pub(super) fn memory_information(call: &Call<'_>) -> Outcome {
    if call.arguments() == [0; 3] { Outcome::value(GRANULE) } else { Outcome::code(INVALID_PARAMETER) }
}

/// MEM_SHARE, MEM_UNSHARE and MMIO_GUARD: give the page at x1 another state.
pub(super) fn set_page_state(host: &impl HypercallHost, call: &Call<'_>, state: PageState) -> Outcome {
    let [page, second, third] = call.arguments();
    let proper = page.is_multiple_of(GRANULE) && second == 0 && third == 0;
    Outcome::code(if proper && host.set_page_state(page, state) { 0 } else { INVALID_PARAMETER })
}

/// DISCOVER_IMPL_VER: how many kinds of CPU the VM may come to run on.
pub(super) fn discover_version(host: &impl HypercallHost) -> Outcome {
    let count = (0..).take_while(|&index| host.implementation(index).is_some()).count();
    Outcome::Return([0, DISCOVERY_VERSION, count as u64, 0])
}

/// DISCOVER_IMPL_CPUS: MIDR_EL1, REVIDR_EL1 and AIDR_EL1 of one kind.
pub(super) fn discover_cpus(host: &impl HypercallHost, call: &Call<'_>) -> Outcome {
    let [index, second, third] = call.arguments();
    let found = usize::try_from(index).ok().filter(|_| second == 0 && third == 0);
    match found.and_then(|index| host.implementation(index)) {
        Some([midr, revidr, aidr]) => Outcome::Return([0, midr, revidr, aidr]),
        None => Outcome::code(INVALID_PARAMETER),
    }
}
