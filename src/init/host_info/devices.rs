//! Which node is what: one walk over the tree finds every device keel looks for.
//!
//! The tree is walked once for all of them, because keel's own start is measured in instructions and a board's tree
//! has thousands of properties.

use crate::vmm::tree::{Node, Tree};

/// What keel looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    GicV3,
    GicV2,
    Psci1_0,
    Psci0_2,
    Psci0_1,
    Timer,
    Rtc,
    Pmu,
    Uart,
}

const KINDS: usize = Kind::Uart as usize + 1;

/// What each is called. A node that is several things is the first of them in its own list of compatible strings that
/// this table has, so the newest PSCI counts.
pub(super) const COMPATIBLE: [(&str, Kind); 19] = [
    ("arm,gic-v3", Kind::GicV3),
    ("arm,gic-400", Kind::GicV2),
    ("arm,cortex-a15-gic", Kind::GicV2),
    ("arm,cortex-a7-gic", Kind::GicV2),
    ("arm,eb11mp-gic", Kind::GicV2),
    ("arm,psci-1.0", Kind::Psci1_0),
    ("arm,psci-0.2", Kind::Psci0_2),
    ("arm,psci", Kind::Psci0_1),
    ("arm,armv8-timer", Kind::Timer),
    ("arm,armv7-timer", Kind::Timer),
    ("arm,pl031", Kind::Rtc),
    ("arm,armv8-pmuv3", Kind::Pmu),
    ("arm,cortex-a53-pmu", Kind::Pmu),
    ("arm,cortex-a57-pmu", Kind::Pmu),
    ("arm,cortex-a72-pmu", Kind::Pmu),
    ("arm,cortex-a76-pmu", Kind::Pmu),
    ("arm,neoverse-n1-pmu", Kind::Pmu),
    ("arm,pl011", Kind::Uart),
    ("arm,sbsa-uart", Kind::Uart),
];

/// The first usable node of each kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Devices<'t, 'a> {
    nodes: [Option<Node<'t, 'a>>; KINDS],
}

impl<'t, 'a> Devices<'t, 'a> {
    pub(super) fn find(tree: &'t Tree<'a>) -> Self {
        let mut nodes = [None; KINDS];
        for node in tree.nodes() {
            let Some(kind) = node.property("compatible").and_then(kind) else { continue };
            if let Some(slot @ None) = nodes.get_mut(kind as usize)
                && node.is_okay()
            {
                *slot = Some(node);
            }
        }
        Self { nodes }
    }

    pub(super) fn get(&self, kind: Kind) -> Option<Node<'t, 'a>> {
        self.nodes.get(kind as usize).copied().flatten()
    }
}

/// What a node with this list of compatible strings is.
pub(super) fn kind(compatible: &[u8]) -> Option<Kind> {
    compatible.split(|&byte| byte == 0).find_map(|name| {
        // Everything in the table is Arm's own; most of a tree is not.
        let candidate = name.starts_with(b"arm,");
        let row = COMPATIBLE.iter().find(|(known, _)| candidate && known.as_bytes() == name);
        row.map(|(_, kind)| *kind)
    })
}

/// The names of `wanted`, for messages.
pub(super) fn names(wanted: &[Kind]) -> alloc::string::String {
    let mut out = alloc::string::String::new();
    for (name, _) in COMPATIBLE.iter().filter(|(_, kind)| wanted.contains(kind)) {
        if !out.is_empty() {
            out.push_str(", ");
        }
        out.push_str(name);
    }
    out
}
