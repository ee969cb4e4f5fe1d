//! What calls should answer: keel's own dispatch, here with a host that says what this kernel knows of its machine.
//!
//! The answers of a call made by HVC or SMC are compared with it while every CPU makes calls at once: what is between
//! the instruction and the dispatch, and between its answer and the registers, has to agree with it. Calls whose answer
//! nobody can know (random bits, the time) are compared by their form.

#[path = "../../../src/hypercall/mod.rs"]
#[allow(dead_code, missing_docs, reason = "keel's file, of which this uses a part")]
mod hypercall;

use core::{cell::Cell, ops::Range};
use hypercall::{
    Call, Clock, Conduit, FilterAction, HypercallHost, Outcome, PageState, Results,
    psci::{CpuOnResult, VcpuPower, Version},
    services::Services,
    smccc::{FunctionId, Mitigation, Vulnerability},
};
use keel_test_kernel::{
    exec::{self, Registers},
    machine::Machine,
    power,
};

/// How the machine stands with Spectre v2, v4 and BHB, as it says itself.
#[derive(Clone, Copy)]
pub struct Mitigations([i64; 3]);

impl Mitigations {
    /// Asks.
    pub fn ask() -> Self {
        let ask = |id: u64| power::hvc(power::SMCCC_ARCH_FEATURES, [id, 0, 0])[0] as i64;
        Self([0x8000_8000, 0x8000_7fff, 0x8000_3fff].map(ask))
    }
}

/// This CPU's view of the machine; every CPU is on.
pub struct Model<'a> {
    pub machine: &'a Machine,
    pub cpu: usize,
    pub mitigations: Mitigations,
    /// The call's answer has something in it that only the hypervisor knows.
    unknown: Cell<bool>,
}

impl<'a> Model<'a> {
    pub fn new(machine: &'a Machine, cpu: usize, mitigations: Mitigations) -> Self {
        Self { machine, cpu, mitigations, unknown: Cell::new(false) }
    }

    /// Makes the call and compares: `None` if it answered as it should, else what was expected.
    pub fn check(&self, smc: bool, immediate: u16, registers: &Registers) -> Option<Wrong> {
        let outcome = exec::run(if smc { exec::smc(immediate) } else { exec::hvc(immediate) }, registers);
        let mut arguments = [0; 18];
        arguments.copy_from_slice(&registers.x[..18]);
        self.unknown.set(false);
        let conduit = if smc { Conduit::Smc } else { Conduit::Hvc };
        let call = Call { conduit, immediate, aarch32: false, registers: &arguments };
        let expected = hypercall::dispatch(self, &call);
        let found = [outcome.after.x[0], outcome.after.x[1], outcome.after.x[2], outcome.after.x[3]];
        let [_, x1, x2, x3, ..] = arguments;
        let (wanted, changed) = match expected.results() {
            Results::None => ([arguments[0], x1, x2, x3], outcome.changed(&[])),
            Results::X0(x0) => ([x0, x1, x2, x3], outcome.changed(&[0])),
            Results::Four(four) => (four, outcome.changed(&[0, 1, 2, 3])),
        };
        let right = if self.unknown.get() { Self::same_form(&expected, found, wanted) } else { found == wanted };
        (!right || changed.is_some() || outcome.trap.is_some()).then_some(Wrong {
            found,
            wanted,
            changed: changed.is_some(),
        })
    }

    /// The model's unknown words are all ones: an answer has ones only there.
    fn same_form(expected: &Outcome, found: [u64; 4], wanted: [u64; 4]) -> bool {
        matches!(expected, Outcome::Return(_) | Outcome::ReturnX0(_))
            && found[0] == 0
            && found.iter().zip(wanted).all(|(found, wanted)| found & !wanted == 0)
    }
}

/// A call that did not answer as it should.
pub struct Wrong {
    /// x0 to x3 after the call.
    pub found: [u64; 4],
    /// What should be there.
    pub wanted: [u64; 4],
    /// Another register has changed.
    pub changed: bool,
}

impl core::fmt::Display for Wrong {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { found, wanted, changed } = self;
        write!(f, "x0 to x3 {found:x?}, expected {wanted:x?}; other registers changed: {changed}")
    }
}

impl HypercallHost for Model<'_> {
    fn services(&self) -> &Services {
        &Services::DEFAULT
    }

    fn filter(&self, _: FunctionId) -> FilterAction {
        FilterAction::Handle
    }

    fn caller(&self) -> usize {
        self.cpu
    }

    fn random(&self, words: &mut [u64; 3]) -> bool {
        self.unknown.set(true);
        *words = [u64::MAX; 3];
        true
    }

    /// Calls that tell the time are not made here: they have cases of their own.
    fn clock(&self) -> Option<Clock> {
        None
    }

    fn stolen_time(&self) -> Option<u64> {
        Some(0x090a_0000 + 64 * self.cpu as u64)
    }

    fn write_memory(&self, _: u64, _: &[u8]) -> bool {
        false
    }

    fn set_page_state(&self, _: u64, _: PageState) -> bool {
        false
    }

    fn set_range_state(&self, _: Range<u64>, _: PageState) -> bool {
        false
    }

    fn implementation(&self, _: usize) -> Option<[u64; 3]> {
        None
    }

    fn psci_version(&self) -> Version {
        Version::V1_1
    }

    fn vcpu_count(&self) -> usize {
        self.machine.cpus().len()
    }

    fn vcpu_power(&self, index: usize) -> VcpuPower {
        VcpuPower { mpidr: self.machine.cpus()[index], on: true }
    }

    fn cpu_on(&self, _: usize, _: u64, _: u64) -> CpuOnResult {
        CpuOnResult::AlreadyOn
    }

    fn mitigation(&self, vulnerability: Vulnerability) -> Mitigation {
        let [v2, v4, bhb] = self.mitigations.0;
        match (vulnerability, v2, v4, bhb) {
            (Vulnerability::SpectreV2, 1, ..) | (Vulnerability::SpectreBhb, _, _, 1) => Mitigation::Unaffected,
            (Vulnerability::SpectreV2, 0, ..) | (Vulnerability::SpectreBhb, _, _, 0) => Mitigation::Mitigated,
            (Vulnerability::SpectreV4, _, -2, _) => Mitigation::Unaffected,
            _ => Mitigation::Vulnerable,
        }
    }

    fn guest_has_ssbs(&self) -> bool {
        true
    }
}
