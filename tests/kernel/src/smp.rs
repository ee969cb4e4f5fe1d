//! Other CPUs: a function on one of them, from PSCI CPU_ON to CPU_OFF.
//!
//! A CPU runs one function and turns itself off; [`join`] waits until PSCI says so. No CPU idles in between, so each
//! test starts with all others off.

use crate::{arch, irq, machine::Machine, platform::MAX_CPUS, power, time};
use aarch64_rt::{Stack, start_core};
use core::{
    cell::UnsafeCell,
    sync::atomic::{AtomicBool, Ordering},
};
use smccc::{Hvc, Smc, psci::Error};

const STACK_PAGES: usize = 8;

#[repr(transparent)]
struct StackOf(UnsafeCell<Stack<STACK_PAGES>>);

// SAFETY: each stack is used by the CPU it belongs to, and by `start` while that CPU is off.
unsafe impl Sync for StackOf {}

static STACKS: [StackOf; MAX_CPUS] = [const { StackOf(UnsafeCell::new(Stack::new())) }; MAX_CPUS];

/// Whether a CPU was started and has not yet finished its work. PSCI alone does not tell "not yet on" from "off again".
static BUSY: [AtomicBool; MAX_CPUS] = [const { AtomicBool::new(false) }; MAX_CPUS];

/// What a CPU runs: the argument is what [`start`] was given.
pub type Work = fn(usize);

/// Starts CPU `cpu` with interrupts masked, its GIC interface ready, on `work(argument)`; it turns itself off when
/// `work` returns.
///
/// The CPU must be off, which the caller knows from [`join`] or because it was never on.
pub fn start(machine: &Machine, cpu: usize, work: Work, argument: usize) -> Result<(), Error> {
    let stack = STACKS[cpu].0.get();
    let entry = move || {
        arch::set_cpu(cpu);
        irq::init_cpu(cpu);
        work(argument);
        BUSY[cpu].store(false, Ordering::Release);
        off()
    };
    BUSY[cpu].store(true, Ordering::Relaxed);
    // SAFETY: the stack is static, used by no other CPU, and this one is off; RAM is mapped alike on all CPUs.
    let result = unsafe {
        if power::by_smc() {
            start_core::<Smc, _, STACK_PAGES>(machine.cpus()[cpu], stack, entry)
        } else {
            start_core::<Hvc, _, STACK_PAGES>(machine.cpus()[cpu], stack, entry)
        }
    };
    if result.is_err() {
        BUSY[cpu].store(false, Ordering::Relaxed);
    }
    result
}

/// Turns this CPU off.
pub fn off() -> ! {
    power::psci(power::CPU_OFF, [0; 3]);
    panic!("CPU_OFF returned");
}

/// Whether PSCI says the CPU is off.
pub fn is_off(machine: &Machine, cpu: usize) -> bool {
    power::psci(power::AFFINITY_INFO, [machine.cpus()[cpu], 0, 0])[0] == 1
}

/// Waits until CPU `cpu` is off; false if it does not go off within [`time::PATIENCE_US`].
#[must_use]
pub fn join(machine: &Machine, cpu: usize) -> bool {
    time::wait_until(|| !BUSY[cpu].load(Ordering::Acquire) && is_off(machine, cpu))
}
