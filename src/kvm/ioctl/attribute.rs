//! KVM's device attributes: `struct kvm_device_attr`, and the data that it points to.

use super::{
    super::{Errno, memory::Slots, uapi::vgic},
    api::{Device, UserVm},
    numbers::Call,
    user::{UserMemory, copy_in, copy_out, field32, field64},
};

/// `struct kvm_device_attr`. Its flags are not looked at, as in KVM.
pub(super) struct Attribute {
    pub group: u32,
    pub attr: u64,
    pub addr: u64,
}

impl Attribute {
    pub fn read(caller: &Slots, address: u64) -> Result<Self, Errno> {
        let bytes = copy_in::<24>(caller, address)?;
        Ok(Self { group: field32(&bytes, 4), attr: field64(&bytes, 8), addr: field64(&bytes, 16) })
    }

    /// The first `size` bytes of its data, as a number.
    pub fn data(&self, caller: &Slots, size: usize) -> Result<u64, Errno> {
        let mut bytes = [0; 8];
        let data = bytes.get_mut(..size).ok_or(Errno::EINVAL)?;
        if caller.read(self.addr, data) { Ok(u64::from_le_bytes(bytes)) } else { Err(Errno::EFAULT) }
    }

    /// Writes `size` bytes of data.
    pub fn put(&self, caller: &Slots, size: usize, value: u64) -> Result<(), Errno> {
        copy_out(caller, self.addr, value.to_le_bytes().get(..size).ok_or(Errno::EINVAL)?)
    }
}

impl Device {
    /// Bytes of data of an attribute.
    fn size(self, group: u32) -> usize {
        match (self, group) {
            // Commands have no data; and nothing is read for a group that there is not.
            (_, vgic::GROUP_CTRL) => 0,
            (_, group) if group > vgic::GROUP_ITS_REGS => 0,
            (Self::Its, _) | (Self::Vgic, vgic::GROUP_ADDR | vgic::GROUP_CPU_SYSREGS) => 8,
            (Self::Vgic, _) => 4,
        }
    }
}

/// A call on a device.
pub(super) fn device_call(
    user: &UserVm,
    device: Device,
    call: Call,
    argument: u64,
    caller: &Slots,
) -> Result<u64, Errno> {
    let vm = &user.vm;
    let attr = Attribute::read(caller, argument)?;
    let Attribute { group, attr: attribute, .. } = attr;
    let size = device.size(group);
    match (call, device) {
        (Call::HasDeviceAttr, Device::Vgic) => vm.has_vgic_attr(group, attribute)?,
        (Call::HasDeviceAttr, Device::Its) => vm.has_its_attr(group, attribute)?,
        (Call::SetDeviceAttr, Device::Vgic) => vm.set_device_attr(group, attribute, attr.data(caller, size)?)?,
        (Call::SetDeviceAttr, Device::Its) => vm.set_its_attr(group, attribute, attr.data(caller, size)?)?,
        (Call::GetDeviceAttr, Device::Vgic)
            if (group, attribute) == (vgic::GROUP_ADDR, vgic::ADDR_V3_REDIST_REGION) =>
        {
            // Which region is asked for is in the data.
            attr.put(caller, size, vm.redistributor_region(attr.data(caller, size)?)?)?;
        }
        (Call::GetDeviceAttr, Device::Vgic) => attr.put(caller, size, vm.get_vgic_attr(group, attribute)?)?,
        (Call::GetDeviceAttr, Device::Its) => attr.put(caller, size, vm.get_its_attr(group, attribute)?)?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}
