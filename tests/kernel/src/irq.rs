//! The interrupt controller through arm-gic, and a count of what each CPU took.
//!
//! A handler installed with [`set_handler`] runs between acknowledgement and end of interrupt.

use crate::{
    arch,
    machine::Machine,
    mmio, msr,
    platform::{GICD, GICR, GICR_SGI, GICR_STRIDE, MAX_CPUS},
};
use arm_gic::{
    IntId, InterruptGroup, UniqueMmioPointer,
    gicv3::{GicCpuInterface, GicV3, SgiTarget, SgiTargetGroup},
};
use core::{
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
};
use spin::Mutex;

/// INTIDs that are counted.
pub const INTIDS: usize = 128;
/// Interrupts a CPU remembers in order.
pub const LOG: usize = 64;

static GIC: Mutex<Option<GicV3<'static>>> = Mutex::new(None);
static HANDLER: AtomicUsize = AtomicUsize::new(0);

struct PerCpu {
    counts: [AtomicU32; INTIDS],
    log: [AtomicU32; LOG],
    taken: AtomicUsize,
    spurious: AtomicU32,
}

static CPUS: [PerCpu; MAX_CPUS] = [const {
    PerCpu {
        counts: [const { AtomicU32::new(0) }; INTIDS],
        log: [const { AtomicU32::new(0) }; LOG],
        taken: AtomicUsize::new(0),
        spurious: AtomicU32::new(0),
    }
}; MAX_CPUS];

/// Runs for every acknowledged interrupt with its INTID.
pub type Handler = fn(u32);

/// Sets up the distributor and every redistributor, everything disabled, and this CPU's interface.
///
/// Called on CPU 0 with no other CPU running; again between tests, to start each from the same state. Nothing happens on
/// a machine with another interrupt controller.
pub fn init(machine: &Machine) {
    if !machine.has_gicv3 {
        return;
    }
    let cpus = machine.cpus().len();
    let mut slot = GIC.lock();
    let gic = slot.get_or_insert_with(|| {
        let gicd = NonNull::new(GICD as *mut _).expect("the address is a constant");
        let gicr = NonNull::new(GICR as *mut _).expect("the address is a constant");
        // SAFETY: both are mapped as device memory for the life of the kernel. The tests look at the same registers
        // by plain loads and stores, which the driver, keeping no copies, does not mind.
        match unsafe { GicV3::new(UniqueMmioPointer::new(gicd), gicr, cpus) } {
            Ok(gic) => gic,
            Err(error) => panic!("GIC at {GICD:#x}, {GICR:#x}: {error}"),
        }
    });
    gic.enable_all_interrupts(false);
    let lines = (mmio::read32(GICD + 4) & 0x1f) as usize + 1;
    for block in 1..lines {
        mmio::write32(GICD + 0x280 + block * 4, !0);
        mmio::write32(GICD + 0x380 + block * 4, !0);
    }
    for cpu in 0..cpus {
        let sgi = GICR + cpu * GICR_STRIDE + GICR_SGI;
        mmio::write32(sgi + 0x280, !0);
        mmio::write32(sgi + 0x380, !0);
    }
    gic.setup(0);
    cpu_interface();
    drop(slot);
    set_handler(None);
    forget();
}

/// Disables every interrupt, and this CPU's interface: for whoever has the machine next.
pub fn stop(machine: &Machine) {
    if machine.has_gicv3 {
        with_gic(|gic| gic.enable_all_interrupts(false));
        GicCpuInterface::enable_group1(false);
    }
}

/// Sets up this CPU's interface and wakes its redistributor.
pub fn init_cpu(cpu: usize) {
    if let Some(gic) = GIC.lock().as_mut() {
        gic.init_cpu(cpu);
        cpu_interface();
    }
}

fn cpu_interface() {
    GicCpuInterface::enable_group1(true);
    GicCpuInterface::set_priority_mask(0xff);
    msr!("S3_0_C12_C12_3", 0); // ICC_BPR1_EL1: the finest grouping there is
}

