// keel's EL2 vectors and the world switch.
//
// The switch is a call: `vcpu_enter` loads a vCPU's general registers and returns, with the reason, when the guest traps.
// Only x0-x30, ELR_EL2 and SPSR_EL2 move; everything else of the guest stays in the machine.
//
// While a guest runs, SP_EL2 is where `vcpu_enter` left it:
//      sp + 0   VcpuContext of the guest
//      sp + 8   caller's x19
//      sp + 16  caller's x29, x30
// The caller treats every other register as clobbered (src/vcpu/switch.rs), so none is saved here that it does not need.

// A slot that is too long is an error of the assembler: `.org` cannot move backwards.
.macro slot_end start
    .org \start + 0x80
.endm

// An exception out of a guest that Rust handles: x0, x1 go to the stack, x0 = reason.
.macro guest_slot reason
9990:
    stp     x0, x1, [sp, #-16]!
    mov     x0, #\reason
    b       vcpu_exit
    slot_end 9990b
.endm

// An exception in keel itself: never resumed.
.macro fatal_slot kind
9991:
    msr     tpidrro_el0, x0             // scratch: no guest is going to run on this CPU again
    msr     tpidr_el0, x30
    mov     x0, #\kind
    b       keel_fatal_entry
    slot_end 9991b
.endm

// An SError in keel itself. Where keel has opened PSTATE.A to take one it goes on, with ESR_EL2 as the answer.
.macro serror_slot kind
9993:
    msr     tpidrro_el0, x0             // scratch, as above: in the window no guest's registers are in the machine
    msr     tpidr_el0, x30
    mrs     x30, elr_el2
    adr     x0, serror_window
    sub     x30, x30, x0
    cmp     x30, #8                     // before the window's ISB, behind it, or behind the MSR that ends it
    b.ls    serror_expected
    mov     x0, #\kind
    b       keel_fatal_entry
    slot_end 9993b
.endm

// A table of vectors. \arch is where calls of owner 0 go.
.macro vector_table arch
    fatal_slot 0                        // current EL with SP_EL0: keel never uses it
    fatal_slot 1
    fatal_slot 2
    fatal_slot 3
    fatal_slot 4                        // current EL with SP_EL2
    fatal_slot 5
    fatal_slot 6
    serror_slot 7

// Lower EL, AArch64, synchronous. The calls whose answer is a constant of the VM are answered here: SMCCC_VERSION,
// the three ARCH_WORKAROUNDs (SMCCC, owner 0) and PSCI_VERSION. Result in x0, x1-x3 = 0 (SMCCC 1.1).
9992:
    stp     x0, x1, [sp, #-16]!
    mrs     x1, esr_el2
    lsr     x1, x1, #26
    cmp     x1, #0x16                   // EC: HVC from AArch64
    b.ne    1f
    eor     w1, w0, #0x80000000         // fast call, SMC32 convention
    lsr     w1, w1, #16
    cbz     w1, \arch                   // owner 0, bits 23:16 clear
    cmp     w1, #0x400                  // owner 4: standard secure services
    b.eq    hvc_standard
1:  mov     x0, #{exit_sync}
    b       vcpu_exit
    slot_end 9992b

    guest_slot {exit_irq}
    guest_slot {exit_fiq}
    guest_slot {exit_serror}

    guest_slot {exit_aarch32}           // lower EL, AArch32: a program's, or all of a 32-bit guest
    guest_slot {exit_irq}
    guest_slot {exit_fiq}
    guest_slot {exit_serror}
.endm

    .section .text.hot.vectors, "ax"
    .balign 0x800
    .global keel_vectors
keel_vectors:
    vector_table hvc_arch

// For a CPU on which a workaround is firmware's: its calls go there.
    .balign 0x800
    .global keel_vectors_firmware
keel_vectors_firmware:
    vector_table hvc_arch_firmware

// w0 = 0x8000_nnnn. WORKAROUND_1 and WORKAROUND_3 are carried out by firmware, which keeps x4-x30 (SMCCC 1.1) and ELR_EL2
// and SPSR_EL2 (they are not EL3's). WORKAROUND_2 is a switch for the whole CPU that keel has set (src/init/smp.rs): no
// guest's to turn.
hvc_arch_firmware:
    and     w1, w0, #0xffff
    cmp     w1, #8, lsl #12             // SMCCC_ARCH_WORKAROUND_1, 0x8000_8000
    b.eq    1f
    add     w1, w1, #1
    cmp     w1, #4, lsl #12             // SMCCC_ARCH_WORKAROUND_3, 0x8000_3fff
    b.ne    hvc_arch
1:  mov     w0, w0
    smc     #0
    b       hvc_return_zero

// w0 = 0x8000_nnnn.
hvc_arch:
    ands    w1, w0, #0xffff
    b.eq    hvc_smccc_version
    cmp     w1, #8, lsl #12             // SMCCC_ARCH_WORKAROUND_1, 0x8000_8000
    b.eq    hvc_return_zero
    add     w1, w1, #1
    cmp     w1, #8, lsl #12             // SMCCC_ARCH_WORKAROUND_2, 0x8000_7fff
    b.eq    hvc_return_zero
    cmp     w1, #4, lsl #12             // SMCCC_ARCH_WORKAROUND_3, 0x8000_3fff
    b.eq    hvc_return_zero
    mov     x0, #{exit_sync}
    b       vcpu_exit

hvc_smccc_version:
    mov     x0, #0x10000                // 1.1
    add     x0, x0, #1
    b       hvc_return

// w0 = 0x8400_nnnn. The version is the VM's; bit 63 says that it is not for here to answer.
hvc_standard:
    tst     w0, #0xffff
    b.ne    1f
    ldr     x0, [sp, #16]
    ldr     x0, [x0, #{ctx_psci_version}]
    tbz     x0, #63, hvc_return
1:  mov     x0, #{exit_sync}
    b       vcpu_exit

hvc_return_zero:
    mov     x0, xzr
hvc_return:
    mov     x1, xzr
    mov     x2, xzr
    mov     x3, xzr
    add     sp, sp, #16
    eret
    dsb     nsh                         // no speculation past the return
    isb

// vcpu_enter: runs a guest until it traps.
//   in: x0 = &mut VcpuContext. out: x0 = reason (EXIT_*).
//   Preserves x19, x29, sp. Clobbers everything else. Stack: 32 bytes.
    .balign 64
    .global vcpu_enter
vcpu_enter:
    stp     x0, x19, [sp, #-32]!
    stp     x29, x30, [sp, #16]
    ldp     x2, x3, [x0, #{ctx_elr}]
    msr     elr_el2, x2
    msr     spsr_el2, x3
    ldp     x2, x3, [x0, #{ctx_gpr} + 16]
    ldp     x4, x5, [x0, #{ctx_gpr} + 32]
    ldp     x6, x7, [x0, #{ctx_gpr} + 48]
    ldp     x8, x9, [x0, #{ctx_gpr} + 64]
    ldp     x10, x11, [x0, #{ctx_gpr} + 80]
    ldp     x12, x13, [x0, #{ctx_gpr} + 96]
    ldp     x14, x15, [x0, #{ctx_gpr} + 112]
    ldp     x16, x17, [x0, #{ctx_gpr} + 128]
    ldp     x18, x19, [x0, #{ctx_gpr} + 144]
    ldp     x20, x21, [x0, #{ctx_gpr} + 160]
    ldp     x22, x23, [x0, #{ctx_gpr} + 176]
    ldp     x24, x25, [x0, #{ctx_gpr} + 192]
    ldp     x26, x27, [x0, #{ctx_gpr} + 208]
    ldp     x28, x29, [x0, #{ctx_gpr} + 224]
    ldr     x30, [x0, #{ctx_gpr} + 240]
    ldp     x0, x1, [x0, #{ctx_gpr}]
    eret
    dsb     nsh
    isb

// vcpu_exit: in x0 = reason; the guest's x0, x1 on the stack. Returns from the vcpu_enter that ran the guest.
    .balign 64
vcpu_exit:
    ldr     x1, [sp, #16]
    stp     x2, x3, [x1, #{ctx_gpr} + 16]
    stp     x4, x5, [x1, #{ctx_gpr} + 32]
    stp     x6, x7, [x1, #{ctx_gpr} + 48]
    stp     x8, x9, [x1, #{ctx_gpr} + 64]
    stp     x10, x11, [x1, #{ctx_gpr} + 80]
    stp     x12, x13, [x1, #{ctx_gpr} + 96]
    stp     x14, x15, [x1, #{ctx_gpr} + 112]
    stp     x16, x17, [x1, #{ctx_gpr} + 128]
    stp     x18, x19, [x1, #{ctx_gpr} + 144]
    stp     x20, x21, [x1, #{ctx_gpr} + 160]
    stp     x22, x23, [x1, #{ctx_gpr} + 176]
    stp     x24, x25, [x1, #{ctx_gpr} + 192]
    stp     x26, x27, [x1, #{ctx_gpr} + 208]
    stp     x28, x29, [x1, #{ctx_gpr} + 224]
    str     x30, [x1, #{ctx_gpr} + 240]
    ldp     x2, x3, [sp], #16
    stp     x2, x3, [x1, #{ctx_gpr}]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x2, x3, [x1, #{ctx_elr}]
    ldp     x29, x30, [sp, #16]
    ldp     x2, x19, [sp], #32          // x2: not needed any more
    ret

// take_serror: takes the SError that is pending, which HCR_EL2.AMO brings here. No guest's registers are in the machine.
//   out: x0 = its ESR_EL2, 0 if there was none. Clobbers TPIDRRO_EL0, TPIDR_EL0 and the flags. No stack.
    .balign 64
    .global take_serror
take_serror:
    mov     x0, xzr
    msr     daifclr, #4
serror_window:
    isb
    msr     daifset, #4
    ret

// In the window x0 is the answer; the SError is gone once taken, so what is left of the window passes.
serror_expected:
    mrs     x30, tpidr_el0
    mrs     x0, esr_el2
    eret
    dsb     nsh
    isb

// keel_fatal_entry: keel's own exception. in: x0 = kind (0-7), TPIDRRO_EL0, TPIDR_EL0 = x0, x30 at the exception.
// The stack may be the reason, so the report runs on one of its own; only the first CPU to come here reports.
    .section .text.fatal, "ax"
    .global keel_fatal_entry
keel_fatal_entry:
    adr_l   x30, fatal_taken
    // The MMU is on whenever these vectors are installed, so exclusives work. x29 is saved only when we are first.
    stp     x28, x29, [x30, #16]
    mov     w29, #1
1:  ldaxr   w28, [x30]
    cbnz    w28, 3f
    stxr    w28, w29, [x30]
    cbnz    w28, 1b
    ldp     x28, x29, [x30, #16]
    adr_l   x30, fatal_frame
    stp     x1, x2, [x30, #8]
    stp     x3, x4, [x30, #24]
    stp     x5, x6, [x30, #40]
    stp     x7, x8, [x30, #56]
    stp     x9, x10, [x30, #72]
    stp     x11, x12, [x30, #88]
    stp     x13, x14, [x30, #104]
    stp     x15, x16, [x30, #120]
    stp     x17, x18, [x30, #136]
    stp     x19, x20, [x30, #152]
    stp     x21, x22, [x30, #168]
    stp     x23, x24, [x30, #184]
    stp     x25, x26, [x30, #200]
    stp     x27, x28, [x30, #216]
    str     x29, [x30, #232]
    mrs     x1, tpidrro_el0
    str     x1, [x30]
    mrs     x1, tpidr_el0
    mov     x2, sp
    stp     x1, x2, [x30, #240]
    mov     x1, x30
    adr_l   x2, fatal_stack_top
    mov     sp, x2
    bl      keel_fatal                  // x0 = kind, x1 = &FatalFrame; never returns
3:  wfe
    b       3b

    .section .noinit.fatal, "aw", %nobits
    .balign 16
fatal_frame:
    .space  256
fatal_stack:
    .space  0x4000
fatal_stack_top:
    .section .data.fatal, "aw"
    .balign 16
fatal_taken:
    .space  32
