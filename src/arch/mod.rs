//! The machine: registers, barriers, TLB and caches, ID registers, ESR decoding, host GIC, timer, PMU and SMC.
//!
//! Everything above this layer reaches the hardware through it. What needs the hardware is compiled for the target only;
//! decoders, layouts and constants compile everywhere, so that their logic is tested on the host.

pub mod addr;
pub mod esr;
pub mod hcr;
pub mod pmuv3;
pub mod registers;
pub mod serror;

#[cfg(target_os = "none")]
mod boot;
#[cfg(target_os = "none")]
pub mod cache;
#[cfg(target_os = "none")]
pub mod cpu;
#[cfg(target_os = "none")]
pub mod depart;
#[cfg(target_os = "none")]
pub mod features;
#[cfg(target_os = "none")]
pub mod gic;
#[cfg(target_os = "none")]
pub mod gicv2;
#[cfg(target_os = "none")]
pub mod guest_pmu;
#[cfg(target_os = "none")]
pub mod late;
#[cfg(target_os = "none")]
pub mod mmu;
#[cfg(target_os = "none")]
pub mod pmu;
#[cfg(target_os = "none")]
pub mod random;
#[cfg(target_os = "none")]
pub mod smc;
#[cfg(target_os = "none")]
pub mod state;
#[cfg(target_os = "none")]
pub mod stub;
#[cfg(target_os = "none")]
pub mod sysreg;
#[cfg(target_os = "none")]
pub mod timer;
#[cfg(target_os = "none")]
pub mod tlb;
#[cfg(target_os = "none")]
pub mod uart;

#[cfg(target_os = "none")]
pub use boot::{SecondaryBlock, expect_cpu, image, restart_at, secondary_entry_address, spin_table_entry_address};
