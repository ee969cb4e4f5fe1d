//! ONE_REG's system registers: which there are for a vCPU, and what becomes of a write.
//!
//! The number of a register in its id is its encoding. One table, in the order of encodings, is what is listed, looked up
//! and checked. Not in it, as in KVM: what the core group has (SP_EL1, ELR_EL1, SPSR_EL1), what the vGIC has (ICC_*), and
//! CCSIDR_EL1, of which there are several.

use crate::{
    arch::pmuv3::PmuRegister,
    vdev::{
        idregs::{self, IdRegister},
        sysreg::SysRegId,
    },
};

/// What a register is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The vCPU's own.
    Own,
    /// A key, of a vCPU with pointer authentication.
    Key,
    /// Of the PMU, of a vCPU with one.
    Pmu(PmuRegister),
    /// The VM's.
    Id(IdRegister),
    /// The machine's: it cannot be another.
    Machine(MachineRegister),
    /// MPIDR_EL1.
    Affinity,
    /// OSLSR_EL1.
    OsLock,
    /// A value for the API alone.
    Kept(KeptRegister),
    /// No guest has any bit of it.
    Zero,
}

/// A register that reads in a guest as in the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineRegister {
    /// MIDR_EL1.
    Midr,
    /// REVIDR_EL1.
    Revidr,
    /// AIDR_EL1.
    Aidr,
    /// CLIDR_EL1.
    Clidr,
    /// CTR_EL0.
    Ctr,
}

/// A register that no guest uses yet: of AArch32's EL1, as AArch64 names it, or of features that guests do not have and KVM
/// has the registers of on every CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeptRegister {
    /// DBGVCR32_EL2.
    Dbgvcr,
    /// DACR32_EL2.
    Dacr,
    /// IFSR32_EL2.
    Ifsr,
    /// FPEXC32_EL2.
    Fpexc,
    /// TCR2_EL1.
    Tcr2,
    /// PIRE0_EL1.
    Pire0,
    /// PIR_EL1.
    Pir,
}

/// A register of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) id: SysRegId,
    pub(super) kind: Kind,
}

const fn row(op0: u8, op1: u8, crn: u8, crm: u8, op2: u8, kind: Kind) -> Row {
    Row { id: SysRegId::new(op0, op1, crn, crm, op2), kind }
}

/// What KVM lists before the others: they are the same for each VM.
pub(super) static INVARIANT: [Row; 3] = [
    row(3, 0, 0, 0, 0, Kind::Machine(MachineRegister::Midr)),
    row(3, 0, 0, 0, 6, Kind::Machine(MachineRegister::Revidr)),
    row(3, 1, 0, 0, 7, Kind::Machine(MachineRegister::Aidr)),
];

/// All that come alone.
#[rustfmt::skip]
const SINGLE: [Row; 44] = [
    row(2, 0, 0, 2, 0, Kind::Own),                       // MDCCINT_EL1
    row(2, 0, 0, 2, 2, Kind::Own),                       // MDSCR_EL1
    row(2, 0, 1, 1, 4, Kind::OsLock),                    // OSLSR_EL1
    row(2, 4, 0, 7, 0, Kind::Kept(KeptRegister::Dbgvcr)),
    row(3, 0, 0, 0, 5, Kind::Affinity),                  // MPIDR_EL1
    row(3, 0, 1, 0, 0, Kind::Own),                       // SCTLR_EL1
    row(3, 0, 1, 0, 1, Kind::Zero),                      // ACTLR_EL1
    row(3, 0, 1, 0, 2, Kind::Own),                       // CPACR_EL1
    row(3, 0, 2, 0, 0, Kind::Own),                       // TTBR0_EL1
    row(3, 0, 2, 0, 1, Kind::Own),                       // TTBR1_EL1
    row(3, 0, 2, 0, 2, Kind::Own),                       // TCR_EL1
    row(3, 0, 2, 0, 3, Kind::Kept(KeptRegister::Tcr2)),
    row(3, 0, 2, 1, 0, Kind::Key),                       // APIAKeyLo_EL1
    row(3, 0, 2, 1, 1, Kind::Key),                       // APIAKeyHi_EL1
    row(3, 0, 2, 1, 2, Kind::Key),                       // APIBKeyLo_EL1
    row(3, 0, 2, 1, 3, Kind::Key),                       // APIBKeyHi_EL1
    row(3, 0, 2, 2, 0, Kind::Key),                       // APDAKeyLo_EL1
    row(3, 0, 2, 2, 1, Kind::Key),                       // APDAKeyHi_EL1
    row(3, 0, 2, 2, 2, Kind::Key),                       // APDBKeyLo_EL1
    row(3, 0, 2, 2, 3, Kind::Key),                       // APDBKeyHi_EL1
    row(3, 0, 2, 3, 0, Kind::Key),                       // APGAKeyLo_EL1
    row(3, 0, 2, 3, 1, Kind::Key),                       // APGAKeyHi_EL1
    row(3, 0, 5, 1, 0, Kind::Own),                       // AFSR0_EL1
    row(3, 0, 5, 1, 1, Kind::Own),                       // AFSR1_EL1
    row(3, 0, 5, 2, 0, Kind::Own),                       // ESR_EL1
    row(3, 0, 6, 0, 0, Kind::Own),                       // FAR_EL1
    row(3, 0, 7, 4, 0, Kind::Own),                       // PAR_EL1
    row(3, 0, 10, 2, 0, Kind::Own),                      // MAIR_EL1
    row(3, 0, 10, 2, 2, Kind::Kept(KeptRegister::Pire0)),
    row(3, 0, 10, 2, 3, Kind::Kept(KeptRegister::Pir)),
    row(3, 0, 10, 3, 0, Kind::Own),                      // AMAIR_EL1
    row(3, 0, 12, 0, 0, Kind::Own),                      // VBAR_EL1
    row(3, 0, 12, 1, 1, Kind::Own),                      // DISR_EL1
    row(3, 0, 13, 0, 1, Kind::Own),                      // CONTEXTIDR_EL1
    row(3, 0, 13, 0, 4, Kind::Own),                      // TPIDR_EL1
    row(3, 0, 14, 1, 0, Kind::Own),                      // CNTKCTL_EL1
    row(3, 1, 0, 0, 1, Kind::Machine(MachineRegister::Clidr)),
    row(3, 2, 0, 0, 0, Kind::Own),                       // CSSELR_EL1
    row(3, 3, 0, 0, 1, Kind::Machine(MachineRegister::Ctr)),
    row(3, 3, 13, 0, 2, Kind::Own),                      // TPIDR_EL0
    row(3, 3, 13, 0, 3, Kind::Own),                      // TPIDRRO_EL0
    row(3, 4, 3, 0, 0, Kind::Kept(KeptRegister::Dacr)),
    row(3, 4, 5, 0, 1, Kind::Kept(KeptRegister::Ifsr)),
    row(3, 4, 5, 3, 0, Kind::Kept(KeptRegister::Fpexc)),
];

