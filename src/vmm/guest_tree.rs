//! The device tree a guest gets: written by keel, or the bundle's own with the VM's particulars filled in.
//!
//! The generated tree says what QEMU's `virt` says of itself, as far as the devices are there, and takes every
//! address and interrupt from [`GuestMachine`]. Bindings: Linux `Documentation/devicetree/bindings` (arm/cpus,
//! arm/psci, interrupt-controller/arm,gic-v3, timer/arm,arch_timer, serial/pl011, rtc/arm,pl031) and chosen.yaml of
//! dt-schema. Seeds are new each time, everything else follows from the configuration alone.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

use dtoolkit::Node as _;
use dtoolkit::fdt::Fdt;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

use super::config::VmConfig;
use super::error::ConfigError;
use super::image::Image;
use super::tree::Tree;
use crate::vdev::platform::{Device, GuestMachine, PPI_BASE, Region, SPI_BASE};

/// The largest tree a kernel accepts (Linux's arm64 booting document): 2 MiB.
pub const TREE_MAX: u64 = 2 << 20;

const EXPECTED_TREE: &str = "a flattened device tree of at most 2 MiB";

// Phandles, the values QEMU uses.
const CLOCK: u32 = 0x8000;
const GIC: u32 = 0x8003;

// Interrupt specifiers of the GIC (arm,gic-v3.yaml).
const SPI: u32 = 0;
const PPI: u32 = 1;
const LEVEL_HIGH: u32 = 4;

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
    let mut tree = match &vm.fdt {
        None => generate(vm, machine),
        Some(image) => own(image)?,
    };
    memory(&mut tree.root, vm, machine)?;
    chosen(&mut tree.root, vm, ramdisk, entropy);
    Ok(tree.to_dtb())
}

/// The bundle's own tree.
fn own(image: &Image) -> Result<DeviceTree, ConfigError> {
    let contents = image.contents(TREE_MAX, EXPECTED_TREE)?;
    // The checks that `Fdt` makes of a tree, without its refusal of names longer than 31 characters, which Linux's
    // own trees have.
    let tree = Tree::parse(&contents).map_err(|error| image.bad(format!("{error}"), EXPECTED_TREE))?;
    Ok(DeviceTree::from_fdt(&Fdt::new_unchecked(tree.bytes())))
}

fn generate(vm: &VmConfig, machine: &GuestMachine) -> DeviceTree {
    let mut tree = DeviceTree::new();
    let root = &mut tree.root;
    cell(root, "interrupt-parent", GIC);
    flag(root, "dma-coherent");
    text(root, "model", "linux,dummy-virt");
    cell(root, "#size-cells", 2);
    cell(root, "#address-cells", 2);
    text(root, "compatible", "linux,dummy-virt");
    root.add_child(psci());
    root.add_child(cpus(vm.cpus, machine));
    root.add_child(interrupt_controller(vm.cpus, machine));
    root.add_child(timer(machine));
    root.add_child(clock(machine));
    let uart = uart(machine);
    let path = format!("/{}", uart.name());
    root.add_child(uart);
    root.add_child(rtc(machine));
    let mut aliases = DeviceTreeNode::new_unchecked("aliases");
    text(&mut aliases, "serial0", &path);
    root.add_child(aliases);
    let mut chosen = DeviceTreeNode::new_unchecked("chosen");
    text(&mut chosen, "stdout-path", &path);
    root.add_child(chosen);
    tree
}

fn psci() -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked("psci");
    // Function ids for kernels that know only PSCI 0.1 (DEN0022 §5.1).
    cell(&mut node, "migrate", 0xc400_0005);
    cell(&mut node, "cpu_on", 0xc400_0003);
    cell(&mut node, "cpu_off", 0x8400_0002);
    cell(&mut node, "cpu_suspend", 0xc400_0001);
    text(&mut node, "method", "hvc");
    list(&mut node, "compatible", &["arm,psci-1.0", "arm,psci-0.2", "arm,psci"]);
    node
}

fn cpus(count: usize, machine: &GuestMachine) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked("cpus");
    let wide = (0..count).any(|index| machine.affinity(index) > u64::from(u32::MAX));
    cell(&mut node, "#size-cells", 0);
    cell(&mut node, "#address-cells", if wide { 2 } else { 1 });
    for index in 0..count {
        let affinity = machine.affinity(index);
        let mut cpu = DeviceTreeNode::new_unchecked(format!("cpu@{affinity:x}"));
        text(&mut cpu, "device_type", "cpu");
        text(&mut cpu, "compatible", "arm,armv8");
        let words = [(affinity >> 32) as u32, affinity as u32];
        cells(&mut cpu, "reg", if wide { &words } else { &words[1..] });
        text(&mut cpu, "enable-method", "psci");
        node.add_child(cpu);
    }
    node
}

