//! The VM that owns the machine under keel: what it sees, who runs beside it, and what is there when it sends keel away.

use keel_qemu::qemu::{Board, run_to_end};
use keel_qemu::run::write_bundle;
use keel_qemu::tree;
use keel_qemu::verdict::Verdict;
use keel_qemu::vms::{MemorySize, VmSpec};
use libtest_mimic::{Failed, Trial};

use crate::trial::test;
use crate::{LIMIT, Outcome, OwnConsole, debian, expect, failure, guests, images, kernel, run_well, stub, text_of};

/// What Debian's kernel warns of on keel's root, besides what it does on QEMU alone: its tree has no ITS.
const NO_ITS: &[&str] = &["ITS: No ITS available, not enabling LPIs"];

fn board(name: &str, vms: &[VmSpec], cpu: &str, smp: u32) -> Result<Board, Failed> {
    let mut board = Board::virt(&images()?.keel);
    board.initrd = Some(write_bundle(vms, &tree::product(&format!("test-root-{name}-{cpu}-{smp}.itb")))?);
    (board.cpu, board.smp) = (cpu.into(), smp);
    Ok(board)
}

fn root(mut vm: VmSpec) -> VmSpec {
    (vm.name, vm.root, vm.cpus) = ("root".into(), true, 1);
    vm
}

fn test_kernel(name: &str, bootargs: &str) -> Result<VmSpec, Failed> {
    let mut vm = VmSpec::new(name, &guests()?.test_kernel);
    vm.bootargs = bootargs.into();
    vm.memory = MemorySize(128 << 20);
    Ok(vm)
}

/// Runs a board whose owner sends keel away and powers it off.
fn run_off(board: &Board) -> Result<String, Failed> {
    let ending = run_to_end(board, LIMIT)?;
    if ending.verdict != Verdict::PoweredOff {
        return Err(failure(&ending, &ending.verdict.to_string()));
    }
    expect(&ending.output, "owns the machine and takes EL2 back")?;
    Ok(ending.output)
}

/// All cases of the root, of any kernel, and of the stub when keel has left.
fn cases(cpu: &str, smp: u32) -> Outcome {
    kernel::judge(&run_off(&board("cases", &[root(test_kernel("root", "hyp=root")?)], cpu, smp)?)?)
}

/// The same with every register trapped that both groups of the CPU interface share, until keel leaves.
fn cases_with_common_trap(cpu: &str, smp: u32) -> Outcome {
    let mut vm = root(test_kernel("root", "hyp=root")?);
    vm.features = vec!["test-common-trap".into()];
    let console = run_off(&board("common-trap", &[vm], cpu, smp)?)?;
    expect(&console, "test gic/split_eoi_of_20 ... ok")?;
    kernel::judge(&console)
}

fn debian(cpu: &str, smp: u32) -> Outcome {
    let folder = "linux-6.12";
    let vm = root(debian::vm(folder, "keel.test=1", 1));
    let console = run_well(&board("debian", &[vm], cpu, smp)?)?;
    expect(&console, "All CPU(s) started at EL1")?;
    debian::judge(&console, folder, smp, &[debian::QEMU_ALONE, debian::HOST_IS_BUSY, NO_ITS])
}

/// Debian at EL2, by way of the test kernel as root under keel.
fn restart(cpu: &str, smp: u32, words: &str) -> Outcome {
    let vm = root(stub::restart_vm(&format!("hyp=root {words}"))?);
    let mut board = board("restart", &[vm], cpu, smp)?;
    board.ram = MemorySize(2 << 30);
    let ending = run_to_end(&board, LIMIT)?;
    if ending.verdict != Verdict::PoweredOff {
        return Err(failure(&ending, &ending.verdict.to_string()));
    }
    stub::judge_restart_beside(&ending.output, smp, NO_ITS)
        .map_err(|error| failure(&ending, error.message().unwrap_or("failed")))
}

