//! Who gets which addresses of a guest's RAM.
//!
//! A [`Layout`] is the list of what is taken. Executables [`claim`](Layout::claim) the addresses they are made for;
//! what can go anywhere is [`placed`](Layout::place) where nothing else is.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ops::Range;

use super::error::ConfigError;
use crate::mm::Ipa;

/// Where a thing that can go anywhere would like to go, in order of preference.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// Not below this address.
    pub from: u64,
    /// A power of two, bytes.
    pub alignment: u64,
    /// Bytes to keep for it, at least its own.
    pub room: u64,
}

struct Taken {
    range: Range<u64>,
    by: String,
}

/// A guest's RAM and what is taken of it.
pub struct Layout {
    ram: Range<u64>,
    taken: Vec<Taken>,
}

impl Layout {
    /// RAM of `size` bytes from `base` on, all of it free. `base + size` must not wrap, as in every
    /// [`VmConfig`](super::config::VmConfig) that the parser lets pass.
    pub fn new(base: Ipa, size: u64) -> Self {
        Self { ram: base.0..base.0.saturating_add(size), taken: Vec::new() }
    }

    /// First address of RAM and first address after it.
    pub fn ram(&self) -> Range<u64> {
        self.ram.clone()
    }

    /// The first address after everything taken; the start of RAM if nothing is.
    pub fn end(&self) -> u64 {
        self.taken.iter().map(|taken| taken.range.end).fold(self.ram.start, u64::max)
    }

    /// Takes `size` bytes at `start` for `by`, the path of an image.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutsideRam`] and [`ConfigError::Overlap`].
    pub fn claim(&mut self, by: &str, start: u64, size: u64) -> Result<(), ConfigError> {
        let end = start.saturating_add(size);
        if start < self.ram.start || end > self.ram.end {
            let (ram_start, ram_end) = (self.ram.start, self.ram.end);
            return Err(ConfigError::OutsideRam { image: by.to_string(), start, end, ram_start, ram_end });
        }
        if let Some(other) = self.overlapping(&(start..end)) {
            let other = alloc::format!("{} at {:#x} to {:#x}", other.by, other.range.start, other.range.end);
            return Err(ConfigError::Overlap { image: by.to_string(), start, end, other });
        }
        self.taken.push(Taken { range: start..end, by: by.to_string() });
        Ok(())
    }

    /// Takes what is in use already, by `by`; it may overlap what is taken.
    pub fn occupy(&mut self, by: &str, range: Range<u64>) {
        self.taken.push(Taken { range, by: by.to_string() });
    }

    /// Takes `size` bytes for `by` at the lowest address that the first satisfiable wish allows.
    ///
    /// # Errors
    ///
    /// [`ConfigError::NoRoom`].
    pub fn place(&mut self, by: &str, size: u64, wishes: &[Wish]) -> Result<Ipa, ConfigError> {
        let Some(start) = wishes.iter().find_map(|wish| self.gap(wish)) else {
            let memory = self.ram.end - self.ram.start;
            return Err(ConfigError::NoRoom { image: by.to_string(), size, memory });
        };
        self.taken.push(Taken { range: start..start + size, by: by.to_string() });
        Ok(Ipa(start))
    }

    fn gap(&self, wish: &Wish) -> Option<u64> {
        let mut start = wish.from.max(self.ram.start).checked_next_multiple_of(wish.alignment)?;
        loop {
            let end = start.checked_add(wish.room).filter(|&end| end <= self.ram.end)?;
            match self.overlapping(&(start..end)) {
                None => return Some(start),
                // Never less than `start + 1`, so this ends.
                Some(other) => start = other.range.end.checked_next_multiple_of(wish.alignment)?,
            }
        }
    }

    fn overlapping(&self, range: &Range<u64>) -> Option<&Taken> {
        self.taken.iter().find(|taken| taken.range.start < range.end && range.start < taken.range.end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BASE: Ipa = Ipa(0x4000_0000);

    #[test]
    fn claims_stay_inside_and_apart() {
        let mut layout = Layout::new(BASE, 0x40_0000);
        layout.claim("/images/a", 0x4000_0000, 0x1000).unwrap();
        layout.claim("/images/b", 0x403f_f000, 0x1000).unwrap();
        assert_eq!(
            layout.claim("/images/c", 0x4000_0800, 0x1000).unwrap_err().to_string(),
            "/images/c: wants 0x40000800 to 0x40001800, which overlaps /images/a at 0x40000000 to 0x40001000; \
             change its load address"
        );
        for (start, size) in [(0x3fff_ffff, 2), (0x403f_ffff, 2), (u64::MAX, 2), (0, u64::MAX)] {
            let error = layout.claim("/images/c", start, size).unwrap_err();
            assert!(matches!(error, ConfigError::OutsideRam { .. }), "{start:#x} {size:#x}: {error}");
        }
    }

    #[test]
    fn the_first_wish_that_can_be_met_counts() {
        let mut layout = Layout::new(BASE, 0x40_0000);
        layout.claim("kernel", 0x4000_0000, 0x18_0000).unwrap();
        let wishes = [
            Wish { from: 0, alignment: 0x20_0000, room: 0x30_0000 },
            Wish { from: 0, alignment: 0x20_0000, room: 0x20_0000 },
            Wish { from: 0, alignment: 0x1000, room: 0x1000 },
        ];
        assert_eq!(layout.place("tree", 0x1000, &wishes), Ok(Ipa(0x4020_0000)));
        assert_eq!(layout.place("disk", 0x1000, &wishes), Ok(Ipa(0x4018_0000)));
        let error = layout.place("/images/big", 0x30_0000, &wishes[..1]).unwrap_err().to_string();
        assert_eq!(
            error,
            "/images/big: needs 0x300000 bytes in one piece, but nothing that large is left of the VM's 0x400000 \
             bytes; raise keel,memory"
        );
    }

    proptest! {
        #[test]
        fn nothing_overlaps(sizes in prop::collection::vec((1u64..0x30_0000, 0u32..22, any::<u64>()), 1..12)) {
            let mut layout = Layout::new(BASE, 0x100_0000);
            for (size, alignment, from) in sizes {
                let alignment = 1 << alignment;
                let near = 0x4000_0000 + from % 0x120_0000;
                for from in [from, near] {
                    let _ = layout.place("thing", size, &[Wish { from, alignment, room: size }]).map(|start| {
                        assert!(start.is_aligned(alignment) && start.0 >= from);
                    });
                    let _ = layout.claim("claim", near, size);
                }
            }
            layout.taken.sort_by_key(|taken| taken.range.start);
            for pair in layout.taken.windows(2) {
                prop_assert!(pair[0].range.end <= pair[1].range.start);
            }
            for taken in &layout.taken {
                prop_assert!(taken.range.start >= layout.ram.start && taken.range.end <= layout.ram.end);
            }
        }
    }
}
