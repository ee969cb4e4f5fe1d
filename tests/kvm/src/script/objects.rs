//! The system and the VM: numbers, capabilities, types, what makes objects.

use super::{Data, NOBODY, NOWHERE, Script, cap, device};
use crate::{
    Backend, SYSTEM,
    handle::{address, address_mut},
    number,
    uapi::{CounterOffset, EnableCap, IrqLevel, Msi, RegMaskRange, SmcccFilter},
};

/// Numbers of other objects, of other architectures, and of nobody.
const STRANGE: &[u32] = &[
    0xae02,
    0xae05,
    0xae7f,
    0xaeff,
    0x4020_ae00,
    0x8000_ae01,
    0xc004_ae02,
    0xc008_ae05,
    0xae40,
    0xae47,
    0x8004_ae45,
    0xc208_ae62,
    0x8208_ae63,
    0x4138_ae66,
    0xae71,
    0x4004_ae78,
    0xae81,
    0xae9a,
    0x4040_aea2,
    0x4188_aeca,
    0x4400_aecc,
    0x8010_abcd,
    0,
    1,
    0xffff_ffff,
    0x7fff_ffff,
    number::CREATE_VCPU,
    number::SET_USER_MEMORY_REGION,
    number::RUN,
    number::GET_MP_STATE,
    number::ARM_VCPU_INIT,
    number::GET_ONE_REG,
    number::SET_ONE_REG,
    number::GET_REG_LIST,
    number::GET_DIRTY_LOG,
    number::CREATE_IRQCHIP,
    number::CREATE_VM,
    number::GET_API_VERSION,
    number::GET_VCPU_MMAP_SIZE,
    number::GET_DEVICE_ATTR,
    number::GET_REGS,
    number::SET_REGS,
    number::GET_SREGS,
    number::SET_SREGS,
    number::TRANSLATE,
    number::INTERRUPT,
    number::GET_FPU,
    number::SET_FPU,
];

pub(super) fn run<B: Backend>(script: &mut Script<'_, B>) {
    system(script);
    capabilities(script);
    numbers(script);
    vm(script);
    devices(script);
    enable(script);
    filter(script);
    lines(script);
}

fn system<B: Backend>(script: &mut Script<'_, B>) {
    script.part("system");
    for (name, number) in
        [("GET_API_VERSION", number::GET_API_VERSION), ("GET_VCPU_MMAP_SIZE", number::GET_VCPU_MMAP_SIZE)]
    {
        for argument in [0, 1, u64::MAX] {
            script.call(format_args!("{name} {argument:#x}"), SYSTEM, number, argument);
        }
    }
    for kind in (0..=64).chain([0x80, 0xff, 0x100, 0x128, 1 << 31, 1 << 32, 1 << 32 | 40, u64::MAX]) {
        let vm = script.open(format_args!("CREATE_VM {kind:#x}"), SYSTEM, number::CREATE_VM, kind);
        script.close(vm);
    }
}

fn capabilities<B: Backend>(script: &mut Script<'_, B>) {
    script.part("capability");
    for number in (0..=246).chain([9999, 0xffff_ffff, 1 << 32 | 70, u64::MAX]) {
        script.call(format_args!("system {number:#x}"), SYSTEM, number::CHECK_EXTENSION, number);
    }
    let vm = script.vm();
    for number in [0, 3, 9, 10, 14, 16, 66, 70, 93, 105, 126, 128, 131, 144, 158, 165, 168, 216, 228, 229, 230, 9999] {
        script.call(format_args!("VM {number:#x}"), vm, number::CHECK_EXTENSION, number);
    }
    script.close(vm);
}

fn numbers<B: Backend>(script: &mut Script<'_, B>) {
    script.part("number");
    let machine = script.machine(super::machine::Controller::Own);
    for (name, handle) in [("system", SYSTEM), ("VM", machine.vm), ("vCPU", machine.vcpu), ("device", machine.gic)] {
        for &number in STRANGE {
            // Only those that are no calls of the object.
            let call = match name {
                "system" => matches!(number, number::GET_API_VERSION | number::CREATE_VM | number::GET_VCPU_MMAP_SIZE),
                "VM" => matches!(
                    number,
                    number::CREATE_VCPU
                        | number::SET_USER_MEMORY_REGION
                        | number::GET_DIRTY_LOG
                        | number::CREATE_IRQCHIP
                        // KVM_ARM_SET_DEVICE_ADDR.
                        | number::GET_ONE_REG
                ),
                "vCPU" => matches!(
                    number,
                    number::RUN
                        | number::GET_MP_STATE
                        | number::ARM_VCPU_INIT
                        | number::GET_ONE_REG
                        | number::SET_ONE_REG
                        | number::GET_REG_LIST
                        | number::GET_DEVICE_ATTR
                ),
                _ => number == number::GET_DEVICE_ATTR,
            };
            if !call {
                script.call(format_args!("{name} {number:#x}"), handle, number, 0);
            }
        }
    }
    script.drop_machine(&machine);
    for (name, handle) in [("a closed handle", machine.vcpu), ("no handle", NOBODY), ("no number", u64::MAX)] {
        for number in [number::GET_API_VERSION, number::RUN, number::CLOSE] {
            script.call(format_args!("{name} {number:#x}"), handle, number, 0);
        }
    }
}

