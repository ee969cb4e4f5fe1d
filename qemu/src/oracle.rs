//! KVM as the oracle: the same bundle on keel and on Linux's KVM, on the same board.
//!
//! The board boots keel with a bundle, or it boots Debian's kernel at EL2 with an initial RAM disk that holds the same
//! bundle and `tests/oracle`, which runs the machine on KVM. [`console`] returns what the machine printed either way;
//! [`ask`] compares what the test kernel's `transcript` printed, with `tests/oracle/differences.toml` in hand. [`ask_api`]
//! compares KVM's own calls: those that the runner makes on `/dev/kvm` with those that the test kernel makes as keel's root,
//! with `tests/oracle/api-differences.toml`.

mod compare;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cpio::Archive;
use crate::machine::Gic;
use crate::qemu::{self, Board, Ending};
use crate::verdict::Verdict;
use crate::vms::{MemorySize, VmSpec};
use crate::{BadInput, bad_input, fetch, image, run, tree};

pub use compare::{Comparison, Difference, Differences, Line, compare, transcript};

/// The kernel whose KVM is asked: the folder of [`fetch::KERNELS`].
pub const KERNEL: &str = "linux-6.12";

/// The most one run may take.
const LIMIT: Duration = Duration::from_secs(300);

/// How the runner's last line starts, and what it says when all went well.
const RUNNER: &str = "oracle: ";
const WELL: [&str; 2] = ["oracle: the machine powered off", "oracle: the calls were made"];

/// A hypervisor to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hypervisor {
    /// keel.
    Keel,
    /// Linux's KVM.
    Kvm(Mode),
}

/// How KVM uses EL2 (`kvm-arm.mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As it likes: Linux itself at EL2 where the CPU has FEAT_VHE.
    Vhe,
    /// Linux at EL1, as on CPUs without FEAT_VHE.
    Nvhe,
}

impl Mode {
    /// The word for Linux's command line.
    fn argument(self) -> &'static str {
        match self {
            Mode::Vhe => "",
            Mode::Nvhe => "kvm-arm.mode=nvhe ",
        }
    }
}

/// A board on which both are asked.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    /// Its name in messages, files and the list of differences.
    pub name: &'static str,
    /// CPU model.
    pub cpu: &'static str,
    /// How KVM runs there.
    pub mode: Mode,
    /// Its interrupt controller.
    pub gic: Gic,
    /// The board that is like it but for the interrupt controller: what differs there may differ here.
    pub like: Option<&'static str>,
}

/// Every board.
pub const HOSTS: &[Host] = &[
    Host { name: "max", cpu: "max", mode: Mode::Vhe, gic: Gic::V3, like: None },
    Host { name: "max-nvhe", cpu: "max", mode: Mode::Nvhe, gic: Gic::V3, like: None },
    Host { name: "neoverse-n1", cpu: "neoverse-n1", mode: Mode::Vhe, gic: Gic::V3, like: None },
    Host { name: "cortex-a72", cpu: "cortex-a72", mode: Mode::Nvhe, gic: Gic::V3, like: None },
    Host { name: "max-gicv2", cpu: "max", mode: Mode::Vhe, gic: Gic::V2, like: Some("max") },
    Host { name: "neoverse-n1-gicv2", cpu: "neoverse-n1", mode: Mode::Vhe, gic: Gic::V2, like: Some("neoverse-n1") },
    Host { name: "cortex-a72-gicv2", cpu: "cortex-a72", mode: Mode::Nvhe, gic: Gic::V2, like: Some("cortex-a72") },
];

/// Where KVM's own calls are compared: machines that keel can give to an owner.
pub const API_HOSTS: &[&str] = &["max", "cortex-a72"];

/// What is missing to ask KVM, as a reason to skip.
pub fn missing() -> Option<String> {
    fetch::missing(KERNEL).or_else(|| {
        (!image::has_target(tree::LINUX_TARGET)).then(|| {
            format!("Rust's standard library for {} is not there; `sh qemu/setup.sh test` adds it", tree::LINUX_TARGET)
        })
    })
}

/// How to run a machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Count instructions: the run repeats exactly.
    pub icount: bool,
    /// Seconds that Linux is left alone before the machine starts.
    pub settle: u32,
    /// KVM's runner first compares keel's ONE_REG with KVM's.
    pub registers: bool,
    /// KVM's runner makes KVM's calls, and runs no machine.
    pub api: bool,
}

