//! Stage 2: from a guest's addresses to the machine's (Arm ARM D8).
//!
//! 4 KiB granule, 40-bit IPAs from two concatenated level-1 tables (fewer bits where the CPU has fewer). `map` uses the
//! largest block alignment allows (1 GiB, 2 MiB, 4 KiB) and sets the contiguous hint on naturally aligned runs of 16.
//! `unmap` splits blocks, always by break-before-make: an entry is made invalid and its translations dropped before it
//! gets another value. Memory for tables and TLB maintenance enter through two traits, so the walker runs on the host.

use super::{
    Ipa, Pa,
    addr::{BLOCK_1G, BLOCK_2M, PAGE_SIZE},
};

/// Memory that holds translation tables.
pub trait Tables {
    /// `pages` (a power of two) zeroed pages, aligned to their size.
    fn allocate(&mut self, pages: usize) -> Option<Pa>;
    /// Gives back what `allocate` gave.
    fn free(&mut self, start: Pa, pages: usize);
    /// Entry `index` of the table at `table`.
    fn read(&self, table: Pa, index: usize) -> u64;
    /// Sets entry `index` of the table at `table`.
    fn write(&mut self, table: Pa, index: usize, value: u64);
}

/// TLB maintenance for one stage 2.
pub trait Tlb {
    /// Drops what is cached for `ipa` (any size of mapping), on all CPUs, and waits for it.
    fn flush_ipa(&self, ipa: Ipa);
    /// Drops everything cached for this VM, on all CPUs, and waits for it.
    fn flush_all(&self);
    /// Makes table writes visible to walks on all CPUs.
    fn publish(&self);
}

/// What a mapping is: memory type, rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Normal write-back memory; read, write and execute are the guest's to restrict.
    Normal,
    /// Normal memory that the guest can only read and execute.
    NormalReadOnly,
    /// A device given to the guest: Device-nGnRE, never executable.
    Device,
    /// Memory of the VM that owns the machine: of the type and cacheability that its own stage 1 says.
    Owned,
    /// Devices of the VM that owns the machine: as its own stage 1 says, never executable.
    OwnedDevice,
}

/// Why a mapping could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage2Error {
    /// No memory for a table.
    OutOfMemory,
    /// The range is not page aligned, empty, or reaches beyond the IPA or PA space.
    BadRange,
    /// Something is mapped at this address already.
    AlreadyMapped(Ipa),
}

const VALID: u64 = 1;
const TABLE_OR_PAGE: u64 = 1 << 1;
const ACCESSED: u64 = 1 << 10;
const INNER_SHAREABLE: u64 = 0b11 << 8;
const S2AP_READ: u64 = 0b01 << 6;
const S2AP_WRITE: u64 = 0b10 << 6;
const S2AP_READ_WRITE: u64 = 0b11 << 6;
const CONTIGUOUS: u64 = 1 << 52;
const XN: u64 = 0b10 << 53;
const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// MemAttr without FEAT_S2FWB: Normal, inner and outer write-back. (Arm ARM D8.6.5)
const MEMATTR_NORMAL: u64 = 0b1111 << 2;
/// MemAttr with FEAT_S2FWB: always Normal write-back, whatever stage 1 says. (Arm ARM D8.6.6)
const MEMATTR_NORMAL_FWB: u64 = 0b0110 << 2;
/// MemAttr with FEAT_S2FWB: what stage 1 says. Without it, Normal write-back says the same, as the weaker type wins. (Arm
/// ARM D8.6.5, D8.6.6)
const MEMATTR_STAGE1_FWB: u64 = 0b0111 << 2;
/// MemAttr: Device-nGnRE, with or without FEAT_S2FWB.
const MEMATTR_DEVICE: u64 = 0b0001 << 2;

/// The tables of one VM.
#[derive(Debug)]
pub struct Stage2<T: Tables> {
    tables: T,
    root: Pa,
    root_pages: usize,
    ipa_bits: u32,
    pa_bits: u32,
    fwb: bool,
}

/// Entries that the contiguous hint joins, with a 4 KiB granule.
const CONTIGUOUS_RUN: u64 = 16;

const fn level_size(level: u32) -> u64 {
    PAGE_SIZE << (9 * (3 - level))
}

impl<T: Tables> Stage2<T> {
    /// An empty stage 2 of `ipa_bits` (32 to 43: level 1 with up to 16 concatenated tables) on a machine of `pa_bits`.
    pub fn new(mut tables: T, ipa_bits: u32, pa_bits: u32, fwb: bool) -> Result<Self, Stage2Error> {
        if !(32..=43).contains(&ipa_bits) {
            return Err(Stage2Error::BadRange);
        }
        let root_pages = 1 << ipa_bits.saturating_sub(39);
        let root = tables.allocate(root_pages).ok_or(Stage2Error::OutOfMemory)?;
        Ok(Self { tables, root, root_pages, ipa_bits, pa_bits, fwb })
    }

