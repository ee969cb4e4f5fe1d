//! keel's ONE_REG and VCPU_INIT beside KVM's: which ids there are, what errors there are, what may be written.
//!
//! keel's tables run here on a vCPU in memory, in a VM whose machine has what KVM's VM has. Every id that is likely to mean
//! something is read on both, values are written to both, and what is answered differently is printed, one line each,
//! starting with `oracle: register`, but for what is meant to differ ([`MEANT`], [`NOT_THERE_YET`]).

use std::cell::RefCell;
use std::os::fd::{AsRawFd, BorrowedFd};

use anyhow::{Context, Result};
use keel::arch::registers::{Debug, El1Registers, FpState, Keys, Parked, Timers};
use keel::hypercall::smccc::Mitigation;
use keel::kvm::{
    Errno,
    firmware::{self, Firmware},
    init,
    registers::{self, KeptRegisters, MachineRegister, Options, Registers, Surroundings, Value},
    uapi::{FEATURE_ID_RANGE_SIZE, MpState, RegMaskRange, VcpuInit, feature, reg},
};
use keel::vcpu::VcpuContext;
use keel::vdev::idregs::{GuestFeatures, GuestIdRegisters, HostIdRegisters, IdRegister};
use kvm_bindings::{RegList, kvm_mp_state, kvm_vcpu_init};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

/// Linux's numbers as its own headers have them.
mod numbers {
    use keel::kvm::uapi::{FEATURE_ID_RANGE_SIZE, MpState, TARGET_GENERIC_V8, TARGETS, feature, reg};
    use kvm_bindings::*;

    const _: () = {
        assert!(reg::ARM64 == KVM_REG_ARM64 && reg::SIZE_MASK == KVM_REG_SIZE_MASK);
        assert!(reg::SIZE_SHIFT == KVM_REG_SIZE_SHIFT);
        assert!(reg::U32 == KVM_REG_SIZE_U32 && reg::U64 == KVM_REG_SIZE_U64 && reg::U128 == KVM_REG_SIZE_U128);
        assert!(reg::GROUP_MASK == KVM_REG_ARM_COPROC_MASK as u64);
        assert!(reg::CORE == KVM_REG_ARM_CORE as u64 && reg::DEMUX == KVM_REG_ARM_DEMUX as u64);
        assert!(reg::SYSREG == KVM_REG_ARM64_SYSREG as u64 && reg::SVE == KVM_REG_ARM64_SVE as u64);
        assert!(reg::FW == KVM_REG_ARM_FW as u64 && reg::FW_FEAT_BMAP == KVM_REG_ARM_FW_FEAT_BMAP as u64);
        assert!(feature::POWER_OFF == KVM_ARM_VCPU_POWER_OFF && feature::EL1_32BIT == KVM_ARM_VCPU_EL1_32BIT);
        assert!(feature::PSCI_0_2 == KVM_ARM_VCPU_PSCI_0_2 && feature::PMU_V3 == KVM_ARM_VCPU_PMU_V3);
        assert!(feature::SVE == KVM_ARM_VCPU_SVE && feature::PTRAUTH_ADDRESS == KVM_ARM_VCPU_PTRAUTH_ADDRESS);
        assert!(feature::PTRAUTH_GENERIC == KVM_ARM_VCPU_PTRAUTH_GENERIC);
        assert!(TARGETS[0].0 == KVM_ARM_TARGET_AEM_V8 && TARGETS[1].0 == KVM_ARM_TARGET_FOUNDATION_V8);
        assert!(TARGETS[2].0 == KVM_ARM_TARGET_CORTEX_A57 && TARGETS[3].0 == KVM_ARM_TARGET_XGENE_POTENZA);
        assert!(TARGETS[4].0 == KVM_ARM_TARGET_CORTEX_A53 && TARGET_GENERIC_V8 == KVM_ARM_TARGET_GENERIC_V8);
        assert!(MpState::Runnable as u32 == KVM_MP_STATE_RUNNABLE && MpState::Stopped as u32 == KVM_MP_STATE_STOPPED);
        assert!(MpState::Suspended as u32 == KVM_MP_STATE_SUSPENDED);
        assert!(FEATURE_ID_RANGE_SIZE == KVM_ARM_FEATURE_ID_RANGE_SIZE as usize);
        assert!(size_of::<keel::kvm::uapi::Regs>() == size_of::<kvm_regs>());
        assert!(size_of::<keel::kvm::uapi::VcpuInit>() == size_of::<kvm_vcpu_init>());
        assert!(size_of::<keel::kvm::uapi::RegMaskRange>() == size_of::<reg_mask_range>());
    };
}

