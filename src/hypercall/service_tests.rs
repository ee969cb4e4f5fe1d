//! Tests of what comes beside PSCI: TRNG, PV time, the vendor's calls, KVM's generic hypercalls, and the services that
//! give and take them.

use proptest::prelude::*;

use super::psci::Version;
use super::services::Service;
use super::table::FUNCTIONS;
use super::tests::{NS, RAM, RAM_SIZE, Vm, returns};
use super::*;

const INVALID: u64 = -3i64 as u64;

fn vm() -> Vm {
    Vm::new(Version::V1_1)
}

fn x0(value: i64) -> Outcome {
    Outcome::ReturnX0(value as u64)
}

const CLOCK: Clock =
    Clock { nanoseconds: 1_700_000_000_123_456_789, virtual_counter: 0x1_2345_6789, physical_counter: 0x2_2345_6789 };

#[test]
fn psci_1_3() {
    for (version, answer) in [(Version::V1_1, NS), (Version::V1_2, NS), (Version::V1_3, 1)] {
        let vm = Vm::new(version);
        for id in [0x8400_0015, 0xc400_0015] {
            assert_eq!(vm.hvc(&[0x8400_000a, id]), returns(answer), "{version:?}");
            let off = vm.hvc(&[id, 0, 0]);
            assert_eq!(off == Outcome::System(SystemEvent::Hibernate), answer == 1, "{version:?}: {off:?}");
        }
    }
    let vm = Vm::new(Version::V1_3);
    for bad in [[2, 0], [1, 1], [0, 1 << 63], [1 << 32, 0]] {
        assert_eq!(vm.hvc(&[0xc400_0015, bad[0], bad[1]]), returns(-2i64 as u64), "{bad:x?}");
    }
    assert_eq!(vm.hvc(&[0x8400_0015, 0x7_0000_0001, 0x7_0000_0000]), Outcome::System(SystemEvent::Hibernate));
    assert_eq!(Outcome::System(SystemEvent::Hibernate).results(), Results::Four([-6i64 as u64, 0, 0, 0]));
}

#[test]
fn system_suspend_has_to_be_enabled() {
    for version in [Version::V0_2, Version::V1_0, Version::V1_3] {
        let mut vm = Vm::new(version);
        for id in [0x8400_000e, 0xc400_000e] {
            vm.services.system_suspend = false;
            assert_eq!(vm.hvc(&[id, 0x4020_0000, 1]), returns(NS));
            assert_eq!(vm.hvc(&[0x8400_000a, id]), returns(NS));
            vm.services.system_suspend = true;
            if version >= Version::V1_0 {
                assert_eq!(vm.hvc(&[id, 0x4020_0000, 1]), Outcome::SystemSuspend);
                assert_eq!(vm.hvc(&[0x8400_000a, id]), returns(0));
            } else {
                assert_eq!(vm.hvc(&[id, 0x4020_0000, 1]), returns(NS));
            }
        }
    }
    assert_eq!(Outcome::SystemSuspend.results(), Results::None);
}

#[test]
fn trng_identifies_itself() {
    let vm = vm();
    assert_eq!(vm.hvc(&[0x8400_0050]), returns(0x1_0000));
    let Outcome::Return(uuid) = vm.hvc(&[0x8400_0052]) else { panic!("no UUID") };
    // The UUID of the documentation, its bytes in order, four to a register.
    let text = "41b07d5f33ef4a93bc62390b8c42238b";
    for (n, word) in uuid.into_iter().enumerate() {
        let big_endian = u32::from_str_radix(&text[8 * n..8 * n + 8], 16).unwrap();
        assert_eq!(word, u64::from(big_endian.swap_bytes()));
    }
    assert_ne!(uuid[0], 0xffff_ffff, "would read as NOT_SUPPORTED");
}

