//! A model of a GICv3 virtual CPU interface, and a VM of such CPUs, for tests.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::vec::Vec;

use super::cpu_registers::{self, Abilities};
use super::lr::{self, Control, ListRegister, VgicCpu, VirtualInterface};
use super::trapped::{self, CommonRegister, Interface};
use super::{FIRST_LPI, Frame, Vgic, VgicHost};
use crate::vdev::its::Its;
use crate::vdev::memory::GuestMemory;

/// First address of the fake memory, and its end.
pub(super) const MEMORY: std::ops::Range<u64> = 0x4000_0000..0x4100_0000;

/// Memory, as words that are not zero.
#[derive(Debug, Default)]
pub(super) struct FakeMemory(pub(super) Mutex<BTreeMap<u64, u64>>);

impl FakeMemory {
    fn is_inside(address: u64, count: usize) -> bool {
        let end = address.checked_add(8 * count as u64);
        address.is_multiple_of(8) && MEMORY.contains(&address) && end.is_some_and(|end| end <= MEMORY.end)
    }

    /// Sets a byte.
    pub(super) fn set_byte(&self, address: u64, value: u8) {
        let shift = address % 8 * 8;
        let word = self.word(address & !7).unwrap();
        assert!(self.write(address & !7, &[word & !(0xff << shift) | u64::from(value) << shift]));
    }
}

impl GuestMemory for FakeMemory {
    fn read(&self, address: u64, words: &mut [u64]) -> bool {
        let memory = self.0.lock().unwrap();
        if Self::is_inside(address, words.len()) {
            for (n, word) in words.iter_mut().enumerate() {
                *word = memory.get(&(address + 8 * n as u64)).copied().unwrap_or(0);
            }
        }
        Self::is_inside(address, words.len())
    }

    fn write(&self, address: u64, words: &[u64]) -> bool {
        let mut memory = self.0.lock().unwrap();
        if Self::is_inside(address, words.len()) {
            memory.extend(words.iter().enumerate().map(|(n, word)| (address + 8 * n as u64, *word)));
        }
        Self::is_inside(address, words.len())
    }
}

/// One CPU's ICH_* and the private physical interrupts of that CPU.
#[derive(Debug, Default)]
pub(super) struct FakeInterface {
    pub(super) lrs: Vec<u64>,
    pub(super) control: Control,
    pub(super) vmcr: u64,
    pub(super) eoi_count: u32,
    /// ICC_DIR_EL1 cannot trap alone (ICH_VTR_EL2.TDS = 0).
    pub(super) lacks_tdir: bool,
    active_priorities: [u32; 2],
    /// Physical interrupts that are active.
    pub(super) physical_active: BTreeSet<u32>,
    /// Physical lines that are high.
    pub(super) lines: BTreeSet<u32>,
}

impl FakeInterface {
    pub(super) fn new(list_registers: usize) -> Self {
        Self { lrs: vec![0; list_registers], ..Self::default() }
    }

    fn group(lr: u64) -> usize {
        usize::from(lr & lr::GROUP1 != 0)
    }

    fn priority(lr: u64) -> u32 {
        (lr >> lr::PRIORITY_SHIFT & 0xff) as u32
    }

    /// The running priority; 0x100 when idle. There are 32 levels, so a bit of APR is a priority's top five.
    pub(super) fn running(&self) -> u32 {
        (self.active_priorities[0] | self.active_priorities[1]).trailing_zeros() << 3
    }

    fn signalled(&self) -> Option<(u32, u32, usize)> {
        let eligible = |lr: u64| {
            lr & (lr::PENDING | lr::ACTIVE) == lr::PENDING
                && self.vmcr & [lr::VMCR_ENG0, lr::VMCR_ENG1][Self::group(lr)] != 0
                && u64::from(Self::priority(lr)) < self.vmcr >> lr::VMCR_PMR_SHIFT
                && Self::priority(lr) < self.running()
        };
        let candidates = self.lrs.iter().enumerate().filter(|(_, lr)| eligible(**lr));
        candidates.map(|(n, lr)| (Self::priority(*lr), *lr as u32, n)).min()
    }

