//! The interrupt controller as a guest sees it: identity, registers, delivery, order.

use crate::{
    check, check_eq,
    harness::{Case, Check, Under::*, case, eventually, eventually_with_irqs, join, skip, start},
};
use arm_gic::gicv3::GicCpuInterface;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};
use keel_test_kernel::{
    arch, irq,
    machine::Machine,
    mmio::{read8, read16, read32, read64, write8, write16, write32, write64},
    mrs, msr,
    platform::{GICD, GICR, GICR_STRIDE},
    time,
};

/// The cases.
pub const CASES: &[Case] = &[
    case("gic/identity", 1, Any, identity),
    case("gic/identity_keel", 1, Keel, identity_keel),
    case("gic/redistributors", 1, Any, redistributors),
    case("gic/enable_registers", 1, Any, enable_registers),
    case("gic/pending_registers", 1, Any, pending_registers),
    case("gic/active_registers", 1, Any, active_registers),
    case("gic/priority_registers", 1, Any, priority_registers),
    case("gic/configuration_registers", 1, Any, configuration_registers),
    case("gic/router_registers", 2, Any, router_registers),
    case("gic/private_in_distributor", 1, Any, private_in_distributor),
    case("gic/widths", 1, Keel, widths),
    case("gic/reserved", 1, Keel, reserved),
    case("gic/cpu_interface", 1, Any, cpu_interface),
    case("gic/common_registers", 1, Any, common_registers),
    case("gic/nothing_pending", 1, Any, nothing_pending),
    case("gic/sgi_self", 1, Any, sgi_self),
    case("gic/sgi_state", 1, Any, sgi_state),
    case("gic/sgi_merge", 1, Any, sgi_merge),
    case("gic/sgi_disabled", 1, Any, sgi_disabled),
    case("gic/sgi_each_cpu", 2, Any, sgi_each_cpu),
    case("gic/sgi_all_but_self", 2, Any, sgi_all_but_self),
    case("gic/sgi_nobody", 1, Any, sgi_nobody),
    case("gic/sgi_group0", 1, Keel, sgi_group0),
    case("gic/spi", 1, Any, spi),
    case("gic/spi_disabled", 1, Any, spi_disabled),
    case("gic/spi_cleared_before_taken", 1, Any, spi_cleared_before_taken),
    case("gic/spi_disabled_while_pending", 1, Any, spi_disabled_while_pending),
    case("gic/spi_pended_in_handler", 1, Any, spi_pended_in_handler),
    case("gic/spi_retarget", 2, Any, spi_retarget),
    case("gic/spi_retarget_while_pending", 2, Any, spi_retarget_while_pending),
    case("gic/spi_to_stopped_cpu", 2, Any, spi_to_stopped_cpu),
    case("gic/active_blocks", 1, Any, active_blocks),
    case("gic/active_seen", 1, Any, active_seen),
    case("gic/active_seen_from_other", 2, Any, active_seen_from_other),
    case("gic/split_eoi", 1, Any, split_eoi),
    case("gic/split_eoi_of_20", 1, Any, split_eoi_of_20),
    case("gic/priority_mask", 1, Any, priority_mask),
    case("gic/group_enables", 1, Any, group_enables),
    case("gic/order_of_12", 1, Any, order_of_12),
    case("gic/24_of_one_priority", 1, Any, many_of_one_priority),
    case("gic/priority_change_while_pending", 1, Any, priority_change_while_pending),
    case("gic/preemption", 1, Any, preemption),
    case("gic/no_preemption", 1, Any, no_preemption),
    case("gic/binary_point", 1, Any, binary_point),
    case("gic/running_priority", 1, Any, running_priority),
    case("gic/highest_pending", 1, Any, highest_pending),
];

/// First of the SPIs the cases use; the devices of `virt` that are here have 33 and 34 only.
pub(super) const SPI: u32 = 40;

pub(super) const ENABLE: usize = 0x100;
const DISABLE: usize = 0x180;
pub(super) const PEND: usize = 0x200;
pub(super) const UNPEND: usize = 0x280;
pub(super) const ACTIVATE: usize = 0x300;
pub(super) const DEACTIVATE: usize = 0x380;
const PRIORITY: usize = 0x400;
const CONFIGURE: usize = 0xc00;
const ROUTER: usize = 0x6000;

/// What a GICv2 has otherwise, or not at all: `gicv2` has its cases.
fn needs_gicv3() -> Check {
    if irq::is_v2() { skip("of a GICv3") } else { Ok(()) }
}

/// What no register of a GICv2 needs to let anyone do to an SGI.
fn can_disable_sgis(machine: &Machine) -> bool {
    !irq::is_v2() || machine.under_keel()
}

/// Sets one bit, of this CPU's for a private interrupt. Of a GICv2's SGIs the pending state has other registers.
pub(super) fn set(offset: usize, intid: u32) {
    match offset {
        PEND => irq::pend(intid),
        UNPEND => irq::unpend(intid),
        _ => write32(irq::bitmap(offset, intid), 1 << (intid % 32)),
    }
}

pub(super) fn is_set(offset: usize, intid: u32) -> bool {
    read32(irq::bitmap(offset, intid)) & 1 << (intid % 32) != 0
}

pub(super) fn edge(intid: u32) {
    let address = GICD + CONFIGURE + intid as usize / 16 * 4;
    write32(address, read32(address) | 2 << (intid % 16 * 2));
}

