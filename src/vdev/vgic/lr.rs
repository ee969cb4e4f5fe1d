//! List registers and what else of ICH_* the virtual GIC drives.
//!
//! [`VirtualInterface`] is the whole of the hardware that the state machine touches: system registers of this CPU
//! (ICH_*_EL2) and the active state of its physical interrupts. Tests stand a model of a CPU interface behind it.

use bitflags::bitflags;

/// ICH_LRn_EL2.State bit 62: pending (IHI 0069 §12.4.4).
pub const PENDING: u64 = 1 << 62;
/// ICH_LRn_EL2.State bit 63: active.
pub const ACTIVE: u64 = 1 << 63;
/// ICH_LRn_EL2.HW: deactivation deactivates the physical interrupt pINTID too.
pub const HW: u64 = 1 << 61;
/// ICH_LRn_EL2.Group: 1 = group 1.
pub const GROUP1: u64 = 1 << 60;
/// ICH_LRn_EL2.Priority, bits 55:48.
pub const PRIORITY_SHIFT: u32 = 48;
/// ICH_LRn_EL2.pINTID, bits 44:32, when HW is 1.
pub const PINTID_SHIFT: u32 = 32;
/// ICH_LRn_EL2.EOI, bit 41 when HW is 0: maintenance interrupt at the interrupt's end.
pub const EOI: u64 = 1 << 41;

/// On a GICv2, of an SGI: the CPU that sent it, three bits. Those of a GICv3 are zero with HW clear.
pub const SOURCE_SHIFT: u32 = 32;

/// The most list registers a CPU can have (ICH_VTR_EL2.ListRegs).
pub const MAX_LIST_REGISTERS: usize = 16;

/// ICH_VMCR_EL2.VENG0: group 0 is on at the virtual CPU interface.
pub const VMCR_ENG0: u64 = 1 << 0;
/// ICH_VMCR_EL2.VENG1: group 1 is on.
pub const VMCR_ENG1: u64 = 1 << 1;
/// ICH_VMCR_EL2.VFIQEn: always 1 for a GICv3 guest.
pub const VMCR_FIQEN: u64 = 1 << 3;
/// ICH_VMCR_EL2.VEOIM: the end of an interrupt only drops the running priority; ICC_DIR_EL1 deactivates.
pub const VMCR_EOIM: u64 = 1 << 9;
/// ICH_VMCR_EL2.VPMR, bits 31:24.
pub const VMCR_PMR_SHIFT: u32 = 24;

bitflags! {
    /// The bits of ICH_HCR_EL2 that the virtual GIC decides. The driver adds En and the rest.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Control: u64 {
        /// LRENPIE: maintenance interrupt while EOIcount is not 0.
        const ENTRY_NOT_PRESENT = 1 << 2;
        /// NPIE: maintenance interrupt while no list register is pending.
        const NO_PENDING = 1 << 3;
        /// VGrp0EIE: maintenance interrupt while group 0 is on.
        const GROUP0_ENABLED = 1 << 4;
        /// VGrp0DIE: maintenance interrupt while group 0 is off.
        const GROUP0_DISABLED = 1 << 5;
        /// VGrp1EIE: maintenance interrupt while group 1 is on.
        const GROUP1_ENABLED = 1 << 6;
        /// VGrp1DIE: maintenance interrupt while group 1 is off.
        const GROUP1_DISABLED = 1 << 7;
        /// TC: what is common to both groups traps ([`trapped`](super::trapped)), ICC_DIR_EL1 and ICC_SGI*R_EL1 too.
        const TRAP_COMMON = 1 << 10;
        /// TALL0: the registers of group 0 trap.
        const TRAP_GROUP0 = 1 << 11;
        /// TALL1: those of group 1.
        const TRAP_GROUP1 = 1 << 12;
        /// TDIR: ICC_DIR_EL1 traps. Not every CPU has it: [`trapping_deactivations`](Self::trapping_deactivations).
        const TRAP_DEACTIVATE = 1 << 14;
    }
}

