//! The performance monitors: counters, filters, overflow and its interrupt; or nothing at all where there are none.
//!
//! What is counted is what every PMU counts: software increments and cycles; and instructions and chained counters where
//! PMCEID says so (QEMU counts instructions only under icount). Exact numbers are asked for where the architecture has
//! them exact.

use crate::{
    check, check_eq,
    harness::{Case, Check, Under::*, case, eventually, eventually_with_irqs, join, skip, start},
};
use core::{
    arch::{asm, naked_asm},
    sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst},
};
use keel_test_kernel::{
    arch,
    el0::{self, EC_SVC, EC_SYSTEM},
    exec::{self, EC_UNKNOWN, Encoding},
    irq,
    machine::Machine,
    mmio, mrs, msr,
    platform::PMU_INTID,
    power, time,
};

/// The cases.
pub const CASES: &[Case] = &[
    case("pmu/absent", 1, Any, absent),
    case("pmu/registers", 1, Any, registers),
    case("pmu/counters", 1, Any, counters),
    case("pmu/out_of_range", 1, Any, out_of_range),
    case("pmu/cycle_counter", 1, Any, cycle_counter),
    case("pmu/cycles", 1, Any, cycles),
    case("pmu/software_increment", 1, Any, software_increment),
    case("pmu/overflow", 1, Any, overflow),
    case("pmu/long_counters", 1, Any, long_counters),
    case("pmu/chain", 1, Any, chain),
    case("pmu/instructions", 1, Any, instructions),
    case("pmu/exact", 1, Any, exact),
    case("pmu/user", 1, Any, user),
    case("pmu/interrupt", 1, Any, interrupt),
    case("pmu/interrupt_is_a_level", 1, Any, interrupt_is_a_level),
    case("pmu/interrupt_by_cycles", 1, Any, interrupt_by_cycles),
    case("pmu/interrupt_wakes", 1, Any, interrupt_wakes),
    case("pmu/reset", 2, Any, reset),
    case("pmu/each_cpu_has_its_own", 2, Any, each_cpu_has_its_own),
    case("pmu/survives", 1, Any, survives),
    case("pmu/hypervisor_is_not_counted", 1, Keel, hypervisor_is_not_counted),
];

// PMCR_EL0.
const E: u64 = 1 << 0;
const P: u64 = 1 << 1;
const C: u64 = 1 << 2;
const LC: u64 = 1 << 6;
const LP: u64 = 1 << 7;
// PMEVTYPERn_EL0.
const NOT_EL1: u64 = 1 << 31;
const NOT_EL0: u64 = 1 << 30;
const EL2_TOO: u64 = 1 << 27;
// Events.
const SW_INCR: u64 = 0x00;
const INST_RETIRED: u64 = 0x08;
const CPU_CYCLES: u64 = 0x11;
const INST_SPEC: u64 = 0x1b;
const CHAIN: u64 = 0x1e;

const CYCLE_COUNTER: u64 = 1 << 31;

fn version() -> u64 {
    match mrs!("id_aa64dfr0_el1") >> 8 & 0xf {
        0xf => 0,
        version => version,
    }
}

/// Skips the case where there is no PMU; everything stopped and zero otherwise. Returns how many event counters there are.
fn begin() -> Check<u64> {
    if version() == 0 {
        return skip("there is no PMU");
    }
    let counters = mrs!("pmcr_el0") >> 11 & 0x1f;
    stop();
    msr!("pmuserenr_el0", 0);
    for n in 0..counters {
        set(n, SW_INCR, 0);
    }
    msr!("pmccfiltr_el0", 0);
    msr!("pmccntr_el0", 0);
    Ok(counters)
}

fn stop() {
    msr!("pmcr_el0", LC);
    msr!("pmcntenclr_el0", u64::from(u32::MAX));
    msr!("pmintenclr_el1", u64::from(u32::MAX));
    msr!("pmovsclr_el0", u64::from(u32::MAX));
}

fn all(counters: u64) -> u64 {
    CYCLE_COUNTER | ((1 << counters) - 1)
}

/// Gives counter `n` an event and a value.
fn set(n: u64, event: u64, value: u64) {
    msr!("pmselr_el0", n);
    msr!("pmxevtyper_el0", event);
    msr!("pmxevcntr_el0", value);
}

