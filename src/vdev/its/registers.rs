//! The registers of the ITS, as a table (IHI 0069 §12.18, §12.19).
//!
//! What no row claims, a misaligned access or one of a wrong width reads as zero and ignores writes, as in KVM. That goes
//! for GITS_TRANSLATER too: a CPU that writes it has no DeviceID; devices send their MSIs by [`Its::send_msi`].

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use thiserror::Error;

use super::Its;
use super::commands::COMMAND_BYTES;
use crate::vdev::mmio::AccessSize;
use crate::vdev::vgic::table_base::{Attributes, merge, sanitise};
use crate::vdev::vgic::{ID_BITS, Vgic, VgicHost};

/// Bytes of the control frame and the translation frame.
pub const LENGTH: u64 = 0x2_0000;

/// GITS_IIDR: product 'K', implementer Arm: KVM's; the revision of the tables' format, 15:12, is 0.
const IIDR: u64 = 0x4b00_043b;
/// GITS_IIDR.Revision.
const IIDR_REVISION: u64 = 0xf000;
/// Bits of a DeviceID.
pub(super) const DEVICE_BITS: u32 = 16;
/// Bytes of an entry of any of the tables.
pub(super) const ENTRY_BYTES: u64 = 8;
/// GITS_TYPER: physical LPIs, ITT_entry_size (7:4), ID_bits (12:8), Devbits (17:13), each less one. PTA is 0: a target is
/// the number of a vCPU.
const TYPER: u64 = 1 | (ENTRY_BYTES - 1) << 4 | (ID_BITS as u64 - 1) << 8 | (DEVICE_BITS as u64 - 1) << 13;

/// GITS_CTLR.Enabled.
const CTLR_ENABLED: u64 = 1;
/// GITS_CTLR.Quiescent.
const CTLR_QUIESCENT: u64 = 1 << 31;

/// GITS_BASER.Valid and GITS_CBASER.Valid.
pub(super) const BASER_VALID: u64 = 1 << 63;
/// GITS_BASER.Indirect: two levels.
pub(super) const BASER_INDIRECT: u64 = 1 << 62;
/// GITS_BASER.Type and Entry_Size, which are read-only.
const BASER_FIXED: u64 = 7 << 56 | 0x1f << 48;
/// GITS_BASER.Page_Size, of which there is one: 64 KiB.
const BASER_PAGE_SIZE: u64 = 3 << 8;
const BASER_PAGE_64K: u64 = 2 << 8;
/// Bytes of a page of a table.
pub(super) const PAGE_BYTES: u64 = 0x1_0000;
const BASER_ATTRIBUTES: Attributes = Attributes { inner: 59, outer: 53, shareability: 10 };

/// GITS_BASER.Type of the device table.
pub(super) const DEVICES: u64 = 1;
/// GITS_BASER.Type of the collection table.
pub(super) const COLLECTIONS: u64 = 4;

/// GITS_CBASER: Valid, attributes, address 51:16, size.
const CBASER_KEPT: u64 = 1 << 63 | 7 << 59 | 7 << 53 | 0x000f_ffff_ffff_0000 | 3 << 10 | 0xff;

/// A GITS_BASER at reset: its type, and the attributes that KVM starts with.
pub(super) const fn baser_reset(table: u64) -> u64 {
    table << 56 | (ENTRY_BYTES - 1) << 48 | 3 << 59 | 1 << 10 | BASER_PAGE_64K
}

/// Where a table is: bits 47:16, and 51:48 in 15:12 (64 KiB pages).
pub(super) fn table_address(baser: u64) -> u64 {
    baser & 0x0000_ffff_ffff_0000 | (baser >> 12 & 0xf) << 48
}

/// Bytes of a table, or of its first level.
pub(super) fn table_bytes(baser: u64) -> u64 {
    ((baser & 0xff) + 1) * PAGE_BYTES
}

/// Where the command queue is.
pub(super) fn queue_address(cbaser: u64) -> u64 {
    cbaser & 0x000f_ffff_ffff_0000
}

/// Bytes of the command queue.
pub(super) fn queue_bytes(cbaser: u64) -> u64 {
    ((cbaser & 0xff) + 1) * 0x1000
}

/// Why a register cannot be accessed for save or restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RegisterError {
    /// No such register (KVM: -ENXIO).
    #[error("no register there")]
    Unknown,
    /// Misaligned, or a value that the register does not take (KVM: -EINVAL).
    #[error("misaligned, or a value that the register does not take")]
    Invalid,
}

/// One access, with its offset made relative to the row.
struct Access<'a> {
    offset: usize,
    size: AccessSize,
    /// The vCPU that makes it; `None` for whoever saves and restores.
    by: Option<usize>,
    vgic: &'a Vgic,
    host: &'a dyn VgicHost,
}

