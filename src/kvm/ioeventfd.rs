//! KVM_IOEVENTFD: stores of a guest that become an event of its maker's, and no exit (Linux, virt/kvm/api.rst, 4.59).
//!
//! An event is a shared interrupt of the VM that made this one ([`Events`](crate::vdev::owner_gic::Events)): what a call has as
//! `fd` is its INTID. Who stores looks its address up in a sorted table without a lock: a writer counts up before and after
//! it changes the table, and who has read meanwhile reads again. A binding that goes while a store is on its way may be told
//! of once more.

use super::Errno;
use alloc::{boxed::Box, vec::Vec};
use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
    fence,
};
use spin::{Mutex, Once};

/// The most bindings of a VM.
pub const MAX_BINDINGS: usize = 256;

/// KVM_IOEVENTFD_FLAG_DATAMATCH: only stores of this value.
const DATAMATCH: u32 = 1 << 0;
/// KVM_IOEVENTFD_FLAG_PIO: another bus, which arm64 has, and on which nothing ever happens.
const PIO: u32 = 1 << 1;
/// KVM_IOEVENTFD_FLAG_DEASSIGN.
const DEASSIGN: u32 = 1 << 2;
/// KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY: another such bus.
const CCW: u32 = 1 << 3;
/// All there are: those, and KVM_IOEVENTFD_FLAG_FAST_MMIO, a hint.
const FLAGS: u32 = (1 << 5) - 1;

/// `struct kvm_ioeventfd`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "Linux's names, documented by it (virt/kvm/api.rst)")]
pub struct Ioeventfd {
    pub datamatch: u64,
    pub addr: u64,
    pub len: u32,
    pub fd: u32,
    pub flags: u32,
}

/// Where stores are to be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bus {
    Mmio,
    Pio,
    Ccw,
}

/// A binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Binding {
    bus: Bus,
    address: u64,
    /// In bytes; 0 for any.
    length: u32,
    /// `None` for any value.
    data: Option<u64>,
    event: u32,
}

impl Binding {
    fn new(request: &Ioeventfd) -> Self {
        let bus = match request.flags {
            flags if flags & PIO != 0 => Bus::Pio,
            flags if flags & CCW != 0 => Bus::Ccw,
            _ => Bus::Mmio,
        };
        Self {
            bus,
            address: request.addr,
            length: request.len,
            data: (request.flags & DATAMATCH != 0).then_some(request.datamatch),
            event: request.fd,
        }
    }

    /// Whether some store would be both's.
    fn collides(&self, other: &Self) -> bool {
        let both_value = self.data.is_none() || other.data.is_none() || self.data == other.data;
        let both_length = self.length == other.length && both_value;
        (self.bus, self.address) == (other.bus, other.address) && (self.length == 0 || other.length == 0 || both_length)
    }
}

impl Ioeventfd {
    /// Whether a binding is to go.
    pub fn is_deassign(&self) -> bool {
        self.flags & DEASSIGN != 0
    }

    /// Whether it makes sense, before its event is looked at.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a length that no store has, addresses that wrap, unknown flags, and a value to match of any length; of a
    /// binding that is to go nothing is asked.
    pub fn check(&self) -> Result<(), Errno> {
        if self.is_deassign() {
            return Ok(());
        }
        let wraps = self.addr.checked_add(self.len.into()).is_none();
        let bad_length = !matches!(self.len, 0 | 1 | 2 | 4 | 8) || self.len == 0 && self.flags & DATAMATCH != 0;
        if bad_length || wraps || self.flags & !FLAGS != 0 { Err(Errno::EINVAL) } else { Ok(()) }
    }
}

/// A binding as those see it who store. Fields that do not belong together are never used: [`Table::find`].
#[derive(Debug, Default)]
struct Entry {
    address: AtomicU64,
    data: AtomicU64,
    /// INTID 15:0, length 23:16, whether the value matters 24.
    rest: AtomicU64,
}

const LENGTH_SHIFT: u32 = 16;
const HAS_DATA: u64 = 1 << 24;

impl Entry {
    fn set(&self, binding: &Binding) {
        let data = if binding.data.is_some() { HAS_DATA } else { 0 };
        self.address.store(binding.address, Relaxed);
        self.data.store(binding.data.unwrap_or(0), Relaxed);
        self.rest.store(u64::from(binding.event & 0xffff) | u64::from(binding.length) << LENGTH_SHIFT | data, Relaxed);
    }

