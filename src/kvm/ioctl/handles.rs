//! Handles: what file descriptors are to a Linux process that uses KVM.
//!
//! A caller's handles are small numbers, given lowest first. [`SYSTEM`] is always there and is never given back. How many
//! there can be is bounded, so that a caller cannot use up keel's memory by opening.

use super::super::Errno;
use alloc::vec::Vec;

/// The handle of the system object.
pub const SYSTEM: u64 = 0;
/// The most handles at a time, the system's among them: 64 VMs with 64 vCPUs and some devices each.
pub const MAX_HANDLES: usize = 4608;

/// The handles of one caller.
#[derive(Debug)]
pub struct Handles<T>(Vec<Option<T>>);

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Clone> Handles<T> {
    /// Gives `object` the lowest handle that is free.
    ///
    /// # Errors
    ///
    /// `EMFILE` when there are too many; `ENOMEM`.
    pub fn open(&mut self, object: T) -> Result<u64, Errno> {
        let free = self.0.iter().position(Option::is_none);
        let place = match free {
            Some(place) => place,
            None if self.0.len() + 1 >= MAX_HANDLES => return Err(Errno::EMFILE),
            None => {
                self.0.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
                self.0.push(None);
                self.0.len() - 1
            }
        };
        self.0[place] = Some(object);
        Ok(place as u64 + 1)
    }

    /// What a handle stands for; `SYSTEM` is not among them.
    ///
    /// # Errors
    ///
    /// `EBADF` if it is none.
    pub fn get(&self, handle: u64) -> Result<T, Errno> {
        let place = handle.checked_sub(1).and_then(|place| usize::try_from(place).ok());
        place.and_then(|place| self.0.get(place)?.clone()).ok_or(Errno::EBADF)
    }

    /// Gives a handle back, with what it stood for, which is dropped by the caller when no lock is held.
    ///
    /// # Errors
    ///
    /// `EBADF` if it is none.
    pub fn close(&mut self, handle: u64) -> Result<T, Errno> {
        let place = handle.checked_sub(1).and_then(|place| usize::try_from(place).ok());
        let object = place.and_then(|place| self.0.get_mut(place)?.take()).ok_or(Errno::EBADF)?;
        while self.0.pop_if(|last| last.is_none()).is_some() {}
        if self.0.is_empty() {
            self.0 = Vec::new();
        }
        Ok(object)
    }

    /// Gives all handles back.
    pub fn close_all(&mut self) -> Vec<T> {
        self.0.drain(..).flatten().collect()
    }

    /// What all handles stand for.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn bounded() {
        let mut handles = Handles::default();
        for n in 1..MAX_HANDLES as u64 {
            assert_eq!(handles.open(n), Ok(n));
        }
        assert_eq!(handles.open(0), Err(Errno::EMFILE));
        assert_eq!(handles.close(7), Ok(7));
        assert_eq!(handles.open(8), Ok(7));
    }

    #[test]
    fn bad_handles() {
        let mut handles = Handles::default();
        handles.open('a').unwrap();
        for handle in [0, 2, u64::MAX, 1 << 32, 1 << 63] {
            assert_eq!((handles.get(handle), handles.close(handle)), (Err(Errno::EBADF), Err(Errno::EBADF)));
        }
        assert_eq!((handles.close(1), handles.close(1)), (Ok('a'), Err(Errno::EBADF)));
    }

    proptest! {
        /// Against a map: the lowest free number, nothing lost, nothing twice.
        #[test]
        fn as_a_map(steps in prop::collection::vec((any::<bool>(), 0_u64..20), 0..200)) {
            let mut handles = Handles::default();
            let mut model = BTreeMap::new();
            for (n, (open, handle)) in steps.into_iter().enumerate() {
                if open {
                    let lowest = (1..).find(|number| !model.contains_key(number)).unwrap();
                    prop_assert_eq!(handles.open(n), Ok(lowest));
                    model.insert(lowest, n);
                } else {
                    prop_assert_eq!(handles.close(handle), model.remove(&handle).ok_or(Errno::EBADF));
                }
                prop_assert_eq!(handles.iter().count(), model.len());
                for handle in 0..24 {
                    prop_assert_eq!(handles.get(handle), model.get(&handle).copied().ok_or(Errno::EBADF));
                }
            }
        }
    }
}
