//! The assembly that runs before Rust: Image header, entry and EL2 set-up.
//!
//! Its numbers come from Rust. [`image`] gives the run-time addresses of the sections that `linker.ld` lays out.

use super::addr::Pa;
use super::{cache, hcr};
use core::{
    mem::offset_of,
    sync::atomic::{AtomicU64, Ordering},
};

core::arch::global_asm!(
    include_str!("../../boot/macros.S"),
    include_str!("../../boot/entry.S"),
    sctlr_el2_mmu_off = const hcr::SCTLR_EL2_MMU_OFF,
    sb_mair = const offset_of!(SecondaryBlock, mair),
    sb_ttbr0 = const offset_of!(SecondaryBlock, ttbr0),
    sb_stack = const offset_of!(SecondaryBlock, stack),
    sb_mpidr = const offset_of!(SecondaryBlock, mpidr),
    sb_next = const offset_of!(SecondaryBlock, next),
    spin_blocks = sym SPIN_BLOCKS,
);
core::arch::global_asm!(include_str!("../../boot/memory.S"));
core::arch::global_asm!(
    include_str!("../../boot/macros.S"),
    include_str!("../../boot/el2_setup.S"),
    hcr_el2_host = const hcr::HCR_EL2_HOST,
);

/// What a secondary CPU needs before it can run Rust: read with the MMU off, so it must be clean to the point of
/// coherency.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct SecondaryBlock {
    /// MAIR_EL2.
    pub mair: u64,
    /// TCR_EL2.
    pub tcr: u64,
    /// TTBR0_EL2.
    pub ttbr0: u64,
    /// SCTLR_EL2, with the MMU on.
    pub sctlr: u64,
    /// Top of the CPU's stack, 16-byte aligned.
    pub stack: u64,
    /// The CPU's index, which becomes TPIDR_EL2.
    pub index: u64,
    /// The affinity fields of the CPU's MPIDR_EL1.
    pub mpidr: u64,
    /// Address of the next block in the list of CPUs that come without arguments; 0 for none.
    pub next: u64,
}

const _: () = assert!(offset_of!(SecondaryBlock, tcr) == offset_of!(SecondaryBlock, mair) + 8);
const _: () = assert!(offset_of!(SecondaryBlock, sctlr) == offset_of!(SecondaryBlock, ttbr0) + 8);
const _: () = assert!(offset_of!(SecondaryBlock, index) == offset_of!(SecondaryBlock, stack) + 8);

/// Run-time addresses of the image's sections; EL2 runs identity mapped, so they are physical too.
pub mod image {
    use super::Pa;
    use core::ops::Range;

    macro_rules! symbol {
        ($name:ident) => {{
            unsafe extern "C" {
                static $name: u8;
            }
            Pa(&raw const $name as u64)
        }};
    }

    /// The whole image, stacks and BSS included.
    pub fn whole() -> Range<Pa> {
        symbol!(_start_of_image)..symbol!(_end_of_image)
    }

    /// Code, read and execute.
    pub fn text() -> Range<Pa> {
        symbol!(_start_of_image)..symbol!(_end_of_text)
    }

    /// Constants, read only.
    pub fn rodata() -> Range<Pa> {
        symbol!(_end_of_text)..symbol!(_end_of_rodata)
    }

    /// Data, BSS and what is not cleared, read and write.
    pub fn data() -> Range<Pa> {
        symbol!(_end_of_rodata)..symbol!(_end_of_data)
    }

    /// What was written with the caches off: constants that the relocation changed, data, BSS, the boot CPU's stack and the
    /// first translation tables. The linked-in bundle, which nothing writes, lies between the two ranges.
    pub fn written_early() -> [Range<Pa>; 2] {
        [symbol!(_end_of_text)..symbol!(_start_of_bundle), symbol!(_end_of_bundle)..symbol!(_end_of_early)]
    }

    /// The page under the boot CPU's stack, never mapped.
    pub fn stack_guard() -> Range<Pa> {
        symbol!(_boot_stack_guard)..symbol!(_boot_stack_bottom)
    }

    /// Bytes of a secondary CPU's stack.
    const STACK: u64 = 0x8000;
    /// Bytes of the guard under each stack.
    pub const GUARD: u64 = 0x1000;

    /// The stack of CPU `index`, below 64; the page under it is never mapped.
    pub fn stack(index: usize) -> Option<Range<Pa>> {
        let slot = index as u64;
        let start = Pa(symbol!(_start_of_stacks).0 + slot * (GUARD + STACK) + GUARD);
        (slot < 64).then_some(start..Pa(start.0 + STACK))
    }

