//! The hostile guest: random calls, accesses and registers, each of which may do anything to the guest and nothing to
//! anybody else.
//!
//! `fuzz=SEED,COUNT` does COUNT steps that depend on SEED alone. Every step is one instruction run by
//! [`keel_test_kernel::exec`], so an exception is an answer like any other. Left out is only what ends this kernel by
//! right: power off, reset, turning off the CPU that runs it, and writes to the registers that hold its own address
//! space and stack, or memory it needs. What it does to the GIC and timers is put back at the end, when a quick check must still pass.

use crate::harness::{Check, Under::*, case, eventually_with_irqs, join, start};
use crate::model::{Mitigations, Model};
use crate::{check, check_eq, harness};
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use keel_test_kernel::{
    arch,
    exec::{self, Encoding, Registers},
    gicv2::{self, gicc},
    irq,
    machine::Machine,
    msr,
    platform::{GICC, GICD, GICR, HOLE, PL011, PL031},
    power, println, smp,
    time::{self, Timer},
};

/// xorshift64*: small, and the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// A value of the kind that finds mistakes: small, an edge, an address, or anything.
    fn value(&mut self, machine: &Machine) -> u64 {
        match self.below(8) {
            0 => self.below(16),
            1 => 1 << self.below(64),
            2 => (1_u64 << self.below(64)).wrapping_sub(1),
            3 => !self.below(16),
            4 => machine.memory_base as u64 + self.below(machine.memory_size as u64 + 0x1000),
            5 => self.pick(machine.cpus()) ^ (1 << self.below(64)),
            6 => self.next() & 0xffff_ffff,
            _ => self.next(),
        }
    }
}

/// First numbers of the ranges in which somebody defines calls (SMCCC, PSCI, TRNG, PV time, KVM, PSCI 0.1).
const CALL_RANGES: [u32; 16] = [
    0x8000_0000,
    0x8000_8000,
    0x8000_7fff,
    0x8000_3fff,
    0x8400_0000,
    0xc400_0000,
    0x8400_0050,
    0xc400_0050,
    0xc500_0020,
    0x8600_0000,
    0xc600_0000,
    0x8600_ff00,
    0xc600_0100,
    0x95c1_ba5e,
    0x8400_ff00,
    0xbf00_ff00,
];

/// KVM_HC_CLOCK_PAIRING, which writes to memory.
const CLOCK_PAIRING: u32 = 0xc600_0109;
/// PTP, whose answer is the time.
const PTP: u32 = 0x8600_0001;

/// Whether a call ends or parks this kernel by right, or starts another CPU at an address it makes up.
fn forbidden_call(id: u32) -> bool {
    matches!(
        id,
        // CPU_SUSPEND (nothing would wake it), CPU_OFF, CPU_ON
        0x8400_0001..=0x8400_0003 | 0xc400_0001 | 0xc400_0003
        // SYSTEM_OFF, SYSTEM_RESET, CPU_DEFAULT_SUSPEND, SYSTEM_SUSPEND, RESET2, OFF2
        | 0x8400_0008 | 0x8400_0009 | 0x8400_000c | 0xc400_000c | 0x8400_000e | 0xc400_000e
        | 0x8400_0012 | 0xc400_0012 | 0x8400_0015 | 0xc400_0015
        // The same of PSCI 0.1
        | 0x95c1_ba5e..=0x95c1_ba60
    )
}

/// A call: its id, its registers, and whether it is made by SMC, with which immediate.
fn any_call(random: &mut Random, machine: &Machine) -> (Registers, bool, u16) {
    let mut id = match random.below(4) {
        0 => random.next() as u32,
        1 => random.next() as u32 & 0x0f00_00ff | 0x8000_0000,
        _ => random.pick(&CALL_RANGES).wrapping_add(random.below(0x22) as u32).wrapping_sub(1),
    };
    if forbidden_call(id) {
        id = power::PSCI_VERSION;
    }
    let mut registers = Registers::pattern();
    registers.x[0] = u64::from(id) | if random.below(8) == 0 { random.next() << 32 } else { 0 };
    for number in 1..8 {
        registers.x[number] = random.value(machine);
    }
    if id == CLOCK_PAIRING && (machine.memory_base as u64).saturating_sub(64) < registers.x[1] {
        // It would write into this kernel.
        registers.x[1] &= 0x3fff_ff00;
    }
    let immediate = if random.below(4) == 0 { random.next() as u16 } else { 0 };
    (registers, machine.under_keel() && random.below(4) == 0, immediate)
}

