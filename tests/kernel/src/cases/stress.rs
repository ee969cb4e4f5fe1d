//! Many CPUs, many interrupts: nothing may be lost.

use crate::{
    check, check_eq,
    harness::{Case, Check, Under::*, case, eventually, join, start},
};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};
use keel_test_kernel::{
    arch,
    exec::{self, Registers},
    irq,
    machine::Machine,
    mmio, platform, power,
    time::{self, Timer, micros},
};

/// The cases.
pub const CASES: &[Case] = &[
    case("stress/tokens", 2, Any, tokens),
    case("stress/timer_and_tokens", 2, Any, timer_and_tokens),
    case("stress/tokens_and_sleep", 2, Any, tokens_and_sleep),
    case("stress/calls_on_all_cpus", 2, Any, calls_on_all_cpus),
    case("stress/spi_from_all_cpus", 2, Any, spi_from_all_cpus),
    case("stress/on_and_off", 3, Any, on_and_off),
];

/// Tokens: SGIs 1 to 4, each of which is in one place at a time, so that none can merge with another.
const TOKENS: u32 = 4;
/// Hops of all tokens together. On a GICv2 each is a dozen accesses to one device, for which QEMU has one lock.
fn hops() -> usize {
    if irq::is_v2() { 2_000 } else { 10_000 }
}

static HOPPED: AtomicUsize = AtomicUsize::new(0);
static READY: AtomicUsize = AtomicUsize::new(0);
static RING: [AtomicUsize; platform::MAX_CPUS] = [const { AtomicUsize::new(0) }; platform::MAX_CPUS];
static RING_LENGTH: AtomicUsize = AtomicUsize::new(0);
static SLEEP: AtomicU32 = AtomicU32::new(0);
/// Period of the virtual timer in microseconds, 0 for none.
static PERIOD_US: AtomicUsize = AtomicUsize::new(0);
static TICKS: [AtomicU32; platform::MAX_CPUS] = [const { AtomicU32::new(0) }; platform::MAX_CPUS];
/// Ticks each CPU waits for.
const TICKS_WANTED: u32 = 1000;

/// Passes a token on to the next CPU of the ring; a tick re-arms the timer.
fn pass_on(intid: u32) {
    let me = arch::cpu();
    if intid == platform::VIRTUAL_TIMER_INTID {
        TICKS[me].fetch_add(1, SeqCst);
        let next = Timer::Virtual.compare() + micros(PERIOD_US.load(SeqCst) as u64);
        Timer::Virtual.set_compare(next);
        return;
    }
    if intid == platform::PHYSICAL_TIMER_INTID {
        // The alarm clock of a sleeper; it may come although it was just stopped.
        Timer::Physical.stop();
        return;
    }
    // The last hop of each token is not passed on, so that there are so many in all.
    if HOPPED.fetch_add(1, SeqCst) < hops() - TOKENS as usize {
        let next = (me + 1) % RING_LENGTH.load(SeqCst);
        irq::send(intid, RING[next].load(SeqCst) as u64);
    }
}

fn over() -> bool {
    let ticked = PERIOD_US.load(SeqCst) == 0
        || TICKS[..RING_LENGTH.load(SeqCst)].iter().all(|ticks| ticks.load(SeqCst) >= TICKS_WANTED);
    HOPPED.load(SeqCst) >= hops() && ticked
}

/// A CPU of the ring: takes interrupts until all is over.
fn member(cpu: usize) {
    (1..=TOKENS).for_each(|token| irq::enable(token, cpu));
    if PERIOD_US.load(SeqCst) != 0 {
        irq::enable(platform::VIRTUAL_TIMER_INTID, cpu);
        Timer::Virtual.arm(PERIOD_US.load(SeqCst) as u64);
    }
    READY.fetch_add(1, SeqCst);
    let deadline = time::now() + 3 * micros(time::PATIENCE_US);
    if SLEEP.load(SeqCst) != 0 {
        // Asleep but for interrupts; a timer wakes it to look whether all is over.
        irq::enable(platform::PHYSICAL_TIMER_INTID, cpu);
        while !over() && time::now() < deadline {
            Timer::Physical.arm(5000);
            arch::wfi();
            Timer::Physical.stop();
            arch::with_irqs(|| {});
        }
    } else {
        arch::with_irqs(|| {
            while !over() && time::now() < deadline {
                arch::relax();
            }
        });
    }
    Timer::Virtual.stop();
}

