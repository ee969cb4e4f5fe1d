//! The interrupt controller of the VM that owns the machine: the machine's own GICv3, behind a virtual CPU interface.
//!
//! The owner's distributor and redistributors are the physical ones: its accesses are checked and carried out there
//! (`registers`), so that at any moment hardware holds the truth and the owner can be taken off keel, or put under it, one
//! CPU at a time. Its CPU interface is virtual: EL2 acknowledges each physical interrupt, drops its priority and hands it
//! on in a list register. SPIs and PPIs stay active in hardware until the owner ends them (HW = 1 in the list register);
//! SGIs are deactivated at once, since a list register cannot do it for them (IHI 0069 §12.4.4, ICH_LR.HW).
//!
//! What software holds beyond the list registers is small: interrupts that found no free one, and active ones that had to
//! make room. Everything that was acknowledged but not yet taken by the owner can be *settled*: made pending in hardware
//! again, as if EL2 had never seen it. That happens before any register is accessed that would show the difference, and
//! when the owner leaves keel.
//!
//! keel keeps two private interrupts of each CPU for itself ([`OwnerGicConfig::kept`]), which the owner cannot see. The EL1
//! timers' interrupts are the owner's only while it is on the CPU: other VMs use the same ones. So that nothing has to be
//! done about them at every change, their priorities and enables in hardware are keel's, and the owner's are kept here.
//!
//! **What differs from the bare machine**, between EL2's acknowledge and the owner's: a level-sensitive line that drops gives
//! one spurious interrupt; a second edge gives a second interrupt, where the bare machine has one for both; a new priority
//! counts from the next time the interrupt is pending. A CPU that has settled for another one acknowledges again as soon as
//! it can, so an access to the pending or active state of what is on its way to another resident CPU is one of a moment.
//! Active SGIs are seen and ended only at their own CPU, and ICC_DIR_EL1 ends only what the same CPU acknowledged.

mod events;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod model;
mod registers;
#[cfg(test)]
mod tests;

pub use events::{EventError, Events, Listener};
pub use registers::Accessor;

use super::mmio::AccessSize;
use super::vgic::{Control, MAX_LIST_REGISTERS, VirtualInterface, lr};
use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// SGIs, PPIs and SPIs: INTIDs below this. Extended ranges and LPIs are not offered.
pub const INTERRUPTS: u32 = 1020;
const SGIS: u32 = 16;
const PRIVATE: u32 = 32;
const WORDS: usize = 16;

/// A set of INTIDs below 1024.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IntidSet {
    words: [u64; WORDS],
    /// Which words are not 0, so that nothing is quickly found to be there.
    used: u16,
}

impl IntidSet {
    /// Nothing.
    pub const EMPTY: Self = Self { words: [0; WORDS], used: 0 };

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    fn update(&mut self, n: usize, change: impl FnOnce(u64) -> u64) {
        if let Some(word) = self.words.get_mut(n) {
            *word = change(*word);
            self.used = self.used & !(1 << n) | u16::from(*word != 0) << n;
        }
    }

    /// The 32 from `first` on, a multiple of 32, whose `bits` are set.
    pub fn of_word(first: u32, bits: u64) -> Self {
        let mut set = Self::EMPTY;
        set.update(first as usize / 64, |_| (bits & 0xffff_ffff) << (first % 64));
        set
    }

    /// The 32 from `first`, a multiple of 32, as bits.
    pub fn word(&self, first: u32) -> u64 {
        self.words.get(first as usize / 64).map_or(0, |word| word >> (first % 64) & 0xffff_ffff)
    }

    /// Adds what is in `other`.
    pub fn add(&mut self, other: &Self) {
        self.words.iter_mut().zip(other.words).for_each(|(word, other)| *word |= other);
        self.used |= other.used;
    }

    /// Whether `intid` is in it.
    pub fn contains(&self, intid: u32) -> bool {
        self.words.get(intid as usize / 64).is_some_and(|word| word >> (intid % 64) & 1 != 0)
    }

    /// Adds `intid`; one of 1024 or more is not kept.
    pub fn insert(&mut self, intid: u32) {
        self.update(intid as usize / 64, |word| word | 1 << (intid % 64));
    }

    /// Takes `intid` out.
    pub fn remove(&mut self, intid: u32) {
        self.update(intid as usize / 64, |word| word & !(1 << (intid % 64)));
    }

