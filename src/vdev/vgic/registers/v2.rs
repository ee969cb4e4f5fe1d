//! The registers of a GICv2: the distributor, and for save and restore the CPU interface.
//!
//! The distributor is one frame in which INTIDs 0 to 31 are those of the vCPU that looks (IHI 0048B 4.1.4), so it is a frame for
//! each vCPU. Guests reach the CPU interface in hardware; what is here of it is for whoever saves and restores the VM, with
//! the vCPU off its CPU. Where the architecture leaves room, all is as KVM's (Linux, Documentation/virt/kvm/devices/arm-vgic.rst):
//! an SPI with several targets goes to the lowest, one without any to vCPU 0; the pending state of SGIs is written by
//! GICD_SPENDSGIR and CPENDSGIR alone; identification registers read as zero.

use core::sync::atomic::Ordering::SeqCst;

use super::{
    Access, Frame, Row, Scope, UserAccessError, UserWrite,
    Width::{Word, WordOrByte},
    clear_active, clear_enabled, clear_pending, ignore, read_active, read_config, read_enabled, read_group, read_iidr,
    read_pending, read_priority, row, set_active, set_enabled, set_forwarding, set_pending, set_revision, write_config,
    write_group, write_priority, zero,
};
use crate::vdev::{
    mmio::AccessSize,
    vgic::{PRIVATE_INTERRUPTS, Vgic, VgicCpu, VgicHost, flush::take_bit, lr::VMCR_PMR_SHIFT, sources::SGIS},
};

/// GICD_CTLR.Enable.
const CTLR_ENABLE: u64 = 1;
/// GICD_TYPER.CPUNumber, bits 7:5.
const TYPER_CPU_NUMBER_SHIFT: u32 = 5;

/// The distributor (IHI 0048B 4.3).
pub(super) const DISTRIBUTOR: &[Row] = &[
    /* CTLR       */ row(0x000, 4, Word, read_ctlr, write_ctlr),
    /* TYPER      */ row(0x004, 4, Word, read_typer, ignore),
    /* IIDR       */ row(0x008, 4, Word, read_iidr, ignore).user(None, UserWrite::Checked(restore_iidr)),
    /* SGIR       */ row(0xf00, 4, Word, zero, send_sgi),
    /* ISENABLER  */ row(0x100, 0x80, Word, read_enabled, set_enabled),
    /* ICENABLER  */ row(0x180, 0x80, Word, read_enabled, clear_enabled),
    /* ISPENDR    */ row(0x200, 0x80, Word, read_pending, pend).user(None, UserWrite::As(restore_pending)),
    /* ICPENDR    */ row(0x280, 0x80, Word, read_pending, unpend).user(None, UserWrite::As(restore_not_pending)),
    /* ISACTIVER  */ row(0x300, 0x80, Word, read_active, activate),
    /* ICACTIVER  */ row(0x380, 0x80, Word, read_active, clear_active),
    /* IPRIORITYR */ row(0x400, 0x400, WordOrByte, read_priority, write_priority),
    /* ITARGETSR  */ row(0x800, 0x400, WordOrByte, read_targets, write_targets),
    /* ICFGR      */ row(0xc00, 0x100, Word, read_config, configure),
    /* IGROUPR    */ row(0x080, 0x80, Word, read_group, write_group).user(None, UserWrite::As(restore_group)),
    /* CPENDSGIR  */ row(0xf10, 0x10, WordOrByte, read_senders, remove_senders),
    /* SPENDSGIR  */ row(0xf20, 0x10, WordOrByte, read_senders, add_senders),
];

impl Vgic {
    /// A read by vCPU `vcpu` at `offset` in the 4 KiB of a GICv2's distributor. What is not there reads as zero.
    pub fn v2_read(&self, vcpu: usize, offset: u64, size: AccessSize, host: &dyn VgicHost) -> u64 {
        self.guest_read(Frame::DistributorV2(vcpu), offset, size, host)
    }

