//! Thirty-two interrupts: their state as bitmaps that any CPU may change without a lock.
//!
//! A bit is one interrupt. Registers of the distributor are words of these bitmaps, so a guest's write is one atomic
//! operation. Two of the words are really pairs, because what they describe can at the same moment live in a list
//! register, where no other CPU can reach it:
//!
//! * `latch` carries, above the 32 latches, 32 *withdrawn* marks. A write of ICPENDR clears the latch and sets the mark in one
//!   operation; whoever folds the list register back drops its pending bit when it finds the mark. Loading the interrupt
//!   takes latch and mark in one operation, so an edge that comes after the write is never taken for one before it.
//! * `active` carries 32 *overridden* marks: the guest wrote the active state by MMIO, so what the list register says about
//!   it is out of date.
//!
//! Accesses are sequentially consistent but where a fence or an owner makes that needless: most rules here are "I write
//! mine, then read yours" on both sides.

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, Ordering::Relaxed, Ordering::SeqCst};

use super::lr;

/// Bits 31:0 of a pair hold the state; bits 63:32 its marks.
const MARK_SHIFT: u32 = 32;

/// The implemented bits of a priority: the top five (GICD_IPRIORITYR, IHI 0069 §12.9; KVM stores five bits).
pub(super) const PRIORITY_MASK: u8 = 0xf8;

/// State of 32 consecutive interrupts.
#[derive(Debug)]
pub(super) struct Bank {
    /// IGROUPR: 1 = group 1.
    pub(super) group: AtomicU32,
    /// ISENABLER.
    pub(super) enabled: AtomicU32,
    /// ICFGR: 1 = edge-triggered.
    pub(super) edge: AtomicU32,
    /// The level of the input line. Of a line mapped to hardware: the line is high and no list register knows.
    pub(super) level: AtomicU32,
    /// In a list register of some vCPU, in whatever state.
    pub(super) loaded: AtomicU32,
    /// Put into a list register as pending. True at the time of loading.
    pub(super) held: AtomicU32,
    latch: AtomicU64,
    active: AtomicU64,
    priority: [AtomicU8; 32],
}

/// The words of a bank, read one after the other.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) enabled: u32,
    group: u32,
    edge: u32,
    pub(super) level: u32,
    latch: u64,
    active: u64,
}

impl View {
    /// Pending outside the list registers.
    #[inline]
    pub(super) fn pending(&self) -> u32 {
        self.latch as u32 | self.level & !self.edge
    }

    /// The active state, list registers apart.
    #[inline]
    pub(super) fn active(&self) -> u32 {
        self.active as u32
    }
}

/// How interrupts of a bank appear in list registers: a bit for each interrupt in each field.
#[derive(Clone, Copy, Debug)]
pub(super) struct Presentation {
    pub(super) pending: u32,
    pub(super) active: u32,
    /// The latch was consumed: it comes back if the list register is still pending when it is folded.
    pub(super) consumed: u32,
    /// The HW bit is to be set.
    pub(super) hardware: u32,
    /// An exit is wanted at its end.
    pub(super) eoi: u32,
    group: u32,
}

impl Presentation {
    /// The interrupts that have something to show.
    #[inline]
    pub(super) fn shown(&self) -> u32 {
        self.pending | self.active
    }

    /// The list register of `intid`, but for the HW bit and pINTID.
    #[inline]
    pub(super) fn list_register(&self, intid: u32, priority: u8) -> u64 {
        let index = intid % 32;
        let field = |mask: u32, shift: u32| u64::from(mask >> index & 1) << shift;
        field(self.pending, lr::PENDING.trailing_zeros())
            | field(self.active, lr::ACTIVE.trailing_zeros())
            | field(self.eoi, lr::EOI.trailing_zeros())
            | field(self.group, lr::GROUP1.trailing_zeros())
            | u64::from(priority) << lr::PRIORITY_SHIFT
            | u64::from(intid)
    }
}

impl Bank {
    /// A bank in its reset state: group 1, level-sensitive, priority 0, all off.
    pub(super) fn new() -> Self {
        Self {
            group: AtomicU32::new(u32::MAX),
            enabled: AtomicU32::new(0),
            edge: AtomicU32::new(0),
            level: AtomicU32::new(0),
            loaded: AtomicU32::new(0),
            held: AtomicU32::new(0),
            latch: AtomicU64::new(0),
            active: AtomicU64::new(0),
            priority: [const { AtomicU8::new(0) }; 32],
        }
    }

