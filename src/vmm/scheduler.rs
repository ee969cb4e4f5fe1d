//! Which vCPU a CPU runs: round robin with a time slice, and nothing at all while a vCPU has its CPU alone.
//!
//! vCPUs do not migrate: each is in the queue of one CPU. While no other vCPU of that CPU could run, WFI is not trapped
//! and no timer ticks. A vCPU that waits is looked at when somebody calls for attention (an interrupt became pending for
//! it) and when its timers are due, which the EL2 physical timer knows.

use super::lifecycle::{self, Guest};
use crate::{
    arch::{cpu, serror, timer},
    kvm::{
        Errno, Leave, Vcpu,
        events::{self, Verdict},
        ioctl::{self, UserVcpu},
        machine::Stop,
        physical::{self, MAX_CPUS},
        run::{Resident, is_runnable},
        uapi::MpState,
    },
};
use alloc::{sync::Arc, vec::Vec};
use spin::Mutex;

/// How long a vCPU runs while others wait for its CPU: 5 ms, in parts of a second.
const SLICES_PER_SECOND: u64 = 200;

/// A vCPU in a queue.
#[derive(Clone)]
struct Entry {
    guest: Arc<Guest>,
    vcpu: Arc<Vcpu>,
    /// `Some` while it waits for an interrupt, or until that tick of the physical counter.
    waiting: Option<Option<u64>>,
    /// Since when it could run and does not, because this CPU runs another.
    ready: Option<u64>,
}

static QUEUES: [Mutex<Vec<Entry>>; MAX_CPUS] = [const { Mutex::new(Vec::new()) }; MAX_CPUS];

/// Puts a vCPU into the queue of its CPU.
pub fn add(guest: &Arc<Guest>, vcpu: &Arc<Vcpu>) {
    if let Some(queue) = QUEUES.get(vcpu.cpu()) {
        queue.lock().push(Entry { guest: guest.clone(), vcpu: vcpu.clone(), waiting: None, ready: None });
        physical::call_attention(vcpu.cpu());
    }
}

/// vCPUs in the queue of CPU `index`.
pub fn load(index: usize) -> usize {
    QUEUES.get(index).map_or(usize::MAX, |queue| queue.lock().len())
}

/// What a look at the queue finds.
struct Look {
    /// Position and entry of the vCPU whose turn it is.
    chosen: Option<(usize, Entry)>,
    /// Another one could run too.
    contended: bool,
    /// When the next of those that wait is due.
    deadline: Option<u64>,
}

fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Looks at the queue of this CPU from position `turn` on. `running` is the vCPU that this CPU holds: it is not looked at.
fn look(turn: usize, running: Option<&Vcpu>) -> Look {
    let mut found = Look { chosen: None, contended: false, deadline: None };
    let Some(queue) = QUEUES.get(cpu::index()) else { return found };
    let now = timer::now();
    let mut queue = queue.lock();
    let count = queue.len();
    for position in (0..count).map(|n| (turn + n) % count) {
        let Some(entry) = queue.get_mut(position) else { continue };
        if entry.vcpu.index() == 0 {
            // The CPU of a VM's first vCPU looks after its clock.
            found.deadline = earlier(found.deadline, entry.guest.machine.advance_clock(now));
        }
        if running.is_some_and(|running| core::ptr::eq(running, &raw const *entry.vcpu)) || !entry.vcpu.is_started() {
            continue;
        }
        if let Some(until) = entry.waiting {
            entry.vcpu.set_waiting(true);
            let (runnable, next) = is_runnable(&entry.guest.machine, &entry.vcpu, now);
            if !runnable && until.is_none_or(|at| at > now) {
                found.deadline = earlier(found.deadline, earlier(next, until));
                continue;
            }
            entry.waiting = None;
            entry.vcpu.set_waiting(false);
        }
        if found.chosen.is_some() {
            found.contended = true;
        } else {
            found.chosen = Some((position, entry.clone()));
            if running.is_none() {
                // It gets this CPU at once, with the time it waited in the copy.
                entry.ready = None;
                continue;
            }
        }
        entry.ready.get_or_insert(now);
    }
    found
}

