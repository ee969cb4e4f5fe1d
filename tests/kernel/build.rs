//! Gives the linker the layout of the bare-metal binaries.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=kernel.ld");
    println!("cargo:rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let script = PathBuf::from(env::var("CARGO_MANIFEST_DIR").unwrap_or_default()).join("kernel.ld");
        println!("cargo:rustc-link-arg-bins=-T{}", script.display());
        // Segments on 4 KiB boundaries: the ELF file and the flat image stay small.
        println!("cargo:rustc-link-arg-bins=-zmax-page-size=4096");
    }
}
