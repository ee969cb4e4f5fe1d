//! The performance monitors' overflow interrupt (binding: arm/pmu.yaml).

use super::bus::interrupts;
use super::devices::{Devices, Kind};
use crate::vmm::tree::Tree;

/// How the CPUs' PMUs tell of an overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPmu {
    /// By a private interrupt of this INTID, on each CPU.
    Private(u32),
    /// Not by any that keel can give to guests: the tree has none, or one shared interrupt for each CPU.
    None,
}

impl HostPmu {
    /// The private interrupt.
    pub const fn private(self) -> Option<u32> {
        match self {
            Self::Private(intid) => Some(intid),
            Self::None => None,
        }
    }
}

/// Guests can do without: what is malformed is as good as missing.
pub(super) fn parse(tree: &Tree, devices: &Devices) -> HostPmu {
    let list = devices.get(Kind::Pmu).and_then(|node| interrupts(tree, node).ok());
    match list.and_then(|list| list.first().copied().flatten()) {
        Some(interrupt) if (16..32).contains(&interrupt.intid) => HostPmu::Private(interrupt.intid),
        _ => HostPmu::None,
    }
}
