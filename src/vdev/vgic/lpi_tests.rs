//! The ITS and LPIs, rule by rule.

use super::fake::{FakeVm, MEMORY};
use super::lr;
use super::*;
use crate::vdev::its::{Its, RegisterError};
use crate::vdev::memory::GuestMemory;
use crate::vdev::mmio::AccessSize::{Double, Word};

pub(super) const QUEUE: u64 = MEMORY.start;
pub(super) const DEVICES: u64 = MEMORY.start + 0x20_0000;
pub(super) const COLLECTIONS: u64 = MEMORY.start + 0x21_0000;
pub(super) const CONFIG: u64 = MEMORY.start + 0x22_0000;
pub(super) const PENDING: u64 = MEMORY.start + 0x40_0000;
pub(super) const ITTS: u64 = MEMORY.start + 0x80_0000;

const CTLR: u64 = 0;
const CBASER: u64 = 0x80;
const CWRITER: u64 = 0x88;
const CREADR: u64 = 0x90;
const BASER: u64 = 0x100;
const VALID: u64 = 1 << 63;

const PROPBASER: u64 = 0x70;
const PENDBASER: u64 = 0x78;

impl FakeVm {
    fn its(&self) -> &Its {
        self.its.as_ref().unwrap()
    }

    fn its_read(&self, offset: u64) -> u64 {
        self.its().read(offset, Double, 0, &self.vgic, self)
    }

    fn its_write(&self, offset: u64, value: u64) {
        self.its().write(offset, Double, value, 0, &self.vgic, self);
        self.settle_all();
    }

    /// As [`settle`](FakeVm::settle), however long the queue is.
    pub(super) fn settle_all(&self) {
        for _ in 0..4096 {
            if (0..self.cpus.len()).filter(|vcpu| self.enter(*vcpu)).count() == 0 {
                return;
            }
        }
        panic!("never comes to rest");
    }

    /// Tables, LPIs on every vCPU, collection n at vCPU n, device 0 with 512 events.
    pub(super) fn start_its(&self) {
        for vcpu in 0..self.cpus.len() {
            self.vgic.redist_write(vcpu, PROPBASER, Double, CONFIG | 15, self);
            self.vgic.redist_write(vcpu, PENDBASER, Double, PENDING + 0x1_0000 * vcpu as u64, self);
            self.vgic.redist_write(vcpu, 0, Word, 1, self);
        }
        self.its_write(BASER, VALID | DEVICES);
        self.its_write(BASER + 8, VALID | COLLECTIONS);
        self.its_write(CBASER, VALID | QUEUE | 0xff);
        self.its().write(CTLR, Word, 1, 0, &self.vgic, self);
        for vcpu in 0..self.cpus.len() as u64 {
            self.command([9, 0, VALID | vcpu << 16 | vcpu, 0]);
        }
        self.command([8, 8, VALID | ITTS, 0]);
    }

    pub(super) fn queue(&self, commands: &[[u64; 4]]) {
        let mut at = self.its_read(CWRITER);
        for command in commands {
            self.memory.write(QUEUE + at, command);
            at = (at + 32) % 0x10_0000;
        }
        self.its().write(CWRITER, Double, at, 0, &self.vgic, self);
    }

    pub(super) fn command(&self, command: [u64; 4]) {
        self.queue(&[command]);
        self.settle_all();
        assert_eq!(self.its_read(CREADR), self.its_read(CWRITER));
    }

    pub(super) fn configure(&self, lpi: u32, byte: u8) {
        self.memory.set_byte(CONFIG + u64::from(lpi - FIRST_LPI), byte);
    }

    /// Event `event` of device 0 is LPI 8192 + event, with a priority, in a collection.
    pub(super) fn map_event(&self, event: u32, priority: u8, collection: u16) {
        self.configure(FIRST_LPI + event, priority | 1);
        self.command([0x0a, u64::from(FIRST_LPI + event) << 32 | u64::from(event), collection.into(), 0]);
    }

    pub(super) fn int(&self, event: u32) {
        self.command([3, event.into(), 0, 0]);
    }
}

fn vm(vcpus: usize, list_registers: usize) -> FakeVm {
    let vm = FakeVm::with_lpis(vcpus, list_registers);
    vm.start_its();
    vm
}

#[test]
fn registers_say_that_there_are_lpis() {
    let vm = FakeVm::with_lpis(2, 4);
    assert_eq!(vm.vgic.dist_read(4, Word, &vm), 0x007a_0002);
    assert_eq!(vm.vgic.redist_read(1, 8, Double, &vm), 0x1_0000_0111);
    assert_eq!(vm.vgic.redist_read(1, 0, Word, &vm), 6);
    assert_eq!(vm.its_read(8), 0x1_ef71);
    assert_eq!(vm.its_read(BASER), 3 << 59 | 1 << 56 | 7 << 48 | 1 << 10 | 2 << 8);
    assert_eq!(vm.its_read(BASER + 8), 3 << 59 | 4 << 56 | 7 << 48 | 1 << 10 | 2 << 8);
    vm.vgic.redist_write(1, 0, Word, 1, &vm);
    assert_eq!([0, 1].map(|vcpu| vm.vgic.redist_read(vcpu, 0, Word, &vm)), [6, 7]);
}

