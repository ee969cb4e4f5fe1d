//! keel under a kernel that runs already: from the late entry (`boot/late.S`) to that kernel as the VM that owns the machine.
//!
//! The kernel gives keel a piece of its RAM and the machine's device tree; everything else stays its own, at its addresses.
//! Nothing of the machine is reset: the distributor and its CPUs' interfaces change hands as they are, EL1's registers stay
//! in the CPUs, and the kernel goes on behind its HVC. Its CPUs join one by one; when all have, the VMs of the bundle that it
//! brought, if any, start beside it. What stands in the way comes back as an error number, with nothing changed; only when
//! memory ends after the distributor was adopted (`ENOMEM`) may its groups have been enabled meanwhile.

use super::{
    host_info::{Gic, HostInfo},
    log as keel_log, memory,
    smp::{Interrupts, add_mitigations, secondary_block},
    start::{allow_smc, cpu_problem, host_id_registers, open_uart, reserved, span_range, tree_bytes, wall_clock},
    stub::owner_psci,
};
use crate::{
    arch::{
        self, cache, cpu,
        depart::Successor,
        features, image,
        late::{InstallBlock, LateFrame},
        mmu,
    },
    kvm::{
        Errno,
        physical::{self, HostInterrupts, MAX_CPUS},
    },
    mm::{Pa, addr::PAGE_SIZE, el2, frame},
    vcpu::switch,
    vmm::{
        self,
        bundle::Bundle,
        lifecycle::{self, Guest},
        root::HostMachine,
    },
};
use alloc::{sync::Arc, vec::Vec};
use core::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};
use log::{error, info, warn};
use spin::{Mutex, Once};

/// What the CPUs that join need.
struct Installed {
    guest: Arc<Guest>,
    kept: u32,
    bundle: Mutex<Option<Bundle<'static>>>,
    /// CPUs that have not joined yet.
    missing: AtomicUsize,
}

static INSTALLED: Once<Installed> = Once::new();

/// The first CPU, with EL2's MMU off: `block` = physical address of the [`InstallBlock`]. A negative error number if keel
/// cannot be installed; else the kernel goes on and this does not come back.
pub fn primary(block: u64, frame: &LateFrame) -> i64 {
    // SAFETY: the kernel that calls owns the machine, and says that its block is there.
    let found = unsafe { InstallBlock::read(Pa(block)) };
    let error = match found.ok_or(Errno::EINVAL).and_then(|block| install(&block)) {
        Ok(()) => match join(frame) {
            Ok(()) => vmm::scheduler::run(),
            Err(error) => error,
        },
        Err(error) => error,
    };
    vmm::console::flush();
    // The data are put back past the caches, and the stack is used so.
    cache::clean_invalidate(image::rodata().start..image::data().end);
    error.negated()
}

/// Another CPU joins, with its MMU on.
pub fn secondary(index: usize, frame: &LateFrame) -> i64 {
    switch::install_vectors();
    match join(frame) {
        Ok(()) => vmm::scheduler::run(),
        Err(error) => {
            if let Some(stack) = image::stack(index) {
                cache::clean_invalidate(stack);
            }
            error.negated()
        }
    }
}

/// The memory that the kernel gives, and what is in it.
struct Given {
    whole: Range<Pa>,
    tree: Range<Pa>,
    bundle: Option<Range<Pa>>,
}

impl Given {
    /// Checks what the kernel says.
    fn check(block: &InstallBlock, tree: &[u8]) -> Result<Self, Errno> {
        let range = |start: u64, size: u64| start.checked_add(size).map(|end| Pa(start)..Pa(end)).ok_or(Errno::EINVAL);
        let inside = |outer: &Range<Pa>, inner: &Range<Pa>| outer.start <= inner.start && inner.end <= outer.end;
        let apart = |a: &Range<Pa>, b: &Range<Pa>| a.end <= b.start || b.end <= a.start;
        let whole = range(block.memory, block.memory_size)?;
        let tree = memory::grow(&range(block.tree, tree.len() as u64)?, PAGE_SIZE);
        let bundle = match block.bundle {
            0 => None,
            start => Some(range(start, block.bundle_size)?),
        };
        let bundle_pages = bundle.as_ref().map(|bundle| memory::grow(bundle, PAGE_SIZE));
        let parts = [Some(&image::whole()), Some(&tree), bundle_pages.as_ref()];
        let parts: [Option<Range<Pa>>; 3] = parts.map(|part| part.cloned());
        let sound = whole.start.is_aligned(PAGE_SIZE)
            && whole.end.is_aligned(PAGE_SIZE)
            && parts.iter().flatten().all(|part| inside(&whole, part))
            && parts.iter().flatten().enumerate().all(|(n, a)| parts.iter().flatten().skip(n + 1).all(|b| apart(a, b)))
            && Pa(block.stub).is_aligned(0x800)
            && block.stub != 0
            && !whole.contains(&Pa(block.stub))
            && block.flags & !InstallBlock::RELAYS == 0;
        sound.then_some(Self { whole, tree, bundle }).ok_or(Errno::EINVAL)
    }
}

