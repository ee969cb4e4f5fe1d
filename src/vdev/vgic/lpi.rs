//! Locality-specific interrupts: what is pending for each vCPU, how urgent it is, and which list register has it.
//!
//! An LPI has no active state, is always edge-triggered and in group 1 (IHI 0069 §2.2.1), so all there is to it is a pending
//! bit at one vCPU and a byte of configuration. The byte is cached from the guest's table when LPIs are enabled and when
//! the guest invalidates it, as in KVM; the pending bits are read from the guest's table when LPIs are enabled, and kept here
//! from then on.
//!
//! **Bounded work.** A guest can make all 57 344 LPIs pending at once, so nothing looks through them all to find the most
//! urgent: words of 64 pending bits are sorted into 32 *levels*, one for each priority. Whoever makes an LPI pending only
//! marks its word as *unsorted*; the CPU of the vCPU sorts when it loads list registers, at most [`WORDS_AT_ONCE`] words
//! before it lets the guest and its interrupts have a turn.
//!
//! **In a list register** an LPI's pending bit is taken out of the bitmap, and its list register's word in `loaded` says
//! so. Who withdraws it or moves it to another vCPU changes the bitmap and marks that word; folding the list register obeys
//! the mark. The loader writes the word before it takes the bit, and who withdraws takes the bit before it looks at the
//! word, so that one of them sees the other.

use alloc::boxed::Box;
use alloc::collections::TryReserveError;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

use super::bank::PRIORITY_MASK;
use super::flush::take_bit;
use super::lr::{self, ListRegister, MAX_LIST_REGISTERS};
use super::word_set::{CAPACITY, WordSet};
use super::{LPI_HINT, Redistributor, Vgic, VgicHost};
use crate::vdev::memory::GuestMemory;

/// The first LPI.
pub const FIRST_LPI: u32 = 8192;
/// Bits of an INTID of a VM with LPIs (GICD_TYPER.IDbits, GITS_TYPER.ID_bits).
pub const ID_BITS: u32 = 16;
/// The LPIs there are.
const LPIS: usize = (1 << ID_BITS) - FIRST_LPI as usize;
/// Words of pending bits of one vCPU.
const WORDS: usize = LPIS / 64;
/// Words of configuration bytes.
const CONFIG_WORDS: usize = LPIS / 8;
/// Priorities that can be told apart: five bits.
const LEVELS: usize = 32;
/// The sets of each vCPU: its levels, and the unsorted words.
const SETS: usize = LEVELS + 1;
/// Words of pending bits that are looked through before the guest and its interrupts have a turn.
const WORDS_AT_ONCE: usize = 16;
/// Words read from a guest's table at a time.
const CHUNK: usize = 32;

/// GICR_PROPBASER.Physical_Address, bits 51:12.
const PROPBASER_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// GICR_PROPBASER.IDbits: one less than the bits of an INTID.
const PROPBASER_ID_BITS: u64 = 0x1f;
/// GICR_PENDBASER.Physical_Address, bits 51:16.
const PENDBASER_ADDRESS: u64 = 0x000f_ffff_ffff_0000;
/// GICR_PENDBASER.PTZ: the table is all zeros.
pub(super) const PENDBASER_PTZ: u64 = 1 << 62;
/// Inner shareable, inner read-allocate write-back (IHI 0069 §12.11): what both say at reset, as in KVM.
pub(super) const BASER_RESET: u64 = 1 << 10 | 3 << 7;

/// A configuration byte's enable bit (IHI 0069 §5.1.1); its priority is in 7:2, of which five bits count.
const CONFIG_ENABLE: u8 = 1;

const _: () = assert!(WORDS == CAPACITY);

/// In a word of `loaded`: the LPI was withdrawn.
const DROPPED: u32 = 1 << 31;
/// In a word of `loaded`, from here: one more than the vCPU that it was moved to.
const MOVED_SHIFT: u32 = 16;

/// The LPIs of one vCPU, bitmaps apart.
#[derive(Debug)]
struct LpiCpu {
    /// GICR_CTLR.EnableLPIs.
    enabled: AtomicBool,
    pendbaser: AtomicU64,
    /// Levels that may have something.
    levels: AtomicU32,
    /// For each list register the LPI in it, with marks; 0: none.
    loaded: [AtomicU32; MAX_LIST_REGISTERS],
}

