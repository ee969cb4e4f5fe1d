//! Between the bitmaps and the list registers: fold back, choose, load.
//!
//! Folding empties the list registers as far as software is concerned: afterwards the bitmaps tell the whole truth, and
//! the guest must not be entered before a flush has loaded them again. All this happens only when the dirty flag is set, so
//! it starts from the bitmaps each time and keeps nothing but which list registers are in use.

use core::mem;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::Release, Ordering::SeqCst, fence};

use super::bank::{Bank, Presentation, View};
use super::lr::{self, Control, ListRegister, VgicCpu, VirtualInterface};
use super::select::{intid_of_key, key};
use super::sources::SGIS;
use super::spi::intid_of;
use super::{COMMANDS_HINT, FIRST_LPI, LPI_HINT, PRIVATE_INTERRUPTS, Redistributor, Vgic, VgicHost};

/// Takes one set bit out of `mask`.
#[inline]
pub(super) fn take_bit(mask: &mut u32) -> Option<u32> {
    if *mask == 0 {
        return None;
    }
    let bit = mask.trailing_zeros();
    *mask &= *mask - 1;
    Some(bit)
}

/// What the list registers of private interrupts hold when they are read back: a bit for each interrupt.
#[derive(Default)]
struct Folded {
    seen: u32,
    active: u32,
    /// Pending, by a latch that was consumed.
    latches: u32,
    /// Pending, by the line of a mapped interrupt.
    lines: u32,
    /// Valid with HW set: the physical interrupt is active.
    physical: u32,
}

impl Folded {
    #[inline]
    fn add(&mut self, lr: ListRegister, consumed: bool, mapped_without_hw: u32) {
        let bit = 1 << (lr.intid() % 32);
        let mapped = lr.hw() || mapped_without_hw & bit != 0;
        self.seen |= bit;
        if lr.valid() {
            self.active |= if lr.active() { bit } else { 0 };
            self.latches |= if lr.pending() && consumed { bit } else { 0 };
            self.lines |= if lr.pending() && !consumed && mapped { bit } else { 0 };
            self.physical |= if lr.hw() { bit } else { 0 };
        }
    }
}

impl Redistributor {
    #[inline]
    fn fold(&self, folded: &Folded) {
        if folded.latches | folded.lines | folded.physical != 0 {
            self.add_physical_active(folded.physical);
            self.private.return_latches(folded.latches);
            self.private.return_lines(folded.lines);
        }
        self.private.fold_active(folded.seen, folded.active);
    }

    /// The list registers have been folded and are not loaded again at once.
    fn nothing_loaded(&self) {
        self.private.held.store(0, SeqCst);
        self.private.loaded.store(0, SeqCst);
    }

    /// Mapped lines that have gone low meanwhile are no longer pending; physical interrupts that are active for nothing any
    /// more are deactivated, so that they can fire again. `view` is of the private interrupts, and follows.
    #[inline(always)]
    fn resample(&self, view: &mut View, vif: &mut impl VirtualInterface) {
        let held = self.physical_active.load(Relaxed);
        if held == 0 {
            return;
        }
        let mut high = held & view.level;
        while let Some(intid) = take_bit(&mut high) {
            if !vif.physical_level(self.physical_intid(intid)) {
                view.level &= !(1 << intid);
                self.private.level.fetch_and(!(1 << intid), SeqCst);
            }
        }
        let idle = held & !(view.pending() | view.active());
        if idle != 0 {
            self.deactivate_physical(idle, vif);
        }
    }

    fn deactivate_physical(&self, bits: u32, vif: &mut impl VirtualInterface) {
        let mut rest = bits;
        while let Some(intid) = take_bit(&mut rest) {
            vif.set_physical_active(self.physical_intid(intid), false);
        }
        self.remove_physical_active(bits);
    }

