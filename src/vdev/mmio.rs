//! The MMIO bus: which emulated device answers an access of a guest.
//!
//! A bus is built once, when the VM is, from the regions of its platform; two regions that overlap refuse the VM. After
//! that it never changes, so CPUs look devices up without a lock. An access belongs to a device only when every byte of
//! it does: one that starts in a region and runs past its end is claimed by nobody, and the guest takes the same
//! external abort as for an address where nothing is.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use crate::mm::Ipa;

/// How many bytes one load or store moves (Arm ARM D24, ESR_EL2 ISS.SAS).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum AccessSize {
    /// 1 byte.
    Byte = 0,
    /// 2 bytes.
    Half = 1,
    /// 4 bytes.
    Word = 2,
    /// 8 bytes.
    Double = 3,
}

impl AccessSize {
    /// The four sizes, smallest first.
    pub const ALL: [Self; 4] = [Self::Byte, Self::Half, Self::Word, Self::Double];

    /// The size encoded as log2 of the bytes in bits 1:0, as ISS.SAS has it; higher bits are ignored.
    #[inline]
    pub const fn from_log2(log2: u64) -> Self {
        match log2 & 3 {
            0 => Self::Byte,
            1 => Self::Half,
            2 => Self::Word,
            _ => Self::Double,
        }
    }

    /// The number of bytes: 1, 2, 4 or 8.
    #[inline]
    pub const fn bytes(self) -> u64 {
        1 << self as u8
    }

    /// The number of bits: 8, 16, 32 or 64.
    #[inline]
    pub const fn bits(self) -> u32 {
        8 << self as u8
    }

    /// A mask of the bits that an access of this size moves.
    #[inline]
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - self.bits())
    }
}

/// A range of guest physical addresses and the device behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region<D> {
    /// The name errors use, as a device tree would have it (`pl011`).
    pub name: &'static str,
    /// First address.
    pub start: Ipa,
    /// Length in bytes, not 0.
    pub length: u64,
    /// Which device answers.
    pub device: D,
}

/// Where a region is, for an error to name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionName {
    /// The region's name.
    pub name: &'static str,
    /// First address.
    pub start: Ipa,
    /// Length in bytes.
    pub length: u64,
}

impl fmt::Display for RegionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{:x} ({:#x} bytes)", self.name, self.start.0, self.length)
    }
}

/// Why a set of regions is not a bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The region has no bytes.
    #[error("device region {0} is empty")]
    Empty(RegionName),
    /// The region's last address is above 2^64.
    #[error("device region {0} wraps past the end of the address space")]
    Wraps(RegionName),
    /// Some address is in both regions.
    #[error("device regions {0} and {1} overlap")]
    Overlap(RegionName, RegionName),
}

/// A device's range as `find` wants it.
#[derive(Clone, Copy, Debug)]
struct Entry<D> {
    start: u64,
    length: u64,
    device: D,
}

/// log2 of the bytes of a window of [`Bus::windows`].
const WINDOW_BITS: u32 = 16;
/// How many windows there are: the devices of the `virt` platform are below 256 MiB.
const WINDOWS: usize = 1 << (28 - WINDOW_BITS);
/// What stands for a window that several regions share: the regions are searched.
const SEARCH: u8 = u8::MAX;
/// What stands for a window of which nobody has anything.
const NOBODY: u8 = u8::MAX - 1;

/// The devices of a VM by address. `D` says which device, cheaply copied: an enum of the VM.
#[derive(Clone, Debug)]
pub struct Bus<D> {
    entries: Vec<Entry<D>>,
    /// For each window of the low addresses the only region that has something of it, by index, or [`SEARCH`], or [`NOBODY`].
    windows: Box<[u8; WINDOWS]>,
}

impl<D: Copy> Entry<D> {
    #[inline(always)]
    fn claims(&self, ipa: Ipa, size: AccessSize) -> Option<(D, u64)> {
        let offset = ipa.0.wrapping_sub(self.start);
        let fits = offset < self.length && self.length - offset >= size.bytes();
        fits.then_some((self.device, offset))
    }
}

