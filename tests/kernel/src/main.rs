//! The EL1 test kernel: every call of every interface, good input and bad.
//!
//! The boot arguments say what to do: nothing runs all cases, `only=TEXT` those whose name has TEXT in it, `bench` the
//! benchmarks, `fuzz=SEED,COUNT` the hostile guest, `reset` one SYSTEM_RESET after another, `list` prints the names.
//! `hyp=keel` says that keel is underneath; without it the cases that only hold under a hypervisor are skipped, and say so.
//!
//! The last line is `N passed, N failed, N skipped`; then the machine is powered off.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod bench;
#[cfg(target_os = "none")]
mod cases;
#[cfg(target_os = "none")]
mod fuzz;
#[cfg(target_os = "none")]
mod harness;

#[cfg(target_os = "none")]
mod kernel {
    use crate::{bench, cases, fuzz, harness};
    use keel_test_kernel::{irq, kernel, machine::Machine, power, println};

    kernel!(main);

    fn main(machine: &'static Machine) -> ! {
        println!(
            "keel test kernel: {} CPUs, {} MiB, \"{}\"",
            machine.cpus().len(),
            machine.memory_size >> 20,
            machine.bootargs
        );
        irq::init(machine);
        if machine.has("reset") {
            println!("reset: boot");
            power::reset();
        } else if machine.has("bench") {
            bench::run(machine);
        } else if let Some(argument) = machine.value("fuzz") {
            fuzz::run(machine, argument);
        } else if machine.has("list") {
            harness::list(cases::ALL);
        } else {
            harness::run(machine, cases::ALL, machine.value("only").unwrap_or(""));
        }
        power::off()
    }
}
