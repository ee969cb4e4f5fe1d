//! What guests see of the VMs that the owner of the machine makes by KVM_IOCTL: their timers and PMU where their maker put
//! them, and no interrupt controller where it made none.
//!
//! The guests are a few instructions each. They have no vectors: what is pending they read from the interrupt controller, or
//! from ISR_EL1.

use super::{
    kvm::{clean, well},
    programs::{program, programs},
};
use crate::{
    check, check_eq,
    harness::{Case, Check, Under::*, case, eventually, failed, join, skip, start},
    vmm::state,
};
use core::{
    arch::global_asm,
    sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst},
};
use keel_kvm::{
    Backend, Device, Errno, Exit, Hypercall, System, Vcpu, Vm, number,
    page::{PAGE, Page},
    uapi::{VcpuInit, device, feature, memory as flags, reg, vcpu_group, vgic},
};
use keel_test_kernel::{irq, machine::Machine, mrs, time};

pub const CASES: &[Case] = &[
    case("kvm/timers_moved", 1, Root, timers_moved),
    case("kvm/timers_shared", 1, Root, timers_shared),
    case("kvm/counter_offset", 1, Root, counter_offset),
    case("kvm/pmu_filter", 1, Root, pmu_filter),
    case("kvm/pmu_shared_interrupt", 1, Root, pmu_shared_interrupt),
    case("kvm/no_interrupt_controller", 1, Root, no_interrupt_controller),
    case("kvm/two_vcpus", 2, Root, two_vcpus),
    case("kvm/save_and_restore", 2, Root, save_and_restore),
    case("kvm/dirty_log_beside_a_run", 2, Root, dirty_log_beside_a_run),
    case("kvm/dirty_log_of_stolen_time", 1, Root, dirty_log_of_stolen_time),
];

pub(super) static RUN: Page = Page::ZERO;
static RAM: [Page; 1] = [Page::ZERO];
/// The second vCPU's, and the memory that both have.
static OTHER_RUN: Page = Page::ZERO;
static SHARED: [Page; 2] = [const { Page::ZERO }; 2];
/// The vCPU that another CPU of the root runs, until it is told to end.
static OTHER: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicU64 = AtomicU64::new(0);
/// The SGI that ends its run.
const WAKE: u32 = 5;
/// What its last run ended with.
static LAST: AtomicI64 = AtomicI64::new(0);

const BASE: u64 = 0x4000_0000;
const DEVICE: u64 = 0x0a00_0000;
const GICD: u64 = 0x0800_0000;
const GICR: u64 = 0x080a_0000;
/// GICR_ISPENDR0, in the second frame.
const PENDING_PRIVATE: u64 = GICR + 0x1_0200;
/// GICD_ISPENDR1.
const PENDING_SHARED: u64 = GICD + 0x204;

/// KVM_CAP_ARM_PMU_V3.
const CAP_PMU: u32 = 126;
/// Groups and attributes of a vCPU.
const PMU: u32 = 0;
const TIMERS: u32 = 1;
const PMU_IRQ: u64 = 0;
const PMU_INIT: u64 = 1;
const PMU_FILTER: u64 = 2;
/// KVM_ARM_VCPU_PMU_V3.
const FEATURE_PMU: u32 = 1 << 3;

