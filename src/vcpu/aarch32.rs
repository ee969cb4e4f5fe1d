//! Guests whose EL1 is AArch32: how their exits are read, how their instructions are stepped over, and how they take
//! exceptions.
//!
//! All their registers are the AArch64 ones (Arm ARM D1.20.1): r0-r14 of each mode have a place among x0-x30, SPSR_svc is
//! SPSR_EL1, DFSR is ESR_EL1, DFAR and IFAR are the halves of FAR_EL1. So the world switch, the saved state and what
//! emulates devices are the same as for AArch64; what differs is here, and pure.

use super::{
    context::{PSTATE_SS, VcpuContext},
    fault::{GuestFault, WALK_LEVEL},
};
use crate::arch::{
    esr::{self, ec, fsc},
    registers::Aarch32Registers,
};

/// PSTATE.M, bits 4:0, of AArch32 (Arm ARM G1.9.1).
pub mod mode {
    /// The field.
    pub const MASK: u64 = 0x1f;
    /// User.
    pub const USR: u64 = 0x10;
    /// FIQ.
    pub const FIQ: u64 = 0x11;
    /// IRQ.
    pub const IRQ: u64 = 0x12;
    /// Supervisor.
    pub const SVC: u64 = 0x13;
    /// Abort.
    pub const ABT: u64 = 0x17;
    /// Undefined.
    pub const UND: u64 = 0x1b;
    /// System.
    pub const SYS: u64 = 0x1f;
}

/// PSTATE of a CPU after reset: Supervisor mode, A32, A, I and F masked.
pub const PSTATE_RESET: u64 = PSTATE_AIF | mode::SVC;
/// PSTATE.T: the instruction set is T32.
pub const PSTATE_T: u64 = 1 << 5;
/// PSTATE.E: data is big-endian.
pub const PSTATE_E: u64 = 1 << 9;

const PSTATE_AIF: u64 = 7 << 6;
const PSTATE_A: u64 = 1 << 8;
const PSTATE_I: u64 = 1 << 7;
const PSTATE_F: u64 = 1 << 6;
/// GE, bits 19:16.
const PSTATE_GE: u64 = 0xf << 16;
/// N, Z, C, V and Q.
const PSTATE_NZCVQ: u64 = 0x1f << 27;
/// In SPSR_EL2; in an SPSR of AArch32 DIT is bit 21, where SPSR_EL2 has SS.
const PSTATE_DIT: u64 = 1 << 24;
const PSTATE_SSBS: u64 = 1 << 23;
const PSTATE_PAN: u64 = 1 << 22;
const SPSR32_DIT: u64 = 1 << 21;
/// ITSTATE: its bits 7:2 in bits 15:10, its bits 1:0 in bits 26:25.
const PSTATE_IT: u64 = 0x3f << 10 | 3 << 25;

/// The place among x0-x30 of a register that an instruction in mode `m` names (Arm ARM D1.20.1).
///
/// A syndrome has that place already (Arm ARM D24.2.40, SRT and Rt), and each such number stands for itself here: what a
/// mode sees of its own is above 15, and below that it has only what it shares. So this may be applied to both, which is
/// what makes it right on a CPU (QEMU is one, for data aborts) that reports what the instruction says.
pub const fn place(m: u64, register: u8) -> u8 {
    match (m & mode::MASK, register) {
        (mode::FIQ, 8..=14) => register + 16,
        (mode::IRQ, 14) => 16,
        (mode::IRQ, 13) => 17,
        (mode::SVC, 14) => 18,
        (mode::SVC, 13) => 19,
        (mode::ABT, 14) => 20,
        (mode::ABT, 13) => 21,
        (mode::UND, 14) => 22,
        (mode::UND, 13) => 23,
        _ => register,
    }
}

/// ITSTATE.
const fn it_state(pstate: u64) -> u64 {
    (pstate >> 8 & 0xfc) | (pstate >> 25 & 3)
}

