//! The world switch: running a guest is a function call that returns the reason.
//!
//! The one file of this layer with unsafe code. `boot/vectors.S` holds the assembly and its contract; the numbers in it
//! come from here.

use super::{
    aarch32,
    context::VcpuContext,
    exit::FaultAddress,
    fault::{ExceptionEntry, GuestFault, Surroundings},
};
use crate::arch::{
    features,
    state::{self, ExceptionState},
    sysreg::{read_sysreg, write_sysreg},
};
use core::mem::offset_of;

const EXIT_SYNC: u64 = 0;
const EXIT_IRQ: u64 = 1;
const EXIT_FIQ: u64 = 2;
const EXIT_SERROR: u64 = 3;
const EXIT_AARCH32: u64 = 4;

core::arch::global_asm!(
    include_str!("../../boot/macros.S"),
    include_str!("../../boot/vectors.S"),
    exit_sync = const EXIT_SYNC,
    exit_irq = const EXIT_IRQ,
    exit_fiq = const EXIT_FIQ,
    exit_serror = const EXIT_SERROR,
    exit_aarch32 = const EXIT_AARCH32,
    ctx_gpr = const offset_of!(VcpuContext, gpr),
    ctx_elr = const offset_of!(VcpuContext, pc),
    ctx_psci_version = const offset_of!(VcpuContext, psci_version),
);

const _: () = assert!(offset_of!(VcpuContext, pstate) == offset_of!(VcpuContext, pc) + 8);
const _: () = assert!(offset_of!(VcpuContext, pc) < 504 && offset_of!(VcpuContext, gpr) == 0);

unsafe extern "C" {
    static keel_vectors: u8;
    static keel_vectors_firmware: u8;
}

/// Installs keel's vectors on this CPU.
pub fn install_vectors() {
    write_sysreg!("vbar_el2", &raw const keel_vectors as u64);
    crate::arch::sysreg::isb();
}

/// Makes guests' calls of SMCCC_ARCH_WORKAROUND_1 and 3 on this CPU firmware's: it says that it mitigates, and entering
/// EL2 alone does not.
pub fn forward_workarounds() {
    write_sysreg!("vbar_el2", &raw const keel_vectors_firmware as u64);
    crate::arch::sysreg::isb();
}

/// Why a guest trapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap(u64);

impl Trap {
    /// Something it did in AArch64, described by a syndrome that is still in the registers.
    #[inline(always)]
    pub const fn is_synchronous(self) -> bool {
        self.0 == EXIT_SYNC
    }

    /// A physical interrupt.
    #[inline(always)]
    pub const fn is_interrupt(self) -> bool {
        matches!(self.0, EXIT_IRQ | EXIT_FIQ)
    }

    /// A physical SError. What is none of these it did in AArch32.
    pub const fn is_serror(self) -> bool {
        self.0 == EXIT_SERROR
    }
}

/// Runs the guest whose state this CPU holds until it traps.
#[inline(always)]
pub fn enter(context: &mut VcpuContext) -> Trap {
    let reason: u64;
    // SAFETY: `vcpu_enter` returns with SP, x19 and x29 as they were and has written nothing but `context` and its own
    // stack frame; every other register is named as clobbered. FP registers are the guest's: keel is built without them.
    // The guest cannot reach keel's memory: stage 2 maps only its own.
    unsafe {
        core::arch::asm!(
            "bl vcpu_enter",
            inout("x0") core::ptr::from_mut(context) => reason,
            out("x1") _, out("x2") _, out("x3") _, out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _,
            out("x9") _, out("x10") _, out("x11") _, out("x12") _, out("x13") _, out("x14") _, out("x15") _,
            out("x16") _, out("x17") _, out("x18") _, out("x20") _, out("x21") _, out("x22") _, out("x23") _,
            out("x24") _, out("x25") _, out("x26") _, out("x27") _, out("x28") _, out("lr") _,
        );
    }
    Trap(reason)
}

/// Where the last synchronous exit of this CPU's guest faulted.
#[inline(always)]
pub fn fault_address() -> FaultAddress {
    FaultAddress { far: read_sysreg!("far_el2"), hpfar: read_sysreg!("hpfar_el2") }
}

/// The virtual address of it, FAR_EL2.
#[inline(always)]
pub fn far() -> u64 {
    read_sysreg!("far_el2")
}

/// The syndrome of this CPU's last exception at EL2, ESR_EL2.
#[inline(always)]
pub fn esr() -> u64 {
    read_sysreg!("esr_el2")
}

/// Makes the guest that this CPU holds take an exception at EL1: the only place where a guest is punished.
#[cold]
#[inline(never)]
pub fn inject(context: &mut VcpuContext, fault: GuestFault) {
    let ExceptionState { vbar, sctlr } = state::exception_state();
    if state::is_el1_aarch32() {
        return inject_aarch32(context, fault, vbar, sctlr);
    }
    let el1 = Surroundings { vbar, sctlr, has_pan: features::has_pan(), has_ssbs: features::has_ssbs() };
    let ExceptionEntry { esr, far, elr, spsr, pc, pstate } = fault.entry(context, &el1);
    state::set_exception_registers(esr, far, elr, spsr);
    context.pc = pc;
    context.pstate = pstate;
}

fn inject_aarch32(context: &mut VcpuContext, fault: GuestFault, vbar: u64, sctlr: u64) {
    let [ttbcr, far] = state::aarch32_exception_state();
    let (has_pan, has_ssbs) = (features::has_pan(), features::has_ssbs());
    let el1 = aarch32::Surroundings { vbar, sctlr, ttbcr, far, has_pan, has_ssbs };
    let aarch32::Entry { lr, spsr, dfsr, ifsr, far, pc, pstate } = fault.entry_aarch32(context, &el1);
    state::set_aarch32_exception_registers(dfsr, ifsr, far, spsr);
    context.set_register(lr.0, lr.1);
    context.pc = pc;
    context.pstate = pstate;
}
