//! `vms.toml`: the list of virtual machines a user writes.
//!
//! A table `[[vm]]` per machine; every key means what the bundle's property of that name means. Keys that nobody
//! knows are an error that names the file, the key and the known ones, because a misspelt `memory` that is silently
//! ignored costs an afternoon. Paths are relative to the file.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{BadInput, bad_input};

/// The whole file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmsFile {
    /// The machines, in the order they are started.
    #[serde(default)]
    pub vm: Vec<VmSpec>,
}

/// One `[[vm]]` table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VmSpec {
    /// The machine's name: the name of its configuration node, so at most 31 of `A-Z a-z 0-9 , . _ + -`.
    pub name: String,
    /// arm64 Image (also gzip'd), ELF or flat binary.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Device tree; keel generates one when there is none.
    pub dtb: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(default)]
    pub bootargs: String,
    /// Number of vCPUs.
    #[serde(default = "one")]
    pub cpus: u32,
    /// RAM in bytes; a string with K, M or G in the file.
    #[serde(default = "default_memory")]
    pub memory: MemorySize,
    /// The physical CPU each vCPU stays on, one for each; anywhere when empty.
    #[serde(default)]
    pub cpu_affinity: Vec<u32>,
    /// Guest addresses equal machine addresses.
    #[serde(default)]
    pub direct_map: bool,
    /// Paths of nodes in the host's device tree that are given to it.
    #[serde(default)]
    pub passthrough: Vec<String>,
    /// May create other machines.
    #[serde(default)]
    pub root: bool,
    /// Optional features by name (`pmu`, `aarch32`, …).
    #[serde(default)]
    pub features: Vec<String>,
    /// What keel does when it crashes: `stop`, `restart` or `halt`; keel's default when absent.
    pub on_crash: Option<String>,
    /// Whether it starts with keel.
    pub autostart: Option<bool>,
    /// A line for people.
    pub description: Option<String>,
    /// How the kernel is stored in the bundle.
    #[serde(default)]
    pub compression: Compression,
    /// The checksum stored with each of its images.
    #[serde(default)]
    pub hash: Hash,
}

/// How an image is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As it is.
    #[default]
    None,
    /// gzip.
    Gzip,
}

/// The checksum stored with an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hash {
    /// No `hash-1` node.
    None,
    /// CRC-32 as U-Boot computes it.
    Crc32,
    /// SHA-256.
    #[default]
    Sha256,
}

/// A size in bytes, written `"512M"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "SizeText")]
pub struct MemorySize(pub u64);

#[derive(Deserialize)]
#[serde(untagged)]
enum SizeText {
    Bytes(u64),
    Text(String),
}

impl TryFrom<SizeText> for MemorySize {
    type Error = BadInput;

    fn try_from(text: SizeText) -> Result<Self, BadInput> {
        match text {
            SizeText::Bytes(bytes) => Ok(MemorySize(bytes)),
            SizeText::Text(text) => text.parse(),
        }
    }
}

impl std::str::FromStr for MemorySize {
    type Err = BadInput;

    fn from_str(text: &str) -> Result<Self, BadInput> {
        let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
        let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
            "" => 0,
            "K" | "KB" | "KIB" => 10,
            "M" | "MB" | "MIB" => 20,
            "G" | "GB" | "GIB" => 30,
            _ => return Err(bad_input!("`{text}` is no size; write a number with K, M or G, as in 512M")),
        };
        let number: u64 =
            digits.parse().map_err(|_| bad_input!("`{text}` is no size; write a number with K, M or G, as in 512M"))?;
        match number.checked_mul(1 << shift) {
            Some(bytes) if bytes > 0 => Ok(MemorySize(bytes)),
            _ => Err(bad_input!("`{text}` is not a size memory can have")),
        }
    }
}

fn one() -> u32 {
    1
}

fn default_memory() -> MemorySize {
    MemorySize(512 << 20)
}

