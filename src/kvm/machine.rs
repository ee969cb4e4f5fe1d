//! A VM that has run: what its exits work on, fixed from then on and free of locks on the paths that matter.

use super::{
    Errno,
    bindings::Bindings,
    filter::Filter,
    interface::Hardware,
    interrupts::{Exiting, Outside},
    ioctl::{self, Api, UserVcpu},
    memory::Slots,
    owner::{Owner, Owning},
    pages::PageStates,
    physical::{self, MAX_CPUS},
    redistributors::Frames,
    translation::Translation,
    uapi::{MpState, vgic},
    vcpu::{Inner, Vcpu},
    vm::AllGuests,
};
use crate::{
    arch::{cpu, features, hcr, pmuv3::EventSet, timer},
    hypercall::{
        FilterAction,
        psci::{self, SystemEvent},
        services::Services,
        smccc::FunctionId,
    },
    mm::{Ipa, stage2::Memory},
    vcpu::context::ASK_FOR_PSCI_VERSION,
    vdev::{
        idregs::GuestIdRegisters,
        its::{self, Its},
        mmio::{AccessSize, Bus, Region},
        owner_gic::{Accessor, Frame, OwnerCpu},
        pl011::{self, Pl011},
        pl031::{self, Pl031},
        vgic::{Control, Vgic, VgicHost},
    },
};
use alloc::{collections::VecDeque, string::String, sync::Arc, vec::Vec};
use core::{
    fmt,
    ops::Range,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};
use spin::Mutex;

/// Where a VM's console goes.
#[derive(Clone, Copy)]
pub struct Serial {
    /// The VM, as the receiver knows it.
    pub vm: usize,
    /// Takes a byte.
    pub transmit: fn(usize, u8),
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({})", self.vm)
    }
}

/// A device that keel emulates beside the interrupt controller.
#[derive(Clone, Copy, Debug)]
pub enum Device {
    /// The console.
    Pl011 {
        /// Its registers.
        base: Ipa,
        /// Its interrupt.
        intid: u32,
    },
    /// The clock.
    Pl031 {
        /// Its registers.
        base: Ipa,
        /// Its interrupt.
        intid: u32,
        /// Seconds since 1970 when the machine's counter was 0.
        epoch: u64,
    },
}

/// Who answers an access.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    Distributor,
    /// From the first vCPU's on.
    Redistributors,
    Apart(Apart),
    Uart,
    Rtc,
}

/// Where a VM's interrupts come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Controller {
    /// A vGIC.
    Virtual,
    /// The machine's GIC: it owns the machine.
    Machine,
    /// Whoever runs it: by its pins, and told of the levels of its timers and PMU (KVM_CAP_ARM_USER_IRQ).
    None,
}

/// Where the parts of a VM's interrupt controller are that keel emulates.
#[derive(Clone, Debug)]
pub(super) enum VgicFrames {
    /// The VM has none, or the machine's.
    None,
    /// A GICv3.
    V3 { distributor: Ipa, redistributors: Vec<Frames> },
    /// A GICv2; its CPU interface is mapped.
    V2 { distributor: Ipa },
}

/// Who answers an access, and needs more to do it than the others.
#[derive(Clone, Copy, Debug)]
pub(super) enum Apart {
    /// A frame of the machine's GIC, for the VM that owns it; for another, the redistributors from this one's on, which are in
    /// another region than the first.
    Frame(Frame),
    /// The distributor of a GICv2, which shows each vCPU its own private interrupts.
    DistributorV2,
    /// The ITS.
    Its,
}

