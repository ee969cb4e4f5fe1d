//! KVM_RUN for a vCPU that was made through the API: on the caller's CPU, from its exit to its next entry.
//!
//! `struct kvm_run` (Linux, uapi `linux/kvm.h`) is exchanged in a page of the caller's. What ends a run besides the guest
//! itself is an interrupt: one of the machine's, which is the caller's, or keel's, which has other VMs to look after.

use super::{
    super::{
        Errno, Leave, Machine,
        machine::Stop,
        memory::Slots,
        physical::{self, Acknowledged},
        run::{self, Resident},
    },
    api::Claim,
};
use crate::arch::{cpu, timer};

/// Offsets in `struct kvm_run`.
mod offset {
    pub const IMMEDIATE_EXIT: u64 = 1;
    pub const EXIT_REASON: u64 = 8;
    pub const FLAGS: u64 = 14;
    pub const UNION: u64 = 32;
    /// `mmio.data`.
    pub const MMIO_DATA: u64 = 40;
}

/// Exit reasons.
mod reason {
    pub const HYPERCALL: u32 = 3;
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
    pub const SUSPEND: u32 = 5;
}

/// Whoever shares this CPU with the run.
pub trait Host {
    /// An interrupt of the machine arrived: acknowledged, its priority dropped. `true` if it has to stay active.
    fn interrupt(&self, intid: u32) -> bool;
    /// When this CPU is wanted back, in ticks of the physical counter.
    fn deadline(&self) -> Option<u64>;
}

/// `struct kvm_run` in the caller's memory.
struct RunPage<'a> {
    memory: &'a Slots,
    address: u64,
}

impl RunPage<'_> {
    fn put(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        super::user::copy_out(self.memory, self.address + offset, bytes)
    }

    fn get<const N: usize>(&self, offset: u64) -> Result<[u8; N], Errno> {
        super::user::copy_in(self.memory, self.address + offset)
    }

    fn exit(&self, reason: u32) -> Result<(), Errno> {
        self.put(offset::EXIT_REASON, &reason.to_le_bytes())
    }
}

/// Runs the vCPU until its caller has something to do. The result of KVM_RUN.
///
/// # Errors
///
/// `EINTR` when an interrupt ended it; `ENOEXEC` before KVM_ARM_VCPU_INIT; `EFAULT` without a page for `struct kvm_run`;
/// those of [`Vm::machine`](super::super::Vm::machine) at the first run.
pub(in super::super) fn run(claim: &Claim, memory: &Slots, host: &impl Host) -> Result<u64, Errno> {
    let page = RunPage { memory, address: claim.page().ok_or(Errno::EFAULT)? };
    let vcpu = &*claim.vcpu;
    if !vcpu.is_initialised() {
        return Err(Errno::ENOEXEC);
    }
    let machine = claim.vm.vm.machine()?;
    vcpu.complete_access(|| page.get(offset::MMIO_DATA).map(u64::from_le_bytes))?;
    let [immediate] = page.get(offset::IMMEDIATE_EXIT)?;
    if immediate != 0 {
        return Err(Errno::EINTR);
    }
    page.exit(0)?;
    page.put(offset::FLAGS, &[0; 2])?;
    vcpu.set_cpu(cpu::index());
    loop {
        if let Some(stop) = machine.stopping() {
            machine.clear_stop();
            return system_event(&page, stop);
        }
        if !vcpu.is_started() {
            wait(&machine, claim, None, host).inspect_err(|_| interrupted(&page))?;
            continue;
        }
        timer::set_deadline(host.deadline());
        let mut resident = Resident::load(&machine, vcpu);
        let leave = resident.run();
        match leave {
            Leave::Attention | Leave::Timer => {
                drop(resident);
                interrupted(&page);
                return Err(Errno::EINTR);
            }
            Leave::Interrupt(acknowledged) => {
                drop(resident);
                if !host.interrupt(acknowledged.intid()) {
                    acknowledged.deactivate();
                }
                interrupted(&page);
                return Err(Errno::EINTR);
            }
            Leave::Wait(until) => {
                resident.trap_wait(true);
                drop(resident);
                wait(&machine, claim, until, host).inspect_err(|_| interrupted(&page))?;
            }
            Leave::Yield => {}
            Leave::Mmio(access) => {
                drop(resident);
                let mut union = [0; 24];
                union[..8].copy_from_slice(&access.address.0.to_le_bytes());
                union[8..16].copy_from_slice(&access.value.unwrap_or(0).to_le_bytes());
                union[16..20].copy_from_slice(&(1_u32 << access.log2_size).to_le_bytes());
                union[20] = access.value.is_some().into();
                page.put(offset::UNION, &union)?;
                page.exit(reason::MMIO)?;
                return Ok(0);
            }
            Leave::Undescribed(abort, address) => {
                drop(resident);
                let mut union = [0; 16];
                union[..8].copy_from_slice(&abort.fault_syndrome().to_le_bytes());
                union[8..].copy_from_slice(&address.0.to_le_bytes());
                page.put(offset::UNION, &union)?;
                page.exit(reason::ARM_NISV)?;
                return Ok(0);
            }
            Leave::Failed(errno) => return Err(errno),
            Leave::Hypercall => {
                let function = resident.argument(0) as u32;
                drop(resident);
                let mut union = [0; 72];
                union[..8].copy_from_slice(&u64::from(function).to_le_bytes());
                page.put(offset::UNION, &union)?;
                page.exit(reason::HYPERCALL)?;
                return Ok(0);
            }
            Leave::Suspend => {
                drop(resident);
                return put_event(&page, event::SUSPEND, 0);
            }
            Leave::Off => {
                drop(resident);
                vcpu.set_mp_state(super::super::uapi::MpState::Stopped);
            }
            Leave::Stop(stop) => {
                drop(resident);
                return system_event(&page, stop);
            }
            Leave::Crash(crash) => {
                drop(resident);
                let mut union = [0; 24];
                // KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, with the syndrome.
                union[..4].copy_from_slice(&4_u32.to_le_bytes());
                union[4..8].copy_from_slice(&2_u32.to_le_bytes());
                union[8..16].copy_from_slice(&crash.esr.to_le_bytes());
                union[16..24].copy_from_slice(&crash.far.to_le_bytes());
                page.put(offset::UNION, &union)?;
                page.exit(reason::INTERNAL_ERROR)?;
                return Ok(0);
            }
            // A VM of the API neither owns the machine nor has an API.
            Leave::Depart | Leave::Run => return Err(Errno::EINVAL),
        }
    }
}

