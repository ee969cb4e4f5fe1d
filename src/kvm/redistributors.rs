//! Where a vGICv3's redistributors are: one region, or several (KVM_VGIC_V3_ADDR_TYPE_REDIST,
//! KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION).
//!
//! Source: Linux, Documentation/virt/kvm/devices/arm-vgic-v3.rst. The vCPUs fill the regions in their order, one after the
//! other. As in KVM a vCPU has its frame from the moment on that there is room for it, which is when its place, and that of
//! the distributor, are compared.

use super::{
    Errno,
    uapi::vgic::{DIST_SIZE, REDIST_SIZE, V3_ALIGNMENT},
};
use alloc::vec::Vec;

/// KVM_VGIC_V3_RDIST_COUNT_SHIFT: how many redistributors there is room for, in bits 63:52.
const COUNT_SHIFT: u32 = 52;
/// KVM_VGIC_V3_RDIST_BASE_MASK.
const BASE: u64 = 0x000f_ffff_ffff_0000;
/// KVM_VGIC_V3_RDIST_FLAGS_MASK.
const FLAGS: u64 = 0xf000;
/// KVM_VGIC_V3_RDIST_INDEX_MASK, as far as KVM looks at it.
const INDEX: u64 = 0xff;

/// What the checks depend on.
#[derive(Clone, Copy, Debug)]
pub struct Around {
    /// vCPUs, so far.
    pub vcpus: usize,
    /// The distributor, if it has its place.
    pub distributor: Option<u64>,
    /// Bits of guest addresses.
    pub ipa_bits: u32,
}

/// A region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    base: u64,
    /// `None`: there is room for all vCPUs.
    count: Option<u64>,
}

/// Redistributors in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frames {
    /// Where the first is.
    pub base: u64,
    /// Whose it is.
    pub first: usize,
    /// How many are used.
    pub count: usize,
    /// Another row follows at once: the last of this one is not the last (GICR_TYPER.Last).
    pub goes_on: bool,
}

/// The regions, by index.
#[derive(Debug, Default)]
pub struct Redistributors(Vec<Region>);

fn overlap(one: (u64, u64), other: (u64, u64)) -> bool {
    one.0 + one.1 > other.0 && one.0 < other.0 + other.1
}

impl Region {
    fn size(&self, vcpus: usize) -> u64 {
        self.count.unwrap_or(vcpus as u64) * REDIST_SIZE
    }
}

impl Redistributors {
    /// KVM_VGIC_V3_ADDR_TYPE_REDIST: all of them from this address on.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it is not a multiple of 64 KiB, wraps, meets the distributor, or there is a region already; `EEXIST` if it
    /// was called already; `E2BIG` beyond the guest's addresses; `ENOMEM`.
    pub fn place(&mut self, address: u64, around: &Around) -> Result<(), Errno> {
        self.add(0, Region { base: address, count: None }, around)
    }

    /// KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION: room for a number of them.
    ///
    /// # Errors
    ///
    /// As [`place`](Self::place), but `EINVAL` after that one; and `EINVAL` for no room, flags, another index than the next,
    /// and for what meets another region.
    pub fn add_region(&mut self, request: u64, around: &Around) -> Result<(), Errno> {
        let count = request >> COUNT_SHIFT;
        if count == 0 || request & FLAGS != 0 {
            return Err(Errno::EINVAL);
        }
        self.add(request & INDEX, Region { base: request & BASE, count: Some(count) }, around)
    }

    fn add(&mut self, index: u64, region: Region, around: &Around) -> Result<(), Errno> {
        let size = region.size(around.vcpus);
        let end = region.base.checked_add(size).ok_or(Errno::EINVAL)?;
        match self.0.last() {
            Some(last) if region.count.is_none() && last.count.is_some() => return Err(Errno::EINVAL),
            Some(_) if region.count.is_none() => return Err(Errno::EEXIST),
            _ if index != self.0.len() as u64 => return Err(Errno::EINVAL),
            _ => {}
        }
        let span = |other: &Region| (other.base, other.size(around.vcpus));
        if self.0.iter().any(|other| overlap((region.base, size), span(other))) {
            return Err(Errno::EINVAL);
        }
        if !region.base.is_multiple_of(V3_ALIGNMENT) {
            return Err(Errno::EINVAL);
        }
        let limit = 1 << around.ipa_bits;
        if region.base >= limit || end > limit {
            return Err(Errno::E2BIG);
        }
        // A vCPU is given its frame when there is room: what is wrong is found then.
        let has_frames = self.room().is_some_and(|room| room < around.vcpus as u64);
        self.0.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        self.0.push(region);
        let gives_frames = around.vcpus > 0 && (self.0.len() == 1 || has_frames);
        if gives_frames && let Err(errno) = self.check(around) {
            self.0.pop();
            return Err(errno);
        }
        Ok(())
    }

