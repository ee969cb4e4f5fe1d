//! KVM_IOEVENTFD and KVM_IRQFD under keel, where an event is a shared interrupt of the owner's: stores of guests that become
//! pending there, and interrupts that are a guest's instead.

use super::{
    kvm::{clean, well},
    programs::{program, programs},
};
use crate::{
    check, check_eq,
    harness::{Case, Check, Under::*, case, eventually_with_irqs, failed, join, skip, start},
};
use core::{
    arch::global_asm,
    sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst},
};
use keel_kvm::{
    Backend, Device, Errno, Exit, Hypercall, SYSTEM, System, Vcpu, Vm, number,
    page::{PAGE, Page},
    script::Events,
    uapi::{Ioeventfd, IrqRoutingEntry, Irqfd, VcpuInit, device, feature, ioeventfd, irqfd, reg, routing, vgic},
};
use keel_test_kernel::{
    irq,
    machine::Machine,
    mmio::{read32, write32},
    mrs,
    platform::GICD,
    time,
};

pub const CASES: &[Case] = &[
    case("kvm/ioeventfd", 1, Root, stores),
    case("kvm/ioeventfd_taken", 1, Root, stores_taken),
    case("kvm/irqfd", 1, Root, interrupts),
    case("kvm/irqfd_resample", 1, Root, resampled),
    case("kvm/irqfd_level", 1, Root, level),
    case("kvm/irqfd_closed", 1, Root, closed),
    case("kvm/irqfd_message", 1, Root, messages),
    case("kvm/events_between", 2, Root, between),
];

/// Shared interrupts that no device of `virt` has.
const EVENT: u32 = 90;
const OTHER_EVENT: u32 = 91;
const RESAMPLE: u32 = 92;
/// The interrupt of the guest's that events are, and its pin.
const GUEST_INTID: u32 = 40;
const PIN: u32 = GUEST_INTID - 32;
/// The board's PL061, its interrupt, and registers: direction, sense, event, enable.
const PL061: usize = 0x0903_0000;
const PL061_INTID: u32 = 39;
const GPIODIR: usize = PL061 + 0x400;
const GPIOIS: usize = PL061 + 0x404;
const GPIOIEV: usize = PL061 + 0x40c;
const GPIOIE: usize = PL061 + 0x410;

const ENABLE: usize = 0x100;
const PENDING: usize = 0x200;
const CLEAR_PENDING: usize = 0x280;
const ACTIVE: usize = 0x300;
const CONFIGURATION: usize = 0xc00;

const BASE: u64 = 0x4000_0000;
const SHARED_AT: u64 = BASE + 0x1000;
const DEVICE: u64 = 0x0a00_0000;
const DOORBELL: u64 = 0x0a00_1000;
const VGICD: u64 = 0x0800_0000;
const VGICR: u64 = 0x080a_0000;

static RUN: [Page; 2] = [Page::ZERO; 2];
static RAM: [[Page; 1]; 2] = [const { [Page::ZERO; 1] }; 2];
/// Of both guests: a count.
static SHARED: [Page; 1] = [Page::ZERO];

/// The vCPU that another CPU of the root runs until it is told to end, and its last answer.
static OTHER: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicU64 = AtomicU64::new(0);
static LAST: AtomicI64 = AtomicI64::new(0);
const WAKE: u32 = 5;