/// The LPIs of a VM.
#[derive(Debug)]
pub(super) struct Lpis {
    memory: Arc<dyn GuestMemory>,
    /// GICR_PROPBASER: one for all vCPUs, as in KVM.
    propbaser: AtomicU64,
    config: Box<[AtomicU64]>,
    cpus: Box<[LpiCpu]>,
    /// [`WORDS`] for each vCPU.
    pending: Box<[AtomicU64]>,
    /// [`SETS`] for each vCPU.
    sets: Box<[WordSet]>,
}

fn boxed<T>(count: usize, make: fn() -> T) -> Result<Box<[T]>, TryReserveError> {
    let mut list = Vec::new();
    list.try_reserve_exact(count)?;
    list.resize_with(count, make);
    Ok(list.into_boxed_slice())
}

/// The word and the bit in it of a number.
fn place(index: usize) -> (usize, u64) {
    (index / 64, 1 << (index % 64))
}

/// An LPI's number among the LPIs.
fn index_of(intid: u32) -> Option<usize> {
    intid.checked_sub(FIRST_LPI).map(|index| index as usize).filter(|index| *index < LPIS)
}

impl Lpis {
    /// LPIs for `vcpus`: 56 KiB, and 11 KiB for each vCPU.
    pub(super) fn new(vcpus: usize, memory: Arc<dyn GuestMemory>) -> Result<Self, TryReserveError> {
        let cpu = || LpiCpu {
            enabled: AtomicBool::new(false),
            pendbaser: AtomicU64::new(BASER_RESET),
            levels: AtomicU32::new(0),
            loaded: [const { AtomicU32::new(0) }; MAX_LIST_REGISTERS],
        };
        Ok(Self {
            memory,
            propbaser: AtomicU64::new(BASER_RESET),
            config: boxed(CONFIG_WORDS, || AtomicU64::new(0))?,
            cpus: boxed(vcpus, cpu)?,
            pending: boxed(vcpus * WORDS, || AtomicU64::new(0))?,
            sets: boxed(vcpus * SETS, WordSet::new)?,
        })
    }

    /// Back to the reset state.
    pub(super) fn reset(&self) {
        self.propbaser.store(BASER_RESET, SeqCst);
        self.config.iter().chain(&self.pending).for_each(|word| word.store(0, SeqCst));
        self.sets.iter().for_each(WordSet::clear);
        for cpu in &self.cpus {
            cpu.enabled.store(false, SeqCst);
            cpu.pendbaser.store(BASER_RESET, SeqCst);
            cpu.levels.store(0, SeqCst);
            cpu.loaded.iter().for_each(|word| word.store(0, SeqCst));
        }
    }

    pub(super) fn propbaser(&self) -> &AtomicU64 {
        &self.propbaser
    }

    pub(super) fn pendbaser(&self, vcpu: usize) -> Option<&AtomicU64> {
        self.cpus.get(vcpu).map(|cpu| &cpu.pendbaser)
    }

    pub(super) fn enabled(&self, vcpu: usize) -> bool {
        self.cpus.get(vcpu).is_some_and(|cpu| cpu.enabled.load(SeqCst))
    }

    /// The pending bits of a vCPU.
    fn pending(&self, vcpu: usize) -> &[AtomicU64] {
        self.pending.get(vcpu * WORDS..(vcpu + 1) * WORDS).unwrap_or(&[])
    }

    fn word(&self, vcpu: usize, word: usize) -> Option<&AtomicU64> {
        self.pending(vcpu).get(word)
    }

    fn level(&self, vcpu: usize, level: usize) -> Option<&WordSet> {
        self.sets.get(vcpu * SETS + level)
    }

    /// Words whose pending LPIs may be in no level.
    fn unsorted(&self, vcpu: usize) -> Option<&WordSet> {
        self.level(vcpu, LEVELS)
    }