    /// Takes a sender for each SGI that is to be shown as pending; the senders of all SGIs shown. A GICv2's.
    #[inline(never)]
    fn take_sources(&self, presentation: &mut Presentation) -> [u8; 16] {
        let mut senders = [0; 16];
        let mut taken = presentation.consumed & SGIS;
        while let Some(sgi) = take_bit(&mut taken) {
            let bit = 1 << sgi;
            if let Some((sender, others_wait)) = self.sources.take(sgi) {
                senders[sgi as usize] = sender;
                if others_wait {
                    self.private.set_latch(bit);
                    presentation.eoi |= bit;
                }
            } else {
                presentation.pending &= !bit;
                presentation.consumed &= !bit;
            }
        }
        let mut active = presentation.active & SGIS;
        while let Some(sgi) = take_bit(&mut active) {
            senders[sgi as usize] = self.sources.active(sgi);
        }
        senders
    }

    /// Loads the private interrupts `mask` into the first list registers; `deliver` may be shown as pending. `exits`: all of
    /// them are to end with an exit.
    #[inline(always)]
    fn load<V: VirtualInterface>(
        &self,
        view: &View,
        mask: u32,
        deliver: u32,
        crowded: bool,
        exits: bool,
        vif: &mut V,
    ) -> Slots {
        let mut slots = Slots::default();
        let bank = &self.private;
        bank.loaded.store(mask, Relaxed);
        // Before the latches are taken, so that no reader misses one on its way.
        let held = view.pending() & mask;
        bank.held.store(held, Relaxed);
        let mapped = self.mapped.load(Relaxed);
        // An SGI that is active is one CPU's, and a pending one perhaps another's.
        let alone = if V::IS_V2 { SGIS } else { 0 };
        let mut presentation = bank.present(view, mask, deliver, mapped, crowded, alone);
        let senders = if V::IS_V2 { self.take_sources(&mut presentation) } else { [0; 16] };
        if V::IS_V2 {
            presentation.hardware = 0;
            presentation.eoi |= if exits { mask } else { mapped };
        }
        if presentation.pending != held {
            bank.held.store(presentation.pending, Release);
        }
        let mut shown = presentation.shown();
        while let Some(intid) = take_bit(&mut shown) {
            let bit = 1 << intid;
            let mut value = presentation.list_register(intid, bank.priority(intid, Relaxed));
            if V::IS_V2
                && let Some(sender) = senders.get(intid as usize)
            {
                value |= u64::from(*sender) << lr::SOURCE_SHIFT;
            }
            if mapped & bit != 0 {
                let physical = self.physical_intid(intid);
                let physical_active = self.physical_active.load(Relaxed);
                if physical_active & bit == 0 {
                    vif.set_physical_active(physical, true);
                }
                if presentation.hardware & bit != 0 {
                    value |= lr::HW | u64::from(physical) << lr::PINTID_SHIFT;
                    self.physical_active.store(physical_active & !bit, Relaxed);
                } else {
                    self.physical_active.store(physical_active | bit, Relaxed);
                }
            }
            slots.put(value, presentation.consumed & bit != 0, vif);
        }
        slots
    }
}

/// The list registers loaded so far: the first `count`.
#[derive(Default)]
struct Slots {
    count: u32,
    /// Those for which a latch was consumed.
    consumed: u16,
}

impl Slots {
    /// Writes the next list register. The caller counts them.
    #[inline]
    fn put(&mut self, value: u64, consumed: bool, vif: &mut impl VirtualInterface) {
        vif.write_lr(self.count as usize, value);
        self.consumed |= u16::from(consumed) << self.count;
        self.count += 1;
    }
}

impl Vgic {
    /// Folds the list registers of `vcpu` back into the bitmaps, so that any CPU can read its interrupts' state there. Call it
    /// on the CPU where the vCPU is, out of its guest; the vCPU is dirty afterwards.
    #[inline(never)]
    pub fn sync(&self, vcpu: usize, cpu: &mut VgicCpu, vif: &mut impl VirtualInterface, host: &dyn VgicHost) {
        let Some(own) = self.redistributors.get(vcpu) else { return };
        if cpu.used != 0 {
            own.dirty.store(true, SeqCst);
            self.fold(vcpu, own, cpu, vif, host);
            own.nothing_loaded();
        }
        own.resample(&mut own.private.view(SeqCst), vif);
    }

