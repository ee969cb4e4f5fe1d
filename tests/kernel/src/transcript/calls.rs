//! Hypercalls by HVC and SMC: every one somebody defines, the edges of every range, and what nobody defines.
//!
//! A row is a call's name, its id and lists of arguments; registers beyond a list hold the pattern of
//! [`exec`](keel_test_kernel::exec), so that `=` in an answer means that the register was left alone. Sources of the
//! ids: SMCCC (DEN0028), PSCI (DEN0022), PV time (DEN0057), TRNG (DEN0098), and KVM's own as
//! Linux documents them (`Documentation/virt/kvm`). Calls that end or stop a machine are in [`super::power`], or
//! made with arguments no version accepts.

use super::Line;
use keel_test_kernel::{
    exec::{self, Outcome, Registers},
    mrs,
};

/// What a good answer consists of.
#[derive(Clone, Copy)]
enum Shape {
    /// Numbers that are always the same.
    Plain,
    /// Four words of a UUID.
    Uuid,
    /// So many random bits, right-aligned in words of so many bits in x3, x2, x1.
    Random { word: u32 },
    /// Wall-clock time in x0 and x1, the virtual or physical counter in x2 and x3, high words first.
    Time,
    /// Address of a stolen-time structure.
    StolenTime,
}

struct Row {
    name: &'static str,
    id: u32,
    arguments: &'static [&'static [u64]],
    shape: Shape,
}

