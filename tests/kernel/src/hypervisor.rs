//! The example hypervisor that the kernel installs over keel-stub, and code to be restarted into at EL2.
//!
//! What it does is in `hypervisor.S`, in sixty lines.

core::arch::global_asm!(include_str!("hypervisor.S"));

unsafe extern "C" {
    static hypervisor_vectors: u8;
    static el2_probe: u8;
    static el2_undefined: u8;
    static el2_calls: u8;
}

/// Address of the hypervisor's vectors, 2 KiB aligned: the argument of HVC_SET_VECTORS.
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
