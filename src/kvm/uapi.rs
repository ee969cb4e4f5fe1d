//! Constants and structures of KVM's userspace API, as Linux numbers them (uapi `linux/kvm.h`, `asm/kvm.h` for arm64).

/// KVM_ARM_TARGET_GENERIC_V8.
pub const TARGET_GENERIC_V8: u32 = 5;

/// Bits of `VcpuInit::features[0]`.
pub mod feature {
    /// Start the vCPU stopped.
    pub const POWER_OFF: u32 = 0;
    /// EL1 in AArch32.
    pub const EL1_32BIT: u32 = 1;
    /// PSCI 0.2 or newer.
    pub const PSCI_0_2: u32 = 2;
    /// PMUv3.
    pub const PMU_V3: u32 = 3;
    /// SVE.
    pub const SVE: u32 = 4;
    /// Pointer authentication, addresses.
    pub const PTRAUTH_ADDRESS: u32 = 5;
    /// Pointer authentication, generic.
    pub const PTRAUTH_GENERIC: u32 = 6;
    /// The highest known bit.
    pub const LAST: u32 = 7;
}

/// `struct kvm_vcpu_init`, 32 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuInit {
    /// [`TARGET_GENERIC_V8`].
    pub target: u32,
    /// Feature bits ([`feature`]).
    pub features: [u32; 7],
}

const _: () = assert!(size_of::<VcpuInit>() == 32);

/// `struct kvm_smccc_filter`, 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SmcccFilter {
    /// First function id.
    pub base: u32,
    /// How many.
    pub nr_functions: u32,
    /// KVM_SMCCC_FILTER_HANDLE (0), DENY (1), FWD_TO_USER (2).
    pub action: u8,
    /// Zero.
    pub pad: [u8; 15],
}

const _: () = assert!(size_of::<SmcccFilter>() == 24);

/// `struct kvm_vcpu_events` of arm64, 64 bytes. Any byte that is not zero is true.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuEvents {
    /// A virtual SError is pending.
    pub serror_pending: u8,
    /// [`serror_esr`](Self::serror_esr) says its syndrome.
    pub serror_has_esr: u8,
    /// A synchronous external abort is to be taken.
    pub ext_dabt_pending: u8,
    /// Zero.
    pub pad: [u8; 5],
    /// Bits 24:0 of ESR_EL1 when the SError is taken.
    pub serror_esr: u64,
    /// Zero.
    pub reserved: [u32; 12],
}

impl VcpuEvents {
    /// From the structure's first two words, and what `reserved` begins with.
    pub fn from_words([first, esr, rest]: [u64; 3]) -> Self {
        let [serror_pending, serror_has_esr, ext_dabt_pending, pad @ ..] = first.to_le_bytes();
        let mut reserved = [0; 12];
        (reserved[0], reserved[1]) = (rest as u32, (rest >> 32) as u32);
        Self { serror_pending, serror_has_esr, ext_dabt_pending, pad, serror_esr: esr, reserved }
    }

    /// The structure's first two words.
    pub fn words(&self) -> [u64; 2] {
        let [a, b, c, d, e] = self.pad;
        let first = [self.serror_pending, self.serror_has_esr, self.ext_dabt_pending, a, b, c, d, e];
        [u64::from_le_bytes(first), self.serror_esr]
    }
}

const _: () = assert!(size_of::<VcpuEvents>() == 64 && core::mem::offset_of!(VcpuEvents, serror_esr) == 8);
/// `struct kvm_pmu_event_filter`, 8 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmuEventFilter {
    /// First event.
    pub base_event: u16,
    /// How many.
    pub nevents: u16,
    /// KVM_PMU_EVENT_ALLOW (0), DENY (1).
    pub action: u8,
    /// Not looked at.
    pub pad: [u8; 3],
}

const _: () = assert!(size_of::<PmuEventFilter>() == 8);

impl PmuEventFilter {
    /// The structure whose bytes these are, in the order of memory.
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        let [b0, b1, n0, n1, action, pad @ ..] = bytes;
        Self { base_event: u16::from_le_bytes([b0, b1]), nevents: u16::from_le_bytes([n0, n1]), action, pad }
    }
}

/// `struct kvm_arm_counter_offset`, 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterOffset {
    /// What the guest's counters are behind the machine's, in ticks.
    pub counter_offset: u64,
    /// Zero.
    pub reserved: u64,
}

const _: () = assert!(size_of::<CounterOffset>() == 16);

/// KVM_GET_MP_STATE, KVM_SET_MP_STATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MpState {
    /// KVM_MP_STATE_RUNNABLE.
    Runnable = 0,
    /// KVM_MP_STATE_STOPPED: switched off through PSCI.
    Stopped = 5,
}

/// `kvm_create_device.type`: ARM_VGIC_V2.
pub const DEVICE_ARM_VGIC_V2: u32 = 5;
/// `kvm_create_device.type`: ARM_VGIC_V3.
pub const DEVICE_ARM_VGIC_V3: u32 = 7;

/// `kvm_create_device.type`: ARM_VGIC_ITS.
pub const DEVICE_ARM_VGIC_ITS: u32 = 8;