/// An SPI ready to be made pending: edge-triggered, enabled, to this CPU.
pub(super) fn ready(machine: &Machine, intid: u32, priority: u8) {
    edge(intid);
    irq::route(intid, machine.cpus()[0]);
    irq::set_priority(intid, 0, priority);
    irq::enable(intid, 0);
}

pub(super) fn taken(cpu: usize, intid: u32, times: u32) -> Check {
    eventually_with_irqs("an interrupt is taken", || irq::count(cpu, intid) >= times)?;
    quiet()?;
    check_eq!(irq::count(cpu, intid), times, "times that CPU {cpu} took {intid}");
    Ok(())
}

/// Lets in what is there, for a while.
pub(super) fn quiet() -> Check {
    arch::with_irqs(|| time::delay(200));
    Ok(())
}

pub(super) fn not_taken(intid: u32) -> Check {
    quiet()?;
    check_eq!(irq::count(0, intid), 0, "times that {intid} was taken");
    Ok(())
}

fn identity(_: &Machine) -> Check {
    needs_gicv3()?;
    check_eq!(read32(GICD + 0xffe8) >> 4 & 15, 3, "architecture in GICD_PIDR2");
    check_eq!(read32(GICR + 0xffe8) >> 4 & 15, 3, "architecture in GICR_PIDR2");
    check_eq!(read32(GICD + 8) & 0xfff, 0x43b, "implementer in GICD_IIDR");
    let typer = read32(GICD + 4);
    check!(typer & 0x1f >= 1, "GICD_TYPER.ITLinesNumber is 0");
    check!(typer >> 19 & 0x1f >= 9, "GICD_TYPER.IDbits of {typer:#x}");
    let control = read32(GICD);
    check!(control & 0x10 != 0, "GICD_CTLR.ARE of {control:#x}");
    check!(control & 2 != 0, "GICD_CTLR.EnableGrp1 of {control:#x}, after arm-gic set it");
    check_eq!(control >> 31, 0, "GICD_CTLR.RWP");
    Ok(())
}

fn identity_keel(_: &Machine) -> Check {
    needs_gicv3()?;
    check_eq!(read32(GICD + 0xffe8), 0x3b, "GICD_PIDR2");
    check_eq!(read32(GICR + 0xffe8), 0x3b, "GICR_PIDR2");
    let control = read32(GICD);
    check!(control & 0x40 != 0, "GICD_CTLR.DS of {control:#x}");
    write32(GICD, 0);
    check_eq!(read32(GICD), control & !2, "GICD_CTLR after writing 0");
    write32(GICD, !0);
    check_eq!(read32(GICD), control | 2, "GICD_CTLR after writing all ones");
    for (offset, value) in [(0x4, !0), (0x8, 0)] {
        let before = read32(GICD + offset);
        write32(GICD + offset, value);
        check_eq!(read32(GICD + offset), before, "the read-only register at {offset:#x}");
    }
    Ok(())
}

fn redistributors(machine: &Machine) -> Check {
    needs_gicv3()?;
    let count = machine.cpus().len();
    for number in 0..count {
        let typer = read64(GICR + number * GICR_STRIDE + 8);
        let affinity = typer >> 32;
        let mpidr = machine.cpus()[number];
        check_eq!(affinity, mpidr & 0xff_ffff | (mpidr >> 32 & 0xff) << 24, "affinity of redistributor {number}");
        check_eq!(typer >> 8 & 0xffff, number as u64, "processor number of redistributor {number}");
        check_eq!(typer >> 4 & 1 == 1, number == count - 1, "GICR_TYPER.Last of redistributor {number}");
        // ChildrenAsleep of a CPU that is awake; this one's is.
        if number == 0 {
            check_eq!(read32(GICR + 0x14) & 4, 0, "GICR_WAKER.ChildrenAsleep");
        }
    }
    Ok(())
}

/// A pair of registers that set and clear: writing 1 acts on one bit, writing 0 on none.
fn set_and_clear(what: &str, set_at: usize, clear_at: usize, intids: &[u32]) -> Check {
    for &intid in intids {
        let [sets, clears] = [set_at, clear_at].map(|offset| irq::bitmap(offset, intid));
        let before = read32(sets);
        check!(!is_set(set_at, intid), "{what} of {intid} at the start");
        set(set_at, intid);
        check_eq!(read32(sets), before | 1 << (intid % 32), "{what} after setting {intid}");
        check_eq!(read32(clears), before | 1 << (intid % 32), "the clear register for {intid}");
        write32(sets, 0);
        write32(clears, 0);
        check!(is_set(set_at, intid), "{what} of {intid} after writing zeros");
        set(clear_at, intid);
        check_eq!(read32(sets), before, "{what} after clearing {intid}");
    }
    Ok(())
}

fn last_spi() -> u32 {
    (((read32(GICD + 4) & 0x1f) + 1) * 32 - 1).min(1019)
}

fn enable_registers(machine: &Machine) -> Check {
    if can_disable_sgis(machine) {
        set_and_clear("enable", ENABLE, DISABLE, &[3])?;
    }
    set_and_clear("enable", ENABLE, DISABLE, &[20, 27, 40, 63, 64, last_spi()])
}

fn pending_registers(_: &Machine) -> Check {
    [40, 63, 64, last_spi()].into_iter().for_each(edge);
    // Not enabled, so nothing comes of it.
    set_and_clear("pending", PEND, UNPEND, &[3, 15, 40, 63, 64, last_spi()])?;
    check_eq!(irq::total(0), 0, "interrupts taken");
    Ok(())
}

