//! KVM_GET_ONE_REG, KVM_SET_ONE_REG and KVM_GET_REG_LIST: a vCPU's registers, each by its id.
//!
//! Source: Linux 6.12, Documentation/virt/kvm/api.rst (4.68, 4.69, 4.83) and uapi `asm/kvm.h`. An id says the group, the
//! number in it and the size; what is listed, read, written and checked comes from the same tables. What is read can be
//! written back, so that the registers of a vCPU, saved in the list's order, can be restored in another VM.
//!
//! [`Registers`] are those of a vCPU that no CPU holds. What is not the vCPU's alone comes through [`Surroundings`].
//! Registers that KVM leaves with a made-up value at reset (0x1de7_ec7e_dbad_c0de) are 0 in keel, for the guest as well.
//! Where KVM says less about caches than the machine has, keel's guests see the machine's, and CCSIDR_EL1, CLIDR_EL1 and
//! CTR_EL0 can be set to nothing else.

mod core_group;
mod system;

use self::{
    core_group::{File, Modes},
    system::{KeptRegister, Kind, Row, oslsr},
};
use super::{
    Errno, firmware,
    uapi::{FEATURE_ID_RANGE_SIZE, reg},
};
use crate::{
    arch::{
        pmuv3::{self, PmuRegister},
        registers::{Aarch32Registers, Parked},
    },
    vcpu::VcpuContext,
    vdev::{
        idregs::{GuestIdRegisters, IdRegister, Refused},
        sysreg::SysRegId,
    },
};

pub use system::MachineRegister;

/// How many caches CSSELR_EL1 can name: seven levels, data or unified and instructions.
pub const CACHES: usize = 14;

/// A register's value, of the size that its id says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// Four bytes.
    U32(u32),
    /// Eight bytes.
    U64(u64),
    /// Sixteen bytes.
    U128(u128),
}

impl Value {
    /// The value in these 4, 8 or 16 bytes, little-endian.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        match bytes.len() {
            4 => bytes.try_into().ok().map(u32::from_le_bytes).map(Self::U32),
            8 => bytes.try_into().ok().map(u64::from_le_bytes).map(Self::U64),
            16 => bytes.try_into().ok().map(u128::from_le_bytes).map(Self::U128),
            _ => None,
        }
    }

    /// Its size in bytes.
    pub const fn size(self) -> usize {
        match self {
            Self::U32(_) => 4,
            Self::U64(_) => 8,
            Self::U128(_) => 16,
        }
    }

    /// Itself in the first [`size`](Self::size) bytes, little-endian; the rest is zero.
    pub const fn to_bytes(self) -> [u8; 16] {
        match self {
            Self::U32(value) => value as u128,
            Self::U64(value) => value as u128,
            Self::U128(value) => value,
        }
        .to_le_bytes()
    }

    const fn word(self) -> Result<u64, Errno> {
        match self {
            Self::U64(value) => Ok(value),
            _ => Err(Errno::EINVAL),
        }
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::U64(value)
    }
}

/// Registers that KVM's API has for every vCPU: of AArch32's EL1, which a CPU holds only for vCPUs that have it, and of
/// features that guests do not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptRegisters {
    /// Of AArch32's EL1.
    pub aarch32: Aarch32Registers,
    /// TCR2_EL1.
    pub tcr2: u64,
    /// PIRE0_EL1.
    pub pire0: u64,
    /// PIR_EL1.
    pub pir: u64,
}

impl KeptRegisters {
    /// After reset, as KVM has it.
    pub const RESET: Self = Self { aarch32: Aarch32Registers::RESET, tcr2: 0, pire0: 0, pir: 0 };
}

/// Optional registers that a vCPU has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// The keys of pointer authentication.
    pub pointer_authentication: bool,
    /// Its EL1 is AArch32 (KVM_ARM_VCPU_EL1_32BIT).
    pub aarch32_el1: bool,
    /// A PMU.
    pub pmu: bool,
}

