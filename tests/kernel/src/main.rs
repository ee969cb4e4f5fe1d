//! The EL1 test kernel: every call of every interface, good input and bad.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod kernel {
    keel_test_kernel::kernel!(main);

    fn main(machine: &'static keel_test_kernel::machine::Machine) -> ! {
        keel_test_kernel::println!("{machine:?}");
        keel_test_kernel::power::off()
    }
}
