//! The host's GICv2: distributor, CPU interface and virtual interface control, all of them registers in memory.
//!
//! The frames are the same addresses on every CPU, and what belongs to one CPU (SGIs, PPIs, its interface, its list
//! registers) is banked: only that CPU reaches it. So a CPU calls another by an SGI, [`CALL`], whose target is a bit that
//! each CPU finds in its own GICD_ITARGETSR0. As on a GICv3, the physical interface runs with EOImode 1.
//!
//! Sections are those of IHI 0048B. Interrupts stay in whatever group they are: with the Security Extensions firmware has put
//! those that are keel's into group 1 and keel sees no groups; without them all are put into group 0, and signalled as IRQs.
//!
//! GICC, GICH and the GICV that guests use are one peripheral, mapped as Device everywhere, so a CPU's accesses to them
//! arrive in program order (Arm ARM B2.3.7): a list register that is read shows what the guest's last access did.

use super::{
    addr::Pa,
    gic::{Frame, GicError, SPURIOUS},
    sysreg::{dsb_ish, dsb_sy},
};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};

/// CPUs that a GICv2 can serve (2.1).
pub const MAX_CPUS: usize = 8;
/// The SGI by which CPUs call each other.
pub const CALL: u32 = 0;

// The distributor (4.3).
const GICD_CTLR: u64 = 0x000;
const GICD_TYPER: u64 = 0x004;
const GICD_IGROUPR: u64 = 0x080;
const GICD_ISENABLER: u64 = 0x100;
const GICD_ICENABLER: u64 = 0x180;
const GICD_ICPENDR: u64 = 0x280;
const GICD_ISACTIVER: u64 = 0x300;
const GICD_ICACTIVER: u64 = 0x380;
const GICD_IPRIORITYR: u64 = 0x400;
const GICD_ITARGETSR: u64 = 0x800;
const GICD_SGIR: u64 = 0xf00;
const GICD_CPENDSGIR: u64 = 0xf10;

// The CPU interface (4.4).
const GICC_CTLR: u64 = 0x0000;
const GICC_PMR: u64 = 0x0004;
const GICC_BPR: u64 = 0x0008;
const GICC_IAR: u64 = 0x000c;
const GICC_EOIR: u64 = 0x0010;
const GICC_IIDR: u64 = 0x00fc;
const GICC_DIR: u64 = 0x1000;

// The virtual interface control (5.3).
const GICH_HCR: u64 = 0x000;
const GICH_VTR: u64 = 0x004;
const GICH_VMCR: u64 = 0x008;
const GICH_ELRSR0: u64 = 0x030;
const GICH_APR: u64 = 0x0f0;
const GICH_LR: u64 = 0x100;

/// GICC_CTLR: the group that keel sees.
const CTLR_ENABLE: u32 = 1 << 0;
/// GICC_CTLR.EOImodeNS, or EOImode without the Security Extensions.
const CTLR_EOI_MODE: u32 = 1 << 9;
/// GICC_CTLR: what of the bypass signals firmware has disabled stays so.
const CTLR_BYPASS: u32 = 0xf << 5;
/// The INTID in GICC_IAR; above it, of an SGI, the CPU that sent it.
const INTID: u32 = 0x3ff;

/// Priorities as on a GICv3: of private interrupts, all of which are keel's, and of SPIs.
const OWN_PRIORITY: u32 = 0x1010_1010;
const PRIORITY: u32 = 0xa0a0_a0a0;

static PRESENT: AtomicBool = AtomicBool::new(false);
static DISTRIBUTOR: AtomicU64 = AtomicU64::new(0);
static CPU_INTERFACE: AtomicU64 = AtomicU64::new(0);
static VIRTUAL_INTERFACE: AtomicU64 = AtomicU64::new(0);
static GUEST_INTERFACE: AtomicU64 = AtomicU64::new(0);
/// The bit of each CPU in target lists.
static TARGETS: [AtomicU8; MAX_CPUS] = [const { AtomicU8::new(0) }; MAX_CPUS];

/// Where the frames are.
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    /// GICD.
    pub distributor: Pa,
    /// GICC, 8 KiB.
    pub cpu_interface: Pa,
    /// GICH.
    pub virtual_interface: Pa,
    /// GICV, 8 KiB, for guests.
    pub guest_interface: Pa,
}

#[inline]
fn frame(at: &AtomicU64) -> Frame {
    Frame(Pa(at.load(Relaxed)))
}

/// Whether this machine has a GICv2.
#[inline]
pub fn is_present() -> bool {
    PRESENT.load(Relaxed)
}

