//! KVM_CHECK_EXTENSION: which capabilities there are, and how much of them.
//!
//! Only what keel has is here: a capability that is missing answers 0, as on KVM, and a program that asks first does
//! without.

use super::super::{Errno, routing::MAX_ROUTES, slots::MAX_SLOTS};

/// What answers depend on.
#[derive(Clone, Copy, Debug)]
pub struct Abilities {
    /// CPUs that are up.
    pub cpus: u32,
    /// The most vCPUs a VM can have.
    pub max_vcpus: u32,
    /// log2 of the largest IPA space.
    pub ipa_bits: u32,
    /// Breakpoints and watchpoints that guests have.
    pub debug_registers: [u32; 2],
    /// FEAT_RAS on every CPU.
    pub ras: bool,
    /// Pointer authentication.
    pub pauth: bool,
    /// A performance monitoring unit.
    pub pmu: bool,
    /// EL1 can be in AArch32.
    pub aarch32_el1: bool,
}

/// How much there is of a capability.
#[derive(Clone, Copy)]
enum Amount {
    /// So much everywhere.
    Fixed(u32),
    /// What the machine, or the VM that is asked, says.
    Depends(fn(&Abilities) -> u32),
}

use Amount::{Depends, Fixed};

/// The capabilities that there are (Linux, uapi `linux/kvm.h`, KVM_CAP_*), by number.
static CAPABILITIES: &[(u64, &str, Amount)] = &[
    (0, "IRQCHIP", Fixed(1)),
    (3, "USER_MEMORY", Fixed(1)),
    (9, "NR_VCPUS", Depends(|abilities| abilities.cpus.min(abilities.max_vcpus))),
    (10, "NR_MEMSLOTS", Fixed(MAX_SLOTS)),
    (14, "MP_STATE", Fixed(1)),
    (16, "SYNC_MMU", Fixed(1)),
    (21, "DESTROY_MEMORY_REGION_WORKS", Fixed(1)),
    (23, "SET_GUEST_DEBUG", Fixed(1)),
    (25, "IRQ_ROUTING", Fixed(MAX_ROUTES)),
    (30, "JOIN_MEMORY_REGIONS_WORKS", Fixed(1)),
    (32, "IRQFD", Fixed(1)),
    (36, "IOEVENTFD", Fixed(1)),
    (40, "INTERNAL_ERROR_DATA", Fixed(1)),
    (41, "VCPU_EVENTS", Fixed(1)),
    (66, "MAX_VCPUS", Depends(|abilities| abilities.max_vcpus)),
    (70, "ONE_REG", Fixed(1)),
    (77, "SIGNAL_MSI", Fixed(1)),
    (81, "READONLY_MEM", Fixed(1)),
    (82, "IRQFD_RESAMPLE", Fixed(1)),
    (87, "ARM_PSCI", Fixed(1)),
    (88, "ARM_SET_DEVICE_ADDR", Fixed(1)),
    (89, "DEVICE_CTRL", Fixed(1)),
    (93, "ARM_EL1_32BIT", Depends(|abilities| abilities.aarch32_el1.into())),
    (98, "ENABLE_CAP_VM", Fixed(1)),
    (102, "ARM_PSCI_0_2", Fixed(1)),
    (105, "CHECK_EXTENSION_VM", Fixed(1)),
    (119, "GUEST_DEBUG_HW_BPS", Depends(|abilities| abilities.debug_registers[0])),
    (120, "GUEST_DEBUG_HW_WPS", Depends(|abilities| abilities.debug_registers[1])),
    (122, "IOEVENTFD_ANY_LENGTH", Fixed(1)),
    (126, "ARM_PMU_V3", Depends(|abilities| abilities.pmu.into())),
    (127, "VCPU_ATTRIBUTES", Fixed(1)),
    (128, "MAX_VCPU_ID", Depends(|abilities| abilities.max_vcpus)),
    (136, "IMMEDIATE_EXIT", Fixed(1)),
    (144, "ARM_USER_IRQ", Fixed(1)),
    (158, "ARM_INJECT_SERROR_ESR", Depends(|abilities| abilities.ras.into())),
    (165, "ARM_VM_IPA_SIZE", Depends(|abilities| abilities.ipa_bits)),
    // Bit 0: clearing is a call of its own; bit 1: logs can begin full.
    (168, "MANUAL_DIRTY_LOG_PROTECT2", Fixed(3)),
    (171, "ARM_PTRAUTH_ADDRESS", Depends(|abilities| abilities.pauth.into())),
    (172, "ARM_PTRAUTH_GENERIC", Depends(|abilities| abilities.pauth.into())),
    (174, "ARM_IRQ_LINE_LAYOUT_2", Fixed(1)),
    (177, "ARM_NISV_TO_USER", Fixed(1)),
    (178, "ARM_INJECT_EXT_DABT", Fixed(1)),
    (182, "HALT_POLL", Fixed(1)),
    (187, "STEAL_TIME", Fixed(1)),
    // KVM_GUESTDBG_ENABLE, SINGLESTEP, USE_SW_BP, USE_HW.
    (195, "SET_GUEST_DEBUG2", Fixed(0x30003)),
    (198, "PTP_KVM", Fixed(1)),
    (215, "SYSTEM_EVENT_DATA", Fixed(1)),
    (216, "ARM_SYSTEM_SUSPEND", Fixed(1)),
    (227, "COUNTER_OFFSET", Fixed(1)),
    // KVM_ARM_FEATURE_ID_RANGE.
    (230, "ARM_SUPPORTED_REG_MASK_RANGES", Fixed(1)),
    (231, "USER_MEMORY2", Fixed(1)),
];

/// KVM_CAP_MSI_DEVID, which only a VM can be asked for.
const MSI_DEVID: u64 = 131;

/// The answer to KVM_CHECK_EXTENSION, on a VM with or without an ITS, or on the system.
///
/// # Errors
///
/// `EINVAL` for a capability of VMs that the system is asked for.
pub fn check(number: u64, abilities: &Abilities, its: Option<bool>) -> Result<u32, Errno> {
    if number == MSI_DEVID {
        return its.map(u32::from).ok_or(Errno::EINVAL);
    }
    let found = CAPABILITIES.iter().find(|(other, ..)| *other == number);
    Ok(match found {
        Some((_, _, Fixed(amount))) => *amount,
        Some((_, _, Depends(amount))) => amount(abilities),
        None => 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ABILITIES: Abilities = Abilities {
        cpus: 4,
        max_vcpus: 512,
        ipa_bits: 40,
        debug_registers: [6, 4],
        ras: true,
        pauth: false,
        pmu: true,
        aarch32_el1: false,
    };

    #[test]
    fn in_order() {
        assert!(CAPABILITIES.array_windows().all(|[(a, ..), (b, ..)]| a < b));
    }

    #[test]
    fn answers() {
        for (number, answer) in [
            (9, 4),
            (66, 512),
            (70, 1),
            (101, 0),
            (119, 6),
            (126, 1),
            (144, 1),
            (158, 1),
            (165, 40),
            (171, 0),
            (9999, 0),
        ] {
            assert_eq!(check(number, &ABILITIES, None), Ok(answer), "{number}");
        }
        assert_eq!(check(u64::MAX, &ABILITIES, Some(true)), Ok(0));
        assert_eq!(check(MSI_DEVID, &ABILITIES, None), Err(Errno::EINVAL));
        assert_eq!(check(MSI_DEVID, &ABILITIES, Some(true)), Ok(1));
        assert_eq!(check(MSI_DEVID, &ABILITIES, Some(false)), Ok(0));
    }
}
