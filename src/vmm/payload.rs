//! The payload of the stub: one configuration of a bundle, loaded into the machine itself, which it then owns.
//!
//! It is loaded as a VM is ([`load`](super::load)), with two differences. The RAM is the machine's, in which other things
//! already are: the stub, the bundle, the boot loader's tree. And the device tree is the machine's own (or the bundle's)
//! with `/chosen` filled in, and with the part of the stub that stays as a child of `/reserved-memory`:
//!
//! ```dts
//! hyp-stub@7fe00000 {
//!     compatible = "keel,hyp-stub";
//!     reg = <0 0x7fe00000 0 0xa4000>;
//!     keel,vectors = <0 0x7fe10000>;    // the hyp-stub vectors, one page
//!     no-map;
//! };
//! ```
//!
//! A hypervisor that wants to give EL2 back puts the address in `keel,vectors` into VBAR_EL2.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use super::bundle::Bundle;
use super::config::{self, VmConfig};
use super::error::ConfigError;
use super::guest_tree::{self, EXPECTED_TREE, Entropy, TREE_MAX};
use super::kernel::{Executable, Format};
use super::layout::{Layout, Wish};
use super::load::{GuestMemory, Loaded, PREFERRED, WINDOW, place_ramdisk, place_tree, write, write_executable};
use super::tree::{Node, Tree};
use super::tree_writer::TreeWriter;
use crate::mm::Ipa;
use crate::mm::addr::{BLOCK_1G, BLOCK_2M};

/// The machine as its new owner finds it.
pub struct Machine<'h> {
    /// Its device tree.
    pub tree: &'h Tree<'h>,
    /// All of its RAM.
    pub ram: &'h [Range<u64>],
    /// The RAM that the payload is loaded into: one range of `ram`.
    pub into: Range<u64>,
    /// What of that is in use until the payload runs, or longer, and by what. May overlap, and lie outside.
    pub taken: &'h [(Range<u64>, &'static str)],
    /// What stays in use: page aligned.
    pub kept: Range<u64>,
    /// Address of the hyp-stub vectors.
    pub vectors: u64,
}

/// The configuration to start: the one that the FIT's `default` names, else the first. Its place in `bundle.vms`.
pub fn default_configuration(data: &[u8], bundle: &Bundle) -> usize {
    let tree = Tree::parse(data).ok();
    let name = tree.as_ref().and_then(|tree| tree.root().child(config::CONFIGURATIONS)?.string(config::DEFAULT));
    let is_named = |vm: &Result<VmConfig, ConfigError>| vm.as_ref().is_ok_and(|vm| Some(vm.name) == name);
    bundle.vms.iter().position(is_named).unwrap_or(0)
}

/// Loads `vm`, whose `keel,memory` and `keel,cpus` do not matter, into the machine's RAM. `memory` is that RAM by physical
/// address.
///
/// # Errors
///
/// [`ConfigError`]; RAM may have been written to by then.
pub fn load(
    vm: &VmConfig,
    memory: &mut impl GuestMemory,
    machine: &Machine,
    entropy: &mut Entropy,
) -> Result<Loaded, ConfigError> {
    for image in [Some(&vm.kernel), vm.ramdisk.as_ref(), vm.fdt.as_ref()].into_iter().flatten() {
        image.verify()?;
    }
    let kernel = &*vm.kernel;
    let start = machine.into.start.next_multiple_of(BLOCK_2M);
    let size = machine.into.end.saturating_sub(start);
    let mut layout = Layout::new(Ipa(start), size);
    for (range, by) in machine.taken {
        let inside = range.start.max(start)..range.end.min(machine.into.end);
        if inside.start < inside.end {
            layout.occupy(by, inside);
        }
    }

    let mut executable = Executable::examine(kernel, Ipa(start))?;
    if executable.format == Format::Arm64Image && kernel.load.is_none() {
        // It goes to any 2 MiB boundary, plus its text_offset.
        let end = executable.segments.iter().map(|segment| segment.address.0.saturating_add(segment.memory)).max();
        let room = end.map_or(0, |end| end.saturating_sub(start));
        let base = layout.place(&kernel.node, room, &[Wish { from: start, alignment: BLOCK_2M, room }])?;
        executable = Executable::examine(kernel, base)?;
    } else {
        for segment in &executable.segments {
            layout.claim(&kernel.node, segment.address.0, segment.memory)?;
        }
    }
    let kernel_start = executable.segments.iter().map(|segment| segment.address.0).min().unwrap_or(start);
    let ends = executable.segments.iter().map(|segment| segment.address.0.saturating_add(segment.memory));
    let kernel_end = ends.max().unwrap_or(start);
    let preferred = kernel_end.max(start + (size / 2).min(PREFERRED));
    let ramdisk = match vm.ramdisk.as_deref() {
        None => None,
        Some(image) => Some(place_ramdisk(image, &mut layout, preferred, kernel_end)?),
    };
    if let (Some(image), Some(range)) = (vm.ramdisk.as_deref(), &ramdisk) {
        let window = kernel_start.min(range.start) / BLOCK_1G * BLOCK_1G;
        if executable.format == Format::Arm64Image && kernel_end.max(range.end) - window > WINDOW {
            let reason = format!("would be at {:#x}, with the kernel at {kernel_start:#x}", range.start);
            return Err(image.bad(reason, "both in one 1 GiB-aligned window of 32 GiB"));
        }
    }
    let tree = match &vm.fdt {
        None => owner_tree(machine.tree, None, vm, machine, ramdisk.clone(), entropy),
        Some(image) => {
            let contents = image.contents(TREE_MAX, EXPECTED_TREE)?;
            let own = Tree::parse(&contents).map_err(|error| image.bad(format!("{error}"), EXPECTED_TREE))?;
            let reg = reg(cells(own.root()), machine.ram).ok_or_else(|| {
                image.bad("its root's cells cannot hold the machine's RAM", "#address-cells and #size-cells of 2")
            })?;
            owner_tree(&own, Some(&reg), vm, machine, ramdisk.clone(), entropy)
        }
    };
    let after = ramdisk.as_ref().map_or(preferred, |range| range.end.max(preferred));
    let dtb = place_tree(vm, &mut layout, tree.len() as u64, after, kernel_end)?;

    // Everything has its place: from here on RAM is written.
    write_executable(kernel, &executable, memory)?;
    if let (Some(image), Some(range)) = (vm.ramdisk.as_deref(), &ramdisk) {
        image.stream(|offset, bytes| write(image, memory, Ipa(range.start.saturating_add(offset)), bytes))?;
    }
    write(kernel, memory, dtb, &tree)?;
    // What was made for QEMU's `virt` looks for the tree at the start of RAM, where QEMU puts it for everything but Linux.
    let size = tree.len() as u64;
    if executable.format != Format::Arm64Image && layout.claim("device tree", start, size).is_ok() {
        write(kernel, memory, Ipa(start), &tree)?;
    }
    Ok(Loaded { entry: executable.entry, dtb, ramdisk, format: executable.format })
}

