//! The PL011 UART: the console of every guest.
//!
//! Source: Arm DDI 0183, PrimeCell UART (PL011) Technical Reference Manual, section 3; where software has come to rely
//! on QEMU's `virt` machine rather than on the manual, as there: characters are sent and received whether or not UARTCR
//! enables the UART (early consoles never do), the identification is of a revision with 16-entry FIFOs, and the modem
//! inputs are low except in loopback.
//!
//! Sending takes no time, so the transmit FIFO is empty whenever the guest looks and every character sent is a
//! passage of the FIFO through its trigger level, which raises the transmit interrupt. Time is not modelled on the
//! receive side either: the receive timeout expires as soon as a character waits that the trigger level does not
//! report. The owner holds a lock around this, feeds it with [`Pl011::receive`], and after every call takes
//! [`Pl011::line`] to the interrupt controller.

use super::mmio::{AccessSize, read_words, write_words};

/// Bytes of address space the device decodes.
pub const LENGTH: u64 = 0x1000;

/// Entries of the receive FIFO when UARTLCR_H.FEN is set; without it there is 1.
const FIFO_DEPTH: usize = 16;

/// Register offsets (DDI 0183, table 3-1).
mod offset {
    pub const DR: u64 = 0x000;
    pub const RSR_ECR: u64 = 0x004;
    pub const FR: u64 = 0x018;
    pub const ILPR: u64 = 0x020;
    pub const IBRD: u64 = 0x024;
    pub const FBRD: u64 = 0x028;
    pub const LCR_H: u64 = 0x02c;
    pub const CR: u64 = 0x030;
    pub const IFLS: u64 = 0x034;
    pub const IMSC: u64 = 0x038;
    pub const RIS: u64 = 0x03c;
    pub const MIS: u64 = 0x040;
    pub const ICR: u64 = 0x044;
    pub const DMACR: u64 = 0x048;
    pub const ID: u64 = 0xfe0;
}