/// `KVM_ARM_GET_REG_WRITABLE_MASKS`.
const GET_REG_WRITABLE_MASKS: rustix::ioctl::Opcode = 0x8040_aeb6;

/// Registers that only one of the two has.
const MEANT: &[(u64, &str)] = &[(0x6030_0000_0016_0003, "VENDOR_HYP_BMAP_2 came with Linux 6.16")];

/// Features that only KVM has.
const NOT_THERE_YET: u32 = 1 << feature::SVE;

/// KVM_CAP_ARM_EL1_32BIT.
const CAP_ARM_EL1_32BIT: std::ffi::c_ulong = 93;

fn is_meant(id: u64) -> bool {
    MEANT.iter().any(|(meant, _)| *meant == id)
}

/// What keel's tables need of a VM.
struct Around {
    options: Options,
    ids: RefCell<GuestIdRegisters>,
    firmware: RefCell<Firmware>,
}

const FIRMWARE: firmware::Surroundings =
    firmware::Surroundings { psci_0_2: true, ran: false, mitigation: |_| Mitigation::Mitigated };

impl Surroundings for &Around {
    fn options(&self) -> Options {
        self.options
    }
    fn has_aarch32(&self) -> bool {
        self.ids.borrow().has_aarch32()
    }
    fn now(&self) -> u64 {
        0
    }
    fn counter_offset(&self) -> u64 {
        0
    }
    fn set_counter_offset(&self, _: u64) {}
    fn physical_offset(&self) -> u64 {
        0
    }
    fn machine_register(&self, _: MachineRegister) -> u64 {
        0
    }
    fn ccsidr(&self, _: usize) -> u32 {
        0
    }
    fn mpidr(&self) -> u64 {
        0
    }
    fn set_mpidr(&self, _: u64) -> Result<(), Errno> {
        Ok(())
    }
    fn pmu_version(&self) -> u8 {
        0
    }
    fn event_counters(&self) -> u8 {
        0
    }
    fn set_event_counters(&self, _: u8) {}
    fn id_register(&self, register: IdRegister) -> u64 {
        self.ids.borrow().get(register)
    }
    fn set_id_register(&self, register: IdRegister, value: u64) -> Result<(), Errno> {
        Ok(self.ids.borrow_mut().set(register, value, false)?)
    }
    fn firmware_register(&self, register: firmware::Register) -> u64 {
        self.firmware.borrow().get(register, &FIRMWARE)
    }
    fn set_firmware_register(&self, register: firmware::Register, value: u64) -> Result<(), Errno> {
        self.firmware.borrow_mut().set(register, value, &FIRMWARE)
    }
}

/// keel's vCPU.
struct Keel {
    context: VcpuContext,
    el1: El1Registers,
    fp: FpState,
    timers: Timers,
    keys: Keys,
    debug: Debug,
    os_lock: bool,
    deferred_serror: u64,
    kept: KeptRegisters,
    around: Around,
}

impl Keel {
    fn registers(&mut self) -> Registers<'_, &Around> {
        Registers {
            context: &mut self.context,
            parked: Parked {
                el1: &mut self.el1,
                fp: &mut self.fp,
                timers: &mut self.timers,
                keys: &mut self.keys,
                debug: &mut self.debug,
                os_lock: &mut self.os_lock,
                pmu: None,
                deferred_serror: &mut self.deferred_serror,
            },
            kept: &mut self.kept,
            around: &self.around,
        }
    }
}

/// The largest size that is asked for: 2^8 bytes.
const LARGEST: u64 = 8;

/// Both vCPUs.
struct Both {
    vm: VmFd,
    kvm: VcpuFd,
    keel: Keel,
    different: usize,
    compared: usize,
}

