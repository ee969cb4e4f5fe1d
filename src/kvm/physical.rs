//! The machine's CPUs as vCPUs see them: where to send a kick, and whether a CPU should look at its vCPUs.

use super::interface::{HostGic, on_host_gic};
use crate::{
    arch::{
        cpu::{self, CacheRegisters},
        gic::{self, Distributor, Redistributor},
        gicv2, hcr, pmu,
    },
    hypercall::smccc::{Mitigation, Vulnerability},
};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use spin::Once;

/// CPUs that keel can use.
pub const MAX_CPUS: usize = 64;

struct PhysicalCpu {
    attention: AtomicBool,
    /// keel has left it.
    left: AtomicBool,
    /// Only keel's own interrupts arrive.
    masks: AtomicBool,
}

static CPUS: [PhysicalCpu; MAX_CPUS] = [const {
    PhysicalCpu { attention: AtomicBool::new(false), left: AtomicBool::new(false), masks: AtomicBool::new(false) }
}; MAX_CPUS];

/// Says whether all of the machine's interrupts are to arrive on this CPU, or only keel's own.
pub fn listen(to_all: bool) {
    if let Some(cpu) = CPUS.get(cpu::index())
        && cpu.masks.load(Ordering::Relaxed) == to_all
    {
        cpu.masks.store(!to_all, Ordering::Relaxed);
        gic::listen(to_all);
    }
}

/// Whether the machine has a GICv2.
#[inline]
pub fn has_gicv2() -> bool {
    gicv2::is_present()
}

/// An interrupt that was acknowledged, its priority dropped, and is still active.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledged(pub(super) u32);

impl Acknowledged {
    /// Acknowledges the highest-priority pending interrupt, if there is one.
    pub fn next() -> Option<Self> {
        fn next<G: HostGic>(_: &mut G) -> Option<u32> {
            let acknowledged = G::acknowledge();
            (G::intid(acknowledged) < gic::SPURIOUS).then(|| G::drop_priority(acknowledged)).map(|()| acknowledged)
        }
        on_host_gic!(host => next(host)).map(Self)
    }

    /// Its INTID.
    pub fn intid(self) -> u32 {
        fn intid<G: HostGic>(_: &mut G, acknowledged: u32) -> u32 {
            G::intid(acknowledged)
        }
        on_host_gic!(host => intid(host, self.0))
    }

    /// Deactivates it.
    pub fn deactivate(self) {
        fn deactivate<G: HostGic>(_: &mut G, acknowledged: u32) {
            G::deactivate(acknowledged);
        }
        on_host_gic!(host => deactivate(host, self.0));
    }
}

/// Makes a CPU leave its guest, or its sleep: the interrupt of keel's own timer is made pending there, or, by a GICv2, an SGI.
pub fn kick(index: usize) {
    if has_gicv2() {
        if index != cpu::index() {
            gicv2::call(index);
        }
        return;
    }
    if index != cpu::index()
        && let Some(redistributor) = redistributor_of(index)
        && let Some(host) = INTERRUPTS.get()
        && !CPUS.get(index).is_some_and(|cpu| cpu.left.load(Ordering::Relaxed))
    {
        redistributor.pend(host.hypervisor_timer);
    }
}

/// Makes this CPU leave the guest that it is about to enter, once other interrupts that are pending had their turn: they
/// make it leave, too.
pub fn kick_after_others() {
    if !gic::is_pending()
        && let Some(redistributor) = redistributor()
        && let Some(host) = INTERRUPTS.get()
    {
        redistributor.pend(host.hypervisor_timer);
    }
}

/// keel leaves this CPU: nobody is to kick it any more.
pub(super) fn leave() {
    if let Some(cpu) = CPUS.get(cpu::index()) {
        cpu.left.store(true, Ordering::SeqCst);
    }
}

/// Makes a CPU leave its guest and look at all its vCPUs: one of them became runnable, or should stop.
pub fn call_attention(index: usize) {
    if let Some(cpu) = CPUS.get(index) {
        cpu.attention.store(true, Ordering::SeqCst);
        kick(index);
    }
}

/// Says whether this CPU should look at its vCPUs: true for as long as nobody took it ([`take_attention`]).
#[inline]
pub fn attention() -> &'static AtomicBool {
    static NONE: AtomicBool = AtomicBool::new(false);
    CPUS.get(cpu::index()).map_or(&NONE, |cpu| &cpu.attention)
}

/// Whether this CPU should look at its vCPUs.
#[inline]
pub fn wants_attention() -> bool {
    attention().load(Ordering::Relaxed)
}

/// This CPU is about to look at its vCPUs.
pub fn take_attention() -> bool {
    CPUS.get(cpu::index()).is_some_and(|cpu| cpu.attention.swap(false, Ordering::SeqCst))
}

/// MIDR_EL1, REVIDR_EL1 and AIDR_EL1 of each CPU.
static IDENTITIES: [Once<[u64; 3]>; MAX_CPUS] = [const { Once::new() }; MAX_CPUS];

