//! The same calls, good and bad, wherever they are made: the list two implementations of the API are compared by.
//!
//! Each call prints one line, `transcript: api PART/N WHAT -> ANSWER`: the result, or the error number negated, and what was
//! written to memory. WHAT is the same everywhere and no two are alike. What may differ between two runs (handles,
//! addresses, times) is a word in angle brackets. The last line is `transcript: N lines`.
//!
//! Nothing is judged here, and nothing depends on an answer, but that a call on something that could not be made is made
//! on a handle that nobody has.

mod attributes;
mod events;
mod gic;
mod log;
mod machine;
mod memory;
mod objects;
mod pmu;
mod registers;
mod runs;
mod vcpu;

use crate::{
    Backend, SYSTEM,
    handle::{address, address_mut},
    number,
    page::Page,
    run::{Exit, RunPage},
    uapi::{DeviceAttr, OneReg, cap, device, exit, reg},
};
use core::fmt::{self, Arguments};

/// A handle that nobody has.
const NOBODY: u64 = 0x7fff_ffff;
/// Addresses that nothing is at: in the middle of what a program can name, and beyond.
const NOWHERE: [u64; 2] = [1 << 46, 1 << 60];
/// What memory has that a call may write to.
const FILL: u64 = 0xa5a5_a5a5_a5a5_a5a5;
/// Pages for guests.
pub const PAGES: usize = 192;

/// The memory that the script needs: pages that belong to nobody else.
static RAM: [Page; PAGES] = [Page::ZERO; PAGES];
/// For two vCPUs.
static RUN: [Page; 2] = [Page::ZERO; 2];

pub use events::Events;

/// Makes all calls, and prints the lines. `clean` cleans the caches of a page that was written for a guest.
pub fn run<B: Backend>(backend: &B, events: &dyn Events, clean: &dyn Fn(&Page), print: &mut dyn FnMut(Arguments<'_>)) {
    let mut script = Script { backend, events, clean, print, part: "", step: 0, lines: 0, has_gicv3: false };
    script.has_gicv3 = script.supports(device::VGIC_V3);
    objects::run(&mut script);
    memory::run(&mut script);
    vcpu::run(&mut script);
    registers::run(&mut script);
    attributes::run(&mut script);
    pmu::run(&mut script);
    gic::run(&mut script);
    log::run(&mut script);
    runs::run(&mut script);
    events::run(&mut script);
    let lines = script.lines;
    (script.print)(format_args!("transcript: {lines} lines"));
}

/// The script as far as it has come.
struct Script<'a, B> {
    backend: &'a B,
    events: &'a dyn Events,
    clean: &'a dyn Fn(&Page),
    print: &'a mut dyn FnMut(Arguments<'_>),
    part: &'static str,
    step: u32,
    lines: u32,
    /// The board's interrupt controller decides which virtual one there is.
    has_gicv3: bool,
}

/// A number as people write it: small negative ones, which are error numbers, in decimal.
struct Value(u64);

impl fmt::Display for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 as i64 {
            error @ -4096..=-1 => write!(formatter, "{error}"),
            _ => write!(formatter, "{:#x}", self.0),
        }
    }
}

/// Words that a call has written; many of them as a sum.
struct Words<'a>(&'a [u64]);

impl fmt::Display for Words<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() > 8 {
            // FNV-1a, 64 bits.
            let sum =
                self.0.iter().flat_map(|word| word.to_le_bytes()).fold(0xcbf2_9ce4_8422_2325, |sum: u64, byte| {
                    (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
                });
            return write!(formatter, " {} words, sum {sum:#x}", self.0.len());
        }
        self.0
            .iter()
            .try_for_each(|&word| if word == FILL { write!(formatter, " =") } else { write!(formatter, " {word:#x}") })
    }
}

/// What an attribute's data is.
#[derive(Clone, Copy)]
enum Data {
    /// At this address.
    At(u64),
    U32(u32),
    U64(u64),
}