fn size(id: u64) -> usize {
    1 << ((id & reg::SIZE_MASK) >> reg::SIZE_SHIFT)
}

impl Both {
    fn new() -> Result<Self> {
        let vm = Kvm::new().context("/dev/kvm")?.create_vm().context("KVM_CREATE_VM")?;
        let kvm = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
        let mut wanted = kvm_vcpu_init::default();
        vm.get_preferred_target(&mut wanted).context("KVM_ARM_PREFERRED_TARGET")?;
        wanted.features[0] = 1 << feature::PSCI_0_2;
        let mut pointer_authentication = wanted;
        pointer_authentication.features[0] |= init::POINTER_AUTHENTICATION;
        let has_keys = kvm.vcpu_init(&pointer_authentication).is_ok();
        if !has_keys {
            kvm.vcpu_init(&wanted).context("KVM_ARM_VCPU_INIT")?;
        }
        let mut read = |register: IdRegister| {
            let mut bytes = [0; 8];
            // A register that cannot be read is compared, and found, below.
            let _ = kvm.get_one_reg(id_register(register), &mut bytes);
            u64::from_le_bytes(bytes)
        };
        let host = HostIdRegisters::new(&mut read);
        let ids = GuestIdRegisters::new(&host, &GuestFeatures { ipa_bits: 48, gic_system_registers: true });
        let around = Around {
            options: Options { pointer_authentication: has_keys, aarch32_el1: false, pmu: false },
            ids: ids.into(),
            firmware: Firmware::NEW.into(),
        };
        let keel = Keel {
            context: VcpuContext::reset(),
            el1: El1Registers::default(),
            fp: FpState::default(),
            timers: Timers::default(),
            keys: Keys::default(),
            debug: Debug::default(),
            os_lock: false,
            deferred_serror: 0,
            kept: KeptRegisters::RESET,
            around,
        };
        Ok(Self { vm, kvm, keel, different: 0, compared: 0 })
    }

    /// Says what is different, but for what is meant.
    fn judge(&mut self, id: u64, what: std::fmt::Arguments<'_>, kvm: &str, keel: &str) {
        self.compared += 1;
        if kvm != keel && !is_meant(id) {
            self.different += 1;
            println!("oracle: register {id:#x}: {what}: KVM {kvm}, keel {keel}");
        }
    }

    fn list(&mut self) -> Result<()> {
        let mut list = RegList::new(500).map_err(|error| anyhow::anyhow!("{error:?}"))?;
        self.kvm.get_reg_list(&mut list).context("KVM_GET_REG_LIST")?;
        let meant = |id: &u64| !is_meant(*id);
        let kvm: Vec<u64> = list.as_slice().iter().copied().filter(meant).collect();
        let keel: Vec<u64> = registers::list(self.keel.around.options).filter(meant).collect();
        for &id in kvm.iter().filter(|id| !keel.contains(id)) {
            self.judge(id, format_args!("listed"), "yes", "no");
        }
        for &id in keel.iter().filter(|id| !kvm.contains(id)) {
            self.judge(id, format_args!("listed"), "no", "yes");
        }
        let first = kvm.iter().zip(&keel).find(|(kvm, keel)| kvm != keel);
        self.judge(0, format_args!("the list's order"), &format!("{first:x?}"), "None");
        println!("oracle: registers listed: KVM {}, keel {}", kvm.len(), keel.len());
        Ok(())
    }

    fn read(&mut self, id: u64) {
        let mut bytes = [0; 1 << LARGEST];
        let kvm = word(self.kvm.get_one_reg(id, &mut bytes).map(|_| ()).map_err(|error| error.errno()));
        let keel = word(self.keel.registers().get(id).map(|_| ()).map_err(|error| error as i32));
        self.judge(id, format_args!("reading"), &kvm, &keel);
    }