#[test]
fn trng_features_of_every_id() {
    let mut vm = vm();
    let known = [0x8400_0050, 0x8400_0051, 0x8400_0052, 0x8400_0053, 0xc400_0053];
    let asked = FUNCTIONS.iter().map(|row| u64::from(row.id.0)).chain((0x40..0x60).map(|n| 0x8400_0000 + n));
    for id in asked.clone() {
        assert_eq!(vm.hvc(&[0x8400_0051, id]), returns(if known.contains(&id) { 0 } else { NS }), "{id:#x}");
    }
    assert_eq!(vm.call(Conduit::Hvc, 0, true, &[0x8400_0051, 0xc400_0053]), returns(NS), "AArch32");
    vm.services.standard = 0;
    for id in known {
        assert_eq!(vm.hvc(&[id, 32]), returns(NS), "{id:#x} without the service");
        assert_eq!(vm.hvc(&[0x8400_0051, id]), returns(NS));
    }
}

#[test]
fn trng_random_bits() {
    let mut vm = vm();
    let rnd = |vm: &Vm, id: u64, bits: u64| vm.hvc(&[id, bits, 0, 0]);
    for (id, bits, [x1, x2, x3]) in [
        (0x8400_0053, 1, [0, 0, 1]),
        (0x8400_0053, 32, [0, 0, 0xffff_ffff]),
        (0x8400_0053, 33, [0, 1, 0xffff_ffff]),
        (0x8400_0053, 96, [0xffff_ffff; 3]),
        (0xc400_0053, 1, [0, 0, 1]),
        (0xc400_0053, 64, [0, 0, u64::MAX]),
        (0xc400_0053, 65, [0, 1, u64::MAX]),
        (0xc400_0053, 130, [3, u64::MAX, u64::MAX]),
        (0xc400_0053, 192, [u64::MAX; 3]),
    ] {
        assert_eq!(rnd(&vm, id, bits), Outcome::Return([0, x1, x2, x3]), "{id:#x} {bits}");
    }
    for (id, bits) in [(0x8400_0053, 0), (0x8400_0053, 97), (0xc400_0053, 0), (0xc400_0053, 193), (0xc400_0053, NS)] {
        assert_eq!(rnd(&vm, id, bits), returns(-2i64 as u64), "{id:#x} {bits}");
    }
    assert_eq!(rnd(&vm, 0x8400_0053, 0x1_0000_0008), Outcome::Return([0, 0, 0, 0xff]), "32-bit argument");
    vm.entropy = false;
    assert_eq!(rnd(&vm, 0xc400_0053, 64), returns(-3i64 as u64));
    assert_eq!(rnd(&vm, 0xc400_0053, 193), returns(-2i64 as u64));
}

#[test]
fn pv_time() {
    let (features, stolen) = (0xc500_0020, 0xc500_0021);
    let mut vm = vm();
    assert_eq!(vm.hvc(&[0x8000_0001, features]), returns(0));
    assert_eq!(vm.hvc(&[features, stolen]), returns(NS), "no structure");
    assert_eq!(vm.hvc(&[stolen]), returns(NS));
    vm.stolen_time = Some(0x90a_0040);
    for id in [features, stolen] {
        assert_eq!(vm.hvc(&[features, id]), returns(0), "{id:#x}");
    }
    for id in [0xc500_0022, 0x8500_0020, 0x8500_0021, 0x8000_0000, 0] {
        assert_eq!(vm.hvc(&[features, id]), returns(NS), "{id:#x}");
    }
    assert_eq!(vm.hvc(&[stolen]), Outcome::StolenTime { address: 0x90a_0040 });
    assert_eq!(vm.hvc(&[stolen]).results(), Results::Four([0x90a_0040, 0, 0, 0]));
    for narrow in [0x8500_0020, 0x8500_0021] {
        assert_eq!(vm.hvc(&[narrow, stolen]), returns(NS));
    }
    vm.services.standard_hypervisor = 0;
    assert_eq!(vm.hvc(&[features, stolen]), returns(NS));
    assert_eq!(vm.hvc(&[stolen]), returns(NS));
    assert_eq!(vm.hvc(&[0x8000_0001, features]), returns(NS));
}