/// From here on, `frames` is the machine's interrupt controller.
///
/// # Safety
///
/// A GICv2 must be there, GICD, GICC and GICH mapped as devices and driven by nothing else; called once, before any other
/// function of this module but [`aliased`].
pub unsafe fn install(frames: Frames) {
    DISTRIBUTOR.store(frames.distributor.0, Relaxed);
    CPU_INTERFACE.store(frames.cpu_interface.0, Relaxed);
    VIRTUAL_INTERFACE.store(frames.virtual_interface.0, Relaxed);
    GUEST_INTERFACE.store(frames.guest_interface.0, Relaxed);
    PRESENT.store(true, Relaxed);
}

/// Where the CPU interface is in 128 KiB at `base`: at the first page, or, on boards that decode one page of each 64 KiB, at
/// the last of the sixteen aliases of the first page, which the second page follows.
///
/// # Safety
///
/// `base` is a GICC of 128 KiB, mapped as a device.
pub unsafe fn aliased(base: Pa) -> Pa {
    let last = Pa(base.0 + 0xf000);
    let identity = |at: Pa| Frame(at).read(GICC_IIDR);
    if identity(base) == identity(last) { last } else { base }
}

/// GICV, which guests get.
pub fn guest_interface() -> Pa {
    Pa(GUEST_INTERFACE.load(Relaxed))
}

/// Starts the distributor: every SPI disabled, with this CPU as its only target.
pub fn start_distributor() {
    let gicd = frame(&DISTRIBUTOR);
    gicd.write(GICD_CTLR, 0);
    let own = u32::from(own_target(gicd)) * 0x0101_0101;
    for n in 1..u64::from((gicd.read(GICD_TYPER) & 0x1f) + 1) {
        gicd.write(GICD_ICENABLER + 4 * n, u32::MAX);
        gicd.write(GICD_ICPENDR + 4 * n, u32::MAX);
        gicd.write(GICD_ICACTIVER + 4 * n, u32::MAX);
        gicd.write(GICD_IGROUPR + 4 * n, 0);
        for word in 0..8 {
            gicd.write(GICD_IPRIORITYR + 32 * n + 4 * word, PRIORITY);
            gicd.write(GICD_ITARGETSR + 32 * n + 4 * word, own);
        }
    }
    gicd.write(GICD_CTLR, CTLR_ENABLE);
}

/// This CPU's bit in target lists: what the read-only GICD_ITARGETSR0 to 7 hold (4.3.12). 0 where there is only one CPU.
fn own_target(gicd: Frame) -> u8 {
    let words = (0..8).map(|n| gicd.read(GICD_ITARGETSR + 4 * n));
    words.flat_map(u32::to_ne_bytes).find(|&targets| targets != 0).unwrap_or(0)
}

/// Starts the part of this CPU, which has `index`: of its private interrupts only `enable` and the call are let in.
///
/// # Errors
///
/// The CPU interface cannot separate the end of an interrupt from its deactivation.
pub fn start_cpu(index: usize, enable: u32) -> Result<(), GicError> {
    let (gicd, gicc, gich) = (frame(&DISTRIBUTOR), frame(&CPU_INTERFACE), frame(&VIRTUAL_INTERFACE));
    gicd.write(GICD_ICENABLER, u32::MAX);
    gicd.write(GICD_ICACTIVER, u32::MAX);
    gicd.write(GICD_ICPENDR, u32::MAX);
    for word in 0..4 {
        gicd.write(GICD_CPENDSGIR + 4 * word, u32::MAX);
    }
    gicd.write(GICD_IGROUPR, 0);
    for word in 0..8 {
        gicd.write(GICD_IPRIORITYR + 4 * word, OWN_PRIORITY);
    }
    gicd.write(GICD_ISENABLER, enable | 1 << CALL);
    let target = own_target(gicd);
    TARGETS.get(index).ok_or(GicError::NoInterface(index))?.store(target, Relaxed);

    gicc.write(GICC_PMR, 0xff);
    gicc.write(GICC_BPR, 0);
    let bypass = gicc.read(GICC_CTLR) & CTLR_BYPASS;
    gicc.write(GICC_CTLR, bypass | CTLR_ENABLE | CTLR_EOI_MODE);
    if gicc.read(GICC_CTLR) & CTLR_EOI_MODE == 0 {
        return Err(GicError::Stuck("GICC_CTLR.EOImodeNS"));
    }
    gich.write(GICH_HCR, 0);
    for n in 0..virtual_interface::list_registers() {
        virtual_interface::write_lr(n, 0);
    }
    gich.write(GICH_VMCR, 0);
    gich.write(GICH_APR, 0);
    gich.write(GICH_HCR, 1);
    dsb_sy();
    Ok(())
}

