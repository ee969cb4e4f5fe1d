//! Frames and heap: all free memory of the machine in one buddy allocator.
//!
//! One of the two files of this layer with unsafe code. Small objects (through `alloc`), translation tables and the
//! memory of VMs come from the same place; a VM's memory is cleared before it is given and after it is taken back.
//! A few pages of the image serve as tables before the allocator exists.

use super::{Pa, addr::PAGE_SIZE};
use crate::arch::{cache, features};
use alloc::sync::Arc;
use buddy_system_allocator::Heap;
use core::{
    alloc::{GlobalAlloc, Layout},
    ops::Range,
    ptr::NonNull,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};
use spin::Mutex;

/// 64-bit words of a page.
pub const PAGE_WORDS: usize = PAGE_SIZE as usize / 8;

/// Orders of the buddy allocator: blocks up to 2^35 bytes.
const ORDERS: usize = 36;

struct KeelHeap(Mutex<Heap<ORDERS>>);

#[global_allocator]
static HEAP: KeelHeap = KeelHeap(Mutex::new(Heap::new()));

// SAFETY: `Heap` hands out disjoint, aligned blocks of the memory given to it by `donate`.
unsafe impl GlobalAlloc for KeelHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.lock().alloc(layout).map_or(core::ptr::null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if let Some(pointer) = NonNull::new(pointer) {
            // SAFETY: `GlobalAlloc`'s contract: allocated here with this layout.
            unsafe { self.0.lock().dealloc(pointer, layout) };
        }
    }
}

/// Bytes of heap until the machine's memory is known: what reading its tree needs.
const EARLY_HEAP: usize = 256 * 1024;

#[repr(C, align(4096))]
struct EarlyHeap(core::cell::UnsafeCell<[u8; EARLY_HEAP]>);
// SAFETY: its memory is given to the allocator once, by `start`, and not referred to otherwise.
unsafe impl Sync for EarlyHeap {}
#[unsafe(link_section = ".late")]
static EARLY_HEAP_MEMORY: EarlyHeap = EarlyHeap(core::cell::UnsafeCell::new([0; EARLY_HEAP]));

/// Lets the allocator start with a little memory of the image's own. Later calls do nothing.
pub fn start() {
    static STARTED: AtomicBool = AtomicBool::new(false);
    if !STARTED.swap(true, Ordering::Relaxed) {
        let start = Pa(EARLY_HEAP_MEMORY.0.get() as u64);
        // SAFETY: a static that nothing else refers to, in the image's writable part, given away this once.
        unsafe { donate(start..Pa(start.0 + EARLY_HEAP as u64)) };
    }
}

/// Gives the allocator a range of memory, page aligned.
///
/// # Safety
///
/// The range must be RAM, mapped writable in EL2's map, and used by nothing else.
pub unsafe fn donate(range: Range<Pa>) {
    if range.start < range.end {
        // SAFETY: the caller vouches for the range.
        unsafe { HEAP.0.lock().add_to_heap(range.start.0 as usize, range.end.0 as usize) };
    }
}

/// Bytes that are left for small objects, which have nobody to tell that there is no memory: what can be refused, tables of
/// stage 2 and objects that a guest asks for, is refused when there are fewer.
pub const RESERVE: u64 = 1 << 20;

/// Whether `bytes` more leave the [`RESERVE`].
pub fn can_spare(bytes: u64) -> bool {
    free_bytes() >= bytes.saturating_add(RESERVE)
}

/// Bytes that are neither allocated nor lost to rounding.
pub fn free_bytes() -> u64 {
    let heap = HEAP.0.lock();
    (heap.stats_total_bytes() - heap.stats_alloc_actual()) as u64
}

/// A block of memory owned by whoever holds it: from the allocator `2^order` bytes, naturally aligned, given back when
/// dropped; or memory that was never the allocator's. Cleared when it is made and when it is dropped.
#[derive(Debug)]
pub struct Block {
    start: Pa,
    size: u64,
    from_heap: bool,
}

impl Block {
    /// Allocates `size` bytes, a power of two of at least a page; cleared. `None` when there is no such block.
    pub fn new(size: u64) -> Option<Self> {
        assert!(size.is_power_of_two() && size >= PAGE_SIZE, "blocks are powers of two of at least a page");
        let layout = Layout::from_size_align(size as usize, size as usize).ok()?;
        let start = Pa(HEAP.0.lock().alloc(layout).ok()?.as_ptr() as u64);
        let block = Self { start, size, from_heap: true };
        block.clear();
        Some(block)
    }