// x1: a device of the maker's; x2: the register of pending interrupts. Each ends in a store to the device.
global_asm!(
    ".macro guest name",
    ".pushsection .rodata.\\name, \"a\"",
    ".balign 8",
    ".global \\name",
    "\\name:",
    ".endm",
    ".macro guest_end name",
    "b .",
    ".balign 8",
    ".global \\name\\()_end",
    "\\name\\()_end:",
    ".popsection",
    ".endm",
    // Both timers, one after the other, are due at once: which interrupts are pending?
    "guest guest_timers",
    "mov x3, #1",
    "msr cntv_cval_el0, xzr",
    "msr cntv_ctl_el0, x3",
    "isb",
    "2: ldr w0, [x2]",
    "cbz w0, 2b",
    "str w0, [x1]",
    "msr cntv_ctl_el0, xzr",
    "msr cntp_cval_el0, xzr",
    "msr cntp_ctl_el0, x3",
    "isb",
    "3: ldr w0, [x2]",
    "tst w0, w4",
    "b.eq 3b",
    "str w0, [x1]",
    "guest_end guest_timers",
    // The counters.
    "guest guest_counters",
    "isb",
    "mrs x0, cntvct_el0",
    "str x0, [x1]",
    "isb",
    "mrs x0, cntpct_el0",
    "str x0, [x1, #8]",
    "guest_end guest_counters",
    // Cycles (event 0x11) by counter 0, software increments (event 0) by counter 1, and the cycle counter, over ten increments.
    "guest guest_counts",
    "mov x0, #0x11",
    "msr pmevtyper0_el0, x0",
    "msr pmevtyper1_el0, xzr",
    "msr pmevcntr0_el0, xzr",
    "msr pmevcntr1_el0, xzr",
    "msr pmccntr_el0, xzr",
    "mov x0, #0x80000000",
    "orr x0, x0, #3",
    "msr pmcntenset_el0, x0",
    "mov x0, #1",
    "msr pmcr_el0, x0",
    "isb",
    "mov x3, #10",
    "mov x0, #2",
    "2: msr pmswinc_el0, x0",
    "subs x3, x3, #1",
    "b.ne 2b",
    "msr pmcr_el0, xzr",
    "isb",
    "mrs x0, pmevcntr0_el0",
    "str x0, [x1]",
    "mrs x0, pmevcntr1_el0",
    "str x0, [x1, #8]",
    "mrs x0, pmccntr_el0",
    "str x0, [x1]",
    "guest_end guest_counts",
    // The cycle counter overflows: the interrupt is pending, and gone when the overflow is.
    "guest guest_overflow",
    "mov x0, #-16",
    "msr pmccntr_el0, x0",
    "mov x0, #0x80000000",
    "msr pmintenset_el1, x0",
    "msr pmcntenset_el0, x0",
    "mov x0, #0x41", // LC and E
    "msr pmcr_el0, x0",
    "isb",
    "2: ldr w0, [x2]",
    "cbz w0, 2b",
    "str w0, [x1]",
    "msr pmcr_el0, xzr",
    "mov x0, #0x80000000",
    "msr pmovsclr_el0, x0",
    "isb",
    "3: ldr w0, [x2]",
    "cbnz w0, 3b",
    "str w0, [x1, #8]",
    "guest_end guest_overflow",
    // Changes what it can, with FP and SIMD in every other round (x9), and with keys of pointer authentication if x3 is 1; and says
    // after an exit what of it has changed.
    "guest guest_spoils",
    ".arch_extension fp",
    ".arch_extension simd",
    "mov x5, #3 << 20",
    "msr cpacr_el1, x5",
    "isb",
    "mov x9, #0",
    "movz x4, #0x1234, lsl #16",
    "2: movz x5, #0x1110",
    "add x4, x4, x5",
    "eor x9, x9, #1",
    "msr tpidr_el0, x4",
    "msr tpidrro_el0, x4",
    "msr tpidr_el1, x4",
    "msr far_el1, x4",
    "msr elr_el1, x4",
    "msr sp_el0, x4",
    "msr cntv_cval_el0, x4",
    "msr cntp_cval_el0, x4",
    "msr ttbr0_el1, x4",
    "msr ttbr1_el1, x4",
    "cbz x3, 3f",
    "msr S3_0_C2_C1_0, x4",
    "msr S3_0_C2_C1_1, x4",
    "msr S3_0_C2_C1_2, x4",
    "msr S3_0_C2_C1_3, x4",
    "msr S3_0_C2_C2_0, x4",
    "msr S3_0_C2_C2_1, x4",
    "msr S3_0_C2_C2_2, x4",
    "msr S3_0_C2_C2_3, x4",
    "msr S3_0_C2_C3_0, x4",
    "msr S3_0_C2_C3_1, x4",
    "3: cbz x9, 4f",
    "dup v0.2d, x4",
    "dup v1.2d, x4",
    "dup v2.2d, x4",
    "dup v3.2d, x4",
    "dup v4.2d, x4",
    "dup v5.2d, x4",
    "dup v6.2d, x4",
    "dup v7.2d, x4",
    "dup v8.2d, x4",
    "dup v9.2d, x4",
    "dup v10.2d, x4",
    "dup v11.2d, x4",
    "dup v12.2d, x4",
    "dup v13.2d, x4",
    "dup v14.2d, x4",
    "dup v15.2d, x4",
    "dup v16.2d, x4",
    "dup v17.2d, x4",
    "dup v18.2d, x4",
    "dup v19.2d, x4",
    "dup v20.2d, x4",
    "dup v21.2d, x4",
    "dup v22.2d, x4",
    "dup v23.2d, x4",
    "dup v24.2d, x4",
    "dup v25.2d, x4",
    "dup v26.2d, x4",
    "dup v27.2d, x4",
    "dup v28.2d, x4",
    "dup v29.2d, x4",
    "dup v30.2d, x4",
    "dup v31.2d, x4",
    "mov x5, #1 << 22",
    "msr fpcr, x5",
    "4: mov x6, #0",
    "str xzr, [x1]",
    "mrs x5, tpidr_el0",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "mrs x5, tpidrro_el0",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "mrs x5, tpidr_el1",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "mrs x5, far_el1",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "mrs x5, elr_el1",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "mrs x5, sp_el0",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "mrs x5, cntv_cval_el0",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "mrs x5, cntp_cval_el0",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "mrs x5, ttbr0_el1",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "mrs x5, ttbr1_el1",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "cbz x3, 5f",
    "mrs x5, S3_0_C2_C1_0",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "mrs x5, S3_0_C2_C1_1",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "mrs x5, S3_0_C2_C1_2",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "mrs x5, S3_0_C2_C1_3",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "mrs x5, S3_0_C2_C2_0",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "mrs x5, S3_0_C2_C2_1",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "mrs x5, S3_0_C2_C2_2",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "mrs x5, S3_0_C2_C2_3",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "mrs x5, S3_0_C2_C3_0",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "mrs x5, S3_0_C2_C3_1",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "5: cbz x9, 6f",
    "umov x5, v0.d[0]",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "umov x5, v0.d[1]",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "umov x5, v1.d[0]",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "umov x5, v1.d[1]",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "umov x5, v7.d[0]",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "umov x5, v7.d[1]",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "umov x5, v8.d[0]",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "umov x5, v8.d[1]",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "umov x5, v15.d[0]",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "umov x5, v15.d[1]",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "umov x5, v16.d[0]",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "umov x5, v16.d[1]",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "umov x5, v23.d[0]",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "umov x5, v23.d[1]",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "umov x5, v30.d[0]",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "umov x5, v30.d[1]",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "umov x5, v31.d[0]",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "umov x5, v31.d[1]",
    "eor x5, x5, x4",
    "orr x6, x6, x5",
    "mrs x5, fpcr",
    "eor x5, x5, #1 << 22",
    "orr x6, x6, x5",
    "6: str x6, [x1, #8]",
    "b 2b",
    "guest_end guest_spoils",
    // A timer without an interrupt controller: its maker raises the pin, and lowers it.
    "guest guest_pins",
    "mov x0, #1",
    "msr cntv_cval_el0, xzr",
    "msr cntv_ctl_el0, x0",
    "isb",
    "2: mrs x0, isr_el1",
    "cbz x0, 2b",
    "msr cntv_ctl_el0, xzr",
    "isb",
    "str x0, [x1]",
    "3: mrs x0, isr_el1",
    "cbnz x0, 3b",
    "str x0, [x1, #8]",
    "4: wfi",
    "mrs x0, isr_el1",
    "cbz x0, 4b",
    "str x0, [x1]",
    "guest_end guest_pins",
    // Two vCPUs. The first starts the second (x5: where), sends it an SGI (x6: ICC_SGI1R_EL1) x8 times, each time when the last one
    // was counted (x3: the counter), and stores the count. The second sleeps until one is pending, and counts it.
    "guest guest_two",
    "mov x19, x1",
    "mov x20, x3",
    "mov x21, x6",
    "mov x22, x8",
    "mov w0, #2",
    "str w0, [x7]", // GICD_CTLR.EnableGrp1
    "mov w0, #3",
    "movk w0, #0xc400, lsl #16", // CPU_ON
    "mov x1, #1",
    "mov x2, x5",
    "mov x3, x4",
    "hvc #0",
    "str x0, [x19]",
    "2: ldr x9, [x20, #8]",
    "cbz x9, 2b", // it is ready
    "mov x10, #0",
    "3: dsb sy",
    "msr S3_0_C12_C11_5, x21",
    "isb",
    "add x10, x10, #1",
    "4: ldr x9, [x20]",
    "cmp x9, x10",
    "b.ne 4b",
    "cmp x10, x22",
    "b.ne 3b",
    "str x10, [x19, #8]",
    "guest_end guest_two",
    // x0: the counter.
    "guest guest_sleeper",
    "mov x20, x0",
    "mov x1, #0xf0",
    "msr S3_0_C4_C6_0, x1", // ICC_PMR_EL1
    "mov x1, #1",
    "msr S3_0_C12_C12_7, x1", // ICC_IGRPEN1_EL1
    "isb",
    "str x1, [x20, #8]",
    "2: wfi",
    "mrs x1, isr_el1",
    "cbz x1, 2b",
    "mrs x1, S3_0_C12_C12_0", // ICC_IAR1_EL1
    "dsb sy",
    "msr S3_0_C12_C12_1, x1", // ICC_EOIR1_EL1
    "isb",
    "ldr x2, [x20]",
    "add x2, x2, #1",
    "str x2, [x20]",
    "b 2b",
    "guest_end guest_sleeper",
    // Counts in x2 pages from x1 on, for ever.
    "guest guest_counter",
    "2: mov x3, x1",
    "mov x4, x2",
    "3: ldr x5, [x3]",
    "add x5, x5, #1",
    "str x5, [x3]",
    "add x3, x3, #4096",
    "subs x4, x4, #1",
    "b.ne 3b",
    "b 2b",
    "guest_end guest_counter",
    // PV_TIME_ST.
    "guest guest_stolen",
    "mov x19, x1",
    "mov w0, #0x21",
    "movk w0, #0xc500, lsl #16",
    "hvc #0",
    "str x0, [x19]",
    "guest_end guest_stolen",
);

