//! System registers: which are there, what the ID registers say, which keep what is written; and instructions that
//! come and go with a CPU's features.
//!
//! Names and encodings are those of the Arm ARM, D24.2 and C5.3; registers without a name here are `S<op0>_<op1>_C<n>_C<m>_<op2>`.

use super::{Line, known};
use keel_test_kernel::exec::{self, Encoding, Outcome};

/// Prints everything.
pub(super) fn run() {
    id_registers();
    caches();
    scan();
    system_instructions();
    writes();
    instructions();
}

fn read(encoding: Encoding) -> Outcome {
    exec::run_with(exec::mrs(0, encoding), &[])
}

fn write(encoding: Encoding, value: u64) -> Outcome {
    exec::run_with(exec::msr(0, encoding), &[(0, value)])
}

/// A register's value or the exception its reading took.
fn say(line: &mut Line, outcome: &Outcome) {
    match &outcome.trap {
        Some(trap) => line.exception(trap, None),
        None => line.add(format_args!(" {:#x}", outcome.after.x[0])),
    }
}

/// `S3_0_C0_C4_0` and, in brackets, the name if there is one.
struct Name(Encoding, &'static str);

impl core::fmt::Display for Name {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let (op0, op1, crn, crm, op2) = self.0;
        write!(formatter, "S{op0}_{op1}_C{crn}_C{crm}_{op2}")?;
        if self.1.is_empty() { Ok(()) } else { write!(formatter, " {}", self.1) }
    }
}

/// Names of the ID registers at op0 3, op1 0, CRn 0: CRm, op2, name.
const ID_NAMES: &[(u32, u32, &str)] = &[
    (0, 0, "MIDR_EL1"),
    (0, 5, "MPIDR_EL1"),
    (0, 6, "REVIDR_EL1"),
    (1, 0, "ID_PFR0_EL1"),
    (1, 1, "ID_PFR1_EL1"),
    (1, 2, "ID_DFR0_EL1"),
    (1, 3, "ID_AFR0_EL1"),
    (1, 4, "ID_MMFR0_EL1"),
    (1, 5, "ID_MMFR1_EL1"),
    (1, 6, "ID_MMFR2_EL1"),
    (1, 7, "ID_MMFR3_EL1"),
    (2, 0, "ID_ISAR0_EL1"),
    (2, 1, "ID_ISAR1_EL1"),
    (2, 2, "ID_ISAR2_EL1"),
    (2, 3, "ID_ISAR3_EL1"),
    (2, 4, "ID_ISAR4_EL1"),
    (2, 5, "ID_ISAR5_EL1"),
    (2, 6, "ID_MMFR4_EL1"),
    (2, 7, "ID_ISAR6_EL1"),
    (3, 0, "MVFR0_EL1"),
    (3, 1, "MVFR1_EL1"),
    (3, 2, "MVFR2_EL1"),
    (3, 4, "ID_PFR2_EL1"),
    (3, 5, "ID_DFR1_EL1"),
    (3, 6, "ID_MMFR5_EL1"),
    (4, 0, "ID_AA64PFR0_EL1"),
    (4, 1, "ID_AA64PFR1_EL1"),
    (4, 2, "ID_AA64PFR2_EL1"),
    (4, 4, "ID_AA64ZFR0_EL1"),
    (4, 5, "ID_AA64SMFR0_EL1"),
    (4, 7, "ID_AA64FPFR0_EL1"),
    (5, 0, "ID_AA64DFR0_EL1"),
    (5, 1, "ID_AA64DFR1_EL1"),
    (5, 2, "ID_AA64DFR2_EL1"),
    (5, 4, "ID_AA64AFR0_EL1"),
    (5, 5, "ID_AA64AFR1_EL1"),
    (6, 0, "ID_AA64ISAR0_EL1"),
    (6, 1, "ID_AA64ISAR1_EL1"),
    (6, 2, "ID_AA64ISAR2_EL1"),
    (6, 3, "ID_AA64ISAR3_EL1"),
    (7, 0, "ID_AA64MMFR0_EL1"),
    (7, 1, "ID_AA64MMFR1_EL1"),
    (7, 2, "ID_AA64MMFR2_EL1"),
    (7, 3, "ID_AA64MMFR3_EL1"),
    (7, 4, "ID_AA64MMFR4_EL1"),
];

