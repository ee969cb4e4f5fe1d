//! Each promise of the module, one by one.

use std::cell::RefCell;
use std::vec::Vec;

use super::fake::{FakeGic, FakeMachine, Interrupt, KEPT, LIMIT, TIMER_PRIORITY, TIMERS, priority};
use super::{
    AccessSize::{self, Byte, Double, Half, Word},
    Accessor, Control, Frame, INTERRUPTS, IntidSet, OwnerCpu, OwnerGic, OwnerHost, PhysicalGic, lr,
};

const EDGE: u32 = 40;
const LEVEL: u32 = 70;
const PPI: u32 = 20;
const TIMER: u32 = 27;
const GICD: Frame = Frame::Distributor;
const GICR: Frame = Frame::Redistributor(0);
const SGI_FRAME: u64 = 0x1_0000;
const STATE: u64 = lr::PENDING | lr::ACTIVE;

/// A machine where some interrupts are enabled, each of its own priority.
fn machine(vcpus: usize, list_registers: usize, eoi_mode: bool) -> FakeMachine {
    let machine = FakeMachine::new(vcpus, list_registers, eoi_mode);
    for vcpu in 0..vcpus {
        for intid in (0..16).chain([PPI, TIMER]).chain(32..LIMIT) {
            machine.gic.change(vcpu, intid, |interrupt| {
                interrupt.enabled = true;
                interrupt.edge = intid < 16 || intid == PPI || intid >= 32 && intid != LEVEL;
                interrupt.priority = 8 * (intid % 16) as u8;
            });
        }
        machine.enable_timer(vcpu, TIMER, 8 * (TIMER % 16) as u8);
    }
    machine
}

fn lrs(machine: &FakeMachine, vcpu: usize) -> Vec<u64> {
    machine.cpus[vcpu].borrow().vif.lrs.iter().copied().filter(|lr| lr & STATE != 0).collect()
}

fn control(machine: &FakeMachine, vcpu: usize) -> Control {
    machine.cpus[vcpu].borrow().vif.control
}

fn bit(intid: u32) -> u64 {
    1 << (intid % 32)
}

fn word(intid: u32) -> u64 {
    4 * u64::from(intid / 32)
}

fn pulse(machine: &FakeMachine, vcpu: usize, intid: u32) {
    machine.gic.pulse(vcpu, intid);
    machine.rest();
}

fn is_active(machine: &FakeMachine, vcpu: usize, intid: u32) -> bool {
    machine.gic.get(vcpu, intid).active
}

fn shows(machine: &FakeMachine, vcpu: usize, register: u64, intid: u32) -> bool {
    machine.read(vcpu, GICD, register + word(intid), Word) & bit(intid) != 0
}

#[test]
fn what_is_on_its_way_is_active_in_hardware_unless_it_is_an_sgi() {
    for intid in [3, PPI, EDGE, LEVEL] {
        let m = machine(1, 4, false);
        pulse(&m, 0, intid);
        let [value] = lrs(&m, 0)[..] else { panic!("{:x?}", lrs(&m, 0)) };
        assert_eq!(value as u32, intid);
        assert_eq!(value & (STATE | lr::GROUP1), lr::PENDING | lr::GROUP1);
        assert_eq!(priority(value), 8 * (intid % 16));
        if intid < 16 {
            assert_eq!(value & lr::HW, 0);
            assert_eq!(value >> lr::PINTID_SHIFT & 0x1fff, 0);
        } else {
            assert_eq!(value & lr::HW, lr::HW);
            assert_eq!((value >> lr::PINTID_SHIFT) as u32 & 0x1fff, intid);
        }
        assert_eq!(is_active(&m, 0, intid), intid >= 16);
        assert_eq!(m.acknowledge(0), Some(intid));
        assert_eq!(is_active(&m, 0, intid), intid >= 16);
        m.end(0, intid);
        assert!(!is_active(&m, 0, intid));
        assert!(m.holds_nothing(0));
    }
}

#[test]
fn an_intid_that_is_none_of_the_owners_is_dropped() {
    let m = machine(1, 4, false);
    let mut cpu = m.cpus[0].borrow_mut();
    let cpu = &mut *cpu;
    for intid in [INTERRUPTS, 1023, 8192] {
        m.owner.take(0, intid, &mut cpu.cpu, &mut cpu.vif, &m.gic);
        m.owner.queue(0, intid, &mut cpu.cpu, &m.gic);
    }
    assert!(cpu.cpu.queued.is_empty());
    assert_eq!(cpu.vif.lrs, [0; 4]);
}

#[test]
fn an_sgi_comes_again_while_it_is_handled() {
    for eoi_mode in [false, true] {
        let m = machine(1, 2, eoi_mode);
        pulse(&m, 0, 3);
        assert_eq!(m.acknowledge(0), Some(3));
        pulse(&m, 0, 3);
        pulse(&m, 0, 3);
        let [value] = lrs(&m, 0)[..] else { panic!() };
        assert_eq!(value & STATE, STATE);
        assert_eq!(m.acknowledge(0), None);
        m.end(0, 3);
        if eoi_mode {
            assert_eq!(m.acknowledge(0), None);
            m.deactivate(0, 3);
        }
        assert_eq!(m.acknowledge(0), Some(3));
        m.end(0, 3);
        m.deactivate(0, 3);
        assert!(m.holds_nothing(0));
    }
}

