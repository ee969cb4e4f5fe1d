//! Tests of the ID registers: against another reading of the specification, known machines, and any machine.

use arm_sysregs::aarch32::registers as aarch32;
use arm_sysregs::el1::registers as el1;
use proptest::prelude::*;

use super::rows::*;
use super::*;

const FULL: GuestFeatures = GuestFeatures { ipa_bits: 48, gic_system_registers: true };

/// QEMU 10.0 `-cpu max`, read at EL2 of `virt` with GICv3: (CRm, op2, value), others zero.
#[rustfmt::skip]
const CPU_MAX: &[(u8, u8, u64)] = &[
    (1, 0, 0x1102_0131), (1, 1, 0x1001_1001), (1, 2, 0x600_000a), (1, 4, 0x1010_1105), (1, 5, 0x4000_0000),
    (1, 6, 0x126_0000), (1, 7, 0x212_2211), (2, 0, 0x210_1110), (2, 1, 0x1311_2111), (2, 2, 0x2123_2042),
    (2, 3, 0x111_2131), (2, 4, 0x1_1142), (2, 5, 0x1101_1121), (2, 6, 0x2002_1110), (2, 7, 0x111_1111),
    (3, 0, 0x1011_0222), (3, 1, 0x1321_1111), (3, 2, 0x43), (3, 4, 0x11), (3, 5, 0x10), (3, 6, 0x2),
    (4, 0, 0x1301_0011_2111_0222), (4, 1, 0x10_0100_0121), (4, 4, 0x110_1101_0021_0021),
    (4, 5, 0x80f1_00fd_0000_0000), (5, 0, 0x1000_0000_1030_560a), (6, 0, 0x1221_1111_1021_2120),
    (6, 1, 0x111_2111_1021_1502), (6, 2, 0x11_0012), (7, 0, 0x2100_0323_1020_1126), (7, 1, 0x110_1120_1031_2122),
    (7, 2, 0x1221_0111_1201_1011), (7, 3, 0x1000_0000_0000_0000),
];
/// The same of `-cpu cortex-a72`.
#[rustfmt::skip]
const CORTEX_A72: &[(u8, u8, u64)] = &[
    (1, 0, 0x131), (1, 1, 0x1001_1001), (1, 2, 0x300_0006), (1, 4, 0x1020_1105), (1, 5, 0x4000_0000),
    (1, 6, 0x126_0000), (1, 7, 0x210_2211), (2, 0, 0x210_1110), (2, 1, 0x1311_2111), (2, 2, 0x2123_2042),
    (2, 3, 0x111_2131), (2, 4, 0x1_1142), (2, 5, 0x1_1121), (3, 0, 0x1011_0222), (3, 1, 0x1211_1111),
    (3, 2, 0x43), (4, 0, 0x100_0222), (5, 0, 0x1030_5106), (6, 0, 0x1_1120), (7, 0, 0x1124),
];
/// The same of `-cpu neoverse-n1`.
#[rustfmt::skip]
const NEOVERSE_N1: &[(u8, u8, u64)] = &[
    (1, 0, 0x1001_0131), (1, 1, 0x1001_0000), (1, 2, 0x400_0008), (1, 4, 0x1020_1105), (1, 5, 0x4000_0000),
    (1, 6, 0x126_0000), (1, 7, 0x212_2211), (2, 0, 0x210_1110), (2, 1, 0x1311_2111), (2, 2, 0x2123_2042),
    (2, 3, 0x111_2131), (2, 4, 0x1_0142), (2, 5, 0x101_1121), (2, 6, 0x2_1110), (2, 7, 0x10), (3, 0, 0x1011_0222),
    (3, 1, 0x1321_1111), (3, 2, 0x43), (3, 4, 0x11), (4, 0, 0x1100_0000_1111_0112), (4, 1, 0x20),
    (5, 0, 0x1030_5408), (6, 0, 0x1000_1021_1120), (6, 1, 0x10_0001), (7, 0, 0x10_1125), (7, 1, 0x1021_2122),
    (7, 2, 0x1011),
];