/// The owner stays where another VM is, and both get their share of the CPUs.
fn beside(smp: u32) -> Outcome {
    let owner = root(test_kernel("root", "hyp=root beside only=t console=semihosting")?);
    let mut other = test_kernel("other", "hyp=keel")?;
    other.cpus = 2;
    let mut board = board("beside", &[owner, other], "max", smp)?;
    let own = OwnConsole::semihosting(&mut board, "root-beside");
    let console = run_well(&board)?;
    kernel::judge(&text_of("other", &console))?;
    let owner = own.text()?;
    kernel::judge(&owner)?;
    expect(&owner, "test root/refused_beside_others ... ok")
}

/// A root that calls KVM's API at random, on every CPU, beside a VM that must not notice.
fn hostile(seed: u64, cpu: &str) -> Outcome {
    let arguments = format!("hyp=root fuzz-api={seed},100000 console=semihosting");
    let owner = root(test_kernel("root", &arguments)?);
    let mut other = test_kernel("other", "hyp=keel only=t")?;
    other.cpus = 2;
    let mut board = board(&format!("hostile-{seed}"), &[owner, other], cpu, 4)?;
    let own = OwnConsole::semihosting(&mut board, &format!("root-hostile-{seed}"));
    let console = run_well(&board)?;
    kernel::judge(&text_of("other", &console))?;
    kernel::judge(&own.text()?)
}

/// Two Debians, one of which owns the machine, on the same CPUs.
fn two_debians() -> Outcome {
    let folder = "linux-6.12";
    let mut owner = root(debian::vm(folder, "keel.test=1", 1));
    owner.bootargs = "console=ttyS0 keel.test=1".into();
    let mut other = debian::vm(folder, "keel.test=1", 2);
    other.name = "other".into();
    let mut board = board("two", &[owner, other], "max", 2)?;
    let own = OwnConsole::pci(&mut board, "root-two");
    let console = run_well(&board)?;
    debian::judge(&text_of("other", &console), folder, 2, &[debian::HOST_IS_BUSY])?;
    debian::judge(&own.text()?, folder, 2, &[debian::QEMU_ALONE, debian::HOST_IS_BUSY, NO_ITS])
}

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (cpu, smp) in [("max", 4), ("max", 1), ("cortex-a57", 2), ("cortex-a72", 4), ("neoverse-n1", 4)] {
        trials.push(test(format!("root::cases_{cpu}_{smp}_cpus"), move || cases(cpu, smp)));
    }
    for (cpu, smp) in [("max", 4), ("cortex-a72", 2)] {
        let title = format!("root::common_trap_{cpu}_{smp}_cpus");
        trials.push(test(title, move || cases_with_common_trap(cpu, smp)));
    }
    for (cpu, smp) in [("max", 4), ("cortex-a72", 2)] {
        let title = format!("root::debian_{cpu}_{smp}_cpus");
        trials.push(debian::trial(title, "linux-6.12", move || debian(cpu, smp)));
    }
    for (cpu, smp, words) in [("max", 4, "started"), ("neoverse-n1", 4, ""), ("cortex-a72", 2, "started")] {
        let title = format!("root::restart_{cpu}_{smp}_cpus");
        trials.push(debian::trial(title, stub::RESTARTED, move || restart(cpu, smp, words)));
    }
    trials.push(test("root::stays_beside_another_vm", || beside(2)));
    for (seed, cpu) in [(1, "max"), (2, "cortex-a72")] {
        trials.push(test(format!("root::hostile_api_seed_{seed}_{cpu}"), move || hostile(seed, cpu)));
    }
    trials.push(debian::trial("root::debian_beside_debian".into(), "linux-6.12", two_debians));
    trials.push(test("root::there_is_one", || {
        let mut second = root(test_kernel("second", "hyp=root only=root/numbers")?);
        second.name = "second".into();
        let first = root(test_kernel("root", "hyp=root only=root/numbers")?);
        let ending = run_to_end(&board("second", &[first, second], "max", 1)?, LIMIT)?;
        expect(&ending.output, "VM second is not started: another VM owns the machine")?;
        kernel::judge(&ending.output)
    }));
    trials
}
