//! The GICv3's registers in memory: every word of its frames, what is kept of what is written, and widths.
//!
//! Register names and offsets are IHI 0069's, 12.8 and 12.10. Nothing is taken as an interrupt: PSTATE.I stays set.

use super::Line;
use keel_test_kernel::{
    exec::{self, Outcome},
    irq,
    machine::Machine,
    mmio,
    platform::{GICD, GICR, GICR_SGI, GICR_STRIDE},
};

/// Prints everything.
pub(super) fn run(machine: &'static Machine) {
    if !machine.has_gicv3 {
        return;
    }
    irq::init(machine);
    frame("GICD", GICD, 0x1_0000);
    for cpu in 0..machine.cpus().len() {
        let base = GICR + cpu * GICR_STRIDE;
        frame(if cpu == 0 { "GICR0 RD" } else { "GICR1 RD" }, base, 0x1_0000);
        frame(if cpu == 0 { "GICR0 SGI" } else { "GICR1 SGI" }, base + GICR_SGI, 0x1_0000);
    }
    widths();
    writes(machine);
}

const LDR_W: u32 = 0xb940_0000;

fn load(opcode: u32, address: usize) -> Outcome {
    exec::run_with(opcode | 10 << 5, &[(10, address as u64)])
}

/// The words of a frame that are not zero, runs of equal ones together; a line for each KiB.
pub(super) fn frame(name: &str, base: usize, length: usize) {
    for part in (0..length).step_by(0x400) {
        let mut line = Line::about(format_args!("{name} + {part:#x}"));
        let mut run: Option<(usize, usize, u64)> = None;
        for offset in (part..length.min(part + 0x400)).step_by(4) {
            let outcome = load(LDR_W, base + offset);
            if let Some(trap) = &outcome.trap {
                line.add(format_args!(" {offset:#x}"));
                line.exception(trap, Some((base + offset) as u64));
                continue;
            }
            let value = outcome.after.x[0];
            run = match run {
                Some((first, last, same)) if same == value && last + 4 == offset => Some((first, offset, same)),
                _ => {
                    flush(&mut line, run);
                    Some((offset, offset, value))
                }
            };
        }
        flush(&mut line, run);
        line.end();
    }
}

fn flush(line: &mut Line, run: Option<(usize, usize, u64)>) {
    match run {
        None | Some((_, _, 0)) => {}
        Some((first, last, value)) if first == last => line.add(format_args!(" {first:#x}={value:#x}")),
        Some((first, last, value)) => line.add(format_args!(" {first:#x}..{last:#x}={value:#x}")),
    }
}

fn widths() {
    widths_of(&[
        ("GICD_CTLR", GICD),
        ("GICD_TYPER", GICD + 4),
        ("GICD_IIDR", GICD + 8),
        ("GICD_TYPER2", GICD + 0xc),
        ("GICD_IPRIORITYR8", GICD + 0x420),
        ("GICD_ICFGR2", GICD + 0xc08),
        ("GICD_IROUTER32", GICD + 0x6100),
        ("GICD_PIDR2", GICD + 0xffe8),
        ("GICR_CTLR", GICR),
        ("GICR_IIDR", GICR + 4),
        ("GICR_TYPER", GICR + 8),
        ("GICR_TYPER + 4", GICR + 0xc),
        ("GICR_WAKER", GICR + 0x14),
        ("GICR_PIDR2", GICR + 0xffe8),
        ("GICR_IPRIORITYR0", GICR + GICR_SGI + 0x400),
        ("GICR_ICFGR0", GICR + GICR_SGI + 0xc00),
    ]);
}

/// Loads of each width at registers of each width.
pub(super) fn widths_of(registers: &[(&str, usize)]) {
    for (name, address) in registers {
        let address = *address;
        for (width, opcode) in [("ldrb", 0x3940_0000), ("ldrh", 0x7940_0000), ("ldr w", LDR_W), ("ldr x", 0xf940_0000)]
        {
            // Eight bytes at an address that is not a multiple of eight are the guest's own alignment fault.
            let mut line = Line::about(format_args!("{width} of {name}"));
            let outcome = load(opcode, address);
            match &outcome.trap {
                Some(trap) => line.exception(trap, Some(address as u64)),
                None => line.value(outcome.after.x[0]),
            }
            line.end();
        }
    }
}

