//! Cache maintenance by address (Arm ARM D7.5.9).

use super::addr::Pa;
use super::{
    features,
    sysreg::{dsb_ish, dsb_sy, isb, read_sysreg},
};
use core::ops::Range;

fn line(shift: u32) -> u64 {
    4 << ((read_sysreg!("ctr_el0") >> shift) & 0xf)
}

macro_rules! by_line {
    ($operation:literal, $range:expr, $line:expr) => {{
        let (range, line): (Range<Pa>, u64) = ($range, $line);
        let mut address = range.start.0 & !(line - 1);
        // Eight lines a round, as long as there are so many.
        while address < range.end.0 && range.end.0 - address >= 8 * line {
            // SAFETY: maintenance by VA of memory that keel has mapped (or with the MMU off, of RAM); contents visible
            // to keel do not change, except for `dc ivac`, whose caller vouches for the lines being clean.
            unsafe {
                core::arch::asm!(
                    concat!($operation, ", {a}"), "add {a}, {a}, {l}", concat!($operation, ", {a}"), "add {a}, {a}, {l}",
                    concat!($operation, ", {a}"), "add {a}, {a}, {l}", concat!($operation, ", {a}"), "add {a}, {a}, {l}",
                    concat!($operation, ", {a}"), "add {a}, {a}, {l}", concat!($operation, ", {a}"), "add {a}, {a}, {l}",
                    concat!($operation, ", {a}"), "add {a}, {a}, {l}", concat!($operation, ", {a}"), "add {a}, {a}, {l}",
                    a = inout(reg) address,
                    l = in(reg) line,
                    options(nostack, preserves_flags)
                );
            }
        }
        while address < range.end.0 {
            // SAFETY: as above.
            unsafe { core::arch::asm!(concat!($operation, ", {}"), in(reg) address, options(nostack, preserves_flags)) };
            address += line;
        }
    }};
}

/// Cleans and invalidates `range` to the point of coherency.
pub fn clean_invalidate(range: Range<Pa>) {
    by_line!("dc civac", range, line(16));
    dsb_sy();
}

/// Cleans `range` to the point of coherency.
pub fn clean(range: Range<Pa>) {
    by_line!("dc cvac", range, line(16));
    dsb_sy();
}

/// Drops whatever caches hold of `range`, which was written with the caches off.
///
/// # Safety
///
/// No line of `range` may be dirty: the arm64 boot protocol says so of the image at entry.
pub unsafe fn invalidate(range: Range<Pa>) {
    by_line!("dc ivac", range, line(16));
    dsb_sy();
}

/// Drops what instruction caches hold, on all CPUs: code was written that they may have fetched before.
pub fn invalidate_instructions() {
    dsb_ish();
    // SAFETY: invalidating instruction caches changes no visible state.
    unsafe { core::arch::asm!("ic ialluis", options(nostack, preserves_flags)) };
    dsb_ish();
    isb();
}

/// Fills `range`, whose ends are multiples of 64, with zeros by plain stores, which are good with the MMU off too.
///
/// # Safety
///
/// `range` must be RAM, mapped writable if the MMU is on, that nothing else refers to.
pub unsafe fn zero_plain(range: Range<Pa>) {
    let mut address = range.start.0;
    while address < range.end.0 {
        // SAFETY: the 64 bytes lie in `range`, which the caller vouches for.
        unsafe {
            core::arch::asm!(
                "stp xzr, xzr, [{a}]",
                "stp xzr, xzr, [{a}, #16]",
                "stp xzr, xzr, [{a}, #32]",
                "stp xzr, xzr, [{a}, #48]",
                a = in(reg) address,
                options(nostack, preserves_flags)
            );
        }
        address += 64;
    }
}

/// Bytes that one `dc zva` clears, or `None` where it is prohibited (DCZID_EL0).
fn zva_block() -> Option<u64> {
    let dczid = read_sysreg!("dczid_el0");
    if dczid & (1 << 4) == 0 { Some(4 << (dczid & 0xf)) } else { None }
}

/// Fills `range`, page aligned, with zeros.
///
/// # Safety
///
/// `range` must be Normal memory mapped writable that nothing else refers to.
pub unsafe fn zero(range: Range<Pa>) {
    if features::has_mops() {
        // SAFETY: the range is the caller's; the three instructions together write `count` zero bytes from `address` on
        // (Arm ARM C6.2.320, SETP, SETM, SETE), and may be interrupted and resumed in between.
        unsafe {
            core::arch::asm!(
                ".arch_extension mops",
                "setp [{address}]!, {count}!, xzr",
                "setm [{address}]!, {count}!, xzr",
                "sete [{address}]!, {count}!, xzr",
                address = inout(reg) range.start.0 => _,
                count = inout(reg) range.end.0 - range.start.0 => _,
                options(nostack)
            );
        }
        return;
    }
    let Some(block) = zva_block() else {
        // SAFETY: the caller vouches for the range.
        unsafe { core::ptr::write_bytes(range.start.0 as *mut u8, 0, (range.end.0 - range.start.0) as usize) };
        return;
    };
    let mut address = range.start.0;
    // Eight blocks a round: memory of a VM is large, and what this loop costs is part of its start.
    while address < range.end.0 {
        if address.is_multiple_of(8 * block) && range.end.0 - address >= 8 * block {
            // SAFETY: the eight blocks lie in `range`, which the caller vouches for.
            unsafe {
                core::arch::asm!(
                    "2:",
                    "dc zva, {a}", "add {a}, {a}, {b}", "dc zva, {a}", "add {a}, {a}, {b}",
                    "dc zva, {a}", "add {a}, {a}, {b}", "dc zva, {a}", "add {a}, {a}, {b}",
                    "dc zva, {a}", "add {a}, {a}, {b}", "dc zva, {a}", "add {a}, {a}, {b}",
                    "dc zva, {a}", "add {a}, {a}, {b}", "dc zva, {a}", "add {a}, {a}, {b}",
                    "cmp {a}, {e}",
                    "b.lo 2b",
                    a = inout(reg) address,
                    b = in(reg) block,
                    e = in(reg) range.end.0 & !(8 * block - 1),
                    options(nostack)
                );
            }
        } else {
            // SAFETY: the block lies in `range`: both ends are page aligned and a block is at most 2 KiB.
            unsafe { core::arch::asm!("dc zva, {}", in(reg) address, options(nostack, preserves_flags)) };
            address += block;
        }
    }
}
