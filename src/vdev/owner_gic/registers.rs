//! The owner's accesses to the distributor and to redistributors: what is let through to the machine's own registers.
//!
//! A register is a row: where it is, how wide it may be accessed, and what becomes of an access. Offsets that are in no row,
//! and widths that are not the row's, read as zero and ignore writes. What would take interrupts away from keel is kept
//! from the owner: its own private interrupts, the group of every interrupt (a group 0 interrupt would be an FIQ that
//! nobody acknowledges), LPIs, and GICD_CTLR, whose effect on the owner is emulated. IHI 0069 §12.8, §12.10, §12.11.

use super::{AccessSize, Frame, IntidSet, OwnerCpu, OwnerGic, OwnerHost, PRIVATE, PhysicalGic, VirtualInterface};
use core::{ops::Range, sync::atomic::Ordering::SeqCst};

/// Offset of the second frame of a redistributor, with its SGIs and PPIs.
const SGI_FRAME: u64 = 0x1_0000;

/// Register of a bit, a byte or two bits an interrupt, the same offset in GICD and in the SGI frame of GICR.
pub(super) const SET_ENABLE: u64 = 0x100;
pub(super) const CLEAR_ENABLE: u64 = 0x180;
pub(super) const SET_PENDING: u64 = 0x200;
const CLEAR_PENDING: u64 = 0x280;
pub(super) const SET_ACTIVE: u64 = 0x300;
pub(super) const CLEAR_ACTIVE: u64 = 0x380;
pub(super) const PRIORITY: u64 = 0x400;
pub(super) const CONFIGURATION: u64 = 0xc00;

/// Where the field of `intid`, of `bits` bits, is in `register`: the frame, and the offset of its byte or word.
pub(super) fn place(vcpu: usize, intid: u32, register: u64, bits: u32) -> (Frame, u64) {
    let offset = register
        + match bits {
            8 => u64::from(intid),
            _ => u64::from(intid / 32) * 4,
        };
    if intid < PRIVATE { (Frame::Redistributor(vcpu), SGI_FRAME + offset) } else { (Frame::Distributor, offset) }
}

/// What a bit of a register says of its interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Set-enable.
    Enabled,
    /// Clear-enable.
    Disabled,
    /// Set- and clear-pending.
    Pending,
    /// Set- and clear-active.
    Active,
}

/// What becomes of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// GICD_CTLR.
    Control,
    /// Reads go through without these bits; writes are ignored.
    ReadOnly {
        /// Bits that read as zero.
        hidden: u64,
    },
    /// A bit an interrupt: goes through. Where an interrupt on its way to the owner would make a difference, everything is
    /// settled before.
    Bits(State),
    /// A byte an interrupt: goes through.
    Priorities,
    /// Two bits an interrupt: goes through.
    Configuration,
    /// GICD_IROUTER: goes through.
    Routing,
    /// Message to an SPI: goes through if its INTID is one.
    Message,
    /// GICR_WAKER.
    Waker,
}

/// Accesses of 4 bytes, of 1 or 4, of 4 or 8.
const W: &[AccessSize] = &[AccessSize::Word];
const BW: &[AccessSize] = &[AccessSize::Byte, AccessSize::Word];
const HW: &[AccessSize] = &[AccessSize::Half, AccessSize::Word];
const WD: &[AccessSize] = &[AccessSize::Word, AccessSize::Double];