global_asm!(
    ".pushsection .rodata.kvm_events, \"a\"",
    ".balign 8",
    // x2: where a store goes, x3: what; x4: how many of them before the device (x1) is told.
    ".global guest_rings, guest_rings_end",
    "guest_rings:",
    "mov x5, x4",
    "2: str w3, [x2]",
    "subs x5, x5, #1",
    "b.ne 2b",
    "str wzr, [x1]",
    "b guest_rings",
    ".balign 8",
    "guest_rings_end:",
    // The same with a store of 8 bytes.
    ".global guest_rings_wide, guest_rings_wide_end",
    "guest_rings_wide:",
    "str x3, [x2]",
    "str wzr, [x1]",
    "b guest_rings_wide",
    ".balign 8",
    "guest_rings_wide_end:",
    // x2: GICD; x5: bits of x4, GICD_ISENABLER; x7: what x6, GICD_ICFGR, gets. Tells the device (x1) that it is ready, and then of
    // each interrupt, before it ends it; if x8 is the address of a count, it counts instead.
    ".global guest_listens, guest_listens_end",
    "guest_listens:",
    "mov w3, #2",
    "str w3, [x2]",
    "str w7, [x6]",
    "str w5, [x4]",
    "mov x3, #0xf0",
    "msr S3_0_C4_C6_0, x3", // ICC_PMR_EL1
    "mov x3, #1",
    "msr S3_0_C12_C12_7, x3", // ICC_IGRPEN1_EL1
    "isb",
    "str wzr, [x1]",
    "2: wfi",
    "mrs x0, isr_el1",
    "cbz x0, 2b",
    "mrs x9, S3_0_C12_C12_0", // ICC_IAR1_EL1
    "dsb sy",
    "cbnz x8, 3f",
    "str w9, [x1, #8]",
    "msr S3_0_C12_C12_1, x9", // ICC_EOIR1_EL1
    "isb",
    "b 2b",
    "3: msr S3_0_C12_C12_1, x9",
    "isb",
    "ldr x0, [x8]",
    "add x0, x0, #1",
    "str x0, [x8]",
    "b 2b",
    ".balign 8",
    "guest_listens_end:",
    // Rings (x2) and waits until the count at x8 says that this was heard, x4 times.
    ".global guest_waits, guest_waits_end",
    "guest_waits:",
    "mov x5, #0",
    "2: str w3, [x2]",
    "add x5, x5, #1",
    "3: ldr x0, [x8]",
    "cmp x0, x5",
    "b.lo 3b",
    "cmp x5, x4",
    "b.ne 2b",
    "str w0, [x1]",
    "b .",
    ".balign 8",
    "guest_waits_end:",
    ".popsection",
);

programs!(
    guest_rings guest_rings_end, guest_rings_wide guest_rings_wide_end, guest_listens guest_listens_end,
    guest_waits guest_waits_end
);

/// A VM with one vCPU and a GICv3.
struct Guest {
    // Dropped in this order.
    vcpu: Vcpu<Hypercall>,
    gic: Device<Hypercall>,
    vm: Vm<Hypercall>,
}

impl Guest {
    /// The `n`th, with these values of x1 on.
    fn new(n: usize, program: &[u32], values: &[u64]) -> Check<Self> {
        RAM[n][0].load(program);
        clean(&RAM[n][0]);
        let vm = well("KVM_CREATE_VM", System(Hypercall).create_vm(0))?;
        well("KVM_SET_USER_MEMORY_REGION", vm.set_memory(0, 0, BASE, &RAM[n]))?;
        well("KVM_SET_USER_MEMORY_REGION", vm.set_memory(1, 0, SHARED_AT, &SHARED))?;
        let gic = well("KVM_CREATE_DEVICE", vm.create_device(device::VGIC_V3))?;
        let vcpu = well("KVM_CREATE_VCPU", vm.create_vcpu(0, &RUN[n]))?;
        let target = well("KVM_ARM_PREFERRED_TARGET", vm.preferred_target())?;
        let features = [feature::PSCI_0_2, 0, 0, 0, 0, 0, 0];
        well("KVM_ARM_VCPU_INIT", vcpu.init(&VcpuInit { features, ..target }))?;
        let nothing = Irqfd { fd: EVENT, gsi: PIN, ..Irqfd::default() };
        check_eq!(vm.irqfd(&nothing), Err(Errno::EAGAIN), "KVM_IRQFD before the vGIC is complete");
        for (kind, address) in [(vgic::V3_DIST, VGICD), (vgic::V3_REDIST, VGICR)] {
            well("KVM_SET_DEVICE_ATTR", gic.set_attribute(vgic::ADDR, kind, &address))?;
        }
        well("KVM_SET_DEVICE_ATTR", gic.set_attribute(vgic::CTRL, vgic::INIT, &()))?;
        well("KVM_SET_ONE_REG", vcpu.set_register(reg::PC, BASE))?;
        for (number, value) in (1..).zip([DEVICE].iter().chain(values)) {
            well("KVM_SET_ONE_REG", vcpu.set_register(reg::x(number), *value))?;
        }
        Ok(Self { vcpu, gic, vm })
    }

