//! A GICv2 as a guest sees it: what a GICv3 has otherwise, or not at all. What both do is in `gic`.

use super::gic::{ACTIVATE, PEND, SPI, edge, is_set, not_taken, quiet, ready, set, taken, with_others};
use crate::{
    check, check_eq,
    harness::{Case, Check, Under::*, case, eventually, eventually_with_irqs, join, skip, start},
};
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use keel_test_kernel::{
    arch,
    exec::{self, EC_UNKNOWN, Encoding},
    gicv2::{self, TO_LIST, TO_OTHERS, TO_SELF, gicc},
    irq,
    machine::Machine,
    mmio::{read8, read16, read32, read64, write8, write16, write32, write64},
    mrs,
    platform::GICD,
    power,
};

/// The cases.
pub const CASES: &[Case] = &[
    case("gicv2/identity", 1, Any, identity),
    case("gicv2/identity_keel", 1, Keel, identity_keel),
    case("gicv2/no_system_registers", 1, Any, no_system_registers),
    case("gicv2/targets", 2, Any, targets),
    case("gicv2/target_choice", 2, Keel, target_choice),
    case("gicv2/banked", 2, Any, banked),
    case("gicv2/cpu_interface", 1, Any, cpu_interface),
    case("gicv2/cpu_interface_keel", 1, Keel, cpu_interface_keel),
    case("gicv2/widths", 1, Keel, widths),
    case("gicv2/reserved", 1, Keel, reserved),
    case("gicv2/sgi_filters", 2, Any, sgi_filters),
    case("gicv2/sgi_sources", 2, Any, sgi_sources),
    case("gicv2/sgi_pending_registers", 2, Any, sgi_pending_registers),
    case("gicv2/sgi_of_another_while_active", 2, Any, sgi_of_another_while_active),
    case("gicv2/nested_8", 1, Any, nested_8),
    case("gicv2/split_eoi_of_8", 1, Any, split_eoi_of_8),
];

const TARGETS: usize = GICD + 0x800;
const CLEAR_SGI: usize = GICD + 0xf10;
const SET_SGI: usize = GICD + 0xf20;
/// The SGI the cases send.
const SGI: u32 = 5;

fn needs_gicv2() -> Check {
    if irq::is_v2() { Ok(()) } else { skip("of a GICv2") }
}

fn all_cpus(machine: &Machine) -> u8 {
    ((1_u32 << machine.cpus().len()) - 1) as u8
}

fn identity(machine: &Machine) -> Check {
    needs_gicv2()?;
    let typer = read32(GICD + 4);
    check_eq!(typer >> 5 & 7, machine.cpus().len() as u32 - 1, "GICD_TYPER.CPUNumber");
    check!(typer & 0x1f >= 1, "GICD_TYPER.ITLinesNumber is 0");
    check_eq!(typer >> 10 & 1, 0, "GICD_TYPER.SecurityExtn");
    check_eq!(gicv2::read(gicc::IIDR) >> 16 & 15, 2, "architecture in GICC_IIDR");
    check_eq!(read32(GICD), 1, "GICD_CTLR");
    Ok(())
}

fn identity_keel(machine: &Machine) -> Check {
    needs_gicv2()?;
    check_eq!(read32(GICD + 4), (machine.cpus().len() as u32 - 1) << 5 | 7, "GICD_TYPER");
    check_eq!(read32(GICD + 8), 0x4b00_343b, "GICD_IIDR");
    for (written, found) in [(0, 0), (!0, 1), (2, 0), (1, 1)] {
        write32(GICD, written);
        check_eq!(read32(GICD), found, "GICD_CTLR after writing {written:#x}");
    }
    for offset in [4, 8] {
        let before = read32(GICD + offset);
        write32(GICD + offset, !before);
        check_eq!(read32(GICD + offset), before, "the read-only register at {offset:#x}");
    }
    for offset in (0xfd0..0x1000).step_by(4) {
        check_eq!(read32(GICD + offset), 0, "the identification register at {offset:#x}");
    }
    Ok(())
}

