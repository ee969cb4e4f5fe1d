//! Firmware for a test: it holds the other CPUs at EL2 as boards without PSCI do, and starts an image as a boot loader does.
//!
//! It is loaded as an arm64 Image at EL2, 126 MiB into RAM, and starts the next one at 64 MiB. `virt` has only PSCI, by which
//! the CPUs get into the pen: those whose Aff0 is 1 up to the number in the word behind the image. Each waits for a word of
//! the table, or, if the next word behind the image is not 0, all for the first. What the device tree says of it all is written by the test that runs this (tests/qemu/spin_table.rs).

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
core::arch::global_asm!(
    r#"
    .section .head, "ax"
    .global image_head
image_head:
    b       start
    .word   0
    .quad   0x7e00000                   // text_offset
    .quad   0x3000                      // image_size
    .quad   0x2                         // flags: little-endian, 4 KiB pages, near the base of RAM
    .quad   0, 0, 0
    .ascii  "ARM\x64"
    .word   0

start:
    mov     x19, x0                     // the device tree
    adr     x21, image_head
    ldr     x22, [x21, #0x2000]         // how many CPUs to hold
    mov     x20, xzr
1:  cmp     x20, x22
    b.hs    2f
    add     x20, x20, #1
    mov     w0, #0x0003                 // CPU_ON
    movk    w0, #0xc400, lsl #16
    mov     x1, x20
    adr     x2, pen
    mov     x3, xzr
    smc     #0
    b       1b
2:  mov     x4, #0x3e00000              // from 126 MiB to 64 MiB
    sub     x4, x21, x4
    mov     x0, x19
    mov     x1, xzr
    mov     x2, xzr
    mov     x3, xzr
    br      x4

pen:
    mrs     x1, mpidr_el1
    and     x1, x1, #0xff
    adr     x2, image_head
    ldr     x3, [x2, #0x2008]           // whether all wait for one word
    cmp     x3, xzr
    csel    x1, x1, xzr, eq
    add     x2, x2, #0x1000             // the table
    add     x2, x2, x1, lsl #3
1:  ldr     x3, [x2]
    cbnz    x3, 2f
    wfe
    b       1b
2:  mov     x0, xzr
    mov     x1, xzr
    mov     x2, xzr
    br      x3

    .org    image_head + 0x2000
"#
);

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
