//! SErrors: made pending by a test call, they are taken once, by the CPU they are for, with the syndrome they were given.
//!
//! The calls are KVM_SET_VCPU_EVENTS and KVM_GET_VCPU_EVENTS for the calling CPU: x1 is the first word of `struct
//! kvm_vcpu_events` (serror_pending, serror_has_esr, ext_dabt_pending, pad, a byte each from bit 0 on), x2 is serror_esr, x3
//! the beginning of what is reserved. A machine has them if it was built with `test-injection`, and then gets the word
//! `injection`. Linux's KVM is given them by the oracle's runner.

use crate::{
    check, check_eq,
    harness::{Case, Check, Under::*, case, eventually, join, skip, start},
};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use keel_test_kernel::{
    arch,
    exceptions::{expect_serrors, serrors},
    exec::{self, EC_DATA_ABORT, EC_UNKNOWN, FSC_EXTERNAL},
    machine::Machine,
    mrs, msr, power, time,
};

/// The cases.
pub const CASES: &[Case] = &[
    case("serror/not_for_everyone", 1, Keel, not_for_everyone),
    case("serror/nothing_pending", 1, Keel, nothing_pending),
    case("serror/bad_arguments", 1, Keel, bad_arguments),
    case("serror/without_syndrome", 1, Keel, without_syndrome),
    case("serror/with_syndrome", 1, Keel, with_syndrome),
    case("serror/not_cancelled", 1, Keel, not_cancelled),
    case("serror/taken_at_once", 1, Keel, taken_at_once),
    case("serror/deferred", 1, Keel, deferred),
    case("serror/disr_is_the_guests", 1, Any, disr),
    case("serror/no_error_records", 1, Any, no_error_records),
    case("serror/ends_wfi", 1, Keel, ends_wfi),
    case("serror/each_cpu_its_own", 2, Keel, each_cpu_its_own),
    case("serror/not_the_other_cpus", 2, Keel, not_the_other_cpus),
    case("serror/gone_after_reset", 2, Keel, gone_after_reset),
    case("serror/external_abort", 1, Keel, external_abort),
    case("serror/abort_and_serror", 1, Keel, abort_and_serror),
];

const SET: u32 = 0xc600_0210;
const GET: u32 = 0xc600_0211;
/// Bytes of the first word.
const PENDING: u64 = 1;
const HAS_ESR: u64 = 1 << 8;
const ABORT: u64 = 1 << 16;
const EINVAL: u64 = -22_i64 as u64;
const NOT_SUPPORTED: u64 = -1_i64 as u64;
/// ESR_EL1.IDS.
const IDS: u64 = 1 << 24;
const EC_SERROR: u64 = 0x2f;
/// DISR_EL1.A.
const DISR_A: u64 = 1 << 31;

fn has_ras() -> bool {
    mrs!("id_aa64pfr0_el1") >> 28 & 15 != 0
}

fn is_there(machine: &Machine) -> Check {
    if machine.has("injection") { Ok(()) } else { skip("needs a machine with test-injection") }
}

fn set(word: u64, esr: u64) -> u64 {
    power::hvc(SET, [word, esr, 0])[0]
}

fn get() -> Check<(u64, u64)> {
    let [result, word, esr, rest] = power::hvc(GET, [0; 3]);
    check_eq!((result, rest), (0, 0), "x0 and x3 of KVM_GET_VCPU_EVENTS");
    Ok((word, esr))
}

/// What is read while nothing is pending.
fn idle() -> (u64, u64) {
    (if has_ras() { HAS_ESR } else { 0 }, 0)
}

/// What is read while an SError with this syndrome is pending.
fn pending(esr: u64) -> (u64, u64) {
    if has_ras() { (PENDING | HAS_ESR, esr) } else { (PENDING, 0) }
}

/// Lets SErrors in for a moment.
fn let_in() {
    arch::serror_enable();
    arch::isb();
    arch::serror_disable();
    arch::isb();
}

