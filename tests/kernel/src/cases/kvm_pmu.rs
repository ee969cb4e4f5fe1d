//! The PMU of a VM that the owner of the machine makes by KVM_IOCTL: stopped, saved, made anew, and counting on.
//!
//! What the guest counts is exact: increments by software, of which it keeps count itself.

use super::kvm::{clean, well};
use crate::{
    check, check_eq,
    harness::{Case, Check, Under::*, case, failed, skip},
};
use core::arch::global_asm;
use heapless::Vec;
use keel_kvm::{
    Device, Errno, Exit, Hypercall, System, Vcpu, Vm,
    page::Page,
    uapi::{VcpuInit, device, feature, reg, vcpu_group, vgic},
};
use keel_test_kernel::{machine::Machine, time};

pub const CASES: &[Case] = &[case("kvm/pmu_save_and_restore", 1, Root, save_and_restore)];

static RUN: Page = Page::ZERO;
static RAM: [Page; 1] = [Page::ZERO];

const BASE: u64 = 0x4000_0000;
const DEVICE: u64 = 0x0a00_0000;
const GICD: u64 = 0x0800_0000;
const GICR: u64 = 0x080a_0000;
/// GICR_ISPENDR0.
const PENDING: u64 = GICR + 0x1_0200;
/// The overflow interrupt.
const INTID: u32 = 23;
/// KVM_CAP_ARM_PMU_V3.
const CAP_PMU: u32 = 126;
/// KVM_ARM_VCPU_PMU_V3_IRQ, KVM_ARM_VCPU_PMU_V3_INIT.
const PMU_IRQ: u64 = 0;
const PMU_INIT: u64 = 1;

// PMCR_EL0, PMOVSSET_EL0, PMCCNTR_EL0, PMEVCNTR0_EL0, PMEVCNTR5_EL0; CNTVCT_EL0 and CNTPCT_EL0 as ONE_REG names them.
const CONTROL: u64 = reg::system(3, 3, 9, 12, 0);
const OVERFLOWS: u64 = reg::system(3, 3, 9, 14, 3);
const CYCLES: u64 = reg::system(3, 3, 9, 13, 0);
const COUNTER_0: u64 = reg::system(3, 3, 14, 8, 0);
const COUNTER_5: u64 = reg::system(3, 3, 14, 8, 5);
const TIME: [u64; 2] = [reg::system(3, 3, 14, 3, 2), reg::system(3, 3, 14, 0, 1)];
/// PMCR_EL0.N.
const N_SHIFT: u32 = 11;

// x1: a device of the maker's; x2: the register of pending interrupts; x4: where counter 0 begins; x8: how often it is
// incremented.
global_asm!(
    ".pushsection .rodata.guest_increments, \"a\"",
    ".balign 8",
    ".global guest_increments",
    "guest_increments:",
    "mov x3, #1",
    // Software increments at EL1; PMCNTENSET_EL0, PMINTENSET_EL1; PMCR_EL0.E, LC.
    "msr pmevtyper0_el0, xzr",
    "msr pmevcntr0_el0, x4",
    "mov x5, #0x80000000",
    "orr x5, x5, x3",
    "msr pmcntenset_el0, x5",
    "msr pmintenset_el1, x3",
    "mov x5, #0x41",
    "msr pmcr_el0, x5",
    "isb",
    "2: msr pmswinc_el0, x3",
    "isb",
    "subs x8, x8, #1",
    "b.ne 2b",
    "mrs x5, pmevcntr0_el0",
    "str x5, [x1]",
    "mrs x5, pmovsset_el0",
    "str x5, [x1, #8]",
    "ldr w5, [x2]",
    "str x5, [x1, #16]",
    "msr pmovsclr_el0, x3",
    "isb",
    "ldr w5, [x2]",
    "str x5, [x1, #24]",
    "mrs x5, pmcr_el0",
    "str x5, [x1, #32]",
    "mrs x5, pmccntr_el0",
    "str x5, [x1, #40]",
    "b .",
    ".balign 8",
    ".global guest_increments_end",
    "guest_increments_end:",
    ".popsection",
);

unsafe extern "C" {
    static guest_increments: u32;
    static guest_increments_end: u32;
}

/// A VM with one vCPU and a PMU.
struct Guest {
    // Dropped in this order.
    vcpu: Vcpu<Hypercall>,
    _gic: Device<Hypercall>,
    _vm: Vm<Hypercall>,
}

impl Guest {
    fn new() -> Check<Self> {
        let vm = well("KVM_CREATE_VM", System(Hypercall).create_vm(0))?;
        well("KVM_SET_USER_MEMORY_REGION", vm.set_memory(0, 0, BASE, &RAM))?;
        let gic = well("KVM_CREATE_DEVICE", vm.create_device(device::VGIC_V3))?;
        let vcpu = well("KVM_CREATE_VCPU", vm.create_vcpu(0, &RUN))?;
        for (kind, address) in [(vgic::V3_DIST, GICD), (vgic::V3_REDIST, GICR)] {
            well("KVM_SET_DEVICE_ATTR", gic.set_attribute(vgic::ADDR, kind, &address))?;
        }
        well("KVM_SET_DEVICE_ATTR", gic.set_attribute(vgic::CTRL, vgic::INIT, &()))?;
        let target = well("KVM_ARM_PREFERRED_TARGET", vm.preferred_target())?;
        let features = [feature::PSCI_0_2 | feature::PMU_V3, 0, 0, 0, 0, 0, 0];
        well("KVM_ARM_VCPU_INIT", vcpu.init(&VcpuInit { features, ..target }))?;
        well("KVM_ARM_VCPU_PMU_V3_IRQ", vcpu.set_attribute(vcpu_group::PMU, PMU_IRQ, &INTID))?;
        well("KVM_ARM_VCPU_PMU_V3_INIT", vcpu.set_attribute(vcpu_group::PMU, PMU_INIT, &()))?;
        Ok(Self { vcpu, _gic: gic, _vm: vm })
    }