fn call(random: &mut Random, machine: &Machine) -> (u32, Registers) {
    let (registers, smc, immediate) = any_call(random, machine);
    (if smc { exec::smc(immediate) } else { exec::hvc(immediate) }, registers)
}

/// Loads and stores of all kinds: opcode with Rt = Rn = 0; base x10, offset x11 (0), second register x12.
const ACCESSES: [u32; 26] = [
    0x3940_0000,
    0x3980_0000,
    0x39c0_0000,
    0x7940_0000,
    0x7980_0000,
    0x79c0_0000,
    0xb940_0000,
    0xb980_0000,
    0xf940_0000,
    0x3900_0000,
    0x7900_0000,
    0xb900_0000,
    0xf900_0000,
    0x2940_3000,
    0x2900_3000,
    0xa940_3000,
    0xa900_3000,
    0xb840_4400,
    0xb800_4400,
    0x885f_7c00,
    0x880c_7c00,
    0xb82c_0000,
    0xb82c_8000,
    0x88df_fc00,
    0x889f_fc00,
    0x3dc0_0000,
];

/// Where devices are, and where nothing is: address and size.
const REGIONS: [(usize, usize); 12] = [
    (GICD, 0x1_0000),
    (GICD, 0x1000),
    (GICD + 0x6000, 0x2000),
    (GICR, 0x2_0000),
    (GICR + 0x1_0000, 0x1000),
    (GICR, 0x10_0000),
    (PL031, 0x1000),
    (PL011 + 0x18, 0x10),
    (PL011 + 0x38, 0xfc8),
    (HOLE, 0x10_0000),
    (0x0a00_0000, 0x10_0000),
    (0, 0x4000_0000),
];

/// On a machine with a GICv2, half the time.
const GICV2_REGIONS: [(usize, usize); 4] = [(GICD, 0x1000), (GICD + 0xf00, 0x30), (GICC, 0x2000), (GICC, 0x20)];

fn access(random: &mut Random, machine: &Machine) -> (u32, Registers) {
    let v2 = irq::is_v2() && random.below(2) == 0;
    let (base, size) = if v2 { random.pick(&GICV2_REGIONS) } else { random.pick(&REGIONS) };
    let mut address = base + random.below(size as u64) as usize;
    if random.below(16) != 0 {
        address &= !7 | random.pick(&[0, 4]);
    }
    if !machine.under_keel() && base == 0 {
        // QEMU has devices there that this kernel knows nothing of: flash, firmware configuration, PCIe.
        address = HOLE;
    }
    // The UART's data register, baud rate and control: the console stays readable.
    if (PL011..PL011 + 0x38).contains(&address) && address != PL011 + 0x18 {
        address = PL011 + 0x18;
    }
    let mut registers = Registers::pattern();
    registers.x[10] = address as u64;
    registers.x[11] = 0;
    registers.x[9] = random.value(machine);
    registers.x[12] = random.value(machine);
    let data = random.pick(&[9, 9, 9, 31, 13]);
    (random.pick(&ACCESSES) | 10 << 5 | data, registers)
}

/// Registers that hold this kernel's address space, stack, vectors or way back: written at random they end it by right.
fn forbidden_write((op0, op1, crn, crm, op2): Encoding) -> bool {
    match (op0, op1, crn, crm, op2) {
        (3, 0, 1, _, _) => true,   // SCTLR, CPACR, TCR2 …
        (3, 0, 2, 0, _) => true,   // TTBR0, TTBR1, TCR
        (3, 0, 4, _, _) => true,   // SPSR, ELR, SP_EL0, SPSel, PAN, UAO
        (3, 0, 10, _, _) => true,  // MAIR, AMAIR, PIR
        (3, 0, 12, 0, 0) => true,  // VBAR
        (3, 0, 13, 0, 4) => true,  // TPIDR_EL1: this CPU's number
        (3, 3, 4, _, _) => true,   // DAIF, NZCV, FPCR, DIT, SSBS
        (3, 0, 12, 12, 7) => true, // ICC_IGRPEN1: put back, but SGIs of other tests hang on it
        (2, 0, 0, _, 4) | (2, 0, 0, _, 5) | (2, 0, 0, _, 6) | (2, 0, 0, _, 7) => true, // break- and watchpoints
        (2, 0, 0, 2, 2) => true,   // MDSCR
        (2, 0, 1, 3, 4) => true,   // OSDLR: halts debug for good
        _ => false,
    }
}

