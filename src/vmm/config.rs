//! What a bundle may say about a VM, and everything that can be wrong with it.
//!
//! The names here are the bundle's grammar: the parser in [`bundle`](super::bundle) and the host tool that writes
//! bundles use the same constants. A mistake is a [`ConfigError`](super::error::ConfigError) variant that carries the node, what was found and
//! what to change; it stops that VM and no other.

use alloc::sync::Arc;
use alloc::vec::Vec;

use super::image::Image;
use crate::vdev::platform;

/// Node that holds the images of a FIT.
pub const IMAGES: &str = "images";
/// Node whose children are VMs; a VM's name is its node's name.
pub const CONFIGURATIONS: &str = "configurations";

/// Property of [`CONFIGURATIONS`]: name of the configuration to start where only one can be (FIT), optional.
pub const DEFAULT: &str = "default";

/// Configuration property: name of the image to run (FIT).
pub const KERNEL: &str = "kernel";
/// Configuration property: name of the initial RAM disk image (FIT), optional.
pub const RAMDISK: &str = "ramdisk";
/// Configuration property: name of the device-tree image (FIT), optional; without it keel writes the tree.
pub const FDT: &str = "fdt";
/// Configuration or image property: text for people (FIT), optional.
pub const DESCRIPTION: &str = "description";
/// Configuration property: the guest's command line, optional.
pub const BOOTARGS: &str = "bootargs";

/// RAM in bytes, u64 (u32 is understood): a multiple of [`MEMORY_UNIT`] from [`MEMORY_MIN`] up. Required.
pub const KEEL_MEMORY: &str = "keel,memory";
/// Number of vCPUs, u32, 1 to [`CPUS_MAX`]; 1 when absent.
pub const KEEL_CPUS: &str = "keel,cpus";
/// Host CPU each vCPU stays on, list of u32, one per vCPU (position in the host's `/cpus`); anywhere when absent.
pub const KEEL_CPU_AFFINITY: &str = "keel,cpu-affinity";
/// Guest addresses are machine addresses, flag. Implied by [`KEEL_ROOT`], and not available without it yet.
pub const KEEL_DIRECT_MAP: &str = "keel,direct-map";
/// Host devices given to the VM, list of paths in the host's tree. Not available yet.
pub const KEEL_PASSTHROUGH: &str = "keel,passthrough";
/// The VM owns the machine: its addresses, devices and interrupts, and all CPUs, flag. One VM may have it.
pub const KEEL_ROOT: &str = "keel,root";
/// Optional features of the vCPUs, list of strings out of [`FEATURES`].
pub const KEEL_FEATURES: &str = "keel,features";
/// What to do when the VM crashes, one string out of [`ON_CRASH`]; `stop` when absent.
pub const KEEL_ON_CRASH: &str = "keel,on-crash";
/// Whether the VM starts at boot, flag or u32 0/1; 1 when absent.
pub const KEEL_AUTOSTART: &str = "keel,autostart";

/// Every `keel,` property there is.
pub const KEEL_PROPERTIES: [&str; 9] = [
    KEEL_MEMORY,
    KEEL_CPUS,
    KEEL_CPU_AFFINITY,
    KEEL_DIRECT_MAP,
    KEEL_PASSTHROUGH,
    KEEL_ROOT,
    KEEL_FEATURES,
    KEEL_ON_CRASH,
    KEEL_AUTOSTART,
];
/// Prefix of the properties that are keel's own.
pub const KEEL_PREFIX: &str = "keel,";

