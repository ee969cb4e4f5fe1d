//! The device tree a guest gets: written by keel, or the bundle's own with the VM's particulars filled in.
//!
//! The generated tree says what QEMU's `virt` says of itself, as far as the devices are there, and takes every
//! address and interrupt from [`GuestMachine`]. Bindings: Linux `Documentation/devicetree/bindings` (arm/cpus,
//! arm/psci, interrupt-controller/arm,gic-v3 and arm,gic, timer/arm,arch_timer, arm/pmu, serial/pl011, rtc/arm,pl031) and chosen.yaml of
//! dt-schema. Seeds are new each time, everything else follows from the configuration alone.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use super::config::{Feature, VmConfig};
use super::error::ConfigError;
use super::image::Image;
use super::tree::{Node, Tree};
use super::tree_writer::TreeWriter;
use crate::vdev::platform::{Device, GuestMachine, PPI_BASE, SPI_BASE};

/// The largest tree a kernel accepts (Linux's arm64 booting document): 2 MiB.
pub const TREE_MAX: u64 = 2 << 20;

pub(super) const EXPECTED_TREE: &str = "a flattened device tree of at most 2 MiB";

// Phandles, the values QEMU uses.
const CLOCK: u32 = 0x8000;
const GIC: u32 = 0x8003;
const ITS: u32 = 0x8004;

// Interrupt specifiers of the GIC (arm,gic-v3.yaml, arm,gic.yaml).
const SPI: u32 = 0;
const PPI: u32 = 1;
const LEVEL_HIGH: u32 = 4;
/// In the flags of a GICv2's PPI, bits 15:8: the CPUs that have it.
const PPI_CPUS_SHIFT: u32 = 8;

/// Bytes of `rng-seed`; what QEMU gives.
const RNG_SEED: usize = 32;

/// Where random bytes come from.
pub type Entropy<'e> = dyn FnMut(&mut [u8]) + 'e;

/// The tree of `vm`, ready to be written into its RAM. `ramdisk` is where its RAM disk was put.
///
/// # Errors
///
/// [`ConfigError::BadImage`] if the bundle's own tree cannot be used.
pub fn build(
    vm: &VmConfig,
    machine: &GuestMachine,
    ramdisk: Option<Range<u64>>,
    entropy: &mut Entropy,
) -> Result<Vec<u8>, ConfigError> {
    match &vm.fdt {
        None => Ok(generate(vm, machine, ramdisk, entropy)),
        Some(image) => {
            let contents = image.contents(TREE_MAX, EXPECTED_TREE)?;
            let own = Tree::parse(&contents).map_err(|error| image.bad(format!("{error}"), EXPECTED_TREE))?;
            patch(&own, image, vm, machine, ramdisk, entropy)
        }
    }
}

fn generate(vm: &VmConfig, machine: &GuestMachine, ramdisk: Option<Range<u64>>, entropy: &mut Entropy) -> Vec<u8> {
    let mut tree = TreeWriter::new();
    tree.begin("");
    tree.cell("interrupt-parent", GIC);
    tree.flag("dma-coherent");
    tree.text("model", "linux,dummy-virt");
    tree.cell("#size-cells", 2);
    tree.cell("#address-cells", 2);
    tree.text("compatible", "linux,dummy-virt");
    psci(&mut tree, vm.features.contains(&Feature::Aarch32));
    memory(&mut tree, machine, &[machine.ram_base.0, vm.memory].map(u64::to_be_bytes).concat());
    cpus(&mut tree, vm.cpus, machine);
    interrupt_controller(&mut tree, vm, machine);
    timer(&mut tree, vm.cpus, machine);
    if vm.features.contains(&Feature::Pmu) {
        pmu(&mut tree, vm.cpus, machine);
    }
    clock(&mut tree, machine);
    let uart = uart(&mut tree, machine);
    rtc(&mut tree, machine);
    tree.begin("aliases");
    tree.text("serial0", &uart);
    tree.end();
    tree.begin("chosen");
    tree.text("stdout-path", &uart);
    chosen(&mut tree, vm, ramdisk, entropy);
    tree.end();
    tree.end();
    tree.finish()
}

