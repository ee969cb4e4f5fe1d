//! Why a guest left: ESR, FAR and HPFAR decoded, once (Arm ARM D24.2.40).
//!
//! What a handler needs stands in the decoded value; nobody else looks at a syndrome. The three frequent kinds of exit,
//! [`hvc`], [`DataAbort`] and [`SystemAccess`], are asked for one after the other and stay in registers; [`Exit`] holds
//! the others.

use crate::arch::{
    addr::Ipa,
    esr::{self, ec, fsc},
};
use core::num::NonZeroU64;

/// The registers that say where an abort was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultAddress {
    /// FAR_EL2: the virtual address, for aborts.
    pub far: u64,
    /// HPFAR_EL2: the page of the IPA, for stage-2 faults.
    pub hpfar: u64,
}

impl FaultAddress {
    /// The page, of a fault that says it: FIPA, HPFAR_EL2 bits 43:4, is the IPA's bits 51:12.
    pub const fn page(self) -> Ipa {
        Ipa((self.hpfar & 0x0fff_ffff_fff0) << 8)
    }
}

/// Width and extension of a load, and the register it fills (ISS of a data abort: SAS, SSE, SF, SRT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// The register; 31 is the zero register.
    pub register: u8,
    /// log2 of the access size in bytes.
    pub size: u8,
    /// Sign-extend.
    pub signed: bool,
    /// The register is 64 bits wide.
    pub wide: bool,
}

impl Load {
    /// `value` as the register gets it.
    pub const fn extend(self, value: u64) -> u64 {
        let bits = 8 << self.size;
        let unused = 64 - bits;
        let value = if self.signed { ((value << unused) as i64 >> unused) as u64 } else { value << unused >> unused };
        if self.wide { value } else { value & 0xffff_ffff }
    }
}

/// A data access that stage 2 refused: its syndrome, read through methods so that the path that emulates a device looks
/// only at what it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataAbort {
    esr: u64,
    address: FaultAddress,
}

/// What hardware says of a load or store, for when it is carried out: [`DataAbort::described`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Described(NonZeroU64);

impl Described {
    /// It, without where it goes.
    #[inline(always)]
    pub const fn abort(self) -> DataAbort {
        DataAbort { esr: self.0.get(), address: FaultAddress { far: 0, hpfar: 0 } }
    }
}

/// An instruction fetch that stage 2 refused, or that memory failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstructionAbort {
    esr: u64,
    address: FaultAddress,
}

impl InstructionAbort {
    /// Virtual address.
    pub const fn far(&self) -> u64 {
        self.address.far
    }

    /// The page that stage 2 refused, of the walk or of the fetch; UNKNOWN for permission faults that are not on a walk.
    pub const fn page(&self) -> Ipa {
        self.address.page()
    }

    /// The fault came from the guest's stage-1 walk.
    pub const fn is_on_walk(&self) -> bool {
        self.esr & S1PTW != 0
    }

    /// The machine's own report, if memory failed.
    pub const fn external(&self) -> Option<ExternalAbort> {
        ExternalAbort::decode(self.esr, false)
    }

    /// Nothing is mapped there.
    pub const fn is_translation_fault(&self) -> bool {
        self.esr & 0x3f & !fsc::LEVEL == fsc::TRANSLATION
    }

    /// The walk may not write what it wants to: the access flag of the guest's descriptor.
    pub const fn is_write_of_walk(&self) -> bool {
        self.is_on_walk() && self.esr & 0x3f & !fsc::LEVEL == fsc::PERMISSION
    }
}

/// What the machine says of memory that failed, as the guest may read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExternalAbort {
    /// ISS bits FSC, WnR, EA, FnV and SET.
    pub iss: u64,
}

impl ExternalAbort {
    /// SET, bits 12:11, of an access's own abort (FSC 0x10): 2 = uncontainable (UC).
    const SET: u64 = 3 << 11;
    const UC: u64 = 2 << 11;
    const FNV: u64 = 1 << 10;
    const EA: u64 = 1 << 9;

    const fn decode(esr: u64, has_wnr: bool) -> Option<Self> {
        if !fsc::is_external(esr & 0x3f) {
            return None;
        }
        let wnr = if has_wnr { WNR } else { 0 };
        Some(Self { iss: esr & (0x3f | wnr | Self::EA | Self::FNV | Self::SET) })
    }