fn host(values: &[(u8, u8, u64)]) -> HostIdRegisters {
    HostIdRegisters::new(|register| {
        let found = values.iter().find(|(crm, op2, _)| (register.crm(), register.op2()) == (*crm, *op2));
        found.map_or(0, |(.., value)| *value)
    })
}

fn find(register: IdRegister, name: &str) -> &'static Row {
    ROWS.iter().find(|row| row.register == register && row.name.eq_ignore_ascii_case(name)).expect(name)
}

/// Every field that another reading of the specification knows in these registers has its row, at its place.
#[test]
fn positions_agree_with_a_second_opinion() {
    macro_rules! check {
        ($($register:ident, $module:ident::$type:ident: $($shift:ident)*;)*) => {
            $($({
                let row = find($register, stringify!($shift).strip_suffix("_SHIFT").unwrap());
                assert_eq!(u32::from(row.lsb), $module::$type::$shift, "{} of {}", row.name, stringify!($type));
            })*)*
        };
    }
    #[rustfmt::skip]
    check! {
        PFR0, el1::IdAa64pfr0El1: EL0_SHIFT EL1_SHIFT EL2_SHIFT EL3_SHIFT FP_SHIFT ADVSIMD_SHIFT GIC_SHIFT
            RAS_SHIFT SVE_SHIFT SEL2_SHIFT MPAM_SHIFT AMU_SHIFT DIT_SHIFT RME_SHIFT CSV2_SHIFT CSV3_SHIFT;
        PFR1, el1::IdAa64pfr1El1: BT_SHIFT SSBS_SHIFT MTE_SHIFT RAS_FRAC_SHIFT MPAM_FRAC_SHIFT SME_SHIFT
            RNDR_TRAP_SHIFT CSV2_FRAC_SHIFT NMI_SHIFT MTE_FRAC_SHIFT GCS_SHIFT THE_SHIFT MTEX_SHIFT DF2_SHIFT
            PFAR_SHIFT;
        PFR2, el1::IdAa64pfr2El1: MTEPERM_SHIFT MTESTOREONLY_SHIFT MTEFAR_SHIFT GCIE_SHIFT UINJ_SHIFT
            MTEEIRG_SHIFT FGDT_SHIFT MPAM2_SHIFT FPMR_SHIFT VMTE_SHIFT VMTETC_SHIFT VMTETCL_SHIFT;
        DFR0, el1::IdAa64dfr0El1: DEBUGVER_SHIFT TRACEVER_SHIFT PMUVER_SHIFT BRPS_SHIFT PMSS_SHIFT WRPS_SHIFT
            CTX_CMPS_SHIFT PMSVER_SHIFT DOUBLELOCK_SHIFT TRACEFILT_SHIFT TRACEBUFFER_SHIFT MTPMU_SHIFT BRBE_SHIFT
            EXTTRCBUFF_SHIFT HPMN0_SHIFT;
        DFR1, el1::IdAa64dfr1El1: SYSPMUID_SHIFT BRPS_SHIFT WRPS_SHIFT CTX_CMPS_SHIFT SPMU_SHIFT PMICNTR_SHIFT
            ABLE_SHIFT ITE_SHIFT EBEP_SHIFT DPFZS_SHIFT ABL_CMPS_SHIFT;
        ISAR0, el1::IdAa64isar0El1: AES_SHIFT SHA1_SHIFT SHA2_SHIFT CRC32_SHIFT ATOMIC_SHIFT RDM_SHIFT SHA3_SHIFT
            SM3_SHIFT SM4_SHIFT DP_SHIFT FHM_SHIFT TS_SHIFT TLB_SHIFT RNDR_SHIFT;
        ISAR1, el1::IdAa64isar1El1: DPB_SHIFT APA_SHIFT API_SHIFT JSCVT_SHIFT FCMA_SHIFT LRCPC_SHIFT GPA_SHIFT
            GPI_SHIFT FRINTTS_SHIFT SB_SHIFT SPECRES_SHIFT BF16_SHIFT DGH_SHIFT I8MM_SHIFT XS_SHIFT LS64_SHIFT;
        ISAR2, el1::IdAa64isar2El1: WFXT_SHIFT RPRES_SHIFT GPA3_SHIFT APA3_SHIFT MOPS_SHIFT BC_SHIFT
            PAC_FRAC_SHIFT CLRBHB_SHIFT SYSREG_128_SHIFT SYSINSTR_128_SHIFT PRFMSLC_SHIFT PCDPHINT_SHIFT
            RPRFM_SHIFT CSSC_SHIFT LUT_SHIFT ATS1A_SHIFT;
        ISAR3, el1::IdAa64isar3El1: CPA_SHIFT FAMINMAX_SHIFT TLBIW_SHIFT PACM_SHIFT LSFE_SHIFT OCCMO_SHIFT
            LSUI_SHIFT FPRCVT_SHIFT PAC_FRAC2_SHIFT MTETC_SHIFT LSCSHINT_SHIFT LSCP_SHIFT;
        MMFR0, el1::IdAa64mmfr0El1: PARANGE_SHIFT ASIDBITS_SHIFT BIGEND_SHIFT SNSMEM_SHIFT BIGENDEL0_SHIFT
            TGRAN16_SHIFT TGRAN64_SHIFT TGRAN4_SHIFT TGRAN16_2_SHIFT TGRAN64_2_SHIFT TGRAN4_2_SHIFT EXS_SHIFT
            FGT_SHIFT ECV_SHIFT;
        MMFR1, el1::IdAa64mmfr1El1: HAFDBS_SHIFT VMIDBITS_SHIFT VH_SHIFT HPDS_SHIFT LO_SHIFT PAN_SHIFT
            SPECSEI_SHIFT XNX_SHIFT TWED_SHIFT ETS_SHIFT HCX_SHIFT AFP_SHIFT NTLBPA_SHIFT TIDCP1_SHIFT CMOW_SHIFT
            ECBHB_SHIFT;
        MMFR2, el1::IdAa64mmfr2El1: CNP_SHIFT UAO_SHIFT LSM_SHIFT IESB_SHIFT VARANGE_SHIFT CCIDX_SHIFT NV_SHIFT
            ST_SHIFT AT_SHIFT IDS_SHIFT FWB_SHIFT TTL_SHIFT BBM_SHIFT EVT_SHIFT E0PD_SHIFT;
        MMFR3, el1::IdAa64mmfr3El1: TCRX_SHIFT SCTLRX_SHIFT S1PIE_SHIFT S2PIE_SHIFT S1POE_SHIFT S2POE_SHIFT
            AIE_SHIFT MEC_SHIFT D128_SHIFT D128_2_SHIFT SNERR_SHIFT ANERR_SHIFT SDERR_SHIFT ADERR_SHIFT
            SPEC_FPACC_SHIFT;
        MMFR4, el1::IdAa64mmfr4El1: POPS_SHIFT EIESB_SHIFT ASID2_SHIFT HACDBS_SHIFT FGWTE3_SHIFT NV_FRAC_SHIFT
            E2H0_SHIFT RMEGDI_SHIFT EAESR_SHIFT E3DSE_SHIFT TLBID_SHIFT SRMASK_SHIFT TPS_SHIFT TEV_SHIFT
            SCRX_SHIFT MTEFGT_SHIFT;
        ID_PFR0, aarch32::IdPfr0: STATE0_SHIFT STATE1_SHIFT STATE2_SHIFT STATE3_SHIFT CSV2_SHIFT AMU_SHIFT
            DIT_SHIFT RAS_SHIFT;
        ID_PFR1, aarch32::IdPfr1: PROGMOD_SHIFT SECURITY_SHIFT MPROGMOD_SHIFT VIRTUALIZATION_SHIFT GENTIMER_SHIFT
            SEC_FRAC_SHIFT VIRT_FRAC_SHIFT GIC_SHIFT;
        ID_PFR2, aarch32::IdPfr2: CSV3_SHIFT SSBS_SHIFT RAS_FRAC_SHIFT;
        ID_DFR0, aarch32::IdDfr0: COPDBG_SHIFT COPSDBG_SHIFT MMAPDBG_SHIFT COPTRC_SHIFT MMAPTRC_SHIFT
            MPROFDBG_SHIFT PERFMON_SHIFT TRACEFILT_SHIFT;
        ID_DFR1, aarch32::IdDfr1: MTPMU_SHIFT HPMN0_SHIFT;
        ID_MMFR0, aarch32::IdMmfr0: VMSA_SHIFT PMSA_SHIFT OUTERSHR_SHIFT SHARELVL_SHIFT TCM_SHIFT AUXREG_SHIFT
            FCSE_SHIFT INNERSHR_SHIFT;
        ID_MMFR1, aarch32::IdMmfr1: L1HVDVA_SHIFT L1UNIVA_SHIFT L1HVDSW_SHIFT L1UNISW_SHIFT L1HVD_SHIFT
            L1UNI_SHIFT L1TSTCLN_SHIFT BPRED_SHIFT;
        ID_MMFR2, aarch32::IdMmfr2: L1HVDFG_SHIFT L1HVDBG_SHIFT L1HVDRNG_SHIFT HVDTLB_SHIFT UNITLB_SHIFT
            MEMBARR_SHIFT WFISTALL_SHIFT HWACCFLG_SHIFT;
        ID_MMFR3, aarch32::IdMmfr3: CMAINTVA_SHIFT CMAINTSW_SHIFT BPMAINT_SHIFT MAINTBCST_SHIFT PAN_SHIFT
            COHWALK_SHIFT CMEMSZ_SHIFT SUPERSEC_SHIFT;
        ID_MMFR4, aarch32::IdMmfr4: SPECSEI_SHIFT AC2_SHIFT XNX_SHIFT CNP_SHIFT HPDS_SHIFT LSM_SHIFT CCIDX_SHIFT
            EVT_SHIFT;
        ID_MMFR5, aarch32::IdMmfr5: ETS_SHIFT NTLBPA_SHIFT;
        ID_ISAR0, aarch32::IdIsar0: SWAP_SHIFT BITCOUNT_SHIFT BITFIELD_SHIFT CMPBRANCH_SHIFT COPROC_SHIFT
            DEBUG_SHIFT DIVIDE_SHIFT;
        ID_ISAR1, aarch32::IdIsar1: ENDIAN_SHIFT EXCEPT_SHIFT EXCEPT_AR_SHIFT EXTEND_SHIFT IFTHEN_SHIFT
            IMMEDIATE_SHIFT INTERWORK_SHIFT JAZELLE_SHIFT;
        ID_ISAR2, aarch32::IdIsar2: LOADSTORE_SHIFT MEMHINT_SHIFT MULTIACCESSINT_SHIFT MULT_SHIFT MULTS_SHIFT
            MULTU_SHIFT PSR_AR_SHIFT REVERSAL_SHIFT;
        ID_ISAR3, aarch32::IdIsar3: SATURATE_SHIFT SIMD_SHIFT SVC_SHIFT SYNCHPRIM_SHIFT TABBRANCH_SHIFT
            T32COPY_SHIFT TRUENOP_SHIFT T32EE_SHIFT;
        ID_ISAR4, aarch32::IdIsar4: UNPRIV_SHIFT WITHSHIFTS_SHIFT WRITEBACK_SHIFT SMC_SHIFT BARRIER_SHIFT
            SYNCHPRIM_FRAC_SHIFT PSR_M_SHIFT SWP_FRAC_SHIFT;
        ID_ISAR5, aarch32::IdIsar5: SEVL_SHIFT AES_SHIFT SHA1_SHIFT SHA2_SHIFT CRC32_SHIFT RDM_SHIFT VCMA_SHIFT;
        ID_ISAR6, aarch32::IdIsar6: JSCVT_SHIFT DP_SHIFT FHM_SHIFT SB_SHIFT SPECRES_SHIFT BF16_SHIFT I8MM_SHIFT
            CLRBHB_SHIFT;
    }
}

