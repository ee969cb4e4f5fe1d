//! The boards QEMU models that keel runs on, one row each.
//!
//! A row holds what differs between machines when QEMU is started: which properties make it enter at EL2, where the
//! image is put, and what it needs besides.

use crate::BadInput;

/// The interrupt controller of a machine that offers a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gic {
    /// GICv2 with the virtualization extension (GICH and GICV frames).
    V2,
    /// GICv3, CPU interface by system registers.
    V3,
}

impl Gic {
    /// The value of QEMU's `gic-version` property.
    pub fn number(self) -> u8 {
        match self {
            Gic::V2 => 2,
            Gic::V3 => 3,
        }
    }
}

/// One machine of QEMU.
#[derive(Debug)]
pub struct Machine {
    /// The name of `-M`.
    pub name: &'static str,
    /// Machine properties without which `-kernel` would not be entered at EL2.
    pub properties: &'static str,
    /// Whether `gic-version=` can be given.
    pub chooses_gic: bool,
    /// Whether `dtb-randomness=off` exists (seeds in the device tree that differ from run to run).
    pub has_randomness: bool,
    /// The CPU model used when none is asked for.
    pub cpu: &'static str,
    /// The address an arm64 Image with a text offset of zero is loaded at.
    pub image_address: u64,
}

/// Every machine the tool knows.
pub const MACHINES: &[Machine] = &[
    Machine {
        name: "virt",
        properties: "virtualization=on",
        chooses_gic: true,
        has_randomness: true,
        cpu: "max",
        image_address: 0x4020_0000,
    },
    // Has no device tree of its own: `-dtb` gives it one. Spin-table, no PSCI.
    Machine {
        name: "raspi4b",
        properties: "",
        chooses_gic: false,
        has_randomness: false,
        cpu: "cortex-a72",
        image_address: 0x20_0000,
    },
];

/// Finds a machine by its `-M` name.
///
/// # Errors
///
/// Names the known machines when there is none of that name.
pub fn find(name: &str) -> Result<&'static Machine, BadInput> {
    MACHINES.iter().find(|machine| machine.name == name).ok_or_else(|| {
        let known: Vec<_> = MACHINES.iter().map(|machine| machine.name).collect();
        crate::bad_input!("unknown machine `{name}`; known machines: {}", known.join(", "))
    })
}

/// The `-cpu` argument for a model: `max` gets QEMU's cheap pointer authentication unless told otherwise.
///
/// The architected algorithm makes TCG several times slower and says nothing about keel.
pub fn cpu_argument(model: &str) -> String {
    if model == "max" { "max,pauth-impdef=on".into() } else { model.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_machine_lists_the_known_ones() {
        let message = find("sbsa-ref").unwrap_err().to_string();
        assert!(message.contains("sbsa-ref") && message.contains("virt"), "{message}");
        assert_eq!(find("virt").unwrap().image_address, 0x4020_0000);
    }

    #[test]
    fn explicit_cpu_properties_are_kept() {
        assert_eq!(cpu_argument("max"), "max,pauth-impdef=on");
        assert_eq!(cpu_argument("max,pauth=off"), "max,pauth=off");
        assert_eq!(cpu_argument("cortex-a72"), "cortex-a72");
    }
}
