//! KVM_IOCTL: KVM's API as a hypercall of the VM that owns the machine.
//!
//! A call has a handle, KVM's number and an argument, which is a number or the caller's address of KVM's structure. This
//! decodes it, copies what it points to once, and calls the method of `Vm` or `Vcpu` that *is*
//! the call; it decides nothing itself.

#[cfg(target_os = "none")]
pub(super) mod api;
#[cfg(target_os = "none")]
mod attribute;
pub mod capability;
pub mod handles;
pub mod irq_line;
pub mod numbers;
#[cfg(target_os = "none")]
pub mod run;
pub mod user;
#[cfg(target_os = "none")]
mod vcpu_calls;
#[cfg(target_os = "none")]
mod vm_calls;

#[cfg(target_os = "none")]
pub use api::{Api, UserVcpu};

/// KVM_IOCTL: x1 the handle, x2 the number, x3 the argument; x0 the result, or an error number negated.
pub const KVM_IOCTL: u32 = 0xc600_0200;
