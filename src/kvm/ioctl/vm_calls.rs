//! KVM's calls on a VM: decoding, and nothing else.

use super::{
    super::{
        Errno,
        bindings::Irqfd,
        ioeventfd::Ioeventfd,
        memory::Slots,
        routing::{self, Entry},
        slots::MemoryRegion,
        uapi::{CounterOffset, DEVICE_ARM_VGIC_ITS, MpState, RegMaskRange, SmcccFilter, TARGET_GENERIC_V8},
    },
    api::{Api, Device, Object, UserVcpu, UserVm},
    attribute::Attribute,
    capability::{self, Abilities},
    numbers::Call,
    user::{copy_in, copy_out, field32, field64},
};
use crate::{mm::frame, vdev::platform::MAX_VCPUS};
use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::Ordering::SeqCst;

/// Group and attribute of KVM_ARM_VM_SMCCC_FILTER.
const VM_SMCCC: (u32, u64) = (0, 0);
/// KVM_CREATE_DEVICE_TEST.
const DEVICE_TEST: u32 = 1;
/// KVM_MSI_VALID_DEVID.
const MSI_VALID_DEVID: u32 = 1;

/// Capabilities that KVM_ENABLE_CAP takes.
mod cap {
    pub const MANUAL_DIRTY_LOG_PROTECT2: u32 = 168;
    pub const NISV_TO_USER: u32 = 177;
    pub const HALT_POLL: u32 = 182;
    pub const SYSTEM_SUSPEND: u32 = 216;
}

/// `struct kvm_userspace_memory_region`, and the first half of its successor.
fn memory_region(bytes: &[u8]) -> MemoryRegion {
    MemoryRegion {
        slot: field32(bytes, 0),
        flags: field32(bytes, 4),
        guest_phys_addr: field64(bytes, 8),
        memory_size: field64(bytes, 16),
        userspace_addr: field64(bytes, 24),
    }
}

/// What KVM_SET_GSI_ROUTING has at `address`.
fn routing_entries(count: u32, address: u64, caller: &Slots) -> Result<Vec<Entry>, Errno> {
    let mut entries = Vec::new();
    // Once as they are, once as they are kept.
    if !frame::can_spare(u64::from(count) * 2 * size_of::<Entry>() as u64) {
        return Err(Errno::ENOMEM);
    }
    entries.try_reserve_exact(count as usize).map_err(|_| Errno::ENOMEM)?;
    for n in 0..u64::from(count) {
        let at = address.wrapping_add(routing::ENTRY_SIZE as u64 * n);
        entries.push(Entry::new(&copy_in(caller, at)?));
    }
    Ok(entries)
}

