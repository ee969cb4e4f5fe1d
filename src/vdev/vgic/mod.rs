//! The virtual GIC: distributor, redistributors and list registers of a GICv3, or a GICv2's distributor; the ITS is
//! [`its`](crate::vdev::its).
//!
//! The guest acknowledges and ends interrupts at the hardware's virtual CPU interface and never exits for that; what is
//! emulated here is which interrupts the list registers hold. It behaves as KVM's does (Linux,
//! Documentation/virt/kvm/devices/arm-vgic-v3.rst, arm-vgic.rst), within the architecture (Arm IHI 0069, IHI 0048).
//!
//! **Two versions, one state machine.** A machine's GIC decides which its guests have. A GICv2 differs in its registers
//! (`registers::v2`), in SGIs, which come from a CPU each (`sources`), in where the hardware keeps things (`gich`), and in that
//! nothing traps a deactivation. Its vCPUs' banked registers are redistributors to this module.
//!
//! **No locks.** The state of an interrupt is bits of atomic words (`bank`), so a register access from any CPU is an
//! atomic operation or two, and no CPU ever waits for another's. Private interrupts (0–31) belong to a vCPU, shared ones
//! (SPIs, from 32) to the VM. Only the CPU on which a vCPU is resident loads that vCPU's list registers; an SPI is claimed
//! by an atomic word before it is loaded, so it is in at most one list register of the VM (`spi`).
//!
//! **Contract with the world switch.** Whatever could change a vCPU's list registers sets its *dirty* flag and calls
//! [`VgicHost::kick`]. Before each entry the vCPU's loop looks at [`Vgic::dirty`], one plain load, and calls
//! [`Vgic::flush`] only when it is set or when a maintenance interrupt was taken (or simply sets the flag then with
//! [`Vgic::maintenance`]). A kick must therefore take a running vCPU out of its guest and wake a waiting one; it may
//! come for the vCPU that is calling, and then means nothing, and it comes often, so the host should make it idle when
//! the vCPU neither runs nor waits.
//!
//! **Interrupts mapped to hardware** (the timers): the physical interrupt stays active from the moment EL2 acknowledged it
//! until the guest ends the virtual one, which deactivates both. So it fires once, and no exit is needed at its end.
//! When the vCPU leaves its CPU the physical interrupt is deactivated for the next one and software keeps the state. With a
//! GICv2 the end does bring an exit, which deactivates: not every GICv2 (QEMU's does not) signals an interrupt whose line stays
//! high again after a deactivation that came through a list register, and then a timer that is due again is lost.
//!
//! **More interrupts than list registers**: the highest priorities are loaded, active and pending alike, and a maintenance
//! interrupt brings the rest. Active interrupts that found no list register are ended through EOIcount (EOImode 0) or by
//! trapping ICC_DIR_EL1 ([`Vgic::deactivate`]), for which [`Control::TRAP_DEACTIVATE`] is set just then; on
//! CPUs that can only trap more than that, [`trapped`] answers the rest. Otherwise deactivation is hardware's, so ICC_DIR_EL1
//! on one vCPU does not reach an SPI that is active on another: as in KVM. What GICV_DIR deactivates on a GICv2 has to be in a
//! list register: see `select`. What is lost there: a deactivation, in EOImode 1, of one of more interrupts than list
//! registers that the guest made active by writing GICD_ISACTIVER, or acknowledged before it went from EOImode 0 to 1.

mod bank;
pub mod cpu_registers;
#[cfg(test)]
pub(super) mod fake;
mod flush;
pub mod gich;
mod lpi;
#[cfg(test)]
mod lpi_model;
#[cfg(test)]
mod lpi_tests;
pub(super) mod lr;
#[cfg(test)]
mod model;
mod registers;
mod select;
mod sources;
mod spi;
#[cfg(test)]
mod stress;
pub mod table_base;
#[cfg(test)]
mod tests;
pub mod trapped;
#[cfg(test)]
mod v2_tests;
mod word_set;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

use spin::Once;
use thiserror::Error;

use bank::Bank;
use lpi::Lpis;
pub use lpi::{FIRST_LPI, ID_BITS};
pub use lr::{Control, MAX_LIST_REGISTERS, VgicCpu, VirtualInterface};
pub use registers::{Frame, UserAccessError};
use sources::Sources;
use spi::Spis;

