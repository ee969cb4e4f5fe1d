//! System registers: what the ID registers promise is there, and what they do not is undefined.

use crate::{
    check, check_eq,
    harness::{Case, Check, Under::*, case, join, skip, start},
};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use keel_test_kernel::{
    exec::{self, EC_UNKNOWN, Encoding, Outcome},
    machine::{MPIDR_AFFINITY, Machine},
    mrs, msr,
};

/// The cases.
pub const CASES: &[Case] = &[
    case("sysreg/id_space", 1, Any, id_space),
    case("sysreg/id_write_undefined", 1, Any, id_write_undefined),
    case("sysreg/id_same_on_all_cpus", 2, Any, id_same_on_all_cpus),
    case("sysreg/target_register", 1, Any, target_register),
    case("sysreg/features", 1, Any, features),
    case("sysreg/feature_instructions", 1, Any, feature_instructions),
    case("sysreg/mpidr", 1, Any, mpidr),
    case("sysreg/cache_geometry", 1, Any, cache_geometry),
    case("sysreg/higher_levels_undefined", 1, Any, higher_levels_undefined),
    case("sysreg/implementation_defined", 1, Keel, implementation_defined),
    case("sysreg/el1_state", 1, Any, el1_state),
    case("sysreg/icc_sre", 1, Any, icc_sre),
    case("sysreg/pointer_authentication", 1, Any, pointer_authentication),
];

const SCRATCH: u32 = 9;
/// ESR.EC of a trapped MSR or MRS.
const EC_SYSTEM_REGISTER: u64 = 0x18;

fn read(encoding: Encoding) -> Outcome {
    exec::run(exec::mrs(SCRATCH, encoding), &exec::Registers::pattern())
}

fn write(encoding: Encoding, value: u64) -> Outcome {
    exec::run_with(exec::msr(SCRATCH, encoding), &[(SCRATCH as usize, value)])
}

/// The value of a register that must be readable.
fn value(encoding: Encoding) -> Check<u64> {
    let outcome = read(encoding);
    check!(outcome.trap.is_none(), "reading {encoding:x?}: {:x?}", outcome.trap);
    if let Some(changed) = outcome.changed(&[SCRATCH as usize]) {
        check!(false, "reading {encoding:x?} changed {changed:x?}");
    }
    Ok(outcome.after.x[SCRATCH as usize])
}

fn undefined(what: &str, encoding: Encoding, outcome: &Outcome) -> Check {
    match outcome.trap {
        None => {
            check!(false, "{what} {encoding:x?}: not undefined, x{SCRATCH} = {:#x}", outcome.after.x[SCRATCH as usize])
        }
        Some(trap) => check_eq!(trap.class(), EC_UNKNOWN, "{what} {encoding:x?}: class of ESR {:#x}", trap.esr),
    }
    if let Some(changed) = outcome.changed(&[]) {
        check!(false, "{what} {encoding:x?} is undefined, but changed {changed:x?}");
    }
    Ok(())
}

/// Registers of the ID space in CRm 1 to 7, all of which can be read: those without a name are 0.
fn id_encodings() -> impl Iterator<Item = Encoding> {
    (1..8).flat_map(|crm| (0..8).map(move |op2| (3, 0, 0, crm, op2)))
}

fn id_space(_: &Machine) -> Check {
    for encoding in id_encodings().chain([(3, 0, 0, 0, 0), (3, 0, 0, 0, 5), (3, 0, 0, 0, 6)]) {
        let first = value(encoding)?;
        check_eq!(value(encoding)?, first, "second read of {encoding:x?}");
    }
    Ok(())
}

fn id_write_undefined(_: &Machine) -> Check {
    for encoding in id_encodings().chain([(3, 0, 0, 0, 0), (3, 0, 0, 0, 5)]) {
        undefined("writing", encoding, &write(encoding, 0))?;
    }
    Ok(())
}

static SUM: AtomicU64 = AtomicU64::new(0);

/// Folds all ID registers into one number.
fn fold() -> u64 {
    id_encodings().fold(0, |sum: u64, encoding| sum.rotate_left(7) ^ read(encoding).after.x[SCRATCH as usize])
}

