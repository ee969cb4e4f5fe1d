//! The hyp-stub ABI, for the kernel that owns the machine: every call with good and bad arguments, on every CPU; the
//! relay of PSCI; and a hypervisor installed, called and removed.

use crate::{
    check, check_eq,
    harness::{self, Case, Check, Under::*, case, eventually, failed, join, skip},
};
use core::sync::atomic::{AtomicU64, Ordering};
use keel_test_kernel::{
    arch,
    exec::{self, Outcome, Registers},
    hypervisor,
    machine::{Machine, Stub},
    mrs, msr, power, println, smp, time,
};
use spin::Mutex;

/// The cases.
pub const CASES: &[Case] = &[
    case("stub/tree", 1, Stub, tree),
    case("stub/numbers", 1, Stub, |machine| on_every_cpu(machine, numbers)),
    case("stub/ich_vtr", 1, Stub, |machine| on_every_cpu(machine, ich_vtr)),
    case("stub/misaligned_vectors", 1, Stub, |machine| on_every_cpu(machine, misaligned_vectors)),
    case("stub/soft_restart", 1, Stub, |machine| on_every_cpu(machine, soft_restart)),
    case("stub/calls_from_el2", 1, Stub, |machine| on_every_cpu(machine, calls_from_el2)),
    case("stub/hypervisor", 1, Stub, |machine| on_every_cpu(machine, hypervisor_comes_and_goes)),
    case("stub/other_cpus_keep_their_vectors", 2, Stub, other_cpus),
    case("stub/entry_state", 1, Stub, |machine| on_every_cpu(machine, entry_state)),
    case("stub/vector_extensions", 1, Stub, |machine| on_every_cpu(machine, vector_extensions)),
    case("stub/finalise_without_vhe", 1, Stub, |machine| on_every_cpu(machine, finalise_without_vhe)),
    case("stub/finalise_with_vhe", 2, Stub, finalise_with_vhe),
    case("stub/finalise_unmapped", 1, Stub, |machine| on_every_cpu(machine, finalise_unmapped)),
    case("stub/psci", 1, Stub, |machine| on_every_cpu(machine, psci)),
    case("stub/psci_cpu_on", 1, Stub, |machine| on_every_cpu(machine, psci_cpu_on)),
    case("stub/psci_suspend", 1, Stub, psci_suspend),
    case("stub/smc_registers", 1, Stub, |machine| on_every_cpu(machine, smc_registers)),
    case("stub/smc_unknown", 1, Stub, |machine| on_every_cpu(machine, smc_unknown)),
    case("stub/cpus_on_and_off", 2, Stub, cpus_on_and_off),
];

pub(super) const SET_VECTORS: u64 = 0;
pub(super) const SOFT_RESTART: u64 = 1;
pub(super) const RESET_VECTORS: u64 = 2;
pub(super) const FINALISE_EL2: u64 = 3;
pub(super) const GET_ICH_VTR_EL2: u64 = 4;
pub(super) const HVC_STUB_ERR: u64 = 0x0bad_ca11;

/// HCR_EL2 as the boot protocol has it: RW, API and APK, ATA; without FEAT_PAuth or FEAT_MTE2 their bits are RES0.
fn hcr_host() -> u64 {
    let isar1 = mrs!("id_aa64isar1_el1");
    let isar2 = mrs!("S3_0_C0_C6_2");
    let has_pauth = isar1 >> 4 & 0xff != 0 || isar2 >> 12 & 0xf != 0;
    let has_tags = mrs!("id_aa64pfr1_el1") >> 8 & 0xf >= 2;
    1 << 31 | if has_pauth { 3 << 40 } else { 0 } | if has_tags { 1 << 56 } else { 0 }
}
/// SCTLR_EL2 with the MMU off; bit 60, EnTP2, is set where there is SME.
const SCTLR_OFF: u64 = 0x30c5_0830;
const SCTLR_ENTP2: u64 = 1 << 60;

const NOT_SUPPORTED: u64 = -1_i64 as u64;
const INVALID_PARAMETERS: u64 = -2_i64 as u64;
const ALREADY_ON: u64 = -4_i64 as u64;
const INVALID_ADDRESS: u64 = -9_i64 as u64;
/// CPU_ON in its SMC32 form, which the relay does not have and QEMU's firmware has.
const CPU_ON_32: u64 = 0x8400_0003;

/// Registers a stub call may change.
const CLOBBERED: [usize; 19] = {
    let mut list = [0; 19];
    let mut number = 0;
    while number < list.len() {
        list[number] = number;
        number += 1;
    }
    list
};

