//! The interrupt controller, and a count of what each CPU took.
//!
//! A GICv3 is driven by arm-gic, a GICv2 by [`crate::gicv2`]; what the cases of both do is here. On a GICv2 a CPU reaches no other's
//! private interrupts.
//!
//! A handler installed with [`set_handler`] runs between acknowledgement and end of interrupt.

use crate::{
    arch, gicv2,
    gicv2::gicc,
    machine::{MPIDR_AFFINITY, Machine},
    mmio, mrs, msr,
    platform::{GICD, GICR, GICR_SGI, GICR_STRIDE, MAX_CPUS},
};
use arm_gic::{
    IntId, InterruptGroup, UniqueMmioPointer,
    gicv3::{GicCpuInterface, GicV3, SgiTarget, SgiTargetGroup},
};
use core::{
    ptr::NonNull,
    sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::Relaxed},
};
use spin::Mutex;

/// INTIDs that are counted.
pub const INTIDS: usize = 128;
/// Interrupts a CPU remembers in order.
pub const LOG: usize = 64;

static GIC: Mutex<Option<GicV3<'static>>> = Mutex::new(None);
static IS_V2: AtomicBool = AtomicBool::new(false);
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
    if machine.has_gicv2 {
        IS_V2.store(true, Relaxed);
        gicv2::init_distributor();
        gicv2::init_cpu();
        set_handler(None);
        forget();
    }
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
    if machine.has_gicv2 {
        gicv2::stop();
    }
}

/// Whether the machine's is a GICv2.
pub fn is_v2() -> bool {
    IS_V2.load(Relaxed)
}

/// Where this CPU's registers of private interrupts are, as if they were the distributor's.
pub fn private_frame() -> usize {
    if is_v2() { GICD } else { GICR + arch::cpu() * GICR_STRIDE + GICR_SGI }
}

