//! TRNG, PV time, KVM's vendor services and KVM's generic hypercalls: every function, good input and bad.

use crate::{
    check, check_eq,
    harness::{Case, Check, Under::*, case, eventually, eventually_with_irqs, join, skip, start},
};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use keel_test_kernel::{
    arch,
    exec::{self, Outcome},
    irq,
    machine::Machine,
    mmio, mrs, platform, power, time,
};

/// The cases.
pub const CASES: &[Case] = &[
    case("trng/identity", 1, Keel, trng_identity),
    case("trng/features", 1, Keel, trng_features),
    case("trng/random", 1, Keel, trng_random),
    case("trng/bad_lengths", 1, Keel, trng_bad_lengths),
    case("trng/on_every_cpu", 2, Keel, trng_on_every_cpu),
    case("trng/no_entropy", 1, Keel, trng_no_entropy),
    case("pvtime/discovery", 1, Keel, pv_time_discovery),
    case("pvtime/structure", 1, Keel, pv_time_structure),
    case("pvtime/each_cpu_its_own", 2, Keel, pv_time_each_cpu),
    case("vendor/identity", 1, Keel, vendor_identity),
    case("vendor/ptp", 1, Keel, ptp),
    case("vendor/ptp_on_every_cpu", 2, Keel, ptp_on_every_cpu),
    case("vendor/not_given", 1, Keel, vendor_not_given),
    case("vendor/page_states", 1, Keel, page_states),
    case("vendor/page_states_race", 2, Keel, page_states_race),
    case("hc/unknown", 1, Keel, generic_unknown),
    case("hc/features", 1, Keel, generic_features),
    case("hc/vapic_poll_irq", 1, Keel, poll_irq),
    case("hc/kick_cpu", 2, Keel, kick_cpu),
    case("hc/kick_nobody", 1, Keel, kick_nobody),
    case("hc/kick_oneself", 1, Keel, kick_oneself),
    case("hc/clock_pairing", 1, Keel, clock_pairing),
    case("hc/clock_pairing_bad", 1, Keel, clock_pairing_bad),
    case("hc/send_ipi", 1, Keel, send_ipi),
    case("hc/send_ipi_to_all", 2, Keel, send_ipi_to_all),
    case("hc/sched_yield", 1, Keel, sched_yield),
    case("hc/map_gpa_range", 1, Keel, map_gpa_range),
];

const NOT_SUPPORTED: u64 = -1_i64 as u64;
const INVALID_PARAMETER: u64 = -3_i64 as u64;
const NOTHING: [u64; 4] = [NOT_SUPPORTED, 0, 0, 0];

const TRNG_VERSION: u32 = 0x8400_0050;
const TRNG_FEATURES: u32 = 0x8400_0051;
const TRNG_GET_UUID: u32 = 0x8400_0052;
const TRNG_RND32: u32 = 0x8400_0053;
const TRNG_RND64: u32 = 0xc400_0053;
const PV_TIME_FEATURES: u32 = 0xc500_0020;
const PV_TIME_ST: u32 = 0xc500_0021;
const PTP: u32 = 0x8600_0001;
const MEM_SHARE: u32 = 0xc600_0003;
const MEM_UNSHARE: u32 = 0xc600_0004;

fn call(id: u32, first: u64) -> [u64; 4] {
    power::hvc(id, [first, 0, 0])
}

/// Makes generic hypercall `number`: x0, after checking that nothing else has changed.
fn generic(number: u32, arguments: [u64; 4]) -> Check<i64> {
    let [a0, a1, a2, a3] = arguments;
    let values = [(0, u64::from(0xc600_0100 + number)), (1, a0), (2, a1), (3, a2), (4, a3)];
    let outcome = exec::run_with(exec::hvc(0), &values);
    kept(&outcome, number)?;
    Ok(outcome.after.x[0] as i64)
}

fn kept(outcome: &Outcome, number: u32) -> Check {
    check!(outcome.trap.is_none(), "KVM_HC {number} trapped: {:x?}", outcome.trap);
    check!(outcome.changed(&[0]).is_none(), "KVM_HC {number} changed {:x?}", outcome.changed(&[0]));
    Ok(())
}

