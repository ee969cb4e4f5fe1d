//! Registers and interrupts of a node, in the machine's own numbers.
//!
//! `reg` is read with the parent's cell sizes and translated by the `ranges` of every bus above (Devicetree
//! Specification 0.4 §2.3); `interrupts` and `interrupts-extended` are followed to the GIC (§2.4) and decoded by its
//! binding (interrupt-controller/arm,gic.yaml and arm,gic-v3.yaml).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::error::{CORRECT_THE_TREE, HostError};
use super::gic::is_gic;
use crate::mm::Pa;
use crate::vmm::tree::{Node, Tree, describe, words};

/// A stretch of the machine's physical address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// First address.
    pub base: Pa,
    /// Length in bytes. `base + size` does not wrap for spans of a [`HostInfo`](super::HostInfo).
    pub size: u64,
}

impl Span {
    /// The first address after it.
    pub const fn end(&self) -> Pa {
        Pa(self.base.0.saturating_add(self.size))
    }
}

/// An interrupt of the GIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupt {
    /// Its INTID: 16 to 31 private, 32 to 1019 shared, from 1056 the extended ranges.
    pub intid: u32,
    /// Trigger, bits 3:0 of the binding's flags: 1 rising edge, 2 falling edge, 4 level high, 8 level low.
    pub flags: u32,
}

impl Interrupt {
    /// Whether it is edge-triggered.
    pub const fn is_edge(&self) -> bool {
        self.flags & 0x3 != 0
    }
}

/// Cells of an address and of a size in `bus`'s children (§2.3.5).
pub(super) fn cell_sizes(bus: Node) -> (usize, usize) {
    let cells = |name, default| bus.u32(name).map_or(default, |cells| cells as usize);
    (cells("#address-cells", 2), cells("#size-cells", 1))
}

/// The number in the first `count` of `cells`, at most 2.
pub(super) fn take(cells: &mut impl Iterator<Item = u32>, count: usize) -> Option<u64> {
    let mut value = 0;
    for _ in 0..count {
        value = value << 32 | u64::from(cells.next()?);
    }
    Some(value)
}

/// The `reg` entries of `node` as physical addresses.
pub(super) fn registers(node: Node) -> Result<Vec<Span>, HostError> {
    let Some(bus) = node.parent() else { return Ok(Vec::new()) };
    let reg = node
        .property("reg")
        .ok_or_else(|| HostError::missing(node, "reg", "the addresses of its registers", CORRECT_THE_TREE))?;
    let (address_cells, size_cells) = cell_sizes(bus);
    let bad = |expected: String| HostError::bad(node, "reg", describe(reg), expected, CORRECT_THE_TREE);
    if address_cells == 0 || address_cells > 2 || size_cells > 2 {
        return Err(bad(format!("{address_cells} address and {size_cells} size cells to be 1 or 2 each")));
    }
    let entry = 4 * (address_cells + size_cells);
    let cells = words(reg).filter(|_| !reg.is_empty() && reg.len().is_multiple_of(entry));
    let mut cells = cells.ok_or_else(|| bad(format!("a multiple of {entry} bytes")))?;
    let mut spans = Vec::with_capacity(reg.len() / entry);
    while let Some(address) = take(&mut cells, address_cells) {
        let size = take(&mut cells, size_cells).unwrap_or(0);
        let address = translate(bus, address)?;
        if address.checked_add(size).is_none() {
            return Err(bad(String::from("addresses of no more than 64 bits")));
        }
        spans.push(Span { base: Pa(address), size });
    }
    Ok(spans)
}

/// `address` on `bus`, as the CPUs see it.
fn translate(mut bus: Node, mut address: u64) -> Result<u64, HostError> {
    while let Some(parent) = bus.parent() {
        let ranges = bus.property("ranges").ok_or_else(|| {
            HostError::missing(bus, "ranges", "the addresses of this bus for the one above", CORRECT_THE_TREE)
        })?;
        if !ranges.is_empty() {
            let (child_cells, size_cells) = cell_sizes(bus);
            let (parent_cells, _) = cell_sizes(parent);
            let translated = translate_one(ranges, (child_cells, parent_cells, size_cells), address);
            address = translated.ok_or_else(|| {
                let expected = format!("a range with address {address:#x} of a device on it");
                HostError::bad(bus, "ranges", describe(ranges), expected, CORRECT_THE_TREE)
            })?;
        }
        bus = parent;
    }
    Ok(address)
}

/// `address` through one bus's `ranges` (§2.3.8), whose entries have these numbers of cells for child address,
/// parent address and length. Needs no heap: the early console uses it too.
pub(super) fn translate_one(ranges: &[u8], cells: (usize, usize, usize), address: u64) -> Option<u64> {
    let (child_cells, parent_cells, size_cells) = cells;
    if child_cells > 2 || parent_cells > 2 || size_cells > 2 || child_cells + parent_cells + size_cells == 0 {
        return None;
    }
    let mut cells = words(ranges)?.peekable();
    while cells.peek().is_some() {
        let child = take(&mut cells, child_cells)?;
        let parent = take(&mut cells, parent_cells)?;
        let size = take(&mut cells, size_cells)?;
        if let Some(offset) = address.checked_sub(child).filter(|&offset| offset < size) {
            return parent.checked_add(offset);
        }
    }
    None
}

