//! The registers of the CPU interface that both groups share, for a guest whose accesses to them trap.
//!
//! Deactivations have to be seen while active interrupts are in no list register, and a CPU that cannot trap ICC_DIR_EL1
//! alone traps all registers of its kind ([`Control::TRAP_COMMON`](super::Control::TRAP_COMMON)). They are answered here as
//! the virtual CPU interface answers them: ICV_PMR_EL1, ICV_CTLR_EL1, ICV_RPR_EL1 (IHI 0069 §12.3), whose state is in
//! ICH_VMCR_EL2 and ICH_AP*R_EL2. ICC_DIR_EL1 is [`Vgic::deactivate`](super::Vgic::deactivate)'s.

use super::cpu_registers::{self, Abilities};
use super::lr::{VMCR_PMR_SHIFT, VirtualInterface};

/// A register that both groups share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommonRegister {
    /// ICC_PMR_EL1.
    Pmr,
    /// ICC_CTLR_EL1.
    Ctlr,
    /// ICC_RPR_EL1, read-only.
    Rpr,
}

/// ICC_CTLR_EL1.RSS and ExtRange.
const CTLR_RSS_EXT_RANGE: u64 = 1 << 18 | 1 << 19;
/// The running priority while nothing is active.
const IDLE: u64 = 0xff;

/// What the machine's CPU interfaces are.
#[derive(Clone, Copy, Debug)]
pub struct Interface {
    /// ICH_VTR_EL2.
    pub abilities: Abilities,
    /// ICC_CTLR_EL1 of EL2: the virtual one shares what ICH_VTR_EL2 does not tell, RSS and ExtRange.
    pub control: u64,
}

/// What the guest that is on this CPU reads.
pub fn read(register: CommonRegister, machine: Interface, vif: &impl VirtualInterface) -> u64 {
    match register {
        CommonRegister::Pmr => vif.vmcr() >> VMCR_PMR_SHIFT & 0xff,
        CommonRegister::Ctlr => {
            cpu_registers::ctlr(vif.vmcr(), machine.abilities) | machine.control & CTLR_RSS_EXT_RANGE
        }
        CommonRegister::Rpr => running_priority(machine.abilities, vif),
    }
}

/// The guest that is on this CPU writes `value`.
pub fn write(register: CommonRegister, value: u64, machine: Interface, vif: &mut impl VirtualInterface) {
    let vmcr = vif.vmcr();
    vif.set_vmcr(match register {
        CommonRegister::Pmr => {
            // Bits of a priority that are not implemented are RES0.
            let implemented = 0xff << (7 - machine.abilities.priority_bits()) & 0xff;
            vmcr & !(0xff << VMCR_PMR_SHIFT) | (value & implemented) << VMCR_PMR_SHIFT
        }
        CommonRegister::Ctlr => cpu_registers::vmcr_with_ctlr(vmcr, value),
        CommonRegister::Rpr => return,
    });
}

