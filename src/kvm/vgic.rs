//! Saving and restoring the vGICv3: KVM_SET_DEVICE_ATTR, KVM_GET_DEVICE_ATTR and KVM_HAS_DEVICE_ATTR of its registers (Linux,
//! Documentation/virt/kvm/devices/arm-vgic-v3.rst).
//!
//! Registers exist from the vGIC's initialisation on, and can be accessed while no vCPU runs. The first access makes the
//! machine of the VM, as its first run does: what that fixes cannot be changed afterwards.

use super::{
    Errno, Machine,
    interrupts::Outside,
    uapi::vgic::{
        ADDR_V3_DIST, ADDR_V3_REDIST, CTRL_INIT, CTRL_SAVE_PENDING_TABLES, GROUP_ADDR, GROUP_CPU_SYSREGS, GROUP_CTRL,
        GROUP_DIST_REGS, GROUP_LEVEL_INFO, GROUP_NR_IRQS, GROUP_REDIST_REGS,
    },
    vcpu::Inner,
    vm::Vm,
};
use crate::{
    arch::gic::virtual_interface,
    mm::Ipa,
    vdev::vgic::{
        Frame, UserAccessError, Version,
        cpu_registers::{self, Abilities},
    },
};
use alloc::vec::Vec;
use spin::MutexGuard;

/// What GET answers for an address that was not set.
const UNSET: u64 = u64::MAX;
/// The number of interrupts that GET answers before it is set: private ones only.
const PRIVATE_ONLY: u64 = 32;

/// A register of a group: the part of an attribute below the vCPU.
#[derive(Clone, Copy)]
enum Register {
    Frame(Frame, u64),
    Cpu(usize, u16),
    /// Levels of 32 lines from this INTID on, of a vCPU's private ones.
    Levels(usize, u32),
}

impl Machine {
    /// The vCPU in bits 63:32 of an attribute: Aff3 to Aff0, a byte each.
    fn attribute_vcpu(&self, attribute: u64) -> Result<usize, Errno> {
        let affinity = attribute >> 32 & 0xff_ffff | (attribute >> 56) << 32;
        self.vgic.vcpu_with_affinity(affinity).ok_or(Errno::EINVAL)
    }

    fn vgic_register(&self, group: u32, attribute: u64) -> Result<Register, Errno> {
        let low = attribute & 0xffff_ffff;
        Ok(match group {
            GROUP_DIST_REGS => Register::Frame(Frame::Distributor, low),
            GROUP_REDIST_REGS => Register::Frame(Frame::Redistributor(self.attribute_vcpu(attribute)?), low),
            GROUP_CPU_SYSREGS => Register::Cpu(self.attribute_vcpu(attribute)?, attribute as u16),
            GROUP_LEVEL_INFO => {
                let vcpu = self.attribute_vcpu(attribute)?;
                // VGIC_LEVEL_INFO_LINE_LEVEL is all there is, of 32 interrupts at a time.
                if low >> 10 != 0 || !low.is_multiple_of(32) {
                    return Err(Errno::EINVAL);
                }
                Register::Levels(vcpu, low as u32)
            }
            _ => return Err(Errno::ENXIO),
        })
    }
}

fn abilities() -> Abilities {
    Abilities(virtual_interface::vtr())
}

fn cpu_error(error: UserAccessError) -> Errno {
    match error {
        UserAccessError::Unknown => Errno::ENOENT,
        UserAccessError::Invalid => Errno::EINVAL,
    }
}

impl Vm {
    /// Does something with the machine while no vCPU runs.
    ///
    /// # Errors
    ///
    /// `EBUSY` before the vGIC is initialised, or while a vCPU runs; those of [`machine`](Self::machine).
    pub(super) fn stopped<R>(&self, access: impl FnOnce(&Machine) -> Result<R, Errno>) -> Result<R, Errno> {
        self.with_vcpus(|machine, _| access(machine))
    }