type Read = fn(&Its, &Access<'_>) -> u64;
type Write = fn(&Its, &Access<'_>, u64);

#[derive(Clone, Copy)]
struct Row {
    start: u64,
    length: u64,
    /// The register has 64 bits, and takes accesses of half of it.
    wide: bool,
    read: Read,
    write: Write,
    /// The write for restoring; `None`: what the guest's does. May refuse the value.
    restore: Option<fn(&Its, u64) -> bool>,
}

const fn row(start: u64, length: u64, wide: bool, read: Read, write: Write) -> Row {
    Row { start, length, wide, read, write, restore: None }
}

impl Row {
    const fn restored(mut self, restore: fn(&Its, u64) -> bool) -> Self {
        self.restore = Some(restore);
        self
    }

    /// Whether an access of a guest is one that the register takes.
    fn takes(&self, offset: u64, size: AccessSize) -> bool {
        let width = size == AccessSize::Word || size == AccessSize::Double && self.wide;
        width && offset.is_multiple_of(size.bytes())
    }
}

const ROWS: &[Row] = &[
    /* CTLR    */ row(0x0000, 4, false, read_ctlr, write_ctlr),
    /* IIDR    */ row(0x0004, 4, false, |_, _| IIDR, ignore).restored(|_, value| value & IIDR_REVISION == 0),
    /* TYPER   */ row(0x0008, 8, true, |_, _| TYPER, ignore),
    /* CBASER  */ row(0x0080, 8, true, |its, _| its.cbaser.load(SeqCst), write_cbaser),
    /* CWRITER */ row(0x0088, 8, true, |its, _| its.cwriter.load(SeqCst), write_cwriter),
    /* CREADR  */ row(0x0090, 8, true, read_creadr, ignore).restored(restore_creadr),
    /* BASER   */ row(0x0100, 0x40, true, read_baser, write_baser),
    /* ID      */ row(0xffd0, 0x30, false, read_id, ignore),
];

/// The identification registers that are not 0, by offset (IHI 0069 §12.1.4): an ITS of a GICv3 by Arm.
const IDENTIFICATION: [(u64, u64); 8] = [
    (0xffd0, 0x40), // PIDR4
    (0xffe0, 0x92), // PIDR0
    (0xffe4, 0xb4), // PIDR1
    (0xffe8, 0x3b), // PIDR2
    (0xfff0, 0x0d), // CIDR0
    (0xfff4, 0xf0), // CIDR1
    (0xfff8, 0x05), // CIDR2
    (0xfffc, 0xb1), // CIDR3
];

impl Its {
    /// A read by the guest at `offset` in the two frames.
    pub fn read(&self, offset: u64, size: AccessSize, by: usize, vgic: &Vgic, host: &dyn VgicHost) -> u64 {
        let Some(row) = find(offset).filter(|row| row.takes(offset, size)) else { return 0 };
        let access = Access { offset: (offset - row.start) as usize, size, by: Some(by), vgic, host };
        let value = (row.read)(self, &access);
        (if row.wide && offset & 4 != 0 { value >> 32 } else { value }) & size.mask()
    }

    /// A write by vCPU `by`, which is on this CPU, at `offset` in the two frames.
    pub fn write(&self, offset: u64, size: AccessSize, value: u64, by: usize, vgic: &Vgic, host: &dyn VgicHost) {
        if let Some(row) = find(offset).filter(|row| row.takes(offset, size)) {
            let access = Access { offset: (offset - row.start) as usize, size, by: Some(by), vgic, host };
            (row.write)(self, &access, value & size.mask());
        }
    }

    /// Reads the register at `offset` to save it (KVM_DEV_ARM_VGIC_GRP_ITS_REGS). No vCPU may be resident.
    ///
    /// # Errors
    ///
    /// [`RegisterError`].
    pub fn user_read(&self, offset: u64, vgic: &Vgic, host: &dyn VgicHost) -> Result<u64, RegisterError> {
        let (row, access) = user(offset, vgic, host)?;
        Ok((row.read)(self, &access))
    }

    /// Writes the register at `offset` to restore it; GITS_CTLR is to be the last. No vCPU may be resident.
    ///
    /// # Errors
    ///
    /// [`RegisterError`].
    pub fn user_write(&self, offset: u64, value: u64, vgic: &Vgic, host: &dyn VgicHost) -> Result<(), RegisterError> {
        let (row, access) = user(offset, vgic, host)?;
        match row.restore {
            Some(restore) if restore(self, value) => {}
            Some(_) => return Err(RegisterError::Invalid),
            None => (row.write)(self, &access, value),
        }
        Ok(())
    }

    /// Whether there is a register for save and restore at `offset`.
    ///
    /// # Errors
    ///
    /// [`RegisterError`].
    pub fn user_has(offset: u64) -> Result<(), RegisterError> {
        user_row(offset).map(|_| ())
    }

    fn commands_written(&self, access: &Access<'_>) {
        match access.by {
            Some(by) => self.carry_on(by, access.vgic, access.host),
            None => self.finish(access.vgic, access.host),
        }
    }

    /// Changes a register that is fixed while the ITS is enabled (IHI 0069 §12.19).
    fn change(&self, register: &AtomicU64, access: &Access<'_>, value: u64, keep: impl Fn(u64) -> u64) -> bool {
        let disabled = !self.enabled.load(SeqCst);
        if disabled {
            register.store(keep(merge(register.load(SeqCst), access.offset, access.size, value)), SeqCst);
        }
        disabled
    }
}

fn find(offset: u64) -> Option<&'static Row> {
    ROWS.iter().find(|row| offset.wrapping_sub(row.start) < row.length)
}

/// The row for save and restore: CTLR, IIDR and the identification registers at multiples of 4, the others of 8.
fn user_row(offset: u64) -> Result<&'static Row, RegisterError> {
    let alignment = if !(8..0xffd0).contains(&offset) { 4 } else { 8 };
    if !offset.is_multiple_of(alignment) {
        return Err(RegisterError::Invalid);
    }
    find(offset).ok_or(RegisterError::Unknown)
}