/// Everything up to the VM of the kernel, on its first CPU. The kernel can see none of it until `Interrupts::adopt`.
fn install(block: &InstallBlock) -> Result<(), Errno> {
    let tree = tree_bytes(Pa(block.tree)).ok_or(Errno::EINVAL)?;
    let given = Given::check(block, tree)?;
    if cpu_problem().is_some() {
        return Err(Errno::ENODEV);
    }
    // SAFETY: the kernel's other CPUs are not in this image, whose memory it gave and left clean in the caches.
    unsafe { el2::start(given.tree.clone()) }.map_err(|_| Errno::EINVAL)?;
    switch::install_vectors();
    cpu::set_index(0);
    keel_log::start(&keel_log::KEEL);
    frame::start();
    let host = HostInfo::parse(tree).map_err(|_| Errno::EINVAL)?;
    start_console(&host);
    allow_smc(&host);
    keel_log::set_level(host.options.log_level);
    let refused = |errno, reason: core::fmt::Arguments<'_>| {
        error!("not installed: {reason}");
        errno
    };
    let boot = host.cpus.iter().position(|cpu| cpu.mpidr == cpu::mpidr());
    let boot = boot.ok_or_else(|| refused(Errno::EINVAL, format_args!("the tree does not have this CPU")))?;
    if host.cpus.len() > MAX_CPUS {
        return Err(refused(Errno::EINVAL, format_args!("more than {MAX_CPUS} CPUs")));
    }
    give_memory(&given)?;
    let bytes = given.bundle.as_ref().map(|range| {
        // SAFETY: mapped read only by `give_memory`, in memory that is keel's alone from now on.
        unsafe { core::slice::from_raw_parts(range.start.0 as *const u8, (range.end.0 - range.start.0) as usize) }
    });
    let bundle = match bytes.map(Bundle::parse) {
        None => None,
        Some(Ok(bundle)) => Some(bundle),
        Some(Err(problem)) => return Err(refused(Errno::EINVAL, format_args!("{problem}"))),
    };
    if bundle.is_some() && features::has_state_that_stays() {
        // The owner keeps these features, and their registers are not switched yet.
        let reason = format_args!("VMs beside the kernel need a CPU without SVE, SME, FEAT_FGT and FEAT_HCX");
        return Err(refused(Errno::ENODEV, reason));
    }
    let Gic::V3(gic) = &host.gic else {
        return Err(refused(Errno::ENODEV, format_args!("keel can share a GICv3 with a kernel, but no GICv2")));
    };
    for span in core::iter::once(&gic.distributor).chain(&gic.redistributors) {
        el2::map_device(span_range(span)).map_err(|_| Errno::EINVAL)?;
    }
    let interrupts = HostInterrupts {
        virtual_timer: host.timers.virt.intid,
        physical_timer: host.timers.physical.intid,
        hypervisor_timer: host.timers.hypervisor.intid,
        maintenance: gic.maintenance.intid,
        pmu: host.pmu.private(),
    };
    let kept = [interrupts.hypervisor_timer, interrupts.maintenance];
    let kept = kept.iter().filter(|&&intid| intid < 32).fold(0, |mask, intid| mask | 1 << intid);
    expect_others(&host, boot)?;
    physical::set_interrupts(interrupts);
    Interrupts::adopt(gic, &host.cpus)
        .map_err(|problem| refused(Errno::ENODEV, format_args!("the distributor: {problem:?}")))?;
    cpu::set_index(boot);
    vmm::entropy::seed(&host.rng_seed);
    let launch = lifecycle::Host {
        id_registers: host_id_registers(),
        cpus: (0..host.cpus.len()).collect(),
        epoch: wall_clock(&host),
        console_interrupt: None,
        l1: None,
        stats: false,
        entry: 0,
        machine: Some(host_machine(&host, tree, block, &given, gic)),
    };
    let guest = lifecycle::adopt(launch).map_err(|problem| refused(Errno::ENOMEM, format_args!("{problem}")))?;
    INSTALLED.call_once(|| Installed {
        guest,
        kept,
        bundle: Mutex::new(bundle),
        missing: AtomicUsize::new(host.cpus.len()),
    });
    info!(
        "installed at {} under a kernel that owns the machine, {} KiB free",
        image::whole().start,
        frame::free_bytes() >> 10
    );
    Ok(())
}