impl Api {
    pub(super) fn vm_call(&self, user: &Arc<UserVm>, call: Call, argument: u64, caller: &Slots) -> Result<u64, Errno> {
        let vm = &user.vm;
        match call {
            Call::CheckExtension => {
                // A vGICv2 has room for fewer vCPUs.
                let abilities = Abilities { max_vcpus: vm.max_vcpus() as u32, ..self.abilities() };
                capability::check(argument, &abilities, Some(vm.has_its())).map(u64::from)
            }
            Call::CreateVcpu => self.create_vcpu(user, argument),
            Call::SetUserMemoryRegion => {
                let bytes = copy_in::<32>(caller, argument)?;
                user.set_memory(&memory_region(&bytes), caller)?;
                Ok(0)
            }
            Call::SetUserMemoryRegion2 => {
                // What it has beyond the first is for KVM_MEM_GUEST_MEMFD, a flag that is refused.
                let bytes = copy_in::<160>(caller, argument)?;
                user.set_memory(&memory_region(&bytes), caller)?;
                Ok(0)
            }
            Call::GetDirtyLog => {
                let bytes = copy_in::<16>(caller, argument)?;
                user.dirty_log(field32(&bytes, 0), field64(&bytes, 8), caller)?;
                Ok(0)
            }
            Call::ClearDirtyLog => {
                let bytes = copy_in::<24>(caller, argument)?;
                let (slot, pages) = (field32(&bytes, 0), field32(&bytes, 4));
                user.clear_dirty_log(slot, field64(&bytes, 8), pages, field64(&bytes, 16), caller)?;
                Ok(0)
            }
            Call::CreateIrqchip => vm.create_irqchip().map(|()| 0),
            Call::ArmSetDeviceAddr => {
                let bytes = copy_in::<16>(caller, argument)?;
                vm.set_device_addr(field32(&bytes, 0), field64(&bytes, 8)).map(|()| 0)
            }
            Call::IrqLine | Call::IrqLineStatus => {
                let bytes = copy_in::<8>(caller, argument)?;
                vm.irq_line(field32(&bytes, 0), field32(&bytes, 4) != 0)?;
                if call == Call::IrqLineStatus {
                    copy_out(caller, argument, &bytes)?;
                }
                Ok(0)
            }
            Call::SignalMsi => {
                let bytes = copy_in::<32>(caller, argument)?;
                let address = u64::from(field32(&bytes, 0)) | u64::from(field32(&bytes, 4)) << 32;
                let (flags, device) = (field32(&bytes, 12), field32(&bytes, 16));
                if flags & !MSI_VALID_DEVID != 0 {
                    return Err(Errno::EINVAL);
                }
                let device = (flags & MSI_VALID_DEVID != 0).then_some(device);
                vm.signal_msi(address, device, field32(&bytes, 8)).map(u64::from)
            }
            Call::SetGsiRouting => {
                let header = copy_in::<8>(caller, argument)?;
                let (count, flags) = (field32(&header, 0), field32(&header, 4));
                if count > routing::MAX_ROUTES || flags != 0 {
                    return Err(Errno::EINVAL);
                }
                let entries = routing_entries(count, argument.wrapping_add(8), caller)?;
                vm.set_gsi_routing(&entries).map(|()| 0)
            }
            Call::Irqfd => {
                let bytes = copy_in::<32>(caller, argument)?;
                let [fd, gsi, flags, resamplefd] = [0, 4, 8, 12].map(|offset| field32(&bytes, offset));
                vm.irqfd(&Irqfd { fd, gsi, flags, resamplefd }).map(|()| 0)
            }
            Call::Ioeventfd => {
                let bytes = copy_in::<64>(caller, argument)?;
                let (datamatch, addr) = (field64(&bytes, 0), field64(&bytes, 8));
                let [len, fd, flags] = [16, 20, 24].map(|offset| field32(&bytes, offset));
                vm.ioeventfd(&Ioeventfd { datamatch, addr, len, fd, flags }).map(|()| 0)
            }
            Call::ArmSetCounterOffset => {
                let bytes = copy_in::<16>(caller, argument)?;
                let offset = CounterOffset { counter_offset: field64(&bytes, 0), reserved: field64(&bytes, 8) };
                vm.set_counter_offset(&offset).map(|()| 0)
            }
            Call::ArmGetRegWritableMasks => {
                let bytes = copy_in::<64>(caller, argument)?;
                let reserved = core::array::from_fn(|n| field32(&bytes, 12 + 4 * n));
                let range = RegMaskRange { addr: field64(&bytes, 0), range: field32(&bytes, 8), reserved };
                let masks = vm.reg_writable_masks(&range)?;
                for (n, mask) in masks.iter().enumerate() {
                    copy_out(caller, range.addr.wrapping_add(8 * n as u64), &mask.to_le_bytes())?;
                }
                Ok(0)
            }
            Call::ArmPreferredTarget => {
                let mut bytes = [0; 32];
                bytes[..4].copy_from_slice(&TARGET_GENERIC_V8.to_le_bytes());
                copy_out(caller, argument, &bytes).map(|()| 0)
            }
            Call::CreateDevice => self.create_device(user, argument, caller),
            Call::HasDeviceAttr => {
                let attr = Attribute::read(caller, argument)?;
                if (attr.group, attr.attr) == VM_SMCCC { Ok(0) } else { Err(Errno::ENXIO) }
            }
            Call::SetDeviceAttr => {
                let attr = Attribute::read(caller, argument)?;
                if (attr.group, attr.attr) != VM_SMCCC {
                    return Err(Errno::ENXIO);
                }
                let bytes = copy_in::<24>(caller, attr.addr)?;
                let mut pad = [0; 15];
                pad.copy_from_slice(&bytes[9..]);
                let (base, nr_functions) = (field32(&bytes, 0), field32(&bytes, 4));
                vm.set_smccc_filter(&SmcccFilter { base, nr_functions, action: bytes[8], pad }).map(|()| 0)
            }
            Call::EnableCap => {
                let bytes = copy_in::<104>(caller, argument)?;
                if field32(&bytes, 4) != 0 {
                    return Err(Errno::EINVAL);
                }
                enable(user, field32(&bytes, 0), field64(&bytes, 8)).map(|()| 0)
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn create_vcpu(&self, user: &Arc<UserVm>, id: u64) -> Result<u64, Errno> {
        let id = usize::try_from(id).ok().filter(|&id| id < MAX_VCPUS).ok_or(Errno::EINVAL)?;
        let vcpu = user.vm.create_vcpu(id)?;
        // Until it is initialised, which says what it is then.
        vcpu.set_mp_state(MpState::Runnable);
        let vcpu = UserVcpu::new(user.clone(), vcpu);
        self.open(Object::Vcpu(Arc::new(vcpu)))
    }

    fn create_device(&self, user: &Arc<UserVm>, argument: u64, caller: &Slots) -> Result<u64, Errno> {
        let mut bytes = copy_in::<12>(caller, argument)?;
        let (kind, flags) = (field32(&bytes, 0), field32(&bytes, 8));
        user.vm.has_device(kind)?;
        if flags & DEVICE_TEST != 0 {
            return Ok(0);
        }
        user.vm.create_device(kind)?;
        let device = if kind == DEVICE_ARM_VGIC_ITS { Device::Its } else { Device::Vgic };
        let handle = self.open(Object::Device(user.clone(), device))?;
        bytes[4..8].copy_from_slice(&(handle as u32).to_le_bytes());
        copy_out(caller, argument, &bytes).map(|()| 0)
    }
}

/// KVM_ENABLE_CAP.
fn enable(user: &UserVm, number: u32, argument: u64) -> Result<(), Errno> {
    match number {
        cap::NISV_TO_USER => user.vm.enable_nisv_to_user(),
        cap::SYSTEM_SUSPEND => user.vm.enable_system_suspend(),
        // Bit 0: clearing is a call of its own. Bit 1, logs that begin full, needs it.
        cap::MANUAL_DIRTY_LOG_PROTECT2 if matches!(argument, 0 | 1 | 3) => {
            user.set_manual_protect(argument);
            Ok(())
        }
        // How long a host polls before it sleeps: keel sleeps at once.
        cap::HALT_POLL if argument <= u32::MAX.into() => Ok(()),
        _ => Err(Errno::EINVAL),
    }
}

impl UserVm {
    fn set_manual_protect(&self, flags: u64) {
        self.manual_protect.store(flags & 1 != 0, SeqCst);
        self.vm.begin_logs_full(flags & 2 != 0);
    }
}
