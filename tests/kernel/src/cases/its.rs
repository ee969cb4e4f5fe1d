//! The interrupt translation service: commands good and bad, and LPIs until they are taken.

use crate::{
    check, check_eq,
    harness::{Case, Check, Under::*, case, eventually, eventually_with_irqs, join, skip, start},
};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use keel_test_kernel::{
    arch, irq,
    its::{self, LPI, Setup, USUAL, command::*},
    machine::Machine,
    mmio::{read8, read16, read32, read64, write16, write32, write64},
    platform::{GICD, GICR, HOLE, ITS, MAX_CPUS},
    time,
};

pub const CASES: &[Case] = &[
    case("its/identity", 1, Any, identity),
    case("its/identity_keel", 1, Keel, identity_keel),
    case("its/registers", 1, Any, registers),
    case("its/registers_while_enabled", 1, Any, registers_while_enabled),
    case("its/attributes", 1, Keel, attributes),
    case("its/widths", 1, Keel, widths),
    case("its/needs_its_tables", 1, Keel, needs_its_tables),
    case("its/interrupt", 1, Any, interrupt),
    case("its/event_is_the_lpi", 1, Any, event_is_the_lpi),
    case("its/devices_apart", 1, Any, devices_apart),
    case("its/last_lpi", 1, Any, last_lpi),
    case("its/while_disabled", 1, Any, while_disabled),
    case("its/disabled_lpi_stays_pending", 1, Any, disabled_lpi_stays_pending),
    case("its/disabling_a_pending_lpi", 1, Any, disabling_a_pending_lpi),
    case("its/invall", 1, Any, invalidate_all),
    case("its/clear", 1, Any, clear_pending),
    case("its/discard", 1, Any, discard_pending),
    case("its/unmap_device", 1, Any, unmap_device),
    case("its/unmap_collection", 1, Any, unmap_collection),
    case("its/priorities", 1, Any, priorities),
    case("its/priorities_among_all", 1, Any, priorities_among_all),
    case("its/priority_mask", 1, Any, priority_mask),
    case("its/many", 1, Any, many),
    case("its/pending_again_in_its_handler", 1, Any, pending_again),
    case("its/eoi_mode_1", 1, Any, eoi_mode_1),
    case("its/group_off", 1, Any, group_off),
    case("its/distributor_off", 1, Any, distributor_off),
    case("its/queue_wraps", 1, Any, queue_wraps),
    case("its/long_queue", 1, Any, long_queue),
    case("its/two_levels", 1, Any, two_levels),
    case("its/bad_commands", 1, Any, bad_commands),
    case("its/bad_tables", 1, Keel, bad_tables),
    case("its/bad_queue", 1, Keel, bad_queue),
    case("its/bad_lpi_tables", 1, Keel, bad_lpi_tables),
    case("its/write_pointer_beyond_the_queue", 1, Keel, write_pointer_beyond),
    case("its/translater", 1, Keel, translater),
    case("its/pending_table", 1, Any, pending_table),
    case("its/lpis_off", 1, Keel, lpis_off),
    case("its/lpi_tables_are_fixed", 1, Keel, lpi_tables_are_fixed),
    case("its/direct_invalidation", 1, Keel, direct_invalidation),
    case("its/random_commands", 2, Keel, random_commands),
    case("its/to_each_cpu", 2, Any, to_each_cpu),
    case("its/wakes", 2, Any, wakes),
    case("its/move_pending", 2, Any, move_pending),
    case("its/move_while_taken", 2, Any, move_while_taken),
    case("its/move_all", 2, Any, move_all),
    case("its/commands_from_two_cpus", 2, Any, commands_from_two_cpus),
];

/// LPIs that are counted.
const COUNTED: usize = 512;
static COUNTS: [[AtomicU32; COUNTED]; MAX_CPUS] = [const { [const { AtomicU32::new(0) }; COUNTED] }; MAX_CPUS];

/// The device most cases use.
const DEVICE: u32 = 5;

fn count(cpu: usize, lpi: u32) -> u32 {
    COUNTS[cpu][(lpi - LPI) as usize].load(SeqCst)
}

fn total(cpu: usize) -> u32 {
    COUNTS[cpu].iter().map(|count| count.load(SeqCst)).sum()
}

fn note(intid: u32) {
    let number = intid.checked_sub(LPI).map(|number| number as usize);
    if let Some(count) = number.and_then(|number| COUNTS[arch::cpu()].get(number)) {
        count.fetch_add(1, SeqCst);
    }
}

fn begin_with(machine: &Machine, setup: Setup) -> Check {
    if !machine.has_its {
        return skip("there is no ITS");
    }
    check!(its::start(machine, setup), "the ITS does not carry out MAPC");
    COUNTS.iter().flatten().for_each(|count| count.store(0, SeqCst));
    irq::set_handler(Some(note));
    Ok(())
}

/// An ITS with DEVICE, which may have 32 events.
fn begin(machine: &Machine) -> Check {
    begin_with(machine, USUAL)?;
    run([mapd(DEVICE, 5, its::itt(0))])
}

/// Whether this is KVM, which keeps tables of its own and takes no LPI out of a list register.
fn on_kvm(machine: &Machine) -> bool {
    machine.value("hyp") == Some("kvm")
}

