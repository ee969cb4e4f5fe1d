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
            if let Some(property) = node.properties().find(|one| one.name.starts_with(config::KEEL_PREFIX)) {
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
        let root = flag(node, config::KEEL_ROOT)?;
        let not_available = |property| Err(ConfigError::NotAvailable { node: node.path(), property });
        if node.property(config::KEEL_PASSTHROUGH).is_some() {
            return not_available(config::KEEL_PASSTHROUGH.into());
        }
        if node.property(config::KEEL_DIRECT_MAP).is_some() && !root {
            return not_available(format!("{} without {}", config::KEEL_DIRECT_MAP, config::KEEL_ROOT));
        }
        for property in [config::KEEL_CPUS, config::KEEL_CPU_AFFINITY] {
            if let Some(value) = node.property(property).filter(|_| root) {
                return Err(bad(
                    node,
                    property,
                    value,
                    format!("nothing: with {} it has every CPU", config::KEEL_ROOT),
                ));
            }
        }
        let cpus = cpus(node)?;
        Ok(VmConfig {
            name: node.name(),
            description: node.string(config::DESCRIPTION).unwrap_or_default(),
            memory: memory(node)?,
            cpus: cpus as usize,
            root,
            affinity: affinity(node, cpus)?,
            features: features(node, root)?,
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
        && !matches!(tree::string(value), Some("arm64" | "arm"))
    {
        return Err(bad(node, config::ARCH, value, "\"arm64\" or \"arm\""));
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

fn features(node: Node, root: bool) -> Result<Vec<Feature>, ConfigError> {
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
        if feature == Feature::Pmu && root {
            let property = format!("{} \"{name}\" with {}", config::KEEL_FEATURES, config::KEEL_ROOT);
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
    Ok(node.property(config::KEEL_AUTOSTART).is_none() || flag(node, config::KEEL_AUTOSTART)?)
}

/// Whether a property is there and does not say no.
fn flag(node: Node, name: &str) -> Result<bool, ConfigError> {
    match node.property(name) {
        None => Ok(false),
        Some([]) => Ok(true),
        Some(value) => match number(value) {
            Some(0) => Ok(false),
            Some(1) => Ok(true),
            _ => Err(bad(node, name, value, "0, 1 or no value")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::test_support::{Mutations, dts};

    /// Two VMs that share a kernel. The hashes are those of the four bytes.
    const GOOD: &str = r#"/ {
        description = "two VMs";
        images {
            linux {
                description = "a kernel"; type = "kernel"; arch = "arm64"; os = "linux"; compression = "none";
                data = [31 32 33 34]; load = <0x40080000>; entry = <0 0x40080000>;
                hash-1 { algo = "crc32"; value = <0x9be3e0a3>; };
                hash-2 { algo = "sha256"; value = <0x03ac6742 0x16f3e15c 0x761ee1a5 0xe255f067
                                                   0x953623c8 0xb388b445 0x9e13f978 0xd7c846f4>; };
                signature-1 { };
            };
            disk { type = "ramdisk"; data = [00]; };
            tree { type = "flat_dt"; data = [00]; };
            unused { data = "x"; keel,foo; };
        };
        configurations {
            default = "debian";
            debian {
                description = "Debian 12"; kernel = "linux"; ramdisk = "disk"; fdt = "tree";
                bootargs = "console=ttyAMA0"; keel,memory = <0 0x10000000>; keel,cpus = <2>;
                keel,cpu-affinity = <0 3>; keel,on-crash = "restart"; keel,autostart = <0>;
            };
            small { kernel = "linux"; keel,memory = <0x400000>; keel,autostart; };
        };
    };"#;

    #[test]
    fn a_good_bundle() {
        let blob = dts(GOOD);
        let bundle = Bundle::parse(&blob).unwrap();
        assert_eq!(bundle.description, "two VMs");
        let [debian, small] = &bundle.vms[..] else { panic!("{bundle:?}") };
        let (debian, small) = (debian.as_ref().unwrap(), small.as_ref().unwrap());
        assert_eq!((debian.name, debian.description, debian.memory), ("debian", "Debian 12", 256 << 20));
        assert_eq!((debian.cpus, &debian.affinity[..], debian.autostart), (2, &[0, 3][..], false));
        assert_eq!((debian.bootargs, debian.on_crash), (Some("console=ttyAMA0"), OnCrash::Restart));
        assert_eq!(debian.kernel.data, b"1234");
        assert_eq!((debian.kernel.load, debian.kernel.entry), (Some(0x4008_0000), Some(0x4008_0000)));
        assert_eq!(debian.kernel.hashes.len(), 2);
        assert_eq!(debian.kernel.verify(), Ok(()));
        assert_eq!(debian.ramdisk.as_ref().unwrap().node, "/images/disk");
        assert!(Arc::ptr_eq(&debian.kernel, &small.kernel), "hashed once");
        assert_eq!((small.memory, small.cpus, small.autostart, small.bootargs), (4 << 20, 1, true, None));
        assert_eq!(small.on_crash, OnCrash::Stop);
        assert!(!debian.root && !small.root);
    }

    #[test]
    fn a_root_has_every_cpu() {
        for (words, root) in [("keel,root;", true), ("keel,root; keel,direct-map;", true), ("keel,root = <0>;", false)]
        {
            let blob = dts(&GOOD.replace("keel,autostart; }", &format!("{words} }}")));
            let bundle = Bundle::parse(&blob).unwrap();
            assert_eq!(bundle.vms[1].as_ref().unwrap().root, root, "{words}");
        }
    }

    /// Each row: what to replace in `GOOD`, by what, and what the first VM's error has to be.
    const WRONG: &[(&str, &str, &str)] = &[
        (
            "keel,cpus = <2>",
            "keel,cpu = <2>",
            "/configurations/debian: unknown property keel,cpu; known are keel,memory, keel,cpus, keel,cpu-affinity, \
             keel,direct-map, keel,passthrough, keel,root, keel,features, keel,on-crash, keel,autostart: correct its \
             name or remove it",
        ),
        (
            "os = \"linux\"",
            "keel,os = \"linux\"",
            "/images/linux: unknown property keel,os; known are none here: correct its name or remove it",
        ),
        (
            "keel,memory = <0 0x10000000>;",
            "",
            "/configurations/debian: property keel,memory is missing; add it: the VM's RAM in bytes, two cells, a \
             multiple of 2 MiB and at least 4 MiB",
        ),
        (
            "keel,memory = <0 0x10000000>",
            "keel,memory = <0 0x10100000>",
            "/configurations/debian: property keel,memory is <0x0 0x10100000>, expected bytes in one or two cells, a \
             multiple of 2 MiB from 4 MiB to 255 GiB; correct it",
        ),
        (
            "keel,memory = <0 0x10000000>",
            "keel,memory = <0 0x200000>",
            "/configurations/debian: property keel,memory is <0x0 0x200000>, expected bytes",
        ),
        (
            "keel,memory = <0 0x10000000>",
            "keel,memory = \"256M\"",
            "/configurations/debian: property keel,memory is \"256M\", expected bytes",
        ),
        (
            "keel,cpus = <2>",
            "keel,cpus = <65>",
            "/configurations/debian: property keel,cpus is <0x41>, expected one cell from 1 to 64; correct it",
        ),
        (
            "keel,cpu-affinity = <0 3>",
            "keel,cpu-affinity = <0>",
            "/configurations/debian: property keel,cpu-affinity is <0x0>, expected one cell for each of the VM's 2 \
             vCPUs; correct it",
        ),
        (
            "keel,on-crash = \"restart\"",
            "keel,on-crash = \"explode\"",
            "/configurations/debian: property keel,on-crash is \"explode\", expected one of stop, restart, halt; \
             correct it",
        ),
        (
            "keel,autostart = <0>",
            "keel,autostart = <2>",
            "/configurations/debian: property keel,autostart is <0x2>, expected 0, 1 or no value; correct it",
        ),
        (
            "keel,autostart = <0>",
            "keel,direct-map",
            "/configurations/debian: keel,direct-map without keel,root is not available in this version of keel; remove it",
        ),
        (
            "keel,autostart = <0>",
            "keel,passthrough = \"/soc/x\"",
            "/configurations/debian: keel,passthrough is not available in this version of keel; remove it",
        ),
        (
            "keel,autostart = <0>",
            "keel,root",
            "/configurations/debian: property keel,cpus is <0x2>, expected nothing: with keel,root it has every CPU; correct it",
        ),
        (
            "keel,autostart = <0>",
            "keel,features = \"warp\"",
            "/configurations/debian: property keel,features is \"warp\", expected some of its, pmu, aarch32, protected-memory, test-injection, test-common-trap; correct it",
        ),
        (
            "kernel = \"linux\"; ramdisk",
            "ramdisk",
            "/configurations/debian: property kernel is missing; add it: the name of a node of /images",
        ),
        (
            "kernel = \"linux\"; ramdisk",
            "kernel = \"windows\"; ramdisk",
            "/configurations/debian: property kernel names windows, but there is no /images/windows; correct the name \
             or add it",
        ),
        (
            "ramdisk = \"disk\"",
            "ramdisk = \"linux\"",
            "/images/linux: property type is \"kernel\", expected ramdisk for a ramdisk; correct it",
        ),
        (
            "arch = \"arm64\"",
            "arch = \"mips\"",
            "/images/linux: property arch is \"mips\", expected \"arm64\" or \"arm\"; correct it",
        ),
        (
            "compression = \"none\"",
            "compression = \"lzma\"",
            "/images/linux: property compression is \"lzma\", expected \"none\" or \"gzip\"; correct it",
        ),
        (
            "data = [31 32 33 34];",
            "data-position = <0x1000>; data-size = <4>;",
            "/images/linux: property data-position puts the image outside the tree, where keel does not look; build \
             the bundle without mkimage's -E",
        ),
        ("data = [31 32 33 34];", "", "/images/linux: property data is missing; add it: the image's bytes"),
        (
            "load = <0x40080000>",
            "load = <1 2 3>",
            "/images/linux: property load is <0x1 0x2 0x3>, expected an address of one or two cells; correct it",
        ),
        (
            "algo = \"crc32\"",
            "algo = \"sha1\"",
            "/images/linux/hash-1: keel cannot check algo \"sha1\"; use sha256 or crc32",
        ),
        (
            "value = <0x9be3e0a3>",
            "value = <1 2>",
            "/images/linux/hash-1: property value is <0x1 0x2>, expected a digest of the length its algo has; \
             correct it",
        ),
        ("algo = \"crc32\";", "", "/images/linux/hash-1: property algo is missing; add it: \"sha256\" or \"crc32\""),
    ];

    #[test]
    fn what_is_wrong_is_said_and_spoils_no_other_vm() {
        for (right, wrong, message) in WRONG {
            assert!(GOOD.contains(right), "{right}");
            let blob = dts(&GOOD.replacen(right, wrong, 1));
            let bundle = Bundle::parse(&blob).unwrap();
            let error = bundle.vms[0].as_ref().map(|vm| vm.name).unwrap_err().to_string();
            assert!(error.starts_with(message), "{right} -> {wrong}\n    gave {error}\nexpected {message}");
            // The second VM has only the kernel in common.
            let shared = error.starts_with("/images/linux") && !error.contains("for a ramdisk");
            assert_eq!(bundle.vms[1].is_err(), shared, "{right} -> {wrong}");
        }
    }

    #[test]
    fn wrong_hashes_show_both_digests() {
        for (right, wrong, message) in [
            (
                "0x9be3e0a3",
                "0x9be3e0a4",
                "/images/linux/hash-1: the image's crc32 is 9be3e0a3, expected 9be3e0a4; the image is damaged",
            ),
            (
                "0x03ac6742",
                "0x03ac6743",
                "/images/linux/hash-2: the image's sha256 is \
                 03ac674216f3e15c761ee1a5e255f067953623c8b388b4459e13f978d7c846f4, expected \
                 03ac674316f3e15c761ee1a5e255f067953623c8b388b4459e13f978d7c846f4; the image is damaged",
            ),
        ] {
            let blob = dts(&GOOD.replace(right, wrong));
            let bundle = Bundle::parse(&blob).unwrap();
            let error = bundle.vms[0].as_ref().unwrap().kernel.verify().unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }

    #[test]
    fn the_second_of_two_names_is_refused() {
        // A source cannot say this, so the name is changed in the finished file.
        let mut blob = dts(&GOOD.replace("small {", "debiam {"));
        let at = blob.windows(7).position(|window| window == b"debiam\0").unwrap();
        blob[at + 5] = b'n';
        let bundle = Bundle::parse(&blob).unwrap();
        assert!(bundle.vms[0].is_ok());
        assert_eq!(
            bundle.vms[1].as_ref().map(|vm| vm.name).unwrap_err().to_string(),
            "/configurations/debian: there is already a VM named debian; the first one stands: rename this node"
        );
    }

    #[test]
    fn files_that_are_no_bundle() {
        let error = |data: &[u8]| Bundle::parse(data).unwrap_err().to_string();
        let blob = dts(GOOD);
        assert_eq!(
            error(b"070701"),
            "bundle: begins with 0x30373037, expected 0xd00dfeed, the magic of a flattened device tree; give keel a \
             FIT made by `cargo keel bundle` or mkimage in the initrd slot"
        );
        let cut = error(&blob[..200]);
        let start = format!("bundle: its header says {} bytes, the boot loader handed over 200; ", blob.len());
        assert!(cut.starts_with(&start), "{cut}");
        let mut padded = blob.clone();
        padded.resize(blob.len() + 1000, 0);
        assert!(Bundle::parse(&padded).is_ok());
        assert!(error(&dts("/ { images { }; };")).starts_with("bundle: there is no node /configurations; every FIT"));
        assert!(error(&dts("/ { configurations { }; };")).starts_with("bundle: there is no node /images; every FIT"));
        assert!(error(&dts("/ { images { }; configurations { }; };")).contains("/configurations has no child"));
        assert_eq!(
            error(&dts("/ { images { }; configurations { keel,memory = <0>; a { }; }; };")),
            "/configurations: unknown property keel,memory; keel's properties belong into the nodes of \
             /configurations: move it"
        );
        let mut damaged = blob.clone();
        let at = damaged.windows(7).rposition(|window| window == b"debian\0").unwrap();
        damaged[at - 1] = 7;
        assert!(error(&damaged).contains("an unknown token at offset"), "{}", error(&damaged));
    }

    #[test]
    fn ten_thousand_mutants_do_not_panic() {
        let mut good = 0;
        for mutant in Mutations::new(&dts(GOOD), 10_000) {
            let Ok(bundle) = Bundle::parse(&mutant) else { continue };
            for vm in &bundle.vms {
                match vm {
                    Ok(vm) => good += usize::from(vm.kernel.verify().is_ok()),
                    Err(error) => assert!(!error.to_string().is_empty()),
                }
            }
        }
        assert!((1_000..19_000).contains(&good), "{good} VMs were good");
    }
}