/// UARTPeriphID0 to 3, then UARTPCellID0 to 3: part 0x011, designer Arm, revision 1 (3.3.15 to 3.3.22).
const IDENTIFICATION: [u8; 8] = [0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// UARTDR and, shifted right by 8, UARTRSR: errors of a received character (3.3.1, 3.3.2).
mod data {
    pub const BREAK: u16 = 1 << 10;
    pub const OVERRUN: u16 = 1 << 11;
}

/// UARTFR (3.3.3).
mod flag {
    pub const CTS: u16 = 1 << 0;
    pub const DSR: u16 = 1 << 1;
    pub const DCD: u16 = 1 << 2;
    pub const RXFE: u16 = 1 << 4;
    pub const RXFF: u16 = 1 << 6;
    pub const TXFE: u16 = 1 << 7;
    pub const RI: u16 = 1 << 8;
}

/// UARTLCR_H (3.3.7).
mod line_control {
    pub const BRK: u16 = 1 << 0;
    pub const FEN: u16 = 1 << 4;
}

/// UARTCR (3.3.8).
mod control {
    pub const LBE: u16 = 1 << 7;
    pub const TXE: u16 = 1 << 8;
    pub const RXE: u16 = 1 << 9;
    pub const DTR: u16 = 1 << 10;
    pub const RTS: u16 = 1 << 11;
    pub const OUT1: u16 = 1 << 12;
    pub const OUT2: u16 = 1 << 13;
}

/// UARTIMSC, UARTRIS, UARTMIS and UARTICR (3.3.10 to 3.3.13).
mod interrupt {
    pub const RI: u16 = 1 << 0;
    pub const CTS: u16 = 1 << 1;
    pub const DCD: u16 = 1 << 2;
    pub const DSR: u16 = 1 << 3;
    pub const RX: u16 = 1 << 4;
    pub const TX: u16 = 1 << 5;
    pub const RT: u16 = 1 << 6;
    pub const BREAK: u16 = 1 << 9;
    pub const OVERRUN: u16 = 1 << 10;
    pub const ALL: u16 = 0x7ff;
}

/// The modem lines: output in UARTCR, input in UARTFR that loopback connects it to, interrupt when the input changes.
const MODEM_LINES: [(u16, u16, u16); 4] = [
    (control::DTR, flag::DSR, interrupt::DSR),
    (control::RTS, flag::CTS, interrupt::CTS),
    (control::OUT1, flag::DCD, interrupt::DCD),
    (control::OUT2, flag::RI, interrupt::RI),
];

/// One UART.
#[derive(Clone, Debug)]
pub struct Pl011 {
    /// Received characters with their error bits, as UARTDR shows them; `count` of them from `first` on, wrapping.
    fifo: [u16; FIFO_DEPTH],
    first: usize,
    count: usize,
    /// A character was lost since the last one that found room.
    overrun: bool,
    receive_status: u16,
    low_power: u16,
    integer_divisor: u16,
    fractional_divisor: u16,
    line_control: u16,
    control: u16,
    levels: u16,
    mask: u16,
    raw: u16,
    dma_control: u16,
}

impl Default for Pl011 {
    fn default() -> Self {
        Self::new()
    }
}

impl Pl011 {
    /// A UART as it is after reset.
    pub const fn new() -> Self {
        Self {
            fifo: [0; FIFO_DEPTH],
            first: 0,
            count: 0,
            overrun: false,
            receive_status: 0,
            low_power: 0,
            integer_divisor: 0,
            fractional_divisor: 0,
            line_control: 0,
            control: control::RXE | control::TXE,
            // Half full, both.
            levels: 0x12,
            mask: 0,
            raw: 0,
            dma_control: 0,
        }
    }

    /// Back to the state after reset. Characters not yet read are lost.
    pub fn reset(&mut self) {
        *self = Self::new();
    }

    /// The level of the combined interrupt, UARTINTR.
    #[inline]
    pub fn line(&self) -> bool {
        self.raw & self.mask != 0
    }

    /// Whether [`Self::receive`] would take a character.
    pub fn can_receive(&self) -> bool {
        self.count < self.depth()
    }

    /// A character arrives from outside. `false` when there is no room for it and it should be offered again: nothing
    /// has changed then. In loopback the input is disconnected, so the character is taken and lost.
    pub fn receive(&mut self, character: u8) -> bool {
        if self.control & control::LBE != 0 {
            return true;
        }
        let room = self.can_receive();
        if room {
            self.put(u16::from(character));
        }
        room
    }

    /// Answers a load of `size` at `offset` from the start of the device.
    ///
    /// Offsets that have no register, or one that cannot be read, are zero; [`read_words`] says what other sizes than
    /// 4 bytes do.
    pub fn read(&mut self, offset: u64, size: AccessSize) -> u64 {
        read_words(offset, size, |offset| self.read_word(offset).into())
    }

    /// Answers a load of the word at `offset` if it is a register whose reading changes nothing; what it does not answer,
    /// [`read`](Self::read) does.
    #[inline(always)]
    pub fn peek(&self, offset: u64) -> Option<u32> {
        let value = match offset {
            offset::FR => self.flags(),
            offset::IMSC => self.mask,
            offset::RIS => self.raw,
            offset::MIS => self.raw & self.mask,
            offset::CR => self.control,
            _ => return None,
        };
        Some(value.into())
    }

    /// Obeys a store of `size` at `offset`; characters sent go to `transmit`.
    ///
    /// Offsets that have no register, or one that cannot be written, ignore it; [`write_words`] says what other sizes
    /// than 4 bytes do.
    pub fn write(&mut self, offset: u64, size: AccessSize, value: u64, transmit: &mut dyn FnMut(u8)) {
        write_words(offset, size, value, |offset, value| self.write_word(offset, value as u16, transmit));
    }

    fn read_word(&mut self, offset: u64) -> u16 {
        match offset {
            offset::DR => self.take(),
            offset::RSR_ECR => self.receive_status,
            offset::FR => self.flags(),
            offset::ILPR => self.low_power,
            offset::IBRD => self.integer_divisor,
            offset::FBRD => self.fractional_divisor,
            offset::LCR_H => self.line_control,
            offset::CR => self.control,
            offset::IFLS => self.levels,
            offset::IMSC => self.mask,
            offset::RIS => self.raw,
            offset::MIS => self.raw & self.mask,
            offset::DMACR => self.dma_control,
            offset::ID.. => IDENTIFICATION.get(((offset - offset::ID) / 4) as usize).map_or(0, |byte| u16::from(*byte)),
            _ => 0,
        }
    }

    fn write_word(&mut self, offset: u64, value: u16, transmit: &mut dyn FnMut(u8)) {
        match offset {
            offset::DR => {
                transmit(value as u8);
                self.loop_back(value & 0xff);
                self.raw |= interrupt::TX;
            }
            offset::RSR_ECR => self.receive_status = 0,
            offset::ILPR => self.low_power = value & 0xff,
            offset::IBRD => self.integer_divisor = value,
            offset::FBRD => self.fractional_divisor = value & 0x3f,
            offset::LCR_H => self.set_line_control(value & 0xff),
            offset::CR => self.set_control(value),
            offset::IFLS => {
                self.levels = value & 0x3f;
                self.raise_for_waiting();
            }
            offset::IMSC => self.mask = value & interrupt::ALL,
            offset::ICR => self.raw &= !value,
            offset::DMACR => self.dma_control = value & 7,
            _ => {}
        }
    }

    fn set_line_control(&mut self, value: u16) {
        let changed = self.line_control ^ value;
        self.line_control = value;
        if changed & line_control::FEN != 0 {
            (self.first, self.count, self.overrun) = (0, 0, false);
            self.raw &= !(interrupt::RX | interrupt::RT);
        }
        if changed & value & line_control::BRK != 0 {
            self.loop_back(data::BREAK);
        }
    }

    fn set_control(&mut self, value: u16) {
        let before = self.modem_inputs();
        self.control = value;
        let changed = before ^ self.modem_inputs();
        for (_, input, interrupt) in MODEM_LINES {
            if changed & input != 0 {
                self.raw |= interrupt;
            }
        }
    }

    /// The bits of UARTFR that come from modem lines: outputs fed back in loopback, otherwise all low.
    #[inline]
    fn modem_inputs(&self) -> u16 {
        if self.control & control::LBE == 0 { 0 } else { self.looped_back() }
    }

    #[cold]
    fn looped_back(&self) -> u16 {
        let high = |output| self.control & output != 0;
        MODEM_LINES.iter().filter(|(output, ..)| high(*output)).fold(0, |inputs, (_, input, _)| inputs | input)
    }

    #[inline]
    fn flags(&self) -> u16 {
        let empty = if self.count == 0 { flag::RXFE } else { 0 };
        let full = if self.can_receive() { 0 } else { flag::RXFF };
        flag::TXFE | empty | full | self.modem_inputs()
    }

    fn depth(&self) -> usize {
        if self.line_control & line_control::FEN != 0 { FIFO_DEPTH } else { 1 }
    }

    /// How many characters waiting raise the receive interrupt (3.3.9, RXIFLSEL). Reserved values act as the one after
    /// reset.
    fn trigger(&self) -> usize {
        if self.depth() == 1 {
            return 1;
        }
        match self.levels >> 3 & 7 {
            0 => FIFO_DEPTH / 8,
            1 => FIFO_DEPTH / 4,
            3 => FIFO_DEPTH * 3 / 4,
            4 => FIFO_DEPTH * 7 / 8,
            _ => FIFO_DEPTH / 2,
        }
    }

    fn loop_back(&mut self, character: u16) {
        if self.control & control::LBE != 0 {
            self.put(character);
        }
    }

    /// Puts a character into the FIFO, or notes that it was lost.
    fn put(&mut self, character: u16) {
        if !self.can_receive() {
            self.overrun = true;
            self.receive_status |= data::OVERRUN >> 8;
            self.raw |= interrupt::OVERRUN;
            return;
        }
        if let Some(entry) = self.fifo.get_mut((self.first + self.count) % FIFO_DEPTH) {
            *entry = character;
        }
        self.count += 1;
        self.overrun = false;
        if character & data::BREAK != 0 {
            self.raw |= interrupt::BREAK;
        }
        self.raise_for_waiting();
    }

    /// Raises the interrupt that reports the characters waiting: receive from the trigger level on, below it timeout.
    fn raise_for_waiting(&mut self) {
        if self.count >= self.trigger() {
            self.raw |= interrupt::RX;
        } else if self.count > 0 {
            self.raw |= interrupt::RT;
        }
    }

    /// Takes the oldest character, as a read of UARTDR does; 0 when none waits.
    fn take(&mut self) -> u16 {
        if self.count == 0 {
            return 0;
        }
        let character = self.fifo.get(self.first).copied().unwrap_or(0);
        let character = character | if self.overrun { data::OVERRUN } else { 0 };
        self.receive_status = character >> 8;
        self.first = (self.first + 1) % FIFO_DEPTH;
        self.count -= 1;
        if self.count == 0 {
            self.raw &= !(interrupt::RX | interrupt::RT);
        } else if self.count < self.trigger() {
            // What is left no longer reaches the trigger level; the timeout reports it to a guest that stops here.
            self.raw = self.raw & !interrupt::RX | interrupt::RT;
        }
        character
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::offset::*;
    use super::*;

    const WORD: AccessSize = AccessSize::Word;

    fn get(uart: &mut Pl011, offset: u64) -> u64 {
        uart.read(offset, WORD)
    }

    fn set(uart: &mut Pl011, offset: u64, value: u64) -> Vec<u8> {
        let mut sent = Vec::new();
        uart.write(offset, WORD, value, &mut |byte| sent.push(byte));
        sent
    }

    /// As Linux's driver leaves it: FIFOs on, receive and timeout interrupts on.
    fn started() -> Pl011 {
        let mut uart = Pl011::new();
        set(&mut uart, LCR_H, 0x70);
        set(&mut uart, CR, 0x301);
        set(&mut uart, IMSC, 0x50);
        uart
    }

    #[test]
    fn reset_values() {
        let mut uart = started();
        assert!(uart.receive(b'x'));
        uart.reset();
        let expected = [(DR, 0), (RSR_ECR, 0), (FR, 0x90), (ILPR, 0), (IBRD, 0), (FBRD, 0), (LCR_H, 0), (CR, 0x300)];
        for (offset, value) in expected {
            assert_eq!(get(&mut uart, offset), value, "{offset:#x}");
        }
        for (offset, value) in [(IFLS, 0x12), (IMSC, 0), (RIS, 0), (MIS, 0), (ICR, 0), (DMACR, 0)] {
            assert_eq!(get(&mut uart, offset), value, "{offset:#x}");
        }
        assert!(!uart.line());
    }

    #[test]
    fn identification() {
        let mut uart = Pl011::new();
        let bytes: Vec<u64> = (0xfe0..0x1000).step_by(4).map(|offset| get(&mut uart, offset)).collect();
        assert_eq!(bytes, [0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1]);
        for offset in [0x1000, 0x2000, 0x008, 0x04c, 0x080, 0xfdc, u64::MAX] {
            assert_eq!(get(&mut uart, offset), 0);
            assert_eq!(set(&mut uart, offset, 0x41), []);
        }
    }

    #[test]
    fn registers_keep_their_bits() {
        let mut uart = Pl011::new();
        for (offset, bits) in [(ILPR, 0xff), (IBRD, 0xffff), (FBRD, 0x3f), (LCR_H, 0xff), (IFLS, 0x3f), (IMSC, 0x7ff)] {
            set(&mut uart, offset, 0xffff_ffff);
            assert_eq!(get(&mut uart, offset), bits, "{offset:#x}");
        }
        set(&mut uart, DMACR, 0xff);
        assert_eq!(get(&mut uart, DMACR), 7);
        for read_only in [FR, RIS, MIS, ID] {
            let before = get(&mut uart, read_only);
            set(&mut uart, read_only, !before);
            assert_eq!(get(&mut uart, read_only), before);
        }
    }

    #[test]
    fn sends_even_when_not_enabled() {
        let mut uart = Pl011::new();
        assert_eq!(set(&mut uart, DR, 0x141), [b'A']);
        assert_eq!(get(&mut uart, FR), 0x90);
    }

    #[test]
    fn transmit_interrupt_drives_a_tty() {
        let mut uart = started();
        set(&mut uart, IMSC, 0x70);
        assert!(!uart.line(), "nothing sent, nothing passed the trigger level");
        set(&mut uart, DR, b'a'.into());
        assert!(uart.line());
        assert_eq!(get(&mut uart, MIS), 0x20);
        set(&mut uart, ICR, 0x20);
        assert!(!uart.line());
        set(&mut uart, DR, b'b'.into());
        set(&mut uart, IMSC, 0x50);
        assert!(!uart.line());
        set(&mut uart, IMSC, 0x70);
        assert!(uart.line(), "masking does not clear");
    }

    #[test]
    fn one_character_raises_the_timeout() {
        let mut uart = started();
        assert!(uart.receive(b'x'));
        assert_eq!(get(&mut uart, MIS), 0x40);
        assert_eq!(get(&mut uart, FR), 0x80);
        assert!(uart.line());
        assert_eq!(get(&mut uart, DR), b'x'.into());
        assert!(!uart.line());
        assert_eq!(get(&mut uart, FR), 0x90);
        assert_eq!(get(&mut uart, DR), 0);
    }

    #[test]
    fn trigger_levels() {
        for (select, level) in [(0, 2), (1, 4), (2, 8), (3, 12), (4, 14), (7, 8)] {
            let mut uart = started();
            set(&mut uart, IFLS, select << 3);
            for n in 1..level {
                assert!(uart.receive(n));
                assert_eq!(get(&mut uart, RIS) & 0x10, 0, "{n} of {level}");
            }
            assert!(uart.receive(level));
            assert_eq!(get(&mut uart, RIS) & 0x10, 0x10);
            assert_eq!(get(&mut uart, DR), 1);
            assert_eq!(get(&mut uart, RIS) & 0x50, 0x40, "below the level the timeout takes over");
        }
    }

    #[test]
    fn a_cleared_receive_interrupt_comes_back_with_data() {
        let mut uart = started();
        uart.receive(1);
        set(&mut uart, ICR, 0x50);
        assert!(!uart.line());
        uart.receive(2);
        assert!(uart.line());
        set(&mut uart, ICR, 0x50);
        get(&mut uart, DR);
        assert!(uart.line(), "one is left");
    }

    #[test]
    fn without_fifo_one_character_fits() {
        let mut uart = Pl011::new();
        assert!(uart.receive(b'a'));
        assert!(!uart.can_receive());
        assert!(!uart.receive(b'b'));
        assert_eq!(get(&mut uart, FR), 0xc0);
        assert_eq!(get(&mut uart, RIS), 0x10);
        assert_eq!(get(&mut uart, DR), b'a'.into());
        assert_eq!(get(&mut uart, RIS), 0);
    }

    #[test]
    fn full_fifo_refuses_and_keeps_order() {
        let mut uart = started();
        for round in 0..5 {
            for n in 0..16 {
                assert!(uart.receive(round * 16 + n));
            }
            assert!(!uart.receive(0xff));
            assert_eq!(get(&mut uart, FR), 0xc0);
            for n in 0..16 {
                assert_eq!(get(&mut uart, DR), u64::from(round * 16 + n));
            }
            assert_eq!(get(&mut uart, RIS), 0);
        }
    }

    #[test]
    fn turning_the_fifo_on_or_off_empties_it() {
        let mut uart = started();
        uart.receive(1);
        set(&mut uart, LCR_H, 0x60);
        assert_eq!(get(&mut uart, FR), 0x90);
        assert!(!uart.line());
        uart.receive(1);
        set(&mut uart, LCR_H, 0x61);
        assert_eq!(get(&mut uart, FR), 0xc0, "other bits of the register do not");
    }

    #[test]
    fn loopback() {
        let mut uart = started();
        set(&mut uart, CR, 0x381);
        assert_eq!(set(&mut uart, DR, b'L'.into()), [b'L']);
        assert_eq!(get(&mut uart, RIS), 0x60);
        assert!(uart.receive(b'x'), "input from outside is disconnected");
        assert_eq!(get(&mut uart, DR), b'L'.into());
        assert_eq!(get(&mut uart, FR), 0x90);
        set(&mut uart, LCR_H, 0x71);
        assert_eq!(get(&mut uart, RIS) & 0x200, 0x200);
        assert_eq!(get(&mut uart, DR), 0x400);
        assert_eq!(get(&mut uart, RSR_ECR), 4);
        set(&mut uart, RSR_ECR, 0xff);
        assert_eq!(get(&mut uart, RSR_ECR), 0);
    }

    #[test]
    fn loopback_of_modem_lines() {
        let mut uart = started();
        for (output, input, raised) in [(0x400, 0x2, 0x8), (0x800, 0x1, 0x2), (0x1000, 0x4, 0x4), (0x2000, 0x100, 0x1)]
        {
            set(&mut uart, CR, 0x301 | output);
            assert_eq!((get(&mut uart, FR), get(&mut uart, RIS)), (0x90, 0));
            set(&mut uart, CR, 0x381 | output);
            assert_eq!((get(&mut uart, FR), get(&mut uart, RIS)), (0x90 | input, raised));
            set(&mut uart, ICR, 0x7ff);
            set(&mut uart, CR, 0x381);
            assert_eq!((get(&mut uart, FR), get(&mut uart, RIS)), (0x90, raised));
            set(&mut uart, ICR, 0x7ff);
        }
    }

    #[test]
    fn overrun_is_told_and_keeps_what_is_there() {
        let mut uart = started();
        set(&mut uart, CR, 0x381);
        for n in 0..17 {
            set(&mut uart, DR, n);
        }
        assert_eq!(get(&mut uart, RIS) & 0x400, 0x400);
        assert_eq!(get(&mut uart, RSR_ECR), 8);
        assert_eq!(get(&mut uart, DR), 0x800);
        set(&mut uart, DR, 0x42);
        assert_eq!(get(&mut uart, DR), 1, "a character found room again");
        for n in 2..16 {
            assert_eq!(get(&mut uart, DR), n);
        }
        assert_eq!(get(&mut uart, DR), 0x42);
    }

    #[test]
    fn narrow_and_wide_accesses() {
        let mut uart = Pl011::new();
        let mut sent = Vec::new();
        for size in [AccessSize::Byte, AccessSize::Half, AccessSize::Double] {
            uart.write(DR, size, 0x5a, &mut |byte| sent.push(byte));
        }
        assert_eq!(sent, [0x5a; 3]);
        uart.write(IMSC, AccessSize::Byte, 0xfff, &mut |_| ());
        assert_eq!(uart.read(IMSC, AccessSize::Half), 0xff);
        uart.write(IMSC, AccessSize::Half, 0x7ff, &mut |_| ());
        assert_eq!(uart.read(IMSC + 1, AccessSize::Byte), 7);
        uart.write(IMSC + 1, AccessSize::Byte, 0, &mut |_| ());
        assert_eq!(uart.read(IMSC, AccessSize::Word), 0x7ff);
        uart.write(IBRD, AccessSize::Double, 0x15_0000_1234, &mut |_| ());
        assert_eq!(uart.read(IBRD, AccessSize::Double), 0x15_0000_1234);
    }

    proptest! {
        /// Whatever a guest does, nothing panics, the FIFO stays a FIFO, and a guest that has the receive interrupts
        /// on and clears nothing hears of every character.
        #[test]
        fn any_sequence(
            steps in proptest::collection::vec(
                (0u8..4, prop_oneof![0u64..0x50, 0xfd0u64..0x1008, any::<u64>()], 0u64..4, any::<u64>()), 0..200
            )
        ) {
            let mut uart = started();
            for (kind, offset, size, value) in steps {
                let size = AccessSize::from_log2(size);
                match kind {
                    0 => { uart.read(offset, size); }
                    1 => uart.write(offset, size, value, &mut |_| ()),
                    2 => { uart.receive(value as u8); }
                    _ => {
                        uart.write(DR, size, value, &mut |_| ());
                        uart.receive(value as u8);
                    }
                }
                prop_assert!(uart.count <= uart.depth());
                prop_assert_eq!(uart.line(), uart.raw & uart.mask != 0);
                let flags = get(&mut uart, FR);
                prop_assert_eq!(flags & 0x10 != 0, uart.count == 0);
                prop_assert_eq!(flags & 0x40 != 0, uart.count == uart.depth());
                if uart.count == 0 {
                    prop_assert_eq!(uart.raw & 0x40, 0);
                }
            }
        }

        #[test]
        fn what_waits_is_told(input in proptest::collection::vec(any::<Option<u8>>(), 0..200), ifls in 0u64..64) {
            let mut uart = started();
            set(&mut uart, IFLS, ifls);
            let mut expected = std::collections::VecDeque::new();
            for step in input {
                match step {
                    Some(byte) => if uart.receive(byte) { expected.push_back(byte) },
                    None => prop_assert_eq!(get(&mut uart, DR), expected.pop_front().map_or(0, u64::from)),
                }
                prop_assert_eq!(uart.line(), !expected.is_empty());
            }
        }
    }
}
