//! KVM_IOCTL: the owner of the machine makes VMs of its own, with KVM's API by hypercall.

use super::stub::{HVC_STUB_ERR, RESET_VECTORS};
use crate::{
    check_eq,
    harness::{Case, Check, Under::*, case},
};
use core::{
    arch::global_asm,
    cell::UnsafeCell,
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};
use keel_test_kernel::{machine::Machine, power};

pub const CASES: &[Case] = &[
    case("kvm/system", 1, Root, system),
    case("kvm/runs_a_vm", 1, Root, runs_a_vm),
    case("kvm/dirty_log", 1, Root, dirty_log),
];

const KVM_IOCTL: u32 = 0xc600_0200;

const ENOENT: i64 = -2;
const EBADF: i64 = -9;
const EFAULT: i64 = -14;
const EEXIST: i64 = -17;
const EINVAL: i64 = -22;
const ENOTTY: i64 = -25;
const ENOEXEC: i64 = -8;

const SYSTEM: u64 = 0;
const GET_API_VERSION: u64 = 0xae00;
const CREATE_VM: u64 = 0xae01;
const CHECK_EXTENSION: u64 = 0xae03;
const GET_VCPU_MMAP_SIZE: u64 = 0xae04;
const CREATE_VCPU: u64 = 0xae41;
const SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;
const GET_DIRTY_LOG: u64 = 0x4010_ae42;
const CREATE_DEVICE: u64 = 0xc00c_aee0;
const SET_DEVICE_ATTR: u64 = 0x4018_aee1;
const RUN: u64 = 0xae80;
const SET_ONE_REG: u64 = 0x4010_aeac;
const GET_ONE_REG: u64 = 0x4010_aeab;
const VCPU_INIT: u64 = 0x4020_aeae;
const CLOSE: u64 = 0x6b00;
const SET_RUN_PAGE: u64 = 0x6b01;

fn ioctl(handle: u64, number: u64, argument: u64) -> i64 {
    power::hvc(KVM_IOCTL, [handle, number, argument])[0] as i64
}

fn at<T>(value: &T) -> u64 {
    core::ptr::from_ref(value) as u64
}

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; 4096]>);
// SAFETY: one CPU runs these cases, and a VM, which is run by that CPU.
unsafe impl Sync for Page {}

/// `struct kvm_run`.
static RUN_PAGE: Page = Page(UnsafeCell::new([0; 4096]));
/// The VM's memory.
static MEMORY: Page = Page(UnsafeCell::new([0; 4096]));

fn field<T: Copy>(offset: usize) -> T {
    // SAFETY: inside the page, which hypervisor and kernel write in turn; the fields have no invalid values.
    unsafe { RUN_PAGE.0.get().cast::<u8>().add(offset).cast::<T>().read_volatile() }
}

fn set_field<T: Copy>(offset: usize, value: T) {
    // SAFETY: as in `field`.
    unsafe { RUN_PAGE.0.get().cast::<u8>().add(offset).cast::<T>().write_volatile(value) };
}

// The guest: reads a device, writes what it read plus one beside it, and switches itself off.
global_asm!(
    ".pushsection .rodata.kvm_guest, \"a\"",
    ".balign 8",
    ".global kvm_guest",
    "kvm_guest:",
    "ldr w0, [x1]",
    "add w0, w0, #1",
    "str x0, [x1, #8]",
    "mov w0, #0x0008",
    "movk w0, #0x8400, lsl #16",
    "hvc #0",
    "b .",
    ".balign 8",
    ".global kvm_guest_end",
    "kvm_guest_end:",
    ".popsection",
);

// The guest: writes to one page, tells by a store to a device, and again for ever with the next value in x0 and x2.
global_asm!(
    ".pushsection .rodata.kvm_writer, \"a\"",
    ".balign 8",
    ".global kvm_writer",
    "kvm_writer:",
    "str x0, [x0]",
    "str wzr, [x1]",
    "b kvm_writer",
    ".balign 8",
    ".global kvm_writer_end",
    "kvm_writer_end:",
    ".popsection",
);

unsafe extern "C" {
    static kvm_writer: u8;
    static kvm_writer_end: u8;
    static kvm_guest: u8;
    static kvm_guest_end: u8;
}

fn system(_: &'static Machine) -> Check {
    check_eq!(ioctl(SYSTEM, GET_API_VERSION, 0), 12, "KVM_GET_API_VERSION");
    check_eq!(ioctl(SYSTEM, GET_API_VERSION, 1), EINVAL, "KVM_GET_API_VERSION with an argument");
    check_eq!(ioctl(SYSTEM, GET_VCPU_MMAP_SIZE, 0), 8192, "KVM_GET_VCPU_MMAP_SIZE");
    check_eq!(ioctl(SYSTEM, CHECK_EXTENSION, 70), 1, "KVM_CAP_ONE_REG");
    check_eq!(ioctl(SYSTEM, CHECK_EXTENSION, 0xffff), 0, "a capability that nobody has");
    check_eq!(ioctl(SYSTEM, 0xae02, 0), EINVAL, "an unknown number");
    check_eq!(ioctl(SYSTEM, RUN, 0), EINVAL, "KVM_RUN on the system");
    check_eq!(ioctl(77, GET_API_VERSION, 0), EBADF, "a handle that is none");
    check_eq!(ioctl(u64::MAX, CLOSE, 0), EBADF, "closing a handle that is none");
    check_eq!(ioctl(SYSTEM, CREATE_VM, 1 << 8), EINVAL, "KVM_CREATE_VM of a strange type");
    Ok(())
}

const DEVICE: u64 = 0x0a00_0000;
const RAM: u64 = 0x4000_0000;

/// A VM without anything.
fn create() -> Check<u64> {
    let vm = ioctl(SYSTEM, CREATE_VM, 0);
    check_eq!(vm > 0, true, "KVM_CREATE_VM: {vm}");
    Ok(vm as u64)
}

/// A program in a page of memory.
fn load(program: [*const u8; 2], page: &Page) {
    let [code, end] = program;
    // SAFETY: the code is between the labels, and a page is longer.
    unsafe { code.copy_to_nonoverlapping(page.0.get().cast(), end as usize - code as usize) };
    keel_test_kernel::arch::flush_dcache(page.0.get() as usize, 4096);
}

fn set_register(vcpu: u64, n: u64, value: u64) -> Check {
    let one = [0x6030_0000_0010_0000 + 2 * n, at(&value)];
    check_eq!(ioctl(vcpu, SET_ONE_REG, at(&one)), 0, "KVM_SET_ONE_REG of register {n}");
    Ok(())
}

const PC: u64 = 32;

/// A vGICv3 at QEMU's addresses and a vCPU.
fn gic_and_vcpu(vm: u64) -> Check<[u64; 2]> {
    let device = [const { AtomicU32::new(0) }; 3];
    device[0].store(7, Relaxed);
    check_eq!(ioctl(vm, CREATE_DEVICE, at(&device)), 0, "KVM_CREATE_DEVICE");
    let gic = u64::from(device[1].load(Relaxed));
    let vcpu = ioctl(vm, CREATE_VCPU, 0);
    check_eq!(vcpu > 0, true, "KVM_CREATE_VCPU: {vcpu}");
    let again = ioctl(vm, CREATE_VCPU, 0);
    check_eq!(again, EEXIST, "the same vCPU again");
    for (group, attribute, value) in [(0_u64, 2_u64, 0x0800_0000_u64), (0, 3, 0x080a_0000), (4, 0, 0)] {
        let attr = [group << 32, attribute, at(&value)];
        check_eq!(ioctl(gic, SET_DEVICE_ATTR, at(&attr)), 0, "KVM_SET_DEVICE_ATTR {group} {attribute}");
    }
    Ok([gic, vcpu as u64])
}

