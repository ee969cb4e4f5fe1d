//! The bundle: a FIT, U-Boot's container for images, with one VM for each of its configurations.
//!
//! A FIT is a device tree: `/images/*` hold the bytes, `/configurations/*` say which belong together. Parsing borrows
//! the bundle and looks at no image's bytes; hashes are checked when a VM is loaded. What is wrong with one VM is kept
//! in its place of [`Bundle::vms`] and leaves the others alone; only a file that cannot be read as a FIT is a
//! [`BundleError`]. Format: U-Boot `doc/usage/fit/source_file_format.rst`; keel's own properties: [`config`].

use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::AtomicBool;

use super::config::{self, Feature, OnCrash, VmConfig};
use super::error::{BundleError, ConfigError};
use super::image::{Compression, Expected, Hash, Image};
use super::tree::{self, Node, Tree, TreeError, describe, number};

/// A bundle, read.
#[derive(Clone, Debug)]
pub struct Bundle<'a> {
    /// What it calls itself; perhaps empty.
    pub description: &'a str,
    /// Its VMs in the file's order, each or the reason why it cannot be started.
    pub vms: Vec<Result<VmConfig<'a>, ConfigError>>,
}

/// What an image is used for: the property that names it, and the values of `type` that fit.
struct Use {
    property: &'static str,
    types: &'static [&'static str],
}

const KERNEL: Use =
    Use { property: config::KERNEL, types: &["kernel", "kernel_noload", "standalone", "firmware", "elf"] };
const RAMDISK: Use = Use { property: config::RAMDISK, types: &["ramdisk"] };
const FDT: Use = Use { property: config::FDT, types: &["flat_dt"] };

impl<'a> Bundle<'a> {
    /// Reads the FIT at the start of `data`; what follows it (a boot loader's padding) is ignored.
    ///
    /// # Errors
    ///
    /// [`BundleError`] if there is no telling what VMs there are.
    pub fn parse(data: &'a [u8]) -> Result<Self, BundleError> {
        let tree = Tree::parse(data).map_err(|error| match error {
            TreeError::NotATree(found) => BundleError::NotAFit { found, expected: tree::MAGIC },
            TreeError::Truncated { expected, found } => BundleError::Truncated { expected, found },
            other => BundleError::Damaged { reason: other.to_string() },
        })?;
        let top = |name| tree.root().child(name).ok_or(BundleError::MissingNode { node: name });
        let images = top(config::IMAGES)?;
        let configurations = top(config::CONFIGURATIONS)?;
        for node in [tree.root(), images, configurations] {
            if let Some(property) = node.properties().iter().find(|one| one.name.starts_with(config::KEEL_PREFIX)) {
                return Err(BundleError::Misplaced { node: node.path(), property: property.name.into() });
            }
        }
        let mut reader = Reader { images, known: Vec::new() };
        let mut vms: Vec<Result<VmConfig, ConfigError>> = Vec::new();
        let mut names = Vec::new();
        for node in configurations.children() {
            if names.contains(&node.name()) {
                vms.push(Err(ConfigError::DuplicateName { node: node.path(), name: node.name().into() }));
                continue;
            }
            names.push(node.name());
            vms.push(reader.vm(node));
        }
        if vms.is_empty() {
            return Err(BundleError::NoConfigurations);
        }
        Ok(Self { description: tree.root().string(config::DESCRIPTION).unwrap_or_default(), vms })
    }
}

/// Reads configurations, and every image once.
struct Reader<'t, 'a> {
    images: Node<'t, 'a>,
    known: Vec<Arc<Image<'a>>>,
}

