//! The fields of ID registers and what a guest gets to see of them.
//!
//! Names and hidden rows are for readers and tests: the image holds only what makes a difference, which the parent
//! module computes from the rows at build time.

use super::IdRegister;

/// How two values of a field compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// The lower value is the lesser feature.
    Unsigned,
    /// The same, as a two's complement number: 0b1111 is less than 0.
    Signed,
    /// Values name different things: CPUs that differ have nothing in common.
    Exact,
}

/// What a guest gets to see of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    /// What the machine has.
    Pass,
    /// What the machine has, at most this.
    Cap(u8),
    /// Not implemented.
    Hide,
    /// 1 when the VM's interrupt controller is a GICv3, that is when the guest has ICC_*_EL1, if the machine has them.
    Gic,
    /// The PMU, at most FEAT_PMUv3p5 as in KVM: what later versions add is not switched. 0b1111 is some other PMU.
    Pmu,
    /// The physical address size, at most the VM's and 48 bits.
    PhysicalAddressSize,
}

/// A field: 4 bits from `lsb` on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) register: IdRegister,
    pub(super) lsb: u8,
    pub(super) name: &'static str,
    pub(super) order: Order,
    /// The value that says "not implemented".
    pub(super) absent: u8,
    pub(super) policy: Policy,
}

const fn row(register: IdRegister, lsb: u8, name: &'static str, policy: Policy) -> Row {
    assert!(lsb <= 60 && lsb & 3 == 0);
    Row { register, lsb, name, order: Order::Unsigned, absent: 0, policy }
}

const fn pass(register: IdRegister, lsb: u8, name: &'static str) -> Row {
    row(register, lsb, name, Policy::Pass)
}

const fn cap(register: IdRegister, lsb: u8, name: &'static str, most: u8) -> Row {
    row(register, lsb, name, Policy::Cap(most))
}

const fn hide(register: IdRegister, lsb: u8, name: &'static str) -> Row {
    row(register, lsb, name, Policy::Hide)
}

impl Row {
    /// Signed, with 0b1111 for "not implemented".
    const fn signed(self) -> Self {
        Self { order: Order::Signed, absent: 0xf, ..self }
    }

    const fn exact(self) -> Self {
        Self { order: Order::Exact, ..self }
    }

    const fn absent(self, value: u8) -> Self {
        Self { absent: value, ..self }
    }
}

macro_rules! registers {
    ($($name:ident = $crm:literal, $op2:literal;)*) => {
        $(pub(super) const $name: IdRegister = IdRegister(($crm - 1) * 8 + $op2);)*
    };
}

registers! {
    ID_PFR0 = 1, 0; ID_PFR1 = 1, 1; ID_DFR0 = 1, 2;
    ID_MMFR0 = 1, 4; ID_MMFR1 = 1, 5; ID_MMFR2 = 1, 6; ID_MMFR3 = 1, 7;
    ID_ISAR0 = 2, 0; ID_ISAR1 = 2, 1; ID_ISAR2 = 2, 2; ID_ISAR3 = 2, 3;
    ID_ISAR4 = 2, 4; ID_ISAR5 = 2, 5; ID_MMFR4 = 2, 6; ID_ISAR6 = 2, 7;
    MVFR0 = 3, 0; MVFR1 = 3, 1; MVFR2 = 3, 2; ID_PFR2 = 3, 4; ID_DFR1 = 3, 5; ID_MMFR5 = 3, 6;
    PFR0 = 4, 0; PFR1 = 4, 1; PFR2 = 4, 2;
    DFR0 = 5, 0; DFR1 = 5, 1;
    ISAR0 = 6, 0; ISAR1 = 6, 1; ISAR2 = 6, 2; ISAR3 = 6, 3;
    MMFR0 = 7, 0; MMFR1 = 7, 1; MMFR2 = 7, 2; MMFR3 = 7, 3; MMFR4 = 7, 4;
}

