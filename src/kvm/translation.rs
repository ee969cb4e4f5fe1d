//! A VM's stage 2 while its vCPUs run: who changes it, and who meets a change.
//!
//! An entry that is to describe another block or table is invalid for a moment (break-before-make, Arm ARM D8.16.1), and a
//! vCPU on another CPU that walks there meanwhile takes a translation fault for memory that it has. So changes are counted,
//! odd while one is being made, before anything is changed. A vCPU whose fault could be such a one looks again, behind the
//! lock; one that saw the same number before need not.

use super::vm::AllGuests;
use crate::mm::{
    Ipa,
    frame::TableMemory,
    stage2::{Stage2, Tlb},
};
use core::{
    ops::{Deref, DerefMut},
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};
use spin::{Mutex, MutexGuard};

/// The stage 2 of one VM.
#[derive(Debug)]
pub(super) struct Translation {
    tables: Mutex<Stage2<TableMemory>>,
    changes: AtomicU64,
}

/// Changes of a vCPU's VM that it knows of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeenChanges(u64);

/// The tables, for somebody who changes them.
pub(super) struct Change<'a> {
    tables: MutexGuard<'a, Stage2<TableMemory>>,
    changes: &'a AtomicU64,
}

impl Translation {
    pub(super) fn new(tables: Stage2<TableMemory>) -> Self {
        Self { tables: Mutex::new(tables), changes: AtomicU64::new(0) }
    }

    /// To read them.
    pub(super) fn look(&self) -> MutexGuard<'_, Stage2<TableMemory>> {
        self.tables.lock()
    }

    /// To change them.
    pub(super) fn change(&self) -> Change<'_> {
        let tables = self.tables.lock();
        self.changes.fetch_add(1, SeqCst);
        // Whoever meets an entry that is written after this has to find the number.
        AllGuests.publish();
        Change { tables, changes: &self.changes }
    }

    /// Whether a vCPU may have met a change.
    #[inline(always)]
    pub(super) fn may_be_back(&self, seen: SeenChanges) -> bool {
        self.changes.load(SeqCst) != seen.0
    }

    /// Whether a vCPU that had a translation fault at `ipa` may have met a change, and something is mapped there.
    #[cold]
    #[inline(never)]
    pub(super) fn is_back(&self, seen: &mut SeenChanges, ipa: Ipa) -> bool {
        if !self.may_be_back(*seen) {
            return false;
        }
        let tables = self.tables.lock();
        *seen = SeenChanges(self.changes.load(SeqCst));
        tables.translate(ipa).is_some()
    }
}

impl Deref for Change<'_> {
    type Target = Stage2<TableMemory>;

    fn deref(&self) -> &Self::Target {
        &self.tables
    }
}

impl DerefMut for Change<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.tables
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        // The lock is given back after this.
        self.changes.fetch_add(1, SeqCst);
    }
}
