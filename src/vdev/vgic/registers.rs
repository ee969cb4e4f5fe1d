//! The registers of the distributor and the redistributors, as tables; a GICv2's are in `v2`.
//!
//! A row is a range of offsets, the widths it takes, and what a read and a write do: for the guest, and, where that differs,
//! for whoever saves and restores the VM. What no row claims, a misaligned access or one of a wrong width reads as zero and
//! ignores writes, as in KVM.

pub mod v2;

use core::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use thiserror::Error;

use super::bank::{Bank, PRIORITY_MASK};
use super::lpi::{ID_BITS, Lpis, PENDBASER_PTZ};
use super::spi::intid_of;
use super::{LPI_HINT, PRIVATE_INTERRUPTS, Redistributor, Vgic, VgicHost, table_base};
use crate::vdev::mmio::AccessSize;

/// GICD_CTLR.
const CTLR: u64 = 0x0000;
/// GICD_TYPER.
const TYPER: u64 = 0x0004;
/// GICD_IIDR.Revision of a new VM, as KVM's latest.
pub(super) const REVISION_LATEST: u32 = 3;
/// The oldest revision that can be restored.
const REVISION_OLDEST: u32 = 2;
/// GICD_IIDR and GICR_IIDR without the revision: product 'K', implementer Arm: KVM's.
const IIDR: u64 = 0x4b00_043b;
/// GICD_IIDR.Revision, bits 15:12.
const IIDR_REVISION_SHIFT: u32 = 12;
/// GICD_PIDR2 and GICR_PIDR2: GICv3 (IHI 0069 §12.9).
const PIDR2: u64 = 0x3b;
/// Where PIDR2 is among the identification registers, which start at 0xffd0.
const PIDR2_OFFSET: usize = 0xffe8 - 0xffd0;
/// GICD_CTLR.EnableGrp1.
const CTLR_ENABLE_GROUP1: u64 = 1 << 1;
/// GICD_CTLR.ARE_NS and DS, which are always set.
const CTLR_ARE_DS: u64 = 1 << 4 | 1 << 6;
/// GICD_TYPER.IDbits, 23:19: INTIDs have 10 bits.
const TYPER_ID_BITS: u32 = 9 << 19;
/// GICD_TYPER with LPIs: LPIS, and INTIDs of [`ID_BITS`] bits.
const TYPER_LPIS: u32 = 1 << 17 | (ID_BITS - 1) << 19;
/// GICR_CTLR.CES and IR, which revision 3 shows.
const GICR_CTLR_CES_IR: u64 = 1 << 1 | 1 << 2;
/// GICR_CTLR.EnableLPIs.
const GICR_CTLR_ENABLE_LPIS: u64 = 1 << 0;
/// GICR_TYPER.PLPIS.
const GICR_TYPER_PLPIS: u64 = 1 << 0;
/// GICR_PROPBASER without its reserved bits (IHI 0069 §12.11).
const PROPBASER_KEPT: u64 = 7 << 56 | 0x000f_ffff_ffff_f000 | 3 << 10 | 7 << 7 | 0x1f;
/// GICR_PENDBASER without its reserved bits.
const PENDBASER_KEPT: u64 = PENDBASER_PTZ | 7 << 56 | 0x000f_ffff_ffff_0000 | 3 << 10 | 7 << 7;
/// GICR_TYPER.Last.
const GICR_TYPER_LAST: u64 = 1 << 4;
/// Aff2–Aff0 of an affinity.
const AFFINITY_LOW: u64 = 0xff_ffff;

/// GICD_TYPER of a GIC with this many words of SPIs.
pub(super) const fn typer(words: usize, lpis: bool) -> u32 {
    words as u32 | if lpis { TYPER_LPIS } else { TYPER_ID_BITS }
}

/// A block of registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The distributor, 64 KiB.
    Distributor,
    /// The redistributor of the vCPU with this index: RD and SGI frames, 128 KiB.
    Redistributor(usize),
    /// The distributor of a GICv2 as the vCPU with this index sees it, 4 KiB.
    DistributorV2(usize),
}

/// Why a register cannot be accessed for save or restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UserAccessError {
    /// No such register, no such vCPU, or the offset is not a multiple of 4 (KVM: -ENXIO).
    #[error("no register there")]
    Unknown,
    /// A value that the register does not take (KVM: -EINVAL).
    #[error("a value that the register does not take")]
    Invalid,
}