fn active_registers(_: &Machine) -> Check {
    set_and_clear("active", ACTIVATE, DEACTIVATE, &[3, 20, 40, 63, 64, last_spi()])
}

fn priority_registers(machine: &Machine) -> Check {
    // Of the owner's PPIs 25 and 26 are keel's.
    let private = if machine.is_root() { 28 } else { 27 };
    for intid in [0, 3, private, 31, 40, 41, 43, last_spi()] {
        let base = if intid < 32 { irq::private_frame() } else { GICD };
        let byte = base + PRIORITY + intid as usize;
        let whole = byte & !3;
        let neighbours = !(0xff << (8 * (byte % 4)));
        let before = read32(whole);
        for value in [0, 0x48, 0xf8, 0x80] {
            write8(byte, value);
            check_eq!(read8(byte), value, "priority of {intid}, as a byte");
            check_eq!(read32(whole) & neighbours, before & neighbours, "its neighbours");
        }
        write32(whole, 0x10a0_58f8);
        check_eq!(read32(whole), 0x10a0_58f8, "four priorities at {intid}");
        write32(whole, before);
    }
    // At least 5 bits; those below the implemented ones read as 0.
    write8(GICD + PRIORITY + 40, 0xff);
    let bits = read8(GICD + PRIORITY + 40);
    check!(
        bits & 0xf8 == 0xf8 && bits.leading_ones() + bits.trailing_zeros() >= 8,
        "implemented priority bits: {bits:#x}"
    );
    Ok(())
}

fn configuration_registers(_: &Machine) -> Check {
    for intid in [40_u32, 47, 48, last_spi()] {
        let address = GICD + CONFIGURE + intid as usize / 16 * 4;
        let bit = 2 << (intid % 16 * 2);
        let before = read32(address);
        write32(address, before | bit);
        check_eq!(read32(address), before | bit, "configuration of {intid}, edge");
        write32(address, before & !bit);
        check_eq!(read32(address), before & !bit, "configuration of {intid}, level");
    }
    // SGIs are edge-triggered, whatever is written.
    let sgis = irq::private_frame() + CONFIGURE;
    check_eq!(read32(sgis), 0xaaaa_aaaa, "ICFGR0");
    write32(sgis, 0);
    check_eq!(read32(sgis), 0xaaaa_aaaa, "ICFGR0 after writing 0");
    Ok(())
}

fn router_registers(machine: &Machine) -> Check {
    needs_gicv3()?;
    for intid in [SPI, last_spi()] {
        let address = GICD + ROUTER + 8 * intid as usize;
        for &mpidr in machine.cpus() {
            write64(address, mpidr);
            check_eq!(read64(address), mpidr, "GICD_IROUTER{intid}");
        }
        // As two words.
        write32(address + 4, 0);
        write32(address, machine.cpus()[1] as u32);
        check_eq!(read64(address), machine.cpus()[1] & 0xffff_ffff, "GICD_IROUTER{intid} written in halves");
        write64(address, machine.cpus()[0]);
    }
    Ok(())
}

fn private_in_distributor(_: &Machine) -> Check {
    needs_gicv3()?;
    for offset in
        [0x80, ENABLE, DISABLE, PEND, UNPEND, ACTIVATE, DEACTIVATE, PRIORITY, PRIORITY + 28, CONFIGURE, CONFIGURE + 4]
    {
        write32(GICD + offset, !0);
        check_eq!(read32(GICD + offset), 0, "the word at GICD + {offset:#x}, which is for private interrupts");
    }
    check_eq!(irq::total(0), 0, "interrupts taken");
    Ok(())
}

fn widths(_: &Machine) -> Check {
    let enable = irq::bitmap(ENABLE, SPI);
    set(ENABLE, SPI);
    let before = read32(enable);
    // Bytes and halfwords read as zero and write nothing.
    check_eq!((read8(enable), read8(enable + 1), read16(enable)), (0, 0, 0), "an enable register in parts");
    write8(enable, 0xff);
    write16(enable, 0xffff);
    write64(enable & !7, !0);
    check_eq!(read32(enable), before, "an enable register after writes of other widths");
    check_eq!((read8(GICD + 4), read16(GICD + 4), read64(GICD)), (0, 0, 0), "GICD_TYPER in other widths");
    // Priorities take bytes and words, no others.
    write32(GICD + PRIORITY + 40, 0x1020_3040);
    write16(GICD + PRIORITY + 40, 0xffff);
    write64(GICD + PRIORITY + 40, !0);
    check_eq!(read32(GICD + PRIORITY + 40), 0x1020_3040, "priorities after writes of other widths");
    check_eq!((read16(GICD + PRIORITY + 40), read64(GICD + PRIORITY + 40)), (0, 0), "priorities in other widths");
    if !irq::is_v2() {
        check_eq!((read8(GICR + 8), read16(GICR + 8)), (0, 0), "GICR_TYPER in other widths");
    }
    Ok(())
}

fn reserved(_: &Machine) -> Check {
    needs_gicv3()?;
    // GICD_TYPER2, message-based SPIs (none), IGRPMODR and NSACR (one security state), SGIR and its relatives (affinity
    // routing), IROUTER of private interrupts, and words that are nothing at all.
    let offsets = [
        0x000c, 0x0014, 0x0020, 0x003c, 0x0040, 0x0048, 0x0d00, 0x0d04, 0x0e00, 0x0f00, 0x0f10, 0x1000, 0x6000, 0x60f8,
        0x8000, 0xc000, 0xffc0,
    ];
    let behind = ROUTER + 8 * (last_spi() as usize + 1);
    for offset in offsets.into_iter().chain((behind < 0x8000).then_some(behind)) {
        write32(GICD + offset, !0);
        check_eq!(read32(GICD + offset), 0, "the reserved word at GICD + {offset:#x}");
    }
    for offset in [0x0018, 0x0040, 0x0048, 0x0100, 0x8000, 0x1_0000, 0x1_0084, 0x1_0104, 0x1_0d00, 0x1_0e00] {
        write32(GICR + offset, !0);
        check_eq!(read32(GICR + offset), 0, "the reserved word at GICR + {offset:#x}");
    }
    Ok(())
}

fn cpu_interface(machine: &Machine) -> Check {
    needs_gicv3()?;
    let control = mrs!("S3_0_C12_C12_4");
    check!(control >> 8 & 7 >= 4, "ICC_CTLR_EL1.PRIbits of {control:#x}: fewer than 5 bits");
    for bits in [3, 2, 1, 0] {
        msr!("S3_0_C12_C12_4", bits);
        check_eq!(mrs!("S3_0_C12_C12_4") & 3, bits, "ICC_CTLR_EL1.EOImode and CBPR");
        keel_test_kernel::power::hvc(0xc600_ffff, [0; 3]);
        check_eq!(mrs!("S3_0_C12_C12_4") & 3, bits, "ICC_CTLR_EL1 after a hypercall");
    }
    for mask in [0, 0x80, 0xf0, 0xf8] {
        GicCpuInterface::set_priority_mask(mask);
        check_eq!(GicCpuInterface::get_priority_mask(), mask, "ICC_PMR_EL1");
    }
    GicCpuInterface::enable_group1(false);
    check_eq!(mrs!("S3_0_C12_C12_7"), 0, "ICC_IGRPEN1_EL1 after writing 0");
    GicCpuInterface::enable_group1(true);
    check_eq!(mrs!("S3_0_C12_C12_7"), 1, "ICC_IGRPEN1_EL1 after writing 1");
    for point in [7, 5, 3] {
        msr!("S3_0_C12_C12_3", point);
        check_eq!(mrs!("S3_0_C12_C12_3"), point, "ICC_BPR1_EL1");
    }
    irq::init(machine);
    Ok(())
}

/// ICC_CTLR_EL1, which both groups share.
fn control() -> u64 {
    mrs!("S3_0_C12_C12_4")
}

/// What of ICC_PMR_EL1 and ICC_CTLR_EL1 can be written, and what of the rest ICC_CTLR_EL1 says.
fn common_registers(machine: &Machine) -> Check {
    needs_gicv3()?;
    let fixed = control() & !3;
    check_eq!(fixed & !(0x7f << 8 | 1 << 15 | 3 << 18), 0, "reserved bits of ICC_CTLR_EL1, and PMHE");
    check!(fixed >> 11 & 7 <= 1, "ICC_CTLR_EL1.IDbits of {fixed:#x}: neither 16 nor 24 bits");
    msr!("S3_0_C12_C12_4", 0xff03);
    check_eq!(control(), fixed | 3, "ICC_CTLR_EL1 after ones");
    msr!("S3_0_C12_C12_4", 0);
    check_eq!(control(), fixed, "ICC_CTLR_EL1 after zeros");
    let bits = (fixed >> 8 & 7) + 1;
    for value in [u64::MAX, 0x5555_5555, 0xa5, 0] {
        msr!("S3_0_C4_C6_0", value);
        let mask = mrs!("S3_0_C4_C6_0");
        check_eq!(mask, value & 0xff & 0xff << (8 - bits), "ICC_PMR_EL1 after {value:#x}, of {bits} bits");
    }
    irq::init(machine);
    // With one binary point for both groups, group 1 follows that of group 0.
    msr!("S3_0_C12_C8_3", 4);
    msr!("S3_0_C12_C12_4", 1);
    check_eq!(mrs!("S3_0_C12_C12_3"), 5, "ICC_BPR1_EL1 with CBPR");
    msr!("S3_0_C12_C12_4", 0);
    irq::init(machine);
    Ok(())
}

fn nothing_pending(_: &Machine) -> Check {
    check_eq!(irq::acknowledge(), 1023, "IAR");
    check_eq!(irq::highest_pending(), 1023, "HPPIR");
    check_eq!(irq::running_priority(), 0xff, "RPR");
    check_eq!(mrs!("isr_el1"), 0, "ISR_EL1");
    // Ending what was not begun does nothing.
    irq::end(1023);
    check_eq!(irq::running_priority(), 0xff, "RPR after ending 1023");
    Ok(())
}

fn sgi_self(machine: &Machine) -> Check {
    for sgi in 0..16 {
        irq::enable(sgi, 0);
        for times in 1..=3 {
            irq::send(sgi, machine.cpus()[0]);
            taken(0, sgi, times)?;
        }
    }
    check_eq!(irq::total(0), 48, "interrupts taken");
    check_eq!(irq::spurious(0), 0, "spurious interrupts");
    Ok(())
}

