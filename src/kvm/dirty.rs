//! Dirty logs: which pages of a slot have been written to since its log was last read (KVM_MEM_LOG_DIRTY_PAGES).
//!
//! While a slot is logged its pages are read-only in stage 2; the first write to each faults, is noted here, and makes the
//! page writable. Reading the log takes the writes out again.

use super::Errno;
use crate::mm::addr::PAGE_SIZE;
use alloc::vec::Vec;
use core::ops::Range;
use spin::Mutex;

/// Pages in a word of a log.
const WORD: u64 = 64;

#[derive(Debug)]
struct Log {
    slot: u32,
    guest: Range<u64>,
    words: Vec<u64>,
}

/// The logs of a VM's slots.
#[derive(Debug, Default)]
pub struct DirtyLogs(Mutex<Vec<Log>>);

impl DirtyLogs {
    /// Starts the log of a slot, with no page in it.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn start(&self, slot: u32, guest: Range<u64>) -> Result<(), Errno> {
        let count = (guest.end.saturating_sub(guest.start) / PAGE_SIZE).div_ceil(WORD) as usize;
        let mut words = Vec::new();
        words.try_reserve_exact(count).map_err(|_| Errno::ENOMEM)?;
        words.resize(count, 0);
        let mut logs = self.0.lock();
        logs.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        logs.retain(|log| log.slot != slot);
        logs.push(Log { slot, guest, words });
        Ok(())
    }

    /// Ends it.
    pub fn stop(&self, slot: u32) {
        let gone = {
            let mut logs = self.0.lock();
            logs.iter().position(|log| log.slot == slot).map(|n| logs.swap_remove(n))
        };
        drop(gone);
    }

    /// Adds all pages of a slot.
    pub fn fill(&self, slot: u32) {
        for log in self.0.lock().iter_mut().filter(|log| log.slot == slot) {
            let mut pages = (log.guest.end - log.guest.start) / PAGE_SIZE;
            for word in &mut log.words {
                *word = if pages >= WORD { u64::MAX } else { (1 << pages) - 1 };
                pages = pages.saturating_sub(WORD);
            }
        }
    }

    /// Hands the log of a slot to `see`, word by word with its number, and leaves it as it is.
    ///
    /// # Errors
    ///
    /// `ENOENT` without a log; those of `see`.
    pub fn read(&self, slot: u32, mut see: impl FnMut(usize, u64) -> Result<(), Errno>) -> Result<(), Errno> {
        let logs = self.0.lock();
        let log = logs.iter().find(|log| log.slot == slot).ok_or(Errno::ENOENT)?;
        log.words.iter().enumerate().try_for_each(|(n, &word)| see(n, word))
    }

    /// Takes pages out of the log of a slot: those whose bits are set in word `n` of `bits`. What was there of them is handed
    /// to `gone`, as a word with its first page's guest address.
    pub fn remove(&self, slot: u32, n: usize, bits: u64) -> Option<(u64, u64)> {
        let mut logs = self.0.lock();
        let log = logs.iter_mut().find(|log| log.slot == slot)?;
        let word = log.words.get_mut(n)?;
        let gone = *word & bits;
        *word &= !bits;
        Some((gone, log.guest.start + n as u64 * WORD * PAGE_SIZE))
    }

    /// Whether the slot has one.
    pub fn has(&self, slot: u32) -> bool {
        self.0.lock().iter().any(|log| log.slot == slot)
    }

    /// Notes a write to each page of a range of guest addresses; whether the first of them is in a log.
    pub fn mark(&self, written: Range<u64>) -> bool {
        let mut logs = self.0.lock();
        let mut first = false;
        for log in logs.iter_mut() {
            let start = written.start.max(log.guest.start);
            let end = written.end.min(log.guest.end);
            if start >= end {
                continue;
            }
            first |= log.guest.contains(&written.start);
            for page in (start - log.guest.start) / PAGE_SIZE..(end - log.guest.start).div_ceil(PAGE_SIZE) {
                if let Some(word) = log.words.get_mut((page / WORD) as usize) {
                    *word |= 1 << (page % WORD);
                }
            }
        }
        first
    }

    /// Hands the log of a slot to `take`, word by word with its number, and clears each word that `take` accepts.
    ///
    /// # Errors
    ///
    /// `ENOENT` without a log; those of `take`, and the rest stays as it is.
    pub fn take(&self, slot: u32, mut take: impl FnMut(usize, u64) -> Result<(), Errno>) -> Result<(), Errno> {
        let mut logs = self.0.lock();
        let log = logs.iter_mut().find(|log| log.slot == slot).ok_or(Errno::ENOENT)?;
        for (n, word) in log.words.iter_mut().enumerate() {
            take(n, *word)?;
            *word = 0;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_log() {
        let logs = DirtyLogs::default();
        assert!(!logs.mark(0..PAGE_SIZE));
        assert_eq!(logs.take(3, |_, _| Ok(())), Err(Errno::ENOENT));
        logs.start(3, 0x1000..0x2000).unwrap();
        assert!(logs.has(3) && !logs.mark(0x2000..0x3000) && logs.mark(0x1800..0x1801));
        assert_eq!(logs.take(3, |_, _| Err(Errno::EFAULT)), Err(Errno::EFAULT));
        assert_eq!(logs.take(3, |n, word| if (n, word) == (0, 1) { Ok(()) } else { Err(Errno::EIO) }), Ok(()));
        logs.stop(3);
        assert!(!logs.has(3));
    }

    proptest! {
        /// Against a set of pages.
        #[test]
        fn as_a_set(writes in prop::collection::vec((0_u64..0x90_0000, 1_u64..0x9000), 0..30)) {
            const BASE: u64 = 0x10_0000;
            let guest = BASE..BASE + 0x40_0000 + 0x3000;
            let logs = DirtyLogs::default();
            logs.start(1, guest.clone()).unwrap();
            let mut pages = BTreeSet::new();
            for (start, size) in writes {
                let covered: Vec<u64> = (start / PAGE_SIZE..(start + size).div_ceil(PAGE_SIZE))
                    .map(|page| page * PAGE_SIZE).filter(|page| guest.contains(page)).collect();
                prop_assert_eq!(logs.mark(start..start + size), guest.contains(&start));
                pages.extend(covered);
            }
            let mut found = BTreeSet::new();
            logs.take(1, |n, word| {
                found.extend((0..WORD).filter(|bit| word >> bit & 1 != 0).map(|bit| BASE + (n as u64 * WORD + bit) * PAGE_SIZE));
                Ok(())
            }).unwrap();
            prop_assert_eq!(found, pages);
            logs.take(1, |_, word| if word == 0 { Ok(()) } else { Err(Errno::EIO) }).unwrap();
        }
    }
}