    /// All of it, in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let bits = |mut left: u64| {
            core::iter::from_fn(move || {
                let bit = left.trailing_zeros();
                left &= left.wrapping_sub(1);
                (bit < 64).then_some(bit)
            })
        };
        let words = bits(self.used.into()).filter_map(|n| Some((n, *self.words.get(n as usize)?)));
        words.flat_map(move |(n, word)| bits(word).map(move |bit| n * 64 + bit))
    }
}

/// A frame of the machine's GIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// GICD.
    Distributor,
    /// The two frames of a CPU's redistributor, by the index of the owner's vCPU that has this CPU.
    Redistributor(usize),
}

/// The machine's GIC, as far as the owner's accesses and its list registers need it.
pub trait PhysicalGic {
    /// Reads a register; `offset` is aligned to `size` and inside the frame.
    fn read(&self, frame: Frame, offset: u64, size: AccessSize) -> u64;
    /// Writes a register.
    fn write(&self, frame: Frame, offset: u64, size: AccessSize, value: u64);
    /// Deactivates an interrupt that this CPU acknowledged (ICC_DIR_EL1).
    fn deactivate(&self, intid: u32);
}

/// What the owner's GIC needs of the VM around it.
pub trait OwnerHost {
    /// Makes another vCPU settle what it holds, if it is resident, and returns after that.
    fn settle(&self, vcpu: usize);
    /// What another vCPU holds that is not resident: its CPU acknowledges for it whatever comes.
    fn held(&self, vcpu: usize) -> IntidSet;
    /// Calls [`OwnerGic::retract`] for another vCPU, unless it is resident.
    fn retract(&self, vcpu: usize, without: &IntidSet);
}

/// What the owner's GIC is made of.
#[derive(Clone, Copy, Debug)]
pub struct OwnerGicConfig {
    /// vCPUs, one for each CPU that keel has.
    pub vcpus: usize,
    /// Private interrupts that are keel's, a bit for each INTID.
    pub kept: u32,
    /// Private interrupts of the EL1 timers, a bit for each INTID.
    pub timers: u32,
    /// The priority that those have in hardware.
    pub timer_priority: u8,
    /// Whether GICD_CTLR lets interrupts through as the owner left it.
    pub enabled: bool,
}

/// The state of the owner's CPU interface, as the virtual one holds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfaceState {
    /// ICH_VMCR_EL2.
    pub vmcr: u64,
    /// ICH_AP0R0–3_EL2.
    pub ap0r: [u32; 4],
    /// ICH_AP1R0–3_EL2.
    pub ap1r: [u32; 4],
}

/// What belongs to one vCPU of the owner and only its own CPU touches.
#[derive(Clone, Debug, Default)]
pub struct OwnerCpu {
    /// While the vCPU has no CPU: its list registers, those with active interrupts.
    list: [u64; MAX_LIST_REGISTERS],
    /// While the vCPU has no CPU: its CPU interface.
    interface: InterfaceState,
    /// Acknowledged for the owner, in no list register.
    queued: IntidSet,
    /// Active for the owner, in no list register.
    spilled: IntidSet,
    control: Control,
    /// What of `list` holds something.
    listed: u16,
    /// GICR_ISENABLER0 of the timers, as it is for the owner.
    timers_enabled: u32,
    /// Of those that are not, the ones that are not in hardware either.
    timers_off: u32,
    /// Timers whose interrupt is active, if the vCPU has no CPU; else those that could be.
    timers_active: u32,
    /// The priorities of the timers' interrupts for the owner, those of PPIs 16 to 31.
    timer_priorities: [u8; 16],
}

impl OwnerCpu {
    /// A CPU interface after reset.
    pub fn new() -> Self {
        let interface = InterfaceState { vmcr: lr::VMCR_FIQEN, ..InterfaceState::default() };
        Self { interface, ..Self::default() }
    }

    /// Whether there is something that is in no list register.
    #[inline]
    fn holds_more(&self) -> bool {
        !self.queued.is_empty() || !self.spilled.is_empty()
    }

    /// What is queued and could be taken from a list register. SGIs that are active in none wait for their end.
    fn loadable(&self) -> IntidSet {
        let mut set = self.queued;
        let spilled = self.spilled.word(0) & u64::from(u16::MAX);
        set.update(0, |word| word & !spilled);
        set
    }
}

/// What other CPUs may ask of a vCPU.
#[derive(Debug)]
#[repr(align(64))]
struct Shared {
    /// It may hold interrupts that are to be settled.
    holds: AtomicBool,
    /// GICR_WAKER.ProcessorSleep as the owner wrote it.
    sleeps: AtomicBool,
}

