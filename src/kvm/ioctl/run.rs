//! KVM_RUN for a vCPU that was made through the API: on the caller's CPU, from its exit to its next entry.
//!
//! `struct kvm_run` (Linux, uapi `linux/kvm.h`) is exchanged in a page of the caller's. What ends a run besides the guest
//! itself is an interrupt: one of the machine's, which is the caller's, or keel's, which has other VMs to look after.

use super::{
    super::{
        Errno, Leave, Machine, Vcpu,
        machine::{Controller, Stop},
        physical::{self, Acknowledged},
        run::{self, Access, Resident},
        uapi::MpState,
    },
    api::UserVcpu,
};
use crate::{
    arch::{cpu, timer},
    mm::frame::{self, PAGE_WORDS},
    vcpu::exit,
};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Offsets in `struct kvm_run`.
mod offset {
    pub const IMMEDIATE_EXIT: u64 = 1;
    pub const EXIT_REASON: u64 = 8;
    pub const UNION: u64 = 32;
    /// `mmio.data`.
    pub const MMIO_DATA: u64 = 40;
    /// `s.regs.device_irq_level`.
    pub const LEVELS: u64 = 304;
}

/// Exit reasons.
mod reason {
    pub const HYPERCALL: u32 = 3;
    pub const DEBUG: u32 = 4;
    pub const MMIO: u32 = 6;
    pub const INTR: u32 = 10;
    pub const INTERNAL_ERROR: u32 = 17;
    pub const SYSTEM_EVENT: u32 = 24;
    pub const ARM_NISV: u32 = 28;
}

/// KVM_SYSTEM_EVENT_*.
mod event {
    pub const SHUTDOWN: u32 = 1;
    pub const RESET: u32 = 2;
    pub const WAKEUP: u32 = 4;
    pub const SUSPEND: u32 = 5;
    /// KVM_SYSTEM_EVENT_RESET_FLAG_PSCI_RESET2.
    pub const FLAG_RESET2: u64 = 1;
}

/// KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON.
const UNEXPECTED_EXIT: u32 = 4;
/// KVM_DEBUG_ARCH_HSR_HIGH_VALID, in `flags`.
const DEBUG_ARCH_HSR_HIGH_VALID: u64 = 1;
/// KVM_HYPERCALL_EXIT_SMC.
const EXIT_SMC: u64 = 1;

/// Whoever shares this CPU with the run.
pub trait Host {
    /// An interrupt of the machine arrived: acknowledged, its priority dropped. `true` if it has to stay active.
    fn interrupt(&self, intid: u32) -> bool;
    /// When this CPU is wanted back, in ticks of the physical counter.
    fn deadline(&self) -> Option<u64>;
}

/// `struct kvm_run` in the caller's memory, word by word: its maker may write to it at the same time.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct KvmRun<'a>(pub &'a [AtomicU64; PAGE_WORDS]);

