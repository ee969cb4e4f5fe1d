//! The console switch: several VMs and keel itself on one terminal.
//!
//! One VM alone has the terminal as if it were its own UART: bytes pass through in both directions. Several share it by
//! the line: each line shows one VM's output behind its name, `[name] `, and whoever cuts into a line that another has
//! not finished starts a new one. The VM in focus gets the input and writes at once; the others' output waits for the
//! end of a line, at most [`PENDING`] bytes of it, so a guest that floods its console costs no memory and cannot tear
//! other guests' lines apart. Ctrl-] and a key switch the focus (Ctrl-] h tells the keys).
//!
//! This is only logic: bytes for the terminal go to a `terminal` argument, bytes for a VM are returned. The owner holds
//! one lock around it.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// Bytes of an unfinished line that a VM out of focus can have waiting.
pub const PENDING: usize = 256;

/// Ctrl-]: the next key is for the switch.
pub const ESCAPE: u8 = 0x1d;

/// Longest part of a name that is shown, in bytes.
const NAME_LIMIT: usize = 32;

/// How the switch's own lines start.
const KEEL: &str = "keel: ";

const HELP: &str = "Ctrl-] then 0-9: input to that VM; n or Tab: to the next one; l: list VMs; \
                    h or ?: this help; Ctrl-]: send Ctrl-]";

/// What a VM is doing, for the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmState {
    /// Some vCPU can run, or waits for an interrupt.
    Running,
    /// It has switched itself off, or was not started.
    Off,
    /// keel stopped it.
    Crashed,
}

impl VmState {
    const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Off => "off",
            Self::Crashed => "crashed",
        }
    }
}

/// Takes bytes for the terminal.
pub type Terminal<'a> = dyn FnMut(&[u8]) + 'a;

/// Writes text to the terminal, with both characters at the end of a line.
struct Lines<'a, 'b>(&'a mut Terminal<'b>);

impl fmt::Write for Lines<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for (number, line) in text.split('\n').enumerate() {
            if number > 0 {
                (self.0)(b"\r\n");
            }
            (self.0)(line.as_bytes());
        }
        Ok(())
    }
}

/// A byte of input for a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input {
    /// The VM's number.
    pub vm: usize,
    /// What was typed.
    pub byte: u8,
}

/// One VM's side of the switch.
#[derive(Debug)]
struct Vm {
    /// `[name] `.
    prefix: String,
    state: VmState,
    /// Output since the last line that was shown; empty for the VM in focus. Never grows beyond [`PENDING`].
    pending: Vec<u8>,
}

/// Who left the line unfinished that the terminal's cursor is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// Nobody: the cursor is at the start of a line.
    Closed,
    /// This VM.
    Open(usize),
    /// This VM, and it has sent a carriage return that is not shown yet.
    Returned(usize),
}

/// The switch.
#[derive(Debug)]
pub struct ConsoleMux {
    vms: Vec<Vm>,
    focus: usize,
    line: Line,
    /// The last byte of input was [`ESCAPE`].
    escaped: bool,
}

impl Default for ConsoleMux {
    fn default() -> Self {
        Self::new()
    }
}

impl ConsoleMux {
    /// A switch without VMs.
    pub const fn new() -> Self {
        Self { vms: Vec::new(), focus: 0, line: Line::Closed, escaped: false }
    }

    /// Adds a VM that is running, before any VM writes, and returns its number: 0 for the first, which has the focus.
    /// Bytes of the name that are not printable ASCII are shown as `?`.
    pub fn add(&mut self, name: &str) -> usize {
        let printable = |byte: u8| if byte.is_ascii_graphic() { char::from(byte) } else { '?' };
        let mut prefix = String::from("[");
        prefix.extend(name.bytes().take(NAME_LIMIT).map(printable));
        prefix.push_str("] ");
        self.vms.push(Vm { prefix, state: VmState::Running, pending: Vec::with_capacity(PENDING) });
        self.vms.len() - 1
    }

    /// Notes what a VM is doing now. What one that has ended left unfinished is shown.
    pub fn set_state(&mut self, vm: usize, state: VmState, terminal: &mut Terminal) {
        if state != VmState::Running {
            self.flush(vm, terminal);
        }
        if let Some(vm) = self.vms.get_mut(vm) {
            vm.state = state;
        }
    }