impl Control {
    /// The bits to set on a CPU that has TDIR or not (ICH_VTR_EL2.TDS): where it is RES0, TC stands in, which traps
    /// ICC_DIR_EL1 too.
    pub fn trapping_deactivations(self, has_tdir: bool) -> Self {
        if self.contains(Self::TRAP_DEACTIVATE) && (self.contains(Self::TRAP_COMMON) || !has_tdir) {
            (self - Self::TRAP_DEACTIVATE) | Self::TRAP_COMMON
        } else {
            self
        }
    }
}

/// The virtual interface of the CPU this runs on (ICH_*_EL2), or a model of it.
pub trait VirtualInterface {
    /// Whether this is a GICv2's: list registers carry the CPU that sent an SGI, and nothing traps deactivations.
    const IS_V2: bool = false;

    /// How many list registers there are, 1 to 16 (ICH_VTR_EL2.ListRegs + 1).
    fn list_registers(&self) -> usize;
    /// How many registers of active priorities each group has: 1, 2 or 4 (from ICH_VTR_EL2.PREbits 5, 6, 7).
    fn active_priority_registers(&self) -> usize;
    /// Whether those are more than one.
    #[inline(always)]
    fn has_more_priorities(&self) -> bool {
        self.active_priority_registers() > 1
    }
    /// Reads ICH_LR`n`_EL2; `n` is less than [`list_registers`](Self::list_registers).
    fn read_lr(&self, n: usize) -> u64;
    /// Writes ICH_LR`n`_EL2.
    fn write_lr(&mut self, n: usize, value: u64);
    /// List registers that hold nothing, a bit for each (ICH_ELRSR_EL2, without regard to EOI bits).
    fn empty(&self) -> u32 {
        let lrs = (0..self.list_registers()).map(|n| self.read_lr(n));
        lrs.enumerate().filter(|(_, lr)| lr & (PENDING | ACTIVE) == 0).fold(0, |mask, (n, _)| mask | 1 << n)
    }
    /// Sets these bits of ICH_HCR_EL2 and clears the others of [`Control`].
    fn set_control(&mut self, control: Control);
    /// ICH_HCR_EL2.EOIcount: ends of interrupts that were in no list register, 0 to 31.
    fn eoi_count(&self) -> u32;
    /// Sets ICH_HCR_EL2.EOIcount to 0.
    fn clear_eoi_count(&mut self);
    /// Reads ICH_VMCR_EL2.
    fn vmcr(&self) -> u64;
    /// Writes ICH_VMCR_EL2.
    fn set_vmcr(&mut self, value: u64);
    /// Reads ICH_AP0R`n`_EL2.
    fn ap0r(&self, n: usize) -> u32;
    /// Writes ICH_AP0R`n`_EL2.
    fn set_ap0r(&mut self, n: usize, value: u32);
    /// Reads ICH_AP1R`n`_EL2.
    fn ap1r(&self, n: usize) -> u32;
    /// Writes ICH_AP1R`n`_EL2.
    fn set_ap1r(&mut self, n: usize, value: u32);
    /// Reads ICH_VMCR_EL2 and the active priorities of both groups. What there is no register for stays as it is.
    #[inline(always)]
    fn save_state(&self, vmcr: &mut u64, ap0r: &mut [u32; 4], ap1r: &mut [u32; 4]) {
        self.save_first(vmcr, ap0r, ap1r);
        if self.has_more_priorities() {
            self.save_more(ap0r, ap1r);
        }
    }
    /// Writes them.
    #[inline(always)]
    fn load_state(&mut self, vmcr: u64, ap0r: &[u32; 4], ap1r: &[u32; 4]) {
        self.load_first(vmcr, ap0r, ap1r);
        if self.has_more_priorities() {
            self.load_more(ap0r, ap1r);
        }
    }
    /// As [`save_state`](Self::save_state), of the active priorities only the first registers.
    #[inline(always)]
    fn save_first(&self, vmcr: &mut u64, ap0r: &mut [u32; 4], ap1r: &mut [u32; 4]) {
        *vmcr = self.vmcr();
        (ap0r[0], ap1r[0]) = (self.ap0r(0), self.ap1r(0));
    }
    /// Writes those.
    #[inline(always)]
    fn load_first(&mut self, vmcr: u64, ap0r: &[u32; 4], ap1r: &[u32; 4]) {
        self.set_vmcr(vmcr);
        self.set_ap0r(0, ap0r[0]);
        self.set_ap1r(0, ap1r[0]);
    }
    /// The others.
    #[inline(never)]
    fn save_more(&self, ap0r: &mut [u32; 4], ap1r: &mut [u32; 4]) {
        let count = self.active_priority_registers();
        for (n, (ap0r, ap1r)) in ap0r.iter_mut().zip(ap1r).enumerate().take(count).skip(1) {
            (*ap0r, *ap1r) = (self.ap0r(n), self.ap1r(n));
        }
    }
    /// Writes those.
    #[inline(never)]
    fn load_more(&mut self, ap0r: &[u32; 4], ap1r: &[u32; 4]) {
        let count = self.active_priority_registers();
        for (n, (ap0r, ap1r)) in ap0r.iter().zip(ap1r).enumerate().take(count).skip(1) {
            self.set_ap0r(n, *ap0r);
            self.set_ap1r(n, *ap1r);
        }
    }
    /// Sets or clears the active state of a physical private interrupt of this CPU (GICR_ISACTIVER0, GICR_ICACTIVER0).
    fn set_physical_active(&mut self, host_intid: u32, active: bool);
    /// Whether the line of a mapped physical interrupt is high now. It tells a timer that the guest has since switched off
    /// from one that is still due; "true" is a safe answer, at the price of a spurious interrupt.
    fn physical_level(&self, host_intid: u32) -> bool {
        let _ = host_intid;
        true
    }
}

