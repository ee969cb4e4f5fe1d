//! Guests whose EL1 is AArch32: a test kernel of their own, and Debian's armhf kernel.
//!
//! QEMU alone is the check of the checks here too: the same file runs on a 32-bit CPU.

use keel_qemu::machine::Gic;
use keel_qemu::qemu::{Board, Session, run_to_end};
use keel_qemu::verdict::Verdict;
use keel_qemu::vms::{Hash, MemorySize, VmSpec};
use keel_qemu::{fetch, image, initramfs};
use libtest_mimic::{Completion, Failed, Trial};
use std::path::PathBuf;
use std::sync::OnceLock;

use crate::debian::{HOST_IS_BUSY, judge as judge_report, shell_reads, vm as wide_debian, wait};
use crate::kernel::{judge, vm as wide_vm};
use crate::trial::{ignorable_test, test};
use crate::{LIMIT, Outcome, board, failure, run_well};

/// The kernel, built once; `None` where there is no compiler for it.
fn kernel() -> Result<&'static Option<PathBuf>, Failed> {
    static KERNEL: OnceLock<Result<Option<PathBuf>, String>> = OnceLock::new();
    let built = KERNEL.get_or_init(|| image::build_kernel32().map_err(|error| format!("{error:#}")));
    built.as_ref().map_err(|error| error.into())
}

/// A test that is ignored, with the reason, where there is no C compiler for 32-bit Arm.
fn kernel_trial(name: String, test: impl Fn(PathBuf) -> Outcome + Send + 'static) -> Trial {
    ignorable_test(name, move || match kernel()? {
        None => Ok(Completion::ignored_with(format!("there is no {}; `make test` installs it", image::ARM_COMPILER))),
        Some(kernel) => test(kernel.clone()).map(|()| Completion::Completed),
    })
}

/// A test that is ignored, with the reason, when Debian's kernel is not there.
fn debian_trial(name: String, test: impl Fn() -> Outcome + Send + 'static) -> Trial {
    ignorable_test(name, move || match fetch::missing_armhf() {
        Some(reason) => Ok(Completion::ignored_with(reason)),
        None => test().map(|()| Completion::Completed),
    })
}

fn narrow(mut vm: VmSpec) -> VmSpec {
    vm.features = vec!["aarch32".into()];
    vm
}

fn kernel_vm(kernel: PathBuf, cpus: u32) -> VmSpec {
    let mut vm = narrow(VmSpec::new("narrow", kernel));
    vm.bootargs = "hyp=keel".into();
    vm.cpus = cpus;
    vm.memory = MemorySize(64 << 20);
    vm
}

fn debian_vm(test: &str, cpus: u32) -> VmSpec {
    let mut vm = narrow(VmSpec::new("debian", fetch::kernel_path_armhf()));
    vm.initrd = Some(fetch::initramfs_path_armhf());
    vm.bootargs = format!("console=ttyAMA0 {test}");
    vm.cpus = cpus;
    vm.memory = MemorySize(512 << 20);
    vm.hash = Hash::None;
    vm
}