    /// What the stub keeps while a payload runs; neither mapped nor cleared at the start.
    pub fn resident() -> Range<Pa> {
        symbol!(_start_of_resident)..symbol!(_start_of_stacks)
    }

    /// What a boot loader puts into memory, the linked-in bundle included.
    pub fn file() -> Range<Pa> {
        symbol!(_start_of_image)..symbol!(_end_of_file)
    }

    /// The copy of the data at the end of the [`file()`], as the boot loader brought them.
    pub fn saved_data() -> Range<Pa> {
        let start = symbol!(_saved_data);
        start..Pa(start.0 + (symbol!(_end_of_file).0 - symbol!(_end_of_rodata).0))
    }

    /// The bundle linked into the image; empty when there is none.
    pub fn bundle() -> &'static [u8] {
        let (start, end) = (symbol!(_start_of_bundle), symbol!(_end_of_bundle));
        // SAFETY: the linker script places `.bundle` between these two symbols, inside `.rodata`, which is mapped read
        // only for as long as keel runs and is never written after relocation.
        unsafe { core::slice::from_raw_parts(start.0 as *const u8, (end.0 - start.0) as usize) }
    }
}

unsafe extern "C" {
    fn restart(entry: u64, tree: u64) -> !;
}

/// Starts this image again at `base`, with the device tree at `tree`, as a boot loader would have.
///
/// # Safety
///
/// Called on the only CPU that runs, with the MMU off or that memory mapped writable. `base` must be 2 MiB aligned; memory
/// as large as the image is there, apart from the image, and nobody needs what is in it.
pub unsafe fn restart_at(base: Pa, tree: u64) -> ! {
    let (whole, file, data) = (image::whole(), image::file(), image::saved_data());
    let end = Pa(base.0 + (whole.end.0 - whole.start.0));
    // Dirty lines of whoever had the memory before must not be written back over the image.
    cache::clean_invalidate(base..end);
    // SAFETY: the caller vouches for the memory at `base`; the image itself is read only here. Its data are taken as they
    // were before anything was written to them. The start code relocates the copy: its entries hold addends, so that what
    // the first relocation wrote does not matter.
    unsafe {
        let size = (data.end.0 - data.start.0) as usize;
        let constants = (file.end.0 - file.start.0) as usize - size;
        core::ptr::copy_nonoverlapping(file.start.0 as *const u8, base.0 as *mut u8, constants);
        core::ptr::copy_nonoverlapping(data.start.0 as *const u8, (base.0 as *mut u8).add(constants), size);
    }
    cache::clean_invalidate(base..end);
    cache::invalidate_instructions();
    // SAFETY: an image begins with its entry point (boot/entry.S), which takes the tree in x0 and never returns; the copy
    // is in memory, and nothing else of this one is used any more.
    unsafe { restart(base.0, tree) }
}

/// Where firmware must start a secondary CPU, with its [`SecondaryBlock`] in x0.
pub fn secondary_entry_address() -> Pa {
    unsafe extern "C" {
        fn secondary_entry();
    }
    Pa(secondary_entry as *const () as u64)
}

/// Address of the first block in the list of CPUs that come without arguments; 0 for none.
pub(super) static SPIN_BLOCKS: AtomicU64 = AtomicU64::new(0);

/// Where firmware must let a CPU go from its spin-table pen. It has no arguments there, so it finds its block, which is
/// cleaned here, by its affinity.
pub fn spin_table_entry_address(block: &'static mut SecondaryBlock) -> Pa {
    unsafe extern "C" {
        fn spin_table_entry();
    }
    expect_cpu(block);
    Pa(spin_table_entry as *const () as u64)
}

/// Adds a CPU to those that come without arguments, and find their blocks, which are cleaned here, by their affinity.
pub fn expect_cpu(block: &'static mut SecondaryBlock) {
    let clean = |start: u64, size: usize| cache::clean(Pa(start)..Pa(start + size as u64));
    block.next = SPIN_BLOCKS.load(Ordering::Relaxed);
    let address = core::ptr::from_ref(block) as u64;
    clean(address, size_of::<SecondaryBlock>());
    SPIN_BLOCKS.store(address, Ordering::Relaxed);
    clean(SPIN_BLOCKS.as_ptr() as u64, size_of::<u64>());
}

/// The bundle that the build names (`build.rs`), in the section that [`image::bundle`] finds.
#[unsafe(link_section = ".bundle")]
#[used]
static BUNDLE: [u8; include_bytes!(concat!(env!("OUT_DIR"), "/bundle.itb")).len()] =
    *include_bytes!(concat!(env!("OUT_DIR"), "/bundle.itb"));
