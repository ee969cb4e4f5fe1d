//! The table of hypercalls: one row per function id.
//!
//! Adding a call is adding a row (and an arm where [`Function`] is matched). Rows stand in any order: an index that is
//! computed at build time finds a row, or finds that there is none, in a handful of instructions, because a guest may
//! call anything and the answer "unknown" is as hot as any other.
//!
//! Functions that PSCI defines and KVM does not answer (MIGRATE, NODE_HW_STATE, MEM_PROTECT …) have no row: they are
//! NOT_SUPPORTED as any unknown id is.

use super::psci::Version;
use super::services::Service;
use super::smccc::{FunctionId, Vulnerability};
use super::{Call, Conduit, HypercallHost, PageState};

/// What a function does; 32-bit and 64-bit ids of one function share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Function {
    /// SMCCC_VERSION.
    SmcccVersion,
    /// SMCCC_ARCH_FEATURES.
    ArchFeatures,
    /// SMCCC_ARCH_WORKAROUND_1 to 3.
    Workaround(Vulnerability),
    /// PSCI_VERSION.
    PsciVersion,
    /// PSCI_FEATURES.
    PsciFeatures,
    /// CPU_SUSPEND.
    CpuSuspend,
    /// CPU_OFF.
    CpuOff,
    /// CPU_ON.
    CpuOn,
    /// AFFINITY_INFO.
    AffinityInfo,
    /// MIGRATE_INFO_TYPE.
    MigrateInfoType,
    /// SYSTEM_OFF.
    SystemOff,
    /// SYSTEM_RESET.
    SystemReset,
    /// SYSTEM_RESET2.
    SystemReset2,
    /// SYSTEM_SUSPEND.
    SystemSuspend,
    /// SYSTEM_OFF2.
    SystemOff2,
    /// TRNG_VERSION.
    TrngVersion,
    /// TRNG_FEATURES.
    TrngFeatures,
    /// TRNG_GET_UUID.
    TrngUuid,
    /// TRNG_RND32, TRNG_RND64.
    TrngRandom,
    /// PV_TIME_FEATURES.
    PvTimeFeatures,
    /// PV_TIME_ST.
    PvTimeStolen,
    /// CALL_UID of the vendor hypervisor.
    VendorUid,
    /// FEATURES of the vendor hypervisor.
    VendorFeatures,
    /// PTP.
    Ptp,
    /// HYP_MEMINFO.
    MemoryInformation,
    /// MEM_SHARE, MEM_UNSHARE, MMIO_GUARD.
    SetPageState(PageState),
    /// DISCOVER_IMPL_VER.
    DiscoverVersion,
    /// DISCOVER_IMPL_CPUS.
    DiscoverCpus,
    /// TEST_SET_VCPU_EVENTS.
    SetEvents,
    /// TEST_GET_VCPU_EVENTS.
    GetEvents,
    /// KVM_HC_VAPIC_POLL_IRQ.
    PollInterrupts,
    /// KVM_HC_FEATURES.
    GenericFeatures,
    /// KVM_HC_KICK_CPU.
    KickCpu,
    /// KVM_HC_CLOCK_PAIRING.
    ClockPairing,
    /// KVM_HC_SEND_IPI.
    SendIpi,
    /// KVM_HC_SCHED_YIELD.
    SchedYield,
    /// KVM_HC_MAP_GPA_RANGE.
    MapGpaRange,
}

/// What has to hold for a function to be there at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Nothing.
    Always,
    /// It is called by HVC.
    HvcOnly,
    /// The VM's PSCI version is this one or newer.
    PsciSince(Version),
    /// The VM's PSCI version is this one or older.
    PsciUntil(Version),
    /// The VM has the service.
    Has(Service),
    /// The VM's PSCI version is this one or newer, and it has the service.
    PsciSinceWith(Version, Service),
}

/// Which of the discovery calls knows a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discovery {
    /// None.
    Nowhere,
    /// PSCI_FEATURES, with this answer: the feature flags.
    PsciFeatures(u32),
    /// SMCCC_ARCH_FEATURES, with an answer that depends on the machine.
    ArchFeatures,
    /// TRNG_FEATURES.
    TrngFeatures,
}

