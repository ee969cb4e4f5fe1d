//! KVM's calls on a vCPU: initialisation, power state. Its registers are `one_reg`, running it is [`super::run`].

use super::{
    Errno, Machine,
    events::{Change, Pending},
    init::{self, Request},
    interface,
    ioctl::UserVcpu,
    physical,
    pmu::PmuSetup,
    registers::KeptRegisters,
    stolen::StolenTime,
    translation::SeenChanges,
    uapi::{MpState, VcpuEvents, VcpuInit, feature},
    vm::Vm,
};
use crate::{
    arch::{cache, features, gic::CpuInterface, registers::Debugger, state::GuestState},
    vcpu::{VcpuContext, aarch32, context::PSTATE_RESET, exit::Described},
    vdev::{owner_gic::OwnerCpu, vgic::VgicCpu},
};
use alloc::{boxed::Box, sync::Arc};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use spin::{Mutex, MutexGuard};

/// Requests to a vCPU, served by the CPU it is on.
pub(super) mod request {
    /// Fold the list registers back.
    pub const SYNC: u32 = 1 << 0;
    /// End its wait for an interrupt, or the next one: KVM_HC_KICK_CPU.
    pub const WAKE: u32 = 1 << 1;
    /// Look at its pins.
    pub const PINS: u32 = 1 << 2;
}

/// Why guests left, counted; the index is [`ExitKind`].
pub type ExitCounts = [u64; ExitKind::NAMES.len()];

/// A kind of exit, for statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitKind {
    /// HVC that reached Rust.
    Hvc,
    /// SMC.
    Smc,
    /// System register.
    System,
    /// Data access to a device or to nothing.
    Mmio,
    /// Instruction fetch from nothing, undefined instruction and what else is injected back.
    Fault,
    /// WFI or WFE.
    Wait,
    /// The guest's timers.
    Timer,
    /// A kick by another CPU.
    Kick,
    /// The virtual interface's maintenance interrupt.
    Maintenance,
    /// keel's own timer and the machine's devices.
    Host,
    /// SError.
    SError,
}

impl ExitKind {
    /// Names, by discriminant.
    pub const NAMES: [&'static str; 11] =
        ["hvc", "smc", "sysreg", "mmio", "fault", "wait", "timer", "kick", "maintenance", "host", "serror"];
}

const POWER_OFF: u8 = 0;
const POWER_STARTING: u8 = 1;
const POWER_ON: u8 = 2;
/// keel has given its CPU up: it is off, and firmware's, or goes on without keel.
const POWER_RETIRED: u8 = 3;
/// It is on for its VM, and does not run until whoever runs it says so.
const POWER_SUSPENDED: u8 = 4;

/// How a vCPU starts.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// PC.
    pub entry: u64,
    /// x0.
    pub context: u64,
    /// SCTLR_EL1.EE, in AArch32 PSTATE.E, as the caller of CPU_ON has it.
    pub big_endian: bool,
}

/// State that only the CPU that runs the vCPU touches, and configuration while it does not run.
#[derive(Debug)]
pub struct Inner {
    /// General registers, PC, PSTATE.
    pub context: VcpuContext,
    /// Everything else, while no CPU holds it.
    pub state: GuestState,
    /// What no CPU ever holds.
    pub kept: KeptRegisters,
    /// List registers and the virtual CPU interface.
    pub vgic: VgicCpu,
    /// Interrupts on their way to it, if its VM owns the machine.
    pub owner: OwnerCpu,
    /// Errors that are pending for it. While a CPU holds it, whether the SError still is is hardware's to say.
    pub events: Pending,
    /// FAR_EL2 when it left its CPU: the address of the access that it left for, if it was one.
    pub fault_address: u64,
    /// An access that whoever runs it carries out (KVM_EXIT_MMIO), until the next run.
    pub access: Option<Described>,
    /// Whoever its debug exceptions belong to instead of itself (KVM_SET_GUEST_DEBUG).
    pub debugger: Option<Box<Debugger>>,
    /// The vCPU that is to be run in this one's stead, if its VM may make VMs.
    pub(super) run: Option<Arc<UserVcpu>>,
    /// Changes of the VM's stage 2 that it knows of.
    pub changes: SeenChanges,
    /// Exits so far.
    pub exits: ExitCounts,
    /// What it was initialised with, if it was.
    features: Option<u32>,
}

