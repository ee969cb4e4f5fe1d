//! The system-register bus: what becomes of an MSR, MRS or system instruction that trapped.
//!
//! Which accesses trap is decided by the EL2 control registers; what a trapped one does is decided here, by a table. An
//! access without a row is undefined: that covers everything a guest's ID registers do not offer (PMU,
//! trace, SVE, LORegions …) as well as implementation-defined registers. Nothing is read as zero by accident. (The few
//! VMs whose PMU or physical counter traps have a say before: `kvm::run`.)
//!
//! The encoding of a register, as this module keeps it, is also the low half of its ONE_REG id in KVM's API.

use super::idregs::IdRegister;
use super::vgic::{SgiRegister, trapped::CommonRegister};

/// A register's encoding: op0 in bits 15:14, op1 in 13:11, CRn in 10:7, CRm in 6:3, op2 in 2:0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SysRegId(pub u16);

impl SysRegId {
    /// The register with these fields, each cut to its width.
    #[inline]
    pub const fn new(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8) -> Self {
        let (op0, op1, crn) = ((op0 & 3) as u16, (op1 & 7) as u16, (crn & 15) as u16);
        Self(op0 << 14 | op1 << 11 | crn << 7 | ((crm & 15) as u16) << 3 | (op2 & 7) as u16)
    }

    /// The register that a trapped access names: ESR_EL2.ISS with EC 0x18 (Arm ARM D24.2.40): op0 21:20, op2 19:17,
    /// op1 16:14, CRn 13:10, CRm 4:1.
    #[inline]
    pub const fn from_iss(iss: u32) -> Self {
        let high = (iss >> 20 & 3) << 14 | (iss >> 14 & 7) << 11 | (iss >> 10 & 15) << 7;
        Self((high | (iss >> 1 & 15) << 3 | iss >> 17 & 7) as u16)
    }

    /// op0, op1, CRn, CRm, op2.
    pub const fn fields(self) -> [u8; 5] {
        let id = self.0;
        [(id >> 14) as u8, (id >> 11 & 7) as u8, (id >> 7 & 15) as u8, (id >> 3 & 15) as u8, (id & 7) as u8]
    }

    /// The register of the ID space with this encoding: op0 = 3, op1 = 0, CRn = 0, CRm 1 to 7.
    #[inline]
    pub const fn id_register(self) -> Option<IdRegister> {
        // Everything but CRm and op2 is in bits 15:7.
        if self.0 >> 7 == Self::new(3, 0, 0, 0, 0).0 >> 7 {
            IdRegister::new((self.0 >> 3 & 15) as u8, (self.0 & 7) as u8)
        } else {
            None
        }
    }

    /// The ISS of a write to it, with the register written as 0.
    pub const fn iss_of_write(self) -> u32 {
        let [op0, op1, crn, crm, op2] = self.fields();
        (op0 as u32) << 20 | (op2 as u32) << 17 | (op1 as u32) << 14 | (crn as u32) << 10 | (crm as u32) << 1
    }

    /// What an access to this register does.
    #[inline]
    pub fn action(self, write: bool) -> Action {
        match (self.id_register(), write) {
            (Some(register), false) => Action::Id(register),
            (Some(_), true) => Action::Undefined,
            (None, _) => self.row_action(write),
        }
    }

    #[inline(never)]
    fn row_action(self, write: bool) -> Action {
        match ROWS.iter().find(|row| row.id == self) {
            Some(row) if write => row.write,
            Some(row) => row.read,
            None => Action::Undefined,
        }
    }
}

/// A register whose value is the machine's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineRegister {
    /// REVIDR_EL1.
    Revidr,
    /// AIDR_EL1.
    Aidr,
}

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Reads what this CPU's register holds.
    Machine(MachineRegister),
    /// The value written sends an SGI.
    Sgi(SgiRegister),
    /// The guest's ID register is read.
    Id(IdRegister),
    /// This value is read.
    ReadAs(u64),
    /// The write changes nothing.
    WriteIgnore,
    /// The interrupt written, INTID in bits 23:0, is deactivated.
    Deactivate,
    /// A register of the CPU interface that both groups share.
    Common(CommonRegister),
    /// OSLSR_EL1 of the guest is read.
    OsLockStatus,
    /// The guest's OS lock is closed or opened, as bit 0 written says.
    OsLock,
    /// The guest takes an Undefined Instruction exception.
    Undefined,
}