/// One function id.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// What x0 holds.
    pub id: FunctionId,
    /// What to do.
    pub function: Function,
    /// When there is such a function.
    pub gate: Gate,
    /// Where its presence can be asked for.
    pub discovery: Discovery,
    /// The specification's name.
    pub name: &'static str,
}

impl Row {
    /// Whether this VM has the function, for this call.
    #[inline]
    pub(super) fn is_there(&self, host: &impl HypercallHost, call: &Call<'_>) -> bool {
        let open = match self.gate {
            Gate::Always => true,
            Gate::HvcOnly => matches!(call.conduit, Conduit::Hvc),
            Gate::PsciSince(version) => host.psci_version() >= version,
            Gate::PsciUntil(version) => host.psci_version() <= version,
            Gate::Has(service) => host.services().has(service),
            Gate::PsciSinceWith(version, service) => host.psci_version() >= version && host.services().has(service),
        };
        open && !(call.aarch32 && self.id.is_64_bit())
    }
}

const fn row(id: u32, function: Function, gate: Gate, discovery: Discovery, name: &'static str) -> Row {
    Row { id: FunctionId(id), function, gate, discovery, name }
}

/// An SMCCC function that is no part of PSCI.
const fn arch(id: u32, function: Function, gate: Gate, discovery: Discovery, name: &'static str) -> Row {
    row(id, function, gate, discovery, name)
}

/// A PSCI function, there since `version`, with no feature flags.
const fn psci(id: u32, function: Function, version: Version, name: &'static str) -> Row {
    row(id, function, Gate::PsciSince(version), Discovery::PsciFeatures(0), name)
}

/// A function of PSCI 0.1 with the private id that KVM gave it. Later versions took these ids away.
const fn psci_0_1(id: u32, function: Function, name: &'static str) -> Row {
    row(id, function, Gate::PsciUntil(Version::V0_1), Discovery::Nowhere, name)
}

/// A TRNG function.
const fn trng(id: u32, function: Function, name: &'static str) -> Row {
    row(id, function, Gate::Has(Service::Trng), Discovery::TrngFeatures, name)
}

/// A function of a hypervisor, standard or vendor's, that comes with a service.
const fn hypervisor(id: u32, function: Function, service: Service, discovery: Discovery, name: &'static str) -> Row {
    row(id, function, Gate::Has(service), discovery, name)
}

/// One of KVM's generic hypercalls.
const fn generic(number: u32, function: Function, gate: Gate, name: &'static str) -> Row {
    row(super::generic::BASE + number, function, gate, Discovery::Nowhere, name)
}

use Discovery::{ArchFeatures, Nowhere, PsciFeatures};
use Gate::{Always, Has, HvcOnly, PsciSinceWith};
use PageState::{Mmio, Private, Shared};
use Service::{
    DiscoverCpus, DiscoverVersion, ProtectedMemory, Ptp, PvTime, SystemSuspend, TestInjection, VendorFeatures,
};
use Version::{V0_2, V1_0, V1_1, V1_3};
use Vulnerability::{SpectreBhb, SpectreV2, SpectreV4};

