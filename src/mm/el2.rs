//! EL2's own map: identity, W^X.
//!
//! Text is read and execute, constants are read only, all other memory is writable and never executable, devices are
//! Device-nGnRnE; the page under each stack is not mapped. A first map with just the image and the device tree lets the
//! tree be read with caches on; the rest is added to the live map, which only ever maps what was unmapped
//! ([`stage1`](super::stage1)).

use super::{
    Pa, frame,
    stage1::{Kind, Stage1},
    stage2::Tables,
};
use crate::arch::{cache, image, mmu, tlb};
use core::ops::Range;
use spin::Mutex;

/// Memory for the tables: of the image, before there is more.
struct TableMemory;

impl Tables for TableMemory {
    fn allocate(&mut self, pages: usize) -> Option<Pa> {
        let table = frame::allocate_tables(pages)?;
        // Walks find it zeroed.
        tlb::publish_tables();
        Some(table)
    }

    fn free(&mut self, start: Pa, pages: usize) {
        frame::free_tables(start, pages);
    }

    fn read(&self, table: Pa, index: usize) -> u64 {
        frame::TableMemory.read(table, index)
    }

    fn write(&mut self, table: Pa, index: usize, value: u64) {
        frame::TableMemory.write(table, index, value);
    }
}

type Map = Stage1<TableMemory>;
static MAP: Mutex<Option<Map>> = Mutex::new(None);

/// Why a range could not be mapped.
#[derive(Debug)]
pub struct MapError(pub Range<Pa>);

fn add(map: &mut Map, range: Range<Pa>, kind: Kind) -> Result<(), MapError> {
    if range.start >= range.end {
        return Ok(());
    }
    map.map(range.clone(), kind).map_err(|_| MapError(range))
}

/// Maps the image and the device tree and turns the MMU on.
///
/// # Safety
///
/// Called once, by the boot CPU with the MMU off, as the boot protocol left caches: nothing of the image is dirty in them.
pub unsafe fn start(tree: Range<Pa>) -> Result<(), MapError> {
    let mut map = Map::new(TableMemory).map_err(|_| MapError(tree.clone()))?;
    add(&mut map, image::text(), Kind::Text)?;
    add(&mut map, image::rodata(), Kind::ReadOnly)?;
    let (data, guard) = (image::data(), image::stack_guard());
    add(&mut map, data.start..guard.start, Kind::ReadWrite)?;
    add(&mut map, guard.end..data.end, Kind::ReadWrite)?;
    add(&mut map, tree, Kind::ReadOnly)?;
    let unused = frame::unused_early_tables();
    for range in image::written_early() {
        for part in [range.start..range.end.min(unused.start), range.start.max(unused.end)..range.end] {
            // SAFETY: the image's lines were clean at entry (the boot protocol); all writes since went past the caches.
            unsafe { cache::invalidate(part) };
        }
    }
    // SAFETY: the map covers all that is in use: image with stack, and the tree.
    unsafe { mmu::enable(map.root()) };
    *MAP.lock() = Some(map);
    Ok(())
}

fn with_map(range: Range<Pa>, kind: Kind) -> Result<(), MapError> {
    match MAP.lock().as_mut() {
        Some(map) => {
            let result = add(map, range, kind);
            tlb::publish_tables();
            result
        }
        None => Err(MapError(range)),
    }
}

/// Maps memory writable, not executable. The range must not be mapped yet.
pub fn map_ram(range: Range<Pa>) -> Result<(), MapError> {
    with_map(range, Kind::ReadWrite)
}

/// Maps memory read only. The range must not be mapped yet.
pub fn map_read_only(range: Range<Pa>) -> Result<(), MapError> {
    with_map(range, Kind::ReadOnly)
}

/// Maps the registers of a device. The range must not be mapped yet, except as a device's.
pub fn map_device(range: Range<Pa>) -> Result<(), MapError> {
    with_map(range, Kind::Device)
}

/// TTBR0_EL2 of the map, for the other CPUs.
pub fn root() -> Option<Pa> {
    MAP.lock().as_ref().map(Stage1::root)
}
