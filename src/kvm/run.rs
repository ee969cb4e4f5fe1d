//! KVM_RUN: a vCPU on this CPU, from entry to the exit that its caller has to see.
//!
//! [`Resident`] is a vCPU whose state this CPU holds. Its loop is keel's hot path: look at the vGIC if it changed, enter,
//! decode once, handle, complete. What a guest does wrong comes back to it as an exception; nothing it does ends the loop
//! in any other way than through [`Leave`].

use super::{
    Errno,
    caller::Caller,
    events::{self, Change, NO_SYNDROME, Verdict},
    interface::{self, Hardware, HardwareV2, HostGic, on_host_gic},
    interrupts::{self, Exiting, Outside},
    ioctl::{Api, KVM_IOCTL, UserVcpu, numbers},
    machine::{Apart, Controller, Machine, Pmu, Stop, Target, User, stop_of},
    owner::{Onward, Owner},
    physical,
    uapi::VcpuEvents,
    vcpu::{ExitKind, Inner, Vcpu, request},
};
use crate::{
    arch::{
        cpu, features, gic, guest_pmu, hcr, mmu,
        pmuv3::PmuRegister,
        registers::FpState,
        serror::{self, Syndrome},
        state::{self, GuestConfig, GuestState},
        sysreg::read_sysreg,
        timer,
    },
    hypercall::{
        self, Call, Conduit, Outcome, Results,
        smccc::{FunctionId, NOT_SUPPORTED},
        stub::{self, HVC_STUB_ERR, StubCall},
    },
    mm::Ipa,
    vcpu::{
        Exit, GuestFault,
        aarch32::PSTATE_E,
        context::PSTATE_SS,
        exit::{self, DataAbort, ExternalAbort, INSTRUCTION_BYTES, InstructionAbort, SystemAccess, Wait},
        switch,
    },
    vdev::{
        mmio::AccessSize,
        sysreg::{self, Action, MachineRegister, SysRegId},
        vgic::SgiRegister,
    },
};
use alloc::sync::Arc;
use core::{
    cell::RefCell,
    fmt,
    ops::{Deref, DerefMut},
    sync::atomic::{AtomicBool, Ordering},
};
use log::error;
use spin::MutexGuard;

mod aarch32;
mod stand_in;

use stand_in::Stood;

/// Why a run ended. The vCPU still holds this CPU, and [`Resident::run`] may be called again, until it is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Somebody wants this CPU to look at its vCPUs.
    Attention,
    /// keel's own timer fired.
    Timer,
    /// An interrupt of the machine arrived.
    Interrupt(physical::Acknowledged),
    /// The guest waits for an interrupt, or until this tick of the physical counter.
    Wait(Option<u64>),
    /// The guest gives way.
    Yield,
    /// The levels of its timers or PMU are no longer those that its caller has seen.
    Levels,
    /// SYSTEM_SUSPEND: its arguments are in x1 (where to go on) and x2 (its x0); nothing has changed.
    Suspend,
    /// A call that the VM's filter leaves to the caller (KVM_EXIT_HYPERCALL), and whether it was an SMC; nothing has changed.
    Hypercall(bool),
    /// The vCPU switched itself off.
    Off,
    /// The VM is to stop.
    Stop(Stop),
    /// An access that no device claims, for whoever runs the VM (KVM_EXIT_MMIO).
    /// `Resident::access` says which.
    Mmio,
    /// One that hardware does not describe (KVM_EXIT_ARM_NISV): its syndrome, and where it is.
    Undescribed(u64, Ipa),
    /// KVM_RUN ends with an error.
    Failed(Errno),
    /// KVM_RUN by the VM that owns the machine: [`Resident::take_run`] says of which vCPU.
    Run,
    /// The VM that owns the machine wants keel to leave this CPU: [`Resident::depart`] or [`Resident::refuse`].
    Depart,
    /// A debug exception, which is whoever debugs it's: [`Resident::crash`] says where.
    Debug,
    /// The guest did something that keel cannot answer: [`Resident::crash`].
    Crash,
}

/// An access to the caller's part of a VM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Where.
    pub address: Ipa,
    /// log2 of the bytes.
    pub log2_size: u8,
    /// What a store stores.
    pub value: Option<u64>,
}

/// What a guest did that ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crash {
    /// ESR_EL2.
    pub esr: u64,
    /// FAR_EL2.
    pub far: u64,
    /// PC.
    pub pc: u64,
    /// PSTATE.
    pub pstate: u64,
}

/// What is never dirty.
static NEVER: AtomicBool = AtomicBool::new(false);

/// A vCPU whose state this CPU holds.
pub struct Resident<'a> {
    vcpu: &'a Vcpu,
    machine: &'a Machine,
    inner: MutexGuard<'a, Inner>,
    /// HCR_EL2 without what follows from the vCPU's own state.
    base: u64,
    /// HCR_EL2 as it was written; hardware clears VSE.
    hcr: u64,
    mdcr: u64,
    /// MDCR_EL2 of guests that stand in for this one, but for what keeps them from debug registers.
    mdcr_guest: u64,
    /// What moves with them because of this CPU.
    parts_of_cpu: u8,
    cptr: u64,
    /// Where what is in the FP and SIMD registers goes when the guest first uses its own: they are another's, which this one
    /// stands in for.
    lent_fp: Option<&'a mut FpState>,
    /// The vCPU that this one stands in for.
    behind: Option<&'a Vcpu>,
    /// The PMU asked for its shared interrupt, and is watched until it no longer does.
    overflowed: bool,
    /// The PMU's counters would count EL2: they stand still at least while this CPU does other things than this guest's.
    pauses: bool,
    /// Those that do.
    paused: u64,
    /// The guest's own PSTATE.SS, while it has a debugger.
    step: u64,
    /// What whoever runs it knows of the levels of its timers and PMU, where no interrupt controller has them.
    seen: Option<u32>,
    /// Where the access is that it left for.
    access: Ipa,
    /// WFI leaves to the caller, as [`Self::trap_wait`] said.
    trap: bool,
    /// Set when this CPU is to look at its vCPUs.
    attention: &'static AtomicBool,
    /// Set when the vGIC is to be looked at before the next entry.
    dirty: &'a AtomicBool,
}

/// A vCPU that is put off this CPU when this is dropped.
pub struct Residence<'a>(Resident<'a>);