    /// One that listens to `intid`, ready.
    fn listening(n: usize, intid: u32, edge: bool, count: u64) -> Check<Self> {
        let guest = Self::listener(n, intid, edge, count)?;
        check_eq!(guest.exit()?, told(0, 0), "the guest that is ready");
        Ok(guest)
    }

    /// The same before it has run.
    fn listener(n: usize, intid: u32, edge: bool, count: u64) -> Check<Self> {
        let (word, field) = (u64::from(intid / 32), u64::from(intid / 16));
        let configuration = if edge { 2_u64 << (intid % 16 * 2) } else { 0 };
        let [enable, configure] = [VGICD + 0x100 + 4 * word, VGICD + 0xc00 + 4 * field];
        let values = [VGICD, 0, enable, 1 << (intid % 32), configure, configuration, count];
        Self::new(n, program!(guest_listens, guest_listens_end), &values)
    }

    fn set(&self, n: u64, value: u64) -> Check {
        well("KVM_SET_ONE_REG", self.vcpu.set_register(reg::x(n), value))
    }

    /// How it leaves next; what interrupts the root is somebody else's.
    fn exit(&self) -> Check<Exit> {
        for _ in 0..2000 {
            // What ends the run of a guest that sleeps and should not.
            time::Timer::Virtual.arm(1000);
            let result = self.vcpu.run();
            time::Timer::Virtual.stop();
            if result != Err(Errno::EINTR) {
                return well("KVM_RUN", result);
            }
        }
        let pc = well("KVM_GET_ONE_REG", self.vcpu.register(reg::PC))?;
        Err(failed(format_args!("the guest does not leave, PC {pc:#x}")))
    }

    /// Runs it for a while, in which it is not to leave.
    fn rest(&self, what: &str) -> Check {
        for _ in 0..3 {
            time::Timer::Virtual.arm(200);
            let result = self.vcpu.run();
            time::Timer::Virtual.stop();
            check_eq!(result, Err(Errno::EINTR), "KVM_RUN {what}");
        }
        Ok(())
    }

    fn bind_store(&self, addr: u64, len: u32, datamatch: Option<u64>, event: u32) -> Result<(), Errno> {
        self.vm.ioeventfd(&store(addr, len, datamatch, event))
    }

    fn bind(&self, event: u32, pin: u32, resample: Option<u32>) -> Result<(), Errno> {
        let flags = if resample.is_some() { irqfd::RESAMPLE } else { 0 };
        let binding =
            Irqfd { fd: event, gsi: pin, flags, resamplefd: resample.unwrap_or_default(), ..Irqfd::default() };
        self.vm.irqfd(&binding)
    }

    fn unbind(&self, event: u32, pin: u32) -> Result<(), Errno> {
        self.vm.irqfd(&Irqfd { fd: event, gsi: pin, flags: irqfd::DEASSIGN, ..Irqfd::default() })
    }
}

/// The script's events: SPIs without a device, on this CPU.
pub struct SharedInterrupts;

impl Events for SharedInterrupts {
    fn number(&self, n: u32) -> u32 {
        EVENT + n
    }

    fn happen(&self, n: u32) {
        self.prepare(n);
        // It is bound, so that it is taken before the next instruction, and not by this kernel.
        irq::pend(self.number(n));
        irq::disable(self.number(n), 0);
    }

    fn prepare(&self, n: u32) {
        set_up(self.number(n), mrs!("mpidr_el1"));
    }

    fn has_happened(&self, n: u32) -> bool {
        let intid = self.number(n);
        let pending = is_set(PENDING, intid);
        clear(CLEAR_PENDING, intid);
        pending
    }
}

fn store(addr: u64, len: u32, datamatch: Option<u64>, fd: u32) -> Ioeventfd {
    let flags = if datamatch.is_some() { ioeventfd::DATAMATCH } else { 0 };
    Ioeventfd { addr, len, fd, flags, datamatch: datamatch.unwrap_or_default(), ..Ioeventfd::default() }
}

fn told(offset: u64, value: u32) -> Exit {
    Exit::MmioWrite { address: DEVICE + offset, size: 4, value: value.into() }
}

