//! The device tree of the monitor's guests: a `virt` board with a PL011 and nothing else.

use super::{CLOCK_HZ, CPUS, GICD, GICR, RAM, UART, UART_SPI};
use alloc::{format, string::String, vec::Vec};
use core::ops::Range;
use dtoolkit::{
    ToPropertyValue,
    model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty},
};

const GIC: u32 = 1;
const CLOCK: u32 = 2;
/// Kinds of interrupts, and their flags (arm,gic-v3.yaml).
const SPI: u32 = 0;
const PPI: u32 = 1;
const LEVEL_HIGH: u32 = 4;

/// A node that is being written. Its names are valid: they are below.
struct Node(DeviceTreeNode);

impl Node {
    fn new(name: impl Into<String>) -> Self {
        Self(DeviceTreeNode::new_unchecked(name))
    }

    fn with<T: ToPropertyValue>(mut self, name: &str, value: T) -> Self {
        self.0.add_property(DeviceTreeProperty::new_unchecked(name, value));
        self
    }

    fn flag(self, name: &str) -> Self {
        self.with(name, [0_u8; 0])
    }

    /// `reg` of two cells each.
    fn reg(self, numbers: &[u64]) -> Self {
        let cells: Vec<u32> = numbers.iter().flat_map(|number| [(number >> 32) as u32, *number as u32]).collect();
        self.with("reg", cells)
    }

    fn child(mut self, child: Node) -> Self {
        self.0.add_child(child.0);
        self
    }
}

/// The tree, as a file. `seed` says where the kernel puts itself.
pub fn build(memory: u64, bootargs: &str, initrd: Range<u64>, seed: u64) -> Vec<u8> {
    let cpus =
        (0..CPUS as u32).fold(
            Node::new("cpus").with("#address-cells", 1_u32).with("#size-cells", 0_u32),
            |cpus, cpu| {
                let caches = ["d", "i"].into_iter().flat_map(|kind| {
                    [("size", 0x8000), ("line-size", 64), ("sets", 256)].map(|(what, value)| (kind, what, value))
                });
                let node = Node::new(format!("cpu@{cpu}"))
                    .with("device_type", "cpu")
                    .with("compatible", "arm,armv8")
                    .with("reg", cpu)
                    .with("enable-method", "psci");
                cpus.child(caches.fold(node, |node, (kind, what, value): (_, _, u32)| {
                    node.with(&format!("{kind}-cache-{what}"), value)
                }))
            },
        );
    let gic = Node::new(format!("interrupt-controller@{GICD:x}"))
        .with("compatible", "arm,gic-v3")
        .with("phandle", GIC)
        .flag("interrupt-controller")
        .with("#interrupt-cells", 3_u32)
        .reg(&[GICD, 0x1_0000, GICR, 0x2_0000 * CPUS as u64]);
    // Secure and non-secure EL1 physical, virtual, EL2's: PPIs 13, 14, 11, 10.
    let timers: Vec<u32> = [13, 14, 11, 10].into_iter().flat_map(|ppi| [PPI, ppi, LEVEL_HIGH]).collect();
    let timer = Node::new("timer").with("compatible", "arm,armv8-timer").flag("always-on").with("interrupts", timers);
    let clock = Node::new("clock")
        .with("compatible", "fixed-clock")
        .with("phandle", CLOCK)
        .with("#clock-cells", 0_u32)
        .with("clock-frequency", CLOCK_HZ);
    let uart_name = format!("pl011@{UART:x}");
    let uart = Node::new(uart_name.clone())
        .with("compatible", &["arm,pl011", "arm,primecell"][..])
        .reg(&[UART, 0x1000])
        .with("interrupts", [SPI, UART_SPI, LEVEL_HIGH])
        .with("clocks", [CLOCK, CLOCK])
        .with("clock-names", &["uartclk", "apb_pclk"][..]);
    let chosen = Node::new("chosen")
        .with("bootargs", bootargs)
        .with("stdout-path", format!("/{uart_name}"))
        .with("kaslr-seed", seed)
        .with("linux,initrd-start", initrd.start)
        .with("linux,initrd-end", initrd.end);
    let root = Node::new("")
        .with("compatible", "linux,dummy-virt")
        .with("model", "linux,dummy-virt")
        .with("#address-cells", 2_u32)
        .with("#size-cells", 2_u32)
        .with("interrupt-parent", GIC)
        .child(Node::new("psci").with("compatible", &["arm,psci-1.0", "arm,psci-0.2"][..]).with("method", "hvc"))
        .child(Node::new(format!("memory@{RAM:x}")).with("device_type", "memory").reg(&[RAM, memory]))
        .child(cpus)
        .child(gic)
        .child(timer)
        .child(clock)
        .child(uart)
        .child(chosen);
    let mut tree = DeviceTree::new();
    tree.root = root.0;
    tree.to_dtb()
}
