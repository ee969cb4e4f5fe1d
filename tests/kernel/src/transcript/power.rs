//! Calls that stop and start CPUs: what they answer, and how the started CPU finds itself.

use super::Line;
use crate::cases::psci::{bare_address, clear_entry, read_entry};
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};
use keel_test_kernel::{
    arch,
    exec::{self, Registers},
    irq,
    machine::{MPIDR_AFFINITY, Machine},
    platform::VIRTUAL_TIMER_INTID,
    smp,
    time::{self, Timer},
};

const HIGH: u64 = 0xdead_beef_0000_0000;

/// A call by HVC or SMC, and its x0 to x3.
fn call(by: &str, id: u64, arguments: [u64; 3]) -> exec::Outcome {
    let mut registers = Registers::pattern();
    registers.x[0] = id;
    registers.x[1..4].copy_from_slice(&arguments);
    exec::run(if by == "hvc" { exec::hvc(0) } else { exec::smc(0) }, &registers)
}

fn say(what: core::fmt::Arguments, outcome: &exec::Outcome) {
    let mut line = Line::about(what);
    match &outcome.trap {
        Some(trap) => line.exception(trap, None),
        None => outcome.after.x[..4].iter().for_each(|value| line.value(*value)),
    }
    line.changes(outcome, &[0, 1, 2, 3]);
    line.end();
}

/// Makes the calls.
pub(super) fn run(machine: &'static Machine) {
    suspend(machine);
    if machine.cpus().len() > 1 {
        start(machine);
        already_on(machine);
    }
}

/// CPU_SUSPEND with an interrupt pending, which ends it at once.
fn suspend(machine: &Machine) {
    irq::init(machine);
    irq::enable(VIRTUAL_TIMER_INTID, 0);
    for by in ["hvc", "smc"] {
        for id in [0x8400_0001, 0xc400_0001] {
            for state in [0, 1 << 16, 1 << 30, 0xffff_ffff] {
                Timer::Virtual.arm(100);
                let outcome = call(by, id, [state, 0x4020_0000, 0]);
                Timer::Virtual.stop();
                say(format_args!("{by} {id:#x} CPU_SUSPEND({state:#x}) until the timer"), &outcome);
            }
        }
    }
    irq::init(machine);
}

/// CPU_ON of a CPU that is off, with what it finds at its entry point.
fn start(machine: &Machine) {
    let target = machine.cpus()[1];
    for (by, id, high) in
        [("hvc", 0xc400_0003, 0), ("smc", 0xc400_0003, 0), ("hvc", 0x8400_0003, HIGH), ("smc", 0x8400_0003, HIGH)]
    {
        for context in [0x55, 0x0123_4567, HIGH | 0x77] {
            clear_entry();
            say(
                format_args!("{by} AFFINITY_INFO of CPU 1, off, before {id:#x} {context:#x}"),
                &call(by, 0xc400_0004, [target, 0, 0]),
            );
            let outcome = call(by, id, [high | target, high | bare_address(), context]);
            say(format_args!("{by} {id:#x} CPU_ON of CPU 1, upper halves {high:#x}, context {context:#x}"), &outcome);
            let mut line =
                Line::about(format_args!("{by} {id:#x} CPU 1's registers at its entry, context {context:#x}"));
            match read_entry(machine, 1) {
                Ok(entry) => line.add(format_args!(
                    " x0 {:#x} x1 {:#x} x2 {:#x} CurrentEL {:#x} DAIF {:#x} SPSel {:#x} SCTLR_EL1 {:#x} MPIDR_EL1 {:#x}",
                    entry.context,
                    entry.x[0],
                    entry.x[1],
                    entry.current_el,
                    entry.daif,
                    entry.spsel,
                    entry.sctlr,
                    entry.mpidr & MPIDR_AFFINITY
                )),
                Err(_) => line.add(format_args!(" it did not come")),
            }
            line.end();
        }
    }
}

static HOLD: AtomicBool = AtomicBool::new(false);
static HERE: AtomicBool = AtomicBool::new(false);

fn hold(_: usize) {
    HERE.store(true, SeqCst);
    while HOLD.load(SeqCst) {
        arch::relax();
    }
}

/// CPU_ON and AFFINITY_INFO of a CPU that is on.
fn already_on(machine: &Machine) {
    let target = machine.cpus()[1];
    HOLD.store(true, SeqCst);
    let started = smp::start(machine, 1, hold, 0).is_ok() && time::wait_until(|| HERE.load(SeqCst));
    let mut line = Line::about(format_args!("CPU 1 is on"));
    line.add(format_args!(" {started}"));
    line.end();
    for by in ["hvc", "smc"] {
        for id in [0x8400_0003, 0xc400_0003] {
            for (what, target) in [("CPU 1", target), ("itself", machine.cpus()[0])] {
                let outcome = call(by, id, [target, bare_address(), 0]);
                say(format_args!("{by} {id:#x} CPU_ON of {what}, on"), &outcome);
            }
        }
        for id in [0x8400_0004, 0xc400_0004] {
            for level in 0..5 {
                let outcome = call(by, id, [target, level, 0]);
                say(format_args!("{by} {id:#x} AFFINITY_INFO of CPU 1, on, level {level}"), &outcome);
            }
        }
    }
    HOLD.store(false, SeqCst);
    let mut line = Line::about(format_args!("CPU 1 goes off"));
    line.add(format_args!(" {}", smp::join(machine, 1)));
    line.end();
}