fn get(n: u64) -> u64 {
    msr!("pmselr_el0", n);
    mrs!("pmxevcntr_el0")
}

fn increment(counters: u64) {
    msr!("pmswinc_el0", counters);
}

fn counts(event: u64) -> bool {
    let events = if event < 32 { mrs!("pmceid0_el0") } else { mrs!("pmceid1_el0") };
    events >> (event % 32) & 1 != 0
}

/// Runs a loop of two instructions `rounds` times while the PMU counts what was set up.
fn count_loop(rounds: u64) {
    let (on, off) = (mrs!("pmcr_el0") | E, mrs!("pmcr_el0") & !E);
    // SAFETY: the PMU's registers and two of the asm's own.
    unsafe {
        asm!(
            "msr    pmcr_el0, {on}",
            "isb",
            "2:",
            "subs   {rounds}, {rounds}, #1",
            "b.ne   2b",
            "isb",
            "msr    pmcr_el0, {off}",
            "isb",
            on = in(reg) on, off = in(reg) off, rounds = inout(reg) rounds => _, options(nostack)
        );
    }
}

/// Every register of PMUv3, by name: whether it can be read and written.
const REGISTERS: &[(&str, Encoding, bool, bool)] = &[
    ("PMINTENSET_EL1", (3, 0, 9, 14, 1), true, true),
    ("PMINTENCLR_EL1", (3, 0, 9, 14, 2), true, true),
    ("PMCR_EL0", (3, 3, 9, 12, 0), true, true),
    ("PMCNTENSET_EL0", (3, 3, 9, 12, 1), true, true),
    ("PMCNTENCLR_EL0", (3, 3, 9, 12, 2), true, true),
    ("PMOVSCLR_EL0", (3, 3, 9, 12, 3), true, true),
    ("PMSWINC_EL0", (3, 3, 9, 12, 4), false, true),
    ("PMSELR_EL0", (3, 3, 9, 12, 5), true, true),
    ("PMCEID0_EL0", (3, 3, 9, 12, 6), true, false),
    ("PMCEID1_EL0", (3, 3, 9, 12, 7), true, false),
    ("PMCCNTR_EL0", (3, 3, 9, 13, 0), true, true),
    ("PMXEVTYPER_EL0", (3, 3, 9, 13, 1), true, true),
    ("PMXEVCNTR_EL0", (3, 3, 9, 13, 2), true, true),
    ("PMUSERENR_EL0", (3, 3, 9, 14, 0), true, true),
    ("PMOVSSET_EL0", (3, 3, 9, 14, 3), true, true),
    ("PMEVCNTR0_EL0", (3, 3, 14, 8, 0), true, true),
    ("PMEVCNTR30_EL0", (3, 3, 14, 11, 6), true, true),
    ("PMEVTYPER0_EL0", (3, 3, 14, 12, 0), true, true),
    ("PMEVTYPER30_EL0", (3, 3, 14, 15, 6), true, true),
    ("PMCCFILTR_EL0", (3, 3, 14, 15, 7), true, true),
];

/// EL0 reads the cycle counter.
#[unsafe(naked)]
unsafe extern "C" fn user_cycles() {
    naked_asm!("mov x0, #-1", "mrs x0, pmccntr_el0", "svc #0")
}

/// EL0 increments the counters in x0.
#[unsafe(naked)]
unsafe extern "C" fn user_increment() {
    naked_asm!("msr pmswinc_el0, x0", "svc #0")
}

/// Without a PMU its registers are not there, at EL1 and at EL0.
fn absent(_: &Machine) -> Check {
    if version() != 0 {
        return skip("there is a PMU");
    }
    let all = REGISTERS.iter().map(|&(name, encoding, ..)| (name, encoding));
    for (name, encoding) in all.chain([("PMMIR_EL1", (3, 0, 9, 14, 6))]) {
        for instruction in [exec::mrs(9, encoding), exec::msr(9, encoding)] {
            let outcome = exec::run_with(instruction, &[(9, 0)]);
            let class = outcome.trap.map(|trap| trap.class());
            check_eq!(class, Some(EC_UNKNOWN), "class of the exception of {name}, {instruction:#x}");
        }
    }
    for code in [user_cycles, user_increment] {
        check_eq!(el0::run(code, 1).1, EC_UNKNOWN, "class of EL0's exception");
    }
    Ok(())
}

