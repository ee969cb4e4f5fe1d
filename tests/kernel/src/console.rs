//! The console: PL011 through arm-pl011-uart, and `print!`, `println!` on it.
//!
//! With `console=semihosting` among the boot arguments text goes to the debugger (Arm semihosting, SYS_WRITE0) instead: for a
//! kernel that owns the UART while a hypervisor below writes its guests' lines to it, between any two characters.

use crate::{arch, mmio, platform::PL011};
use arm_pl011_uart::{DataBits, LineConfig, PL011Registers, Parity, StopBits, Uart, UniqueMmioPointer};
use core::{
    fmt,
    ptr::NonNull,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};
use spin::Mutex;

static CONSOLE: Mutex<()> = Mutex::new(());
static SEMIHOSTING: AtomicBool = AtomicBool::new(false);

/// Text goes to the debugger from now on.
pub fn use_semihosting() {
    SEMIHOSTING.store(true, Relaxed);
}

/// The debugger's console, some bytes at a time.
struct Debugger;

impl fmt::Write for Debugger {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut buffer = [0; 128];
        for piece in text.as_bytes().chunks(buffer.len() - 1) {
            buffer[..piece.len()].copy_from_slice(piece);
            buffer[piece.len()] = 0;
            arch::semihosting_write0(&buffer);
        }
        Ok(())
    }
}

fn write(text: fmt::Arguments) {
    // Neither writer fails.
    let _ = if SEMIHOSTING.load(Relaxed) {
        fmt::Write::write_fmt(&mut Debugger, text)
    } else {
        fmt::Write::write_fmt(&mut uart(), text)
    };
}

/// A driver instance; it holds no state of its own.
fn uart() -> Uart<'static> {
    let base = NonNull::new(PL011 as *mut PL011Registers).expect("the address is a constant");
    // SAFETY: the PL011 is mapped as device memory for the life of the kernel; writers hold CONSOLE, but for a panic.
    Uart::new(unsafe { UniqueMmioPointer::new(base) })
}

/// Turns the UART on: 115200 8N1, FIFO on, no interrupts.
pub fn init() {
    let line = LineConfig { data_bits: DataBits::Bits8, parity: Parity::None, stop_bits: StopBits::One };
    // 24 MHz is the UART clock `virt` names in its tree. The rates are valid, so there is no error to handle.
    let _ = uart().enable(line, 115_200, 24_000_000);
}

/// Writes formatted text; what `print!` calls.
pub fn print(text: fmt::Arguments) {
    let _guard = CONSOLE.lock();
    write(text);
}

/// Writes although another CPU may be writing: for a panic.
pub fn print_unlocked(text: fmt::Arguments) {
    write(text);
}

/// Writes much text with few accesses: whenever the FIFO is empty, as much as goes into it.
///
/// Where a hypervisor is underneath, reading the flags before each character is what costs.
pub fn burst(text: &str) {
    /// Bytes of the transmit FIFO of the oldest PL011 there is (DDI 0183, 1.1).
    const FIFO: usize = 16;
    /// UARTFR and its bit TXFE.
    const FLAGS: usize = PL011 + 0x18;
    const EMPTY: u32 = 1 << 7;
    let _guard = CONSOLE.lock();
    for bytes in text.as_bytes().chunks(FIFO) {
        while mmio::read32(FLAGS) & EMPTY == 0 {
            crate::arch::relax();
        }
        bytes.iter().for_each(|byte| mmio::write32(PL011, (*byte).into()));
    }
}

/// Prints to the console.
#[macro_export]
macro_rules! print {
    ($($arg:tt)*) => { $crate::console::print(format_args!($($arg)*)) };
}

/// Prints a line to the console.
#[macro_export]
macro_rules! println {
    () => { $crate::console::print(format_args!("\n")) };
    ($($arg:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($arg)*))) };
}