/// A register that is emulated.
struct Row {
    id: SysRegId,
    read: Action,
    write: Action,
}

/// ICC_SGI1R_EL1, whose writes are by far the busiest of all accesses.
pub const ICC_SGI1R_EL1: SysRegId = SysRegId::new(3, 0, 12, 11, 5);

const RAZ: Action = Action::ReadAs(0);

/// ICC_SRE_EL1 of a GICv3 without GICv2 compatibility: SRE, DFB, DIB (IHI 0069, 12.2.22).
const SRE: Action = Action::ReadAs(7);

const fn row(id: SysRegId, read: Action, write: Action) -> Row {
    Row { id, read, write }
}

use Action::{Common, Deactivate, OsLock, OsLockStatus, Sgi, Undefined, WriteIgnore};

/// The registers that are emulated, but for the ID space. Arm ARM D24, and IHI 0069 12.2 for ICC_*.
#[rustfmt::skip]
static ROWS: [Row; 30] = [
    // ICC_SGI1R_EL1, ICC_ASGI1R_EL1, ICC_SGI0R_EL1: trapped by HCR_EL2.IMO or FMO. Write-only.
    row(ICC_SGI1R_EL1,                 Undefined, Sgi(SgiRegister::Sgi1r)),
    row(SysRegId::new(3, 0, 12, 11, 6), Undefined, Sgi(SgiRegister::Asgi1r)),
    row(SysRegId::new(3, 0, 12, 11, 7), Undefined, Sgi(SgiRegister::Sgi0r)),
    // ICC_DIR_EL1: trapped by ICH_HCR_EL2.TDIR or TC. Write-only.
    row(SysRegId::new(3, 0, 12, 11, 1), Undefined, Deactivate),
    // ICC_SRE_EL1: traps where ICC_SRE_EL2.Enable is 0.
    row(SysRegId::new(3, 0, 12, 12, 5), SRE, WriteIgnore),
    // ACTLR_EL1: trapped by HCR_EL2.TACR; its bits are the implementation's, and the guest's CPU has none.
    row(SysRegId::new(3, 0, 1, 0, 1),   RAZ, WriteIgnore),
    // REVIDR_EL1, AIDR_EL1: trapped by HCR_EL2.TID1, which is there to make SMIDR_EL1 undefined. Read-only.
    row(SysRegId::new(3, 0, 0, 0, 6),   Action::Machine(MachineRegister::Revidr), Undefined),
    row(SysRegId::new(3, 1, 0, 0, 7),   Action::Machine(MachineRegister::Aidr), Undefined),
    // MDRAR_EL1: trapped by MDCR_EL2.TDRA; no debug registers in memory. Read-only.
    row(SysRegId::new(2, 0, 1, 0, 0),   RAZ, Undefined),
    // OSLAR_EL1, OSLSR_EL1, OSDLR_EL1 without FEAT_DoubleLock, DBGPRCR_EL1: trapped by MDCR_EL2.TDOSA. OSLAR_EL1 is
    // write-only, OSLSR_EL1 read-only.
    row(SysRegId::new(2, 0, 1, 0, 4),   Undefined, OsLock),
    row(SysRegId::new(2, 0, 1, 1, 4),   OsLockStatus, Undefined),
    row(SysRegId::new(2, 0, 1, 3, 4),   RAZ, WriteIgnore),
    row(SysRegId::new(2, 0, 1, 4, 4),   RAZ, WriteIgnore),
    // The error records of FEAT_RAS, trapped by HCR_EL2.TERR where it is (elsewhere they are undefined without a trap):
    // the guest has none, ERRIDR_EL1.NUM = 0. ERRIDR_EL1, ERXFR_EL1, ERXPFGF_EL1 and ERXGSR_EL1 are read-only.
    row(SysRegId::new(3, 0, 5, 3, 0),   RAZ, Undefined),   // ERRIDR_EL1
    row(SysRegId::new(3, 0, 5, 3, 1),   RAZ, WriteIgnore), // ERRSELR_EL1
    row(SysRegId::new(3, 0, 5, 3, 2),   RAZ, Undefined),   // ERXGSR_EL1
    row(SysRegId::new(3, 0, 5, 4, 0),   RAZ, Undefined),   // ERXFR_EL1
    row(SysRegId::new(3, 0, 5, 4, 1),   RAZ, WriteIgnore), // ERXCTLR_EL1
    row(SysRegId::new(3, 0, 5, 4, 2),   RAZ, WriteIgnore), // ERXSTATUS_EL1
    row(SysRegId::new(3, 0, 5, 4, 3),   RAZ, WriteIgnore), // ERXADDR_EL1
    row(SysRegId::new(3, 0, 5, 4, 4),   RAZ, Undefined),   // ERXPFGF_EL1
    row(SysRegId::new(3, 0, 5, 4, 5),   RAZ, WriteIgnore), // ERXPFGCTL_EL1
    row(SysRegId::new(3, 0, 5, 4, 6),   RAZ, WriteIgnore), // ERXPFGCDN_EL1
    row(SysRegId::new(3, 0, 5, 5, 0),   RAZ, WriteIgnore), // ERXMISC0_EL1 to ERXMISC3_EL1
    row(SysRegId::new(3, 0, 5, 5, 1),   RAZ, WriteIgnore),
    row(SysRegId::new(3, 0, 5, 5, 2),   RAZ, WriteIgnore),
    row(SysRegId::new(3, 0, 5, 5, 3),   RAZ, WriteIgnore),
    // ICC_PMR_EL1, ICC_CTLR_EL1, ICC_RPR_EL1: trapped by ICH_HCR_EL2.TC. The last is read-only.
    row(SysRegId::new(3, 0, 4, 6, 0),   Common(CommonRegister::Pmr), Common(CommonRegister::Pmr)),
    row(SysRegId::new(3, 0, 12, 12, 4), Common(CommonRegister::Ctlr), Common(CommonRegister::Ctlr)),
    row(SysRegId::new(3, 0, 12, 11, 3), Common(CommonRegister::Rpr), Undefined),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The syndrome of an access by register `rt`.
    fn iss(op0: u32, op1: u32, crn: u32, crm: u32, op2: u32, rt: u32, read: bool) -> u32 {
        op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | rt << 5 | crm << 1 | u32::from(read)
    }

    #[test]
    fn known_encodings() {
        // As the ONE_REG ids of the same registers have them.
        for (fields, id) in [
            ([3, 0, 0, 4, 0], 0xc020),
            ([3, 0, 1, 0, 1], 0xc081),
            ([2, 0, 1, 1, 4], 0x808c),
            ([3, 3, 14, 11, 7], 0xdf5f),
            ([3, 4, 5, 3, 0], 0xe298),
        ] {
            let [op0, op1, crn, crm, op2]: [u8; 5] = fields;
            assert_eq!(SysRegId::new(op0, op1, crn, crm, op2), SysRegId(id));
            assert_eq!(SysRegId(id).fields(), fields);
        }
        // `msr ICC_SGI1R_EL1, x5`, put together by hand.
        assert_eq!(SysRegId::from_iss(0x3a_30b6), ICC_SGI1R_EL1);
    }

    #[test]
    fn id_space() {
        for crm in 0..16 {
            // CRm 0 holds MIDR, MPIDR and REVIDR, which are not of this space.
            for op2 in if crm == 0 { 1..5 } else { 0..8 } {
                let id = SysRegId::new(3, 0, 0, crm, op2);
                let expected = (1..=7).contains(&crm).then(|| IdRegister::new(crm, op2).unwrap());
                assert_eq!(id.id_register(), expected);
                assert_eq!(id.action(false), expected.map_or(Action::Undefined, Action::Id));
                assert_eq!(id.action(true), Action::Undefined);
            }
        }
        for other in [(2, 0, 0), (3, 1, 0), (3, 3, 0), (3, 0, 1), (1, 0, 0)] {
            assert_eq!(SysRegId::new(other.0, other.1, other.2, 4, 0).id_register(), None);
        }
    }

    #[test]
    fn emulated_registers() {
        let rows = [
            ((3, 0, 12, 11, 5), Action::Undefined, Action::Sgi(SgiRegister::Sgi1r)),
            ((3, 0, 12, 11, 6), Action::Undefined, Action::Sgi(SgiRegister::Asgi1r)),
            ((3, 0, 12, 11, 7), Action::Undefined, Action::Sgi(SgiRegister::Sgi0r)),
            ((3, 0, 12, 11, 1), Action::Undefined, Action::Deactivate),
            ((3, 0, 12, 12, 5), Action::ReadAs(7), Action::WriteIgnore),
            ((3, 0, 4, 6, 0), Common(CommonRegister::Pmr), Common(CommonRegister::Pmr)),
            ((3, 0, 12, 12, 4), Common(CommonRegister::Ctlr), Common(CommonRegister::Ctlr)),
            ((3, 0, 12, 11, 3), Common(CommonRegister::Rpr), Action::Undefined),
            ((3, 0, 0, 0, 6), Action::Machine(MachineRegister::Revidr), Action::Undefined),
            ((3, 1, 0, 0, 7), Action::Machine(MachineRegister::Aidr), Action::Undefined),
            ((3, 1, 0, 0, 6), Action::Undefined, Action::Undefined),
            ((3, 0, 1, 0, 1), Action::ReadAs(0), Action::WriteIgnore),
            ((2, 0, 1, 0, 0), Action::ReadAs(0), Action::Undefined),
            ((2, 0, 1, 0, 4), Action::Undefined, Action::OsLock),
            ((2, 0, 1, 1, 4), Action::OsLockStatus, Action::Undefined),
            ((2, 0, 1, 3, 4), Action::ReadAs(0), Action::WriteIgnore),
            ((3, 0, 5, 3, 0), Action::ReadAs(0), Action::Undefined),
            ((3, 0, 5, 4, 2), Action::ReadAs(0), Action::WriteIgnore),
        ];
        for ((op0, op1, crn, crm, op2), read, write) in rows {
            let id = SysRegId::new(op0, op1, crn, crm, op2);
            assert_eq!((id.action(false), id.action(true)), (read, write), "{id:x?}");
        }
    }

    #[test]
    fn what_a_guest_is_not_offered_is_undefined() {
        let registers = [
            (3, 3, 9, 12, 0),  // PMCR_EL0
            (3, 3, 9, 13, 0),  // PMCCNTR_EL0
            (3, 3, 14, 15, 7), // PMCCFILTR_EL0
            (3, 0, 10, 4, 3),  // LORC_EL1
            (3, 0, 1, 2, 0),   // ZCR_EL1
            (3, 0, 1, 2, 1),   // TRFCR_EL1
            (3, 0, 9, 9, 0),   // PMSCR_EL1
            (3, 0, 15, 0, 0),  // implementation defined
            (3, 4, 1, 1, 0),   // HCR_EL2
            (3, 6, 1, 1, 0),   // SCR_EL3
            (2, 1, 0, 0, 1),   // TRCTRACEIDR
        ];
        for (op0, op1, crn, crm, op2) in registers {
            for write in [false, true] {
                assert_eq!(SysRegId::new(op0, op1, crn, crm, op2).action(write), Action::Undefined);
            }
        }
    }

    proptest! {
        #[test]
        fn syndromes_decode(
            op0 in 0u32..4, op1 in 0u32..8, crn in 0u32..16, crm in 0u32..16, op2 in 0u32..8, rt in 0u32..32, read: bool
        ) {
            let id = SysRegId::from_iss(iss(op0, op1, crn, crm, op2, rt, read));
            let fields = [op0 as u8, op1 as u8, crn as u8, crm as u8, op2 as u8];
            prop_assert_eq!(id, SysRegId::new(fields[0], fields[1], fields[2], fields[3], fields[4]));
            prop_assert_eq!(id.fields(), fields);
            prop_assert_eq!(id.iss_of_write(), iss(op0, op1, crn, crm, op2, 0, false));
        }

        /// Reads never write, writes never read, and only rows and the ID space do anything.
        #[test]
        fn any_access(iss: u32, write: bool) {
            let id = SysRegId::from_iss(iss);
            match id.action(write) {
                Action::Undefined => {}
                Action::Id(register) => prop_assert!(!write && id.id_register() == Some(register)),
                Action::ReadAs(_) | Action::Machine(_) | Action::OsLockStatus => {
                    prop_assert!(!write && ROWS.iter().any(|row| row.id == id));
                }
                Action::Common(register) => {
                    prop_assert!(!write || register != CommonRegister::Rpr);
                    prop_assert!(ROWS.iter().any(|row| row.id == id));
                }
                Action::Sgi(_) | Action::WriteIgnore | Action::Deactivate | Action::OsLock => {
                    prop_assert!(write && ROWS.iter().any(|row| row.id == id));
                }
            }
        }
    }
}
