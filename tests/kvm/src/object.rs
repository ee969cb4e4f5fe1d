//! The four kinds of object: the system, VMs, vCPUs, devices.

use crate::{
    Backend, Errno, SYSTEM, errno,
    handle::{Handle, address, address_mut},
    number,
    page::{PAGE, Page},
    run::{Exit, RunPage},
    uapi::{
        ClearDirtyLog, CounterOffset, CreateDevice, DeviceAddr, DeviceAttr, DirtyLog, EnableCap, GuestDebug, Ioeventfd,
        IrqLevel, IrqRouting, IrqRoutingEntry, Irqfd, Msi, OneReg, RegMaskRange, SmcccFilter, UserMemoryRegion,
        VcpuEvents, VcpuInit,
    },
};

/// What `/dev/kvm` is.
#[derive(Clone, Copy, Debug)]
pub struct System<B: Backend + Clone>(pub B);

impl<B: Backend + Clone> System<B> {
    fn call(&self, number: u32, argument: u64) -> Result<u64, Errno> {
        errno::result(self.0.call(SYSTEM, number, argument))
    }

    /// KVM_GET_API_VERSION: 12.
    ///
    /// # Errors
    ///
    /// There is no KVM.
    pub fn api_version(&self) -> Result<u64, Errno> {
        self.call(number::GET_API_VERSION, 0)
    }

    /// KVM_CHECK_EXTENSION: how much there is of a capability.
    ///
    /// # Errors
    ///
    /// `EINVAL` for one that only VMs have.
    pub fn check_extension(&self, capability: u32) -> Result<u64, Errno> {
        self.call(number::CHECK_EXTENSION, capability.into())
    }

    /// KVM_CREATE_VM with `ipa_bits` bits of physical address; 0 stands for 40.
    ///
    /// # Errors
    ///
    /// `EINVAL` if this machine cannot; `ENOMEM`, `EMFILE`.
    pub fn create_vm(&self, ipa_bits: u32) -> Result<Vm<B>, Errno> {
        let number = self.call(number::CREATE_VM, ipa_bits.into())?;
        Ok(Vm(Handle::new(self.0.clone(), number)))
    }
}

/// A VM. Its vCPUs and devices live on without it: the machine goes with the last handle.
#[derive(Debug)]
pub struct Vm<B: Backend>(Handle<B>);

impl<B: Backend> Vm<B> {
    /// Its handle.
    pub fn handle(&self) -> u64 {
        self.0.number()
    }

    /// KVM_CHECK_EXTENSION of this VM.
    ///
    /// # Errors
    ///
    /// None that is known.
    pub fn check_extension(&self, capability: u32) -> Result<u64, Errno> {
        self.0.call(number::CHECK_EXTENSION, capability.into())
    }

    /// KVM_SET_USER_MEMORY_REGION: the guest has `pages` at `guest`, as slot `slot`, with `flags` of
    /// [`memory`](crate::uapi::memory).
    ///
    /// # Errors
    ///
    /// `EINVAL` for what makes no sense, `EEXIST` over another slot, `EFAULT` beyond the guest's addresses, `ENOMEM`.
    pub fn set_memory(&self, slot: u32, flags: u32, guest: u64, pages: &'static [Page]) -> Result<(), Errno> {
        let region = UserMemoryRegion {
            slot,
            flags,
            guest_phys_addr: guest,
            memory_size: (pages.len() * PAGE) as u64,
            userspace_addr: address(pages),
        };
        self.0.write(number::SET_USER_MEMORY_REGION, &region).map(drop)
    }

    /// KVM_SET_USER_MEMORY_REGION: the slot goes.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there is none.
    pub fn remove_memory(&self, slot: u32) -> Result<(), Errno> {
        self.0
            .write(number::SET_USER_MEMORY_REGION, &UserMemoryRegion { slot, ..UserMemoryRegion::default() })
            .map(drop)
    }

