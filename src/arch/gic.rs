//! The host's GICv3: distributor, this CPU's redistributor, and the physical and virtual CPU interfaces.
//!
//! keel runs the physical CPU interface with EOImode 1: writing ICC_EOIR1 only drops the priority. An interrupt that is
//! forwarded to a guest with the HW bit stays active until the guest deactivates it; keel's own are deactivated at once.

use super::{
    addr::Pa,
    sysreg::{dsb_sy, isb, read_sysreg, write_sysreg},
};

/// The interrupt that says that nothing is pending (GIC architecture 2.2.1).
pub const SPURIOUS: u32 = 1020;

const GICD_CTLR: u64 = 0x0000;
const GICD_TYPER: u64 = 0x0004;
const GICD_IGROUPR: u64 = 0x0080;
const GICD_ISENABLER: u64 = 0x0100;
const GICD_ICENABLER: u64 = 0x0180;
const GICD_IPRIORITYR: u64 = 0x0400;
const GICD_IROUTER: u64 = 0x6000;
const GICR_TYPER: u64 = 0x0008;
const GICR_WAKER: u64 = 0x0014;
const GICR_SGI_FRAME: u64 = 0x1_0000;
const ISPENDR: u64 = 0x0200;
const ISACTIVER: u64 = 0x0300;
const ICACTIVER: u64 = 0x0380;
const ICPENDR: u64 = 0x0280;

const CTLR_RWP: u32 = 1 << 31;
const CTLR_ARE_NS: u32 = 1 << 4;
const CTLR_ENABLE_GRP1: u32 = (1 << 1) | (1 << 0);
const WAKER_PROCESSOR_SLEEP: u32 = 1 << 1;
const WAKER_CHILDREN_ASLEEP: u32 = 1 << 2;

/// Priority of SPIs, until somebody sets another.
const PRIORITY: u32 = 0xa0a0_a0a0;
/// Priority of private interrupts that keel uses: above [`MASK_OTHERS`].
const OWN_PRIORITY: u32 = 0x1010_1010;
/// ICC_PMR_EL1 with which only interrupts of keel's own priority arrive.
const MASK_OTHERS: u64 = 0x20;

/// A register frame of the GIC, or several in a row, mapped as a device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame(pub(super) Pa);

impl Frame {
    pub(super) fn read(self, offset: u64) -> u32 {
        // SAFETY: `Frame`s are made from addresses that the host's tree gives for a GIC and that EL2's map holds as
        // device memory; offsets are registers of the frame.
        unsafe { ((self.0.0 + offset) as *const u32).read_volatile() }
    }

    fn read64(self, offset: u64) -> u64 {
        // SAFETY: as in `read`; 64-bit registers.
        unsafe { ((self.0.0 + offset) as *const u64).read_volatile() }
    }

    pub(super) fn write(self, offset: u64, value: u32) {
        // SAFETY: as in `read`.
        unsafe { ((self.0.0 + offset) as *mut u32).write_volatile(value) };
    }

    fn write64(self, offset: u64, value: u64) {
        // SAFETY: as in `read64`.
        unsafe { ((self.0.0 + offset) as *mut u64).write_volatile(value) };
    }
}

macro_rules! sized_access {
    ($frame:expr, $length:expr) => {
        /// Reads 1 << `log2` bytes (0 to 3) at `offset`, a multiple of that; what lies outside the frame reads as 0.
        pub fn read(&self, offset: u64, log2: u32) -> u64 {
            let at = $frame(self).0.0 + offset;
            if offset >= $length || !offset.is_multiple_of(1 << log2) {
                return 0;
            }
            // SAFETY: see `Frame::read`; aligned, and inside the frames that the device has.
            unsafe {
                match log2 {
                    0 => (at as *const u8).read_volatile().into(),
                    1 => (at as *const u16).read_volatile().into(),
                    2 => (at as *const u32).read_volatile().into(),
                    _ => (at as *const u64).read_volatile(),
                }
            }
        }

        /// Writes 1 << `log2` bytes at `offset`; nothing outside the frame.
        pub fn write(&self, offset: u64, log2: u32, value: u64) {
            let at = $frame(self).0.0 + offset;
            if offset >= $length || !offset.is_multiple_of(1 << log2) {
                return;
            }
            // SAFETY: as in `read`. What is written decides about interrupts, which concern no memory.
            unsafe {
                match log2 {
                    0 => (at as *mut u8).write_volatile(value as u8),
                    1 => (at as *mut u16).write_volatile(value as u16),
                    2 => (at as *mut u32).write_volatile(value as u32),
                    _ => (at as *mut u64).write_volatile(value),
                }
            }
        }
    };
}