impl<'a> Resident<'a> {
    /// Puts `vcpu` on this CPU. `trap`: as in [`trap_wait`](Self::trap_wait).
    pub fn load(machine: &'a Machine, vcpu: &'a Vcpu, trap: bool) -> Residence<'a> {
        let mut guard = vcpu.take();
        let inner = &mut *guard;
        let monitor = physical::monitor_bits();
        let mdcr_guest = match &machine.pmu {
            None => hcr::MDCR_GUEST | monitor,
            Some(pmu) => guest_mdcr(pmu, monitor),
        };
        let [cptr, mut mdcr] = machine.owner.as_ref().and_then(Owner::traps).unwrap_or([hcr::CPTR_GUEST, mdcr_guest]);
        // A kernel that ran before keel did keeps what it has.
        let is_late = machine.owner.as_ref().and_then(Owner::traps).is_some();
        let is_debugged = inner.debugger.is_some();
        let may_trap = !is_late && !machine.is_aarch32() && inner.state.may_trap_debug();
        let traps_debug = may_trap || is_debugged;
        if traps_debug {
            mdcr |= hcr::MDCR_DEBUG_TRAPS;
        }
        if is_debugged {
            mdcr |= hcr::MDCR_DEBUG_EXCEPTIONS;
        }
        let serror = inner.events.serror;
        let mut base = machine.hcr;
        if serror.is_some() {
            // The machine's owner has none of its own until it has to be given one.
            base |= hcr::HCR_AMO;
        }
        let pins = vcpu.pins.load(Ordering::SeqCst);
        let mut hcr = base | pins;
        if serror.is_some() {
            hcr |= hcr::HCR_VSE;
        }
        if trap {
            hcr |= hcr::HCR_TWI;
        }
        // What the timers are as software knows them: lines that dropped meanwhile must not interrupt any more.
        if !machine.is_owner() {
            for (intid, deadline) in deadlines(&inner.state, machine) {
                machine.set_timer_level(vcpu.index(), intid, deadline.is_some_and(|at| at <= timer::now()));
            }
        }
        if let Some(intid) = machine.pmu_private {
            let level = pmu_output(machine, inner);
            machine.set_timer_level(vcpu.index(), intid, level);
        }
        let config = config(machine, vcpu, [hcr, mdcr, cptr], traps_debug, serror);
        inner.state.load(&config, machine.pmu.as_ref().and_then(|pmu| pmu.events.as_ref()));
        let step = inner.context.pstate & PSTATE_SS;
        if let Some(debugger) = &inner.debugger {
            inner.state.attach(debugger);
            inner.context.pstate = inner.context.pstate & !PSTATE_SS | if debugger.steps { PSTATE_SS } else { 0 };
        }
        if machine.is_aarch32() {
            // Before an exception that it is to take writes some of them.
            inner.kept.aarch32.load();
        }
        if core::mem::take(&mut inner.events.abort) {
            let far = inner.fault_address;
            switch::inject(&mut inner.context, GuestFault::DataAbort { far, write: false });
        }
        let pauses = inner.state.pmu.is_some() && guest_pmu::needs_pause() && !machine.is_owner();
        let paused = if pauses { guest_pmu::pause() } else { 0 };
        inner.context.psci_version = machine.psci_answer();
        if machine.note_running(vcpu.index()) {
            crate::arch::tlb::flush_local_vmid();
        }
        match &machine.owner {
            None => on_host_gic!(host => machine.vgic.load(vcpu.index(), &mut inner.vgic, host)),
            Some(owner) => owner.gic.load(vcpu.index(), &mut inner.owner, &mut Hardware, owner),
        }
        vcpu.resident.store(true, Ordering::SeqCst);
        let mut resident = Residence(Self {
            vcpu,
            machine,
            base,
            hcr,
            step,
            seen: None,
            access: Ipa(0),
            trap,
            mdcr,
            parts_of_cpu: if machine.api.is_some() { stand_in::parts_of_cpu() } else { 0 },
            mdcr_guest: if machine.api.is_some() { hcr::MDCR_GUEST | physical::monitor_bits() } else { 0 },
            cptr,
            lent_fp: None,
            behind: None,
            overflowed: false,
            pauses,
            paused,
            inner: guard,
            attention: physical::attention(),
            // The owner's interrupts are not the vGIC's.
            dirty: machine.vgic.dirty_flag(vcpu.index()).filter(|_| !machine.is_owner()).unwrap_or(&NEVER),
        });
        // What was asked for before it was said to be here. The load is ordered after that store, and the loop's look at
        // `dirty` after this load: an interrupt that came before is found.
        if vcpu.requests.load(Ordering::SeqCst) != 0 || vcpu.pins.load(Ordering::SeqCst) != pins {
            resident.update_traps();
        }
        resident
    }

    /// The VM.
    pub(super) fn machine(&self) -> &'a Machine {
        self.machine
    }

    /// Whether WFI is to be seen by the caller: it is, while another vCPU could use this CPU.
    pub fn trap_wait(&mut self, trap: bool) {
        self.trap = trap;
        self.update_traps();
    }

    /// The levels of its timers and PMU are for whoever runs it, who has last seen these (KVM_CAP_ARM_USER_IRQ).
    pub fn watch_levels(&mut self, seen: u32) {
        static ALWAYS: AtomicBool = AtomicBool::new(true);
        self.seen = Some(seen);
        self.dirty = &ALWAYS;
    }

    /// A vCPU that was told to wake has its next WFI seen here too, so that it does not sleep over that.
    fn update_traps(&mut self) {
        self.fold_serror();
        let trap = self.trap || self.vcpu.requests.load(Ordering::SeqCst) & request::WAKE != 0;
        let mut hcr = self.base | self.vcpu.pins.load(Ordering::SeqCst) | if trap { hcr::HCR_TWI } else { 0 };
        if self.inner.events.serror.is_some() {
            hcr |= hcr::HCR_VSE;
        }
        if hcr != self.hcr {
            self.hcr = hcr;
            state::set_hcr(hcr);
        }
    }

    /// Notes whether the guest has taken, or deferred, the virtual SError that was pending for it.
    fn fold_serror(&mut self) {
        if self.hcr & hcr::HCR_VSE != 0 && !state::is_serror_pending() {
            self.hcr &= !hcr::HCR_VSE;
            self.inner.events.serror = None;
        }
    }

    /// KVM_SET_VCPU_EVENTS for the vCPU that this CPU holds; an external abort is taken before its next instruction.
    fn change_events(&mut self, change: Change) {
        self.fold_serror();
        self.inner.events.change(change);
        if let Some(syndrome) = change.serror {
            state::set_serror_syndrome(syndrome);
        }
        self.update_traps();
        if core::mem::take(&mut self.inner.events.abort) {
            let far = switch::fault_address().far;
            switch::inject(&mut self.inner.context, GuestFault::DataAbort { far, write: false });
        }
    }

    /// Runs the guest until its caller has something to do.
    pub fn run(&mut self) -> Leave {
        if !self.pauses {
            return self.run_until();
        }
        guest_pmu::resume(self.paused);
        let leave = self.run_until();
        self.paused = guest_pmu::pause();
        leave
    }

    fn run_until(&mut self) -> Leave {
        if physical::has_gicv2() { self.run_on::<HardwareV2>() } else { self.run_on::<Hardware>() }
    }

    #[inline(never)]
    fn run_on<G: HostGic>(&mut self) -> Leave {
        loop {
            if self.attention.load(Ordering::Relaxed) {
                return Leave::Attention;
            }
            if self.dirty.load(Ordering::Relaxed) {
                if self.seen.is_some_and(|seen| seen != live_levels()) {
                    return Leave::Levels;
                }
                let index = self.vcpu.index();
                self.machine.vgic.flush(index, &mut self.inner.vgic, &mut { G::HERE }, &Outside(self.machine));
            }
            let trap = switch::enter(&mut self.inner.context);
            // Each of the frequent ones goes straight to the next entry.
            let leave = if trap.is_synchronous() {
                let esr = switch::esr();
                if let Some(immediate) = exit::hvc(esr) {
                    self.count(ExitKind::Hvc);
                    if self.answer_unknown() {
                        continue;
                    }
                    if self.machine.dispatches_unknown
                        && self.inner.context.gpr[0] as u32 == KVM_IOCTL
                        && immediate == 0
                        && let Some(api) = &self.machine.api
                    {
                        self.ioctl(api)
                    } else {
                        self.call(Conduit::Hvc, immediate)
                    }
                } else if let Some(abort) = DataAbort::decode(esr, switch::fault_address) {
                    self.count(ExitKind::Mmio);
                    if abort.is_described() {
                        if self.mmio(&abort).is_some() {
                            self.inner.context.skip_instruction(abort.instruction_bytes());
                            continue;
                        }
                        if let Some(user) = &self.machine.user
                            && abort.ipa().0 < user.unbound.load(Ordering::Relaxed)
                            && !user.stage2.may_be_back(self.inner.changes)
                        {
                            self.leave_access(&abort, abort.ipa());
                            return Leave::Mmio;
                        }
                    }
                    self.unclaimed(&abort)
                } else if let Some(access) = SystemAccess::decode(esr) {
                    self.count(ExitKind::System);
                    let outcome = self.system::<G>(&access);
                    if outcome.is_err() && self.give_debug(access.esr) {
                        continue;
                    }
                    self.finish(outcome, INSTRUCTION_BYTES);
                    continue;
                } else {
                    self.rare(Exit::decode(esr, switch::fault_address()), INSTRUCTION_BYTES)
                }
            } else if trap.is_interrupt() {
                self.interrupt::<G>()
            } else {
                self.rare_trap::<G>(trap)
            };
            if let Some(leave) = leave {
                return leave;
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn rare_trap<G: HostGic>(&mut self, trap: switch::Trap) -> Option<Leave> {
        if trap.is_serror() { self.serror() } else { self.exit_aarch32::<G>() }
    }

    #[inline(always)]
    fn count(&mut self, kind: ExitKind) {
        self.inner.exits[kind as usize] += 1;
    }

    /// The end of every exit that does not leave: past the instruction, or into the guest's exception vector.
    #[inline(always)]
    fn finish(&mut self, outcome: Result<(), GuestFault>, bytes: u64) {
        match outcome {
            Ok(()) => self.inner.context.skip_instruction(bytes),
            Err(fault) => switch::inject(&mut self.inner.context, fault),
        }
    }

    /// The same for guests in either state.
    #[cold]
    fn finish_rare(&mut self, outcome: Result<(), GuestFault>, bytes: u64) {
        match outcome {
            Ok(()) => self.inner.context.step_over(bytes),
            Err(fault) => switch::inject(&mut self.inner.context, fault),
        }
    }

    /// `bytes`: of the instruction.
    #[cold]
    #[inline(never)]
    fn rare(&mut self, exit: Exit, bytes: u64) -> Option<Leave> {
        let fault = match exit {
            Exit::Smc { immediate } => {
                self.count(ExitKind::Smc);
                self.inner.context.skip_instruction(INSTRUCTION_BYTES);
                if immediate == 0 && self.answer_unknown() {
                    return None;
                }
                return self.call(Conduit::Smc, immediate);
            }
            Exit::Wait(wait) => {
                self.count(ExitKind::Wait);
                self.inner.context.step_over(bytes);
                return self.wait(wait);
            }
            Exit::Unexpected { esr } if self.inner.debugger.is_some() && exit::is_debug_exception(esr) => {
                return Some(Leave::Debug);
            }
            Exit::Unexpected { .. } => return Some(Leave::Crash),
            Exit::Instruction(abort) => match self.fetch_fault(&abort) {
                Ok(fault) => fault,
                Err(leave) => return leave,
            },
            Exit::Undefined if exit::is_debug(switch::esr()) && self.end_debug_trap() => return None,
            Exit::Undefined if exit::is_fp(switch::esr()) && self.give_fp() => return None,
            Exit::Undefined => GuestFault::Undefined,
        };
        self.count(ExitKind::Fault);
        switch::inject(&mut self.inner.context, fault);
        None
    }

    /// What the guest is told of a fetch that did not come to be; `Err`: nothing, it tries again, or leaves.
    #[cold]
    #[inline(never)]
    fn fetch_fault(&mut self, abort: &InstructionAbort) -> Result<GuestFault, Option<Leave>> {
        let (far, page) = (abort.far(), abort.page());
        if let Some(external) = abort.external() {
            return Ok(self.meet(external, far, true));
        }
        if let Some(user) = &self.machine.user {
            if abort.is_translation_fault() && user.stage2.is_back(&mut self.inner.changes, page) {
                return Err(None);
            }
            if abort.is_write_of_walk() {
                match self.machine.take_write(user, page) {
                    None => return Err(None),
                    Some(Err(errno)) => return Err(Some(Leave::Failed(errno))),
                    // Memory that the walk may not write to.
                    Some(Ok(())) => {}
                }
            }
        }
        Ok(if abort.is_on_walk() {
            GuestFault::WalkAbort { far, fetch: true, write: false }
        } else {
            GuestFault::InstructionAbort { far }
        })
    }

    /// Answers a call that nobody implements, which a guest may make as often as any; `false` if it is another.
    #[inline(always)]
    fn answer_unknown(&mut self) -> bool {
        let function = FunctionId(self.inner.context.gpr[0] as u32);
        let unknown = !self.machine.dispatches_unknown && hypercall::is_unknown(function);
        if unknown {
            self.inner.context.set_results([NOT_SUPPORTED as u64, 0, 0, 0]);
        }
        unknown
    }

    #[inline(never)]
    fn call(&mut self, conduit: Conduit, immediate: u16) -> Option<Leave> {
        self.call_from(false, conduit, immediate)
    }

    #[inline(always)]
    fn call_from(&mut self, aarch32: bool, conduit: Conduit, immediate: u16) -> Option<Leave> {
        let function = self.inner.context.gpr[0];
        if stub::is_stub_number(function)
            && let Some(leave) = self.stub_call(conduit)
        {
            return leave;
        }
        let registers = self.inner.context.gpr.first_chunk::<18>()?;
        let call = Call { conduit, immediate, aarch32, registers };
        let outcome = hypercall::dispatch(&Caller { machine: self.machine, vcpu: self.vcpu }, &call);
        match outcome.results() {
            Results::None => {}
            Results::Four(results) => self.inner.context.set_results(results),
            Results::X0(x0) => self.inner.context.set_register(0, x0),
        }
        match outcome {
            Outcome::Return(_) | Outcome::ReturnX0(_) => None,
            Outcome::Suspend(_) => Some(Leave::Wait(None)),
            Outcome::CpuOff => Some(Leave::Off),
            Outcome::System(event) => Some(Leave::Stop(stop_of(event))),
            rare => self.carry_out(rare),
        }
    }

    /// A call that is none of SMCCC's. `None`: not from the VM that owns the machine, or not by HVC.
    #[cold]
    #[inline(never)]
    fn stub_call(&mut self, conduit: Conduit) -> Option<Option<Leave>> {
        if !self.machine.is_owner() || conduit != Conduit::Hvc {
            return None;
        }
        Some(match stub::decode(self.inner.context.gpr.first_chunk::<18>()?) {
            StubCall::SoftRestart { .. } | StubCall::ResetVectors => Some(Leave::Depart),
            StubCall::Refused => {
                self.refuse();
                None
            }
        })
    }

    /// KVM_IOCTL of a VM that may make VMs.
    #[inline(never)]
    fn ioctl(&mut self, api: &Api) -> Option<Leave> {
        let [_, handle, number, argument, ..] = self.inner.context.gpr;
        let user = if number as u32 == numbers::RUN { api.vcpu(handle) } else { None };
        let result = match user {
            Some(user) => match self.stand_in(&user, argument) {
                Ok(Stood::Done) => return None,
                Ok(Stood::Due) => return Some(Leave::Timer),
                _ if user.is_dead() => Err(Errno::EIO),
                Ok(Stood::Not) => {
                    self.inner.run = Some(user);
                    return Some(Leave::Run);
                }
                Err(errno) => Err(errno),
            },
            None => api.call(handle, number, argument, self.machine.memory()),
        };
        self.answer_ioctl(result);
        None
    }

    /// Of which vCPU KVM_RUN was asked for.
    pub fn take_run(&mut self) -> Option<Arc<UserVcpu>> {
        self.inner.run.take()
    }

    /// The result of KVM_IOCTL, in x0.
    pub fn answer_ioctl(&mut self, result: Result<u64, Errno>) {
        self.inner.context.set_register(0, result.unwrap_or_else(|errno| errno.negated() as u64));
    }

    /// A register of the guest's, by number.
    pub(super) fn argument(&self, n: u8) -> u64 {
        self.inner.context.register(n)
    }

    /// Sets one.
    pub(super) fn set_argument(&mut self, n: u8, value: u64) {
        self.inner.context.set_register(n, value);
    }

    /// Answers a call of the stub's with HVC_STUB_ERR.
    pub fn refuse(&mut self) {
        self.inner.context.set_register(0, HVC_STUB_ERR);
    }

    /// keel leaves this CPU, whose owner asked for it.
    pub fn depart(&mut self) {
        let machine = self.machine;
        let call = self.inner.context.gpr.first_chunk::<18>().map(stub::decode);
        let onward = match call {
            Some(StubCall::SoftRestart { entry, arguments }) => Onward::Payload { entry, arguments },
            _ => Onward::Caller,
        };
        if let Some(owner) = &machine.owner {
            owner.depart(machine, self.vcpu, &mut self.inner, onward);
        }
    }

    /// What a call asked for beside its answer.
    #[cold]
    fn carry_out(&mut self, outcome: Outcome) -> Option<Leave> {
        match outcome {
            Outcome::SystemSuspend => return Some(Leave::Suspend),
            Outcome::Forward => return Some(Leave::Hypercall(exit::is_smc(switch::esr()))),
            Outcome::StolenTime { .. } => self.machine.note_write(self.vcpu.stolen.start()),
            Outcome::Wake(index) if index == self.vcpu.index() => {
                self.vcpu.requests.fetch_or(request::WAKE, Ordering::SeqCst);
                self.update_traps();
            }
            Outcome::Wake(index) => {
                if let Some(vcpu) = self.machine.vcpus.get(index) {
                    interrupts::wake(vcpu);
                }
            }
            Outcome::Interrupt { vcpus, sgi } => {
                let inner = &mut *self.inner;
                let host = Exiting { machine: self.machine, vcpu: self.vcpu, vgic: RefCell::new(&mut inner.vgic) };
                for vcpu in (0..64).filter(|vcpu| vcpus & 1 << vcpu != 0) {
                    if self.machine.is_owner() {
                        // Its SGIs are the machine's.
                        let target = self.machine.vcpus.get(vcpu);
                        target.into_iter().for_each(|vcpu| gic::send_sgi_to(vcpu.mpidr(), sgi.into()));
                        continue;
                    }
                    self.machine.vgic.send_sgi_to(self.vcpu.index(), vcpu, sgi, &host);
                }
            }
            Outcome::YieldTo(index) => {
                let same_cpu = self.machine.vcpus.get(index).is_some_and(|vcpu| vcpu.cpu() == self.vcpu.cpu());
                return same_cpu.then_some(Leave::Yield);
            }
            Outcome::SetEvents(words) => {
                let checked = Change::check(&VcpuEvents::from_words(words), features::has_ras());
                let x0 = checked.map_or_else(Errno::negated, |_| 0);
                self.inner.context.set_results([x0 as u64, 0, 0, 0]);
                if let Ok(change) = checked {
                    self.change_events(change);
                }
            }
            Outcome::GetEvents => {
                self.fold_serror();
                let [first, second] = self.inner.events.get(features::has_ras()).words();
                self.inner.context.set_results([0, first, second, 0]);
            }
            Outcome::Return(_) | Outcome::ReturnX0(_) | Outcome::Suspend(_) | Outcome::CpuOff | Outcome::System(_) => {}
        }
        None
    }

    /// The answer to an access that no device claims, or that cannot be carried out.
    fn refuse_access(&mut self, abort: &DataAbort) {
        let (far, write) = (abort.far(), abort.is_write());
        let outcome = if let Some(external) = abort.external() {
            Err(self.meet(external, far, false))
        } else if abort.is_on_walk() {
            Err(GuestFault::WalkAbort { far, fetch: false, write })
        } else if abort.is_cache_maintenance() {
            // There is nothing behind the address that could be in a cache.
            Ok(())
        } else {
            Err(GuestFault::DataAbort { far, write })
        };
        self.finish_rare(outcome, abort.instruction_bytes());
    }

    /// Memory of the guest's has failed under its access. It is told what the machine says; if the error may be anywhere,
    /// it does not come to read it.
    #[cold]
    fn meet(&mut self, external: ExternalAbort, far: u64, fetch: bool) -> GuestFault {
        self.count(ExitKind::SError);
        if external.is_uncontainable() {
            self.stop_for(format_args!(
                "an uncontainable external abort (UC), ESR_EL2 {:#x} FAR_EL2 {far:#x}",
                switch::esr()
            ));
        }
        GuestFault::External { far: (!external.is_nowhere()).then_some(far), fetch, iss: external.iss }
    }

    /// Stops the VM from where it cannot leave: before its next entry.
    fn stop_for(&self, what: fmt::Arguments<'_>) {
        let (name, index, pc) = (&self.machine.name, self.vcpu.index(), self.inner.context.pc);
        error!("VM {name} vCPU {index}: {what} at PC {pc:#x}");
        self.machine.stop(Stop::Crash);
    }

    /// A data access that stage 2 refused, and that is no device's of this machine.
    #[cold]
    #[inline(never)]
    fn unclaimed(&mut self, abort: &DataAbort) -> Option<Leave> {
        if let Some(user) = &self.machine.user
            && abort.external().is_none()
        {
            return self.for_user(user, abort);
        }
        self.refuse_access(abort);
        None
    }

    /// Such an access, in a VM that its maker runs.
    fn for_user(&mut self, user: &User, abort: &DataAbort) -> Option<Leave> {
        let mut address = abort.ipa();
        if user.stage2.may_be_back(self.inner.changes)
            && abort.is_translation_fault()
            && user.stage2.is_back(&mut self.inner.changes, address)
        {
            return None;
        }
        if abort.is_permission_fault() {
            if !abort.is_on_walk() {
                // If nothing is there any more, the next try tells.
                address = mmu::guest_address(abort.far())?;
            }
            if let Err(errno) = self.machine.take_write(user, address)? {
                return Some(Leave::Failed(errno));
            }
        }
        if abort.is_on_walk() || abort.is_cache_maintenance() || address.0 >= user.unbound.load(Ordering::Relaxed) {
            if abort.is_on_walk() || abort.is_cache_maintenance() || address >= user.end {
                self.refuse_access(abort);
                return None;
            }
            if self.store_event(user, abort, address) {
                return None;
            }
        }
        if !abort.has_syndrome() {
            return Some(if user.nisv {
                Leave::Undescribed(abort.fault_syndrome(), address)
            } else {
                Leave::Failed(Errno::ENOSYS)
            });
        }
        self.leave_access(abort, address);
        Some(Leave::Mmio)
    }

    /// An access of a VM whose maker has bound stores to events. `true` if it was one of those, and is done.
    #[cold]
    #[inline(never)]
    fn store_event(&mut self, user: &User, abort: &DataAbort, address: Ipa) -> bool {
        if !abort.has_syndrome() || !abort.is_write() {
            return false;
        }
        let size = AccessSize::from_log2(abort.size().into());
        let value = self.inner.context.register(abort.register()) & size.mask();
        let is_event = user.bindings.store(address.0, size.bytes(), value);
        if is_event {
            self.inner.context.step_over(abort.instruction_bytes());
        }
        is_event
    }

    /// Notes an access at `address`, which hardware describes, for whoever runs the VM.
    #[inline(always)]
    fn leave_access(&mut self, abort: &DataAbort, address: Ipa) {
        self.inner.access = abort.described();
        self.access = address;
    }

    /// The access that it left for ([`Leave::Mmio`]).
    #[inline(always)]
    pub(super) fn access(&self) -> Option<Access> {
        let abort = self.inner.access?.abort();
        let mask = u64::MAX >> (64 - (8 << abort.size()));
        let value = abort.is_write().then(|| self.inner.context.register(abort.register()) & mask);
        Some(Access { address: self.access, log2_size: abort.size(), value })
    }

    /// A load or store that a device answers; `None` if none claims it.
    #[inline(always)]
    fn mmio(&mut self, abort: &DataAbort) -> Option<()> {
        let inner = &mut *self.inner;
        let size = AccessSize::from_log2(abort.size().into());
        let (target, offset) = self.machine.bus.find(abort.ipa(), size)?;
        if let Target::Apart(apart) = target {
            self.access_apart(abort, apart, offset, size);
            return Some(());
        }
        // What drivers do most, when no device has to do anything for it.
        if abort.is_word_load()
            && let Some(value) = self.machine.peek(target, offset)
        {
            inner.context.set_register(abort.register(), value.into());
            return Some(());
        }
        let host = Exiting { machine: self.machine, vcpu: self.vcpu, vgic: RefCell::new(&mut inner.vgic) };
        if abort.is_write() {
            let value = inner.context.register(abort.register()) & size.mask();
            self.machine.write(target, offset, size, value, &host);
        } else {
            let value = self.machine.read(target, offset, size, &host);
            inner.context.finish_load(abort.load(), value);
        }
        Some(())
    }

    /// A load or store of the machine's owner to a frame of the interrupt controller, or one to the distributor of a GICv2, to
    /// the ITS or to redistributors apart from the first vCPU's.
    #[cold]
    #[inline(never)]
    fn access_apart(&mut self, abort: &DataAbort, apart: Apart, offset: u64, size: AccessSize) {
        let inner = &mut *self.inner;
        let value = abort.is_write().then(|| inner.context.register(abort.register()) & size.mask());
        let value = match apart {
            Apart::Frame(frame) if self.machine.is_owner() => {
                self.machine.access_owned(frame, offset, size, value, self.vcpu, &mut inner.owner)
            }
            apart => {
                let (index, vgic) = (self.vcpu.index(), RefCell::new(&mut inner.vgic));
                let host = Exiting { machine: self.machine, vcpu: self.vcpu, vgic };
                match (apart, value) {
                    (Apart::Its, _) => self.machine.access_its(offset, size, value, &host),
                    (Apart::Frame(first), _) => self.machine.access_redistributor(first, offset, size, value, &host),
                    (_, None) => self.machine.vgic.v2_read(index, offset, size, &host),
                    (_, Some(value)) => {
                        self.machine.vgic.v2_write(index, offset, size, value, &host);
                        0
                    }
                }
            }
        };
        if !abort.is_write() {
            inner.context.finish_load(abort.load(), value);
        }
    }

    /// A trapped system register.
    #[inline(always)]
    fn system<G: HostGic>(&mut self, access: &SystemAccess) -> Result<(), GuestFault> {
        let inner = &mut *self.inner;
        let sgi = 'sgi: {
            // These two are by far the busiest.
            if !G::IS_V2 && access.is(const { sysreg::ICC_SGI1R_EL1.iss_of_write() }) {
                break 'sgi SgiRegister::Sgi1r;
            }
            let id = SysRegId::from_iss(access.esr);
            if !access.write
                && let Some(register) = id.id_register()
            {
                inner.context.set_register(access.register, self.machine.id_registers.get(register));
                return Ok(());
            }
            match id.action(access.write) {
                // A guest with a GICv2 has none of the GIC's system registers, whatever its CPU has.
                Action::Sgi(_) | Action::Deactivate | Action::Common(_) if G::IS_V2 => {
                    return Err(GuestFault::Undefined);
                }
                Action::Sgi(register) => break 'sgi register,
                Action::Id(register) => {
                    inner.context.set_register(access.register, self.machine.id_registers.get(register));
                }
                Action::Machine(register) => inner.context.set_register(
                    access.register,
                    match register {
                        MachineRegister::Revidr => cpu::revidr(),
                        MachineRegister::Aidr => cpu::aidr(),
                    },
                ),
                Action::OsLockStatus => inner.context.set_register(access.register, state::os_lock_status()),
                Action::OsLock => inner.state.set_os_lock(inner.context.register(access.register)),
                Action::ReadAs(value) => inner.context.set_register(access.register, value),
                Action::WriteIgnore => {}
                Action::Deactivate if self.machine.controller == Controller::None => return Err(GuestFault::Undefined),
                Action::Deactivate => {
                    let intid = inner.context.register(access.register) as u32 & 0xff_ffff;
                    if let Some(owner) = &self.machine.owner {
                        owner.gic.deactivate(self.vcpu.index(), intid, &mut inner.owner, &mut Hardware, owner);
                        return Ok(());
                    }
                    self.machine.vgic.deactivate(
                        self.vcpu.index(),
                        intid,
                        &mut inner.vgic,
                        &mut Hardware,
                        &Outside(self.machine),
                    );
                }
                Action::Common(_) | Action::Undefined => return self.rare_system(access.esr),
            }
            return Ok(());
        };
        let value = inner.context.register(access.register);
        if self.machine.controller != Controller::Virtual {
            return self.other_sgi(sgi, value);
        }
        let host = Exiting { machine: self.machine, vcpu: self.vcpu, vgic: RefCell::new(&mut inner.vgic) };
        self.machine.vgic.send_sgi(self.vcpu.index(), sgi, value, &host);
        Ok(())
    }

    /// An SGI of a VM that has the machine's interrupt controller, or none.
    #[inline(never)]
    fn other_sgi(&self, register: SgiRegister, value: u64) -> Result<(), GuestFault> {
        if self.machine.controller == Controller::None {
            return Err(GuestFault::Undefined);
        }
        // Those of group 0 are not its.
        if register == SgiRegister::Sgi1r {
            gic::send_sgi(value);
        }
        Ok(())
    }

    /// The guest's first access to a debug register (op0 = 2) since it came: it has them from here on, and tries again.
    #[cold]
    #[inline(never)]
    fn give_debug(&mut self, iss: u32) -> bool {
        let number = SysRegId::from_iss(iss).fields();
        if self.inner.debugger.is_some() {
            return self.access_debugged(number, iss);
        }
        number[0] == 2 && self.end_debug_trap()
    }

    /// An access to a debug register by a guest that has a debugger. `false` if there is no such register.
    fn access_debugged(&mut self, number: [u8; 5], iss: u32) -> bool {
        let inner = &mut *self.inner;
        // ISS (Arm ARM, ESR_ELx, EC 0x18): direction, 1 = read; Rt.
        let (read, register) = (iss & 1 != 0, (iss >> 5 & 0x1f) as u8);
        let value = (!read).then(|| inner.context.register(register));
        let Some(debugger) = &inner.debugger else { return false };
        let Some(result) = inner.state.access_debug(number, value, debugger) else { return false };
        if read {
            inner.context.set_register(register, result);
        }
        inner.context.skip_instruction(INSTRUCTION_BYTES);
        true
    }

    /// `false` if the debug registers do not trap.
    #[cold]
    fn end_debug_trap(&mut self) -> bool {
        let traps =
            self.mdcr & hcr::MDCR_DEBUG_TRAPS != 0 && self.inner.debugger.is_none() && !self.inner.state.has_debug();
        if traps {
            self.inner.state.give_debug();
            self.mdcr &= !hcr::MDCR_DEBUG_TRAPS;
            let overflowed = if self.overflowed { hcr::MDCR_PMU_TRAPS } else { 0 };
            state::set_mdcr(self.mdcr | overflowed);
        }
        traps
    }

    /// A system register that only some VMs have, and these seldom trap. `iss` is the whole of the access; anything more in
    /// the call would cost the frequent ones.
    #[cold]
    #[inline(never)]
    fn rare_system(&mut self, iss: u32) -> Result<(), GuestFault> {
        let id = SysRegId::from_iss(iss);
        // ISS (Arm ARM, ESR_ELx, EC 0x18): direction, 1 = read; Rt.
        let (read, register) = (iss & 1 != 0, (iss >> 5 & 0x1f) as u8);
        let value = (!read).then(|| self.inner.context.register(register));
        let result = if let Some(register) = PmuRegister::decode(id.fields()) {
            self.pmu(register, value)
        } else if self.machine.is_offset {
            timer::offset_access(id.fields(), value, self.machine.counter_offset())
        } else {
            None
        };
        let common = || match id.action(!read) {
            Action::Common(register) if self.machine.controller != Controller::None => {
                Some(interface::access_common(register, value))
            }
            _ => None,
        };
        let value = result.or_else(common).ok_or(GuestFault::Undefined)?;
        if read {
            self.inner.context.set_register(register, value);
        }
        Ok(())
    }

    /// An access of a PMU whose events are filtered, or that is watched.
    fn pmu(&mut self, register: PmuRegister, value: Option<u64>) -> Option<u64> {
        let events = self.machine.pmu.as_ref()?.events.as_ref();
        let result = self.inner.state.pmu.as_mut()?.access(register, value, events);
        if self.overflowed && !guest_pmu::output() {
            self.set_shared_overflow(false);
        }
        result
    }

    /// The PMU's overflow interrupt. A private one is hardware's from here on, as the timers' are. A shared one follows its
    /// line, and since the guest can make that fall without an exit, its PMU is watched from here on until it does.
    fn overflow(&mut self, acknowledged: physical::Acknowledged) {
        let index = self.vcpu.index();
        if self.machine.pmu.is_none() || !guest_pmu::output() {
            // It came about before the vCPU that it is for left this CPU, or no longer asked.
            guest_pmu::refresh_output();
            acknowledged.deactivate();
        } else if let Some(private) = self.machine.pmu_private {
            self.machine.vgic.raise_hw(index, private);
        } else {
            self.set_shared_overflow(true);
        }
    }

    /// The shared overflow interrupt of this vCPU's PMU comes or goes; while it is there the machine's stays active.
    fn set_shared_overflow(&mut self, level: bool) {
        self.overflowed = level;
        let traps = if level { hcr::MDCR_PMU_TRAPS } else { 0 };
        state::set_mdcr(self.mdcr | traps);
        if let Some(intid) = self.machine.pmu_shared(self.vcpu.index()) {
            self.machine.vgic.set_spi(intid, level, &Outside(self.machine));
        }
        if !level && let Some(intid) = physical::interrupts().and_then(|host| host.pmu) {
            physical::Acknowledged(intid).deactivate();
        }
    }

    fn wait(&mut self, wait: Wait) -> Option<Leave> {
        if self.vcpu.take_wake() {
            self.update_traps();
            return None;
        }
        let deadline = |register| self.inner.context.register(register).wrapping_add(self.machine.counter_offset());
        Some(match wait {
            Wait::Interrupt => Leave::Wait(None),
            Wait::InterruptTimeout(register) => Leave::Wait(Some(deadline(register))),
            Wait::Event | Wait::EventTimeout(_) => Leave::Yield,
        })
    }

    /// A physical interrupt took this CPU out of the guest.
    #[inline(always)]
    fn interrupt<G: HostGic>(&mut self) -> Option<Leave> {
        let acknowledged = G::acknowledge();
        let intid = G::intid(acknowledged);
        if intid >= gic::SPURIOUS {
            return None;
        }
        G::drop_priority(acknowledged);
        let host = physical::interrupts()?;
        if intid == host.hypervisor_timer || G::is_call(intid) {
            return self.tick::<G>(acknowledged);
        }
        if !G::IS_V2 && self.machine.is_owner() {
            self.take_for_owner(intid, intid == host.maintenance);
            return None;
        }
        let index = self.vcpu.index();
        // A guest's timer stays active until the guest ends it.
        if intid == host.virtual_timer {
            self.count(ExitKind::Timer);
            self.machine.vgic.inject_hw(index, self.machine.timers[0], &mut self.inner.vgic, &mut { G::HERE });
        } else if intid == host.physical_timer {
            self.count(ExitKind::Timer);
            self.machine.vgic.inject_hw(index, self.machine.timers[1], &mut self.inner.vgic, &mut { G::HERE });
        } else if intid == host.maintenance {
            self.count(ExitKind::Maintenance);
            self.machine.vgic.maintenance(index);
            // Its level falls with the flush, which comes before the next entry; until then it must stay active.
            self.machine.vgic.flush(index, &mut self.inner.vgic, &mut { G::HERE }, &Outside(self.machine));
            G::deactivate(acknowledged);
        } else {
            return self.rare_interrupt(intid, physical::Acknowledged(acknowledged));
        }
        None
    }

    /// An interrupt that comes seldom: the PMU's, or one of the machine's devices'.
    #[cold]
    #[inline(never)]
    fn rare_interrupt(&mut self, intid: u32, acknowledged: physical::Acknowledged) -> Option<Leave> {
        self.count(ExitKind::Host);
        if physical::interrupts().and_then(|host| host.pmu) != Some(intid) {
            // An event of the VM's maker's, perhaps for this very guest.
            return (!self.machine.take_event(intid)).then_some(Leave::Interrupt(acknowledged));
        }
        self.overflow(acknowledged);
        None
    }

    /// An interrupt of the machine, for the VM that owns it.
    #[inline(never)]
    fn take_for_owner(&mut self, intid: u32, is_maintenance: bool) {
        let Some(owner) = &self.machine.owner else { return };
        let (index, inner) = (self.vcpu.index(), &mut *self.inner);
        if is_maintenance {
            inner.exits[ExitKind::Maintenance as usize] += 1;
            // Its level falls with what is loaded here; until then it must stay active.
            owner.gic.maintenance(index, &mut inner.owner, &mut Hardware, owner);
            gic::deactivate(intid);
        } else {
            inner.exits[ExitKind::Host as usize] += 1;
            if owner.events.take(intid) {
                return;
            }
            owner.gic.take(index, intid, &mut inner.owner, &mut Hardware, owner);
        }
    }

    /// keel's own interrupt: its timer, another CPU's call, or both.
    #[inline(always)]
    fn tick<G: HostGic>(&mut self, acknowledged: u32) -> Option<Leave> {
        let is_due = timer::hypervisor_output();
        if is_due {
            timer::set_deadline(None);
        }
        G::deactivate(acknowledged);
        self.count(if is_due { ExitKind::Host } else { ExitKind::Kick });
        if self.vcpu.requests.load(Ordering::SeqCst) != 0 {
            self.serve_requests::<G>();
        }
        if is_due {
            return Some(Leave::Timer);
        }
        let behind = self.behind?;
        (behind.requests.load(Ordering::SeqCst) != 0).then_some(Leave::Attention)
    }

    #[inline(never)]
    fn serve_requests<G: HostGic>(&mut self) {
        if self.vcpu.requests.load(Ordering::SeqCst) & request::SYNC != 0 {
            if let Some(owner) = &self.machine.owner {
                owner.gic.settle(self.vcpu.index(), &mut self.inner.owner, &mut Hardware, owner);
                return self.vcpu.answer_sync();
            }
            let index = self.vcpu.index();
            self.machine.vgic.sync(index, &mut self.inner.vgic, &mut { G::HERE }, &Outside(self.machine));
            self.vcpu.requests.fetch_and(!request::SYNC, Ordering::SeqCst);
        }
        self.vcpu.requests.fetch_and(!request::PINS, Ordering::SeqCst);
        self.update_traps();
    }

    /// A physical SError while the guest ran: it is the guest's doing as far as anyone can tell.
    #[cold]
    fn serror(&mut self) -> Option<Leave> {
        self.count(ExitKind::SError);
        let syndrome = Syndrome { esr: switch::esr(), has_ras: features::has_ras() };
        match events::judge(syndrome) {
            Verdict::Resume => None,
            Verdict::Inject => {
                self.change_events(Change { serror: Some(NO_SYNDROME), abort: false });
                None
            }
            Verdict::Stop => Some(Leave::Crash),
        }
    }

    /// What the guest did that it left for ([`Leave::Crash`]).
    pub fn crash(&self) -> Crash {
        Crash {
            esr: switch::esr(),
            far: switch::fault_address().far,
            pc: self.inner.context.pc,
            pstate: self.inner.context.pstate,
        }
    }
}

impl Resident<'_> {
    /// A physical SError that came about while this vCPU had the CPU, which it no longer has.
    #[cold]
    fn blame(&mut self, syndrome: Syndrome) {
        self.count(ExitKind::SError);
        match events::judge(syndrome) {
            Verdict::Resume => {}
            Verdict::Inject => self.inner.events.change(Change { serror: Some(NO_SYNDROME), abort: false }),
            Verdict::Stop => self.stop_for(format_args!("{syndrome}, syndrome {:#x}", syndrome.esr)),
        }
    }
}

