//! What hypercalls may ask of the VM they come from.

use super::{Machine, physical, run::caller_is_big_endian, vcpu::Start};
use crate::arch::{cpu::MPIDR_AFFINITY, smc};
use crate::hypercall::{
    HypercallHost,
    psci::{self, CpuOnResult, VcpuPower},
    smccc::{Mitigation, Vulnerability},
};

/// Hypercalls of a vCPU.
pub(super) struct Caller<'a> {
    pub machine: &'a Machine,
}

impl HypercallHost for Caller<'_> {
    fn psci_version(&self) -> psci::Version {
        self.machine.psci
    }

    fn vcpu_count(&self) -> usize {
        self.machine.vcpus.len()
    }

    fn vcpu_power(&self, index: usize) -> VcpuPower {
        self.machine.vcpus.get(index).map_or(VcpuPower { mpidr: u64::MAX, on: false }, |vcpu| VcpuPower {
            mpidr: vcpu.mpidr(),
            // Of a CPU that was given back only firmware knows.
            on: vcpu.is_on() || vcpu.is_retired() && !smc::is_off(vcpu.mpidr() & MPIDR_AFFINITY),
        })
    }

    fn cpu_on(&self, index: usize, entry: u64, context: u64) -> CpuOnResult {
        let Some(vcpu) = self.machine.vcpus.get(index) else { return CpuOnResult::AlreadyOn };
        if vcpu.power_on(Start { entry, context, big_endian: caller_is_big_endian() }) {
            physical::call_attention(vcpu.cpu());
            CpuOnResult::Started
        } else if let Some(owner) = self.machine.owner.as_ref().filter(|_| vcpu.is_retired()) {
            match owner.start(vcpu.mpidr(), entry, context) {
                Ok(()) => CpuOnResult::Started,
                Err(error) => CpuOnResult::Refused(error),
            }
        } else {
            CpuOnResult::AlreadyOn
        }
    }

    fn mitigation(&self, vulnerability: Vulnerability) -> Mitigation {
        physical::mitigation(vulnerability)
    }

    fn guest_has_ssbs(&self) -> bool {
        self.machine.id_registers.has_ssbs()
    }
}
