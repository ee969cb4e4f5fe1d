//! Random bits for guests' TRNG calls.
//!
//! In this order: the CPU's generator (FEAT_RNG); firmware's, by its own TRNG calls; ChaCha20 with a key from the boot
//! loader's random bytes (`/chosen/rng-seed`), a generator for each CPU, so that no guest waits for another. With none of
//! these there is nothing honest to give.

use crate::{
    arch::{cpu, features, random, smc},
    hypercall::trng,
    kvm::physical::MAX_CPUS,
};
use chacha20::{
    ChaCha20Rng,
    rand_core::{Rng, SeedableRng},
};
use sha2::{Digest, Sha256};
use spin::{Mutex, Once};

/// Where random bits come from.
enum Source {
    Cpu,
    Firmware,
    /// ChaCha20 with this key; the CPU's index is the stream.
    Seed([u8; 32]),
    None,
}

static SOURCE: Once<Source> = Once::new();
static GENERATORS: [Mutex<Option<ChaCha20Rng>>; MAX_CPUS] = [const { Mutex::new(None) }; MAX_CPUS];

/// Bytes of seed below which it is not taken for one: 128 bits.
const SEED_MIN: usize = 16;
/// How often the CPU's generator is asked for a word; it may have none for a while (Arm ARM K14.1).
const PATIENCE: usize = 16;

/// Chooses the source; `seed` is what the boot loader gave, perhaps nothing. Called once, before guests run.
pub fn start(seed: &[u8]) {
    SOURCE.call_once(|| {
        if features::has_rng() {
            Source::Cpu
        } else if smc::has_trng() {
            Source::Firmware
        } else if seed.len() >= SEED_MIN {
            // A key of its own: the seed has other uses, which must not tell what comes out here.
            let mut hash = Sha256::new();
            hash.update(b"keel TRNG");
            for word in trng::UUID {
                hash.update(word.to_le_bytes());
            }
            hash.update(seed);
            Source::Seed(hash.finalize().into())
        } else {
            Source::None
        }
    });
}

/// Where bits come from, for the log.
pub fn source() -> &'static str {
    match SOURCE.get() {
        Some(Source::Cpu) => "the CPU (FEAT_RNG)",
        Some(Source::Firmware) => "firmware (TRNG)",
        Some(Source::Seed(_)) => "ChaCha20, from the device tree's rng-seed",
        Some(Source::None) | None => "nothing",
    }
}

/// Fills `words`; `false` while there is nothing to take them from.
pub fn fill(words: &mut [u64; 3]) -> bool {
    match SOURCE.get() {
        Some(Source::Cpu) => words.iter_mut().all(|word| {
            let found = (0..PATIENCE).find_map(|_| random::word());
            *word = found.unwrap_or(0);
            found.is_some()
        }),
        Some(Source::Firmware) => smc::random().map(|found| *words = found).is_some(),
        Some(Source::Seed(key)) => {
            let Some(generator) = GENERATORS.get(cpu::index()) else { return false };
            let mut generator = generator.lock();
            let generator = generator.get_or_insert_with(|| {
                let mut generator = ChaCha20Rng::from_seed(*key);
                generator.set_stream(cpu::index() as u64);
                generator
            });
            for word in words {
                *word = generator.next_u64();
            }
            true
        }
        Some(Source::None) | None => false,
    }
}
