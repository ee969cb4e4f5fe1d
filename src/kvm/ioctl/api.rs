//! The objects behind the handles, and what each call does with them.
//!
//! A vCPU is in use by one caller at a time: another one's call meanwhile is `EBUSY`, where Linux would have it wait.

use super::{
    super::{
        Errno, Machine, Vcpu, Vm,
        bindings::{Bindings, OwnerEvents},
        machine::Serial,
        memory::Slots,
        slots::{Change, LOG_DIRTY_PAGES, MAX_SLOTS, MemoryRegion, READONLY, UserSlots},
        vm::max_ipa_bits,
    },
    attribute::device_call,
    capability::{self, Abilities},
    handles::{Handles, SYSTEM},
    numbers::{self, Call, Kind},
    user::{UserMemory, copy_in, copy_out},
    vcpu_calls::vcpu_call,
};
use crate::{
    arch::features,
    mm::{
        Ipa,
        addr::PAGE_SIZE,
        frame::{self, SharedPage},
        stage2::Memory,
    },
    vdev::{idregs::GuestIdRegisters, platform::MAX_VCPUS},
};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};
use spin::{Mutex, MutexGuard};

/// KVM_API_VERSION.
const API_VERSION: u64 = 12;
/// Bytes of what Linux maps for a vCPU: `struct kvm_run` and the ring of coalesced MMIO.
const MMAP_SIZE: u64 = 2 * PAGE_SIZE;
/// log2 of the addresses that a caller can name.
const USER_BITS: u32 = 48;

/// KVM's API for one caller, the VM that owns the machine.
#[derive(Debug)]
pub struct Api {
    handles: Handles<Object>,
    events: Arc<OwnerEvents>,
    id_registers: GuestIdRegisters,
    cpus: u32,
}

#[derive(Clone, Debug)]
pub(super) enum Object {
    Vm(Arc<UserVm>),
    Vcpu(Arc<UserVcpu>),
    Device(Arc<UserVm>, Device),
}

/// Devices that have handles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Device {
    /// The interrupt controller, of either version.
    Vgic,
    /// The ITS.
    Its,
}

/// A VM that was made through the API.
#[derive(Debug)]
pub struct UserVm {
    pub(super) vm: Vm,
    bindings: Arc<Bindings>,
    slots: Mutex<UserSlots>,
    /// KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2.
    pub(super) manual_protect: AtomicBool,
}

/// A vCPU of such a VM, as its caller uses it.
#[derive(Debug)]
pub struct UserVcpu {
    pub(super) vm: Arc<UserVm>,
    pub(super) vcpu: Arc<Vcpu>,
    /// Where `struct kvm_run` is exchanged; nothing until the caller says. It stays the page that it is until another takes its
    /// place, whatever the caller does with its memory.
    /// Whoever uses the vCPU has this locked.
    page: Mutex<Option<SharedPage>>,
}

impl UserVcpu {
    /// A vCPU of `vm`, without a page.
    pub(super) fn new(vm: Arc<UserVm>, vcpu: Arc<Vcpu>) -> Self {
        Self { vm, vcpu, page: Mutex::new(None) }
    }

    /// The vCPU, and its machine if that is there already.
    #[inline(always)]
    pub(in super::super) fn running(&self) -> (&Vcpu, Option<&Machine>) {
        (&self.vcpu, self.vm.vm.frozen())
    }

    /// Whether nothing can be done with its VM any more.
    #[inline(always)]
    pub(in super::super) fn is_dead(&self) -> bool {
        self.vm.vm.is_dead()
    }

    /// The vCPU for one caller alone, with the page in which `struct kvm_run` is exchanged.
    ///
    /// # Errors
    ///
    /// `EBUSY` while another has it, where Linux would have it wait.
    #[inline(always)]
    pub(in super::super) fn claim(&self) -> Result<MutexGuard<'_, Option<SharedPage>>, Errno> {
        self.page.try_lock().ok_or(Errno::EBUSY)
    }
}

impl UserMemory for Slots {
    fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        self.read_whole(Ipa(address), bytes)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> bool {
        self.write_whole(Ipa(address), bytes)
    }
}

impl Api {
    /// The API of the owner of `events`, for VMs that see `id_registers`, on a machine of `cpus` CPUs.
    pub fn new(id_registers: GuestIdRegisters, cpus: usize, events: Arc<OwnerEvents>) -> Self {
        Self { handles: Handles::default(), events, id_registers, cpus: cpus as u32 }
    }