fn registers(_: &Machine) -> Check {
    let counters = begin()?;
    for &(name, encoding, reads, writes) in REGISTERS {
        let (number, crm) = (encoding.4 + 8 * (encoding.3 & 3), encoding.3);
        let is_counter = (encoding.1, encoding.2) == (3, 14) && crm >= 8 && number < 31;
        if is_counter && u64::from(number) >= counters {
            continue;
        }
        for (allowed, instruction) in [(reads, exec::mrs(9, encoding)), (writes, exec::msr(9, encoding))] {
            let class = exec::run_with(instruction, &[(9, 0)]).trap.map(|trap| trap.class());
            check_eq!(class, (!allowed).then_some(EC_UNKNOWN), "{name}, {instruction:#x}");
        }
    }
    let mask = all(counters);
    macro_rules! pair {
        ($set:literal, $clear:literal) => {
            msr!($set, u64::from(u32::MAX));
            check_eq!((mrs!($set), mrs!($clear)), (mask, mask), "{} after setting everything", $set);
            msr!($clear, 1 | CYCLE_COUNTER);
            check_eq!(mrs!($set), mask & !(1 | CYCLE_COUNTER), "{} after clearing two", $set);
            msr!($clear, u64::from(u32::MAX));
            check_eq!(mrs!($clear), 0, "{} after clearing everything", $set);
        };
    }
    pair!("pmcntenset_el0", "pmcntenclr_el0");
    pair!("pmintenset_el1", "pmintenclr_el1");
    pair!("pmovsset_el0", "pmovsclr_el0");
    msr!("pmuserenr_el0", 0xf);
    check_eq!(mrs!("pmuserenr_el0"), 0xf, "PMUSERENR_EL0");
    msr!("pmuserenr_el0", 0);
    check_eq!(mrs!("pmuserenr_el0"), 0, "PMUSERENR_EL0");
    for n in [0, counters - 1, 31] {
        msr!("pmselr_el0", n);
        check_eq!(mrs!("pmselr_el0"), n, "PMSELR_EL0");
    }
    // PMXEVTYPER_EL0 of 31 is PMCCFILTR_EL0.
    msr!("pmxevtyper_el0", NOT_EL0);
    check_eq!(mrs!("pmccfiltr_el0") & NOT_EL0, NOT_EL0, "PMCCFILTR_EL0");
    msr!("pmccfiltr_el0", 0);
    check_eq!(mrs!("pmcr_el0") & (E | P | C), 0, "PMCR_EL0.E, P and C");
    check_eq!(mrs!("pmcr_el0") >> 11 & 0x1f, counters, "PMCR_EL0.N");
    Ok(())
}

/// Every counter that PMCR_EL0.N promises has its own value and event, by number and by selection.
fn counters(_: &Machine) -> Check {
    let counters = begin()?;
    let value = |n: u64| 0x1234_5600 + n * 0x0101_0011;
    for n in 0..counters {
        set(n, CPU_CYCLES | NOT_EL1 | if n & 1 == 0 { NOT_EL0 } else { 0 }, value(n));
    }
    for n in 0..counters {
        let (high, low) = ((n >> 3) as u32, (n & 7) as u32);
        let counter = exec::run_with(exec::mrs(9, (3, 3, 14, 8 + high, low)), &[]);
        let event = exec::run_with(exec::mrs(9, (3, 3, 14, 12 + high, low)), &[]);
        check!(counter.trap.is_none() && event.trap.is_none(), "counter {n} of {counters} is undefined");
        check_eq!(counter.after.x[9], value(n), "PMEVCNTR{n}_EL0");
        let expected = CPU_CYCLES | NOT_EL1 | if n & 1 == 0 { NOT_EL0 } else { 0 };
        check_eq!(event.after.x[9] & (0x3ff | NOT_EL0 | NOT_EL1), expected, "PMEVTYPER{n}_EL0");
        check_eq!(get(n), value(n), "PMXEVCNTR_EL0 of {n}");
    }
    // P resets the event counters, C the cycle counter.
    msr!("pmccntr_el0", 77);
    msr!("pmcr_el0", LC | P);
    for n in 0..counters {
        check_eq!(get(n), 0, "counter {n} after PMCR_EL0.P");
    }
    check_eq!(mrs!("pmccntr_el0"), 77, "PMCCNTR_EL0 after PMCR_EL0.P");
    msr!("pmcr_el0", LC | C);
    check_eq!(mrs!("pmccntr_el0"), 0, "PMCCNTR_EL0 after PMCR_EL0.C");
    Ok(())
}