fn sgi_state(machine: &Machine) -> Check {
    irq::enable(5, 0);
    irq::send(5, machine.cpus()[0]);
    eventually("the SGI is pending", || is_set(PEND, 5))?;
    check!(mrs!("isr_el1") & 1 << 7 != 0, "ISR_EL1.I with an SGI pending");
    set(UNPEND, 5);
    check!(!is_set(PEND, 5), "ISPENDR0 after it was cleared");
    eventually("ISR_EL1.I falls", || mrs!("isr_el1") & 1 << 7 == 0)?;
    not_taken(5)?;
    // By register, as well as by sending it.
    set(PEND, 5);
    taken(0, 5, 1)
}

fn sgi_merge(machine: &Machine) -> Check {
    irq::enable(6, 0);
    (0..10).for_each(|_| irq::send(6, machine.cpus()[0]));
    taken(0, 6, 1)
}

fn sgi_disabled(machine: &Machine) -> Check {
    if !can_disable_sgis(machine) {
        return skip("SGIs of a GICv2 may always be enabled");
    }
    irq::send(7, machine.cpus()[0]);
    not_taken(7)?;
    check!(is_set(PEND, 7), "a disabled SGI does not stay pending");
    irq::enable(7, 0);
    taken(0, 7, 1)
}

static DONE: AtomicU32 = AtomicU32::new(0);
static READY: AtomicU32 = AtomicU32::new(0);
/// The interrupt a waiting CPU enables for itself.
static WANTED: AtomicU32 = AtomicU32::new(0);

/// Takes interrupts until DONE.
fn take(cpu: usize) {
    irq::enable(WANTED.load(SeqCst), cpu);
    READY.fetch_add(1, SeqCst);
    arch::with_irqs(|| {
        while DONE.load(SeqCst) == 0 {
            arch::relax();
        }
    });
}

/// Starts CPUs 1 to `last` on [`take`] of `intid`, runs `f`, and ends them.
pub(super) fn with_others(machine: &Machine, last: usize, intid: u32, f: impl FnOnce() -> Check) -> Check {
    DONE.store(0, SeqCst);
    READY.store(0, SeqCst);
    WANTED.store(intid, SeqCst);
    for cpu in 1..=last {
        start(machine, cpu, take, cpu)?;
    }
    let result = eventually("the other CPUs are ready", || READY.load(SeqCst) == last as u32).and_then(|()| f());
    DONE.store(1, SeqCst);
    for cpu in 1..=last {
        join(machine, cpu)?;
    }
    result
}

fn sgi_each_cpu(machine: &Machine) -> Check {
    let last = machine.cpus().len() - 1;
    with_others(machine, last, 2, || {
        for cpu in 1..=last {
            for times in 1..=10 {
                irq::send(2, machine.cpus()[cpu]);
                eventually("the SGI arrives", || irq::count(cpu, 2) == times)?;
            }
        }
        time::delay(1000);
        for cpu in 0..=last {
            check_eq!(irq::total(cpu), if cpu == 0 { 0 } else { 10 }, "interrupts of CPU {cpu}");
        }
        Ok(())
    })
}

fn sgi_all_but_self(machine: &Machine) -> Check {
    let last = machine.cpus().len() - 1;
    irq::enable(4, 0);
    with_others(machine, last, 4, || {
        for times in 1..=10 {
            irq::send_others(4);
            for cpu in 1..=last {
                eventually("the SGI arrives", || irq::count(cpu, 4) == times)?;
            }
        }
        quiet()?;
        check_eq!(irq::total(0), 0, "interrupts of the sender");
        Ok(())
    })
}

fn sgi_nobody(machine: &Machine) -> Check {
    needs_gicv3()?;
    irq::enable(1, 0);
    let me = machine.cpus()[0];
    // No target; CPUs that are not there; another cluster.
    for value in
        [1 << 24, 1 << 24 | 0x8000, 1 << 24 | 0xff << 16 | 1, 1 << 24 | 0xff << 48 | 1, 1 << 24 | 0xff << 32 | 1]
    {
        msr!("S3_0_C12_C11_5", value);
    }
    not_taken(1)?;
    check!(!is_set(PEND, 1), "the SGI is pending here");
    irq::send(1, me);
    taken(0, 1, 1)
}

fn sgi_group0(machine: &Machine) -> Check {
    needs_gicv3()?;
    irq::enable(1, 0);
    let value = 1 << 24 | 1 << (machine.cpus()[0] & 15);
    // All interrupts are in group 1: ICC_SGI0R_EL1 and ICC_ASGI1R_EL1 reach none.
    msr!("S3_0_C12_C11_7", value);
    msr!("S3_0_C12_C11_6", value);
    not_taken(1)
}

fn spi(machine: &Machine) -> Check {
    for intid in [SPI, 41, 63, 64, 95] {
        ready(machine, intid, 0x80);
        for times in 1..=3 {
            set(PEND, intid);
            taken(0, intid, times)?;
            check!(!is_set(PEND, intid), "{intid} still pending");
        }
    }
    Ok(())
}

fn spi_disabled(machine: &Machine) -> Check {
    ready(machine, SPI, 0x80);
    irq::disable(SPI, 0);
    set(PEND, SPI);
    not_taken(SPI)?;
    check!(is_set(PEND, SPI), "a disabled SPI does not stay pending");
    irq::enable(SPI, 0);
    taken(0, SPI, 1)
}