#[test]
fn more_wait_than_there_are_list_registers() {
    let m = machine(1, 2, false);
    // The highest priorities last: INTID 32 has 0.
    for intid in (32..44).rev() {
        pulse(&m, 0, intid);
    }
    let mut loaded: Vec<u32> = lrs(&m, 0).iter().map(|&lr| lr as u32).collect();
    loaded.sort_unstable();
    assert_eq!(loaded, [32, 33]);
    assert_eq!(control(&m, 0), Control::NO_PENDING);
    for intid in 32..44 {
        assert_eq!(m.acknowledge(0), Some(intid));
        m.end(0, intid);
    }
    assert!(m.holds_nothing(0));
    assert_eq!(control(&m, 0), Control::empty());
}

#[test]
fn active_ones_make_room_and_end_by_count() {
    let m = machine(1, 2, false);
    let nested = [45, 44, 43, 42, 41, 40];
    for intid in nested {
        pulse(&m, 0, intid);
        assert_eq!(m.acknowledge(0), Some(intid));
    }
    assert_eq!(control(&m, 0), Control::ENTRY_NOT_PRESENT | Control::TRAP_DEACTIVATE);
    // Those of the highest priorities are loaded.
    let mut loaded: Vec<u32> = lrs(&m, 0).iter().map(|&lr| lr as u32).collect();
    loaded.sort_unstable();
    assert_eq!(loaded, [40, 41]);
    for intid in nested.into_iter().rev() {
        assert!(is_active(&m, 0, intid));
        m.end(0, intid);
        assert!(!is_active(&m, 0, intid), "{intid}");
    }
    assert!(m.holds_nothing(0));
    assert_eq!(control(&m, 0), Control::empty());
}

#[test]
fn active_ones_without_a_list_register_end_by_dir() {
    let m = machine(1, 1, true);
    for intid in [45, 44, 3] {
        pulse(&m, 0, intid);
        assert_eq!(m.acknowledge(0), Some(intid));
    }
    assert!(control(&m, 0).contains(Control::TRAP_DEACTIVATE));
    // In any order, and one that is not active is nothing.
    m.deactivate(0, 50);
    m.deactivate(0, 45);
    assert!(!is_active(&m, 0, 45) && is_active(&m, 0, 44));
    m.deactivate(0, 3);
    m.deactivate(0, 44);
    assert!(!is_active(&m, 0, 44));
    assert!(m.holds_nothing(0));
    assert_eq!(control(&m, 0), Control::empty());
}

#[test]
fn dir_means_nothing_in_eoi_mode_0() {
    let m = machine(1, 1, false);
    for intid in [45, 44] {
        pulse(&m, 0, intid);
        assert_eq!(m.acknowledge(0), Some(intid));
    }
    m.deactivate(0, 45);
    m.deactivate(0, 44);
    assert!(is_active(&m, 0, 44) && is_active(&m, 0, 45));
}

#[test]
fn pending_and_active_state_is_hardwares_before_it_is_seen() {
    let m = machine(2, 4, false);
    m.gic.change(0, EDGE, |interrupt| interrupt.route = 1);
    m.gic.change(0, 41, |interrupt| interrupt.route = 1);
    pulse(&m, 1, EDGE);
    pulse(&m, 1, 41);
    assert!(is_active(&m, 1, EDGE));
    // 40 comes first; 41 stays on its way.
    assert_eq!(m.acknowledge(1), Some(EDGE));
    for vcpu in [0, 1] {
        let states = |register| [EDGE, 41].map(|intid| shows(&m, vcpu, register, intid));
        assert_eq!((states(0x200), states(0x280)), ([false, true], [false, true]));
        assert_eq!((states(0x300), states(0x380)), ([true, false], [true, false]));
    }
    m.end(1, EDGE);
    assert_eq!(m.acknowledge(1), Some(41));
}

#[test]
fn a_cleared_pending_state_takes_it_off_the_list() {
    for parked in [false, true] {
        let m = machine(2, 4, false);
        m.gic.change(0, EDGE, |interrupt| interrupt.route = 1);
        if parked {
            m.unload(1);
        }
        pulse(&m, 1, EDGE);
        m.write(0, GICD, 0x280 + word(EDGE), Word, bit(EDGE));
        if parked {
            m.load(1);
        }
        m.rest();
        assert_eq!(m.acknowledge(1), None, "parked: {parked}");
        assert!(!is_active(&m, 1, EDGE));
        assert!(m.holds_nothing(1));
    }
}

#[test]
fn a_set_pending_state_is_one_with_what_is_on_its_way() {
    for parked in [false, true] {
        for message in [false, true] {
            let m = machine(2, 4, false);
            m.gic.change(0, EDGE, |interrupt| interrupt.route = 1);
            if parked {
                m.unload(1);
            }
            pulse(&m, 1, EDGE);
            if message {
                m.write(0, GICD, 0x40, Word, EDGE.into());
            } else {
                m.write(0, GICD, 0x200 + word(EDGE), Word, bit(EDGE));
            }
            if parked {
                m.load(1);
            }
            m.rest();
            assert_eq!(m.acknowledge(1), Some(EDGE));
            m.end(1, EDGE);
            assert_eq!(m.acknowledge(1), None, "parked: {parked}, message: {message}");
        }
    }
}

#[test]
fn a_disabled_one_waits_in_hardware() {
    for parked in [false, true] {
        let m = machine(2, 4, false);
        m.gic.change(0, EDGE, |interrupt| interrupt.route = 1);
        if parked {
            m.unload(1);
        }
        pulse(&m, 1, EDGE);
        m.write(0, GICD, 0x180 + word(EDGE), Word, bit(EDGE));
        if parked {
            m.load(1);
        }
        m.rest();
        assert_eq!(m.acknowledge(1), None);
        let Interrupt { latch, active, .. } = m.gic.get(0, EDGE);
        assert_eq!((latch, active), (true, false));
        m.write(0, GICD, 0x100 + word(EDGE), Word, bit(EDGE));
        assert_eq!(m.acknowledge(1), Some(EDGE));
    }
}

