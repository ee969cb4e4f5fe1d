//! What hypercalls may ask of the VM they come from.

use super::{Machine, Vcpu, clock, entropy, physical, run::caller_is_big_endian, vcpu::Start};
use crate::{
    arch::{cpu::MPIDR_AFFINITY, smc, timer},
    hypercall::{
        Clock, FilterAction, HypercallHost, PageState,
        psci::{self, CpuOnResult, VcpuPower},
        services::Services,
        smccc::{FunctionId, Mitigation, Vulnerability},
    },
    mm::Ipa,
};
use core::ops::Range;

/// Hypercalls of a vCPU.
pub(super) struct Caller<'a> {
    pub machine: &'a Machine,
    pub vcpu: &'a Vcpu,
}

impl HypercallHost for Caller<'_> {
    fn services(&self) -> &Services {
        &self.machine.services
    }

    fn filter(&self, function: FunctionId) -> FilterAction {
        self.machine.filter.action(function)
    }

    fn caller(&self) -> usize {
        self.vcpu.index()
    }

    fn random(&self, words: &mut [u64; 3]) -> bool {
        entropy::fill(words)
    }

    fn clock(&self) -> Option<Clock> {
        let epoch = self.machine.epoch?;
        let now = timer::now();
        Some(Clock {
            nanoseconds: clock::wall(epoch, now, timer::frequency()),
            virtual_counter: now.wrapping_sub(self.machine.counter_offset()),
            physical_counter: now,
        })
    }

    fn stolen_time(&self) -> Option<u64> {
        self.vcpu.stolen.address()
    }

    fn write_memory(&self, address: u64, bytes: &[u8]) -> bool {
        self.machine.slots.write_whole(Ipa(address), bytes)
    }

    fn set_page_state(&self, page: u64, state: PageState) -> bool {
        self.machine.pages.as_ref().is_some_and(|pages| pages.set(page, state))
    }

    fn set_range_state(&self, range: Range<u64>, state: PageState) -> bool {
        self.machine.pages.as_ref().is_some_and(|pages| pages.set_range(range, state))
    }

    fn implementation(&self, index: usize) -> Option<[u64; 3]> {
        physical::implementations().nth(index)
    }

    fn psci_version(&self) -> psci::Version {
        self.machine.psci_version()
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
