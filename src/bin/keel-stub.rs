//! `keel-stub`: the hyp stub. All of it is in the library; here is the entry point that makes it this image.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod entry {
    /// The boot CPU, from boot/entry.S: `tree` = physical address of the device tree. MMU off, on the boot stack.
    #[unsafe(no_mangle)]
    extern "C" fn image_primary(tree: u64, _entry: u64) -> ! {
        keel::init::stub::primary(tree)
    }
}

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("keel runs at EL2 of an arm64 machine: build it for aarch64-unknown-none-softfloat, or use `make run`");
    std::process::exit(2);
}
