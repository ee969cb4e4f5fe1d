//! KVM_CHECK_EXTENSION: which capabilities there are, and how much of them.
//!
//! Only what keel has is here: a capability that is missing answers 0, as on KVM, and a program that asks first does
//! without.

/// What answers depend on.
#[derive(Clone, Copy, Debug)]
pub struct Abilities {
    /// CPUs that are up.
    pub cpus: u32,
    /// The most vCPUs a VM can have.
    pub max_vcpus: u32,
    /// log2 of the largest IPA space.
    pub ipa_bits: u32,
    /// Breakpoints and watchpoints that guests have.
    pub debug_registers: [u32; 2],
    /// FEAT_RAS on every CPU.
    pub ras: bool,
    /// Pointer authentication.
    pub pauth: bool,
    /// A performance monitoring unit.
    pub pmu: bool,
    /// EL1 can be in AArch32.
    pub aarch32_el1: bool,
}

/// The answer to KVM_CHECK_EXTENSION (Linux, uapi `linux/kvm.h`, KVM_CAP_*).
pub fn check(number: u64, abilities: &Abilities) -> u32 {
    match number {
        // IRQCHIP, USER_MEMORY, MP_STATE, SYNC_MMU, DESTROY_MEMORY_REGION_WORKS, JOIN_MEMORY_REGIONS_WORKS.
        0 | 3 | 14 | 16 | 21 | 30 => 1,
        // NR_VCPUS.
        9 => abilities.cpus.min(abilities.max_vcpus),
        // NR_MEMSLOTS.
        10 => super::super::slots::MAX_SLOTS,
        // MAX_VCPUS, MAX_VCPU_ID.
        66 | 128 => abilities.max_vcpus,
        // ONE_REG, READONLY_MEM, ARM_PSCI, ARM_SET_DEVICE_ADDR, DEVICE_CTRL, ENABLE_CAP_VM, ARM_PSCI_0_2, CHECK_EXTENSION_VM,
        // VCPU_ATTRIBUTES, IMMEDIATE_EXIT.
        70 | 81 | 87 | 88 | 89 | 98 | 102 | 105 | 127 | 136 => 1,
        93 => abilities.aarch32_el1.into(),
        // GUEST_DEBUG_HW_BPS, GUEST_DEBUG_HW_WPS.
        119 => abilities.debug_registers[0],
        120 => abilities.debug_registers[1],
        126 => abilities.pmu.into(),
        // ARM_INJECT_SERROR_ESR.
        158 => abilities.ras.into(),
        // ARM_VM_IPA_SIZE.
        165 => abilities.ipa_bits,
        // ARM_PTRAUTH_ADDRESS, ARM_PTRAUTH_GENERIC.
        171 | 172 => abilities.pauth.into(),
        _ => 0,
    }
}
