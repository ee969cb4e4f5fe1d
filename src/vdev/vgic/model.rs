//! Random guests against an obvious model: one record for each interrupt, no list registers.
//!
//! After every step the interrupt that each CPU signals, and the pending and active state that the registers show, must be
//! exactly the model's, also after the VM was saved and restored into another. So nothing is lost, doubled, delivered while it
//! should not be, or left behind. KEEL_VGIC_CASES sets
//! the number of cases, of about 150 steps each.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::fake::{FakeVm, TIMER};
use super::lr;
use super::trapped::CommonRegister;
use super::{SgiRegister, VgicHost};
use crate::vdev::mmio::AccessSize::{Byte, Word};

/// The interrupts in play: SGIs, a PPI, the mapped timer, SPIs of two words.
const INTIDS: [u32; 14] = [0, 1, 2, 15, 20, TIMER, 32, 33, 34, 63, 64, 65, 66, 95];

#[derive(Clone, Debug, Default)]
struct Interrupt {
    intid: u32,
    enabled: bool,
    edge: bool,
    level: bool,
    latch: bool,
    active: bool,
    group0: bool,
    priority: u32,
    /// The vCPU it goes to.
    target: usize,
}

impl Interrupt {
    fn pending(&self) -> bool {
        self.latch || self.level && !self.edge
    }
}

#[derive(Debug, Default)]
struct ModelCpu {
    private: Vec<Interrupt>,
    /// Acknowledged and not ended: INTID, priority.
    running: Vec<(u32, u32)>,
    /// Ended and not deactivated (EOImode 1).
    dropped: Vec<u32>,
    vmcr: u64,
}

#[derive(Debug)]
struct Model {
    cpus: Vec<ModelCpu>,
    shared: Vec<Interrupt>,
    let_through: bool,
}

impl Model {
    fn new(vcpus: usize, eoi_mode: bool) -> Self {
        let interrupt = |intid: &u32, target| Interrupt {
            intid: *intid,
            enabled: *intid < 16,
            edge: *intid < 16,
            target,
            ..Interrupt::default()
        };
        let cpu = |vcpu| ModelCpu {
            private: INTIDS.iter().filter(|intid| **intid < 32).map(|intid| interrupt(intid, vcpu)).collect(),
            vmcr: 0xf8 << lr::VMCR_PMR_SHIFT
                | lr::VMCR_ENG1
                | lr::VMCR_FIQEN
                | if eoi_mode { lr::VMCR_EOIM } else { 0 },
            ..ModelCpu::default()
        };
        Self {
            cpus: (0..vcpus).map(cpu).collect(),
            shared: INTIDS.iter().filter(|intid| **intid >= 32).map(|intid| interrupt(intid, 0)).collect(),
            let_through: true,
        }
    }

    fn interrupt(&mut self, vcpu: usize, intid: u32) -> &mut Interrupt {
        let interrupts = if intid < 32 { &mut self.cpus[vcpu].private } else { &mut self.shared };
        interrupts.iter_mut().find(|interrupt| interrupt.intid == intid).unwrap()
    }

    /// The interrupts with which a vCPU would be interrupted that runs at priority `running`: priority and INTID.
    fn deliverable(&self, vcpu: usize, running: u32) -> BTreeSet<(u32, u32)> {
        let cpu = &self.cpus[vcpu];
        let passes = |interrupt: &&Interrupt| {
            self.let_through
                && interrupt.target == vcpu
                && interrupt.pending()
                && interrupt.enabled
                && !interrupt.active
                && cpu.vmcr & if interrupt.group0 { lr::VMCR_ENG0 } else { lr::VMCR_ENG1 } != 0
                && u64::from(interrupt.priority) < cpu.vmcr >> lr::VMCR_PMR_SHIFT
                && interrupt.priority < running
        };
        cpu.private.iter().chain(&self.shared).filter(passes).map(|i| (i.priority, i.intid)).collect()
    }

    fn word(&self, vcpu: usize, word: u32, of: impl Fn(&Interrupt) -> bool) -> u64 {
        let interrupts = self.cpus[vcpu].private.iter().chain(&self.shared);
        let in_word = interrupts.filter(|interrupt| interrupt.intid / 32 == word);
        in_word.fold(0, |bits, interrupt| bits | u64::from(of(interrupt)) << (interrupt.intid % 32))
    }

