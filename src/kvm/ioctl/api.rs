//! The objects behind the handles, and what each call does with them.
//!
//! A vCPU is in use by one caller at a time: another one's call meanwhile is `EBUSY`, where Linux would have it wait.

use super::{
    super::{
        Errno, Vcpu, Vm,
        machine::Serial,
        memory::Slots,
        registers::{Value, size_to_set},
        slots::{Change, LOG_DIRTY_PAGES, MAX_SLOTS, MemoryRegion, READONLY, UserSlots},
        uapi::{MpState, SmcccFilter, VcpuInit},
        vm::max_ipa_bits,
    },
    capability::{self, Abilities},
    handles::{Handles, SYSTEM},
    numbers::{self, Call, Kind},
    user::{UserMemory, copy_in, copy_out, field32, field64},
};
use crate::{
    arch::features,
    mm::{Ipa, addr::PAGE_SIZE, stage2::Memory},
    vdev::{idregs::GuestIdRegisters, platform::MAX_VCPUS},
};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use spin::Mutex;

/// KVM_API_VERSION.
const API_VERSION: u64 = 12;
/// Bytes of what Linux maps for a vCPU: `struct kvm_run` and the ring of coalesced MMIO.
const MMAP_SIZE: u64 = 2 * PAGE_SIZE;
/// Group and attribute of KVM_ARM_VM_SMCCC_FILTER.
const VM_SMCCC: (u32, u64) = (0, 0);
/// KVM_CAP_ARM_SYSTEM_SUSPEND.
const CAP_SYSTEM_SUSPEND: u32 = 216;
/// KVM_CAP_ARM_NISV_TO_USER.
const CAP_NISV_TO_USER: u32 = 177;
/// KVM_CREATE_DEVICE_TEST.
const DEVICE_TEST: u32 = 1;
/// log2 of the addresses that a caller can name.
const USER_BITS: u32 = 48;

/// KVM's API for one caller, the VM that owns the machine.
#[derive(Debug)]
pub struct Api {
    handles: Mutex<Handles<Object>>,
    id_registers: GuestIdRegisters,
    cpus: u32,
}

#[derive(Clone, Debug)]
enum Object {
    Vm(Arc<UserVm>),
    Vcpu(Arc<UserVcpu>),
    Device(Arc<UserVm>),
}

/// A VM that was made through the API.
#[derive(Debug)]
pub struct UserVm {
    pub(super) vm: Vm,
    slots: Mutex<UserSlots>,
}

/// A vCPU of such a VM, as its caller uses it.
#[derive(Debug)]
pub struct UserVcpu {
    pub(super) vm: Arc<UserVm>,
    pub(super) vcpu: Arc<Vcpu>,
    /// Where `struct kvm_run` is exchanged, the caller's address; [`NO_PAGE`] until it says.
    page: AtomicU64,
    busy: AtomicBool,
}

const NO_PAGE: u64 = u64::MAX;

/// A vCPU that its caller has for itself.
pub struct Claim(Arc<UserVcpu>);

impl Claim {
    fn new(vcpu: &Arc<UserVcpu>) -> Result<Self, Errno> {
        if vcpu.busy.swap(true, SeqCst) { Err(Errno::EBUSY) } else { Ok(Self(vcpu.clone())) }
    }

    /// Where `struct kvm_run` is.
    pub(super) fn page(&self) -> Option<u64> {
        Some(self.0.page.load(SeqCst)).filter(|&page| page != NO_PAGE)
    }
}

impl core::ops::Deref for Claim {
    type Target = UserVcpu;
    fn deref(&self) -> &UserVcpu {
        &self.0
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.busy.store(false, SeqCst);
    }
}

/// What a call comes to.
pub enum Answer {
    /// This result.
    Value(u64),
    /// KVM_RUN of this vCPU, by whoever has the CPU.
    Run(Claim),
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
    /// The API, for VMs that see `id_registers`, on a machine of `cpus` CPUs.
    pub fn new(id_registers: GuestIdRegisters, cpus: usize) -> Self {
        Self { handles: Mutex::default(), id_registers, cpus: cpus as u32 }
    }