impl VmSpec {
    /// A machine of one vCPU and 512 MiB that runs `kernel`.
    pub fn new(name: impl Into<String>, kernel: impl Into<PathBuf>) -> Self {
        VmSpec {
            name: name.into(),
            kernel: kernel.into(),
            initrd: None,
            dtb: None,
            bootargs: String::new(),
            cpus: one(),
            memory: default_memory(),
            cpu_affinity: Vec::new(),
            direct_map: false,
            passthrough: Vec::new(),
            root: false,
            features: Vec::new(),
            on_crash: None,
            autostart: None,
            description: None,
            compression: Compression::None,
            hash: Hash::default(),
        }
    }
}

/// Reads a `vms.toml`; paths in the result are resolved against the file's directory.
///
/// # Errors
///
/// The file cannot be read, is not TOML, has an unknown or missing key, or lists no machine.
pub fn read(path: &Path) -> Result<Vec<VmSpec>, BadInput> {
    let text = std::fs::read_to_string(path).map_err(|error| bad_input!("{}: {error}", path.display()))?;
    let mut vms = parse(&text).map_err(|error| bad_input!("{}: {error}", path.display()))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    for vm in &mut vms {
        vm.kernel = folder.join(&vm.kernel);
        vm.initrd = vm.initrd.as_ref().map(|file| folder.join(file));
        vm.dtb = vm.dtb.as_ref().map(|file| folder.join(file));
    }
    Ok(vms)
}

/// Parses the text of a `vms.toml`.
///
/// # Errors
///
/// As [`read`], without the file's name.
pub fn parse(text: &str) -> Result<Vec<VmSpec>, BadInput> {
    let file: VmsFile = toml::from_str(text).map_err(|error| bad_input!("{error}"))?;
    if file.vm.is_empty() {
        return Err(bad_input!("lists no machine; write a table [[vm]] with at least name and kernel"));
    }
    Ok(file.vm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_is_read() {
        let vms = parse(
            r#"
            [[vm]]
            name = "linux"
            kernel = "Image"
            initrd = "initramfs"
            bootargs = "console=ttyAMA0"
            cpus = 4
            memory = "1G"
            cpu-affinity = [0, 1]
            features = ["pmu"]
            on-crash = "restart"
            autostart = false
            compression = "gzip"
            hash = "crc32"
            [[vm]]
            name = "second"
            kernel = "Image"
            "#,
        )
        .unwrap();
        assert_eq!(vms.len(), 2);
        assert_eq!((vms[0].cpus, vms[0].memory.0), (4, 1 << 30));
        assert_eq!((vms[0].compression, vms[0].hash), (Compression::Gzip, Hash::Crc32));
        assert_eq!(vms[0].on_crash.as_deref(), Some("restart"));
        assert_eq!((vms[1].cpus, vms[1].memory.0, vms[1].hash), (1, 512 << 20, Hash::Sha256));
    }

    #[test]
    fn an_unknown_key_is_named_with_the_known_ones() {
        let error = parse("[[vm]]\nname='a'\nkernel='k'\nmemroy='1G'\n").unwrap_err().to_string();
        assert!(error.contains("memroy") && error.contains("memory") && error.contains("cpu-affinity"), "{error}");
    }

    #[test]
    fn missing_keys_and_empty_lists_are_errors() {
        assert!(parse("[[vm]]\nname='a'\n").unwrap_err().to_string().contains("kernel"));
        assert!(parse("").unwrap_err().to_string().contains("[[vm]]"));
        assert!(read(Path::new("/nonexistent/vms.toml")).unwrap_err().to_string().contains("/nonexistent/vms.toml"));
    }

    #[test]
    fn sizes() {
        assert_eq!("512M".parse::<MemorySize>().unwrap().0, 512 << 20);
        assert_eq!("4096".parse::<MemorySize>().unwrap().0, 4096);
        assert_eq!("2GiB".parse::<MemorySize>().unwrap().0, 2 << 30);
        for bad in ["", "M", "-1M", "1T", "0", "99999999999999999999", "18446744073709551615G", "1.5G"] {
            assert!(bad.parse::<MemorySize>().is_err(), "{bad}");
        }
    }
}
