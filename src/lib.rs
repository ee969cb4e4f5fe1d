//! keel: firmware for arm64's hypervisor level, EL2.
//!
//! The library holds everything but the two entry points (`src/bin`). Modules are layers: each may use only those
//! declared above it. Pure logic compiles and is tested on the host; what touches the machine is gated on
//! `target_os = "none"` where it meets the hardware and nowhere else.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod arch;
pub mod mm;
pub mod vcpu;
pub mod vdev;
pub mod hypercall;
pub mod kvm;
pub mod vmm;
pub mod init;
