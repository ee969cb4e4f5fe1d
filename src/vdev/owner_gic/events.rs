//! Shared interrupts as events: made pending for the owner, or taken from it for a VM of its own.
//!
//! The owner's VMs have no files to signal and to be signalled by. What they have instead are SPIs of the owner's distributor:
//! an event that *happens* is an SPI that becomes pending in hardware, whoever makes it so: a device, the owner's write of
//! GICD_ISPENDR or GICD_SETSPI_NSR, or a VM's store ([`Events::signal`]). One that happens twice before it is taken has
//! happened once, so nothing can pile up. Whether it may interrupt, and which CPU, the owner has said as for any of its
//! interrupts (GICD_ISENABLER, GICD_IROUTER).
//!
//! An SPI that is *bound* is not the owner's when a CPU acknowledges it, but a pin of a VM ([`Events::take`]). Without a
//! resample event the pin is pulsed. With one it stays high until the guest has ended the interrupt; then it falls, and the
//! resample event happens.
//!
//! **Level-sensitive SPIs.** Their line would interrupt again as soon as they are inactive. So they stay active, after the CPU
//! that acknowledged them dropped its priority, until the guest has ended its interrupt, and are deactivated at the distributor
//! then: one interrupt for each end, however long the line stays high. A guest that never ends it keeps its own device
//! quiet and nothing else. That holds without a resample event, too; but then a pulse that the guest does not see (its own pin
//! is level-sensitive, say) leaves the SPI active until the owner deactivates it, or unbinds it.
//!
//! A bound SPI that a CPU had acknowledged for the owner before is the owner's once more.

use super::{AccessSize, Frame, INTERRUPTS, PRIVATE, PhysicalGic, registers};
use alloc::{boxed::Box, sync::Arc};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use spin::Mutex;

/// A VM that has pins. Events are bound to a number of its own choice, which stands for one.
pub trait Listener {
    /// What a number stands for.
    type Pin: Copy + PartialEq + core::fmt::Debug;
    /// Sets the line of a pin.
    fn set_line(&self, pin: Self::Pin, level: bool);
    /// The VM is to call [`Events::end`] whenever its guest ends the interrupt of `pin`, from the next time that becomes
    /// pending.
    fn watch(&self, pin: Self::Pin);
}

/// Why an event cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventError {
    /// The owner has no such SPI.
    None,
    /// It is bound already.
    Taken,
}

#[derive(Debug)]
struct Bound<L: Listener> {
    listener: Arc<L>,
    number: u32,
    pin: L::Pin,
    resample: Option<u32>,
    /// Active in hardware until the guest has ended its interrupt.
    held: bool,
}

/// The owner's SPIs.
#[derive(Debug)]
pub struct Events<G, L: Listener> {
    gic: G,
    /// keel's own.
    kept: Option<u32>,
    /// By INTID, from 32 on.
    slots: Box<[Mutex<Option<Bound<L>>>]>,
    /// Those that are bound, a bit for each INTID.
    bound: [AtomicU64; INTERRUPTS.div_ceil(64) as usize],
}

impl<G: PhysicalGic, L: Listener> Events<G, L> {
    /// Those of a distributor with so many interrupts, private ones included, but for `kept`.
    pub fn new(gic: G, interrupts: u32, kept: Option<u32>) -> Self {
        let slots = (PRIVATE..interrupts.min(INTERRUPTS)).map(|_| Mutex::new(None)).collect();
        Self { gic, kept, slots, bound: [const { AtomicU64::new(0) }; INTERRUPTS.div_ceil(64) as usize] }
    }

    fn slot(&self, intid: u32) -> Option<&Mutex<Option<Bound<L>>>> {
        self.slots.get(intid.checked_sub(PRIVATE)? as usize)
    }

    fn write(&self, register: u64, intid: u32) {
        let (frame, offset) = registers::place(0, intid, register, 1);
        self.gic.write(frame, offset, AccessSize::Word, 1 << (intid % 32));
    }

    fn is_level(&self, intid: u32) -> bool {
        let offset = registers::CONFIGURATION + u64::from(intid / 16) * 4;
        // Int_config, the upper bit of two.
        self.gic.read(Frame::Distributor, offset, AccessSize::Word) >> (2 * (intid % 16) + 1) & 1 == 0
    }

