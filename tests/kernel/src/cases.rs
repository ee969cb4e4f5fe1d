//! The cases, by area.

use crate::harness::Case;

mod debug;
mod device;
mod gic;
mod memory;
mod mmio;
mod psci;
mod smccc;
mod stress;
mod sysreg;
mod timer;

/// Every table of cases, in the order they run.
pub const ALL: &[&[Case]] = &[
    memory::CASES,
    smccc::CASES,
    psci::CASES,
    sysreg::CASES,
    mmio::CASES,
    gic::CASES,
    timer::CASES,
    device::CASES,
    debug::CASES,
    stress::CASES,
];
