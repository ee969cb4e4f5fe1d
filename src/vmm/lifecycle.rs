//! The life of the VMs of a bundle: made through KVM's calls, started, stopped, started again; and the machine's end when
//! none is left.

use super::{
    bundle::Bundle,
    config::{Feature, OnCrash, VmConfig},
    console, entropy,
    error::OutsideRam,
    load::{self, GuestMemory, Loaded},
    root::{self, HostMachine},
    scheduler,
};
use crate::{
    arch::{cpu, esr, features, gic::CpuInterface, pmu, serror::Syndrome, smc, timer},
    kvm::{
        Errno, Machine, Vcpu, Vm, init,
        ioctl::Api,
        machine::{Device, Serial, Stop},
        owner::OwnerError,
        physical,
        run::Crash,
        uapi::{DEVICE_ARM_VGIC_ITS, DEVICE_ARM_VGIC_V2, DEVICE_ARM_VGIC_V3, VcpuInit, feature, reg, vcpu, vgic},
        vcpu::ExitKind,
    },
    mm::{
        Ipa,
        addr::BLOCK_1G,
        frame::{self, Block},
    },
    vcpu::aarch32,
    vdev::{
        console::VmState,
        idregs::{GuestFeatures, GuestIdRegisters, HostIdRegisters},
        platform::{Cache, GuestMachine, PV_TIME_STRIDE, Region, VIRT, VIRT_V2},
        vgic::MAX_VCPUS_V2,
    },
};
use alloc::{sync::Arc, vec::Vec};
use core::{
    fmt,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};
use log::{debug, error, info, warn};
use spin::{Mutex, Once};

/// What VMs are made with.
#[derive(Debug)]
pub struct Host {
    /// ID registers of all CPUs together.
    pub id_registers: HostIdRegisters,
    /// CPUs that are up, by index.
    pub cpus: Vec<usize>,
    /// Seconds since 1970 when the machine's counter was 0; 0 without a clock.
    pub epoch: u64,
    /// Interrupt of the console's UART, if it has one.
    pub console_interrupt: Option<u32>,
    /// The CPUs' level-1 caches, for guests' trees: guests read the same from their cache registers.
    pub l1: Option<[Cache; 2]>,
    /// Print statistics when a VM ends.
    pub stats: bool,
    /// The counter at keel's first instruction.
    pub entry: u64,
    /// The machine itself, if a VM is to own it.
    pub machine: Option<HostMachine>,
}

/// Restarts of a VM that come with statistics.
const STATS_REPORTS: u64 = 8;

static HOST: Once<Host> = Once::new();
static GUESTS: Mutex<Vec<Arc<Guest>>> = Mutex::new(Vec::new());
static ALIVE: AtomicUsize = AtomicUsize::new(0);
static CRASHED: AtomicUsize = AtomicUsize::new(0);
/// Ticks spent on copying and checking images, which is not keel's start-up cost.
static LOADING: AtomicU64 = AtomicU64::new(0);

/// A VM of the bundle.
#[derive(Debug)]
pub struct Guest {
    number: usize,
    name: &'static str,
    /// What it is started from; none if it was there before keel.
    config: Option<VmConfig<'static>>,
    vm: Vm,
    /// What its exits work on.
    pub machine: Arc<Machine>,
    /// vCPUs that have not been taken out of their queues.
    queued: AtomicUsize,
    entered: AtomicBool,
    /// It owns the machine, and has begun to send keel away.
    departing: AtomicBool,
    /// How often it was started again.
    restarts: AtomicU64,
    counts: Mutex<Counts>,
}

/// Where statistics start.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    ticks: u64,
    el2: u32,
    guest: u32,
}