/// What a full guest sees of a machine, as (CRm, op2, value) of the registers that are not zero.
fn seen(values: &[(u8, u8, u64)], features: &GuestFeatures) -> Vec<(u8, u8, u64)> {
    let guest = GuestIdRegisters::new(&host(values), features);
    IdRegister::all()
        .map(|register| (register.crm(), register.op2(), guest.get(register)))
        .filter(|(.., value)| *value != 0)
        .collect()
}

#[test]
fn guests_of_known_machines() {
    let aarch64 = |machine| -> Vec<_> { seen(machine, &FULL).into_iter().filter(|(crm, ..)| *crm >= 4).collect() };
    let max = [
        (4, 0, 0x1101_0000_2111_0012),
        (4, 1, 0x21),
        (5, 0, 0xf0_1030_5608),
        (6, 0, 0x1221_1111_1021_2120),
        (6, 1, 0x0111_2111_1021_1502),
        (6, 2, 0x10_0012),
        (7, 0, 0x111_1020_0125),
        (7, 1, 0x0010_1020_0030_2002),
        (7, 2, 0x1021_0001_1001_1011),
    ];
    assert_eq!(aarch64(CPU_MAX), max);
    let cortex_a72 = [(4, 0, 0x0100_0012), (5, 0, 0xf0_1030_5106), (6, 0, 0x1_1120), (7, 0, 0x111_0000_0124)];
    assert_eq!(aarch64(CORTEX_A72), cortex_a72);
    let neoverse_n1 = [
        (4, 0, 0x1100_0000_1111_0012),
        (4, 1, 0x20),
        (5, 0, 0xf0_1030_5408),
        (6, 0, 0x1000_1021_1120),
        (6, 1, 0x10_0001),
        (7, 0, 0x111_0010_0125),
        (7, 1, 0x20_2002),
        (7, 2, 0x1011),
    ];
    assert_eq!(aarch64(NEOVERSE_N1), neoverse_n1);
}