#[test]
fn a_rerouted_one_goes_to_its_new_cpu() {
    for parked in [false, true] {
        let m = machine(2, 4, false);
        m.gic.change(0, EDGE, |interrupt| interrupt.route = 1);
        if parked {
            m.unload(1);
        }
        pulse(&m, 1, EDGE);
        // In two halves.
        m.write(0, GICD, 0x6004 + 8 * u64::from(EDGE), Word, 0);
        m.write(0, GICD, 0x6000 + 8 * u64::from(EDGE), Word, 0);
        assert_eq!(m.acknowledge(0), Some(EDGE));
        assert_eq!(m.acknowledge(1), None);
        assert!(m.holds_nothing(1));
        assert_eq!(m.read(0, GICD, 0x6000 + 8 * u64::from(EDGE), Double), 0);
    }
}

#[test]
fn active_state_can_be_cleared_and_the_interrupt_comes_again() {
    for spill in [false, true] {
        let m = machine(1, 1, true);
        pulse(&m, 0, 45);
        assert_eq!(m.acknowledge(0), Some(45));
        if spill {
            pulse(&m, 0, 44);
            assert_eq!(m.acknowledge(0), Some(44));
            m.end(0, 44);
            m.deactivate(0, 44);
        }
        m.write(0, GICD, 0x380 + word(45), Word, bit(45));
        assert!(!is_active(&m, 0, 45));
        m.end(0, 45);
        pulse(&m, 0, 45);
        assert_eq!(m.acknowledge(0), Some(45));
        m.end(0, 45);
        m.deactivate(0, 45);
        assert!(m.holds_nothing(0));
        assert!(!is_active(&m, 0, 45));
    }
}

#[test]
fn active_sgis_are_seen_and_cleared_at_their_own_redistributor() {
    let m = machine(1, 1, true);
    for intid in [4, 3] {
        pulse(&m, 0, intid);
        assert_eq!(m.acknowledge(0), Some(intid));
    }
    assert_eq!(m.read(0, GICR, SGI_FRAME + 0x300, Word), 0x18);
    m.write(0, GICR, SGI_FRAME + 0x380, Word, 0x8);
    assert_eq!(m.read(0, GICR, SGI_FRAME + 0x300, Word), 0x10);
    m.write(0, GICR, SGI_FRAME + 0x380, Word, 0x10);
    assert_eq!(m.read(0, GICR, SGI_FRAME + 0x380, Word), 0);
    m.rest();
    assert!(m.holds_nothing(0));
}

#[test]
fn active_state_that_is_set_is_hardwares() {
    let m = machine(1, 4, false);
    m.write(0, GICD, 0x300 + word(EDGE), Word, bit(EDGE));
    assert!(is_active(&m, 0, EDGE));
    pulse(&m, 0, EDGE);
    assert_eq!(m.acknowledge(0), None);
    m.write(0, GICD, 0x380 + word(EDGE), Word, bit(EDGE));
    assert_eq!(m.acknowledge(0), Some(EDGE));
}

#[test]
fn a_line_that_drops_in_time_leaves_one_spurious_interrupt() {
    let m = machine(1, 4, false);
    m.gic.set_line(0, LEVEL, true);
    m.rest();
    // Settled: now its pending state is latched too.
    m.read(0, GICD, 0x200, Word);
    assert!(m.gic.get(0, LEVEL).active);
    m.write(0, GICD, 0x180 + word(LEVEL), Word, bit(LEVEL));
    m.gic.set_line(0, LEVEL, false);
    m.write(0, GICD, 0x100 + word(LEVEL), Word, bit(LEVEL));
    assert_eq!(m.acknowledge(0), Some(LEVEL));
    m.end(0, LEVEL);
    assert_eq!(m.acknowledge(0), None);
    assert!(m.holds_nothing(0));
}

#[test]
fn each_edge_gives_at_most_one_interrupt() {
    let m = machine(1, 4, false);
    for _ in 0..3 {
        pulse(&m, 0, EDGE);
    }
    for _ in 0..2 {
        assert_eq!(m.acknowledge(0), Some(EDGE));
        m.end(0, EDGE);
    }
    assert_eq!(m.acknowledge(0), None);
}

#[test]
fn the_distributors_switch_is_emulated() {
    let m = machine(2, 4, false);
    m.gic.change(0, 41, |interrupt| interrupt.route = 1);
    m.unload(1);
    pulse(&m, 0, EDGE);
    pulse(&m, 1, 41);
    // RWP, DS and ARE are hardware's, which reads as ones here.
    assert_eq!(m.read(0, GICD, 0, Word), 0x8000_0052);
    m.write(0, GICD, 0, Word, 0x10);
    assert!(!m.owner.is_enabled());
    assert_eq!(m.read(0, GICD, 0, Word), 0x8000_0050);
    assert_eq!(m.acknowledge(0), None);
    assert!(!m.owner.pending(&m.cpus[1].borrow().cpu));
    assert!(shows(&m, 0, 0x200, EDGE) && shows(&m, 0, 0x200, 41));
    m.write(0, GICD, 0, Word, 2);
    assert!(m.owner.pending(&m.cpus[1].borrow().cpu));
    assert_eq!(m.acknowledge(0), Some(EDGE));
    m.load(1);
    assert_eq!(m.acknowledge(1), Some(41));
    assert!(m.gic.other_writes.borrow().is_empty());
    m.owner.reset();
    assert!(!m.owner.is_enabled());
}