/// Bytes of the distributor's registers.
pub const DISTRIBUTOR_LENGTH: u64 = 0x1_0000;
/// Bytes of a redistributor's registers that GICv3 has: its two frames.
pub const REDISTRIBUTOR_LENGTH: u64 = 0x2_0000;

/// Why the interrupt controller cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GicError {
    /// No redistributor frame reports this CPU's affinity.
    NoRedistributor(u64),
    /// A register did not change as the architecture says it does.
    Stuck(&'static str),
    /// The CPU has no system-register interface (ICC_SRE_EL2.SRE stays 0).
    NoSystemRegisters,
    /// LPIs are in use (GICR_CTLR.EnableLPIs), which keel cannot take over.
    Lpis,
    /// A GICv2 serves eight CPUs, and the one with this index is not among them.
    NoInterface(usize),
}

/// The distributor, shared by all CPUs.
#[derive(Clone, Copy, Debug)]
pub struct Distributor(Frame);

const PATIENCE: u32 = 1_000_000;

impl Distributor {
    /// The distributor whose registers are at `base`.
    ///
    /// # Safety
    ///
    /// A GICv3 distributor must be there, mapped as a device and driven by nothing else.
    pub unsafe fn new(base: Pa) -> Self {
        Self(Frame(base))
    }

    sized_access!(|this: &Self| this.0, DISTRIBUTOR_LENGTH);

    /// Its address.
    pub fn base(&self) -> Pa {
        self.0.0
    }

    fn wait(&self) -> Result<(), GicError> {
        (0..PATIENCE)
            .any(|_| self.0.read(GICD_CTLR) & CTLR_RWP == 0)
            .then_some(())
            .ok_or(GicError::Stuck("GICD_CTLR.RWP"))
    }

    /// Number of interrupts, SGIs and PPIs included.
    pub fn interrupts(&self) -> u32 {
        (((self.0.read(GICD_TYPER) & 0x1f) + 1) * 32).min(1020)
    }

    /// Makes a distributor that somebody else drives let interrupts through; one that nobody drives yet is started.
    pub fn adopt(&self) -> Result<(), GicError> {
        let control = self.0.read(GICD_CTLR);
        if control & CTLR_ARE_NS == 0 {
            return self.start();
        }
        self.0.write(GICD_CTLR, control | CTLR_ENABLE_GRP1);
        self.wait()
    }

    /// Turns affinity routing on and disables every SPI.
    pub fn start(&self) -> Result<(), GicError> {
        self.0.write(GICD_CTLR, 0);
        self.wait()?;
        for n in 1..u64::from(self.interrupts().div_ceil(32)) {
            self.0.write(GICD_ICENABLER + 4 * n, u32::MAX);
            self.0.write(GICD_IGROUPR + 4 * n, u32::MAX);
            for word in 0..8 {
                self.0.write(GICD_IPRIORITYR + 32 * n + 4 * word, PRIORITY);
            }
        }
        self.wait()?;
        self.0.write(GICD_CTLR, CTLR_ARE_NS);
        self.wait()?;
        self.0.write(GICD_CTLR, CTLR_ARE_NS | CTLR_ENABLE_GRP1);
        self.wait()
    }

    /// Enables an SPI and routes it to the CPU with this affinity.
    pub fn enable_spi(&self, intid: u32, mpidr: u64) {
        let n = u64::from(intid);
        if (32..1020).contains(&intid) {
            self.0.write64(GICD_IROUTER + 8 * n, mpidr & super::cpu::MPIDR_AFFINITY);
            self.0.write(GICD_ISENABLER + 4 * (n / 32), 1 << (n % 32));
        }
    }
}

/// A CPU's redistributor: its SGIs and PPIs.
#[derive(Clone, Copy, Debug)]
pub struct Redistributor(Frame);

