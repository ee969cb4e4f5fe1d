//! Structures and constants of the calls (Linux, uapi `linux/kvm.h`, `asm/kvm.h` of arm64).
//!
//! Names of fields are Linux's. `tests/uapi.rs` compares all of it with what was generated from Linux's headers.

macro_rules! structures {
    ($($(#[$attribute:meta])* $name:ident: $size:literal bytes { $($field:ident: $type:ty,)* })*) => {
        $(
            $(#[$attribute])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
            #[allow(missing_docs, reason = "Linux's names, documented by it (virt/kvm/api.rst)")]
            pub struct $name {
                $(pub $field: $type,)*
            }

            const _: () = assert!(size_of::<$name>() == $size);
        )*
    };
}

structures! {
    /// `struct kvm_userspace_memory_region`.
    UserMemoryRegion: 32 bytes {
        slot: u32,
        flags: u32,
        guest_phys_addr: u64,
        memory_size: u64,
        userspace_addr: u64,
    }

    /// `struct kvm_userspace_memory_region2`.
    UserMemoryRegion2: 160 bytes {
        slot: u32,
        flags: u32,
        guest_phys_addr: u64,
        memory_size: u64,
        userspace_addr: u64,
        guest_memfd_offset: u64,
        guest_memfd: u32,
        pad1: u32,
        pad2: [u64; 14],
    }

    /// `struct kvm_dirty_log`.
    DirtyLog: 16 bytes {
        slot: u32,
        padding1: u32,
        dirty_bitmap: u64,
    }

    /// `struct kvm_clear_dirty_log`.
    ClearDirtyLog: 24 bytes {
        slot: u32,
        num_pages: u32,
        first_page: u64,
        dirty_bitmap: u64,
    }

    /// `struct kvm_irq_level`.
    IrqLevel: 8 bytes {
        irq: u32,
        level: u32,
    }

    /// `struct kvm_msi`.
    Msi: 32 bytes {
        address_lo: u32,
        address_hi: u32,
        data: u32,
        flags: u32,
        devid: u32,
        pad: [u8; 12],
    }

    /// `struct kvm_irqfd`.
    Irqfd: 32 bytes {
        fd: u32,
        gsi: u32,
        flags: u32,
        resamplefd: u32,
        pad: [u8; 16],
    }

    /// `struct kvm_ioeventfd`.
    Ioeventfd: 64 bytes {
        datamatch: u64,
        addr: u64,
        len: u32,
        fd: u32,
        flags: u32,
        pad: [u32; 9],
    }

    /// `struct kvm_irq_routing_entry`, whose union is words: `irqchip` and, in the upper half, `pin`; or an address, and data
    /// with `devid` above it.
    IrqRoutingEntry: 48 bytes {
        gsi: u32,
        kind: u32,
        flags: u32,
        pad: u32,
        words: [u64; 4],
    }

    /// `struct kvm_enable_cap`.
    EnableCap: 104 bytes {
        cap: u32,
        flags: u32,
        args: [u64; 4],
        pad: [u64; 8],
    }

    /// `struct kvm_create_device`.
    CreateDevice: 12 bytes {
        kind: u32,
        fd: u32,
        flags: u32,
    }

    /// `struct kvm_device_attr`.
    DeviceAttr: 24 bytes {
        flags: u32,
        group: u32,
        attr: u64,
        addr: u64,
    }

    /// `struct kvm_arm_device_addr`.
    DeviceAddr: 16 bytes {
        id: u64,
        addr: u64,
    }

    /// `struct kvm_arm_counter_offset`.
    CounterOffset: 16 bytes {
        counter_offset: u64,
        reserved: u64,
    }

    /// `struct reg_mask_range`.
    RegMaskRange: 64 bytes {
        addr: u64,
        range: u32,
        reserved: [u32; 13],
    }

    /// `struct kvm_smccc_filter`.
    SmcccFilter: 24 bytes {
        base: u32,
        nr_functions: u32,
        action: u8,
        pad: [u8; 15],
    }

    /// `struct kvm_vcpu_init`.
    VcpuInit: 32 bytes {
        target: u32,
        features: [u32; 7],
    }

    /// `struct kvm_one_reg`.
    OneReg: 16 bytes {
        id: u64,
        addr: u64,
    }

    /// `struct kvm_vcpu_events`.
    VcpuEvents: 64 bytes {
        serror_pending: u8,
        serror_has_esr: u8,
        ext_dabt_pending: u8,
        pad: [u8; 5],
        serror_esr: u64,
        reserved: [u32; 12],
    }

    /// `struct kvm_guest_debug`.
    GuestDebug: 520 bytes {
        control: u32,
        pad: u32,
        dbg_bcr: [u64; 16],
        dbg_bvr: [u64; 16],
        dbg_wcr: [u64; 16],
        dbg_wvr: [u64; 16],
    }

    /// `struct kvm_pmu_event_filter`.
    PmuEventFilter: 8 bytes {
        base_event: u16,
        nevents: u16,
        action: u8,
        pad: [u8; 3],
    }
}

/// `struct kvm_irq_routing`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "Linux's names, documented by it (virt/kvm/api.rst)")]
pub struct IrqRouting<const N: usize> {
    pub nr: u32,
    pub flags: u32,
    pub entries: [IrqRoutingEntry; N],
}

/// Bits of [`UserMemoryRegion::flags`].
pub mod memory {
    /// KVM_MEM_LOG_DIRTY_PAGES.
    pub const LOG_DIRTY_PAGES: u32 = 1 << 0;
    /// KVM_MEM_READONLY.
    pub const READONLY: u32 = 1 << 1;
}

/// Bits of [`Irqfd::flags`].
pub mod irqfd {
    /// KVM_IRQFD_FLAG_DEASSIGN.
    pub const DEASSIGN: u32 = 1 << 0;
    /// KVM_IRQFD_FLAG_RESAMPLE.
    pub const RESAMPLE: u32 = 1 << 1;
}

/// Types of [`IrqRoutingEntry`], and a bit of their flags.
pub mod routing {
    /// KVM_IRQ_ROUTING_IRQCHIP.
    pub const IRQCHIP: u32 = 1;
    /// KVM_IRQ_ROUTING_MSI.
    pub const MSI: u32 = 2;
    /// KVM_MSI_VALID_DEVID.
    pub const VALID_DEVID: u32 = 1 << 0;
}

/// Bits of [`Ioeventfd::flags`].
pub mod ioeventfd {
    /// KVM_IOEVENTFD_FLAG_DATAMATCH.
    pub const DATAMATCH: u32 = 1 << 0;
    /// KVM_IOEVENTFD_FLAG_PIO.
    pub const PIO: u32 = 1 << 1;
    /// KVM_IOEVENTFD_FLAG_DEASSIGN.
    pub const DEASSIGN: u32 = 1 << 2;
}

/// Bits of [`VcpuInit::features`], word 0.
pub mod feature {
    /// KVM_ARM_VCPU_POWER_OFF.
    pub const POWER_OFF: u32 = 1 << 0;
    /// KVM_ARM_VCPU_EL1_32BIT.
    pub const EL1_32BIT: u32 = 1 << 1;
    /// KVM_ARM_VCPU_PSCI_0_2.
    pub const PSCI_0_2: u32 = 1 << 2;
    /// KVM_ARM_VCPU_PMU_V3.
    pub const PMU_V3: u32 = 1 << 3;
    /// KVM_ARM_VCPU_SVE.
    pub const SVE: u32 = 1 << 4;
    /// KVM_ARM_VCPU_PTRAUTH_ADDRESS.
    pub const PTRAUTH_ADDRESS: u32 = 1 << 5;
    /// KVM_ARM_VCPU_PTRAUTH_GENERIC.
    pub const PTRAUTH_GENERIC: u32 = 1 << 6;
}

/// KVM_ARM_TARGET_GENERIC_V8.
pub const TARGET_GENERIC_V8: u32 = 5;

/// KVM_MP_STATE_*.
pub mod mp_state {
    /// KVM_MP_STATE_RUNNABLE.
    pub const RUNNABLE: u32 = 0;
    /// KVM_MP_STATE_STOPPED.
    pub const STOPPED: u32 = 5;
    /// KVM_MP_STATE_SUSPENDED.
    pub const SUSPENDED: u32 = 10;
}

/// Device types.
pub mod device {
    /// KVM_DEV_TYPE_ARM_VGIC_V2.
    pub const VGIC_V2: u32 = 5;
    /// KVM_DEV_TYPE_ARM_VGIC_V3.
    pub const VGIC_V3: u32 = 7;
    /// KVM_DEV_TYPE_ARM_VGIC_ITS.
    pub const VGIC_ITS: u32 = 8;
    /// KVM_CREATE_DEVICE_TEST, a flag.
    pub const TEST: u32 = 1;
}

/// Groups of the attributes of a vGIC, and attributes of two of them.
pub mod vgic {
    /// KVM_DEV_ARM_VGIC_GRP_ADDR.
    pub const ADDR: u32 = 0;
    /// KVM_DEV_ARM_VGIC_GRP_DIST_REGS.
    pub const DIST_REGS: u32 = 1;
    /// KVM_DEV_ARM_VGIC_GRP_CPU_REGS.
    pub const CPU_REGS: u32 = 2;
    /// KVM_DEV_ARM_VGIC_GRP_NR_IRQS.
    pub const NR_IRQS: u32 = 3;
    /// KVM_DEV_ARM_VGIC_GRP_CTRL.
    pub const CTRL: u32 = 4;
    /// KVM_DEV_ARM_VGIC_GRP_REDIST_REGS.
    pub const REDIST_REGS: u32 = 5;
    /// KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS.
    pub const CPU_SYSREGS: u32 = 6;
    /// KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO.
    pub const LEVEL_INFO: u32 = 7;
    /// KVM_DEV_ARM_VGIC_GRP_ITS_REGS.
    pub const ITS_REGS: u32 = 8;
    /// KVM_VGIC_V2_ADDR_TYPE_DIST.
    pub const V2_DIST: u64 = 0;
    /// KVM_VGIC_V2_ADDR_TYPE_CPU.
    pub const V2_CPU: u64 = 1;
    /// KVM_VGIC_V3_ADDR_TYPE_DIST.
    pub const V3_DIST: u64 = 2;
    /// KVM_VGIC_V3_ADDR_TYPE_REDIST.
    pub const V3_REDIST: u64 = 3;
    /// KVM_VGIC_ITS_ADDR_TYPE.
    pub const ITS: u64 = 4;
    /// KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION.
    pub const V3_REDIST_REGION: u64 = 5;
    /// KVM_DEV_ARM_VGIC_CTRL_INIT.
    pub const INIT: u64 = 0;
}

/// Groups of the attributes of a vCPU.
pub mod vcpu_group {
    /// KVM_ARM_VCPU_PMU_V3_CTRL.
    pub const PMU: u32 = 0;
    /// KVM_ARM_VCPU_TIMER_CTRL.
    pub const TIMER: u32 = 1;
    /// KVM_ARM_VCPU_PVTIME_CTRL.
    pub const PVTIME: u32 = 2;
}

/// Parts of register ids.
pub mod reg {
    /// KVM_REG_ARM64.
    pub const ARM64: u64 = 0x60 << 56;
    /// KVM_REG_SIZE_U32.
    pub const U32: u64 = 2 << 52;
    /// KVM_REG_SIZE_U64.
    pub const U64: u64 = 3 << 52;
    /// KVM_REG_SIZE_U128.
    pub const U128: u64 = 4 << 52;
    /// Where the size is: its logarithm.
    pub const SIZE_SHIFT: u32 = 52;
    /// KVM_REG_ARM_CORE.
    pub const CORE: u64 = 0x10 << 16;
    /// KVM_REG_ARM_DEMUX.
    pub const DEMUX: u64 = 0x11 << 16;
    /// KVM_REG_ARM64_SYSREG.
    pub const SYSREG: u64 = 0x13 << 16;
    /// KVM_REG_ARM_FW.
    pub const FIRMWARE: u64 = 0x14 << 16;
    /// KVM_REG_ARM64_SVE.
    pub const SVE: u64 = 0x15 << 16;
    /// KVM_REG_ARM_FW_FEAT_BMAP.
    pub const BITMAPS: u64 = 0x16 << 16;

    /// X0 to X30.
    pub const fn x(n: u64) -> u64 {
        ARM64 | U64 | CORE | (2 * n)
    }
    /// SP_EL0.
    pub const SP: u64 = ARM64 | U64 | CORE | 0x3e;
    /// The program counter.
    pub const PC: u64 = ARM64 | U64 | CORE | 0x40;
    /// PSTATE.
    pub const PSTATE: u64 = ARM64 | U64 | CORE | 0x42;

    /// A system register by op0, op1, CRn, CRm, op2.
    pub const fn system(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
        ARM64 | U64 | SYSREG | op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
    }
}

/// Capabilities.
pub mod cap {
    /// KVM_CAP_ARM_INJECT_SERROR_ESR; named KVM_CAP_ARM_SET_SERROR_ESR before it was released.
    pub const ARM_INJECT_SERROR_ESR: u32 = 158;
    /// KVM_CAP_ARM_USER_IRQ.
    pub const ARM_USER_IRQ: u32 = 144;
    /// KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.
    pub const MANUAL_DIRTY_LOG_PROTECT2: u32 = 168;
    /// KVM_CAP_ARM_NISV_TO_USER.
    pub const ARM_NISV_TO_USER: u32 = 177;
    /// KVM_CAP_HALT_POLL.
    pub const HALT_POLL: u32 = 182;
    /// KVM_CAP_ARM_MTE.
    pub const ARM_MTE: u32 = 205;
    /// KVM_CAP_ARM_SYSTEM_SUSPEND.
    pub const ARM_SYSTEM_SUSPEND: u32 = 216;
}

/// KVM_EXIT_*.
pub mod exit {
    /// KVM_EXIT_HYPERCALL.
    pub const HYPERCALL: u32 = 3;
    /// KVM_EXIT_DEBUG.
    pub const DEBUG: u32 = 4;
    /// KVM_EXIT_MMIO.
    pub const MMIO: u32 = 6;
    /// KVM_EXIT_FAIL_ENTRY.
    pub const FAIL_ENTRY: u32 = 9;
    /// KVM_EXIT_INTR.
    pub const INTR: u32 = 10;
    /// KVM_EXIT_INTERNAL_ERROR.
    pub const INTERNAL_ERROR: u32 = 17;
    /// KVM_EXIT_SYSTEM_EVENT.
    pub const SYSTEM_EVENT: u32 = 24;
    /// KVM_EXIT_ARM_NISV.
    pub const ARM_NISV: u32 = 28;
}

/// KVM_SYSTEM_EVENT_*.
pub mod event {
    /// KVM_SYSTEM_EVENT_SHUTDOWN.
    pub const SHUTDOWN: u32 = 1;
    /// KVM_SYSTEM_EVENT_RESET.
    pub const RESET: u32 = 2;
    /// KVM_SYSTEM_EVENT_WAKEUP.
    pub const WAKEUP: u32 = 4;
    /// KVM_SYSTEM_EVENT_SUSPEND.
    pub const SUSPEND: u32 = 5;
}

/// Offsets in `struct kvm_run`.
pub mod run {
    /// `immediate_exit`, a byte.
    pub const IMMEDIATE_EXIT: usize = 1;
    /// `exit_reason`.
    pub const EXIT_REASON: usize = 8;
    /// The union of what exits say.
    pub const UNION: usize = 32;
    /// `s.regs.device_irq_level`.
    pub const DEVICE_IRQ_LEVEL: usize = 304;
}
