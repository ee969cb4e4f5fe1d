//! Models for tests: a physical GICv3, both kinds of CPU interface, and an owner's machine whose CPUs act one at a time.
//!
//! The same [`FakeGic`] serves the machine that keel runs on and the bare one that it is compared with.

use std::cell::{Cell, RefCell};
use std::vec::Vec;

use super::{
    AccessSize, Accessor, Control, Frame, InterfaceState, IntidSet, OwnerCpu, OwnerGic, OwnerGicConfig, OwnerHost,
    PRIVATE, PhysicalGic, SGIS, VirtualInterface, lr,
};

/// INTIDs of the fake machine are below this.
pub(super) const LIMIT: u32 = 160;
/// The EL1 timers' PPIs.
pub(super) const TIMERS: u32 = 1 << 27 | 1 << 30;
/// keel's own PPIs.
pub(super) const KEPT: u32 = 1 << 25 | 1 << 26;
/// The priority of the timers' interrupts while other VMs use them.
pub(super) const TIMER_PRIORITY: u8 = 0x10;
/// Above the running priority of an idle CPU interface.
pub(super) const IDLE: u32 = 0x100;

/// What a physical GIC knows of an interrupt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Interrupt {
    pub(super) enabled: bool,
    pub(super) edge: bool,
    pub(super) line: bool,
    pub(super) latch: bool,
    pub(super) active: bool,
    pub(super) priority: u8,
    /// The CPU it goes to.
    pub(super) route: u64,
}

impl Interrupt {
    pub(super) fn is_pending(&self) -> bool {
        self.latch || self.line && !self.edge
    }
}

/// A GICv3 with affinity routing, everything in group 1.
#[derive(Debug)]
pub(super) struct FakeGic {
    /// Private ones of each CPU, then SPIs.
    interrupts: RefCell<Vec<Interrupt>>,
    cpus: usize,
    /// The CPU that executes.
    pub(super) here: Cell<usize>,
    /// Writes to registers that are not modelled.
    pub(super) other_writes: RefCell<Vec<(Frame, u64, u64)>>,
}

impl FakeGic {
    /// SGIs are enabled, and all have one priority.
    pub(super) fn new(cpus: usize) -> Self {
        let private = (0..cpus).flat_map(|_| 0..PRIVATE);
        let interrupt = |intid: u32| Interrupt {
            enabled: intid < SGIS,
            edge: intid < SGIS,
            priority: 0x80,
            ..Interrupt::default()
        };
        Self {
            interrupts: RefCell::new(private.chain(PRIVATE..LIMIT).map(interrupt).collect()),
            cpus,
            here: Cell::new(0),
            other_writes: RefCell::new(Vec::new()),
        }
    }

    fn index(&self, cpu: usize, intid: u32) -> usize {
        let private = PRIVATE as usize;
        if intid < PRIVATE { cpu * private + intid as usize } else { (self.cpus - 1) * private + intid as usize }
    }

    pub(super) fn get(&self, cpu: usize, intid: u32) -> Interrupt {
        self.interrupts.borrow()[self.index(cpu, intid)]
    }

    pub(super) fn change<R>(&self, cpu: usize, intid: u32, change: impl FnOnce(&mut Interrupt) -> R) -> R {
        let index = self.index(cpu, intid);
        change(&mut self.interrupts.borrow_mut()[index])
    }

    /// A device's edge, an SGI, or a message.
    pub(super) fn pulse(&self, cpu: usize, intid: u32) {
        self.change(cpu, intid, |interrupt| interrupt.latch = true);
    }

    pub(super) fn set_line(&self, cpu: usize, intid: u32, high: bool) {
        self.change(cpu, intid, |interrupt| interrupt.line = high);
    }

