//! Running cases and saying how they ended.
//!
//! A case is a row of a table: its name, what it needs, and a function. What it needs and is not there makes it
//! skipped, with the reason on the line. After each case the machine is put back: interrupts off, GIC as at the start,
//! timers stopped, other CPUs off; a case that leaves a CPU running has failed.

use core::{
    fmt::Write,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};
use keel_test_kernel::{
    arch, exceptions, irq, its,
    machine::Machine,
    print, println, smp,
    time::{self, Timer},
};
use spin::Mutex;

/// Text of a failure.
pub type Text = heapless::String<320>;

/// Why a case did not pass.
#[derive(Debug)]
pub enum Verdict {
    /// What was expected and what was found is in [`reason`].
    Failed,
    /// What is missing.
    Skipped(&'static str),
}

/// The result of a case or of a step of one.
pub type Check<T = ()> = Result<T, Verdict>;

/// On which machine a case holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Under {
    /// Everywhere.
    Any,
    /// Only under keel, or another hypervisor with KVM's guest interface.
    Keel,
    /// Only over keel-stub.
    Stub,
    /// Only for the owner of the machine under keel, until keel has left.
    Root,
}

/// One case.
pub struct Case {
    /// `area/what`.
    pub name: &'static str,
    /// CPUs it needs, the boot CPU included.
    pub cpus: usize,
    /// Where it holds.
    pub under: Under,
    /// The case.
    pub run: fn(&'static Machine) -> Check,
}

/// A row of the table.
pub const fn case(name: &'static str, cpus: usize, under: Under, run: fn(&'static Machine) -> Check) -> Case {
    Case { name, cpus, under, run }
}

/// Why the last case failed. Not in the verdict itself, which is passed around a lot.
static REASON: Mutex<Text> = Mutex::new(Text::new());

/// Says why a case failed.
pub fn failed(text: core::fmt::Arguments) -> Verdict {
    let mut reason = REASON.lock();
    reason.clear();
    // A reason that does not fit is cut off.
    let _ = reason.write_fmt(text);
    Verdict::Failed
}

/// Why the last case failed.
pub fn reason() -> Text {
    REASON.lock().clone()
}

/// Ends the case as failed unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($reason:tt)+) => {
        if !$condition {
            return Err($crate::harness::failed(format_args!($($reason)+)));
        }
    };
}

/// Ends the case as failed unless a value is the expected one.
#[macro_export]
macro_rules! check_eq {
    ($found:expr, $expected:expr, $($what:tt)+) => {{
        let (found, expected) = ($found, $expected);
        if found != expected {
            return Err($crate::harness::failed(format_args!(
                "{}: {found:#x?}, expected {expected:#x?}",
                format_args!($($what)+)
            )));
        }
    }};
}

/// Ends the case as skipped.
pub fn skip<T>(reason: &'static str) -> Check<T> {
    Err(Verdict::Skipped(reason))
}

/// Waits for a condition, or fails saying what did not happen.
pub fn eventually(what: &str, done: impl FnMut() -> bool) -> Check {
    if time::wait_until(done) { Ok(()) } else { Err(failed(format_args!("{what}: did not happen"))) }
}

/// As [`eventually`], with IRQs let in.
pub fn eventually_with_irqs(what: &str, done: impl FnMut() -> bool) -> Check {
    arch::with_irqs(|| eventually(what, done))
}

/// Starts CPU `cpu` on `work(argument)`, or fails.
pub fn start(machine: &Machine, cpu: usize, work: smp::Work, argument: usize) -> Check {
    smp::start(machine, cpu, work, argument).map_err(|error| failed(format_args!("CPU_ON of CPU {cpu}: {error}")))
}

/// Waits until CPU `cpu` is off, or fails.
pub fn join(machine: &Machine, cpu: usize) -> Check {
    if smp::join(machine, cpu) { Ok(()) } else { Err(failed(format_args!("CPU {cpu} did not turn itself off"))) }
}

fn needs(machine: &Machine, case: &Case) -> Check {
    if machine.cpus().len() < case.cpus {
        return skip(match case.cpus {
            2 => "needs 2 CPUs",
            3 => "needs 3 CPUs",
            _ => "needs 4 CPUs",
        });
    }
    if case.under == Under::Keel && !machine.under_keel() {
        return skip("holds only under keel (hyp=keel)");
    }
    if case.under == Under::Root && (!machine.is_root() || machine.over_stub()) {
        return skip("holds only for keel's root VM (hyp=root)");
    }
    if case.under == Under::Stub && !machine.over_stub() {
        return skip("holds only over keel-stub (hyp=stub)");
    }
    Ok(())
}

fn put_back(machine: &Machine, result: Check) -> Check {
    arch::irq_disable();
    Timer::Virtual.stop();
    Timer::Physical.stop();
    exceptions::set_sync_handler(None);
    exceptions::expect_serrors(false);
    for cpu in 1..machine.cpus().len() {
        if result.is_ok() {
            join(machine, cpu)?;
        } else if !smp::join(machine, cpu) {
            println!("(CPU {cpu} still runs)");
        }
    }
    its::stop(machine);
    irq::init(machine);
    result
}

static NOISE: AtomicBool = AtomicBool::new(false);

/// Says that the case may have printed something: its verdict is given on a line of its own.
pub fn noise() {
    NOISE.store(true, Relaxed);
}

/// Prints the names of all cases.
pub fn list(tables: &[&[Case]]) {
    tables.iter().flat_map(|table| table.iter()).for_each(|case| println!("{}", case.name));
}

/// Runs the cases whose name contains `only`.
pub fn run(machine: &'static Machine, tables: &[&[Case]], only: &str) {
    let (mut passed, mut failures, mut skipped) = (0, 0, 0);
    for case in tables.iter().flat_map(|table| table.iter()).filter(|case| case.name.contains(only)) {
        print!("test {} ... ", case.name);
        let result = needs(machine, case).and_then(|()| put_back(machine, (case.run)(machine)));
        if NOISE.swap(false, Relaxed) {
            print!("\ntest {} ... ", case.name);
        }
        match result {
            Ok(()) => {
                println!("ok");
                passed += 1;
            }
            Err(Verdict::Failed) => {
                println!("FAILED: {}", reason());
                failures += 1;
            }
            Err(Verdict::Skipped(reason)) => {
                println!("skipped: {reason}");
                skipped += 1;
            }
        }
    }
    println!("{passed} passed, {failures} failed, {skipped} skipped");
}