/// Sets up this CPU's interface and wakes its redistributor.
pub fn init_cpu(cpu: usize) {
    if is_v2() {
        gicv2::init_cpu();
    } else if let Some(gic) = GIC.lock().as_mut() {
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

/// On a GICv2, where the bit of an interrupt is in a bitmap of the distributor.
fn v2_bit(register: usize, intid: u32, cpu: usize) -> (usize, u32) {
    assert!(intid >= 32 || cpu == arch::cpu(), "a GICv2 shows no CPU the private interrupts of another");
    (GICD + register + intid as usize / 32 * 4, 1 << (intid % 32))
}

/// Enables an interrupt; a private one on CPU `cpu`.
pub fn enable(intid: u32, cpu: usize) {
    if is_v2() {
        let (address, bit) = v2_bit(0x100, intid, cpu);
        return mmio::write32(address, bit);
    }
    with_gic(|gic| gic.enable_interrupt(id(intid), Some(cpu), true)).expect("the INTID is valid");
}

/// Disables an interrupt; a private one on CPU `cpu`.
pub fn disable(intid: u32, cpu: usize) {
    if is_v2() {
        let (address, bit) = v2_bit(0x180, intid, cpu);
        return mmio::write32(address, bit);
    }
    with_gic(|gic| gic.enable_interrupt(id(intid), Some(cpu), false)).expect("the INTID is valid");
}

/// Sets the priority of an interrupt; of a private one on CPU `cpu`.
pub fn set_priority(intid: u32, cpu: usize, priority: u8) {
    if is_v2() {
        v2_bit(0, intid, cpu);
        return gicv2::set_priority(intid, priority);
    }
    with_gic(|gic| gic.set_interrupt_priority(id(intid), Some(cpu), priority)).expect("the INTID is valid");
}

/// Sends an SPI to the CPU with this MPIDR.
pub fn route(intid: u32, mpidr: u64) {
    if is_v2() {
        mmio::write8(GICD + 0x800 + intid as usize, v2_target(mpidr));
    } else {
        mmio::write64(GICD + 0x6000 + 8 * intid as usize, mpidr);
    }
}

/// The bit of a CPU in a GICv2's target lists: on `virt` Aff0 counts them.
fn v2_target(mpidr: u64) -> u8 {
    1 << (mpidr & 7)
}

/// Makes an interrupt pending, a private one of this CPU, by a register.
pub fn pend(intid: u32) {
    if is_v2() && intid < 16 {
        mmio::write8(GICD + 0xf20 + intid as usize, v2_target(mrs!("mpidr_el1") & MPIDR_AFFINITY));
    } else {
        mmio::write32(bitmap(0x200, intid), 1 << (intid % 32));
    }
}

/// Makes it not pending.
pub fn unpend(intid: u32) {
    if is_v2() && intid < 16 {
        mmio::write8(GICD + 0xf10 + intid as usize, 0xff);
    } else {
        mmio::write32(bitmap(0x280, intid), 1 << (intid % 32));
    }
}

/// The word of a bitmap register that has an INTID, a private one of this CPU.
pub fn bitmap(register: usize, intid: u32) -> usize {
    if intid < 32 { private_frame() + register } else { GICD + register + intid as usize / 32 * 4 }
}

/// Sends SGI `sgi` to the CPU with this MPIDR.
pub fn send(sgi: u32, mpidr: u64) {
    if is_v2() {
        // What was written before must be seen by whoever takes the interrupt.
        arch::dsb();
        return gicv2::send(gicv2::TO_LIST, v2_target(mpidr), sgi);
    }
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
    if is_v2() {
        arch::dsb();
        return gicv2::send(gicv2::TO_OTHERS, 0, sgi);
    }
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

/// Acknowledges: the INTID, on a GICv2 with the CPU that sent an SGI from bit 10 on; 1023 if there is nothing.
pub fn acknowledge() -> u32 {
    if is_v2() { gicv2::read(gicc::IAR) } else { mrs!("S3_0_C12_C12_0") as u32 }
}

/// Ends what was acknowledged.
pub fn end(acknowledged: u32) {
    if is_v2() { gicv2::write(gicc::EOIR, acknowledged) } else { msr!("S3_0_C12_C12_1", acknowledged.into()) }
}

/// Deactivates what was acknowledged and ended with [`set_split`].
pub fn deactivate(acknowledged: u32) {
    if is_v2() { gicv2::write(gicc::DIR, acknowledged) } else { msr!("S3_0_C12_C11_1", acknowledged.into()) }
}

/// The running priority of this CPU.
pub fn running_priority() -> u32 {
    if is_v2() { gicv2::read(gicc::RPR) } else { mrs!("S3_0_C12_C11_3") as u32 }
}

/// The highest pending interrupt of this CPU.
pub fn highest_pending() -> u32 {
    if is_v2() { gicv2::read(gicc::HPPIR) & 0x3ff } else { mrs!("S3_0_C12_C12_2") as u32 }
}

/// Sets the priority mask of this CPU.
pub fn set_mask(mask: u8) {
    if is_v2() { gicv2::write(gicc::PMR, mask.into()) } else { GicCpuInterface::set_priority_mask(mask) }
}

/// Makes bits 7 to `point` of a priority the group priority; `point` is 3 or more.
pub fn set_binary_point(point: u8) {
    // For group 0, BPR = N makes it bits 7 to N + 1.
    if is_v2() { gicv2::write(gicc::BPR, u32::from(point) - 1) } else { msr!("S3_0_C12_C12_3", point.into()) }
}

/// Makes [`end`] only drop the priority, and [`deactivate`] necessary, or not.
pub fn set_split(split: bool) {
    if is_v2() { gicv2::set_split(split) } else { msr!("S3_0_C12_C12_4", u64::from(split) << 1) }
}

/// Lets interrupts of the group that all are in signal to this CPU, or not.
pub fn enable_group(enable: bool) {
    if is_v2() {
        gicv2::write(gicc::CTLR, gicv2::read(gicc::CTLR) & !1 | u32::from(enable));
    } else {
        GicCpuInterface::enable_group1(enable);
        arch::isb();
    }
}

/// The IRQ vector: acknowledge, count, handle, end.
pub fn taken() {
    let cpu = &CPUS[arch::cpu()];
    let acknowledged = if is_v2() {
        Some(acknowledge()).filter(|raw| raw & 0x3ff < 1020)
    } else {
        GicCpuInterface::get_and_acknowledge_interrupt(InterruptGroup::Group1).map(IntId::raw_value)
    };
    let Some(raw) = acknowledged else {
        cpu.spurious.fetch_add(1, Relaxed);
        return;
    };
    let intid = intid_of(raw);
    if let Some(count) = cpu.counts.get(intid as usize) {
        count.fetch_add(1, Relaxed);
    }
    let position = cpu.taken.fetch_add(1, Relaxed);
    cpu.log[position % LOG].store(raw, Relaxed);
    let handler = HANDLER.load(Relaxed);
    if handler != 0 {
        // SAFETY: only set_handler stores here, and it stores functions of this type.
        let handler: Handler = unsafe { core::mem::transmute(handler) };
        handler(intid);
    }
    end(raw);
    arch::isb();
}

/// The INTID of what was acknowledged: a GICv2 says more.
fn intid_of(raw: u32) -> u32 {
    if is_v2() { raw & 0x3ff } else { raw }
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
    intid_of(CPUS[cpu].log[n % LOG].load(Relaxed))
}

/// On a GICv2, the CPU that sent the `n`th, an SGI.
pub fn nth_source(cpu: usize, n: usize) -> u32 {
    CPUS[cpu].log[n % LOG].load(Relaxed) >> 10 & 7
}

/// Starts counting anew on every CPU.
pub fn forget() {
    for cpu in &CPUS {
        cpu.counts.iter().for_each(|count| count.store(0, Relaxed));
        cpu.taken.store(0, Relaxed);
        cpu.spurious.store(0, Relaxed);
    }
}