    /// The event of a store to its address.
    fn matches(&self, bytes: u64, value: u64) -> Option<u32> {
        let rest = self.rest.load(Relaxed);
        let length = rest >> LENGTH_SHIFT & 0xff;
        let is = (length == 0 || length == bytes) && (rest & HAS_DATA == 0 || self.data.load(Relaxed) == value);
        is.then_some(rest as u32 & 0xffff)
    }
}

/// The bindings of a VM.
#[derive(Debug, Default)]
pub struct Table {
    /// All of them, in no order.
    bindings: Mutex<Vec<Binding>>,
    /// Those of stores to memory that is none, by address: the first `count`. Made with the first binding.
    entries: Once<Box<[Entry]>>,
    count: AtomicU32,
    /// Odd while they change.
    sequence: AtomicU32,
}

/// How often one who stores looks again before it waits for those who change the table.
const PATIENCE: usize = 32;

impl Table {
    /// Binds, or ends a binding, which [`check`](Ioeventfd::check) let pass and whose event is one. `tell` is told how many
    /// there are for stores now, one call after the other.
    ///
    /// # Errors
    ///
    /// `EEXIST` if a store could be that of another binding; `ENOSPC` if there are too many; `ENOENT` for the end of one that
    /// is not there; `ENOMEM`.
    pub fn change(&self, request: &Ioeventfd, tell: impl FnOnce(usize)) -> Result<(), Errno> {
        let binding = Binding::new(request);
        let mut bindings = self.bindings.lock();
        if request.is_deassign() {
            let place = bindings.iter().position(|other| *other == binding).ok_or(Errno::ENOENT)?;
            bindings.swap_remove(place);
        } else {
            if bindings.iter().any(|other| other.collides(&binding)) {
                return Err(Errno::EEXIST);
            }
            if bindings.len() >= MAX_BINDINGS {
                return Err(Errno::ENOSPC);
            }
            self.entries.try_call_once(|| {
                let mut entries = Vec::new();
                entries.try_reserve_exact(MAX_BINDINGS).map_err(|_| Errno::ENOMEM)?;
                entries.resize_with(MAX_BINDINGS, Entry::default);
                Ok::<_, Errno>(entries.into_boxed_slice())
            })?;
            bindings.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
            bindings.push(binding);
        }
        // In order of their addresses, so that what is published is.
        bindings.sort_unstable_by_key(|binding| binding.address);
        tell(self.publish(&bindings));
        Ok(())
    }

    /// Tells how many there are for stores.
    pub fn tell(&self, tell: impl FnOnce(usize)) {
        let _bindings = self.bindings.lock();
        tell(self.count.load(Relaxed) as usize);
    }

    /// Shows stores the bindings, whose lock the caller has; how many they are.
    fn publish(&self, bindings: &[Binding]) -> usize {
        let Some(entries) = self.entries.get() else { return 0 };
        let sequence = self.sequence.load(Relaxed);
        self.sequence.store(sequence.wrapping_add(1), Relaxed);
        // What is stored from here on is seen by nobody who has not seen that.
        fence(Release);
        let visible = bindings.iter().filter(|binding| binding.bus == Bus::Mmio);
        let count = entries.iter().zip(visible).map(|(entry, binding)| entry.set(binding)).count();
        self.count.store(count as u32, Relaxed);
        self.sequence.store(sequence.wrapping_add(2), Release);
        count
    }

    /// The event of a store of the low `bytes` bytes of `value`, zeros above, to `address`.
    pub fn find(&self, address: u64, bytes: u64, value: u64) -> Option<u32> {
        let entries = self.entries.get()?;
        for _ in 0..PATIENCE {
            let before = self.sequence.load(Acquire);
            let found = self.search(entries, address, bytes, value);
            // What was loaded for that was loaded before this is.
            fence(Acquire);
            if before & 1 == 0 && self.sequence.load(Relaxed) == before {
                return found;
            }
            core::hint::spin_loop();
        }
        // Whoever changes it all the time waits for its turn, too.
        let _bindings = self.bindings.lock();
        self.search(entries, address, bytes, value)
    }

