//! KVM_SET_DEVICE_ATTR, KVM_GET_DEVICE_ATTR and KVM_HAS_DEVICE_ATTR on a vCPU (Linux,
//! Documentation/virt/kvm/devices/vcpu.rst).

use super::{
    Errno,
    uapi::{
        SmcccFilter,
        vcpu::{GROUP_PVTIME, PVTIME_IPA},
    },
    vcpu::Vcpu,
    vm::Vm,
};
use crate::{
    hypercall::{pvtime::STRUCTURE_BYTES, services::Service},
    mm::Ipa,
};

/// What GET answers for an address that was not set.
const UNSET: u64 = u64::MAX;

impl Vcpu {
    /// KVM_SET_DEVICE_ATTR.
    ///
    /// # Errors
    ///
    /// `ENXIO` for an attribute that keel does not have. KVM_ARM_VCPU_PVTIME_IPA: `EINVAL` if it is not a multiple of 64 or
    /// not in a memory slot, `EEXIST` if it is set already.
    pub fn set_device_attr(&self, vm: &Vm, group: u32, attribute: u64, value: u64) -> Result<(), Errno> {
        self.has_device_attr(group, attribute)?;
        if !value.is_multiple_of(STRUCTURE_BYTES) {
            return Err(Errno::EINVAL);
        }
        if self.stolen.address().is_some() {
            return Err(Errno::EEXIST);
        }
        let (block, offset) = vm.slots().locate(Ipa(value), STRUCTURE_BYTES).ok_or(Errno::EINVAL)?;
        if self.stolen.place(value, block, offset) { Ok(()) } else { Err(Errno::EEXIST) }
    }

    /// KVM_GET_DEVICE_ATTR.
    ///
    /// # Errors
    ///
    /// `ENXIO` for an attribute that keel does not have.
    pub fn get_device_attr(&self, group: u32, attribute: u64) -> Result<u64, Errno> {
        self.has_device_attr(group, attribute)?;
        Ok(self.stolen.address().unwrap_or(UNSET))
    }

    /// KVM_HAS_DEVICE_ATTR.
    ///
    /// # Errors
    ///
    /// `ENXIO` for an attribute that keel does not have.
    pub fn has_device_attr(&self, group: u32, attribute: u64) -> Result<(), Errno> {
        match (group, attribute) {
            (GROUP_PVTIME, PVTIME_IPA) => Ok(()),
            _ => Err(Errno::ENXIO),
        }
    }
}

impl Vm {
    /// KVM_SET_DEVICE_ATTR of KVM_ARM_VM_SMCCC_FILTER: says what becomes of a range of calls.
    ///
    /// # Errors
    ///
    /// Those of [`Filter::insert`](super::filter::Filter::insert).
    pub fn set_smccc_filter(&self, range: &SmcccFilter) -> Result<(), Errno> {
        self.change_filter(|filter, ran| filter.insert(range, ran))
    }

    /// KVM_ENABLE_CAP for KVM_CAP_ARM_SYSTEM_SUSPEND: PSCI's SYSTEM_SUSPEND is there.
    ///
    /// # Errors
    ///
    /// `EBUSY` once a vCPU has run.
    pub fn enable_system_suspend(&self) -> Result<(), Errno> {
        self.change_services(|services| services.system_suspend = true)
    }

    /// Builds the VM as a protected guest: its pages have states ([`Service::ProtectedMemory`]).
    ///
    /// # Errors
    ///
    /// `EBUSY` once a vCPU has run.
    pub fn protect_memory(&self) -> Result<(), Errno> {
        self.change_services(|services| services.protected_memory = true)?;
        debug_assert!(self.services().has(Service::ProtectedMemory));
        Ok(())
    }

    /// Lets the guest make errors pending for itself ([`Service::TestInjection`]).
    ///
    /// # Errors
    ///
    /// `EBUSY` once a vCPU has run.
    pub fn enable_test_injection(&self) -> Result<(), Errno> {
        self.change_services(|services| services.test_injection = true)
    }
}