    /// Whether the error may have spread anywhere.
    pub const fn is_uncontainable(self) -> bool {
        self.iss & 0x3f == fsc::EXTERNAL && self.iss & Self::SET == Self::UC
    }

    /// Whether the fault address register says nothing.
    pub const fn is_nowhere(self) -> bool {
        self.iss & Self::FNV != 0
    }
}

/// A trapped system-register access or system instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemAccess {
    /// ESR_EL2 bits 31:0; the ISS, bits 24:0, is for `SysRegId`.
    pub esr: u32,
    /// MSR, or an instruction that takes a register.
    pub write: bool,
    /// The register read or written; 31 is the zero register.
    pub register: u8,
}

/// Which waiting instruction trapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// WFI.
    Interrupt,
    /// WFE.
    Event,
    /// WFIT, with the register that holds the deadline (virtual counter).
    InterruptTimeout(u8),
    /// WFET, with the register that holds the deadline (virtual counter).
    EventTimeout(u8),
}

/// Why a guest left, synchronously, if for none of the frequent reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// SMC; the PC is at it.
    Smc {
        /// Its immediate.
        immediate: u16,
    },
    /// Instruction fetch; the PC is at it.
    Instruction(InstructionAbort),
    /// WFI or WFE; the PC is at it.
    Wait(Wait),
    /// An instruction that the guest's machine does not have: SVE, SME, an AArch32 coprocessor access …
    Undefined,
    /// Something that keel neither asked for nor can answer.
    Unexpected {
        /// ESR_EL2.
        esr: u64,
    },
}

/// Bytes of an A64 instruction, by which the PC moves when a trapped one has been carried out.
pub const INSTRUCTION_BYTES: u64 = 4;

const ISV: u64 = 1 << 24;
const SAS: u64 = 3 << 22;
const SAS_WORD: u64 = 2 << 22;
const SSE: u64 = 1 << 21;
const SF: u64 = 1 << 15;
const CM: u64 = 1 << 8;
const S1PTW: u64 = 1 << 7;
const WNR: u64 = 1 << 6;

/// Whether an exit is an SMC.
pub const fn is_smc(esr: u64) -> bool {
    esr::class(esr) == ec::SMC64
}

/// Whether an exit is an access of an AArch32 program to a debug register: MCR, MRC, LDC, STC or MRRC with
/// coproc = 0b1110.
pub const fn is_debug(esr: u64) -> bool {
    matches!(esr::class(esr), 0x05 | 0x06 | 0x0c)
}

/// Whether an exit is an access to FP or SIMD registers that trap (CPTR_EL2.TFP).
pub const fn is_fp(esr: u64) -> bool {
    esr::class(esr) == 0x07
}

/// Whether an exit is a debug exception of the guest's: a breakpoint, a step, a watchpoint, BKPT or BRK.
pub const fn is_debug_exception(esr: u64) -> bool {
    matches!(esr::class(esr), 0x30 | 0x32 | 0x34 | 0x38 | ec::BRK64)
}

/// Whether it is a watchpoint's.
pub const fn is_watchpoint(esr: u64) -> bool {
    esr::class(esr) == 0x34
}

/// The immediate of the HVC that a syndrome is about. Hardware has moved the PC past it.
#[inline(always)]
pub const fn hvc(esr: u64) -> Option<u16> {
    if esr::class(esr) == ec::HVC64 { Some(esr::iss(esr) as u16) } else { None }
}

impl SystemAccess {
    /// The MSR, MRS or system instruction that a syndrome is about; the PC is at it.
    #[inline(always)]
    pub const fn decode(esr: u64) -> Option<Self> {
        if esr::class(esr) != ec::SYSREG {
            return None;
        }
        let iss = esr::iss(esr);
        Some(Self { esr: esr as u32, write: iss & 1 == 0, register: (iss >> 5 & 0x1f) as u8 })
    }

    /// Whether it is the access that this ISS is of, with whichever register.
    #[inline(always)]
    pub const fn is(&self, iss: u32) -> bool {
        self.esr & !(0x1f << 5) == (ec::SYSREG << 26 | esr::IL) as u32 | iss
    }
}

impl DataAbort {
    /// The data access that a syndrome is about; the PC is at it. `address` reads what is needed beside ESR_EL2.
    #[inline(always)]
    pub fn decode(esr: u64, address: impl FnOnce() -> FaultAddress) -> Option<Self> {
        if esr::class(esr) == ec::DATA_ABORT_LOWER { Some(Self { esr, address: address() }) } else { None }
    }

