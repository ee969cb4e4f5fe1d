//! KVM_ARM_VCPU_INIT, KVM_ARM_PREFERRED_TARGET, KVM_ARM_VCPU_FINALIZE: what a vCPU is asked to be.
//!
//! Source: Linux 6.12, Documentation/virt/kvm/api.rst (4.82, 4.83, 4.119). Which error a wrong request gets is KVM's order of
//! checks.

use super::{
    Errno,
    uapi::{FINALIZE_SVE, TARGET_GENERIC_V8, TARGETS, VcpuInit, feature},
};

/// What the machine has for vCPUs that ask for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offer {
    /// FEAT_PAuth, for addresses and for data, on every CPU alike.
    pub pointer_authentication: bool,
    /// EL1 can be AArch32, on every CPU alike.
    pub aarch32_el1: bool,
}

/// A feature.
struct Row {
    bit: u32,
    is_offered: fn(Offer) -> bool,
}

const fn row(bit: u32, is_offered: fn(Offer) -> bool) -> Row {
    Row { bit, is_offered }
}

/// All features that are known, by bit.
const FEATURES: [Row; feature::LAST as usize + 1] = [
    row(feature::POWER_OFF, |_| true),
    row(feature::EL1_32BIT, |offer| offer.aarch32_el1),
    row(feature::PSCI_0_2, |_| true),
    // Whether the machine has a PMU is asked when all else is right: that is another error.
    row(feature::PMU_V3, |_| true),
    row(feature::SVE, |_| false),
    row(feature::PTRAUTH_ADDRESS, |offer| offer.pointer_authentication),
    row(feature::PTRAUTH_GENERIC, |offer| offer.pointer_authentication),
];

/// Both bits of pointer authentication, which come together.
pub const POINTER_AUTHENTICATION: u32 = 1 << feature::PTRAUTH_ADDRESS | 1 << feature::PTRAUTH_GENERIC;

const POWER_OFF: u32 = 1 << feature::POWER_OFF;

/// A request that can be met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its features, which must be those of the VM's other vCPUs.
    pub features: u32,
    /// It starts stopped.
    pub off: bool,
}

/// KVM_ARM_PREFERRED_TARGET.
pub const PREFERRED_TARGET: VcpuInit = VcpuInit { target: TARGET_GENERIC_V8, features: [0; 7] };

/// The features that a machine with this offer has, by bit.
pub fn offered(offer: Offer) -> u32 {
    FEATURES.iter().filter(|row| (row.is_offered)(offer)).fold(0, |bits, row| bits | 1 << row.bit)
}

/// Checks KVM_ARM_VCPU_INIT's argument; `midr` is MIDR_EL1 of the CPU that the vCPU runs on.
///
/// # Errors
///
/// `EINVAL` for a target that the CPU is not, for a feature that the machine does not have, for half of pointer
/// authentication; `ENOENT` for unknown features.
pub fn check(init: &VcpuInit, offer: Offer, midr: u64) -> Result<Request, Errno> {
    // Implementer in MIDR_EL1 31:24, part number in 15:4.
    let (implementer, part) = ((midr >> 24) as u8, (midr >> 4 & 0xfff) as u16);
    let is_this_cpu = |&(target, by, number): &(u32, u8, u16)| (target, by, number) == (init.target, implementer, part);
    if init.target != TARGET_GENERIC_V8 && !TARGETS.iter().any(is_this_cpu) {
        return Err(Errno::EINVAL);
    }
    let [asked, rest @ ..] = init.features;
    if asked >> (feature::LAST + 1) != 0 || rest != [0; 6] {
        return Err(Errno::ENOENT);
    }
    let pair = asked & POINTER_AUTHENTICATION;
    if asked & !offered(offer) != 0 || pair != 0 && pair != POINTER_AUTHENTICATION {
        return Err(Errno::EINVAL);
    }
    Ok(Request { features: asked & !POWER_OFF, off: asked & POWER_OFF != 0 })
}