/// The machine and the VM around a vCPU, as far as its registers depend on them.
pub trait Surroundings {
    /// What it has of the optional registers.
    fn options(&self) -> Options;
    /// EL0 can be AArch32.
    fn has_aarch32(&self) -> bool;
    /// The physical counter.
    fn now(&self) -> u64;
    /// CNTVOFF_EL2.
    fn counter_offset(&self) -> u64;
    /// Sets it for the VM, or does nothing: it may have been set for good.
    fn set_counter_offset(&self, offset: u64);
    /// What the vCPU's physical counter is behind the machine's, in whose time the physical timer's comparator is kept.
    fn physical_offset(&self) -> u64;
    /// A register of the CPU that it runs on.
    fn machine_register(&self, register: MachineRegister) -> u64;
    /// CCSIDR_EL1's low half for what CSSELR_EL1 names, below [`CACHES`].
    fn ccsidr(&self, selector: usize) -> u32;
    /// MPIDR_EL1.
    fn mpidr(&self) -> u64;
    /// Sets it.
    ///
    /// # Errors
    ///
    /// Why it stays as it is.
    fn set_mpidr(&self, value: u64) -> Result<(), Errno>;
    /// ID_AA64DFR0_EL1.PMUVer.
    fn pmu_version(&self) -> u8;
    /// PMCR_EL0.N: how many event counters each vCPU of the VM has.
    fn event_counters(&self) -> u8;
    /// Sets it, or does nothing: the machine may not have so many, or a vCPU may have run.
    fn set_event_counters(&self, count: u8);
    /// An ID register.
    fn id_register(&self, register: IdRegister) -> u64;
    /// Sets it.
    ///
    /// # Errors
    ///
    /// Why it stays as it is.
    fn set_id_register(&self, register: IdRegister, value: u64) -> Result<(), Errno>;
    /// A register of the firmware's.
    fn firmware_register(&self, register: firmware::Register) -> u64;
    /// Sets it.
    ///
    /// # Errors
    ///
    /// Why it stays as it is.
    fn set_firmware_register(&self, register: firmware::Register, value: u64) -> Result<(), Errno>;
}

impl From<Refused> for Errno {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unsupported => Self::EINVAL,
            Refused::Frozen => Self::EBUSY,
        }
    }
}

/// A register of the EL1 timers, in the group of system registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timer {
    VirtualControl,
    VirtualCount,
    VirtualCompare,
    PhysicalControl,
    PhysicalCount,
    PhysicalCompare,
}

/// In the order in which they are listed.
const TIMERS: [(u64, Timer); 6] = [
    (reg::TIMER_CTL, Timer::VirtualControl),
    (reg::TIMER_CNT, Timer::VirtualCount),
    (reg::TIMER_CVAL, Timer::VirtualCompare),
    (reg::PTIMER_CTL, Timer::PhysicalControl),
    (reg::PTIMER_CNT, Timer::PhysicalCount),
    (reg::PTIMER_CVAL, Timer::PhysicalCompare),
];

/// CNTx_CTL_EL0: ENABLE and IMASK, which a write sets.
const TIMER_CONTROL: u64 = 0b11;
/// CNTx_CTL_EL0.ISTATUS.
const TIMER_STATUS: u64 = 1 << 2;