/// Whether a condition holds (Arm ARM F1.3, ConditionHolds).
const fn holds(condition: u64, pstate: u64) -> bool {
    let (n, z, c, v) = (pstate >> 31 & 1, pstate >> 30 & 1, pstate >> 29 & 1, pstate >> 28 & 1);
    let result = match condition >> 1 & 7 {
        0 => z == 1,
        1 => c == 1,
        2 => n == 1,
        3 => v == 1,
        4 => c == 1 && z == 0,
        5 => n == v,
        6 => n == v && z == 0,
        _ => return true,
    };
    result != (condition & 1 != 0)
}

/// Whether the instruction that trapped would have been executed: one whose condition fails may trap all the same (Arm
/// ARM D24.2.40, CV and COND). What is not listed here trapped because it was.
pub const fn passes(esr: u64, pstate: u64) -> bool {
    /// CCKNOWNPASS of an SMC: CV and COND say something.
    const UNKNOWN_PASS: u64 = 1 << 19;
    const CV: u64 = 1 << 24;
    match esr::class(esr) {
        ec::WFX | ec::CP15 | ec::CP15_PAIR | ec::CP14 | ec::CP14_LOAD | ec::FP_SIMD | ec::CP10 | ec::CP14_PAIR => {}
        ec::SMC32 if esr & UNKNOWN_PASS != 0 => {}
        _ => return true,
    }
    if esr & CV != 0 {
        return holds(esr >> 20 & 15, pstate);
    }
    // Only T32 leaves it out: it is ITSTATE's then.
    let it = it_state(pstate);
    it == 0 || holds(it >> 4, pstate)
}

/// Bytes of the instruction that trapped (IL).
pub const fn instruction_bytes(esr: u64) -> u64 {
    if esr & esr::IL != 0 { 4 } else { 2 }
}

/// PSTATE after an instruction: ITSTATE advances (Arm ARM F1.3, AArch32.ITAdvance).
const fn advance_it(pstate: u64) -> u64 {
    let it = it_state(pstate);
    let next = if it & 7 == 0 { 0 } else { it & 0xe0 | it << 1 & 0x1f };
    pstate & !PSTATE_IT | (next & 0xfc) << 8 | (next & 3) << 25
}

impl VcpuContext {
    /// Steps over the trapped instruction of a guest in either state.
    #[inline(always)]
    pub fn step_over(&mut self, bytes: u64) {
        self.skip_instruction(bytes);
        if self.is_aarch32() {
            self.finish_step();
        }
    }

    #[cold]
    fn finish_step(&mut self) {
        self.pc &= 0xffff_ffff;
        if self.pstate & PSTATE_T != 0 {
            self.pstate = advance_it(self.pstate);
        }
    }

    /// After reset, PC is an entry point: bit 0 says that it is of T32 (DEN0022, 6.4.3).
    pub fn start_aarch32(&mut self, big_endian: bool) {
        if self.pc & 1 != 0 {
            self.pstate |= PSTATE_T;
        }
        if big_endian {
            self.pstate |= PSTATE_E;
        }
        self.pc &= 0xffff_fffe;
    }

    /// The registers as AArch32 has them: what is above bit 31 may be anything (Arm ARM D1.20.1).
    pub fn narrow(&mut self) {
        self.gpr.iter_mut().for_each(|register| *register &= 0xffff_ffff);
    }
}

/// What an MCR, MRC, MCRR or MRRC names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// A register of 32 bits: coprocessor (10 stands for VMRS and VMSR), opc1, CRn, CRm, opc2.
    Word([u8; 5]),
    /// A register of 64 bits: coprocessor, opc1, CRm.
    Pair([u8; 3]),
}

/// A trapped access of a system register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The register.
    pub name: Name,
    /// MRC, MRRC or VMRS.
    pub read: bool,
    /// The places of Rt and Rt2, which has the high half.
    pub registers: [u8; 2],
}

