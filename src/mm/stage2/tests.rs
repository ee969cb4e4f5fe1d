//! The walker against a page-by-page model, with a TLB that notices a broken break-before-make.
use super::*;
use proptest::prelude::*;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

#[derive(Default)]
struct Memory0 {
    pages: BTreeMap<u64, Vec<u64>>,
    next: u64,
    /// Entries that were valid and are invalid now, but not flushed yet: they must not become valid again.
    broken: BTreeSet<(u64, usize)>,
    limit: usize,
}

#[derive(Clone, Default)]
struct Fake(Rc<RefCell<Memory0>>);

impl Tables for Fake {
    fn allocate(&mut self, pages: usize) -> Option<Pa> {
        let mut memory = self.0.borrow_mut();
        if memory.pages.len() >= memory.limit {
            return None;
        }
        let size = pages as u64 * PAGE_SIZE;
        let start = memory.next.max(size).next_multiple_of(size);
        memory.next = start + size;
        memory.pages.insert(start, vec![0; 512 * pages]);
        Some(Pa(start))
    }
    fn free(&mut self, start: Pa, pages: usize) {
        let freed = self.0.borrow_mut().pages.remove(&start.0).expect("freed what was allocated");
        assert_eq!(freed.len(), pages * 512);
    }
    fn read(&self, table: Pa, index: usize) -> u64 {
        self.0.borrow().pages[&table.0][index]
    }
    fn write(&mut self, table: Pa, index: usize, value: u64) {
        let mut memory = self.0.borrow_mut();
        let old = std::mem::replace(&mut memory.pages.get_mut(&table.0).expect("a table")[index], value);
        if old & VALID != 0 && value & VALID != 0 && (old ^ value) & !S2AP_READ_WRITE == 0 {
            // Only the rights change, which may be done at once, but for a contiguous run.
            assert_eq!(value & CONTIGUOUS, 0, "the rights of one entry of a contiguous run changed");
        } else if old & VALID != 0 {
            assert_eq!(value & VALID, 0, "a valid entry got another valid value without break-before-make");
            memory.broken.insert((table.0, index));
        } else if value & VALID != 0 {
            assert!(!memory.broken.contains(&(table.0, index)), "made before the break was flushed");
        }
    }
}

impl Tlb for Fake {
    fn flush_ipa(&self, _: Ipa) {
        self.0.borrow_mut().broken.clear();
    }
    fn flush_all(&self) {
        self.0.borrow_mut().broken.clear();
    }
    fn publish(&self) {}
}

fn new(bits: u32) -> (Stage2<Fake>, Fake) {
    let fake = Fake::default();
    fake.0.borrow_mut().limit = 10_000;
    (Stage2::new(fake.clone(), bits, 44, true).expect("room"), fake)
}

#[test]
fn the_largest_blocks_are_used() {
    let (mut stage2, fake) = new(40);
    stage2.map(Ipa(BLOCK_1G), Pa(4 * BLOCK_1G), 2 * BLOCK_1G, Memory::Normal, &fake).expect("maps");
    assert_eq!(fake.0.borrow().pages.len(), 1, "only the root: two 1 GiB blocks");
    stage2.map(Ipa(4 * BLOCK_1G), Pa(BLOCK_2M), 17 * BLOCK_2M, Memory::Normal, &fake).expect("maps");
    assert_eq!(fake.0.borrow().pages.len(), 2);
    assert_eq!(stage2.translate(Ipa(BLOCK_1G + 0x123)), Some((Pa(4 * BLOCK_1G + 0x123), BLOCK_1G - 0x123)));
}

#[test]
fn contiguous_hint_needs_alignment_of_both_sides() {
    let (mut stage2, fake) = new(40);
    stage2.map(Ipa(32 * BLOCK_2M), Pa(64 * BLOCK_2M), 16 * BLOCK_2M, Memory::Normal, &fake).expect("maps");
    let (_, _, level, entry) = stage2.walk(32 * BLOCK_2M);
    assert_eq!((level, entry & CONTIGUOUS), (2, CONTIGUOUS));
    stage2.map(Ipa(BLOCK_1G * 3), Pa(63 * BLOCK_2M), 16 * BLOCK_2M, Memory::Normal, &fake).expect("maps");
    let (_, _, level, entry) = stage2.walk(3 * BLOCK_1G);
    assert_eq!((level, entry & CONTIGUOUS), (2, 0));
}

#[test]
fn bad_ranges_are_refused() {
    let (mut stage2, fake) = new(40);
    for (ipa, pa, length) in [
        (0, 0, 0),
        (1, 0, PAGE_SIZE),
        (0, 1, PAGE_SIZE),
        (0, 0, 1),
        (1 << 40, 0, PAGE_SIZE),
        ((1 << 40) - PAGE_SIZE, 0, 2 * PAGE_SIZE),
        (u64::MAX - PAGE_SIZE + 1, 0, PAGE_SIZE),
        (0, 1 << 44, PAGE_SIZE),
        (0, u64::MAX - PAGE_SIZE + 1, PAGE_SIZE),
    ] {
        assert_eq!(stage2.map(Ipa(ipa), Pa(pa), length, Memory::Normal, &fake), Err(Stage2Error::BadRange));
    }
    assert_eq!(stage2.translate(Ipa(1 << 40)), None);
    assert!(Stage2::new(fake.clone(), 31, 44, false).is_err());
    assert!(Stage2::new(fake, 44, 44, false).is_err());
}

