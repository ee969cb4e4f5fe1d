//! Which AArch64 register an MCR, MRC, MCRR, MRRC or VMRS of AArch32 is, of those that trap.
//!
//! AArch32's system registers are views of AArch64's (Arm ARM G8.2, each register's "architectural mapping"), so a trapped
//! access is named here and carried out as the one of [`sysreg`](super::sysreg) is. What has no row is undefined, as there.
//! Nothing that only AArch64 has can be named.

use super::sysreg::SysRegId;
use crate::vcpu::aarch32::Name;

/// What of a register is read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// All 64 bits.
    Whole(SysRegId),
    /// Bits 31:0.
    Low(SysRegId),
    /// Bits 63:32.
    High(SysRegId),
    /// No register: reads as zero, and cannot be written.
    Zero,
}

/// DBGOSLAR: this, and nothing else, closes the lock (Arm ARM G8.3.38).
pub const OS_LOCK_KEY: u64 = 0xc5ac_ce55;

struct Row {
    name: Name,
    view: View,
}

const fn word(coprocessor: u8, opc1: u8, crn: u8, crm: u8, opc2: u8, view: View) -> Row {
    Row { name: Name::Word([coprocessor, opc1, crn, crm, opc2]), view }
}

const fn pair(coprocessor: u8, opc1: u8, crm: u8, id: SysRegId) -> Row {
    Row { name: Name::Pair([coprocessor, opc1, crm]), view: View::Whole(id) }
}