    fn with_vcpus<R>(
        &self,
        access: impl FnOnce(&Machine, &mut [MutexGuard<'_, Inner>]) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        if !self.setup.lock().vgic.initialised {
            return Err(Errno::EBUSY);
        }
        let machine = self.machine()?;
        let parked: Option<Vec<_>> = machine.vcpus.iter().map(|vcpu| vcpu.try_parked()).collect();
        access(&machine, &mut parked.ok_or(Errno::EBUSY)?)
    }

    /// KVM_HAS_DEVICE_ATTR of the vGICv3.
    ///
    /// # Errors
    ///
    /// `ENXIO` for what is not there.
    pub fn has_vgic_attr(&self, group: u32, attribute: u64) -> Result<(), Errno> {
        let low = attribute & 0xffff_ffff;
        let there = match group {
            GROUP_ADDR => matches!(attribute, ADDR_V3_DIST | ADDR_V3_REDIST),
            GROUP_NR_IRQS => true,
            GROUP_CTRL => matches!(attribute, CTRL_INIT | CTRL_SAVE_PENDING_TABLES),
            GROUP_DIST_REGS => Frame::Distributor.has(low),
            GROUP_REDIST_REGS => Frame::Redistributor(0).has(low),
            GROUP_CPU_SYSREGS => cpu_registers::exists(attribute as u16),
            GROUP_LEVEL_INFO => low >> 10 == 0,
            _ => false,
        };
        if there { Ok(()) } else { Err(Errno::ENXIO) }
    }

    /// KVM_GET_DEVICE_ATTR of the vGICv3.
    ///
    /// # Errors
    ///
    /// `ENXIO` for an unknown attribute or no vGIC. Of registers: `EINVAL` for an unknown vCPU, `EBUSY` before the vGIC is
    /// initialised or while a vCPU runs, `ENOENT` for an unknown system register.
    pub fn get_vgic_attr(&self, group: u32, attribute: u64) -> Result<u64, Errno> {
        {
            let setup = self.setup.lock();
            let vgic = &setup.vgic;
            if vgic.version != Some(Version::V3) {
                return Err(Errno::ENXIO);
            }
            let address = |address: Option<Ipa>| address.map_or(UNSET, |Ipa(address)| address);
            match (group, attribute) {
                (GROUP_ADDR, ADDR_V3_DIST) => return Ok(address(vgic.distributor)),
                (GROUP_ADDR, ADDR_V3_REDIST) => return Ok(address(vgic.redistributors)),
                (GROUP_NR_IRQS, _) => return Ok(vgic.interrupts.map_or(PRIVATE_ONLY, u64::from)),
                _ => {}
            }
        }
        self.with_vcpus(|machine, vcpus| {
            Ok(match machine.vgic_register(group, attribute)? {
                // An unknown register reads as zero, as in KVM.
                Register::Frame(frame, offset) => machine.vgic.user_read(frame, offset).unwrap_or(0).into(),
                Register::Cpu(vcpu, encoding) => {
                    let inner = vcpus.get(vcpu).ok_or(Errno::EINVAL)?;
                    cpu_registers::read(&inner.vgic, abilities(), encoding).map_err(cpu_error)?
                }
                Register::Levels(vcpu, intid) => machine.vgic.line_levels(vcpu, intid).into(),
            })
        })
    }

    /// KVM_SET_DEVICE_ATTR of the vGICv3's registers, and its control operations beside INIT.
    ///
    /// # Errors
    ///
    /// As [`get_vgic_attr`](Self::get_vgic_attr); `EINVAL` for a value that a register does not take; `EFAULT` if a table for
    /// pending LPIs is not memory.
    pub fn set_vgic_attr(&self, group: u32, attribute: u64, value: u64) -> Result<(), Errno> {
        if self.setup.lock().vgic.version != Some(Version::V3) {
            return Err(Errno::ENXIO);
        }
        self.with_vcpus(|machine, vcpus| {
            if (group, attribute) == (GROUP_CTRL, CTRL_SAVE_PENDING_TABLES) {
                return if machine.vgic.save_pending_lpis() { Ok(()) } else { Err(Errno::EFAULT) };
            }
            match machine.vgic_register(group, attribute)? {
                Register::Frame(frame, offset) => {
                    match machine.vgic.user_write(frame, offset, value as u32) {
                        Err(UserAccessError::Invalid) => Err(Errno::EINVAL),
                        // A write of an unknown register is ignored, as in KVM.
                        Ok(()) | Err(UserAccessError::Unknown) => Ok(()),
                    }
                }
                Register::Cpu(vcpu, encoding) => {
                    let inner = vcpus.get_mut(vcpu).ok_or(Errno::EINVAL)?;
                    cpu_registers::write(&mut inner.vgic, abilities(), encoding, value).map_err(cpu_error)
                }
                Register::Levels(vcpu, intid) => {
                    machine.vgic.set_line_levels(vcpu, intid, value as u32, &Outside(machine));
                    Ok(())
                }
            }
        })
    }
}