#[test]
fn aarch32_registers_are_there_when_el0_has_aarch32() {
    let guest = GuestIdRegisters::new(&host(CPU_MAX), &FULL);
    assert_eq!(guest.get(ID_PFR0), 0x0101_0131);
    assert_eq!(guest.get(ID_PFR1), 0x1001_0001);
    assert_eq!(guest.get(ID_DFR0), 0x600_0008);
    assert_eq!(guest.get(ID_MMFR4), 0x2_1010);
    assert_eq!(guest.get(MVFR1), 0x1321_1111);
    let only_64 = HostIdRegisters::new(|register| match host(CPU_MAX).get(register) {
        value if register == PFR0 => value & !0xf | 1,
        value => value,
    });
    let guest = GuestIdRegisters::new(&only_64, &FULL);
    assert!(IdRegister::all().filter(|register| register.is_aarch32()).all(|register| guest.get(register) == 0));
    assert_eq!(guest.get(PFR0) & 0xff, 0x11);
}

#[test]
fn physical_address_size() {
    let range = |ipa_bits| GuestIdRegisters::new(&host(CPU_MAX), &GuestFeatures { ipa_bits, ..FULL }).get(MMFR0) & 0xf;
    let expected = [(0, 0), (32, 0), (36, 1), (39, 1), (40, 2), (42, 3), (44, 4), (47, 4), (48, 5), (52, 5), (64, 5)];
    for (bits, encoding) in expected {
        assert_eq!(range(bits), encoding, "{bits}");
    }
    assert_eq!(GuestIdRegisters::new(&host(CORTEX_A72), &FULL).get(MMFR0) & 0xf, 4, "never more than the machine's");
}

