//! Structures, numbers and constants are those of Linux's headers, as far as they are the same on the host's architecture.
//! Those of arm64 alone are compared where the oracle's runner is built.

#![cfg(target_os = "linux")]

use core::mem::offset_of;
use keel_kvm::uapi::{self, cap, device, event, exit, ioeventfd, irqfd, memory, mp_state, reg, routing, run};
use kvm_bindings::*;

macro_rules! same_layout {
    ($($ours:ident = $theirs:ident { $($field:ident = $their_field:ident),* })*) => {
        $(
            assert_eq!(size_of::<uapi::$ours>(), size_of::<$theirs>(), stringify!($ours));
            assert_eq!(align_of::<uapi::$ours>(), align_of::<$theirs>(), stringify!($ours));
            $(assert_eq!(
                offset_of!(uapi::$ours, $field),
                offset_of!($theirs, $their_field),
                concat!(stringify!($ours), ".", stringify!($field))
            );)*
        )*
    };
}

#[test]
fn structures() {
    same_layout! {
        UserMemoryRegion = kvm_userspace_memory_region {
            slot = slot, flags = flags, guest_phys_addr = guest_phys_addr, memory_size = memory_size,
            userspace_addr = userspace_addr
        }
        UserMemoryRegion2 = kvm_userspace_memory_region2 {
            slot = slot, guest_memfd_offset = guest_memfd_offset, guest_memfd = guest_memfd, pad1 = pad1, pad2 = pad2
        }
        DirtyLog = kvm_dirty_log { slot = slot, padding1 = padding1 }
        ClearDirtyLog = kvm_clear_dirty_log { slot = slot, num_pages = num_pages, first_page = first_page }
        IrqLevel = kvm_irq_level { level = level }
        Msi = kvm_msi {
            address_lo = address_lo, address_hi = address_hi, data = data, flags = flags, devid = devid, pad = pad
        }
        Irqfd = kvm_irqfd { fd = fd, gsi = gsi, flags = flags, resamplefd = resamplefd, pad = pad }
        IrqRoutingEntry = kvm_irq_routing_entry { gsi = gsi, kind = type_, flags = flags, pad = pad, words = u }
        Ioeventfd = kvm_ioeventfd { datamatch = datamatch, addr = addr, len = len, fd = fd, flags = flags, pad = pad }
        EnableCap = kvm_enable_cap { cap = cap, flags = flags, args = args, pad = pad }
        CreateDevice = kvm_create_device { kind = type_, fd = fd, flags = flags }
        DeviceAttr = kvm_device_attr { flags = flags, group = group, attr = attr, addr = addr }
        OneReg = kvm_one_reg { id = id, addr = addr }
    }
}

#[test]
fn constants() {
    assert_eq!((memory::LOG_DIRTY_PAGES, memory::READONLY), (KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY));
    assert_eq!((irqfd::DEASSIGN, irqfd::RESAMPLE), (KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE));
    for (ours, bit) in [
        (ioeventfd::DATAMATCH, kvm_ioeventfd_flag_nr_datamatch),
        (ioeventfd::PIO, kvm_ioeventfd_flag_nr_pio),
        (ioeventfd::DEASSIGN, kvm_ioeventfd_flag_nr_deassign),
    ] {
        assert_eq!(ours, 1 << bit);
    }
    assert_eq!(
        (routing::IRQCHIP, routing::MSI, routing::VALID_DEVID),
        (KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MSI_VALID_DEVID)
    );
    assert_eq!(offset_of!(uapi::IrqRouting<1>, entries), offset_of!(kvm_irq_routing, entries));
    assert_eq!(mp_state::RUNNABLE, KVM_MP_STATE_RUNNABLE);
    assert_eq!((mp_state::STOPPED, mp_state::SUSPENDED), (KVM_MP_STATE_STOPPED, KVM_MP_STATE_SUSPENDED));
    assert_eq!(device::VGIC_V2, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2);
    assert_eq!(device::VGIC_V3, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3);
    assert_eq!(device::VGIC_ITS, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS);
    assert_eq!(device::TEST, KVM_CREATE_DEVICE_TEST);
    assert_eq!(
        (reg::ARM64, reg::U32, reg::U64, reg::U128),
        (KVM_REG_ARM64, KVM_REG_SIZE_U32, KVM_REG_SIZE_U64, KVM_REG_SIZE_U128)
    );
    assert_eq!(reg::SIZE_SHIFT, KVM_REG_SIZE_SHIFT);
    for (ours, theirs) in [
        (cap::ARM_INJECT_SERROR_ESR, KVM_CAP_ARM_INJECT_SERROR_ESR),
        (cap::ARM_USER_IRQ, KVM_CAP_ARM_USER_IRQ),
        (cap::MANUAL_DIRTY_LOG_PROTECT2, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2),
        (cap::ARM_NISV_TO_USER, KVM_CAP_ARM_NISV_TO_USER),
        (cap::HALT_POLL, KVM_CAP_HALT_POLL),
        (cap::ARM_MTE, KVM_CAP_ARM_MTE),
        (cap::ARM_SYSTEM_SUSPEND, KVM_CAP_ARM_SYSTEM_SUSPEND),
        (exit::HYPERCALL, KVM_EXIT_HYPERCALL),
        (exit::DEBUG, KVM_EXIT_DEBUG),
        (exit::MMIO, KVM_EXIT_MMIO),
        (exit::FAIL_ENTRY, KVM_EXIT_FAIL_ENTRY),
        (exit::INTR, KVM_EXIT_INTR),
        (exit::INTERNAL_ERROR, KVM_EXIT_INTERNAL_ERROR),
        (exit::SYSTEM_EVENT, KVM_EXIT_SYSTEM_EVENT),
        (exit::ARM_NISV, KVM_EXIT_ARM_NISV),
        (event::SHUTDOWN, KVM_SYSTEM_EVENT_SHUTDOWN),
        (event::RESET, KVM_SYSTEM_EVENT_RESET),
        (event::WAKEUP, KVM_SYSTEM_EVENT_WAKEUP),
        (event::SUSPEND, KVM_SYSTEM_EVENT_SUSPEND),
    ] {
        assert_eq!(ours, theirs);
    }
}

#[test]
fn the_page_of_a_run() {
    assert_eq!(run::IMMEDIATE_EXIT, offset_of!(kvm_run, immediate_exit));
    assert_eq!(run::EXIT_REASON, offset_of!(kvm_run, exit_reason));
    assert_eq!(run::UNION, offset_of!(kvm_run, __bindgen_anon_1));
    assert_eq!(run::DEVICE_IRQ_LEVEL, offset_of!(kvm_run, s));
}
