//! A machine's memory: anonymous pages of this process, zero at first.
//!
//! The kernel in the machine writes them whenever it likes, so no Rust reference to them ever exists: they are
//! written through raw pointers, before the machine runs.

use anyhow::{Context, Result};
use keel::mm::Ipa;
use keel::vmm::error::OutsideRam;
use keel::vmm::load::GuestMemory;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// Memory of the machine from one address on. Never unmapped: it lives as long as the VM, which is as long as the
/// process.
pub(crate) struct Memory {
    base: u64,
    size: u64,
    pages: *mut u8,
}

impl Memory {
    /// `size` bytes at `base`, both multiples of a page, as slot `slot` of `vm`.
    pub(crate) fn new(vm: &VmFd, slot: u32, base: u64, size: u64) -> Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing memory.
        let pages = unsafe { mmap_anonymous(std::ptr::null_mut(), size as usize, protection, MapFlags::PRIVATE) }
            .with_context(|| format!("no {size:#x} bytes of memory"))?;
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: base,
            memory_size: size,
            userspace_addr: pages as u64,
        };
        // SAFETY: the region is the mapping just made, which is never unmapped and to which no reference is made.
        unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
        Ok(Self { base, size, pages: pages.cast() })
    }

    /// Where `size` bytes at `address` are in this process.
    fn place(&self, address: Ipa, size: u64) -> Result<*mut u8, OutsideRam> {
        let offset = address.0.checked_sub(self.base);
        let inside = offset.filter(|offset| offset.checked_add(size).is_some_and(|end| end <= self.size));
        // The offset is within the mapping, so the pointer is too.
        inside.map(|offset| self.pages.wrapping_add(offset as usize)).ok_or(OutsideRam { address, size })
    }
}

impl GuestMemory for Memory {
    fn write(&mut self, address: Ipa, bytes: &[u8]) -> Result<(), OutsideRam> {
        let to = self.place(address, bytes.len() as u64)?;
        // SAFETY: `place` has checked that all bytes lie in the mapping, which `bytes` cannot overlap: no reference
        // to it exists. No vCPU runs yet.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    fn zero(&mut self, address: Ipa, size: u64) -> Result<(), OutsideRam> {
        let to = self.place(address, size)?;
        // SAFETY: as in `write`.
        unsafe { std::ptr::write_bytes(to, 0, size as usize) };
        Ok(())
    }
}
