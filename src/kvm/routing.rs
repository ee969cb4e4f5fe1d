//! KVM_SET_GSI_ROUTING: what an interrupt number of a VM's maker stands for (Linux, virt/kvm/api.rst, 4.52).
//!
//! Until it says otherwise number n is pin n, SPI 32 + n. A pin of the interrupt controller is told by its number, a message
//! by what a device would write, and where.

use super::{
    Errno,
    ioctl::user::{field32, field64},
};
use alloc::vec::Vec;

/// KVM_MAX_IRQ_ROUTES: the most entries, and numbers below this.
pub const MAX_ROUTES: u32 = 4096;
/// Bytes of `struct kvm_irq_routing_entry`.
pub const ENTRY_SIZE: usize = 48;
/// KVM_IRQCHIP_NUM_PINS of arm64: one for each SPI that there can be.
const PINS: u32 = 1020 - 32;

/// KVM_IRQ_ROUTING_IRQCHIP.
const IRQCHIP: u32 = 1;
/// KVM_IRQ_ROUTING_MSI.
const MSI: u32 = 2;
/// KVM_MSI_VALID_DEVID.
const VALID_DEVID: u32 = 1;

/// What a number stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// A pin of the interrupt controller.
    Pin(u32),
    /// A message, by which DeviceID there is one, to this address.
    Message {
        /// Guest physical.
        address: u64,
        /// What is written.
        data: u32,
        /// `None` if the entry does not say.
        device: Option<u32>,
    },
}

/// `struct kvm_irq_routing_entry`, as far as it means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    gsi: u32,
    kind: u32,
    flags: u32,
    /// `irqchip` and `pin`, or an address.
    first: u64,
    /// `data` and `devid`.
    second: u64,
}

impl Entry {
    /// The entry in these bytes.
    pub fn new(bytes: &[u8; ENTRY_SIZE]) -> Self {
        let [gsi, kind, flags] = [0, 4, 8].map(|offset| field32(bytes, offset));
        Self { gsi, kind, flags, first: field64(bytes, 16), second: field64(bytes, 24) }
    }

    fn route(&self) -> Result<Route, Errno> {
        let (chip, pin) = (self.first as u32, (self.first >> 32) as u32);
        match self.kind {
            IRQCHIP if self.flags == 0 && chip == 0 && pin < PINS => Ok(Route::Pin(pin)),
            MSI if self.flags & !VALID_DEVID == 0 => {
                let device = (self.flags & VALID_DEVID != 0).then_some((self.second >> 32) as u32);
                Ok(Route::Message { address: self.first, data: self.second as u32, device })
            }
            _ => Err(Errno::EINVAL),
        }
    }
}

/// What all numbers of a VM stand for.
#[derive(Debug, Default)]
pub struct Routing {
    /// By number. `None`: each its own pin.
    routes: Option<Vec<(u32, Route)>>,
}

impl Routing {
    /// That of these entries. Numbers without one stand for nothing.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an entry that makes no sense, and for two of one number; `ENOMEM`.
    pub fn new(entries: &[Entry]) -> Result<Self, Errno> {
        let mut routes = Vec::new();
        routes.try_reserve_exact(entries.len()).map_err(|_| Errno::ENOMEM)?;
        for entry in entries {
            if entry.gsi >= MAX_ROUTES {
                return Err(Errno::EINVAL);
            }
            routes.push((entry.gsi, entry.route()?));
        }
        routes.sort_unstable_by_key(|(gsi, _)| *gsi);
        if routes.array_windows().any(|[(first, _), (second, _)]| first == second) {
            return Err(Errno::EINVAL);
        }
        Ok(Self { routes: Some(routes) })
    }

    /// What a number stands for.
    pub fn route(&self, gsi: u32) -> Option<Route> {
        match &self.routes {
            None => (gsi < PINS).then_some(Route::Pin(gsi)),
            Some(routes) => {
                let place = routes.binary_search_by_key(&gsi, |(gsi, _)| *gsi).ok()?;
                routes.get(place).map(|(_, route)| *route)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(gsi: u32, kind: u32, flags: u32, union: [u32; 4]) -> Entry {
        let words = [gsi, kind, flags, 0xffff_ffff, union[0], union[1], union[2], union[3], 0, 0, 0, 0];
        let mut bytes = [0; ENTRY_SIZE];
        bytes.chunks_exact_mut(4).zip(words).for_each(|(bytes, word)| bytes.copy_from_slice(&word.to_le_bytes()));
        Entry::new(&bytes)
    }

    #[test]
    fn each_its_own_at_first() {
        let routing = Routing::default();
        assert_eq!(routing.route(0), Some(Route::Pin(0)));
        assert_eq!(routing.route(987), Some(Route::Pin(987)));
        assert_eq!((routing.route(988), routing.route(u32::MAX)), (None, None));
    }

    #[test]
    fn only_what_was_said() {
        let message = Route::Message { address: 0x2_0808_0040, data: 7, device: Some(9) };
        let entries = [
            entry(4095, 1, 0, [0, 987, 0, 0]),
            entry(3, 2, 1, [0x0808_0040, 2, 7, 9]),
            entry(5, 2, 0, [0x0808_0040, 2, 7, 9]),
            // One pin may have several numbers.
            entry(1, 1, 0, [0, 987, 1, 1]),
        ];
        let routing = Routing::new(&entries).unwrap();
        assert_eq!(routing.route(1), Some(Route::Pin(987)));
        assert_eq!(routing.route(4095), Some(Route::Pin(987)));
        assert_eq!(routing.route(3), Some(message));
        let Some(Route::Message { device: None, .. }) = routing.route(5) else { panic!() };
        assert_eq!((routing.route(0), routing.route(2), routing.route(4096)), (None, None, None));
        assert_eq!(Routing::new(&[]).unwrap().route(0), None);
    }

    #[test]
    fn what_makes_no_sense() {
        for bad in [
            entry(4096, 1, 0, [0, 0, 0, 0]),
            entry(u32::MAX, 2, 0, [0, 0, 0, 0]),
            entry(0, 0, 0, [0, 0, 0, 0]),
            entry(0, 3, 0, [0, 0, 0, 0]),
            entry(0, 1, 1, [0, 0, 0, 0]),
            entry(0, 1, 0, [1, 0, 0, 0]),
            entry(0, 1, 0, [0, 988, 0, 0]),
            entry(0, 2, 2, [0, 0, 0, 0]),
            entry(0, 2, 3, [0, 0, 0, 0]),
        ] {
            assert_eq!(Routing::new(&[bad]).err(), Some(Errno::EINVAL), "{bad:x?}");
        }
        for (one, other) in [(1, 1), (1, 2), (2, 2)] {
            let entries =
                [entry(7, one, 0, [0, 1, 0, 0]), entry(6, 1, 0, [0, 1, 0, 0]), entry(7, other, 0, [0, 2, 0, 0])];
            assert_eq!(Routing::new(&entries).err(), Some(Errno::EINVAL));
        }
    }
}