programs!(
    guest_timers guest_timers_end, guest_counters guest_counters_end, guest_counts guest_counts_end,
    guest_overflow guest_overflow_end, guest_pins guest_pins_end, guest_two guest_two_end,
    guest_sleeper guest_sleeper_end, guest_spoils guest_spoils_end, guest_counter guest_counter_end, guest_stolen guest_stolen_end
);

/// The program that changes its registers.
pub(super) fn spoiler() -> &'static [u32] {
    program!(guest_spoils, guest_spoils_end)
}

/// A VM with one vCPU, which is about to run a program.
pub(super) struct Guest {
    // Dropped in this order.
    vcpu: Vcpu<Hypercall>,
    gic: Option<Device<Hypercall>>,
    vm: Vm<Hypercall>,
}

impl Guest {
    /// With a GICv3 or without an interrupt controller, and with these features. Not started, and nothing said of its devices yet.
    pub(super) fn new(program: &[u32], has_gic: bool, features: u32) -> Check<Self> {
        RAM[0].load(program);
        clean(&RAM[0]);
        let system = System(Hypercall);
        let vm = well("KVM_CREATE_VM", system.create_vm(0))?;
        well("KVM_SET_USER_MEMORY_REGION", vm.set_memory(0, 0, BASE, &RAM))?;
        let gic = if has_gic { Some(well("KVM_CREATE_DEVICE", vm.create_device(device::VGIC_V3))?) } else { None };
        let vcpu = well("KVM_CREATE_VCPU", vm.create_vcpu(0, &RUN))?;
        if let Some(gic) = &gic {
            well("KVM_SET_DEVICE_ATTR", gic.set_attribute(vgic::ADDR, vgic::V3_DIST, &GICD))?;
            well("KVM_SET_DEVICE_ATTR", gic.set_attribute(vgic::ADDR, vgic::V3_REDIST, &GICR))?;
            well("KVM_SET_DEVICE_ATTR", gic.set_attribute(vgic::CTRL, vgic::INIT, &()))?;
        }
        let target = well("KVM_ARM_PREFERRED_TARGET", vm.preferred_target())?;
        let features = [feature::PSCI_0_2 | features, 0, 0, 0, 0, 0, 0];
        well("KVM_ARM_VCPU_INIT", vcpu.init(&VcpuInit { features, ..target }))?;
        let guest = Self { vcpu, gic, vm };
        guest.set(32, BASE)?;
        guest.set(1, DEVICE)?;
        Ok(guest)
    }