/// One access, with its offset made relative to the row.
struct Access<'a> {
    frame: Frame,
    offset: usize,
    size: AccessSize,
    host: &'a dyn VgicHost,
}

/// The widths that a row takes.
#[derive(Clone, Copy)]
enum Width {
    Word,
    WordOrByte,
    WordOrDouble,
}

impl Width {
    fn takes(self, size: AccessSize) -> bool {
        match size {
            AccessSize::Word => true,
            AccessSize::Byte => matches!(self, Self::WordOrByte),
            AccessSize::Double => matches!(self, Self::WordOrDouble),
            AccessSize::Half => false,
        }
    }
}

type Read = fn(&Vgic, &Access<'_>) -> u64;
type Write = fn(&Vgic, &Access<'_>, u64);

/// What a write for restoring does.
#[derive(Clone, Copy)]
enum UserWrite {
    /// What the guest's does.
    Same,
    As(Write),
    /// May refuse the value.
    Checked(fn(&Vgic, u64) -> bool),
}

#[derive(Clone, Copy)]
struct Row {
    start: u64,
    length: u64,
    width: Width,
    read: Read,
    write: Write,
    /// The read for saving; `None`: what the guest's does.
    user_read: Option<Read>,
    user_write: UserWrite,
}

impl Row {
    const fn user(mut self, read: Option<Read>, write: UserWrite) -> Self {
        self.user_read = read;
        self.user_write = write;
        self
    }
}

const fn row(start: u64, length: u64, width: Width, read: Read, write: Write) -> Row {
    Row { start, length, width, read, write, user_read: None, user_write: UserWrite::Same }
}

use Width::{Word, WordOrByte, WordOrDouble};

/// The distributor (IHI 0069 §12.9), the most read registers first.
const DISTRIBUTOR: &[Row] = &[
    /* CTLR       */ row(CTLR, 4, Word, read_ctlr, write_ctlr),
    /* TYPER      */ row(TYPER, 4, Word, read_typer, ignore),
    /* ISENABLER  */ row(0x0100, 0x80, Word, read_enabled, set_enabled),
    /* ICENABLER  */ row(0x0180, 0x80, Word, read_enabled, clear_enabled),
    /* ISPENDR    */
    row(0x0200, 0x80, Word, read_pending, set_pending).user(Some(read_latches), UserWrite::As(write_latches)),
    /* ICPENDR    */
    row(0x0280, 0x80, Word, read_pending, clear_pending).user(Some(zero), UserWrite::As(ignore)),
    /* ISACTIVER  */
    row(0x0300, 0x80, Word, read_active, set_active).user(None, UserWrite::As(restore_active)),
    /* ICACTIVER  */ row(0x0380, 0x80, Word, read_active, clear_active),
    /* IPRIORITYR */ row(0x0400, 0x400, WordOrByte, read_priority, write_priority),
    /* ITARGETSR  */ row(0x0800, 0x400, WordOrByte, zero, ignore),
    /* ICFGR      */ row(0x0c00, 0x100, Word, read_config, write_config),
    /* IROUTER    */
    row(0x6000, 0x2000, WordOrDouble, read_route, write_route).user(None, UserWrite::As(restore_route)),
    /* IGROUPR    */ row(0x0080, 0x80, Word, read_group, write_group),
    /* IGRPMODR   */ row(0x0d00, 0x80, Word, zero, ignore),
    /* IIDR       */ row(0x0008, 4, Word, read_iidr, ignore).user(None, UserWrite::Checked(set_revision)),
    /* TYPER2     */ row(0x000c, 4, Word, zero, ignore).user(None, UserWrite::Checked(is_zero)),
    /* STATUSR    */ row(0x0010, 4, Word, ones, ignore),
    /* ID         */ row(0xffd0, 0x30, Word, read_id, ignore),
];

/// The redistributors (IHI 0069 §12.11): the RD frame, and the SGI frame at 0x1_0000. Registers of LPIs read as zero where there
/// are none.
const REDISTRIBUTOR: &[Row] = &[
    /* CTLR       */ row(0x0_0000, 4, Word, read_redistributor_ctlr, write_redistributor_ctlr),
    /* TYPER      */ row(0x0_0008, 8, WordOrDouble, read_redistributor_typer, ignore),
    /* WAKER      */ row(0x0_0014, 4, Word, zero, ignore),
    /* ISENABLER0 */ row(0x1_0100, 4, Word, read_enabled, set_enabled),
    /* ICENABLER0 */ row(0x1_0180, 4, Word, read_enabled, clear_enabled),
    /* ISPENDR0   */
    row(0x1_0200, 4, Word, read_pending, set_pending).user(Some(read_latches), UserWrite::As(write_latches)),
    /* ICPENDR0   */ row(0x1_0280, 4, Word, read_pending, clear_pending).user(Some(zero), UserWrite::As(ignore)),
    /* ISACTIVER0 */ row(0x1_0300, 4, Word, read_active, set_active),
    /* ICACTIVER0 */ row(0x1_0380, 4, Word, read_active, clear_active),
    /* IPRIORITYR */ row(0x1_0400, 0x20, WordOrByte, read_priority, write_priority),
    /* ICFGR0–1   */ row(0x1_0c00, 8, Word, read_config, ignore),
    /* IGROUPR0   */ row(0x1_0080, 4, Word, read_group, write_group),
    /* IGRPMODR0  */ row(0x1_0d00, 4, Word, zero, ignore),
    /* NSACR      */ row(0x1_0e00, 4, Word, zero, ignore),
    /* IIDR       */ row(0x0_0004, 4, Word, read_redistributor_iidr, ignore),
    /* STATUSR    */ row(0x0_0010, 4, Word, zero, ignore),
    /* PROPBASER  */ row(0x0_0070, 8, WordOrDouble, read_propbaser, write_propbaser),
    /* PENDBASER  */ row(0x0_0078, 8, WordOrDouble, read_pendbaser, write_pendbaser),
    /* INVLPIR    */ row(0x0_00a0, 8, WordOrDouble, zero, invalidate_lpi),
    /* INVALLR    */ row(0x0_00b0, 8, WordOrDouble, zero, invalidate_all_lpis),
    /* SYNCR      */ row(0x0_00c0, 4, Word, zero, ignore),
    /* ID         */ row(0x0_ffd0, 0x30, Word, read_id, ignore),
];

/// The interrupts of one word: of a vCPU, or word n of the SPIs.
#[derive(Clone, Copy)]
enum Scope {
    Private(usize),
    Shared(usize),
}

/// A host for accesses while no vCPU runs.
struct Stopped;

impl VgicHost for Stopped {
    fn kick(&self, _: usize) {}
    fn sync(&self, _: usize) {}
}

impl Vgic {
    /// A read by the guest at `offset` in the distributor's 64 KiB. What is not there reads as zero.
    #[inline(always)]
    pub fn dist_read(&self, offset: u64, size: AccessSize, host: &dyn VgicHost) -> u64 {
        self.guest_read(Frame::Distributor, offset, size, host)
    }

    /// The read of the word at `offset` of the distributor, if it needs no more than a look at the VM; `None` for what
    /// [`dist_read`](Self::dist_read) has to be asked for.
    #[inline(always)]
    pub fn dist_peek(&self, offset: u64) -> Option<u32> {
        let value = match offset {
            CTLR => self.ctlr(),
            TYPER => self.typer(),
            _ => return None,
        };
        Some(value as u32)
    }

    fn ctlr(&self) -> u64 {
        CTLR_ARE_DS | if self.enabled.load(SeqCst) { CTLR_ENABLE_GROUP1 } else { 0 }
    }

    fn typer(&self) -> u64 {
        self.typer.load(Relaxed).into()
    }

    /// A write by the guest at `offset` in the distributor's 64 KiB. What is not there ignores it.
    #[inline(always)]
    pub fn dist_write(&self, offset: u64, size: AccessSize, value: u64, host: &dyn VgicHost) {
        self.guest_write(Frame::Distributor, offset, size, value, host);
    }

    /// A read by the guest at `offset` in the 128 KiB of `target`'s redistributor, by whatever vCPU.
    #[inline(always)]
    pub fn redist_read(&self, target: usize, offset: u64, size: AccessSize, host: &dyn VgicHost) -> u64 {
        self.guest_read(Frame::Redistributor(target), offset, size, host)
    }

    /// A write by the guest at `offset` in the 128 KiB of `target`'s redistributor, by whatever vCPU.
    #[inline(always)]
    pub fn redist_write(&self, target: usize, offset: u64, size: AccessSize, value: u64, host: &dyn VgicHost) {
        self.guest_write(Frame::Redistributor(target), offset, size, value, host);
    }

    /// Reads the 32-bit register at `offset` to save it; differs from the guest's read where KVM's does (arm-vgic-v3.rst). No
    /// vCPU may be resident.
    ///
    /// # Errors
    ///
    /// [`UserAccessError::Unknown`].
    #[inline(never)]
    pub fn user_read(&self, frame: Frame, offset: u64) -> Result<u32, UserAccessError> {
        let row = self.find(frame, offset, AccessSize::Word).ok_or(UserAccessError::Unknown)?;
        let access = access(row, frame, offset, AccessSize::Word, &Stopped);
        Ok(part(row.user_read.unwrap_or(row.read)(self, &access), row, &access) as u32)
    }

    /// Writes the 32-bit register at `offset` to restore it. No vCPU may be resident.
    ///
    /// # Errors
    ///
    /// [`UserAccessError::Unknown`], and [`UserAccessError::Invalid`] for an IIDR or TYPER2 of another GIC.
    #[inline(never)]
    pub fn user_write(&self, frame: Frame, offset: u64, value: u32) -> Result<(), UserAccessError> {
        let row = self.find(frame, offset, AccessSize::Word).ok_or(UserAccessError::Unknown)?;
        let access = access(row, frame, offset, AccessSize::Word, &Stopped);
        match row.user_write {
            UserWrite::Same => (row.write)(self, &access, u64::from(value)),
            UserWrite::As(write) => write(self, &access, u64::from(value)),
            UserWrite::Checked(write) if write(self, u64::from(value)) => {}
            UserWrite::Checked(_) => return Err(UserAccessError::Invalid),
        }
        Ok(())
    }

    #[inline(always)]
    fn find(&self, frame: Frame, offset: u64, size: AccessSize) -> Option<&'static Row> {
        let rows = match frame {
            Frame::Distributor => DISTRIBUTOR,
            Frame::Redistributor(vcpu) if vcpu < self.vcpus() => REDISTRIBUTOR,
            Frame::DistributorV2(vcpu) if vcpu < self.vcpus() => v2::DISTRIBUTOR,
            Frame::Redistributor(_) | Frame::DistributorV2(_) => return None,
        };
        find(rows, offset, size)
    }

    #[inline(always)]
    fn guest_read(&self, frame: Frame, offset: u64, size: AccessSize, host: &dyn VgicHost) -> u64 {
        self.find(frame, offset, size).map_or(0, |row| {
            let access = access(row, frame, offset, size, host);
            part((row.read)(self, &access), row, &access)
        })
    }

    #[inline(always)]
    fn guest_write(&self, frame: Frame, offset: u64, size: AccessSize, value: u64, host: &dyn VgicHost) {
        if let Some(row) = self.find(frame, offset, size) {
            (row.write)(self, &access(row, frame, offset, size, host), value & size.mask());
        }
    }

    /// The levels of the lines `intid` (a multiple of 32) and on, private ones those of `vcpu`, as
    /// KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO has them: of level-sensitive interrupts. No vCPU may be resident.
    pub fn line_levels(&self, vcpu: usize, intid: u32) -> u32 {
        self.lines(vcpu, intid).map_or(0, |(bank, _, lines)| bank.level.load(SeqCst) & !bank.edge.load(SeqCst) & lines)
    }

    /// Sets the levels of lines, as [`line_levels`](Self::line_levels) reads them; nothing is latched.
    pub fn set_line_levels(&self, vcpu: usize, intid: u32, levels: u32, host: &dyn VgicHost) {
        if let Some((bank, scope, lines)) = self.lines(vcpu, intid) {
            bank.level.fetch_and(!lines | levels, SeqCst);
            bank.level.fetch_or(levels & lines, SeqCst);
            self.changed(scope, lines, host);
        }
    }

    /// The interrupts `intid` and on, and those of them that have a line.
    fn lines(&self, vcpu: usize, intid: u32) -> Option<(&Bank, Scope, u32)> {
        let frame = if intid < PRIVATE_INTERRUPTS { Frame::Redistributor(vcpu) } else { Frame::Distributor };
        let (bank, scope) = self.bank_in(frame, intid as usize / 32)?;
        Some((bank, scope, if intid < PRIVATE_INTERRUPTS { 0xffff_0000 } else { u32::MAX }))
    }

    /// The interrupts 32 * `word` and on, if they are in this frame.
    fn bank_in(&self, frame: Frame, word: usize) -> Option<(&Bank, Scope)> {
        match frame {
            Frame::Distributor => {
                let shared = word.checked_sub(1)?;
                Some((self.spis.bank(shared)?, Scope::Shared(shared)))
            }
            Frame::Redistributor(vcpu) if word == 0 => {
                Some((&self.redistributors.get(vcpu)?.private, Scope::Private(vcpu)))
            }
            Frame::Redistributor(_) => None,
            Frame::DistributorV2(vcpu) if word == 0 => self.bank_in(Frame::Redistributor(vcpu), 0),
            Frame::DistributorV2(_) => self.bank_in(Frame::Distributor, word),
        }
    }

    /// The interrupts of a register with one bit for each.
    fn bank_of_bits(&self, access: &Access<'_>) -> Option<(&Bank, Scope)> {
        self.bank_in(access.frame, access.offset / 4)
    }

    /// Tells whom it concerns that something about the interrupts `mask` has changed.
    fn changed(&self, scope: Scope, mask: u32, host: &dyn VgicHost) {
        match scope {
            _ if mask == 0 => {}
            Scope::Private(vcpu) => self.notify(vcpu, host),
            Scope::Shared(word) => self.spis_changed(word, mask, host),
        }
    }

    /// Has the list registers folded back that hold interrupts of `bank`, and mapped lines sampled.
    fn sync_holders(&self, bank: &Bank, scope: Scope, host: &dyn VgicHost) {
        let mut loaded = bank.loaded.load(SeqCst);
        match scope {
            Scope::Private(vcpu) => {
                let physical_active = |redistributor: &Redistributor| redistributor.physical_active.load(SeqCst);
                if loaded | self.redistributors.get(vcpu).map_or(0, physical_active) != 0 {
                    host.sync(vcpu);
                }
            }
            Scope::Shared(word) => {
                let mut last = None;
                while loaded != 0 {
                    let holder = self.spis.holder(intid_of(word, loaded.trailing_zeros()));
                    loaded &= loaded - 1;
                    if let Some(vcpu) = holder
                        && holder != last
                    {
                        last = holder;
                        host.sync(vcpu);
                    }
                }
            }
        }
    }
}

impl Frame {
    /// Whether there is a 32-bit register for save and restore at `offset`.
    #[inline(never)]
    pub fn has(self, offset: u64) -> bool {
        let rows = match self {
            Self::Distributor => DISTRIBUTOR,
            Self::Redistributor(_) => REDISTRIBUTOR,
            Self::DistributorV2(_) => v2::DISTRIBUTOR,
        };
        find(rows, offset, AccessSize::Word).is_some()
    }
}

#[inline(always)]
fn find(rows: &'static [Row], offset: u64, size: AccessSize) -> Option<&'static Row> {
    let row = rows.iter().find(|row| offset.wrapping_sub(row.start) < row.length)?;
    (row.width.takes(size) && offset & (size.bytes() - 1) == 0).then_some(row)
}

fn access<'a>(row: &Row, frame: Frame, offset: u64, size: AccessSize, host: &'a dyn VgicHost) -> Access<'a> {
    Access { frame, offset: (offset - row.start) as usize, size, host }
}

