// Macros that every assembly file of the images may use. Each includes this one, because the compiler promises no order of
// modules; the first time counts.
.ifndef keel_macros
.set keel_macros, 1

// adr_l: the run-time address of a symbol anywhere in the image (within 4 GiB).
.macro adr_l, register, symbol
    adrp    \register, \symbol
    add     \register, \register, :lo12:\symbol
.endm

// mov_q: any 64-bit constant.
.macro mov_q, register, value
    movz    \register, #:abs_g3:\value
    movk    \register, #:abs_g2_nc:\value
    movk    \register, #:abs_g1_nc:\value
    movk    \register, #:abs_g0_nc:\value
.endm

// affinity: \out = the affinity fields of this CPU's MPIDR_EL1, every other bit 0.
.macro affinity, out
    mrs     \out, mpidr_el1
    and     \out, \out, #0xffffffffff
    and     \out, \out, #~0xff000000
.endm

// id_field: \out = the unsigned 4-bit field of an ID register at bit \lsb.
.macro id_field, out, id_register, lsb
    mrs     \out, \id_register
    ubfx    \out, \out, #\lsb, #4
.endm
.endif
