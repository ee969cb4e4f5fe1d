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

pub mod psci;
pub mod relay;
pub mod smccc;
pub mod stub;
pub mod table;

use psci::{CpuOnResult, SystemEvent, VcpuPower};
use smccc::{FunctionId, Mitigation, NOT_SUPPORTED, Vulnerability};
use table::{Function, Gate};

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
}

/// Registers that the end of a call writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Results {
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
        }
    }
}

/// What hypercalls need to know of the VM, and the one thing they do to it.
pub trait HypercallHost {
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

/// Answers a call.
///
/// Never fails: a call that is unknown, not enabled for this VM or made in the wrong way is NOT_SUPPORTED.
#[inline]
pub fn dispatch(host: &impl HypercallHost, call: &Call<'_>) -> Outcome {
    if matches!(call.conduit, Conduit::Smc) && call.immediate != 0 {
        return Outcome::ReturnX0(NOT_SUPPORTED as u64);
    }
    match table::find(call.function()) {
        Some(row) => answer(host, call, row),
        None => Outcome::code(NOT_SUPPORTED),
    }
}

/// Answers a call whose function exists, if it exists for this caller. Apart from `dispatch`, so that the way out of
/// that one for an unknown id saves no registers.
#[inline(never)]
fn answer(host: &impl HypercallHost, call: &Call<'_>, row: &table::Row) -> Outcome {
    if !row.gate.is_open(host, call) || (call.aarch32 && row.id.is_64_bit()) {
        return Outcome::code(NOT_SUPPORTED);
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
    }
}

impl Gate {
    /// Whether a function behind this gate exists for this VM and this call.
    #[inline]
    fn is_open(self, host: &impl HypercallHost, call: &Call<'_>) -> bool {
        match self {
            Self::Always => true,
            Self::HvcOnly => matches!(call.conduit, Conduit::Hvc),
            Self::PsciSince(version) => host.psci_version() >= version,
            Self::PsciUntil(version) => host.psci_version() <= version,
        }
    }
}

#[cfg(test)]
mod tests;