    /// KVM_GET_DIRTY_LOG: a bit of `bitmap` for each page of the slot that was written to.
    ///
    /// # Errors
    ///
    /// `EINVAL` for no number of a slot, or too small a bitmap (`pages` is what the slot has); `ENOENT` if it has no log.
    pub fn dirty_log(&self, slot: u32, pages: usize, bitmap: &mut [u64]) -> Result<(), Errno> {
        if bitmap.len() < pages.div_ceil(64) {
            return Err(Errno::EINVAL);
        }
        let log = DirtyLog { slot, padding1: 0, dirty_bitmap: address_mut(bitmap) };
        self.0.write(number::GET_DIRTY_LOG, &log).map(drop)
    }

    /// KVM_CLEAR_DIRTY_LOG: forgets the pages from `first_page` on whose bit is set.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a range that is no multiple of 64 pages, or too small a bitmap; `ENOENT` if it has no log.
    pub fn clear_dirty_log(&self, slot: u32, first_page: u64, num_pages: u32, bitmap: &[u64]) -> Result<(), Errno> {
        if bitmap.len() < (num_pages as usize).div_ceil(64) {
            return Err(Errno::EINVAL);
        }
        let mut log = ClearDirtyLog { slot, num_pages, first_page, dirty_bitmap: address(bitmap) };
        self.0.read(number::CLEAR_DIRTY_LOG, &mut log).map(drop)
    }

    /// KVM_CREATE_IRQCHIP: a vGICv2.
    ///
    /// # Errors
    ///
    /// `ENODEV` if this machine cannot; `EEXIST` beside another; `EBUSY` once it has run; `E2BIG` with more than 8 vCPUs.
    pub fn create_irqchip(&self) -> Result<(), Errno> {
        self.0.call(number::CREATE_IRQCHIP, 0).map(drop)
    }

    /// KVM_ARM_SET_DEVICE_ADDR of a vGICv2.
    ///
    /// # Errors
    ///
    /// `ENODEV` without it; `EEXIST`, `EINVAL`, `E2BIG` for the address.
    pub fn set_device_address(&self, id: u64, addr: u64) -> Result<(), Errno> {
        self.0.write(number::ARM_SET_DEVICE_ADDR, &DeviceAddr { id, addr }).map(drop)
    }

    /// KVM_IRQ_LINE: `irq` names a line, as in `struct kvm_irq_level`.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it names none; `ENXIO` if such lines are not there; `EBUSY` before the vGIC is initialised.
    pub fn irq_line(&self, irq: u32, level: bool) -> Result<(), Errno> {
        self.0.write(number::IRQ_LINE, &IrqLevel { irq, level: level.into() }).map(drop)
    }

    /// KVM_SIGNAL_MSI: whether the guest took it.
    ///
    /// # Errors
    ///
    /// `EINVAL`, `ENODEV` without an ITS there.
    pub fn signal_msi(&self, msi: &Msi) -> Result<bool, Errno> {
        self.0.write(number::SIGNAL_MSI, msi).map(|delivered| delivered != 0)
    }

    /// KVM_IOEVENTFD: a store of the guest is an event, and no exit; or no longer is. What has the number of a file is an SPI of
    /// the caller's under keel, which becomes pending.
    ///
    /// # Errors
    ///
    /// `EINVAL` for what makes no sense; `EBADF` if there is no such event; `EEXIST` if it could be another's store; `ENOENT`
    /// for the end of what is not bound; `ENOSPC`.
    pub fn ioeventfd(&self, binding: &Ioeventfd) -> Result<(), Errno> {
        self.0.write(number::IOEVENTFD, binding).map(drop)
    }

    /// KVM_IRQFD: an event is an interrupt of the guest, SPI 32 + `gsi`; or no longer is. What has the number of a file is an
    /// SPI of the caller's under keel, which no longer interrupts the caller.
    ///
    /// # Errors
    ///
    /// `EINVAL` for unknown flags; `EAGAIN` before the vGIC is initialised; `EBADF` if there is no such event; `EBUSY` if it is
    /// bound already.
    pub fn irqfd(&self, binding: &Irqfd) -> Result<(), Errno> {
        self.0.write(number::IRQFD, binding).map(drop)
    }

