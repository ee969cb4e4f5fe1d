//! The machine keel runs on, as its device tree describes it.
//!
//! [`HostInfo::parse`] is the only reader of the host's tree: drivers and bring-up get addresses, interrupts and CPUs
//! from here, so that one image runs on every board. What keel cannot do without and does not find is a
//! [`HostError`] that names the path, what was expected and what to do; what it can do without becomes a line of
//! [`HostInfo::warnings`]. [`console_only`] finds a UART without heap and even in a damaged tree, because a machine
//! must be able to say what is wrong with it. Bindings: Linux `Documentation/devicetree/bindings`, named in each file.

mod bus;
mod console;
mod cpus;
mod devices;
mod error;
mod gic;
mod memory;
mod options;
mod place;
mod pmu;
#[cfg(test)]
mod tests;
mod timers;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

pub use bus::{Interrupt, Span};
pub use console::{Console, ConsoleError, Uart, UartModel, console_only};
pub use cpus::{Conduit, HostCpu, Psci, PsciVersion, Start};
use devices::{Devices, Kind};
pub use error::HostError;
pub use gic::{Gic, GicV2, GicV3};
pub use memory::Reservation;
pub use options::{Crash, KeelOptions};
pub use place::resting_place;
pub use pmu::HostPmu;
pub use timers::HostTimers;

use crate::mm::Pa;
use crate::vmm::tree::{Node, Tree, describe, number};

/// The host machine.
#[derive(Clone, Debug)]
pub struct HostInfo {
    /// What the board calls itself: `model`, or the first `compatible` string of the root.
    pub model: String,
    /// RAM, sorted by address, neighbours joined.
    pub memory: Vec<Span>,
    /// Parts of RAM that are not keel's to use, sorted by address. They may overlap each other.
    pub reservations: Vec<Reservation>,
    /// CPUs in the tree's order, never none. A bundle's `keel,cpu-affinity` counts positions in this list.
    pub cpus: Vec<HostCpu>,
    /// The interrupt controller.
    pub gic: Gic,
    /// The UART for messages and guests' consoles, or why there is none.
    pub console: Result<Console, HostError>,
    /// The firmware's power interface.
    pub psci: Option<Psci>,
    /// The generic timers' interrupts.
    pub timers: HostTimers,
    /// The CPUs' performance monitors.
    pub pmu: HostPmu,
    /// Registers of a PL031 real-time clock.
    pub rtc: Option<Span>,
    /// What the boot loader put into the initrd slot: the bundle.
    pub initrd: Option<Span>,
    /// keel's command line.
    pub bootargs: String,
    /// What it asks for.
    pub options: KeelOptions,
    /// Random bytes from the boot loader, perhaps none.
    pub rng_seed: Vec<u8>,
    /// Things in the tree that are odd but do not stop keel, for the log.
    pub warnings: Vec<String>,
}

impl HostInfo {
    /// Reads the tree at the start of `dtb`.
    ///
    /// # Errors
    ///
    /// [`HostError`] for the first thing that keel needs and that is missing or malformed.
    pub fn parse(dtb: &[u8]) -> Result<Self, HostError> {
        let tree = Tree::parse(dtb).map_err(|error| HostError::Damaged { reason: error.to_string() })?;
        let mut warnings = Vec::new();
        let chosen = tree.root().child("chosen");
        let bootargs = match chosen.and_then(|chosen| chosen.property("bootargs")) {
            Some(value) => String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned(),
            None => String::new(),
        };
        let options = KeelOptions::parse(&bootargs, &mut warnings);
        let devices = Devices::find(&tree);
        let (cpus, psci) = cpus::parse(&tree, &devices, &mut warnings)?;
        Ok(Self {
            model: model(tree.root()),
            memory: memory::ram(&tree)?,
            reservations: memory::reservations(&tree)?,
            cpus,
            gic: gic::parse(&tree, &devices)?,
            console: console::parse(&tree, &devices),
            psci,
            timers: timers::parse(&tree, &devices)?,
            pmu: pmu::parse(&tree, &devices),
            rtc: rtc(&devices, &mut warnings),
            initrd: initrd(chosen)?,
            bootargs,
            options,
            rng_seed: chosen.and_then(|node| node.property("rng-seed")).unwrap_or_default().to_vec(),
            warnings,
        })
    }
}

fn model(root: Node) -> String {
    root.string("model").or_else(|| root.strings("compatible").next()).unwrap_or("a board without a name").into()
}

/// The real-time clock; optional, so a malformed one is only worth a warning.
fn rtc(devices: &Devices, warnings: &mut Vec<String>) -> Option<Span> {
    match bus::registers(devices.get(Kind::Rtc)?) {
        Ok(registers) => registers.first().copied(),
        Err(error) => {
            warnings.push(format!("no real-time clock: {error}"));
            None
        }
    }
}

/// `linux,initrd-start` and `-end` of /chosen, u32 or u64 each (binding: chosen.yaml).
fn initrd(chosen: Option<Node>) -> Result<Option<Span>, HostError> {
    let Some(chosen) = chosen else { return Ok(None) };
    let limit = |name: &'static str| match chosen.property(name) {
        None => Ok(None),
        Some(value) => match number(value) {
            Some(address) => Ok(Some(address)),
            None => Err(HostError::bad(
                chosen,
                name,
                describe(value),
                "an address of one or two cells",
                "have the boot loader write it as u32 or u64",
            )),
        },
    };
    let (Some(start), Some(end)) = (limit("linux,initrd-start")?, limit("linux,initrd-end")?) else { return Ok(None) };
    let size = end.checked_sub(start).ok_or_else(|| {
        HostError::bad(
            chosen,
            "linux,initrd-end",
            format!("{end:#x}"),
            format!("no less than linux,initrd-start, {start:#x}"),
            "give keel its bundle in the boot loader's initrd slot again",
        )
    })?;
    Ok((size != 0).then_some(Span { base: Pa(start), size }))
}
