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
//! CPUs that wait in the stub's spin-table pen get their words there as `cpu-release-addr`.
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
use super::load::{GuestMemory, Loaded, load_beside};
use super::tree::{Node, Tree, number};
use super::tree_writer::TreeWriter;
use crate::mm::Ipa;
use crate::mm::addr::BLOCK_2M;

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
    /// The owner is a VM under keel: `ram` is what it has, and what keel does not offer it is left out of the tree.
    pub is_vm: bool,
    /// The CPUs that wait in a pen of the stub's: the affinity fields of MPIDR_EL1, and the address of the release word.
    pub pens: &'h [(u64, u64)],
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
    load_beside(vm, &executable, layout, memory, |ramdisk| {
        Ok(match &vm.fdt {
            None if !machine.is_vm => owner_tree(machine.tree, None, vm, machine, ramdisk, entropy),
            None => {
                let reg = reg(cells(machine.tree.root()), machine.ram).unwrap_or_default();
                owner_tree(machine.tree, Some(&reg), vm, machine, ramdisk, entropy)
            }
            Some(image) => {
                let contents = image.contents(TREE_MAX, EXPECTED_TREE)?;
                let own = Tree::parse(&contents).map_err(|error| image.bad(format!("{error}"), EXPECTED_TREE))?;
                let reg = reg(cells(own.root()), machine.ram).ok_or_else(|| {
                    image.bad("its root's cells cannot hold the machine's RAM", "#address-cells and #size-cells of 2")
                })?;
                owner_tree(&own, Some(&reg), vm, machine, ramdisk, entropy)
            }
        })
    })
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

/// What a VM that owns the machine is not offered yet: the ITS, since its interrupts are no list register's, and the PMU.
const NOT_OFFERED: [&str; 3] = ["arm,gic-v3-its", "arm,armv8-pmuv3", "arm,gic-v2m-frame"];

/// Copies a node without those below it, or itself, that are not offered.
fn copy_offered(tree: &mut TreeWriter, node: Node) {
    let is_pmu = |name: &str| name.ends_with("-pmu");
    if node.strings("compatible").any(|name| NOT_OFFERED.contains(&name) || is_pmu(name)) {
        return;
    }
    tree.begin(node.name());
    tree.copy_properties(node, &[]);
    for child in node.children() {
        copy_offered(tree, child);
    }
    tree.end();
}