#[test]
fn waker_is_the_owners_own() {
    let m = machine(2, 4, false);
    let waker = |vcpu| m.read(0, Frame::Redistributor(vcpu), 0x14, Word);
    m.write(0, Frame::Redistributor(1), 0x14, Word, 2);
    assert_eq!((waker(0), waker(1)), (0, 6));
    m.write(0, Frame::Redistributor(1), 0x14, Word, 0);
    assert_eq!(waker(1), 0);
    m.write(0, GICR, 0x14, Word, 2);
    m.owner.reset();
    assert_eq!(waker(0), 0);
    assert!(m.gic.other_writes.borrow().is_empty());
}

#[test]
fn read_only_registers_hide_what_is_not_offered() {
    let m = machine(1, 4, false);
    for (frame, offset, size, value) in [
        (GICD, 0x4, Word, 0xfff9_fcff),
        (GICD, 0x8, Word, 0xffff_ffff),
        (GICD, 0x84, Word, 0xffff_ffff),
        (GICD, 0xffe8, Word, 0xffff_ffff),
        (GICR, 0x0, Word, 0xffff_fff8),
        (GICR, 0x4, Word, 0xffff_ffff),
        (GICR, 0x8, Word, 0xffff_fff0),
        (GICR, 0xc, Word, 0xffff_ffff),
        (GICR, 0x8, Double, !0xf),
        (GICR, 0xffe8, Word, 0xffff_ffff),
        (GICR, SGI_FRAME + 0x80, Word, 0xffff_ffff),
    ] {
        assert_eq!(m.read(0, frame, offset, size), value, "{frame:?} {offset:#x}");
        m.write(0, frame, offset, size, 0);
    }
    assert!(m.gic.other_writes.borrow().is_empty());
}

/// The machine's GIC with a record of what reaches it.
struct Recorder<'a>(&'a FakeGic, RefCell<Vec<u64>>);

impl PhysicalGic for Recorder<'_> {
    fn read(&self, frame: Frame, offset: u64, size: AccessSize) -> u64 {
        self.1.borrow_mut().push(offset);
        self.0.read(frame, offset, size)
    }

    fn write(&self, frame: Frame, offset: u64, size: AccessSize, value: u64) {
        self.1.borrow_mut().push(offset);
        self.0.write(frame, offset, size, value);
    }

    fn deactivate(&self, intid: u32) {
        self.0.deactivate(intid);
    }
}

struct Alone;

impl OwnerHost for Alone {
    fn settle(&self, _: usize) {}
    fn held(&self, _: usize) -> IntidSet {
        IntidSet::EMPTY
    }
    fn retract(&self, _: usize, _: &IntidSet) {}
}

#[test]
fn only_rows_and_widths_of_the_tables_reach_hardware() {
    let m = machine(1, 4, false);
    let cpu = &mut *m.cpus[0].borrow_mut();
    let all = |frame: Frame, offset: u64, size: AccessSize| {
        let at = if frame == GICD { offset } else { offset.wrapping_sub(SGI_FRAME) };
        match frame {
            _ if !offset.is_multiple_of(size.bytes()) => false,
            // Registers of SPIs, then what only GICD has.
            Frame::Distributor => match at {
                0..0xc => size == Word,
                0x40..0x44 | 0x48..0x4c => matches!(size, Half | Word) && at % 4 == 0,
                0x84..0x100 | 0x104..0x180 | 0x184..0x200 | 0x204..0x280 | 0x284..0x300 => size == Word,
                0x304..0x380 | 0x384..0x400 | 0xc08..0xd00 | 0xffd0..0x1_0000 => size == Word,
                0x420..0x7fc => matches!(size, Byte | Word),
                0x6100..0x7fe0 => matches!(size, Word | Double),
                _ => false,
            },
            Frame::Redistributor(_) => match (offset, at) {
                (0..8 | 0xffd0..0x1_0000, _) => size == Word,
                (8..0x10, _) => matches!(size, Word | Double),
                (_, 0x80 | 0x100 | 0x180 | 0x200 | 0x280 | 0x300 | 0x380 | 0xc00 | 0xc04) => size == Word,
                (_, 0x400..0x420) => matches!(size, Byte | Word),
                _ => false,
            },
        }
    };
    for (frame, length) in [(GICD, 0x1_0000), (GICR, 0x2_0000), (Frame::Redistributor(1), 0x2_0000)] {
        for offset in 0..length {
            for size in AccessSize::ALL {
                let gic = Recorder(&m.gic, RefCell::new(Vec::new()));
                let mut by = Accessor { vcpu: 0, cpu: &mut cpu.cpu, vif: &mut cpu.vif, gic: &gic, host: &Alone };
                let value = m.owner.read(frame, offset, size, &mut by);
                assert_eq!(value & !size.mask(), 0, "{frame:?} {offset:#x} {size:?}");
                let expected = all(frame, offset, size) && frame != Frame::Redistributor(1);
                let is_message = frame == GICD && (0x40..0x4c).contains(&offset);
                let reached = gic.1.borrow().contains(&offset);
                assert_eq!(reached, expected && !is_message, "{frame:?} {offset:#x} {size:?}");
                if !expected {
                    let is_waker = frame == GICR && offset == 0x14 && size == Word;
                    assert!(value == 0 || is_waker, "{frame:?} {offset:#x} {size:?}");
                    m.owner.write(frame, offset, size, 0, &mut by);
                    assert!(gic.1.borrow().is_empty(), "{frame:?} {offset:#x} {size:?}");
                }
            }
        }
    }
}

