//! Emulated devices: the MMIO and system-register buses, vGIC, timers, PL011 and RTC.
#![forbid(unsafe_code)]

pub mod console;
pub mod coprocessor;
pub mod idregs;
pub mod its;
pub mod memory;
pub mod mmio;
pub mod owner_gic;
pub mod pl011;
pub mod pl031;
pub mod platform;
pub mod sysreg;
pub mod vgic;
