//! `keel-stub`: the hyp stub. All of it is in the library; linking it in brings the entry point along.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
use keel as _;

#[cfg(not(target_os = "none"))]
fn main() {
    eprintln!("keel runs at EL2 of an arm64 machine: build it for aarch64-unknown-none-softfloat, or use `make run`");
    std::process::exit(2);
}