    /// The number of the VM that gets the input.
    pub fn focus(&self) -> usize {
        self.focus
    }

    /// A VM writes.
    pub fn output(&mut self, vm: usize, bytes: &[u8], terminal: &mut Terminal) {
        if self.is_single() {
            if let Some(last) = bytes.last() {
                terminal(bytes);
                self.line = if *last == b'\n' { Line::Closed } else { Line::Open(vm) };
            }
        } else if vm == self.focus {
            bytes.iter().for_each(|byte| self.show(vm, *byte, terminal));
        } else {
            bytes.iter().for_each(|byte| self.hold(vm, *byte, terminal));
        }
    }

    /// keel itself writes: `text` is shown as lines of its own, the last one ended.
    pub fn message(&mut self, text: fmt::Arguments<'_>, terminal: &mut Terminal) {
        self.close(terminal);
        // Neither the writer nor what keel formats fails.
        let _ = fmt::write(&mut Lines(terminal), text);
        terminal(b"\r\n");
    }

    /// A byte was typed; returns what a VM is to receive. Keys for the switch are obeyed here.
    pub fn input(&mut self, byte: u8, terminal: &mut Terminal) -> Option<Input> {
        let to_focus = Some(Input { vm: self.focus, byte });
        if self.is_single() {
            return to_focus;
        }
        if !core::mem::take(&mut self.escaped) {
            self.escaped = byte == ESCAPE;
            return to_focus.filter(|_| !self.escaped);
        }
        match byte {
            ESCAPE => return to_focus,
            b'0'..=b'9' => self.set_focus(usize::from(byte - b'0'), terminal),
            b'n' | b'\t' => self.set_focus(self.next_running(), terminal),
            b'l' => self.list(terminal),
            _ => self.message(format_args!("{KEEL}{HELP}"), terminal),
        }
        None
    }

    /// Gives a VM the input, and shows what it has waiting.
    pub fn set_focus(&mut self, vm: usize, terminal: &mut Terminal) {
        let Some(prefix) = self.vms.get(vm).map(|vm| vm.prefix.clone()) else {
            return self.message(format_args!("{KEEL}there is no VM {vm}; Ctrl-] l lists them"), terminal);
        };
        self.focus = vm;
        self.message(format_args!("{KEEL}input goes to {}", prefix.trim_end()), terminal);
        self.flush(vm, terminal);
    }

    /// With one VM, or none, there is nothing to switch.
    fn is_single(&self) -> bool {
        self.vms.len() <= 1
    }

    /// The VM after the one in focus, leaving out those that have ended if any still runs.
    fn next_running(&self) -> usize {
        let count = self.vms.len();
        let after = (1..=count).map(|step| (self.focus + step) % count.max(1));
        let running = |vm: &usize| self.vms.get(*vm).is_some_and(|vm| vm.state == VmState::Running);
        after.clone().find(running).or_else(|| after.clone().next()).unwrap_or(self.focus)
    }

    fn list(&mut self, terminal: &mut Terminal) {
        self.close(terminal);
        for (number, vm) in self.vms.iter().enumerate() {
            let mark = if number == self.focus { '*' } else { ' ' };
            let _ = fmt::write(
                &mut Lines(terminal),
                format_args!("{KEEL}{mark} {number} {}{}\n", vm.prefix, vm.state.name()),
            );
        }
    }

    /// Keeps a byte until its line is complete, or there is no more room.
    fn hold(&mut self, number: usize, byte: u8, terminal: &mut Terminal) {
        let Some(vm) = self.vms.get_mut(number) else { return };
        vm.pending.push(byte);
        if byte == b'\n' || vm.pending.len() == PENDING {
            self.flush(number, terminal);
        }
    }

    /// Shows what a VM has waiting.
    fn flush(&mut self, number: usize, terminal: &mut Terminal) {
        let Some(vm) = self.vms.get_mut(number) else { return };
        let mut pending = core::mem::take(&mut vm.pending);
        pending.iter().for_each(|byte| self.show(number, *byte, terminal));
        pending.clear();
        // The same memory, for the next line.
        if let Some(vm) = self.vms.get_mut(number) {
            vm.pending = pending;
        }
    }

