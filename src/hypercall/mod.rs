//! Hypercalls: what a guest may ask for with HVC and SMC, and one table that says so.
//!
//! [`dispatch`] is a pure function of the call and of the little that [`HypercallHost`] tells about the VM; what has to
//! happen comes back as an [`Outcome`], and the vCPU's exit path is the only place where registers change. Every
//! function is a row of [`table`]: whether a call is answered, whether PSCI_FEATURES and SMCCC_ARCH_FEATURES know it
//! and under which name it is logged all come from that row, so they cannot disagree. Values, gates and corner cases
//! are KVM's, which its guests already rely on; [`smccc`] and [`psci`] cite the specifications.
//!
//! keel reports SMCCC 1.1: an answered call writes exactly x0 to x3 and preserves everything else. The vector slot
//! answers a few of these calls before Rust runs; their rows are here all the same, because discovery asks the table
//! and because a call by SMC does not take that path.
#![forbid(unsafe_code)]

pub mod generic;
pub mod psci;
pub mod pvtime;
pub mod relay;
pub mod services;
pub mod smccc;
pub mod stub;
pub mod table;
pub mod trng;
pub mod vendor;

use core::ops::Range;

use psci::{CpuOnResult, SystemEvent, VcpuPower};
use services::Services;
use smccc::{FunctionId, Mitigation, NOT_SUPPORTED, Vulnerability};
use table::Function;

/// The instruction a call was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// HVC (ESR_EL2.EC 0x16, or 0x12 from AArch32). The PC is already past the instruction.
    Hvc,
    /// SMC trapped by HCR_EL2.TSC (EC 0x17, or 0x13 from AArch32). The PC still points at the instruction.
    Smc,
}

/// One call, as the guest made it.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// HVC or SMC.
    pub conduit: Conduit,
    /// The instruction's immediate (ESR_EL2.ISS bits 15:0). Means nothing for HVC; has to be 0 for SMC.
    pub immediate: u16,
    /// The caller is in AArch32 state: 64-bit function ids are not for it.
    pub aarch32: bool,
    /// x0 to x17. The function id is the low half of x0.
    pub registers: &'a [u64; 18],
}

impl Call<'_> {
    /// The function asked for: the low 32 bits of x0, whatever is above them.
    #[inline]
    pub const fn function(&self) -> FunctionId {
        FunctionId(self.registers[0] as u32)
    }

    /// The arguments x1 to x3, cut to 32 bits where the call is of the 32-bit convention (SMCCC 1.1, 3.1).
    #[inline]
    pub(crate) const fn arguments(&self) -> [u64; 3] {
        let [_, x1, x2, x3, ..] = *self.registers;
        if self.function().is_32_bit() { [x1 as u32 as u64, x2 as u32 as u64, x3 as u32 as u64] } else { [x1, x2, x3] }
    }
}

/// What a call leads to. [`Outcome::results`] says which registers to write; the rest is the caller's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Write x0 to x3 and go on.
    Return([u64; 4]),
    /// Write x0 alone and go on: the answer to an SMC with an immediate, which no convention covers.
    ReturnX0(u64),
    /// As WFI: wait until an interrupt is pending for this vCPU, then go on with these in x0 to x3. All state is kept.
    Suspend([u64; 4]),
    /// This vCPU is off until a CPU_ON names it.
    CpuOff,
    /// Stop every vCPU of the VM, then switch it off or start it again.
    System(SystemEvent),
    /// SYSTEM_SUSPEND: whoever runs the VM decides; the call's registers stay as they are.
    SystemSuspend,
    /// The call is for whoever runs the VM; its registers stay as they are.
    Forward,
    /// The calling vCPU's PV time structure at this address: clear it and count from here on, then answer the address.
    StolenTime {
        /// Guest physical address of the structure.
        address: u64,
    },
    /// End the wait of the vCPU with this index, then answer 0 in x0.
    Wake(usize),
    /// Send an SGI, then answer in x0 to how many vCPUs.
    Interrupt {
        /// vCPUs by index, one bit each; each exists.
        vcpus: u64,
        /// SGI, 0 to 15.
        sgi: u8,
    },
    /// Let the vCPU with this index run if it waits for the caller's CPU, then answer 0 in x0.
    YieldTo(usize),
    /// Make errors pending for the caller, as the first two words of `struct kvm_vcpu_events` and what is said of the rest
    /// ask, then answer 0 or the error number, negated.
    SetEvents([u64; 3]),
    /// Answer 0 and the first two words of the caller's `struct kvm_vcpu_events`.
    GetEvents,
}

/// Registers that the end of a call writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Results {
    /// None.
    None,
    /// x0 to x3.
    Four([u64; 4]),
    /// x0 alone.
    X0(u64),
}

