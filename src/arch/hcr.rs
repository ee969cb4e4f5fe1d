//! Values of the EL2 control registers (Arm ARM D24.2): which guests get which traps.
//!
//! One place for the numbers that assembly and Rust share. Positions come from `aarch64-cpu`; each value is a `const`, so
//! that the assembly takes it by name.

use aarch64_cpu::registers::{CPTR_EL2, HCR_EL2, MDCR_EL2, SCTLR_EL2};

/// HCR_EL2: physical FIQ, IRQ and SError are taken to EL2, and virtual ones are enabled.
pub const HCR_FMO_IMO_AMO: u64 =
    HCR_EL2::FMO::SET.value | HCR_EL2::IMO::EnableVirtualIRQ.value | HCR_EL2::AMO::SET.value;
/// HCR_EL2.AMO: physical SErrors are taken to EL2, and virtual ones are enabled.
pub const HCR_AMO: u64 = HCR_EL2::AMO::SET.value;
/// HCR_EL2.VSE: a virtual SError is pending, until the guest takes or defers it.
pub const HCR_VSE: u64 = HCR_EL2::VSE::SET.value;
/// HCR_EL2.VI: a virtual IRQ is pending.
pub const HCR_VI: u64 = HCR_EL2::VI::SET.value;
/// HCR_EL2.VF: a virtual FIQ is pending.
pub const HCR_VF: u64 = HCR_EL2::VF::SET.value;
/// HCR_EL2.RW: EL1 is AArch64.
pub const HCR_RW: u64 = HCR_EL2::RW::EL1IsAarch64.value;
/// HCR_EL2.TWI: WFI traps.
pub const HCR_TWI: u64 = HCR_EL2::TWI::SET.value;
/// HCR_EL2.FWB: stage 2 decides the memory type (FEAT_S2FWB).
pub const HCR_FWB: u64 = HCR_EL2::FWB::SET.value;
/// HCR_EL2.API and APK: pointer authentication does not trap.
pub const HCR_PAUTH: u64 = HCR_EL2::API::SET.value | HCR_EL2::APK::SET.value;

/// HCR_EL2 while an EL1 kernel owns the machine without stage 2 (hyp-stub ABI).
pub const HCR_EL2_HOST: u64 = HCR_EL2::RW::EL1IsAarch64.value | HCR_PAUTH | HCR_EL2::ATA::SET.value;

/// HCR_EL2 over a stub that relays the kernel's PSCI calls: its SMCs trap.
pub const HCR_EL2_OWNER: u64 = HCR_EL2_HOST | HCR_EL2::TSC::EnableTrapEl1SmcToEl2.value;

/// HCR_EL2 of a kernel that was moved to EL2 (hyp-stub ABI, FINALISE_EL2).
pub const HCR_EL2_VHE: u64 = HCR_EL2::RW::EL1IsAarch64.value | HCR_EL2::TGE::SET.value | HCR_EL2::E2H::SET.value;

/// HCR_EL2 for a guest on a CPU without optional features; [`guest_hcr`] adds those.
///
/// * Stage 2 is on (VM); a stage-1 walk into Device memory faults (PTW).
/// * A guest's TLB and cache maintenance and barriers reach its other CPUs (FB, BSU).
/// * ID registers (TID1, TID3, TID5), SMC (TSC), implementation-defined registers (TIDCP) and ACTLR_EL1 (TACR) trap.
/// * Cache type registers do not (TID2): guests read the machine's, as they would without keel.
/// * Set/way cache maintenance does not (TSW): it acts on this CPU's caches only, SWIO makes an invalidate a
///   clean-and-invalidate, so that nobody's dirty lines are lost, and vCPUs do not migrate. A guest gets what the instruction
///   gives on a bare machine, at its cost.
pub const HCR_GUEST: u64 = HCR_EL2::VM::Enable.value
    | HCR_EL2::SWIO::SET.value
    | HCR_EL2::PTW::SET.value
    | HCR_FMO_IMO_AMO
    | HCR_EL2::FB::SET.value
    | HCR_EL2::BSU::InnerShareable.value
    | HCR_EL2::TID1::SET.value
    | HCR_EL2::TID3::SET.value
    | HCR_EL2::TID5::SET.value
    | HCR_EL2::TSC::EnableTrapEl1SmcToEl2.value
    | HCR_EL2::TIDCP::SET.value
    | HCR_EL2::TACR::SET.value
    | HCR_EL2::RW::EL1IsAarch64.value;

