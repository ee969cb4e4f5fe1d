//! The tests that boot QEMU.
//!
//! Everything goes the way a user's run goes: images are built, bundles are written and boards are started by the
//! host tool's library. A test that cannot run (Debian's kernels were not fetched) is reported as ignored with its
//! reason. Two boards run at a time; `cargo test -p keel-qemu --test qemu -- NAME` chooses tests by name.

mod aarch32;
mod bundles;
mod debian;
mod demo;
mod gicv2;
mod kernel;
mod late;
mod monitor;
mod oracle;
mod pmu;
mod root;
mod spin_table;
mod stub;
mod tool;
mod trial;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::Duration;

use keel_qemu::fit;
use keel_qemu::image::{self, Guests, Images};
use keel_qemu::qemu::{self, Board, Ending};
use keel_qemu::run::write_bundle;
use keel_qemu::tree;
use keel_qemu::verdict::Verdict;
use keel_qemu::vms::VmSpec;
use libtest_mimic::{Arguments, Failed, Trial};

/// What a test ends with: nothing, or why it failed.
type Outcome = Result<(), Failed>;

/// The most a test may take: generous, because the host may be slow and shared.
const LIMIT: Duration = Duration::from_secs(300);

/// The images, built once by whichever test is first.
fn images() -> Result<&'static Images, Failed> {
    static IMAGES: OnceLock<Result<Images, String>> = OnceLock::new();
    IMAGES.get_or_init(|| image::build().map_err(|error| format!("{error:#}"))).as_ref().map_err(|error| error.into())
}

/// The guests of this tree, built once.
fn guests() -> Result<&'static Guests, Failed> {
    static GUESTS: OnceLock<Result<Guests, String>> = OnceLock::new();
    let built = GUESTS.get_or_init(|| image::build_guests().map_err(|error| format!("{error:#}")));
    built.as_ref().map_err(|error| error.into())
}

/// A board that runs keel with a bundle of `vms`; `name` tells its bundle from others.
fn board(name: &str, vms: &[VmSpec]) -> Result<Board, Failed> {
    let mut board = Board::virt(&images()?.keel);
    if !vms.is_empty() {
        board.initrd = Some(write_bundle(vms, &tree::product(&format!("test-{name}.itb")))?);
    }
    Ok(board)
}

/// Runs a board to its end, which must be good.
fn run_well(board: &Board) -> Result<String, Failed> {
    let ending = qemu::run_to_end(board, LIMIT)?;
    if ending.verdict != Verdict::Well {
        return Err(failure(&ending, &ending.verdict.to_string()));
    }
    Ok(ending.output)
}

/// The text of one VM beside a board's owner, without keel's mark of whose it is.
fn text_of(vm: &str, console: &str) -> String {
    let mark = format!("[{vm}] ");
    let lines = console.lines().filter_map(|line| line.split_once(&mark).map(|(_, text)| text));
    lines.collect::<Vec<_>>().join("\n")
}

/// A console of its own for a guest that owns the board's UART beside VMs: keel writes their lines there, and two writers'
/// characters would mix. The file it goes to is read when the board has stopped.
struct OwnConsole(PathBuf);

impl OwnConsole {
    fn new(board: &mut Board, name: &str, device: [&str; 2]) -> Self {
        let path = tree::product(&format!("test-{name}.log"));
        let chardev = format!("file,id=own,path={}", path.display());
        board.extra.extend(["-chardev", &chardev].into_iter().chain(device).map(OsString::from));
        Self(path)
    }

    /// For Linux with `console=ttyS0`: a 16550 on the PCI bus.
    fn pci(board: &mut Board, name: &str) -> Self {
        Self::new(board, name, ["-device", "pci-serial,chardev=own"])
    }

    /// For the test kernel with `console=semihosting`.
    fn semihosting(board: &mut Board, name: &str) -> Self {
        Self::new(board, name, ["-semihosting-config", "enable=on,target=native,chardev=own"])
    }

    fn text(&self) -> Result<String, Failed> {
        Ok(String::from_utf8_lossy(&std::fs::read(&self.0)?).into_owned())
    }
}

/// A failure with all that is needed to repeat and understand it.
fn failure(ending: &Ending, reason: &str) -> Failed {
    format!("{reason}\ncommand: {}\n{}console:\n{}", ending.command, ending.diagnostics, ending.output).into()
}

/// Requires a line of text in a console.
fn expect(console: &str, text: &str) -> Outcome {
    if console.contains(text) { Ok(()) } else { Err(format!("no `{text}` in the console:\n{console}").into()) }
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // A board is two busy threads; more at a time only makes each slower.
    arguments.test_threads = arguments.test_threads.or(Some(2));
    let mut trials: Vec<Trial> = Vec::new();
    trials.extend(tool::trials());
    trials.extend(demo::trials());
    trials.extend(kernel::trials());
    trials.extend(pmu::trials());
    trials.extend(bundles::trials());
    trials.extend(debian::trials());
    trials.extend(gicv2::trials());
    trials.extend(aarch32::trials());
    trials.extend(stub::trials());
    trials.extend(root::trials());
    trials.extend(monitor::trials());
    trials.extend(late::trials());
    trials.extend(spin_table::trials());
    trials.extend(oracle::trials());
    let conclusion = libtest_mimic::run(&arguments, trials);
    trial::report();
    conclusion.exit_code()
}