/// The part of what a row's read gave that the access asked for: half of a 64-bit register for a word.
fn part(value: u64, row: &Row, access: &Access<'_>) -> u64 {
    let upper_half = matches!(row.width, WordOrDouble) && access.offset & 4 != 0;
    (if upper_half { value >> 32 } else { value }) & access.size.mask()
}

fn zero(_: &Vgic, _: &Access<'_>) -> u64 {
    0
}

/// What is restored to a register that is zero has to be what was saved.
fn is_zero(_: &Vgic, value: u64) -> bool {
    value == 0
}

fn ones(_: &Vgic, _: &Access<'_>) -> u64 {
    u64::MAX
}

fn ignore(_: &Vgic, _: &Access<'_>, _: u64) {}

fn read_ctlr(vgic: &Vgic, _: &Access<'_>) -> u64 {
    vgic.ctlr()
}

fn write_ctlr(vgic: &Vgic, access: &Access<'_>, value: u64) {
    set_forwarding(vgic, value & CTLR_ENABLE_GROUP1 != 0, access.host);
}

/// Lets interrupts through to the CPU interfaces, or none.
fn set_forwarding(vgic: &Vgic, enable: bool, host: &dyn VgicHost) {
    if vgic.enabled.swap(enable, SeqCst) != enable {
        let lpis = if vgic.lpis.is_completed() { LPI_HINT } else { 0 };
        let all = u32::MAX >> (32 - vgic.spis.words() as u32) | lpis;
        for (vcpu, redistributor) in vgic.redistributors.iter().enumerate() {
            redistributor.spi_hint.fetch_or(all, SeqCst);
            vgic.notify(vcpu, host);
        }
    }
}

fn read_typer(vgic: &Vgic, _: &Access<'_>) -> u64 {
    vgic.typer()
}

fn read_iidr(vgic: &Vgic, _: &Access<'_>) -> u64 {
    IIDR | u64::from(vgic.revision.load(SeqCst)) << IIDR_REVISION_SHIFT
}

fn set_revision(vgic: &Vgic, value: u64) -> bool {
    let revision = (value >> IIDR_REVISION_SHIFT & 0xf) as u32;
    let known =
        value & !(0xf << IIDR_REVISION_SHIFT) == IIDR && (REVISION_OLDEST..=REVISION_LATEST).contains(&revision);
    if known {
        vgic.revision.store(revision, SeqCst);
    }
    known
}

fn read_id(_: &Vgic, access: &Access<'_>) -> u64 {
    if access.offset == PIDR2_OFFSET { PIDR2 } else { 0 }
}

fn read_redistributor_ctlr(vgic: &Vgic, access: &Access<'_>) -> u64 {
    let enabled = lpis_of(vgic, access).is_some_and(|(lpis, vcpu)| lpis.enabled(vcpu));
    let fixed = if vgic.revision.load(SeqCst) >= 3 { GICR_CTLR_CES_IR } else { 0 };
    fixed | if enabled { GICR_CTLR_ENABLE_LPIS } else { 0 }
}

fn write_redistributor_ctlr(vgic: &Vgic, access: &Access<'_>, value: u64) {
    if let Some((_, vcpu)) = lpis_of(vgic, access) {
        vgic.enable_lpis(vcpu, value & GICR_CTLR_ENABLE_LPIS != 0, access.host);
    }
}

/// The VM's LPIs, if it has them, and the vCPU whose redistributor is accessed.
fn lpis_of<'a>(vgic: &'a Vgic, access: &Access<'_>) -> Option<(&'a Lpis, usize)> {
    match access.frame {
        Frame::Redistributor(vcpu) => Some((vgic.lpis.get()?, vcpu)),
        Frame::Distributor | Frame::DistributorV2(_) => None,
    }
}

