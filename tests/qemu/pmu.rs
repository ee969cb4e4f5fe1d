//! The PMU: the test kernel's cases with one, two guests that share a CPU, and Debian counting itself.

use keel_qemu::fetch;
use keel_qemu::initramfs;
use keel_qemu::qemu::{Board, run_to_end};
use keel_qemu::tree;
use keel_qemu::vms::VmSpec;
use libtest_mimic::Trial;

use crate::trial::test;
use crate::{LIMIT, Outcome, board, debian, failure, guests, kernel, run_well};

const PREFIXES: [&str; 2] = ["[first] ", "[second] "];

fn with_pmu(mut vm: VmSpec) -> VmSpec {
    vm.features = vec!["pmu".into()];
    vm
}

/// The lines of one of several machines.
fn lines_of(console: &str, prefix: &str) -> String {
    console.lines().filter_map(|line| line.trim().strip_prefix(prefix)).collect::<Vec<_>>().join("\n")
}

/// A machine twice, on CPU 0 both; `change` makes them differ.
fn pair(vm: &VmSpec, change: impl Fn(usize, &mut VmSpec)) -> [VmSpec; 2] {
    ["first", "second"].map(|name| {
        let mut vm = vm.clone();
        vm.name = name.into();
        vm.cpu_affinity = vec![0; vm.cpus as usize];
        change(usize::from(name == "second"), &mut vm);
        vm
    })
}

/// The cases of the PMU, with vCPUs and CPUs of these numbers.
fn cases(cpu: &str, smp: u32, cpus: u32, icount: bool) -> Outcome {
    let vm = with_pmu(kernel::vm("hyp=keel only=pmu/", cpus)?);
    let mut board = board(&format!("pmu-{cpu}-{smp}-{cpus}-{icount}"), &[vm])?;
    (board.cpu, board.smp, board.icount) = (cpu.into(), smp, icount);
    kernel::judge(&run_well(&board)?)
}

/// The same on QEMU alone, where time is instructions.
fn cases_alone(cpu: &str) -> Outcome {
    let mut board = Board::virt(&guests()?.test_kernel);
    (board.el2, board.cpu, board.smp, board.icount) = (false, cpu.into(), 2, true);
    board.append = "hyp=none only=pmu/".into();
    let ending = run_to_end(&board, LIMIT)?;
    kernel::judge(&ending.output).map_err(|error| failure(&ending, error.message().unwrap_or("failed")))
}

/// Two guests on one CPU, each with its own counts, exact to the instruction.
fn two_on_one_cpu(cpu: &str) -> Outcome {
    let vms = pair(&with_pmu(kernel::vm("hyp=keel only=pmu/", 1)?), |_, _| {});
    let mut board = board(&format!("pmu-two-{cpu}"), &vms)?;
    (board.cpu, board.smp, board.icount) = (cpu.into(), 1, true);
    let console = run_well(&board)?;
    for prefix in PREFIXES {
        let lines = lines_of(&console, prefix);
        kernel::judge(&lines)?;
        // Where the line of a case was interrupted by the other guest's, its verdict is still not "skipped".
        if lines.lines().any(|line| line.contains("pmu/exact") && line.contains("skipped")) {
            return Err(format!("nothing was counted exactly\n{console}").into());
        }
    }
    Ok(())
}

/// Two guests that hand one CPU to each other ten thousand times: no register of one is ever seen by the other.
fn nothing_mixes(cpu: &str) -> Outcome {
    let vms = pair(&with_pmu(kernel::vm("", 1)?), |n, vm| {
        vm.bootargs = format!("hyp=keel only=switch/ seed={} rounds=10000", n + 1);
    });
    let mut board = board(&format!("mix-{cpu}"), &vms)?;
    (board.cpu, board.smp) = (cpu.into(), 1);
    let console = run_well(&board)?;
    PREFIXES.iter().try_for_each(|prefix| kernel::judge(&lines_of(&console, prefix)))
}

/// Debian's kernel with the program that counts itself as its first.
fn debian_vm(cpus: u32) -> Result<VmSpec, libtest_mimic::Failed> {
    let program = std::fs::read(&guests()?.perf_count)?;
    let mut archive = std::fs::read(fetch::initramfs_path())?;
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(initramfs::program("perf-count", &program));
    let path = tree::product("test-perf.cpio");
    tree::store(&path, &archive)?;
    let mut vm = with_pmu(debian::vm("linux-6.12", "quiet rdinit=/bin/perf-count", cpus));
    vm.initrd = Some(path);
    Ok(vm)
}

