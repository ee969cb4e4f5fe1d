//! All that a machine is but its memory: read with KVM's calls, and written into another machine.
//!
//! A vCPU's registers are those of KVM_GET_REG_LIST, in its order, the counters and timers among them; then its events,
//! whether it is on, and its part of the interrupt controller. A vGICv3 without an ITS is its registers and the levels of
//! its lines.

use crate::{cases::well, check_eq, harness::Check};
use alloc::{vec, vec::Vec};
use keel_kvm::{
    Device, Hypercall, Vcpu,
    uapi::{VcpuEvents, reg, vgic},
};

/// A vCPU's state: registers by id, and what is in none.
pub struct VcpuState {
    /// Ids and values, of which so many bytes count as the id says.
    pub registers: Vec<(u64, [u8; 16])>,
    events: VcpuEvents,
    mp_state: u32,
    /// The CPU interface, by attribute.
    interface: Vec<(u64, u64)>,
}

/// A machine's state.
pub struct State {
    /// vCPUs by number.
    pub vcpus: Vec<VcpuState>,
    /// Registers of the interrupt controller, by group and attribute.
    gic: Vec<(u32, u64, u32)>,
}

/// The registers of a vGICv3 that are its state, in the order in which they are restored: groups, and attributes.
fn gic_registers(vcpus: u64) -> impl Iterator<Item = (u32, u64)> {
    let words = |group, start: u64, count: u64| (0..count).map(move |n| (group, start + 4 * n));
    // GICD_IIDR; IGROUPR, ISENABLER, ISPENDR, ISACTIVER, IPRIORITYR, ICFGR, IROUTER of 224 SPIs; CTLR.
    let distributor =
        [(0x8, 1), (0x84, 7), (0x104, 7), (0x204, 7), (0x304, 7), (0x420, 56), (0xc08, 14), (0x6100, 448), (0, 1)];
    let shared = distributor.into_iter().flat_map(move |(start, count)| words(vgic::DIST_REGS, start, count));
    // GICR_CTLR, WAKER; IGROUPR0, ISENABLER0, ISPENDR0, ISACTIVER0, IPRIORITYR, ICFGR.
    let redistributor =
        [(0, 1), (0x14, 1), (0x1_0080, 1), (0x1_0100, 1), (0x1_0200, 1), (0x1_0300, 1), (0x1_0400, 8), (0x1_0c00, 2)];
    let private = (0..vcpus).flat_map(move |vcpu| {
        redistributor.into_iter().flat_map(move |(start, count)| words(vgic::REDIST_REGS, vcpu << 32 | start, count))
    });
    // 32 lines at a time: the private ones of each vCPU, then the shared ones.
    let levels = (0..vcpus).map(|vcpu| (vgic::LEVEL_INFO, vcpu << 32));
    let shared_levels = (1..8).map(|block| (vgic::LEVEL_INFO, 32 * block));
    shared.chain(private).chain(levels).chain(shared_levels)
}

/// ICC_PMR_EL1, BPR0, AP0R0, AP1R0, BPR1, CTLR, SRE, IGRPEN0, IGRPEN1.
const INTERFACE: [u64; 9] = [0xc230, 0xc643, 0xc644, 0xc648, 0xc663, 0xc664, 0xc665, 0xc666, 0xc667];

/// KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES.
const SAVE_PENDING_TABLES: u64 = 3;

fn size_of_register(id: u64) -> usize {
    1 << (id >> reg::SIZE_SHIFT & 0xf)
}

/// Reads a machine that nobody runs. Its memory is read after this: pending LPIs are there.
pub fn save(vcpus: &[Vcpu<Hypercall>], gic: &Device<Hypercall>) -> Check<State> {
    well("KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES", gic.set_attribute(vgic::CTRL, SAVE_PENDING_TABLES, &()))?;
    let mut state = State { vcpus: Vec::new(), gic: Vec::new() };
    for (group, attribute) in gic_registers(vcpus.len() as u64) {
        let value = well("KVM_GET_DEVICE_ATTR", gic.attribute::<u32>(group, attribute))?;
        state.gic.push((group, attribute, value));
    }
    for (index, vcpu) in (0..).zip(vcpus) {
        let mut list = vec![0; 1024];
        let ids = well("KVM_GET_REG_LIST", vcpu.register_list(&mut list))?;
        let mut registers = Vec::with_capacity(ids.len());
        for &id in ids {
            let mut value = [0; 16];
            well("KVM_GET_ONE_REG", vcpu.get_one_reg(id, &mut value[..size_of_register(id)]))?;
            registers.push((id, value));
        }
        let mut interface = Vec::new();
        for attribute in INTERFACE.map(|register| index << 32 | register) {
            let value = well("KVM_GET_DEVICE_ATTR", gic.attribute::<u64>(vgic::CPU_SYSREGS, attribute))?;
            interface.push((attribute, value));
        }
        let events = well("KVM_GET_VCPU_EVENTS", vcpu.events())?;
        let mp_state = well("KVM_GET_MP_STATE", vcpu.mp_state())?;
        state.vcpus.push(VcpuState { registers, events, mp_state, interface });
    }
    Ok(state)
}

/// Writes it into a machine that was made like the other one, and that nobody has run.
pub fn restore(state: &State, vcpus: &[Vcpu<Hypercall>], gic: &Device<Hypercall>) -> Check {
    check_eq!(vcpus.len(), state.vcpus.len(), "vCPUs");
    for (vcpu, saved) in vcpus.iter().zip(&state.vcpus) {
        for (id, value) in &saved.registers {
            let result = vcpu.set_one_reg(*id, &value[..size_of_register(*id)]);
            check_eq!(result, Ok(()), "KVM_SET_ONE_REG of {id:#x}, {value:x?}");
        }
        well("KVM_SET_VCPU_EVENTS", vcpu.set_events(&saved.events))?;
        well("KVM_SET_MP_STATE", vcpu.set_mp_state(saved.mp_state))?;
    }
    for (group, attribute, value) in &state.gic {
        let result = gic.set_attribute(*group, *attribute, value);
        check_eq!(result, Ok(()), "KVM_SET_DEVICE_ATTR of group {group}, {attribute:#x}");
    }
    for (attribute, value) in state.vcpus.iter().flat_map(|saved| &saved.interface) {
        let result = gic.set_attribute(vgic::CPU_SYSREGS, *attribute, value);
        check_eq!(result, Ok(()), "KVM_SET_DEVICE_ATTR of {attribute:#x}, {value:#x}");
    }
    Ok(())
}
