// Code for SOFT_RESTART: it is at EL2, MMU off, and returns to EL1 behind the HVC that made the call.

	.section .text.el2, "ax"

// el2_probe: x0-x2 as it got them, and what it found at EL2:
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

// el2_undefined: an exception of EL2.
	.global	el2_undefined
el2_undefined:
	udf	#0

// el2_calls: makes the stub call in x0, x1 from EL2; its answer is in x0, x1.
	.global	el2_calls
el2_calls:
	mrs	x11, elr_el2
	mrs	x12, spsr_el2
	hvc	#0
	msr	elr_el2, x11
	msr	spsr_el2, x12
	eret