/// INTIDs that each vCPU has for itself: SGIs 0–15 and PPIs 16–31.
pub const PRIVATE_INTERRUPTS: u32 = 32;
/// SPIs of a VM that asks for no number (KVM's default of 256 interrupts).
pub const DEFAULT_SPIS: usize = 224;
/// The most SPIs a VM can have: KVM takes at most 992 interrupts in all (KVM_DEV_ARM_VGIC_GRP_NR_IRQS).
pub const MAX_SPIS: usize = 960;
/// The most vCPUs of a VM with a GICv3 (KVM_CAP_MAX_VCPUS).
pub const MAX_VCPUS: usize = 512;

/// The most vCPUs of a VM with a GICv2: what its target lists have bits for.
pub const MAX_VCPUS_V2: usize = 8;
/// In `spi_hint`: LPIs may be pending for the vCPU. There are at most 30 words of SPIs.
const LPI_HINT: u32 = 1 << 30;
/// In `spi_hint`: the vCPU is to carry on with commands of the ITS ([`VgicHost::carry_on`]).
const COMMANDS_HINT: u32 = 1 << 31;

/// Aff3 (39:32) and Aff2–Aff0 (23:0) of MPIDR_EL1.
const AFFINITY_MASK: u64 = 0xff_00ff_ffff;

/// What the virtual GIC needs of the VM around it.
pub trait VgicHost {
    /// Takes vCPU `vcpu` out of its guest if it runs, and wakes it if it waits for an interrupt, so that it looks at its
    /// dirty flag. Called after the flag is set, possibly for the vCPU that is calling; must not wait for the other CPU.
    fn kick(&self, vcpu: usize);
    /// Makes `vcpu` fold its list registers back ([`Vgic::sync`]) and returns after that. Called before the guest reads
    /// pending or active state of an interrupt that is in one of them, which may be the calling vCPU's. A host that
    /// waits for another CPU must answer such requests from others meanwhile. Nothing to do for a vCPU that is not resident.
    fn sync(&self, vcpu: usize);
    /// There is more to do for `vcpu`, which is resident on the calling CPU and has its dirty flag set: it is to leave its
    /// guest again soon, but only after other interrupts of this CPU had their turn.
    fn come_back(&self, vcpu: usize) {
        self.kick(vcpu);
    }
    /// Commands of the ITS are left, of which `vcpu` is to carry out some ([`Vgic::expect_commands`]). Called on its CPU
    /// during a flush, when its list registers are folded back.
    fn carry_on(&self, vcpu: usize) {
        let _ = vcpu;
    }
    /// A guest has ended SPI `intid`, which is [watched](Vgic::watch_spi). Called on the CPU of the vCPU that did.
    fn ended(&self, intid: u32) {
        let _ = intid;
    }
}

/// What a virtual GIC is made of.
#[derive(Clone, Copy, Debug)]
pub struct VgicConfig<'a> {
    /// MPIDR_EL1 of each vCPU, in the order of their indices; bits other than the affinity are ignored.
    pub mpidrs: &'a [u64],
    /// How many SPIs: a multiple of 32, from 32 to [`MAX_SPIS`].
    pub spis: usize,
}

/// Why a virtual GIC cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum VgicConfigError {
    /// No vCPU, or more than [`MAX_VCPUS`].
    #[error("a GICv3 has 1 to 512 vCPUs, not {0}")]
    Vcpus(usize),
    /// Not a multiple of 32, none, or more than [`MAX_SPIS`].
    #[error("a GICv3 has 32 to 960 SPIs in steps of 32, not {0}")]
    Spis(usize),
    /// More than [`MAX_VCPUS_V2`].
    #[error("a GICv2 has at most 8 vCPUs, not {0}")]
    VcpusV2(usize),
    /// Two vCPUs of one affinity.
    #[error("two vCPUs have the affinity {0:#x}")]
    DuplicateAffinity(u64),
}

/// The registers by which a CPU sends SGIs (IHI 0069 §12.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SgiRegister {
    /// ICC_SGI1R_EL1.
    Sgi1r,
    /// ICC_ASGI1R_EL1: reaches only interrupts in group 0.
    Asgi1r,
    /// ICC_SGI0R_EL1: reaches only interrupts in group 0.
    Sgi0r,
}

/// Which interrupt controller a VM has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// GICv2, on machines with a GICv2.
    V2,
    /// GICv3.
    V3,
}