    /// How many LPIs the guest's tables have room for.
    fn count(&self) -> usize {
        let bits = (self.propbaser.load(SeqCst) & PROPBASER_ID_BITS) + 1;
        1_usize.unbounded_shl(bits as u32).min(1 << ID_BITS).saturating_sub(FIRST_LPI as usize)
    }

    /// The priority of an LPI that is enabled.
    fn priority(&self, index: usize) -> Option<u8> {
        let byte = (self.config.get(index / 8)?.load(SeqCst) >> (index % 8 * 8)) as u8;
        (byte & CONFIG_ENABLE != 0).then_some(byte & PRIORITY_MASK)
    }

    /// Reads the configuration table of the guest, from word `first` on, `count` words. What is not memory, or beyond the
    /// table, reads as zero: disabled.
    fn read_config(&self, first: usize, count: usize) {
        let base = self.propbaser.load(SeqCst) & PROPBASER_ADDRESS;
        let room = self.count() / 8;
        for start in (first..first + count).step_by(CHUNK) {
            let end = (start + CHUNK).min(first + count);
            let mut chunk = [0; CHUNK];
            let inside = end.min(room).saturating_sub(start);
            read_table(&*self.memory, base + 8 * start as u64, chunk.get_mut(..inside).unwrap_or(&mut []));
            for (cached, word) in self.config.iter().skip(start).take(end - start).zip(chunk) {
                cached.store(word, SeqCst);
            }
        }
    }

    /// Makes an LPI pending at `vcpu`; `false` if it was already.
    fn set_pending(&self, vcpu: usize, index: usize) -> bool {
        let (word, bit) = place(index);
        let (Some(pending), Some(unsorted)) = (self.word(vcpu, word), self.unsorted(vcpu)) else { return false };
        let before = pending.fetch_or(bit, SeqCst);
        unsorted.insert(word);
        before & bit == 0
    }

    /// Takes an LPI out of the bitmap of `vcpu`; whether it was there.
    fn take(&self, vcpu: usize, index: usize) -> bool {
        let (word, bit) = place(index);
        self.word(vcpu, word).is_some_and(|pending| pending.fetch_and(!bit, SeqCst) & bit != 0)
    }

    /// Marks the list registers of `vcpu` that hold an LPI for which `concerns` is true; whether there are any.
    fn mark_loaded(&self, vcpu: usize, mark: u32, concerns: impl Fn(u32) -> bool) -> bool {
        let Some(cpu) = self.cpus.get(vcpu) else { return false };
        let mut any = false;
        for word in &cpu.loaded {
            let change = |entry: u32| {
                let intid = entry & 0xffff;
                (intid != 0 && concerns(intid)).then_some(if mark == 0 { entry } else { intid | mark })
            };
            any |= word.fetch_update(SeqCst, SeqCst, change).is_ok();
        }
        any
    }

    /// Sorts the pending LPIs of a word into levels; a bit for each level that has something of it.
    fn sort(&self, vcpu: usize, word: usize) -> u32 {
        let (Some(pending), Some(cpu)) = (self.word(vcpu, word), self.cpus.get(vcpu)) else { return 0 };
        let mut bits = pending.load(SeqCst);
        let mut levels = 0_u32;
        while bits != 0 {
            let index = word * 64 + bits.trailing_zeros() as usize;
            bits &= bits - 1;
            levels |= self.priority(index).map_or(0, |priority| 1 << (priority >> 3));
        }
        let mut rest = levels;
        while let Some(level) = take_bit(&mut rest) {
            if let Some(set) = self.level(vcpu, level as usize) {
                set.insert(word);
            }
        }
        cpu.levels.fetch_or(levels, SeqCst);
        levels
    }