impl<D: Copy> Bus<D> {
    /// A bus of these regions, in any order.
    ///
    /// # Errors
    /// The first [`BusError`] found, in order of address.
    pub fn new(regions: &[Region<D>]) -> Result<Self, BusError> {
        let mut sorted: Vec<Region<D>> = regions.to_vec();
        sorted.sort_by_key(|region| region.start);
        let mut entries: Vec<Entry<D>> = Vec::with_capacity(sorted.len());
        let mut previous: Option<(RegionName, u64)> = None;
        for region in &sorted {
            let name = RegionName { name: region.name, start: region.start, length: region.length };
            let beyond = region.length.checked_sub(1).ok_or(BusError::Empty(name))?;
            let last = region.start.0.checked_add(beyond).ok_or(BusError::Wraps(name))?;
            if let Some((before, before_last)) = previous
                && region.start.0 <= before_last
            {
                return Err(BusError::Overlap(before, name));
            }
            previous = Some((name, last));
            entries.push(Entry { start: region.start.0, length: region.length, device: region.device });
        }
        let mut windows = Box::new([NOBODY; WINDOWS]);
        for (index, entry) in entries.iter().enumerate() {
            let last = (entry.start + (entry.length - 1)) >> WINDOW_BITS;
            for (window, only) in windows.iter_mut().enumerate().skip((entry.start >> WINDOW_BITS) as usize) {
                if window as u64 > last {
                    break;
                }
                let shared = entries.iter().enumerate().any(|(other, region)| {
                    let first = region.start >> WINDOW_BITS;
                    let last = (region.start + (region.length - 1)) >> WINDOW_BITS;
                    other != index && (first..=last).contains(&(window as u64))
                });
                let index = u8::try_from(index).ok().filter(|&index| index < NOBODY && !shared);
                *only = index.unwrap_or(SEARCH);
            }
        }
        Ok(Self { entries, windows })
    }

    /// The device that has all bytes of an access, and the offset of the first one in its region; `None` when nobody
    /// claims the access.
    ///
    /// A window names the region in a few instructions; what it does not know is searched.
    #[inline(always)]
    pub fn find(&self, ipa: Ipa, size: AccessSize) -> Option<(D, u64)> {
        let window = self.windows.get((ipa.0 >> WINDOW_BITS) as usize).copied().unwrap_or(SEARCH);
        match self.entries.get(usize::from(window)) {
            Some(entry) => entry.claims(ipa, size),
            None if window == NOBODY => None,
            None => self.search(ipa, size),
        }
    }

    #[inline(never)]
    fn search(&self, ipa: Ipa, size: AccessSize) -> Option<(D, u64)> {
        self.entries.iter().find_map(|entry| entry.claims(ipa, size))
    }
}

/// Answers a load from a device whose registers are 32 bits wide, one every 4 bytes: `register` gets the offset of one.
///
/// A narrower load gets the byte lanes it names, one of 8 bytes reads two registers, the lower first.
#[inline]
pub fn read_words(offset: u64, size: AccessSize, mut register: impl FnMut(u64) -> u32) -> u64 {
    let word = u64::from(register(offset & !3));
    let value = match size {
        AccessSize::Double => word | u64::from(register((offset & !3).wrapping_add(4))) << 32,
        _ => word >> (8 * (offset & 3)),
    };
    value & size.mask()
}