/// The group priority of the most urgent active interrupt: each bit of the active priorities is one.
fn running_priority(machine: Abilities, vif: &impl VirtualInterface) -> u64 {
    let active = (0..vif.active_priority_registers()).map(|n| vif.ap0r(n) | vif.ap1r(n));
    let first = active.enumerate().find(|(_, bits)| *bits != 0);
    first.map_or(IDLE, |(n, bits)| {
        let level = 32 * n as u64 + u64::from(bits.trailing_zeros());
        (level << 8_u64.saturating_sub(machine.preemption_bits())) & 0xff
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::lr::Control;
    use super::*;

    /// A CPU interface that has nothing but what these registers are about.
    #[derive(Debug)]
    struct Registers {
        vmcr: u64,
        ap0r: [u32; 4],
        ap1r: [u32; 4],
        bits: u64,
    }

    impl VirtualInterface for Registers {
        fn list_registers(&self) -> usize {
            1
        }
        fn active_priority_registers(&self) -> usize {
            1 << (self.bits - 5)
        }
        fn read_lr(&self, _: usize) -> u64 {
            0
        }
        fn write_lr(&mut self, _: usize, _: u64) {
            unreachable!()
        }
        fn set_control(&mut self, _: Control) {
            unreachable!()
        }
        fn eoi_count(&self) -> u32 {
            0
        }
        fn clear_eoi_count(&mut self) {
            unreachable!()
        }
        fn vmcr(&self) -> u64 {
            self.vmcr
        }
        fn set_vmcr(&mut self, value: u64) {
            self.vmcr = value;
        }
        fn ap0r(&self, n: usize) -> u32 {
            self.ap0r[n]
        }
        fn set_ap0r(&mut self, _: usize, _: u32) {
            unreachable!()
        }
        fn ap1r(&self, n: usize) -> u32 {
            self.ap1r[n]
        }
        fn set_ap1r(&mut self, _: usize, _: u32) {
            unreachable!()
        }
        fn set_physical_active(&mut self, _: u32, _: bool) {
            unreachable!()
        }
    }

    /// An interface of so many bits of priority, as many of them for preemption; 24 bits of INTID, A3V.
    fn machine(bits: u64, control: u64) -> Interface {
        Interface { abilities: Abilities((bits - 1) << 29 | (bits - 1) << 26 | 1 << 23 | 1 << 21 | 3), control }
    }

    fn registers(bits: u64, vmcr: u64) -> Registers {
        Registers { vmcr, ap0r: [0; 4], ap1r: [0; 4], bits }
    }

    #[test]
    fn the_mask_has_as_many_bits_as_a_priority() {
        for (bits, implemented) in [(5, 0xf8), (6, 0xfc), (7, 0xfe)] {
            let mut vif = registers(bits, u64::from(u32::MAX));
            for value in [0, 0x7f, 0xff, u64::MAX] {
                write(CommonRegister::Pmr, value, machine(bits, 0), &mut vif);
                assert_eq!(vif.vmcr, 0xff_ffff | (value & implemented) << 24);
                assert_eq!(read(CommonRegister::Pmr, machine(bits, 0), &vif), value & implemented);
            }
        }
        let eight = Interface { abilities: Abilities(7 << 29 | 6 << 26), control: 0 };
        let mut vif = registers(7, 0);
        write(CommonRegister::Pmr, 0xff, eight, &mut vif);
        assert_eq!(read(CommonRegister::Pmr, eight, &vif), 0xff);
    }

    #[test]
    fn control_is_the_guests_in_two_bits() {
        let mut vif = registers(5, 0xf8 << 24 | 1 << 3 | 1 << 1);
        // PRIbits, IDbits, A3V.
        let fixed = 4 << 8 | 1 << 11 | 1 << 15;
        for value in [0, 1, 2, 3, u64::MAX, !3] {
            write(CommonRegister::Ctlr, value, machine(5, 0), &mut vif);
            assert_eq!(read(CommonRegister::Ctlr, machine(5, 0), &vif), fixed | value & 3);
            // VCBPR and VEOIM.
            assert_eq!(vif.vmcr, 0xf8 << 24 | 1 << 3 | 1 << 1 | (value & 1) << 4 | (value & 2) << 8);
        }
        // Of EL2's register nothing shows but RSS and ExtRange.
        assert_eq!(read(CommonRegister::Ctlr, machine(5, u64::MAX), &registers(5, 0)), fixed | 3 << 18);
    }

    #[test]
    fn what_is_running_is_the_first_level_that_is_active() {
        for (bits, ap0r, ap1r, priority) in [
            (5, [0; 4], [0; 4], 0xff),
            (5, [0; 4], [1, 0, 0, 0], 0),
            (5, [1 << 16, 0, 0, 0], [1 << 20 | 1 << 31, 0, 0, 0], 0x80),
            (5, [0; 4], [1 << 31, 0, 0, 0], 0xf8),
            (6, [0; 4], [0, 1 << 31, 0, 0], 0xfc),
            (6, [0, 1, 0, 0], [1 << 31, 0, 0, 0], 0x7c),
            (7, [0; 4], [0, 0, 0, 1 << 31], 0xfe),
            (7, [0, 0, 1, 0], [0, 0, 2, 0], 0x80),
        ] {
            let vif = Registers { ap0r, ap1r, ..registers(bits, 0) };
            assert_eq!(read(CommonRegister::Rpr, machine(bits, 0), &vif), priority, "{vif:x?}");
        }
    }

    #[test]
    fn one_trap_stands_in_for_the_other() {
        let (tc, tdir, others) =
            (Control::TRAP_COMMON, Control::TRAP_DEACTIVATE, Control::NO_PENDING | Control::ENTRY_NOT_PRESENT);
        assert_eq!((tc.bits(), tdir.bits()), (1 << 10, 1 << 14));
        assert_eq!((others | tdir).trapping_deactivations(true), others | tdir);
        assert_eq!((others | tdir).trapping_deactivations(false), others | tc);
        for has_tdir in [false, true] {
            assert_eq!(others.trapping_deactivations(has_tdir), others);
            assert_eq!((others | tc).trapping_deactivations(has_tdir), others | tc);
            assert_eq!((others | tc | tdir).trapping_deactivations(has_tdir), others | tc);
        }
    }

    proptest! {
        /// Each acknowledged priority, to the bits that count, is the running one while nothing more urgent is active.
        #[test]
        fn running_priorities_are_those_acknowledged(
            bits in 5_u64..=7, acknowledged in prop::collection::vec((any::<u8>(), any::<bool>()), 1..6)
        ) {
            let mut vif = registers(bits, 0);
            let mut most_urgent = 0xff;
            for (priority, group1) in acknowledged {
                let level = usize::from(priority) >> (8 - bits);
                let active = if group1 { &mut vif.ap1r } else { &mut vif.ap0r };
                active[level / 32] |= 1 << (level % 32);
                most_urgent = most_urgent.min(u64::from(priority) & 0xff << (8 - bits));
                prop_assert_eq!(read(CommonRegister::Rpr, machine(bits, 0), &vif), most_urgent);
            }
        }

        /// Whatever is written, what is not the register's stays.
        #[test]
        fn a_write_changes_its_own_fields(vmcr: u32, value: u64, bits in 5_u64..=7) {
            for (register, fields) in [
                (CommonRegister::Pmr, 0xff << 24),
                (CommonRegister::Ctlr, 1 << 4 | 1 << 9),
                (CommonRegister::Rpr, 0),
            ] {
                let mut vif = registers(bits, vmcr.into());
                write(register, value, machine(bits, 0), &mut vif);
                prop_assert_eq!((vif.vmcr ^ u64::from(vmcr)) & !fields, 0);
            }
        }
    }
}