impl<B: Backend> Script<'_, B> {
    fn part(&mut self, part: &'static str) {
        (self.part, self.step) = (part, 0);
    }

    fn line(&mut self, what: Arguments<'_>, answer: Arguments<'_>) {
        self.step += 1;
        self.lines += 1;
        let (part, step) = (self.part, self.step);
        (self.print)(format_args!("transcript: api {part}/{step} {what} -> {answer}"));
    }

    /// A call that prints nothing.
    fn quiet(&self, handle: u64, number: u32, argument: u64) -> i64 {
        self.backend.call(handle, number, argument)
    }

    /// Whether a device of this type can be made.
    fn supports(&self, kind: u32) -> bool {
        let vm = self.quiet_open(SYSTEM, number::CREATE_VM, 0);
        let mut create = [kind, 0, device::TEST];
        let there = self.quiet(vm, number::CREATE_DEVICE, address_mut(&mut create)) == 0;
        self.close(vm);
        there
    }

    /// A call with a number.
    fn call(&mut self, what: Arguments<'_>, handle: u64, number: u32, argument: u64) -> i64 {
        let answer = self.quiet(handle, number, argument);
        self.line(what, format_args!("{}", Value(answer as u64)));
        answer
    }

    /// A call that reads something.
    fn write<T>(&mut self, what: Arguments<'_>, handle: u64, number: u32, argument: &T) -> i64 {
        self.call(what, handle, number, address(argument))
    }

    /// A call that writes, or reads and writes, words.
    fn read(&mut self, what: Arguments<'_>, handle: u64, number: u32, words: &mut [u64]) -> i64 {
        let answer = self.quiet(handle, number, address_mut(words));
        self.line(what, format_args!("{}{}", Value(answer as u64), Words(words)));
        answer
    }

    /// A call that answers with a handle.
    fn open(&mut self, what: Arguments<'_>, handle: u64, number: u32, argument: u64) -> u64 {
        let answer = self.quiet(handle, number, argument);
        if answer > 0 {
            self.line(what, format_args!("<handle>"));
            return answer as u64;
        }
        self.line(what, format_args!("{}", Value(answer as u64)));
        NOBODY
    }

    fn quiet_open(&self, handle: u64, number: u32, argument: u64) -> u64 {
        u64::try_from(self.quiet(handle, number, argument)).unwrap_or(NOBODY)
    }

    fn close(&self, handle: u64) {
        if handle != NOBODY {
            self.quiet(handle, number::CLOSE, 0);
        }
    }

    /// KVM_CREATE_DEVICE.
    fn device(&mut self, what: Arguments<'_>, vm: u64, kind: u32, flags: u32) -> u64 {
        let mut create = [kind, 0, flags];
        let answer = self.quiet(vm, number::CREATE_DEVICE, address_mut(&mut create));
        let made = answer == 0 && create[1] != 0;
        let word = if made { " <handle>" } else { "" };
        self.line(what, format_args!("{}{word}", Value(answer as u64)));
        if made { create[1].into() } else { NOBODY }
    }

    /// KVM_HAS_DEVICE_ATTR.
    fn has(&mut self, what: &str, handle: u64, group: u32, attr: u64) {
        let attribute = DeviceAttr { flags: 0, group, attr, addr: 0 };
        self.write(
            format_args!("{what} HAS_DEVICE_ATTR {group} {attr:#x}"),
            handle,
            number::HAS_DEVICE_ATTR,
            &attribute,
        );
    }

    /// KVM_SET_DEVICE_ATTR.
    fn set(&mut self, what: &str, handle: u64, group: u32, attr: u64, data: Data) -> i64 {
        let mut word = [FILL; 1];
        let addr = match data {
            Data::At(address) => address,
            Data::U32(value) => {
                word[0] = value.into();
                address(&word)
            }
            Data::U64(value) => {
                word[0] = value;
                address(&word)
            }
        };
        let attribute = DeviceAttr { flags: 0, group, attr, addr };
        let name = format_args!("{what} SET_DEVICE_ATTR {group} {attr:#x}");
        match data {
            Data::At(0) => self.write(name, handle, number::SET_DEVICE_ATTR, &attribute),
            Data::At(at) => self.write(format_args!("{name} at {at:#x}"), handle, number::SET_DEVICE_ATTR, &attribute),
            _ => self.write(format_args!("{name} of {:#x}", word[0]), handle, number::SET_DEVICE_ATTR, &attribute),
        }
    }

    /// KVM_SET_DEVICE_ATTR, printing nothing.
    fn quiet_set(&self, handle: u64, group: u32, attr: u64, value: u64) -> i64 {
        let attribute = DeviceAttr { flags: 0, group, attr, addr: address(&value) };
        self.quiet(handle, number::SET_DEVICE_ATTR, address(&attribute))
    }

    /// KVM_GET_DEVICE_ATTR.
    fn get(&mut self, what: impl fmt::Display, handle: u64, group: u32, attr: u64) -> u64 {
        let mut word = [FILL; 1];
        let attribute = DeviceAttr { flags: 0, group, attr, addr: address_mut(&mut word) };
        let answer = self.quiet(handle, number::GET_DEVICE_ATTR, address(&attribute));
        self.line(
            format_args!("{what} GET_DEVICE_ATTR {group} {attr:#x}"),
            format_args!("{}{}", Value(answer as u64), Words(&word)),
        );
        word[0]
    }

    /// KVM_GET_ONE_REG; `masked` when the value is the machine's own.
    fn get_reg(&mut self, what: impl fmt::Display, vcpu: u64, id: u64, masked: bool) -> [u64; 2] {
        let mut value = [FILL; 256];
        let one = OneReg { id, addr: address_mut(&mut value) };
        let answer = self.quiet(vcpu, number::GET_ONE_REG, address(&one));
        let words = if id >> reg::SIZE_SHIFT & 0xf == 4 { 2 } else { 1 };
        let name = format_args!("{what} GET_ONE_REG {id:#x}");
        if masked && answer == 0 {
            self.line(name, format_args!("0 <value>"));
        } else {
            self.line(name, format_args!("{}{}", Value(answer as u64), Words(&value[..words])));
        }
        [value[0], value[1]]
    }

    /// KVM_SET_ONE_REG.
    fn set_reg(&mut self, what: &str, vcpu: u64, id: u64, value: u64) -> i64 {
        let words = [value, 0, 0, 0, 0, 0, 0, 0];
        let one = OneReg { id, addr: address(&words) };
        self.write(format_args!("{what} SET_ONE_REG {id:#x} of {value:#x}"), vcpu, number::SET_ONE_REG, &one)
    }

    /// KVM_SET_ONE_REG, printing nothing.
    fn quiet_reg(&self, vcpu: u64, id: u64, value: u64) -> i64 {
        let one = OneReg { id, addr: address(&value) };
        self.quiet(vcpu, number::SET_ONE_REG, address(&one))
    }

    /// A register's value, printing nothing.
    fn register(&self, vcpu: u64, id: u64) -> u64 {
        let mut value = FILL;
        let one = OneReg { id, addr: address_mut(&mut value) };
        self.quiet(vcpu, number::GET_ONE_REG, address(&one));
        value
    }

    /// KVM_RUN, again as long as an interrupt that is none of the guest's ends it.
    fn run_vcpu(&mut self, what: Arguments<'_>, vcpu: u64, page: &'static Page) -> Exit {
        let run = RunPage(page);
        let level = run.device_irq_level();
        let mut answer = 0;
        for _ in 0..INTERRUPTS {
            page.write(crate::uapi::run::EXIT_REASON, 4, UNTOUCHED.into());
            answer = self.quiet(vcpu, number::RUN, 0);
            if answer != -4 || run.reason() != exit::INTR || run.device_irq_level() != level {
                break;
            }
        }
        let answer = Value(answer as u64);
        match run.exit() {
            Exit::Other(UNTOUCHED) => self.line(what, format_args!("{answer}")),
            Exit::MmioRead { address, size } => self.line(what, format_args!("{answer} MMIO {address:#x} {size} read")),
            Exit::MmioWrite { address, size, value } => {
                self.line(what, format_args!("{answer} MMIO {address:#x} {size} write {value:#x}"));
            }
            Exit::Hypercall { function, flags } => {
                self.line(what, format_args!("{answer} HYPERCALL {function:#x} flags {flags:#x}"));
            }
            // The address is only a watchpoint's (`struct kvm_debug_exit_arch`); else it is what was there.
            Exit::Debug { syndrome, far } if syndrome >> 26 == 0x34 => {
                self.line(what, format_args!("{answer} DEBUG hsr {syndrome:#x} far {far:#x}"));
            }
            Exit::Debug { syndrome, .. } => self.line(what, format_args!("{answer} DEBUG hsr {syndrome:#x}")),
            Exit::SystemEvent { kind, count, data } => {
                self.line(what, format_args!("{answer} SYSTEM_EVENT {kind} ndata {count} {data:#x}"));
            }
            Exit::NoSyndrome { iss, address } => {
                self.line(what, format_args!("{answer} ARM_NISV {iss:#x} {address:#x}"));
            }
            Exit::Interrupted => {
                let level = run.device_irq_level();
                self.line(what, format_args!("{answer} INTR level {level:#x}"));
            }
            Exit::FailEntry { reason } => self.line(what, format_args!("{answer} FAIL_ENTRY {reason:#x}")),
            Exit::InternalError { kind } => self.line(what, format_args!("{answer} INTERNAL_ERROR {kind}")),
            Exit::Other(reason) => self.line(what, format_args!("{answer} exit {reason}")),
        }
        run.exit()
    }
}

/// Marks an exit reason that nobody wrote.
const UNTOUCHED: u32 = 0x7777;
/// The most interrupts of others in one run.
const INTERRUPTS: u32 = 100_000;
