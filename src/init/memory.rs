//! What of the machine's RAM keel may use: RAM minus everything that is taken, in whole units.
//!
//! Units of 2 MiB keep EL2's map in large blocks: what is lost around a hole is little, and mapping it page by page is not.

use crate::mm::{
    Pa,
    addr::{BLOCK_2M, PAGE_SIZE},
};
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

/// `ranges` in order, and none of them over another.
pub fn joined(mut ranges: Vec<Range<Pa>>) -> Vec<Range<Pa>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<Pa>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// What is in both lists, each of which is sorted and has no overlaps; grown to pages.
pub fn common(a: &[Range<Pa>], b: &[Range<Pa>]) -> Vec<Range<Pa>> {
    let pairs = a.iter().flat_map(|a| b.iter().map(move |b| a.start.max(b.start)..a.end.min(b.end)));
    joined(pairs.filter(|both| both.start < both.end).map(|both| grow(&both, PAGE_SIZE)).collect())
}

/// The pages to map for the bundle at `initrd`: whole large blocks if nothing else is in them, else just its own pages.
/// `None` if those are not RAM or touch what is `taken`.
///
/// Loaders reserve the memory of what they hand over (U-Boot does), so that reservations are no obstacle: they are not given
/// to anybody. Only others than the bundle's own keep the blocks around it from being mapped.
pub fn bundle_pages(
    initrd: &Range<Pa>,
    ram: &[Range<Pa>],
    taken: &[Range<Pa>],
    reserved: &[Range<Pa>],
) -> Option<Range<Pa>> {
    let apart = |a: &Range<Pa>, b: &Range<Pa>| a.end <= b.start || b.end <= a.start;
    let usable = |pages: &Range<Pa>| {
        ram.iter().any(|range| range.start <= pages.start && pages.end <= range.end)
            && taken.iter().all(|other| apart(pages, other))
    };
    let own = |other: &Range<Pa>| initrd.start <= other.start && other.end <= initrd.end;
    let alone = |pages: &Range<Pa>| reserved.iter().all(|other| apart(pages, other) || own(other));
    let [blocks, pages] = [BLOCK_2M, PAGE_SIZE].map(|unit| grow(initrd, unit));
    Some(blocks).filter(|blocks| usable(blocks) && alone(blocks)).or(Some(pages).filter(usable))
}

#[cfg(test)]
mod tests {
    use super::*;
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

    #[test]
    fn lists_are_joined_and_intersected() {
        let list = ranges(&[(0x5000, 0x6000), (0x1000, 0x3000), (0x2000, 0x4000), (0x6000, 0x7000)]);
        let joined = super::joined(list);
        assert_eq!(joined, ranges(&[(0x1000, 0x4000), (0x5000, 0x7000)]));
        assert_eq!(
            common(&joined, &ranges(&[(0, 0x1000), (0x3800, 0x5010)])),
            ranges(&[(0x3000, 0x4000), (0x5000, 0x6000)])
        );
        assert_eq!(common(&joined, &[]), ranges(&[]));
    }

    #[test]
    fn the_bundle_s_own_reservation_is_no_obstacle() {
        let ram = ranges(&[(0x4000_0000, 0x8000_0000)]);
        let image = ranges(&[(0x4020_0000, 0x4060_0000)]);
        let initrd = Pa(0x4800_0100)..Pa(0x4810_0000);
        let blocks = Some(Pa(0x4800_0000)..Pa(0x4820_0000));
        let pages = Some(Pa(0x4800_0000)..Pa(0x4810_0000));
        assert_eq!(bundle_pages(&initrd, &ram, &image, &[]), blocks);
        assert_eq!(bundle_pages(&initrd, &ram, &image, &ranges(&[(0x4800_0100, 0x4810_0000)])), blocks);
        // Somebody else's, in the same block, beside it or over its end.
        for other in [(0x4818_0000, 0x4819_0000), (0x480f_0000, 0x4811_0000)] {
            assert_eq!(bundle_pages(&initrd, &ram, &image, &ranges(&[other])), pages);
        }
        // The tree in the same block.
        let tree = ranges(&[(0x4020_0000, 0x4060_0000), (0x4818_0000, 0x4819_0000)]);
        assert_eq!(bundle_pages(&initrd, &ram, &tree, &[]), pages);
    }

    #[test]
    fn a_bundle_on_something_else_is_refused() {
        let ram = ranges(&[(0x4000_0000, 0x8000_0000)]);
        let image = ranges(&[(0x4020_0000, 0x4060_0000)]);
        for (start, end) in [(0x405f_ffff, 0x4070_0000), (0x7fff_f000, 0x8000_0001), (0x1000, 0x2000), (0, u64::MAX)] {
            assert_eq!(bundle_pages(&(Pa(start)..Pa(end)), &ram, &image, &[]), None, "{start:#x}..{end:#x}");
        }
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
