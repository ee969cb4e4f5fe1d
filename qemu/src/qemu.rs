//! A QEMU process: its command line, its console, its end.
//!
//! [`Board`] is the machine to model; [`Board::command`] its command line. [`Session`] is a running QEMU whose console
//! is collected and searched, for tests and measurements; the interactive `run` shares the command line only.
//! A session that is dropped takes its QEMU with it.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::machine::{self, Gic, Machine};
use crate::verdict::{Scanner, Verdict};
use crate::vms::MemorySize;

/// The program that models arm64 boards.
pub const PROGRAM: &str = "qemu-system-aarch64";

/// A board and what is loaded into it.
#[derive(Clone, Debug)]
pub struct Board {
    /// The machine.
    pub machine: &'static Machine,
    /// Its interrupt controller, where there is a choice.
    pub gic: Gic,
    /// Whether `kernel` is the stub: its payload owns the machine and has the last word.
    pub stub: bool,
    /// Whether EL2 exists (and is entered); without it the image is entered at EL1.
    pub el2: bool,
    /// CPU model.
    pub cpu: String,
    /// Number of CPUs.
    pub smp: u32,
    /// Bytes of RAM.
    pub ram: MemorySize,
    /// Virtual time advances one nanosecond per instruction, and the run repeats exactly.
    pub icount: bool,
    /// The image for `-kernel`.
    pub kernel: PathBuf,
    /// The file for `-initrd`: keel's bundle.
    pub initrd: Option<PathBuf>,
    /// The text for `-append`: keel's own arguments.
    pub append: String,
    /// More arguments, last.
    pub extra: Vec<OsString>,
}

impl Board {
    /// `virt` with GICv3, `-cpu max`, 2 CPUs and 2 GiB, entered at EL2 with `kernel`.
    pub fn virt(kernel: impl Into<PathBuf>) -> Self {
        let machine = &machine::MACHINES[0];
        Board {
            machine,
            gic: Gic::V3,
            stub: false,
            el2: true,
            cpu: machine.cpu.into(),
            smp: 2,
            ram: MemorySize(2 << 30),
            icount: false,
            kernel: kernel.into(),
            initrd: None,
            append: String::new(),
            extra: Vec::new(),
        }
    }

    /// What the end of a run on this board means: over the stub nobody but the payload says that it is over.
    pub fn judge(&self, verdict: Verdict) -> Verdict {
        if self.stub && verdict == Verdict::Silent { Verdict::PoweredOff } else { verdict }
    }

    /// The command line but for where the console goes.
    pub fn command(&self) -> Command {
        let mut properties = self.machine.name.to_string();
        let mut property = |text: &str| {
            properties.push(',');
            properties.push_str(text);
        };
        if self.el2 && !self.machine.properties.is_empty() {
            property(self.machine.properties);
        }
        if self.machine.chooses_gic {
            property(&format!("gic-version={}", self.gic.number()));
        }
        if self.icount && self.machine.has_randomness {
            property("dtb-randomness=off");
        }
        let mut command = Command::new(PROGRAM);
        command.args(["-M", &properties, "-cpu", &machine::cpu_argument(&self.cpu)]);
        command.args(["-smp", &self.smp.to_string(), "-m", &format!("{}k", self.ram.0 >> 10)]);
        command.args(["-nic", "none", "-nographic"]);
        if self.icount {
            command.args(["-icount", "shift=0,sleep=off", "-seed", "1", "-rtc", "clock=vm"]);
        }
        command.arg("-kernel").arg(&self.kernel);
        if let Some(initrd) = &self.initrd {
            command.arg("-initrd").arg(initrd);
        }
        if !self.append.is_empty() {
            command.args(["-append", &self.append]);
        }
        command.args(&self.extra);
        command
    }
}

