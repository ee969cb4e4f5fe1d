//! The UART that the host's tree names as console.
//!
//! `arm-pl011-uart` drives a PL011. Output is polled; input arrives by interrupt.

use super::addr::Pa;
use arm_pl011_uart::{Interrupts, PL011Registers, Uart, UniqueMmioPointer};
use core::ptr::NonNull;

/// The console's UART.
pub struct Console(Uart<'static>);

impl Console {
    /// The PL011 at `base`, as firmware left it (line speed, FIFOs).
    ///
    /// # Safety
    ///
    /// A PL011 must be at `base`, mapped as a device (or the MMU off), and driven by nothing else.
    pub unsafe fn pl011(base: Pa) -> Option<Self> {
        let registers = NonNull::new(base.0 as *mut PL011Registers)?;
        // SAFETY: the caller vouches for the device; it is ours for good.
        Some(Self(Uart::new(unsafe { UniqueMmioPointer::new(registers) })))
    }

    /// Sends one byte, waiting for room.
    pub fn write(&mut self, byte: u8) {
        while self.0.is_tx_fifo_full() {
            core::hint::spin_loop();
        }
        self.0.write_word(byte);
    }

    /// Sends `bytes`, waiting for room.
    pub fn write_all(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write(byte));
    }

    /// A received byte, if there is one. Line errors are dropped with their byte.
    pub fn read(&mut self) -> Option<u8> {
        self.0.read_word().ok().flatten()
    }

    /// Whether everything written has left the UART.
    pub fn flush(&mut self) {
        while self.0.is_busy() {
            core::hint::spin_loop();
        }
    }

    /// Lets received bytes interrupt.
    pub fn enable_receive_interrupt(&mut self) {
        self.0.set_interrupt_masks(Interrupts::RXI | Interrupts::RTI);
    }

    /// Acknowledges the receive interrupts.
    pub fn clear_receive_interrupt(&mut self) {
        self.0.clear_interrupts(Interrupts::RXI | Interrupts::RTI);
    }
}
