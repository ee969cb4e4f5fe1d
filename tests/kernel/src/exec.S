// One instruction with every register known before it and recorded after it.
//
// exec_template(x0 = in: *const Registers, x1 = out: *mut Registers)
//   The code from exec_template to exec_template_end is copied into writable memory, and the instruction under test
//   replaces the nop at exec_template_slot. It depends on nothing but sp, so it runs wherever it is copied.
//   in:  x0-x30, NZCV and v0-v31 are loaded from *in; sp is left as it is.
//   out: what they are afterwards; sp before and after.
//   keeps x19-x30 as a call must; v8-v15 are not kept: the kernel is soft-float and has nothing there.
//   stack: 112 bytes, and 16 more after the slot.
	.arch_extension fp
	.arch_extension simd

	.section .text.exec_template, "ax"
	.balign	16
	.global	exec_template
	.global	exec_template_slot
	.global	exec_template_end
exec_template:
	stp	x29, x30, [sp, #-16]!
	stp	x27, x28, [sp, #-16]!
	stp	x25, x26, [sp, #-16]!
	stp	x23, x24, [sp, #-16]!
	stp	x21, x22, [sp, #-16]!
	stp	x19, x20, [sp, #-16]!
	stp	x0, x1, [sp, #-16]!
	mov	x2, sp
	str	x2, [x1, #{SP_BEFORE}]
	ldr	x2, [x0, #{NZCV}]
	msr	nzcv, x2
	ldp	q0, q1, [x0, #{VECTORS} + 16 * 0]
	ldp	q2, q3, [x0, #{VECTORS} + 16 * 2]
	ldp	q4, q5, [x0, #{VECTORS} + 16 * 4]
	ldp	q6, q7, [x0, #{VECTORS} + 16 * 6]
	ldp	q8, q9, [x0, #{VECTORS} + 16 * 8]
	ldp	q10, q11, [x0, #{VECTORS} + 16 * 10]
	ldp	q12, q13, [x0, #{VECTORS} + 16 * 12]
	ldp	q14, q15, [x0, #{VECTORS} + 16 * 14]
	ldp	q16, q17, [x0, #{VECTORS} + 16 * 16]
	ldp	q18, q19, [x0, #{VECTORS} + 16 * 18]
	ldp	q20, q21, [x0, #{VECTORS} + 16 * 20]
	ldp	q22, q23, [x0, #{VECTORS} + 16 * 22]
	ldp	q24, q25, [x0, #{VECTORS} + 16 * 24]
	ldp	q26, q27, [x0, #{VECTORS} + 16 * 26]
	ldp	q28, q29, [x0, #{VECTORS} + 16 * 28]
	ldp	q30, q31, [x0, #{VECTORS} + 16 * 30]
	ldp	x1, x2, [x0, #8 * 1]
	ldp	x3, x4, [x0, #8 * 3]
	ldp	x5, x6, [x0, #8 * 5]
	ldp	x7, x8, [x0, #8 * 7]
	ldp	x9, x10, [x0, #8 * 9]
	ldp	x11, x12, [x0, #8 * 11]
	ldp	x13, x14, [x0, #8 * 13]
	ldp	x15, x16, [x0, #8 * 15]
	ldp	x17, x18, [x0, #8 * 17]
	ldp	x19, x20, [x0, #8 * 19]
	ldp	x21, x22, [x0, #8 * 21]
	ldp	x23, x24, [x0, #8 * 23]
	ldp	x25, x26, [x0, #8 * 25]
	ldp	x27, x28, [x0, #8 * 27]
	ldp	x29, x30, [x0, #8 * 29]
	ldr	x0, [x0]
exec_template_slot:
	nop
	stp	x0, x1, [sp, #-16]!
	ldr	x0, [sp, #24]
	stp	x2, x3, [x0, #8 * 2]
	stp	x4, x5, [x0, #8 * 4]
	stp	x6, x7, [x0, #8 * 6]
	stp	x8, x9, [x0, #8 * 8]
	stp	x10, x11, [x0, #8 * 10]
	stp	x12, x13, [x0, #8 * 12]
	stp	x14, x15, [x0, #8 * 14]
	stp	x16, x17, [x0, #8 * 16]
	stp	x18, x19, [x0, #8 * 18]
	stp	x20, x21, [x0, #8 * 20]
	stp	x22, x23, [x0, #8 * 22]
	stp	x24, x25, [x0, #8 * 24]
	stp	x26, x27, [x0, #8 * 26]
	stp	x28, x29, [x0, #8 * 28]
	str	x30, [x0, #8 * 30]
	mrs	x2, nzcv
	str	x2, [x0, #{NZCV}]
	stp	q0, q1, [x0, #{VECTORS} + 16 * 0]
	stp	q2, q3, [x0, #{VECTORS} + 16 * 2]
	stp	q4, q5, [x0, #{VECTORS} + 16 * 4]
	stp	q6, q7, [x0, #{VECTORS} + 16 * 6]
	stp	q8, q9, [x0, #{VECTORS} + 16 * 8]
	stp	q10, q11, [x0, #{VECTORS} + 16 * 10]
	stp	q12, q13, [x0, #{VECTORS} + 16 * 12]
	stp	q14, q15, [x0, #{VECTORS} + 16 * 14]
	stp	q16, q17, [x0, #{VECTORS} + 16 * 16]
	stp	q18, q19, [x0, #{VECTORS} + 16 * 18]
	stp	q20, q21, [x0, #{VECTORS} + 16 * 20]
	stp	q22, q23, [x0, #{VECTORS} + 16 * 22]
	stp	q24, q25, [x0, #{VECTORS} + 16 * 24]
	stp	q26, q27, [x0, #{VECTORS} + 16 * 26]
	stp	q28, q29, [x0, #{VECTORS} + 16 * 28]
	stp	q30, q31, [x0, #{VECTORS} + 16 * 30]
	ldp	x2, x3, [sp], #16
	stp	x2, x3, [x0]
	mov	x2, sp
	str	x2, [x0, #{SP_AFTER}]
	add	sp, sp, #16
	ldp	x19, x20, [sp], #16
	ldp	x21, x22, [sp], #16
	ldp	x23, x24, [sp], #16
	ldp	x25, x26, [sp], #16
	ldp	x27, x28, [sp], #16
	ldp	x29, x30, [sp], #16
	ret
exec_template_end:
