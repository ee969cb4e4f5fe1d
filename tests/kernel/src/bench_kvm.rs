//! What a run of a VM that was made by KVM_IOCTL costs its maker: `bench-kvm` of the VM that owns the machine.

use core::{arch::global_asm, cell::UnsafeCell};
use keel_kvm::{Backend, Hypercall};
use keel_test_kernel::{arch, power, println, time};

const KVM_IOCTL: u32 = 0xc600_0200;
const ROUNDS: u64 = 1000;
const RAM: u64 = 0x4000_0000;
const DEVICE: u64 = 0x0a00_0000;

#[repr(C, align(4096))]
struct Page(UnsafeCell<[u8; 4096]>);
// SAFETY: one CPU measures, and the VM runs on that CPU.
unsafe impl Sync for Page {}

static RUN_PAGE: Page = Page(UnsafeCell::new([0; 4096]));
static MEMORY: Page = Page(UnsafeCell::new([0; 4096]));

// The guest: stores to a device of its maker's for ever.
global_asm!(
    ".pushsection .rodata.kvm_store, \"a\"",
    ".balign 8",
    ".global kvm_store",
    "kvm_store:",
    "str wzr, [x1]",
    "b kvm_store",
    ".balign 8",
    ".popsection",
);

unsafe extern "C" {
    static kvm_store: [u32; 2];
}

fn ioctl(handle: u64, number: u64, argument: u64) -> i64 {
    power::hvc(KVM_IOCTL, [handle, number, argument])[0] as i64
}

fn at<T>(value: &T) -> u64 {
    core::ptr::from_ref(value) as u64
}

/// A vCPU that is about to store.
fn vcpu() -> Result<u64, (&'static str, i64)> {
    let expect = |what, result: i64| if result >= 0 { Ok(result as u64) } else { Err((what, result)) };
    // SAFETY: the code is two words, and the page is longer; nobody else has it.
    unsafe { (&raw const kvm_store).copy_to_nonoverlapping(MEMORY.0.get().cast(), 1) };
    arch::flush_dcache(MEMORY.0.get() as usize, 4096);
    let vm = expect("KVM_CREATE_VM", ioctl(0, 0xae01, 0))?;
    let region = [0, RAM, 4096, MEMORY.0.get() as u64];
    expect("KVM_SET_USER_MEMORY_REGION", ioctl(vm, 0x4020_ae46, at(&region)))?;
    let device = UnsafeCell::new([7_u32, 0, 0]);
    expect("KVM_CREATE_DEVICE", ioctl(vm, 0xc00c_aee0, device.get() as u64))?;
    // SAFETY: nobody has a reference to it.
    let gic = u64::from(unsafe { device.get().cast::<u32>().add(1).read_volatile() });
    let vcpu = expect("KVM_CREATE_VCPU", ioctl(vm, 0xae41, 0))?;
    for (group, attribute, value) in [(0_u64, 2_u64, 0x0800_0000_u64), (0, 3, 0x080a_0000), (4, 0, 0)] {
        let attr = [group << 32, attribute, at(&value)];
        expect("KVM_SET_DEVICE_ATTR", ioctl(gic, 0x4018_aee1, at(&attr)))?;
    }
    let init = [5_u32, 1 << 2, 0, 0, 0, 0, 0, 0];
    expect("KVM_ARM_VCPU_INIT", ioctl(vcpu, 0x4020_aeae, at(&init)))?;
    for (register, value) in [(32, RAM), (1, DEVICE)] {
        let one = [0x6030_0000_0010_0000 + 2 * register, at(&value)];
        expect("KVM_SET_ONE_REG", ioctl(vcpu, 0x4010_aeac, at(&one)))?;
    }
    expect("the page of struct kvm_run", ioctl(vcpu, 0x6b01, RUN_PAGE.0.get() as u64))?;
    Ok(vcpu)
}

/// Measures.
pub fn run() {
    let vcpu = match vcpu() {
        Ok(vcpu) => vcpu,
        Err((what, error)) => return println!("bench kvm_run_exit FAILED: {what}: {error}"),
    };
    let mut failed = Hypercall.call(vcpu, 0xae80, 0);
    let start = time::now();
    for _ in 0..ROUNDS {
        failed |= Hypercall.call(vcpu, 0xae80, 0);
    }
    let ticks = time::now() - start;
    // SAFETY: inside the page, which no run writes now.
    let reason = unsafe { RUN_PAGE.0.get().cast::<u32>().add(2).read_volatile() };
    if failed != 0 || reason != 6 {
        return println!("bench kvm_run_exit FAILED: {failed}, exit {reason}");
    }
    println!("bench kvm_run_exit {} insn", ticks / ROUNDS);
}
