//! The other CPUs: started one by one, each in the way its node says and with its own stack, then all run vCPUs.

use super::{
    host_info::{Conduit, GicV2, GicV3, HostCpu, HostInfo, Start},
    spin_table,
    start::{host_id_registers, stop},
};
use crate::{
    arch::{
        self, SecondaryBlock, cache, cpu, features,
        gic::{CpuInterface, Distributor, GicError, Redistributor},
        gicv2, image, mmu, pmu, serror, smc, timer,
    },
    hypercall::smccc::{Mitigation, Vulnerability},
    kvm::physical::{self, HostInterrupts, MAX_CPUS},
    mm::{Pa, el2},
    vcpu::switch,
    vdev::idregs::HostIdRegisters,
    vmm,
};
use alloc::{boxed::Box, vec::Vec};
use core::sync::atomic::{AtomicBool, Ordering};
use log::{debug, error, warn};
use spin::{Mutex, Once};

/// How long a CPU may take to come up, in seconds.
const PATIENCE: u64 = 2;

/// The interrupt controller as every CPU needs it.
#[derive(Clone, Debug)]
pub struct Interrupts {
    parts: Parts,
    private: u32,
}

#[derive(Clone, Debug)]
enum Parts {
    V3 { distributor: Distributor, regions: Vec<(Pa, u64)>, stride: u64 },
    V2,
}

/// A mask of the private interrupts that keel takes.
fn private(interrupts: &HostInterrupts) -> u32 {
    let intids =
        [interrupts.virtual_timer, interrupts.physical_timer, interrupts.hypervisor_timer, interrupts.maintenance];
    let intids = intids.into_iter().chain(interrupts.pmu);
    intids.filter(|&intid| intid < 32).fold(0, |mask, intid| mask | 1 << intid)
}

static INTERRUPTS: Once<Interrupts> = Once::new();
static STATS: AtomicBool = AtomicBool::new(false);
/// What the CPU that is coming up found: its ID registers, or why it cannot be used.
static ARRIVAL: Mutex<Option<Result<HostIdRegisters, GicError>>> = Mutex::new(None);

impl Interrupts {
    /// Starts the distributor, whose registers are mapped.
    pub fn start(gic: &GicV3, interrupts: &HostInterrupts) -> Result<Self, GicError> {
        // SAFETY: the tree says that a GICv3 distributor is there; it is mapped as a device, and keel is its only driver.
        let distributor = unsafe { Distributor::new(gic.distributor.base) };
        distributor.start()?;
        physical::set_distributor(distributor);
        let regions = gic.redistributors.iter().map(|span| (span.base, span.size)).collect();
        let parts = Parts::V3 { distributor, regions, stride: gic.stride.unwrap_or(0) };
        Ok(Self { parts, private: private(interrupts) })
    }

    /// Starts the distributor of a GICv2. Its registers are mapped, but for GICV, which `guest_interface` says.
    pub fn start_v2(gic: &GicV2, interrupts: &HostInterrupts) -> Self {
        let mut frames = gicv2::Frames {
            distributor: gic.distributor.base,
            cpu_interface: gic.cpu_interface.base,
            virtual_interface: gic.hypervisor_interface.base,
            guest_interface: gic.virtual_cpu_interface.base,
        };
        if gic.cpu_interface.size == GicV2::ALIASED {
            // SAFETY: the tree says that a GICC of 128 KiB is there; it is mapped as a device.
            frames.cpu_interface = unsafe { gicv2::aliased(gic.cpu_interface.base) };
            let shift = frames.cpu_interface.0 - gic.cpu_interface.base.0;
            if gic.virtual_cpu_interface.size == GicV2::ALIASED {
                frames.guest_interface.0 += shift;
            }
        }
        // SAFETY: the tree says that a GICv2 with virtualization is there; GICD, GICC and GICH are mapped as devices, keel is
        // their only driver, and this is the boot CPU, once.
        unsafe { gicv2::install(frames) };
        gicv2::start_distributor();
        Self { parts: Parts::V2, private: private(interrupts) }
    }