/// Words that are written and read back: name, offset from GICD, values. Each word gets its old value again; what sets
/// or clears bits is followed by its opposite.
const DISTRIBUTOR: &[(&str, usize, &[u32])] = &[
    ("GICD_CTLR", 0x0, &[0, 1, 2, 3, 0x10, 0x40, 0xffff_ffff]),
    ("GICD_TYPER", 0x4, &[0]),
    ("GICD_IIDR", 0x8, &[0, 0xffff_ffff]),
    ("GICD_STATUSR", 0x10, &[0xf]),
    ("GICD_SETSPI_NSR", 0x40, &[40]),
    ("GICD_CLRSPI_NSR", 0x48, &[40]),
    ("GICD_SETSPI_SR", 0x50, &[40]),
    ("GICD_IGROUPR0", 0x80, &[0, 0xffff_ffff]),
    ("GICD_IGROUPR1", 0x84, &[0, 0x5555_5555, 0xffff_ffff]),
    ("GICD_IGROUPR7", 0x9c, &[0, 0xffff_ffff]),
    ("GICD_IGROUPR8", 0xa0, &[0xffff_ffff]),
    ("GICD_ISENABLER0", 0x100, &[0xffff_ffff]),
    ("GICD_ISENABLER1", 0x104, &[0xf0f0_f0f0, 0xffff_ffff]),
    ("GICD_ICENABLER1", 0x184, &[0x00ff_0000, 0xffff_ffff]),
    ("GICD_ISENABLER8", 0x120, &[0xffff_ffff]),
    ("GICD_ISPENDR0", 0x200, &[0xffff_ffff]),
    ("GICD_ISPENDR1", 0x204, &[0xf0f0_f0f0, 0xffff_ffff]),
    ("GICD_ICPENDR1", 0x284, &[0x00ff_0000, 0xffff_ffff]),
    ("GICD_ISACTIVER0", 0x300, &[0xffff_ffff]),
    ("GICD_ISACTIVER1", 0x304, &[0xf0f0_f0f0, 0xffff_ffff]),
    ("GICD_ICACTIVER1", 0x384, &[0x00ff_0000, 0xffff_ffff]),
    ("GICD_IPRIORITYR0", 0x400, &[0xffff_ffff]),
    ("GICD_IPRIORITYR8", 0x420, &[0xffff_ffff, 0x0123_4567, 0]),
    ("GICD_IPRIORITYR63", 0x4fc, &[0xffff_ffff]),
    ("GICD_IPRIORITYR64", 0x500, &[0xffff_ffff]),
    ("GICD_ITARGETSR8", 0x820, &[0x0101_0101]),
    ("GICD_ICFGR0", 0xc00, &[0, 0xffff_ffff]),
    ("GICD_ICFGR1", 0xc04, &[0, 0xffff_ffff]),
    ("GICD_ICFGR2", 0xc08, &[0xffff_ffff, 0x5555_5555, 0xaaaa_aaaa, 0]),
    ("GICD_IGRPMODR1", 0xd04, &[0xffff_ffff]),
    ("GICD_NSACR2", 0xe08, &[0xffff_ffff]),
    ("GICD_SGIR", 0xf00, &[0x0200_0001]),
    ("GICD_CPENDSGIR0", 0xf10, &[0xffff_ffff]),
    ("GICD_SPENDSGIR0", 0xf20, &[0xffff_ffff]),
    ("GICD_IROUTER0", 0x6000, &[1]),
    ("GICD_IROUTER32", 0x6100, &[1, 0xff, 0x100, 0x8000_0000, 0x8000_0001, 0xffff_ffff, 0]),
    ("GICD_IROUTER32 + 4", 0x6104, &[1, 0xffff_ffff, 0]),
    ("GICD_PIDR2", 0xffe8, &[0]),
];

/// The same of the redistributor of the CPU this runs on, offsets from GICR.
const REDISTRIBUTOR: &[(&str, usize, &[u32])] = &[
    ("GICR_CTLR", 0x0, &[0, 1, 2, 4, 0xffff_fff8]),
    ("GICR_IIDR", 0x4, &[0]),
    ("GICR_TYPER", 0x8, &[0]),
    ("GICR_STATUSR", 0x10, &[0xf]),
    ("GICR_WAKER", 0x14, &[2, 0]),
    ("GICR_SETLPIR", 0x40, &[8192]),
    ("GICR_PROPBASER", 0x70, &[0x4100_000d, 0]),
    ("GICR_PROPBASER + 4", 0x74, &[0xffff_ffff, 0]),
    ("GICR_PENDBASER", 0x78, &[0x4101_0000, 0]),
    ("GICR_INVLPIR", 0xa0, &[8192]),
    ("GICR_SYNCR", 0xc0, &[0]),
    ("GICR_IGROUPR0", 0x1_0080, &[0, 0x5555_5555, 0xffff_ffff]),
    ("GICR_ISENABLER0", 0x1_0100, &[0xf0f0_f0f0, 0xffff_ffff]),
    ("GICR_ICENABLER0", 0x1_0180, &[0x00ff_0000, 0xffff_ffff]),
    ("GICR_ISPENDR0", 0x1_0200, &[0x0000_00f0, 0x00ff_0000]),
    ("GICR_ICPENDR0", 0x1_0280, &[0xffff_ffff]),
    ("GICR_ISACTIVER0", 0x1_0300, &[0x00f0_00f0]),
    ("GICR_ICACTIVER0", 0x1_0380, &[0xffff_ffff]),
    ("GICR_IPRIORITYR0", 0x1_0400, &[0xffff_ffff, 0x0123_4567]),
    ("GICR_IPRIORITYR7", 0x1_041c, &[0xffff_ffff]),
    ("GICR_IPRIORITYR8", 0x1_0420, &[0xffff_ffff]),
    ("GICR_ICFGR0", 0x1_0c00, &[0, 0xffff_ffff]),
    ("GICR_ICFGR1", 0x1_0c04, &[0, 0xffff_ffff, 0xaaaa_aaaa]),
    ("GICR_IGRPMODR0", 0x1_0d00, &[0xffff_ffff]),
    ("GICR_NSACR", 0x1_0e00, &[0xffff_ffff]),
];

fn writes(machine: &Machine) {
    for (base, table) in [(GICD, DISTRIBUTOR), (GICR, REDISTRIBUTOR)] {
        writes_of(base, table);
        // Nothing stays enabled, pending or active.
        irq::init(machine);
    }
}

/// Stores of words, and what is read back.
pub(super) fn writes_of(base: usize, table: &[(&str, usize, &[u32])]) {
    for (name, offset, values) in table {
        let address = base + offset;
        let old = mmio::read32(address);
        for value in *values {
            let mut line = Line::about(format_args!("str w of {value:#x} to {name}"));
            let outcome = exec::run_with(0xb900_0000 | 10 << 5, &[(0, u64::from(*value)), (10, address as u64)]);
            match &outcome.trap {
                Some(trap) => line.exception(trap, Some(address as u64)),
                None => line.add(format_args!(" {:#x}", mmio::read32(address))),
            }
            line.end();
        }
        mmio::write32(address, old);
    }
}