/// A counter beyond PMCR_EL0.N: undefined, or nothing (CONSTRAINED UNPREDICTABLE); never another counter.
fn out_of_range(_: &Machine) -> Check {
    let counters = begin()?;
    for n in counters..31 {
        msr!("pmselr_el0", n);
        let (high, low) = ((n >> 3) as u32, (n & 7) as u32);
        for encoding in [(3, 3, 9, 13, 1), (3, 3, 9, 13, 2), (3, 3, 14, 8 + high, low), (3, 3, 14, 12 + high, low)] {
            let write = exec::run_with(exec::msr(9, encoding), &[(9, 0x55)]);
            let read = exec::run_with(exec::mrs(9, encoding), &[(9, 0x77)]);
            for outcome in [write, read] {
                let class = outcome.trap.map_or(EC_UNKNOWN, |trap| trap.class());
                check_eq!(class, EC_UNKNOWN, "class of the exception of {encoding:x?}, counter {n} of {counters}");
            }
        }
    }
    for n in 0..counters {
        check_eq!(get(n), 0, "counter {n}");
        check_eq!(mrs!("pmxevtyper_el0") & 0x3ff, SW_INCR, "event of counter {n}");
    }
    check_eq!((mrs!("pmccntr_el0"), mrs!("pmccfiltr_el0") & !(1 << 27)), (0, 0), "the cycle counter and its filter");
    Ok(())
}

fn cycle_counter(_: &Machine) -> Check {
    begin()?;
    msr!("pmcntenset_el0", CYCLE_COUNTER);
    count_loop(1000);
    let first = mrs!("pmccntr_el0");
    check!(first > 0, "PMCCNTR_EL0 after 1000 rounds: {first}");
    time::delay(100);
    check_eq!(mrs!("pmccntr_el0"), first, "PMCCNTR_EL0 after a while with PMCR_EL0.E = 0");
    msr!("pmcntenclr_el0", CYCLE_COUNTER);
    count_loop(1000);
    check_eq!(mrs!("pmccntr_el0"), first, "PMCCNTR_EL0 after 1000 rounds, not enabled");
    msr!("pmcntenset_el0", CYCLE_COUNTER);
    msr!("pmccfiltr_el0", NOT_EL1);
    count_loop(1000);
    check_eq!(mrs!("pmccntr_el0"), first, "PMCCNTR_EL0 after 1000 rounds, EL1 filtered");
    msr!("pmccfiltr_el0", NOT_EL0);
    count_loop(1000);
    check!(mrs!("pmccntr_el0") > first, "PMCCNTR_EL0 stands still at {first}");
    stop();
    Ok(())
}

fn cycles(_: &Machine) -> Check {
    let counters = begin()?;
    if !counts(CPU_CYCLES) {
        return skip("PMCEID0_EL0 has no CPU_CYCLES");
    }
    let last = counters - 1;
    set(last, CPU_CYCLES, 0);
    msr!("pmcntenset_el0", 1 << last);
    count_loop(10_000);
    let found = get(last);
    check!(found > 0, "counter {last} counted no cycles");
    msr!("pmcntenclr_el0", 1 << last);
    count_loop(10_000);
    check_eq!(get(last), found, "counter {last} when it is not enabled");
    stop();
    Ok(())
}

/// KVM counts software's increments itself, whatever the filters say.
fn on_kvm(machine: &Machine) -> bool {
    machine.value("hyp") == Some("kvm")
}

fn software_increment(machine: &Machine) -> Check {
    let counters = begin()?;
    let mask = (1 << counters) - 1;
    msr!("pmcr_el0", LC | E);
    increment(mask);
    check_eq!((get(0), get(counters - 1)), (0, 0), "counters that are not enabled");
    msr!("pmcntenset_el0", mask);
    increment(mask);
    increment(1);
    increment(1);
    check_eq!((get(0), get(counters - 1)), (if counters == 1 { 1 } else { 3 }, 1), "counters after increments");
    set(0, SW_INCR | NOT_EL1, 5);
    increment(1);
    check!(get(0) == 5 || on_kvm(machine), "a counter that does not count EL1: {}, expected 5", get(0));
    set(0, CPU_CYCLES | NOT_EL1 | NOT_EL0, 7);
    increment(1);
    check_eq!(get(0), 7, "a counter of another event");
    set(0, SW_INCR, 0);
    msr!("pmcr_el0", LC);
    increment(1);
    check_eq!(get(0), 0, "a counter while PMCR_EL0.E is 0");
    stop();
    Ok(())
}

