//! Accesses that reach no memory: where a hypervisor, or user space for it, has to answer.
//!
//! Every form of load and store at addresses nobody claims, behind RAM, and beyond the physical address size; the
//! forms for which the CPU gives no syndrome, at devices too; widths and sign extension at a device that exists; table
//! walks, instruction fetches and maintenance by address that leave RAM.

use super::Line;
use crate::cases::mmio::{FREE_SLOT, LOADS, STORES, WORD, WORD_AT, behind_memory, no_syndrome_forms, with_descriptor};
use keel_test_kernel::{
    boot,
    exec::{self, Outcome},
    machine::Machine,
    mmio, mrs, msr,
    platform::{GICD, GICR, HOLE, PL011, PL031},
};

const BASE: usize = 10;
const OFFSET: usize = 11;
const DATA: usize = 9;
/// What stores store.
const STORED: u64 = 0xdead_beef_a890_5848;

/// Forms of which [`LOADS`] and [`STORES`] have none, because no register of a GIC is as wide.
const WIDE: [(&str, u32); 3] = [("ldr x", 0xf940_0000), ("str x", 0xf900_0000), ("strh w", 0x7900_0000)];

fn access(opcode: u32, address: u64) -> Outcome {
    exec::run_with(opcode | (BASE << 5 | DATA) as u32, &[(BASE, address), (OFFSET, 0), (DATA, STORED)])
}

/// An outcome: the data register if it changed, or the exception.
fn say(what: core::fmt::Arguments, outcome: &Outcome, address: u64) {
    let mut line = Line::about(what);
    match &outcome.trap {
        Some(trap) => line.exception(trap, Some(address)),
        None if outcome.after.x[DATA] == outcome.before.x[DATA] => line.add(format_args!(" done")),
        None => line.value(outcome.after.x[DATA]),
    }
    line.changes(outcome, &[DATA]);
    line.end();
}

/// Makes the accesses.
pub(super) fn run(machine: &'static Machine) {
    nowhere(machine);
    without_syndrome(machine);
    device_widths();
    walks(machine);
    fetches(machine);
    maintenance();
    translations(machine);
}

fn plain() -> impl Iterator<Item = (&'static str, u32)> {
    let loads = LOADS.into_iter().map(|(name, opcode, ..)| (name, opcode));
    // The unprivileged form faults in the guest's own stage 1.
    loads
        .filter(|(name, _)| *name != "ldtr w")
        .chain(STORES.into_iter().map(|(name, opcode, _)| (name, opcode)))
        .chain(WIDE)
}

/// Named addresses of nobody.
fn nowhere(machine: &Machine) {
    let end = behind_memory(machine) as u64;
    let hole = HOLE as u64;
    for (name, opcode) in plain() {
        say(format_args!("{name} at {hole:#x}, nobody's"), &access(opcode, hole), hole);
    }
    let after_redistributors = (GICR + machine.cpus().len() * 0x2_0000) as u64;
    let others = [0, 0x07ff_fff8, after_redistributors, PL011 as u64 + 0x1000, PL031 as u64 + 0x1000, 0x0b00_0000];
    for address in others.into_iter().chain([hole + 0xff8, 0x1000_0000, 0x3fff_fff0, end, end + 0x20_0000, 0xbfff_fff8])
    {
        for (name, opcode) in [("ldr w", 0xb940_0000), ("str w", 0xb900_0000), ("ldr x", 0xf940_0000)] {
            say(format_args!("{name} at {address:#x}, nobody's"), &access(opcode, address), address);
        }
    }
    // The window's addresses: one gigabyte at each power of two, from inside the physical address size to beyond it.
    for bit in 36..48 {
        let address = boot::window(bit) as u64 + 0x1230;
        for (name, opcode) in [("ldr w", 0xb940_0000), ("str w", 0xb900_0000)] {
            say(format_args!("{name} at physical address 1 << {bit}"), &access(opcode, address), address);
        }
    }
}

fn without_syndrome(machine: &Machine) {
    let end = behind_memory(machine) as u64;
    for (place, address) in [
        ("a hole", HOLE as u64),
        ("the end of RAM", end),
        ("GICD_IPRIORITYR0", GICD as u64 + 0x400),
        ("GICR_IPRIORITYR0", GICR as u64 + 0x1_0400),
        ("UARTFR + 0x28", PL011 as u64 + 0x40),
        ("RTCIMSC", PL031 as u64 + 0x10),
    ] {
        for (name, opcode) in no_syndrome_forms() {
            say(format_args!("{name} at {place}"), &access(opcode, address), address);
        }
    }
}