#[test]
fn gic_follows_the_vm() {
    let guest = GuestIdRegisters::new(&host(CPU_MAX), &GuestFeatures { gic_system_registers: false, ..FULL });
    assert_eq!((guest.get(PFR0) >> 24 & 0xf, guest.get(ID_PFR1) >> 28), (0, 0));
}

#[test]
fn a_pmu_is_the_architecture_s_or_none() {
    let version = |value: u64| {
        let machine = HostIdRegisters::new(|register| if register == DFR0 { value << 8 } else { 0 });
        GuestIdRegisters::new(&machine, &FULL).pmu_version()
    };
    for (machine, guest) in [(0, 0), (1, 1), (4, 4), (6, 6), (7, 6), (9, 6), (0xf, 0)] {
        assert_eq!(version(machine), guest);
    }
    let mut without = GuestIdRegisters::new(&host(CPU_MAX), &FULL);
    without.hide_pmu();
    assert_eq!((without.pmu_version(), without.get(DFR0), without.get(ID_DFR0)), (0, 0xf0_1030_5008, 8));
}

#[test]
fn ssbs() {
    assert!(GuestIdRegisters::new(&host(CPU_MAX), &FULL).has_ssbs());
    assert!(!GuestIdRegisters::new(&host(CORTEX_A72), &FULL).has_ssbs());
}