/// Why a VM could not be started.
#[derive(Debug)]
pub(super) enum StartError {
    Config(super::error::ConfigError),
    SecondRoot,
    NeedsGicV3,
    TooManyVcpus(usize),
    Owner(OwnerError),
    Stub,
    Memory { wanted: u64, free: u64 },
    Cpu { wanted: u32, cpus: usize },
    NoPmu,
    NoAarch32,
    Api(&'static str, Errno),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::SecondRoot => write!(f, "another VM owns the machine: only one can have keel,root"),
            Self::NeedsGicV3 => {
                write!(f, "keel,root: this machine has a GICv2, and only one with a GICv3 can be given to a VM")
            }
            Self::TooManyVcpus(wanted) => write!(
                f,
                "keel,cpus asks for {wanted}, but this machine has a GICv2, with which a VM has at most {MAX_VCPUS_V2}: ask \
                 for fewer, or use a machine with a GICv3"
            ),
            Self::Owner(OwnerError::NoGic(cpu)) => write!(f, "keel,root: CPU {cpu} has no interrupt controller"),
            Self::Owner(OwnerError::SharedInterrupt(intid)) => write!(
                f,
                "keel,root: interrupt {intid}, which keel or the timers need, is no PPI: this machine cannot be given to a VM"
            ),
            Self::Stub => write!(f, "keel,root: the stub's memory cannot be mapped"),
            Self::Memory { wanted, free } => write!(
                f,
                "keel,memory asks for {} MiB, but only {} MiB are free in blocks of 2 MiB or more: ask for less, or give \
                 the machine more RAM",
                wanted >> 20,
                free >> 20
            ),
            Self::Cpu { wanted, cpus } => write!(
                f,
                "keel,cpu-affinity names CPU {wanted}, but the machine has {cpus} (numbered from 0): name one of those"
            ),
            Self::NoPmu => write!(
                f,
                "keel,features asks for \"pmu\", but not every CPU has one (FEAT_PMUv3): remove it, or use another machine"
            ),
            Self::NoAarch32 => write!(
                f,
                "keel,features asks for \"aarch32\", but EL1 of this machine's CPUs is always AArch64: use a machine with CPUs \
                 such as Cortex-A53 or A72"
            ),
            Self::Api(call, errno) => write!(f, "{call} failed: {errno:?}"),
        }
    }
}

struct Memory<'a>(&'a Vm);

impl GuestMemory for Memory<'_> {
    fn write(&mut self, address: Ipa, bytes: &[u8]) -> Result<(), OutsideRam> {
        if self.0.write_memory(address, bytes) { Ok(()) } else { Err(OutsideRam { address, size: bytes.len() as u64 }) }
    }

    fn zero(&mut self, _: Ipa, _: u64) -> Result<(), OutsideRam> {
        // The VM's memory was cleared before it was loaded.
        Ok(())
    }
}

/// Gives `vm` its RAM in the largest blocks there are.
fn give_memory(vm: &Vm, size: u64) -> Result<(), StartError> {
    let mut at = VIRT.ram_base;
    let mut left = size;
    let mut largest = BLOCK_1G;
    while left > 0 {
        // As large as fits what is left and as its address is aligned, so that stage 2 can use it as one block.
        let fits = (1 << left.ilog2()).min(largest).min(1 << at.0.trailing_zeros());
        match Block::new(fits) {
            Some(block) => {
                vm.set_user_memory_region(at, block)
                    .map_err(|errno| StartError::Api("KVM_SET_USER_MEMORY_REGION", errno))?;
                left -= fits;
                at = Ipa(at.0 + fits);
            }
            None if fits > 2 << 20 => largest = fits / 2,
            None => return Err(StartError::Memory { wanted: size, free: frame::free_bytes() }),
        }
    }
    Ok(())
}