fn spi_cleared_before_taken(machine: &Machine) -> Check {
    ready(machine, SPI, 0x80);
    set(PEND, SPI);
    eventually("ISR_EL1.I rises", || mrs!("isr_el1") & 1 << 7 != 0)?;
    set(UNPEND, SPI);
    not_taken(SPI)?;
    set(PEND, SPI);
    taken(0, SPI, 1)
}

fn spi_disabled_while_pending(machine: &Machine) -> Check {
    ready(machine, SPI, 0x80);
    set(PEND, SPI);
    eventually("ISR_EL1.I rises", || mrs!("isr_el1") & 1 << 7 != 0)?;
    irq::disable(SPI, 0);
    not_taken(SPI)?;
    irq::enable(SPI, 0);
    taken(0, SPI, 1)
}

fn spi_pended_in_handler(machine: &Machine) -> Check {
    ready(machine, SPI, 0x80);
    irq::set_handler(Some(|intid| {
        if irq::count(0, SPI) < 5 {
            // Twice: an edge that comes while one is pending is the same one.
            set(PEND, intid);
            set(PEND, intid);
        }
    }));
    set(PEND, SPI);
    taken(0, SPI, 5)
}

fn spi_retarget(machine: &Machine) -> Check {
    ready(machine, SPI, 0x80);
    with_others(machine, 1, SPI, || {
        for times in 1..=5 {
            irq::route(SPI, machine.cpus()[1]);
            set(PEND, SPI);
            eventually("CPU 1 takes the SPI", || irq::count(1, SPI) == times)?;
            irq::route(SPI, machine.cpus()[0]);
            set(PEND, SPI);
            taken(0, SPI, times)?;
        }
        check_eq!(irq::count(1, SPI), 5, "times that CPU 1 took it");
        Ok(())
    })
}

fn spi_retarget_while_pending(machine: &Machine) -> Check {
    ready(machine, SPI, 0x80);
    set(PEND, SPI);
    eventually("ISR_EL1.I rises", || mrs!("isr_el1") & 1 << 7 != 0)?;
    with_others(machine, 1, SPI, || {
        irq::route(SPI, machine.cpus()[1]);
        eventually("CPU 1 takes the SPI", || irq::count(1, SPI) == 1)?;
        not_taken(SPI)
    })
}

fn spi_to_stopped_cpu(machine: &Machine) -> Check {
    ready(machine, SPI, 0x80);
    irq::route(SPI, machine.cpus()[1]);
    set(PEND, SPI);
    not_taken(SPI)?;
    check!(is_set(PEND, SPI), "it does not stay pending");
    with_others(machine, 1, SPI, || eventually("CPU 1, once on, takes the SPI", || irq::count(1, SPI) == 1))
}

fn active_blocks(machine: &Machine) -> Check {
    ready(machine, SPI, 0x80);
    set(ACTIVATE, SPI);
    set(PEND, SPI);
    not_taken(SPI)?;
    check!(is_set(PEND, SPI) && is_set(ACTIVATE, SPI), "not active and pending");
    set(DEACTIVATE, SPI);
    taken(0, SPI, 1)
}

static SEEN: AtomicU32 = AtomicU32::new(0);

fn active_seen(machine: &Machine) -> Check {
    for intid in [SPI, 3] {
        if intid >= 32 {
            ready(machine, intid, 0x80);
        } else {
            irq::enable(intid, 0);
        }
        SEEN.store(0, SeqCst);
        irq::set_handler(Some(|intid| {
            let bits = u32::from(is_set(ACTIVATE, intid))
                | u32::from(is_set(DEACTIVATE, intid)) << 1
                | u32::from(is_set(PEND, intid)) << 2;
            SEEN.store(bits | 8, SeqCst);
        }));
        set(PEND, intid);
        taken(0, intid, 1)?;
        check_eq!(SEEN.load(SeqCst), 8 | 3, "ISACTIVER, ICACTIVER and not ISPENDR of {intid} in its handler");
        check!(!is_set(ACTIVATE, intid), "{intid} is active after its handler");
    }
    Ok(())
}

fn active_seen_from_other(machine: &Machine) -> Check {
    ready(machine, SPI, 0x80);
    SEEN.store(0, SeqCst);
    with_others(machine, 1, SPI, || {
        // CPU 1 stays in the handler until this CPU has looked.
        irq::set_handler(Some(|_| {
            SEEN.store(1, SeqCst);
            time::wait_until(|| SEEN.load(SeqCst) == 2);
        }));
        irq::route(SPI, machine.cpus()[1]);
        set(PEND, SPI);
        let inside = eventually("CPU 1 is in its handler", || SEEN.load(SeqCst) == 1);
        let (active, pending) = (is_set(ACTIVATE, SPI), is_set(PEND, SPI));
        SEEN.store(2, SeqCst);
        inside?;
        check!(active, "GICD_ISACTIVER, read by another CPU, misses the active SPI");
        check!(!pending, "GICD_ISPENDR, read by another CPU, has the active SPI");
        eventually("it is inactive after the handler", || !is_set(ACTIVATE, SPI))
    })
}