/// The owner's GIC. Methods that take an [`OwnerCpu`] are called on the CPU of that vCPU.
#[derive(Debug)]
pub struct OwnerGic {
    config: OwnerGicConfig,
    enabled: AtomicBool,
    cpus: Box<[Shared]>,
    /// What is asked for at all times, beside what the list registers hold asks for.
    always: Control,
}

/// The list register that holds `intid`, and its value.
fn find(intid: u32, vif: &impl VirtualInterface) -> Option<(usize, u64)> {
    let empty = vif.empty();
    let mut lrs = (0..vif.list_registers()).filter(|n| empty >> n & 1 == 0).map(|n| (n, vif.read_lr(n)));
    lrs.find(|&(_, value)| value & (lr::PENDING | lr::ACTIVE) != 0 && value as u32 == intid)
}

fn priority_of(value: u64) -> u64 {
    value >> lr::PRIORITY_SHIFT & 0xff
}

impl OwnerGic {
    /// The GIC of an owner whose vCPUs are all off.
    pub fn new(config: OwnerGicConfig) -> Self {
        let cpu = |_| Shared { holds: AtomicBool::new(false), sleeps: AtomicBool::new(false) };
        Self {
            config,
            enabled: AtomicBool::new(config.enabled),
            cpus: (0..config.vcpus).map(cpu).collect(),
            always: Control::empty(),
        }
    }

    /// Has the accesses to the registers that both groups share trap at all times: for tests, as
    /// [`Vgic::always_control`](super::vgic::Vgic::always_control).
    pub fn trap_common_registers(&mut self) {
        self.always = Control::TRAP_COMMON;
    }