fn make(host: &Host, number: usize, config: &VmConfig<'static>) -> Result<Guest, StartError> {
    let api = |call| move |errno| StartError::Api(call, errno);
    if !config.root && config.memory > frame::free_bytes() {
        return Err(StartError::Memory { wanted: config.memory, free: frame::free_bytes() });
    }
    if let Some(&wanted) = config.affinity.iter().find(|&&cpu| !host.cpus.contains(&(cpu as usize))) {
        return Err(StartError::Cpu { wanted, cpus: host.cpus.len() });
    }
    let has_gicv2 = physical::has_gicv2();
    if has_gicv2 && config.root {
        return Err(StartError::NeedsGicV3);
    }
    if has_gicv2 && config.cpus > MAX_VCPUS_V2 {
        return Err(StartError::TooManyVcpus(config.cpus));
    }
    let ipa_bits = crate::kvm::vm::max_ipa_bits().min(40);
    let features = GuestFeatures { ipa_bits, gic_system_registers: !has_gicv2 };
    let ids = GuestIdRegisters::new(&host.id_registers, &features);
    let vm = Vm::create(0, config.name, ids, Serial { vm: number, transmit: console::transmit })
        .map_err(api("KVM_CREATE_VM"))?;
    if config.root {
        let machine = host.machine.as_ref().ok_or(StartError::SecondRoot)?;
        if GUESTS.lock().iter().any(|guest| guest.machine.is_owner()) {
            return Err(StartError::SecondRoot);
        }
        let events = root::make(&vm, machine, config.memory, &host.cpus)?;
        let guest_ids = GuestIdRegisters::new(&host.id_registers, &features);
        vm.set_api(Api::new(guest_ids, host.cpus.len(), events)).map_err(api("KVM_IOCTL"))?;
        return finish(number, config.name, Some(config), vm, host.cpus.len());
    }
    give_memory(&vm, config.memory)?;
    let gic = if has_gicv2 { DEVICE_ARM_VGIC_V2 } else { DEVICE_ARM_VGIC_V3 };
    vm.create_device(gic).map_err(api("KVM_CREATE_DEVICE"))?;
    let mut queued = Vec::new();
    for index in 0..config.cpus {
        let vcpu = vm.create_vcpu(index).map_err(api("KVM_CREATE_VCPU"))?;
        let cpu = match config.affinity.get(index) {
            Some(&cpu) => cpu as usize,
            // The CPU with the fewest vCPUs; this VM's own count already.
            None => host
                .cpus
                .iter()
                .copied()
                .min_by_key(|&cpu| scheduler::load(cpu) + queued.iter().filter(|&&other| other == cpu).count())
                .unwrap_or(0),
        };
        queued.push(cpu);
        vcpu.set_cpu(cpu);
    }
    let frames = match VIRT_V2.gicc.filter(|_| has_gicv2) {
        Some(gicc) => [(vgic::ADDR_V2_DIST, VIRT_V2.gicd.base.0), (vgic::ADDR_V2_CPU, gicc.base.0)],
        None => [(vgic::ADDR_V3_DIST, VIRT.gicd.base.0), (vgic::ADDR_V3_REDIST, VIRT.gicr.base.0)],
    };
    for (attribute, value) in frames {
        vm.set_device_attr(vgic::GROUP_ADDR, attribute, value).map_err(api("KVM_DEV_ARM_VGIC_GRP_ADDR"))?;
    }
    vm.set_device_attr(vgic::GROUP_CTRL, vgic::CTRL_INIT, 0).map_err(api("KVM_DEV_ARM_VGIC_CTRL_INIT"))?;
    if config.features.contains(&Feature::Its) {
        vm.create_device(DEVICE_ARM_VGIC_ITS).map_err(api("KVM_CREATE_DEVICE"))?;
        for (group, attribute, value) in
            [(vgic::GROUP_ADDR, vgic::ADDR_ITS, VIRT.its.base.0), (vgic::GROUP_CTRL, vgic::CTRL_INIT, 0)]
        {
            vm.set_its_attr(group, attribute, value).map_err(api("KVM_DEV_TYPE_ARM_VGIC_ITS"))?;
        }
    }
    vm.add_device(Device::Pl011 { base: VIRT.uart.region.base, intid: VIRT.uart.intid })
        .and_then(|()| {
            vm.add_device(Device::Pl031 { base: VIRT.rtc.region.base, intid: VIRT.rtc.intid, epoch: host.epoch })
        })
        .map_err(api("adding a device"))?;
    give_pv_time(&vm, config.cpus)?;
    if config.features.contains(&Feature::ProtectedMemory) {
        vm.protect_memory().map_err(api("KVM_ENABLE_CAP"))?;
    }
    if config.features.contains(&Feature::TestInjection) {
        vm.enable_test_injection().map_err(api("test-injection"))?;
    }
    finish(number, config.name, Some(config), vm, config.cpus)
}

