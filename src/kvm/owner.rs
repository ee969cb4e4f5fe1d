//! The VM that owns the machine: its interrupts are the machine's, and it may send keel away.
//!
//! The owner runs as any VM does, behind stage 2 and with its exits answered here, but on the machine's own addresses. Each
//! of its vCPUs has a CPU of its own number. What it may do beyond others: reach the machine's GIC, checked
//! ([`crate::vdev::owner_gic`]), and make keel leave, CPU by CPU (hyp-stub ABI). Leaving begins with the first CPU that asks:
//! CPUs that are off are given back to firmware then, so that whoever is next can start them; CPUs that are on stay under
//! keel until they ask too.

use super::{
    Machine, Vcpu,
    bindings::{self, OwnerEvents},
    interface::Hardware,
    physical,
    vcpu::Inner,
};
use crate::{
    arch::{
        cache, cpu,
        depart::{self, Successor},
        gic::{self, CpuInterface, Distributor, Redistributor},
        guest_pmu, smc, state, stub, timer,
    },
    mm::{Ipa, Pa},
    vdev::{
        mmio::AccessSize,
        owner_gic::{Frame, InterfaceState, IntidSet, OwnerCpu, OwnerGic, OwnerGicConfig, OwnerHost, PhysicalGic},
    },
};
use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU8, Ordering::SeqCst};

/// How long a CPU that was given back may take to be off, in parts of a second.
const PATIENCE: u64 = 1;

const STAYING: u8 = 0;
const PREPARING: u8 = 1;
const LEAVING: u8 = 2;

/// GICD_CTLR.EnableGrp1 (EnableGrp1A for a non-secure access).
const CTLR_ENABLE: u64 = 1 << 1;
/// GICD_CTLR: only affinity routing on.
const CTLR_ARE_NS: u64 = 1 << 4;

/// ICC_CTLR_EL1.EOImode.
const ICC_CTLR_EOIMODE: u64 = 1 << 1;

/// What an owner's machine has besides what every VM's has.
#[derive(Debug)]
pub struct Owner {
    pub(super) gic: OwnerGic,
    pub(super) events: Arc<OwnerEvents>,
    distributor: Distributor,
    /// By vCPU.
    redistributors: Vec<Redistributor>,
    kept: u32,
    timers: u32,
    successor: Successor,
    state: AtomicU8,
    /// CPTR_EL2 and MDCR_EL2 of a kernel that ran before keel did: it keeps the features it has found.
    traps: Option<[u64; 2]>,
}

/// Why a VM cannot own the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerError {
    /// keel does not drive the machine's GIC yet, or not on this CPU.
    NoGic(usize),
    /// An interrupt that keel needs for itself is no PPI.
    SharedInterrupt(u32),
}

/// What a departing CPU's kernel is to find in its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Onward {
    /// It goes on where it is, with 0 in x0.
    Caller,
    /// A payload at EL2.
    Payload {
        /// Its first instruction.
        entry: u64,
        /// Its x0 to x2.
        arguments: [u64; 3],
    },
}

impl PhysicalGic for Owner {
    fn read(&self, frame: Frame, offset: u64, size: AccessSize) -> u64 {
        match frame {
            Frame::Distributor => self.distributor.read(offset, size as u32),
            Frame::Redistributor(vcpu) => {
                self.redistributors.get(vcpu).map_or(0, |frame| frame.read(offset, size as u32))
            }
        }
    }

    fn write(&self, frame: Frame, offset: u64, size: AccessSize, value: u64) {
        match frame {
            Frame::Distributor => self.distributor.write(offset, size as u32, value),
            Frame::Redistributor(vcpu) => {
                if let Some(frame) = self.redistributors.get(vcpu) {
                    frame.write(offset, size as u32, value);
                }
            }
        }
    }

    fn deactivate(&self, intid: u32) {
        gic::deactivate(intid);
    }
}