fn vm<B: Backend>(script: &mut Script<'_, B>) {
    script.part("vm");
    let vm = script.open(format_args!("CREATE_VM"), SYSTEM, number::CREATE_VM, 0);
    let mut target = [super::FILL; 4];
    script.read(format_args!("ARM_PREFERRED_TARGET"), vm, number::ARM_PREFERRED_TARGET, &mut target);
    for at in NOWHERE.into_iter().chain([0, 1]) {
        for (name, number) in [
            ("ARM_PREFERRED_TARGET", number::ARM_PREFERRED_TARGET),
            ("CREATE_DEVICE", number::CREATE_DEVICE),
            ("SET_USER_MEMORY_REGION", number::SET_USER_MEMORY_REGION),
            ("SET_USER_MEMORY_REGION2", number::SET_USER_MEMORY_REGION2),
            ("GET_DIRTY_LOG", number::GET_DIRTY_LOG),
            ("CLEAR_DIRTY_LOG", number::CLEAR_DIRTY_LOG),
            ("ENABLE_CAP", number::ENABLE_CAP),
            ("IRQ_LINE", number::IRQ_LINE),
            ("IRQ_LINE_STATUS", number::IRQ_LINE_STATUS),
            ("SIGNAL_MSI", number::SIGNAL_MSI),
            ("ARM_SET_DEVICE_ADDR", number::ARM_SET_DEVICE_ADDR),
            ("ARM_SET_COUNTER_OFFSET", number::ARM_SET_COUNTER_OFFSET),
            ("ARM_GET_REG_WRITABLE_MASKS", number::ARM_GET_REG_WRITABLE_MASKS),
            ("SET_DEVICE_ATTR", number::SET_DEVICE_ATTR),
            ("HAS_DEVICE_ATTR", number::HAS_DEVICE_ATTR),
        ] {
            script.call(format_args!("{name} at {at:#x}"), vm, number, at);
        }
    }
    for id in [512, 513, 0xffff, 1 << 32, u64::MAX, 511, 64, 63, 0, 0, 1] {
        let vcpu = script.open(format_args!("CREATE_VCPU {id}"), vm, number::CREATE_VCPU, id);
        // vCPU 0 stays; of the others there may be too many for the interrupt controller.
        if id > 1 {
            script.close(vcpu);
        }
    }
    for (offset, reserved) in [(0, 0), (0, 1), (77, 1 << 63), (1 << 40, 0)] {
        let argument = CounterOffset { counter_offset: offset, reserved };
        let what = format_args!("ARM_SET_COUNTER_OFFSET {offset:#x} {reserved:#x}");
        script.write(what, vm, number::ARM_SET_COUNTER_OFFSET, &argument);
    }
    let mut masks = [super::FILL; 192];
    for (range, reserved, addr) in [
        (0, 0, address_mut(&mut masks)),
        (1, 0, address_mut(&mut masks)),
        (0, 1, address_mut(&mut masks)),
        (0, 0, NOWHERE[0]),
    ] {
        let mut argument = RegMaskRange { addr, range, ..RegMaskRange::default() };
        argument.reserved[12] = reserved;
        let what = format_args!("ARM_GET_REG_WRITABLE_MASKS {range} {reserved} {}", addr == NOWHERE[0]);
        script.write(what, vm, number::ARM_GET_REG_WRITABLE_MASKS, &argument);
    }
    // What is written: everything, and nothing of no register.
    let written = masks.iter().filter(|&&mask| mask != super::FILL).count();
    script.line(format_args!("masks that were written"), format_args!("{written}"));
    for flags in [0, 2, 16, 0xffff_fff0] {
        let message = Msi { address_lo: 0x0808_0040, flags, ..Msi::default() };
        script.write(format_args!("SIGNAL_MSI without a vGIC, flags {flags:#x}"), vm, number::SIGNAL_MSI, &message);
    }
    script.close(vm);
}

