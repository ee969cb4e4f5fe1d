//! Tests of the dispatch as a guest sees it: each row with good and bad input, and what holds for any input.

use core::cell::{Cell, RefCell};
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::psci::Version;
use super::table::{Discovery, FUNCTIONS};
use super::*;

pub(super) const NS: u64 = u64::MAX;
const INVALID: u64 = -2i64 as u64;

/// A VM of which a test sets everything and that remembers what was started.
pub(super) struct Vm {
    pub(super) version: Version,
    vcpus: RefCell<Vec<VcpuPower>>,
    started: Cell<Option<(usize, u64, u64)>>,
    mitigation: Mitigation,
    ssbs: bool,
    pub(super) services: Services,
    pub(super) filter: fn(FunctionId) -> FilterAction,
    pub(super) clock: Option<Clock>,
    pub(super) stolen_time: Option<u64>,
    pub(super) entropy: bool,
    /// 64 KiB of memory at [`RAM`].
    pub(super) memory: RefCell<Vec<u8>>,
    /// Pages of that memory that are shared.
    pub(super) shared: RefCell<Vec<u64>>,
}

/// Where a test's VM has memory.
pub(super) const RAM: u64 = 0x4000_0000;
/// How much.
pub(super) const RAM_SIZE: u64 = 0x1_0000;

impl Vm {
    pub(super) fn new(version: Version) -> Self {
        // Affinities of two clusters; bits 31 (RES1), 30 (U) and 24 (MT) must not matter.
        let vcpus = [(0x8000_0000, true), (0x8000_0001, false), (0x8100_0100, false), (0x01_8000_0101, false)];
        Self {
            version,
            vcpus: RefCell::new(vcpus.map(|(mpidr, on)| VcpuPower { mpidr, on }).into()),
            started: Cell::new(None),
            mitigation: Mitigation::Unaffected,
            ssbs: true,
            services: Services::DEFAULT,
            filter: |_| FilterAction::Handle,
            clock: None,
            stolen_time: None,
            entropy: true,
            memory: RefCell::new(vec![0xa5; RAM_SIZE as usize]),
            shared: RefCell::default(),
        }
    }

    pub(super) fn hvc(&self, arguments: &[u64]) -> Outcome {
        self.call(Conduit::Hvc, 0, false, arguments)
    }

    pub(super) fn call(&self, conduit: Conduit, immediate: u16, aarch32: bool, arguments: &[u64]) -> Outcome {
        let mut registers = [0xdead_beef_dead_beef; 18];
        registers[..arguments.len()].copy_from_slice(arguments);
        dispatch(self, &Call { conduit, immediate, aarch32, registers: &registers })
    }
}

fn in_memory(start: u64, bytes: u64) -> bool {
    start >= RAM && start.checked_add(bytes).is_some_and(|end| end <= RAM + RAM_SIZE)
}

impl HypercallHost for Vm {
    fn services(&self) -> &Services {
        &self.services
    }

    fn filter(&self, function: FunctionId) -> FilterAction {
        (self.filter)(function)
    }

    fn caller(&self) -> usize {
        0
    }

    /// All ones, so that a bit that should be zero is seen.
    fn random(&self, words: &mut [u64; 3]) -> bool {
        *words = [u64::MAX; 3];
        self.entropy
    }

    fn clock(&self) -> Option<Clock> {
        self.clock
    }

    fn stolen_time(&self) -> Option<u64> {
        self.stolen_time
    }