impl Owner {
    /// An owner whose vCPUs have the CPUs `cpus`, in order, and which leaves the machine to `successor`. `late`: it runs
    /// already.
    ///
    /// # Errors
    ///
    /// [`OwnerError`] if the machine's interrupts cannot be shared between it and keel.
    pub fn new(cpus: &[usize], successor: Successor, late: bool) -> Result<Self, OwnerError> {
        let distributor = physical::distributor().ok_or(OwnerError::NoGic(0))?;
        let host = physical::interrupts().ok_or(OwnerError::NoGic(0))?;
        let of_cpu = |&cpu: &usize| physical::redistributor_of(cpu).copied().ok_or(OwnerError::NoGic(cpu));
        let redistributors = cpus.iter().map(of_cpu).collect::<Result<Vec<_>, _>>()?;
        let mask = |intids: [u32; 2]| {
            intids.into_iter().try_fold(0, |mask, intid| match intid {
                16..32 => Ok(mask | 1 << intid),
                _ => Err(OwnerError::SharedInterrupt(intid)),
            })
        };
        let kept = mask([host.hypervisor_timer, host.maintenance])?;
        // The PMU's is switched as they are; where it is not private, nobody but the owner has it.
        let pmu = host.pmu.filter(|intid| (16..32).contains(intid)).map_or(0, |intid| 1 << intid);
        let timers = mask([host.virtual_timer, host.physical_timer])? | pmu;
        let enabled = late && distributor.read(0, 2) & CTLR_ENABLE != 0;
        let config = OwnerGicConfig { vcpus: cpus.len(), kept, timers, timer_priority: gic::KEEL_PRIORITY, enabled };
        let gic = OwnerGic::new(config);
        let traps = late.then(state::owner_traps);
        let events = bindings::events_of(distributor);
        let state = AtomicU8::new(STAYING);
        Ok(Self { gic, events, distributor, redistributors, kept, timers, successor, state, traps })
    }

    /// Its shared interrupts, as events for VMs of its own.
    pub fn events(&self) -> &Arc<OwnerEvents> {
        &self.events
    }

