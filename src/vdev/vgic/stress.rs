//! Several real CPUs at once: senders, a device, a guest that reroutes and disables, and two vCPUs that come and go.
//! Whatever the order, nothing may be lost and no SPI may be handled on two vCPUs at the same time.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use std::vec::Vec;

use super::fake::FakeInterface;
use super::lr::{self, VgicCpu};
use super::{SgiRegister, Vgic, VgicConfig, VgicHost};
use crate::vdev::mmio::AccessSize::{Double, Word};

const VCPUS: usize = 2;
const SGIS: u32 = 4;
/// Edge-triggered SPIs: these and the next seven.
const EDGES: u32 = 40;
/// A level-sensitive SPI.
const LEVEL: u32 = 72;
const ROUNDS: u64 = 100_000;

/// The vCPU threads look at their dirty flags all the time.
struct Polling;

impl VgicHost for Polling {
    fn kick(&self, _: usize) {}
    fn sync(&self, _: usize) {}
}

/// One source of edges: what was sent, and what had been sent when the interrupt was last handled.
#[derive(Default)]
struct Source {
    sent: AtomicU64,
    handled: AtomicU64,
    in_handler: AtomicBool,
}

struct Machine {
    vgic: Vgic,
    sgis: Vec<Source>,
    edges: Vec<Source>,
    level: Source,
    working: AtomicUsize,
}

impl Machine {
    fn handle(&self, vcpu: usize, intid: u32) {
        let source = match intid {
            LEVEL => &self.level,
            _ if intid < SGIS => &self.sgis[vcpu * SGIS as usize + intid as usize],
            _ => &self.edges[(intid - EDGES) as usize],
        };
        assert!(!source.in_handler.swap(true, SeqCst), "{intid} is handled twice at once");
        if intid == LEVEL {
            self.vgic.set_spi(LEVEL, false, &Polling);
        }
        source.handled.store(source.sent.load(SeqCst), SeqCst);
        source.in_handler.store(false, SeqCst);
    }

    fn quiet(&self) -> bool {
        let all = self.sgis.iter().chain(&self.edges).chain([&self.level]);
        self.working.load(SeqCst) == 0 && all.into_iter().all(|s| s.sent.load(SeqCst) == s.handled.load(SeqCst))
    }

    fn run_vcpu(&self, vcpu: usize) {
        let mut cpu = VgicCpu::new();
        cpu.vmcr = lr::VMCR_FIQEN | lr::VMCR_ENG1 | 0xf8 << lr::VMCR_PMR_SHIFT;
        let mut vif = FakeInterface::new(3);
        self.vgic.load(vcpu, &mut cpu, &mut vif);
        let start = Instant::now();
        let mut turn = 0_u64;
        while !self.quiet() {
            assert!(start.elapsed() < Duration::from_secs(60), "lost on vCPU {vcpu}: {vif:x?}");
            turn += 1;
            if turn.is_multiple_of(50) {
                self.vgic.unload(vcpu, &mut cpu, &mut vif, &Polling);
                thread::yield_now();
                self.vgic.load(vcpu, &mut cpu, &mut vif);
            }
            if vif.maintenance() || self.vgic.dirty(vcpu) {
                self.vgic.flush(vcpu, &mut cpu, &mut vif, &Polling);
                vif.check_entry();
            }
            if let Some(intid) = vif.acknowledge() {
                if turn.is_multiple_of(3) {
                    self.vgic.flush(vcpu, &mut cpu, &mut vif, &Polling);
                    vif.check_entry();
                }
                self.handle(vcpu, intid);
                vif.end(intid);
            } else {
                thread::yield_now();
            }
        }
    }

    /// Runs `step` for each round, then counts as done.
    fn work(&self, mut step: impl FnMut(u64)) {
        for round in 0..ROUNDS {
            step(round);
            if round.is_multiple_of(7) {
                thread::yield_now();
            }
        }
        self.working.fetch_sub(1, SeqCst);
    }
}