/// What a machine is made of.
pub(super) struct MachineSetup {
    pub name: String,
    pub vcpus: Vec<Arc<Vcpu>>,
    pub vgic: Arc<Vgic>,
    pub frames: VgicFrames,
    pub controller: Controller,
    /// Its ITS, if it has one, and where that is, if it was said.
    pub its: Option<(Arc<Its>, Option<Ipa>)>,
    /// Accesses to the CPU interface's registers that both groups share trap at all times.
    pub traps_common: bool,
    pub owner: Option<Owner>,
    pub api: Option<Api>,
    pub user: Option<User>,
    pub devices: Vec<Device>,
    pub psci: psci::Version,
    pub services: Services,
    pub filter: Filter,
    pub slots: Arc<Slots>,
    pub pages: Option<PageStates>,
    pub id_registers: GuestIdRegisters,
    pub pointer_authentication: bool,
    /// EL1 of its vCPUs is AArch32.
    pub aarch32: bool,
    pub serial: Serial,
    pub vttbr: u64,
    pub vtcr: u64,
    pub ipa_bits: u32,
    pub counter_offset: u64,
    /// The physical counter is behind the machine's as the virtual one is.
    pub is_offset: bool,
    /// The timers' interrupts, virtual and physical.
    pub timers: [u32; 2],
    /// The vCPUs' PMUs, if they have any.
    pub pmu: Option<Pmu>,
}

/// A VM's PMUs.
#[derive(Debug)]
pub struct Pmu {
    /// The interrupt of each.
    pub interrupts: Vec<Option<u32>>,
    /// The events that they may count, if not all.
    pub events: Option<EventSet>,
    /// Event counters of each.
    pub counters: u8,
}

/// What there is besides for a VM that its maker runs, by KVM_RUN.
#[derive(Debug)]
pub(super) struct User {
    pub stage2: Arc<Translation>,
    /// The end of its addresses: nothing beyond them is anybody's.
    pub end: Ipa,
    /// Accesses that hardware does not describe are its maker's too.
    pub nisv: bool,
    /// Accesses below are its maker's and nothing else: those below `end`, or none while stores are bound to events.
    pub unbound: AtomicU64,
    /// Those, and the events that are bound to its interrupts.
    pub bindings: Arc<Bindings>,
}

/// How a VM came to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// SYSTEM_OFF.
    Off,
    /// SYSTEM_RESET.
    Reset,
    /// SYSTEM_RESET2.
    Reset2,
    /// It did something that its machine cannot answer.
    Crash,
}

/// Bytes of input that wait for a guest to read: a pasted page.
const INPUT_WAITING: usize = 4096;

/// The console's UART and what was typed ahead of it.
#[derive(Debug)]
struct SerialPort {
    pl011: Pl011,
    /// Allocated once; never longer than [`INPUT_WAITING`].
    waiting: VecDeque<u8>,
}

impl SerialPort {
    fn new() -> Self {
        Self { pl011: Pl011::new(), waiting: VecDeque::with_capacity(INPUT_WAITING) }
    }

    /// Moves what waits into the UART as far as there is room.
    fn deliver(&mut self) {
        while self.pl011.can_receive()
            && let Some(byte) = self.waiting.pop_front()
        {
            self.pl011.receive(byte);
        }
    }
}

