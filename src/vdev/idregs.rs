//! ID registers: what a guest is told its CPU can do.
//!
//! A guest believes its ID registers, so they must not offer anything that keel does not give it: a feature whose
//! registers are not switched between vCPUs, whose accesses trap, or that belongs to EL2 or EL3. The rows below are an
//! *allow-list*: a field that no row passes on reads as "not implemented", so what a future CPU adds stays hidden until
//! somebody has thought about it. Registers of the space (op0 = 3, op1 = 0, CRn = 0, CRm = 1 to 7) that have no row
//! read as zero.
//!
//! Hardware code fills a [`HostIdRegisters`] on each CPU; [`HostIdRegisters::intersect`] makes of them what every CPU
//! has, and a VM computes its [`GuestIdRegisters`] from that once. HCR_EL2.TID3 brings the guest's reads to
//! [`super::sysreg`].
//!
//! Source of names, positions and values: Arm ARM (DDI 0487) D24.2 for the AArch64, G8.2 for the AArch32 registers.

mod rows;

use rows::{DFR0, Order, PFR0, PFR1, Policy, ROWS, Row};

/// How many registers the space has: CRm 1 to 7, op2 0 to 7.
pub const COUNT: usize = 56;

/// A register of the ID space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IdRegister(u8);

impl IdRegister {
    /// The register with this encoding, if it is in the space.
    #[inline]
    pub const fn new(crm: u8, op2: u8) -> Option<Self> {
        if crm >= 1 && crm <= 7 && op2 <= 7 { Some(Self((crm - 1) * 8 + op2)) } else { None }
    }

    /// All registers of the space, in order of encoding.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..COUNT as u8).map(Self)
    }

    /// The CRm of its encoding, 1 to 7.
    pub const fn crm(self) -> u8 {
        self.0 / 8 + 1
    }

    /// The op2 of its encoding, 0 to 7.
    pub const fn op2(self) -> u8 {
        self.0 % 8
    }

    /// Whether the register describes AArch32 state.
    const fn is_aarch32(self) -> bool {
        self.crm() <= 3
    }
}

/// A row without what only readers need.
#[derive(Clone, Copy)]
struct Rule {
    register: IdRegister,
    lsb: u8,
    order: Order,
    absent: u8,
    policy: Policy,
}

/// Whether a row makes a difference to a register that starts as zero.
const fn has_effect(row: &Row) -> bool {
    !matches!(row.policy, Policy::Hide) || row.absent != 0
}

const RULE_COUNT: usize = {
    let (mut count, mut n) = (0, 0);
    while n < ROWS.len() {
        count += has_effect(&ROWS[n]) as usize;
        n += 1;
    }
    count
};

/// The rows that have an effect.
static RULES: [Rule; RULE_COUNT] = {
    let filler = Rule { register: PFR0, lsb: 0, order: Order::Unsigned, absent: 0, policy: Policy::Hide };
    let mut rules = [filler; RULE_COUNT];
    let (mut count, mut n) = (0, 0);
    while n < ROWS.len() {
        let row = &ROWS[n];
        if has_effect(row) {
            rules[count] =
                Rule { register: row.register, lsb: row.lsb, order: row.order, absent: row.absent, policy: row.policy };
            count += 1;
        }
        n += 1;
    }
    rules
};

impl Rule {
    /// The lesser of two values of the field.
    fn lesser(&self, a: u8, b: u8) -> u8 {
        match self.order {
            Order::Unsigned => a.min(b),
            // Bit 3 flipped, signed order is unsigned order.
            Order::Signed => (a ^ 8).min(b ^ 8) ^ 8,
            Order::Exact if a == b => a,
            Order::Exact => self.absent,
        }
    }
}

/// The registers of the space, by encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Values([u64; COUNT]);

impl Values {
    fn get(&self, register: IdRegister) -> u64 {
        self.0.get(usize::from(register.0)).copied().unwrap_or(0)
    }

    fn field(&self, rule: &Rule) -> u8 {
        (self.get(rule.register) >> rule.lsb & 0xf) as u8
    }

    fn insert(&mut self, rule: &Rule, field: u8) {
        if let Some(value) = self.0.get_mut(usize::from(rule.register.0)) {
            *value |= u64::from(field) << rule.lsb;
        }
    }
}

