//! The bundle writer: a list of machines becomes a FIT image.
//!
//! FIT is U-Boot's container, itself a flattened device tree: `/images/*` carry the files, each node of
//! `/configurations` is one machine. Files that several machines share are stored once. keel's own properties carry
//! the vendor prefix `keel,`. The same input gives the same bytes: the timestamp U-Boot expects is zero.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};
use flate2::{Compression as Level, GzBuilder};
use keel::vmm::bundle::Bundle;
use keel::vmm::config;
use sha2::{Digest, Sha256};

use crate::vms::{Compression, Hash, VmSpec};
use crate::{BadInput, bad_input};

/// What an image is for: the standard `type` property.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Kernel,
    Ramdisk,
    Tree,
}

impl Kind {
    fn fit_type(self) -> &'static str {
        match self {
            Kind::Kernel => "kernel",
            Kind::Ramdisk => "ramdisk",
            Kind::Tree => "flat_dt",
        }
    }

    /// The property of a configuration that names such an image; its nodes are named after it.
    fn property(self) -> &'static str {
        match self {
            Kind::Kernel => config::KERNEL,
            Kind::Ramdisk => config::RAMDISK,
            Kind::Tree => config::FDT,
        }
    }
}

/// Writes a FIT image of `vms`.
///
/// # Errors
///
/// A file cannot be read, a name is no node name or is used twice, a list or string cannot be stored, or the whole is
/// larger than the 4 GiB a device tree can be.
pub fn write(vms: &[VmSpec]) -> Result<Vec<u8>, BadInput> {
    let mut images = Images { nodes: DeviceTreeNode::new_unchecked(config::IMAGES), known: BTreeMap::new(), bytes: 0 };
    let mut configurations = DeviceTreeNode::new_unchecked(config::CONFIGURATIONS);
    let mut names = Vec::new();
    for vm in vms {
        if names.contains(&vm.name.as_str()) {
            return Err(bad_input!("two machines are named `{}`; a name can be used once", vm.name));
        }
        names.push(&vm.name);
        let node = configuration(vm, &mut images)?;
        if names.len() == 1 {
            set(&mut configurations, "default", vm.name.as_str());
        }
        configurations.add_child(node);
    }
    if images.bytes > u64::from(u32::MAX) - (1 << 20) {
        return Err(bad_input!("the images are {} bytes together; a bundle cannot exceed 4 GiB", images.bytes));
    }
    let mut tree = DeviceTree::new();
    set(&mut tree.root, config::DESCRIPTION, "keel bundle");
    set(&mut tree.root, "timestamp", 0_u32);
    set(&mut tree.root, "#address-cells", 1_u32);
    tree.root.add_child(images.nodes);
    tree.root.add_child(configurations);
    Ok(tree.to_dtb())
}

/// Reads a bundle with keel's own parser: what this accepts, keel accepts.
///
/// # Errors
///
/// The first thing keel would refuse, in keel's words.
pub fn check(bundle: &[u8]) -> Result<(), BadInput> {
    let read = Bundle::parse(bundle).map_err(|error| bad_input!("{error}"))?;
    match read.vms.into_iter().find_map(Result::err) {
        None => Ok(()),
        Some(error) => Err(bad_input!("{error}")),
    }
}

fn set<T: dtoolkit::ToPropertyValue>(node: &mut DeviceTreeNode, name: &str, value: T) {
    node.add_property(DeviceTreeProperty::new_unchecked(name, value));
}

/// A string as a property's value cannot hold a NUL.
fn text<'a>(vm: &VmSpec, key: &str, value: &'a str) -> Result<&'a str, BadInput> {
    if value.contains('\0') {
        return Err(bad_input!("machine `{}`: {key} contains a NUL character", vm.name));
    }
    Ok(value)
}

fn string_list(vm: &VmSpec, key: &str, list: &[String]) -> Result<Vec<u8>, BadInput> {
    let mut bytes = Vec::new();
    for item in list {
        bytes.extend_from_slice(text(vm, key, item)?.as_bytes());
        bytes.push(0);
    }
    Ok(bytes)
}

