//! A handle, closed with whoever has it.

use crate::{Backend, Errno, errno, number};

/// An open handle.
#[derive(Debug)]
pub struct Handle<B: Backend> {
    backend: B,
    number: u64,
}

impl<B: Backend> Handle<B> {
    pub(crate) fn new(backend: B, number: u64) -> Self {
        Self { backend, number }
    }

    /// Its number.
    pub fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn backend(&self) -> &B {
        &self.backend
    }

    /// A call with a number as its argument.
    pub(crate) fn call(&self, number: u32, argument: u64) -> Result<u64, Errno> {
        errno::result(self.backend.call(self.number, number, argument))
    }

    /// A call whose argument is read.
    pub(crate) fn write<T>(&self, number: u32, argument: &T) -> Result<u64, Errno> {
        self.call(number, address(argument))
    }

    /// A call whose argument is written, or read and written.
    pub(crate) fn read<T>(&self, number: u32, argument: &mut T) -> Result<u64, Errno> {
        self.call(number, address_mut(argument))
    }
}

impl<B: Backend> Drop for Handle<B> {
    fn drop(&mut self) {
        // An open handle can be closed; if the hypervisor does not think so, there is nobody to tell.
        self.backend.call(self.number, number::CLOSE, 0);
    }
}

/// The address of what a call reads.
pub(crate) fn address<T: ?Sized>(value: &T) -> u64 {
    core::ptr::from_ref(value).cast::<u8>().expose_provenance() as u64
}

/// The address of what a call writes.
pub(crate) fn address_mut<T: ?Sized>(value: &mut T) -> u64 {
    core::ptr::from_mut(value).cast::<u8>().expose_provenance() as u64
}