/// A command as a line for a shell.
pub fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let quoted = words.map(|word| {
        let word = word.to_string_lossy();
        let plain = !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_=,./:+%".contains(c));
        if plain { word.into_owned() } else { format!("'{}'", word.replace('\'', r"'\''")) }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

/// Asks a process to end, then makes it: QEMU restores the terminal when it is asked.
pub fn stop(child: &mut Child) {
    if let Ok(None) = child.try_wait() {
        if let Some(pid) = rustix::process::Pid::from_raw(child.id() as i32) {
            // An error means that it has just ended by itself.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let deadline = Instant::now() + Duration::from_secs(2);
        while Instant::now() < deadline && matches!(child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
    }
    let _ = child.wait();
}

/// Why [`Session::wait_for`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The text was seen.
    Seen,
    /// QEMU ended before.
    Ended,
    /// The time was up before.
    TimedOut,
}

/// Where a piece of output came from: the console, or QEMU itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    Console,
    Diagnostics,
}

/// A running QEMU and what its console has printed.
#[derive(Debug)]
pub struct Session {
    child: Child,
    stdin: Option<ChildStdin>,
    pieces: Receiver<(Stream, Vec<u8>)>,
    output: Vec<u8>,
    diagnostics: Vec<u8>,
    searched: usize,
    deadline: Instant,
    command: String,
}

impl Session {
    /// Starts a board; it is stopped `limit` from now at the latest.
    ///
    /// # Errors
    ///
    /// QEMU cannot be started.
    pub fn start(board: &Board, limit: Duration) -> Result<Self> {
        let mut command = board.command();
        command.args(["-monitor", "none", "-serial", "stdio"]);
        Self::spawn(command, limit)
    }

    /// Starts any command whose standard output is a console.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn spawn(mut command: Command, limit: Duration) -> Result<Self> {
        let shown = shown(&command);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
        let stdin = child.stdin.take();
        let (sender, pieces) = channel();
        let streams: [(Stream, Option<Box<dyn Read + Send>>); 2] = [
            (Stream::Console, child.stdout.take().map(|stream| Box::new(stream) as Box<dyn Read + Send>)),
            (Stream::Diagnostics, child.stderr.take().map(|stream| Box::new(stream) as Box<dyn Read + Send>)),
        ];
        for (name, stream) in streams {
            let Some(mut stream) = stream else { continue };
            let sender = sender.clone();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    if sender.send((name, buffer[..count].to_vec())).is_err() {
                        break;
                    }
                }
            });
        }
        let deadline = Instant::now() + limit;
        let (output, diagnostics) = (Vec::new(), Vec::new());
        Ok(Session { child, stdin, pieces, output, diagnostics, searched: 0, deadline, command: shown })
    }

    /// The command line, for messages.
    pub fn command(&self) -> &str {
        &self.command
    }

    /// Everything the console has printed so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }

    /// Types on the console.
    ///
    /// # Errors
    ///
    /// QEMU has ended.
    pub fn send(&mut self, text: &str) -> std::io::Result<()> {
        match &mut self.stdin {
            Some(stdin) => stdin.write_all(text.as_bytes()).and_then(|()| stdin.flush()),
            None => Ok(()),
        }
    }

    /// Waits until the console has printed `text` after what earlier calls found.
    pub fn wait_for(&mut self, text: &str) -> Event {
        loop {
            if let Some(position) = find(&self.output[self.searched..], text.as_bytes()) {
                self.searched += position + text.len();
                return Event::Seen;
            }
            match self.receive() {
                Ok(()) => {}
                Err(RecvTimeoutError::Disconnected) => return Event::Ended,
                Err(RecvTimeoutError::Timeout) => return Event::TimedOut,
            }
        }
    }

    fn receive(&mut self) -> Result<(), RecvTimeoutError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let (stream, piece) = self.pieces.recv_timeout(left)?;
        match stream {
            Stream::Console => self.output.extend_from_slice(&piece),
            Stream::Diagnostics => self.diagnostics.extend_from_slice(&piece),
        }
        Ok(())
    }

    /// Waits for QEMU to end by itself, or the limit; returns the transcript and what it says.
    ///
    /// A keel that has panicked does not power off: it is given two seconds to finish its report.
    pub fn finish(mut self) -> Ending {
        let mut scanner = Scanner::default();
        scanner.feed(&self.output);
        loop {
            let before = self.output.len();
            match self.receive() {
                Ok(()) => scanner.feed(&self.output[before..]),
                Err(RecvTimeoutError::Timeout) if scanner.panicked() => break,
                Err(RecvTimeoutError::Timeout) => return self.ending(Verdict::TimedOut),
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if scanner.panicked() {
                self.deadline = self.deadline.min(Instant::now() + Duration::from_secs(2));
            }
        }
        let verdict = scanner.verdict(false);
        self.ending(verdict)
    }

    fn ending(mut self, verdict: Verdict) -> Ending {
        stop(&mut self.child);
        let diagnostics = String::from_utf8_lossy(&self.diagnostics).into_owned();
        Ending { output: self.output(), diagnostics, verdict, command: std::mem::take(&mut self.command) }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        stop(&mut self.child);
    }
}

