//! From the entry's assembly to running VMs, on the boot CPU.
//!
//! The order is: map the image and the tree, caches on; the console; everything else the tree says; memory; interrupts;
//! the other CPUs; the VMs. What goes wrong says what was expected, what was found and what to change.

use super::{
    host_info::{self, Conduit, Gic, HostInfo, Span, Start, Uart},
    log as keel_log, memory, panic, smp,
    stub::{better_place, owner_psci},
};
use crate::{
    arch::{self, cpu, image, mmu, smc, sysreg, timer, uart},
    kvm::{
        self,
        physical::{self, HostInterrupts},
    },
    mm::{
        Pa,
        addr::{BLOCK_2M, PAGE_SIZE},
        el2,
        frame::{self, Block},
    },
    vcpu::switch,
    vdev::{idregs::HostIdRegisters, platform::Cache},
    vmm::{self, bundle::Bundle, root::HostMachine},
};
use alloc::vec::Vec;
use core::ops::Range;
use log::{debug, error, info, warn};
use spin::Mutex;

/// The largest device tree that the boot protocol allows.
const TREE_MAX: u64 = 2 << 20;

/// The bytes of the tree at `tree`, by its header (Devicetree Specification 0.4, 5.2; big-endian words): magic and size.
pub(super) fn tree_bytes(tree: Pa) -> Option<&'static [u8]> {
    if tree.0 == 0 || !tree.is_aligned(8) {
        return None;
    }
    // SAFETY: the boot protocol puts a tree at this address; only its header is read until that proves it.
    let word = |n: u64| u64::from(u32::from_be(unsafe { ((tree.0 + 4 * n) as *const u32).read() }));
    let (magic, size) = (word(0), word(1));
    if magic != 0xd00d_feed || size > TREE_MAX {
        return None;
    }
    // SAFETY: the header says that the tree has `size` bytes; it is reserved and never written while keel runs.
    Some(unsafe { core::slice::from_raw_parts(tree.0 as *const u8, size as usize) })
}

pub(super) fn open_uart(uart: &Uart) -> Option<uart::Console> {
    panic::set_uart(uart.base);
    // SAFETY: the tree says that a PL011 is there; the caller has mapped it, or the MMU is off.
    unsafe { uart::Console::pl011(uart.base) }
}

/// Prints without anything but the UART: for the time before there is more, and for exception levels that are not ours.
fn print(uart: &mut Option<uart::Console>, text: &str) {
    if let Some(uart) = uart {
        for byte in text.bytes() {
            if byte == b'\n' {
                uart.write(b'\r');
            }
            uart.write(byte);
        }
        uart.flush();
    }
}

/// The image was started at another exception level than EL2.
#[unsafe(no_mangle)]
extern "C" fn image_wrong_exception_level(tree: u64, level: u64) -> ! {
    let mut uart =
        tree_bytes(Pa(tree)).and_then(|tree| host_info::console_only(tree).ok()).and_then(|uart| open_uart(&uart));
    print(&mut uart, "\nkeel: started at EL");
    print(&mut uart, ["0", "1", "2", "3"][(level & 3) as usize]);
    print(
        &mut uart,
        ", but keel is firmware for EL2: it must be entered at EL2\n\
         keel: QEMU's virt board needs -M virt,virtualization=on (and not secure=on); other boards need firmware that\n\
         keel: starts its payload at EL2\n\
         keel: stopped\n",
    );
    cpu::halt();
}

/// What every image of keel knows once it has a console.
pub(super) struct Begun {
    /// The device tree, mapped read only.
    pub tree: &'static [u8],
    /// Its pages.
    pub pages: Range<Pa>,
    /// What it says.
    pub host: HostInfo,
}

