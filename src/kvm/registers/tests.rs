//! Tests of the registers: ids and errors one by one, and saving and restoring whole vCPUs.

use core::cell::{Cell, RefCell};

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{
    arch::pmuv3::GuestPmu,
    arch::registers::{Debug, El1Registers, FpState, Keys, Timers},
    hypercall::smccc::Mitigation,
    kvm::{
        firmware::{Firmware, Surroundings as FirmwareSurroundings},
        uapi::Regs,
    },
    vdev::idregs::{GuestFeatures, HostIdRegisters},
};

/// A vCPU in memory, alone in its VM.
#[derive(Debug)]
struct Fake {
    context: VcpuContext,
    el1: El1Registers,
    fp: FpState,
    timers: Timers,
    keys: Keys,
    debug: Debug,
    os_lock: bool,
    deferred_serror: u64,
    pmu: GuestPmu,
    kept: KeptRegisters,
    vm: FakeVm,
}

#[derive(Debug)]
struct FakeVm {
    options: Options,
    now: u64,
    offset: Cell<u64>,
    physical_offset: u64,
    mpidr: Cell<u64>,
    counters: Cell<u8>,
    ids: RefCell<GuestIdRegisters>,
    firmware: RefCell<Firmware>,
    ran: bool,
}

impl FakeVm {
    fn firmware_around(&self) -> FirmwareSurroundings {
        FirmwareSurroundings { psci_0_2: true, ran: self.ran, mitigation: |_| Mitigation::Mitigated }
    }
}

impl Surroundings for &FakeVm {
    fn options(&self) -> Options {
        self.options
    }
    fn has_aarch32(&self) -> bool {
        self.ids.borrow().has_aarch32()
    }
    fn now(&self) -> u64 {
        self.now
    }
    fn counter_offset(&self) -> u64 {
        self.offset.get()
    }
    fn set_counter_offset(&self, offset: u64) {
        self.offset.set(offset);
    }
    fn physical_offset(&self) -> u64 {
        self.physical_offset
    }
    fn machine_register(&self, register: MachineRegister) -> u64 {
        0x4100 + register as u64
    }
    fn ccsidr(&self, selector: usize) -> u32 {
        0x700f_e010 + selector as u32
    }
    fn mpidr(&self) -> u64 {
        self.mpidr.get()
    }
    fn set_mpidr(&self, value: u64) -> Result<(), Errno> {
        self.mpidr.set(value);
        Ok(())
    }
    fn pmu_version(&self) -> u8 {
        self.ids.borrow().pmu_version()
    }
    fn event_counters(&self) -> u8 {
        self.counters.get()
    }
    fn set_event_counters(&self, count: u8) {
        if count <= 6 && !self.ran {
            self.counters.set(count);
        }
    }
    fn id_register(&self, register: IdRegister) -> u64 {
        self.ids.borrow().get(register)
    }
    fn set_id_register(&self, register: IdRegister, value: u64) -> Result<(), Errno> {
        Ok(self.ids.borrow_mut().set(register, value, self.ran)?)
    }
    fn firmware_register(&self, register: firmware::Register) -> u64 {
        self.firmware.borrow().get(register, &self.firmware_around())
    }
    fn set_firmware_register(&self, register: firmware::Register, value: u64) -> Result<(), Errno> {
        self.firmware.borrow_mut().set(register, value, &self.firmware_around())
    }
}

/// A machine with AArch32 at EL0, Armv8.2's debug, FEAT_PMUv3p5 and fifteen of every other feature.
fn ids() -> GuestIdRegisters {
    let host = HostIdRegisters::new(|register| match (register.crm(), register.op2()) {
        (4, 0) => 0x1111_1111_1100_1112,
        (5, 0) => 0x0000_0000_f0f0_f608,
        (1, 2) => 8,
        _ => 0x1111_1111_1111_1111,
    });
    GuestIdRegisters::new(&host, &GuestFeatures { ipa_bits: 40, gic_system_registers: true })
}