    /// Takes the distributor over from a kernel that drives it, and finds the redistributors of `cpus`. Their registers are
    /// mapped.
    ///
    /// # Errors
    ///
    /// [`GicError`] if it cannot be used as it is.
    pub fn adopt(gic: &GicV3, cpus: &[HostCpu]) -> Result<(), GicError> {
        // SAFETY: the tree says that a GICv3 distributor is there; it is mapped as a device. The kernel that drives it is
        // behind keel from now on.
        let distributor = unsafe { Distributor::new(gic.distributor.base) };
        let regions: Vec<_> = gic.redistributors.iter().map(|span| (span.base, span.size)).collect();
        for (index, cpu) in cpus.iter().enumerate() {
            // SAFETY: as above, for redistributors.
            let redistributor = unsafe { Redistributor::find(&regions, gic.stride.unwrap_or(0), cpu.mpidr) }?;
            if redistributor.has_lpis() {
                return Err(GicError::Lpis);
            }
            physical::set_redistributor(index, redistributor);
        }
        distributor.adopt()?;
        physical::set_distributor(distributor);
        Ok(())
    }

    /// Takes this CPU's part over from the kernel that runs on it. Returns the CPU interface as that had it.
    ///
    /// # Errors
    ///
    /// [`GicError`]; nothing is changed then.
    pub fn adopt_cpu(kept: u32) -> Result<CpuInterface, GicError> {
        let redistributor = physical::redistributor().ok_or(GicError::NoRedistributor(cpu::mpidr()))?;
        let interface = CpuInterface::get();
        redistributor.adopt(kept)?;
        CpuInterface::clear_active_priorities();
        arch::gic::start_cpu_interface()?;
        timer::set_deadline(None);
        physical::add_implementation(cpu::index());
        Ok(interface)
    }

    /// Starts this CPU's part.
    pub fn start_cpu(&self, index: usize) -> Result<(), GicError> {
        match &self.parts {
            Parts::V3 { regions, stride, .. } => {
                // SAFETY: the tree says that GICv3 redistributors are there; they are mapped as devices.
                let redistributor = unsafe { Redistributor::find(regions, *stride, cpu::mpidr()) }?;
                redistributor.start(self.private)?;
                arch::gic::start_cpu_interface()?;
                physical::set_redistributor(index, redistributor);
            }
            Parts::V2 => gicv2::start_cpu(index, self.private)?,
        }
        arch::state::prepare_cpu();
        arch::state::clear_cpu();
        if let Some(syndrome) = serror::collect() {
            warn!("CPU {index}: {syndrome} was pending when it came to keel, syndrome {:#x}; ignored", syndrome.esr);
        }
        timer::set_deadline(None);
        physical::add_implementation(index);
        Ok(())
    }

    /// Routes an SPI to this CPU, which has `index`, and enables it.
    pub fn enable_spi(&self, intid: u32, index: usize) {
        match &self.parts {
            Parts::V3 { distributor, .. } => distributor.enable_spi(intid, cpu::mpidr()),
            Parts::V2 => gicv2::enable_spi(intid, index),
        }
    }
}

/// Starts keel's event counters on this CPU, and on every one that comes up later. `false` if there are none.
pub fn start_counters() -> bool {
    let bits = pmu::start();
    physical::set_monitor_bits(bits.unwrap_or(0));
    STATS.store(bits.is_some(), Ordering::Relaxed);
    bits.is_some()
}

/// Finds out how this CPU stands with the vulnerabilities that SMCCC has calls for: by its ID registers, else by asking
/// firmware. Where firmware mitigates, guests' calls reach it from now on; the one that is a switch is switched on.
pub fn add_mitigations() {
    for (vulnerability, function, immune) in [
        (Vulnerability::SpectreV2, 0x8000_8000, features::is_immune_to_spectre_v2()),
        (Vulnerability::SpectreV4, 0x8000_7fff, false),
        (Vulnerability::SpectreBhb, 0x8000_3fff, features::is_immune_to_spectre_bhb()),
    ] {
        // SMCCC, 7.5: 0 = the call is needed and mitigates; positive = not needed here. Firmware that does not know the
        // call says nothing about the CPU; entering EL2 is no mitigation then, and guests decide by MIDR and ID registers.
        let mitigation = match smc::arch_features(function) {
            _ if immune => Mitigation::Unaffected,
            0 => Mitigation::Mitigated,
            1.. => Mitigation::Unaffected,
            _ => Mitigation::Vulnerable,
        };
        physical::add_mitigation(vulnerability, mitigation);
        match (vulnerability, mitigation) {
            (Vulnerability::SpectreV4, Mitigation::Mitigated) => smc::enable_workaround_2(),
            (_, Mitigation::Mitigated) => switch::forward_workarounds(),
            _ => {}
        }
    }
}