/// What makes the machine the guest's. `traps`: HCR_EL2, MDCR_EL2 and CPTR_EL2.
#[inline(always)]
fn config(machine: &Machine, vcpu: &Vcpu, traps: [u64; 3], traps_debug: bool, serror: Option<u64>) -> GuestConfig {
    let [hcr, mdcr, cptr] = traps;
    GuestConfig {
        hcr,
        serror,
        vttbr: machine.vttbr,
        vtcr: machine.vtcr,
        vmpidr: vcpu.mpidr(),
        cntvoff: machine.counter_offset(),
        mdcr,
        traps_debug,
        cptr,
        traps_counter: machine.is_offset,
    }
}

impl<'a> Deref for Residence<'a> {
    type Target = Resident<'a>;

    #[inline(always)]
    fn deref(&self) -> &Resident<'a> {
        &self.0
    }
}

impl DerefMut for Residence<'_> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl Drop for Residence<'_> {
    fn drop(&mut self) {
        self.0.unload();
    }
}

impl Resident<'_> {
    /// Takes the vCPU off this CPU.
    #[inline(never)]
    fn unload(&mut self) {
        let inner = &mut *self.inner;
        match &self.machine.owner {
            None => {
                let (vgic, index, outside) = (&self.machine.vgic, self.vcpu.index(), &Outside(self.machine));
                on_host_gic!(host => vgic.unload(index, &mut inner.vgic, host, outside));
            }
            // Before the timers stop: which of their interrupts are active is still to be seen.
            Some(owner) => owner.gic.unload(self.vcpu.index(), &mut inner.owner, &mut Hardware, owner),
        }
        if self.pauses {
            guest_pmu::resume(self.paused);
        }
        if self.machine.is_aarch32() {
            inner.context.narrow();
            inner.kept.aarch32.save();
        }
        if self.overflowed
            && let Some(intid) = physical::interrupts().and_then(|host| host.pmu)
        {
            physical::Acknowledged(intid).deactivate();
        }
        inner.fault_address = switch::fault_address().far;
        if inner.debugger.is_some() {
            inner.context.pstate = inner.context.pstate & !PSTATE_SS | self.step;
            inner.state.detach();
        }
        self.fold_serror();
        self.inner.state.save();
        // What the guest has done to the machine is found before anyone else has this CPU.
        if let Some(syndrome) = serror::collect() {
            self.blame(syndrome);
        }
        // The list registers are folded back: whoever waits for that may go on.
        self.vcpu.requests.fetch_and(!request::SYNC, Ordering::SeqCst);
        self.vcpu.resident.store(false, Ordering::SeqCst);
    }
}