    /// The part of it that outlives the exit; the access is described.
    #[inline(always)]
    pub const fn described(&self) -> Option<Described> {
        // Never `None`: the exception class is not 0.
        match NonZeroU64::new(self.esr) {
            Some(esr) => Some(Described(esr)),
            None => None,
        }
    }

    /// Whether address and instruction are known and the access is the instruction's own: then, and only then, it can be
    /// carried out in its stead, by what the next four methods say.
    ///
    /// Hardware describes the instruction (ISV) when it is a load or store of one register without writeback. HPFAR_EL2 is
    /// UNKNOWN for permission faults that are not on a walk (Arm ARM D24.2.58).
    #[inline(always)]
    pub const fn is_described(&self) -> bool {
        // Address size, translation and access flag faults of all levels come before permission faults; CM and S1PTW
        // are bits above the status.
        self.esr & ISV != 0 && self.esr & (CM | S1PTW | 0x3f) < fsc::PERMISSION
    }

    /// Whether it is the load of a 32-bit word that is not sign-extended, what drivers do most; for an access that is
    /// [described](Self::is_described).
    #[inline(always)]
    pub const fn is_word_load(&self) -> bool {
        self.esr & (SAS | SSE | WNR) == SAS_WORD
    }

    /// Where the guest meant to go: the offset in the page is the virtual address's.
    #[inline(always)]
    pub const fn ipa(&self) -> Ipa {
        Ipa(self.address.page().0 | self.address.far & 0xfff)
    }

    /// log2 of the bytes accessed.
    #[inline(always)]
    pub const fn size(&self) -> u8 {
        (self.esr >> 22 & 3) as u8
    }

    /// The register loaded or stored; 31 is the zero register.
    #[inline(always)]
    pub const fn register(&self) -> u8 {
        (self.esr >> 16 & 0x1f) as u8
    }

    /// How a load fills its register.
    #[inline(always)]
    pub const fn load(&self) -> Load {
        Load { register: self.register(), size: self.size(), signed: self.esr & SSE != 0, wide: self.esr & SF != 0 }
    }

    /// Virtual address.
    pub const fn far(&self) -> u64 {
        self.address.far
    }

    /// The fault came from the guest's stage-1 walk.
    pub const fn is_on_walk(&self) -> bool {
        self.esr & S1PTW != 0
    }

    /// The machine's own report, if memory failed.
    pub const fn external(&self) -> Option<ExternalAbort> {
        ExternalAbort::decode(self.esr, true)
    }

    /// It is not allowed what it does to what is there.
    pub const fn is_permission_fault(&self) -> bool {
        self.esr & 0x3c == fsc::PERMISSION
    }

    /// Nothing is mapped there.
    #[inline(always)]
    pub const fn is_translation_fault(&self) -> bool {
        self.esr & 0x3f & !fsc::LEVEL == fsc::TRANSLATION
    }

    /// What of the syndrome is about the fault: CM, WnR and FSC.
    pub const fn fault_syndrome(&self) -> u64 {
        self.esr & (CM | WNR | 0x3f)
    }

    /// Hardware describes the instruction, and the access is its own.
    pub const fn has_syndrome(&self) -> bool {
        self.esr & (ISV | CM | S1PTW) == ISV
    }

    /// The instruction is cache maintenance.
    pub const fn is_cache_maintenance(&self) -> bool {
        self.esr & CM != 0
    }

    /// It writes, as far as the hardware says (WnR).
    pub const fn is_write(&self) -> bool {
        self.esr & WNR != 0
    }

    /// Bytes of the instruction: a T32 load or store may have two.
    #[inline(always)]
    pub const fn instruction_bytes(&self) -> u64 {
        // IL, bit 25, counts as 2.
        2 + (self.esr >> 24 & 2)
    }
}