    /// Gives `found` the pending LPIs of `vcpu` that are enabled, the most urgent first, until it has had enough (it returns
    /// `false`). `true` if there may be others that were not looked at yet.
    pub(super) fn most_urgent(&self, vcpu: usize, mut found: impl FnMut(u8, u32) -> bool) -> bool {
        let (Some(cpu), Some(unsorted)) = (self.cpus.get(vcpu), self.unsorted(vcpu)) else { return false };
        if !cpu.enabled.load(SeqCst) {
            return false;
        }
        let mut budget = WORDS_AT_ONCE;
        while budget != 0
            && let Some(word) = unsorted.take()
        {
            self.sort(vcpu, word);
            budget -= 1;
        }
        budget = WORDS_AT_ONCE;
        let mut levels = cpu.levels.load(SeqCst);
        let mut missed = false;
        while let Some(level) = take_bit(&mut levels) {
            let Some(set) = self.level(vcpu, level as usize) else { continue };
            let mut next = 0;
            while let Some(word) = set.next(next) {
                if budget == 0 {
                    return true;
                }
                budget -= 1;
                next = word + 1;
                let pending = self.word(vcpu, word).map_or(0, |pending| pending.load(SeqCst));
                let mut bits = pending;
                let mut here = false;
                while bits != 0 {
                    let index = word * 64 + bits.trailing_zeros() as usize;
                    bits &= bits - 1;
                    if self.priority(index) == Some((level << 3) as u8) {
                        here = true;
                        if !found((level << 3) as u8, FIRST_LPI + index as u32) {
                            return missed || unsorted.next(0).is_some();
                        }
                    }
                }
                if !here {
                    set.remove(word);
                    // Their configuration may have changed without anyone looking here.
                    let elsewhere = if pending == 0 { 0 } else { self.sort(vcpu, word) };
                    levels |= elsewhere & u32::MAX.unbounded_shl(level + 1);
                    missed |= elsewhere & !u32::MAX.unbounded_shl(level) != 0;
                }
            }
            if set.next(0).is_none() {
                cpu.levels.fetch_and(!(1 << level), SeqCst);
            }
        }
        missed || unsorted.next(0).is_some()
    }

    /// Puts an LPI into list register `slot` of `vcpu`: its value, unless it is not pending or not enabled any more.
    fn present(&self, vcpu: usize, slot: usize, intid: u32) -> Option<u64> {
        let word = self.cpus.get(vcpu)?.loaded.get(slot)?;
        let index = index_of(intid)?;
        let priority = self.priority(index)?;
        word.store(intid, SeqCst);
        if !self.take(vcpu, index) {
            word.store(0, SeqCst);
            return None;
        }
        Some(lr::PENDING | lr::GROUP1 | u64::from(priority) << lr::PRIORITY_SHIFT | u64::from(intid))
    }
}

/// Reads a table of the guest; all zeros where it is not memory.
fn read_table(memory: &dyn GuestMemory, address: u64, words: &mut [u64]) {
    if !memory.read(address, words) {
        words.fill(0);
    }
}

impl Vgic {
    /// Gives the VM LPIs, with their tables in `memory`. Before any vCPU runs.
    ///
    /// # Errors
    ///
    /// There is no memory for them: 56 KiB, and 11 KiB for each vCPU.
    pub fn give_lpis(&self, memory: Arc<dyn GuestMemory>) -> Result<(), TryReserveError> {
        self.lpis.try_call_once(|| Lpis::new(self.redistributors.len(), memory))?;
        self.typer.store(super::registers::typer(self.spis.words(), true), SeqCst);
        Ok(())
    }

    /// Whether `intid` is an LPI that the guest's tables have room for.
    pub fn is_lpi(&self, intid: u32) -> bool {
        self.lpis.get().is_some_and(|lpis| index_of(intid).is_some_and(|index| index < lpis.count()))
    }

    /// Makes an LPI pending at `vcpu`; without LPIs enabled there it is lost (IHI 0069 §5.1.2).
    pub fn pend_lpi(&self, vcpu: usize, intid: u32, host: &dyn VgicHost) {
        let (Some(lpis), Some(index)) = (self.lpis.get(), index_of(intid)) else { return };
        if lpis.enabled(vcpu) && lpis.set_pending(vcpu, index) {
            self.notify_lpis(vcpu, host);
        }
    }

    /// Takes an LPI's pending state at `vcpu` back.
    pub fn clear_lpi(&self, vcpu: usize, intid: u32, host: &dyn VgicHost) {
        let (Some(lpis), Some(index)) = (self.lpis.get(), index_of(intid)) else { return };
        lpis.take(vcpu, index);
        if lpis.mark_loaded(vcpu, DROPPED, |loaded| loaded == intid) {
            host.sync(vcpu);
        }
    }