/// The VM has all it is made of.
fn finish(
    number: usize,
    name: &'static str,
    config: Option<&VmConfig<'static>>,
    vm: Vm,
    cpus: usize,
) -> Result<Guest, StartError> {
    let has = |feature| config.is_some_and(|config| config.features.contains(&feature));
    if has(Feature::TestCommonTrap) {
        vm.trap_common_registers().map_err(|errno| StartError::Api("test-common-trap", errno))?;
    }
    let has_pmu = has(Feature::Pmu);
    initialise_vcpus(&vm, cpus, has_pmu, has(Feature::Aarch32))?;
    if has_pmu {
        give_pmus(&vm, name, cpus)?;
    }
    let machine = vm.machine().map_err(|errno| StartError::Api("KVM_RUN", errno))?;
    Ok(Guest {
        number,
        name,
        config: config.cloned(),
        vm,
        machine,
        queued: AtomicUsize::new(0),
        entered: AtomicBool::new(false),
        departing: AtomicBool::new(false),
        restarts: AtomicU64::new(0),
        counts: Mutex::default(),
    })
}

/// A page beside RAM for the vCPUs' PV time structures.
fn give_pv_time(vm: &Vm, count: usize) -> Result<(), StartError> {
    let Region { base, size } = VIRT.pv_time;
    let page = Block::new(size).ok_or(StartError::Memory { wanted: size, free: frame::free_bytes() })?;
    vm.set_user_memory_region(base, page).map_err(|errno| StartError::Api("KVM_SET_USER_MEMORY_REGION", errno))?;
    for index in 0..count {
        let vcpu = vm.vcpu(index).ok_or(StartError::Api("KVM_ARM_VCPU_PVTIME_IPA", Errno::EINVAL))?;
        let address = base.0 + index as u64 * PV_TIME_STRIDE;
        vcpu.set_device_attr(vm, vcpu::GROUP_PVTIME, vcpu::PVTIME_IPA, address)
            .map_err(|errno| StartError::Api("KVM_ARM_VCPU_PVTIME_IPA", errno))?;
    }
    Ok(())
}

/// The PMUs' interrupt, and their initialisation.
fn give_pmus(vm: &Vm, name: &str, count: usize) -> Result<(), StartError> {
    const CALL: &str = "KVM_ARM_VCPU_PMU_V3_CTRL";
    if guest_machine().pmu.is_none() {
        warn!(
            "VM {name}: its PMUs count, but do not interrupt: the machine's device tree gives the PMU no interrupt that is \
             private to each CPU"
        );
    }
    for index in 0..count {
        let vcpu = vm.vcpu(index).ok_or(StartError::Api(CALL, Errno::EINVAL))?;
        for (attribute, value) in [(vcpu::PMU_IRQ, VIRT.pmu.unwrap_or_default().into()), (vcpu::PMU_INIT, 0)] {
            vcpu.set_device_attr(vm, vcpu::GROUP_PMU, attribute, value)
                .map_err(|errno| StartError::Api(CALL, errno))?;
        }
    }
    Ok(())
}

/// The machine that guests see, as far as it depends on this one.
fn guest_machine() -> GuestMachine {
    GuestMachine {
        l1: HOST.get().and_then(|host| host.l1),
        pmu: VIRT.pmu.filter(|_| physical::interrupts().is_some_and(|host| host.pmu.is_some())),
        ..if physical::has_gicv2() { VIRT_V2 } else { VIRT }
    }
}