impl<'a> Reader<'_, 'a> {
    fn vm(&mut self, node: Node<'_, 'a>) -> Result<VmConfig<'a>, ConfigError> {
        no_unknown(node, &config::KEEL_PROPERTIES)?;
        for property in [config::KEEL_DIRECT_MAP, config::KEEL_PASSTHROUGH, config::KEEL_ROOT] {
            if node.property(property).is_some() {
                return Err(ConfigError::NotAvailable { node: node.path(), property: property.into() });
            }
        }
        let cpus = cpus(node)?;
        Ok(VmConfig {
            name: node.name(),
            description: node.string(config::DESCRIPTION).unwrap_or_default(),
            memory: memory(node)?,
            cpus: cpus as usize,
            affinity: affinity(node, cpus)?,
            features: features(node)?,
            on_crash: on_crash(node)?,
            autostart: autostart(node)?,
            bootargs: string(node, config::BOOTARGS)?,
            kernel: self.image(node, &KERNEL)?.ok_or_else(|| ConfigError::MissingProperty {
                node: node.path(),
                property: config::KERNEL,
                expected: "the name of a node of /images",
            })?,
            ramdisk: self.image(node, &RAMDISK)?,
            fdt: self.image(node, &FDT)?,
        })
    }

    /// The image that `node` names for `purpose`, if it names one.
    fn image(&mut self, node: Node<'_, 'a>, purpose: &Use) -> Result<Option<Arc<Image<'a>>>, ConfigError> {
        let Some(name) = string(node, purpose.property)? else { return Ok(None) };
        let Some(image) = self.images.children().find(|image| image.name() == name) else {
            return Err(ConfigError::NoSuchImage { node: node.path(), property: purpose.property, image: name.into() });
        };
        if let Some(value) = image.property(config::TYPE) {
            let fits = tree::string(value).is_some_and(|found| purpose.types.contains(&found));
            if !fits {
                let types = purpose.types.join(", ");
                return Err(bad(image, config::TYPE, value, format!("{types} for a {}", purpose.property)));
            }
        }
        let path = image.path();
        if let Some(known) = self.known.iter().find(|known| known.node == path) {
            return Ok(Some(known.clone()));
        }
        let image = Arc::new(read_image(image, path)?);
        self.known.push(image.clone());
        Ok(Some(image))
    }
}

fn read_image<'a>(node: Node<'_, 'a>, path: String) -> Result<Image<'a>, ConfigError> {
    no_unknown(node, &[])?;
    let Some(data) = node.property(config::DATA) else {
        return Err(match config::EXTERNAL_DATA.iter().find(|name| node.property(name).is_some()) {
            Some(property) => ConfigError::ExternalData { image: path, property },
            None => ConfigError::MissingProperty { node: path, property: config::DATA, expected: "the image's bytes" },
        });
    };
    if let Some(value) = node.property(config::ARCH)
        && tree::string(value) != Some("arm64")
    {
        return Err(bad(node, config::ARCH, value, "\"arm64\""));
    }
    let compression = match node.property(config::COMPRESSION) {
        None => Compression::None,
        Some(value) => match tree::string(value) {
            Some("none") => Compression::None,
            Some("gzip") => Compression::Gzip,
            _ => return Err(bad(node, config::COMPRESSION, value, "\"none\" or \"gzip\"")),
        },
    };
    let address = |name: &'static str| match node.property(name) {
        None => Ok(None),
        Some(value) => match number(value) {
            Some(address) => Ok(Some(address)),
            None => Err(bad(node, name, value, "an address of one or two cells")),
        },
    };
    let mut hashes = Vec::new();
    for child in node.children() {
        let suffix = child.name().strip_prefix(config::HASH);
        if suffix.is_some_and(|suffix| suffix.is_empty() || suffix.starts_with(['-', '@'])) {
            hashes.push(read_hash(child)?);
        }
    }
    Ok(Image {
        node: path,
        data,
        compression,
        load: address(config::LOAD)?,
        entry: address(config::ENTRY)?,
        hashes,
        verified: AtomicBool::new(false),
    })
}

fn read_hash(node: Node) -> Result<Hash, ConfigError> {
    let missing = |property, expected| ConfigError::MissingProperty { node: node.path(), property, expected };
    let algo = node.property(config::ALGO).ok_or_else(|| missing(config::ALGO, "\"sha256\" or \"crc32\""))?;
    let value = node.property(config::VALUE).ok_or_else(|| missing(config::VALUE, "the digest"))?;
    let expected = match tree::string(algo) {
        Some(config::CRC32) => value.try_into().map(|value| Expected::Crc32(u32::from_be_bytes(value))),
        Some(config::SHA256) => value.try_into().map(Expected::Sha256),
        _ => return Err(ConfigError::UnknownHash { node: node.path(), algo: describe(algo) }),
    };
    let expected = expected.map_err(|_| bad(node, config::VALUE, value, "a digest of the length its algo has"))?;
    Ok(Hash { node: node.path(), expected })
}