    /// Moves an LPI's pending state from one vCPU to another.
    pub fn move_lpi(&self, from: usize, to: usize, intid: u32, host: &dyn VgicHost) {
        let (Some(lpis), Some(index)) = (self.lpis.get(), index_of(intid)) else { return };
        if from == to || to >= lpis.cpus.len() {
            return;
        }
        if lpis.take(from, index) {
            self.pend_lpi(to, intid, host);
        }
        if lpis.mark_loaded(from, moved_to(to), |loaded| loaded == intid) {
            host.sync(from);
        }
    }

    /// Moves all LPIs that are pending at a vCPU to another.
    pub fn move_all_lpis(&self, from: usize, to: usize, host: &dyn VgicHost) {
        let Some(lpis) = self.lpis.get() else { return };
        let (Some(unsorted), Some(loaded)) = (lpis.unsorted(to), lpis.cpus.get(from)) else { return };
        if from == to {
            return;
        }
        let keep = lpis.enabled(to);
        let mut any = false;
        for (number, (source, target)) in lpis.pending(from).iter().zip(lpis.pending(to)).enumerate() {
            if source.load(SeqCst) != 0 {
                let bits = source.swap(0, SeqCst);
                if keep {
                    target.fetch_or(bits, SeqCst);
                    unsorted.insert(number);
                    any = true;
                }
            }
        }
        if loaded.loaded.iter().any(|word| word.load(SeqCst) != 0) && lpis.mark_loaded(from, moved_to(to), |_| true) {
            host.sync(from);
        }
        if any {
            self.notify_lpis(to, host);
        }
    }

    /// Reads the configuration of an LPI anew (INV, GICR_INVLPIR).
    pub fn invalidate_lpi(&self, intid: u32, host: &dyn VgicHost) {
        let (Some(lpis), Some(index)) = (self.lpis.get(), index_of(intid)) else { return };
        lpis.read_config(index / 8, 1);
        let (word, bit) = place(index);
        for vcpu in 0..lpis.cpus.len() {
            if lpis.word(vcpu, word).is_some_and(|pending| pending.load(SeqCst) & bit != 0)
                && let Some(unsorted) = lpis.unsorted(vcpu)
            {
                unsorted.insert(word);
                self.notify_lpis(vcpu, host);
            }
            if lpis.mark_loaded(vcpu, 0, |loaded| loaded == intid) {
                host.sync(vcpu);
            }
        }
    }

    /// Reads the configuration of all LPIs anew, for those that are pending at `vcpu` (INVALL, GICR_INVALLR).
    pub fn invalidate_all_lpis(&self, vcpu: usize, host: &dyn VgicHost) {
        let Some(lpis) = self.lpis.get() else { return };
        lpis.read_config(0, CONFIG_WORDS);
        self.resort_lpis(lpis, vcpu, host);
        if lpis.mark_loaded(vcpu, 0, |_| true) {
            host.sync(vcpu);
        }
    }

    fn resort_lpis(&self, lpis: &Lpis, vcpu: usize, host: &dyn VgicHost) {
        let Some(unsorted) = lpis.unsorted(vcpu) else { return };
        for (number, word) in lpis.pending(vcpu).iter().enumerate() {
            if word.load(SeqCst) != 0 {
                unsorted.insert(number);
            }
        }
        self.notify_lpis(vcpu, host);
    }

