//! Hypercalls: function ids, the dispatch table, PSCI and SMCCC.
#![forbid(unsafe_code)]

pub mod psci;
pub mod smccc;
