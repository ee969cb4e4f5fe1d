//! Which fields of ID registers may say less than they could.
//!
//! Whoever makes a VM may lower a field, so that the VM can move between machines that differ. As in KVM of Linux 6.12, all
//! that have a row may, but those listed here: they say how software has to use what is there, or belong to features that a
//! VM has or has not as a whole.

use super::{
    COUNT, IdRegister,
    rows::{
        DFR0, DFR1, ID_DFR1, ID_MMFR4, ISAR1, ISAR2, ISAR3, MMFR0, MMFR1, MMFR2, MMFR3, MMFR4, PFR0, PFR1, PFR2, ROWS,
        Row,
    },
};

/// Fields that are as they are.
const FIXED: &[(IdRegister, &[&str])] = &[
    (PFR0, &["FP", "AdvSIMD", "RAS", "SVE", "MPAM", "AMU"]),
    (
        PFR1,
        &["MTE", "RAS_frac", "MPAM_frac", "SME", "RNDR_trap", "NMI", "MTE_frac", "GCS", "THE", "MTEX", "DF2", "PFAR"],
    ),
    // A breakpoint that matches contexts is one of the highest: with fewer, software would take others for them.
    (DFR0, &["BRPs", "CTX_CMPs"]),
    // The algorithms of pointer authentication.
    (ISAR1, &["APA", "API", "GPA", "GPI"]),
    (ISAR2, &["APA3", "GPA3", "PCDPHINT"]),
    (MMFR0, &["ASIDBits", "TGran16_2", "TGran64_2", "TGran4_2"]),
    (MMFR1, &["VMIDBits", "VH", "XNX", "TWED", "HCX"]),
    (MMFR2, &["CCIDX", "NV", "IDS", "FWB", "EVT"]),
];

/// Registers of which only these fields are not fixed.
const MOSTLY_FIXED: &[(IdRegister, &[&str])] = &[
    (PFR2, &["FPMR"]),
    (DFR0, &["DoubleLock", "WRPs", "PMUVer", "DebugVer"]),
    (DFR1, &[]),
    (ISAR3, &[]),
    (MMFR3, &["TCRX", "S1PIE", "S1POE"]),
    (MMFR4, &[]),
    (ID_DFR1, &[]),
];

/// Fields of which the greater value is the lesser promise.
const RAISED: &[(IdRegister, &[&str])] = &[(MMFR1, &["SpecSEI"]), (ID_MMFR4, &["SpecSEI"])];

const fn is_same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut n = 0;
    while n < a.len() && n < b.len() && a[n] == b[n] {
        n += 1;
    }
    n == a.len() && n == b.len()
}

/// Whether `table` names the row's register, and whether it names its field.
const fn find(table: &[(IdRegister, &[&str])], row: &Row) -> Option<bool> {
    let mut n = 0;
    while n < table.len() {
        if table[n].0.0 == row.register.0 {
            let mut name = 0;
            while name < table[n].1.len() {
                if is_same(table[n].1[name], row.name) {
                    return Some(true);
                }
                name += 1;
            }
            return Some(false);
        }
        n += 1;
    }
    None
}

const fn is_writable(row: &Row) -> bool {
    match (find(MOSTLY_FIXED, row), find(FIXED, row)) {
        (Some(named), _) => named,
        (None, Some(named)) => !named,
        (None, None) => true,
    }
}

/// Bits, by register.
type Masks = [u64; COUNT];

/// The bits that may change. KVM says it of all 32 of AArch32's registers.
pub(super) static MASKS: Masks = {
    let mut masks = [0; COUNT];
    let mut n = 0;
    while n < ROWS.len() {
        let row = &ROWS[n];
        if is_writable(row) {
            masks[row.register.0 as usize] |= if row.register.is_aarch32() { 0xffff_ffff } else { 0xf << row.lsb };
        }
        n += 1;
    }
    masks
};

/// The bits of fields of which the greater value is the lesser promise.
pub(super) static RAISED_MASKS: Masks = {
    let mut masks = [0; COUNT];
    let mut n = 0;
    while n < ROWS.len() {
        if matches!(find(RAISED, &ROWS[n]), Some(true)) {
            masks[ROWS[n].register.0 as usize] |= 0xf << ROWS[n].lsb;
        }
        n += 1;
    }
    masks
};

// Every field named here has a row.
const _: () = {
    let tables = [FIXED, MOSTLY_FIXED, RAISED];
    let mut table = 0;
    while table < tables.len() {
        let (mut named, mut found, mut n) = (0, 0, 0);
        while n < tables[table].len() {
            named += tables[table][n].1.len();
            n += 1;
        }
        n = 0;
        while n < ROWS.len() {
            found += matches!(find(tables[table], &ROWS[n]), Some(true)) as usize;
            n += 1;
        }
        assert!(named == found);
        table += 1;
    }
};