fn trng_identity(_: &Machine) -> Check {
    check_eq!(call(TRNG_VERSION, 0), [0x1_0000, 0, 0, 0], "TRNG_VERSION");
    let uuid = call(TRNG_GET_UUID, 0);
    check_eq!(uuid, [0x5f7d_b041, 0x934a_ef33, 0x0b39_62bc, 0x8b23_428c], "TRNG_GET_UUID");
    Ok(())
}

fn trng_features(_: &Machine) -> Check {
    for id in [TRNG_VERSION, TRNG_FEATURES, TRNG_GET_UUID, TRNG_RND32, TRNG_RND64] {
        check_eq!(call(TRNG_FEATURES, id.into()), [0; 4], "TRNG_FEATURES({id:#x})");
    }
    for id in [0x8400_0054, 0xc400_0050, 0x8600_0001, power::PSCI_VERSION, 0, 0xffff_ffff] {
        check_eq!(call(TRNG_FEATURES, id.into()), NOTHING, "TRNG_FEATURES({id:#x})");
    }
    check_eq!(call(TRNG_FEATURES, 0xffff_ffff_8400_0053)[0], 0, "TRNG_FEATURES with an upper half");
    Ok(())
}

fn trng_random(_: &Machine) -> Check {
    for (id, width) in [(TRNG_RND32, 32), (TRNG_RND64, 64)] {
        let mut seen = [0; 3];
        for bits in 1..=3 * width {
            let [x0, x1, x2, x3] = call(id, bits.into());
            check_eq!(x0, 0, "{id:#x} of {bits} bits");
            let mut left = bits;
            for (word, seen) in [x3, x2, x1].into_iter().zip(&mut seen) {
                let here = left.min(width);
                left -= here;
                check_eq!(
                    word & !u64::MAX.unbounded_shr(64 - here),
                    0,
                    "{id:#x} of {bits} bits: {x1:#x} {x2:#x} {x3:#x}"
                );
                *seen |= word;
            }
        }
        // Of hundreds of random words each bit was one at least once.
        let all = u64::MAX >> (64 - width);
        check_eq!(seen[0], all, "{id:#x}: bits of x3 that were one");
    }
    let words = [0; 64].map(|_| call(TRNG_RND64, 64)[3]);
    for (n, word) in words.iter().enumerate() {
        check!(!words[..n].contains(word), "TRNG_RND64 gave {word:#x} twice in {n} calls");
    }
    Ok(())
}

fn trng_bad_lengths(_: &Machine) -> Check {
    let refused = [-2_i64 as u64, 0, 0, 0];
    for (id, bits) in [(TRNG_RND32, 0), (TRNG_RND32, 97), (TRNG_RND32, 192), (TRNG_RND64, 0), (TRNG_RND64, 193)] {
        check_eq!(call(id, bits), refused, "{id:#x} of {bits} bits");
    }
    // x1's upper half does not count, in the 64-bit form neither (KVM).
    check_eq!(call(TRNG_RND64, 1 << 32 | 64)[0], 0, "TRNG_RND64 of 2^32 + 64 bits");
    check_eq!(call(TRNG_RND64, 1 << 32), refused, "TRNG_RND64 of 2^32 bits");
    check_eq!(call(TRNG_RND32, 1 << 32 | 32)[0], 0, "TRNG_RND32 of 2^32 + 32 bits");
    Ok(())
}

fn trng_no_entropy(machine: &Machine) -> Check {
    if !machine.has("no-entropy") {
        return skip("needs a board without any source of random bits");
    }
    for id in [TRNG_RND32, TRNG_RND64] {
        check_eq!(call(id, 32), [-3_i64 as u64, 0, 0, 0], "{id:#x} with nothing to give");
        check_eq!(call(id, 193), [-2_i64 as u64, 0, 0, 0], "{id:#x} of 193 bits");
    }
    check_eq!(call(TRNG_VERSION, 0)[0], 0x1_0000, "TRNG_VERSION");
    Ok(())
}