struct Row(Range<u64>, &'static [AccessSize], Access);

/// GICD_TYPER: ESPI 8, NMI 9, MBIS 16 stays, LPIS 17, DVIS 18.
const NO_EXTENSIONS: u64 = 1 << 8 | 1 << 9 | 1 << 17 | 1 << 18;
/// GICR_TYPER: PLPIS 0, VLPIS 1, Dirty 2, DirectLPI 3.
const NO_LPIS: u64 = 0xf;
/// The upper half of GICR_TYPER; in GICD there is nothing at this offset.
const GICR_TYPER_HIGH: u64 = 0xc;
/// GICD_CLRSPI_NSR.
const CLEAR_MESSAGE: u64 = 0x48;
/// INTID of GICD_SETSPI_NSR and GICD_CLRSPI_NSR.
const MESSAGE_INTID: u64 = 0x1fff;
/// GICR_CTLR: EnableLPIs 0, CES 1, IR 2.
const NO_LPI_CONTROL: u64 = 7;

const DISTRIBUTOR: &[Row] = &[
    Row(0x0000..0x0004, W, Access::Control),
    Row(0x0004..0x0008, W, Access::ReadOnly { hidden: NO_EXTENSIONS }),
    Row(0x0008..0x000c, W, Access::ReadOnly { hidden: 0 }), // GICD_IIDR
    Row(0x0040..0x0044, HW, Access::Message),               // GICD_SETSPI_NSR
    Row(CLEAR_MESSAGE..0x004c, HW, Access::Message),        // GICD_CLRSPI_NSR
    Row(0x0084..0x0100, W, Access::ReadOnly { hidden: 0 }), // GICD_IGROUPR
    Row(SET_ENABLE + 4..0x0180, W, Access::Bits(State::Enabled)),
    Row(CLEAR_ENABLE + 4..0x0200, W, Access::Bits(State::Disabled)),
    Row(SET_PENDING + 4..0x0280, W, Access::Bits(State::Pending)),
    Row(CLEAR_PENDING + 4..0x0300, W, Access::Bits(State::Pending)),
    Row(SET_ACTIVE + 4..0x0380, W, Access::Bits(State::Active)),
    Row(CLEAR_ACTIVE + 4..0x0400, W, Access::Bits(State::Active)),
    Row(PRIORITY + 32..0x07fc, BW, Access::Priorities),
    Row(CONFIGURATION + 8..0x0d00, W, Access::Configuration),
    Row(0x6100..0x7fe0, WD, Access::Routing),
    Row(0xffd0..0x1_0000, W, Access::ReadOnly { hidden: 0 }), // GICD_PIDR, GICD_CIDR
];

const REDISTRIBUTOR: &[Row] = &[
    Row(0x0000..0x0004, W, Access::ReadOnly { hidden: NO_LPI_CONTROL }), // GICR_CTLR
    Row(0x0004..0x0008, W, Access::ReadOnly { hidden: 0 }),              // GICR_IIDR
    Row(0x0008..0x0010, WD, Access::ReadOnly { hidden: NO_LPIS }),       // GICR_TYPER
    Row(0x0014..0x0018, W, Access::Waker),
    Row(0xffd0..0x1_0000, W, Access::ReadOnly { hidden: 0 }),
    Row(SGI_FRAME + 0x80..SGI_FRAME + 0x84, W, Access::ReadOnly { hidden: 0 }), // GICR_IGROUPR0
    Row(SGI_FRAME + SET_ENABLE..SGI_FRAME + SET_ENABLE + 4, W, Access::Bits(State::Enabled)),
    Row(SGI_FRAME + CLEAR_ENABLE..SGI_FRAME + CLEAR_ENABLE + 4, W, Access::Bits(State::Disabled)),
    Row(SGI_FRAME + SET_PENDING..SGI_FRAME + SET_PENDING + 4, W, Access::Bits(State::Pending)),
    Row(SGI_FRAME + CLEAR_PENDING..SGI_FRAME + CLEAR_PENDING + 4, W, Access::Bits(State::Pending)),
    Row(SGI_FRAME + SET_ACTIVE..SGI_FRAME + SET_ACTIVE + 4, W, Access::Bits(State::Active)),
    Row(SGI_FRAME + CLEAR_ACTIVE..SGI_FRAME + CLEAR_ACTIVE + 4, W, Access::Bits(State::Active)),
    Row(SGI_FRAME + PRIORITY..SGI_FRAME + PRIORITY + 32, BW, Access::Priorities),
    Row(SGI_FRAME + CONFIGURATION..SGI_FRAME + CONFIGURATION + 8, W, Access::Configuration),
];

/// GICD_CTLR: RWP 31, ARE_NS 4 (ARE 4 with one security state), DS 6: as hardware has them.
const CONTROL_FIXED: u64 = 1 << 31 | 1 << 6 | 1 << 4;
/// GICD_CTLR.EnableGrp1 (bit 1; EnableGrp1A for a non-secure access).
const CONTROL_ENABLE: u64 = 1 << 1;

/// GICR_WAKER.
const PROCESSOR_SLEEP: u64 = 1 << 1;
const CHILDREN_ASLEEP: u64 = 1 << 2;

/// An access of the owner, by the CPU whose resident vCPU is `vcpu`.
pub struct Accessor<'a, V: VirtualInterface, G: PhysicalGic> {
    /// The calling vCPU.
    pub vcpu: usize,
    /// What belongs to it.
    pub cpu: &'a mut OwnerCpu,
    /// Its list registers.
    pub vif: &'a mut V,
    /// The machine's GIC.
    pub gic: &'a G,
    /// The VM around it.
    pub host: &'a dyn OwnerHost,
}

impl OwnerGic {
    fn row(&self, frame: Frame, offset: u64, size: AccessSize) -> Option<Access> {
        let rows = match frame {
            Frame::Distributor => DISTRIBUTOR,
            Frame::Redistributor(index) if index < self.cpus.len() => REDISTRIBUTOR,
            Frame::Redistributor(_) => return None,
        };
        let row = rows.iter().find(|row| row.0.contains(&offset))?;
        (row.1.contains(&size) && offset.is_multiple_of(size.bytes())).then_some(row.2)
    }

