//! A GICv2: its registers, SGIs and their senders against a model, more interrupts than list registers, real senders.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use std::vec::Vec;

use proptest::collection::vec;
use proptest::prelude::*;

use super::fake::{FakeInterface, PHYSICAL_TIMER, TIMER};
use super::gich;
use super::lr::{self, Control, ListRegister, VgicCpu, VirtualInterface};
use super::{DEFAULT_SPIS, Frame, UserAccessError, Vgic, VgicConfig, VgicConfigError, VgicHost};
use crate::vdev::mmio::AccessSize::{self, Byte, Double, Half, Word};

const IGROUPR: u64 = 0x080;
const ISENABLER: u64 = 0x100;
const ICENABLER: u64 = 0x180;
const ISPENDR: u64 = 0x200;
const ICPENDR: u64 = 0x280;
const ISACTIVER: u64 = 0x300;
const IPRIORITYR: u64 = 0x400;
const ITARGETSR: u64 = 0x800;
const ICFGR: u64 = 0xc00;
const SGIR: u64 = 0xf00;
const CPENDSGIR: u64 = 0xf10;
const SPENDSGIR: u64 = 0xf20;

/// A GICv2's interface: what is written goes through GICH's format.
#[derive(Debug)]
struct FakeV2(FakeInterface);

impl VirtualInterface for FakeV2 {
    const IS_V2: bool = true;

    fn list_registers(&self) -> usize {
        self.0.list_registers()
    }
    fn active_priority_registers(&self) -> usize {
        1
    }
    fn read_lr(&self, n: usize) -> u64 {
        self.0.read_lr(n)
    }
    fn write_lr(&mut self, n: usize, value: u64) {
        self.0.write_lr(n, gich::from_list_register(gich::list_register(value)));
    }
    fn set_control(&mut self, control: Control) {
        self.0.set_control(Control::from_bits_truncate(gich::hcr(control).into()));
    }
    fn eoi_count(&self) -> u32 {
        self.0.eoi_count()
    }
    fn clear_eoi_count(&mut self) {
        self.0.clear_eoi_count();
    }
    fn vmcr(&self) -> u64 {
        self.0.vmcr()
    }
    fn set_vmcr(&mut self, value: u64) {
        self.0.set_vmcr(gich::vmcr(value).into());
    }
    fn ap0r(&self, n: usize) -> u32 {
        self.0.ap0r(n)
    }
    fn set_ap0r(&mut self, n: usize, value: u32) {
        self.0.set_ap0r(n, value);
    }
    fn ap1r(&self, _: usize) -> u32 {
        0
    }
    fn set_ap1r(&mut self, _: usize, _: u32) {}
    fn set_physical_active(&mut self, host_intid: u32, active: bool) {
        self.0.set_physical_active(host_intid, active);
    }
    fn physical_level(&self, host_intid: u32) -> bool {
        self.0.physical_level(host_intid)
    }
}

impl FakeV2 {
    /// GICV_IAR: INTID and sender.
    fn acknowledge(&mut self) -> Option<(u32, u8)> {
        let intid = self.0.acknowledge()?;
        let is = |lr: &&u64| ListRegister(**lr).active() && ListRegister(**lr).intid() == intid;
        Some((intid, self.0.lrs.iter().find(is).map_or(0, |lr| ListRegister(*lr).source())))
    }

    /// Whether GICV_DIR finds an active interrupt: hardware ignores the write otherwise.
    fn deactivate(&mut self, intid: u32) -> bool {
        let is = |lr: &u64| ListRegister(*lr).active() && ListRegister(*lr).intid() == intid;
        let found = self.0.lrs.iter().any(is);
        if found {
            assert!(self.0.deactivate_by_dir(intid));
        }
        found
    }
}

struct Cpu {
    vif: FakeV2,
    cpu: VgicCpu,
    resident: bool,
}

struct Vm {
    vgic: Vgic,
    cpus: Vec<RefCell<Cpu>>,
}

impl VgicHost for Vm {
    fn kick(&self, vcpu: usize) {
        assert!(self.vgic.dirty(vcpu));
    }