fn configuration(vm: &VmSpec, images: &mut Images) -> Result<DeviceTreeNode, BadInput> {
    let well_formed = (1..=31).contains(&vm.name.len())
        && vm.name.chars().all(|letter| letter.is_ascii_alphanumeric() || ",._+-".contains(letter))
        && vm.name.starts_with(|letter: char| letter.is_ascii_alphabetic());
    if !well_formed {
        return Err(bad_input!(
            "machine name `{}`: a name is a letter followed by at most 30 of A-Z a-z 0-9 , . _ + -",
            vm.name
        ));
    }
    let mut node = DeviceTreeNode::new_unchecked(vm.name.as_str());
    set(&mut node, config::DESCRIPTION, text(vm, "description", vm.description.as_deref().unwrap_or(&vm.name))?);
    let mut reference = |kind: Kind, file: &Path, compression| {
        images.add(vm, kind, file, compression).map(|image| set(&mut node, kind.property(), image.as_str()))
    };
    reference(Kind::Kernel, &vm.kernel, vm.compression)?;
    if let Some(file) = &vm.initrd {
        reference(Kind::Ramdisk, file, Compression::None)?;
    }
    if let Some(file) = &vm.dtb {
        reference(Kind::Tree, file, Compression::None)?;
    }
    if !vm.bootargs.is_empty() {
        set(&mut node, config::BOOTARGS, text(vm, "bootargs", &vm.bootargs)?);
    }
    set(&mut node, config::KEEL_MEMORY, vm.memory.0);
    if !vm.root {
        set(&mut node, config::KEEL_CPUS, vm.cpus);
    } else if vm.cpus != 1 {
        return Err(bad_input!(
            "machine `{}`: cpus = {}, but a root has every CPU of the board: remove it",
            vm.name,
            vm.cpus
        ));
    }
    if !vm.cpu_affinity.is_empty() {
        let cells: Vec<u8> = vm.cpu_affinity.iter().flat_map(|cpu| cpu.to_be_bytes()).collect();
        set(&mut node, config::KEEL_CPU_AFFINITY, cells);
    }
    if vm.direct_map {
        set(&mut node, config::KEEL_DIRECT_MAP, Vec::<u8>::new());
    }
    if !vm.passthrough.is_empty() {
        set(&mut node, config::KEEL_PASSTHROUGH, string_list(vm, "passthrough", &vm.passthrough)?);
    }
    if vm.root {
        set(&mut node, config::KEEL_ROOT, Vec::<u8>::new());
    }
    if !vm.features.is_empty() {
        set(&mut node, config::KEEL_FEATURES, string_list(vm, "features", &vm.features)?);
    }
    if let Some(action) = &vm.on_crash {
        set(&mut node, config::KEEL_ON_CRASH, text(vm, "on-crash", action)?);
    }
    if let Some(start) = vm.autostart {
        set(&mut node, config::KEEL_AUTOSTART, u32::from(start));
    }
    Ok(node)
}

/// `/images`, with what is needed to store a shared file once.
struct Images {
    nodes: DeviceTreeNode,
    known: BTreeMap<(Kind, PathBuf, bool, u8), String>,
    bytes: u64,
}

impl Images {
    /// Adds a file and returns its node's name.
    fn add(&mut self, vm: &VmSpec, kind: Kind, file: &Path, compression: Compression) -> Result<String, BadInput> {
        let key = (kind, file.to_path_buf(), compression == Compression::Gzip, vm.hash as u8);
        if let Some(name) = self.known.get(&key) {
            return Ok(name.clone());
        }
        let fault = |what: String| bad_input!("machine `{}`: {} {}: {what}", vm.name, kind.property(), file.display());
        let mut data = std::fs::read(file).map_err(|error| fault(error.to_string()))?;
        if data.is_empty() {
            return Err(fault("the file is empty".into()));
        }
        // A kernel that is gzip'd on disk (Image.gz) is stored as it is and said to be compressed.
        let is_gzip = data.starts_with(&[0x1f, 0x8b]);
        let compressed = kind == Kind::Kernel && (is_gzip || compression == Compression::Gzip);
        if compressed && !is_gzip {
            data = gzip(&data).map_err(|error| fault(error.to_string()))?;
        }
        let name = format!("{}-{}", kind.property(), self.known.len() + 1);
        let mut node = DeviceTreeNode::new_unchecked(name.as_str());
        let title = file.file_name().map(|title| title.to_string_lossy().replace('\0', "")).unwrap_or_default();
        set(&mut node, config::DESCRIPTION, title.as_str());
        set(&mut node, config::TYPE, kind.fit_type());
        let aarch32 = vm.features.iter().any(|feature| feature == "aarch32");
        set(&mut node, config::ARCH, if aarch32 { "arm" } else { "arm64" });
        if kind != Kind::Tree {
            set(&mut node, "os", "linux");
        }
        set(&mut node, config::COMPRESSION, if compressed { "gzip" } else { "none" });
        if let Some(hash) = hash_node(vm.hash, &data) {
            node.add_child(hash);
        }
        self.bytes += data.len() as u64;
        set(&mut node, config::DATA, data);
        self.nodes.add_child(node);
        self.known.insert(key, name.clone());
        Ok(name)
    }
}

