//! Random commands and LPIs against an obvious model: tables as maps, and a set of pending LPIs for each vCPU.
//!
//! After every step the LPI that each CPU signals must be the model's, and now and then the VM is replaced by one into
//! which it was saved and restored. KEEL_ITS_CASES sets the number of cases, of about 100 steps each.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;

use super::fake::FakeVm;
use super::lpi_tests::{COLLECTIONS, DEVICES, ITTS, PENDING, QUEUE};
use super::{FIRST_LPI, lr};
use crate::vdev::memory::GuestMemory;
use crate::vdev::mmio::AccessSize::{Double, Word};

/// LPIs in play, apart enough to share no word of the configuration; some share a word of pending bits.
const LPIS: [u32; 12] = [8192, 8200, 8208, 8255, 8256, 9000, 12345, 20000, 40000, 40008, 65520, 65535];
const DEVICE_COUNT: u32 = 3;
const EVENT_BITS: u64 = 3;

#[derive(Debug, Default)]
struct ModelCpu {
    pending: BTreeSet<u32>,
    lpis_enabled: bool,
    /// Acknowledged and not ended: INTID, priority.
    running: Vec<(u32, u32)>,
    vmcr: u64,
}

#[derive(Debug)]
struct Model {
    cpus: Vec<ModelCpu>,
    /// The table of each mapped device.
    devices: BTreeMap<u32, u64>,
    /// By table and event: LPI and collection.
    events: BTreeMap<(u64, u32), (u32, u16)>,
    collections: BTreeMap<u16, usize>,
    /// Configuration bytes: as the guest's table has them, and as they were last read.
    table: BTreeMap<u32, u8>,
    cached: BTreeMap<u32, u8>,
    let_through: bool,
}

impl Model {
    fn event(&self, device: u32, event: u32) -> Option<(u64, u32, u16)> {
        let itt = *self.devices.get(&device)?;
        let (lpi, collection) = *self.events.get(&(itt, event))?;
        Some((itt, lpi, collection))
    }

    /// LPI and vCPU of an event.
    fn translate(&self, device: u32, event: u32) -> Option<(u32, usize)> {
        let (_, lpi, collection) = self.event(device, event)?;
        Some((lpi, *self.collections.get(&collection)?))
    }

    fn pend(&mut self, vcpu: usize, lpi: u32) {
        if self.cpus[vcpu].lpis_enabled {
            self.cpus[vcpu].pending.insert(lpi);
        }
    }

    fn read_config(&mut self, lpi: u32) {
        self.cached.insert(lpi, self.table.get(&lpi).copied().unwrap_or(0));
    }

    fn read_all(&mut self) {
        LPIS.into_iter().for_each(|lpi| self.read_config(lpi));
    }

    /// What a vCPU is interrupted by.
    fn signalled(&self, vcpu: usize) -> Option<(u32, u32)> {
        let cpu = &self.cpus[vcpu];
        let running = cpu.running.last().map_or(0x100, |running| running.1);
        let mask = (cpu.vmcr >> lr::VMCR_PMR_SHIFT) as u32 & 0xff;
        let open = self.let_through && cpu.vmcr & lr::VMCR_ENG1 != 0;
        let with_priority = |lpi: &u32| (u32::from(self.cached[lpi] & 0xf8), *lpi);
        let pending = cpu.pending.iter().filter(|lpi| open && self.cached[*lpi] & 1 != 0).map(with_priority);
        pending.min().filter(|(priority, _)| *priority < mask && *priority < running)
    }
}

struct Run {
    vm: FakeVm,
    model: Model,
}

impl Run {
    fn new(vcpus: usize, list_registers: usize) -> Self {
        let vm = FakeVm::with_lpis(vcpus, list_registers);
        vm.start_its();
        vm.command([8, 0, 0, 0]);
        let cpu =
            |vcpu: usize| ModelCpu { lpis_enabled: true, vmcr: vm.cpus[vcpu].borrow().vif.vmcr, ..ModelCpu::default() };
        let model = Model {
            cpus: (0..vcpus).map(cpu).collect(),
            devices: BTreeMap::new(),
            events: BTreeMap::new(),
            collections: (0..vcpus).map(|vcpu| (vcpu as u16, vcpu)).collect(),
            table: BTreeMap::new(),
            cached: LPIS.into_iter().map(|lpi| (lpi, 0)).collect(),
            let_through: true,
        };
        Self { vm, model }
    }