fn overflow(_: &Machine) -> Check {
    begin()?;
    msr!("pmcr_el0", LC | E);
    msr!("pmcntenset_el0", 1);
    set(0, SW_INCR, u64::from(u32::MAX) - 1);
    increment(1);
    check_eq!(mrs!("pmovsset_el0"), 0, "PMOVSSET_EL0 before the overflow");
    increment(1);
    check_eq!(get(0) & u64::from(u32::MAX), 0, "low half of the counter after its overflow");
    check_eq!((mrs!("pmovsset_el0"), mrs!("pmovsclr_el0")), (1, 1), "PMOVSSET_EL0 after the overflow");
    msr!("pmovsclr_el0", 2);
    check_eq!(mrs!("pmovsset_el0"), 1, "PMOVSSET_EL0 after clearing another bit");
    msr!("pmovsclr_el0", 1);
    check_eq!(mrs!("pmovsset_el0"), 0, "PMOVSSET_EL0 after clearing it");
    stop();
    Ok(())
}

/// FEAT_PMUv3p5: 64 bits, which PMCR_EL0.LP makes the place of the overflow.
fn long_counters(_: &Machine) -> Check {
    begin()?;
    set(0, SW_INCR, 0xdead_beef_ffff_ffff);
    if version() < 6 {
        check_eq!(get(0), 0xffff_ffff, "a counter of 32 bits");
        return skip("counters have 32 bits");
    }
    check_eq!(get(0), 0xdead_beef_ffff_ffff, "a counter of 64 bits");
    msr!("pmcntenset_el0", 1);
    msr!("pmcr_el0", LC | LP | E);
    check_eq!(mrs!("pmcr_el0") & LP, LP, "PMCR_EL0.LP");
    increment(1);
    check_eq!((get(0), mrs!("pmovsset_el0")), (0xdead_bef0_0000_0000, 0), "counter and overflow with LP");
    set(0, SW_INCR, u64::MAX);
    increment(1);
    check_eq!((get(0), mrs!("pmovsset_el0")), (0, 1), "counter and overflow with LP at 64 bits");
    stop();
    Ok(())
}

/// A counter of CHAIN counts the overflows of the one before.
fn chain(_: &Machine) -> Check {
    if begin()? < 2 {
        return skip("there is one counter");
    }
    if !counts(CHAIN) {
        return skip("PMCEID0_EL0 has no CHAIN");
    }
    set(0, SW_INCR, u64::from(u32::MAX));
    set(1, CHAIN, 6);
    msr!("pmcntenset_el0", 3);
    msr!("pmcr_el0", LC | E);
    increment(1);
    increment(1);
    check_eq!((get(0) & u64::from(u32::MAX), get(1)), (1, 7), "the pair of counters");
    stop();
    Ok(())
}

/// Instructions that a loop of so many rounds has, counted by counter 0 for `event`.
fn counted(event: u64, rounds: u64) -> u64 {
    set(0, event, 0);
    msr!("pmcntenset_el0", 1);
    count_loop(rounds);
    get(0)
}

fn instructions(_: &Machine) -> Check {
    begin()?;
    if !counts(INST_RETIRED) {
        return skip("PMCEID0_EL0 has no INST_RETIRED (QEMU without icount)");
    }
    let base = counted(INST_RETIRED, 1);
    check_eq!(counted(INST_RETIRED, 1001) - base, 2000, "instructions of 1000 rounds");
    check_eq!(counted(INST_RETIRED | NOT_EL1, 1000), 0, "the same when EL1 is filtered");
    if counts(INST_SPEC) {
        let base = counted(INST_SPEC, 1);
        check!(counted(INST_SPEC, 1001) - base >= 2000, "fewer instructions speculated than executed");
    }
    if begin()? >= 2 && counts(CHAIN) {
        set(1, CHAIN, 0);
        msr!("pmcntenset_el0", 3);
        set(0, INST_RETIRED, u64::from(u32::MAX) - 1000);
        count_loop(1000);
        check_eq!(get(1), 1, "overflows that the next counter counted");
    }
    stop();
    Ok(())
}

