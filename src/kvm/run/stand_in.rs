//! KVM_RUN, the short way: a vCPU of a VM that the machine's owner made runs in the owner's stead, which keeps its CPU.
//!
//! Monitors come here twice for each access that they emulate, so only what must move moves: of the owner its system
//! registers, its timers and its CPU interface. Its FP and SIMD registers stay, and trap, until the guest uses its own; the
//! keys of pointer authentication stay if the guest has none; keel's deadline stays in the timer; for the owner's other
//! CPUs it is still on this one, and what they ask of it ends the run.
//!
//! What is not like that goes the long way ([`Leave::Run`]): it takes the owner off the CPU and puts the vCPU there. It may
//! do so at any point, for a run that is taken up again only goes on.

use super::{Leave, NEVER, Resident, config, deadlines, next_deadline};
use crate::{
    arch::{
        cpu, features, hcr, serror,
        state::{self, GuestState},
        timer, tlb,
    },
    kvm::{
        Errno,
        interface::Hardware,
        interrupts::Outside,
        ioctl::{
            UserVcpu,
            run::{End, KvmRun},
        },
        machine::Machine,
        physical::Acknowledged,
        uapi::MpState,
        vcpu::{Inner, Vcpu},
    },
    mm::{Ipa, frame::SharedPage},
    vcpu::switch,
    vdev::vgic::VirtualInterface,
};
use core::sync::atomic::{AtomicBool, Ordering};

/// What came of a run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stood {
    /// KVM_RUN has its result.
    Done,
    /// And keel's timer has fired.
    Due,
    /// It has to go the long way.
    Not,
}

