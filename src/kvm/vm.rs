//! KVM's calls on a VM: memory, vCPUs, the interrupt controller; and freezing all that into a machine.

use super::{
    Errno,
    filter::Filter,
    firmware::{self, Firmware, Surroundings},
    machine::{Device, Machine, MachineSetup, Serial, VgicFrames},
    memory::{Slot, Slots},
    owner::Owner,
    pages::PageStates,
    physical,
    pmu::{self, TIMER_INTERRUPTS},
    uapi::{DEVICE_ARM_VGIC_ITS, DEVICE_ARM_VGIC_V2, DEVICE_ARM_VGIC_V3, PmuEventFilter, feature, vgic},
    vcpu::Vcpu,
};
use crate::{
    arch::{features, gicv2, mmu, pmuv3::EventSet, tlb},
    hypercall::{
        psci,
        services::{Service, Services},
    },
    mm::{
        Ipa, Pa,
        addr::PAGE_SIZE,
        frame::{Block, TableMemory},
        stage2::{Memory, Stage2, Stage2Error, Tlb},
    },
    vdev::{
        idregs::GuestIdRegisters,
        platform::VIRT,
        vgic::{DEFAULT_SPIS, MAX_SPIS, MAX_VCPUS, MAX_VCPUS_V2, Version},
    },
};
use alloc::{string::String, sync::Arc, vec::Vec};
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use spin::{Mutex, Once};

/// VMIDs in use: 8 bits are what every CPU has, and 0 is never given.
static VMIDS: Mutex<[u64; 4]> = Mutex::new([1, 0, 0, 0]);

/// A VMID, free again when dropped.
#[derive(Debug)]
struct Vmid(u8);

impl Vmid {
    fn new() -> Option<Self> {
        let mut words = VMIDS.lock();
        let (n, word) = words.iter_mut().enumerate().find(|(_, word)| **word != u64::MAX)?;
        let bit = word.trailing_ones();
        *word |= 1 << bit;
        Some(Self((n as u32 * 64 + bit) as u8))
    }
}

impl Drop for Vmid {
    fn drop(&mut self) {
        // The next VM with this number must not find translations of the last one.
        tlb::flush_all_guests();
        VMIDS.lock()[usize::from(self.0 / 64)] &= !(1 << (self.0 % 64));
    }
}

/// TLB maintenance for a VM that is not loaded on this CPU: all guests' translations go.
struct AllGuests;

impl Tlb for AllGuests {
    fn flush_ipa(&self, _: Ipa) {
        tlb::flush_all_guests();
    }
    fn flush_all(&self) {
        tlb::flush_all_guests();
    }
    fn publish(&self) {
        tlb::publish_tables();
    }
}

#[derive(Debug, Default)]
pub(super) struct VgicSetup {
    /// `None` until it is created.
    pub(super) version: Option<Version>,
    pub(super) initialised: bool,
    pub(super) interrupts: Option<u32>,
    pub(super) distributor: Option<Ipa>,
    /// A GICv3's.
    pub(super) redistributors: Option<Ipa>,
    /// A GICv2's.
    pub(super) cpu_interface: Option<Ipa>,
    pub(super) its: Option<ItsSetup>,
    /// Accesses to the CPU interface's registers that both groups share trap at all times.
    pub(super) traps_common: bool,
}

impl VgicSetup {
    /// The most vCPUs that a VM with it can have.
    fn max_vcpus(&self) -> usize {
        if self.version == Some(Version::V2) { MAX_VCPUS_V2 } else { MAX_VCPUS }
    }

    /// How many shared interrupts there are.
    fn spis(&self) -> usize {
        self.interrupts.map_or(DEFAULT_SPIS, |interrupts| (interrupts as usize - 32).min(MAX_SPIS))
    }
}

/// The ITS that was created.
#[derive(Debug, Default)]
pub(super) struct ItsSetup {
    pub address: Option<Ipa>,
}