impl Redistributor {
    /// Finds this CPU's redistributor in `regions` of (base, size in bytes), each frame of at least `stride` bytes.
    ///
    /// # Safety
    ///
    /// GICv3 redistributors must be there, mapped as devices.
    pub unsafe fn find(regions: &[(Pa, u64)], stride: u64, mpidr: u64) -> Result<Self, GicError> {
        let packed = ((mpidr >> 32) & 0xff) << 24 | (mpidr & 0xff_ffff);
        for &(base, size) in regions {
            let mut at = base;
            while at.0 - base.0 < size {
                let frame = Frame(at);
                let typer = frame.read64(GICR_TYPER);
                if typer >> 32 == packed {
                    return Ok(Self(frame));
                }
                // VLPIS: two more frames of 64 KiB (GICv4).
                let own = if typer & (1 << 1) != 0 { 0x4_0000 } else { 0x2_0000 };
                at = Pa(at.0 + stride.max(own));
                if typer & (1 << 4) != 0 {
                    break;
                }
            }
        }
        Err(GicError::NoRedistributor(mpidr))
    }

    /// Wakes it, disables all SGIs and PPIs but `enable`, and gives all one priority.
    pub fn start(&self, enable: u32) -> Result<(), GicError> {
        self.wake()?;
        self.0.write(GICR_SGI_FRAME + GICD_ICENABLER, u32::MAX);
        self.0.write(GICR_SGI_FRAME + ICACTIVER, u32::MAX);
        self.0.write(GICR_SGI_FRAME + ICPENDR, u32::MAX);
        self.0.write(GICR_SGI_FRAME + GICD_IGROUPR, u32::MAX);
        for word in 0..8 {
            self.0.write(GICR_SGI_FRAME + GICD_IPRIORITYR + 4 * word, OWN_PRIORITY);
        }
        self.0.write(GICR_SGI_FRAME + GICD_ISENABLER, enable);
        dsb_sy();
        Ok(())
    }

    sized_access!(|this: &Self| this.0, REDISTRIBUTOR_LENGTH);

    /// The address of its first frame.
    pub fn base(&self) -> Pa {
        self.0.0
    }

    /// Makes a PPI pending, from any CPU: how keel calls another CPU. An SGI would do too, but all of those belong to the
    /// VM that owns the machine.
    pub fn pend(&self, intid: u32) {
        if intid < 32 {
            // What the other CPU is to find must be visible before it looks (GIC architecture: DSB before the access).
            super::sysreg::dsb_ish();
            self.0.write(GICR_SGI_FRAME + ISPENDR, 1 << intid);
        }
    }

    /// Takes the PPIs in the mask `kept` out of use: disabled, neither pending nor active.
    pub fn release(&self, kept: u32) {
        for register in [GICD_ICENABLER, ICPENDR, ICACTIVER] {
            self.0.write(GICR_SGI_FRAME + register, kept);
        }
        dsb_sy();
    }

    /// Whether LPIs are enabled.
    pub fn has_lpis(&self) -> bool {
        self.0.read(0) & 1 != 0
    }

    /// Wakes it if it sleeps, takes the PPIs in the mask `kept` into use, and leaves all others as they are.
    pub fn adopt(&self, kept: u32) -> Result<(), GicError> {
        self.wake()?;
        self.release(kept);
        let group = self.0.read(GICR_SGI_FRAME + GICD_IGROUPR);
        self.0.write(GICR_SGI_FRAME + GICD_IGROUPR, group | kept);
        for intid in (0..32).filter(|intid| kept >> intid & 1 != 0) {
            self.write(GICR_SGI_FRAME + GICD_IPRIORITYR + intid, 0, u64::from(OWN_PRIORITY & 0xff));
        }
        self.0.write(GICR_SGI_FRAME + GICD_ISENABLER, kept);
        dsb_sy();
        Ok(())
    }

    fn wake(&self) -> Result<(), GicError> {
        let waker = self.0.read(GICR_WAKER);
        self.0.write(GICR_WAKER, waker & !WAKER_PROCESSOR_SLEEP);
        let awake = (0..PATIENCE).any(|_| self.0.read(GICR_WAKER) & WAKER_CHILDREN_ASLEEP == 0);
        awake.then_some(()).ok_or(GicError::Stuck("GICR_WAKER.ChildrenAsleep"))
    }