#[test]
fn keels_own_interrupts_cannot_be_reached() {
    let m = machine(2, 4, false);
    for vcpu in [0, 1] {
        for intid in [25, 26, TIMER, 30] {
            m.gic.change(vcpu, intid, |interrupt| {
                *interrupt = Interrupt { enabled: true, edge: true, active: true, priority: 0x10, ..*interrupt };
            });
        }
    }
    let before: Vec<_> = (0..32).map(|intid| (m.gic.get(0, intid), m.gic.get(1, intid))).collect();
    for (frame, hidden) in [(GICR, KEPT), (Frame::Redistributor(1), KEPT | TIMERS)] {
        let vcpu = usize::from(frame != GICR);
        let hidden_ones = || (0..32).filter(move |intid| hidden >> intid & 1 != 0);
        for register in [0x100, 0x180, 0x200, 0x280, 0x300, 0x380] {
            assert_eq!(m.read(0, frame, SGI_FRAME + register, Word) & u64::from(hidden), 0, "{register:#x}");
            m.write(0, frame, SGI_FRAME + register, Word, hidden.into());
        }
        for intid in hidden_ones() {
            let at = SGI_FRAME + 0x400 + u64::from(intid);
            assert_eq!(m.read(0, frame, at, Byte), 0);
            assert_eq!(m.read(0, frame, at & !3, Word) >> (8 * (intid % 4)) & 0xff, 0);
            m.write(0, frame, at, Byte, 0xff);
        }
        assert_eq!(m.read(0, frame, SGI_FRAME + 0xc04, Word) >> (2 * 9) & 0xf, 0);
        m.write(0, frame, SGI_FRAME + 0xc04, Word, 0);
        for intid in hidden_ones() {
            let then = if vcpu == 0 { before[intid as usize].0 } else { before[intid as usize].1 };
            assert_eq!(m.gic.get(vcpu, intid), then, "{intid} of {vcpu}");
        }
    }
    // Its own timers it does reach, and what is beside the hidden ones.
    m.write(0, GICR, SGI_FRAME + 0x418, Word, 0x5040_3020);
    // In hardware the timer's is keel's.
    assert_eq!([24, 25, 26, TIMER].map(|intid| m.gic.get(0, intid).priority), [0x20, 0x10, 0x10, TIMER_PRIORITY]);
    assert_eq!(m.read(0, GICR, SGI_FRAME + 0x400 + u64::from(TIMER), Byte), 0x50);
    assert_eq!(m.read(0, GICR, SGI_FRAME + 0x418, Word), 0x5000_0020);
    m.write(0, GICR, SGI_FRAME + 0x180, Word, bit(TIMER));
    assert!(!m.gic.get(0, TIMER).enabled);
}

#[test]
fn priorities_and_configuration_go_through() {
    let m = machine(1, 4, false);
    m.write(0, GICD, 0x400 + 44, Word, 0x1122_3344);
    assert_eq!([44, 45, 46, 47].map(|intid| m.gic.get(0, intid).priority), [0x44, 0x33, 0x22, 0x11]);
    m.write(0, GICD, 0x400 + 45, Byte, 0x88);
    assert_eq!(m.read(0, GICD, 0x400 + 44, Word), 0x1122_8844);
    m.write(0, GICD, 0xc00 + 12, Word, 0x2);
    assert!(m.gic.get(0, 48).edge && !m.gic.get(0, 49).edge);
    assert_eq!(m.read(0, GICD, 0xc00 + 12, Word), 0x2);
}

#[test]
fn a_vcpu_off_its_cpu_is_woken_by_what_is_held_for_it() {
    let m = machine(2, 4, false);
    m.unload(1);
    let wakes = || m.owner.pending(&m.cpus[1].borrow().cpu);
    assert!(!wakes());
    pulse(&m, 1, 3);
    pulse(&m, 1, PPI);
    assert!(wakes());
    assert_eq!(OwnerGic::held(&m.cpus[1].borrow().cpu).word(0), 1 << 3 | 1 << PPI);
    m.load(1);
    assert_eq!(m.acknowledge(1), Some(3));
    assert_eq!(m.acknowledge(1), None);
    m.end(1, 3);
    assert_eq!(m.acknowledge(1), Some(PPI));
}

#[test]
fn the_timers_are_handed_to_other_vms_and_back() {
    for spill in [false, true] {
        let m = machine(1, 1, true);
        m.set_timer(0, TIMER, true);
        m.rest();
        assert_eq!(m.acknowledge(0), Some(TIMER));
        if spill {
            pulse(&m, 0, 33);
            assert_eq!(m.acknowledge(0), Some(33));
        }
        m.write(0, GICR, SGI_FRAME + 0x180, Word, bit(30));
        m.write(0, GICR, SGI_FRAME + 0x400 + 30, Byte, 0xa0);
        // This checks what other VMs find.
        m.unload(0);
        m.load(0);
        m.rest();
        let timer = m.gic.get(0, TIMER);
        assert!(timer.enabled && timer.active && timer.priority == TIMER_PRIORITY, "{timer:?}");
        assert_eq!(m.read(0, GICR, SGI_FRAME + 0x400 + u64::from(TIMER), Byte), 8 * u64::from(TIMER % 16));
        let other = m.gic.get(0, 30);
        assert!(!other.active && other.priority == TIMER_PRIORITY, "{other:?}");
        assert_eq!(m.read(0, GICR, SGI_FRAME + 0x400 + 30, Byte), 0xa0);
        assert_eq!(m.read(0, GICR, SGI_FRAME + 0x100, Word) & bit(30), 0);
        // One that the owner has disabled is disabled when it interrupts, and not before others need it.
        m.set_timer(0, 30, true);
        m.rest();
        let other = m.gic.get(0, 30);
        assert!(!other.enabled && !other.active, "{other:?}");
        assert_eq!(m.acknowledge(0), None);
        m.unload(0);
        m.set_timer(0, 30, false);
        m.load(0);
        m.set_timer(0, TIMER, false);
        if spill {
            m.end(0, 33);
            m.deactivate(0, 33);
        }
        m.end(0, TIMER);
        m.deactivate(0, TIMER);
        assert!(!is_active(&m, 0, TIMER));
        assert!(m.holds_nothing(0));
    }
}