impl Fake {
    fn new() -> Self {
        Self {
            context: VcpuContext::reset(),
            el1: El1Registers::default(),
            fp: FpState::default(),
            timers: Timers::default(),
            keys: Keys::default(),
            debug: Debug::default(),
            os_lock: false,
            deferred_serror: 0,
            pmu: GuestPmu::default(),
            kept: KeptRegisters::RESET,
            vm: FakeVm {
                options: Options { pointer_authentication: true, aarch32_el1: false, pmu: true },
                now: 1_000_000,
                offset: Cell::new(400_000),
                physical_offset: 0,
                mpidr: Cell::new(0x8000_0000),
                counters: Cell::new(6),
                ids: RefCell::new(ids()),
                firmware: RefCell::new(Firmware::NEW),
                ran: false,
            },
        }
    }

    fn registers(&mut self) -> Registers<'_, &FakeVm> {
        Registers {
            context: &mut self.context,
            parked: Parked {
                el1: &mut self.el1,
                fp: &mut self.fp,
                timers: &mut self.timers,
                keys: &mut self.keys,
                debug: &mut self.debug,
                os_lock: &mut self.os_lock,
                pmu: Some(&mut self.pmu),
                deferred_serror: &mut self.deferred_serror,
            },
            kept: &mut self.kept,
            around: &self.vm,
        }
    }

    fn get(&mut self, id: u64) -> Result<Value, Errno> {
        self.registers().get(id)
    }

    fn set(&mut self, id: u64, value: impl Into<Value>) -> Result<(), Errno> {
        self.registers().set(id, value.into())
    }

    fn save(&mut self) -> Vec<(u64, Value)> {
        let options = self.vm.options;
        list(options).map(|id| (id, self.get(id).unwrap_or_else(|errno| panic!("{id:#x}: {errno:?}")))).collect()
    }
}

const ALL: Options = Options { pointer_authentication: true, aarch32_el1: false, pmu: true };

fn system(encoding: u64) -> u64 {
    0x6030_0000_0013_0000 | encoding
}

#[test]
fn ids_are_linux_s() {
    for (field, id) in [
        (core::mem::offset_of!(Regs, x), 0x6030_0000_0010_0000),
        (core::mem::offset_of!(Regs, sp), 0x6030_0000_0010_003e),
        (core::mem::offset_of!(Regs, pc), reg::PC),
        (core::mem::offset_of!(Regs, pstate), reg::PSTATE),
        (core::mem::offset_of!(Regs, sp_el1), 0x6030_0000_0010_0044),
        (core::mem::offset_of!(Regs, elr_el1), 0x6030_0000_0010_0046),
        (core::mem::offset_of!(Regs, spsr), 0x6030_0000_0010_0048),
        (core::mem::offset_of!(Regs, v), 0x6040_0000_0010_0054),
        (core::mem::offset_of!(Regs, fpsr), 0x6020_0000_0010_00d4),
        (core::mem::offset_of!(Regs, fpcr), 0x6020_0000_0010_00d5),
    ] {
        assert_eq!(id & 0xffff, field as u64 / 4);
        assert!(list(ALL).any(|listed| listed == id), "{id:#x}");
    }
    assert_eq!(
        (reg::PC, reg::PSTATE, reg::x(30)),
        (0x6030_0000_0010_0040, 0x6030_0000_0010_0042, 0x6030_0000_0010_003c)
    );
}