fn taken_once(syndrome: u64) -> Check {
    let (count, esr) = serrors();
    check_eq!(count, 1, "SErrors taken");
    check_eq!((esr >> 26, esr >> 25 & 1), (EC_SERROR, 1), "class and IL of ESR {esr:#x}");
    if has_ras() {
        check_eq!(esr & 0x1ff_ffff, syndrome, "ISS of ESR {esr:#x}");
    }
    Ok(())
}

fn prepare(machine: &Machine) -> Check {
    is_there(machine)?;
    arch::serror_disable();
    expect_serrors(true);
    Ok(())
}

fn not_for_everyone(machine: &Machine) -> Check {
    if machine.has("injection") {
        return skip("needs a machine without test-injection");
    }
    expect_serrors(true);
    for id in [SET, GET] {
        check_eq!(power::hvc(id, [PENDING, 0, 0]), [NOT_SUPPORTED, 0, 0, 0], "the call {id:#x}");
    }
    let_in();
    check_eq!(serrors().0, 0, "SErrors taken");
    Ok(())
}

fn nothing_pending(machine: &Machine) -> Check {
    prepare(machine)?;
    check_eq!(get()?, idle(), "events");
    check_eq!(set(0, 0), 0, "setting nothing");
    // What is not asked for is not looked at.
    check_eq!(set(HAS_ESR, u64::MAX), 0, "a syndrome without an SError");
    check_eq!(get()?, idle(), "events");
    let_in();
    check_eq!(serrors().0, 0, "SErrors taken");
    Ok(())
}

fn bad_arguments(machine: &Machine) -> Check {
    prepare(machine)?;
    let too_long = [1 << 25, 1 << 32, 1 << 63].map(|esr| (PENDING | HAS_ESR | ABORT, esr, 0));
    let reserved = [(PENDING | 1 << 24, 0, 0), (1 << 63, 0, 0), (PENDING, 0, 1), (0, 0, 1 << 32)];
    for (word, esr, rest) in too_long.into_iter().chain(reserved) {
        check_eq!(power::hvc(SET, [word, esr, rest])[0], EINVAL, "events {word:#x} {esr:#x} {rest:#x}");
    }
    if !has_ras() {
        check_eq!(set(PENDING | HAS_ESR, 0x11), EINVAL, "a syndrome without FEAT_RAS");
    }
    check_eq!(get()?, idle(), "events");
    let_in();
    check_eq!(serrors().0, 0, "SErrors taken");
    Ok(())
}

fn without_syndrome(machine: &Machine) -> Check {
    prepare(machine)?;
    // Any bits are true, and the syndrome is not looked at.
    for (word, esr) in [(PENDING, 0), (0x80, u64::MAX)] {
        expect_serrors(true);
        check_eq!(set(word, esr), 0, "setting an SError");
        check_eq!(get()?, pending(IDS), "events");
        check_eq!(mrs!("isr_el1") >> 8 & 1, 1, "ISR_EL1.A");
        check_eq!(serrors().0, 0, "SErrors taken while PSTATE.A is set");
        let_in();
        taken_once(IDS)?;
        check_eq!(get()?, idle(), "events after it was taken");
        check_eq!(mrs!("isr_el1") >> 8 & 1, 0, "ISR_EL1.A after it was taken");
        let_in();
        check_eq!(serrors().0, 1, "SErrors taken");
    }
    Ok(())
}

fn with_syndrome(machine: &Machine) -> Check {
    prepare(machine)?;
    if !has_ras() {
        return skip("no FEAT_RAS");
    }
    for esr in [0, 0x11, 3 << 10 | 0x11, 1 << 9 | 0x11, IDS, IDS | 0xab_cdef, 0x1ff_ffff] {
        expect_serrors(true);
        check_eq!(set(PENDING | HAS_ESR, esr), 0, "an SError with syndrome {esr:#x}");
        check_eq!(get()?, pending(esr), "events");
        let_in();
        taken_once(esr)?;
    }
    Ok(())
}

