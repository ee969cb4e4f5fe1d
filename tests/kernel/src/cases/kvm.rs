//! KVM_IOCTL: the owner of the machine makes VMs of its own, with KVM's API by hypercall.
//!
//! What each call answers is compared with KVM itself ([`api`], `cargo keel oracle --api`); these cases are what that cannot
//! show: the example of the client, memory that both sides see, and keel that stays as long as there is a VM.

use super::stub::{HVC_STUB_ERR, RESET_VECTORS};
use crate::{
    check_eq,
    harness::{Case, Check, Under::*, case, failed},
};
use keel_kvm::{
    Backend, Device, Errno, Exit, Hypercall, SYSTEM, System, Vcpu, Vm, example, number,
    page::{PAGE, Page},
    script,
    uapi::{VcpuInit, device, event, feature, memory, reg, vgic},
};
use keel_test_kernel::{arch, console, machine::Machine, power};

pub const CASES: &[Case] = &[
    case("kvm/example", 1, Root, example),
    case("kvm/system", 1, Root, system),
    case("kvm/run_page", 1, Root, run_page),
    case("kvm/closing", 1, Root, closing),
    case("kvm/keel_stays", 1, Root, keel_stays),
    case("kvm/dirty_log", 1, Root, dirty_log),
];

/// Pages of the memory that is logged.
const PAGES: usize = 130;

static RUN: Page = Page::ZERO;
static RAM: [Page; 1] = [Page::ZERO];
static LOGGED: [Page; PAGES] = [const { Page::ZERO }; PAGES];

/// Where guests have their memory, and a device.
const BASE: u64 = 0x4000_0000;
const DEVICE: u64 = 0x0a00_0000;

/// Makes the calls of the script that KVM is asked with, too, and prints the answers.
pub fn api() {
    script::run(&Hypercall, &super::kvm_events::SharedInterrupts, &clean, &mut |line| {
        let mut text = heapless::String::<1024>::new();
        // A line that is longer is no line of the script, and the reader says so.
        let _ = core::fmt::write(&mut text, format_args!("{line}\n"));
        console::burst(&text);
    });
}

pub(super) fn clean(page: &Page) {
    arch::flush_dcache(page.address() as usize, PAGE);
}

/// A call that has to go well.
pub fn well<T>(what: &str, result: Result<T, Errno>) -> Check<T> {
    result.map_err(|errno| failed(format_args!("{what}: {errno}")))
}

/// What the client's documentation shows.
fn example(_: &'static Machine) -> Check {
    for value in [41, 0, u32::MAX] {
        let written = well("the example", example::run(&System(Hypercall), &RAM, &RUN, clean, value))?;
        check_eq!(written, Some(value.wrapping_add(1).into()), "what the guest wrote, having read {value}");
    }
    Ok(())
}

fn system(_: &'static Machine) -> Check {
    let system = System(Hypercall);
    check_eq!(system.api_version(), Ok(12), "KVM_GET_API_VERSION");
    check_eq!(system.check_extension(70), Ok(1), "KVM_CAP_ONE_REG");
    for handle in [77, 1 << 32, u64::MAX] {
        check_eq!(Hypercall.call(handle, number::CLOSE, 0), -9, "closing {handle:#x}, which is none");
    }
    check_eq!(Hypercall.call(SYSTEM, number::CLOSE, 0), -22, "closing the system");
    Ok(())
}

/// A guest with a GICv3 and a vCPU that is to run `program`.
struct Guest {
    vcpu: Vcpu<Hypercall>,
    _gic: Device<Hypercall>,
    vm: Vm<Hypercall>,
}

impl Guest {
    /// `flags` are those of its memory.
    fn new(program: &[u32], flags: u32) -> Check<Self> {
        RAM[0].load(program);
        clean(&RAM[0]);
        let vm = well("KVM_CREATE_VM", System(Hypercall).create_vm(0))?;
        well("KVM_SET_USER_MEMORY_REGION", vm.set_memory(0, flags, BASE, &RAM))?;
        let gic = well("KVM_CREATE_DEVICE", vm.create_device(device::VGIC_V3))?;
        let vcpu = well("KVM_CREATE_VCPU", vm.create_vcpu(0, &RUN))?;
        for (kind, address) in [(vgic::V3_DIST, 0x0800_0000_u64), (vgic::V3_REDIST, 0x080a_0000)] {
            well("KVM_DEV_ARM_VGIC_GRP_ADDR", gic.set_attribute(vgic::ADDR, kind, &address))?;
        }
        well("KVM_DEV_ARM_VGIC_CTRL_INIT", gic.set_attribute(vgic::CTRL, vgic::INIT, &()))?;
        let target = well("KVM_ARM_PREFERRED_TARGET", vm.preferred_target())?;
        let features = [feature::PSCI_0_2, 0, 0, 0, 0, 0, 0];
        well("KVM_ARM_VCPU_INIT", vcpu.init(&VcpuInit { features, ..target }))?;
        well("KVM_SET_ONE_REG", vcpu.set_register(reg::PC, BASE))?;
        well("KVM_SET_ONE_REG", vcpu.set_register(reg::x(1), DEVICE))?;
        Ok(Self { vcpu, _gic: gic, vm })
    }

    /// Runs it until it leaves; interrupts are somebody else's.
    fn run(&self) -> Check<Exit> {
        loop {
            match self.vcpu.run() {
                Err(Errno::EINTR) => {}
                result => return well("KVM_RUN", result),
            }
        }
    }
}

