// memcpy and memset, in place of the compiler's, which move 8 bytes in 4 instructions.
//
// Every access is aligned, so that they are good with the MMU off too, where all memory is Device memory. C's contract:
// x0 = destination, returned; clobber x1-x11 and the flags.

    .section .text.memory, "ax"

// memset: x1 = the byte, x2 = how many.
    .global memset
    .balign 16
memset:
    mov     x3, x0
    and     x1, x1, #0xff
    orr     x1, x1, x1, lsl #8
    orr     x1, x1, x1, lsl #16
    orr     x1, x1, x1, lsl #32
    cmp     x2, #16
    b.lo    4f
1:  tst     x3, #7                      // at most 7 bytes of the 16
    b.eq    2f
    strb    w1, [x3], #1
    sub     x2, x2, #1
    b       1b
2:  subs    x2, x2, #64
    b.lo    5f
3:  stp     x1, x1, [x3]
    stp     x1, x1, [x3, #16]
    stp     x1, x1, [x3, #32]
    stp     x1, x1, [x3, #48]
    add     x3, x3, #64
    subs    x2, x2, #64
    b.hs    3b
    b       5f
4:  tst     x3, #7
    b.ne    7f
    // The last bits of the count, whatever was taken from it, are what is left of a multiple of 64.
5:  tbz     x2, #5, 6f
    stp     x1, x1, [x3], #16
    stp     x1, x1, [x3], #16
6:  tbz     x2, #4, 6f
    stp     x1, x1, [x3], #16
6:  tbz     x2, #3, 6f
    str     x1, [x3], #8
6:  tbz     x2, #2, 6f
    str     w1, [x3], #4
6:  tbz     x2, #1, 6f
    strh    w1, [x3], #2
6:  tbz     x2, #0, 6f
    strb    w1, [x3]
6:  ret
7:  cbz     x2, 8f
    strb    w1, [x3], #1
    sub     x2, x2, #1
    b       7b
8:  ret

// memcpy: x1 = source, apart from the destination, x2 = how many bytes.
    .global memcpy
    .balign 16
memcpy:
    mov     x3, x0
    eor     x4, x0, x1
    tst     x4, #7
    b.ne    7f
    cmp     x2, #16
    b.lo    4f
1:  tst     x3, #7
    b.eq    2f
    ldrb    w4, [x1], #1
    strb    w4, [x3], #1
    sub     x2, x2, #1
    b       1b
2:  subs    x2, x2, #64
    b.lo    5f
3:  ldp     x4, x5, [x1]
    ldp     x6, x7, [x1, #16]
    ldp     x8, x9, [x1, #32]
    ldp     x10, x11, [x1, #48]
    add     x1, x1, #64
    stp     x4, x5, [x3]
    stp     x6, x7, [x3, #16]
    stp     x8, x9, [x3, #32]
    stp     x10, x11, [x3, #48]
    add     x3, x3, #64
    subs    x2, x2, #64
    b.hs    3b
    b       5f
4:  tst     x3, #7
    b.ne    9f
5:  tbz     x2, #5, 6f
    ldp     x4, x5, [x1], #16
    ldp     x6, x7, [x1], #16
    stp     x4, x5, [x3], #16
    stp     x6, x7, [x3], #16
6:  tbz     x2, #4, 6f
    ldp     x4, x5, [x1], #16
    stp     x4, x5, [x3], #16
6:  tbz     x2, #3, 6f
    ldr     x4, [x1], #8
    str     x4, [x3], #8
6:  tbz     x2, #2, 6f
    ldr     w4, [x1], #4
    str     w4, [x3], #4
6:  tbz     x2, #1, 6f
    ldrh    w4, [x1], #2
    strh    w4, [x3], #2
6:  tbz     x2, #0, 6f
    ldrb    w4, [x1]
    strb    w4, [x3]
6:  ret
    // The two are never aligned together: words of the destination are put together from two of the source.
7:  cmp     x2, #32
    b.lo    9f
1:  tst     x3, #7
    b.eq    8f
    ldrb    w4, [x1], #1
    strb    w4, [x3], #1
    sub     x2, x2, #1
    b       1b
8:  and     x4, x1, #7                  // not 0
    lsl     x4, x4, #3
    neg     x5, x4                      // shifts are modulo 64
    bic     x6, x1, #7
    ldr     x7, [x6], #8
    bic     x8, x2, #7
    add     x1, x1, x8
    and     x2, x2, #7
2:  ldr     x9, [x6], #8                // some of its bytes are the source's
    lsr     x7, x7, x4
    lsl     x10, x9, x5
    orr     x7, x7, x10
    str     x7, [x3], #8
    mov     x7, x9
    subs    x8, x8, #8
    b.ne    2b
9:  cbz     x2, 6f
    ldrb    w4, [x1], #1
    strb    w4, [x3], #1
    sub     x2, x2, #1
    b       9b
6:  ret