#[test]
fn the_list_is_kvm_s() {
    let ids: Vec<u64> = list(ALL).collect();
    // Core; firmware; timers; MIDR, REVIDR, AIDR; EL1 and EL0, the PMU, debug and identification; caches.
    assert_eq!(ids.len(), 75 + 8 + 6 + 3 + (44 + 74 + 64 + 56) + 14);
    assert_eq!(list(Options::default()).count(), ids.len() - 10 - 74);
    let mut unique = ids.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), ids.len());
    let at = |id| ids.iter().position(|other| *other == id).unwrap_or_else(|| panic!("{id:#x}"));
    for (first, then) in [
        (0x6020_0000_0010_00d5, 0x6030_0000_0014_0000), // FPCR, PSCI_VERSION
        (0x6030_0000_0014_0003, 0x6030_0000_0016_0000),
        (0x6030_0000_0016_0003, system(0xdf19)), // TIMER_CTL
        (system(0xdf19), system(0xdf1a)),        // TIMER_CNT
        (system(0xdf1a), system(0xdf02)),        // TIMER_CVAL
        (system(0xdf02), system(0xdf11)),        // PTIMER_CTL
        (system(0xdf11), system(0xdf01)),        // PTIMER_CNT
        (system(0xdf01), system(0xdf12)),        // PTIMER_CVAL
        (system(0xdf12), system(0xc000)),        // MIDR
        (system(0xc000), system(0xc006)),        // REVIDR
        (system(0xc006), system(0xc807)),        // AIDR
        (system(0xc807), system(0x8004)),        // DBGBVR0
        (system(0xe298), 0x6020_0000_0011_0000), // FPEXC32, CCSIDR
        (0x6020_0000_0011_000c, 0x6020_0000_0011_000d),
    ] {
        assert_eq!(at(first) + 1, at(then), "{first:#x}");
    }
    let systems: Vec<u64> = ids[at(system(0x8004))..=at(system(0xe298))].to_vec();
    assert!(systems.is_sorted());
}

#[test]
fn unknown_ids() {
    let mut vcpu = Fake::new();
    for (id, errno) in [
        // Another architecture, bits in 51:32.
        (0x4030_0000_0010_0000, Errno::EINVAL),
        (0x6030_0001_0010_0000, Errno::EINVAL),
        (0x6002_0000_0010_0000, Errno::EINVAL),
        // Core: beyond the end, the padding, the middle of a register, another size.
        (0x6030_0000_0010_00d8, Errno::ENOENT),
        (0x6020_0000_0010_00d7, Errno::ENOENT),
        (0x6020_0000_0010_00d6, Errno::EINVAL),
        (0x6030_0000_0010_00d6, Errno::ENOENT),
        (0x6030_0000_1010_0000, Errno::ENOENT),
        (0x6030_0000_0010_0052, Errno::EINVAL),
        (0x6030_0000_0010_0001, Errno::EINVAL),
        (0x6020_0000_0010_0000, Errno::EINVAL),
        (0x6000_0000_0010_0000, Errno::EINVAL),
        (0x6030_0000_0010_0054, Errno::EINVAL),
        (0x6040_0000_0010_0056, Errno::EINVAL),
        (0x6080_0000_0010_00d0, Errno::ENOENT),
        (0x60f0_0000_0010_0000, Errno::ENOENT),
        // Caches.
        (0x6020_0000_0011_000e, Errno::ENOENT),
        (0x6020_0000_0011_0100, Errno::ENOENT),
        (0x6030_0000_0011_0000, Errno::ENOENT),
        // System registers: CCSIDR_EL1, SP_EL1, ICC_PMR_EL1, CNTFRQ_EL0, PMCEID0_EL0, ZCR_EL1; another size, bits of no field.
        (system(0xc800), Errno::ENOENT),
        (system(0xe208), Errno::ENOENT),
        (system(0xc230), Errno::ENOENT),
        (system(0xdf00), Errno::ENOENT),
        (system(0xdce6), Errno::ENOENT),
        (system(0xc090), Errno::ENOENT),
        (0x6020_0000_0013_c080, Errno::ENOENT),
        (0x6040_0000_0013_c000, Errno::ENOENT),
        (0x6030_0000_1013_c080, Errno::ENOENT),
        // Groups that there are not, SVE among them; firmware.
        (0x6030_0000_0012_c000, Errno::ENOENT),
        (0x6060_0000_0015_ffff, Errno::ENOENT),
        (0x6080_0000_0015_03ff, Errno::ENOENT),
        (0x6080_0000_0015_0400, Errno::EINVAL),
        (0x6050_0000_0015_061f, Errno::ENOENT),
        (0x6050_0000_0015_0620, Errno::EINVAL),
        (0x6030_0000_0015_0000, Errno::EINVAL),
        (0x6030_0000_0014_0004, Errno::ENOENT),
        (0x6020_0000_0014_0000, Errno::ENOENT),
        (0x6030_0000_0017_0000, Errno::ENOENT),
    ] {
        assert_eq!(vcpu.get(id), Err(errno), "{id:#x}");
        assert_eq!(vcpu.set(id, 0), Err(errno), "{id:#x}");
    }
    vcpu.vm.options = Options::default();
    assert_eq!(vcpu.get(system(0xc108)), Err(Errno::ENOENT), "keys without pointer authentication");
    assert_eq!(vcpu.get(system(0xdce0)), Err(Errno::ENOENT), "PMCR_EL0 without a PMU");
}

