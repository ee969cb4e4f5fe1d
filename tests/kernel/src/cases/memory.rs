//! Memory: all of it there, empty at the start, coherent; cache maintenance that ends; and keel's memcpy and memset.

use crate::{
    check, check_eq,
    harness::{Case, Check, Under::*, case, eventually, join, start},
};
use core::{
    arch::global_asm,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::*},
};
use keel_test_kernel::{
    arch,
    exec::{self, Registers},
    machine::Machine,
    mrs, msr, platform, time,
};

/// The cases.
pub const CASES: &[Case] = &[
    // First of all: nothing has been written yet.
    case("memory/zero_at_start", 1, Any, zero_at_start),
    case("memory/every_page", 1, Any, every_page),
    case("memory/atomics", 2, Any, atomics),
    case("memory/ordering", 2, Any, ordering),
    case("memory/set_way", 1, Any, set_way),
    case("memory/by_address", 1, Any, by_address),
    case("memory/tlb_maintenance", 1, Any, tlb_maintenance),
    case("memory/translate", 1, Any, translate),
    case("memory/mmu_off", 1, Any, mmu_off),
    case("memory/copy_and_fill", 1, Any, copy_and_fill),
];

unsafe extern "C" {
    static image_end: u8;
}

const PAGE: usize = 4096;

// keel's own, which are this program's too.
global_asm!(include_str!("../../../../boot/memory.S"));

unsafe extern "C" {
    fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8;
    fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8;
}

/// Every alignment of both sides, and every way through the loops; what lies around stays.
fn copy_and_fill(_: &'static Machine) -> Check {
    const SIZE: usize = 320;
    const EDGE: u8 = 0xee;
    let from: [u8; SIZE] = core::array::from_fn(|n| (n * 7 + 1) as u8);
    let counts = (0..150).chain([191, 192, 193, 255, 256, 257]);
    for count in counts {
        for (to_offset, from_offset) in (0..9).flat_map(|to| (0..9).map(move |from| (16 + to, 16 + from))) {
            let mut to = [EDGE; SIZE];
            let (start, end) = (to_offset, to_offset + count);
            let at = (&raw mut to).cast::<u8>().wrapping_add(start);
            // SAFETY: both ranges lie inside their arrays, which are apart.
            let result = unsafe { memcpy(at, from.as_ptr().wrapping_add(from_offset), count) };
            check!(result == at, "memcpy returns its destination");
            let expected = |n: usize| if (start..end).contains(&n) { from[n - start + from_offset] } else { EDGE };
            let wrong = (0..SIZE).find(|&n| to[n] != expected(n));
            check!(wrong.is_none(), "byte {wrong:?} of {count} from {from_offset} to {to_offset}");
            if from_offset == 16 {
                // Only the low byte counts.
                // SAFETY: as above.
                let result = unsafe { memset(at, 0x1_a5 - (count as i32 & 1), count) };
                check!(result == at, "memset returns its destination");
                let byte = 0xa5 - (count as u8 & 1);
                let wrong = (0..SIZE).find(|&n| to[n] != if (start..end).contains(&n) { byte } else { EDGE });
                check!(wrong.is_none(), "byte {wrong:?} of {count} filled from {to_offset} on");
            }
        }
    }
    Ok(())
}

/// Every page of RAM that neither the kernel nor the device tree is in.
fn free_pages(machine: &Machine) -> impl Iterator<Item = usize> {
    let (base, size) = (machine.memory_base, machine.memory_size);
    let kernel = platform::RAM + platform::LOAD_OFFSET..(&raw const image_end) as usize;
    let tree = machine.tree & !(PAGE - 1)..machine.tree + machine.tree_size;
    // What the loader puts besides: a stub, and the tree where it is not at x0.
    let loader = platform::RAM..platform::RAM + machine.tree_size.max(2 * PAGE);
    (base..base + size)
        .step_by(PAGE)
        .filter(move |page| !kernel.contains(page) && !tree.contains(page) && !loader.contains(page))
}

fn zero_at_start(machine: &Machine) -> Check {
    for page in free_pages(machine) {
        for address in (page..page + PAGE).step_by(8) {
            // SAFETY: RAM that nothing of the program is in; it is mapped and aligned.
            let value = unsafe { (address as *const u64).read_volatile() };
            check_eq!(value, 0, "the word at {address:#x}");
        }
    }
    Ok(())
}

