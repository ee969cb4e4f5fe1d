//! The interrupt controller of this CPU, as a vCPU's loop and the vGIC use it: list registers, acknowledging, active state of
//! physical interrupts, levels of the timers.
//!
//! There is a type for each version. The loop is compiled for each ([`HostGic`]), so that on its way nobody asks which it is;
//! [`on_host_gic`] asks for those who are not on that way.

use super::physical;
use crate::{
    arch::{gic, gicv2, guest_pmu, sysreg::isb, timer},
    vdev::vgic::{
        Control, MAX_LIST_REGISTERS, VgicCpu, VirtualInterface,
        cpu_registers::Abilities,
        gich,
        trapped::{self, CommonRegister, Interface},
    },
};

/// The interrupt controller of this CPU.
pub(super) trait HostGic: VirtualInterface + Copy {
    /// The one there is.
    const HERE: Self;

    /// Acknowledges the highest-priority pending interrupt. What is returned ends it, and holds its [`intid`](Self::intid).
    fn acknowledge() -> u32;
    /// The INTID of what was acknowledged; [`gic::SPURIOUS`] or above if there was nothing.
    fn intid(acknowledged: u32) -> u32;
    /// Drops the priority of what was acknowledged; it stays active.
    fn drop_priority(acknowledged: u32);
    /// Deactivates what was acknowledged.
    fn deactivate(acknowledged: u32);
    /// Whether it is another CPU's call, if those have an interrupt of their own.
    fn is_call(intid: u32) -> bool;
}

/// Runs `$body` with `$gic` as the machine's interrupt controller.
macro_rules! on_host_gic {
    ($gic:ident => $body:expr) => {
        if $crate::kvm::physical::has_gicv2() {
            let $gic = &mut $crate::kvm::interface::HardwareV2;
            $body
        } else {
            let $gic = &mut $crate::kvm::interface::Hardware;
            $body
        }
    };
}

pub(super) use on_host_gic;

/// The reset state of a vCPU's interface.
pub(super) fn reset_state() -> VgicCpu {
    if physical::has_gicv2() { VgicCpu::new_v2() } else { VgicCpu::new() }
}

/// Whether the line of a physical interrupt that is mapped, a timer's or the PMU's, is high.
fn level(host_intid: u32) -> bool {
    match physical::interrupts() {
        Some(host) if host_intid == host.virtual_timer => timer::virtual_output(),
        Some(host) if host_intid == host.physical_timer => timer::physical_output(),
        Some(host) if Some(host_intid) == host.pmu => guest_pmu::output(),
        _ => true,
    }
}

/// What the guest on this CPU reads, or writes (`value`), at a register whose accesses trap for
/// [`Control::TRAP_COMMON`]. A GICv3's.
pub(super) fn access_common(register: CommonRegister, value: Option<u64>) -> u64 {
    let machine = Interface { abilities: Abilities(gic::virtual_interface::vtr()), control: gic::control() };
    let Some(value) = value else { return trapped::read(register, machine, &Hardware) };
    trapped::write(register, value, machine, &mut Hardware);
    // The guest's own write of its mask would be self-synchronizing (IHI 0069, ICC_PMR_EL1): what it masks must not
    // interrupt it any more when it goes on.
    isb();
    0
}

/// A GICv3.
#[derive(Clone, Copy)]
pub(super) struct Hardware;

impl HostGic for Hardware {
    const HERE: Self = Self;

    #[inline(always)]
    fn acknowledge() -> u32 {
        gic::acknowledge()
    }

    #[inline(always)]
    fn intid(acknowledged: u32) -> u32 {
        acknowledged
    }

    #[inline(always)]
    fn drop_priority(acknowledged: u32) {
        gic::drop_priority(acknowledged);
    }

    #[inline(always)]
    fn deactivate(acknowledged: u32) {
        gic::deactivate(acknowledged);
    }

    #[inline(always)]
    fn is_call(_: u32) -> bool {
        // They are made by keel's timer interrupt.
        false
    }
}

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

    #[inline]
    fn set_control(&mut self, control: Control) {
        // ICH_VTR_EL2 is read only where it matters.
        let control = if control.contains(Control::TRAP_DEACTIVATE) {
            control.trapping_deactivations(gic::virtual_interface::has_tdir())
        } else {
            control
        };
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
        level(host_intid)
    }
}

/// A GICv2.
#[derive(Clone, Copy)]
pub(super) struct HardwareV2;

impl HostGic for HardwareV2 {
    const HERE: Self = Self;

    #[inline(always)]
    fn acknowledge() -> u32 {
        gicv2::acknowledge()
    }

    #[inline(always)]
    fn intid(acknowledged: u32) -> u32 {
        gicv2::intid(acknowledged)
    }

    #[inline(always)]
    fn drop_priority(acknowledged: u32) {
        gicv2::drop_priority(acknowledged);
    }

    #[inline(always)]
    fn deactivate(acknowledged: u32) {
        gicv2::deactivate(acknowledged);
    }

    #[inline(always)]
    fn is_call(intid: u32) -> bool {
        intid == gicv2::CALL
    }
}

impl VirtualInterface for HardwareV2 {
    const IS_V2: bool = true;

    #[inline]
    fn list_registers(&self) -> usize {
        gicv2::virtual_interface::list_registers().min(MAX_LIST_REGISTERS)
    }

    fn active_priority_registers(&self) -> usize {
        1
    }

    #[inline]
    fn read_lr(&self, n: usize) -> u64 {
        gich::from_list_register(gicv2::virtual_interface::read_lr(n))
    }

    #[inline]
    fn write_lr(&mut self, n: usize, value: u64) {
        gicv2::virtual_interface::write_lr(n, gich::list_register(value));
    }

    fn empty(&self) -> u32 {
        gicv2::virtual_interface::empty()
    }

    fn set_control(&mut self, control: Control) {
        gicv2::virtual_interface::set_hcr(gich::hcr(control));
    }

    fn eoi_count(&self) -> u32 {
        gicv2::virtual_interface::hcr() >> 27
    }

    fn clear_eoi_count(&mut self) {
        gicv2::virtual_interface::set_hcr(gicv2::virtual_interface::hcr() & !(0x1f << 27));
    }

    fn vmcr(&self) -> u64 {
        gicv2::virtual_interface::vmcr().into()
    }

    fn set_vmcr(&mut self, value: u64) {
        gicv2::virtual_interface::set_vmcr(gich::vmcr(value));
    }

    // One register for the active priorities of both groups.

    fn ap0r(&self, _: usize) -> u32 {
        gicv2::virtual_interface::apr()
    }

    fn set_ap0r(&mut self, _: usize, value: u32) {
        gicv2::virtual_interface::set_apr(value);
    }

    fn ap1r(&self, _: usize) -> u32 {
        0
    }

    fn set_ap1r(&mut self, _: usize, _: u32) {}

    fn set_physical_active(&mut self, host_intid: u32, active: bool) {
        gicv2::set_active(host_intid, active);
    }

    fn physical_level(&self, host_intid: u32) -> bool {
        level(host_intid)
    }
}