fn user<'a>(offset: u64, vgic: &'a Vgic, host: &'a dyn VgicHost) -> Result<(&'static Row, Access<'a>), RegisterError> {
    let row = user_row(offset)?;
    let size = if row.wide { AccessSize::Double } else { AccessSize::Word };
    Ok((row, Access { offset: (offset - row.start) as usize, size, by: None, vgic, host }))
}

fn ignore(_: &Its, _: &Access<'_>, _: u64) {}

fn read_ctlr(its: &Its, _: &Access<'_>) -> u64 {
    let idle = !its.has_commands() && !its.busy.load(SeqCst);
    let enabled = if its.enabled.load(SeqCst) { CTLR_ENABLED } else { 0 };
    enabled | if idle { CTLR_QUIESCENT } else { 0 }
}

fn write_ctlr(its: &Its, access: &Access<'_>, value: u64) {
    let enable = value & CTLR_ENABLED != 0;
    // Without its tables enabling it is UNPREDICTABLE (IHI 0069 §12.19.2): ignored, as in KVM.
    if !enable || its.enabled.load(SeqCst) || its.is_ready() {
        its.enabled.store(enable, SeqCst);
    }
    its.commands_written(access);
}

fn write_cbaser(its: &Its, access: &Access<'_>, value: u64) {
    let keep = |value| sanitise(value & CBASER_KEPT, &BASER_ATTRIBUTES);
    if its.change(&its.cbaser, access, value, keep) {
        // The queue starts empty.
        its.creadr.store(0, SeqCst);
        its.cwriter.store(0, SeqCst);
    }
}

fn write_cwriter(its: &Its, access: &Access<'_>, value: u64) {
    // Retry has no meaning, for nothing stalls; an offset beyond the queue is ignored (KVM's choice).
    let offset = merge(its.cwriter.load(SeqCst), access.offset, access.size, value) & (0xf_ffff & !(COMMAND_BYTES - 1));
    if offset < queue_bytes(its.cbaser.load(SeqCst)) {
        its.cwriter.store(offset, SeqCst);
        its.commands_written(access);
    }
}

fn read_creadr(its: &Its, access: &Access<'_>) -> u64 {
    // Who waits may help, should the one that is to carry on have stopped.
    if let Some(by) = access.by {
        its.carry_on(by, access.vgic, access.host);
    }
    its.creadr.load(SeqCst)
}

fn restore_creadr(its: &Its, value: u64) -> bool {
    let offset = value & (0xf_ffff & !(COMMAND_BYTES - 1));
    let fits = !its.enabled.load(SeqCst) && offset < queue_bytes(its.cbaser.load(SeqCst));
    if fits {
        its.creadr.store(offset, SeqCst);
    }
    fits
}

fn read_baser(its: &Its, access: &Access<'_>) -> u64 {
    its.basers.get(access.offset / 8).map_or(0, |baser| baser.load(SeqCst))
}

fn write_baser(its: &Its, access: &Access<'_>, value: u64) {
    let Some(baser) = its.basers.get(access.offset / 8) else { return };
    let fixed = baser.load(SeqCst) & BASER_FIXED;
    let keep = |value: u64| {
        let value = value & !(BASER_FIXED | BASER_PAGE_SIZE) | fixed | BASER_PAGE_64K;
        sanitise(value, &BASER_ATTRIBUTES)
    };
    its.change(baser, access, value, keep);
}

fn read_id(_: &Its, access: &Access<'_>) -> u64 {
    let offset = 0xffd0 + access.offset as u64;
    IDENTIFICATION.iter().find(|(at, _)| *at == offset).map_or(0, |(_, value)| *value)
}