fn not_cancelled(machine: &Machine) -> Check {
    prepare(machine)?;
    check_eq!(set(PENDING, 0), 0, "setting an SError");
    check_eq!(set(0, 0), 0, "setting nothing");
    check_eq!(get()?, pending(IDS), "events");
    // A second one is not a second one: it has the last syndrome.
    if has_ras() {
        check_eq!(set(PENDING | HAS_ESR, 0x411), 0, "setting another");
        check_eq!(get()?, pending(0x411), "events");
        check_eq!(set(PENDING | HAS_ESR, 1 << 25), EINVAL, "a bad one");
        check_eq!(get()?, pending(0x411), "events");
    }
    let_in();
    taken_once(if has_ras() { 0x411 } else { IDS })
}

fn taken_at_once(machine: &Machine) -> Check {
    prepare(machine)?;
    arch::serror_enable();
    let result = set(PENDING, 0);
    arch::isb();
    arch::serror_disable();
    check_eq!(result, 0, "setting an SError");
    taken_once(IDS)?;
    check_eq!(get()?, idle(), "events");
    Ok(())
}

fn deferred(machine: &Machine) -> Check {
    prepare(machine)?;
    if !has_ras() {
        // ESB is a NOP.
        check_eq!(set(PENDING, 0), 0, "setting an SError");
        arch::esb();
        check_eq!(get()?, pending(IDS), "events after ESB");
        let_in();
        return taken_once(IDS);
    }
    for esr in [0x11, IDS | 0x1234] {
        expect_serrors(true);
        msr!("S3_0_C12_C1_1", 0);
        check_eq!(set(PENDING | HAS_ESR, esr), 0, "setting an SError");
        arch::esb();
        let disr = mrs!("S3_0_C12_C1_1");
        check_eq!(get()?, idle(), "events after ESB");
        check_eq!(disr, DISR_A | esr, "DISR_EL1");
        msr!("S3_0_C12_C1_1", 0);
        check_eq!(mrs!("S3_0_C12_C1_1"), 0, "DISR_EL1 after it was cleared");
        let_in();
        check_eq!(serrors().0, 0, "SErrors taken after ESB");
        // With PSTATE.A clear ESB defers nothing: the SError is taken.
        check_eq!(set(PENDING | HAS_ESR, esr), 0, "setting an SError");
        arch::serror_enable();
        arch::esb();
        arch::serror_disable();
        taken_once(esr)?;
        check_eq!(mrs!("S3_0_C12_C1_1"), 0, "DISR_EL1 after an SError that was taken");
    }
    Ok(())
}

fn disr(machine: &Machine) -> Check {
    const DISR: exec::Encoding = (3, 0, 12, 1, 1);
    if !has_ras() {
        let outcome = exec::run_with(exec::mrs(9, DISR), &[]);
        check_eq!(outcome.trap.map(|trap| trap.class()), Some(EC_UNKNOWN), "reading DISR_EL1 without FEAT_RAS");
        return Ok(());
    }
    // It stays over exits and, where CPUs share one of the machine's, over time slices.
    msr!("S3_0_C12_C1_1", DISR_A | IDS | 5);
    let found = mrs!("S3_0_C12_C1_1");
    for _ in 0..3 {
        power::psci(power::PSCI_VERSION, [0; 3]);
    }
    if machine.cpus().len() > 1 {
        start(machine, 1, |_| CELLS[1].store(mrs!("S3_0_C12_C1_1"), SeqCst), 0)?;
        join(machine, 1)?;
        check_eq!(CELLS[1].load(SeqCst), 0, "DISR_EL1 of CPU 1");
    }
    let later = mrs!("S3_0_C12_C1_1");
    msr!("S3_0_C12_C1_1", 0);
    check_eq!(found & DISR_A, DISR_A, "DISR_EL1.A after it was written");
    check_eq!(later, found, "DISR_EL1 after calls");
    Ok(())
}

