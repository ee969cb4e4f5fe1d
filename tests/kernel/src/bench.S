// Vectors for the benchmarks: the shortest IRQ handler there is.
//
// bench_vectors
//   IRQ from EL1 with SP_EL1: stops the virtual timer's output (IMASK), acknowledges, adds 1 to x27, ends.
//   in:  x26 = what is written to CNTV_CTL_EL0: 2 (ENABLE clear, IMASK set) silences the timer.
//   out: x27 = x27 + 1. Clobbers x28. Stack: none.
//   Any other exception stays in its slot for the time-out to find.
//
// bench_echo_vectors
//   IRQ of the other CPU of the IPI benchmark: acknowledges, ends, stores 1 to [x27].
//   Clobbers x28. Stack: none.
//
// bench_start_entry
//   A CPU's first instruction, for the benchmark of CPU_ON, at EL1 with the MMU off: stores the counter to [x0] and turns the
//   CPU off. Stack: none.
// bench_vectors_v2, bench_echo_vectors_v2
//   The same with a GICv2.
//   in: also x25 = address of its CPU interface.

	.section .text.bench_vectors, "ax"
	.macro	slot
	.balign	0x80
	b	.
	.endm

	// GICC_IAR, GICC_EOIR.
	.macro	acknowledge_and_end_v2
	ldr	w28, [x25, #0xc]
	str	w28, [x25, #0x10]
	.endm

	.balign	0x800
	.global	bench_vectors
bench_vectors:
	slot
	slot
	slot
	slot
	slot
	.balign	0x80
	msr	cntv_ctl_el0, x26
	mrs	x28, S3_0_C12_C12_0
	msr	S3_0_C12_C12_1, x28
	add	x27, x27, #1
	eret
	slot
	slot
	slot
	slot
	slot
	slot
	slot
	slot
	slot
	slot

	.balign	0x800
	.global	bench_echo_vectors
bench_echo_vectors:
	slot
	slot
	slot
	slot
	slot
	.balign	0x80
	mrs	x28, S3_0_C12_C12_0
	msr	S3_0_C12_C12_1, x28
	mov	x28, #1
	stlr	x28, [x27]
	eret
	slot
	slot
	slot
	slot
	slot
	slot
	slot
	slot
	slot
	slot

	.balign	4
	.global	bench_start_entry
bench_start_entry:
	isb
	mrs	x1, cntvct_el0
	str	x1, [x0]
	dsb	sy
	movz	w0, #0x8400, lsl #16	// CPU_OFF
	movk	w0, #0x0002
	hvc	#0
	b	.
	.balign	0x800
	.global	bench_vectors_v2
bench_vectors_v2:
	slot
	slot
	slot
	slot
	slot
	.balign	0x80
	msr	cntv_ctl_el0, x26
	acknowledge_and_end_v2
	add	x27, x27, #1
	eret
	slot
	slot
	slot
	slot
	slot
	slot
	slot
	slot
	slot
	slot

	.balign	0x800
	.global	bench_echo_vectors_v2
bench_echo_vectors_v2:
	slot
	slot
	slot
	slot
	slot
	.balign	0x80
	acknowledge_and_end_v2
	mov	x28, #1
	stlr	x28, [x27]
	eret
	slot
	slot
	slot
	slot
	slot
	slot
	slot
	slot
	slot
	slot