    /// For how many vCPUs there is room; `None`: for all.
    fn room(&self) -> Option<u64> {
        self.0.iter().map(|region| region.count).sum()
    }

    /// Whether all is where it can be.
    ///
    /// # Errors
    ///
    /// `EINVAL` if not.
    fn check(&self, around: &Around) -> Result<(), Errno> {
        let span = |region: &Region| (region.base, region.size(around.vcpus));
        let is_inside =
            |(base, size): (u64, u64)| base.checked_add(size).is_some_and(|end| end <= 1 << around.ipa_bits);
        let meets = |span| around.distributor.is_some_and(|distributor| overlap((distributor, DIST_SIZE), span));
        let is_good = |region| is_inside(span(region)) && !meets(span(region));
        if self.0.iter().all(is_good) { Ok(()) } else { Err(Errno::EINVAL) }
    }

    /// KVM_VGIC_V3_ADDR_TYPE_REDIST as it reads: where the first region is.
    pub fn base(&self) -> Option<u64> {
        self.0.first().map(|region| region.base)
    }

    /// KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION as it reads, for the index in `request`.
    pub fn region(&self, request: u64) -> Option<u64> {
        let index = request & INDEX;
        let region = self.0.get(index as usize)?;
        Some(region.count.unwrap_or(0) << COUNT_SHIFT | region.base | index)
    }