fn no_system_registers(_: &Machine) -> Check {
    needs_gicv2()?;
    check_eq!(mrs!("id_aa64pfr0_el1") >> 24 & 15, 0, "ID_AA64PFR0_EL1.GIC");
    let registers: [Encoding; 9] = [
        (3, 0, 4, 6, 0),   // ICC_PMR_EL1
        (3, 0, 12, 8, 3),  // ICC_BPR0_EL1
        (3, 0, 12, 11, 1), // ICC_DIR_EL1
        (3, 0, 12, 11, 5), // ICC_SGI1R_EL1
        (3, 0, 12, 11, 6), // ICC_ASGI1R_EL1
        (3, 0, 12, 11, 7), // ICC_SGI0R_EL1
        (3, 0, 12, 12, 0), // ICC_IAR1_EL1
        (3, 0, 12, 12, 5), // ICC_SRE_EL1
        (3, 0, 12, 12, 7), // ICC_IGRPEN1_EL1
    ];
    for register in registers {
        for word in [exec::mrs(0, register), exec::msr(0, register)] {
            let class = exec::run_with(word, &[(0, 0)]).trap.map(|trap| trap.class());
            check_eq!(class, Some(EC_UNKNOWN), "the exception of {word:#x} at {register:?}");
        }
    }
    Ok(())
}

fn targets(machine: &Machine) -> Check {
    needs_gicv2()?;
    for word in 0..8 {
        let address = TARGETS + 4 * word;
        check_eq!(read32(address), 0x0101_0101, "GICD_ITARGETSR{word} of CPU 0");
        write32(address, !0);
        write8(address + 1, 0);
        check_eq!(read32(address), 0x0101_0101, "the read-only GICD_ITARGETSR{word}");
    }
    let all = all_cpus(machine);
    for intid in [SPI, 41, 43, 95] {
        let byte = TARGETS + intid as usize;
        let word = byte & !3;
        write32(word, 0);
        // Hardware may keep bits of CPUs that are not there.
        let more = if machine.under_keel() { 0xff } else { all };
        for value in [1, 2, all, 0, more] {
            write8(byte, value);
            check_eq!(read8(byte), value & all, "targets of {intid}, as a byte, after {value:#x}");
            check_eq!(read32(word), u32::from(value & all) << (8 * (byte % 4)), "with its neighbours");
        }
        write32(word, 0x0102_0201);
        check_eq!(read32(word), 0x0102_0201, "four targets at {intid}");
        write32(word, 0x0101_0101);
    }
    Ok(())
}

/// One of several targets gets an SPI: the lowest, and CPU 0 where there is none (KVM's choice).
fn target_choice(machine: &Machine) -> Check {
    needs_gicv2()?;
    ready(machine, SPI, 0x80);
    with_others(machine, 1, SGI, || {
        let (mut first, mut second) = (0, 0);
        for targets in [1, 3, 2, 0, 3, 2] {
            write8(TARGETS + SPI as usize, targets);
            set(PEND, SPI);
            if targets == 2 {
                second += 1;
                eventually("CPU 1 takes it", || irq::count(1, SPI) == second)?;
            } else {
                first += 1;
                taken(0, SPI, first)?;
            }
            check_eq!((irq::count(0, SPI), irq::count(1, SPI)), (first, second), "taken, after targets {targets:#x}");
        }
        Ok(())
    })
}

static SEEN: AtomicU32 = AtomicU32::new(0);

/// What another CPU sees of its own, after it changed what this one must not see.
fn look(_: usize) {
    write32(GICD + 0x100, 1 << 20);
    write8(GICD + 0x400 + 20, 0x48);
    SEEN.store(read32(TARGETS) ^ read32(TARGETS + 28) << 1, SeqCst);
}

fn banked(machine: &Machine) -> Check {
    needs_gicv2()?;
    write32(GICD + 0x180, 1 << 20);
    write8(GICD + 0x400 + 20, 0xa0);
    start(machine, 1, look, 0)?;
    join(machine, 1)?;
    check_eq!(SEEN.load(SeqCst), 0x0202_0202 ^ 0x0202_0202 << 1, "GICD_ITARGETSR0 and 7 of CPU 1");
    check_eq!(read8(GICD + 0x400 + 20), 0xa0, "the priority that CPU 1 set for itself");
    check!(!is_set(0x100, 20), "what CPU 1 enabled for itself is enabled here");
    Ok(())
}

fn cpu_interface(machine: &Machine) -> Check {
    needs_gicv2()?;
    for mask in [0, 0x80, 0xf0, 0xf8] {
        gicv2::write(gicc::PMR, mask);
        check_eq!(gicv2::read(gicc::PMR), mask, "GICC_PMR");
    }
    for point in [7, 5, 3] {
        gicv2::write(gicc::BPR, point);
        check_eq!(gicv2::read(gicc::BPR), point, "GICC_BPR");
    }
    for control in [0, 1, 0x201] {
        gicv2::write(gicc::CTLR, control);
        check_eq!(gicv2::read(gicc::CTLR), control, "GICC_CTLR");
        power::hvc(0xc600_ffff, [0; 3]);
        check_eq!(gicv2::read(gicc::CTLR), control, "GICC_CTLR after a hypercall");
    }
    irq::init(machine);
    Ok(())
}