/// What belongs to one vCPU. A line of the cache for itself: other CPUs write here when they send it an interrupt.
#[derive(Debug)]
#[repr(align(128))]
struct Redistributor {
    /// Something that the list registers depend on has changed since they were loaded.
    dirty: AtomicBool,
    /// Words of SPIs that may hold something for this vCPU: bit n = INTIDs 32 + 32n to 63 + 32n. And [`LPI_HINT`] and
    /// [`COMMANDS_HINT`], so that one look tells whether there is anything but private interrupts.
    spi_hint: AtomicU32,
    /// Affinity of this vCPU, Aff3 in 39:32. Changes only before a vCPU has run.
    affinity: AtomicU64,
    /// GICR_TYPER.Last: no other follows it. Changes only before a vCPU has run.
    is_last: AtomicBool,
    /// Interrupts 0–31.
    private: Bank,
    /// PPIs mapped to a physical interrupt.
    mapped: AtomicU32,
    /// Mapped PPIs whose physical interrupt is active while no list register answers for it. Written only by the CPU the
    /// vCPU is on.
    physical_active: AtomicU32,
    /// The physical INTID of each mapped PPI, by INTID.
    physical: [AtomicU16; 32],
    /// Who sent the SGIs of a GICv2.
    sources: Sources,
}

impl Redistributor {
    fn new(affinity: u64) -> Self {
        let redistributor = Self {
            dirty: AtomicBool::new(false),
            spi_hint: AtomicU32::new(0),
            affinity: AtomicU64::new(affinity),
            is_last: AtomicBool::new(false),
            private: Bank::new(),
            mapped: AtomicU32::new(0),
            physical_active: AtomicU32::new(0),
            physical: [const { AtomicU16::new(0) }; 32],
            sources: Sources::new(),
        };
        redistributor.reset();
        redistributor
    }

    /// SGIs are enabled and edge-triggered (IHI 0069 §12.11; enabled at reset as in KVM).
    fn reset(&self) {
        self.private.reset(0x0000_ffff, 0x0000_ffff);
        self.physical_active.store(0, Relaxed);
        self.sources.reset();
        self.spi_hint.store(0, SeqCst);
        self.dirty.store(true, SeqCst);
    }

    /// The physical INTID behind a mapped PPI.
    #[inline]
    fn physical_intid(&self, intid: u32) -> u32 {
        u32::from(self.physical[(intid % 32) as usize].load(Relaxed))
    }

    #[inline]
    fn add_physical_active(&self, bit: u32) {
        self.physical_active.store(self.physical_active.load(Relaxed) | bit, Relaxed);
    }

    #[inline]
    fn remove_physical_active(&self, bit: u32) {
        self.physical_active.store(self.physical_active.load(Relaxed) & !bit, Relaxed);
    }
}

fn check_affinities(mpidrs: &[u64]) -> Result<(), VgicConfigError> {
    let mut sorted: Vec<u64> = mpidrs.iter().map(|mpidr| mpidr & AFFINITY_MASK).collect();
    sorted.sort_unstable();
    match sorted.array_windows().find(|[a, b]| a == b) {
        Some(&[affinity, _]) => Err(VgicConfigError::DuplicateAffinity(affinity)),
        None => Ok(()),
    }
}

/// The virtual GIC of one VM. All methods may be called from any CPU at once, but those that take a [`VgicCpu`] only on
/// the CPU where that vCPU is.
#[derive(Debug)]
pub struct Vgic {
    version: Version,
    /// GICD_CTLR.EnableGrp1, a GICv2's Enable: lets interrupts of both groups through, as in KVM.
    enabled: AtomicBool,
    /// GICD_TYPER.
    typer: AtomicU32,
    /// GICD_IIDR.Revision: 2 or 3.
    revision: AtomicU32,
    /// The groups of a GICv2's interrupts can be restored, as whoever restores knows that they start as 0.
    groups_restorable: AtomicBool,
    redistributors: Box<[Redistributor]>,
    spis: Spis,
    /// LPIs, if the VM has them.
    lpis: Once<Lpis>,
    /// What is asked for at all times, beside what the list registers hold asks for: bits of [`Control`].
    always: AtomicU64,
}

impl Vgic {
    /// A virtual GICv3 in its reset state.
    ///
    /// # Errors
    ///
    /// A number of vCPUs or SPIs that KVM would refuse, or two vCPUs of one affinity.
    pub fn new(config: &VgicConfig<'_>) -> Result<Self, VgicConfigError> {
        Self::of_version(config, Version::V3)
    }

