//! Debian's own arm64 kernels, to user space and back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use keel_qemu::fetch;
use keel_qemu::initramfs::{self, Report};
use keel_qemu::qemu::{Board, Event, Session, run_to_end};
use keel_qemu::tree;
use keel_qemu::verdict::Verdict;
use keel_qemu::vms::{Hash, MemorySize, VmSpec};
use libtest_mimic::{Completion, Failed, Trial};

use crate::trial::ignorable_test;
use crate::{LIMIT, Outcome, board, failure, run_well};

/// Warnings of Debian's kernels on QEMU alone that say nothing about the machine's correctness; under keel there are none.
pub const QEMU_ALONE: &[&str] = &[
    // QEMU's device tree describes no caches; 6.12 says so once.
    "cacheinfo: Unable to detect cache hierarchy",
    // QEMU's PCIe window. keel's guests have no PCIe.
    "Memory resource size exceeds max for 32 bits",
];

/// Warnings that come when the host does not run an emulated CPU for a while, so that wall time jumps; on QEMU alone
/// too. A run under icount, where time is instructions, has no excuse.
pub const HOST_IS_BUSY: &[&str] = &["hrtimer: interrupt took"];

/// A Debian machine that does what `keel.test=` asks.
pub fn vm(folder: &str, test: &str, cpus: u32) -> VmSpec {
    let mut vm = VmSpec::new("debian", fetch::kernel_path(folder));
    vm.initrd = Some(fetch::initramfs_path());
    vm.bootargs = format!("console=ttyAMA0 {test}");
    vm.cpus = cpus;
    vm.memory = MemorySize(512 << 20);
    // Hashing 45 MB takes an emulated CPU seconds; the hash has tests of its own.
    vm.hash = Hash::None;
    vm
}

/// A test that is ignored, with the reason, when the kernel is not there.
pub fn trial(name: String, folder: &'static str, test: impl Fn() -> Outcome + Send + 'static) -> Trial {
    ignorable_test(name, move || match fetch::missing(folder) {
        Some(reason) => Ok(Completion::ignored_with(reason)),
        None => test().map(|()| Completion::Completed),
    })
}

/// What a kernel under keel must find of KVM's guest interface; `shared`: its CPUs run other vCPUs too.
fn judge_services(console: &str, shared: bool) -> Outcome {
    let fault = |what: String| Failed::from(format!("{what}\n{console}"));
    let services = initramfs::parse_report(console).map_err(fault)?.services;
    if !services.detected || !services.stolen_time {
        return Err(fault(format!("the kernel's log misses KVM's services or stolen time: {services:?}")));
    }
    if (services.steal > 0) != shared {
        return Err(fault(format!("steal is {}, CPUs shared: {shared}", services.steal)));
    }
    if !services.generators.contains("smccc_trng") || services.random_bytes != 64 {
        return Err(fault(format!("hwrng: {}, {} bytes of 64", services.generators, services.random_bytes)));
    }
    if services.ptp != "KVM virtual PTP" {
        return Err(fault(format!("the PTP clock is {:?}", services.ptp)));
    }
    // The system's clock was set from the real-time clock, in whole seconds.
    match services.ptp_time {
        Some((ptp, date)) if ptp.abs_diff(date) > 2 => Err(fault(format!("PTP says {ptp}, the clock {date}"))),
        _ => Ok(()),
    }
}

/// KVM's guest interface as Linux uses it, with the program that asks the PTP clock.
fn services(folder: &'static str) -> Outcome {
    let program = std::fs::read(&crate::guests()?.ptp_time)?;
    let mut archive = std::fs::read(fetch::initramfs_path())?;
    archive.resize(archive.len().next_multiple_of(4), 0);
    archive.extend(initramfs::program("ptp-time", &program));
    let path = tree::product(&format!("test-{folder}-ptp.cpio"));
    tree::store(&path, &archive)?;
    let mut vm = vm(folder, "keel.test=1", 2);
    vm.initrd = Some(path);
    let console = run_well(&board(&format!("{folder}-services"), &[vm])?)?;
    judge_services(&console, false)?;
    let report = initramfs::parse_report(&console)?;
    if report.services.ptp_time.is_none() {
        Err(format!("nobody read the PTP clock\n{console}").into())
    } else {
        Ok(())
    }
}