/// /cpus, in which the CPUs in `pens` have their new release words.
fn copy_cpus(tree: &mut TreeWriter, cpus: Node, pens: &[(u64, u64)]) {
    const RELEASE: &str = "cpu-release-addr";
    tree.begin(cpus.name());
    tree.copy_properties(cpus, &[]);
    for node in cpus.children() {
        let affinity = node.property("reg").filter(|_| node.property(RELEASE).is_some()).and_then(number);
        match pens.iter().find(|(known, _)| Some(*known) == affinity) {
            None => tree.copy(node),
            Some((_, word)) => {
                tree.begin(node.name());
                tree.copy_properties(node, &[RELEASE]);
                tree.wide(RELEASE, &[*word]);
                node.children().for_each(|child| tree.copy(child));
                tree.end();
            }
        }
    }
    tree.end();
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
        if node.name() == "cpus" {
            copy_cpus(&mut tree, node, machine.pens);
        } else if ram.is_some() && is_memory(&node) {
            continue;
        } else if machine.is_vm {
            copy_offered(&mut tree, node);
        } else {
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

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;
    use alloc::vec;
    use std::string::ToString;

    use super::*;
    use crate::vmm::error::OutsideRam;
    use crate::vmm::image::Image;
    use crate::vmm::test_support::{Mutations, arm64_image, dts, elf, vm};

    const MIB: u64 = 1 << 20;
    const BASE: u64 = 0x4000_0000;
    const END: u64 = BASE + 64 * MIB;
    const KEPT: Range<u64> = END - 2 * MIB..END - MIB;

    /// The board: its tree is at the start of RAM, the bundle in the middle, the stub at the end.
    const BOARD: &str = r#"/memreserve/ 0x40100000 0x1000; / {
        #address-cells = <2>; #size-cells = <2>; compatible = "board";
        memory@40000000 { device_type = "memory"; reg = <0 0x40000000 0 0x4000000>; };
        psci { method = "smc"; compatible = "arm,psci-1.0"; };
        reserved-memory { #address-cells = <1>; #size-cells = <1>; ranges; secure@42000000 { reg = <0x42000000 0x1000>; }; };
        chosen { stdout-path = "/uart"; bootargs = "keel.loglevel=debug  quiet keel.x rw"; kaslr-seed = <1 2>;
                 linux,initrd-start = <0x43000000>; linux,initrd-end = <0x43100000>; module@1 { reg = <1>; }; };
    };"#;
    const TAKEN: [(Range<u64>, &str); 3] = [
        (BASE..BASE + MIB / 2, "the tree"),
        (BASE + 48 * MIB..BASE + 49 * MIB, "the bundle"),
        (END - 2 * MIB..END, "the stub"),
    ];

    #[derive(Debug)]
    struct Ram(Vec<u8>);

    impl Ram {
        fn slot(&mut self, address: Ipa, size: u64) -> Result<&mut [u8], OutsideRam> {
            let outside = OutsideRam { address, size };
            let end = address.0.checked_add(size).filter(|&end| address.0 >= BASE && end <= END).ok_or(outside)?;
            let clear = TAKEN.iter().all(|(range, _)| end <= range.start || range.end <= address.0);
            assert!(clear, "{address} {size:#x} is in use");
            Ok(&mut self.0[(address.0 - BASE) as usize..(end - BASE) as usize])
        }

        fn tree(&self, at: Ipa) -> Tree<'_> {
            Tree::parse(&self.0[(at.0 - BASE) as usize..]).unwrap()
        }
    }

    impl GuestMemory for Ram {
        fn write(&mut self, address: Ipa, bytes: &[u8]) -> Result<(), OutsideRam> {
            self.slot(address, bytes.len() as u64)?.copy_from_slice(bytes);
            Ok(())
        }

        fn zero(&mut self, address: Ipa, size: u64) -> Result<(), OutsideRam> {
            self.slot(address, size)?.fill(0);
            Ok(())
        }
    }

    fn boot_on(board: &str, vm: &VmConfig) -> Result<(Loaded, Ram), ConfigError> {
        let blob = dts(board);
        let tree = Tree::parse(&blob).unwrap();
        let all = BASE..END;
        let machine = Machine {
            tree: &tree,
            ram: core::slice::from_ref(&all),
            into: BASE..END,
            taken: &TAKEN,
            kept: KEPT,
            vectors: KEPT.start + 0x1000,
            is_vm: false,
            pens: &[(1, KEPT.start + 0x2008), (0x1_0000_0000, KEPT.start + 0x2010), (7, KEPT.start)],
        };
        let mut memory = Ram(vec![0xee; (END - BASE) as usize]);
        load(vm, &mut memory, &machine, &mut |bytes| bytes.fill(0x5a)).map(|loaded| (loaded, memory))
    }

    fn boot(vm: &VmConfig) -> Result<(Loaded, Ram), ConfigError> {
        boot_on(BOARD, vm)
    }

    #[test]
    fn an_image_goes_where_nothing_is() {
        // The first 2 MiB have the tree; a small kernel with this text_offset would fit behind it, but bases are aligned.
        let kernel = arm64_image(0x8_0000, 8 * MIB, 0x1000);
        let (loaded, ram) = boot(&vm(Image::new("/images/k", &kernel), 4 * MIB)).unwrap();
        assert_eq!(loaded.entry, Ipa(BASE + 2 * MIB + 0x8_0000));
        assert_eq!(ram.0[(loaded.entry.0 - BASE) as usize..][..kernel.len()], kernel);
        let large = arm64_image(0, 47 * MIB, 0x1000);
        let error = boot(&vm(Image::new("/images/k", &large), 4 * MIB)).unwrap_err().to_string();
        assert!(error.starts_with("/images/k: needs 0x2f00000 bytes in one piece"), "{error}");
    }

    #[test]
    fn what_is_linked_on_something_in_use_is_refused() {
        let data = elf(BASE + 48 * MIB, &[(BASE + 48 * MIB, BASE + 48 * MIB, 0x100, 0x100)]);
        let error = boot(&vm(Image::new("/images/k", &data), 4 * MIB)).unwrap_err().to_string();
        assert!(error.contains("overlaps the bundle at 0x43000000 to 0x43100000"), "{error}");
        let data = elf(END, &[(END, END, 0x100, 0x100)]);
        assert!(matches!(boot(&vm(Image::new("/images/k", &data), 4 * MIB)), Err(ConfigError::OutsideRam { .. })));
    }

    #[test]
    fn release_words_are_the_stubs() {
        let cpus = r#"cpus { #address-cells = <2>; #size-cells = <0>;
            cpu@0 { device_type = "cpu"; reg = <0 0>; enable-method = "spin-table"; cpu-release-addr = <0 0xd8>; };
            cpu@1 { device_type = "cpu"; reg = <0 1>; cpu-release-addr = <0xe0>; phandle = <9>; l2 { size = <1>; }; };
            cpu@2 { device_type = "cpu"; reg = <1 0>; enable-method = "spin-table"; cpu-release-addr = <0 0xe8>; };
            cpu@7 { device_type = "cpu"; reg = <0 7>; enable-method = "psci"; };
            cpu-map { cluster0 { }; };
        }; psci {"#;
        let data = elf(BASE + 2 * MIB, &[(BASE + 2 * MIB, BASE + 2 * MIB, 0x100, 0x100)]);
        let config = vm(Image::new("/images/k", &data), 4 * MIB);
        let (loaded, ram) = boot_on(&BOARD.replace("psci {", cpus), &config).unwrap();
        let tree = ram.tree(loaded.dtb);
        let word = |name: &str| number(tree.find("/cpus").unwrap().child(name)?.property("cpu-release-addr")?);
        // The boot CPU's is nobody's.
        assert_eq!(word("cpu@0"), Some(0xd8));
        assert_eq!((word("cpu@1"), word("cpu@2")), (Some(KEPT.start + 0x2008), Some(KEPT.start + 0x2010)));
        assert_eq!(word("cpu@7"), None, "one that PSCI starts gets no word");
        let second = tree.find("/cpus/cpu@1").unwrap();
        assert_eq!((second.u32("phandle"), second.child("l2").map(|l2| l2.u32("size"))), (Some(9), Some(Some(1))));
        assert!(tree.find("/cpus/cpu-map/cluster0").is_some());
        assert_eq!(tree.find("/cpus").unwrap().u32("#address-cells"), Some(2));
    }

    #[test]
    fn the_tree_is_the_machines_with_the_stub_in_it() {
        let data = elf(BASE + 2 * MIB, &[(BASE + 2 * MIB, BASE + 2 * MIB, 0x100, 0x100)]);
        let disk = vec![0xdd; 0x1_2345];
        let mut config = vm(Image::new("/images/k", &data), 4 * MIB);
        config.ramdisk = Some(Arc::new(Image::new("/images/disk", &disk)));
        config.bootargs = Some("own");
        let (loaded, ram) = boot(&config).unwrap();
        let tree = ram.tree(loaded.dtb);
        assert_eq!(tree.reservations(), [(0x4010_0000, 0x1000)]);
        assert_eq!(tree.find("/memory").unwrap().property("reg").unwrap().len(), 16);
        let stub = tree.find("/reserved-memory/hyp-stub").unwrap();
        assert_eq!(stub.path(), "/reserved-memory/hyp-stub@43e00000");
        // In the cells that /reserved-memory has.
        assert_eq!(stub.property("reg").unwrap(), [0x43, 0xe0, 0, 0, 0, 0x10, 0, 0]);
        assert_eq!(stub.property("keel,vectors").unwrap(), (KEPT.start + 0x1000).to_be_bytes());
        assert!(stub.property("no-map").is_some() && stub.is_compatible("keel,hyp-stub"));
        assert!(tree.find("/reserved-memory/secure").is_some());
        let chosen = tree.find("/chosen").unwrap();
        let range = loaded.ramdisk.unwrap();
        assert_eq!(ram.0[(range.start - BASE) as usize..(range.end - BASE) as usize], disk);
        assert_eq!(chosen.property("linux,initrd-start"), Some(&range.start.to_be_bytes()[..]));
        assert_eq!((chosen.string("bootargs"), chosen.string("stdout-path")), (Some("own"), Some("/uart")));
        assert_eq!(chosen.property("kaslr-seed"), Some(&[0x5a; 8][..]));
        assert!(tree.find("/chosen/module").is_some());
        for name in ["bootargs", "kaslr-seed", "linux,initrd-start", "linux,initrd-end", "stdout-path"] {
            assert_eq!(chosen.properties().filter(|property| property.name == name).count(), 1, "{name}");
        }
    }

    #[test]
    fn without_bootargs_the_payload_gets_the_loaders_but_the_stubs() {
        let (loaded, ram) = boot(&vm(Image::new("/images/k", &[1; 100]), 4 * MIB)).unwrap();
        // A flat image goes to its fixed place.
        assert_eq!(loaded.entry, Ipa(BASE + 0x8_0000));
        assert_eq!(ram.tree(loaded.dtb).find("/chosen").unwrap().string("bootargs"), Some("quiet rw"));
    }

    #[test]
    fn a_board_without_reservations_or_chosen() {
        let board = "/ { #address-cells = <2>; #size-cells = <2>; memory@40000000 { device_type = \"memory\"; \
                     reg = <0 0x40000000 0 0x4000000>; }; };";
        let (loaded, ram) = boot_on(board, &vm(Image::new("/images/k", &[1; 100]), 4 * MIB)).unwrap();
        let tree = ram.tree(loaded.dtb);
        let parent = tree.find("/reserved-memory").unwrap();
        assert_eq!((parent.u32("#address-cells"), parent.u32("#size-cells")), (Some(2), Some(2)));
        assert_eq!(parent.property("ranges"), Some(&[][..]));
        assert_eq!(parent.child("hyp-stub").unwrap().property("reg").unwrap().len(), 16);
        assert!(tree.find("/chosen").is_some());
    }

    #[test]
    fn a_tree_of_the_bundles_own_gets_the_machines_memory() {
        let own = dts(
            "/ { #address-cells = <1>; #size-cells = <1>; model = \"mine\"; memory { device_type = \"memory\"; reg = <0 0>; }; };",
        );
        let mut config = vm(Image::new("/images/k", &[1; 100]), 4 * MIB);
        config.fdt = Some(Arc::new(Image::new("/images/t", &own)));
        let (loaded, ram) = boot(&config).unwrap();
        let tree = ram.tree(loaded.dtb);
        assert_eq!(tree.root().string("model"), Some("mine"));
        assert_eq!(tree.find("/memory").unwrap().property("reg").unwrap(), [0x40, 0, 0, 0, 0x04, 0, 0, 0]);
        assert!(tree.find("/reserved-memory/hyp-stub").is_some());
        let own = dts("/ { #address-cells = <3>; #size-cells = <1>; };");
        config.fdt = Some(Arc::new(Image::new("/images/t", &own)));
        assert!(boot(&config).unwrap_err().to_string().contains("cannot hold the machine's RAM"));
    }

    #[test]
    fn the_default_configuration_is_the_named_one() {
        let bundle = |default: &str| {
            dts(&format!(
                "/ {{ images {{ k {{ data = [01]; }}; }}; configurations {{ {default} \
                 a {{ kernel = \"k\"; keel,memory = <0x400000>; }}; b {{ kernel = \"k\"; keel,memory = <0x400000>; }}; }}; }};"
            ))
        };
        for (default, index) in [("", 0), ("default = \"b\";", 1), ("default = \"none\";", 0), ("default = <1>;", 0)] {
            let blob = bundle(default);
            assert_eq!(default_configuration(&blob, &Bundle::parse(&blob).unwrap()), index, "{default}");
        }
    }

    #[test]
    fn mutants_stay_clear_of_what_is_in_use() {
        let good = elf(BASE + 2 * MIB, &[(BASE + 2 * MIB, BASE + 2 * MIB, 0x100, 0x4000)]);
        let blob = dts(BOARD);
        let tree = Tree::parse(&blob).unwrap();
        let all = BASE..END;
        let machine = Machine {
            tree: &tree,
            ram: core::slice::from_ref(&all),
            into: BASE..END,
            taken: &TAKEN,
            kept: KEPT,
            vectors: KEPT.start,
            is_vm: false,
            pens: &[],
        };
        let mut memory = Ram(vec![0; (END - BASE) as usize]);
        for mutant in Mutations::new(&good, 2_000).chain(Mutations::new(&arm64_image(0x8_0000, MIB, 0x100), 2_000)) {
            let _ = load(&vm(Image::new("/images/k", &mutant), 4 * MIB), &mut memory, &machine, &mut |_| {});
        }
    }
}