fn id_registers() {
    for crm in 0..8 {
        for op2 in 0..8 {
            let encoding = (3, 0, 0, crm, op2);
            let known = ID_NAMES.iter().find(|known| (known.0, known.1) == (crm, op2));
            let mut line = Line::about(format_args!("mrs {}", Name(encoding, known.map_or("", |known| known.2))));
            say(&mut line, &read(encoding));
            line.end();
        }
    }
    for (encoding, name) in [
        ((3, 1, 0, 0, 1), "CLIDR_EL1"),
        ((3, 1, 0, 0, 2), "CCSIDR2_EL1"),
        ((3, 1, 0, 0, 4), "GMID_EL1"),
        ((3, 1, 0, 0, 6), "SMIDR_EL1"),
        ((3, 1, 0, 0, 7), "AIDR_EL1"),
        ((3, 3, 0, 0, 1), "CTR_EL0"),
        ((3, 3, 0, 0, 7), "DCZID_EL0"),
        ((3, 3, 14, 0, 0), "CNTFRQ_EL0"),
        ((2, 0, 1, 0, 0), "MDRAR_EL1"),
        ((2, 0, 1, 1, 4), "OSLSR_EL1"),
        ((2, 0, 7, 14, 6), "DBGAUTHSTATUS_EL1"),
        ((2, 3, 0, 1, 0), "MDCCSR_EL0"),
        ((3, 0, 10, 4, 7), "LORID_EL1"),
        ((3, 0, 5, 3, 0), "ERRIDR_EL1"),
        ((3, 0, 10, 4, 4), "MPAMIDR_EL1"),
        ((3, 0, 9, 9, 7), "PMSIDR_EL1"),
        ((3, 0, 9, 11, 7), "TRBIDR_EL1"),
        ((3, 0, 12, 12, 4), "ICC_CTLR_EL1"),
        ((3, 0, 12, 12, 5), "ICC_SRE_EL1"),
        ((3, 0, 12, 11, 3), "ICC_RPR_EL1"),
        ((3, 0, 12, 12, 2), "ICC_HPPIR1_EL1"),
        ((3, 0, 12, 8, 2), "ICC_HPPIR0_EL1"),
        ((3, 0, 12, 12, 0), "ICC_IAR1_EL1"),
        ((3, 0, 12, 8, 0), "ICC_IAR0_EL1"),
        ((3, 0, 12, 1, 0), "ISR_EL1"),
        ((3, 0, 12, 0, 1), "RVBAR_EL1"),
    ] {
        let mut line = Line::about(format_args!("mrs {}", Name(encoding, name)));
        say(&mut line, &read(encoding));
        line.end();
    }
}

const CSSELR: Encoding = (3, 2, 0, 0, 0);
const CCSIDR: Encoding = (3, 1, 0, 0, 0);

fn caches() {
    for selected in (0..16).chain([0x10, 0xffff_ffff]) {
        write(CSSELR, selected);
        let mut line = Line::about(format_args!("CSSELR_EL1 {selected:#x}: it and CCSIDR_EL1"));
        say(&mut line, &read(CSSELR));
        say(&mut line, &read(CCSIDR));
        line.end();
    }
    write(CSSELR, 0);
}

/// What happened to each of a row of encodings: `m.o` for one that was done, with the exception class where it is not
/// the one of undefined instructions; those are left out.
fn list(line: &mut Line, crm: u32, op2: u32, outcome: &Outcome) {
    match &outcome.trap {
        None => line.add(format_args!(" {crm}.{op2}")),
        Some(trap) if trap.class() == exec::EC_UNKNOWN => {}
        Some(trap) => line.add(format_args!(" {crm}.{op2}(EC {:#x})", trap.class())),
    }
}

