//! A machine with two vCPUs, made by KVM's calls, and what runs it: a CPU of the root for each vCPU.
//!
//! A vCPU's CPU handles its exits and runs it again, until it is told to stop. It is told as KVM's users tell their threads:
//! `immediate_exit` first, which ends the next KVM_RUN once it has completed the access of the last exit, then a signal, here an
//! SGI, for a run that is under way. So what is saved of a stopped vCPU is never in the middle of an access.

use super::{CPUS, GICD, GICR, PVTIME, UART, UART_SPI, memory::Piece, uart::Uart};
use crate::{
    cases::well,
    harness::{Check, failed, join, start},
};
use alloc::{format, string::String, sync::Arc};
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};
use keel_kvm::{
    Device, Errno, Exit, Hypercall, System, Vcpu, Vm,
    page::Page,
    uapi::{VcpuInit, device, event, feature, reg, vcpu_group, vgic},
};
use keel_test_kernel::{arch, irq, machine::Machine as Board};
use spin::Mutex;

/// The SGI that ends a run.
const WAKE: u32 = 5;
/// Bytes of a UART's registers.
const UART_SIZE: u64 = 0x1000;
/// KVM_CAP_ARM_PTRAUTH_ADDRESS and GENERIC, KVM_CAP_STEAL_TIME.
const CAP_PTRAUTH: [u32; 2] = [171, 172];
const CAP_STEAL_TIME: u32 = 187;
/// Bytes of a vCPU's structure of stolen time.
const STOLEN: u64 = 64;

static RUN: [Page; CPUS] = [const { Page::ZERO }; CPUS];

/// The VM, complete and not yet run.
pub struct Machine {
    // Dropped in this order.
    pub vcpus: [Vcpu<Hypercall>; CPUS],
    pub gic: Device<Hypercall>,
    pub vm: Vm<Hypercall>,
}

impl Machine {
    /// With these pieces of memory, each a slot.
    pub fn new(memory: &[Piece]) -> Check<Self> {
        let vm = well("KVM_CREATE_VM", System(Hypercall).create_vm(0))?;
        for (slot, piece) in (0..).zip(memory) {
            well("KVM_SET_USER_MEMORY_REGION", vm.set_memory(slot, 0, piece.guest, piece.pages))?;
        }
        let gic = well("KVM_CREATE_DEVICE", vm.create_device(device::VGIC_V3))?;
        let vcpus = [
            well("KVM_CREATE_VCPU", vm.create_vcpu(0, &RUN[0]))?,
            well("KVM_CREATE_VCPU", vm.create_vcpu(1, &RUN[1]))?,
        ];
        for (kind, address) in [(vgic::V3_DIST, GICD), (vgic::V3_REDIST, GICR)] {
            well("KVM_DEV_ARM_VGIC_GRP_ADDR", gic.set_attribute(vgic::ADDR, kind, &address))?;
        }
        well("KVM_DEV_ARM_VGIC_CTRL_INIT", gic.set_attribute(vgic::CTRL, vgic::INIT, &()))?;
        let target = well("KVM_ARM_PREFERRED_TARGET", vm.preferred_target())?;
        let has = |capability| System(Hypercall).check_extension(capability).is_ok_and(|has| has != 0);
        let mut features = feature::PSCI_0_2;
        if CAP_PTRAUTH.into_iter().all(has) {
            features |= feature::PTRAUTH_ADDRESS | feature::PTRAUTH_GENERIC;
        }
        for (vcpu, off) in vcpus.iter().zip([0, feature::POWER_OFF]) {
            well("KVM_ARM_VCPU_INIT", vcpu.init(&VcpuInit { features: [features | off, 0, 0, 0, 0, 0, 0], ..target }))?;
        }
        if has(CAP_STEAL_TIME) {
            for (vcpu, address) in vcpus.iter().zip((PVTIME..).step_by(STOLEN as usize)) {
                well("KVM_ARM_VCPU_PVTIME_IPA", vcpu.set_attribute(vcpu_group::PVTIME, 0, &address))?;
            }
        }
        Ok(Self { vcpus, gic, vm })
    }

    /// What a boot loader would do.
    pub fn boot(&self, entry: u64, tree: u64) -> Check {
        well("KVM_SET_ONE_REG", self.vcpus[0].set_register(reg::PC, entry))?;
        well("KVM_SET_ONE_REG", self.vcpus[0].set_register(reg::x(0), tree))
    }
}