impl Outcome {
    /// An answer of one value: x0, with x1 to x3 zero.
    #[inline]
    pub(crate) const fn value(x0: u64) -> Self {
        Self::Return([x0, 0, 0, 0])
    }

    /// An answer of one signed result code, sign-extended to 64 bits.
    #[inline]
    pub(crate) const fn code(x0: i64) -> Self {
        Self::value(x0 as u64)
    }

    /// What the guest finds in its registers once it runs on. A call that does not return has results too: they are
    /// seen if whoever runs the VM lets the vCPU continue without a reset (KVM presets CPU_OFF to 0 and the system
    /// calls to INTERNAL_FAILURE).
    #[inline]
    pub const fn results(&self) -> Results {
        match *self {
            Self::Return(results) | Self::Suspend(results) => Results::Four(results),
            Self::ReturnX0(x0) => Results::X0(x0),
            Self::CpuOff => Results::Four([psci::SUCCESS as u64, 0, 0, 0]),
            Self::System(_) => Results::Four([psci::INTERNAL_FAILURE as u64, 0, 0, 0]),
            Self::SystemSuspend | Self::Forward | Self::SetEvents(_) | Self::GetEvents => Results::None,
            Self::StolenTime { address } => Results::Four([address, 0, 0, 0]),
            Self::Wake(_) | Self::YieldTo(_) => Results::X0(0),
            Self::Interrupt { vcpus, .. } => Results::X0(vcpus.count_ones() as u64),
        }
    }
}

/// Wall clock and counters of one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Nanoseconds since 1970.
    pub nanoseconds: u64,
    /// CNTVCT_EL0 as the guest reads it.
    pub virtual_counter: u64,
    /// CNTPCT_EL0 as the guest reads it.
    pub physical_counter: u64,
}

/// What the VM's filter does with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterAction {
    /// Nothing: it is answered here.
    Handle,
    /// NOT_SUPPORTED, as if there were no such function.
    Deny,
    /// It is for whoever runs the VM.
    Forward,
}

/// What a protected guest says about a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// Its memory, for itself: how every page starts.
    Private,
    /// Its memory, for others to see too.
    Shared,
    /// A device's registers, no memory.
    Mmio,
}

/// What hypercalls need to know of the VM, and the few things they do to it whose result is their answer.
pub trait HypercallHost {
    /// The services this VM has.
    fn services(&self) -> &Services;

    /// What the VM's filter does with a call.
    fn filter(&self, function: FunctionId) -> FilterAction;

    /// The index of the calling vCPU.
    fn caller(&self) -> usize;

    /// Fills `words` with random bits; `false` when there is nothing to take them from.
    fn random(&self, words: &mut [u64; 3]) -> bool;

    /// The time, if the machine has a clock that knows it.
    fn clock(&self) -> Option<Clock>;

    /// Where the calling vCPU's PV time structure is, if it was given one.
    fn stolen_time(&self) -> Option<u64>;

    /// Writes to guest memory; `false`, and nothing written, if some of it is not memory.
    fn write_memory(&self, address: u64, bytes: &[u8]) -> bool;

    /// Gives the page at `page` (a multiple of [`vendor::GRANULE`]) another state; `false` if it has that state already
    /// or cannot have it: memory is private or shared, and nothing else is.
    fn set_page_state(&self, page: u64, state: PageState) -> bool;

    /// Makes the pages of a range (of whole granules) private or shared, whatever they were; `false`, and nothing done, if
    /// some of it is not memory.
    fn set_range_state(&self, range: Range<u64>, state: PageState) -> bool;

    /// MIDR_EL1, REVIDR_EL1 and AIDR_EL1 of the `index`th kind of CPU that the VM may run on.
    fn implementation(&self, index: usize) -> Option<[u64; 3]>;

    /// The PSCI version this VM is given.
    fn psci_version(&self) -> psci::Version;

    /// How many vCPUs the VM has.
    fn vcpu_count(&self) -> usize;

    /// Affinity and power state of the vCPU with this index, below [`Self::vcpu_count`].
    fn vcpu_power(&self, index: usize) -> VcpuPower;

    /// If the vCPU with this index is off, claim it, give it reset state with PC = `entry`, x0 = `context` and the
    /// caller's endianness, and make it run; if it is on, say so. Of several callers at once exactly one starts it.
    fn cpu_on(&self, index: usize, entry: u64, context: u64) -> CpuOnResult;

    /// How the machine's CPUs stand with a vulnerability that a call of SMCCC mitigates.
    fn mitigation(&self, vulnerability: Vulnerability) -> Mitigation;

    /// Whether the guest's ID registers offer FEAT_SSBS, so that it guards itself against Spectre v4.
    fn guest_has_ssbs(&self) -> bool;
}