    fn sync(&self, vcpu: usize) {
        let Cpu { vif, cpu, resident } = &mut *self.cpus[vcpu].borrow_mut();
        if *resident {
            self.vgic.sync(vcpu, cpu, vif, self);
        }
    }
}

fn vgic(vcpus: usize, spis: usize) -> Vgic {
    let mpidrs: Vec<u64> = (0..vcpus as u64).collect();
    Vgic::new_v2(&VgicConfig { mpidrs: &mpidrs, spis }).unwrap()
}

impl Vm {
    /// All let through, nothing enabled but the SGIs; group 0 is on at the interfaces; all vCPUs resident.
    fn new(vcpus: usize, list_registers: usize, vmcr: u64) -> Self {
        let cpu = |_| {
            let vif = FakeV2(FakeInterface::new(list_registers));
            let cpu = VgicCpu { vmcr: 0xf8 << lr::VMCR_PMR_SHIFT | lr::VMCR_ENG0 | vmcr, ..VgicCpu::new_v2() };
            RefCell::new(Cpu { vif, cpu, resident: false })
        };
        let vm = Self { vgic: vgic(vcpus, 64), cpus: (0..vcpus).map(cpu).collect() };
        vm.write(0, 0, 1);
        for vcpu in 0..vcpus {
            vm.vgic.map_hw(vcpu, TIMER, Some(PHYSICAL_TIMER));
            vm.load(vcpu);
        }
        vm.settle();
        vm
    }

    fn load(&self, vcpu: usize) {
        let Cpu { vif, cpu, resident } = &mut *self.cpus[vcpu].borrow_mut();
        if !*resident {
            self.vgic.load(vcpu, cpu, vif);
            *resident = true;
        }
    }

    fn unload(&self, vcpu: usize) {
        let Cpu { vif, cpu, resident } = &mut *self.cpus[vcpu].borrow_mut();
        if *resident {
            self.vgic.unload(vcpu, cpu, vif, self);
            *resident = false;
            assert!(vif.0.lrs.iter().all(|lr| *lr == 0), "{:x?}", vif.0.lrs);
            assert!(vif.0.physical_active.is_empty());
        }
    }

    /// The timer's line is high; it is acknowledged, and comes again whenever it is inactive.
    fn enter(&self, vcpu: usize) -> bool {
        let Cpu { vif, cpu, resident } = &mut *self.cpus[vcpu].borrow_mut();
        if !*resident {
            return false;
        }
        if vif.0.lines.contains(&PHYSICAL_TIMER) && vif.0.physical_active.insert(PHYSICAL_TIMER) {
            self.vgic.inject_hw(vcpu, TIMER, cpu, vif);
        }
        if vif.0.maintenance() {
            self.vgic.maintenance(vcpu);
        }
        let dirty = self.vgic.dirty(vcpu);
        if dirty {
            self.vgic.flush(vcpu, cpu, vif, self);
            assert!(!vif.0.maintenance(), "the same exit again at once: {vif:x?}");
        }
        vif.0.check_entry();
        dirty
    }

    fn settle(&self) {
        for _ in 0..64 {
            if (0..self.cpus.len()).filter(|vcpu| self.enter(*vcpu)).count() == 0 {
                return;
            }
        }
        panic!("never comes to rest");
    }

    fn read_as(&self, vcpu: usize, offset: u64, size: AccessSize) -> u64 {
        self.vgic.v2_read(vcpu, offset, size, self)
    }

    fn read(&self, vcpu: usize, offset: u64) -> u64 {
        self.read_as(vcpu, offset, Word)
    }

    fn write_as(&self, vcpu: usize, offset: u64, size: AccessSize, value: u64) {
        self.vgic.v2_write(vcpu, offset, size, value, self);
        self.settle();
    }

    fn write(&self, vcpu: usize, offset: u64, value: u64) {
        self.vgic.v2_write(vcpu, offset, Word, value, self);
    }

    fn acknowledge(&self, vcpu: usize) -> Option<(u32, u8)> {
        let acknowledged = self.cpus[vcpu].borrow_mut().vif.acknowledge();
        self.settle();
        acknowledged
    }