    fn get(&self, id: u64) -> Check<u64> {
        well("KVM_GET_ONE_REG", self.vcpu.register(id))
    }

    fn set(&self, id: u64, value: u64) -> Check {
        well("KVM_SET_ONE_REG", self.vcpu.set_register(id, value))
    }

    /// What it stores to the device at `offset` next.
    fn stored(&self, offset: u64) -> Check<u64> {
        loop {
            match self.vcpu.run() {
                Ok(Exit::MmioWrite { address, value, .. }) if address == DEVICE + offset => return Ok(value),
                Err(Errno::EINTR) => {}
                other => return Err(failed(format_args!("KVM_RUN: {other:?}"))),
            }
        }
    }

    /// All of its registers.
    fn save(&self) -> Check<Saved> {
        let mut list = [0; 641];
        let ids = well("KVM_GET_REG_LIST", self.vcpu.register_list(&mut list))?;
        let mut saved = Saved::new();
        for &id in ids {
            let mut value = [0; 16];
            well("KVM_GET_ONE_REG", self.vcpu.get_one_reg(id, &mut value[..size(id)]))?;
            saved.push((id, value)).map_err(|_| failed(format_args!("more registers than there is room for")))?;
        }
        Ok(saved)
    }

    fn restore(&self, saved: &Saved) -> Check {
        for (id, value) in saved {
            let result = self.vcpu.set_one_reg(*id, &value[..size(*id)]);
            check_eq!(result, Ok(()), "KVM_SET_ONE_REG of {id:#x}, {value:x?}");
        }
        Ok(())
    }
}

type Saved = Vec<(u64, [u8; 16]), 640>;

fn size(id: u64) -> usize {
    1 << (id >> reg::SIZE_SHIFT & 0xf)
}

/// A guest is stopped wherever it is, saved, destroyed, made anew from what was saved, and goes on; more than once, before
/// a counter has overflowed and after.
fn save_and_restore(_: &'static Machine) -> Check {
    const COUNT: u64 = 400_000;
    const COUNTERS: u64 = 3;
    /// Where counter 0 begins, so that it overflows halfway.
    const FIRST: u64 = (1 << 32) - COUNT / 2;
    if System(Hypercall).check_extension(CAP_PMU) != Ok(1) {
        return skip("there is no PMU");
    }
    // SAFETY: both are labels of one program in read-only data, a multiple of 8 bytes apart.
    let program = unsafe {
        let (start, end) = (&raw const guest_increments, &raw const guest_increments_end);
        core::slice::from_raw_parts(start, (end as usize - start as usize) / 4)
    };
    RAM[0].load(program);
    clean(&RAM[0]);
    let mut guest = Guest::new()?;
    let counters = guest.get(CONTROL)? >> N_SHIFT & 0x1f;
    if counters <= COUNTERS {
        return skip("there are too few counters to take some away");
    }
    // Fewer counters than the machine has; one that is not the guest's any more keeps its value.
    guest.set(CONTROL, COUNTERS << N_SHIFT)?;
    guest.set(COUNTER_5, 0x5555)?;
    for (n, value) in [(1, DEVICE), (2, PENDING), (4, FIRST), (8, COUNT)] {
        guest.set(reg::x(n), value)?;
    }
    guest.set(reg::PC, BASE)?;
    let mut cycles = 0;
    for percent_left in [98, 75, 48, 30, 10] {
        let left = COUNT / 100 * percent_left;
        let begin = guest.get(reg::x(8))?;
        loop {
            // The end of a run that has no other.
            time::Timer::Virtual.arm(300);
            let result = guest.vcpu.run();
            time::Timer::Virtual.stop();
            check_eq!(result, Err(Errno::EINTR), "KVM_RUN, with {left} to be left");
            // It may have been interrupted before its first instruction.
            if guest.get(reg::x(8))? <= left.min(begin - 1) {
                break;
            }
        }
        let saved = guest.save()?;
        let counted = guest.get(COUNTER_0)?.wrapping_sub(FIRST) as u32;
        let done = COUNT as u32 - guest.get(reg::x(8))? as u32;
        // It may stand between an increment and its own count.
        check!(counted == done || counted == done + 1, "{counted} increments are counted, {done} were made");
        check_eq!(guest.get(OVERFLOWS)? & 1, u64::from(counted >= COUNT as u32 / 2), "the overflow after {counted}");
        let before = core::mem::replace(&mut cycles, guest.get(CYCLES)?);
        check!(cycles > before, "{cycles} cycles, and {before} before that");
        drop(guest);
        guest = Guest::new()?;
        guest.restore(&saved)?;
        for ((id, value), (_, was)) in guest.save()?.iter().zip(&saved).filter(|((id, _), _)| !TIME.contains(id)) {
            check_eq!(value, was, "register {id:#x} of the restored vCPU");
        }
    }
    let counted = guest.stored(0)?.wrapping_sub(FIRST) as u32;
    check_eq!(u64::from(counted), COUNT, "increments that were counted");
    check_eq!(guest.stored(8)? & 1, 1, "the counter's overflow");
    check_eq!(guest.stored(16)?, 1 << INTID, "pending interrupts with it");
    check_eq!(guest.stored(24)?, 0, "pending interrupts without it");
    check_eq!(guest.stored(32)? >> N_SHIFT & 0x1f, COUNTERS, "the counters that the guest has");
    check!(guest.stored(40)? > cycles, "the cycle counter goes on");
    check_eq!(guest.get(COUNTER_5)?, 0x5555, "a counter that is not the guest's");
    Ok(())
}
