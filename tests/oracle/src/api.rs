//! KVM's calls one by one: the script of `keel-kvm` on /dev/kvm, whose lines keel's are compared with.
//!
//! What is not a file here is what keel has for it: giving a handle back is `close`, and the page of `struct kvm_run` is
//! mapped over the one that the script offers.

use std::{
    cell::RefCell,
    collections::HashSet,
    io::Write,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use anyhow::{Context, Result};
use keel_kvm::{Backend, SYSTEM, number, page::PAGE, script, uapi};
use kvm_bindings::*;
use rustix::{
    event::EventfdFlags,
    io::Errno,
    ioctl::{Ioctl, IoctlOutput, Opcode, ioctl},
    mm::{MapFlags, ProtFlags, mmap},
};

/// /dev/kvm, and the files that it has given away.
struct Linux {
    system: OwnedFd,
    files: RefCell<HashSet<RawFd>>,
    events: [OwnedFd; 8],
}

/// Eventfds.
impl script::Events for Linux {
    fn number(&self, n: u32) -> u32 {
        self.event(n).as_raw_fd() as u32
    }

    fn happen(&self, n: u32) {
        // One that has happened too often to count has happened.
        let _ = rustix::io::write(self.event(n), &1_u64.to_ne_bytes());
    }

    fn prepare(&self, _: u32) {}

    fn has_happened(&self, n: u32) -> bool {
        rustix::io::read(self.event(n), &mut [0; 8]).is_ok()
    }
}

/// Any call at all.
struct Raw {
    number: Opcode,
    argument: u64,
}

// SAFETY: the kernel checks what it is told and reads and writes what the argument names, which is what `Backend::call` says.
// The output is the call's own.
unsafe impl Ioctl for Raw {
    type Output = i64;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.number
    }

    fn as_ptr(&mut self) -> *mut rustix::ffi::c_void {
        std::ptr::with_exposed_provenance_mut(self.argument as usize)
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut rustix::ffi::c_void) -> rustix::io::Result<i64> {
        Ok(output.into())
    }
}

fn negated(errno: Errno) -> i64 {
    -i64::from(errno.raw_os_error())
}

impl Linux {
    fn event(&self, n: u32) -> &OwnedFd {
        &self.events[n as usize % self.events.len()]
    }

    fn file(&self, handle: u64) -> Option<BorrowedFd<'_>> {
        let file = if handle == SYSTEM { self.system.as_raw_fd() } else { RawFd::try_from(handle).ok()? };
        let known = handle == SYSTEM || self.files.borrow().contains(&file);
        // SAFETY: the system's file is open; others are until they are closed, which takes them out of the set.
        known.then(|| unsafe { BorrowedFd::borrow_raw(file) })
    }

    fn made(&self, file: i64) {
        if let Ok(file) = RawFd::try_from(file) {
            self.files.borrow_mut().insert(file);
        }
    }
}

impl Backend for Linux {
    fn call(&self, handle: u64, number: u32, argument: u64) -> i64 {
        let Some(file) = self.file(handle) else { return negated(Errno::BADF) };
        match number {
            number::CLOSE if handle == SYSTEM => return negated(Errno::INVAL),
            number::CLOSE => {
                let file = file.as_raw_fd();
                self.files.borrow_mut().remove(&file);
                // SAFETY: it was among the files that this process has of KVM, and nobody else's.
                drop(unsafe { OwnedFd::from_raw_fd(file) });
                return 0;
            }
            number::SET_RUN_PAGE => {
                let protection = ProtFlags::READ | ProtFlags::WRITE;
                let place = std::ptr::with_exposed_provenance_mut(argument as usize);
                // SAFETY: the script gives a page of its own for this, which it accesses by atomic words only.
                let mapped = unsafe { mmap(place, PAGE, protection, MapFlags::SHARED | MapFlags::FIXED, file, 0) };
                return mapped.map_or_else(negated, |_| 0);
            }
            _ => {}
        }
        // SAFETY: see `Raw`.
        let answer = unsafe { ioctl(file, Raw { number, argument }) };
        let answer = answer.unwrap_or_else(negated);
        match number {
            number::CREATE_VM if handle == SYSTEM => self.made(answer),
            number::CREATE_VCPU => self.made(answer),
            number::CREATE_DEVICE if answer == 0 => {
                let device: *const uapi::CreateDevice = std::ptr::with_exposed_provenance(argument as usize);
                // SAFETY: the kernel has read and written the structure, so it is there; the script has it alone.
                let device = unsafe { device.read() };
                if device.flags & uapi::device::TEST == 0 {
                    self.made(device.fd.into());
                }
            }
            _ => {}
        }
        answer
    }
}

/// Makes the script's calls; prints its lines.
pub(crate) fn run() -> Result<()> {
    let mode = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    let system = rustix::fs::open("/dev/kvm", mode, rustix::fs::Mode::empty()).context("/dev/kvm")?;
    let event = || rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("an eventfd");
    let events = [event()?, event()?, event()?, event()?, event()?, event()?, event()?, event()?];
    let linux = Linux { system, files: RefCell::default(), events };
    let mut output = std::io::stdout().lock();
    let mut failed = None;
    // KVM cleans what it maps.
    script::run(&linux, &linux, &|_| {}, &mut |line| {
        failed = failed.take().or(writeln!(output, "{line}").err());
    });
    failed.map_or(Ok(()), |error| Err(error).context("standard output"))
}

