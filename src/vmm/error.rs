//! What can be wrong with a bundle, said so that it can be put right.
//!
//! [`BundleError`] is about the whole file; [`ConfigError`] stops one VM. Each message names the node (its path in
//! the bundle), says what was found and what was expected, and ends in what to do.

use alloc::string::String;

use crate::mm::Ipa;

/// The whole bundle is unusable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// It does not begin like a flattened device tree.
    #[error(
        "bundle: begins with {found:#010x}, expected {expected:#010x}, the magic of a flattened device tree; \
         give keel a FIT made by `cargo keel bundle` or mkimage in the initrd slot"
    )]
    NotAFit {
        /// The first four bytes, big endian; 0 when there are fewer.
        found: u32,
        /// The magic number.
        expected: u32,
    },
    /// Its header asks for more bytes than the boot loader handed over.
    #[error(
        "bundle: its header says {expected} bytes, the boot loader handed over {found}; \
         the file was cut short: build or copy it again"
    )]
    Truncated {
        /// `totalsize` of the header, bytes.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// Its structure is damaged.
    #[error("bundle: {reason}; the file is damaged: build or copy it again")]
    Damaged {
        /// What the tree reader said.
        reason: String,
    },
    /// A node that every FIT has is missing.
    #[error("bundle: there is no node /{node}; every FIT has one: build the file with `cargo keel bundle` or mkimage")]
    MissingNode {
        /// `images` or `configurations`.
        node: &'static str,
    },
    /// A property with keel's prefix in a node that is no configuration.
    #[error("{node}: unknown property {property}; keel's properties belong into the nodes of /configurations: move it")]
    Misplaced {
        /// Path of the node.
        node: String,
        /// The property.
        property: String,
    },
    /// There is no VM in it.
    #[error("bundle: /configurations has no child; add one node for each VM")]
    NoConfigurations,
}

/// A VM of the bundle that cannot be started.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A property with keel's prefix that keel does not know.
    #[error("{node}: unknown property {property}; known are {known}: correct its name or remove it")]
    UnknownProperty {
        /// Path of the node.
        node: String,
        /// The property.
        property: String,
        /// The ones there are, separated by commas.
        known: String,
    },
    /// A required property is missing.
    #[error("{node}: property {property} is missing; add it: {expected}")]
    MissingProperty {
        /// Path of the node.
        node: String,
        /// The property.
        property: &'static str,
        /// What it has to be.
        expected: &'static str,
    },
    /// A property whose value makes no sense.
    #[error("{node}: property {property} is {found}, expected {expected}; correct it")]
    BadProperty {
        /// Path of the node.
        node: String,
        /// The property.
        property: String,
        /// Its value.
        found: String,
        /// What it has to be.
        expected: String,
    },
    /// A property of a kind that this keel does not offer yet.
    #[error("{node}: {property} is not available in this version of keel; remove it")]
    NotAvailable {
        /// Path of the node.
        node: String,
        /// The property, or the property and the word in it.
        property: String,
    },
    /// A second VM of the same name.
    #[error("{node}: there is already a VM named {name}; the first one stands: rename this node")]
    DuplicateName {
        /// Path of the node.
        node: String,
        /// The name.
        name: String,
    },
    /// A configuration names an image that is not there.
    #[error("{node}: property {property} names {image}, but there is no /images/{image}; correct the name or add it")]
    NoSuchImage {
        /// Path of the configuration.
        node: String,
        /// `kernel`, `ramdisk` or `fdt`.
        property: &'static str,
        /// The name.
        image: String,
    },
    /// The image's bytes are outside the tree.
    #[error(
        "{image}: property {property} puts the image outside the tree, where keel does not look; \
         build the bundle without mkimage's -E"
    )]
    ExternalData {
        /// Path of the image.
        image: String,
        /// The property.
        property: &'static str,
    },
    /// A hash of an algorithm that keel cannot check.
    #[error("{node}: keel cannot check algo {algo}; use sha256 or crc32")]
    UnknownHash {
        /// Path of the hash node.
        node: String,
        /// The algorithm.
        algo: String,
    },
    /// The image is not what its hash says.
    #[error(
        "{node}: the image's {algo} is {found}, expected {expected}; the image is damaged: build or copy the bundle again"
    )]
    HashMismatch {
        /// Path of the hash node.
        node: String,
        /// The algorithm.
        algo: &'static str,
        /// Digest of the bytes there are, hexadecimal.
        found: String,
        /// Digest in the bundle, hexadecimal.
        expected: String,
    },
    /// An image's own format is wrong.
    #[error("{image}: {reason}; expected {expected}: build the image again")]
    BadImage {
        /// Path of the image.
        image: String,
        /// What is wrong.
        reason: String,
        /// What it has to be.
        expected: &'static str,
    },
    /// An image asks for addresses that are not the VM's RAM.
    #[error(
        "{image}: wants {start:#x} to {end:#x}, but the VM's RAM is {ram_start:#x} to {ram_end:#x}; \
         link or load it inside, or raise keel,memory"
    )]
    OutsideRam {
        /// Path of the image.
        image: String,
        /// First address wanted.
        start: u64,
        /// First address after it.
        end: u64,
        /// First address of RAM.
        ram_start: u64,
        /// First address after RAM.
        ram_end: u64,
    },
    /// Two things want the same addresses.
    #[error("{image}: wants {start:#x} to {end:#x}, which overlaps {other}; change its load address")]
    Overlap {
        /// Path of the image.
        image: String,
        /// First address wanted.
        start: u64,
        /// First address after it.
        end: u64,
        /// What is there already.
        other: String,
    },
    /// There is no room left in the VM's RAM.
    #[error(
        "{image}: needs {size:#x} bytes in one piece, but nothing that large is left of the VM's {memory:#x} bytes; \
         raise keel,memory"
    )]
    NoRoom {
        /// Path of the image, or what is to be placed.
        image: String,
        /// Bytes it needs.
        size: u64,
        /// RAM of the VM, bytes.
        memory: u64,
    },
    /// The machine has less memory free than the VM wants.
    #[error("{node}: keel,memory is {wanted:#x} bytes, but the machine has {available:#x} left; lower it")]
    NotEnoughMemory {
        /// Path of the node.
        node: String,
        /// Bytes the VM wants.
        wanted: u64,
        /// Bytes there are.
        available: u64,
    },
    /// The machine has no such CPU.
    #[error("{node}: keel,cpu-affinity names CPU {cpu}, but the machine's are 0 to {last}; correct it")]
    NoSuchCpu {
        /// Path of the node.
        node: String,
        /// The number.
        cpu: u32,
        /// Highest number there is.
        last: u32,
    },
}

/// A write that is not wholly inside a VM's RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{size:#x} bytes at {address} are not inside the VM's RAM")]
pub struct OutsideRam {
    /// First address of the write.
    pub address: Ipa,
    /// Its length in bytes.
    pub size: u64,
}