/// The bundle's own tree with this VM's memory and `chosen`.
fn patch(
    own: &Tree,
    image: &Image,
    vm: &VmConfig,
    machine: &GuestMachine,
    ramdisk: Option<Range<u64>>,
    entropy: &mut Entropy,
) -> Result<Vec<u8>, ConfigError> {
    let root = own.root();
    let mut tree = TreeWriter::like(own);
    tree.begin("");
    tree.copy_properties(root, &[]);
    let is_memory = |node: &Node| node.base_name() == "memory" || node.string("device_type") == Some("memory");
    for node in root.children().filter(|node| node.name() != "chosen" && !is_memory(node)) {
        tree.copy(node);
    }
    memory(&mut tree, machine, &memory_reg(root, image, vm, machine)?);
    tree.begin("chosen");
    let old = root.child("chosen");
    if let Some(old) = old {
        // The addresses are from another boot.
        let replaced = ["linux,initrd-start", "linux,initrd-end", "rng-seed", "kaslr-seed", "bootargs"];
        let count = if vm.bootargs.is_some() { 5 } else { 4 };
        tree.copy_properties(old, &replaced[..count]);
    }
    chosen(&mut tree, vm, ramdisk, entropy);
    for node in old.iter().flat_map(|old| old.children()) {
        tree.copy(node);
    }
    tree.end();
    tree.end();
    Ok(tree.finish())
}

/// The VM's RAM in cells as `root` has them.
fn memory_reg(root: Node, image: &Image, vm: &VmConfig, machine: &GuestMachine) -> Result<Vec<u8>, ConfigError> {
    let mut value = Vec::with_capacity(16);
    let cells = [root.u32("#address-cells").unwrap_or(2), root.u32("#size-cells").unwrap_or(1)];
    for (number, cells) in [machine.ram_base.0, vm.memory].into_iter().zip(cells) {
        match (cells, u32::try_from(number)) {
            (1, Ok(word)) => value.extend_from_slice(&word.to_be_bytes()),
            (2, _) => value.extend_from_slice(&number.to_be_bytes()),
            _ => {
                let reason = format!("its root has {cells} cells for {number:#x}");
                return Err(image.bad(reason, "#address-cells and #size-cells of 2"));
            }
        }
    }
    Ok(value)
}

fn memory(tree: &mut TreeWriter, machine: &GuestMachine, reg: &[u8]) {
    tree.begin(&format!("memory@{:x}", machine.ram_base.0));
    tree.property("reg", reg);
    tree.text("device_type", "memory");
    tree.end();
}

/// Tells the kernel its command line, where its RAM disk is, and random numbers (chosen.yaml).
pub(super) fn chosen(tree: &mut TreeWriter, vm: &VmConfig, ramdisk: Option<Range<u64>>, entropy: &mut Entropy) {
    if let Some(bootargs) = vm.bootargs {
        tree.text("bootargs", bootargs);
    }
    if let Some(ramdisk) = ramdisk {
        tree.wide("linux,initrd-start", &[ramdisk.start]);
        tree.wide("linux,initrd-end", &[ramdisk.end]);
    }
    let mut seed = [0; RNG_SEED];
    entropy(&mut seed);
    tree.property("rng-seed", &seed);
    let mut seed = [0; 8];
    entropy(&mut seed);
    tree.property("kaslr-seed", &seed);
}

fn psci(tree: &mut TreeWriter, aarch32: bool) {
    tree.begin("psci");
    // Function ids for kernels that know only PSCI 0.1 (DEN0022 §5.1).
    let native = if aarch32 { 0x8400_0000 } else { 0xc400_0000 };
    tree.cell("migrate", native | 5);
    tree.cell("cpu_on", native | 3);
    tree.cell("cpu_off", 0x8400_0002);
    tree.cell("cpu_suspend", native | 1);
    tree.text("method", "hvc");
    tree.list("compatible", &["arm,psci-1.0", "arm,psci-0.2", "arm,psci"]);
    tree.end();
}