    /// Private interrupts that an access to `frame` does not reach. While a vCPU is off its CPU the timers are another VM's,
    /// so that only their own CPU's access finds them.
    fn hidden(&self, frame: Frame, vcpu: usize) -> u32 {
        match frame {
            Frame::Distributor => 0,
            Frame::Redistributor(index) if index == vcpu => self.config.kept,
            Frame::Redistributor(_) => self.config.kept | self.config.timers,
        }
    }

    /// Bits of an access at `offset` to a register of `bits` bits an interrupt that are for interrupts out of `hidden`.
    fn hidden_bits(hidden: u32, offset: u64, bits: u32, size: AccessSize) -> u64 {
        // The first interrupt: only registers of private interrupts have hidden ones.
        let first = (offset & 0x7f) * 8 / u64::from(bits);
        (0..size.bits() / bits)
            .filter(|n| u64::from(hidden) >> (first + u64::from(*n)).min(63) & 1 != 0)
            .fold(0, |mask, n| mask | (u64::MAX >> (64 - bits)) << (n * bits))
    }

    /// What other vCPUs hold of `frame`'s interrupts, without being resident, is pending in hardware again.
    fn retract_others<V: VirtualInterface, G: PhysicalGic>(
        &self,
        frame: Frame,
        by: &Accessor<'_, V, G>,
        without: &IntidSet,
    ) {
        self.others_in(frame, by.vcpu).for_each(|other| by.host.retract(other, without));
    }

