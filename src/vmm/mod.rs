//! Virtual machine management: bundle to VMs, guest device tree, image loading, console, scheduler and lifecycle.
#![forbid(unsafe_code)]

pub mod bundle;
pub mod config;
pub mod error;
pub mod guest_tree;
pub mod image;
pub mod inflate;
pub mod kernel;
mod kernel_aarch32;
pub mod layout;
pub mod load;
pub mod payload;
pub mod tree;
pub mod tree_writer;

#[cfg(target_os = "none")]
pub mod console;
#[cfg(target_os = "none")]
pub mod entropy;
#[cfg(target_os = "none")]
pub mod lifecycle;
#[cfg(target_os = "none")]
pub mod root;
#[cfg(target_os = "none")]
pub mod scheduler;

#[cfg(test)]
pub(crate) mod test_support;