/// Checks the report a guest printed; `harmless` are the warnings it may contain.
pub fn judge(console: &str, folder: &str, cpus: u32, harmless: &[&[&str]]) -> Outcome {
    let fault = |what: String| Failed::from(format!("{what}\n{console}"));
    let report: Report = initramfs::parse_report(console).map_err(fault)?;
    let series = folder.trim_start_matches("linux-");
    if !report.uname.contains(&format!(" {series}.")) {
        return Err(fault(format!("uname is {}", report.uname)));
    }
    if (report.nproc, report.working_cpus) != (cpus, cpus) {
        return Err(fault(format!("{cpus} CPUs expected: {} found, {} work", report.nproc, report.working_cpus)));
    }
    if report.timer_counts.len() != cpus as usize || report.timer_counts.contains(&0) {
        return Err(fault(format!("a timer is missing: {:?}", report.timer_counts)));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    if now.abs_diff(report.date) > 600 {
        return Err(fault(format!("the guest's clock says {}, the host's {now}", report.date)));
    }
    let unknown = |line: &&String| !harmless.iter().copied().flatten().any(|known| line.contains(known));
    let warnings: Vec<_> = report.warnings.iter().filter(unknown).map(String::as_str).collect();
    if !warnings.is_empty() {
        return Err(fault(format!("the kernel warns:\n{}", warnings.join("\n"))));
    }
    Ok(())
}

fn boots(folder: &str, cpu: &str, smp: u32, cpus: u32) -> Outcome {
    let mut board = board(&format!("{folder}-{cpus}"), &[vm(folder, "keel.test=1", cpus)])?;
    (board.cpu, board.smp) = (cpu.into(), smp);
    let console = run_well(&board)?;
    judge(&console, folder, cpus, &[HOST_IS_BUSY])?;
    judge_services(&console, smp < cpus)
}

/// The same kernel on QEMU alone, entered at EL1: the harness's own check.
fn alone(folder: &str, append: &str) -> Board {
    let mut board = Board::virt(fetch::kernel_path(folder));
    board.el2 = false;
    board.initrd = Some(fetch::initramfs_path());
    board.append = append.into();
    board.ram = MemorySize(512 << 20);
    board
}

fn boots_alone(folder: &str) -> Outcome {
    let ending = run_to_end(&alone(folder, "console=ttyAMA0 keel.test=1"), LIMIT)?;
    judge(&ending.output, folder, 2, &[QEMU_ALONE, HOST_IS_BUSY])
        .map_err(|error| failure(&ending, error.message().unwrap_or("failed")))
}

/// Types commands at a shell and reads its answers; `end` is how the run ends after `poweroff`.
pub fn shell_reads(board: &Board, end: Verdict) -> Outcome {
    let mut session = Session::start(board, LIMIT)?;
    wait(&mut session, initramfs::SHELL)?;
    wait(&mut session, "# ")?;
    session.send("echo answer=$((6*7))\n")?;
    wait(&mut session, "answer=42")?;
    // More than the UART's queue at once, which only its interrupt can keep up with.
    session.send(&format!("echo {} | wc -c\n", "x".repeat(100)))?;
    wait(&mut session, "\n101")?;
    // Job control: Ctrl-C ends what runs in the foreground.
    session.send("sleep 1000; echo interrupted=$?\n")?;
    wait(&mut session, "interrupted=$?")?;
    std::thread::sleep(Duration::from_millis(500));
    session.send("\x03")?;
    wait(&mut session, "# ")?;
    session.send("poweroff -f\n")?;
    let ending = session.finish();
    if ending.verdict != end {
        return Err(failure(&ending, &ending.verdict.to_string()));
    }
    Ok(())
}

/// Waits for a text; an error says what came instead.
pub fn wait(session: &mut Session, text: &str) -> Outcome {
    match session.wait_for(text) {
        Event::Seen => Ok(()),
        event => Err(format!("waiting for `{text}`: {event:?}\n{}\n{}", session.command(), session.output()).into()),
    }
}

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for (folder, _) in fetch::KERNELS {
        trials.push(trial(format!("debian::{folder}_alone"), folder, || boots_alone(folder)));
        for cpu in ["max", "cortex-a72", "neoverse-n1"] {
            for cpus in [1, 2, 4] {
                let name = format!("debian::{folder}_{cpu}_{cpus}_vcpus");
                trials.push(trial(name, folder, move || boots(folder, cpu, cpus, cpus)));
            }
        }
    }
    for (folder, _) in fetch::KERNELS {
        trials.push(trial(format!("debian::{folder}_services"), folder, || services(folder)));
    }
    let folder = "linux-6.12";
    trials.push(trial("debian::steal_grows_when_two_machines_share_a_cpu".into(), folder, move || {
        let (mut first, mut second) = (vm(folder, "keel.test=1", 1), vm(folder, "keel.test=1", 1));
        (first.name, second.name) = ("first".into(), "second".into());
        (first.cpu_affinity, second.cpu_affinity) = (vec![1], vec![1]);
        let console = run_well(&board("steal", &[first, second])?)?;
        for prefix in ["[first] ", "[second] "] {
            let lines: Vec<_> = console.lines().filter_map(|line| line.trim().strip_prefix(prefix)).collect();
            judge_services(&lines.join("\n"), true)?;
        }
        Ok(())
    }));
    trials.push(trial("debian::more_vcpus_than_cpus".into(), folder, move || boots(folder, "max", 1, 2)));
    trials.push(trial("debian::no_warning_when_time_is_instructions".into(), folder, move || {
        let mut board = board("linux-6.12-icount", &[vm(folder, "quiet keel.test=1", 2)])?;
        board.icount = true;
        judge(&run_well(&board)?, folder, 2, &[])
    }));
    trials.push(trial("debian::two_machines_on_two_cpus".into(), folder, move || {
        let (mut first, mut second) = (vm(folder, "keel.test=1", 2), vm("linux-6.1", "keel.test=1", 2));
        if fetch::missing("linux-6.1").is_some() {
            second.kernel = first.kernel.clone();
        }
        let second_folder = if second.kernel == first.kernel { folder } else { "linux-6.1" };
        (first.name, second.name) = ("first".into(), "second".into());
        let console = run_well(&board("two-debians", &[first, second])?)?;
        for (prefix, folder) in [("[first] ", folder), ("[second] ", second_folder)] {
            let lines: Vec<_> = console.lines().filter_map(|line| line.trim().strip_prefix(prefix)).collect();
            judge(&lines.join("\n"), folder, 2, &[HOST_IS_BUSY])?;
        }
        Ok(())
    }));
    trials.push(trial("debian::with_an_its".into(), folder, move || {
        let mut vm = vm(folder, "keel.test=1", 2);
        vm.features = vec!["its".into()];
        let console = run_well(&board("its", &[vm])?)?;
        for line in ["ITS@0x0000000008080000: allocated", "CPU1: using allocated LPI pending table"] {
            crate::expect(&console, line)?;
        }
        judge(&console, folder, 2, &[HOST_IS_BUSY])
    }));
    trials.push(trial("debian::reboot_comes_up_again".into(), folder, move || {
        let mut session = Session::start(&board("reboot", &[vm(folder, "keel.test=reboot", 2)])?, LIMIT)?;
        wait(&mut session, initramfs::INIT)?;
        wait(&mut session, initramfs::INIT)
    }));
    trials.push(trial("debian::a_shell_reads_what_is_typed".into(), folder, move || {
        shell_reads(&board("shell", &[vm(folder, "quiet", 2)])?, Verdict::Well)
    }));
    trials.push(trial("debian::a_shell_reads_what_is_typed_alone".into(), folder, move || {
        shell_reads(&alone(folder, "console=ttyAMA0 quiet"), Verdict::Silent)
    }));
    trials.push(trial("debian::compressed_and_hashed_image".into(), folder, move || {
        let mut vm = vm(folder, "quiet keel.test=bench", 1);
        vm.hash = Hash::Sha256;
        vm.compression = keel_qemu::vms::Compression::Gzip;
        let console = run_well(&board("gzip", &[vm])?)?;
        crate::expect(&console, initramfs::INIT)
    }));
    trials
}