/// KVM_ARM_VCPU_INIT for all: the first runs, the others wait for CPU_ON. They have pointer authentication if the machine has.
fn initialise_vcpus(vm: &Vm, count: usize, has_pmu: bool, aarch32: bool) -> Result<(), StartError> {
    let offered = init::offered(vm.offer());
    if aarch32 && offered & 1 << feature::EL1_32BIT == 0 {
        return Err(StartError::NoAarch32);
    }
    let offered = offered & init::POINTER_AUTHENTICATION | u32::from(aarch32) << feature::EL1_32BIT;
    for index in 0..count {
        let vcpu = vm.vcpu(index).ok_or(StartError::Api("KVM_ARM_VCPU_INIT", Errno::EINVAL))?;
        let off = if index == 0 { 0 } else { 1 << feature::POWER_OFF };
        let features = 1 << feature::PSCI_0_2 | u32::from(has_pmu) << feature::PMU_V3 | offered | off;
        let init = VcpuInit { features: [features, 0, 0, 0, 0, 0, 0], ..init::PREFERRED_TARGET };
        vcpu.init(vm, &init).map_err(|errno| match errno {
            Errno::ENODEV => StartError::NoPmu,
            errno => StartError::Api("KVM_ARM_VCPU_INIT", errno),
        })?;
    }
    Ok(())
}

impl Guest {
    /// Copies the images and sets the first vCPU up; the VM's memory is clear.
    fn load(&self) -> Result<(), StartError> {
        let Some(config) = &self.config else { return Err(StartError::Api("starting it again", Errno::ENOEXEC)) };
        let start = timer::now();
        let host = HOST.get();
        let loaded = match host.and_then(|host| host.machine.as_ref()).filter(|_| config.root) {
            Some(machine) => root::load(&self.vm, config, machine, &mut |bytes| entropy::fill(bytes)),
            None => load::load(config, &mut Memory(&self.vm), &guest_machine(), &mut |bytes| entropy::fill(bytes)),
        };
        let loaded = loaded.map_err(StartError::Config)?;
        self.vm.publish_memory();
        LOADING.fetch_add(timer::now().saturating_sub(start), Ordering::Relaxed);
        debug!(
            "VM {}: {:?} kernel, entry {}, device tree at {}, RAM disk {:x?}",
            self.name, loaded.format, loaded.entry, loaded.dtb, loaded.ramdisk
        );
        let api = |errno| StartError::Api("KVM_SET_ONE_REG", errno);
        let vcpu = self.vm.vcpu(0).ok_or(StartError::Api("KVM_SET_ONE_REG", Errno::EINVAL))?;
        if config.features.contains(&Feature::Aarch32) {
            return self.start_aarch32(&vcpu, &loaded).map_err(api);
        }
        vcpu.set_one_reg(&self.vm, reg::PC, loaded.entry.0).map_err(api)?;
        vcpu.set_one_reg(&self.vm, reg::x(0), loaded.dtb.0).map_err(api)
    }

    /// As Linux's arch/arm booting document has it: Supervisor mode, MMU off, r0 = 0, r1 = all ones, r2 = device tree. Bit 0
    /// of the entry says that it is of T32.
    fn start_aarch32(&self, vcpu: &Vcpu, loaded: &Loaded) -> Result<(), Errno> {
        let thumb = if loaded.entry.0 & 1 != 0 { aarch32::PSTATE_T } else { 0 };
        vcpu.set_one_reg(&self.vm, reg::PSTATE, aarch32::PSTATE_RESET | thumb)?;
        vcpu.set_one_reg(&self.vm, reg::PC, loaded.entry.0 & !1)?;
        vcpu.set_one_reg(&self.vm, reg::x(1), u64::from(u32::MAX))?;
        vcpu.set_one_reg(&self.vm, reg::x(2), loaded.dtb.0)
    }

    /// Puts the vCPUs into their queues.
    fn enqueue(self: &Arc<Self>) {
        self.queued.store(self.machine.vcpus.len(), Ordering::SeqCst);
        for vcpu in &self.machine.vcpus {
            scheduler::add(self, vcpu);
        }
    }

