//! The example hypervisor that the kernel installs over keel-stub, and code to be restarted into at EL2.
//!
//! All of the hypervisor is in `hypervisor.S`, in sixty lines.

core::arch::global_asm!(include_str!("hypervisor.S"));
core::arch::global_asm!(include_str!("el2.S"));

unsafe extern "C" {
    fn hypervisor_install(stub_vectors: u64) -> u64;
    static hypervisor_vectors: u8;
    static el2_probe: u8;
    static el2_undefined: u8;
    static el2_calls: u8;
}

/// Installs the hypervisor on this CPU, over the stub whose vectors are at `stub_vectors`; 0 if it runs.
pub fn install(stub_vectors: u64) -> u64 {
    // SAFETY: the routine follows the procedure call standard; the program's memory is mapped one to one, so that the
    // vectors' address is a physical one, and nobody writes to them.
    unsafe { hypervisor_install(stub_vectors) }
}

/// Address of the hypervisor's vectors, 2 KiB aligned.
pub fn vectors() -> u64 {
    &raw const hypervisor_vectors as u64
}

/// Address of code that returns to the HVC with what it found at EL2.
pub fn probe() -> u64 {
    &raw const el2_probe as u64
}

/// Address of an undefined instruction.
pub fn undefined() -> u64 {
    &raw const el2_undefined as u64
}

/// Address of code that makes the stub call in x0, x1 from EL2 and returns to the HVC with its answer.
pub fn calls() -> u64 {
    &raw const el2_calls as u64
}

/// Call: remember the stub's vectors.
pub const START: u64 = 0x1000;
/// Call: show EL2's registers.
pub const LOOK: u64 = 0x1001;
