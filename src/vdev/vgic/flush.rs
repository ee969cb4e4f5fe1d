//! Between the bitmaps and the list registers: fold back, choose, load.
//!
//! Folding empties the list registers as far as software is concerned: afterwards the bitmaps tell the whole truth, and
//! the guest must not be entered before a flush has loaded them again. All this happens only when the dirty flag is set, so
//! it starts from the bitmaps each time and keeps nothing but which list registers are in use.

use core::mem;
use core::sync::atomic::{Ordering::Relaxed, Ordering::SeqCst};

use super::bank::{Bank, Circumstances, Loading};
use super::lr::{self, Control, ListRegister, MAX_LIST_REGISTERS, VgicCpu, VirtualInterface};
use super::spi::intid_of;
use super::{PRIVATE_INTERRUPTS, Redistributor, Vgic, VgicHost};

/// The interrupts with the most urgent keys, at most as many as there are list registers.
struct Selection {
    keys: [u32; MAX_LIST_REGISTERS],
    count: usize,
    capacity: usize,
    /// The most urgent pending one of those that found no list register.
    first_pending: u32,
    /// Pending ones found no list register.
    pending_left_out: bool,
    /// Active ones found no list register.
    active_left_out: bool,
}

/// In a key: the interrupt is not active. Of equals the active ones come first.
const KEY_INACTIVE: u32 = 1 << 15;
/// In a key: can do without a list register for now. Comes after all that cannot.
const KEY_LAST: u32 = 1 << 31;

/// Orders interrupts: lower is more urgent. Priority, then active ones, then the lower INTID.
#[inline]
fn key(bank: &Bank, intid: u32, active: bool) -> u32 {
    u32::from(bank.priority(intid)) << 16 | if active { 0 } else { KEY_INACTIVE } | intid
}

#[inline]
fn intid_of_key(key: u32) -> u32 {
    key & (KEY_INACTIVE - 1)
}

impl Selection {
    fn new(capacity: usize) -> Self {
        Self {
            keys: [0; MAX_LIST_REGISTERS],
            count: 0,
            capacity,
            first_pending: u32::MAX,
            pending_left_out: false,
            active_left_out: false,
        }
    }

    #[inline]
    fn push(&mut self, key: u32) {
        if self.count < self.capacity
            && let Some(slot) = self.keys.get_mut(self.count)
        {
            *slot = key;
            self.count += 1;
        } else {
            self.replace(key);
        }
    }

    /// Takes `key` instead of the least urgent one, if it is more urgent.
    #[cold]
    fn replace(&mut self, key: u32) {
        let mut out = key;
        if let Some(last) = self.keys.iter_mut().take(self.count).max()
            && key < *last
        {
            out = mem::replace(last, key);
        }
        if out & KEY_INACTIVE != 0 {
            self.pending_left_out = true;
            self.first_pending = self.first_pending.min(out);
        } else {
            self.active_left_out = true;
        }
    }

    /// Makes sure that a pending interrupt is chosen if there is one. Active ones do not always keep others from being
    /// signalled: the running priority may have been dropped, or the guest made them active by MMIO.
    fn choose_a_pending_one(&mut self) {
        let all_active = self.chosen().all(|key| key & KEY_INACTIVE == 0);
        if self.pending_left_out
            && all_active
            && let Some(last) = self.keys.iter_mut().take(self.count).max()
        {
            *last = self.first_pending;
            self.active_left_out = true;
        }
    }

    fn left_out(&self) -> bool {
        self.pending_left_out || self.active_left_out
    }

    fn chosen(&self) -> impl Iterator<Item = u32> + '_ {
        self.keys.iter().take(self.count).copied()
    }
}

/// Takes one set bit out of `mask`.
#[inline]
fn take_bit(mask: &mut u32) -> Option<u32> {
    if *mask == 0 {
        return None;
    }
    let bit = mask.trailing_zeros();
    *mask &= *mask - 1;
    Some(bit)
}

impl Redistributor {
    /// Folds a private interrupt's list register.
    #[inline]
    fn fold(&self, lr: ListRegister, consumed: bool) {
        let bit = 1_u32.unbounded_shl(lr.intid());
        if lr.hw() && (lr.pending() || lr.active()) {
            self.add_physical_active(bit);
        }
        if lr.pending() {
            if consumed {
                self.private.return_latch(bit);
            } else if lr.hw() {
                self.private.return_line(bit);
            }
        }
        self.private.fold_active(bit, lr.active());
    }

