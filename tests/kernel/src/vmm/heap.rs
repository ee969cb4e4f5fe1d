//! A heap for the monitor, whose machines' states have no known size.

use buddy_system_allocator::Heap;
use core::{
    alloc::{GlobalAlloc, Layout},
    cell::UnsafeCell,
    ptr::{NonNull, null_mut},
};
use spin::Mutex;

const BYTES: usize = 512 << 10;

struct Allocator(Mutex<Heap<32>>);

#[repr(C, align(4096))]
struct Memory(UnsafeCell<[u8; BYTES]>);

// SAFETY: only the allocator has its address, from `init` on, behind a lock.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory(UnsafeCell::new([0; BYTES]));

#[global_allocator]
static HEAP: Allocator = Allocator(Mutex::new(Heap::empty()));

// SAFETY: memory comes from the heap, which gives each piece once, with interrupts masked or by programs whose handlers do not
// allocate.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.lock().alloc(layout).map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if let Some(memory) = NonNull::new(memory) {
            // SAFETY: the caller's promise: it is from `alloc`, with this layout.
            unsafe { self.0.lock().dealloc(memory, layout) };
        }
    }
}

/// Gives the heap its memory, once; before that there is none.
pub fn init() {
    let mut heap = HEAP.0.lock();
    if heap.stats_total_bytes() == 0 {
        // SAFETY: static memory that nobody else has.
        unsafe { heap.init(MEMORY.0.get() as usize, BYTES) };
    }
}
