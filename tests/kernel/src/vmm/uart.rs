//! A PL011 (Arm DDI 0183) as far as a driver needs one: characters out at once, characters in through a queue, interrupts.

use alloc::{collections::VecDeque, string::String, vec::Vec};
use keel_test_kernel::println;

/// Characters of the receive queue.
const FIFO: usize = 16;

const DR: u64 = 0x00;
const FR: u64 = 0x18;
const IMSC: u64 = 0x38;
const RIS: u64 = 0x3c;
const MIS: u64 = 0x40;
const ICR: u64 = 0x44;
/// UARTPeriphID0 to UARTPCellID3: part 0x011 of Arm's.
const ID: u64 = 0xfe0;
const IDS: [u64; 8] = [0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];
/// Registers that keep what is written: UARTILPR, IBRD, FBRD, LCR_H, CR, IFLS, IMSC, DMACR.
const KEPT: [u64; 8] = [0x20, 0x24, 0x28, 0x2c, 0x30, 0x34, IMSC, 0x48];

/// UARTFR.RXFE, RXFF, TXFE.
const RX_EMPTY: u64 = 1 << 4;
const RX_FULL: u64 = 1 << 6;
const TX_EMPTY: u64 = 1 << 7;
/// Interrupts.
const RX: u64 = 1 << 4;
const TX: u64 = 1 << 5;

/// A UART, and what went through it.
#[derive(Default)]
pub struct Uart {
    kept: [u64; KEPT.len()],
    /// UARTRIS.
    raised: u64,
    received: VecDeque<u8>,
    /// What is still to be typed.
    input: VecDeque<u8>,
    /// All that the guest has written.
    output: Vec<u8>,
    searched: usize,
    line: String,
}

impl Uart {
    fn kept(&mut self, offset: u64) -> Option<&mut u64> {
        KEPT.iter().position(|&kept| kept == offset).map(|at| &mut self.kept[at])
    }

    fn mask(&self) -> u64 {
        KEPT.iter().zip(self.kept).find_map(|(&at, value)| (at == IMSC).then_some(value)).unwrap_or(0)
    }

    /// The level of its interrupt.
    pub fn level(&self) -> bool {
        self.raised & self.mask() != 0
    }

    /// A load of the guest's.
    pub fn read(&mut self, offset: u64) -> u64 {
        match offset {
            DR => {
                let character = self.received.pop_front().unwrap_or(0);
                if self.received.is_empty() {
                    self.raised &= !RX;
                }
                self.receive();
                character.into()
            }
            FR => {
                let empty = if self.received.is_empty() { RX_EMPTY } else { 0 };
                let full = if self.received.len() >= FIFO { RX_FULL } else { 0 };
                TX_EMPTY | empty | full
            }
            RIS => self.raised,
            MIS => self.raised & self.mask(),
            ID..0x1000 => IDS.get((offset - ID) as usize / 4).copied().unwrap_or(0),
            _ => self.kept(offset).map_or(0, |value| *value),
        }
    }

    /// A store of the guest's.
    pub fn write(&mut self, offset: u64, value: u64) {
        match offset {
            DR => {
                self.print(value as u8);
                self.raised |= TX;
            }
            ICR => self.raised &= !value,
            _ => {
                if let Some(kept) = self.kept(offset) {
                    *kept = value;
                }
            }
        }
    }

    fn receive(&mut self) {
        while self.received.len() < FIFO {
            let Some(character) = self.input.pop_front() else { break };
            self.received.push_back(character);
            self.raised |= RX;
        }
    }

    /// Types.
    pub fn enter(&mut self, text: &str) {
        self.input.extend(text.as_bytes());
        self.receive();
    }

    fn print(&mut self, character: u8) {
        self.output.push(character);
        match character {
            b'\n' => println!("debian: {}", core::mem::take(&mut self.line)),
            b'\r' => {}
            _ => self.line.push(if character.is_ascii() && character >= b' ' { character.into() } else { '?' }),
        }
    }

    /// Whether a text was written after what was found before.
    pub fn find(&mut self, text: &str) -> bool {
        let found = self.output[self.searched..].windows(text.len()).position(|window| window == text.as_bytes());
        if let Some(at) = found {
            self.searched += at + text.len();
        }
        found.is_some()
    }

    /// The character behind what was found last.
    pub fn next(&self) -> Option<u8> {
        self.output.get(self.searched).copied()
    }

    /// Forgets what was written up to now.
    pub fn forget(&mut self) {
        self.searched = self.output.len();
    }

    /// The lines that were written.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.output
            .split(|&character| character == b'\n')
            .filter_map(|line| Some(str::from_utf8(line).ok()?.trim_end()))
    }

    /// The line that is not complete, for a report.
    pub fn rest(&self) -> &str {
        &self.line
    }
}