    /// The interrupt that the guest would be interrupted by: priority and INTID.
    pub(super) fn highest_pending(&self) -> Option<(u32, u32)> {
        self.signalled().map(|(priority, intid, _)| (priority, intid))
    }

    /// ICC_IAR: acknowledges the highest pending interrupt.
    pub(super) fn acknowledge(&mut self) -> Option<u32> {
        let (priority, intid, n) = self.signalled()?;
        self.lrs[n] = self.lrs[n] & !lr::PENDING | lr::ACTIVE;
        self.active_priorities[Self::group(self.lrs[n])] |= 1 << (priority >> 3);
        Some(intid)
    }

    fn deactivate(&mut self, intid: u32) {
        if intid >= FIRST_LPI && !self.lrs.iter().any(|lr| lr & lr::ACTIVE != 0 && *lr as u32 == intid) {
            // Not counted (IHI 0069 §12.4.3).
            return;
        }
        let is = |lr: &&mut u64| **lr & lr::ACTIVE != 0 && **lr as u32 == intid;
        match self.lrs.iter_mut().find(is) {
            Some(lr) => {
                *lr &= !lr::ACTIVE;
                if *lr & lr::HW != 0 {
                    self.physical_active.remove(&((*lr >> lr::PINTID_SHIFT) as u32 & 0x1fff));
                }
            }
            None => self.eoi_count += 1,
        }
    }

    /// ICC_EOIR: drops the running priority; in EOImode 0 also deactivates.
    pub(super) fn end(&mut self, intid: u32) {
        let lowest = self.running() >> 3;
        for priorities in &mut self.active_priorities {
            *priorities &= !1_u32.checked_shl(lowest).unwrap_or(0);
        }
        if self.vmcr & lr::VMCR_EOIM == 0 || intid >= FIRST_LPI {
            self.deactivate(intid);
        } else if !self.lrs.iter().any(|lr| lr & lr::ACTIVE != 0 && *lr as u32 == intid) {
            // QEMU's counts these too.
            self.eoi_count += 1;
        }
    }

    /// ICC_DIR; false: it traps.
    pub(super) fn deactivate_by_dir(&mut self, intid: u32) -> bool {
        if self.control.intersects(Control::TRAP_DEACTIVATE | Control::TRAP_COMMON) {
            return false;
        }
        self.deactivate(intid);
        true
    }

    /// The guest writes ICC_PMR_EL1 or ICC_CTLR_EL1: trapped, or, what comes to the same, not.
    pub(super) fn write_common(&mut self, register: CommonRegister, value: u64) {
        if self.control.contains(Control::TRAP_COMMON) {
            return trapped::write(register, value, INTERFACE, self);
        }
        self.vmcr = match register {
            CommonRegister::Pmr => self.vmcr & 0xff_ffff | (value & 0xf8) << lr::VMCR_PMR_SHIFT,
            CommonRegister::Ctlr => self.vmcr & !(1 << 4 | 1 << 9) | (value & 1) << 4 | (value & 2) << 8,
            CommonRegister::Rpr => unreachable!("it is read-only"),
        };
    }

    /// ICC_RPR_EL1 as it is read where it traps.
    pub(super) fn trapped_running(&self) -> u64 {
        trapped::read(CommonRegister::Rpr, INTERFACE, self)
    }

    /// Whether the maintenance interrupt is asserted (ICH_MISR_EL2).
    pub(super) fn maintenance(&self) -> bool {
        let state = |lr: &u64| lr & (lr::PENDING | lr::ACTIVE);
        self.lrs.iter().any(|lr| state(lr) == 0 && lr & lr::HW == 0 && lr & lr::EOI != 0)
            || self.control.contains(Control::NO_PENDING) && !self.lrs.iter().any(|lr| state(lr) == lr::PENDING)
            || self.control.contains(Control::ENTRY_NOT_PRESENT) && self.eoi_count != 0
            || self.control.contains(Control::GROUP0_ENABLED) && self.vmcr & lr::VMCR_ENG0 != 0
            || self.control.contains(Control::GROUP0_DISABLED) && self.vmcr & lr::VMCR_ENG0 == 0
            || self.control.contains(Control::GROUP1_DISABLED) && self.vmcr & lr::VMCR_ENG1 == 0
            || self.control.contains(Control::GROUP1_ENABLED) && self.vmcr & lr::VMCR_ENG1 != 0
    }