    /// x`n`; 32 is the PC.
    pub(super) fn set(&self, n: u64, value: u64) -> Check {
        let id = if n == 32 { reg::PC } else { reg::x(n) };
        well("KVM_SET_ONE_REG", self.vcpu.set_register(id, value))
    }

    /// The vCPU's handle.
    pub(super) fn handle(&self) -> u64 {
        self.vcpu.handle()
    }

    fn stored(&self, offset: u64) -> Check<u64> {
        stored(&self.vcpu, offset)
    }
}

/// What a vCPU stores to the device at `offset` next, whatever interrupts the root meanwhile.
fn stored(vcpu: &Vcpu<Hypercall>, offset: u64) -> Check<u64> {
    loop {
        match vcpu.run() {
            Ok(Exit::MmioWrite { address, value, .. }) if address == DEVICE + offset => return Ok(value),
            Err(Errno::EINTR) => {}
            other => return Err(failed(format_args!("KVM_RUN: {other:?}"))),
        }
    }
}

fn timers_moved(_: &'static Machine) -> Check {
    let guest = Guest::new(program!(guest_timers, guest_timers_end), true, 0)?;
    for (timer, intid) in [(0, 20_u32), (1, 21)] {
        well("the timer's interrupt", guest.vcpu.set_attribute(TIMERS, timer, &intid))?;
    }
    guest.set(2, PENDING_PRIVATE)?;
    guest.set(4, 1 << 21)?;
    check_eq!(guest.stored(0)?, 1 << 20, "pending with the virtual timer");
    check_eq!(guest.stored(0)?, 1 << 21, "pending with the physical timer");
    check_eq!(guest.vcpu.set_attribute(TIMERS, 0, &27_u32), Err(Errno::EBUSY), "moving a timer of a VM that has run");
    check!(guest.gic.is_some(), "the interrupt controller");
    Ok(())
}