/// Every function keel answers.
#[rustfmt::skip]
pub static FUNCTIONS: [Row; 51] = [
    // SMCCC, Arm architecture calls (DEN0028, section 7).
    arch(0x8000_0000, Function::SmcccVersion, Always, PsciFeatures(0), "SMCCC_VERSION"),
    arch(0x8000_0001, Function::ArchFeatures, Always, Nowhere, "SMCCC_ARCH_FEATURES"),
    arch(0x8000_8000, Function::Workaround(SpectreV2), HvcOnly, ArchFeatures, "SMCCC_ARCH_WORKAROUND_1"),
    arch(0x8000_7fff, Function::Workaround(SpectreV4), HvcOnly, ArchFeatures, "SMCCC_ARCH_WORKAROUND_2"),
    arch(0x8000_3fff, Function::Workaround(SpectreBhb), HvcOnly, ArchFeatures, "SMCCC_ARCH_WORKAROUND_3"),
    // PSCI (DEN0022, section 5).
    psci(0x8400_0000, Function::PsciVersion, V0_2, "PSCI_VERSION"),
    psci(0x8400_0001, Function::CpuSuspend, V0_2, "CPU_SUSPEND"),
    psci(0xc400_0001, Function::CpuSuspend, V0_2, "CPU_SUSPEND"),
    psci(0x8400_0002, Function::CpuOff, V0_2, "CPU_OFF"),
    psci(0x8400_0003, Function::CpuOn, V0_2, "CPU_ON"),
    psci(0xc400_0003, Function::CpuOn, V0_2, "CPU_ON"),
    psci(0x8400_0004, Function::AffinityInfo, V0_2, "AFFINITY_INFO"),
    psci(0xc400_0004, Function::AffinityInfo, V0_2, "AFFINITY_INFO"),
    psci(0x8400_0006, Function::MigrateInfoType, V0_2, "MIGRATE_INFO_TYPE"),
    psci(0x8400_0008, Function::SystemOff, V0_2, "SYSTEM_OFF"),
    psci(0x8400_0009, Function::SystemReset, V0_2, "SYSTEM_RESET"),
    psci(0x8400_000a, Function::PsciFeatures, V1_0, "PSCI_FEATURES"),
    psci(0x8400_0012, Function::SystemReset2, V1_1, "SYSTEM_RESET2"),
    psci(0xc400_0012, Function::SystemReset2, V1_1, "SYSTEM_RESET2"),
    row(0x8400_000e, Function::SystemSuspend, PsciSinceWith(V1_0, SystemSuspend), PsciFeatures(0), "SYSTEM_SUSPEND"),
    row(0xc400_000e, Function::SystemSuspend, PsciSinceWith(V1_0, SystemSuspend), PsciFeatures(0), "SYSTEM_SUSPEND"),
    // The feature flag, bit 0: HIBERNATE_OFF.
    row(0x8400_0015, Function::SystemOff2, Gate::PsciSince(V1_3), PsciFeatures(1), "SYSTEM_OFF2"),
    row(0xc400_0015, Function::SystemOff2, Gate::PsciSince(V1_3), PsciFeatures(1), "SYSTEM_OFF2"),
    psci_0_1(0x95c1_ba5f, Function::CpuOff, "CPU_OFF"),
    psci_0_1(0x95c1_ba60, Function::CpuOn, "CPU_ON"),
    // TRNG (DEN0098, section 2).
    trng(0x8400_0050, Function::TrngVersion, "TRNG_VERSION"),
    trng(0x8400_0051, Function::TrngFeatures, "TRNG_FEATURES"),
    trng(0x8400_0052, Function::TrngUuid, "TRNG_GET_UUID"),
    trng(0x8400_0053, Function::TrngRandom, "TRNG_RND32"),
    trng(0xc400_0053, Function::TrngRandom, "TRNG_RND64"),
    // PV time (DEN0057, section 3).
    hypervisor(0xc500_0020, Function::PvTimeFeatures, PvTime, ArchFeatures, "PV_TIME_FEATURES"),
    hypervisor(0xc500_0021, Function::PvTimeStolen, PvTime, Nowhere, "PV_TIME_ST"),
    // The vendor hypervisor (Linux, Documentation/virt/kvm/arm/hypercalls.rst).
    hypervisor(0x8600_ff01, Function::VendorUid, VendorFeatures, Nowhere, "VENDOR_HYP_CALL_UID"),
    hypervisor(0x8600_0000, Function::VendorFeatures, VendorFeatures, Nowhere, "VENDOR_HYP_KVM_FEATURES"),
    hypervisor(0x8600_0001, Function::Ptp, Ptp, Nowhere, "VENDOR_HYP_KVM_PTP"),
    hypervisor(0xc600_0002, Function::MemoryInformation, ProtectedMemory, Nowhere, "VENDOR_HYP_KVM_HYP_MEMINFO"),
    hypervisor(0xc600_0003, Function::SetPageState(Shared), ProtectedMemory, Nowhere, "VENDOR_HYP_KVM_MEM_SHARE"),
    hypervisor(0xc600_0004, Function::SetPageState(Private), ProtectedMemory, Nowhere, "VENDOR_HYP_KVM_MEM_UNSHARE"),
    hypervisor(0xc600_0007, Function::SetPageState(Mmio), ProtectedMemory, Nowhere, "VENDOR_HYP_KVM_MMIO_GUARD"),
    hypervisor(0xc600_0040, Function::DiscoverVersion, DiscoverVersion, Nowhere, "VENDOR_HYP_KVM_DISCOVER_IMPL_VER"),
    hypervisor(0xc600_0041, Function::DiscoverCpus, DiscoverCpus, Nowhere, "VENDOR_HYP_KVM_DISCOVER_IMPL_CPUS"),
    // keel's own, for tests: KVM's calls of these names, for the calling vCPU.
    hypervisor(0xc600_0210, Function::SetEvents, TestInjection, Nowhere, "TEST_SET_VCPU_EVENTS"),
    hypervisor(0xc600_0211, Function::GetEvents, TestInjection, Nowhere, "TEST_GET_VCPU_EVENTS"),
    // KVM's generic hypercalls (Linux, uapi linux/kvm_para.h). Number 0 asks what there is, as FEATURES does.
    generic(0, Function::GenericFeatures, Always, "KVM_HC_FEATURES"),
    generic(1, Function::PollInterrupts, Always, "KVM_HC_VAPIC_POLL_IRQ"),
    generic(3, Function::GenericFeatures, Always, "KVM_HC_FEATURES"),
    generic(5, Function::KickCpu, Always, "KVM_HC_KICK_CPU"),
    generic(9, Function::ClockPairing, Always, "KVM_HC_CLOCK_PAIRING"),
    generic(10, Function::SendIpi, Always, "KVM_HC_SEND_IPI"),
    generic(11, Function::SchedYield, Always, "KVM_HC_SCHED_YIELD"),
    generic(12, Function::MapGpaRange, Has(ProtectedMemory), "KVM_HC_MAP_GPA_RANGE"),
];