#[test]
fn a_machine_of_two_kinds_of_cpu() {
    let common = host(CPU_MAX).intersect(&host(NEOVERSE_N1));
    let guest = GuestIdRegisters::new(&common, &FULL);
    assert_eq!(guest.get(ISAR1), 0x10_0001, "no PAuth, whose algorithms differ");
    let with = |fp: u8| HostIdRegisters::new(|register| if register == PFR0 { u64::from(fp) << 16 } else { 0 });
    for (a, b, least) in [(0, 1, 0), (0xf, 1, 0xf), (0xf, 0, 0xf), (1, 1, 1)] {
        assert_eq!(with(a).intersect(&with(b)).get(PFR0) >> 16 & 0xf, least);
    }
}

#[test]
fn encodings() {
    assert_eq!(IdRegister::all().count(), COUNT);
    for register in IdRegister::all() {
        assert_eq!(IdRegister::new(register.crm(), register.op2()), Some(register));
    }
    for (crm, op2) in [(0, 0), (8, 0), (1, 8), (255, 255)] {
        assert_eq!(IdRegister::new(crm, op2), None);
    }
    assert_eq!(IdRegister::new(4, 0), Some(PFR0));
    assert_eq!(IdRegister::new(7, 4), Some(MMFR4));
}

#[test]
fn fields_may_be_lowered() {
    let mut guest = GuestIdRegisters::new(&host(CPU_MAX), &FULL);
    let pfr0 = guest.get(PFR0);
    // EL0 without AArch32, no DIT: possible. More than there is, or another FP: not.
    let less = pfr0 & !0xf & !(0xf << 48) | 1;
    assert_eq!(guest.set(PFR0, less, false), Ok(()));
    assert_eq!(guest.get(PFR0), less);
    for wrong in [less | 2 << 32, less | 1 << 12, less & !(0xf << 16) | 0xf << 16, less + (1 << 60)] {
        assert_eq!(guest.set(PFR0, wrong, false), Err(Refused::Unsupported), "{wrong:#x}");
    }
    assert_eq!(guest.set(PFR0, pfr0, false), Ok(()), "what it could be at most");
    assert_eq!(guest.set(PFR0, less, true), Err(Refused::Frozen));
    assert_eq!(guest.set(PFR0, pfr0, true), Ok(()));
    assert_eq!(guest.get(PFR0), pfr0);
}

#[test]
fn debug_and_pmu_versions() {
    let mut guest = GuestIdRegisters::new(&host(CPU_MAX), &FULL);
    let with_pmu = guest.get(DFR0);
    assert_eq!(guest.set(DFR0, with_pmu - (1 << 8), false), Ok(()));
    assert_eq!(guest.pmu_version(), (with_pmu >> 8 & 0xf) as u8 - 1);
    guest.hide_pmu();
    let dfr0 = guest.get(DFR0);
    assert_eq!(guest.set(DFR0, with_pmu, false), Err(Refused::Unsupported), "a PMU that was not asked for");
    let with_debug = |version: u64| dfr0 & !0xf | version;
    for (version, result) in [(5, Err(Refused::Unsupported)), (6, Ok(())), (8, Ok(())), (9, Err(Refused::Unsupported))]
    {
        assert_eq!(guest.set(DFR0, with_debug(version), false), result, "{version}");
    }
    assert_eq!(guest.set(DFR0, dfr0 | 0xf << 8, false), Ok(()), "an implementation-defined PMU is none");
    assert_eq!(guest.get(DFR0), dfr0);
    assert_eq!(guest.set(DFR0, dfr0 | 0xf << 8, true), Ok(()));
    assert_eq!(guest.set(DFR0, dfr0 - (1 << 12), false), Err(Refused::Unsupported), "BRPs");
    assert_eq!(guest.set(DFR0, dfr0 - (1 << 20), false), Ok(()), "WRPs");
    assert_eq!(guest.set(DFR0, with_debug(5), true), Err(Refused::Unsupported), "comes first");
    let id_dfr0 = guest.get(ID_DFR0);
    for (value, result) in
        [(id_dfr0 & !0xf | 6, Ok(())), (id_dfr0 & !0xf | 5, Err(Refused::Unsupported)), (id_dfr0 | 0xf << 24, Ok(()))]
    {
        assert_eq!(guest.set(ID_DFR0, value, false), result, "{value:#x}");
    }
    assert_eq!(guest.set(ID_DFR0, id_dfr0 | 1 << 24, true), Err(Refused::Unsupported));
}