const fn row(name: &'static str, id: u32, arguments: &'static [&'static [u64]]) -> Row {
    Row { name, id, arguments, shape: Shape::Plain }
}

const fn shaped(name: &'static str, id: u32, shape: Shape, arguments: &'static [&'static [u64]]) -> Row {
    Row { name, id, arguments, shape }
}

/// No arguments: the pattern in all registers.
const NONE: &[&[u64]] = &[&[]];
/// Something in the upper half of a register whose lower half counts.
const HIGH: u64 = 0xdead_beef_0000_0000;

/// Ids that may be asked about, by ARCH_FEATURES, PSCI_FEATURES, TRNG_FEATURES and PV_TIME_FEATURES.
const QUERIES: &[&[u64]] = &[
    &[0],
    &[1],
    &[0x8000_0000],
    &[HIGH | 0x8000_0000],
    &[0x8000_0001],
    &[0x8000_0002],
    &[0x8000_0003],
    &[0x8000_0004],
    &[0x8000_3ffe],
    &[0x8000_3fff],
    &[0x8000_7fff],
    &[0x8000_8000],
    &[HIGH | 0x8000_8000],
    &[0x8000_8001],
    &[0x8001_8000],
    &[0xc000_0000],
    &[0xc000_3fff],
    &[0xc000_7fff],
    &[0xc000_8000],
    &[0x8400_0000],
    &[0x8400_0050],
    &[0x8400_0051],
    &[0x8400_0052],
    &[0x8400_0053],
    &[0xc400_0050],
    &[0xc400_0053],
    &[0xc400_0054],
    &[0xc500_001f],
    &[0xc500_0020],
    &[HIGH | 0xc500_0020],
    &[0xc500_0021],
    &[0xc500_0022],
    &[0x8500_0020],
    &[0x8500_0021],
    &[0x8600_0000],
    &[0x8600_0001],
    &[0x8600_ff01],
    &[0x9abc_def0],
    &[0xffff_ffff],
    &[u64::MAX],
];

const ARCH: &[Row] = &[
    row("SMCCC_VERSION", 0x8000_0000, &[&[], &[0, 0, 0], &[u64::MAX, u64::MAX, u64::MAX]]),
    row("SMCCC_ARCH_FEATURES", 0x8000_0001, QUERIES),
    row("SMCCC_ARCH_SOC_ID", 0x8000_0002, &[&[0], &[1], &[2]]),
    row("SMCCC_ARCH_SOC_ID", 0xc000_0002, &[&[0], &[1], &[2]]),
    row("SMCCC_ARCH_FEATURE_AVAILABILITY", 0x8000_0003, &[&[0], &[1]]),
    row("SMCCC_ARCH_FEATURE_AVAILABILITY", 0xc000_0003, &[&[0], &[1]]),
    row("SMCCC_ARCH_WORKAROUND_1", 0x8000_8000, NONE),
    row("SMCCC_ARCH_WORKAROUND_2", 0x8000_7fff, &[&[0], &[1], &[HIGH]]),
    row("SMCCC_ARCH_WORKAROUND_3", 0x8000_3fff, NONE),
    row("SMCCC_ARCH_WORKAROUND_4", 0x8000_0004, NONE),
];

/// Affinities and lowest affinity levels for AFFINITY_INFO.
const AFFINITIES: &[&[u64]] = &[
    &[0, 0],
    &[0, 1],
    &[0, 2],
    &[0, 3],
    &[0, 4],
    &[0, 0xffff_ffff],
    &[0, HIGH],
    &[0, 1 << 32 | 4],
    &[1, 0],
    &[1, 1],
    &[1, 3],
    &[2, 0],
    &[2, 1],
    &[0xff, 0],
    &[0xff, 1],
    &[0x100, 0],
    &[0x100, 1],
    &[0x100, 2],
    &[0x1_0000, 2],
    &[0x1_0000, 3],
    &[0xff_0000_0000, 0],
    &[0xff_0000_0000, 3],
    &[0x0100_0000, 0],
    &[0x4000_0000, 0],
    &[0x8000_0000, 0],
    &[0x8000_0001, 3],
    &[0x100_0000_0000, 0],
    &[0x8000_0000_0000_0000, 0],
    &[HIGH, 0],
    &[HIGH | 1, 0],
    &[u64::MAX, 0],
    &[u64::MAX, u64::MAX],
];

/// CPU_ON's targets that are not there; the entry point and the context do not matter.
const TARGETS: &[&[u64]] = &[
    &[2, 0x4020_0000, 0],
    &[0xf, 0x4020_0000, 0],
    &[0xff, 0x4020_0000, 0],
    &[0x100, 0x4020_0000, 0],
    &[0x1_0000, 0x4020_0000, 0],
    &[0xff_ffff, 0x4020_0000, 0],
    &[0xff_0000_0000, 0x4020_0000, 0],
    &[0x0100_0000, 0x4020_0000, 0],
    &[0x0100_0001, 0x4020_0000, 0],
    &[0x4000_0001, 0x4020_0000, 0],
    &[0x8000_0001, 0x4020_0000, 0],
    // Narrowed to 32 bits in the 32-bit form, and then the calling CPU, which is on.
    &[0x100_0000_0000, 0x4020_0000, 0],
    &[0x8000_0000_0000_0000, 0x4020_0000, 0],
    &[HIGH, 0x4020_0000, 0],
    // The calling CPU, which is on.
    &[0, 0x4020_0000, 0],
    &[0, 0, 0],
    &[0, 0x4020_0001, 0],
    &[0, u64::MAX, u64::MAX],
];

/// SYSTEM_RESET2's types that nobody defines.
const RESETS: &[&[u64]] = &[&[1, 0], &[2, 0], &[0x7fff_ffff, 0], &[HIGH | 1, 0], &[1, u64::MAX]];

/// SYSTEM_OFF2's types and cookies that nobody defines.
const OFFS: &[&[u64]] = &[&[2, 0], &[0xffff_ffff, 0], &[0, 1], &[1, 1], &[HIGH | 2, 0]];

const PSCI: &[Row] = &[
    row("PSCI_VERSION", 0x8400_0000, &[&[], &[u64::MAX, u64::MAX, u64::MAX]]),
    row("CPU_ON", 0x8400_0003, TARGETS),
    row("CPU_ON", 0xc400_0003, TARGETS),
    row("AFFINITY_INFO", 0x8400_0004, AFFINITIES),
    row("AFFINITY_INFO", 0xc400_0004, AFFINITIES),
    row("MIGRATE", 0x8400_0005, &[&[], &[0], &[1]]),
    row("MIGRATE", 0xc400_0005, &[&[], &[0], &[1]]),
    row("MIGRATE_INFO_TYPE", 0x8400_0006, NONE),
    row("MIGRATE_INFO_UP_CPU", 0x8400_0007, NONE),
    row("MIGRATE_INFO_UP_CPU", 0xc400_0007, NONE),
    row("PSCI_FEATURES", 0x8400_000a, QUERIES),
    row("CPU_FREEZE", 0x8400_000b, NONE),
    row("CPU_DEFAULT_SUSPEND", 0x8400_000c, NONE),
    row("CPU_DEFAULT_SUSPEND", 0xc400_000c, NONE),
    row("NODE_HW_STATE", 0x8400_000d, &[&[0, 0]]),
    row("NODE_HW_STATE", 0xc400_000d, &[&[0, 0]]),
    row("SYSTEM_SUSPEND", 0x8400_000e, &[&[0x4020_0000, 0]]),
    row("SYSTEM_SUSPEND", 0xc400_000e, &[&[0x4020_0000, 0]]),
    row("PSCI_SET_SUSPEND_MODE", 0x8400_000f, &[&[0], &[1]]),
    row("PSCI_STAT_RESIDENCY", 0x8400_0010, &[&[0, 0]]),
    row("PSCI_STAT_RESIDENCY", 0xc400_0010, &[&[0, 0]]),
    row("PSCI_STAT_COUNT", 0x8400_0011, &[&[0, 0]]),
    row("PSCI_STAT_COUNT", 0xc400_0011, &[&[0, 0]]),
    row("SYSTEM_RESET2", 0x8400_0012, RESETS),
    row("SYSTEM_RESET2", 0xc400_0012, RESETS),
    row("MEM_PROTECT", 0x8400_0013, &[&[0], &[1]]),
    row("MEM_PROTECT_CHECK_RANGE", 0x8400_0014, &[&[0x4000_0000, 0x1000]]),
    row("MEM_PROTECT_CHECK_RANGE", 0xc400_0014, &[&[0x4000_0000, 0x1000]]),
    row("SYSTEM_OFF2", 0x8400_0015, OFFS),
    row("SYSTEM_OFF2", 0xc400_0015, OFFS),
    row("CLEAN_INV_MEMREGION", 0x8400_0016, &[&[0x4000_0000, 0x1000, 0]]),
    row("CLEAN_INV_MEMREGION", 0xc400_0016, &[&[0x4000_0000, 0x1000, 0]]),
    row("CLEAN_INV_MEMREGION_ATTRIBUTES", 0x8400_0017, &[&[0]]),
    // Functions that have one width have it in the other id space too: as nothing.
    row("PSCI_VERSION", 0xc400_0000, NONE),
    row("CPU_OFF", 0xc400_0002, NONE),
    row("MIGRATE_INFO_TYPE", 0xc400_0006, NONE),
    row("SYSTEM_OFF", 0xc400_0008, NONE),
    row("SYSTEM_RESET", 0xc400_0009, NONE),
    row("PSCI_FEATURES", 0xc400_000a, &[&[0x8400_0000]]),
    row("CPU_FREEZE", 0xc400_000b, NONE),
    row("PSCI_SET_SUSPEND_MODE", 0xc400_000f, NONE),
    row("MEM_PROTECT", 0xc400_0013, NONE),
    row("CLEAN_INV_MEMREGION_ATTRIBUTES", 0xc400_0017, NONE),
    // PSCI 0.1 as KVM numbers it, and its neighbours.
    row("below PSCI 0.1", 0x95c1_ba5d, NONE),
    row("CPU_SUSPEND of PSCI 0.1", 0x95c1_ba5e, NONE),
    row("CPU_OFF of PSCI 0.1", 0x95c1_ba5f, NONE),
    row("CPU_ON of PSCI 0.1", 0x95c1_ba60, &[&[0, 0x4020_0000, 0], &[1, 0x4020_0000, 0]]),
    row("MIGRATE of PSCI 0.1", 0x95c1_ba61, NONE),
    row("above PSCI 0.1", 0x95c1_ba62, NONE),
];

const RND32: Shape = Shape::Random { word: 32 };
const RND64: Shape = Shape::Random { word: 64 };

const SERVICES: &[Row] = &[
    row("below TRNG", 0x8400_004f, NONE),
    row("TRNG_VERSION", 0x8400_0050, NONE),
    row("TRNG_FEATURES", 0x8400_0051, QUERIES),
    shaped("TRNG_GET_UUID", 0x8400_0052, Shape::Uuid, NONE),
    shaped(
        "TRNG_RND32",
        0x8400_0053,
        RND32,
        &[&[0], &[1], &[31], &[32], &[33], &[64], &[65], &[95], &[96], &[97], &[128], &[192], &[0xffff_ffff], &[HIGH]],
    ),
    shaped("TRNG_RND32", 0x8400_0053, RND32, &[&[HIGH | 32], &[u64::MAX]]),
    row("above TRNG", 0x8400_0054, NONE),
    row("TRNG_VERSION", 0xc400_0050, NONE),
    row("TRNG_FEATURES", 0xc400_0051, &[&[0x8400_0050]]),
    row("TRNG_GET_UUID", 0xc400_0052, NONE),
    shaped(
        "TRNG_RND64",
        0xc400_0053,
        RND64,
        &[&[0], &[1], &[63], &[64], &[65], &[96], &[128], &[191], &[192], &[193], &[256], &[0xffff_ffff], &[HIGH]],
    ),
    shaped("TRNG_RND64", 0xc400_0053, RND64, &[&[HIGH | 64], &[1 << 32 | 64], &[u64::MAX]]),
    row("above TRNG", 0xc400_0054, NONE),
    row("below PV time", 0xc500_001f, NONE),
    row("PV_TIME_FEATURES", 0xc500_0020, QUERIES),
    shaped("PV_TIME_ST", 0xc500_0021, Shape::StolenTime, &[&[], &[0, 0, 0]]),
    row("above PV time", 0xc500_0022, NONE),
    row("PV_TIME_FEATURES", 0x8500_0020, &[&[0xc500_0021]]),
    row("PV_TIME_ST", 0x8500_0021, NONE),
];

const KVM: &[Row] = &[
    row("vendor FEATURES", 0x8600_0000, NONE),
    shaped("vendor PTP", 0x8600_0001, Shape::Time, &[&[0], &[1], &[HIGH], &[HIGH | 1]]),
    row("vendor PTP", 0x8600_0001, &[&[2], &[0xffff_ffff]]),
    row("vendor call 2", 0x8600_0002, &[&[0, 0, 0]]),
    row("vendor call 127", 0x8600_007f, NONE),
    row("vendor FEATURES", 0xc600_0000, NONE),
    row("vendor PTP", 0xc600_0001, &[&[0]]),
    row("vendor HYP_MEMINFO", 0xc600_0002, &[&[0, 0, 0], &[1, 0, 0]]),
    row("vendor MEM_SHARE", 0xc600_0003, &[&[0x4000_0000, 0, 0], &[0x4000_0001, 0, 0], &[0x4000_0000, 1, 0]]),
    row("vendor MEM_UNSHARE", 0xc600_0004, &[&[0x4000_0000, 0, 0], &[0x4000_0001, 0, 0]]),
    row("vendor call 5", 0xc600_0005, &[&[0, 0, 0]]),
    row("vendor call 6", 0xc600_0006, &[&[0, 0, 0]]),
    row("vendor MMIO_GUARD", 0xc600_0007, &[&[0x0900_0000, 0, 0]]),
    row("vendor call 63", 0xc600_003f, NONE),
    row("vendor DISCOVER_IMPL_VER", 0xc600_0040, NONE),
    row("vendor DISCOVER_IMPL_CPUS", 0xc600_0041, &[&[0, 0, 0]]),
    row("vendor call 127", 0xc600_007f, NONE),
    row("vendor CALL_UID", 0x8600_ff01, NONE),
    row("vendor CALL_UID", 0xc600_ff01, NONE),
    // The numbers of KVM's hypercalls on other architectures, at 0x100 of the vendor's space.
    row("KVM_HC 0", 0xc600_0100, NONE),
    row("KVM_HC_VAPIC_POLL_IRQ", 0xc600_0101, NONE),
    row("KVM_HC_MMU_OP", 0xc600_0102, NONE),
    row("KVM_HC_FEATURES", 0xc600_0103, NONE),
    row("KVM_HC_PPC_MAP_MAGIC_PAGE", 0xc600_0104, NONE),
    row("KVM_HC_KICK_CPU", 0xc600_0105, &[&[0, 0], &[0, 0x77]]),
    row("KVM_HC_MIPS_GET_CLOCK_FREQ", 0xc600_0106, NONE),
    row("KVM_HC_MIPS_EXIT_VM", 0xc600_0107, NONE),
    row("KVM_HC_MIPS_CONSOLE_OUTPUT", 0xc600_0108, NONE),
    row("KVM_HC_CLOCK_PAIRING", 0xc600_0109, &[&[0x4000_0000, 1]]),
    row("KVM_HC_SEND_IPI", 0xc600_010a, &[&[0, 0, 0]]),
    row("KVM_HC_SCHED_YIELD", 0xc600_010b, &[&[0], &[0x77]]),
    row("KVM_HC_MAP_GPA_RANGE", 0xc600_010c, &[&[0x4000_0001, 1, 0], &[0x4000_0000, 0, 0]]),
    row("KVM_HC 13", 0xc600_010d, NONE),
    row("KVM_HC 99", 0xc600_0163, NONE),
    row("KVM_HC_VAPIC_POLL_IRQ", 0x8600_0101, NONE),
    row("KVM_IOCTL", 0xc600_0200, &[&[0, 0, 0], &[u64::MAX, u64::MAX, u64::MAX]]),
];

/// The hyp stub's calls, which only the owner of a machine may make, and what looks like them.
const STUB: &[Row] = &[
    row("HVC_SET_VECTORS", 0, &[&[0x4020_0000]]),
    row("HVC_SOFT_RESTART", 1, &[&[0x4020_0000, 0, 0]]),
    row("HVC_RESET_VECTORS", 2, NONE),
    row("HVC_FINALISE_EL2", 3, NONE),
    row("HVC_GET_ICH_VTR_EL2", 4, NONE),
    row("stub call 5", 5, NONE),
    row("stub call 0xfff", 0xfff, NONE),
    row("stub call -1", 0xffff_ffff, NONE),
];

const TABLES: &[&[Row]] = &[ARCH, PSCI, SERVICES, KVM, STUB];

/// Ids with which details of the convention are tried: some that are known and one that is not.
const SOME: [u32; 12] = [
    0x8000_0000,
    0x8000_0001,
    0x8000_8000,
    0x8000_7fff,
    0x8000_3fff,
    0x8400_0000,
    0x8400_0006,
    0x8400_000a,
    0x8400_0050,
    0xc500_0020,
    0x8600_ff01,
    0xc600_fffe,
];

/// A way to call.
#[derive(Clone, Copy)]
enum Conduit {
    Hvc(u16),
    Smc(u16),
}

impl Conduit {
    fn instruction(self) -> u32 {
        match self {
            Conduit::Hvc(immediate) => exec::hvc(immediate),
            Conduit::Smc(immediate) => exec::smc(immediate),
        }
    }
}

impl core::fmt::Display for Conduit {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Conduit::Hvc(0) => write!(formatter, "hvc"),
            Conduit::Smc(0) => write!(formatter, "smc"),
            Conduit::Hvc(immediate) => write!(formatter, "hvc #{immediate:#x}"),
            Conduit::Smc(immediate) => write!(formatter, "smc #{immediate:#x}"),
        }
    }
}