/// The driver, for what has no short form here.
pub fn with_gic<R>(f: impl FnOnce(&mut GicV3<'static>) -> R) -> R {
    match GIC.lock().as_mut() {
        Some(gic) => f(gic),
        None => panic!("the GIC is used before irq::init"),
    }
}

fn id(intid: u32) -> IntId {
    match IntId::try_from(intid) {
        Ok(id) => id,
        Err(error) => panic!("{error}"),
    }
}

/// Enables an interrupt; a private one on CPU `cpu`.
pub fn enable(intid: u32, cpu: usize) {
    with_gic(|gic| gic.enable_interrupt(id(intid), Some(cpu), true)).expect("the INTID is valid");
}

/// Disables an interrupt; a private one on CPU `cpu`.
pub fn disable(intid: u32, cpu: usize) {
    with_gic(|gic| gic.enable_interrupt(id(intid), Some(cpu), false)).expect("the INTID is valid");
}

/// Sets the priority of an interrupt; of a private one on CPU `cpu`.
pub fn set_priority(intid: u32, cpu: usize, priority: u8) {
    with_gic(|gic| gic.set_interrupt_priority(id(intid), Some(cpu), priority)).expect("the INTID is valid");
}

/// Sends SGI `sgi` to the CPU with this MPIDR.
pub fn send(sgi: u32, mpidr: u64) {
    let target = SgiTarget::List {
        affinity3: (mpidr >> 32) as u8,
        affinity2: (mpidr >> 16) as u8,
        affinity1: (mpidr >> 8) as u8,
        target_list: 1 << (mpidr & 15),
    };
    sgi1r(sgi, target);
}

/// Sends SGI `sgi` to every CPU but this one.
pub fn send_others(sgi: u32) {
    sgi1r(sgi, SgiTarget::All);
}

fn sgi1r(sgi: u32, target: SgiTarget) {
    // What was written before must be seen by whoever takes the interrupt.
    arch::dsb();
    GicCpuInterface::send_sgi(IntId::sgi(sgi), target, SgiTargetGroup::CurrentGroup1).expect("the INTID is an SGI");
    arch::isb();
}

/// Installs what runs for each interrupt.
pub fn set_handler(handler: Option<Handler>) {
    HANDLER.store(handler.map_or(0, |handler| handler as usize), Relaxed);
}

/// The IRQ vector: acknowledge, count, handle, end.
pub fn taken() {
    let cpu = &CPUS[arch::cpu()];
    let Some(intid) = GicCpuInterface::get_and_acknowledge_interrupt(InterruptGroup::Group1) else {
        cpu.spurious.fetch_add(1, Relaxed);
        return;
    };
    let raw = intid.raw_value();
    if let Some(count) = cpu.counts.get(raw as usize) {
        count.fetch_add(1, Relaxed);
    }
    let position = cpu.taken.fetch_add(1, Relaxed);
    cpu.log[position % LOG].store(raw, Relaxed);
    let handler = HANDLER.load(Relaxed);
    if handler != 0 {
        // SAFETY: only set_handler stores here, and it stores functions of this type.
        let handler: Handler = unsafe { core::mem::transmute(handler) };
        handler(raw);
    }
    GicCpuInterface::end_interrupt(intid, InterruptGroup::Group1);
    arch::isb();
}

/// How often CPU `cpu` took `intid` since [`forget`].
pub fn count(cpu: usize, intid: u32) -> u32 {
    CPUS[cpu].counts[intid as usize].load(Relaxed)
}

/// How many interrupts CPU `cpu` took since [`forget`].
pub fn total(cpu: usize) -> usize {
    CPUS[cpu].taken.load(Relaxed)
}

/// How many IRQs of CPU `cpu` had nothing to acknowledge.
pub fn spurious(cpu: usize) -> u32 {
    CPUS[cpu].spurious.load(Relaxed)
}

/// The `n`th interrupt CPU `cpu` took since [`forget`]; the last [`LOG`] are remembered.
pub fn nth(cpu: usize, n: usize) -> u32 {
    CPUS[cpu].log[n % LOG].load(Relaxed)
}

/// Starts counting anew on every CPU.
pub fn forget() {
    for cpu in &CPUS {
        cpu.counts.iter().for_each(|count| count.store(0, Relaxed));
        cpu.taken.store(0, Relaxed);
        cpu.spurious.store(0, Relaxed);
    }
}
