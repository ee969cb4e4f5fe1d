//! The GICv2's registers: every word of the distributor, as each CPU sees it, what is kept of what is written, widths, the CPU
//! interface, and that there is no other.
//!
//! Register names and offsets are IHI 0048's, 4.3 and 4.4.

use super::Line;
use super::gic::{frame, widths_of, writes_of};
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
use keel_test_kernel::{
    exec::{self, Encoding},
    irq,
    machine::Machine,
    mmio, mrs,
    platform::{GICC, GICD},
    smp,
};

/// Prints everything.
pub(super) fn run(machine: &'static Machine) {
    if !machine.has_gicv2 {
        return;
    }
    irq::init(machine);
    frame("GICD", GICD, 0x1000);
    frame("GICC", GICC, 0x100);
    frame("GICC + 0x1000", GICC + 0x1000, 0x10);
    from_cpu_1(machine);
    widths_of(&[
        ("GICD_CTLR", GICD),
        ("GICD_TYPER", GICD + 4),
        ("GICD_IIDR", GICD + 8),
        ("GICD_IPRIORITYR8", GICD + 0x420),
        ("GICD_ITARGETSR0", GICD + 0x800),
        ("GICD_ITARGETSR8", GICD + 0x820),
        ("GICD_ICFGR2", GICD + 0xc08),
        ("GICD_SGIR", GICD + 0xf00),
        ("GICD_CPENDSGIR0", GICD + 0xf10),
        ("GICD_SPENDSGIR0", GICD + 0xf20),
        ("ICPIDR2", GICD + 0xfe8),
    ]);
    writes_of(GICD, DISTRIBUTOR);
    irq::init(machine);
    writes_of(GICC, INTERFACE);
    irq::init(machine);
    system_registers();
}

static SEEN: [AtomicU32; 12] = [const { AtomicU32::new(0) }; 12];
/// Offsets of what CPU 1 looks at.
const BANKED: [usize; SEEN.len()] = [0x4, 0x80, 0x100, 0x200, 0x300, 0x400, 0x41c, 0x800, 0x81c, 0x820, 0xc00, 0xc04];

fn look(_: usize) {
    for (seen, offset) in SEEN.iter().zip(BANKED) {
        seen.store(mmio::read32(GICD + offset), SeqCst);
    }
}

/// The banked registers of the other CPU, while this one's say something else.
fn from_cpu_1(machine: &'static Machine) {
    irq::enable(20, 0);
    irq::set_priority(0, 0, 0x40);
    let done = smp::start(machine, 1, look, 0).is_ok() && smp::join(machine, 1);
    for (seen, offset) in SEEN.iter().zip(BANKED) {
        let mut line = Line::about(format_args!("GICD + {offset:#x}, read by CPU 1"));
        line.add(format_args!(" {done} {:#x}", seen.load(SeqCst)));
        line.end();
    }
    irq::init(machine);
}