#[test]
fn writes_without_aarch32_are_ignored() {
    let mut guest = GuestIdRegisters::new(&host(CPU_MAX), &FULL);
    assert_eq!(guest.set(ID_ISAR0, 0, false), Ok(()));
    assert_eq!(guest.get(ID_ISAR0), 0);
    assert_ne!(guest.writable(ID_DFR0), 0);
    let only_64 = HostIdRegisters::new(|register| match host(CPU_MAX).get(register) {
        value if register == PFR0 => value & !0xf | 1,
        value => value,
    });
    let mut guest = GuestIdRegisters::new(&only_64, &FULL);
    assert_eq!(guest.set(ID_ISAR0, u64::MAX, true), Ok(()));
    assert_eq!((guest.get(ID_ISAR0), guest.writable(ID_DFR0)), (0, 0));
}

#[test]
fn pointer_authentication_can_be_hidden() {
    let mut guest = GuestIdRegisters::new(&host(CPU_MAX), &FULL);
    let before = guest.clone();
    assert!(guest.has_pointer_authentication());
    guest.hide_pointer_authentication();
    assert!(!guest.has_pointer_authentication());
    for register in IdRegister::all() {
        let hidden = match register {
            ISAR1 => 0xff00_0ff0,
            ISAR2 => 0xf00_ff00,
            _ => 0,
        };
        assert_eq!(guest.get(register), before.get(register) & !hidden);
    }
    assert_eq!(guest.set(ISAR1, before.get(ISAR1), false), Err(Refused::Unsupported));
    assert!(!GuestIdRegisters::new(&host(CORTEX_A72), &FULL).has_pointer_authentication());
}

/// KVM_ARM_GET_REG_WRITABLE_MASKS of Linux 6.12 on a machine with everything, where keel's rows name the same fields.
#[test]
fn writable_masks_are_kvm_s() {
    let guest = GuestIdRegisters::new(&host(CPU_MAX), &FULL);
    for (register, mask) in [
        (PFR0, 0xffff_00f0_0f00_ffff),
        (PFR1, 0x0000_000f_0000_00ff),
        (DFR0, 0x0000_00f0_00f0_0f0f),
        (ISAR0, 0xffff_ffff_ffff_fff0),
        (ISAR1, 0xffff_ffff_00ff_f00f),
        (MMFR0, 0xff00_f000_ffff_ff0f),
        (MMFR1, 0xffff_f0f0_0fff_f00f),
        (MMFR2, 0xf0ff_000f_f00f_ffff),
        (MMFR3, 0x0000_0000_000f_0f0f),
        (ISAR2, 0xffff_0fff_ffff_00ff),
        (ISAR3, 0),
        (MMFR4, 0),
        (ID_DFR0, 0xffff_ffff),
        (ID_PFR0, 0xffff_ffff),
        (ID_DFR1, 0),
    ] {
        assert_eq!(guest.writable(register), mask, "{register:?}: {:#x}", guest.writable(register));
    }
}

fn any_machine() -> impl Strategy<Value = HostIdRegisters> {
    proptest::collection::vec(any::<u64>(), COUNT)
        .prop_map(|values| HostIdRegisters::new(|register| values[usize::from(register.0)]))
}