#[test]
fn sizes() {
    for id in list(ALL) {
        let size = 1 << (id >> 52 & 0xf);
        assert_eq!(size_to_set(id), Ok(size), "{id:#x}");
        let mut vcpu = Fake::new();
        assert_eq!(vcpu.get(id).map(Value::size), Ok(size), "{id:#x}");
        for other in [Value::U32(0), Value::U64(0), Value::U128(0)] {
            if other.size() != size {
                assert_eq!(vcpu.set(id, other), Err(Errno::EINVAL), "{id:#x}");
            }
        }
    }
    // The value of a system register is read before the register is looked for.
    assert_eq!(size_to_set(system(0xc800)), Ok(8));
    assert_eq!(size_to_set(0x6030_0000_0012_0000), Ok(8));
    for (id, errno) in [
        (0x6030_0001_0010_0000, Errno::EINVAL),
        (0x6020_0000_0010_0000, Errno::EINVAL),
        (0x6020_0000_0014_0000, Errno::ENOENT),
        (0x6080_0000_0015_0000, Errno::ENOENT),
        (0x6080_0000_0015_ffff, Errno::EINVAL),
        (0x6020_0000_0011_000e, Errno::ENOENT),
    ] {
        assert_eq!(size_to_set(id), Err(errno), "{id:#x}");
    }
}

#[test]
fn places() {
    let mut vcpu = Fake::new();
    vcpu.set(0x6040_0000_0010_00d0, Value::U128(0x0123_4567_89ab_cdef_0011_2233_4455_6677)).unwrap();
    assert_eq!(vcpu.fp.v[31], [0x0011_2233_4455_6677, 0x0123_4567_89ab_cdef]);
    for (id, value) in [(0x6020_0000_0010_00d4, 0x0800_009f), (0x6020_0000_0010_00d5, 0x0300_0000)] {
        vcpu.set(id, Value::U32(value)).unwrap();
        assert_eq!(vcpu.get(id), Ok(Value::U32(value)));
    }
    assert_eq!((vcpu.fp.fpsr, vcpu.fp.fpcr), (0x0800_009f, 0x0300_0000));
    for (id, value) in [(0x3e, 1), (0x44, 2), (0x46, 3), (0x48, 4), (0x4a, 5), (0x50, 6), (0x3c, 7)] {
        vcpu.set(0x6030_0000_0010_0000 | id, value).unwrap();
    }
    let el1 = &vcpu.el1;
    assert_eq!((el1.sp_el0, el1.sp_el1, el1.elr, el1.spsr), (1, 2, 3, 4));
    assert_eq!((vcpu.kept.aarch32.spsr, vcpu.context.gpr[30]), ([5, 0, 0, 6], 7));
    for (id, value) in [(0xc080, 8), (0x807f, 9), (0xc119, 10), (0xc609, 11), (0x8010, 12), (0xa038, 13)] {
        vcpu.set(system(id), value).unwrap();
    }
    assert_eq!((vcpu.el1.sctlr, vcpu.debug.watchpoints[15][1], vcpu.keys.0[9]), (8, 9, 10));
    assert_eq!((vcpu.deferred_serror, vcpu.el1.mdccint, vcpu.kept.aarch32.dbgvcr), (11, 12, 13));
    assert_eq!(vcpu.get(system(0xe298)), Ok(Value::U64(0x700)));
}