    /// Where the GIC's frames are, for the owner's accesses to be seen: GICD, and each vCPU's GICR, with their lengths.
    pub fn frames(&self) -> impl Iterator<Item = (Frame, Ipa, u64)> + '_ {
        let distributor = (Frame::Distributor, self.distributor.base(), gic::DISTRIBUTOR_LENGTH);
        let redistributors = self.redistributors.iter().enumerate();
        core::iter::once(distributor)
            .chain(redistributors.map(|(n, one)| (Frame::Redistributor(n), one.base(), gic::REDISTRIBUTOR_LENGTH)))
            .map(|(frame, Pa(base), length)| (frame, Ipa(base), length))
    }

    /// The owner starts again, with none of its vCPUs on a CPU: its interrupts are off, and none is on its way.
    pub(super) fn reset(&self) {
        self.gic.reset();
        let all = |frame, word: u64, except: u32| {
            // GICD_ICENABLER, ICPENDR, ICACTIVER: the same offsets in a redistributor's second frame.
            let base = if frame == Frame::Distributor { 0 } else { 0x1_0000 };
            for register in [0x180, 0x280, 0x380] {
                self.write(frame, base + register + 4 * word, AccessSize::Word, u64::from(!except));
            }
        };
        for word in 1..u64::from(self.distributor.interrupts().div_ceil(32)) {
            all(Frame::Distributor, word, 0);
        }
        for vcpu in 0..self.redistributors.len() {
            // The timers' are used by other VMs' vCPUs too.
            all(Frame::Redistributor(vcpu), 0, self.kept | self.timers);
        }
    }

    /// What CPTR_EL2 and MDCR_EL2 the owner runs with, if it ran before keel did.
    pub(super) fn traps(&self) -> Option<[u64; 2]> {
        self.traps
    }

    /// The owner's `vcpu`, which runs on this CPU over the physical CPU interface, comes under keel, which takes that over.
    pub(super) fn arrive(&self, vcpu: usize, interface: &CpuInterface) -> OwnerCpu {
        let mut active = IntidSet::EMPTY;
        // Without EOImode every active interrupt has an active priority.
        if interface.ap1r.iter().any(|&bits| bits != 0) || interface.ctlr & ICC_CTLR_EOIMODE != 0 {
            for (word, frame) in (0..self.distributor.interrupts().div_ceil(32))
                .map(|word| (word, if word == 0 { Frame::Redistributor(vcpu) } else { Frame::Distributor }))
            {
                let base = if word == 0 { 0x1_0000 } else { 0 };
                let bits = self.read(frame, base + 0x300 + 4 * u64::from(word), AccessSize::Word);
                for intid in IntidSet::of_word(32 * word, bits).iter().filter(|&intid| self.is_here(intid)) {
                    active.insert(intid);
                }
            }
        }
        self.gic.arrive(vcpu, state_of(interface), active, self)
    }

    /// Whether an active interrupt is active on this CPU: its own, or one that is sent here.
    fn is_here(&self, intid: u32) -> bool {
        intid < 32 || self.distributor.read(0x6000 + 8 * u64::from(intid), 3) & cpu::MPIDR_AFFINITY == cpu::mpidr()
    }

    /// Whether keel is on its way out.
    #[inline]
    pub fn is_leaving(&self) -> bool {
        self.state.load(SeqCst) != STAYING
    }

    /// Before a CPU leaves: those that are off are given back to firmware, once. Returns when they are off.
    fn prepare(&self, machine: &Machine) {
        if self.state.compare_exchange(STAYING, PREPARING, SeqCst, SeqCst).is_err() {
            while self.state.load(SeqCst) != LEAVING {
                core::hint::spin_loop();
            }
            return;
        }
        let mut retired = Vec::new();
        for vcpu in machine.vcpus.iter().filter(|vcpu| vcpu.retire()) {
            physical::call_attention(vcpu.cpu());
            retired.push(vcpu.mpidr());
        }
        let deadline = timer::now() + timer::frequency() * PATIENCE;
        let is_off = |mpidr: &u64| smc::is_off(mpidr & cpu::MPIDR_AFFINITY);
        while !retired.iter().all(is_off) && timer::now() < deadline {
            core::hint::spin_loop();
        }
        self.state.store(LEAVING, SeqCst);
    }

    /// Turns this CPU off, whose vCPU is off, because keel is leaving. Comes back only if firmware does not do it.
    pub fn turn_off(&self, vcpu: usize) {
        self.hand_over(vcpu, CpuInterface::default());
        let _ = smc::cpu_off();
    }

    /// Gives this CPU's interrupts to the kernel.
    fn hand_over(&self, vcpu: usize, interface: CpuInterface) {
        timer::set_deadline(None);
        if let Some(redistributor) = self.redistributors.get(vcpu) {
            redistributor.release(self.kept);
        }
        if !self.gic.is_enabled() {
            self.distributor.write(0, 2, CTLR_ARE_NS);
        }
        interface.hand_over();
    }

    /// keel leaves this CPU, on which the owner's `vcpu` is resident.
    pub(super) fn depart(&self, machine: &Machine, vcpu: &Vcpu, inner: &mut Inner, onward: Onward) -> ! {
        self.prepare(machine);
        let state = self.gic.depart(vcpu.index(), &mut inner.owner, &mut Hardware, self);
        self.hand_over(vcpu.index(), interface_of(&state));
        physical::leave();
        vcpu.leave();
        if self.traps.is_none() {
            guest_pmu::give_back();
        }
        let context = &inner.context;
        let mut gpr = context.gpr;
        match onward {
            Onward::Caller => {
                gpr[0] = 0;
                depart::depart(self.successor, &gpr, context.pc, context.pstate, None)
            }
            Onward::Payload { entry, arguments } => {
                gpr[..3].copy_from_slice(&arguments);
                let successor = Successor { relays: false, ..self.successor };
                depart::depart(successor, &gpr, context.pc, context.pstate, Some(entry))
            }
        }
    }

    /// Starts the CPU with this affinity, which firmware has: at `entry` in EL1, over the stub. PSCI's error number if
    /// firmware does not.
    pub(super) fn start(&self, mpidr: u64, entry: u64, context: u64) -> Result<(), i64> {
        const INTERNAL_FAILURE: i64 = -6;
        const ALREADY_ON: i64 = -4;
        let resident = stub::resident();
        let mpidr = mpidr & cpu::MPIDR_AFFINITY;
        let block = resident
            .index(cpu::mpidr())
            .zip(resident.index(mpidr))
            .and_then(|(caller, target)| resident.start(caller, target))
            .ok_or(INTERNAL_FAILURE)?;
        let at = block.address();
        let lines = at..Pa(at.0 + size_of::<stub::EntryBlock>() as u64);
        // The CPU that is started reads and frees it past the caches.
        cache::clean_invalidate(lines.clone());
        if block.is_pending() {
            return Err(ALREADY_ON);
        }
        block.fill(entry, context, self.successor.vectors);
        cache::clean_invalidate(lines.clone());
        smc::cpu_on(mpidr, stub::entry_address(), at).inspect_err(|_| {
            block.clear();
            cache::clean_invalidate(lines);
        })
    }
}