impl Exit {
    /// Decodes a synchronous exit that is none of the frequent ones.
    pub fn decode(esr: u64, address: FaultAddress) -> Self {
        let iss = esr::iss(esr);
        match esr::class(esr) {
            ec::WFX => {
                let register = (iss >> 5 & 0x1f) as u8;
                Self::Wait(match iss & 3 {
                    0 => Wait::Interrupt,
                    1 => Wait::Event,
                    2 => Wait::InterruptTimeout(register),
                    _ => Wait::EventTimeout(register),
                })
            }
            ec::SMC64 => Self::Smc { immediate: iss as u16 },
            ec::INSTRUCTION_ABORT_LOWER => Self::Instruction(InstructionAbort { esr, address }),
            // Unknown reason (UNDEF with HCR_EL2.TGE only), MCR, MRC, LDC …, FP when CPTR traps it, pointer
            // authentication where the CPU has none, HVC and SMC from AArch32, SVE, SME: not there for this guest.
            0x00 | 0x03..=0x0a | 0x0c | 0x12..=0x15 | ec::SVE | ec::SME => Self::Undefined,
            _ => Self::Unexpected { esr },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ADDRESS: FaultAddress = FaultAddress { far: 0xffff_0000_1234_5678, hpfar: 0x0900_0000 >> 8 };

    fn abort(esr: u64) -> DataAbort {
        DataAbort::decode(0x24 << 26 | esr, || ADDRESS).expect("a data abort")
    }

    #[test]
    fn calls() {
        assert_eq!(hvc(0x5a00_0007), Some(7));
        assert_eq!(hvc(0x5e00_0007), None);
        assert_eq!(Exit::decode(0x5e00_ffff, ADDRESS), Exit::Smc { immediate: 0xffff });
    }

    #[test]
    fn a_store_of_a_byte() {
        let abort = abort(esr::IL | ISV | 9 << 16 | WNR | 7);
        assert!(abort.is_described() && abort.is_write());
        assert_eq!((abort.ipa(), abort.register(), abort.size()), (Ipa(0x0900_0678), 9, 0));
        assert_eq!((abort.is_on_walk(), abort.is_cache_maintenance()), (false, false));
        assert_eq!((abort.instruction_bytes(), abort.far()), (4, ADDRESS.far));
    }

    #[test]
    fn a_signed_load() {
        let abort = abort(ISV | 1 << 22 | SSE | SF | 31 << 16 | 7);
        assert!(abort.is_described() && !abort.is_write());
        assert_eq!(abort.load(), Load { register: 31, size: 1, signed: true, wide: true });
    }

    #[test]
    fn word_loads() {
        let word = ISV | SAS_WORD | 7;
        assert!(abort(word).is_word_load() && abort(word | SF | 31 << 16).is_word_load());
        for other in [word | SSE, word | WNR, word ^ 1 << 22, word ^ 2 << 22] {
            assert!(!abort(other).is_word_load(), "{other:#x}");
        }
    }

    #[test]
    fn only_what_is_known_can_be_carried_out() {
        for status in [0, 4, 7, 8, 11] {
            assert!(abort(ISV | status).is_described(), "status {status:#x}");
        }
        assert!(!abort(7).is_described(), "without ISV");
        assert_eq!(abort(7).instruction_bytes(), 2);
        assert!(!abort(ISV | S1PTW | 7).is_described(), "on a walk");
        assert!(!abort(ISV | CM | 7).is_described(), "cache maintenance");
        for status in [0xc, 0xf, 0x10, 0x21, 0x3f] {
            assert!(!abort(ISV | status).is_described(), "HPFAR is unknown for status {status:#x}");
        }
    }

    #[test]
    fn what_is_not_there_and_what_may_not_be_written() {
        let fetch = |iss: u64| match Exit::decode(ec::INSTRUCTION_ABORT_LOWER << 26 | iss, ADDRESS) {
            Exit::Instruction(fetch) => fetch,
            other => panic!("{other:?}"),
        };
        assert_eq!((fetch(7).page(), abort(7).ipa()), (Ipa(0x0900_0000), Ipa(0x0900_0678)));
        for status in 0..0x40 {
            let is_translation = (4..8).contains(&status);
            assert_eq!(abort(ISV | status).is_translation_fault(), is_translation, "status {status:#x}");
            assert_eq!(fetch(S1PTW | status).is_translation_fault(), is_translation, "status {status:#x}");
            assert_eq!(fetch(S1PTW | status).is_write_of_walk(), (0xc..0x10).contains(&status), "status {status:#x}");
            assert!(!fetch(status).is_write_of_walk(), "status {status:#x}: nothing is executed that may not be");
        }
    }

    #[test]
    fn memory_that_failed() {
        for status in 0..0x40 {
            let external = (0x10..0x20).contains(&status) && status != 0x11 && status != 0x19;
            assert_eq!(abort(status).external().is_some(), external, "status {status:#x}");
            assert!(!abort(ISV | status).is_described() || !external, "status {status:#x}");
        }
        // What describes the instruction, and the S1PTW of stage 2, are not for the guest.
        let found =
            abort(ISV | 3 << 22 | 9 << 16 | SF | 3 << 11 | 1 << 10 | 1 << 9 | CM | S1PTW | WNR | 0x10).external();
        assert_eq!(found, Some(ExternalAbort { iss: 3 << 11 | 1 << 10 | 1 << 9 | WNR | 0x10 }));
        for (set, status, uncontainable) in [(0, 0x10, false), (2, 0x10, true), (3, 0x10, false), (2, 0x14, false)] {
            let found = abort(set << 11 | status).external().expect("an external abort");
            assert_eq!(found.is_uncontainable(), uncontainable, "SET {set} of status {status:#x}");
        }
        let Exit::Instruction(fetch) = Exit::decode(0x20 << 26 | esr::IL | 1 << 9 | WNR | 0x17, ADDRESS) else {
            panic!("no instruction abort");
        };
        assert_eq!((fetch.far(), fetch.is_on_walk()), (ADDRESS.far, false));
        assert_eq!(fetch.external(), Some(ExternalAbort { iss: 1 << 9 | 0x17 }));
        let Exit::Instruction(fetch) = Exit::decode(0x20 << 26 | esr::IL | S1PTW | 0x6, ADDRESS) else {
            panic!("no instruction abort");
        };
        assert_eq!((fetch.is_on_walk(), fetch.external()), (true, None));
    }

    #[test]
    fn loads_extend_as_asked() {
        let load = |size, signed, wide| Load { register: 0, size, signed, wide };
        assert_eq!(load(0, true, true).extend(0x80), 0xffff_ffff_ffff_ff80);
        assert_eq!(load(0, true, false).extend(0x80), 0xffff_ff80);
        assert_eq!(load(1, false, true).extend(0x1_8000), 0x8000);
        assert_eq!(load(2, true, true).extend(0x8000_0000), 0xffff_ffff_8000_0000);
        assert_eq!(load(3, true, true).extend(u64::MAX), u64::MAX);
    }

    #[test]
    fn system_registers() {
        let access = SystemAccess::decode(0x6200_0000 | 5 << 5 | 1).expect("a system register");
        assert_eq!((access.write, access.register), (false, 5));
        assert_eq!(SystemAccess::decode(0x5a00_0000), None);
        // `msr ICC_SGI1R_EL1, x5`, put together by hand.
        let access = SystemAccess::decode(0x6200_0000 | 0x3a_30b6).expect("a system register");
        assert_eq!((access.write, access.register), (true, 5));
        assert!(access.is(0x3a_3016) && !access.is(0x3a_3017) && !access.is(0x3a_3036));
    }

    #[test]
    fn waits() {
        assert_eq!(Exit::decode(0x0600_0000, ADDRESS), Exit::Wait(Wait::Interrupt));
        assert_eq!(Exit::decode(0x0600_0001, ADDRESS), Exit::Wait(Wait::Event));
        assert_eq!(Exit::decode(0x0600_0062, ADDRESS), Exit::Wait(Wait::InterruptTimeout(3)));
        assert_eq!(Exit::decode(0x0600_0063, ADDRESS), Exit::Wait(Wait::EventTimeout(3)));
    }

    #[test]
    fn what_the_machine_lacks_is_undefined() {
        for class in [ec::SVE, ec::SME, ec::FP_SIMD, 0x03, 0x05] {
            assert_eq!(Exit::decode(class << 26, ADDRESS), Exit::Undefined);
        }
        assert!(matches!(Exit::decode(ec::BRK64 << 26, ADDRESS), Exit::Unexpected { .. }));
    }

    proptest! {
        #[test]
        fn any_syndrome_decodes(esr: u64, far: u64, hpfar: u64) {
            let address = FaultAddress { far, hpfar };
            let frequent = [
                hvc(esr).is_some(),
                SystemAccess::decode(esr).is_some(),
                DataAbort::decode(esr, || address).is_some(),
            ];
            prop_assert!(frequent.iter().filter(|&&is| is).count() <= 1);
            if let Some(abort) = DataAbort::decode(esr, || address) {
                prop_assert!(!abort.is_word_load() || !abort.is_write() && abort.size() == 2 && !abort.load().signed);
                prop_assert!(abort.ipa().0 < 1 << 52 && abort.size() < 4 && abort.register() < 32);
            }
            let _ = Exit::decode(esr, address);
        }
    }
}