/// What each CPU found.
static WORDS: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];

fn found(cpu: usize) -> u64 {
    WORDS[cpu].load(SeqCst)
}

fn trng_on_every_cpu(machine: &Machine) -> Check {
    let last = machine.cpus().len() - 1;
    for cpu in 1..=last {
        start(machine, cpu, |cpu| WORDS[cpu].store(call(TRNG_RND64, 64)[3], SeqCst), cpu)?;
    }
    WORDS[0].store(call(TRNG_RND64, 64)[3], SeqCst);
    for cpu in 1..=last {
        join(machine, cpu)?;
    }
    for n in 0..=last {
        let word = found(n);
        check!(word != 0, "CPU {n} got no random word");
        check!((0..n).all(|other| found(other) != word), "two CPUs got {word:#x}");
    }
    Ok(())
}

fn pv_time_discovery(_: &Machine) -> Check {
    check_eq!(call(power::SMCCC_ARCH_FEATURES, PV_TIME_FEATURES.into()), [0; 4], "ARCH_FEATURES(PV_TIME_FEATURES)");
    for id in [PV_TIME_FEATURES, PV_TIME_ST] {
        check_eq!(call(PV_TIME_FEATURES, id.into()), [0; 4], "PV_TIME_FEATURES({id:#x})");
    }
    for id in [0xc500_0022, 0x8500_0020, 0x8500_0021, 0] {
        check_eq!(call(PV_TIME_FEATURES, id), NOTHING, "PV_TIME_FEATURES({id:#x})");
    }
    for id in [0x8500_0020, 0x8500_0021, 0xc500_0022] {
        check_eq!(call(id, PV_TIME_ST.into()), NOTHING, "{id:#x}");
    }
    Ok(())
}

fn pv_time_structure(_: &Machine) -> Check {
    let [address, rest @ ..] = call(PV_TIME_ST, 0);
    check_eq!(rest, [0; 3], "PV_TIME_ST: x1 to x3");
    check!(address.is_multiple_of(64) && address < platform::RAM as u64, "PV_TIME_ST: {address:#x}");
    let word = |n: usize| mmio::read64(address as usize + 8 * n);
    check_eq!(word(0), 0, "revision and attributes");
    let mut stolen = word(1);
    for _ in 0..20 {
        time::delay(1000);
        check!(word(1) >= stolen, "stolen time went back from {stolen} to {}", word(1));
        stolen = word(1);
    }
    check!(stolen < 60_000_000_000, "stolen time: {stolen} ns");
    for n in 2..8 {
        check_eq!(word(n), 0, "word {n} of the structure");
    }
    check_eq!(call(PV_TIME_ST, 0)[0], address, "PV_TIME_ST again");
    Ok(())
}

fn pv_time_each_cpu(machine: &Machine) -> Check {
    let last = machine.cpus().len() - 1;
    for cpu in 1..=last {
        start(machine, cpu, |cpu| WORDS[cpu].store(call(PV_TIME_ST, 0)[0], SeqCst), cpu)?;
        join(machine, cpu)?;
    }
    WORDS[0].store(call(PV_TIME_ST, 0)[0], SeqCst);
    for n in 0..=last {
        let address = found(n);
        check!(address != NOT_SUPPORTED && address.is_multiple_of(64), "CPU {n}: {address:#x}");
        check!((0..n).all(|other| found(other) != address), "two CPUs have {address:#x}");
    }
    Ok(())
}

fn vendor_identity(machine: &Machine) -> Check {
    check_eq!(call(0x8600_ff01, 0), [0xb66f_b428, 0xe911_c52e, 0x564b_caa9, 0x743a_004d], "CALL_UID");
    let bits = if machine.has("protected") { 0x9f } else { 3 };
    check_eq!(call(0x8600_0000, 0), [bits, 0, 0, 0], "FEATURES");
    for id in [0x8600_ff00, 0x8600_ff03, 0xc600_ff01, 0xc600_0000] {
        check_eq!(call(id, 0), NOTHING, "{id:#x}");
    }
    Ok(())
}

