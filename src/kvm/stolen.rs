//! Stolen time: how long a vCPU could have run while its CPU ran another, and the structure in which its guest reads it.
//!
//! Source: Arm DEN0057, 3.2. The scheduler says how long a vCPU waited, before it runs. The structure's value is read,
//! increased and written, so that a guest that was restored goes on from what it had; what is lost by rounding to
//! nanoseconds is carried over.

use crate::{
    hypercall::pvtime::{STOLEN_TIME, STRUCTURE_BYTES},
    mm::frame::Block,
};
use alloc::sync::Arc;
use core::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};
use spin::Once;

/// Where a vCPU's structure is.
#[derive(Debug)]
struct Structure {
    ipa: u64,
    block: Arc<Block>,
    offset: u64,
}

/// The stolen time of one vCPU. Only the CPU it is on changes it.
#[derive(Debug, Default)]
pub(super) struct StolenTime {
    structure: Once<Structure>,
    /// Ticks since counting started.
    ticks: AtomicU64,
    /// How much of that the structure was given, in nanoseconds.
    given: AtomicU64,
}

impl StolenTime {
    /// Guest physical address of the structure.
    pub(super) fn address(&self) -> Option<u64> {
        self.structure.get().map(|structure| structure.ipa)
    }

    /// Says where the structure is; `false` if that was said before.
    pub(super) fn place(&self, ipa: u64, block: Arc<Block>, offset: u64) -> bool {
        let mut placed = false;
        self.structure.call_once(|| {
            placed = true;
            Structure { ipa, block, offset }
        });
        placed
    }

    /// Clears the structure; counting starts from zero. The guest addresses that were written to.
    pub(super) fn start(&self) -> Range<u64> {
        let Some(structure) = self.structure.get() else { return 0..0 };
        for word in (0..STRUCTURE_BYTES).step_by(8) {
            structure.block.write_word(structure.offset + word, 0);
        }
        self.ticks.store(0, Relaxed);
        self.given.store(0, Relaxed);
        structure.ipa..structure.ipa.saturating_add(STRUCTURE_BYTES)
    }

    /// The vCPU waited for `ticks` of a counter of `frequency` Hz.
    pub(super) fn add(&self, ticks: u64, frequency: u64) {
        let Some(structure) = self.structure.get() else { return };
        let ticks = self.ticks.load(Relaxed).saturating_add(ticks);
        self.ticks.store(ticks, Relaxed);
        let total = super::clock::nanoseconds(ticks, frequency);
        let more = total.saturating_sub(self.given.swap(total, Relaxed));
        let at = structure.offset + STOLEN_TIME;
        if let Some(value) = structure.block.read_word(at) {
            structure.block.write_word(at, u64::from_le(value).wrapping_add(more).to_le());
        }
    }
}
