//! `cargo keel run`: from a list of machines to a console on the terminal.

use std::ffi::OsString;
use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::machine::{self, Gic};
use crate::qemu::{self, Board};
use crate::verdict::{Scanner, Verdict};
use crate::vms::{MemorySize, VmSpec};
use crate::{BadInput, bad_input, fit, image, tree, vms};

/// The first four bytes of a flattened device tree, and so of a finished bundle.
const FDT_MAGIC: [u8; 4] = [0xd0, 0x0d, 0xfe, 0xed];

/// Which machines to run.
#[derive(Clone, Debug)]
pub enum Guests {
    /// The bundle linked into keel.
    Linked,
    /// A `vms.toml`, or a bundle already made.
    File(PathBuf),
    /// The short form: one machine.
    One(Box<VmSpec>),
}

/// Which of the two images is run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum BootImage {
    /// The hypervisor.
    #[default]
    Keel,
    /// The hyp stub with one payload, which owns the machine.
    Stub,
}

/// The board to run them on; what is not given has a default.
#[derive(Clone, Debug, Default)]
pub struct BoardOptions {
    /// The image.
    pub image: BootImage,
    /// QEMU's machine.
    pub machine: Option<String>,
    /// GIC version, 2 or 3.
    pub gic: Option<u8>,
    /// CPU model.
    pub cpu: Option<String>,
    /// Number of CPUs.
    pub smp: Option<u32>,
    /// RAM.
    pub ram: Option<MemorySize>,
    /// Count instructions.
    pub icount: bool,
    /// keel's own arguments.
    pub keel_args: String,
    /// For QEMU as they are.
    pub extra: Vec<OsString>,
}

/// How to run them.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// End after this time.
    pub timeout: Option<Duration>,
    /// Copy the console to this file.
    pub log: Option<PathBuf>,
}

/// The board for `options`, running keel with the bundle of `guests`.
///
/// # Errors
///
/// [`BadInput`] when the options or the machines make no sense; otherwise building failed.
pub fn prepare(guests: &Guests, options: &BoardOptions) -> Result<Board> {
    let machine = machine::find(options.machine.as_deref().unwrap_or("virt"))?;
    let bundle = match guests {
        Guests::Linked => None,
        Guests::File(file) => Some(bundle_of(file)?),
        Guests::One(vm) => Some(write_bundle(std::slice::from_ref(vm), &tree::product("run.itb"))?),
    };
    let images = image::build()?;
    let mut board = Board::virt(match options.image {
        BootImage::Keel => images.keel,
        BootImage::Stub => images.stub,
    });
    board.stub = options.image == BootImage::Stub;
    board.machine = machine;
    board.gic = match options.gic {
        None | Some(3) => Gic::V3,
        Some(2) => Gic::V2,
        Some(other) => Err(bad_input!("--gic {other}: the GIC is version 2 or 3"))?,
    };
    if options.gic.is_some() && !machine.chooses_gic {
        Err(bad_input!("--gic: {} has one GIC and offers no choice", machine.name))?;
    }
    board.cpu = options.cpu.clone().unwrap_or_else(|| machine.cpu.into());
    board.smp = options.smp.unwrap_or(board.smp);
    board.ram = options.ram.unwrap_or(board.ram);
    board.icount = options.icount;
    board.initrd = bundle;
    board.append = options.keel_args.clone();
    board.extra = options.extra.clone();
    Ok(board)
}

/// The bundle a file is or describes.
fn bundle_of(file: &Path) -> Result<PathBuf> {
    let mut start = [0; 4];
    let mut opened = File::open(file).map_err(|error| bad_input!("{}: {error}", file.display()))?;
    if opened.read_exact(&mut start).is_ok() && start == FDT_MAGIC {
        let bundle = std::fs::read(file).map_err(|error| bad_input!("{}: {error}", file.display()))?;
        fit::check(&bundle).map_err(|error| bad_input!("{}: {error}", file.display()))?;
        return Ok(file.to_path_buf());
    }
    write_bundle(&vms::read(file)?, &tree::product("run.itb"))
}

/// Writes the bundle of `vms` to a file and returns its path.
///
/// # Errors
///
/// [`BadInput`] when keel would refuse a machine or the file cannot be written.
pub fn write_bundle(vms: &[VmSpec], to: &Path) -> Result<PathBuf> {
    let bundle = fit::write(vms)?;
    fit::check(&bundle)?;
    tree::store(to, &bundle).map_err(|error| bad_input!("{error}"))?;
    Ok(to.to_path_buf())
}

/// Runs a board with its console on the terminal (Ctrl-A x quits) or, without one, on standard input and output.
///
/// # Errors
///
/// QEMU cannot be started, or the log cannot be written.
pub fn run(board: &Board, options: &RunOptions) -> Result<Verdict> {
    let interactive = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let mut command = board.command();
    if interactive {
        command.args(["-serial", "mon:stdio"]);
    } else {
        command.args(["-monitor", "none", "-serial", "stdio"]);
    }
    let mut log = match &options.log {
        None => None,
        Some(path) => Some(File::create(path).map_err(|error| bad_input!("--log {}: {error}", path.display()))?),
    };
    // A signal that ends this process must not leave a QEMU behind. On a terminal, Ctrl-C is the guest's.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted)).context("cannot catch signals")?;
    }
    eprintln!("{}", qemu::shown(&command));
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|error| {
        anyhow::anyhow!("cannot start {}: {error}; `sh qemu/setup.sh run` installs it", qemu::PROGRAM)
    })?;
    let pieces = console(&mut child);
    let end = follow(&pieces, &mut std::io::stdout(), log.as_mut(), options.timeout, &interrupted, interactive);
    qemu::stop(&mut child);
    end.map(|verdict| board.judge(verdict))
}