/// A VM that has run.
#[derive(Debug)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its vCPUs, by index.
    pub vcpus: Vec<Arc<Vcpu>>,
    pub(super) vgic: Arc<Vgic>,
    pub(super) its: Option<Arc<Its>>,
    /// What takes the vGIC's place in the VM that owns the machine.
    pub(super) owner: Option<Owner>,
    /// The vCPUs' PMUs, if they have any.
    pub(super) pmu: Option<Pmu>,
    /// The private interrupt of PMUs that is mapped to the machine's.
    pub(super) pmu_private: Option<u32>,
    /// KVM's API, if it may make VMs.
    pub(super) api: Option<Api>,
    /// What no device claims is for whoever runs it.
    pub(super) user: Option<User>,
    /// Where its interrupts come from.
    pub(super) controller: Controller,
    /// Its vCPUs may stand in for those of its maker: a vGICv3, AArch64, no PMU.
    pub(super) is_plain: bool,
    /// The EL1 timers' interrupts, virtual and physical, as the guest knows them.
    pub(super) timers: [u32; 2],
    pub(super) bus: Bus<Target>,
    uart: Option<(u32, Mutex<SerialPort>)>,
    rtc: Option<(u32, Mutex<Pl031>)>,
    /// The version of PSCI, as PSCI_VERSION returns it.
    psci: AtomicU32,
    /// What is answered without asking.
    psci_answer: AtomicU64,
    pub(super) services: Services,
    pub(super) filter: Filter,
    /// A function that nobody knows is not just NOT_SUPPORTED: a filter has a say, or it may be the owner's number for the
    /// stub.
    pub(super) dispatches_unknown: bool,
    pub(super) slots: Arc<Slots>,
    /// The states of a protected guest's pages.
    pub(super) pages: Option<PageStates>,
    /// Seconds since 1970 when the machine's counter was 0, if it knows.
    pub(super) epoch: Option<u64>,
    pub(super) id_registers: GuestIdRegisters,
    serial: Serial,
    pub(super) vttbr: u64,
    pub(super) vtcr: u64,
    pub(super) hcr: u64,
    counter_offset: AtomicU64,
    pub(super) is_offset: bool,
    event: AtomicU32,
    /// Index + 1 of the vCPU that last ran on each CPU: another one of the same VM must not find its translations.
    last: [AtomicU32; MAX_CPUS],
    frequency: u64,
}