/// Whether a call is one that nobody implements: NOT_SUPPORTED in x0, x1 to x3 zero. The answer that [`dispatch`] gives to
/// an HVC, or an SMC with immediate 0, of a VM without a filter; for who wants it sooner.
#[inline(always)]
pub fn is_unknown(function: FunctionId) -> bool {
    table::find(function).is_none() && !generic::is_one(function)
}

/// Answers a call.
///
/// Never fails: a call that is unknown, not enabled for this VM or made in the wrong way is NOT_SUPPORTED, and a generic
/// hypercall that is not there -KVM_ENOSYS.
#[inline]
pub fn dispatch(host: &impl HypercallHost, call: &Call<'_>) -> Outcome {
    if matches!(call.conduit, Conduit::Smc) && call.immediate != 0 {
        return Outcome::ReturnX0(NOT_SUPPORTED as u64);
    }
    match host.filter(call.function()) {
        FilterAction::Handle => {}
        FilterAction::Deny => return Outcome::code(NOT_SUPPORTED),
        FilterAction::Forward => return Outcome::Forward,
    }
    match table::find(call.function()) {
        Some(row) => answer(host, call, row),
        None if generic::is_one(call.function()) && !call.aarch32 => Outcome::ReturnX0(generic::ENOSYS as u64),
        None => Outcome::code(NOT_SUPPORTED),
    }
}

/// Answers a call whose function exists, if it exists for this caller. Apart from `dispatch`, so that the way out of
/// that one for an unknown id saves no registers.
#[inline(never)]
fn answer(host: &impl HypercallHost, call: &Call<'_>, row: &table::Row) -> Outcome {
    if !row.is_there(host, call) {
        let missing = if generic::is_one(row.id) && !call.aarch32 { generic::ENOSYS } else { NOT_SUPPORTED };
        return if missing == NOT_SUPPORTED { Outcome::code(missing) } else { Outcome::ReturnX0(missing as u64) };
    }
    match row.function {
        Function::SmcccVersion => Outcome::value(smccc::VERSION),
        Function::ArchFeatures => smccc::arch_features(host, call),
        // Reaching EL2 was the mitigation.
        Function::Workaround(_) => Outcome::code(smccc::SUCCESS),
        Function::PsciVersion => Outcome::value(u64::from(host.psci_version().encoding())),
        Function::PsciFeatures => psci::features(host, call),
        Function::CpuSuspend => Outcome::Suspend([psci::SUCCESS as u64, 0, 0, 0]),
        Function::CpuOff => Outcome::CpuOff,
        Function::CpuOn => psci::cpu_on(host, call),
        Function::AffinityInfo => psci::affinity_info(host, call),
        Function::MigrateInfoType => Outcome::code(psci::MIGRATION_NOT_REQUIRED),
        Function::SystemOff => Outcome::System(SystemEvent::Off),
        Function::SystemReset => Outcome::System(SystemEvent::Reset),
        Function::SystemReset2 => psci::system_reset2(call),
        Function::SystemSuspend => Outcome::SystemSuspend,
        Function::SystemOff2 => psci::system_off2(call),
        Function::TrngVersion => Outcome::value(trng::VERSION),
        Function::TrngFeatures => trng::features(host, call),
        Function::TrngUuid => Outcome::Return(trng::UUID),
        Function::TrngRandom => trng::random(host, call, if row.id.is_64_bit() { 64 } else { 32 }),
        Function::PvTimeFeatures => pvtime::features(host, call),
        Function::PvTimeStolen => pvtime::stolen_time(host),
        Function::VendorUid => Outcome::Return(vendor::UID),
        Function::VendorFeatures => vendor::features(host),
        Function::Ptp => vendor::ptp(host, call),
        Function::MemoryInformation => vendor::memory_information(call),
        Function::SetPageState(state) => vendor::set_page_state(host, call, state),
        Function::DiscoverVersion => vendor::discover_version(host),
        Function::DiscoverCpus => vendor::discover_cpus(host, call),
        Function::SetEvents => Outcome::SetEvents(call.arguments()),
        Function::GetEvents => Outcome::GetEvents,
        Function::PollInterrupts => generic::poll_interrupts(),
        Function::GenericFeatures => generic::features(host, call),
        Function::KickCpu => generic::kick_cpu(host, call),
        Function::ClockPairing => generic::clock_pairing(host, call),
        Function::SendIpi => generic::send_ipi(host, call),
        Function::SchedYield => generic::sched_yield(host, call),
        Function::MapGpaRange => generic::map_gpa_range(host, call),
    }
}

#[cfg(test)]
mod service_tests;
#[cfg(test)]
mod tests;
