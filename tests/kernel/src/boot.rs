//! Start-up: Image header and first page table; the rest of the way into `main` is aarch64-rt's.
//!
//! The MMU is on, with caches, before the first Rust instruction. One table of 1 GiB blocks maps 512 GiB of virtual
//! addresses: device memory, RAM, and at [`WINDOW`] a few gigabytes whose physical address is far away, so that a test
//! can touch what lies beyond the guest's memory and beyond its physical address size.

use aarch64_rt::{InitialPagetable, initial_pagetable};
use core::{arch::naked_asm, ops::Range};

/// Block descriptor, access flag set, not executable at EL0. EL1 may read, write and execute.
const BLOCK: usize = 0b01 | 1 << 10 | 1 << 54;
/// MAIR index 0 of aarch64-rt's default: Device-nGnRE; never executed.
const DEVICE: usize = BLOCK | 1 << 53;
/// MAIR index 1 of aarch64-rt's default: Normal write-back; inner shareable.
const NORMAL: usize = BLOCK | 1 << 2 | 3 << 8;

/// Virtual address of the window for a physical address bit: `window(bit)` maps 1 GiB at physical address `1 << bit`.
pub const WINDOW: usize = 256 << 30;

/// Virtual address at which the first gigabyte of RAM is mapped for EL0 to execute.
pub const USER: usize = 255 << 30;

/// Virtual address at which the gigabyte at physical address `1 << bit` is mapped as device memory, for bits 36 to 47.
pub const fn window(bit: u32) -> usize {
    WINDOW + ((bit as usize) << 30)
}

/// Where RAM is mapped, one to one.
pub const MAPPED: Range<usize> = 1 << 30..4 << 30;

/// The memory of the program itself, stacks included.
pub fn program() -> Range<usize> {
    unsafe extern "C" {
        static image_begin: u8;
        static image_end: u8;
    }
    &raw const image_begin as usize..&raw const image_end as usize
}

initial_pagetable!({
    let mut table = [0; 512];
    table[0] = DEVICE;
    table[1] = NORMAL | 1 << 30;
    table[2] = NORMAL | 2 << 30;
    table[3] = NORMAL | 3 << 30;
    // Not executable at EL1, and for EL0 neither to be read nor written.
    table[255] = (NORMAL | 1 << 30 | 1 << 53) & !(1 << 54);
    let mut bit = 36;
    while bit < 48 {
        table[256 + bit] = DEVICE | 1 << bit;
        bit += 1;
    }
    InitialPagetable(table)
});

/// The arm64 Image header and, in its first word, the branch to aarch64-rt's entry point.
///
/// # Safety
///
/// Only a boot loader enters here, once, at EL1 with the MMU off.
#[unsafe(naked)]
#[unsafe(no_mangle)]
#[unsafe(link_section = ".head")]
pub unsafe extern "C" fn image_head() -> ! {
    naked_asm!(
        "b      entry",
        ".word  0",
        ".quad  0x200000",   // text_offset
        ".quad  image_size", // effective size, from the linker script
        ".quad  0x2",        // flags: little-endian, 4 KiB pages, near the base of RAM
        ".quad  0, 0, 0",
        ".ascii \"ARM\\x64\"",
        ".word  0",
    )
}

/// Declares the function a kernel starts in, as `fn(&'static Machine) -> !`.
#[macro_export]
macro_rules! kernel {
    ($main:path) => {
        /// Keeps the header, which nothing calls, in the binary.
        #[used]
        static IMAGE_HEAD: unsafe extern "C" fn() -> ! = $crate::boot::image_head;

        ::aarch64_rt::entry!(kernel_start, 40);
        fn kernel_start(tree: u64, _: u64, _: u64, _: u64) -> ! {
            $main($crate::machine::Machine::discover(tree))
        }

        #[panic_handler]
        fn panic(info: &::core::panic::PanicInfo) -> ! {
            $crate::power::die(info)
        }
    };
}