/// The first steps of every image: its map with the caches on, `install_vectors`, a heap for reading the tree, the
/// console, and what the tree says of the machine. `tree` = physical address of the device tree.
pub(super) fn begin(tree: u64, logger: &'static keel_log::Logger, install_vectors: fn()) -> Begun {
    let tree_address = Pa(tree);
    let Some(tree) = tree_bytes(tree_address) else {
        // Without a tree there is no console, and nothing is known of the machine.
        cpu::halt();
    };
    let pages = tree_address.align_down(PAGE_SIZE)
        ..Pa(tree_address.0 + tree.len() as u64).align_up(PAGE_SIZE).unwrap_or(tree_address);
    let whole = image::whole();
    if pages.start < whole.end && whole.start < pages.end {
        let mut uart = host_info::console_only(tree).ok().and_then(|uart| open_uart(&uart));
        print(
            &mut uart,
            "\nkeel: error: the boot loader put the device tree on top of keel's image: move one of them\n",
        );
        cpu::halt();
    }
    // SAFETY: the boot CPU, once, with the MMU off as the boot protocol says.
    if unsafe { el2::start(pages.clone()) }.is_err() {
        let mut uart = host_info::console_only(tree).ok().and_then(|uart| open_uart(&uart));
        print(&mut uart, "\nkeel: error: the image or the device tree lies beyond the CPU's physical address space\n");
        cpu::halt();
    }
    install_vectors();
    cpu::set_index(0);

    keel_log::start(logger);
    frame::start();
    let host = HostInfo::parse(tree);
    // The console comes first; it is found in a tree that is good for nothing else, too.
    let uart = match &host {
        Ok(HostInfo { console: Ok(console), .. }) => Some(console.uart),
        _ => host_info::console_only(tree).ok(),
    };
    if let Some(uart) = uart {
        let page = uart.base.align_down(PAGE_SIZE);
        if el2::map_device(page..Pa(page.0 + PAGE_SIZE)).is_ok()
            && let Some(console) = open_uart(&uart)
        {
            vmm::console::install(console);
        }
    }
    let host = match host {
        Ok(host) => host,
        Err(problem) => stop(format_args!("the machine's device tree: {problem}")),
    };
    allow_smc(&host);
    keel_log::set_level(host.options.log_level);
    info!("version {}, image at {}, on {}", env!("CARGO_PKG_VERSION"), whole.start, host.model);
    debug!("device tree at {tree_address}, {} bytes; bootargs {:?}", tree.len(), host.bootargs);
    if let Err(problem) = &host.console {
        warn!("console: {problem}");
    }
    for warning in &host.warnings {
        warn!("{warning}");
    }
    if let Some(how) = host.options.crash {
        panic::crash(how);
    }
    Begun { tree, pages, host }
}