#[derive(Debug)]
pub(super) struct Setup {
    pub(super) vgic: VgicSetup,
    features: Option<u32>,
    firmware: Firmware,
    filter: Filter,
    /// Events that the PMU may count, if not all.
    events: Option<EventSet>,
    /// Interrupts of the timers, by attribute of KVM_ARM_VCPU_TIMER_CTRL.
    timers: [u32; 4],
    devices: Vec<Device>,
    /// The VM owns the machine.
    owner: Option<Owner>,
}

/// A virtual machine.
#[derive(Debug)]
pub struct Vm {
    name: String,
    vmid: Vmid,
    id_registers: GuestIdRegisters,
    serial: Serial,
    stage2: Mutex<Stage2<TableMemory>>,
    slots: Arc<Slots>,
    vcpus: Mutex<Vec<Arc<Vcpu>>>,
    pub(super) setup: Mutex<Setup>,
    pub(super) machine: Once<Arc<Machine>>,
    counter_offset: AtomicU64,
    /// KVM_ARM_SET_COUNTER_OFFSET was called: the physical counter has that offset too.
    is_offset: AtomicBool,
}

impl From<Stage2Error> for Errno {
    fn from(error: Stage2Error) -> Self {
        match error {
            Stage2Error::OutOfMemory => Self::ENOMEM,
            Stage2Error::BadRange => Self::EINVAL,
            Stage2Error::AlreadyMapped(_) => Self::EEXIST,
        }
    }
}

/// log2 of the largest IPA space that a VM can have on this machine (KVM_CAP_ARM_VM_IPA_SIZE).
pub fn max_ipa_bits() -> u32 {
    mmu::pa_bits().min(43)
}