fn run(commands: impl IntoIterator<Item = [u64; 4]>) -> Check {
    check!(its::run(commands), "GITS_CREADR {:#x} does not come to {:#x}", read64(its::CREADR), read64(its::CWRITER));
    Ok(())
}

/// Event `event` of DEVICE is LPI 8192 + event, enabled, in a collection.
fn map(event: u32, priority: u8, collection: u16) -> Check {
    its::configure(LPI + event, priority, true);
    run([mapti(DEVICE, event, LPI + event, collection), inv(DEVICE, event)])
}

fn quiet() {
    arch::with_irqs(|| time::delay(200));
}

/// CPU 0 takes an LPI as often as it is said, and no other.
fn taken(lpi: u32, times: u32) -> Check {
    eventually_with_irqs("an LPI is taken", || count(0, lpi) >= times)?;
    quiet();
    check_eq!(count(0, lpi), times, "times that LPI {lpi} was taken");
    Ok(())
}

fn nothing_more(before: u32) -> Check {
    quiet();
    check_eq!(total(0), before, "LPIs taken");
    Ok(())
}

fn identity(machine: &Machine) -> Check {
    begin(machine)?;
    let typer = read64(its::TYPER);
    check!(typer & 1 == 1, "GITS_TYPER.Physical of {typer:#x}");
    check!(typer >> 19 & 1 == 0, "GITS_TYPER.PTA of {typer:#x}");
    check!(typer >> 8 & 0x1f >= 13, "GITS_TYPER.ID_bits of {typer:#x}");
    check_eq!(read32(ITS + 0xffe8) >> 4 & 15, 3, "architecture in GITS_PIDR2");
    check_eq!(read64(its::BASER) >> 56 & 7, 1, "GITS_BASER0.Type: devices");
    check_eq!(read64(its::BASER + 8) >> 56 & 7, 4, "GITS_BASER1.Type: collections");
    check!(read32(GICD + 4) >> 17 & 1 == 1, "GICD_TYPER.LPIS");
    check!(read64(GICR + 8) & 1 == 1, "GICR_TYPER.PLPIS");
    Ok(())
}

fn identity_keel(machine: &Machine) -> Check {
    begin(machine)?;
    check_eq!(read64(its::TYPER), 0x1_ef71, "GITS_TYPER");
    check_eq!(read32(its::IIDR), 0x4b00_043b, "GITS_IIDR");
    check_eq!(read32(GICD + 4), 0x007a_0007, "GICD_TYPER");
    let identification = [0x40, 0, 0, 0, 0x92, 0xb4, 0x3b, 0, 0x0d, 0xf0, 0x05, 0xb1];
    for (number, value) in identification.into_iter().enumerate() {
        check_eq!(read32(ITS + 0xffd0 + 4 * number), value, "identification register {number}");
    }
    for number in 2..8 {
        write64(its::BASER + 8 * number, !0);
        check_eq!(read64(its::BASER + 8 * number), 0, "GITS_BASER{number}");
    }
    Ok(())
}

fn registers(machine: &Machine) -> Check {
    begin(machine)?;
    check_eq!(read32(its::CTLR) & 1, 1, "GITS_CTLR.Enabled");
    its::disable();
    check_eq!(read32(its::CTLR) & 1 | read32(its::CTLR) >> 31 << 1, 2, "GITS_CTLR.Enabled and Quiescent");
    let address = 0x1234_5678_0000_u64 & 0xffff_ffff_0000;
    write64(its::BASER, its::baser(0) | address | 3);
    check_eq!(read64(its::BASER) & 0xffff_ffff_0000, address, "the address in GITS_BASER0");
    check_eq!(read64(its::BASER) & 0xff, 3, "GITS_BASER0.Size");
    check_eq!(read64(its::BASER) >> 56 & 7, 1, "GITS_BASER0.Type, which is read-only");
    run([])?;
    write64(its::CWRITER, 0x20);
    write64(its::CBASER, its::VALID | its::queue() as u64 | 3);
    check_eq!(read64(its::CBASER) & 0xff, 3, "GITS_CBASER.Size");
    check_eq!(read64(its::CREADR), 0, "GITS_CREADR with a new queue");
    // Half at a time.
    write32(its::BASER + 4, (its::baser(0) >> 32) as u32);
    write32(its::BASER, 0x4321_0000);
    check_eq!(read32(its::BASER) & 0xffff_0000, 0x4321_0000, "the lower half of GITS_BASER0");
    check_eq!(read32(its::BASER + 4) >> 31, 1, "GITS_BASER0.Valid, by halves");
    Ok(())
}

fn registers_while_enabled(machine: &Machine) -> Check {
    begin(machine)?;
    let before = [its::CBASER, its::BASER, its::BASER + 8].map(|register| (register, read64(register)));
    for (register, value) in before {
        write64(register, 0);
        check_eq!(read64(register), value, "the register at {register:#x} after a write while the ITS is enabled");
    }
    map(0, 0x80, 0)?;
    run([int(DEVICE, 0)])?;
    taken(LPI, 1)
}

/// Attributes become what holds: cacheable, and inner shareable.
fn attributes(machine: &Machine) -> Check {
    begin(machine)?;
    its::disable();
    let before = read64(its::CREADR);
    write64(its::CREADR, before + 0x20);
    check_eq!(read64(its::CREADR), before, "GITS_CREADR, which is read-only");
    write64(its::BASER, 1 << 63 | 0x4000_0000 | 2 << 10 | 3);
    check_eq!(
        read64(its::BASER),
        1 << 63 | 3 << 59 | 1 << 56 | 7 << 48 | 0x4000_0000 | 1 << 10 | 2 << 8 | 3,
        "GITS_BASER0"
    );
    write64(its::CBASER, 1 << 63 | 0x4001_f000 | 2 << 10 | 1 << 59 | 7 << 53);
    check_eq!(read64(its::CBASER), 1 << 63 | 3 << 59 | 0x4001_0000 | 1 << 10, "GITS_CBASER");
    its::enable(0, false);
    write64(its::gicr(0, its::PROPBASER), !0);
    check_eq!(read64(its::gicr(0, its::PROPBASER)), 0x000f_ffff_ffff_ff9f, "GICR_PROPBASER");
    write64(its::gicr(0, its::PENDBASER), !0);
    check_eq!(read64(its::gicr(0, its::PENDBASER)), 0x000f_ffff_ffff_0f80, "GICR_PENDBASER");
    write32(its::gicr(0, its::PENDBASER), 0x4101_0000);
    check_eq!(
        read64(its::gicr(0, its::PENDBASER)),
        0x000f_ffff_4101_0180,
        "GICR_PENDBASER after half of it was written"
    );
    Ok(())
}

fn widths(machine: &Machine) -> Check {
    begin(machine)?;
    check_eq!(read32(its::TYPER), 0x1_ef71, "the lower half of GITS_TYPER");
    check_eq!(read32(its::TYPER + 4), 0, "the upper half of GITS_TYPER");
    for offset in [0, 8, 0x80] {
        check_eq!(read8(ITS + offset), 0, "a byte at {offset:#x}");
        check_eq!(read16(ITS + offset), 0, "two bytes at {offset:#x}");
    }
    check_eq!(read64(its::CTLR), 0, "GITS_CTLR as 64 bits");
    write64(its::CTLR, 0);
    write16(its::CTLR, 0);
    check_eq!(read32(its::CTLR) & 1, 1, "GITS_CTLR.Enabled after writes of other widths");
    for offset in [0x10, 0x1000, 0x1_0000, 0x1_0040, 0x1_fffc] {
        write32(ITS + offset, !0);
        check_eq!(read32(ITS + offset), 0, "what is at {offset:#x}");
    }
    Ok(())
}

fn needs_its_tables(machine: &Machine) -> Check {
    begin(machine)?;
    for register in [its::CBASER, its::BASER, its::BASER + 8] {
        its::disable();
        let before = read64(register);
        write64(register, before & !its::VALID);
        write32(its::CTLR, 1);
        check_eq!(read32(its::CTLR) & 1, 0, "GITS_CTLR.Enabled without the table at {register:#x}");
        write64(register, before);
        write32(its::CTLR, 1);
        check_eq!(read32(its::CTLR) & 1, 1, "GITS_CTLR.Enabled with the table at {register:#x}");
    }
    Ok(())
}

fn interrupt(machine: &Machine) -> Check {
    begin(machine)?;
    map(3, 0xa0, 0)?;
    for round in 1..=3 {
        run([int(DEVICE, 3)])?;
        taken(LPI + 3, round)?;
    }
    // Many at once are one.
    run([int(DEVICE, 3), int(DEVICE, 3), int(DEVICE, 3)])?;
    taken(LPI + 3, 4)?;
    nothing_more(4)
}

fn event_is_the_lpi(machine: &Machine) -> Check {
    begin(machine)?;
    its::configure(LPI + 7, 0x80, true);
    run([mapd(DEVICE + 1, 14, its::itt(1)), mapi(DEVICE + 1, LPI + 7, 0), inv(DEVICE + 1, LPI + 7)])?;
    run([int(DEVICE + 1, LPI + 7)])?;
    taken(LPI + 7, 1)
}

fn devices_apart(machine: &Machine) -> Check {
    begin(machine)?;
    run([mapd(0, 1, its::itt(1)), mapd(8191, 1, its::itt(2))])?;
    for (lpi, device) in [(LPI, DEVICE), (LPI + 1, 0), (LPI + 2, 8191)] {
        its::configure(lpi, 0x80, true);
        run([mapti(device, 1, lpi, 0), inv(device, 1)])?;
    }
    for (lpi, device) in [(LPI + 2, 8191), (LPI, DEVICE), (LPI + 1, 0)] {
        run([int(device, 1)])?;
        taken(lpi, 1)?;
    }
    nothing_more(3)
}

/// The last LPI that the tables have room for, and one that they have not.
fn last_lpi(machine: &Machine) -> Check {
    begin(machine)?;
    its::configure(65535, 0x80, true);
    run([mapti(DEVICE, 0, 65535, 0), inv(DEVICE, 0), mapti(DEVICE, 1, 65536, 0), mapti(DEVICE, 2, LPI - 1, 0)])?;
    irq::forget();
    run([int(DEVICE, 0), int(DEVICE, 1), int(DEVICE, 2)])?;
    eventually_with_irqs("the last LPI is taken", || irq::total(0) == 1)?;
    quiet();
    check_eq!((irq::total(0), irq::nth(0, 0)), (1, 65535), "interrupts taken, and the first");
    Ok(())
}

