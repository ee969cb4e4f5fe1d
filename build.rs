//! Links the EL2 images with `linker.ld` as static position-independent executables, and names the bundle that is linked
//! into `keel` (`KEEL_BUNDLE`; without it the image carries none and needs one in the initrd slot).

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=linker.ld");
    println!("cargo:rerun-if-changed=boot");
    println!("cargo:rerun-if-env-changed=KEEL_BUNDLE");
    let bundle = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("bundle.itb");
    match env::var_os("KEEL_BUNDLE") {
        Some(path) => {
            println!("cargo:rerun-if-changed={}", PathBuf::from(&path).display());
            if let Err(error) = fs::copy(&path, &bundle) {
                panic!("KEEL_BUNDLE names {}, which cannot be read: {error}", PathBuf::from(&path).display());
            }
        }
        None => fs::write(&bundle, []).expect("OUT_DIR is writable"),
    }
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("none") {
        let script =
            PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR")).join("linker.ld");
        println!("cargo:rustc-link-arg-bins=-T{}", script.display());
        for argument in ["-pie", "--no-dynamic-linker", "-znorelro", "-znotext", "--no-eh-frame-hdr", "--gc-sections"] {
            println!("cargo:rustc-link-arg-bins={argument}");
        }
    }
}