impl Access {
    /// The access that a syndrome is about, in mode `m` (Arm ARM D24.2.40, EC 0x03, 0x04, 0x05, 0x08, 0x0c).
    fn decode(esr: u64, m: u64) -> Option<Self> {
        let field = |lsb: u32, bits: u32| (esr >> lsb & ((1 << bits) - 1)) as u8;
        let word = |coprocessor| Name::Word([coprocessor, field(14, 3), field(10, 4), field(1, 4), field(17, 3)]);
        let pair = |coprocessor| Name::Pair([coprocessor, field(16, 4), field(1, 4)]);
        let name = match esr::class(esr) {
            ec::CP15 => word(15),
            ec::CP14 => word(14),
            ec::CP10 => word(10),
            ec::CP15_PAIR => pair(15),
            ec::CP14_PAIR => pair(14),
            _ => return None,
        };
        let registers = [place(m, field(5, 5)), place(m, field(10, 5))];
        Some(Self { name, read: esr & 1 != 0, registers })
    }
}

/// Why a guest left, if for something that AArch32 says in its own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// HVC; the PC is past it.
    Hvc {
        /// Its immediate.
        immediate: u16,
    },
    /// SMC; the PC is at it. Its immediate is not told.
    Smc,
    /// A system register; the PC is at it.
    System(Access),
    /// As in AArch64, or not there.
    Other,
}

impl Exit {
    /// Decodes a synchronous exit from a guest with this PSTATE.
    pub fn decode(esr: u64, pstate: u64) -> Self {
        match esr::class(esr) {
            ec::HVC32 => Self::Hvc { immediate: esr::iss(esr) as u16 },
            ec::SMC32 => Self::Smc,
            _ => Access::decode(esr, pstate).map_or(Self::Other, Self::System),
        }
    }
}

/// A syndrome whose SRT is the register's place, for [`DataAbort`](super::exit::DataAbort).
pub const fn placed(esr: u64, pstate: u64) -> u64 {
    const SRT: u64 = 0x1f << 16;
    esr & !SRT | (place(pstate, (esr >> 16 & 0x1f) as u8) as u64) << 16
}

/// EL1 of the guest, as far as taking an exception there depends on it.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings {
    /// VBAR.
    pub vbar: u64,
    /// SCTLR.
    pub sctlr: u64,
    /// TTBCR.
    pub ttbcr: u64,
    /// DFAR in the low half, IFAR in the high half (FAR_EL1).
    pub far: u64,
    /// FEAT_PAN.
    pub has_pan: bool,
    /// FEAT_SSBS.
    pub has_ssbs: bool,
}

/// SCTLR.V: vectors at 0xffff_0000.
const SCTLR_V: u64 = 1 << 13;
/// SCTLR.SPAN: PAN is left as it is.
const SCTLR_SPAN: u64 = 1 << 23;
/// SCTLR.EE: PSTATE.E on exception entry.
const SCTLR_EE: u64 = 1 << 25;
/// SCTLR.TE: PSTATE.T on exception entry.
const SCTLR_TE: u64 = 1 << 30;
/// SCTLR.DSSBS: PSTATE.SSBS on exception entry.
const SCTLR_DSSBS: u64 = 1 << 31;
/// TTBCR.EAE: the long-descriptor format, for fault status too.
const TTBCR_EAE: u64 = 1 << 31;

/// DFSR and IFSR: LPAE, the format; WnR; FnV.
const FSR_LPAE: u64 = 1 << 9;
const FSR_WNR: u64 = 1 << 11;
const FSR_FNV: u64 = 1 << 16;

/// The state that an exception to an AArch32 EL1 leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// LR of the new mode, and its place.
    pub lr: (u8, u64),
    /// SPSR of the new mode, and which of [`Aarch32Registers::spsr`] that is.
    pub spsr: (usize, u64),
    /// DFSR (ESR_EL1), where the exception sets it.
    pub dfsr: Option<u64>,
    /// IFSR (IFSR32_EL2), where the exception sets it.
    pub ifsr: Option<u64>,
    /// DFAR and IFAR (FAR_EL1).
    pub far: u64,
    /// The new PC.
    pub pc: u64,
    /// The new PSTATE.
    pub pstate: u64,
}