    /// The priority of a timer of the CPU that makes the access, if that is what is there.
    fn timer_priority<'a, V: VirtualInterface, G: PhysicalGic>(
        &self,
        frame: Frame,
        offset: u64,
        by: &'a mut Accessor<'_, V, G>,
    ) -> Option<&'a mut u8> {
        let intid = (offset - SGI_FRAME.min(offset)).checked_sub(PRIORITY)?;
        let is_here = frame == Frame::Redistributor(by.vcpu) && offset >= SGI_FRAME && self.is_timer(intid as u32);
        if is_here { by.cpu.timer_priorities.get_mut(intid as usize % 16) } else { None }
    }

    /// The owner has written these bits of its timers on its own CPU.
    fn note_timers(&self, register: u64, bits: u32, cpu: &mut OwnerCpu) {
        match register {
            SET_ENABLE => {
                cpu.timers_enabled |= bits;
                cpu.timers_off &= !bits;
            }
            CLEAR_ENABLE => {
                cpu.timers_enabled &= !bits;
                cpu.timers_off |= bits;
            }
            SET_ACTIVE => cpu.timers_active |= bits,
            _ => {}
        }
    }

    /// A load by the owner.
    pub fn read<V: VirtualInterface, G: PhysicalGic>(
        &self,
        frame: Frame,
        offset: u64,
        size: AccessSize,
        by: &mut Accessor<'_, V, G>,
    ) -> u64 {
        let Some(access) = self.row(frame, offset, size) else { return 0 };
        let hidden = self.hidden(frame, by.vcpu);
        match access {
            Access::Control => {
                let enable = if self.is_enabled() { CONTROL_ENABLE } else { 0 };
                by.gic.read(frame, offset, size) & CONTROL_FIXED | enable
            }
            Access::ReadOnly { hidden } => {
                by.gic.read(frame, offset, size) & !(if offset == GICR_TYPER_HIGH { hidden >> 32 } else { hidden })
            }
            Access::Bits(state) => {
                let value = match state {
                    State::Enabled | State::Disabled if frame == Frame::Redistributor(by.vcpu) => {
                        let timers = u64::from(self.config.timers);
                        by.gic.read(frame, offset, size) & !timers | u64::from(by.cpu.timers_enabled)
                    }
                    State::Enabled | State::Disabled => by.gic.read(frame, offset, size),
                    State::Pending | State::Active => {
                        self.settle_all(by.vcpu, by.cpu, by.vif, by.gic, by.host);
                        let held = self.held_by_others(frame, by.vcpu, by.host).word((offset as u32 & 0x7f) * 8);
                        let value = by.gic.read(frame, offset, size);
                        if state == State::Pending {
                            value | held
                        } else if frame == Frame::Redistributor(by.vcpu) {
                            value & !held | Self::active_sgis(by.cpu, by.vif)
                        } else {
                            value & !held
                        }
                    }
                };
                value & !u64::from(hidden)
            }
            Access::Priorities => {
                let value = by.gic.read(frame, offset, size) & !Self::hidden_bits(hidden, offset, 8, size);
                (0..size.bytes()).fold(value, |value, n| match self.timer_priority(frame, offset + n, by) {
                    Some(priority) => value & !(0xff << (8 * n)) | u64::from(*priority) << (8 * n),
                    None => value,
                })
            }
            Access::Configuration => by.gic.read(frame, offset, size) & !Self::hidden_bits(hidden, offset, 2, size),
            Access::Routing => by.gic.read(frame, offset, size),
            Access::Message => 0,
            Access::Waker => match frame {
                Frame::Redistributor(index) if self.cpus.get(index).is_some_and(|cpu| cpu.sleeps.load(SeqCst)) => {
                    PROCESSOR_SLEEP | CHILDREN_ASLEEP
                }
                _ => 0,
            },
        }
    }

    /// A store by the owner.
    pub fn write<V: VirtualInterface, G: PhysicalGic>(
        &self,
        frame: Frame,
        offset: u64,
        size: AccessSize,
        value: u64,
        by: &mut Accessor<'_, V, G>,
    ) {
        let Some(access) = self.row(frame, offset, size) else { return };
        let hidden = self.hidden(frame, by.vcpu);
        match access {
            Access::Control => {
                self.enabled.store(value & CONTROL_ENABLE != 0, SeqCst);
                // Those on their way wait in hardware meanwhile, or come now.
                self.settle_all(by.vcpu, by.cpu, by.vif, by.gic, by.host);
            }
            Access::ReadOnly { .. } => {}
            Access::Bits(state) => {
                if matches!(state, State::Pending | State::Active) {
                    self.settle_all(by.vcpu, by.cpu, by.vif, by.gic, by.host);
                }
                let register = offset & 0xfff & !0x7f;
                let value = value & !u64::from(hidden);
                let of_value = || IntidSet::of_word((offset as u32 & 0x7f) * 8, value);
                by.gic.write(frame, offset, size, value);
                if frame == Frame::Redistributor(by.vcpu) {
                    self.note_timers(register, value as u32 & self.config.timers, by.cpu);
                }
                if register == CLEAR_ACTIVE && [Frame::Distributor, Frame::Redistributor(by.vcpu)].contains(&frame) {
                    Self::end_active(&of_value(), by.cpu, by.vif);
                }
                if state == State::Disabled {
                    // Not before, or a CPU that has settled might acknowledge it again while it is enabled.
                    self.settle_all(by.vcpu, by.cpu, by.vif, by.gic, by.host);
                }
                // Those that are held elsewhere follow: a new pending state is one with the old, a cleared one takes it away.
                if state != State::Enabled && register != SET_ACTIVE {
                    let cleared = if register == CLEAR_PENDING { of_value() } else { IntidSet::EMPTY };
                    self.retract_others(frame, by, &cleared);
                }
            }
            Access::Priorities => {
                for n in 0..size.bytes() {
                    if self.timer_priority(frame, offset + n, by).is_some() {
                        // The bits that hardware has.
                        by.gic.write(frame, offset + n, AccessSize::Byte, value >> (8 * n) & 0xff);
                        let had = by.gic.read(frame, offset + n, AccessSize::Byte) as u8;
                        by.gic.write(frame, offset + n, AccessSize::Byte, self.config.timer_priority.into());
                        if let Some(priority) = self.timer_priority(frame, offset + n, by) {
                            *priority = had;
                        }
                    } else if Self::hidden_bits(hidden, offset + n, 8, AccessSize::Byte) == 0 {
                        by.gic.write(frame, offset + n, AccessSize::Byte, value >> (8 * n) & 0xff);
                    }
                }
            }
            Access::Configuration => {
                let kept = Self::hidden_bits(hidden, offset, 2, size);
                let old = if kept != 0 { by.gic.read(frame, offset, size) & kept } else { 0 };
                by.gic.write(frame, offset, size, value & !kept | old);
            }
            Access::Routing => {
                // One that is on its way to the old CPU goes to the new one.
                by.gic.write(frame, offset, size, value);
                self.settle_all(by.vcpu, by.cpu, by.vif, by.gic, by.host);
                self.retract_others(frame, by, &IntidSet::EMPTY);
            }
            Access::Message => {
                let intid = (value & MESSAGE_INTID) as u32;
                if (PRIVATE..super::INTERRUPTS).contains(&intid) {
                    self.settle_all(by.vcpu, by.cpu, by.vif, by.gic, by.host);
                    by.gic.write(frame, offset, size, intid.into());
                    let mut cleared = IntidSet::EMPTY;
                    if offset == CLEAR_MESSAGE {
                        cleared.insert(intid);
                    }
                    self.retract_others(frame, by, &cleared);
                }
            }
            Access::Waker => {
                if let Frame::Redistributor(index) = frame
                    && let Some(cpu) = self.cpus.get(index)
                {
                    cpu.sleeps.store(value & PROCESSOR_SLEEP != 0, SeqCst);
                }
            }
        }
    }
}