    /// What `cpu` would be interrupted by while it runs at priority `running`.
    pub(super) fn deliverable(&self, cpu: usize, running: u32) -> impl Iterator<Item = u32> + '_ {
        (0..LIMIT).filter(move |&intid| {
            let i = self.get(cpu, intid);
            let here = intid < PRIVATE || i.route == cpu as u64;
            here && i.enabled && i.is_pending() && !i.active && u32::from(i.priority) < running
        })
    }

    /// ICC_IAR1_EL1: the one of the highest priority becomes active, and what was latched is used up.
    pub(super) fn acknowledge(&self, cpu: usize, running: u32) -> Option<u32> {
        let intid = self.deliverable(cpu, running).min_by_key(|&intid| (self.get(cpu, intid).priority, intid))?;
        self.change(cpu, intid, |interrupt| (interrupt.active, interrupt.latch) = (true, false));
        Some(intid)
    }

    fn bits(&self, cpu: usize, word: u32, of: impl Fn(&Interrupt) -> bool) -> u64 {
        let intids = (32 * word..32 * word + 32).filter(|&intid| intid < LIMIT);
        intids.fold(0, |bits, intid| bits | u64::from(of(&self.get(cpu, intid))) << (intid % 32))
    }

    pub(super) fn pending_word(&self, cpu: usize, word: u32) -> u64 {
        self.bits(cpu, word, Interrupt::is_pending)
    }

    pub(super) fn active_word(&self, cpu: usize, word: u32) -> u64 {
        self.bits(cpu, word, |interrupt| interrupt.active)
    }

    /// The CPU whose private interrupts, and the offset as in GICD.
    fn place(frame: Frame, offset: u64) -> Option<(usize, u64)> {
        match frame {
            Frame::Distributor => Some((0, offset)),
            Frame::Redistributor(cpu) => offset.checked_sub(0x1_0000).map(|offset| (cpu, offset)),
        }
    }
}

/// Registers that are not modelled read as ones.
impl PhysicalGic for FakeGic {
    fn read(&self, frame: Frame, offset: u64, size: AccessSize) -> u64 {
        assert!(offset.is_multiple_of(size.bytes()));
        let Some((cpu, at)) = Self::place(frame, offset) else { return size.mask() };
        let word = (at as u32 & 0x7f) / 4;
        match at {
            0x100..0x200 => self.bits(cpu, word, |interrupt| interrupt.enabled),
            0x200..0x300 => self.pending_word(cpu, word),
            0x300..0x400 => self.active_word(cpu, word),
            0x400..0x800 => (0..size.bytes()).fold(0, |value, n| {
                let intid = (at - 0x400 + n) as u32;
                value | if intid < LIMIT { u64::from(self.get(cpu, intid).priority) << (8 * n) } else { 0 }
            }),
            0xc00..0xd00 => (0..16).fold(0, |value, n| {
                let intid = (at - 0xc00) as u32 * 4 + n;
                value | if intid < LIMIT { u64::from(self.get(cpu, intid).edge) << (2 * n + 1) } else { 0 }
            }),
            0x6100..0x8000 => {
                let intid = ((at - 0x6000) / 8) as u32;
                if intid < LIMIT { self.get(cpu, intid).route >> (8 * (at & 7)) & size.mask() } else { 0 }
            }
            _ => size.mask(),
        }
    }

    fn write(&self, frame: Frame, offset: u64, size: AccessSize, value: u64) {
        assert!(offset.is_multiple_of(size.bytes()));
        assert_eq!(value & !size.mask(), 0);
        let other = || self.other_writes.borrow_mut().push((frame, offset, value));
        let Some((cpu, at)) = Self::place(frame, offset) else { return other() };
        let each = |set: &dyn Fn(&mut Interrupt)| {
            let first = (at as u32 & 0x7f) * 8;
            for intid in (0..32).filter(|n| value >> n & 1 != 0).map(|n| first + n).filter(|&intid| intid < LIMIT) {
                self.change(cpu, intid, set);
            }
        };
        match at {
            0x40 if (PRIVATE..LIMIT).contains(&(value as u32)) => self.pulse(0, value as u32),
            0x48 if (PRIVATE..LIMIT).contains(&(value as u32)) => self.change(0, value as u32, |i| i.latch = false),
            0x100..0x180 => each(&|interrupt| interrupt.enabled = true),
            0x180..0x200 => each(&|interrupt| interrupt.enabled = false),
            0x200..0x280 => each(&|interrupt| interrupt.latch = true),
            0x280..0x300 => each(&|interrupt| interrupt.latch = false),
            0x300..0x380 => each(&|interrupt| interrupt.active = true),
            0x380..0x400 => each(&|interrupt| interrupt.active = false),
            0x400..0x800 => (0..size.bytes()).for_each(|n| {
                let intid = (at - 0x400 + n) as u32;
                if intid < LIMIT {
                    self.change(cpu, intid, |interrupt| interrupt.priority = (value >> (8 * n)) as u8);
                }
            }),
            0xc00..0xd00 => (0..16).for_each(|n| {
                let intid = (at - 0xc00) as u32 * 4 + n;
                if intid < LIMIT {
                    self.change(cpu, intid, |interrupt| interrupt.edge = value >> (2 * n + 1) & 1 != 0);
                }
            }),
            0x6100..0x8000 if ((at - 0x6000) / 8) < u64::from(LIMIT) => {
                let shift = 8 * (at & 7);
                self.change(cpu, ((at - 0x6000) / 8) as u32, |interrupt| {
                    interrupt.route = interrupt.route & !(size.mask() << shift) | value << shift;
                });
            }
            _ => other(),
        }
    }