/// ERRSELR_EL1, ERXFR_EL1 …: op2 and CRm 3 to 5 of S3_0_C5.
const RECORDS: [exec::Encoding; 9] = [
    (3, 0, 5, 3, 1),
    (3, 0, 5, 4, 0),
    (3, 0, 5, 4, 1),
    (3, 0, 5, 4, 2),
    (3, 0, 5, 4, 3),
    (3, 0, 5, 5, 0),
    (3, 0, 5, 5, 1),
    (3, 0, 5, 5, 2),
    (3, 0, 5, 5, 3),
];

fn no_error_records(machine: &Machine) -> Check {
    let outcome = exec::run_with(exec::mrs(9, (3, 0, 5, 3, 0)), &[]);
    if !has_ras() {
        check_eq!(outcome.trap.map(|trap| trap.class()), Some(EC_UNKNOWN), "reading ERRIDR_EL1 without FEAT_RAS");
        return Ok(());
    }
    check!(outcome.trap.is_none(), "reading ERRIDR_EL1: {:x?}", outcome.trap);
    let records = outcome.after.x[9] & 0xffff;
    check!(records == 0 || !machine.under_keel(), "ERRIDR_EL1.NUM is {records}");
    let outcome = exec::run_with(exec::msr(9, (3, 0, 5, 3, 0)), &[(9, 0)]);
    check_eq!(outcome.trap.map(|trap| trap.class()), Some(EC_UNKNOWN), "writing ERRIDR_EL1");
    // Without records these are zero, or undefined (DDI 0587, ERRIDR_EL1.NUM).
    for register in RECORDS.into_iter().filter(|_| records == 0) {
        let outcome = exec::run_with(exec::mrs(9, register), &[]);
        match outcome.trap {
            None => check_eq!(outcome.after.x[9], 0, "{register:x?}"),
            Some(trap) => check_eq!(trap.class(), EC_UNKNOWN, "reading {register:x?}: class of ESR {:#x}", trap.esr),
        }
    }
    Ok(())
}

fn ends_wfi(machine: &Machine) -> Check {
    if machine.value("hyp") != Some("keel") {
        return skip("KVM sleeps through it");
    }
    prepare(machine)?;
    check_eq!(set(PENDING, 0), 0, "setting an SError");
    // It is pending, though masked: WFI is over (Arm ARM D1.7). If it is not, the test never ends.
    for _ in 0..100 {
        arch::wfi();
    }
    check_eq!(get()?, pending(IDS), "events");
    let_in();
    taken_once(IDS)
}

static CELLS: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];
static READY: AtomicUsize = AtomicUsize::new(0);

/// Has an SError pending for a while, takes it and says what came: how often it came wrongly in the high half.
fn own(cpu: usize) {
    let mut wrong = 0;
    READY.fetch_add(1, SeqCst);
    let all = CELLS[0].load(SeqCst) as usize;
    time::wait_until(|| READY.load(SeqCst) >= all);
    for round in 0..20 {
        let syndrome = (cpu as u64) << 8 | round;
        arch::serror_disable();
        let (before, _) = serrors();
        let word = if has_ras() { PENDING | HAS_ESR } else { PENDING };
        let refused = set(word, syndrome) != 0;
        // Longer than a time slice now and then.
        let until = time::now() + time::frequency() / if round % 8 == 0 { 100 } else { 2000 };
        while time::now() < until {
            arch::relax();
        }
        let early = serrors().0 != before;
        let_in();
        let (count, esr) = serrors();
        let other = has_ras() && esr & 0x1ff_ffff != syndrome;
        wrong += u64::from(refused || early || other || count != before + 1);
    }
    if let Some(cell) = CELLS.get(cpu) {
        cell.store(wrong, SeqCst);
    }
}