/// `kvm_run.s.regs.device_irq_level` (Linux, uapi `asm/kvm.h`): KVM_ARM_DEV_EL1_VTIMER, EL1_PTIMER, PMU.
fn levels(virtual_timer: bool, physical_timer: bool, pmu: bool) -> u32 {
    u32::from(virtual_timer) | u32::from(physical_timer) << 1 | u32::from(pmu) << 2
}

/// Those of the guest that this CPU holds.
#[cold]
fn live_levels() -> u32 {
    levels(timer::virtual_output(), timer::physical_output(), features::has_pmu() && guest_pmu::output())
}

/// Those of a vCPU that no CPU holds.
pub(super) fn parked_levels(machine: &Machine, vcpu: &Vcpu) -> u32 {
    let inner = vcpu.parked();
    let now = timer::now();
    let [virtual_timer, physical_timer] =
        deadlines(&inner.state, machine).map(|(_, at)| at.is_some_and(|at| at <= now));
    levels(virtual_timer, physical_timer, pmu_output(machine, &inner))
}

/// Whether the PMU of a vCPU that no CPU holds asks for its interrupt.
fn pmu_output(machine: &Machine, inner: &Inner) -> bool {
    machine.pmu.as_ref().zip(inner.state.pmu.as_ref()).is_some_and(|(vm, pmu)| pmu.output(vm.counters))
}