    /// A vCPU of this VM is about to be entered. The first time, statistics start.
    pub fn note_entry(&self) {
        if !self.entered.swap(true, Ordering::Relaxed) {
            let ticks = timer::now();
            if let Some(host) = HOST.get()
                && host.stats
                && self.number == 0
            {
                let boot = ticks.saturating_sub(host.entry).saturating_sub(LOADING.load(Ordering::Relaxed));
                // With -icount shift=0 a tick of a 1 GHz counter is an instruction.
                let instructions = u128::from(boot) * 1_000_000_000 / u128::from(timer::frequency().max(1));
                console::line(format_args!("bench entry_to_guest {instructions} insn"));
            }
            *self.counts.lock() = Counts { ticks: timer::now(), el2: pmu::read_el2(), guest: pmu::read_guest() };
        }
    }

    /// What happens when it crashes.
    fn on_crash(&self) -> OnCrash {
        self.config.as_ref().map_or(OnCrash::Stop, |config| config.on_crash)
    }

    /// Counts a restart. The guest decides how often it restarts, so only the 1st, 2nd, 4th, 8th … is worth a line.
    fn is_notable_restart(&self) -> bool {
        (self.restarts.fetch_add(1, Ordering::Relaxed) + 1).is_power_of_two()
    }

    /// Lines that tools read: `keel: stats NAME VALUE`.
    fn report_stats(&self) {
        let start = *self.counts.lock();
        let name = self.name;
        let line = |what: &str, value: u64| console::line(format_args!("keel: stats {name} {what} {value}"));
        line("ticks", timer::now().saturating_sub(start.ticks));
        line("frequency", timer::frequency());
        line("el2_instructions", pmu::read_el2().wrapping_sub(start.el2).into());
        line("guest_instructions", pmu::read_guest().wrapping_sub(start.guest).into());
        let mut total = [0; ExitKind::NAMES.len()];
        for vcpu in &self.machine.vcpus {
            for (sum, count) in total.iter_mut().zip(vcpu.parked().exits) {
                *sum += count;
            }
        }
        for (kind, count) in ExitKind::NAMES.iter().zip(total) {
            console::line(format_args!("keel: stats {name} exits_{kind} {count}"));
        }
    }
}

/// What a kernel that owns the machine is called if it was there before keel.
const OWNER: &str = "owner";

/// Makes the VM of a kernel that runs already, and owns the machine. Its vCPUs [join] one by one.
pub fn adopt(host: Host) -> Result<Arc<Guest>, impl fmt::Display> {
    let host = HOST.call_once(|| host);
    ALIVE.store(1, Ordering::SeqCst);
    console::add(OWNER);
    console::set_state(0, VmState::Running);
    let machine = host.machine.as_ref().ok_or(StartError::Stub)?;
    let features = GuestFeatures { ipa_bits: crate::kvm::vm::max_ipa_bits(), gic_system_registers: true };
    let ids = GuestIdRegisters::new(&host.id_registers, &features);
    let api = |errno| StartError::Api("KVM_CREATE_VM", errno);
    let vm = Vm::create(0, OWNER, ids, Serial { vm: 0, transmit: console::transmit }).map_err(api)?;
    root::make(&vm, machine, 0, &host.cpus)?;
    let guest = Arc::new(finish(0, OWNER, None, vm, host.cpus.len())?);
    guest.queued.store(guest.machine.vcpus.len(), Ordering::SeqCst);
    // None of its CPUs is keel's yet.
    guest.machine.vcpus.iter().for_each(|vcpu| vcpu.leave());
    GUESTS.lock().push(guest.clone());
    Ok::<_, StartError>(guest)
}

/// A CPU of such a kernel comes under keel: this one. It goes on when the scheduler runs it.
pub fn join(guest: &Arc<Guest>, gpr: [u64; 31], pc: u64, pstate: u64, interface: &CpuInterface) -> bool {
    let Some(vcpu) = guest.machine.vcpus.iter().find(|vcpu| vcpu.cpu() == cpu::index()) else { return false };
    vcpu.adopt(&guest.machine, gpr, pc, pstate, interface);
    scheduler::add(guest, vcpu);
    true
}

/// Starts the VMs of a bundle beside a kernel that was there before keel.
pub fn start_beside(bundle: &Bundle<'static>) {
    if let Some(host) = HOST.get() {
        ALIVE.fetch_add(1, Ordering::SeqCst);
        start_vms(host, bundle, 1);
    }
}