    /// Where the frames of all vCPUs are, region by region.
    ///
    /// # Errors
    ///
    /// `ENXIO` if one has none, or the distributor; `EINVAL` if they meet, or are beyond the guest's addresses.
    pub fn frames(&self, around: &Around) -> Result<Vec<Frames>, Errno> {
        if self.0.is_empty() || self.room().is_some_and(|room| room < around.vcpus as u64) {
            return Err(Errno::ENXIO);
        }
        if around.distributor.is_none() {
            return Err(Errno::ENXIO);
        }
        self.check(around)?;
        let mut frames: Vec<Frames> = Vec::new();
        frames.try_reserve(self.0.len()).map_err(|_| Errno::ENOMEM)?;
        let mut first = 0;
        for region in &self.0 {
            let left = around.vcpus - first;
            let count = region.count.map_or(left, |count| left.min(count as usize));
            if count > 0 {
                frames.push(Frames { base: region.base, first, count, goes_on: false });
                first += count;
            }
        }
        let used: Vec<u64> = frames.iter().map(|frames| frames.base).collect();
        for row in &mut frames {
            row.goes_on = used.contains(&(row.base + row.count as u64 * REDIST_SIZE));
        }
        Ok(frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOBODY: Around = Around { vcpus: 0, distributor: None, ipa_bits: 40 };

    fn request(count: u64, base: u64, flags: u64, index: u64) -> u64 {
        count << 52 | base | flags << 12 | index
    }

    fn row(base: u64, first: usize, count: usize, goes_on: bool) -> Frames {
        Frames { base, first, count, goes_on }
    }

    #[test]
    fn regions_are_checked() {
        let mut regions = Redistributors::default();
        for (count, base, flags, index, result) in [
            (1, 0x0900_0000, 0, 1, Err(Errno::EINVAL)),
            (0, 0x0900_0000, 0, 0, Err(Errno::EINVAL)),
            (1, 0x0900_0000, 1, 0, Err(Errno::EINVAL)),
            (1, 0x0900_0000, 0, 0, Ok(())),
            (1, 0x0900_0000, 0, 0, Err(Errno::EINVAL)),
            (2, 0x0901_0000, 0, 1, Err(Errno::EINVAL)),
            (2, 0x08ff_0000, 0, 1, Err(Errno::EINVAL)),
            (2, 0x0a00_0000, 0, 2, Err(Errno::EINVAL)),
            (2, 0x0a00_0000, 0, 1, Ok(())),
            (1, 0xff_ffff_0000, 0, 2, Err(Errno::E2BIG)),
            (1, 1 << 40, 0, 2, Err(Errno::E2BIG)),
            (1, 0x0b00_0000, 0, 0x102, Ok(())),
            (0xfff, 0x1_0000_0000, 0, 3, Ok(())),
        ] {
            assert_eq!(regions.add_region(request(count, base, flags, index), &NOBODY), result, "{base:#x}, {index}");
        }
        assert_eq!(regions.place(0x080a_0000, &NOBODY), Err(Errno::EINVAL));
        assert_eq!(regions.base(), Some(0x0900_0000));
        assert_eq!(regions.region(1), Some(request(2, 0x0a00_0000, 0, 1)));
        assert_eq!(regions.region(4), None);
    }

    #[test]
    fn one_region_grows_with_the_vcpus() {
        let mut regions = Redistributors::default();
        let two = Around { vcpus: 2, distributor: Some(0x0800_0000), ..NOBODY };
        assert_eq!(regions.frames(&two), Err(Errno::ENXIO));
        for (address, errno) in [
            (1, Errno::EINVAL),
            (u64::MAX, Errno::EINVAL),
            (u64::MAX << 16, Errno::EINVAL),
            (1 << 40, Errno::E2BIG),
            ((1 << 40) - 0x2_0000, Errno::E2BIG),
            (0x07fe_0000, Errno::EINVAL),
            (0x0800_0000, Errno::EINVAL),
        ] {
            assert_eq!(regions.place(address, &two), Err(errno), "{address:#x}");
        }
        assert_eq!(regions.base(), None);
        assert_eq!(regions.place(0x0801_0000, &two), Ok(()));
        assert_eq!(regions.place(1, &two), Err(Errno::EEXIST));
        assert_eq!(regions.add_region(request(1, 0x0a00_0000, 0, 0), &two), Err(Errno::EINVAL));
        assert_eq!(regions.region(0), Some(0x0801_0000));
        let three = Around { vcpus: 3, ..two };
        assert_eq!(regions.frames(&three).unwrap(), [row(0x0801_0000, 0, 3, false)]);
        assert_eq!(regions.frames(&Around { distributor: None, ..two }), Err(Errno::ENXIO));
        assert_eq!(regions.frames(&Around { distributor: Some(0x0804_0000), ..two }), Err(Errno::EINVAL));
        assert_eq!(regions.frames(&Around { ipa_bits: 27, ..two }), Err(Errno::EINVAL));
    }

    #[test]
    fn vcpus_fill_regions_in_order() {
        let mut regions = Redistributors::default();
        let four = Around { vcpus: 4, distributor: Some(0x0800_0000), ..NOBODY };
        regions.add_region(request(1, 0x0a00_0000, 0, 0), &four).unwrap();
        assert_eq!(regions.frames(&four), Err(Errno::ENXIO), "there is room for one");
        regions.add_region(request(2, 0x0900_0000, 0, 1), &four).unwrap();
        // The third begins where the first ends.
        regions.add_region(request(8, 0x0a02_0000, 0, 2), &four).unwrap();
        // All vCPUs have their frames: another region is only looked at when it is used.
        regions.add_region(request(1, 0x0800_0000, 0, 3), &four).unwrap();
        assert_eq!(regions.frames(&four), Err(Errno::EINVAL));
        regions.0.pop();
        let expected = [row(0x0a00_0000, 0, 1, true), row(0x0900_0000, 1, 2, false), row(0x0a02_0000, 3, 1, false)];
        assert_eq!(regions.frames(&four).unwrap(), expected);
        let expected = [row(0x0a00_0000, 0, 1, false), row(0x0900_0000, 1, 2, false)];
        assert_eq!(regions.frames(&Around { vcpus: 3, ..four }).unwrap(), expected, "what follows is not used");
    }

    proptest! {
        /// Whatever is asked for, each vCPU has one frame, and no two frames meet, nor the distributor.
        #[test]
        fn each_vcpu_has_one(
            requests in proptest::collection::vec((0u64..5, 0u64..64, 0u64..4), 1..12),
            vcpus in 1usize..20,
        ) {
            let around = Around { vcpus, distributor: Some(0x10_0000), ipa_bits: 23 };
            let mut regions = Redistributors::default();
            for (count, base, skew) in requests {
                let index = regions.0.len() as u64 + u64::from(skew == 3);
                let _ = regions.add_region(request(count, base << 16, 0, index), &around);
            }
            let Ok(rows) = regions.frames(&around) else { return Ok(()) };
            let mut spans = vec![(0x10_0000, DIST_SIZE)];
            let mut next = 0;
            for row in rows {
                prop_assert_eq!(row.first, next);
                next += row.count;
                spans.push((row.base, row.count as u64 * REDIST_SIZE));
            }
            prop_assert_eq!(next, vcpus);
            spans.sort_unstable();
            prop_assert!(spans.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0));
            prop_assert!(spans.iter().all(|(base, size)| base + size <= 1 << 23));
        }
    }
}
