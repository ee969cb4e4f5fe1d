//! The tables of the ITS in the guest's memory.
//!
//! Entries are 64 bits, in the format that KVM saves (Linux, Documentation/virt/kvm/devices/arm-vgic-its.rst, revision 0),
//! but for the distances to the next entry, which a table that is looked up needs none of. Device and collection entries
//! are found by their number, so the collection table is no list as KVM's is.

use super::Its;
use super::registers::{BASER_INDIRECT, BASER_VALID, DEVICE_BITS, ENTRY_BYTES, PAGE_BYTES, table_address, table_bytes};
use core::sync::atomic::Ordering::SeqCst;

/// Valid, of an entry of a device table's first level, a device or a collection.
const VALID: u64 = 1 << 63;
/// Address of a second level's page, in an entry of the first level.
const LEVEL_2: u64 = 0x000f_ffff_ffff_0000;
/// ITT address bits 51:8 of a device, from this bit.
const ITT_SHIFT: u32 = 5;
/// ITT address bits 51:8, in place.
pub(super) const ITT_ADDRESS: u64 = 0x000f_ffff_ffff_ff00;
/// One less than the bits of a device's EventIDs.
const DEVICE_SIZE: u64 = 0x1f;
/// The vCPU of a collection, from this bit.
const TARGET_SHIFT: u32 = 16;
/// INTID of an event, from this bit.
const INTID_SHIFT: u32 = 16;

/// What the device table says about a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Device {
    /// Address of its interrupt translation table.
    pub itt: u64,
    /// Bits of its EventIDs, 1 to 32.
    pub event_bits: u32,
}

impl Device {
    /// Where the entry of an event is, if it may have that one.
    fn event(&self, event: u32) -> Option<u64> {
        let inside = u64::from(event) < 1 << self.event_bits;
        inside.then(|| self.itt + u64::from(event) * ENTRY_BYTES)
    }
}

/// What an interrupt translation table says about an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub intid: u32,
    pub collection: u16,
}

impl Its {
    /// Where the entry of device `id` is; `None` if the table has no room for it.
    fn device_entry(&self, id: u32) -> Option<u64> {
        let baser = self.basers[0].load(SeqCst);
        let inside = baser & BASER_VALID != 0 && id < 1 << DEVICE_BITS;
        inside.then_some(())?;
        self.entry(baser, id)
    }

    fn collection_entry(&self, id: u16) -> Option<u64> {
        let baser = self.basers[1].load(SeqCst);
        (baser & BASER_VALID != 0).then_some(())?;
        self.entry(baser, id.into())
    }

    fn entry(&self, baser: u64, id: u32) -> Option<u64> {
        let id = u64::from(id);
        let (base, room) = (table_address(baser), table_bytes(baser) / ENTRY_BYTES);
        if baser & BASER_INDIRECT == 0 {
            return (id < room).then_some(base + id * ENTRY_BYTES);
        }
        let entries = PAGE_BYTES / ENTRY_BYTES;
        let page = (id / entries < room).then_some(base + id / entries * 8)?;
        let page = self.memory.word(page).filter(|entry| entry & VALID != 0)? & LEVEL_2;
        Some(page + id % entries * ENTRY_BYTES)
    }

    /// The device with this DeviceID, if it is mapped.
    pub(super) fn device(&self, id: u32) -> Option<Device> {
        let entry = self.memory.word(self.device_entry(id)?).filter(|entry| entry & VALID != 0)?;
        let itt = entry << (8 - ITT_SHIFT) & ITT_ADDRESS;
        Some(Device { itt, event_bits: (entry & DEVICE_SIZE) as u32 + 1 })
    }

    /// Maps or unmaps a device; `None` if the table has no room for it.
    pub(super) fn set_device(&self, id: u32, device: Option<Device>) -> Option<()> {
        let address = self.device_entry(id)?;
        let entry = device
            .map_or(0, |device| VALID | device.itt >> (8 - ITT_SHIFT) | u64::from(device.event_bits - 1) & DEVICE_SIZE);
        self.memory.write(address, &[entry]).then_some(())
    }

    /// The vCPU that a collection is at, if it is mapped. Any number.
    pub(super) fn collection(&self, id: u16) -> Option<usize> {
        let entry = self.memory.word(self.collection_entry(id)?).filter(|entry| entry & VALID != 0)?;
        Some((entry >> TARGET_SHIFT) as usize & 0xffff_ffff)
    }

    /// Maps or unmaps a collection; `None` if the table has no room for it.
    pub(super) fn set_collection(&self, id: u16, vcpu: Option<usize>) -> Option<()> {
        let address = self.collection_entry(id)?;
        let entry = vcpu.map_or(0, |vcpu| VALID | (vcpu as u64) << TARGET_SHIFT | u64::from(id));
        self.memory.write(address, &[entry]).then_some(())
    }

    /// Whether the table has room for a collection.
    pub(super) fn has_room_for_collection(&self, id: u16) -> bool {
        self.collection_entry(id).is_some_and(|address| self.memory.word(address).is_some())
    }

    /// What an event of a device is mapped to.
    pub(super) fn event(&self, device: &Device, event: u32) -> Option<Event> {
        let entry = self.memory.word(device.event(event)?)?;
        let intid = (entry >> INTID_SHIFT) as u32;
        (intid != 0).then_some(Event { intid, collection: entry as u16 })
    }

    /// Maps or unmaps an event; `None` if the device cannot have that one.
    pub(super) fn set_event(&self, device: &Device, event: u32, to: Option<Event>) -> Option<()> {
        let entry = to.map_or(0, |to| u64::from(to.intid) << INTID_SHIFT | u64::from(to.collection));
        self.memory.write(device.event(event)?, &[entry]).then_some(())
    }
}
