//! Leaving a CPU to the kernel that owns the machine.
//!
//! What has to be in order before (interrupts handed over, other CPUs told) is the caller's business; here is the last step,
//! from which there is no way back: `boot/depart.S`.

use super::{addr::Pa, boot::image, cache, cpu, hcr, stub};
use core::{mem::offset_of, ops::Range};

core::arch::global_asm!(
    include_str!("../../boot/macros.S"),
    include_str!("../../boot/depart.S"),
    sctlr_el2_mmu_off = const hcr::SCTLR_EL2_MMU_OFF,
    stack = const offset_of!(Departure, stack),
    vectors = const offset_of!(Departure, vectors),
    elr = const offset_of!(Departure, elr),
    enters = const offset_of!(Departure, enters),
);

unsafe extern "C" {
    fn keel_depart(departure: *const Departure) -> !;
}

/// What the kernel finds.
#[repr(C, align(64))]
#[derive(Debug)]
struct Departure {
    gpr: [u64; 31],
    elr: u64,
    spsr: u64,
    vectors: u64,
    hcr: u64,
    stack: [u64; 2],
    enters: u64,
}

const _: () = assert!(offset_of!(Departure, gpr) == 0);
const _: () = assert!(offset_of!(Departure, spsr) == offset_of!(Departure, elr) + 8);
const _: () = assert!(offset_of!(Departure, hcr) == offset_of!(Departure, vectors) + 8);

/// The stub that is under the kernel when keel has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Successor {
    /// Its vectors.
    pub vectors: Pa,
    /// Whether it relays the kernel's PSCI calls, which trap then (HCR_EL2.TSC).
    pub relays: bool,
}

impl Successor {
    /// The stub in keel's own image.
    pub fn own() -> Self {
        Self { vectors: stub::page(), relays: true }
    }
}

/// Leaves this CPU: the kernel goes on at EL1 at `pc` with `gpr` and `pstate`; or, with an `entry`, a payload begins there
/// at EL2h with `gpr`, x4 = `entry`, and finds the kernel's in ELR_EL2 and SPSR_EL2.
///
/// The kernel owns the machine: from here on it may do with all memory what it likes, keel's included. It is trusted with
/// that, by the configuration that made it the owner.
pub fn depart(successor: Successor, gpr: &[u64; 31], pc: u64, pstate: u64, entry: Option<u64>) -> ! {
    // Whatever the stub will read or write past the caches: its own state was cleaned when it was made.
    let stub_stack = image::stack(cpu::index()).unwrap_or(Range { start: Pa(0), end: Pa(0) });
    let mut departure = Departure {
        gpr: *gpr,
        elr: pc,
        spsr: pstate,
        vectors: successor.vectors.0,
        hcr: if successor.relays { hcr::HCR_EL2_OWNER } else { hcr::HCR_EL2_HOST },
        stack: [stub_stack.start.0, stub_stack.end.0],
        enters: entry.is_some().into(),
    };
    if let Some(entry) = entry {
        departure.gpr[4] = entry;
    }
    let at = Pa(core::ptr::from_ref(&departure) as u64);
    cache::clean(at..Pa(at.0 + size_of::<Departure>() as u64));
    // SAFETY: never returns, so nothing of this CPU's Rust state is used afterwards; EL2's map is the identity, and the
    // departure was cleaned for the loads that are made with the MMU off.
    unsafe { keel_depart(&raw const departure) }
}