    /// Mapped lines that have gone low meanwhile are no longer pending; physical interrupts that are active for nothing any
    /// more are deactivated, so that they can fire again.
    #[inline]
    fn resample(&self, vif: &mut impl VirtualInterface) {
        let held = self.physical_active.load(Relaxed);
        if held == 0 {
            return;
        }
        let mut high = held & self.private.level.load(SeqCst);
        while let Some(intid) = take_bit(&mut high) {
            if !vif.physical_level(self.physical_intid(intid)) {
                self.private.level.fetch_and(!(1 << intid), SeqCst);
            }
        }
        self.deactivate_physical(held & !(self.private.pending() | self.private.active()), vif);
    }

    fn deactivate_physical(&self, bits: u32, vif: &mut impl VirtualInterface) {
        let mut rest = bits;
        while let Some(intid) = take_bit(&mut rest) {
            vif.set_physical_active(self.physical_intid(intid), false);
        }
        self.remove_physical_active(bits);
    }

    /// Offers private interrupt `intid` a list register.
    #[inline]
    fn load(&self, intid: u32, let_through: bool, vif: &mut impl VirtualInterface) -> Option<Loading> {
        let bit = 1_u32.unbounded_shl(intid);
        let deliver = let_through && self.private.enabled.load(SeqCst) & bit != 0;
        let mapped = self.mapped.load(Relaxed) & bit != 0;
        let mut loading = self.private.load(intid, Circumstances { deliver, mapped })?;
        if mapped {
            let physical = self.physical_intid(intid);
            if self.physical_active.load(Relaxed) & bit == 0 {
                vif.set_physical_active(physical, true);
            }
            if loading.hardware {
                loading.lr |= lr::HW | u64::from(physical) << lr::PINTID_SHIFT;
                self.remove_physical_active(bit);
            } else {
                self.add_physical_active(bit);
            }
        }
        Some(loading)
    }
}

impl Vgic {
    /// Folds the list registers of `vcpu` back into the bitmaps, so that any CPU can read its interrupts' state there. Call it
    /// on the CPU where the vCPU is, out of its guest; the vCPU is dirty afterwards.
    pub fn sync(&self, vcpu: usize, cpu: &mut VgicCpu, vif: &mut impl VirtualInterface, host: &dyn VgicHost) {
        let Some(own) = self.redistributors.get(vcpu) else { return };
        if cpu.used != 0 {
            own.dirty.store(true, SeqCst);
            self.fold(vcpu, own, cpu, vif, host);
        }
        own.resample(vif);
    }

    /// Brings the list registers of the resident `vcpu` up to date. Call it before entering the guest when
    /// [`dirty`](Self::dirty) says so.
    pub fn flush(&self, vcpu: usize, cpu: &mut VgicCpu, vif: &mut impl VirtualInterface, host: &dyn VgicHost) {
        let Some(own) = self.redistributors.get(vcpu) else { return };
        // First, so that whatever changes from here on sets it again.
        own.dirty.store(false, SeqCst);
        self.fold(vcpu, own, cpu, vif, host);
        own.resample(vif);

        let let_through = self.enabled.load(SeqCst);
        let words = if own.spi_hint.load(SeqCst) != 0 { own.spi_hint.swap(0, SeqCst) } else { 0 };
        let capacity = vif.list_registers();
        let mut selection = self.select(vcpu, own, words, let_through, capacity, None);
        let mut control = Control::empty();
        if selection.left_out() {
            control = self.overflow(vcpu, own, words, let_through, &mut selection, cpu, vif);
        }

        let private = selection.chosen().map(intid_of_key).filter(|intid| *intid < PRIVATE_INTERRUPTS);
        let private = private.fold(0_u32, |mask, intid| mask | 1 << intid);
        own.private.loaded.store(private, SeqCst);
        own.private.held.store(private, SeqCst);
        let mut held = private;
        let mut slot = 0;
        for intid in selection.chosen().map(intid_of_key) {
            let loading = if intid < PRIVATE_INTERRUPTS {
                let loading = own.load(intid, let_through, vif);
                if loading.is_none_or(|loading| loading.lr & lr::PENDING == 0) {
                    held &= !(1 << intid);
                }
                loading
            } else {
                self.load_spi(vcpu, intid, let_through, host)
            };
            if let Some(loading) = loading {
                vif.write_lr(slot, loading.lr);
                cpu.used |= 1 << slot;
                cpu.consumed |= u16::from(loading.consumed) << slot;
                slot += 1;
            }
        }
        own.private.held.store(held, SeqCst);

        let unused = cpu.written & !cpu.used;
        cpu.written = cpu.used;
        clear_list_registers(unused, vif);
        if cpu.control != control {
            cpu.control = control;
            vif.set_control(control);
        }
    }

