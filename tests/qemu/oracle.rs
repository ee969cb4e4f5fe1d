//! KVM as the oracle: keel's answers are those of Debian's KVM on the same board, but for the list of differences.

use keel_qemu::image;
use keel_qemu::oracle::{self, HOSTS, Hypervisor, Options};
use keel_qemu::vms::{MemorySize, VmSpec};
use libtest_mimic::Trial;

use crate::debian::trial;
use crate::{Outcome, kernel};

/// The test kernel on KVM. What fails there expects something of a hypervisor that the one it is named after lacks.
fn cases(area: &str) -> Outcome {
    // The name is the bundle's too, which must not be that of another test.
    let mut vm = VmSpec::new(format!("cases-{area}"), &image::build_guests()?.test_kernel);
    vm.bootargs = format!("hyp=kvm only={area}/");
    vm.cpus = 2;
    vm.memory = MemorySize(64 << 20);
    let host = oracle::find("max")?;
    kernel::judge(&oracle::console(host, Hypervisor::Kvm(host.mode), &vm, Options::default())?)
}

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for host in HOSTS {
        trials.push(trial(format!("oracle::{}", host.name), oracle::KERNEL, || {
            let result = oracle::ask(host, &oracle::differences()?)?;
            if result.faults.is_empty() { Ok(()) } else { Err(result.faults.join("\n").into()) }
        }));
    }
    trials.push(trial("oracle::psci_cases_on_kvm".into(), oracle::KERNEL, || cases("psci")));
    trials.push(trial("oracle::timer_cases_on_kvm".into(), oracle::KERNEL, || cases("timer")));
    trials
}