    /// Whether saving and restoring moves all there is. It does not tell who serves a shared interrupt, only where it goes;
    /// nor the lines of edge-triggered ones.
    fn can_be_moved(&self) -> bool {
        let lines = self.shared.iter().all(|interrupt| !(interrupt.edge && interrupt.level));
        lines
            && self.cpus.iter().enumerate().all(|(vcpu, cpu)| {
                let served = cpu.running.iter().map(|running| running.0).chain(cpu.dropped.iter().copied());
                let target =
                    |intid| self.shared.iter().find(|shared| shared.intid == intid).map(|shared| shared.target);
                served.filter_map(target).all(|target| target == vcpu)
            })
    }

    /// In the handler of some vCPU: the guest leaves its active state alone.
    fn in_service(&self, vcpu: usize, intid: u32) -> bool {
        self.cpus.iter().enumerate().any(|(index, cpu)| {
            (intid >= 32 || index == vcpu)
                && (cpu.running.iter().any(|running| running.0 == intid) || cpu.dropped.contains(&intid))
        })
    }
}

/// What of the CPU interface traps.
#[derive(Clone, Copy, Debug)]
enum Trap {
    /// ICC_DIR_EL1, when it has to.
    Deactivations,
    /// Then all that both groups share.
    Common,
    /// That at all times.
    Always,
}

struct Run {
    vm: FakeVm,
    model: Model,
    list_registers: usize,
    eoi_mode: bool,
}

impl Run {
    fn new(vcpus: usize, list_registers: usize, eoi_mode: bool, trap: Trap) -> Self {
        let vm = match trap {
            Trap::Deactivations => FakeVm::new(vcpus, list_registers),
            Trap::Common => FakeVm::without_tdir(vcpus, list_registers, false),
            Trap::Always => FakeVm::without_tdir(vcpus, list_registers, true),
        };
        let run = Self { vm, model: Model::new(vcpus, eoi_mode), list_registers, eoi_mode };
        for vcpu in 0..vcpus {
            run.vm.cpus[vcpu].borrow_mut().vif.vmcr = run.model.cpus[vcpu].vmcr;
        }
        run
    }

    /// Writes a register with one bit for each interrupt, whose SPI row starts at `offset`.
    fn write_bit(&self, vcpu: usize, intid: u32, offset: u64) {
        self.write(vcpu, intid, offset + u64::from(intid / 32) * 4, 1 << (intid % 32));
    }

    fn write(&self, vcpu: usize, intid: u32, offset: u64, value: u64) {
        let size = if (0x400..0x800).contains(&offset) { Byte } else { Word };
        if intid < 32 {
            self.vm.vgic.redist_write(vcpu, 0x1_0000 + offset, size, value, &self.vm);
        } else {
            self.vm.vgic.dist_write(offset, size, value, &self.vm);
        }
    }

