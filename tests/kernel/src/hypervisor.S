// The smallest hypervisor that a payload of keel-stub can load: it installs itself, answers a call, and gives EL2 back.
//
// It is a table of vectors; it has no stack and no memory, and EL2's MMU stays off. What it remembers, the stub's vectors,
// is in TPIDR_EL2. Each CPU installs it for itself. HVC from EL1, x0 = call; clobbers x0-x5:
//   0x1000 START(x1 = the stub's vectors)   x0 = 0
//   0x1001 LOOK                             x0-x3 = VBAR_EL2, HCR_EL2, SCTLR_EL2, CNTHCTL_EL2
//   1 SOFT_RESTART(x1, x2, x3, x4)          the stub is back, and x1 runs at EL2 with x0, x1, x2 = x2, x3, x4
//   2 RESET_VECTORS                         the stub is back; x0 = 0. Made again, it has the stub relay SMCs
//   any other                               HVC_STUB_ERR, also SET_VECTORS and FINALISE_EL2: EL2 is taken
	.section .text.hypervisor, "ax"
	.global	hypervisor_install, hypervisor_vectors
hypervisor_install:			// at EL1: x0 = the stub's vectors (keel,vectors in the device tree). x0 = 0: it runs
	str	x0, [sp, #-16]!
	mov	x0, #0			// SET_VECTORS(x1): the stub hands EL2 over
	adr	x1, hypervisor_vectors
	hvc	#0
	ldr	x1, [sp], #16
	cbnz	x0, 1f
	mov	x0, #0x1000		// START: the first call that arrives here
	hvc	#0
1:	ret

	.balign	0x800			// VBAR_EL2 bits 10:0 are RES0
hypervisor_vectors:
	.rept	8; b .; .balign 0x80; .endr	// from EL2 itself: nothing is done there that could fail
	cmp	x0, #1			// from EL1, synchronous: nothing traps, so it is an HVC
	b.eq	soft_restart
	cmp	x0, #2
	b.eq	reset_vectors
	sub	x5, x0, #0x1000
	cbz	x5, start
	cmp	x5, #1
	b.eq	look
	movz	x0, #0x0bad, lsl #16	// HVC_STUB_ERR
	movk	x0, #0xca11
	eret
	.balign	0x80
	.rept	7; b .; .balign 0x80; .endr	// interrupts stay at EL1, and nobody is in AArch32
start:	msr	tpidr_el2, x1
	mov	x0, #0
	eret
look:	mrs	x0, vbar_el2
	mrs	x1, hcr_el2
	mrs	x2, sctlr_el2
	mrs	x3, cnthctl_el2
	eret
reset_vectors:
	mrs	x0, tpidr_el2
	msr	vbar_el2, x0
	mov	x0, #0
	eret
soft_restart:
	mrs	x0, tpidr_el2
	msr	vbar_el2, x0
	isb				// x1 may make the stub's calls
	mov	x5, x1
	mov	x0, x2
	mov	x1, x3
	mov	x2, x4
	br	x5