fn is_set(register: usize, intid: u32) -> bool {
    read32(GICD + register + intid as usize / 32 * 4) >> (intid % 32) & 1 != 0
}

fn clear(register: usize, intid: u32) {
    write32(GICD + register + intid as usize / 32 * 4, 1 << (intid % 32));
}

/// Makes an SPI edge-triggered, and sends it to `mpidr`.
fn set_up(intid: u32, mpidr: u64) {
    let register = GICD + CONFIGURATION + intid as usize / 16 * 4;
    write32(register, read32(register) | 2 << (intid % 16 * 2));
    irq::route(intid, mpidr & 0xff_00ff_ffff);
    irq::set_priority(intid, 0, 0xa0);
    irq::enable(intid, 0);
}

/// A store that is an event makes its interrupt pending, and the guest goes on.
fn stores(_: &'static Machine) -> Check {
    let guest = Guest::new(0, program!(guest_rings, guest_rings_end), &[DOORBELL, 7, 1])?;
    // Bound before the first run, and after it.
    for round in 0..2 {
        well("KVM_IOEVENTFD", guest.bind_store(DOORBELL, 4, Some(7), EVENT))?;
        well("KVM_IOEVENTFD", guest.bind_store(DOORBELL + 8, 0, None, OTHER_EVENT))?;
        for (address, value, event) in [
            (DOORBELL, 7, Some(EVENT)),
            (DOORBELL, 8, None),
            (DOORBELL + 4, 7, None),
            (DOORBELL + 8, 99, Some(OTHER_EVENT)),
            (DOORBELL, 7, Some(EVENT)),
        ] {
            guest.set(2, address)?;
            guest.set(3, value)?;
            if event.is_none() {
                let seen = Exit::MmioWrite { address, size: 4, value };
                check_eq!(guest.exit()?, seen, "a store of {value} to {address:#x}, which is no event");
            }
            check_eq!(guest.exit()?, told(0, 0), "the exit after a store of {value} to {address:#x}");
            for known in [EVENT, OTHER_EVENT] {
                let pending = is_set(PENDING, known);
                check_eq!(pending, event == Some(known), "event {known} after {value} to {address:#x}, round {round}");
                clear(CLEAR_PENDING, known);
            }
        }
        let end = |binding: Ioeventfd| guest.vm.ioeventfd(&Ioeventfd { flags: binding.flags | 4, ..binding });
        check_eq!(end(store(DOORBELL, 4, Some(7), OTHER_EVENT)), Err(Errno::ENOENT), "the end of another's");
        check_eq!(end(store(DOORBELL, 4, Some(7), EVENT)), Ok(()), "its end");
        check_eq!(end(store(DOORBELL + 8, 0, None, OTHER_EVENT)), Ok(()), "the other's end");
        guest.set(2, DOORBELL)?;
        guest.set(3, 7)?;
        let seen = Exit::MmioWrite { address: DOORBELL, size: 4, value: 7 };
        check_eq!(guest.exit()?, seen, "a store that is no event any more");
        check_eq!(guest.exit()?, told(0, 0), "the exit after it");
        check_eq!(is_set(PENDING, EVENT), false, "its event");
    }
    // Those that the owner does not have.
    for event in [0, 16, 31, 1020, 1023, 5000, u32::MAX] {
        check_eq!(guest.bind_store(DOORBELL, 4, None, event), Err(Errno::EBADF), "KVM_IOEVENTFD of {event}");
    }
    drop(guest);
    let guest = Guest::new(0, program!(guest_rings_wide, guest_rings_wide_end), &[DOORBELL, 1 << 63 | 1])?;
    well("KVM_IOEVENTFD", guest.bind_store(DOORBELL, 8, Some(1 << 63 | 1), EVENT))?;
    check_eq!(guest.exit()?, told(0, 0), "the exit after a store of 8 bytes");
    check_eq!(is_set(PENDING, EVENT), true, "its event");
    clear(CLEAR_PENDING, EVENT);
    Ok(())
}