/// Commands wait while the ITS is disabled.
fn while_disabled(machine: &Machine) -> Check {
    begin(machine)?;
    map(0, 0x80, 0)?;
    its::disable();
    its::push([int(DEVICE, 0)]);
    nothing_more(0)?;
    check!(read64(its::CREADR) != read64(its::CWRITER), "the disabled ITS carried out a command");
    write32(its::CTLR, 1);
    check!(its::finished(), "the ITS does not go on");
    taken(LPI, 1)
}

fn disabled_lpi_stays_pending(machine: &Machine) -> Check {
    begin(machine)?;
    map(0, 0x80, 0)?;
    its::configure(LPI, 0x80, false);
    run([inv(DEVICE, 0), int(DEVICE, 0)])?;
    nothing_more(0)?;
    its::configure(LPI, 0x80, true);
    run([inv(DEVICE, 0)])?;
    taken(LPI, 1)
}

fn disabling_a_pending_lpi(machine: &Machine) -> Check {
    begin(machine)?;
    map(0, 0x80, 0)?;
    run([int(DEVICE, 0)])?;
    eventually("the LPI is the highest pending", || mrs_hppir() == u64::from(LPI))?;
    its::configure(LPI, 0x80, false);
    run([inv(DEVICE, 0), sync(0)])?;
    nothing_more(0)?;
    its::configure(LPI, 0x80, true);
    run([inv(DEVICE, 0), sync(0)])?;
    taken(LPI, 1)
}

fn mrs_hppir() -> u64 {
    keel_test_kernel::mrs!("S3_0_C12_C12_2")
}

fn invalidate_all(machine: &Machine) -> Check {
    begin(machine)?;
    for event in 0..32 {
        map(event, 0x80, 0)?;
        its::configure(LPI + event, 0x80, false);
    }
    run([invall(0), sync(0)])?;
    run((0..32).map(|event| int(DEVICE, event)))?;
    nothing_more(0)?;
    for event in 0..16 {
        its::configure(LPI + 2 * event, 0x40, true);
    }
    run([invall(0), sync(0)])?;
    eventually_with_irqs("the enabled half is taken", || total(0) == 16)?;
    nothing_more(16)?;
    for event in 0..32 {
        check_eq!(count(0, LPI + event), 1 - event % 2, "times that event {event} was taken");
    }
    Ok(())
}

fn clear_pending(machine: &Machine) -> Check {
    begin(machine)?;
    map(0, 0x80, 0)?;
    map(1, 0x80, 0)?;
    run([int(DEVICE, 0), int(DEVICE, 1)])?;
    eventually("an LPI is pending", || mrs_hppir() >= u64::from(LPI))?;
    run([clear(DEVICE, 0), sync(0)])?;
    taken(LPI + 1, 1)?;
    nothing_more(1)?;
    // It is still mapped.
    run([int(DEVICE, 0)])?;
    taken(LPI, 1)
}

fn discard_pending(machine: &Machine) -> Check {
    begin(machine)?;
    map(0, 0x80, 0)?;
    run([int(DEVICE, 0)])?;
    eventually("the LPI is pending", || mrs_hppir() == u64::from(LPI))?;
    run([discard(DEVICE, 0), sync(0)])?;
    let before = u32::from(on_kvm(machine));
    nothing_more(before)?;
    run([int(DEVICE, 0)])?;
    nothing_more(before)?;
    map(0, 0x80, 0)?;
    run([int(DEVICE, 0)])?;
    taken(LPI, before + 1)
}

fn unmap_device(machine: &Machine) -> Check {
    begin(machine)?;
    map(0, 0x80, 0)?;
    run([unmapd(DEVICE), int(DEVICE, 0)])?;
    nothing_more(0)?;
    // With another table it has no events.
    run([mapd(DEVICE, 5, its::itt(1)), int(DEVICE, 0)])?;
    nothing_more(0)?;
    map(0, 0x80, 0)?;
    run([int(DEVICE, 0)])?;
    taken(LPI, 1)
}

fn unmap_collection(machine: &Machine) -> Check {
    begin(machine)?;
    run([mapc(40, 0)])?;
    map(0, 0x80, 40)?;
    run([int(DEVICE, 0)])?;
    taken(LPI, 1)?;
    run([unmapc(40), int(DEVICE, 0)])?;
    nothing_more(1)?;
    if on_kvm(machine) {
        // Its events forget a collection that goes.
        return Ok(());
    }
    run([mapc(40, 0), int(DEVICE, 0)])?;
    taken(LPI, 2)
}

/// The order in which interrupts are taken that are all pending.
fn order(expected: &[u32]) -> Check {
    // They are all there.
    time::delay(100);
    eventually_with_irqs("all are taken", || irq::total(0) >= expected.len())?;
    quiet();
    check_eq!(irq::total(0), expected.len(), "interrupts taken");
    for (number, &intid) in expected.iter().enumerate() {
        check_eq!(irq::nth(0, number), intid, "interrupt number {number}");
    }
    Ok(())
}

fn priorities(machine: &Machine) -> Check {
    begin(machine)?;
    irq::forget();
    for event in 0..20 {
        map(event, 0xf0 - 8 * (event * 7 % 20) as u8, 0)?;
    }
    run((0..20).map(|event| int(DEVICE, event)))?;
    let mut expected = [0; 20];
    (0..20).for_each(|event: u32| expected[19 - (event * 7 % 20) as usize] = LPI + event);
    order(&expected)
}

/// LPIs among SPIs and SGIs.
fn priorities_among_all(machine: &Machine) -> Check {
    const SPI: u32 = 40;
    const SGI: u32 = 3;
    begin(machine)?;
    irq::forget();
    for (intid, priority) in [(SPI, 0x60), (SPI + 1, 0xa0), (SGI, 0x80)] {
        irq::set_priority(intid, 0, priority);
        irq::enable(intid, 0);
    }
    // Edge-triggered, so that each comes once.
    write32(GICD + 0xc08, read32(GICD + 0xc08) | 0xa << (SPI % 16 * 2));
    for (event, priority) in [(0, 0x90), (1, 0x50), (2, 0x70)] {
        map(event, priority, 0)?;
    }
    run((0..3).map(|event| int(DEVICE, event)))?;
    write32(GICD + 0x204, 3 << (SPI % 32));
    irq::send(SGI, machine.cpus()[0]);
    order(&[LPI + 1, SPI, LPI + 2, SGI, LPI, SPI + 1])
}

fn priority_mask(machine: &Machine) -> Check {
    begin(machine)?;
    map(0, 0x80, 0)?;
    map(1, 0x40, 0)?;
    keel_test_kernel::msr!("S3_0_C4_C6_0", 0x60);
    run([int(DEVICE, 0), int(DEVICE, 1)])?;
    let result = taken(LPI + 1, 1).and_then(|()| nothing_more(1));
    keel_test_kernel::msr!("S3_0_C4_C6_0", 0xff);
    result?;
    taken(LPI, 1)
}

/// More than any list registers.
fn many(machine: &Machine) -> Check {
    begin_with(machine, USUAL)?;
    run([mapd(DEVICE, 9, its::itt(0))])?;
    for event in 0..COUNTED as u32 {
        its::configure(LPI + event, (event % 8 * 16) as u8, true);
    }
    run((0..COUNTED as u32).map(|event| mapti(DEVICE, event, LPI + event, 0)))?;
    run([invall(0)])?;
    for round in 1..=3 {
        run((0..COUNTED as u32).map(|event| int(DEVICE, event)))?;
        eventually_with_irqs("all are taken", || total(0) >= round * COUNTED as u32)?;
        nothing_more(round * COUNTED as u32)?;
        for event in 0..COUNTED as u32 {
            check_eq!(count(0, LPI + event), round, "times that event {event} was taken");
        }
    }
    Ok(())
}

static AGAIN: AtomicU32 = AtomicU32::new(0);

/// Made pending in its own handler, it is taken again after that.
fn pending_again(machine: &Machine) -> Check {
    begin(machine)?;
    map(0, 0x80, 0)?;
    AGAIN.store(3, SeqCst);
    irq::set_handler(Some(|intid| {
        note(intid);
        if AGAIN.load(SeqCst) > 0 {
            AGAIN.fetch_sub(1, SeqCst);
            // A failure shows in the count.
            let _ = its::run([int(DEVICE, 0)]);
        }
    }));
    run([int(DEVICE, 0)])?;
    taken(LPI, 4)
}

/// The end of an LPI in EOI mode 1 leaves nothing active.
fn eoi_mode_1(machine: &Machine) -> Check {
    begin(machine)?;
    map(0, 0x80, 0)?;
    map(1, 0x80, 0)?;
    let control = keel_test_kernel::mrs!("S3_0_C12_C12_4");
    keel_test_kernel::msr!("S3_0_C12_C12_4", control | 2);
    let mut result = Ok(());
    for round in 1..=3 {
        result = result.and_then(|()| run([int(DEVICE, 0), int(DEVICE, 1)])).and_then(|()| {
            taken(LPI, round)?;
            taken(LPI + 1, round)
        });
    }
    keel_test_kernel::msr!("S3_0_C12_C12_4", control);
    result
}

fn group_off(machine: &Machine) -> Check {
    begin(machine)?;
    map(0, 0x80, 0)?;
    keel_test_kernel::msr!("S3_0_C12_C12_7", 0);
    let result = run([int(DEVICE, 0)]).and_then(|()| nothing_more(0));
    keel_test_kernel::msr!("S3_0_C12_C12_7", 1);
    result?;
    taken(LPI, 1)
}

fn distributor_off(machine: &Machine) -> Check {
    if on_kvm(machine) {
        return skip("KVM tells nobody of LPIs that waited for the distributor");
    }
    begin(machine)?;
    map(0, 0x80, 0)?;
    let control = read32(GICD);
    write32(GICD, control & !3);
    let result = run([int(DEVICE, 0)]).and_then(|()| nothing_more(0));
    write32(GICD, control);
    result?;
    taken(LPI, 1)
}

fn queue_wraps(machine: &Machine) -> Check {
    begin_with(machine, Setup { queue_pages: 1, ..USUAL })?;
    run([mapd(DEVICE, 5, its::itt(0))])?;
    map(0, 0x80, 0)?;
    for round in 1..=60 {
        run([sync(0), sync(0), int(DEVICE, 0), sync(0), sync(0)])?;
        eventually_with_irqs("each is taken", || count(0, LPI) == round)?;
    }
    // A queue that is full but for one.
    run((0..127).map(|number| if number == 126 { int(DEVICE, 0) } else { sync(0) }))?;
    taken(LPI, 61)
}

/// The longest queue there is, given at once; timers go on meanwhile.
fn long_queue(machine: &Machine) -> Check {
    begin_with(machine, Setup { queue_pages: its::QUEUE_MAX / 0x1000, ..USUAL })?;
    run([mapd(DEVICE, 5, its::itt(0))])?;
    map(0, 0x80, 0)?;
    let commands = its::QUEUE_MAX / its::COMMAND_BYTES - 1;
    run((0..commands).map(|number| if number == commands - 1 { int(DEVICE, 0) } else { inv(DEVICE, 0) }))?;
    taken(LPI, 1)
}

fn two_levels(machine: &Machine) -> Check {
    begin_with(machine, Setup { indirect: true, ..USUAL })?;
    its::configure(LPI, 0x80, true);
    its::configure(LPI + 1, 0x80, true);
    // The second page of the second level is not there.
    run([
        mapd(8191, 5, its::itt(0)),
        mapti(8191, 0, LPI, 0),
        inv(8191, 0),
        mapd(8192, 5, its::itt(1)),
        mapti(8192, 0, LPI + 1, 0),
        inv(8192, 0),
    ])?;
    run([int(8192, 0), int(8191, 0)])?;
    taken(LPI, 1)?;
    nothing_more(1)
}

fn bad_commands(machine: &Machine) -> Check {
    begin(machine)?;
    map(0, 0x80, 0)?;
    let cpus = machine.cpus().len();
    let bad: [[u64; 4]; 17] = [
        [0, 0, 0, 0],
        [0x7f, !0, !0, !0],
        [0xff, 0, 0, 0],
        mapd(DEVICE + 1, 32, its::itt(1)),
        mapc(2000, cpus),
        mapc(2001, 0xffff),
        mapti(DEVICE + 2, 0, LPI + 4, 0), // no such device
        mapti(DEVICE, 32, LPI + 4, 0),    // no such event
        mapti(DEVICE, 1, 32, 0),          // no LPI
        mapti(DEVICE, 1, !0, 0),
        int(DEVICE, 2), // not mapped
        int(DEVICE, !0),
        int(DEVICE + 2, 0),
        clear(DEVICE, 9),
        discard(DEVICE, 9),
        inv(DEVICE, 9),
        movi(DEVICE, 9, 0),
    ];
    for (number, command) in bad.into_iter().enumerate() {
        check!(its::run([command]), "bad command {number}: GITS_CREADR does not go on");
    }
    nothing_more(0)?;
    // Everything is as before.
    run([int(DEVICE, 0)])?;
    taken(LPI, 1)?;
    nothing_more(1)
}

/// Tables where there is no memory: their commands are skipped.
fn bad_tables(machine: &Machine) -> Check {
    begin(machine)?;
    for (register, what) in [(its::BASER, "devices"), (its::BASER + 8, "collections")] {
        for address in [HOLE & !0xffff, 0xffff_ffff_0000] {
            its::disable();
            let before = read64(register);
            write64(register, 0);
            write64(register, its::baser(address));
            write32(its::CTLR, 1);
            its::configure(LPI, 0x80, true);
            let commands = [mapd(DEVICE, 5, its::itt(0)), mapc(0, 0), mapti(DEVICE, 0, LPI, 0), int(DEVICE, 0)];
            check!(its::run(commands), "with {what} at {address:#x}: GITS_CREADR does not go on");
            nothing_more(0)?;
            its::disable();
            write64(register, before);
            write32(its::CTLR, 1);
            run([mapc(0, 0), mapd(DEVICE, 5, its::itt(0))])?;
        }
    }
    // Interrupt translation tables, too.
    for address in [HOLE & !0xff, 0xffff_ffff_ff00] {
        check!(its::run([mapd(9, 5, address), mapti(9, 0, LPI, 0), int(9, 0)]), "with a table at {address:#x}");
        nothing_more(0)?;
    }
    map(1, 0x80, 0)?;
    run([int(DEVICE, 1)])?;
    taken(LPI + 1, 1)
}

fn bad_queue(machine: &Machine) -> Check {
    begin(machine)?;
    for address in [HOLE & !0xffff, 0xffff_ffff_0000] {
        its::disable();
        write64(its::CBASER, its::VALID | address as u64 | 0xff);
        write32(its::CTLR, 1);
        write64(its::CWRITER, 0xf_ffe0);
        check!(its::finished(), "with a queue at {address:#x}: GITS_CREADR does not go on");
    }
    nothing_more(0)
}

fn bad_lpi_tables(machine: &Machine) -> Check {
    begin(machine)?;
    its::enable(0, false);
    write64(its::gicr(0, its::PROPBASER), (HOLE & !0xffff) as u64 | 15);
    write64(its::gicr(0, its::PENDBASER), (HOLE & !0xffff) as u64);
    its::enable(0, true);
    check_eq!(read32(its::gicr(0, its::GICR_CTLR)) & 1, 1, "GICR_CTLR.EnableLPIs");
    run([mapti(DEVICE, 0, LPI, 0), inv(DEVICE, 0), invall(0), int(DEVICE, 0)])?;
    nothing_more(0)
}

fn write_pointer_beyond(machine: &Machine) -> Check {
    begin_with(machine, Setup { queue_pages: 1, ..USUAL })?;
    let before = read64(its::CWRITER);
    for offset in [0x1000, 0xf_ffe0] {
        write64(its::CWRITER, offset);
        check_eq!(read64(its::CWRITER), before, "GITS_CWRITER after {offset:#x}");
    }
    // Retry and reserved bits are not kept.
    write64(its::CWRITER, before | 0x1f | 0xfff0_0000_0000_0000);
    check_eq!(read64(its::CWRITER), before, "GITS_CWRITER");
    check_eq!(read64(its::CREADR), before, "GITS_CREADR");
    Ok(())
}

/// A CPU has no DeviceID.
fn translater(machine: &Machine) -> Check {
    begin(machine)?;
    run([mapd(0, 5, its::itt(1)), mapti(0, 0, LPI, 0)])?;
    its::configure(LPI, 0x80, true);
    run([inv(0, 0)])?;
    write32(its::TRANSLATER, 0);
    write16(its::TRANSLATER, 0);
    nothing_more(0)?;
    check_eq!(read32(its::TRANSLATER), 0, "GITS_TRANSLATER");
    Ok(())
}

fn pending_table(machine: &Machine) -> Check {
    begin(machine)?;
    map(0, 0x80, 0)?;
    map(1, 0x80, 0)?;
    its::enable(0, false);
    its::set_in_pending_table(0, LPI + 1);
    its::give_tables(0, false);
    its::enable(0, true);
    taken(LPI + 1, 1)?;
    nothing_more(1)
}

/// Without LPIs enabled nothing is kept.
fn lpis_off(machine: &Machine) -> Check {
    begin(machine)?;
    map(0, 0x80, 0)?;
    run([int(DEVICE, 0)])?;
    eventually("the LPI is pending", || mrs_hppir() == u64::from(LPI))?;
    its::enable(0, false);
    check_eq!(read32(its::gicr(0, its::GICR_CTLR)) & 9, 0, "GICR_CTLR.EnableLPIs and RWP");
    run([int(DEVICE, 0)])?;
    nothing_more(0)?;
    its::give_tables(0, true);
    its::enable(0, true);
    nothing_more(0)?;
    run([int(DEVICE, 0)])?;
    taken(LPI, 1)
}

fn lpi_tables_are_fixed(machine: &Machine) -> Check {
    begin(machine)?;
    for register in [its::PROPBASER, its::PENDBASER] {
        let before = read64(its::gicr(0, register));
        write64(its::gicr(0, register), 0);
        check_eq!(read64(its::gicr(0, register)), before, "the register at {register:#x} while LPIs are enabled");
        check!(before >> 62 & 1 == 0, "PTZ is read as 1");
    }
    Ok(())
}

fn direct_invalidation(machine: &Machine) -> Check {
    begin(machine)?;
    check_eq!(read32(its::gicr(0, its::GICR_CTLR)) & 6, 6, "GICR_CTLR.CES and IR");
    map(0, 0x80, 0)?;
    its::configure(LPI, 0x80, false);
    write64(its::gicr(0, its::INVLPIR), LPI.into());
    run([int(DEVICE, 0)])?;
    nothing_more(0)?;
    its::configure(LPI, 0x80, true);
    // The upper half alone is about virtual LPIs.
    write32(its::gicr(0, its::INVLPIR) + 4, LPI);
    nothing_more(0)?;
    write64(its::gicr(0, its::INVLPIR), LPI.into());
    taken(LPI, 1)?;
    its::configure(LPI, 0x80, false);
    write64(its::gicr(0, its::INVALLR), 0);
    run([int(DEVICE, 0)])?;
    nothing_more(1)?;
    its::configure(LPI, 0x80, true);
    write64(its::gicr(0, its::INVALLR), 0);
    taken(LPI, 2)?;
    check_eq!(read32(its::gicr(0, 0xc0)), 0, "GICR_SYNCR");
    Ok(())
}

static STOP: AtomicBool = AtomicBool::new(false);

/// Takes what comes until it is to stop.
fn take_interrupts(_: usize) {
    arch::with_irqs(|| {
        while !STOP.load(SeqCst) {
            arch::relax();
        }
    });
}

/// Sleeps until it is to stop.
fn sleep(_: usize) {
    arch::with_irqs(|| {
        while !STOP.load(SeqCst) {
            arch::wfi();
        }
    });
}

/// Runs `f` while every other CPU does `work`, and stops them.
fn with_others(machine: &Machine, work: fn(usize), f: impl FnOnce() -> Check) -> Check {
    STOP.store(false, SeqCst);
    for cpu in 1..machine.cpus().len() {
        start(machine, cpu, work, cpu)?;
        irq::enable(1, cpu);
    }
    time::delay(500);
    let result = f();
    STOP.store(true, SeqCst);
    for cpu in 1..machine.cpus().len() {
        irq::send(1, machine.cpus()[cpu]);
        join(machine, cpu)?;
    }
    result
}