fn interrupt_controller(cpus: usize, machine: &GuestMachine) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked(format!("intc@{:x}", machine.gicd.base.0));
    cell(&mut node, "phandle", GIC);
    // Only the redistributors there are: the rest of the window is nothing.
    let redistributors = Region { base: machine.gicr.base, size: machine.gicr_stride * cpus as u64 };
    reg(&mut node, &[machine.gicd, redistributors]);
    cell(&mut node, "#redistributor-regions", 1);
    text(&mut node, "compatible", "arm,gic-v3");
    flag(&mut node, "ranges");
    cell(&mut node, "#size-cells", 2);
    cell(&mut node, "#address-cells", 2);
    flag(&mut node, "interrupt-controller");
    cell(&mut node, "#interrupt-cells", 3);
    node
}

fn timer(machine: &GuestMachine) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked("timer");
    let timers = machine.timers;
    let intids = [timers.secure, timers.physical, timers.virt, timers.hypervisor];
    cells(&mut node, "interrupts", &intids.map(|intid| [PPI, intid - PPI_BASE, LEVEL_HIGH]).concat());
    flag(&mut node, "always-on");
    list(&mut node, "compatible", &["arm,armv8-timer", "arm,armv7-timer"]);
    node
}

fn clock(machine: &GuestMachine) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked("apb-pclk");
    cell(&mut node, "phandle", CLOCK);
    text(&mut node, "clock-output-names", "clk24mhz");
    cell(&mut node, "clock-frequency", machine.uart_clock_hz);
    cell(&mut node, "#clock-cells", 0);
    text(&mut node, "compatible", "fixed-clock");
    node
}

fn uart(machine: &GuestMachine) -> DeviceTreeNode {
    let mut node = primecell("pl011", machine.uart, &["arm,pl011", "arm,primecell"]);
    list(&mut node, "clock-names", &["uartclk", "apb_pclk"]);
    cells(&mut node, "clocks", &[CLOCK, CLOCK]);
    node
}

fn rtc(machine: &GuestMachine) -> DeviceTreeNode {
    let mut node = primecell("pl031", machine.rtc, &["arm,pl031", "arm,primecell"]);
    text(&mut node, "clock-names", "apb_pclk");
    cell(&mut node, "clocks", CLOCK);
    node
}

fn primecell(name: &str, device: Device, compatible: &[&str]) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked(format!("{name}@{:x}", device.region.base.0));
    cells(&mut node, "interrupts", &[SPI, device.intid - SPI_BASE, LEVEL_HIGH]);
    reg(&mut node, &[device.region]);
    list(&mut node, "compatible", compatible);
    node
}

/// Makes the tree's memory be the VM's: one node, whatever there was.
fn memory(root: &mut DeviceTreeNode, vm: &VmConfig, machine: &GuestMachine) -> Result<(), ConfigError> {
    let count = |root: &DeviceTreeNode, name, default| {
        let value = dtoolkit::Property::value(&root.property(name)?).try_into().ok();
        Some(value.map_or(default, u32::from_be_bytes))
    };
    let address_cells = count(root, "#address-cells", 2).unwrap_or(2);
    let size_cells = count(root, "#size-cells", 1).unwrap_or(1);
    let mut value = Vec::with_capacity(16);
    for (number, cells) in [(machine.ram_base.0, address_cells), (vm.memory, size_cells)] {
        match (cells, u32::try_from(number)) {
            (1, Ok(word)) => value.extend_from_slice(&word.to_be_bytes()),
            (2, _) => value.extend_from_slice(&number.to_be_bytes()),
            // A generated tree has two cells each.
            _ => {
                let image = vm.fdt.as_ref().unwrap_or(&vm.kernel);
                let reason = format!("its root has {cells} cells for {number:#x}");
                return Err(image.bad(reason, "#address-cells and #size-cells of 2"));
            }
        }
    }
    let is_memory = |node: &DeviceTreeNode| {
        node.property("device_type").is_some_and(|kind| dtoolkit::Property::value(&kind) == b"memory\0")
            || node.name_without_address() == "memory"
    };
    let old: Vec<String> = root.children().filter(|node| is_memory(node)).map(|node| node.name().into()).collect();
    for name in &old {
        root.remove_child(name);
    }
    let mut node = DeviceTreeNode::new_unchecked(format!("memory@{:x}", machine.ram_base.0));
    set(&mut node, "reg", &value);
    text(&mut node, "device_type", "memory");
    root.add_child(node);
    Ok(())
}

