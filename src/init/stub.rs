//! `keel-stub`: from the entry's assembly to a payload at EL1, with the hyp-stub vectors under it.
//!
//! The image first moves to the top of the RAM it was loaded into, because payloads are linked for the start of it. Then
//! it does what every image does up to a console, takes the default configuration of the bundle in the initrd slot (or of
//! the one linked in), loads it with nothing between its addresses and the machine's, and leaves for it at EL1. From then
//! on the payload owns the machine. What stays is [`stub::resident_range`]: the image with its code (of which the vectors
//! and what they call run: boot/stub_*.S, `relay` and the reports of `panic` beside this), the state in
//! `arch::stub`, and a stack for each CPU. The tree handed over reserves it. Heap, bundle and the boot loader's tree are
//! free memory to the payload.
//!
//! Other CPUs that PSCI starts are left as firmware has them: the payload's CPU_ON is relayed (boot/stub_resident.S), so
//! that they too come up at EL1 over the stub. Those that firmware holds at EL2 in a spin-table pen change pens: they come
//! to the stub's, at EL1, and the payload's tree has the word that they wait for now as their `cpu-release-addr`. A payload that installs a hypervisor with HVC_SET_VECTORS takes the relay's place on that CPU,
//! and HVC_RESET_VECTORS, made when the stub's vectors are back, puts it back into service.

use super::{
    host_info::{Conduit, HostCpu, HostInfo, PsciVersion, Start, resting_place},
    log as keel_log, memory, spin_table,
    start::{Begun, begin, check_cpu, reserved, span_range, stop, tree_bytes},
};
use crate::{
    arch::{self, cache, cpu, image, smc, stub, timer},
    hypercall::relay::OwnerPsci,
    mm::{
        Ipa, Pa,
        addr::{BLOCK_2M, PAGE_SIZE},
        el2, frame,
    },
    vmm::{
        self,
        bundle::Bundle,
        config::VmConfig,
        error::OutsideRam,
        kernel::Format,
        load::GuestMemory,
        payload::{self, Machine},
        tree::Tree,
    },
};
use alloc::vec::Vec;
use core::ops::Range;
use log::{debug, error, info, warn};

/// How long a CPU may take to come from firmware's pen, in seconds.
const PATIENCE: u64 = 2;

/// Heap for reading the bundle and writing the payload's tree; less where there is less RAM.
const HEAP: [u64; 3] = [16 << 20, 8 << 20, 4 << 20];

/// The boot CPU enters `keel-stub`, with the MMU off. `tree` = physical address of the device tree.
pub fn primary(tree: u64) -> ! {
    make_room(tree);
    let Begun { tree: blob, pages, host } = begin(tree, &keel_log::STUB, ready_for_reports);
    check_cpu();
    if !host.cpus.iter().any(|cpu| cpu.mpidr == cpu::mpidr()) {
        stop(format_args!(
            "this CPU's affinity is {:#x}, which no node of /cpus has as its reg: the tree is another machine's",
            cpu::mpidr()
        ));
    }
    let ram: Vec<_> = host.memory.iter().map(span_range).collect();
    let whole = image::whole();
    let Some(into) = ram.iter().find(|range| range.contains(&whole.start) && whole.end <= range.end) else {
        stop(format_args!("the image is at {}..{}, which is not RAM by the tree", whole.start, whole.end));
    };
    let (heap, initrd) = give_memory(&host, &ram, into, &pages);
    let bundle = match &initrd {
        // SAFETY: mapped read only by `give_memory`, so constant until the payload runs.
        Some(range) => unsafe {
            core::slice::from_raw_parts(range.start.0 as *const u8, (range.end.0 - range.start.0) as usize)
        },
        None => {
            let bundle = image::bundle();
            if bundle.is_empty() {
                stop(format_args!(
                    "there is no payload: hand a bundle over in the initrd slot (QEMU: -initrd vms.itb), or link one into \
                     keel-stub (KEEL_BUNDLE)"
                ));
            }
            info!("no bundle in the initrd slot: taking the one linked into keel-stub");
            bundle
        }
    };
    let parsed = match Bundle::parse(bundle) {
        Ok(parsed) => parsed,
        Err(problem) => stop(format_args!("the bundle in the initrd slot: {problem}")),
    };
    let index = payload::default_configuration(bundle, &parsed);
    let vm = match parsed.vms.get(index) {
        Some(Ok(vm)) => vm,
        Some(Err(problem)) => stop(format_args!("{problem}")),
        None => stop(format_args!("the bundle in the initrd slot has no configuration")),
    };
    if parsed.vms.len() > 1 {
        info!("{} configurations in the bundle, one payload: taking {}", parsed.vms.len(), vm.name);
    }
    start_relay(&host);
    vmm::entropy::seed(&host.rng_seed);
    run(vm, &host, blob, &ram, into, &[(pages, "the boot loader's tree"), (heap, "keel-stub's heap")], initrd)
}

