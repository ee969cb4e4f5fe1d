// A hypervisor for HVC_SET_VECTORS: as little as one can be that gives EL2 back.
//
// It has one 2 KiB table, no stack and no memory; it runs with EL2's MMU off, at the address it was linked for. What it
// remembers, the stub's vectors, is in TPIDR_EL2. HVC from EL1, x0 = call:
//   0x1000 START(x1)       x1 = the stub's vectors (keel,vectors in the device tree); x0 = 0
//   0x1001 LOOK            x0 = VBAR_EL2, x1 = HCR_EL2, x2 = SCTLR_EL2, x3 = CPTR_EL2, x4 = MDCR_EL2, x5 = CNTHCTL_EL2
//   1 SOFT_RESTART(x1-x4)  the stub is back and x1 runs at EL2h with x0, x1, x2 = x2, x3, x4
//   2 RESET_VECTORS        the stub is back; x0 = 0
//   any other              HVC_STUB_ERR, as a hypervisor that stays must answer SET_VECTORS and FINALISE_EL2
// Clobbers x0-x5.

	.macro	stop			// an exception that does not happen here
	.balign	0x80
	b	.
	.endm

	.section .text.hypervisor, "ax"
	.balign	0x800
	.global	hypervisor_vectors
hypervisor_vectors:
	.rept	8			// from EL2 itself
	stop
	.endr
	.balign	0x80			// from EL1: synchronous. Nothing traps, so it is an HVC
	cmp	x0, #1
	b.eq	soft_restart
	cmp	x0, #2
	b.eq	reset_vectors
	mov	x5, #0x1000
	cmp	x0, x5
	b.eq	start
	add	x5, x5, #1
	cmp	x0, x5
	b.eq	look
	movz	x0, #0x0bad, lsl #16
	movk	x0, #0xca11
	eret
	.rept	7
	stop
	.endr
	.balign	0x80

start:	msr	tpidr_el2, x1
	mov	x0, xzr
	eret
look:	mrs	x0, vbar_el2
	mrs	x1, hcr_el2
	mrs	x2, sctlr_el2
	mrs	x3, cptr_el2
	mrs	x4, mdcr_el2
	mrs	x5, cnthctl_el2
	eret
reset_vectors:
	mrs	x0, tpidr_el2
	msr	vbar_el2, x0
	mov	x0, xzr
	eret
soft_restart:
	mrs	x0, tpidr_el2
	msr	vbar_el2, x0
	isb
	mov	x0, x2
	mov	x2, x4
	mov	x4, x1
	mov	x1, x3
	br	x4

// el2_probe: for SOFT_RESTART. Returns to the HVC that made it, with x0-x2 as it got them and what it found at EL2:
// x5 = CurrentEL, x6 = DAIF, x7 = VBAR_EL2, x8 = HCR_EL2, x9 = SCTLR_EL2, x10 = SPSel.
	.global	el2_probe
el2_probe:
	mrs	x5, CurrentEL
	mrs	x6, daif
	mrs	x7, vbar_el2
	mrs	x8, hcr_el2
	mrs	x9, sctlr_el2
	mrs	x10, spsel
	eret

// el2_undefined: for SOFT_RESTART: an exception of EL2.
	.global	el2_undefined
el2_undefined:
	udf	#0

// el2_calls: for SOFT_RESTART: makes the stub call in x0, x1 from EL2 and returns to EL1 with its answer in x0, x1.
	.global	el2_calls
el2_calls:
	mrs	x11, elr_el2
	mrs	x12, spsr_el2
	hvc	#0
	msr	elr_el2, x11
	msr	spsr_el2, x12
	eret