/// Makes the SPI `intid` go to the CPU with this index, and enables it.
pub fn enable_spi(intid: u32, index: usize) {
    let gicd = frame(&DISTRIBUTOR);
    if !(32..1020).contains(&intid) {
        return;
    }
    let n = u64::from(intid);
    let shift = 8 * (n % 4);
    let others = gicd.read(GICD_ITARGETSR + (n & !3)) & !(0xff << shift);
    let target = TARGETS.get(index).map_or(0, |target| target.load(Relaxed));
    gicd.write(GICD_ITARGETSR + (n & !3), others | u32::from(target) << shift);
    gicd.write(GICD_ISENABLER + 4 * (n / 32), 1 << (n % 32));
}

/// Calls the CPU with this index.
pub fn call(index: usize) {
    if let Some(target) = TARGETS.get(index) {
        // What the other CPU is to find must be visible before it looks (Arm ARM B2.3.9).
        dsb_ish();
        frame(&DISTRIBUTOR).write(GICD_SGIR, u32::from(target.load(Relaxed)) << 16 | CALL);
    }
}

/// Acknowledges the highest-priority pending interrupt: its INTID, [`SPURIOUS`] or above if there is none, and what has to be
/// given back beside it to end it.
#[inline]
pub fn acknowledge() -> u32 {
    let value = frame(&CPU_INTERFACE).read(GICC_IAR);
    // The acknowledge takes effect before what handles the interrupt.
    dsb_sy();
    value
}

/// The INTID of what [`acknowledge`] gave.
#[inline]
pub fn intid(acknowledged: u32) -> u32 {
    acknowledged & INTID
}

/// Drops the priority of an acknowledged interrupt, as [`acknowledge`] gave it; it stays active.
#[inline]
pub fn drop_priority(acknowledged: u32) {
    frame(&CPU_INTERFACE).write(GICC_EOIR, acknowledged);
}

/// Deactivates an interrupt of this CPU, as [`acknowledge`] gave it.
#[inline]
pub fn deactivate(acknowledged: u32) {
    frame(&CPU_INTERFACE).write(GICC_DIR, acknowledged);
}

/// Sets or clears the active state of an SGI or PPI of this CPU.
pub fn set_active(intid: u32, active: bool) {
    if intid < 32 {
        frame(&DISTRIBUTOR).write(if active { GICD_ISACTIVER } else { GICD_ICACTIVER }, 1 << intid);
        // The CPU interface must see it before the guest runs.
        dsb_sy();
    }
}

const _: () = assert!(SPURIOUS <= INTID);

/// The virtual interface of this CPU: GICH_* registers, as they are.
pub mod virtual_interface {
    use super::{GICH_APR, GICH_ELRSR0, GICH_HCR, GICH_LR, GICH_VMCR, GICH_VTR, VIRTUAL_INTERFACE, frame};

    /// Number of list registers.
    #[inline]
    pub fn list_registers() -> usize {
        (frame(&VIRTUAL_INTERFACE).read(GICH_VTR) & 0x3f) as usize + 1
    }

    /// GICH_LR`n`; `n` is below [`list_registers`].
    #[inline]
    pub fn read_lr(n: usize) -> u32 {
        frame(&VIRTUAL_INTERFACE).read(GICH_LR + 4 * (n as u64 & 0x3f))
    }

    /// Sets GICH_LR`n`.
    #[inline]
    pub fn write_lr(n: usize, value: u32) {
        frame(&VIRTUAL_INTERFACE).write(GICH_LR + 4 * (n as u64 & 0x3f), value);
    }

    /// GICH_ELRSR0: of the first 32 list registers, those that hold nothing.
    pub fn empty() -> u32 {
        frame(&VIRTUAL_INTERFACE).read(GICH_ELRSR0)
    }

    /// GICH_HCR.
    pub fn hcr() -> u32 {
        frame(&VIRTUAL_INTERFACE).read(GICH_HCR)
    }

    /// Sets GICH_HCR.
    pub fn set_hcr(value: u32) {
        frame(&VIRTUAL_INTERFACE).write(GICH_HCR, value);
    }

    /// GICH_VMCR.
    pub fn vmcr() -> u32 {
        frame(&VIRTUAL_INTERFACE).read(GICH_VMCR)
    }

    /// Sets GICH_VMCR.
    pub fn set_vmcr(value: u32) {
        frame(&VIRTUAL_INTERFACE).write(GICH_VMCR, value);
    }

    /// GICH_APR.
    pub fn apr() -> u32 {
        frame(&VIRTUAL_INTERFACE).read(GICH_APR)
    }

    /// Sets GICH_APR.
    pub fn set_apr(value: u32) {
        frame(&VIRTUAL_INTERFACE).write(GICH_APR, value);
    }
}
