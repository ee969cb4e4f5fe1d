//! KVM_SET_USER_MEMORY_REGION as bookkeeping: which slots a VM has, and what a request does to them.
//!
//! Checks and their order are KVM's (Linux 6.12, Documentation/virt/kvm/api.rst, 4.35); nothing is mapped here. A request is
//! planned first, then carried out by who has the tables, then committed, so that a failure changes nothing.

use super::Errno;
use crate::mm::addr::PAGE_SIZE;
use alloc::vec::Vec;
use core::ops::Range;

/// Slots that a VM may have (KVM_CAP_NR_MEMSLOTS).
pub const MAX_SLOTS: u32 = 32767;
/// KVM_MEM_LOG_DIRTY_PAGES.
pub const LOG_DIRTY_PAGES: u32 = 1 << 0;
/// KVM_MEM_READONLY.
pub const READONLY: u32 = 1 << 1;

/// The most pages in a slot (KVM_MEM_MAX_NR_PAGES).
const MAX_PAGES: u64 = (1 << 31) - 1;

/// `struct kvm_userspace_memory_region`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryRegion {
    /// Bits 15:0 the slot, 31:16 the address space, of which there is one.
    pub slot: u32,
    /// [`LOG_DIRTY_PAGES`], [`READONLY`].
    pub flags: u32,
    /// Where the guest has it.
    pub guest_phys_addr: u64,
    /// Bytes; 0 deletes the slot.
    pub memory_size: u64,
    /// Where the caller has it.
    pub userspace_addr: u64,
}

/// What a request comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    Nothing,
    /// A new slot.
    Create(MemoryRegion),
    /// This slot goes.
    Delete(MemoryRegion),
    /// A slot gets another guest address, and perhaps other flags.
    Move(MemoryRegion, MemoryRegion),
    /// A slot gets other flags.
    Flags(MemoryRegion, MemoryRegion),
}

/// The slots of a VM.
#[derive(Clone, Debug, Default)]
pub struct UserSlots(Vec<MemoryRegion>);

impl MemoryRegion {
    fn id(&self) -> u32 {
        self.slot & 0xffff
    }

    /// Its guest addresses.
    pub fn guest(&self) -> Range<u64> {
        self.guest_phys_addr..self.guest_phys_addr.saturating_add(self.memory_size)
    }
}

impl UserSlots {
    /// What `request` would do, on a VM with `ipa_bits`, for a caller whose addresses have `user_bits`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for what makes no sense, `EEXIST` for an overlap with another slot, `EFAULT` beyond the IPA space.
    pub fn plan(&self, request: &MemoryRegion, ipa_bits: u32, user_bits: u32) -> Result<Change, Errno> {
        let aligned = |value: u64| value.is_multiple_of(PAGE_SIZE);
        let user_end = request.userspace_addr.checked_add(request.memory_size);
        if request.flags & !(LOG_DIRTY_PAGES | READONLY) != 0
            || request.id() >= MAX_SLOTS
            || !aligned(request.memory_size)
            || !aligned(request.guest_phys_addr)
            || !aligned(request.userspace_addr)
            || user_end.is_none_or(|end| end > 1 << user_bits)
            || request.slot >> 16 != 0
        {
            return Err(Errno::EINVAL);
        }
        let end = request.guest_phys_addr.checked_add(request.memory_size).ok_or(Errno::EINVAL)?;
        if request.memory_size / PAGE_SIZE > MAX_PAGES {
            return Err(Errno::EINVAL);
        }
        let old = self.find(request.id());
        if request.memory_size == 0 {
            return old.map(|old| Change::Delete(*old)).ok_or(Errno::EINVAL);
        }
        let change = match old {
            None => Change::Create(*request),
            Some(old)
                if old.userspace_addr != request.userspace_addr
                    || old.memory_size != request.memory_size
                    || (old.flags ^ request.flags) & READONLY != 0 =>
            {
                return Err(Errno::EINVAL);
            }
            Some(old) if old.guest_phys_addr != request.guest_phys_addr => Change::Move(*old, *request),
            Some(old) if old.flags != request.flags => Change::Flags(*old, *request),
            Some(_) => return Ok(Change::Nothing),
        };
        let overlaps = |other: &MemoryRegion| {
            other.id() != request.id() && other.guest().start < end && request.guest_phys_addr < other.guest().end
        };
        if matches!(change, Change::Create(_) | Change::Move(..)) && self.0.iter().any(overlaps) {
            return Err(Errno::EEXIST);
        }
        if end > 1 << ipa_bits {
            return Err(Errno::EFAULT);
        }
        Ok(change)
    }

    /// Takes note of what was done.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, and nothing noted: only for a new slot.
    pub fn commit(&mut self, change: Change) -> Result<(), Errno> {
        match change {
            Change::Nothing => {}
            Change::Create(region) => {
                self.0.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
                self.0.push(region);
            }
            Change::Delete(old) => self.0.retain(|slot| slot.id() != old.id()),
            Change::Move(_, new) | Change::Flags(_, new) => {
                if let Some(slot) = self.0.iter_mut().find(|slot| slot.id() == new.id()) {
                    *slot = new;
                }
            }
        }
        Ok(())
    }