    /// A write by vCPU `vcpu` at `offset` in the 4 KiB of a GICv2's distributor. What is not there ignores it.
    pub fn v2_write(&self, vcpu: usize, offset: u64, size: AccessSize, value: u64, host: &dyn VgicHost) {
        self.guest_write(Frame::DistributorV2(vcpu), offset, size, value, host);
    }
}

/// The vCPU whose registers these are.
fn owner(access: &Access<'_>) -> usize {
    match access.frame {
        Frame::DistributorV2(vcpu) | Frame::Redistributor(vcpu) => vcpu,
        Frame::Distributor => 0,
    }
}

/// A bit for each vCPU.
fn all_vcpus(vgic: &Vgic) -> u8 {
    (1_u32.unbounded_shl(vgic.vcpus() as u32).wrapping_sub(1)) as u8
}

fn read_ctlr(vgic: &Vgic, _: &Access<'_>) -> u64 {
    if vgic.enabled.load(SeqCst) { CTLR_ENABLE } else { 0 }
}

fn write_ctlr(vgic: &Vgic, access: &Access<'_>, value: u64) {
    set_forwarding(vgic, value & CTLR_ENABLE != 0, access.host);
}

fn read_typer(vgic: &Vgic, _: &Access<'_>) -> u64 {
    (vgic.vcpus() as u64 - 1) << TYPER_CPU_NUMBER_SHIFT | vgic.spis.words() as u64
}

/// Whoever writes IIDR knows that groups start as 0, and may restore them.
fn restore_iidr(vgic: &Vgic, value: u64) -> bool {
    let known = set_revision(vgic, value);
    if known {
        vgic.groups_restorable.store(true, SeqCst);
    }
    known
}

fn restore_group(vgic: &Vgic, access: &Access<'_>, value: u64) {
    if vgic.groups_restorable.load(SeqCst) {
        write_group(vgic, access, value);
    }
}

/// `value` without the SGIs, if it is for the private interrupts.
fn without_sgis(access: &Access<'_>, value: u64) -> u64 {
    if access.offset < 4 { value & !u64::from(SGIS) } else { value }
}

fn pend(vgic: &Vgic, access: &Access<'_>, value: u64) {
    set_pending(vgic, access, without_sgis(access, value));
}

fn unpend(vgic: &Vgic, access: &Access<'_>, value: u64) {
    clear_pending(vgic, access, without_sgis(access, value));
}

/// Of an SGI nobody knows any more who sent it: the vCPU itself did.
fn restore_pending(vgic: &Vgic, access: &Access<'_>, value: u64) {
    let mut sgis = value as u32 & if access.offset < 4 { SGIS } else { 0 };
    while let Some(sgi) = take_bit(&mut sgis) {
        vgic.latch_sgi_of(owner(access), owner(access), sgi, access.host);
    }
    pend(vgic, access, value);
}

fn restore_not_pending(vgic: &Vgic, access: &Access<'_>, value: u64) {
    let mut sgis = value as u32 & if access.offset < 4 { SGIS } else { 0 };
    while let Some(sgi) = take_bit(&mut sgis) {
        withdraw_senders(vgic, access, sgi, u8::MAX);
    }
    unpend(vgic, access, value);
}

/// An SGI that is made active was sent by the vCPU itself, for all that anyone knows.
fn activate(vgic: &Vgic, access: &Access<'_>, value: u64) {
    if access.offset < 4
        && let Some(redistributor) = vgic.redistributors.get(owner(access))
    {
        let mut sgis = value as u32 & SGIS & !(read_active(vgic, access) as u32);
        while let Some(sgi) = take_bit(&mut sgis) {
            redistributor.sources.set_active(sgi, owner(access) as u8);
        }
    }
    set_active(vgic, access, value);
}

/// GICD_ICFGR0 and 1 are read-only.
fn configure(vgic: &Vgic, access: &Access<'_>, value: u64) {
    if access.offset >= 8 {
        write_config(vgic, access, value);
    }
}

/// The INTIDs whose targets an access covers.
fn targeted(access: &Access<'_>) -> impl Iterator<Item = (u32, u32)> {
    let first = access.offset as u32;
    (0..access.size.bytes() as u32).map(move |n| (first + n, 8 * n))
}

