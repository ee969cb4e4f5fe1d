//! KVM's generic hypercalls, KVM_HC_*, whose numbers all architectures share.
//!
//! Source: Linux, Documentation/virt/kvm/x86/hypercalls.rst and uapi `linux/kvm_para.h`. Linux has no transport for them
//! on arm64; here number n is the vendor hypervisor's SMC64 function [`BASE`] + n, with the arguments a0 to a3 in x1 to
//! x4. The answer is in x0, errors are negative, and nothing but x0 changes. Numbers that nobody implements are
//! -KVM_ENOSYS, which is not SMCCC's NOT_SUPPORTED.

use super::smccc::FunctionId;
use super::table::FUNCTIONS;
use super::{Call, Clock, HypercallHost, Outcome, PageState, psci::AFFINITY_MASK, vendor::GRANULE};

/// Function id of number 0.
pub const BASE: u32 = 0xc600_0100;
/// Numbers that are these calls' own.
pub const NUMBERS: u32 = 0x100;

/// KVM_ENOSYS: no such call.
pub const ENOSYS: i64 = -1000;
/// KVM_EFAULT: no memory there.
pub const EFAULT: i64 = -14;
/// KVM_EINVAL.
pub const EINVAL: i64 = -22;
/// KVM_EOPNOTSUPP.
pub const EOPNOTSUPP: i64 = -95;

/// Whether an id is one of these calls', implemented or not.
#[inline]
pub(super) const fn is_one(id: FunctionId) -> bool {
    id.0 & !(NUMBERS - 1) == BASE
}

const fn answer(x0: i64) -> Outcome {
    Outcome::ReturnX0(x0 as u64)
}

/// x1 to x4.
fn arguments(call: &Call<'_>) -> [u64; 4] {
    let [_, a0, a1, a2, a3, ..] = *call.registers;
    [a0, a1, a2, a3]
}

/// KVM_HC_FEATURES, and number 0: bit n = number n is implemented.
pub(super) fn features(host: &impl HypercallHost, call: &Call<'_>) -> Outcome {
    let numbers = FUNCTIONS.iter().filter(|row| is_one(row.id) && row.is_there(host, call));
    answer(numbers.fold(0, |bits, row| bits | 1 << (row.id.0 - BASE)) & !1)
}

/// KVM_HC_VAPIC_POLL_IRQ: the exit was what it is for; pending interrupts are looked at before the next entry.
pub(super) const fn poll_interrupts() -> Outcome {
    answer(0)
}

/// KVM_HC_KICK_CPU: end the wait of the vCPU with affinity a1; one that nobody has is ignored.
pub(super) fn kick_cpu(host: &impl HypercallHost, call: &Call<'_>) -> Outcome {
    let [_, target, ..] = arguments(call);
    let found = (0..host.vcpu_count()).find(|&index| host.vcpu_power(index).mpidr & AFFINITY_MASK == target);
    found.map_or(answer(0), Outcome::Wake)
}

/// KVM_HC_CLOCK_PAIRING: write wall clock and virtual counter of one instant to address a0.
pub(super) fn clock_pairing(host: &impl HypercallHost, call: &Call<'_>) -> Outcome {
    /// The only kind of clock: CLOCK_REALTIME.
    const WALLCLOCK: u64 = 0;
    const SECOND: u64 = 1_000_000_000;
    let [address, kind, ..] = arguments(call);
    let Some(Clock { nanoseconds, virtual_counter, .. }) = host.clock().filter(|_| kind == WALLCLOCK) else {
        return answer(EOPNOTSUPP);
    };
    // struct kvm_clock_pairing: sec, nsec, tsc, then flags and padding, which are zero.
    let mut pairing = [0; 64];
    let words = [nanoseconds / SECOND, nanoseconds % SECOND, virtual_counter];
    for (bytes, word) in pairing.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    answer(if host.write_memory(address, &pairing) { 0 } else { EFAULT })
}

/// KVM_HC_SEND_IPI: SGI a3\[3:0\] to the vCPUs whose indices are the bits of a1:a0, counted from a2. Answers how many got it.
pub(super) fn send_ipi(host: &impl HypercallHost, call: &Call<'_>) -> Outcome {
    let [low, high, lowest, icr] = arguments(call);
    let bits = u128::from(high) << 64 | u128::from(low);
    let shifted = u32::try_from(lowest).map_or(0, |lowest| bits.unbounded_shl(lowest));
    let existing = u64::MAX.unbounded_shr(64_u32.saturating_sub(host.vcpu_count() as u32));
    Outcome::Interrupt { vcpus: shifted as u64 & existing, sgi: (icr & 0xf) as u8 }
}

/// KVM_HC_SCHED_YIELD: let vCPU a0 run; whoever is not waiting for this CPU has no use of it.
pub(super) fn sched_yield(host: &impl HypercallHost, call: &Call<'_>) -> Outcome {
    let [target, ..] = arguments(call);
    let target = usize::try_from(target).ok().filter(|&target| target < host.vcpu_count() && target != host.caller());
    target.map_or(answer(0), Outcome::YieldTo)
}

/// KVM_HC_MAP_GPA_RANGE: a1 pages of 4 KiB from a0 on become private (attribute bit 4) or shared.
pub(super) fn map_gpa_range(host: &impl HypercallHost, call: &Call<'_>) -> Outcome {
    /// Attributes, bits 3:0: the size of pages in which the range is best mapped, 4 KiB, 2 MiB or 1 GiB.
    const LARGEST_PAGES: u64 = 2;
    const ENCRYPTED: u64 = 1 << 4;
    let [start, pages, attributes, _] = arguments(call);
    let end = pages.checked_mul(GRANULE).and_then(|bytes| start.checked_add(bytes));
    let proper =
        start.is_multiple_of(GRANULE) && pages > 0 && attributes >> 5 == 0 && attributes & 0xf <= LARGEST_PAGES;
    let Some(end) = end.filter(|_| proper) else { return answer(EINVAL) };
    let state = if attributes & ENCRYPTED != 0 { PageState::Private } else { PageState::Shared };
    answer(if host.set_range_state(start..end, state) { 0 } else { EFAULT })
}
