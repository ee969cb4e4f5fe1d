//! The interrupt controller: where its parts are, and which interrupt tells EL2 about its list registers.
//!
//! Bindings: interrupt-controller/arm,gic-v3.yaml and arm,gic.yaml.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::bus::{Interrupt, Span, interrupts, registers};
use super::devices::{self, Devices, Kind, names};
use super::error::{CORRECT_THE_TREE, HostError};
use crate::mm::addr::PAGE_SIZE;
use crate::vmm::tree::{Node, Tree, describe, number};

const NO_VIRTUALISATION: &str =
    "the machine must have its virtualisation extensions on (QEMU: -M virt,virtualization=on)";

/// The machine's interrupt controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gic {
    /// GICv3 or GICv4.
    V3(GicV3),
    /// GICv2 with GICH and GICV.
    V2(GicV2),
}

/// A GICv3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GicV3 {
    /// Path of its node.
    pub path: String,
    /// Its phandle.
    pub phandle: Option<u32>,
    /// GICD.
    pub distributor: Span,
    /// GICR, one or more regions, each with a row of redistributors.
    pub redistributors: Vec<Span>,
    /// Bytes from one redistributor to the next, if not what GICR_TYPER.VLPIS says (2 or 4 frames of 64 KiB).
    pub stride: Option<u64>,
    /// The maintenance interrupt, a PPI.
    pub maintenance: Interrupt,
    /// Registers of its interrupt translation services.
    pub its: Vec<Span>,
}

/// A GICv2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GicV2 {
    /// Path of its node.
    pub path: String,
    /// Its phandle.
    pub phandle: Option<u32>,
    /// GICD.
    pub distributor: Span,
    /// GICC.
    pub cpu_interface: Span,
    /// GICH.
    pub hypervisor_interface: Span,
    /// GICV, mapped into guests.
    pub virtual_cpu_interface: Span,
    /// The maintenance interrupt, a PPI.
    pub maintenance: Interrupt,
}

impl GicV2 {
    /// Bytes of a region that a board with 64 KiB pages in mind has for two pages of registers: each page sixteen times.
    pub const ALIASED: u64 = 0x2_0000;

    /// Whether keel can drive it and guests can have its virtual CPU interface: that is mapped into them as it is, so it must be
    /// two whole pages and nothing else.
    ///
    /// # Errors
    ///
    /// [`HostError`] for the region that is too small, or not on a page boundary.
    pub fn check(&self) -> Result<(), HostError> {
        const TWO_PAGES: u64 = 2 * PAGE_SIZE;
        let regions =
            [("GICC", self.cpu_interface), ("GICH", self.hypervisor_interface), ("GICV", self.virtual_cpu_interface)];
        for (name, span) in regions {
            let least = if name == "GICH" { PAGE_SIZE } else { TWO_PAGES };
            let whole = span.base.is_aligned(PAGE_SIZE) && span.size.is_multiple_of(PAGE_SIZE);
            if span.size < least || name == "GICV" && !whole {
                return Err(HostError::BadProperty {
                    node: self.path.clone(),
                    property: "reg",
                    found: format!("{name} at {:#x}, {:#x} bytes", span.base.0, span.size),
                    expected: format!(
                        "{least:#x} bytes or more{}",
                        if name == "GICV" { ", in whole pages" } else { "" }
                    ),
                    remedy: "this board's interrupt controller cannot be shared with guests; keel-stub does not need that",
                });
            }
        }
        let guests = self.virtual_cpu_interface;
        let others = [self.distributor, self.cpu_interface, self.hypervisor_interface];
        if let Some(other) = others.iter().find(|other| other.base < guests.end() && guests.base < other.end()) {
            return Err(HostError::BadProperty {
                node: self.path.clone(),
                property: "reg",
                found: format!("GICV at {:#x} on the region at {:#x}", guests.base.0, other.base.0),
                expected: "regions that do not overlap".into(),
                remedy: CORRECT_THE_TREE,
            });
        }
        Ok(())
    }
}

/// Whether interrupt specifiers for `node` follow the GIC's binding.
pub(super) fn is_gic(node: Node) -> bool {
    let kind = node.property("compatible").and_then(devices::kind);
    matches!(kind, Some(Kind::GicV3 | Kind::GicV2))
}

pub(super) fn parse(tree: &Tree, devices: &Devices) -> Result<Gic, HostError> {
    let v3 = devices.get(Kind::GicV3);
    let node = v3.or_else(|| devices.get(Kind::GicV2)).ok_or_else(|| HostError::MissingNode {
        node: "interrupt controller",
        expected: format!("compatible one of {}", names(&[Kind::GicV3, Kind::GicV2])),
        remedy: "keel needs a GICv2 or GICv3: use a machine that has one",
    })?;
    let registers = registers(node)?;
    let maintenance = maintenance(tree, node)?;
    let (path, phandle) = (node.path(), node.phandle());
    let reg = |expected: &str| {
        let found = describe(node.property("reg").unwrap_or_default());
        HostError::bad(node, "reg", found, expected, NO_VIRTUALISATION)
    };
    if v3.is_none() {
        let &[distributor, cpu_interface, hypervisor_interface, virtual_cpu_interface, ..] = &registers[..] else {
            return Err(reg("four regions: GICD, GICC, GICH, GICV"));
        };
        return Ok(Gic::V2(GicV2 {
            path,
            phandle,
            distributor,
            cpu_interface,
            hypervisor_interface,
            virtual_cpu_interface,
            maintenance,
        }));
    }

    let regions = match node.property("#redistributor-regions") {
        None => 1,
        Some(value) => node.u32("#redistributor-regions").filter(|&regions| regions != 0).ok_or_else(|| {
            HostError::bad(node, "#redistributor-regions", describe(value), "a number above 0", CORRECT_THE_TREE)
        })? as usize,
    };
    let stride = match node.property("redistributor-stride") {
        None => None,
        Some(value) => {
            let stride = number(value).filter(|&stride| stride != 0 && stride.is_multiple_of(0x1_0000));
            Some(stride.ok_or_else(|| {
                let expected = "a multiple of 64 KiB";
                HostError::bad(node, "redistributor-stride", describe(value), expected, CORRECT_THE_TREE)
            })?)
        }
    };
    let Some((&distributor, rest)) = registers.split_first() else { return Err(reg("GICD and GICR regions")) };
    let Some(redistributors) = rest.get(..regions) else {
        let found = describe(node.property("reg").unwrap_or_default());
        let expected = format!("GICD and as many GICR regions as #redistributor-regions says, {regions}");
        return Err(HostError::bad(node, "reg", found, expected, CORRECT_THE_TREE));
    };
    let is_its = |child: &Node| child.strings("compatible").any(|name| name == "arm,gic-v3-its");
    let its = node.children().filter(is_its).filter_map(|child| super::bus::registers(child).ok()).flatten().collect();
    let redistributors = redistributors.to_vec();
    Ok(Gic::V3(GicV3 { path, phandle, distributor, redistributors, stride, maintenance, its }))
}

/// The GIC's own interrupt.
fn maintenance(tree: &Tree, node: Node) -> Result<Interrupt, HostError> {
    let found = interrupts(tree, node)?.first().copied().flatten();
    let found = found
        .ok_or_else(|| HostError::missing(node, "interrupts", "the maintenance interrupt, a PPI", NO_VIRTUALISATION))?;
    if (16..32).contains(&found.intid) {
        return Ok(found);
    }
    let value = format!("interrupt {}", found.intid);
    Err(HostError::bad(node, "interrupts", value, "a private interrupt, 16 to 31", CORRECT_THE_TREE))
}
