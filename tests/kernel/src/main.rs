//! The EL1 test kernel: every call of every interface, good input and bad.
//!
//! The boot arguments say what to do: nothing runs all cases, `only=TEXT` those whose name has TEXT in it, `bench` the
//! benchmarks, `bench-switch` the one of two vCPUs that share a CPU, `bench-kvm` that of a VM which the owner makes, `fuzz=SEED,COUNT` the hostile guest, `fuzz-api=SEED,COUNT` the
//! hostile root, `calls=SEED,COUNT`
//! random calls that are compared with what they should answer, `transcript` prints what the machine answers
//! (`transcript=interrupts` what its interrupt controller does), `reset` one
//! SYSTEM_RESET after another, `list` prints the names.
//! `hyp=keel` says that keel is underneath; without it the cases that only hold under a hypervisor are skipped, and say so.
//! `hyp=stub` says that keel-stub is, and the kernel owns the machine: then only the cases of the stub run, or with `bench`
//! what they cost, or with `late`, and keel's image in the RAM disk, those of keel installed under the kernel, or with
//! `crash` an exception of EL2 that the stub has to report. `restart` leaves for the kernel of the RAM disk at EL2
//! (`restart.rs`).
//!
//! `hyp=root` says that keel is underneath and the kernel owns the machine: all cases run that do not ask for a guest's
//! machine, then keel is sent away, and the cases of the stub follow. With `api` it makes the calls of KVM's API that
//! `keel-kvm` has a script of, and prints the answers.
//!
//! `monitor=SCRIPT` makes it a machine monitor, whose guest is Debian from the RAM disk (`vmm`).
//!
//! `protected` says that the machine was built as a protected guest (`keel,features`), `no-entropy` that the board has no
//! source of random bits, `injection` that it may make errors pending for itself (`test-injection`).
//!
//! The last line is `N passed, N failed, N skipped`; then the machine is powered off.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
extern crate alloc;

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod bench;
#[cfg(target_os = "none")]
mod bench_kvm;
#[cfg(target_os = "none")]
mod cases;
#[cfg(target_os = "none")]
mod fuzz;
#[cfg(target_os = "none")]
mod fuzz_api;
#[cfg(target_os = "none")]
mod harness;
#[cfg(target_os = "none")]
mod model;
#[cfg(target_os = "none")]
mod restart;
#[cfg(target_os = "none")]
mod transcript;
#[cfg(target_os = "none")]
mod vmm;

#[cfg(target_os = "none")]
mod kernel {
    use crate::{bench, bench_kvm, cases, fuzz, fuzz_api, harness, restart, transcript, vmm};
    use keel_test_kernel::{arch, irq, kernel, machine::Machine, power, println};

    kernel!(main);

    /// Left in the last word of RAM before a reset.
    const MARK: u64 = 0x6b65_656c_2072_7374;

    /// Says how it finds memory, and resets. Whoever watches has seen enough after two lines.
    fn reset(machine: &Machine) -> ! {
        let last = (machine.memory_base + machine.memory_size - 8) as *mut u64;
        // SAFETY: the last word of RAM, mapped and aligned, in which nothing of the program is.
        let kept = unsafe { last.read_volatile() } == MARK;
        println!("reset: boot, memory {}", if kept { "kept" } else { "fresh" });
        // SAFETY: as above.
        unsafe { last.write_volatile(MARK) };
        arch::flush_dcache(last as usize, 8);
        power::reset()
    }

    fn main(machine: &'static Machine) -> ! {
        println!(
            "keel test kernel: {} CPUs, {} MiB, \"{}\"",
            machine.cpus().len(),
            machine.memory_size >> 20,
            machine.bootargs
        );
        irq::init(machine);
        vmm::init();
        if machine.has("restart") {
            restart::run(machine);
        } else if machine.over_stub() && machine.has("crash") {
            cases::crash(machine);
        } else if machine.over_stub() && machine.has("bench") {
            cases::bench_stub(machine);
        } else if machine.over_stub() && machine.has("late") {
            harness::run(machine, cases::LATE, machine.value("only").unwrap_or(""));
        } else if machine.over_stub() {
            harness::run(machine, cases::OVER_STUB, machine.value("only").unwrap_or(""));
        } else if let Some(argument) = machine.value("fuzz-api").filter(|_| machine.is_root()) {
            fuzz_api::run(machine, argument);
        } else if let Some(argument) = machine.value("monitor").filter(|_| machine.is_root()) {
            vmm::run(machine, argument);
        } else if machine.is_root() && machine.has("bench-kvm") {
            bench_kvm::run();
        } else if machine.is_root() && machine.has("api") {
            cases::api();
        } else if machine.is_root() && !machine.has("bench") {
            harness::run(machine, cases::ROOT, machine.value("only").unwrap_or(""));
        } else if machine.has("reset") {
            reset(machine);
        } else if machine.has("bench-switch") {
            bench::run_switch(machine);
        } else if machine.has("bench") {
            bench::run(machine);
        } else if machine.has("transcript") || machine.value("transcript").is_some() {
            transcript::run(machine);
        } else if let Some(argument) = machine.value("fuzz") {
            fuzz::run(machine, argument);
        } else if let Some(argument) = machine.value("calls") {
            fuzz::run_calls(machine, argument);
        } else if machine.has("list") {
            harness::list(cases::ALL);
        } else {
            harness::run(machine, cases::ALL, machine.value("only").unwrap_or(""));
        }
        power::off()
    }
}