    /// Takes `vcpu` off this CPU: its list registers end up empty, its CPU interface's state in `cpu`, and no physical interrupt
    /// stays active for it. The vCPU may then be [loaded](Self::load) on any CPU.
    pub fn unload(&self, vcpu: usize, cpu: &mut VgicCpu, vif: &mut impl VirtualInterface, host: &dyn VgicHost) {
        let Some(own) = self.redistributors.get(vcpu) else { return };
        self.fold(vcpu, own, cpu, vif, host);
        own.resample(vif);
        own.deactivate_physical(own.physical_active.load(Relaxed), vif);
        clear_list_registers(mem::take(&mut cpu.written), vif);
        cpu.control = Control::empty();
        vif.set_control(Control::empty());
        cpu.vmcr = vif.vmcr();
        let count = vif.active_priority_registers();
        for (n, (ap0r, ap1r)) in cpu.ap0r.iter_mut().zip(&mut cpu.ap1r).take(count).enumerate() {
            (*ap0r, *ap1r) = (vif.ap0r(n), vif.ap1r(n));
        }
        own.dirty.store(true, SeqCst);
    }

    /// Puts `vcpu` on this CPU, whose list registers are empty. Its interrupts are loaded by the next
    /// [`flush`](Self::flush), for which it is dirty.
    pub fn load(&self, vcpu: usize, cpu: &mut VgicCpu, vif: &mut impl VirtualInterface) {
        let Some(own) = self.redistributors.get(vcpu) else { return };
        (cpu.used, cpu.written, cpu.consumed) = (0, 0, 0);
        cpu.control = Control::empty();
        vif.set_control(Control::empty());
        vif.set_vmcr(cpu.vmcr);
        let count = vif.active_priority_registers();
        for (n, (ap0r, ap1r)) in cpu.ap0r.iter().zip(&cpu.ap1r).take(count).enumerate() {
            vif.set_ap0r(n, *ap0r);
            vif.set_ap1r(n, *ap1r);
        }
        own.dirty.store(true, SeqCst);
    }