    fn write(&mut self, id: u64, kvm_value: u64, keel_value: u64) {
        let mut bytes = [0; 1 << LARGEST];
        bytes[..8].copy_from_slice(&kvm_value.to_le_bytes());
        let kvm = word(self.kvm.set_one_reg(id, &bytes).map(|_| ()).map_err(|error| error.errno()));
        let mut value = [0; 16];
        value[..8].copy_from_slice(&keel_value.to_le_bytes());
        let result = registers::size_to_set(id).and_then(|size| {
            let value = value.get(..size).and_then(Value::from_bytes).ok_or(Errno::EINVAL)?;
            self.keel.registers().set(id, value)
        });
        let keel = word(result.map_err(|error| error as i32));
        self.judge(id, format_args!("writing {kvm_value:#x}"), &kvm, &keel);
    }

    /// The lowering of each field that both have, to each value.
    fn lower(&mut self, register: IdRegister) -> Result<()> {
        let id = id_register(register);
        let mut bytes = [0; 8];
        self.kvm.get_one_reg(id, &mut bytes).with_context(|| format!("KVM_GET_ONE_REG {id:#x}"))?;
        let (kvm, keel) = (u64::from_le_bytes(bytes), self.keel.around.ids.borrow().get(register));
        for lsb in (0..64).step_by(4) {
            if (kvm ^ keel) >> lsb & 0xf != 0 {
                continue;
            }
            for field in 0..16 {
                let [kvm_value, keel_value] = [kvm, keel].map(|value| value & !(0xf << lsb) | field << lsb);
                self.write(id, kvm_value, keel_value);
            }
            self.write(id, kvm, keel);
        }
        Ok(())
    }

    fn masks(&mut self) -> Result<()> {
        let mut masks = [0_u64; FEATURE_ID_RANGE_SIZE];
        let mut range = RegMaskRange { addr: masks.as_mut_ptr() as u64, range: 0, reserved: [0; 13] };
        // SAFETY: the VM is open as long as `self.vm` is there; the structure is the one that the call takes, and has room
        // for all masks behind its pointer.
        unsafe {
            let vm = BorrowedFd::borrow_raw(self.vm.as_raw_fd());
            rustix::ioctl::ioctl(vm, rustix::ioctl::Updater::<GET_REG_WRITABLE_MASKS, _>::new(&mut range))
                .context("KVM_ARM_GET_REG_WRITABLE_MASKS")?;
        }
        let keel = registers::writable_masks(&self.keel.around.ids.borrow());
        for register in IdRegister::all() {
            let index = usize::from(register.crm() << 3 | register.op2());
            // keel names no field of SVE's and FP8's registers, which it hides whole.
            let (kvm, keel) = (masks[index], keel[index]);
            if keel != 0 || (register.crm(), register.op2()) != (4, 4) && (register.crm(), register.op2()) != (4, 7) {
                self.judge(id_register(register), format_args!("mask"), &format!("{kvm:#x}"), &format!("{keel:#x}"));
            }
        }
        Ok(())
    }
}

fn id_register(register: IdRegister) -> u64 {
    reg::ARM64 | reg::U64 | reg::SYSREG | 3 << 14 | u64::from(register.crm()) << 3 | u64::from(register.op2())
}

fn word(result: Result<(), i32>) -> String {
    result.map_or_else(|errno| format!("errno {errno}"), |()| "ok".into())
}