/// KVM_ARM_VCPU_FINALIZE of an initialised vCPU with these features.
///
/// # Errors
///
/// `EINVAL` for anything but SVE, and for that unless the vCPU has it; `EPERM` when there is nothing left to do.
pub fn finalize(features: u32, what: i32) -> Result<(), Errno> {
    // Nothing else waits to be configured, and no machine of keel's offers SVE.
    if what != FINALIZE_SVE || features & 1 << feature::SVE == 0 { Err(Errno::EINVAL) } else { Err(Errno::EPERM) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARE: Offer = Offer { pointer_authentication: false, aarch32_el1: false };
    const FULL: Offer = Offer { pointer_authentication: true, aarch32_el1: true };
    const CORTEX_A53: u64 = 0x410f_d034;

    fn ask(target: u32, features: u32) -> Result<Request, Errno> {
        check(&VcpuInit { target, features: [features, 0, 0, 0, 0, 0, 0] }, FULL, CORTEX_A53)
    }

    #[test]
    fn targets() {
        for target in 0..16 {
            let expected = if [4, 5].contains(&target) { None } else { Some(Errno::EINVAL) };
            assert_eq!(ask(target, 0).err(), expected, "{target}");
        }
        assert_eq!(check(&VcpuInit { target: 2, features: [0; 7] }, BARE, 0x411f_d070).err(), None, "Cortex-A57");
        assert_eq!(check(&VcpuInit { target: 4, features: [0; 7] }, BARE, 0x411f_d070).err(), Some(Errno::EINVAL));
        assert_eq!(check(&VcpuInit { target: 3, features: [0; 7] }, BARE, 0x500f_0000).err(), None, "X-Gene");
        assert_eq!(check(&PREFERRED_TARGET, BARE, CORTEX_A53), Ok(Request { features: 0, off: false }));
    }

    #[test]
    fn features() {
        assert_eq!(ask(5, 0b101), Ok(Request { features: 0b100, off: true }));
        assert_eq!(ask(5, 0b110_0100), Ok(Request { features: 0b110_0100, off: false }));
        assert_eq!(ask(5, 0b111), Ok(Request { features: 0b110, off: true }));
        assert_eq!(ask(5, 0b1000), Ok(Request { features: 0b1000, off: false }));
        for (features, errno) in [
            (1 << 4, Errno::EINVAL),
            (1 << 5, Errno::EINVAL),
            (1 << 6, Errno::EINVAL),
            (1 << 7, Errno::ENOENT),
            (1 << 9, Errno::ENOENT),
            (1 << 31, Errno::ENOENT),
            // The unknown bit comes before the missing feature.
            (1 << 9 | 1 << 4, Errno::ENOENT),
        ] {
            assert_eq!(ask(5, features), Err(errno), "{features:#x}");
        }
        assert_eq!(ask(6, 1 << 9), Err(Errno::EINVAL), "the target comes first");
        for word in 1..7 {
            let mut init = PREFERRED_TARGET;
            init.features[word] = 1;
            assert_eq!(check(&init, FULL, CORTEX_A53), Err(Errno::ENOENT), "{word}");
        }
        let narrow = VcpuInit { target: 5, features: [0b110, 0, 0, 0, 0, 0, 0] };
        assert_eq!(check(&narrow, BARE, CORTEX_A53), Err(Errno::EINVAL), "no such EL1");
        let both = VcpuInit { target: 5, features: [POINTER_AUTHENTICATION, 0, 0, 0, 0, 0, 0] };
        assert_eq!(check(&both, BARE, CORTEX_A53), Err(Errno::EINVAL), "no such CPU");
        assert_eq!((offered(BARE), offered(FULL)), (0b1101, 0b110_1111));
    }

    #[test]
    fn finalizing() {
        for what in [-1, 0, 1, 4, 5] {
            assert_eq!(finalize(1 << feature::PSCI_0_2, what), Err(Errno::EINVAL), "{what}");
        }
    }

    #[test]
    fn power_states() {
        for number in 0..16 {
            assert_eq!(
                crate::kvm::uapi::MpState::new(number).map(|state| state as u32).unwrap_or(99),
                match number {
                    0 | 5 | 10 => number,
                    _ => 99,
                }
            );
        }
    }
}