fn set_waiting(vcpu: &Vcpu, until: Option<u64>) {
    if let Some(queue) = QUEUES.get(cpu::index()) {
        let mut queue = queue.lock();
        if let Some(entry) = queue.iter_mut().find(|entry| core::ptr::eq(vcpu, &raw const *entry.vcpu)) {
            entry.waiting = Some(until);
        }
    }
}

/// Takes the vCPUs of VMs that stop out of this CPU's queue.
fn park() {
    let Some(queue) = QUEUES.get(cpu::index()) else { return };
    loop {
        let (guest, reason) = {
            let mut queue = queue.lock();
            let stopping = queue
                .iter()
                .enumerate()
                .find_map(|(n, entry)| entry.guest.machine.stopping().map(|reason| (n, reason)));
            match stopping {
                Some((n, reason)) => (queue.remove(n).guest, reason),
                None => return,
            }
        };
        lifecycle::parked(guest, reason);
    }
}

/// While the vCPU that the machine's owner has on this CPU is off, its interrupts stay where they are: pending in hardware.
fn listen() {
    let off = |entry: &Entry| entry.guest.machine.is_owner() && !entry.vcpu.is_on();
    let is_off = QUEUES.get(cpu::index()).is_some_and(|queue| queue.lock().iter().any(off));
    physical::listen(!is_off);
}

/// Turns this CPU off if keel is leaving and the owner's vCPU of this CPU is off.
fn retire() {
    let Some(queue) = QUEUES.get(cpu::index()) else { return };
    let leaving = |entry: &&Entry| entry.guest.machine.is_leaving();
    let entry = queue.lock().iter().find(leaving).cloned();
    if let Some(entry) = entry
        && (entry.vcpu.retire() || entry.vcpu.is_retired())
    {
        entry.guest.machine.turn_off(&entry.vcpu);
    }
}

/// Runs vCPUs on this CPU until the machine's owner takes it back.
pub fn run() -> ! {
    let mut turn = 0;
    loop {
        physical::take_attention();
        park();
        retire();
        listen();
        let found = look(turn, None);
        match found.chosen {
            Some((position, entry)) => {
                run_vcpu(&entry, position, found.contended, found.deadline);
                turn = position + 1;
            }
            None => idle(found.deadline),
        }
    }
}

/// Why a vCPU is off this CPU.
enum Gone {
    /// Its turn is over, or it stops with its VM.
    Away,
    /// It waits for an interrupt, or until this tick.
    Waits(Option<u64>),
    /// It switched itself off.
    Off,
    /// Its VM is to stop.
    Stop(Stop),
    /// It is to come back when another one has run in its stead.
    Run(Arc<UserVcpu>),
}

/// A vCPU's turn on this CPU.
struct Turn<'a> {
    entry: &'a Entry,
    position: usize,
    /// When it ends, if another could run.
    end: Option<u64>,
    /// When the next of those that wait is due.
    limit: Option<u64>,
}

/// Runs one vCPU until it waits, stops, or has used its slice while another could run.
fn run_vcpu(entry: &Entry, position: usize, contended: bool, deadline: Option<u64>) {
    let machine = &*entry.guest.machine;
    let mut turn = Turn { entry, position, end: contended.then(|| timer::now() + slice()), limit: deadline };
    timer::set_deadline(turn.deadline());
    if let Some(since) = entry.ready {
        entry.vcpu.add_stolen_time(timer::now().saturating_sub(since), timer::frequency());
    }
    entry.guest.note_entry();
    let mut answer = None;
    loop {
        match turn.reside(answer.take()) {
            Gone::Away => return,
            // Off this CPU first: what becomes pending from then on is found when the queue is looked at.
            Gone::Waits(until) => return set_waiting(&entry.vcpu, until),
            Gone::Off => return entry.vcpu.set_mp_state(MpState::Stopped),
            Gone::Stop(reason) => return machine.stop(reason),
            Gone::Run(user) => {
                // Off this CPU, with its timers: what is due for it ends the run.
                answer = Some(machine.run_for(&entry.vcpu, &user, &OnBehalf { until: turn.deadline() }));
                timer::set_deadline(turn.deadline());
            }
        }
    }
}