    /// Carries out a call: `number` on what `handle` stands for. `caller` is the memory that arguments are in.
    ///
    /// # Errors
    ///
    /// `EBADF` for a bad handle; then the call's own.
    pub(in super::super) fn call(
        &self,
        handle: u64,
        number: u64,
        argument: u64,
        caller: &Slots,
    ) -> Result<Answer, Errno> {
        let object = if handle == SYSTEM { None } else { Some(self.handles.lock().get(handle)?) };
        let kind = match &object {
            None => Kind::System,
            Some(Object::Vm(_)) => Kind::Vm,
            Some(Object::Vcpu(_)) => Kind::Vcpu,
            Some(Object::Device(_)) => Kind::Device,
        };
        // Linux takes the number as an unsigned int.
        let call = numbers::find(kind, number as u32)?;
        if call == Call::Close {
            // Dropped here, with no lock held.
            return self.close(handle).map(|_| Answer::Value(0));
        }
        match object {
            None => self.system(call, argument).map(Answer::Value),
            Some(Object::Vm(vm)) => self.vm(&vm, call, argument, caller).map(Answer::Value),
            Some(Object::Vcpu(vcpu)) => {
                let claim = Claim::new(&vcpu)?;
                match call {
                    Call::Run if argument != 0 => Err(Errno::EINVAL),
                    Call::Run => Ok(Answer::Run(claim)),
                    _ => vcpu_call(&claim, call, argument, caller).map(Answer::Value),
                }
            }
            Some(Object::Device(vm)) => device_call(&vm, call, argument, caller).map(Answer::Value),
        }
    }

    /// Whether anything is open.
    pub(in super::super) fn is_idle(&self) -> bool {
        self.handles.lock().iter().next().is_none()
    }

    /// Gives everything back.
    pub(in super::super) fn close_all(&self) {
        let objects = self.handles.lock().close_all();
        drop(objects);
    }

    fn close(&self, handle: u64) -> Result<Object, Errno> {
        self.handles.lock().close(handle)
    }

    fn open(&self, object: Object) -> Result<u64, Errno> {
        self.handles.lock().open(object)
    }

    fn abilities(&self) -> Abilities {
        let (breakpoints, watchpoints) = features::debug_registers();
        Abilities {
            cpus: self.cpus,
            max_vcpus: MAX_VCPUS as u32,
            ipa_bits: max_ipa_bits(),
            debug_registers: [breakpoints as u32, watchpoints as u32],
            ras: features::has_ras(),
            pauth: features::has_pauth(),
            pmu: false,
            aarch32_el1: false,
        }
    }

    fn system(&self, call: Call, argument: u64) -> Result<u64, Errno> {
        match call {
            Call::GetApiVersion if argument == 0 => Ok(API_VERSION),
            Call::GetVcpuMmapSize if argument == 0 => Ok(MMAP_SIZE),
            Call::CheckExtension => Ok(capability::check(argument, &self.abilities()).into()),
            Call::CreateVm => {
                let serial = Serial { vm: usize::MAX, transmit: |_, _| {} };
                let vm = Vm::create(argument, "user", self.id_registers.clone(), serial)?;
                vm.run_by_user();
                self.open(Object::Vm(Arc::new(UserVm { vm, slots: Mutex::default() })))
            }
            _ => Err(Errno::EINVAL),
        }
    }