#[test]
fn vendor_identity_and_features() {
    let mut vm = vm();
    assert_eq!(vm.hvc(&[0x8600_ff01]), Outcome::Return([0xb66f_b428, 0xe911_c52e, 0x564b_caa9, 0x743a_004d]));
    assert_eq!(vm.hvc(&[0x8600_0000]), Outcome::Return([3, 0, 0, 0]));
    vm.services.vendor_2 = 3;
    vm.services.protected_memory = true;
    assert_eq!(vm.hvc(&[0x8600_0000]), Outcome::Return([0x9f, 0, 3, 0]));
    vm.services = Services { vendor: 2, ..Services::DEFAULT };
    assert_eq!(vm.hvc(&[0x8600_ff01]), returns(NS), "not KVM");
    assert_eq!(vm.hvc(&[0x8600_0000]), returns(NS));
    for id in [0x8600_ff00, 0x8600_ff03, 0xc600_ff01, 0x8600_0002, 0xc600_0005, 0xc600_0006, 0xc600_0008, 0xc600_007f] {
        assert_eq!(vm.hvc(&[id]), returns(NS), "{id:#x}");
    }
}

#[test]
fn ptp() {
    let mut vm = vm();
    assert_eq!(vm.hvc(&[0x8600_0001, 0]), returns(NS), "no clock");
    vm.clock = Some(CLOCK);
    let wall = [CLOCK.nanoseconds >> 32, CLOCK.nanoseconds & 0xffff_ffff];
    assert_eq!(vm.hvc(&[0x8600_0001, 0]), Outcome::Return([wall[0], wall[1], 1, 0x2345_6789]));
    assert_eq!(vm.hvc(&[0x8600_0001, 1]), Outcome::Return([wall[0], wall[1], 2, 0x2345_6789]));
    assert_eq!(vm.hvc(&[0x8600_0001, 2]), returns(NS));
    assert_eq!(vm.hvc(&[0x8600_0001, u64::MAX]), returns(NS));
    vm.services.vendor = 1;
    assert_eq!(vm.hvc(&[0x8600_0001, 0]), returns(NS));
}

#[test]
fn page_states() {
    let (information, share, unshare, guard) = (0xc600_0002, 0xc600_0003, 0xc600_0004, 0xc600_0007);
    let mut vm = vm();
    for id in [information, share, unshare, guard] {
        assert_eq!(vm.hvc(&[id, RAM, 0, 0]), returns(NS), "not enabled");
    }
    vm.services.protected_memory = true;
    assert_eq!(vm.hvc(&[information, 0, 0, 0]), returns(4096));
    assert_eq!(vm.hvc(&[information, 0, 0, 1]), returns(INVALID));
    assert_eq!(vm.hvc(&[unshare, RAM, 0, 0]), returns(INVALID), "private already");
    assert_eq!(vm.hvc(&[share, RAM, 0, 0]), returns(0));
    assert_eq!(vm.hvc(&[share, RAM, 0, 0]), returns(INVALID), "shared already");
    assert_eq!(vm.hvc(&[unshare, RAM, 0, 0]), returns(0));
    assert_eq!(vm.hvc(&[unshare, RAM, 0, 0]), returns(INVALID));
    for bad in
        [[RAM + 1, 0, 0], [RAM, 1, 0], [RAM, 0, 1], [0x900_0000, 0, 0], [RAM + RAM_SIZE, 0, 0], [NS & !0xfff, 0, 0]]
    {
        assert_eq!(vm.hvc(&[share, bad[0], bad[1], bad[2]]), returns(INVALID), "{bad:x?}");
    }
    assert_eq!(vm.hvc(&[guard, 0x900_0000, 0, 0]), returns(0));
    assert_eq!(vm.hvc(&[guard, RAM, 0, 0]), returns(INVALID), "memory");
    assert_eq!(vm.hvc(&[guard, 0x900_0800, 0, 0]), returns(INVALID));
    assert_eq!(vm.hvc(&[guard, 0x900_0000, 0, 1]), returns(INVALID));
}