/// Starts the VMs of a bundle. What is wrong with one leaves the others alone.
pub fn start(host: Host, bundle: &Bundle<'static>) {
    let host = HOST.call_once(|| host);
    // Nothing may end before everything has begun.
    ALIVE.store(1, Ordering::SeqCst);
    start_vms(host, bundle, 0);
}

/// Starts VMs, the first of which has number `first`.
fn start_vms(host: &Host, bundle: &Bundle<'static>, first: usize) {
    for vm in &bundle.vms {
        console::add(vm.as_ref().map_or("?", |config| config.name));
    }
    for (number, vm) in bundle.vms.iter().enumerate().map(|(n, vm)| (first + n, vm)) {
        let config = match vm {
            Ok(config) => config,
            Err(error) => {
                refuse(number, None, error);
                continue;
            }
        };
        if !config.autostart {
            info!("VM {}: not started (keel,autostart = 0)", config.name);
            console::set_state(number, VmState::Off);
            continue;
        }
        let guest = match make(host, number, config).and_then(|guest| guest.load().map(|()| guest)) {
            Ok(guest) => Arc::new(guest),
            Err(error) => {
                refuse(number, Some(config.name), &error);
                continue;
            }
        };
        info!(
            "VM {}: {} MiB, {} vCPU{} on CPU {:?}",
            config.name,
            config.memory >> 20,
            config.cpus,
            if config.cpus == 1 { "" } else { "s" },
            guest.machine.vcpus.iter().map(|vcpu| vcpu.cpu()).collect::<Vec<_>>()
        );
        ALIVE.fetch_add(1, Ordering::SeqCst);
        GUESTS.lock().push(guest.clone());
        guest.enqueue();
    }
    ended();
}

fn refuse(number: usize, name: Option<&str>, error: &dyn fmt::Display) {
    CRASHED.fetch_add(1, Ordering::SeqCst);
    console::set_state(number, VmState::Crashed);
    match name {
        Some(name) => error!("VM {name} is not started: {error}"),
        None => error!("a VM is not started: {error}"),
    }
}

/// A vCPU of a VM that stops has left its queue. The last one ends the VM, or starts it again.
pub fn parked(guest: Arc<Guest>, reason: Stop) {
    if guest.queued.fetch_sub(1, Ordering::SeqCst) != 1 {
        return;
    }
    let stats = HOST.get().is_some_and(|host| host.stats);
    // A guest that restarts in a loop must not fill the log with statistics either.
    if stats && (reason == Stop::Off || guest.restarts.load(Ordering::Relaxed) < STATS_REPORTS) {
        guest.report_stats();
    }
    let name = guest.name;
    let again = match reason {
        Stop::Off => {
            info!("VM {name}: powered off");
            false
        }
        Stop::Reset | Stop::Reset2 => {
            if guest.is_notable_restart() {
                info!("VM {name}: reset");
            }
            if guest.machine.is_owner() && ALIVE.load(Ordering::SeqCst) == 1 {
                // Nobody else is there: its devices start again too.
                console::flush();
                smc::system_reset();
                error!("the firmware's SYSTEM_RESET came back: starting VM {name} from its images");
            }
            true
        }
        Stop::Crash => match guest.on_crash() {
            OnCrash::Restart => {
                if guest.is_notable_restart() {
                    warn!("VM {name}: crashed, starting it again (keel,on-crash = restart)");
                }
                true
            }
            OnCrash::Stop => {
                CRASHED.fetch_add(1, Ordering::SeqCst);
                error!("VM {name}: crashed and stays stopped (keel,on-crash = stop)");
                false
            }
            OnCrash::Halt => {
                CRASHED.fetch_add(1, Ordering::SeqCst);
                error!("VM {name}: crashed, powering off (keel,on-crash = halt)");
                power_off();
            }
        },
    };
    if again {
        match restart(&guest) {
            Ok(()) => return,
            Err(error) => refuse(guest.number, Some(name), &error),
        }
    }
    if guest.machine.is_owner() {
        // Its interrupts are nobody's now: none may come any more.
        guest.machine.reset();
    }
    GUESTS.lock().retain(|other| !Arc::ptr_eq(other, &guest));
    console::set_state(guest.number, if reason == Stop::Off { VmState::Off } else { VmState::Crashed });
    drop(guest);
    ended();
}