/// A value of ICH_LRn_EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ListRegister(pub(super) u64);

impl ListRegister {
    #[inline]
    pub(super) const fn intid(self) -> u32 {
        self.0 as u32
    }

    #[inline]
    pub(super) const fn valid(self) -> bool {
        self.0 & (PENDING | ACTIVE) != 0
    }

    #[inline]
    pub(super) const fn pending(self) -> bool {
        self.0 & PENDING != 0
    }

    #[inline]
    pub(super) const fn active(self) -> bool {
        self.0 & ACTIVE != 0
    }

    #[inline]
    pub(super) const fn hw(self) -> bool {
        self.0 & HW != 0
    }

    /// On a GICv2, the CPU that sent this SGI.
    #[inline]
    pub(super) const fn source(self) -> u8 {
        (self.0 >> SOURCE_SHIFT & 7) as u8
    }
}

/// The part of one vCPU's GIC state that only its own CPU touches: what its list registers hold, and the virtual CPU
/// interface while the vCPU has no CPU.
#[derive(Clone, Debug)]
pub struct VgicCpu {
    /// List registers that hold something to fold back.
    pub(super) used: u16,
    /// List registers that may hold something else than 0.
    pub(super) written: u16,
    /// List registers for which a latch was consumed.
    pub(super) consumed: u16,
    /// The last value given to [`VirtualInterface::set_control`].
    pub(super) control: Control,
    /// ICH_VMCR_EL2 while the vCPU has no CPU.
    pub vmcr: u64,
    /// ICH_AP0R0–3_EL2 while the vCPU has no CPU.
    pub ap0r: [u32; 4],
    /// ICH_AP1R0–3_EL2 while the vCPU has no CPU.
    pub ap1r: [u32; 4],
}

impl VgicCpu {
    /// The reset state: groups off, everything masked, nothing active.
    pub const fn new() -> Self {
        Self {
            used: 0,
            written: 0,
            consumed: 0,
            control: Control::empty(),
            vmcr: VMCR_FIQEN,
            ap0r: [0; 4],
            ap1r: [0; 4],
        }
    }

    /// The reset state of a vCPU with a GICv2.
    pub const fn new_v2() -> Self {
        // The guest may route group 0 to FIQ itself.
        Self { vmcr: 0, ..Self::new() }
    }
}

impl Default for VgicCpu {
    fn default() -> Self {
        Self::new()
    }
}