    fn deactivate(&self, intid: u32) {
        self.change(self.here.get(), intid, |interrupt| interrupt.active = false);
    }
}

/// Active priorities of group 1 as bits of ICC_AP1R0_EL1 or ICH_AP1R0_EL2: 32 levels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ActivePriorities(pub(super) u32);

impl ActivePriorities {
    pub(super) fn running(self) -> u32 {
        self.0.trailing_zeros() << 3
    }

    fn enter(&mut self, priority: u32) {
        self.0 |= 1 << (priority >> 3);
    }

    /// The priority that was left.
    fn leave(&mut self) -> Option<u32> {
        let running = self.running();
        self.0 &= self.0.wrapping_sub(1);
        (running < IDLE).then_some(running)
    }
}

/// The physical CPU interface, as a kernel uses it that has the CPU for itself.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NativeInterface {
    pub(super) priorities: ActivePriorities,
    pub(super) eoi_mode: bool,
}

impl NativeInterface {
    pub(super) fn acknowledge(&mut self, cpu: usize, gic: &FakeGic) -> Option<u32> {
        let intid = gic.acknowledge(cpu, self.priorities.running())?;
        self.priorities.enter(gic.get(cpu, intid).priority.into());
        Some(intid)
    }

    pub(super) fn end(&mut self, cpu: usize, intid: u32, gic: &FakeGic) {
        if self.priorities.leave().is_some() && !self.eoi_mode {
            self.deactivate(cpu, intid, gic);
        }
    }

    pub(super) fn deactivate(&self, cpu: usize, intid: u32, gic: &FakeGic) {
        gic.change(cpu, intid, |interrupt| interrupt.active = false);
    }
}

/// The virtual CPU interface of one CPU. Where implementations differ it takes what is harder for software: an end
/// without a list register counts in both EOI modes, and a write of ICH_HCR_EL2 clears EOIcount, as keel's driver does.
#[derive(Clone, Debug, Default)]
pub(super) struct FakeInterface {
    pub(super) lrs: Vec<u64>,
    pub(super) control: Control,
    pub(super) vmcr: u64,
    pub(super) eoi_count: u32,
    pub(super) priorities: ActivePriorities,
    /// ICC_DIR_EL1 cannot trap alone (ICH_VTR_EL2.TDS = 0).
    lacks_tdir: bool,
}

const STATE: u64 = lr::PENDING | lr::ACTIVE;

pub(super) fn priority(lr: u64) -> u32 {
    (lr >> lr::PRIORITY_SHIFT & 0xff) as u32
}

impl FakeInterface {
    pub(super) fn new(list_registers: usize) -> Self {
        Self { lrs: vec![0; list_registers], ..Self::default() }
    }

    /// ICC_IAR1_EL1 of the guest.
    pub(super) fn acknowledge(&mut self) -> Option<u32> {
        let running = self.priorities.running();
        let is_eligible = |lr: &u64| lr & STATE == lr::PENDING && priority(*lr) < running;
        let candidates = self.lrs.iter().copied().enumerate().filter(|(_, lr)| is_eligible(lr));
        let (n, lr) = candidates.min_by_key(|&(_, lr)| (priority(lr), lr as u32))?;
        if self.vmcr & lr::VMCR_ENG1 == 0 {
            return None;
        }
        self.lrs[n] = lr & !lr::PENDING | lr::ACTIVE;
        self.priorities.enter(priority(lr));
        Some(lr as u32)
    }