    fn end(&self, vcpu: usize, intid: u32) {
        self.cpus[vcpu].borrow_mut().vif.0.end(intid);
        self.settle();
    }
}

mod registers {
    use super::*;

    #[test]
    fn a_gicv2_has_eight_vcpus_at_most() {
        let mpidrs: Vec<u64> = (0..9).collect();
        assert!(Vgic::new_v2(&VgicConfig { mpidrs: &mpidrs[..8], spis: 32 }).is_ok());
        let error = Vgic::new_v2(&VgicConfig { mpidrs: &mpidrs, spis: 32 }).err();
        assert_eq!(error, Some(VgicConfigError::VcpusV2(9)));
    }

    #[test]
    fn reset_to_the_documented_values() {
        let vm = Vm { vgic: vgic(3, DEFAULT_SPIS), cpus: Vec::new() };
        for (offset, value) in [
            (0x000, 0),
            (0x004, 2 << 5 | 7),
            (0x008, 0x4b00_343b),
            (0x00c, 0),
            (0x080, 0),
            (0x084, 0),
            (0x100, 0xffff),
            (0x104, 0),
            (0x400, 0),
            (0x800, 0x0404_0404),
            (0x81c, 0x0404_0404),
            (0x820, 0),
            (0xc00, 0xaaaa_aaaa),
            (0xc04, 0),
            (0xc08, 0),
            (0xd00, 0),
            (0xf00, 0),
            (0xf10, 0),
            (0xfe8, 0),
            (0x1000, 0),
        ] {
            assert_eq!(vm.vgic.v2_read(2, offset, Word, &vm), value, "{offset:#x}");
        }
        assert_eq!(vm.vgic.v2_read(3, 4, Word, &vm), 0, "of a vCPU that is not there");
    }

    #[test]
    fn keep_what_the_specification_says() {
        let vm = Vm::new(2, 4, 0);
        vm.write(0, 0, 0xffff_ffff);
        assert_eq!(vm.read(0, 0), 1);
        vm.write(1, ICFGR, 0);
        vm.write(1, ICFGR + 4, u64::MAX);
        vm.write(1, ICFGR + 8, 0xffff_ffff);
        assert_eq!([0, 4, 8].map(|n| vm.read(1, ICFGR + n)), [0xaaaa_aaaa, 0, 0xaaaa_aaaa]);
        // SGIs are pending through their own registers alone.
        vm.write(0, ISPENDR, 0xffff_ffff);
        assert_eq!(vm.read(0, ISPENDR), 0xffff_0000);
        vm.write(0, ICPENDR, 0xffff_ffff);
        vm.write_as(0, SPENDSGIR + 2, Byte, 2);
        vm.write(0, ICPENDR, 0xffff_ffff);
        assert_eq!(vm.read(0, ISPENDR), 4);
        assert_eq!((vm.read(0, SPENDSGIR), vm.read(0, CPENDSGIR)), (0x2_0000, 0x2_0000));
        vm.write(0, IGROUPR, 0x1234_5678);
        assert_eq!((vm.read(0, IGROUPR), vm.read(1, IGROUPR)), (0x1234_5678, 0));
        for size in [Half, Double] {
            assert_eq!(vm.read_as(0, 4, size), 0);
            vm.write_as(0, ITARGETSR + 32, size, u64::MAX);
            vm.write_as(0, SPENDSGIR, size, u64::MAX);
        }
        assert_eq!((vm.read(0, ITARGETSR + 32), vm.read(0, SPENDSGIR)), (0, 0x2_0000));
    }

