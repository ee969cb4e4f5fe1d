//! 32-bit guests by KVM_IOCTL: a vCPU whose EL1 is AArch32, its registers, its exits, and the errors made pending for it.

use super::kvm::{clean, well};
use crate::{
    check_eq,
    harness::{Case, Check, Under::*, case, failed, skip},
};
use keel_kvm::{
    Errno, Exit, Hypercall, System, Vcpu,
    page::Page,
    uapi::{VcpuEvents, VcpuInit, event, feature, reg},
};
use keel_test_kernel::machine::Machine;

pub const CASES: &[Case] = &[case("kvm/aarch32", 1, Root, aarch32)];

static RUN: Page = Page::ZERO;
static OTHER: Page = Page::ZERO;
static RAM: [Page; 1] = [Page::ZERO];

const BASE: u64 = 0x4000_0000;
const DEVICE: u64 = 0x0a00_0000;

/// KVM_CAP_ARM_EL1_32BIT.
const CAP_EL1_32BIT: u32 = 93;
const DACR32: u64 = reg::system(3, 4, 3, 0, 0);
const IFSR32: u64 = reg::system(3, 4, 5, 0, 1);
const VBAR: u64 = reg::system(3, 0, 12, 0, 0);
/// SPSR_abt: the second of `struct kvm_regs`'s `spsr`.
const SPSR_ABT: u64 = reg::ARM64 | reg::U64 | reg::CORE | 0x4a;

/// In A32, with r1 = the device and r5 = its CPSR. Before an exception that EL2 makes it take, SPSR_svc gets what SPSR of the new
/// mode has to be: QEMU's CPU shows the handler the former.
#[rustfmt::skip]
static GUEST: [u32; 38] = [
    0xea00_0006,                            // b start: vectors
    0xea00_001f,                            // b undefined
    0xeaff_fffe, 0xeaff_fffe,
    0xea00_001e,                            // b abort
    0xeaff_fffe, 0xeaff_fffe, 0xeaff_fffe,
    0xe591_0000,                            // start: ldr r0, [r1]
    0xe280_0001,                            // add r0, r0, #1
    0xe1c1_00b8,                            // strh r0, [r1, #8]
    0xe1d1_20d4,                            // ldrsb r2, [r1, #4]
    0xe581_200c,                            // str r2, [r1, #12]
    0xe591_e010,                            // ldr lr, [r1, #16]
    0xe581_e014,                            // str lr, [r1, #20]
    0xee13_0f10,                            // mrc p15, 0, r0, c3, c0, 0: DACR
    0xe581_0018,                            // str r0, [r1, #24]
    0xe144_0300,                            // mrs r0, spsr_abt
    0xe581_001c,                            // str r0, [r1, #28]
    0xee05_3f30,                            // mcr p15, 0, r3, c5, c0, 1: IFSR
    0xe3a0_0000,                            // mov r0, #0
    0xe16f_f005,                            // msr spsr_fsxc, r5
    0xee39_0f50,                            // mrc p15, 1, r0, c9, c0, 2: undefined
    0xe581_0020,                            // str r0, [r1, #32]
    0xf108_0100,                            // cpsie a
    0xe320_f000,                            // nop
    0xe581_0024,                            // str r0, [r1, #36]
    0xe16f_f005,                            // msr spsr_fsxc, r5
    0xe1c1_62d8,                            // ldrd r6, r7, [r1, #40]
    0xe581_002c,                            // str r0, [r1, #44]
    0xe3a0_0008,                            // mov r0, #8
    0xe380_0321,                            // orr r0, r0, #0x84000000: SYSTEM_OFF
    0xe140_0070,                            // hvc #0
    0xeaff_fffe,
    0xe3a0_0055,                            // undefined: mov r0, #0x55
    0xe1b0_f00e,                            // movs pc, lr
    0xee15_0f10,                            // abort: mrc p15, 0, r0, c5, c0, 0: DFSR
    0xe25e_f004,                            // subs pc, lr, #4: past the instruction
];

