// The hyp-stub vectors: what an EL1 kernel that owns the machine finds at EL2 (hyp-stub ABI).
//
// HVC from EL1 or from EL2h, any immediate, x0 = call:
//   0 SET_VECTORS(x1)       the vectors at x1 take over this CPU; a misaligned x1 gives HVC_STUB_ERR
//   1 SOFT_RESTART(x1, x2, x3, x4)   jumps to x1 at EL2h with x0, x1, x2 = x2, x3, x4
//   2 RESET_VECTORS         these are the initial vectors already; SMCs of EL1 are relayed (again) on this CPU
//   3 FINALISE_EL2          the caller goes on at EL2 with VHE, where that can be done (boot/stub_finalise.S)
//   4 GET_ICH_VTR_EL2       x1 = ICH_VTR_EL2
//   any other               HVC_STUB_ERR
// Result in x0. Clobbers x0, x1, x2, x4, x9, FINALISE_EL2 up to x12 too; and, called from EL1, TPIDR_EL2. Each call acts on its own CPU only.
// Position independent, no stack, no memory. The table and what the calls need are in one page, `hyp_stub_page`, which
// must stay where it is while anybody may call; FINALISE_EL2 wants it identity mapped, executable, by the caller's tables.
//
// Everything else that arrives here leaves the page: an SMC of EL1 (HCR_EL2.TSC) goes to `stub_smc_entry`, with x9 in
// TPIDR_EL2, and what nobody expects to `stub_unexpected` (boot/stub_resident.S).

// A slot that only reports: x9 = its number.
.macro stub_slot number
    .balign 0x80
    mov     x9, #\number
    b       stub_unexpected
.endm

// release_hcr: an EL1 caller gives EL2 away, and whoever takes it finds HCR_EL2 as the boot protocol has it, without TSC.
// A caller at EL2 has its own. Clobbers x9.
.macro release_hcr
    mrs     x9, spsr_el2
    tbnz    x9, #3, 9970f               // M[3:2] = 2: EL2
    mov_q   x9, {hcr_el2_host}
    msr     hcr_el2, x9
    isb
9970:
.endm

    .section .text.stub_vectors, "ax"
    .balign 0x1000
    .global hyp_stub_page
    .global hyp_stub_vectors
hyp_stub_page:
hyp_stub_vectors:
    stub_slot 0                         // from EL2 with SP_EL0
    stub_slot 1
    stub_slot 2
    stub_slot 3

    .balign 0x80                        // from EL2 with SP_EL2: synchronous
stub_same_sync:
    mrs     x9, esr_el2
    lsr     x9, x9, #26
    cmp     x9, #0x16                   // EC: HVC
    b.ne    1f
    cmp     x0, #2                      // HVC_RESET_VECTORS. HCR_EL2 is the caller's own business.
    b.ne    stub_call
    mov     x0, xzr
    eret
1:  mov     x9, #4
    b       stub_same_unexpected
    .org    stub_same_sync + 0x80
    stub_slot 5
    stub_slot 6
    stub_slot 7

    .balign 0x80                        // from EL1 or EL0, AArch64: synchronous
stub_lower_sync:
    cmp     x0, #2                      // HVC_RESET_VECTORS
    b.ne    2f
    mrs     x0, esr_el2
    lsr     x0, x0, #26
    subs    x0, x0, #0x16               // EC: HVC; x0 is the result then
    b.ne    1f
    mrs     x1, hcr_el2
    tbz     x1, #19, 3f                 // TSC
    eret
1:  mov     x0, #2
2:  msr     tpidr_el2, x9               // an SMC preserves every register
    mrs     x9, esr_el2
    lsr     x9, x9, #26
    cmp     x9, #0x16                   // EC: HVC
    b.eq    stub_call
    cmp     x9, #0x17                   // EC: SMC
    b.eq    stub_smc_entry
    mov     x9, #8
    b       stub_unexpected
3:  orr     x1, x1, #(1 << 19)
    msr     hcr_el2, x1
    eret
    .org    stub_lower_sync + 0x80
    stub_slot 9
    stub_slot 10
    stub_slot 11
    stub_slot 12                        // from AArch32
    stub_slot 13
    stub_slot 14
    stub_slot 15
    .org    hyp_stub_vectors + 0x800

// The calls but RESET_VECTORS. in: x0 = call, x1-x4 its arguments.
stub_call:
    cbnz    x0, 1f
    tst     x1, #0x7ff                  // HVC_SET_VECTORS: VBAR_EL2 bits 10:0 are RES0
    b.ne    stub_error
    release_hcr
    msr     vbar_el2, x1
    eret                                // x0 is 0 already
1:  cmp     x0, #1                      // HVC_SOFT_RESTART: does not return, so ELR_EL2 and SPSR_EL2 stay the caller's
    b.ne    2f
    release_hcr
    mov     x0, x2
    mov     x2, x4
    mov     x4, x1
    mov     x1, x3
    br      x4
2:  cmp     x0, #3                      // HVC_FINALISE_EL2
    b.eq    stub_finalise
    cmp     x0, #4                      // HVC_GET_ICH_VTR_EL2
    b.ne    stub_error
    mrs     x2, id_aa64pfr0_el1
    ubfx    x2, x2, #24, #4             // GIC system registers
    cbz     x2, stub_error
    mrs     x1, s3_4_c12_c11_1          // ICH_VTR_EL2
    mov     x0, xzr
    eret
stub_error:
    movz    x0, #0x0bad, lsl #16        // HVC_STUB_ERR
    movk    x0, #0xca11
    eret
