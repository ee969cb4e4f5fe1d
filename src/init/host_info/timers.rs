//! The generic timers' private interrupts (binding: timer/arm,arch_timer.yaml).

use alloc::string::String;

use super::bus::{Interrupt, interrupts};
use super::devices::{Devices, Kind};
use super::error::{CORRECT_THE_TREE, HostError};
use crate::vmm::tree::{Tree, describe};

/// `interrupt-names`, in the order the interrupts have without names.
const NAMES: [&str; 5] = ["sec-phys", "phys", "virt", "hyp-phys", "hyp-virt"];

/// Interrupts of the generic timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostTimers {
    /// Secure EL1's or EL3's physical timer.
    pub secure: Option<Interrupt>,
    /// EL1's physical timer (CNTP): given to guests.
    pub physical: Interrupt,
    /// EL1's virtual timer (CNTV): given to guests.
    pub virt: Interrupt,
    /// EL2's physical timer (CNTHP): keel's own.
    pub hypervisor: Interrupt,
    /// EL2's virtual timer (CNTHV, FEAT_VHE).
    pub hypervisor_virt: Option<Interrupt>,
    /// `clock-frequency` in Hz, when the tree has to make up for firmware that left CNTFRQ_EL0 at 0.
    pub frequency: Option<u32>,
}

pub(super) fn parse(tree: &Tree, devices: &Devices) -> Result<HostTimers, HostError> {
    let node = devices.get(Kind::Timer).ok_or_else(|| HostError::MissingNode {
        node: "timer",
        expected: String::from("compatible \"arm,armv8-timer\""),
        remedy: CORRECT_THE_TREE,
    })?;
    let list = interrupts(tree, node)?;
    let named = node.property("interrupt-names").is_some();
    let find = |index: usize| {
        let index = match named {
            true => node.strings("interrupt-names").position(|name| Some(&name) == NAMES.get(index))?,
            false => index,
        };
        list.get(index).copied().flatten()
    };
    let need = |index: usize, expected: &'static str| match find(index) {
        Some(interrupt) if (16..32).contains(&interrupt.intid) || interrupt.intid >= 1056 => Ok(interrupt),
        _ => {
            let found = node.property("interrupts").or(node.property("interrupts-extended"));
            let found = found.map_or(String::from("missing"), describe);
            Err(HostError::bad(node, "interrupts", found, expected, CORRECT_THE_TREE))
        }
    };
    Ok(HostTimers {
        secure: find(0),
        physical: need(1, "the physical timer's PPI as second (\"phys\")")?,
        virt: need(2, "the virtual timer's PPI as third (\"virt\")")?,
        hypervisor: need(3, "the hypervisor timer's PPI as fourth (\"hyp-phys\")")?,
        hypervisor_virt: find(4),
        frequency: node.u32("clock-frequency"),
    })
}