/// The boot CPU enters `keel`. `tree` = physical address of the device tree; `entry` = the counter at the first instruction.
pub fn primary(tree: u64, entry: u64) -> ! {
    let Begun { tree, pages, host } = begin(tree, &keel_log::KEEL, switch::install_vectors);
    check_cpu();
    // CPU 0 is the boot CPU, whatever the tree's order: indices are positions in the tree.
    let Some(boot) = host.cpus.iter().position(|cpu| cpu.mpidr == crate::arch::cpu::mpidr()) else {
        stop(format_args!(
            "this CPU's affinity is {:#x}, which no node of /cpus has as its reg: the tree is another machine's",
            cpu::mpidr()
        ));
    };
    cpu::set_index(boot);

    let (bytes, bundle_pages) = map_bundle(&host, &pages);
    let bundle = Bundle::parse(bytes);
    let has_root = bundle.as_ref().is_ok_and(|bundle| bundle.vms.iter().flatten().any(|vm| vm.root));
    // One that cannot be given the machine is refused when its turn comes.
    let has_root = has_root && matches!(host.gic, Gic::V3(_));
    if has_root {
        make_room(tree);
    }
    let for_root = bundle.iter().flat_map(|bundle| bundle.vms.iter().flatten()).find(|vm| vm.root && has_root);
    let set_aside = give_memory(&host, pages.clone(), bundle_pages, for_root.map_or(0, |vm| vm.memory));
    let (gic, interrupts) = start_interrupts(&host);
    let stats = if host.options.stats { smp::start_counters() } else { false };
    if host.options.stats && !stats {
        warn!("keel.stats=1, but this CPU has no PMU with three event counters: instructions are not counted");
    }
    physical::set_interrupts(interrupts);
    if let Err(problem) = gic.start_cpu(boot) {
        stop(format_args!("the interrupt controller: {problem:?} on the boot CPU"));
    }
    smp::add_mitigations();
    let mut id_registers = host_id_registers();
    let cpus = smp::start_others(&host, &gic, boot, &mut id_registers);
    info!("{} of {} CPUs up, {} MiB free", cpus.len(), host.cpus.len(), frame::free_bytes() >> 20);

    let console_interrupt = host.console.as_ref().ok().and_then(|console| console.interrupt.map(|line| line.intid));
    // What is typed is for the machine's owner, if there is one.
    let console_interrupt = console_interrupt.filter(|_| !has_root);
    if let Some(intid) = console_interrupt {
        gic.enable_spi(intid, boot);
        vmm::console::enable_input();
    }
    vmm::entropy::seed(&host.rng_seed);
    debug!("guests' random bits: {}", kvm::entropy::source());
    let launch = vmm::lifecycle::Host {
        id_registers,
        cpus,
        epoch: wall_clock(&host),
        console_interrupt,
        l1: cpu::l1_caches().map(|caches| caches.map(|[line, sets, size]| Cache { line, sets, size })),
        stats: host.options.stats,
        entry,
        machine: has_root.then(|| host_machine(&host, tree, &pages, set_aside)),
    };
    match bundle {
        Ok(bundle) => vmm::lifecycle::start(launch, &bundle),
        Err(problem) => {
            error!("the bundle in the initrd slot: {problem}");
            let none = Bundle { description: "", vms: Vec::new() };
            vmm::lifecycle::fail();
            vmm::lifecycle::start(launch, &none);
        }
    }
    vmm::scheduler::run();
}

/// The end, before there are VMs.
pub(super) fn stop(reason: core::fmt::Arguments<'_>) -> ! {
    error!("{reason}");
    vmm::console::line(format_args!("keel: stopped"));
    vmm::console::flush();
    cpu::halt();
}

/// Firmware answers SMCs where the tree has PSCI by SMC.
pub(super) fn allow_smc(host: &HostInfo) {
    if host.psci.as_ref().is_some_and(|psci| psci.conduit == Conduit::Smc) {
        smc::set_available();
    }
}

/// What the images need of a CPU beyond EL2.
pub(super) fn check_cpu() {
    if let Some(problem) = cpu_problem() {
        stop(format_args!("{problem}"));
    }
}

/// Why keel cannot use this CPU.
pub(super) fn cpu_problem() -> Option<&'static str> {
    if sysreg::read_sysreg!("hcr_el2") & (1 << 34) != 0 {
        return Some(
            "this CPU has EL2 only with Virtualization Host Extensions (HCR_EL2.E2H stays 1), which keel does not use",
        );
    }
    let tgran4 = sysreg::read_sysreg!("id_aa64mmfr0_el1") >> 28 & 0xf;
    if tgran4 == 0xf {
        return Some("this CPU has no 4 KiB translation granule (ID_AA64MMFR0_EL1.TGran4)");
    }
    (timer::frequency() == 0).then_some("CNTFRQ_EL0 is 0: firmware must set it to the counter's frequency")
}

/// Memory that the tree keeps from everybody. The words that spin-table CPUs wait for are, reserved or not: what is written
/// there sends a CPU somewhere.
pub(super) fn reserved(host: &HostInfo) -> Vec<Range<Pa>> {
    let words = host.cpus.iter().filter_map(|cpu| match cpu.start {
        Start::SpinTable { release } => Some(release..Pa(release.0.saturating_add(8))),
        _ => None,
    });
    host.reservations.iter().map(|reservation| span_range(&reservation.span)).chain(words).collect()
}

