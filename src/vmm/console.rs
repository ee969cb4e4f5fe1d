//! The machine's console: keel's messages and all VMs' output on one UART, input to the VM in focus.
//!
//! One lock guards the UART; [`crate::vdev::console`] decides what goes where. A guest's byte waits here for the UART,
//! which is what a slow line costs on a real board too.

use crate::{
    arch::uart,
    vdev::console::{ConsoleMux, Input, VmState},
};
use core::fmt;
use spin::Mutex;

struct HostConsole {
    uart: uart::Console,
    mux: ConsoleMux,
}

static CONSOLE: Mutex<Option<HostConsole>> = Mutex::new(None);

/// Takes the UART into use.
pub fn install(uart: uart::Console) {
    *CONSOLE.lock() = Some(HostConsole { uart, mux: ConsoleMux::new() });
}

/// Runs `f` with the switch and the UART, if there is one.
fn with<R>(f: impl FnOnce(&mut ConsoleMux, &mut uart::Console) -> R) -> Option<R> {
    CONSOLE.lock().as_mut().map(|console| f(&mut console.mux, &mut console.uart))
}

/// A line of keel's own.
pub fn line(arguments: fmt::Arguments<'_>) {
    with(|mux, uart| mux.message(arguments, &mut |bytes| uart.write_all(bytes)));
}

/// Adds a VM; VMs have numbers in the order in which they are added.
pub fn add(name: &str) {
    with(|mux, _| mux.add(name));
}

/// Notes what a VM is doing.
pub fn set_state(vm: usize, state: VmState) {
    with(|mux, uart| mux.set_state(vm, state, &mut |bytes| uart.write_all(bytes)));
}

/// A VM writes a byte.
pub fn transmit(vm: usize, byte: u8) {
    with(|mux, uart| mux.output(vm, &[byte], &mut |bytes| uart.write_all(bytes)));
}

/// Lets the UART interrupt when something was typed.
pub fn enable_input() {
    with(|_, uart| uart.enable_receive_interrupt());
}

/// Something was typed: `deliver` gets each byte that is for a VM, with the VM's number.
pub fn receive(deliver: impl Fn(Input)) {
    with(|_, uart| uart.clear_receive_interrupt());
    loop {
        // The lock is not held while a VM gets its byte: the VM may be writing.
        let input = with(|mux, uart| {
            let byte = uart.read()?;
            Some(mux.input(byte, &mut |bytes| uart.write_all(bytes)))
        });
        match input.flatten() {
            Some(Some(input)) => deliver(input),
            Some(None) => {}
            None => return,
        }
    }
}

/// Waits until everything has left the UART.
pub fn flush() {
    with(|_, uart| uart.flush());
}
