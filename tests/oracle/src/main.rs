//! A bundle's machine on Linux's KVM: what keel's answers are compared with.
//!
//! This program is the `/init` of an initial RAM disk that holds nothing else but `/bundle.itb`, the file keel would
//! get. It reads the bundle, loads the machine and writes its tree with keel's own code, and makes a VM with KVM's
//! calls whose memory map is the one keel gives, so that the same kernel finds the same things at the same places and
//! whatever it prints differently is the hypervisor's doing. What keel's machines have in keel, this program has in
//! user space: the UART, the clock, and the answer to accesses that nobody claims, an external abort.
//!
//! Linux gives a word `NAME=VALUE` of its command line to init as an environment variable:
//!
//! | word | |
//! |---|---|
//! | `settle=N` | seconds to wait before the machine starts, for Linux to come to rest |
//! | `registers=1` | before, keel's ONE_REG is compared with KVM's |
//! | `api=1` | no machine: KVM's calls are made one by one, and their answers printed |
//!
//! The machine's UART is standard output. Lines of this program's own start with `oracle: `; the last one says how it
//! ended, and then the board is powered off.

#[cfg(not(all(target_os = "linux", target_arch = "aarch64")))]
fn main() {}

#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
mod api;
#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
mod devices;
#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
mod machine;
#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
mod memory;
#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
mod registers;
#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
mod vcpu;

#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
fn main() {
    use rustix::system::{RebootCommand, reboot};
    match oracle::run() {
        Ok(None) => println!("oracle: the calls were made"),
        Ok(Some(ending)) => println!("oracle: the machine {ending}"),
        Err(error) => println!("oracle: failed: {error:#}"),
    }
    // init must not return, and nothing is left to be saved.
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        println!("oracle: cannot power off: {error}");
    }
    std::thread::park();
}

#[cfg(all(target_os = "linux", target_arch = "aarch64"))]
mod oracle {
    use anyhow::{Context, Result};
    use keel::vmm::bundle::Bundle;

    use crate::machine::Machine;
    use crate::vcpu::Ending;

    const BUNDLE: &str = "/bundle.itb";

    /// Runs the first machine of the bundle to its end.
    ///
    /// Nothing when only calls were to be made.
    pub(crate) fn run() -> Result<Option<Ending>> {
        if std::env::var_os("api").is_some() {
            return crate::api::run().map(|()| None);
        }
        let file = std::fs::read(BUNDLE).context(BUNDLE)?;
        let bundle = Bundle::parse(&file).map_err(|error| anyhow::anyhow!("{BUNDLE}: {error}"))?;
        let vm = bundle.vms.first().context("the bundle has no machine")?;
        let vm = vm.as_ref().map_err(|error| anyhow::anyhow!("{BUNDLE}: {error}"))?;
        if std::env::var_os("registers").is_some() {
            crate::registers::compare()?;
        }
        let machine = Machine::new(vm)?;
        if let Some(seconds) = std::env::var("settle").ok().and_then(|text| text.parse().ok()) {
            std::thread::sleep(std::time::Duration::from_secs(seconds));
        }
        machine.run().map(Some)
    }
}