/// A virtual CPU.
#[derive(Debug)]
pub struct Vcpu {
    index: usize,
    mpidr: AtomicU64,
    cpu: AtomicUsize,
    power: AtomicU8,
    start: Mutex<Option<Start>>,
    /// There is one: set after it, and cleared by who takes it.
    is_asked: AtomicBool,
    pub(super) resident: AtomicBool,
    /// It waits for an interrupt, off its CPU: whoever makes one pending has to call that CPU's attention, once.
    waiting: AtomicBool,
    pub(super) requests: AtomicU32,
    /// HCR_EL2.VI and VF: its pins, where no interrupt controller drives them.
    pub(super) pins: AtomicU64,
    pub(super) stolen: StolenTime,
    /// Its PMU's attributes.
    pub(super) pmu: Mutex<PmuSetup>,
    inner: Mutex<Inner>,
}

impl Vcpu {
    /// The vCPU with this index and affinity (MPIDR_EL1's layout).
    pub(super) fn new(index: usize, affinity: u64) -> Self {
        Self {
            index,
            mpidr: AtomicU64::new(1 << 31 | affinity),
            cpu: AtomicUsize::new(0),
            power: AtomicU8::new(POWER_OFF),
            start: Mutex::new(None),
            is_asked: AtomicBool::new(false),
            resident: AtomicBool::new(false),
            waiting: AtomicBool::new(false),
            requests: AtomicU32::new(0),
            pins: AtomicU64::new(0),
            stolen: StolenTime::default(),
            pmu: Mutex::default(),
            inner: Mutex::new(Inner {
                context: VcpuContext::reset(),
                state: GuestState::reset(false),
                kept: KeptRegisters::RESET,
                vgic: interface::reset_state(),
                owner: OwnerCpu::new(),
                events: Pending::default(),
                fault_address: 0,
                access: None,
                debugger: None,
                run: None,
                changes: SeenChanges::default(),
                exits: [0; ExitKind::NAMES.len()],
                features: None,
            }),
        }
    }

    /// Its index in the VM, which is its id.
    pub fn index(&self) -> usize {
        self.index
    }

    /// MPIDR_EL1 as the guest reads it: RES1 bit 31 and the affinity, unless it was set.
    pub fn mpidr(&self) -> u64 {
        self.mpidr.load(Ordering::Relaxed)
    }

    /// Sets it, before the VM has run.
    pub(super) fn set_mpidr(&self, value: u64) {
        self.mpidr.store(value, Ordering::Relaxed);
    }

    /// The CPU of the machine it runs on.
    pub fn cpu(&self) -> usize {
        self.cpu.load(Ordering::Relaxed)
    }

    /// Says on which CPU of the machine it runs; before it first does.
    pub fn set_cpu(&self, cpu: usize) {
        self.cpu.store(cpu, Ordering::Relaxed);
    }

    /// KVM_ARM_VCPU_INIT: registers as after reset, off if the features say POWER_OFF. May be repeated; what was made pending
    /// for the vCPU is gone then. Its memory is not looked at: whoever changed that publishes it ([`Vm::publish_memory`]).
    ///
    /// # Errors
    ///
    /// Those of [`init::check`]; `EINVAL` for features unlike those of the VM's other vCPUs; `ENODEV` for a PMU on a machine
    /// without; `EAGAIN` while a CPU runs it.
    pub fn init(&self, vm: &Vm, init: &VcpuInit) -> Result<(), Errno> {
        let [midr, ..] = physical::implementation(self.cpu()).unwrap_or_default();
        let Request { features, off } = init::check(init, vm.offer(), midr)?;
        let mut inner = self.at_rest()?;
        vm.agree_on_features(features)?;
        let again = inner.features.replace(features).is_some();
        inner.reset(None);
        if again {
            // What was code may be data by now, and the other way round.
            cache::invalidate_instructions();
        }
        *self.start.lock() = None;
        self.requests.store(0, Ordering::Relaxed);
        self.pins.store(0, Ordering::Relaxed);
        self.power.store(if off { POWER_OFF } else { POWER_ON }, Ordering::SeqCst);
        Ok(())
    }

    /// Completes the access that the last run ended with, if it did and the caller `still` knows of it: a load gets what `data`
    /// gives.
    ///
    /// # Errors
    ///
    /// `ENOEXEC` before [`init`](Self::init).
    pub(super) fn complete_access(&self, still: bool, data: impl FnOnce() -> u64) -> Result<(), Errno> {
        let mut inner = self.take();
        if inner.features.is_none() {
            return Err(Errno::ENOEXEC);
        }
        // An abort that was made pending instead is the access's end.
        let still = still && !inner.events.abort;
        if let Some(access) = inner.access.take()
            && still
        {
            inner.complete(access, data);
        }
        Ok(())
    }

    /// Whether KVM_ARM_VCPU_INIT was called.
    pub(super) fn is_initialised(&self) -> bool {
        self.inner.lock().features.is_some()
    }