    fn step(&mut self, [kind, a, b, c]: [u8; 4]) {
        let vcpus = self.model.cpus.len();
        let vcpu = a as usize % vcpus;
        let intid = INTIDS[b as usize % INTIDS.len()];
        let on = c & 1 != 0;
        let resident = self.vm.cpus[vcpu].borrow().resident;
        let vm = &self.vm;
        let model = &mut self.model;
        match kind % 31 {
            0 | 1 => {
                model.interrupt(vcpu, intid).enabled = on || c & 2 != 0;
                let on = model.interrupt(vcpu, intid).enabled;
                self.write_bit(vcpu, intid, if on { 0x100 } else { 0x180 });
            }
            2 => {
                model.interrupt(vcpu, intid).latch = true;
                self.write_bit(vcpu, intid, 0x200);
            }
            3 => {
                model.interrupt(vcpu, intid).latch = false;
                self.write_bit(vcpu, intid, 0x280);
            }
            // Of an active interrupt the priority must stay what it was acknowledged with.
            4 if !model.in_service(vcpu, intid) => {
                let priority = u32::from(c) & 0xf8;
                model.interrupt(vcpu, intid).priority = priority;
                self.write(vcpu, intid, 0x400 + u64::from(intid), c.into());
            }
            5 if intid >= 32 => {
                model.interrupt(vcpu, intid).edge = on;
                let word = model.word(vcpu, intid / 32, |interrupt| interrupt.edge);
                let half = word >> (intid & 16);
                let value = (0..16).fold(0, |value, n| value | (half >> n & 1) << (2 * n + 1));
                self.write(vcpu, intid, 0xc00 + u64::from(intid / 16) * 4, value);
            }
            6 => {
                model.interrupt(vcpu, intid).group0 = c & 3 == 0;
                let value = !model.word(vcpu, intid / 32, |interrupt| interrupt.group0) & 0xffff_ffff;
                self.write(vcpu, intid, 0x80 + u64::from(intid / 32) * 4, value);
            }
            7 if intid >= 32 => {
                // A vCPU, or nowhere.
                let target = c as usize % (vcpus + 1);
                let affinity = if target < vcpus { target as u64 } else { 77 };
                model.interrupt(vcpu, intid).target = target;
                self.write(vcpu, intid, 0x6000 + u64::from(intid) * 8, affinity);
            }
            8 => {
                model.let_through = c & 7 != 0;
                vm.vgic.dist_write(0, Word, u64::from(model.let_through) << 1, vm);
            }
            // Without enough list registers the end of an interrupt can only be guessed, so leave it alone then.
            9 if self.list_registers >= INTIDS.len() && !model.in_service(vcpu, intid) => {
                model.interrupt(vcpu, intid).active = on;
                self.write_bit(vcpu, intid, if on { 0x300 } else { 0x380 });
            }
            10 | 11 => {
                let sgi = u32::from(b) % 16;
                let targets = u64::from(c & 7);
                let everyone_else = c & 0x38 == 0;
                let register = if c & 0xc0 == 0 { SgiRegister::Sgi0r } else { SgiRegister::Sgi1r };
                let value = targets | u64::from(sgi) << 24 | u64::from(everyone_else) << 40;
                if !INTIDS.contains(&sgi) {
                    return;
                }
                for target in 0..vcpus {
                    let chosen = if everyone_else { target != vcpu } else { targets & 1 << target != 0 };
                    let interrupt = model.interrupt(target, sgi);
                    interrupt.latch |= chosen && (register == SgiRegister::Sgi1r || interrupt.group0);
                }
                vm.vgic.send_sgi(vcpu, register, value, vm);
            }
            12..=14 if intid == TIMER => {
                model.interrupt(vcpu, intid).level = on;
                vm.set_timer(vcpu, on);
            }
            12..=14 if intid >= 16 => {
                let interrupt = model.interrupt(vcpu, intid);
                interrupt.level = on;
                interrupt.latch |= on && interrupt.edge;
                if intid < 32 {
                    vm.vgic.set_ppi(vcpu, intid, on, vm);
                } else {
                    vm.vgic.set_spi(intid, on, vm);
                }
            }
            15 => {
                if c & 3 == 0 {
                    vm.unload(vcpu);
                } else {
                    vm.load(vcpu);
                }
            }
            16 if resident => {
                let bit = if c & 2 == 0 { lr::VMCR_ENG0 } else { lr::VMCR_ENG1 };
                let vmcr = &mut model.cpus[vcpu].vmcr;
                if c & 0x1c != 0 {
                    *vmcr |= bit;
                } else {
                    *vmcr &= !bit;
                }
                vm.cpus[vcpu].borrow_mut().vif.vmcr = *vmcr;
            }
            17 if resident => {
                let vmcr = &mut model.cpus[vcpu].vmcr;
                let pmr = if c < 224 { 0xf8 } else { u64::from(c << 2) & 0xf8 };
                *vmcr = *vmcr & 0xff_ffff | pmr << lr::VMCR_PMR_SHIFT;
                let mut cpu = vm.cpus[vcpu].borrow_mut();
                cpu.vif.write_common(CommonRegister::Pmr, pmr | u64::from(c & 7));
                assert_eq!(cpu.vif.vmcr, *vmcr);
            }
            18..=21 if resident => {
                if let Some(intid) = vm.acknowledge(vcpu) {
                    let interrupt = model.interrupt(vcpu, intid);
                    interrupt.latch = false;
                    interrupt.active = true;
                    let priority = interrupt.priority;
                    model.cpus[vcpu].running.push((intid, priority));
                }
            }
            22..=26 if resident && !model.cpus[vcpu].running.is_empty() => {
                if let Some((intid, _)) = model.cpus[vcpu].running.pop() {
                    if self.eoi_mode {
                        model.cpus[vcpu].dropped.push(intid);
                    } else {
                        model.interrupt(vcpu, intid).active = false;
                    }
                    vm.end(vcpu, intid);
                }
            }
            22..=29 if resident && !model.cpus[vcpu].dropped.is_empty() => {
                let which = b as usize % model.cpus[vcpu].dropped.len();
                let intid = model.cpus[vcpu].dropped.swap_remove(which);
                model.interrupt(vcpu, intid).active = false;
                vm.deactivate(vcpu, intid);
            }
            30 if c & 3 == 0 && model.can_be_moved() => self.vm = vm.restored(),
            _ => {}
        }
    }