fn read_propbaser(vgic: &Vgic, access: &Access<'_>) -> u64 {
    lpis_of(vgic, access).map_or(0, |(lpis, _)| lpis.propbaser().load(SeqCst))
}

/// The tables of a vCPU are fixed while its LPIs are enabled (UNPREDICTABLE, and KVM's choice).
fn write_propbaser(vgic: &Vgic, access: &Access<'_>, value: u64) {
    if let Some((lpis, _)) = lpis_of(vgic, access).filter(|(lpis, vcpu)| !lpis.enabled(*vcpu)) {
        store_base(lpis.propbaser(), access, value, PROPBASER_KEPT);
    }
}

fn read_pendbaser(vgic: &Vgic, access: &Access<'_>) -> u64 {
    let pendbaser = lpis_of(vgic, access).and_then(|(lpis, vcpu)| lpis.pendbaser(vcpu));
    pendbaser.map_or(0, |pendbaser| pendbaser.load(SeqCst) & !PENDBASER_PTZ)
}

fn write_pendbaser(vgic: &Vgic, access: &Access<'_>, value: u64) {
    let free = lpis_of(vgic, access).filter(|(lpis, vcpu)| !lpis.enabled(*vcpu));
    if let Some(pendbaser) = free.and_then(|(lpis, vcpu)| lpis.pendbaser(vcpu)) {
        store_base(pendbaser, access, value, PENDBASER_KEPT);
    }
}