/// Tells the kernel its command line, where its RAM disk is, and random numbers (chosen.yaml).
fn chosen(root: &mut DeviceTreeNode, vm: &VmConfig, ramdisk: Option<Range<u64>>, entropy: &mut Entropy) {
    let node = root.add_child_mut(DeviceTreeNode::new_unchecked("chosen"));
    if let Some(bootargs) = vm.bootargs {
        text(node, "bootargs", bootargs);
    }
    // An address from another boot is worse than none.
    node.remove_property("linux,initrd-start");
    node.remove_property("linux,initrd-end");
    if let Some(ramdisk) = ramdisk {
        set(node, "linux,initrd-start", &ramdisk.start.to_be_bytes());
        set(node, "linux,initrd-end", &ramdisk.end.to_be_bytes());
    }
    let mut seed = [0; RNG_SEED];
    entropy(&mut seed);
    set(node, "rng-seed", &seed);
    let mut seed = [0; 8];
    entropy(&mut seed);
    set(node, "kaslr-seed", &seed);
}

// The names below are constants of this file, so the checked constructors have nothing to check.

fn set(node: &mut DeviceTreeNode, name: &str, value: &[u8]) {
    node.add_property(DeviceTreeProperty::new_unchecked(name, value));
}

fn flag(node: &mut DeviceTreeNode, name: &str) {
    set(node, name, &[]);
}

fn cell(node: &mut DeviceTreeNode, name: &str, value: u32) {
    set(node, name, &value.to_be_bytes());
}

fn cells(node: &mut DeviceTreeNode, name: &str, values: &[u32]) {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_be_bytes()).collect();
    set(node, name, &bytes);
}

fn text(node: &mut DeviceTreeNode, name: &str, value: &str) {
    list(node, name, &[value]);
}

fn list(node: &mut DeviceTreeNode, name: &str, values: &[&str]) {
    let mut bytes = Vec::with_capacity(64);
    for value in values {
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
    }
    set(node, name, &bytes);
}

fn reg(node: &mut DeviceTreeNode, regions: &[Region]) {
    let bytes: Vec<u8> =
        regions.iter().flat_map(|region| [region.base.0, region.size]).flat_map(u64::to_be_bytes).collect();
    set(node, "reg", &bytes);
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::vdev::platform::VIRT;
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

    /// What the nodes of our tree say is what QEMU's own say, but for the CPUs' model and the size of the
    /// redistributors' window.
    #[test]
    fn qemu_describes_the_same_machine() {
        let file = std::env::temp_dir().join(format!("keel-guest-tree-{}.dtb", std::process::id()));
        let machine = format!("virt,gic-version=3,dumpdtb={}", file.display());
        let mut qemu = Command::new("qemu-system-aarch64");
        qemu.args(["-M", &machine, "-cpu", "max", "-smp", "2", "-m", "512M", "-nic", "none", "-display", "none"]);
        let Ok(output) = qemu.output() else {
            std::eprintln!("skipped: qemu-system-aarch64 is not installed");
            return;
        };
        let theirs = std::fs::read(&file).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        let _ = std::fs::remove_file(&file);
        let theirs = Tree::parse(&theirs).unwrap();
        let ours = built(&config(2, None), None).unwrap();
        let ours = Tree::parse(&ours).unwrap();
        for node in ours.nodes().filter(|node| node.name() != "chosen") {
            let path = node.path();
            let other = theirs.find(&path).unwrap_or_else(|| panic!("QEMU has no {path}"));
            for property in node.properties() {
                let value = other.property(property.name).unwrap_or_else(|| panic!("{path}: {}", property.name));
                let name = property.name;
                let (mut mine, mut value) = (property.value, value);
                if name == "phandle" || name == "clocks" || name == "interrupt-parent" {
                    continue; // numbers that mean something only within one tree
                }
                if path.starts_with("/cpus/cpu@") && name == "compatible" {
                    continue;
                }
                if path == "/intc@8000000" && name == "reg" {
                    (mine, value) = (&mine[..24], &value[..24]);
                }
                assert_eq!(mine, value, "{path}: {name}");
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