    /// Brings the list registers of the resident `vcpu` up to date. Call it before entering the guest when
    /// [`dirty`](Self::dirty) says so.
    pub fn flush(&self, vcpu: usize, cpu: &mut VgicCpu, vif: &mut impl VirtualInterface, host: &dyn VgicHost) {
        let Some(own) = self.redistributors.get(vcpu) else { return };
        // First, so that whatever changes from here on sets it again. With the fence, what changed before is seen by all the
        // loads that follow.
        own.dirty.store(false, SeqCst);
        fence(SeqCst);
        self.fold(vcpu, own, cpu, vif, host);
        let mut view = own.private.view(Relaxed);
        own.resample(&mut view, vif);

        let let_through = self.enabled.load(Relaxed);
        let deliver = if let_through { view.enabled } else { 0 };
        let private = view.pending() & deliver | view.active();
        let at_most_one = private & private.wrapping_sub(1) == 0;
        let fit = at_most_one || private.count_ones() as usize <= vif.list_registers();
        let (slots, control) = if fit && own.spi_hint.load(Relaxed) == 0 {
            (own.load(&view, private, deliver, false, false, vif), Control::empty())
        } else {
            self.load_selected(vcpu, own, let_through, cpu, vif, host)
        };

        let used = ((1_u32 << slots.count) - 1) as u16;
        clear_list_registers(cpu.written & !used, vif);
        (cpu.used, cpu.written, cpu.consumed) = (used, used, slots.consumed);
        if cpu.control != control {
            cpu.control = control;
            vif.set_control(control | self.always());
        }
    }

    /// As [`raise_hw`](Self::raise_hw), but when nothing else is to be done the interrupt goes straight into a list register
    /// and the vCPU does not become dirty. The timer's way in.
    #[inline]
    pub fn inject_hw<V: VirtualInterface>(&self, vcpu: usize, intid: u32, cpu: &mut VgicCpu, vif: &mut V) {
        let Some(own) = self.redistributors.get(vcpu) else { return };
        let bit = 1_u32.unbounded_shl(intid) & own.mapped.load(Relaxed);
        let clear = !own.dirty.load(Relaxed) && self.enabled.load(Relaxed) && own.private.is_clear(bit);
        // Its last list register, which is invalid if hardware could acknowledge it again; or an unused one.
        let mut slot = cpu.used.trailing_ones();
        let mut used = u32::from(cpu.used);
        while let Some(n) = take_bit(&mut used) {
            let lr = ListRegister(vif.read_lr(n as usize));
            if lr.intid() == intid {
                slot = if lr.valid() { u32::MAX } else { n };
            }
        }
        if bit == 0 || !clear || !cpu.control.is_empty() || slot as usize >= vif.list_registers() {
            return self.raise_hw(vcpu, intid);
        }
        own.private.loaded.store(own.private.loaded.load(Relaxed) | bit, Relaxed);
        own.private.held.store(own.private.held.load(Relaxed) | bit, Relaxed);
        let group = if own.private.group.load(Relaxed) & bit != 0 { lr::GROUP1 } else { 0 };
        let priority = u64::from(own.private.priority(intid, Relaxed)) << lr::PRIORITY_SHIFT;
        let mapping = if V::IS_V2 {
            own.add_physical_active(bit);
            lr::EOI
        } else {
            lr::HW | u64::from(own.physical_intid(intid)) << lr::PINTID_SHIFT
        };
        vif.write_lr(slot as usize, lr::PENDING | group | priority | mapping | u64::from(intid));
        cpu.used |= 1 << slot;
        cpu.written |= 1 << slot;
        cpu.consumed &= !(1 << slot);
    }

    /// Takes `vcpu` off this CPU: its list registers end up empty, its CPU interface's state in `cpu`, and no physical interrupt
    /// stays active for it. The vCPU may then be [loaded](Self::load) on any CPU.
    #[inline(never)]
    pub fn unload(&self, vcpu: usize, cpu: &mut VgicCpu, vif: &mut impl VirtualInterface, host: &dyn VgicHost) {
        let Some(own) = self.redistributors.get(vcpu) else { return };
        if cpu.used != 0 || cpu.written != 0 {
            own.dirty.store(true, SeqCst);
            self.fold(vcpu, own, cpu, vif, host);
            own.nothing_loaded();
            clear_list_registers(mem::take(&mut cpu.written), vif);
        } else {
            self.fold(vcpu, own, cpu, vif, host);
        }
        if own.physical_active.load(Relaxed) != 0 {
            own.resample(&mut own.private.view(SeqCst), vif);
            own.deactivate_physical(own.physical_active.load(Relaxed), vif);
        }
        if !cpu.control.is_empty() {
            own.dirty.store(true, SeqCst);
            cpu.control = Control::empty();
        }
        vif.set_control(Control::empty());
        vif.save_state(&mut cpu.vmcr, &mut cpu.ap0r, &mut cpu.ap1r);
    }