    /// What must hold whenever the guest is entered.
    pub(super) fn check_entry(&self) {
        let valid = || self.lrs.iter().copied().filter(|lr| lr & (lr::PENDING | lr::ACTIVE) != 0);
        for lr in valid() {
            let same = valid().filter(|other| ListRegister(*other).intid() == ListRegister(lr).intid());
            assert_eq!(same.count(), 1, "{:#x} is loaded twice: {:x?}", lr as u32, self.lrs);
            if lr & lr::HW != 0 {
                assert_ne!(lr >> 62, 3, "pending and active with HW: {lr:#x}");
                let physical = (lr >> lr::PINTID_SHIFT) as u32 & 0x1fff;
                assert!(self.physical_active.contains(&physical), "{physical} is not active: {lr:#x}");
            }
        }
    }
}

impl VirtualInterface for FakeInterface {
    fn list_registers(&self) -> usize {
        self.lrs.len()
    }

    fn active_priority_registers(&self) -> usize {
        1
    }

    fn read_lr(&self, n: usize) -> u64 {
        self.lrs[n]
    }

    fn write_lr(&mut self, n: usize, value: u64) {
        self.lrs[n] = value;
    }

    fn set_control(&mut self, control: Control) {
        self.control = control.trapping_deactivations(!self.lacks_tdir);
    }

    fn eoi_count(&self) -> u32 {
        self.eoi_count
    }

    fn clear_eoi_count(&mut self) {
        self.eoi_count = 0;
    }

    fn vmcr(&self) -> u64 {
        self.vmcr
    }

    fn set_vmcr(&mut self, value: u64) {
        self.vmcr = value;
    }

    fn ap0r(&self, n: usize) -> u32 {
        assert_eq!(n, 0);
        self.active_priorities[0]
    }

    fn set_ap0r(&mut self, n: usize, value: u32) {
        assert_eq!(n, 0);
        self.active_priorities[0] = value;
    }

    fn ap1r(&self, n: usize) -> u32 {
        assert_eq!(n, 0);
        self.active_priorities[1]
    }

    fn set_ap1r(&mut self, n: usize, value: u32) {
        assert_eq!(n, 0);
        self.active_priorities[1] = value;
    }

    fn set_physical_active(&mut self, host_intid: u32, active: bool) {
        if active {
            self.physical_active.insert(host_intid);
        } else {
            self.physical_active.remove(&host_intid);
        }
    }

    fn physical_level(&self, host_intid: u32) -> bool {
        self.lines.contains(&host_intid)
    }
}

/// The physical interrupt that the virtual timer of the fake machine has.
pub(super) const PHYSICAL_TIMER: u32 = 26;
/// The PPI that is mapped to it.
pub(super) const TIMER: u32 = 27;

/// A vCPU and the CPU that only it runs on.
#[derive(Debug)]
pub(super) struct FakeCpu {
    pub(super) vif: FakeInterface,
    pub(super) cpu: VgicCpu,
    pub(super) resident: bool,
}

/// A VM whose vCPUs all run on CPUs of their own, one step at a time.
pub(super) struct FakeVm {
    pub(super) vgic: Vgic,
    pub(super) cpus: Vec<RefCell<FakeCpu>>,
    pub(super) kicks: RefCell<Vec<usize>>,
    /// Ends that were told.
    pub(super) ended: RefCell<Vec<u32>>,
    /// Times that a CPU was to come back soon.
    pub(super) came_back: Cell<u32>,
    /// The ITS of a VM that has LPIs, and its memory.
    pub(super) its: Option<Its>,
    pub(super) memory: Arc<FakeMemory>,
    direct: Cell<bool>,
}

impl VgicHost for FakeVm {
    fn kick(&self, vcpu: usize) {
        assert!(self.vgic.dirty(vcpu));
        self.kicks.borrow_mut().push(vcpu);
    }

    fn sync(&self, vcpu: usize) {
        // One that is being flushed has folded its list registers back.
        let Ok(mut cpu) = self.cpus[vcpu].try_borrow_mut() else { return };
        let FakeCpu { vif, cpu, resident } = &mut *cpu;
        if *resident {
            self.vgic.sync(vcpu, cpu, vif, self);
        }
    }

