//! Shared interrupts: where each goes, and which vCPU has it.
//!
//! An SPI is in at most one list register of the VM. Its `owner` word says whose: *free*, *held* by a vCPU (in its list
//! registers), or *parked* at a vCPU (active there, but out of the list registers for now). Free and parked SPIs become held
//! by compare-and-exchange, so two CPUs that both want one agree. A parked SPI stays with its vCPU until it is
//! inactive, wherever IROUTER points by then.
//!
//! Nobody is told to look at an SPI by polling: whoever changes its state tells the vCPU that has it, or else the one it
//! is routed to; and a vCPU that lets go of one that is still pending for another tells that other.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

use super::bank::{Bank, Presentation};
use super::lr;
use super::{PRIVATE_INTERRUPTS, Redistributor, Vgic, VgicHost};

/// In no list register and active nowhere.
const FREE: u32 = u32::MAX;
/// Or'ed to the vCPU's index: in its list registers.
const HELD: u32 = 1 << 31;
/// The target of an interrupt that is routed to no vCPU.
const NOWHERE: u32 = FREE;
/// The stored bits of IROUTER: Aff2–Aff0 (GICD_IROUTER, IHI 0069 §12.9; KVM keeps no more).
const ROUTE_MASK: u64 = 0xff_ffff;

/// Where one SPI goes.
#[derive(Debug)]
struct Route {
    /// IROUTER's affinity, or ITARGETSR (23:0) and, in 63:32, the index of the vCPU that has it, or [`NOWHERE`].
    target: AtomicU64,
    owner: AtomicU32,
    /// Its ends are told.
    is_watched: AtomicBool,
}

impl Route {
    fn target(&self) -> u32 {
        (self.target.load(SeqCst) >> 32) as u32
    }

    fn set_target(&self, affinity: u64, vcpu: Option<usize>) {
        let vcpu = vcpu.map_or(NOWHERE, |vcpu| vcpu as u32);
        self.target.store(u64::from(vcpu) << 32 | affinity, SeqCst);
    }

    fn exchange(&self, from: u32, to: u32) -> bool {
        self.owner.compare_exchange(from, to, SeqCst, SeqCst).is_ok()
    }
}

/// The SPIs of a VM.
#[derive(Debug)]
pub(super) struct Spis {
    banks: Box<[Bank]>,
    routes: Box<[Route]>,
}

impl Spis {
    /// `words` times 32 SPIs.
    pub(super) fn new(words: usize) -> Self {
        let route =
            |_| Route { target: AtomicU64::new(0), owner: AtomicU32::new(FREE), is_watched: AtomicBool::new(false) };
        Self { banks: (0..words).map(|_| Bank::new()).collect(), routes: (0..words * 32).map(route).collect() }
    }

    /// Everything off and level-sensitive, routed to affinity 0, which `vcpu` has.
    pub(super) fn reset(&self, vcpu: Option<usize>) {
        for bank in &self.banks {
            bank.reset(0, 0);
        }
        for route in &self.routes {
            route.owner.store(FREE, SeqCst);
            route.set_target(0, vcpu);
        }
    }

    /// How many words of 32 SPIs there are.
    pub(super) fn words(&self) -> usize {
        self.banks.len()
    }

    /// The 32 SPIs of `word`: INTIDs 32 + 32 * `word` and on.
    #[inline]
    pub(super) fn bank(&self, word: usize) -> Option<&Bank> {
        self.banks.get(word)
    }

    /// All SPIs, 32 at a time.
    pub(super) fn banks(&self) -> &[Bank] {
        &self.banks
    }

    /// The word that an INTID is in.
    #[inline]
    pub(super) fn bank_of(&self, intid: u32) -> Option<(usize, &Bank)> {
        let word = (intid.checked_sub(PRIVATE_INTERRUPTS)? / 32) as usize;
        Some((word, self.banks.get(word)?))
    }

    #[inline]
    fn route(&self, intid: u32) -> Option<&Route> {
        self.routes.get(intid.checked_sub(PRIVATE_INTERRUPTS)? as usize)
    }