/// What belongs to the guest alone survives whatever its hypervisor does.
fn cpu_interface_keel(machine: &Machine) -> Check {
    needs_gicv2()?;
    for control in [0x3, 0x7, 0xf, 0x1f, 0x21f, 0x200] {
        gicv2::write(gicc::CTLR, control);
        gicv2::write(gicc::ABPR, control & 7 | 3);
        power::hvc(0xc600_ffff, [0; 3]);
        arch::with_irqs(arch::wfe);
        check_eq!(gicv2::read(gicc::CTLR), control, "GICC_CTLR");
        check_eq!(gicv2::read(gicc::ABPR), control & 7 | 3, "GICC_ABPR");
    }
    // A bit for each of 32 levels.
    irq::init(machine);
    ready(machine, SPI, 0x80);
    irq::set_handler(Some(|_| SEEN.store(gicv2::read(gicc::APR0), SeqCst)));
    set(PEND, SPI);
    taken(0, SPI, 1)?;
    check_eq!(SEEN.load(SeqCst), 1 << 16, "GICC_APR0 in a handler");
    check_eq!(gicv2::read(gicc::APR0), 0, "GICC_APR0 outside");
    Ok(())
}

fn widths(_: &Machine) -> Check {
    needs_gicv2()?;
    write32(TARGETS + SPI as usize, 0x0101_0101);
    write16(TARGETS + SPI as usize, 0xffff);
    write64(TARGETS + SPI as usize, !0);
    check_eq!(read32(TARGETS + SPI as usize), 0x0101_0101, "targets after writes of other widths");
    check_eq!((read16(TARGETS + SPI as usize), read64(TARGETS + SPI as usize)), (0, 0), "targets in other widths");
    write16(SET_SGI, 0xffff);
    write64(SET_SGI, !0);
    check_eq!((read32(SET_SGI), read32(SET_SGI + 4)), (0, 0), "GICD_SPENDSGIR0 and 1 after writes of other widths");
    for filter in [TO_SELF, TO_LIST] {
        write16(GICD + 0xf00, 1);
        write8(GICD + 0xf03, filter as u8);
        write64(GICD + 0xf00, u64::from(filter) << 24 | 0x1_0000 | u64::from(SGI));
    }
    check_eq!(read32(SET_SGI) | read32(SET_SGI + 4), 0, "SGIs that writes of other widths to GICD_SGIR sent");
    check_eq!((read8(GICD + 4), read16(GICD + 4), read64(GICD)), (0, 0, 0), "GICD_TYPER in other widths");
    Ok(())
}

fn reserved(_: &Machine) -> Check {
    needs_gicv2()?;
    let lines = (read32(GICD + 4) & 0x1f) as usize + 1;
    let behind = [0x80, 0x100, 0x180, 0x200, 0x280, 0x300, 0x380].map(|base| base + 4 * lines);
    let others = [0x00c, 0x010, 0x040, 0x400 + 32 * lines, 0x800 + 32 * lines, 0xc00 + 8 * lines, 0xd00, 0xd04, 0xe00];
    for offset in behind.into_iter().chain(others).chain([0xe04, 0xf00, 0xf04, 0xf0c, 0xf30, 0xfcc, 0xfe8, 0xffc]) {
        write32(GICD + offset, !0);
        check_eq!(read32(GICD + offset), 0, "the reserved word at GICD + {offset:#x}");
    }
    check_eq!(irq::total(0), 0, "interrupts taken");
    Ok(())
}

