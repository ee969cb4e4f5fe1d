//! ONE_REG's core group: what `struct kvm_regs` holds.

use super::{Errno, KeptRegisters, Value};
use crate::{
    arch::registers::Parked,
    kvm::uapi::{Regs, reg},
    vcpu::{VcpuContext, aarch32},
};
use core::mem::offset_of;

/// Where a register is, by its number in its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    X,
    SpEl0,
    Pc,
    Pstate,
    SpEl1,
    ElrEl1,
    /// SPSR_EL1, then those of AArch32.
    Spsr,
    V,
    Fpsr,
    Fpcr,
}

/// Registers of one kind that follow each other.
struct Row {
    /// Of the first, in units of four bytes.
    index: usize,
    count: usize,
    /// Of each, in units of four bytes.
    words: usize,
    place: Place,
}

const fn row(offset: usize, count: usize, words: usize, place: Place) -> Row {
    assert!(offset.is_multiple_of(4 * words));
    Row { index: offset / 4, count, words, place }
}

static ROWS: [Row; 10] = [
    row(offset_of!(Regs, x), 31, 2, Place::X),
    row(offset_of!(Regs, sp), 1, 2, Place::SpEl0),
    row(offset_of!(Regs, pc), 1, 2, Place::Pc),
    row(offset_of!(Regs, pstate), 1, 2, Place::Pstate),
    row(offset_of!(Regs, sp_el1), 1, 2, Place::SpEl1),
    row(offset_of!(Regs, elr_el1), 1, 2, Place::ElrEl1),
    row(offset_of!(Regs, spsr), 5, 2, Place::Spsr),
    row(offset_of!(Regs, v), 32, 4, Place::V),
    row(offset_of!(Regs, fpsr), 1, 1, Place::Fpsr),
    row(offset_of!(Regs, fpcr), 1, 1, Place::Fpcr),
];

/// `struct kvm_regs` in units of four bytes.
const WORDS: u64 = size_of::<Regs>() as u64 / 4;

/// A core register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Register {
    place: Place,
    n: usize,
    words: usize,
}

/// All ids, in order.
pub(super) fn ids() -> impl Iterator<Item = u64> {
    ROWS.iter().flat_map(|row| {
        // 1, 2 and 4 words are 4, 8 and 16 bytes.
        let size = u64::from(row.words.ilog2() + 2) << reg::SIZE_SHIFT;
        (0..row.count).map(move |n| reg::ARM64 | size | reg::CORE | (row.index + n * row.words) as u64)
    })
}

impl Register {
    /// The register with this id of the group.
    ///
    /// # Errors
    ///
    /// `ENOENT` beyond the structure's end, `EINVAL` for what is not the start of a register, or not its size.
    pub(super) fn find(id: u64) -> Result<Self, Errno> {
        let index = id & 0xffff_ffff & !reg::CORE;
        let words = (1 << ((id & reg::SIZE_MASK) >> reg::SIZE_SHIFT)) / 4;
        if index >= WORDS || index + words >= WORDS {
            return Err(Errno::ENOENT);
        }
        let (index, words) = (index as usize, words as usize);
        let holds = |row: &&Row| (row.index..row.index + row.count * row.words).contains(&index);
        let row = ROWS.iter().find(holds).ok_or(Errno::EINVAL)?;
        let offset = index - row.index;
        if !offset.is_multiple_of(row.words) || words != row.words {
            return Err(Errno::EINVAL);
        }
        Ok(Self { place: row.place, n: offset / row.words, words })
    }

    /// Its size in bytes.
    pub(super) fn size(self) -> usize {
        self.words * 4
    }
}

/// PSTATE.M of AArch64.
mod mode {
    pub(super) const EL0T: u64 = 0;
    pub(super) const EL1T: u64 = 4;
    pub(super) const EL1H: u64 = 5;
}

/// Which modes a vCPU may be put into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Modes {
    /// EL0 can be AArch32.
    pub(super) aarch32_el0: bool,
    /// EL1 is AArch32.
    pub(super) aarch32_el1: bool,
}

impl Modes {
    fn have(self, pstate: u64) -> bool {
        match pstate & aarch32::mode::MASK {
            mode::EL0T | mode::EL1T | mode::EL1H => !self.aarch32_el1,
            aarch32::mode::USR => self.aarch32_el0,
            aarch32::mode::FIQ
            | aarch32::mode::IRQ
            | aarch32::mode::SVC
            | aarch32::mode::ABT
            | aarch32::mode::UND
            | aarch32::mode::SYS => self.aarch32_el1,
            _ => false,
        }
    }
}

/// The registers of the group.
pub(super) struct File<'a, 'b> {
    pub(super) context: &'a mut VcpuContext,
    pub(super) parked: &'a mut Parked<'b>,
    pub(super) kept: &'a mut KeptRegisters,
}

impl File<'_, '_> {
    fn word(&mut self, register: Register) -> Option<&mut u64> {
        let n = register.n;
        match register.place {
            Place::X => self.context.gpr.get_mut(n),
            Place::SpEl0 => Some(&mut self.parked.el1.sp_el0),
            Place::Pc => Some(&mut self.context.pc),
            Place::Pstate => Some(&mut self.context.pstate),
            Place::SpEl1 => Some(&mut self.parked.el1.sp_el1),
            Place::ElrEl1 => Some(&mut self.parked.el1.elr),
            Place::Spsr if n == 0 => Some(&mut self.parked.el1.spsr),
            Place::Spsr => self.kept.aarch32.spsr.get_mut(n - 1),
            Place::Fpsr => Some(&mut self.parked.fp.fpsr),
            Place::Fpcr => Some(&mut self.parked.fp.fpcr),
            Place::V => None,
        }
    }

    /// The value of a register.
    pub(super) fn get(&mut self, register: Register) -> Value {
        if let (Place::V, Some([low, high])) = (register.place, self.parked.fp.v.get(register.n)) {
            return Value::U128(u128::from(*high) << 64 | u128::from(*low));
        }
        let value = self.word(register).map_or(0, |word| *word);
        if register.words == 1 { Value::U32(value as u32) } else { Value::U64(value) }
    }

    /// Sets a register. In AArch32, registers have 32 bits.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a PSTATE that a vCPU with these modes cannot have, or a value of another size.
    pub(super) fn set(&mut self, register: Register, value: Value, modes: Modes) -> Result<(), Errno> {
        match value {
            Value::U128(value) if register.place == Place::V => {
                let place = self.parked.fp.v.get_mut(register.n).ok_or(Errno::EINVAL)?;
                *place = [value as u64, (value >> 64) as u64];
            }
            Value::U64(value) if register.words == 2 => {
                if register.place == Place::Pstate && !modes.have(value) {
                    return Err(Errno::EINVAL);
                }
                *self.word(register).ok_or(Errno::EINVAL)? = value;
            }
            Value::U32(value) if register.words == 1 => *self.word(register).ok_or(Errno::EINVAL)? = value.into(),
            _ => return Err(Errno::EINVAL),
        }
        if self.context.is_aarch32() {
            // What the mode sees: r0 to r14, or all that are banked.
            let user = matches!(self.context.pstate & aarch32::mode::MASK, aarch32::mode::USR | aarch32::mode::SYS);
            self.context.gpr[..if user { 15 } else { 31 }]
                .iter_mut()
                .for_each(|register| *register = u64::from(*register as u32));
            self.context.pc = u64::from(self.context.pc as u32);
        }
        Ok(())
    }
}