/// Image property: the bytes (FIT).
pub const DATA: &str = "data";
/// Image properties that put the bytes outside the tree (FIT, `mkimage -E`); refused with a remedy.
pub const EXTERNAL_DATA: [&str; 3] = ["data-position", "data-offset", "data-size"];
/// Image property: what it is (FIT), optional; checked against its use when there.
pub const TYPE: &str = "type";
/// Image property: the architecture (FIT), optional; `arm64` or `arm` when there. What the image is, its bytes say.
pub const ARCH: &str = "arch";
/// Image property: how the bytes are stored (FIT): `none` (also when absent) or `gzip`.
pub const COMPRESSION: &str = "compression";
/// Image property: guest physical address to load at (FIT), u32 or u64, optional.
pub const LOAD: &str = "load";
/// Image property: guest physical address to start at (FIT), u32 or u64, optional.
pub const ENTRY: &str = "entry";
/// Beginning of the names of an image's hash nodes (FIT): `hash`, `hash-1`, `hash@1` …
pub const HASH: &str = "hash";
/// Hash-node property: [`CRC32`] or [`SHA256`] (FIT).
pub const ALGO: &str = "algo";
/// Hash-node property: the digest, big endian (FIT).
pub const VALUE: &str = "value";
/// CRC-32 as in gzip and zlib, 4 bytes.
pub const CRC32: &str = "crc32";
/// SHA-256, 32 bytes.
pub const SHA256: &str = "sha256";

/// RAM is given in multiples of this, so that stage 2 can map it in blocks: 2 MiB.
pub const MEMORY_UNIT: u64 = 2 << 20;
/// The least RAM a VM may have: 4 MiB.
pub const MEMORY_MIN: u64 = 4 << 20;
/// The most RAM a VM may have: what the guest's memory map leaves room for.
pub const MEMORY_MAX: u64 = platform::VIRT.ram_max;
/// The most vCPUs a VM may have.
pub const CPUS_MAX: u32 = platform::MAX_VCPUS as u32;

/// An optional feature of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// A performance monitoring unit (PMUv3).
    Pmu,
    /// EL1 in AArch32.
    Aarch32,
    /// An interrupt translation service, and with it LPIs.
    Its,
    /// Page states, as a protected guest of KVM has them.
    ProtectedMemory,
    /// Calls by which the guest makes SErrors and external aborts pending for itself: for tests of how it bears them.
    TestInjection,
    /// Accesses to the registers that both groups of the CPU interface share trap, as they do at times on CPUs that cannot
    /// trap ICC_DIR_EL1 alone: for tests on CPUs that can.
    TestCommonTrap,
}

/// The names of [`KEEL_FEATURES`], and whether this keel has them yet.
pub const FEATURES: [(&str, Feature, bool); 6] = [
    ("its", Feature::Its, true),
    ("pmu", Feature::Pmu, true),
    ("aarch32", Feature::Aarch32, true),
    ("protected-memory", Feature::ProtectedMemory, true),
    ("test-injection", Feature::TestInjection, true),
    ("test-common-trap", Feature::TestCommonTrap, true),
];

/// What happens when a VM crashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnCrash {
    /// It stays stopped; the others go on.
    #[default]
    Stop,
    /// It starts again from its images.
    Restart,
    /// The machine is powered off.
    Halt,
}

/// The names of [`KEEL_ON_CRASH`].
pub const ON_CRASH: [(&str, OnCrash); 3] =
    [("stop", OnCrash::Stop), ("restart", OnCrash::Restart), ("halt", OnCrash::Halt)];

/// One VM of a bundle; `'a` is the bundle's bytes.
#[derive(Clone, Debug)]
pub struct VmConfig<'a> {
    /// The configuration node's name.
    pub name: &'a str,
    /// Text for people, perhaps empty.
    pub description: &'a str,
    /// What runs.
    pub kernel: Arc<Image<'a>>,
    /// Its initial RAM disk.
    pub ramdisk: Option<Arc<Image<'a>>>,
    /// Its device tree; keel writes one when it brings none.
    pub fdt: Option<Arc<Image<'a>>>,
    /// Its command line; `None` leaves the one of its own tree.
    pub bootargs: Option<&'a str>,
    /// RAM in bytes, a multiple of 2 MiB.
    pub memory: u64,
    /// Number of vCPUs, at least 1; without meaning for a root, which has every CPU.
    pub cpus: usize,
    /// Whether it owns the machine.
    pub root: bool,
    /// Host CPU of each vCPU, as many as `cpus`; empty: anywhere.
    pub affinity: Vec<u32>,
    /// Optional features.
    pub features: Vec<Feature>,
    /// What happens when it crashes.
    pub on_crash: OnCrash,
    /// Whether it starts at boot.
    pub autostart: bool,
}