    /// Sets or clears the active state of an SGI or PPI of this CPU.
    pub fn set_active(&self, intid: u32, active: bool) {
        if intid < 32 {
            self.0.write(GICR_SGI_FRAME + if active { ISACTIVER } else { ICACTIVER }, 1 << intid);
            // The CPU interface must see it before the guest runs.
            dsb_sy();
        }
    }
}

/// Priority of the interrupts that keel uses itself, and of the EL1 timers' while they are its guests'.
pub const KEEL_PRIORITY: u8 = OWN_PRIORITY as u8;

/// Lets all interrupts arrive on this CPU, or only those of [`KEEL_PRIORITY`].
pub fn listen(to_all: bool) {
    write_sysreg!("S3_0_C4_C6_0", if to_all { 0xff } else { MASK_OTHERS }); // ICC_PMR_EL1
    isb();
}

/// Turns this CPU's physical interface on, and the virtual one with nothing pending.
pub fn start_cpu_interface() -> Result<(), GicError> {
    if read_sysreg!("S3_4_C12_C9_5") & 1 == 0 {
        return Err(GicError::NoSystemRegisters);
    }
    write_sysreg!("S3_0_C12_C12_5", 7); // ICC_SRE_EL1: SRE, DFB, DIB
    // ICC_SRE_EL2 without Enable: guests cannot switch the system-register interface off, for themselves or the next one.
    write_sysreg!("S3_4_C12_C9_5", 7);
    isb();
    write_sysreg!("S3_0_C4_C6_0", 0xff); // ICC_PMR_EL1: nothing is masked
    write_sysreg!("S3_0_C12_C12_3", 0); // ICC_BPR1_EL1
    write_sysreg!("S3_0_C12_C12_4", 1 << 1); // ICC_CTLR_EL1.EOImode
    write_sysreg!("S3_0_C12_C12_7", 1); // ICC_IGRPEN1_EL1
    write_sysreg!("S3_4_C12_C11_7", 0); // ICH_VMCR_EL2
    write_sysreg!("S3_4_C12_C11_0", ICH_HCR_EN);
    isb();
    Ok(())
}

/// Whether a physical interrupt waits to be taken on this CPU (ISR_EL1.I).
pub fn is_pending() -> bool {
    read_sysreg!("isr_el1") & (1 << 7) != 0
}

/// Acknowledges the highest-priority pending interrupt; [`SPURIOUS`] or above when there is none.
#[inline]
pub fn acknowledge() -> u32 {
    let intid = read_sysreg!("S3_0_C12_C12_0") as u32; // ICC_IAR1_EL1
    // The acknowledge takes effect before what handles the interrupt (GIC architecture 4.1).
    dsb_sy();
    intid & 0xff_ffff
}

/// Drops the priority of an acknowledged interrupt; it stays active.
#[inline]
pub fn drop_priority(intid: u32) {
    write_sysreg!("S3_0_C12_C12_1", u64::from(intid)); // ICC_EOIR1_EL1
}

/// Deactivates an interrupt of this CPU.
#[inline]
pub fn deactivate(intid: u32) {
    write_sysreg!("S3_0_C12_C11_1", u64::from(intid)); // ICC_DIR_EL1
}

/// Sends SGIs as the value of ICC_SGI1R_EL1 says.
pub fn send_sgi(value: u64) {
    super::sysreg::dsb_ish();
    write_sysreg!("S3_0_C12_C11_5", value); // ICC_SGI1R_EL1
    isb();
}

/// Sends SGI `sgi`, below 16, to the CPU with this affinity.
pub fn send_sgi_to(mpidr: u64, sgi: u32) {
    let aff = |shift: u32| (mpidr >> shift) & 0xff;
    send_sgi(
        aff(32) << 48
            | (aff(0) >> 4) << 44
            | aff(16) << 32
            | u64::from(sgi & 0xf) << 24
            | aff(8) << 16
            | 1 << (aff(0) & 0xf),
    );
}

/// The physical CPU interface as the kernel that owns the machine uses it: ICC_*_EL1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuInterface {
    /// ICC_PMR_EL1.
    pub pmr: u64,
    /// ICC_BPR0_EL1 and ICC_BPR1_EL1.
    pub bpr: [u64; 2],
    /// ICC_CTLR_EL1: CBPR and EOImode.
    pub ctlr: u64,
    /// ICC_IGRPEN0_EL1 and ICC_IGRPEN1_EL1.
    pub igrpen: [u64; 2],
    /// ICC_AP1R0–3_EL1.
    pub ap1r: [u32; 4],
}

