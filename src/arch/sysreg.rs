//! System-register access by name or by encoding, for the registers that `aarch64-cpu` lacks.
//!
//! `read_sysreg` and `write_sysreg` take the name the assembler knows (`S3_4_C12_C11_0` where it knows none). Reads
//! and writes are ordered among themselves and with memory accesses by the compiler; whoever needs the effect at a given
//! instruction adds the barrier.

/// Reads a system register: `read_sysreg!("mpidr_el1")`.
macro_rules! read_sysreg {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: MRS of a register that exists on this CPU (the caller gates optional ones) only writes `value`.
        unsafe { core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack, preserves_flags)) };
        value
    }};
}

/// Writes a system register: `write_sysreg!("vttbr_el2", value)`.
macro_rules! write_sysreg {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: MSR of a register that exists on this CPU (the caller gates optional ones). The registers written in
        // this layer configure guests, timers and the GIC; none changes how keel's own code or memory is mapped, except
        // in `mmu`, which says why that is sound.
        unsafe { core::arch::asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags)) };
    }};
}

pub(crate) use {read_sysreg, write_sysreg};

/// Context synchronization (Arm ARM B2.3.12, ISB).
#[inline(always)]
pub fn isb() {
    // SAFETY: ISB has no effect on memory or registers.
    unsafe { core::arch::asm!("isb", options(nostack, preserves_flags)) };
}

/// Data synchronization barrier, full system.
#[inline(always)]
pub fn dsb_sy() {
    // SAFETY: DSB has no effect on memory or registers.
    unsafe { core::arch::asm!("dsb sy", options(nostack, preserves_flags)) };
}

/// Wakes the CPUs that wait for an event.
#[inline(always)]
pub fn sev() {
    // SAFETY: SEV has no effect on memory or registers.
    unsafe { core::arch::asm!("sev", options(nostack, preserves_flags)) };
}

/// Data synchronization barrier, inner shareable.
#[inline(always)]
pub fn dsb_ish() {
    // SAFETY: DSB has no effect on memory or registers.
    unsafe { core::arch::asm!("dsb ish", options(nostack, preserves_flags)) };
}
