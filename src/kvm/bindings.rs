//! KVM_IRQFD, KVM_IOEVENTFD and KVM_SET_GSI_ROUTING: a VM's stores and pins, bound to shared interrupts of its maker's.
//!
//! What has the number of a file in KVM's structures has an INTID here: that of an SPI of the machine's owner, which is the
//! only one who makes VMs. How such events happen and are taken is `vdev::owner_gic::events`, which stores are bound
//! [`ioeventfd`](super::ioeventfd), what the numbers of pins stand for [`routing`](super::routing); this is the VM between
//! them. A VM's bindings go with it.

use super::{
    Errno, Machine, Vcpu, Vm, interrupts,
    ioeventfd::{Ioeventfd, Table},
    physical,
    routing::{Entry, Route, Routing},
    uapi::vgic::ITS_SIZE,
};
use crate::{
    arch::gic::{self, Distributor},
    vdev::{
        its::Its,
        mmio::AccessSize,
        owner_gic::{EventError, Events, Frame, Listener, PhysicalGic},
        platform::SPI_BASE,
        vgic::{Vgic, VgicHost},
    },
};
use alloc::{sync::Arc, vec::Vec};
use spin::{Mutex, Once};

/// KVM_IRQFD_FLAG_DEASSIGN.
const DEASSIGN: u32 = 1 << 0;
/// KVM_IRQFD_FLAG_RESAMPLE.
const RESAMPLE: u32 = 1 << 1;

/// `struct kvm_irqfd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "Linux's names, documented by it (virt/kvm/api.rst)")]
pub struct Irqfd {
    pub fd: u32,
    pub gsi: u32,
    pub flags: u32,
    pub resamplefd: u32,
}

/// The events of the machine's owner, bound to pins of its VMs.
pub type OwnerEvents = Events<SharedInterrupts, Bindings>;

/// The distributor, of which no private interrupts are asked.
#[derive(Debug)]
pub struct SharedInterrupts(Distributor);

impl PhysicalGic for SharedInterrupts {
    fn read(&self, _: Frame, offset: u64, size: AccessSize) -> u64 {
        self.0.read(offset, size as u32)
    }

    fn write(&self, _: Frame, offset: u64, size: AccessSize, value: u64) {
        self.0.write(offset, size as u32, value);
    }

    fn deactivate(&self, intid: u32) {
        gic::deactivate(intid);
    }
}

/// The events of an owner of this distributor. A PMU's interrupt that CPUs share is keel's.
pub(super) fn events_of(distributor: Distributor) -> Arc<OwnerEvents> {
    let kept = physical::interrupts().and_then(|host| host.pmu);
    Arc::new(Events::new(SharedInterrupts(distributor), distributor.interrupts(), kept))
}

/// A VM's interrupt controller, as its pins need it.
#[derive(Debug)]
struct Pins {
    vgic: Arc<Vgic>,
    vcpus: Vec<Arc<Vcpu>>,
}

impl VgicHost for Pins {
    fn kick(&self, vcpu: usize) {
        if let Some(vcpu) = self.vcpus.get(vcpu) {
            interrupts::kick(vcpu);
        }
    }

    // Nobody reads state by a pin or a message.
    fn sync(&self, _: usize) {}
}

/// What is bound to a VM's pins.
#[derive(Debug, Default)]
struct Irqfds {
    /// SPIs of the owner, and the number that each is.
    bound: Vec<(u32, u32)>,
    routing: Routing,
}

/// What a VM has bound.
#[derive(Debug)]
pub struct Bindings {
    events: Arc<OwnerEvents>,
    stores: Table,
    irqfds: Mutex<Irqfds>,
    /// There once a pin is bound.
    pins: Once<Pins>,
    /// Where messages go, once it has its address.
    its: Once<(Arc<Its>, u64)>,
}

impl Listener for Bindings {
    type Pin = Option<Route>;

    fn set_line(&self, pin: Option<Route>, level: bool) {
        let Some(pins) = self.pins.get() else { return };
        match pin {
            Some(Route::Pin(pin)) => pins.vgic.set_spi(pin.saturating_add(SPI_BASE), level, pins),
            Some(Route::Message { address, data, device: Some(device) }) if level => {
                if let Some((its, base)) = self.its.get()
                    && address.checked_sub(*base).is_some_and(|offset| offset < ITS_SIZE)
                {
                    its.send_msi(device, data, &pins.vgic, pins);
                }
            }
            _ => {}
        }
    }

    fn watch(&self, pin: Option<Route>) {
        if let (Some(pins), Some(Route::Pin(pin))) = (self.pins.get(), pin) {
            pins.vgic.watch_spi(pin.saturating_add(SPI_BASE));
        }
    }
}

impl Bindings {
    /// Nothing bound yet.
    pub fn new(events: &Arc<OwnerEvents>) -> Arc<Self> {
        let (events, stores) = (events.clone(), Table::default());
        Arc::new(Self { events, stores, irqfds: Mutex::default(), pins: Once::new(), its: Once::new() })
    }

    /// This CPU acknowledged an interrupt of the machine's, and dropped its priority. `true` if it was an event of somebody's,
    /// and is dealt with.
    pub(super) fn take_event(&self, intid: u32) -> bool {
        self.events.take(intid)
    }