/// Long enough for other guests of this CPU to have their turn: none of what they do is counted, and nothing is lost.
fn exact(_: &Machine) -> Check {
    begin()?;
    if !counts(INST_RETIRED) {
        return skip("PMCEID0_EL0 has no INST_RETIRED (QEMU without icount)");
    }
    let base = counted(INST_RETIRED, 1);
    for round in 0..8 {
        let rounds = 5_000_000 + round * 777;
        check_eq!(counted(INST_RETIRED, rounds + 1) - base, 2 * rounds, "instructions of {rounds} rounds");
    }
    stop();
    Ok(())
}

/// What EL0 may do is PMUSERENR_EL0's to say; what it does is counted where U says so.
fn user(machine: &Machine) -> Check {
    begin()?;
    if on_kvm(machine) {
        return skip("QEMU lets EL0 past MDCR_EL2.TPM with the PMUSERENR_EL0 that KVM sets");
    }
    check_eq!(el0::run(user_cycles, 0).1, EC_SYSTEM, "class of EL0's exception with PMUSERENR_EL0 = 0");
    // CR: EL0 reads the cycle counter.
    msr!("pmuserenr_el0", 1 << 2);
    msr!("pmccntr_el0", 0x1234_5678_9abc);
    check_eq!(el0::run(user_cycles, 0), (0x1234_5678_9abc, EC_SVC), "what EL0 read, and how it ended");
    check_eq!(el0::run(user_increment, 1).1, EC_SYSTEM, "class of EL0's exception without SW");
    // SW: EL0 increments.
    msr!("pmuserenr_el0", 1 << 1);
    msr!("pmcntenset_el0", 1);
    msr!("pmcr_el0", LC | E);
    check_eq!(el0::run(user_increment, 1).1, EC_SVC, "how EL0 ended with SW");
    check_eq!(get(0), 1, "what EL0 counted");
    set(0, SW_INCR | NOT_EL0, 0);
    el0::run(user_increment, 1);
    increment(1);
    check_eq!(get(0), 1, "what EL1 counted while EL0 is filtered");
    set(0, SW_INCR | NOT_EL1, 0);
    el0::run(user_increment, 1);
    el0::run(user_increment, 1);
    increment(1);
    check_eq!(get(0), 2, "what EL0 counted while EL1 is filtered");
    msr!("pmuserenr_el0", 0);
    stop();
    Ok(())
}

/// How often the handler lets the line be before it clears it.
static PATIENCE: AtomicU32 = AtomicU32::new(0);

fn handler(intid: u32) {
    if intid == PMU_INTID && PATIENCE.fetch_sub(1, SeqCst) <= 1 {
        msr!("pmovsclr_el0", u64::from(u32::MAX));
    }
}

fn is_pending() -> bool {
    mmio::read32(irq::bitmap(0x200, PMU_INTID)) & 1 << PMU_INTID != 0
}

/// Counter 0 overflows with the next increment, and interrupts.
fn prepare_overflow() -> Check {
    begin()?;
    irq::enable(PMU_INTID, 0);
    irq::set_handler(Some(handler));
    PATIENCE.store(1, SeqCst);
    set(0, SW_INCR, u64::from(u32::MAX));
    msr!("pmcntenset_el0", 1);
    msr!("pmintenset_el1", 1);
    msr!("pmcr_el0", LC | E);
    Ok(())
}

fn interrupt(_: &Machine) -> Check {
    for round in 1..=20 {
        prepare_overflow()?;
        irq::forget();
        arch::with_irqs(|| increment(1));
        eventually_with_irqs("the overflow interrupt", || irq::count(0, PMU_INTID) > 0)?;
        arch::with_irqs(|| time::delay(50));
        check_eq!((irq::count(0, PMU_INTID), irq::spurious(0)), (1, 0), "interrupts, spurious ones, in round {round}");
        check_eq!(mrs!("pmovsset_el0"), 0, "PMOVSSET_EL0 after the handler");
        check!(!is_pending(), "the interrupt is pending after the handler");
    }
    stop();
    Ok(())
}