    fn step(&mut self, [kind, a, b, c]: [u8; 4]) {
        let vcpus = self.model.cpus.len();
        let vcpu = a as usize % vcpus;
        let device = u32::from(a) % DEVICE_COUNT;
        let event = u32::from(b) % (1 << EVENT_BITS);
        let lpi = LPIS[c as usize % LPIS.len()];
        // One more than there are vCPUs.
        let collection = u16::from(c) % (vcpus as u16 + 1);
        let named = u64::from(device) << 32;
        let (vm, model) = (&self.vm, &mut self.model);
        match kind % 40 {
            0 => {
                let itt = ITTS + u64::from(c % 3) * 0x1000;
                model.devices.insert(device, itt);
                vm.command([named | 8, EVENT_BITS - 1, 1 << 63 | itt, 0]);
            }
            1 if c & 3 == 0 => {
                model.devices.remove(&device);
                vm.command([named | 8, 0, 0, 0]);
            }
            2 | 3 => {
                let target = b as usize % (vcpus + 1);
                if target < vcpus {
                    model.collections.insert(collection, target);
                }
                vm.command([9, 0, 1 << 63 | (target as u64) << 16 | u64::from(collection), 0]);
            }
            4 if b & 3 == 0 => {
                model.collections.remove(&collection);
                vm.command([9, 0, collection.into(), 0]);
            }
            5..=9 => {
                let collection = u16::from(a) % (vcpus as u16 + 1);
                if let Some(itt) = model.devices.get(&device).copied()
                    && !model.events.contains_key(&(itt, event))
                {
                    model.events.insert((itt, event), (lpi, collection));
                    model.read_config(lpi);
                }
                vm.command([named | 10, u64::from(lpi) << 32 | u64::from(event), collection.into(), 0]);
            }
            10 | 11 => {
                if let Some((lpi, from)) = model.translate(device, event)
                    && let Some(to) = model.collections.get(&collection).copied()
                {
                    let (itt, ..) = model.event(device, event).unwrap();
                    model.events.insert((itt, event), (lpi, collection));
                    if from != to && model.cpus[from].pending.remove(&lpi) {
                        model.pend(to, lpi);
                    }
                }
                vm.command([named | 1, event.into(), collection.into(), 0]);
            }
            12 => {
                let to = b as usize % vcpus;
                if vcpu != to {
                    let moved = std::mem::take(&mut model.cpus[vcpu].pending);
                    moved.into_iter().for_each(|lpi| model.pend(to, lpi));
                }
                vm.command([14, 0, (vcpu as u64) << 16, (to as u64) << 16]);
            }
            13 => {
                if let Some((lpi, vcpu)) = model.translate(device, event) {
                    let (itt, ..) = model.event(device, event).unwrap();
                    model.events.remove(&(itt, event));
                    model.cpus[vcpu].pending.remove(&lpi);
                }
                vm.command([named | 15, event.into(), 0, 0]);
            }
            14 => {
                if let Some((lpi, vcpu)) = model.translate(device, event) {
                    model.cpus[vcpu].pending.remove(&lpi);
                }
                vm.command([named | 4, event.into(), 0, 0]);
            }
            15 | 16 => {
                if let Some((lpi, _)) = model.translate(device, event) {
                    model.read_config(lpi);
                }
                vm.command([named | 12, event.into(), 0, 0]);
            }
            17 => {
                // Each vCPU's, for what is read is for all of them.
                model.read_all();
                for vcpu in 0..vcpus {
                    vm.vgic.invalidate_all_lpis(vcpu, vm);
                }
            }
            18..=20 => {
                model.table.insert(lpi, b | u8::from(a & 3 != 0));
                vm.configure(lpi, b | u8::from(a & 3 != 0));
            }
            21 => {
                let enable = b & 3 != 0;
                let cpu = &mut model.cpus[vcpu];
                if !enable {
                    cpu.pending.clear();
                    // What was saved there must not come back.
                    vm.memory.write(PENDING + 0x1_0000 * vcpu as u64 + 1024, &[0; 896]);
                } else if !cpu.lpis_enabled {
                    // From the table, some.
                    for lpi in LPIS.into_iter().filter(|lpi| lpi % 5 == u32::from(c) % 5) {
                        let address = PENDING + 0x1_0000 * vcpu as u64 + u64::from(lpi) / 64 * 8;
                        let word = vm.memory.word(address).unwrap() | 1 << (lpi % 64);
                        vm.memory.write(address, &[word]);
                        cpu.pending.insert(lpi);
                    }
                    model.read_all();
                }
                model.cpus[vcpu].lpis_enabled = enable;
                vm.vgic.redist_write(vcpu, 0, Word, enable.into(), vm);
                if enable {
                    (0..vcpus).for_each(|vcpu| vm.vgic.invalidate_all_lpis(vcpu, vm));
                    model.read_all();
                }
            }
            22 => {
                model.let_through = c & 3 != 0;
                vm.vgic.dist_write(0, Word, u64::from(model.let_through) << 1, vm);
            }
            23 => {
                let group = if c & 3 == 0 { 0 } else { lr::VMCR_ENG1 };
                let priority = if b & 1 == 0 { 0xf8 } else { u64::from(b) & 0xf8 };
                let kept = model.cpus[vcpu].vmcr & !(0xff << lr::VMCR_PMR_SHIFT | lr::VMCR_ENG1);
                let vmcr = kept | priority << lr::VMCR_PMR_SHIFT | group;
                model.cpus[vcpu].vmcr = vmcr;
                let cpu = &mut *vm.cpus[vcpu].borrow_mut();
                if cpu.resident { cpu.vif.vmcr = vmcr } else { cpu.cpu.vmcr = vmcr }
            }
            24 => vm.unload(vcpu),
            25 | 26 => vm.load(vcpu),
            27 if b & 3 == 0 => {
                // What was read of the configuration is not moved: it is read again.
                model.read_all();
                self.vm = vm.restored();
            }
            28..=31 if vm.cpus[vcpu].borrow().resident => {
                let expected = model.signalled(vcpu);
                let taken = vm.cpus[vcpu].borrow_mut().vif.acknowledge();
                assert_eq!(taken, expected.map(|(_, lpi)| lpi), "vCPU {vcpu} acknowledges");
                if let Some((priority, lpi)) = expected {
                    model.cpus[vcpu].pending.remove(&lpi);
                    model.cpus[vcpu].running.push((lpi, priority));
                }
            }
            32 | 33 if vm.cpus[vcpu].borrow().resident => {
                if let Some((lpi, _)) = model.cpus[vcpu].running.pop() {
                    vm.cpus[vcpu].borrow_mut().vif.end(lpi);
                }
            }
            _ => {
                if let Some((lpi, vcpu)) = model.translate(device, event) {
                    model.pend(vcpu, lpi);
                }
                vm.command([named | 3, event.into(), 0, 0]);
            }
        }
        self.vm.settle_all();
        self.check();
    }

