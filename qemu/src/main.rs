//! `cargo keel`: builds, bundles, runs, measures and debugs keel under QEMU.
//!
//! This file is the command line; what a command does is in the library beside it. Exit status: 0 when it went well,
//! 1 when something failed that is nobody's argument, 2 for a bad argument or bundle, 3 for a crashed machine or a
//! panic of keel, 124 when the time was up.

use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use keel_qemu::run::{BoardOptions, BootImage, RunOptions};
use keel_qemu::vms::{MemorySize, VmSpec};
use keel_qemu::{BadInput, bench, debug, fetch, image, oracle, run, symbolize, tree, vms};

/// Builds, bundles, runs, measures and debugs keel under QEMU.
#[derive(Parser)]
#[command(name = "cargo keel", bin_name = "cargo keel", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build build/keel.img, build/keel-stub.img and their ELF files
    Image,
    /// Write a bundle (FIT image) from a list of machines
    #[command(after_help = BUNDLE_HELP)]
    Bundle {
        /// The list of machines
        list: PathBuf,
        /// The bundle to write
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
    /// Boot keel in QEMU with its console here; Ctrl-A x quits
    #[command(after_help = RUN_HELP)]
    Run {
        #[command(flatten)]
        guests: GuestArgs,
        #[command(flatten)]
        board: BoardArgs,
        /// Stop after this time; exit status 124
        #[arg(long, value_name = "SECONDS")]
        timeout: Option<f64>,
        /// Copy the console to a file
        #[arg(long, value_name = "FILE")]
        log: Option<PathBuf>,
        /// More arguments for QEMU
        #[arg(last = true, value_name = "QEMU ARGUMENTS")]
        extra: Vec<OsString>,
    },
    /// Bring foreign guests into build/guests
    Fetch {
        #[command(subcommand)]
        what: Fetch,
    },
    /// Compare keel's answers with KVM's, line by line
    #[command(after_help = ORACLE_HELP)]
    Oracle {
        /// Where to compare: max, max-nvhe, neoverse-n1, cortex-a72; everywhere when absent
        #[arg(value_name = "HOST")]
        hosts: Vec<String>,
        /// Compare what KVM's own calls answer, instead of what guests are answered
        #[arg(long)]
        api: bool,
    },
    /// Count instructions and check them against their limits
    Bench {
        /// Boot Debian 6.12 on three CPU models and compare keel's instructions with the guest's
        #[arg(long, conflicts_with_all = ["peer", "plot"])]
        linux: bool,
        /// Version of the interrupt controller, 2 or 3; of a GICv2 the figures are printed only
        #[arg(long, value_parser = clap::value_parser!(u8).range(2..=3), default_value_t = 3, conflicts_with_all = ["linux", "peer", "plot"])]
        gic: u8,
        /// Measure another hypervisor beside keel; may be given more than once
        #[arg(long, value_enum)]
        peer: Vec<bench::Peer>,
        /// Draw a bar chart of the instructions
        #[arg(long, value_name = "FILE.svg")]
        plot: Option<PathBuf>,
    },
    /// Turn the addresses of a panic report into functions and lines
    #[command(after_help = "Example:\n  cargo keel run vms.toml --log boot.log; cargo keel symbolize boot.log")]
    Symbolize {
        /// The console log; standard input when absent
        log: Option<PathBuf>,
        /// The ELF file that ran
        #[arg(long, value_name = "FILE")]
        elf: Option<PathBuf>,
    },
    /// Boot keel stopped at its first instruction, and a debugger with its symbols
    Debug {
        #[command(flatten)]
        guests: GuestArgs,
        #[command(flatten)]
        board: BoardArgs,
        /// Start no debugger; print how to attach one
        #[arg(long)]
        wait: bool,
        /// More arguments for QEMU
        #[arg(last = true, value_name = "QEMU ARGUMENTS")]
        extra: Vec<OsString>,
    },
}

#[derive(Subcommand)]
enum Fetch {
    /// Debian's arm64 kernels 6.1 and 6.12 and a busybox initial RAM disk
    Debian {
        /// Debian's mirror; the one in this machine's apt sources when absent
        #[arg(long, value_name = "URL")]
        mirror: Option<String>,
        /// Fetch the newest packages even when older ones are there
        #[arg(long)]
        again: bool,
    },
}

