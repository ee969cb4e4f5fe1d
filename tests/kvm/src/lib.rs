//! A client of KVM's API for arm64.
//!
//! KVM's calls are a handle, a number and an argument, which is a number or the address of a structure. On Linux they are
//! `ioctl`s of files; keel takes them from the VM that owns the machine by a hypercall, KVM_IOCTL. Everything above that
//! is the same, so it is here once, over a trait with one method: [`Backend`]. `Hypercall` is keel's.
//!
//! [`System`], [`Vm`], [`Vcpu`] and [`Device`] are what handles stand for; dropping one closes it. Their methods are
//! KVM's calls, structures are in [`uapi`], and [`Vcpu::run`] returns why it ended as an [`Exit`].
//!
//! # Example
//!
//! A VM is made, started, served and stopped. The test kernel of keel's root runs this very function ([`example`]).
//!
//! ```ignore
#![doc = include_str!("example.rs")]
//! ```

#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]

pub mod errno;
pub mod example;
mod handle;
pub mod number;
mod object;
pub mod page;
pub mod run;
pub mod script;
pub mod uapi;

pub use errno::Errno;
pub use handle::Handle;
pub use object::{Device, System, Vcpu, Vm};
pub use page::Page;
pub use run::{Exit, RunPage};

/// The handle of the system: what an open `/dev/kvm` is.
pub const SYSTEM: u64 = 0;

/// How calls are made.
pub trait Backend {
    /// Makes the call `number` on `handle`. The answer is not negative, or an error number negated.
    ///
    /// Whoever answers reads and writes what the argument says. The methods of this crate pass the addresses of what they
    /// borrow for the time of the call, and [`Page`]s, which may be written at any time.
    fn call(&self, handle: u64, number: u32, argument: u64) -> i64;
}

impl<B: Backend + ?Sized> Backend for &B {
    fn call(&self, handle: u64, number: u32, argument: u64) -> i64 {
        (**self).call(handle, number, argument)
    }
}

/// KVM_IOCTL: x1 the handle, x2 the number, x3 the argument; x0 the answer.
pub const KVM_IOCTL: u32 = 0xc600_0200;

/// The hypercall of a VM that owns the machine under keel. Its addresses are physical: whoever calls runs with memory mapped
/// one to one.
#[cfg(target_arch = "aarch64")]
#[derive(Clone, Copy, Debug)]
pub struct Hypercall;

#[cfg(target_arch = "aarch64")]
impl Backend for Hypercall {
    #[allow(unsafe_code, reason = "a hypercall is an instruction")]
    fn call(&self, handle: u64, number: u32, argument: u64) -> i64 {
        let answer: i64;
        // SAFETY: the call changes x0 to x3 (SMCCC 1.1, 2.6: all others are preserved) and the memory that its argument
        // names, which the caller has given for that: see `Backend::call`. It uses no stack of ours.
        unsafe {
            core::arch::asm!(
                "hvc #0",
                inout("x0") u64::from(KVM_IOCTL) => answer,
                inout("x1") handle => _,
                inout("x2") u64::from(number) => _,
                inout("x3") argument => _,
                options(nostack),
            );
        }
        answer
    }
}