/// ICC_CTLR_EL1 of EL2, on this CPU.
pub fn control() -> u64 {
    read_sysreg!("S3_0_C12_C12_4")
}

/// ICC_CTLR_EL1.EOImode and CBPR.
const ICC_CTLR_WRITABLE: u64 = 0b11;

impl CpuInterface {
    /// How many registers of active priorities there are (ICC_CTLR_EL1.PRIbits).
    fn active_priorities() -> usize {
        match read_sysreg!("S3_0_C12_C12_4") >> 8 & 7 {
            0..=4 => 1,
            5 => 2,
            _ => 4,
        }
    }

    /// Reads it. ICC_IGRPEN0_EL1 may belong to firmware, and is taken as 0.
    pub fn get() -> Self {
        let mut ap1r = [0; 4];
        let count = Self::active_priorities();
        ap1r[0] = read_sysreg!("S3_0_C12_C9_0") as u32;
        if count > 1 {
            ap1r[1] = read_sysreg!("S3_0_C12_C9_1") as u32;
        }
        if count > 2 {
            ap1r[2] = read_sysreg!("S3_0_C12_C9_2") as u32;
            ap1r[3] = read_sysreg!("S3_0_C12_C9_3") as u32;
        }
        Self {
            pmr: read_sysreg!("S3_0_C4_C6_0"),
            bpr: [read_sysreg!("S3_0_C12_C8_3"), read_sysreg!("S3_0_C12_C12_3")],
            ctlr: read_sysreg!("S3_0_C12_C12_4") & ICC_CTLR_WRITABLE,
            igrpen: [0, read_sysreg!("S3_0_C12_C12_7") & 1],
            ap1r,
        }
    }

    /// Gives it to the kernel at EL1, with this state. The virtual one is off afterwards, and the kernel may use the
    /// system registers as it likes (ICC_SRE_EL2.Enable).
    pub fn hand_over(&self) {
        write_sysreg!("S3_4_C12_C11_0", 0); // ICH_HCR_EL2
        write_sysreg!("S3_4_C12_C9_5", 0xf); // ICC_SRE_EL2: Enable, DIB, DFB, SRE
        isb();
        write_sysreg!("S3_0_C12_C12_4", self.ctlr & ICC_CTLR_WRITABLE);
        write_sysreg!("S3_0_C12_C12_3", self.bpr[1]);
        write_sysreg!("S3_0_C12_C8_3", self.bpr[0]);
        let count = Self::active_priorities();
        write_sysreg!("S3_0_C12_C9_0", u64::from(self.ap1r[0]));
        if count > 1 {
            write_sysreg!("S3_0_C12_C9_1", u64::from(self.ap1r[1]));
        }
        if count > 2 {
            write_sysreg!("S3_0_C12_C9_2", u64::from(self.ap1r[2]));
            write_sysreg!("S3_0_C12_C9_3", u64::from(self.ap1r[3]));
        }
        write_sysreg!("S3_0_C4_C6_0", self.pmr);
        write_sysreg!("S3_0_C12_C12_7", self.igrpen[1]);
        isb();
    }

    /// Empties the active priorities: EL2 is about to use the interface, and drops the priority of all it acknowledges.
    pub fn clear_active_priorities() {
        let count = Self::active_priorities();
        write_sysreg!("S3_0_C12_C9_0", 0);
        if count > 1 {
            write_sysreg!("S3_0_C12_C9_1", 0);
        }
        if count > 2 {
            write_sysreg!("S3_0_C12_C9_2", 0);
            write_sysreg!("S3_0_C12_C9_3", 0);
        }
        isb();
    }
}

/// ICH_HCR_EL2.En.
pub const ICH_HCR_EN: u64 = 1;
/// ICH_HCR_EL2.UIE: maintenance interrupt when at most one list register is in use.
pub const ICH_HCR_UIE: u64 = 1 << 1;
/// ICH_HCR_EL2.LRENPIE: maintenance interrupt when an EOI found no list register.
pub const ICH_HCR_LRENPIE: u64 = 1 << 2;

/// The virtual interface of this CPU: ICH_* registers.
pub mod virtual_interface {
    use super::{isb, read_sysreg, write_sysreg};