proptest! {
    /// Whatever the machine is, a guest sees no field that has no row, no hidden one, and none above its cap or the
    /// machine's.
    #[test]
    fn allow_list(machine in any_machine(), ipa_bits in 0u32..64, gic_system_registers in any::<bool>()) {
        let guest = GuestIdRegisters::new(&machine, &GuestFeatures { ipa_bits, gic_system_registers });
        for register in IdRegister::all() {
            for lsb in (0..64).step_by(4) {
                let (field, host) = (guest.get(register) >> lsb & 0xf, machine.get(register) >> lsb & 0xf);
                let row = ROWS.iter().find(|row| row.register == register && u32::from(row.lsb) == lsb);
                let signed = |field: u64| (field as i64) << 60 >> 60;
                match row {
                    None => prop_assert_eq!(field, 0),
                    Some(_) if register.is_aarch32() && machine.get(PFR0) & 0xf != 2 => prop_assert_eq!(field, 0),
                    Some(row) => match row.policy {
                        Policy::Hide => prop_assert_eq!(field, u64::from(row.absent)),
                        Policy::Pass => prop_assert_eq!(field, host),
                        Policy::Cap(most) if row.order == Order::Signed => {
                            prop_assert_eq!(signed(field), signed(host).min(signed(most.into())));
                        }
                        Policy::Cap(most) => prop_assert_eq!(field, host.min(most.into())),
                        Policy::Pmu => prop_assert_eq!(field, if host == 0xf { 0 } else { host.min(6) }),
                        Policy::Gic | Policy::PhysicalAddressSize => prop_assert!(field <= host && field <= 5),
                    },
                }
            }
        }
    }

    /// Whatever is written, no field says more than it could, what may not change does not, and what is refused changes
    /// nothing; what was read can be written back, before and after a vCPU ran.
    #[test]
    fn writes(machine in any_machine(), values in proptest::collection::vec(any::<u64>(), COUNT), by_field: bool) {
        let mut guest = GuestIdRegisters::new(&machine, &FULL);
        let limits = guest.clone();
        for (register, noise) in IdRegister::all().zip(values) {
            let limit = limits.get(register);
            let mask = if by_field { 0xf << (noise % 16 * 4) } else { noise };
            let value = limit & !mask | noise & mask;
            let before = guest.get(register);
            let result = guest.set(register, value, false);
            let after = guest.get(register);
            if result.is_err() {
                prop_assert_eq!(after, before);
            }
            prop_assert_eq!(after & !guest.writable(register), limit & !guest.writable(register));
            for row in ROWS.iter().filter(|row| row.register == register) {
                let field = |value: u64| (value >> row.lsb & 0xf) as u8;
                let (now, most) = (field(after), field(limit));
                let fits = match row.order {
                    Order::Unsigned => now <= most,
                    Order::Signed => now ^ 8 <= most ^ 8,
                    // What names different things may not be there at all.
                    Order::Exact => now == most || now == row.absent,
                };
                // SpecSEI: more says less.
                prop_assert!(fits || row.name == "SpecSEI", "{}: {now} {most}", row.name);
            }
            let plausible = plausible(register, after).is_some() || register.is_aarch32() && !guest.has_aarch32();
            if plausible {
                prop_assert_eq!(guest.set(register, after, false), Ok(()));
                prop_assert_eq!(guest.set(register, after, true), Ok(()));
            }
        }
    }

    /// The common registers do not depend on the order of CPUs, and a machine of equal CPUs is as one of them.
    #[test]
    fn intersection(a in any_machine(), b in any_machine(), c in any_machine()) {
        prop_assert_eq!(a.intersect(&b), b.intersect(&a));
        prop_assert_eq!(GuestIdRegisters::new(&a.intersect(&a), &FULL), GuestIdRegisters::new(&a, &FULL));
        let both = GuestIdRegisters::new(&a.intersect(&b), &FULL);
        for row in ROWS.iter().filter(|row| row.policy == Policy::Pass && !row.register.is_aarch32()) {
            let field = |values: u64| values >> row.lsb & 0xf;
            let (a, b) = (field(a.get(row.register)), field(b.get(row.register)));
            let expected = match row.order {
                Order::Unsigned => a.min(b),
                Order::Signed => if (a ^ 8) < (b ^ 8) { a } else { b },
                Order::Exact => if a == b { a } else { 0 },
            };
            prop_assert_eq!(field(both.get(row.register)), expected, "{}", row.name);
        }
        // Exact fields that two CPUs lost stay lost, whatever the third one has.
        let all = a.intersect(&b).intersect(&c);
        prop_assert_eq!(all.intersect(&a), all.intersect(&b));
    }
}