impl KvmRun<'_> {
    /// The word that has the byte at `offset`.
    #[inline]
    fn word(self, offset: u64) -> u64 {
        self.0.get(offset as usize / 8).map_or(0, |word| u64::from_le(word.load(Relaxed)))
    }

    #[inline]
    fn put(self, offset: u64, value: u64) {
        if let Some(word) = self.0.get(offset as usize / 8) {
            word.store(value.to_le(), Relaxed);
        }
    }

    /// Whether it says what it said after KVM_EXIT_MMIO.
    #[inline]
    pub(in super::super) fn is_mmio(self) -> bool {
        self.word(offset::EXIT_REASON) as u32 == reason::MMIO
    }

    /// `mmio.data`.
    #[inline]
    pub(in super::super) fn mmio_data(self) -> u64 {
        self.word(offset::MMIO_DATA)
    }

    /// `immediate_exit`: the second byte of the first word.
    #[inline]
    pub(in super::super) fn wants_exit(self) -> bool {
        self.word(offset::IMMEDIATE_EXIT) >> 8 & 0xff != 0
    }

    /// `exit_reason` before the run: KVM_EXIT_UNKNOWN.
    #[inline]
    pub(in super::super) fn begin(self) {
        self.set_reason(0);
    }

    /// `exit_reason`, and what follows it up to byte 16: `flags`, which are 0.
    #[inline]
    fn set_reason(self, reason: u32) {
        self.put(offset::EXIT_REASON, reason.into());
    }

    /// What the run ends with: `union`, the part of the structure that goes with `reason`, from byte 32 on.
    #[inline]
    fn exit<const N: usize>(self, reason: u32, union: [u64; N]) -> Result<u64, Errno> {
        for (word, at) in union.into_iter().zip((offset::UNION..).step_by(8)) {
            self.put(at, word);
        }
        self.set_reason(reason);
        Ok(0)
    }

    /// KVM_EXIT_DEBUG: hsr, hsr_high and far; `flags` say that hsr_high is there.
    fn exit_debug(self, esr: u64, far: u64) -> Result<u64, Errno> {
        let far = if exit::is_watchpoint(esr) { far } else { 0 };
        self.exit(reason::DEBUG, [esr, far])?;
        self.put(offset::EXIT_REASON, u64::from(reason::DEBUG) | DEBUG_ARCH_HSR_HIGH_VALID << 48);
        Ok(0)
    }

    fn system_event(self, kind: u32, data: Option<u64>) -> Result<u64, Errno> {
        let count = u32::from(data.is_some());
        self.exit(reason::SYSTEM_EVENT, [words(kind, count), data.unwrap_or(0)])
    }

    /// An interrupt, or another change that the caller is to look at.
    pub(in super::super) fn interrupted(self) -> Errno {
        self.set_reason(reason::INTR);
        Errno::EINTR
    }

    /// KVM_EXIT_MMIO.
    #[inline(always)]
    pub(in super::super) fn exit_mmio(self, Access { address, log2_size, value }: Access) {
        self.put(offset::UNION, address.0);
        self.put(offset::UNION + 8, value.unwrap_or(0));
        self.put(offset::UNION + 16, words(1 << log2_size, value.is_some().into()));
        self.set_reason(reason::MMIO);
    }

    /// What `leave` is for whoever runs the vCPU, which this CPU still holds.
    #[cold]
    #[inline(never)]
    pub(in super::super) fn end(self, leave: Leave, resident: &mut Resident<'_>) -> End {
        End::Result(match leave {
            Leave::Attention | Leave::Timer | Leave::Levels => Err(self.interrupted()),
            Leave::Interrupt(acknowledged) => return End::Interrupt(acknowledged),
            Leave::Wait(until) => return End::Wait(until),
            Leave::Yield => return End::Again,
            Leave::Off => return End::Off,
            Leave::Mmio => {
                resident.access().into_iter().for_each(|access| self.exit_mmio(access));
                Ok(0)
            }
            Leave::Undescribed(syndrome, address) => self.exit(reason::ARM_NISV, [syndrome, address.0]),
            Leave::Failed(errno) => Err(errno),
            Leave::Debug => {
                let crash = resident.crash();
                self.exit_debug(crash.esr, crash.far)
            }
            Leave::Crash => {
                let crash = resident.crash();
                self.exit(reason::INTERNAL_ERROR, [words(UNEXPECTED_EXIT, 2), crash.esr, crash.far])
            }
            Leave::Hypercall(is_smc) => {
                // nr, six arguments, ret, flags.
                let flags = if is_smc { EXIT_SMC } else { 0 };
                let number = resident.argument(0) & 0xffff_ffff;
                self.exit(reason::HYPERCALL, [number, 0, 0, 0, 0, 0, 0, 0, flags])
            }
            Leave::Suspend => self.system_event(event::SUSPEND, None),
            Leave::Stop(stop) => {
                // If it is run once more all the same (DEN0022, 5.10: there is no return): INTERNAL_FAILURE.
                resident.set_argument(0, -6_i64 as u64);
                resident.machine().switch_off();
                match stop {
                    Stop::Off => self.system_event(event::SHUTDOWN, Some(0)),
                    Stop::Reset2 => self.system_event(event::RESET, Some(event::FLAG_RESET2)),
                    Stop::Reset => self.system_event(event::RESET, Some(0)),
                    Stop::Crash => Err(Errno::EIO),
                }
            }
            // A VM of the API neither owns the machine nor has an API.
            Leave::Depart | Leave::Run => Err(Errno::EINVAL),
        })
    }
}

/// What a run of the guest came to.
pub(in super::super) enum End {
    /// KVM_RUN ends.
    Result(Result<u64, Errno>),
    /// It ends with an interrupt of the machine.
    Interrupt(Acknowledged),
    /// The guest waits, or until this tick of the physical counter.
    Wait(Option<u64>),
    /// It may go on at once.
    Again,
    /// The vCPU has switched itself off.
    Off,
}

/// Two fields of 32 bits, the first at the lower address.
const fn words(first: u32, second: u32) -> u64 {
    first as u64 | (second as u64) << 32
}