/// The transcript of a run that is over.
#[derive(Clone, Debug)]
pub struct Ending {
    /// Everything the console printed.
    pub output: String,
    /// QEMU's own messages.
    pub diagnostics: String,
    /// What it says.
    pub verdict: Verdict,
    /// The command line.
    pub command: String,
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len().max(1)).position(|window| window == needle)
}

/// Runs a board to its end.
///
/// # Errors
///
/// QEMU cannot be started.
pub fn run_to_end(board: &Board, limit: Duration) -> Result<Ending> {
    let mut ending = Session::start(board, limit)?.finish();
    ending.verdict = board.judge(ending.verdict);
    Ok(ending)
}

/// The version of the QEMU in the path, as (major, minor).
///
/// # Errors
///
/// There is none, or it does not say.
pub fn version() -> Result<(u32, u32)> {
    let output = Command::new(PROGRAM)
        .arg("--version")
        .output()
        .with_context(|| format!("cannot start {PROGRAM}; run `sh qemu/setup.sh run`, which installs it"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_version(&text).with_context(|| format!("{PROGRAM} --version printed {text:?}"))
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_once("version ")?.1.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// A file whose contents are a board's device tree, written by QEMU itself (`dumpdtb`).
///
/// # Errors
///
/// QEMU cannot be started or refuses the board.
pub fn dump_tree(board: &Board, to: &Path) -> Result<()> {
    let mut command = board.command();
    command.args(["-machine", &format!("dumpdtb={}", to.display()), "-display", "none"]);
    let output = command.output().with_context(|| format!("cannot start {}", shown(&command)))?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, limit_ms: u64) -> Session {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Session::spawn(command, Duration::from_millis(limit_ms)).unwrap()
    }

    #[test]
    fn command_line_is_the_documented_one() {
        let mut board = Board::virt("keel.img");
        board.initrd = Some("a b.itb".into());
        board.append = "keel.loglevel=debug".into();
        assert_eq!(
            shown(&board.command()),
            "qemu-system-aarch64 -M virt,virtualization=on,gic-version=3 -cpu max,pauth-impdef=on -smp 2 -m 2097152k \
             -nic none -nographic -kernel keel.img -initrd 'a b.itb' -append keel.loglevel=debug"
        );
        board.icount = true;
        board.gic = Gic::V2;
        let line = shown(&board.command());
        assert!(line.contains("gic-version=2,dtb-randomness=off"), "{line}");
        assert!(line.contains("-icount shift=0,sleep=off -seed 1 -rtc clock=vm"), "{line}");
    }

    #[test]
    fn a_console_is_searched_forward_only() {
        let mut session =
            shell("echo boot; echo boot; read line; echo got $line; echo complaint >&2; echo keel: panic: x", 20_000);
        assert_eq!(session.wait_for("boot"), Event::Seen);
        assert_eq!(session.wait_for("boot"), Event::Seen);
        session.send("hello\n").unwrap();
        assert_eq!(session.wait_for("got hello"), Event::Seen);
        assert_eq!(session.wait_for("boot"), Event::Ended);
        let ending = session.finish();
        assert_eq!((ending.verdict, ending.diagnostics.as_str()), (Verdict::Panicked, "complaint\n"));
        assert!(!ending.output.contains("complaint"));
    }

    #[test]
    fn the_limit_ends_a_silent_machine() {
        let started = Instant::now();
        let ending = shell("echo started; exec sleep 60", 300).finish();
        assert_eq!(ending.verdict, Verdict::TimedOut);
        assert!(ending.output.contains("started"));
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_panic_report_is_not_waited_for_till_the_limit() {
        let started = Instant::now();
        let ending = shell("echo keel: panic: broken; exec sleep 600", 500_000).finish();
        assert_eq!(ending.verdict, Verdict::Panicked);
        assert!(started.elapsed() < Duration::from_secs(60));
    }

    #[test]
    fn versions() {
        assert_eq!(parse_version("QEMU emulator version 10.0.2 (Debian 1:10)"), Some((10, 0)));
        assert_eq!(parse_version("something else"), None);
    }
}