    /// The end of this SPI is told from now on.
    pub(super) fn watch(&self, intid: u32) {
        if let Some(route) = self.route(intid) {
            route.is_watched.store(true, SeqCst);
        }
    }

    /// IROUTER of an SPI; a GICv2's ITARGETSR.
    pub(super) fn irouter(&self, intid: u32) -> Option<u64> {
        Some(self.route(intid)?.target.load(SeqCst) & ROUTE_MASK)
    }

    /// The vCPU in whose list registers an SPI is.
    pub(super) fn holder(&self, intid: u32) -> Option<usize> {
        let owner = self.route(intid)?.owner.load(SeqCst);
        (owner != FREE && owner & HELD != 0).then_some((owner & !HELD) as usize)
    }

    /// Whether `vcpu` is the one to load this SPI now.
    #[inline]
    pub(super) fn is_due_to(&self, intid: u32, vcpu: usize) -> bool {
        self.route(intid).is_some_and(|route| match route.owner.load(SeqCst) {
            FREE => route.target() == vcpu as u32,
            owner => owner == vcpu as u32,
        })
    }
}

/// The INTID of bit `bit` of `word`.
#[inline]
pub(super) fn intid_of(word: usize, bit: u32) -> u32 {
    PRIVATE_INTERRUPTS + 32 * word as u32 + bit
}

impl Vgic {
    /// Something about the SPIs `mask` of `word` has changed: tells whoever has them or is to have them. Only those with some
    /// state matter. Whoever gives one of the others a state later sees the change that was made before.
    pub(super) fn spis_changed(&self, word: usize, mask: u32, host: &dyn VgicHost) {
        let Some(bank) = self.spis.bank(word) else { return };
        let mut live = mask & bank.live();
        while live != 0 {
            let bit = live.trailing_zeros();
            live &= live - 1;
            if let Some(route) = self.spis.route(intid_of(word, bit)) {
                let vcpu = match route.owner.load(SeqCst) {
                    FREE => route.target(),
                    owner => owner & !HELD,
                };
                self.notify_spi(vcpu, word, host);
            }
        }
    }

    /// Makes a vCPU look at the SPIs of `word`.
    fn notify_spi(&self, vcpu: u32, word: usize, host: &dyn VgicHost) {
        if let Some(redistributor) = self.redistributors.get(vcpu as usize) {
            redistributor.spi_hint.fetch_or(1 << word, SeqCst);
            self.notify(vcpu as usize, host);
        }
    }

    /// Writes IROUTER of an SPI.
    pub(super) fn route_spi(&self, intid: u32, value: u64, host: &dyn VgicHost) {
        let affinity = value & ROUTE_MASK;
        self.redirect_spi(intid, affinity, self.vcpu_with_affinity(affinity), host);
    }

    /// An SPI goes to `vcpu` now; `route` is what its register is to hold, at most 24 bits.
    pub(super) fn redirect_spi(&self, intid: u32, route: u64, vcpu: Option<usize>, host: &dyn VgicHost) {
        let register = route;
        let (Some((word, _)), Some(route)) = (self.spis.bank_of(intid), self.spis.route(intid)) else { return };
        route.set_target(register, vcpu);
        // To the one that has it, if any, so that it lets go; and to the new one, which may find it free.
        self.spis_changed(word, 1 << (intid % 32), host);
        if self.spis.bank(word).is_some_and(|bank| bank.live() & 1 << (intid % 32) != 0) {
            self.notify_spi(route.target(), word, host);
        }
    }

    /// The guest has made the SPIs `mask` of `word` inactive by MMIO: nobody needs to keep them.
    pub(super) fn unpark_spis(&self, word: usize, mask: u32) {
        let mut mask = mask;
        while mask != 0 {
            let bit = mask.trailing_zeros();
            mask &= mask - 1;
            if let Some(route) = self.spis.route(intid_of(word, bit)) {
                let owner = route.owner.load(SeqCst);
                if owner & HELD == 0 {
                    route.exchange(owner, FREE);
                }
            }
        }
    }