/// OSDTRRX_EL1, OSDTRTX_EL1, OSECCR_EL1: whether KVM traps these at the moment depends on what else it did since the
/// last debug register was written, an interrupt of the host included. So nothing is said about them.
const UNSETTLED: [Encoding; 3] = [(2, 0, 0, 0, 2), (2, 0, 0, 3, 2), (2, 0, 0, 6, 2)];

/// Every encoding of a system register but those [`UNSETTLED`]: whether it can be read, and whether its own value can be written back.
fn scan() {
    for op0 in [2, 3] {
        for op1 in 0..8 {
            for crn in 0..16 {
                let mut reads = Line::about(format_args!("every mrs S{op0}_{op1}_C{crn}"));
                let mut writes = Line::about(format_args!("every msr S{op0}_{op1}_C{crn} of what was read"));
                for (crm, op2) in (0..16).flat_map(|crm| (0..8).map(move |op2| (crm, op2))) {
                    let encoding = (op0, op1, crn, crm, op2);
                    if UNSETTLED.contains(&encoding) {
                        continue;
                    }
                    let outcome = read(encoding);
                    list(&mut reads, crm, op2, &outcome);
                    if outcome.trap.is_none() {
                        list(&mut writes, crm, op2, &write(encoding, outcome.after.x[0]));
                    }
                }
                reads.end();
                writes.end();
            }
        }
    }
}

/// What SYS instructions may work on.
#[repr(align(4096))]
struct Scratch(core::cell::UnsafeCell<[u8; 4096]>);

// SAFETY: nobody reads or writes it but the instructions under test, on one CPU.
unsafe impl Sync for Scratch {}

static SCRATCH: Scratch = Scratch(core::cell::UnsafeCell::new([0; 4096]));

/// AT, DC, IC and TLBI by encoding.
fn system_instructions() {
    let scratch = SCRATCH.0.get() as u64;
    for op1 in 0..8 {
        for crn in [7, 8] {
            let mut line = Line::about(format_args!("every sys #{op1}, C{crn}"));
            for (crm, op2) in (0..16).flat_map(|crm| (0..8).map(move |op2| (crm, op2))) {
                // MSR with op0 1 is SYS.
                let word = exec::msr(10, (1, op1, crn, crm, op2)) & !(1 << 20) | 1 << 19;
                list(&mut line, crm, op2, &exec::run_with(word, &[(10, scratch)]));
            }
            line.end();
        }
    }
}

