//! KVM's pseudo-registers of the firmware that a guest calls: ONE_REG groups 0x014 and 0x016.
//!
//! Source: Linux, Documentation/virt/kvm/arm/fw-pseudo-registers.rst. The registers are the VM's, whichever vCPU they are
//! read and written through. A bitmap may lose bits until a vCPU has run; a workaround may be claimed to be as good as
//! it is or worse, and is then as it is. The version of PSCI may change at any time.

use super::Errno;
use crate::hypercall::{
    psci::Version,
    services::Services,
    smccc::{Mitigation, Vulnerability},
};

/// The part of an id that all of these have: arm64, 64 bits.
const BASE: u64 = 0x6030_0000_0000_0000;
/// The first id of firmware registers; the low 16 bits of an id are its number.
pub const FIRMWARE: u64 = BASE | 0x0014_0000;
/// The first id of the bitmaps of firmware features.
pub const BITMAPS: u64 = BASE | 0x0016_0000;

/// One register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// KVM_REG_ARM_PSCI_VERSION.
    PsciVersion,
    /// KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_1 to 3.
    Workaround(Vulnerability),
    /// KVM_REG_ARM_STD_BMAP.
    Standard,
    /// KVM_REG_ARM_STD_HYP_BMAP.
    StandardHypervisor,
    /// KVM_REG_ARM_VENDOR_HYP_BMAP.
    Vendor,
    /// KVM_REG_ARM_VENDOR_HYP_BMAP_2.
    Vendor2,
}

/// All of them, in the order of KVM_GET_REG_LIST.
pub const REGISTERS: [(u64, Register); 8] = [
    (FIRMWARE, Register::PsciVersion),
    (FIRMWARE + 1, Register::Workaround(Vulnerability::SpectreV2)),
    (FIRMWARE + 2, Register::Workaround(Vulnerability::SpectreV4)),
    (FIRMWARE + 3, Register::Workaround(Vulnerability::SpectreBhb)),
    (BITMAPS, Register::Standard),
    (BITMAPS + 1, Register::StandardHypervisor),
    (BITMAPS + 2, Register::Vendor),
    (BITMAPS + 3, Register::Vendor2),
];

/// The register with this id.
pub fn find(id: u64) -> Option<Register> {
    REGISTERS.iter().find(|(other, _)| *other == id).map(|(_, register)| *register)
}

/// What the registers stand for, in a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Firmware {
    /// The version that was set, if one was.
    pub psci: Option<Version>,
    /// The calls that are there.
    pub services: Services,
}

/// What decides beside the registers' own values.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings {
    /// The vCPUs have the feature PSCI_0_2.
    pub psci_0_2: bool,
    /// A vCPU has run.
    pub ran: bool,
    /// How the machine stands with a vulnerability.
    pub mitigation: fn(Vulnerability) -> Mitigation,
}

impl Firmware {
    /// As in a new VM.
    pub const NEW: Self = Self { psci: None, services: Services::DEFAULT };

    /// The version of PSCI that guests see: 1.1 unless another was set; 0.1 without the feature.
    pub fn psci_version(&self, psci_0_2: bool) -> Version {
        if psci_0_2 { self.psci.unwrap_or(Version::V1_1) } else { Version::V0_1 }
    }

    /// KVM_GET_ONE_REG.
    pub fn get(&self, register: Register, around: &Surroundings) -> u64 {
        match register {
            Register::PsciVersion => self.psci_version(around.psci_0_2).encoding().into(),
            Register::Workaround(vulnerability) => level(vulnerability, (around.mitigation)(vulnerability)),
            Register::Standard => self.services.standard,
            Register::StandardHypervisor => self.services.standard_hypervisor,
            Register::Vendor => self.services.vendor,
            Register::Vendor2 => self.services.vendor_2,
        }
    }