fn each_cpu_its_own(machine: &Machine) -> Check {
    prepare(machine)?;
    let cpus = machine.cpus().len().min(CELLS.len());
    READY.store(0, SeqCst);
    for (cpu, cell) in CELLS.iter().enumerate() {
        cell.store(if cpu == 0 { cpus as u64 } else { u64::MAX }, SeqCst);
    }
    for cpu in 1..cpus {
        start(machine, cpu, own, cpu)?;
    }
    own(0);
    for cpu in 1..cpus {
        join(machine, cpu)?;
    }
    for (cpu, wrong) in CELLS.iter().enumerate().take(cpus) {
        check_eq!(wrong.load(SeqCst), 0, "rounds that went wrong on CPU {cpu}");
    }
    Ok(())
}

fn bystander(_: usize) {
    arch::serror_enable();
    READY.store(1, SeqCst);
    time::wait_until(|| READY.load(SeqCst) == 2);
    CELLS[1].store(serrors().0, SeqCst);
}

fn not_the_other_cpus(machine: &Machine) -> Check {
    prepare(machine)?;
    READY.store(0, SeqCst);
    start(machine, 1, bystander, 0)?;
    eventually("CPU 1 lets SErrors in", || READY.load(SeqCst) == 1)?;
    check_eq!(set(PENDING, 0), 0, "setting an SError");
    let until = time::now() + time::frequency() / 20;
    while time::now() < until {
        arch::relax();
    }
    READY.store(2, SeqCst);
    join(machine, 1)?;
    check_eq!(CELLS[1].load(SeqCst), 0, "SErrors that CPU 1 took");
    check_eq!(get()?, pending(IDS), "events");
    let_in();
    taken_once(IDS)
}

fn leave_pending(_: usize) {
    arch::serror_disable();
    if has_ras() {
        set(PENDING, 0);
        arch::esb();
    }
    CELLS[1].store(set(PENDING, 0), SeqCst);
}

fn look(_: usize) {
    CELLS[2].store(if has_ras() { mrs!("S3_0_C12_C1_1") } else { 0 }, SeqCst);
    CELLS[3].store(power::hvc(GET, [0; 3])[1] & 0xff, SeqCst);
    let_in();
    CELLS[4].store(serrors().0, SeqCst);
}

fn gone_after_reset(machine: &Machine) -> Check {
    if machine.value("hyp") != Some("keel") {
        return skip("KVM keeps it pending, which no reset of a CPU does");
    }
    prepare(machine)?;
    start(machine, 1, leave_pending, 0)?;
    join(machine, 1)?;
    check_eq!(CELLS[1].load(SeqCst), 0, "setting an SError");
    start(machine, 1, look, 0)?;
    join(machine, 1)?;
    let found = [2, 3, 4].map(|cell: usize| CELLS[cell].load(SeqCst));
    check_eq!(found, [0; 3], "DISR_EL1, serror_pending and SErrors taken after CPU_OFF and CPU_ON");
    Ok(())
}

fn external_abort(machine: &Machine) -> Check {
    prepare(machine)?;
    let outcome = exec::run_with(exec::hvc(0), &[(0, SET.into()), (1, ABORT), (2, 0), (3, 0)]);
    let Some(trap) = outcome.trap else {
        check!(false, "no abort");
        return Ok(());
    };
    check_eq!((trap.class(), trap.esr & 0x1ff_ffff), (EC_DATA_ABORT, FSC_EXTERNAL), "ESR {:#x}", trap.esr);
    check_eq!(outcome.after.x[0], 0, "the answer");
    check!(outcome.changed(&[0, 1, 2, 3]).is_none(), "it changed {:x?}", outcome.changed(&[0, 1, 2, 3]));
    check_eq!(get()?, idle(), "events");
    check_eq!(serrors().0, 0, "SErrors taken");
    Ok(())
}

fn abort_and_serror(machine: &Machine) -> Check {
    prepare(machine)?;
    let outcome = exec::run_with(exec::hvc(0), &[(0, SET.into()), (1, PENDING | ABORT), (2, 0), (3, 0)]);
    check_eq!(outcome.trap.map(|trap| trap.class()), Some(EC_DATA_ABORT), "class of the abort");
    check_eq!(get()?, pending(IDS), "events");
    let_in();
    taken_once(IDS)
}