fn every_page(machine: &Machine) -> Check {
    let pattern = |page: usize| (page as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut count = 0;
    for page in free_pages(machine) {
        // SAFETY: as in `zero_at_start`.
        unsafe { (page as *mut u64).write_volatile(pattern(page)) };
        count += 1;
    }
    for page in free_pages(machine) {
        // SAFETY: as in `zero_at_start`.
        let value = unsafe { (page as *const u64).read_volatile() };
        check_eq!(value, pattern(page), "the page at {page:#x}");
        // SAFETY: as in `zero_at_start`.
        unsafe { (page as *mut u64).write_volatile(0) };
    }
    // The kernel itself, its stacks and pages for guests, and its tree take some.
    check!(count * PAGE + (8 << 20) > machine.memory_size, "only {count} pages of {} bytes", machine.memory_size);
    Ok(())
}

static COUNTER: AtomicU64 = AtomicU64::new(0);
static EXCLUSIVE: AtomicU64 = AtomicU64::new(0);
const INCREMENTS: u64 = 20_000;

/// Adds 1 by load- and store-exclusive, and by a lock.
fn increment(_: usize) {
    for _ in 0..INCREMENTS {
        COUNTER.fetch_add(1, Relaxed);
        let mut value = EXCLUSIVE.load(Relaxed);
        while let Err(found) = EXCLUSIVE.compare_exchange_weak(value, value + 1, AcqRel, Relaxed) {
            value = found;
        }
    }
}

fn atomics(machine: &Machine) -> Check {
    COUNTER.store(0, Relaxed);
    EXCLUSIVE.store(0, Relaxed);
    let cpus = machine.cpus().len();
    for cpu in 1..cpus {
        start(machine, cpu, increment, 0)?;
    }
    increment(0);
    for cpu in 1..cpus {
        join(machine, cpu)?;
    }
    check_eq!(COUNTER.load(Relaxed), INCREMENTS * cpus as u64, "fetch_add of all CPUs");
    check_eq!(EXCLUSIVE.load(Relaxed), INCREMENTS * cpus as u64, "compare_exchange of all CPUs");
    Ok(())
}

static BALL: AtomicUsize = AtomicUsize::new(0);
const PASSES: usize = 10_000;

/// Answers each odd number with the next.
fn answer(_: usize) {
    for pass in (1..PASSES).step_by(2) {
        if !time::wait_until(|| BALL.load(Acquire) == pass) {
            return;
        }
        BALL.store(pass + 1, Release);
    }
}

fn ordering(machine: &Machine) -> Check {
    BALL.store(0, Relaxed);
    start(machine, 1, answer, 0)?;
    for pass in (0..PASSES).step_by(2) {
        eventually("the other CPU answers", || BALL.load(Acquire) == pass)?;
        BALL.store(pass + 1, Release);
    }
    eventually("the other CPU's last answer", || BALL.load(Acquire) == PASSES)?;
    join(machine, 1)
}

/// Levels, ways and sets as CLIDR and CCSIDR describe them: `f` gets the operand of a set/way instruction.
fn each_line(mut f: impl FnMut(u64)) {
    let wide = mrs!("id_aa64mmfr2_el1") >> 20 & 15 != 0;
    let levels = mrs!("clidr_el1");
    for level in 0..7 {
        match levels >> (3 * level) & 7 {
            0 => break,
            1 => continue,
            _ => {}
        }
        msr!("csselr_el1", level << 1);
        let geometry = mrs!("ccsidr_el1");
        let line = (geometry & 7) + 4;
        let (ways, sets) = if wide {
            (geometry >> 3 & 0x1f_ffff, geometry >> 32 & 0xff_ffff)
        } else {
            (geometry >> 3 & 0x3ff, geometry >> 13 & 0x7fff)
        };
        let shift = if ways == 0 { 0 } else { (ways as u32).leading_zeros() };
        for set in 0..=sets {
            for way in 0..=ways {
                f(way << shift | set << line | level << 1);
            }
        }
    }
    msr!("csselr_el1", 0);
}

fn set_way(machine: &Machine) -> Check {
    let marker = AtomicU64::new(0);
    marker.store(0x1357_9bdf, SeqCst);
    let mut lines = 0_u64;
    let before = time::now();
    each_line(|operand| {
        lines += 1;
        // SAFETY: clean and invalidate loses nothing.
        unsafe { core::arch::asm!("dc cisw, {}", in(reg) operand, options(nostack)) };
    });
    arch::dsb();
    each_line(|operand| {
        // SAFETY: a clean loses nothing.
        unsafe { core::arch::asm!("dc csw, {}", in(reg) operand, options(nostack)) };
    });
    arch::dsb();
    let ticks = time::now() - before;
    check!(lines > 0, "no cache with sets and ways");
    check_eq!(marker.load(SeqCst), 0x1357_9bdf, "a value in memory");
    check!(ticks < 5 * time::frequency(), "{lines} lines took {ticks} ticks of {} Hz", time::frequency());
    // Operands that name no line do nothing.
    for operand in [0, !0, 0xffff_ffff_0000_0000, 0xe] {
        // DC CISW, DC CSW; and DC ISW, which without a hypervisor would throw away what the cache holds.
        for word in [0xd508_7e40, 0xd508_7a40, 0xd508_7640] {
            if word == 0xd508_7640 && !machine.under_keel() {
                continue;
            }
            let outcome = exec::run_with(word | 9, &[(9, operand)]);
            check!(outcome.trap.is_none(), "{word:#x} with {operand:#x}: {:x?}", outcome.trap);
            check!(outcome.changed(&[]).is_none(), "{word:#x} changed {:x?}", outcome.changed(&[]));
        }
    }
    Ok(())
}

fn by_address(_: &Machine) -> Check {
    let value = AtomicU64::new(0x0123_4567_89ab_cdef);
    let address = (&raw const value) as u64;
    for (name, word) in [
        ("dc civac", 0xd50b_7e20 | 9),
        ("dc cvac", 0xd50b_7a20 | 9),
        ("dc cvau", 0xd50b_7b20 | 9),
        ("ic ivau", 0xd50b_7520 | 9),
        ("ic iallu", 0xd508_751f),
        ("ic ialluis", 0xd508_711f),
    ] {
        let outcome = exec::run_with(word, &[(9, address)]);
        check!(outcome.trap.is_none(), "{name}: {:x?}", outcome.trap);
        check_eq!(value.load(SeqCst), 0x0123_4567_89ab_cdef, "the value after {name}");
    }
    Ok(())
}

fn tlb_maintenance(_: &Machine) -> Check {
    // TLBI VMALLE1(IS), VAE1(IS), ASIDE1(IS), VAAE1, VALE1: op1 0, CRn 8, CRm 7 and 3.
    for crm in [3, 7] {
        for op2 in [0, 1, 2, 3, 5, 7] {
            let word = 0xd508_8000 | crm << 8 | op2 << 5 | if op2 == 0 { 31 } else { 9 };
            let outcome = exec::run_with(word, &[(9, 0x4020_0000 >> 12)]);
            check!(outcome.trap.is_none(), "TLBI CRm {crm} op2 {op2}: {:x?}", outcome.trap);
        }
    }
    Ok(())
}

fn translate(_: &Machine) -> Check {
    // AT S1E1R on RAM, on a device, and on an address without translation.
    let at = |address: usize| {
        let outcome = exec::run_with(0xd508_7800 | 9, &[(9, address as u64)]);
        (outcome.trap, mrs!("par_el1"))
    };
    for address in [platform::RAM + 0x20_0000, platform::PL011] {
        let (trap, par) = at(address);
        check!(trap.is_none(), "AT of {address:#x}: {trap:x?}");
        check_eq!(par & 1, 0, "PAR_EL1.F of {address:#x}");
        check_eq!(par & 0xffff_ffff_f000, address as u64 & !0xfff, "PAR_EL1.PA");
    }
    let (trap, par) = at(100 << 30);
    check!(trap.is_none(), "AT of an unmapped address: {trap:x?}");
    check_eq!(par & 1, 1, "PAR_EL1.F of an unmapped address");
    Ok(())
}

fn mmu_off(_: &Machine) -> Check {
    // Identity-mapped: with M, C and I off the same code runs on, and sees what was cleaned to memory.
    let cell = AtomicU64::new(0x55aa_55aa_1234_5678);
    let address = (&raw const cell) as usize;
    let sctlr = mrs!("sctlr_el1");
    let (first, second): (u64, u64);
    arch::flush_dcache(address, 8);
    // SAFETY: the code is mapped one to one; between the two writes of SCTLR_EL1 it uses no memory but the cell, which
    // is clean in the cache and read again through it afterwards.
    unsafe {
        core::arch::asm!(
            "msr sctlr_el1, {off}",
            "isb",
            "ldr {first}, [{address}]",
            "mvn {second}, {first}",
            "str {second}, [{address}]",
            "hvc #0",
            "dsb sy",
            "msr sctlr_el1, {on}",
            "isb",
            "dc ivac, {address}",
            "dsb sy",
            "ldr {second}, [{address}]",
            off = in(reg) sctlr & !(1 | 1 << 2 | 1 << 12),
            on = in(reg) sctlr,
            address = in(reg) address,
            first = out(reg) first,
            second = out(reg) second,
            inout("x0") 0xc600_ffff_u64 => _, out("x1") _, out("x2") _, out("x3") _,
            options(nostack),
        )
    };
    check_eq!(first, 0x55aa_55aa_1234_5678, "what was read with the MMU off");
    check_eq!(second, !0x55aa_55aa_1234_5678, "what was written with the MMU off");
    // And all is well again.
    let outcome = exec::run(0xd503_201f, &Registers::pattern());
    check!(outcome.trap.is_none() && outcome.changed(&[]).is_none(), "a NOP: {:x?}", outcome.changed(&[]));
    Ok(())
}