#[test]
fn a_timer_not_yet_taken_comes_again_by_its_line() {
    for high in [false, true] {
        let m = machine(1, 1, false);
        m.set_timer(0, TIMER, true);
        m.rest();
        m.unload(0);
        assert!(m.holds_nothing(0));
        m.set_timer(0, TIMER, high);
        m.load(0);
        m.rest();
        assert_eq!(m.acknowledge(0), high.then_some(TIMER));
        if high {
            m.set_timer(0, TIMER, false);
            m.end(0, TIMER);
        }
        assert_eq!(m.acknowledge(0), None);
        assert!(!m.gic.get(0, TIMER).latch);
    }
}

#[test]
fn the_interface_and_active_ones_stay_with_the_vcpu() {
    let m = machine(1, 1, false);
    for intid in [45, 44, 3] {
        pulse(&m, 0, intid);
        assert_eq!(m.acknowledge(0), Some(intid));
    }
    let before = (m.cpus[0].borrow().vif.vmcr, m.cpus[0].borrow().vif.priorities);
    m.unload(0);
    assert_ne!(m.cpus[0].borrow().vif.vmcr, before.0);
    assert!(is_active(&m, 0, 44) && is_active(&m, 0, 45));
    m.load(0);
    m.rest();
    assert_eq!((m.cpus[0].borrow().vif.vmcr, m.cpus[0].borrow().vif.priorities), before);
    for intid in [3, 44, 45] {
        m.end(0, intid);
        assert!(!is_active(&m, 0, intid));
    }
    assert!(m.holds_nothing(0));
}

#[test]
fn a_departing_cpu_leaves_the_truth_in_hardware() {
    let m = machine(1, 2, true);
    for intid in [45, 44, 3] {
        pulse(&m, 0, intid);
        assert_eq!(m.acknowledge(0), Some(intid));
    }
    // Not taken: of higher and of lower priority, an SGI, and the one that is handled.
    for intid in [32, 47, 5, 3] {
        pulse(&m, 0, intid);
    }
    m.depart(0);
    assert_eq!(m.gic.active_word(0, 0), 1 << 3);
    assert_eq!(m.gic.pending_word(0, 0), 1 << 3 | 1 << 5);
    assert_eq!(m.gic.active_word(0, 1), bit(45) | bit(44));
    assert_eq!(m.gic.pending_word(0, 1), bit(32) | bit(47));
    assert_eq!(m.acknowledge(0), Some(32));
    m.end(0, 32);
    m.deactivate(0, 32);
    // And back: SGIs that are handled are software's again.
    m.arrive(0);
    m.rest();
    assert_eq!(m.gic.active_word(0, 0), 0);
    for intid in [3, 44, 45] {
        m.end(0, intid);
        m.deactivate(0, intid);
        assert!(!is_active(&m, 0, intid));
    }
    for intid in [3, 5, 47] {
        assert_eq!(m.acknowledge(0), Some(intid));
        m.end(0, intid);
        m.deactivate(0, intid);
    }
    assert_eq!(m.acknowledge(0), None);
    assert!(m.holds_nothing(0));
}

#[test]
fn an_arriving_cpu_keeps_its_timers() {
    let m = machine(1, 4, false);
    m.depart(0);
    m.set_timer(0, TIMER, true);
    assert_eq!(m.acknowledge(0), Some(TIMER));
    m.gic.change(0, 30, |interrupt| (interrupt.enabled, interrupt.priority) = (false, 0x60));
    m.arrive(0);
    assert!(is_active(&m, 0, TIMER));
    let other = m.gic.get(0, 30);
    assert_eq!((other.enabled, other.priority), (true, TIMER_PRIORITY));
    assert_eq!(m.read(0, GICR, SGI_FRAME + 0x400 + 30, Byte), 0x60);
    assert_eq!(m.read(0, GICR, SGI_FRAME + 0x100, Word) & (bit(30) | bit(TIMER)), bit(TIMER));
    m.depart(0);
    let other = m.gic.get(0, 30);
    assert_eq!((other.enabled, other.priority), (false, 0x60));
    assert_eq!(m.gic.get(0, TIMER).priority, 8 * (TIMER % 16) as u8);
    m.arrive(0);
    m.set_timer(0, TIMER, false);
    m.end(0, TIMER);
    assert!(!is_active(&m, 0, TIMER));
}

#[test]
fn a_fresh_vcpu_has_everything_masked() {
    let cpu = OwnerCpu::new();
    assert_eq!(cpu.interface.vmcr, lr::VMCR_FIQEN);
    let gic = OwnerGic::new(super::OwnerGicConfig { vcpus: 1, kept: 0, timers: 0, timer_priority: 0, enabled: false });
    assert!(!gic.is_enabled() && !gic.pending(&cpu));
}

#[test]
fn sets_of_intids() {
    let mut set = IntidSet::of_word(64, 0xf_8000_0001);
    assert_eq!(set.iter().collect::<Vec<_>>(), [64, 95]);
    assert_eq!((set.word(64), set.word(32), set.word(1024)), (0x8000_0001, 0, 0));
    set.insert(1023);
    set.insert(1024);
    assert!(set.contains(1023) && !set.contains(1024));
    set.remove(64);
    set.remove(1024);
    let mut sum = IntidSet::EMPTY;
    sum.add(&set);
    assert_eq!(sum.iter().collect::<Vec<_>>(), [95, 1023]);
    assert_eq!(IntidSet::of_word(1024, 1), IntidSet::EMPTY);
}

