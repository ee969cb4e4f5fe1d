//! Calls that stop and start CPUs: what they answer, and how the started CPU finds itself.

use super::{Line, known};
use crate::cases::psci::{bare_address, clear_entry, read_entry};
use core::{
    arch::naked_asm,
    cell::UnsafeCell,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};
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
        reset_state(machine);
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

/// Words in memory that a CPU with its caches off writes.
#[repr(C, align(64))]
struct Words(UnsafeCell<[u64; 64]>);
// SAFETY: the started CPU writes it while the boot CPU waits, and the boot CPU reads it when that one is off.
unsafe impl Sync for Words {}

static WORDS: Words = Words(UnsafeCell::new([0; 64]));

macro_rules! at_entry {
    ($($name:literal)*) => {
        /// What is looked at; the last word says that all others are there.
        const AT_ENTRY: &[&str] = &[$($name),*];

        /// Entry point of a CPU: writes its registers to `WORDS`, then turns the CPU off. No stack, MMU off.
        #[unsafe(naked)]
        unsafe extern "C" fn write_registers() -> ! {
            naked_asm!(
                "adrp x9, {words}",
                "add  x9, x9, :lo12:{words}",
                $(concat!("mrs x10, ", $name), "str x10, [x9], #8",)*
                "mov  x10, #1",
                "str  x10, [x9]",
                "dsb  sy",
                "movz w0, 0x8400, lsl 16",
                "movk w0, 0x0002",
                "hvc  0",
                "0: wfe",
                "b 0b",
                words = sym WORDS,
            )
        }
    };
}

// Not those of vector registers: CPACR_EL1 lets nobody use them yet.
at_entry!(
    "CurrentEL" "DAIF" "SPSel" "NZCV" "SCTLR_EL1" "ACTLR_EL1" "CPACR_EL1" "TTBR0_EL1" "TTBR1_EL1" "TCR_EL1" "SP_EL0"
    "SPSR_EL1" "ELR_EL1" "AFSR0_EL1" "AFSR1_EL1" "ESR_EL1" "FAR_EL1" "PAR_EL1" "MAIR_EL1" "AMAIR_EL1" "VBAR_EL1"
    "CONTEXTIDR_EL1" "TPIDR_EL1" "TPIDR_EL0" "TPIDRRO_EL0" "CNTKCTL_EL1" "CNTV_CTL_EL0" "CNTV_CVAL_EL0" "CNTP_CTL_EL0"
    "CNTP_CVAL_EL0" "CSSELR_EL1" "MDSCR_EL1" "OSLSR_EL1" "DBGBVR0_EL1" "DBGBCR0_EL1" "DBGWVR0_EL1" "DBGWCR0_EL1"
    "S3_0_C4_C6_0" "S3_0_C12_C8_3" "S3_0_C12_C12_3" "S3_0_C12_C12_4" "S3_0_C12_C12_5" "S3_0_C12_C12_6" "S3_0_C12_C12_7"
);

const _: () = assert!(AT_ENTRY.len() < 64);

/// The system registers of a CPU that has been on before, and had its own values in them, at its entry point.
fn reset_state(machine: &Machine) {
    let word = |index: usize| {
        arch::flush_dcache(WORDS.0.get() as usize, size_of::<Words>());
        // SAFETY: an element of the array; the started CPU may be writing it, hence volatile.
        unsafe { WORDS.0.get().cast::<u64>().add(index).read_volatile() }
    };
    arch::flush_dcache(WORDS.0.get() as usize, size_of::<Words>());
    let entry = write_registers as *const () as u64;
    let outcome = call("hvc", 0xc400_0003, [machine.cpus()[1], entry, 0]);
    let mut line = Line::about(format_args!("CPU 1 writes its registers"));
    let here = outcome.after.x[0] == 0 && time::wait_until(|| word(AT_ENTRY.len()) == 1);
    line.add(format_args!(" {}", here && time::wait_until(|| smp::is_off(machine, 1))));
    line.end();
    for (index, name) in AT_ENTRY.iter().enumerate() {
        let mut line = Line::about(format_args!("{name} at CPU 1's entry"));
        line.value(known(name, word(index)));
        line.end();
    }
}
