//! The test kernel: under keel on several boards, and on QEMU alone.
//!
//! QEMU alone is the check of the checks: a case that fails there expects something no hardware does.

use keel_qemu::machine::Gic;
use keel_qemu::qemu::{Board, Event, Session, run_to_end};
use keel_qemu::vms::{MemorySize, VmSpec};
use libtest_mimic::Trial;

use crate::trial::test;
use crate::{LIMIT, Outcome, board, failure, guests, run_well};

/// Judges a transcript of the test kernel: its summary must be there and name no failure.
pub fn judge(console: &str) -> Outcome {
    let failed: Vec<_> = console.lines().filter(|line| line.contains("test ") && line.contains("FAILED")).collect();
    let summary = console.lines().rev().find_map(|line| {
        let mut words = line.trim().rsplit(", ");
        let skipped = words.next()?.strip_suffix(" skipped")?.parse::<u32>().ok()?;
        let failed = words.next()?.strip_suffix(" failed")?.parse::<u32>().ok()?;
        let passed = words.next()?.rsplit(' ').nth(1)?.parse::<u32>().ok()?;
        Some((passed, failed, skipped))
    });
    match summary {
        None => Err(format!("the test kernel printed no summary:\n{console}").into()),
        Some((passed, 0, _)) if passed > 0 && failed.is_empty() => Ok(()),
        Some(_) => Err(format!("{}\n\n{console}", failed.join("\n")).into()),
    }
}

pub fn vm(bootargs: &str, cpus: u32) -> Result<VmSpec, libtest_mimic::Failed> {
    let mut vm = VmSpec::new("tests", &guests()?.test_kernel);
    vm.bootargs = bootargs.into();
    vm.cpus = cpus;
    vm.memory = MemorySize(128 << 20);
    Ok(vm)
}

/// All cases under keel.
fn under_keel(gic: Gic, cpu: &str, smp: u32, cpus: u32) -> Outcome {
    let mut board = board(&format!("kernel-{cpus}"), &[vm("hyp=keel", cpus)?])?;
    (board.gic, board.cpu, board.smp) = (gic, cpu.into(), smp);
    judge(&run_well(&board)?)
}

/// All cases under keel with every register trapped that both groups of the GICv3's CPU interface share, as keel has to
/// have it at times on CPUs that cannot trap ICC_DIR_EL1 alone. QEMU's can.
fn with_common_trap(cpu: &str, smp: u32, cpus: u32) -> Outcome {
    let mut vm = vm("hyp=keel", cpus)?;
    vm.features = vec!["test-common-trap".into()];
    let mut board = board(&format!("common-trap-{cpu}-{cpus}-{smp}"), &[vm])?;
    (board.cpu, board.smp) = (cpu.into(), smp);
    let console = run_well(&board)?;
    crate::expect(&console, "test gic/split_eoi_of_20 ... ok")?;
    judge(&console)
}

/// A machine with an ITS, for its cases.
pub fn its_vm(bootargs: &str, cpus: u32) -> Result<VmSpec, libtest_mimic::Failed> {
    let mut vm = vm(&format!("{bootargs} only=its/"), cpus)?;
    vm.features = vec!["its".into()];
    Ok(vm)
}

/// The cases of the ITS under keel.
fn its_under_keel(cpu: &str, smp: u32, cpus: u32) -> Outcome {
    let mut board = board(&format!("its-{cpu}-{cpus}-{smp}"), &[its_vm("hyp=keel", cpus)?])?;
    (board.cpu, board.smp) = (cpu.into(), smp);
    let console = run_well(&board)?;
    judge(&console)?;
    crate::expect(&console, if cpus > 1 { ", 0 skipped" } else { "test its/interrupt ... ok" })
}

