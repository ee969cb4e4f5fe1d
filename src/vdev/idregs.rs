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
mod writable;

use rows::{DFR0, ID_DFR0, ISAR1, ISAR2, Order, PFR0, PFR1, Policy, ROWS, Row};

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

/// Bits 3:0 of ID_AA64PFR0_EL1 when EL0 can be AArch32.
const EL0_AARCH32: u64 = 2;

/// ID_AA64DFR0_EL1.PMUVer and ID_DFR0_EL1.PerfMon of FEAT_PMUv3p5.
const PMU_V3P5: u8 = 6;

/// The same of a PMU that is not the architecture's.
const OTHER_PMU: u8 = 0xf;

/// ID_AA64DFR0_EL1.DebugVer and ID_DFR0_EL1.CopDbg of Armv8.0.
const DEBUG_ARMV8: u64 = 6;

/// ID_DFR0_EL1.PerfMon of PMUv3: what less says is not for AArch64.
const PERFMON_PMUV3: u8 = 3;

/// Why an ID register did not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It cannot have this value in this VM.
    Unsupported,
    /// It would change, and a vCPU has run.
    Frozen,
}

/// The ID registers of a VM, the same on each of its vCPUs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestIdRegisters {
    values: Values,
    /// What they could be at most.
    limits: Values,
}

impl GuestIdRegisters {
    /// What a VM with these features sees on this machine.
    pub fn new(host: &HostIdRegisters, features: &GuestFeatures) -> Self {
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
        Self { values: guest, limits: guest }
    }

    /// What a guest reads from a register of the space.
    #[inline]
    pub fn get(&self, register: IdRegister) -> u64 {
        self.values.get(register)
    }

    /// ID_AA64DFR0_EL1.PMUVer: the version of the PMU that is offered, 0 without.
    pub fn pmu_version(&self) -> u8 {
        (self.get(DFR0) >> 8 & 0xf) as u8
    }

    /// The VM has no PMU.
    pub fn hide_pmu(&mut self) {
        self.hide(Policy::Pmu);
    }

    /// Says that there is no interrupt controller with system registers.
    pub fn hide_gic(&mut self) {
        self.hide(Policy::Gic);
    }

    fn hide(&mut self, policy: Policy) {
        for rule in RULES.iter().filter(|rule| rule.policy == policy) {
            for values in [&mut self.values, &mut self.limits] {
                values.0[usize::from(rule.register.0)] &= !(0xf << rule.lsb);
            }
        }
    }

    /// Whether PSTATE.SSBS is offered (FEAT_SSBS).
    pub fn has_ssbs(&self) -> bool {
        self.get(PFR1) >> 4 & 0xf != 0
    }

    /// Whether EL0 can be AArch32.
    pub fn has_aarch32(&self) -> bool {
        self.limits.get(PFR0) & 0xf == EL0_AARCH32
    }

    /// Whether addresses and data can be authenticated (FEAT_PAuth, with any algorithm).
    pub fn has_pointer_authentication(&self) -> bool {
        let [isar1, isar2] = [ISAR1, ISAR2].map(|register| self.limits.get(register));
        let [addresses, data] = POINTER_AUTHENTICATION;
        isar1 & addresses[0] | isar2 & addresses[1] != 0 && isar1 & data[0] | isar2 & data[1] != 0
    }

    /// The VM has no pointer authentication.
    pub fn hide_pointer_authentication(&mut self) {
        let [addresses, data] = POINTER_AUTHENTICATION;
        for (register, fields) in [(ISAR1, addresses[0] | data[0]), (ISAR2, addresses[1] | data[1] | PAC_FRAC)] {
            for values in [&mut self.values, &mut self.limits] {
                values.0[usize::from(register.0)] &= !fields;
            }
        }
    }

    /// The bits of a register that may change (KVM_ARM_GET_REG_WRITABLE_MASKS).
    pub fn writable(&self, register: IdRegister) -> u64 {
        if register.is_aarch32() && !self.has_aarch32() { 0 } else { writable::MASKS[usize::from(register.0)] }
    }

    /// Sets what guests read from a register: fields may say less than they could, those that may change at all; nothing may
    /// change when a vCPU has `ran`. Writes of AArch32's registers are ignored where there is no AArch32.
    ///
    /// # Errors
    ///
    /// [`Refused`], and nothing has changed.
    pub fn set(&mut self, register: IdRegister, value: u64, ran: bool) -> Result<(), Refused> {
        if register.is_aarch32() && !self.has_aarch32() {
            return Ok(());
        }
        let value = plausible(register, value).ok_or(Refused::Unsupported)?;
        if ran {
            return if value == self.get(register) { Ok(()) } else { Err(Refused::Frozen) };
        }
        if !self.is_possible(register, value) {
            return Err(Refused::Unsupported);
        }
        self.values.0[usize::from(register.0)] = value;
        Ok(())
    }

    /// Whether the fields that differ from what the register could be at most are ones that may, and say less.
    fn is_possible(&self, register: IdRegister, value: u64) -> bool {
        let (limit, mask) = (self.limits.get(register), self.writable(register));
        let is_less = |rule: &&Rule| {
            let [field, most] = [value, limit].map(|value| (value >> rule.lsb & 0xf) as u8);
            mask >> rule.lsb & 1 != 0 && rule.lesser(field, most) == field
        };
        let lesser = RULES.iter().filter(|rule| rule.register == register).filter(is_less);
        // The limit of those is 0.
        let raised = writable::RAISED_MASKS[usize::from(register.0)];
        (value ^ limit) & !lesser.fold(raised, |fields, rule| fields | 0xf << rule.lsb) == 0
    }
}

/// A value as it is meant, or `None` if the register cannot have it in any VM.
fn plausible(register: IdRegister, value: u64) -> Option<u64> {
    let version = match register {
        DFR0 => 8,
        ID_DFR0 => 24,
        _ => return Some(value),
    };
    let value = match (value >> version & 0xf) as u8 {
        // KVM once showed guests such a PMU, and has taken the value for none since.
        OTHER_PMU => value & !(0xf << version),
        1..PERFMON_PMUV3 if register == ID_DFR0 => return None,
        _ => value,
    };
    (value & 0xf >= DEBUG_ARMV8).then_some(value)
}

/// Fields of ID_AA64ISAR1_EL1 and ID_AA64ISAR2_EL1 about authenticating addresses (APA, API; APA3) and data (GPA, GPI; GPA3).
const POINTER_AUTHENTICATION: [[u64; 2]; 2] = [[0xff << 4, 0xf << 12], [0xff << 24, 0xf << 8]];
/// ID_AA64ISAR2_EL1.PAC_frac.
const PAC_FRAC: u64 = 0xf << 24;

/// The greatest PARange whose addresses all have at most `bits` bits; never more than 48 bits, which is what stage 2
/// with 4 KiB granules translates without 52-bit descriptors.
fn physical_address_range(bits: u32) -> u8 {
    /// Bits by PARange. The lowest has no lesser one: stage 2 itself bounds a guest that is smaller.
    const RANGES: [(u8, u32); 5] = [(5, 48), (4, 44), (3, 42), (2, 40), (1, 36)];
    RANGES.iter().find(|(_, range)| *range <= bits).map_or(0, |(encoding, _)| *encoding)
}

#[cfg(test)]
mod tests;