fn register(random: &mut Random, machine: &Machine) -> (u32, Registers) {
    let small = |random: &mut Random, bound| random.below(bound) as u32;
    let encoding: Encoding = match random.below(4) {
        // Identification and trapped spaces.
        0 => (3, 0, 0, small(random, 8), small(random, 8)),
        // GIC, timers, performance monitors.
        1 => {
            let (op1, crn, crm) = random.pick(&[
                (0, 12, 8),
                (0, 12, 9),
                (0, 12, 11),
                (0, 12, 12),
                (3, 14, 0),
                (3, 14, 2),
                (3, 14, 3),
                (3, 9, 12),
                (3, 9, 13),
                (3, 14, 8),
            ]);
            (3, op1, crn, crm, small(random, 8))
        }
        // Debug and trace.
        2 => (2, small(random, 8), small(random, 16), small(random, 16), small(random, 8)),
        _ => (3, small(random, 8), small(random, 16), small(random, 16), small(random, 8)),
    };
    let mut registers = Registers::pattern();
    registers.x[9] = random.value(machine);
    // Without a hypervisor nothing stands between random writes and the machine.
    let write = random.below(2) == 0 && !forbidden_write(encoding) && machine.under_keel();
    (if write { exec::msr(9, encoding) } else { exec::mrs(9, encoding) }, registers)
}

/// Cache maintenance by set and way and by address, TLB maintenance, address translation.
fn maintenance(random: &mut Random, machine: &Machine) -> (u32, Registers) {
    const WORDS: [u32; 14] = [
        0xd508_7e40,
        0xd508_7a40,
        0xd50b_7e20,
        0xd50b_7a20,
        0xd50b_7b20,
        0xd50b_7520,
        0xd508_8700,
        0xd508_8300,
        0xd508_8720,
        0xd508_8320,
        0xd508_7800,
        0xd508_7820,
        0xd508_7840,
        0xd508_7860,
    ];
    let mut registers = Registers::pattern();
    registers.x[9] = random.value(machine);
    (random.pick(&WORDS) | 9, registers)
}

static SEED: AtomicUsize = AtomicUsize::new(0);
static STEPS: AtomicUsize = AtomicUsize::new(0);
static TRAPS: AtomicUsize = AtomicUsize::new(0);
static MACHINE: spin::Mutex<Option<&'static Machine>> = spin::Mutex::new(None);

/// COUNT steps on this CPU.
fn steps(cpu: usize) {
    let Some(machine) = *MACHINE.lock() else { return };
    let mut random = Random((SEED.load(SeqCst) as u64).wrapping_mul(0x9e37_79b9) ^ (cpu as u64) << 56 | 1);
    (0..16).for_each(|_| _ = random.next());
    for _ in 0..STEPS.load(SeqCst) {
        let (word, registers) = match random.below(8) {
            0..=1 => call(&mut random, machine),
            2..=4 => access(&mut random, machine),
            5..=6 => register(&mut random, machine),
            _ => maintenance(&mut random, machine),
        };
        if exec::run(word, &registers).trap.is_some() {
            TRAPS.fetch_add(1, SeqCst);
        }
        // Interrupts that came of it stay out: nobody here expects them.
        arch::irq_disable();
    }
}

/// What must still work afterwards.
fn self_check(machine: &'static Machine) -> Check {
    check!(power::hvc(power::PSCI_VERSION, [0; 3])[0] >= 2, "PSCI_VERSION");
    check_eq!(power::hvc(0xc600_ffff, [0; 3])[0], -1_i64 as u64, "an unknown call");
    let outcome = exec::run_with(exec::hvc(0), &[(0, power::PSCI_VERSION.into())]);
    check_eq!(outcome.changed(&[0, 1, 2, 3]), None, "registers after a call");
    // A read of IAR may have begun an interrupt that nobody ends; the timers may be running.
    if irq::is_v2() {
        gicv2::write(gicc::APR0, 0);
    } else {
        msr!("S3_0_C12_C8_4", 0); // ICC_AP0R0_EL1
        msr!("S3_0_C12_C9_0", 0); // ICC_AP1R0_EL1
    }
    Timer::Virtual.stop();
    Timer::Physical.stop();
    irq::init(machine);
    irq::enable(1, 0);
    irq::send(1, machine.cpus()[0]);
    eventually_with_irqs("an SGI", || irq::count(0, 1) == 1)?;
    irq::enable(Timer::Virtual.intid(), 0);
    irq::set_handler(Some(|_| Timer::Virtual.stop()));
    Timer::Virtual.arm(1000);
    eventually_with_irqs("the timer", || irq::count(0, Timer::Virtual.intid()) == 1)?;
    for cpu in 1..machine.cpus().len() {
        start(machine, cpu, |_| {}, 0)?;
        join(machine, cpu)?;
    }
    Ok(())
}