fn sgi_filters(machine: &Machine) -> Check {
    needs_gicv2()?;
    let last = machine.cpus().len() - 1;
    irq::enable(SGI, 0);
    with_others(machine, last, SGI, || {
        let mut expected = [0; 8];
        for (filter, list, targets) in [
            (TO_LIST, 0x02, 0x02),
            (TO_LIST, 0xff, 0xff),
            (TO_LIST, 0x00, 0x00),
            (TO_LIST, 0x03, 0x03),
            (TO_OTHERS, 0x00, 0xfe),
            (TO_OTHERS, 0x01, 0xfe),
            (TO_SELF, 0x02, 0x01),
            (3, 0xff, 0x00),
        ] {
            if filter == 3 && !machine.under_keel() {
                // Reserved: whatever hardware makes of it.
                continue;
            }
            gicv2::send(filter, list, SGI);
            for (cpu, count) in expected.iter_mut().enumerate().take(last + 1) {
                *count += targets >> cpu & 1;
                eventually_with_irqs("the SGI arrives", || irq::count(cpu, SGI) >= *count)?;
            }
            quiet()?;
            for (cpu, count) in expected.iter().enumerate().take(last + 1) {
                check_eq!(irq::count(cpu, SGI), *count, "SGIs of CPU {cpu} by filter {filter}, list {list:#x}");
            }
        }
        for cpu in 0..=last {
            for n in 0..irq::total(cpu) {
                check_eq!(irq::nth_source(cpu, n), 0, "the sender that CPU {cpu} sees");
            }
        }
        Ok(())
    })
}

/// Sends SGI to CPU 0.
fn send_to_first(_: usize) {
    gicv2::send(TO_LIST, 1, SGI);
}

/// Has all CPUs send SGI to CPU 0, which does not take it.
fn all_send(machine: &Machine) -> Check {
    send_to_first(0);
    for cpu in 1..machine.cpus().len() {
        start(machine, cpu, send_to_first, 0)?;
        join(machine, cpu)?;
    }
    Ok(())
}

/// Takes an SGI from each CPU in `senders`, and no more.
fn takes_from(senders: u8) -> Check {
    let count = senders.count_ones() as usize;
    eventually_with_irqs("one from each", || irq::total(0) >= count)?;
    quiet()?;
    check_eq!(irq::total(0), count, "interrupts taken");
    let seen = (0..count).fold(0, |seen, n| seen | 1 << irq::nth_source(0, n));
    check_eq!((seen, irq::count(0, SGI)), (senders, count as u32), "the senders, and how many SGIs there were");
    irq::forget();
    Ok(())
}

fn sgi_sources(machine: &Machine) -> Check {
    needs_gicv2()?;
    irq::enable(SGI, 0);
    let all = all_cpus(machine);
    for _ in 0..5 {
        all_send(machine)?;
        // Twice from one CPU is once.
        send_to_first(0);
        check_eq!(read8(SET_SGI + SGI as usize), all, "GICD_SPENDSGIR with all of them pending");
        check!(is_set(PEND, SGI), "not in GICD_ISPENDR0");
        takes_from(all)?;
        check_eq!(read8(SET_SGI + SGI as usize), 0, "GICD_SPENDSGIR afterwards");
        check!(!is_set(PEND, SGI) && !is_set(ACTIVATE, SGI), "still pending or active");
    }
    Ok(())
}

fn sgi_pending_registers(machine: &Machine) -> Check {
    needs_gicv2()?;
    let all = all_cpus(machine);
    irq::enable(SGI, 0);
    for sgi in [0, 3, 15] {
        for senders in [1, 2, all] {
            write8(SET_SGI + sgi, senders);
            write8(SET_SGI + sgi, 0);
            check_eq!(read8(SET_SGI + sgi), senders, "GICD_SPENDSGIR of {sgi}");
            check_eq!(read8(CLEAR_SGI + sgi), senders, "GICD_CPENDSGIR of {sgi}");
            check_eq!(read32(SET_SGI + (sgi & !3)), u32::from(senders) << (8 * (sgi % 4)), "as a word");
            check!(is_set(PEND, sgi as u32), "{sgi} not in GICD_ISPENDR0");
            write8(CLEAR_SGI + sgi, 1);
            check_eq!(read8(SET_SGI + sgi), senders & !1, "GICD_SPENDSGIR of {sgi} without CPU 0");
            check_eq!(is_set(PEND, sgi as u32), senders & !1 != 0, "GICD_ISPENDR0 of {sgi}");
            write32(CLEAR_SGI + (sgi & !3), !0);
            check_eq!(read8(SET_SGI + sgi), 0, "GICD_SPENDSGIR of {sgi}, cleared");
            check!(!is_set(PEND, sgi as u32), "{sgi} is in GICD_ISPENDR0");
        }
    }
    // The registers of all other interrupts leave SGIs alone.
    write32(GICD + PEND, 0xffff);
    check_eq!(read32(GICD + PEND) & 0xffff, 0, "SGIs after writing GICD_ISPENDR0");
    write8(SET_SGI + SGI as usize, 2);
    write32(GICD + 0x280, 0xffff);
    check_eq!(read8(SET_SGI + SGI as usize), 2, "GICD_SPENDSGIR after writing GICD_ICPENDR0");
    takes_from(2)?;
    // Cleared while it is signalled already.
    write8(SET_SGI + SGI as usize, 3);
    eventually("ISR_EL1.I rises", || mrs!("isr_el1") & 1 << 7 != 0)?;
    write8(CLEAR_SGI + SGI as usize, 1);
    takes_from(2)?;
    write8(SET_SGI + SGI as usize, 1);
    eventually("ISR_EL1.I rises", || mrs!("isr_el1") & 1 << 7 != 0)?;
    write8(CLEAR_SGI + SGI as usize, 1);
    not_taken(SGI)
}