    /// Whether the owner has this SPI.
    ///
    /// # Errors
    ///
    /// [`EventError::None`].
    pub fn check(&self, intid: u32) -> Result<(), EventError> {
        let is_one = self.slot(intid).is_some() && self.kept != Some(intid);
        is_one.then_some(()).ok_or(EventError::None)
    }

    /// The event happens: the SPI is pending at the distributor. Others than the owner's are ignored.
    pub fn signal(&self, intid: u32) {
        if self.check(intid).is_ok() {
            self.write(registers::SET_PENDING, intid);
        }
    }

    /// From now on the SPI is `number` of `listener`, which stands for `pin`.
    ///
    /// # Errors
    ///
    /// [`EventError`].
    pub fn bind(
        &self,
        intid: u32,
        listener: Arc<L>,
        (number, pin): (u32, L::Pin),
        resample: Option<u32>,
    ) -> Result<(), EventError> {
        self.check(intid)?;
        resample.map_or(Ok(()), |resample| self.check(resample))?;
        let mut slot = self.slot(intid).ok_or(EventError::None)?.lock();
        if slot.is_some() {
            return Err(EventError::Taken);
        }
        if resample.is_some() {
            listener.watch(pin);
        }
        *slot = Some(Bound { listener, number, pin, resample, held: false });
        self.bound[intid as usize / 64].fetch_or(1 << (intid % 64), SeqCst);
        Ok(())
    }

    /// The SPI is the owner's again, if it was this number. What it holds up ends: the pin's line, and its active state, so
    /// that a line that is still high interrupts the owner.
    pub fn unbind(&self, intid: u32, listener: &L, number: u32) {
        let Some(slot) = self.slot(intid) else { return };
        let mut slot = slot.lock();
        let Some(mut bound) = slot.take_if(|bound| bound.is(listener, number)) else { return };
        self.bound[intid as usize / 64].fetch_and(!(1 << (intid % 64)), SeqCst);
        self.let_go(intid, &mut bound);
        // Before the listener goes, which may be its end.
        drop(slot);
    }

    fn let_go(&self, intid: u32, bound: &mut Bound<L>) {
        if bound.resample.is_some() {
            bound.listener.set_line(bound.pin, false);
        }
        if core::mem::take(&mut bound.held) {
            self.write(registers::CLEAR_ACTIVE, intid);
        }
    }

    /// The number that the SPI is bound to stands for `pin` now. What it holds up at another one ends.
    pub fn redirect(&self, intid: u32, listener: &L, number: u32, pin: L::Pin) {
        let Some(slot) = self.slot(intid) else { return };
        let mut slot = slot.lock();
        let Some(bound) = slot.as_mut().filter(|bound| bound.is(listener, number) && bound.pin != pin) else { return };
        self.let_go(intid, bound);
        bound.pin = pin;
        if bound.resample.is_some() {
            listener.watch(pin);
        }
    }

    /// This CPU acknowledged `intid` and dropped its priority. `false` if it is not bound, and nothing has changed. Otherwise it
    /// is dealt with: inactive, or active until its end.
    #[inline]
    pub fn take(&self, intid: u32) -> bool {
        let is_bound =
            self.bound.get(intid as usize / 64).is_some_and(|word| word.load(SeqCst) >> (intid % 64) & 1 != 0);
        is_bound && self.take_bound(intid)
    }

    #[cold]
    #[inline(never)]
    fn take_bound(&self, intid: u32) -> bool {
        let Some(slot) = self.slot(intid) else { return false };
        let mut slot = slot.lock();
        let Some(bound) = &mut *slot else { return false };
        bound.held = self.is_level(intid);
        if bound.held && bound.resample.is_none() {
            bound.listener.watch(bound.pin);
        }
        bound.listener.set_line(bound.pin, true);
        if bound.resample.is_none() {
            bound.listener.set_line(bound.pin, false);
        }
        if !bound.held {
            self.gic.deactivate(intid);
        }
        true
    }

    /// The guest of `listener` has ended the interrupt that `number` stands for, to which `intid` may be bound.
    pub fn end(&self, intid: u32, listener: &L, number: u32) {
        let Some(slot) = self.slot(intid) else { return };
        let mut slot = slot.lock();
        let Some(bound) = slot.as_mut().filter(|bound| bound.is(listener, number)) else { return };
        if let Some(resample) = bound.resample {
            bound.listener.set_line(bound.pin, false);
            self.signal(resample);
        }
        if core::mem::take(&mut bound.held) {
            self.write(registers::CLEAR_ACTIVE, intid);
        }
    }
}