#[test]
fn pstate() {
    let mut vcpu = Fake::new();
    for (value, result) in [
        (0x3c5, Ok(())),
        (0x6000_0000, Ok(())),
        (0x4, Ok(())),
        (0x3cd, Err(Errno::EINVAL)),
        (0x3c9, Err(Errno::EINVAL)),
        (0x3c8, Err(Errno::EINVAL)),
        (0x1d3, Err(Errno::EINVAL)),
        (0x1, Err(Errno::EINVAL)),
        (0x1f, Err(Errno::EINVAL)),
    ] {
        assert_eq!(vcpu.set(reg::PSTATE, value), result, "{value:#x}");
    }
    assert_eq!(vcpu.context.pstate, 4, "the last good one");
    for n in 0..31 {
        vcpu.set(reg::x(n), u64::MAX).unwrap();
    }
    vcpu.set(reg::PC, u64::MAX).unwrap();
    vcpu.set(reg::PSTATE, 0x10).unwrap();
    assert!(vcpu.context.gpr[..15].iter().all(|&register| register == 0xffff_ffff));
    assert!(vcpu.context.gpr[15..].iter().all(|&register| register == u64::MAX));
    assert_eq!(vcpu.context.pc, 0xffff_ffff);
    vcpu.set(reg::x(3), 1 << 40 | 5).unwrap();
    assert_eq!(vcpu.context.gpr[3], 5);
    let host = HostIdRegisters::new(|_| 0x1111_1111_1111_1111);
    let features = GuestFeatures { ipa_bits: 40, gic_system_registers: true };
    *vcpu.vm.ids.borrow_mut() = GuestIdRegisters::new(&host, &features);
    assert_eq!(vcpu.set(reg::PSTATE, 0x10), Err(Errno::EINVAL), "no AArch32");
}

#[test]
fn pstate_where_el1_is_aarch32() {
    let mut vcpu = Fake::new();
    vcpu.vm.options.aarch32_el1 = true;
    for n in 0..31 {
        vcpu.set(reg::x(n), u64::MAX).unwrap();
    }
    for m in 0..0x20 {
        let is_there = [0x10, 0x11, 0x12, 0x13, 0x17, 0x1b, 0x1f].contains(&m);
        let expected = if is_there { Ok(()) } else { Err(Errno::EINVAL) };
        assert_eq!(vcpu.set(reg::PSTATE, 0x1c0 | m), expected, "{m:#x}");
    }
    // All that is banked has 32 bits.
    assert!(vcpu.context.gpr.iter().all(|&register| register == 0xffff_ffff));
    let aarch32 = |n: u64| 0x6030_0000_0010_0048 + 2 * n;
    for n in 0..5 {
        vcpu.set(aarch32(n), 0x1d0 + n).unwrap();
    }
    assert_eq!((vcpu.el1.spsr, vcpu.kept.aarch32.spsr), (0x1d0, [0x1d1, 0x1d2, 0x1d3, 0x1d4]));
}

#[test]
fn what_is_the_machine_s() {
    let mut vcpu = Fake::new();
    for id in [0xc000, 0xc006, 0xc807, 0xc801, 0xd801, 0xc081] {
        let Ok(Value::U64(now)) = vcpu.get(system(id)) else { panic!("{id:#x}") };
        assert_eq!(vcpu.set(system(id), now), Ok(()), "{id:#x}");
        assert_eq!(vcpu.set(system(id), now + 1), Err(Errno::EINVAL), "{id:#x}");
    }
    let ccsidr = 0x6020_0000_0011_0003;
    assert_eq!(vcpu.get(ccsidr), Ok(Value::U32(0x700f_e013)));
    assert_eq!(vcpu.set(ccsidr, Value::U32(0x700f_e013)), Ok(()));
    assert_eq!(vcpu.set(ccsidr, Value::U32(0x700f_e012)), Err(Errno::EINVAL));
}