const BOTH: [Conduit; 2] = [Conduit::Hvc(0), Conduit::Smc(0)];

/// Makes all calls.
pub(super) fn run() {
    for conduit in BOTH {
        for row in TABLES.iter().flat_map(|table| table.iter()) {
            row.arguments.iter().for_each(|arguments| call(conduit, row, arguments));
        }
    }
    convention();
    BOTH.into_iter().for_each(nobodys);
}

fn make(conduit: Conduit, x0: u64, arguments: &[u64]) -> Outcome {
    let mut registers = Registers::pattern();
    registers.x[0] = x0;
    registers.x[1..1 + arguments.len()].copy_from_slice(arguments);
    exec::run(conduit.instruction(), &registers)
}

fn call(conduit: Conduit, row: &Row, arguments: &[u64]) {
    let mut line = Line::about(format_args!("{conduit} {:#x} {}{}", row.id, row.name, List(arguments)));
    let outcome = make(conduit, row.id.into(), arguments);
    match plausible(conduit, row, arguments, &outcome) {
        Some(text) if outcome.trap.is_none() => {
            line.add(format_args!(" {text}"));
            line.changes(&outcome, &[0, 1, 2, 3]);
        }
        _ => answer(&mut line, &outcome),
    }
    line.end();
}

/// x0 to x3, `=` for one that was left alone, and any other register that changed.
fn answer(line: &mut Line, outcome: &Outcome) {
    if let Some(trap) = &outcome.trap {
        line.exception(trap, None);
    } else {
        for (before, after) in outcome.before.x.iter().zip(&outcome.after.x).take(4) {
            if before == after { line.add(format_args!(" =")) } else { line.value(*after) }
        }
        line.changes(outcome, &[0, 1, 2, 3]);
    }
}

