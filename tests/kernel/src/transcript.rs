//! What this machine answers, one line for each thing asked: the list two hypervisors are compared by.
//!
//! The boot argument `transcript` makes a long, fixed list of calls, accesses and register moves, each by
//! [`exec`](keel_test_kernel::exec) with every register known, and prints
//!
//! ```text
//! transcript: WHAT -> ANSWER
//! ```
//!
//! Nothing is judged here. WHAT is the same wherever the kernel runs and no two are alike, so a reader can lay two
//! transcripts side by side. What may differ between two runs of one machine (random bytes, times, addresses, UUIDs)
//! is checked for plausibility instead and printed as a word in angle brackets. The last line is
//! `transcript: N lines`. `transcript=interrupts` asks the interrupt controller alone.

mod accesses;
mod calls;
mod gic;
mod gicv2;
mod interrupts;
mod power;
mod registers;

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};
use keel_test_kernel::{
    console,
    exec::{Outcome, Trap},
    irq,
    machine::Machine,
    println, time,
};

static LINES: AtomicU32 = AtomicU32::new(0);

/// Prints the transcript.
pub fn run(machine: &'static Machine) {
    if machine.value("transcript") != Some("interrupts") {
        calls::run();
        power::run(machine);
        accesses::run(machine);
        registers::run();
    }
    gic::run(machine);
    gicv2::run(machine);
    interrupts::run(machine);
    irq::init(machine);
    println!("transcript: {} lines", LINES.load(Relaxed));
}

/// A line being written.
struct Line(heapless::String<1536>);

impl Line {
    /// A line about `what`, whose answer is still to come.
    fn about(what: fmt::Arguments) -> Self {
        let mut line = Line(heapless::String::new());
        line.add(format_args!("transcript: {what} ->"));
        line
    }

    fn add(&mut self, text: fmt::Arguments) {
        self.0.write_fmt(text).expect("a line is at most 1536 bytes long");
    }

    /// A result.
    fn value(&mut self, value: u64) {
        self.add(format_args!(" {}", Value(value)));
    }

    /// The exception that was taken instead. `address` is the one that was used.
    fn exception(&mut self, trap: &Trap, address: Option<u64>) {
        let kind = if trap.serror { "SError" } else { "exception" };
        let (class, il, iss) = (trap.class(), trap.esr >> 25 & 1, trap.esr & 0x1ff_ffff);
        self.add(format_args!(" {kind} EC {class:#x} IL {il} ISS {iss:#x}"));
        match address {
            // FAR is defined for aborts alone.
            Some(address) if trap.far == address => self.add(format_args!(" FAR =")),
            Some(_) => self.add(format_args!(" FAR {:#x}", trap.far)),
            None => {}
        }
    }

    /// Registers that changed, but for those among `except`.
    fn changes(&mut self, outcome: &Outcome, except: &[usize]) {
        if let Some((bank, number, before, after)) = outcome.changed(except) {
            self.add(format_args!(", {bank}{number} {before:#x} is now {after:#x}"));
        }
    }

    fn end(mut self) {
        LINES.fetch_add(1, Relaxed);
        self.add(format_args!("\n"));
        console::burst(&self.0);
    }
}

/// A register's value without what the architecture leaves UNKNOWN: ISTATUS of a timer that is off.
fn known(name: &str, value: u64) -> u64 {
    let off = matches!(name, "CNTP_CTL_EL0" | "CNTV_CTL_EL0") && value & time::ENABLE == 0;
    if off { value & !time::ISTATUS } else { value }
}

/// A number as people write it: small negative ones, which are error codes, in decimal.
struct Value(u64);

impl fmt::Display for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 as i64 {
            error @ -4096..=-1 => write!(formatter, "{error}"),
            _ => write!(formatter, "{:#x}", self.0),
        }
    }
}
