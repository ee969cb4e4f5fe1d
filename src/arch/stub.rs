//! The hyp stub: its vectors, and what of it stays under a payload that owns the machine.
//!
//! The calls of the hyp-stub ABI are assembly in a page of their own (`boot/stub_vectors.S`, `boot/stub_finalise.S`) and
//! use no memory. Beside them stay, for as long as they are installed, the relay of the payload's SMCs and the report of
//! exceptions nobody expects (`boot/stub_resident.S`), which call `stub_smc` and `stub_report` of `init`. That code runs
//! with EL2's MMU off: its state is [`Resident`], read and written past the caches by plain loads and stores of one word,
//! and it takes no locks, because exclusives need Normal memory.

use super::{addr::Pa, boot::image, cache, hcr};
use core::{
    cell::UnsafeCell,
    mem::offset_of,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

core::arch::global_asm!(
    include_str!("../../boot/macros.S"),
    include_str!("../../boot/stub_vectors.S"),
    hcr_el2_host = const hcr::HCR_EL2_HOST,
);
core::arch::global_asm!(
    include_str!("../../boot/macros.S"),
    include_str!("../../boot/stub_finalise.S"),
    hcr_el2_vhe = const hcr::HCR_EL2_VHE,
    sctlr_el1_reset = const hcr::SCTLR_EL1_RESET,
);
core::arch::global_asm!(
    include_str!("../../boot/macros.S"),
    include_str!("../../boot/stub_resident.S"),
    resident = sym RESIDENT,
    sctlr_el2_mmu_off = const hcr::SCTLR_EL2_MMU_OFF,
    cpu_mpidr = const offset_of!(StubCpu, mpidr),
    cpu_stack = const offset_of!(StubCpu, stack),
    cpu_size = const size_of::<StubCpu>(),
    sctlr_el1_reset = const hcr::SCTLR_EL1_RESET,
    cpu_spin = const offset_of!(StubCpu, spin),
    spin_release = const offset_of!(SpinWord, release),
    spin_arrived = const offset_of!(SpinWord, arrived),
    block_entry = const offset_of!(EntryBlock, entry),
    block_vectors = const offset_of!(EntryBlock, vectors),
    frame_size = const size_of::<SmcFrame>(),
);

unsafe extern "C" {
    fn stub_enter(entry: u64, tree: u64) -> !;
    fn stub_secondary_entry();
    fn stub_spin_entry();
    fn stub_forward(registers: *mut [u64; 18]) -> u64;
    static hyp_stub_page: u8;
}

/// The most CPUs the stub has stacks for.
pub const MAX_CPUS: usize = 64;

/// Where a CPU goes when firmware starts it at the stub's entry.
#[repr(C)]
#[derive(Debug)]
pub struct EntryBlock {
    /// Address of the payload's first instruction plus 1; 0 when the block is free.
    entry: AtomicU64,
    /// The payload's x0.
    context: AtomicU64,
    /// The vectors that are installed under it.
    vectors: AtomicU64,
}

impl EntryBlock {
    /// Whether a CPU is on its way through it.
    pub fn is_pending(&self) -> bool {
        self.entry.load(Ordering::Relaxed) != 0
    }

    /// Fills it: the CPU that firmware starts with it goes to `entry`, 4-byte aligned, with `context` in x0 and EL2's
    /// vectors at `vectors`.
    pub fn fill(&self, entry: u64, context: u64, vectors: Pa) {
        self.context.store(context, Ordering::Relaxed);
        self.vectors.store(vectors.0, Ordering::Relaxed);
        self.entry.store(entry | 1, Ordering::Relaxed);
        super::sysreg::dsb_sy();
    }

    /// Frees it, because firmware refused to start the CPU.
    pub fn clear(&self) {
        self.entry.store(0, Ordering::Relaxed);
        super::sysreg::dsb_sy();
    }

    /// Its address, for firmware to hand to the CPU.
    pub fn address(&self) -> Pa {
        Pa(core::ptr::from_ref(self) as u64)
    }
}

const _: () = assert!(offset_of!(EntryBlock, context) == offset_of!(EntryBlock, entry) + 8);

/// What the stub knows of a CPU.
#[repr(C)]
#[derive(Debug)]
pub struct StubCpu {
    /// The affinity fields of its MPIDR_EL1; all ones behind the last CPU.
    mpidr: AtomicU64,
    /// Top of its stack, 16-byte aligned.
    stack: AtomicU64,
    /// Where it goes when it wakes from CPU_SUSPEND or SYSTEM_SUSPEND.
    suspend: EntryBlock,
    /// Address of its [`SpinWord`].
    spin: AtomicU64,
}

/// How a CPU that firmware held in a spin-table pen is held in the stub's.
#[repr(C)]
#[derive(Debug)]
pub struct SpinWord {
    /// The new `cpu-release-addr`: 0 until the payload writes where the CPU goes.
    release: AtomicU64,
    /// Not 0 when the CPU has come to the stub.
    arrived: AtomicU64,
}

/// The payload writes its words through its caches, and what it writes back is whole lines: of lines, at most 2 KiB
/// (CTR_EL0.CWG), in which nothing else changes.
#[repr(C, align(2048))]
#[derive(Debug)]
struct SpinWords([SpinWord; MAX_CPUS]);

/// The stub's state while a payload runs.
#[repr(C)]
#[derive(Debug)]
pub struct Resident {
    /// All CPUs, and one row that ends the list.
    cpus: [StubCpu; MAX_CPUS + 1],
    /// For every calling CPU, the block of each CPU it starts. Each block is filled by one CPU only, while it is free, and
    /// freed by the one it starts: that makes locks unnecessary.
    start: [[EntryBlock; MAX_CPUS]; MAX_CPUS],
    /// The firmware's PSCI version, and the function ids of PSCI 0.1 (see `hypercall::relay::OwnerPsci`), 0 for none.
    pub psci: [AtomicU64; 5],
    spin: SpinWords,
}

#[repr(transparent)]
struct Cell(UnsafeCell<core::mem::MaybeUninit<Resident>>);
// SAFETY: everything in `Resident` is an atomic, used with loads and stores.
unsafe impl Sync for Cell {}
#[unsafe(link_section = ".resident")]
static RESIDENT: Cell = Cell(UnsafeCell::new(core::mem::MaybeUninit::uninit()));

/// The stub's state. All of its fields are atomics, for which any bytes are a value.
pub fn resident() -> &'static Resident {
    // SAFETY: aligned memory of the image that is never given away; words of any value are valid `AtomicU64`s, and nobody
    // has a unique reference.
    unsafe { &*RESIDENT.0.get().cast::<Resident>() }
}

