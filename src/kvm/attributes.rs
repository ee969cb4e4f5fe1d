//! KVM_SET_DEVICE_ATTR, KVM_GET_DEVICE_ATTR and KVM_HAS_DEVICE_ATTR on a vCPU (Linux,
//! Documentation/virt/kvm/devices/vcpu.rst).

use super::{
    Errno, pmu,
    uapi::{
        CounterOffset, PmuEventFilter, SmcccFilter, feature,
        vcpu::{GROUP_PMU, GROUP_PVTIME, GROUP_TIMER, PMU_FILTER, PMU_INIT, PMU_IRQ, PMU_SET_PMU, PVTIME_IPA},
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

/// The PMU of every CPU, as KVM_ARM_VCPU_PMU_V3_SET_PMU names it: KVM_DEV's numbers are those of perf, which keel has not,
/// and vCPUs do not change CPUs, so there is only this one.
const THE_PMU: u64 = 0;

impl Vcpu {
    /// KVM_SET_DEVICE_ATTR. A structure of at most 8 bytes is given as the number that its bytes are in memory.
    ///
    /// # Errors
    ///
    /// `ENXIO` for an attribute that keel does not have. For KVM_ARM_VCPU_PMU_V3_CTRL those of `set_pmu`, for timers those of
    /// [`pmu::check_timer`], and for KVM_ARM_VCPU_PVTIME_IPA: `EINVAL` if it is not a multiple of 64 or not in a memory
    /// slot, `EEXIST` if it is set already.
    pub fn set_device_attr(&self, vm: &Vm, group: u32, attribute: u64, value: u64) -> Result<(), Errno> {
        match group {
            GROUP_PMU => self.set_pmu(vm, attribute, value),
            GROUP_TIMER => vm.set_timer_interrupt(attribute, value),
            GROUP_PVTIME if attribute == PVTIME_IPA => self.set_stolen_time(vm, value),
            _ => Err(Errno::ENXIO),
        }
    }

    /// What KVM checks of an attribute's group before it reads the data.
    ///
    /// # Errors
    ///
    /// `ENXIO` for another group. KVM_ARM_VCPU_PMU_V3_CTRL: `ENODEV` without the feature, `EBUSY` once it is initialised.
    /// KVM_ARM_VCPU_TIMER_CTRL: `EINVAL` without an interrupt controller.
    pub fn may_set_device_attr(&self, vm: &Vm, group: u32) -> Result<(), Errno> {
        match group {
            GROUP_PMU if !vm.has_feature(feature::PMU_V3) => Err(Errno::ENODEV),
            GROUP_PMU if self.pmu.lock().initialised => Err(Errno::EBUSY),
            GROUP_TIMER if !vm.vgic_has(0).0 => Err(Errno::EINVAL),
            GROUP_PMU | GROUP_TIMER | GROUP_PVTIME => Ok(()),
            _ => Err(Errno::ENXIO),
        }
    }

    fn set_stolen_time(&self, vm: &Vm, value: u64) -> Result<(), Errno> {
        if !value.is_multiple_of(STRUCTURE_BYTES) {
            return Err(Errno::EINVAL);
        }
        if self.stolen.address().is_some() {
            return Err(Errno::EEXIST);
        }
        let (block, offset) = vm.slots().locate(Ipa(value), STRUCTURE_BYTES).ok_or(Errno::EINVAL)?;
        if self.stolen.place(value, block, offset) { Ok(()) } else { Err(Errno::EEXIST) }
    }

    /// KVM_ARM_VCPU_PMU_V3_CTRL.
    ///
    /// # Errors
    ///
    /// In KVM's order: `ENODEV` without the feature, `EBUSY` once it is initialised; then IRQ: `EINVAL` without an interrupt
    /// controller, those of [`pmu::check_interrupt`]; INIT: `ENODEV` if the interrupt controller is not initialised, `ENXIO`
    /// without an interrupt, `EEXIST` if a timer has it, `EINVAL` for an SPI that there is not; FILTER: those of
    /// [`pmu::filter_events`]; SET_PMU: `ENXIO` for any but the one, `EBUSY` if a vCPU has run.
    fn set_pmu(&self, vm: &Vm, attribute: u64, value: u64) -> Result<(), Errno> {
        if !vm.has_feature(feature::PMU_V3) {
            return Err(Errno::ENODEV);
        }
        let own = *self.pmu.lock();
        if own.initialised {
            return Err(Errno::EBUSY);
        }
        let (has_vgic, _) = vm.vgic_has(0);
        match attribute {
            PMU_IRQ => {
                if !has_vgic {
                    return Err(Errno::EINVAL);
                }
                let intid = pmu::check_interrupt(value, own, vm.pmu_interrupts())?;
                self.pmu.lock().interrupt = Some(intid);
            }
            PMU_INIT => {
                if !has_vgic {
                    self.pmu.lock().initialised = true;
                    return Ok(());
                }
                vm.vgic_has(0).1?;
                let intid = own.interrupt.ok_or(Errno::ENXIO)?;
                // The timers take theirs when a vCPU first runs.
                if vm.has_run() && vm.timer_interrupts()[..2].contains(&intid) {
                    return Err(Errno::EEXIST);
                }
                vm.vgic_has(intid).1?;
                self.pmu.lock().initialised = true;
            }
            PMU_FILTER => vm.filter_events(&PmuEventFilter::from_bytes(value.to_le_bytes()))?,
            PMU_SET_PMU if value != THE_PMU => return Err(Errno::ENXIO),
            PMU_SET_PMU if vm.has_run() => return Err(Errno::EBUSY),
            PMU_SET_PMU => {}
            _ => return Err(Errno::ENXIO),
        }
        Ok(())
    }

    /// KVM_GET_DEVICE_ATTR.
    ///
    /// # Errors
    ///
    /// `ENXIO` for an attribute that keel does not have, or that cannot be read. KVM_ARM_VCPU_PMU_V3_IRQ: `EINVAL` without an
    /// interrupt controller, `ENODEV` without the feature, `ENXIO` if it was not set.
    pub fn get_device_attr(&self, vm: &Vm, group: u32, attribute: u64) -> Result<u64, Errno> {
        match (group, attribute) {
            (GROUP_PMU, PMU_IRQ) => {
                if !vm.vgic_has(0).0 {
                    return Err(Errno::EINVAL);
                }
                if !vm.has_feature(feature::PMU_V3) {
                    return Err(Errno::ENODEV);
                }
                self.pmu.lock().interrupt.map(u64::from).ok_or(Errno::ENXIO)
            }
            (GROUP_TIMER, _) => {
                let place = usize::try_from(attribute).map_err(|_| Errno::ENXIO)?;
                vm.timer_interrupts().get(place).copied().map(u64::from).ok_or(Errno::ENXIO)
            }
            (GROUP_PVTIME, PVTIME_IPA) => Ok(self.stolen.address().unwrap_or(UNSET)),
            _ => Err(Errno::ENXIO),
        }
    }

    /// KVM_HAS_DEVICE_ATTR.
    ///
    /// # Errors
    ///
    /// `ENXIO` for an attribute that keel does not have, or one of a PMU that the vCPU does not have.
    pub fn has_device_attr(&self, vm: &Vm, group: u32, attribute: u64) -> Result<(), Errno> {
        match (group, attribute) {
            (GROUP_PMU, PMU_IRQ..=PMU_SET_PMU) if vm.has_feature(feature::PMU_V3) => Ok(()),
            (GROUP_TIMER, 0..=3) | (GROUP_PVTIME, PVTIME_IPA) => Ok(()),
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

    /// KVM_ARM_SET_COUNTER_OFFSET: what both counters of the guest are behind the machine's.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the reserved field is not zero; `EBUSY` once a vCPU has run (in KVM: while one runs).
    pub fn set_counter_offset(&self, offset: &CounterOffset) -> Result<(), Errno> {
        if offset.reserved != 0 {
            return Err(Errno::EINVAL);
        }
        self.offset_counters(offset.counter_offset)
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

    /// Has every access of the guest's to the registers that both groups of its GICv3's CPU interface share trap
    /// ([`trapped`](crate::vdev::vgic::trapped)), for tests.
    ///
    /// # Errors
    ///
    /// `EBUSY` once a vCPU has run.
    pub fn trap_common_registers(&self) -> Result<(), Errno> {
        if self.has_run() {
            return Err(Errno::EBUSY);
        }
        self.setup.lock().vgic.traps_common = true;
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