fn cpus(tree: &mut TreeWriter, count: usize, machine: &GuestMachine) {
    let wide = (0..count).any(|index| machine.affinity(index) > u64::from(u32::MAX));
    tree.begin("cpus");
    tree.cell("#size-cells", 0);
    tree.cell("#address-cells", if wide { 2 } else { 1 });
    for index in 0..count {
        let affinity = machine.affinity(index);
        tree.begin(&format!("cpu@{affinity:x}"));
        tree.text("device_type", "cpu");
        tree.text("compatible", "arm,armv8");
        if wide {
            tree.wide("reg", &[affinity]);
        } else {
            tree.cell("reg", affinity as u32);
        }
        tree.text("enable-method", "psci");
        // Devicetree Specification 0.4 §3.8.2: Linux warns where a CPU describes no cache at all.
        for (kind, cache) in ["d", "i"].into_iter().zip(machine.l1.iter().flatten()) {
            for (what, value) in [("size", cache.size), ("line-size", cache.line), ("sets", cache.sets)] {
                tree.cell(&format!("{kind}-cache-{what}"), value);
            }
        }
        tree.end();
    }
    tree.end();
}

fn interrupt_controller(tree: &mut TreeWriter, vm: &VmConfig, machine: &GuestMachine) {
    tree.begin(&format!("intc@{:x}", machine.gicd.base.0));
    tree.cell("phandle", GIC);
    if let Some(gicc) = machine.gicc {
        tree.wide("reg", &[machine.gicd.base.0, machine.gicd.size, gicc.base.0, gicc.size]);
        tree.text("compatible", "arm,cortex-a15-gic");
    } else {
        // Only the redistributors there are: the rest of the window is nothing.
        let redistributors = machine.gicr_stride * vm.cpus as u64;
        tree.wide("reg", &[machine.gicd.base.0, machine.gicd.size, machine.gicr.base.0, redistributors]);
        tree.cell("#redistributor-regions", 1);
        tree.text("compatible", "arm,gic-v3");
    }
    tree.flag("ranges");
    tree.cell("#size-cells", 2);
    tree.cell("#address-cells", 2);
    tree.flag("interrupt-controller");
    tree.cell("#interrupt-cells", 3);
    if vm.features.contains(&Feature::Its) {
        tree.begin(&format!("its@{:x}", machine.its.base.0));
        tree.cell("phandle", ITS);
        tree.wide("reg", &[machine.its.base.0, machine.its.size]);
        tree.cell("#msi-cells", 1);
        tree.flag("msi-controller");
        tree.text("compatible", "arm,gic-v3-its");
        tree.end();
    }
    tree.end();
}

fn timer(tree: &mut TreeWriter, cpus: usize, machine: &GuestMachine) {
    tree.begin("timer");
    let timers = machine.timers;
    let intids = [timers.secure, timers.physical, timers.virt, timers.hypervisor];
    tree.cells("interrupts", &intids.map(|intid| ppi(intid, cpus, machine)).concat());
    tree.flag("always-on");
    tree.list("compatible", &["arm,armv8-timer", "arm,armv7-timer"]);
    tree.end();
}

/// The specifier of a private interrupt that all `cpus` have.
fn ppi(intid: u32, cpus: usize, machine: &GuestMachine) -> [u32; 3] {
    let cpus = 1_u32.unbounded_shl(cpus as u32).wrapping_sub(1) & 0xff;
    let flags = LEVEL_HIGH | if machine.gicc.is_some() { cpus << PPI_CPUS_SHIFT } else { 0 };
    [PPI, intid - PPI_BASE, flags]
}

/// Without an interrupt its counters can be read, but not sampled.
fn pmu(tree: &mut TreeWriter, cpus: usize, machine: &GuestMachine) {
    tree.begin("pmu");
    if let Some(intid) = machine.pmu {
        tree.cells("interrupts", &ppi(intid, cpus, machine));
    }
    tree.text("compatible", "arm,armv8-pmuv3");
    tree.end();
}

fn clock(tree: &mut TreeWriter, machine: &GuestMachine) {
    tree.begin("apb-pclk");
    tree.cell("phandle", CLOCK);
    tree.text("clock-output-names", "clk24mhz");
    tree.cell("clock-frequency", machine.uart_clock_hz);
    tree.cell("#clock-cells", 0);
    tree.text("compatible", "fixed-clock");
    tree.end();
}