fn id_same_on_all_cpus(machine: &Machine) -> Check {
    let mine = fold();
    for cpu in 1..machine.cpus().len() {
        start(machine, cpu, |_| SUM.store(fold(), SeqCst), 0)?;
        join(machine, cpu)?;
        check_eq!(SUM.load(SeqCst), mine, "fold of CPU {cpu}'s ID registers");
    }
    Ok(())
}

fn target_register(_: &Machine) -> Check {
    let pfr0 = (3, 0, 0, 4, 0);
    let expected = value(pfr0)?;
    for target in 0..31 {
        let outcome = exec::run(exec::mrs(target, pfr0), &exec::Registers::pattern());
        check!(outcome.trap.is_none(), "mrs x{target}: {:x?}", outcome.trap);
        check_eq!(outcome.after.x[target as usize], expected, "x{target}");
        check!(
            outcome.changed(&[target as usize]).is_none(),
            "mrs x{target} changed {:x?}",
            outcome.changed(&[target as usize])
        );
    }
    let outcome = exec::run(exec::mrs(31, pfr0), &exec::Registers::pattern());
    check!(outcome.trap.is_none() && outcome.changed(&[]).is_none(), "mrs xzr changed {:x?}", outcome.changed(&[]));
    Ok(())
}

/// A register that is there when a field of an ID register has a value from `least` on.
struct Promise {
    name: &'static str,
    id: Encoding,
    shift: u32,
    least: u64,
    register: Encoding,
}

const PFR0: Encoding = (3, 0, 0, 4, 0);
const PFR1: Encoding = (3, 0, 0, 4, 1);
const PFR2: Encoding = (3, 0, 0, 4, 2);
const DFR0: Encoding = (3, 0, 0, 5, 0);
const ISAR0: Encoding = (3, 0, 0, 6, 0);
const ISAR1: Encoding = (3, 0, 0, 6, 1);
const MMFR1: Encoding = (3, 0, 0, 7, 1);
const MMFR3: Encoding = (3, 0, 0, 7, 3);

const fn promise(name: &'static str, id: Encoding, shift: u32, least: u64, register: Encoding) -> Promise {
    Promise { name, id, shift, least, register }
}

