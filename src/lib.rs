//! keel: firmware for arm64's hypervisor level, EL2.
//!
//! The library holds everything but the two images (`src/bin`). Modules are layers, from the machine up: `arch`, `mm`,
//! `vcpu`, `vdev`, `hypercall`, `kvm`, `vmm`, `init`; each may use only those before it (`tests/layers.rs` checks). Pure
//! logic compiles and is tested on the host; what touches the machine is gated on `target_os = "none"` where it meets the
//! hardware and nowhere else.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

pub mod arch;
pub mod hypercall;
pub mod init;
pub mod kvm;
pub mod mm;
pub mod vcpu;
pub mod vdev;
pub mod vmm;