/// Returns its path.
fn uart(tree: &mut TreeWriter, machine: &GuestMachine) -> String {
    let path = primecell(tree, "pl011", machine.uart, &["arm,pl011", "arm,primecell"]);
    tree.list("clock-names", &["uartclk", "apb_pclk"]);
    tree.cells("clocks", &[CLOCK, CLOCK]);
    tree.end();
    path
}

fn rtc(tree: &mut TreeWriter, machine: &GuestMachine) {
    primecell(tree, "pl031", machine.rtc, &["arm,pl031", "arm,primecell"]);
    tree.text("clock-names", "apb_pclk");
    tree.cell("clocks", CLOCK);
    tree.end();
}

/// Begins the node of an AMBA device in the root; returns its path.
fn primecell(tree: &mut TreeWriter, name: &str, device: Device, compatible: &[&str]) -> String {
    let path = format!("/{name}@{:x}", device.region.base.0);
    tree.begin(path.trim_start_matches('/'));
    tree.cells("interrupts", &[SPI, device.intid - SPI_BASE, LEVEL_HIGH]);
    tree.wide("reg", &[device.region.base.0, device.region.size]);
    tree.list("compatible", compatible);
    path
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::vdev::platform::{Cache, VIRT, VIRT_V2};
    use crate::vmm::config::VmConfig;
    use crate::vmm::test_support::{Mutations, dts, vm};

    const MIB: u64 = 1 << 20;

    fn config(cpus: usize, fdt: Option<&[u8]>) -> VmConfig<'_> {
        let mut config = vm(Image::new("/images/k", b"k"), 512 * MIB);
        config.cpus = cpus;
        config.bootargs = Some("console=ttyAMA0");
        config.fdt = fdt.map(|data| Arc::new(Image::new("/images/tree", data)));
        config
    }

    fn built(config: &VmConfig, ramdisk: Option<Range<u64>>) -> Result<Vec<u8>, ConfigError> {
        let mut next = 0;
        build(config, &VIRT, ramdisk, &mut |bytes| {
            for byte in bytes {
                next += 1;
                *byte = next;
            }
        })
    }

    #[test]
    fn caches_are_described_when_they_are_known() {
        let caches = [64, 32].map(|line| Cache { line, sets: 256, size: 64 << 10 });
        let machine = GuestMachine { l1: Some(caches), ..VIRT };
        let blob = build(&config(2, None), &machine, None, &mut |_| {}).unwrap();
        let tree = Tree::parse(&blob).unwrap();
        for path in ["/cpus/cpu@0", "/cpus/cpu@1"] {
            let cpu = tree.find(path).unwrap();
            assert_eq!(
                ["d-cache-line-size", "i-cache-line-size", "d-cache-size"].map(|name| cpu.u32(name)),
                [Some(64), Some(32), Some(64 << 10)]
            );
        }
        let blob = built(&config(1, None), None).unwrap();
        assert_eq!(Tree::parse(&blob).unwrap().find("/cpus/cpu@0").unwrap().u32("d-cache-size"), None);
    }

    #[test]
    fn a_pmu_is_there_when_it_was_asked_for() {
        let mut asked = config(1, None);
        asked.features.push(Feature::Pmu);
        let node = |config: &VmConfig, machine: &GuestMachine| {
            let blob = build(config, machine, None, &mut |_| {}).unwrap();
            let tree = Tree::parse(&blob).unwrap();
            tree.find("/pmu").map(|node| {
                (node.string("compatible").map(String::from), node.property("interrupts").map(<[u8]>::to_vec))
            })
        };
        let compatible = Some(String::from("arm,armv8-pmuv3"));
        let interrupts = [1u32, 7, 4].map(u32::to_be_bytes).concat();
        assert_eq!(node(&asked, &VIRT), Some((compatible.clone(), Some(interrupts))));
        assert_eq!(node(&asked, &GuestMachine { pmu: None, ..VIRT }), Some((compatible, None)));
        assert_eq!(node(&config(1, None), &VIRT), None);
    }

    #[test]
    fn everything_is_there() {
        let blob = built(&config(3, None), Some(0x4800_0000..0x4800_1234)).unwrap();
        let tree = Tree::parse(&blob).unwrap();
        let chosen = tree.find("/chosen").unwrap();
        assert_eq!(chosen.string("bootargs"), Some("console=ttyAMA0"));
        assert_eq!(chosen.string("stdout-path"), Some("/pl011@9000000"));
        assert_eq!(chosen.property("linux,initrd-end"), Some(&0x4800_1234u64.to_be_bytes()[..]));
        assert_eq!(chosen.property("rng-seed").unwrap()[..3], [1, 2, 3]);
        assert_eq!(chosen.property("kaslr-seed").unwrap(), [33, 34, 35, 36, 37, 38, 39, 40]);
        assert_eq!(tree.find("/memory").unwrap().path(), "/memory@40000000");
        assert_eq!(tree.find("/cpus").unwrap().children().count(), 3);
        assert_eq!(tree.find("/cpus/cpu@2").unwrap().u32("reg"), Some(2));
        let gic = tree.find("/intc").unwrap().property("reg").unwrap();
        assert_eq!(gic[28..], 0x6_0000u32.to_be_bytes(), "three redistributors");
        let without = built(&config(1, None), None).unwrap();
        assert_eq!(Tree::parse(&without).unwrap().find("/chosen").unwrap().property("linux,initrd-start"), None);
    }

    #[test]
    fn seventeen_cpus_are_in_two_clusters() {
        let blob = built(&config(17, None), None).unwrap();
        let tree = Tree::parse(&blob).unwrap();
        assert_eq!(tree.find("/cpus/cpu@100").unwrap().u32("reg"), Some(0x100));
        assert_eq!(tree.find("/cpus/cpu@f").unwrap().u32("reg"), Some(0xf));
    }

    /// An independent reader sees the same.
    #[test]
    fn the_fdt_crate_agrees() {
        let blob = built(&config(4, None), Some(0x4800_0000..0x4800_1000)).unwrap();
        let tree = fdt::Fdt::new(&blob).unwrap();
        assert_eq!(tree.total_size(), blob.len());
        assert_eq!(tree.cpus().map(|cpu| cpu.ids().first()).collect::<Vec<_>>(), [0, 1, 2, 3]);
        let region = tree.memory().regions().next().unwrap();
        assert_eq!((region.starting_address as u64, region.size), (0x4000_0000, Some(512 << 20)));
        assert_eq!(tree.chosen().bootargs(), Some("console=ttyAMA0"));
        assert_eq!(tree.chosen().stdout().unwrap().name, "pl011@9000000");
        assert_eq!(tree.root().compatible().first(), "linux,dummy-virt");
    }

    #[test]
    fn dtc_accepts_it() {
        for cpus in [1, 4, 64] {
            let blob = built(&config(cpus, None), Some(0x4800_0000..0x4800_1234)).unwrap();
            let dtc = Command::new("dtc")
                .args(["-I", "dtb", "-O", "dts", "-"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn();
            let Ok(mut dtc) = dtc else {
                std::eprintln!("skipped: dtc is not installed");
                return;
            };
            dtc.stdin.take().unwrap().write_all(&blob).unwrap();
            let output = dtc.wait_with_output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        }
    }

    /// What the nodes of our tree say is what QEMU's own say, but for the CPUs' model and the sizes of the interrupt
    /// controller's frames.
    #[test]
    fn qemu_describes_the_same_machine() {
        for (version, machine) in [(3, VIRT), (2, VIRT_V2)] {
            let file = std::env::temp_dir().join(format!("keel-guest-tree-{}-{version}.dtb", std::process::id()));
            let board = format!("virt,gic-version={version},dumpdtb={}", file.display());
            let mut qemu = Command::new("qemu-system-aarch64");
            qemu.args(["-M", &board, "-cpu", "max", "-smp", "2", "-m", "512M", "-nic", "none", "-display", "none"]);
            let Ok(output) = qemu.output() else {
                std::eprintln!("skipped: qemu-system-aarch64 is not installed");
                return;
            };
            let theirs = std::fs::read(&file).unwrap_or_else(|error| panic!("{error}: {output:?}"));
            let _ = std::fs::remove_file(&file);
            let theirs = Tree::parse(&theirs).unwrap();
            let ours = build(&config(2, None), &machine, None, &mut |_| {}).unwrap();
            let ours = Tree::parse(&ours).unwrap();
            for node in ours.nodes().filter(|node| node.name() != "chosen") {
                let path = node.path();
                let other = theirs.find(&path).unwrap_or_else(|| panic!("QEMU has no {path}"));
                for property in node.properties() {
                    let value = other.property(property.name).unwrap_or_else(|| panic!("{path}: {}", property.name));
                    let name = property.name;
                    if name == "phandle" || name == "clocks" || name == "interrupt-parent" {
                        continue; // numbers that mean something only within one tree
                    }
                    if path.starts_with("/cpus/cpu@") && name == "compatible" {
                        continue;
                    }
                    if path == "/intc@8000000" && name == "reg" {
                        assert_eq!(property.value[..8], value[..8], "the distributor of version {version}");
                        assert_eq!(property.value[16..24], value[16..24], "the second frame of version {version}");
                        continue;
                    }
                    assert_eq!(property.value, value, "{path}: {name}, version {version}");
                }
            }
        }
    }

    const OWN: &str = r#"
        /memreserve/ 0x1000 0x2000;
        / {
            #address-cells = <1>; #size-cells = <1>;
            memory@0 { device_type = "memory"; reg = <0 0x1000>; };
            memory@80000000 { device_type = "memory"; reg = <0x80000000 0x1000>; };
            chosen { bootargs = "theirs"; linux,initrd-start = <1>; linux,initrd-end = <2>; stdout-path = "/uart"; };
            uart { "a-property-name-longer-than-the-limit" = "kept"; };
        };"#;

    #[test]
    fn an_own_tree_is_patched_and_kept() {
        let own = dts(OWN);
        let mut vm = config(1, Some(&own));
        let blob = built(&vm, None).unwrap();
        let tree = Tree::parse(&blob).unwrap();
        assert_eq!(tree.reservations(), [(0x1000, 0x2000)]);
        let memory: Vec<_> = tree.nodes().filter(|node| node.base_name() == "memory").collect();
        assert_eq!(memory.len(), 1);
        assert_eq!(memory[0].property("reg").unwrap(), [0x40, 0, 0, 0, 0x20, 0, 0, 0]);
        let chosen = tree.find("/chosen").unwrap();
        assert_eq!(chosen.string("bootargs"), Some("console=ttyAMA0"));
        assert_eq!(chosen.string("stdout-path"), Some("/uart"));
        assert_eq!(chosen.property("linux,initrd-start"), None, "from another boot");
        assert!(chosen.property("rng-seed").is_some());
        assert_eq!(tree.find("/uart").unwrap().string("a-property-name-longer-than-the-limit"), Some("kept"));
        vm.bootargs = None;
        let blob = built(&vm, Some(0x4800_0000..0x4800_1000)).unwrap();
        let tree = Tree::parse(&blob).unwrap();
        assert_eq!(tree.find("/chosen").unwrap().string("bootargs"), Some("theirs"));
        assert!(tree.find("/chosen").unwrap().property("linux,initrd-start").is_some());
    }

    #[test]
    fn an_own_tree_that_cannot_be_used_is_refused() {
        let error = |data: &[u8]| built(&config(1, Some(data)), None).unwrap_err().to_string();
        assert_eq!(
            error(b"what"),
            "/images/tree: begins with 0x77686174, expected 0xd00dfeed, the magic of a flattened device tree; \
             expected a flattened device tree of at most 2 MiB: build the image again"
        );
        let big = alloc::vec![0; 3 << 20];
        assert!(error(&big).starts_with("/images/tree: is 0x300000 bytes long; expected"));
        let own = dts(OWN);
        let mut large = config(1, Some(&own));
        large.memory = 8 << 30;
        let message = built(&large, None).unwrap_err().to_string();
        assert!(message.starts_with("/images/tree: its root has 1 cells for 0x200000000; expected"), "{message}");
    }

    #[test]
    fn ten_thousand_mutants_of_an_own_tree_do_not_panic() {
        let mut good = 0;
        for mutant in Mutations::new(&dts(OWN), 10_000) {
            if let Ok(blob) = built(&config(1, Some(&mutant)), Some(0x4800_0000..0x4800_1000)) {
                good += 1;
                Tree::parse(&blob).unwrap();
            }
        }
        assert!((1_000..9_900).contains(&good), "{good} were good");
    }
}