const fn low(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> View {
    View::Low(SysRegId::new(op0, op1, crn, crm, op2))
}

const fn high(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> View {
    View::High(SysRegId::new(op0, op1, crn, crm, op2))
}

/// Registers that follow no rule of [`find`].
#[rustfmt::skip]
static ROWS: [Row; 31] = [
    // HCR_EL2.TID1: TCMTR, TLBTR (no tightly coupled memory; one TLB for both), REVIDR, AIDR.
    word(15, 0, 0, 0, 2, View::Zero),
    word(15, 0, 0, 0, 3, View::Zero),
    word(15, 0, 0, 0, 6, low(3, 0, 0, 0, 6)),
    word(15, 1, 0, 0, 7, low(3, 1, 0, 0, 7)),
    // HCR_EL2.TACR: ACTLR, ACTLR2.
    word(15, 0, 1, 0, 1, low(3, 0, 1, 0, 1)),
    word(15, 0, 1, 0, 3, high(3, 0, 1, 0, 1)),
    // HCR_EL2.TID3: MVFR0, MVFR1, MVFR2, by VMRS.
    word(10, 7, 7, 0, 0, low(3, 0, 0, 3, 0)),
    word(10, 7, 6, 0, 0, low(3, 0, 0, 3, 1)),
    word(10, 7, 5, 0, 0, low(3, 0, 0, 3, 2)),
    // ICH_HCR_EL2.TDIR: ICC_DIR. ICH_HCR_EL2.TC: ICC_PMR, ICC_CTLR, ICC_RPR, too. ICC_SRE_EL2.Enable = 0: ICC_SRE.
    word(15, 0, 4, 6, 0, low(3, 0, 4, 6, 0)),
    word(15, 0, 12, 12, 4, low(3, 0, 12, 12, 4)),
    word(15, 0, 12, 11, 3, low(3, 0, 12, 11, 3)),
    word(15, 0, 12, 11, 1, low(3, 0, 12, 11, 1)),
    word(15, 0, 12, 12, 5, low(3, 0, 12, 12, 5)),
    // HCR_EL2.IMO and FMO: ICC_SGI1R, ICC_ASGI1R, ICC_SGI0R.
    pair(15, 0, 12, SysRegId::new(3, 0, 12, 11, 5)),
    pair(15, 1, 12, SysRegId::new(3, 0, 12, 11, 6)),
    pair(15, 2, 12, SysRegId::new(3, 0, 12, 11, 7)),
    // MDCR_EL2.TDRA: DBGDRAR. MDCR_EL2.TDOSA: DBGOSLAR, DBGOSLSR, DBGOSDLR, DBGPRCR.
    word(14, 0, 1, 0, 0, low(2, 0, 1, 0, 0)),
    word(14, 0, 1, 0, 4, low(2, 0, 1, 0, 4)),
    word(14, 0, 1, 1, 4, low(2, 0, 1, 1, 4)),
    word(14, 0, 1, 3, 4, low(2, 0, 1, 3, 4)),
    word(14, 0, 1, 4, 4, low(2, 0, 1, 4, 4)),
    // MDCR_EL2.TPM: what of the PMU is not at its AArch64 place: PMINTENSET, PMINTENCLR, PMMIR, PMCEID2, PMCEID3, PMCCNTR.
    word(15, 0, 9, 14, 1, low(3, 0, 9, 14, 1)),
    word(15, 0, 9, 14, 2, low(3, 0, 9, 14, 2)),
    word(15, 0, 9, 14, 6, low(3, 0, 9, 14, 6)),
    word(15, 0, 9, 14, 4, high(3, 3, 9, 12, 6)),
    word(15, 0, 9, 14, 5, high(3, 3, 9, 12, 7)),
    pair(15, 0, 9, SysRegId::new(3, 3, 9, 13, 0)),
    // CNTHCTL_EL2: CNTPCT, CNTPCTSS, CNTP_CVAL.
    pair(15, 0, 14, SysRegId::new(3, 3, 14, 0, 1)),
    pair(15, 8, 14, SysRegId::new(3, 3, 14, 0, 5)),
    pair(15, 2, 14, SysRegId::new(3, 3, 14, 2, 2)),
];

/// The register that `name` is. `None`: it does not exist, or does not trap.
pub fn find(name: Name) -> Option<View> {
    if let Some(row) = ROWS.iter().find(|row| row.name == name) {
        return Some(row.view);
    }
    Some(match name {
        // HCR_EL2.TID3: the ID registers that AArch32 has, and what is reserved among them, which is RAZ (Arm ARM G8.2,
        // ID_PFR0 and those after it).
        Name::Word([15, 0, 0, crm @ 1..=2, opc2]) => low(3, 0, 0, crm, opc2),
        Name::Word([15, 0, 0, 3, opc2 @ 4..=6]) => low(3, 0, 0, 3, opc2),
        Name::Word([15, 0, 0, 3..=7, _]) => View::Zero,
        // MDCR_EL2.TPM and TPMCR: the PMU, which is of op1 = 3 in AArch64. CNTHCTL_EL2: CNTP_TVAL, CNTP_CTL.
        Name::Word([15, 0, 9, crm @ 12..=14, opc2]) => low(3, 3, 9, crm, opc2),
        Name::Word([15, 0, 14, crm @ 8..=15, opc2]) => low(3, 3, 14, crm, opc2),
        Name::Word([15, 0, 14, 2, opc2 @ 0..=1]) => low(3, 3, 14, 2, opc2),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::pmuv3::PmuRegister;
    use crate::vdev::sysreg::{Action, ICC_SGI1R_EL1};

    #[test]
    fn known_registers() {
        for (name, view) in [
            ([15, 0, 0, 1, 4], low(3, 0, 0, 1, 4)),
            ([15, 0, 0, 2, 7], low(3, 0, 0, 2, 7)),
            ([15, 0, 0, 3, 0], View::Zero),
            ([15, 0, 0, 3, 6], low(3, 0, 0, 3, 6)),
            ([15, 0, 0, 4, 0], View::Zero),
            ([15, 0, 9, 12, 0], low(3, 3, 9, 12, 0)),
            ([15, 0, 9, 14, 1], low(3, 0, 9, 14, 1)),
            ([15, 0, 14, 15, 7], low(3, 3, 14, 15, 7)),
            ([14, 0, 1, 1, 4], low(2, 0, 1, 1, 4)),
        ] {
            assert_eq!(find(Name::Word(name)), Some(view), "{name:?}");
        }
        assert_eq!(find(Name::Pair([15, 0, 12])), Some(View::Whole(ICC_SGI1R_EL1)));
        for name in [
            Name::Word([15, 0, 0, 0, 0]), // MIDR, which does not trap
            Name::Word([15, 0, 1, 0, 0]), // SCTLR
            Name::Word([15, 0, 9, 0, 0]), // implementation defined
            Name::Word([15, 1, 9, 0, 2]), // L2CTLR of Cortex-A
            Name::Word([15, 4, 1, 1, 0]), // HCR
            Name::Word([14, 6, 0, 0, 0]), // TEECR
            Name::Word([14, 0, 0, 0, 0]), // DBGDIDR
            Name::Pair([15, 6, 14]),      // CNTHP_CVAL
            Name::Pair([14, 0, 1]),       // DBGDRAR
        ] {
            assert_eq!(find(name), None, "{name:?}");
        }
    }

    /// Every name there is leads to a register that is emulated, or one that some VMs have, and to none of AArch64's own.
    #[test]
    fn every_view_is_of_something() {
        let mut count = 0;
        for (coprocessor, opc1) in
            [10, 14, 15].into_iter().flat_map(|coprocessor| (0..8).map(move |opc1| (coprocessor, opc1)))
        {
            for (crn, crm, opc2) in
                (0..16).flat_map(|crn| (0..16).flat_map(move |crm| (0..8).map(move |opc2| (crn, crm, opc2))))
            {
                let name = Name::Word([coprocessor, opc1, crn, crm, opc2]);
                let Some(view) = find(name) else { continue };
                count += 1;
                let (View::Low(id) | View::High(id)) = view else {
                    assert_eq!(view, View::Zero);
                    continue;
                };
                assert!(id.id_register().is_none_or(|_| id.fields()[3] < 4), "{name:?} is an ID register of AArch64");
                let is_timer = matches!(id.fields(), [3, 3, 14, 2, _]);
                let is_emulated = [false, true].iter().any(|&write| id.action(write) != Action::Undefined);
                // PMUv3's gaps are undefined there.
                let is_pmu =
                    PmuRegister::decode(id.fields()).is_some() || matches!(id.fields(), [3, 3, 9 | 14, 8..=15, _]);
                assert!(is_emulated || is_timer || is_pmu, "{name:?}");
            }
        }
        assert!(count > 100);
    }
}
