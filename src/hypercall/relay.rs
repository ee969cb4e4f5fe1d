//! The owner's PSCI calls: what becomes of each when the machine's owner runs at EL1 over something that stays at EL2.
//!
//! Without this a CPU that the owner turns on would come up at EL2 in the owner's code. The calls that start or wake a CPU
//! at an address get one of ours in its place; those that say nothing about addresses go to firmware as they are; the
//! rest of PSCI is NOT_SUPPORTED, as protected KVM answers its host, and what is not PSCI is none of our business. PSCI:
//! Arm DEN0022; function ids: Arm DEN0028.

/// PSCI success.
pub const SUCCESS: u64 = 0;
/// PSCI: the function is not there.
pub const NOT_SUPPORTED: u64 = -1_i64 as u64;
/// PSCI: no such CPU.
pub const INVALID_PARAMETERS: u64 = -2_i64 as u64;
/// PSCI: the CPU is on, or on its way.
pub const ALREADY_ON: u64 = -4_i64 as u64;
/// PSCI 1.0: an entry point where no code can be.
pub const INVALID_ADDRESS: u64 = -9_i64 as u64;

/// CPU_ON, SMC64.
pub const CPU_ON_64: u32 = 0xc400_0003;

/// The firmware that the owner's calls are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnerPsci {
    /// Its version, major in bits 31:16, minor in 15:0; below 0.2 there are only the ids of the tree; 0: no PSCI by SMC.
    pub version: u32,
    /// Function ids of PSCI 0.1 from the tree, 0 for none: CPU_SUSPEND, CPU_OFF, CPU_ON, MIGRATE.
    pub legacy: [u32; 4],
}

/// What is done with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relay {
    /// Not PSCI: handed on with x0 to x17, and answered in all of them.
    Verbatim,
    /// Handed on with x0 to x3; x0 is firmware's answer.
    Firmware,
    /// CPU_ON: x1 = target, x2 = entry point, x3 = context.
    CpuOn,
    /// A call that this CPU may wake from elsewhere: the entry point is in x`entry`, the context in the next register.
    Suspend {
        /// Number of the register.
        entry: usize,
    },
    /// Answered with NOT_SUPPORTED.
    NotSupported,
}

const V0_2: u32 = 2;
const V1_0: u32 = 0x1_0000;
const V1_1: u32 = 0x1_0001;

/// Functions that are handed on or replaced: id, the version they came with, and what is done.
const ROWS: &[(u32, u32, Relay)] = &[
    (0x8400_0000, V0_2, Relay::Firmware),             // PSCI_VERSION
    (0xc400_0001, V0_2, Relay::Suspend { entry: 2 }), // CPU_SUSPEND
    (0x8400_0002, V0_2, Relay::Firmware),             // CPU_OFF
    (CPU_ON_64, V0_2, Relay::CpuOn),                  // CPU_ON
    (0xc400_0004, V0_2, Relay::Firmware),             // AFFINITY_INFO
    (0xc400_0005, V0_2, Relay::Firmware),             // MIGRATE
    (0x8400_0006, V0_2, Relay::Firmware),             // MIGRATE_INFO_TYPE
    (0xc400_0007, V0_2, Relay::Firmware),             // MIGRATE_INFO_UP_CPU
    (0x8400_0008, V0_2, Relay::Firmware),             // SYSTEM_OFF
    (0x8400_0009, V0_2, Relay::Firmware),             // SYSTEM_RESET
    (0x8400_000a, V1_0, Relay::Firmware),             // PSCI_FEATURES
    (0xc400_000e, V1_0, Relay::Suspend { entry: 1 }), // SYSTEM_SUSPEND
    (0x8400_000f, V1_0, Relay::Firmware),             // PSCI_SET_SUSPEND_MODE
    (0xc400_0012, V1_1, Relay::Firmware),             // SYSTEM_RESET2
    (0xc400_0015, V1_1, Relay::Firmware),             // SYSTEM_OFF2
];

/// What PSCI 0.1's functions, in the order of [`OwnerPsci::legacy`], become.
const LEGACY: [Relay; 4] = [Relay::Suspend { entry: 2 }, Relay::Firmware, Relay::CpuOn, Relay::Firmware];

/// The hint that no SVE state is live (DEN0028 §2.3), no part of the function's number.
const SVE_HINT: u32 = 1 << 16;

/// What PSCI 0.1 has as `function`.
fn legacy(function: u32, psci: &OwnerPsci) -> Option<Relay> {
    let rows = psci.legacy.iter().zip(LEGACY);
    rows.filter(|(known, _)| **known != 0).find(|(known, _)| **known == function).map(|(_, relay)| relay)
}