    fn vm(&self, user: &Arc<UserVm>, call: Call, argument: u64, caller: &Slots) -> Result<u64, Errno> {
        let vm = &user.vm;
        match call {
            Call::CheckExtension => Ok(capability::check(argument, &self.abilities()).into()),
            Call::CreateVcpu => {
                let id = usize::try_from(argument).map_err(|_| Errno::EINVAL)?;
                if id >= MAX_VCPUS {
                    return Err(Errno::EINVAL);
                }
                let vcpu = UserVcpu {
                    vm: user.clone(),
                    vcpu: vm.create_vcpu(id)?,
                    page: AtomicU64::new(NO_PAGE),
                    busy: AtomicBool::new(false),
                };
                self.open(Object::Vcpu(Arc::new(vcpu)))
            }
            Call::SetUserMemoryRegion => {
                let bytes = copy_in::<32>(caller, argument)?;
                let region = MemoryRegion {
                    slot: field32(&bytes, 0),
                    flags: field32(&bytes, 4),
                    guest_phys_addr: field64(&bytes, 8),
                    memory_size: field64(&bytes, 16),
                    userspace_addr: field64(&bytes, 24),
                };
                user.set_memory(&region, caller).map(|()| 0)
            }
            Call::GetDirtyLog => {
                let bytes = copy_in::<16>(caller, argument)?;
                user.dirty_log(field32(&bytes, 0), field64(&bytes, 8), caller).map(|()| 0)
            }
            Call::CreateDevice => {
                let mut bytes = copy_in::<12>(caller, argument)?;
                if field32(&bytes, 8) & DEVICE_TEST != 0 {
                    return vm.has_device(field32(&bytes, 0)).map(|()| 0);
                }
                vm.create_device(field32(&bytes, 0))?;
                let handle = self.open(Object::Device(user.clone()))?;
                bytes[4..8].copy_from_slice(&(handle as u32).to_le_bytes());
                copy_out(caller, argument, &bytes).map(|()| 0)
            }
            Call::ArmPreferredTarget => {
                let mut bytes = [0; 32];
                bytes[..4].copy_from_slice(&super::super::uapi::TARGET_GENERIC_V8.to_le_bytes());
                copy_out(caller, argument, &bytes).map(|()| 0)
            }
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
                let filter =
                    SmcccFilter { base: field32(&bytes, 0), nr_functions: field32(&bytes, 4), action: bytes[8], pad };
                vm.set_smccc_filter(&filter).map(|()| 0)
            }
            Call::EnableCap => {
                let bytes = copy_in::<104>(caller, argument)?;
                match (field32(&bytes, 0), field32(&bytes, 4)) {
                    (CAP_NISV_TO_USER, 0) => vm.enable_nisv_to_user().map(|()| 0),
                    (CAP_SYSTEM_SUSPEND, 0) => vm.enable_system_suspend().map(|()| 0),
                    _ => Err(Errno::EINVAL),
                }
            }
            _ => Err(Errno::EINVAL),
        }
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
    fn dirty_log(&self, slot: u32, address: u64, caller: &Slots) -> Result<(), Errno> {
        let slots = self.slots.lock();
        if slot >> 16 != 0 || slot >= MAX_SLOTS {
            return Err(Errno::EINVAL);
        }
        let region = slots.find(slot).ok_or(Errno::ENOENT)?;
        self.vm.dirty_log(region, |n, word| copy_out(caller, address.wrapping_add(8 * n as u64), &word.to_le_bytes()))
    }