impl Machine {
    pub(super) fn new(mut setup: MachineSetup) -> Result<Self, Errno> {
        let mut regions = Vec::new();
        if let Some(owner) = &setup.owner {
            let region = |(frame, start, length)| Region {
                name: "gic",
                start,
                length,
                device: Target::Apart(Apart::Frame(frame)),
            };
            regions.extend(owner.frames().map(region));
        } else {
            let mut add = |name, start, length, device| regions.push(Region { name, start, length, device });
            match setup.frames {
                VgicFrames::None => {}
                VgicFrames::V3 { distributor, redistributors } => {
                    add("intc", distributor, vgic::DIST_SIZE, Target::Distributor);
                    for Frames { base, first, count, goes_on } in redistributors {
                        let device = match first {
                            0 => Target::Redistributors,
                            first => Target::Apart(Apart::Frame(Frame::Redistributor(first))),
                        };
                        add("redistributors", Ipa(base), vgic::REDIST_SIZE * count as u64, device);
                        setup.vgic.set_last_redistributor(first + count - 1, !goes_on);
                    }
                }
                VgicFrames::V2 { distributor } => {
                    add("intc", distributor, vgic::V2_DIST_SIZE, Target::Apart(Apart::DistributorV2));
                }
            }
        }
        let (its, address) = setup.its.unzip();
        if let Some(start) = address.flatten() {
            regions.push(Region { name: "its", start, length: its::LENGTH, device: Target::Apart(Apart::Its) });
        }
        let (mut uart, mut rtc) = (None, None);
        let mut wall_clock = None;
        for device in &setup.devices {
            match *device {
                Device::Pl011 { base, intid } => {
                    regions.push(Region { name: "pl011", start: base, length: pl011::LENGTH, device: Target::Uart });
                    uart = Some((intid, Mutex::new(SerialPort::new())));
                }
                Device::Pl031 { base, intid, epoch } => {
                    regions.push(Region { name: "pl031", start: base, length: pl031::LENGTH, device: Target::Rtc });
                    let now = timer::now() / timer::frequency().max(1);
                    wall_clock = (epoch != 0).then_some(epoch);
                    rtc = Some((intid, Mutex::new(Pl031::new(epoch.wrapping_add(now), now))));
                }
            }
        }
        let mpidrs: Vec<u64> = setup.vcpus.iter().map(|vcpu| vcpu.mpidr()).collect();
        let vgic = setup.vgic;
        vgic.set_affinities(&mpidrs).map_err(|_| Errno::EINVAL)?;
        if setup.traps_common {
            vgic.always_control(Control::TRAP_COMMON);
            if let Some(owner) = &mut setup.owner {
                owner.gic.trap_common_registers();
            }
        } else if setup.controller == Controller::None {
            // Its CPU has none of these registers.
            vgic.always_control(Control::TRAP_COMMON | Control::TRAP_GROUP0 | Control::TRAP_GROUP1);
        }
        let mut timers = setup.timers;
        let pmu = setup.pmu;
        let mut pmu_private = None;
        if let Some(host) = physical::interrupts() {
            let physical = [host.virtual_timer, host.physical_timer];
            if setup.owner.is_some() {
                timers = physical;
            }
            for index in 0..setup.vcpus.len() {
                timers.into_iter().zip(physical).for_each(|(guest, host)| vgic.map_hw(index, guest, Some(host)));
                let private = pmu.as_ref().and_then(|pmu| pmu.interrupts.get(index).copied().flatten());
                if let (Some(guest @ 16..32), Some(host)) = (private, host.pmu) {
                    vgic.map_hw(index, guest, Some(host));
                    pmu_private = Some(guest);
                }
            }
        }
        let ids = crate::arch::cpu::id_registers();
        // CRm 7 op2 1 and CRm 4 op2 0.
        let mut hcr = hcr::guest_hcr(ids[49], ids[24], setup.pointer_authentication);
        if features::has_fwb() {
            hcr |= hcr::HCR_FWB;
        }
        if setup.aarch32 {
            hcr &= !hcr::HCR_RW;
        }
        if let Some(owner) = &setup.owner {
            let late = owner.traps().is_some();
            hcr = if late { hcr::late_owner_hcr(features::has_fwb()) } else { hcr::owner_hcr(hcr) };
        }
        let dispatches_unknown = !setup.filter.is_empty() || setup.owner.is_some();
        let machine = Self {
            name: setup.name,
            vcpus: setup.vcpus,
            vgic,
            controller: setup.controller,
            is_plain: setup.user.is_some()
                && setup.controller == Controller::Virtual
                && pmu.is_none()
                && !setup.is_offset
                && !setup.aarch32
                && !physical::has_gicv2(),
            its,
            owner: setup.owner,
            pmu,
            pmu_private,
            api: setup.api,
            user: setup.user,
            timers,
            bus: Bus::new(&regions).map_err(|_| Errno::EINVAL)?,
            uart,
            rtc,
            psci: AtomicU32::new(0),
            psci_answer: AtomicU64::new(ASK_FOR_PSCI_VERSION),
            services: setup.services,
            dispatches_unknown,
            filter: setup.filter,
            slots: setup.slots,
            pages: setup.pages,
            epoch: wall_clock,
            id_registers: setup.id_registers,
            serial: setup.serial,
            vttbr: setup.vttbr,
            vtcr: setup.vtcr,
            hcr,
            counter_offset: AtomicU64::new(setup.counter_offset),
            is_offset: setup.is_offset,
            event: AtomicU32::new(0),
            last: [const { AtomicU32::new(0) }; MAX_CPUS],
            frequency: timer::frequency().max(1),
        };
        debug_assert!(setup.ipa_bits >= 32);
        machine.set_psci_version(setup.psci);
        Ok(machine)
    }

    /// EL1 of its vCPUs is AArch32.
    #[inline]
    pub(super) fn is_aarch32(&self) -> bool {
        self.hcr & hcr::HCR_RW == 0
    }

    /// The version of PSCI that guests see.
    #[inline]
    pub(super) fn psci_version(&self) -> psci::Version {
        psci::Version::from_encoding(self.psci.load(Ordering::Relaxed)).unwrap_or(psci::Version::V0_1)
    }

