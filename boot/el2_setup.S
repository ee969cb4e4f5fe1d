// el2_setup: gives EL2 the state that the arm64 boot protocol and the hyp-stub ABI ask for (no VHE), whatever the loader
// left behind. Every optional register is touched only where its ID field says it exists.
//
//   in: EL2, MMU off. out: registers below. Clobbers x0-x3. No stack, no memory.
//   Leaves VBAR_EL2, SP and all of EL1's registers alone.

    .section .text.boot, "ax"
    .global el2_setup
el2_setup:
    mov_q   x0, {hcr_el2_host}          // RW, API, APK, ATA; E2H = 0
    msr     hcr_el2, x0
    isb

    id_field x0, id_aa64mmfr1_el1, 40   // HCX
    cbz     x0, 1f
    mov     x0, xzr
    id_field x1, s3_0_c0_c7_3, 0        // ID_AA64MMFR3_EL1.TCRX
    cbz     x1, 2f
    orr     x0, x0, #(1 << 14)          // TCR2En
2:  id_field x1, s3_0_c0_c6_2, 16       // ID_AA64ISAR2_EL1.MOPS
    cbz     x1, 2f
    orr     x0, x0, #(1 << 11)          // MSCEn
2:  msr     s3_4_c1_c2_2, x0            // HCRX_EL2
1:
    mov     x0, #3                      // EL1PCTEN, EL1PCEN
    msr     cnthctl_el2, x0
    msr     cntvoff_el2, xzr

    // MDCR_EL2: HPMN = all counters, the statistical profiling and trace buffers belong to EL1.
    mov     x2, xzr
    id_field x0, id_aa64dfr0_el1, 8     // PMUVer
    cbz     x0, 1f
    cmp     x0, #0xf
    b.eq    1f
    mrs     x1, pmcr_el0
    ubfx    x2, x1, #11, #5             // N
1:  id_field x0, id_aa64dfr0_el1, 32    // PMSVer
    cbz     x0, 1f
    orr     x2, x2, #(3 << 12)          // E2PB
    mrs     x0, s3_0_c9_c10_7           // PMBIDR_EL1
    tbnz    x0, #4, 1f                  // P: owned by a higher level
    mov     x0, #((1 << 6) | (1 << 4))  // PCT, PA
    msr     s3_4_c9_c9_0, x0            // PMSCR_EL2
1:  id_field x0, id_aa64dfr0_el1, 44    // TraceBuffer
    cbz     x0, 1f
    mrs     x0, s3_0_c9_c11_7           // TRBIDR_EL1
    tbnz    x0, #4, 1f
    orr     x2, x2, #(3 << 24)          // E2TB
1:  msr     mdcr_el2, x2

    id_field x0, id_aa64mmfr1_el1, 16   // LO
    cbz     x0, 1f
    msr     s3_0_c10_c4_3, xzr          // LORC_EL1
1:  msr     vttbr_el2, xzr

    id_field x0, id_aa64pfr0_el1, 24    // GIC
    cbz     x0, 1f
    mrs     x0, s3_4_c12_c9_5           // ICC_SRE_EL2
    orr     x0, x0, #(1 << 0)           // SRE
    orr     x0, x0, #(1 << 3)           // Enable
    msr     s3_4_c12_c9_5, x0
    isb
    mrs     x0, s3_4_c12_c9_5
    tbz     x0, #0, 1f
    msr     s3_4_c12_c11_0, xzr         // ICH_HCR_EL2
1:
    id_field x0, id_aa64pfr0_el1, 0     // EL0: 2 = AArch32 too; HSTR_EL2 traps only AArch32
    msr     hstr_el2, xzr
    mrs     x0, midr_el1
    msr     vpidr_el2, x0
    mrs     x0, mpidr_el1
    msr     vmpidr_el2, x0
    mov     x0, #0x33ff                 // CPTR_EL2: TZ, TSM set (RES1 without the feature), nothing else traps
    msr     cptr_el2, x0

    id_field x0, id_aa64mmfr0_el1, 56   // FGT
    cbz     x0, 1f
    mov     x2, xzr                     // HFGRTR, HFGWTR
    id_field x1, id_aa64pfr1_el1, 24    // SME
    cbz     x1, 2f
    orr     x2, x2, #(1 << 54)          // nSMPRI_EL1
    orr     x2, x2, #(1 << 55)          // nTPIDR2_EL0
2:  id_field x1, s3_0_c0_c7_3, 8        // ID_AA64MMFR3_EL1.S1PIE
    cbz     x1, 2f
    orr     x2, x2, #(1 << 57)          // nPIRE0_EL1
    orr     x2, x2, #(1 << 58)          // nPIR_EL1
2:  msr     s3_4_c1_c1_4, x2            // HFGRTR_EL2
    msr     s3_4_c1_c1_5, x2            // HFGWTR_EL2
    msr     s3_4_c1_c1_6, xzr           // HFGITR_EL2
    mov     x2, xzr
    id_field x1, id_aa64dfr0_el1, 32    // PMSVer
    cmp     x1, #3
    b.lo    2f
    orr     x2, x2, #(1 << 62)          // nPMSNEVFR_EL1
2:  msr     s3_4_c3_c1_4, x2            // HDFGRTR_EL2
    msr     s3_4_c3_c1_5, x2            // HDFGWTR_EL2
    id_field x1, id_aa64pfr0_el1, 44    // AMU
    cbz     x1, 2f
    msr     s3_4_c3_c1_6, xzr           // HAFGRTR_EL2
2:  cmp     x0, #2                      // FEAT_FGT2
    b.lo    1f
    mov     x2, xzr
    mov     x3, xzr
    id_field x1, id_aa64dfr0_el1, 8     // PMUVer: 9 = PMUv3p9
    cmp     x1, #9
    b.lo    2f
    cmp     x1, #0xf
    b.eq    2f
    mov     x2, #0x1c                   // nPMICNTR_EL0, nPMICFILTR_EL0, nPMUACR_EL1
    orr     x3, x2, #(1 << 21)          // nPMZR_EL0
2:  msr     s3_4_c3_c1_0, x2            // HDFGRTR2_EL2
    msr     s3_4_c3_c1_1, x3            // HDFGWTR2_EL2
    msr     s3_4_c3_c1_2, xzr           // HFGRTR2_EL2
    msr     s3_4_c3_c1_3, xzr           // HFGWTR2_EL2
    msr     s3_4_c3_c1_7, xzr           // HFGITR2_EL2
1:  isb
    ret