/// Arguments in brackets.
struct List<'a>(&'a [u64]);

impl core::fmt::Display for List<'_> {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(formatter, "(")?;
        for (index, argument) in self.0.iter().enumerate() {
            write!(formatter, "{}{argument:#x}", if index == 0 { "" } else { ", " })?;
        }
        write!(formatter, ")")
    }
}

/// The word that stands for a good answer which is not always the same; `None` for any other answer.
fn plausible(conduit: Conduit, row: &Row, arguments: &[u64], outcome: &Outcome) -> Option<&'static str> {
    let again = || make(conduit, row.id.into(), arguments).after.x;
    let answer = &outcome.after.x;
    let succeeded = answer[0] as i64 >= 0;
    match row.shape {
        Shape::Plain => None,
        Shape::Uuid => {
            let words = answer[..4].iter().all(|word| *word <= u32::MAX.into());
            let valid = words && answer[0] != u64::from(u32::MAX) && answer[..4].iter().any(|word| *word != 0);
            (valid && again()[..4] == answer[..4]).then_some("<uuid>")
        }
        Shape::Random { word } => {
            // TRNG_RND32's argument is 32 bits wide.
            let asked = arguments.first().map_or(0, |&bits| if word == 32 { bits as u32 as u64 } else { bits });
            let right = answer[0] == 0
                && (1..=3).all(|index| {
                    let bits = asked.saturating_sub(u64::from(word) * (3 - index)).min(word.into()) as u32;
                    answer[index as usize].checked_shr(bits).unwrap_or(0) == 0
                });
            // Two draws of at least 31 bits are not the same, four times in a row.
            let fresh = asked < 31 || (0..4).any(|_| again()[1..4] != answer[1..4]);
            (right && fresh && asked > 0).then_some("<random>")
        }
        Shape::Time => {
            let physical = arguments.first().is_some_and(|which| which & 1 == 1);
            let counter = || if physical { mrs!("cntpct_el0") } else { mrs!("cntvct_el0") };
            let before = counter();
            let second = again();
            let join = |high: u64, low: u64| high << 32 | low;
            let count = join(second[2], second[3]);
            let later = join(second[0], second[1]) >= join(answer[0], answer[1]);
            (succeeded && later && (before..=counter()).contains(&count)).then_some("<time>")
        }
        Shape::StolenTime => {
            // The structure: revision and attributes are 0; 64 bytes, aligned to their size.
            let read = || exec::run_with(0xf940_0000 | 10 << 5, &[(10, answer[0])]);
            let structure = succeeded && answer[0].is_multiple_of(64) && {
                let read = read();
                read.trap.is_none() && read.after.x[0] == 0
            };
            structure.then_some("<stolen time>")
        }
    }
}