    fn active(&self, intid: u32) -> Option<usize> {
        self.lrs.iter().position(|&lr| lr & lr::ACTIVE != 0 && lr as u32 == intid)
    }

    fn deactivate_lr(&mut self, n: usize, gic: &FakeGic) {
        let lr = self.lrs[n];
        if lr & lr::HW != 0 {
            gic.deactivate((lr >> lr::PINTID_SHIFT) as u32 & 0x1fff);
        }
        self.lrs[n] = lr & !lr::ACTIVE;
    }

    /// ICC_EOIR1_EL1 of the guest.
    pub(super) fn end(&mut self, intid: u32, gic: &FakeGic) {
        let Some(dropped) = self.priorities.leave() else { return };
        match self.active(intid) {
            None => self.eoi_count += 1,
            Some(n) if self.vmcr & lr::VMCR_EOIM == 0 && priority(self.lrs[n]) & !7 == dropped => {
                self.deactivate_lr(n, gic);
            }
            Some(_) => {}
        }
    }

    /// ICC_DIR_EL1 of the guest; false: it traps.
    pub(super) fn deactivate(&mut self, intid: u32, gic: &FakeGic) -> bool {
        if self.control.intersects(Control::TRAP_DEACTIVATE | Control::TRAP_COMMON) {
            return false;
        }
        if self.vmcr & lr::VMCR_EOIM != 0 {
            match self.active(intid) {
                None => self.eoi_count += 1,
                Some(n) => self.deactivate_lr(n, gic),
            }
        }
        true
    }

    /// Whether the maintenance interrupt is asserted.
    pub(super) fn maintenance(&self) -> bool {
        self.control.contains(Control::NO_PENDING) && !self.lrs.iter().any(|lr| lr & STATE == lr::PENDING)
            || self.control.contains(Control::ENTRY_NOT_PRESENT) && self.eoi_count != 0
    }