/// HCR_EL2 for a guest, given the CPU's ID_AA64MMFR1_EL1, ID_AA64PFR0_EL1 and whether it has pointer authentication.
///
/// Adds what traps where it exists: LORegions (TLOR), RAS error records (TERR), external aborts (TEA).
///
/// [`owner_hcr`] turns this into the owner's.
pub const fn guest_hcr(mmfr1: u64, pfr0: u64, pauth: bool) -> u64 {
    let mut hcr = HCR_GUEST;
    if (mmfr1 >> 16) & 0xf != 0 {
        hcr |= HCR_EL2::TLOR::SET.value;
    }
    if (pfr0 >> 28) & 0xf != 0 {
        hcr |= HCR_EL2::TERR::SET.value | HCR_EL2::TEA::SET.value;
    }
    if pauth {
        hcr |= HCR_PAUTH;
    }
    hcr
}

/// HCR_EL2 for the VM that owns the machine, from a guest's: SErrors are taken where they would be without keel (AMO), and
/// its view of the cacheability of its memory is not overridden (FWB selects only how stage 2 says so).
pub const fn owner_hcr(guest: u64) -> u64 {
    guest & !(HCR_EL2::AMO::SET.value | HCR_EL2::TEA::SET.value)
}

/// HCR_EL2 for a kernel under which keel was installed late: what it could do stays possible, but SMCs trap, and interrupts
/// come by way of EL2.
pub const fn late_owner_hcr(fwb: bool) -> u64 {
    let fwb = if fwb { HCR_FWB } else { 0 };
    HCR_EL2_OWNER | HCR_EL2::VM::Enable.value | HCR_EL2::FMO::SET.value | HCR_EL2::IMO::EnableVirtualIRQ.value | fwb
}

/// SCTLR_EL2 with MMU, caches and alignment checks off: the RES1 bits.
pub const SCTLR_EL2_MMU_OFF: u64 = 0x30c5_0830;
/// SCTLR_EL2 while keel runs: MMU and caches on, what is writable is not executable, SP is checked.
pub const SCTLR_EL2_KEEL: u64 = SCTLR_EL2_MMU_OFF
    | SCTLR_EL2::M::Enable.value
    | SCTLR_EL2::C::Cacheable.value
    | SCTLR_EL2::I::Cacheable.value
    | SCTLR_EL2::WXN::Enable.value
    | SCTLR_EL2::SA::Enable.value;
/// SCTLR_EL1 that the stub leaves: LSMAOE, nTLSMD, EIS, TSCXT, EOS.
pub const SCTLR_EL1_RESET: u64 = 0x3050_0800;

/// CPTR_EL2 for a guest: SVE and SME trap (TZ, TSM, among the RES1 bits of a CPU without them), AMU (TAM) and trace (TTA,
/// bit 20) trap, FP does not.
pub const CPTR_GUEST: u64 = 0x33ff | CPTR_EL2::TAM::SET.value | (1 << 20);
/// CPTR_EL2.TFP: FP and SIMD trap, EL2's own accesses too.
pub const CPTR_TFP: u64 = 1 << 10;