/// The machines: a list, or one described by options.
#[derive(Args)]
struct GuestArgs {
    /// A list of machines (vms.toml) or a finished bundle; the one linked into keel when absent
    #[arg(value_name = "VMS")]
    list: Option<PathBuf>,
    /// Short form: one machine with this kernel (arm64 Image, ELF or flat binary)
    #[arg(long, value_name = "FILE", help_heading = "One machine")]
    kernel: Option<PathBuf>,
    /// Its initial RAM disk
    #[arg(long, value_name = "FILE", help_heading = "One machine")]
    initrd: Option<PathBuf>,
    /// Its device tree; generated when absent
    #[arg(long, value_name = "FILE", help_heading = "One machine")]
    dtb: Option<PathBuf>,
    /// Its command line
    #[arg(long, value_name = "TEXT", help_heading = "One machine")]
    append: Option<String>,
    /// Its number of vCPUs [default: 1]
    #[arg(long, value_name = "N", help_heading = "One machine")]
    cpus: Option<u32>,
    /// Its RAM [default: 512M]
    #[arg(long, value_name = "SIZE", help_heading = "One machine")]
    memory: Option<MemorySize>,
    /// It owns the board: real addresses, devices and interrupts, and every CPU
    #[arg(long, help_heading = "One machine")]
    root: bool,
    /// An optional feature it has, by its name in a list of machines; may be given more than once
    #[arg(long, value_name = "NAME", help_heading = "One machine")]
    feature: Vec<String>,
}

/// The board QEMU models.
#[derive(Args)]
#[command(next_help_heading = "The board")]
struct BoardArgs {
    /// What to boot: keel, or the hyp stub with the machine (the first of a list) as its payload
    #[arg(long, value_enum, default_value_t = BootImage::Keel)]
    image: BootImage,
    /// QEMU's machine [default: virt]
    #[arg(long, value_name = "NAME")]
    machine: Option<String>,
    /// GIC version: 2 or 3 [default: 3]
    #[arg(long, value_name = "VERSION")]
    gic: Option<u8>,
    /// CPU model [default: max]
    #[arg(long, value_name = "MODEL")]
    cpu: Option<String>,
    /// Number of CPUs [default: 2]
    #[arg(long, value_name = "N")]
    smp: Option<u32>,
    /// RAM [default: 2G]
    #[arg(long, value_name = "SIZE")]
    ram: Option<MemorySize>,
    /// Let time advance with instructions, so that a run repeats exactly
    #[arg(long)]
    icount: bool,
    /// keel's own arguments, for example "keel.loglevel=debug"
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    keel_args: String,
}

const BUNDLE_HELP: &str = r#"A list of machines is a TOML file with a table for each; only name and kernel are required:

  [[vm]]
  name = "linux"                     # letters, digits and ,._+-
  kernel = "Image"                   # arm64 Image (also gzip'd), ELF or flat binary
  initrd = "initramfs.cpio"
  dtb = "own.dtb"                    # generated when absent
  bootargs = "console=ttyAMA0"
  cpus = 2                           # default 1
  memory = "512M"                    # default 512M
  cpu-affinity = [0, 1]              # the CPU each vCPU stays on; default: anywhere
  on-crash = "restart"               # stop, restart or halt
  autostart = true
  features = ["pmu"]
  direct-map = false
  passthrough = ["/soc/ethernet@1"]
  root = false
  description = "a line for people"
  compression = "gzip"               # how the kernel is stored: none (default) or gzip
  hash = "sha256"                    # sha256 (default), crc32 or none

Paths are relative to the file.

Example:
  cargo keel bundle vms.toml -o vms.itb"#;

const RUN_HELP: &str = r#"Exit status: 0 when keel powered the board off after its machines ended well, 2 for a bad argument or
bundle, 3 for a crashed machine or a panic of keel, 124 when the time was up.

Examples:
  cargo keel run                                   the demonstration linked into keel
  cargo keel run vms.toml --smp 4 --keel-args keel.loglevel=debug
  cargo keel run --kernel Image --initrd initramfs.cpio --append console=ttyAMA0 --cpus 2
  cargo keel run --image stub --kernel Image --smp 4
  cargo keel run vms.toml --icount --timeout 60 --log boot.log -- -d guest_errors"#;

const ORACLE_HELP: &str = r#"Debian's kernel boots at EL2 and runs the same bundle on its KVM. What differs on purpose is listed, with the
reasons, in tests/oracle/differences.toml (of KVM's own calls, in api-differences.toml); anything else, and a listed difference that is none, is an error. The
transcripts are left in build/oracle. Needs the guests of `cargo keel fetch debian`.

Example:
  cargo keel oracle neoverse-n1"#;

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(if error.is::<BadInput>() { 2 } else { 1 })
        }
    }
}

