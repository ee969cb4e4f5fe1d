//! Exceptions injected into a guest: how its mistakes, and errors of its memory, come back to it.
//!
//! The exception is taken as the architecture would at EL1 (Arm ARM, AArch64.TakeException): this computes where to and
//! with what PSTATE; the world switch writes the registers. What the guest's CPU does not have leaves no trace: PSTATE.TCO
//! stays clear because it has no MTE, ALLINT because it has no FEAT_NMI, and so on. EASE and NMEA of SCTLR2_EL1 are not there
//! either, so an external abort goes to the synchronous vector.

use super::context::VcpuContext;
use crate::arch::esr::{self, ec, fsc};

/// What a guest did, or met with, that its machine answers with an exception.
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
    /// An instruction fetch from nothing: synchronous external abort.
    InstructionAbort {
        /// Virtual address.
        far: u64,
    },
    /// A stage-1 walk that left memory: synchronous external abort on a translation table walk.
    ///
    /// Hardware would say at which level of stage 1; what EL2 is told is only the level of stage 2 at which the
    /// descriptor's own address was refused. Finding out would take a walk through tables that the guest can change
    /// meanwhile, so [`WALK_LEVEL`] is said.
    WalkAbort {
        /// Virtual address that was being translated.
        far: u64,
        /// It was to fetch an instruction.
        fetch: bool,
        /// It was to write.
        write: bool,
    },
    /// An external abort that the machine itself has reported to EL2 (HCR_EL2.TEA).
    External {
        /// Virtual address; none where the machine does not say either (FnV).
        far: Option<u64>,
        /// It was to fetch an instruction.
        fetch: bool,
        /// What the guest is to read of the ISS: status, WnR, FnV, EA, SET.
        iss: u64,
    },
}

/// The level of a translation table walk in what a guest is told of a [`GuestFault::WalkAbort`].
pub const WALK_LEVEL: u64 = 3;

/// EL1 of the guest, as far as taking an exception there depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings {
    /// VBAR_EL1.
    pub vbar: u64,
    /// SCTLR_EL1.
    pub sctlr: u64,
    /// FEAT_PAN.
    pub has_pan: bool,
    /// FEAT_SSBS.
    pub has_ssbs: bool,
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
const DAIF_EL1H: u64 = 0x3c5;
/// What an exception leaves as it is. The same bits of SPSR_EL2 say so of an AArch32 program (Arm ARM C5.2.20).
const PSTATE_KEPT: u64 = PSTATE_NZCV | PSTATE_DIT | PSTATE_PAN;
/// ISS of a data abort, bit 6: the access was a write.
const WNR: u64 = 1 << 6;
/// SCTLR_EL1.SPAN: PAN is left as it is.
const SCTLR_SPAN: u64 = 1 << 23;
/// SCTLR_EL1.DSSBS: SSBS on exception entry.
const SCTLR_DSSBS: u64 = 1 << 44;

impl GuestFault {
    /// The exception, for a guest in `context`.
    pub fn entry(self, context: &VcpuContext, el1: &Surroundings) -> ExceptionEntry {
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
        // Clear after any exception: SS, IL, UAO, BTYPE, and what the guest does not have.
        let mut pstate = DAIF_EL1H | (spsr & PSTATE_KEPT);
        if el1.has_pan && el1.sctlr & SCTLR_SPAN == 0 {
            pstate |= PSTATE_PAN;
        }
        if el1.has_ssbs && el1.sctlr & SCTLR_DSSBS != 0 {
            pstate |= PSTATE_SSBS;
        }
        let (esr, far) = self.syndrome(from_el0);
        ExceptionEntry { esr, far, elr: context.pc, spsr, pc: (el1.vbar & !0x7ff).wrapping_add(offset), pstate }
    }

