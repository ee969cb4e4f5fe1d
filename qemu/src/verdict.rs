//! How a run of keel ended, read from its console.
//!
//! keel says so itself in one last line before it powers the board off; a panic says so in a line of its own. QEMU's
//! exit status says nothing: it is 0 whenever the board was powered off.

/// What keel prints last, once all machines have ended; the number of those that crashed follows.
pub const ENDED: &str = "keel: all VMs ended, powering off (crashed: ";

/// What keel says when the machine's owner sends it away: from then on the owner has the last word.
const LEFT: &str = "takes EL2 back; the hyp stub stays";

/// How a panic report starts.
pub const PANIC: &str = "keel: panic:";

/// How QEMU's monitor answers Ctrl-A x.
const QUIT: &str = "QEMU: Terminated";

/// The longest line remembered; the rest of a longer one is not looked at.
const LONGEST_LINE: usize = 4096;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All machines ended well and keel powered the board off.
    Well,
    /// keel powered the board off after this many machines crashed.
    Crashed(u32),
    /// keel reported a broken invariant of its own.
    Panicked,
    /// QEMU ended without keel's last line.
    Silent,
    /// The machine's owner, over the stub, powered the board off, or QEMU ended: nothing more is known.
    PoweredOff,
    /// The user quit QEMU from the terminal.
    Quit,
    /// The time was up.
    TimedOut,
}

impl Verdict {
    /// The exit status of `cargo keel run`.
    pub fn exit_code(self) -> u8 {
        match self {
            Verdict::Well | Verdict::PoweredOff | Verdict::Quit => 0,
            Verdict::Crashed(_) | Verdict::Panicked | Verdict::Silent => 3,
            Verdict::TimedOut => 124,
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Verdict::Well => write!(formatter, "all machines ended well"),
            Verdict::Crashed(count) => write!(formatter, "{count} machine(s) crashed"),
            Verdict::Panicked => write!(formatter, "keel panicked"),
            Verdict::Silent => write!(formatter, "QEMU ended, but keel did not say that its machines had ended"),
            Verdict::PoweredOff => write!(formatter, "the board was powered off"),
            Verdict::Quit => write!(formatter, "quit by the user"),
            Verdict::TimedOut => write!(formatter, "the time was up"),
        }
    }
}

/// Reads a console as it arrives, in pieces of any size.
#[derive(Debug, Default)]
pub struct Scanner {
    line: Vec<u8>,
    crashed: Option<u32>,
    panicked: bool,
    left: bool,
    quit: bool,
}

impl Scanner {
    /// Takes the next bytes of the console.
    pub fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' || byte == b'\r' {
                self.end_of_line();
            } else if self.line.len() < LONGEST_LINE {
                self.line.push(byte);
            }
        }
    }

    fn end_of_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line);
        if let Some((_, rest)) = line.split_once(ENDED) {
            self.crashed = rest.split_once(')').and_then(|(count, _)| count.parse().ok()).or(self.crashed);
        }
        self.panicked |= line.contains(PANIC);
        self.left |= line.contains(LEFT);
        self.quit |= line.contains(QUIT);
        self.line.clear();
    }

    /// Whether a panic has been reported.
    pub fn panicked(&self) -> bool {
        self.panicked
    }

    /// How the run ended, given that QEMU has ended by itself. `interactive`: a user could have quit it.
    pub fn verdict(mut self, interactive: bool) -> Verdict {
        self.end_of_line();
        match self.crashed {
            _ if self.panicked => Verdict::Panicked,
            Some(0) => Verdict::Well,
            Some(count) => Verdict::Crashed(count),
            None if self.quit && interactive => Verdict::Quit,
            None if self.left => Verdict::PoweredOff,
            None => Verdict::Silent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(text: &str, interactive: bool) -> Verdict {
        // One byte at a time: markers split over reads must be found.
        let mut scanner = Scanner::default();
        text.bytes().for_each(|byte| scanner.feed(&[byte]));
        scanner.verdict(interactive)
    }

    #[test]
    fn last_line_decides() {
        assert_eq!(verdict("hello\r\nkeel: all VMs ended, powering off (crashed: 0)\r\n", false), Verdict::Well);
        assert_eq!(verdict("keel: all VMs ended, powering off (crashed: 2)", false), Verdict::Crashed(2));
        assert_eq!(verdict("no newline keel: all VMs ended, powering off (crashed: 0)\n", false), Verdict::Well);
        assert_eq!(verdict("keel: all VMs ended, powering off (crashed: x)\n", false), Verdict::Silent);
    }

    #[test]
    fn panics_and_silence() {
        assert_eq!(verdict("keel: panic: src/x.rs:1\nkeel: all VMs ended, powering off (crashed: 0)\n", false), {
            Verdict::Panicked
        });
        assert_eq!(verdict("", false), Verdict::Silent);
        assert_eq!(verdict("keel: VM root: owns the machine and takes EL2 back; the hyp stub stays\r\n", false), {
            Verdict::PoweredOff
        });
        assert_eq!(verdict("QEMU: Terminated\r\n", true), Verdict::Quit);
        assert_eq!(verdict("QEMU: Terminated\r\n", false), Verdict::Silent);
    }

    #[test]
    fn exit_codes() {
        for (verdict, code) in [
            (Verdict::Well, 0),
            (Verdict::PoweredOff, 0),
            (Verdict::Quit, 0),
            (Verdict::Crashed(1), 3),
            (Verdict::Panicked, 3),
            (Verdict::Silent, 3),
            (Verdict::TimedOut, 124),
        ] {
            assert_eq!(verdict.exit_code(), code);
        }
    }

    #[test]
    fn an_endless_line_uses_no_memory() {
        let mut scanner = Scanner::default();
        scanner.feed(&vec![b'x'; 1 << 20]);
        assert!(scanner.line.len() <= LONGEST_LINE);
    }
}
