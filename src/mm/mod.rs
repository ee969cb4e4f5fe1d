//! Memory: addresses as types, the frame allocator, the page-table walker, stage 2, and EL2's own map.
pub mod addr;

pub use addr::{Ipa, Pa};