    /// KVM_ARM_VCPU_FINALIZE.
    ///
    /// # Errors
    ///
    /// `ENOEXEC` before [`init`](Self::init); `EAGAIN` while a CPU runs it; those of [`init::finalize`].
    pub fn finalize(&self, what: i32) -> Result<(), Errno> {
        let inner = self.initialised()?;
        init::finalize(inner.features.unwrap_or_default(), what)
    }

    /// The state, unless a CPU runs the vCPU; a start that is pending is carried out first, so that registers are those
    /// with which it will run.
    fn at_rest(&self) -> Result<MutexGuard<'_, Inner>, Errno> {
        loop {
            if let Some(mut inner) = self.inner.try_lock() {
                self.start_if_asked(&mut inner);
                return Ok(inner);
            }
            // Others hold it for a moment; who runs it says so at once.
            if self.resident.load(Ordering::SeqCst) {
                return Err(Errno::EAGAIN);
            }
            core::hint::spin_loop();
        }
    }

    /// The state of an initialised vCPU that no CPU runs.
    pub(super) fn initialised(&self) -> Result<MutexGuard<'_, Inner>, Errno> {
        let inner = self.at_rest()?;
        if inner.features.is_some() { Ok(inner) } else { Err(Errno::ENOEXEC) }
    }

    /// Whether KVM_SET_ONE_REG would find it initialised, and at rest.
    ///
    /// # Errors
    ///
    /// `ENOEXEC` before [`init`](Self::init); `EAGAIN` while a CPU runs it.
    pub fn one_reg_settable(&self) -> Result<(), Errno> {
        self.initialised().map(|_| ())
    }

    /// KVM_SET_VCPU_EVENTS.
    ///
    /// # Errors
    ///
    /// `ENOEXEC` before [`init`](Self::init); those of [`Change::check`].
    pub fn set_vcpu_events(&self, events: &VcpuEvents) -> Result<(), Errno> {
        let mut inner = self.initialised()?;
        inner.events.change(Change::check(events, features::has_ras())?);
        Ok(())
    }

    /// KVM_GET_VCPU_EVENTS.
    ///
    /// # Errors
    ///
    /// `ENOEXEC` before [`init`](Self::init).
    pub fn get_vcpu_events(&self) -> Result<VcpuEvents, Errno> {
        Ok(self.initialised()?.events.get(features::has_ras()))
    }

    /// KVM_SET_GUEST_DEBUG.
    ///
    /// # Errors
    ///
    /// `EAGAIN` while a CPU runs it.
    pub fn set_debugger(&self, debugger: Option<Debugger>) -> Result<(), Errno> {
        let debugger = debugger.map(Box::new);
        self.at_rest()?.debugger = debugger;
        Ok(())
    }

    /// KVM_GET_MP_STATE.
    pub fn mp_state(&self) -> MpState {
        match self.power.load(Ordering::SeqCst) {
            POWER_OFF | POWER_RETIRED => MpState::Stopped,
            POWER_SUSPENDED => MpState::Suspended,
            _ => MpState::Runnable,
        }
    }

    /// KVM_SET_MP_STATE. A vCPU that is suspended is on for its VM, but not [`is_started`](Self::is_started): whoever runs it
    /// waits until something wakes it, and reports that.
    pub fn set_mp_state(&self, state: MpState) {
        let power = match state {
            MpState::Runnable => POWER_ON,
            MpState::Stopped => POWER_OFF,
            MpState::Suspended => POWER_SUSPENDED,
        };
        self.power.store(power, Ordering::SeqCst);
    }

    /// Whether it is on, or starting.
    pub fn is_on(&self) -> bool {
        !matches!(self.power.load(Ordering::SeqCst), POWER_OFF | POWER_RETIRED)
    }

    /// It runs on this CPU already, and comes under keel there, with these registers; its VM owns the machine. Its CPU
    /// interface was the physical one, and is `interface`.
    pub fn adopt(&self, machine: &Machine, gpr: [u64; 31], pc: u64, pstate: u64, interface: &CpuInterface) {
        let Some(owner) = &machine.owner else { return };
        let mut inner = self.inner.lock();
        inner.context.gpr = gpr;
        (inner.context.pc, inner.context.pstate) = (pc, pstate);
        inner.state = GuestState::in_machine();
        inner.owner = owner.arrive(self.index, interface);
        self.power.store(POWER_ON, Ordering::SeqCst);
    }

    /// Gives its CPU up, if it is off.
    pub fn retire(&self) -> bool {
        self.power.compare_exchange(POWER_OFF, POWER_RETIRED, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Gives its CPU up, on which it goes on without keel. Whoever waits for it to fold its interrupts back may go on: it
    /// holds none.
    pub fn leave(&self) {
        self.power.store(POWER_RETIRED, Ordering::SeqCst);
        self.resident.store(false, Ordering::SeqCst);
        self.answer_sync();
    }

    /// Whether its CPU was given up.
    pub fn is_retired(&self) -> bool {
        self.power.load(Ordering::SeqCst) == POWER_RETIRED
    }

    /// Answers a request to fold interrupts back, of which this CPU holds none.
    pub(super) fn answer_sync(&self) {
        self.requests.fetch_and(!request::SYNC, Ordering::SeqCst);
    }

    /// Whether it can run.
    pub fn is_started(&self) -> bool {
        self.power.load(Ordering::SeqCst) == POWER_ON
    }

    /// Starts it if it is off; of several callers exactly one succeeds.
    pub(super) fn power_on(&self, start: Start) -> bool {
        let claim = self.power.compare_exchange(POWER_OFF, POWER_STARTING, Ordering::SeqCst, Ordering::SeqCst);
        if claim.is_ok() {
            *self.start.lock() = Some(start);
            self.is_asked.store(true, Ordering::SeqCst);
            self.power.store(POWER_ON, Ordering::SeqCst);
        }
        claim.is_ok()
    }

    /// Says whether it waits for an interrupt. Set before its interrupts are looked at for the last time: what becomes
    /// pending after that finds it set.
    pub fn set_waiting(&self, waiting: bool) {
        self.waiting.store(waiting, Ordering::SeqCst);
    }

    /// Ends its wait, for the one caller that finds it waiting.
    pub(super) fn take_waiting(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) && self.waiting.swap(false, Ordering::SeqCst)
    }

    /// It could have run for `ticks` of a counter of `frequency` Hz while its CPU ran another. Called on that CPU before
    /// it is entered.
    pub fn add_stolen_time(&self, ticks: u64, frequency: u64) {
        self.stolen.add(ticks, frequency);
    }

    /// Whether somebody asked to end its wait; nobody has then.
    pub(super) fn take_wake(&self) -> bool {
        self.requests.load(Ordering::SeqCst) & request::WAKE != 0
            && self.requests.fetch_and(!request::WAKE, Ordering::SeqCst) & request::WAKE != 0
    }

    /// The state, for the CPU that runs it; a start that is pending is carried out first.
    #[inline(always)]
    pub(super) fn take(&self) -> MutexGuard<'_, Inner> {
        let mut inner = self.inner.lock();
        self.start_if_asked(&mut inner);
        inner
    }

    #[inline]
    fn start_if_asked(&self, inner: &mut Inner) {
        if self.is_asked.load(Ordering::SeqCst) {
            self.carry_out_start(inner);
        }
    }

    #[cold]
    fn carry_out_start(&self, inner: &mut Inner) {
        self.is_asked.store(false, Ordering::SeqCst);
        if let Some(start) = self.start.lock().take() {
            inner.reset(Some(start));
        }
    }

    /// The state, unless a CPU has it.
    pub(super) fn try_parked(&self) -> Option<MutexGuard<'_, Inner>> {
        self.inner.try_lock()
    }

    /// The state, while no CPU runs it.
    pub fn parked(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }
}