    /// Writes GICR_CTLR.EnableLPIs of a vCPU. Enabling reads both tables of the guest; disabling forgets what is pending.
    pub(super) fn enable_lpis(&self, vcpu: usize, enable: bool, host: &dyn VgicHost) {
        let Some((lpis, cpu)) = self.lpis.get().and_then(|lpis| Some((lpis, lpis.cpus.get(vcpu)?))) else { return };
        if cpu.enabled.load(SeqCst) == enable {
            return;
        }
        if !enable {
            cpu.enabled.store(false, SeqCst);
            lpis.pending(vcpu).iter().for_each(|word| word.store(0, SeqCst));
            if lpis.mark_loaded(vcpu, DROPPED, |_| true) {
                host.sync(vcpu);
            }
            return;
        }
        let pendbaser = cpu.pendbaser.load(SeqCst);
        let words = if pendbaser & PENDBASER_PTZ != 0 { 0 } else { lpis.count() / 64 };
        let base = (pendbaser & PENDBASER_ADDRESS) + u64::from(FIRST_LPI / 8);
        for (start, part) in lpis.pending(vcpu).chunks(CHUNK).enumerate() {
            let mut chunk = [0; CHUNK];
            let inside = words.saturating_sub(start * CHUNK).min(CHUNK);
            let address = base + 8 * (start * CHUNK) as u64;
            read_table(&*lpis.memory, address, chunk.get_mut(..inside).unwrap_or(&mut []));
            part.iter().zip(chunk).for_each(|(pending, word)| pending.store(word, SeqCst));
        }
        lpis.read_config(0, CONFIG_WORDS);
        cpu.enabled.store(true, SeqCst);
        self.resort_lpis(lpis, vcpu, host);
    }

    /// Writes the pending LPIs of every vCPU that has LPIs enabled into the guest's tables
    /// (KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES). No vCPU may be resident. `false` if a table is not memory.
    pub fn save_pending_lpis(&self) -> bool {
        let Some(lpis) = self.lpis.get() else { return true };
        let words = lpis.count() / 64;
        let saved = |(vcpu, cpu): (usize, &LpiCpu)| {
            let base = (cpu.pendbaser.load(SeqCst) & PENDBASER_ADDRESS) + u64::from(FIRST_LPI / 8);
            let pending = lpis.pending(vcpu).iter().take(words).enumerate();
            let mut words = pending.map(|(number, word)| (base + 8 * number as u64, word.load(SeqCst)));
            !cpu.enabled.load(SeqCst) || words.all(|(address, word)| lpis.memory.write(address, &[word]))
        };
        lpis.cpus.iter().enumerate().all(saved)
    }

    /// Whether an LPI is pending at `vcpu`, list registers apart.
    #[cfg(test)]
    pub(crate) fn lpi_is_pending(&self, vcpu: usize, intid: u32) -> bool {
        let (word, bit) = place(index_of(intid).unwrap());
        self.lpis.get().unwrap().word(vcpu, word).unwrap().load(SeqCst) & bit != 0
    }

    fn notify_lpis(&self, vcpu: usize, host: &dyn VgicHost) {
        if let Some(redistributor) = self.redistributors.get(vcpu) {
            redistributor.spi_hint.fetch_or(LPI_HINT, SeqCst);
            self.notify(vcpu, host);
        }
    }

    /// The value for list register `slot` of `vcpu`, if the LPI is still to be delivered.
    pub(super) fn present_lpi(&self, vcpu: usize, slot: usize, intid: u32) -> Option<u64> {
        self.lpis.get()?.present(vcpu, slot, intid)
    }

    /// List register `slot` of `vcpu` held an LPI and has been read back.
    pub(super) fn fold_lpi(
        &self,
        vcpu: usize,
        own: &Redistributor,
        slot: usize,
        lr: ListRegister,
        host: &dyn VgicHost,
    ) {
        let Some(lpis) = self.lpis.get() else { return };
        let Some(word) = lpis.cpus.get(vcpu).and_then(|cpu| cpu.loaded.get(slot)) else { return };
        let entry = word.swap(0, SeqCst);
        // Others may be waiting for a list register.
        own.spi_hint.fetch_or(LPI_HINT, SeqCst);
        let Some(index) = index_of(lr.intid()).filter(|_| lr.pending() && entry & DROPPED == 0) else { return };
        match (entry >> MOVED_SHIFT) as usize {
            0 => {
                lpis.set_pending(vcpu, index);
            }
            target => self.pend_lpi(target - 1, lr.intid(), host),
        }
    }
}

/// The mark of an LPI that was moved to a vCPU.
fn moved_to(vcpu: usize) -> u32 {
    (vcpu as u32 + 1) << MOVED_SHIFT
}