    /// ICH_VTR_EL2.
    pub fn vtr() -> u64 {
        read_sysreg!("S3_4_C12_C11_1")
    }

    /// Whether ICC_DIR_EL1 can be made to trap alone (ICH_VTR_EL2.TDS).
    pub fn has_tdir() -> bool {
        vtr() & 1 << 19 != 0
    }

    /// Number of list registers.
    #[inline]
    pub fn list_registers() -> usize {
        (read_sysreg!("S3_4_C12_C11_1") & 0x1f) as usize + 1
    }

    /// Number of bits of preemption, which tells how many active-priority registers there are.
    pub fn preemption_bits() -> u32 {
        ((read_sysreg!("S3_4_C12_C11_1") >> 26) & 7) as u32 + 1
    }

    macro_rules! list_register {
        ($($n:literal $name:literal)*) => {
            /// ICH_LR`n`_EL2.
            #[inline]
            pub fn read_lr(n: usize) -> u64 {
                match n { $($n => read_sysreg!($name),)* _ => 0 }
            }

            /// Sets ICH_LR`n`_EL2.
            #[inline]
            pub fn write_lr(n: usize, value: u64) {
                match n { $($n => write_sysreg!($name, value),)* _ => {} }
            }
        };
    }

    list_register! {
        0 "S3_4_C12_C12_0" 1 "S3_4_C12_C12_1" 2 "S3_4_C12_C12_2" 3 "S3_4_C12_C12_3"
        4 "S3_4_C12_C12_4" 5 "S3_4_C12_C12_5" 6 "S3_4_C12_C12_6" 7 "S3_4_C12_C12_7"
        8 "S3_4_C12_C13_0" 9 "S3_4_C12_C13_1" 10 "S3_4_C12_C13_2" 11 "S3_4_C12_C13_3"
        12 "S3_4_C12_C13_4" 13 "S3_4_C12_C13_5" 14 "S3_4_C12_C13_6" 15 "S3_4_C12_C13_7"
    }

    /// ICH_ELRSR_EL2: list registers that hold nothing. keel asks for no maintenance interrupt by a list register's EOI bit,
    /// which would count as something.
    #[inline]
    pub fn empty() -> u32 {
        read_sysreg!("S3_4_C12_C11_5") as u32
    }

    /// ICH_HCR_EL2.
    #[inline]
    pub fn hcr() -> u64 {
        read_sysreg!("S3_4_C12_C11_0")
    }

    /// Sets ICH_HCR_EL2.
    #[inline]
    pub fn set_hcr(value: u64) {
        write_sysreg!("S3_4_C12_C11_0", value);
    }

    /// ICH_VMCR_EL2.
    pub fn vmcr() -> u64 {
        // The guest's own writes to its CPU interface must have taken effect (GIC architecture 6.4).
        isb();
        read_sysreg!("S3_4_C12_C11_7")
    }

    /// Sets ICH_VMCR_EL2.
    pub fn set_vmcr(value: u64) {
        write_sysreg!("S3_4_C12_C11_7", value);
    }

    macro_rules! active_priorities {
        ($get:ident $set:ident $($n:literal $name:literal)*) => {
            /// ICH_AP0R`n`_EL2 or ICH_AP1R`n`_EL2; 0 where the number of preemption bits says there is none.
            pub fn $get(n: usize) -> u64 {
                match n {
                    $($n if $n == 0 || preemption_bits() > 4 + if $n < 2 { $n } else { 2 } => read_sysreg!($name),)*
                    _ => 0,
                }
            }

            /// Sets ICH_AP0R`n`_EL2 or ICH_AP1R`n`_EL2 where there is one.
            pub fn $set(n: usize, value: u64) {
                match n {
                    $($n if $n == 0 || preemption_bits() > 4 + if $n < 2 { $n } else { 2 } => write_sysreg!($name, value),)*
                    _ => {}
                }
            }
        };
    }

    active_priorities! { ap0r set_ap0r 0 "S3_4_C12_C8_0" 1 "S3_4_C12_C8_1" 2 "S3_4_C12_C8_2" 3 "S3_4_C12_C8_3" }
    active_priorities! { ap1r set_ap1r 0 "S3_4_C12_C9_0" 1 "S3_4_C12_C9_1" 2 "S3_4_C12_C9_2" 3 "S3_4_C12_C9_3" }
}
