//! KVM's calls on the interrupt controller: KVM_CREATE_DEVICE, KVM_SET_DEVICE_ATTR, KVM_GET_DEVICE_ATTR and
//! KVM_HAS_DEVICE_ATTR (Linux, Documentation/virt/kvm/devices/arm-vgic.rst, arm-vgic-v3.rst).
//!
//! Registers exist from the vGIC's initialisation on, and can be accessed while no vCPU runs.

use super::{
    Errno,
    interrupts::{self, Outside},
    ioctl::irq_line::{self, Line},
    memory::Slots,
    physical,
    redistributors::{Around, Frames, Redistributors},
    uapi::{
        DEVICE_ARM_VGIC_ITS, DEVICE_ARM_VGIC_V2, DEVICE_ARM_VGIC_V3,
        vgic::{
            self, ADDR_V3_DIST, ADDR_V3_REDIST, CTRL_INIT, CTRL_SAVE_PENDING_TABLES, GROUP_ADDR, GROUP_CPU_REGS,
            GROUP_CPU_SYSREGS, GROUP_CTRL, GROUP_DIST_REGS, GROUP_LEVEL_INFO, GROUP_NR_IRQS, GROUP_REDIST_REGS,
        },
    },
    vcpu::{Inner, Vcpu},
    vm::Vm,
};
use crate::{
    arch::{features, gic::virtual_interface},
    mm::Ipa,
    vdev::{
        its::Its,
        vgic::{
            DEFAULT_SPIS, Frame, MAX_SPIS, MAX_VCPUS, MAX_VCPUS_V2, UserAccessError, Version, Vgic, VgicConfig,
            VgicCpu, VgicHost,
            cpu_registers::{self, Abilities},
        },
    },
};
use alloc::{sync::Arc, vec::Vec};
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
    /// Of a GICv2's CPU interface.
    CpuV2(usize, u64),
    /// Levels of 32 lines from this INTID on, of a vCPU's private ones.
    Levels(usize, u32),
}

/// Whom interrupts reach before a vCPU has run: nobody looks.
struct Nobody;

impl VgicHost for Nobody {
    fn kick(&self, _: usize) {}
    fn sync(&self, _: usize) {}
    fn come_back(&self, _: usize) {}
}

impl Register {
    /// The vCPU in bits 63:32 of an attribute: Aff3 to Aff0, a byte each.
    fn vcpu(vgic: &Vgic, attribute: u64) -> Result<usize, Errno> {
        let affinity = attribute >> 32 & 0xff_ffff | (attribute >> 56) << 32;
        vgic.vcpu_with_affinity(affinity).ok_or(Errno::EINVAL)
    }