    #[test]
    fn the_lowest_target_gets_an_spi() {
        let vm = Vm::new(3, 4, 0);
        vm.write(0, ITARGETSR, 0xffff_ffff);
        assert_eq!((vm.read(0, ITARGETSR), vm.read(2, ITARGETSR + 28)), (0x0101_0101, 0x0404_0404));
        vm.write(0, ISENABLER + 4, 1);
        for (targets, vcpu) in [(0xff_u64, 0), (6, 1), (4, 2), (0, 0), (0xf8, 0)] {
            vm.write_as(1, ITARGETSR + 32, Byte, targets);
            assert_eq!(vm.read_as(0, ITARGETSR + 32, Byte), targets & 7);
            vm.write_as(0, ISPENDR + 4, Word, 1);
            for other in 0..3 {
                let expected = (other == vcpu).then_some((32, 0));
                assert_eq!(vm.acknowledge(other), expected, "targets {targets:#x}");
            }
            vm.end(vcpu, 32);
        }
    }

    #[test]
    fn the_cpu_interface_is_saved_and_restored() {
        let mut cpu = VgicCpu::new_v2();
        let registers = [(0x00, 0x21f), (0x04, 0x1f), (0x08, 7), (0x1c, 7), (0xd0, u32::MAX), (0xd4, 0), (0xdc, 0)];
        for (offset, _) in registers {
            assert_eq!(cpu.user_read(offset), Ok(0), "{offset:#x} at reset");
        }
        for value in [u32::MAX, 0, 0x5555_5555, 0xaaaa_aaaa] {
            for (offset, _) in registers {
                cpu.user_write(offset, value).unwrap();
            }
            for (offset, kept) in registers {
                assert_eq!(cpu.user_read(offset), Ok(value & kept), "{offset:#x}");
            }
        }
        cpu.user_write(0x04, 0x1e).unwrap();
        assert_eq!(cpu.vmcr >> lr::VMCR_PMR_SHIFT, 0xf0, "the register is shown as its five bits");
        cpu.user_write(0xfc, 0).unwrap();
        assert_eq!(cpu.user_read(0xfc), Ok(0x04b2_043b));
        for offset in [0x0c, 0x10, 0x14, 0x18, 0xe0, 0x02, 0x1000] {
            assert_eq!(cpu.user_read(offset), Err(UserAccessError::Unknown), "{offset:#x}");
            assert_eq!(cpu.user_write(offset, 0), Err(UserAccessError::Unknown), "{offset:#x}");
        }
    }

    #[test]
    fn groups_are_restored_only_by_who_knows_them() {
        let vgic = vgic(2, 32);
        let frame = Frame::DistributorV2(1);
        vgic.user_write(frame, IGROUPR, u32::MAX).unwrap();
        assert_eq!(vgic.user_read(frame, IGROUPR), Ok(0));
        assert_eq!(vgic.user_write(frame, 8, 0x4b00_143b), Err(UserAccessError::Invalid));
        vgic.user_write(frame, 8, 0x4b00_243b).unwrap();
        vgic.user_write(frame, IGROUPR, u32::MAX).unwrap();
        assert_eq!((vgic.user_read(frame, IGROUPR), vgic.user_read(frame, 8)), (Ok(u32::MAX), Ok(0x4b00_243b)));
    }

    #[test]
    fn an_sgi_restored_as_pending_is_the_vcpus_own() {
        let vgic = vgic(3, 32);
        let frame = Frame::DistributorV2(2);
        vgic.user_write(frame, ISPENDR, 0x10_0008).unwrap();
        assert_eq!((vgic.user_read(frame, ISPENDR), vgic.user_read(frame, SPENDSGIR)), (Ok(0x10_0008), Ok(4 << 24)));
        vgic.user_write(frame, ICPENDR, u32::MAX).unwrap();
        assert_eq!((vgic.user_read(frame, ISPENDR), vgic.user_read(frame, SPENDSGIR)), (Ok(0), Ok(0)));
    }