#[test]
fn an_sgi_comes_again_while_its_active_state_has_no_list_register() {
    for eoi_mode in [false, true] {
        let m = machine(1, 1, eoi_mode);
        for intid in [45, 9, 3] {
            pulse(&m, 0, intid);
            assert_eq!(m.acknowledge(0), Some(intid));
        }
        // 9 made room for 3.
        pulse(&m, 0, 9);
        m.end(0, 3);
        m.deactivate(0, 3);
        assert_eq!(m.acknowledge(0), None);
        m.end(0, 9);
        assert!(is_active(&m, 0, 45));
        m.deactivate(0, 9);
        assert_eq!(m.acknowledge(0), Some(9));
        m.end(0, 9);
        m.deactivate(0, 9);
        assert!(is_active(&m, 0, 45));
        m.end(0, 45);
        m.deactivate(0, 45);
        assert!(!is_active(&m, 0, 45));
        assert!(m.holds_nothing(0));
    }
}

#[test]
fn sgis_that_are_pending_and_active_make_room() {
    let m = machine(1, 2, false);
    for intid in [9, 8] {
        pulse(&m, 0, intid);
        assert_eq!(m.acknowledge(0), Some(intid));
        pulse(&m, 0, intid);
    }
    // Both list registers are pending and active. This would interrupt EL2 for ever.
    pulse(&m, 0, 33);
    assert_eq!(m.acknowledge(0), Some(33));
    for intid in [33, 8] {
        m.end(0, intid);
    }
    assert_eq!(m.acknowledge(0), Some(8));
    m.end(0, 8);
    m.end(0, 9);
    assert_eq!(m.acknowledge(0), Some(9));
    m.end(0, 9);
    assert!(m.holds_nothing(0));
}

#[test]
fn what_has_ended_by_count_is_not_loaded_again() {
    let m = machine(1, 2, false);
    for intid in [45, 44, 43] {
        pulse(&m, 0, intid);
        assert_eq!(m.acknowledge(0), Some(intid));
    }
    {
        let cpu = &mut *m.cpus[0].borrow_mut();
        cpu.vif.end(43, &m.gic);
        cpu.vif.end(44, &m.gic);
        cpu.vif.end(45, &m.gic);
        assert!(cpu.vif.maintenance());
        // Another interrupt comes before the maintenance interrupt does.
        m.owner.take(0, 3, &mut cpu.cpu, &mut cpu.vif, &m.gic);
    }
    m.rest();
    assert!(!is_active(&m, 0, 45));
    assert_eq!(m.acknowledge(0), Some(3));
    m.end(0, 3);
    assert!(m.holds_nothing(0));
}

#[test]
fn ends_of_what_never_was_end_nothing_later() {
    let m = machine(1, 1, false);
    pulse(&m, 0, 46);
    assert_eq!(m.acknowledge(0), Some(46));
    // Another INTID than was acknowledged.
    m.end(0, 100);
    for intid in [45, 44] {
        pulse(&m, 0, intid);
        assert_eq!(m.acknowledge(0), Some(intid));
    }
    assert!(is_active(&m, 0, 45) && is_active(&m, 0, 44));
}

#[test]
fn an_end_in_eoi_mode_1_deactivates_nothing() {
    let m = machine(1, 1, true);
    for intid in [45, 44] {
        pulse(&m, 0, intid);
        assert_eq!(m.acknowledge(0), Some(intid));
    }
    m.end(0, 44);
    // This has no list register, and some CPUs count it.
    m.end(0, 45);
    assert!(is_active(&m, 0, 44) && is_active(&m, 0, 45));
    for intid in [45, 44] {
        m.deactivate(0, intid);
        assert!(!is_active(&m, 0, intid));
    }
    assert!(m.holds_nothing(0));
}

#[test]
fn what_was_loaded_when_the_vcpu_left_its_cpu_is_held_too() {
    for register in [0x180, 0x280] {
        let m = machine(2, 4, false);
        m.gic.change(0, EDGE, |interrupt| interrupt.route = 1);
        pulse(&m, 1, EDGE);
        m.unload(1);
        assert!(m.owner.pending(&m.cpus[1].borrow().cpu));
        assert!(shows(&m, 0, 0x200, EDGE) && !shows(&m, 0, 0x300, EDGE));
        m.write(0, GICD, register + word(EDGE), Word, bit(EDGE));
        assert!(!m.owner.pending(&m.cpus[1].borrow().cpu));
        m.load(1);
        m.rest();
        assert_eq!(m.acknowledge(1), None, "{register:#x}");
        assert_eq!(m.gic.get(0, EDGE).latch, register == 0x180);
    }
}

#[test]
fn an_sgi_that_is_handled_does_not_wake_its_vcpu() {
    for spill in [false, true] {
        let m = machine(1, 1, true);
        pulse(&m, 0, 9);
        assert_eq!(m.acknowledge(0), Some(9));
        if spill {
            pulse(&m, 0, 3);
            assert_eq!(m.acknowledge(0), Some(3));
        }
        pulse(&m, 0, 9);
        m.unload(0);
        assert!(!m.owner.pending(&m.cpus[0].borrow().cpu));
        pulse(&m, 0, 4);
        assert!(m.owner.pending(&m.cpus[0].borrow().cpu));
    }
}