/// What an event does to its owner is what every interrupt does: it ends a run, once for however many stores.
fn stores_taken(machine: &'static Machine) -> Check {
    const STORES: u64 = 300;
    let guest = Guest::new(0, program!(guest_rings, guest_rings_end), &[DOORBELL, 0, STORES])?;
    well("KVM_IOEVENTFD", guest.bind_store(DOORBELL, 4, None, EVENT))?;
    set_up(EVENT, machine.cpus()[0]);
    let before = irq::count(0, EVENT);
    let mut interrupted = 0;
    let exit = loop {
        match guest.vcpu.run() {
            // The interrupt is not taken: so the root is interrupted by nothing else.
            Err(Errno::EINTR) if interrupted < 10 => interrupted += 1,
            result => break result,
        }
        check_eq!(irq::count(0, EVENT), before, "interrupts taken while they are masked");
        eventually_with_irqs("the event", || irq::count(0, EVENT) != before)?;
        irq::disable(EVENT, 0);
    };
    check_eq!(exit, Ok(told(0, 0)), "the exit after {STORES} stores");
    check_eq!(interrupted, 1, "runs that ended");
    check_eq!(irq::count(0, EVENT), before + 1, "interrupts taken");
    check_eq!(is_set(PENDING, EVENT), true, "the event of the other stores");
    clear(CLEAR_PENDING, EVENT);
    Ok(())
}

/// A bound interrupt is the guest's, not the root's.
fn interrupts(machine: &'static Machine) -> Check {
    let guest = Guest::listening(0, GUEST_INTID, true, 0)?;
    set_up(EVENT, machine.cpus()[0]);
    let taken = irq::count(0, EVENT);
    for event in [0, 31, 1020, u32::MAX] {
        check_eq!(guest.bind(event, PIN, None), Err(Errno::EBADF), "KVM_IRQFD of {event}");
        check_eq!(guest.bind(EVENT, PIN, Some(event)), Err(Errno::EBADF), "KVM_IRQFD that resamples {event}");
        check_eq!(guest.unbind(event, PIN), Err(Errno::EBADF), "the end of {event}");
    }
    well("KVM_IRQFD", guest.bind(EVENT, PIN, None))?;
    for pin in [PIN, PIN + 1] {
        check_eq!(guest.bind(EVENT, pin, None), Err(Errno::EBUSY), "KVM_IRQFD of what is bound, pin {pin}");
    }
    // A pin that is none.
    well("KVM_IRQFD", guest.bind(OTHER_EVENT, u32::MAX, None))?;
    set_up(OTHER_EVENT, machine.cpus()[0]);
    irq::pend(OTHER_EVENT);
    guest.rest("after an event of no pin")?;
    for round in 0..5 {
        irq::pend(EVENT);
        check_eq!(guest.exit()?, told(8, GUEST_INTID), "the guest's interrupt, round {round}");
        // While the guest handles the first.
        irq::pend(EVENT);
        check_eq!(guest.exit()?, told(8, GUEST_INTID), "the second of round {round}");
        guest.rest("without an event")?;
    }
    // GICD_TYPER.MBIS: there is GICD_SETSPI_NSR.
    if read32(GICD + 4) >> 16 & 1 != 0 {
        write32(GICD + 0x40, EVENT);
        check_eq!(guest.exit()?, told(8, GUEST_INTID), "the interrupt of a message");
    }
    check_eq!(irq::count(0, EVENT), taken, "interrupts of the root's");
    check_eq!(is_set(ACTIVE, EVENT), false, "GICD_ISACTIVER of the event");
    // Another's end is none.
    well("KVM_IRQFD", guest.unbind(EVENT, PIN + 1))?;
    check_eq!(guest.bind(EVENT, PIN, None), Err(Errno::EBUSY), "KVM_IRQFD of what is still bound");
    well("KVM_IRQFD", guest.unbind(EVENT, PIN))?;
    well("KVM_IRQFD", guest.unbind(EVENT, PIN))?;
    irq::pend(EVENT);
    eventually_with_irqs("the event that is not bound any more", || irq::count(0, EVENT) == taken + 1)?;
    guest.rest("after an event that is not bound")
}