fn timers_shared(_: &'static Machine) -> Check {
    let guest = Guest::new(program!(guest_timers, guest_timers_end), true, 0)?;
    well("the timer's interrupt", guest.vcpu.set_attribute(TIMERS, 0, &30_u32))?;
    check_eq!(guest.vcpu.run(), Err(Errno::EINVAL), "KVM_RUN with one interrupt for both timers");
    well("the timer's interrupt", guest.vcpu.set_attribute(TIMERS, 0, &27_u32))?;
    guest.set(2, PENDING_PRIVATE)?;
    guest.set(4, 1 << 30)?;
    check_eq!(guest.stored(0)?, 1 << 27, "pending with the virtual timer");
    check_eq!(guest.stored(0)?, 1 << 30, "pending with the physical timer");
    Ok(())
}

fn counter_offset(_: &'static Machine) -> Check {
    let guest = Guest::new(program!(guest_counters, guest_counters_end), true, 0)?;
    let offset = time::now() - 1_000_000;
    well("KVM_ARM_SET_COUNTER_OFFSET", guest.vm.set_counter_offset(offset))?;
    for (at, name) in [(0, "CNTVCT_EL0"), (8, "CNTPCT_EL0")] {
        let before = mrs!("cntpct_el0") - offset;
        let seen = guest.stored(at)?;
        let after = mrs!("cntpct_el0") - offset;
        check!((before..=after).contains(&seen), "{name} is {seen}, not from {before} to {after}");
    }
    Ok(())
}

/// Bytes of `struct kvm_pmu_event_filter`.
fn filter(base: u16, count: u16, action: u8) -> u64 {
    u64::from(base) | u64::from(count) << 16 | u64::from(action) << 32
}

/// A guest with a PMU whose interrupt is `intid`.
fn with_pmu(program: &[u32], intid: u32, filters: &[u64]) -> Check<Guest> {
    if System(Hypercall).check_extension(CAP_PMU) != Ok(1) {
        return Err(skip::<()>("there is no PMU").unwrap_err());
    }
    let guest = Guest::new(program, true, FEATURE_PMU)?;
    well("KVM_ARM_VCPU_PMU_V3_IRQ", guest.vcpu.set_attribute(PMU, PMU_IRQ, &intid))?;
    for filter in filters {
        well("KVM_ARM_VCPU_PMU_V3_FILTER", guest.vcpu.set_attribute(PMU, PMU_FILTER, filter))?;
    }
    well("KVM_ARM_VCPU_PMU_V3_INIT", guest.vcpu.set_attribute(PMU, PMU_INIT, &()))?;
    Ok(guest)
}

fn pmu_filter(_: &'static Machine) -> Check {
    const RETIRED: u16 = 0x08;
    const CYCLES: u16 = 0x11;
    const ALLOW: u8 = 0;
    const DENY: u8 = 1;
    for (filters, counts) in [
        (&[][..], true),
        (&[filter(CYCLES, 1, ALLOW)], true),
        (&[filter(RETIRED, 1, ALLOW)], false),
        (&[filter(CYCLES, 1, DENY)], false),
        (&[filter(RETIRED, 1, DENY)], true),
        (&[filter(0, 0x20, DENY), filter(CYCLES, 1, ALLOW)], true),
        (&[filter(0, 0x20, ALLOW), filter(RETIRED, 16, DENY)], false),
    ] {
        let guest = with_pmu(program!(guest_counts, guest_counts_end), 23, filters)?;
        let [cycles, increments, cycle_counter] = [guest.stored(0)?, guest.stored(8)?, guest.stored(0)?];
        check_eq!(cycles != 0, counts, "{cycles} cycles with {filters:x?}");
        check_eq!(cycle_counter != 0, counts, "the cycle counter's {cycle_counter} with {filters:x?}");
        // These are no event of the machine's, and nothing filters them.
        check_eq!(increments, 10, "software increments with {filters:x?}");
    }
    Ok(())
}