const fn pmu(op1: u8, crn: u8, crm: u8, op2: u8) -> Row {
    match PmuRegister::decode([3, op1, crn, crm, op2]) {
        Some(register) => row(3, op1, crn, crm, op2, Kind::Pmu(register)),
        None => panic!("a register of PMUv3"),
    }
}

/// The PMU's but for [`COUNTERS`]. Not PMCEIDn_EL0 and PMMIR_EL1, which the machine and the filter decide, nor the two that
/// stand for others.
const PMU: [Row; 11] = [
    pmu(0, 9, 14, 1), // PMINTENSET_EL1
    pmu(0, 9, 14, 2), // PMINTENCLR_EL1
    pmu(3, 9, 12, 0), // PMCR_EL0
    pmu(3, 9, 12, 1), // PMCNTENSET_EL0
    pmu(3, 9, 12, 2), // PMCNTENCLR_EL0
    pmu(3, 9, 12, 3), // PMOVSCLR_EL0
    pmu(3, 9, 12, 4), // PMSWINC_EL0, which reads as zero
    pmu(3, 9, 12, 5), // PMSELR_EL0
    pmu(3, 9, 13, 0), // PMCCNTR_EL0
    pmu(3, 9, 14, 0), // PMUSERENR_EL0
    pmu(3, 9, 14, 3), // PMOVSSET_EL0
];

/// PMEVCNTRn_EL0 and PMEVTYPERn_EL0, n from 0 to 30, and PMCCFILTR_EL0. KVM lists all of them, whatever PMCR_EL0.N says.
const COUNTERS: usize = 31 + 32;

/// Breakpoints and watchpoints: DBGBVRn_EL1, DBGBCRn_EL1, DBGWVRn_EL1 and DBGWCRn_EL1, n from 0 to 15. KVM lists all of them,
/// whatever ID_AA64DFR0_EL1 says.
const DEBUG: usize = 16 * 4;

const COUNT: usize = SINGLE.len() + PMU.len() + COUNTERS + DEBUG + idregs::COUNT;

/// All but [`INVARIANT`], in order.
pub(super) static ROWS: [Row; COUNT] = {
    let mut rows = [SINGLE[0]; COUNT];
    let mut count = 0;
    while count < SINGLE.len() {
        rows[count] = SINGLE[count];
        count += 1;
    }
    let mut n = 0;
    while n < PMU.len() {
        rows[count] = PMU[n];
        count += 1;
        n += 1;
    }
    let mut n = 0;
    while n < COUNTERS {
        // PMEVCNTR31_EL0 is none; CRm 8 to 11 are counters, 12 to 15 their types.
        let place = if n < 31 { n } else { n + 1 } as u8;
        rows[count] = pmu(3, 14, 8 + place / 8, place % 8);
        count += 1;
        n += 1;
    }
    let mut n = 0;
    while n < DEBUG {
        rows[count] = row(2, 0, 0, (n / 4) as u8, 4 + (n % 4) as u8, Kind::Own);
        count += 1;
        n += 1;
    }
    let (mut crm, mut op2) = (1, 0);
    while let Some(register) = IdRegister::new(crm, op2) {
        rows[count] = row(3, 0, 0, crm, op2, Kind::Id(register));
        count += 1;
        (crm, op2) = if op2 == 7 { (crm + 1, 0) } else { (crm, op2 + 1) };
    }
    assert!(count == COUNT);
    // By insertion: most are in order already.
    let mut sorted = 1;
    while sorted < COUNT {
        let mut n = sorted;
        while n > 0 && rows[n - 1].id.0 > rows[n].id.0 {
            rows.swap(n - 1, n);
            n -= 1;
        }
        assert!(n == 0 || rows[n - 1].id.0 != rows[n].id.0);
        sorted += 1;
    }
    rows
};

impl Row {
    /// The row of a register.
    pub(super) fn find(id: SysRegId) -> Option<&'static Self> {
        match ROWS.binary_search_by_key(&id, |row| row.id) {
            Ok(n) => ROWS.get(n),
            Err(_) => INVARIANT.iter().find(|row| row.id == id),
        }
    }
}

/// Bits of OSLSR_EL1.
pub(super) mod oslsr {
    /// OSLK: the lock is closed.
    pub(in super::super) const OSLK: u64 = 1 << 1;
    /// OSLM: there is a lock.
    pub(in super::super) const OSLM: u64 = 1 << 3;
}
