//! The stub image: payloads that own the machine, and what is under them.

use keel_qemu::machine::Gic;
use keel_qemu::qemu::{Board, Ending, run_to_end};
use keel_qemu::run::write_bundle;
use keel_qemu::verdict::Verdict;
use keel_qemu::vms::{Hash, MemorySize, VmSpec};
use keel_qemu::{cpio, fetch, fit, tree};
use libtest_mimic::{Failed, Trial};

use crate::trial::test;
use crate::{LIMIT, Outcome, debian, expect, failure, guests, images, kernel};

/// A board that runs the stub with `vms`, of which one is the payload.
pub fn board(name: &str, vms: &[VmSpec]) -> Result<Board, Failed> {
    let mut board = Board::virt(&images()?.stub);
    board.stub = true;
    if !vms.is_empty() {
        board.initrd = Some(write_bundle(vms, &tree::product(&format!("test-stub-{name}.itb")))?);
    }
    Ok(board)
}

/// Runs a board until its payload powers it off.
pub fn run_off(board: &Board) -> Result<Ending, Failed> {
    let ending = run_to_end(board, LIMIT)?;
    if ending.verdict != Verdict::PoweredOff {
        return Err(failure(&ending, &ending.verdict.to_string()));
    }
    Ok(ending)
}

pub fn test_kernel(bootargs: &str) -> Result<VmSpec, Failed> {
    let mut vm = VmSpec::new("tests", &guests()?.test_kernel);
    vm.bootargs = bootargs.into();
    Ok(vm)
}

/// All cases of the stub.
fn cases(gic: Gic, cpu: &str, smp: u32, ram: u64) -> Outcome {
    let mut board = board(&format!("{cpu}-{}-{smp}", gic.number()), &[test_kernel("hyp=stub")?])?;
    (board.gic, board.cpu, board.smp, board.ram) = (gic, cpu.into(), smp, MemorySize(ram));
    let ending = run_off(&board)?;
    kernel::judge(&ending.output).map_err(|error| failure(&ending, error.message().unwrap_or("failed")))
}

/// Runs a board whose stub must refuse its payload, and say so.
fn refuses(name: &str, bundle: &[u8], texts: &[&str]) -> Outcome {
    let file = tree::product(&format!("test-stub-bad-{name}.itb"));
    tree::store(&file, bundle)?;
    let mut board = board(name, &[])?;
    board.initrd = Some(file);
    // It stops, and the machine with it: there is no end to wait for.
    let mut session = keel_qemu::qemu::Session::start(&board, LIMIT)?;
    if session.wait_for("keel: stopped") != keel_qemu::qemu::Event::Seen {
        return Err(format!("the stub did not stop:\n{}", session.output()).into());
    }
    texts.iter().try_for_each(|text| expect(&session.output(), text))
}

/// Debian on the bare machine, but for the stub.
fn debian(cpu: &'static str, gic: Gic) -> Outcome {
    let folder = "linux-6.12";
    let mut board = board(&format!("debian-{cpu}"), &[debian::vm(folder, "keel.test=1", 1)])?;
    (board.cpu, board.gic, board.smp) = (cpu.into(), gic, 4);
    let ending = run_off(&board)?;
    expect(&ending.output, "All CPU(s) started at EL1")?;
    debian::judge(&ending.output, folder, 4, &[debian::QEMU_ALONE, debian::HOST_IS_BUSY])
}

/// The Debian kernel that is restarted into.
pub const RESTARTED: &str = "linux-6.12";

/// The test kernel, which leaves for Debian's at EL2 by HVC_SOFT_RESTART; both get `words` as boot arguments. It is the
/// payload of the stub, or the root VM of keel: it knows what its tree says.
pub fn restart_vm(words: &str) -> Result<VmSpec, Failed> {
    let mut archive = cpio::Archive::default();
    archive.file("Image", &std::fs::read(fetch::kernel_path(RESTARTED))?);
    archive.file("initramfs", &std::fs::read(fetch::initramfs_path())?);
    let file = tree::product("test-restart.cpio");
    tree::store(&file, &archive.finish())?;
    let mut vm = test_kernel(&format!("{words} restart console=ttyAMA0 keel.test=1"))?;
    (vm.initrd, vm.hash) = (Some(file), Hash::None);
    vm.memory = MemorySize(512 << 20);
    Ok(vm)
}

/// Checks that the kernel of [`restart_vm`] has EL2 on all of `cpus` CPUs, and its KVM with it.
pub fn judge_restart(console: &str, cpus: u32) -> Outcome {
    judge_restart_beside(console, cpus, &[])
}

/// As [`judge_restart`], where the kernel may warn of what is in `harmless` too.
pub fn judge_restart_beside(console: &str, cpus: u32, harmless: &'static [&'static str]) -> Outcome {
    expect(console, "restart: kernel at ")?;
    expect(console, "CPU: All CPU(s) started at EL2")?;
    // KVM names the mode: with VHE the kernel itself stays at EL2, else it has its own vectors there.
    let has_kvm = console.lines().any(|line| line.contains("kvm [1]: ") && line.contains("VHE mode initialized"));
    if !has_kvm {
        return Err(format!("KVM was not initialized:\n{console}").into());
    }
    debian::judge(console, RESTARTED, cpus, &[debian::QEMU_ALONE, debian::HOST_IS_BUSY, harmless])
}