/// With a resample event the guest's line stays high until the guest has ended the interrupt.
fn resampled(machine: &'static Machine) -> Check {
    // Level-sensitive, and edge-triggered, which makes no difference here.
    for edge in [false, true] {
        let guest = Guest::listening(0, GUEST_INTID, edge, 0)?;
        set_up(EVENT, machine.cpus()[0]);
        well("KVM_IRQFD", guest.bind(EVENT, PIN, Some(RESAMPLE)))?;
        for round in 0..4 {
            irq::pend(EVENT);
            check_eq!(is_set(PENDING, RESAMPLE), false, "the resample event before the guest runs");
            check_eq!(guest.exit()?, told(8, GUEST_INTID), "the guest's interrupt, round {round}, edge {edge}");
            check_eq!(is_set(PENDING, RESAMPLE), false, "the resample event while the guest handles the interrupt");
            guest.rest("after the guest ended it")?;
            check_eq!(is_set(PENDING, RESAMPLE), true, "the resample event after its end");
            clear(CLEAR_PENDING, RESAMPLE);
        }
        guest.rest("without an event")?;
        check_eq!(is_set(PENDING, RESAMPLE), false, "the resample event without an interrupt");
    }
    Ok(())
}

/// A pin of the PL061 that is low interrupts as long as that is enabled.
fn set_line(high: bool) {
    write32(GPIOIE, u32::from(high));
}

fn has_line() -> bool {
    write32(GPIODIR, 0);
    write32(GPIOIS, 1);
    write32(GPIOIEV, 0);
    // GPIOPeriphID0 and 1.
    read32(PL061 + 0xfe0) == 0x61 && read32(PL061 + 0xfe4) == 0x10
}

/// A line that stays high interrupts once for each end by the guest.
fn level(machine: &'static Machine) -> Check {
    if !has_line() {
        return skip("there is no PL061");
    }
    let guest = Guest::listening(0, PL061_INTID, false, 0)?;
    irq::route(PL061_INTID, machine.cpus()[0] & 0xff_00ff_ffff);
    irq::set_priority(PL061_INTID, 0, 0xa0);
    irq::enable(PL061_INTID, 0);
    well("KVM_IRQFD", guest.bind(PL061_INTID, PL061_INTID - 32, Some(RESAMPLE)))?;
    set_line(true);
    for round in 0..4 {
        check_eq!(guest.exit()?, told(8, PL061_INTID), "the guest's interrupt, round {round}");
        check_eq!(is_set(ACTIVE, PL061_INTID), true, "GICD_ISACTIVER while the guest handles it");
        // Its end, before which it is told of no other.
        check_eq!(is_set(PENDING, RESAMPLE), round > 0, "the resample event of the round before");
        clear(CLEAR_PENDING, RESAMPLE);
    }
    set_line(false);
    guest.rest("after the line fell")?;
    check_eq!(is_set(PENDING, RESAMPLE), true, "the resample event of the last end");
    clear(CLEAR_PENDING, RESAMPLE);
    check_eq!(is_set(ACTIVE, PL061_INTID), false, "GICD_ISACTIVER after the last end");
    // High when the guest goes: it is the root's then.
    set_line(true);
    check_eq!(guest.exit()?, told(8, PL061_INTID), "the guest's last interrupt");
    let taken = irq::count(0, PL061_INTID);
    drop(guest);
    irq::set_handler(Some(|intid| {
        if intid == PL061_INTID {
            set_line(false);
        }
    }));
    let result = eventually_with_irqs("the root's interrupt", || irq::count(0, PL061_INTID) == taken + 1);
    irq::set_handler(None);
    irq::disable(PL061_INTID, 0);
    result
}

/// Memory of the guest's for the tables of its ITS, by pages: device and collection tables, a device's interrupts and the
/// configuration of LPIs, and which are pending.
const TABLES_AT: u64 = 0x5000_0000;
static TABLES: [Page; 64] = [const { Page::ZERO }; 64];
const TABLE: u64 = 0x1_0000;
const VALID: u64 = 1 << 63;
const VITS: u64 = 0x0808_0000;
/// What a message is: a device, its event, the LPI that this is.
const DEVICE_ID: u32 = 7;
const MESSAGE: u32 = 3;
const LPI: u32 = 8200;