    /// KVM_SET_GSI_ROUTING: what the numbers of interrupts stand for; those that are not named stand for nothing.
    ///
    /// # Errors
    ///
    /// `EINVAL` for what makes no sense, and two entries of one number.
    pub fn set_gsi_routing<const N: usize>(&self, entries: [IrqRoutingEntry; N]) -> Result<(), Errno> {
        self.0.write(number::SET_GSI_ROUTING, &IrqRouting { nr: N as u32, flags: 0, entries }).map(drop)
    }

    /// KVM_ENABLE_CAP.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it cannot be, or no longer.
    pub fn enable_cap(&self, cap: u32, args: [u64; 4]) -> Result<(), Errno> {
        self.0.write(number::ENABLE_CAP, &EnableCap { cap, args, ..EnableCap::default() }).map(drop)
    }

    /// KVM_ARM_SET_COUNTER_OFFSET: the guest's counters are `offset` ticks behind the machine's.
    ///
    /// # Errors
    ///
    /// `EBUSY` while a vCPU runs.
    pub fn set_counter_offset(&self, offset: u64) -> Result<(), Errno> {
        let offset = CounterOffset { counter_offset: offset, reserved: 0 };
        self.0.write(number::ARM_SET_COUNTER_OFFSET, &offset).map(drop)
    }

    /// KVM_ARM_GET_REG_WRITABLE_MASKS: of each ID register, by its place, which bits can be written.
    ///
    /// # Errors
    ///
    /// None that is known.
    pub fn register_masks(&self, masks: &mut [u64; 192]) -> Result<(), Errno> {
        let mut range = RegMaskRange { addr: address_mut(masks), ..RegMaskRange::default() };
        self.0.read(number::ARM_GET_REG_WRITABLE_MASKS, &mut range).map(drop)
    }

    /// KVM_ARM_PREFERRED_TARGET.
    ///
    /// # Errors
    ///
    /// None that is known.
    pub fn preferred_target(&self) -> Result<VcpuInit, Errno> {
        let mut init = VcpuInit::default();
        self.0.read(number::ARM_PREFERRED_TARGET, &mut init)?;
        Ok(init)
    }

    /// The SMCCC filter: who answers a range of calls (group 0, attribute 0 of the VM).
    ///
    /// # Errors
    ///
    /// `EINVAL`, `EEXIST` over another range, `EBUSY` once it has run.
    pub fn set_smccc_filter(&self, filter: &SmcccFilter) -> Result<(), Errno> {
        let attr = DeviceAttr { addr: address(filter), ..DeviceAttr::default() };
        self.0.write(number::SET_DEVICE_ATTR, &attr).map(drop)
    }
}

impl<B: Backend + Clone> Vm<B> {
    /// KVM_CREATE_VCPU; `page` is where KVM_RUN says why it ended.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a number that is too large, `EEXIST` for one that is there, `EBUSY` once the vGIC is initialised.
    pub fn create_vcpu(&self, id: u32, page: &'static Page) -> Result<Vcpu<B>, Errno> {
        let number = self.0.call(number::CREATE_VCPU, id.into())?;
        let vcpu = Vcpu { handle: Handle::new(self.0.backend().clone(), number), page: RunPage(page) };
        vcpu.handle.call(number::SET_RUN_PAGE, page.address())?;
        Ok(vcpu)
    }

    /// KVM_CREATE_DEVICE of a type in [`device`](crate::uapi::device).
    ///
    /// # Errors
    ///
    /// `ENODEV` if this machine cannot; `EEXIST` beside another interrupt controller; `EBUSY` once the VM has run.
    pub fn create_device(&self, kind: u32) -> Result<Device<B>, Errno> {
        let mut device = CreateDevice { kind, ..CreateDevice::default() };
        self.0.read(number::CREATE_DEVICE, &mut device)?;
        Ok(Device(Handle::new(self.0.backend().clone(), device.fd.into())))
    }
}

