//! What can be missing from or wrong in a host's tree, with what to do about it.

use alloc::string::String;

use crate::vmm::tree::Node;

/// The host's tree does not tell keel what it needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// The tree cannot be read at all.
    #[error(
        "device tree: {reason}; pass the board's tree in x0: an Image (not an ELF) with QEMU's -kernel, \
         or the third argument of U-Boot's booti"
    )]
    Damaged {
        /// What the reader said.
        reason: String,
    },
    /// There is no such node.
    #[error("device tree: no {node} with {expected}; {remedy}")]
    MissingNode {
        /// Where it was looked for.
        node: &'static str,
        /// What it has to have.
        expected: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A node lacks a property.
    #[error("{node}: property {property} is missing, expected {expected}; {remedy}")]
    MissingProperty {
        /// Path of the node.
        node: String,
        /// The property.
        property: &'static str,
        /// What it has to be.
        expected: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A property makes no sense.
    #[error("{node}: property {property} is {found}, expected {expected}; {remedy}")]
    BadProperty {
        /// Path of the node.
        node: String,
        /// The property.
        property: &'static str,
        /// Its value.
        found: String,
        /// What it has to be.
        expected: String,
        /// What to do.
        remedy: &'static str,
    },
}

/// The remedy when the tree itself is wrong and nothing cleverer can be said.
pub(super) const CORRECT_THE_TREE: &str = "correct the tree (dtc -I dtb -O dts shows it)";

impl HostError {
    pub(super) fn missing(node: Node, property: &'static str, expected: &'static str, remedy: &'static str) -> Self {
        Self::MissingProperty { node: node.path(), property, expected, remedy }
    }

    pub(super) fn bad(
        node: Node,
        property: &'static str,
        found: impl Into<String>,
        expected: impl Into<String>,
        remedy: &'static str,
    ) -> Self {
        Self::BadProperty { node: node.path(), property, found: found.into(), expected: expected.into(), remedy }
    }
}