/// All cases on QEMU alone, entered at EL1.
fn alone(gic: Gic, cpu: &str, smp: u32) -> Outcome {
    let mut board = Board::virt(&guests()?.test_kernel);
    board.el2 = false;
    (board.gic, board.cpu, board.smp) = (gic, cpu.into(), smp);
    board.ram = MemorySize(128 << 20);
    board.append = "hyp=none".into();
    let ending = run_to_end(&board, LIMIT)?;
    judge(&ending.output).map_err(|error| failure(&ending, error.message().unwrap_or("failed")))
}

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (cpu, smp, cpus) in [
        ("max", 4, 4),
        ("max", 1, 1),
        ("max", 2, 4), // more vCPUs than CPUs
        ("max", 8, 8),
        ("cortex-a57", 2, 2),
        ("cortex-a72", 4, 4),
        ("cortex-a53", 2, 2),
        ("neoverse-n1", 4, 4),
    ] {
        let title = format!("kernel::keel_{cpu}_{cpus}_vcpus_on_{smp}");
        trials.push(test(title, move || under_keel(Gic::V3, cpu, smp, cpus)));
    }
    for (cpu, smp, cpus) in [
        ("cortex-a72", 1, 1),
        ("cortex-a72", 2, 2),
        ("cortex-a72", 4, 4),
        ("cortex-a72", 2, 4),
        ("cortex-a57", 4, 4),
        ("max", 4, 4),
        ("max", 8, 8),
    ] {
        let title = format!("kernel::keel_gicv2_{cpu}_{cpus}_vcpus_on_{smp}");
        trials.push(test(title, move || under_keel(Gic::V2, cpu, smp, cpus)));
    }
    for (cpu, smp, cpus) in [("max", 4, 4), ("max", 1, 2), ("cortex-a72", 2, 2)] {
        let title = format!("kernel::common_trap_{cpu}_{cpus}_vcpus_on_{smp}");
        trials.push(test(title, move || with_common_trap(cpu, smp, cpus)));
    }
    for (gic, name, cpu, smp) in [
        (Gic::V3, "alone", "max", 4),
        (Gic::V3, "alone", "cortex-a72", 2),
        (Gic::V2, "alone_gicv2", "max", 4),
        (Gic::V2, "alone_gicv2", "cortex-a72", 2),
    ] {
        trials.push(test(format!("kernel::{name}_{cpu}_{smp}_cpus"), move || alone(gic, cpu, smp)));
    }
    for (cpu, smp, cpus) in [
        ("max", 1, 1),
        ("max", 2, 2),
        ("max", 4, 4),
        ("max", 2, 4), // more vCPUs than CPUs
        ("max", 1, 2),
        ("cortex-a72", 2, 2),
        ("neoverse-n1", 4, 4),
    ] {
        let title = format!("kernel::its_{cpu}_{cpus}_vcpus_on_{smp}");
        trials.push(test(title, move || its_under_keel(cpu, smp, cpus)));
    }
    trials.push(test("kernel::its_two_at_once", || {
        let (mut first, mut second) = (its_vm("hyp=keel", 2)?, its_vm("hyp=keel", 2)?);
        (first.name, second.name) = ("first".into(), "second".into());
        let mut board = board("two-its", &[first, second])?;
        board.smp = 2;
        let console = run_well(&board)?;
        for name in ["[first] ", "[second] "] {
            let lines: Vec<_> = console.lines().filter_map(|line| line.trim().strip_prefix(name)).collect();
            judge(&lines.join("\n"))?;
        }
        Ok(())
    }));
    trials.push(test("kernel::two_at_once", || {
        let (mut first, mut second) = (vm("hyp=keel only=psci", 2)?, vm("hyp=keel only=smccc", 2)?);
        (first.name, second.name) = ("first".into(), "second".into());
        let console = run_well(&board("two-kernels", &[first, second])?)?;
        for name in ["[first] ", "[second] "] {
            let lines: Vec<_> = console.lines().filter_map(|line| line.trim().strip_prefix(name)).collect();
            judge(&lines.join("\n"))?;
        }
        Ok(())
    }));
    trials.push(test("kernel::system_reset_restarts_from_the_image", || {
        let mut session = Session::start(&board("reset", &[vm("reset", 1)?])?, LIMIT)?;
        for boot in 1..=3 {
            if session.wait_for("reset: boot") != Event::Seen {
                return Err(format!("boot {boot} did not come: {}\n{}", session.command(), session.output()).into());
            }
        }
        Ok(())
    }));
    trials.push(test("kernel::protected_guest", || {
        let mut vm = vm("hyp=keel protected only=/", 2)?;
        vm.features = vec!["protected-memory".into()];
        judge(&run_well(&board("protected", &[vm])?)?)
    }));
    for (cpu, smp, cpus) in
        [("max", 2, 2), ("max", 1, 3), ("neoverse-n1", 2, 2), ("cortex-a72", 2, 2), ("cortex-a57", 1, 2)]
    {
        trials.push(test(format!("kernel::errors_{cpu}_{cpus}_vcpus_on_{smp}"), move || {
            let mut vm = vm("hyp=keel injection only=serror/", cpus)?;
            vm.features = vec!["test-injection".into()];
            let mut board = board(&format!("errors-{cpu}-{cpus}"), &[vm])?;
            (board.cpu, board.smp) = (cpu.into(), smp);
            judge(&run_well(&board)?)
        }));
    }
    trials.push(test("kernel::no_entropy", || {
        let vm = vm("hyp=keel no-entropy only=trng/no_entropy", 1)?;
        let mut board = board("no-entropy", &[vm])?;
        // No FEAT_RNG, no TRNG in QEMU's firmware calls, and no rng-seed in the tree.
        board.cpu = "cortex-a72".into();
        board.extra = ["-machine", "dtb-randomness=off"].map(Into::into).into();
        let console = run_well(&board)?;
        crate::expect(&console, "1 passed, 0 failed, 0 skipped")
    }));
    for (seed, smp) in [(1, 4), (2, 2)] {
        trials.push(test(format!("kernel::calls_answer_as_the_model_seed_{seed}_on_{smp}"), move || {
            let mut board = board(&format!("calls-{seed}"), &[vm(&format!("hyp=keel calls={seed},25000"), 4)?])?;
            board.smp = smp;
            let console = run_well(&board)?;
            crate::expect(&console, "calls: 0 of 100000 answers wrong")?;
            crate::expect(&console, "calls: done 100000")?;
            judge(&console)
        }));
    }
    for seed in [1, 2, 3] {
        trials.push(test(format!("kernel::hostile_guest_seed_{seed}"), move || {
            let console =
                run_well(&board(&format!("fuzz-{seed}"), &[vm(&format!("hyp=keel fuzz={seed},20000"), 2)?])?)?;
            crate::expect(&console, "fuzz: done")
        }));
    }
    trials
}