/// The interrupts of `node`, in order; `None` for one that does not go to the GIC directly.
pub(super) fn interrupts(tree: &Tree, node: Node) -> Result<Vec<Option<Interrupt>>, HostError> {
    if let Some(value) = node.property("interrupts-extended") {
        return extended(tree, node, value);
    }
    let Some(value) = node.property("interrupts") else { return Ok(Vec::new()) };
    let parent = interrupt_parent(tree, node)?;
    let count = interrupt_cells(parent)?;
    let whole = words(value).filter(|_| value.len().is_multiple_of(4 * count));
    let mut cells = whole.ok_or_else(|| {
        let expected = format!("a multiple of the {count} cells of {}", parent.path());
        HostError::bad(node, "interrupts", describe(value), expected, CORRECT_THE_TREE)
    })?;
    let mut list = Vec::with_capacity(value.len() / 4 / count);
    for _ in 0..value.len() / 4 / count {
        list.push(decode(node, "interrupts", parent, &mut cells, count)?);
    }
    Ok(list)
}

fn extended(tree: &Tree, node: Node, value: &[u8]) -> Result<Vec<Option<Interrupt>>, HostError> {
    const NAME: &str = "interrupts-extended";
    let bad = |expected: String| HostError::bad(node, NAME, describe(value), expected, CORRECT_THE_TREE);
    let mut cells = words(value).ok_or_else(|| bad(String::from("whole cells")))?;
    let mut list = Vec::new();
    while let Some(phandle) = cells.next() {
        let parent = tree.by_phandle(phandle);
        let parent = parent.ok_or_else(|| bad(format!("{phandle:#x} to be the phandle of an interrupt controller")))?;
        let count = interrupt_cells(parent)?;
        if cells.clone().count() < count {
            return Err(bad(format!("{count} cells after the phandle of {}", parent.path())));
        }
        list.push(decode(node, NAME, parent, &mut cells, count)?);
    }
    Ok(list)
}

/// The node that `interrupts` of `node` speaks to: its own or an inherited `interrupt-parent`, or the nearest
/// interrupt controller above (§2.4.1.1).
fn interrupt_parent<'t, 'a>(tree: &'t Tree<'a>, node: Node<'t, 'a>) -> Result<Node<'t, 'a>, HostError> {
    let mut current = node;
    loop {
        if let Some(value) = current.property("interrupt-parent") {
            let parent = current.u32("interrupt-parent").and_then(|phandle| tree.by_phandle(phandle));
            return parent.ok_or_else(|| {
                let expected = "the phandle of an interrupt controller";
                HostError::bad(current, "interrupt-parent", describe(value), expected, CORRECT_THE_TREE)
            });
        }
        match current.parent() {
            Some(parent) if parent.property("#interrupt-cells").is_some() => return Ok(parent),
            Some(parent) => current = parent,
            // A GIC above which nobody names a controller is the root of the interrupt tree itself.
            None if is_gic(node) => return Ok(node),
            None => {
                let expected = "the phandle of an interrupt controller, here or in a node above";
                return Err(HostError::missing(node, "interrupt-parent", expected, CORRECT_THE_TREE));
            }
        }
    }
}

fn interrupt_cells(controller: Node) -> Result<usize, HostError> {
    let cells = controller.u32("#interrupt-cells").filter(|cells| (1..=8).contains(cells));
    cells.map(|cells| cells as usize).ok_or_else(|| {
        let found = controller.property("#interrupt-cells").map_or(String::from("missing"), describe);
        HostError::bad(controller, "#interrupt-cells", found, "a number from 1 to 8", CORRECT_THE_TREE)
    })
}

/// One interrupt specifier of `count` cells: type, number, flags for a GIC.
fn decode(
    node: Node,
    property: &'static str,
    controller: Node,
    cells: &mut impl Iterator<Item = u32>,
    count: usize,
) -> Result<Option<Interrupt>, HostError> {
    let mut specifier = [0; 8];
    for slot in specifier.iter_mut().take(count) {
        *slot = cells.next().unwrap_or(0);
    }
    if !is_gic(controller) {
        return Ok(None);
    }
    let [kind, number, flags, ..] = specifier;
    // First INTID and count of each type (arm,gic-v3.yaml; IHI 0069 §2.2.1).
    let range = match kind {
        0 => Some((32, 988)),
        1 => Some((16, 16)),
        2 => Some((4096, 1024)),
        3 => Some((1056, 64)),
        _ => None,
    };
    match range {
        Some((first, limit)) if number < limit && count >= 3 => {
            Ok(Some(Interrupt { intid: first + number, flags: flags & 0xf }))
        }
        _ => {
            let expected = "three cells: type 0 and number below 988, or type 1 and number below 16, and flags";
            let found = format!("<{kind:#x} {number:#x} {flags:#x}>");
            Err(HostError::bad(node, property, found, expected, CORRECT_THE_TREE))
        }
    }
}
