//! Virtual machine management: bundle to VMs, guest device tree, image loading, console, scheduler and lifecycle.
#![forbid(unsafe_code)]

pub mod bundle;
pub mod config;
pub mod guest_tree;
pub mod image;
