//! A set of words of a bitmap: which of them may have something.
//!
//! Any CPU may insert; only one at a time removes. A bit of `summary` stands for 64 words.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

/// The words that a set has room for.
pub(super) const CAPACITY: usize = 14 * 64;

/// Numbers below [`CAPACITY`].
#[derive(Debug)]
pub(super) struct WordSet {
    summary: AtomicU32,
    words: [AtomicU64; CAPACITY / 64],
}

impl WordSet {
    pub(super) const fn new() -> Self {
        Self { summary: AtomicU32::new(0), words: [const { AtomicU64::new(0) }; CAPACITY / 64] }
    }

    pub(super) fn insert(&self, number: usize) {
        if let Some(word) = self.words.get(number / 64) {
            word.fetch_or(1 << (number % 64), SeqCst);
            self.summary.fetch_or(1 << (number / 64), SeqCst);
        }
    }

    pub(super) fn remove(&self, number: usize) {
        if let Some(word) = self.words.get(number / 64) {
            word.fetch_and(!(1 << (number % 64)), SeqCst);
        }
    }

    pub(super) fn clear(&self) {
        self.summary.store(0, SeqCst);
        self.words.iter().for_each(|word| word.store(0, SeqCst));
    }

    /// The least number from `from` on.
    pub(super) fn next(&self, from: usize) -> Option<usize> {
        let mut groups = self.summary.load(SeqCst) & u32::MAX.unbounded_shl((from / 64) as u32);
        while groups != 0 {
            let group = groups.trailing_zeros();
            groups &= groups - 1;
            let word = self.words.get(group as usize)?;
            let first = from.saturating_sub(group as usize * 64);
            let bits = word.load(SeqCst);
            let after = bits & u64::MAX.unbounded_shl(first as u32);
            if after != 0 {
                return Some(group as usize * 64 + after.trailing_zeros() as usize);
            }
            if bits == 0 {
                self.summary.fetch_and(!(1 << group), SeqCst);
                // Inserted just before, with its summary already set?
                if word.load(SeqCst) != 0 {
                    self.summary.fetch_or(1 << group, SeqCst);
                }
            }
        }
        None
    }

    /// Takes the least number out.
    pub(super) fn take(&self) -> Option<usize> {
        self.next(0).inspect(|number| self.remove(*number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn is_a_set(steps in proptest::collection::vec((0..4_u8, 0..CAPACITY), 0..200)) {
            let (set, mut model) = (WordSet::new(), BTreeSet::new());
            for (kind, number) in steps {
                match kind {
                    0 | 1 => {
                        set.insert(number);
                        model.insert(number);
                    }
                    2 => {
                        set.remove(number);
                        model.remove(&number);
                    }
                    _ => prop_assert_eq!(set.next(number), model.range(number..).next().copied()),
                }
            }
            while let Some(least) = model.pop_first() {
                prop_assert_eq!(set.take(), Some(least));
            }
            prop_assert_eq!(set.take(), None);
        }
    }

    #[test]
    fn numbers_beyond_are_ignored() {
        let set = WordSet::new();
        set.insert(CAPACITY);
        set.remove(usize::MAX);
        assert_eq!((set.next(0), set.next(CAPACITY), set.next(usize::MAX)), (None, None, None));
    }
}