fn wide(high: u64, low: u64) -> u64 {
    high << 32 | low
}

/// Nanoseconds and counter by PTP.
fn ptp_now(counter: u64) -> Check<(u64, u64)> {
    let [x0, x1, x2, x3] = call(PTP, counter);
    check!((x0 as i64) >= 0, "PTP({counter}): {x0:#x}");
    check!(x1 | x2 | x3 < 1 << 32, "PTP({counter}): {x1:#x} {x2:#x} {x3:#x}");
    Ok((wide(x0, x1), wide(x2, x3)))
}

fn ptp(_: &Machine) -> Check {
    for counter in [0, 1] {
        let read = || if counter == 0 { mrs!("cntvct_el0") } else { mrs!("cntpct_el0") };
        let mut last = (0, 0);
        for _ in 0..20 {
            let before = read();
            let now = ptp_now(counter)?;
            let after = read();
            check!(before <= now.1 && now.1 <= after, "PTP({counter}): {:#x} not in {before:#x}..{after:#x}", now.1);
            check!(now.0 >= last.0 && now.1 >= last.1, "PTP({counter}) went back");
            if last.0 != 0 {
                // Time and counter have gone on by the same.
                let ticks = u128::from(now.1 - last.1) * 1_000_000_000 / u128::from(time::frequency());
                check!(
                    (now.0 - last.0).abs_diff(ticks as u64) <= 1,
                    "{} ns, but {ticks} by the counter",
                    now.0 - last.0
                );
            }
            last = now;
            time::delay(500);
        }
        let rtc = u64::from(mmio::read32(platform::PL031));
        let seconds = ptp_now(counter)?.0 / 1_000_000_000;
        check!(seconds.abs_diff(rtc) <= 1, "PTP({counter}) says {seconds} s, the clock {rtc}");
    }
    for bad in [2, 0xffff_ffff] {
        check_eq!(call(PTP, bad), NOTHING, "PTP({bad})");
    }
    check_eq!(call(0xc600_0001, 0), NOTHING, "PTP by its 64-bit id");
    Ok(())
}

fn ptp_on_every_cpu(machine: &Machine) -> Check {
    let before = ptp_now(0)?.0;
    for cpu in 1..machine.cpus().len() {
        start(machine, cpu, |cpu| WORDS[cpu].store(ptp_now(0).map_or(0, |(now, _)| now), SeqCst), cpu)?;
        join(machine, cpu)?;
        let there = found(cpu);
        let after = ptp_now(0)?.0;
        check!(before <= there && there <= after, "CPU {cpu}: {there}, not in {before}..{after}");
    }
    Ok(())
}

fn vendor_not_given(machine: &Machine) -> Check {
    for id in [0x8600_0002, 0xc600_0005, 0xc600_0006, 0xc600_0008, 0xc600_003f, 0xc600_0040, 0xc600_0041, 0xc600_007f] {
        check_eq!(call(id, 0), NOTHING, "{id:#x}");
    }
    if !machine.has("protected") {
        for id in [0xc600_0002, MEM_SHARE, MEM_UNSHARE, 0xc600_0007] {
            check_eq!(call(id, 0), NOTHING, "{id:#x}");
        }
    }
    Ok(())
}

/// A page of this kernel, to share.
#[repr(align(4096))]
struct Page([AtomicU64; 512]);
static PAGE: Page = Page([const { AtomicU64::new(0) }; 512]);

fn page() -> u64 {
    &raw const PAGE as u64
}