/// A vCPU.
#[derive(Debug)]
pub struct Vcpu<B: Backend> {
    handle: Handle<B>,
    page: RunPage,
}

impl<B: Backend> Vcpu<B> {
    /// Its handle.
    pub fn handle(&self) -> u64 {
        self.handle.number()
    }

    /// Where KVM_RUN says why it ended.
    pub fn page(&self) -> RunPage {
        self.page
    }

    /// KVM_ARM_VCPU_INIT: features of [`feature`](crate::uapi::feature), and a reset.
    ///
    /// # Errors
    ///
    /// `EINVAL` for features that this machine does not have, or other vCPUs of the VM; `ENOENT` for unknown ones.
    pub fn init(&self, init: &VcpuInit) -> Result<(), Errno> {
        self.handle.write(number::ARM_VCPU_INIT, init).map(drop)
    }

    /// KVM_ARM_VCPU_FINALIZE.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a feature that needs none; `EPERM` for the second time.
    pub fn finalize(&self, feature: i32) -> Result<(), Errno> {
        self.handle.write(number::ARM_VCPU_FINALIZE, &feature).map(drop)
    }

    /// KVM_RUN, until there is something to do.
    ///
    /// # Errors
    ///
    /// `EINTR` when it was interrupted, which is no reason not to call again; those of a VM that is not complete.
    pub fn run(&self) -> Result<Exit, Errno> {
        self.handle.call(number::RUN, 0)?;
        Ok(self.page.exit())
    }

    /// KVM_GET_ONE_REG of a register of 64 bits.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an id of another size; the call's own.
    pub fn register(&self, id: u64) -> Result<u64, Errno> {
        let mut value = [0; 8];
        self.get_one_reg(id, &mut value)?;
        Ok(u64::from_le_bytes(value))
    }

    /// KVM_SET_ONE_REG of a register of 64 bits.
    ///
    /// # Errors
    ///
    /// As [`Self::register`].
    pub fn set_register(&self, id: u64, value: u64) -> Result<(), Errno> {
        self.set_one_reg(id, &value.to_le_bytes())
    }

    /// KVM_GET_ONE_REG.
    ///
    /// # Errors
    ///
    /// `EINVAL` if `value` has not the size that the id says; `ENOENT` if there is no such register; `ENOEXEC` before
    /// KVM_ARM_VCPU_INIT.
    pub fn get_one_reg(&self, id: u64, value: &mut [u8]) -> Result<(), Errno> {
        size_is(id, value.len())?;
        let reg = OneReg { id, addr: address_mut(value) };
        self.handle.write(number::GET_ONE_REG, &reg).map(drop)
    }

    /// KVM_SET_ONE_REG.
    ///
    /// # Errors
    ///
    /// As [`Self::get_one_reg`]; `EINVAL` and `EBUSY` for values that cannot be.
    pub fn set_one_reg(&self, id: u64, value: &[u8]) -> Result<(), Errno> {
        size_is(id, value.len())?;
        let reg = OneReg { id, addr: address(value) };
        self.handle.write(number::SET_ONE_REG, &reg).map(drop)
    }