/// MDCR_EL2 for a guest without a PMU: PMU, statistical profiling and trace filters trap; their buffers are EL2's (E2PB, E2TB = 0). The
/// OS lock traps (TDOSA), because the OS double lock, which guests do not have, traps with it.
///
/// Breakpoints, watchpoints and software step are the guest's own, with whatever it writes into them, since nothing of
/// them can fire in keel: with TDE = 0 and HCR_EL2.TGE = 0 the level that debug exceptions are taken to is EL1, and from a
/// higher level than that they are not generated (Arm ARM D2, AArch64.GenerateDebugExceptionsFrom), whatever HMC, SSC and
/// PMC of a breakpoint ask for.
pub const MDCR_GUEST: u64 = MDCR_EL2::TPMCR::SET.value
    | MDCR_EL2::TPM::SET.value
    | MDCR_EL2::TPMS::SET.value
    | MDCR_EL2::TTRF::SET.value
    | MDCR_EL2::TDOSA::SET.value;

/// MDCR_EL2.TDA and TDRA, which with TDOSA keep a guest from all debug registers.
pub const MDCR_DEBUG_TRAPS: u64 = MDCR_EL2::TDA::SET.value | MDCR_EL2::TDRA::SET.value;

/// MDCR_EL2.TDE: the guest's debug exceptions are taken to EL2.
pub const MDCR_DEBUG_EXCEPTIONS: u64 = MDCR_EL2::TDE::SET.value;

/// MDCR_EL2.TPMCR and TPM: every access of the PMU traps.
pub const MDCR_PMU_TRAPS: u64 = MDCR_EL2::TPMCR::SET.value | MDCR_EL2::TPM::SET.value;

/// MDCR_EL2.HPMN: the event counters from this one on are EL2's.
pub const MDCR_HPMN: u64 = 0x1f;
/// MDCR_EL2.HPMD: the counters below HPMN do not count at EL2 (FEAT_PMUv3p1).
const MDCR_HPMD: u64 = 1 << 17;
/// MDCR_EL2.HCCD: nor does the cycle counter (FEAT_PMUv3p5).
const MDCR_HCCD: u64 = 1 << 23;

/// MDCR_EL2 for a guest with a PMU, but for HPMN, on a CPU with this ID_AA64DFR0_EL1.PMUVer: it is not trapped, and does not
/// count at EL2.
pub const fn mdcr_guest_with_pmu(version: u64) -> u64 {
    let mut mdcr = MDCR_GUEST & !MDCR_PMU_TRAPS;
    if version >= 4 {
        mdcr |= MDCR_HPMD;
    }
    if version >= 6 {
        mdcr |= MDCR_HCCD;
    }
    mdcr
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pmu_does_not_count_el2_where_hardware_can_say_so() {
        assert_eq!(mdcr_guest_with_pmu(1), 1 << 10 | 1 << 14 | 1 << 19);
        assert_eq!(mdcr_guest_with_pmu(4), 1 << 10 | 1 << 14 | 1 << 17 | 1 << 19);
        assert_eq!(mdcr_guest_with_pmu(9), 1 << 10 | 1 << 14 | 1 << 17 | 1 << 19 | 1 << 23);
    }

    #[test]
    fn values_are_the_architecture_s() {
        // The hyp-stub ABI's numbers, and KVM's trap set where it is the same.
        assert_eq!(HCR_EL2_HOST, 0x0100_0300_8000_0000);
        assert_eq!(HCR_FMO_IMO_AMO, 0x38);
        assert_eq!(HCR_GUEST, 0x0400_0000_803d_063f);
        assert_eq!(SCTLR_EL2_KEEL, 0x30cd_183d);
        assert_eq!(MDCR_GUEST, 1 << 5 | 1 << 6 | 1 << 10 | 1 << 14 | 1 << 19);
        assert_eq!(CPTR_GUEST, 0x4010_33ff);
        assert_eq!(HCR_EL2_VHE, 0x4_8800_0000);
    }

    #[test]
    fn optional_traps_follow_the_id_fields() {
        assert_eq!(guest_hcr(0, 0, false), HCR_GUEST);
        assert_eq!(guest_hcr(1 << 16, 1 << 28, true), HCR_GUEST | 1 << 35 | 1 << 36 | 1 << 37 | 0b11 << 40);
    }
}