/// Groups and attributes of a vCPU.
pub mod vcpu {
    /// KVM_ARM_VCPU_PMU_V3_CTRL.
    pub const GROUP_PMU: u32 = 0;
    /// KVM_ARM_VCPU_PMU_V3_IRQ.
    pub const PMU_IRQ: u64 = 0;
    /// KVM_ARM_VCPU_PMU_V3_INIT.
    pub const PMU_INIT: u64 = 1;
    /// KVM_ARM_VCPU_PMU_V3_FILTER.
    pub const PMU_FILTER: u64 = 2;
    /// KVM_ARM_VCPU_PMU_V3_SET_PMU.
    pub const PMU_SET_PMU: u64 = 3;
    /// KVM_ARM_VCPU_TIMER_CTRL: attributes are the timers, 0 to 3.
    pub const GROUP_TIMER: u32 = 1;
    /// KVM_ARM_VCPU_PVTIME_CTRL.
    pub const GROUP_PVTIME: u32 = 2;
    /// KVM_ARM_VCPU_PVTIME_IPA.
    pub const PVTIME_IPA: u64 = 0;
}

/// Groups and attributes of the vGIC device.
pub mod vgic {
    /// KVM_DEV_ARM_VGIC_GRP_ADDR.
    pub const GROUP_ADDR: u32 = 0;
    /// KVM_DEV_ARM_VGIC_GRP_DIST_REGS.
    pub const GROUP_DIST_REGS: u32 = 1;
    /// KVM_DEV_ARM_VGIC_GRP_NR_IRQS.
    pub const GROUP_NR_IRQS: u32 = 3;
    /// KVM_DEV_ARM_VGIC_GRP_CTRL.
    pub const GROUP_CTRL: u32 = 4;
    /// KVM_VGIC_V2_ADDR_TYPE_DIST.
    pub const ADDR_V2_DIST: u64 = 0;
    /// KVM_VGIC_V2_ADDR_TYPE_CPU.
    pub const ADDR_V2_CPU: u64 = 1;
    /// KVM_DEV_ARM_VGIC_GRP_REDIST_REGS.
    pub const GROUP_REDIST_REGS: u32 = 5;
    /// KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS.
    pub const GROUP_CPU_SYSREGS: u32 = 6;
    /// KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO.
    pub const GROUP_LEVEL_INFO: u32 = 7;
    /// KVM_DEV_ARM_VGIC_GRP_ITS_REGS.
    pub const GROUP_ITS_REGS: u32 = 8;
    /// KVM_VGIC_V3_ADDR_TYPE_DIST.
    pub const ADDR_V3_DIST: u64 = 2;
    /// KVM_VGIC_V3_ADDR_TYPE_REDIST.
    pub const ADDR_V3_REDIST: u64 = 3;
    /// KVM_VGIC_ITS_ADDR_TYPE.
    pub const ADDR_ITS: u64 = 4;
    /// KVM_DEV_ARM_VGIC_CTRL_INIT.
    pub const CTRL_INIT: u64 = 0;
    /// Bytes of a GICv2's distributor.
    pub const V2_DIST_SIZE: u64 = 0x1000;
    /// Bytes of a GICv2's CPU interface.
    pub const V2_CPU_SIZE: u64 = 0x2000;
    /// What addresses of a GICv2 are multiples of.
    pub const V2_ALIGNMENT: u64 = 0x1000;
    /// What addresses of a GICv3 are multiples of.
    pub const V3_ALIGNMENT: u64 = 0x1_0000;
    /// KVM_DEV_ARM_ITS_SAVE_TABLES.
    pub const CTRL_ITS_SAVE_TABLES: u64 = 1;
    /// KVM_DEV_ARM_ITS_RESTORE_TABLES.
    pub const CTRL_ITS_RESTORE_TABLES: u64 = 2;
    /// KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES.
    pub const CTRL_SAVE_PENDING_TABLES: u64 = 3;
    /// KVM_DEV_ARM_ITS_CTRL_RESET.
    pub const CTRL_ITS_RESET: u64 = 4;
    /// Bytes of the distributor.
    pub const DIST_SIZE: u64 = 0x1_0000;
    /// Bytes of one redistributor.
    pub const REDIST_SIZE: u64 = 0x2_0000;
    /// KVM_VGIC_V3_ITS_SIZE: bytes of the ITS.
    pub const ITS_SIZE: u64 = 0x2_0000;
}

/// ONE_REG: ids of registers (`KVM_REG_ARM64 | size | group | index`).
pub mod reg {
    /// Any of the core group: 64 bits, index = byte offset in `struct kvm_regs` / 4.
    const CORE_U64: u64 = 0x6030_0000_0010_0000;

    /// Xn.
    pub const fn x(n: u64) -> u64 {
        CORE_U64 + 2 * n
    }

    /// PC.
    pub const PC: u64 = CORE_U64 + 0x40;
    /// PSTATE.
    pub const PSTATE: u64 = CORE_U64 + 0x42;
    /// The part of an id that must be this for arm64 registers, with the size taken out.
    pub const ARM64: u64 = 0x6000_0000;
}