/// Features with state of their own that a hypervisor can take away: what the ID registers do not promise must be
/// undefined, or one VM could read what another wrote (Arm ARM D24.2, the ID registers; D24.1.3, encodings). ALLINT of
/// FEAT_NMI is not among them: there is no trap for reading it, and as a bit of PSTATE it goes with the CPU.
#[rustfmt::skip]
const PROMISES: &[Promise] = &[
    promise("RAS ERRIDR", PFR0, 28, 1, (3, 0, 5, 3, 0)),
    promise("RAS DISR", PFR0, 28, 1, (3, 0, 12, 1, 1)),
    promise("SVE ZCR", PFR0, 32, 1, (3, 0, 1, 2, 0)),
    promise("MPAM1", PFR0, 40, 1, (3, 0, 10, 5, 0)),
    promise("MPAM0", PFR0, 40, 1, (3, 0, 10, 5, 1)),
    promise("MPAMIDR", PFR0, 40, 1, (3, 0, 10, 4, 4)),
    promise("AMU AMCR", PFR0, 44, 1, (3, 3, 13, 2, 0)),
    promise("AMU AMCFGR", PFR0, 44, 1, (3, 3, 13, 2, 1)),
    promise("AMU AMUSERENR", PFR0, 44, 1, (3, 3, 13, 2, 3)),
    promise("AMU AMCNTENSET0", PFR0, 44, 1, (3, 3, 13, 2, 5)),
    promise("AMU AMEVCNTR00", PFR0, 44, 1, (3, 3, 13, 4, 0)),
    promise("AMU AMEVTYPER00", PFR0, 44, 1, (3, 3, 13, 6, 0)),
    promise("SCXTNUM_EL1", PFR0, 56, 2, (3, 0, 13, 0, 7)),
    promise("SCXTNUM_EL0", PFR0, 56, 2, (3, 3, 13, 0, 7)),
    promise("GIC", PFR0, 24, 1, (3, 0, 12, 12, 7)),
    promise("MTE RGSR", PFR1, 8, 2, (3, 0, 1, 0, 5)),
    promise("MTE GCR", PFR1, 8, 2, (3, 0, 1, 0, 6)),
    promise("MTE TFSR", PFR1, 8, 2, (3, 0, 5, 6, 0)),
    promise("MTE TFSRE0", PFR1, 8, 2, (3, 0, 5, 6, 1)),
    promise("MTE GMID", PFR1, 8, 2, (3, 1, 0, 0, 4)),
    promise("SME SMCR", PFR1, 24, 1, (3, 0, 1, 2, 6)),
    promise("SME SMPRI", PFR1, 24, 1, (3, 0, 1, 2, 4)),
    promise("SME SVCR", PFR1, 24, 1, (3, 3, 4, 2, 2)),
    promise("SME SMIDR", PFR1, 24, 1, (3, 1, 0, 0, 6)),
    promise("SME TPIDR2_EL0", PFR1, 24, 1, (3, 3, 13, 0, 5)),
    promise("GCS GCSCR", PFR1, 44, 1, (3, 0, 2, 5, 0)),
    promise("GCS GCSPR_EL1", PFR1, 44, 1, (3, 0, 2, 5, 1)),
    promise("GCS GCSCRE0", PFR1, 44, 1, (3, 0, 2, 5, 2)),
    promise("GCS GCSPR_EL0", PFR1, 44, 1, (3, 3, 2, 5, 1)),
    promise("THE RCWMASK", PFR1, 48, 1, (3, 0, 13, 0, 6)),
    promise("THE RCWSMASK", PFR1, 48, 1, (3, 0, 13, 0, 3)),
    promise("PFAR", PFR1, 60, 1, (3, 0, 6, 0, 5)),
    promise("FPMR", PFR2, 32, 1, (3, 3, 4, 4, 2)),
    promise("trace unit TRCPRGCTLR", DFR0, 4, 1, (2, 1, 0, 1, 0)),
    promise("trace unit TRCCNTVR0", DFR0, 4, 1, (2, 1, 0, 8, 5)),
    promise("PMUv3 PMCR", DFR0, 8, 1, (3, 3, 9, 12, 0)),
    promise("PMUv3 PMSELR", DFR0, 8, 1, (3, 3, 9, 12, 5)),
    promise("PMUv3 PMCCNTR", DFR0, 8, 1, (3, 3, 9, 13, 0)),
    promise("PMUv3 PMUSERENR", DFR0, 8, 1, (3, 3, 9, 14, 0)),
    promise("PMUv3 PMINTENSET", DFR0, 8, 1, (3, 0, 9, 14, 1)),
    promise("PMUv3 PMCCFILTR", DFR0, 8, 1, (3, 3, 14, 15, 7)),
    promise("SPE PMSCR", DFR0, 32, 1, (3, 0, 9, 9, 0)),
    promise("SPE PMSIDR", DFR0, 32, 1, (3, 0, 9, 9, 7)),
    promise("SPE PMBLIMITR", DFR0, 32, 1, (3, 0, 9, 10, 0)),
    promise("SPE PMBPTR", DFR0, 32, 1, (3, 0, 9, 10, 1)),
    promise("SPE PMBSR", DFR0, 32, 1, (3, 0, 9, 10, 3)),
    promise("TRF TRFCR", DFR0, 40, 1, (3, 0, 1, 2, 1)),
    promise("TRBE TRBLIMITR", DFR0, 44, 1, (3, 0, 9, 11, 0)),
    promise("TRBE TRBPTR", DFR0, 44, 1, (3, 0, 9, 11, 1)),
    promise("TRBE TRBSR", DFR0, 44, 1, (3, 0, 9, 11, 3)),
    promise("BRBE BRBCR", DFR0, 52, 1, (2, 1, 9, 0, 0)),
    promise("BRBE BRBSRC0", DFR0, 52, 1, (2, 1, 8, 0, 5)),
    promise("RNDR", ISAR0, 60, 1, (3, 3, 2, 4, 0)),
    promise("LS64 ACCDATA", ISAR1, 60, 3, (3, 0, 13, 0, 5)),
    promise("LORegions LORSA", MMFR1, 16, 1, (3, 0, 10, 4, 0)),
    promise("LORegions LORC", MMFR1, 16, 1, (3, 0, 10, 4, 3)),
    promise("LORegions LORID", MMFR1, 16, 1, (3, 0, 10, 4, 7)),
    promise("TCR2", MMFR3, 0, 1, (3, 0, 2, 0, 3)),
    promise("SCTLR2", MMFR3, 4, 1, (3, 0, 1, 0, 3)),
    promise("S1PIE PIR", MMFR3, 8, 1, (3, 0, 10, 2, 3)),
    promise("S1PIE PIRE0", MMFR3, 8, 1, (3, 0, 10, 2, 2)),
    promise("S1POE POR_EL1", MMFR3, 16, 1, (3, 0, 10, 2, 4)),
    promise("S1POE POR_EL0", MMFR3, 16, 1, (3, 3, 10, 2, 4)),
    promise("AIE MAIR2", MMFR3, 24, 1, (3, 0, 10, 2, 1)),
    promise("AIE AMAIR2", MMFR3, 24, 1, (3, 0, 10, 3, 1)),
];

