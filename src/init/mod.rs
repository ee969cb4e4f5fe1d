//! Bring-up: the host's device tree becomes a `HostInfo`, drivers start in order, panics are reported.

pub mod host_info;