/// Every form at a register that exists, of which KVM and keel have one each: priorities of SPIs 32 to 35.
fn device_widths() {
    for (name, opcode, bytes, _) in LOADS.into_iter().filter(|(name, ..)| *name != "ldtr w") {
        for byte in (0..4).step_by(bytes as usize) {
            mmio::write32(WORD_AT, WORD);
            let address = (WORD_AT + byte) as u64;
            say(format_args!("{name} at GICD_IPRIORITYR8 + {byte}, {WORD:#x}"), &access(opcode, address), address);
        }
    }
    for (name, opcode, bytes) in STORES {
        for byte in (0..4).step_by(bytes as usize) {
            mmio::write32(WORD_AT, 0);
            let address = (WORD_AT + byte) as u64;
            let outcome = access(opcode, address);
            let mut line = Line::about(format_args!("{name} of {STORED:#x} at GICD_IPRIORITYR8 + {byte}"));
            match &outcome.trap {
                Some(trap) => line.exception(trap, Some(address)),
                None => line.value(mmio::read32(WORD_AT).into()),
            }
            line.end();
        }
    }
    mmio::write32(WORD_AT, WORD);
    for (name, opcode) in WIDE {
        say(format_args!("{name} at GICD_IPRIORITYR8, {WORD:#x}"), &access(opcode, WORD_AT as u64), WORD_AT as u64);
    }
    mmio::write32(WORD_AT, 0x8080_8080);
}

/// Loads whose translation table is where there is no memory.
fn walks(machine: &Machine) {
    let address = (FREE_SLOT as u64) << 30 | 0x4_5678;
    for (place, table) in
        [("a hole", HOLE & !0xfff), ("the end of RAM", behind_memory(machine)), ("GICD", GICD), ("the PL011", PL011)]
    {
        for (name, opcode) in [("ldr w", 0xb940_0000), ("str w", 0xb900_0000), ("ldp x", 0xa940_0000 | 12 << 10)] {
            let outcome = with_descriptor(FREE_SLOT, table as u64 | 0b11, || access(opcode, address));
            say(format_args!("{name} through a table in {place}"), &outcome, address);
        }
        let outcome = with_descriptor(FREE_SLOT, table as u64 | 0b11, || jump(address));
        say(format_args!("a jump through a table in {place}"), &outcome, address);
    }
}

/// `br x10`.
fn jump(address: u64) -> Outcome {
    exec::run_with(0xd61f_0000 | (BASE << 5) as u32, &[(BASE, address)])
}

fn fetches(machine: &Machine) {
    let end = behind_memory(machine) as u64;
    for address in [end, end + 0x1000_0004, 0xb000_0000] {
        say(format_args!("a jump to {address:#x}, nobody's"), &jump(address), address);
    }
    // The first gigabyte again, as executable memory.
    let normal = 0b01 | 1 << 10 | 1 << 2 | 3 << 8;
    with_descriptor(FREE_SLOT, normal, || {
        for (place, device) in [("GICD", GICD), ("the PL011", PL011), ("a hole", HOLE)] {
            let address = ((FREE_SLOT << 30) + device) as u64;
            say(format_args!("a jump to {place}"), &jump(address), address);
        }
    });
    // Beyond the physical address size.
    for bit in [39, 40, 44, 47] {
        let address = (FREE_SLOT as u64) << 30;
        let outcome = with_descriptor(FREE_SLOT, normal | 1 << bit, || jump(address));
        say(format_args!("a jump to physical address 1 << {bit}"), &outcome, address);
    }
}

/// Maintenance by address where there is no memory.
fn maintenance() {
    for (name, word) in [
        ("dc ivac", 0xd508_7620),
        ("dc cvac", 0xd50b_7a20),
        ("dc cvau", 0xd50b_7b20),
        ("dc civac", 0xd50b_7e20),
        ("ic ivau", 0xd50b_7520),
        ("dc zva", 0xd50b_7420),
    ] {
        for (place, address) in [("a hole", HOLE), ("GICD", GICD), ("the PL011", PL011)] {
            let outcome = exec::run_with(word | BASE as u32, &[(BASE, address as u64)]);
            say(format_args!("{name} at {place}"), &outcome, address as u64);
        }
    }
}

/// AT of addresses that stage 1 maps, wherever stage 2 has them.
fn translations(machine: &Machine) {
    let here = machine.memory_base as u64;
    let places = [("RAM", here), ("a hole", HOLE as u64), ("the PL011", PL011 as u64)];
    for (name, word) in [("at s1e1r", 0xd508_7800_u32), ("at s1e1w", 0xd508_7820), ("at s1e0r", 0xd508_7840)] {
        for (place, address) in
            places.into_iter().chain([("nothing", (FREE_SLOT as u64) << 30), ("1 << 40", boot::window(40) as u64)])
        {
            let outcome = exec::run_with(word | BASE as u32, &[(BASE, address)]);
            let mut line = Line::about(format_args!("{name} of {place}"));
            match &outcome.trap {
                Some(trap) => line.exception(trap, None),
                None => line.add(format_args!(" PAR_EL1 {:#x}", mrs!("par_el1"))),
            }
            line.end();
        }
    }
    msr!("par_el1", 0);
}
