//! Values of the EL2 control registers, as bits (Arm ARM D24.2).
//!
//! One place for the numbers that assembly and Rust share; each is a `const` so that the assembly takes it by name.

/// HCR_EL2.VM: stage 2 on.
pub const HCR_VM: u64 = 1 << 0;
/// HCR_EL2.SWIO: a guest's DC ISW cleans too, so it cannot drop anyone's dirty lines.
pub const HCR_SWIO: u64 = 1 << 1;
/// HCR_EL2.PTW: a stage-1 walk into Device memory faults.
pub const HCR_PTW: u64 = 1 << 2;
/// HCR_EL2.FMO, IMO, AMO: physical FIQ, IRQ and SError are taken to EL2; virtual ones are enabled.
pub const HCR_FMO_IMO_AMO: u64 = (1 << 3) | (1 << 4) | (1 << 5);
/// HCR_EL2.VSE: a virtual SError is pending.
pub const HCR_VSE: u64 = 1 << 8;
/// HCR_EL2.FB and BSU = inner shareable: a guest's TLB, branch and barrier operations reach all CPUs of the domain.
pub const HCR_FB_BSU_IS: u64 = (1 << 9) | (1 << 10);
/// HCR_EL2.TWI: WFI traps.
pub const HCR_TWI: u64 = 1 << 13;
/// HCR_EL2.TWE: WFE traps.
pub const HCR_TWE: u64 = 1 << 14;
/// HCR_EL2.TID1: REVIDR_EL1, AIDR_EL1 and SMIDR_EL1 trap.
pub const HCR_TID1: u64 = 1 << 16;
/// HCR_EL2.TID3: reads of the ID registers trap.
pub const HCR_TID3: u64 = 1 << 18;
/// HCR_EL2.TSC: SMC traps.
pub const HCR_TSC: u64 = 1 << 19;
/// HCR_EL2.TIDCP: implementation-defined registers trap.
pub const HCR_TIDCP: u64 = 1 << 20;
/// HCR_EL2.TACR: ACTLR_EL1 traps.
pub const HCR_TACR: u64 = 1 << 21;
/// HCR_EL2.RW: EL1 is AArch64.
pub const HCR_RW: u64 = 1 << 31;
/// HCR_EL2.TLOR: the LORegion registers trap.
pub const HCR_TLOR: u64 = 1 << 35;
/// HCR_EL2.TERR: the RAS error-record registers trap.
pub const HCR_TERR: u64 = 1 << 36;
/// HCR_EL2.TEA: synchronous external aborts are taken to EL2.
pub const HCR_TEA: u64 = 1 << 37;
/// HCR_EL2.APK, API: pointer-authentication keys and instructions do not trap.
pub const HCR_APK_API: u64 = (1 << 40) | (1 << 41);
/// HCR_EL2.FWB: stage 2 decides the memory type (FEAT_S2FWB).
pub const HCR_FWB: u64 = 1 << 46;
/// HCR_EL2.ATA: allocation tags are accessible.
pub const HCR_ATA: u64 = 1 << 56;

/// HCR_EL2.TID5: GMID_EL1 traps.
pub const HCR_TID5: u64 = 1 << 58;

/// HCR_EL2 while an EL1 kernel owns the machine without stage 2 (hyp-stub ABI).
pub const HCR_EL2_HOST: u64 = HCR_RW | HCR_APK_API | HCR_ATA;

/// HCR_EL2 for a guest on a CPU without optional features; [`guest_hcr`] adds those.
///
/// Set/way cache maintenance is not trapped: it acts on this CPU's caches only, SWIO makes an invalidate a
/// clean-and-invalidate, and vCPUs do not migrate, so a guest gets exactly what the instruction gives on a bare machine.
pub const HCR_GUEST: u64 = HCR_VM
    | HCR_SWIO
    | HCR_PTW
    | HCR_FMO_IMO_AMO
    | HCR_FB_BSU_IS
    | HCR_TID1
    | HCR_TID3
    | HCR_TID5
    | HCR_TSC
    | HCR_TIDCP
    | HCR_TACR
    | HCR_RW;

/// HCR_EL2 for a guest, given the CPU's ID_AA64MMFR1_EL1, ID_AA64PFR0_EL1 and whether it has pointer authentication.
pub const fn guest_hcr(mmfr1: u64, pfr0: u64, pauth: bool) -> u64 {
    let mut hcr = HCR_GUEST;
    if (mmfr1 >> 16) & 0xf != 0 {
        hcr |= HCR_TLOR;
    }
    if (pfr0 >> 28) & 0xf != 0 {
        hcr |= HCR_TERR | HCR_TEA;
    }
    if pauth {
        hcr |= HCR_APK_API;
    }
    hcr
}

/// SCTLR_EL2 with MMU, caches and alignment checks off: the RES1 bits.
pub const SCTLR_EL2_MMU_OFF: u64 = 0x30c5_0830;
/// SCTLR_EL2 while keel runs: MMU (M), data cache (C), instruction cache (I), WXN and SP alignment check (SA).
pub const SCTLR_EL2_KEEL: u64 = SCTLR_EL2_MMU_OFF | (1 << 0) | (1 << 2) | (1 << 3) | (1 << 12) | (1 << 19);
/// SCTLR_EL1 that the stub leaves: LSMAOE, nTLSMD, EIS, TSCXT, EOS.
pub const SCTLR_EL1_RESET: u64 = 0x3050_0800;

/// CPTR_EL2 for a guest: SVE and SME trap (TZ, TSM), FP does not; AMU (TAM) and trace (TTA) trap.
pub const CPTR_GUEST: u64 = 0x33ff | (1 << 30) | (1 << 20);

/// MDCR_EL2 bits that hide the PMU, profiling and trace from a guest: TPMCR, TPM, TPMS, TTRF.
pub const MDCR_GUEST: u64 = (1 << 5) | (1 << 6) | (1 << 14) | (1 << 19);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_value_is_the_stub_abi_one() {
        assert_eq!(HCR_EL2_HOST, 0x0100_0300_8000_0000);
    }

    #[test]
    fn optional_traps_follow_the_id_fields() {
        assert_eq!(guest_hcr(0, 0, false), HCR_GUEST);
        assert_eq!(guest_hcr(1 << 16, 1 << 28, true), HCR_GUEST | HCR_TLOR | HCR_TERR | HCR_TEA | HCR_APK_API);
    }
}