/// Which register an id names.
enum Register {
    Core(core_group::Register),
    Cache(usize),
    System(&'static Row),
    Timer(Timer),
    Firmware(firmware::Register),
}

const SYSREG_BASE: u64 = reg::ARM64 | reg::U64 | reg::SYSREG;
const CCSIDR_BASE: u64 = reg::ARM64 | reg::U32 | reg::DEMUX;

/// The group of an arm64 id.
fn group(id: u64) -> Result<u64, Errno> {
    if (id & !reg::SIZE_MASK) >> 32 == reg::ARM64 >> 32 { Ok(id & reg::GROUP_MASK) } else { Err(Errno::EINVAL) }
}

fn find(id: u64, options: Options) -> Result<Register, Errno> {
    match group(id)? {
        reg::CORE => core_group::Register::find(id).map(Register::Core),
        reg::DEMUX => match id.checked_sub(CCSIDR_BASE) {
            Some(selector) if selector < CACHES as u64 => Ok(Register::Cache(selector as usize)),
            _ => Err(Errno::ENOENT),
        },
        reg::SYSREG => {
            if let Some((_, timer)) = TIMERS.iter().find(|(other, _)| *other == id) {
                return Ok(Register::Timer(*timer));
            }
            let number = id.checked_sub(SYSREG_BASE).and_then(|number| u16::try_from(number).ok());
            let row = number.and_then(|number| Row::find(SysRegId(number))).filter(|row| is_shown(row, options));
            row.map(Register::System).ok_or(Errno::ENOENT)
        }
        reg::SVE if !is_sve(id) => Err(Errno::EINVAL),
        _ => firmware::find(id).map(Register::Firmware).ok_or(Errno::ENOENT),
    }
}

/// Whether an id of SVE's group is one that a vCPU with SVE would have: Zn, Pn, FFR, each with a slice in bits 4:0, and
/// KVM_REG_ARM64_SVE_VLS.
fn is_sve(id: u64) -> bool {
    const Z: u64 = reg::ARM64 | reg::U2048 | reg::SVE;
    const P: u64 = reg::ARM64 | reg::U256 | reg::SVE | 0x400;
    const VLS: u64 = reg::ARM64 | reg::U512 | reg::SVE | 0xffff;
    (Z..Z + 32 * 32).contains(&id) || (P..P + 17 * 32).contains(&id) || id == VLS
}

fn is_shown(row: &Row, options: Options) -> bool {
    match row.kind {
        Kind::Key => options.pointer_authentication,
        Kind::Pmu(_) => options.pmu,
        _ => true,
    }
}

/// KVM_GET_REG_LIST: the ids of a vCPU's registers, in KVM's order.
pub fn list(options: Options) -> impl Iterator<Item = u64> {
    let system = system::INVARIANT.iter().chain(system::ROWS.iter().filter(move |row| is_shown(row, options)));
    core_group::ids()
        .chain(firmware::REGISTERS.iter().map(|(id, _)| *id))
        .chain(TIMERS.iter().map(|(id, _)| *id))
        .chain(system.map(|row| SYSREG_BASE | u64::from(row.id.0)))
        .chain((0..CACHES as u64).map(|selector| CCSIDR_BASE | selector))
}

/// How many bytes KVM_SET_ONE_REG takes for an id before it looks for the register.
///
/// # Errors
///
/// Those that KVM_SET_ONE_REG has whatever the value, and wherever it is.
pub fn size_to_set(id: u64) -> Result<usize, Errno> {
    match group(id)? {
        reg::CORE => core_group::Register::find(id).map(core_group::Register::size),
        reg::DEMUX => find(id, Options::default()).map(|_| 4),
        reg::FW | reg::FW_FEAT_BMAP if id & reg::SIZE_MASK != reg::U64 => Err(Errno::ENOENT),
        reg::SVE => find(id, Options::default()).map(|_| 0),
        _ => Ok(8),
    }
}

/// KVM_ARM_GET_REG_WRITABLE_MASKS: for each register of the ID space, by index, which bits may change.
pub fn writable_masks(ids: &GuestIdRegisters) -> [u64; FEATURE_ID_RANGE_SIZE] {
    let mut masks = [0; FEATURE_ID_RANGE_SIZE];
    for register in IdRegister::all() {
        // op1 is 0; what has another, CLIDR_EL1 and CTR_EL0 among them, is the machine's.
        if let Some(mask) = masks.get_mut(usize::from(register.crm() << 3 | register.op2())) {
            *mask = ids.writable(register);
        }
    }
    masks
}

/// The registers of a vCPU that no CPU holds.
pub struct Registers<'a, S> {
    /// x0-x30, PC, PSTATE.
    pub context: &'a mut VcpuContext,
    /// What a CPU holds while the vCPU runs.
    pub parked: Parked<'a>,
    /// What no CPU holds.
    pub kept: &'a mut KeptRegisters,
    /// The rest.
    pub around: S,
}

impl<'a, S: Surroundings> Registers<'a, S> {
    fn core(&mut self) -> File<'_, 'a> {
        File { context: self.context, parked: &mut self.parked, kept: self.kept }
    }

    /// KVM_GET_ONE_REG.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an id that is not arm64's, or none of the core group's; `ENOENT` for a register that the vCPU does not
    /// have.
    pub fn get(&mut self, id: u64) -> Result<Value, Errno> {
        Ok(match find(id, self.around.options())? {
            Register::Core(register) => self.core().get(register),
            Register::Cache(selector) => Value::U32(self.around.ccsidr(selector)),
            Register::System(row) => Value::U64(self.system(row)),
            Register::Timer(timer) => Value::U64(self.timer(timer)),
            Register::Firmware(register) => Value::U64(self.around.firmware_register(register)),
        })
    }

    /// KVM_SET_ONE_REG.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get); `EINVAL` for a value that the register cannot have or of another size; `EBUSY` for a change
    /// that comes too late, as a vCPU of the VM has run.
    pub fn set(&mut self, id: u64, value: Value) -> Result<(), Errno> {
        match find(id, self.around.options())? {
            Register::Core(register) => {
                let modes =
                    Modes { aarch32_el0: self.around.has_aarch32(), aarch32_el1: self.around.options().aarch32_el1 };
                self.core().set(register, value, modes)
            }
            Register::Cache(selector) => same(Value::U32(self.around.ccsidr(selector)), value),
            Register::System(row) => self.set_system(row, value.word()?),
            Register::Timer(timer) => {
                self.set_timer(timer, value.word()?);
                Ok(())
            }
            Register::Firmware(register) => self.around.set_firmware_register(register, value.word()?),
        }
    }