/// It comes for as long as it is asked for, and not when it is no longer.
fn interrupt_is_a_level(_: &Machine) -> Check {
    prepare_overflow()?;
    PATIENCE.store(3, SeqCst);
    irq::forget();
    arch::with_irqs(|| increment(1));
    eventually_with_irqs("the third interrupt", || irq::count(0, PMU_INTID) >= 3)?;
    arch::with_irqs(|| time::delay(50));
    check_eq!(irq::count(0, PMU_INTID), 3, "interrupts until the overflow was cleared");
    // Pending while it cannot be taken, and withdrawn by either register. (PMCR_EL0.E withdraws it too, but not in QEMU,
    // which looks at the line only when one of the others is written.)
    for (which, withdraw, ask) in [
        ("PMOVSCLR_EL0", (|| msr!("pmovsclr_el0", 1)) as fn(), (|| msr!("pmovsset_el0", 1)) as fn()),
        ("PMINTENCLR_EL1", || msr!("pmintenclr_el1", 1), || msr!("pmintenset_el1", 1)),
    ] {
        prepare_overflow()?;
        irq::forget();
        increment(1);
        eventually("the interrupt is pending", is_pending)?;
        withdraw();
        eventually(which, || !is_pending())?;
        arch::with_irqs(|| time::delay(50));
        check_eq!(irq::count(0, PMU_INTID), 0, "interrupts after {which} withdrew it");
        ask();
        eventually_with_irqs("the interrupt asked for again", || irq::count(0, PMU_INTID) == 1)?;
    }
    stop();
    Ok(())
}

fn interrupt_by_cycles(_: &Machine) -> Check {
    prepare_overflow()?;
    stop();
    irq::forget();
    msr!("pmccntr_el0", u64::MAX - 100_000);
    msr!("pmintenset_el1", CYCLE_COUNTER);
    msr!("pmcntenset_el0", CYCLE_COUNTER);
    msr!("pmcr_el0", LC | E);
    eventually_with_irqs("the cycle counter's interrupt", || irq::count(0, PMU_INTID) > 0)?;
    check_eq!(irq::count(0, PMU_INTID), 1, "interrupts");
    check!(mrs!("pmccntr_el0") < 1 << 62, "PMCCNTR_EL0 after its overflow: {:#x}", mrs!("pmccntr_el0"));
    stop();
    Ok(())
}

/// WFI ends when it is pending, masked or not.
fn interrupt_wakes(_: &Machine) -> Check {
    prepare_overflow()?;
    irq::forget();
    increment(1);
    for _ in 0..3 {
        arch::wfi();
    }
    check!(is_pending(), "the interrupt is not pending");
    eventually_with_irqs("the interrupt after WFI", || irq::count(0, PMU_INTID) == 1)?;
    stop();
    Ok(())
}

/// PMCR, PMUSERENR, PMCNTENSET, PMINTENSET, PMOVSSET as a CPU finds them.
static FOUND: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];

fn find(_: usize) {
    let found =
        [mrs!("pmcr_el0"), mrs!("pmuserenr_el0"), mrs!("pmcntenset_el0"), mrs!("pmintenset_el1"), mrs!("pmovsset_el0")];
    FOUND.iter().zip(found).for_each(|(slot, value)| slot.store(value, SeqCst));
    // What the next start must not find.
    msr!("pmuserenr_el0", 0xf);
    msr!("pmcntenset_el0", u64::from(u32::MAX));
    msr!("pmovsset_el0", u64::from(u32::MAX));
    msr!("pmcr_el0", E);
}

fn reset(machine: &Machine) -> Check {
    let counters = begin()?;
    for round in 0..3 {
        start(machine, 1, find, 0)?;
        join(machine, 1)?;
        let found: [u64; 5] = core::array::from_fn(|n| FOUND[n].load(SeqCst));
        check_eq!(found[0] & (E | 0x1f << 11), counters << 11, "PMCR_EL0.E and N, start {round}");
        check_eq!(found[1], 0, "PMUSERENR_EL0, start {round}");
        if machine.under_keel() && !on_kvm(machine) {
            // UNKNOWN, but nothing of what was there before.
            check_eq!(
                [found[2], found[3], found[4]],
                [0; 3],
                "PMCNTENSET_EL0, PMINTENSET_EL1, PMOVSSET_EL0, start {round}"
            );
        }
    }
    Ok(())
}