/// Notes which kind of CPU this one, with index `index`, is, and what it says about its caches.
pub fn add_implementation(index: usize) {
    if let Some(identity) = IDENTITIES.get(index) {
        identity.call_once(|| [cpu::midr(), cpu::revidr(), cpu::aidr()]);
    }
    if let Some(caches) = CACHES.get(index) {
        caches.call_once(cpu::cache_registers);
    }
}

/// MIDR_EL1, REVIDR_EL1 and AIDR_EL1 of CPU `index`.
pub fn implementation(index: usize) -> Option<[u64; 3]> {
    IDENTITIES.get(index)?.get().copied()
}

/// What each CPU says about its caches.
static CACHES: [Once<CacheRegisters>; MAX_CPUS] = [const { Once::new() }; MAX_CPUS];

/// What CPU `index` says about its caches.
pub fn caches(index: usize) -> Option<&'static CacheRegisters> {
    CACHES.get(index)?.get()
}

/// The kinds of CPU that the machine has, each once.
pub fn implementations() -> impl Iterator<Item = [u64; 3]> {
    let known = || IDENTITIES.iter().filter_map(|identity| identity.get().copied());
    known()
        .enumerate()
        .filter(move |&(n, identity)| !known().take(n).any(|other| other == identity))
        .map(|(_, kind)| kind)
}

/// Interrupts of the machine that keel handles itself, by INTID.
#[derive(Clone, Copy, Debug)]
pub struct HostInterrupts {
    /// The EL1 virtual timer.
    pub virtual_timer: u32,
    /// The EL1 physical timer.
    pub physical_timer: u32,
    /// The EL2 physical timer: keel's own.
    pub hypervisor_timer: u32,
    /// The virtual interface's maintenance interrupt.
    pub maintenance: u32,
    /// The PMU's overflow interrupt, if it is private to each CPU.
    pub pmu: Option<u32>,
}

static INTERRUPTS: Once<HostInterrupts> = Once::new();
static DISTRIBUTOR: Once<Distributor> = Once::new();
static REDISTRIBUTORS: [Once<Redistributor>; MAX_CPUS] = [const { Once::new() }; MAX_CPUS];
/// MDCR_EL2 bits that keep keel's event counters (0 without).
static MDCR: AtomicU64 = AtomicU64::new(0);

/// Says which interrupts are whose. Called once, before any vCPU runs.
pub fn set_interrupts(interrupts: HostInterrupts) {
    INTERRUPTS.call_once(|| interrupts);
}

/// The machine's interrupts, once known.
#[inline]
pub fn interrupts() -> Option<&'static HostInterrupts> {
    INTERRUPTS.get()
}

/// Says which distributor the machine has.
pub fn set_distributor(distributor: Distributor) {
    DISTRIBUTOR.call_once(|| distributor);
}

/// The machine's distributor.
pub fn distributor() -> Option<Distributor> {
    DISTRIBUTOR.get().copied()
}

/// Says which redistributor belongs to CPU `index`.
pub fn set_redistributor(index: usize, redistributor: Redistributor) {
    if let Some(slot) = REDISTRIBUTORS.get(index) {
        slot.call_once(|| redistributor);
    }
}

/// This CPU's redistributor.
pub fn redistributor() -> Option<&'static Redistributor> {
    redistributor_of(cpu::index())
}

/// The redistributor of CPU `index`.
pub fn redistributor_of(index: usize) -> Option<&'static Redistributor> {
    REDISTRIBUTORS.get(index)?.get()
}

/// Says which MDCR_EL2 bits guests run with, beside those that hide the PMU.
pub fn set_monitor_bits(bits: u64) {
    MDCR.store(bits, Ordering::Relaxed);
}

/// Those bits; where keel keeps no counters, what this CPU has instead.
pub fn monitor_bits() -> u64 {
    match MDCR.load(Ordering::Relaxed) {
        0 => pmu::all_counters(),
        bits => bits,
    }
}

/// How many event counters a guest can have.
pub fn guest_counters() -> u8 {
    (monitor_bits() & hcr::MDCR_HPMN) as u8
}

/// How the machine stands with the vulnerabilities that SMCCC's workarounds are about: Spectre v2, v4, BHB, as
/// [`Mitigation`] codes. Every CPU adds what it finds; the worst holds.
static MITIGATIONS: [AtomicU8; 3] = [const { AtomicU8::new(0) }; 3];

/// Adds what this CPU's firmware says about its workarounds.
pub fn add_mitigation(vulnerability: Vulnerability, mitigation: Mitigation) {
    let code = match mitigation {
        Mitigation::Unaffected => 0,
        Mitigation::Mitigated => 1,
        Mitigation::Vulnerable => 2,
    };
    MITIGATIONS[place(vulnerability)].fetch_max(code, Ordering::Relaxed);
}

/// What holds for the machine.
pub fn mitigation(vulnerability: Vulnerability) -> Mitigation {
    match MITIGATIONS[place(vulnerability)].load(Ordering::Relaxed) {
        0 => Mitigation::Unaffected,
        1 => Mitigation::Mitigated,
        _ => Mitigation::Vulnerable,
    }
}

fn place(vulnerability: Vulnerability) -> usize {
    match vulnerability {
        Vulnerability::SpectreV2 => 0,
        Vulnerability::SpectreV4 => 1,
        Vulnerability::SpectreBhb => 2,
    }
}
