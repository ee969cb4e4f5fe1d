//! EL2's stage 1: an identity map (Arm ARM D8).
//!
//! 4 KiB granule, 48-bit addresses, the largest blocks that alignment allows. What is mapped stays as it is: an entry gets a
//! value once, so that break-before-make never arises, and the map can grow while it is live. Memory for tables enters
//! through the trait of stage 2, so that the walker runs on the host.

use super::{Pa, addr::PAGE_SIZE, stage2::Tables};
use core::ops::Range;

/// log2 of the address space in bytes.
const ADDRESS_BITS: u32 = 48;

const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 1 << 1;
/// AttrIndx 0 and 1 of MAIR_EL2 (`arch::mmu`).
const NORMAL: u64 = 0 << 2;
const DEVICE: u64 = 1 << 2;
/// AP bit 1 is RES1 where there is one privilege level; bit 2: read only. (Arm ARM D8.4)
const AP1: u64 = 1 << 6;
const READ_ONLY: u64 = 1 << 7;
const INNER_SHAREABLE: u64 = 0b11 << 8;
const ACCESSED: u64 = 1 << 10;
const XN: u64 = 1 << 54;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// What is mapped: memory type and rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Code: read and execute.
    Text,
    /// Constants: read.
    ReadOnly,
    /// Memory: read and write.
    ReadWrite,
    /// Device-nGnRnE: read and write.
    Device,
}

impl Kind {
    const fn bits(self) -> u64 {
        let common = VALID | ACCESSED | AP1;
        common
            | match self {
                Self::Text => NORMAL | INNER_SHAREABLE | READ_ONLY,
                Self::ReadOnly => NORMAL | INNER_SHAREABLE | READ_ONLY | XN,
                Self::ReadWrite => NORMAL | INNER_SHAREABLE | XN,
                Self::Device => DEVICE | XN,
            }
    }
}

/// Why a range could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage1Error {
    /// It reaches beyond the address space.
    BadRange,
    /// This address is mapped, otherwise.
    AlreadyMapped(Pa),
    /// No memory for a table.
    OutOfMemory,
}

/// The tables.
#[derive(Debug)]
pub struct Stage1<T: Tables> {
    tables: T,
    root: Pa,
}

const fn level_size(level: u32) -> u64 {
    PAGE_SIZE << (9 * (3 - level))
}

impl<T: Tables> Stage1<T> {
    /// An empty map.
    ///
    /// # Errors
    ///
    /// [`Stage1Error::OutOfMemory`].
    pub fn new(mut tables: T) -> Result<Self, Stage1Error> {
        let root = tables.allocate(1).ok_or(Stage1Error::OutOfMemory)?;
        Ok(Self { tables, root })
    }

    /// TTBR0_EL2: the table of level 0.
    pub fn root(&self) -> Pa {
        self.root
    }

    /// Maps the pages of `range`. What of it is mapped already has to be mapped so. After an error part of it may be mapped.
    ///
    /// # Errors
    ///
    /// See [`Stage1Error`].
    pub fn map(&mut self, range: Range<Pa>, kind: Kind) -> Result<(), Stage1Error> {
        let end =
            range.end.align_up(PAGE_SIZE).filter(|end| end.0 <= 1 << ADDRESS_BITS).ok_or(Stage1Error::BadRange)?;
        self.fill(self.root, 0, range.start.align_down(PAGE_SIZE).0, end.0, kind.bits())
    }