/// Registers that are written and read back: name, encoding, values. Each gets its old value again.
const WRITES: &[(&str, Encoding, &[u64])] = &[
    ("MIDR_EL1", (3, 0, 0, 0, 0), &[0]),
    ("ID_AA64PFR0_EL1", (3, 0, 0, 4, 0), &[0]),
    ("ACTLR_EL1", (3, 0, 1, 0, 1), &[0, u64::MAX]),
    // FPEN stays: the probe uses vector registers.
    ("CPACR_EL1", (3, 0, 1, 0, 2), &[0x30_0000, 0x33_0000, 0x330_0000, 0x1030_0000, u64::MAX]),
    ("RGSR_EL1", (3, 0, 1, 0, 5), &[0]),
    ("GCR_EL1", (3, 0, 1, 0, 6), &[0]),
    ("ZCR_EL1", (3, 0, 1, 2, 0), &[0]),
    ("TRFCR_EL1", (3, 0, 1, 2, 1), &[0]),
    ("SMPRI_EL1", (3, 0, 1, 2, 4), &[0]),
    ("SMCR_EL1", (3, 0, 1, 2, 6), &[0]),
    ("TCR2_EL1", (3, 0, 2, 0, 3), &[0]),
    ("APIAKeyLo_EL1", (3, 0, 2, 1, 0), &[0x0123_4567_89ab_cdef]),
    ("APGAKeyHi_EL1", (3, 0, 2, 3, 1), &[0x0123_4567_89ab_cdef]),
    ("SP_EL0", (3, 0, 4, 1, 0), &[u64::MAX]),
    ("SPSR_EL1", (3, 0, 4, 0, 0), &[0, u64::MAX]),
    ("ELR_EL1", (3, 0, 4, 0, 1), &[u64::MAX]),
    ("ICC_PMR_EL1", (3, 0, 4, 6, 0), &[0, 0xff, 0x55, 0xaa, 0x1f0]),
    ("AFSR0_EL1", (3, 0, 5, 1, 0), &[u64::MAX]),
    ("AFSR1_EL1", (3, 0, 5, 1, 1), &[u64::MAX]),
    ("ESR_EL1", (3, 0, 5, 2, 0), &[u64::MAX]),
    ("ERRSELR_EL1", (3, 0, 5, 3, 1), &[0, 1]),
    ("TFSR_EL1", (3, 0, 5, 6, 0), &[0]),
    ("FAR_EL1", (3, 0, 6, 0, 0), &[u64::MAX]),
    ("PAR_EL1", (3, 0, 7, 4, 0), &[0, u64::MAX]),
    ("PMSCR_EL1", (3, 0, 9, 9, 0), &[0]),
    ("TRBLIMITR_EL1", (3, 0, 9, 11, 0), &[0]),
    ("PMINTENSET_EL1", (3, 0, 9, 14, 1), &[0]),
    ("PIRE0_EL1", (3, 0, 10, 2, 2), &[0]),
    ("PIR_EL1", (3, 0, 10, 2, 3), &[0]),
    ("POR_EL1", (3, 0, 10, 2, 4), &[0]),
    ("AMAIR_EL1", (3, 0, 10, 3, 0), &[0, u64::MAX]),
    ("LORSA_EL1", (3, 0, 10, 4, 0), &[0]),
    ("LORC_EL1", (3, 0, 10, 4, 3), &[0, 1]),
    ("MPAM1_EL1", (3, 0, 10, 5, 0), &[0]),
    ("MPAM0_EL1", (3, 0, 10, 5, 1), &[0]),
    ("RMR_EL1", (3, 0, 12, 0, 2), &[0]),
    ("DISR_EL1", (3, 0, 12, 1, 1), &[0, u64::MAX]),
    ("ICC_IAR0_EL1", (3, 0, 12, 8, 0), &[0]),
    ("ICC_EOIR0_EL1", (3, 0, 12, 8, 1), &[1023]),
    ("ICC_BPR0_EL1", (3, 0, 12, 8, 3), &[0, 1, 2, 3, 7]),
    ("ICC_AP0R0_EL1", (3, 0, 12, 8, 4), &[0, 2]),
    ("ICC_AP0R1_EL1", (3, 0, 12, 8, 5), &[0]),
    ("ICC_AP1R0_EL1", (3, 0, 12, 9, 0), &[0, 2]),
    ("ICC_AP1R1_EL1", (3, 0, 12, 9, 1), &[0]),
    ("ICC_DIR_EL1", (3, 0, 12, 11, 1), &[1023]),
    ("ICC_SGI1R_EL1", (3, 0, 12, 11, 5), &[0]),
    ("ICC_ASGI1R_EL1", (3, 0, 12, 11, 6), &[0]),
    ("ICC_SGI0R_EL1", (3, 0, 12, 11, 7), &[0]),
    ("ICC_EOIR1_EL1", (3, 0, 12, 12, 1), &[1023]),
    ("ICC_BPR1_EL1", (3, 0, 12, 12, 3), &[0, 1, 2, 3, 7]),
    ("ICC_CTLR_EL1", (3, 0, 12, 12, 4), &[0, 1, 2, 3, 0x40, u64::MAX]),
    ("ICC_SRE_EL1", (3, 0, 12, 12, 5), &[0, 7]),
    ("ICC_IGRPEN0_EL1", (3, 0, 12, 12, 6), &[0, 1]),
    ("ICC_IGRPEN1_EL1", (3, 0, 12, 12, 7), &[0, 1, 3]),
    ("CONTEXTIDR_EL1", (3, 0, 13, 0, 1), &[u64::MAX]),
    ("SCXTNUM_EL1", (3, 0, 13, 0, 7), &[u64::MAX]),
    ("CNTKCTL_EL1", (3, 0, 14, 1, 0), &[0, 0x3ff, u64::MAX]),
    ("NZCV", (3, 3, 4, 2, 0), &[u64::MAX, 0]),
    ("SVCR", (3, 3, 4, 2, 2), &[0]),
    ("DIT", (3, 3, 4, 2, 5), &[1 << 24, 0]),
    ("SSBS", (3, 3, 4, 2, 6), &[1 << 12, 0]),
    ("TCO", (3, 3, 4, 2, 7), &[1 << 25, 0]),
    ("PMCR_EL0", (3, 3, 9, 12, 0), &[0]),
    ("PMCNTENSET_EL0", (3, 3, 9, 12, 1), &[0]),
    ("PMSELR_EL0", (3, 3, 9, 12, 5), &[0]),
    ("PMCCNTR_EL0", (3, 3, 9, 13, 0), &[0]),
    ("PMUSERENR_EL0", (3, 3, 9, 14, 0), &[0, 0xf]),
    ("TPIDR_EL0", (3, 3, 13, 0, 2), &[u64::MAX]),
    ("TPIDRRO_EL0", (3, 3, 13, 0, 3), &[u64::MAX]),
    ("TPIDR2_EL0", (3, 3, 13, 0, 5), &[u64::MAX]),
    ("SCXTNUM_EL0", (3, 3, 13, 0, 7), &[u64::MAX]),
    ("AMUSERENR_EL0", (3, 3, 13, 2, 3), &[0]),
    ("CNTFRQ_EL0", (3, 3, 14, 0, 0), &[1]),
    ("CNTP_CTL_EL0", (3, 3, 14, 2, 1), &[2, 0]),
    ("CNTP_CVAL_EL0", (3, 3, 14, 2, 2), &[0x0123_4567_89ab_cdef, u64::MAX]),
    ("CNTV_CTL_EL0", (3, 3, 14, 3, 1), &[2, 0]),
    ("CNTV_CVAL_EL0", (3, 3, 14, 3, 2), &[0x0123_4567_89ab_cdef, u64::MAX]),
    ("DBGBVR0_EL1", (2, 0, 0, 0, 4), &[u64::MAX]),
    ("DBGBCR0_EL1", (2, 0, 0, 0, 5), &[0x1e6, 0]),
    ("DBGWVR0_EL1", (2, 0, 0, 0, 6), &[u64::MAX]),
    ("DBGWCR0_EL1", (2, 0, 0, 0, 7), &[0x1ffe, 0]),
    ("DBGBVR15_EL1", (2, 0, 0, 15, 4), &[u64::MAX]),
    ("MDCCINT_EL1", (2, 0, 0, 2, 0), &[0, 0x6000_0000]),
    ("MDSCR_EL1", (2, 0, 0, 2, 2), &[0x8000, 0x1000, 0x40, 0]),
    ("OSLAR_EL1", (2, 0, 1, 0, 4), &[1, 0]),
    ("OSDLR_EL1", (2, 0, 1, 3, 4), &[1, 0]),
    ("DBGPRCR_EL1", (2, 0, 1, 4, 4), &[1, 0]),
    ("DBGCLAIMSET_EL1", (2, 0, 7, 8, 6), &[0xff]),
    ("DBGCLAIMCLR_EL1", (2, 0, 7, 9, 6), &[0xff]),
    ("DBGDTR_EL0", (2, 3, 0, 4, 0), &[0]),
    ("TRCPRGCTLR", (2, 1, 0, 1, 0), &[0]),
    ("SPSR_abt", (3, 4, 4, 3, 1), &[0]),
    ("SCTLR_EL2", (3, 4, 1, 0, 0), &[0]),
    ("SCTLR_EL12", (3, 5, 1, 0, 0), &[0]),
    ("SP_EL1", (3, 4, 4, 1, 0), &[0]),
    ("SCR_EL3", (3, 6, 1, 1, 0), &[0]),
];