/// Starts all CPUs but `boot`. Returns the indices of those that are up, in order.
pub fn start_others(host: &HostInfo, gic: &Interrupts, boot: usize, id_registers: &mut HostIdRegisters) -> Vec<usize> {
    INTERRUPTS.call_once(|| gic.clone());
    let mut up = Vec::new();
    for (index, cpu) in host.cpus.iter().enumerate() {
        if index == boot {
            up.push(index);
            continue;
        }
        if index >= MAX_CPUS {
            warn!("{}: CPU {index} stays off: keel uses at most {MAX_CPUS} CPUs", cpu.path);
            continue;
        }
        match start_one(host, cpu, index) {
            Ok(ids) => {
                *id_registers = id_registers.intersect(&ids);
                up.push(index);
            }
            Err(problem) => error!("{}: CPU {index} stays off: {problem}", cpu.path),
        }
    }
    up
}

/// Gives the CPU with this index its stack, and makes what it finds when it enters keel; it stays for good.
pub(super) fn secondary_block(index: usize, mpidr: u64) -> Result<&'static mut SecondaryBlock, &'static str> {
    let stack = image::stack(index).ok_or("there is no stack for it")?;
    el2::map_ram(stack.clone()).map_err(|_| "its stack cannot be mapped")?;
    let root = el2::root().ok_or("EL2's map is gone")?;
    Ok(Box::leak(Box::new(SecondaryBlock {
        mair: mmu::MAIR,
        tcr: mmu::tcr(),
        ttbr0: root.0,
        sctlr: mmu::SCTLR,
        stack: stack.end.0,
        index: index as u64,
        mpidr,
        next: 0,
    })))
}

fn start_one(host: &HostInfo, cpu: &HostCpu, index: usize) -> Result<HostIdRegisters, alloc::string::String> {
    use alloc::{format, string::ToString};
    match (&cpu.start, host.psci.as_ref().map(|psci| psci.conduit)) {
        (Start::Psci, Some(Conduit::Smc)) | (Start::SpinTable { .. }, _) => {}
        (Start::Psci, Some(Conduit::Hvc)) => {
            return Err("/psci: method is \"hvc\", which at EL2 leads back to keel: firmware must offer \"smc\"".into());
        }
        (Start::Psci, None) => return Err("there is no /psci, by which it is started".into()),
        (Start::Unknown, _) => return Err("its node says no way to start it that keel knows".into()),
    }
    let block = secondary_block(index, cpu.mpidr)?;
    *ARRIVAL.lock() = None;
    if let Start::SpinTable { release } = cpu.start {
        spin_table::release(release, || arch::spin_table_entry_address(block))?;
    } else {
        let at = Pa(core::ptr::from_ref(block) as u64);
        // The CPU reads it with its MMU off.
        cache::clean(at..Pa(at.0 + size_of::<SecondaryBlock>() as u64));
        let code = smc::cpu_on(cpu.mpidr, arch::secondary_entry_address(), at);
        code.map_err(|code| format!("PSCI CPU_ON({:#x}) answered {code}", cpu.mpidr))?;
    }
    let deadline = timer::now() + PATIENCE * timer::frequency();
    while timer::now() < deadline {
        if let Some(arrival) = ARRIVAL.lock().take() {
            debug!("CPU {index}: up, affinity {:#x}", cpu.mpidr);
            return arrival.map_err(|problem| format!("its part of the interrupt controller: {problem:?}"));
        }
        core::hint::spin_loop();
    }
    Err("it did not come up within two seconds of being started".to_string())
}

/// A secondary CPU enters `keel`, with its MMU on and `index` in TPIDR_EL2.
pub fn secondary(index: usize) -> ! {
    switch::install_vectors();
    let Some(interrupts) = INTERRUPTS.get() else { stop(format_args!("CPU {index} came up before it was started")) };
    let result = interrupts.start_cpu(index);
    if STATS.load(Ordering::Relaxed) {
        let _ = pmu::start();
    }
    add_mitigations();
    let failed = result.is_err();
    *ARRIVAL.lock() = Some(result.map(|()| host_id_registers()));
    if failed {
        cpu::halt();
    }
    vmm::scheduler::run();
}