    /// Whether GICD_CTLR lets interrupts through, as the owner wrote it.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(SeqCst)
    }

    /// The owner starts again: GICD_CTLR, GICR_WAKER as after reset.
    pub fn reset(&self) {
        self.enabled.store(false, SeqCst);
        for cpu in &self.cpus {
            cpu.sleeps.store(false, SeqCst);
            cpu.holds.store(false, SeqCst);
        }
    }

    fn set_holds(&self, vcpu: usize, holds: bool) {
        if let Some(cpu) = self.cpus.get(vcpu) {
            cpu.holds.store(holds, SeqCst);
        }
    }

    /// Whether the interrupt is a timer's.
    #[inline]
    fn is_timer(&self, intid: u32) -> bool {
        intid < PRIVATE && self.config.timers >> intid & 1 != 0
    }

    /// GICD_IPRIORITYR or GICR_IPRIORITYR of `intid`, as it is for the owner.
    fn priority(&self, vcpu: usize, intid: u32, timers: &[u8; 16], gic: &impl PhysicalGic) -> u64 {
        if self.is_timer(intid) {
            return timers.get((intid % 16) as usize).copied().unwrap_or(0).into();
        }
        let (frame, offset) = registers::place(vcpu, intid, registers::PRIORITY, 8);
        gic.read(frame, offset, AccessSize::Byte) & 0xff
    }

    /// EL2 acknowledged `intid` on the CPU of the resident `vcpu` and dropped its priority: it is the owner's.
    #[inline]
    pub fn take(
        &self,
        vcpu: usize,
        intid: u32,
        cpu: &mut OwnerCpu,
        vif: &mut impl VirtualInterface,
        gic: &impl PhysicalGic,
    ) {
        if self.is_timer(intid) {
            if cpu.timers_enabled >> intid & 1 == 0 {
                // It was left enabled when the vCPU came, and is what other VMs need.
                cpu.timers_off |= 1 << intid;
                let (frame, offset) = registers::place(vcpu, intid, registers::CLEAR_ENABLE, 1);
                gic.write(frame, offset, AccessSize::Word, 1 << intid);
                return gic.deactivate(intid);
            }
            cpu.timers_active |= 1 << intid;
        }
        // The usual case: nothing else is there.
        let all = (1_u64 << vif.list_registers()) - 1;
        if intid < INTERRUPTS && self.is_enabled() && u64::from(vif.empty()) == all && !cpu.holds_more() {
            if intid < SGIS {
                gic.deactivate(intid);
            }
            vif.write_lr(0, Self::pending_value(intid, self.priority(vcpu, intid, &cpu.timer_priorities, gic)));
            return self.set_holds(vcpu, true);
        }
        self.enqueue(vcpu, intid, cpu, gic);
        self.refill(vcpu, cpu, vif, gic);
    }

    fn pending_value(intid: u32, priority: u64) -> u64 {
        lr::PENDING
            | lr::GROUP1
            | priority << lr::PRIORITY_SHIFT
            | if intid < SGIS { 0 } else { lr::HW | u64::from(intid) << lr::PINTID_SHIFT }
            | u64::from(intid)
    }

    /// As [`take`](Self::take), while `vcpu` is not resident. A timer that interrupts then is nobody's, and its line says so
    /// again when it is somebody's.
    pub fn queue(&self, vcpu: usize, intid: u32, cpu: &mut OwnerCpu, gic: &impl PhysicalGic) {
        if self.is_timer(intid) {
            return gic.deactivate(intid);
        }
        self.enqueue(vcpu, intid, cpu, gic);
    }

    fn enqueue(&self, vcpu: usize, intid: u32, cpu: &mut OwnerCpu, gic: &impl PhysicalGic) {
        if intid >= INTERRUPTS {
            return;
        }
        if intid < SGIS {
            gic.deactivate(intid);
        }
        cpu.queued.insert(intid);
        self.set_holds(vcpu, true);
    }

    /// Whether `vcpu`, which is not resident, has an interrupt that would wake it.
    pub fn pending(&self, cpu: &OwnerCpu) -> bool {
        let mut waiting = cpu.loadable();
        // An SGI comes again after its end.
        let active = cpu.list.iter().filter(|&value| value & lr::ACTIVE != 0).map(|&value| value as u32);
        active.filter(|&intid| intid < SGIS).for_each(|intid| waiting.remove(intid));
        self.is_enabled() && !waiting.is_empty()
    }

    /// Loads what waits into the list registers of the resident `vcpu`, as far as there is room.
    pub fn refill(&self, vcpu: usize, cpu: &mut OwnerCpu, vif: &mut impl VirtualInterface, gic: &impl PhysicalGic) {
        if !cpu.holds_more() {
            if !cpu.control.is_empty() {
                cpu.control = Control::empty();
                vif.set_control(self.always);
            }
            return;
        }
        // What is over must not be loaded, nor be counted later.
        self.end_spilled(vcpu, cpu, vif, gic);
        let enabled = self.is_enabled();
        while enabled && let Some((intid, priority)) = self.first(vcpu, &cpu.loadable(), &cpu.timer_priorities, gic) {
            let value = Self::pending_value(intid, priority);
            cpu.spilled.remove(intid);
            let (slot, value) = match find(intid, vif) {
                // An SGI that comes again while it is handled is pending and active. Others cannot, unless the owner
                // deactivated them at the distributor: then the old one is over.
                Some((slot, old)) if intid < SGIS => (slot, value | old & lr::ACTIVE),
                Some((slot, _)) => (slot, value),
                None => match Self::make_room(priority, cpu, vif) {
                    Some(slot) => (slot, value),
                    None => break,
                },
            };
            vif.write_lr(slot, value);
            cpu.queued.remove(intid);
        }
        while !cpu.spilled.is_empty()
            && let Some(slot) = Self::free(vif)
            && let Some((intid, priority)) = self.first(vcpu, &cpu.spilled, &cpu.timer_priorities, gic)
        {
            let mut value = Self::active(intid, priority);
            if enabled && intid < SGIS && cpu.queued.contains(intid) {
                value |= lr::PENDING;
                cpu.queued.remove(intid);
            }
            vif.write_lr(slot, value);
            cpu.spilled.remove(intid);
        }
        let mut control = Control::empty();
        if enabled && !cpu.loadable().is_empty() {
            control |= Control::NO_PENDING;
        }
        if !cpu.spilled.is_empty() {
            control |= Control::ENTRY_NOT_PRESENT | Control::TRAP_DEACTIVATE;
        }
        if cpu.control != control {
            cpu.control = control;
            vif.set_control(control | self.always);
        }
    }

    fn active(intid: u32, priority: u64) -> u64 {
        lr::ACTIVE
            | lr::GROUP1
            | priority << lr::PRIORITY_SHIFT
            | if intid < SGIS { 0 } else { lr::HW | u64::from(intid) << lr::PINTID_SHIFT }
            | u64::from(intid)
    }

    /// The one of the highest priority, and that priority; of several the lowest INTID.
    fn first(&self, vcpu: usize, set: &IntidSet, timers: &[u8; 16], gic: &impl PhysicalGic) -> Option<(u32, u64)> {
        let with_priority = set.iter().map(|intid| (intid, self.priority(vcpu, intid, timers, gic)));
        with_priority.min_by_key(|&(intid, priority)| (priority, intid))
    }

    fn free(vif: &impl VirtualInterface) -> Option<usize> {
        let empty = vif.empty();
        (empty != 0).then(|| empty.trailing_zeros() as usize)
    }

    /// A list register for an interrupt of this priority: a free one; that of one that waits with a lower priority, which
    /// goes back to the queue; or, when all hold active ones, that of the lowest priority. An SGI that is pending too then
    /// waits as both. So either something is pending, and not active, in a list register afterwards, or nothing waits.
    fn make_room(priority: u64, cpu: &mut OwnerCpu, vif: &mut impl VirtualInterface) -> Option<usize> {
        if let Some(slot) = Self::free(vif) {
            return Some(slot);
        }
        let lowest = |active: u64| {
            let of_state = (0..vif.list_registers()).filter(|&n| vif.read_lr(n) & lr::ACTIVE == active);
            of_state.max_by_key(|&n| priority_of(vif.read_lr(n))).map(|n| (n, vif.read_lr(n)))
        };
        if let Some((slot, value)) = lowest(0) {
            let lower = priority_of(value) > priority;
            if lower {
                cpu.queued.insert(value as u32);
            }
            return lower.then_some(slot);
        }
        let (slot, value) = lowest(lr::ACTIVE)?;
        cpu.spilled.insert(value as u32);
        if value & lr::PENDING != 0 {
            cpu.queued.insert(value as u32);
        }
        Some(slot)
    }

    /// A maintenance interrupt was taken on the CPU of `vcpu`.
    pub fn maintenance(
        &self,
        vcpu: usize,
        cpu: &mut OwnerCpu,
        vif: &mut impl VirtualInterface,
        gic: &impl PhysicalGic,
    ) {
        self.refill(vcpu, cpu, vif, gic);
    }

    /// The owner ended interrupts that were in no list register: the active ones of the highest priorities (EOImode 0).
    fn end_spilled(&self, vcpu: usize, cpu: &mut OwnerCpu, vif: &mut impl VirtualInterface, gic: &impl PhysicalGic) {
        if cpu.spilled.is_empty() {
            // What was counted before something is there is forgotten with the new control.
            return;
        }
        let count = vif.eoi_count();
        if count == 0 {
            return;
        }
        vif.clear_eoi_count();
        if vif.vmcr() & lr::VMCR_EOIM != 0 {
            // An end is none in this mode, though some CPUs (QEMU's) count it; ICC_DIR_EL1 traps.
            return;
        }
        for _ in 0..count {
            let Some((intid, _)) = self.first(vcpu, &cpu.spilled, &cpu.timer_priorities, gic) else { return };
            cpu.spilled.remove(intid);
            if intid >= SGIS {
                gic.deactivate(intid);
            }
        }
    }

    /// The owner's write of `intid` to ICC_DIR_EL1, trapped because of [`Control::TRAP_DEACTIVATE`] or
    /// [`Control::TRAP_COMMON`].
    pub fn deactivate(
        &self,
        vcpu: usize,
        intid: u32,
        cpu: &mut OwnerCpu,
        vif: &mut impl VirtualInterface,
        gic: &impl PhysicalGic,
    ) {
        if vif.vmcr() & lr::VMCR_EOIM == 0 {
            return;
        }
        let known = if cpu.spilled.contains(intid) {
            cpu.spilled.remove(intid);
            true
        } else if let Some((slot, value)) = find(intid, vif).filter(|(_, value)| value & lr::ACTIVE != 0) {
            vif.write_lr(slot, if value & lr::PENDING != 0 { value & !lr::ACTIVE } else { 0 });
            true
        } else {
            false
        };
        if known && intid >= SGIS {
            gic.deactivate(intid);
        }
        self.refill(vcpu, cpu, vif, gic);
    }

    /// Makes everything that was acknowledged for the resident `vcpu`, and that it has not taken, pending in hardware again.
    pub fn settle(&self, vcpu: usize, cpu: &mut OwnerCpu, vif: &mut impl VirtualInterface, gic: &impl PhysicalGic) {
        let empty = vif.empty();
        for n in (0..vif.list_registers()).filter(|n| empty >> n & 1 == 0) {
            let value = vif.read_lr(n);
            if value & lr::PENDING != 0 {
                vif.write_lr(n, if value & lr::ACTIVE != 0 { value & !lr::PENDING } else { 0 });
                self.give_back(vcpu, value as u32, gic);
            }
        }
        self.settle_queue(vcpu, cpu, gic);
    }

    /// As [`settle`](Self::settle), of a `vcpu` that is not resident; what is in `without` is no longer pending at all.
    pub fn retract(&self, vcpu: usize, cpu: &mut OwnerCpu, without: &IntidSet, gic: &impl PhysicalGic) {
        let queued = cpu.queued;
        for intid in without.iter().filter(|&intid| queued.contains(intid)) {
            cpu.queued.remove(intid);
            if intid >= SGIS {
                let (frame, offset) = registers::place(vcpu, intid, registers::CLEAR_ACTIVE, 1);
                gic.write(frame, offset, AccessSize::Word, 1 << (intid % 32));
            }
        }
        self.settle_queue(vcpu, cpu, gic);
    }

    fn settle_queue(&self, vcpu: usize, cpu: &mut OwnerCpu, gic: &impl PhysicalGic) {
        let queued = core::mem::take(&mut cpu.queued);
        queued.iter().for_each(|intid| self.give_back(vcpu, intid, gic));
        self.set_holds(vcpu, false);
    }

    /// Pending again. An SPI or PPI is active since EL2 acknowledged it; its pending state was used up by that, unless its
    /// line still asks. The timers have nothing but their lines.
    fn give_back(&self, vcpu: usize, intid: u32, gic: &impl PhysicalGic) {
        let bit = 1 << (intid % 32);
        let set = |register| {
            let (frame, offset) = registers::place(vcpu, intid, register, 1);
            gic.write(frame, offset, AccessSize::Word, bit);
        };
        if !self.is_timer(intid) {
            set(registers::SET_PENDING);
        }
        if intid >= SGIS {
            set(registers::CLEAR_ACTIVE);
        }
    }

    /// Puts the owner's `vcpu` on this CPU, whose list registers are empty.
    ///
    /// The timers' interrupts are as other VMs need them: enabled, not active, and of their priority. So they stay as far
    /// as that makes no difference. One that the owner has disabled is disabled when it interrupts.
    pub fn load(&self, vcpu: usize, cpu: &mut OwnerCpu, vif: &mut impl VirtualInterface, gic: &impl PhysicalGic) {
        if cpu.timers_active != 0 {
            set_timers(vcpu, gic, registers::SET_ACTIVE, cpu.timers_active);
        }
        set_interface(&cpu.interface, vif);
        let mut listed = u32::from(core::mem::take(&mut cpu.listed));
        while listed != 0 {
            let n = listed.trailing_zeros() as usize;
            listed &= listed - 1;
            if let Some(value) = cpu.list.get_mut(n) {
                vif.write_lr(n, core::mem::take(value));
            }
        }
        cpu.control = Control::empty();
        vif.set_control(self.always);
        self.refill(vcpu, cpu, vif, gic);
    }

    /// Takes the owner's `vcpu` off this CPU; its list registers end up empty, and the timers' interrupts as other VMs
    /// need them: enabled, not active.
    pub fn unload(&self, vcpu: usize, cpu: &mut OwnerCpu, vif: &mut impl VirtualInterface, gic: &impl PhysicalGic) {
        self.end_spilled(vcpu, cpu, vif, gic);
        // Timers that are active only because EL2 acknowledged them: their lines say so again when the vCPU is back.
        let mut untaken = 0;
        let mut used = !vif.empty() & ((1_u64 << vif.list_registers()) - 1) as u32;
        while used != 0 {
            let n = used.trailing_zeros() as usize;
            used &= used - 1;
            let value = vif.read_lr(n);
            vif.write_lr(n, 0);
            let intid = value as u32;
            if value & lr::PENDING != 0 {
                if self.is_timer(intid) {
                    untaken |= 1 << intid;
                } else {
                    cpu.queued.insert(intid);
                }
            }
            if value & lr::ACTIVE != 0
                && let Some(kept) = cpu.list.get_mut(n)
            {
                *kept = value & !lr::PENDING;
                cpu.listed |= 1 << n;
            }
        }
        let queued = (cpu.queued.word(0) as u32) & self.config.timers;
        if queued != 0 {
            untaken |= queued;
            cpu.queued.update(0, |word| word & !u64::from(queued));
        }
        save_interface(&mut cpu.interface, vif);
        cpu.control = Control::empty();
        vif.set_control(cpu.control);
        if cpu.timers_active != 0 {
            let (frame, offset) = registers::place(vcpu, 0, registers::SET_ACTIVE, 1);
            let active = gic.read(frame, offset, AccessSize::Word) as u32 & self.config.timers;
            set_timers(vcpu, gic, registers::CLEAR_ACTIVE, active);
            cpu.timers_active = active & !untaken;
        }
        if cpu.timers_off != 0 {
            set_timers(vcpu, gic, registers::SET_ENABLE, core::mem::take(&mut cpu.timers_off));
        }
    }

    /// As [`unload`](Self::unload), for a vCPU that another one stands in for on this CPU, if it holds no interrupt: only its CPU
    /// interface moves, and of that only the first registers of active priorities. `false`, and nothing has changed, if it does.
    #[inline(always)]
    pub fn set_aside(&self, cpu: &mut OwnerCpu, vif: &mut impl VirtualInterface) -> bool {
        // Those that are not there are never empty; 16 are the most.
        let all = u16::MAX >> (MAX_LIST_REGISTERS - vif.list_registers());
        let kept = cpu.queued.used | cpu.spilled.used;
        let holds = u32::from(vif.empty() as u16 ^ all | kept) | cpu.timers_active | cpu.timers_off;
        if holds != 0 {
            return false;
        }
        let state = &mut cpu.interface;
        vif.save_first(&mut state.vmcr, &mut state.ap0r, &mut state.ap1r);
        true
    }

    /// The other registers of active priorities of a vCPU that is set aside.
    pub fn set_more_aside(&self, cpu: &mut OwnerCpu, vif: &impl VirtualInterface) {
        vif.save_more(&mut cpu.interface.ap0r, &mut cpu.interface.ap1r);
    }

    /// And of one that is taken up.
    pub fn take_more_up(&self, cpu: &OwnerCpu, vif: &mut impl VirtualInterface) {
        vif.load_more(&cpu.interface.ap0r, &cpu.interface.ap1r);
    }

    /// As [`load`](Self::load), for a vCPU that was [set aside](Self::set_aside).
    #[inline(always)]
    pub fn take_up(&self, cpu: &OwnerCpu, vif: &mut impl VirtualInterface) {
        let state = &cpu.interface;
        vif.load_first(state.vmcr, &state.ap0r, &state.ap1r);
        vif.set_control(self.always);
    }

    /// Gives the timers' interrupts of `vcpu`'s CPU these priorities.
    fn set_timer_priorities(&self, vcpu: usize, gic: &impl PhysicalGic, of: impl Fn(u32) -> u8) {
        for intid in (SGIS..PRIVATE).filter(|&intid| self.is_timer(intid)) {
            let (frame, offset) = registers::place(vcpu, intid, registers::PRIORITY, 8);
            gic.write(frame, offset, AccessSize::Byte, of(intid).into());
        }
    }

    /// `vcpu` comes under keel on this CPU, running: its CPU interface was the physical one until now, and `active` are the
    /// interrupts that it is handling. The result can be [loaded](Self::load).
    pub fn arrive(&self, vcpu: usize, state: InterfaceState, active: IntidSet, gic: &impl PhysicalGic) -> OwnerCpu {
        let mut cpu = OwnerCpu { interface: state, spilled: active, ..OwnerCpu::new() };
        let sgis = active.word(0) & 0xffff;
        if sgis != 0 {
            let (frame, offset) = registers::place(vcpu, 0, registers::CLEAR_ACTIVE, 1);
            gic.write(frame, offset, AccessSize::Word, sgis);
        }
        let word = |register| {
            let (frame, offset) = registers::place(vcpu, 0, register, 1);
            gic.read(frame, offset, AccessSize::Word) as u32 & self.config.timers
        };
        (cpu.timers_enabled, cpu.timers_active) = (word(registers::SET_ENABLE), word(registers::SET_ACTIVE));
        for intid in (SGIS..PRIVATE).filter(|&intid| self.is_timer(intid)) {
            let (frame, offset) = registers::place(vcpu, intid, registers::PRIORITY, 8);
            if let Some(priority) = cpu.timer_priorities.get_mut((intid % 16) as usize) {
                *priority = gic.read(frame, offset, AccessSize::Byte) as u8;
            }
        }
        self.set_timer_priorities(vcpu, gic, |_| self.config.timer_priority);
        set_timers(vcpu, gic, registers::SET_ENABLE, self.config.timers);
        cpu
    }

    /// `vcpu` leaves keel on this CPU: what it has not taken is pending in hardware again, and what it is handling is active
    /// there. Returns its CPU interface, for the physical one. The list registers end up empty.
    pub fn depart(
        &self,
        vcpu: usize,
        cpu: &mut OwnerCpu,
        vif: &mut impl VirtualInterface,
        gic: &impl PhysicalGic,
    ) -> InterfaceState {
        self.end_spilled(vcpu, cpu, vif, gic);
        self.settle(vcpu, cpu, vif, gic);
        let mut active = core::mem::take(&mut cpu.spilled);
        for n in 0..vif.list_registers() {
            let value = vif.read_lr(n);
            if value & lr::ACTIVE != 0 {
                active.insert(value as u32);
            }
            vif.write_lr(n, 0);
        }
        // The others are active in hardware already.
        let sgis = active.iter().filter(|&intid| intid < SGIS).fold(0_u64, |bits, intid| bits | 1 << intid);
        if sgis != 0 {
            let (frame, offset) = registers::place(vcpu, 0, registers::SET_ACTIVE, 1);
            gic.write(frame, offset, AccessSize::Word, sgis);
        }
        vif.set_control(Control::empty());
        set_timers(vcpu, gic, registers::CLEAR_ENABLE, self.config.timers & !cpu.timers_enabled);
        let priorities = cpu.timer_priorities;
        self.set_timer_priorities(vcpu, gic, |intid| priorities.get((intid % 16) as usize).copied().unwrap_or(0));
        interface(vif)
    }

    /// Settles what resident vCPUs hold, before an access that would show it: `vcpu` here, others through `host`.
    fn settle_all(
        &self,
        vcpu: usize,
        cpu: &mut OwnerCpu,
        vif: &mut impl VirtualInterface,
        gic: &impl PhysicalGic,
        host: &dyn OwnerHost,
    ) {
        self.settle(vcpu, cpu, vif, gic);
        self.others(vcpu).for_each(|other| host.settle(other));
    }

    /// Other vCPUs that may hold something.
    fn others(&self, vcpu: usize) -> impl Iterator<Item = usize> + '_ {
        let holding = move |(other, shared): &(usize, &Shared)| *other != vcpu && shared.holds.load(SeqCst);
        self.cpus.iter().enumerate().filter(holding).map(|(other, _)| other)
    }

    /// Those of them that may hold interrupts which `frame` shows.
    fn others_in(&self, frame: Frame, vcpu: usize) -> impl Iterator<Item = usize> + '_ {
        self.others(vcpu).filter(move |&other| match frame {
            Frame::Distributor => true,
            Frame::Redistributor(index) => other == index,
        })
    }

    /// What vCPUs hold that are not resident: pending for the owner, active in hardware. It cannot be settled for a look,
    /// because their CPUs would acknowledge it again at once.
    fn held_by_others(&self, frame: Frame, vcpu: usize, host: &dyn OwnerHost) -> IntidSet {
        let mut held = IntidSet::EMPTY;
        self.others_in(frame, vcpu).for_each(|other| held.add(&host.held(other)));
        held
    }

    /// SGIs that the owner is handling on this CPU: hardware does not know that they are active.
    fn active_sgis(cpu: &OwnerCpu, vif: &impl VirtualInterface) -> u64 {
        let lrs = (0..vif.list_registers()).map(|n| vif.read_lr(n));
        let active = lrs.filter(|value| value & lr::ACTIVE != 0 && (*value as u32) < SGIS);
        active.fold(cpu.spilled.word(0) & 0xffff, |bits, value| bits | 1 << (value as u32))
    }

    /// The owner deactivates interrupts at the distributor or at this CPU's redistributor; `ended` of hardware's are inactive.
    fn end_active(ended: &IntidSet, cpu: &mut OwnerCpu, vif: &mut impl VirtualInterface) {
        ended.iter().for_each(|intid| cpu.spilled.remove(intid));
        for n in 0..vif.list_registers() {
            let value = vif.read_lr(n);
            if value & lr::ACTIVE != 0 && ended.contains(value as u32) {
                vif.write_lr(n, if value & lr::PENDING != 0 { value & !lr::ACTIVE } else { 0 });
            }
        }
    }

    /// What `cpu`, whose vCPU is not resident, holds in its queue.
    pub fn held(cpu: &OwnerCpu) -> IntidSet {
        cpu.queued
    }
}

/// Writes `bits` to a register of the private interrupts of `vcpu`'s CPU.
fn set_timers(vcpu: usize, gic: &impl PhysicalGic, register: u64, bits: u32) {
    let (frame, offset) = registers::place(vcpu, 0, register, 1);
    gic.write(frame, offset, AccessSize::Word, bits.into());
}

fn interface(vif: &impl VirtualInterface) -> InterfaceState {
    let mut state = InterfaceState::default();
    save_interface(&mut state, vif);
    state
}

/// What there is no register for stays as it is.
#[inline]
fn save_interface(state: &mut InterfaceState, vif: &impl VirtualInterface) {
    vif.save_state(&mut state.vmcr, &mut state.ap0r, &mut state.ap1r);
}

#[inline]
fn set_interface(state: &InterfaceState, vif: &mut impl VirtualInterface) {
    vif.load_state(state.vmcr, &state.ap0r, &state.ap1r);
}