    /// What PSCI_VERSION answers, if that is the whole truth: a number, and no filter has a say.
    fn plain_psci_version(&self) -> Option<u32> {
        const PSCI_VERSION: FunctionId = FunctionId(0x8400_0000);
        let version = self.psci_version();
        let plain = version > psci::Version::V0_1 && self.filter.action(PSCI_VERSION) == FilterAction::Handle;
        plain.then_some(version.encoding())
    }

    /// Changes it: vCPUs see it when a CPU next loads them.
    pub(super) fn set_psci_version(&self, version: psci::Version) {
        self.psci.store(version.encoding(), Ordering::Relaxed);
        let answer = self.plain_psci_version().map_or(ASK_FOR_PSCI_VERSION, u64::from);
        self.psci_answer.store(answer, Ordering::Relaxed);
    }

    /// What assembly answers to PSCI_VERSION, or that it is to ask.
    pub(super) fn psci_answer(&self) -> u64 {
        self.psci_answer.load(Ordering::Relaxed)
    }

    /// CNTVOFF_EL2: what the virtual counter is behind the physical one.
    #[inline]
    pub(super) fn counter_offset(&self) -> u64 {
        self.counter_offset.load(Ordering::Relaxed)
    }

    /// Changes it: a vCPU has it from when a CPU next loads it.
    pub(super) fn set_counter_offset(&self, offset: u64) {
        self.counter_offset.store(offset, Ordering::Relaxed);
    }

    /// Stops the VM: every CPU that has one of its vCPUs looks. The first reason stays.
    pub fn stop(&self, reason: Stop) {
        let code = match reason {
            Stop::Off => 1,
            Stop::Reset => 2,
            Stop::Crash => 3,
            Stop::Reset2 => 4,
        };
        let _ = self.event.compare_exchange(0, code, Ordering::SeqCst, Ordering::SeqCst);
        for vcpu in &self.vcpus {
            physical::call_attention(vcpu.cpu());
        }
    }

    /// Why the VM is to stop, if it is.
    #[inline]
    pub fn stopping(&self) -> Option<Stop> {
        match self.event.load(Ordering::SeqCst) {
            0 => None,
            1 => Some(Stop::Off),
            2 => Some(Stop::Reset),
            4 => Some(Stop::Reset2),
            _ => Some(Stop::Crash),
        }
    }

    /// Stores are bound to events, or no longer are.
    pub(super) fn bind_stores(&self, are_bound: bool) {
        if let Some(user) = &self.user {
            user.unbound.store(if are_bound { 0 } else { user.end.0 }, Ordering::SeqCst);
        }
    }

    /// An interrupt of the machine's arrived on this CPU; it is acknowledged, its priority dropped, and it is still active. `true`
    /// if it was an event that is bound to an interrupt of a VM, and is dealt with.
    pub(super) fn take_event(&self, intid: u32) -> bool {
        let of_user = self.user.as_ref().is_some_and(|user| user.bindings.take_event(intid));
        of_user || self.owner.as_ref().is_some_and(|owner| owner.events.take(intid))
    }

    /// The guest may not write at `ipa`, and tries. `None`: it may now, if it could at all. Otherwise the access is its maker's.
    pub(super) fn take_write(&self, user: &User, ipa: Ipa) -> Option<Result<(), Errno>> {
        match self.slots.kind(ipa) {
            Some(Memory::Normal) => {}
            Some(_) => return Some(Ok(())),
            // The slot has just gone: the next try finds nothing.
            None => return None,
        }
        // At once for whoever reads the log: a page is noted, or read-only.
        let mut stage2 = user.stage2.change();
        self.slots.dirty.mark(ipa.0..ipa.0 + 1);
        stage2.allow_write(ipa, &AllGuests).err().map(|error| Err(error.into()))
    }

    /// keel has written to the guest's memory.
    pub(super) fn note_write(&self, written: Range<u64>) {
        self.slots.dirty.mark(written);
    }

