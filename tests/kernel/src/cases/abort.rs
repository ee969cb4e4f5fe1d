//! Exceptions that an access to nothing ends in: PSTATE, vector and syndrome as the architecture has them, whoever makes
//! them: the CPU, or a hypervisor that injects them.

use super::mmio::{FREE_SLOT, with_descriptor};
use crate::{
    check, check_eq,
    harness::{Case, Check, Under::*, case},
};
use core::{
    arch::{asm, naked_asm},
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};
use keel_test_kernel::{
    exceptions::{State, set_sync_handler},
    machine::Machine,
    mrs, msr,
    platform::{HOLE, RAM},
};

/// The cases.
pub const CASES: &[Case] = &[
    case("abort/flags", 1, Any, flags),
    case("abort/pan", 1, Any, pan),
    case("abort/ssbs", 1, Any, ssbs),
    case("abort/undefined", 1, Any, undefined),
    case("abort/from_el0", 1, Any, from_el0),
];

/// SPSR_EL1, ESR_EL1, FAR_EL1, ELR_EL1 in the handler, and what PSTATE is there: DAIF, PAN, UAO, DIT, SSBS.
static SEEN: [AtomicU64; 9] = [const { AtomicU64::new(0) }; 9];

const SPSR_NZCV: u64 = 0xf << 28;
const PAN: u64 = 1 << 22;
const UAO: u64 = 1 << 23;
const DIT: u64 = 1 << 24;
const SSBS: u64 = 1 << 12;
const SCTLR_SPAN: u64 = 1 << 23;
const SCTLR_DSSBS: u64 = 1 << 44;

/// Which of these the CPU has: PSTATE fields that not every CPU has.
#[derive(Clone, Copy)]
struct Has {
    pan: bool,
    uao: bool,
    dit: bool,
    ssbs: bool,
}

fn has() -> Has {
    let field = |register: u64, shift: u32| register >> shift & 15 != 0;
    Has {
        pan: field(mrs!("id_aa64mmfr1_el1"), 20),
        uao: field(mrs!("S3_0_C0_C7_2"), 4),
        dit: field(mrs!("id_aa64pfr0_el1"), 48),
        ssbs: mrs!("id_aa64pfr1_el1") >> 4 & 15 >= 2,
    }
}

/// Notes everything and steps over the instruction.
fn note(esr: u64, state: &mut State) -> bool {
    let has = has();
    let field = |is_there: bool, read: fn() -> u64| if is_there { read() } else { 0 };
    let values = [
        state.spsr,
        esr,
        mrs!("far_el1"),
        state.elr,
        mrs!("daif"),
        field(has.pan, || mrs!("S3_0_C4_C2_3")),
        field(has.uao, || mrs!("S3_0_C4_C2_4")),
        field(has.dit, || mrs!("S3_3_C4_C2_5")),
        field(has.ssbs, || mrs!("S3_3_C4_C2_6")),
    ];
    for (cell, value) in SEEN.iter().zip(values) {
        cell.store(value, SeqCst);
    }
    state.elr += 4;
    true
}

fn seen<const N: usize>() -> [u64; N] {
    core::array::from_fn(|n| SEEN[n].load(SeqCst))
}

/// Loads from the hole with these PSTATE bits (of those the CPU has) and flags; with SCTLR_EL1 as given.
fn fault(pstate: u64, sctlr: u64) -> (u64, u64) {
    let has = has();
    let old = mrs!("sctlr_el1");
    let bit = |mask: u64| pstate & mask;
    set_sync_handler(Some(note));
    msr!("sctlr_el1", sctlr);
    if has.uao {
        msr!("S3_0_C4_C2_4", bit(UAO));
    }
    if has.dit {
        msr!("S3_3_C4_C2_5", bit(DIT));
    }
    if has.ssbs {
        msr!("S3_3_C4_C2_6", bit(SSBS));
    }
    if has.pan {
        msr!("S3_0_C4_C2_3", bit(PAN));
    }
    let pc: u64;
    // SAFETY: the handler steps over the load, which reaches nothing; the flags are the block's own.
    unsafe {
        asm!("adr {pc}, 2f", "msr nzcv, {flags}", "2: ldr wzr, [{hole}]",
             pc = out(reg) pc, flags = in(reg) bit(SPSR_NZCV), hole = in(reg) HOLE, options(nostack))
    };
    if has.pan {
        msr!("S3_0_C4_C2_3", 0);
    }
    if has.uao {
        msr!("S3_0_C4_C2_4", 0);
    }
    if has.dit {
        msr!("S3_3_C4_C2_5", 0);
    }
    msr!("sctlr_el1", old);
    set_sync_handler(None);
    (pc, mrs!("daif"))
}