fn page_states(machine: &Machine) -> Check {
    if !machine.has("protected") {
        return skip("needs a protected guest");
    }
    let refused = [INVALID_PARAMETER, 0, 0, 0];
    check_eq!(call(0xc600_0002, 0), [4096, 0, 0, 0], "HYP_MEMINFO");
    check_eq!(call(0xc600_0002, 1), refused, "HYP_MEMINFO(1)");
    check_eq!(call(MEM_UNSHARE, page()), refused, "MEM_UNSHARE of a private page");
    check_eq!(call(MEM_SHARE, page()), [0; 4], "MEM_SHARE");
    check_eq!(call(MEM_SHARE, page()), refused, "MEM_SHARE of a shared page");
    check_eq!(call(MEM_UNSHARE, page()), [0; 4], "MEM_UNSHARE");
    check_eq!(call(MEM_UNSHARE, page()), refused, "MEM_UNSHARE again");
    let beyond = machine.memory_base as u64 + machine.memory_size as u64;
    for bad in [page() + 8, platform::PL011 as u64, 0x090a_0000, beyond, !0xfff] {
        check_eq!(call(MEM_SHARE, bad), refused, "MEM_SHARE({bad:#x})");
    }
    check_eq!(power::hvc(MEM_SHARE, [page(), 1, 0]), refused, "MEM_SHARE with x2");
    check_eq!(power::hvc(MEM_SHARE, [page(), 0, 1]), refused, "MEM_SHARE with x3");
    check_eq!(call(0xc600_0007, platform::PL011 as u64), [0; 4], "MMIO_GUARD of the UART");
    for bad in [page(), platform::PL011 as u64 + 4, !0xfff] {
        check_eq!(call(0xc600_0007, bad), refused, "MMIO_GUARD({bad:#x})");
    }
    check_eq!(generic(12, [page(), 1, 0, 0])?, 0, "KVM_HC_MAP_GPA_RANGE, shared");
    check_eq!(call(MEM_SHARE, page()), refused, "MEM_SHARE after KVM_HC_MAP_GPA_RANGE");
    check_eq!(generic(12, [page(), 1, 1 << 4, 0])?, 0, "KVM_HC_MAP_GPA_RANGE, private");
    for (bad, code) in [([page() + 8, 1], -22), ([page(), 0], -22), ([page(), 1 << 52], -22), ([0, 1], -14)] {
        check_eq!(generic(12, [bad[0], bad[1], 0, 0])?, code, "KVM_HC_MAP_GPA_RANGE{bad:x?}");
    }
    let all = (machine.memory_size / 4096) as u64;
    for attributes in [0, 1 << 4] {
        check_eq!(generic(12, [machine.memory_base as u64, all, attributes, 0])?, 0, "all memory");
    }
    check_eq!(generic(12, [machine.memory_base as u64, all + 1, 0, 0])?, -14, "a page more");
    check_eq!(call(MEM_UNSHARE, page()), refused, "MEM_UNSHARE after a refused range");
    Ok(())
}

static WON: AtomicU32 = AtomicU32::new(0);

/// Shares and takes back the page again and again; counts what succeeded.
fn race(_: usize) {
    for _ in 0..500 {
        if call(MEM_SHARE, page())[0] == 0 {
            WON.fetch_add(1, SeqCst);
        }
        if call(MEM_UNSHARE, page())[0] == 0 {
            WON.fetch_sub(1, SeqCst);
        }
    }
}

fn page_states_race(machine: &Machine) -> Check {
    if !machine.has("protected") {
        return skip("needs a protected guest");
    }
    WON.store(0, SeqCst);
    for cpu in 1..machine.cpus().len() {
        start(machine, cpu, race, cpu)?;
    }
    race(0);
    for cpu in 1..machine.cpus().len() {
        join(machine, cpu)?;
    }
    // Each share that succeeded had an unshare; what is left over is the page's state.
    let shared = u32::from(call(MEM_UNSHARE, page())[0] == 0);
    check_eq!(WON.load(SeqCst), shared, "shares without an unshare");
    Ok(())
}

fn generic_unknown(_: &Machine) -> Check {
    for number in [2, 4, 6, 7, 8, 13, 99, 0xff] {
        check_eq!(generic(number, [1, 2, 3, 4])?, -1000, "KVM_HC {number}");
    }
    for id in [0x8600_0101, 0xc600_0200, 0xc600_00ff] {
        check_eq!(call(id, 0), NOTHING, "{id:#x}");
    }
    let outcome = exec::run_with(exec::smc(0), &[(0, 0xc600_0102)]);
    kept(&outcome, 2)?;
    check_eq!(outcome.after.x[0] as i64, -1000, "KVM_HC 2 by SMC");
    Ok(())
}