    /// Carries out a call: `number` on what `handle` stands for, other than KVM_RUN of a vCPU. `caller` is the memory that
    /// arguments are in.
    ///
    /// # Errors
    ///
    /// `EBADF` for a bad handle; then the call's own.
    pub(in super::super) fn call(&self, handle: u64, number: u64, argument: u64, caller: &Slots) -> Result<u64, Errno> {
        let object = if handle == SYSTEM { None } else { Some(self.object(handle)?) };
        let kind = match &object {
            None => Kind::System,
            Some(Object::Vm(_)) => Kind::Vm,
            Some(Object::Vcpu(_)) => Kind::Vcpu,
            Some(Object::Device(..)) => Kind::Device,
        };
        let is_dead = match &object {
            None => false,
            Some(Object::Vm(vm) | Object::Device(vm, _)) => vm.vm.is_dead(),
            Some(Object::Vcpu(vcpu)) => vcpu.vm.vm.is_dead(),
        };
        // Linux takes the number as an unsigned int.
        let call = numbers::find(kind, number as u32);
        match call {
            // Dropped here, with no lock held.
            Ok(Call::Close) => return self.close(handle).map(|_| 0),
            _ if is_dead => return Err(Errno::EIO),
            _ => {}
        }
        let call = call?;
        // Whatever is made for a caller is small, and few of it at a time.
        if !frame::can_spare(0) {
            return Err(Errno::ENOMEM);
        }
        match object {
            None => self.system(call, argument),
            Some(Object::Vm(vm)) => self.vm_call(&vm, call, argument, caller),
            Some(Object::Vcpu(vcpu)) => {
                let mut page = vcpu.claim()?;
                vcpu_call(&vcpu, &mut page, call, argument, caller)
            }
            Some(Object::Device(vm, device)) => device_call(&vm, device, call, argument, caller),
        }
    }

    /// The vCPU that `handle` stands for, for KVM_RUN; `None` if it is none.
    #[inline(always)]
    pub(in super::super) fn vcpu(&self, handle: u64) -> Option<Arc<UserVcpu>> {
        let vcpu = |object: &Object| if let Object::Vcpu(vcpu) = object { Some(vcpu.clone()) } else { None };
        self.handles.look(handle, vcpu)?
    }

    /// Whether anything is open.
    pub(in super::super) fn is_idle(&self) -> bool {
        self.handles.is_empty()
    }

    /// Gives everything back.
    pub(in super::super) fn close_all(&self) {
        drop(self.handles.close_all());
    }

    fn close(&self, handle: u64) -> Result<Object, Errno> {
        let object = self.handles.close(handle)?;
        if let Object::Vm(vm) = &object {
            // They go with this handle, whatever of the VM is left; as in KVM.
            vm.bindings.release_pins();
        }
        Ok(object)
    }

    fn object(&self, handle: u64) -> Result<Object, Errno> {
        self.handles.look(handle, Object::clone).ok_or(Errno::EBADF)
    }

    pub(super) fn open(&self, object: Object) -> Result<u64, Errno> {
        self.handles.open(object)
    }

    pub(super) fn abilities(&self) -> Abilities {
        let (breakpoints, watchpoints) = features::debug_registers();
        Abilities {
            debug_registers: [breakpoints as u32, watchpoints as u32],
            cpus: self.cpus,
            max_vcpus: MAX_VCPUS as u32,
            ipa_bits: max_ipa_bits(),
            ras: features::has_ras(),
            pauth: features::has_pauth(),
            pmu: self.id_registers.pmu_version() != 0,
            aarch32_el1: features::has_aarch32_el1(),
        }
    }

    fn system(&self, call: Call, argument: u64) -> Result<u64, Errno> {
        match call {
            Call::GetApiVersion if argument == 0 => Ok(API_VERSION),
            Call::GetVcpuMmapSize if argument == 0 => Ok(MMAP_SIZE),
            Call::FreeMemory if argument == 0 => Ok(frame::free_bytes()),
            Call::CheckExtension => capability::check(argument, &self.abilities(), None).map(u64::from),
            Call::CreateVm => {
                let serial = Serial { vm: usize::MAX, transmit: |_, _| {} };
                let vm = Vm::create(argument, "user", self.id_registers.clone(), serial)?;
                let bindings = Bindings::new(&self.events);
                vm.run_by_user(&bindings);
                self.open(Object::Vm(Arc::new(UserVm {
                    vm,
                    bindings,
                    slots: Mutex::default(),
                    manual_protect: AtomicBool::new(false),
                })))
            }
            _ => Err(Errno::EINVAL),
        }
    }
}

