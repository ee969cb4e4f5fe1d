//! The memory of a guest, as its monitor has it: one piece for each slot, twice, so that a machine can be copied.

use crate::{
    check,
    harness::{Check, failed},
};
use core::{arch::asm, sync::atomic::Ordering::Relaxed};
use keel_kvm::page::{PAGE, Page};
use keel_test_kernel::{arch, mrs};

/// A piece of a guest's memory.
#[derive(Clone, Copy)]
pub struct Piece {
    /// Where the guest has it.
    pub guest: u64,
    /// Where the monitor has it.
    pub pages: &'static [Page],
}

/// What memory is filled with that nobody is to read.
const POISON: u64 = 0xdead_dead_dead_dead;

impl Piece {
    /// `bytes` bytes at `address`, for the guest at `guest`.
    ///
    /// # Safety
    ///
    /// They are mapped memory that is nobody else's, page aligned.
    pub unsafe fn new(guest: u64, address: usize, bytes: usize) -> Self {
        // SAFETY: the caller's promise; pages are atomic words, which have no invalid values.
        let pages = unsafe { core::slice::from_raw_parts(address as *const Page, bytes / PAGE) };
        Self { guest, pages }
    }

    /// Writes bytes at an offset that is a multiple of 8, zeros up to the next one behind them.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        for (word, at) in bytes.chunks(8).zip((offset..).step_by(8)) {
            let mut whole = [0; 8];
            whole[..word.len()].copy_from_slice(word);
            self.pages[at / PAGE].word(at % PAGE).store(u64::from_le_bytes(whole), Relaxed);
        }
    }

    /// Copies page `page` of `from`.
    pub fn copy_page(&self, from: &Self, page: usize) {
        let (from, to) = (&from.pages[page], &self.pages[page]);
        for at in (0..PAGE).step_by(8) {
            to.word(at).store(from.word(at).load(Relaxed), Relaxed);
        }
    }

    /// Copies all of `from`.
    pub fn copy(&self, from: &Self) {
        (0..self.pages.len()).for_each(|page| self.copy_page(from, page));
    }

    /// Makes it useless.
    pub fn poison(&self) {
        for page in self.pages {
            (0..PAGE).step_by(8).for_each(|at| page.word(at).store(POISON, Relaxed));
        }
    }

    /// Has caches agree with memory for whoever reads past them, and for instructions.
    pub fn clean(&self) {
        // CTR_EL0.DminLine: the logarithm of its words.
        let line = 4 << (mrs!("ctr_el0") >> 16 & 0xf);
        let range = self.pages.as_ptr_range();
        for at in (range.start as usize..range.end as usize).step_by(line) {
            // SAFETY: maintenance by address of memory that is mapped does not change its contents.
            unsafe { asm!("dc cvac, {}", in(reg) at, options(nostack)) };
        }
        arch::dsb();
        // SAFETY: maintenance changes no state that a program sees.
        unsafe { asm!("ic ialluis", "dsb sy", "isb", options(nostack)) };
    }

    /// Checks that a copy has what this has.
    pub fn check_same(&self, copy: &Self) -> Check {
        let differs =
            |&page: &usize| (0..PAGE).step_by(8).any(|at| self.pages[page].read(at, 8) != copy.pages[page].read(at, 8));
        let mut pages = (0..self.pages.len()).filter(differs);
        if let Some(first) = pages.next() {
            let at = self.guest + (first * PAGE) as u64;
            return Err(failed(format_args!("{} pages differ, the first at {at:#x}", 1 + pages.count())));
        }
        check!(self.pages.len() == copy.pages.len(), "the copy has another size");
        Ok(())
    }
}