fn sgi_of_another_while_active(machine: &Machine) -> Check {
    needs_gicv2()?;
    irq::enable(SGI, 0);
    irq::set_split(true);
    send_to_first(0);
    taken(0, SGI, 1)?;
    check!(is_set(ACTIVATE, SGI), "EOIR deactivated it, with EOImode 1");
    start(machine, 1, send_to_first, 0)?;
    join(machine, 1)?;
    // Not the same interrupt, but the same number: it waits for its turn.
    quiet()?;
    check_eq!(irq::count(0, SGI), 1, "SGIs taken while one is active");
    check_eq!(read8(SET_SGI + SGI as usize), 2, "GICD_SPENDSGIR meanwhile");
    irq::deactivate(SGI);
    taken(0, SGI, 2)?;
    check_eq!((irq::nth_source(0, 0), irq::nth_source(0, 1)), (0, 1), "the senders");
    irq::deactivate(SGI | 1 << 10);
    check!(!is_set(ACTIVATE, SGI), "DIR did not deactivate it");
    irq::set_split(false);
    Ok(())
}

/// More active interrupts than list registers, each taken in the handler of the one before.
fn nested_8(machine: &Machine) -> Check {
    const DEEPEST: u32 = 8;
    needs_gicv2()?;
    for n in 0..DEEPEST {
        ready(machine, SPI + n, 0xf0 - 0x10 * n as u8);
    }
    irq::set_handler(Some(|intid| {
        if intid < SPI + DEEPEST - 1 {
            set(PEND, intid + 1);
            arch::with_irqs(|| keel_test_kernel::time::wait_until(|| irq::count(0, intid + 1) != 0));
        } else {
            SEEN.store((SPI..SPI + DEEPEST).filter(|intid| is_set(ACTIVATE, *intid)).count() as u32, SeqCst);
        }
    }));
    SEEN.store(0, SeqCst);
    set(PEND, SPI);
    eventually_with_irqs("all are taken", || irq::total(0) == DEEPEST as usize)?;
    check_eq!(SEEN.load(SeqCst), DEEPEST, "active ones in the innermost handler");
    for intid in SPI..SPI + DEEPEST {
        check!(!is_set(ACTIVATE, intid), "{intid} is active after its handler");
    }
    check_eq!(irq::running_priority(), 0xff, "GICC_RPR");
    // Each can come again.
    irq::forget();
    irq::set_handler(None);
    (SPI..SPI + DEEPEST).for_each(|intid| set(PEND, intid));
    eventually_with_irqs("all are taken again", || irq::total(0) == DEEPEST as usize)
}

/// In EOImode 1, more interrupts than list registers, deactivated in the order they came: those that found none come when one
/// is free.
fn split_eoi_of_8(machine: &Machine) -> Check {
    const COUNT: usize = 8;
    needs_gicv2()?;
    irq::set_split(true);
    for n in 0..COUNT as u32 {
        ready(machine, SPI + n, 0x80);
        edge(SPI + n);
    }
    for round in 1..=3 {
        (SPI..SPI + COUNT as u32).for_each(|intid| set(PEND, intid));
        for n in 0..COUNT {
            eventually_with_irqs("the next is taken", || irq::total(0) > n)?;
            let intid = irq::nth(0, n);
            check!(is_set(ACTIVATE, intid), "{intid} is not active in round {round}");
            irq::deactivate(intid);
            check!(!is_set(ACTIVATE, intid), "{intid} is active after DIR in round {round}");
        }
        quiet()?;
        check_eq!(irq::total(0), COUNT, "interrupts taken in round {round}");
        irq::forget();
    }
    irq::set_split(false);
    Ok(())
}
