//! Which interrupts get the list registers when there may be more of them.
//!
//! The most urgent ones do, active and pending alike; an active one needs a list register so that its end deactivates it
//! without an exit. If pending ones are left out, at least one pending one is in, and the exit when no list register is
//! pending any more brings the next. If active ones are left out, their ends are counted or trapped.
//!
//! A GICv2 cannot trap deactivations, so in EOImode 1 active interrupts come first there and are never displaced: as on KVM,
//! one that is pending waits while all list registers hold active ones, each of which then ends with an exit.

use core::mem;
use core::sync::atomic::Ordering::SeqCst;

use super::bank::Bank;
use super::flush::take_bit;
use super::lr::{self, Control, MAX_LIST_REGISTERS, VgicCpu, VirtualInterface};
use super::spi::intid_of;
use super::{LPI_HINT, Redistributor, Version, Vgic};

/// The interrupts with the most urgent keys, at most as many as there are list registers.
pub(super) struct Selection {
    keys: [u32; MAX_LIST_REGISTERS],
    count: usize,
    capacity: usize,
    /// The most urgent pending one of those that found no list register.
    first_pending: u32,
    /// Pending ones found no list register.
    pending_left_out: bool,
    /// Active ones found no list register.
    active_left_out: bool,
    /// Each that ends has to bring an exit: nothing else would bring the turn of those that wait.
    exits: bool,
    /// There may be more pending ones that were not looked at.
    pub(super) unseen: bool,
}

/// In a key: the interrupt is not active. Of equals the active ones come first.
const KEY_INACTIVE: u32 = 1 << 16;
/// In a key, from here: the priority. Below is the INTID.
const KEY_PRIORITY_SHIFT: u32 = 17;
/// In a key: can do without a list register for now. Comes after all that cannot.
const KEY_LAST: u32 = 1 << 31;

/// Orders interrupts: lower is more urgent. Priority, then active ones, then the lower INTID.
#[inline]
pub(super) fn key(bank: &Bank, intid: u32, active: bool) -> u32 {
    u32::from(bank.priority(intid, SeqCst)) << KEY_PRIORITY_SHIFT | if active { 0 } else { KEY_INACTIVE } | intid
}

#[inline]
pub(super) fn intid_of_key(key: u32) -> u32 {
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
            exits: false,
            unseen: false,
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
        if self.pending_left_out
            && self.all_active()
            && let Some(last) = self.keys.iter_mut().take(self.count).max()
        {
            *last = self.first_pending;
            self.active_left_out = true;
        }
    }

    fn all_active(&self) -> bool {
        self.keys.iter().take(self.count).all(|key| key & KEY_INACTIVE == 0)
    }

    pub(super) fn left_out(&self) -> bool {
        self.pending_left_out || self.active_left_out
    }

    /// Whether all that are loaded are to end with an exit.
    pub(super) fn exits_wanted(&self) -> bool {
        self.exits
    }

    /// The INTIDs of the chosen ones.
    pub(super) fn chosen(&self) -> impl Iterator<Item = u32> + '_ {
        self.keys.iter().take(self.count).copied().map(intid_of_key)
    }
}

impl Vgic {
    /// Whether an active interrupt must stay in its list register, because its deactivation would not be seen.
    fn keeps_active(&self, vmcr: u64) -> bool {
        self.version == Version::V2 && vmcr & lr::VMCR_EOIM != 0
    }

    /// The interrupts to load: the active ones and those to be delivered, private ones and those SPIs of `words` that are
    /// due to `vcpu`. Given ICH_VMCR_EL2, those come last that do not need a list register: pending ones whose group is
    /// off, and in EOImode 1 active ones, which on a GICv2 come first.
    pub(super) fn select(
        &self,
        vcpu: usize,
        own: &Redistributor,
        words: u32,
        let_through: bool,
        capacity: usize,
        vmcr: Option<u64>,
    ) -> Selection {
        let mut selection = Selection::new(capacity);
        let key_of = |bank: &Bank, intid: u32, active: u32| {
            let bit = 1 << (intid % 32);
            let key = key(bank, intid, active & bit != 0);
            let Some(vmcr) = vmcr else { return key };
            let group = if bank.group.load(SeqCst) & bit != 0 { lr::VMCR_ENG1 } else { lr::VMCR_ENG0 };
            if active & bit != 0 && self.keeps_active(vmcr) {
                return intid;
            }
            let last = if active & bit != 0 { vmcr & lr::VMCR_EOIM != 0 } else { vmcr & group == 0 };
            key | if last { KEY_LAST } else { 0 }
        };
        let candidates = |bank: &Bank, active: u32| {
            let deliverable = if let_through { bank.pending() & bank.enabled.load(SeqCst) } else { 0 };
            deliverable | active
        };
        let active = own.private.active();
        let mut private = candidates(&own.private, active);
        while let Some(intid) = take_bit(&mut private) {
            selection.push(key_of(&own.private, intid, active));
        }
        let mut rest = words;
        while let Some(word) = take_bit(&mut rest) {
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
        if words & LPI_HINT != 0
            && let_through
            && let Some(lpis) = self.lpis.get()
        {
            // Pending ones of a group that is off can do without a list register.
            let last = if vmcr.is_some_and(|vmcr| vmcr & lr::VMCR_ENG1 == 0) { KEY_LAST } else { 0 };
            let mut wanted = selection.capacity + 1;
            selection.unseen = lpis.most_urgent(vcpu, |priority, intid| {
                selection.push(u32::from(priority) << KEY_PRIORITY_SHIFT | KEY_INACTIVE | last | intid);
                wanted -= 1;
                // No more can be chosen, and one more says that some are left out.
                wanted != 0
            });
        }
        selection
    }

    /// Not all found a list register: chooses with more care, and asks for the exits by which the others get their turn.
    #[cold]
    #[expect(clippy::too_many_arguments, reason = "all of it is what the one caller already holds")]
    pub(super) fn overflow(
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
        if self.keeps_active(vmcr) {
            selection.exits = selection.pending_left_out && selection.all_active();
        } else {
            selection.choose_a_pending_one();
        }
        let mut control = Control::empty();
        if selection.pending_left_out && !selection.exits {
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
