//! The UART and the clock: identity, and the interrupts a driver lives on.

use crate::{
    check, check_eq,
    harness::{Case, Check, Under::*, case, eventually, eventually_with_irqs, noise, skip},
};
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use keel_test_kernel::{
    arch, irq,
    machine::Machine,
    mmio::{read8, read16, read32, write8, write32},
    platform::{PL011, PL011_INTID, PL031, PL031_INTID},
    time,
};

/// The cases.
pub const CASES: &[Case] = &[
    case("pl011/identity", 1, Any, uart_identity),
    case("pl011/registers", 1, Any, uart_registers),
    case("pl011/flags", 1, Any, uart_flags),
    case("pl011/transmit_interrupt", 1, Any, transmit_interrupt),
    case("pl011/loopback", 1, Any, loopback),
    case("pl011/loopback_interrupt", 1, Any, loopback_interrupt),
    case("pl031/identity", 1, Any, clock_identity),
    case("pl031/counts", 1, Any, clock_counts),
    case("pl031/load", 1, Any, clock_load),
    case("pl031/alarm", 1, Any, alarm),
];

// PL011 (DDI 0183) and PL031 (DDI 0224), chapter 3.
const DR: usize = PL011;
const FR: usize = PL011 + 0x18;
const IBRD: usize = PL011 + 0x24;
const FBRD: usize = PL011 + 0x28;
const LCR_H: usize = PL011 + 0x2c;
const CR: usize = PL011 + 0x30;
const IFLS: usize = PL011 + 0x34;
const IMSC: usize = PL011 + 0x38;
const RIS: usize = PL011 + 0x3c;
const MIS: usize = PL011 + 0x40;
const ICR: usize = PL011 + 0x44;
const RXFE: u32 = 1 << 4;
const TXFE: u32 = 1 << 7;
const BUSY: u32 = 1 << 3;
const RX: u32 = 1 << 4;
const TX: u32 = 1 << 5;
const RECEIVE_TIMEOUT: u32 = 1 << 6;
const LOOPBACK: u32 = 1 << 7;

/// Bytes of the identification registers at 0xfe0 to 0xffc.
fn identification(base: usize) -> [u32; 8] {
    core::array::from_fn(|number| read32(base + 0xfe0 + 4 * number))
}

fn uart_identity(_: &Machine) -> Check {
    let found = identification(PL011);
    check_eq!(&found[..2], &[0x11, 0x10], "part number in UARTPeriphID0 and 1");
    check_eq!(found[2] & 0xf, 4, "designer in UARTPeriphID2");
    check_eq!(&found[4..], &[0x0d, 0xf0, 0x05, 0xb1], "UARTPCellID");
    // They are read-only.
    write32(PL011 + 0xfe0, 0);
    check_eq!(identification(PL011), found, "identification after a write");
    check_eq!((read8(PL011 + 0xfe0), read16(PL011 + 0xfe0)), (0x11, 0x11), "UARTPeriphID0, as byte and halfword");
    Ok(())
}

fn uart_registers(_: &Machine) -> Check {
    for (name, address, bits) in [
        ("UARTIBRD", IBRD, 0xffff),
        ("UARTFBRD", FBRD, 0x3f),
        ("UARTIFLS", IFLS, 0x3f),
        ("UARTIMSC", IMSC, 0x7ff),
        // FIFO and word length; parity is left alone.
        ("UARTLCR_H", LCR_H, 0x70),
    ] {
        let old = read32(address);
        for value in [bits, 0, old] {
            write32(address, value);
            check_eq!(read32(address) & bits, value & bits, "{name}");
        }
    }
    Ok(())
}

fn uart_flags(_: &Machine) -> Check {
    eventually("what was sent is out", || read32(FR) & (TXFE | BUSY) == TXFE)?;
    if read32(FR) & RXFE == 0 {
        return skip("somebody is typing");
    }
    check_eq!(read32(DR) & 0xff, 0, "UARTDR with nothing received");
    Ok(())
}