#[test]
fn implementations() {
    let mut vm = vm();
    assert_eq!(vm.hvc(&[0xc600_0040]), returns(NS));
    vm.services.vendor_2 = 1;
    assert_eq!(vm.hvc(&[0xc600_0040]), Outcome::Return([0, 0x1_0000, 2, 0]));
    assert_eq!(vm.hvc(&[0xc600_0041, 0, 0, 0]), returns(NS));
    vm.services.vendor_2 = 3;
    assert_eq!(vm.hvc(&[0xc600_0041, 1, 0, 0]), Outcome::Return([0, 0x411f_d070, 1, 2]));
    for bad in [[2, 0, 0], [0, 1, 0], [0, 0, 1], [u64::MAX, 0, 0]] {
        assert_eq!(vm.hvc(&[0xc600_0041, bad[0], bad[1], bad[2]]), returns(INVALID), "{bad:x?}");
    }
}

fn generic(vm: &Vm, number: u64, arguments: [u64; 4]) -> Outcome {
    let [a0, a1, a2, a3] = arguments;
    vm.hvc(&[0xc600_0100 + number, a0, a1, a2, a3])
}

#[test]
fn generic_numbers_without_a_function() {
    let vm = vm();
    for number in [2, 4, 6, 7, 8, 12, 13, 99, 0xff] {
        assert_eq!(generic(&vm, number, [0; 4]), x0(-1000), "{number}");
    }
    // The other convention, and numbers beyond, are no ids of theirs.
    for id in [0x8600_0101, 0xc600_0200, 0xc600_00ff, 0x4600_0101] {
        assert_eq!(vm.hvc(&[id]), returns(NS), "{id:#x}");
    }
    assert_eq!(vm.call(Conduit::Hvc, 0, true, &[0xc600_0101]), returns(NS), "AArch32");
    assert_eq!(vm.call(Conduit::Hvc, 0, true, &[0xc600_0102]), returns(NS), "AArch32");
    assert_eq!(vm.call(Conduit::Smc, 0, false, &[0xc600_0102]), x0(-1000));
    assert_eq!(vm.call(Conduit::Smc, 1, false, &[0xc600_0101]), Outcome::ReturnX0(NS));
}

#[test]
fn generic_features_and_poll() {
    let mut vm = vm();
    let bits = 1 << 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 10 | 1 << 11;
    for number in [0, 3] {
        assert_eq!(generic(&vm, number, [NS; 4]), x0(bits));
    }
    vm.services.protected_memory = true;
    assert_eq!(generic(&vm, 3, [0; 4]), x0(bits | 1 << 12));
    assert_eq!(generic(&vm, 1, [NS; 4]), x0(0));
}

#[test]
fn generic_calls_to_other_vcpus() {
    let vm = vm();
    assert_eq!(generic(&vm, 5, [0, 1, 0, 0]), Outcome::Wake(1));
    assert_eq!(generic(&vm, 5, [NS, 0x01_0000_0101, 0, 0]), Outcome::Wake(3));
    assert_eq!(Outcome::Wake(1).results(), Results::X0(0));
    for nobody in [2, 0x8000_0001, NS, 0x1_0000_0001] {
        assert_eq!(generic(&vm, 5, [0, nobody, 0, 0]), x0(0), "{nobody:#x}");
    }
    let ipi = |bits: [u64; 2], lowest, icr| generic(&vm, 10, [bits[0], bits[1], lowest, icr]);
    assert_eq!(ipi([0b1111, 0], 0, 5), Outcome::Interrupt { vcpus: 0b1111, sgi: 5 });
    assert_eq!(ipi([0b11, 0], 2, 0x1f), Outcome::Interrupt { vcpus: 0b1100, sgi: 15 });
    assert_eq!(ipi([0b11, 0], 2, 0).results(), Results::X0(2));
    for (bits, lowest) in
        [([0b11, 0], 4), ([0, u64::MAX], 0), ([u64::MAX; 2], 128), ([u64::MAX; 2], u64::MAX), ([0, 0], 0)]
    {
        let nobody = ipi(bits, lowest, 1);
        assert_eq!(nobody.results(), Results::X0(0), "{bits:x?} {lowest}");
    }
    assert_eq!(generic(&vm, 11, [3, 0, 0, 0]), Outcome::YieldTo(3));
    for nobody in [0, 4, NS] {
        assert_eq!(generic(&vm, 11, [nobody, 0, 0, 0]), x0(0), "{nobody:#x}");
    }
}