    proptest! {
        #[test]
        fn the_distributor_is_saved_and_restored(values in vec((0_usize..2, 0_u64..0xf30, any::<u32>()), 1..400)) {
            let (first, second) = (vgic(2, 64), vgic(2, 64));
            let registers = [
                (IGROUPR, 12), (ISENABLER, 12), (ISPENDR, 12), (ISACTIVER, 12), (IPRIORITYR, 96), (ITARGETSR, 96),
                (ICFGR, 24), (SPENDSGIR, 16),
            ];
            first.user_write(Frame::DistributorV2(0), 8, 0x4b00_343b).unwrap();
            second.user_write(Frame::DistributorV2(0), 8, 0x4b00_343b).unwrap();
            for (vcpu, offset, value) in values {
                // Of SGIs, ISPENDR alone does not say the senders.
                let value = if offset & !3 == ISPENDR { value & !0xffff } else { value };
                let _ = first.user_write(Frame::DistributorV2(vcpu), offset & !3, value);
            }
            for vcpu in 0..2 {
                let frame = Frame::DistributorV2(vcpu);
                let all = registers.iter().flat_map(|(base, length)| (*base..base + length).step_by(4));
                for offset in all.clone() {
                    let value = first.user_read(frame, offset).unwrap();
                    let value = if offset == ISPENDR { value & !0xffff } else { value };
                    second.user_write(frame, offset, value).unwrap();
                    if offset == ISENABLER {
                        second.user_write(frame, ICENABLER, !value).unwrap();
                    }
                }
                for offset in all {
                    prop_assert_eq!(first.user_read(frame, offset), second.user_read(frame, offset), "{:#x}", offset);
                }
            }
        }
    }
}

/// One vCPU of the model: which SGIs of whom are pending, and what runs.
#[derive(Default)]
struct ModelCpu {
    pending: BTreeSet<(u32, u8)>,
    enabled: BTreeSet<u32>,
    priority: [u32; 16],
    /// SGI, sender, priority.
    running: Vec<(u32, u8, u32)>,
}

impl ModelCpu {
    /// The priorities of those that would interrupt it now.
    fn deliverable(&self) -> BTreeSet<(u32, u32)> {
        let running = self.running.last().map_or(0x100, |running| running.2);
        let is_active = |sgi| self.running.iter().any(|running| running.0 == sgi);
        let passes = |(sgi, _): &&(u32, u8)| {
            let priority = self.priority[*sgi as usize];
            self.enabled.contains(sgi) && !is_active(*sgi) && priority < running && priority < 0xf8
        };
        self.pending.iter().filter(passes).map(|(sgi, _)| (self.priority[*sgi as usize], *sgi)).collect()
    }

    fn senders(&self, sgi: u32) -> u8 {
        self.pending.iter().filter(|(other, _)| *other == sgi).fold(0, |mask, (_, sender)| mask | 1 << sender)
    }
}