fn pmu_shared_interrupt(_: &'static Machine) -> Check {
    let guest = with_pmu(program!(guest_overflow, guest_overflow_end), 40, &[])?;
    guest.set(2, PENDING_SHARED)?;
    check_eq!(guest.stored(0)?, 1 << 8, "pending with the overflow");
    check_eq!(guest.stored(8)?, 0, "pending without it");
    Ok(())
}

fn no_interrupt_controller(_: &'static Machine) -> Check {
    const IRQ: u32 = 0;
    /// ISR_EL1.I.
    const PENDING: u64 = 1 << 7;
    const PFR0: u64 = 0x6030_0000_0013_c020;
    let guest = Guest::new(program!(guest_pins, guest_pins_end), false, 0)?;
    let (vm, vcpu) = (&guest.vm, &guest.vcpu);
    check_eq!(vcpu.set_attribute(TIMERS, 0, &20_u32), Err(Errno::EINVAL), "moving a timer");
    check_eq!(vm.irq_line(1 << 24 | 32, true), Err(Errno::ENXIO), "an SPI");
    check_eq!(vm.irq_line(2, true), Err(Errno::EINVAL), "a third pin");
    // The root's own interrupts end runs too, and change no level.
    let level_after = |wanted: u64| {
        for _ in 0..1000 {
            let result = vcpu.run();
            check_eq!(result, Err(Errno::EINTR), "KVM_RUN while the level changes");
            if vcpu.page().device_irq_level() == wanted {
                return Ok(());
            }
        }
        Err(failed(format_args!("the level did not become {wanted}")))
    };
    level_after(1)?;
    well("KVM_IRQ_LINE", vm.irq_line(IRQ, true))?;
    check_eq!(guest.stored(0)?, PENDING, "ISR_EL1 with the pin high");
    check_eq!(vcpu.page().device_irq_level(), 0, "the level with an exit that comes after its change");
    well("KVM_IRQ_LINE", vm.irq_line(IRQ, false))?;
    check_eq!(guest.stored(8)?, 0, "ISR_EL1 with the pin low");
    // FIQ wakes it from WFI.
    well("KVM_IRQ_LINE", vm.irq_line(1, true))?;
    check_eq!(guest.stored(0)?, PENDING >> 1, "ISR_EL1 with FIQ high");
    let pfr0 = well("KVM_GET_ONE_REG", vcpu.register(PFR0))?;
    check_eq!(pfr0 >> 24 & 0xf, 0, "ID_AA64PFR0_EL1.GIC");
    check!(RAM[0].address().is_multiple_of(PAGE as u64), "the page");
    Ok(())
}

/// Runs the other vCPU on this CPU until it is told to end, or something is wrong.
fn run_other(cpu: usize) {
    irq::enable(WAKE, cpu);
    while STOP.load(SeqCst) == 0 {
        let result = Hypercall.call(OTHER.load(SeqCst), number::RUN, 0);
        LAST.store(result, SeqCst);
        if result != -4 {
            return;
        }
    }
}

const SHARED_AT: u64 = BASE + 0x1000;
const SLEEPER_AT: u64 = BASE + 0x2000;

/// A VM with two vCPUs and a GICv3, which nobody has run yet.
struct Pair {
    // Dropped in this order.
    vcpus: [Vcpu<Hypercall>; 2],
    gic: Device<Hypercall>,
    _vm: Vm<Hypercall>,
}