/// What the convention says of ids and immediates.
fn convention() {
    let ask = |conduit: Conduit, x0: u64, arguments: &[u64]| {
        let mut line = Line::about(format_args!("{conduit} {x0:#x} {}", List(arguments)));
        answer(&mut line, &make(conduit, x0, arguments));
        line.end();
    };
    for conduit in BOTH {
        for id in SOME {
            // Only the lower half of x0 is the id.
            ask(conduit, HIGH | u64::from(id), &[0x8000_0000]);
            // The hint that no SVE state is live (SMCCC 1.3), and the bits that must be zero.
            (16..24).for_each(|bit| ask(conduit, u64::from(id | 1 << bit), &[0x8000_0000]));
            // Yielding instead of fast.
            ask(conduit, u64::from(id & !(1 << 31)), &[0x8000_0000]);
        }
    }
    for immediate in [1, 7, 0x4b, 0x1234, 0x8000, 0xffff] {
        for id in SOME {
            ask(Conduit::Hvc(immediate), id.into(), &[0x8000_0000]);
            ask(Conduit::Smc(immediate), id.into(), &[0x8000_0000]);
        }
    }
    ask(Conduit::Hvc(0), u64::MAX, &[]);
    ask(Conduit::Hvc(0), 1 << 32, &[]);
    ask(Conduit::Smc(0), u64::MAX, &[]);
}