    /// Memory that the allocator does not know, page aligned; cleared.
    ///
    /// # Safety
    ///
    /// The range must be RAM, mapped writable in EL2's map for good, and used by nothing else.
    pub unsafe fn outside(range: Range<Pa>) -> Self {
        let block = Self { start: range.start, size: range.end.0 - range.start.0, from_heap: false };
        block.clear();
        block
    }

    /// Where it is.
    pub fn range(&self) -> Range<Pa> {
        self.start..Pa(self.start.0 + self.size)
    }

    /// Fills it with zeros.
    pub fn clear(&self) {
        // SAFETY: the block is RAM mapped writable and ours alone, or given to a guest that expects it to be cleared.
        unsafe { cache::zero(self.range()) };
    }

    /// Makes what was written visible to a guest that runs with its caches off, and to its instruction fetches.
    /// With FEAT_S2FWB stage 2 makes every guest access cacheable, and only the instruction side is left; unless the guest
    /// `decides` itself what is cacheable.
    pub fn publish(&self, decides: bool) {
        self.publish_part(0, self.size, decides);
    }

    /// As [`publish`](Self::publish), of `size` bytes from `offset` on; what lies outside is left out.
    pub fn publish_part(&self, offset: u64, size: u64, decides: bool) {
        if decides || !features::has_fwb() {
            let start = self.start.0 + offset.min(self.size);
            let end = start + size.min(self.size - offset.min(self.size));
            cache::clean_invalidate(Pa(start)..Pa(end));
        }
        cache::invalidate_instructions();
    }

    /// Copies `bytes` to `offset`; `false`, and nothing done, if that does not lie inside.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> bool {
        let fits = offset.checked_add(bytes.len() as u64).is_some_and(|end| end <= self.size);
        if fits {
            // SAFETY: in bounds of memory that this block owns; `bytes` cannot overlap it, since no reference to a
            // block's memory is ever made. A guest may read it at the same time and sees bytes old or new.
            unsafe {
                core::ptr::copy_nonoverlapping(bytes.as_ptr(), (self.start.0 + offset) as *mut u8, bytes.len());
            }
        }
        fits
    }

    /// Copies from `offset` into `bytes`; `false`, and nothing done, if that does not lie inside.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> bool {
        let fits = offset.checked_add(bytes.len() as u64).is_some_and(|end| end <= self.size);
        if fits {
            // SAFETY: as in `write`.
            unsafe {
                core::ptr::copy_nonoverlapping((self.start.0 + offset) as *const u8, bytes.as_mut_ptr(), bytes.len());
            }
        }
        fits
    }
}

impl Block {
    /// The 64-bit word at `offset`, read at once; `None` if that is misaligned or not inside.
    pub fn read_word(&self, offset: u64) -> Option<u64> {
        // SAFETY: `word` is in bounds of memory that this block owns, and aligned; no reference to it is made. A guest may
        // write it at the same time and is seen before or after.
        self.word(offset).map(|word| unsafe { word.read_volatile() })
    }

    /// Writes the 64-bit word at `offset` at once: whoever reads it at the same time sees the old value or the new one.
    /// `false`, and nothing done, if that is misaligned or not inside.
    pub fn write_word(&self, offset: u64, value: u64) -> bool {
        // SAFETY: as in `read_word`. An aligned 64-bit store is single-copy atomic (Arm ARM B2.2.1).
        self.word(offset).map(|word| unsafe { word.write_volatile(value) }).is_some()
    }

    fn word(&self, offset: u64) -> Option<*mut u64> {
        let inside = offset.is_multiple_of(8) && offset.checked_add(8).is_some_and(|end| end <= self.size);
        inside.then_some((self.start.0.wrapping_add(offset)) as *mut u64)
    }
}

/// A page of a block, by its words, for as long as somebody has this. Guests may write it at the same time.
#[derive(Clone, Debug)]
pub struct SharedPage {
    words: NonNull<[AtomicU64; PAGE_WORDS]>,
    _block: Arc<Block>,
}

// SAFETY: the words are atomic, and the block they are in, which is both, is kept by `_block`.
unsafe impl Send for SharedPage {}
// SAFETY: as above.
unsafe impl Sync for SharedPage {}

impl SharedPage {
    /// The page at `offset` in `block`; `None` if that is misaligned or not inside.
    pub fn new(block: Arc<Block>, offset: u64) -> Option<Self> {
        let inside = offset.is_multiple_of(PAGE_SIZE) && offset < block.size && block.size - offset >= PAGE_SIZE;
        let start = block.start.0.wrapping_add(offset) as *mut [AtomicU64; PAGE_WORDS];
        NonNull::new(start).filter(|_| inside).map(|words| Self { words, _block: block })
    }
}

impl core::ops::Deref for SharedPage {
    type Target = [AtomicU64; PAGE_WORDS];