fn generic_features(machine: &Machine) -> Check {
    let bits = [1, 3, 5, 9, 10, 11].iter().fold(0, |bits, number| bits | 1 << number);
    let bits = if machine.has("protected") { bits | 1 << 12 } else { bits };
    for number in [0, 3] {
        check_eq!(generic(number, [0; 4])?, bits, "KVM_HC {number}");
    }
    Ok(())
}

fn poll_irq(machine: &Machine) -> Check {
    check_eq!(generic(1, [0; 4])?, 0, "KVM_HC_VAPIC_POLL_IRQ");
    // A pending interrupt is taken before the instruction after the call.
    irq::enable(3, 0);
    irq::send(3, machine.cpus()[0]);
    arch::irq_enable();
    power::hvc(0xc600_0101, [0; 3]);
    let taken = irq::count(0, 3);
    arch::irq_disable();
    check_eq!(taken, 1, "SGIs taken right after KVM_HC_VAPIC_POLL_IRQ");
    Ok(())
}

static GO: AtomicU32 = AtomicU32::new(0);
static STEPS: AtomicU32 = AtomicU32::new(0);

/// Waits in WFI, with nothing but a kick to end it, until GO says that the next step has come.
fn sleeper(rounds: usize) {
    for round in 1..=rounds as u32 {
        while GO.load(SeqCst) < round {
            arch::wfi();
        }
        STEPS.store(round, SeqCst);
    }
}

fn kick_cpu(machine: &Machine) -> Check {
    const ROUNDS: u32 = 200;
    GO.store(0, SeqCst);
    STEPS.store(0, SeqCst);
    start(machine, 1, sleeper, ROUNDS as usize)?;
    for round in 1..=ROUNDS {
        // Sometimes it is asleep by then, sometimes just before that.
        time::delay(u64::from(round % 8) * 20);
        GO.store(round, SeqCst);
        check_eq!(generic(5, [0, machine.cpus()[1], 0, 0])?, 0, "KVM_HC_KICK_CPU");
        eventually("the kicked CPU goes on", || STEPS.load(SeqCst) == round)?;
    }
    join(machine, 1)
}

fn kick_nobody(_: &Machine) -> Check {
    for target in [0x77, 0xff_00ff_ffff, u64::MAX, 1 << 31] {
        check_eq!(generic(5, [0, target, 0, 0])?, 0, "KVM_HC_KICK_CPU({target:#x})");
    }
    Ok(())
}

fn kick_oneself(machine: &Machine) -> Check {
    // The next WFI does not wait: nothing else would end it.
    check_eq!(generic(5, [0, machine.cpus()[0], 0, 0])?, 0, "KVM_HC_KICK_CPU of the caller");
    arch::wfi();
    Ok(())
}

fn clock_pairing(machine: &Machine) -> Check {
    let address = page() + 256;
    let words = &PAGE.0;
    for word in words {
        word.store(u64::MAX, SeqCst);
    }
    let before = mrs!("cntvct_el0");
    check_eq!(generic(9, [address, 0, 0, 0])?, 0, "KVM_HC_CLOCK_PAIRING");
    let after = mrs!("cntvct_el0");
    let word = |n: usize| words[32 + n].load(SeqCst);
    let [seconds, nanoseconds, counter] = [word(0), word(1), word(2)];
    check!(nanoseconds < 1_000_000_000, "nsec: {nanoseconds}");
    check!(before <= counter && counter <= after, "tsc: {counter:#x}, not in {before:#x}..{after:#x}");
    let rtc = u64::from(mmio::read32(platform::PL031));
    check!(seconds.abs_diff(rtc) <= 1, "sec: {seconds}, the clock says {rtc}");
    for n in 3..8 {
        check_eq!(word(n), 0, "word {n} of the structure");
    }
    check_eq!(words[31].load(SeqCst), u64::MAX, "the word before the structure");
    check_eq!(words[40].load(SeqCst), u64::MAX, "the word after the structure");
    // The last 64 bytes of memory are good, too.
    let end = machine.memory_base as u64 + machine.memory_size as u64;
    check_eq!(generic(9, [end - 64, 0, 0, 0])?, 0, "at the end of memory");
    Ok(())
}

