//! ONE_REG on the target: a vCPU's registers where they are, and the machine and VM around them.

use super::{
    Errno, Vcpu, Vm, firmware, physical,
    registers::{self, MachineRegister, Options, Registers, Surroundings, Value},
    vcpu::Inner,
};
use crate::{
    arch::{cpu::MPIDR_AFFINITY, timer},
    vdev::idregs::{GuestIdRegisters, IdRegister},
};

/// MPIDR_EL1: bit 31 is one.
const MPIDR_RES1: u64 = 1 << 31;
/// MPIDR_EL1: U, a uniprocessor, and MT, the lowest affinity level is of threads.
const MPIDR_FLAGS: u64 = 1 << 30 | 1 << 24;

/// A VM and one of its vCPUs.
struct Around<'a> {
    vm: &'a Vm,
    vcpu: &'a Vcpu,
}

impl Surroundings for Around<'_> {
    fn options(&self) -> Options {
        self.vm.options()
    }

    fn has_aarch32(&self) -> bool {
        self.vm.with_id_registers(|ids| ids.has_aarch32())
    }

    fn now(&self) -> u64 {
        timer::now()
    }

    fn counter_offset(&self) -> u64 {
        self.vm.counter_offset()
    }

    fn set_counter_offset(&self, offset: u64) {
        self.vm.offset_virtual_counter(offset);
    }

    fn physical_offset(&self) -> u64 {
        self.vm.physical_offset()
    }

    fn machine_register(&self, register: MachineRegister) -> u64 {
        let cpu = self.vcpu.cpu();
        let [midr, revidr, aidr] = physical::implementation(cpu).unwrap_or_default();
        match register {
            MachineRegister::Midr => midr,
            MachineRegister::Revidr => revidr,
            MachineRegister::Aidr => aidr,
            MachineRegister::Clidr => physical::caches(cpu).map_or(0, |caches| caches.clidr),
            MachineRegister::Ctr => physical::caches(cpu).map_or(0, |caches| caches.ctr),
        }
    }

    fn ccsidr(&self, selector: usize) -> u32 {
        physical::caches(self.vcpu.cpu()).and_then(|caches| caches.ccsidr.get(selector)).map_or(0, |&ccsidr| ccsidr)
    }

    fn mpidr(&self) -> u64 {
        self.vcpu.mpidr()
    }

    fn set_mpidr(&self, value: u64) -> Result<(), Errno> {
        if value == self.vcpu.mpidr() {
            return Ok(());
        }
        if value & !(MPIDR_AFFINITY | MPIDR_FLAGS) != MPIDR_RES1 {
            return Err(Errno::EINVAL);
        }
        // The interrupt controller routes by it from then on.
        if self.vm.has_run() {
            return Err(Errno::EBUSY);
        }
        self.vcpu.set_mpidr(value);
        Ok(())
    }

    fn pmu_version(&self) -> u8 {
        self.vm.with_id_registers(GuestIdRegisters::pmu_version)
    }

    fn event_counters(&self) -> u8 {
        self.vm.event_counters()
    }

    fn set_event_counters(&self, count: u8) {
        self.vm.set_event_counters(count);
    }

    fn id_register(&self, register: IdRegister) -> u64 {
        self.vm.with_id_registers(|ids| ids.get(register))
    }

    fn set_id_register(&self, register: IdRegister, value: u64) -> Result<(), Errno> {
        self.vm.set_id_register(register, value)
    }

    fn firmware_register(&self, register: firmware::Register) -> u64 {
        self.vm.firmware_register(register)
    }

    fn set_firmware_register(&self, register: firmware::Register, value: u64) -> Result<(), Errno> {
        self.vm.set_firmware_register(register, value)
    }
}

fn registers<'a>(vm: &'a Vm, vcpu: &'a Vcpu, inner: &'a mut Inner) -> Registers<'a, Around<'a>> {
    Registers {
        context: &mut inner.context,
        parked: inner.state.parked(),
        kept: &mut inner.kept,
        around: Around { vm, vcpu },
    }
}

impl Vcpu {
    /// KVM_SET_ONE_REG.
    ///
    /// # Errors
    ///
    /// `ENOEXEC` before [`init`](Self::init); `EAGAIN` while a CPU runs it; those of [`Registers::set`].
    pub fn set_one_reg(&self, vm: &Vm, id: u64, value: impl Into<Value>) -> Result<(), Errno> {
        registers(vm, self, &mut *self.initialised()?).set(id, value.into())
    }

    /// KVM_GET_ONE_REG.
    ///
    /// # Errors
    ///
    /// `ENOEXEC` before [`init`](Self::init); `EAGAIN` while a CPU runs it; those of [`Registers::get`].
    pub fn get_one_reg(&self, vm: &Vm, id: u64) -> Result<Value, Errno> {
        registers(vm, self, &mut *self.initialised()?).get(id)
    }

    /// KVM_GET_REG_LIST: the ids of all registers, in KVM's order. Whoever has too little room for them answers `E2BIG`.
    ///
    /// # Errors
    ///
    /// `ENOEXEC` before [`init`](Self::init); `EAGAIN` while a CPU runs it.
    pub fn reg_list(&self, vm: &Vm) -> Result<impl Iterator<Item = u64> + use<>, Errno> {
        self.initialised()?;
        Ok(registers::list(vm.options()))
    }
}
