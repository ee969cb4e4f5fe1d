//! Which CPUs the SGIs of a GICv2 come from.
//!
//! There an SGI from each CPU is an interrupt of its own (IHI 0048B 3.2.4, 4.3.15): a vCPU acknowledges SGI 3 of vCPU 0 and SGI 3
//! of vCPU 2 one after the other. A list register holds one of them; the others wait here, as a bit for each sender, and the
//! latch of the SGI stands for all of them.
//!
//! **The order that needs no lock.** A sender adds its bit, then sets the latch. The vCPU takes the latch, then one bit, and sets
//! the latch again if it leaves any. So a bit that is not taken is always followed by a latch that is set. A latch without a
//! bit can be left behind; it is dropped when it is taken.

use core::sync::atomic::{AtomicU8, Ordering::Relaxed, Ordering::SeqCst};

use super::lr::ListRegister;

/// The SGIs of a bank of private interrupts.
pub(super) const SGIS: u32 = 0xffff;

/// The senders of a vCPU's sixteen SGIs.
#[derive(Debug)]
pub(super) struct Sources {
    /// A bit for each vCPU whose SGI is pending and in no list register.
    waiting: [AtomicU8; 16],
    /// The vCPU whose SGI is active. Touched only by the vCPU's own CPU.
    active: [AtomicU8; 16],
}

impl Sources {
    pub(super) const fn new() -> Self {
        Self { waiting: [const { AtomicU8::new(0) }; 16], active: [const { AtomicU8::new(0) }; 16] }
    }

    pub(super) fn reset(&self) {
        for source in self.waiting.iter().chain(&self.active) {
            source.store(0, SeqCst);
        }
    }

    /// Those whose SGI is pending; SGIs are taken modulo 16.
    pub(super) fn waiting(&self, sgi: u32) -> u8 {
        self.waiting[sgi as usize % 16].load(SeqCst)
    }

    /// Adds senders; whether any of them was not there. The latch is to be set afterwards.
    pub(super) fn add(&self, sgi: u32, senders: u8) -> bool {
        self.waiting[sgi as usize % 16].fetch_or(senders, SeqCst) & senders != senders
    }

    /// Takes senders out; those that are left.
    pub(super) fn remove(&self, sgi: u32, senders: u8) -> u8 {
        self.waiting[sgi as usize % 16].fetch_and(!senders, SeqCst) & !senders
    }

    /// Takes the sender with the lowest number, after the latch was taken; and whether it leaves others, for whom the latch is
    /// to be set again.
    pub(super) fn take(&self, sgi: u32) -> Option<(u8, bool)> {
        let waiting = self.waiting(sgi);
        if waiting == 0 {
            return None;
        }
        // Only the vCPU's own CPU takes out: what was there is there.
        let left = self.remove(sgi, waiting & waiting.wrapping_neg());
        Some((waiting.trailing_zeros() as u8, left != 0))
    }

    /// The vCPU whose SGI is active.
    pub(super) fn active(&self, sgi: u32) -> u8 {
        self.active[sgi as usize % 16].load(Relaxed)
    }

    pub(super) fn set_active(&self, sgi: u32, sender: u8) {
        self.active[sgi as usize % 16].store(sender, Relaxed);
    }

    /// Folds a list register back, before its latch is returned.
    pub(super) fn fold(&self, lr: ListRegister, consumed: bool) {
        if lr.intid() < 16 && lr.active() {
            self.set_active(lr.intid(), lr.source());
        } else if lr.intid() < 16 && lr.pending() && consumed {
            self.add(lr.intid(), 1 << lr.source());
        }
    }
}