impl Resident {
    /// Fills the state in: `cpus` are the affinities of at most [`MAX_CPUS`] CPUs. Nothing is pending afterwards.
    pub fn reset(&self, cpus: impl Iterator<Item = u64>) {
        let mut count = 0;
        for (index, (row, mpidr)) in self.cpus.iter().take(MAX_CPUS).zip(cpus).enumerate() {
            row.stack.store(image::stack(index).map_or(0, |stack| stack.end.0), Ordering::Relaxed);
            row.suspend.clear();
            if let Some(word) = self.spin.0.get(index) {
                word.release.store(0, Ordering::Relaxed);
                word.arrived.store(0, Ordering::Relaxed);
                row.spin.store(core::ptr::from_ref(word) as u64, Ordering::Relaxed);
            }
            row.mpidr.store(mpidr, Ordering::Relaxed);
            count = index + 1;
        }
        for row in self.cpus.iter().skip(count) {
            row.mpidr.store(u64::MAX, Ordering::Relaxed);
        }
        self.start.iter().flatten().for_each(EntryBlock::clear);
    }

    /// Says what is known of the firmware: the words of [`psci`](Self::psci), in order.
    pub fn set_psci(&self, words: impl Iterator<Item = u32>) {
        for (word, value) in self.psci.iter().zip(words) {
            word.store(value.into(), Ordering::Relaxed);
        }
    }