/// Runs the vCPU until its caller has something to do. The result of KVM_RUN.
///
/// # Errors
///
/// `EBUSY` while another CPU has the vCPU; `EINTR` when an interrupt ended it; `ENOEXEC` before KVM_ARM_VCPU_INIT;
/// `EFAULT` without a page for `struct kvm_run`;
/// `ENOSYS` for an access that hardware does not describe, if the VM does not ask for those; those of
/// [`Vm::machine`](super::super::Vm::machine) at the first run.
pub(in super::super) fn run(user: &UserVcpu, host: &impl Host) -> Result<u64, Errno> {
    let guard = user.claim()?;
    let page = KvmRun(guard.as_ref().ok_or(Errno::EFAULT)?);
    let vcpu = &*user.vcpu;
    let is_mmio = page.is_mmio();
    let vm = &user.vm.vm;
    let machine = match vm.frozen() {
        Some(machine) => machine,
        None => {
            drop(vcpu.initialised()?);
            if !frame::can_spare(0) {
                return Err(Errno::ENOMEM);
            }
            vm.running()?
        }
    };
    vcpu.complete_access(is_mmio, || page.mmio_data())?;
    if page.wants_exit() {
        return Err(Errno::EINTR);
    }
    page.begin();
    let run = Run { machine, vcpu, page, host };
    let result = run.until_exit();
    if machine.controller == Controller::None {
        let levels = run::parked_levels(machine, vcpu);
        page.put(offset::LEVELS, levels.into());
    }
    result
}

/// One KVM_RUN.
struct Run<'a, H> {
    machine: &'a Machine,
    vcpu: &'a Vcpu,
    page: KvmRun<'a>,
    host: &'a H,
}

impl<H: Host> Run<'_, H> {
    fn until_exit(&self) -> Result<u64, Errno> {
        let Self { machine, vcpu, page, host } = self;
        vcpu.set_cpu(cpu::index());
        loop {
            if !vcpu.is_started() {
                self.wait(None)?;
                if vcpu.mp_state() == MpState::Suspended {
                    return page.system_event(event::WAKEUP, None);
                }
                continue;
            }
            let mut seen = None;
            if machine.controller == Controller::None {
                let known = page.word(offset::LEVELS) as u32;
                if run::parked_levels(machine, vcpu) != known {
                    return Err(page.interrupted());
                }
                seen = Some(known);
            }
            timer::set_deadline(host.deadline());
            let end = {
                let mut resident = Resident::load(machine, vcpu, false);
                if let Some(seen) = seen {
                    resident.watch_levels(seen);
                }
                let leave = resident.run();
                page.end(leave, &mut resident)
            };
            match end {
                End::Result(result) => return result,
                End::Interrupt(acknowledged) => {
                    if !host.interrupt(acknowledged.intid()) {
                        acknowledged.deactivate();
                    }
                    return Err(page.interrupted());
                }
                End::Wait(until) => self.wait(until)?,
                End::Again => {}
                End::Off => vcpu.set_mp_state(MpState::Stopped),
            }
        }
    }

    /// Waits on this CPU until the vCPU has something to run for, or to end its suspension; `EINTR` when the CPU is wanted
    /// for something else, or the caller has a level to look at.
    fn wait(&self, until: Option<u64>) -> Result<(), Errno> {
        let Self { machine, vcpu, page, host } = self;
        loop {
            vcpu.set_waiting(true);
            let now = timer::now();
            let (runnable, next) = run::is_runnable(machine, vcpu, now);
            let may_wake = vcpu.mp_state() != MpState::Stopped;
            let wakes = may_wake && (runnable || until.is_some_and(|at| at <= now) || self.has_news());
            let wanted = host.deadline().is_some_and(|at| at <= now) || physical::wants_attention();
            if wakes || wanted {
                vcpu.set_waiting(false);
                return if wakes { Ok(()) } else { Err(page.interrupted()) };
            }
            timer::set_deadline([next, until, host.deadline()].into_iter().flatten().min());
            cpu::wait_for_interrupt();
            if self.take_interrupts() {
                vcpu.set_waiting(false);
                return Err(page.interrupted());
            }
        }
    }

    /// Whether the caller has not seen a level.
    fn has_news(&self) -> bool {
        let seen = self.page.word(offset::LEVELS) as u32;
        self.machine.controller == Controller::None && run::parked_levels(self.machine, self.vcpu) != seen
    }

    /// Takes the interrupts that are pending on this CPU; whether one of them is the caller's.
    fn take_interrupts(&self) -> bool {
        let mut others = false;
        while let Some(acknowledged) = Acknowledged::next() {
            let intid = acknowledged.intid();
            let own = physical::interrupts();
            let mut stays = false;
            if own.is_some_and(|own| own.hypervisor_timer == intid) {
                timer::set_deadline(None);
            } else if own.is_some_and(|own| own.maintenance != intid) {
                stays = self.machine.take_event(intid);
                if !stays {
                    stays = self.host.interrupt(intid);
                    others = true;
                }
            }
            if !stays {
                acknowledged.deactivate();
            }
        }
        others
    }
}
