//! The devices keel has in keel: the UART and the clock, as far as the test kernel's transcript and benchmarks use them.
//!
//! The UART sends at once and receives nothing. Registers that do nothing here keep what is written to them, so that
//! a driver finds its settings again.
//!
//! What is sent is written a lot, so KVM is asked to collect those writes (coalesced MMIO) instead of coming to user
//! space with each: [`Devices::transmit_register`] says where, and whoever runs a vCPU hands them in before any other access.

use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use keel::vdev::platform::{GuestMachine, Region};

// PL011 (DDI 0183, table 3-1).
const UARTDR: u64 = 0x00;
const UARTFR: u64 = 0x18;
/// UARTFR.TXFE and RXFE: both FIFOs are empty.
const FIFOS_EMPTY: u32 = 1 << 7 | 1 << 4;
/// UARTPeriphID0 to UARTPCellID3.
const UART_ID: (u64, [u32; 8]) = (0xfe0, [0x11, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1]);

// PL031 (DDI 0224, table 3-1).
const RTCDR: u64 = 0x00;
/// RTCPeriphID0 to RTCPCellID3.
const RTC_ID: (u64, [u32; 8]) = (0xfe0, [0x31, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1]);

/// Registers of a device that only remembers.
struct Remembered([u32; 0x400]);

impl Remembered {
    fn new((at, id): (u64, [u32; 8])) -> Self {
        let mut registers = [0; 0x400];
        registers[at as usize / 4..][..id.len()].copy_from_slice(&id);
        Self(registers)
    }

    fn at(&mut self, offset: u64) -> &mut u32 {
        &mut self.0[offset as usize / 4 % 0x400]
    }
}

/// The devices of one machine.
pub(crate) struct Devices {
    uart_at: Region,
    uart: Remembered,
    rtc_at: Region,
    rtc: Remembered,
    line: Vec<u8>,
}

impl Devices {
    /// The devices of `machine`, as they are after reset.
    pub(crate) fn new(machine: &GuestMachine) -> Self {
        Self {
            uart_at: machine.uart.region,
            uart: Remembered::new(UART_ID),
            rtc_at: machine.rtc.region,
            rtc: Remembered::new(RTC_ID),
            line: Vec::new(),
        }
    }

    /// Address of the register whose writes may be late, as long as they are in order and before any other access.
    pub(crate) fn transmit_register(machine: &GuestMachine) -> u64 {
        machine.uart.region.base.0 + UARTDR
    }

    /// The register at `address`; `None` where nobody is.
    pub(crate) fn read(&mut self, address: u64) -> Option<u32> {
        match self.find(address)? {
            (Which::Uart, UARTDR) => Some(0),
            (Which::Uart, UARTFR) => Some(FIFOS_EMPTY),
            (Which::Uart, offset) => Some(*self.uart.at(offset)),
            (Which::Rtc, RTCDR) => {
                Some(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as u32))
            }
            (Which::Rtc, offset) => Some(*self.rtc.at(offset)),
        }
    }

    /// Writes the register at `address`; `None` where nobody is.
    pub(crate) fn write(&mut self, address: u64, value: u32) -> Option<()> {
        match self.find(address)? {
            (Which::Uart, UARTDR) => self.send(value as u8),
            (Which::Uart, offset) if offset < UART_ID.0 => *self.uart.at(offset) = value,
            (Which::Rtc, offset) if offset < RTC_ID.0 => *self.rtc.at(offset) = value,
            _ => {}
        }
        Some(())
    }

    fn find(&self, address: u64) -> Option<(Which, u64)> {
        let devices = [(Which::Uart, self.uart_at), (Which::Rtc, self.rtc_at)];
        let inside = |region: Region| address.checked_sub(region.base.0).filter(|offset| *offset < region.size);
        devices.into_iter().find_map(|(which, region)| Some((which, inside(region)?)))
    }

    /// A line at a time: each write to a terminal costs Linux far more than it costs this program.
    fn send(&mut self, byte: u8) {
        self.line.push(byte);
        if byte == b'\n' {
            self.flush();
        }
    }

    /// Prints what the UART has been given.
    pub(crate) fn flush(&mut self) {
        // A console that cannot be written to is nobody's to tell.
        let mut output = std::io::stdout().lock();
        let _ = output.write_all(&self.line).and_then(|()| output.flush());
        self.line.clear();
    }
}

#[derive(Clone, Copy)]
enum Which {
    Uart,
    Rtc,
}
