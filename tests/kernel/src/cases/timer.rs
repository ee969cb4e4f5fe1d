//! The generic timer: the counter, EL1's two timers, their interrupts, and waiting for one.

use crate::{
    check, check_eq,
    harness::{Case, Check, Under::*, case, eventually, eventually_with_irqs, join, start},
};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use keel_test_kernel::{
    arch, irq,
    machine::Machine,
    mmio, mrs,
    time::{self, ENABLE, IMASK, ISTATUS, Timer, micros, now},
};

/// The cases.
pub const CASES: &[Case] = &[
    case("timer/frequency", 1, Any, frequency),
    case("timer/monotonic", 1, Any, monotonic),
    case("timer/same_on_all_cpus", 2, Any, same_on_all_cpus),
    case("timer/physical_and_virtual_count", 1, Any, physical_and_virtual_count),
    case("timer/registers", 1, Any, registers),
    case("timer/status", 1, Any, status),
    case("timer/fires", 1, Any, fires),
    case("timer/in_the_past", 1, Any, in_the_past),
    case("timer/never", 1, Any, never),
    case("timer/masked", 1, Any, masked),
    case("timer/disabled_at_gic", 1, Any, disabled_at_gic),
    case("timer/pending_while_masked", 1, Any, pending_while_masked),
    case("timer/level", 1, Any, level),
    case("timer/withdrawn", 1, Any, withdrawn),
    case("timer/rearmed_in_handler", 1, Any, rearmed_in_handler),
    case("timer/both_at_once", 1, Any, both_at_once),
    case("timer/on_each_cpu", 2, Any, on_each_cpu),
    case("timer/wfi", 1, Any, wfi),
    case("timer/wfi_interrupt_taken", 1, Any, wfi_interrupt_taken),
    case("timer/wfi_by_sgi", 2, Any, wfi_by_sgi),
    case("timer/registers_survive", 1, Any, registers_survive),
];

const BOTH: [Timer; 2] = [Timer::Virtual, Timer::Physical];

fn frequency(_: &Machine) -> Check {
    check!(time::frequency() >= 1_000_000, "CNTFRQ_EL0: {}", time::frequency());
    Ok(())
}

fn monotonic(_: &Machine) -> Check {
    let mut last = now();
    for _ in 0..10_000 {
        let next = now();
        check!(next >= last, "the counter went from {last} to {next}");
        last = next;
    }
    Ok(())
}

static STAMP: AtomicU64 = AtomicU64::new(0);
static TURN: AtomicUsize = AtomicUsize::new(0);
const TURNS: usize = 200;

/// Answers each odd turn with the counter.
fn stamp(_: usize) {
    for turn in (1..TURNS).step_by(2) {
        if !time::wait_until(|| TURN.load(SeqCst) == turn) {
            return;
        }
        STAMP.store(now(), SeqCst);
        TURN.store(turn + 1, SeqCst);
    }
}

fn same_on_all_cpus(machine: &Machine) -> Check {
    for cpu in 1..machine.cpus().len() {
        TURN.store(0, SeqCst);
        start(machine, cpu, stamp, 0)?;
        for turn in (0..TURNS).step_by(2) {
            let before = now();
            TURN.store(turn + 1, SeqCst);
            eventually("the other CPU answers", || TURN.load(SeqCst) == turn + 2)?;
            let (there, after) = (STAMP.load(SeqCst), now());
            check!(before <= there && there <= after, "CPU {cpu} read {there} between {before} and {after}");
        }
        join(machine, cpu)?;
    }
    Ok(())
}

fn physical_and_virtual_count(_: &Machine) -> Check {
    // Both run at one rate: their difference does not drift.
    let difference = || {
        let before = Timer::Physical.counter();
        let between = Timer::Virtual.counter();
        let after = Timer::Physical.counter();
        (before.wrapping_sub(between) as i64, after.wrapping_sub(between) as i64)
    };
    let (low, high) = difference();
    time::delay(20_000);
    let (later_low, later_high) = difference();
    check!(later_low <= high && low <= later_high, "offset was {low} to {high}, is {later_low} to {later_high}");
    Ok(())
}