    /// KVM_SET_USER_MEMORY_REGION.
    fn set_memory(&self, region: &MemoryRegion, caller: &Slots) -> Result<(), Errno> {
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

/// `struct kvm_device_attr`.
struct Attribute {
    group: u32,
    attr: u64,
    addr: u64,
}

impl Attribute {
    fn read(caller: &Slots, address: u64) -> Result<Self, Errno> {
        let bytes = copy_in::<24>(caller, address)?;
        Ok(Self { group: field32(&bytes, 4), attr: field64(&bytes, 8), addr: field64(&bytes, 16) })
    }
}

fn vcpu_call(claim: &Claim, call: Call, argument: u64, caller: &Slots) -> Result<u64, Errno> {
    let (vm, vcpu) = (&claim.vm.vm, &*claim.vcpu);
    match call {
        Call::ArmVcpuInit => {
            let bytes = copy_in::<32>(caller, argument)?;
            let mut init = VcpuInit { target: field32(&bytes, 0), features: [0; 7] };
            for (n, word) in init.features.iter_mut().enumerate() {
                *word = field32(&bytes, 4 + 4 * n);
            }
            vcpu.init(vm, &init).map(|()| 0)
        }
        Call::GetOneReg => {
            let bytes = copy_in::<16>(caller, argument)?;
            let value = vcpu.get_one_reg(vm, field64(&bytes, 0))?;
            let bytes_of = value.to_bytes();
            copy_out(caller, field64(&bytes, 8), bytes_of.get(..value.size()).unwrap_or(&bytes_of)).map(|()| 0)
        }
        Call::SetOneReg => {
            let bytes = copy_in::<16>(caller, argument)?;
            let (id, address) = (field64(&bytes, 0), field64(&bytes, 8));
            let mut value = [0; 16];
            let value = value.get_mut(..size_to_set(id)?).ok_or(Errno::EINVAL)?;
            if !caller.read(address, value) {
                return Err(Errno::EFAULT);
            }
            vcpu.set_one_reg(vm, id, Value::from_bytes(value).ok_or(Errno::EINVAL)?).map(|()| 0)
        }
        Call::GetMpState => copy_out(caller, argument, &(vcpu.mp_state() as u32).to_le_bytes()).map(|()| 0),
        Call::SetMpState => {
            let number = u32::from_le_bytes(copy_in::<4>(caller, argument)?);
            vcpu.set_mp_state(MpState::new(number).ok_or(Errno::EINVAL)?);
            Ok(0)
        }
        Call::HasDeviceAttr => {
            let attr = Attribute::read(caller, argument)?;
            vcpu.has_device_attr(vm, attr.group, attr.attr).map(|()| 0)
        }
        Call::SetDeviceAttr => {
            let attr = Attribute::read(caller, argument)?;
            vcpu.has_device_attr(vm, attr.group, attr.attr)?;
            let value = u64::from_le_bytes(copy_in::<8>(caller, attr.addr)?);
            vcpu.set_device_attr(vm, attr.group, attr.attr, value).map(|()| 0)
        }
        Call::GetDeviceAttr => {
            let attr = Attribute::read(caller, argument)?;
            let value = vcpu.get_device_attr(vm, attr.group, attr.attr)?;
            copy_out(caller, attr.addr, &value.to_le_bytes()).map(|()| 0)
        }
        Call::SetRunPage => {
            if !argument.is_multiple_of(PAGE_SIZE) {
                return Err(Errno::EINVAL);
            }
            // It has to be there now; whether it still is, is seen at each run.
            copy_in::<8>(caller, argument)?;
            claim.0.page.store(argument, SeqCst);
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}

fn device_call(user: &UserVm, call: Call, argument: u64, caller: &Slots) -> Result<u64, Errno> {
    let attr = Attribute::read(caller, argument)?;
    match call {
        Call::SetDeviceAttr => {
            let value = match (attr.group, attr.attr) {
                // Commands have no data.
                (super::super::uapi::vgic::GROUP_CTRL, _) => 0,
                (super::super::uapi::vgic::GROUP_NR_IRQS, _) => {
                    u32::from_le_bytes(copy_in::<4>(caller, attr.addr)?).into()
                }
                _ => u64::from_le_bytes(copy_in::<8>(caller, attr.addr)?),
            };
            user.vm.set_device_attr(attr.group, attr.attr, value).map(|()| 0)
        }
        _ => Err(Errno::ENXIO),
    }
}

/// How a slot's memory is mapped.
pub(in super::super) fn kind_of(region: &MemoryRegion) -> Memory {
    if region.flags & READONLY != 0 { Memory::NormalReadOnly } else { Memory::Normal }
}