/// The function's number without the SVE hint: what firmware is asked for.
pub fn plain(function: u32, psci: &OwnerPsci) -> u32 {
    if legacy(function, psci).is_some() { function } else { function & !SVE_HINT }
}

/// Decides by the function id in w0.
pub fn route(function: u32, psci: &OwnerPsci) -> Relay {
    if let Some(relay) = legacy(function, psci) {
        return relay;
    }
    let id = plain(function, psci);
    let is_psci = matches!(id & !0x4000_001f, 0x8400_0000);
    if !is_psci || psci.version == 0 {
        return Relay::Verbatim;
    }
    let row = ROWS.iter().find(|(known, since, _)| *known == id && *since <= psci.version);
    row.map_or(Relay::NotSupported, |&(_, _, relay)| relay)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: OwnerPsci = OwnerPsci { version: V1_1, legacy: [0; 4] };

    #[test]
    fn calls_with_an_entry_point_are_replaced() {
        assert_eq!(route(0xc400_0003, &V1), Relay::CpuOn);
        assert_eq!(route(0xc400_0001, &V1), Relay::Suspend { entry: 2 });
        assert_eq!(route(0xc400_000e, &V1), Relay::Suspend { entry: 1 });
        assert_eq!(route(0xc401_0003, &V1), Relay::CpuOn, "with the SVE hint");
    }

    #[test]
    fn no_psci_call_with_an_entry_point_reaches_firmware_as_it_is() {
        // DEN0022: CPU_SUSPEND 1, CPU_ON 3, CPU_DEFAULT_SUSPEND 12, SYSTEM_SUSPEND 14, in both forms.
        for number in [1, 3, 12, 14] {
            for id in [0x8400_0000 | number, 0xc400_0000 | number] {
                for version in [V0_2, V1_0, V1_1, 0x7fff_ffff] {
                    let relay = route(id, &OwnerPsci { version, legacy: [0; 4] });
                    assert!(!matches!(relay, Relay::Firmware | Relay::Verbatim), "{id:#x} {version:#x}: {relay:?}");
                }
            }
        }
    }

    #[test]
    fn the_rest_of_psci_goes_on_or_is_not_there() {
        for id in [0x8400_0000, 0x8400_0002, 0xc400_0004, 0x8400_0008, 0x8400_0009, 0x8400_000a, 0xc400_0012] {
            assert_eq!(route(id, &V1), Relay::Firmware, "{id:#x}");
        }
        for id in [0x8400_0003, 0x8400_0001, 0x8400_000b, 0xc400_0000, 0x8400_0013, 0x8400_001f, 0xc400_001f] {
            assert_eq!(route(id, &V1), Relay::NotSupported, "{id:#x}");
        }
    }

    #[test]
    fn versions_bring_their_functions() {
        let old = OwnerPsci { version: V0_2, legacy: [0; 4] };
        for id in [0x8400_000a, 0xc400_000e, 0x8400_000f, 0xc400_0012] {
            assert_eq!(route(id, &old), Relay::NotSupported, "{id:#x}");
        }
        assert_eq!(route(0xc400_0012, &OwnerPsci { version: V1_0, legacy: [0; 4] }), Relay::NotSupported);
    }

    #[test]
    fn what_is_not_psci_is_handed_on() {
        for id in [0, 1, 0x8000_0000, 0x8000_8000, 0x8400_0020, 0xc400_0050, 0xc600_0000, 0x0400_0003, 0xffff_ffff] {
            assert_eq!(route(id, &V1), Relay::Verbatim, "{id:#x}");
        }
        assert_eq!(route(0xc400_0003, &OwnerPsci::default()), Relay::Verbatim, "without PSCI");
    }

    #[test]
    fn the_ids_of_0_1_are_the_trees() {
        let legacy = OwnerPsci { version: 1, legacy: [0x95c1_ba5e, 0x95c1_ba5f, 0x95c1_ba60, 0] };
        assert_eq!(route(0x95c1_ba5e, &legacy), Relay::Suspend { entry: 2 });
        assert_eq!(route(0x95c1_ba5f, &legacy), Relay::Firmware);
        assert_eq!(route(0x95c1_ba60, &legacy), Relay::CpuOn);
        assert_eq!([0x95c1_ba60, 0xc401_0003].map(|id| plain(id, &legacy)), [0x95c1_ba60, 0xc400_0003]);
        assert_eq!(route(0xc400_0003, &legacy), Relay::NotSupported);
        assert_eq!(route(0, &legacy), Relay::Verbatim);
    }
}
