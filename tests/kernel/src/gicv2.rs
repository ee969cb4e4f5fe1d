//! A GICv2 by plain loads and stores (IHI 0048B).
//!
//! arm-gic's driver for it wants to be the only one who looks, and sets four priorities at a time. In the distributor the
//! registers of INTIDs 0 to 31 are this CPU's own; everything starts, and stays unless a case says otherwise, in group 0.

use crate::{
    mmio::{read32, write8, write32},
    platform::{GICC, GICD},
};

/// GICC registers.
pub mod gicc {
    /// GICC_CTLR.
    pub const CTLR: usize = 0x00;
    /// GICC_PMR.
    pub const PMR: usize = 0x04;
    /// GICC_BPR.
    pub const BPR: usize = 0x08;
    /// GICC_IAR.
    pub const IAR: usize = 0x0c;
    /// GICC_EOIR.
    pub const EOIR: usize = 0x10;
    /// GICC_RPR.
    pub const RPR: usize = 0x14;
    /// GICC_HPPIR.
    pub const HPPIR: usize = 0x18;
    /// GICC_ABPR.
    pub const ABPR: usize = 0x1c;
    /// GICC_APR0.
    pub const APR0: usize = 0xd0;
    /// GICC_IIDR.
    pub const IIDR: usize = 0xfc;
    /// GICC_DIR.
    pub const DIR: usize = 0x1000;
}

/// GICD_SGIR: to those of the list.
pub const TO_LIST: u32 = 0;
/// GICD_SGIR: to all others.
pub const TO_OTHERS: u32 = 1;
/// GICD_SGIR: to oneself.
pub const TO_SELF: u32 = 2;

/// GICC_CTLR.EOImode, where there are no Security Extensions.
const EOI_MODE: u32 = 1 << 9;

/// Reads a register of the CPU interface.
pub fn read(register: usize) -> u32 {
    read32(GICC + register)
}

/// Writes a register of the CPU interface.
pub fn write(register: usize, value: u32) {
    write32(GICC + register, value);
}

/// Everything of the distributor that all CPUs share: off, not pending, not active, of priority 0x80, in group 0 and for CPU 0.
pub fn init_distributor() {
    write32(GICD, 0);
    for block in 1..(read32(GICD + 4) & 0x1f) as usize + 1 {
        for register in [0x180, 0x280, 0x380] {
            write32(GICD + register + block * 4, !0);
        }
        write32(GICD + 0x80 + block * 4, 0);
        for word in block * 8..block * 8 + 8 {
            write32(GICD + 0x400 + word * 4, 0x8080_8080);
            write32(GICD + 0x800 + word * 4, 0x0101_0101);
        }
    }
    write32(GICD, 1);
}

/// The same for this CPU's own interrupts, and its interface: on, nothing masked, the finest grouping, EOImode 0.
pub fn init_cpu() {
    for register in [0x180, 0x280, 0x380] {
        write32(GICD + register, !0);
    }
    write32(GICD + 0x80, 0);
    for word in 0..4 {
        write32(GICD + 0xf10 + word * 4, !0);
    }
    for word in 0..8 {
        write32(GICD + 0x400 + word * 4, 0x8080_8080);
    }
    write(gicc::PMR, 0xff);
    write(gicc::BPR, 0);
    write(gicc::CTLR, 1);
}

/// Disables every interrupt and this CPU's interface.
pub fn stop() {
    for block in 0..(read32(GICD + 4) & 0x1f) as usize + 1 {
        write32(GICD + 0x180 + block * 4, !0);
    }
    write(gicc::CTLR, 0);
}

/// Sets a priority.
pub fn set_priority(intid: u32, priority: u8) {
    write8(GICD + 0x400 + intid as usize, priority);
}

/// Sends an SGI: GICD_SGIR.
pub fn send(filter: u32, targets: u8, sgi: u32) {
    write32(GICD + 0xf00, filter << 24 | u32::from(targets) << 16 | sgi);
}

/// Makes EOIR only drop the priority, or not.
pub fn set_split(split: bool) {
    let control = read(gicc::CTLR) & !EOI_MODE;
    write(gicc::CTLR, control | if split { EOI_MODE } else { 0 });
}