#[test]
fn clock_pairing() {
    let mut vm = vm();
    assert_eq!(generic(&vm, 9, [RAM, 0, 0, 0]), x0(-95), "no clock");
    vm.clock = Some(CLOCK);
    assert_eq!(generic(&vm, 9, [0, 1, 0, 0]), x0(-95), "the kind comes before the address");
    let untouched = vm.memory.borrow().clone();
    for bad in [0, RAM - 1, RAM + RAM_SIZE - 63, NS, NS - 31] {
        assert_eq!(generic(&vm, 9, [bad, 0, 0, 0]), x0(-14), "{bad:#x}");
    }
    assert_eq!(*vm.memory.borrow(), untouched);
    assert_eq!(generic(&vm, 9, [RAM + 3, 0, 0, 0]), x0(0));
    let memory = vm.memory.borrow();
    let word = |n: usize| u64::from_le_bytes(memory[3 + 8 * n..11 + 8 * n].try_into().unwrap());
    assert_eq!([word(0), word(1), word(2)], [1_700_000_000, 123_456_789, CLOCK.virtual_counter]);
    assert!((3..8).all(|n| word(n) == 0));
    assert_eq!((memory[2], memory[67]), (0xa5, 0xa5));
}

#[test]
fn map_gpa_range() {
    let mut vm = vm();
    let map = |vm: &Vm, start, pages, attributes| generic(vm, 12, [start, pages, attributes, 0]);
    assert_eq!(map(&vm, RAM, 1, 0), x0(-1000), "not enabled");
    vm.services.protected_memory = true;
    assert_eq!(map(&vm, RAM, 2, 0), x0(0));
    assert_eq!(*vm.shared.borrow(), [RAM, RAM + 4096]);
    assert_eq!(map(&vm, RAM, 2, 2), x0(0), "again");
    assert_eq!(map(&vm, RAM, 1, 1 << 4), x0(0));
    assert_eq!(*vm.shared.borrow(), [RAM + 4096]);
    for (start, pages, attributes) in [
        (RAM + 1, 1, 0),
        (RAM, 0, 0),
        (RAM, u64::MAX, 0),
        (RAM, 1 << 52, 0),
        (NS & !0xfff, 1, 0),
        (RAM, 1, 3),
        (RAM, 1, 1 << 5),
        (RAM, 1, 1 << 63),
    ] {
        assert_eq!(map(&vm, start, pages, attributes), x0(-22), "{start:#x} {pages:#x} {attributes:#x}");
    }
    for (start, pages) in [(0, 1), (RAM, 17), (RAM - 4096, 2)] {
        assert_eq!(map(&vm, start, pages, 0), x0(-14), "{start:#x} {pages}");
    }
    assert_eq!(*vm.shared.borrow(), [RAM + 4096]);
}