#[test]
fn an_event_becomes_an_lpi() {
    let vm = vm(2, 4);
    vm.map_event(3, 0xa0, 1);
    vm.int(3);
    assert_eq!((vm.highest_pending(0), vm.highest_pending(1)), (None, Some((0xa0, 8195))));
    assert_eq!(vm.acknowledge(1), Some(8195));
    vm.end(1, 8195);
    assert_eq!(vm.highest_pending(1), None);
    assert_eq!(vm.acknowledge(1), None);
}

#[test]
fn all_that_there_are_come_in_order_of_priority() {
    for list_registers in [1, 4, 16] {
        let vm = vm(1, list_registers);
        for lpi in 0..57344_u32 {
            vm.configure(FIRST_LPI + lpi, (lpi % 32 * 8) as u8 | u8::from(lpi % 3 != 0));
        }
        vm.vgic.redist_write(0, 0, Word, 0, &vm);
        for word in 0..896 {
            vm.memory.write(PENDING + 1024 + 8 * word, &[u64::MAX]);
        }
        vm.vgic.redist_write(0, 0, Word, 1, &vm);
        let mut entries = 0;
        while vm.enter(0) {
            entries += 1;
        }
        // No more than a bounded part at a time.
        assert!(entries >= 28, "{entries} entries");
        // Priorities from 0xf8 on are masked.
        let mut last = 0;
        let mut taken = 0;
        while let Some((priority, intid)) = vm.highest_pending(0) {
            assert!(priority >= last && intid % 3 != FIRST_LPI % 3, "{intid} {priority:#x} after {last:#x}");
            last = priority;
            taken += 1;
            if taken == 2000 {
                break;
            }
            assert_eq!(vm.acknowledge(0), Some(intid));
            vm.cpus[0].borrow_mut().vif.end(intid);
            vm.settle_all();
        }
        assert_eq!((taken, last), (2000, 8), "1194 or 1195 of each priority");
    }
}

#[test]
fn a_long_queue_is_not_carried_out_at_once() {
    let vm = vm(1, 4);
    vm.map_event(0, 0x80, 0);
    let commands = [[0x0c, 0, 0, 0]; 1000];
    vm.queue(&commands);
    let done = (vm.its_read(CREADR) + 0x10_0000 - 3 * 32) % 0x10_0000 / 32;
    assert!((1..=64).contains(&done), "{done} commands at once");
    assert!(vm.came_back.get() > 0);
    assert!(vm.vgic.pending(0, &VgicCpu::new()), "it has to run for the rest");
    let mut entries = 0;
    while vm.enter(0) {
        entries += 1;
    }
    assert!(entries >= 1000 / 32 - 2, "{entries} entries");
    assert_eq!(vm.its_read(CREADR), vm.its_read(CWRITER));
}

#[test]
fn restoring_finishes_the_queue() {
    let vm = vm(1, 4);
    vm.map_event(0, 0x80, 0);
    vm.unload(0);
    vm.its().user_write(CTLR, 0, &vm.vgic, &vm).unwrap();
    let commands = [[0x03, 0, 0, 0]; 1000];
    vm.queue(&commands);
    vm.its().user_write(CTLR, 1, &vm.vgic, &vm).unwrap();
    assert_eq!(vm.its_read(CREADR), vm.its_read(CWRITER));
    assert!(vm.vgic.lpi_is_pending(0, FIRST_LPI));
}

#[test]
fn registers_are_saved_with_kvm_s_errors() {
    let vm = vm(1, 4);
    for (offset, result) in [
        (0x00, Ok(())),
        (0x04, Ok(())),
        (0x08, Ok(())),
        (0x0c, Err(RegisterError::Invalid)),
        (0x02, Err(RegisterError::Invalid)),
        (0x84, Err(RegisterError::Invalid)),
        (0x90, Ok(())),
        (0xa0, Err(RegisterError::Unknown)),
        (0x138, Ok(())),
        (0x140, Err(RegisterError::Unknown)),
        (0xffd4, Ok(())),
        (0x1_0040, Err(RegisterError::Unknown)),
        (u64::MAX - 7, Err(RegisterError::Unknown)),
    ] {
        assert_eq!(Its::user_has(offset), result, "{offset:#x}");
        assert_eq!(vm.its().user_read(offset, &vm.vgic, &vm).map(|_| ()), result, "{offset:#x}");
    }
    let write = |offset, value| vm.its().user_write(offset, value, &vm.vgic, &vm);
    assert_eq!(write(4, 0x4b00_043b), Ok(()));
    assert_eq!(write(4, 0x4b00_143b), Err(RegisterError::Invalid), "a later revision");
    assert_eq!(write(CREADR, 0), Err(RegisterError::Invalid), "while it is enabled");
    write(CTLR, 0).unwrap();
    write(CREADR, 0x40).unwrap();
    assert_eq!(vm.its_read(CREADR), 0x40);
}

