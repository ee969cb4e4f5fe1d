//! Any one instruction, with every register known, and what became of them.
//!
//! [`run`] writes the instruction into a copied routine that loads x0–x30, NZCV and v0–v31 first and stores them
//! afterwards. If the instruction takes an exception, the handler notes it and continues behind the instruction. One
//! mechanism therefore serves every probe: hypercalls with any immediate, each form of load and store, system
//! registers by encoding, jumps into nowhere, and random words.

use crate::{arch, platform::MAX_CPUS};
use core::{
    arch::global_asm,
    cell::UnsafeCell,
    mem::offset_of,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
};

/// The registers an instruction sees and leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C, align(16))]
pub struct Registers {
    /// x0 to x30.
    pub x: [u64; 31],
    /// Condition flags, bits 31:28.
    pub nzcv: u64,
    sp_before: u64,
    sp_after: u64,
    /// v0 to v31.
    pub v: [u128; 32],
}

// Pairs are moved by ldp and stp, whose q form needs multiples of 16.
const _: () = assert!(offset_of!(Registers, v) % 16 == 0 && offset_of!(Registers, v) + 31 * 16 < 1008);

impl Registers {
    /// A different, recognisable value in every register.
    pub fn pattern() -> Registers {
        let mut registers = Registers { x: [0; 31], nzcv: 0xa << 28, sp_before: 0, sp_after: 0, v: [0; 32] };
        for (number, value) in registers.x.iter_mut().enumerate() {
            *value = 0x5a5a_c0de_0000_0000 | (number as u64) << 8 | 0xa5;
        }
        for (number, value) in registers.v.iter_mut().enumerate() {
            *value = 0xf00d_0000_0000_0000_1234_5678_0000_0000 | (number as u128) << 64 | number as u128;
        }
        registers
    }

    /// The pattern with some registers set.
    pub fn with(values: &[(usize, u64)]) -> Registers {
        let mut registers = Registers::pattern();
        for &(number, value) in values {
            registers.x[number] = value;
        }
        registers
    }
}

/// An exception taken by the instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    /// ESR_EL1; for an SError or other asynchronous exception too.
    pub esr: u64,
    /// FAR_EL1.
    pub far: u64,
    /// ELR_EL1.
    pub elr: u64,
    /// Whether it was an SError.
    pub serror: bool,
}

impl Trap {
    /// ESR.EC.
    pub fn class(&self) -> u64 {
        self.esr >> 26 & 0x3f
    }

    /// ESR.ISS bits 5:0: the fault status code of an abort.
    pub fn status(&self) -> u64 {
        self.esr & 0x3f
    }
}

/// ESR.EC: unknown reason, which is what an undefined instruction gives.
pub const EC_UNKNOWN: u64 = 0x00;
/// ESR.EC: instruction abort, same level.
pub const EC_INSTRUCTION_ABORT: u64 = 0x21;
/// ESR.EC: data abort, same level.
pub const EC_DATA_ABORT: u64 = 0x25;
/// ESR.EC: software step, same level.
pub const EC_STEP: u64 = 0x33;
/// Fault status: synchronous external abort, not on a walk.
pub const FSC_EXTERNAL: u64 = 0x10;

/// What an instruction did.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The registers before.
    pub before: Registers,
    /// The registers after.
    pub after: Registers,
    /// The exception it took.
    pub trap: Option<Trap>,
}

impl Outcome {
    /// The first register that changed and is not among `except`: its name, and the value before and after.
    pub fn changed(&self, except: &[usize]) -> Option<(&'static str, usize, u128, u128)> {
        let x = self.before.x.iter().zip(&self.after.x).enumerate();
        for (number, (&before, &after)) in x {
            if before != after && !except.contains(&number) {
                return Some(("x", number, before.into(), after.into()));
            }
        }
        for (number, (&before, &after)) in self.before.v.iter().zip(&self.after.v).enumerate() {
            if before != after {
                return Some(("v", number, before, after));
            }
        }
        if self.before.nzcv != self.after.nzcv {
            return Some(("nzcv", 0, self.before.nzcv.into(), self.after.nzcv.into()));
        }
        if self.after.sp_before != self.after.sp_after {
            return Some(("sp", 0, self.after.sp_before.into(), self.after.sp_after.into()));
        }
        None
    }
}

global_asm!(
    include_str!("exec.S"),
    NZCV = const offset_of!(Registers, nzcv),
    SP_BEFORE = const offset_of!(Registers, sp_before),
    SP_AFTER = const offset_of!(Registers, sp_after),
    VECTORS = const offset_of!(Registers, v),
);

unsafe extern "C" {
    static exec_template: u32;
    static exec_template_slot: u32;
    static exec_template_end: u32;
}

/// Words of a copied routine: a page of its own for each CPU, since a machine that translates code, as QEMU does,
/// drops what it has of a page that is written to.
const WORDS: usize = 1024;