/// The ID registers of a CPU of the machine, or what several CPUs have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostIdRegisters(Values);

impl HostIdRegisters {
    /// The registers of a CPU, as `read` finds them there.
    pub fn new(mut read: impl FnMut(IdRegister) -> u64) -> Self {
        let mut values = [0; COUNT];
        for (register, value) in IdRegister::all().zip(&mut values) {
            *value = read(register);
        }
        Self(Values(values))
    }

    /// The raw value of a register.
    pub fn get(&self, register: IdRegister) -> u64 {
        self.0.get(register)
    }

    /// What this and `other` both have, field by field. Fields that no guest sees come out as zero.
    pub fn intersect(&self, other: &Self) -> Self {
        let mut common = Values([0; COUNT]);
        for rule in &RULES {
            common.insert(rule, rule.lesser(self.0.field(rule), other.0.field(rule)));
        }
        Self(common)
    }
}

/// What the ID registers of a VM depend on besides the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestFeatures {
    /// Bits of an intermediate physical address, as VTCR_EL2.T0SZ sets it: the VM's own limit.
    pub ipa_bits: u32,
    /// The VM's interrupt controller is a GICv3: ICC_*_EL1 are there.
    pub gic_system_registers: bool,
}

/// ID_AA64DFR0_EL1.PMUVer and ID_DFR0_EL1.PerfMon: FEAT_PMUv3p5.
const PMU_V3P5: u8 = 6;
/// The same: a PMU that is not the architecture's.
const OTHER_PMU: u8 = 0xf;

/// The ID registers of a VM, the same on each of its vCPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestIdRegisters(Values);

impl GuestIdRegisters {
    /// What a VM with these features sees on this machine.
    pub fn new(host: &HostIdRegisters, features: &GuestFeatures) -> Self {
        /// Bits 3:0 of ID_AA64PFR0_EL1 when EL0 can be AArch32.
        const EL0_AARCH32: u64 = 2;
        let aarch32 = host.get(PFR0) & 0xf == EL0_AARCH32;
        let mut guest = Values([0; COUNT]);
        for rule in RULES.iter().filter(|rule| aarch32 || !rule.register.is_aarch32()) {
            let host = host.0.field(rule);
            let field = match rule.policy {
                Policy::Pass => host,
                Policy::Cap(most) => rule.lesser(host, most),
                Policy::Hide => rule.absent,
                Policy::Pmu if host == OTHER_PMU => 0,
                Policy::Pmu => host.min(PMU_V3P5),
                Policy::Gic => host.min(features.gic_system_registers.into()),
                Policy::PhysicalAddressSize => host.min(physical_address_range(features.ipa_bits)),
            };
            guest.insert(rule, field);
        }
        Self(guest)
    }

    /// What a guest reads from a register of the space.
    #[inline]
    pub fn get(&self, register: IdRegister) -> u64 {
        self.0.get(register)
    }

    /// ID_AA64DFR0_EL1.PMUVer: the version of the PMU that is offered, 0 without.
    pub fn pmu_version(&self) -> u8 {
        (self.get(DFR0) >> 8 & 0xf) as u8
    }

    /// The same for vCPUs without a PMU.
    pub fn without_pmu(mut self) -> Self {
        for rule in RULES.iter().filter(|rule| rule.policy == Policy::Pmu) {
            if let Some(value) = self.0.0.get_mut(usize::from(rule.register.0)) {
                *value &= !(0xf << rule.lsb);
            }
        }
        self
    }

    /// Whether PSTATE.SSBS is offered (FEAT_SSBS).
    pub fn has_ssbs(&self) -> bool {
        self.get(PFR1) >> 4 & 0xf != 0
    }
}

/// The greatest PARange whose addresses all have at most `bits` bits; never more than 48 bits, which is what stage 2
/// with 4 KiB granules translates without 52-bit descriptors.
fn physical_address_range(bits: u32) -> u8 {
    /// Bits by PARange. The lowest has no lesser one: stage 2 itself bounds a guest that is smaller.
    const RANGES: [(u8, u32); 5] = [(5, 48), (4, 44), (3, 42), (2, 40), (1, 36)];
    RANGES.iter().find(|(_, range)| *range <= bits).map_or(0, |(encoding, _)| *encoding)
}

#[cfg(test)]
mod tests;