    /// Back to the reset state, with `enabled` and `edge` as given.
    pub(super) fn reset(&self, enabled: u32, edge: u32) {
        self.group.store(u32::MAX, SeqCst);
        self.enabled.store(enabled, SeqCst);
        self.edge.store(edge, SeqCst);
        self.level.store(0, SeqCst);
        self.loaded.store(0, SeqCst);
        self.held.store(0, SeqCst);
        self.latch.store(0, SeqCst);
        self.active.store(0, SeqCst);
        for priority in &self.priority {
            priority.store(0, SeqCst);
        }
    }

    /// The latches: pending by an edge, an SGI or a write of ISPENDR, and not in a list register.
    #[inline]
    pub(super) fn latched(&self) -> u32 {
        self.latch.load(SeqCst) as u32
    }

    /// Pending outside the list registers: latch, or line of a level-sensitive interrupt.
    #[inline]
    pub(super) fn pending(&self) -> u32 {
        self.latched() | self.level.load(SeqCst) & !self.edge.load(SeqCst)
    }

    /// Pending as the guest reads it (ISPENDR). An interrupt that moves into or out of a list register meanwhile is seen
    /// on one side or the other.
    pub(super) fn pending_or_held(&self) -> u32 {
        self.held.load(SeqCst) | self.pending() | self.held.load(SeqCst)
    }

    /// The active state, list registers apart.
    #[inline]
    pub(super) fn active(&self) -> u32 {
        self.active.load(SeqCst) as u32
    }

    /// Whether `bit` is enabled and nothing else is known of it: not pending, not active, and nothing marked.
    #[inline]
    pub(super) fn is_clear(&self, bit: u32) -> bool {
        let pairs = self.latch.load(Relaxed) | self.active.load(Relaxed);
        let state = pairs as u32 | (pairs >> MARK_SHIFT) as u32 | self.level.load(Relaxed);
        bit & self.enabled.load(Relaxed) & !state != 0
    }

    /// Interrupts with a state that a change of their configuration could matter to.
    pub(super) fn live(&self) -> u32 {
        self.loaded.load(SeqCst) | self.latched() | self.level.load(SeqCst) | self.active() | self.loaded.load(SeqCst)
    }

    /// Latches `mask`; the latches before.
    #[inline]
    pub(super) fn set_latch(&self, mask: u32) -> u32 {
        self.latch.fetch_or(u64::from(mask), SeqCst) as u32
    }

    /// The line of `bit` is now at `level`. True if a list register may have to follow.
    pub(super) fn drive(&self, bit: u32, level: bool) -> bool {
        let edge = self.edge.load(SeqCst) & bit != 0;
        match (level, edge) {
            (true, true) => {
                self.level.fetch_or(bit, SeqCst);
                self.set_latch(bit);
                true
            }
            (true, false) => self.level.fetch_or(bit, SeqCst) & bit == 0,
            (false, _) => self.level.fetch_and(!bit, SeqCst) & bit != 0 && !edge && self.loaded.load(SeqCst) & bit != 0,
        }
    }

    /// Sets exactly the latches of `bits` (save/restore).
    pub(super) fn replace_latches(&self, bits: u32) {
        self.latch.store(u64::from(bits), SeqCst);
    }

    /// Takes back what was latched, in the list registers too (ICPENDR).
    pub(super) fn withdraw(&self, mask: u32) {
        let mask = u64::from(mask);
        let change = |word: u64| Some(word & !mask | mask << MARK_SHIFT);
        let _ = self.latch.fetch_update(SeqCst, SeqCst, change);
    }

    /// Puts the latches of `mask` back: their list registers came back pending. But not those withdrawn meanwhile.
    #[inline]
    pub(super) fn return_latches(&self, mask: u32) {
        if mask != 0 {
            let change = |word: u64| {
                let withdrawn = (word >> MARK_SHIFT) as u32 & mask;
                Some(word & !(u64::from(mask) << MARK_SHIFT) | u64::from(mask & !withdrawn))
            };
            let _ = self.latch.fetch_update(SeqCst, SeqCst, change);
        }
    }

    /// Puts the lines of `mask`, which are mapped, back: their list registers came back pending. But not those withdrawn
    /// meanwhile.
    #[inline]
    pub(super) fn return_lines(&self, mask: u32) {
        if mask != 0 {
            let withdrawn = self.latch.fetch_and(!(u64::from(mask) << MARK_SHIFT), SeqCst) >> MARK_SHIFT;
            self.level.fetch_or(mask & !withdrawn as u32, SeqCst);
        }
    }