    /// KVM_SET_ONE_REG.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a value that the register cannot have here; `EBUSY` for a change of a bitmap after a vCPU ran.
    pub fn set(&mut self, register: Register, value: u64, around: &Surroundings) -> Result<(), Errno> {
        let (bitmap, all) = match register {
            Register::PsciVersion => return self.set_psci_version(value, around.psci_0_2),
            Register::Workaround(vulnerability) => {
                return claim(vulnerability, value, level(vulnerability, (around.mitigation)(vulnerability)));
            }
            Register::Standard => (&mut self.services.standard, Services::ALL.standard),
            Register::StandardHypervisor => (&mut self.services.standard_hypervisor, Services::ALL.standard_hypervisor),
            Register::Vendor => (&mut self.services.vendor, Services::ALL.vendor),
            Register::Vendor2 => (&mut self.services.vendor_2, Services::ALL.vendor_2),
        };
        if value & !all != 0 {
            return Err(Errno::EINVAL);
        }
        if around.ran && value != *bitmap {
            return Err(Errno::EBUSY);
        }
        *bitmap = value;
        Ok(())
    }

    fn set_psci_version(&mut self, value: u64, psci_0_2: bool) -> Result<(), Errno> {
        let version = u32::try_from(value).ok().and_then(Version::from_encoding).ok_or(Errno::EINVAL)?;
        if psci_0_2 == (version == Version::V0_1) {
            return Err(Errno::EINVAL);
        }
        self.psci = Some(version);
        Ok(())
    }
}

/// Levels of WORKAROUND_2.
mod workaround_2 {
    /// NOT_AVAIL.
    pub const NOT_AVAILABLE: u64 = 0;
    /// UNKNOWN.
    pub const UNKNOWN: u64 = 1;
    /// AVAIL; only with it [`ENABLED`] may stand.
    pub const AVAILABLE: u64 = 2;
    /// NOT_REQUIRED.
    pub const NOT_REQUIRED: u64 = 3;
    /// ENABLED.
    pub const ENABLED: u64 = 1 << 4;
}

/// What a workaround's register reads: WORKAROUND_1 and 3 know 0 not available, 1 available, 2 not required.
fn level(vulnerability: Vulnerability, mitigation: Mitigation) -> u64 {
    match (vulnerability, mitigation) {
        (Vulnerability::SpectreV4, Mitigation::Vulnerable) => workaround_2::NOT_AVAILABLE,
        (Vulnerability::SpectreV4, _) => workaround_2::NOT_REQUIRED,
        (_, Mitigation::Vulnerable) => 0,
        (_, Mitigation::Mitigated) => 1,
        (_, Mitigation::Unaffected) => 2,
    }
}