    /// The guest stores the low `bytes` bytes of `value`, zeros above. `true` if that is an event, which happens.
    pub(super) fn store(&self, address: u64, bytes: u64, value: u64) -> bool {
        let event = self.stores.find(address, bytes, value);
        event.map(|event| self.events.signal(event)).is_some()
    }

    /// The guest has ended shared interrupt `intid`, whose end is watched.
    pub(super) fn ended(&self, intid: u32) {
        let Some(pin) = intid.checked_sub(SPI_BASE).map(Route::Pin) else { return };
        let irqfds = self.irqfds.lock();
        for &(event, gsi) in irqfds.bound.iter().filter(|(_, gsi)| irqfds.routing.route(*gsi) == Some(pin)) {
            self.events.end(event, self, gsi);
        }
    }

    /// The VM's ITS has its address.
    pub(super) fn set_its(&self, its: &Arc<Its>, base: u64) {
        self.its.call_once(|| (its.clone(), base));
    }

    fn irqfd(self: &Arc<Self>, request: &Irqfd, pins: impl FnOnce() -> Option<Pins>) -> Result<(), Errno> {
        let Irqfd { fd, gsi, flags, resamplefd } = *request;
        if flags & DEASSIGN != 0 {
            self.events.check(fd)?;
            let mut irqfds = self.irqfds.lock();
            if let Some(place) = irqfds.bound.iter().position(|bound| *bound == (fd, gsi)) {
                irqfds.bound.swap_remove(place);
                self.events.unbind(fd, self, gsi);
            }
            return Ok(());
        }
        self.pins.try_call_once(|| pins().ok_or(Errno::EAGAIN))?;
        let mut irqfds = self.irqfds.lock();
        irqfds.bound.try_reserve(1).map_err(|_| Errno::ENOMEM)?;
        let resample = (flags & RESAMPLE != 0).then_some(resamplefd);
        self.events.bind(fd, self.clone(), (gsi, irqfds.routing.route(gsi)), resample)?;
        irqfds.bound.push((fd, gsi));
        Ok(())
    }

    fn set_routing(&self, routing: Routing) {
        let mut irqfds = self.irqfds.lock();
        irqfds.routing = routing;
        for &(event, gsi) in &irqfds.bound {
            self.events.redirect(event, self, gsi, irqfds.routing.route(gsi));
        }
    }

    /// All pins are nobody's any more.
    pub(super) fn release_pins(&self) {
        for (event, gsi) in core::mem::take(&mut self.irqfds.lock().bound) {
            self.events.unbind(event, self, gsi);
        }
    }
}

impl From<EventError> for Errno {
    fn from(error: EventError) -> Self {
        match error {
            EventError::None => Self::EBADF,
            EventError::Taken => Self::EBUSY,
        }
    }
}

impl Vm {
    fn bindings(&self) -> Result<Arc<Bindings>, Errno> {
        self.setup.lock().user.clone().ok_or(Errno::EINVAL)
    }

    /// KVM_IOEVENTFD.
    ///
    /// # Errors
    ///
    /// `EBADF` if the owner has no such SPI; else those of [`Ioeventfd::check`] and [`Table::change`].
    pub fn ioeventfd(&self, request: &Ioeventfd) -> Result<(), Errno> {
        request.check()?;
        let bindings = self.bindings()?;
        bindings.events.check(request.fd)?;
        bindings.stores.change(request, |count| {
            if let Some(machine) = self.frozen() {
                machine.bind_stores(count != 0);
            }
        })
    }

    /// KVM_SET_GSI_ROUTING.
    ///
    /// # Errors
    ///
    /// Those of [`Routing::new`].
    pub fn set_gsi_routing(&self, entries: &[Entry]) -> Result<(), Errno> {
        let routing = Routing::new(entries)?;
        // With its initialisation the interrupt controller has the usual one, as in KVM.
        let is_initialised = self.setup.lock().vgic.is_initialised();
        if is_initialised {
            self.bindings()?.set_routing(routing);
        }
        Ok(())
    }

    /// The VM's exits are to know of bindings that were made before there was a machine.
    pub(super) fn tell_of_stores(&self, machine: &Machine) {
        if let Ok(bindings) = self.bindings() {
            bindings.stores.tell(|count| machine.bind_stores(count != 0));
        }
    }

    /// KVM_IRQFD.
    ///
    /// # Errors
    ///
    /// `EINVAL` for unknown flags; `EAGAIN` before the interrupt controller is initialised; `EBADF` if the owner has no such
    /// SPI; `EBUSY` if it is bound, in KVM only to a pin of this VM; `ENOMEM`.
    pub fn irqfd(&self, request: &Irqfd) -> Result<(), Errno> {
        if request.flags & !(DEASSIGN | RESAMPLE) != 0 {
            return Err(Errno::EINVAL);
        }
        self.bindings()?.irqfd(request, || {
            let vgic = self.setup.lock().vgic.vgic.clone()?;
            Some(Pins { vgic, vcpus: self.vcpus() })
        })
    }
}