    fn come_back(&self, _: usize) {
        self.came_back.set(self.came_back.get() + 1);
    }

    fn ended(&self, intid: u32) {
        self.ended.borrow_mut().push(intid);
    }

    fn carry_on(&self, vcpu: usize) {
        self.its.as_ref().unwrap().carry_on(vcpu, &self.vgic, self);
    }
}

impl FakeVm {
    /// A VM with 64 SPIs, everything let through and nothing enabled but the SGIs; all vCPUs resident.
    pub(super) fn new(vcpus: usize, list_registers: usize) -> Self {
        let mpidrs: Vec<u64> = (0..vcpus as u64).collect();
        let vgic = Vgic::new(&super::VgicConfig { mpidrs: &mpidrs, spis: 64 }).unwrap();
        Self::of(vgic, list_registers)
    }

    /// The same on CPUs that cannot trap ICC_DIR_EL1 alone; `always`: they trap what they can at all times.
    pub(super) fn without_tdir(vcpus: usize, list_registers: usize, always: bool) -> Self {
        let mpidrs: Vec<u64> = (0..vcpus as u64).collect();
        let vgic = Vgic::new(&super::VgicConfig { mpidrs: &mpidrs, spis: 64 }).unwrap();
        if always {
            vgic.always_control(Control::TRAP_COMMON);
        }
        let vm = Self::of(vgic, list_registers);
        vm.cpus.iter().for_each(|cpu| cpu.borrow_mut().vif.lacks_tdir = true);
        vm
    }

    /// The same with LPIs and an ITS.
    pub(super) fn with_lpis(vcpus: usize, list_registers: usize) -> Self {
        let mpidrs: Vec<u64> = (0..vcpus as u64).collect();
        let vgic = Vgic::new(&super::VgicConfig { mpidrs: &mpidrs, spis: 64 }).unwrap();
        let memory = Arc::new(FakeMemory::default());
        vgic.give_lpis(memory.clone()).unwrap();
        Self { its: Some(Its::new(memory.clone())), memory, ..Self::of(vgic, list_registers) }
    }

    fn of(vgic: Vgic, list_registers: usize) -> Self {
        let vcpus = vgic.vcpus();
        let cpu = |_| {
            let cpu = FakeCpu { vif: FakeInterface::new(list_registers), cpu: VgicCpu::new(), resident: false };
            RefCell::new(cpu)
        };
        let vm = Self {
            vgic,
            cpus: (0..vcpus).map(cpu).collect(),
            kicks: RefCell::new(Vec::new()),
            ended: RefCell::new(Vec::new()),
            came_back: Cell::new(0),
            its: None,
            memory: Arc::default(),
            direct: Cell::new(false),
        };
        vm.vgic.dist_write(0, crate::vdev::mmio::AccessSize::Word, 2, &vm);
        for vcpu in 0..vcpus {
            vm.vgic.map_hw(vcpu, TIMER, Some(PHYSICAL_TIMER));
            vm.cpus[vcpu].borrow_mut().cpu.vmcr = lr::VMCR_FIQEN | lr::VMCR_ENG1 | 0xf8 << lr::VMCR_PMR_SHIFT;
            vm.load(vcpu);
        }
        vm.settle();
        vm
    }

    pub(super) fn load(&self, vcpu: usize) {
        let FakeCpu { vif, cpu, resident } = &mut *self.cpus[vcpu].borrow_mut();
        if !*resident {
            self.vgic.load(vcpu, cpu, vif);
            *resident = true;
        }
    }

    /// Takes the vCPU off its CPU, and leaves that as the next vCPU might.
    pub(super) fn unload(&self, vcpu: usize) {
        let FakeCpu { vif, cpu, resident } = &mut *self.cpus[vcpu].borrow_mut();
        if *resident {
            self.vgic.unload(vcpu, cpu, vif, self);
            *resident = false;
            assert!(vif.lrs.iter().all(|lr| *lr == 0), "{:x?}", vif.lrs);
            assert_eq!(vif.control, Control::empty());
            assert!(vif.physical_active.is_empty());
            vif.vmcr = 0xdead_0000;
            vif.active_priorities = [0x5555, 0xaaaa];
        }
    }