/// From its images, as at the first start.
fn restart(guest: &Arc<Guest>) -> Result<(), StartError> {
    guest.vm.clear_memory();
    guest.machine.reset();
    let has = |feature| guest.config.as_ref().is_some_and(|config| config.features.contains(&feature));
    initialise_vcpus(&guest.vm, guest.machine.vcpus.len(), has(Feature::Pmu), has(Feature::Aarch32))?;
    guest.load()?;
    guest.entered.store(false, Ordering::Relaxed);
    guest.enqueue();
    Ok(())
}

/// One of what [`ALIVE`] counts is gone.
fn ended() {
    if ALIVE.fetch_sub(1, Ordering::SeqCst) == 1 {
        power_off();
    }
}

fn power_off() -> ! {
    let crashed = CRASHED.load(Ordering::SeqCst);
    console::line(format_args!("keel: all VMs ended, powering off (crashed: {crashed})"));
    console::flush();
    smc::system_off();
    error!("the firmware's SYSTEM_OFF came back: switch the board off by hand");
    cpu::halt();
}

/// Says what a guest did that ended it.
pub fn report_crash(guest: &Guest, vcpu: &Vcpu, crash: &Crash) {
    // A guest that is started again after each crash must not fill the log.
    let restarts = guest.restarts.load(Ordering::Relaxed);
    if guest.on_crash() == OnCrash::Restart && !(restarts + 1).is_power_of_two() {
        return;
    }
    let Crash { esr, far, pc, pstate } = *crash;
    let (name, index) = (guest.name, vcpu.index());
    let registers = format_args!("ESR_EL2 {esr:#x} FAR_EL2 {far:#x} PC {pc:#x} PSTATE {pstate:#x}");
    match esr::class(esr) {
        esr::ec::SERROR => {
            let syndrome = Syndrome { esr, has_ras: features::has_ras() };
            error!("VM {name} vCPU {index}: {syndrome} that keel cannot contain: {registers}");
        }
        class => {
            let class = esr::class_name(class);
            error!("VM {name} vCPU {index}: {class} that keel cannot answer: {registers}");
        }
    }
}

/// Whether keel may leave the CPU of this VM, which owns the machine and asks for it: no other VM may be there.
pub fn may_depart(guest: &Guest) -> bool {
    let alone = ALIVE.load(Ordering::SeqCst) == 1 && !guest.machine.has_made_vms();
    if alone && !guest.departing.swap(true, Ordering::SeqCst) {
        info!("VM {}: owns the machine and takes EL2 back; the hyp stub stays", guest.name);
        console::flush();
    }
    alone
}

/// An interrupt of the machine that is not the running guest's. `true` if it has to stay active, because it is on its way to
/// the VM that owns the machine.
pub fn host_interrupt(intid: u32) -> bool {
    if HOST.get().is_some_and(|host| host.machine.is_some()) {
        let owner = GUESTS.lock().iter().find(|guest| guest.machine.is_owner()).cloned();
        let taken = owner.and_then(|owner| owner.machine.take_interrupt(intid));
        if taken == Some(true) {
            physical::call_attention(cpu::index());
        }
        return taken.is_some();
    }
    if HOST.get().and_then(|host| host.console_interrupt) == Some(intid) {
        console::receive(|input| {
            // Taken out of the list before the VM's own lock is: no two locks at once.
            let guest = GUESTS.lock().iter().find(|guest| guest.number == input.vm).cloned();
            if let Some(guest) = guest {
                // What comes while too much waits is lost, as on a real line.
                guest.machine.receive(input.byte);
            }
        });
    }
    false
}

/// Something that should have run cannot: the machine's end is not a good one.
pub fn fail() {
    CRASHED.fetch_add(1, Ordering::SeqCst);
}