    fn check(&self, read: bool) {
        let vm = &self.vm;
        vm.settle();
        for (vcpu, cpu) in self.model.cpus.iter().enumerate() {
            if vm.cpus[vcpu].borrow().resident {
                let running = cpu.running.last().map_or(0x100, |running| running.1);
                let vif = &vm.cpus[vcpu].borrow().vif;
                assert_eq!((vif.running(), vif.trapped_running()), (running, running.min(0xff).into()));
                let deliverable = self.model.deliverable(vcpu, running);
                let signalled = vm.highest_pending(vcpu);
                // Any of those with the highest priority.
                let priority = |interrupt: (u32, u32)| interrupt.0;
                assert_eq!(signalled.map(priority), deliverable.first().copied().map(priority), "vCPU {vcpu}");
                assert!(signalled.is_none_or(|interrupt| deliverable.contains(&interrupt)), "{signalled:?} on {vcpu}");
            } else {
                let level = cpu.private.iter().any(|interrupt| interrupt.intid == TIMER && interrupt.level);
                vm.vgic.set_hw_level(vcpu, TIMER, level);
                let pending = !self.model.deliverable(vcpu, 0x100).is_empty();
                assert_eq!(vm.vgic.pending(vcpu, &vm.cpus[vcpu].borrow().cpu), pending, "vCPU {vcpu} waits");
            }
        }
        if !read {
            return;
        }
        for vcpu in 0..self.model.cpus.len() {
            // While the timer is active its line is hardware's affair.
            let timer_active =
                self.model.word(vcpu, 0, |interrupt| interrupt.intid == TIMER && interrupt.active) & 1 << TIMER;
            for word in 0..3 {
                let read = |offset| {
                    if word == 0 {
                        vm.vgic.redist_read(vcpu, 0x1_0000 + offset, Word, vm)
                    } else {
                        vm.vgic.dist_read(offset + 4 * u64::from(word), Word, vm)
                    }
                };
                let ignored = if word == 0 { timer_active } else { 0 };
                let pending = self.model.word(vcpu, word, Interrupt::pending) & !ignored;
                assert_eq!(read(0x200) & !ignored, pending, "pending, vCPU {vcpu} word {word}");
                let active = self.model.word(vcpu, word, |interrupt| interrupt.active);
                assert_eq!(read(0x300), active, "active, vCPU {vcpu} word {word}");
            }
        }
        vm.settle();
    }
}

fn cases() -> u32 {
    std::env::var("KEEL_VGIC_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(3000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn behaves_as_the_model(
        vcpus in 1_usize..=3,
        list_registers in prop::sample::select(vec![1_usize, 2, 3, 4, 16]),
        eoi_mode in any::<bool>(),
        trap in prop::sample::select(vec![Trap::Deactivations, Trap::Common, Trap::Always]),
        steps in vec(any::<[u8; 4]>(), 1..300),
    ) {
        let mut run = Run::new(vcpus, list_registers, eoi_mode, trap);
        for vcpu in 0..vcpus {
            for intid in INTIDS {
                // Most of what happens needs interrupts that are on.
                run.step([0, vcpu as u8, INTIDS.iter().position(|i| *i == intid).unwrap() as u8, 1]);
            }
        }
        for step in steps {
            run.step(step);
            run.check(step[3] & 0x1c == 0);
        }
    }
}

#[test]
fn the_host_is_asked_only_when_something_is_loaded() {
    struct Never;
    impl VgicHost for Never {
        fn kick(&self, _: usize) {}
        fn sync(&self, vcpu: usize) {
            panic!("sync of {vcpu}");
        }
    }
    let vm = FakeVm::new(2, 4);
    vm.vgic.dist_write(0x104, Word, 1, &vm);
    vm.vgic.set_spi(33, true, &vm);
    vm.settle();
    for offset in [0x204, 0x304] {
        vm.vgic.dist_read(offset, Word, &Never);
        vm.vgic.redist_read(1, 0x1_0000 + offset - 4, Word, &Never);
    }
}