#[test]
fn pmu() {
    const N: u64 = 6 << 11;
    let mut vcpu = Fake::new();
    let control = system(0xdce0);
    assert_eq!(vcpu.get(control), Ok(Value::U64(N)));
    // What sets and what clears are one register, of the counters that there are.
    for [set, clear] in [[0xc4f1, 0xc4f2], [0xdce1, 0xdce2], [0xdcf3, 0xdce3]].map(|pair| pair.map(system)) {
        vcpu.set(set, u64::MAX).unwrap();
        assert_eq!(vcpu.get(clear), Ok(Value::U64(0x8000_003f)));
        vcpu.set(clear, 0x8000_0011).unwrap();
        assert_eq!(vcpu.get(set), Ok(Value::U64(0x8000_0011)));
    }
    assert!(!vcpu.pmu.output(6), "it is off");
    vcpu.set(control, 5 << 11 | 0x1ff).unwrap();
    assert_eq!(vcpu.get(control), Ok(Value::U64(5 << 11 | 0xff)));
    assert!(vcpu.pmu.output(5));
    for wrong in [7, 31] {
        vcpu.set(control, wrong << 11 | 1).unwrap();
        assert_eq!(vcpu.get(control), Ok(Value::U64(5 << 11 | 1)), "the machine has fewer");
    }
    vcpu.set(control, 4 << 11).unwrap();
    assert_eq!(vcpu.get(system(0xdcf3)), Ok(Value::U64(0x8000_0001)));
    vcpu.vm.ran = true;
    vcpu.set(control, 2 << 11 | 1).unwrap();
    assert_eq!(vcpu.get(control), Ok(Value::U64(4 << 11 | 1)), "it has run");
    for (id, value) in [(0xdf40, 1), (0xdf5e, 2), (0xdf60, 3), (0xdf7e, 4), (0xdf7f, 5), (0xdce8, u64::MAX)] {
        vcpu.set(system(id), value).unwrap();
        assert_eq!(vcpu.get(system(id)), Ok(Value::U64(value)));
    }
    vcpu.set(system(0xdce4), 1).unwrap();
    assert_eq!(vcpu.get(system(0xdce4)), Ok(Value::U64(0)), "PMSWINC_EL0 sets nothing");
    assert_eq!(vcpu.get(system(0xdf40)), Ok(Value::U64(1)));
    // Where EL0 has no AArch32 the cycle counter is long.
    *vcpu.vm.ids.borrow_mut() = GuestIdRegisters::new(
        &HostIdRegisters::new(|_| 0x1111_1111_1111_1111),
        &GuestFeatures { ipa_bits: 40, gic_system_registers: true },
    );
    vcpu.set(control, 0).unwrap();
    assert_eq!(vcpu.get(control), Ok(Value::U64(4 << 11 | 1 << 6)));
}

#[test]
fn os_lock() {
    let mut vcpu = Fake::new();
    let oslsr = system(0x808c);
    assert_eq!(vcpu.get(oslsr), Ok(Value::U64(0x8)));
    assert_eq!(vcpu.set(oslsr, 0xa), Ok(()));
    assert!(vcpu.os_lock);
    assert_eq!(vcpu.get(oslsr), Ok(Value::U64(0xa)));
    for wrong in [0, 2, 9, 0xc, 1 << 32 | 8] {
        assert_eq!(vcpu.set(oslsr, wrong), Err(Errno::EINVAL), "{wrong:#x}");
    }
    assert_eq!(vcpu.set(oslsr, 8), Ok(()));
    assert!(!vcpu.os_lock);
}

#[test]
fn id_registers() {
    let mut vcpu = Fake::new();
    let pfr0 = system(0xc020);
    let Ok(Value::U64(most)) = vcpu.get(pfr0) else { panic!() };
    let less = most - (1 << 60);
    assert_eq!(vcpu.set(pfr0, most + (1 << 60)), Err(Errno::EINVAL));
    assert_eq!(vcpu.set(pfr0, less), Ok(()));
    assert_eq!(vcpu.get(pfr0), Ok(Value::U64(less)));
    vcpu.vm.ran = true;
    assert_eq!(vcpu.set(pfr0, less), Ok(()));
    assert_eq!(vcpu.set(pfr0, most), Err(Errno::EBUSY));
    assert_eq!(vcpu.set(system(0xc028), 0), Err(Errno::EINVAL), "a debug version that nobody has");
    vcpu.vm.ran = false;
    for hidden in [0xc00b, 0xc01b, 0xc023, 0xc02c, 0xc03f] {
        assert_eq!(vcpu.get(system(hidden)), Ok(Value::U64(0)), "{hidden:#x}");
        assert_eq!(vcpu.set(system(hidden), 1), Err(Errno::EINVAL), "{hidden:#x}");
        assert_eq!(vcpu.set(system(hidden), 0), Ok(()), "{hidden:#x}");
    }
}