fn cases() -> u32 {
    std::env::var("KEEL_VGIC_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(1000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sgis_behave_as_the_model(
        vcpus in 1_usize..=4,
        list_registers in prop::sample::select(vec![1_usize, 2, 4]),
        steps in vec(any::<[u8; 4]>(), 1..200),
    ) {
        let vm = Vm::new(vcpus, list_registers, 0);
        let mut model: Vec<ModelCpu> = (0..vcpus).map(|_| ModelCpu::default()).collect();
        for cpu in &mut model {
            cpu.enabled = (0..16).collect();
        }
        for [kind, a, b, c] in steps {
            let (vcpu, sgi) = (a as usize % vcpus, u32::from(b) % 5);
            let resident = vm.cpus[vcpu].borrow().resident;
            let all = (1_u32 << vcpus) - 1;
            match kind % 16 {
                0..=3 => {
                    let filter = u32::from(c) % 4;
                    let list = u32::from(c) >> 2;
                    let targets = match filter {
                        0 => list,
                        1 => !(1 << vcpu),
                        2 => 1 << vcpu,
                        _ => 0,
                    };
                    for target in (0..vcpus).filter(|target| targets & all & 1 << target != 0) {
                        model[target].pending.insert((sgi, vcpu as u8));
                    }
                    vm.write(vcpu, SGIR, u64::from(filter << 24 | list << 16 | sgi));
                }
                4 => {
                    let senders = u32::from(c) & all;
                    for sender in (0..vcpus as u8).filter(|sender| senders & 1 << sender != 0) {
                        model[vcpu].pending.insert((sgi, sender));
                    }
                    vm.write_as(vcpu, SPENDSGIR + u64::from(sgi), Byte, senders.into());
                }
                5 => {
                    model[vcpu].pending.retain(|(other, sender)| *other != sgi || c & 1 << sender == 0);
                    vm.write_as(vcpu, CPENDSGIR + u64::from(sgi), Byte, c.into());
                }
                6 if c & 1 == 0 => {
                    model[vcpu].enabled.remove(&sgi);
                    vm.write(vcpu, ICENABLER, 1 << sgi);
                }
                6 => {
                    model[vcpu].enabled.insert(sgi);
                    vm.write(vcpu, ISENABLER, 1 << sgi);
                }
                7 if !model[vcpu].running.iter().any(|running| running.0 == sgi) => {
                    model[vcpu].priority[sgi as usize] = u32::from(c) & 0xf8;
                    vm.write_as(vcpu, IPRIORITYR + u64::from(sgi), Byte, c.into());
                }
                8 if c & 3 == 0 => vm.unload(vcpu),
                8 => vm.load(vcpu),
                9..=12 if resident => {
                    vm.settle();
                    let acknowledged = vm.acknowledge(vcpu);
                    let deliverable = model[vcpu].deliverable();
                    prop_assert_eq!(acknowledged.is_some(), !deliverable.is_empty());
                    if let Some((intid, sender)) = acknowledged {
                        let priority = model[vcpu].priority[intid as usize];
                        prop_assert_eq!(deliverable.first().map(|first| first.0), Some(priority));
                        prop_assert!(model[vcpu].pending.remove(&(intid, sender)), "SGI {} of {}", intid, sender);
                        model[vcpu].running.push((intid, sender, priority));
                    }
                }
                13..=15 if resident => {
                    if let Some((intid, ..)) = model[vcpu].running.pop() {
                        vm.end(vcpu, intid);
                    }
                }
                _ => {}
            }
            vm.settle();
            for (vcpu, cpu) in model.iter().enumerate() {
                let deliverable = cpu.deliverable();
                if vm.cpus[vcpu].borrow().resident {
                    let signalled = vm.cpus[vcpu].borrow().vif.0.highest_pending();
                    prop_assert_eq!(signalled.map(|found| found.0), deliverable.first().map(|first| first.0));
                } else if cpu.running.is_empty() {
                    let pending = vm.vgic.pending(vcpu, &vm.cpus[vcpu].borrow().cpu);
                    prop_assert_eq!(pending, !deliverable.is_empty(), "vCPU {} waits", vcpu);
                }
                if kind & 0x30 == 0 {
                    for sgi in 0..5 {
                        let senders = vm.read_as(vcpu, SPENDSGIR + u64::from(sgi), Byte);
                        prop_assert_eq!(senders, u64::from(cpu.senders(sgi)), "senders of {} on {}", sgi, vcpu);
                    }
                    let pending = (0..5).fold(0, |mask, sgi| mask | u64::from(cpu.senders(sgi) != 0) << sgi);
                    prop_assert_eq!(vm.read(vcpu, ISPENDR), pending);
                    vm.settle();
                }
            }
        }
    }
}

#[test]
fn a_timer_ends_with_an_exit_and_comes_again() {
    let vm = Vm::new(1, 4, 0);
    vm.write(0, ISENABLER, 1 << TIMER);
    vm.cpus[0].borrow_mut().vif.0.lines.insert(PHYSICAL_TIMER);
    for _ in 0..3 {
        vm.settle();
        assert_eq!(vm.acknowledge(0), Some((TIMER, 0)));
        assert!(vm.cpus[0].borrow().vif.0.physical_active.contains(&PHYSICAL_TIMER), "it would come again at once");
        vm.end(0, TIMER);
    }
    // It leaves its CPU while the interrupt is pending, and finds it again.
    vm.unload(0);
    vm.load(0);
    vm.settle();
    vm.cpus[0].borrow_mut().vif.0.lines.remove(&PHYSICAL_TIMER);
    vm.sync(0);
    vm.settle();
    assert_eq!(vm.acknowledge(0), None, "its line has fallen");
    assert!(vm.cpus[0].borrow().vif.0.physical_active.is_empty());
}

