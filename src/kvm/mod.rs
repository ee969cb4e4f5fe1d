//! The KVM API: VMs and vCPUs with KVM's calls, structures and error numbers.
//!
//! `Vm` and `Vcpu` *are* KVM's calls: whoever builds a VM, keel's launcher or later a root VM by hypercall, uses the
//! methods here and nothing else. A VM goes from being configured to having run; its first run freezes what
//! configuration may change into a `Machine`, which exits work on without locks.

pub mod clock;
pub mod dirty;
pub mod errno;
pub mod events;
pub mod filter;
pub mod firmware;
pub mod guest_debug;
pub mod init;
pub mod ioctl;
pub mod ioeventfd;
pub mod pages;
pub mod pmu;
pub mod redistributors;
pub mod registers;
pub mod routing;
pub mod slots;
pub mod uapi;

#[cfg(target_os = "none")]
mod attributes;
#[cfg(target_os = "none")]
pub mod bindings;
#[cfg(target_os = "none")]
mod caller;
#[cfg(target_os = "none")]
pub mod entropy;
#[cfg(target_os = "none")]
mod interface;
#[cfg(target_os = "none")]
mod interrupts;
#[cfg(target_os = "none")]
mod its;
#[cfg(target_os = "none")]
pub mod machine;
#[cfg(target_os = "none")]
mod memory;
#[cfg(target_os = "none")]
mod one_reg;
#[cfg(target_os = "none")]
pub mod owner;
#[cfg(target_os = "none")]
pub mod physical;
#[cfg(target_os = "none")]
pub mod run;
#[cfg(target_os = "none")]
mod stolen;
#[cfg(target_os = "none")]
mod translation;
#[cfg(target_os = "none")]
pub mod vcpu;
#[cfg(target_os = "none")]
mod vgic;
#[cfg(target_os = "none")]
pub mod vm;

pub use errno::Errno;
#[cfg(target_os = "none")]
pub use {machine::Machine, run::Leave, vcpu::Vcpu, vm::Vm};
