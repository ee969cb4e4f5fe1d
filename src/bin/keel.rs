//! `keel`: the type-1 hypervisor. All of it is in the library; here are the entry points that make it this image.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod entry {
    /// The boot CPU, from boot/entry.S: `tree` = physical address of the device tree, `entry` = the counter at the first
    /// instruction. MMU off, on the boot stack.
    #[unsafe(no_mangle)]
    extern "C" fn image_primary(tree: u64, entry: u64) -> ! {
        keel::init::start::primary(tree, entry)
    }

    // Behind the Image header, at offset 64: eight letters, and where the vectors of the late entry are in the image
    // (boot/late.S).
    core::arch::global_asm!(
        ".section .head.late, \"a\"",
        ".ascii \"KEELLATE\"",
        // From the image's first byte: this word is at offset 72.
        ".quad late_vectors - . + 72",
        ".previous",
    );

    /// The first CPU of a kernel that puts keel under itself, from boot/late.S. Comes back with a negative error number.
    #[unsafe(no_mangle)]
    extern "C" fn image_late_primary(block: u64, frame: &keel::arch::late::LateFrame) -> i64 {
        keel::init::late::primary(block, frame)
    }

    /// Its other CPUs: MMU on, on their own stacks.
    #[unsafe(no_mangle)]
    extern "C" fn image_late_secondary(index: usize, frame: &keel::arch::late::LateFrame) -> i64 {
        keel::init::late::secondary(index, frame)
    }

    /// Every other CPU, from boot/entry.S: MMU on, on its own stack.
    #[unsafe(no_mangle)]
    extern "C" fn image_secondary(index: usize) -> ! {
        keel::init::smp::secondary(index)
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("keel runs at EL2 of an arm64 machine: build it for aarch64-unknown-none-softfloat, or use `make run`");
    std::process::exit(2);
}