/// The page of `struct kvm_run` is keel's own way: on Linux it is mapped.
fn run_page(_: &'static Machine) -> Check {
    // b .-4 after str xzr, [x1]
    let guest = Guest::new(&[0xf900_003f, 0x17ff_ffff], 0)?;
    let vcpu = guest.vcpu.handle();
    let set = |address: u64| Hypercall.call(vcpu, number::SET_RUN_PAGE, address);
    for address in [1, 8, RUN.address() + 8] {
        check_eq!(set(address), -22, "a page at {address:#x}");
    }
    for address in [1 << 50, 0x0900_0000, 1 << 63] {
        check_eq!(set(address), -14, "a page at {address:#x}");
    }
    check_eq!(guest.run()?, Exit::MmioWrite { address: DEVICE, size: 8, value: 0 }, "an exit");
    let other = Hypercall.call(guest.vm.handle(), number::CREATE_VCPU, 0);
    check_eq!(other, -16, "a vCPU beside an initialised interrupt controller");
    check_eq!(set(RUN.address()), 0, "the same page again");
    check_eq!(guest.run()?, Exit::MmioWrite { address: DEVICE, size: 8, value: 0 }, "an exit");
    Ok(())
}

/// Handles are the lowest that are free, and closed once.
fn closing(_: &'static Machine) -> Check {
    let system = System(Hypercall);
    let first = well("KVM_CREATE_VM", system.create_vm(0))?;
    let second = well("KVM_CREATE_VM", system.create_vm(0))?;
    let number = first.handle();
    check_eq!(second.handle() > number, true, "two handles, {number} and {}", second.handle());
    drop(first);
    check_eq!(Hypercall.call(number, number::CLOSE, 0), -9, "closing a closed handle");
    let third = well("KVM_CREATE_VM", system.create_vm(0))?;
    check_eq!(third.handle(), number, "a handle that was closed before");
    Ok(())
}

/// keel cannot be sent away while it runs a VM.
fn keel_stays(_: &'static Machine) -> Check {
    let guest = Guest::new(
        &[
            0x5280_0100, // mov w0, #0x0008
            0x72b0_8000, // movk w0, #0x8400, lsl #16
            0xd400_0002, // hvc #0
        ],
        0,
    )?;
    let leave = || power::hvc(RESET_VECTORS as u32, [0; 3])[0];
    check_eq!(leave(), HVC_STUB_ERR, "HVC_RESET_VECTORS with a VM that has not run");
    check_eq!(guest.run()?, Exit::SystemEvent { kind: event::SHUTDOWN, count: 1, data: 0 }, "SYSTEM_OFF of the guest");
    check_eq!(leave(), HVC_STUB_ERR, "HVC_RESET_VECTORS with a VM that ran");
    // Should SYSTEM_OFF ever return.
    check_eq!(guest.vcpu.register(reg::x(0)), Ok(-6_i64 as u64), "X0");
    Ok(())
}

/// What a guest writes is where its maker has it, and in the log.
fn dirty_log(_: &'static Machine) -> Check {
    const DATA: u64 = 0x8000_0000;
    // str x0, [x0]; str wzr, [x1]; b .-8
    let guest = Guest::new(&[0xf900_0000, 0xb900_003f, 0x17ff_fffe], memory::READONLY)?;
    let vm = &guest.vm;
    well("KVM_SET_USER_MEMORY_REGION", vm.set_memory(1, memory::LOG_DIRTY_PAGES, DATA, &LOGGED))?;
    let store = |address: u64| -> Check<Exit> {
        well("KVM_SET_ONE_REG", guest.vcpu.set_register(reg::x(0), address))?;
        guest.run()
    };
    let log = || -> Check<[u64; 3]> {
        let mut bitmap = [u64::MAX; PAGES.div_ceil(64)];
        well("KVM_GET_DIRTY_LOG", vm.dirty_log(1, PAGES, &mut bitmap))?;
        Ok(bitmap)
    };
    let told = Exit::MmioWrite { address: DEVICE, size: 4, value: 0 };
    check_eq!(log()?, [0; 3], "the log at first");
    for round in 0..3 {
        let mut expected = [0; 3];
        for page in [0, 1, 63, 64, 100, 129, 100] {
            let address = DATA + (PAGE * page + 8 * round) as u64;
            check_eq!(store(address)?, told, "the exit after a store to page {page}");
            check_eq!(LOGGED[page].read(8 * round, 8), address, "what the guest wrote to page {page}");
            expected[page / 64] |= 1 << (page % 64);
        }
        check_eq!(log()?, expected, "the log of round {round}");
        check_eq!(log()?, [0; 3], "the log that was just read");
    }
    // A store to read-only memory is its maker's, and changes nothing.
    let refused = Exit::MmioWrite { address: BASE + 0x800, size: 8, value: BASE + 0x800 };
    check_eq!(store(BASE + 0x800)?, refused, "a store to read-only memory");
    check_eq!(guest.run()?, told, "the exit after it");
    check_eq!(RAM[0].read(0x800, 8), 0, "read-only memory");
    // Without a log any more.
    well("KVM_SET_USER_MEMORY_REGION", vm.set_memory(1, 0, DATA, &LOGGED))?;
    check_eq!(store(DATA)?, told, "the exit after a store that is in no log");
    check_eq!(vm.dirty_log(1, PAGES, &mut [0; 3]), Err(Errno::ENOENT), "the log that is gone");
    Ok(())
}