const OSLSR: Encoding = (2, 0, 1, 1, 4);

fn writes() {
    for (name, encoding, values) in WRITES {
        let old = read(*encoding);
        for value in *values {
            let mut line = Line::about(format_args!("msr {} {value:#x}", Name(*encoding, name)));
            let outcome = write(*encoding, *value);
            if let Some(trap) = &outcome.trap {
                line.exception(trap, None);
            } else {
                line.add(format_args!(" done, reads"));
                let mut now = read(*encoding);
                now.after.x[0] = known(name, now.after.x[0]);
                say(&mut line, &now);
                if *name == "OSLAR_EL1" {
                    line.add(format_args!(", OSLSR_EL1"));
                    say(&mut line, &read(OSLSR));
                }
            }
            line.end();
            if old.trap.is_none() {
                write(*encoding, old.after.x[0]);
            }
        }
    }
}

/// Instructions whose being there depends on a feature; x10 is the scratch page, x11 is 0.
const INSTRUCTIONS: &[(&str, u32)] = &[
    ("udf #0", 0),
    ("hlt #0", 0xd440_0000),
    ("dcps1", 0xd4a0_0001),
    ("drps", 0xd6bf_03e0),
    ("esb", 0xd503_221f),
    ("psb csync", 0xd503_223f),
    ("tsb csync", 0xd503_225f),
    ("gcsb dsync", 0xd503_227f),
    ("csdb", 0xd503_229f),
    ("clrbhb", 0xd503_22df),
    ("chkfeat x16", 0xd503_251f),
    ("sb", 0xd503_30ff),
    ("wfet x11", 0xd503_100b),
    ("wfit x11", 0xd503_102b),
    ("cfinv", 0xd500_401f),
    ("crc32w w0, w11, w11", 0x1acb_4960),
    ("ldaddal w0, w0, [x10]", 0xb8e0_0140),
    ("casal w0, w0, [x10]", 0x88e0_fd40),
    ("ldaprb w0, [x10]", 0x38bf_c140),
    ("ld64b x0, [x10]", 0xf83f_d140),
    ("st64b x0, [x10]", 0xf83f_9140),
    ("st64bv x12, x0, [x10]", 0xf82c_b140),
    ("pacga x0, x10, x11", 0x9acb_3140),
    ("xpaci x0", 0xdac1_43e0),
    ("irg x0, x10", 0x9adf_1140),
    ("addg x0, x10, #0, #1", 0x9180_0540),
    ("ldg x0, [x10]", 0xd960_0140),
    ("stg x10, [x10]", 0xd920_094a),
    ("gmi x0, x10, x11", 0x9acb_1540),
    ("cntb x0", 0x0420_e3e0),
    ("rdvl x0, #1", 0x04bf_5020),
    ("ptrue p0.b", 0x2518_e3e0),
    ("rdsvl x0, #1", 0x04bf_5820),
    ("smstart sm", 0xd503_437f),
    ("zero {za}", 0xc008_00ff),
    ("fmov d0, #1.0", 0x1e6e_1000),
    ("fadd h0, h0, h0", 0x1ee0_2800),
    ("aese v0.16b, v0.16b", 0x4e28_4800),
    ("sha512h q0, q0, v0.2d", 0xce60_8000),
    ("sm4e v0.4s, v0.4s", 0xcec0_8400),
    ("eor3 v0.16b, v0.16b, v0.16b, v0.16b", 0xce00_0000),
    ("sdot v0.4s, v0.16b, v0.16b", 0x4e80_9400),
    ("usdot v0.4s, v0.16b, v0.16b", 0x4e80_9c00),
    ("bfdot v0.4s, v0.8h, v0.8h", 0x6e40_fc00),
    ("fjcvtzs w0, d0", 0x1e7e_0000),
    ("abs x0, x0", 0xdac0_2000),
    ("setp [x0]!, x1!, x2", 0x19c2_0420),
];

/// Whether each can be executed. What it computes is the CPU's business.
fn instructions() {
    let scratch = SCRATCH.0.get() as u64;
    for (name, word) in INSTRUCTIONS {
        let mut line = Line::about(format_args!("{name}"));
        // x1 is a length for SETP: nothing.
        let outcome = exec::run_with(*word, &[(0, scratch), (1, 0), (2, 0), (10, scratch), (11, 0), (16, 0)]);
        match &outcome.trap {
            Some(trap) => line.exception(trap, None),
            None => line.add(format_args!(" done")),
        }
        line.end();
    }
}
