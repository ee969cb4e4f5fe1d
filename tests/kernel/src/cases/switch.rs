//! Everything a CPU holds of a program: filled with a pattern, looked at again after others had the CPU.
//!
//! Each round gives the CPU away (KVM_HC_SCHED_YIELD, and now and then a sleep), so that under a hypervisor with another
//! guest on the same CPU every round is at least one change. The pattern depends on the boot argument `seed`, which tells
//! guests apart; `rounds` says how many there are.

use super::kvm_guests::{Guest, RUN, spoiler};
use crate::{
    check, check_eq,
    harness::{Case, Check, Under::*, case, skip},
};
use core::arch::asm;
use keel_kvm::{KVM_IOCTL, number, run::RunPage, uapi::feature};
use keel_test_kernel::{
    exec::{self, Registers},
    irq,
    machine::Machine,
    mrs, msr,
    time::{self, Timer},
};

/// The cases.
pub const CASES: &[Case] = &[case("switch/nothing_mixes", 1, Any, nothing_mixes)];

/// The case of a root VM.
pub const KVM_CASES: &[Case] = &[case("kvm/nothing_mixes", 1, Root, kvm_run)];

/// Rounds without the boot argument.
const ROUNDS: u64 = 200;
/// Rounds from one pattern to the next.
const ROUNDS_OF_A_PATTERN: u64 = 8;
/// KVM_HC_SCHED_YIELD, as keel numbers generic hypercalls; unknown elsewhere.
const SCHED_YIELD: u64 = 0xc600_010b;

