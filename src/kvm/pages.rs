//! The states of a protected guest's pages: one bit for each page of its memory, set while the page is shared.
//!
//! The bits are atomic, so vCPUs change states without a lock; of two that share the same page one is told that it is
//! shared already. Ranges are sorted and apart, as memory slots are.

use crate::hypercall::{PageState, vendor::GRANULE};
use alloc::{boxed::Box, vec::Vec};
use core::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

/// A stretch of memory.
#[derive(Debug)]
struct Stretch {
    range: Range<u64>,
    shared: Box<[AtomicU64]>,
}

/// The states of all pages of a VM.
#[derive(Debug)]
pub struct PageStates {
    memory: Vec<Stretch>,
    /// First address beyond the guest's address space.
    end: u64,
}

impl PageStates {
    /// All private. `memory` are the ranges that are memory, page aligned; `end` is where the address space ends.
    pub fn new(mut memory: Vec<Range<u64>>, end: u64) -> Self {
        memory.sort_by_key(|range| range.start);
        let stretch = |range: Range<u64>| {
            let pages = (range.end - range.start) / GRANULE;
            Stretch { range, shared: (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect() }
        };
        Self { memory: memory.into_iter().map(stretch).collect(), end }
    }

    /// All private again.
    pub fn reset(&self) {
        self.memory.iter().flat_map(|stretch| &stretch.shared).for_each(|word| word.store(0, SeqCst));
    }

    fn stretch(&self, address: u64) -> Option<&Stretch> {
        self.memory.iter().find(|stretch| stretch.range.contains(&address))
    }

    /// Gives one page another state: `false` if it has it already or cannot have it.
    pub fn set(&self, page: u64, state: PageState) -> bool {
        let stretch = self.stretch(page);
        let bit = |stretch: &Stretch| {
            let n = (page - stretch.range.start) / GRANULE;
            (n / 64, 1_u64 << (n % 64))
        };
        match (state, stretch) {
            (PageState::Mmio, None) => page < self.end,
            (PageState::Shared, Some(stretch)) => {
                let (word, bit) = bit(stretch);
                stretch.shared.get(word as usize).is_some_and(|word| word.fetch_or(bit, SeqCst) & bit == 0)
            }
            (PageState::Private, Some(stretch)) => {
                let (word, bit) = bit(stretch);
                stretch.shared.get(word as usize).is_some_and(|word| word.fetch_and(!bit, SeqCst) & bit != 0)
            }
            (PageState::Mmio, Some(_)) | (PageState::Shared | PageState::Private, None) => false,
        }
    }

    /// Makes every page of a range shared or private: `false`, and nothing done, if some of it is not memory.
    pub fn set_range(&self, range: Range<u64>, state: PageState) -> bool {
        let mut at = range.start;
        while at < range.end {
            let Some(stretch) = self.stretch(at) else { return false };
            at = stretch.range.end;
        }
        for stretch in &self.memory {
            let (start, end) = (range.start.max(stretch.range.start), range.end.min(stretch.range.end));
            if start < end {
                stretch.fill((start - stretch.range.start) / GRANULE..(end - stretch.range.start) / GRANULE, state);
            }
        }
        true
    }
}

impl Stretch {
    /// A word at a time: a range can be all of a VM's memory.
    fn fill(&self, pages: Range<u64>, state: PageState) {
        for word in pages.start / 64..pages.end.div_ceil(64) {
            let (from, to) = (pages.start.max(word * 64) - word * 64, pages.end.min(word * 64 + 64) - word * 64);
            let mask = (u64::MAX >> (64 - (to - from))) << from;
            let Some(word) = self.shared.get(word as usize) else { return };
            match state {
                PageState::Shared => word.fetch_or(mask, SeqCst),
                _ => word.fetch_and(!mask, SeqCst),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::{collections::BTreeSet, vec};
    use proptest::prelude::*;

    const RAM: u64 = 0x4000_0000;

    fn states() -> PageStates {
        PageStates::new(vec![RAM + 0x20_0000..RAM + 0x30_0000, RAM..RAM + 0x20_0000], 1 << 40)
    }

    #[test]
    fn a_page_has_one_state() {
        let states = states();
        assert!(!states.set(RAM, PageState::Private));
        assert!(states.set(RAM, PageState::Shared));
        assert!(!states.set(RAM, PageState::Shared));
        assert!(states.set(RAM, PageState::Private));
        assert!(states.set(RAM + 0x2f_f000, PageState::Shared));
        assert!(!states.set(RAM + 0x30_0000, PageState::Shared));
        assert!(!states.set(RAM - 0x1000, PageState::Shared));
        assert!(states.set(0x900_0000, PageState::Mmio));
        assert!(!states.set(RAM, PageState::Mmio));
        assert!(!states.set(1 << 40, PageState::Mmio));
        states.reset();
        assert!(states.set(RAM + 0x2f_f000, PageState::Shared));
    }

    proptest! {
        /// Against a set of shared pages.
        #[test]
        fn ranges(steps in proptest::collection::vec((0u64..0x310, 0u64..0x200, any::<bool>(), any::<bool>()), 1..40)) {
            let states = states();
            let mut model = BTreeSet::new();
            for (first, count, one, share) in steps {
                let state = if share { PageState::Shared } else { PageState::Private };
                let start = RAM + first * GRANULE;
                if one {
                    let expected = first < 0x300 && model.contains(&first) != share;
                    prop_assert_eq!(states.set(start, state), expected);
                    if expected && share { model.insert(first); } else if expected { model.remove(&first); }
                } else if count > 0 {
                    let inside = first + count <= 0x300;
                    prop_assert_eq!(states.set_range(start..start + count * GRANULE, state), inside);
                    for page in (first..first + count).filter(|_| inside) {
                        if share { model.insert(page); } else { model.remove(&page); }
                    }
                }
            }
            for page in 0..0x300 {
                prop_assert_eq!(states.set(RAM + page * GRANULE, PageState::Shared), !model.contains(&page));
            }
        }
    }
}
