//! How a change of a vCPU's interrupts reaches it: a kick to the CPU it is on, or that CPU's attention if it is off it.
//!
//! A vCPU whose list registers hold what another one wants to read folds them back when asked: the asking CPU waits, and
//! answers requests of the same kind meanwhile, so that two that ask each other both get their answer.

use super::{Machine, Vcpu, interface::on_host_gic, ioctl::irq_line::Pin, physical, vcpu::request};
use crate::{
    arch::{cpu, hcr},
    vdev::vgic::{VgicCpu, VgicHost},
};
use core::{cell::RefCell, sync::atomic::Ordering};

/// Makes a vCPU see a change of its interrupts, wherever it is.
pub(super) fn kick(vcpu: &Vcpu) {
    if vcpu.resident.load(Ordering::SeqCst) {
        physical::kick(vcpu.cpu());
    } else if vcpu.take_waiting() {
        // One that is off its CPU and does not wait looks at its interrupts when its turn comes; no guest can make its CPU,
        // which may be another VM's, look more than once for each time it waits.
        physical::call_attention(vcpu.cpu());
    }
}

/// Sets a pin of a vCPU that no interrupt controller drives.
pub(super) fn set_pin(vcpu: &Vcpu, pin: Pin, level: bool) {
    let bit = match pin {
        Pin::Irq => hcr::HCR_VI,
        Pin::Fiq => hcr::HCR_VF,
    };
    if level {
        vcpu.pins.fetch_or(bit, Ordering::SeqCst);
    } else {
        vcpu.pins.fetch_and(!bit, Ordering::SeqCst);
    }
    vcpu.requests.fetch_or(request::PINS, Ordering::SeqCst);
    kick(vcpu);
}

/// Ends the wait for an interrupt of `vcpu`, or its next one.
pub(super) fn wake(vcpu: &Vcpu) {
    vcpu.requests.fetch_or(request::WAKE, Ordering::SeqCst);
    kick(vcpu);
}

/// Interrupts that come from outside a vCPU: the console's input; and whoever has folded its own list registers back.
pub struct Outside<'a>(pub &'a Machine);

impl VgicHost for Outside<'_> {
    fn kick(&self, vcpu: usize) {
        if let Some(vcpu) = self.0.vcpus.get(vcpu) {
            kick(vcpu);
        }
    }

    fn sync(&self, vcpu: usize) {
        if let Some(vcpu) = self.0.vcpus.get(vcpu) {
            wait_for_sync(vcpu, || {});
        }
    }

    fn come_back(&self, _: usize) {
        physical::kick_after_others();
    }

    fn carry_on(&self, vcpu: usize) {
        if let Some(its) = &self.0.its {
            its.carry_on(vcpu, &self.0.vgic, self);
        }
    }

    fn ended(&self, intid: u32) {
        if let Some(user) = &self.0.user {
            user.bindings.ended(intid);
        }
    }
}

/// Asks `vcpu`'s CPU to fold its list registers and waits; `meanwhile` answers requests of the same kind.
pub(super) fn wait_for_sync(vcpu: &Vcpu, meanwhile: impl Fn()) {
    if vcpu.cpu() == cpu::index() || !vcpu.resident.load(Ordering::SeqCst) {
        return;
    }
    vcpu.requests.fetch_or(request::SYNC, Ordering::SeqCst);
    physical::kick(vcpu.cpu());
    while vcpu.requests.load(Ordering::SeqCst) & request::SYNC != 0 && vcpu.resident.load(Ordering::SeqCst) {
        meanwhile();
        core::hint::spin_loop();
    }
}

/// The vGIC's view of the VM during an exit of `vcpu`, which this CPU holds.
pub(super) struct Exiting<'a> {
    pub machine: &'a Machine,
    pub vcpu: &'a Vcpu,
    pub vgic: RefCell<&'a mut VgicCpu>,
}

impl VgicHost for Exiting<'_> {
    #[inline]
    fn kick(&self, vcpu: usize) {
        if vcpu != self.vcpu.index()
            && let Some(vcpu) = self.machine.vcpus.get(vcpu)
        {
            kick(vcpu);
        }
    }

    fn sync(&self, vcpu: usize) {
        if vcpu == self.vcpu.index() {
            self.fold();
        } else if let Some(other) = self.machine.vcpus.get(vcpu) {
            wait_for_sync(other, || {
                if self.vcpu.requests.load(Ordering::SeqCst) & request::SYNC != 0 {
                    self.fold();
                    self.vcpu.requests.fetch_and(!request::SYNC, Ordering::SeqCst);
                }
            });
        }
    }

    fn come_back(&self, _: usize) {
        physical::kick_after_others();
    }
}

impl Exiting<'_> {
    fn fold(&self) {
        if let Ok(mut cpu) = self.vgic.try_borrow_mut() {
            let (vgic, index) = (&self.machine.vgic, self.vcpu.index());
            on_host_gic!(host => vgic.sync(index, &mut cpu, host, &Outside(self.machine)));
        }
    }
}