/// MDCR_EL2 for a VM whose vCPUs have PMUs, on a CPU with these [`monitor_bits`](physical::monitor_bits): its accesses trap
/// only where events are filtered and nothing finer than that can be said (FEAT_FGT).
fn guest_mdcr(pmu: &Pmu, monitor: u64) -> u64 {
    let traps = if pmu.events.is_some() && !features::has_fgt() { hcr::MDCR_PMU_TRAPS } else { 0 };
    let counters = u64::from(pmu.counters).min(monitor & hcr::MDCR_HPMN);
    hcr::mdcr_guest_with_pmu(features::pmu_version()) | traps | monitor & !hcr::MDCR_HPMN | counters
}

/// The sooner of them; the end of time if neither will interrupt.
#[inline(always)]
fn next_deadline(state: &GuestState, machine: &Machine) -> u64 {
    let timers = &state.timers;
    if (timers.virtual_control | timers.physical_control) & 1 == 0 {
        return u64::MAX;
    }
    let mut next = u64::MAX;
    if timers.virtual_control & 3 == 1 {
        next = timers.virtual_compare.saturating_add(machine.counter_offset());
    }
    if timers.physical_control & 3 == 1 {
        next = next.min(timers.physical_compare);
    }
    next
}

/// When the timers of a vCPU that no CPU holds are due, in ticks of the physical counter, with their interrupts.
pub fn deadlines(state: &GuestState, machine: &Machine) -> [(u32, Option<u64>); 2] {
    let timers = &state.timers;
    // ENABLE and not IMASK: the timer will interrupt.
    let due = |control: u64, at: u64| (control & 3 == 1).then_some(at);
    [
        (
            machine.timers[0],
            due(timers.virtual_control, timers.virtual_compare.saturating_add(machine.counter_offset())),
        ),
        (machine.timers[1], due(timers.physical_control, timers.physical_compare)),
    ]
}

