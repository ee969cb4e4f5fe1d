//! The cases, by area.

use crate::harness::Case;
pub use kvm::{api, well};
pub use stub::{bench as bench_stub, crash};

mod abort;
mod debug;
mod device;
mod gic;
mod gicv2;
mod its;
mod kvm;
mod kvm_aarch32;
mod kvm_events;
mod kvm_guests;
mod kvm_pmu;
mod late;
mod memory;
pub mod mmio;
mod pmu;
mod programs;
pub mod psci;
mod root;
mod serror;
mod services;
mod smccc;
mod stress;
mod stub;
mod switch;
mod sysreg;
mod timer;

/// Every table of cases, in the order they run.
pub const ALL: &[&[Case]] = &[
    memory::CASES,
    smccc::CASES,
    psci::CASES,
    services::CASES,
    sysreg::CASES,
    mmio::CASES,
    abort::CASES,
    gic::CASES,
    gicv2::CASES,
    its::CASES,
    timer::CASES,
    pmu::CASES,
    device::CASES,
    debug::CASES,
    serror::CASES,
    switch::CASES,
    stress::CASES,
];

/// The tables for a kernel that owns the machine under keel: what it may and may not do, what any kernel may, how keel
/// leaves, and what is there then.
pub const ROOT: &[&[Case]] = &[
    root::CASES,
    kvm::CASES,
    kvm_aarch32::CASES,
    kvm_guests::CASES,
    switch::KVM_CASES,
    kvm_events::CASES,
    kvm_pmu::CASES,
    memory::CASES,
    smccc::CASES,
    psci::CASES,
    sysreg::CASES,
    mmio::CASES,
    abort::CASES,
    gic::CASES,
    timer::CASES,
    pmu::CASES,
    device::CASES,
    debug::CASES,
    stress::CASES,
    root::LEAVING,
    stub::CASES,
];

/// The tables for a kernel over keel-stub that has keel's image.
pub const LATE: &[&[Case]] = &[late::CASES, stub::CASES];

/// The tables for a kernel that owns the machine over keel-stub.
pub const OVER_STUB: &[&[Case]] = &[stub::CASES];
