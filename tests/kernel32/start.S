@ Entry, vectors and the instructions that C cannot say.
@
@ An exception goes on in Supervisor mode, whatever mode it was taken to: its return state is stored on that mode's stack.
@ struct frame (main.h): r0-r12, lr of Supervisor mode, return address, SPSR.

        .syntax unified
        .arch   armv7ve
        .fpu    neon-vfpv4
        .arm

        .section .text.start, "ax"
        .global start
start:  ldr     r3, =boot_tree
        ldr     sp, =stacks + 0x4000
        str     r2, [r3]
        ldr     r0, =vectors
        mcr     p15, 0, r0, c12, c0, 0          @ VBAR
        bl      enable_fp
        bl      main
1:      wfi
        b       1b

@ FP and SIMD for Supervisor mode: CPACR cp10 and cp11, FPEXC.EN.
        .global enable_fp
enable_fp:
        mrc     p15, 0, r0, c1, c0, 2
        orr     r0, r0, #0xf << 20
        mcr     p15, 0, r0, c1, c0, 2
        isb
        mov     r0, #1 << 30
        vmsr    fpexc, r0
        bx      lr

@ Entry of a second CPU, in A32 and in T32: r0 = its number. The instruction set it came in is passed on.
        .global second_a32, second_t32
second_a32:
        mov     r1, #0
second: ldr     sp, =stacks
        add     r2, r0, #1
        add     sp, sp, r2, lsl #14
        push    {r0, r1}
        ldr     r2, =vectors
        mcr     p15, 0, r2, c12, c0, 0
        bl      enable_fp
        pop     {r0, r1}
        bl      second_main
1:      wfi
        b       1b
        .thumb
        .thumb_func
second_t32:
        movs    r1, #1
        ldr     r2, =second
        bx      r2
        .ltorg
        .arm

        .macro  taken kind, offset
        .if     \offset
        sub     lr, lr, #\offset
        .endif
        srsdb   sp!, #0x13
        cps     #0x13
        push    {r0-r12, lr}
        mov     r0, #\kind
        mov     r1, sp
        bl      exception
        pop     {r0-r12, lr}
        rfeia   sp!
        .endm

        .balign 32
vectors:
        b       .
        b       undefined
        b       supervisor
        b       prefetch
        b       data
        b       .
        b       irq
        b       .
undefined:
        taken   1, 0
supervisor:
        taken   2, 0
prefetch:
        taken   3, 4
data:   taken   4, 8
irq:    taken   5, 4

@ call(registers): r0-r12 from the array, one instruction, r0-r12 back into it.
        .macro  caller name, instruction
        .global \name
