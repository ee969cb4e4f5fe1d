//! GICH's registers in the shape of ICH's.
//!
//! The state machine knows one shape of list registers and of the virtual CPU interface, the GICv3's. A GICv2 has the same
//! things in other places (IHI 0048B 5.3): five bits of priority, ten of INTID, one register of active priorities for both
//! groups, and, in the list register of an SGI, the CPU that sent it.

use super::lr::{ACTIVE, Control, EOI, GROUP1, HW, PENDING, PINTID_SHIFT, PRIORITY_SHIFT, SOURCE_SHIFT};

/// GICH_LRn.State, bits 29:28: pending, active.
const STATE_SHIFT: u32 = 28;
/// GICH_LRn.Grp1.
const GRP1: u32 = 1 << 30;
/// GICH_LRn.HW.
const LR_HW: u32 = 1 << 31;
/// GICH_LRn.Priority, bits 27:23: the top five of eight.
const LR_PRIORITY_SHIFT: u32 = 23;
/// GICH_LRn.PhysicalID, bits 19:10, when HW is 1.
const PHYSICAL_ID_SHIFT: u32 = 10;
/// GICH_LRn.CPUID, bits 12:10, when HW is 0.
const CPUID_SHIFT: u32 = 10;
/// GICH_LRn.EOI, when HW is 0.
const LR_EOI: u32 = 1 << 19;
/// GICH_LRn.VirtualID, and PhysicalID.
const ID_MASK: u32 = 0x3ff;
/// The implemented bits of GICH_VMCR: the enables, AckCtl, FIQEn, CBPR, EOIM; ABP and BP; the top five of a priority.
const VMCR: u64 = 0xf8fc_021f;
/// GICH_HCR: what a GICv3 has at the same place. It has no trap of deactivations.
const HCR: u64 = 0xfe;

/// The value of GICH_LRn for one of ICH_LRn_EL2.
#[inline]
pub fn list_register(ich: u64) -> u32 {
    let state = (ich >> PENDING.trailing_zeros() & 3) as u32;
    let kind = if ich & HW != 0 {
        LR_HW | ((ich >> PINTID_SHIFT) as u32 & ID_MASK) << PHYSICAL_ID_SHIFT
    } else {
        ((ich >> SOURCE_SHIFT) as u32 & 7) << CPUID_SHIFT | if ich & EOI != 0 { LR_EOI } else { 0 }
    };
    kind | state << STATE_SHIFT
        | if ich & GROUP1 != 0 { GRP1 } else { 0 }
        | ((ich >> (PRIORITY_SHIFT + 3)) as u32 & 0x1f) << LR_PRIORITY_SHIFT
        | ich as u32 & ID_MASK
}

/// The value of ICH_LRn_EL2 for one of GICH_LRn.
#[inline]
pub fn from_list_register(gich: u32) -> u64 {
    let kind = if gich & LR_HW != 0 {
        HW | u64::from(gich >> PHYSICAL_ID_SHIFT & ID_MASK) << PINTID_SHIFT
    } else {
        u64::from(gich >> CPUID_SHIFT & 7) << SOURCE_SHIFT | if gich & LR_EOI != 0 { EOI } else { 0 }
    };
    kind | u64::from(gich >> STATE_SHIFT & 3) << PENDING.trailing_zeros()
        | if gich & GRP1 != 0 { GROUP1 } else { 0 }
        | u64::from(gich >> LR_PRIORITY_SHIFT & 0x1f) << (PRIORITY_SHIFT + 3)
        | u64::from(gich & ID_MASK)
}

/// The value of GICH_VMCR for one of ICH_VMCR_EL2: what both have is at the same places.
pub fn vmcr(ich: u64) -> u32 {
    (ich & VMCR) as u32
}

/// GICH_HCR for what the state machine asks for, with the interface on.
#[inline]
pub fn hcr(control: Control) -> u32 {
    (control.bits() & HCR) as u32 | 1
}

const _: () = assert!(ACTIVE == PENDING << 1);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bits of GICH_LRn that mean nothing: 22:20, and with HW clear those between the CPUID and EOI.
    fn meaningful(gich: u32) -> u32 {
        let used = gich & !(7 << 20);
        if used & LR_HW != 0 { used } else { used & !(0x3f << 13) }
    }

    proptest! {
        #[test]
        fn list_registers_make_the_round_trip(value in any::<u32>()) {
            prop_assert_eq!(list_register(from_list_register(value)), meaningful(value));
        }

        #[test]
        fn what_the_state_machine_writes_comes_back(
            state in 0_u64..4, hw in any::<bool>(), group in any::<bool>(), eoi in any::<bool>(),
            priority in 0_u64..32, source in 0_u64..8, physical in 0_u64..1020, intid in 0_u64..1020,
        ) {
            let kind = if hw {
                HW | physical << PINTID_SHIFT
            } else {
                source << SOURCE_SHIFT | if eoi { EOI } else { 0 }
            };
            let value = state << 62 | kind | if group { GROUP1 } else { 0 } | priority << 51 | intid;
            prop_assert_eq!(from_list_register(list_register(value)), value);
        }

        #[test]
        fn the_interface_makes_the_round_trip(value in any::<u32>()) {
            let implemented = u64::from(value) & VMCR;
            prop_assert_eq!(u64::from(vmcr(implemented)), implemented);
        }
    }

    /// Values written down by hand from the figures of IHI 0048B 5.3.7.
    #[test]
    fn list_registers_are_as_the_specification_draws_them() {
        // SGI 5 of CPU 3, pending, priority 0xa0, group 0.
        assert_eq!(list_register(PENDING | 0xa0 << 48 | 3 << SOURCE_SHIFT | 5), 0x1a00_0c05);
        // PPI 27 of the hardware, active, priority 0, group 1.
        assert_eq!(list_register(ACTIVE | HW | GROUP1 | 27 << PINTID_SHIFT | 27), 0xe000_6c1b);
        // SPI 33, pending and active, EOI, priority 0xf8.
        assert_eq!(list_register(PENDING | ACTIVE | EOI | 0xf8 << 48 | 33), 0x3f88_0021);
    }

    #[test]
    fn nothing_traps_a_deactivation() {
        assert_eq!(hcr(Control::TRAP_DEACTIVATE | Control::NO_PENDING), 1 | 1 << 3);
        assert_eq!(hcr(Control::all()), 0xfd);
    }
}