/// Nothing that is in a queue or a table can do more than take this machine's time.
fn random_commands(machine: &Machine) -> Check {
    begin(machine)?;
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for lpi in LPI..LPI + 64 {
        its::configure(lpi, random() as u8, random() & 3 != 0);
    }
    with_others(machine, take_interrupts, || {
        for round in 0..400 {
            let commands = (0..32).map(|_| {
                let number = [1, 3, 3, 4, 5, 8, 9, 10, 10, 11, 12, 13, 14, 15, 0x33][random() as usize % 15];
                let device = DEVICE.wrapping_add(random() as u32 % 3);
                let event = random() % 40;
                let lpi = u64::from(LPI) + random() % 64 - random() % 4;
                let collection = random() % (machine.cpus().len() as u64 + 1);
                let valid = u64::from(random() & 7 != 0) << 63;
                match number {
                    // Its table stays in memory that is nobody's.
                    8 => [u64::from(device) << 32 | 8, random() % 7, its::itt(random() as usize % 4) as u64 | valid, 0],
                    9 => [9, 0, collection | (random() % 6) << 16 | valid, 0],
                    14 => [14, 0, (random() % 5) << 16, (random() % 5) << 16],
                    _ => [u64::from(device) << 32 | number, lpi << 32 | event, collection, 0],
                }
            });
            check!(its::run(commands), "round {round}: GITS_CREADR does not go on");
            quiet_shortly();
        }
        Ok(())
    })?;
    // And then it works as ever.
    begin(machine)?;
    map(0, 0x80, 0)?;
    run([int(DEVICE, 0)])?;
    taken(LPI, 1)
}

fn quiet_shortly() {
    arch::with_irqs(|| time::delay(5));
}

fn to_each_cpu(machine: &Machine) -> Check {
    begin(machine)?;
    let cpus = machine.cpus().len();
    for cpu in 0..cpus {
        map(cpu as u32, 0x80, cpu as u16)?;
    }
    with_others(machine, take_interrupts, || {
        for round in 1..=20 {
            run((0..cpus as u32).map(|event| int(DEVICE, event)))?;
            for cpu in 0..cpus {
                eventually_with_irqs("each CPU takes its own", || count(cpu, LPI + cpu as u32) >= round)?;
            }
        }
        quiet();
        for cpu in 0..cpus {
            check_eq!((total(cpu), count(cpu, LPI + cpu as u32)), (20, 20), "LPIs that CPU {cpu} took, and its own");
        }
        Ok(())
    })
}

fn wakes(machine: &Machine) -> Check {
    begin(machine)?;
    map(0, 0x80, 1)?;
    with_others(machine, sleep, || {
        for round in 1..=20 {
            time::delay(100);
            run([int(DEVICE, 0)])?;
            eventually("the CPU that sleeps takes it", || count(1, LPI) == round)?;
        }
        Ok(())
    })
}

fn move_pending(machine: &Machine) -> Check {
    begin(machine)?;
    map(0, 0x80, 0)?;
    map(1, 0x80, 0)?;
    with_others(machine, take_interrupts, || {
        run([int(DEVICE, 0), int(DEVICE, 1)])?;
        eventually("an LPI is pending here", || mrs_hppir() >= u64::from(LPI))?;
        run([movi(DEVICE, 0, 1), sync(0), sync(1)])?;
        eventually("the other CPU takes it", || count(1, LPI) == 1)?;
        taken(LPI + 1, 1)?;
        check_eq!((count(0, LPI), total(1)), (0, 1), "LPIs taken by the wrong CPU");
        // Later ones go there, too.
        run([int(DEVICE, 0)])?;
        eventually_with_irqs("the other CPU takes the next", || count(1, LPI) == 2)?;
        nothing_more(1)
    })
}

/// Moved to and fro while it comes, none is lost, and none comes twice.
fn move_while_taken(machine: &Machine) -> Check {
    begin(machine)?;
    map(0, 0x80, 0)?;
    with_others(machine, take_interrupts, || {
        for round in 1..=200 {
            run([int(DEVICE, 0), movi(DEVICE, 0, (round % 2) as u16), sync(0), sync(1)])?;
            eventually_with_irqs("one of them takes it", || count(0, LPI) + count(1, LPI) >= round)?;
            check_eq!(count(0, LPI) + count(1, LPI), round, "times that it was taken");
        }
        Ok(())
    })
}

fn move_all(machine: &Machine) -> Check {
    begin(machine)?;
    (0..20).try_for_each(|event| map(event, 0x80, 0))?;
    with_others(machine, take_interrupts, || {
        run((0..20).map(|event| int(DEVICE, event)))?;
        eventually("LPIs are pending here", || mrs_hppir() >= u64::from(LPI))?;
        run([movall(0, 1), sync(0), sync(1)])?;
        eventually("the other CPU takes them all", || total(1) == 20)?;
        nothing_more(0)
    })
}

static SENT: AtomicUsize = AtomicUsize::new(0);
static WRITING: spin::Mutex<()> = spin::Mutex::new(());

fn send_many(cpu: usize) {
    for _ in 0..300 {
        let sent = {
            let _only = WRITING.lock();
            its::push([sync(cpu), int(DEVICE, cpu as u32), sync(cpu)]);
            count(cpu, LPI + cpu as u32)
        };
        // Its own.
        if time::wait_until(|| arch::with_irqs(|| count(cpu, LPI + cpu as u32)) > sent) {
            SENT.fetch_add(1, SeqCst);
        }
    }
}

fn commands_from_two_cpus(machine: &Machine) -> Check {
    begin(machine)?;
    map(0, 0x80, 0)?;
    map(1, 0x80, 1)?;
    SENT.store(0, SeqCst);
    start(machine, 1, send_many, 1)?;
    send_many(0);
    join(machine, 1)?;
    check_eq!(SENT.load(SeqCst), 600, "LPIs that came");
    check!(its::finished(), "commands are left");
    Ok(())
}