impl Inner {
    /// Carries out the part of an access that is the vCPU's: a load gets what `data` gives.
    #[inline(always)]
    pub(super) fn complete(&mut self, access: Described, data: impl FnOnce() -> u64) {
        let abort = access.abort();
        if !abort.is_write() {
            self.context.finish_load(abort.load(), data());
        }
        self.context.step_over(abort.instruction_bytes());
    }

    /// Whether it may stand in for another vCPU: it is initialised, nobody debugs it, and no error is pending for it.
    #[inline]
    pub(super) fn is_plain(&self) -> bool {
        self.features.is_some() && self.debugger.is_none() && !self.events.abort && self.events.serror.is_none()
    }

    fn reset(&mut self, start: Option<Start>) {
        let psci_version = self.context.psci_version;
        let features = self.features.unwrap_or(0);
        let is_aarch32 = features & 1 << feature::EL1_32BIT != 0;
        let pstate = if is_aarch32 { aarch32::PSTATE_RESET } else { PSTATE_RESET };
        self.context = VcpuContext { psci_version, pstate, ..VcpuContext::reset() };
        self.state = GuestState::reset(features & 1 << feature::PMU_V3 != 0);
        self.kept = KeptRegisters::RESET;
        self.vgic = interface::reset_state();
        self.owner = OwnerCpu::new();
        self.events = Pending::default();
        self.access = None;
        if let Some(start) = start {
            self.context.pc = start.entry;
            self.context.gpr[0] = start.context;
            if is_aarch32 {
                self.context.start_aarch32(start.big_endian);
            } else if start.big_endian {
                self.state.el1.sctlr |= 1 << 25;
            }
        }
    }
}