static OTHER: AtomicU64 = AtomicU64::new(0);

fn count_elsewhere(_: usize) {
    stop();
    set(0, SW_INCR, 100);
    msr!("pmcntenset_el0", 1);
    msr!("pmcr_el0", LC | E);
    (0..20).for_each(|_| increment(1));
    OTHER.store(get(0), SeqCst);
    stop();
}

fn each_cpu_has_its_own(machine: &Machine) -> Check {
    begin()?;
    set(0, SW_INCR, 5);
    msr!("pmcntenset_el0", 1);
    msr!("pmcr_el0", LC | E);
    start(machine, 1, count_elsewhere, 0)?;
    (0..7).for_each(|_| increment(1));
    join(machine, 1)?;
    check_eq!((get(0), OTHER.load(SeqCst)), (12, 120), "counters of CPU 0 and CPU 1");
    stop();
    Ok(())
}

/// What is set stays set, whatever this CPU does meanwhile: calls, sleep, other guests.
fn survives(_: &Machine) -> Check {
    let counters = begin()?;
    let value = |n: u64| 0x0bad_0000 + n * 0x101;
    for n in 0..counters {
        set(n, CPU_CYCLES | NOT_EL1 | NOT_EL0, value(n));
    }
    msr!("pmccntr_el0", 0x7777_6666_5555);
    msr!("pmccfiltr_el0", NOT_EL1 | NOT_EL0);
    msr!("pmcntenset_el0", all(counters) & !2);
    msr!("pmintenset_el1", 1);
    msr!("pmovsset_el0", all(counters) & !1);
    msr!("pmuserenr_el0", 5);
    msr!("pmcr_el0", LC | E | 1 << 5);
    msr!("pmselr_el0", 31);
    for round in 0..50 {
        power::hvc(0xc600_ffff, [0; 3]);
        let timer = time::Timer::Virtual;
        irq::disable(timer.intid(), 0);
        timer.arm(300);
        while timer.control() & time::ISTATUS == 0 {
            if round & 1 == 0 {
                arch::relax();
            } else {
                time::delay(50);
            }
        }
        timer.stop();
        check_eq!(mrs!("pmselr_el0"), 31, "PMSELR_EL0 in round {round}");
        for n in 0..counters {
            check_eq!(get(n), value(n), "counter {n} in round {round}");
            check_eq!(mrs!("pmxevtyper_el0") & 0x3ff, CPU_CYCLES, "event {n} in round {round}");
        }
        msr!("pmselr_el0", 31);
        check_eq!(mrs!("pmccntr_el0"), 0x7777_6666_5555, "PMCCNTR_EL0 in round {round}");
        let found = [mrs!("pmcntenset_el0"), mrs!("pmintenset_el1"), mrs!("pmovsset_el0"), mrs!("pmuserenr_el0")];
        check_eq!(found, [all(counters) & !2, 1, all(counters) & !1, 5], "registers in round {round}");
        check_eq!(mrs!("pmcr_el0") & 0x7f, LC | E | 1 << 5, "PMCR_EL0 in round {round}");
    }
    msr!("pmuserenr_el0", 0);
    stop();
    Ok(())
}

/// Instructions of 100 calls that the hypervisor answers, with and without EL2 among what is asked to be counted.
fn hypervisor_is_not_counted(_: &Machine) -> Check {
    begin()?;
    if !counts(INST_RETIRED) {
        return skip("PMCEID0_EL0 has no INST_RETIRED (QEMU without icount)");
    }
    let calls = |event: u64| {
        set(0, event, 0);
        msr!("pmcntenset_el0", 1);
        msr!("pmcr_el0", LC | E);
        for _ in 0..100 {
            // AFFINITY_INFO: a call that takes a hypervisor some work.
            power::hvc(power::AFFINITY_INFO, [mrs!("mpidr_el1") & 0xff_00ff_ffff, 0, 0]);
        }
        msr!("pmcr_el0", LC);
        get(0)
    };
    if version() < 4 {
        return skip("MDCR_EL2.HPMD needs FEAT_PMUv3p1");
    }
    check_eq!(calls(INST_RETIRED | EL2_TOO), calls(INST_RETIRED), "instructions with those of EL2");
    stop();
    Ok(())
}
