//! A VM like the one keel makes, by KVM's calls.

use std::sync::{Arc, Mutex, mpsc};

use anyhow::{Context, Result};
use keel::vdev::platform::{GuestMachine, VIRT, VIRT_V2};
use keel::vmm::config::{Feature, VmConfig};
use keel::vmm::load;
use kvm_bindings::{
    KVM_ARM_VCPU_EL1_32BIT, KVM_ARM_VCPU_PMU_V3, KVM_ARM_VCPU_PMU_V3_CTRL, KVM_ARM_VCPU_PMU_V3_INIT,
    KVM_ARM_VCPU_PMU_V3_IRQ, KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_PTRAUTH_ADDRESS,
    KVM_ARM_VCPU_PTRAUTH_GENERIC, KVM_ARM_VCPU_PVTIME_CTRL, KVM_ARM_VCPU_PVTIME_IPA, KVM_ARM_VM_SMCCC_CTRL,
    KVM_ARM_VM_SMCCC_FILTER, KVM_CAP_ARM_NISV_TO_USER, KVM_CAP_ARM_PTRAUTH_ADDRESS, KVM_CAP_ARM_PTRAUTH_GENERIC,
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_GRP_NR_IRQS,
    KVM_VGIC_ITS_ADDR_TYPE, KVM_VGIC_V2_ADDR_TYPE_CPU, KVM_VGIC_V2_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device, kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, kvm_enable_cap,
    kvm_smccc_filter, kvm_smccc_filter_action_KVM_SMCCC_FILTER_FWD_TO_USER, kvm_vcpu_init,
};
use kvm_ioctls::{DeviceFd, IoEventAddress, Kvm, VcpuFd, VmFd};

use crate::devices::Devices;
use crate::memory::Memory;
use crate::vcpu::{self, Ending};

/// KVM_CREATE_VM's type: 40 bits of guest physical addresses, which is what keel's machines have.
const DEFAULT_IPA_SIZE: u64 = 0;
/// INTIDs of the distributor, SGIs and PPIs included: keel's GICD_TYPER says the same.
const INTIDS: u32 = 256;
/// Where QEMU's `virt` has the structures of PV time; 64 bytes for each vCPU.
const PVTIME: u64 = 0x090a_0000;
const PVTIME_STRIDE: u64 = 64;
const PAGE: u64 = 4096;

// ONE_REG ids: arm64, 64 bits, core register, offset in struct kvm_regs / 4.
const CORE: u64 = 0x6030_0000_0010_0000;
const X0: u64 = CORE;
const PC: u64 = CORE + 0x40;

/// A VM that is ready to run.
pub(crate) struct Machine {
    vcpus: Vec<VcpuFd>,
    platform: GuestMachine,
    // They belong to the vCPUs as long as these run.
    _vm: VmFd,
    _gic: DeviceFd,
    _its: Option<DeviceFd>,
}

impl Machine {
    /// Makes the VM that `config` describes and loads it.
    pub(crate) fn new(config: &VmConfig) -> Result<Self> {
        let kvm = Kvm::new().context("/dev/kvm; did Linux start at EL2?")?;
        let vm = kvm.create_vm_with_type(DEFAULT_IPA_SIZE).context("KVM_CREATE_VM")?;
        let nisv = kvm_enable_cap { cap: KVM_CAP_ARM_NISV_TO_USER, ..Default::default() };
        vm.enable_cap(&nisv).context("KVM_CAP_ARM_NISV_TO_USER")?;

        if config.features.contains(&Feature::TestInjection) {
            forward_test_calls(&vm)?;
        }

        let (gic, platform) = new_gic(&vm)?;
        let mut ram = Memory::new(&vm, 0, platform.ram_base.0, config.memory)?;
        let mut seed = 0_u8;
        let mut entropy = |bytes: &mut [u8]| {
            // Nothing of what is compared depends on the seeds; that they differ would only make runs differ.
            for byte in bytes {
                seed = seed.wrapping_add(1);
                *byte = seed;
            }
        };
        let loaded = load::load(config, &mut ram, &platform, &mut entropy)
            .map_err(|error| anyhow::anyhow!("machine {}: {error}", config.name))?;

        vm.register_coalesced_mmio(IoEventAddress::Mmio(Devices::transmit_register(&platform)), 4)
            .context("KVM_REGISTER_COALESCED_MMIO")?;
        let has_pmu = config.features.contains(&Feature::Pmu);
        let aarch32 = config.features.contains(&Feature::Aarch32);
        let vcpus =
            (0..config.cpus as u64).map(|index| new_vcpu(&vm, index, has_pmu, aarch32)).collect::<Result<Vec<_>>>()?;
        set_up_gic(&gic, &platform)?;
        let its = config.features.contains(&Feature::Its).then(|| new_its(&vm, &platform)).transpose()?;
        pv_time(&vm, &vcpus)?;
        if has_pmu {
            give_pmus(&vcpus)?;
        }
        let boot = vcpus.first().context("the machine has no vCPU")?;
        // x0, or as Linux's arch/arm booting document has it, r1 and r2.
        let arguments = if aarch32 { [0, u32::MAX.into(), loaded.dtb.0] } else { [loaded.dtb.0, 0, 0] };
        let registers = (0..).map(|n| X0 + 2 * n).zip(arguments);
        for (register, value) in registers.chain([(PC, loaded.entry.0)]) {
            boot.set_one_reg(register, &value.to_le_bytes()).context("KVM_SET_ONE_REG")?;
        }
        Ok(Self { vcpus, platform, _vm: vm, _gic: gic, _its: its })
    }