/// Lets EL1 use FP, SVE and SME where they are: what traps then is not this kernel's own doing.
fn open_cpacr() {
    msr!("cpacr_el1", 3 << 16 | 3 << 20 | 3 << 24);
}

fn field(id: Encoding, shift: u32) -> Check<u64> {
    let field = value(id)? >> shift & 15;
    // 0xf means "not implemented" or "implementation defined" in the signed fields.
    Ok(if field == 15 { 0 } else { field })
}

fn features(_: &Machine) -> Check {
    open_cpacr();
    for &Promise { name, id, shift, least, register } in PROMISES {
        let promised = field(id, shift)? >= least;
        let outcome = read(register);
        if promised {
            check!(outcome.trap.is_none(), "{name} is promised, but reading {register:x?}: {:x?}", outcome.trap);
        } else {
            // FEAT_IDST reports an ID register that is not there with the class of a trapped access.
            let (_, op1, crn, ..) = register;
            if (op1, crn) != (1, 0) || outcome.trap.is_none_or(|trap| trap.class() != EC_SYSTEM_REGISTER) {
                undefined(name, register, &outcome)?;
            }
            undefined(name, register, &write(register, 0))?;
        }
    }
    Ok(())
}

fn feature_instructions(_: &Machine) -> Check {
    open_cpacr();
    // The instruction, and whether the ID registers promise it.
    let mte = field(PFR1, 8)?;
    let cases = [
        ("RDVL x9, #1", 0x04bf_5029, field(PFR0, 32)? >= 1),
        ("RDSVL x9, #1", 0x04bf_5829, field(PFR1, 24)? >= 1),
        ("MRS x9, SVCR", exec::mrs(SCRATCH, (3, 3, 4, 2, 2)), field(PFR1, 24)? >= 1),
        ("MRS x9, PMCCNTR_EL0", exec::mrs(SCRATCH, (3, 3, 9, 13, 0)), field(DFR0, 8)? >= 1),
    ];
    for (name, word, promised) in cases {
        let outcome = exec::run(word, &exec::Registers::pattern());
        match outcome.trap {
            None => check!(promised, "{name} works, but is not promised"),
            Some(trap) => {
                check!(!promised, "{name} is promised, but: {trap:x?}");
                check_eq!(trap.class(), EC_UNKNOWN, "{name}: class of ESR {:#x}", trap.esr);
            }
        }
    }
    // LDG reads a tag. Where the CPU has it and a hypervisor hides it, it is still no undefined instruction: it reads 0.
    if mte >= 2 {
        let memory = (&raw const SUM) as u64 & !15;
        let outcome = exec::run_with(0xd960_0000 | 10 << 5 | SCRATCH, &[(10, memory), (9, 0)]);
        check!(outcome.trap.is_none(), "LDG is promised, but: {:x?}", outcome.trap);
    }
    Ok(())
}

fn mpidr(machine: &Machine) -> Check {
    let mpidr = mrs!("mpidr_el1");
    check_eq!(mpidr & MPIDR_AFFINITY, machine.cpus()[0], "affinity of the boot CPU");
    check_eq!(mpidr >> 31 & 1, 1, "MPIDR_EL1.RES1 of {mpidr:#x}");
    check_eq!(mpidr >> 30 & 1, 0, "MPIDR_EL1.U of {mpidr:#x}");
    let mut sorted = [0; keel_test_kernel::platform::MAX_CPUS];
    let count = machine.cpus().len();
    sorted[..count].copy_from_slice(machine.cpus());
    sorted[..count].sort_unstable();
    check!(
        sorted[..count].windows(2).all(|pair| pair[0] != pair[1]),
        "two CPUs of one affinity: {:x?}",
        machine.cpus()
    );
    Ok(())
}