    /// Its maker is told that it is to stop: its vCPUs are off, wherever they are.
    pub(super) fn switch_off(&self) {
        for vcpu in &self.vcpus {
            vcpu.set_mp_state(MpState::Stopped);
            physical::call_attention(vcpu.cpu());
        }
    }

    /// Whether VMs are there that it made.
    pub fn has_made_vms(&self) -> bool {
        self.api.as_ref().is_some_and(|api| !api.is_idle())
    }

    /// KVM_RUN in the stead of `vcpu`, which made the call and is off this CPU.
    ///
    /// # Errors
    ///
    /// Those of `ioctl::run::run`.
    pub fn run_for(&self, vcpu: &Vcpu, user: &UserVcpu, host: &impl ioctl::run::Host) -> Result<u64, Errno> {
        let now = timer::now();
        let own = super::run::deadlines(&vcpu.parked().state, self).into_iter().filter_map(|(_, at)| at).min();
        let host = Sooner { host, at: own.map(|at| at.max(now)) };
        ioctl::run::run(user, &host)
    }

    /// Its memory, for calls of KVM's API.
    pub(super) fn memory(&self) -> &Slots {
        &self.slots
    }

    /// Devices as after reset; no vCPU may be resident.
    pub fn reset(&self) {
        self.vgic.reset();
        if let Some(its) = &self.its {
            its.reset();
        }
        if let Some(owner) = &self.owner {
            owner.reset();
        }
        if let Some(api) = &self.api {
            api.close_all();
        }
        if let Some((_, uart)) = &self.uart {
            *uart.lock() = SerialPort::new();
        }
        if let Some((_, rtc)) = &self.rtc {
            rtc.lock().reset(self.seconds());
        }
        for last in &self.last {
            last.store(0, Ordering::Relaxed);
        }
        if let Some(pages) = &self.pages {
            pages.reset();
        }
        self.event.store(0, Ordering::SeqCst);
    }

    /// Whether `vcpu`, which no CPU holds, has an interrupt to take.
    pub(super) fn has_pending_interrupt(&self, vcpu: usize, inner: &Inner) -> bool {
        match &self.owner {
            Some(owner) => owner.gic.pending(&inner.owner),
            None => self.vgic.pending(vcpu, &inner.vgic),
        }
    }

    /// Sets the level of a timer of `vcpu`, which no CPU holds.
    pub(super) fn set_timer_level(&self, vcpu: usize, intid: u32, level: bool) {
        self.vgic.set_hw_level(vcpu, intid, level);
    }

    /// The shared interrupt of the PMU of `vcpu`, if it is one.
    pub(super) fn pmu_shared(&self, vcpu: usize) -> Option<u32> {
        self.pmu.as_ref()?.interrupts.get(vcpu).copied().flatten().filter(|&intid| intid >= 32)
    }

    /// Whether this VM owns the machine.
    pub fn is_owner(&self) -> bool {
        self.owner.is_some()
    }

    /// Whether this VM owns the machine and keel is leaving.
    pub fn is_leaving(&self) -> bool {
        self.owner.as_ref().is_some_and(Owner::is_leaving)
    }

    /// Turns this CPU off, whose vCPU of this VM is off. Comes back only if firmware does not do it.
    pub fn turn_off(&self, vcpu: &Vcpu) {
        if let Some(owner) = &self.owner {
            owner.turn_off(vcpu.index());
        }
    }

    /// An interrupt of the machine that is no VM's timer arrived on this CPU, where the owner's vCPU is not resident; it is
    /// acknowledged, and still active. `None` if it is not the owner's; whether it is to look at it.
    pub fn take_interrupt(&self, intid: u32) -> Option<bool> {
        let owner = self.owner.as_ref()?;
        if owner.events.take(intid) {
            return Some(false);
        }
        let vcpu = self.vcpus.iter().find(|vcpu| vcpu.cpu() == cpu::index())?;
        owner.gic.queue(vcpu.index(), intid, &mut vcpu.parked().owner, owner);
        Some(true)
    }