impl Resident<'_> {
    /// Runs the vCPU in the stead of this one, and answers KVM_RUN. That of a [dead](UserVcpu::is_dead) VM never runs.
    ///
    /// # Errors
    ///
    /// Those of KVM_RUN, if it does not even begin.
    #[inline(always)]
    pub(super) fn stand_in(&mut self, user: &UserVcpu, argument: u64) -> Result<Stood, Errno> {
        let guard = user.claim()?;
        if argument != 0 {
            return Err(Errno::EINVAL);
        }
        Ok(self.run_in_stead(user, &guard))
    }

    #[inline(always)]
    fn run_in_stead(&mut self, user: &UserVcpu, page: &Option<SharedPage>) -> Stood {
        let (vcpu, machine) = user.running();
        let (Some(page), Some(machine), Some(owner)) = (page, machine, &self.machine.owner) else { return Stood::Not };
        let is_plain = self.inner.state.is_plain() && self.inner.events.serror.is_none();
        if !machine.is_plain || !vcpu.is_started() || !is_plain {
            return Stood::Not;
        }
        let page = KvmRun(page);
        let mut inner = vcpu.take();
        if !inner.is_plain() {
            return Stood::Not;
        }
        if let Some(access) = inner.access.take()
            && page.is_mmio()
        {
            inner.complete(access, || page.mmio_data());
        }
        if page.wants_exit() {
            self.answer_ioctl(Err(Errno::EINTR));
            return Stood::Done;
        }
        if !owner.gic.set_aside(&mut self.inner.owner, &mut Hardware) {
            return Stood::Not;
        }
        page.begin();
        vcpu.set_cpu(cpu::index());
        self.inner.state.set_aside();
        let keys = if machine.hcr & hcr::HCR_PAUTH != 0 { Extent::KEYS } else { 0 };
        let extent = Extent(self.parts_of_cpu | keys);
        let amo = self.has_amo();
        if extent.save_serrors(&mut self.inner.state, amo) {
            return self.fail(extent);
        }
        if extent.has_extra() {
            self.exchange_extra(extent, &mut inner);
        }
        let deadline = self.bring_deadline_forward();
        let (end, leave, used_fp) = {
            let seat = seat(machine, vcpu, &mut inner, self.mdcr_guest, extent);
            let mut guest = Resident {
                vcpu,
                machine,
                base: seat.hcr,
                hcr: seat.hcr,
                mdcr: seat.mdcr,
                mdcr_guest: 0,
                parts_of_cpu: 0,
                cptr: seat.cptr,
                lent_fp: Some(&mut self.inner.state.fp),
                behind: Some(self.vcpu),
                step: 0,
                seen: None,
                access: Ipa(0),
                trap: false,
                overflowed: false,
                pauses: false,
                paused: 0,
                inner,
                attention: self.attention,
                dirty: seat.dirty,
            };
            // As in `load`.
            if vcpu.requests.load(Ordering::SeqCst) != 0 {
                // Nothing is in its list registers yet.
                vcpu.answer_sync();
                guest.update_traps();
            }
            let leave = guest.run_on::<Hardware>();
            let end = if matches!(leave, Leave::Mmio) {
                if let Some(access) = guest.access() {
                    page.exit_mmio(access);
                }
                None
            } else {
                Some(page.end(leave, &mut guest))
            };
            guest.leave_in_stead(extent);
            (end, leave, guest.lent_fp.is_none())
        };
        self.take_up(extent, used_fp);
        if let Some(deadline) = deadline
            && !matches!(leave, Leave::Timer)
        {
            timer::set_deadline(deadline);
        }
        if self.vcpu.requests.load(Ordering::SeqCst) != 0 {
            self.serve_requests::<Hardware>();
        }
        match end {
            None => self.inner.context.gpr[0] = 0,
            Some(end) => return self.rare_end(end, leave, vcpu, page),
        }
        Stood::Done
    }

    /// An exit other than KVM_EXIT_MMIO.
    #[cold]
    #[inline(never)]
    fn rare_end(&mut self, end: End, leave: Leave, vcpu: &Vcpu, page: KvmRun<'_>) -> Stood {
        let result = match end {
            End::Result(result) => result,
            End::Interrupt(acknowledged) => self.interrupted(page, acknowledged),
            End::Wait(_) | End::Again => return Stood::Not,
            End::Off => {
                vcpu.set_mp_state(MpState::Stopped);
                return Stood::Not;
            }
        };
        self.answer_ioctl(result);
        if leave == Leave::Timer { Stood::Due } else { Stood::Done }
    }

    /// A physical SError came about while the owner had the CPU.
    #[cold]
    #[inline(never)]
    fn fail(&mut self, extent: Extent) -> Stood {
        let syndrome = serror::collect();
        self.save_owner_extra(extent);
        self.take_up(extent, false);
        syndrome.into_iter().for_each(|syndrome| self.blame(syndrome));
        self.update_traps();
        Stood::Not
    }

    /// An interrupt of the machine, the owner's, ended the run.
    #[cold]
    fn interrupted(&mut self, page: KvmRun<'_>, acknowledged: Acknowledged) -> Result<u64, Errno> {
        self.take_for_owner(acknowledged.intid(), false);
        Err(page.interrupted())
    }

    /// The owner's timers, which are off this CPU with its state, end the run when they are due. What keel's deadline was, if
    /// that changed.
    #[inline(always)]
    fn bring_deadline_forward(&self) -> Option<Option<u64>> {
        let own = next_deadline(&self.inner.state, self.machine);
        if own == u64::MAX {
            return None;
        }
        let deadline = timer::deadline();
        if deadline.is_some_and(|at| at <= own) {
            return None;
        }
        timer::set_deadline(Some(own));
        Some(deadline)
    }

    /// It has virtual SErrors.
    #[inline(always)]
    fn has_amo(&self) -> bool {
        self.hcr & hcr::HCR_AMO != 0
    }

    /// The owner has its CPU back.
    #[inline(always)]
    fn take_up(&mut self, extent: Extent, used_fp: bool) {
        let traps_debug = !self.inner.state.has_debug();
        let config = config(self.machine, self.vcpu, [self.hcr, self.mdcr, self.cptr], traps_debug, None);
        self.inner.state.replace(&config);
        if extent.has(Extent::RAS) {
            self.inner.state.load_deferred_serror(self.has_amo());
        }
        if used_fp {
            self.inner.state.load_fp();
        }
        if let Some(owner) = &self.machine.owner {
            owner.gic.take_up(&self.inner.owner, &mut Hardware);
        }
        if extent.has_extra() {
            self.load_extra(extent);
        }
    }

    /// The guest used FP or SIMD for the first time since it came; `false` if those are its own already.
    #[cold]
    pub(super) fn give_fp(&mut self) -> bool {
        let Some(theirs) = self.lent_fp.take() else { return false };
        self.cptr &= !hcr::CPTR_TFP;
        state::set_cptr(self.cptr);
        state::save_fp(theirs);
        self.inner.state.load_fp();
        true
    }

    /// Takes a vCPU that stood in for another off this CPU.
    #[inline(always)]
    fn leave_in_stead(&mut self, extent: Extent) {
        let inner = &mut *self.inner;
        let outside = &Outside(self.machine);
        self.machine.vgic.step_back(self.vcpu.index(), &mut inner.vgic, &mut Hardware, outside);
        inner.fault_address = switch::far();
        self.fold_serror();
        if self.lent_fp.is_none() {
            self.inner.state.save_fp();
        }
        self.inner.state.set_aside();
        if extent.has_extra() {
            self.save_extra(extent);
        }
        if extent.save_serrors(&mut self.inner.state, true) {
            serror::collect().into_iter().for_each(|syndrome| self.blame(syndrome));
        }
        // Whoever waits for its list registers to be folded back may go on.
        self.vcpu.resident.store(false, Ordering::SeqCst);
    }
}

/// How much there is to move, a bit for each.
#[derive(Clone, Copy)]
struct Extent(u8);