/// Whether a workaround may be said to be at `value` where the machine's is at `here`.
fn claim(vulnerability: Vulnerability, value: u64, here: u64) -> Result<(), Errno> {
    let holds = match vulnerability {
        Vulnerability::SpectreV2 | Vulnerability::SpectreBhb => value <= 0xf && value <= here,
        Vulnerability::SpectreV4 => match (value & !workaround_2::ENABLED, value & workaround_2::ENABLED != 0) {
            (workaround_2::NOT_AVAILABLE | workaround_2::UNKNOWN, false) => here == workaround_2::NOT_AVAILABLE,
            (workaround_2::AVAILABLE, _) | (workaround_2::NOT_REQUIRED, false) => here == workaround_2::NOT_REQUIRED,
            _ => false,
        },
    };
    if holds { Ok(()) } else { Err(Errno::EINVAL) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const V4: Register = Register::Workaround(Vulnerability::SpectreV4);
    const V2: Register = Register::Workaround(Vulnerability::SpectreV2);

    fn around(psci_0_2: bool, ran: bool) -> Surroundings {
        Surroundings { psci_0_2, ran, mitigation: |_| Mitigation::Mitigated }
    }

    #[test]
    fn ids() {
        assert_eq!(find(0x6030_0000_0014_0000), Some(Register::PsciVersion));
        assert_eq!(find(0x6030_0000_0016_0003), Some(Register::Vendor2));
        // Another size, another number, another group.
        for id in [0x6020_0000_0014_0000, 0x6030_0000_0014_0004, 0x6030_0000_0016_0004, 0x6030_0000_0015_0000] {
            assert_eq!(find(id), None, "{id:#x}");
        }
    }

    #[test]
    fn versions() {
        let mut firmware = Firmware::NEW;
        assert_eq!(firmware.get(Register::PsciVersion, &around(true, false)), 0x1_0001);
        assert_eq!(firmware.get(Register::PsciVersion, &around(false, false)), 1);
        for version in [2, 0x1_0000, 0x1_0001, 0x1_0002, 0x1_0003] {
            assert_eq!(firmware.set(Register::PsciVersion, version, &around(true, true)), Ok(()));
            assert_eq!(firmware.get(Register::PsciVersion, &around(true, true)), version);
            assert_eq!(firmware.set(Register::PsciVersion, version, &around(false, false)), Err(Errno::EINVAL));
        }
        for bad in [0, 1, 3, 0x1_0004, 1 << 32 | 2] {
            assert_eq!(firmware.set(Register::PsciVersion, bad, &around(true, false)), Err(Errno::EINVAL));
        }
        assert_eq!(firmware.set(Register::PsciVersion, 1, &around(false, false)), Ok(()));
    }

    #[test]
    fn bitmaps() {
        let cases = [(Register::Standard, 1, 1), (Register::StandardHypervisor, 1, 1), (Register::Vendor, 3, 3)];
        for (register, default, all) in cases.into_iter().chain([(Register::Vendor2, 0, 3)]) {
            let mut firmware = Firmware::NEW;
            assert_eq!(firmware.get(register, &around(true, false)), default);
            assert_eq!(firmware.set(register, all + 1, &around(true, false)), Err(Errno::EINVAL));
            assert_eq!(firmware.set(register, 0, &around(true, false)), Ok(()));
            assert_eq!(firmware.set(register, 0, &around(true, true)), Ok(()), "the same value");
            assert_eq!(firmware.set(register, 1, &around(true, true)), Err(Errno::EBUSY));
            assert_eq!(firmware.set(register, all + 1, &around(true, true)), Err(Errno::EINVAL), "comes first");
            assert_eq!(firmware.get(register, &around(true, true)), 0);
        }
    }

    #[test]
    fn workarounds() {
        let mut firmware = Firmware::NEW;
        for (mitigation, level, level_2) in [
            ((|_| Mitigation::Vulnerable) as fn(_) -> _, 0, 0),
            (|_| Mitigation::Mitigated, 1, 3),
            (|_| Mitigation::Unaffected, 2, 3),
        ] {
            let around = Surroundings { mitigation, ..around(true, false) };
            assert_eq!((firmware.get(V2, &around), firmware.get(V4, &around)), (level, level_2));
            for value in 0..64 {
                let expected = if value <= level { Ok(()) } else { Err(Errno::EINVAL) };
                assert_eq!(firmware.set(V2, value, &around), expected, "{value}");
                let legal = if level_2 == 0 { [0, 1].contains(&value) } else { [2, 3, 0x12].contains(&value) };
                assert_eq!(firmware.set(V4, value, &around).is_ok(), legal, "{value} {level_2}");
            }
        }
    }

    proptest! {
        /// What was set is read back; what was refused changed nothing.
        #[test]
        fn set_and_get(
            register in 0..REGISTERS.len(), value in prop_oneof![0u64..6, any::<u64>()], psci_0_2 in any::<bool>(),
            ran in any::<bool>(),
        ) {
            let (register, around) = (REGISTERS[register].1, around(psci_0_2, ran));
            let mut firmware = Firmware::NEW;
            let before = firmware.get(register, &around);
            let result = firmware.set(register, value, &around);
            let after = firmware.get(register, &around);
            match register {
                Register::Workaround(_) => prop_assert_eq!(after, before),
                _ => prop_assert_eq!(after, if result.is_ok() { value } else { before }),
            }
        }
    }
}
