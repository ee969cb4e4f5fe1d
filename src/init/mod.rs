//! Bring-up: the host's device tree becomes a `HostInfo`, drivers start in order, panics are reported.

pub mod host_info;
pub mod memory;

#[cfg(target_os = "none")]
pub mod late;
#[cfg(target_os = "none")]
pub mod log;
#[cfg(target_os = "none")]
mod panic;
#[cfg(target_os = "none")]
mod relay;
#[cfg(target_os = "none")]
pub mod smp;
#[cfg(target_os = "none")]
mod spin_table;
#[cfg(target_os = "none")]
pub mod start;
#[cfg(target_os = "none")]
pub mod stub;
