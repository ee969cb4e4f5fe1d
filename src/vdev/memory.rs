//! A guest's memory, as devices that keep tables in it reach it.
//!
//! Tables of the GIC are made of 64-bit words, little endian, at addresses that the guest chose: any of them may be no
//! memory at all, and may change between two reads. So whoever reads checks what came, and reads once.

use core::fmt;

/// The memory of one VM.
pub trait GuestMemory: fmt::Debug + Send + Sync {
    /// Reads words from `address` on, each at once; `false` if it is no multiple of 8 or some of it is not memory (what
    /// comes before may have been read).
    fn read(&self, address: u64, words: &mut [u64]) -> bool;

    /// Writes words from `address` on, each at once; `false` if it is no multiple of 8 or some of it is not memory (what
    /// comes before may have been written).
    fn write(&self, address: u64, words: &[u64]) -> bool;

    /// Reads one word.
    fn word(&self, address: u64) -> Option<u64> {
        let mut word = [0];
        self.read(address, &mut word).then_some(word[0])
    }
}
