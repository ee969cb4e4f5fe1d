//! keel installed under a kernel that runs over the stub: it comes and goes, with and without VMs.

use keel_qemu::cpio;
use keel_qemu::tree;
use keel_qemu::vms::MemorySize;
use libtest_mimic::Trial;

use crate::trial::test;
use crate::{Outcome, OwnConsole, expect, failure, fit, images, kernel, stub, text_of};

/// The test kernel over the stub, with keel's image, and perhaps a bundle, in its RAM disk.
fn cases(cpu: &str, smp: u32, beside: bool) -> Outcome {
    let mut archive = cpio::Archive::default();
    archive.file("keel.img", &std::fs::read(&images()?.keel)?);
    let mut words = String::from("hyp=stub late only=late/");
    if beside {
        let mut vm = stub::test_kernel("hyp=keel only=psci")?;
        (vm.name, vm.cpus, vm.memory) = ("other".into(), 2, MemorySize(32 << 20));
        archive.file("vms.itb", &fit::write(&[vm])?);
        words = "hyp=stub late beside only=late/vms console=semihosting".into();
    }
    let name = format!("late-{cpu}-{smp}");
    let file = tree::product(&format!("test-{name}.cpio"));
    tree::store(&file, &archive.finish())?;
    let mut vm = stub::test_kernel(&words)?;
    vm.initrd = Some(file);
    let mut board = stub::board(&name, &[vm])?;
    (board.cpu, board.smp) = (cpu.into(), smp);
    let own = beside.then(|| OwnConsole::semihosting(&mut board, &name));
    let ending = stub::run_off(&board)?;
    let judged = if let Some(own) = own {
        kernel::judge(&text_of("other", &ending.output))
            .and_then(|()| expect(&own.text()?, "test late/vms_beside ... ok"))
    } else {
        kernel::judge(&ending.output)
    };
    judged.map_err(|error| failure(&ending, error.message().unwrap_or("failed")))
}

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (cpu, smp, beside) in [
        ("max", 4, false),
        ("max", 1, false),
        ("cortex-a57", 2, false),
        ("neoverse-n1", 2, false),
        ("cortex-a72", 2, true),
        ("neoverse-n1", 1, true),
    ] {
        let how = if beside { "_beside_a_vm" } else { "" };
        trials.push(test(format!("late::{cpu}_{smp}_cpus{how}"), move || cases(cpu, smp, beside)));
    }
    trials
}