    /// A virtual GICv2 in its reset state.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and for more than [`MAX_VCPUS_V2`] vCPUs.
    pub fn new_v2(config: &VgicConfig<'_>) -> Result<Self, VgicConfigError> {
        if config.mpidrs.len() > MAX_VCPUS_V2 {
            return Err(VgicConfigError::VcpusV2(config.mpidrs.len()));
        }
        Self::of_version(config, Version::V2)
    }

    fn of_version(config: &VgicConfig<'_>, version: Version) -> Result<Self, VgicConfigError> {
        if config.mpidrs.is_empty() || config.mpidrs.len() > MAX_VCPUS {
            return Err(VgicConfigError::Vcpus(config.mpidrs.len()));
        }
        if config.spis == 0 || config.spis > MAX_SPIS || !config.spis.is_multiple_of(32) {
            return Err(VgicConfigError::Spis(config.spis));
        }
        check_affinities(config.mpidrs)?;
        let vgic = Self {
            version,
            groups_restorable: AtomicBool::new(false),
            enabled: AtomicBool::new(false),
            typer: AtomicU32::new(registers::typer(config.spis / 32, false)),
            revision: AtomicU32::new(registers::REVISION_LATEST),
            redistributors: config.mpidrs.iter().map(|mpidr| Redistributor::new(mpidr & AFFINITY_MASK)).collect(),
            spis: Spis::new(config.spis / 32),
            lpis: Once::new(),
            always: AtomicU64::new(0),
        };
        vgic.set_last_redistributor(vgic.vcpus() - 1, true);
        vgic.reset();
        Ok(vgic)
    }

    /// Back to the reset state, lines and the guest's pending interrupts included; mappings to hardware stay. No vCPU may
    /// be resident ([`Vgic::unload`] them before), and each needs a new [`VgicCpu`].
    pub fn reset(&self) {
        self.enabled.store(false, SeqCst);
        self.spis.reset(self.vcpu_with_affinity(0));
        if let Some(lpis) = self.lpis.get() {
            lpis.reset();
        }
        for redistributor in &self.redistributors {
            redistributor.reset();
        }
        if self.version == Version::V2 {
            let private = self.redistributors.iter().map(|redistributor| &redistributor.private);
            // All in group 0 (IHI 0048B 4.3.4).
            for bank in private.chain(self.spis.banks()) {
                bank.group.store(0, SeqCst);
            }
        }
    }

    /// Says whether another redistributor follows that of `vcpu`, before any vCPU has run. At first they are all in a row.
    pub fn set_last_redistributor(&self, vcpu: usize, is_last: bool) {
        if let Some(redistributor) = self.redistributors.get(vcpu) {
            redistributor.is_last.store(is_last, Relaxed);
        }
    }

    /// Gives each vCPU its affinity anew (MPIDR_EL1's layout), before any has run.
    ///
    /// # Errors
    ///
    /// Two vCPUs of one affinity; then nothing has changed.
    pub fn set_affinities(&self, mpidrs: &[u64]) -> Result<(), VgicConfigError> {
        check_affinities(mpidrs)?;
        for (redistributor, mpidr) in self.redistributors.iter().zip(mpidrs) {
            redistributor.affinity.store(mpidr & AFFINITY_MASK, Relaxed);
        }
        Ok(())
    }

    /// Asks for `control` at all times, before any vCPU has run: [`Control::TRAP_COMMON`] for tests ([`trapped`]) on CPUs that
    /// would never need it, more for a VM that has no interrupt controller. Nothing of a GICv2.
    pub fn always_control(&self, control: Control) {
        self.always.store(control.bits(), Relaxed);
    }

    #[inline(always)]
    fn always(&self) -> Control {
        Control::from_bits_retain(self.always.load(Relaxed))
    }

    /// Which it is.
    pub fn version(&self) -> Version {
        self.version
    }

    /// How many vCPUs there are.
    pub fn vcpus(&self) -> usize {
        self.redistributors.len()
    }

    /// The index of the vCPU with this affinity (MPIDR_EL1's layout).
    pub fn vcpu_with_affinity(&self, affinity: u64) -> Option<usize> {
        let is = |index: usize| self.redistributors.get(index).is_some_and(|r| r.affinity.load(Relaxed) == affinity);
        // The usual numberings: Aff0 counts, in one cluster or in clusters of 16 as KVM has it.
        let guess = ((affinity & 0xff) | (affinity >> 8 & 0xff) << 4) as usize;
        if is(guess) {
            return Some(guess);
        }
        self.redistributors.iter().position(|redistributor| redistributor.affinity.load(Relaxed) == affinity)
    }