    /// One CPU takes its physical interrupts and comes to the point where it enters its guest. True if it had something to do.
    pub(super) fn enter(&self, vcpu: usize) -> bool {
        let FakeCpu { vif, cpu, resident } = &mut *self.cpus[vcpu].borrow_mut();
        if !*resident {
            return false;
        }
        if vif.lines.contains(&PHYSICAL_TIMER) && vif.physical_active.insert(PHYSICAL_TIMER) {
            // By either way.
            if self.direct.replace(!self.direct.get()) {
                self.vgic.inject_hw(vcpu, TIMER, cpu, vif);
            } else {
                self.vgic.raise_hw(vcpu, TIMER);
            }
        }
        if vif.maintenance() {
            self.vgic.maintenance(vcpu);
        }
        let dirty = self.vgic.dirty(vcpu);
        if dirty {
            self.vgic.flush(vcpu, cpu, vif, self);
            assert!(!vif.maintenance(), "the same exit again at once: {vif:x?}");
        }
        vif.check_entry();
        dirty
    }

    /// Lets all CPUs take notice of what happened.
    pub(super) fn settle(&self) {
        for _ in 0..64 {
            if (0..self.cpus.len()).filter(|vcpu| self.enter(*vcpu)).count() == 0 {
                return;
            }
        }
        panic!("never comes to rest");
    }

    /// The interrupt that would interrupt the guest on `vcpu`.
    pub(super) fn highest_pending(&self, vcpu: usize) -> Option<(u32, u32)> {
        self.cpus[vcpu].borrow().vif.highest_pending()
    }

    /// The guest acknowledges; then everything settles.
    pub(super) fn acknowledge(&self, vcpu: usize) -> Option<u32> {
        let intid = self.cpus[vcpu].borrow_mut().vif.acknowledge();
        self.settle();
        intid
    }

    /// The guest ends an interrupt; then everything settles.
    pub(super) fn end(&self, vcpu: usize, intid: u32) {
        self.cpus[vcpu].borrow_mut().vif.end(intid);
        self.settle();
    }

    /// The guest writes ICC_DIR; then everything settles.
    pub(super) fn deactivate(&self, vcpu: usize, intid: u32) {
        {
            let FakeCpu { vif, cpu, .. } = &mut *self.cpus[vcpu].borrow_mut();
            if !vif.deactivate_by_dir(intid) {
                self.vgic.deactivate(vcpu, intid, cpu, vif, self);
            }
        }
        self.settle();
    }

    /// Sets the line of the physical timer. That is an exit of the guest, for it writes the timer's registers.
    pub(super) fn set_timer(&self, vcpu: usize, high: bool) {
        let resident = {
            let mut cpu = self.cpus[vcpu].borrow_mut();
            if high {
                cpu.vif.lines.insert(PHYSICAL_TIMER);
            } else {
                cpu.vif.lines.remove(&PHYSICAL_TIMER);
            }
            cpu.resident
        };
        if resident {
            self.sync(vcpu);
        } else {
            self.vgic.set_hw_level(vcpu, TIMER, high);
        }
        self.settle();
    }
}

/// What saves a CPU interface, all of it.
const CPU_REGISTERS: [u16; 8] = [0xc664, 0xc230, 0xc643, 0xc663, 0xc644, 0xc648, 0xc666, 0xc667];
/// The fake CPU interface's ICH_VTR_EL2: 5 bits of priorities, 24 of INTIDs.
const ABILITIES: Abilities = Abilities(4 << 29 | 4 << 26 | 1 << 23);
const INTERFACE: Interface = Interface { abilities: ABILITIES, control: 0 };