#[test]
fn private_interrupts_that_are_held_are_seen_at_their_own_redistributor() {
    let m = machine(3, 4, false);
    m.unload(1);
    pulse(&m, 1, 3);
    pulse(&m, 1, PPI);
    pulse(&m, 0, PPI);
    assert_eq!(m.acknowledge(0), Some(PPI));
    let read = |vcpu, register| m.read(0, Frame::Redistributor(vcpu), SGI_FRAME + register, Word);
    assert_eq!([0, 1, 2].map(|vcpu| read(vcpu, 0x200)), [0, 1 << 3 | 1 << PPI, 0]);
    assert_eq!([0, 1, 2].map(|vcpu| read(vcpu, 0x300)), [1 << PPI, 0, 0]);
}

#[test]
fn private_interrupts_that_are_held_follow_their_redistributor() {
    let m = machine(3, 4, false);
    for vcpu in [1, 2] {
        m.unload(vcpu);
        for intid in [3, 4, PPI] {
            pulse(&m, vcpu, intid);
        }
    }
    let frame = Frame::Redistributor(1);
    m.write(0, frame, SGI_FRAME + 0x280, Word, 1 << 3);
    m.write(0, frame, SGI_FRAME + 0x180, Word, 1 << PPI);
    m.load(1);
    m.load(2);
    m.rest();
    for intid in [4, PPI] {
        assert_eq!(m.acknowledge(1), (intid == 4).then_some(4));
        m.end(1, 4);
    }
    assert!(m.gic.get(1, PPI).latch);
    for intid in [3, 4, PPI] {
        let taken = m.acknowledge(2);
        assert!(taken.is_some(), "{intid}");
        m.end(2, taken.unwrap());
    }
}

#[test]
fn a_disabled_one_is_not_acknowledged_again() {
    let m = machine(2, 4, false);
    m.gic.change(0, EDGE, |interrupt| interrupt.route = 1);
    pulse(&m, 1, EDGE);
    m.eager.set(true);
    m.write(0, GICD, 0x180 + word(EDGE), Word, bit(EDGE));
    assert_eq!(m.acknowledge(1), None);
    assert!(m.gic.get(0, EDGE).latch);
}

#[test]
fn messages_are_for_spis() {
    let m = machine(1, 4, false);
    for intid in [0_u64, 31, 1020, 1023, 4096 + 40, 8191] {
        for size in [Half, Word] {
            m.write(0, GICD, 0x40, size, intid);
        }
    }
    assert_eq!(m.acknowledge(0), None);
    assert!(m.gic.other_writes.borrow().is_empty());
    m.write(0, GICD, 0x40, Half, EDGE.into());
    m.write(0, GICD, 0x48, Half, EDGE.into());
    assert_eq!(m.acknowledge(0), None);
    m.write(0, GICD, 0x40, Word, EDGE.into());
    assert_eq!(m.acknowledge(0), Some(EDGE));
}

#[test]
fn a_message_that_clears_takes_it_from_a_parked_vcpu() {
    let m = machine(2, 4, false);
    m.gic.change(0, EDGE, |interrupt| interrupt.route = 1);
    m.unload(1);
    pulse(&m, 1, EDGE);
    m.write(0, GICD, 0x48, Word, EDGE.into());
    m.load(1);
    m.rest();
    assert_eq!(m.acknowledge(1), None);
    assert!(!is_active(&m, 1, EDGE));
}

#[test]
fn what_has_ended_by_count_leaves_with_nobody() {
    for departs in [false, true] {
        let m = machine(1, 1, false);
        for intid in [45, 44] {
            pulse(&m, 0, intid);
            assert_eq!(m.acknowledge(0), Some(intid));
        }
        {
            let cpu = &mut *m.cpus[0].borrow_mut();
            cpu.vif.end(44, &m.gic);
            cpu.vif.end(45, &m.gic);
            assert!(cpu.vif.maintenance());
        }
        if departs {
            m.depart(0);
        } else {
            m.unload(0);
        }
        assert!(!is_active(&m, 0, 45), "departs: {departs}");
        assert!(m.holds_nothing(0));
    }
}

#[test]
fn a_timer_that_was_deactivated_at_the_redistributor_stays_so() {
    for spill in [false, true] {
        let m = machine(1, 1, true);
        m.set_timer(0, TIMER, true);
        m.rest();
        assert_eq!(m.acknowledge(0), Some(TIMER));
        if spill {
            pulse(&m, 0, 33);
            assert_eq!(m.acknowledge(0), Some(33));
        }
        m.set_timer(0, TIMER, false);
        // As a kernel does that starts after another one crashed.
        m.write(0, GICR, SGI_FRAME + 0x380, Word, 0xffff_ffff);
        m.unload(0);
        m.load(0);
        assert!(!is_active(&m, 0, TIMER), "spill: {spill}");
    }
}

#[test]
fn a_timer_that_was_activated_at_the_redistributor_stays_so() {
    let m = machine(1, 1, true);
    m.write(0, GICR, SGI_FRAME + 0x300, Word, bit(TIMER));
    m.unload(0);
    m.load(0);
    assert!(is_active(&m, 0, TIMER));
}

#[test]
fn what_was_deactivated_at_the_distributor_leaves_the_list() {
    for eoi_mode in [false, true] {
        let m = machine(1, 2, eoi_mode);
        for intid in [47, 46, 45, PPI] {
            pulse(&m, 0, intid);
            assert_eq!(m.acknowledge(0), Some(intid));
        }
        // A kernel starts after another one crashed.
        m.write(0, GICD, 0x384, Word, 0xffff_ffff);
        m.write(0, GICR, SGI_FRAME + 0x380, Word, 0xffff_ffff);
        m.rest();
        assert!(m.holds_nothing(0));
    }
}