fn read_targets(vgic: &Vgic, access: &Access<'_>) -> u64 {
    targeted(access).fold(0, |value, (intid, shift)| {
        let targets = match intid {
            0..PRIVATE_INTERRUPTS => 1 << owner(access),
            _ => vgic.spis.irouter(intid).unwrap_or(0),
        };
        value | targets << shift
    })
}

fn write_targets(vgic: &Vgic, access: &Access<'_>, value: u64) {
    for (intid, shift) in targeted(access).filter(|(intid, _)| *intid >= PRIVATE_INTERRUPTS) {
        let targets = (value >> shift) as u8 & all_vcpus(vgic);
        let lowest = if targets == 0 { 0 } else { targets.trailing_zeros() };
        vgic.redirect_spi(intid, targets.into(), Some(lowest as usize), access.host);
    }
}

/// GICD_SGIR (IHI 0048B 4.3.15): TargetListFilter 25:24, CPUTargetList 23:16, SGIINTID 3:0.
fn send_sgi(vgic: &Vgic, access: &Access<'_>, value: u64) {
    let from = owner(access);
    let targets = match value >> 24 & 3 {
        0 => (value >> 16) as u8,
        1 => !(1 << from),
        2 => 1 << from,
        _ => 0,
    };
    let mut targets = u32::from(targets & all_vcpus(vgic));
    while let Some(target) = take_bit(&mut targets) {
        vgic.latch_sgi_of(from, target as usize, (value & 0xf) as u32, access.host);
    }
}

/// The SGIs whose senders an access covers.
fn sgis(access: &Access<'_>) -> impl Iterator<Item = (u32, u32)> {
    let first = access.offset as u32 & 0xf;
    (0..access.size.bytes() as u32).map(move |n| (first + n, 8 * n))
}

/// Has what is in list registers folded back, where the senders are.
fn fold(vgic: &Vgic, access: &Access<'_>) {
    if let Some((bank, _)) = vgic.bank_in(access.frame, 0) {
        vgic.sync_holders(bank, Scope::Private(owner(access)), access.host);
    }
}

fn read_senders(vgic: &Vgic, access: &Access<'_>) -> u64 {
    fold(vgic, access);
    let Some(redistributor) = vgic.redistributors.get(owner(access)) else { return 0 };
    sgis(access).fold(0, |value, (sgi, shift)| value | u64::from(redistributor.sources.waiting(sgi)) << shift)
}

fn add_senders(vgic: &Vgic, access: &Access<'_>, value: u64) {
    for (sgi, shift) in sgis(access) {
        // As in KVM, any of the eight, whether there is such a vCPU or not.
        let mut senders = u32::from((value >> shift) as u8);
        while let Some(from) = take_bit(&mut senders) {
            vgic.latch_sgi_of(from as usize, owner(access), sgi, access.host);
        }
    }
}

fn remove_senders(vgic: &Vgic, access: &Access<'_>, value: u64) {
    fold(vgic, access);
    for (sgi, shift) in sgis(access) {
        let senders = (value >> shift) as u8;
        if senders != 0 {
            withdraw_senders(vgic, access, sgi, senders);
        }
    }
}

/// Takes senders of an SGI that is in no list register back, and its latch with the last of them.
fn withdraw_senders(vgic: &Vgic, access: &Access<'_>, sgi: u32, senders: u8) {
    let Some(redistributor) = vgic.redistributors.get(owner(access)) else { return };
    if redistributor.sources.remove(sgi, senders) == 0 {
        redistributor.private.withdraw(1 << sgi);
        if redistributor.sources.waiting(sgi) != 0 {
            // Another came meanwhile, and its latch may be what was withdrawn.
            redistributor.private.set_latch(1 << sgi);
        }
    }
    vgic.notify(owner(access), access.host);
}

/// A register of the CPU interface, as it is saved and restored (KVM_DEV_ARM_VGIC_GRP_CPU_REGS).
struct InterfaceRow {
    offset: u64,
    read: fn(&VgicCpu) -> u32,
    write: fn(&mut VgicCpu, u32),
}