fn store_base(register: &AtomicU64, access: &Access<'_>, value: u64, kept: u64) {
    let value = table_base::merge(register.load(SeqCst), access.offset, access.size, value) & kept;
    register.store(table_base::sanitise(value, &table_base::REDISTRIBUTOR), SeqCst);
}

/// The upper half of INVLPIR and INVALLR is about virtual LPIs, which there are not (IHI 0069 §12.11).
fn invalidate_lpi(vgic: &Vgic, access: &Access<'_>, value: u64) {
    if access.offset & 4 == 0 && lpis_of(vgic, access).is_some_and(|(lpis, vcpu)| lpis.enabled(vcpu)) {
        vgic.invalidate_lpi(value as u32, access.host);
    }
}

fn invalidate_all_lpis(vgic: &Vgic, access: &Access<'_>, _: u64) {
    if access.offset & 4 == 0
        && let Some((_, vcpu)) = lpis_of(vgic, access).filter(|(lpis, vcpu)| lpis.enabled(*vcpu))
    {
        vgic.invalidate_all_lpis(vcpu, access.host);
    }
}

fn read_redistributor_iidr(_: &Vgic, _: &Access<'_>) -> u64 {
    IIDR
}

fn read_redistributor_typer(vgic: &Vgic, access: &Access<'_>) -> u64 {
    let Frame::Redistributor(vcpu) = access.frame else { return 0 };
    let Some(own) = vgic.redistributors.get(vcpu) else { return 0 };
    let affinity = own.affinity.load(Relaxed) & AFFINITY_LOW;
    let last = if own.is_last.load(Relaxed) { GICR_TYPER_LAST } else { 0 };
    let lpis = if vgic.lpis.is_completed() { GICR_TYPER_PLPIS } else { 0 };
    affinity << 32 | (vcpu as u64 & 0xffff) << 8 | last | lpis
}

