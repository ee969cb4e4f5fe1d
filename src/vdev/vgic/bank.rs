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
//! All accesses are sequentially consistent: most rules here are "I write mine, then read yours" on both sides, and on
//! AArch64 the stronger order costs no extra instruction.

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};

use super::lr;

/// Bits 31:0 of a pair hold the state; bits 63:32 its marks.
const MARK_SHIFT: u32 = 32;

/// The implemented bits of a priority: the top five (abi §6.4, IPRIORITYR).
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

/// What becomes of one interrupt that is offered a list register.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loading {
    /// State, group, priority, EOI and vINTID of the list register; the HW bit and pINTID are the caller's.
    pub(super) lr: u64,
    /// The latch was consumed: it comes back if the list register is still pending when it is folded.
    pub(super) consumed: bool,
    /// The HW bit may be set.
    pub(super) hardware: bool,
}

/// Circumstances of a [`Bank::load`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Circumstances {
    /// Enabled, and its group let through by the distributor: the pending state may be shown to the guest.
    pub(super) deliver: bool,
    /// Mapped to a physical interrupt.
    pub(super) mapped: bool,
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

    /// Interrupts with a state that a change of their configuration could matter to.
    pub(super) fn live(&self) -> u32 {
        self.loaded.load(SeqCst) | self.latched() | self.level.load(SeqCst) | self.active() | self.loaded.load(SeqCst)
    }

    /// Latches `mask`.
    #[inline]
    pub(super) fn set_latch(&self, mask: u32) {
        self.latch.fetch_or(u64::from(mask), SeqCst);
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

    /// Takes the latch of `bit` for a list register; false if it is not set.
    #[inline]
    fn take_latch(&self, bit: u32) -> bool {
        let both = u64::from(bit) | u64::from(bit) << MARK_SHIFT;
        self.latch.load(SeqCst) & both != 0 && self.latch.fetch_and(!both, SeqCst) & u64::from(bit) != 0
    }

    /// Puts the latch of `bit` back: its list register came back pending. Unless it was withdrawn meanwhile.
    pub(super) fn return_latch(&self, bit: u32) {
        let mark = u64::from(bit) << MARK_SHIFT;
        let change = |word: u64| Some(if word & mark != 0 { word & !mark } else { word | u64::from(bit) });
        let _ = self.latch.fetch_update(SeqCst, SeqCst, change);
    }

    /// Puts the line of a mapped `bit` back: its list register came back pending. Unless it was withdrawn meanwhile.
    pub(super) fn return_line(&self, bit: u32) {
        let mark = u64::from(bit) << MARK_SHIFT;
        if self.latch.load(SeqCst) & mark == 0 || self.latch.fetch_and(!mark, SeqCst) & mark == 0 {
            self.level.fetch_or(bit, SeqCst);
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

    /// The active state of `bit` for a list register.
    #[inline]
    fn take_active(&self, bit: u32) -> bool {
        let mark = u64::from(bit) << MARK_SHIFT;
        let mut word = self.active.load(SeqCst);
        if word & mark != 0 {
            word = self.active.fetch_and(!mark, SeqCst);
        }
        word & u64::from(bit) != 0
    }

    /// Folds the active state that a list register has for `bit`, unless the guest wrote another by MMIO meanwhile.
    #[inline]
    pub(super) fn fold_active(&self, bit: u32, active: bool) {
        let mark = u64::from(bit) << MARK_SHIFT;
        let state = u64::from(bit);
        let word = self.active.load(SeqCst);
        if word & mark == 0 && (word & state != 0) == active {
            return;
        }
        let change = |word: u64| {
            Some(match (word & mark != 0, active) {
                (true, _) => word & !mark,
                (false, true) => word | state,
                (false, false) => word & !state,
            })
        };
        let _ = self.active.fetch_update(SeqCst, SeqCst, change);
    }

    /// Deactivates `bit`, which is in no list register; false if it was not active.
    pub(super) fn deactivate(&self, bit: u32) -> bool {
        self.active.fetch_and(!u64::from(bit), SeqCst) & u64::from(bit) != 0
    }

    /// The priority of an interrupt; `index` is taken modulo 32.
    #[inline]
    pub(super) fn priority(&self, index: u32) -> u8 {
        self.priority[(index % 32) as usize].load(SeqCst)
    }

    /// Sets a priority; true if that changed it. `index` is taken modulo 32.
    pub(super) fn set_priority(&self, index: u32, priority: u8) -> bool {
        let priority = priority & PRIORITY_MASK;
        self.priority[(index % 32) as usize].swap(priority, SeqCst) != priority
    }

    /// Offers `intid` (whose bit in this bank is `intid % 32`) a list register, and takes its pending state for it. `None`:
    /// there is nothing to show to the guest.
    ///
    /// The rules (abi §6.3): a mapped interrupt is never pending and active at once with HW set; a level-sensitive one is
    /// never pending and active at once, and asks for an exit at its end while its line is high; an edge is consumed.
    #[inline]
    pub(super) fn load(&self, intid: u32, circumstances: Circumstances) -> Option<Loading> {
        let Circumstances { deliver, mapped } = circumstances;
        let bit = 1 << (intid % 32);
        let edge = self.edge.load(SeqCst) & bit != 0;
        let level = !edge && self.level.load(SeqCst) & bit != 0;
        let mut loading = Loading { lr: 0, consumed: false, hardware: mapped };
        let mut resample = false;
        if self.take_active(bit) {
            loading.lr = lr::ACTIVE;
            if mapped && level {
                // The end of the interrupt deactivates the physical one, which then tells again.
                self.level.fetch_and(!bit, SeqCst);
            }
            if deliver && (edge || mapped) {
                if self.take_latch(bit) {
                    loading.lr |= lr::PENDING;
                    loading.consumed = true;
                    resample = mapped;
                    loading.hardware = false;
                }
            } else if deliver {
                resample = level || self.latched() & bit != 0;
            }
        } else if deliver {
            loading.consumed = self.take_latch(bit);
            if !loading.consumed && !level {
                return None;
            }
            loading.lr = lr::PENDING;
            if level && mapped {
                self.level.fetch_and(!bit, SeqCst);
            } else {
                resample = level;
            }
        } else {
            return None;
        }
        if resample {
            loading.lr |= lr::EOI;
        }
        if self.group.load(SeqCst) & bit != 0 {
            loading.lr |= lr::GROUP1;
        }
        loading.lr |= u64::from(self.priority(intid)) << lr::PRIORITY_SHIFT | u64::from(intid);
        Some(loading)
    }
}
