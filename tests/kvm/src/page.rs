//! Memory that is shared: a guest's, and that of `struct kvm_run`.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// A page that somebody else may write while this program reads it. So all of it is atomic words.
///
/// Neither accesses by this program nor this type clean caches: a guest that runs with its MMU off reads past them, so
/// that on real machines what was written for it has to be cleaned to the point of coherency before it runs.
#[repr(C, align(4096))]
#[derive(Debug)]
pub struct Page([AtomicU64; PAGE / 8]);

const _: () = assert!(size_of::<Page>() == PAGE && align_of::<Page>() == PAGE);

impl Default for Page {
    fn default() -> Self {
        Self::ZERO
    }
}

impl Page {
    /// A page of zeros.
    #[allow(clippy::declare_interior_mutable_const, reason = "to make pages with")]
    pub const ZERO: Self = Self([const { AtomicU64::new(0) }; PAGE / 8]);

    /// Where it is.
    pub fn address(&self) -> u64 {
        core::ptr::from_ref(self).expose_provenance() as u64
    }

    /// The word with the byte at `offset`.
    ///
    /// Panics if that is outside.
    pub fn word(&self, offset: usize) -> &AtomicU64 {
        &self.0[offset / 8]
    }

    /// The `size` bytes at `offset`, 1 to 8 that do not cross a multiple of 8, as a number.
    ///
    /// Panics if they are outside, or do.
    pub fn read(&self, offset: usize, size: usize) -> u64 {
        let (shift, mask) = field(offset, size);
        self.word(offset).load(Relaxed) >> shift & mask
    }

    /// Writes such bytes.
    ///
    /// Panics as [`Self::read`] does.
    pub fn write(&self, offset: usize, size: usize, value: u64) {
        let (shift, mask) = field(offset, size);
        let replace = |word| Some(word & !(mask << shift) | (value & mask) << shift);
        // It always has a new value.
        let _ = self.word(offset).fetch_update(Relaxed, Relaxed, replace);
    }

    /// Zeros everywhere.
    pub fn clear(&self) {
        self.0.iter().for_each(|word| word.store(0, Relaxed));
    }

    /// A program at the page's start, zeros behind it.
    ///
    /// Panics if it is longer than a page.
    pub fn load(&self, program: &[u32]) {
        assert!(program.len() <= PAGE / 4, "a program is at most a page long");
        self.clear();
        for (n, instruction) in program.iter().enumerate() {
            self.write(4 * n, 4, (*instruction).into());
        }
    }
}

fn field(offset: usize, size: usize) -> (usize, u64) {
    assert!((1..=8).contains(&size) && offset % 8 + size <= 8, "a field is inside a word");
    (offset % 8 * 8, u64::MAX >> (64 - 8 * size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields() {
        let page = Page::default();
        page.write(0, 8, u64::MAX);
        page.write(1, 1, 0xab);
        page.write(4, 4, 0x1234_5678);
        assert_eq!(page.read(0, 8), 0x1234_5678_ffff_abff);
        assert_eq!((page.read(1, 1), page.read(4, 4), page.read(6, 2)), (0xab, 0x1234_5678, 0x1234));
        page.write(4088, 8, 7);
        assert_eq!(page.read(4088, 4), 7);
    }

    #[test]
    fn programs() {
        let page = Page::default();
        page.write(2000, 4, 9);
        page.load(&[1, 2, 3]);
        assert_eq!((page.read(0, 8), page.read(8, 8), page.read(2000, 4)), (2 << 32 | 1, 3, 0));
    }

    #[test]
    #[should_panic(expected = "inside a word")]
    fn fields_do_not_cross_words() {
        Page::default().read(6, 4);
    }
}