impl Pair {
    fn new() -> Check<Self> {
        let vm = well("KVM_CREATE_VM", System(Hypercall).create_vm(0))?;
        well("KVM_SET_USER_MEMORY_REGION", vm.set_memory(0, 0, BASE, &RAM))?;
        well("KVM_SET_USER_MEMORY_REGION", vm.set_memory(1, 0, SHARED_AT, &SHARED))?;
        let gic = well("KVM_CREATE_DEVICE", vm.create_device(device::VGIC_V3))?;
        let vcpus = [
            well("KVM_CREATE_VCPU", vm.create_vcpu(0, &RUN))?,
            well("KVM_CREATE_VCPU", vm.create_vcpu(1, &OTHER_RUN))?,
        ];
        for (kind, address) in [(vgic::V3_DIST, GICD), (vgic::V3_REDIST, GICR)] {
            well("KVM_SET_DEVICE_ATTR", gic.set_attribute(vgic::ADDR, kind, &address))?;
        }
        well("KVM_SET_DEVICE_ATTR", gic.set_attribute(vgic::CTRL, vgic::INIT, &()))?;
        let target = well("KVM_ARM_PREFERRED_TARGET", vm.preferred_target())?;
        for (vcpu, features) in vcpus.iter().zip([feature::PSCI_0_2, feature::PSCI_0_2 | feature::POWER_OFF]) {
            well("KVM_ARM_VCPU_INIT", vcpu.init(&VcpuInit { features: [features, 0, 0, 0, 0, 0, 0], ..target }))?;
        }
        Ok(Self { vcpus, gic, _vm: vm })
    }

    /// The programs of [`guest_two`] and [`guest_sleeper`], for so many SGIs.
    fn load(&self, count: u64) -> Check {
        RAM[0].load(program!(guest_two, guest_two_end));
        SHARED[0].clear();
        SHARED[1].load(program!(guest_sleeper, guest_sleeper_end));
        [&RAM[0], &SHARED[0], &SHARED[1]].into_iter().for_each(clean);
        // ICC_SGI1R_EL1: SGI 1 to Aff0 1.
        let sgi = 1 << 24 | 1 << 1;
        let values = [(1, DEVICE), (3, SHARED_AT), (4, SHARED_AT), (5, SLEEPER_AT), (6, sgi), (7, GICD), (8, count)];
        for (id, value) in values.map(|(n, value)| (reg::x(n), value)).into_iter().chain([(reg::PC, BASE)]) {
            well("KVM_SET_ONE_REG", self.vcpus[0].set_register(id, value))?;
        }
        Ok(())
    }

    /// Does something while another CPU of the root runs the second vCPU.
    fn with_second<T>(&self, machine: &'static Machine, run: impl FnOnce() -> Check<T>) -> Check<T> {
        beside(machine, &self.vcpus[1], run)
    }
}

/// Does something while another CPU of the root runs this vCPU, which has no exit.
fn beside<T>(machine: &'static Machine, vcpu: &Vcpu<Hypercall>, run: impl FnOnce() -> Check<T>) -> Check<T> {
    OTHER.store(vcpu.handle(), SeqCst);
    STOP.store(0, SeqCst);
    start(machine, 1, run_other, 1)?;
    let result = run();
    STOP.store(1, SeqCst);
    // What ends the run of a vCPU that sleeps is an interrupt for the CPU that runs it, which need not take it.
    irq::send(WAKE, machine.cpus()[1]);
    join(machine, 1)?;
    check_eq!(LAST.load(SeqCst), -4, "its last KVM_RUN");
    result
}

fn two_vcpus(machine: &'static Machine) -> Check {
    let pair = Pair::new()?;
    pair.load(200)?;
    let counted = pair.with_second(machine, || {
        check_eq!(stored(&pair.vcpus[0], 0)?, 0, "CPU_ON of the second vCPU");
        stored(&pair.vcpus[0], 8)
    })?;
    check_eq!(counted, 200, "SGIs that were counted");
    Ok(())
}

static SAVED: [Page; 3] = [const { Page::ZERO }; 3];

fn copy(from: [&Page; 3], to: [&Page; 3]) {
    for (from, to) in from.into_iter().zip(to) {
        clean(from);
        (0..PAGE).step_by(8).for_each(|offset| to.write(offset, 8, from.read(offset, 8)));
        clean(to);
    }
}