    /// What the owner's vCPU does to a frame of the machine's GIC.
    #[inline(never)]
    pub(super) fn access_owned(
        &self,
        frame: Frame,
        offset: u64,
        size: AccessSize,
        value: Option<u64>,
        vcpu: &Vcpu,
        cpu: &mut OwnerCpu,
    ) -> u64 {
        let Some(owner) = &self.owner else { return 0 };
        let host = Owning { machine: self, vcpu };
        let mut by = Accessor { vcpu: vcpu.index(), cpu, vif: &mut Hardware, gic: owner, host: &host };
        match value {
            Some(value) => {
                owner.gic.write(frame, offset, size, value, &mut by);
                0
            }
            None => owner.gic.read(frame, offset, size, &mut by),
        }
    }

    /// Notes that vCPU `index` runs on this CPU; whether another of the VM did so last.
    #[inline(always)]
    pub(super) fn note_running(&self, index: usize) -> bool {
        let Some(last) = self.last.get(cpu::index()) else { return true };
        let (before, now) = (last.load(Ordering::Relaxed), index as u32 + 1);
        if before == now {
            return false;
        }
        last.store(now, Ordering::Relaxed);
        before != 0
    }

    /// Seconds that the machine's counter has counted.
    fn seconds(&self) -> u64 {
        timer::now() / self.frequency
    }

    /// Raises the clock's alarm if it is due at `now`, a tick of the physical counter; when it will be, if it is not.
    pub fn advance_clock(&self, now: u64) -> Option<u64> {
        let (intid, rtc) = self.rtc.as_ref()?;
        let mut rtc = rtc.lock();
        let due = rtc.next_alarm()?.saturating_mul(self.frequency);
        if due > now {
            return Some(due);
        }
        rtc.advance(now / self.frequency);
        self.vgic.set_spi(*intid, rtc.line(), &Outside(self));
        None
    }

    /// A byte for the VM's console arrived. What the guest's FIFO has no room for waits; `false`, and the byte is lost,
    /// when too much waits already.
    pub fn receive(&self, byte: u8) -> bool {
        let Some((intid, uart)) = &self.uart else { return false };
        let mut port = uart.lock();
        let taken = port.waiting.len() < INPUT_WAITING;
        if taken {
            port.waiting.push_back(byte);
            port.deliver();
        }
        self.vgic.set_spi(*intid, port.pl011.line(), &Outside(self));
        taken
    }

    /// Carries out a load.
    #[inline(always)]
    pub(super) fn read(&self, target: Target, offset: u64, size: AccessSize, host: &dyn VgicHost) -> u64 {
        match target {
            Target::Distributor => self.vgic.dist_read(offset, size, host),
            Target::Redistributors => {
                let (vcpu, offset) = redistributor(offset);
                self.vgic.redist_read(vcpu, offset, size, host)
            }
            // Goes another way: `access_owned`, `access_its`, and `Vgic::v2_read`.
            Target::Apart(_) => 0,
            Target::Uart => self.with_uart(host, |uart, _| uart.read(offset, size)),
            Target::Rtc => self.with_rtc(host, |rtc, now| rtc.read(offset, size, now)),
        }
    }

    /// Carries out a store.
    #[inline(always)]
    pub(super) fn write(&self, target: Target, offset: u64, size: AccessSize, value: u64, host: &dyn VgicHost) {
        match target {
            Target::Distributor => self.vgic.dist_write(offset, size, value, host),
            Target::Redistributors => {
                let (vcpu, offset) = redistributor(offset);
                self.vgic.redist_write(vcpu, offset, size, value, host);
            }
            Target::Apart(_) => {}
            Target::Uart => {
                self.with_uart(host, |uart, serial| {
                    uart.write(offset, size, value, &mut |byte| (serial.transmit)(serial.vm, byte));
                    0
                });
            }
            Target::Rtc => {
                self.with_rtc(host, |rtc, now| {
                    rtc.write(offset, size, value, now);
                    0
                });
                // The CPU that looks after the clock has to know of a new alarm.
                if let Some(vcpu) = self.vcpus.first() {
                    physical::call_attention(vcpu.cpu());
                }
            }
        }
    }