/// Refuses properties with keel's prefix that are not among `known`.
fn no_unknown(node: Node, known: &[&str]) -> Result<(), ConfigError> {
    let unknown = node
        .properties()
        .iter()
        .find(|property| property.name.starts_with(config::KEEL_PREFIX) && !known.contains(&property.name));
    match unknown {
        None => Ok(()),
        Some(property) => Err(ConfigError::UnknownProperty {
            node: node.path(),
            property: property.name.into(),
            known: if known.is_empty() { "none here".into() } else { known.join(", ") },
        }),
    }
}

fn bad(node: Node, property: &str, value: &[u8], expected: impl Into<String>) -> ConfigError {
    ConfigError::BadProperty {
        node: node.path(),
        property: property.into(),
        found: describe(value),
        expected: expected.into(),
    }
}

fn string<'a>(node: Node<'_, 'a>, name: &str) -> Result<Option<&'a str>, ConfigError> {
    match node.property(name) {
        None => Ok(None),
        Some(value) => tree::string(value).map(Some).ok_or_else(|| bad(node, name, value, "one string")),
    }
}

fn memory(node: Node) -> Result<u64, ConfigError> {
    let value = node.property(config::KEEL_MEMORY).ok_or_else(|| ConfigError::MissingProperty {
        node: node.path(),
        property: config::KEEL_MEMORY,
        expected: "the VM's RAM in bytes, two cells, a multiple of 2 MiB and at least 4 MiB",
    })?;
    let good = |bytes: &u64| {
        bytes.is_multiple_of(config::MEMORY_UNIT) && (config::MEMORY_MIN..=config::MEMORY_MAX).contains(bytes)
    };
    number(value).filter(good).ok_or_else(|| {
        let expected = "bytes in one or two cells, a multiple of 2 MiB from 4 MiB to 255 GiB";
        bad(node, config::KEEL_MEMORY, value, expected)
    })
}

fn cpus(node: Node) -> Result<u32, ConfigError> {
    let Some(value) = node.property(config::KEEL_CPUS) else { return Ok(1) };
    node.u32(config::KEEL_CPUS)
        .filter(|cpus| (1..=config::CPUS_MAX).contains(cpus))
        .ok_or_else(|| bad(node, config::KEEL_CPUS, value, format!("one cell from 1 to {}", config::CPUS_MAX)))
}

fn affinity(node: Node, cpus: u32) -> Result<Vec<u32>, ConfigError> {
    let Some(value) = node.property(config::KEEL_CPU_AFFINITY) else { return Ok(Vec::new()) };
    let list: Option<Vec<u32>> = tree::words(value).map(Iterator::collect);
    list.filter(|list| list.len() == cpus as usize).ok_or_else(|| {
        let expected = format!("one cell for each of the VM's {cpus} vCPUs");
        bad(node, config::KEEL_CPU_AFFINITY, value, expected)
    })
}

fn features(node: Node) -> Result<Vec<Feature>, ConfigError> {
    let Some(value) = node.property(config::KEEL_FEATURES) else { return Ok(Vec::new()) };
    let mut list = Vec::new();
    for name in tree::strings(value) {
        let Some(&(name, feature, available)) = config::FEATURES.iter().find(|(known, ..)| *known == name) else {
            let known = config::FEATURES.map(|(name, ..)| name).join(", ");
            return Err(bad(node, config::KEEL_FEATURES, value, format!("some of {known}")));
        };
        if !available {
            let property = format!("{} \"{name}\"", config::KEEL_FEATURES);
            return Err(ConfigError::NotAvailable { node: node.path(), property });
        }
        list.push(feature);
    }
    Ok(list)
}

fn on_crash(node: Node) -> Result<OnCrash, ConfigError> {
    let Some(value) = node.property(config::KEEL_ON_CRASH) else { return Ok(OnCrash::default()) };
    let name = tree::string(value);
    config::ON_CRASH.iter().find(|(known, _)| Some(*known) == name).map(|&(_, action)| action).ok_or_else(|| {
        let known = config::ON_CRASH.map(|(name, _)| name).join(", ");
        bad(node, config::KEEL_ON_CRASH, value, format!("one of {known}"))
    })
}

fn autostart(node: Node) -> Result<bool, ConfigError> {
    match node.property(config::KEEL_AUTOSTART) {
        None | Some([]) => Ok(true),
        Some(value) => match number(value) {
            Some(0) => Ok(false),
            Some(1) => Ok(true),
            _ => Err(bad(node, config::KEEL_AUTOSTART, value, "0, 1 or no value")),
        },
    }
}
