//! Random bytes for guests' seeds: the CPU's generator (FEAT_RNG) where there is one, else what the boot loader gave,
//! stretched by SHA-256 with a counter and the time.

use crate::arch::{random, timer};
use alloc::vec::Vec;
use sha2::{Digest, Sha256};
use spin::Mutex;

struct Pool {
    seed: Vec<u8>,
    count: u64,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { seed: Vec::new(), count: 0 });

/// Takes the boot loader's random bytes.
pub fn seed(bytes: &[u8]) {
    POOL.lock().seed = bytes.to_vec();
    crate::kvm::entropy::start(bytes);
}

/// Fills `bytes`.
pub fn fill(bytes: &mut [u8]) {
    let mut pool = POOL.lock();
    for chunk in bytes.chunks_mut(32) {
        let mut hash = Sha256::new();
        hash.update(&pool.seed);
        hash.update(pool.count.to_le_bytes());
        hash.update(timer::now().to_le_bytes());
        for _ in 0..4 {
            hash.update(random::word().unwrap_or(0).to_le_bytes());
        }
        pool.count = pool.count.wrapping_add(1);
        chunk.copy_from_slice(&hash.finalize()[..chunk.len()]);
    }
}