#[test]
fn filtered_calls() {
    let mut vm = vm();
    vm.filter = |function| match function.0 {
        0x8400_0050 | 0xc600_0103 => FilterAction::Deny,
        0x8400_0051 | 0xc700_0000 => FilterAction::Forward,
        _ => FilterAction::Handle,
    };
    for conduit in [Conduit::Hvc, Conduit::Smc] {
        let call = |id| vm.call(conduit, 0, false, &[id, 0x8400_0050]);
        assert_eq!(call(0x8400_0050), returns(NS));
        assert_eq!(call(0xc600_0103), returns(NS), "not -KVM_ENOSYS: as if there were no such function");
        assert_eq!(call(0x8400_0051), Outcome::Forward);
        assert_eq!(call(0xc700_0000), Outcome::Forward, "unknown or not");
        assert_eq!(call(0x8400_0000), returns(0x1_0001));
    }
    assert_eq!(vm.call(Conduit::Smc, 1, false, &[0x8400_0051]), Outcome::ReturnX0(NS), "the immediate comes first");
    assert_eq!(Outcome::Forward.results(), Results::None);
}

#[test]
fn services_are_what_the_bitmaps_say() {
    use Service::*;
    let all = [
        Trng,
        PvTime,
        VendorFeatures,
        Ptp,
        DiscoverVersion,
        DiscoverCpus,
        SystemSuspend,
        ProtectedMemory,
        TestInjection,
    ];
    let of = |services: Services| all.map(|service| services.has(service));
    assert_eq!(of(Services::ALL), [true; 9]);
    assert_eq!(of(Services::NONE), [false; 9]);
    assert_eq!(of(Services::DEFAULT), [true, true, true, true, false, false, false, false, false]);
}

#[test]
fn the_test_calls_are_for_who_asked() {
    let mut vm = Vm::new(Version::V1_1);
    assert_eq!(vm.hvc(&[0xc600_0210, 1, 2, 3]), returns(NS));
    assert_eq!(vm.hvc(&[0xc600_0211]), returns(NS));
    vm.services.test_injection = true;
    assert_eq!(vm.hvc(&[0xc600_0210, 1, 2, 3]), Outcome::SetEvents([1, 2, 3]));
    assert_eq!(vm.hvc(&[0xc600_0211, 1, 2, 3]), Outcome::GetEvents);
}

fn any_services() -> impl Strategy<Value = Services> {
    (0u64..2, 0u64..2, 0u64..4, 0u64..4, any::<[bool; 3]>()).prop_map(
        |(standard, standard_hypervisor, vendor, vendor_2, [system_suspend, protected_memory, test_injection])| {
            Services {
                standard,
                standard_hypervisor,
                vendor,
                vendor_2,
                system_suspend,
                protected_memory,
                test_injection,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// A function whose service was taken away answers as one that never was; no call writes outside memory.
    #[test]
    fn services_gate_their_functions(
        row in 0..FUNCTIONS.len(), services in any_services(), arguments in proptest::array::uniform4(
            prop_oneof![0u64..200, (RAM - 64..RAM + RAM_SIZE), any::<u64>()]),
    ) {
        let row = &FUNCTIONS[row];
        let mut vm = Vm::new(Version::V1_3);
        (vm.services, vm.clock, vm.stolen_time) = (services, Some(CLOCK), Some(RAM));
        let [a, b, c, d] = arguments;
        let outcome = vm.hvc(&[row.id.0.into(), a, b, c, d]);
        let service = match row.gate {
            table::Gate::Has(service) | table::Gate::PsciSinceWith(_, service) => Some(service),
            _ => None,
        };
        if let Some(service) = service && !services.has(service) {
            let missing = if row.id.0 & 0xffff_ff00 == 0xc600_0100 { x0(-1000) } else { returns(NS) };
            prop_assert_eq!(outcome, missing, "{}", row.name);
        }
        if row.id.0 & 0xffff_ff00 == 0xc600_0100 {
            prop_assert!(matches!(outcome.results(), Results::X0(_)), "{} writes x0 alone", row.name);
        }
        if let Outcome::Interrupt { vcpus, sgi } = outcome {
            prop_assert!(vcpus < 1 << vm.vcpu_count() && sgi < 16);
        }
    }
}
