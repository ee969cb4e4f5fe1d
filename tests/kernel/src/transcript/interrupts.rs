//! The life of an interrupt, step by step: pending, acknowledged, pending again, ended.
//!
//! A script is a list of steps on one or two interrupts. After each the CPU interface and the distributor are looked
//! at. PSTATE.I stays set, so nothing is taken but by the script. Two of one priority are never pending at once: which
//! comes first is IMPLEMENTATION DEFINED. INTIDs: 1 an SGI, 20 a PPI, 40 and 41 SPIs.

use super::Line;
use core::fmt;
use keel_test_kernel::{arch, irq, machine::Machine, mmio, mrs, platform::GICD};

/// One step.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// GICx_ISENABLERn.
    Enable(u32),
    /// GICx_ICENABLERn.
    Disable(u32),
    /// GICx_IPRIORITYRn.
    Priority(u32, u8),
    /// GICx_ICFGRn: edge-triggered.
    Edge(u32),
    /// GICx_ICFGRn: level-sensitive.
    Level(u32),
    /// GICx_ISPENDRn.
    Pend(u32),
    /// GICx_ICPENDRn.
    Unpend(u32),
    /// GICx_ISACTIVERn.
    Activate(u32),
    /// GICx_ICACTIVERn.
    Deactivate(u32),
    /// ICC_SGI1R_EL1, to this CPU; GICD_SGIR.
    Sgi(u32),
    /// ICC_PMR_EL1; GICC_PMR.
    Mask(u8),
    /// ICC_CTLR_EL1.EOImode; GICC_CTLR.EOImode.
    EoiMode(u64),
    /// ICC_IGRPEN1_EL1; GICC_CTLR.EnableGrp0, as a GICv2's interrupts are in group 0.
    Group1(u64),
    /// ICC_IAR1_EL1; GICC_IAR.
    Acknowledge,
    /// ICC_EOIR1_EL1; GICC_EOIR.
    End(u32),
    /// ICC_DIR_EL1; GICC_DIR.
    Deactivated(u32),
    /// GICD_SPENDSGIRn: senders of an SGI.
    Send(u32, u8),
    /// GICD_CPENDSGIRn.
    Unsend(u32, u8),
}

use Step::*;

struct Script {
    name: &'static str,
    intids: [u32; 2],
    steps: &'static [Step],
}

const SCRIPTS: &[Script] = &[
    Script {
        name: "sgi",
        intids: [1, 2],
        steps: &[Enable(1), Sgi(1), Sgi(1), Acknowledge, Sgi(1), End(1), Acknowledge, End(1), Acknowledge],
    },
    Script {
        name: "sgi by register",
        intids: [1, 2],
        steps: &[Pend(1), Enable(1), Unpend(1), Pend(1), Acknowledge, Pend(1), Unpend(1), End(1), Acknowledge],
    },
    Script {
        name: "ppi",
        intids: [20, 21],
        steps: &[Edge(20), Enable(20), Pend(20), Acknowledge, Pend(20), End(20), Acknowledge, End(20), Acknowledge],
    },
    Script {
        name: "edge",
        intids: [40, 41],
        steps: &[
            Edge(40),
            Pend(40),
            Enable(40),
            Disable(40),
            Enable(40),
            Acknowledge,
            Pend(40),
            Unpend(40),
            Pend(40),
            End(40),
            Acknowledge,
            End(40),
            Acknowledge,
        ],
    },
    Script {
        name: "level pended by register",
        intids: [40, 41],
        steps: &[Level(40), Enable(40), Pend(40), Acknowledge, End(40), Pend(40), Unpend(40), Acknowledge],
    },
    Script {
        name: "active by register",
        intids: [40, 41],
        steps: &[
            Edge(40),
            Enable(40),
            Activate(40),
            Pend(40),
            Acknowledge,
            Deactivate(40),
            Acknowledge,
            Deactivate(40),
            End(40),
            Acknowledge,
        ],
    },
    Script {
        name: "priorities",
        intids: [40, 41],
        steps: &[
            Edge(40),
            Edge(41),
            Priority(40, 0xa0),
            Priority(41, 0x40),
            Enable(40),
            Enable(41),
            Pend(40),
            Acknowledge,
            Pend(41),
            Acknowledge,
            End(41),
            End(40),
            Acknowledge,
        ],
    },
    Script {
        name: "mask",
        intids: [40, 41],
        steps: &[
            Edge(40),
            Priority(40, 0x80),
            Enable(40),
            Pend(40),
            Mask(0x80),
            Acknowledge,
            Mask(0x88),
            Acknowledge,
            End(40),
            Mask(0),
            Mask(0xff),
        ],
    },
    Script {
        name: "group off",
        intids: [40, 41],
        steps: &[
            Edge(40),
            Enable(40),
            Group1(0),
            Pend(40),
            Acknowledge,
            Group1(1),
            Acknowledge,
            Group1(0),
            Group1(1),
            End(40),
        ],
    },
    Script {
        name: "split",
        intids: [40, 41],
        steps: &[
            Edge(40),
            Edge(41),
            EoiMode(1),
            Enable(40),
            Enable(41),
            Pend(40),
            Acknowledge,
            End(40),
            Pend(41),
            Acknowledge,
            Deactivated(40),
            End(41),
            Deactivated(41),
            Deactivated(41),
            EoiMode(0),
        ],
    },
    Script {
        name: "nothing",
        intids: [40, 41],
        steps: &[Acknowledge, End(1023), End(40), Deactivated(40), Acknowledge],
    },
];