/// ICH_VMCR_EL2: VENG0 0, VENG1 1, VFIQEn 3, VCBPR 4, VEOIM 9, VBPR1 20:18, VBPR0 23:21, VPMR 31:24 (IHI 0069 §12.4.8).
fn interface_of(state: &InterfaceState) -> CpuInterface {
    let vmcr = state.vmcr;
    CpuInterface {
        pmr: vmcr >> 24 & 0xff,
        bpr: [vmcr >> 21 & 7, vmcr >> 18 & 7],
        ctlr: vmcr >> 4 & 1 | (vmcr >> 9 & 1) << 1,
        igrpen: [vmcr & 1, vmcr >> 1 & 1],
        ap1r: state.ap1r,
    }
}

/// The other way round.
fn state_of(interface: &CpuInterface) -> InterfaceState {
    let [bpr0, bpr1] = interface.bpr;
    let [group0, group1] = interface.igrpen;
    let vmcr = group0
        | group1 << 1
        | 1 << 3
        | (interface.ctlr & 1) << 4
        | (interface.ctlr >> 1 & 1) << 9
        | bpr1 << 18
        | bpr0 << 21
        | interface.pmr << 24;
    InterfaceState { vmcr, ap0r: [0; 4], ap1r: interface.ap1r }
}

/// The owner's vCPUs during an exit of `vcpu`.
pub(super) struct Owning<'a> {
    pub machine: &'a Machine,
    pub vcpu: &'a Vcpu,
}

impl OwnerHost for Owning<'_> {
    fn settle(&self, vcpu: usize) {
        if let Some(other) = self.machine.vcpus.get(vcpu) {
            // Its own interrupts are settled before it asks others.
            super::interrupts::wait_for_sync(other, || self.vcpu.answer_sync());
        }
    }

    fn retract(&self, vcpu: usize, without: &IntidSet) {
        let (Some(other), Some(owner)) = (self.machine.vcpus.get(vcpu), &self.machine.owner) else { return };
        // Its CPU has the lock while it is resident, and for a moment at other times.
        if let Some(mut inner) = other.try_parked() {
            owner.gic.retract(vcpu, &mut inner.owner, without, owner);
        }
    }

    fn held(&self, vcpu: usize) -> IntidSet {
        let inner = self.machine.vcpus.get(vcpu).and_then(|other| other.try_parked());
        inner.map_or(IntidSet::EMPTY, |inner| OwnerGic::held(&inner.owner))
    }
}
