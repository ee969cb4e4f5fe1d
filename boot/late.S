// keel's late entry: how a kernel that already runs at EL1, over a hyp stub, puts keel under itself.
//
// HVC_SET_VECTORS of the stub installs `late_vectors`; then HVC from EL1 with x0 =
//   KEEL_INSTALL   x1 = physical address of an InstallBlock (src/arch/late.rs). The first CPU starts keel, the others join.
//                  The caller goes on at EL1 behind the HVC, with keel under it: x0 = 0. Or with a negative error number, and
//                  nothing is changed but VBAR_EL2, which is this table's.
//   0              HVC_SET_VECTORS(x1): another table, for a kernel that goes back to its stub
//   anything else  HVC_STUB_ERR
// Clobbers x0-x18. EL2's MMU is off at entry; the memory of the image is clean to the point of coherency.

.macro late_slot
    .balign 0x80
    b       late_park
.endm

    .section .text.late, "ax"
    .balign 0x800
    .global late_vectors
late_vectors:
    .rept 8
    late_slot
    .endr
    .balign 0x80
late_lower_sync:
    mrs     x9, esr_el2
    lsr     x9, x9, #26
    cmp     x9, #0x16                   // EC: HVC
    b.ne    late_park
    mov_q   x9, {install}
    cmp     x0, x9
    b.eq    late_install
    cbnz    x0, 1f
    tst     x1, #0x7ff                  // VBAR_EL2 bits 10:0 are RES0
    b.ne    1f
    msr     vbar_el2, x1
    eret
1:  mov_q   x0, {stub_error}
    eret
    .org    late_lower_sync + 0x80
    .rept 7
    late_slot
    .endr
    .org    late_vectors + 0x800

late_park:
    wfe
    b       late_park

// save_frame: the caller's registers below SP, as a LateFrame. Clobbers x9, x10.
.macro save_frame
    sub     sp, sp, #{frame_size}
    stp     x0, x1, [sp, #16 * 0]
    stp     x2, x3, [sp, #16 * 1]
    stp     x4, x5, [sp, #16 * 2]
    stp     x6, x7, [sp, #16 * 3]
    stp     x8, x9, [sp, #16 * 4]
    stp     x10, x11, [sp, #16 * 5]
    stp     x12, x13, [sp, #16 * 6]
    stp     x14, x15, [sp, #16 * 7]
    stp     x16, x17, [sp, #16 * 8]
    stp     x18, x19, [sp, #16 * 9]
    stp     x20, x21, [sp, #16 * 10]
    stp     x22, x23, [sp, #16 * 11]
    stp     x24, x25, [sp, #16 * 12]
    stp     x26, x27, [sp, #16 * 13]
    stp     x28, x29, [sp, #16 * 14]
    mrs     x9, elr_el2
    stp     x30, x9, [sp, #16 * 15]
    mrs     x9, spsr_el2
    str     x9, [sp, #16 * 16]
.endm

late_install:
    adr_l   x9, late_state
    ldr     x9, [x9]
    cbnz    x9, late_join

    // The first CPU: as primary_entry (boot/entry.S), but EL2's registers and all of EL1's stay.
    adr_l   x9, _boot_stack_top
    mov     sp, x9
    save_frame
    bl      relocate
    bl      save_data
    bl      clear_bss
    adr_l   x9, late_state
    mov     x10, #1
    str     x10, [x9]
    ldr     x0, [sp, #8]
    mov     x1, sp
    mov     x29, xzr
    bl      image_late_primary
    // It comes back only if it cannot be: nothing of the data is in the caches then.
    mov     x19, x0
    bl      late_mmu_off
    adr_l   x0, _end_of_rodata
    adr_l   x1, _end_of_file
    adr_l   x2, _saved_data
1:  cmp     x0, x1
    b.hs    late_return
    ldp     x3, x4, [x2], #16
    stp     x3, x4, [x0], #16
    b       1b

// in: x19 = result, SP = LateFrame.
late_return:
    mov     x0, x19
    adr_l   x1, late_vectors
    msr     vbar_el2, x1
    ldp     x30, x1, [sp, #16 * 15]
    ldr     x2, [sp, #16 * 16]
    msr     elr_el2, x1
    msr     spsr_el2, x2
    ldr     x19, [sp, #16 * 9 + 8]
    ldp     x20, x21, [sp, #16 * 10]
    ldp     x22, x23, [sp, #16 * 11]
    ldp     x24, x25, [sp, #16 * 12]
    ldp     x26, x27, [sp, #16 * 13]
    ldp     x28, x29, [sp, #16 * 14]
    eret

// Clobbers x0.
late_mmu_off:
    mov_q   x0, {sctlr_el2_mmu_off}
    msr     sctlr_el2, x0
    isb
    tlbi    alle2
    ic      iallu
    dsb     nsh
    isb
    ret

// Another CPU: its SecondaryBlock is in the list of those that come without arguments.
late_join:
    affinity x9
    adr_l   x10, {spin_blocks}
1:  ldr     x10, [x10]
    cbz     x10, 2f
    ldr     x11, [x10, #{sb_mpidr}]
    cmp     x11, x9
    b.eq    3f
    add     x10, x10, #{sb_next}
    b       1b
2:  mov     x0, #-22                    // EINVAL: no CPU that is waited for
    eret
3:  mov     x8, x10
    ldr     x9, [x8, #{sb_stack}]
    mov     sp, x9
    save_frame
    // The stack is used through the caches from here on: they must not have anything older.
    mov     x9, sp
    bic     x9, x9, #63
    add     x10, sp, #{frame_size}
4:  dc      civac, x9
    add     x9, x9, #16
    cmp     x9, x10
    b.lo    4b
    dsb     sy
    ldp     x0, x1, [x8, #{sb_mair}]    // MAIR_EL2, TCR_EL2
    msr     mair_el2, x0
    msr     tcr_el2, x1
    ldp     x0, x1, [x8, #{sb_ttbr0}]   // TTBR0_EL2, SCTLR_EL2 with the MMU on
    msr     ttbr0_el2, x0
    tlbi    alle2
    tlbi    alle1
    ic      iallu
    dsb     nsh
    isb
    ldr     x2, [x8, #{sb_index}]
    msr     sctlr_el2, x1
    isb
    msr     tpidr_el2, x2
    mov     x0, x2
    mov     x1, sp
    mov     x29, xzr
    bl      image_late_secondary
    mov     x19, x0
    bl      late_mmu_off
    b       late_return

    .section .data.late, "aw"
    .balign 16
late_state:
    .quad   0, 0