fn read_group(vgic: &Vgic, access: &Access<'_>) -> u64 {
    vgic.bank_of_bits(access).map_or(0, |(bank, _)| bank.group.load(SeqCst).into())
}

fn write_group(vgic: &Vgic, access: &Access<'_>, value: u64) {
    if let Some((bank, scope)) = vgic.bank_of_bits(access) {
        let before = bank.group.swap(value as u32, SeqCst);
        vgic.changed(scope, before ^ value as u32, access.host);
    }
}

fn read_enabled(vgic: &Vgic, access: &Access<'_>) -> u64 {
    vgic.bank_of_bits(access).map_or(0, |(bank, _)| bank.enabled.load(SeqCst).into())
}

fn set_enabled(vgic: &Vgic, access: &Access<'_>, value: u64) {
    if let Some((bank, scope)) = vgic.bank_of_bits(access) {
        let before = bank.enabled.fetch_or(value as u32, SeqCst);
        vgic.changed(scope, value as u32 & !before, access.host);
    }
}

fn clear_enabled(vgic: &Vgic, access: &Access<'_>, value: u64) {
    if let Some((bank, scope)) = vgic.bank_of_bits(access) {
        let before = bank.enabled.fetch_and(!value as u32, SeqCst);
        vgic.changed(scope, value as u32 & before, access.host);
    }
}