/// KVM_RUN until something else than an interrupt of the root's ends it.
fn run(vcpu: &Vcpu<Hypercall>) -> Result<Exit, Errno> {
    loop {
        match vcpu.run() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

fn stored(vcpu: &Vcpu<Hypercall>, offset: u64, size: u32) -> Check<u64> {
    match run(vcpu) {
        Ok(Exit::MmioWrite { address, size: s, value }) if (address, s) == (DEVICE + offset, size) => Ok(value),
        other => Err(failed(format_args!("KVM_RUN: {other:x?}, not a store of {size} at {offset}"))),
    }
}

fn loads(vcpu: &Vcpu<Hypercall>, offset: u64, size: u32, value: u64) -> Check {
    check_eq!(run(vcpu), Ok(Exit::MmioRead { address: DEVICE + offset, size }), "a load");
    vcpu.page().answer(value);
    Ok(())
}

fn aarch32(_: &'static Machine) -> Check {
    let system = System(Hypercall);
    let vm = well("KVM_CREATE_VM", system.create_vm(0))?;
    let [vcpu, other] = [(0, &RUN), (1, &OTHER)].map(|(id, page)| vm.create_vcpu(id, page));
    let (vcpu, other) = (well("KVM_CREATE_VCPU", vcpu)?, well("KVM_CREATE_VCPU", other)?);
    let target = well("KVM_ARM_PREFERRED_TARGET", vm.preferred_target())?;
    let with = |features| VcpuInit { features: [features, 0, 0, 0, 0, 0, 0], ..target };
    let narrow = with(feature::PSCI_0_2 | feature::EL1_32BIT);
    if system.check_extension(CAP_EL1_32BIT) != Ok(1) {
        check_eq!(vcpu.init(&narrow), Err(Errno::EINVAL), "KVM_ARM_VCPU_EL1_32BIT where EL1 is always AArch64");
        return skip("EL1 cannot be AArch32");
    }
    RAM[0].load(&GUEST);
    clean(&RAM[0]);
    well("KVM_SET_USER_MEMORY_REGION", vm.set_memory(0, 0, BASE, &RAM))?;
    well("KVM_ARM_VCPU_INIT", vcpu.init(&narrow))?;
    check_eq!(
        other.init(&with(feature::PSCI_0_2)),
        Err(Errno::EINVAL),
        "a vCPU whose EL1 is AArch64 beside one whose is not"
    );
    well("KVM_ARM_VCPU_INIT of the second", other.init(&narrow))?;

    check_eq!(vcpu.register(reg::PSTATE), Ok(0x1d3), "PSTATE after reset");
    for pstate in [0x3c5, 0x3c4, 0x3c0, 0x3c9, 0x16, 0x1a] {
        check_eq!(vcpu.set_register(reg::PSTATE, pstate), Err(Errno::EINVAL), "PSTATE {pstate:#x}");
    }
    for pstate in [0x1d0, 0x1d1, 0x1d2, 0x1d7, 0x1db, 0x1df, 0x1d3] {
        well("KVM_SET_ONE_REG of PSTATE", vcpu.set_register(reg::PSTATE, pstate))?;
    }
    well("KVM_SET_ONE_REG of x20", vcpu.set_register(reg::x(20), 1 << 32 | 5))?;
    check_eq!(vcpu.register(reg::x(20)), Ok(5), "LR_abt has 32 bits");
    for (id, value) in [
        (reg::PC, BASE),
        (reg::x(1), DEVICE),
        (reg::x(3), 5),
        (reg::x(5), 0x1d3),
        (VBAR, BASE),
        (DACR32, 0x1234_5678),
        (SPSR_ABT, 0x6000_01d0),
    ] {
        well("KVM_SET_ONE_REG", vcpu.set_register(id, value))?;
        check_eq!(vcpu.register(id), Ok(value), "register {id:#x}");
    }

    loads(&vcpu, 0, 4, 0xffff_ffff_1234_ffff)?;
    check_eq!(stored(&vcpu, 8, 2)?, 0, "a halfword");
    loads(&vcpu, 4, 1, 0x80)?;
    check_eq!(stored(&vcpu, 12, 4)?, 0xffff_ff80, "a byte, sign-extended");
    loads(&vcpu, 16, 4, 0x8765_4321)?;
    check_eq!(stored(&vcpu, 20, 4)?, 0x8765_4321, "by LR_svc");
    check_eq!(vcpu.register(reg::x(18)), Ok(0x8765_4321), "LR_svc");
    check_eq!(vcpu.register(reg::x(14)), Ok(0), "LR_usr");
    check_eq!(stored(&vcpu, 24, 4)?, 0x1234_5678, "DACR");
    check_eq!(stored(&vcpu, 28, 4)?, 0x6000_01d0, "SPSR_abt");

    // The SError waits for PSTATE.A, past an exception.
    let pending = VcpuEvents { serror_pending: 1, ..VcpuEvents::default() };
    well("KVM_SET_VCPU_EVENTS", vcpu.set_events(&pending))?;
    check_eq!(stored(&vcpu, 32, 4)?, 0x55, "the undefined instruction's handler");
    check_eq!(vcpu.register(IFSR32), Ok(5), "IFSR32_EL2");
    check_eq!(well("KVM_GET_VCPU_EVENTS", vcpu.events())?.serror_pending, 1, "pending while it is masked");
    // An asynchronous external abort, of whichever type (ExT).
    check_eq!(stored(&vcpu, 36, 4)? & !0x1000, 0x406, "DFSR of the SError");
    check_eq!(well("KVM_GET_VCPU_EVENTS", vcpu.events())?.serror_pending, 0, "pending once it was taken");

    check_eq!(run(&vcpu), Err(Errno::ENOSYS), "KVM_RUN to a load that no syndrome describes");
    well("KVM_SET_VCPU_EVENTS", vcpu.set_events(&VcpuEvents { ext_dabt_pending: 1, ..VcpuEvents::default() }))?;
    check_eq!(stored(&vcpu, 44, 4)?, 0x8, "DFSR of the abort");
    match run(&vcpu) {
        Ok(Exit::SystemEvent { kind: event::SHUTDOWN, .. }) => Ok(()),
        other => Err(failed(format_args!("KVM_RUN: {other:x?}, not the end"))),
    }
}