fn expect(machine: &Machine, pstate: u64, sctlr: u64) -> Check {
    let (pc, daif) = fault(pstate, sctlr);
    let has = has();
    let [spsr, esr, far, elr, daif_inside, pan, uao, dit, ssbs] = seen();
    let what = format_args!("{pstate:#x}");
    check_eq!((esr, far, elr), (0x25 << 26 | 1 << 25 | 0x10, HOLE as u64, pc), "ESR, FAR and ELR of {what}");
    let only = |is_there: bool, bits: u64| if is_there { bits } else { 0 };
    let there = only(has.pan, PAN) | only(has.uao, UAO) | only(has.dit, DIT) | only(has.ssbs, SSBS) | SPSR_NZCV;
    check_eq!(spsr & there, pstate & there, "SPSR_EL1 {spsr:#x} of {what}");
    check_eq!(spsr & 0x3df, daif | 5, "mode and masks of SPSR_EL1 {spsr:#x}");
    // SS and IL, and BTYPE, of which this is no place.
    check_eq!(spsr & (1 << 21 | 1 << 20 | 3 << 10), 0, "SS, IL and BTYPE of SPSR_EL1 {spsr:#x}");
    check_eq!(daif_inside, 0x3c0, "DAIF in the handler");
    let pan_inside = if sctlr & SCTLR_SPAN == 0 { PAN } else { pstate & PAN };
    check_eq!(pan, only(has.pan, pan_inside), "PSTATE.PAN in the handler, {what}");
    check_eq!(uao, 0, "PSTATE.UAO in the handler, {what}");
    // An exception leaves DIT as it is. QEMU's clear it.
    let dit_inside = only(has.dit, pstate & DIT);
    check!(dit == dit_inside || dit == 0 && !machine.under_keel(), "PSTATE.DIT in the handler, {what}: {dit:#x}");
    check_eq!(ssbs, only(has.ssbs && sctlr & SCTLR_DSSBS != 0, SSBS), "PSTATE.SSBS in the handler, {what}");
    Ok(())
}

fn flags(machine: &Machine) -> Check {
    let sctlr = mrs!("sctlr_el1");
    for flags in 0..16 {
        expect(machine, flags << 28 | if flags & 1 != 0 { DIT } else { UAO }, sctlr)?;
    }
    expect(machine, DIT | UAO, sctlr)
}

fn pan(machine: &Machine) -> Check {
    let sctlr = mrs!("sctlr_el1");
    for pstate in [0, PAN] {
        for span in [0, SCTLR_SPAN] {
            expect(machine, pstate, sctlr & !SCTLR_SPAN | span)?;
        }
    }
    Ok(())
}

fn ssbs(machine: &Machine) -> Check {
    let sctlr = mrs!("sctlr_el1");
    let bits = if has().ssbs { SCTLR_DSSBS } else { 0 };
    for pstate in [0, SSBS] {
        for dssbs in [0, bits] {
            expect(machine, pstate, sctlr & !SCTLR_DSSBS | dssbs)?;
        }
    }
    Ok(())
}

fn undefined(_: &Machine) -> Check {
    // An undefined instruction leaves FAR_EL1 alone.
    msr!("far_el1", 0x1234_5678);
    set_sync_handler(Some(note));
    let pc: u64;
    // SAFETY: the handler steps over the undefined access to HCR_EL2.
    unsafe { asm!("adr {pc}, 2f", "2: mrs xzr, S3_4_C1_C1_0", pc = out(reg) pc, options(nostack)) };
    set_sync_handler(None);
    let [_, esr, far, elr] = seen();
    check!(esr == 1 << 25, "ESR of an undefined instruction: {esr:#x}");
    check_eq!((far, elr), (0x1234_5678, pc), "FAR and ELR of an undefined instruction");
    Ok(())
}

/// Loads from x1, executes an undefined instruction, and asks to be brought back. Runs at EL0, at another address.
#[unsafe(naked)]
extern "C" fn unprivileged() {
    naked_asm!("ldr wzr, [x1]", "mrs xzr, S3_4_C1_C1_0", "svc #0")
}

/// Where EL1 goes on, and the two exceptions of EL0: ESR, SPSR and ELR of each.
static BACK: AtomicU64 = AtomicU64::new(0);
static LOWER: [AtomicU64; 6] = [const { AtomicU64::new(0) }; 6];

fn lower(esr: u64, state: &mut State) -> bool {
    let first = match esr >> 26 {
        0x15 => {
            (state.elr, state.spsr) = (BACK.load(SeqCst), 0x3c5);
            return true;
        }
        0 => 3,
        _ => 0,
    };
    for (cell, value) in LOWER[first..].iter().zip([esr, state.spsr, state.elr]) {
        cell.store(value, SeqCst);
    }
    state.elr += 4;
    true
}

fn from_el0(_: &Machine) -> Check {
    // The gigabytes of RAM and of devices once more, as memory that EL0 may use.
    let for_el0 = 0b01 | 1 << 10 | 1 << 2 | 3 << 8 | 1 << 6;
    let code = ((FREE_SLOT << 30) + (unprivileged as *const () as usize - RAM)) as u64;
    let hole = (((FREE_SLOT + 1) << 30) + HOLE) as u64;
    LOWER.iter().for_each(|cell| cell.store(0, SeqCst));
    // EL0t, everything masked.
    let pstate = 5 << 28 | 0x3c0;
    set_sync_handler(Some(lower));
    with_descriptor(FREE_SLOT, for_el0 | RAM as u64, || {
        with_descriptor(FREE_SLOT + 1, for_el0, || {
            // SAFETY: EL0 changes no register and no memory; the handler comes back to label 2 with those of EL1.
            unsafe {
                asm!("adr {scratch}, 2f", "str {scratch}, [{back}]", "msr elr_el1, {code}", "msr spsr_el1, {pstate}",
                     "isb", "eret", "2:", scratch = out(reg) _, back = in(reg) BACK.as_ptr(), code = in(reg) code,
                     pstate = in(reg) pstate, in("x1") hole, options(nostack))
            };
        });
    });
    set_sync_handler(None);
    let found = |first: usize| -> [u64; 3] { core::array::from_fn(|n| LOWER[first + n].load(SeqCst)) };
    let abort = [0x24 << 26 | 1 << 25 | 0x10, pstate, code];
    check_eq!(found(0), abort, "ESR, SPSR and ELR of a load from nothing at EL0");
    check_eq!(found(3), [1 << 25, pstate, code + 4], "ESR, SPSR and ELR of an undefined instruction at EL0");
    check_eq!(mrs!("far_el1"), hole, "FAR of the load");
    Ok(())
}