pub(super) fn span_range(span: &Span) -> Range<Pa> {
    span.base..span.end()
}

/// The bundle, mapped; and its pages, if it is not linked into the image.
fn map_bundle(host: &HostInfo, tree: &Range<Pa>) -> (&'static [u8], Option<Range<Pa>>) {
    let Some(initrd) = host.initrd.as_ref().map(span_range) else {
        let bundle = image::bundle();
        if bundle.is_empty() {
            stop(format_args!(
                "there is no bundle: hand one over in the initrd slot (QEMU: -initrd vms.itb), or link one into keel (KEEL_BUNDLE)"
            ));
        }
        info!("no bundle in the initrd slot: running the one linked into keel");
        return (bundle, None);
    };
    let ram: Vec<_> = host.memory.iter().map(span_range).collect();
    let taken = [image::whole(), tree.clone()];
    let Some(pages) = memory::bundle_pages(&initrd, &ram, &taken, &reserved(host)) else {
        stop(format_args!(
            "/chosen: linux,initrd-start and -end say {}..{}, which is not RAM, or lies on keel's image or the device tree: \
             load the bundle elsewhere",
            initrd.start, initrd.end
        ));
    };
    if let Err(problem) = el2::map_read_only(pages.clone()) {
        stop(format_args!("the bundle at {}..{} cannot be mapped", problem.0.start, problem.0.end));
    }
    debug!("bundle: {}..{}", initrd.start, initrd.end);
    // SAFETY: mapped read only above, never given to the allocator, so constant for as long as keel runs.
    let bytes =
        unsafe { core::slice::from_raw_parts(initrd.start.0 as *const u8, (initrd.end.0 - initrd.start.0) as usize) };
    (bytes, Some(pages))
}

/// A VM is to own the machine: keel gets out of its way, to where it would not expect to be loaded itself, if keel is not
/// there yet. Comes back then.
fn make_room(tree: &'static [u8]) {
    let at = Pa(tree.as_ptr() as u64);
    let Some(place) = better_place(tree, at) else { return };
    let size = image::whole().end.0 - image::whole().start.0;
    if el2::map_ram(place..Pa(place.0 + size)).is_ok() {
        debug!("moving to {place}: a VM owns the machine, and the RAM it is loaded to");
        vmm::console::flush();
        // SAFETY: no other CPU runs yet; the place is RAM that nobody has, by the tree, mapped writable just now.
        unsafe { arch::restart_at(place, at.0) }
    }
}

/// Maps the machine's memory and gives what is free to the allocator, but for the lowest `set_aside` bytes, which are
/// returned; fewer if there are not that many.
fn give_memory(host: &HostInfo, tree: Range<Pa>, bundle: Option<Range<Pa>>, mut set_aside: u64) -> Vec<Block> {
    let mut kept = Vec::new();
    let ram: Vec<_> = host.memory.iter().map(span_range).collect();
    let mut taken: Vec<_> = [Some(image::whole()), Some(tree), bundle].into_iter().flatten().collect();
    taken.extend(reserved(host));
    for range in memory::subtract(&ram, &taken, BLOCK_2M) {
        if el2::map_ram(range.clone()).is_err() {
            stop(format_args!("RAM at {}..{} is beyond the CPU's physical address space", range.start, range.end));
        }
        debug!("free: {}..{}", range.start, range.end);
        let middle = Pa(range.end.0.min(range.start.0.saturating_add(set_aside)));
        set_aside -= middle.0 - range.start.0;
        // SAFETY: RAM by the tree, mapped writable above, and clear of the image, the tree, the bundle and reservations.
        unsafe {
            if range.start < middle {
                kept.push(Block::outside(range.start..middle));
            }
            frame::donate(middle..range.end);
        }
    }
    kept
}

