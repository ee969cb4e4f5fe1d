//! Constants and structures of KVM's userspace API, as Linux numbers them (uapi `linux/kvm.h`, `asm/kvm.h` for arm64).

/// KVM_ARM_TARGET_GENERIC_V8.
pub const TARGET_GENERIC_V8: u32 = 5;

/// Targets that name a kind of CPU, with the implementer and part number of its MIDR_EL1: KVM_ARM_TARGET_AEM_V8,
/// FOUNDATION_V8, CORTEX_A57, XGENE_POTENZA, CORTEX_A53.
pub const TARGETS: [(u32, u8, u16); 5] =
    [(0, 0x41, 0xd0f), (1, 0x41, 0xd00), (2, 0x41, 0xd07), (3, 0x50, 0), (4, 0x41, 0xd03)];

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
    /// The highest known bit: those of nested virtualisation came with Linux 6.16.
    pub const LAST: u32 = PTRAUTH_GENERIC;
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
    /// KVM_MP_STATE_SUSPENDED: it waits to be woken up, and whoever runs it is told when it is.
    Suspended = 10,
}

impl MpState {
    /// The state with this number, if a vCPU can have it.
    pub const fn new(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Runnable),
            5 => Some(Self::Stopped),
            10 => Some(Self::Suspended),
            _ => None,
        }
    }
}

/// KVM_ARM_VCPU_FINALIZE: KVM_ARM_VCPU_SVE, the one feature that can need it.
pub const FINALIZE_SVE: i32 = 4;

/// `struct kvm_regs`, 864 bytes: indices of core registers are offsets in it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Regs {
    /// `regs.regs`: x0-x30.
    pub x: [u64; 31],
    /// `regs.sp`: SP_EL0.
    pub sp: u64,
    /// `regs.pc`.
    pub pc: u64,
    /// `regs.pstate`.
    pub pstate: u64,
    /// `sp_el1`.
    pub sp_el1: u64,
    /// `elr_el1`.
    pub elr_el1: u64,
    /// `spsr`: SPSR_EL1 (AArch32's SPSR_svc), SPSR_abt, SPSR_und, SPSR_irq, SPSR_fiq.
    pub spsr: [u64; 5],
    /// `fp_regs.vregs`: V0-V31.
    pub v: [u128; 32],
    /// `fp_regs.fpsr`.
    pub fpsr: u32,
    /// `fp_regs.fpcr`.
    pub fpcr: u32,
    /// Zero.
    pub reserved: [u32; 2],
}

const _: () = assert!(size_of::<Regs>() == 864);

/// `struct reg_mask_range`, 64 bytes: KVM_ARM_GET_REG_WRITABLE_MASKS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegMaskRange {
    /// Where [`FEATURE_ID_RANGE_SIZE`] words go.
    pub addr: u64,
    /// KVM_ARM_FEATURE_ID_RANGE, which is 0.
    pub range: u32,
    /// Zero.
    pub reserved: [u32; 13],
}

const _: () = assert!(size_of::<RegMaskRange>() == 64);

/// KVM_ARM_FEATURE_ID_RANGE_SIZE: op0 = 3, op1 0, 1 or 3, CRn = 0, each CRm and op2.
pub const FEATURE_ID_RANGE_SIZE: usize = 192;

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
    /// KVM_DEV_ARM_VGIC_GRP_CPU_REGS.
    pub const GROUP_CPU_REGS: u32 = 2;
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
    /// KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION.
    pub const ADDR_V3_REDIST_REGION: u64 = 5;
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

/// ONE_REG: ids of registers (`KVM_REG_ARM64 | size | group | number`).
pub mod reg {
    use super::Regs;
    use core::mem::offset_of;

    /// KVM_REG_ARM64.
    pub const ARM64: u64 = 0x6000_0000_0000_0000;
    /// KVM_REG_SIZE_SHIFT: where log2 of the size in bytes is.
    pub const SIZE_SHIFT: u32 = 52;
    /// KVM_REG_SIZE_MASK.
    pub const SIZE_MASK: u64 = 0xf << SIZE_SHIFT;
    /// KVM_REG_SIZE_U32.
    pub const U32: u64 = 2 << SIZE_SHIFT;
    /// KVM_REG_SIZE_U64.
    pub const U64: u64 = 3 << SIZE_SHIFT;
    /// KVM_REG_SIZE_U128.
    pub const U128: u64 = 4 << SIZE_SHIFT;
    /// KVM_REG_SIZE_U256.
    pub const U256: u64 = 5 << SIZE_SHIFT;
    /// KVM_REG_SIZE_U512.
    pub const U512: u64 = 6 << SIZE_SHIFT;
    /// KVM_REG_SIZE_U2048.
    pub const U2048: u64 = 8 << SIZE_SHIFT;
    /// KVM_REG_ARM_COPROC_MASK: the group.
    pub const GROUP_MASK: u64 = 0xfff << 16;
    /// KVM_REG_ARM_CORE.
    pub const CORE: u64 = 0x10 << 16;
    /// KVM_REG_ARM_DEMUX.
    pub const DEMUX: u64 = 0x11 << 16;
    /// KVM_REG_ARM64_SYSREG.
    pub const SYSREG: u64 = 0x13 << 16;
    /// KVM_REG_ARM_FW.
    pub const FW: u64 = 0x14 << 16;
    /// KVM_REG_ARM64_SVE.
    pub const SVE: u64 = 0x15 << 16;
    /// KVM_REG_ARM_FW_FEAT_BMAP.
    pub const FW_FEAT_BMAP: u64 = 0x16 << 16;

    /// Any of the core group: 64 bits, number = byte offset in [`Regs`] / 4.
    const CORE_U64: u64 = ARM64 | U64 | CORE;

    /// Xn.
    pub const fn x(n: u64) -> u64 {
        CORE_U64 + 2 * n
    }

    /// PC.
    pub const PC: u64 = CORE_U64 + offset_of!(Regs, pc) as u64 / 4;
    /// PSTATE.
    pub const PSTATE: u64 = CORE_U64 + offset_of!(Regs, pstate) as u64 / 4;

    /// KVM_REG_ARM_TIMER_CTL.
    pub const TIMER_CTL: u64 = ARM64 | U64 | SYSREG | 0xdf19;
    /// KVM_REG_ARM_TIMER_CVAL: by mistake CNTVCT_EL0's encoding.
    pub const TIMER_CVAL: u64 = ARM64 | U64 | SYSREG | 0xdf02;
    /// KVM_REG_ARM_TIMER_CNT: by mistake CNTV_CVAL_EL0's encoding.
    pub const TIMER_CNT: u64 = ARM64 | U64 | SYSREG | 0xdf1a;
    /// KVM_REG_ARM_PTIMER_CTL.
    pub const PTIMER_CTL: u64 = ARM64 | U64 | SYSREG | 0xdf11;
    /// KVM_REG_ARM_PTIMER_CVAL.
    pub const PTIMER_CVAL: u64 = ARM64 | U64 | SYSREG | 0xdf12;
    /// KVM_REG_ARM_PTIMER_CNT.
    pub const PTIMER_CNT: u64 = ARM64 | U64 | SYSREG | 0xdf01;
}