fn cache_geometry(_: &Machine) -> Check {
    for encoding in [(3, 3, 0, 0, 1), (3, 3, 0, 0, 7), (3, 1, 0, 0, 1), (3, 1, 0, 0, 7)] {
        value(encoding)?;
    }
    let levels = value((3, 1, 0, 0, 1))?;
    for level in 0..7 {
        let kind = levels >> (3 * level) & 7;
        for instruction in 0..2 {
            let there = if instruction == 1 { kind & 1 != 0 } else { kind & 6 != 0 };
            if there {
                msr!("S3_2_C0_C0_0", level << 1 | instruction);
                check_eq!(value((3, 2, 0, 0, 0))?, level << 1 | instruction, "CSSELR_EL1");
                check!(value((3, 1, 0, 0, 0))? != 0, "CCSIDR_EL1 of level {level}, instruction {instruction}");
            }
        }
    }
    msr!("S3_2_C0_C0_0", 0);
    Ok(())
}

/// Registers of EL2 and EL3, which EL1 cannot have.
const HIGHER: [Encoding; 14] = [
    (3, 6, 1, 1, 0),   // SCR_EL3
    (3, 6, 12, 0, 0),  // VBAR_EL3
    (3, 6, 1, 0, 0),   // SCTLR_EL3
    (3, 4, 1, 1, 0),   // HCR_EL2
    (3, 4, 1, 1, 1),   // MDCR_EL2
    (3, 4, 2, 1, 0),   // VTTBR_EL2
    (3, 4, 12, 0, 0),  // VBAR_EL2
    (3, 4, 14, 0, 3),  // CNTVOFF_EL2
    (3, 4, 12, 11, 0), // ICH_HCR_EL2
    (3, 4, 12, 12, 0), // ICH_LR0_EL2
    (3, 4, 12, 9, 5),  // ICC_SRE_EL2
    (3, 6, 12, 12, 5), // ICC_SRE_EL3
    (3, 5, 1, 0, 0),   // SCTLR_EL12
    (3, 5, 14, 3, 1),  // CNTV_CTL_EL02
];

fn higher_levels_undefined(_: &Machine) -> Check {
    for encoding in HIGHER {
        undefined("reading", encoding, &read(encoding))?;
        undefined("writing", encoding, &write(encoding, 0))?;
    }
    Ok(())
}

fn implementation_defined(_: &Machine) -> Check {
    for op1 in [0, 1, 2, 3, 4, 5, 6, 7] {
        for (crn, crm, op2) in [(15, 0, 0), (15, 2, 1), (15, 15, 7), (11, 0, 2), (11, 15, 0)] {
            let encoding = (3, op1, crn, crm, op2);
            undefined("reading", encoding, &read(encoding))?;
            undefined("writing", encoding, &write(encoding, !0))?;
        }
    }
    // Unallocated encodings of the space EL1 does use.
    for encoding in [(3, 0, 1, 15, 7), (3, 0, 7, 0, 0), (3, 0, 13, 5, 5), (2, 7, 0, 0, 0)] {
        undefined("reading", encoding, &read(encoding))?;
        undefined("writing", encoding, &write(encoding, !0))?;
    }
    Ok(())
}

/// Registers of EL1 that hold what is written: encoding and the bits to write.
const STATE: [(Encoding, u64); 12] = [
    ((3, 0, 6, 0, 0), 0xffff_1234_5678_9abc),  // FAR_EL1
    ((3, 0, 5, 2, 0), 0x1234_5678),            // ESR_EL1
    ((3, 0, 7, 4, 0), 0x800),                  // PAR_EL1, with F = 0
    ((3, 0, 4, 1, 0), 0x1234_5670),            // SP_EL0
    ((3, 3, 13, 0, 2), 0x1111_2222_3333_4444), // TPIDR_EL0
    ((3, 3, 13, 0, 3), 0x5555_6666_7777_8888), // TPIDRRO_EL0
    ((3, 0, 13, 0, 1), 0x9abc_def0),           // CONTEXTIDR_EL1
    ((3, 0, 14, 1, 0), 0x303),                 // CNTKCTL_EL1
    ((3, 0, 4, 0, 0), 0x3c5),                  // SPSR_EL1
    ((3, 0, 4, 0, 1), 0x4000_1000),            // ELR_EL1
    ((3, 0, 2, 0, 1), 0x4020_0000),            // TTBR1_EL1, not walked: EPD1 is set
    ((3, 3, 4, 4, 1), 0x9f),                   // FPSR
];

