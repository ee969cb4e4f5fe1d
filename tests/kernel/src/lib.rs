//! What the EL1 kernels share: start-up, console, exceptions, GIC, CPUs and probes.
//!
//! The kernels are witnesses, so as little as possible of them is ours: entry and exception vectors are aarch64-rt's,
//! a GICv3 is driven by arm-gic, the console by arm-pl011-uart, PSCI by smccc and the device tree is
//! read by fdt. What is ours is what those crates cannot do: run any one instruction with all registers known and say
//! what became of them (`exec`).
//!
//! The platform is QEMU's `virt` as keel shows it to a guest (`platform`); the same binaries run on QEMU itself.
//! On a target with an operating system this library is empty, so that the workspace builds everywhere.

#![cfg_attr(target_os = "none", no_std)]

#[cfg(target_os = "none")]
pub mod arch;
#[cfg(target_os = "none")]
pub mod boot;
#[cfg(target_os = "none")]
pub mod console;
#[cfg(target_os = "none")]
pub mod el0;
#[cfg(target_os = "none")]
pub mod exceptions;
#[cfg(target_os = "none")]
pub mod exec;
#[cfg(target_os = "none")]
pub mod gicv2;
#[cfg(target_os = "none")]
pub mod hypervisor;
#[cfg(target_os = "none")]
pub mod irq;
#[cfg(target_os = "none")]
pub mod its;
#[cfg(target_os = "none")]
pub mod machine;
#[cfg(target_os = "none")]
pub mod mmio;
#[cfg(target_os = "none")]
pub mod platform;
#[cfg(target_os = "none")]
pub mod power;
#[cfg(target_os = "none")]
pub mod smp;
#[cfg(target_os = "none")]
pub mod time;
