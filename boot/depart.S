// keel_depart: keel leaves this CPU to the kernel that owns the machine (hyp-stub ABI: HVC_RESET_VECTORS, HVC_SOFT_RESTART).
//
// EL2's MMU and caches go off, then every EL2 register is as the boot protocol has it, the stub's vectors are back, and the
// CPU goes on at EL1, or at EL2 at the address in x4. EL1's registers are the kernel's and stay. This code is mapped at its own address.
//
//   in: x0 = Departure (src/arch/depart.rs), clean to the point of coherency. Never returns.
    .section .text.depart, "ax"
    .global keel_depart
keel_depart:
    msr     daifset, #0xf
    mov     x19, x0
    mov_q   x1, {sctlr_el2_mmu_off}
    msr     sctlr_el2, x1
    isb
    tlbi    alle2
    tlbi    alle1
    ic      iallu
    dsb     nsh
    isb
    // The stack is read and written past the caches from now on, by the stub: no line of it may be written back later.
    ldp     x1, x2, [x19, #{stack}]     // first and last address + 1
    mrs     x3, ctr_el0
    ubfx    x3, x3, #16, #4             // DminLine: log2 of the words in a line
    mov     x4, #4
    lsl     x4, x4, x3
    sub     x3, x4, #1
    bic     x1, x1, x3
1:  cmp     x1, x2
    b.hs    2f
    dc      civac, x1
    add     x1, x1, x4
    b       1b
2:  dsb     sy
    bl      el2_setup
    bl      el2_untrap
    ldp     x0, x1, [x19, #{vectors}]   // VBAR_EL2, HCR_EL2
    msr     vbar_el2, x0
    msr     hcr_el2, x1
    ldp     x0, x1, [x19, #{elr}]       // ELR_EL2, SPSR_EL2
    msr     elr_el2, x0
    msr     spsr_el2, x1
    isb
    ldr     x0, [x19, #{enters}]
    cmp     x0, #0                      // the loads leave the flags alone
    ldp     x0, x1, [x19, #16 * 0]
    ldp     x2, x3, [x19, #16 * 1]
    ldp     x4, x5, [x19, #16 * 2]
    ldp     x6, x7, [x19, #16 * 3]
    ldp     x8, x9, [x19, #16 * 4]
    ldp     x10, x11, [x19, #16 * 5]
    ldp     x12, x13, [x19, #16 * 6]
    ldp     x14, x15, [x19, #16 * 7]
    ldp     x16, x17, [x19, #16 * 8]
    ldp     x20, x21, [x19, #16 * 10]
    ldp     x22, x23, [x19, #16 * 11]
    ldp     x24, x25, [x19, #16 * 12]
    ldp     x26, x27, [x19, #16 * 13]
    ldp     x28, x29, [x19, #16 * 14]
    ldr     x30, [x19, #16 * 15]
    ldp     x18, x19, [x19, #16 * 9]
    b.ne    3f
    eret
    dsb     nsh                         // no speculation past the return
    isb
3:  br      x4                          // a payload, at EL2; ELR_EL2 and SPSR_EL2 are the caller's, as the stub has it