    /// Sets or clears the active state of `mask`, in the list registers too (ISACTIVER, ICACTIVER).
    pub(super) fn write_active(&self, mask: u32, active: bool) {
        let mask = u64::from(mask);
        let change = |word: u64| {
            let state = if active { word | mask } else { word & !mask };
            Some(state | mask << MARK_SHIFT)
        };
        let _ = self.active.fetch_update(SeqCst, SeqCst, change);
    }

    /// Folds the active state that list registers have for `mask`, but for those of which the guest wrote another by MMIO
    /// meanwhile.
    #[inline]
    pub(super) fn fold_active(&self, mask: u32, active: u32) {
        let word = self.active.load(Relaxed);
        if (word >> MARK_SHIFT) as u32 & mask == 0 && word as u32 & mask == active {
            return;
        }
        let change = |word: u64| {
            let overridden = (word >> MARK_SHIFT) as u32 & mask;
            let folded = mask & !overridden;
            let word = word & !(u64::from(mask) << MARK_SHIFT);
            Some(word & !u64::from(folded) | u64::from(active & folded))
        };
        let _ = self.active.fetch_update(SeqCst, SeqCst, change);
    }

    /// Deactivates `bit`, which is in no list register; false if it was not active.
    pub(super) fn deactivate(&self, bit: u32) -> bool {
        self.active.fetch_and(!u64::from(bit), SeqCst) & u64::from(bit) != 0
    }

    /// The priority of an interrupt; `index` is taken modulo 32.
    #[inline]
    pub(super) fn priority(&self, index: u32, order: Ordering) -> u8 {
        self.priority[(index % 32) as usize].load(order)
    }

    /// Sets a priority; true if that changed it. `index` is taken modulo 32.
    pub(super) fn set_priority(&self, index: u32, priority: u8) -> bool {
        let priority = priority & PRIORITY_MASK;
        self.priority[(index % 32) as usize].swap(priority, SeqCst) != priority
    }

    /// Interrupts that may be pending or active, list registers apart. What becomes so meanwhile makes the vCPU dirty.
    #[inline(always)]
    pub(super) fn stirred(&self) -> u32 {
        (self.latch.load(Relaxed) | self.active.load(Relaxed)) as u32 | self.level.load(Relaxed)
    }

    /// The state of the bank now.
    #[inline]
    pub(super) fn view(&self, order: Ordering) -> View {
        View {
            enabled: self.enabled.load(order),
            group: self.group.load(order),
            edge: self.edge.load(order),
            level: self.level.load(order),
            latch: self.latch.load(order),
            active: self.active.load(order),
        }
    }

    /// Offers list registers to `mask`, and takes their pending state for it. Of these, `deliver` may be shown as pending
    /// to the guest, and `mapped` are mapped to physical interrupts. When the list registers are `crowded`, those that are
    /// active do not become pending there by themselves: the exit at their end chooses anew. Nor do those in `alone`.
    ///
    /// The rules, KVM's: a mapped interrupt is never pending and active at once with HW set; a level-sensitive one is
    /// never pending and active at once, and asks for an exit at its end while its line is high; an edge is consumed, and so
    /// is the line of a mapped interrupt, because the physical interrupt tells again once it is deactivated.
    #[inline]
    pub(super) fn present(
        &self,
        view: &View,
        mask: u32,
        deliver: u32,
        mapped: u32,
        crowded: bool,
        alone: u32,
    ) -> Presentation {
        let both = |bits: u32| u64::from(bits) | u64::from(bits) << MARK_SHIFT;
        let deliver = deliver & mask;
        let mapped = mapped & mask;
        let mut active = view.active;
        if active >> MARK_SHIFT & u64::from(mask) != 0 {
            active = self.active.fetch_and(!(u64::from(mask) << MARK_SHIFT), SeqCst);
        }
        let active = active as u32 & mask;
        let line = view.level & !view.edge & mask;

        let takeable = deliver & (!active | if crowded { 0 } else { view.edge & !alone | mapped });
        let mut consumed = 0;
        if view.latch & both(takeable) != 0 {
            consumed = self.latch.fetch_and(!both(takeable), SeqCst) as u32 & takeable;
        }
        let told = line & mapped & (active | deliver);
        if told != 0 {
            self.level.fetch_and(!told, SeqCst);
        }

        // Pending again while active: with HW set there would be no way to tell.
        let again = active & deliver & view.latch as u32;
        let unmapped = mapped & again;
        let level = line & deliver & !mapped;
        Presentation {
            pending: consumed | line & deliver & !active,
            active,
            consumed,
            hardware: mapped & !unmapped,
            eoi: unmapped | again & !consumed | level,
            group: view.group,
        }
    }
}