    #[inline(always)]
    fn deref(&self) -> &Self::Target {
        // SAFETY: `new`: a page of the block, which is kept, aligned to more than a word; every value is one of `AtomicU64`;
        // keel refers to a block's memory in no other way than by copies and words, and whoever else writes it is no Rust.
        unsafe { self.words.as_ref() }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.clear();
        if self.from_heap
            && let (Some(pointer), Ok(layout)) =
                (NonNull::new(self.start.0 as *mut u8), Layout::from_size_align(self.size as usize, self.size as usize))
        {
            // SAFETY: allocated in `new` with this layout.
            unsafe { HEAP.0.lock().dealloc(pointer, layout) };
        }
    }
}

/// Pages of the image for the first translation tables, before there is an allocator.
const EARLY_TABLES: usize = 40;
#[repr(C, align(4096))]
struct EarlyTables(core::cell::UnsafeCell<[[u64; 512]; EARLY_TABLES]>);
// SAFETY: each page is handed out once, by `allocate_table`.
unsafe impl Sync for EarlyTables {}
#[unsafe(link_section = ".noinit")]
static EARLY: EarlyTables = EarlyTables(core::cell::UnsafeCell::new([[0; 512]; EARLY_TABLES]));
static EARLY_USED: AtomicUsize = AtomicUsize::new(0);

/// A zeroed, page-aligned run of `pages` (a power of two) for translation tables, aligned to its size.
/// `None` when memory is short.
pub fn allocate_tables(pages: usize) -> Option<Pa> {
    // A plain load and store: with the MMU off exclusives are not to be relied on, and then only one CPU is here.
    let used = EARLY_USED.load(Ordering::Relaxed);
    if pages == 1 && used < EARLY_TABLES {
        EARLY_USED.store(used + 1, Ordering::Relaxed);
        let page = Pa(early_tables().start.0 + used as u64 * PAGE_SIZE);
        // SAFETY: `used < EARLY_TABLES`, so the page is inside the array, and it is handed out here for the first time.
        unsafe { cache::zero_plain(page..Pa(page.0 + PAGE_SIZE)) };
        return Some(page);
    }
    let size = pages * PAGE_SIZE as usize;
    let layout = Layout::from_size_align(size, size).ok()?;
    let pointer = HEAP.0.lock().alloc(layout).ok()?;
    let start = Pa(pointer.as_ptr() as u64);
    // SAFETY: freshly allocated, `size` bytes, a multiple of the page size at a multiple of it.
    unsafe { cache::zero_plain(start..Pa(start.0 + size as u64)) };
    Some(start)
}

fn early_tables() -> Range<Pa> {
    let start = EARLY.0.get() as u64;
    Pa(start)..Pa(start + size_of::<EarlyTables>() as u64)
}

/// What of the image's pages for translation tables nobody has had yet, and nobody has written to.
pub fn unused_early_tables() -> Range<Pa> {
    let pages = early_tables();
    Pa(pages.start.0 + EARLY_USED.load(Ordering::Relaxed) as u64 * PAGE_SIZE)..pages.end
}

/// Gives back what [`allocate_tables`] gave. Early pages stay unused.
pub fn free_tables(start: Pa, pages: usize) {
    if early_tables().contains(&start) {
        return;
    }
    let size = pages * PAGE_SIZE as usize;
    if let (Some(pointer), Ok(layout)) = (NonNull::new(start.0 as *mut u8), Layout::from_size_align(size, size)) {
        // SAFETY: allocated by `allocate_tables` with this layout; callers give back only what they took.
        unsafe { HEAP.0.lock().dealloc(pointer, layout) };
    }
}

/// The tables of a live stage 2, in memory.
#[derive(Debug)]
pub struct TableMemory;

impl super::stage2::Tables for TableMemory {
    fn allocate(&mut self, pages: usize) -> Option<Pa> {
        if can_spare(pages as u64 * PAGE_SIZE) { allocate_tables(pages) } else { None }
    }

    fn free(&mut self, start: Pa, pages: usize) {
        free_tables(start, pages);
    }

    fn read(&self, table: Pa, index: usize) -> u64 {
        assert!(index < 512 * 16, "an index inside the largest concatenated table");
        // SAFETY: `table` came from `allocate_tables` and `index` is inside what was asked for: the walker's invariant,
        // tested on the host. Volatile, because table walks read it at any time.
        unsafe { ((table.0 + 8 * index as u64) as *const u64).read_volatile() }
    }

    fn write(&mut self, table: Pa, index: usize, value: u64) {
        assert!(index < 512 * 16, "an index inside the largest concatenated table");
        // SAFETY: as in `read`.
        unsafe { ((table.0 + 8 * index as u64) as *mut u64).write_volatile(value) };
    }
}
