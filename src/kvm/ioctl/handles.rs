//! Handles: what file descriptors are to a Linux process that uses KVM.
//!
//! A caller's handles are small numbers, given lowest first. [`SYSTEM`] is always there and is never given back. How many
//! there can be is bounded, so that a caller cannot use up keel's memory by opening. Each has a lock of its own: CPUs that
//! use different ones do not meet.

use super::super::Errno;
use alloc::{boxed::Box, vec::Vec};
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use spin::Mutex;

/// The handle of the system object.
pub const SYSTEM: u64 = 0;
/// The most handles at a time, the system's among them: 64 VMs with 64 vCPUs and some devices each.
pub const MAX_HANDLES: usize = 4608;

/// The handles of one caller.
#[derive(Debug)]
pub struct Handles<T> {
    places: Box<[Mutex<Option<T>>]>,
    /// All places before this one are taken. Who opens or closes has it.
    free: Mutex<usize>,
    count: AtomicUsize,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        let places = (1..MAX_HANDLES).map(|_| Mutex::new(None)).collect();
        Self { places, free: Mutex::new(0), count: AtomicUsize::new(0) }
    }
}

impl<T> Handles<T> {
    /// Gives `object` the lowest handle that is free.
    ///
    /// # Errors
    ///
    /// `EMFILE` when there are too many.
    pub fn open(&self, object: T) -> Result<u64, Errno> {
        let mut free = self.free.lock();
        for (n, place) in self.places.iter().enumerate().skip(*free) {
            let mut place = place.lock();
            if place.is_none() {
                *place = Some(object);
                *free = n + 1;
                self.count.fetch_add(1, SeqCst);
                return Ok(n as u64 + 1);
            }
        }
        *free = self.places.len();
        Err(Errno::EMFILE)
    }

    /// What `see` makes of what a handle stands for; `None` if that is nothing. `SYSTEM` is not among them.
    #[inline(always)]
    pub fn look<R>(&self, handle: u64, see: impl FnOnce(&T) -> R) -> Option<R> {
        self.places.get(handle.wrapping_sub(1) as usize)?.lock().as_ref().map(see)
    }

    /// Gives a handle back, with what it stood for, which is dropped by the caller when no lock is held.
    ///
    /// # Errors
    ///
    /// `EBADF` if it is none.
    pub fn close(&self, handle: u64) -> Result<T, Errno> {
        let n = handle.wrapping_sub(1) as usize;
        let mut free = self.free.lock();
        let object = self.places.get(n).and_then(|place| place.lock().take()).ok_or(Errno::EBADF)?;
        *free = n.min(*free);
        self.count.fetch_sub(1, SeqCst);
        Ok(object)
    }

    /// Gives all handles back.
    pub fn close_all(&self) -> Vec<T> {
        let handles = 1..=self.places.len() as u64;
        handles.take_while(|_| !self.is_empty()).filter_map(|handle| self.close(handle).ok()).collect()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.count.load(SeqCst) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn bounded() {
        let handles = Handles::default();
        for n in 1..MAX_HANDLES as u64 {
            assert_eq!(handles.open(n), Ok(n));
        }
        assert_eq!(handles.open(0), Err(Errno::EMFILE));
        assert_eq!(handles.close(7), Ok(7));
        assert_eq!(handles.open(8), Ok(7));
    }

    #[test]
    fn bad_handles() {
        let handles = Handles::default();
        handles.open('a').unwrap();
        for handle in [0, 2, u64::MAX, 1 << 32, 1 << 63] {
            assert_eq!((handles.look(handle, |&object| object), handles.close(handle)), (None, Err(Errno::EBADF)));
        }
        assert_eq!((handles.close(1), handles.close(1)), (Ok('a'), Err(Errno::EBADF)));
    }

    proptest! {
        /// Against a map: the lowest free number, nothing lost, nothing twice.
        #[test]
        fn as_a_map(steps in prop::collection::vec((any::<bool>(), 0_u64..20), 0..200)) {
            let handles = Handles::default();
            let mut model = BTreeMap::new();
            for (n, (open, handle)) in steps.into_iter().enumerate() {
                if open {
                    let lowest = (1..).find(|number| !model.contains_key(number)).unwrap();
                    prop_assert_eq!(handles.open(n), Ok(lowest));
                    model.insert(lowest, n);
                } else {
                    prop_assert_eq!(handles.close(handle), model.remove(&handle).ok_or(Errno::EBADF));
                }
                prop_assert_eq!(handles.is_empty(), model.is_empty());
                for handle in 0..24 {
                    prop_assert_eq!(handles.look(handle, |&object| object), model.get(&handle).copied());
                }
            }
        }
    }
}