/// The board that runs `vm` on a hypervisor.
///
/// # Errors
///
/// Building fails, or Debian's kernel is not there.
pub fn board(host: &Host, hypervisor: Hypervisor, vm: &VmSpec, options: Options) -> Result<Board> {
    let name = format!("oracle-{}-{}", host.name, vm.name);
    let bundle = run::write_bundle(std::slice::from_ref(vm), &tree::product(&format!("{name}.itb")))?;
    let mut board = match hypervisor {
        Hypervisor::Keel => {
            let mut board = Board::virt(image::build()?.keel);
            board.initrd = Some(bundle);
            board
        }
        Hypervisor::Kvm(mode) => {
            if let Some(reason) = missing() {
                bail!("{reason}");
            }
            let mut board = Board::virt(fetch::kernel_path(KERNEL));
            board.initrd = Some(archive(&name, &std::fs::read(bundle)?)?);
            if options.icount {
                // Linux reads the clock while it boots, so a run repeats only if it always starts at the same moment.
                board.extra = ["-rtc", "base=2026-01-01T00:00:00,clock=vm"].map(Into::into).into();
            }
            let registers = if options.registers { "registers=1 " } else { "" };
            let registers = if options.api { "api=1 " } else { registers };
            let mode = mode.argument();
            board.append = format!("console=ttyAMA0 quiet loglevel=1 {mode}{registers}settle={}", options.settle);
            board
        }
    };
    (board.cpu, board.gic, board.icount) = (host.cpu.into(), host.gic, options.icount);
    Ok(board)
}

/// The initial RAM disk with the runner and a bundle.
fn archive(name: &str, bundle: &[u8]) -> Result<PathBuf> {
    /// The major number of miscellaneous devices, and KVM's minor (Linux `Documentation/admin-guide/devices.txt`).
    const KVM: (u32, u32) = (10, 232);
    let mut archive = Archive::default();
    archive.directory("dev");
    archive.device("dev/console", 5, 1);
    archive.device("dev/kvm", KVM.0, KVM.1);
    archive.program("init", &image::build_oracle()?);
    archive.file("bundle.itb", bundle);
    let path = tree::product(&format!("{name}.cpio"));
    tree::store(&path, &archive.finish())?;
    Ok(path)
}

/// Runs `vm` to its end; returns what the board's console printed.
///
/// # Errors
///
/// [`board`]'s, or the machine did not end by powering off.
pub fn console(host: &Host, hypervisor: Hypervisor, vm: &VmSpec, options: Options) -> Result<String> {
    run(&board(host, hypervisor, vm, options)?, hypervisor)
}

/// Runs such a board to its machine's end; returns what its console printed.
///
/// # Errors
///
/// The machine did not end by powering off.
pub fn run(board: &Board, hypervisor: Hypervisor) -> Result<String> {
    let ending = qemu::run_to_end(board, LIMIT)?;
    let well = match hypervisor {
        Hypervisor::Keel => ending.verdict == Verdict::Well,
        Hypervisor::Kvm(_) => ending.verdict == Verdict::Silent && WELL.iter().any(|well| ending.output.contains(well)),
    };
    if !well {
        bail!("{}", failure(&ending, hypervisor));
    }
    Ok(ending.output)
}

fn failure(ending: &Ending, hypervisor: Hypervisor) -> String {
    let reason = match hypervisor {
        Hypervisor::Keel => ending.verdict.to_string(),
        Hypervisor::Kvm(_) => {
            let said = ending.output.lines().rev().find(|line| line.contains(RUNNER)).map(str::trim);
            said.map_or_else(|| ending.verdict.to_string(), str::to_string)
        }
    };
    // A transcript is long, and what went wrong is at its end.
    let start = ending.output.lines().count().saturating_sub(40);
    let last: Vec<_> = ending.output.lines().skip(start).collect();
    format!("{reason}\ncommand: {}\n{}console, its end:\n{}", ending.command, ending.diagnostics, last.join("\n"))
}

/// The list of differences between the answers to guests that are meant.
///
/// # Errors
///
/// It cannot be read.
pub fn differences() -> Result<Differences> {
    list("tests/oracle/differences.toml")
}