const fn interface_row(offset: u64, read: fn(&VgicCpu) -> u32, write: fn(&mut VgicCpu, u32)) -> InterfaceRow {
    InterfaceRow { offset, read, write }
}

/// GICC_CTLR: EnableGrp0, EnableGrp1, AckCtl, FIQEn, CBPR, EOImode; GICH_VMCR has them at the same places.
const INTERFACE_CTLR: u64 = 0x21f;
/// GICH_VMCR.VMABP, of GICC_ABPR.
const VMCR_ABP_SHIFT: u32 = 18;
/// GICH_VMCR.VMBP, of GICC_BPR.
const VMCR_BP_SHIFT: u32 = 21;
/// GICH_VMCR.VMPriMask: the top five bits of GICC_PMR.
const VMCR_PRIORITY_MASK_SHIFT: u32 = VMCR_PMR_SHIFT + 3;
/// GICC_IIDR: product 'K', GICv2, implementer Arm: KVM's.
const INTERFACE_IIDR: u32 = 0x04b2_043b;

fn field(cpu: &VgicCpu, shift: u32, mask: u64) -> u32 {
    (cpu.vmcr >> shift & mask) as u32
}

fn set_field(cpu: &mut VgicCpu, shift: u32, mask: u64, value: u32) {
    cpu.vmcr = cpu.vmcr & !(mask << shift) | (u64::from(value) & mask) << shift;
}

/// The CPU interface (IHI 0048B 4.4). GICC_PMR is shown as its five bits. Of the four registers of active priorities a virtual
/// interface has one.
const INTERFACE: &[InterfaceRow] = &[
    /* CTLR */
    interface_row(0x00, |cpu| field(cpu, 0, INTERFACE_CTLR), |cpu, value| set_field(cpu, 0, INTERFACE_CTLR, value)),
    /* PMR  */
    interface_row(
        0x04,
        |cpu| field(cpu, VMCR_PRIORITY_MASK_SHIFT, 0x1f),
        |cpu, value| set_field(cpu, VMCR_PRIORITY_MASK_SHIFT, 0x1f, value),
    ),
    /* BPR  */
    interface_row(0x08, |cpu| field(cpu, VMCR_BP_SHIFT, 7), |cpu, value| set_field(cpu, VMCR_BP_SHIFT, 7, value)),
    /* ABPR */
    interface_row(0x1c, |cpu| field(cpu, VMCR_ABP_SHIFT, 7), |cpu, value| set_field(cpu, VMCR_ABP_SHIFT, 7, value)),
    /* APR0 */ interface_row(0xd0, |cpu| cpu.ap0r[0], |cpu, value| cpu.ap0r[0] = value),
    /* APR1 */ interface_row(0xd4, |_| 0, |_, _| {}),
    /* APR2 */ interface_row(0xd8, |_| 0, |_, _| {}),
    /* APR3 */ interface_row(0xdc, |_| 0, |_, _| {}),
    /* IIDR */ interface_row(0xfc, |_| INTERFACE_IIDR, |_, _| {}),
];

impl VgicCpu {
    fn interface(offset: u64) -> Result<&'static InterfaceRow, UserAccessError> {
        INTERFACE.iter().find(|row| row.offset == offset).ok_or(UserAccessError::Unknown)
    }

    /// Whether there is a register of a GICv2's CPU interface at `offset`.
    pub fn has(offset: u64) -> bool {
        Self::interface(offset).is_ok()
    }

    /// Reads the register at `offset` of a GICv2's CPU interface, to save it.
    ///
    /// # Errors
    ///
    /// [`UserAccessError::Unknown`].
    pub fn user_read(&self, offset: u64) -> Result<u32, UserAccessError> {
        Ok((Self::interface(offset)?.read)(self))
    }

    /// Writes the register at `offset` of a GICv2's CPU interface, to restore it.
    ///
    /// # Errors
    ///
    /// [`UserAccessError::Unknown`].
    pub fn user_write(&mut self, offset: u64, value: u32) -> Result<(), UserAccessError> {
        (Self::interface(offset)?.write)(self, value);
        Ok(())
    }
}