/// Gives a VM an ITS that has one event, as whoever restores one does.
fn give_its(vm: &Vm<Hypercall>) -> Check<Device<Hypercall>> {
    let [devices, collections, interrupts, pending] = [0, 1, 2, 3].map(|n| TABLES_AT + n * TABLE);
    let configuration = interrupts + 0x1000;
    let word = |address: u64, value: u64| {
        let offset = (address - TABLES_AT) as usize;
        TABLES[offset / PAGE].write(offset % PAGE, 8, value);
    };
    TABLES.iter().for_each(Page::clear);
    // Two bits of EventIDs; vCPU 0; enabled, of priority 0.
    word(devices + 8 * u64::from(DEVICE_ID), VALID | interrupts >> 3 | 1);
    word(collections, VALID);
    word(interrupts + 8 * u64::from(MESSAGE), u64::from(LPI) << 16);
    word(configuration + u64::from(LPI - 8192), 1);
    TABLES.iter().for_each(clean);
    well("KVM_SET_USER_MEMORY_REGION", vm.set_memory(2, 0, TABLES_AT, &TABLES))?;
    let its = well("KVM_CREATE_DEVICE of an ITS", vm.create_device(device::VGIC_ITS))?;
    well("KVM_VGIC_ITS_ADDR_TYPE", its.set_attribute(vgic::ADDR, vgic::ITS, &VITS))?;
    well("KVM_DEV_ARM_VGIC_CTRL_INIT", its.set_attribute(vgic::CTRL, vgic::INIT, &()))?;
    // GITS_CBASER, GITS_BASER0, GITS_BASER1, GITS_CTLR.
    for (offset, value) in [(0x80, VALID | pending), (0x100, VALID | devices), (0x108, VALID | collections), (0, 1_u64)]
    {
        well("KVM_DEV_ARM_VGIC_GRP_ITS_REGS", its.set_attribute(vgic::ITS_REGS, offset, &value))?;
    }
    Ok(its)
}

/// An event that is a message, and with it an LPI; and a number that stands for another pin.
fn messages(machine: &'static Machine) -> Check {
    let guest = Guest::listener(0, GUEST_INTID, true, 0)?;
    let its = give_its(&guest.vm)?;
    // GICR_PROPBASER with 14 bits, GICR_PENDBASER, GICR_CTLR.EnableLPIs.
    let [properties, pending] = [(TABLES_AT + 2 * TABLE + 0x1000) | 13, TABLES_AT + 3 * TABLE];
    for (offset, value) in [
        (0x70, properties as u32),
        (0x74, (properties >> 32) as u32),
        (0x78, pending as u32),
        (0x7c, (pending >> 32) as u32),
        (0, 1),
    ] {
        let set = guest.gic.set_attribute(vgic::REDIST_REGS, offset, &value);
        well("KVM_DEV_ARM_VGIC_GRP_REDIST_REGS", set)?;
    }
    check_eq!(guest.exit()?, told(0, 0), "the guest that is ready");
    for event in [EVENT, OTHER_EVENT] {
        set_up(event, machine.cpus()[0]);
    }
    let message = |device: u32, flags: u32| IrqRoutingEntry {
        gsi: 20,
        kind: routing::MSI,
        flags,
        words: [VITS + 0x1_0040, u64::from(MESSAGE) | u64::from(device) << 32, 0, 0],
        ..IrqRoutingEntry::default()
    };
    let pin = IrqRoutingEntry { gsi: 21, kind: routing::IRQCHIP, ..IrqRoutingEntry::default() };
    let pin = IrqRoutingEntry { words: [u64::from(PIN) << 32, 0, 0, 0], ..pin };
    well("KVM_IRQFD", guest.bind(EVENT, 20, None))?;
    well("KVM_SET_GSI_ROUTING", guest.vm.set_gsi_routing([message(DEVICE_ID, routing::VALID_DEVID), pin]))?;
    well("KVM_IRQFD", guest.bind(OTHER_EVENT, 21, None))?;
    for round in 0..3 {
        irq::pend(EVENT);
        check_eq!(guest.exit()?, told(8, LPI), "the guest's LPI, round {round}");
        guest.rest("without an event")?;
        irq::pend(OTHER_EVENT);
        check_eq!(guest.exit()?, told(8, GUEST_INTID), "the guest's SPI, round {round}");
        guest.rest("without an event")?;
    }
    // Messages of nobody's, and numbers of nothing.
    for nothing in [message(DEVICE_ID + 1, routing::VALID_DEVID), message(DEVICE_ID, 0)] {
        well("KVM_SET_GSI_ROUTING", guest.vm.set_gsi_routing([nothing]))?;
        irq::pend(EVENT);
        irq::pend(OTHER_EVENT);
        guest.rest("after events that are nothing")?;
    }
    // Each its own pin is what there is at first only.
    well("KVM_SET_GSI_ROUTING", guest.vm.set_gsi_routing([]))?;
    irq::pend(EVENT);
    guest.rest("after an event of no number")?;
    drop(its);
    Ok(())
}