/// The layouts and numbers of the client that only arm64 has; `tests/kvm` compares the others itself.
const _: () = {
    use core::mem::offset_of;
    use keel_kvm::uapi::{feature, reg, vcpu_group, vgic};
    assert!(size_of::<uapi::VcpuInit>() == size_of::<kvm_vcpu_init>());
    assert!(offset_of!(uapi::VcpuInit, features) == offset_of!(kvm_vcpu_init, features));
    assert!(size_of::<uapi::VcpuEvents>() == size_of::<kvm_vcpu_events>());
    assert!(offset_of!(uapi::VcpuEvents, reserved) == offset_of!(kvm_vcpu_events, reserved));
    assert!(size_of::<uapi::GuestDebug>() == size_of::<kvm_guest_debug>());
    assert!(offset_of!(uapi::GuestDebug, dbg_bcr) == offset_of!(kvm_guest_debug, arch));
    assert!(size_of::<uapi::DeviceAddr>() == size_of::<kvm_arm_device_addr>());
    assert!(size_of::<uapi::CounterOffset>() == size_of::<kvm_arm_counter_offset>());
    assert!(size_of::<uapi::RegMaskRange>() == size_of::<reg_mask_range>());
    assert!(size_of::<uapi::SmcccFilter>() == size_of::<kvm_smccc_filter>());
    assert!(offset_of!(uapi::SmcccFilter, action) == offset_of!(kvm_smccc_filter, action));
    assert!(size_of::<uapi::PmuEventFilter>() == size_of::<kvm_pmu_event_filter>());
    assert!(offset_of!(uapi::PmuEventFilter, action) == offset_of!(kvm_pmu_event_filter, action));
    assert!(uapi::run::DEVICE_IRQ_LEVEL == offset_of!(kvm_run, s));
    assert!(feature::POWER_OFF == 1 << KVM_ARM_VCPU_POWER_OFF && feature::EL1_32BIT == 1 << KVM_ARM_VCPU_EL1_32BIT);
    assert!(feature::PSCI_0_2 == 1 << KVM_ARM_VCPU_PSCI_0_2 && feature::PMU_V3 == 1 << KVM_ARM_VCPU_PMU_V3);
    assert!(feature::SVE == 1 << KVM_ARM_VCPU_SVE);
    assert!(feature::PTRAUTH_ADDRESS == 1 << KVM_ARM_VCPU_PTRAUTH_ADDRESS);
    assert!(feature::PTRAUTH_GENERIC == 1 << KVM_ARM_VCPU_PTRAUTH_GENERIC);
    assert!(uapi::TARGET_GENERIC_V8 == KVM_ARM_TARGET_GENERIC_V8);
    assert!(vgic::ADDR == KVM_DEV_ARM_VGIC_GRP_ADDR && vgic::DIST_REGS == KVM_DEV_ARM_VGIC_GRP_DIST_REGS);
    assert!(vgic::CPU_REGS == KVM_DEV_ARM_VGIC_GRP_CPU_REGS && vgic::NR_IRQS == KVM_DEV_ARM_VGIC_GRP_NR_IRQS);
    assert!(vgic::CTRL == KVM_DEV_ARM_VGIC_GRP_CTRL && vgic::REDIST_REGS == KVM_DEV_ARM_VGIC_GRP_REDIST_REGS);
    assert!(vgic::CPU_SYSREGS == KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS);
    assert!(vgic::LEVEL_INFO == KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO && vgic::ITS_REGS == KVM_DEV_ARM_VGIC_GRP_ITS_REGS);
    assert!(vgic::V2_DIST == KVM_VGIC_V2_ADDR_TYPE_DIST as u64 && vgic::V2_CPU == KVM_VGIC_V2_ADDR_TYPE_CPU as u64);
    assert!(vgic::V3_DIST == KVM_VGIC_V3_ADDR_TYPE_DIST as u64);
    assert!(vgic::V3_REDIST == KVM_VGIC_V3_ADDR_TYPE_REDIST as u64 && vgic::ITS == KVM_VGIC_ITS_ADDR_TYPE as u64);
    assert!(vgic::V3_REDIST_REGION == KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION as u64);
    assert!(vgic::INIT == KVM_DEV_ARM_VGIC_CTRL_INIT as u64);
    assert!(vcpu_group::PMU == KVM_ARM_VCPU_PMU_V3_CTRL && vcpu_group::TIMER == KVM_ARM_VCPU_TIMER_CTRL);
    assert!(vcpu_group::PVTIME == KVM_ARM_VCPU_PVTIME_CTRL);
    assert!(reg::CORE == KVM_REG_ARM_CORE as u64 && reg::DEMUX == KVM_REG_ARM_DEMUX as u64);
    assert!(reg::SYSREG == KVM_REG_ARM64_SYSREG as u64 && reg::FIRMWARE == KVM_REG_ARM_FW as u64);
    assert!(reg::SVE == KVM_REG_ARM64_SVE as u64 && reg::BITMAPS == KVM_REG_ARM_FW_FEAT_BMAP as u64);
};