fn initialise(vcpu: u64) -> Check {
    let init = [5_u32, 1 << 2, 0, 0, 0, 0, 0, 0];
    check_eq!(ioctl(vcpu, VCPU_INIT, at(&init)), 0, "KVM_ARM_VCPU_INIT");
    Ok(())
}

fn runs_a_vm(_: &'static Machine) -> Check {
    let vm = create()?;
    load([&raw const kvm_guest, &raw const kvm_guest_end], &MEMORY);
    let mut region = [0_u64, RAM, 4096, MEMORY.0.get() as u64];
    check_eq!(ioctl(vm, SET_USER_MEMORY_REGION, at(&region)), 0, "KVM_SET_USER_MEMORY_REGION");
    region[0] = 1;
    check_eq!(ioctl(vm, SET_USER_MEMORY_REGION, at(&region)), EEXIST, "a slot over another");
    check_eq!(ioctl(vm, SET_USER_MEMORY_REGION, 1 << 50), EFAULT, "an argument that is nowhere");
    let [gic, vcpu] = gic_and_vcpu(vm)?;
    check_eq!(ioctl(gic, RUN, 0), ENOTTY, "KVM_RUN on a device");
    check_eq!(ioctl(vcpu, RUN, 0), EFAULT, "KVM_RUN without a page");
    check_eq!(ioctl(vcpu, SET_RUN_PAGE, 8), EINVAL, "a page that is none");
    check_eq!(ioctl(vcpu, SET_RUN_PAGE, RUN_PAGE.0.get() as u64), 0, "the page of struct kvm_run");
    check_eq!(ioctl(vcpu, RUN, 0), ENOEXEC, "KVM_RUN before KVM_ARM_VCPU_INIT");
    initialise(vcpu)?;
    set_register(vcpu, PC, RAM)?;
    set_register(vcpu, 1, DEVICE)?;
    // The load.
    check_eq!(ioctl(vcpu, RUN, 0), 0, "KVM_RUN");
    check_eq!(field::<u32>(8), 6, "exit_reason");
    check_eq!((field::<u64>(32), field::<u32>(48), field::<u8>(52)), (DEVICE, 4, 0), "mmio of the load");
    set_field(40, 41_u64);
    // The store.
    check_eq!(ioctl(vcpu, RUN, 0), 0, "KVM_RUN");
    check_eq!(field::<u32>(8), 6, "exit_reason");
    let store = (field::<u64>(32), field::<u64>(40), field::<u32>(48), field::<u8>(52));
    check_eq!(store, (DEVICE + 8, 42, 8, 1), "mmio of the store");
    // It cannot send keel away meanwhile.
    check_eq!(power::hvc(RESET_VECTORS as u32, [0; 3])[0], HVC_STUB_ERR, "HVC_RESET_VECTORS with a VM");
    // And off.
    check_eq!(ioctl(vcpu, RUN, 0), 0, "KVM_RUN");
    check_eq!((field::<u32>(8), field::<u32>(32)), (24, 1), "exit_reason and type");
    let value = AtomicU64::new(0);
    let one = [0x6030_0000_0010_0000_u64, at(&value)];
    check_eq!(ioctl(vcpu, GET_ONE_REG, at(&one)), 0, "KVM_GET_ONE_REG");
    // Should SYSTEM_OFF ever return.
    check_eq!(value.load(Relaxed) as i64, -6, "x0");
    for handle in [vcpu, gic, vm] {
        check_eq!(ioctl(handle, CLOSE, 0), 0, "closing {handle}");
        check_eq!(ioctl(handle, CLOSE, 0), EBADF, "closing {handle} again");
    }
    Ok(())
}

/// Pages of the memory that is logged.
const PAGES: usize = 130;

#[repr(C, align(4096))]
struct Pages(UnsafeCell<[u8; PAGES * 4096]>);
// SAFETY: as for `Page`.
unsafe impl Sync for Pages {}
static LOGGED: Pages = Pages(UnsafeCell::new([0; PAGES * 4096]));