/// The machine, for a VM that owns it.
fn host_machine(host: &HostInfo, tree: &'static [u8], pages: &Range<Pa>, set_aside: Vec<Block>) -> HostMachine {
    let ram: Vec<_> = host.memory.iter().map(span_range).collect();
    let mut hidden = ram.clone();
    if let Gic::V3(gic) = &host.gic {
        hidden.push(span_range(&gic.distributor));
        hidden.extend(gic.redistributors.iter().chain(&gic.its).map(span_range));
    }
    let own = [Some(image::whole()), Some(pages.clone()), host.initrd.as_ref().map(span_range)];
    HostMachine {
        tree,
        devices: memory::subtract(&[Pa(0)..Pa(1 << mmu::pa_bits())], &hidden, PAGE_SIZE),
        reserved: memory::subtract(
            &memory::common(&ram, &memory::joined(reserved(host))),
            &own.into_iter().flatten().collect::<Vec<_>>(),
            PAGE_SIZE,
        ),
        ram: Mutex::new(set_aside),
        successor: None,
        mpidrs: host.cpus.iter().map(|cpu| cpu.mpidr).collect(),
        psci: owner_psci(host),
    }
}

/// The interrupt controller, and the interrupts that are keel's.
fn start_interrupts(host: &HostInfo) -> (smp::Interrupts, HostInterrupts) {
    let (path, maintenance) = match &host.gic {
        Gic::V3(gic) => (&gic.path, gic.maintenance),
        Gic::V2(gic) => (&gic.path, gic.maintenance),
    };
    if let Gic::V2(gic) = &host.gic
        && let Err(problem) = gic.check()
    {
        stop(format_args!("{problem}"));
    }
    let mapped: Vec<&Span> = match &host.gic {
        Gic::V3(gic) => core::iter::once(&gic.distributor).chain(&gic.redistributors).collect(),
        Gic::V2(gic) => [&gic.distributor, &gic.cpu_interface, &gic.hypervisor_interface].into(),
    };
    for span in mapped {
        let pages = span.base.align_down(PAGE_SIZE)..span.end().align_up(PAGE_SIZE).unwrap_or(span.end());
        if el2::map_device(pages).is_err() {
            stop(format_args!("{path}: registers at {}..{} cannot be mapped", span.base, span.end()));
        }
    }
    let interrupts = HostInterrupts {
        virtual_timer: host.timers.virt.intid,
        physical_timer: host.timers.physical.intid,
        hypervisor_timer: host.timers.hypervisor.intid,
        maintenance: maintenance.intid,
        pmu: host.pmu.private(),
    };
    debug!("interrupts: {interrupts:?}");
    let started = match &host.gic {
        Gic::V3(gic) => smp::Interrupts::start(gic, &interrupts),
        Gic::V2(gic) => Ok(smp::Interrupts::start_v2(gic, &interrupts)),
    };
    match started {
        Ok(gic) => (gic, interrupts),
        Err(problem) => stop(format_args!("{path}: the distributor does not work: {problem:?}")),
    }
}

/// Seconds since 1970 when the counter was 0, by the machine's PL031; 0 without one.
pub(super) fn wall_clock(host: &HostInfo) -> u64 {
    let Some(rtc) = &host.rtc else {
        warn!("no real-time clock in the device tree: guests' clocks start at 1970");
        return 0;
    };
    let page = rtc.base.align_down(PAGE_SIZE);
    if el2::map_device(page..Pa(page.0 + PAGE_SIZE)).is_err() {
        return 0;
    }
    // SAFETY: the tree says that a PL031 is there; it is mapped as a device. RTCDR, offset 0, is its time.
    let now = unsafe { (rtc.base.0 as *const u32).read_volatile() };
    u64::from(now).saturating_sub(timer::now() / timer::frequency().max(1))
}

/// This CPU's ID registers.
pub(super) fn host_id_registers() -> HostIdRegisters {
    let values = cpu::id_registers();
    HostIdRegisters::new(|register| {
        values.get((usize::from(register.crm()) - 1) * 8 + usize::from(register.op2())).copied().unwrap_or(0)
    })
}