/// One CPU's copy of the routine, and the exception its instruction took.
#[repr(align(4096))]
struct Probe {
    code: UnsafeCell<[u32; WORDS]>,
    /// Address of the slot while its instruction runs, else 0.
    armed: AtomicUsize,
    esr: AtomicU64,
    far: AtomicU64,
    elr: AtomicU64,
    /// 0 none, 1 synchronous, 2 SError.
    kind: AtomicU64,
}

// SAFETY: `code` is used only by the CPU whose index selects it.
unsafe impl Sync for Probe {}

static PROBES: [Probe; MAX_CPUS] = [const {
    Probe {
        code: UnsafeCell::new([0; WORDS]),
        armed: AtomicUsize::new(0),
        esr: AtomicU64::new(0),
        far: AtomicU64::new(0),
        elr: AtomicU64::new(0),
        kind: AtomicU64::new(0),
    }
}; MAX_CPUS];

/// Makes code that was written at `address` what this CPU fetches; for 16 bytes at least.
fn publish(address: usize) {
    // SAFETY: maintenance by address of this CPU's own code.
    unsafe { core::arch::asm!("dc cvau, {0}", "dsb ish", "ic ivau, {0}", in(reg) address, options(nostack)) };
}

/// Runs `instruction` on this CPU with `before` in the registers.
///
/// The instruction may trap, and may read and write the memory and registers it likes as long as the program survives
/// it: it must not change sp, and a branch is only followed if it traps.
pub fn run(instruction: u32, before: &Registers) -> Outcome {
    let probe = &PROBES[arch::cpu()];
    let template = (&raw const exec_template) as usize;
    let slot = ((&raw const exec_template_slot) as usize - template) / 4;
    let length = ((&raw const exec_template_end) as usize - template) / 4;
    assert!(length <= WORDS, "exec.S has {length} words");
    let code = probe.code.get().cast::<u32>();
    let mut after = before.clone();
    // SAFETY: the template is `length` words of code, `code` has room for them and belongs to this CPU, which runs
    // nothing from it now: `run` is not called from an exception handler.
    unsafe {
        if code.read() == 0 {
            core::ptr::copy_nonoverlapping(&raw const exec_template, code, length);
            (0..length).step_by(4).for_each(|word| publish(code as usize + word * 4));
        }
        code.add(slot).write(instruction);
    }
    let start = code as usize;
    publish(start + slot * 4);
    arch::dsb();
    arch::isb();
    probe.kind.store(0, Relaxed);
    probe.armed.store(start + slot * 4, Relaxed);
    // SAFETY: `code` is the routine of exec.S with its C signature; RAM is mapped executable.
    unsafe {
        let routine: extern "C" fn(*const Registers, *mut Registers) = core::mem::transmute(code);
        routine(before, &mut after);
    }
    // An SError of the instruction's own is taken at the latest here.
    arch::dsb();
    arch::isb();
    probe.armed.store(0, Relaxed);
    let trap = (probe.kind.load(Relaxed) != 0).then(|| Trap {
        esr: probe.esr.load(Relaxed),
        far: probe.far.load(Relaxed),
        elr: probe.elr.load(Relaxed),
        serror: probe.kind.load(Relaxed) == 2,
    });
    Outcome { before: before.clone(), after, trap }
}

/// Runs `instruction` with the pattern in the registers, but for `values`.
pub fn run_with(instruction: u32, values: &[(usize, u64)]) -> Outcome {
    run(instruction, &Registers::with(values))
}

/// Called by the exception handlers: whether an instruction under test took the exception, and where to go on.
pub fn caught(elr: u64, serror: bool) -> Option<u64> {
    let probe = &PROBES[arch::cpu()];
    let slot = probe.armed.load(Relaxed);
    if slot == 0 {
        return None;
    }
    probe.esr.store(crate::mrs!("esr_el1"), Relaxed);
    probe.far.store(crate::mrs!("far_el1"), Relaxed);
    probe.elr.store(elr, Relaxed);
    probe.kind.store(if serror { 2 } else { 1 }, Relaxed);
    if serror {
        // Asynchronous: the program goes on where it was.
        return Some(elr);
    }
    probe.armed.store(0, Relaxed);
    Some(slot as u64 + 4)
}

/// MRS of a register by its encoding into register number `rt`.
pub const fn mrs(rt: u32, (op0, op1, crn, crm, op2): Encoding) -> u32 {
    0xd530_0000 | (op0 & 1) << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5 | rt
}

/// MSR of a register by its encoding from register number `rt`.
pub const fn msr(rt: u32, encoding: Encoding) -> u32 {
    mrs(rt, encoding) & !(1 << 21)
}

/// op0 (2 or 3), op1, CRn, CRm, op2 of a system register.
pub type Encoding = (u32, u32, u32, u32, u32);

/// HVC with an immediate.
pub const fn hvc(immediate: u16) -> u32 {
    0xd400_0002 | (immediate as u32) << 5
}

/// SMC with an immediate.
pub const fn smc(immediate: u16) -> u32 {
    0xd400_0003 | (immediate as u32) << 5
}