    fn search(&self, entries: &[Entry], address: u64, bytes: u64, value: u64) -> Option<u32> {
        let used = entries.get(..self.count.load(Relaxed) as usize)?;
        let first = used.partition_point(|entry| entry.address.load(Relaxed) < address);
        let here = used.get(first..)?.iter().take_while(|entry| entry.address.load(Relaxed) == address);
        here.filter_map(|entry| entry.matches(bytes, value)).next()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::atomic::AtomicBool;

    fn request(addr: u64, len: u32, datamatch: Option<u64>, fd: u32) -> Ioeventfd {
        let flags = if datamatch.is_some() { DATAMATCH } else { 0 };
        Ioeventfd { datamatch: datamatch.unwrap_or(0x55), addr, len, fd, flags }
    }

    fn change(table: &Table, request: &Ioeventfd) -> Result<(), Errno> {
        request.check().and_then(|()| table.change(request, |_| {}))
    }

    fn end(request: Ioeventfd) -> Ioeventfd {
        Ioeventfd { flags: request.flags | DEASSIGN, ..request }
    }

    #[test]
    fn what_makes_sense() {
        let ok = Ok(());
        let bad = Err(Errno::EINVAL);
        for (addr, len, flags, result) in [
            (0, 0, 0, ok),
            (0, 1, 0, ok),
            (1, 8, 1, ok),
            (0, 3, 0, bad),
            (0, 16, 0, bad),
            (0, u32::MAX, 0, bad),
            (0, 0, 1, bad),
            (u64::MAX, 0, 0, ok),
            (u64::MAX, 1, 0, bad),
            (u64::MAX - 7, 8, 0, bad),
            (u64::MAX - 8, 8, 0, ok),
            (0, 4, 2, ok),
            (0, 4, 0x1b, ok),
            (0, 4, 0x20, bad),
            (0, 4, 1 << 31, bad),
            // Nothing is asked of one that is to go.
            (u64::MAX, 3, 4, ok),
            (0, 0, 1 << 31 | 5, ok),
        ] {
            let request = Ioeventfd { addr, len, flags, ..Ioeventfd::default() };
            assert_eq!(request.check(), result, "{addr:#x} {len} {flags:#x}");
        }
    }

    #[test]
    fn stores() {
        let table = Table::default();
        assert_eq!(table.find(0x1000, 4, 0), None);
        for one in [
            request(0x1000, 4, Some(7), 40),
            request(0x1000, 4, Some(8), 41),
            request(0x1000, 2, None, 42),
            request(0x800, 0, None, 43),
            request(0x2000, 1, Some(0x1ff), 44),
            Ioeventfd { flags: PIO, ..request(0x3000, 4, None, 45) },
            Ioeventfd { flags: CCW, ..request(0x3000, 4, None, 46) },
        ] {
            assert_eq!(change(&table, &one), Ok(()), "{one:x?}");
            assert_eq!(change(&table, &one), Err(Errno::EEXIST), "{one:x?}");
        }
        for (address, bytes, value, event) in [
            (0x1000, 4, 7, Some(40)),
            (0x1000, 4, 8, Some(41)),
            (0x1000, 4, 9, None),
            (0x1000, 2, 9, Some(42)),
            (0x1000, 8, 7, None),
            (0x1001, 1, 7, None),
            (0xffc, 8, 7, None),
            (0x800, 1, 0, Some(43)),
            (0x800, 8, 99, Some(43)),
            // A byte is never that.
            (0x2000, 1, 0xff, None),
            (0x3000, 4, 0, None),
        ] {
            assert_eq!(table.find(address, bytes, value), event, "{address:#x} {bytes} {value}");
        }
        assert_eq!(change(&table, &request(0x1000, 4, None, 50)), Err(Errno::EEXIST));
        assert_eq!(change(&table, &request(0x1000, 0, None, 50)), Err(Errno::EEXIST));
        assert_eq!(change(&table, &request(0x800, 2, Some(1), 50)), Err(Errno::EEXIST));
        // Only the very same one goes.
        assert_eq!(change(&table, &end(request(0x1000, 4, Some(7), 41))), Err(Errno::ENOENT));
        assert_eq!(change(&table, &end(request(0x1000, 4, None, 40))), Err(Errno::ENOENT));
        assert_eq!(change(&table, &end(request(0x1000, 4, Some(7), 40))), Ok(()));
        assert_eq!((table.find(0x1000, 4, 7), table.find(0x1000, 4, 8)), (None, Some(41)));
    }

    #[test]
    fn bounded() {
        let table = Table::default();
        let nth = |n: usize| request(4 * n as u64, 4, None, 32);
        for n in 0..MAX_BINDINGS {
            assert_eq!(change(&table, &nth(n)), Ok(()));
        }
        assert_eq!(change(&table, &nth(MAX_BINDINGS)), Err(Errno::ENOSPC));
        assert_eq!(change(&table, &nth(0)), Err(Errno::EEXIST));
        assert_eq!(change(&table, &end(nth(5))), Ok(()));
        assert_eq!(change(&table, &nth(MAX_BINDINGS)), Ok(()));
        assert_eq!((table.find(20, 4, 0), table.find(24, 4, 0)), (None, Some(32)));
    }

    #[test]
    fn tells_how_many_are_for_stores() {
        let table = Table::default();
        let mut told = std::vec::Vec::new();
        let one = request(0, 4, None, 32);
        table.change(&one, |count| told.push(count)).unwrap();
        table.change(&Ioeventfd { flags: PIO, ..one }, |count| told.push(count)).unwrap();
        table.change(&end(one), |count| told.push(count)).unwrap();
        table.tell(|count| told.push(count));
        assert_eq!(told, [1, 1, 0, 0]);
    }

    /// A store finds its binding whatever else comes and goes, and never another's event.
    #[test]
    fn while_others_change_it() {
        let table = Table::default();
        let stays = request(0x1000, 4, Some(1), 100);
        change(&table, &stays).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..2_u64 {
                let (table, done) = (&table, &done);
                scope.spawn(move || {
                    for round in 0..20_000 {
                        let addr = if (round + thread) % 2 == 0 { 0x1000 } else { 0x800 + 8 * thread };
                        let one = request(addr, 4, Some(2 + thread), 200);
                        change(table, &one).unwrap();
                        change(table, &end(one)).unwrap();
                    }
                    done.store(true, Relaxed);
                });
            }
            scope.spawn(|| {
                while !done.load(Relaxed) {
                    assert_eq!(table.find(0x1000, 4, 1), Some(100));
                    assert!(matches!(table.find(0x1000, 4, 2), None | Some(200)));
                    assert_eq!(table.find(0x1004, 4, 1), None);
                }
            });
        });
    }

    proptest! {
        /// Against a list that is searched from the front.
        #[test]
        fn as_a_list(
            steps in prop::collection::vec(
                (any::<bool>(), 0_u64..4, prop::sample::select(&[0_u32, 1, 2, 4, 8]), prop::option::of(0_u64..3), 32_u32..35),
                0..60
            )
        ) {
            let table = Table::default();
            let mut model: Vec<Ioeventfd> = Vec::new();
            for (bind, addr, len, datamatch, fd) in steps {
                let one = request(addr, len, datamatch.filter(|_| len != 0), fd);
                let has_data = |one: &Ioeventfd| one.flags & DATAMATCH != 0;
                let key = |one: &Ioeventfd| (one.addr, one.len, has_data(one).then_some(one.datamatch), one.fd);
                let store = |one: &Ioeventfd, len: u32, value: u64| {
                    (one.len == 0 || one.len == len) && (!has_data(one) || one.datamatch == value)
                };
                if bind {
                    // What a store could be that of both.
                    let taken = model.iter().any(|other| {
                        other.addr == addr && [1, 2, 4, 8].into_iter().any(|len| {
                            (0..4).any(|value| store(other, len, value) && store(&one, len, value))
                        })
                    });
                    let expected = if taken { Err(Errno::EEXIST) } else { Ok(()) };
                    prop_assert_eq!(change(&table, &one), expected);
                    if !taken {
                        model.push(one);
                    }
                } else {
                    let place = model.iter().position(|other| key(other) == key(&one));
                    prop_assert_eq!(change(&table, &end(one)), place.map(drop).ok_or(Errno::ENOENT));
                    place.map(|place| model.remove(place));
                }
                for address in 0..4 {
                    for len in [1, 2, 4, 8] {
                        for value in 0..4 {
                            let expected = model.iter().find(|one| one.addr == address && store(one, len, value));
                            let found = table.find(address, len.into(), value);
                            prop_assert_eq!(found, expected.map(|one| one.fd));
                        }
                    }
                }
            }
        }
    }
}