/// Bindings go with the VM: pins with its handle, stores with the last of its handles.
fn closed(machine: &'static Machine) -> Check {
    let free = || Hypercall.call(SYSTEM, number::FREE_MEMORY, 0);
    set_up(EVENT, machine.cpus()[0]);
    let before = free();
    let Guest { vcpu, gic, vm } = Guest::listening(0, GUEST_INTID, true, 0)?;
    let other = Guest::new(1, program!(guest_rings, guest_rings_end), &[DOORBELL, 7, 1])?;
    let binding = Irqfd { fd: EVENT, gsi: PIN, ..Irqfd::default() };
    well("KVM_IRQFD", vm.irqfd(&binding))?;
    well("KVM_IOEVENTFD", vm.ioeventfd(&store(DOORBELL, 4, None, OTHER_EVENT)))?;
    check_eq!(other.vm.irqfd(&binding), Err(Errno::EBUSY), "KVM_IRQFD of another VM's event");
    drop(vm);
    well("KVM_IRQFD of what was another VM's", other.vm.irqfd(&binding))?;
    drop(other);
    let taken = irq::count(0, EVENT);
    irq::pend(EVENT);
    eventually_with_irqs("the event of two closed VMs", || irq::count(0, EVENT) == taken + 1)?;
    drop((vcpu, gic));
    check_eq!(free(), before, "keel's memory");
    Ok(())
}

/// Runs the other vCPU on this CPU until it is told to end, or something is wrong.
fn run_other(cpu: usize) {
    irq::enable(WAKE, cpu);
    while STOP.load(SeqCst) == 0 {
        let result = Hypercall.call(OTHER.load(SeqCst), number::RUN, 0);
        LAST.store(result, SeqCst);
        if result != -4 {
            return;
        }
    }
}

/// One VM's stores are another's interrupts, whichever CPU takes the event in between.
fn between(machine: &'static Machine) -> Check {
    const COUNT: u64 = 300;
    for receiver in 0..2 {
        SHARED[0].clear();
        clean(&SHARED[0]);
        let listener = Guest::listening(1, GUEST_INTID, true, SHARED_AT)?;
        let ringer = Guest::new(0, program!(guest_waits, guest_waits_end), &[DOORBELL, 0, COUNT, 0, 0, 0, SHARED_AT])?;
        set_up(EVENT, machine.cpus()[receiver]);
        let taken = [0, 1].map(|cpu| irq::count(cpu, EVENT));
        well("KVM_IRQFD", listener.bind(EVENT, PIN, None))?;
        well("KVM_IOEVENTFD", ringer.bind_store(DOORBELL, 4, None, EVENT))?;
        OTHER.store(listener.vcpu.handle(), SeqCst);
        STOP.store(0, SeqCst);
        start(machine, 1, run_other, 1)?;
        let exit = ringer.exit();
        STOP.store(1, SeqCst);
        irq::send(WAKE, machine.cpus()[1]);
        join(machine, 1)?;
        check_eq!(exit?, told(0, COUNT as u32), "the exit after {COUNT} stores, CPU {receiver}");
        check_eq!(LAST.load(SeqCst), -4, "the listener's last KVM_RUN");
        check_eq!(SHARED[0].read(0, 8), COUNT, "interrupts that were counted");
        check!([0, 1].map(|cpu| irq::count(cpu, EVENT)) == taken, "an interrupt of the root's");
        check!(!is_set(PENDING, EVENT) && !is_set(ENABLE + 0x200, EVENT), "the event is left");
    }
    Ok(())
}