#[test]
fn active_interrupts_stay_where_dir_finds_them() {
    for list_registers in [1, 2, 4] {
        let vm = Vm::new(1, list_registers, lr::VMCR_EOIM);
        let intids: BTreeSet<u32> = (40..46).chain([TIMER]).collect();
        vm.write(0, ISENABLER, 1 << TIMER);
        vm.write(0, ISENABLER + 4, 0x3f << 8);
        vm.write(0, ICFGR + 8, 0xffff_ffff);
        vm.write(0, ISPENDR + 4, 0x3f << 8);
        vm.cpus[0].borrow_mut().vif.0.lines.insert(PHYSICAL_TIMER);
        vm.settle();
        let (mut seen, mut active) = (BTreeSet::new(), Vec::new());
        while seen.len() < intids.len() {
            while let Some((intid, _)) = vm.acknowledge(0) {
                if intid == TIMER {
                    vm.cpus[0].borrow_mut().vif.0.lines.remove(&PHYSICAL_TIMER);
                }
                assert!(seen.insert(intid), "{intid} twice with {list_registers}");
                vm.end(0, intid);
                active.push(intid);
            }
            assert!(active.len() <= list_registers, "{active:?}");
            let oldest = active.remove(0);
            assert!(vm.cpus[0].borrow_mut().vif.deactivate(oldest), "DIR of {oldest} is lost with {list_registers}");
            vm.settle();
        }
        assert_eq!(seen, intids);
        for intid in active {
            assert!(vm.cpus[0].borrow_mut().vif.deactivate(intid), "DIR of {intid} is lost");
            vm.settle();
        }
        assert_eq!((vm.read(0, ISACTIVER), vm.read(0, ISACTIVER + 4)), (0, 0));
    }
}

/// Three vCPUs send two SGIs to a fourth as fast as they go: what was sent last is handled last.
#[test]
fn no_sender_is_lost() {
    const ROUNDS: u64 = 50_000;
    struct Polling;
    impl VgicHost for Polling {
        fn kick(&self, _: usize) {}
        fn sync(&self, _: usize) {}
    }
    let vgic = vgic(4, 32);
    vgic.v2_write(0, 0, Word, 1, &Polling);
    let cells = || [const { [const { AtomicU64::new(0) }; 2] }; 4];
    let (sent, handled) = (cells(), cells());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (vgic, sent, handled, done) = (&vgic, &sent, &handled, &done);
        let senders: Vec<_> = (1..4)
            .map(|from| {
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let sgi = round % 2;
                        sent[from][sgi as usize].fetch_add(1, SeqCst);
                        vgic.v2_write(from, SGIR, Word, 1 << 16 | sgi, &Polling);
                        if round.is_multiple_of(7) {
                            thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        scope.spawn(move || {
            let (mut cpu, mut vif) = (VgicCpu::new_v2(), FakeV2(FakeInterface::new(1)));
            cpu.vmcr = lr::VMCR_ENG0 | 0xf8 << lr::VMCR_PMR_SHIFT;
            vgic.load(0, &mut cpu, &mut vif);
            let start = Instant::now();
            let quiet = || {
                let cells = sent.iter().flatten().zip(handled.iter().flatten());
                done.load(SeqCst) && cells.into_iter().all(|(sent, handled)| sent.load(SeqCst) == handled.load(SeqCst))
            };
            while !quiet() {
                assert!(start.elapsed() < Duration::from_secs(60), "lost: {sent:?} {handled:?} {vif:x?}");
                if vif.0.maintenance() || vgic.dirty(0) {
                    vgic.flush(0, &mut cpu, &mut vif, &Polling);
                }
                match vif.acknowledge() {
                    Some((intid, from)) => {
                        let (sent, handled) =
                            (&sent[from as usize][intid as usize], &handled[from as usize][intid as usize]);
                        handled.store(sent.load(SeqCst), SeqCst);
                        vif.0.end(intid);
                    }
                    None => thread::yield_now(),
                }
            }
        });
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        done.store(true, SeqCst);
    });
}
