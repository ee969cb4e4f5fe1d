//! RAM, and what of it is spoken for (Devicetree Specification 0.4 §3.4, §3.5, §5.3).

use alloc::string::String;
use alloc::vec::Vec;

use super::bus::{Span, registers};
use super::error::{CORRECT_THE_TREE, HostError};
use crate::mm::Pa;
use crate::vmm::tree::Tree;

/// A part of the address space that is not free RAM.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reservation {
    /// Where.
    pub span: Span,
    /// Whether it must not even be mapped (`no-map`), because somebody guards it.
    pub no_map: bool,
    /// Path of the node that reserves it, or `/memreserve/`.
    pub by: String,
}

/// Every `device_type = "memory"` region, sorted and joined.
pub(super) fn ram(tree: &Tree) -> Result<Vec<Span>, HostError> {
    let mut spans = Vec::new();
    for node in tree.root().children() {
        if node.string("device_type") == Some("memory") && node.is_okay() {
            spans.extend(registers(node)?.into_iter().filter(|span| span.size != 0));
        }
    }
    spans.sort_unstable();
    let mut joined: Vec<Span> = Vec::with_capacity(spans.len());
    for span in spans {
        match joined.last_mut() {
            Some(last) if span.base <= last.end() => last.size = span.end().max(last.end()).0 - last.base.0,
            _ => joined.push(span),
        }
    }
    if joined.is_empty() {
        return Err(HostError::MissingNode {
            node: "child of /",
            expected: String::from("device_type \"memory\" and a reg that is not empty"),
            remedy: "the boot loader has to fill in the memory node",
        });
    }
    Ok(joined)
}

/// The reservation block and the static children of /reserved-memory.
pub(super) fn reservations(tree: &Tree) -> Result<Vec<Reservation>, HostError> {
    let mut list = Vec::new();
    for &(base, size) in tree.reservations() {
        if base.checked_add(size).is_none() {
            return Err(HostError::BadProperty {
                node: String::from("/memreserve/"),
                property: "entry",
                found: alloc::format!("{base:#x} {size:#x}"),
                expected: String::from("addresses of no more than 64 bits"),
                remedy: CORRECT_THE_TREE,
            });
        }
        let span = Span { base: Pa(base), size };
        list.push(Reservation { span, no_map: false, by: String::from("/memreserve/") });
    }
    let nodes = tree.find("/reserved-memory");
    for node in nodes.iter().flat_map(|parent| parent.children()).filter(|node| node.is_okay()) {
        // Without `reg` the operating system may choose where; keel has no use for such a pool.
        if node.property("reg").is_none() {
            continue;
        }
        let no_map = node.property("no-map").is_some();
        for span in registers(node)? {
            list.push(Reservation { span, no_map, by: node.path() });
        }
    }
    list.retain(|reservation| reservation.span.size != 0);
    list.sort();
    Ok(list)
}