fn clock_pairing_bad(machine: &Machine) -> Check {
    for kind in [1, 2, u64::MAX] {
        check_eq!(generic(9, [0, kind, 0, 0])?, -95, "clock type {kind}");
    }
    let end = machine.memory_base as u64 + machine.memory_size as u64;
    let last = (end - 8) as *mut u64;
    // SAFETY: the last word of RAM, in which nothing of the program is.
    unsafe { last.write_volatile(0x5a5a) };
    for bad in [0, platform::PL011 as u64, machine.memory_base as u64 - 1, end - 63, end, u64::MAX, u64::MAX - 63] {
        check_eq!(generic(9, [bad, 0, 0, 0])?, -14, "address {bad:#x}");
    }
    // SAFETY: as above.
    check_eq!(unsafe { last.read_volatile() }, 0x5a5a, "memory before its end");
    Ok(())
}

fn send_ipi(_: &Machine) -> Check {
    for sgi in [0, 5, 15] {
        irq::forget();
        irq::enable(sgi, 0);
        check_eq!(generic(10, [1, 0, 0, sgi.into()])?, 1, "KVM_HC_SEND_IPI");
        eventually_with_irqs("the SGI", || irq::count(0, sgi) == 1)?;
    }
    for nobody in [[0, 0, 0], [0, 1, 0], [1, 0, 64], [u64::MAX, u64::MAX, u64::MAX], [u64::MAX, 0, 1 << 32]] {
        check_eq!(generic(10, [nobody[0], nobody[1], nobody[2], 5])?, 0, "KVM_HC_SEND_IPI{nobody:x?}");
    }
    check_eq!(generic(10, [1 << 63, u64::MAX, 64, 5])?, 0, "KVM_HC_SEND_IPI beyond the last");
    Ok(())
}

/// Takes SGI 4 until GO.
fn listen(cpu: usize) {
    irq::enable(4, cpu);
    STEPS.fetch_add(1, SeqCst);
    arch::with_irqs(|| {
        while GO.load(SeqCst) == 0 {
            arch::relax();
        }
    });
}

fn send_ipi_to_all(machine: &Machine) -> Check {
    let count = machine.cpus().len();
    GO.store(0, SeqCst);
    STEPS.store(0, SeqCst);
    irq::forget();
    irq::enable(4, 0);
    for cpu in 1..count {
        start(machine, cpu, listen, cpu)?;
    }
    eventually("the others listen", || STEPS.load(SeqCst) as usize == count - 1)?;
    // Bit 1 counted from index 0, then all from there on.
    check_eq!(generic(10, [0b10, 0, 0, 4])?, 1, "KVM_HC_SEND_IPI to one");
    eventually("CPU 1 gets it", || irq::count(1, 4) == 1)?;
    check_eq!(generic(10, [u64::MAX, u64::MAX, 1, 4])?, count as i64 - 1, "KVM_HC_SEND_IPI from 1 on");
    for cpu in 1..count {
        eventually("each gets it", || irq::count(cpu, 4) == if cpu == 1 { 2 } else { 1 })?;
    }
    check_eq!(irq::count(0, 4), 0, "SGIs to the caller");
    GO.store(1, SeqCst);
    (1..count).try_for_each(|cpu| join(machine, cpu))
}

fn sched_yield(machine: &Machine) -> Check {
    for target in [0, 1, machine.cpus().len() as u64, 64, u64::MAX] {
        check_eq!(generic(11, [target, 0, 0, 0])?, 0, "KVM_HC_SCHED_YIELD({target})");
    }
    Ok(())
}

fn map_gpa_range(machine: &Machine) -> Check {
    if machine.has("protected") {
        return skip("needs a guest that is not protected");
    }
    check_eq!(generic(12, [page(), 1, 0, 0])?, -1000, "KVM_HC_MAP_GPA_RANGE");
    Ok(())
}