/// Whether a vCPU that no CPU holds has something to run for: an interrupt, or a timer that is due. Timers that are due
/// are raised; the earliest that is not is what the second value says.
pub fn is_runnable(machine: &Machine, vcpu: &Vcpu, now: u64) -> (bool, Option<u64>) {
    let inner = vcpu.parked();
    let mut next: Option<u64> = None;
    let mut is_due = false;
    for (intid, deadline) in deadlines(&inner.state, machine) {
        match deadline {
            Some(at) if at <= now => {
                machine.set_timer_level(vcpu.index(), intid, true);
                is_due = true;
            }
            Some(at) => next = Some(next.map_or(at, |next| next.min(at))),
            None => {}
        }
    }
    // The owner's timers are hardware's: whether they may interrupt is found out when it runs.
    let is_runnable = vcpu.take_wake()
        || machine.has_pending_interrupt(vcpu.index(), &inner)
        || is_due && machine.is_owner()
        // A pending SError ends WFI, masked or not (Arm ARM D1.7).
        || inner.events.serror.is_some()
        || vcpu.pins.load(Ordering::SeqCst) != 0;
    (is_runnable, next)
}

/// Whether the guest that this CPU holds, and that has just left, works with big-endian data: SCTLR_EL1.EE, in AArch32
/// PSTATE.E.
pub(super) fn caller_is_big_endian() -> bool {
    if state::is_el1_aarch32() {
        return read_sysreg!("spsr_el2") & PSTATE_E != 0;
    }
    read_sysreg!("sctlr_el1") & (1 << 25) != 0
}