fn el1_state(_: &Machine) -> Check {
    // They stay over exits: each is read back after some hypercalls.
    for (encoding, bits) in STATE {
        let old = value(encoding)?;
        let outcome = write(encoding, bits);
        check!(outcome.trap.is_none(), "writing {encoding:x?}: {:x?}", outcome.trap);
        for _ in 0..3 {
            keel_test_kernel::power::hvc(0xc600_ffff, [0; 3]);
        }
        let found = value(encoding)?;
        write(encoding, old);
        // Hypercalls are made by code that uses ELR, SPSR, ESR and FAR only when it takes an exception; it takes none.
        check_eq!(found, bits, "{encoding:x?} after hypercalls");
    }
    Ok(())
}

fn icc_sre(machine: &Machine) -> Check {
    if machine.has_gicv2 {
        return skip("of a GICv3");
    }
    let sre = value((3, 0, 12, 12, 5))?;
    check_eq!(sre & 1, 1, "ICC_SRE_EL1.SRE");
    if machine.under_keel() {
        check_eq!(sre, 7, "ICC_SRE_EL1");
        let outcome = write((3, 0, 12, 12, 5), 0);
        check!(outcome.trap.is_none(), "writing ICC_SRE_EL1: {:x?}", outcome.trap);
        check_eq!(value((3, 0, 12, 12, 5))?, 7, "ICC_SRE_EL1 after writing 0");
    }
    Ok(())
}

/// APA, API of ID_AA64ISAR1 and APA3 of ID_AA64ISAR2.
fn has_pointer_authentication() -> Check<bool> {
    let isar1 = value(ISAR1)?;
    let isar2 = value((3, 0, 0, 6, 2))?;
    Ok(isar1 >> 4 & 0xff != 0 || isar2 >> 12 & 15 != 0)
}

fn pointer_authentication(_: &Machine) -> Check {
    const ENIA: u64 = 1 << 31;
    let keys = [(3, 0, 2, 1, 0), (3, 0, 2, 1, 1), (3, 0, 2, 2, 2), (3, 0, 2, 3, 1)];
    if !has_pointer_authentication()? {
        for key in keys {
            undefined("reading", key, &read(key))?;
        }
        return skip("not promised by ID_AA64ISAR1_EL1 (and its keys are undefined)");
    }
    for (number, key) in keys.into_iter().enumerate() {
        let bits = 0x0123_4567_89ab_cdef << number;
        check!(write(key, bits).trap.is_none(), "writing key {key:x?}");
        check_eq!(value(key)?, bits, "key {key:x?}");
    }
    let sctlr = mrs!("sctlr_el1");
    msr!("sctlr_el1", sctlr | ENIA);
    let (pacia, autia) = (0xdac1_0000 | 10 << 5 | SCRATCH, 0xdac1_1000 | 10 << 5 | SCRATCH);
    let pointer = 0x4020_1234;
    let signed = exec::run_with(pacia, &[(9, pointer), (10, 77)]);
    let back = exec::run_with(autia, &[(9, signed.after.x[9]), (10, 77)]);
    // Another modifier: the result is not the pointer (or the CPU faults at once, with FEAT_FPAC).
    let wrong = exec::run_with(autia, &[(9, signed.after.x[9]), (10, 78)]);
    msr!("sctlr_el1", sctlr);
    check!(signed.trap.is_none(), "PACIA: {:x?}", signed.trap);
    check!(signed.after.x[9] != pointer, "PACIA left the pointer as it was");
    check!(back.trap.is_none(), "AUTIA: {:x?}", back.trap);
    check_eq!(back.after.x[9], pointer, "the authenticated pointer");
    check!(wrong.trap.is_some() || wrong.after.x[9] != pointer, "AUTIA took another modifier");
    Ok(())
}
