//! The UART that the host's tree names as console.
//!
//! `arm-pl011-uart` drives a PL011. Output is polled; input arrives by interrupt.

use super::addr::Pa;
use arm_pl011_uart::{Interrupts, PL011Registers, Uart, UniqueMmioPointer};
use core::ptr::NonNull;

/// The console's UART.
pub struct Console {
    uart: Uart<'static>,
    /// It took nothing for so long that it seems to be off; what is written is lost until it has room again.
    stuck: bool,
}

/// How often a UART that has no room is asked again: seconds, at any line speed that people use. Whoever owns the machine
/// may switch it off, and must not stop keel with that.
const PATIENCE: u32 = 10_000_000;

impl Console {
    /// The PL011 at `base`, as firmware left it (line speed, FIFOs).
    ///
    /// # Safety
    ///
    /// A PL011 must be at `base`, mapped as a device (or the MMU off), and driven by nothing else.
    pub unsafe fn pl011(base: Pa) -> Option<Self> {
        let registers = NonNull::new(base.0 as *mut PL011Registers)?;
        // SAFETY: the caller vouches for the device; it is ours for good.
        let uart = Uart::new(unsafe { UniqueMmioPointer::new(registers) });
        Some(Self { uart, stuck: false })
    }

    /// Sends one byte, waiting for room.
    pub fn write(&mut self, byte: u8) {
        let mut patience = if self.stuck { 1 } else { PATIENCE };
        while self.uart.is_tx_fifo_full() {
            patience -= 1;
            self.stuck = patience == 0;
            if self.stuck {
                return;
            }
            core::hint::spin_loop();
        }
        self.stuck = false;
        self.uart.write_word(byte);
    }

    /// Sends `bytes`, waiting for room.
    pub fn write_all(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write(byte));
    }

    /// A received byte, if there is one. Line errors are dropped with their byte.
    pub fn read(&mut self) -> Option<u8> {
        self.uart.read_word().ok().flatten()
    }

    /// Whether everything written has left the UART.
    pub fn flush(&mut self) {
        for _ in 0..PATIENCE {
            if self.stuck || !self.uart.is_busy() {
                return;
            }
            core::hint::spin_loop();
        }
    }

    /// Lets received bytes interrupt.
    pub fn enable_receive_interrupt(&mut self) {
        self.uart.set_interrupt_masks(Interrupts::RXI | Interrupts::RTI);
    }

    /// Acknowledges the receive interrupts.
    pub fn clear_receive_interrupt(&mut self) {
        self.uart.clear_interrupts(Interrupts::RXI | Interrupts::RTI);
    }
}