/// The console, which the kernel drives too: messages only.
fn start_console(host: &HostInfo) {
    let Ok(console) = &host.console else { return };
    let page = console.uart.base.align_down(PAGE_SIZE);
    if el2::map_device(page..Pa(page.0 + PAGE_SIZE)).is_ok()
        && let Some(console) = open_uart(&console.uart)
    {
        vmm::console::install(console);
    }
}

/// The rest of the memory that was given is keel's heap.
fn give_memory(given: &Given) -> Result<(), Errno> {
    let mut taken = alloc::vec![image::whole(), given.tree.clone()];
    if let Some(bundle) = &given.bundle {
        let pages = memory::grow(bundle, PAGE_SIZE);
        el2::map_read_only(pages.clone()).map_err(|_| Errno::EINVAL)?;
        taken.push(pages);
    }
    for range in memory::subtract(core::slice::from_ref(&given.whole), &taken, PAGE_SIZE) {
        el2::map_ram(range.clone()).map_err(|_| Errno::EINVAL)?;
        // SAFETY: RAM that the kernel gave, mapped writable, and clear of everything that is in it.
        unsafe { frame::donate(range) };
    }
    Ok(())
}

/// Prepares what the other CPUs find when they come.
fn expect_others(host: &HostInfo, boot: usize) -> Result<(), Errno> {
    for (index, cpu) in host.cpus.iter().enumerate().filter(|(index, _)| *index != boot) {
        arch::expect_cpu(secondary_block(index, cpu.mpidr).map_err(|_| Errno::ENOMEM)?);
    }
    Ok(())
}

/// The machine as the kernel has it: everything but what it gave, the stub's memory, and the interrupt controller.
fn host_machine(
    host: &HostInfo,
    tree: &'static [u8],
    block: &InstallBlock,
    given: &Given,
    gic: &super::host_info::GicV3,
) -> HostMachine {
    let ram: Vec<_> = host.memory.iter().map(span_range).collect();
    let mut hidden = ram.clone();
    hidden.push(span_range(&gic.distributor));
    hidden.extend(gic.redistributors.iter().chain(&gic.its).map(span_range));
    let mut kept = alloc::vec![given.whole.clone()];
    kept.extend(reserved(host).into_iter().filter(|range| range.contains(&Pa(block.stub))));
    let relays = block.flags & InstallBlock::RELAYS != 0;
    HostMachine {
        tree,
        devices: memory::subtract(&[Pa(0)..Pa(1 << mmu::pa_bits())], &hidden, PAGE_SIZE),
        reserved: memory::subtract(&ram, &kept, PAGE_SIZE),
        ram: Mutex::new(Vec::new()),
        mpidrs: host.cpus.iter().map(|cpu| cpu.mpidr).collect(),
        successor: Some(Successor { vectors: Pa(block.stub), relays }),
        psci: owner_psci(host),
    }
}

/// This CPU of the kernel comes under keel.
fn join(registers: &LateFrame) -> Result<(), Errno> {
    let installed = INSTALLED.get().ok_or(Errno::EINVAL)?;
    let index = cpu::index();
    let interface = Interrupts::adopt_cpu(installed.kept).map_err(|problem| {
        error!("CPU {index} not installed: its part of the interrupt controller: {problem:?}");
        Errno::ENODEV
    })?;
    add_mitigations();
    if !features::has_state_that_stays() {
        // Other VMs may run here too.
        arch::state::prepare_cpu();
    }
    let mut gpr = registers.gpr;
    // The answer, and nothing of what the late entry used.
    gpr[..19].fill(0);
    gpr[1] = frame::free_bytes();
    if !lifecycle::join(&installed.guest, gpr, registers.elr, registers.spsr, &interface) {
        return Err(Errno::EINVAL);
    }
    if installed.missing.fetch_sub(1, Ordering::SeqCst) == 1
        && let Some(bundle) = installed.bundle.lock().take()
    {
        if bundle.vms.iter().flatten().any(|vm| vm.root) {
            warn!("the bundle has a VM with keel,root, but the machine has an owner");
        }
        lifecycle::start_beside(&bundle);
    }
    Ok(())
}