fn registers(_: &Machine) -> Check {
    for timer in BOTH {
        for value in [0, 0x1234_5678_9abc_def0, u64::MAX] {
            timer.set_compare(value);
            check_eq!(timer.compare(), value, "CVAL of {timer:?}");
        }
        // TVAL is the distance to CVAL, 32 bits with a sign.
        for distance in [1_000_000_000_i64, -1_000_000, i64::from(i32::MAX), i64::from(i32::MIN)] {
            let before = timer.counter();
            timer.set_value(distance as u32 as u64);
            let after = timer.counter();
            let compare = timer.compare();
            let low = before.wrapping_add(distance as u64);
            let high = after.wrapping_add(distance as u64);
            check!(
                compare.wrapping_sub(low) <= high.wrapping_sub(low),
                "CVAL of {timer:?} after TVAL {distance}: {compare:#x}, expected {low:#x} to {high:#x}"
            );
        }
        timer.set_value(1_000_000_000);
        let first = timer.value() as i32;
        let second = timer.value() as i32;
        check!(first <= 1_000_000_000 && second < first + 1, "TVAL of {timer:?}: {first}, then {second}");
        for control in [0, ENABLE, IMASK, ENABLE | IMASK, 0] {
            timer.set_control(control);
            check_eq!(timer.control() & 3, control, "CTL of {timer:?}");
        }
        // ISTATUS and above cannot be written.
        timer.set_compare(u64::MAX);
        timer.set_control(!0);
        check_eq!(timer.control(), 3, "CTL of {timer:?} after writing all ones");
        timer.stop();
    }
    Ok(())
}

fn status(_: &Machine) -> Check {
    for timer in BOTH {
        timer.set_compare(timer.counter() + micros(10_000));
        timer.set_control(ENABLE | IMASK);
        let early = timer.control();
        let before = timer.counter() < timer.compare();
        // Only if it was looked at in time.
        check!(!before || early & ISTATUS == 0, "ISTATUS of {timer:?} before its time");
        eventually("ISTATUS rises", || timer.control() & ISTATUS != 0)?;
        check!(timer.counter() >= timer.compare(), "ISTATUS of {timer:?} rose early");
        timer.set_compare(timer.counter() + micros(1_000_000));
        check_eq!(timer.control() & ISTATUS, 0, "ISTATUS of {timer:?} with a new time");
        timer.stop();
    }
    Ok(())
}

fn stop_all(intid: u32) {
    BOTH.into_iter().filter(|timer| timer.intid() == intid).for_each(Timer::stop);
}

fn fires(_: &Machine) -> Check {
    for timer in BOTH {
        irq::enable(timer.intid(), 0);
        irq::set_handler(Some(|intid| {
            STAMP.store(
                if intid == Timer::Virtual.intid() { Timer::Virtual } else { Timer::Physical }.counter(),
                SeqCst,
            );
            stop_all(intid);
        }));
        for (round, us) in (1..).zip([100, 1000, 10_000, 50_000]) {
            timer.arm(us);
            eventually_with_irqs("the timer fires", || irq::count(0, timer.intid()) == round)?;
            let (deadline, taken) = (timer.compare(), STAMP.load(SeqCst));
            check!(taken >= deadline, "{timer:?} fired {} ticks early", deadline - taken);
            check!(taken - deadline < time::frequency(), "{timer:?} fired {} ticks late", taken - deadline);
        }
        arch::with_irqs(|| time::delay(1000));
        check_eq!(irq::count(0, timer.intid()), 4, "interrupts of {timer:?}");
    }
    check_eq!(irq::spurious(0), 0, "spurious interrupts");
    Ok(())
}

fn in_the_past(_: &Machine) -> Check {
    for timer in BOTH {
        irq::enable(timer.intid(), 0);
        irq::set_handler(Some(stop_all));
        for (round, compare) in (1..).zip([0, 1, timer.counter()]) {
            timer.set_compare(compare);
            timer.set_control(ENABLE);
            eventually_with_irqs("the timer fires", || irq::count(0, timer.intid()) == round)?;
        }
    }
    Ok(())
}

fn never(_: &Machine) -> Check {
    for timer in BOTH {
        irq::enable(timer.intid(), 0);
        irq::set_handler(Some(stop_all));
        for compare in [u64::MAX, u64::MAX / 2, timer.counter() + 3600 * time::frequency()] {
            timer.set_compare(compare);
            timer.set_control(ENABLE);
            arch::with_irqs(|| time::delay(2000));
            check_eq!(irq::count(0, timer.intid()), 0, "interrupts of {timer:?} with CVAL {compare:#x}");
        }
        timer.stop();
    }
    Ok(())
}

fn pending(intid: u32) -> bool {
    mmio::read32(irq::bitmap(0x200, intid)) & 1 << intid != 0
}

fn masked(_: &Machine) -> Check {
    for timer in BOTH {
        irq::enable(timer.intid(), 0);
        irq::set_handler(Some(stop_all));
        timer.set_compare(0);
        timer.set_control(ENABLE | IMASK);
        arch::with_irqs(|| time::delay(2000));
        check_eq!(timer.control(), ENABLE | IMASK | ISTATUS, "CTL of {timer:?}");
        check_eq!(irq::count(0, timer.intid()), 0, "interrupts of {timer:?} with IMASK");
        check!(!pending(timer.intid()), "{timer:?} is pending at the GIC with IMASK");
        timer.set_control(ENABLE);
        eventually_with_irqs("the timer fires", || irq::count(0, timer.intid()) == 1)?;
    }
    Ok(())
}