    /// VTTBR_EL2.BADDR.
    pub fn root(&self) -> Pa {
        self.root
    }

    /// log2 of the size of the IPA space in bytes.
    pub fn ipa_bits(&self) -> u32 {
        self.ipa_bits
    }

    /// VTCR_EL2 for these tables: RES1 31, PS, 4 KiB granule, inner-shareable write-back walks, SL0 = 1 (start at level
    /// 1), VS where 16-bit VMIDs are used.
    pub fn vtcr(&self, ps: u64, vmid16: bool) -> u64 {
        (1 << 31)
            | (u64::from(vmid16) << 19)
            | (ps << 16)
            | (0b11 << 12)
            | (0b01 << 10)
            | (0b01 << 8)
            | (1 << 6)
            | u64::from(64 - self.ipa_bits)
    }

    fn leaf_bits(&self, memory: Memory) -> u64 {
        let normal = if self.fwb { MEMATTR_NORMAL_FWB } else { MEMATTR_NORMAL };
        let stage1 = if self.fwb { MEMATTR_STAGE1_FWB } else { MEMATTR_NORMAL };
        VALID
            | ACCESSED
            | match memory {
                Memory::Owned => stage1 | INNER_SHAREABLE | S2AP_READ_WRITE,
                Memory::OwnedDevice => stage1 | INNER_SHAREABLE | S2AP_READ_WRITE | XN,
                Memory::Normal => normal | INNER_SHAREABLE | S2AP_READ_WRITE,
                Memory::NormalReadOnly => normal | INNER_SHAREABLE | S2AP_READ,
                Memory::Device => MEMATTR_DEVICE | S2AP_READ_WRITE | XN,
            }
    }

    fn index(&self, ipa: u64, level: u32) -> usize {
        let index = ipa / level_size(level);
        // The concatenated level-1 tables are indexed as one.
        if level == 1 { index as usize } else { (index & 0x1ff) as usize }
    }

    fn check(&self, ipa: Ipa, length: u64) -> Result<u64, Stage2Error> {
        let end = ipa.0.checked_add(length).ok_or(Stage2Error::BadRange)?;
        if length == 0 || !(ipa.0 | length).is_multiple_of(PAGE_SIZE) || end > 1 << self.ipa_bits {
            return Err(Stage2Error::BadRange);
        }
        Ok(end)
    }

    /// Maps `[ipa, ipa + length)` to `[pa, pa + length)`. Nothing of it may be mapped before. On an error what was mapped
    /// of the range is taken out again.
    pub fn map(&mut self, ipa: Ipa, pa: Pa, length: u64, memory: Memory, tlb: &impl Tlb) -> Result<(), Stage2Error> {
        let end = self.check(ipa, length)?;
        let pa_end = pa.checked_add(length).ok_or(Stage2Error::BadRange)?;
        if !pa.is_aligned(PAGE_SIZE) || pa_end.0 > 1 << self.pa_bits {
            return Err(Stage2Error::BadRange);
        }
        let bits = self.leaf_bits(memory);
        let mut at = ipa.0;
        while at < end {
            let to = pa.0 + (at - ipa.0);
            // Page alignment was checked, so level 3 always fits.
            let fits = |level: &u32| (at | to).is_multiple_of(level_size(*level)) && end - at >= level_size(*level);
            let level = (1..3).find(fits).unwrap_or(3);
            let size = level_size(level);
            let run = size * CONTIGUOUS_RUN;
            // The hint needs all 16 entries of the run, at a naturally aligned input and output address (D8.7.1).
            let contiguous = level != 1 && (at | to).is_multiple_of(run) && end - at >= run;
            let count = if contiguous { CONTIGUOUS_RUN } else { 1 };
            let hint = if contiguous { CONTIGUOUS } else { 0 };
            for entry in 0..count {
                let offset = entry * size;
                if let Err(error) = self.set_leaf(at + offset, to + offset, level, bits | hint, tlb) {
                    let done = at + offset - ipa.0;
                    if done != 0 {
                        let _ = self.unmap(ipa, done, tlb);
                    }
                    return Err(error);
                }
            }
            at += size * count;
        }
        tlb.publish();
        Ok(())
    }

