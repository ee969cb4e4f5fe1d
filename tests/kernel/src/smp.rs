//! Other CPUs: a function on one of them, from PSCI CPU_ON to CPU_OFF.
//!
//! A CPU runs one function and turns itself off; [`join`] waits until PSCI says so. No CPU idles in between, so each
//! test starts with all others off. A CPU that the tree says to start by spin-table cannot be turned off: what counts as
//! off is a pen of the kernel's own, with the MMU off, which the CPU enters on its release and again after each function.

use crate::{arch, irq, machine::Machine, platform::MAX_CPUS, power, time};
use aarch64_rt::{Stack, secondary_entry, start_core};
use core::{
    arch::{asm, naked_asm},
    cell::UnsafeCell,
    mem::offset_of,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};
use smccc::{Call, Hvc, Smc, psci::Error};

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
    let word = machine.release_word(cpu);
    let entry = move || {
        arch::set_cpu(cpu);
        irq::init_cpu(cpu);
        work(argument);
        if word.is_some() {
            park(cpu);
        }
        BUSY[cpu].store(false, Ordering::Release);
        off()
    };
    if let Some(word) = word {
        PENS[cpu].mpidr.store(machine.cpus()[cpu], Ordering::Relaxed);
        PENS[cpu].word.store(word as u64, Ordering::Relaxed);
    }
    BUSY[cpu].store(true, Ordering::Relaxed);
    // SAFETY: the stack is static, used by no other CPU, and this one is off; RAM is mapped alike on all CPUs.
    let result = unsafe {
        if word.is_some() {
            start_core::<SpinTable, _, STACK_PAGES>(machine.cpus()[cpu], stack, entry)
        } else if power::by_smc() {
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

/// What a CPU in the pen looks at, with its MMU off: on cache lines of its own.
#[repr(C, align(256))]
struct Pen {
    mpidr: AtomicU64,
    /// The argument of `secondary_entry`, once the CPU is to go there.
    context: AtomicU64,
    /// Address of the word that releases it from firmware's pen into this one.
    word: AtomicU64,
}

static PENS: [Pen; MAX_CPUS] =
    [const { Pen { mpidr: AtomicU64::new(u64::MAX), context: AtomicU64::new(0), word: AtomicU64::new(0) } }; MAX_CPUS];

/// The pen: waits until there is a context in the CPU's row, and goes to `secondary_entry` with it.
///
/// # Safety
///
/// At EL1 with the MMU off, on a CPU whose row is filled in.
#[unsafe(naked)]
unsafe extern "C" fn pen() -> ! {
    naked_asm!(
        "mrs    x1, mpidr_el1",
        "and    x1, x1, #0xffffffffff",
        "and    x1, x1, #~0xff000000",
        "adrp   x2, {pens}",
        "add    x2, x2, :lo12:{pens}",
        "2:",
        "ldr    x3, [x2, #{mpidr}]",
        "cmp    x3, x1",
        "b.eq   3f",
        "add    x2, x2, #{size}",
        "b      2b",
        "3:",
        "ldr    x0, [x2, #{context}]",
        "cbnz   x0, 4f",
        "wfe",
        "b      3b",
        "4:",
        "b      {entry}",
        pens = sym PENS,
        mpidr = const offset_of!(Pen, mpidr),
        context = const offset_of!(Pen, context),
        size = const size_of::<Pen>(),
        entry = sym secondary_entry,
    )
}

/// CPU_ON for CPUs that spin.
struct SpinTable;

impl Call for SpinTable {
    fn call32(_: u32, _: [u32; 7]) -> [u32; 8] {
        unreachable!("CPU_ON has its 64-bit form here")
    }

    fn call64(_: u32, [mpidr, entry, context, ..]: [u64; 17]) -> [u64; 18] {
        assert_eq!(entry, secondary_entry as *const () as u64, "the pen leads to secondary_entry only");
        let row = PENS.iter().find(|pen| pen.mpidr.load(Ordering::Relaxed) == mpidr);
        let row = row.expect("`start` has filled the row in");
        row.context.store(context, Ordering::Relaxed);
        arch::flush_dcache(&raw const *row as usize, size_of::<Pen>());
        let word = row.word.load(Ordering::Relaxed) as *mut u64;
        // SAFETY: the tree says that the CPU waits for this word, which is in RAM, mapped and aligned. Once the CPU has gone,
        // nobody looks at it.
        unsafe { word.write_volatile(pen as *const () as u64) };
        arch::flush_dcache(word as usize, 8);
        arch::sev();
        [0; 18]
    }
}

/// Goes back to the pen.
fn park(cpu: usize) -> ! {
    PENS[cpu].context.store(0, Ordering::Relaxed);
    arch::flush_dcache(&raw const PENS[cpu] as usize, size_of::<Pen>());
    // SAFETY: mapped one to one, so that the code goes on without translation; from the store that gives the stack to the
    // next start on, nothing but registers is used.
    unsafe {
        asm!(
            "stlrb  wzr, [{busy}]",
            "dsb    sy",
            "mrs    x9, sctlr_el1",
            "bic    x9, x9, #(1 << 0)",
            "bic    x9, x9, #(1 << 2)",
            "msr    sctlr_el1, x9",
            "isb",
            "b      {pen}",
            busy = in(reg) BUSY[cpu].as_ptr(),
            pen = sym pen,
            options(noreturn)
        )
    }
}

/// Turns this CPU off.
pub fn off() -> ! {
    power::psci(power::CPU_OFF, [0; 3]);
    panic!("CPU_OFF returned");
}

/// Whether PSCI says the CPU is off, or it is in the pen.
pub fn is_off(machine: &Machine, cpu: usize) -> bool {
    if machine.release_word(cpu).is_some() {
        return !BUSY[cpu].load(Ordering::Acquire);
    }
    power::psci(power::AFFINITY_INFO, [machine.cpus()[cpu], 0, 0])[0] == 1
}

/// Waits until CPU `cpu` is off; false if it does not go off within [`time::PATIENCE_US`].
#[must_use]
pub fn join(machine: &Machine, cpu: usize) -> bool {
    time::wait_until(|| !BUSY[cpu].load(Ordering::Acquire) && is_off(machine, cpu))
}