    fn check(&self) {
        for vcpu in 0..self.model.cpus.len() {
            let expected = self.model.signalled(vcpu);
            if self.vm.cpus[vcpu].borrow().resident {
                assert_eq!(self.vm.highest_pending(vcpu), expected, "vCPU {vcpu}");
            } else if self.model.cpus[vcpu].running.is_empty() {
                assert_eq!(
                    self.vm.vgic.pending(vcpu, &self.vm.cpus[vcpu].borrow().cpu),
                    expected.is_some(),
                    "vCPU {vcpu}"
                );
            }
        }
    }
}

fn cases() -> u32 {
    std::env::var("KEEL_ITS_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(100)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn behaves_as_the_model(
        vcpus in 1_usize..=3,
        list_registers in prop::sample::select(vec![1_usize, 2, 4, 16]),
        steps in vec(any::<[u8; 4]>(), 1..200),
    ) {
        let mut run = Run::new(vcpus, list_registers);
        for device in 0..DEVICE_COUNT as u8 {
            run.step([0, device, 0, device]);
        }
        for lpi in 0..LPIS.len() as u8 {
            run.step([18, 1, 0x20 * (lpi % 5), lpi]);
            run.step([5, lpi, lpi / 3, lpi]);
        }
        for step in steps {
            run.step(step);
        }
    }
}

proptest! {
    /// Nothing a guest has in its queue or tables ends in anything but its own interrupts.
    #[test]
    fn any_memory_will_do(
        words in vec((0..0x8000_u64, any::<u64>()), 0..200),
        commands in vec((0..20_u64, any::<[u64; 4]>(), 0..4_u64), 1..100),
        bases in any::<[u64; 5]>(),
        anywhere in any::<bool>(),
    ) {
        let vm = FakeVm::with_lpis(2, 4);
        if anywhere {
            for (offset, value) in [0x100, 0x108, 0x80].into_iter().zip(bases) {
                vm.its.as_ref().unwrap().write(offset, Double, value | 1 << 63, 0, &vm.vgic, &vm);
            }
            vm.vgic.redist_write(0, 0x70, Double, bases[3], &vm);
            vm.vgic.redist_write(0, 0x78, Double, bases[4], &vm);
            vm.vgic.redist_write(0, 0, Word, 1, &vm);
            vm.its.as_ref().unwrap().write(0, Word, 1, 0, &vm.vgic, &vm);
        } else {
            vm.start_its();
        }
        for (word, value) in words {
            let base = [QUEUE, DEVICES, COLLECTIONS, ITTS][word as usize % 4];
            vm.memory.write(base + word / 4 % 0x200 * 8, &[value]);
        }
        for (number, [a, b, c, d], small) in commands {
            // Half of them with numbers that may be mapped.
            let command = match small {
                0 | 1 => [a << 8 | number, b, c, d],
                _ => [(a & 3) << 32 | number, (b & 0xff) | u64::from(FIRST_LPI) << 32, c & 0x8000_0000_0001_0003, d & 0x1_0000],
            };
            vm.queue(&[command]);
            vm.settle_all();
            for vcpu in 0..2 {
                vm.acknowledge(vcpu).into_iter().for_each(|intid| vm.end(vcpu, intid));
            }
        }
    }
}