impl Extent {
    /// The keys of pointer authentication, which the guest has.
    const KEYS: u8 = 1 << 0;
    /// More than one register of active priorities of each group.
    const PRIORITIES: u8 = 1 << 1;
    /// DISR_EL1 (FEAT_RAS).
    const RAS: u8 = 1 << 2;

    #[inline(always)]
    fn has(self, what: u8) -> bool {
        self.0 & what != 0
    }

    #[inline(always)]
    fn has_extra(self) -> bool {
        self.has(Self::KEYS | Self::PRIORITIES)
    }

    /// DISR_EL1 of the guest whose state has just been taken out, and whether a physical SError came about while it was there.
    #[inline(always)]
    fn save_serrors(self, state: &mut GuestState, is_virtual: bool) -> bool {
        let has_ras = self.has(Self::RAS);
        if has_ras {
            state.save_deferred_serror(is_virtual);
        }
        serror::is_there(has_ras)
    }
}

/// What of this CPU, whatever the guest, moves besides what every CPU has.
pub(super) fn parts_of_cpu() -> u8 {
    let priorities = if Hardware.has_more_priorities() { Extent::PRIORITIES } else { 0 };
    let ras = if features::has_ras() { Extent::RAS } else { 0 };
    priorities | ras
}

/// What few machines, or few guests, have.
impl Resident<'_> {
    /// The owner's out of this CPU, and the guest's into it.
    #[inline(never)]
    fn exchange_extra(&mut self, extent: Extent, guest: &mut Inner) {
        self.save_owner_extra(extent);
        if extent.has(Extent::KEYS) {
            guest.state.load_keys();
        }
        if extent.has(Extent::PRIORITIES) {
            Hardware.load_more(&guest.vgic.ap0r, &guest.vgic.ap1r);
        }
    }

    fn save_owner_extra(&mut self, extent: Extent) {
        if extent.has(Extent::KEYS) {
            self.inner.state.save_keys();
        }
        if let Some(owner) = &self.machine.owner
            && extent.has(Extent::PRIORITIES)
        {
            owner.gic.set_more_aside(&mut self.inner.owner, &Hardware);
        }
    }

    /// The guest's out of it.
    #[inline(never)]
    fn save_extra(&mut self, extent: Extent) {
        let inner = &mut *self.inner;
        if extent.has(Extent::KEYS) {
            inner.state.save_keys();
        }
        if extent.has(Extent::PRIORITIES) {
            Hardware.save_more(&mut inner.vgic.ap0r, &mut inner.vgic.ap1r);
        }
    }

    /// The owner's into it.
    #[inline(never)]
    fn load_extra(&mut self, extent: Extent) {
        if extent.has(Extent::KEYS) {
            self.inner.state.load_keys();
        }
        if let Some(owner) = &self.machine.owner
            && extent.has(Extent::PRIORITIES)
        {
            owner.gic.take_more_up(&self.inner.owner, &mut Hardware);
        }
    }
}

/// HCR_EL2, MDCR_EL2 and CPTR_EL2 of a vCPU that stands in, and its vGIC's flag.
struct Seat<'a> {
    hcr: u64,
    mdcr: u64,
    cptr: u64,
    dirty: &'a AtomicBool,
}

/// Puts `vcpu`, whose VM and whose state are plain, on this CPU in the stead of another, which has been set aside and whose FP
/// and SIMD registers are still there. `mdcr`: MDCR_EL2 of a guest that may debug itself.
#[inline(always)]
fn seat<'a>(machine: &'a Machine, vcpu: &Vcpu, inner: &mut Inner, mdcr: u64, extent: Extent) -> Seat<'a> {
    let traps_debug = inner.state.may_trap_debug();
    let mdcr = if traps_debug { mdcr | hcr::MDCR_DEBUG_TRAPS } else { mdcr };
    let (hcr, cptr) = (machine.hcr, hcr::CPTR_GUEST | hcr::CPTR_TFP);
    let config = config(machine, vcpu, [hcr, mdcr, cptr], traps_debug, None);
    let index = vcpu.index();
    inner.state.replace(&config);
    if extent.has(Extent::RAS) {
        inner.state.load_deferred_serror(true);
    }
    inner.context.psci_version = machine.psci_answer();
    if machine.note_running(index) {
        tlb::flush_local_vmid();
    }
    let Inner { state, vgic, .. } = inner;
    let stir = || set_levels(machine, index, state);
    let dirty = machine.vgic.stand_in(index, vgic, &mut Hardware, stir).unwrap_or(&NEVER);
    vcpu.resident.store(true, Ordering::SeqCst);
    Seat { hcr, mdcr, cptr, dirty }
}

/// What the timers are as software knows them: lines that dropped meanwhile must not interrupt any more.
#[cold]
#[inline(never)]
fn set_levels(machine: &Machine, index: usize, state: &GuestState) {
    for (intid, deadline) in deadlines(state, machine) {
        machine.set_timer_level(index, intid, deadline.is_some_and(|at| at <= timer::now()));
    }
}
