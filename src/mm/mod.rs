//! Memory: addresses as types, the frame allocator, the walkers of stage 1 and stage 2, and EL2's own map.

pub mod stage1;
pub mod stage2;

#[cfg(target_os = "none")]
pub mod el2;
#[cfg(target_os = "none")]
pub mod frame;

pub use crate::arch::addr::{self, Ipa, Pa};