fn boots(gic: Gic, cpu: &str, cpus: u32) -> Outcome {
    let mut board = board(&format!("armhf-{cpu}-{cpus}"), &[debian_vm("keel.test=1", cpus)])?;
    (board.gic, board.cpu, board.smp) = (gic, cpu.into(), cpus);
    let console = run_well(&board)?;
    judge_report(&console, "linux-6.1", cpus, &[HOST_IS_BUSY])?;
    for line in ["-armmp-lpae armv7l", "All CPU(s) started in SVC mode", "ptp=KVM virtual PTP"] {
        crate::expect(&console, line)?;
    }
    Ok(())
}

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (gic, version, cpu, smp, cpus) in [
        (Gic::V3, 3, "cortex-a53", 2, 2),
        (Gic::V3, 3, "cortex-a72", 2, 2),
        (Gic::V3, 3, "cortex-a57", 1, 1),
        (Gic::V3, 3, "max", 2, 2),
        (Gic::V2, 2, "cortex-a53", 2, 2),
        (Gic::V2, 2, "cortex-a72", 2, 2),
        // More vCPUs than CPUs: everything that a CPU holds of one changes hands.
        (Gic::V3, 3, "cortex-a72", 1, 2),
        (Gic::V2, 2, "cortex-a53", 1, 2),
        (Gic::V3, 3, "max", 1, 2),
    ] {
        let title = format!("aarch32::kernel_gicv{version}_{cpu}_{cpus}_vcpus_on_{smp}");
        trials.push(kernel_trial(title, move |kernel| {
            let mut board = board(&format!("narrow-{version}-{cpu}-{smp}"), &[kernel_vm(kernel, cpus)])?;
            (board.gic, board.cpu, board.smp) = (gic, cpu.into(), smp);
            judge(&run_well(&board)?)
        }));
    }
    for (feature, case) in [("test-common-trap", "gic/sgi"), ("pmu", "pmu/counts")] {
        trials.push(kernel_trial(format!("aarch32::kernel_with_{feature}"), move |kernel| {
            let mut vm = kernel_vm(kernel, 2);
            vm.features.push(feature.into());
            let mut board = board(&format!("narrow-{feature}"), &[vm])?;
            board.cpu = "cortex-a72".into();
            let console = run_well(&board)?;
            judge(&console)?;
            crate::expect(&console, &format!("test {case} ... ok"))
        }));
    }
    for (gic, version) in [(Gic::V2, 2), (Gic::V3, 3)] {
        trials.push(kernel_trial(format!("aarch32::kernel_alone_gicv{version}"), move |kernel| {
            let mut board = Board::virt(kernel);
            board.el2 = false;
            (board.gic, board.cpu, board.smp) = (gic, "cortex-a15".into(), 2);
            board.ram = MemorySize(128 << 20);
            let ending = run_to_end(&board, LIMIT)?;
            judge(&ending.output).map_err(|error| failure(&ending, error.message().unwrap_or("failed")))
        }));
    }
    trials.push(kernel_trial("aarch32::beside_a_64_bit_machine".into(), |kernel| {
        let mut wide = wide_vm("hyp=keel only=sysreg/", 1)?;
        wide.name = "wide".into();
        let mut board = board("narrow-and-wide", &[kernel_vm(kernel, 2), wide])?;
        (board.cpu, board.smp) = ("cortex-a72".into(), 1);
        let console = run_well(&board)?;
        for name in ["[narrow] ", "[wide] "] {
            let lines: Vec<_> = console.lines().filter_map(|line| line.trim().strip_prefix(name)).collect();
            judge(&lines.join("\n"))?;
        }
        Ok(())
    }));
    for (cpu, answer) in [("cortex-a72", "ok"), ("max", "ok"), ("neoverse-n1", "skipped")] {
        trials.push(test(format!("aarch32::made_by_kvm_ioctl_{cpu}"), move || {
            let mut vm = wide_vm("hyp=root only=kvm/aarch32", 1)?;
            (vm.name, vm.root) = ("root".into(), true);
            let mut board = board(&format!("narrow-ioctl-{cpu}"), &[vm])?;
            board.cpu = cpu.into();
            let ending = run_to_end(&board, LIMIT)?;
            crate::expect(&ending.output, &format!("test kvm/aarch32 ... {answer}"))
        }));
    }
    trials.push(test("aarch32::refused_where_el1_is_always_64_bit", || {
        let vm = narrow(wide_vm("", 1)?);
        let mut board = board("narrow-refused", &[vm])?;
        board.cpu = "neoverse-n1".into();
        let ending = run_to_end(&board, LIMIT)?;
        crate::expect(&ending.output, "keel,features asks for \"aarch32\", but EL1 of this machine's CPUs is always")
    }));
    trials.push(test("aarch32::a_64_bit_kernel_is_refused", || {
        let mut board = board("narrow-wide-kernel", &[narrow(wide_vm("", 1)?)])?;
        board.cpu = "cortex-a72".into();
        let ending = run_to_end(&board, LIMIT)?;
        crate::expect(&ending.output, "is an ELF file of another class or byte order; expected an ELF32 executable")
    }));
    for (gic, version, cpu, cpus) in [
        (Gic::V3, 3, "cortex-a53", 2),
        (Gic::V3, 3, "cortex-a72", 1),
        (Gic::V3, 3, "cortex-a72", 4),
        (Gic::V3, 3, "max", 2),
        (Gic::V2, 2, "cortex-a53", 2),
        (Gic::V2, 2, "cortex-a72", 2),
    ] {
        let title = format!("aarch32::debian_gicv{version}_{cpu}_{cpus}_vcpus");
        trials.push(debian_trial(title, move || boots(gic, cpu, cpus)));
    }
    for cpu in ["cortex-a72", "neoverse-n1"] {
        // EL0 can be AArch32 where EL1 is not.
        trials.push(debian_trial(format!("aarch32::programs_under_a_64_bit_kernel_{cpu}"), move || {
            if let Some(reason) = fetch::missing("linux-6.1") {
                return Err(reason.into());
            }
            let mut vm = wide_debian("linux-6.1", "keel.test=1", 2);
            vm.initrd = Some(fetch::initramfs_path_armhf());
            let mut board = board(&format!("programs-{cpu}"), &[vm])?;
            board.cpu = cpu.into();
            judge_report(&run_well(&board)?, "linux-6.1", 2, &[HOST_IS_BUSY])
        }));
    }
    trials.push(debian_trial("aarch32::debian_reboot_comes_up_again".into(), || {
        let mut board = board("armhf-reboot", &[debian_vm("keel.test=reboot", 2)])?;
        board.cpu = "cortex-a72".into();
        let mut session = Session::start(&board, LIMIT)?;
        wait(&mut session, initramfs::INIT)?;
        wait(&mut session, initramfs::INIT)
    }));
    trials.push(debian_trial("aarch32::debian_a_shell_reads_what_is_typed".into(), || {
        let mut board = board("armhf-shell", &[debian_vm("quiet", 2)])?;
        board.cpu = "cortex-a53".into();
        shell_reads(&board, Verdict::Well)
    }));
    trials
}