    /// KVM_GET_REG_LIST: the ids of all registers, in the part of `list` that is returned.
    ///
    /// # Errors
    ///
    /// `E2BIG` if there is not enough room. The first word of `list` is room for the count, which then is what there is.
    pub fn register_list<'a>(&self, list: &'a mut [u64]) -> Result<&'a [u64], Errno> {
        let room = list.len().checked_sub(1).ok_or(Errno::EINVAL)?;
        list[0] = room as u64;
        self.handle.call(number::GET_REG_LIST, address_mut(list))?;
        let count = usize::try_from(list[0]).map_err(|_| Errno::E2BIG)?;
        list.get(1..=count).ok_or(Errno::E2BIG)
    }

    /// KVM_GET_MP_STATE ([`mp_state`](crate::uapi::mp_state)).
    ///
    /// # Errors
    ///
    /// None that is known.
    pub fn mp_state(&self) -> Result<u32, Errno> {
        let mut state = 0_u32;
        self.handle.read(number::GET_MP_STATE, &mut state)?;
        Ok(state)
    }

    /// KVM_SET_MP_STATE.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a state that arm64 does not have.
    pub fn set_mp_state(&self, state: u32) -> Result<(), Errno> {
        self.handle.write(number::SET_MP_STATE, &state).map(drop)
    }

    /// KVM_GET_VCPU_EVENTS.
    ///
    /// # Errors
    ///
    /// `ENOEXEC` before KVM_ARM_VCPU_INIT.
    pub fn events(&self) -> Result<VcpuEvents, Errno> {
        let mut events = VcpuEvents::default();
        self.handle.read(number::GET_VCPU_EVENTS, &mut events)?;
        Ok(events)
    }

    /// KVM_SET_VCPU_EVENTS.
    ///
    /// # Errors
    ///
    /// `ENOEXEC` before KVM_ARM_VCPU_INIT; `EINVAL` for a syndrome that cannot be given.
    pub fn set_events(&self, events: &VcpuEvents) -> Result<(), Errno> {
        self.handle.write(number::SET_VCPU_EVENTS, events).map(drop)
    }

    /// KVM_SET_GUEST_DEBUG.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a control bit that arm64 does not have.
    pub fn set_guest_debug(&self, debug: &GuestDebug) -> Result<(), Errno> {
        self.handle.write(number::SET_GUEST_DEBUG, debug).map(drop)
    }

    /// KVM_SET_DEVICE_ATTR, whose data is of the type that the attribute has.
    ///
    /// # Errors
    ///
    /// `ENXIO` for an attribute that is not there; its own.
    pub fn set_attribute<T>(&self, group: u32, attr: u64, data: &T) -> Result<(), Errno> {
        let attr = DeviceAttr { flags: 0, group, attr, addr: address(data) };
        self.handle.write(number::SET_DEVICE_ATTR, &attr).map(drop)
    }
}

/// Whether a register with this id has this many bytes.
fn size_is(id: u64, bytes: usize) -> Result<(), Errno> {
    let size = 1_usize << (id >> crate::uapi::reg::SIZE_SHIFT & 0xf);
    if size == bytes { Ok(()) } else { Err(Errno::EINVAL) }
}

/// A device of a VM.
#[derive(Debug)]
pub struct Device<B: Backend>(Handle<B>);

impl<B: Backend> Device<B> {
    /// Its handle.
    pub fn handle(&self) -> u64 {
        self.0.number()
    }

    /// KVM_HAS_DEVICE_ATTR: whether there is such an attribute.
    ///
    /// # Errors
    ///
    /// `ENXIO` if there is none.
    pub fn has_attribute(&self, group: u32, attr: u64) -> Result<(), Errno> {
        self.0.write(number::HAS_DEVICE_ATTR, &DeviceAttr { flags: 0, group, attr, addr: 0 }).map(drop)
    }

    /// KVM_SET_DEVICE_ATTR, whose data is of the type that the attribute has: `u32`, `u64`, or `()` for a command.
    ///
    /// # Errors
    ///
    /// `ENXIO` for an attribute that is not there; its own.
    pub fn set_attribute<T>(&self, group: u32, attr: u64, data: &T) -> Result<(), Errno> {
        let attr = DeviceAttr { flags: 0, group, attr, addr: address(data) };
        self.0.write(number::SET_DEVICE_ATTR, &attr).map(drop)
    }

    /// KVM_GET_DEVICE_ATTR.
    ///
    /// # Errors
    ///
    /// As [`Self::set_attribute`].
    pub fn attribute<T: Default>(&self, group: u32, attr: u64) -> Result<T, Errno> {
        let mut data = T::default();
        let attr = DeviceAttr { flags: 0, group, attr, addr: address_mut(&mut data) };
        self.0.write(number::GET_DEVICE_ATTR, &attr)?;
        Ok(data)
    }
}
