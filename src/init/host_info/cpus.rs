//! The CPUs and how each is started (bindings: arm/cpus.yaml, arm/psci.yaml).

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::bus::{cell_sizes, take};
use super::devices::{Devices, Kind};
use super::error::{CORRECT_THE_TREE, HostError};
use crate::mm::Pa;
use crate::vmm::tree::{Node, Tree, describe, number, words};

/// The affinity fields of MPIDR_EL1: Aff3 in 39:32, Aff2 to Aff0 in 23:0 (Arm ARM D24.2.121).
const AFFINITY: u64 = 0xff_00ff_ffff;

/// One CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostCpu {
    /// Path of its node.
    pub path: String,
    /// The affinity fields of its MPIDR_EL1, every other bit 0.
    pub mpidr: u64,
    /// How it is started, unless it is the one that boots.
    pub start: Start,
}

/// How a CPU is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// PSCI CPU_ON.
    Psci,
    /// By writing the entry address to `release`, 8-byte aligned and not 0, and SEV.
    SpinTable {
        /// The location the CPU polls.
        release: Pa,
    },
    /// In a way keel does not know, or not at all; it stays off.
    Unknown,
}

/// How PSCI is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// SMC: firmware at EL3.
    Smc,
    /// HVC: keel is itself a guest.
    Hvc,
}

/// The PSCI version the tree promises; firmware from 0.2 on tells its own by PSCI_VERSION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PsciVersion {
    /// 0.1, whose function ids are the tree's.
    V0_1 {
        /// Function ids of CPU_SUSPEND, CPU_OFF, CPU_ON and MIGRATE; 0 for one that is not there.
        ids: [u32; 4],
    },
    /// 0.2.
    V0_2,
    /// 1.0 or later.
    V1_0,
}

/// The firmware's power interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Psci {
    /// How it is called.
    pub conduit: Conduit,
    /// What it promises.
    pub version: PsciVersion,
}

/// The CPUs that may be used, and PSCI if there is any.
pub(super) fn parse(
    tree: &Tree,
    devices: &Devices,
    warnings: &mut Vec<String>,
) -> Result<(Vec<HostCpu>, Option<Psci>), HostError> {
    let missing = || HostError::MissingNode {
        node: "child of /cpus",
        expected: String::from("device_type \"cpu\" and a reg"),
        remedy: CORRECT_THE_TREE,
    };
    let parent = tree.find("/cpus").ok_or_else(missing)?;
    let psci = psci(devices)?;
    let mut cpus: Vec<HostCpu> = Vec::new();
    for node in parent.children() {
        let is_cpu = node.string("device_type") == Some("cpu") || node.base_name() == "cpu";
        // "disabled" is a CPU that needs more than its enable-method, "fail" one that is broken (§2.3.4).
        if !is_cpu || !node.is_okay() {
            continue;
        }
        let mpidr = mpidr(parent, node)?;
        if let Some(other) = cpus.iter().find(|cpu| cpu.mpidr == mpidr) {
            let expected = format!("another MPIDR than {}", other.path);
            return Err(HostError::bad(node, "reg", format!("{mpidr:#x}"), expected, CORRECT_THE_TREE));
        }
        let start = start(parent, node, psci.is_some(), warnings)?;
        let start = start.unwrap_or_else(|problem| {
            warnings.push(format!("{problem}; until then this CPU cannot be started"));
            Start::Unknown
        });
        cpus.push(HostCpu { path: node.path(), mpidr, start });
    }
    if cpus.is_empty() {
        return Err(missing());
    }
    Ok((cpus, psci))
}

fn mpidr(parent: Node, node: Node) -> Result<u64, HostError> {
    let expected = "the affinity fields of its MPIDR in one or two cells";
    let reg = node.property("reg").ok_or_else(|| HostError::missing(node, "reg", expected, CORRECT_THE_TREE))?;
    let (cells, _) = cell_sizes(parent);
    let whole = words(reg).filter(|_| (1..=2).contains(&cells) && reg.len() == 4 * cells);
    let mpidr = whole.and_then(|mut words| take(&mut words, cells)).filter(|mpidr| mpidr & !AFFINITY == 0);
    mpidr.ok_or_else(|| HostError::bad(node, "reg", describe(reg), expected, CORRECT_THE_TREE))
}

/// How a CPU is started; the inner error is only this CPU's.
fn start(
    parent: Node,
    node: Node,
    has_psci: bool,
    warnings: &mut Vec<String>,
) -> Result<Result<Start, HostError>, HostError> {
    // Some trees say it once for all (arm/cpus.yaml, 32-bit form).
    let method = node.string("enable-method").or_else(|| parent.string("enable-method"));
    match method {
        Some("psci") if has_psci => Ok(Ok(Start::Psci)),
        Some("psci") => Err(HostError::MissingNode {
            node: "child of /",
            expected: format!("compatible \"arm,psci-0.2\" or later, which {} is started by", node.path()),
            remedy: CORRECT_THE_TREE,
        }),
        Some("spin-table") => {
            let expected = "an address, 8-byte aligned and not 0, in one or two cells";
            let remedy = "firmware that holds the CPU has to fill it in";
            let Some(value) = node.property("cpu-release-addr") else {
                return Ok(Err(HostError::missing(node, "cpu-release-addr", expected, remedy)));
            };
            let release = number(value).filter(|&address| address != 0 && address.is_multiple_of(8));
            Ok(match release {
                Some(release) => Ok(Start::SpinTable { release: Pa(release) }),
                None => Err(HostError::bad(node, "cpu-release-addr", describe(value), expected, remedy)),
            })
        }
        // A single CPU needs no way to be started.
        None => Ok(Ok(Start::Unknown)),
        Some(other) => {
            warnings.push(format!(
                "{}: enable-method is \"{other}\", keel knows psci and spin-table; this CPU stays off",
                node.path()
            ));
            Ok(Ok(Start::Unknown))
        }
    }
}

fn psci(devices: &Devices) -> Result<Option<Psci>, HostError> {
    let (node, version) = if let Some(node) = devices.get(Kind::Psci1_0) {
        (node, PsciVersion::V1_0)
    } else if let Some(node) = devices.get(Kind::Psci0_2) {
        (node, PsciVersion::V0_2)
    } else if let Some(node) = devices.get(Kind::Psci0_1) {
        if node.u32("cpu_on").is_none() {
            return Err(HostError::missing(node, "cpu_on", "the function id of CPU_ON", CORRECT_THE_TREE));
        }
        let ids = ["cpu_suspend", "cpu_off", "cpu_on", "migrate"].map(|name| node.u32(name).unwrap_or(0));
        (node, PsciVersion::V0_1 { ids })
    } else {
        return Ok(None);
    };
    let conduit = match node.string("method") {
        Some("smc") => Conduit::Smc,
        Some("hvc") => Conduit::Hvc,
        _ => {
            let found = node.property("method").map_or(String::from("missing"), describe);
            return Err(HostError::bad(node, "method", found, "\"smc\" or \"hvc\"", CORRECT_THE_TREE));
        }
    };
    Ok(Some(Psci { conduit, version }))
}