/// The `hash-1` node of an image: over the stored (compressed) bytes, as U-Boot defines it.
fn hash_node(hash: Hash, data: &[u8]) -> Option<DeviceTreeNode> {
    let (algorithm, value) = match hash {
        Hash::None => return None,
        Hash::Crc32 => (config::CRC32, crc32fast::hash(data).to_be_bytes().to_vec()),
        Hash::Sha256 => (config::SHA256, Sha256::digest(data).to_vec()),
    };
    let mut node = DeviceTreeNode::new_unchecked("hash-1");
    set(&mut node, config::ALGO, algorithm);
    set(&mut node, config::VALUE, value);
    Some(node)
}

/// Compresses without a name or a time in the header, so that the result repeats.
fn gzip(data: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Level::new(6));
    encoder.write_all(data)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use dtoolkit::fdt::Fdt;
    use dtoolkit::{Node, Property};

    use super::*;

    fn value(tree: &DeviceTree, path: &str, name: &str) -> Option<Vec<u8>> {
        let node = tree.find_node(path)?;
        node.property(name).map(|property| property.value().to_vec())
    }

    fn files() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("Image");
        let initrd = folder.path().join("initramfs");
        std::fs::write(&kernel, [7; 5000]).unwrap();
        std::fs::write(&initrd, b"cpio").unwrap();
        (folder, kernel, initrd)
    }

    fn parse(bundle: &[u8]) -> DeviceTree {
        DeviceTree::from_fdt(&Fdt::new(bundle).expect("a valid tree"))
    }

    #[test]
    fn properties_and_images_are_written() {
        let (_folder, kernel, initrd) = files();
        let mut vm = VmSpec::new("linux", &kernel);
        vm.initrd = Some(initrd);
        vm.bootargs = "console=ttyAMA0 quiet".into();
        vm.cpus = 2;
        vm.cpu_affinity = vec![1, 3];
        vm.passthrough = vec!["/soc/a".into(), "/soc/b".into()];
        vm.direct_map = true;
        vm.on_crash = Some("halt".into());
        vm.autostart = Some(false);
        let tree = parse(&write(&[vm]).unwrap());
        let vm = "/configurations/linux";
        assert_eq!(value(&tree, vm, "kernel").unwrap(), b"kernel-1\0");
        assert_eq!(value(&tree, vm, "ramdisk").unwrap(), b"ramdisk-2\0");
        assert_eq!(value(&tree, vm, "fdt"), None);
        assert_eq!(value(&tree, vm, "bootargs").unwrap(), b"console=ttyAMA0 quiet\0");
        assert_eq!(value(&tree, vm, "keel,memory").unwrap(), (512_u64 << 20).to_be_bytes());
        assert_eq!(value(&tree, vm, "keel,cpus").unwrap(), 2_u32.to_be_bytes());
        assert_eq!(value(&tree, vm, "keel,cpu-affinity").unwrap(), [0, 0, 0, 1, 0, 0, 0, 3]);
        assert_eq!(value(&tree, vm, "keel,passthrough").unwrap(), b"/soc/a\0/soc/b\0");
        assert_eq!(value(&tree, vm, "keel,direct-map").unwrap(), b"");
        assert_eq!(value(&tree, vm, "keel,root"), None);
        assert_eq!(value(&tree, vm, "keel,on-crash").unwrap(), b"halt\0");
        assert_eq!(value(&tree, vm, "keel,autostart").unwrap(), 0_u32.to_be_bytes());
        assert_eq!(value(&tree, "/configurations", "default").unwrap(), b"linux\0");
        assert_eq!(value(&tree, "/images/kernel-1", "data").unwrap(), [7; 5000]);
        assert_eq!(value(&tree, "/images/kernel-1", "compression").unwrap(), b"none\0");
        assert_eq!(value(&tree, "/images/kernel-1/hash-1", "algo").unwrap(), b"sha256\0");
        assert_eq!(value(&tree, "/images/kernel-1/hash-1", "value").unwrap(), Sha256::digest([7; 5000]).to_vec());
        assert_eq!(value(&tree, "/images/ramdisk-2", "type").unwrap(), b"ramdisk\0");
    }

    #[test]
    fn gzip_is_hashed_as_stored_and_never_done_twice() {
        let (_folder, kernel, _) = files();
        let mut vm = VmSpec::new("a", &kernel);
        vm.compression = Compression::Gzip;
        vm.hash = Hash::Crc32;
        let bundle = write(std::slice::from_ref(&vm)).unwrap();
        assert_eq!(bundle, write(std::slice::from_ref(&vm)).unwrap(), "repeatable");
        let tree = parse(&bundle);
        let stored = value(&tree, "/images/kernel-1", "data").unwrap();
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(&stored[..]).read_to_end(&mut plain).unwrap();
        assert_eq!(plain, [7; 5000]);
        assert_eq!(value(&tree, "/images/kernel-1", "compression").unwrap(), b"gzip\0");
        assert_eq!(value(&tree, "/images/kernel-1/hash-1", "value").unwrap(), crc32fast::hash(&stored).to_be_bytes());

        std::fs::write(&kernel, &stored).unwrap();
        vm.compression = Compression::None;
        vm.hash = Hash::None;
        let tree = parse(&write(&[vm]).unwrap());
        assert_eq!(value(&tree, "/images/kernel-1", "data").unwrap(), stored);
        assert_eq!(value(&tree, "/images/kernel-1", "compression").unwrap(), b"gzip\0");
        assert!(tree.find_node("/images/kernel-1/hash-1").is_none());
    }

    #[test]
    fn shared_files_are_stored_once() {
        let (_folder, kernel, initrd) = files();
        let mut first = VmSpec::new("a", &kernel);
        first.initrd = Some(initrd);
        let mut second = first.clone();
        second.name = "b".into();
        let tree = parse(&write(&[first, second]).unwrap());
        assert_eq!(tree.find_node("/images").unwrap().children().count(), 2);
        assert_eq!(value(&tree, "/configurations/b", "kernel").unwrap(), b"kernel-1\0");
    }

    #[test]
    fn keel_reads_what_is_written() {
        let (_folder, kernel, initrd) = files();
        let mut vm = VmSpec::new("linux", &kernel);
        vm.initrd = Some(initrd);
        vm.cpus = 2;
        vm.cpu_affinity = vec![1, 0];
        vm.on_crash = Some("restart".into());
        vm.autostart = Some(false);
        vm.bootargs = "a b".into();
        for (compression, hash) in
            [(Compression::None, Hash::Sha256), (Compression::Gzip, Hash::Crc32), (Compression::Gzip, Hash::None)]
        {
            (vm.compression, vm.hash) = (compression, hash);
            let bundle = write(std::slice::from_ref(&vm)).unwrap();
            check(&bundle).unwrap();
            let read = Bundle::parse(&bundle).unwrap();
            let config = read.vms[0].as_ref().unwrap();
            assert_eq!((config.name, config.memory, config.cpus), ("linux", 512 << 20, 2));
            assert_eq!((config.bootargs, config.affinity.as_slice()), (Some("a b"), [1, 0].as_slice()));
            assert_eq!((config.on_crash, config.autostart), (config::OnCrash::Restart, false));
            assert_eq!(*config.kernel.contents(1 << 20, "").unwrap(), [7; 5000]);
            config.kernel.verify().unwrap();
            config.ramdisk.as_ref().unwrap().verify().unwrap();
        }
    }

    #[test]
    fn what_keel_refuses_is_said_in_its_words() {
        let (_folder, kernel, _) = files();
        let mut vm = VmSpec::new("a", &kernel);
        vm.features = vec!["warp-drive".into()];
        let error = check(&write(std::slice::from_ref(&vm)).unwrap()).unwrap_err().to_string();
        assert!(error.contains("/configurations/a") && error.contains("warp-drive"), "{error}");
        vm.features.clear();
        vm.cpus = 0;
        let error = check(&write(&[vm]).unwrap()).unwrap_err().to_string();
        assert!(error.contains("keel,cpus"), "{error}");
    }

    #[test]
    fn bad_input_is_named() {
        let (_folder, kernel, _) = files();
        let vm = VmSpec::new("a", &kernel);
        let twice = write(&[vm.clone(), vm.clone()]).unwrap_err().to_string();
        assert!(twice.contains("two machines are named `a`"), "{twice}");
        let missing = write(&[VmSpec::new("a", "/nonexistent/Image")]).unwrap_err().to_string();
        assert!(missing.contains("/nonexistent/Image") && missing.contains("`a`"), "{missing}");
        for name in ["", "has space", "a/b", "0day", "x234567890123456789012345678901x"] {
            let error = write(&[VmSpec::new(name, &kernel)]).unwrap_err().to_string();
            assert!(error.contains("machine name"), "{error}");
        }
        std::fs::write(&kernel, b"").unwrap();
        assert!(write(&[vm]).unwrap_err().to_string().contains("empty"));
    }
}
