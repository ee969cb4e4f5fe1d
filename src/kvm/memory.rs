//! A VM's memory as its exits reach it: the slots that KVM_SET_USER_MEMORY_REGION made.
//!
//! The list is behind a lock and for calls that are rare; what is reached often (a PV time structure) keeps the block it
//! found here.

use super::dirty::DirtyLogs;
use crate::{
    mm::{Ipa, frame::Block, stage2::Memory},
    vdev::memory::GuestMemory,
};
use alloc::{sync::Arc, vec::Vec};
use core::ops::Range;
use spin::Mutex;

/// A part of a block.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub memory: Arc<Block>,
    pub offset: u64,
    pub size: u64,
}

impl Piece {
    /// All of a block.
    pub(super) fn whole(memory: Block) -> Self {
        let range = memory.range();
        Self { memory: Arc::new(memory), offset: 0, size: range.end.0 - range.start.0 }
    }
}

/// Guest addresses and the memory behind them.
#[derive(Debug)]
pub(super) struct Slot {
    pub ipa: Ipa,
    pub piece: Piece,
    pub kind: Memory,
}

impl Slot {
    pub(super) fn size(&self) -> u64 {
        self.piece.size
    }

    pub(super) fn contains(&self, ipa: Ipa) -> bool {
        ipa >= self.ipa && ipa.0 - self.ipa.0 < self.size()
    }
}

/// All slots of a VM.
#[derive(Debug, Default)]
pub(super) struct Slots {
    pub list: Mutex<Vec<Slot>>,
    /// Where writes are noted, by whoever makes them.
    pub dirty: DirtyLogs,
}

impl Slots {
    /// The block in which all of `bytes` bytes at `ipa` are, and their offset there; `None` if they are not memory, or not
    /// of one slot.
    pub(super) fn locate(&self, ipa: Ipa, bytes: u64) -> Option<(Arc<Block>, u64)> {
        let slots = self.list.lock();
        let slot = slots.iter().find(|slot| slot.contains(ipa))?;
        let offset = ipa.0 - slot.ipa.0;
        (slot.size() - offset >= bytes).then(|| (slot.piece.memory.clone(), slot.piece.offset + offset))
    }

    /// The memory behind a range, piece by piece in order; `None` if some of it is not memory.
    pub(super) fn pieces(&self, range: Range<u64>) -> Option<Vec<Piece>> {
        let slots = self.list.lock();
        let mut pieces = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let slot = slots.iter().find(|slot| slot.contains(Ipa(at)))?;
            let offset = at - slot.ipa.0;
            let size = (slot.size() - offset).min(range.end - at);
            pieces.push(Piece { memory: slot.piece.memory.clone(), offset: slot.piece.offset + offset, size });
            at += size;
        }
        Some(pieces)
    }

    /// Copies out of memory; `false` if some of it is not memory.
    pub(super) fn read_whole(&self, ipa: Ipa, bytes: &mut [u8]) -> bool {
        let Some(end) = ipa.0.checked_add(bytes.len() as u64) else { return false };
        let Some(pieces) = self.pieces(ipa.0..end) else { return false };
        let mut rest = bytes;
        for piece in pieces {
            let (now, later) = rest.split_at_mut(piece.size as usize);
            if !piece.memory.read(piece.offset, now) {
                return false;
            }
            rest = later;
        }
        true
    }

    /// What kind of memory is at a guest address.
    pub(super) fn kind(&self, ipa: Ipa) -> Option<Memory> {
        self.list.lock().iter().find(|slot| slot.contains(ipa)).map(|slot| slot.kind)
    }

    /// Copies into memory; `false` if some of it is not memory (what comes before may have been written).
    pub(super) fn write(&self, ipa: Ipa, mut bytes: &[u8]) -> bool {
        let slots = self.list.lock();
        let mut at = ipa;
        while !bytes.is_empty() {
            let Some(slot) = slots.iter().find(|slot| slot.contains(at)) else { return false };
            let offset = at.0 - slot.ipa.0;
            let room = (slot.size() - offset).min(bytes.len() as u64) as usize;
            let (now, later) = bytes.split_at(room);
            if !slot.piece.memory.write(slot.piece.offset + offset, now) {
                return false;
            }
            self.dirty.mark(at.0..at.0 + room as u64);
            bytes = later;
            let Some(next) = at.checked_add(room as u64) else { return bytes.is_empty() };
            at = next;
        }
        true
    }

    /// As [`write`](Self::write), but nothing is written unless all of it can be.
    pub(super) fn write_whole(&self, ipa: Ipa, bytes: &[u8]) -> bool {
        let end = ipa.0.checked_add(bytes.len() as u64);
        end.is_some_and(|end| self.covers(ipa.0..end)) && self.write(ipa, bytes)
    }

    /// Does something with each of `count` words at `ipa`: `word` gets its block, its offset there and its number. `false`
    /// if `ipa` is no multiple of 8 or some of it is not memory.
    fn each_word(&self, ipa: u64, count: usize, mut word: impl FnMut(&Block, u64, usize) -> bool) -> bool {
        let slots = self.list.lock();
        let mut done = 0;
        while done < count {
            let Some(at) = ipa.checked_add(8 * done as u64) else { return false };
            let Some(slot) = slots.iter().find(|slot| slot.contains(Ipa(at))) else { return false };
            let offset = at - slot.ipa.0;
            let here = ((slot.size() - offset) / 8).min((count - done) as u64) as usize;
            if here == 0
                || !(0..here).all(|n| word(&slot.piece.memory, slot.piece.offset + offset + 8 * n as u64, done + n))
            {
                return false;
            }
            done += here;
        }
        true
    }

    /// Whether every address of a range is memory.
    fn covers(&self, range: Range<u64>) -> bool {
        let slots = self.list.lock();
        let mut at = range.start;
        while at < range.end {
            let Some(slot) = slots.iter().find(|slot| slot.contains(Ipa(at))) else { return false };
            at = slot.ipa.0 + slot.size();
        }
        true
    }
}

impl GuestMemory for Slots {
    fn read(&self, address: u64, words: &mut [u64]) -> bool {
        self.each_word(address, words.len(), |block, offset, number| {
            match (block.read_word(offset), words.get_mut(number)) {
                (Some(value), Some(word)) => {
                    *word = u64::from_le(value);
                    true
                }
                _ => false,
            }
        })
    }

    fn write(&self, address: u64, words: &[u64]) -> bool {
        let written = self.each_word(address, words.len(), |block, offset, number| {
            words.get(number).is_some_and(|word| block.write_word(offset, word.to_le()))
        });
        self.dirty.mark(address..address.saturating_add(8 * words.len() as u64));
        written
    }
}