    /// Puts `vcpu` on this CPU, whose list registers are empty. If it has interrupts they are loaded by the next
    /// [`flush`](Self::flush), for which it is dirty.
    #[inline(never)]
    pub fn load(&self, vcpu: usize, cpu: &mut VgicCpu, vif: &mut impl VirtualInterface) {
        let Some(own) = self.redistributors.get(vcpu) else { return };
        (cpu.used, cpu.written, cpu.consumed) = (0, 0, 0);
        // `cpu.control` is empty since the unloading.
        vif.set_control(self.always());
        vif.load_state(cpu.vmcr, &cpu.ap0r, &cpu.ap1r);
        if own.private.stirred() | own.spi_hint.load(Relaxed) != 0 {
            own.dirty.store(true, SeqCst);
        }
    }

    /// As [`load`](Self::load), where another vCPU has been set aside, whose control is as if it had no interrupts. Only the first
    /// registers of active priorities move. Before anything is looked at, `stir` is called if not all is quiet. Returns the
    /// [`dirty_flag`](Self::dirty_flag).
    #[inline(always)]
    pub fn stand_in(
        &self,
        vcpu: usize,
        cpu: &mut VgicCpu,
        vif: &mut impl VirtualInterface,
        stir: impl FnOnce(),
    ) -> Option<&AtomicBool> {
        let own = self.redistributors.get(vcpu)?;
        (cpu.used, cpu.written, cpu.consumed) = (0, 0, 0);
        vif.set_control(self.always());
        vif.load_first(cpu.vmcr, &cpu.ap0r, &cpu.ap1r);
        if own.private.stirred() | own.spi_hint.load(Relaxed) != 0 {
            stir();
            own.dirty.store(true, SeqCst);
        }
        Some(&own.dirty)
    }

    /// As [`unload`](Self::unload), before another vCPU sets its control; as in [`stand_in`](Self::stand_in).
    #[inline(always)]
    pub fn step_back(&self, vcpu: usize, cpu: &mut VgicCpu, vif: &mut impl VirtualInterface, host: &dyn VgicHost) {
        let Some(own) = self.redistributors.get(vcpu) else { return };
        let busy = u32::from(cpu.used | cpu.written) | own.physical_active.load(Relaxed);
        if busy != 0 || !cpu.control.is_empty() {
            return self.unload(vcpu, cpu, vif, host);
        }
        vif.save_first(&mut cpu.vmcr, &mut cpu.ap0r, &mut cpu.ap1r);
    }

    /// Whether a `vcpu` that is not resident has an interrupt that would wake it from WFI: pending, enabled, let through
    /// by its group at both ends, and of a higher priority than its mask (KVM looks at no more).
    pub fn pending(&self, vcpu: usize, cpu: &VgicCpu) -> bool {
        let Some(own) = self.redistributors.get(vcpu) else { return false };
        if own.spi_hint.load(SeqCst) & COMMANDS_HINT != 0 {
            // It has to run for that.
            return true;
        }
        if !self.enabled.load(SeqCst) {
            return false;
        }
        let passes = |bank: &Bank, bit: u32| {
            let group1 = bank.group.load(SeqCst) & 1 << bit != 0;
            let group_on = cpu.vmcr & if group1 { lr::VMCR_ENG1 } else { lr::VMCR_ENG0 } != 0;
            group_on && u64::from(bank.priority(bit, SeqCst)) < cpu.vmcr >> lr::VMCR_PMR_SHIFT & 0xff
        };
        let waiting = |bank: &Bank| bank.pending() & bank.enabled.load(SeqCst) & !bank.active();
        let mut private = waiting(&own.private);
        while let Some(bit) = take_bit(&mut private) {
            if passes(&own.private, bit) {
                return true;
            }
        }
        let mut words = own.spi_hint.load(SeqCst);
        if words & LPI_HINT != 0
            && cpu.vmcr & lr::VMCR_ENG1 != 0
            && let Some(lpis) = self.lpis.get()
        {
            let mut first = u8::MAX;
            let unseen = lpis.most_urgent(vcpu, |priority, _| {
                first = priority;
                false
            });
            if unseen || u64::from(first) < cpu.vmcr >> lr::VMCR_PMR_SHIFT & 0xff {
                return true;
            }
        }
        while let Some(word) = take_bit(&mut words) {
            let Some(bank) = self.spis.bank(word as usize) else { continue };
            let mut shared = waiting(bank);
            while let Some(bit) = take_bit(&mut shared) {
                if passes(bank, bit) && self.spis.is_due_to(intid_of(word as usize, bit), vcpu) {
                    return true;
                }
            }
        }
        false
    }