#[test]
fn nothing_is_lost_between_cpus() {
    let mpidrs: Vec<u64> = (0..VCPUS as u64).collect();
    let vgic = Vgic::new(&VgicConfig { mpidrs: &mpidrs, spis: 64 }).unwrap();
    vgic.dist_write(0, Word, 2, &Polling);
    vgic.dist_write(0x104, Word, 0xff00, &Polling);
    vgic.dist_write(0x108, Word, 0x100, &Polling);
    vgic.dist_write(0xc08, Word, 0xaaaa_0000, &Polling);
    let sources = |count| (0..count).map(|_| Source::default()).collect();
    let machine = Machine {
        vgic,
        sgis: sources(VCPUS * SGIS as usize),
        edges: sources(8),
        level: Source::default(),
        working: AtomicUsize::new(4),
    };
    thread::scope(|scope| {
        for vcpu in 0..VCPUS {
            let machine = &machine;
            scope.spawn(move || machine.run_vcpu(vcpu));
        }
        scope.spawn(|| {
            machine.work(|round| {
                let (target, sgi) = (round as usize % VCPUS, round / 2 % u64::from(SGIS));
                machine.sgis[target * SGIS as usize + sgi as usize].sent.fetch_add(1, SeqCst);
                machine.vgic.send_sgi(9, SgiRegister::Sgi1r, 1 << target | sgi << 24, &Polling);
            });
        });
        scope.spawn(|| {
            machine.work(|round| {
                let edge = round % 8;
                machine.edges[edge as usize].sent.fetch_add(1, SeqCst);
                machine.vgic.set_spi(EDGES + edge as u32, true, &Polling);
                machine.vgic.set_spi(EDGES + edge as u32, false, &Polling);
            });
        });
        scope.spawn(|| {
            machine.work(|_| {
                machine.level.sent.fetch_add(1, SeqCst);
                machine.vgic.set_spi(LEVEL, true, &Polling);
            });
        });
        scope.spawn(|| {
            machine.work(|round| {
                let intid = if round % 9 == 8 { LEVEL } else { EDGES + round as u32 % 9 };
                let (word, bit) = (u64::from(intid / 32) * 4, 1 << (intid % 32));
                machine.vgic.dist_write(0x6000 + 8 * u64::from(intid), Double, round / 9 % 3, &Polling);
                machine.vgic.dist_write(0x180 + word, Word, bit, &Polling);
                machine.vgic.dist_write(
                    0x400 + u64::from(intid & !3),
                    Word,
                    (round * 0x0820_8208) & 0x7878_7878,
                    &Polling,
                );
                machine.vgic.dist_write(0x100 + word, Word, bit, &Polling);
                machine.vgic.dist_write(0x6000 + 8 * u64::from(intid), Double, round / 9 % 2, &Polling);
            });
        });
    });
}

/// Reading another vCPU's interrupt while that one's list registers are loaded again and again: it is active all the time
/// and never pending, whatever moment the reader catches.
#[test]
fn an_active_spi_is_never_seen_pending() {
    const SPI: u32 = 40;
    let vgic = Vgic::new(&VgicConfig { mpidrs: &[0, 1], spis: 32 }).unwrap();
    let bit = 1 << (SPI % 32);
    vgic.dist_write(0, Word, 2, &Polling);
    vgic.dist_write(0x104, Word, bit, &Polling);
    vgic.dist_write(0xc08, Word, 0xaaaa_aaaa, &Polling);
    vgic.set_spi(SPI, true, &Polling);
    vgic.set_spi(SPI, false, &Polling);
    let (mut cpu, mut vif) = (VgicCpu::new(), FakeInterface::new(4));
    vif.vmcr = 0xff << lr::VMCR_PMR_SHIFT | lr::VMCR_ENG1;
    vgic.flush(0, &mut cpu, &mut vif, &Polling);
    assert_eq!(vif.acknowledge(), Some(SPI));
    vgic.sync(0, &mut cpu, &mut vif, &Polling);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let (vgic, done) = (&vgic, &done);
        scope.spawn(move || {
            while !done.load(SeqCst) {
                vgic.flush(0, &mut cpu, &mut vif, &Polling);
                vgic.sync(0, &mut cpu, &mut vif, &Polling);
            }
        });
        let seen = (0..ROUNDS).find(|_| vgic.dist_read(0x204, Word, &Polling) & bit != 0);
        let active = vgic.dist_read(0x304, Word, &Polling) & bit;
        done.store(true, SeqCst);
        assert_eq!((seen, active), (None, bit));
    });
}
