//! What of the machine's RAM keel may use: RAM minus everything that is taken, in whole units.
//!
//! Units of 2 MiB keep EL2's map in large blocks: what is lost around a hole is little, and mapping it page by page is not.

use crate::mm::Pa;
use alloc::vec::Vec;
use core::ops::Range;

/// `range` grown to multiples of `unit`, a power of two.
pub fn grow(range: &Range<Pa>, unit: u64) -> Range<Pa> {
    range.start.align_down(unit)..range.end.align_up(unit).unwrap_or(Pa(u64::MAX))
}

/// `whole` without `holes`, cut to whole units (a power of two, bytes) that no hole touches; sorted by address.
pub fn subtract(whole: &[Range<Pa>], holes: &[Range<Pa>], unit: u64) -> Vec<Range<Pa>> {
    let mut left = Vec::new();
    for range in whole {
        let Some(start) = range.start.align_up(unit) else { continue };
        let mut pieces = alloc::vec![start..range.end.align_down(unit)];
        for hole in holes.iter().filter(|hole| hole.start < hole.end) {
            let Range { start: low, end: high } = grow(hole, unit);
            pieces = pieces
                .into_iter()
                .flat_map(|piece| [piece.start..piece.end.min(low), piece.start.max(high)..piece.end])
                .filter(|piece| piece.start < piece.end)
                .collect();
        }
        left.extend(pieces.into_iter().filter(|piece| piece.start < piece.end));
    }
    left.sort_unstable_by_key(|range| range.start);
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mm::addr::PAGE_SIZE;
    use proptest::prelude::*;

    fn ranges(list: &[(u64, u64)]) -> Vec<Range<Pa>> {
        list.iter().map(|&(start, end)| Pa(start)..Pa(end)).collect()
    }

    #[test]
    fn holes_take_whole_pages() {
        let left = subtract(&ranges(&[(0x1000, 0x9000)]), &ranges(&[(0x2fff, 0x3001), (0x5000, 0x6000)]), PAGE_SIZE);
        assert_eq!(left, ranges(&[(0x1000, 0x2000), (0x4000, 0x5000), (0x6000, 0x9000)]));
    }

    #[test]
    fn ram_is_cut_to_pages() {
        assert_eq!(subtract(&ranges(&[(0x1001, 0x3fff)]), &[], PAGE_SIZE), ranges(&[(0x2000, 0x3000)]));
        assert_eq!(subtract(&ranges(&[(0x1001, 0x1fff)]), &[], PAGE_SIZE), ranges(&[]));
        assert_eq!(subtract(&ranges(&[(0x1000, 0x3000)]), &ranges(&[(0, u64::MAX)]), PAGE_SIZE), ranges(&[]));
    }

    proptest! {
        #[test]
        fn every_page_is_free_or_taken(
            whole in proptest::collection::vec((0u64..40, 1u64..20), 1..3),
            holes in proptest::collection::vec((0u64..160_000, 0u64..20_000), 0..5),
        ) {
            // RAM ranges of a tree do not overlap.
            let mut at = 0;
            let whole: Vec<_> = whole.iter().map(|&(gap, size)| {
                let start = at + gap;
                at = start + size;
                Pa(start * PAGE_SIZE)..Pa(at * PAGE_SIZE)
            }).collect();
            let holes: Vec<_> = holes.iter().map(|&(start, size)| Pa(start)..Pa(start + size)).collect();
            let left = subtract(&whole, &holes, PAGE_SIZE);
            for page in 0..at {
                let (start, end) = (Pa(page * PAGE_SIZE), Pa((page + 1) * PAGE_SIZE));
                let is_ram = whole.iter().any(|range| range.start <= start && end <= range.end);
                let is_taken = holes.iter().any(|hole| hole.start < end && start < hole.end && hole.start < hole.end);
                let is_left = left.iter().any(|range| range.start <= start && end <= range.end);
                prop_assert_eq!(is_left, is_ram && !is_taken, "page {:#x}", page);
            }
        }
    }
}