    /// The guest's write of `intid` to ICC_DIR_EL1, trapped because of [`Control::TRAP_DEACTIVATE`] or
    /// [`Control::TRAP_COMMON`]; it may be in a list register. Ignored in EOImode 0,
    /// as hardware may.
    pub fn deactivate(
        &self,
        vcpu: usize,
        intid: u32,
        cpu: &mut VgicCpu,
        vif: &mut impl VirtualInterface,
        host: &dyn VgicHost,
    ) {
        let Some(own) = self.redistributors.get(vcpu) else { return };
        if vif.vmcr() & lr::VMCR_EOIM == 0 {
            return;
        }
        self.sync(vcpu, cpu, vif, host);
        if intid < PRIVATE_INTERRUPTS {
            own.private.write_active(1 << intid, false);
            own.dirty.store(true, SeqCst);
        } else {
            self.deactivate_spi(own, intid, host);
        }
    }

    /// Folds all list registers in use.
    #[inline(always)]
    fn fold<V: VirtualInterface>(
        &self,
        vcpu: usize,
        own: &Redistributor,
        cpu: &mut VgicCpu,
        vif: &mut V,
        host: &dyn VgicHost,
    ) {
        if cpu.control.contains(Control::ENTRY_NOT_PRESENT) {
            self.fold_eoi_count(vcpu, own, vif, host);
        }
        let mut used = u32::from(mem::take(&mut cpu.used));
        let consumed = u32::from(mem::take(&mut cpu.consumed));
        if used == 0 {
            return;
        }
        let mut folded = Folded::default();
        while let Some(n) = take_bit(&mut used) {
            let lr = ListRegister(vif.read_lr(n as usize));
            let consumed = consumed & 1 << n != 0;
            if lr.intid() < PRIVATE_INTERRUPTS {
                if V::IS_V2 {
                    own.sources.fold(lr, consumed);
                }
                folded.add(lr, consumed, if V::IS_V2 { own.mapped.load(Relaxed) } else { 0 });
            } else {
                self.fold_shared(vcpu, own, n as usize, lr, consumed, host);
            }
        }
        own.fold(&folded);
    }

    #[inline(never)]
    fn fold_shared(
        &self,
        vcpu: usize,
        own: &Redistributor,
        slot: usize,
        lr: ListRegister,
        consumed: bool,
        host: &dyn VgicHost,
    ) {
        if lr.intid() >= FIRST_LPI {
            self.fold_lpi(vcpu, own, slot, lr, host);
        } else {
            self.fold_spi(vcpu, own, lr, consumed, host);
        }
    }

    #[inline(never)]
    fn fold_spi(&self, vcpu: usize, own: &Redistributor, lr: ListRegister, consumed: bool, host: &dyn VgicHost) {
        let Some((word, bank)) = self.spis.bank_of(lr.intid()) else { return };
        let bit = 1 << (lr.intid() % 32);
        bank.return_latches(if lr.pending() && consumed { bit } else { 0 });
        bank.fold_active(bit, if lr.active() { bit } else { 0 });
        own.spi_hint.fetch_or(1 << word, SeqCst);
        self.release_spi(vcpu, lr.intid(), host);
        if !lr.valid() {
            self.spi_ended(lr.intid(), host);
        }
    }