    /// Makes `vcpu` look at its interrupts anew.
    fn notify(&self, vcpu: usize, host: &dyn VgicHost) {
        if let Some(redistributor) = self.redistributors.get(vcpu) {
            redistributor.dirty.store(true, SeqCst);
            host.kick(vcpu);
        }
    }

    /// Commands of the ITS are left for `vcpu`, which is resident on this CPU: it will be asked to
    /// [carry on](VgicHost::carry_on).
    pub fn expect_commands(&self, vcpu: usize, host: &dyn VgicHost) {
        if let Some(redistributor) = self.redistributors.get(vcpu) {
            redistributor.spi_hint.fetch_or(COMMANDS_HINT, SeqCst);
            redistributor.dirty.store(true, SeqCst);
            host.come_back(vcpu);
        }
    }

    /// Sends SGIs as a write of `value` to `register` by vCPU `from` does. Affinities that no vCPU has are ignored.
    // Part of the busiest exit there is, and of one that is not.
    #[inline(always)]
    pub fn send_sgi(&self, from: usize, register: SgiRegister, value: u64, host: &dyn VgicHost) {
        let bit = 1_u32 << (value >> 24 & 0xf);
        let any_group = register == SgiRegister::Sgi1r;
        if value >> 40 & 1 != 0 {
            for target in (0..self.redistributors.len()).filter(|target| *target != from) {
                self.latch_sgi(target, bit, any_group, host);
            }
            return;
        }
        // Aff3 55:48, Aff2 39:32, Aff1 23:16 → MPIDR_EL1's layout.
        let cluster = (value >> 48 & 0xff) << 32 | (value >> 32 & 0xff) << 16 | (value >> 16 & 0xff) << 8;
        let mut list = value & 0xffff;
        while list != 0 {
            let affinity = cluster | u64::from(list.trailing_zeros());
            list &= list - 1;
            if let Some(target) = self.vcpu_with_affinity(affinity) {
                self.latch_sgi(target, bit, any_group, host);
            }
        }
    }

    /// Sends SGI `sgi` (0 to 15) of vCPU `from` to `target` alone, in whatever group it is.
    pub fn send_sgi_to(&self, from: usize, target: usize, sgi: u8, host: &dyn VgicHost) {
        match self.version {
            Version::V3 => self.latch_sgi(target, 1 << (sgi & 0xf), true, host),
            Version::V2 => self.latch_sgi_of(from, target, u32::from(sgi & 0xf), host),
        }
    }

    /// Sends SGI `sgi`, below 16, of vCPU `from`, below 8, to `target`. A GICv2's.
    fn latch_sgi_of(&self, from: usize, target: usize, sgi: u32, host: &dyn VgicHost) {
        if let Some(redistributor) = self.redistributors.get(target) {
            let is_new = redistributor.sources.add(sgi, 1_u8.unbounded_shl(from as u32));
            redistributor.private.set_latch(1 << sgi);
            // One that waits already was told of. One that is in a list register, and pending, is the same interrupt: only a look
            // at that tells.
            if is_new {
                self.notify(target, host);
            }
        }
    }

    fn latch_sgi(&self, target: usize, bit: u32, any_group: bool, host: &dyn VgicHost) {
        if let Some(redistributor) = self.redistributors.get(target)
            && (any_group || redistributor.private.group.load(SeqCst) & bit == 0)
        {
            // One that is latched already was told of when it was.
            if redistributor.private.set_latch(bit) & bit == 0 {
                self.notify(target, host);
            }
        }
    }

    /// Sets the line of SPI `intid` (from 32). A level-sensitive interrupt follows it; an edge-triggered one is latched by
    /// each call with `level` true. INTIDs that are no SPI of this VM are ignored.
    pub fn set_spi(&self, intid: u32, level: bool, host: &dyn VgicHost) {
        let Some((word, bank)) = self.spis.bank_of(intid) else { return };
        let bit = 1 << (intid % 32);
        // Nobody minds the fall of a line that no list register shows.
        if bank.drive(bit, level) && (level || bank.loaded.load(SeqCst) & bit != 0) {
            self.spis_changed(word, bit, host);
        }
    }

