//! The cases, by area.

use crate::harness::Case;

mod psci;
mod smccc;

/// Every table of cases, in the order they run.
pub const ALL: &[&[Case]] = &[smccc::CASES, psci::CASES];