/// A part of a case that runs on any CPU.
pub(super) type OnCpu = fn(&'static Machine) -> Check;

/// What the CPUs run, and what came of it on the last one: nothing yet, or the result.
static JOB: Mutex<Option<(&'static Machine, OnCpu)>> = Mutex::new(None);
static RESULT: Mutex<Option<Check>> = Mutex::new(None);

fn work(_: usize) {
    let job = *JOB.lock();
    let result = job.map(|(machine, run)| run(machine));
    *RESULT.lock() = result;
}

/// Runs `run` on CPU `cpu`, which is off.
pub(super) fn on_cpu(machine: &'static Machine, cpu: usize, run: OnCpu) -> Check {
    *JOB.lock() = Some((machine, run));
    *RESULT.lock() = None;
    harness::start(machine, cpu, work, 0)?;
    join(machine, cpu)?;
    match RESULT.lock().take() {
        Some(Ok(())) => Ok(()),
        Some(Err(harness::Verdict::Failed)) => Err(failed(format_args!("on CPU {cpu}: {}", harness::reason()))),
        Some(other) => other,
        None => Err(failed(format_args!("CPU {cpu} did nothing"))),
    }
}

/// Runs `run` on CPU `cpu`, which is off, and `here` at the same time.
pub(super) fn while_on_cpu(machine: &'static Machine, cpu: usize, run: OnCpu, here: impl FnOnce() -> Check) -> Check {
    *JOB.lock() = Some((machine, run));
    *RESULT.lock() = None;
    harness::start(machine, cpu, work, 0)?;
    let here = here();
    join(machine, cpu)?;
    match RESULT.lock().take() {
        Some(Err(harness::Verdict::Failed)) => Err(failed(format_args!("on CPU {cpu}: {}", harness::reason()))),
        Some(other) => other.and(here),
        None => Err(failed(format_args!("CPU {cpu} did nothing"))),
    }
}

/// Runs `run` on all other CPUs, which are off, and `here` at the same time.
pub(super) fn while_on_cpus(machine: &'static Machine, run: OnCpu, here: impl FnOnce() -> Check) -> Check {
    *JOB.lock() = Some((machine, run));
    *RESULT.lock() = None;
    let others = 1..machine.cpus().len();
    for cpu in others.clone() {
        harness::start(machine, cpu, work_until_wrong, 0)?;
    }
    let here = here();
    for cpu in others {
        join(machine, cpu)?;
    }
    match RESULT.lock().take() {
        Some(Err(harness::Verdict::Failed)) => Err(failed(format_args!("on another CPU: {}", harness::reason()))),
        _ => here,
    }
}

/// As [`work`], but what went wrong on one CPU stays.
fn work_until_wrong(_: usize) {
    let job = *JOB.lock();
    if let Some(Err(problem)) = job.map(|(machine, run)| run(machine)) {
        *RESULT.lock() = Some(Err(problem));
    }
}

/// Runs `run` on every CPU, one after the other; CPU 0 first.
pub(super) fn on_every_cpu(machine: &'static Machine, run: OnCpu) -> Check {
    run(machine)?;
    (1..machine.cpus().len()).try_for_each(|cpu| on_cpu(machine, cpu, run))
}

fn stub(machine: &Machine) -> Check<Stub> {
    machine.stub.ok_or_else(|| failed(format_args!("no node compatible with keel,hyp-stub in the tree")))
}

/// EL1's registers, but for those that the probe of an instruction uses itself.
fn el1_registers() -> [u64; 20] {
    [
        mrs!("sctlr_el1"),
        mrs!("cpacr_el1"),
        mrs!("ttbr0_el1"),
        mrs!("ttbr1_el1"),
        mrs!("tcr_el1"),
        mrs!("mair_el1"),
        mrs!("amair_el1"),
        mrs!("vbar_el1"),
        mrs!("contextidr_el1"),
        mrs!("tpidr_el0"),
        mrs!("tpidrro_el0"),
        mrs!("tpidr_el1"),
        mrs!("sp_el0"),
        mrs!("elr_el1"),
        mrs!("spsr_el1"),
        mrs!("esr_el1"),
        mrs!("far_el1"),
        mrs!("afsr0_el1"),
        mrs!("par_el1"),
        mrs!("cntkctl_el1"),
    ]
}

/// Makes an HVC with `values` in the registers. Nothing may change that a stub call has to leave alone.
pub(super) fn call(immediate: u16, values: &[(usize, u64)]) -> Check<Registers> {
    let before = el1_registers();
    let outcome = exec::run_with(exec::hvc(immediate), values);
    kept(&outcome, &CLOBBERED)?;
    check_eq!(el1_registers(), before, "EL1's registers after call {:#x}", values[0].1);
    Ok(outcome.after)
}

fn kept(outcome: &Outcome, except: &[usize]) -> Check {
    let function = outcome.before.x[0];
    check!(outcome.trap.is_none(), "{function:#x} trapped: {:x?}", outcome.trap);
    if let Some((bank, number, before, after)) = outcome.changed(except) {
        check!(false, "{function:#x}: {bank}{number} was {before:#x}, is {after:#x}");
    }
    Ok(())
}

/// The answer of a stub call by HVC #0.
pub(super) fn answer(values: &[(usize, u64)]) -> Check<u64> {
    Ok(call(0, values)?.x[0])
}

/// What EL2 is like, seen from there: VBAR_EL2, HCR_EL2, SCTLR_EL2. Leaves the relay off.
pub(super) fn probe() -> Check<[u64; 3]> {
    let values = [(0, SOFT_RESTART), (1, hypervisor::probe()), (2, 22), (3, 33), (4, 44)];
    let after = call(0, &values)?;
    check_eq!([after.x[0], after.x[1], after.x[2]], [22, 33, 44], "x0 to x2 at EL2");
    check_eq!([after.x[5], after.x[6], after.x[10]], [8, 0x3c0, 1], "CurrentEL, DAIF and SPSel");
    Ok([after.x[7], after.x[8], after.x[9]])
}

/// Whether SMCs of this CPU are relayed.
pub(super) fn is_relayed() -> Check<bool> {
    // No CPU has this affinity; who answers can be told by how.
    let outcome = exec::run_with(exec::smc(0), &[(0, CPU_ON_32), (1, 0x00ff_ffff), (2, 0), (3, 0)]);
    match outcome.after.x[0] as u32 as i32 {
        -1 => Ok(true),
        -2 => Ok(false),
        other => Err(failed(format_args!("CPU_ON(32 bits) of no CPU: {other}"))),
    }
}

fn tree(machine: &'static Machine) -> Check {
    let stub = stub(machine)?;
    check!(stub.no_map, "the stub's memory has no no-map");
    check!(stub.vectors % 2048 == 0, "vectors at {:#x}", stub.vectors);
    let memory = stub.base as u64..(stub.base + stub.size) as u64;
    check!(memory.contains(&stub.vectors), "vectors at {:#x}, memory {memory:#x?}", stub.vectors);
    let ram = machine.memory_base as u64..(machine.memory_base + machine.memory_size) as u64;
    // keel's root VM is not told of the memory that keel has.
    let inside = ram.contains(&memory.start) && memory.end <= ram.end;
    check!(inside != machine.is_root(), "memory {memory:#x?}, RAM {ram:#x?}");
    check!(stub.size <= 8 << 20, "{:#x} bytes are kept", stub.size);
    Ok(())
}

pub(super) fn numbers(_: &'static Machine) -> Check {
    for immediate in [0, 1, 0x1234, 0xffff] {
        check_eq!(call(immediate, &[(0, RESET_VECTORS)])?.x[0], 0, "RESET_VECTORS by HVC #{immediate:#x}");
        for number in
            [5, 6, 0xfff, 0x1000, 0x8400_0000, 0xffff_ffff, 1 << 32, 1 << 32 | RESET_VECTORS, 1 << 63, u64::MAX]
        {
            let after = call(immediate, &[(0, number)])?;
            check_eq!(after.x[0], HVC_STUB_ERR, "call {number:#x} by HVC #{immediate:#x}");
        }
    }
    Ok(())
}

fn ich_vtr(_: &'static Machine) -> Check {
    let has_registers = mrs!("id_aa64pfr0_el1") >> 24 & 0xf != 0;
    let after = call(0, &[(0, GET_ICH_VTR_EL2), (1, u64::MAX)])?;
    if !has_registers {
        check_eq!(after.x[0], HVC_STUB_ERR, "without the GIC's system registers");
        return Ok(());
    }
    check_eq!(after.x[0], 0, "x0");
    // ICH_VTR_EL2: ListRegs 4:0 (at most 15), RES0 17:5, PREbits 28:26 and PRIbits 31:29 (both at least 4).
    let vtr = after.x[1];
    check!(vtr & 0x1f < 16 && vtr & 0x3_ffe0 == 0 && vtr >> 26 & 7 >= 4 && vtr >> 29 >= 4, "ICH_VTR_EL2 {vtr:#x}");
    check!(vtr >> 32 == 0, "ICH_VTR_EL2 {vtr:#x}");
    Ok(())
}

fn misaligned_vectors(machine: &'static Machine) -> Check {
    let stub = stub(machine)?;
    for offset in [1, 4, 0x80, 0x400, 0x7ff] {
        let vectors = hypervisor::vectors() + offset;
        check_eq!(answer(&[(0, SET_VECTORS), (1, vectors)])?, HVC_STUB_ERR, "SET_VECTORS({vectors:#x})");
    }
    check!(is_relayed()?, "the relay is gone");
    check_eq!(probe()?[0], stub.vectors, "VBAR_EL2");
    check_eq!(answer(&[(0, RESET_VECTORS)])?, 0, "RESET_VECTORS");
    Ok(())
}

fn soft_restart(machine: &'static Machine) -> Check {
    check!(is_relayed()?, "SMCs are not relayed at the start");
    let [vbar, hcr, sctlr] = probe()?;
    check_eq!(vbar, stub(machine)?.vectors, "VBAR_EL2");
    check_eq!(hcr, hcr_host(), "HCR_EL2");
    check_eq!(sctlr & !SCTLR_ENTP2, SCTLR_OFF, "SCTLR_EL2");
    // Who restarts at EL2 has it, and makes its own calls; RESET_VECTORS from EL1 gives it back.
    check!(!is_relayed()?, "SMCs are relayed after SOFT_RESTART");
    check_eq!(answer(&[(0, RESET_VECTORS)])?, 0, "RESET_VECTORS");
    check!(is_relayed()?, "SMCs are not relayed after RESET_VECTORS");
    Ok(())
}

/// The stub's calls made from EL2.
fn calls_from_el2(_: &'static Machine) -> Check {
    for (number, expected) in
        [(RESET_VECTORS, 0), (FINALISE_EL2, HVC_STUB_ERR), (5, HVC_STUB_ERR), (u64::MAX, HVC_STUB_ERR)]
    {
        let values = [(0, SOFT_RESTART), (1, hypervisor::calls()), (2, number), (3, 0), (4, 0)];
        check_eq!(answer(&values)?, expected, "call {number:#x} from EL2");
    }
    check!(!is_relayed()?, "RESET_VECTORS from EL2 changed HCR_EL2");
    // SET_VECTORS with a misaligned argument, from EL2.
    let values = [(0, SOFT_RESTART), (1, hypervisor::calls()), (2, SET_VECTORS), (3, 0x123), (4, 0)];
    check_eq!(answer(&values)?, HVC_STUB_ERR, "misaligned SET_VECTORS from EL2");
    check_eq!(answer(&[(0, RESET_VECTORS)])?, 0, "RESET_VECTORS");
    Ok(())
}

/// Installs the hypervisor as a payload would.
fn install(machine: &Machine) -> Check {
    check_eq!(hypervisor::install(stub(machine)?.vectors), 0, "installing the hypervisor");
    Ok(())
}

/// The same call by call, with a look at every register.
fn install_watched(machine: &Machine) -> Check {
    check_eq!(answer(&[(0, SET_VECTORS), (1, hypervisor::vectors())])?, 0, "SET_VECTORS");
    check_eq!(answer(&[(0, hypervisor::START), (1, stub(machine)?.vectors)])?, 0, "START");
    Ok(())
}

fn remove(machine: &Machine) -> Check {
    check_eq!(answer(&[(0, RESET_VECTORS)])?, 0, "RESET_VECTORS of the hypervisor");
    check_eq!(answer(&[(0, hypervisor::LOOK)])?, HVC_STUB_ERR, "the hypervisor's call after it");
    check_eq!(probe()?[0], stub(machine)?.vectors, "VBAR_EL2 after it");
    check_eq!(answer(&[(0, RESET_VECTORS)])?, 0, "RESET_VECTORS of the stub");
    check!(is_relayed()?, "SMCs are not relayed after RESET_VECTORS");
    Ok(())
}

fn hypervisor_comes_and_goes(machine: &'static Machine) -> Check {
    for round in 0..100 {
        if round % 2 == 0 {
            install(machine)?
        } else {
            install_watched(machine)?
        }
        check!(!is_relayed()?, "SMCs are relayed under the hypervisor");
        let found = call(0, &[(0, hypervisor::LOOK)])?;
        check_eq!(found.x[0], hypervisor::vectors(), "VBAR_EL2, round {round}");
        check_eq!(found.x[1], hcr_host(), "HCR_EL2");
        check_eq!(found.x[2] & !SCTLR_ENTP2, SCTLR_OFF, "SCTLR_EL2");
        check_eq!(found.x[3] & 3, 3, "CNTHCTL_EL2.EL1PCTEN, EL1PCEN");
        for number in [SET_VECTORS, FINALISE_EL2, GET_ICH_VTR_EL2] {
            check_eq!(answer(&[(0, number), (1, 0)])?, HVC_STUB_ERR, "call {number} of the hypervisor");
        }
        check_eq!(hypervisor::install(stub(machine)?.vectors), HVC_STUB_ERR, "installing it twice");
        remove(machine)?;
    }
    // And out of it by SOFT_RESTART.
    install(machine)?;
    check_eq!(probe()?[0], stub(machine)?.vectors, "VBAR_EL2 after the hypervisor's SOFT_RESTART");
    check_eq!(answer(&[(0, RESET_VECTORS)])?, 0, "RESET_VECTORS of the stub");
    Ok(())
}

/// 0: the other CPU has not installed its hypervisor yet, 1: it has, 2: CPU 0 has looked.
static PHASE: AtomicU64 = AtomicU64::new(0);

fn other_cpus(machine: &'static Machine) -> Check {
    fn other(machine: &'static Machine) -> Check {
        install(machine)?;
        PHASE.store(1, Ordering::Release);
        eventually("CPU 0 looks", || PHASE.load(Ordering::Acquire) == 2)?;
        check_eq!(answer(&[(0, hypervisor::LOOK)])?, hypervisor::vectors(), "VBAR_EL2 of the other CPU");
        remove(machine)
    }
    for cpu in 1..machine.cpus().len() {
        PHASE.store(0, Ordering::Relaxed);
        *JOB.lock() = Some((machine, other));
        *RESULT.lock() = None;
        harness::start(machine, cpu, work, 0)?;
        let installed = eventually("the hypervisor on the other CPU", || {
            PHASE.load(Ordering::Acquire) == 1 || RESULT.lock().is_some()
        });
        let here = installed.and_then(|()| {
            check_eq!(answer(&[(0, hypervisor::LOOK)])?, HVC_STUB_ERR, "the other CPU's hypervisor, called here");
            check_eq!(probe()?[0], stub(machine)?.vectors, "VBAR_EL2 here");
            check_eq!(answer(&[(0, RESET_VECTORS)])?, 0, "RESET_VECTORS here");
            Ok(())
        });
        PHASE.store(2, Ordering::Release);
        join(machine, cpu)?;
        here?;
        RESULT.lock().take().unwrap_or_else(|| Err(failed(format_args!("CPU {cpu} did nothing"))))?;
    }
    Ok(())
}

/// EL1, and what EL2 would otherwise take.
fn entry_state(_: &'static Machine) -> Check {
    check_eq!(mrs!("CurrentEL"), 4, "CurrentEL");
    // Not trapped: the physical timer and counter, the PMU where there is one, an undisturbed MIDR and MPIDR.
    check!(mrs!("cntpct_el0") != 0, "CNTPCT_EL0");
    let _ = mrs!("cntp_ctl_el0");
    let version = mrs!("id_aa64dfr0_el1") >> 8 & 0xf;
    if !matches!(version, 0 | 0xf) {
        let pmcr = exec::run_with(exec::mrs(0, (3, 3, 9, 12, 0)), &[]);
        check!(pmcr.trap.is_none(), "PMCR_EL0 traps");
    }
    let difference = mrs!("cntpct_el0").wrapping_sub(mrs!("cntvct_el0"));
    check!(difference.wrapping_add(1 << 32) < 2 << 32, "CNTVOFF_EL2 is not 0: {difference:#x}");
    Ok(())
}

/// RDVL x0, #1: the length of an SVE vector in bytes.
const RDVL: u32 = 0x04bf_5020;
/// RDSVL x0, #1: the length of a streaming SVE vector in bytes.
const RDSVL: u32 = 0x04bf_5820;

fn vector_extensions(_: &'static Machine) -> Check {
    let old = mrs!("cpacr_el1");
    // ZEN, SMEN and FPEN: EL1 itself does not trap them.
    msr!("cpacr_el1", old | 3 << 16 | 3 << 20 | 3 << 24);
    let lengths = [(RDVL, mrs!("id_aa64pfr0_el1") >> 32 & 0xf), (RDSVL, mrs!("id_aa64pfr1_el1") >> 24 & 0xf)]
        .map(|(instruction, field)| (field != 0).then(|| exec::run_with(instruction, &[(0, 0)])));
    msr!("cpacr_el1", old);
    for outcome in lengths.into_iter().flatten() {
        check!(outcome.trap.is_none(), "a vector extension traps: {:x?}", outcome.trap);
        check!((16..=256).contains(&outcome.after.x[0]), "vectors of {} bytes", outcome.after.x[0]);
    }
    Ok(())
}

fn has_vhe() -> bool {
    mrs!("id_aa64mmfr1_el1") >> 8 & 0xf != 0
}

fn finalise_without_vhe(_: &'static Machine) -> Check {
    if has_vhe() {
        return skip("needs a CPU without FEAT_VHE");
    }
    check_eq!(answer(&[(0, FINALISE_EL2)])?, HVC_STUB_ERR, "FINALISE_EL2");
    check_eq!(mrs!("CurrentEL"), 4, "CurrentEL");
    Ok(())
}

/// A translation table that a case may change.
#[repr(align(4096))]
struct Table([AtomicU64; 512]);
static TABLE: Table = Table([const { AtomicU64::new(0) }; 512]);

/// Changes this CPU's translation table.
fn set_table(ttbr0: u64) {
    msr!("ttbr0_el1", ttbr0);
    // SAFETY: the tables map what the program uses alike; nothing of the old one is used any more.
    unsafe { core::arch::asm!("tlbi vmalle1", "dsb nsh", "isb", options(nostack)) };
}

/// With the stub's page not mapped at its own address the upgrade would never come back, so it is refused.
fn finalise_unmapped(machine: &'static Machine) -> Check {
    if !has_vhe() {
        return skip("needs a CPU with FEAT_VHE");
    }
    let old = mrs!("ttbr0_el1");
    let gigabyte = |address: u64| (address >> 30) as usize;
    let (stub, own) = (gigabyte(stub(machine)?.vectors), gigabyte(hypervisor::vectors()));
    if stub == own {
        return skip("needs the stub and the kernel in different gigabytes");
    }
    let entries = (old & 0xffff_ffff_f000) as *const u64;
    for (index, entry) in TABLE.0.iter().enumerate() {
        // SAFETY: the first table, one page of entries of a gigabyte each, which is mapped and constant.
        entry.store(unsafe { entries.add(index).read_volatile() }, Ordering::Relaxed);
    }
    let elsewhere = TABLE.0[own].load(Ordering::Relaxed);
    for (what, entry) in [("not mapped", 0), ("mapped elsewhere", elsewhere)] {
        TABLE.0[stub].store(entry, Ordering::Relaxed);
        arch::dsb();
        set_table(&raw const TABLE as u64);
        let result = answer(&[(0, FINALISE_EL2)]);
        set_table(old);
        check_eq!(result?, HVC_STUB_ERR, "FINALISE_EL2 with the stub's page {what}");
        check_eq!(mrs!("CurrentEL"), 4, "CurrentEL");
    }
    Ok(())
}

fn finalise_with_vhe(machine: &'static Machine) -> Check {
    if !has_vhe() {
        return skip("needs a CPU with FEAT_VHE");
    }
    if (1..machine.cpus().len()).any(|cpu| machine.release_word(cpu).is_some()) {
        return skip("needs CPUs that can be turned off: there is no way back to EL1");
    }
    fn other(_: &'static Machine) -> Check {
        let before = [
            mrs!("sctlr_el1"),
            mrs!("ttbr0_el1"),
            mrs!("tcr_el1"),
            mrs!("mair_el1"),
            mrs!("vbar_el1"),
            mrs!("tpidr_el1"),
        ];
        let outcome = exec::run_with(exec::hvc(0), &[(0, FINALISE_EL2)]);
        kept(&outcome, &CLOBBERED)?;
        check_eq!(outcome.after.x[0], 0, "FINALISE_EL2");
        check_eq!(mrs!("CurrentEL"), 8, "CurrentEL");
        // The names mean EL2's registers now.
        let after = [
            mrs!("sctlr_el1"),
            mrs!("ttbr0_el1"),
            mrs!("tcr_el1"),
            mrs!("mair_el1"),
            mrs!("vbar_el1"),
            mrs!("tpidr_el1"),
        ];
        check_eq!(after, before, "the translation regime");
        check_eq!(mrs!("hcr_el2"), 0x4_8800_0000, "HCR_EL2");
        check_eq!(mrs!("S3_5_C1_C0_0"), 0x3050_0800, "SCTLR_EL12");
        // Exceptions are taken to EL2 by the kernel's own vectors.
        check!(exec::run_with(0, &[]).trap.is_some(), "an undefined instruction does not trap");
        Ok(())
    }
    (1..machine.cpus().len()).try_for_each(|cpu| on_cpu(machine, cpu, other))
}

/// x0 to x3 after an SMC; everything else must be as before.
fn smc(values: &[(usize, u64)]) -> Check<[u64; 4]> {
    let outcome = exec::run_with(exec::smc(0), values);
    kept(&outcome, &[0, 1, 2, 3])?;
    Ok([outcome.after.x[0], outcome.after.x[1], outcome.after.x[2], outcome.after.x[3]])
}

fn psci(machine: &'static Machine) -> Check {
    check_eq!(smc(&[(0, power::PSCI_VERSION.into())])?, [0x10001, 0, 0, 0], "PSCI_VERSION");
    let on = [(0, power::AFFINITY_INFO.into()), (1, mrs!("mpidr_el1") & 0xff_00ff_ffff), (2, 0)];
    check_eq!(smc(&on)?, [0; 4], "AFFINITY_INFO of this CPU");
    check_eq!(smc(&[(0, power::PSCI_FEATURES.into()), (1, power::CPU_ON.into())])?[0], 0, "PSCI_FEATURES(CPU_ON)");
    check_eq!(smc(&[(0, power::MIGRATE_INFO_TYPE.into())])?[0], 2, "MIGRATE_INFO_TYPE");
    // The 32-bit forms of what takes an address, and what nobody has.
    for id in [0x8400_0001, CPU_ON_32, 0x8400_0004, 0x8400_000e, 0x8400_000c, 0xc400_000c, 0x8400_001f, 0xc400_001f] {
        check_eq!(smc(&[(0, id)])?, [NOT_SUPPORTED, 0, 0, 0], "{id:#x}");
    }
    // The upper half of x0 is no part of the number, the SVE hint is not either.
    check_eq!(smc(&[(0, 0xdead_beef_0000_0000 | u64::from(power::PSCI_VERSION))])?[0], 0x10001, "with an upper half");
    check_eq!(smc(&[(0, CPU_ON_32 | 1 << 16)])?[0], NOT_SUPPORTED, "with the SVE hint");
    for cpu in 0..machine.cpus().len() {
        let is_this = cpu == arch::cpu();
        if is_this || cpu != 0 {
            check_eq!(smp::is_off(machine, cpu), !is_this, "CPU {cpu} is off");
        }
    }
    Ok(())
}

fn psci_cpu_on(machine: &'static Machine) -> Check {
    let this = machine.cpus()[arch::cpu()];
    let on = |target: u64, entry: u64| smc(&[(0, power::CPU_ON.into()), (1, target), (2, entry), (3, 7)]);
    check_eq!(on(this, 0x4020_0000)?, [ALREADY_ON, 0, 0, 0], "this CPU");
    check_eq!(on(this, 0x4020_0000)?, [ALREADY_ON, 0, 0, 0], "this CPU, again");
    for target in
        [0x00ff_ffff, 0xff_00ff_ffff, this | 1 << 24, this | 1 << 31, this | 1 << 40, this | 1 << 63, u64::MAX]
    {
        check_eq!(on(target, 0x4020_0000)?, [INVALID_PARAMETERS, 0, 0, 0], "target {target:#x}");
    }
    for entry in [1, 2, 0x4020_0001, u64::MAX] {
        check_eq!(on(this, entry)?, [INVALID_ADDRESS, 0, 0, 0], "entry {entry:#x}");
    }
    Ok(())
}

/// A standby state: the CPU wakes by the timer and goes on behind the call.
fn psci_suspend(machine: &'static Machine) -> Check {
    use keel_test_kernel::{irq, time::Timer};
    if !machine.has_gicv3 {
        return skip("needs a GICv3 to wake up by");
    }
    irq::enable(Timer::Virtual.intid(), 0);
    Timer::Virtual.arm(1000);
    let after = smc(&[(0, power::CPU_SUSPEND.into()), (1, 0), (2, 0x4020_0000), (3, 0)])?;
    Timer::Virtual.stop();
    check_eq!(after, [0; 4], "CPU_SUSPEND to standby");
    let after = smc(&[(0, power::CPU_SUSPEND.into()), (1, 0), (2, 0x4020_0002), (3, 0)])?;
    check_eq!(after[0], INVALID_ADDRESS, "CPU_SUSPEND with a misaligned entry");
    check_eq!(
        smc(&[(0, power::CPU_SUSPEND.into()), (1, 1 << 20), (2, 0x4020_0000), (3, 0)])?[0],
        INVALID_PARAMETERS,
        "a bad state"
    );
    Ok(())
}

fn smc_registers(_: &'static Machine) -> Check {
    let before = el1_registers();
    for id in [u64::from(power::PSCI_VERSION), 0x8400_001f, CPU_ON_32, u64::from(power::CPU_ON)] {
        smc(&[(0, id)])?;
    }
    for immediate in [1, 0x1234, 0xffff] {
        let outcome = exec::run_with(exec::smc(immediate), &[(0, power::PSCI_VERSION.into())]);
        kept(&outcome, &[0, 1, 2, 3])?;
        check_eq!(outcome.after.x[0], NOT_SUPPORTED, "SMC #{immediate:#x}");
    }
    check_eq!(el1_registers(), before, "EL1's registers");
    Ok(())
}

/// A call that is not PSCI goes to firmware. If that has no such calls at all, it is undefined, as without the stub.
fn smc_unknown(_: &'static Machine) -> Check {
    for id in [0x8000_0000_u64, 0xc600_0000, 0x0000_0002, 0xc200_ffff] {
        let relayed = exec::run_with(exec::smc(0), &[(0, id)]);
        // What firmware says when nobody is in between.
        check_eq!(answer(&[(0, SOFT_RESTART), (1, hypervisor::probe()), (2, 0), (3, 0), (4, 0)])?, 0, "SOFT_RESTART");
        let direct = exec::run_with(exec::smc(0), &[(0, id)]);
        check_eq!(answer(&[(0, RESET_VECTORS)])?, 0, "RESET_VECTORS");
        check_eq!(relayed.after.x, direct.after.x, "x0 to x30 after {id:#x}");
        let [relayed, direct] = [relayed, direct].map(|outcome| outcome.trap.map(|trap| (trap.esr, trap.elr)));
        check_eq!(relayed, direct, "the exception of {id:#x}");
    }
    Ok(())
}

/// Every CPU, many times.
fn cpus_on_and_off(machine: &'static Machine) -> Check {
    fn other(machine: &'static Machine) -> Check {
        check_eq!(mrs!("CurrentEL"), 4, "CurrentEL");
        check_eq!(answer(&[(0, RESET_VECTORS)])?, 0, "RESET_VECTORS");
        // A CPU that is on can ask for CPU 0, which is on too.
        let id = power::CPU_ON.into();
        check_eq!(smc(&[(0, id), (1, machine.cpus()[0]), (2, 0), (3, 0)])?[0], ALREADY_ON, "CPU_ON of CPU 0");
        Ok(())
    }
    (0..20).try_for_each(|_| (1..machine.cpus().len()).try_for_each(|cpu| on_cpu(machine, cpu, other)))
}

/// Rounds of each benchmark.
const ROUNDS: u64 = 1000;

/// Instructions of one round of `$body`, which may use x0 to x18, without the two of the loop around it.
macro_rules! instructions {
    ($($body:literal),+) => {{
        let start = time::now();
        // SAFETY: the bodies make stub calls, which leave x19 and up, sp and all memory alone.
        unsafe {
            core::arch::asm!(
                "2:",
                $($body,)+
                "subs x20, x20, #1",
                "b.ne 2b",
                "isb",
                inout("x20") ROUNDS => _,
                out("x0") _, out("x1") _, out("x2") _, out("x3") _, out("x4") _, out("x5") _, out("x9") _,
                out("x10") _, out("x11") _, out("x12") _,
                options(nostack)
            )
        };
        (time::now() - start + ROUNDS / 2) / ROUNDS - 2
    }};
}

/// What the calls cost, in instructions under icount: from the HVC to the one after it, arguments apart.
pub fn bench(machine: &'static Machine) {
    let Some(stub) = machine.stub else { return println!("bench: no stub") };
    let call = instructions!("mov x0, #2", "hvc #0") - 1;
    println!("bench stub_call {call} insn");
    let unknown = instructions!("mov x0, #5", "hvc #0") - 1;
    println!("bench stub_unknown {unknown} insn");
    let smc = instructions!("mov w0, #0x84000000", "smc #0") - 1;
    println!("bench stub_smc {smc} insn");
    let empty = once(hypervisor::LOOK, 0);
    let [install, start, back, again] = [
        (SET_VECTORS, hypervisor::vectors()),
        (hypervisor::START, stub.vectors),
        (RESET_VECTORS, 0), // the hypervisor's
        (RESET_VECTORS, 0), // the stub's: the relay again
    ]
    .map(|(number, argument)| once(number, argument));
    // What an unknown call costs is known from the loop above, and so what the clock adds to each of these.
    let clock = empty - unknown;
    println!("bench install {} insn", install + start - 2 * clock);
    println!("bench teardown {} insn", back + again - 2 * clock);
}

/// Instructions of one stub call, the clock's own included.
fn once(number: u64, argument: u64) -> u64 {
    let (before, after): (u64, u64);
    // SAFETY: as above.
    unsafe {
        core::arch::asm!(
            "isb",
            "mrs x10, cntvct_el0",
            "hvc #0",
            "isb",
            "mrs x11, cntvct_el0",
            inout("x0") number => _, inout("x1") argument => _,
            out("x2") _, out("x3") _, out("x4") _, out("x5") _, out("x9") _,
            out("x10") before, out("x11") after, out("x12") _,
            options(nostack)
        )
    };
    after - before
}

/// Takes an exception at EL2 on another CPU if there is one, which the stub reports.
pub fn crash(machine: &'static Machine) {
    fn other(_: usize) {
        exec::run_with(exec::hvc(0), &[(0, SOFT_RESTART), (1, hypervisor::undefined()), (2, 0), (3, 0), (4, 0)]);
    }
    println!("crash: undefined instruction at {:#x}", hypervisor::undefined());
    match machine.cpus().len() {
        1 => other(0),
        _ => drop(smp::start(machine, 1, other, 0)),
    }
    time::delay(300_000);
    println!("crash: this CPU goes on");
}