    /// The slot with this number.
    pub fn find(&self, id: u32) -> Option<&MemoryRegion> {
        self.0.iter().find(|slot| slot.id() == id)
    }

    /// The slot that has this guest address.
    pub fn containing(&self, ipa: u64) -> Option<&MemoryRegion> {
        self.0.iter().find(|slot| slot.guest().contains(&ipa))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REGION: MemoryRegion = MemoryRegion {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0x4000_0000,
        memory_size: 0x20_0000,
        userspace_addr: 0x8000_0000,
    };

    fn slots() -> UserSlots {
        let mut slots = UserSlots::default();
        slots.commit(slots.plan(&REGION, 40, 48).unwrap()).unwrap();
        slots
    }

    #[test]
    fn bad_requests() {
        let bad = [
            (MemoryRegion { flags: 4, ..REGION }, Errno::EINVAL),
            (MemoryRegion { slot: 32767, ..REGION }, Errno::EINVAL),
            (MemoryRegion { slot: 1 << 16, ..REGION }, Errno::EINVAL),
            (MemoryRegion { memory_size: 0x1001, ..REGION }, Errno::EINVAL),
            (MemoryRegion { guest_phys_addr: 0x800, ..REGION }, Errno::EINVAL),
            (MemoryRegion { userspace_addr: 0x10, ..REGION }, Errno::EINVAL),
            (MemoryRegion { userspace_addr: 1 << 48, ..REGION }, Errno::EINVAL),
            (MemoryRegion { guest_phys_addr: !0xfff, slot: 1, ..REGION }, Errno::EINVAL),
            (MemoryRegion { memory_size: 1 << 43, ..REGION }, Errno::EINVAL),
            (MemoryRegion { slot: 1, memory_size: 0, ..REGION }, Errno::EINVAL),
            (MemoryRegion { memory_size: 0x1000, ..REGION }, Errno::EINVAL),
            (MemoryRegion { userspace_addr: 0, ..REGION }, Errno::EINVAL),
            (MemoryRegion { flags: READONLY, ..REGION }, Errno::EINVAL),
            (MemoryRegion { slot: 1, ..REGION }, Errno::EEXIST),
            (MemoryRegion { slot: 1, guest_phys_addr: 0x401f_f000, ..REGION }, Errno::EEXIST),
            (MemoryRegion { slot: 1, guest_phys_addr: (1 << 40) - 0x1000, ..REGION }, Errno::EFAULT),
            (MemoryRegion { guest_phys_addr: 1 << 40, ..REGION }, Errno::EFAULT),
        ];
        for (request, errno) in bad {
            assert_eq!(slots().plan(&request, 40, 48), Err(errno), "{request:x?}");
        }
    }

    #[test]
    fn changes() {
        let logged = MemoryRegion { flags: LOG_DIRTY_PAGES, ..REGION };
        let moved = MemoryRegion { guest_phys_addr: 0x4010_0000, ..REGION };
        let slots = slots();
        assert_eq!(slots.plan(&REGION, 40, 48), Ok(Change::Nothing));
        assert_eq!(slots.plan(&logged, 40, 48), Ok(Change::Flags(REGION, logged)));
        assert_eq!(slots.plan(&moved, 40, 48), Ok(Change::Move(REGION, moved)));
        assert_eq!(slots.plan(&MemoryRegion { memory_size: 0, ..REGION }, 40, 48), Ok(Change::Delete(REGION)));
    }

    proptest! {
        /// Whatever is asked for, slots never overlap and never leave the IPA space.
        #[test]
        fn slots_are_apart(requests in prop::collection::vec((0_u32..4, 0_u32..4, 0_u64..24, 0_u64..8, 0_u64..3), 0..100)) {
            let mut slots = UserSlots::default();
            for (slot, flags, page, pages, user) in requests {
                let request = MemoryRegion {
                    slot,
                    flags,
                    guest_phys_addr: (1 << 32) - (20 << 12) + (page << 12),
                    memory_size: pages << 12,
                    userspace_addr: user << 16,
                };
                if let Ok(change) = slots.plan(&request, 32, 48) {
                    slots.commit(change).unwrap();
                    if pages > 0 {
                        prop_assert_eq!(slots.find(slot), Some(&request));
                        prop_assert_eq!(slots.containing(request.guest_phys_addr), Some(&request));
                    } else {
                        prop_assert_eq!(slots.find(slot), None);
                    }
                }
                for (n, one) in slots.0.iter().enumerate() {
                    prop_assert!(one.guest().end <= 1 << 32);
                    for other in &slots.0[n + 1..] {
                        prop_assert!(one.guest().end <= other.guest().start || other.guest().end <= one.guest().start);
                    }
                }
            }
        }
    }
}
