//! The machine that parts of the script run their guests on.

use super::{NOBODY, RAM, RUN, Script, Value};
use crate::{
    Backend, SYSTEM,
    handle::address,
    number,
    page::PAGE,
    run::Exit,
    uapi::{TARGET_GENERIC_V8, UserMemoryRegion, VcpuInit, device, feature, reg, vgic},
};

/// Where the guest's memory is, of [`SIZE`] pages: the program, vectors, data.
pub(super) const BASE: u64 = 0x4000_0000;
/// Pages of it.
pub(super) const SIZE: usize = 4;
/// Where the vectors are.
const VECTORS: u64 = BASE + 0x1000;
/// What the guest's accesses are to, where nothing is.
pub(super) const DEVICE: u64 = 0x0a00_0000;
/// Where it says that it has done what it was to do.
pub(super) const DONE: u64 = 0x0b00_0000;
/// Where its vectors say which exception was taken, and its syndrome.
pub(super) const TAKEN: u64 = 0x0b00_1000;

/// Which interrupt controller a machine has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Controller {
    /// The one that the board can do.
    Own,
    /// None.
    None,
}

/// A VM with a vCPU.
pub(super) struct Machine {
    pub vm: u64,
    pub vcpu: u64,
    pub gic: u64,
}

impl<B: Backend> Script<'_, B> {
    /// A VM alone.
    pub(super) fn vm(&self) -> u64 {
        self.quiet_open(SYSTEM, number::CREATE_VM, 0)
    }

    /// vCPU `id` of a VM, with its page.
    pub(super) fn vcpu(&self, vm: u64, id: u64) -> u64 {
        let vcpu = self.quiet_open(vm, number::CREATE_VCPU, id);
        if let Some(page) = RUN.get(id as usize).filter(|_| vcpu != NOBODY) {
            page.clear();
            self.quiet(vcpu, number::SET_RUN_PAGE, page.address());
        }
        vcpu
    }

    /// The interrupt controller that the board can do, not complete.
    pub(super) fn gic(&self, vm: u64) -> u64 {
        let mut create = [if self.has_gicv3 { device::VGIC_V3 } else { device::VGIC_V2 }, 0, 0];
        let answer = self.quiet(vm, number::CREATE_DEVICE, crate::handle::address_mut(&mut create));
        if answer == 0 { create[1].into() } else { NOBODY }
    }

    /// Places and initialises it.
    pub(super) fn complete(&self, gic: u64) {
        let addresses = if self.has_gicv3 {
            [(vgic::V3_DIST, 0x0800_0000), (vgic::V3_REDIST, 0x080a_0000)]
        } else {
            [(vgic::V2_DIST, 0x0800_0000), (vgic::V2_CPU, 0x0801_0000)]
        };
        for (kind, address) in addresses {
            self.quiet_set(gic, vgic::ADDR, kind, address);
        }
        self.quiet_set(gic, vgic::CTRL, vgic::INIT, 0);
    }

    /// KVM_ARM_VCPU_INIT.
    pub(super) fn initialise(&self, vcpu: u64, features: u32) -> i64 {
        let init = VcpuInit { target: TARGET_GENERIC_V8, features: [features, 0, 0, 0, 0, 0, 0] };
        self.quiet(vcpu, number::ARM_VCPU_INIT, address(&init))
    }

    /// A machine that can run, without a program.
    pub(super) fn machine(&mut self, controller: Controller) -> Machine {
        self.machine_with(controller, feature::PSCI_0_2)
    }

    /// The same with a vCPU of these features.
    pub(super) fn machine_with(&mut self, controller: Controller, features: u32) -> Machine {
        let vm = self.vm();
        let region = UserMemoryRegion {
            slot: 0,
            flags: 0,
            guest_phys_addr: BASE,
            memory_size: (SIZE * PAGE) as u64,
            userspace_addr: RAM[0].address(),
        };
        let memory = self.quiet(vm, number::SET_USER_MEMORY_REGION, address(&region));
        let gic = if controller == Controller::Own { self.gic(vm) } else { NOBODY };
        let vcpu = self.vcpu(vm, 0);
        if gic != NOBODY {
            self.complete(gic);
        }
        let init = self.initialise(vcpu, features);
        let (memory, init) = (Value(memory as u64), Value(init as u64));
        self.line(format_args!("a machine"), format_args!("memory {memory}, init {init}"));
        Machine { vm, vcpu, gic }
    }

    /// Puts a program in, and the vCPU at its start. It ends with a store to [`DONE`].
    pub(super) fn load(&mut self, machine: &Machine, program: &[u32]) {
        /// str wzr, [x27]; b .-4
        const END: [u32; 2] = [0xb900_037f, 0x17ff_ffff];
        let mut words = [0; 64];
        words[..program.len()].copy_from_slice(program);
        words[program.len()..program.len() + 2].copy_from_slice(&END);
        RAM[0].load(&words[..program.len() + 2]);
        // At each vector of an exception at EL1h, with the vector's number in x28: mrs x3, esr_el1; str x3, [x28]; b .-4
        RAM[1].clear();
        for n in 4..8 {
            let at = 0x80 * n;
            // The syndrome of an interrupt is nothing: mov x3, xzr.
            let syndrome = if matches!(n, 5 | 6) { 0xaa1f_03e3 } else { 0xd538_5203 };
            // add x28, x28, #8 * n
            let handler = [0x9100_039c | (8 * n as u32) << 10, syndrome, 0xf900_0383, 0x17ff_ffff];
            for (m, word) in handler.into_iter().enumerate() {
                RAM[1].write(at + 4 * m, 4, word.into());
            }
        }
        for page in &RAM[..SIZE] {
            (self.clean)(page);
        }
        for (id, value) in [
            (reg::PC, BASE),
            (reg::PSTATE, 0x3c5),
            (reg::x(0), 0x1122_3344_5566_7788),
            (reg::x(1), DEVICE),
            (reg::x(27), DONE),
            (reg::x(28), TAKEN),
            (reg::system(3, 0, 12, 0, 0), VECTORS),
        ] {
            self.quiet_reg(machine.vcpu, id, value);
        }
    }

    /// Runs the machine's vCPU once.
    pub(super) fn go(&mut self, what: core::fmt::Arguments<'_>, machine: &Machine) -> Exit {
        self.run_vcpu(format_args!("RUN {what}"), machine.vcpu, &RUN[0])
    }

    /// What the guest left: PC and x0.
    pub(super) fn look(&mut self, what: core::fmt::Arguments<'_>, machine: &Machine) {
        let [pc, x0] = [reg::PC, reg::x(0)].map(|id| self.register(machine.vcpu, id));
        self.line(format_args!("registers {what}"), format_args!("PC {pc:#x} X0 {x0:#x}"));
    }

    /// Gives it back.
    pub(super) fn drop_machine(&mut self, machine: &Machine) {
        for handle in [machine.vcpu, machine.gic, machine.vm] {
            self.close(handle);
        }
    }
}