/// How long a turn is, in ticks of the physical counter.
fn slice() -> u64 {
    timer::frequency() / SLICES_PER_SECOND
}

impl Turn<'_> {
    /// When this CPU is to look at its vCPUs.
    fn deadline(&self) -> Option<u64> {
        earlier(self.end, self.limit)
    }

    /// Runs the vCPU until it has to leave this CPU. `answer`: what came of the run that it left for.
    fn reside(&mut self, answer: Option<Result<u64, Errno>>) -> Gone {
        let Entry { guest, vcpu, .. } = self.entry;
        let mut resident = Resident::load(&guest.machine, vcpu, self.end.is_some());
        if let Some(result) = answer {
            resident.answer_ioctl(result);
        }
        loop {
            match resident.run() {
                Leave::Attention | Leave::Timer => {}
                Leave::Interrupt(acknowledged) => {
                    if !lifecycle::host_interrupt(acknowledged.intid()) {
                        acknowledged.deactivate();
                    }
                    continue;
                }
                Leave::Wait(until) => return Gone::Waits(until),
                // The launcher gives no VM SYSTEM_SUSPEND, none a filter, and none is a user's.
                Leave::Suspend
                | Leave::Hypercall(_)
                | Leave::Levels
                | Leave::Debug
                | Leave::Mmio
                | Leave::Undescribed(..)
                | Leave::Failed(_) => continue,
                Leave::Run => match resident.take_run() {
                    Some(user) => return Gone::Run(user),
                    None => continue,
                },
                Leave::Yield => {
                    if self.end.is_some() {
                        return Gone::Away;
                    }
                    continue;
                }
                Leave::Off => return Gone::Off,
                Leave::Stop(reason) => return Gone::Stop(reason),
                Leave::Depart => {
                    if lifecycle::may_depart(guest) {
                        resident.depart();
                        return Gone::Away;
                    }
                    resident.refuse();
                    continue;
                }
                Leave::Crash => {
                    lifecycle::report_crash(guest, vcpu, &resident.crash());
                    return Gone::Stop(Stop::Crash);
                }
            }
            physical::take_attention();
            if guest.machine.stopping().is_some() {
                return Gone::Away;
            }
            park();
            let found = look(self.position + 1, Some(vcpu));
            let now = timer::now();
            match (found.chosen.is_some(), self.end) {
                (true, Some(at)) if at <= now => return Gone::Away,
                (true, None) => self.end = Some(now + slice()),
                (true, Some(_)) => {}
                (false, _) => self.end = None,
            }
            resident.trap_wait(self.end.is_some());
            self.limit = found.deadline;
            timer::set_deadline(self.deadline());
        }
    }
}

/// This CPU while it runs a vCPU that the machine's owner made, in the owner's stead.
struct OnBehalf {
    until: Option<u64>,
}

impl ioctl::run::Host for OnBehalf {
    fn interrupt(&self, intid: u32) -> bool {
        lifecycle::host_interrupt(intid)
    }

    fn deadline(&self) -> Option<u64> {
        self.until
    }
}

/// Sleeps until an interrupt.
fn idle(deadline: Option<u64>) {
    timer::set_deadline(deadline);
    if !physical::wants_attention() {
        cpu::wait_for_interrupt();
    }
    // No guest has left an SError behind, so this one is the machine's, or keel's own.
    if serror::is_pending()
        && let Some(syndrome) = serror::collect()
        && events::judge(syndrome) != Verdict::Resume
    {
        panic!("{syndrome} at EL2, syndrome {:#x}", syndrome.esr);
    }
    while let Some(acknowledged) = physical::Acknowledged::next() {
        let intid = acknowledged.intid();
        let host = physical::interrupts();
        let stays = if host.is_some_and(|host| host.hypervisor_timer == intid) {
            timer::set_deadline(None);
            false
        } else {
            // A private interrupt is keel's: its list registers', another CPU's call.
            host.is_some_and(|host| host.maintenance != intid) && lifecycle::host_interrupt(intid)
        };
        if !stays {
            acknowledged.deactivate();
        }
    }
}