    fn set_leaf(&mut self, ipa: u64, pa: u64, leaf_level: u32, bits: u64, tlb: &impl Tlb) -> Result<(), Stage2Error> {
        let mut table = self.root;
        for level in 1..leaf_level {
            let index = self.index(ipa, level);
            let entry = self.tables.read(table, index);
            table = if entry & VALID == 0 {
                let next = self.tables.allocate(1).ok_or(Stage2Error::OutOfMemory)?;
                self.tables.write(table, index, next.0 | VALID | TABLE_OR_PAGE);
                next
            } else if entry & TABLE_OR_PAGE != 0 {
                Pa(entry & ADDRESS)
            } else {
                return Err(Stage2Error::AlreadyMapped(Ipa(ipa)));
            };
        }
        let index = self.index(ipa, leaf_level);
        let entry = self.tables.read(table, index);
        if entry & VALID != 0 {
            let next = Pa(entry & ADDRESS);
            if leaf_level == 3 || entry & TABLE_OR_PAGE == 0 || !self.is_empty(next, leaf_level + 1) {
                return Err(Stage2Error::AlreadyMapped(Ipa(ipa)));
            }
            // A table that earlier mappings left behind, empty by now.
            self.tables.write(table, index, 0);
            tlb.flush_ipa(Ipa(ipa));
            self.free_below(next, leaf_level + 1, 512);
            self.tables.free(next, 1);
        }
        let kind = if leaf_level == 3 { TABLE_OR_PAGE } else { 0 };
        self.tables.write(table, index, pa | bits | kind);
        Ok(())
    }

    /// Takes `[ipa, ipa + length)` out. Holes are fine. `OutOfMemory` only when a block had to be split; what comes
    /// before that block is out then.
    pub fn unmap(&mut self, ipa: Ipa, length: u64, tlb: &impl Tlb) -> Result<(), Stage2Error> {
        let end = self.check(ipa, length)?;
        let mut at = ipa.0;
        while at < end {
            let (table, index, level, entry) = self.walk(at);
            let size = level_size(level);
            let start = at & !(size - 1);
            if entry & VALID == 0 {
                at = start + size;
            } else if entry & CONTIGUOUS != 0 {
                self.clear_hint(table, index, start, level, tlb);
            } else if start < at || end - start < size {
                self.split(table, index, start, level, entry, tlb)?;
            } else {
                self.tables.write(table, index, 0);
                tlb.flush_ipa(Ipa(start));
                at = start + size;
            }
        }
        Ok(())
    }

    /// Makes `[ipa, ipa + length)` read-only, where something is mapped. `OutOfMemory` only when a block had to be split;
    /// what comes before that block is read-only then.
    ///
    /// Rights may change without break-before-make (Arm ARM D8.16.1), but not of one entry of a contiguous run.
    pub fn write_protect(&mut self, ipa: Ipa, length: u64, tlb: &impl Tlb) -> Result<(), Stage2Error> {
        let end = self.check(ipa, length)?;
        let mut at = ipa.0;
        let mut result = Ok(());
        while at < end {
            let (table, index, level, entry) = self.walk(at);
            let size = level_size(level);
            let start = at & !(size - 1);
            if entry & VALID == 0 {
                at = start + size;
            } else if entry & CONTIGUOUS != 0 {
                self.clear_hint(table, index, start, level, tlb);
            } else if start < at || end - start < size {
                result = self.split(table, index, start, level, entry, tlb);
                if result.is_err() {
                    break;
                }
            } else {
                self.tables.write(table, index, entry & !S2AP_WRITE);
                at = start + size;
            }
        }
        tlb.flush_all();
        result
    }

    /// Makes the page at `ipa` writable, and no other: a block is split. `false` if nothing is mapped there.
    pub fn allow_write(&mut self, ipa: Ipa, tlb: &impl Tlb) -> Result<bool, Stage2Error> {
        self.check(ipa.align_down(PAGE_SIZE), PAGE_SIZE)?;
        loop {
            let (table, index, level, entry) = self.walk(ipa.0);
            let start = ipa.0 & !(level_size(level) - 1);
            if entry & VALID == 0 {
                return Ok(false);
            } else if entry & CONTIGUOUS != 0 {
                self.clear_hint(table, index, start, level, tlb);
            } else if level < 3 {
                self.split(table, index, start, level, entry, tlb)?;
            } else {
                self.tables.write(table, index, entry | S2AP_WRITE);
                tlb.publish();
                tlb.flush_ipa(ipa);
                return Ok(true);
            }
        }
    }