impl Drop for UserVm {
    fn drop(&mut self) {
        // Those that a call has made while another one closed the VM.
        self.bindings.release_pins();
    }
}

impl UserVm {
    fn add(&self, region: &MemoryRegion, caller: &Slots) -> Result<(), Errno> {
        self.vm.add_user_memory(region, caller)?;
        if region.flags & LOG_DIRTY_PAGES != 0
            && let Err(errno) = self.vm.log_user_memory(region, true)
        {
            self.vm.remove_user_memory(region)?;
            return Err(errno);
        }
        Ok(())
    }

    /// KVM_GET_DIRTY_LOG of a slot, to the caller's bitmap at `address`.
    pub(super) fn dirty_log(&self, slot: u32, address: u64, caller: &Slots) -> Result<(), Errno> {
        let slots = self.slots.lock();
        if slot >> 16 != 0 || slot >= MAX_SLOTS {
            return Err(Errno::EINVAL);
        }
        let region = slots.find(slot).ok_or(Errno::ENOENT)?;
        let put = |n, word: u64| copy_out(caller, address.wrapping_add(8 * n as u64), &word.to_le_bytes());
        if self.manual_protect.load(SeqCst) {
            self.vm.see_dirty_log(region, put)
        } else {
            self.vm.dirty_log(region, put)
        }
    }

    /// KVM_CLEAR_DIRTY_LOG of pages of a slot, as the caller's bitmap at `address` says.
    pub(super) fn clear_dirty_log(
        &self,
        slot: u32,
        first: u64,
        pages: u32,
        address: u64,
        caller: &Slots,
    ) -> Result<(), Errno> {
        let slots = self.slots.lock();
        if slot >> 16 != 0 || slot >= MAX_SLOTS || !first.is_multiple_of(64) {
            return Err(Errno::EINVAL);
        }
        let region = slots.find(slot).ok_or(Errno::ENOENT)?;
        if region.flags & LOG_DIRTY_PAGES == 0 {
            return Err(Errno::ENOENT);
        }
        let (count, pages) = (region.memory_size / PAGE_SIZE, u64::from(pages));
        if first > count || pages > count - first || pages < count - first && !pages.is_multiple_of(64) {
            return Err(Errno::EINVAL);
        }
        for n in 0..pages.div_ceil(64) {
            let mut bits = u64::from_le_bytes(copy_in(caller, address.wrapping_add(8 * n))?);
            let left = pages - 64 * n;
            if left < 64 {
                bits &= (1 << left) - 1;
            }
            self.vm.clear_dirty_pages(region, (first / 64 + n) as usize, bits)?;
        }
        Ok(())
    }

    /// KVM_SET_USER_MEMORY_REGION.
    pub(super) fn set_memory(&self, region: &MemoryRegion, caller: &Slots) -> Result<(), Errno> {
        // One at a time: planned, done and noted under the lock.
        let mut slots = self.slots.lock();
        let change = slots.plan(region, self.vm.ipa_bits(), USER_BITS)?;
        match change {
            Change::Nothing => {}
            Change::Flags(_, new) => self.vm.log_user_memory(&new, new.flags & LOG_DIRTY_PAGES != 0)?,
            Change::Delete(old) => self.vm.remove_user_memory(&old)?,
            Change::Create(new) => self.add(&new, caller)?,
            Change::Move(old, new) => {
                self.vm.remove_user_memory(&old)?;
                if let Err(errno) = self.add(&new, caller) {
                    // The old one is gone then, as its memory was when it was taken out.
                    slots.commit(Change::Delete(old))?;
                    return Err(errno);
                }
            }
        }
        slots.commit(change)
    }
}

/// How a slot's memory is mapped.
pub(in super::super) fn kind_of(region: &MemoryRegion) -> Memory {
    if region.flags & READONLY != 0 { Memory::NormalReadOnly } else { Memory::Normal }
}