impl GuestFault {
    /// The exception, for a guest in `context` whose EL1 is AArch32 (Arm ARM G1.12, AArch32.TakeUndefInstrException and
    /// those beside it).
    pub fn entry_aarch32(self, context: &VcpuContext, el1: &Surroundings) -> Entry {
        let old = context.pstate;
        let is_thumb = old & PSTATE_T != 0;
        // What is returned to is the instruction itself: LR = its address and this (Arm ARM G1.12.3).
        let (m, vector, offset, spsr) = match self {
            Self::Undefined => (mode::UND, 0x04, if is_thumb { 2 } else { 4 }, Aarch32Registers::SPSR_UND),
            _ if self.is_fetch() => (mode::ABT, 0x0c, 4, Aarch32Registers::SPSR_ABT),
            _ => (mode::ABT, 0x10, 8, Aarch32Registers::SPSR_ABT),
        };
        let mut pstate =
            old & (PSTATE_NZCVQ | PSTATE_GE | PSTATE_DIT | PSTATE_PAN | PSTATE_F | PSTATE_A) | PSTATE_I | m;
        if m == mode::ABT {
            pstate |= PSTATE_A;
        }
        if el1.has_pan && el1.sctlr & SCTLR_SPAN == 0 {
            pstate |= PSTATE_PAN;
        }
        if el1.has_ssbs && el1.sctlr & SCTLR_DSSBS != 0 {
            pstate |= PSTATE_SSBS;
        }
        if el1.sctlr & SCTLR_EE != 0 {
            pstate |= PSTATE_E;
        }
        if el1.sctlr & SCTLR_TE != 0 {
            pstate |= PSTATE_T;
        }
        let base = if el1.sctlr & SCTLR_V != 0 { 0xffff_0000 } else { el1.vbar & 0xffff_ffe0 };
        let (status, address) = self.status(el1.ttbcr & TTBCR_EAE != 0);
        let far = match (address, self.is_fetch()) {
            (None, _) => el1.far,
            (Some(address), false) => el1.far & !0xffff_ffff | address & 0xffff_ffff,
            (Some(address), true) => el1.far & 0xffff_ffff | address << 32,
        };
        Entry {
            lr: (place(m, 14), context.pc.wrapping_add(offset) & 0xffff_ffff),
            spsr: (spsr, saved(old)),
            dfsr: status.filter(|_| !self.is_fetch()),
            ifsr: status.filter(|_| self.is_fetch()),
            far,
            pc: base.wrapping_add(vector) & 0xffff_ffff,
            pstate,
        }
    }

    fn is_fetch(self) -> bool {
        match self {
            Self::Undefined | Self::DataAbort { .. } => false,
            Self::InstructionAbort { .. } => true,
            Self::WalkAbort { fetch, .. } | Self::External { fetch, .. } => fetch,
        }
    }

    /// What DFSR or IFSR says, and the address (Arm ARM G8.2, DFSR; the two formats' codes: tables G5-25 and G5-26).
    fn status(self, long: bool) -> (Option<u64>, Option<u64>) {
        let (code, write, address) = match self {
            Self::Undefined => return (None, None),
            Self::DataAbort { far, write } => (fsc::EXTERNAL, write, Some(far)),
            Self::InstructionAbort { far } => (fsc::EXTERNAL, false, Some(far)),
            // The short format has two levels.
            Self::WalkAbort { far, fetch, write } => (fsc::EXTERNAL_ON_WALK | WALK_LEVEL, write && !fetch, Some(far)),
            Self::External { far, iss, .. } => (iss & 0x3f, iss & 1 << 6 != 0, far),
        };
        let format = if long { FSR_LPAE | code } else { short_status(code) };
        let fnv = if address.is_none() { FSR_FNV } else { 0 };
        (Some(format | if write { FSR_WNR } else { 0 } | fnv), address)
    }
}