/// KVM_ARM_VCPU_INIT of a new vCPU in a new VM, for each target and feature, pairs of features and words.
fn initialisations(both: &mut Both) -> Result<()> {
    let mut midr = [0; 8];
    both.kvm.get_one_reg(system(0xc000), &mut midr).context("MIDR_EL1")?;
    let aarch32_el1 = Kvm::new().context("/dev/kvm")?.check_extension_raw(CAP_ARM_EL1_32BIT) == 1;
    let offer = init::Offer { pointer_authentication: both.keel.around.options.pointer_authentication, aarch32_el1 };
    let features = (0..10).map(|bit| [1 << bit, 0, 0, 0, 0, 0, 0]);
    let pairs = [0, init::POINTER_AUTHENTICATION, 1 << 9 | 1 << 5, 0b101].map(|bits| [bits, 0, 0, 0, 0, 0, 0]);
    let words = [[0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1 << 31]];
    let targets = (0..8).map(|target| (target, [0; 7])).chain([(6, [1 << 9, 0, 0, 0, 0, 0, 0])]);
    let asked = features.chain(pairs).chain(words).map(|features| (5, features)).chain(targets);
    for (target, features) in asked {
        let vm = Kvm::new().context("/dev/kvm")?.create_vm().context("KVM_CREATE_VM")?;
        let vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
        let kvm = vcpu.vcpu_init(&kvm_vcpu_init { target, features });
        if kvm.is_ok() && features[0] & NOT_THERE_YET != 0 {
            continue;
        }
        let keel = init::check(&VcpuInit { target, features }, offer, u64::from_le_bytes(midr));
        let kvm = word(kvm.map_err(|error| error.errno()));
        let keel = word(keel.map(|_| ()).map_err(|error| error as i32));
        both.judge(0, format_args!("KVM_ARM_VCPU_INIT of {target}, {features:x?}"), &kvm, &keel);
    }
    for what in [-1, 0, 1, 3, 4, 5] {
        let kvm = word(both.kvm.vcpu_finalize(&what).map_err(|error| error.errno()));
        let keel = word(init::finalize(1 << feature::PSCI_0_2, what).map_err(|error| error as i32));
        both.judge(0, format_args!("KVM_ARM_VCPU_FINALIZE of {what}"), &kvm, &keel);
    }
    for mp_state in 0..12 {
        let kvm = word(both.kvm.set_mp_state(kvm_mp_state { mp_state }).map_err(|error| error.errno()));
        let keel = word(MpState::new(mp_state).map(|_| ()).ok_or(Errno::EINVAL as i32));
        both.judge(0, format_args!("KVM_SET_MP_STATE of {mp_state}"), &kvm, &keel);
    }
    Ok(())
}

/// Compares, and prints what is different and a line with the sum of it.
pub(crate) fn compare() -> Result<()> {
    let mut both = Both::new()?;
    both.list()?;
    for number in 0..=0xffff {
        both.read(reg::ARM64 | reg::U64 | reg::SYSREG | number);
    }
    let numbers = || (0..0x120).chain([0x400, 0x5ff, 0x600, 0xff00, 0xffff]);
    for (size, group) in (0..=LARGEST).flat_map(|size| (0x10..0x18).map(move |group| (size, group))) {
        for number in numbers() {
            both.read(reg::ARM64 | size << reg::SIZE_SHIFT | group << 16 | number);
        }
    }
    for id in [0x4030_0000_0010_0000, 0x6002_0000_0010_0000, 0x6030_0001_0010_0000, 0x6030_0000_1010_0000, 0] {
        both.read(id);
        if size(id) <= 1 << LARGEST {
            both.write(id, 0, 0);
        }
    }
    for mode in 0..32 {
        both.write(reg::PSTATE, 0x3c0 | mode, 0x3c0 | mode);
    }
    both.write(reg::PSTATE, 0x3c5, 0x3c5);
    for value in [0, 2, 9, 0xc, 0xa, 8] {
        both.write(system(0x808c), value, value);
    }
    for (id, value) in [
        (system(0xc000), 1),
        (system(0xc006), 0x1234_5678_9abc),
        (system(0xc807), 0x1234_5678_9abc),
        (system(0xc800), 0),
        (0x6020_0000_0011_0000, 0xf000_0000),
        (0x6020_0000_0011_000e, 0),
        (0x6020_0000_0010_00d4, 0),
        (0x6030_0000_0010_00d4, 0),
        (0x6030_0000_0012_0000, 0),
        (firmware::FIRMWARE, 1),
        (firmware::FIRMWARE, 3),
        (firmware::FIRMWARE, 0x1_0000),
        (firmware::FIRMWARE, 0x1_0001),
        (firmware::BITMAPS, 2),
        (firmware::BITMAPS, 1),
        (firmware::BITMAPS + 2, 4),
        (firmware::FIRMWARE | 0x100, 0),
    ] {
        both.write(id, value, value);
    }
    for register in IdRegister::all() {
        both.lower(register)?;
    }
    both.masks()?;
    initialisations(&mut both)?;
    println!("oracle: registers: {} answers compared, {} different", both.compared, both.different);
    Ok(())
}

fn system(encoding: u64) -> u64 {
    reg::ARM64 | reg::U64 | reg::SYSREG | encoding
}