/// The list of differences between the answers to KVM's own calls that are meant.
///
/// # Errors
///
/// It cannot be read.
pub fn api_differences() -> Result<Differences> {
    list("tests/oracle/api-differences.toml")
}

fn list(path: &str) -> Result<Differences> {
    let path = tree::root().join(path);
    let names: Vec<_> = HOSTS.iter().map(|host| host.name).collect();
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Differences::parse(&text, &names).with_context(|| path.display().to_string())
}

/// Asks both hypervisors on a host, and compares. The transcripts stay in `build/oracle`.
///
/// # Errors
///
/// A run fails, or a transcript is not complete.
pub fn ask(host: &Host, list: &Differences) -> Result<Comparison> {
    let mut vm = VmSpec::new("asked", &image::build_guests()?.test_kernel);
    vm.bootargs = "transcript".into();
    vm.cpus = 2;
    vm.memory = MemorySize(64 << 20);
    let run = |name: &str, hypervisor| {
        let console = console(host, hypervisor, &vm, Options::default())?;
        let lines = transcript(&console).with_context(|| format!("{}, {name}", host.name))?;
        let text: String = lines.iter().map(|line| format!("{} -> {}\n", line.what, line.answer)).collect();
        tree::store(&tree::product(&format!("oracle/{}-{name}.txt", host.name)), text.as_bytes())?;
        Ok::<_, anyhow::Error>(lines)
    };
    let (kvm, keel) = (run("kvm", Hypervisor::Kvm(host.mode))?, run("keel", Hypervisor::Keel)?);
    Ok(compare(&kvm, &keel, list, host.name, host.like))
}

/// Makes KVM's own calls on both, and compares. The transcripts stay in `build/oracle`.
///
/// # Errors
///
/// As [`ask`].
pub fn ask_api(host: &Host, list: &Differences) -> Result<Comparison> {
    let mut vm = VmSpec::new("api", &image::build_guests()?.test_kernel);
    vm.bootargs = "hyp=root api".into();
    (vm.root, vm.memory) = (true, MemorySize(128 << 20));
    let run = |name: &str, hypervisor| {
        let console = console(host, hypervisor, &vm, Options { api: true, ..Options::default() })?;
        let lines = transcript(&console).with_context(|| format!("{}, {name}", host.name))?;
        let text: String = lines.iter().map(|line| format!("{} -> {}\n", line.what, line.answer)).collect();
        tree::store(&tree::product(&format!("oracle/api-{}-{name}.txt", host.name)), text.as_bytes())?;
        Ok::<_, anyhow::Error>(lines)
    };
    let (kvm, keel) = (run("kvm", Hypervisor::Kvm(host.mode))?, run("keel", Hypervisor::Keel)?);
    Ok(compare(&kvm, &keel, list, host.name, host.like))
}

/// The host of a name.
///
/// # Errors
///
/// [`BadInput`] with the names there are.
pub fn find(name: &str) -> Result<&'static Host, BadInput> {
    HOSTS.iter().find(|host| host.name == name).ok_or_else(|| {
        let known: Vec<_> = HOSTS.iter().map(|host| host.name).collect();
        bad_input!("unknown host `{name}`; known hosts: {}", known.join(", "))
    })
}

/// `cargo keel oracle`: compares on `hosts`, or on all; says what is wrong. `api`: KVM's own calls.
///
/// # Errors
///
/// [`ask`]'s.
pub fn oracle(hosts: &[String], api: bool) -> Result<Vec<String>> {
    let hosts = match hosts {
        [] if api => API_HOSTS.iter().map(|name| find(name)).collect::<Result<Vec<_>, _>>()?,
        [] => HOSTS.iter().collect(),
        names => names.iter().map(|name| find(name)).collect::<Result<Vec<_>, _>>()?,
    };
    let list = if api { api_differences()? } else { differences()? };
    let mut faults = Vec::new();
    for host in hosts {
        let result = if api { ask_api(host, &list)? } else { ask(host, &list)? };
        println!(
            "{}: {} answers the same, {} differ as listed, {} faults",
            host.name,
            result.same,
            result.listed,
            result.faults.len()
        );
        faults.extend(result.faults.into_iter().map(|fault| format!("{}: {fault}", host.name)));
    }
    Ok(faults)
}