    fn find(vgic: &Vgic, group: u32, attribute: u64) -> Result<Self, Errno> {
        let low = attribute & 0xffff_ffff;
        if vgic.version() == Version::V2 {
            // The vCPU is a number there, in bits 39:32.
            let vcpu = (attribute >> 32 & 0xff) as usize;
            return match group {
                _ if vcpu >= vgic.vcpus() => Err(Errno::EINVAL),
                GROUP_DIST_REGS => Ok(Register::Frame(Frame::DistributorV2(vcpu), low)),
                GROUP_CPU_REGS => Ok(Register::CpuV2(vcpu, low)),
                _ => Err(Errno::ENXIO),
            };
        }
        Ok(match group {
            GROUP_DIST_REGS => Register::Frame(Frame::Distributor, low),
            GROUP_REDIST_REGS => Register::Frame(Frame::Redistributor(Self::vcpu(vgic, attribute)?), low),
            GROUP_CPU_SYSREGS => Register::Cpu(Self::vcpu(vgic, attribute)?, attribute as u16),
            GROUP_LEVEL_INFO => {
                let vcpu = Self::vcpu(vgic, attribute)?;
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

/// A VM's interrupt controller while it is put together.
#[derive(Debug, Default)]
pub(super) struct VgicSetup {
    /// `None` until it is created.
    pub(super) version: Option<Version>,
    /// What it does, from its initialisation on.
    pub(super) vgic: Option<Arc<Vgic>>,
    pub(super) interrupts: Option<u32>,
    pub(super) distributor: Option<Ipa>,
    /// A GICv3's.
    redistributors: Redistributors,
    /// A GICv2's.
    pub(super) cpu_interface: Option<Ipa>,
    /// The guest has it there.
    pub(super) is_mapped: bool,
    /// Accesses to the CPU interface's registers that both groups share trap at all times.
    pub(super) traps_common: bool,
    pub(super) its: Option<ItsSetup>,
}

impl VgicSetup {
    /// Whether KVM_DEV_ARM_VGIC_CTRL_INIT was called.
    pub(super) fn is_initialised(&self) -> bool {
        self.vgic.is_some()
    }

    /// Makes it, for these vCPUs.
    ///
    /// # Errors
    ///
    /// `EINVAL` for what no such interrupt controller can be; `ENOMEM`.
    pub(super) fn initialise(&mut self, vcpus: &[Arc<Vcpu>], slots: &Arc<Slots>) -> Result<Arc<Vgic>, Errno> {
        if let Some(vgic) = &self.vgic {
            return Ok(vgic.clone());
        }
        let mpidrs: Vec<u64> = vcpus.iter().map(|vcpu| vcpu.mpidr()).collect();
        let config = VgicConfig { mpidrs: &mpidrs, spis: self.spis() };
        let vgic = if self.version == Some(Version::V2) { Vgic::new_v2(&config) } else { Vgic::new(&config) };
        let vgic = Arc::new(vgic.map_err(|_| Errno::EINVAL)?);
        if self.its.is_some() {
            vgic.give_lpis(slots.clone()).map_err(|_| Errno::ENOMEM)?;
        }
        Ok(self.vgic.insert(vgic).clone())
    }

    /// The most vCPUs that a VM with it can have.
    pub(super) fn max_vcpus(&self) -> usize {
        if self.version == Some(Version::V2) { MAX_VCPUS_V2 } else { MAX_VCPUS }
    }

    /// Where its redistributors are.
    ///
    /// # Errors
    ///
    /// Those of [`Redistributors::frames`].
    pub(super) fn redistributor_frames(&self, vcpus: usize, ipa_bits: u32) -> Result<Vec<Frames>, Errno> {
        self.redistributors.frames(&self.around(vcpus, ipa_bits))
    }

    fn around(&self, vcpus: usize, ipa_bits: u32) -> Around {
        Around { vcpus, distributor: self.distributor.map(|Ipa(address)| address), ipa_bits }
    }

    /// How many shared interrupts there are.
    pub(super) fn spis(&self) -> usize {
        self.interrupts.map_or(DEFAULT_SPIS, |interrupts| (interrupts as usize - 32).min(MAX_SPIS))
    }
}

/// The ITS that was created.
#[derive(Debug)]
pub(super) struct ItsSetup {
    pub(super) address: Option<Ipa>,
    pub(super) its: Arc<Its>,
}

impl Vm {
    /// Whether there is an interrupt controller, and whether it is initialised with interrupt `intid`.
    pub(super) fn vgic_has(&self, intid: u32) -> (bool, Result<(), Errno>) {
        let vgic = &self.setup.lock().vgic;
        let has = if !vgic.is_initialised() {
            Err(Errno::ENODEV)
        } else if intid < 32 + vgic.spis() as u32 {
            Ok(())
        } else {
            Err(Errno::EINVAL)
        };
        (vgic.version.is_some(), has)
    }

    /// The most vCPUs that it can have: fewer with a vGICv2.
    pub fn max_vcpus(&self) -> usize {
        self.setup.lock().vgic.max_vcpus()
    }

    /// KVM_CREATE_DEVICE with KVM_CREATE_DEVICE_TEST.
    ///
    /// # Errors
    ///
    /// `ENODEV` for a type that keel does not have.
    pub fn has_device(&self, kind: u32) -> Result<(), Errno> {
        let has_v3 = !physical::has_gicv2() && features::has_gic_system_registers();
        match kind {
            DEVICE_ARM_VGIC_V2 if physical::has_gicv2() => Ok(()),
            DEVICE_ARM_VGIC_V3 | DEVICE_ARM_VGIC_ITS if has_v3 => Ok(()),
            _ => Err(Errno::ENODEV),
        }
    }

    /// KVM_CREATE_DEVICE.
    ///
    /// # Errors
    ///
    /// `ENODEV` for a type that keel does not have on this machine: a GICv3's VMs have a vGICv3 and can have an ITS, a GICv2's a
    /// vGICv2; `EEXIST` if there is an interrupt controller, or an ITS, already; `EBUSY` once a vCPU has run; `E2BIG` if there
    /// are more vCPUs than it can have.
    pub fn create_device(&self, kind: u32) -> Result<(), Errno> {
        self.has_device(kind)?;
        let version = match kind {
            DEVICE_ARM_VGIC_ITS => return self.create_its(),
            DEVICE_ARM_VGIC_V2 => Version::V2,
            _ => Version::V3,
        };
        let vcpus = self.vcpus().len();
        let mut setup = self.setup.lock();
        if setup.vgic.version.is_some() {
            return Err(Errno::EEXIST);
        }
        if self.has_run() {
            return Err(Errno::EBUSY);
        }
        let vgic = VgicSetup { version: Some(version), ..VgicSetup::default() };
        if vcpus > vgic.max_vcpus() {
            return Err(Errno::E2BIG);
        }
        setup.vgic = vgic;
        Ok(())
    }

    /// KVM_ARM_SET_DEVICE_ADDR: `id` bits 31:16 the device, 15:0 the kind of address; of a vGICv2 only.
    ///
    /// # Errors
    ///
    /// `ENODEV` for another device or kind, and for a VM with another interrupt controller or none; else those of
    /// [`set_device_attr`](Self::set_device_attr).
    pub fn set_device_addr(&self, id: u32, address: u64) -> Result<(), Errno> {
        let kind = u64::from(id & 0xffff);
        let has_v2 = self.setup.lock().vgic.version == Some(Version::V2);
        if id >> 16 != 0 || !matches!(kind, vgic::ADDR_V2_DIST | vgic::ADDR_V2_CPU) || !has_v2 {
            return Err(Errno::ENODEV);
        }
        self.set_device_attr(GROUP_ADDR, kind, address)
    }

    /// KVM_IRQ_LINE.
    ///
    /// # Errors
    ///
    /// `ENXIO` for a CPU's pin where there is an interrupt controller, and for a line of one where there is none; `EINVAL`
    /// for what is not there; `EBUSY` before a vGICv3 is initialised.
    pub fn irq_line(&self, irq: u32, level: bool) -> Result<(), Errno> {
        let vcpus = self.vcpus();
        let vgic = {
            let mut setup = self.setup.lock();
            match setup.vgic.version {
                None => None,
                Some(Version::V2) => Some(setup.vgic.initialise(&vcpus, self.shared_slots())?),
                Some(Version::V3) => {
                    // How many interrupts there are is only known then.
                    irq_line::decode(irq, vcpus.len(), Some(u32::MAX))?;
                    Some(setup.vgic.vgic.clone().ok_or(Errno::EBUSY)?)
                }
            }
        };
        let interrupts = vgic.is_some().then(|| 32 + self.setup.lock().vgic.spis() as u32);
        let line = irq_line::decode(irq, vcpus.len(), interrupts)?;
        let nobody = Nobody;
        let outside = self.machine.get().map(|machine| Outside(machine));
        let host: &dyn VgicHost = outside.as_ref().map_or(&nobody, |outside| outside);
        match (line, vgic) {
            (Line::Shared(intid), Some(vgic)) => vgic.set_spi(intid, level, host),
            // A line that a timer or the PMU drives is theirs.
            (Line::Private { vcpu, intid }, Some(vgic)) if !vgic.is_mapped(vcpu, intid) => {
                vgic.set_ppi(vcpu, intid, level, host);
            }
            (Line::Cpu { vcpu, pin }, _) => {
                if let Some(vcpu) = vcpus.get(vcpu) {
                    interrupts::set_pin(vcpu, pin, level);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// KVM_SIGNAL_MSI: a device writes `data` to `address`. Whether it became an interrupt.
    ///
    /// # Errors
    ///
    /// `EINVAL` without an initialised interrupt controller, without a DeviceID, or where no ITS is; `ENODEV` if there is no
    /// ITS; `EBUSY` if the guest has not enabled it.
    pub fn signal_msi(&self, address: u64, device: Option<u32>, data: u32) -> Result<bool, Errno> {
        let (vgic, its) = {
            let setup = self.setup.lock();
            let vgic = setup.vgic.vgic.clone().filter(|_| setup.vgic.version.is_some()).ok_or(Errno::EINVAL)?;
            let its = setup.vgic.its.as_ref().ok_or(Errno::ENODEV)?;
            // Anywhere in its frames, as in KVM.
            let inside = its
                .address
                .and_then(|Ipa(base)| address.checked_sub(base))
                .is_some_and(|offset| offset < vgic::ITS_SIZE);
            (vgic, Some(its.its.clone()).filter(|_| inside))
        };
        let device = device.ok_or(Errno::EINVAL)?;
        let its = its.ok_or(Errno::EINVAL)?;
        if !its.is_enabled() {
            return Err(Errno::EBUSY);
        }
        Ok(match self.machine.get() {
            Some(machine) => its.send_msi(device, data, &vgic, &Outside(machine)),
            None => its.send_msi(device, data, &vgic, &Nobody),
        })
    }

    /// KVM_GET_DEVICE_ATTR of KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION: the region whose number is in `request`.
    ///
    /// # Errors
    ///
    /// `ENXIO` without a vGICv3, `ENOENT` if there is no such region.
    pub fn redistributor_region(&self, request: u64) -> Result<u64, Errno> {
        let setup = self.setup.lock();
        if setup.vgic.version != Some(Version::V3) {
            return Err(Errno::ENXIO);
        }
        setup.vgic.redistributors.region(request).ok_or(Errno::ENOENT)
    }

    /// KVM_CREATE_IRQCHIP: a vGICv2.
    ///
    /// # Errors
    ///
    /// As [`create_device`](Self::create_device).
    pub fn create_irqchip(&self) -> Result<(), Errno> {
        self.create_device(DEVICE_ARM_VGIC_V2)
    }

    /// KVM_SET_DEVICE_ATTR of the vGIC.
    ///
    /// # Errors
    ///
    /// As KVM: `ENXIO` for an unknown attribute or no vGIC; `EEXIST`, `EINVAL`, `E2BIG` for addresses set twice,
    /// misaligned or beyond the IPA space; `EINVAL`, `EBUSY` for the number of interrupts; for registers, see
    /// `set_vgic_attr`.
    pub fn set_device_attr(&self, group: u32, attribute: u64, value: u64) -> Result<(), Errno> {
        if !matches!(
            (group, attribute),
            (vgic::GROUP_ADDR | vgic::GROUP_NR_IRQS, _) | (vgic::GROUP_CTRL, vgic::CTRL_INIT)
        ) {
            return self.set_vgic_attr(group, attribute, value);
        }
        let ipa_bits = self.ipa_bits();
        let vcpus = self.vcpus();
        let mut setup = self.setup.lock();
        let vgic = &mut setup.vgic;
        let version = vgic.version.ok_or(Errno::ENXIO)?;
        match (group, attribute) {
            (vgic::GROUP_ADDR, kind) => {
                use vgic::{
                    ADDR_V2_CPU, ADDR_V2_DIST, ADDR_V3_DIST, ADDR_V3_REDIST, ADDR_V3_REDIST_REGION, DIST_SIZE,
                    V2_ALIGNMENT, V2_CPU_SIZE, V2_DIST_SIZE, V3_ALIGNMENT,
                };
                let (address, size, alignment) = match (version, kind) {
                    (Version::V2, ADDR_V2_DIST) => (&mut vgic.distributor, V2_DIST_SIZE, V2_ALIGNMENT),
                    (Version::V2, ADDR_V2_CPU) => (&mut vgic.cpu_interface, V2_CPU_SIZE, V2_ALIGNMENT),
                    (Version::V3, ADDR_V3_DIST) => (&mut vgic.distributor, DIST_SIZE, V3_ALIGNMENT),
                    (Version::V3, ADDR_V3_REDIST) => {
                        let around = vgic.around(vcpus.len(), ipa_bits);
                        return vgic.redistributors.place(value, &around);
                    }
                    (Version::V3, ADDR_V3_REDIST_REGION) => {
                        let around = vgic.around(vcpus.len(), ipa_bits);
                        return vgic.redistributors.add_region(value, &around);
                    }
                    _ => return Err(Errno::ENXIO),
                };
                set_address(address, value, size, alignment, ipa_bits)
            }
            (vgic::GROUP_NR_IRQS, 0) => {
                if !(64..=1023).contains(&value) || !value.is_multiple_of(32) {
                    return Err(Errno::EINVAL);
                }
                if vgic.interrupts.is_some() || vgic.is_initialised() {
                    return Err(Errno::EBUSY);
                }
                vgic.interrupts = Some(value as u32);
                Ok(())
            }
            (vgic::GROUP_CTRL, vgic::CTRL_INIT) => vgic.initialise(&vcpus, self.shared_slots()).map(|_| ()),
            _ => Err(Errno::ENXIO),
        }
    }

    /// Does something with the vGIC while no vCPU runs.
    ///
    /// # Errors
    ///
    /// `EBUSY` before the vGIC is initialised, or while a vCPU runs.
    pub(super) fn stopped<R>(
        &self,
        access: impl FnOnce(&Vgic, &dyn VgicHost, &mut [MutexGuard<'_, Inner>]) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        let vcpus = self.vcpus();
        let vgic = {
            let mut setup = self.setup.lock();
            if setup.vgic.version == Some(Version::V2) {
                // It needs nobody to say that it is complete.
                setup.vgic.initialise(&vcpus, self.shared_slots())?;
            }
            setup.vgic.vgic.clone().ok_or(Errno::EBUSY)?
        };
        let parked: Option<Vec<_>> = vcpus.iter().map(|vcpu| vcpu.try_parked()).collect();
        let mut parked = parked.ok_or(Errno::EBUSY)?;
        match self.machine.get() {
            Some(machine) => access(&vgic, &Outside(machine), &mut parked),
            None => access(&vgic, &Nobody, &mut parked),
        }
    }

    /// KVM_HAS_DEVICE_ATTR of the vGIC.
    ///
    /// # Errors
    ///
    /// `ENXIO` for what is not there.
    pub fn has_vgic_attr(&self, group: u32, attribute: u64) -> Result<(), Errno> {
        let low = attribute & 0xffff_ffff;
        let (version, interrupts) = {
            let vgic = &self.setup.lock().vgic;
            // Before it is initialised, those that were asked for.
            let asked = vgic.interrupts.map_or(PRIVATE_ONLY, u64::from);
            (vgic.version, if vgic.is_initialised() { 32 + vgic.spis() as u64 } else { asked })
        };
        let is_interrupts = |low| interrupt_of(low).is_none_or(|intid| intid < interrupts);
        if version == Some(Version::V2) {
            let there = match group {
                GROUP_ADDR => matches!(attribute, vgic::ADDR_V2_DIST | vgic::ADDR_V2_CPU),
                GROUP_NR_IRQS => true,
                GROUP_CTRL => attribute == CTRL_INIT,
                GROUP_DIST_REGS => Frame::DistributorV2(0).has(low) && is_interrupts(low),
                GROUP_CPU_REGS => VgicCpu::has(low),
                _ => false,
            };
            return if there { Ok(()) } else { Err(Errno::ENXIO) };
        }
        let there = match group {
            GROUP_ADDR => matches!(attribute, ADDR_V3_DIST | ADDR_V3_REDIST | vgic::ADDR_V3_REDIST_REGION),
            GROUP_NR_IRQS => true,
            GROUP_CTRL => matches!(attribute, CTRL_INIT | CTRL_SAVE_PENDING_TABLES),
            GROUP_DIST_REGS => Frame::Distributor.has(low) && is_interrupts(low),
            GROUP_REDIST_REGS => Frame::Redistributor(0).has(low),
            GROUP_CPU_SYSREGS => cpu_registers::exists(attribute as u16),
            GROUP_LEVEL_INFO => low >> 10 == 0,
            _ => false,
        };
        if there { Ok(()) } else { Err(Errno::ENXIO) }
    }

    /// KVM_GET_DEVICE_ATTR of the vGIC.
    ///
    /// # Errors
    ///
    /// `ENXIO` for an unknown attribute or no vGIC. Of registers: `EINVAL` for an unknown vCPU, `EBUSY` before the vGIC is
    /// initialised or while a vCPU runs, `ENOENT` for an unknown system register.
    pub fn get_vgic_attr(&self, group: u32, attribute: u64) -> Result<u64, Errno> {
        {
            let setup = self.setup.lock();
            let vgic = &setup.vgic;
            let version = vgic.version.ok_or(Errno::ENXIO)?;
            let address = |address: Option<Ipa>| Ok(address.map_or(UNSET, |Ipa(address)| address));
            match (group, attribute) {
                (GROUP_ADDR, kind) => {
                    return match (version, kind) {
                        (Version::V2, vgic::ADDR_V2_DIST) | (Version::V3, ADDR_V3_DIST) => address(vgic.distributor),
                        (Version::V2, vgic::ADDR_V2_CPU) => address(vgic.cpu_interface),
                        (Version::V3, ADDR_V3_REDIST) => address(vgic.redistributors.base().map(Ipa)),
                        _ => Err(Errno::ENXIO),
                    };
                }
                (GROUP_NR_IRQS, _) => return Ok(vgic.interrupts.map_or(PRIVATE_ONLY, u64::from)),
                // There is no need to stop anything for what is not there.
                _ if !has_registers(version, group) => return Err(Errno::ENXIO),
                _ => {}
            }
        }
        self.stopped(|vgic, _, vcpus| {
            Ok(match Register::find(vgic, group, attribute)? {
                // An unknown register reads as zero, as in KVM.
                Register::Frame(frame, offset) => vgic.user_read(frame, offset).unwrap_or(0).into(),
                Register::Cpu(vcpu, encoding) => {
                    let inner = vcpus.get(vcpu).ok_or(Errno::EINVAL)?;
                    cpu_registers::read(&inner.vgic, abilities(), encoding).map_err(cpu_error)?
                }
                // An unknown register reads as zero there, too.
                Register::CpuV2(vcpu, offset) => {
                    vcpus.get(vcpu).ok_or(Errno::EINVAL)?.vgic.user_read(offset).unwrap_or(0).into()
                }
                Register::Levels(vcpu, intid) => vgic.line_levels(vcpu, intid).into(),
            })
        })
    }

    /// KVM_SET_DEVICE_ATTR of the vGIC's registers, and its control operations beside INIT.
    ///
    /// # Errors
    ///
    /// As [`get_vgic_attr`](Self::get_vgic_attr); `EINVAL` for a value that a register does not take; `EFAULT` if a table for
    /// pending LPIs is not memory.
    pub fn set_vgic_attr(&self, group: u32, attribute: u64, value: u64) -> Result<(), Errno> {
        let version = self.setup.lock().vgic.version.ok_or(Errno::ENXIO)?;
        let saves = version == Version::V3 && (group, attribute) == (GROUP_CTRL, CTRL_SAVE_PENDING_TABLES);
        if !saves && !has_registers(version, group) {
            return Err(Errno::ENXIO);
        }
        self.stopped(|vgic, host, vcpus| {
            if vgic.version() == Version::V3 && (group, attribute) == (GROUP_CTRL, CTRL_SAVE_PENDING_TABLES) {
                return if vgic.save_pending_lpis() { Ok(()) } else { Err(Errno::EFAULT) };
            }
            match Register::find(vgic, group, attribute)? {
                Register::Frame(frame, offset) => {
                    match vgic.user_write(frame, offset, value as u32) {
                        Err(UserAccessError::Invalid) => Err(Errno::EINVAL),
                        // A write of an unknown register is ignored, as in KVM.
                        Ok(()) | Err(UserAccessError::Unknown) => Ok(()),
                    }
                }
                Register::Cpu(vcpu, encoding) => {
                    let inner = vcpus.get_mut(vcpu).ok_or(Errno::EINVAL)?;
                    cpu_registers::write(&mut inner.vgic, abilities(), encoding, value).map_err(cpu_error)
                }
                Register::CpuV2(vcpu, offset) => {
                    // A write of an unknown register is ignored.
                    let _ = vcpus.get_mut(vcpu).ok_or(Errno::EINVAL)?.vgic.user_write(offset, value as u32);
                    Ok(())
                }
                Register::Levels(vcpu, intid) => {
                    vgic.set_line_levels(vcpu, intid, value as u32, host);
                    Ok(())
                }
            }
        })
    }
}

/// Whether a group is one of registers.
fn has_registers(version: Version, group: u32) -> bool {
    match version {
        Version::V2 => matches!(group, GROUP_DIST_REGS | GROUP_CPU_REGS),
        Version::V3 => matches!(group, GROUP_DIST_REGS | GROUP_REDIST_REGS | GROUP_CPU_SYSREGS | GROUP_LEVEL_INFO),
    }
}

/// The first interrupt that a register of the distributor is about, if it is one of many that are alike.
fn interrupt_of(offset: u64) -> Option<u64> {
    match offset {
        0x0080..0x0400 => Some(offset % 0x80 * 8),
        0x0400..0x0c00 => Some(offset % 0x400),
        0x0c00..0x0d00 => Some(offset % 0x100 * 4),
        0x6000..0x8000 => Some(offset % 0x2000 / 8),
        _ => None,
    }
}

/// Sets an address of a device, once.
pub(super) fn set_address(
    slot: &mut Option<Ipa>,
    value: u64,
    size: u64,
    alignment: u64,
    ipa_bits: u32,
) -> Result<(), Errno> {
    if slot.is_some() {
        return Err(Errno::EEXIST);
    }
    let end = value.checked_add(size).ok_or(Errno::EINVAL)?;
    if !value.is_multiple_of(alignment) {
        return Err(Errno::EINVAL);
    }
    if end > 1 << ipa_bits {
        return Err(Errno::E2BIG);
    }
    *slot = Some(Ipa(value));
    Ok(())
}