/// Why the machine does not go on.
pub enum End {
    /// KVM_SYSTEM_EVENT_*.
    Event(u32),
    /// Something is wrong.
    Failed(String),
}

/// A machine that runs.
pub struct Running {
    pub machine: Machine,
    uart: Mutex<Uart>,
    stop: AtomicBool,
    end: Mutex<Option<End>>,
}

/// The one that runs.
static RUNNING: Mutex<Option<Arc<Running>>> = Mutex::new(None);

impl Running {
    /// Runs it, on the CPUs behind the first.
    pub fn start(board: &'static Board, machine: Machine, uart: Uart) -> Check<Arc<Self>> {
        let stop = AtomicBool::new(false);
        let running = Arc::new(Self { machine, uart: Mutex::new(uart), stop, end: Mutex::new(None) });
        *RUNNING.lock() = Some(running.clone());
        for cpu in 1..=CPUS {
            start(board, cpu, run, cpu)?;
        }
        Ok(running)
    }

    /// Stops it between two instructions of each vCPU. Whoever has another reference to it has given it back.
    pub fn stop(self: Arc<Self>, board: &'static Board) -> Check<(Machine, Uart)> {
        self.stop.store(true, SeqCst);
        for (vcpu, &cpu) in self.machine.vcpus.iter().zip(&board.cpus()[1..]) {
            vcpu.page().set_immediate_exit(true);
            irq::send(WAKE, cpu);
        }
        for cpu in 1..=CPUS {
            join(board, cpu)?;
        }
        self.machine.vcpus.iter().for_each(|vcpu| vcpu.page().set_immediate_exit(false));
        *RUNNING.lock() = None;
        let Ok(Self { machine, uart, end, .. }) = Arc::try_unwrap(self) else {
            return Err(failed(format_args!("somebody still uses the machine")));
        };
        match end.into_inner() {
            Some(End::Failed(text)) => Err(failed(format_args!("{text}"))),
            _ => Ok((machine, uart.into_inner())),
        }
    }

    /// What ended it, if it ended by itself.
    pub fn ended(&self) -> Option<Check<u32>> {
        self.end.lock().as_ref().map(|end| match end {
            End::Event(kind) => Ok(*kind),
            End::Failed(text) => Err(failed(format_args!("{text}"))),
        })
    }

    /// Does something with the UART; its interrupt follows.
    pub fn with_uart<T>(&self, work: impl FnOnce(&mut Uart) -> T) -> T {
        let mut uart = self.uart.lock();
        let before = uart.level();
        let result = work(&mut uart);
        let level = uart.level();
        if level != before {
            // KVM_ARM_IRQ_TYPE_SPI.
            if let Err(errno) = self.machine.vm.irq_line(1 << 24 | (32 + UART_SPI), level) {
                self.fail(format_args!("KVM_IRQ_LINE: {errno}"));
            }
        }
        result
    }

    fn fail(&self, text: core::fmt::Arguments) {
        self.end.lock().get_or_insert_with(|| End::Failed(format!("{text}")));
    }

    /// Runs a vCPU until it is to stop.
    fn run(&self, index: usize) {
        let vcpu = &self.machine.vcpus[index];
        loop {
            match vcpu.run() {
                Ok(Exit::MmioRead { address, .. }) if (UART..UART + UART_SIZE).contains(&address) => {
                    vcpu.page().answer(self.with_uart(|uart| uart.read(address - UART)));
                }
                Ok(Exit::MmioWrite { address, value, .. }) if (UART..UART + UART_SIZE).contains(&address) => {
                    self.with_uart(|uart| uart.write(address - UART, value));
                }
                Ok(Exit::SystemEvent { kind: kind @ (event::SHUTDOWN | event::RESET), .. }) => {
                    self.end.lock().get_or_insert(End::Event(kind));
                    return;
                }
                Err(Errno::EINTR) if self.stop.load(SeqCst) => return,
                // Somebody else's interrupt, or one for a run that had just ended.
                Err(Errno::EINTR) => arch::with_irqs(arch::isb),
                other => return self.fail(format_args!("KVM_RUN of vCPU {index}: {other:x?}")),
            }
        }
    }
}

/// What CPU `cpu` of the root does.
fn run(cpu: usize) {
    irq::enable(WAKE, cpu);
    let running = RUNNING.lock().clone();
    if let Some(running) = running {
        running.run(cpu - 1);
        // Given back before this CPU says that it is off.
        drop(running);
    }
    arch::with_irqs(arch::isb);
}