/// Two vCPUs that send each other interrupts are stopped wherever they are, saved, destroyed, made anew from what was saved, and
/// go on; more than once.
fn save_and_restore(machine: &'static Machine) -> Check {
    const COUNT: u64 = 4000;
    let memory = || [&RAM[0], &SHARED[0], &SHARED[1]];
    let mut pair = Pair::new()?;
    pair.load(COUNT)?;
    let mut is_first = true;
    for wanted in [100, 500, 1000, 2000] {
        pair.with_second(machine, || {
            if core::mem::take(&mut is_first) {
                check_eq!(stored(&pair.vcpus[0], 0)?, 0, "CPU_ON of the second vCPU");
            }
            while SHARED[0].read(0, 8) < wanted {
                // The end of a run that has no other.
                time::Timer::Virtual.arm(300);
                let result = pair.vcpus[0].run();
                time::Timer::Virtual.stop();
                check_eq!(result, Err(Errno::EINTR), "KVM_RUN, with {} of {COUNT} counted", SHARED[0].read(0, 8));
            }
            Ok(())
        })?;
        let saved = state::save(&pair.vcpus, &pair.gic)?;
        copy(memory(), SAVED.each_ref());
        drop(pair);
        memory().into_iter().for_each(Page::clear);
        pair = Pair::new()?;
        copy(SAVED.each_ref(), memory());
        state::restore(&saved, &pair.vcpus, &pair.gic)?;
    }
    let counted = pair.with_second(machine, || stored(&pair.vcpus[0], 8))?;
    check_eq!(counted, COUNT, "SGIs that were counted");
    Ok(())
}

/// Where memory is that is logged, and its pages: enough for stage 2 to map runs of them together.
const LOGGED_AT: u64 = 0x8000_0000;
const LOGGED_PAGES: usize = 64;

#[repr(C, align(65536))]
struct Logged([Page; LOGGED_PAGES]);

static LOGGED: Logged = Logged([const { Page::ZERO }; LOGGED_PAGES]);

/// Logging starts while a vCPU reads, writes and executes all that is logged, on another CPU: it has its memory at any moment.
fn dirty_log_beside_a_run(machine: &'static Machine) -> Check {
    const ROUNDS: usize = 5;
    const PROGRAM: usize = 2048;
    for round in 0..8 {
        let guest = Guest::new(&[], true, 0)?;
        well("KVM_SET_USER_MEMORY_REGION", guest.vm.set_memory(1, 0, LOGGED_AT, &LOGGED.0))?;
        LOGGED.0.iter().for_each(Page::clear);
        for (n, instruction) in program!(guest_counter, guest_counter_end).iter().enumerate() {
            LOGGED.0[0].write(PROGRAM + 4 * n, 4, (*instruction).into());
        }
        LOGGED.0.iter().for_each(clean);
        for (n, value) in [(32, LOGGED_AT + PROGRAM as u64), (1, LOGGED_AT), (2, LOGGED_PAGES as u64)] {
            guest.set(n, value)?;
        }
        let count = || LOGGED.0[LOGGED_PAGES - 1].read(0, 8);
        let goes_on = |from: u64| eventually("the guest's count", || count() > from);
        let dirty = beside(machine, &guest.vcpu, || {
            goes_on(10)?;
            let logged = guest.vm.set_memory(1, flags::LOG_DIRTY_PAGES, LOGGED_AT, &LOGGED.0);
            well("KVM_SET_USER_MEMORY_REGION", logged)?;
            let mut dirty = 0;
            for _ in 0..ROUNDS {
                goes_on(count() + 1)?;
                let mut bitmap = [0; 1];
                well("KVM_GET_DIRTY_LOG", guest.vm.dirty_log(1, LOGGED_PAGES, &mut bitmap))?;
                dirty += u64::from(bitmap[0] == u64::MAX);
            }
            Ok(dirty)
        })?;
        check_eq!(dirty, ROUNDS as u64, "full logs of round {round}");
    }
    Ok(())
}

/// What keel writes into a guest's memory is in the log, too.
fn dirty_log_of_stolen_time(_: &'static Machine) -> Check {
    const PAGE_OF_IT: usize = 3;
    let guest = Guest::new(program!(guest_stolen, guest_stolen_end), true, 0)?;
    let logged = guest.vm.set_memory(1, flags::LOG_DIRTY_PAGES, LOGGED_AT, &LOGGED.0);
    well("KVM_SET_USER_MEMORY_REGION", logged)?;
    let at = LOGGED_AT + (PAGE * PAGE_OF_IT) as u64 + 128;
    well("KVM_ARM_VCPU_PVTIME_IPA", guest.vcpu.set_attribute(vcpu_group::PVTIME, 0, &at))?;
    check_eq!(guest.stored(0)?, at, "PV_TIME_ST");
    let mut bitmap = [0; 1];
    well("KVM_GET_DIRTY_LOG", guest.vm.dirty_log(1, LOGGED_PAGES, &mut bitmap))?;
    check_eq!(bitmap[0], 1 << PAGE_OF_IT, "the log");
    Ok(())
}
