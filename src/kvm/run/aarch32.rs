//! Exits in AArch32: of a vCPU whose EL1 is AArch32, or of a 32-bit program under a 64-bit EL1.
//!
//! What answers them is what answers AArch64's: a trapped CP15 register is the AArch64 one that it is a view of, a load or
//! store is of the register that holds the mode's, and calls go to the same table. They have vectors of their own, so what is
//! asked here costs no exit in AArch64 anything.

use super::{Leave, Resident};
use crate::{
    arch::{cpu, pmuv3::PmuRegister, state, timer},
    hypercall::Conduit,
    kvm::{
        interface::{self, Hardware, HostGic},
        interrupts::{Exiting, Outside},
        machine::Controller,
        vcpu::ExitKind,
    },
    vcpu::{
        Exit, GuestFault,
        aarch32::{self, Access, Exit as Exit32},
        exit::{DataAbort, INSTRUCTION_BYTES},
        switch,
    },
    vdev::{
        coprocessor::{self, OS_LOCK_KEY, View},
        sysreg::{Action, MachineRegister, SysRegId},
    },
};
use core::cell::RefCell;

const LOW: u64 = 0xffff_ffff;

impl Resident<'_> {
    #[cold]
    #[inline(never)]
    pub(super) fn exit_aarch32<G: HostGic>(&mut self) -> Option<Leave> {
        if self.machine.is_aarch32() {
            self.inner.context.narrow();
        }
        let (esr, pstate) = (switch::esr(), self.inner.context.pstate);
        let bytes = aarch32::instruction_bytes(esr);
        if !aarch32::passes(esr, pstate) {
            self.count(ExitKind::Fault);
            self.inner.context.step_over(bytes);
            return None;
        }
        if let Some(abort) = DataAbort::decode(aarch32::placed(esr, pstate), switch::fault_address) {
            self.count(ExitKind::Mmio);
            if abort.is_described() && self.mmio(&abort).is_some() {
                self.inner.context.step_over(bytes);
                return None;
            }
            return self.unclaimed(&abort);
        }
        match Exit32::decode(esr, pstate) {
            // A program's: of a register that is not there for it, or that its EL1 traps to itself.
            Exit32::System(_) if !self.machine.is_aarch32() => self.rare(Exit::Undefined, bytes),
            Exit32::Hvc { immediate } => {
                self.count(ExitKind::Hvc);
                self.call_from_aarch32(Conduit::Hvc, immediate)
            }
            Exit32::Smc => {
                self.count(ExitKind::Smc);
                // It has four bytes in both instruction sets. Its immediate, of which EL2 is not told, cannot matter.
                self.inner.context.step_over(INSTRUCTION_BYTES);
                self.call_from_aarch32(Conduit::Smc, 0)
            }
            Exit32::System(access) => {
                self.count(ExitKind::System);
                let outcome = self.coprocessor::<G>(&access);
                self.finish_rare(outcome, bytes);
                None
            }
            Exit32::Other => self.rare(Exit::decode(esr, switch::fault_address()), bytes),
        }
    }

    fn call_from_aarch32(&mut self, conduit: Conduit, immediate: u16) -> Option<Leave> {
        self.call_from(true, conduit, immediate)
    }

    /// A trapped system register.
    fn coprocessor<G: HostGic>(&mut self, access: &Access) -> Result<(), GuestFault> {
        let view = coprocessor::find(access.name).ok_or(GuestFault::Undefined)?;
        let [rt, rt2] = access.registers;
        let context = &mut self.inner.context;
        if !access.read {
            let value = context.register(rt) & LOW;
            return match view {
                View::Zero => Err(GuestFault::Undefined),
                View::Low(id) => self.write::<G>(id, value),
                View::High(id) => self.write_high(id),
                View::Whole(id) => {
                    let value = context.register(rt2) << 32 | value;
                    self.write::<G>(id, value)
                }
            };
        }
        let value = match view {
            View::Zero => 0,
            View::Low(id) | View::Whole(id) => self.read::<G>(id)?,
            View::High(id) => self.read::<G>(id)? >> 32,
        };
        self.inner.context.set_register(rt, value & LOW);
        if let View::Whole(_) = view {
            self.inner.context.set_register(rt2, value >> 32);
        }
        Ok(())
    }

    fn read<G: HostGic>(&mut self, id: SysRegId) -> Result<u64, GuestFault> {
        Ok(match id.action(false) {
            Action::Id(register) => self.machine.id_registers.get(register),
            Action::Machine(MachineRegister::Revidr) => cpu::revidr(),
            Action::Machine(MachineRegister::Aidr) => cpu::aidr(),
            Action::OsLockStatus => state::os_lock_status(),
            _ if is_gic(id) && !self.has_gic::<G>() => return Err(GuestFault::Undefined),
            Action::Common(register) => interface::access_common(register, None),
            Action::ReadAs(value) => value,
            _ => return self.other(id, None),
        })
    }

    fn write<G: HostGic>(&mut self, id: SysRegId, value: u64) -> Result<(), GuestFault> {
        let (machine, index) = (self.machine, self.vcpu.index());
        match id.action(true) {
            _ if is_gic(id) && !self.has_gic::<G>() => return Err(GuestFault::Undefined),
            Action::Common(register) => {
                interface::access_common(register, Some(value));
            }
            Action::Sgi(sgi) => {
                let vgic = RefCell::new(&mut self.inner.vgic);
                machine.vgic.send_sgi(index, sgi, value, &Exiting { machine, vcpu: self.vcpu, vgic });
            }
            Action::Deactivate => {
                let intid = value as u32 & 0xff_ffff;
                machine.vgic.deactivate(index, intid, &mut self.inner.vgic, &mut Hardware, &Outside(machine));
            }
            Action::OsLock => self.inner.state.set_os_lock((value == OS_LOCK_KEY).into()),
            Action::WriteIgnore => {}
            _ => return self.other(id, Some(value)).map(|_| ()),
        }
        Ok(())
    }

    /// The only register with a high half that traps and can be written is ACTLR2, whose bits the guest's CPU does not have.
    fn write_high(&self, id: SysRegId) -> Result<(), GuestFault> {
        if id.action(true) == Action::WriteIgnore { Ok(()) } else { Err(GuestFault::Undefined) }
    }

    /// A guest with a GICv2, or without any, has none of the GIC's system registers, whatever its CPU has.
    fn has_gic<G: HostGic>(&self) -> bool {
        !G::IS_V2 && self.machine.controller != Controller::None
    }

    /// A register that only some VMs have: of the PMU, or the physical timer's.
    fn other(&mut self, id: SysRegId, value: Option<u64>) -> Result<u64, GuestFault> {
        let result = if let Some(register) = PmuRegister::decode(id.fields()) {
            self.pmu(register, value)
        } else if self.machine.is_offset {
            timer::offset_access(id.fields(), value, self.machine.counter_offset())
        } else {
            None
        };
        result.ok_or(GuestFault::Undefined)
    }
}

/// ICC_*: op0 3, op1 0; CRn 4 with CRm 6, and CRn 12 with CRm 8 to 12.
const fn is_gic(id: SysRegId) -> bool {
    matches!(id.fields(), [3, 0, 4, 6, _] | [3, 0, 12, 8..=12, _])
}