    /// Gives those SPIs of `mask` that are active to the vCPUs that they are routed to. No vCPU may be resident.
    pub(super) fn park_spis(&self, word: usize, mask: u32) {
        let Some(bank) = self.spis.bank(word) else { return };
        for bit in (0..32).filter(|bit| bank.active() & mask & 1 << bit != 0) {
            if let Some(route) = self.spis.route(intid_of(word, bit)) {
                // `NOWHERE` is `FREE`.
                route.owner.store(route.target(), SeqCst);
            }
        }
    }

    /// Claims an SPI for the list registers of `vcpu`, and takes its pending state. `None`: it is not this vCPU's, or there
    /// is nothing to show any more.
    pub(super) fn present_spi(
        &self,
        vcpu: usize,
        intid: u32,
        let_through: bool,
        crowded: bool,
        host: &dyn VgicHost,
    ) -> Option<(u64, Presentation)> {
        let (_, bank) = self.spis.bank_of(intid)?;
        let route = self.spis.route(intid)?;
        let bit = 1 << (intid % 32);
        if !route.exchange(FREE, HELD | vcpu as u32) && !route.exchange(vcpu as u32, HELD | vcpu as u32) {
            return None;
        }
        // From here on a change is told to this vCPU; what was changed before is seen below.
        bank.loaded.fetch_or(bit, SeqCst);
        let mine = route.target() == vcpu as u32;
        let view = bank.view(SeqCst);
        // Before its latch is taken, so that no reader misses it on its way; and only if it is pending, so that no reader
        // takes an active one for pending.
        let held = view.pending() & bit;
        bank.held.fetch_or(held, SeqCst);
        let deliver = if mine && let_through { view.enabled } else { 0 };
        let presentation = bank.present(&view, bit, deliver, 0, crowded, 0);
        if presentation.shown() == 0 {
            self.release_spi(vcpu, intid, host);
            return None;
        }
        if presentation.pending != held {
            bank.held.fetch_xor(bit, SeqCst);
        }
        let mut value = presentation.list_register(intid, bank.priority(intid, SeqCst));
        if !mine || route.is_watched.load(SeqCst) {
            // Active here and routed elsewhere: an exit at its end, for the other vCPU may be waiting for it.
            value |= lr::EOI;
        }
        Some((value, presentation))
    }

    /// An SPI has left the list registers of `vcpu`, its state folded into the bitmaps.
    pub(super) fn release_spi(&self, vcpu: usize, intid: u32, host: &dyn VgicHost) {
        let Some((word, bank)) = self.spis.bank_of(intid) else { return };
        let Some(route) = self.spis.route(intid) else { return };
        let bit = 1 << (intid % 32);
        bank.held.fetch_and(!bit, SeqCst);
        bank.loaded.fetch_and(!bit, SeqCst);
        if bank.active() & bit != 0 {
            route.owner.store(vcpu as u32, SeqCst);
            // Made inactive meanwhile, by someone who still saw it held?
            if bank.active() & bit != 0 || !route.exchange(vcpu as u32, FREE) {
                return;
            }
        } else {
            route.owner.store(FREE, SeqCst);
        }
        let target = route.target();
        if target != vcpu as u32 && (bank.pending() | bank.active()) & bit != 0 {
            self.notify_spi(target, word, host);
        }
    }

    /// The guest has ended the SPI `intid`: tells who wants to know.
    pub(super) fn spi_ended(&self, intid: u32, host: &dyn VgicHost) {
        if self.spis.route(intid).is_some_and(|route| route.is_watched.load(SeqCst)) {
            host.ended(intid);
        }
    }

    /// Ends the SPI `intid`, which is active and in no list register, for `vcpu`.
    pub(super) fn deactivate_spi(&self, redistributor: &Redistributor, intid: u32, host: &dyn VgicHost) {
        let Some((word, bank)) = self.spis.bank_of(intid) else { return };
        let bit = 1 << (intid % 32);
        let was_active = bank.deactivate(bit);
        self.unpark_spis(word, bit);
        redistributor.spi_hint.fetch_or(1 << word, SeqCst);
        self.spis_changed(word, bit, host);
        if was_active {
            self.spi_ended(intid, host);
        }
    }
}