    /// ESR_EL1 and FAR_EL1. IL is 1 for instruction aborts, unknown reasons, and data aborts that do not describe the
    /// instruction (ISV = 0), which is how stage 1 reports all of them.
    fn syndrome(self, from_el0: bool) -> (u64, Option<u64>) {
        let class = |fetch| match (fetch, from_el0) {
            (true, true) => ec::INSTRUCTION_ABORT_LOWER,
            (true, false) => ec::INSTRUCTION_ABORT_SAME,
            (false, true) => ec::DATA_ABORT_LOWER,
            (false, false) => ec::DATA_ABORT_SAME,
        };
        let wnr = |write| if write { WNR } else { 0 };
        let (class, iss, far) = match self {
            Self::Undefined => (0, 0, None),
            Self::DataAbort { far, write } => (class(false), fsc::EXTERNAL | wnr(write), Some(far)),
            Self::InstructionAbort { far } => (class(true), fsc::EXTERNAL, Some(far)),
            Self::WalkAbort { far, fetch, write } => {
                (class(fetch), fsc::EXTERNAL_ON_WALK | WALK_LEVEL | wnr(write && !fetch), Some(far))
            }
            Self::External { far, fetch, iss } => (class(fetch), iss, far),
        };
        (class << 26 | esr::IL | iss, far)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn context(pstate: u64) -> VcpuContext {
        VcpuContext { pc: 0x1000, pstate, ..VcpuContext::reset() }
    }

    fn el1(vbar: u64, sctlr: u64, has_pan: bool) -> Surroundings {
        Surroundings { vbar, sctlr, has_pan, has_ssbs: true }
    }

    #[test]
    fn the_vector_follows_where_it_came_from() {
        for (pstate, offset) in [(0x3c5, 0x200), (0x3c4, 0), (0x3c0, 0x400), (0x10, 0x600)] {
            let entry = GuestFault::Undefined.entry(&context(pstate), &el1(0x8000_0800, SCTLR_SPAN, true));
            assert_eq!(entry.pc, 0x8000_0800 + offset);
            assert_eq!((entry.pstate, entry.elr, entry.spsr), (0x3c5, 0x1000, pstate));
            assert_eq!(entry.esr, esr::IL);
        }
    }

    #[test]
    fn aborts_carry_address_and_status() {
        let at = |fault: GuestFault, pstate| {
            let entry = fault.entry(&context(pstate), &el1(0, 0, false));
            (entry.esr, entry.far)
        };
        let data = |write| GuestFault::DataAbort { far: 0xdead, write };
        assert_eq!(at(data(false), 0x3c5), (0x25 << 26 | esr::IL | 0x10, Some(0xdead)));
        assert_eq!(at(data(true), 0), (0x24 << 26 | esr::IL | 0x50, Some(0xdead)));
        assert_eq!(at(data(true), 0x10), (0x24 << 26 | esr::IL | 0x50, Some(0xdead)));
        let fetch = GuestFault::InstructionAbort { far: 0xbeef };
        assert_eq!(at(fetch, 5), (0x21 << 26 | esr::IL | 0x10, Some(0xbeef)));
        let walk = |fetch, write| GuestFault::WalkAbort { far: 0xbeef, fetch, write };
        assert_eq!(at(walk(false, true), 5), (0x25 << 26 | esr::IL | 0x57, Some(0xbeef)));
        assert_eq!(at(walk(true, true), 0), (0x20 << 26 | esr::IL | 0x17, Some(0xbeef)));
        let external = GuestFault::External { far: None, fetch: false, iss: 1 << 11 | 1 << 10 | 0x14 };
        assert_eq!(at(external, 4), (0x25 << 26 | esr::IL | 0xc14, None));
    }

    #[test]
    fn pan_and_ssbs_follow_sctlr() {
        let entry = |sctlr, pan| GuestFault::Undefined.entry(&context(PSTATE_NZCV | 0x5), &el1(0, sctlr, pan)).pstate;
        assert_eq!(entry(0, true), DAIF_EL1H | PSTATE_NZCV | PSTATE_PAN);
        assert_eq!(entry(0, false), DAIF_EL1H | PSTATE_NZCV);
        assert_eq!(entry(SCTLR_SPAN | SCTLR_DSSBS, true), DAIF_EL1H | PSTATE_NZCV | PSTATE_SSBS);
        let old = Surroundings { has_ssbs: false, ..el1(0, SCTLR_SPAN | SCTLR_DSSBS, true) };
        assert_eq!(GuestFault::Undefined.entry(&context(5), &old).pstate, DAIF_EL1H);
    }

    /// PSTATE, field by field, as the pseudocode has it.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    struct Pstate {
        nzcv: u64,
        tco: u64,
        dit: u64,
        uao: u64,
        pan: u64,
        ss: u64,
        il: u64,
        allint: u64,
        ssbs: u64,
        btype: u64,
        daif: u64,
        aarch32: bool,
        el: u64,
        sp: u64,
    }