fn disabled_at_gic(_: &Machine) -> Check {
    for timer in BOTH {
        irq::set_handler(Some(stop_all));
        timer.set_compare(0);
        timer.set_control(ENABLE);
        arch::with_irqs(|| time::delay(2000));
        check_eq!(irq::count(0, timer.intid()), 0, "interrupts of {timer:?}, disabled at the GIC");
        eventually("ISPENDR0 shows the timer's level", || pending(timer.intid()))?;
        irq::enable(timer.intid(), 0);
        eventually_with_irqs("the timer fires", || irq::count(0, timer.intid()) == 1)?;
        eventually("ISPENDR0 falls with the level", || !pending(timer.intid()))?;
    }
    Ok(())
}

/// An interrupt that PSTATE keeps out is pending at the GIC for as long as the timer asks, and no longer.
fn pending_while_masked(_: &Machine) -> Check {
    for timer in BOTH {
        irq::enable(timer.intid(), 0);
        for _ in 0..10 {
            timer.set_compare(0);
            timer.set_control(ENABLE);
            eventually("GICR_ISPENDR0 shows the timer", || pending(timer.intid()))?;
            timer.stop();
            eventually("GICR_ISPENDR0 no longer shows the timer", || !pending(timer.intid()))?;
        }
        check_eq!(irq::count(0, timer.intid()), 0, "interrupts of {timer:?} while IRQs are masked");
    }
    Ok(())
}

fn level(_: &Machine) -> Check {
    for timer in BOTH {
        irq::enable(timer.intid(), 0);
        // Not cleared: it comes again as soon as it is ended.
        irq::set_handler(Some(|intid| {
            if irq::count(0, intid) == 5 {
                stop_all(intid);
            }
        }));
        timer.set_compare(0);
        timer.set_control(ENABLE);
        eventually_with_irqs("a level that stays comes again", || irq::count(0, timer.intid()) >= 5)?;
        arch::with_irqs(|| time::delay(1000));
        check_eq!(irq::count(0, timer.intid()), 5, "interrupts of {timer:?}");
    }
    Ok(())
}

fn withdrawn(_: &Machine) -> Check {
    for timer in BOTH {
        irq::enable(timer.intid(), 0);
        irq::set_handler(Some(stop_all));
        timer.set_compare(0);
        timer.set_control(ENABLE);
        eventually("ISR_EL1.I rises", || mrs!("isr_el1") & 1 << 7 != 0)?;
        timer.set_compare(timer.counter() + 3600 * time::frequency());
        // A hypervisor may see the level fall only now; a spurious interrupt is allowed, the timer's is not.
        eventually("ISPENDR0 falls with the level", || !pending(timer.intid()))?;
        arch::with_irqs(|| time::delay(1000));
        check_eq!(irq::count(0, timer.intid()), 0, "interrupts of {timer:?}, whose time was moved");
        timer.set_compare(0);
        eventually_with_irqs("the timer fires", || irq::count(0, timer.intid()) == 1)?;
    }
    Ok(())
}

fn rearmed_in_handler(_: &Machine) -> Check {
    const TICKS: u32 = 50;
    const PERIOD_US: u64 = 1000;
    for timer in BOTH {
        irq::enable(timer.intid(), 0);
        irq::set_handler(Some(|intid| {
            for timer in BOTH {
                if timer.intid() == intid {
                    if irq::count(0, intid) < TICKS {
                        timer.set_compare(timer.compare() + micros(PERIOD_US));
                    } else {
                        timer.stop();
                    }
                }
            }
        }));
        let start = timer.counter();
        timer.arm(PERIOD_US);
        eventually_with_irqs("all ticks come", || irq::count(0, timer.intid()) == TICKS)?;
        let took = timer.counter() - start;
        check!(
            took >= u64::from(TICKS) * micros(PERIOD_US),
            "{TICKS} ticks of {PERIOD_US} us took {took} ticks of the counter"
        );
    }
    Ok(())
}

fn both_at_once(_: &Machine) -> Check {
    irq::set_handler(Some(stop_all));
    for round in 1..=10 {
        for timer in BOTH {
            irq::enable(timer.intid(), 0);
            timer.set_compare(0);
            timer.set_control(ENABLE);
        }
        eventually_with_irqs("both fire", || BOTH.iter().all(|timer| irq::count(0, timer.intid()) == round))?;
    }
    Ok(())
}

static RUNNING: AtomicUsize = AtomicUsize::new(0);
const EACH: u32 = 20;