    fn write_memory(&self, address: u64, bytes: &[u8]) -> bool {
        let inside = in_memory(address, bytes.len() as u64);
        if inside {
            let offset = (address - RAM) as usize;
            self.memory.borrow_mut()[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        inside
    }

    fn set_page_state(&self, page: u64, state: PageState) -> bool {
        if state == PageState::Mmio {
            return !in_memory(page, 1);
        }
        let mut shared = self.shared.borrow_mut();
        let (is, becomes) = (shared.contains(&page), state == PageState::Shared);
        if !in_memory(page, 4096) || is == becomes {
            return false;
        }
        if becomes {
            shared.push(page)
        } else {
            shared.retain(|other| *other != page)
        }
        true
    }

    fn set_range_state(&self, range: Range<u64>, state: PageState) -> bool {
        let inside = in_memory(range.start, range.end - range.start);
        for page in range.step_by(4096).filter(|_| inside) {
            self.set_page_state(page, state);
        }
        inside
    }

    fn implementation(&self, index: usize) -> Option<[u64; 3]> {
        [[0x410f_d034, 0, 0], [0x411f_d070, 1, 2]].get(index).copied()
    }

    fn psci_version(&self) -> Version {
        self.version
    }

    fn vcpu_count(&self) -> usize {
        self.vcpus.borrow().len()
    }

    fn vcpu_power(&self, index: usize) -> VcpuPower {
        self.vcpus.borrow()[index]
    }

    fn cpu_on(&self, index: usize, entry: u64, context: u64) -> CpuOnResult {
        let vcpu = &mut self.vcpus.borrow_mut()[index];
        if vcpu.on {
            return CpuOnResult::AlreadyOn;
        }
        vcpu.on = true;
        self.started.set(Some((index, entry, context)));
        CpuOnResult::Started
    }

    fn mitigation(&self, _: Vulnerability) -> Mitigation {
        self.mitigation
    }

    fn guest_has_ssbs(&self) -> bool {
        self.ssbs
    }
}

pub(super) fn returns(x0: u64) -> Outcome {
    Outcome::Return([x0, 0, 0, 0])
}

#[test]
fn table_has_no_id_twice_and_finds_each() {
    for (n, row) in FUNCTIONS.iter().enumerate() {
        assert!(FUNCTIONS.iter().skip(n + 1).all(|other| other.id != row.id), "{:?}", row.id);
        assert!(core::ptr::eq(table::find(row.id).unwrap(), row), "{}", row.name);
        assert_eq!(row.id.name(), Some(row.name));
    }
}

#[test]
fn ids_that_differ_in_one_bit_are_not_found() {
    for row in &FUNCTIONS {
        for bit in 0..32 {
            let other = FunctionId(row.id.0 ^ 1 << bit);
            assert_eq!(table::find(other).is_some(), FUNCTIONS.iter().any(|row| row.id == other));
        }
    }
}

#[test]
fn unknown_ids_of_every_owner() {
    let vm = Vm::new(Version::V1_1);
    for id in [0, 1, 0x8000_0abc, 0x8000_0002, 0x8000_0004, 0x8400_0005, 0x8400_0007, 0x8400_000b, 0x8400_000e] {
        assert_eq!(vm.hvc(&[id]), returns(NS), "{id:#x}");
    }
    for id in [0xc400_000e, 0x8400_0013, 0xc400_0015, 0x8400_001f, 0x8500_0020, 0xc700_1234, 0x1234_5678, 0x95c1_ba5f] {
        assert_eq!(vm.hvc(&[id]), returns(NS), "{id:#x}");
    }
    // The SVE hint (SMCCC 1.3) is part of the id for a callee of 1.1; yielding calls do not exist.
    assert_eq!(vm.hvc(&[0x8401_0000]), returns(NS));
    assert_eq!(vm.hvc(&[0x0400_0000]), returns(NS));
}

#[test]
fn function_id_is_the_low_half_of_x0() {
    let vm = Vm::new(Version::V1_1);
    assert_eq!(vm.hvc(&[0xffff_ffff_8000_0000]), returns(0x1_0001));
}

#[test]
fn conduits() {
    let vm = Vm::new(Version::V1_1);
    assert_eq!(vm.call(Conduit::Hvc, 0xffff, false, &[0x8400_0000]), returns(0x1_0001));
    assert_eq!(vm.call(Conduit::Smc, 0, false, &[0x8400_0000]), returns(0x1_0001));
    assert_eq!(vm.call(Conduit::Smc, 1, false, &[0x8400_0000]), Outcome::ReturnX0(NS));
    assert_eq!(vm.call(Conduit::Smc, 0x8000, false, &[0x1234]), Outcome::ReturnX0(NS));
    for workaround in [0x8000_8000, 0x8000_7fff, 0x8000_3fff] {
        assert_eq!(vm.hvc(&[workaround]), returns(0));
        assert_eq!(vm.call(Conduit::Smc, 0, false, &[workaround]), returns(NS));
    }
}

#[test]
fn aarch32_callers_have_no_64_bit_functions() {
    let vm = Vm::new(Version::V1_1);
    for row in &FUNCTIONS {
        if row.id.is_64_bit() {
            assert_eq!(vm.call(Conduit::Hvc, 0, true, &[row.id.0.into()]), returns(NS), "{}", row.name);
            assert_eq!(vm.call(Conduit::Hvc, 0, true, &[0x8400_000a, row.id.0.into()]), returns(NS), "{}", row.name);
        }
    }
    assert_eq!(vm.call(Conduit::Hvc, 0, true, &[0x8400_000a, 0x8400_0003]), returns(0));
}

#[test]
fn versions() {
    for (version, encoding) in [
        (Version::V0_1, 1),
        (Version::V0_2, 2),
        (Version::V1_0, 0x1_0000),
        (Version::V1_1, 0x1_0001),
        (Version::V1_2, 0x1_0002),
        (Version::V1_3, 0x1_0003),
    ] {
        assert_eq!(version.encoding(), encoding);
        assert_eq!(Version::from_encoding(encoding), Some(version));
        let vm = Vm::new(version);
        assert_eq!(vm.hvc(&[0x8400_0000]), returns(if version == Version::V0_1 { NS } else { encoding.into() }));
        assert_eq!(vm.hvc(&[0x8000_0000]), returns(0x1_0001));
        let features = vm.hvc(&[0x8400_000a, 0x8400_0000]);
        assert_eq!(features, returns(if version >= Version::V1_0 { 0 } else { NS }));
        let reset2 = vm.hvc(&[0x8400_0012, 1]);
        assert_eq!(reset2, returns(if version >= Version::V1_1 { INVALID } else { NS }));
    }
    for encoding in [0, 3, 0x1_0004, 0x2_0000, u32::MAX] {
        assert_eq!(Version::from_encoding(encoding), None);
    }
}

#[test]
fn psci_features_of_every_id() {
    let vm = Vm::new(Version::V1_1);
    let known = [
        0x8400_0000,
        0x8400_0001,
        0xc400_0001,
        0x8400_0002,
        0x8400_0003,
        0xc400_0003,
        0x8400_0004,
        0xc400_0004,
        0x8400_0006,
        0x8400_0008,
        0x8400_0009,
        0x8400_000a,
        0x8400_0012,
        0xc400_0012,
        0x8000_0000u64,
    ];
    let asked = (0..0x20).flat_map(|n| [0x8400_0000 + n, 0xc400_0000 + n]);
    for id in asked.chain([0x8000_0000, 0x8000_0001, 0x8000_8000, 0xc500_0020, 0x95c1_ba60, 0, u64::MAX]) {
        assert_eq!(vm.hvc(&[0x8400_000a, id]), returns(if known.contains(&id) { 0 } else { NS }), "{id:#x}");
    }
    // 32-bit convention: what is above w1 does not count.
    assert_eq!(vm.hvc(&[0x8400_000a, 0xffff_0000_8400_0003]), returns(0));
    assert_eq!(Vm::new(Version::V1_0).hvc(&[0x8400_000a, 0x8400_0012]), returns(NS));
}

#[test]
fn arch_features() {
    let mut vm = Vm::new(Version::V1_1);
    let (wa1, wa2, wa3) = (0x8000_8000, 0x8000_7fff, 0x8000_3fff);
    let rows = [
        (Mitigation::Unaffected, true, [1, -2, 1]),
        (Mitigation::Mitigated, true, [0, -1, 0]),
        (Mitigation::Mitigated, false, [0, -2, 0]),
        (Mitigation::Vulnerable, true, [-1, -1, -1]),
    ];
    for (mitigation, ssbs, expected) in rows {
        (vm.mitigation, vm.ssbs) = (mitigation, ssbs);
        let found = [wa1, wa2, wa3].map(|id| vm.hvc(&[0x8000_0001, id]));
        assert_eq!(found, expected.map(|code: i64| returns(code as u64)), "{mitigation:?} {ssbs}");
    }
    vm.mitigation = Mitigation::Unaffected;
    for id in [0x8000_0000, 0x8000_0001, 0x8000_0002, 0x8400_0000, 0x8500_0020, 0xc500_0021, 0] {
        assert_eq!(vm.hvc(&[0x8000_0001, id]), returns(NS), "{id:#x}");
    }
    // Discovery by SMC tells of the calls that exist by HVC, as with KVM.
    assert_eq!(vm.call(Conduit::Smc, 0, false, &[0x8000_0001, wa1]), returns(1));
}

#[test]
fn cpu_on() {
    let vm = Vm::new(Version::V1_1);
    let entry = 0xffff_1234_4020_0000;
    assert_eq!(vm.hvc(&[0xc400_0003, 1, entry, 0x55_0000_0055]), returns(0));
    assert_eq!(vm.started.get(), Some((1, entry, 0x55_0000_0055)));
    assert_eq!(vm.hvc(&[0xc400_0003, 1, entry, 0x55]), returns(-4i64 as u64));
    assert_eq!(vm.hvc(&[0xc400_0003, 0, entry, 0x55]), returns(-4i64 as u64));
    vm.started.set(None);
    for bad in [2, 0x8000_0001, 0x100_0001, 0x1_0000_0100, 0x100_0000_0001, u64::MAX, 0x4000_0100] {
        assert_eq!(vm.hvc(&[0xc400_0003, bad, entry, 0x55]), returns(INVALID), "{bad:#x}");
    }
    assert_eq!(vm.started.get(), None);
    assert_eq!(vm.hvc(&[0xc400_0003, 0x01_0000_0101, entry, 0]), returns(0));
}

#[test]
fn cpu_on_of_the_32_bit_convention_cuts_its_arguments() {
    let vm = Vm::new(Version::V0_2);
    assert_eq!(vm.hvc(&[0x8400_0003, 0xffff_ffff_0000_0100, 0x1_4020_0000, 0x7_0000_0055]), returns(0));
    assert_eq!(vm.started.get(), Some((2, 0x4020_0000, 0x55)));
    // Affinity level 3 does not fit: the vCPU of 1.0.1.1 cannot be named, and 0.0.1.1 does not exist.
    assert_eq!(vm.hvc(&[0x8400_0003, 0x01_0000_0101, 0x4020_0000, 0]), returns(INVALID));
}

#[test]
fn psci_0_1() {
    let vm = Vm::new(Version::V0_1);
    assert_eq!(vm.hvc(&[0x95c1_ba5e]), returns(NS));
    assert_eq!(vm.hvc(&[0x95c1_ba61]), returns(NS));
    assert_eq!(vm.hvc(&[0x95c1_ba5f]), Outcome::CpuOff);
    assert_eq!(vm.hvc(&[0x95c1_ba60, 0]), returns(INVALID));
    assert_eq!(vm.hvc(&[0x95c1_ba60, 1, 0x1_4020_0000, 0x2_0000_0001]), returns(0));
    assert_eq!(vm.started.get(), Some((1, 0x1_4020_0000, 0x2_0000_0001)));
    for row in FUNCTIONS.iter().filter(|row| matches!(row.gate, table::Gate::PsciSince(_))) {
        assert_eq!(vm.hvc(&[row.id.0.into()]), returns(NS), "{}", row.name);
    }
}

#[test]
fn affinity_info() {
    let vm = Vm::new(Version::V1_1);
    let info = |affinity, level| vm.hvc(&[0xc400_0004, affinity, level]);
    assert_eq!(info(0, 0), returns(0));
    assert_eq!(info(1, 0), returns(1));
    assert_eq!(info(2, 0), returns(INVALID));
    assert_eq!(info(1, 1), returns(0), "the cluster of a vCPU that is on");
    assert_eq!(info(0x1ff, 1), returns(1), "a cluster that is off, bits below the level ignored");
    assert_eq!(info(0x200, 1), returns(INVALID));
    assert_eq!(info(0x100, 2), returns(0));
    assert_eq!(info(0x01_00ff_ffff, 3), returns(1));
    assert_eq!(info(0x02_0000_0000, 3), returns(INVALID));
    assert_eq!(info(0, 4), returns(INVALID));
    assert_eq!(info(0, u64::MAX), returns(INVALID));
    assert_eq!(info(0x8000_0000, 0), returns(INVALID));
    assert_eq!(info(0x100_0000_0000, 3), returns(INVALID));
    assert_eq!(vm.hvc(&[0x8400_0004, 0xf_0000_0001, 0xf_0000_0000]), returns(1), "32-bit arguments");
}

#[test]
fn power_of_one_vcpu_and_of_the_vm() {
    let vm = Vm::new(Version::V1_1);
    for id in [0x8400_0001, 0xc400_0001] {
        assert_eq!(vm.hvc(&[id, 0x1_0000, 0x4020_0000, 7]), Outcome::Suspend([0; 4]));
    }
    let off = vm.hvc(&[0x8400_0002]);
    assert_eq!(off, Outcome::CpuOff);
    assert_eq!(off.results(), Results::Four([0; 4]));
    assert_eq!(vm.hvc(&[0x8400_0006]), returns(2));
    let internal_failure = Results::Four([-6i64 as u64, 0, 0, 0]);
    for (id, event) in [(0x8400_0008, SystemEvent::Off), (0x8400_0009, SystemEvent::Reset)] {
        assert_eq!(vm.hvc(&[id]), Outcome::System(event));
        assert_eq!(vm.hvc(&[id]).results(), internal_failure);
    }
}

#[test]
fn system_reset2() {
    let vm = Vm::new(Version::V1_1);
    for id in [0x8400_0012, 0xc400_0012] {
        for reset_type in [0, 0x8000_0000, 0xffff_ffff] {
            let expected = Outcome::System(SystemEvent::Reset2 { reset_type, cookie: 0x77 });
            assert_eq!(vm.hvc(&[id, reset_type, 0x77]), expected);
        }
        for reset_type in [1, 0x7fff_ffff] {
            assert_eq!(vm.hvc(&[id, reset_type, 0x77]), returns(INVALID));
        }
    }
    let narrow = Outcome::System(SystemEvent::Reset2 { reset_type: 0, cookie: 1 });
    assert_eq!(vm.hvc(&[0x8400_0012, 0x1_0000_0000, 0x1_0000_0001]), narrow);
}

#[test]
fn a_vm_without_vcpus_is_no_trap() {
    let vm = Vm { vcpus: RefCell::new(vec![]), ..Vm::new(Version::V1_1) };
    assert_eq!(vm.hvc(&[0xc400_0003, 0, 0, 0]), returns(INVALID));
    assert_eq!(vm.hvc(&[0xc400_0004, 0, 0]), returns(INVALID));
}

/// Ids near everything that is defined, and anything else.
fn any_id() -> impl Strategy<Value = u64> {
    let near = (0..FUNCTIONS.len(), 0u32..3, any::<u32>()).prop_map(|(row, off, high)| {
        u64::from(FUNCTIONS[row].id.0.wrapping_add(off).wrapping_sub(1)) | u64::from(high) << 32
    });
    prop_oneof![near, any::<u64>(), (0u64..0x40, 0u64..0x30, 0u64..4).prop_map(|(o, n, top)| top << 30 | o << 24 | n)]
}

/// Arguments a guest would use, and anything else.
fn any_argument() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..5, any_id(), any::<u64>(), (0u64..64).prop_map(|bit| 1 << bit)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Any call is answered; whatever has no row, or no open gate, is NOT_SUPPORTED with x1 to x3 zero; only CPU_ON
    /// starts anything.
    #[test]
    fn any_call_is_answered(
        id in any_id(), arguments in proptest::array::uniform3(any_argument()),
        smc in any::<bool>(), immediate in prop_oneof![Just(0u16), any::<u16>()], aarch32 in any::<bool>(),
        version in prop_oneof![Just(Version::V0_1), Just(Version::V0_2), Just(Version::V1_1), Just(Version::V1_3)],
    ) {
        let vm = Vm::new(version);
        let conduit = if smc { Conduit::Smc } else { Conduit::Hvc };
        let [x1, x2, x3] = arguments;
        let outcome = vm.call(conduit, immediate, aarch32, &[id, x1, x2, x3]);
        let row = FUNCTIONS.iter().find(|row| row.id.0 == id as u32);
        if is_unknown(FunctionId(id as u32)) && !(smc && immediate != 0) {
            prop_assert_eq!(outcome, returns(NS));
        }
        if smc && immediate != 0 {
            prop_assert_eq!(outcome, Outcome::ReturnX0(NS));
        } else if row.is_none() && id as u32 & 0xffff_ff00 == 0xc600_0100 && !aarch32 {
            prop_assert_eq!(outcome, Outcome::ReturnX0(-1000i64 as u64));
        } else if row.is_none_or(|row| aarch32 && row.id.is_64_bit()) {
            prop_assert_eq!(outcome, returns(NS));
        } else if let Outcome::Return([_, x1, x2, x3]) = outcome
            && row.is_some_and(|row| row.id.owner() == 0 || matches!(row.gate, table::Gate::PsciSince(_)))
        {
            prop_assert_eq!([x1, x2, x3], [0; 3]);
        }
        if row.is_none_or(|row| row.function != Function::CpuOn) || outcome != returns(0) {
            prop_assert_eq!(vm.started.get(), None);
        }
    }

    /// A function that discovery reports exists, and the other way round for PSCI's own.
    #[test]
    fn discovery_agrees_with_dispatch(
        row in 0..FUNCTIONS.len(),
        version in prop_oneof![Just(Version::V1_0), Just(Version::V1_1)],
    ) {
        let vm = Vm::new(version);
        let row = &FUNCTIONS[row];
        let known = vm.hvc(&[0x8400_000a, row.id.0.into()]) != returns(NS);
        let exists = vm.hvc(&[row.id.0.into(), 0x8400_000a, 0, 0]) != returns(NS);
        match row.discovery {
            Discovery::PsciFeatures(_) => prop_assert_eq!(known, exists, "{}", row.name),
            _ => prop_assert!(!known, "{}", row.name),
        }
    }
}