#[test]
fn masks() {
    let masks = writable_masks(&ids());
    for register in IdRegister::all() {
        let index = usize::from(register.crm()) * 8 + usize::from(register.op2());
        assert_eq!(masks[index], ids().writable(register));
    }
    assert_ne!(masks[4 * 8], 0);
    assert!(masks[..8].iter().chain(&masks[64..]).all(|&mask| mask == 0));
}

#[test]
fn timers() {
    let mut vcpu = Fake::new();
    // The virtual counter is at 600 000, the physical one at 1 000 000.
    for (control, count, compare, now) in [
        (reg::TIMER_CTL, reg::TIMER_CNT, reg::TIMER_CVAL, 600_000),
        (reg::PTIMER_CTL, reg::PTIMER_CNT, reg::PTIMER_CVAL, 1_000_000),
    ] {
        assert_eq!(vcpu.get(count), Ok(Value::U64(now)));
        vcpu.set(control, 7).unwrap();
        assert_eq!(vcpu.get(control), Ok(Value::U64(7)));
        vcpu.set(compare, now + 1).unwrap();
        assert_eq!(vcpu.get(control), Ok(Value::U64(3)));
        vcpu.set(control, 0).unwrap();
        vcpu.set(compare, now).unwrap();
        assert_eq!(vcpu.get(control), Ok(Value::U64(4)), "although it is off");
        assert_eq!(vcpu.get(compare), Ok(Value::U64(now)));
    }
    assert_eq!((vcpu.timers.virtual_control, vcpu.timers.virtual_compare), (0, 600_000));
    assert_eq!((vcpu.timers.physical_control, vcpu.timers.physical_compare), (0, 1_000_000));
    vcpu.set(reg::TIMER_CNT, 0).unwrap();
    assert_eq!(vcpu.vm.offset.get(), 1_000_000);
    assert_eq!(vcpu.get(reg::TIMER_CNT), Ok(Value::U64(0)));
    assert_eq!(vcpu.timers.virtual_compare, 600_000, "not moved along");
    vcpu.set(reg::TIMER_CNT, u64::MAX).unwrap();
    assert_eq!(vcpu.get(reg::TIMER_CNT), Ok(Value::U64(u64::MAX)));
    vcpu.set(reg::PTIMER_CNT, 5).unwrap();
    assert_eq!(vcpu.get(reg::PTIMER_CNT), Ok(Value::U64(1_000_000)));
    vcpu.vm.physical_offset = 300_000;
    assert_eq!(vcpu.get(reg::PTIMER_CNT), Ok(Value::U64(700_000)));
    assert_eq!(vcpu.get(reg::PTIMER_CVAL), Ok(Value::U64(700_000)), "due at the same moment");
    vcpu.set(reg::PTIMER_CVAL, 700_001).unwrap();
    assert_eq!(vcpu.get(reg::PTIMER_CTL), Ok(Value::U64(0)));
    assert_eq!(vcpu.timers.physical_compare, 1_000_001);
}

#[test]
fn values() {
    for value in [Value::U32(0x0102_0304), Value::U64(u64::MAX - 1), Value::U128(1 << 100)] {
        let bytes = value.to_bytes();
        assert_eq!(Value::from_bytes(&bytes[..value.size()]), Some(value));
    }
    assert_eq!(Value::U32(0x0102_0304).to_bytes()[..5], [4, 3, 2, 1, 0]);
    for size in [0, 1, 2, 3, 5, 12, 17, 32] {
        assert_eq!(Value::from_bytes(&vec![0; size]), None);
    }
}