/// Moves the image to where it is in nobody's way, if it is not there yet. MMU off.
fn make_room(tree: u64) {
    if let Some(place) = tree_bytes(Pa(tree)).and_then(|blob| better_place(blob, Pa(tree))) {
        // SAFETY: the only CPU, MMU off; the tree says that the place is RAM that nobody has.
        unsafe { arch::restart_at(place, tree) }
    }
}

/// Where the image is less in the way of a kernel that owns the machine, if it is not there yet; apart from the image.
pub(super) fn better_place(blob: &[u8], tree: Pa) -> Option<Pa> {
    let whole = image::whole();
    let size = whole.end.0 - whole.start.0;
    resting_place(blob, tree, whole.start, size)
        .filter(|place| place.0 >= whole.end.0 || place.0 + size <= whole.start.0)
}

/// Exceptions of EL2 itself have a stack for their report from here on.
fn ready_for_reports() {
    let range = image::resident();
    let stacks = stub::resident_range(stub::MAX_CPUS);
    if el2::map_ram(range.start..stacks.end).is_ok() {
        stub::resident().reset(core::iter::once(cpu::mpidr()));
    }
}

/// Maps RAM and gives a part of it to the allocator. Returns that part, and where the bundle is.
fn give_memory(
    host: &HostInfo,
    ram: &[Range<Pa>],
    into: &Range<Pa>,
    tree: &Range<Pa>,
) -> (Range<Pa>, Option<Range<Pa>>) {
    let mut taken = alloc::vec![image::whole(), tree.clone()];
    let initrd = host.initrd.as_ref().map(span_range);
    if let Some(initrd) = &initrd {
        // Loaders reserve the bundle's own memory (U-Boot does), so reservations are no obstacle.
        let pages = memory::grow(initrd, PAGE_SIZE);
        let inside = ram.iter().any(|range| range.start <= pages.start && pages.end <= range.end);
        if !inside || taken.iter().any(|other| pages.start < other.end && other.start < pages.end) {
            stop(format_args!(
                "/chosen: linux,initrd-start and -end say {}..{}, which is not RAM, or lies on the image or the device tree: \
                 load the bundle elsewhere",
                initrd.start, initrd.end
            ));
        }
        if let Err(problem) = el2::map_read_only(pages.clone()) {
            stop(format_args!("the bundle at {}..{} cannot be mapped", problem.0.start, problem.0.end));
        }
        taken.push(pages);
    }
    taken.extend(reserved(host));
    for range in memory::subtract(ram, &taken, PAGE_SIZE) {
        if el2::map_ram(range.clone()).is_err() {
            stop(format_args!("RAM at {}..{} is beyond the CPU's physical address space", range.start, range.end));
        }
    }
    let free = memory::subtract(core::slice::from_ref(into), &taken, BLOCK_2M);
    let heap = HEAP.iter().find_map(|&size| {
        let piece = free.iter().rev().find(|piece| piece.end.0 - piece.start.0 >= size)?;
        Some(Pa(piece.end.0 - size)..piece.end)
    });
    let Some(heap) = heap else {
        stop(format_args!("there are no 4 MiB of free RAM in one piece in {}..{}", into.start, into.end));
    };
    debug!("heap: {}..{}", heap.start, heap.end);
    // SAFETY: RAM by the tree, mapped writable above, and clear of everything that is in use.
    unsafe { frame::donate(heap.clone()) };
    (heap, initrd)
}