/// Words that are written and read back: name, offset, values. Each word gets its old value again.
const DISTRIBUTOR: &[(&str, usize, &[u32])] = &[
    ("GICD_CTLR", 0x0, &[0, 1, 2, 3, 0xffff_ffff]),
    ("GICD_TYPER", 0x4, &[0]),
    ("GICD_IIDR", 0x8, &[0, 0xffff_ffff]),
    ("GICD + 0xc", 0xc, &[0xffff_ffff]),
    ("GICD_IGROUPR0", 0x80, &[0x5555_5555, 0xffff_ffff, 0]),
    ("GICD_IGROUPR1", 0x84, &[0x5555_5555, 0xffff_ffff, 0]),
    ("GICD_IGROUPR8", 0xa0, &[0xffff_ffff]),
    ("GICD_ISENABLER0", 0x100, &[0xf0f0_f0f0, 0xffff_ffff]),
    ("GICD_ICENABLER0", 0x180, &[0x00ff_0000, 0xffff_ffff]),
    ("GICD_ISENABLER1", 0x104, &[0xf0f0_f0f0, 0xffff_ffff]),
    ("GICD_ICENABLER1", 0x184, &[0x00ff_0000, 0xffff_ffff]),
    ("GICD_ISENABLER8", 0x120, &[0xffff_ffff]),
    ("GICD_ISPENDR0", 0x200, &[0x0000_00f0, 0x00ff_0000, 0x00ff_ffff]),
    ("GICD_ICPENDR0", 0x280, &[0xffff_ffff]),
    ("GICD_ISPENDR1", 0x204, &[0xf0f0_f0f0, 0xffff_ffff]),
    ("GICD_ICPENDR1", 0x284, &[0x00ff_0000, 0xffff_ffff]),
    ("GICD_ISACTIVER0", 0x300, &[0x00f0_00f0]),
    ("GICD_ICACTIVER0", 0x380, &[0xffff_ffff]),
    ("GICD_ISACTIVER1", 0x304, &[0xf0f0_f0f0, 0xffff_ffff]),
    ("GICD_ICACTIVER1", 0x384, &[0x00ff_0000, 0xffff_ffff]),
    ("GICD_IPRIORITYR0", 0x400, &[0xffff_ffff, 0x0123_4567]),
    ("GICD_IPRIORITYR8", 0x420, &[0xffff_ffff, 0x0123_4567, 0]),
    ("GICD_IPRIORITYR64", 0x500, &[0xffff_ffff]),
    ("GICD_ITARGETSR0", 0x800, &[0, 0xffff_ffff]),
    ("GICD_ITARGETSR7", 0x81c, &[0, 0xffff_ffff]),
    ("GICD_ITARGETSR8", 0x820, &[0, 0x0102_0301, 0xffff_ffff, 0x8080_8080]),
    ("GICD_ITARGETSR64", 0x900, &[0xffff_ffff]),
    ("GICD_ICFGR0", 0xc00, &[0, 0xffff_ffff]),
    ("GICD_ICFGR1", 0xc04, &[0, 0xffff_ffff]),
    ("GICD_ICFGR2", 0xc08, &[0xffff_ffff, 0x5555_5555, 0xaaaa_aaaa, 0]),
    ("GICD_PPISR", 0xd00, &[0xffff_ffff]),
    ("GICD_NSACR2", 0xe08, &[0xffff_ffff]),
    ("GICD_SGIR", 0xf00, &[0x0200_0001]),
    ("GICD_SPENDSGIR0", 0xf20, &[0x0000_0003, 0x0201_0000]),
    ("GICD_CPENDSGIR0", 0xf10, &[0x0000_0001, 0x0200_0002, 0xffff_ffff]),
    ("GICD + 0xf30", 0xf30, &[0xffff_ffff]),
    ("ICPIDR2", 0xfe8, &[0]),
];

/// The same of the CPU interface. What it acknowledges and ends is for `interrupts`.
const INTERFACE: &[(&str, usize, &[u32])] = &[
    ("GICC_CTLR", 0x00, &[0, 1, 2, 3, 0x1f, 0x200, 0xffff_ffff]),
    ("GICC_PMR", 0x04, &[0, 0xff, 0x55, 0xaa, 0x1f0]),
    ("GICC_BPR", 0x08, &[0, 1, 2, 3, 7, 8]),
    ("GICC_ABPR", 0x1c, &[0, 1, 3, 4, 7, 8]),
    ("GICC_APR0", 0xd0, &[2, 0]),
    ("GICC_APR1", 0xd4, &[2, 0]),
    ("GICC_IIDR", 0xfc, &[0]),
];

fn system_registers() {
    let registers: [(&str, Encoding); 8] = [
        ("ICC_PMR_EL1", (3, 0, 4, 6, 0)),
        ("ICC_IAR0_EL1", (3, 0, 12, 8, 0)),
        ("ICC_DIR_EL1", (3, 0, 12, 11, 1)),
        ("ICC_SGI1R_EL1", (3, 0, 12, 11, 5)),
        ("ICC_IAR1_EL1", (3, 0, 12, 12, 0)),
        ("ICC_CTLR_EL1", (3, 0, 12, 12, 4)),
        ("ICC_SRE_EL1", (3, 0, 12, 12, 5)),
        ("ICC_IGRPEN1_EL1", (3, 0, 12, 12, 7)),
    ];
    for (name, encoding) in registers {
        for (what, word) in [("mrs", exec::mrs(0, encoding)), ("msr", exec::msr(0, encoding))] {
            let mut line = Line::about(format_args!("{what} {name}, with a GICv2"));
            let outcome = exec::run_with(word, &[(0, 0)]);
            match &outcome.trap {
                Some(trap) => line.exception(trap, None),
                None => line.value(outcome.after.x[0]),
            }
            line.end();
        }
    }
    let mut line = Line::about(format_args!("ID_AA64PFR0_EL1.GIC"));
    line.value(mrs!("id_aa64pfr0_el1") >> 24 & 15);
    line.end();
}