#[test]
fn one_that_is_moved_while_it_is_loaded_leaves() {
    let vm = vm(2, 4);
    vm.map_event(0, 0x80, 0);
    vm.int(0);
    assert_eq!(vm.highest_pending(0), Some((0x80, 8192)));
    vm.command([1, 0, 1, 0]);
    assert_eq!((vm.highest_pending(0), vm.highest_pending(1)), (None, Some((0x80, 8192))));
    // All of them, back.
    vm.command([0x0e, 0, 1 << 16, 0]);
    assert_eq!((vm.highest_pending(0), vm.highest_pending(1)), (Some((0x80, 8192)), None));
    vm.unload(0);
    vm.command([0x0e, 0, 0, 1 << 16]);
    assert_eq!(vm.highest_pending(1), Some((0x80, 8192)));
}

#[test]
fn configuration_is_seen_when_it_is_invalidated() {
    let vm = vm(1, 4);
    vm.map_event(0, 0x80, 0);
    vm.int(0);
    vm.configure(FIRST_LPI, 0x40);
    vm.vgic.dist_write(0x80, Word, 0, &vm);
    vm.settle_all();
    assert_eq!(vm.highest_pending(0), Some((0x80, 8192)));
    vm.command([0x0c, 0, 0, 0]);
    assert_eq!(vm.highest_pending(0), None);
    vm.configure(FIRST_LPI, 0x21);
    assert_eq!(vm.highest_pending(0), None);
    vm.command([0x0d, 0, 0, 0]);
    assert_eq!(vm.highest_pending(0), Some((0x20, 8192)));
}

#[test]
fn pending_lpis_are_saved_and_restored() {
    let vm = vm(2, 4);
    for event in 0..8 {
        vm.map_event(event, 0x80, (event % 2) as u16);
        vm.int(event);
    }
    (0..2).for_each(|vcpu| vm.unload(vcpu));
    assert!(vm.vgic.save_pending_lpis());
    assert_eq!(vm.memory.word(PENDING + 1024), Some(0x55));
    assert_eq!(vm.memory.word(PENDING + 0x1_0000 + 1024), Some(0xaa));
    // Where there is no memory it is said.
    vm.vgic.redist_write(0, 0, Word, 0, &vm);
    vm.vgic.redist_write(0, PENDBASER, Double, 0, &vm);
    vm.vgic.redist_write(0, 0, Word, 1, &vm);
    assert!(!vm.vgic.save_pending_lpis());
}

#[test]
fn what_is_not_mapped_is_skipped() {
    let vm = vm(1, 4);
    vm.map_event(0, 0x80, 0);
    // Entries that a guest made up: another vCPU, no LPI, a table nowhere.
    vm.memory.write(COLLECTIONS + 8 * 9, &[VALID | 77 << 16 | 9]);
    vm.memory.write(ITTS + 8 * 5, &[u64::from(FIRST_LPI) << 16 | 9]);
    vm.memory.write(ITTS + 8 * 6, &[31 << 16]);
    vm.memory.write(ITTS + 8 * 7, &[0xffff_ffff << 16]);
    vm.memory.write(DEVICES + 8, &[u64::MAX]);
    for event in 5..8_u64 {
        for command in [1, 3, 4, 0x0c, 0x0f] {
            vm.command([command, event, 0, 0]);
            vm.command([1 << 32 | command, event, 0, 0]);
        }
    }
    assert_eq!(vm.highest_pending(0), None);
    vm.int(0);
    assert_eq!(vm.highest_pending(0), Some((0x80, 8192)));
}

#[test]
fn an_msi_is_an_event() {
    let vm = vm(1, 4);
    vm.map_event(2, 0x80, 0);
    assert!(!vm.its().send_msi(0, 1, &vm.vgic, &vm));
    assert!(!vm.its().send_msi(1, 2, &vm.vgic, &vm));
    assert!(vm.its().send_msi(0, 2, &vm.vgic, &vm));
    vm.settle_all();
    assert_eq!(vm.highest_pending(0), Some((0x80, 8194)));
    assert_ne!(vm.cpus[0].borrow().vif.lrs[0] & lr::GROUP1, 0);
}