/// Runs `SEED,COUNT` on every CPU at once, then the check.
pub fn run(machine: &'static Machine, argument: &str) {
    let mut numbers = argument.split(',').map(|number| number.parse::<usize>());
    let (Some(Ok(seed)), Some(Ok(count)), None) = (numbers.next(), numbers.next(), numbers.next()) else {
        println!("fuzz: FAILED: fuzz={argument} is not SEED,COUNT");
        return;
    };
    println!("fuzz: seed {seed}, {count} steps on each of {} CPUs", machine.cpus().len());
    SEED.store(seed, SeqCst);
    STEPS.store(count, SeqCst);
    *MACHINE.lock() = Some(machine);
    let started = (1..machine.cpus().len()).filter(|&cpu| smp::start(machine, cpu, steps, cpu).is_ok()).count();
    steps(0);
    let mut patience = 0;
    while (1..=started).any(|cpu| !smp::is_off(machine, cpu)) && patience < 600 {
        time::delay(100_000);
        patience += 1;
    }
    println!("fuzz: {} of the instructions trapped", TRAPS.load(SeqCst));
    const CHECK: &[harness::Case] = &[case("fuzz/self_check", 1, Any, self_check)];
    harness::run(machine, &[CHECK], "");
    println!("fuzz: done {}", count * (started + 1));
}

static WRONG: AtomicUsize = AtomicUsize::new(0);
static FINISHED: AtomicUsize = AtomicUsize::new(0);

/// COUNT calls on this CPU, each compared with the model. No CPU leaves before all are done: it is on for the others.
fn calls(cpu: usize) {
    let Some(machine) = *MACHINE.lock() else { return };
    FINISHED.fetch_add(1, SeqCst);
    while FINISHED.load(SeqCst) < machine.cpus().len() {
        arch::relax();
    }
    let model = Model::new(machine, cpu, Mitigations::ask());
    let mut random = Random((SEED.load(SeqCst) as u64).wrapping_mul(0x9e37_79b9) ^ (cpu as u64) << 56 | 1);
    (0..16).for_each(|_| _ = random.next());
    for step in 0..STEPS.load(SeqCst) {
        let (mut registers, smc, immediate) = any_call(&mut random, machine);
        if [CLOCK_PAIRING, PTP].contains(&(registers.x[0] as u32)) {
            registers.x[0] = 0xc600_0103;
        }
        if let Some(wrong) = model.check(smc, immediate, &registers)
            && WRONG.fetch_add(1, SeqCst) < 10
        {
            println!(
                "calls: FAILED: CPU {cpu} step {step} smc {smc} #{immediate:#x} {:x?}: {wrong}",
                &registers.x[..5]
            );
        }
    }
    FINISHED.fetch_add(1, SeqCst);
    while FINISHED.load(SeqCst) < 2 * machine.cpus().len() {
        arch::relax();
    }
}

/// Runs `SEED,COUNT` on every CPU at once: calls alone, with their answers compared, then the check.
pub fn run_calls(machine: &'static Machine, argument: &str) {
    let mut numbers = argument.split(',').map(|number| number.parse::<usize>());
    let (Some(Ok(seed)), Some(Ok(count)), None) = (numbers.next(), numbers.next(), numbers.next()) else {
        println!("calls: FAILED: calls={argument} is not SEED,COUNT");
        return;
    };
    let cpus = machine.cpus().len();
    println!("calls: seed {seed}, {count} calls on each of {cpus} CPUs");
    SEED.store(seed, SeqCst);
    STEPS.store(count, SeqCst);
    *MACHINE.lock() = Some(machine);
    for cpu in 1..cpus {
        if let Err(error) = smp::start(machine, cpu, calls, cpu) {
            println!("calls: FAILED: CPU_ON of CPU {cpu}: {error}");
            return;
        }
    }
    calls(0);
    for cpu in 1..cpus {
        if !smp::join(machine, cpu) {
            println!("calls: FAILED: CPU {cpu} did not come to an end");
        }
    }
    println!("calls: {} of {} answers wrong", WRONG.load(SeqCst), count * cpus);
    const CHECK: &[harness::Case] = &[case("calls/self_check", 1, Any, self_check)];
    harness::run(machine, &[CHECK], "");
    println!("calls: done {}", count * cpus);
}