\name:  push    {r4-r12, lr}
        push    {r0}
        ldm     r0, {r0-r12}
        \instruction
        push    {r0}
        ldr     r0, [sp, #4]
        str     r12, [r0, #48]
        pop     {r12}
        stm     r0!, {r12}
        stm     r0, {r1-r11}
        add     sp, sp, #4
        pop     {r4-r12, pc}
        .endm

        caller  call_hvc, "hvc #0"
        caller  call_hvc_immediate, "hvc #0x4d2"
        caller  call_smc, "smc #0"
        caller  call_smc_immediate, "smc #5"

@ The same from T32.
        .macro  caller_t32 name, instruction
        .global \name
\name:  push    {r4-r12, lr}
        push    {r0}
        ldm     r0, {r0-r12}
        blx     1f
        push    {r0}
        ldr     r0, [sp, #4]
        str     r12, [r0, #48]
        pop     {r12}
        stm     r0!, {r12}
        stm     r0, {r1-r11}
        add     sp, sp, #4
        pop     {r4-r12, pc}
        .thumb
        .thumb_func
1:      \instruction
        bx      lr
        .arm
        .endm

        caller_t32 call_hvc_t32, "hvc #0"
        caller_t32 call_smc_t32, "smc #0"

@ smc_if_equal(registers, equal): an SMC with condition EQ, in A32; the same in T32, where ITSTATE says it.
        .global smc_if_equal
smc_if_equal:
        push    {r4-r6, lr}
        mov     r4, r0
        ldm     r4, {r0, r2, r3}
        cmp     r1, #1
        smceq   #0
        str     r0, [r4]
        pop     {r4-r6, pc}

@ in_it_block(equal, address): ITTEE EQ over a trapped ID register, a load of a device (two bytes long), and their
@ opposites. Returns 1 for the first two and 2 for the last two, 0 if it is neither.
        .thumb
        .global in_it_block
        .thumb_func
in_it_block:
        push    {r4, lr}
        movs    r2, #0
        movs    r3, #0
        mov     r4, r1
        movs    r1, #0
        cmp     r0, #1
        ittee   eq
        mrceq   p15, 0, r2, c0, c1, 0
        ldreq   r1, [r4]
        mrcne   p15, 0, r3, c0, c1, 0
        ldrne   r1, [r4]
        movs    r0, #0
        cmp     r2, #0
        it      ne
        addne   r0, #1
        cmp     r3, #0
        it      ne
        addne   r0, #2
        cmp     r1, #0x90                       @ the UART's flags after reset: FIFOs empty
        it      ne
        movne   r0, #0
        pop     {r4, pc}

@ undefined_t32(): L2CTLR of a Cortex-A, in T32. load_t32(address): two bytes long.
        .global undefined_t32
        .thumb_func
undefined_t32:
        mrc     p15, 1, r0, c9, c0, 2
        bx      lr
        .global load_t32
        .thumb_func
load_t32:
        ldr     r0, [r0]
        bx      lr
        .arm

@ mrc_if_equal(equal): ID_PFR0, which traps, with condition EQ; 0 if not executed.
        .global mrc_if_equal
mrc_if_equal:
        cmp     r0, #1
        mov     r0, #0
        mrceq   p15, 0, r0, c0, c1, 0
        bx      lr

@ load_into_each(address, out): a device's word by each register that a mode has of its own: lr of Supervisor and of Abort
@ mode, r8 to r12 and lr of FIQ mode, sp and lr of System mode.
        .global load_into_each
load_into_each:
        push    {r4-r12, lr}
        mov     r4, r0
        mov     r5, r1
        mrs     r6, cpsr
        mov     r7, sp
        ldr     lr, [r4]
        str     lr, [r5], #4
        cpsid   if, #0x17
        ldr     lr, [r4]
        str     lr, [r5], #4
        cps     #0x11
        ldr     r8, [r4]
        ldr     r9, [r4]
        ldr     r12, [r4]
        ldr     lr, [r4]
        stm     r5!, {r8, r9, r12, lr}
        cps     #0x1f
        ldr     lr, [r4]
        ldr     sp, [r4]
        str     lr, [r5], #4
        str     sp, [r5], #4
        msr     cpsr_c, r6
        mov     sp, r7
        pop     {r4-r12, pc}

@ read_into_lr(): a trapped register by lr.
        .global read_into_lr
read_into_lr:
        mov     r1, lr
        mrc     p15, 0, lr, c0, c1, 0
        mov     r0, lr
        bx      r1

@ user_load(address): from User mode, which an SVC leaves again.
        .global user_load
user_load:
        push    {r4, lr}
        cps     #0x10
        ldr     r0, [r0]
        svc     #0
        pop     {r4, pc}

@ Loads that no syndrome describes.
        .global load_pair
load_pair:
        ldrd    r0, r1, [r0]
        bx      lr
        .global load_post
load_post:
        ldr     r1, [r0], #4
        bx      lr

@ jump_to(address): there is nothing.
        .global jump_to
jump_to:
        push    {r4, lr}
        blx     r0
        pop     {r4, pc}

@ fill_state(seed): everything that a CPU holds of a vCPU and C does not use gets a number of its own; check_state(seed)
@ counts those that have another.
        .macro  each operation
        \operation spsr_abt, 1
        \operation spsr_und, 2
        \operation spsr_fiq, 3
        \operation r8_fiq, 4
        \operation r9_fiq, 5
        \operation r10_fiq, 6
        \operation r11_fiq, 7
        \operation r12_fiq, 8
        \operation sp_fiq, 9
        \operation lr_fiq, 10
        \operation sp_abt, 11
        \operation lr_abt, 12
        \operation sp_und, 13
        \operation lr_und, 14
        \operation sp_usr, 15
        \operation lr_usr, 16
        .endm
        .macro  put register, n
        add     r2, r0, #\n
        msr     \register, r2
        .endm
        .macro  check register, n
        add     r2, r0, #\n
        mrs     r3, \register
        cmp     r2, r3
        addne   r1, r1, #1
        .endm
        .macro  copro operation
        \operation 0, 3, 0, 0, 17               @ DACR
        \operation 0, 5, 0, 1, 18               @ IFSR
        \operation 0, 6, 0, 0, 19               @ DFAR
        \operation 0, 6, 0, 2, 20               @ IFAR
        \operation 0, 13, 0, 2, 21              @ TPIDRURW
        \operation 0, 13, 0, 3, 22              @ TPIDRURO
        \operation 0, 13, 0, 4, 23              @ TPIDRPRW
        .endm
        .macro  put_cp opc1, crn, crm, opc2, n
        add     r2, r0, #\n
        .if     \crn == 5
        and     r2, r2, #0xf
        .endif
        mcr     p15, \opc1, r2, c\crn, c\crm, \opc2
        .endm
        .macro  check_cp opc1, crn, crm, opc2, n
        add     r2, r0, #\n
        .if     \crn == 5
        and     r2, r2, #0xf
        .endif
        mrc     p15, \opc1, r3, c\crn, c\crm, \opc2
        cmp     r2, r3
        addne   r1, r1, #1
        .endm

        .global fill_state, check_state
fill_state:
        each    put
        copro   put_cp
        .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
        add     r2, r0, #\n
        mvn     r3, r2
        vmov    d\n, r2, r3
        .endr
        and     r2, r0, #0xf
        mov     r2, r2, lsl #28
        vmsr    fpscr, r2
        bx      lr
check_state:
        mov     r1, #0
        each    check
        copro   check_cp
        push    {r4, r5}
        .irp    n, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
        add     r2, r0, #\n
        mvn     r3, r2
        vmov    r4, r5, d\n
        cmp     r2, r4
        cmpeq   r3, r5
        addne   r1, r1, #1
        .endr
        pop     {r4, r5}
        and     r2, r0, #0xf
        mov     r2, r2, lsl #28
        vmrs    r3, fpscr
        cmp     r2, r3
        addne   r1, r1, #1
        mov     r0, r1
        bx      lr

@ with_mmu(ttbr, ttbcr, address): a load through the tables, with the MMU on only around it. The caches stay off.
        .global with_mmu
with_mmu:
        push    {r4-r6, lr}
        mov     r4, #1
        mcr     p15, 0, r4, c3, c0, 0           @ DACR: domain 0 is a client
        mcr     p15, 0, r1, c2, c0, 2           @ TTBCR
        isb
        tst     r1, #1 << 31
        moveq   r4, #0
        mcreq   p15, 0, r0, c2, c0, 0           @ TTBR0
        movne   r4, #0
        mcrrne  p15, 0, r0, r4, c2
        mcr     p15, 0, r0, c8, c7, 0           @ TLBIALL
        dsb
        isb
        mrc     p15, 0, r5, c1, c0, 0
        orr     r6, r5, #1
        mcr     p15, 0, r6, c1, c0, 0
        isb
        ldr     r0, [r2]
        mcr     p15, 0, r5, c1, c0, 0
        isb
        mov     r1, #0
        mcr     p15, 0, r1, c2, c0, 2
        isb
        pop     {r4-r6, pc}

        .bss
        .balign 8
        .global stacks
stacks: .space  0x4000 * 8

        .section .note.GNU-stack, "", %progbits