/// The INTID and sender that a GICv2 gives for an SGI.
const fn of(sgi: u32, sender: u32) -> u32 {
    sgi | sender << 10
}

/// What only a GICv2 does.
const V2_SCRIPTS: &[Script] = &[
    Script {
        name: "senders",
        intids: [1, 2],
        steps: &[
            Enable(1),
            Send(1, 3),
            Acknowledge,
            End(of(1, 0)),
            Acknowledge,
            End(of(1, 1)),
            Acknowledge,
            Send(1, 2),
            Acknowledge,
            End(of(1, 1)),
        ],
    },
    Script {
        name: "senders taken back",
        intids: [1, 2],
        steps: &[
            Enable(1),
            Send(1, 3),
            Unsend(1, 1),
            Acknowledge,
            End(of(1, 1)),
            Send(1, 1),
            Unsend(1, 1),
            Acknowledge,
        ],
    },
    Script {
        name: "two of one number",
        intids: [1, 2],
        steps: &[
            Enable(1),
            Send(1, 1),
            Acknowledge,
            Send(1, 2),
            End(of(1, 0)),
            Acknowledge,
            End(of(1, 1)),
            Acknowledge,
        ],
    },
    Script {
        name: "senders of a disabled one",
        intids: [1, 2],
        steps: &[Disable(1), Send(1, 3), Acknowledge, Enable(1), Acknowledge, End(of(1, 0)), Unsend(1, 2), Acknowledge],
    },
];

/// Runs all scripts.
pub(super) fn run(machine: &'static Machine) {
    if !machine.has_gicv3 && !machine.has_gicv2 {
        return;
    }
    let more = if machine.has_gicv2 { V2_SCRIPTS } else { &[] };
    for script in SCRIPTS.iter().chain(more) {
        irq::init(machine);
        for (number, step) in script.steps.iter().enumerate() {
            let mut line = Line::about(format_args!("interrupt, {} {number}: {step:?}", script.name));
            if let Some(intid) = take(machine, *step) {
                line.add(format_args!(" INTID {intid}"));
            }
            // The CPU interface may hear of it a little later, the interrupt line a little later still.
            arch::dsb();
            arch::isb();
            line.add(format_args!(
                " HPPIR1 {} RPR {:#x} ISR {:#x}",
                irq::highest_pending(),
                irq::running_priority(),
                mrs!("isr_el1")
            ));
            for intid in script.intids {
                line.add(format_args!(", {}", State(intid)));
            }
            line.end();
        }
    }
    irq::init(machine);
}

/// The frame an interrupt's registers are in.
fn base(intid: u32) -> usize {
    if intid < 32 { irq::private_frame() } else { GICD }
}

/// A register with a bit for each interrupt.
fn bits(offset: usize, intid: u32) -> usize {
    base(intid) + offset + intid as usize / 32 * 4
}

fn set(offset: usize, intid: u32) {
    mmio::write32(bits(offset, intid), 1 << (intid % 32));
}

fn configure(intid: u32, edge: u32) {
    let register = base(intid) + 0xc00 + intid as usize / 16 * 4;
    let shift = intid % 16 * 2;
    mmio::write32(register, mmio::read32(register) & !(3 << shift) | edge << (shift + 1));
}

/// Takes a step; the INTID that was acknowledged.
fn take(machine: &Machine, step: Step) -> Option<u32> {
    match step {
        Enable(intid) => set(0x100, intid),
        Disable(intid) => set(0x180, intid),
        Priority(intid, priority) => mmio::write8(base(intid) + 0x400 + intid as usize, priority),
        Edge(intid) => configure(intid, 1),
        Level(intid) => configure(intid, 0),
        Pend(intid) => set(0x200, intid),
        Unpend(intid) => set(0x280, intid),
        Activate(intid) => set(0x300, intid),
        Deactivate(intid) => set(0x380, intid),
        Sgi(intid) => irq::send(intid, machine.cpus()[0]),
        Mask(priority) => irq::set_mask(priority),
        EoiMode(mode) => irq::set_split(mode != 0),
        Group1(enable) => irq::enable_group(enable != 0),
        Acknowledge => return Some(irq::acknowledge()),
        End(acknowledged) => irq::end(acknowledged),
        Deactivated(acknowledged) => irq::deactivate(acknowledged),
        Send(sgi, senders) => mmio::write8(GICD + 0xf20 + sgi as usize, senders),
        Unsend(sgi, senders) => mmio::write8(GICD + 0xf10 + sgi as usize, senders),
    }
    None
}

/// What the distributor or redistributor says of an interrupt.
struct State(u32);

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is = |offset| mmio::read32(bits(offset, self.0)) >> (self.0 % 32) & 1 == 1;
        write!(formatter, "{}:", self.0)?;
        for (offset, name) in [(0x100, " enabled"), (0x200, " pending"), (0x300, " active")] {
            if is(offset) {
                write!(formatter, "{name}")?;
            }
        }
        if irq::is_v2() && self.0 < 16 {
            write!(formatter, " senders {:#x}", mmio::read8(GICD + 0xf20 + self.0 as usize))?;
        }
        write!(formatter, " {:#x}", mmio::read8(base(self.0) + 0x400 + self.0 as usize))
    }
}