impl Vm {
    /// KVM_CREATE_VM. `machine_type` bits 7:0 = IPA bits, 0 for the default of 40 (or all the machine has, if fewer).
    ///
    /// `id_registers` are what the guest is shown, `serial` is where its console goes.
    ///
    /// # Errors
    ///
    /// `EINVAL` for bits above 7 or an IPA size that the machine does not have; `ENOMEM`.
    pub fn create(
        machine_type: u64,
        name: &str,
        id_registers: GuestIdRegisters,
        serial: Serial,
    ) -> Result<Self, Errno> {
        if machine_type >> 8 != 0 {
            return Err(Errno::EINVAL);
        }
        let bits = match machine_type as u32 {
            0 => max_ipa_bits().min(40),
            bits @ 32.. if bits <= max_ipa_bits() => bits,
            _ => return Err(Errno::EINVAL),
        };
        let stage2 = Stage2::new(TableMemory, bits, mmu::pa_bits(), features::has_fwb())?;
        Ok(Self {
            name: name.into(),
            vmid: Vmid::new().ok_or(Errno::ENOMEM)?,
            id_registers,
            serial,
            stage2: Mutex::new(stage2),
            slots: Arc::default(),
            vcpus: Mutex::default(),
            setup: Mutex::new(Setup {
                vgic: VgicSetup::default(),
                features: None,
                firmware: Firmware::NEW,
                filter: Filter::default(),
                events: None,
                timers: TIMER_INTERRUPTS,
                devices: Vec::new(),
                owner: None,
            }),
            machine: Once::new(),
            counter_offset: AtomicU64::new(0),
            is_offset: AtomicBool::new(false),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// KVM_SET_USER_MEMORY_REGION for a slot that `memory` backs whole.
    ///
    /// # Errors
    ///
    /// `EINVAL` if not page aligned; `EEXIST` if it overlaps another slot; `EFAULT` beyond the IPA space; `ENOMEM`.
    pub fn set_user_memory_region(&self, ipa: Ipa, memory: Block) -> Result<(), Errno> {
        self.set_memory(ipa, memory, Memory::Normal)
    }

    /// Gives the VM that owns the machine memory, at its own address.
    ///
    /// # Errors
    ///
    /// As [`set_user_memory_region`](Self::set_user_memory_region).
    pub fn set_owned_memory(&self, memory: Block) -> Result<(), Errno> {
        self.set_memory(Ipa(memory.range().start.0), memory, Memory::Owned)
    }

    fn set_memory(&self, ipa: Ipa, memory: Block, kind: Memory) -> Result<(), Errno> {
        let range = memory.range();
        let size = range.end.0 - range.start.0;
        let end = ipa.checked_add(size).ok_or(Errno::EINVAL)?;
        if !ipa.is_aligned(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        let mut stage2 = self.stage2.lock();
        if end.0 > 1 << stage2.ipa_bits() {
            return Err(Errno::EFAULT);
        }
        stage2.map(ipa, range.start, size, kind, &AllGuests)?;
        self.slots.0.lock().push(Slot { ipa, memory: Arc::new(memory), kind });
        Ok(())
    }

    /// Its memory, as guest addresses, in no order.
    pub fn memory_ranges(&self) -> Vec<Range<u64>> {
        self.slots.0.lock().iter().map(|slot| slot.ipa.0..slot.ipa.0 + slot.size()).collect()
    }

    /// Copies into the VM's memory; `false` if some of it is not memory (what comes before may have been written).
    pub fn write_memory(&self, ipa: Ipa, bytes: &[u8]) -> bool {
        self.slots.write(ipa, bytes)
    }

    /// Its memory.
    pub(super) fn slots(&self) -> &Slots {
        &self.slots
    }

    /// Clears all memory of the VM.
    pub fn clear_memory(&self) {
        for slot in self.slots.0.lock().iter() {
            slot.memory.clear();
        }
    }

    /// Makes what was written to the VM's memory visible to a guest that starts with its caches off.
    pub fn publish_memory(&self) {
        for slot in self.slots.0.lock().iter() {
            slot.memory.publish(slot.kind == Memory::Owned);
        }
    }

    /// KVM_CREATE_VCPU.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an id beyond 511, or with a vGICv2 beyond 7; `EBUSY` once the vGIC is initialised; `EEXIST` if there is one with this id;
    /// `EINVAL` if ids leave a gap (keel's vCPU ids are indices).
    pub fn create_vcpu(&self, id: usize) -> Result<Arc<Vcpu>, Errno> {
        self.create_vcpu_of(id, VIRT.affinity(id))
    }

    /// As [`create_vcpu`](Self::create_vcpu), with an affinity (MPIDR_EL1's layout) of the caller's choice.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn create_vcpu_of(&self, id: usize, affinity: u64) -> Result<Arc<Vcpu>, Errno> {
        {
            let setup = self.setup.lock();
            if id >= setup.vgic.max_vcpus() {
                return Err(Errno::EINVAL);
            }
            if setup.vgic.initialised {
                return Err(Errno::EBUSY);
            }
        }
        let mut vcpus = self.vcpus.lock();
        if id < vcpus.len() {
            return Err(Errno::EEXIST);
        }
        if id != vcpus.len() {
            return Err(Errno::EINVAL);
        }
        // The virtual counter starts near zero when the last vCPU is created, for all of them alike.
        if !self.is_offset.load(Ordering::Relaxed) {
            self.counter_offset.store(crate::arch::timer::now(), Ordering::Relaxed);
        }
        let vcpu = Arc::new(Vcpu::new(id, affinity));
        vcpus.push(vcpu.clone());
        Ok(vcpu)
    }

    /// The vCPU with this id.
    pub fn vcpu(&self, id: usize) -> Option<Arc<Vcpu>> {
        self.vcpus.lock().get(id).cloned()
    }

    /// Features that all vCPUs of a VM share: the first initialised vCPU sets them.
    ///
    /// # Errors
    ///
    /// `EINVAL` if this one differs.
    pub(super) fn agree_on_features(&self, features: u32) -> Result<(), Errno> {
        let mut setup = self.setup.lock();
        match setup.features {
            Some(agreed) if agreed != features => Err(Errno::EINVAL),
            _ => {
                setup.features = Some(features);
                Ok(())
            }
        }
    }

    /// Whether the vCPUs were initialised with this feature.
    pub(super) fn has_feature(&self, feature: u32) -> bool {
        self.setup.lock().features.is_some_and(|features| features & 1 << feature != 0)
    }

    /// The version of the PMU that vCPUs may have (ID_AA64DFR0_EL1.PMUVer); 0 for none.
    pub(super) fn pmu_version(&self) -> u8 {
        self.id_registers.pmu_version()
    }

    /// Whether a vCPU has run.
    pub(super) fn has_run(&self) -> bool {
        self.machine.is_completed()
    }

    /// Whether there is an interrupt controller, and whether it is initialised with interrupt `intid`.
    pub(super) fn vgic_has(&self, intid: u32) -> (bool, Result<(), Errno>) {
        let vgic = &self.setup.lock().vgic;
        let has = if !vgic.initialised {
            Err(Errno::ENODEV)
        } else if intid < 32 + vgic.spis() as u32 {
            Ok(())
        } else {
            Err(Errno::EINVAL)
        };
        (vgic.version.is_some(), has)
    }

    /// The interrupts of every vCPU's PMU.
    pub(super) fn pmu_interrupts(&self) -> Vec<Option<u32>> {
        self.vcpus.lock().iter().map(|vcpu| vcpu.pmu.lock().interrupt).collect()
    }

    /// KVM_ARM_VCPU_PMU_V3_FILTER.
    ///
    /// # Errors
    ///
    /// Those of [`pmu::filter_events`].
    pub(super) fn filter_events(&self, range: &PmuEventFilter) -> Result<(), Errno> {
        let ran = self.has_run();
        pmu::filter_events(&mut self.setup.lock().events, range, self.pmu_version(), ran)
    }

    /// KVM_ARM_VCPU_TIMER_IRQ_*: the interrupt of a timer, of all vCPUs alike.
    ///
    /// # Errors
    ///
    /// Those of [`pmu::check_timer`]; `EINVAL` without an interrupt controller.
    pub(super) fn set_timer_interrupt(&self, attribute: u64, intid: u64) -> Result<(), Errno> {
        let ran = self.has_run();
        let mut setup = self.setup.lock();
        if setup.vgic.version.is_none() {
            return Err(Errno::EINVAL);
        }
        let (place, intid) = pmu::check_timer(attribute, intid, ran)?;
        if let Some(slot) = setup.timers.get_mut(place) {
            *slot = intid;
        }
        Ok(())
    }

    /// What both counters are behind the machine's from now on, in ticks.
    ///
    /// # Errors
    ///
    /// `EBUSY` once a vCPU has run (in KVM: while one runs).
    pub(super) fn offset_counters(&self, offset: u64) -> Result<(), Errno> {
        if self.has_run() {
            return Err(Errno::EBUSY);
        }
        self.is_offset.store(true, Ordering::Relaxed);
        self.counter_offset.store(offset, Ordering::Relaxed);
        Ok(())
    }

    /// The interrupts of the timers, by attribute.
    pub(super) fn timer_interrupts(&self) -> [u32; 4] {
        self.setup.lock().timers
    }

    fn surroundings(&self, setup: &Setup) -> Surroundings {
        Surroundings {
            psci_0_2: setup.features.is_some_and(|features| features & (1 << feature::PSCI_0_2) != 0),
            ran: self.machine.is_completed(),
            mitigation: physical::mitigation,
        }
    }

    /// The version of PSCI that guests see.
    pub fn psci_version(&self) -> psci::Version {
        let setup = self.setup.lock();
        setup.firmware.psci_version(self.surroundings(&setup).psci_0_2)
    }

    /// KVM_GET_ONE_REG of a firmware register.
    pub(super) fn firmware_register(&self, register: firmware::Register) -> u64 {
        let setup = self.setup.lock();
        setup.firmware.get(register, &self.surroundings(&setup))
    }

    /// KVM_SET_ONE_REG of a firmware register.
    ///
    /// # Errors
    ///
    /// Those of [`Firmware::set`].
    pub(super) fn set_firmware_register(&self, register: firmware::Register, value: u64) -> Result<(), Errno> {
        let mut setup = self.setup.lock();
        let around = self.surroundings(&setup);
        setup.firmware.set(register, value, &around)?;
        // The version alone may still change when the VM has run.
        if let Some(machine) = self.machine.get() {
            machine.set_psci_version(setup.firmware.psci_version(around.psci_0_2));
        }
        Ok(())
    }

    /// Changes the filter; `change` is told whether a vCPU has run.
    pub(super) fn change_filter(
        &self,
        change: impl FnOnce(&mut Filter, bool) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        let mut setup = self.setup.lock();
        change(&mut setup.filter, self.machine.is_completed())
    }

    /// The optional calls it has.
    pub fn services(&self) -> Services {
        self.setup.lock().firmware.services
    }

    /// Changes them.
    ///
    /// # Errors
    ///
    /// `EBUSY` once a vCPU has run.
    pub(super) fn change_services(&self, change: impl FnOnce(&mut Services)) -> Result<(), Errno> {
        if self.machine.is_completed() {
            return Err(Errno::EBUSY);
        }
        change(&mut self.setup.lock().firmware.services);
        Ok(())
    }

    /// KVM_CREATE_DEVICE.
    ///
    /// # Errors
    ///
    /// `ENODEV` for a type that keel does not have on this machine: a GICv3's VMs have a vGICv3 and can have an ITS, a GICv2's a
    /// vGICv2; `EEXIST` if there is an interrupt controller, or an ITS, already; `EBUSY` once a vCPU has run; `E2BIG` if there
    /// are more vCPUs than it can have.
    pub fn create_device(&self, kind: u32) -> Result<(), Errno> {
        let version = match kind {
            DEVICE_ARM_VGIC_ITS => return self.create_its(),
            DEVICE_ARM_VGIC_V2 if physical::has_gicv2() => Version::V2,
            DEVICE_ARM_VGIC_V3 if !physical::has_gicv2() && features::has_gic_system_registers() => Version::V3,
            _ => return Err(Errno::ENODEV),
        };
        let vcpus = self.vcpus.lock().len();
        let mut setup = self.setup.lock();
        if setup.vgic.version.is_some() {
            return Err(Errno::EEXIST);
        }
        if self.machine.is_completed() {
            return Err(Errno::EBUSY);
        }
        let vgic = VgicSetup { version: Some(version), ..VgicSetup::default() };
        if vcpus > vgic.max_vcpus() {
            return Err(Errno::E2BIG);
        }
        setup.vgic = vgic;
        Ok(())
    }

    /// KVM_CREATE_IRQCHIP: a vGICv2.
    ///
    /// # Errors
    ///
    /// As [`create_device`](Self::create_device).
    pub fn create_irqchip(&self) -> Result<(), Errno> {
        self.create_device(DEVICE_ARM_VGIC_V2)
    }

    /// KVM_SET_DEVICE_ATTR of the vGIC.
    ///
    /// # Errors
    ///
    /// As KVM: `ENXIO` for an unknown attribute or no vGIC; `EEXIST`, `EINVAL`, `E2BIG` for addresses set twice,
    /// misaligned or beyond the IPA space; `EINVAL`, `EBUSY` for the number of interrupts; for registers, see
    /// `set_vgic_attr`.
    pub fn set_device_attr(&self, group: u32, attribute: u64, value: u64) -> Result<(), Errno> {
        if !matches!(
            (group, attribute),
            (vgic::GROUP_ADDR | vgic::GROUP_NR_IRQS, _) | (vgic::GROUP_CTRL, vgic::CTRL_INIT)
        ) {
            return self.set_vgic_attr(group, attribute, value);
        }
        let ipa_bits = self.stage2.lock().ipa_bits();
        let vcpus = self.vcpus.lock().len() as u64;
        let mut setup = self.setup.lock();
        let vgic = &mut setup.vgic;
        let version = vgic.version.ok_or(Errno::ENXIO)?;
        match (group, attribute) {
            (vgic::GROUP_ADDR, kind) => {
                use vgic::{
                    ADDR_V2_CPU, ADDR_V2_DIST, ADDR_V3_DIST, ADDR_V3_REDIST, DIST_SIZE, REDIST_SIZE, V2_ALIGNMENT,
                    V2_CPU_SIZE, V2_DIST_SIZE, V3_ALIGNMENT,
                };
                let (address, size, alignment) = match (version, kind) {
                    (Version::V2, ADDR_V2_DIST) => (&mut vgic.distributor, V2_DIST_SIZE, V2_ALIGNMENT),
                    (Version::V2, ADDR_V2_CPU) => (&mut vgic.cpu_interface, V2_CPU_SIZE, V2_ALIGNMENT),
                    (Version::V3, ADDR_V3_DIST) => (&mut vgic.distributor, DIST_SIZE, V3_ALIGNMENT),
                    (Version::V3, ADDR_V3_REDIST) => {
                        (&mut vgic.redistributors, REDIST_SIZE * vcpus.max(1), V3_ALIGNMENT)
                    }
                    _ => return Err(Errno::ENXIO),
                };
                set_address(address, value, size, alignment, ipa_bits)
            }
            (vgic::GROUP_NR_IRQS, 0) => {
                if !(64..=1023).contains(&value) || !value.is_multiple_of(32) {
                    return Err(Errno::EINVAL);
                }
                if vgic.interrupts.is_some() || vgic.initialised {
                    return Err(Errno::EBUSY);
                }
                vgic.interrupts = Some(value as u32);
                Ok(())
            }
            (vgic::GROUP_CTRL, vgic::CTRL_INIT) => {
                vgic.initialised = true;
                Ok(())
            }
            _ => Err(Errno::ENXIO),
        }
    }

    /// Adds a device that keel emulates beside the interrupt controller.
    ///
    /// # Errors
    ///
    /// `EBUSY` once a vCPU has run.
    pub fn add_device(&self, device: Device) -> Result<(), Errno> {
        if self.machine.is_completed() {
            return Err(Errno::EBUSY);
        }
        self.setup.lock().devices.push(device);
        Ok(())
    }

    /// Makes this the VM that owns the machine, before it has run; its vCPUs have the machine's affinities.
    ///
    /// # Errors
    ///
    /// `EBUSY` once a vCPU has run, `EEXIST` if it is already.
    pub fn set_owner(&self, owner: Owner) -> Result<(), Errno> {
        if self.machine.is_completed() {
            return Err(Errno::EBUSY);
        }
        // It sees the machine's time.
        self.counter_offset.store(0, Ordering::Relaxed);
        let mut setup = self.setup.lock();
        if setup.owner.is_some() {
            return Err(Errno::EEXIST);
        }
        setup.owner = Some(owner);
        Ok(())
    }

    /// Maps addresses of the machine for the VM that owns it, page aligned, where they are.
    ///
    /// # Errors
    ///
    /// As [`set_user_memory_region`](Self::set_user_memory_region).
    pub fn map_machine(&self, range: Range<Pa>, memory: Memory) -> Result<(), Errno> {
        if range.start < range.end {
            let (ipa, size) = (Ipa(range.start.0), range.end.0 - range.start.0);
            self.stage2.lock().map(ipa, range.start, size, memory, &AllGuests)?;
        }
        Ok(())
    }

    /// log2 of its IPA space in bytes.
    pub fn ipa_bits(&self) -> u32 {
        self.stage2.lock().ipa_bits()
    }

    /// What exits work on, made at the first run.
    ///
    /// # Errors
    ///
    /// As KVM at the first KVM_RUN: `ENXIO` if an address of the vGIC was not set, `EBUSY` if it was not initialised,
    /// `EINVAL` if devices overlap, timers and PMU share an interrupt, or a PMU was not initialised.
    pub fn machine(&self) -> Result<Arc<Machine>, Errno> {
        self.machine.try_call_once(|| self.freeze().map(Arc::new)).cloned()
    }

    fn freeze(&self) -> Result<Machine, Errno> {
        let psci = self.psci_version();
        let mut setup = self.setup.lock();
        let owner = setup.owner.take();
        let vgic = &setup.vgic;
        let needed = |address: Option<Ipa>| if owner.is_some() { Ok(Ipa(0)) } else { address.ok_or(Errno::ENXIO) };
        let mut stage2 = self.stage2.lock();
        let distributor = needed(vgic.distributor)?;
        let mut initialised = vgic.initialised || owner.is_some();
        let frames = if vgic.version == Some(Version::V2) {
            let cpu_interface = needed(vgic.cpu_interface)?;
            if distributor.0 < cpu_interface.0 + vgic::V2_CPU_SIZE
                && cpu_interface.0 < distributor.0 + vgic::V2_DIST_SIZE
            {
                return Err(Errno::EINVAL);
            }
            // Guests use the machine's own virtual CPU interface, which shows each CPU the vCPU it has.
            stage2.map(cpu_interface, gicv2::guest_interface(), vgic::V2_CPU_SIZE, Memory::Device, &AllGuests)?;
            // It needs nobody to say that it is complete.
            initialised = true;
            VgicFrames::V2 { distributor }
        } else {
            VgicFrames::V3 { distributor, redistributors: needed(vgic.redistributors)? }
        };
        let services = setup.firmware.services;
        let end = 1 << stage2.ipa_bits();
        let pmus = self.pmu_interrupts();
        let timers = [setup.timers[0], setup.timers[1]];
        pmu::check_private(timers, pmus.iter().copied())?;
        let has_pmu = setup.features.is_some_and(|features| features & 1 << feature::PMU_V3 != 0);
        let has_all = || self.vcpus.lock().iter().all(|vcpu| vcpu.pmu.lock().initialised);
        let is_ours = |intid: &u32| *intid < 32 + vgic.spis() as u32;
        if has_pmu && (!has_all() || !pmus.iter().all(|intid| intid.as_ref().is_some_and(is_ours))) {
            return Err(Errno::EINVAL);
        }
        let pages = services.has(Service::ProtectedMemory).then(|| PageStates::new(self.guest_memory(), end));
        Machine::new(MachineSetup {
            name: self.name.clone(),
            vcpus: self.vcpus.lock().clone(),
            spis: vgic.spis(),
            timers,
            pmu: has_pmu.then(|| (pmus, setup.events.clone())),
            vgic: frames,
            its: vgic.its.as_ref().map(|its| its.address),
            traps_common: vgic.traps_common,
            initialised,
            owner,
            devices: setup.devices.clone(),
            psci,
            services,
            filter: setup.filter.clone(),
            slots: self.slots.clone(),
            pages,
            id_registers: if has_pmu { self.id_registers.clone() } else { self.id_registers.clone().without_pmu() },
            serial: self.serial,
            vttbr: u64::from(self.vmid.0) << 48 | stage2.root().0,
            vtcr: stage2.vtcr(mmu::ps_field(), features::has_vmid16()),
            ipa_bits: stage2.ipa_bits(),
            counter_offset: self.counter_offset.load(Ordering::Relaxed),
            is_offset: self.is_offset.load(Ordering::Relaxed),
        })
    }

    /// The memory that is the guest's to share: all but what holds PV time structures.
    fn guest_memory(&self) -> Vec<core::ops::Range<u64>> {
        let vcpus = self.vcpus.lock();
        let is_ours =
            |slot: &Slot| vcpus.iter().any(|vcpu| vcpu.stolen.address().is_some_and(|ipa| slot.contains(Ipa(ipa))));
        let slots = self.slots.0.lock();
        slots.iter().filter(|slot| !is_ours(slot)).map(|slot| slot.ipa.0..slot.ipa.0 + slot.size()).collect()
    }

    /// Where a guest address is in the machine's memory.
    pub fn translate(&self, ipa: Ipa) -> Option<Pa> {
        self.stage2.lock().translate(ipa).map(|(pa, _)| pa)
    }
}

pub(super) fn set_address(
    slot: &mut Option<Ipa>,
    value: u64,
    size: u64,
    alignment: u64,
    ipa_bits: u32,
) -> Result<(), Errno> {
    if slot.is_some() {
        return Err(Errno::EEXIST);
    }
    let end = value.checked_add(size).ok_or(Errno::EINVAL)?;
    if !value.is_multiple_of(alignment) {
        return Err(Errno::EINVAL);
    }
    if end > 1 << ipa_bits {
        return Err(Errno::E2BIG);
    }
    *slot = Some(Ipa(value));
    Ok(())
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Order matters: no translation may outlive the memory it leads to. The VMID's own drop flushes again.
        tlb::flush_all_guests();
    }
}