    /// A load, or a store of `value`, in the frames of the ITS.
    pub(super) fn access_its(&self, offset: u64, size: AccessSize, value: Option<u64>, host: &Exiting<'_>) -> u64 {
        let (Some(its), by) = (&self.its, host.vcpu.index()) else { return 0 };
        match value {
            Some(value) => {
                its.write(offset, size, value, by, &self.vgic, host);
                0
            }
            None => its.read(offset, size, by, &self.vgic, host),
        }
    }

    /// A load, or a store of `value`, in the frames of redistributors from `first` on.
    pub(super) fn access_redistributor(
        &self,
        first: Frame,
        offset: u64,
        size: AccessSize,
        value: Option<u64>,
        host: &Exiting<'_>,
    ) -> u64 {
        let Frame::Redistributor(first) = first else { return 0 };
        let (vcpu, offset) = redistributor(offset);
        match value {
            Some(value) => {
                self.vgic.redist_write(first + vcpu, offset, size, value, host);
                0
            }
            None => self.vgic.redist_read(first + vcpu, offset, size, host),
        }
    }

    /// Carries out the load of a word that changes nothing anywhere; `None` for any other, which [`read`](Self::read) does.
    #[inline(always)]
    pub(super) fn peek(&self, target: Target, offset: u64) -> Option<u32> {
        match target {
            Target::Distributor => self.vgic.dist_peek(offset),
            Target::Uart => self.uart.as_ref()?.1.lock().pl011.peek(offset),
            Target::Redistributors | Target::Apart(_) | Target::Rtc => None,
        }
    }

    fn with_uart(&self, host: &dyn VgicHost, access: impl FnOnce(&mut Pl011, Serial) -> u64) -> u64 {
        let Some((intid, uart)) = &self.uart else { return 0 };
        let mut port = uart.lock();
        let before = port.pl011.line();
        let value = access(&mut port.pl011, self.serial);
        if !port.waiting.is_empty() {
            port.deliver();
        }
        let after = port.pl011.line();
        // Under the lock, so that levels arrive in the order they came about.
        if before != after {
            self.vgic.set_spi(*intid, after, host);
        }
        value
    }

    fn with_rtc(&self, host: &dyn VgicHost, access: impl FnOnce(&mut Pl031, u64) -> u64) -> u64 {
        let Some((intid, rtc)) = &self.rtc else { return 0 };
        let mut rtc = rtc.lock();
        let value = access(&mut rtc, self.seconds());
        self.vgic.set_spi(*intid, rtc.line(), host);
        value
    }
}

/// A host that wants its CPU back at another time too.
struct Sooner<'a, H> {
    host: &'a H,
    at: Option<u64>,
}

impl<H: ioctl::run::Host> ioctl::run::Host for Sooner<'_, H> {
    fn interrupt(&self, intid: u32) -> bool {
        self.host.interrupt(intid)
    }

    fn deadline(&self) -> Option<u64> {
        [self.host.deadline(), self.at].into_iter().flatten().min()
    }
}

/// Index of the vCPU whose redistributor is at `offset` of the window, and the offset in it.
fn redistributor(offset: u64) -> (usize, u64) {
    ((offset / vgic::REDIST_SIZE) as usize, offset % vgic::REDIST_SIZE)
}

/// The stop that a system call of PSCI asks for.
pub(super) fn stop_of(event: SystemEvent) -> Stop {
    match event {
        SystemEvent::Off | SystemEvent::Hibernate => Stop::Off,
        SystemEvent::Reset => Stop::Reset,
        SystemEvent::Reset2 { .. } => Stop::Reset2,
    }
}