    /// What must hold whenever the guest is entered.
    fn check(&self, cpu: usize, gic: &FakeGic) {
        let valid = || self.lrs.iter().copied().filter(|lr| lr & STATE != 0);
        for lr in valid() {
            let intid = lr as u32;
            assert_eq!(valid().filter(|&other| other as u32 == intid).count(), 1, "{intid} twice: {:x?}", self.lrs);
            assert_ne!(lr & lr::GROUP1, 0);
            if intid < SGIS {
                assert_eq!(lr & lr::HW, 0, "{lr:#x}");
                assert!(!gic.get(cpu, intid).active, "SGI {intid}");
            } else {
                assert_ne!(lr & lr::HW, 0, "{lr:#x}");
                assert_eq!((lr >> lr::PINTID_SHIFT) as u32 & 0x1fff, intid);
                assert_ne!(lr & STATE, STATE, "pending and active with HW: {lr:#x}");
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
        self.eoi_count = 0;
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

    fn ap0r(&self, _: usize) -> u32 {
        0
    }

    fn set_ap0r(&mut self, _: usize, value: u32) {
        assert_eq!(value, 0);
    }

    fn ap1r(&self, n: usize) -> u32 {
        assert_eq!(n, 0);
        self.priorities.0
    }

    fn set_ap1r(&mut self, n: usize, value: u32) {
        assert_eq!(n, 0);
        self.priorities.0 = value;
    }

    fn set_physical_active(&mut self, _: u32, _: bool) {
        unreachable!("the owner's GIC does it at the redistributor");
    }
}

/// Where a vCPU of the owner is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// On its CPU, under keel.
    Resident,
    /// Off its CPU, which other VMs use.
    Parked,
    /// On its CPU without keel.
    Native(NativeInterface),
}

/// A CPU and the owner's vCPU that it has.
#[derive(Debug)]
pub(super) struct FakeCpu {
    pub(super) cpu: OwnerCpu,
    pub(super) vif: FakeInterface,
    pub(super) place: Place,
    /// Lines of the vCPU's own timers: they reach the GIC only while it has the CPU.
    timers: u32,
}

/// The machine and its owner.
#[derive(Debug)]
pub(super) struct FakeMachine {
    pub(super) owner: OwnerGic,
    pub(super) gic: FakeGic,
    pub(super) cpus: Vec<RefCell<FakeCpu>>,
    /// Whether a CPU that was asked to settle acknowledges what is pending before the asking one goes on.
    pub(super) eager: Cell<bool>,
    maintenance_first: Cell<bool>,
}

impl OwnerHost for FakeMachine {
    fn settle(&self, vcpu: usize) {
        let is_resident = {
            let FakeCpu { cpu, vif, place, .. } = &mut *self.cpus[vcpu].borrow_mut();
            let is_resident = matches!(place, Place::Resident);
            if is_resident {
                self.owner.settle(vcpu, cpu, vif, &self.gic);
            }
            is_resident
        };
        if is_resident && self.eager.get() {
            let here = self.gic.here.get();
            self.interrupts(vcpu);
            self.gic.here.set(here);
        }
    }

    fn held(&self, vcpu: usize) -> IntidSet {
        let cpu = self.cpus[vcpu].borrow();
        if matches!(cpu.place, Place::Resident) { IntidSet::EMPTY } else { OwnerGic::held(&cpu.cpu) }
    }

    fn retract(&self, vcpu: usize, without: &IntidSet) {
        let FakeCpu { cpu, place, .. } = &mut *self.cpus[vcpu].borrow_mut();
        if !matches!(place, Place::Resident) {
            self.owner.retract(vcpu, cpu, without, &self.gic);
        }
    }
}

impl FakeMachine {
    /// All vCPUs resident, the distributor on.
    pub(super) fn new(vcpus: usize, list_registers: usize, eoi_mode: bool) -> Self {
        Self::of(vcpus, list_registers, eoi_mode, false, false)
    }

    /// The same on CPUs that may lack a trap of ICC_DIR_EL1 alone, or trap it, with more, at all times.
    pub(super) fn of(vcpus: usize, list_registers: usize, eoi_mode: bool, lacks_tdir: bool, always: bool) -> Self {
        let config =
            OwnerGicConfig { vcpus, kept: KEPT, timers: TIMERS, timer_priority: TIMER_PRIORITY, enabled: true };
        let cpu = |_| {
            let mut cpu = OwnerCpu::new();
            cpu.interface.vmcr |= lr::VMCR_ENG1 | 0xf8 << lr::VMCR_PMR_SHIFT | if eoi_mode { lr::VMCR_EOIM } else { 0 };
            cpu.timer_priorities = [0x80; 16];
            let vif = FakeInterface { lacks_tdir, ..FakeInterface::new(list_registers) };
            RefCell::new(FakeCpu { cpu, vif, place: Place::Parked, timers: 0 })
        };
        let mut owner = OwnerGic::new(config);
        if always {
            owner.trap_common_registers();
        }
        let machine = Self {
            owner,
            gic: FakeGic::new(vcpus),
            cpus: (0..vcpus).map(cpu).collect(),
            eager: Cell::new(false),
            maintenance_first: Cell::new(false),
        };
        for vcpu in 0..vcpus {
            // As keel sets its CPUs up.
            for intid in (0..PRIVATE).filter(|intid| TIMERS >> intid & 1 != 0) {
                machine.gic.change(vcpu, intid, |timer| (timer.enabled, timer.priority) = (true, TIMER_PRIORITY));
            }
            machine.load(vcpu);
        }
        machine
    }

    /// The owner has enabled a timer, with this priority; in hardware it is as keel has set it up.
    pub(super) fn enable_timer(&self, vcpu: usize, intid: u32, priority: u8) {
        let cpu = &mut self.cpus[vcpu].borrow_mut().cpu;
        cpu.timers_enabled |= 1 << intid;
        cpu.timer_priorities[intid as usize % 16] = priority;
        self.gic.change(vcpu, intid, |timer| (timer.enabled, timer.priority) = (true, TIMER_PRIORITY));
    }

    pub(super) fn is_resident(&self, vcpu: usize) -> bool {
        matches!(self.cpus[vcpu].borrow().place, Place::Resident)
    }

    pub(super) fn is_native(&self, vcpu: usize) -> bool {
        matches!(self.cpus[vcpu].borrow().place, Place::Native(_))
    }

    /// EL2 of this CPU takes all there is.
    pub(super) fn interrupts(&self, vcpu: usize) {
        self.gic.here.set(vcpu);
        let FakeCpu { cpu, vif, place, .. } = &mut *self.cpus[vcpu].borrow_mut();
        if matches!(place, Place::Native(_)) {
            return;
        }
        let is_resident = matches!(place, Place::Resident);
        // Either may come first.
        self.maintenance_first.set(!self.maintenance_first.get());
        if is_resident && self.maintenance_first.get() && vif.maintenance() {
            self.owner.maintenance(vcpu, cpu, vif, &self.gic);
        }
        for _ in 0..200 {
            if let Some(intid) = self.gic.acknowledge(vcpu, IDLE) {
                if is_resident {
                    self.owner.take(vcpu, intid, cpu, vif, &self.gic);
                } else {
                    self.owner.queue(vcpu, intid, cpu, &self.gic);
                }
            } else if is_resident && vif.maintenance() {
                self.owner.maintenance(vcpu, cpu, vif, &self.gic);
            } else {
                if is_resident {
                    vif.check(vcpu, &self.gic);
                }
                return;
            }
        }
        panic!("vCPU {vcpu} never comes to rest: {vif:x?}, {cpu:x?}");
    }

    /// All CPUs come to rest.
    pub(super) fn rest(&self) {
        (0..self.cpus.len()).for_each(|vcpu| self.interrupts(vcpu));
    }

    fn connect(&self, vcpu: usize, timers: u32) {
        for intid in (0..PRIVATE).filter(|intid| TIMERS >> intid & 1 != 0) {
            self.gic.set_line(vcpu, intid, timers >> intid & 1 != 0);
        }
    }

    pub(super) fn set_timer(&self, vcpu: usize, intid: u32, high: bool) {
        let mut cpu = self.cpus[vcpu].borrow_mut();
        cpu.timers = cpu.timers & !(1 << intid) | u32::from(high) << intid;
        if !matches!(cpu.place, Place::Parked) {
            self.connect(vcpu, cpu.timers);
        }
    }

    /// Puts a parked vCPU on its CPU.
    pub(super) fn load(&self, vcpu: usize) {
        self.gic.here.set(vcpu);
        let FakeCpu { cpu, vif, place, timers } = &mut *self.cpus[vcpu].borrow_mut();
        self.owner.load(vcpu, cpu, vif, &self.gic);
        *place = Place::Resident;
        self.connect(vcpu, *timers);
    }

    /// Takes a resident vCPU off its CPU, and leaves that as another VM might.
    pub(super) fn unload(&self, vcpu: usize) {
        self.gic.here.set(vcpu);
        let FakeCpu { cpu, vif, place, .. } = &mut *self.cpus[vcpu].borrow_mut();
        self.owner.unload(vcpu, cpu, vif, &self.gic);
        *place = Place::Parked;
        self.connect(vcpu, 0);
        assert!(vif.lrs.iter().all(|&lr| lr & (lr::PENDING | lr::ACTIVE) == 0), "{:x?}", vif.lrs);
        assert_eq!(vif.control, Control::empty());
        for intid in (0..PRIVATE).filter(|intid| TIMERS >> intid & 1 != 0) {
            let timer = self.gic.get(vcpu, intid);
            assert!(timer.enabled && !timer.active && timer.priority == TIMER_PRIORITY, "{intid}: {timer:?}");
        }
        vif.vmcr = 0xdead_0000;
        vif.priorities.0 = 0xaaaa;
    }

    /// keel leaves the CPU of a resident vCPU.
    pub(super) fn depart(&self, vcpu: usize) {
        self.gic.here.set(vcpu);
        let FakeCpu { cpu, vif, place, .. } = &mut *self.cpus[vcpu].borrow_mut();
        let state = self.owner.depart(vcpu, cpu, vif, &self.gic);
        assert!(vif.lrs.iter().all(|&lr| lr == 0), "{:x?}", vif.lrs);
        assert_eq!(vif.control, Control::empty());
        let eoi_mode = state.vmcr & lr::VMCR_EOIM != 0;
        *place = Place::Native(NativeInterface { priorities: ActivePriorities(state.ap1r[0]), eoi_mode });
    }

    /// The CPU of a native vCPU comes under keel.
    pub(super) fn arrive(&self, vcpu: usize) {
        self.gic.here.set(vcpu);
        {
            let FakeCpu { cpu, place, .. } = &mut *self.cpus[vcpu].borrow_mut();
            let Place::Native(interface) = *place else { panic!("vCPU {vcpu} is under keel") };
            let mut active = IntidSet::EMPTY;
            for intid in 0..LIMIT {
                let interrupt = self.gic.get(vcpu, intid);
                if interrupt.active && (intid < PRIVATE || interrupt.route == vcpu as u64) {
                    active.insert(intid);
                }
            }
            let vmcr = lr::VMCR_FIQEN
                | lr::VMCR_ENG1
                | 0xf8 << lr::VMCR_PMR_SHIFT
                | if interface.eoi_mode { lr::VMCR_EOIM } else { 0 };
            let state = InterfaceState { vmcr, ap0r: [0; 4], ap1r: [interface.priorities.0, 0, 0, 0] };
            *cpu = self.owner.arrive(vcpu, state, active, &self.gic);
        }
        self.load(vcpu);
    }

    /// The owner's kernel on `vcpu` acknowledges.
    pub(super) fn acknowledge(&self, vcpu: usize) -> Option<u32> {
        let intid = {
            let FakeCpu { vif, place, .. } = &mut *self.cpus[vcpu].borrow_mut();
            match place {
                Place::Resident => vif.acknowledge(),
                Place::Native(interface) if self.owner.is_enabled() => interface.acknowledge(vcpu, &self.gic),
                _ => None,
            }
        };
        self.rest();
        intid
    }

    /// It ends an interrupt.
    pub(super) fn end(&self, vcpu: usize, intid: u32) {
        self.gic.here.set(vcpu);
        {
            let FakeCpu { vif, place, .. } = &mut *self.cpus[vcpu].borrow_mut();
            match place {
                Place::Native(interface) => interface.end(vcpu, intid, &self.gic),
                _ => vif.end(intid, &self.gic),
            }
        }
        self.rest();
    }

    /// It writes ICC_DIR_EL1.
    pub(super) fn deactivate(&self, vcpu: usize, intid: u32) {
        self.gic.here.set(vcpu);
        {
            let FakeCpu { cpu, vif, place, .. } = &mut *self.cpus[vcpu].borrow_mut();
            match place {
                Place::Native(interface) => interface.deactivate(vcpu, intid, &self.gic),
                _ => {
                    if !vif.deactivate(intid, &self.gic) {
                        self.owner.deactivate(vcpu, intid, cpu, vif, &self.gic);
                    }
                }
            }
        }
        self.rest();
    }

    /// A load of `vcpu` from the GIC.
    pub(super) fn read(&self, vcpu: usize, frame: Frame, offset: u64, size: AccessSize) -> u64 {
        self.gic.here.set(vcpu);
        let value = {
            let FakeCpu { cpu, vif, place, .. } = &mut *self.cpus[vcpu].borrow_mut();
            if matches!(place, Place::Native(_)) {
                self.gic.read(frame, offset, size)
            } else {
                let mut by = Accessor { vcpu, cpu, vif, gic: &self.gic, host: self };
                self.owner.read(frame, offset, size, &mut by)
            }
        };
        self.rest();
        value
    }

    /// A store of `vcpu` to the GIC.
    pub(super) fn write(&self, vcpu: usize, frame: Frame, offset: u64, size: AccessSize, value: u64) {
        self.gic.here.set(vcpu);
        {
            let FakeCpu { cpu, vif, place, .. } = &mut *self.cpus[vcpu].borrow_mut();
            if matches!(place, Place::Native(_)) {
                self.gic.write(frame, offset, size, value);
            } else {
                let mut by = Accessor { vcpu, cpu, vif, gic: &self.gic, host: self };
                self.owner.write(frame, offset, size, value, &mut by);
            }
        }
        self.rest();
    }

    /// Whether `vcpu` holds nothing that the owner has not taken or not ended.
    pub(super) fn holds_nothing(&self, vcpu: usize) -> bool {
        let FakeCpu { cpu, vif, .. } = &*self.cpus[vcpu].borrow();
        vif.lrs.iter().chain(&cpu.list).all(|lr| lr & STATE == 0) && cpu.queued.is_empty() && cpu.spilled.is_empty()
    }
}