    /// Ends a line that somebody left unfinished.
    fn close(&mut self, terminal: &mut Terminal) {
        if self.line != Line::Closed {
            terminal(b"\r\n");
            self.line = Line::Closed;
        }
    }

    /// Puts a byte of a VM on the terminal, in a line that is that VM's. A carriage return is shown with what follows
    /// it: the end of the line, or the name again and the text that replaces the line's.
    fn show(&mut self, number: usize, byte: u8, terminal: &mut Terminal) {
        if !matches!(self.line, Line::Open(owner) | Line::Returned(owner) if owner == number) {
            self.close(terminal);
        }
        let prefix = self.vms.get(number).map_or(&[][..], |vm| vm.prefix.as_bytes());
        match (self.line, byte) {
            (Line::Closed, b'\r') => {}
            (_, b'\r') => self.line = Line::Returned(number),
            (line, b'\n') => {
                if line == Line::Closed {
                    terminal(prefix);
                }
                terminal(b"\r\n");
                self.line = Line::Closed;
            }
            (line, byte) => {
                match line {
                    Line::Closed => terminal(prefix),
                    Line::Returned(_) => {
                        terminal(b"\r");
                        terminal(prefix);
                    }
                    Line::Open(_) => {}
                }
                terminal(&[byte]);
                self.line = Line::Open(number);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A switch with VMs `a`, `b` … and everything its terminal has shown.
    struct Bench {
        mux: ConsoleMux,
        shown: Vec<u8>,
    }

    impl Bench {
        fn new(names: &[&str]) -> Self {
            let mut mux = ConsoleMux::new();
            for (number, name) in names.iter().enumerate() {
                assert_eq!(mux.add(name), number);
            }
            Self { mux, shown: Vec::new() }
        }

        fn output(&mut self, vm: usize, text: &str) {
            self.mux.output(vm, text.as_bytes(), &mut |bytes| self.shown.extend_from_slice(bytes));
        }

        fn message(&mut self, text: &str) {
            self.mux.message(format_args!("{text}"), &mut |bytes| self.shown.extend_from_slice(bytes));
        }

        fn set_state(&mut self, vm: usize, state: VmState) {
            self.mux.set_state(vm, state, &mut |bytes| self.shown.extend_from_slice(bytes));
        }

        /// Types, and returns what VMs received.
        fn input(&mut self, keys: &[u8]) -> Vec<(usize, u8)> {
            let mut received = Vec::new();
            for key in keys {
                let input = self.mux.input(*key, &mut |bytes| self.shown.extend_from_slice(bytes));
                received.extend(input.map(|input| (input.vm, input.byte)));
            }
            received
        }

        /// What the terminal has shown since the last call.
        fn shown(&mut self) -> String {
            String::from_utf8(core::mem::take(&mut self.shown)).unwrap()
        }
    }

    #[test]
    fn one_vm_has_the_terminal_to_itself() {
        let mut bench = Bench::new(&["only"]);
        let raw = "a\n\r\x1b[2Jb\0\r\rc\n\n";
        bench.output(0, raw);
        assert_eq!(bench.shown(), raw);
        let keys: Vec<u8> = (0..=255).chain([ESCAPE, b'l', ESCAPE, ESCAPE]).collect();
        assert_eq!(bench.input(&keys), keys.iter().map(|key| (0, *key)).collect::<Vec<_>>());
        assert_eq!(bench.shown(), "");
    }

    #[test]
    fn messages_have_their_own_lines() {
        let mut bench = Bench::new(&["only"]);
        bench.message("hello");
        bench.output(0, "login: ");
        bench.message("one\ntwo");
        bench.output(0, "root\n");
        bench.message("bye");
        assert_eq!(bench.shown(), "hello\r\nlogin: \r\none\r\ntwo\r\nroot\nbye\r\n");
        let mut bench = Bench::new(&["a", "b"]);
        bench.output(0, "x");
        bench.message("m");
        assert_eq!(bench.shown(), "[a] x\r\nm\r\n");
    }

    #[test]
    fn lines_carry_names() {
        let mut bench = Bench::new(&["a", "b"]);
        bench.output(0, "hello\r\n");
        bench.output(1, "world\r\n");
        bench.output(0, "\r\n\n");
        assert_eq!(bench.shown(), "[a] hello\r\n[b] world\r\n[a] \r\n[a] \r\n");
    }

    #[test]
    fn focus_writes_at_once_and_others_by_the_line() {
        let mut bench = Bench::new(&["a", "b"]);
        bench.output(1, "wor");
        assert_eq!(bench.shown(), "");
        bench.output(0, "$ ");
        assert_eq!(bench.shown(), "[a] $ ");
        bench.output(1, "ld");
        assert_eq!(bench.shown(), "");
        bench.output(1, "\n");
        assert_eq!(bench.shown(), "\r\n[b] world\r\n");
        bench.output(0, "ls\n");
        assert_eq!(bench.shown(), "[a] ls\r\n");
    }

    #[test]
    fn carriage_returns_keep_the_name() {
        let mut bench = Bench::new(&["a", "b"]);
        bench.output(0, "10%\r20%\r\r30%\r\n");
        assert_eq!(bench.shown(), "[a] 10%\r[a] 20%\r[a] 30%\r\n");
        bench.output(0, "\rx\r");
        bench.output(1, "y\n");
        assert_eq!(bench.shown(), "[a] x\r\n[b] y\r\n");
    }

    #[test]
    fn a_flood_is_bounded() {
        let mut bench = Bench::new(&["a", "b"]);
        for _ in 0..PENDING - 1 {
            bench.output(1, "z");
        }
        assert_eq!(bench.shown(), "");
        bench.output(1, "zz");
        assert_eq!(bench.shown(), format!("[b] {}", "z".repeat(PENDING)));
        bench.output(0, "x\n");
        assert_eq!(bench.shown(), "\r\n[a] x\r\n");
        bench.output(1, &"z".repeat(100_000));
        assert!(bench.mux.vms.iter().all(|vm| vm.pending.len() < PENDING && vm.pending.capacity() == PENDING));
    }

    #[test]
    fn input_goes_to_the_focus() {
        let mut bench = Bench::new(&["a", "b", "c"]);
        assert_eq!(bench.input(b"x"), [(0, b'x')]);
        bench.output(2, "login: ");
        assert_eq!(bench.input(b"\x1d2root"), [(2, b'r'), (2, b'o'), (2, b'o'), (2, b't')]);
        assert_eq!(bench.shown(), "keel: input goes to [c]\r\n[c] login: ");
        assert_eq!(bench.input(b"\x1dny"), [(0, b'y')]);
        assert_eq!(bench.input(b"\x1d\ty"), [(1, b'y')]);
        assert_eq!(bench.input(b"\x1d\x1dy"), [(1, ESCAPE), (1, b'y')]);
        assert_eq!(bench.mux.focus(), 1);
    }

    #[test]
    fn keys_of_the_switch() {
        let mut bench = Bench::new(&["a", "b"]);
        bench.set_state(1, VmState::Crashed);
        bench.input(b"\x1dl");
        assert_eq!(bench.shown(), "keel: * 0 [a] running\r\nkeel:   1 [b] crashed\r\n");
        bench.input(b"\x1d9");
        assert_eq!(bench.shown(), "keel: there is no VM 9; Ctrl-] l lists them\r\n");
        for help in [b"\x1d?", b"\x1dh", b"\x1dz"] {
            assert_eq!(bench.input(help), []);
            assert!(bench.shown().starts_with("keel: Ctrl-] then 0-9"));
        }
        assert_eq!(bench.input(b"\x1dnx"), [(0, b'x')], "b has ended");
        bench.set_state(0, VmState::Off);
        assert_eq!(bench.input(b"\x1dnx"), [(1, b'x')], "all have ended");
    }

    #[test]
    fn the_last_words_of_a_vm_are_shown() {
        let mut bench = Bench::new(&["a", "b"]);
        bench.output(1, "panic");
        bench.set_state(1, VmState::Crashed);
        assert_eq!(bench.shown(), "[b] panic");
    }

    #[test]
    fn odd_names_and_numbers() {
        let mut bench = Bench::new(&["a", "x\x1b[31m\n ä", &"l".repeat(100)]);
        bench.output(1, "1\n");
        bench.output(2, "2\n");
        bench.output(3, "nobody\n");
        bench.set_state(7, VmState::Off);
        let long = "l".repeat(NAME_LIMIT);
        assert_eq!(bench.shown(), format!("[x?[31m????] 1\r\n[{long}] 2\r\n"));
        let mut none = Bench::new(&[]);
        none.output(0, "x");
        assert_eq!(none.input(b"\x1dn"), [(0, ESCAPE), (0, b'n')]);
    }

    /// What a test does to the switch.
    #[derive(Clone, Debug)]
    enum Step {
        Output(usize, Vec<u8>),
        Focus(u8),
        Message,
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let byte = prop_oneof![8 => b'a'..=b'z', 1 => Just(b'\n')];
        prop_oneof![
            6 => (0usize..3, proptest::collection::vec(byte, 0..400)).prop_map(|(vm, bytes)| Step::Output(vm, bytes)),
            1 => (b'0'..=b'2').prop_map(Step::Focus),
            1 => Just(Step::Message),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        /// Each line of the terminal is one VM's, and every VM's text is there, in order, in whole lines where nobody
        /// cut into them.
        #[test]
        fn lines_are_never_mixed(steps in proptest::collection::vec(any_step(), 0..60)) {
            let mut bench = Bench::new(&["A", "B", "C"]);
            let mut written = [const { Vec::new() }; 3];
            for step in steps {
                match step {
                    Step::Output(vm, bytes) => {
                        bench.output(vm, core::str::from_utf8(&bytes).unwrap());
                        written[vm].extend(bytes);
                    }
                    Step::Focus(key) => prop_assert_eq!(bench.input(&[ESCAPE, key]), []),
                    Step::Message => bench.message("keel: note"),
                }
                prop_assert!(bench.mux.vms.iter().all(|vm| vm.pending.len() < PENDING));
                let focus = bench.mux.focus();
                prop_assert!(bench.mux.vms[focus].pending.is_empty());
            }
            (0..3).for_each(|vm| bench.set_state(vm, VmState::Off));
            let mut read = [const { Vec::new() }; 3];
            for line in bench.shown().split("\r\n").filter(|line| !line.is_empty()) {
                prop_assert!(!line.contains(['\r', '\n']));
                let (name, text) = line.split_at(4);
                match name {
                    "[A] " => read[0].push(text.to_owned()),
                    "[B] " => read[1].push(text.to_owned()),
                    "[C] " => read[2].push(text.to_owned()),
                    _ => prop_assert!(line.starts_with(KEEL), "{line}"),
                }
            }
            for (written, read) in written.iter().zip(&read) {
                let written = core::str::from_utf8(written).unwrap();
                prop_assert_eq!(written.replace('\n', ""), read.concat());
                // Each line that was written ends one that was shown, one to one.
                let mut shown = read.iter();
                for line in written.split_terminator('\n') {
                    let mut rest = line;
                    loop {
                        let piece = shown.next();
                        prop_assert!(piece.is_some());
                        match rest.strip_prefix(piece.unwrap().as_str()) {
                            Some("") => break,
                            Some(tail) => rest = tail,
                            None => prop_assert!(false, "{piece:?} is not the start of {rest:?}"),
                        }
                    }
                }
            }
        }

        #[test]
        fn any_bytes(
            steps in proptest::collection::vec(
                (any::<bool>(), 0usize..4, proptest::collection::vec(any::<u8>(), 0..50)), 0..50
            )
        ) {
            let mut mux = ConsoleMux::new();
            (0..3).for_each(|_| { mux.add("x"); });
            for (input, vm, bytes) in steps {
                if input {
                    for byte in bytes {
                        let received = mux.input(byte, &mut |_| ());
                        prop_assert!(received.is_none_or(|input| input.vm < 3 && input.byte == byte));
                    }
                } else {
                    mux.output(vm, &bytes, &mut |_| ());
                }
                prop_assert!(mux.vms.iter().all(|vm| vm.pending.len() < PENDING));
            }
        }
    }
}