fn console(child: &mut Child) -> Receiver<Vec<u8>> {
    let (sender, pieces) = channel();
    if let Some(mut stdout) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
    }
    pieces
}

/// Copies the console until QEMU ends, the time is up, a panic report is complete or a signal arrives.
fn follow(
    pieces: &Receiver<Vec<u8>>,
    terminal: &mut impl Write,
    mut log: Option<&mut File>,
    timeout: Option<Duration>,
    interrupted: &AtomicBool,
    interactive: bool,
) -> Result<Verdict> {
    let deadline = timeout.map(|timeout| Instant::now() + timeout);
    let mut panic_deadline = None;
    let mut scanner = Scanner::default();
    loop {
        match pieces.recv_timeout(Duration::from_millis(50)) {
            Ok(piece) => {
                scanner.feed(&piece);
                // A reader that went away (`| head`) is no reason to stop the machine before its time.
                let _ = terminal.write_all(&piece).and_then(|()| terminal.flush());
                if let Some(log) = &mut log {
                    log.write_all(&piece).context("cannot write the log")?;
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(scanner.verdict(interactive)),
        }
        let now = Instant::now();
        if interrupted.load(Ordering::Relaxed) {
            return Ok(Verdict::Quit);
        }
        if scanner.panicked() && now >= *panic_deadline.get_or_insert(now + Duration::from_secs(2)) {
            return Ok(Verdict::Panicked);
        }
        if deadline.is_some_and(|deadline| now >= deadline) {
            return Ok(Verdict::TimedOut);
        }
    }
}

/// Checks that the short form's and the list's options are not mixed.
///
/// # Errors
///
/// Both are given, or an option of the short form without `--kernel`.
pub fn guests(file: Option<PathBuf>, kernel: Option<VmSpec>, short_options: &[&str]) -> Result<Guests, BadInput> {
    match (file, kernel) {
        (Some(file), Some(_)) => Err(bad_input!(
            "both {} and --kernel are given; describe the machine in the one or on the command line",
            file.display()
        )),
        (Some(file), None) if short_options.is_empty() => Ok(Guests::File(file)),
        (None, Some(vm)) => Ok(Guests::One(Box::new(vm))),
        (None, None) if short_options.is_empty() => Ok(Guests::Linked),
        (_, None) => Err(bad_input!("{} needs --kernel", short_options.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_form_and_list_exclude_each_other() {
        let vm = || Some(VmSpec::new("a", "Image"));
        assert!(matches!(guests(None, None, &[]), Ok(Guests::Linked)));
        assert!(matches!(guests(Some("a.toml".into()), None, &[]), Ok(Guests::File(_))));
        assert!(matches!(guests(None, vm(), &["--cpus"]), Ok(Guests::One(_))));
        assert!(guests(Some("a.toml".into()), vm(), &[]).unwrap_err().to_string().contains("--kernel"));
        assert!(guests(None, None, &["--cpus"]).unwrap_err().to_string().contains("--cpus needs --kernel"));
        assert!(guests(Some("a.toml".into()), None, &["--append"]).is_err());
    }

    #[test]
    fn bad_options_are_found_before_anything_is_built() {
        let options = BoardOptions { machine: Some("nope".into()), ..Default::default() };
        let error = prepare(&Guests::Linked, &options).unwrap_err();
        assert!(error.is::<BadInput>(), "{error}");
        let error = prepare(&Guests::File("/nonexistent.toml".into()), &BoardOptions::default()).unwrap_err();
        assert!(error.is::<BadInput>() && error.to_string().contains("/nonexistent.toml"), "{error}");
    }

    #[test]
    fn follow_stops_on_signal_timeout_and_end() {
        let (sender, pieces) = channel();
        let flag = AtomicBool::new(false);
        let quick = Some(Duration::from_millis(120));
        assert_eq!(follow(&pieces, &mut Vec::new(), None, quick, &flag, false).unwrap(), Verdict::TimedOut);
        flag.store(true, Ordering::Relaxed);
        assert_eq!(follow(&pieces, &mut Vec::new(), None, None, &flag, false).unwrap(), Verdict::Quit);
        flag.store(false, Ordering::Relaxed);
        sender.send(b"keel: all VMs ended, powering off (crashed: 1)\r\n".to_vec()).unwrap();
        drop(sender);
        let mut shown = Vec::new();
        assert_eq!(follow(&pieces, &mut shown, None, None, &flag, false).unwrap(), Verdict::Crashed(1));
        assert!(shown.starts_with(b"keel: all VMs ended"));
    }
}