    /// Runs it, one thread a vCPU, until one of them says that it is over.
    pub(crate) fn run(self) -> Result<Ending> {
        let devices = Arc::new(Mutex::new(Devices::new(&self.platform)));
        let (sender, endings) = mpsc::channel();
        for (index, vcpu) in self.vcpus.into_iter().enumerate() {
            let (devices, sender) = (Arc::clone(&devices), sender.clone());
            std::thread::spawn(move || {
                // The receiver is there until the first ending; later ones are of no interest.
                let _ = sender.send(vcpu::run(index, vcpu, &devices));
            });
        }
        let ending = endings.recv().context("no vCPU is left")?;
        devices.lock().unwrap_or_else(std::sync::PoisonError::into_inner).flush();
        ending
    }
}

/// The calls by which a guest makes errors pending for itself come to user space.
fn forward_test_calls(vm: &VmFd) -> Result<()> {
    let filter = kvm_smccc_filter {
        base: vcpu::TEST_CALLS,
        nr_functions: 2,
        action: kvm_smccc_filter_action_KVM_SMCCC_FILTER_FWD_TO_USER as u8,
        ..Default::default()
    };
    let attribute = kvm_device_attr {
        flags: 0,
        group: KVM_ARM_VM_SMCCC_CTRL,
        attr: KVM_ARM_VM_SMCCC_FILTER.into(),
        addr: &raw const filter as u64,
    };
    vm.set_device_attr(&attribute).context("KVM_ARM_VM_SMCCC_FILTER")
}

fn new_vcpu(vm: &VmFd, index: u64, has_pmu: bool, aarch32: bool) -> Result<VcpuFd> {
    let vcpu = vm.create_vcpu(index).context("KVM_CREATE_VCPU")?;
    let mut init = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut init).context("KVM_ARM_PREFERRED_TARGET")?;
    let mut feature = |bit: u32| init.features[0] |= 1 << bit;
    feature(KVM_ARM_VCPU_PSCI_0_2);
    if index > 0 {
        feature(KVM_ARM_VCPU_POWER_OFF);
    }
    if has_pmu {
        feature(KVM_ARM_VCPU_PMU_V3);
    }
    if aarch32 {
        feature(KVM_ARM_VCPU_EL1_32BIT);
    }
    // keel's machines have pointer authentication where the CPU has it.
    if [KVM_CAP_ARM_PTRAUTH_ADDRESS, KVM_CAP_ARM_PTRAUTH_GENERIC].iter().all(|&cap| has(vm, cap)) {
        feature(KVM_ARM_VCPU_PTRAUTH_ADDRESS);
        feature(KVM_ARM_VCPU_PTRAUTH_GENERIC);
    }
    vcpu.vcpu_init(&init).context("KVM_ARM_VCPU_INIT")?;
    Ok(vcpu)
}

fn has(vm: &VmFd, capability: u32) -> bool {
    vm.check_extension_raw(capability.into()) > 0
}

