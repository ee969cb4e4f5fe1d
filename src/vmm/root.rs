//! The VM that owns the machine: made of the machine's own addresses, devices and interrupts.
//!
//! Its RAM is as much of the machine's as its configuration asks for, where it is; everything that is no RAM is mapped
//! too, except what keel must see: the interrupt controller. It has every CPU that keel has, with its real affinity. Its
//! device tree is the machine's, with the RAM it got and without what it is not offered. When it sends keel away
//! (HVC_RESET_VECTORS, HVC_SOFT_RESTART) it simply goes on with all that.

use super::{
    config::VmConfig,
    error::{ConfigError, OutsideRam},
    guest_tree::Entropy,
    lifecycle::StartError,
    load::{GuestMemory, Loaded},
    payload,
    tree::Tree,
};
use crate::{
    arch::{cache, depart::Successor, image, stub},
    hypercall::relay::OwnerPsci,
    kvm::{Vm, bindings::OwnerEvents, owner::Owner},
    mm::{Ipa, Pa, addr::PAGE_SIZE, el2, frame::Block, stage2::Memory},
};
use alloc::{format, sync::Arc, vec::Vec};
use core::ops::Range;
use spin::Mutex;

/// The machine, for a VM that owns it.
#[derive(Debug)]
pub struct HostMachine {
    /// Its device tree.
    pub tree: &'static [u8],
    /// Everything that is no RAM, page aligned, without the interrupt controller's frames.
    pub devices: Vec<Range<Pa>>,
    /// Parts of RAM, page aligned, that the owner has besides: what the tree reserves for others than keel (firmware, frame
    /// buffers), or all RAM of one that was there first, but for what it gave keel.
    pub reserved: Vec<Range<Pa>>,
    /// The RAM that was set aside for it, from the lowest on, until it is made.
    pub ram: Mutex<Vec<Block>>,
    /// Affinity of each CPU, in the tree's order.
    pub mpidrs: Vec<u64>,
    /// The stub under which the owner runs already, and to which keel leaves it; none if keel was there first.
    pub successor: Option<Successor>,
    /// The firmware's PSCI.
    pub psci: OwnerPsci,
}

/// What of a VM's setup is different if it owns the machine; done before its vCPUs run. Returns its shared interrupts as events
/// for VMs of its own.
pub(super) fn make(
    vm: &Vm,
    machine: &HostMachine,
    memory: u64,
    cpus: &[usize],
) -> Result<Arc<OwnerEvents>, StartError> {
    let ram = core::mem::take(&mut *machine.ram.lock());
    let found: u64 = ram.iter().map(|block| block.range().end.0 - block.range().start.0).sum();
    if found < memory && machine.successor.is_none() {
        return Err(StartError::Memory { wanted: memory, free: found });
    }
    for block in ram {
        vm.set_owned_memory(block).map_err(|errno| StartError::Api("KVM_SET_USER_MEMORY_REGION", errno))?;
    }
    let map = |errno| StartError::Api("mapping the machine's devices", errno);
    let end = Pa(1 << vm.ipa_bits());
    for (ranges, kind) in [(&machine.devices, Memory::OwnedDevice), (&machine.reserved, Memory::Owned)] {
        for range in ranges {
            vm.map_machine(range.start..range.end.min(end), kind).map_err(map)?;
        }
    }
    for (index, &cpu) in cpus.iter().enumerate() {
        let api = |errno| StartError::Api("KVM_CREATE_VCPU", errno);
        let affinity = machine.mpidrs.get(cpu).copied().unwrap_or_default();
        vm.create_vcpu_of(index, affinity).map_err(api)?.set_cpu(cpu);
    }
    let successor = machine.successor.unwrap_or_else(Successor::own);
    let owner = Owner::new(cpus, successor, machine.successor.is_some()).map_err(StartError::Owner)?;
    let events = owner.events().clone();
    vm.set_owner(owner).map_err(|errno| StartError::Api("giving the machine to the VM", errno))?;
    prepare_stub(machine)?;
    Ok(events)
}

/// The stub that is under the owner once keel has left: its state is written now, and is in memory, not in caches.
fn prepare_stub(machine: &HostMachine) -> Result<(), StartError> {
    let range = image::resident();
    el2::map_ram(range.clone()).map_err(|_| StartError::Stub)?;
    let resident = stub::resident();
    resident.reset(machine.mpidrs.iter().copied());
    resident.set_psci(core::iter::once(machine.psci.version).chain(machine.psci.legacy));
    cache::clean_invalidate(range);
    // Where the console is, for its reports.
    cache::clean(image::rodata().start..image::data().end);
    Ok(())
}

struct OwnedMemory<'a>(&'a Vm);

impl GuestMemory for OwnedMemory<'_> {
    fn write(&mut self, address: Ipa, bytes: &[u8]) -> Result<(), OutsideRam> {
        if self.0.write_memory(address, bytes) { Ok(()) } else { Err(OutsideRam { address, size: bytes.len() as u64 }) }
    }

    fn zero(&mut self, _: Ipa, _: u64) -> Result<(), OutsideRam> {
        // The VM's memory was cleared before it was loaded.
        Ok(())
    }
}

/// Copies the images into the owner's RAM, with the machine's device tree.
///
/// # Errors
///
/// [`ConfigError`] as for every VM.
pub fn load(
    vm: &Vm,
    config: &VmConfig<'_>,
    machine: &HostMachine,
    entropy: &mut Entropy,
) -> Result<Loaded, ConfigError> {
    let tree = Tree::parse(machine.tree).map_err(|error| ConfigError::BadImage {
        image: format!("/configurations/{}", config.name),
        reason: format!("the machine's device tree: {error}"),
        expected: "a sound one",
    })?;
    let ram = joined(vm.memory_ranges());
    let kept = stub::resident_range(machine.mpidrs.len());
    let kept = kept.start.align_down(PAGE_SIZE).0..kept.end.align_up(PAGE_SIZE).unwrap_or(kept.end).0;
    // The first piece of RAM that everything fits into: programs are made for the lowest addresses.
    let mut attempts = ram.iter().map(|into| {
        let place = payload::Machine {
            tree: &tree,
            ram: &ram,
            into: into.clone(),
            taken: &[],
            kept: kept.clone(),
            vectors: stub::page().0,
            is_vm: true,
            pens: &[],
        };
        payload::load(config, &mut OwnedMemory(vm), &place, entropy)
    });
    let first = attempts.next().unwrap_or(Err(ConfigError::NoRoom {
        image: format!("/configurations/{}", config.name),
        size: config.memory,
        memory: 0,
    }));
    first.or_else(|error| attempts.find_map(Result::ok).ok_or(error))
}

/// Ranges in order, neighbours joined.
fn joined(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}