fn devices<B: Backend>(script: &mut Script<'_, B>) {
    script.part("device");
    let vm = script.vm();
    for kind in (0..14).chain([0xffff_ffff]) {
        for flags in [1, 0, 2, 0xffff_fffe] {
            // What another architecture calls VFIO is a file's device there, not KVM's.
            if kind == 4 {
                continue;
            }
            let vm = script.vm();
            let device = script.device(format_args!("CREATE_DEVICE {kind} flags {flags:#x}"), vm, kind, flags);
            script.close(device);
            script.close(vm);
        }
    }
    let own = if script.has_gicv3 { device::VGIC_V3 } else { device::VGIC_V2 };
    script.call(format_args!("CREATE_IRQCHIP"), vm, number::CREATE_IRQCHIP, 0);
    script.call(format_args!("CREATE_IRQCHIP again"), vm, number::CREATE_IRQCHIP, 0);
    script.device(format_args!("CREATE_DEVICE beside"), vm, own, 0);
    script.close(vm);
    let vm = script.vm();
    let first = script.device(format_args!("CREATE_DEVICE"), vm, own, 0);
    for kind in [device::VGIC_V2, device::VGIC_V3] {
        script.device(format_args!("CREATE_DEVICE {kind} beside"), vm, kind, 0);
        script.device(format_args!("CREATE_DEVICE {kind} beside, a test"), vm, kind, device::TEST);
    }
    script.call(format_args!("CREATE_IRQCHIP beside"), vm, number::CREATE_IRQCHIP, 0);
    // The device's number is in the middle of what is written, and nothing else is.
    let mut create = [own, 0x5555, 0];
    let answer = script.quiet(vm, number::CREATE_DEVICE, address_mut(&mut create));
    script.line(
        format_args!("CREATE_DEVICE that fails"),
        format_args!("{answer} {:#x} {:#x} {:#x}", create[0], create[1], create[2]),
    );
    for cap in [0, 66, 128, 131] {
        script.call(format_args!("CHECK_EXTENSION {cap} with a vGIC"), vm, number::CHECK_EXTENSION, cap);
    }
    for id in [8, 9, 511, 512] {
        let vcpu = script.open(format_args!("CREATE_VCPU {id} with a vGIC"), vm, number::CREATE_VCPU, id);
        script.close(vcpu);
    }
    script.close(first);
    script.close(vm);
    let vm = script.vm();
    for id in 0..9 {
        let vcpu = script.open(format_args!("CREATE_VCPU {id} of nine"), vm, number::CREATE_VCPU, id);
        script.close(vcpu);
    }
    script.call(format_args!("CREATE_IRQCHIP with nine vCPUs"), vm, number::CREATE_IRQCHIP, 0);
    script.close(vm);
}

fn enable<B: Backend>(script: &mut Script<'_, B>) {
    script.part("enable");
    let vm = script.vm();
    for cap in [
        0,
        70,
        cap::ARM_USER_IRQ,
        cap::ARM_INJECT_SERROR_ESR,
        cap::ARM_NISV_TO_USER,
        cap::ARM_SYSTEM_SUSPEND,
        cap::HALT_POLL,
        cap::MANUAL_DIRTY_LOG_PROTECT2,
        170,
        192,
        225,
        230,
        9999,
        u32::MAX,
    ] {
        for flags in [0, 1] {
            let argument = EnableCap { cap, flags, ..EnableCap::default() };
            script.write(format_args!("ENABLE_CAP {cap} flags {flags}"), vm, number::ENABLE_CAP, &argument);
        }
    }
    for (cap, value) in [
        (cap::ARM_NISV_TO_USER, 1),
        (cap::ARM_NISV_TO_USER, 0),
        (cap::ARM_SYSTEM_SUSPEND, 7),
        (cap::MANUAL_DIRTY_LOG_PROTECT2, 1),
        (cap::MANUAL_DIRTY_LOG_PROTECT2, 2),
        (cap::MANUAL_DIRTY_LOG_PROTECT2, 3),
        (cap::MANUAL_DIRTY_LOG_PROTECT2, 4),
        (cap::MANUAL_DIRTY_LOG_PROTECT2, 0),
        (cap::HALT_POLL, 1000),
        (cap::HALT_POLL, 1 << 32),
    ] {
        let argument = EnableCap { cap, args: [value, 0, 0, 0], ..EnableCap::default() };
        script.write(format_args!("ENABLE_CAP {cap} of {value:#x}"), vm, number::ENABLE_CAP, &argument);
    }
    let vcpu = script.vcpu(vm, 0);
    let argument = EnableCap { cap: cap::ARM_NISV_TO_USER, ..EnableCap::default() };
    script.write(format_args!("ENABLE_CAP of a vCPU"), vcpu, number::ENABLE_CAP, &argument);
    script.write(format_args!("ENABLE_CAP with a vCPU"), vm, number::ENABLE_CAP, &argument);
    script.close(vcpu);
    script.close(vm);
}

