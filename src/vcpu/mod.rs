//! The vCPU: its context, exit decoding, injection and the world switch.
//!
//! A trap is decoded once, into an [`Exit`]. Only this layer reads syndromes, and only the PC-moving methods of [`VcpuContext`] and
//! [`GuestFault`] injection move a guest's PC.

pub mod aarch32;
pub mod context;
pub mod exit;
pub mod fault;

#[cfg(target_os = "none")]
pub mod switch;

pub use context::VcpuContext;
pub use exit::{Exit, FaultAddress};
pub use fault::GuestFault;
