//! Firmware calls in their raw form, and the two ways out: off and reset.

use crate::{arch, console};
use core::{
    panic::PanicInfo,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
};
use smccc::{Call, Hvc, Smc};

/// PSCI_VERSION.
pub const PSCI_VERSION: u32 = 0x8400_0000;
/// PSCI CPU_SUSPEND, SMC64 form.
pub const CPU_SUSPEND: u32 = 0xc400_0001;
/// PSCI CPU_OFF.
pub const CPU_OFF: u32 = 0x8400_0002;
/// PSCI CPU_ON, SMC64 form.
pub const CPU_ON: u32 = 0xc400_0003;
/// PSCI AFFINITY_INFO, SMC64 form.
pub const AFFINITY_INFO: u32 = 0xc400_0004;
/// PSCI MIGRATE_INFO_TYPE.
pub const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
/// PSCI SYSTEM_OFF.
pub const SYSTEM_OFF: u32 = 0x8400_0008;
/// PSCI SYSTEM_RESET.
pub const SYSTEM_RESET: u32 = 0x8400_0009;
/// PSCI_FEATURES.
pub const PSCI_FEATURES: u32 = 0x8400_000a;
/// SMCCC_VERSION.
pub const SMCCC_VERSION: u32 = 0x8000_0000;
/// SMCCC_ARCH_FEATURES.
pub const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;

/// Whether PSCI is called by SMC; by HVC until the device tree says otherwise.
static BY_SMC: AtomicBool = AtomicBool::new(false);

/// Says how PSCI is called: `method` of /psci.
pub fn set_method(method: &str) {
    BY_SMC.store(method == "smc", Relaxed);
}

/// Whether PSCI is called by SMC.
pub fn by_smc() -> bool {
    BY_SMC.load(Relaxed)
}

/// Makes a PSCI call the way the device tree says.
pub fn psci(id: u32, args: [u64; 3]) -> [u64; 4] {
    if by_smc() { smc(id, args) } else { hvc(id, args) }
}

/// Makes the call by HVC with arguments x1 to x3; answers x0 to x3.
pub fn hvc(id: u32, args: [u64; 3]) -> [u64; 4] {
    call::<Hvc>(id, args)
}

/// Makes the call by SMC. Undefined on a machine with neither EL2 nor EL3.
pub fn smc(id: u32, args: [u64; 3]) -> [u64; 4] {
    call::<Smc>(id, args)
}

fn call<C: Call>(id: u32, [a, b, c]: [u64; 3]) -> [u64; 4] {
    let mut all = [0; 17];
    all[..3].copy_from_slice(&[a, b, c]);
    let result = C::call64(id, all);
    [result[0], result[1], result[2], result[3]]
}

/// Powers the machine off.
pub fn off() -> ! {
    psci(SYSTEM_OFF, [0; 3]);
    // Only a machine without PSCI comes back.
    loop {
        arch::wfi();
    }
}

/// Resets the machine.
pub fn reset() -> ! {
    psci(SYSTEM_RESET, [0; 3]);
    panic!("SYSTEM_RESET returned");
}

/// The panic handler of the kernels: says why, and powers off.
pub fn die(info: &PanicInfo) -> ! {
    arch::irq_disable();
    console::print_unlocked(format_args!("\nCPU{}: {info}\n", arch::cpu()));
    off()
}