impl<L: Listener> Bound<L> {
    fn is(&self, listener: &L, number: u32) -> bool {
        core::ptr::eq(&raw const *self.listener, listener) && self.number == number
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::FakeGic;
    use super::*;
    use std::{cell::RefCell, vec::Vec};

    const EDGE: u32 = 40;
    const LEVEL: u32 = 70;
    const RESAMPLE: u32 = 100;
    const PIN: u32 = 5;
    /// Above every priority.
    const IDLE: u32 = 0x100;

    #[derive(Default)]
    struct Pins {
        levels: RefCell<Vec<(u32, bool)>>,
        watched: RefCell<Vec<u32>>,
    }

    impl Pins {
        fn take(&self) -> Vec<(u32, bool)> {
            core::mem::take(&mut self.levels.borrow_mut())
        }
    }

    impl Listener for Pins {
        type Pin = u32;
        fn set_line(&self, pin: u32, level: bool) {
            self.levels.borrow_mut().push((pin, level));
        }
        fn watch(&self, pin: u32) {
            self.watched.borrow_mut().push(pin);
        }
    }

    /// One CPU, its deactivations are the distributor's.
    struct Gic(FakeGic);

    impl PhysicalGic for Gic {
        fn read(&self, frame: Frame, offset: u64, size: AccessSize) -> u64 {
            self.0.read(frame, offset, size)
        }
        fn write(&self, frame: Frame, offset: u64, size: AccessSize, value: u64) {
            self.0.write(frame, offset, size, value);
        }
        fn deactivate(&self, intid: u32) {
            self.0.change(0, intid, |interrupt| interrupt.active = false);
        }
    }

    type Machine = (Events<Gic, Pins>, Arc<Pins>);

    fn machine() -> Machine {
        let gic = FakeGic::new(1);
        for intid in [EDGE, LEVEL, RESAMPLE] {
            gic.change(0, intid, |interrupt| (interrupt.enabled, interrupt.edge) = (true, intid != LEVEL));
        }
        (Events::new(Gic(gic), 160, Some(50)), Arc::default())
    }

    /// This CPU takes what comes; which of it is left for the owner.
    fn interrupts(events: &Events<Gic, Pins>) -> Vec<u32> {
        let mut others = Vec::new();
        for _ in 0..20 {
            let Some(intid) = events.gic.0.acknowledge(0, IDLE) else { return others };
            if !events.take(intid) {
                others.push(intid);
                events.gic.deactivate(intid);
            }
        }
        panic!("a storm");
    }

    #[test]
    fn whose_they_are() {
        let (events, pins) = machine();
        for intid in [0, 16, 31, 50, 160, 1019, 1020, 8192, u32::MAX] {
            assert_eq!(events.check(intid), Err(EventError::None), "{intid}");
            assert_eq!(events.bind(intid, pins.clone(), (PIN, PIN), None), Err(EventError::None), "{intid}");
            assert_eq!(events.bind(EDGE, pins.clone(), (PIN, PIN), Some(intid)), Err(EventError::None), "{intid}");
            assert!(!events.take(intid), "{intid}");
            events.signal(intid);
            events.unbind(intid, &pins, PIN);
            events.end(intid, &pins, PIN);
        }
        assert!(events.gic.0.other_writes.borrow().is_empty());
        assert_eq!(interrupts(&events), []);
    }

    #[test]
    fn signals_are_the_owners() {
        let (events, _) = machine();
        events.signal(EDGE);
        events.signal(EDGE);
        events.signal(LEVEL);
        assert_eq!(interrupts(&events), [EDGE, LEVEL]);
    }

    #[test]
    fn bound_once() {
        let (events, pins) = machine();
        assert_eq!(events.bind(EDGE, pins.clone(), (PIN, PIN), None), Ok(()));
        assert_eq!(events.bind(EDGE, pins.clone(), (PIN, PIN), None), Err(EventError::Taken));
        assert_eq!(events.bind(EDGE, Arc::default(), (6, 6), None), Err(EventError::Taken));
        events.signal(EDGE);
        assert_eq!((interrupts(&events), pins.take()), (vec![], vec![(PIN, true), (PIN, false)]));
        // Others' ends are none.
        events.unbind(EDGE, &pins, PIN + 1);
        events.unbind(EDGE, &Pins::default(), PIN);
        events.signal(EDGE);
        assert_eq!((interrupts(&events), pins.take().len()), (vec![], 2));
        events.unbind(EDGE, &pins, PIN);
        events.signal(EDGE);
        assert_eq!((interrupts(&events), pins.take()), (vec![EDGE], vec![]));
        assert_eq!(Arc::strong_count(&pins), 1);
        assert_eq!(pins.watched.borrow().len(), 0);
    }

    #[test]
    fn resampled() {
        let (events, pins) = machine();
        events.bind(EDGE, pins.clone(), (PIN, PIN), Some(RESAMPLE)).unwrap();
        assert_eq!(*pins.watched.borrow(), [PIN]);
        events.signal(EDGE);
        assert_eq!((interrupts(&events), pins.take()), (vec![], vec![(PIN, true)]));
        events.end(EDGE, &Pins::default(), PIN);
        events.end(EDGE, &pins, PIN + 1);
        assert_eq!((interrupts(&events), pins.take()), (vec![], vec![]));
        events.end(EDGE, &pins, PIN);
        assert_eq!((interrupts(&events), pins.take()), (vec![RESAMPLE], vec![(PIN, false)]));
        events.unbind(EDGE, &pins, PIN);
        assert_eq!(pins.take(), [(PIN, false)]);
    }

    #[test]
    fn a_line_interrupts_once_for_each_end() {
        for resample in [None, Some(RESAMPLE)] {
            let (events, pins) = machine();
            events.bind(LEVEL, pins.clone(), (PIN, PIN), resample).unwrap();
            events.gic.0.set_line(0, LEVEL, true);
            for _ in 0..3 {
                assert_eq!(interrupts(&events), []);
                assert_eq!(pins.take().first(), Some(&(PIN, true)));
                assert_eq!((interrupts(&events), pins.take()), (vec![], vec![]));
                assert!(pins.watched.borrow().contains(&PIN));
                // Its end makes it interrupt again, which the next round sees.
                events.end(LEVEL, &pins, PIN);
                pins.take();
                let told = events.gic.0.get(0, RESAMPLE).latch;
                assert_eq!(told, resample.is_some());
                events.gic.0.change(0, RESAMPLE, |interrupt| interrupt.latch = false);
            }
            events.gic.0.set_line(0, LEVEL, false);
            pins.take();
            assert_eq!((interrupts(&events), pins.take()), (vec![], vec![]));
        }
    }

    #[test]
    fn what_a_binding_held_up_is_the_owners() {
        let (events, pins) = machine();
        events.bind(LEVEL, pins.clone(), (PIN, PIN), Some(RESAMPLE)).unwrap();
        events.gic.0.set_line(0, LEVEL, true);
        assert_eq!((interrupts(&events), pins.take()), (vec![], vec![(PIN, true)]));
        events.unbind(LEVEL, &pins, PIN);
        assert_eq!(pins.take(), [(PIN, false)]);
        assert_eq!(events.gic.0.acknowledge(0, IDLE), Some(LEVEL));
        assert!(!events.take(LEVEL));
    }

    #[test]
    fn redirected() {
        let (events, pins) = machine();
        events.bind(LEVEL, pins.clone(), (7, PIN), Some(RESAMPLE)).unwrap();
        events.gic.0.set_line(0, LEVEL, true);
        assert_eq!((interrupts(&events), pins.take()), (vec![], vec![(PIN, true)]));
        events.redirect(LEVEL, &pins, 7, PIN);
        events.redirect(LEVEL, &pins, 8, 9);
        assert_eq!((interrupts(&events), pins.take()), (vec![], vec![]));
        events.redirect(LEVEL, &pins, 7, 9);
        assert_eq!((interrupts(&events), pins.take()), (vec![], vec![(PIN, false), (9, true)]));
        assert_eq!(*pins.watched.borrow(), [PIN, 9]);
        events.end(LEVEL, &pins, 7);
        assert_eq!((interrupts(&events), pins.take()), (vec![RESAMPLE], vec![(9, false), (9, true)]));
    }
}
