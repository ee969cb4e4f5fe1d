//! A VM that reads a device, writes what it read plus one beside it, and switches itself off.

use crate::{
    Backend, Errno, System,
    page::Page,
    run::Exit,
    uapi::{VcpuInit, device, event, feature, reg, vgic},
};

/// Where the guest's memory is.
const RAM: u64 = 0x4000_0000;
/// Where it has a device.
const DEVICE: u64 = 0x0a00_0000;

/// The guest.
const PROGRAM: &[u32] = &[
    0xb940_0020, // ldr w0, [x1]
    0x1100_0400, // add w0, w0, #1
    0xf900_0420, // str x0, [x1, #8]
    0x5280_0100, // mov w0, #0x0008
    0x72b0_8000, // movk w0, #0x8400, lsl #16: SYSTEM_OFF
    0xd400_0002, // hvc #0
    0x1400_0000, // b .
];

/// Starts a VM whose device reads `value`, handles its accesses until it switches itself off, and returns what it wrote.
///
/// `ram` is a page for the guest, `page` one for `struct kvm_run`. `clean` cleans the caches of the guest's page to the point
/// of coherency, because the guest starts with its MMU off.
///
/// # Errors
///
/// Those of the calls, or `EIO` for an exit that this guest has no reason for.
pub fn run<B: Backend + Clone>(
    system: &System<B>,
    ram: &'static [Page; 1],
    page: &'static Page,
    clean: impl Fn(&Page),
    value: u32,
) -> Result<Option<u64>, Errno> {
    ram[0].load(PROGRAM);
    clean(&ram[0]);

    // A machine: memory, a vCPU, a GICv3.
    let vm = system.create_vm(0)?;
    vm.set_memory(0, 0, RAM, ram)?;
    let gic = vm.create_device(device::VGIC_V3)?;
    let vcpu = vm.create_vcpu(0, page)?;
    gic.set_attribute(vgic::ADDR, vgic::V3_DIST, &0x0800_0000_u64)?;
    gic.set_attribute(vgic::ADDR, vgic::V3_REDIST, &0x080a_0000_u64)?;
    gic.set_attribute(vgic::CTRL, vgic::INIT, &())?;
    let target = vm.preferred_target()?;
    vcpu.init(&VcpuInit { features: [feature::PSCI_0_2, 0, 0, 0, 0, 0, 0], ..target })?;

    // What a boot loader would do.
    vcpu.set_register(reg::PC, RAM)?;
    vcpu.set_register(reg::x(1), DEVICE)?;

    let mut written = None;
    loop {
        match vcpu.run() {
            Ok(Exit::MmioRead { address: DEVICE, size: 4 }) => vcpu.page().answer(value.into()),
            Ok(Exit::MmioWrite { address, size: 8, value }) if address == DEVICE + 8 => written = Some(value),
            Ok(Exit::SystemEvent { kind: event::SHUTDOWN, .. }) => return Ok(written),
            // An interrupt was for somebody else.
            Err(Errno::EINTR) => {}
            Ok(_) => return Err(Errno::EIO),
            Err(errno) => return Err(errno),
        }
    }
    // Dropped here: the vCPU, the interrupt controller and the VM, and with them the machine.
}
