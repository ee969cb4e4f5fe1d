//! Hosts with a GICv2: Debian's kernels and hostile guests on their vGICv2, several machines, and what is refused there.
//!
//! The test kernel's cases on a GICv2 are among `kernel`, KVM's answers among `oracle`.

use keel_qemu::initramfs;
use keel_qemu::machine::Gic;
use keel_qemu::qemu::{self, Board, Event, Session};
use keel_qemu::verdict::Verdict;
use keel_qemu::vms::VmSpec;
use libtest_mimic::{Failed, Trial};

use crate::trial::test;
use crate::{LIMIT, Outcome, board, debian, expect, failure, kernel, run_well};

/// A board with a GICv2 that runs keel with a bundle of `vms`.
fn gicv2(name: &str, vms: &[VmSpec], cpu: &str, smp: u32) -> Result<Board, Failed> {
    let mut board = board(&format!("gicv2-{name}"), vms)?;
    (board.gic, board.cpu, board.smp) = (Gic::V2, cpu.into(), smp);
    Ok(board)
}

fn debian_boots(folder: &'static str, cpu: &str, smp: u32, cpus: u32) -> Outcome {
    let vm = debian::vm(folder, "keel.test=1", cpus);
    let console = run_well(&gicv2(&format!("{folder}-{cpus}"), &[vm], cpu, smp)?)?;
    debian::judge(&console, folder, cpus, &[debian::HOST_IS_BUSY])
}

/// Each machine's lines, without its name.
fn lines_of(console: &str, name: &str) -> String {
    let prefix = format!("[{name}] ");
    let lines: Vec<_> = console.lines().filter_map(|line| line.trim().strip_prefix(&prefix)).collect();
    lines.join("\n")
}

fn two_machines() -> Outcome {
    let (mut first, mut second) = (debian::vm("linux-6.12", "keel.test=1", 2), kernel::vm("hyp=keel only=gic", 2)?);
    (first.name, second.name) = ("first".into(), "second".into());
    let console = run_well(&gicv2("two", &[first, second], "cortex-a72", 2)?)?;
    debian::judge(&lines_of(&console, "first"), "linux-6.12", 2, &[debian::HOST_IS_BUSY])?;
    kernel::judge(&lines_of(&console, "second"))
}

/// The UART's interrupt comes through the physical distributor, and to the guest through the virtual one.
fn a_shell_reads() -> Outcome {
    let board = gicv2("shell", &[debian::vm("linux-6.12", "quiet", 2)], "cortex-a72", 2)?;
    let mut session = Session::start(&board, LIMIT)?;
    for (typed, answer) in [("", initramfs::SHELL), ("echo answer=$((6*7))\n", "answer=42")] {
        let seen = session.send(typed).is_ok() && session.wait_for(answer) == Event::Seen;
        if !seen {
            return Err(format!("no `{answer}`: {}\n{}", session.command(), session.output()).into());
        }
    }
    session.send("poweroff -f\n")?;
    let ending = session.finish();
    if ending.verdict == Verdict::Well { Ok(()) } else { Err(failure(&ending, &ending.verdict.to_string())) }
}

/// What cannot be there is refused by name, and the other machine runs.
fn refusals() -> Outcome {
    let mut many = kernel::vm("hyp=keel only=smccc", 9)?;
    many.name = "many".into();
    let mut root = kernel::vm("hyp=root", 1)?;
    (root.name, root.root) = ("owner".into(), true);
    let mut good = kernel::vm("hyp=keel only=smccc", 2)?;
    good.name = "good".into();
    let ending = qemu::run_to_end(&gicv2("refusals", &[many, root, good], "cortex-a72", 2)?, LIMIT)?;
    expect(&ending.output, "keel,cpus asks for 9, but this machine has a GICv2, with which a VM has at most 8")?;
    expect(&ending.output, "keel,root: this machine has a GICv2, and only one with a GICv3 can be given to a VM")?;
    kernel::judge(&lines_of(&ending.output, "good"))
}

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (folder, cpu, smp, cpus) in [
        ("linux-6.12", "cortex-a72", 1, 1),
        ("linux-6.12", "cortex-a72", 4, 4),
        ("linux-6.12", "cortex-a53", 1, 2), // more vCPUs than CPUs
        ("linux-6.12", "max", 2, 2),
        ("linux-6.1", "cortex-a72", 2, 2),
    ] {
        let name = format!("gicv2::{folder}_{cpu}_{cpus}_vcpus_on_{smp}");
        trials.push(debian::trial(name, folder, move || debian_boots(folder, cpu, smp, cpus)));
    }
    trials.push(debian::trial("gicv2::two_machines_on_two_cpus".into(), "linux-6.12", two_machines));
    trials.push(debian::trial("gicv2::a_shell_reads_what_is_typed".into(), "linux-6.12", a_shell_reads));
    trials.push(test("gicv2::refusals", refusals));
    for (seed, cpu) in [(1, "max"), (2, "cortex-a72")] {
        trials.push(test(format!("gicv2::hostile_guest_seed_{seed}_{cpu}"), move || {
            let vm = kernel::vm(&format!("hyp=keel fuzz={seed},20000"), 2)?;
            expect(&run_well(&gicv2(&format!("fuzz-{seed}"), &[vm], cpu, 2)?)?, "fuzz: done")
        }));
    }
    trials
}