/// A GICv3, or a GICv2 where the host has none other, and the machine that goes with it.
fn new_gic(vm: &VmFd) -> Result<(DeviceFd, GuestMachine)> {
    let create = |kind| vm.create_device(&mut kvm_create_device { type_: kind, fd: 0, flags: 0 });
    if let Ok(gic) = create(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3) {
        return Ok((gic, VIRT));
    }
    let gic = create(kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2).context("KVM_CREATE_DEVICE of a GIC")?;
    Ok((gic, VIRT_V2))
}

/// Says where it is, and completes it, with all vCPUs there.
fn set_up_gic(gic: &DeviceFd, platform: &GuestMachine) -> Result<()> {
    let frames = match platform.gicc {
        None => {
            [(KVM_VGIC_V3_ADDR_TYPE_DIST, platform.gicd.base.0), (KVM_VGIC_V3_ADDR_TYPE_REDIST, platform.gicr.base.0)]
        }
        Some(gicc) => [(KVM_VGIC_V2_ADDR_TYPE_DIST, platform.gicd.base.0), (KVM_VGIC_V2_ADDR_TYPE_CPU, gicc.base.0)],
    };
    let set = |group, attr: u32, value: *const u8| {
        let attribute = kvm_device_attr { flags: 0, group, attr: attr.into(), addr: value as u64 };
        gic.set_device_attr(&attribute)
            .with_context(|| format!("KVM_SET_DEVICE_ATTR of the GIC, group {group}, {attr}"))
    };
    for (kind, address) in frames {
        set(KVM_DEV_ARM_VGIC_GRP_ADDR, kind, (&raw const address).cast())?;
    }
    let intids = INTIDS;
    set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, (&raw const intids).cast())?;
    set(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, std::ptr::null())?;
    Ok(())
}

/// Gives each vCPU's PMU its interrupt.
fn give_pmus(vcpus: &[VcpuFd]) -> Result<()> {
    let intid = VIRT.pmu.context("keel's machines have no interrupt for the PMU")? as i32;
    for vcpu in vcpus {
        for (attribute, address) in [(KVM_ARM_VCPU_PMU_V3_IRQ, &raw const intid as u64), (KVM_ARM_VCPU_PMU_V3_INIT, 0)]
        {
            let attribute =
                kvm_device_attr { flags: 0, group: KVM_ARM_VCPU_PMU_V3_CTRL, attr: attribute.into(), addr: address };
            vcpu.set_device_attr(&attribute).context("KVM_ARM_VCPU_PMU_V3_CTRL")?;
        }
    }
    Ok(())
}

/// An ITS, for a machine that has one.
fn new_its(vm: &VmFd, platform: &GuestMachine) -> Result<DeviceFd> {
    let mut device = kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS, fd: 0, flags: 0 };
    let its = vm.create_device(&mut device).context("KVM_CREATE_DEVICE of an ITS")?;
    let address = platform.its.base.0;
    for (group, attr, value) in [
        (KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE, (&raw const address) as u64),
        (KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, 0),
    ] {
        let attribute = kvm_device_attr { flags: 0, group, attr: attr.into(), addr: value };
        its.set_device_attr(&attribute)
            .with_context(|| format!("KVM_SET_DEVICE_ATTR of the ITS, group {group}, {attr}"))?;
    }
    Ok(its)
}

/// Gives each vCPU a place for its stolen time (DEN0057), where Linux counts it.
fn pv_time(vm: &VmFd, vcpus: &[VcpuFd]) -> Result<()> {
    let attribute = |address: &u64| kvm_device_attr {
        flags: 0,
        group: KVM_ARM_VCPU_PVTIME_CTRL,
        attr: KVM_ARM_VCPU_PVTIME_IPA.into(),
        addr: &raw const *address as u64,
    };
    let supported = vcpus.first().is_some_and(|vcpu| vcpu.has_device_attr(&attribute(&PVTIME)).is_ok());
    if !supported {
        println!("oracle: no PV time");
        return Ok(());
    }
    Memory::new(vm, 1, PVTIME, (vcpus.len() as u64 * PVTIME_STRIDE).next_multiple_of(PAGE))?;
    for (vcpu, index) in vcpus.iter().zip(0..) {
        let address = PVTIME + index * PVTIME_STRIDE;
        vcpu.set_device_attr(&attribute(&address)).context("KVM_ARM_VCPU_PVTIME_IPA")?;
    }
    Ok(())
}