/// Takes EACH ticks of both timers on this CPU.
fn tick(cpu: usize) {
    for timer in BOTH {
        irq::enable(timer.intid(), cpu);
        timer.arm(1000);
    }
    arch::with_irqs(|| {
        time::wait_until(|| BOTH.iter().all(|timer| irq::count(cpu, timer.intid()) >= EACH));
    });
    BOTH.into_iter().for_each(Timer::stop);
    RUNNING.fetch_sub(1, SeqCst);
}

fn on_each_cpu(machine: &Machine) -> Check {
    let cpus = machine.cpus().len();
    irq::set_handler(Some(|intid| {
        for timer in BOTH.into_iter().filter(|timer| timer.intid() == intid) {
            if irq::count(arch::cpu(), intid) < EACH { timer.arm(1000) } else { timer.stop() }
        }
    }));
    RUNNING.store(cpus, SeqCst);
    for cpu in 1..cpus {
        start(machine, cpu, tick, cpu)?;
    }
    tick(0);
    eventually("all CPUs are done", || RUNNING.load(SeqCst) == 0)?;
    for cpu in 0..cpus {
        for timer in BOTH {
            check_eq!(irq::count(cpu, timer.intid()), EACH, "ticks of {timer:?} on CPU {cpu}");
        }
    }
    Ok(())
}

fn wfi(_: &Machine) -> Check {
    for timer in BOTH {
        irq::enable(timer.intid(), 0);
        for us in [100, 5000, 20_000] {
            timer.arm(us);
            let deadline = timer.compare();
            // Masked in PSTATE: WFI ends, no interrupt is taken. It may end early, so go on until it is time.
            while timer.control() & ISTATUS == 0 {
                arch::wfi();
            }
            let woke = timer.counter();
            timer.stop();
            check!(woke >= deadline, "{timer:?} ended WFI {} ticks early", deadline - woke);
            check!(woke - deadline < time::frequency(), "{timer:?} ended WFI {} ticks late", woke - deadline);
        }
        check_eq!(irq::total(0), 0, "interrupts taken while masked");
    }
    Ok(())
}

fn wfi_interrupt_taken(_: &Machine) -> Check {
    for timer in BOTH {
        irq::enable(timer.intid(), 0);
        irq::set_handler(Some(stop_all));
        for round in 1..=20 {
            timer.arm(500);
            while irq::count(0, timer.intid()) < round {
                arch::wfi();
                // What ended WFI is taken here.
                arch::with_irqs(|| {});
            }
        }
    }
    Ok(())
}

static PINGS: AtomicUsize = AtomicUsize::new(0);
const PING: u32 = 8;
const ROUNDS: usize = 200;

/// Waits in WFI for each ping, and answers by counting.
fn sleeper(cpu: usize) {
    irq::enable(PING, cpu);
    TURN.store(1, SeqCst);
    for round in 1..=ROUNDS {
        while (irq::count(cpu, PING) as usize) < round {
            arch::wfi();
            arch::with_irqs(|| {});
        }
        PINGS.store(round, SeqCst);
    }
}

fn wfi_by_sgi(machine: &Machine) -> Check {
    PINGS.store(0, SeqCst);
    TURN.store(0, SeqCst);
    start(machine, 1, sleeper, 1)?;
    eventually("the other CPU is ready", || TURN.load(SeqCst) == 1)?;
    for round in 1..=ROUNDS {
        if round % 10 == 0 {
            // Time enough to fall asleep.
            time::delay(500);
        }
        irq::send(PING, machine.cpus()[1]);
        eventually("the other CPU wakes", || PINGS.load(SeqCst) == round)?;
    }
    join(machine, 1)
}

fn registers_survive(_: &Machine) -> Check {
    // CVAL and CTL of a timer that is off, over hypercalls and a sleep.
    for timer in BOTH {
        timer.set_control(IMASK);
        timer.set_compare(0x7766_5544_3322_1100);
    }
    Timer::Virtual.set_compare(now() + micros(2000));
    Timer::Virtual.set_control(ENABLE);
    irq::enable(Timer::Virtual.intid(), 0);
    let compare = Timer::Virtual.compare();
    while Timer::Virtual.control() & ISTATUS == 0 {
        arch::wfi();
        keel_test_kernel::power::hvc(0xc600_ffff, [0; 3]);
    }
    check_eq!(Timer::Virtual.compare(), compare, "CNTV_CVAL_EL0");
    check_eq!(Timer::Virtual.control(), ENABLE | ISTATUS, "CNTV_CTL_EL0");
    check_eq!(Timer::Physical.compare(), 0x7766_5544_3322_1100, "CNTP_CVAL_EL0");
    check_eq!(Timer::Physical.control(), IMASK, "CNTP_CTL_EL0");
    Ok(())
}