fn dispatch(command: Command) -> Result<u8> {
    match command {
        Command::Image => print_image().map(|()| 0),
        Command::Bundle { list, output } => {
            let vms = vms::read(&list)?;
            run::write_bundle(&vms, &output)?;
            println!("{}: {} machine(s)", output.display(), vms.len());
            Ok(0)
        }
        Command::Run { guests, board, timeout, log, extra } => {
            let timeout = match timeout {
                None => None,
                Some(seconds) => Some(Duration::try_from_secs_f64(seconds).map_err(|error| {
                    keel_qemu::bad_input!("--timeout {seconds}: {error}; give a number of seconds")
                })?),
            };
            let board = run::prepare(&guests.guests()?, &board.options(extra))?;
            let verdict = run::run(&board, &RunOptions { timeout, log })?;
            eprintln!("cargo keel run: {verdict}");
            Ok(verdict.exit_code())
        }
        Command::Fetch { what: Fetch::Debian { mirror, again } } => fetch::debian(mirror.as_deref(), again).map(|()| 0),
        Command::Oracle { hosts, api } => {
            let faults = oracle::oracle(&hosts, api)?;
            for fault in &faults {
                eprintln!("error: {fault}");
            }
            Ok(u8::from(!faults.is_empty()))
        }
        Command::Bench { gic: 2, .. } => bench::bench_gicv2().map(|()| 0),
        Command::Bench { linux, peer, plot, .. } => {
            let failures = if linux { bench::bench_linux()? } else { bench::bench(&peer, plot.as_deref())? };
            for failure in &failures {
                eprintln!("error: {failure}");
            }
            Ok(u8::from(!failures.is_empty()))
        }
        Command::Symbolize { log, elf } => {
            let symbols = symbolize::Symbols::open(&elf.unwrap_or(tree::product("keel.elf")))?;
            let mut text = Vec::new();
            match log {
                Some(path) => text = std::fs::read(&path).with_context(|| path.display().to_string())?,
                None => drop(std::io::stdin().read_to_end(&mut text)?),
            }
            print!("{}", symbolize::symbolize(&String::from_utf8_lossy(&text), &symbols));
            Ok(0)
        }
        Command::Debug { guests, board, wait, extra } => {
            let board = run::prepare(&guests.guests()?, &board.options(extra))?;
            let elf = if board.stub { "keel-stub.elf" } else { "keel.elf" };
            debug::debug(&board, &tree::product(elf), wait).map(|()| 0)
        }
    }
}

fn print_image() -> Result<()> {
    let images = image::build()?;
    println!(
        "{}: {} bytes, of which {} are code and {} the linked bundle",
        tree::show(&images.keel),
        images.keel_bytes,
        images.text_bytes,
        images.bundle_bytes
    );
    println!("{}: {} bytes", tree::show(&images.stub), images.stub_bytes);
    for elf in [&images.keel_elf, &images.stub_elf] {
        println!("{}: with symbols", tree::show(elf));
    }
    Ok(())
}

impl GuestArgs {
    fn guests(self) -> Result<run::Guests, BadInput> {
        let given = [
            ("--initrd", self.initrd.is_some()),
            ("--dtb", self.dtb.is_some()),
            ("--append", self.append.is_some()),
            ("--cpus", self.cpus.is_some()),
            ("--memory", self.memory.is_some()),
            ("--root", self.root),
            ("--feature", !self.feature.is_empty()),
        ];
        let given: Vec<_> = given.into_iter().filter(|(_, given)| *given).map(|(name, _)| name).collect();
        let vm = self.kernel.map(|kernel| {
            let mut vm = VmSpec::new("vm", kernel);
            vm.initrd = self.initrd;
            vm.dtb = self.dtb;
            vm.bootargs = self.append.unwrap_or_default();
            vm.cpus = self.cpus.unwrap_or(vm.cpus);
            vm.memory = self.memory.unwrap_or(vm.memory);
            vm.root = self.root;
            vm.features = self.feature;
            vm
        });
        run::guests(self.list, vm, &given)
    }
}

impl BoardArgs {
    fn options(self, extra: Vec<OsString>) -> BoardOptions {
        BoardOptions {
            image: self.image,
            machine: self.machine,
            gic: self.gic,
            cpu: self.cpu,
            smp: self.smp,
            ram: self.ram,
            icount: self.icount,
            keel_args: self.keel_args,
            extra,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn documented_forms_parse() {
        for line in [
            "run",
            "run vms.toml --machine virt --gic 2 --cpu max --smp 4 --ram 2G --icount --timeout 5 --log f -- -d int",
            "run --image stub --kernel Image",
            "run --kernel Image --feature pmu --feature protected-memory",
            "run --kernel Image --initrd i --dtb d --append a --cpus 2 --memory 512M --keel-args keel.loglevel=debug",
            "bundle vms.toml -o vms.itb",
            "fetch debian",
            "bench --linux",
            "bench --gic 2",
            "bench --peer kvm --peer kvm-nvhe --plot bench.svg",
            "symbolize",
            "debug --wait",
            "image",
            "oracle max cortex-a72",
            "oracle --api",
        ] {
            Cli::try_parse_from(std::iter::once("keel").chain(line.split(' ')))
                .unwrap_or_else(|e| panic!("{line}: {e}"));
        }
        assert!(Cli::try_parse_from(["keel", "run", "--ram", "lots"]).is_err());
    }
}
