// What of the stub runs while a payload owns the machine, besides the calls of boot/stub_vectors.S: the way into the
// payload on every CPU, its SMCs, and the report of exceptions that nobody expects. EL2's MMU is off in all of it.

// find_stub_cpu: x9 = this CPU's row of the resident state (arch::stub::StubCpu), 0 if it has none. Clobbers x10, x11, flags.
.macro find_stub_cpu
    affinity x10
    adr_l   x9, {resident}
9980:
    ldr     x11, [x9, #{cpu_mpidr}]
    cmp     x11, x10
    b.eq    9982f
    cmn     x11, #1                     // the end of the list
    b.eq    9981f
    add     x9, x9, #{cpu_size}
    b       9980b
9981:
    mov     x9, xzr
9982:
.endm

    .section .text.stub_resident, "ax"

// stub_enter: the boot CPU leaves for the payload. in: x0 = its first instruction, x1 = device tree. Never returns.
// EL2's MMU may be on, with an identity map; nothing in the caches may be dirty that anyone needs.
    .global stub_enter
stub_enter:
    mov     x19, x0
    mov     x20, x1
    mov_q   x2, {sctlr_el2_mmu_off}
    msr     sctlr_el2, x2
    isb
    tlbi    alle2
    tlbi    alle1
    ic      iallu
    dsb     nsh
    isb
    adr_l   x21, hyp_stub_vectors
    b       stub_drop

// stub_secondary_entry: firmware starts or wakes a CPU here. in: x0 = physical address of its EntryBlock, not cached.
    .global stub_secondary_entry
stub_secondary_entry:
    msr     daifset, #0xf
    mrs     x1, CurrentEL
    cmp     x1, #(2 << 2)
    b.ne    stub_park                   // the wrong exception level: nothing of the stub would be under the payload
    mov_q   x1, {sctlr_el2_mmu_off}
    msr     sctlr_el2, x1
    isb
    ldp     x19, x20, [x0, #{block_entry}]  // entry + 1, context
    ldr     x21, [x0, #{block_vectors}]
    dsb     sy
    str     xzr, [x0, #{block_entry}]   // free for the next CPU_ON
    dsb     sy
    sub     x19, x19, #1
    tlbi    alle2
    tlbi    alle1
    ic      iallu
    dsb     nsh
    isb
    b       stub_drop

// stub_spin_entry: firmware lets a CPU go from its spin-table pen. Nothing is in its registers: its row says where the
// word is by which the payload releases it. It arrives, and waits for that at EL1, over the stub.
    .global stub_spin_entry
stub_spin_entry:
    msr     daifset, #0xf
    mrs     x1, CurrentEL
    cmp     x1, #(2 << 2)
    b.ne    stub_park
    mov_q   x1, {sctlr_el2_mmu_off}
    msr     sctlr_el2, x1
    isb
    tlbi    alle2
    tlbi    alle1
    ic      iallu
    dsb     nsh
    isb
    find_stub_cpu
    cbz     x9, stub_park
    ldr     x20, [x9, #{cpu_spin}]
    mov     x10, #1
    str     x10, [x20, #{spin_arrived}]
    dsb     sy
    adr     x19, stub_pen
    adr_l   x21, hyp_stub_vectors

// stub_drop: EL2 as the boot protocol wants it, then the payload at EL1h. in: x19 = where, x20 = its x0, x21 = the vectors
// that stay.
stub_drop:
    msr     vbar_el2, x21
    bl      el2_setup
    bl      el2_untrap
    mov_q   x0, {sctlr_el1_reset}
    msr     sctlr_el1, x0
    mrs     x0, hcr_el2
    orr     x0, x0, #(1 << 19)          // TSC: PSCI is relayed
    msr     hcr_el2, x0
    msr     elr_el2, x19
    mov     x0, #0x3c5                  // D, A, I, F masked; EL1h
    msr     spsr_el2, x0
    isb
    mov     x0, x20
    .irp    n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30
    mov     x\n, xzr
    .endr
    eret
    dsb     nsh                         // no speculation past the return
    isb

// stub_pen: at EL1, MMU off. in: x0 = this CPU's release word. Goes on where the payload says, with x0-x3 = 0.
stub_pen:
    ldr     x4, [x0, #{spin_release}]
    cbnz    x4, 1f
    wfe
    b       stub_pen
1:  mov     x0, xzr
    br      x4

// stub_smc_entry: an SMC of EL1. in: its registers but x9, which is in TPIDR_EL2. SP_EL2 and FAR_EL2 are nobody's here.
    .global stub_smc_entry
stub_smc_entry:
    mov     sp, x10
    msr     far_el2, x11
    find_stub_cpu
    cbz     x9, 1f
    mov     x11, x9
    ldr     x9, [x9, #{cpu_stack}]
    sub     x9, x9, #{frame_size}
    stp     x0, x1, [x9, #16 * 0]
    stp     x2, x3, [x9, #16 * 1]
    stp     x4, x5, [x9, #16 * 2]
    stp     x6, x7, [x9, #16 * 3]
    mov     x0, x9
    mov     x1, x11
    mrs     x2, tpidr_el2
    stp     x8, x2, [x0, #16 * 4]
    mov     x2, sp
    mrs     x3, far_el2
    stp     x2, x3, [x0, #16 * 5]
    stp     x12, x13, [x0, #16 * 6]
    stp     x14, x15, [x0, #16 * 7]
    stp     x16, x17, [x0, #16 * 8]
    stp     x18, x30, [x0, #16 * 9]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x2, x3, [x0, #16 * 10]
    mov     sp, x0
    bl      stub_smc                    // x0 = &mut SmcFrame, x1 = &StubCpu
    ldp     x2, x3, [sp, #16 * 10]
    msr     elr_el2, x2
    msr     spsr_el2, x3
    ldp     x18, x30, [sp, #16 * 9]
    ldp     x16, x17, [sp, #16 * 8]
    ldp     x14, x15, [sp, #16 * 7]
    ldp     x12, x13, [sp, #16 * 6]
    ldp     x10, x11, [sp, #16 * 5]
    ldp     x8, x9, [sp, #16 * 4]
    ldp     x6, x7, [sp, #16 * 3]
    ldp     x4, x5, [sp, #16 * 2]
    ldp     x2, x3, [sp, #16 * 1]
    ldp     x0, x1, [sp, #16 * 0]
    eret
1:  mrs     x9, elr_el2                 // a CPU that is not in the tree: NOT_SUPPORTED
    add     x9, x9, #4
    msr     elr_el2, x9
    mov     x0, #-1
    mov     x10, sp
    mrs     x11, far_el2
    mrs     x9, tpidr_el2
    eret

// stub_same_unexpected: a synchronous exception of EL2. One is expected: firmware that does not know SMC at all makes
// the one of `stub_forward` undefined.
    .global stub_same_unexpected
stub_same_unexpected:
    mrs     x10, elr_el2
    adr     x11, stub_forward_smc
    cmp     x10, x11
    b.ne    stub_unexpected
    adr     x10, stub_forward_undefined
    msr     elr_el2, x10
    eret

// stub_unexpected: in x9 = number of the vector slot. Reports and parks this CPU.
    .global stub_unexpected
stub_unexpected:
    mov     x12, x9
    find_stub_cpu
    cbz     x9, stub_park
    ldr     x9, [x9, #{cpu_stack}]
    mov     sp, x9
    mov     x0, x12
    mov     x29, xzr
    mov     x30, xzr
    bl      stub_report
stub_park:
    wfe
    b       stub_park

// stub_forward: makes the SMC that x0 = &mut [u64; 18] describes, x0 to x17.
//   out: x0 = 1 and the registers afterwards, or 0 if this machine has no SMC. Stack: 32 bytes.
    .global stub_forward
stub_forward:
    stp     x29, x30, [sp, #-32]!
    stp     x0, x19, [sp, #16]
    mov     x19, x0
    ldp     x2, x3, [x19, #16 * 1]
    ldp     x4, x5, [x19, #16 * 2]
    ldp     x6, x7, [x19, #16 * 3]
    ldp     x8, x9, [x19, #16 * 4]
    ldp     x10, x11, [x19, #16 * 5]
    ldp     x12, x13, [x19, #16 * 6]
    ldp     x14, x15, [x19, #16 * 7]
    ldp     x16, x17, [x19, #16 * 8]
    ldp     x0, x1, [x19, #16 * 0]
stub_forward_smc:
    smc     #0
    stp     x0, x1, [x19, #16 * 0]
    stp     x2, x3, [x19, #16 * 1]
    stp     x4, x5, [x19, #16 * 2]
    stp     x6, x7, [x19, #16 * 3]
    stp     x8, x9, [x19, #16 * 4]
    stp     x10, x11, [x19, #16 * 5]
    stp     x12, x13, [x19, #16 * 6]
    stp     x14, x15, [x19, #16 * 7]
    stp     x16, x17, [x19, #16 * 8]
    mov     x0, #1
1:  ldr     x19, [sp, #24]
    ldp     x29, x30, [sp], #32
    ret
stub_forward_undefined:
    mov     x0, xzr
    b       1b