fn ring(machine: &Machine, period_us: usize, sleep: bool) -> Check {
    let cpus = machine.cpus().len();
    HOPPED.store(0, SeqCst);
    READY.store(0, SeqCst);
    RING_LENGTH.store(cpus, SeqCst);
    PERIOD_US.store(period_us, SeqCst);
    SLEEP.store(sleep.into(), SeqCst);
    for (cpu, &mpidr) in machine.cpus().iter().enumerate() {
        RING[cpu].store(mpidr as usize, SeqCst);
        TICKS[cpu].store(0, SeqCst);
    }
    irq::set_handler(Some(pass_on));
    for cpu in 1..cpus {
        start(machine, cpu, member, cpu)?;
    }
    eventually("all CPUs are ready", || READY.load(SeqCst) == cpus - 1)?;
    for token in 1..=TOKENS {
        irq::send(token, machine.cpus()[token as usize % cpus]);
    }
    member(0);
    for cpu in 1..cpus {
        join(machine, cpu)?;
    }
    check_eq!(HOPPED.load(SeqCst), hops(), "hops, none lost and none twice");
    for (cpu, ticks) in TICKS[..cpus].iter().enumerate().filter(|_| period_us != 0) {
        let ticks = ticks.load(SeqCst);
        check!(ticks >= TICKS_WANTED, "CPU {cpu} had {ticks} ticks of {TICKS_WANTED}");
    }
    Ok(())
}

fn tokens(machine: &Machine) -> Check {
    ring(machine, 0, false)
}

fn timer_and_tokens(machine: &Machine) -> Check {
    ring(machine, 1000, false)
}

fn tokens_and_sleep(machine: &Machine) -> Check {
    ring(machine, 0, true)
}

static FAILURES: AtomicU32 = AtomicU32::new(0);

/// Calls, device accesses and trapped registers in turn, each with all registers checked.
fn calls(cpu: usize) {
    for round in 0..1000_u64 {
        let (word, values, changes): (u32, &[(usize, u64)], &[usize]) = match round % 4 {
            0 => (exec::hvc(0), &[(0, power::PSCI_VERSION as u64)], &[0, 1, 2, 3]),
            1 => (exec::hvc(0), &[(0, 0xc600_ffff)], &[0, 1, 2, 3]),
            2 => (0xb940_0000 | 10 << 5 | 9, &[(10, platform::GICD as u64 + 4)], &[9]),
            _ => (exec::mrs(9, (3, 0, 0, 4, 0)), &[], &[9]),
        };
        let outcome = exec::run(word, &Registers::with(values));
        if outcome.trap.is_some() || outcome.changed(changes).is_some() {
            FAILURES.fetch_add(1 + cpu as u32 * 1000, SeqCst);
        }
    }
}

fn calls_on_all_cpus(machine: &Machine) -> Check {
    FAILURES.store(0, SeqCst);
    for cpu in 1..machine.cpus().len() {
        start(machine, cpu, calls, cpu)?;
    }
    calls(0);
    for cpu in 1..machine.cpus().len() {
        join(machine, cpu)?;
    }
    check_eq!(FAILURES.load(SeqCst), 0, "failures, each with 1000 times its CPU");
    Ok(())
}

const SPI: u32 = 50;
static SENT: AtomicU32 = AtomicU32::new(0);

/// Makes this CPU's own SPI, routed to CPU 0, pending again and again, each time it was taken.
fn pend(cpu: usize) {
    let intid = SPI + cpu as u32;
    for round in 1..=100 {
        mmio::write32(platform::GICD + 0x200 + intid as usize / 32 * 4, 1 << (intid % 32));
        if !time::wait_until(|| irq::count(0, intid) == round) {
            return;
        }
        SENT.fetch_add(1, SeqCst);
    }
}

fn spi_from_all_cpus(machine: &Machine) -> Check {
    let cpus = machine.cpus().len();
    SENT.store(0, SeqCst);
    for cpu in 1..cpus {
        let intid = SPI + cpu as u32;
        let configure = platform::GICD + 0xc00 + intid as usize / 16 * 4;
        mmio::write32(configure, mmio::read32(configure) | 2 << (intid % 16 * 2));
        irq::route(intid, machine.cpus()[0]);
        irq::enable(intid, 0);
        start(machine, cpu, pend, cpu)?;
    }
    let all = 100 * (cpus as u32 - 1);
    arch::with_irqs(|| eventually("all SPIs are taken", || SENT.load(SeqCst) == all))?;
    for cpu in 1..cpus {
        join(machine, cpu)?;
        check_eq!(irq::count(0, SPI + cpu as u32), 100, "SPIs of CPU {cpu}");
    }
    Ok(())
}

static VISITS: AtomicUsize = AtomicUsize::new(0);

/// CPU 1 turns CPU 2 on and off, as fast as it goes, while CPU 0 does the same with the others.
fn commander(machine: usize) {
    // SAFETY: `on_and_off` passes its own &'static Machine.
    let machine = unsafe { &*(machine as *const Machine) };
    for _ in 0..50 {
        if start(machine, 2, |_| _ = VISITS.fetch_add(1, SeqCst), 0).is_err() || join(machine, 2).is_err() {
            return;
        }
    }
}

fn on_and_off(machine: &'static Machine) -> Check {
    VISITS.store(0, SeqCst);
    start(machine, 1, commander, &raw const *machine as usize)?;
    let mut expected = 50;
    for _ in 0..50 {
        for cpu in 3..machine.cpus().len() {
            start(machine, cpu, |_| _ = VISITS.fetch_add(1, SeqCst), 0)?;
            join(machine, cpu)?;
            expected += 1;
        }
    }
    join(machine, 1)?;
    check_eq!(VISITS.load(SeqCst), expected, "CPUs that were on and off");
    Ok(())
}