impl FakeVm {
    /// Another VM, with the state of this one as whoever saves and restores it moves that, and the same memory. Lines of
    /// physical interrupts, and which vCPUs are resident, come along.
    pub(super) fn restored(&self) -> Self {
        let (from, vcpus) = (&self.vgic, self.cpus.len());
        let resident: Vec<bool> = self.cpus.iter().map(|cpu| cpu.borrow().resident).collect();
        (0..vcpus).for_each(|vcpu| self.unload(vcpu));
        assert!(from.save_pending_lpis());
        let mpidrs: Vec<u64> = (0..vcpus as u64).collect();
        let vgic = Vgic::new(&super::VgicConfig { mpidrs: &mpidrs, spis: 64 }).unwrap();
        vgic.always_control(from.always());
        if self.its.is_some() {
            vgic.give_lpis(self.memory.clone()).unwrap();
        }
        let list_registers = self.cpus[0].borrow().vif.lrs.len();
        let cpu = |vcpu: usize| {
            let mut vif = FakeInterface::new(list_registers);
            vif.lines.clone_from(&self.cpus[vcpu].borrow().vif.lines);
            vif.lacks_tdir = self.cpus[vcpu].borrow().vif.lacks_tdir;
            RefCell::new(FakeCpu { vif, cpu: VgicCpu::new(), resident: false })
        };
        let to = Self {
            vgic,
            cpus: (0..vcpus).map(cpu).collect(),
            kicks: RefCell::new(Vec::new()),
            ended: RefCell::new(Vec::new()),
            came_back: Cell::new(0),
            its: self.its.as_ref().map(|_| Its::new(self.memory.clone())),
            memory: self.memory.clone(),
            direct: Cell::new(self.direct.get()),
        };
        let copy = |frame, offsets: &mut dyn Iterator<Item = u64>| {
            for offset in offsets {
                to.vgic.user_write(frame, offset, from.user_read(frame, offset).unwrap()).unwrap();
            }
        };
        // Configuration before state: groups, enables, priorities, triggers, routes; then latches and the active state.
        let words = |offsets: std::ops::Range<u64>| offsets.step_by(4);
        copy(Frame::Distributor, &mut words(8..0xc));
        let configuration = [0x84..0x8c, 0x104..0x10c, 0x420..0x460, 0xc08..0xc18, 0x6100..0x6300];
        copy(Frame::Distributor, &mut configuration.into_iter().flatten_words());
        for vcpu in 0..vcpus {
            to.vgic.map_hw(vcpu, TIMER, Some(PHYSICAL_TIMER));
            let frame = Frame::Redistributor(vcpu);
            copy(frame, &mut [0x1_0080..0x1_0084, 0x1_0100..0x1_0104, 0x1_0400..0x1_0420].into_iter().flatten_words());
            to.vgic.user_write(frame, 0x1_0180, !from.user_read(frame, 0x1_0100).unwrap()).unwrap();
            copy(frame, &mut words(0x1_0200..0x1_0204).chain(words(0x1_0300..0x1_0304)));
            to.vgic.set_line_levels(vcpu, 0, from.line_levels(vcpu, 0), &to);
            copy(frame, &mut words(0x70..0x80));
            copy(frame, &mut words(0..4));
            let (saved, restored) = (self.cpus[vcpu].borrow(), &mut to.cpus[vcpu].borrow_mut().cpu);
            for register in CPU_REGISTERS {
                let value = cpu_registers::read(&saved.cpu, ABILITIES, register).unwrap();
                cpu_registers::write(restored, ABILITIES, register, value).unwrap();
            }
        }
        for intid in [32, 64] {
            to.vgic.set_line_levels(0, intid, from.line_levels(0, intid), &to);
        }
        copy(Frame::Distributor, &mut [0x204..0x20c, 0x304..0x30c].into_iter().flatten_words());
        copy(Frame::Distributor, &mut words(0..4));
        if let (Some(old), Some(new)) = (&self.its, &to.its) {
            for offset in [0x04, 0x80, 0x88, 0x90, 0x100, 0x108, 0x00] {
                let value = old.user_read(offset, from, self).unwrap();
                new.user_write(offset, value, &to.vgic, &to).unwrap();
            }
        }
        (0..vcpus).filter(|vcpu| resident[*vcpu]).for_each(|vcpu| to.load(vcpu));
        to
    }
}

/// Ranges of offsets, word by word.
trait FlattenWords: Iterator<Item = std::ops::Range<u64>> + Sized {
    fn flatten_words(self) -> impl Iterator<Item = u64> {
        self.flat_map(|range| range.step_by(4))
    }
}

impl<I: Iterator<Item = std::ops::Range<u64>>> FlattenWords for I {}