fn read_pending(vgic: &Vgic, access: &Access<'_>) -> u64 {
    vgic.bank_of_bits(access).map_or(0, |(bank, scope)| {
        vgic.sync_holders(bank, scope, access.host);
        bank.pending_or_held().into()
    })
}

fn set_pending(vgic: &Vgic, access: &Access<'_>, value: u64) {
    if let Some((bank, scope)) = vgic.bank_of_bits(access) {
        bank.set_latch(value as u32);
        vgic.changed(scope, value as u32, access.host);
    }
}

fn clear_pending(vgic: &Vgic, access: &Access<'_>, value: u64) {
    if let Some((bank, scope)) = vgic.bank_of_bits(access) {
        bank.withdraw(value as u32);
        if let Scope::Private(vcpu) = scope
            && let Some(redistributor) = vgic.redistributors.get(vcpu)
        {
            // The flush that follows deactivates the physical interrupt; if its line is high it tells again.
            bank.level.fetch_and(!(value as u32 & redistributor.mapped.load(SeqCst)), SeqCst);
        }
        vgic.changed(scope, value as u32, access.host);
    }
}

fn read_latches(vgic: &Vgic, access: &Access<'_>) -> u64 {
    vgic.bank_of_bits(access).map_or(0, |(bank, _)| bank.latched().into())
}

fn write_latches(vgic: &Vgic, access: &Access<'_>, value: u64) {
    if let Some((bank, scope)) = vgic.bank_of_bits(access) {
        bank.replace_latches(value as u32);
        vgic.changed(scope, u32::MAX, access.host);
    }
}

fn read_active(vgic: &Vgic, access: &Access<'_>) -> u64 {
    vgic.bank_of_bits(access).map_or(0, |(bank, scope)| {
        vgic.sync_holders(bank, scope, access.host);
        bank.active().into()
    })
}

