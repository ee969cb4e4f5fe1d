//! ESR_EL2: exception classes and syndromes (Arm ARM D24.2.40).
//!
//! Only the exit decoder reads these fields.

/// Exception class, ESR_EL2.EC, bits 31:26.
pub mod ec {
    /// WFI, WFE, WFIT or WFET.
    pub const WFX: u64 = 0x01;
    /// MCR or MRC of CP15, from AArch32.
    pub const CP15: u64 = 0x03;
    /// MCRR or MRRC of CP15.
    pub const CP15_PAIR: u64 = 0x04;
    /// MCR or MRC of CP14.
    pub const CP14: u64 = 0x05;
    /// LDC or STC of CP14.
    pub const CP14_LOAD: u64 = 0x06;
    /// FP, SIMD or SVE access trapped by CPTR_EL2 or CPACR_EL1.
    pub const FP_SIMD: u64 = 0x07;
    /// VMRS of an ID register, from AArch32.
    pub const CP10: u64 = 0x08;
    /// MRRC of CP14.
    pub const CP14_PAIR: u64 = 0x0c;
    /// Pointer authentication trapped by HCR_EL2.API.
    pub const PAUTH: u64 = 0x09;
    /// Illegal execution state.
    pub const ILLEGAL_STATE: u64 = 0x0e;
    /// HVC from AArch32.
    pub const HVC32: u64 = 0x12;
    /// SMC from AArch32.
    pub const SMC32: u64 = 0x13;
    /// HVC from AArch64.
    pub const HVC64: u64 = 0x16;
    /// SMC from AArch64.
    pub const SMC64: u64 = 0x17;
    /// MSR, MRS or system instruction from AArch64.
    pub const SYSREG: u64 = 0x18;
    /// SVE access.
    pub const SVE: u64 = 0x19;
    /// SME access.
    pub const SME: u64 = 0x1d;
    /// Instruction abort from a lower level.
    pub const INSTRUCTION_ABORT_LOWER: u64 = 0x20;
    /// Instruction abort without a change of level.
    pub const INSTRUCTION_ABORT_SAME: u64 = 0x21;
    /// PC alignment fault.
    pub const PC_ALIGNMENT: u64 = 0x22;
    /// Data abort from a lower level.
    pub const DATA_ABORT_LOWER: u64 = 0x24;
    /// Data abort without a change of level.
    pub const DATA_ABORT_SAME: u64 = 0x25;
    /// SError.
    pub const SERROR: u64 = 0x2f;
    /// BRK from AArch64.
    pub const BRK64: u64 = 0x3c;
}

/// IL, bit 25: the trapped instruction has 32 bits.
pub const IL: u64 = 1 << 25;

/// EC of a syndrome.
#[inline(always)]
pub const fn class(esr: u64) -> u64 {
    (esr >> 26) & 0x3f
}

/// ISS of a syndrome, bits 24:0.
#[inline(always)]
pub const fn iss(esr: u64) -> u64 {
    esr & 0x01ff_ffff
}

/// Fault status codes of aborts, ISS bits 5:0.
pub mod fsc {
    /// Address size fault, level 0 (bits 1:0 give the level).
    pub const ADDRESS_SIZE: u64 = 0x00;
    /// Translation fault, level 0.
    pub const TRANSLATION: u64 = 0x04;
    /// Access flag fault, level 0.
    pub const ACCESS_FLAG: u64 = 0x08;
    /// Permission fault, level 0.
    pub const PERMISSION: u64 = 0x0c;
    /// Synchronous external abort, not on a walk.
    pub const EXTERNAL: u64 = 0x10;
    /// Synchronous external abort on a translation table walk, level 0.
    pub const EXTERNAL_ON_WALK: u64 = 0x14;
    /// Level bits of the kinds that have a level.
    pub const LEVEL: u64 = 0x03;

    /// Whether memory itself has failed: external aborts 0x10 and, on walks, 0x12 to 0x17; parity and ECC errors 0x18 and
    /// 0x1a to 0x1f. (0x11 is a tag check fault, 0x19 is reserved.)
    pub const fn is_external(status: u64) -> bool {
        status & 0x30 == EXTERNAL && status & 7 != 1
    }
}

/// A name for an exception class, for reports.
pub const fn class_name(class: u64) -> &'static str {
    match class {
        0x00 => "unknown reason",
        ec::WFX => "WFI or WFE",
        ec::FP_SIMD => "FP or SIMD access",
        ec::PAUTH => "pointer authentication",
        0x0d => "branch target",
        ec::ILLEGAL_STATE => "illegal execution state",
        ec::HVC64 => "HVC",
        ec::SMC64 => "SMC",
        ec::SYSREG => "system register access",
        ec::SVE => "SVE access",
        ec::SME => "SME access",
        ec::INSTRUCTION_ABORT_LOWER => "instruction abort from a lower level",
        ec::INSTRUCTION_ABORT_SAME => "instruction abort",
        ec::PC_ALIGNMENT => "PC alignment fault",
        ec::DATA_ABORT_LOWER => "data abort from a lower level",
        ec::DATA_ABORT_SAME => "data abort",
        0x26 => "SP alignment fault",
        0x27 => "memory operation",
        ec::SERROR => "SError",
        ec::BRK64 => "BRK",
        _ => "other class",
    }
}