/// The PSCI that the machine's owner finds in its tree.
pub(super) fn owner_psci(host: &HostInfo) -> OwnerPsci {
    match &host.psci {
        Some(psci) if psci.conduit == Conduit::Smc => match psci.version {
            PsciVersion::V0_1 { ids } => OwnerPsci { version: 1, legacy: ids },
            PsciVersion::V0_2 | PsciVersion::V1_0 => OwnerPsci { version: smc::psci_version(), legacy: [0; 4] },
        },
        _ => OwnerPsci::default(),
    }
}

/// Fills in what the relay needs to know.
fn start_relay(host: &HostInfo) {
    let resident = stub::resident();
    resident.reset(host.cpus.iter().map(|cpu| cpu.mpidr));
    if let Some(cpu) = host.cpus.get(stub::MAX_CPUS) {
        warn!("{}: and all after it cannot be started: the stub has stacks for {} CPUs", cpu.path, stub::MAX_CPUS);
    }
    let psci = owner_psci(host);
    resident.set_psci(core::iter::once(psci.version).chain(psci.legacy));
    match &host.psci {
        Some(found) if found.conduit == Conduit::Smc => {
            info!(
                "PSCI {}.{} by SMC: relayed, so that every CPU has the stub",
                psci.version >> 16,
                psci.version & 0xffff
            );
        }
        _ if host.cpus.iter().all(|other| is_held(other) || other.mpidr == cpu::mpidr()) => {}
        _ => warn!("/psci: there is none by SMC: CPUs that the payload starts in another way come up without the stub"),
    }
}

fn is_held(cpu: &HostCpu) -> bool {
    matches!(cpu.start, Start::SpinTable { .. })
}

/// Brings the CPUs that firmware holds in spin-table pens into the stub's. Returns for each that is on its way its affinity
/// and the address of its new release word.
fn change_pens(host: &HostInfo) -> Vec<(u64, u64)> {
    let resident = stub::resident();
    resident.publish();
    let (mut pens, mut arrived) = (Vec::new(), 0);
    for (index, cpu) in host.cpus.iter().enumerate() {
        let Start::SpinTable { release } = cpu.start else { continue };
        let Some(word) = resident.release_word(index).filter(|_| cpu.mpidr != cpu::mpidr()) else { continue };
        if let Err(problem) = spin_table::release(release, stub::spin_entry_address) {
            error!("{}: this CPU stays in firmware's pen: {problem}", cpu.path);
            continue;
        }
        // From here on it can only come to the stub, soon or late.
        pens.push((cpu.mpidr, word.0));
        let deadline = timer::now() + PATIENCE * timer::frequency();
        while !resident.has_arrived(index) && timer::now() < deadline {
            core::hint::spin_loop();
        }
        if resident.has_arrived(index) {
            debug!("{}: in the stub's pen, release word at {word}", cpu.path);
            arrived += 1;
        } else {
            error!("{}: this CPU did not come up within two seconds of being released", cpu.path);
        }
    }
    if arrived != 0 {
        info!("{arrived} CPUs from firmware's spin-table pens: in the stub's, at EL1");
    }
    pens
}

/// The machine's RAM by physical address, as far as the payload may have it.
struct HostRam {
    ram: Vec<Range<Pa>>,
    taken: Vec<Range<Pa>>,
}

impl HostRam {
    fn check(&self, address: Ipa, size: u64) -> Result<Range<Pa>, OutsideRam> {
        let outside = OutsideRam { address, size };
        let range = Pa(address.0)..Pa(address.0.checked_add(size).ok_or(outside)?);
        let inside = self.ram.iter().any(|ram| ram.start <= range.start && range.end <= ram.end);
        let clear = self.taken.iter().all(|taken| range.end <= taken.start || taken.end <= range.start);
        if inside && clear { Ok(range) } else { Err(outside) }
    }
}

