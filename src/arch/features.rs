//! Optional features of this machine that change what keel does, read from the ID registers.
//!
//! Bring-up checks that every CPU agrees, so one CPU's answer holds for all.

use super::sysreg::read_sysreg;

fn field(register: u64, lsb: u32) -> u64 {
    (register >> lsb) & 0xf
}

/// FEAT_S2FWB: stage 2 can make all guest accesses cacheable (ID_AA64MMFR2_EL1.FWB).
#[inline]
pub fn has_fwb() -> bool {
    field(read_sysreg!("S3_0_C0_C7_2"), 40) != 0
}

/// FEAT_PAuth, with any algorithm (ID_AA64ISAR1_EL1.APA, API; ID_AA64ISAR2_EL1.APA3).
pub fn has_pauth() -> bool {
    let isar1 = read_sysreg!("S3_0_C0_C6_1");
    field(isar1, 4) != 0 || field(isar1, 8) != 0 || field(read_sysreg!("S3_0_C0_C6_2"), 12) != 0
}

/// FEAT_RAS (ID_AA64PFR0_EL1.RAS).
pub fn has_ras() -> bool {
    field(read_sysreg!("S3_0_C0_C4_0"), 28) != 0
}

/// FEAT_VMID16 (ID_AA64MMFR1_EL1.VMIDBits).
pub fn has_vmid16() -> bool {
    field(read_sysreg!("S3_0_C0_C7_1"), 4) == 2
}

/// ID_AA64DFR0_EL1.PMUVer from FEAT_PMUv3p5 on: counters of 64 bits, and MDCR_EL2.HCCD.
pub const PMU_V3P5: u64 = 6;

/// FEAT_PMUv3 (ID_AA64DFR0_EL1.PMUVer).
#[inline]
pub fn has_pmu() -> bool {
    pmu_version() != 0
}

/// The version of FEAT_PMUv3 as ID_AA64DFR0_EL1.PMUVer has it; 0 without, and for one that is not the architecture's.
#[inline]
pub fn pmu_version() -> u64 {
    match field(read_sysreg!("S3_0_C0_C5_0"), 8) {
        0xf => 0,
        version => version,
    }
}

/// PMMIR_EL1 is there: FEAT_PMUv3p4.
pub fn has_pmmir() -> bool {
    pmu_version() >= 5
}

/// FEAT_HPMN0 (ID_AA64DFR0_EL1.HPMN0): guests can have no event counter at all.
pub fn has_hpmn0() -> bool {
    field(read_sysreg!("S3_0_C0_C5_0"), 60) == 1
}

/// EL0 can be in AArch32 (ID_AA64PFR0_EL1.EL0).
pub fn has_aarch32_el0() -> bool {
    field(read_sysreg!("S3_0_C0_C4_0"), 0) == 2
}

/// EL1 can be in AArch32 (ID_AA64PFR0_EL1.EL1).
pub fn has_aarch32_el1() -> bool {
    field(read_sysreg!("S3_0_C0_C4_0"), 4) == 2
}

/// Whether the CPU has features that guests are not shown, and whose EL2 controls or registers do not change hands with the
/// vCPU: SVE, SME, FEAT_HCX, FEAT_FGT, MPAM.
pub fn has_state_that_stays() -> bool {
    let has_sve = field(read_sysreg!("id_aa64pfr0_el1"), 32) != 0;
    let has_sme = field(read_sysreg!("id_aa64pfr1_el1"), 24) != 0;
    has_sve || has_sme || has_hcx() || has_fgt() || has_mpam()
}

/// FEAT_HCX (ID_AA64MMFR1_EL1.HCX).
pub fn has_hcx() -> bool {
    field(read_sysreg!("S3_0_C0_C7_1"), 40) != 0
}

/// FEAT_FGT (ID_AA64MMFR0_EL1.FGT).
pub fn has_fgt() -> bool {
    field(read_sysreg!("S3_0_C0_C7_0"), 56) != 0
}

/// FEAT_FGT2 (ID_AA64MMFR0_EL1.FGT).
pub fn has_fgt2() -> bool {
    field(read_sysreg!("S3_0_C0_C7_0"), 56) >= 2
}

/// FEAT_MPAM (ID_AA64PFR0_EL1.MPAM, ID_AA64PFR1_EL1.MPAM_frac).
pub fn has_mpam() -> bool {
    field(read_sysreg!("S3_0_C0_C4_0"), 40) != 0 || field(read_sysreg!("S3_0_C0_C4_1"), 16) != 0
}

/// Breakpoints and watchpoints (ID_AA64DFR0_EL1.BRPs, WRPs: number minus one).
pub fn debug_registers() -> (usize, usize) {
    let dfr0 = read_sysreg!("S3_0_C0_C5_0");
    (field(dfr0, 12) as usize + 1, field(dfr0, 20) as usize + 1)
}

/// The GIC system-register interface (ID_AA64PFR0_EL1.GIC).
pub fn has_gic_system_registers() -> bool {
    field(read_sysreg!("S3_0_C0_C4_0"), 24) != 0
}

/// FEAT_PAN (ID_AA64MMFR1_EL1.PAN).
pub fn has_pan() -> bool {
    field(read_sysreg!("S3_0_C0_C7_1"), 20) != 0
}

/// FEAT_SSBS (ID_AA64PFR1_EL1.SSBS).
pub fn has_ssbs() -> bool {
    field(read_sysreg!("S3_0_C0_C4_1"), 4) != 0
}

/// FEAT_RNG (ID_AA64ISAR0_EL1.RNDR).
pub fn has_rng() -> bool {
    field(read_sysreg!("S3_0_C0_C6_0"), 60) != 0
}

/// FEAT_MOPS (ID_AA64ISAR2_EL1.MOPS): instructions that set and copy memory.
pub fn has_mops() -> bool {
    field(read_sysreg!("S3_0_C0_C6_2"), 16) != 0
}

/// FEAT_CCIDX (ID_AA64MMFR2_EL1.CCIDX): CCSIDR_EL1 has its wide format.
pub fn has_ccidx() -> bool {
    field(read_sysreg!("S3_0_C0_C7_2"), 20) != 0
}

/// FEAT_CSV2 (ID_AA64PFR0_EL1.CSV2): branch predictions do not cross contexts.
pub fn is_immune_to_spectre_v2() -> bool {
    field(read_sysreg!("S3_0_C0_C4_0"), 56) != 0
}

/// FEAT_CSV2_3, or FEAT_ECBHB (ID_AA64MMFR1_EL1.ECBHB): branch history does not cross exception levels.
pub fn is_immune_to_spectre_bhb() -> bool {
    field(read_sysreg!("S3_0_C0_C4_0"), 56) >= 3 || field(read_sysreg!("S3_0_C0_C7_1"), 60) != 0
}