    impl Pstate {
        /// SetPSTATEFromPSR, as far as what follows looks at it.
        fn from_spsr(spsr: u64) -> Self {
            let bit = |n: u64| spsr >> n & 1;
            let aarch32 = bit(4) == 1;
            let only64 = |value| if aarch32 { 0 } else { value };
            Self {
                nzcv: spsr >> 28 & 15,
                dit: bit(24),
                pan: bit(22),
                ss: bit(21),
                il: bit(20),
                tco: only64(bit(25)),
                uao: only64(bit(23)),
                allint: only64(bit(13)),
                btype: only64(spsr >> 10 & 3),
                ssbs: if aarch32 { bit(23) } else { bit(12) },
                daif: spsr >> 6 & 15,
                aarch32,
                el: only64(spsr >> 2 & 3),
                sp: only64(bit(0)),
            }
        }

        /// GetPSRFromPSTATE for AArch64.
        fn spsr(self) -> u64 {
            self.nzcv << 28
                | self.tco << 25
                | self.dit << 24
                | self.uao << 23
                | self.pan << 22
                | self.ss << 21
                | self.il << 20
                | self.allint << 13
                | self.ssbs << 12
                | self.btype << 10
                | self.daif << 6
                | self.el << 2
                | self.sp
        }

        /// AArch64.TakeException to EL1 on a CPU with FEAT_UAO, FEAT_BTI and FEAT_DIT, without MTE and FEAT_NMI: the new
        /// PSTATE and the offset of the vector.
        fn take(self, sctlr: u64, has_pan: bool, has_ssbs: bool) -> (Self, u64) {
            let offset = if self.el < 1 {
                if self.aarch32 { 0x600 } else { 0x400 }
            } else if self.sp == 1 {
                0x200
            } else {
                0
            };
            let mut new = self;
            (new.el, new.aarch32, new.sp) = (1, false, 1);
            new.ss = 0;
            new.ssbs = if has_ssbs { sctlr >> 44 & 1 } else { 0 };
            (new.allint, new.tco) = (0, 0);
            new.daif = 15;
            new.il = 0;
            if has_pan && sctlr >> 23 & 1 == 0 {
                new.pan = 1;
            }
            new.uao = 0;
            new.btype = 0;
            (new, offset)
        }
    }

    fn any_fault() -> impl Strategy<Value = GuestFault> {
        (any::<u64>(), any::<bool>(), any::<bool>(), 0_u64..1 << 13, 0..5).prop_map(|(far, write, fetch, iss, kind)| {
            match kind {
                0 => GuestFault::Undefined,
                1 => GuestFault::DataAbort { far, write },
                2 => GuestFault::InstructionAbort { far },
                3 => GuestFault::WalkAbort { far, fetch, write },
                _ => GuestFault::External { far: write.then_some(far), fetch, iss },
            }
        })
    }

    proptest! {
        /// Any exception from anywhere below EL2 is taken as the pseudocode takes it.
        #[test]
        fn as_the_pseudocode(fault in any_fault(), flags: u64, mode in 0..4, vbar: u64, sctlr: u64, pc: u64, has_pan: bool, has_ssbs: bool) {
            let pstate = flags & 0xffff_ffe0 | [0b0_0000, 0b0_0100, 0b0_0101, 0b1_0000][mode as usize];
            let context = VcpuContext { pc, pstate, ..VcpuContext::reset() };
            let entry = fault.entry(&context, &Surroundings { vbar, sctlr, has_pan, has_ssbs });
            let before = Pstate::from_spsr(pstate);
            let (after, offset) = before.take(sctlr, has_pan, has_ssbs);
            prop_assert_eq!(entry.pstate, after.spsr());
            prop_assert_eq!((entry.elr, entry.spsr), (pc, pstate));
            prop_assert_eq!(entry.pc, (vbar & !0x7ff).wrapping_add(offset));
            // EC: one less from a lower level, but for what has no level.
            let class = entry.esr >> 26;
            prop_assert!(class == 0 && fault == GuestFault::Undefined || class & 1 == before.el && class >= 0x20);
            prop_assert_eq!(entry.esr >> 25 & 1, 1, "IL");
            prop_assert_eq!(entry.esr >> 13 & 0xfff, 0, "ISV, SAS, SSE, SRT, SF, AR, VNCR");
            prop_assert_eq!(entry.far.is_none(), matches!(fault, GuestFault::Undefined | GuestFault::External { far: None, .. }));
        }
    }
}
