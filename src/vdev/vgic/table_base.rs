//! The registers that say where a table in the guest's memory is: their attributes, and writes of half of one.
//!
//! GICR_PROPBASER, GICR_PENDBASER, GITS_CBASER and GITS_BASER have the same three attributes, at different places (IHI 0069
//! §12.11, §12.19). Tables are read through the CPU's caches, so what is stored says cacheable and inner shareable where
//! the guest asked for less, as in KVM: a guest that reads that back need not clean its caches.

use crate::vdev::mmio::AccessSize;

/// Where the three attributes start.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    /// InnerCache, 3 bits.
    pub inner: u32,
    /// OuterCache, 3 bits.
    pub outer: u32,
    /// Shareability, 2 bits.
    pub shareability: u32,
}

/// Of a redistributor's registers.
pub(super) const REDISTRIBUTOR: Attributes = Attributes { inner: 7, outer: 56, shareability: 10 };

const NON_CACHEABLE: u64 = 1;
const READ_ALLOCATE_WRITE_BACK: u64 = 3;
const SAME_AS_INNER: u64 = 0;
const INNER_SHAREABLE: u64 = 1;
const OUTER_SHAREABLE: u64 = 2;

/// `value` with attributes that hold.
pub fn sanitise(value: u64, at: &Attributes) -> u64 {
    let field = |shift: u32, bits: u32| value >> shift & ((1 << bits) - 1);
    let inner = match field(at.inner, 3) {
        // Device and non-cacheable.
        0 | NON_CACHEABLE => READ_ALLOCATE_WRITE_BACK,
        other => other,
    };
    let outer = match field(at.outer, 3) {
        NON_CACHEABLE => NON_CACHEABLE,
        _ => SAME_AS_INNER,
    };
    let shareability = match field(at.shareability, 2) {
        OUTER_SHAREABLE => INNER_SHAREABLE,
        other => other,
    };
    let rest = !(7 << at.inner | 7 << at.outer | 3 << at.shareability);
    value & rest | inner << at.inner | outer << at.outer | shareability << at.shareability
}

/// A 64-bit register after a write of `size` at `offset` in it: all of it, or the half that starts there.
pub fn merge(old: u64, offset: usize, size: AccessSize, value: u64) -> u64 {
    match (size, offset & 4) {
        (AccessSize::Double, _) => value,
        (_, 0) => old & !0xffff_ffff | value & 0xffff_ffff,
        _ => old & 0xffff_ffff | value << 32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_become_cacheable_and_inner_shareable() {
        let value = |inner: u64, outer: u64, shareability: u64| inner << 7 | outer << 56 | shareability << 10 | 0x8000;
        for ((inner, outer, shareability), expected) in
            [((0, 0, 0), (3, 0, 0)), ((1, 1, 1), (3, 1, 1)), ((2, 2, 2), (2, 0, 1)), ((7, 7, 3), (7, 0, 3))]
        {
            let (a, b, c) = expected;
            assert_eq!(sanitise(value(inner, outer, shareability), &REDISTRIBUTOR), value(a, b, c));
        }
    }

    #[test]
    fn halves_leave_each_other_alone() {
        let old = 0x1111_1111_2222_2222;
        assert_eq!(merge(old, 0, AccessSize::Double, 5), 5);
        assert_eq!(merge(old, 8, AccessSize::Word, 5), 0x1111_1111_0000_0005);
        assert_eq!(merge(old, 4, AccessSize::Word, 5), 0x0000_0005_2222_2222);
    }
}