/// What the program printed: every count that there must be, and samples taken by interrupts.
fn judge_perf(console: &str, has_instructions: bool) -> Outcome {
    let fault = |what: &str| Err(format!("{what}\n{console}").into());
    let values = |name: &str| -> Vec<Option<u64>> {
        let start = format!("perf {name}=");
        console.lines().filter_map(|line| line.trim().strip_prefix(&start)).map(|value| value.parse().ok()).collect()
    };
    let (cycles, instructions) = (values("cycles"), values("instructions"));
    if cycles.len() != 4 || cycles.iter().any(|count| count.is_none_or(|count| count == 0)) {
        return fault("cycles were not counted four times");
    }
    // 20 million rounds of two instructions, and the way from and to the system calls.
    let is_right = |count: &Option<u64>| match count {
        Some(count) => has_instructions && (40_000_000..40_010_000).contains(count),
        None => !has_instructions,
    };
    if instructions.len() != 4 || !instructions.iter().all(is_right) {
        return fault("instructions were not counted as expected");
    }
    let samples = console.lines().find_map(|line| line.trim().strip_prefix("perf samples=")?.strip_suffix(" bytes"));
    if samples.and_then(|bytes| bytes.parse::<u64>().ok()).is_none_or(|bytes| bytes == 0) {
        return fault("there are no samples");
    }
    let interrupts = console.lines().find_map(|line| line.split_once("perf interrupts ")).map(|(_, line)| line);
    let taken = |line: &str| line.split_whitespace().skip(1).map_while(|word| word.parse::<u64>().ok()).sum::<u64>();
    if interrupts.is_none_or(|line| taken(line) == 0) {
        return fault("/proc/interrupts has no interrupt of the PMU");
    }
    crate::expect(console, "perf done")
}

fn perf(cpu: &str, smp: u32, cpus: u32, icount: bool) -> Outcome {
    let mut board = board(&format!("perf-{cpu}-{smp}-{cpus}"), &[debian_vm(cpus)?])?;
    (board.cpu, board.smp, board.icount) = (cpu.into(), smp, icount);
    judge_perf(&run_well(&board)?, icount)
}

fn two_debians_count() -> Outcome {
    let vms = pair(&debian_vm(1)?, |_, _| {});
    let mut board = board("perf-two", &vms)?;
    (board.smp, board.icount) = (1, true);
    let console = run_well(&board)?;
    PREFIXES.iter().try_for_each(|prefix| judge_perf(&lines_of(&console, prefix), true))
}

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (cpu, smp, cpus, icount) in [
        ("max", 2, 2, true),
        ("max", 1, 3, false), // more vCPUs than CPUs
        ("neoverse-n1", 2, 2, true),
        ("cortex-a72", 2, 2, true),
        ("cortex-a57", 2, 2, false),
    ] {
        let title = format!("pmu::{cpu}_{cpus}_vcpus_on_{smp}{}", if icount { "_by_instructions" } else { "" });
        trials.push(test(title, move || cases(cpu, smp, cpus, icount)));
    }
    trials.push(test("pmu::alone", || cases_alone("max")));
    for cpu in ["max", "neoverse-n1", "cortex-a72"] {
        trials.push(test(format!("pmu::two_guests_of_one_cpu_count_exactly_{cpu}"), move || two_on_one_cpu(cpu)));
        trials.push(test(format!("pmu::nothing_mixes_{cpu}"), move || nothing_mixes(cpu)));
    }
    let folder = "linux-6.12";
    for (cpu, smp, cpus, icount) in [("max", 2, 2, false), ("max", 1, 1, true), ("cortex-a72", 2, 2, false)] {
        let title = format!("pmu::debian_{cpu}_{cpus}_vcpus{}", if icount { "_by_instructions" } else { "" });
        trials.push(debian::trial(title, folder, move || perf(cpu, smp, cpus, icount)));
    }
    trials.push(debian::trial("pmu::two_debians_of_one_cpu".into(), folder, two_debians_count));
    trials
}
