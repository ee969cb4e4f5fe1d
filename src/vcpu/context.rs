//! What the world switch moves at every exit: x0-x30, PC and PSTATE; and how they change.

use super::exit::Load;

/// The registers of a guest that leave the machine at every exit. `boot/vectors.S` knows its layout by `offset_of!`.
#[repr(C, align(64))]
#[derive(Clone, Debug)]
pub struct VcpuContext {
    /// x0-x30.
    pub gpr: [u64; 31],
    /// What PSCI_VERSION answers, in assembly; [`ASK_FOR_PSCI_VERSION`] when that is not for assembly to say.
    pub psci_version: u64,
    /// PC (ELR_EL2).
    pub pc: u64,
    /// PSTATE (SPSR_EL2).
    pub pstate: u64,
}

/// `VcpuContext::psci_version`: the call goes to Rust. Bit 63 is what assembly looks at.
pub const ASK_FOR_PSCI_VERSION: u64 = 1 << 63;

/// PSTATE of a CPU after reset: EL1h, D, A, I and F masked.
pub const PSTATE_RESET: u64 = 0x3c5;

/// PSTATE.SS: software step is active and the instruction has not been executed yet. (In an AArch32 program's SPSR_EL2 the
/// same bit.)
pub const PSTATE_SS: u64 = 1 << 21;

impl VcpuContext {
    /// All zero, but PSTATE as after reset.
    pub const fn reset() -> Self {
        Self { gpr: [0; 31], psci_version: ASK_FOR_PSCI_VERSION, pc: 0, pstate: PSTATE_RESET }
    }

    /// Register `n` as an instruction names it: 31 is the zero register.
    #[inline]
    pub fn register(&self, n: u8) -> u64 {
        self.gpr.get(usize::from(n)).copied().unwrap_or(0)
    }

    /// Sets register `n`; a write to 31, the zero register, is lost.
    #[inline]
    pub fn set_register(&mut self, n: u8, value: u64) {
        if let Some(register) = self.gpr.get_mut(usize::from(n)) {
            *register = value;
        }
    }

    /// Writes x0-x3, the results of a call.
    #[inline]
    pub fn set_results(&mut self, results: [u64; 4]) {
        self.gpr[..4].copy_from_slice(&results);
    }

    /// Steps over the trapped instruction. Every A64 instruction has four bytes; a trapped 16-bit T32 one has two
    /// (ESR_EL2.IL = 0).
    ///
    /// To a guest that steps itself it has been executed: with PSTATE.SS clear the step exception is next (Arm ARM D2,
    /// SSAdvance). Hardware does the same for HVC before it traps.
    #[inline]
    pub fn skip_instruction(&mut self, bytes: u64) {
        self.pc = self.pc.wrapping_add(bytes);
        self.pstate &= !PSTATE_SS;
    }

    /// Puts what a trapped load read into its register, sign-extended and cut to the register's width as it asks.
    #[inline]
    pub fn finish_load(&mut self, load: Load, value: u64) {
        self.set_register(load.register, load.extend(value));
    }

    /// Whether the guest is in AArch32 (PSTATE.nRW).
    #[inline]
    pub fn is_aarch32(&self) -> bool {
        self.pstate & (1 << 4) != 0
    }

    /// Whether the guest is at EL0.
    #[inline]
    pub fn is_el0(&self) -> bool {
        self.pstate & 0xf == 0
    }
}
