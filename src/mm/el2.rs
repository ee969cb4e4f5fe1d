//! EL2's own map: identity, W^X, built with `aarch64-paging`.
//!
//! Text is read and execute, constants are read only, all other memory is writable and never executable, devices are
//! Device-nGnRnE; the page under each stack is not mapped. A first map with just the image and the device tree lets the
//! tree be read with caches on; the rest is added to the live map, which only ever maps what was unmapped (so that
//! break-before-make never arises) or takes away.

use super::{Pa, frame};
use crate::arch::{cache, image, mmu};
use aarch64_paging::{
    Mapping,
    descriptor::{El23Attributes, PhysicalAddress},
    paging::{Constraints, El2, MemoryRegion, PageTable, Translation},
};
use core::{ops::Range, ptr::NonNull};
use spin::Mutex;

const NORMAL: El23Attributes = El23Attributes::ATTRIBUTE_INDEX_0.union(El23Attributes::INNER_SHAREABLE).union(COMMON);
const DEVICE: El23Attributes = El23Attributes::ATTRIBUTE_INDEX_1.union(COMMON).union(El23Attributes::XN);
const COMMON: El23Attributes = El23Attributes::VALID.union(El23Attributes::ACCESSED).union(El23Attributes::USER_RES1);
const TEXT: El23Attributes = NORMAL.union(El23Attributes::READ_ONLY);
const READ_ONLY: El23Attributes = TEXT.union(El23Attributes::XN);
const READ_WRITE: El23Attributes = NORMAL.union(El23Attributes::XN);

struct Tables;

impl Translation<El23Attributes> for Tables {
    fn allocate_table(&mut self) -> (NonNull<PageTable<El23Attributes>>, PhysicalAddress) {
        let page = frame::allocate_tables(1).expect("memory for EL2's own translation tables");
        (self.physical_to_virtual(PhysicalAddress(page.0 as usize)), PhysicalAddress(page.0 as usize))
    }

    unsafe fn deallocate_table(&mut self, table: NonNull<PageTable<El23Attributes>>) {
        frame::free_tables(Pa(table.as_ptr() as u64), 1);
    }

    fn physical_to_virtual(&self, pa: PhysicalAddress) -> NonNull<PageTable<El23Attributes>> {
        NonNull::new(pa.0 as *mut PageTable<El23Attributes>).expect("tables are not at address 0")
    }
}

type Map = Mapping<Tables, El2>;
static MAP: Mutex<Option<Map>> = Mutex::new(None);

/// Why a range could not be mapped.
#[derive(Debug)]
pub struct MapError(pub Range<Pa>);

fn add(map: &mut Map, range: Range<Pa>, attributes: El23Attributes) -> Result<(), MapError> {
    if range.start >= range.end {
        return Ok(());
    }
    let region = MemoryRegion::new(range.start.0 as usize, range.end.0 as usize);
    let start = PhysicalAddress(region.start().0);
    map.map_range(&region, start, attributes, Constraints::empty()).map_err(|_| MapError(range))
}

/// Maps the image and the device tree and turns the MMU on.
///
/// # Safety
///
/// Called once, by the boot CPU with the MMU off, as the boot protocol left caches: nothing of the image is dirty in them.
pub unsafe fn start(tree: Range<Pa>) -> Result<(), MapError> {
    let mut map = Map::new(Tables, 0, El2);
    add(&mut map, image::text(), TEXT)?;
    add(&mut map, image::rodata(), READ_ONLY)?;
    let (data, guard) = (image::data(), image::stack_guard());
    add(&mut map, data.start..guard.start, READ_WRITE)?;
    add(&mut map, guard.end..data.end, READ_WRITE)?;
    add(&mut map, tree, READ_ONLY)?;
    for range in image::written_early() {
        // SAFETY: the image's lines were clean at entry (the boot protocol); all writes since went past the caches.
        unsafe { cache::invalidate(range) };
    }
    // SAFETY: the map covers all that is in use: image with stack, and the tree.
    unsafe { mmu::enable(Pa(map.root_address().0 as u64)) };
    map.mark_active();
    *MAP.lock() = Some(map);
    Ok(())
}

fn with_map(range: Range<Pa>, attributes: El23Attributes) -> Result<(), MapError> {
    match MAP.lock().as_mut() {
        Some(map) => add(map, range, attributes),
        None => Err(MapError(range)),
    }
}

/// Maps memory writable, not executable. The range must not be mapped yet.
pub fn map_ram(range: Range<Pa>) -> Result<(), MapError> {
    with_map(range, READ_WRITE)
}

/// Maps memory read only. The range must not be mapped yet.
pub fn map_read_only(range: Range<Pa>) -> Result<(), MapError> {
    with_map(range, READ_ONLY)
}

/// Maps the registers of a device. The range must not be mapped yet, except as a device's.
pub fn map_device(range: Range<Pa>) -> Result<(), MapError> {
    with_map(range, DEVICE)
}

/// TTBR0_EL2 of the map, for the other CPUs.
pub fn root() -> Option<Pa> {
    MAP.lock().as_ref().map(|map| Pa(map.root_address().0 as u64))
}