impl GuestMemory for HostRam {
    fn write(&mut self, address: Ipa, bytes: &[u8]) -> Result<(), OutsideRam> {
        let range = self.check(address, bytes.len() as u64)?;
        // SAFETY: RAM that is mapped writable and that nothing else is in: `taken` has everything keel-stub uses.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), range.start.0 as *mut u8, bytes.len()) };
        // The payload starts with its caches off.
        cache::clean_invalidate(range);
        Ok(())
    }

    fn zero(&mut self, address: Ipa, size: u64) -> Result<(), OutsideRam> {
        let range = self.check(address, size)?;
        // SAFETY: as in `write`.
        unsafe { core::ptr::write_bytes(range.start.0 as *mut u8, 0, size as usize) };
        cache::clean_invalidate(range);
        Ok(())
    }
}

/// Loads the payload and leaves for it.
fn run(
    vm: &VmConfig,
    host: &HostInfo,
    blob: &[u8],
    ram: &[Range<Pa>],
    into: &Range<Pa>,
    in_use: &[(Range<Pa>, &'static str)],
    initrd: Option<Range<Pa>>,
) -> ! {
    let plain = |range: &Range<Pa>| range.start.0..range.end.0;
    let tree = match Tree::parse(blob) {
        Ok(tree) => tree,
        Err(problem) => stop(format_args!("the machine's device tree: {problem}")),
    };
    let kept = memory::grow(&stub::resident_range(host.cpus.len()), PAGE_SIZE);
    let mut taken: Vec<_> = in_use.iter().map(|(range, by)| (plain(range), *by)).collect();
    taken.push((plain(&image::whole()), "keel-stub"));
    // Its pages are read only until the payload runs.
    taken.extend(initrd.iter().map(|range| (plain(&memory::grow(range, PAGE_SIZE)), "the bundle")));
    taken.extend(reserved(host).iter().map(|range| (plain(range), "reserved memory")));
    let pens = change_pens(host);
    let plain_ram: Vec<_> = ram.iter().map(plain).collect();
    let machine = Machine {
        tree: &tree,
        ram: &plain_ram,
        into: plain(into),
        taken: &taken,
        kept: plain(&kept),
        vectors: stub::page().0,
        is_vm: false,
        pens: &pens,
    };
    let mut memory =
        HostRam { ram: ram.to_vec(), taken: taken.iter().map(|(range, _)| Pa(range.start)..Pa(range.end)).collect() };
    let loaded = match payload::load(vm, &mut memory, &machine, &mut vmm::entropy::fill) {
        Ok(loaded) => loaded,
        Err(problem) => stop(format_args!("{}: {problem}", vm.name)),
    };
    let format = match loaded.format {
        Format::Arm64Image => "arm64 Image",
        Format::ZImage => "zImage",
        Format::Elf => "ELF file",
        Format::Flat => "flat binary",
    };
    if let Some(range) = &loaded.ramdisk {
        info!("RAM disk at {:#x}..{:#x}", range.start, range.end);
    }
    info!(
        "device tree at {}, which reserves {}..{} for the stub, vectors at {}",
        loaded.dtb,
        kept.start,
        kept.end,
        stub::page()
    );
    info!("{}: {format}, starting at EL1 at {}", vm.name, loaded.entry);
    vmm::console::flush();
    cache::invalidate_instructions();
    // What runs from here on does so with the caches off, and the rest of memory is the payload's.
    cache::clean_invalidate(image::rodata().start..image::data().end);
    cache::clean_invalidate(image::resident().start..kept.end);
    // SAFETY: the payload was cleaned as it was written, and the image's data just now; the boot stack, dirty again, is
    // not used after this, and the tables are not either, since the MMU is off.
    unsafe { stub::enter(Pa(loaded.entry.0), Pa(loaded.dtb.0)) }
}