    /// Whether a `vcpu` that is not resident has an interrupt that would wake it from WFI: pending, enabled, let through
    /// by its group at both ends, and of a higher priority than its mask (KVM looks at no more).
    pub fn pending(&self, vcpu: usize, cpu: &VgicCpu) -> bool {
        let Some(own) = self.redistributors.get(vcpu) else { return false };
        if !self.enabled.load(SeqCst) {
            return false;
        }
        let passes = |bank: &Bank, bit: u32| {
            let group1 = bank.group.load(SeqCst) & 1 << bit != 0;
            let group_on = cpu.vmcr & if group1 { lr::VMCR_ENG1 } else { lr::VMCR_ENG0 } != 0;
            group_on && u64::from(bank.priority(bit)) < cpu.vmcr >> lr::VMCR_PMR_SHIFT & 0xff
        };
        let waiting = |bank: &Bank| bank.pending() & bank.enabled.load(SeqCst) & !bank.active();
        let mut private = waiting(&own.private);
        while let Some(bit) = take_bit(&mut private) {
            if passes(&own.private, bit) {
                return true;
            }
        }
        let mut words = own.spi_hint.load(SeqCst);
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

    /// The guest's write of `intid` to ICC_DIR_EL1, trapped because of [`Control::TRAP_DEACTIVATE`]. Ignored in EOImode 0,
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
    #[inline]
    fn fold(
        &self,
        vcpu: usize,
        own: &Redistributor,
        cpu: &mut VgicCpu,
        vif: &mut impl VirtualInterface,
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
        while let Some(n) = take_bit(&mut used) {
            let lr = ListRegister(vif.read_lr(n as usize));
            let consumed = consumed & 1 << n != 0;
            if lr.intid() < PRIVATE_INTERRUPTS {
                own.fold(lr, consumed);
            } else if let Some((word, bank)) = self.spis.bank_of(lr.intid()) {
                let bit = 1 << (lr.intid() % 32);
                if lr.pending() && consumed {
                    bank.return_latch(bit);
                }
                bank.fold_active(bit, lr.active());
                own.spi_hint.fetch_or(1 << word, SeqCst);
                self.release_spi(vcpu, lr.intid(), host);
            }
        }
        own.private.held.store(0, SeqCst);
        own.private.loaded.store(0, SeqCst);
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

    /// The interrupts to load: the active ones and those to be delivered, private ones and those SPIs of `words` that are
    /// due to `vcpu`. Given ICH_VMCR_EL2, those come last that do not need a list register: pending ones whose group is
    /// off, and in EOImode 1 active ones.
    #[inline]
    fn select(
        &self,
        vcpu: usize,
        own: &Redistributor,
        words: u32,
        let_through: bool,
        capacity: usize,
        vmcr: Option<u64>,
    ) -> Selection {
        let mut selection = Selection::new(capacity);
        let candidates = |bank: &Bank, active: u32| {
            let deliverable = if let_through { bank.pending() & bank.enabled.load(SeqCst) } else { 0 };
            deliverable | active
        };
        let key_of = |bank: &Bank, intid: u32, active: u32| {
            let bit = 1 << (intid % 32);
            let key = key(bank, intid, active & bit != 0);
            let Some(vmcr) = vmcr else { return key };
            let group = if bank.group.load(SeqCst) & bit != 0 { lr::VMCR_ENG1 } else { lr::VMCR_ENG0 };
            let last = if active & bit != 0 { vmcr & lr::VMCR_EOIM != 0 } else { vmcr & group == 0 };
            key | if last { KEY_LAST } else { 0 }
        };
        let bank = &own.private;
        let active = bank.active();
        let mut private = candidates(bank, active);
        while let Some(intid) = take_bit(&mut private) {
            selection.push(key_of(bank, intid, active));
        }
        let mut words = words;
        while let Some(word) = take_bit(&mut words) {
            let Some(bank) = self.spis.bank(word as usize) else { continue };
            let active = bank.active();
            let mut shared = candidates(bank, active);
            while let Some(bit) = take_bit(&mut shared) {
                let intid = intid_of(word as usize, bit);
                if self.spis.is_due_to(intid, vcpu) {
                    selection.push(key_of(bank, intid, active));
                }
            }
        }
        selection
    }

    /// Not all found a list register: chooses with more care, and asks for the exits by which the others get their turn.
    #[cold]
    #[allow(clippy::too_many_arguments)]
    fn overflow(
        &self,
        vcpu: usize,
        own: &Redistributor,
        words: u32,
        let_through: bool,
        selection: &mut Selection,
        cpu: &VgicCpu,
        vif: &mut impl VirtualInterface,
    ) -> Control {
        own.spi_hint.fetch_or(words, SeqCst);
        let vmcr = vif.vmcr();
        *selection = self.select(vcpu, own, words, let_through, selection.capacity, Some(vmcr));
        selection.choose_a_pending_one();
        let mut control = Control::empty();
        if selection.pending_left_out {
            control |= Control::NO_PENDING;
            // The choice depends on which groups are on: an exit when the guest changes that.
            let group0 = vmcr & lr::VMCR_ENG0 != 0;
            let group1 = vmcr & lr::VMCR_ENG1 != 0;
            control |= if group0 { Control::GROUP0_DISABLED } else { Control::GROUP0_ENABLED };
            control |= if group1 { Control::GROUP1_DISABLED } else { Control::GROUP1_ENABLED };
        }
        if selection.active_left_out {
            control |= Control::ENTRY_NOT_PRESENT | Control::TRAP_DEACTIVATE;
            if !cpu.control.contains(Control::ENTRY_NOT_PRESENT) {
                vif.clear_eoi_count();
            }
        }
        control
    }
}

fn clear_list_registers(mask: u16, vif: &mut impl VirtualInterface) {
    let mut mask = u32::from(mask);
    while let Some(n) = take_bit(&mut mask) {
        vif.write_lr(n as usize, 0);
    }
}
