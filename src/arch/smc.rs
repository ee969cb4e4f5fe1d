//! Calls to firmware by SMC or HVC (SMCCC), and the PSCI calls keel makes itself.

use super::addr::Pa;
use core::sync::atomic::{AtomicBool, Ordering};

/// How firmware is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// SMC, the only conduit that leads out of EL2.
    Smc,
    /// HVC: the tree was written for an EL1 kernel. At EL2 that would call keel itself, so it cannot be used.
    Hvc,
}

/// PSCI 0.2 CPU_ON, SMC64.
const CPU_ON_64: u32 = 0xc400_0003;
/// PSCI 0.2 CPU_OFF.
const CPU_OFF: u32 = 0x8400_0002;
/// PSCI 0.2 AFFINITY_INFO, SMC64.
const AFFINITY_INFO_64: u32 = 0xc400_0004;
/// PSCI 0.2 SYSTEM_OFF.
const SYSTEM_OFF: u32 = 0x8400_0008;
/// PSCI 0.2 SYSTEM_RESET.
const SYSTEM_RESET: u32 = 0x8400_0009;
/// PSCI 0.2 PSCI_VERSION.
const PSCI_VERSION: u32 = 0x8400_0000;

/// Whether there is firmware that answers SMCs by SMCCC. Where the tree has no PSCI by SMC nothing may be behind them: the
/// instruction is undefined then, or leads into the void.
static AVAILABLE: AtomicBool = AtomicBool::new(false);

/// The tree says that firmware answers.
pub fn set_available() {
    AVAILABLE.store(true, Ordering::Relaxed);
}

/// NOT_SUPPORTED, without firmware as from it.
const NOT_SUPPORTED: u64 = -1_i64 as u64;

fn smc64(function: u32, registers: [u64; 17]) -> [u64; 18] {
    if AVAILABLE.load(Ordering::Relaxed) {
        return smccc::smc64(function, registers);
    }
    let mut results = [0; 18];
    results[0] = NOT_SUPPORTED;
    results
}

fn call(function: u32, arguments: [u64; 3]) -> i64 {
    let mut registers = [0; 17];
    registers[..3].copy_from_slice(&arguments);
    smc64(function, registers)[0] as i64
}

/// Starts a CPU at `entry` in EL2 with `context` in x0. `Err` holds PSCI's error number.
pub fn cpu_on(mpidr: u64, entry: Pa, context: Pa) -> Result<(), i64> {
    match call(CPU_ON_64, [mpidr, entry.0, context.0]) {
        0 => Ok(()),
        error => Err(error),
    }
}

/// The firmware's PSCI version, major in bits 31:16, minor in 15:0.
pub fn psci_version() -> u32 {
    call(PSCI_VERSION, [0; 3]) as u32
}

/// Turns this CPU off. Returns only if firmware does not do it, with PSCI's error number.
pub fn cpu_off() -> i64 {
    call(CPU_OFF, [0; 3])
}

/// Whether firmware says that the CPU with this affinity is off.
pub fn is_off(mpidr: u64) -> bool {
    call(AFFINITY_INFO_64, [mpidr, 0, 0]) == 1
}

/// Powers the board off. Returns only if firmware does not do it.
pub fn system_off() {
    call(SYSTEM_OFF, [0; 3]);
}

/// Resets the board. Returns only if firmware does not do it.
pub fn system_reset() {
    call(SYSTEM_RESET, [0; 3]);
}

/// Whether firmware answers calls of SMCCC 1.1: PSCI_FEATURES(SMCCC_VERSION) tells.
fn has_smccc_1_1() -> bool {
    psci_version() >= 0x1_0000 && call(0x8400_000a, [0x8000_0000, 0, 0]) >= 0
}

/// Whether firmware has a random number generator with 64-bit calls (Arm DEN0098: TRNG_VERSION, TRNG_FEATURES).
pub fn has_trng() -> bool {
    const TRNG_VERSION: u32 = 0x8400_0050;
    const TRNG_FEATURES: u32 = 0x8400_0051;
    has_smccc_1_1()
        && call(TRNG_VERSION, [0; 3]) as i32 >= 0x1_0000
        && call(TRNG_FEATURES, [TRNG_RND64.into(), 0, 0]) as i32 >= 0
}

/// TRNG_RND64 (DEN0098).
const TRNG_RND64: u32 = 0xc400_0053;

/// 192 bits of firmware's generator; `None` while it has none to give. Only if there is one ([`has_trng`]).
pub fn random() -> Option<[u64; 3]> {
    let mut registers = [0; 17];
    registers[0] = 192;
    let results = smc64(TRNG_RND64, registers);
    (results[0] == 0).then_some([results[3], results[2], results[1]])
}

/// SMCCC_ARCH_WORKAROUND_2 (SMCCC, 7.6): this CPU runs with the mitigation of Spectre v4 from now on.
pub fn enable_workaround_2() {
    call(0x8000_7fff, [1, 0, 0]);
}

/// What firmware answers to SMCCC_ARCH_FEATURES(`function`): the state of a workaround on this CPU.
pub fn arch_features(function: u32) -> i64 {
    // Below SMCCC 1.1 the call does not exist.
    if !has_smccc_1_1() {
        return -1;
    }
    i64::from(call(0x8000_0001, [u64::from(function), 0, 0]) as i32)
}