    /// Maps what of `at..end` is in a table.
    fn fill(&mut self, table: Pa, level: u32, mut at: u64, end: u64, bits: u64) -> Result<(), Stage1Error> {
        let size = level_size(level);
        let leaf = if level == 3 { bits | TABLE_OR_PAGE } else { bits };
        while at < end {
            let start = at & !(size - 1);
            let next = end.min(start + size);
            let index = ((at / size) & 0x1ff) as usize;
            let entry = self.tables.read(table, index);
            let is_whole = level > 0 && next - at == size;
            if entry & VALID == 0 && is_whole {
                self.tables.write(table, index, start | leaf);
            } else if level < 3 && entry & VALID == 0 {
                // Its entries are zero for every observer before it is in its place.
                let below = self.tables.allocate(1).ok_or(Stage1Error::OutOfMemory)?;
                self.tables.write(table, index, below.0 | VALID | TABLE_OR_PAGE);
                self.fill(below, level + 1, at, next, bits)?;
            } else if level < 3 && entry & TABLE_OR_PAGE != 0 {
                self.fill(Pa(entry & ADDRESS), level + 1, at, next, bits)?;
            } else if entry != start | leaf {
                return Err(Stage1Error::AlreadyMapped(Pa(at)));
            }
            at = next;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mm::addr::{BLOCK_1G, BLOCK_2M};
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// Tables that notice an entry that changes.
    #[derive(Debug)]
    struct Fake {
        pages: BTreeMap<u64, Vec<u64>>,
        limit: usize,
    }

    impl Tables for Fake {
        fn allocate(&mut self, pages: usize) -> Option<Pa> {
            assert_eq!(pages, 1);
            let start = (self.pages.len() as u64 + 1) * PAGE_SIZE;
            (self.pages.len() < self.limit).then(|| self.pages.insert(start, vec![0; 512]))?;
            Some(Pa(start))
        }
        fn free(&mut self, _: Pa, _: usize) {
            panic!("nothing is ever given back");
        }
        fn read(&self, table: Pa, index: usize) -> u64 {
            self.pages[&table.0][index]
        }
        fn write(&mut self, table: Pa, index: usize, value: u64) {
            let entry = &mut self.pages.get_mut(&table.0).unwrap()[index];
            assert_eq!(*entry, 0, "an entry changes");
            *entry = value;
        }
    }

    fn map() -> Stage1<Fake> {
        Stage1::new(Fake { pages: BTreeMap::new(), limit: 100 }).unwrap()
    }

    impl Stage1<Fake> {
        /// What a walk finds: the address, the attributes, and the level.
        fn walk(&self, address: u64) -> Option<(u64, u64, u32)> {
            let mut table = self.root;
            for level in 0..4 {
                let size = level_size(level);
                let entry = self.tables.read(table, ((address / size) & 0x1ff) as usize);
                if entry & VALID == 0 {
                    return None;
                }
                let is_table_or_page = entry & TABLE_OR_PAGE != 0;
                if level == 3 || !is_table_or_page {
                    assert_eq!(level == 3, is_table_or_page, "no block at level 0, no page above level 3");
                    assert_ne!(level, 0);
                    let base = entry & ADDRESS & !(size - 1);
                    return Some((base + address % size, entry & !ADDRESS & !TABLE_OR_PAGE, level));
                }
                table = Pa(entry & ADDRESS);
            }
            unreachable!()
        }
    }

    #[test]
    fn descriptors_are_the_architecture_s() {
        // Arm ARM D8.3: AF, SH, AP, AttrIndx; UXN of one privilege level is XN.
        assert_eq!(Kind::Text.bits(), 0x7c1);
        assert_eq!(Kind::ReadOnly.bits(), 1 << 54 | 0x7c1);
        assert_eq!(Kind::ReadWrite.bits(), 1 << 54 | 0x741);
        assert_eq!(Kind::Device.bits(), 1 << 54 | 0x445);
    }

    #[test]
    fn blocks_are_as_large_as_they_can_be() {
        let mut map = map();
        map.map(Pa(BLOCK_1G - BLOCK_2M - 1)..Pa(2 * BLOCK_1G + BLOCK_2M + 1), Kind::ReadWrite).unwrap();
        for (address, level) in [
            (BLOCK_1G - BLOCK_2M - PAGE_SIZE, 3),
            (BLOCK_1G - BLOCK_2M, 2),
            (BLOCK_1G, 1),
            (2 * BLOCK_1G - 1, 1),
            (2 * BLOCK_1G, 2),
            (2 * BLOCK_1G + BLOCK_2M + PAGE_SIZE - 1, 3),
        ] {
            assert_eq!(map.walk(address), Some((address, Kind::ReadWrite.bits(), level)), "{address:#x}");
        }
        for address in [BLOCK_1G - BLOCK_2M - PAGE_SIZE - 1, 2 * BLOCK_1G + BLOCK_2M + PAGE_SIZE] {
            assert_eq!(map.walk(address), None);
        }
        // The root; a table of level 1; two of level 2 and two of level 3.
        assert_eq!(map.tables.pages.len(), 6);
    }

    #[test]
    fn what_is_mapped_stays() {
        let mut map = map();
        map.map(Pa(0x0900_0000)..Pa(0x0900_0001), Kind::Device).unwrap();
        assert_eq!(map.map(Pa(0x0900_0010)..Pa(0x0900_1000), Kind::Device), Ok(()), "once more");
        assert_eq!(
            map.map(Pa(0x08ff_f000)..Pa(0x0900_2000), Kind::ReadWrite),
            Err(Stage1Error::AlreadyMapped(Pa(0x0900_0000)))
        );
        // Around it, in a table that is there.
        assert_eq!(map.map(Pa(0x0900_0000)..Pa(0x0920_0000), Kind::Device), Ok(()));
        map.map(Pa(BLOCK_1G)..Pa(2 * BLOCK_1G), Kind::ReadWrite).unwrap();
        assert_eq!(map.map(Pa(BLOCK_1G + 5)..Pa(BLOCK_1G + 6), Kind::ReadWrite), Ok(()), "in a block that is like it");
        assert_eq!(
            map.map(Pa(BLOCK_1G + 5)..Pa(BLOCK_1G + 6), Kind::ReadOnly),
            Err(Stage1Error::AlreadyMapped(Pa(BLOCK_1G)))
        );
        for range in [Pa(0)..Pa((1 << 48) + 1), Pa(u64::MAX)..Pa(u64::MAX)] {
            assert_eq!(map.map(range, Kind::Device), Err(Stage1Error::BadRange));
        }
        map.map(Pa((1 << 48) - 1)..Pa(1 << 48), Kind::Device).unwrap();
        map.tables.limit = 0;
        assert_eq!(map.map(Pa(1 << 40)..Pa((1 << 40) + 1), Kind::Device), Err(Stage1Error::OutOfMemory));
    }

    proptest! {
        /// Each page is what the first range that has it says, and nothing else is mapped.
        #[test]
        fn pages_are_what_was_asked_for(
            ranges in proptest::collection::vec((0u64..3000, 1u64..1500, 0usize..4), 1..8),
            shift in prop_oneof![Just(12u32), Just(16), Just(21)],
        ) {
            const KINDS: [Kind; 4] = [Kind::Text, Kind::ReadOnly, Kind::ReadWrite, Kind::Device];
            let mut map = map();
            let mut model: BTreeMap<u64, Kind> = BTreeMap::new();
            for (start, length, kind) in ranges {
                let kind = KINDS[kind];
                let free = (start..start + length).all(|unit| model.get(&unit).is_none_or(|there| *there == kind));
                if !free {
                    continue;
                }
                prop_assert_eq!(map.map(Pa(start << shift)..Pa((start + length) << shift), kind), Ok(()));
                (start..start + length).for_each(|unit| { model.insert(unit, kind); });
            }
            for unit in 0..4600 {
                let address = unit << shift;
                let expected = model.get(&unit).map(|kind| (address, kind.bits()));
                prop_assert_eq!(map.walk(address).map(|(address, bits, _)| (address, bits)), expected);
            }
        }
    }
}