/// Obeys a store to a device whose registers are 32 bits wide, one every 4 bytes: `register` gets the offset of one and
/// the value.
///
/// A narrower store is extended with zeros, one that does not start at a register is ignored, one of 8 bytes writes two
/// registers, the lower first.
#[inline]
pub fn write_words(offset: u64, size: AccessSize, value: u64, mut register: impl FnMut(u64, u32)) {
    if offset & 3 != 0 {
        return;
    }
    let value = value & size.mask();
    register(offset, value as u32);
    if size == AccessSize::Double {
        register(offset.wrapping_add(4), (value >> 32) as u32);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn region(name: &'static str, start: u64, length: u64, device: u8) -> Region<u8> {
        Region { name, start: Ipa(start), length, device }
    }

    fn name(name: &'static str, start: u64, length: u64) -> RegionName {
        RegionName { name, start: Ipa(start), length }
    }

    #[test]
    fn sizes() {
        for (log2, size) in AccessSize::ALL.into_iter().enumerate() {
            assert_eq!(AccessSize::from_log2(log2 as u64), size);
            assert_eq!(size.bytes(), 1 << log2);
            assert_eq!(u64::from(size.bits()), size.bytes() * 8);
        }
        assert_eq!(AccessSize::ALL.map(AccessSize::mask), [0xff, 0xffff, 0xffff_ffff, u64::MAX]);
    }

    #[test]
    fn words() {
        let register = |offset: u64| 0x1122_3300 + offset as u32;
        let sizes = |offset| AccessSize::ALL.map(|size| read_words(offset, size, register));
        assert_eq!(sizes(4), [0x04, 0x3304, 0x1122_3304, 0x1122_3308_1122_3304]);
        assert_eq!(sizes(6)[..2], [0x22, 0x1122]);
        assert_eq!(sizes(7)[0], 0x11);
        let written = |offset, size| {
            let mut seen = Vec::new();
            write_words(offset, size, 0x1122_3344_5566_7788, |offset, value| seen.push((offset, value)));
            seen
        };
        assert_eq!(written(4, AccessSize::Byte), [(4, 0x88)]);
        assert_eq!(written(4, AccessSize::Half), [(4, 0x7788)]);
        assert_eq!(written(4, AccessSize::Word), [(4, 0x5566_7788)]);
        assert_eq!(written(4, AccessSize::Double), [(4, 0x5566_7788), (8, 0x1122_3344)]);
        assert_eq!(written(5, AccessSize::Byte), []);
        read_words(u64::MAX, AccessSize::Double, |_| 0);
        write_words(u64::MAX - 3, AccessSize::Double, 0, |_, _| ());
    }

    #[test]
    fn find_gives_device_and_offset() {
        let bus = Bus::new(&[region("rtc", 0x901_0000, 0x1000, 2), region("gicd", 0x800_0000, 0x1_0000, 1)]).unwrap();
        assert_eq!(bus.find(Ipa(0x800_0000), AccessSize::Word), Some((1, 0)));
        assert_eq!(bus.find(Ipa(0x800_fffc), AccessSize::Word), Some((1, 0xfffc)));
        assert_eq!(bus.find(Ipa(0x901_0004), AccessSize::Byte), Some((2, 4)));
        assert_eq!(bus.find(Ipa(0x7ff_ffff), AccessSize::Byte), None);
        assert_eq!(bus.find(Ipa(0x900_0000), AccessSize::Word), None);
        assert_eq!(bus.find(Ipa(0x901_1000), AccessSize::Word), None);
        assert_eq!(Bus::<u8>::new(&[]).unwrap().find(Ipa(0), AccessSize::Byte), None);
    }

    #[test]
    fn an_access_across_an_edge_is_nobodys() {
        let bus = Bus::new(&[region("a", 0x1000, 0x1000, 1), region("b", 0x2000, 0x1000, 2)]).unwrap();
        assert_eq!(bus.find(Ipa(0x1ffe), AccessSize::Word), None);
        assert_eq!(bus.find(Ipa(0x2ffc), AccessSize::Double), None);
        assert_eq!(bus.find(Ipa(0x0fff), AccessSize::Half), None);
        assert_eq!(bus.find(Ipa(0x1ffe), AccessSize::Half), Some((1, 0xffe)));
    }

    #[test]
    fn a_region_may_end_with_the_address_space() {
        let bus = Bus::new(&[region("top", u64::MAX - 0xfff, 0x1000, 1)]).unwrap();
        assert_eq!(bus.find(Ipa(u64::MAX), AccessSize::Byte), Some((1, 0xfff)));
        assert_eq!(bus.find(Ipa(u64::MAX), AccessSize::Half), None);
    }

    #[test]
    fn bad_regions_are_named() {
        let overlap = Bus::new(&[region("b", 0x1800, 0x1000, 2), region("a", 0x1000, 0x1000, 1)]).unwrap_err();
        assert_eq!(overlap, BusError::Overlap(name("a", 0x1000, 0x1000), name("b", 0x1800, 0x1000)));
        assert_eq!(overlap.to_string(), "device regions a@1000 (0x1000 bytes) and b@1800 (0x1000 bytes) overlap");
        assert_eq!(Bus::new(&[region("e", 0x10, 0, 0)]).unwrap_err(), BusError::Empty(name("e", 0x10, 0)));
        let wraps = Bus::new(&[region("w", u64::MAX, 2, 0)]).unwrap_err();
        assert_eq!(wraps, BusError::Wraps(name("w", u64::MAX, 2)));
        assert!(Bus::new(&[region("a", 0, 8, 0), region("a", 0, 8, 0)]).is_err());
    }

    proptest! {
        /// `find` agrees with the definition: the one region that has the first and the last byte of the access.
        #[test]
        fn find_is_the_definition(
            raw in proptest::collection::vec((0u64..0x400, 0u64..0x40), 0..12), at in 0u64..0x440, log2 in 0u64..4
        ) {
            let regions: Vec<_> =
                raw.iter().enumerate().map(|(n, &(start, length))| region("r", start, length, n as u8)).collect();
            let overlap = |a: &Region<u8>, b: &Region<u8>| {
                a.start.0 < b.start.0 + b.length && b.start.0 < a.start.0 + a.length
            };
            let bad = regions.iter().enumerate().any(|(n, a)| {
                a.length == 0 || regions.iter().skip(n + 1).any(|b| overlap(a, b))
            });
            let bus = Bus::new(&regions);
            prop_assert_eq!(bus.is_err(), bad);
            if let Ok(bus) = bus {
                let size = AccessSize::from_log2(log2);
                let expected = regions
                    .iter()
                    .find(|r| at >= r.start.0 && at + size.bytes() <= r.start.0 + r.length)
                    .map(|r| (r.device, at - r.start.0));
                prop_assert_eq!(bus.find(Ipa(at), size), expected);
            }
        }
    }
}
