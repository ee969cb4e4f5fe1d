//! One vCPU: run, answer what comes to user space, until the machine ends.
//!
//! An access that no device claims is answered as keel's launcher answers it, by an external abort, which KVM injects
//! when it is asked to (KVM_SET_VCPU_EVENTS, ext_dabt_pending). So is one that comes without a syndrome.
//!
//! keel's test calls, by which a guest makes errors pending for itself, are KVM's own calls here.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use kvm_bindings::{
    KVM_EXIT_ARM_NISV, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_vcpu_events,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::devices::Devices;

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// SYSTEM_OFF.
    PoweredOff,
    /// SYSTEM_RESET or SYSTEM_RESET2.
    Reset,
    /// Anything else KVM calls an event.
    Event(u32),
}

impl fmt::Display for Ending {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::PoweredOff => write!(formatter, "powered off"),
            Ending::Reset => write!(formatter, "asked for a reset"),
            Ending::Event(KVM_SYSTEM_EVENT_CRASH) => write!(formatter, "crashed"),
            Ending::Event(kind) => write!(formatter, "ended with system event {kind}"),
        }
    }
}

/// TEST_SET_VCPU_EVENTS, and TEST_GET_VCPU_EVENTS behind it.
pub(crate) const TEST_CALLS: u32 = 0xc600_0210;

// ONE_REG ids of x0 to x3: arm64, 64 bits, core register, offset in struct kvm_regs / 4.
const X: [u64; 4] = [0x6030_0000_0010_0000, 0x6030_0000_0010_0002, 0x6030_0000_0010_0004, 0x6030_0000_0010_0006];

/// What to do before the vCPU runs on.
enum Next {
    Run,
    Call(u32),
    Abort,
    End(Ending),
}

/// Runs vCPU number `index` until the machine ends, on a CPU of its own if there is one, as keel's vCPUs stay on theirs.
pub(crate) fn run(index: usize, mut vcpu: VcpuFd, devices: &Mutex<Devices>) -> Result<Ending> {
    let cpus = std::thread::available_parallelism()?.get();
    let mut own = CpuSet::new();
    own.set(index % cpus);
    sched_setaffinity(None, &own).context("sched_setaffinity")?;
    vcpu.map_coalesced_mmio_ring().context("the ring of collected writes")?;
    loop {
        match next(&mut vcpu, devices).with_context(|| format!("vCPU {index}"))? {
            Next::Run => {}
            Next::Call(function) => answer(&vcpu, function)?,
            Next::Abort => {
                let mut events = kvm_vcpu_events::default();
                events.exception.ext_dabt_pending = 1;
                vcpu.set_vcpu_events(&events).context("KVM_SET_VCPU_EVENTS")?;
            }
            Next::End(ending) => return Ok(ending),
        }
    }
}

/// Hands in the writes that KVM has collected, from whichever vCPU; they are in one ring, which the lock guards.
fn hand_in(vcpu: &mut VcpuFd, devices: &mut Devices) -> Result<()> {
    while let Some(write) = vcpu.coalesced_mmio_read().context("the ring of collected writes")? {
        let [a, b, c, d, ..] = write.data;
        // The ring has only what was asked for, and that is claimed.
        let _ = devices.write(write.phys_addr, u32::from_le_bytes([a, b, c, d]));
    }
    Ok(())
}

fn next(vcpu: &mut VcpuFd, devices: &Mutex<Devices>) -> Result<Next> {
    /// What an exit was, once nothing of it is borrowed.
    enum Exit {
        Next(Next),
        Write(u64, u32),
    }
    let claimed = |claimed: Option<()>| if claimed.is_some() { Next::Run } else { Next::Abort };
    let exit = match vcpu.run() {
        Err(error) if error.errno() == rustix::io::Errno::INTR.raw_os_error() => Exit::Next(Next::Run),
        Err(error) => return Err(error).context("KVM_RUN"),
        // No register's value depends on what has been sent, so collected writes may wait until the read is done.
        Ok(VcpuExit::MmioRead(address, data)) => Exit::Next(claimed(lock(devices).read(address).map(|value| {
            let bytes = u64::from(value).to_le_bytes();
            let size = data.len().min(bytes.len());
            data[..size].copy_from_slice(&bytes[..size]);
        }))),
        Ok(VcpuExit::MmioWrite(address, data)) => {
            let mut bytes = [0; 4];
            let size = data.len().min(bytes.len());
            bytes[..size].copy_from_slice(&data[..size]);
            Exit::Write(address, u32::from_le_bytes(bytes))
        }
        Ok(VcpuExit::Hypercall(call)) => Exit::Next(Next::Call(call.nr as u32)),
        Ok(VcpuExit::Unsupported(KVM_EXIT_ARM_NISV)) => Exit::Next(Next::Abort),
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => Exit::Next(Next::End(Ending::PoweredOff)),
        Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => Exit::Next(Next::End(Ending::Reset)),
        Ok(VcpuExit::SystemEvent(kind, _)) => Exit::Next(Next::End(Ending::Event(kind))),
        Ok(VcpuExit::Intr) => Exit::Next(Next::Run),
        Ok(other) => bail!("exit {other:?}"),
    };
    let mut devices = lock(devices);
    hand_in(vcpu, &mut devices)?;
    Ok(match exit {
        Exit::Next(next) => next,
        Exit::Write(address, value) => claimed(devices.write(address, value)),
    })
}

/// Answers a test call: `struct kvm_vcpu_events` is its first two words in x1 and x2, and x3 begins what is reserved.
fn answer(vcpu: &VcpuFd, function: u32) -> Result<()> {
    let mut x = [0_u64; 4];
    for (value, register) in x.iter_mut().zip(X) {
        let mut bytes = [0; 8];
        vcpu.get_one_reg(register, &mut bytes).context("KVM_GET_ONE_REG of an argument")?;
        *value = u64::from_le_bytes(bytes);
    }
    let results = if function == TEST_CALLS {
        let [_, first, esr, rest] = x;
        let [serror_pending, serror_has_esr, ext_dabt_pending, pad @ ..] = first.to_le_bytes();
        let mut events = kvm_vcpu_events::default();
        (events.exception.serror_pending, events.exception.serror_has_esr) = (serror_pending, serror_has_esr);
        (events.exception.ext_dabt_pending, events.exception.pad) = (ext_dabt_pending, pad);
        events.exception.serror_esr = esr;
        (events.reserved[0], events.reserved[1]) = (rest as u32, (rest >> 32) as u32);
        let result = vcpu.set_vcpu_events(&events).map_or_else(|error| -i64::from(error.errno()), |()| 0);
        [result as u64, 0, 0, 0]
    } else {
        let events = vcpu.get_vcpu_events().context("KVM_GET_VCPU_EVENTS")?.exception;
        let [a, b, c, d, e] = events.pad;
        let first = [events.serror_pending, events.serror_has_esr, events.ext_dabt_pending, a, b, c, d, e];
        [0, u64::from_le_bytes(first), events.serror_esr, 0]
    };
    for (value, register) in results.into_iter().zip(X) {
        vcpu.set_one_reg(register, &value.to_le_bytes()).context("KVM_SET_ONE_REG of a result")?;
    }
    Ok(())
}

fn lock(devices: &Mutex<Devices>) -> MutexGuard<'_, Devices> {
    devices.lock().unwrap_or_else(PoisonError::into_inner)
}