fn interrupted(page: &RunPage<'_>) {
    // The page was there a moment ago; if the caller has taken it away, it does not want to know.
    let _ = page.exit(reason::INTR);
}

fn system_event(page: &RunPage<'_>, stop: Stop) -> Result<u64, Errno> {
    match stop {
        Stop::Off => put_event(page, event::SHUTDOWN, 0),
        Stop::Reset => put_event(page, event::RESET, 0),
        Stop::Crash => Err(Errno::EIO),
    }
}

fn put_event(page: &RunPage<'_>, kind: u32, data: u64) -> Result<u64, Errno> {
    let mut union = [0; 16];
    union[..4].copy_from_slice(&kind.to_le_bytes());
    union[4..8].copy_from_slice(&1_u32.to_le_bytes());
    union[8..].copy_from_slice(&data.to_le_bytes());
    page.put(offset::UNION, &union)?;
    page.exit(reason::SYSTEM_EVENT)?;
    Ok(0)
}

/// Waits on this CPU until the vCPU has something to run for; `EINTR` when the CPU is wanted for something else.
fn wait(machine: &Machine, claim: &Claim, until: Option<u64>, host: &impl Host) -> Result<(), Errno> {
    let vcpu = &*claim.vcpu;
    loop {
        vcpu.set_waiting(true);
        let now = timer::now();
        let (runnable, next) = run::is_runnable(machine, vcpu, now);
        if vcpu.is_started() && (runnable || until.is_some_and(|at| at <= now)) {
            vcpu.set_waiting(false);
            return Ok(());
        }
        if host.deadline().is_some_and(|at| at <= now) || physical::wants_attention() {
            vcpu.set_waiting(false);
            return Err(Errno::EINTR);
        }
        timer::set_deadline([next, until, host.deadline()].into_iter().flatten().min());
        cpu::wait_for_interrupt();
        while let Some(acknowledged) = Acknowledged::next() {
            let intid = acknowledged.intid();
            let own = physical::interrupts();
            let mut stays = false;
            let mut other = false;
            if own.is_some_and(|own| own.hypervisor_timer == intid) {
                timer::set_deadline(None);
            } else if own.is_some_and(|own| own.maintenance != intid) {
                stays = host.interrupt(intid);
                other = true;
            }
            if !stays {
                acknowledged.deactivate();
            }
            if other {
                vcpu.set_waiting(false);
                return Err(Errno::EINTR);
            }
        }
    }
}
