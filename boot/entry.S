// The arm64 Image header and the way from the loader's jump to Rust.
//
// On entry (Linux, Documentation/arch/arm64/booting: the contract every loader follows): x0 = physical address of the
// device tree, x1-x3 = 0, MMU off, data cache off and clean for the image, interrupts masked.
// Secondary CPUs enter at `secondary_entry` with x0 = physical address of their `SecondaryBlock`.
// `image_primary` and `image_secondary` are each image's own (src/bin).

    .section .head.text, "ax"
    .global _start
_start:
    b       primary_entry               // code0
    .long   0                           // code1
    .quad   0                           // text_offset: any 2 MiB-aligned base will do
    .quad   _image_size                 // image_size, BSS and stacks included
    .quad   0xa                         // flags: little endian, 4 KiB pages, anywhere in RAM
    .quad   0, 0, 0                     // res2..res4
    .ascii  "ARM\x64"                   // magic
    .long   0                           // res5: no PE header
    // Here keel.img says where its late entry is (src/bin/keel.rs).

    .section .head.entry, "ax"

// primary_entry: in x0 = device tree. Never returns.
//   x19 = device tree, x20 = counter at the first instruction, x21 = CurrentEL
    .global primary_entry
primary_entry:
    msr     daifset, #0xf
    mrs     x21, CurrentEL
    cmp     x21, #(2 << 2)
    mov     x20, xzr
    b.ne    1f
    mrs     x20, cntpct_el0             // keel.stats reports boot time from here
    mov_q   x1, {sctlr_el2_mmu_off}
    msr     sctlr_el2, x1
    isb
1:  mov     x19, x0
    adr_l   x0, _boot_stack_top
    msr     spsel, #1
    mov     sp, x0
    bl      relocate
    bl      save_data
    bl      clear_bss
    cmp     x21, #(2 << 2)
    b.ne    2f
    // The hyp-stub vectors come first: from here on nothing at EL2 vectors into the void.
    adr_l   x0, hyp_stub_vectors
    msr     vbar_el2, x0
    bl      el2_setup
    mov     x29, xzr
    mov     x0, x19
    mov     x1, x20
    bl      image_primary
2:  mov     x29, xzr
    mov     x0, x19
    lsr     x1, x21, #2
    bl      image_wrong_exception_level
3:  wfe
    b       3b

// relocate: applies the R_AARCH64_RELATIVE entries of .rela.dyn (ELF for the Arm 64-bit Architecture, 5.7.15).
//   out: memory; clobbers x0-x6. The image is linked at 0, so the load bias is the address of its first byte.
relocate:
    adr_l   x0, _start_of_image
    adr_l   x1, _start_of_rela
    adr_l   x2, _end_of_rela
1:  cmp     x1, x2
    b.hs    2f
    ldp     x3, x4, [x1], #16           // r_offset, r_info
    ldr     x5, [x1], #8                // r_addend
    cmp     w4, #1027                   // R_AARCH64_RELATIVE
    b.ne    1b
    add     x5, x5, x0
    str     x5, [x3, x0]
    b       1b
2:  ret

// save_data: keeps a copy of [_end_of_rodata, _end_of_file), the data as the loader brought it, for a start at another place.
// Both ends are 16-byte aligned. Clobbers x0-x4.
save_data:
    adr_l   x0, _end_of_rodata
    adr_l   x1, _end_of_file
    adr_l   x2, _saved_data
1:  cmp     x0, x1
    b.hs    2f
    ldp     x3, x4, [x0], #16
    stp     x3, x4, [x2], #16
    b       1b
2:  ret

// restart: the image that was copied to x0 starts there, as a boot loader would have started it. in: x1 = device tree.
// The copy is clean in memory; EL2's map, if it is on, is the identity. Never returns.
    .global restart
restart:
    mov_q   x2, {sctlr_el2_mmu_off}
    msr     sctlr_el2, x2
    isb
    tlbi    alle2
    ic      iallu
    dsb     nsh
    isb
    mov     x3, x0
    mov     x0, x1
    mov     x1, xzr
    mov     x2, xzr
    br      x3

// clear_bss: zeroes [_start_of_bss, _end_of_bss), both 64-byte aligned. Clobbers x0, x1.
clear_bss:
    adr_l   x0, _start_of_bss
    adr_l   x1, _end_of_bss
1:  cmp     x0, x1
    b.hs    2f
    stp     xzr, xzr, [x0], #16
    stp     xzr, xzr, [x0], #16
    stp     xzr, xzr, [x0], #16
    stp     xzr, xzr, [x0], #16
    b       1b
2:  ret

// secondary_entry: in x0 = physical address of a SecondaryBlock, cleaned to the point of coherency. Never returns.
// In a section of its own: an image that starts no CPUs has neither it nor `image_secondary`.
// spin_table_entry is the same for a CPU that firmware lets go from its spin-table pen, without arguments: its block is in
// the list at `SPIN_BLOCKS`, also cleaned to the point of coherency.
    .section .text.boot.secondary, "ax"
    .global spin_table_entry
spin_table_entry:
    msr     daifset, #0xf
    affinity x1
1:  adr_l   x2, {spin_blocks}
2:  ldr     x0, [x2]
    cbnz    x0, 3f
    wfe                                 // CPUs may share a release word: its turn comes
    b       1b
3:  add     x2, x0, #{sb_next}
    ldr     x3, [x0, #{sb_mpidr}]
    cmp     x3, x1
    b.ne    2b
    .global secondary_entry
secondary_entry:
    msr     daifset, #0xf
    mrs     x1, CurrentEL
    cmp     x1, #(2 << 2)
    b.ne    secondary_park              // firmware started this CPU in the wrong exception level
    mov     x19, x0
    mov_q   x1, {sctlr_el2_mmu_off}
    msr     sctlr_el2, x1
    isb
    adr_l   x0, hyp_stub_vectors
    msr     vbar_el2, x0
    bl      el2_setup
    ldp     x0, x1, [x19, #{sb_mair}]   // MAIR_EL2, TCR_EL2
    msr     mair_el2, x0
    msr     tcr_el2, x1
    ldp     x0, x1, [x19, #{sb_ttbr0}]  // TTBR0_EL2, SCTLR_EL2 with the MMU on
    msr     ttbr0_el2, x0
    tlbi    alle2
    ic      iallu
    dsb     nsh
    isb
    msr     sctlr_el2, x1
    isb
    ldp     x0, x1, [x19, #{sb_stack}]  // top of this CPU's stack, index of this CPU
    msr     spsel, #1
    mov     sp, x0
    msr     tpidr_el2, x1
    mov     x0, x1
    mov     x29, xzr
    bl      image_secondary
secondary_park:
    wfe
    b       secondary_park