/// A step of splitmix64: neighbouring numbers become unlike ones.
fn mixed(number: u64) -> u64 {
    let a = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let b = (a ^ a >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let c = (b ^ b >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    c ^ c >> 31
}

/// Registers of one kind: written with a pattern, and what they hold then.
macro_rules! set {
    ($set:ident, $count:literal: $($name:literal & $mask:expr;)*) => {
        struct $set;
        impl $set {
            const NAMES: [&str; $count] = [$($name),*];

            /// What each holds after the pattern was written to it: some have bits that cannot be written.
            fn fill(pattern: u64) -> [u64; $count] {
                let mut n = 0;
                $(
                    n += 1;
                    msr!($name, mixed(pattern + n) & $mask);
                )*
                Self::read()
            }

            fn read() -> [u64; $count] {
                [$(mrs!($name)),*]
            }

            /// The first that differs: name, found, expected.
            fn differs(expected: &[u64; $count]) -> Option<(&'static str, u64, u64)> {
                let found = Self::read();
                let pairs = found.iter().zip(expected).zip(Self::NAMES);
                let mut unlike = pairs.filter(|((found, expected), _)| found != expected);
                unlike.next().map(|((&found, &expected), name)| (name, found, expected))
            }
        }
    };
}

const ALL: u64 = u64::MAX;

set! { El1, 22:
    "tpidr_el0" & ALL;
    "tpidrro_el0" & ALL;
    "contextidr_el1" & 0xffff_ffff;
    "far_el1" & 0xffff_ffff_ffff;
    "esr_el1" & 0xffff_ffff;
    "elr_el1" & 0xffff_ffff_fffc;
    "spsr_el1" & 0xf000_03c5;
    "sp_el0" & !0xf;
    "par_el1" & 0x800;
    "afsr0_el1" & ALL;
    "afsr1_el1" & ALL;
    "amair_el1" & ALL;
    // Not walked: TCR_EL1.EPD1 is set.
    "ttbr1_el1" & 0xffff_ffff_f000;
    // One of two that exist everywhere.
    "csselr_el1" & 1;
    "cntkctl_el1" & 0x303;
    "cntv_cval_el0" & ALL;
    "cntp_cval_el0" & ALL;
    // FPSR, FPCR: exception flags; rounding, flush to zero, default NaN.
    "S3_3_C4_C4_1" & 0x0800_009f;
    "S3_3_C4_C4_0" & 0x07c0_0000;
    // ICC_PMR_EL1 and ICC_BPR1_EL1.
    "S3_0_C4_C6_0" & 0xf0;
    "S3_0_C12_C12_3" & 7;
    // TDCC, KDE.
    "mdscr_el1" & (1 << 12 | 1 << 13);
}

set! { Debug, 8:
    "dbgbvr0_el1" & 0xffff_ffff_fffc;
    "dbgbvr1_el1" & 0xffff_ffff_fffc;
    // Disabled, with byte select and mode.
    "dbgbcr0_el1" & (0xf << 5 | 3 << 1);
    "dbgbcr1_el1" & (0xf << 5 | 3 << 1);
    "dbgwvr0_el1" & 0xffff_ffff_fff8;
    "dbgwvr1_el1" & 0xffff_ffff_fff8;
    "dbgwcr0_el1" & (0xff << 5 | 3 << 3 | 3 << 1);
    "dbgwcr1_el1" & (0xff << 5 | 3 << 3 | 3 << 1);
}

set! { Keys, 10:
    "S3_0_C2_C1_0" & ALL;
    "S3_0_C2_C1_1" & ALL;
    "S3_0_C2_C1_2" & ALL;
    "S3_0_C2_C1_3" & ALL;
    "S3_0_C2_C2_0" & ALL;
    "S3_0_C2_C2_1" & ALL;
    "S3_0_C2_C2_2" & ALL;
    "S3_0_C2_C2_3" & ALL;
    "S3_0_C2_C3_0" & ALL;
    "S3_0_C2_C3_1" & ALL;
}

/// PMEVTYPERn_EL0 and PMCCFILTR_EL0: nothing is counted at EL1 and EL0, so that counters hold still.
const COUNT_NOWHERE: u64 = 3 << 30;

set! { Pmu, 6:
    "pmccntr_el0" & ALL;
    "pmselr_el0" & 0x1f;
    "pmuserenr_el0" & 0xf;
    "pmcntenset_el0" & 0xffff_ffff;
    // Interrupts are asked for by no counter that overflowed.
    "pmintenset_el1" & 0x5555_5555;
    "pmovsset_el0" & 0x2aaa_aaaa;
}

/// Event counters: value and type of each.
fn event_counters() -> [[u64; 2]; 31] {
    let selected = mrs!("pmselr_el0");
    let counters = mrs!("pmcr_el0") >> 11 & 0x1f;
    let mut found = [[0; 2]; 31];
    for (n, slot) in (0..counters).zip(&mut found) {
        msr!("pmselr_el0", n);
        *slot = [mrs!("pmxevcntr_el0"), mrs!("pmxevtyper_el0")];
    }
    msr!("pmselr_el0", selected);
    found
}

fn fill_event_counters(pattern: u64) {
    for n in 0..mrs!("pmcr_el0") >> 11 & 0x1f {
        msr!("pmselr_el0", n);
        msr!("pmxevtyper_el0", COUNT_NOWHERE | mixed(pattern + 100 + n) & 0x3ff);
        msr!("pmxevcntr_el0", mixed(pattern + 200 + n) & 0xffff_ffff);
    }
}

fn stop_pmu() {
    msr!("pmcr_el0", 1 << 6);
    msr!("pmcntenclr_el0", 0xffff_ffff);
    msr!("pmintenclr_el1", 0xffff_ffff);
    msr!("pmovsclr_el0", 0xffff_ffff);
    msr!("pmuserenr_el0", 0);
}

/// What is expected in one pattern's rounds.
struct Expected {
    el1: [u64; 22],
    debug: [u64; 8],
    keys: Option<[u64; 10]>,
    pmu: Option<([u64; 6], [[u64; 2]; 31], u64)>,
    locked: u64,
    general: Registers,
}

fn fill(pattern: u64, has_keys: bool, has_pmu: bool) -> Expected {
    let pmu = has_pmu.then(|| {
        stop_pmu();
        msr!("pmccfiltr_el0", COUNT_NOWHERE);
        fill_event_counters(pattern);
        let registers = Pmu::fill(pattern + 300);
        msr!("pmcr_el0", 1 << 6 | mixed(pattern + 400) & 1 << 5 | 1);
        (registers, event_counters(), mrs!("pmcr_el0"))
    });
    let debug = Debug::fill(pattern + 500);
    let keys = has_keys.then(|| Keys::fill(pattern + 600));
    let mut general = Registers::pattern();
    for (n, value) in (0..).zip(&mut general.x) {
        *value = mixed(pattern + 700 + n);
    }
    for (n, value) in (0..).zip(&mut general.v) {
        *value = u128::from(mixed(pattern + 800 + n)) << 64 | u128::from(mixed(pattern + 900 + n));
    }
    general.nzcv = mixed(pattern + 1000) & 0xf << 28;
    msr!("oslar_el1", mixed(pattern + 1001) & 1);
    Expected { el1: El1::fill(pattern), debug, keys, pmu, locked: mrs!("oslsr_el1"), general }
}

/// Puts back what the kernel itself needs, or what could disturb it.
fn clear(has_pmu: bool) {
    msr!("oslar_el1", 0);
    msr!("mdscr_el1", 0);
    msr!("S3_3_C4_C4_0", 0);
    msr!("S3_0_C4_C6_0", 0xff);
    msr!("S3_0_C12_C12_3", 0);
    msr!("cntkctl_el1", 0);
    msr!("dbgbcr0_el1", 0);
    msr!("dbgbcr1_el1", 0);
    msr!("dbgwcr0_el1", 0);
    msr!("dbgwcr1_el1", 0);
    if has_pmu {
        stop_pmu();
    }
}

fn nothing_mixes(machine: &Machine) -> Check {
    if !machine.has_gicv3 {
        return skip("fills a GICv3's system registers, too");
    }
    let number = |name| machine.value(name).and_then(|text| text.parse::<u64>().ok());
    let seed = number("seed").unwrap_or(1) << 32;
    let rounds = number("rounds").unwrap_or(ROUNDS);
    let isar1 = mrs!("id_aa64isar1_el1");
    let has_keys = isar1 >> 4 & 0xff != 0 || mrs!("S3_0_C0_C6_2") >> 12 & 0xf != 0;
    let has_pmu = !matches!(mrs!("id_aa64dfr0_el1") >> 8 & 0xf, 0 | 0xf);
    // It ends sleep, and is never taken.
    irq::enable(Timer::Virtual.intid(), 0);
    irq::set_priority(Timer::Virtual.intid(), 0, 0);
    (0..rounds.div_ceil(ROUNDS_OF_A_PATTERN)).try_for_each(|pattern| {
        let expected = fill(seed + (pattern << 12), has_keys, has_pmu);
        let result = (0..ROUNDS_OF_A_PATTERN).try_for_each(|round| give_way(&expected, pattern, round));
        clear(has_pmu);
        result
    })
}

/// Gives the CPU away and looks.
fn give_way(expected: &Expected, pattern: u64, round: u64) -> Check {
    let mut before = expected.general.clone();
    before.x[..2].copy_from_slice(&[SCHED_YIELD, 0]);
    let outcome = exec::run(exec::hvc(0), &before);
    check!(outcome.trap.is_none(), "HVC took {:x?}", outcome.trap);
    check_eq!(outcome.changed(&[0, 1, 2, 3]), None, "general registers, pattern {pattern}, round {round}");
    let mut wrong = El1::differs(&expected.el1).or_else(|| Debug::differs(&expected.debug));
    if let Some(keys) = &expected.keys {
        wrong = wrong.or_else(|| Keys::differs(keys));
    }
    if let Some((registers, counters, control)) = &expected.pmu {
        wrong = wrong.or_else(|| Pmu::differs(registers));
        check_eq!(mrs!("pmcr_el0"), *control, "PMCR_EL0, pattern {pattern}, round {round}");
        check!(event_counters() == *counters, "an event counter, pattern {pattern}, round {round}");
    }
    check_eq!(mrs!("oslsr_el1"), expected.locked, "OSLSR_EL1, pattern {pattern}, round {round}");
    if let Some((name, found, wanted)) = wrong {
        check!(false, "{name}: {found:#x}, expected {wanted:#x}, pattern {pattern}, round {round}");
    }
    if round == 0 {
        sleep();
    }
    Ok(())
}

/// A short sleep, that the virtual timer ends; its comparator is as before then.
fn sleep() {
    let compare = Timer::Virtual.compare();
    Timer::Virtual.set_compare(Timer::Virtual.counter() + time::micros(20));
    Timer::Virtual.set_control(time::ENABLE);
    // Nothing is let through, perhaps, by the pattern.
    let mask = mrs!("S3_0_C4_C6_0");
    msr!("S3_0_C4_C6_0", 0xff);
    while Timer::Virtual.control() & time::ISTATUS == 0 {
        // SAFETY: waits; whatever ends it is masked.
        unsafe { asm!("wfi", options(nomem, nostack)) };
        if Timer::Virtual.control() & time::ISTATUS == 0 {
            keel_test_kernel::arch::relax();
        }
    }
    msr!("S3_0_C4_C6_0", mask);
    Timer::Virtual.stop();
    Timer::Virtual.set_compare(compare);
}

/// A guest of the root's changes what it can while the root's registers are full, with FP and SIMD in every other round; it
/// looks at its own, too, after each exit.
fn kvm_run(machine: &Machine) -> Check {
    let isar1 = mrs!("id_aa64isar1_el1");
    let has_keys = isar1 >> 4 & 0xff != 0 || mrs!("S3_0_C0_C6_2") >> 12 & 0xf != 0;
    let both = 1 << feature::PTRAUTH_ADDRESS.trailing_zeros() | 1 << feature::PTRAUTH_GENERIC.trailing_zeros();
    for features in [0, both] {
        if features != 0 && !has_keys {
            continue;
        }
        let guest = Guest::new(spoiler(), true, features)?;
        guest.set(3, u64::from(features != 0))?;
        for pattern in 0..8 {
            let expected = fill(0x7000_0000 + (pattern << 12), has_keys, false);
            let result = (0..8).try_for_each(|round| run_guest(&guest, &expected, pattern << 4 | round));
            clear(false);
            result?;
        }
    }
    check!(machine.has_gicv3, "a root has a GICv3");
    Ok(())
}

fn run_guest(guest: &Guest, expected: &Expected, round: u64) -> Check {
    loop {
        let mut before = expected.general.clone();
        before.x[..4].copy_from_slice(&[KVM_IOCTL.into(), guest.handle(), number::RUN.into(), 0]);
        let outcome = exec::run(exec::hvc(0), &before);
        check!(outcome.trap.is_none(), "HVC took {:x?}", outcome.trap);
        check_eq!(outcome.changed(&[0, 1, 2, 3]), None, "general registers, round {round:#x}");
        let mut wrong = El1::differs(&expected.el1).or_else(|| Debug::differs(&expected.debug));
        if let Some(keys) = &expected.keys {
            wrong = wrong.or_else(|| Keys::differs(keys));
        }
        check_eq!(mrs!("oslsr_el1"), expected.locked, "OSLSR_EL1, round {round:#x}");
        if let Some((name, found, wanted)) = wrong {
            check!(false, "{name}: {found:#x}, expected {wanted:#x}, round {round:#x}");
        }
        if outcome.after.x[0] == 0 {
            break;
        }
        check_eq!(outcome.after.x[0] as i64, -4, "KVM_RUN");
    }
    match RunPage(&RUN).exit() {
        keel_kvm::Exit::MmioWrite { address, value, .. } => {
            check_eq!(value, 0, "registers of the guest's that changed, store to {address:#x}, round {round:#x}");
        }
        other => check!(false, "the guest's exit: {other:?}"),
    }
    Ok(())
}