/// A vCPU whose registers were set to whatever they accept.
fn any_vcpu() -> impl Strategy<Value = Fake> {
    (vec(any::<(u128, u8)>(), list(ALL).count()), 0u64..1 << 40).prop_map(|(noise, now)| {
        let mut vcpu = Fake::new();
        vcpu.vm.now = now;
        for (id, (value, field)) in list(ALL).zip(noise) {
            let accepted = match vcpu.get(id) {
                Ok(Value::U32(_)) => vcpu.set(id, Value::U32(value as u32)),
                // Some accept anything, others only what is like what they are.
                Ok(Value::U64(now)) => {
                    let bit = now ^ 1 << (field % 64);
                    let field = now & !(0xf << (field % 16 * 4));
                    let mut tries = [value as u64, bit, field].into_iter();
                    tries.find_map(|value| vcpu.set(id, value).ok()).ok_or(Errno::EINVAL)
                }
                Ok(Value::U128(_)) => vcpu.set(id, Value::U128(value)),
                Err(errno) => Err(errno),
            };
            // What cannot change did not.
            let _ = accepted;
        }
        vcpu
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A vCPU that is saved and restored into another VM is the same, whatever was there; and so is one that is restored
    /// over itself, even when it has run.
    #[test]
    fn save_and_restore(mut source in any_vcpu(), mut target in any_vcpu(), mut noise in any_vcpu()) {
        let saved = source.save();
        target.vm.now = source.vm.now;
        // As KVM_ARM_VCPU_INIT leaves it: in AArch32, what is written to x0 to x14 is cut.
        target.context.pstate = crate::vcpu::context::PSTATE_RESET;
        for &(id, value) in &saved {
            prop_assert_eq!(target.set(id, value), Ok(()), "{:#x}: {:x?}", id, value);
        }
        prop_assert_eq!(target.save(), saved);

        noise.vm.ran = true;
        let saved = noise.save();
        for &(id, value) in &saved {
            prop_assert_eq!(noise.set(id, value), Ok(()), "{:#x}: {:x?}", id, value);
        }
        prop_assert_eq!(noise.save(), saved);
    }

    /// Any id and value: what is read is what was written, or the same as before; nothing that is not listed is there.
    #[test]
    fn any_id(
        id in prop_oneof![
            any::<u64>(),
            (0u64..16, 0x10u64..0x18, any::<u16>())
                .prop_map(|(size, group, number)| reg::ARM64 | size << 52 | group << 16 | u64::from(number)),
        ],
        value: u64,
    ) {
        let mut vcpu = Fake::new();
        let before = vcpu.get(id);
        prop_assert_eq!(before.is_ok(), list(ALL).any(|listed| listed == id));
        let result = vcpu.set(id, value);
        match before {
            Err(errno) => prop_assert_eq!(result, Err(errno)),
            Ok(_) if result.is_err() => prop_assert_eq!(vcpu.get(id), before),
            Ok(_) => {}
        }
    }

    /// The same for the ids that there are.
    #[test]
    fn any_value(n in 0..list(ALL).count(), value: u64) {
        let id = list(ALL).nth(n).unwrap();
        let mut vcpu = Fake::new();
        let before = vcpu.get(id).unwrap();
        if vcpu.set(id, value).is_ok() {
            let is_odd = TIMERS.iter().any(|(timer, _)| *timer == id) || (system(0xc008)..system(0xc040)).contains(&id)
                || firmware::find(id).is_some()
                // PMCR_EL0, PMSWINC_EL0, and what has a bit for each counter.
                || [0xc4f1, 0xc4f2, 0xdce0, 0xdce1, 0xdce2, 0xdce3, 0xdce4, 0xdcf3].contains(&(id & 0xffff));
            let after = vcpu.get(id).unwrap();
            prop_assert!(after == Value::U64(value) || is_odd, "{:#x}: {:x?}", id, after);
        } else {
            prop_assert_eq!(vcpu.get(id).unwrap(), before);
        }
    }
}
