//! KVM's calls on the ITS device, KVM_DEV_TYPE_ARM_VGIC_ITS (Linux, Documentation/virt/kvm/devices/arm-vgic-its.rst).
//!
//! A VM has one at most. Its tables are in the guest's memory all the time, so saving and restoring them is saving and
//! restoring that memory, and the two calls for it have nothing to do.

use super::{
    Errno,
    uapi::vgic::{
        ADDR_ITS, CTRL_INIT, CTRL_ITS_RESET, CTRL_ITS_RESTORE_TABLES, CTRL_ITS_SAVE_TABLES, GROUP_ADDR, GROUP_CTRL,
        GROUP_ITS_REGS, ITS_SIZE, V3_ALIGNMENT,
    },
    vgic::{ItsSetup, set_address},
    vm::Vm,
};
use crate::{
    arch::features,
    mm::Ipa,
    vdev::{
        its::{Its, RegisterError},
        vgic::{Vgic, VgicHost},
    },
};
use alloc::sync::Arc;

/// What GET answers for an address that was not set.
const UNSET: u64 = u64::MAX;

impl From<RegisterError> for Errno {
    fn from(error: RegisterError) -> Self {
        match error {
            RegisterError::Unknown => Self::ENXIO,
            RegisterError::Invalid => Self::EINVAL,
        }
    }
}

impl Vm {
    /// KVM_CREATE_DEVICE of an ITS, which gives the VM LPIs.
    ///
    /// # Errors
    ///
    /// `ENODEV` without a GICv3; `EEXIST` if there is one; `EBUSY` once a vCPU has run.
    pub(super) fn create_its(&self) -> Result<(), Errno> {
        if !features::has_gic_system_registers() {
            return Err(Errno::ENODEV);
        }
        if self.machine.is_completed() {
            return Err(Errno::EBUSY);
        }
        let mut setup = self.setup.lock();
        if setup.vgic.its.is_some() {
            return Err(Errno::EEXIST);
        }
        if let Some(vgic) = &setup.vgic.vgic {
            vgic.give_lpis(self.shared_slots().clone()).map_err(|_| Errno::ENOMEM)?;
        }
        let its = Arc::new(Its::new(self.shared_slots().clone()));
        setup.vgic.its = Some(ItsSetup { address: None, its });
        Ok(())
    }

    /// Whether it has one.
    pub fn has_its(&self) -> bool {
        self.setup.lock().vgic.its.is_some()
    }

    /// KVM_HAS_DEVICE_ATTR of the ITS.
    ///
    /// # Errors
    ///
    /// `ENXIO` for an attribute that is not there; of a register, `EINVAL` if it is misaligned.
    pub fn has_its_attr(&self, group: u32, attribute: u64) -> Result<(), Errno> {
        if self.setup.lock().vgic.its.is_none() {
            return Err(Errno::ENXIO);
        }
        match (group, attribute) {
            (GROUP_ADDR, ADDR_ITS)
            | (GROUP_CTRL, CTRL_INIT | CTRL_ITS_SAVE_TABLES | CTRL_ITS_RESTORE_TABLES | CTRL_ITS_RESET) => Ok(()),
            (GROUP_ITS_REGS, offset) => Ok(Its::user_has(offset)?),
            _ => Err(Errno::ENXIO),
        }
    }

    /// KVM_SET_DEVICE_ATTR of the ITS.
    ///
    /// # Errors
    ///
    /// `ENXIO` without an ITS, for an unknown attribute, and for a register before the ITS has its address. The address:
    /// `ENODEV` for another type, `EEXIST`, `EINVAL`, `E2BIG` as for the vGIC's, `EBUSY` once a vCPU has run. Registers and
    /// control: `EBUSY` while a vCPU runs, `EINVAL` if misaligned or for a value that the register does not take.
    pub fn set_its_attr(&self, group: u32, attribute: u64, value: u64) -> Result<(), Errno> {
        let ipa_bits = self.ipa_bits();
        match (group, attribute) {
            (GROUP_ADDR, ADDR_ITS) => {
                let mut setup = self.setup.lock();
                let its = setup.vgic.its.as_mut().ok_or(Errno::ENXIO)?;
                if its.address.is_none() && self.machine.is_completed() {
                    return Err(Errno::EBUSY);
                }
                set_address(&mut its.address, value, ITS_SIZE, V3_ALIGNMENT, ipa_bits)?;
                let its = its.its.clone();
                if let Some(bindings) = &setup.user {
                    bindings.set_its(&its, value);
                }
                Ok(())
            }
            (GROUP_ADDR, _) => Err(Errno::ENODEV),
            (GROUP_CTRL, CTRL_INIT) => self.has_its_attr(group, attribute),
            (GROUP_CTRL, CTRL_ITS_SAVE_TABLES | CTRL_ITS_RESTORE_TABLES) => self.with_its(|_, _, _| Ok(())),
            (GROUP_CTRL, CTRL_ITS_RESET) => self.with_its(|its, _, _| {
                its.reset();
                Ok(())
            }),
            (GROUP_ITS_REGS, offset) => self.with_its(|its, vgic, host| Ok(its.user_write(offset, value, vgic, host)?)),
            _ => Err(Errno::ENXIO),
        }
    }

    /// KVM_GET_DEVICE_ATTR of the ITS.
    ///
    /// # Errors
    ///
    /// As [`set_its_attr`](Self::set_its_attr).
    pub fn get_its_attr(&self, group: u32, attribute: u64) -> Result<u64, Errno> {
        match (group, attribute) {
            (GROUP_ADDR, ADDR_ITS) => {
                let setup = self.setup.lock();
                let its = setup.vgic.its.as_ref().ok_or(Errno::ENXIO)?;
                Ok(its.address.map_or(UNSET, |Ipa(address)| address))
            }
            (GROUP_ADDR, _) => Err(Errno::ENODEV),
            (GROUP_ITS_REGS, offset) => self.with_its(|its, vgic, host| Ok(its.user_read(offset, vgic, host)?)),
            _ => Err(Errno::ENXIO),
        }
    }

    /// Does something with the ITS while no vCPU runs.
    fn with_its<R>(&self, access: impl FnOnce(&Its, &Vgic, &dyn VgicHost) -> Result<R, Errno>) -> Result<R, Errno> {
        let its = {
            let setup = self.setup.lock();
            let its = setup.vgic.its.as_ref().filter(|its| its.address.is_some()).ok_or(Errno::ENXIO)?;
            its.its.clone()
        };
        self.stopped(|vgic, host, _| access(&its, vgic, host))
    }
}
