//! The cases, by area.

use crate::harness::Case;
pub use stub::{bench as bench_stub, crash};

mod debug;
mod device;
mod gic;
mod memory;
pub mod mmio;
pub mod psci;
mod smccc;
mod stress;
mod stub;
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

/// The tables for a kernel that owns the machine over keel-stub.
pub const OVER_STUB: &[&[Case]] = &[stub::CASES];