fn set_active(vgic: &Vgic, access: &Access<'_>, value: u64) {
    if let Some((bank, scope)) = vgic.bank_of_bits(access) {
        bank.write_active(value as u32, true);
        vgic.changed(scope, value as u32, access.host);
    }
}

/// What is restored as active is in service at the vCPU that it goes to, whatever IROUTER becomes later, as in KVM.
fn restore_active(vgic: &Vgic, access: &Access<'_>, value: u64) {
    set_active(vgic, access, value);
    if let Some((_, Scope::Shared(word))) = vgic.bank_of_bits(access) {
        vgic.park_spis(word, value as u32);
    }
}

fn restore_route(vgic: &Vgic, access: &Access<'_>, value: u64) {
    write_route(vgic, access, value);
    if let Some(spi) = routed(access).checked_sub(PRIVATE_INTERRUPTS) {
        vgic.park_spis(spi as usize / 32, 1 << (spi % 32));
    }
}

fn clear_active(vgic: &Vgic, access: &Access<'_>, value: u64) {
    if let Some((bank, scope)) = vgic.bank_of_bits(access) {
        bank.write_active(value as u32, false);
        if let Scope::Shared(word) = scope {
            vgic.unpark_spis(word, value as u32);
        }
        vgic.changed(scope, value as u32, access.host);
    }
}

/// The interrupts whose priorities an access covers: their bank, the index of the first in it, and how many.
fn bank_of_bytes<'a>(vgic: &'a Vgic, access: &Access<'_>) -> Option<(&'a Bank, Scope, u32, u32)> {
    let (bank, scope) = vgic.bank_in(access.frame, access.offset / 32)?;
    Some((bank, scope, (access.offset % 32) as u32, access.size.bytes() as u32))
}

fn read_priority(vgic: &Vgic, access: &Access<'_>) -> u64 {
    bank_of_bytes(vgic, access).map_or(0, |(bank, _, first, count)| {
        (0..count).fold(0, |value, n| value | u64::from(bank.priority(first + n, SeqCst)) << (8 * n))
    })
}

fn write_priority(vgic: &Vgic, access: &Access<'_>, value: u64) {
    if let Some((bank, scope, first, count)) = bank_of_bytes(vgic, access) {
        let mut changed = 0;
        for n in 0..count {
            if bank.set_priority(first + n, (value >> (8 * n)) as u8 & PRIORITY_MASK) {
                changed |= 1 << (first + n);
            }
        }
        vgic.changed(scope, changed, access.host);
    }
}

/// The interrupts that a word of ICFGR covers: their bank, and the index of the first of the 16 in it.
fn bank_of_pairs<'a>(vgic: &'a Vgic, access: &Access<'_>) -> Option<(&'a Bank, Scope, u32)> {
    let (bank, scope) = vgic.bank_in(access.frame, access.offset / 8)?;
    Some((bank, scope, (access.offset % 8) as u32 * 4))
}

fn read_config(vgic: &Vgic, access: &Access<'_>) -> u64 {
    bank_of_pairs(vgic, access).map_or(0, |(bank, _, first)| {
        let edge = bank.edge.load(SeqCst) >> first;
        (0..16).fold(0, |value, n| value | u64::from(edge >> n & 1) << (2 * n + 1))
    })
}

fn write_config(vgic: &Vgic, access: &Access<'_>, value: u64) {
    if let Some((bank, scope, first)) = bank_of_pairs(vgic, access) {
        let edge = (0..16).fold(0, |edge, n| edge | ((value >> (2 * n + 1) & 1) as u32) << (first + n));
        let covered = 0xffff << first;
        // Two operations: between them an interrupt that stays edge-triggered stays so.
        let before = bank.edge.fetch_or(edge, SeqCst);
        bank.edge.fetch_and(edge | !covered, SeqCst);
        vgic.changed(scope, (before ^ edge) & covered, access.host);
    }
}

/// The INTID of an IROUTER.
fn routed(access: &Access<'_>) -> u32 {
    (access.offset / 8) as u32
}

fn read_route(vgic: &Vgic, access: &Access<'_>) -> u64 {
    vgic.spis.irouter(routed(access)).unwrap_or(0)
}

fn write_route(vgic: &Vgic, access: &Access<'_>, value: u64) {
    // The upper half, Aff3, is not kept.
    if access.offset & 4 == 0 {
        vgic.route_spi(routed(access), value, access.host);
    }
}
