// HVC_FINALISE_EL2 of the hyp-stub ABI, and the part of it that every CPU needs before a kernel runs at EL1.
// Continues the page of boot/stub_vectors.S.

    .section .text.stub_vectors, "ax"

// el2_untrap: lets EL1 use the vector extensions there are, at their longest (boot protocol: SVE, SME, SME2, FA64).
//   in: EL2, MMU off, CPTR_EL2 as el2_setup leaves it (E2H = 0). Clobbers x0-x2. No stack, no memory.
    .global el2_untrap
el2_untrap:
    mrs     x0, cptr_el2
    id_field x1, id_aa64pfr0_el1, 32    // SVE
    cbz     x1, 1f
    bic     x0, x0, #(1 << 8)           // TZ
    msr     cptr_el2, x0
    isb
    mov     x1, #0x1ff                  // LEN: what there is
    msr     s3_4_c1_c2_0, x1            // ZCR_EL2
1:  id_field x2, id_aa64pfr1_el1, 24    // SME
    cbz     x2, 3f
    bic     x0, x0, #(1 << 12)          // TSM
    msr     cptr_el2, x0
    mrs     x0, sctlr_el2
    orr     x0, x0, #(1 << 60)          // EnTP2
    msr     sctlr_el2, x0
    isb
    mov     x1, #0x1ff                  // LEN
    mrs     x0, s3_0_c0_c4_5            // ID_AA64SMFR0_EL1
    tbz     x0, #63, 2f                 // FA64
    orr     x1, x1, #(1 << 31)
2:  cmp     x2, #2                      // FEAT_SME2
    b.lo    2f
    orr     x1, x1, #(1 << 30)          // EZT0
2:  msr     s3_4_c1_c2_6, x1            // SMCR_EL2
    mrs     x0, s3_1_c0_c0_6            // SMIDR_EL1
    tbz     x0, #15, 3f                 // SMPS
    msr     s3_4_c1_c2_5, xzr           // SMPRIMAP_EL2
3:  isb
    ret

// stub_finalise: FEAT_VHE's upgrade of the caller from EL1 to EL2, else HVC_STUB_ERR with the vector extensions untrapped.
// Refused when EL2's MMU is on, without FEAT_VHE, from EL2, and when the caller's MMU is on but does not map this page at
// its own address: turning EL2's on with those tables would pull the ground from under the stub.
stub_finalise:
    mrs     x9, spsr_el2
    ubfx    x9, x9, #2, #3              // M[4:2]: 1 = AArch64 EL1
    cmp     x9, #1
    b.ne    stub_error
    mov     x10, x30
    bl      el2_untrap
    mov     x30, x10
    mrs     x9, sctlr_el2
    tbnz    x9, #0, stub_error          // M
    id_field x9, id_aa64mmfr1_el1, 8    // VH
    cbz     x9, stub_error
    mrs     x9, sctlr_el1
    tbz     x9, #0, 1f
    adr     x10, stub_finalise
    mrs     x11, par_el1                // EL1's registers are preserved
    at      s1e1r, x10
    isb
    mrs     x12, par_el1
    msr     par_el1, x11
    tbnz    x12, #0, stub_error         // F
    eor     x12, x12, x10
    ubfx    x12, x12, #12, #36          // PA, bits 47:12
    cbnz    x12, stub_error
1:
    mov_q   x9, {hcr_el2_vhe}           // RW, TGE, E2H
    msr     hcr_el2, x9
    isb
    // The _EL12 names are EL1's registers now, the _EL1 names EL2's.
    mrs     x9, sp_el1
    mov     sp, x9
    mrs     x9, tpidr_el1
    msr     tpidr_el2, x9
    mrs     x9, s3_5_c1_c0_2            // CPACR_EL12
    msr     cpacr_el1, x9
    mrs     x9, s3_5_c12_c0_0           // VBAR_EL12
    msr     vbar_el1, x9
    mrs     x9, s3_5_c2_c0_2            // TCR_EL12
    msr     tcr_el1, x9
    mrs     x9, s3_5_c2_c0_0            // TTBR0_EL12
    msr     ttbr0_el1, x9
    mrs     x9, s3_5_c2_c0_1            // TTBR1_EL12
    msr     ttbr1_el1, x9
    mrs     x9, s3_5_c10_c2_0           // MAIR_EL12
    msr     mair_el1, x9
    id_field x9, s3_0_c0_c7_3, 0        // ID_AA64MMFR3_EL1.TCRX
    cbz     x9, 2f
    mrs     x9, s3_5_c2_c0_3            // TCR2_EL12
    msr     s3_0_c2_c0_3, x9            // TCR2_EL1
    id_field x9, s3_0_c0_c7_3, 8        // S1PIE
    cbz     x9, 2f
    mrs     x9, s3_5_c10_c2_2           // PIRE0_EL12
    msr     s3_0_c10_c2_2, x9
    mrs     x9, s3_5_c10_c2_3           // PIR_EL12
    msr     s3_0_c10_c2_3, x9
2:  mrs     x9, mdcr_el2
    bic     x9, x9, #(3 << 12)          // E2PB
    bic     x9, x9, #(3 << 24)          // E2TB
    msr     mdcr_el2, x9
    mrs     x9, spsr_el2
    bic     x9, x9, #0xf
    mov     x10, #9                     // EL2h
    orr     x9, x9, x10
    msr     spsr_el2, x9
    tlbi    vmalle1
    dsb     nsh
    isb
    mrs     x9, s3_5_c1_c0_0            // SCTLR_EL12
    msr     sctlr_el1, x9               // SCTLR_EL2: the caller's MMU is on, for EL2
    isb
    mov_q   x9, {sctlr_el1_reset}
    msr     s3_5_c1_c0_0, x9
    mov     x0, xzr
    eret
    .org    hyp_stub_page + 0x1000
