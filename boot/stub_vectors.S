// The initial hyp-stub vectors: what an EL1 kernel that owns the machine finds at EL2 (hyp-stub ABI).
//
// HVC from EL1, any immediate, x0 = call: 0 SET_VECTORS (x1), 1 SOFT_RESTART (x1, x2-x4), 2 RESET_VECTORS,
// 4 GET_ICH_VTR_EL2; any other number gives HVC_STUB_ERR. Clobbers only x0 (and x1, x2, x4 where the call says so).
// Position independent, no stack, no memory, one 2 KiB table.

.macro stub_slot, target
    .balign 0x80
    b       \target
.endm

    .section .text.stub_vectors, "ax"
    .balign 0x800
    .global hyp_stub_vectors
hyp_stub_vectors:
    wfe                                 // from EL2 with SP_EL0
    b       hyp_stub_vectors
    .rept 3
    stub_slot hyp_stub_vectors
    .endr
    stub_slot stub_sync                 // from EL2 with SP_EL2: synchronous
    .rept 3
    stub_slot hyp_stub_vectors
    .endr

    .balign 0x80                        // from EL1 or EL0, AArch64: synchronous
stub_sync:
    cbnz    x0, 1f                      // HVC_SET_VECTORS
    msr     vbar_el2, x1
    eret                                // x0 is 0 already
1:  cmp     x0, #1                      // HVC_SOFT_RESTART
    b.ne    2f
    mov     x0, x2
    mov     x2, x4
    mov     x4, x1
    mov     x1, x3
    br      x4
2:  cmp     x0, #2                      // HVC_RESET_VECTORS: these already are the initial ones
    b.eq    4f
    cmp     x0, #4                      // HVC_GET_ICH_VTR_EL2
    b.ne    3f
    mrs     x1, id_aa64pfr0_el1
    ubfx    x1, x1, #24, #4             // GIC system registers
    cbz     x1, 3f
    mrs     x1, s3_4_c12_c11_1          // ICH_VTR_EL2
    b       4f
3:  movz    x0, #0x0bad, lsl #16        // HVC_STUB_ERR
    movk    x0, #0xca11
    eret
4:  mov     x0, xzr
    eret
    .org    stub_sync + 0x80
    .rept 3
    stub_slot hyp_stub_vectors
    .endr
    .rept 4                             // from AArch32
    stub_slot hyp_stub_vectors
    .endr
    .org    hyp_stub_vectors + 0x800