/// Every field that has been thought about.
///
/// Whole registers without rows, all hidden: ID_AFR0_EL1 and ID_AA64AFR0/1_EL1 (implementation defined),
/// ID_AA64ZFR0_EL1 (SVE), ID_AA64SMFR0_EL1 (SME), ID_AA64FPFR0_EL1 (FP8, needs FPMR).
#[rustfmt::skip]
pub(super) const ROWS: &[Row] = &[
    pass(PFR0, 0, "EL0"),
    cap(PFR0, 4, "EL1", 1),            // AArch32 at EL1: its registers and its exceptions are not handled
    hide(PFR0, 8, "EL2"),              // no nested virtualisation
    hide(PFR0, 12, "EL3"),             // a guest is never secure
    pass(PFR0, 16, "FP").signed(),
    pass(PFR0, 20, "AdvSIMD").signed(),
    row(PFR0, 24, "GIC", Policy::Gic),
    pass(PFR0, 28, "RAS"),             // ESB and DISR_EL1 are the guest's; it has no error records
    hide(PFR0, 32, "SVE"),             // Z, P, FFR and ZCR_EL1 are not switched; CPTR_EL2 traps
    hide(PFR0, 36, "SEL2"),            // EL2
    hide(PFR0, 40, "MPAM"),            // MPAM2_EL2 traps its registers
    hide(PFR0, 44, "AMU"),             // counters are the machine's; CPTR_EL2.TAM traps
    pass(PFR0, 48, "DIT"),
    hide(PFR0, 52, "RME"),             // EL3
    cap(PFR0, 56, "CSV2", 1),          // 2 adds SCXTNUM_ELx, which is not switched; HCR_EL2.EnSCXT = 0 traps
    pass(PFR0, 60, "CSV3"),

    pass(PFR1, 0, "BT"),
    pass(PFR1, 4, "SSBS"),
    hide(PFR1, 8, "MTE"),              // tags and their registers are not switched; HCR_EL2.ATA = 0 traps
    pass(PFR1, 12, "RAS_frac"),
    hide(PFR1, 16, "MPAM_frac"),       // MPAM
    hide(PFR1, 24, "SME"),             // ZA and TPIDR2_EL0 are not switched; CPTR_EL2.TSM and HFGxTR_EL2 trap
    hide(PFR1, 28, "RNDR_trap"),       // EL3
    cap(PFR1, 32, "CSV2_frac", 1),     // as CSV2
    hide(PFR1, 36, "NMI"),             // the virtual GIC has no non-maskable interrupts; PSTATE.ALLINT goes with PSTATE
    hide(PFR1, 40, "MTE_frac"),        // MTE
    hide(PFR1, 44, "GCS"),             // GCS registers are not switched; HFGxTR_EL2 traps
    hide(PFR1, 48, "THE"),             // RCWMASK_EL1 and RCWSMASK_EL1 are not switched; HFGxTR_EL2 traps
    hide(PFR1, 52, "MTEX"),            // MTE
    hide(PFR1, 56, "DF2"),             // enabled in SCTLR2_EL1, which is not switched
    hide(PFR1, 60, "PFAR"),            // PFAR_EL1 is not switched; HFGxTR2_EL2 traps

    hide(PFR2, 0, "MTEPERM"),          // MTE
    hide(PFR2, 4, "MTESTOREONLY"),     // MTE
    hide(PFR2, 8, "MTEFAR"),           // MTE
    hide(PFR2, 12, "GCIE"),            // GICv5
    hide(PFR2, 16, "UINJ"),            // needs SPSR_EL2 handling
    hide(PFR2, 20, "MTEEIRG"),         // MTE
    hide(PFR2, 24, "FGDT"),            // EL2
    hide(PFR2, 28, "MPAM2"),           // MPAM
    hide(PFR2, 32, "FPMR"),            // FPMR is not switched; HCRX_EL2.EnFPM = 0 traps
    hide(PFR2, 36, "VMTE"),            // MTE
    hide(PFR2, 40, "VMTETC"),          // MTE
    hide(PFR2, 44, "VMTETCL"),         // MTE

    cap(DFR0, 0, "DebugVer", 8),       // Armv8.2: what later versions add is not switched
    hide(DFR0, 4, "TraceVer"),         // trace registers trap (CPTR_EL2.TTA)
    row(DFR0, 8, "PMUVer", Policy::Pmu), // vCPUs without one are told of none
    pass(DFR0, 12, "BRPs"),
    hide(DFR0, 16, "PMSS"),            // PMU
    pass(DFR0, 20, "WRPs"),
    pass(DFR0, 28, "CTX_CMPs"),
    hide(DFR0, 32, "PMSVer"),          // the buffer has virtual addresses of its owner; MDCR_EL2.TPMS and E2PB trap
    hide(DFR0, 36, "DoubleLock").signed(), // it would lock the debugger of all guests of a CPU; MDCR_EL2.TDOSA traps
    hide(DFR0, 40, "TraceFilt"),       // TRFCR_EL1 is not switched; MDCR_EL2.TTRF traps
    hide(DFR0, 44, "TraceBuffer"),     // as PMSVer; MDCR_EL2.E2TB traps
    hide(DFR0, 48, "MTPMU"),           // PMU
    hide(DFR0, 52, "BRBE"),            // branch records are not switched; HDFGxTR_EL2 traps
    hide(DFR0, 56, "ExtTrcBuff"),      // trace
    hide(DFR0, 60, "HPMN0"),           // EL2

    hide(DFR1, 0, "SYSPMUID"),         // PMU
    hide(DFR1, 4, "SYSPMUID[7:4]"),
    hide(DFR1, 8, "BRPs"),             // beyond 16 they need MDSELR_EL1, which is not switched; MDCR_EL2.EBWE is 0
    hide(DFR1, 12, "BRPs[7:4]"),
    hide(DFR1, 16, "WRPs"),            // as BRPs
    hide(DFR1, 20, "WRPs[7:4]"),
    hide(DFR1, 24, "CTX_CMPs"),        // as BRPs
    hide(DFR1, 28, "CTX_CMPs[7:4]"),
    hide(DFR1, 32, "SPMU"),            // PMU
    hide(DFR1, 36, "PMICNTR"),         // PMU
    hide(DFR1, 40, "ABLE"),            // as BRPs
    hide(DFR1, 44, "ITE"),             // trace
    hide(DFR1, 48, "EBEP"),            // PMU exceptions
    hide(DFR1, 52, "DPFZS"),           // PMU
    hide(DFR1, 56, "ABL_CMPs"),        // as BRPs
    hide(DFR1, 60, "ABL_CMPs[7:4]"),

    pass(ISAR0, 4, "AES"), pass(ISAR0, 8, "SHA1"), pass(ISAR0, 12, "SHA2"), pass(ISAR0, 16, "CRC32"),
    pass(ISAR0, 20, "Atomic"),
    hide(ISAR0, 24, "TME"),            // a transaction cannot span an exit; withdrawn from the architecture
    pass(ISAR0, 28, "RDM"), pass(ISAR0, 32, "SHA3"), pass(ISAR0, 36, "SM3"), pass(ISAR0, 40, "SM4"),
    pass(ISAR0, 44, "DP"), pass(ISAR0, 48, "FHM"), pass(ISAR0, 52, "TS"), pass(ISAR0, 56, "TLB"),
    pass(ISAR0, 60, "RNDR"),

    pass(ISAR1, 0, "DPB"),
    pass(ISAR1, 4, "APA").exact(), pass(ISAR1, 8, "API").exact(),
    pass(ISAR1, 12, "JSCVT"), pass(ISAR1, 16, "FCMA"), pass(ISAR1, 20, "LRCPC"),
    pass(ISAR1, 24, "GPA").exact(), pass(ISAR1, 28, "GPI").exact(),
    pass(ISAR1, 32, "FRINTTS"), pass(ISAR1, 36, "SB"), pass(ISAR1, 40, "SPECRES"), pass(ISAR1, 44, "BF16"),
    pass(ISAR1, 48, "DGH"), pass(ISAR1, 52, "I8MM"),
    pass(ISAR1, 56, "XS"),
    hide(ISAR1, 60, "LS64"),           // HCRX_EL2 traps; ACCDATA_EL1 is not switched

    pass(ISAR2, 0, "WFxT"), pass(ISAR2, 4, "RPRES"),
    pass(ISAR2, 8, "GPA3").exact(), pass(ISAR2, 12, "APA3").exact(),
    hide(ISAR2, 16, "MOPS"),           // HCRX_EL2.MSCEn is 0: undefined
    pass(ISAR2, 20, "BC"),
    pass(ISAR2, 24, "PAC_frac").exact(),
    pass(ISAR2, 28, "CLRBHB"),
    hide(ISAR2, 32, "SYSREG_128"),     // 128-bit registers are not switched; HCRX_EL2.D128En is 0
    hide(ISAR2, 36, "SYSINSTR_128"),   // as SYSREG_128
    pass(ISAR2, 40, "PRFMSLC"),
    hide(ISAR2, 44, "PCDPHINT"),       // not thought about yet
    pass(ISAR2, 48, "RPRFM"), pass(ISAR2, 52, "CSSC"), pass(ISAR2, 56, "LUT"),
    hide(ISAR2, 60, "ATS1A"),          // not thought about yet

    hide(ISAR3, 0, "CPA"),             // enabled in SCTLR2_EL1, which is not switched
    pass(ISAR3, 4, "FAMINMAX"),
    hide(ISAR3, 8, "TLBIW"),           // works on stage 2's dirty state
    hide(ISAR3, 12, "PACM"),           // enabled in SCTLR2_EL1
    pass(ISAR3, 16, "LSFE"),
    hide(ISAR3, 20, "OCCMO"),          // not thought about yet
    hide(ISAR3, 24, "LSUI"),           // not thought about yet
    pass(ISAR3, 28, "FPRCVT"),
    hide(ISAR3, 32, "PAC_frac2"),      // not thought about yet
    hide(ISAR3, 36, "MTETC"),          // MTE
    hide(ISAR3, 40, "LSCSHINT"),       // not thought about yet
    hide(ISAR3, 44, "LSCP"),           // not thought about yet

    row(MMFR0, 0, "PARange", Policy::PhysicalAddressSize),
    pass(MMFR0, 4, "ASIDBits"), pass(MMFR0, 8, "BigEnd"),
    hide(MMFR0, 12, "SNSMem"),         // a guest is never secure
    pass(MMFR0, 16, "BigEndEL0"), pass(MMFR0, 20, "TGran16"),
    pass(MMFR0, 24, "TGran64").signed(), pass(MMFR0, 28, "TGran4").signed(),
    hide(MMFR0, 32, "TGran16_2").absent(1), // stage 2; 0 would mean "as TGran16"
    hide(MMFR0, 36, "TGran64_2").absent(1), // stage 2
    hide(MMFR0, 40, "TGran4_2").absent(1),  // stage 2
    pass(MMFR0, 44, "ExS"),
    hide(MMFR0, 56, "FGT"),            // EL2
    hide(MMFR0, 60, "ECV"),            // CNTPOFF_EL2, and counter registers that CNTHCTL_EL2 does not enable

    cap(MMFR1, 0, "HAFDBS", 2),        // 3 and 4 are enabled in TCR2_EL1 and HDBSS registers, which are not switched
    hide(MMFR1, 4, "VMIDBits"),        // EL2
    hide(MMFR1, 8, "VH"),              // EL2
    pass(MMFR1, 12, "HPDS"),
    hide(MMFR1, 16, "LO"),             // LORegion registers trap (HCR_EL2.TLOR)
    pass(MMFR1, 20, "PAN"),
    hide(MMFR1, 24, "SpecSEI"),        // physical SErrors are taken at EL2, never by the guest
    hide(MMFR1, 28, "XNX"),            // stage 2
    hide(MMFR1, 32, "TWED"),           // EL2
    pass(MMFR1, 36, "ETS"),
    hide(MMFR1, 40, "HCX"),            // EL2
    pass(MMFR1, 44, "AFP"), pass(MMFR1, 48, "nTLBPA"), pass(MMFR1, 52, "TIDCP1"),
    hide(MMFR1, 56, "CMOW"),           // HCRX_EL2.CMOW is part of it
    pass(MMFR1, 60, "ECBHB"),

    pass(MMFR2, 0, "CnP"), pass(MMFR2, 4, "UAO"), pass(MMFR2, 8, "LSM"),
    pass(MMFR2, 12, "IESB"),
    cap(MMFR2, 16, "VARange", 1),      // 2 needs 128-bit descriptors
    pass(MMFR2, 20, "CCIDX"),
    hide(MMFR2, 24, "NV"),             // EL2
    pass(MMFR2, 28, "ST"), pass(MMFR2, 32, "AT"),
    hide(MMFR2, 36, "IDS"),            // accesses keel refuses are reported as undefined, not with their syndrome
    hide(MMFR2, 40, "FWB"),            // stage 2
    pass(MMFR2, 48, "TTL"), pass(MMFR2, 52, "BBM"),
    hide(MMFR2, 56, "EVT"),            // EL2
    pass(MMFR2, 60, "E0PD"),

    hide(MMFR3, 0, "TCRX"),            // TCR2_EL1 is not switched; HCRX_EL2 traps
    hide(MMFR3, 4, "SCTLRX"),          // SCTLR2_EL1 is not switched; HCRX_EL2 traps
    hide(MMFR3, 8, "S1PIE"),           // PIR_EL1 and PIRE0_EL1 are not switched; HFGxTR_EL2 traps
    hide(MMFR3, 12, "S2PIE"),          // stage 2
    hide(MMFR3, 16, "S1POE"),          // POR_EL1 and POR_EL0 are not switched; HFGxTR_EL2 traps
    hide(MMFR3, 20, "S2POE"),          // stage 2
    hide(MMFR3, 24, "AIE"),            // MAIR2_EL1 and AMAIR2_EL1 are not switched; HFGxTR_EL2 traps
    hide(MMFR3, 28, "MEC"),            // EL3
    hide(MMFR3, 32, "D128"),           // 128-bit registers are not switched
    hide(MMFR3, 36, "D128_2"),         // stage 2
    hide(MMFR3, 40, "SNERR"), hide(MMFR3, 44, "ANERR"), // how errors are reported: keel reports them its own way
    hide(MMFR3, 52, "SDERR"), hide(MMFR3, 56, "ADERR"),
    hide(MMFR3, 60, "Spec_FPACC"),     // not thought about yet

    hide(MMFR4, 0, "PoPS"),            // not thought about yet
    hide(MMFR4, 4, "EIESB"),           // RAS
    hide(MMFR4, 8, "ASID2"),           // enabled in TCR2_EL1
    hide(MMFR4, 12, "HACDBS"),         // EL2
    hide(MMFR4, 16, "FGWTE3"),         // EL3
    hide(MMFR4, 20, "NV_frac"),        // EL2
    hide(MMFR4, 24, "E2H0"),           // EL2
    hide(MMFR4, 28, "RMEGDI"),         // EL3
    hide(MMFR4, 32, "EAESR"),          // not thought about yet
    hide(MMFR4, 36, "E3DSE"),          // EL3
    hide(MMFR4, 40, "TLBID"),          // EL2
    hide(MMFR4, 44, "SRMASK"),         // mask registers are not switched
    hide(MMFR4, 48, "TPS"),            // not thought about yet
    hide(MMFR4, 52, "TEV"),            // not thought about yet
    hide(MMFR4, 56, "SCRX"),           // EL3
    hide(MMFR4, 60, "MTEFGT"),         // MTE

    pass(ID_PFR0, 0, "State0"), pass(ID_PFR0, 4, "State1"), pass(ID_PFR0, 8, "State2"),
    pass(ID_PFR0, 12, "State3"),
    cap(ID_PFR0, 16, "CSV2", 1),
    hide(ID_PFR0, 20, "AMU"),
    pass(ID_PFR0, 24, "DIT"),
    hide(ID_PFR0, 28, "RAS"),          // error records in AArch32 at EL1; KVM does not say either
    pass(ID_PFR1, 0, "ProgMod"),
    hide(ID_PFR1, 4, "Security"),      // EL3
    pass(ID_PFR1, 8, "MProgMod"),
    hide(ID_PFR1, 12, "Virtualization"), // EL2
    pass(ID_PFR1, 16, "GenTimer"),
    hide(ID_PFR1, 20, "Sec_frac"),     // EL3
    hide(ID_PFR1, 24, "Virt_frac"),    // EL2
    row(ID_PFR1, 28, "GIC", Policy::Gic),
    pass(ID_PFR2, 0, "CSV3"), pass(ID_PFR2, 4, "SSBS"),
    hide(ID_PFR2, 8, "RAS_frac"),      // as RAS

    cap(ID_DFR0, 0, "CopDbg", 8),      // as DebugVer
    hide(ID_DFR0, 4, "CopSDbg"),       // EL3
    hide(ID_DFR0, 8, "MMapDbg"),       // memory-mapped debug registers are not given to a guest
    hide(ID_DFR0, 12, "CopTrc"), hide(ID_DFR0, 16, "MMapTrc"), // trace
    hide(ID_DFR0, 20, "MProfDbg"),
    row(ID_DFR0, 24, "PerfMon", Policy::Pmu),
    hide(ID_DFR0, 28, "TraceFilt"),    // trace
    hide(ID_DFR1, 0, "MTPMU"), hide(ID_DFR1, 4, "HPMN0"), // PMU

    pass(ID_MMFR0, 0, "VMSA"), pass(ID_MMFR0, 4, "PMSA"), pass(ID_MMFR0, 8, "OuterShr").signed(),
    pass(ID_MMFR0, 12, "ShareLvl"), pass(ID_MMFR0, 16, "TCM"), pass(ID_MMFR0, 20, "AuxReg"),
    pass(ID_MMFR0, 24, "FCSE"), pass(ID_MMFR0, 28, "InnerShr").signed(),
    pass(ID_MMFR1, 0, "L1HvdVA"), pass(ID_MMFR1, 4, "L1UniVA"), pass(ID_MMFR1, 8, "L1HvdSW"),
    pass(ID_MMFR1, 12, "L1UniSW"), pass(ID_MMFR1, 16, "L1Hvd"), pass(ID_MMFR1, 20, "L1Uni"),
    pass(ID_MMFR1, 24, "L1TstCln"), pass(ID_MMFR1, 28, "BPred"),
    pass(ID_MMFR2, 0, "L1HvdFG"), pass(ID_MMFR2, 4, "L1HvdBG"), pass(ID_MMFR2, 8, "L1HvdRng"),
    pass(ID_MMFR2, 12, "HvdTLB"), pass(ID_MMFR2, 16, "UniTLB"), pass(ID_MMFR2, 20, "MemBarr"),
    pass(ID_MMFR2, 24, "WFIStall"), pass(ID_MMFR2, 28, "HWAccFlg"),
    pass(ID_MMFR3, 0, "CMaintVA"), pass(ID_MMFR3, 4, "CMaintSW"), pass(ID_MMFR3, 8, "BPMaint"),
    pass(ID_MMFR3, 12, "MaintBcst"), pass(ID_MMFR3, 16, "PAN"), pass(ID_MMFR3, 20, "CohWalk"),
    pass(ID_MMFR3, 24, "CMemSz"), pass(ID_MMFR3, 28, "Supersec"),
    hide(ID_MMFR4, 0, "SpecSEI"),      // as in ID_AA64MMFR1_EL1
    pass(ID_MMFR4, 4, "AC2"),
    hide(ID_MMFR4, 8, "XNX"),          // stage 2
    pass(ID_MMFR4, 12, "CnP"), pass(ID_MMFR4, 16, "HPDS"), pass(ID_MMFR4, 20, "LSM"), pass(ID_MMFR4, 24, "CCIDX"),
    hide(ID_MMFR4, 28, "EVT"),         // EL2
    pass(ID_MMFR5, 0, "ETS"), pass(ID_MMFR5, 4, "nTLBPA"),

    pass(ID_ISAR0, 0, "Swap"), pass(ID_ISAR0, 4, "BitCount"), pass(ID_ISAR0, 8, "BitField"),
    pass(ID_ISAR0, 12, "CmpBranch"), pass(ID_ISAR0, 16, "Coproc"), pass(ID_ISAR0, 20, "Debug"),
    pass(ID_ISAR0, 24, "Divide"),
    pass(ID_ISAR1, 0, "Endian"), pass(ID_ISAR1, 4, "Except"), pass(ID_ISAR1, 8, "Except_AR"),
    pass(ID_ISAR1, 12, "Extend"), pass(ID_ISAR1, 16, "IfThen"), pass(ID_ISAR1, 20, "Immediate"),
    pass(ID_ISAR1, 24, "Interwork"), pass(ID_ISAR1, 28, "Jazelle"),
    pass(ID_ISAR2, 0, "LoadStore"), pass(ID_ISAR2, 4, "MemHint"), pass(ID_ISAR2, 8, "MultiAccessInt"),
    pass(ID_ISAR2, 12, "Mult"), pass(ID_ISAR2, 16, "MultS"), pass(ID_ISAR2, 20, "MultU"),
    pass(ID_ISAR2, 24, "PSR_AR"), pass(ID_ISAR2, 28, "Reversal"),
    pass(ID_ISAR3, 0, "Saturate"), pass(ID_ISAR3, 4, "SIMD"), pass(ID_ISAR3, 8, "SVC"),
    pass(ID_ISAR3, 12, "SynchPrim"), pass(ID_ISAR3, 16, "TabBranch"), pass(ID_ISAR3, 20, "T32Copy"),
    pass(ID_ISAR3, 24, "TrueNOP"), pass(ID_ISAR3, 28, "T32EE"),
    pass(ID_ISAR4, 0, "Unpriv"), pass(ID_ISAR4, 4, "WithShifts"), pass(ID_ISAR4, 8, "Writeback"),
    pass(ID_ISAR4, 12, "SMC"), pass(ID_ISAR4, 16, "Barrier"), pass(ID_ISAR4, 20, "SynchPrim_frac"),
    pass(ID_ISAR4, 24, "PSR_M"), pass(ID_ISAR4, 28, "SWP_frac"),
    pass(ID_ISAR5, 0, "SEVL"), pass(ID_ISAR5, 4, "AES"), pass(ID_ISAR5, 8, "SHA1"), pass(ID_ISAR5, 12, "SHA2"),
    pass(ID_ISAR5, 16, "CRC32"), pass(ID_ISAR5, 24, "RDM"), pass(ID_ISAR5, 28, "VCMA"),
    pass(ID_ISAR6, 0, "JSCVT"), pass(ID_ISAR6, 4, "DP"), pass(ID_ISAR6, 8, "FHM"), pass(ID_ISAR6, 12, "SB"),
    pass(ID_ISAR6, 16, "SPECRES"), pass(ID_ISAR6, 20, "BF16"), pass(ID_ISAR6, 24, "I8MM"),
    pass(ID_ISAR6, 28, "CLRBHB"),
    pass(MVFR0, 0, "SIMDReg"), pass(MVFR0, 4, "FPSP"), pass(MVFR0, 8, "FPDP"), pass(MVFR0, 12, "FPTrap"),
    pass(MVFR0, 16, "FPDivide"), pass(MVFR0, 20, "FPSqrt"), pass(MVFR0, 24, "FPShVec"), pass(MVFR0, 28, "FPRound"),
    pass(MVFR1, 0, "FPFtZ"), pass(MVFR1, 4, "FPDNaN"), pass(MVFR1, 8, "SIMDLS"), pass(MVFR1, 12, "SIMDInt"),
    pass(MVFR1, 16, "SIMDSP"), pass(MVFR1, 20, "SIMDHP"), pass(MVFR1, 24, "FPHP"), pass(MVFR1, 28, "SIMDFMAC"),
    pass(MVFR2, 0, "SIMDMisc"), pass(MVFR2, 4, "FPMisc"),
];

// Each row has a name, and no field has two rows.
const _: () = {
    let mut n = 0;
    while n < ROWS.len() {
        assert!(!ROWS[n].name.is_empty());
        let mut other = 0;
        while other < n {
            assert!(ROWS[n].register.0 != ROWS[other].register.0 || ROWS[n].lsb != ROWS[other].lsb);
            other += 1;
        }
        n += 1;
    }
};