/// Restores the interrupt masks and clears what is pending.
fn quiet_uart() {
    write32(IMSC, 0);
    write32(ICR, 0x7ff);
}

/// Sends a character and takes back what came round.
fn send_round(byte: u8) {
    write8(DR, byte);
    while read32(FR) & RXFE == 0 {
        read32(DR);
    }
}

fn transmit_interrupt(machine: &Machine) -> Check {
    irq::enable(PL011_INTID, 0);
    irq::set_handler(Some(|_| {
        SEEN.store(read32(MIS), SeqCst);
        write32(ICR, TX);
    }));
    SEEN.store(0, SeqCst);
    in_loopback(machine, || {
        write32(IMSC, TX);
        check_eq!(read32(MIS) & !TX, 0, "UARTMIS with only TXIM");
        // The interrupt comes when the FIFO empties past its level, which may take some characters.
        eventually_with_irqs("the transmit interrupt", || {
            if irq::count(0, PL011_INTID) == 0 {
                send_round(b'.');
            }
            irq::count(0, PL011_INTID) > 0
        })?;
        check_eq!(SEEN.load(SeqCst), TX, "UARTMIS in the handler");
        write32(IMSC, 0);
        write32(ICR, TX);
        check_eq!(read32(MIS), 0, "UARTMIS at the end");
        let before = irq::count(0, PL011_INTID);
        send_round(b'.');
        arch::with_irqs(|| time::delay(1000));
        check_eq!(irq::count(0, PL011_INTID), before, "interrupts with UARTIMSC 0");
        Ok(())
    })
}

static SEEN: AtomicU32 = AtomicU32::new(0);

/// Runs `f` with the output connected to the input. QEMU prints what is sent all the same, hence characters that can
/// be read. Nobody else may write meanwhile.
fn in_loopback(machine: &Machine, f: impl FnOnce() -> Check) -> Check {
    if machine.has("beside") {
        return skip("another VM's text would come back too (beside)");
    }
    noise();
    quiet_uart();
    eventually("what was sent is out", || read32(FR) & (TXFE | BUSY) == TXFE)?;
    let control = read32(CR);
    write32(CR, control | LOOPBACK);
    let result = if read32(CR) & LOOPBACK == 0 { skip("UARTCR.LBE cannot be set") } else { f() };
    write32(CR, control);
    quiet_uart();
    result
}

fn loopback(machine: &Machine) -> Check {
    in_loopback(machine, || {
        for byte in [b'k', b'~', b' ', b'U'] {
            write32(DR, byte.into());
            eventually("a character comes back", || read32(FR) & RXFE == 0)?;
            check_eq!(read32(DR) & 0xfff, byte.into(), "UARTDR");
            check!(read32(FR) & RXFE != 0, "more than one character came back");
        }
        // In order.
        for number in 0..8 {
            write32(DR, 0x40 + number);
        }
        for number in 0..8 {
            eventually("a character comes back", || read32(FR) & RXFE == 0)?;
            check_eq!(read32(DR) & 0xff, 0x40 + number, "character {number}");
        }
        Ok(())
    })
}

fn loopback_interrupt(machine: &Machine) -> Check {
    irq::enable(PL011_INTID, 0);
    irq::set_handler(Some(|_| {
        SEEN.store(read32(MIS), SeqCst);
        while read32(FR) & RXFE == 0 {
            BYTES.fetch_add(read32(DR) & 0xff, SeqCst);
        }
        write32(ICR, RX | RECEIVE_TIMEOUT);
    }));
    SEEN.store(0, SeqCst);
    BYTES.store(0, SeqCst);
    in_loopback(machine, || {
        write32(IMSC, RX | RECEIVE_TIMEOUT);
        for byte in [b'k', b'e', b'e', b'l'] {
            write32(DR, byte.into());
        }
        let expected = u32::from(b'k') + 2 * u32::from(b'e') + u32::from(b'l');
        eventually_with_irqs("the receive interrupt brings all characters", || BYTES.load(SeqCst) == expected)?;
        check!(SEEN.load(SeqCst) & (RX | RECEIVE_TIMEOUT) != 0, "UARTMIS in the handler: {:#x}", SEEN.load(SeqCst));
        check_eq!(read32(RIS) & RX, 0, "UARTRIS.RXRIS with the FIFO empty");
        Ok(())
    })
}