/// Debian at EL2, by way of the test kernel at EL1 over the stub.
fn restart(cpu: &str, gic: Gic, smp: u32, words: &str) -> Outcome {
    let mut board = board(&format!("restart{words}"), &[restart_vm(&format!("hyp=stub {words}"))?])?;
    (board.cpu, board.gic, board.smp) = (cpu.into(), gic, smp);
    let ending = run_off(&board)?;
    if words.contains("started") {
        expect(&ending.output, &format!("restart: CPU {} is at EL1", smp - 1))?;
    }
    judge_restart(&ending.output, smp).map_err(|error| failure(&ending, error.message().unwrap_or("failed")))
}

pub fn trials() -> Vec<Trial> {
    const GIB: u64 = 1 << 30;
    let mut trials = Vec::new();
    for (gic, cpu, smp, ram) in [
        (Gic::V3, "max", 4, 2 * GIB),
        (Gic::V3, "max", 1, GIB / 8),
        (Gic::V2, "max", 2, 2 * GIB),
        (Gic::V2, "cortex-a57", 4, GIB),
        (Gic::V3, "cortex-a57", 2, GIB),
        (Gic::V2, "cortex-a72", 2, GIB),
        (Gic::V3, "cortex-a72", 4, GIB),
        (Gic::V3, "neoverse-n1", 4, 2 * GIB),
    ] {
        let title = format!("stub::cases_{cpu}_gicv{}_{smp}_cpus", gic.number());
        trials.push(test(title, move || cases(gic, cpu, smp, ram)));
    }
    for (cpu, gic) in [("max", Gic::V3), ("cortex-a72", Gic::V2)] {
        let title = format!("stub::debian_{cpu}_4_cpus");
        trials.push(debian::trial(title, "linux-6.12", move || debian(cpu, gic)));
    }
    for (cpu, gic, smp, words) in [
        ("max", Gic::V3, 4, ""),
        ("max", Gic::V3, 4, "started"),
        ("neoverse-n1", Gic::V3, 4, "started"),
        ("cortex-a72", Gic::V2, 2, ""),
        ("cortex-a57", Gic::V2, 4, "started"),
    ] {
        let how = if words.is_empty() { String::new() } else { format!("_{words}") };
        let title = format!("stub::restart_{cpu}_gicv{}_{smp}_cpus{how}", gic.number());
        trials.push(debian::trial(title, RESTARTED, move || restart(cpu, gic, smp, words)));
    }
    trials.extend([
        test("stub::the_linked_bundle_is_the_payload", || {
            let ending = run_off(&board("", &[])?)?;
            expect(&ending.output, "exception level   EL1")?;
            expect(&ending.output, "CPU 1             says hello")?;
            expect(&ending.output, "Done: powering off.")
        }),
        test("stub::a_flat_image_and_a_ramdisk", || {
            // The Image of the test kernel, without the ELF file around it.
            let raw = keel_qemu::elf::flatten(&std::fs::read(tree::product("test-kernel.elf"))?)?;
            guests()?;
            let (image, disk) = (tree::product("test-stub-kernel.img"), tree::product("test-stub-disk"));
            tree::store(&image, &raw)?;
            tree::store(&disk, &[0x5a; 100_000])?;
            let mut vm = test_kernel("hyp=stub only=numbers")?;
            (vm.kernel, vm.initrd) = (image, Some(disk));
            let ending = run_off(&board("image", &[vm])?)?;
            expect(&ending.output, "tests: arm64 Image, starting at EL1")?;
            expect(&ending.output, "RAM disk at ")?;
            kernel::judge(&ending.output)
        }),
        test("stub::an_exception_of_el2_is_reported", || {
            for smp in [1, 2] {
                let mut board = board("crash", &[test_kernel("hyp=stub crash")?])?;
                board.smp = smp;
                let mut session = keel_qemu::qemu::Session::start(&board, LIMIT)?;
                let cpu = smp - 1;
                let report =
                    format!("keel-stub: CPU {cpu:#x}: unexpected synchronous exception from EL2: unknown reason");
                for text in ["crash: undefined instruction at ", &report, "ELR_EL2", "keel-stub: this CPU is stopped"] {
                    if session.wait_for(text) != keel_qemu::qemu::Event::Seen {
                        return Err(format!("no `{text}`:\n{}", session.output()).into());
                    }
                }
                if smp == 2 && session.wait_for("crash: this CPU goes on") != keel_qemu::qemu::Event::Seen {
                    return Err(format!("the other CPU stopped too:\n{}", session.output()).into());
                }
            }
            Ok(())
        }),
        test("stub::the_first_of_several_is_the_payload", || {
            let mut second = test_kernel("hyp=stub only=nothing")?;
            second.name = "second".into();
            let ending = run_off(&board("two", &[test_kernel("hyp=stub only=tree")?, second])?)?;
            expect(&ending.output, "2 configurations in the bundle, one payload: taking tests")?;
            kernel::judge(&ending.output)
        }),
        test("stub::bad_bundles_are_refused", || {
            let good = fit::write(&[test_kernel("hyp=stub")?])?;
            refuses("truncated", &good[..good.len() / 2], &["the file was cut short"])?;
            let mut damaged = good.clone();
            let middle = damaged.len() / 2;
            damaged[middle] ^= 1;
            refuses("damaged", &damaged, &["sha256"])?;
            refuses("none", b"no bundle at all", &["bundle: begins with"])
        }),
        test("stub::entered_at_el1_says_so", || {
            let mut board = board("", &[])?;
            board.el2 = false;
            let mut session = keel_qemu::qemu::Session::start(&board, LIMIT)?;
            match session.wait_for("started at EL1") {
                keel_qemu::qemu::Event::Seen => Ok(()),
                _ => Err(format!("no message:\n{}", session.output()).into()),
            }
        }),
    ]);
    trials
}