/// log2 of the number of slots of [`INDEX`].
const SLOT_BITS: u32 = 8;

/// Where each function's row is: `slots[hash(id)]` is the only row that can have that id.
struct Index {
    multiplier: u32,
    slots: [u8; 1 << SLOT_BITS],
}

impl Index {
    const fn slot(id: FunctionId, multiplier: u32) -> usize {
        (id.0.wrapping_mul(multiplier) >> (u32::BITS - SLOT_BITS)) as usize
    }

    /// Tries multipliers until no two ids share a slot. A slot that stays free leads to row 0, whose id differs.
    const fn new(rows: &[Row]) -> Self {
        assert!(rows.len() <= u8::MAX as usize);
        let mut multiplier = 0x9e37_79b1_u32;
        loop {
            let mut slots = [0; 1 << SLOT_BITS];
            let mut taken = [false; 1 << SLOT_BITS];
            let mut row = 0;
            while row < rows.len() {
                let slot = Self::slot(rows[row].id, multiplier);
                if taken[slot] {
                    break;
                }
                taken[slot] = true;
                slots[slot] = row as u8;
                row += 1;
            }
            if row == rows.len() {
                return Self { multiplier, slots };
            }
            multiplier = multiplier.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35e) | 1;
        }
    }
}

static INDEX: Index = Index::new(&FUNCTIONS);

/// The row of a function, or `None` when keel has no such function.
#[inline]
pub fn find(id: FunctionId) -> Option<&'static Row> {
    let row = INDEX.slots.get(Index::slot(id, INDEX.multiplier))?;
    FUNCTIONS.get(usize::from(*row)).filter(|row| row.id.0 == id.0)
}