    /// Makes the state what CPUs with their caches off read; so far it was written through this CPU's.
    pub fn publish(&self) {
        let start = Pa(core::ptr::from_ref(self) as u64);
        cache::clean_invalidate(start..Pa(start.0 + size_of::<Self>() as u64));
    }

    /// The address of CPU `index`'s release word, 8-byte aligned, for the payload's device tree.
    pub fn release_word(&self, index: usize) -> Option<Pa> {
        Some(Pa(core::ptr::from_ref(&self.spin.0.get(index)?.release) as u64))
    }

    /// Whether CPU `index` has come to the stub's pen. The state was published before, and not written since.
    pub fn has_arrived(&self, index: usize) -> bool {
        let Some(word) = self.spin.0.get(index) else { return false };
        let at = Pa(core::ptr::from_ref(word) as u64);
        // The CPU writes past the caches.
        cache::clean_invalidate(at..Pa(at.0 + size_of::<SpinWord>() as u64));
        word.arrived.load(Ordering::Relaxed) != 0
    }

    /// The index of the CPU with this affinity.
    pub fn index(&self, mpidr: u64) -> Option<usize> {
        let known = self.cpus.iter().map(|row| row.mpidr.load(Ordering::Relaxed));
        known.take_while(|&known| known != u64::MAX).position(|known| known == mpidr)
    }

    /// The block through which CPU `index` wakes.
    pub fn suspend(&self, index: usize) -> Option<&EntryBlock> {
        self.cpus.get(index).map(|row| &row.suspend)
    }

    /// The block with which CPU `caller` starts CPU `target`.
    pub fn start(&self, caller: usize, target: usize) -> Option<&EntryBlock> {
        self.start.get(caller)?.get(target)
    }
}

/// What an SMC of the payload finds in the registers, as `boot/stub_resident.S` stores them.
#[repr(C)]
#[derive(Debug)]
pub struct SmcFrame {
    /// x0 to x17.
    pub x: [u64; 18],
    x18: u64,
    x30: u64,
    /// ELR_EL2: the SMC itself.
    pub elr: u64,
    /// SPSR_EL2.
    pub spsr: u64,
}

const _: () = assert!(size_of::<SmcFrame>() == 176 && offset_of!(SmcFrame, elr) == 160);

/// Makes the SMC that `registers` describe, x0 to x17, and leaves its answer there. `false`: this machine has no SMC.
pub fn forward(registers: &mut [u64; 18]) -> bool {
    // SAFETY: the payload owns the machine, so that what it asks firmware to do is its own affair; the routine touches
    // nothing but these registers and its stack.
    unsafe { stub_forward(registers) != 0 }
}

/// The page of the hyp-stub vectors: they are at its start.
pub fn page() -> Pa {
    Pa(&raw const hyp_stub_page as u64)
}

/// The part of the image that stays while a payload runs on `cpus` CPUs: code, constants, data, state and stacks.
pub fn resident_range(cpus: usize) -> Range<Pa> {
    let last = image::stack(cpus.clamp(1, MAX_CPUS) - 1).map_or(image::whole().end, |stack| stack.end);
    image::whole().start..last
}

/// Where firmware must start a CPU, with an [`EntryBlock`]'s address in x0.
pub fn entry_address() -> Pa {
    Pa(stub_secondary_entry as *const () as u64)
}

/// Where firmware must let a CPU go from its spin-table pen.
pub fn spin_entry_address() -> Pa {
    Pa(stub_spin_entry as *const () as u64)
}

/// Leaves for the payload: `entry` at EL1 with `tree` in x0, EL2's MMU off and the stub's vectors installed.
///
/// # Safety
///
/// Everything that is needed from here on, the stub's state, its constants and the payload, must be in memory: caches are
/// off afterwards.
pub unsafe fn enter(entry: Pa, tree: Pa) -> ! {
    // SAFETY: the caller vouches for the caches; EL2's map is the identity, so the code goes on when it is turned off.
    unsafe { stub_enter(entry.0, tree.0) }
}