fn split_eoi(machine: &Machine) -> Check {
    ready(machine, SPI, 0x80);
    ready(machine, 41, 0x80);
    irq::set_split(true);
    set(PEND, SPI);
    taken(0, SPI, 1)?;
    check!(is_set(ACTIVATE, SPI), "EOIR deactivated the SPI, with EOImode 1");
    check_eq!(irq::running_priority(), 0xff, "RPR after EOIR");
    // Active: not taken again. Another of the same priority is, since the priority was dropped.
    set(PEND, SPI);
    set(PEND, 41);
    taken(0, 41, 1)?;
    check_eq!(irq::count(0, SPI), 1, "times that an active SPI was taken");
    check!(is_set(PEND, SPI), "pending while active is lost");
    irq::deactivate(SPI);
    taken(0, SPI, 2)?;
    for intid in [41, SPI] {
        irq::deactivate(intid);
        check!(!is_set(ACTIVATE, intid), "DIR did not deactivate {intid}");
    }
    irq::set_split(false);
    Ok(())
}

const SPLIT_SPIS: u32 = 16;
const SPLIT_SGIS: u32 = 4;

/// In EOImode 1, more active interrupts than any CPU has list registers, SGIs among them. The registers that both groups
/// share are what they always are meanwhile, and each can be deactivated, in any order.
fn split_eoi_of_20(machine: &Machine) -> Check {
    needs_gicv3()?;
    let (first, extra) = (SPI, SPI + SPLIT_SPIS);
    let all = || (0..SPLIT_SGIS).chain(first..first + SPLIT_SPIS);
    let pend = |intid| if intid < 16 { irq::send(intid, machine.cpus()[0]) } else { set(PEND, intid) };
    let count = all().count();
    // Apart from each other, and no list register's order.
    let order = |n: usize| all().nth(n * 7 % count).unwrap_or(extra);
    let active = || all().filter(|&intid| is_set(ACTIVATE, intid)).count();
    for intid in all().chain([extra]) {
        if intid < 16 {
            irq::set_priority(intid, 0, 0x80);
            irq::enable(intid, 0);
        } else {
            ready(machine, intid, 0x80);
        }
    }
    let before = control();
    irq::set_split(true);
    for n in 0..count {
        pend(order(n));
        taken(0, order(n), 1)?;
        check_eq!(active(), n + 1, "active ones after EOIR of {}", order(n));
        check_eq!(irq::running_priority(), 0xff, "RPR after EOIR of {}", order(n));
    }
    check_eq!(control(), before | 2, "ICC_CTLR_EL1");
    // The mask still masks, and the running priority still shows.
    irq::set_handler(Some(|_| SEEN.store(irq::running_priority(), SeqCst)));
    for mask in [0, 0x40, 0x80] {
        irq::set_mask(mask);
        check_eq!(GicCpuInterface::get_priority_mask(), mask, "ICC_PMR_EL1");
        set(PEND, extra);
        not_taken(extra)?;
        check_eq!(mrs!("isr_el1") & 1 << 7, 0, "ISR_EL1.I under mask {mask:#x}");
    }
    irq::set_mask(0xf0);
    taken(0, extra, 1)?;
    check_eq!(SEEN.load(SeqCst), 0x80, "RPR in a handler");
    irq::deactivate(extra);
    check!(!is_set(ACTIVATE, extra), "DIR did not deactivate {extra}");
    irq::set_handler(None);
    // What is active stays so in EOImode 0 and back.
    irq::set_split(false);
    check_eq!(control(), before, "ICC_CTLR_EL1 in EOImode 0");
    irq::set_split(true);
    check_eq!(active(), count, "active ones after a change of EOImode");
    // Active SGIs and SPIs that are pending again come when they are deactivated, and not before.
    for n in (0..count).step_by(2) {
        pend(order(n));
    }
    quiet()?;
    check_eq!(irq::total(0), count + 1, "interrupts taken while all are active");
    for n in (0..count).rev() {
        let intid = order(n);
        irq::deactivate(intid);
        if n % 2 == 0 {
            taken(0, intid, 2)?;
            check!(is_set(ACTIVATE, intid), "{intid} is not active again");
            irq::deactivate(intid);
        }
        check!(!is_set(ACTIVATE, intid), "DIR did not deactivate {intid}");
        check_eq!(active(), n, "active ones after DIR of {intid}");
        check!(!is_set(PEND, intid), "{intid} is pending after its end");
    }
    irq::set_split(false);
    all().for_each(pend);
    eventually_with_irqs("all are taken again", || irq::total(0) == count + 1 + count / 2 + count)?;
    check_eq!(active(), 0, "active ones in the end");
    Ok(())
}

fn priority_mask(machine: &Machine) -> Check {
    ready(machine, SPI, 0x80);
    for mask in [0, 0x40, 0x80] {
        irq::set_mask(mask);
        set(PEND, SPI);
        not_taken(SPI)?;
        check_eq!(mrs!("isr_el1") & 1 << 7, 0, "ISR_EL1.I under mask {mask:#x}");
    }
    irq::set_mask(0x88);
    taken(0, SPI, 1)
}

fn group_enables(machine: &Machine) -> Check {
    ready(machine, SPI, 0x80);
    irq::enable_group(false);
    set(PEND, SPI);
    not_taken(SPI)?;
    irq::enable_group(true);
    taken(0, SPI, 1)?;
    irq::forget();
    let control = read32(GICD);
    write32(GICD, control & !3);
    set(PEND, SPI);
    not_taken(SPI)?;
    write32(GICD, control);
    taken(0, SPI, 1)
}

const MANY: usize = 12;