fn dirty_log(_: &'static Machine) -> Check {
    const DATA: u64 = 0x8000_0000;
    const LOG: u64 = 1 << 32;
    const READ_ONLY: u64 = 2 << 32;
    let vm = create()?;
    load([&raw const kvm_writer, &raw const kvm_writer_end], &MEMORY);
    let memory = LOGGED.0.get() as u64;
    for region in [[READ_ONLY, RAM, 4096, MEMORY.0.get() as u64], [1 | LOG, DATA, 4096 * PAGES as u64, memory]] {
        check_eq!(ioctl(vm, SET_USER_MEMORY_REGION, at(&region)), 0, "KVM_SET_USER_MEMORY_REGION");
    }
    let [gic, vcpu] = gic_and_vcpu(vm)?;
    check_eq!(ioctl(vcpu, SET_RUN_PAGE, RUN_PAGE.0.get() as u64), 0, "the page of struct kvm_run");
    initialise(vcpu)?;
    set_register(vcpu, PC, RAM)?;
    set_register(vcpu, 1, DEVICE)?;
    let bitmap = [const { AtomicU64::new(u64::MAX) }; PAGES.div_ceil(64)];
    let log = |slot: u64| ioctl(vm, GET_DIRTY_LOG, at(&[slot, at(&bitmap)]));
    let read = || bitmap.each_ref().map(|word| word.load(Relaxed));
    check_eq!((log(1), read()), (0, [0; 3]), "the log at first");
    for round in 0..3 {
        let mut expected = [0; 3];
        for page in [0, 1, 63, 64, 100, 129, 100] {
            set_register(vcpu, 0, DATA + 4096 * page + 8 * round)?;
            check_eq!((ioctl(vcpu, RUN, 0), field::<u32>(8), field::<u64>(32)), (0, 6, DEVICE), "KVM_RUN");
            // SAFETY: inside the memory, which the guest wrote before it left.
            let written = unsafe { ((memory + 4096 * page + 8 * round) as *const u64).read_volatile() };
            check_eq!(written, DATA + 4096 * page + 8 * round, "what the guest wrote to page {page}");
            expected[page as usize / 64] |= 1 << (page % 64);
        }
        check_eq!((log(1), read()), (0, expected), "the log of round {round}");
        check_eq!((log(1), read()), (0, [0; 3]), "the log that was just read");
    }
    // A store to read-only memory is its maker's, and changes nothing.
    set_register(vcpu, 0, RAM + 0x800)?;
    check_eq!(
        (ioctl(vcpu, RUN, 0), field::<u32>(8), field::<u64>(32)),
        (0, 6, RAM + 0x800),
        "a store to read-only memory"
    );
    check_eq!(field::<u64>(40), RAM + 0x800, "its value");
    check_eq!((ioctl(vcpu, RUN, 0), field::<u64>(32)), (0, DEVICE), "KVM_RUN");
    for (slot, errno) in [(0, ENOENT), (2, ENOENT), (0xffff, EINVAL), (1 << 16, EINVAL)] {
        check_eq!(log(slot), errno, "the log of slot {slot:#x}");
    }
    check_eq!(ioctl(vm, GET_DIRTY_LOG, at(&[1_u64, 1 << 50])), EFAULT, "a bitmap that is nowhere");
    // Without a log any more.
    check_eq!(ioctl(vm, SET_USER_MEMORY_REGION, at(&[1_u64, DATA, 4096 * PAGES as u64, memory])), 0, "no log");
    set_register(vcpu, 0, DATA + 4096 * 5)?;
    check_eq!((ioctl(vcpu, RUN, 0), field::<u64>(32)), (0, DEVICE), "KVM_RUN");
    check_eq!(log(1), ENOENT, "the log that is gone");
    for handle in [vcpu, gic, vm] {
        check_eq!(ioctl(handle, CLOSE, 0), 0, "closing {handle}");
    }
    Ok(())
}
