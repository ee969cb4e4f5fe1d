//! Debian as a guest of the root's: saved, destroyed and restored while it works, and copied while it runs.
//!
//! The root is the test kernel as a machine monitor, which types at the guest's shell, copies the guest and says what is wrong
//! (tests/kernel/src/vmm). What the guest itself says is judged here too.

use keel_qemu::cpio::Archive;
use keel_qemu::qemu::Board;
use keel_qemu::run::write_bundle;
use keel_qemu::vms::{Hash, MemorySize, VmSpec};
use keel_qemu::{fetch, initramfs, tree};
use libtest_mimic::{Failed, Trial};
use sha2::{Digest, Sha256};

use crate::{Outcome, debian, expect, guests, images, kernel, run_well};

const FOLDER: &str = "linux-6.12";

/// The root, with Debian and the program `work` in its RAM disk.
fn root(script: &str) -> Result<VmSpec, Failed> {
    let mut initramfs = std::fs::read(fetch::initramfs_path())?;
    initramfs.resize(initramfs.len().next_multiple_of(4), 0);
    initramfs.extend(initramfs::program("work", &std::fs::read(&guests()?.work)?));
    let mut archive = Archive::default();
    archive.file("Image", &std::fs::read(fetch::kernel_path(FOLDER))?);
    archive.file("initramfs", &initramfs);
    let file = tree::product("test-monitor.cpio");
    tree::store(&file, &archive.finish())?;
    let mut vm = VmSpec::new("root", &guests()?.test_kernel);
    (vm.root, vm.initrd, vm.hash) = (true, Some(file), Hash::None);
    vm.bootargs = format!("hyp=root monitor={script}");
    vm.memory = MemorySize(512 << 20);
    Ok(vm)
}

/// Runs a script; `done` is how often the guest was copied.
fn monitor(script: &str, cpu: &str, done: &[&str]) -> Outcome {
    let mut board = Board::virt(&images()?.keel);
    board.initrd = Some(write_bundle(&[root(script)?], &tree::product(&format!("test-monitor-{script}-{cpu}.itb")))?);
    (board.cpu, board.smp) = (cpu.into(), 3);
    let console = run_well(&board)?;
    kernel::judge(&console)?;
    for line in done {
        expect(&console, &format!("monitor: {line}"))?;
    }
    // What the guest has computed again and again, computed here.
    let busybox = Sha256::digest(std::fs::read(tree::guest("busybox"))?);
    let sum: String = busybox.iter().map(|byte| format!("{byte:02x}")).collect();
    expect(&console, &format!("debian: {sum}  /bin/busybox"))?;
    let lines = console.lines().filter_map(|line| line.trim_end().strip_prefix("debian: "));
    let warnings =
        lines.skip_while(|line| *line != "WARNINGS-BEGIN").skip(1).take_while(|line| *line != "WARNINGS-END");
    let unknown = |line: &&str| !debian::HOST_IS_BUSY.iter().any(|known| line.contains(known));
    let warnings: Vec<_> = warnings.filter(unknown).collect();
    if !warnings.is_empty() {
        return Err(format!("the guest warns:\n{}\n{console}", warnings.join("\n")).into());
    }
    Ok(())
}

const RESTORED: &[&str] = &[
    "saved and restored while both CPUs sleep",
    "saved and restored while both CPUs work",
    "saved and restored in the middle of output",
    "300 lines of output are whole",
    "saved and restored in the middle of a line",
    "saved and restored before a timer",
];
const MIGRATED: &[&str] = &["migrated with Automatic", "migrated with Manual(1)", "migrated with Manual(3)"];

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (script, done) in [("restore", RESTORED), ("migrate", MIGRATED)] {
        for cpu in ["max", "cortex-a72"] {
            let name = format!("monitor::{script}_{cpu}");
            trials.push(debian::trial(name, FOLDER, move || monitor(script, cpu, done)));
        }
    }
    trials
}