#[test]
fn an_overlap_is_refused_and_leaves_what_was_there() {
    let (mut stage2, fake) = new(40);
    stage2.map(Ipa(0x20_3000), Pa(0x7000), PAGE_SIZE, Memory::Normal, &fake).expect("maps");
    let overlap = stage2.map(Ipa(0x20_0000), Pa(0x10_0000), 0x10_000, Memory::Normal, &fake);
    assert_eq!(overlap, Err(Stage2Error::AlreadyMapped(Ipa(0x20_3000))));
    assert_eq!(stage2.translate(Ipa(0x20_0000)), None);
    assert_eq!(stage2.translate(Ipa(0x20_3000)), Some((Pa(0x7000), PAGE_SIZE)));
}

#[test]
fn out_of_memory_takes_the_part_out_again() {
    let (mut stage2, fake) = new(40);
    fake.0.borrow_mut().limit = 3;
    let result = stage2.map(Ipa(BLOCK_1G - PAGE_SIZE), Pa(0), 2 * PAGE_SIZE, Memory::Normal, &fake);
    assert_eq!(result, Err(Stage2Error::OutOfMemory));
    assert_eq!(stage2.translate(Ipa(BLOCK_1G - PAGE_SIZE)), None);
}

#[test]
fn tables_are_given_back() {
    let (mut stage2, fake) = new(40);
    stage2.map(Ipa(0), Pa(0), BLOCK_2M * 3, Memory::Normal, &fake).expect("maps");
    stage2.unmap(Ipa(PAGE_SIZE), PAGE_SIZE, &fake).expect("unmaps");
    drop(stage2);
    assert!(fake.0.borrow().pages.is_empty());
}

#[test]
fn vtcr_names_the_geometry() {
    let (stage2, _) = new(40);
    assert_eq!(stage2.vtcr(5, true), 0x8000_0000 | 1 << 19 | 5 << 16 | 0x3540 | 24);
    assert_eq!(stage2.root().0 % (2 * PAGE_SIZE), 0, "two concatenated tables are aligned to both");
}

/// Ranges near the edges of blocks, in units of pages within 3 GiB.
fn range() -> impl Strategy<Value = (u64, u64)> {
    let edge = prop_oneof![Just(0u64), Just(512), Just(512 * 16), Just(512 * 512), Just(512 * 513), Just(512 * 1024)];
    (edge.clone(), 0u64..40, prop_oneof![edge, Just(1), 1u64..70, Just(512)])
        .prop_map(|(base, offset, length)| (base + offset, length.max(1)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn rights_are_those_of_each_page(steps in proptest::collection::vec((any::<bool>(), range()), 1..16)) {
        let (mut stage2, fake) = new(40);
        // 2 GiB and a bit, at an address that makes contiguous runs.
        let pages = 512 * 1024 + 512 * 17 + 3;
        stage2.map(Ipa(0), Pa(0), pages * PAGE_SIZE, Memory::Normal, &fake).expect("maps");
        let mut protected: BTreeMap<u64, u64> = BTreeMap::new();
        let mut writable: BTreeSet<u64> = BTreeSet::new();
        for (protect, (start, length)) in steps {
            if protect {
                stage2.write_protect(Ipa(start * PAGE_SIZE), length * PAGE_SIZE, &fake).expect("protects");
                let end = protected.get(&start).copied().unwrap_or(0).max(start + length);
                protected.insert(start, end);
                writable.retain(|page| !(start..start + length).contains(page));
            } else {
                let mapped = stage2.allow_write(Ipa(start * PAGE_SIZE + 8), &fake).expect("allows");
                prop_assert_eq!(mapped, start < pages);
                writable.insert(start);
            }
            for page in [0, start.saturating_sub(1), start, start + 1, start + length - 1, start + length, pages - 1] {
                let expected = (page < pages)
                    .then(|| writable.contains(&page) || !protected.iter().any(|(&s, &e)| (s..e).contains(&page)));
                prop_assert_eq!(stage2.is_writable(Ipa(page * PAGE_SIZE)), expected, "page {:#x}", page);
                let frame = stage2.translate(Ipa(page * PAGE_SIZE)).map(|(pa, _)| pa.0 / PAGE_SIZE);
                prop_assert_eq!(frame, (page < pages).then_some(page));
            }
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn agrees_with_a_list_of_ranges(steps in proptest::collection::vec((any::<bool>(), range(), 0u64..3), 1..24)) {
        let (mut stage2, fake) = new(40);
        // The model: disjoint mapped ranges in pages -> first page frame.
        let mut model: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
        for (map, (start, length), shift) in steps {
            let end = start + length;
            if map {
                let to = start + shift * 512;
                let free = model.iter().all(|(&s, &(e, _))| e <= start || s >= end);
                let result =
                    stage2.map(Ipa(start * PAGE_SIZE), Pa(to * PAGE_SIZE), length * PAGE_SIZE, Memory::Normal, &fake);
                prop_assert_eq!(result.is_ok(), free);
                if free {
                    model.insert(start, (end, to));
                }
            } else {
                stage2.unmap(Ipa(start * PAGE_SIZE), length * PAGE_SIZE, &fake).expect("unmaps");
                let hit: Vec<_> = model.iter().filter(|&(&s, &(e, _))| s < end && e > start).map(|(&s, &v)| (s, v)).collect();
                for (s, (e, to)) in hit {
                    model.remove(&s);
                    if s < start {
                        model.insert(s, (start, to));
                    }
                    if e > end {
                        model.insert(end, (e, to + (end - s)));
                    }
                }
            }
            for page in model.iter().flat_map(|(&s, &(e, _))| [s, e - 1, e]).chain([start, end, end - 1]) {
                let expected =
                    model.iter().find(|&(&s, &(e, _))| (s..e).contains(&page)).map(|(&s, &(_, to))| to + (page - s));
                let got = stage2.translate(Ipa(page * PAGE_SIZE)).map(|(pa, _)| pa.0 / PAGE_SIZE);
                prop_assert_eq!(got, expected, "page {:#x}", page);
            }
        }
    }
}