/// Numbers of each owner that no revision defines, fast and yielding, of 32 and 64 bits, and the general queries.
fn nobodys(conduit: Conduit) {
    const OWNERS: [u32; 19] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 31, 32, 47, 48, 49, 50, 51, 61, 62, 63];
    const NUMBERS: [u32; 9] = [0x1f, 0x20, 0xabc, 0x7ffe, 0xff00, 0xff01, 0xff02, 0xff03, 0xffff];
    for owner in OWNERS {
        for kind in [0x8000_0000, 0xc000_0000, 0, 0x4000_0000] {
            for number in NUMBERS {
                let id: u32 = kind | owner << 24 | number;
                let mut line = Line::about(format_args!("{conduit} {id:#x} owner {owner}"));
                answer(&mut line, &make(conduit, id.into(), &[]));
                line.end();
            }
        }
    }
    let mut line = Line::about(format_args!("{conduit} 1000 times PSCI_VERSION"));
    let all = (0..1000).all(|_| make(conduit, 0x8400_0000, &[]).changed(&[0, 1, 2, 3]).is_none());
    line.add(format_args!(" {}", if all { "the rest kept" } else { "something else changed" }));
    line.end();
    let mut line = Line::about(format_args!("{conduit} with PSTATE.I clear"));
    keel_test_kernel::arch::with_irqs(|| line.value(make(conduit, 0x8400_0000, &[]).after.x[0]));
    line.end();
}