    /// The guest ended interrupts that were in no list register. In EOImode 0 those are the active ones of the highest
    /// priorities, for interrupts end in the reverse order of their acknowledgement.
    #[cold]
    fn fold_eoi_count(&self, vcpu: usize, own: &Redistributor, vif: &mut impl VirtualInterface, host: &dyn VgicHost) {
        let count = vif.eoi_count();
        if count == 0 {
            return;
        }
        vif.clear_eoi_count();
        if vif.vmcr() & lr::VMCR_EOIM != 0 {
            // An end only drops the priority; ICC_DIR_EL1 deactivates, and traps.
            return;
        }
        for _ in 0..count {
            let mut first = u32::MAX;
            let bank = &own.private;
            let mut private = bank.active() & !bank.loaded.load(SeqCst);
            while let Some(intid) = take_bit(&mut private) {
                first = first.min(key(bank, intid, true));
            }
            for word in 0..self.spis.words() {
                let Some(bank) = self.spis.bank(word) else { continue };
                let mut shared = bank.active() & !bank.loaded.load(SeqCst);
                while let Some(bit) = take_bit(&mut shared) {
                    let intid = intid_of(word, bit);
                    if self.spis.is_due_to(intid, vcpu) {
                        first = first.min(key(bank, intid, true));
                    }
                }
            }
            match intid_of_key(first) {
                _ if first == u32::MAX => return,
                intid if intid < PRIVATE_INTERRUPTS => {
                    bank.deactivate(1 << intid);
                }
                intid => self.deactivate_spi(own, intid, host),
            }
        }
    }

    /// Loads the list registers when it takes more than the few private interrupts there are.
    #[inline(never)]
    fn load_selected(
        &self,
        vcpu: usize,
        own: &Redistributor,
        let_through: bool,
        cpu: &VgicCpu,
        vif: &mut impl VirtualInterface,
        host: &dyn VgicHost,
    ) -> (Slots, Control) {
        if own.spi_hint.load(SeqCst) & COMMANDS_HINT != 0 {
            own.spi_hint.fetch_and(!COMMANDS_HINT, SeqCst);
            host.carry_on(vcpu);
        }
        let words = match own.spi_hint.load(SeqCst) {
            0 => 0,
            _ => own.spi_hint.fetch_and(COMMANDS_HINT, SeqCst) & !COMMANDS_HINT,
        };
        let mut selection = self.select(vcpu, own, words, let_through, vif.list_registers(), None);
        let mut control = Control::empty();
        let crowded = selection.left_out();
        if crowded {
            control = self.overflow(vcpu, own, words, let_through, &mut selection, cpu, vif);
        }
        let private = selection.chosen().filter(|intid| *intid < PRIVATE_INTERRUPTS);
        let private = private.fold(0_u32, |mask, intid| mask | 1 << intid);
        let view = own.private.view(SeqCst);
        let deliver = if let_through { view.enabled } else { 0 };
        let exits = selection.exits_wanted();
        let mut slots = own.load(&view, private, deliver, crowded, exits, vif);
        let at_end = if exits { lr::EOI } else { 0 };
        for intid in selection.chosen().filter(|intid| *intid >= PRIVATE_INTERRUPTS) {
            if intid >= FIRST_LPI {
                if let Some(value) = self.present_lpi(vcpu, slots.count as usize, intid) {
                    slots.put(value, false, vif);
                }
            } else if let Some((value, presentation)) = self.present_spi(vcpu, intid, let_through, crowded, host) {
                slots.put(value | at_end, presentation.consumed != 0, vif);
            }
        }
        if selection.unseen {
            own.spi_hint.fetch_or(LPI_HINT, SeqCst);
            own.dirty.store(true, SeqCst);
            host.come_back(vcpu);
        }
        (slots, control)
    }
}

fn clear_list_registers(mask: u16, vif: &mut impl VirtualInterface) {
    let mut mask = u32::from(mask);
    while let Some(n) = take_bit(&mut mask) {
        vif.write_lr(n as usize, 0);
    }
}
