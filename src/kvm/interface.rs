//! The vGIC's hardware on this CPU: list registers, active state of physical interrupts, levels of the timers.

use super::physical;
use crate::{
    arch::{gic, guest_pmu, timer},
    vdev::vgic::{Control, VirtualInterface},
};

/// This CPU's virtual interface.
pub(super) struct Hardware;

impl VirtualInterface for Hardware {
    #[inline]
    fn list_registers(&self) -> usize {
        gic::virtual_interface::list_registers()
    }

    fn active_priority_registers(&self) -> usize {
        match gic::virtual_interface::preemption_bits() {
            0..=5 => 1,
            6 => 2,
            _ => 4,
        }
    }

    #[inline]
    fn read_lr(&self, n: usize) -> u64 {
        gic::virtual_interface::read_lr(n)
    }

    #[inline]
    fn write_lr(&mut self, n: usize, value: u64) {
        gic::virtual_interface::write_lr(n, value);
    }

    #[inline]
    fn empty(&self) -> u32 {
        gic::virtual_interface::empty()
    }

    fn set_control(&mut self, control: Control) {
        gic::virtual_interface::set_hcr(gic::ICH_HCR_EN | control.bits());
    }

    fn eoi_count(&self) -> u32 {
        (gic::virtual_interface::hcr() >> 27) as u32 & 0x1f
    }

    fn clear_eoi_count(&mut self) {
        gic::virtual_interface::set_hcr(gic::virtual_interface::hcr() & !(0x1f << 27));
    }

    fn vmcr(&self) -> u64 {
        gic::virtual_interface::vmcr()
    }

    fn set_vmcr(&mut self, value: u64) {
        gic::virtual_interface::set_vmcr(value);
    }

    fn ap0r(&self, n: usize) -> u32 {
        gic::virtual_interface::ap0r(n) as u32
    }

    fn set_ap0r(&mut self, n: usize, value: u32) {
        gic::virtual_interface::set_ap0r(n, value.into());
    }

    fn ap1r(&self, n: usize) -> u32 {
        gic::virtual_interface::ap1r(n) as u32
    }

    fn set_ap1r(&mut self, n: usize, value: u32) {
        gic::virtual_interface::set_ap1r(n, value.into());
    }

    fn set_physical_active(&mut self, host_intid: u32, active: bool) {
        if let Some(redistributor) = physical::redistributor() {
            redistributor.set_active(host_intid, active);
        }
    }

    fn physical_level(&self, host_intid: u32) -> bool {
        match physical::interrupts() {
            Some(host) if host_intid == host.virtual_timer => timer::virtual_output(),
            Some(host) if host_intid == host.physical_timer => timer::physical_output(),
            Some(host) if Some(host_intid) == host.pmu => guest_pmu::output(),
            _ => true,
        }
    }
}
