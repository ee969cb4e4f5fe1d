//! KVM's calls on a VM: memory, vCPUs, the interrupt controller; and freezing all that into a machine.

use super::{
    Errno,
    bindings::Bindings,
    filter::Filter,
    firmware::{self, Firmware, Surroundings},
    init::{self, Offer},
    ioctl::{self, Api},
    machine::{Controller, Device, Machine, MachineSetup, Pmu, Serial, User, VgicFrames},
    memory::{Piece, Slot, Slots},
    owner::Owner,
    pages::PageStates,
    physical,
    pmu::{self, TIMER_INTERRUPTS},
    registers::{self, Options},
    slots::MemoryRegion,
    translation::Translation,
    uapi::{FEATURE_ID_RANGE_SIZE, PmuEventFilter, RegMaskRange, feature, vgic},
    vcpu::Vcpu,
    vgic::VgicSetup,
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
        frame::{self, Block, TableMemory},
        stage2::{Memory, Stage2, Stage2Error, Tlb},
    },
    vdev::{
        idregs::{GuestIdRegisters, IdRegister},
        platform::VIRT,
        vgic::Version,
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
pub(super) struct AllGuests;

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

#[derive(Debug)]
pub(super) struct Setup {
    pub(super) vgic: VgicSetup,
    features: Option<u32>,
    id_registers: GuestIdRegisters,
    firmware: Firmware,
    filter: Filter,
    /// Events that the PMU may count, if not all.
    events: Option<EventSet>,
    /// Event counters of each PMU, if not all that the machine has for guests.
    event_counters: Option<u8>,
    /// Interrupts of the timers, by attribute of KVM_ARM_VCPU_TIMER_CTRL.
    timers: [u32; 4],
    devices: Vec<Device>,
    /// The VM owns the machine.
    owner: Option<Owner>,
    /// It may make VMs.
    api: Option<Api>,
    /// What no device claims is for whoever runs it, or an event that it has bound.
    pub(super) user: Option<Arc<Bindings>>,
    /// So are accesses that hardware does not describe (KVM_CAP_ARM_NISV_TO_USER).
    nisv_to_user: bool,
}

impl Setup {
    fn has_pointer_authentication(&self) -> bool {
        self.features.is_some_and(|features| features & init::POINTER_AUTHENTICATION != 0)
    }

    fn has_pmu(&self) -> bool {
        self.features.is_some_and(|features| features & 1 << feature::PMU_V3 != 0)
    }

    fn has_aarch32_el1(&self) -> bool {
        self.features.is_some_and(|features| features & 1 << feature::EL1_32BIT != 0)
    }
}

/// A virtual machine.
#[derive(Debug)]
pub struct Vm {
    name: String,
    vmid: Vmid,
    serial: Serial,
    stage2: Arc<Translation>,
    slots: Arc<Slots>,
    vcpus: Mutex<Vec<Arc<Vcpu>>>,
    pub(super) setup: Mutex<Setup>,
    pub(super) machine: Once<Arc<Machine>>,
    counter_offset: AtomicU64,
    /// KVM_ARM_SET_COUNTER_OFFSET was called: the physical counter has that offset too.
    is_offset: AtomicBool,
    logs_begin_full: AtomicBool,
    is_dead: AtomicBool,
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
            serial,
            stage2: Arc::new(Translation::new(stage2)),
            slots: Arc::default(),
            vcpus: Mutex::default(),
            setup: Mutex::new(Setup {
                vgic: VgicSetup::default(),
                features: None,
                id_registers,
                firmware: Firmware::NEW,
                filter: Filter::default(),
                events: None,
                event_counters: None,
                timers: TIMER_INTERRUPTS,
                devices: Vec::new(),
                owner: None,
                api: None,
                user: None,
                nisv_to_user: false,
            }),
            machine: Once::new(),
            counter_offset: AtomicU64::new(0),
            is_offset: AtomicBool::new(false),
            logs_begin_full: AtomicBool::new(false),
            is_dead: AtomicBool::new(false),
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
        let mut stage2 = self.stage2.change();
        if end.0 > 1 << stage2.ipa_bits() {
            return Err(Errno::EFAULT);
        }
        stage2.map(ipa, range.start, size, kind, &AllGuests)?;
        self.slots.list.lock().push(Slot { ipa, piece: Piece::whole(memory), kind });
        Ok(())
    }

    /// Maps a slot whose memory is the caller's of KVM's API, at its address there.
    ///
    /// # Errors
    ///
    /// `EFAULT` if some of that is not memory; `ENOMEM`; and nothing is mapped then.
    pub(super) fn add_user_memory(&self, region: &MemoryRegion, caller: &Slots) -> Result<(), Errno> {
        let user = region.userspace_addr..region.userspace_addr.saturating_add(region.memory_size);
        let pieces = caller.pieces(user).ok_or(Errno::EFAULT)?;
        let kind = ioctl::api::kind_of(region);
        let mut stage2 = self.stage2.change();
        let mut slots = self.slots.list.lock();
        slots.try_reserve(pieces.len()).map_err(|_| Errno::ENOMEM)?;
        let mut at = region.guest_phys_addr;
        for piece in pieces {
            let pa = Pa(piece.memory.range().start.0 + piece.offset);
            if let Err(error) = stage2.map(Ipa(at), pa, piece.size, kind, &AllGuests) {
                // Whole pieces, which need no memory to be taken out.
                let _ = stage2.unmap(Ipa(region.guest_phys_addr), at - region.guest_phys_addr, &AllGuests);
                slots.retain(|slot| !region.guest().contains(&slot.ipa.0));
                return Err(error.into());
            }
            let size = piece.size;
            slots.push(Slot { ipa: Ipa(at), piece, kind });
            at += size;
        }
        Ok(())
    }

    /// Starts or ends the log of writes to a slot.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn log_user_memory(&self, region: &MemoryRegion, log: bool) -> Result<(), Errno> {
        let slot = region.slot;
        if !log {
            // Pages that are read-only still become writable as they are written to.
            self.slots.dirty.stop(slot);
            return Ok(());
        }
        // A bit for each page.
        if !frame::can_spare(region.memory_size / PAGE_SIZE / 8) {
            return Err(Errno::ENOMEM);
        }
        self.slots.dirty.start(slot, region.guest())?;
        if self.logs_begin_full.load(Ordering::Relaxed) {
            // Nothing is noted twice: pages are watched from when they are cleared.
            self.slots.dirty.fill(slot);
            return Ok(());
        }
        self.protect(region.guest(), || Ok(())).inspect_err(|_| self.slots.dirty.stop(slot))
    }

    /// Makes pages read-only, and does what `log` does with their log before a page can be noted and writable again.
    fn protect(&self, guest: Range<u64>, log: impl FnOnce() -> Result<(), Errno>) -> Result<(), Errno> {
        let length = guest.end - guest.start;
        let mut stage2 = self.stage2.change();
        stage2.write_protect(Ipa(guest.start), length, &AllGuests)?;
        log()
    }

    /// KVM_GET_DIRTY_LOG: hands the bitmap to `take`, word by word, and begins a new one.
    ///
    /// # Errors
    ///
    /// `ENOENT` if the slot is not logged; those of `take`.
    pub(super) fn dirty_log(
        &self,
        region: &MemoryRegion,
        take: impl FnMut(usize, u64) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        if !self.slots.dirty.has(region.slot) {
            return Err(Errno::ENOENT);
        }
        // Read-only first: a write after that is noted after what is taken here.
        self.protect(region.guest(), || self.slots.dirty.take(region.slot, take))
    }

    /// KVM_GET_DIRTY_LOG with KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: hands the bitmap to `see`, and leaves it.
    ///
    /// # Errors
    ///
    /// As [`dirty_log`](Self::dirty_log).
    pub(super) fn see_dirty_log(
        &self,
        region: &MemoryRegion,
        see: impl FnMut(usize, u64) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        self.slots.dirty.read(region.slot, see)
    }

    /// KVM_CLEAR_DIRTY_LOG, of 64 pages from page 64 `n` of the slot: those of `bits` begin anew.
    ///
    /// # Errors
    ///
    /// `ENOENT` if the slot is not logged.
    pub(super) fn clear_dirty_pages(&self, region: &MemoryRegion, n: usize, bits: u64) -> Result<(), Errno> {
        // Held throughout: a page that is being made writable is noted before this, or after.
        let mut stage2 = self.stage2.change();
        let (gone, start) = self.slots.dirty.remove(region.slot, n, bits).ok_or(Errno::ENOENT)?;
        if gone == 0 {
            return Ok(());
        }
        // Runs of pages from the first to the last: what lies between is noted again when it is written to.
        let first = start + u64::from(gone.trailing_zeros()) * PAGE_SIZE;
        let end = (start + u64::from(64 - gone.leading_zeros()) * PAGE_SIZE).min(region.guest().end);
        stage2.write_protect(Ipa(first), end - first, &AllGuests).map_err(|error| {
            // Some may still be writable: they stay in the log.
            self.slots.dirty.mark(first..end);
            error.into()
        })
    }

    /// KVM_DIRTY_LOG_INITIALLY_SET: logs begin with all pages in them.
    pub(super) fn begin_logs_full(&self, full: bool) {
        self.logs_begin_full.store(full, Ordering::Relaxed);
    }

    /// KVM_ENABLE_CAP for KVM_CAP_ARM_NISV_TO_USER.
    ///
    /// # Errors
    ///
    /// `EBUSY` once a vCPU has run: what exits work on is fixed then.
    pub(super) fn enable_nisv_to_user(&self) -> Result<(), Errno> {
        if self.machine.is_completed() {
            return Err(Errno::EBUSY);
        }
        self.setup.lock().nisv_to_user = true;
        Ok(())
    }

    /// Takes such a slot out again.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(super) fn remove_user_memory(&self, region: &MemoryRegion) -> Result<(), Errno> {
        self.stage2.change().unmap(Ipa(region.guest_phys_addr), region.memory_size, &AllGuests)?;
        self.slots.dirty.stop(region.slot);
        self.slots.list.lock().retain(|slot| !region.guest().contains(&slot.ipa.0));
        Ok(())
    }

    /// Its memory, as guest addresses, in no order.
    pub fn memory_ranges(&self) -> Vec<Range<u64>> {
        self.slots.list.lock().iter().map(|slot| slot.ipa.0..slot.ipa.0 + slot.size()).collect()
    }

    /// Copies into the VM's memory; `false` if some of it is not memory (what comes before may have been written).
    pub fn write_memory(&self, ipa: Ipa, bytes: &[u8]) -> bool {
        self.slots.write(ipa, bytes)
    }

    /// Its memory.
    pub(super) fn slots(&self) -> &Slots {
        &self.slots
    }

    /// The same, for devices that outlive this call.
    pub(super) fn shared_slots(&self) -> &Arc<Slots> {
        &self.slots
    }

    /// Clears all memory of the VM.
    pub fn clear_memory(&self) {
        for slot in self.slots.list.lock().iter() {
            slot.piece.memory.clear();
        }
    }

    /// Makes what was written to the VM's memory visible to a guest that starts with its caches off.
    pub fn publish_memory(&self) {
        for slot in self.slots.list.lock().iter() {
            slot.piece.memory.publish_part(slot.piece.offset, slot.piece.size, slot.kind == Memory::Owned);
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
            if setup.vgic.is_initialised() {
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

    /// Its vCPUs so far, by id.
    pub(super) fn vcpus(&self) -> Vec<Arc<Vcpu>> {
        self.vcpus.lock().clone()
    }

    /// The vCPU with this id.
    pub fn vcpu(&self, id: usize) -> Option<Arc<Vcpu>> {
        self.vcpus.lock().get(id).cloned()
    }

    /// Features that all vCPUs of a VM share: the first initialised vCPU sets them, and the ID registers say so.
    ///
    /// # Errors
    ///
    /// `EINVAL` if this one differs; `ENODEV` for a PMU on a machine without.
    pub(super) fn agree_on_features(&self, features: u32) -> Result<(), Errno> {
        let mut setup = self.setup.lock();
        match setup.features {
            Some(agreed) if agreed != features => Err(Errno::EINVAL),
            Some(_) => Ok(()),
            None => {
                if features & 1 << feature::PMU_V3 == 0 {
                    setup.id_registers.hide_pmu();
                } else if setup.id_registers.pmu_version() == 0 {
                    return Err(Errno::ENODEV);
                }
                setup.features = Some(features);
                if features & init::POINTER_AUTHENTICATION == 0 {
                    setup.id_registers.hide_pointer_authentication();
                }
                Ok(())
            }
        }
    }

    /// What its vCPUs can have.
    pub fn offer(&self) -> Offer {
        Offer {
            pointer_authentication: self.with_id_registers(GuestIdRegisters::has_pointer_authentication),
            aarch32_el1: features::has_aarch32_el1(),
        }
    }

    /// What its vCPUs have of the optional registers.
    pub(super) fn options(&self) -> Options {
        let setup = self.setup.lock();
        Options {
            pointer_authentication: setup.has_pointer_authentication(),
            aarch32_el1: setup.has_aarch32_el1(),
            pmu: setup.has_pmu(),
        }
    }

    /// Whether a vCPU has run: what the machine is made of is settled.
    pub fn has_run(&self) -> bool {
        self.machine.is_completed()
    }

    /// Its ID registers.
    pub(super) fn with_id_registers<T>(&self, see: impl FnOnce(&GuestIdRegisters) -> T) -> T {
        see(&self.setup.lock().id_registers)
    }

    /// Changes one, for all its vCPUs.
    ///
    /// # Errors
    ///
    /// `EINVAL` for more than the VM can have, `EBUSY` for a change once a vCPU has run.
    pub(super) fn set_id_register(&self, register: IdRegister, value: u64) -> Result<(), Errno> {
        Ok(self.setup.lock().id_registers.set(register, value, self.has_run())?)
    }

    /// KVM_ARM_GET_REG_WRITABLE_MASKS: what goes to `range.addr`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for another range than KVM_ARM_FEATURE_ID_RANGE, or reserved fields that are not zero.
    pub fn reg_writable_masks(&self, range: &RegMaskRange) -> Result<[u64; FEATURE_ID_RANGE_SIZE], Errno> {
        if range.range != 0 || range.reserved != [0; 13] {
            return Err(Errno::EINVAL);
        }
        Ok(self.with_id_registers(registers::writable_masks))
    }

    /// CNTVOFF_EL2 of its vCPUs.
    pub fn counter_offset(&self) -> u64 {
        self.counter_offset.load(Ordering::Relaxed)
    }

    /// What the physical counter of its vCPUs is behind the machine's.
    pub(super) fn physical_offset(&self) -> u64 {
        if self.is_offset.load(Ordering::Relaxed) { self.counter_offset() } else { 0 }
    }

    /// Sets CNTVOFF_EL2, unless both counters were given one for good; a vCPU has it from when a CPU next loads it.
    pub(super) fn offset_virtual_counter(&self, offset: u64) {
        if self.is_offset.load(Ordering::Relaxed) {
            return;
        }
        self.counter_offset.store(offset, Ordering::Relaxed);
        if let Some(machine) = self.machine.get() {
            machine.set_counter_offset(offset);
        }
    }

    /// Whether the vCPUs were initialised with this feature.
    pub(super) fn has_feature(&self, feature: u32) -> bool {
        self.setup.lock().features.is_some_and(|features| features & 1 << feature != 0)
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
        let mut setup = self.setup.lock();
        let version = setup.id_registers.pmu_version();
        pmu::filter_events(&mut setup.events, range, version, ran)
    }

    /// How many event counters each PMU has (PMCR_EL0.N).
    pub(super) fn event_counters(&self) -> u8 {
        self.setup.lock().event_counters.unwrap_or_else(physical::guest_counters)
    }

    /// Sets it, unless a vCPU has run, or the machine cannot: it has fewer, or cannot have none (FEAT_HPMN0).
    pub(super) fn set_event_counters(&self, count: u8) {
        let can = count <= physical::guest_counters() && (count > 0 || features::has_hpmn0());
        if can && !self.has_run() {
            self.setup.lock().event_counters = Some(count);
        }
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

    /// Lets it make VMs, by KVM_IOCTL; before it has run.
    ///
    /// # Errors
    ///
    /// `EBUSY` once a vCPU has run.
    pub fn set_api(&self, api: Api) -> Result<(), Errno> {
        if self.machine.is_completed() {
            return Err(Errno::EBUSY);
        }
        self.setup.lock().api = Some(api);
        Ok(())
    }

    /// Accesses that no device claims are for whoever runs it (KVM_EXIT_MMIO); before it has run.
    pub(super) fn run_by_user(&self, bindings: &Arc<Bindings>) {
        self.setup.lock().user = Some(bindings.clone());
    }

    /// Maps addresses of the machine for the VM that owns it, page aligned, where they are.
    ///
    /// # Errors
    ///
    /// As [`set_user_memory_region`](Self::set_user_memory_region).
    pub fn map_machine(&self, range: Range<Pa>, memory: Memory) -> Result<(), Errno> {
        if range.start < range.end {
            let (ipa, size) = (Ipa(range.start.0), range.end.0 - range.start.0);
            self.stage2.change().map(ipa, range.start, size, memory, &AllGuests)?;
        }
        Ok(())
    }

    /// log2 of its IPA space in bytes.
    pub fn ipa_bits(&self) -> u32 {
        self.stage2.look().ipa_bits()
    }

    /// What exits work on, made at the first run.
    ///
    /// # Errors
    ///
    /// As KVM at the first KVM_RUN: `ENXIO` if an address of the vGIC was not set, `EBUSY` if it was not initialised,
    /// `EINVAL` if devices overlap, timers and PMU share an interrupt, or a PMU was not initialised.
    pub fn machine(&self) -> Result<Arc<Machine>, Errno> {
        self.running().cloned()
    }

    /// As [`machine`](Self::machine), for as long as the VM is there, if it is there already.
    pub(super) fn frozen(&self) -> Option<&Machine> {
        self.machine.get().map(|machine| &**machine)
    }

    /// As [`machine`](Self::machine), for as long as the VM is there.
    pub(super) fn running(&self) -> Result<&Arc<Machine>, Errno> {
        let machine = self.machine.try_call_once(|| self.freeze().map(Arc::new))?;
        self.tell_of_stores(machine);
        Ok(machine)
    }

    /// Its interrupt controller was not complete when a vCPU was to run for the first time: nothing can be done with it any
    /// more, as in KVM.
    pub(super) fn is_dead(&self) -> bool {
        self.is_dead.load(Ordering::Relaxed)
    }

    /// Where the parts of its interrupt controller are that keel emulates; a GICv2's CPU interface is mapped.
    fn place_vgic(&self, vgic: &mut VgicSetup) -> Result<VgicFrames, Errno> {
        let needed = |address: Option<Ipa>| address.ok_or(Errno::ENXIO);
        match vgic.version {
            None => Ok(VgicFrames::None),
            Some(Version::V2) => {
                let (distributor, cpu_interface) = (needed(vgic.distributor)?, needed(vgic.cpu_interface)?);
                if distributor.0 < cpu_interface.0 + vgic::V2_CPU_SIZE
                    && cpu_interface.0 < distributor.0 + vgic::V2_DIST_SIZE
                {
                    return Err(Errno::EINVAL);
                }
                // Guests use the machine's own virtual CPU interface, which shows each CPU the vCPU it has.
                let (at, size) = (gicv2::guest_interface(), vgic::V2_CPU_SIZE);
                if !vgic.is_mapped {
                    self.stage2.change().map(cpu_interface, at, size, Memory::Device, &AllGuests)?;
                    vgic.is_mapped = true;
                }
                Ok(VgicFrames::V2 { distributor })
            }
            Some(Version::V3) => {
                let redistributors = vgic.redistributor_frames(self.vcpus.lock().len(), self.ipa_bits())?;
                let distributor = needed(vgic.distributor)?;
                if !vgic.is_initialised() {
                    return Err(Errno::EBUSY);
                }
                Ok(VgicFrames::V3 { distributor, redistributors })
            }
        }
    }

    fn freeze(&self) -> Result<Machine, Errno> {
        let psci = self.psci_version();
        let mut setup = self.setup.lock();
        let (owner, api) = (setup.owner.take(), setup.api.take());
        let frames = if owner.is_some() {
            VgicFrames::None
        } else {
            let is_user = setup.user.is_some();
            let placed = self.place_vgic(&mut setup.vgic);
            placed.inspect_err(|_| self.is_dead.store(is_user, Ordering::Relaxed))?
        };
        if setup.vgic.version.is_none() && owner.is_none() {
            setup.id_registers.hide_gic();
        }
        // A GICv2 needs nobody to say that it is complete.
        let controller = setup.vgic.initialise(&self.vcpus(), &self.slots)?;
        let vgic = &setup.vgic;
        let stage2 = self.stage2.look();
        let services = setup.firmware.services;
        let end = 1 << stage2.ipa_bits();
        let pmus = self.pmu_interrupts();
        let timers = [setup.timers[0], setup.timers[1]];
        pmu::check_private(timers, pmus.iter().copied())?;
        let has_pmu = setup.has_pmu();
        let has_all = || self.vcpus.lock().iter().all(|vcpu| vcpu.pmu.lock().initialised);
        let is_ours = |intid: &u32| *intid < 32 + vgic.spis() as u32;
        // Without an interrupt controller it has none of its interrupts.
        let can_interrupt = |intid: &Option<u32>| match vgic.version {
            None => intid.is_none(),
            Some(_) => intid.as_ref().is_some_and(is_ours),
        };
        if has_pmu && !(has_all() && pmus.iter().all(can_interrupt)) {
            return Err(Errno::EINVAL);
        }
        let pages = services.has(Service::ProtectedMemory).then(|| PageStates::new(self.guest_memory(), end));
        Machine::new(MachineSetup {
            name: self.name.clone(),
            vcpus: self.vcpus.lock().clone(),
            timers,
            pmu: has_pmu.then(|| Pmu {
                interrupts: pmus,
                events: setup.events.clone(),
                counters: setup.event_counters.unwrap_or_else(physical::guest_counters),
            }),
            vgic: controller,
            frames,
            controller: match (&owner, vgic.version) {
                (Some(_), _) => Controller::Machine,
                (None, Some(_)) => Controller::Virtual,
                (None, None) => Controller::None,
            },
            its: vgic.its.as_ref().map(|its| (its.its.clone(), its.address)),
            traps_common: vgic.traps_common,
            owner,
            api,
            user: setup.user.as_ref().map(|bindings| User {
                stage2: self.stage2.clone(),
                end: Ipa(end),
                nisv: setup.nisv_to_user,
                unbound: AtomicU64::new(end),
                bindings: bindings.clone(),
            }),
            devices: setup.devices.clone(),
            psci,
            services,
            filter: setup.filter.clone(),
            slots: self.slots.clone(),
            pages,
            id_registers: setup.id_registers.clone(),
            pointer_authentication: setup.has_pointer_authentication(),
            aarch32: setup.has_aarch32_el1(),
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
        let slots = self.slots.list.lock();
        slots.iter().filter(|slot| !is_ours(slot)).map(|slot| slot.ipa.0..slot.ipa.0 + slot.size()).collect()
    }

    /// Where a guest address is in the machine's memory.
    pub fn translate(&self, ipa: Ipa) -> Option<Pa> {
        self.stage2.look().translate(ipa).map(|(pa, _)| pa)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Order matters: no translation may outlive the memory it leads to. The VMID's own drop flushes again.
        tlb::flush_all_guests();
    }
}