fn order_of_12(machine: &Machine) -> Check {
    // Priorities in another order than numbers, and in another order than they become pending.
    let intid = |rank: usize| SPI + (rank as u32 * 5) % MANY as u32;
    for rank in 0..MANY {
        ready(machine, intid(rank), 0x20 + 8 * rank as u8);
    }
    for number in 0..MANY as u32 {
        set(PEND, SPI + number);
    }
    eventually_with_irqs("all are taken", || irq::total(0) == MANY)?;
    for rank in 0..MANY {
        check_eq!(irq::nth(0, rank), intid(rank), "interrupt number {rank}");
    }
    quiet()?;
    check_eq!(irq::total(0), MANY, "interrupts taken");
    Ok(())
}

fn many_of_one_priority(machine: &Machine) -> Check {
    const COUNT: u32 = 24;
    for round in 1..=5 {
        (0..COUNT).for_each(|number| ready(machine, SPI + number, 0x80));
        (0..COUNT).for_each(|number| set(PEND, SPI + number));
        for number in 0..COUNT {
            eventually_with_irqs("each is taken", || irq::count(0, SPI + number) == round)?;
        }
    }
    quiet()?;
    check_eq!(irq::total(0), 5 * COUNT as usize, "interrupts taken");
    Ok(())
}

fn priority_change_while_pending(machine: &Machine) -> Check {
    ready(machine, SPI, 0x80);
    ready(machine, 41, 0x40);
    irq::disable(SPI, 0);
    irq::disable(41, 0);
    set(PEND, SPI);
    set(PEND, 41);
    irq::set_priority(SPI, 0, 0x20);
    irq::enable(41, 0);
    irq::enable(SPI, 0);
    eventually_with_irqs("both are taken", || irq::total(0) == 2)?;
    check_eq!((irq::nth(0, 0), irq::nth(0, 1)), (SPI, 41), "the order");
    Ok(())
}

/// What the handler of the first interrupt makes pending, and when that one was taken.
static NESTED: AtomicU32 = AtomicU32::new(0);
static DEPTH: AtomicUsize = AtomicUsize::new(0);
static DEEPEST: AtomicUsize = AtomicUsize::new(0);

/// Makes NESTED pending from within the handler of SPI, and lets interrupts in. Gives the greatest depth.
fn nest(machine: &Machine, first: u8, second: u8) -> Check<usize> {
    ready(machine, SPI, first);
    ready(machine, 41, second);
    NESTED.store(41, SeqCst);
    DEPTH.store(0, SeqCst);
    DEEPEST.store(0, SeqCst);
    irq::set_handler(Some(|intid| {
        let depth = DEPTH.fetch_add(1, SeqCst) + 1;
        DEEPEST.fetch_max(depth, SeqCst);
        if intid == SPI {
            set(PEND, NESTED.load(SeqCst));
            arch::with_irqs(|| time::delay(500));
        }
        DEPTH.fetch_sub(1, SeqCst);
    }));
    set(PEND, SPI);
    eventually_with_irqs("both are taken", || irq::total(0) == 2 && DEPTH.load(SeqCst) == 0)?;
    check_eq!((irq::nth(0, 0), irq::nth(0, 1)), (SPI, 41), "the order");
    check_eq!(irq::running_priority(), 0xff, "RPR at the end");
    irq::forget();
    Ok(DEEPEST.load(SeqCst))
}

fn preemption(machine: &Machine) -> Check {
    for (first, second) in [(0x80, 0x40), (0x80, 0x70), (0xf0, 0), (0x20, 0x10)] {
        check_eq!(nest(machine, first, second)?, 2, "depth of {second:#x} over {first:#x}");
    }
    Ok(())
}

fn no_preemption(machine: &Machine) -> Check {
    for (first, second) in [(0x80, 0x80), (0x80, 0xc0), (0, 0), (0x40, 0x48)] {
        check_eq!(nest(machine, first, second)?, 1, "depth of {second:#x} over {first:#x}");
    }
    Ok(())
}

fn binary_point(machine: &Machine) -> Check {
    // Only the group priority decides on preemption.
    irq::set_binary_point(7);
    check_eq!(nest(machine, 0x70, 0x40)?, 1, "depth of 0x40 over 0x70 with BPR 7");
    irq::set_binary_point(4);
    check_eq!(nest(machine, 0x70, 0x40)?, 2, "depth of 0x40 over 0x70 with BPR 4");
    check_eq!(nest(machine, 0x48, 0x40)?, 1, "depth of 0x40 over 0x48 with BPR 4");
    irq::init(machine);
    Ok(())
}

fn running_priority(machine: &Machine) -> Check {
    for priority in [0, 0x40, 0x80, 0xf0] {
        ready(machine, SPI, priority);
        irq::set_handler(Some(|_| SEEN.store(irq::running_priority(), SeqCst)));
        irq::forget();
        set(PEND, SPI);
        taken(0, SPI, 1)?;
        check_eq!(SEEN.load(SeqCst), u32::from(priority), "RPR in the handler");
        check_eq!(irq::running_priority(), 0xff, "RPR outside");
    }
    Ok(())
}

fn highest_pending(machine: &Machine) -> Check {
    ready(machine, SPI, 0x80);
    ready(machine, 41, 0x40);
    set(PEND, SPI);
    eventually("the first is the highest", || irq::highest_pending() == SPI)?;
    set(PEND, 41);
    eventually("the second is the highest", || irq::highest_pending() == 41)?;
    // Looking does not acknowledge.
    check!(is_set(PEND, SPI) && is_set(PEND, 41), "no longer pending after HPPIR");
    check_eq!(irq::running_priority(), 0xff, "RPR");
    taken(0, 41, 1)?;
    taken(0, SPI, 1)
}
