//! Services: which of the optional calls a VM has.
//!
//! KVM lets whoever builds a VM take calls away through the pseudo-registers KVM_REG_ARM_STD_BMAP,
//! KVM_REG_ARM_STD_HYP_BMAP, KVM_REG_ARM_VENDOR_HYP_BMAP and KVM_REG_ARM_VENDOR_HYP_BMAP_2 (Linux,
//! Documentation/virt/kvm/arm/hypercalls.rst), and give others by capability. [`Services`] is that choice; the table's
//! gates ask it.

/// One service, the unit in which calls are given and taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// TRNG: STD_BMAP bit 0.
    Trng,
    /// PV time: STD_HYP_BMAP bit 0.
    PvTime,
    /// The vendor's CALL_UID and FEATURES: VENDOR_HYP_BMAP bit 0.
    VendorFeatures,
    /// PTP: VENDOR_HYP_BMAP bit 1.
    Ptp,
    /// DISCOVER_IMPL_VER: VENDOR_HYP_BMAP_2 bit 0.
    DiscoverVersion,
    /// DISCOVER_IMPL_CPUS: VENDOR_HYP_BMAP_2 bit 1.
    DiscoverCpus,
    /// SYSTEM_SUSPEND: KVM_CAP_ARM_SYSTEM_SUSPEND.
    SystemSuspend,
    /// The page states of protected guests: HYP_MEMINFO, MEM_SHARE, MEM_UNSHARE, MMIO_GUARD, KVM_HC_MAP_GPA_RANGE.
    ProtectedMemory,
    /// The test calls by which a guest makes errors pending for itself.
    TestInjection,
}

/// The services of one VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Services {
    /// KVM_REG_ARM_STD_BMAP.
    pub standard: u64,
    /// KVM_REG_ARM_STD_HYP_BMAP.
    pub standard_hypervisor: u64,
    /// KVM_REG_ARM_VENDOR_HYP_BMAP.
    pub vendor: u64,
    /// KVM_REG_ARM_VENDOR_HYP_BMAP_2.
    pub vendor_2: u64,
    /// KVM_CAP_ARM_SYSTEM_SUSPEND was enabled.
    pub system_suspend: bool,
    /// The VM is built as a protected guest.
    pub protected_memory: bool,
    /// The VM is there to test how errors reach it.
    pub test_injection: bool,
}

impl Services {
    /// What a VM has unless told otherwise.
    pub const DEFAULT: Self = Self {
        standard: 1,
        standard_hypervisor: 1,
        vendor: 3,
        vendor_2: 0,
        system_suspend: false,
        protected_memory: false,
        test_injection: false,
    };

    /// Everything there is: what the bitmaps may hold.
    pub const ALL: Self = Self {
        standard: 1,
        standard_hypervisor: 1,
        vendor: 3,
        vendor_2: 3,
        system_suspend: true,
        protected_memory: true,
        test_injection: true,
    };

    /// Nothing.
    pub const NONE: Self = Self {
        standard: 0,
        standard_hypervisor: 0,
        vendor: 0,
        vendor_2: 0,
        system_suspend: false,
        protected_memory: false,
        test_injection: false,
    };

    /// Whether the VM has a service.
    #[inline]
    pub const fn has(&self, service: Service) -> bool {
        match service {
            Service::Trng => self.standard & 1 != 0,
            Service::PvTime => self.standard_hypervisor & 1 != 0,
            Service::VendorFeatures => self.vendor & 1 != 0,
            Service::Ptp => self.vendor & 2 != 0,
            Service::DiscoverVersion => self.vendor_2 & 1 != 0,
            Service::DiscoverCpus => self.vendor_2 & 2 != 0,
            Service::SystemSuspend => self.system_suspend,
            Service::ProtectedMemory => self.protected_memory,
            Service::TestInjection => self.test_injection,
        }
    }
}