fn filter<B: Backend>(script: &mut Script<'_, B>) {
    script.part("filter");
    let vm = script.vm();
    for (group, attr) in [(0, 0), (0, 1), (1, 0), (u32::MAX, u64::MAX)] {
        script.has("VM", vm, group, attr);
    }
    for at in NOWHERE {
        script.set("VM", vm, 0, 0, Data::At(at));
    }
    script.set("VM", vm, 0, 1, Data::U64(0));
    script.set("VM", vm, 1, 0, Data::U64(0));
    script.get("VM", vm, 0, 0);
    for (base, nr_functions, action, pad) in [
        (0x8400_0050, 1, 1, 0),
        (0x8400_0050, 1, 1, 0),
        (0x8400_004f, 2, 2, 0),
        (0x8400_0040, 0x10, 0, 0),
        (0x8400_0048, 1, 2, 0),
        (0xc600_0100, 4, 2, 0),
        (0xc600_0103, 4, 2, 0),
        (0xc600_0104, 0, 2, 0),
        (0xc600_0104, 1, 3, 0),
        (0xc600_0104, 1, 255, 0),
        (0xc600_0104, 1, 2, 1),
        (0xffff_ffff, 1, 2, 0),
        (0xffff_ffff, 2, 2, 0),
        (0xffff_fff0, 0xffff_ffff, 2, 0),
        (0x8000_0000, 1, 2, 0),
        (0x8000_0001, 1, 0, 0),
        (0x8000_ffff, 1, 1, 0),
        (0x8001_0000, 1, 1, 0),
        (0x7fff_ffff, 1, 1, 0),
        (0x7fff_fff0, 0x20, 1, 0),
        (0xc000_0000, 0x1_0000, 1, 0),
        (0xc000_8000, 1, 1, 0),
        (0xbfff_ffff, 1, 1, 0),
        (0, 1, 2, 0),
        (0, 0xffff_ffff, 2, 0),
    ] {
        let mut pads = [0; 15];
        pads[14] = pad;
        let argument = SmcccFilter { base, nr_functions, action, pad: pads };
        let attribute = crate::uapi::DeviceAttr { addr: address(&argument), ..Default::default() };
        let what = format_args!("SMCCC_FILTER {base:#x} {nr_functions:#x} {action} {pad}");
        script.write(what, vm, number::SET_DEVICE_ATTR, &attribute);
    }
    script.close(vm);
}

fn lines<B: Backend>(script: &mut Script<'_, B>) {
    script.part("line");
    for stage in ["no vGIC", "a vGIC", "a complete vGIC"] {
        let vm = script.vm();
        let gic = if stage == "no vGIC" { NOBODY } else { script.gic(vm) };
        let vcpus = [script.vcpu(vm, 0), script.vcpu(vm, 1)];
        if stage == "a complete vGIC" {
            script.complete(gic);
        }
        for irq in [
            0x0000_0000,
            0x0000_0001,
            0x0000_0002,
            0x0001_0000,
            0x0009_0000,
            0x1000_0000,
            0x0100_001f,
            0x0100_0020,
            0x0100_00ff,
            0x0100_0100,
            0x0100_03fb,
            0x01ff_0020,
            0xf1ff_0020,
            0x0200_000f,
            0x0200_0010,
            0x0200_001f,
            0x0200_0020,
            0x0201_0010,
            0x0202_0010,
            0x1200_0010,
            0x0300_0020,
            0x0f00_0020,
        ] {
            for level in [1, 0] {
                let argument = IrqLevel { irq, level };
                script.write(format_args!("{stage} IRQ_LINE {irq:#x} {level}"), vm, number::IRQ_LINE, &argument);
            }
        }
        let mut words = [1 << 32 | 0x0100_0020_u64];
        script.read(format_args!("{stage} IRQ_LINE_STATUS"), vm, number::IRQ_LINE_STATUS, &mut words);
        words = [0x7777_7777_0100_0020_u64];
        script.read(
            format_args!("{stage} IRQ_LINE_STATUS of a strange level"),
            vm,
            number::IRQ_LINE_STATUS,
            &mut words,
        );
        vcpus.into_iter().chain([gic, vm]).for_each(|handle| script.close(handle));
    }
}