    /// From when it next becomes pending, each end of SPI `intid` by the guest brings an exit and is told
    /// ([`VgicHost::ended`]): its deactivation by the CPU interface, not one by GICD_ICACTIVER. INTIDs that are no SPI of
    /// this VM are ignored.
    pub fn watch_spi(&self, intid: u32) {
        self.spis.watch(intid);
    }

    /// Sets the line of PPI `intid` (16–31) of `vcpu`, as [`set_spi`](Self::set_spi) does. Lines mapped to hardware belong
    /// to it: the call is ignored, as are INTIDs that are no PPI.
    pub fn set_ppi(&self, vcpu: usize, intid: u32, level: bool, host: &dyn VgicHost) {
        let Some(redistributor) = self.redistributors.get(vcpu) else { return };
        if !(16..PRIVATE_INTERRUPTS).contains(&intid) || redistributor.mapped.load(Relaxed) & 1 << intid != 0 {
            return;
        }
        if redistributor.private.drive(1 << intid, level) {
            self.notify(vcpu, host);
        }
    }

    /// Maps PPI `intid` (16–31) of `vcpu` to the physical private interrupt `host_intid` (below 1020) of whatever CPU the vCPU
    /// is on, or unmaps it. Only while the vCPU is not resident; other INTIDs are ignored.
    pub fn map_hw(&self, vcpu: usize, intid: u32, host_intid: Option<u32>) {
        let Some(redistributor) = self.redistributors.get(vcpu) else { return };
        if !(16..PRIVATE_INTERRUPTS).contains(&intid) {
            return;
        }
        match host_intid {
            Some(host_intid) if host_intid < 1020 => {
                redistributor.physical[intid as usize].store(host_intid as u16, Relaxed);
                redistributor.mapped.fetch_or(1 << intid, SeqCst);
            }
            Some(_) => {}
            None => {
                redistributor.mapped.fetch_and(!(1 << intid), SeqCst);
            }
        }
    }

    /// Whether PPI `intid` of `vcpu` is mapped.
    pub fn is_mapped(&self, vcpu: usize, intid: u32) -> bool {
        let mapped = self.redistributors.get(vcpu).map_or(0, |redistributor| redistributor.mapped.load(Relaxed));
        mapped & 1_u32.unbounded_shl(intid) != 0
    }

    /// The physical interrupt behind the mapped PPI `intid` of the resident `vcpu` was acknowledged, and left active, on
    /// this CPU: the PPI is pending.
    #[inline]
    pub fn raise_hw(&self, vcpu: usize, intid: u32) {
        let Some(redistributor) = self.redistributors.get(vcpu) else { return };
        let bit = 1_u32.unbounded_shl(intid) & redistributor.mapped.load(Relaxed);
        redistributor.add_physical_active(bit);
        redistributor.private.level.fetch_or(bit, SeqCst);
        redistributor.dirty.store(true, SeqCst);
    }

    /// Sets the line of the mapped PPI `intid` as software knows it, for a `vcpu` that is not resident. Waking the vCPU is
    /// the caller's business.
    pub fn set_hw_level(&self, vcpu: usize, intid: u32, level: bool) {
        let Some(redistributor) = self.redistributors.get(vcpu) else { return };
        let bit = 1_u32.unbounded_shl(intid) & redistributor.mapped.load(Relaxed);
        if redistributor.private.level.load(SeqCst) & bit == if level { bit } else { 0 } {
            return;
        }
        if level {
            redistributor.private.level.fetch_or(bit, SeqCst);
        } else {
            redistributor.private.level.fetch_and(!bit, SeqCst);
        }
        redistributor.dirty.store(true, SeqCst);
    }

    /// The flag that [`dirty`](Self::dirty) reads, for who looks at it often; `None` for a vCPU that is not there.
    #[inline]
    pub fn dirty_flag(&self, vcpu: usize) -> Option<&AtomicBool> {
        self.redistributors.get(vcpu).map(|redistributor| &redistributor.dirty)
    }

    /// Whether [`flush`](Self::flush) has something to do before `vcpu` is entered.
    #[inline]
    pub fn dirty(&self, vcpu: usize) -> bool {
        self.redistributors.get(vcpu).is_some_and(|redistributor| redistributor.dirty.load(Relaxed))
    }

    /// A maintenance interrupt was taken on the CPU of `vcpu`: flush before the next entry.
    #[inline]
    pub fn maintenance(&self, vcpu: usize) {
        if let Some(redistributor) = self.redistributors.get(vcpu) {
            redistributor.dirty.store(true, SeqCst);
        }
    }
}