/// Cells of an address and of a size below `bus`, with the specification's defaults (§2.3.5).
fn cells(bus: Node) -> [u32; 2] {
    [bus.u32("#address-cells").unwrap_or(2), bus.u32("#size-cells").unwrap_or(1)]
}

/// A `reg` of `ranges`; `None` if a number does not fit its cells.
fn reg(cells: [u32; 2], ranges: &[Range<u64>]) -> Option<Vec<u8>> {
    let mut value = Vec::with_capacity(16 * ranges.len());
    for range in ranges {
        for (number, cells) in [range.start, range.end.checked_sub(range.start)?].into_iter().zip(cells) {
            match cells {
                1 => value.extend_from_slice(&u32::try_from(number).ok()?.to_be_bytes()),
                2 => value.extend_from_slice(&number.to_be_bytes()),
                _ => return None,
            }
        }
    }
    Some(value)
}

/// `own` with this payload's `/chosen` and the stub in `/reserved-memory`; with `ram`, a `reg`, in place of its memory.
fn owner_tree(
    own: &Tree,
    ram: Option<&[u8]>,
    vm: &VmConfig,
    machine: &Machine,
    ramdisk: Option<Range<u64>>,
    entropy: &mut Entropy,
) -> Vec<u8> {
    let root = own.root();
    let mut tree = TreeWriter::like(own);
    tree.begin("");
    tree.copy_properties(root, &[]);
    let is_memory = |node: &Node| node.base_name() == "memory" || node.string("device_type") == Some("memory");
    let (reserved, old) = (root.child("reserved-memory"), root.child("chosen"));
    for node in root.children().filter(|node| Some(*node) != reserved && Some(*node) != old) {
        if ram.is_none() || !is_memory(&node) {
            tree.copy(node);
        }
    }
    if let (Some(reg), Some(first)) = (ram, machine.ram.first()) {
        tree.begin(&format!("memory@{:x}", first.start));
        tree.property("reg", reg);
        tree.text("device_type", "memory");
        tree.end();
    }

    tree.begin("reserved-memory");
    let kept = core::slice::from_ref(&machine.kept);
    let reg = match reserved {
        Some(node) => {
            tree.copy_properties(node, &[]);
            reg(cells(node), kept)
        }
        None => {
            // As wide as the root's, so that `ranges` can be empty.
            let cells = cells(root);
            tree.cell("#address-cells", cells[0]);
            tree.cell("#size-cells", cells[1]);
            tree.flag("ranges");
            reg(cells, kept)
        }
    };
    for node in reserved.iter().flat_map(|node| node.children()) {
        tree.copy(node);
    }
    if let Some(reg) = reg {
        tree.begin(&format!("hyp-stub@{:x}", machine.kept.start));
        tree.text("compatible", "keel,hyp-stub");
        tree.property("reg", &reg);
        tree.wide("keel,vectors", &[machine.vectors]);
        tree.flag("no-map");
        tree.end();
    }
    tree.end();

    tree.begin("chosen");
    if let Some(old) = old {
        // The addresses are the stub's bundle, the seeds have been used, and some of the arguments are the stub's.
        tree.copy_properties(old, &["linux,initrd-start", "linux,initrd-end", "rng-seed", "kaslr-seed", "bootargs"]);
    }
    if vm.bootargs.is_none() {
        let words = old.and_then(|old| old.string("bootargs")).unwrap_or_default().split_ascii_whitespace();
        let words: Vec<&str> = words.filter(|word| !word.starts_with("keel.")).collect();
        let text: String = words.join(" ");
        if !text.is_empty() {
            tree.text("bootargs", &text);
        }
    }
    guest_tree::chosen(&mut tree, vm, ramdisk, entropy);
    for node in old.iter().flat_map(|old| old.children()) {
        tree.copy(node);
    }
    tree.end();
    tree.end();
    tree.finish()
}
