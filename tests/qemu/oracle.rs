//! KVM as the oracle: keel's answers are those of Debian's KVM on the same board, but for the list of differences.

use keel_qemu::image;
use keel_qemu::oracle::{self, API_HOSTS, HOSTS, Hypervisor, Options};
use keel_qemu::vms::{MemorySize, VmSpec};
use libtest_mimic::{Completion, Trial};

use crate::trial::ignorable_test;
use crate::{Outcome, kernel};

/// A test that is ignored, with the reason, where KVM cannot be asked.
fn trial(name: &str, test: impl Fn() -> Outcome + Send + 'static) -> Trial {
    ignorable_test(format!("oracle::{name}"), move || match oracle::missing() {
        Some(reason) => Ok(Completion::ignored_with(reason)),
        None => test().map(|()| Completion::Completed),
    })
}

/// The test kernel on KVM. What fails there expects something of a hypervisor that the one it is named after lacks.
fn cases(area: &str, features: &[&str]) -> Outcome {
    // The name is the bundle's too, which must not be that of another test.
    let mut vm = VmSpec::new(format!("cases-{area}"), &image::build_guests()?.test_kernel);
    vm.bootargs = format!("hyp=kvm injection only={area}/");
    vm.cpus = 2;
    vm.features = features.iter().map(|name| (*name).into()).collect();
    vm.memory = MemorySize(64 << 20);
    let host = oracle::find("max")?;
    kernel::judge(&oracle::console(host, Hypervisor::Kvm(host.mode), &vm, Options::default())?)
}

/// keel's registers by ONE_REG beside KVM's.
fn registers(host: &str) -> Outcome {
    let mut vm = VmSpec::new("registers", &image::build_guests()?.test_kernel);
    vm.bootargs = "hyp=kvm only=psci/version".into();
    vm.memory = MemorySize(64 << 20);
    let host = oracle::find(host)?;
    let options = Options { registers: true, ..Options::default() };
    let console = oracle::console(host, Hypervisor::Kvm(host.mode), &vm, options)?;
    let sum = console.lines().find(|line| line.contains("oracle: registers: ")).ok_or("nothing was compared")?;
    if sum.trim_end().ends_with(", 0 different") {
        return Ok(());
    }
    let said: Vec<_> = console.lines().filter(|line| line.contains("oracle: register")).collect();
    Err(said.join("\n").into())
}

pub fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for host in HOSTS {
        trials.push(trial(host.name, || {
            let result = oracle::ask(host, &oracle::differences()?)?;
            if result.faults.is_empty() { Ok(()) } else { Err(result.faults.join("\n").into()) }
        }));
    }
    for host in API_HOSTS {
        trials.push(trial(&format!("api_{host}"), || {
            let result = oracle::ask_api(oracle::find(host)?, &oracle::api_differences()?)?;
            if result.faults.is_empty() { Ok(()) } else { Err(result.faults.join("\n").into()) }
        }));
    }
    for host in ["max", "cortex-a72"] {
        trials.push(trial(&format!("registers_{host}"), move || registers(host)));
    }
    trials.push(trial("psci_cases_on_kvm", || cases("psci", &[])));
    trials.push(trial("timer_cases_on_kvm", || cases("timer", &[])));
    trials.push(trial("its_cases_on_kvm", || cases("its", &["its"])));
    trials.push(trial("serror_cases_on_kvm", || cases("serror", &["test-injection"])));
    trials.push(trial("debug_cases_on_kvm", || cases("debug", &[])));
    trials.push(trial("pmu_cases_on_kvm", || cases("pmu", &["pmu"])));
    trials
}
