//! Exceptions injected into a guest: how its mistakes come back to it.
//!
//! The exception is taken as the architecture would at EL1 (Arm ARM D1.3.5): this computes where to and with what PSTATE;
//! the world switch writes the registers.

use super::context::VcpuContext;
use crate::arch::esr::{self, ec, fsc};

/// What a guest did that its machine answers with an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestFault {
    /// The instruction does not exist there.
    Undefined,
    /// A data access to nothing: synchronous external abort.
    DataAbort {
        /// Virtual address.
        far: u64,
        /// It was a write.
        write: bool,
    },
    /// A stage-1 walk that left memory: synchronous external abort.
    WalkAbort {
        /// Virtual address that was being translated.
        far: u64,
    },
    /// An instruction fetch from nothing: synchronous external abort.
    InstructionAbort {
        /// Virtual address.
        far: u64,
    },
}

/// The state that an exception to EL1 leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExceptionEntry {
    /// ESR_EL1.
    pub esr: u64,
    /// FAR_EL1, where the exception sets it.
    pub far: Option<u64>,
    /// ELR_EL1: the preferred return address, the instruction itself.
    pub elr: u64,
    /// SPSR_EL1.
    pub spsr: u64,
    /// The new PC.
    pub pc: u64,
    /// The new PSTATE.
    pub pstate: u64,
}

const PSTATE_NZCV: u64 = 0xf << 28;
const PSTATE_DIT: u64 = 1 << 24;
const PSTATE_PAN: u64 = 1 << 22;
const PSTATE_SSBS: u64 = 1 << 12;
const PSTATE_AARCH32: u64 = 1 << 4;
const DAIF_EL1H: u64 = 0x3c5;
/// ISS of a data abort, bit 6: the access was a write.
const WNR: u64 = 1 << 6;
/// SCTLR_EL1.SPAN: PAN is left as it is.
const SCTLR_SPAN: u64 = 1 << 23;
/// SCTLR_EL1.DSSBS: SSBS on exception entry.
const SCTLR_DSSBS: u64 = 1 << 44;

impl GuestFault {
    /// The exception, for a guest in `context` with this VBAR_EL1 and SCTLR_EL1; `has_pan` says whether it has FEAT_PAN.
    pub fn entry(self, context: &VcpuContext, vbar: u64, sctlr: u64, has_pan: bool) -> ExceptionEntry {
        let spsr = context.pstate;
        let from_el0 = context.is_el0() || context.is_aarch32();
        let offset = if context.is_aarch32() {
            0x600
        } else if context.is_el0() {
            0x400
        } else if spsr & 1 != 0 {
            0x200
        } else {
            0x000
        };
        // Bits that the exception keeps; AArch32 has NZCV and DIT (there bit 21) elsewhere than it matters here.
        let mut pstate = DAIF_EL1H | (spsr & PSTATE_NZCV);
        if spsr & PSTATE_AARCH32 == 0 {
            pstate |= spsr & (PSTATE_DIT | PSTATE_PAN);
        }
        if has_pan && sctlr & SCTLR_SPAN == 0 {
            pstate |= PSTATE_PAN;
        }
        if sctlr & SCTLR_DSSBS != 0 {
            pstate |= PSTATE_SSBS;
        }
        let class = |same: u64, lower: u64| if from_el0 { lower } else { same };
        let (class, status, far) = match self {
            Self::Undefined => (0, 0, None),
            Self::DataAbort { far, write } => (
                class(ec::DATA_ABORT_SAME, ec::DATA_ABORT_LOWER),
                fsc::EXTERNAL | if write { WNR } else { 0 },
                Some(far),
            ),
            Self::WalkAbort { far } => {
                (class(ec::DATA_ABORT_SAME, ec::DATA_ABORT_LOWER), fsc::EXTERNAL | 0x4 | 0x3, Some(far))
            }
            Self::InstructionAbort { far } => {
                (class(ec::INSTRUCTION_ABORT_SAME, ec::INSTRUCTION_ABORT_LOWER), fsc::EXTERNAL, Some(far))
            }
        };
        ExceptionEntry {
            esr: class << 26 | esr::IL | status,
            far,
            elr: context.pc,
            spsr,
            pc: (vbar & !0x7ff).wrapping_add(offset),
            pstate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(pstate: u64) -> VcpuContext {
        VcpuContext { pc: 0x1000, pstate, ..VcpuContext::reset() }
    }

    #[test]
    fn the_vector_follows_where_it_came_from() {
        for (pstate, offset) in [(0x3c5, 0x200), (0x3c4, 0), (0x3c0, 0x400), (0x10, 0x600)] {
            let entry = GuestFault::Undefined.entry(&context(pstate), 0x8000_0800, SCTLR_SPAN, true);
            assert_eq!(entry.pc, 0x8000_0800 + offset);
            assert_eq!((entry.pstate, entry.elr, entry.spsr), (0x3c5, 0x1000, pstate));
            assert_eq!(entry.esr, esr::IL);
        }
    }

    #[test]
    fn aborts_carry_address_and_status() {
        let entry = GuestFault::DataAbort { far: 0xdead, write: false }.entry(&context(0x3c5), 0, 0, false);
        assert_eq!((entry.esr, entry.far), (0x25 << 26 | esr::IL | 0x10, Some(0xdead)));
        let entry = GuestFault::DataAbort { far: 0xdead, write: true }.entry(&context(0), 0, 0, false);
        assert_eq!(entry.esr, 0x24 << 26 | esr::IL | 0x50);
        let entry = GuestFault::InstructionAbort { far: 0xbeef }.entry(&context(0x5), 0, 0, false);
        assert_eq!((entry.esr, entry.far), (0x21 << 26 | esr::IL | 0x10, Some(0xbeef)));
    }

    #[test]
    fn pan_and_ssbs_follow_sctlr() {
        let entry = |sctlr, pan| GuestFault::Undefined.entry(&context(PSTATE_NZCV | 0x5), 0, sctlr, pan).pstate;
        assert_eq!(entry(0, true), DAIF_EL1H | PSTATE_NZCV | PSTATE_PAN);
        assert_eq!(entry(0, false), DAIF_EL1H | PSTATE_NZCV);
        assert_eq!(entry(SCTLR_SPAN | SCTLR_DSSBS, true), DAIF_EL1H | PSTATE_NZCV | PSTATE_SSBS);
    }
}