static BYTES: AtomicU32 = AtomicU32::new(0);

const RTCDR: usize = PL031;
const RTCMR: usize = PL031 + 0x4;
const RTCLR: usize = PL031 + 0x8;
const RTCCR: usize = PL031 + 0xc;
const RTCIMSC: usize = PL031 + 0x10;
const RTCRIS: usize = PL031 + 0x14;
const RTCMIS: usize = PL031 + 0x18;
const RTCICR: usize = PL031 + 0x1c;

fn clock_identity(_: &Machine) -> Check {
    let found = identification(PL031);
    check_eq!(&found[..2], &[0x31, 0x10], "part number in RTCPeriphID0 and 1");
    check_eq!(found[2] & 0xf, 4, "designer in RTCPeriphID2");
    check_eq!(&found[4..], &[0x0d, 0xf0, 0x05, 0xb1], "RTCPCellID");
    check_eq!(read32(RTCCR) & 1, 1, "RTCCR: the clock is on");
    Ok(())
}

/// Waits for the clock's second to change, and gives the counter then.
fn edge() -> Check<(u32, u64)> {
    let second = read32(RTCDR);
    eventually("the clock moves", || read32(RTCDR) != second)?;
    Ok((read32(RTCDR), time::now()))
}

fn clock_counts(_: &Machine) -> Check {
    let (first, then) = edge()?;
    let (second, now) = edge()?;
    check!(second.wrapping_sub(first) <= 2, "the clock went from {first} to {second}");
    // A second of the clock is a second of the timer, give or take what a loaded host does to either.
    let ticks = (now - then) / u64::from(second.wrapping_sub(first).max(1));
    let frequency = time::frequency();
    check!(ticks > frequency / 2 && ticks < frequency * 2, "a second took {ticks} ticks of {frequency} Hz");
    Ok(())
}

fn clock_load(_: &Machine) -> Check {
    let before = read32(RTCDR);
    write32(RTCLR, 0x1234_5678);
    let set = read32(RTCDR);
    write32(RTCLR, before);
    let back = read32(RTCDR);
    check!(set.wrapping_sub(0x1234_5678) <= 2, "RTCDR after RTCLR: {set:#x}");
    check!(back.wrapping_sub(before) <= 2, "RTCDR, put back: {back:#x}, was {before:#x}");
    Ok(())
}

fn alarm(_: &Machine) -> Check {
    write32(RTCICR, 1);
    write32(RTCIMSC, 1);
    irq::enable(PL031_INTID, 0);
    irq::set_handler(Some(|_| {
        SEEN.store(read32(RTCMIS), SeqCst);
        write32(RTCICR, 1);
    }));
    SEEN.store(0, SeqCst);
    let match_at = read32(RTCDR) + 2;
    write32(RTCMR, match_at);
    check_eq!(read32(RTCMR), match_at, "RTCMR");
    let rang = eventually_with_irqs("the alarm", || irq::count(0, PL031_INTID) > 0);
    write32(RTCIMSC, 0);
    rang?;
    check_eq!(SEEN.load(SeqCst), 1, "RTCMIS in the handler");
    check!(read32(RTCDR) >= match_at, "the alarm came early");
    check_eq!(read32(RTCRIS), 0, "RTCRIS after RTCICR");
    check_eq!(irq::count(0, PL031_INTID), 1, "alarms");
    Ok(())
}