    /// Whether the guest may write at `ipa`; `None` if nothing is mapped there.
    pub fn is_writable(&self, ipa: Ipa) -> Option<bool> {
        if ipa.0 >> self.ipa_bits != 0 {
            return None;
        }
        let (_, _, _, entry) = self.walk(ipa.0);
        (entry & VALID != 0).then_some(entry & S2AP_WRITE != 0)
    }

    /// The entry that translates `ipa`, or the invalid one where the walk ends.
    fn walk(&self, ipa: u64) -> (Pa, usize, u32, u64) {
        let mut table = self.root;
        let mut level = 1;
        loop {
            let index = self.index(ipa, level);
            let entry = self.tables.read(table, index);
            if level == 3 || entry & VALID == 0 || entry & TABLE_OR_PAGE == 0 {
                return (table, index, level, entry);
            }
            table = Pa(entry & ADDRESS);
            level += 1;
        }
    }

    /// Removes the contiguous hint from the run that entry `index` belongs to: all of it invalid, flushed, then valid
    /// again without the hint (D8.7.1 asks for break-before-make).
    fn clear_hint(&mut self, table: Pa, index: usize, ipa: u64, level: u32, tlb: &impl Tlb) {
        let run = CONTIGUOUS_RUN as usize;
        let first = index & !(run - 1);
        let size = level_size(level);
        let first_ipa = ipa - (index - first) as u64 * size;
        let mut entries = [0; CONTIGUOUS_RUN as usize];
        for (n, entry) in entries.iter_mut().enumerate() {
            *entry = self.tables.read(table, first + n);
            self.tables.write(table, first + n, 0);
        }
        for n in 0..CONTIGUOUS_RUN {
            tlb.flush_ipa(Ipa(first_ipa + n * size));
        }
        for (n, entry) in entries.iter().enumerate() {
            self.tables.write(table, first + n, entry & !CONTIGUOUS);
        }
        tlb.publish();
    }

    /// Replaces a block by a table of the next level that maps the same, by break-before-make.
    fn split(
        &mut self,
        table: Pa,
        index: usize,
        ipa: u64,
        level: u32,
        entry: u64,
        tlb: &impl Tlb,
    ) -> Result<(), Stage2Error> {
        let next = self.tables.allocate(1).ok_or(Stage2Error::OutOfMemory)?;
        let size = level_size(level + 1);
        let kind = if level + 1 == 3 { TABLE_OR_PAGE } else { 0 };
        for n in 0..512 {
            self.tables.write(next, n as usize, (entry + n * size) | kind);
        }
        self.tables.write(table, index, 0);
        tlb.flush_ipa(Ipa(ipa));
        self.tables.write(table, index, next.0 | VALID | TABLE_OR_PAGE);
        tlb.publish();
        Ok(())
    }

    /// Where `ipa` is mapped to, and how many bytes from there lie in the same block; `None` if it is not mapped.
    pub fn translate(&self, ipa: Ipa) -> Option<(Pa, u64)> {
        if ipa.0 >> self.ipa_bits != 0 {
            return None;
        }
        let (_, _, level, entry) = self.walk(ipa.0);
        let offset = ipa.0 & (level_size(level) - 1);
        (entry & VALID != 0).then(|| (Pa((entry & ADDRESS) + offset), level_size(level) - offset))
    }

    /// Whether the table at `table`, of `level`, maps nothing.
    fn is_empty(&self, table: Pa, level: u32) -> bool {
        (0..512).all(|index| {
            let entry = self.tables.read(table, index);
            entry & VALID == 0
                || (level < 3 && entry & TABLE_OR_PAGE != 0 && self.is_empty(Pa(entry & ADDRESS), level + 1))
        })
    }

    fn free_below(&mut self, table: Pa, level: u32, entries: usize) {
        if level == 3 {
            return;
        }
        for index in 0..entries {
            let entry = self.tables.read(table, index);
            if entry & (VALID | TABLE_OR_PAGE) == VALID | TABLE_OR_PAGE {
                let next = Pa(entry & ADDRESS);
                self.free_below(next, level + 1, 512);
                self.tables.free(next, 1);
            }
        }
    }
}

impl<T: Tables> Drop for Stage2<T> {
    /// Gives the tables back. No CPU may have them in VTTBR_EL2, and their VMID must have been flushed.
    fn drop(&mut self) {
        self.free_below(self.root, 1, 512 * self.root_pages);
        self.tables.free(self.root, self.root_pages);
    }
}

/// Sizes that [`Stage2::map`] uses, largest first.
pub const BLOCK_SIZES: [u64; 3] = [BLOCK_1G, BLOCK_2M, PAGE_SIZE];

#[cfg(test)]
mod tests;