    fn system(&mut self, row: &Row) -> u64 {
        match row.kind {
            Kind::Own | Kind::Key => self.parked.system(row.id.0).map_or(0, |register| *register),
            Kind::Pmu(register) => {
                let (counters, version) = (self.around.event_counters(), self.around.pmu_version());
                self.parked.pmu.as_mut().map_or(0, |pmu| pmu.get(register, counters, version))
            }
            Kind::Id(register) => self.around.id_register(register),
            Kind::Machine(register) => self.around.machine_register(register),
            Kind::Affinity => self.around.mpidr(),
            Kind::OsLock if *self.parked.os_lock => oslsr::OSLM | oslsr::OSLK,
            Kind::OsLock => oslsr::OSLM,
            Kind::Kept(register) => *self.kept(register),
            Kind::Zero => 0,
        }
    }

    fn set_system(&mut self, row: &Row, value: u64) -> Result<(), Errno> {
        match row.kind {
            Kind::Own | Kind::Key => *self.parked.system(row.id.0).ok_or(Errno::ENOENT)? = value,
            Kind::Pmu(register) => self.set_pmu(register, value),
            Kind::Id(register) => return self.around.set_id_register(register, value),
            Kind::Machine(_) | Kind::Zero => return same(Value::U64(self.system(row)), Value::U64(value)),
            Kind::Affinity => return self.around.set_mpidr(value),
            Kind::OsLock if value & !oslsr::OSLK == oslsr::OSLM => *self.parked.os_lock = value & oslsr::OSLK != 0,
            Kind::OsLock => return Err(Errno::EINVAL),
            Kind::Kept(register) => *self.kept(register) = value,
        }
        Ok(())
    }

    fn set_pmu(&mut self, register: PmuRegister, value: u64) {
        if register == PmuRegister::Control {
            self.around.set_event_counters(pmuv3::counters_in(value));
        }
        let fixed = if self.around.has_aarch32() { 0 } else { pmuv3::PMCR_LC };
        if let Some(pmu) = &mut self.parked.pmu {
            pmu.set(register, value, fixed);
        }
    }

    fn kept(&mut self, register: KeptRegister) -> &mut u64 {
        match register {
            KeptRegister::Dbgvcr => &mut self.kept.aarch32.dbgvcr,
            KeptRegister::Dacr => &mut self.kept.aarch32.dacr,
            KeptRegister::Ifsr => &mut self.kept.aarch32.ifsr,
            KeptRegister::Fpexc => &mut self.kept.aarch32.fpexc,
            KeptRegister::Tcr2 => &mut self.kept.tcr2,
            KeptRegister::Pire0 => &mut self.kept.pire0,
            KeptRegister::Pir => &mut self.kept.pir,
        }
    }

    fn timer(&self, timer: Timer) -> u64 {
        let timers = &self.parked.timers;
        let now = self.around.now();
        let virtual_ = now.wrapping_sub(self.around.counter_offset());
        let offset = self.around.physical_offset();
        let (physical, physical_compare) = (now.wrapping_sub(offset), timers.physical_compare.wrapping_sub(offset));
        // ISTATUS, as if the timer were enabled.
        let control = |control: u64, compare: u64, now: u64| {
            control & TIMER_CONTROL | if compare <= now { TIMER_STATUS } else { 0 }
        };
        match timer {
            Timer::VirtualControl => control(timers.virtual_control, timers.virtual_compare, virtual_),
            Timer::VirtualCount => virtual_,
            Timer::VirtualCompare => timers.virtual_compare,
            Timer::PhysicalControl => control(timers.physical_control, physical_compare, physical),
            Timer::PhysicalCount => physical,
            Timer::PhysicalCompare => physical_compare,
        }
    }

    fn set_timer(&mut self, timer: Timer, value: u64) {
        match timer {
            Timer::VirtualControl => self.parked.timers.virtual_control = value & TIMER_CONTROL,
            Timer::VirtualCount => self.around.set_counter_offset(self.around.now().wrapping_sub(value)),
            Timer::VirtualCompare => self.parked.timers.virtual_compare = value,
            Timer::PhysicalControl => self.parked.timers.physical_control = value & TIMER_CONTROL,
            // The physical counter of a guest is the machine's, or was given its offset for good.
            Timer::PhysicalCount => {}
            Timer::PhysicalCompare => {
                self.parked.timers.physical_compare = value.wrapping_add(self.around.physical_offset());
            }
        }
    }
}

/// The answer to a write of a register that cannot change.
fn same(now: Value, value: Value) -> Result<(), Errno> {
    if now == value { Ok(()) } else { Err(Errno::EINVAL) }
}

#[cfg(test)]
mod tests;