/// The short-descriptor format's FS, bits 10 and 3:0, for a status of the long one.
const fn short_status(code: u64) -> u64 {
    const FS4: u64 = 1 << 10;
    let first_level = code & fsc::LEVEL <= 1;
    match code & 0x3c {
        // Synchronous external abort on a walk, then a parity or ECC error, and one on a walk.
        fsc::EXTERNAL_ON_WALK => {
            if first_level {
                0x0c
            } else {
                0x0e
            }
        }
        0x18 => FS4 | 0x9,
        0x1c => FS4 | if first_level { 0xc } else { 0xe },
        _ => 0x08,
    }
}

/// PSTATE as an SPSR of AArch32 has it.
const fn saved(pstate: u64) -> u64 {
    let dit = if pstate & PSTATE_DIT != 0 { SPSR32_DIT } else { 0 };
    pstate & 0xffff_ffff & !(PSTATE_DIT | PSTATE_SS) | dit
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MODES: [u64; 7] = [mode::USR, mode::FIQ, mode::IRQ, mode::SVC, mode::ABT, mode::UND, mode::SYS];

    fn context(pstate: u64) -> VcpuContext {
        VcpuContext { pc: 0x8000, pstate, ..VcpuContext::reset() }
    }

    fn el1() -> Surroundings {
        Surroundings {
            vbar: 0x4000_0000,
            sctlr: SCTLR_SPAN,
            ttbcr: 0,
            far: 0x1111_1111_2222_2222,
            has_pan: true,
            has_ssbs: true,
        }
    }

    #[test]
    fn every_mode_has_its_own_registers() {
        // Arm ARM D1.20.1: who has x8 to x30, as (mode, register).
        let banked: [(u64, u8); 15] = [
            (mode::IRQ, 14),
            (mode::IRQ, 13),
            (mode::SVC, 14),
            (mode::SVC, 13),
            (mode::ABT, 14),
            (mode::ABT, 13),
            (mode::UND, 14),
            (mode::UND, 13),
            (mode::FIQ, 8),
            (mode::FIQ, 9),
            (mode::FIQ, 10),
            (mode::FIQ, 11),
            (mode::FIQ, 12),
            (mode::FIQ, 13),
            (mode::FIQ, 14),
        ];
        for (n, (m, register)) in banked.into_iter().enumerate() {
            assert_eq!(usize::from(place(m, register)), 16 + n);
        }
        for m in MODES {
            for register in 0..15 {
                let expected = banked.iter().position(|&one| one == (m, register)).map_or(register, |n| 16 + n as u8);
                assert_eq!(place(m, register), expected);
                assert_eq!(place(m, expected), expected, "a place is its own");
            }
            for register in 15..32 {
                assert_eq!(place(m, register), register);
            }
        }
    }

    #[test]
    fn conditions_by_syndrome_and_by_it() {
        let z = 1 << 30;
        let mcr = |condition: u64| ec::CP15 << 26 | 1 << 24 | condition << 20;
        for (condition, pstate, expected) in [
            (0, z, true),
            (0, 0, false),
            (1, z, false),
            (14, 0, true),
            (15, 0, true),
            (8, 1 << 29, true),
            (8, 1 << 29 | z, false),
            (10, 1 << 31, false),
            (10, 9 << 28, true),
        ] {
            assert_eq!(passes(mcr(condition), pstate), expected, "{condition} {pstate:#x}");
        }
        // T32, IT EQ: ITSTATE 0b0000_1000.
        let it = PSTATE_T | 0x08 << 8;
        assert!(passes(ec::CP15 << 26, it | z) && !passes(ec::CP15 << 26, it));
        assert!(passes(ec::CP15 << 26, PSTATE_T));
        // An SMC says whether it can have failed; HVC and aborts were executed.
        let smc = |iss: u64| ec::SMC32 << 26 | iss;
        assert!(passes(smc(1 << 24), 0) && !passes(smc(1 << 24 | 1 << 19), 0) && passes(smc(1 << 24 | 1 << 19), z));
        assert!(passes(ec::HVC32 << 26 | 1 << 24, 0) && passes(0x24 << 26 | 1 << 24, 0));
    }

    #[test]
    fn stepping_over() {
        let mut guest = context(mode::SVC);
        guest.pc = 0xffff_fffc;
        guest.step_over(4);
        assert_eq!((guest.pc, guest.pstate), (0, mode::SVC));
        // ITTE EQ: 0000_0110 → 0000_1100 → 0001_1000 → none.
        let bits = |it: u64| (it & 0xfc) << 8 | (it & 3) << 25;
        let mut guest = context(mode::SVC | PSTATE_T | bits(0x06));
        for it in [0x0c, 0x18, 0] {
            guest.step_over(2);
            assert_eq!(it_state(guest.pstate), it);
        }
        assert_eq!((guest.pc, guest.pstate), (0x8006, mode::SVC | PSTATE_T));
        let mut guest = VcpuContext { pc: 0xffff_fffc, ..VcpuContext::reset() };
        guest.step_over(4);
        assert_eq!(guest.pc, 0x1_0000_0000, "AArch64");
    }

    #[test]
    fn accesses() {
        // mrc p15, 0, r3, c0, c1, 4, of condition AL.
        let esr = ec::CP15 << 26 | esr::IL | 1 << 24 | 14 << 20 | 4 << 17 | 3 << 5 | 1 << 1 | 1;
        let access = Access { name: Name::Word([15, 0, 0, 1, 4]), read: true, registers: [3, 0] };
        assert_eq!(Exit::decode(esr, mode::SVC), Exit::System(access));
        // mcrr p15, 0, lr, r1, c12, as QEMU and as the architecture has it.
        for lr in [14, 18] {
            let esr = ec::CP15_PAIR << 26 | esr::IL | 1 << 24 | 14 << 20 | 1 << 10 | lr << 5 | 12 << 1;
            let access = Access { name: Name::Pair([15, 0, 12]), read: false, registers: [18, 1] };
            assert_eq!(Exit::decode(esr, mode::SVC), Exit::System(access));
        }
        assert_eq!(Exit::decode(ec::HVC32 << 26 | 7, 0), Exit::Hvc { immediate: 7 });
        assert_eq!(Exit::decode(ec::SMC32 << 26 | 7, 0), Exit::Smc);
        assert_eq!(Exit::decode(ec::CP14_LOAD << 26, 0), Exit::Other);
        assert_eq!(placed(14 << 16 | 1 << 24, mode::SVC), 18 << 16 | 1 << 24);
    }

    #[test]
    fn undefined_instructions() {
        let old = 0xf800_0000 | PSTATE_DIT | PSTATE_F | mode::USR;
        let entry = GuestFault::Undefined.entry_aarch32(&context(old | PSTATE_SS), &el1());
        assert_eq!((entry.lr, entry.pc), ((22, 0x8004), 0x4000_0004));
        assert_eq!(entry.spsr, (Aarch32Registers::SPSR_UND, 0xf800_0000 | SPSR32_DIT | PSTATE_F | mode::USR));
        assert_eq!(entry.pstate, 0xf800_0000 | PSTATE_DIT | PSTATE_F | PSTATE_I | mode::UND);
        assert_eq!((entry.dfsr, entry.ifsr, entry.far), (None, None, el1().far));
        let entry = GuestFault::Undefined.entry_aarch32(&context(PSTATE_T | 0x0c << 8 | mode::SVC), &el1());
        assert_eq!((entry.lr, entry.pstate), ((22, 0x8002), PSTATE_I | mode::UND), "T and IT are clear");
    }

    #[test]
    fn aborts_in_both_formats() {
        let data = GuestFault::DataAbort { far: 0xdead_0000, write: true };
        let entry = data.entry_aarch32(&context(mode::SVC), &el1());
        assert_eq!(
            (entry.lr, entry.pc, entry.spsr),
            ((20, 0x8008), 0x4000_0010, (Aarch32Registers::SPSR_ABT, mode::SVC))
        );
        assert_eq!((entry.dfsr, entry.ifsr, entry.far), (Some(0x808), None, 0x1111_1111_dead_0000));
        assert_eq!(entry.pstate, PSTATE_A | PSTATE_I | mode::ABT);
        let long = Surroundings { ttbcr: TTBCR_EAE, sctlr: SCTLR_V | SCTLR_EE | SCTLR_TE | SCTLR_DSSBS, ..el1() };
        let entry = data.entry_aarch32(&context(mode::SVC), &long);
        assert_eq!((entry.dfsr, entry.pc), (Some(0xa10), 0xffff_0010));
        assert_eq!(entry.pstate, PSTATE_A | PSTATE_I | PSTATE_PAN | PSTATE_E | PSTATE_T | PSTATE_SSBS | mode::ABT);
        let fetch =
            GuestFault::InstructionAbort { far: 0xdead_0000 }.entry_aarch32(&context(PSTATE_T | mode::SVC), &el1());
        assert_eq!((fetch.lr, fetch.pc), ((20, 0x8004), 0x4000_000c));
        assert_eq!((fetch.dfsr, fetch.ifsr, fetch.far), (None, Some(8), 0xdead_0000_2222_2222));
        let walk = |fetch| GuestFault::WalkAbort { far: 4, fetch, write: true };
        assert_eq!(walk(false).entry_aarch32(&context(mode::SVC), &el1()).dfsr, Some(0x80e));
        assert_eq!(walk(false).entry_aarch32(&context(mode::SVC), &long).dfsr, Some(0xa17));
        assert_eq!(walk(true).entry_aarch32(&context(mode::SVC), &long).ifsr, Some(0x217));
        let nowhere = GuestFault::External { far: None, fetch: false, iss: 0x18 };
        let entry = nowhere.entry_aarch32(&context(mode::SVC), &el1());
        assert_eq!((entry.dfsr, entry.far), (Some(1 << 16 | 1 << 10 | 9), el1().far));
    }

    proptest! {
        /// Whatever is reported, nothing leaves its range, and an exception enters a mode that EL1 has.
        #[test]
        fn anything(esr: u64, pstate: u32, pc: u32, far: u64, sctlr: u32, write: bool, fetch: bool, iss in 0_u64..1 << 13) {
            let pstate = u64::from(pstate);
            let _ = passes(esr, pstate);
            if let Exit::System(access) = Exit::decode(esr, pstate) {
                prop_assert!(access.registers.iter().all(|&register| register < 32));
            }
            prop_assert_eq!(placed(placed(esr, pstate), pstate), placed(esr, pstate));
            let mut guest = VcpuContext { pc: pc.into(), ..context(pstate | 0x10) };
            for fault in [GuestFault::WalkAbort { far, fetch, write }, GuestFault::External { far: write.then_some(far), fetch, iss }] {
                let entry = fault.entry_aarch32(&guest, &Surroundings { sctlr: sctlr.into(), ..el1() });
                prop_assert!(entry.pc <= 0xffff_ffff && entry.lr.1 <= 0xffff_ffff && entry.spsr.1 <= 0xffff_ffff);
                prop_assert_eq!((entry.pstate & mode::MASK, it_state(entry.pstate)), (mode::ABT, 0));
                prop_assert_eq!((entry.dfsr.is_some(), entry.ifsr.is_some()), (!fetch, fetch));
            }
            guest.step_over(2);
            prop_assert!(guest.pc <= 0xffff_ffff);
        }
    }
}
