//! Interrupt controllers: the devices and their attributes, KVM_ARM_SET_DEVICE_ADDR, interrupt lines, messages.

use super::{Data, NOBODY, NOWHERE, RUN, Script, device};
use crate::{
    Backend, number,
    uapi::{DeviceAddr, Msi, feature, vgic},
};

pub(super) fn run<B: Backend>(script: &mut Script<'_, B>) {
    // On a board with the other one there is one question: that it cannot be made.
    script.part("v3");
    attributes(script, device::VGIC_V3);
    addresses_v3(script);
    regions(script);
    registers_v3(script);
    script.part("v2");
    attributes(script, device::VGIC_V2);
    addresses_v2(script);
    registers_v2(script);
    first_run(script);
    its(script);
}

fn attributes<B: Backend>(script: &mut Script<'_, B>, kind: u32) {
    let vm = script.vm();
    let gic = script.device(format_args!("CREATE_DEVICE {kind}"), vm, kind, 0);
    let vcpu = script.vcpu(vm, 0);
    for group in (0..11).chain([99, u32::MAX]) {
        for attr in [0, 1, 2, 3, 4, 5, 6, 8, 0xc, 0x100, 0x104, 0xfffc, 0xffe8] {
            script.has("vGIC", gic, group, attr);
        }
    }
    for group in [9, 99, u32::MAX] {
        script.set("vGIC", gic, group, 0, Data::U64(0));
        script.get("vGIC", gic, group, 0);
    }
    // How many interrupts.
    script.get("vGIC", gic, vgic::NR_IRQS, 0);
    for count in [0, 32, 63, 65, 96, 1023, 1024, 1056, u32::MAX] {
        if count != 96 {
            script.set("vGIC", gic, vgic::NR_IRQS, 0, Data::U32(count));
        }
    }
    script.set("vGIC", gic, vgic::NR_IRQS, 0, Data::At(NOWHERE[0]));
    for count in [128, 128, 64] {
        script.set("vGIC", gic, vgic::NR_IRQS, 0, Data::U32(count));
        script.get("vGIC", gic, vgic::NR_IRQS, 0);
    }
    for command in [1, 2, 4, 99] {
        script.set("vGIC", gic, vgic::CTRL, command, Data::At(0));
    }
    script.get("vGIC", gic, vgic::CTRL, 0);
    for _ in 0..2 {
        script.set("vGIC", gic, vgic::CTRL, vgic::INIT, Data::At(0));
    }
    script.set("complete", gic, vgic::NR_IRQS, 0, Data::U32(64));
    script.set("complete", gic, vgic::NR_IRQS, 0, Data::U32(63));
    script.get("complete", gic, vgic::NR_IRQS, 0);
    script.open(format_args!("CREATE_VCPU 1 with a complete vGIC"), vm, number::CREATE_VCPU, 1);
    script.open(format_args!("CREATE_VCPU 0 with a complete vGIC"), vm, number::CREATE_VCPU, 0);
    for irq in [0x0100_007f_u64, 0x0100_0080] {
        let mut words = [irq | 1 << 32];
        script.read(format_args!("IRQ_LINE {irq:#x} of 128"), vm, number::IRQ_LINE, &mut words);
    }
    for number in [number::RUN, number::GET_ONE_REG, number::CREATE_VCPU, 0xae02, number::CHECK_EXTENSION] {
        script.call(format_args!("vGIC {number:#x}"), gic, number, 0);
    }
    for at in NOWHERE {
        script.call(format_args!("SET_DEVICE_ATTR at {at:#x}"), gic, number::SET_DEVICE_ATTR, at);
        script.call(format_args!("GET_DEVICE_ATTR at {at:#x}"), gic, number::GET_DEVICE_ATTR, at);
        script.call(format_args!("HAS_DEVICE_ATTR at {at:#x}"), gic, number::HAS_DEVICE_ATTR, at);
    }
    [vcpu, gic, vm].into_iter().for_each(|handle| script.close(handle));
}

fn addresses_v3<B: Backend>(script: &mut Script<'_, B>) {
    script.part("v3-address");
    let vm = script.vm();
    let gic = script.device(format_args!("CREATE_DEVICE"), vm, device::VGIC_V3, 0);
    let vcpus = [script.vcpu(vm, 0), script.vcpu(vm, 1)];
    for kind in 0..7 {
        script.get("vGIC", gic, vgic::ADDR, kind);
    }
    for kind in [0, 1, 4, 6] {
        script.set("vGIC", gic, vgic::ADDR, kind, Data::U64(0x0800_0000));
    }
    for kind in [vgic::V3_DIST, vgic::V3_REDIST] {
        script.set("vGIC", gic, vgic::ADDR, kind, Data::At(NOWHERE[0]));
        for address in [1, 0x1000, 0x8000, 0x0800_8000, 1 << 40, (1 << 40) - 0x1_0000, u64::MAX - 0xffff, u64::MAX] {
            // The last place for a distributor is a good one.
            if kind == vgic::V3_REDIST || address != (1 << 40) - 0x1_0000 {
                script.set("vGIC", gic, vgic::ADDR, kind, Data::U64(address));
            }
        }
        let place = if kind == vgic::V3_DIST { 0x0800_0000 } else { 0x080a_0000 };
        for address in [place, place, 0x1000, 1 << 40] {
            script.set("vGIC", gic, vgic::ADDR, kind, Data::U64(address));
        }
        script.get("vGIC", gic, vgic::ADDR, kind);
    }
    // KVM_ARM_SET_DEVICE_ADDR is the vGICv2's.
    for id in [0, 1, 2, 3, 1 << 16, 1 << 32, 0xffff] {
        let argument = DeviceAddr { id, addr: 0x0900_0000 };
        script.write(
            format_args!("ARM_SET_DEVICE_ADDR {id:#x} with a vGICv3"),
            vm,
            number::ARM_SET_DEVICE_ADDR,
            &argument,
        );
    }
    vcpus.into_iter().chain([gic, vm]).for_each(|handle| script.close(handle));
    let vm = script.vm();
    for id in [0, 1, 2, 3, 1 << 16, 1 << 32, 0xffff] {
        let argument = DeviceAddr { id, addr: 0x0900_0000 };
        script.write(format_args!("ARM_SET_DEVICE_ADDR {id:#x} without"), vm, number::ARM_SET_DEVICE_ADDR, &argument);
    }
    script.close(vm);
}

/// Regions of redistributors: count, address, flags and index in one word.
fn regions<B: Backend>(script: &mut Script<'_, B>) {
    script.part("v3-region");
    let vm = script.vm();
    let gic = script.device(format_args!("CREATE_DEVICE"), vm, device::VGIC_V3, 0);
    let region = |count: u64, base: u64, flags: u64, index: u64| count << 52 | base | flags << 12 | index;
    for (count, base, flags, index) in [
        (1, 0x0900_0000, 0, 1),
        (0, 0x0900_0000, 0, 0),
        (1, 0x0900_0000, 1, 0),
        (1, 0x0900_0000, 0, 0),
        (1, 0x0900_0000, 0, 0),
        (2, 0x0901_0000, 0, 1),
        (2, 0x0a00_0000, 0, 2),
        (2, 0x0a00_0000, 0, 1),
        (1, 0xff_ffff_0000, 0, 2),
        (1, 0x0b00_0000, 0, 2),
        (0xfff, 0x1_0000_0000, 0, 3),
    ] {
        let value = region(count, base, flags, index);
        script.set("vGIC", gic, vgic::ADDR, vgic::V3_REDIST_REGION, Data::U64(value));
    }
    script.set("vGIC", gic, vgic::ADDR, vgic::V3_REDIST, Data::U64(0x080a_0000));
    for index in [0, 1, 2, 3, 9, 0x102] {
        region_at(script, "KVM_CREATE_VM alone", gic, index);
    }
    script.close(gic);
    script.close(vm);
    regions_of_vcpus(script);
}

/// KVM_GET_DEVICE_ATTR of a region: the index goes in where the answer comes out.
fn region_at<B: Backend>(script: &mut Script<'_, B>, what: &str, gic: u64, index: u64) {
    let mut word = [index];
    let attribute = crate::uapi::DeviceAttr {
        flags: 0,
        group: vgic::ADDR,
        attr: vgic::V3_REDIST_REGION,
        addr: crate::handle::address_mut(&mut word),
    };
    let answer = script.quiet(gic, number::GET_DEVICE_ATTR, crate::handle::address(&attribute));
    script.line(format_args!("GET_DEVICE_ATTR of region {index}, {what}"), format_args!("{answer} {:#x}", word[0]));
}

/// Regions for two vCPUs, in several orders: which are refused, whether the VM runs then, and what GICR_TYPER says where.
fn regions_of_vcpus<B: Backend>(script: &mut Script<'_, B>) {
    const DIST: u64 = 0x0800_0000;
    /// All in one region, that is.
    const SINGLE: u64 = 0;
    /// ldr x0, [x1]: GICR_TYPER.
    const READ_TYPER: u32 = 0xf940_0020;
    if !script.has_gicv3 {
        return;
    }
    // The distributor before or after them; the regions.
    type Plan = (&'static str, bool, &'static [(u64, u64)]);
    let plans: [Plan; 13] = [
        ("one for both", true, &[(2, 0x0900_0000)]),
        ("one with room", true, &[(5, 0x0900_0000)]),
        ("one each, apart", true, &[(1, 0x0900_0000), (1, 0x0a00_0000)]),
        ("one each, in a row", true, &[(1, 0x0900_0000), (1, 0x0902_0000)]),
        ("one each, downwards", true, &[(1, 0x0902_0000), (1, 0x0900_0000)]),
        ("one more, unused", true, &[(2, 0x0900_0000), (2, 0x0904_0000)]),
        ("too few", true, &[(1, 0x0900_0000)]),
        ("on the distributor", true, &[(2, DIST), (2, 0x0900_0000)]),
        ("the second on the distributor", true, &[(1, 0x0900_0000), (1, DIST), (1, 0x0a00_0000)]),
        ("an unused one on the distributor", true, &[(2, 0x0900_0000), (2, DIST - 0x2_0000)]),
        ("under the distributor", false, &[(2, DIST)]),
        ("a single one, then one of several", true, &[(SINGLE, 0x0900_0000), (1, 0x0a00_0000)]),
        ("a single one", true, &[(SINGLE, 0x0900_0000), (SINGLE, 0x0900_0000)]),
    ];
    script.part("v3-regions");
    for (name, distributor_first, regions) in plans {
        let machine = script.machine(super::machine::Controller::None);
        let gic = script.gic(machine.vm);
        let other = script.vcpu(machine.vm, 1);
        script.initialise(other, feature::PSCI_0_2 | feature::POWER_OFF);
        if distributor_first {
            script.set(name, gic, vgic::ADDR, vgic::V3_DIST, Data::U64(DIST));
        }
        let mut index = 0;
        for &(count, base) in regions {
            let answer = if count == SINGLE {
                script.set(name, gic, vgic::ADDR, vgic::V3_REDIST, Data::U64(base))
            } else {
                script.set(name, gic, vgic::ADDR, vgic::V3_REDIST_REGION, Data::U64(count << 52 | base | index))
            };
            index += u64::from(answer == 0);
        }
        if !distributor_first {
            script.set(name, gic, vgic::ADDR, vgic::V3_DIST, Data::U64(DIST));
        }
        region_at(script, name, gic, 0);
        region_at(script, name, gic, 1);
        script.get(name, gic, vgic::ADDR, vgic::V3_REDIST);
        script.set(name, gic, vgic::CTRL, vgic::INIT, Data::At(0));
        let mut frames = regions.iter().flat_map(|&(count, base)| (0..count.max(2)).map(move |n| base + 0x2_0000 * n));
        for n in 0..4 {
            let Some(frame) = frames.next().filter(|&frame| frame != DIST) else { break };
            script.load(&machine, &[READ_TYPER]);
            // GICR_TYPER.
            script.quiet_reg(machine.vcpu, crate::uapi::reg::x(1), frame + 8);
            script.go(format_args!("{name}, frame {n}"), &machine);
            script.look(format_args!("{name}, frame {n}"), &machine);
            script.go(format_args!("{name}, after frame {n}"), &machine);
        }
        for handle in [other, gic] {
            script.close(handle);
        }
        script.drop_machine(&machine);
    }
}

fn registers_v3<B: Backend>(script: &mut Script<'_, B>) {
    script.part("v3-register");
    let vm = script.vm();
    let gic = script.device(format_args!("CREATE_DEVICE"), vm, device::VGIC_V3, 0);
    let vcpus = [script.vcpu(vm, 0), script.vcpu(vm, 1)];
    for vcpu in vcpus {
        script.initialise(vcpu, feature::PSCI_0_2);
    }
    // Before it is complete.
    for (group, attr) in [
        (vgic::DIST_REGS, 0),
        (vgic::REDIST_REGS, 0),
        (vgic::CPU_SYSREGS, 0xc230),
        (vgic::LEVEL_INFO, 0),
        (vgic::CPU_REGS, 0),
    ] {
        script.get("early", gic, group, attr);
        script.set("early", gic, group, attr, Data::U64(0));
    }
    if script.has_gicv3 {
        script.complete(gic);
    }
    script.part("v3-distributor");
    let offsets = [
        0x0, 0x4, 0x8, 0xc, 0x10, 0x80, 0x84, 0x9c, 0x100, 0x104, 0x11c, 0x120, 0x17c, 0x180, 0x184, 0x200, 0x204,
        0x280, 0x284, 0x300, 0x304, 0x380, 0x384, 0x400, 0x41c, 0x420, 0x4fc, 0x500, 0x7f8, 0x800, 0xc00, 0xc04, 0xc08,
        0xd00, 0xe00, 0xf00, 0xf10, 0xf20, 0x6000, 0x6100, 0x6104, 0x67f8, 0x7fd8, 0xffd0, 0xffe0, 0xffe8, 0xfffc,
        0x1_0000, 1, 2, 0x102,
    ];
    for offset in offsets {
        script.has("GICD", gic, vgic::DIST_REGS, offset);
        script.get("GICD", gic, vgic::DIST_REGS, offset);
        // What cannot be written stays.
        if offset != 8 {
            script.set("GICD", gic, vgic::DIST_REGS, offset, Data::U32(0xffff_ffff));
            script.get("GICD written", gic, vgic::DIST_REGS, offset);
        }
    }
    for value in [0x4b00_043b, 0x4b00_143b, 0x4b00_243b, 0x4b00_343b, 0x4b00_443b, 0, 0x4b00_343c, 0x4c00_343b] {
        script.set("IIDR", gic, vgic::DIST_REGS, 8, Data::U32(value));
        script.get("IIDR", gic, vgic::DIST_REGS, 8);
    }
    script.part("v3-redistributor");
    for mpidr in [0_u64, 1, 2, 0x100] {
        for offset in [0x0, 0x8] {
            script.get("GICR of a vCPU", gic, vgic::REDIST_REGS, mpidr << 32 | offset);
            script.get("GICD of a vCPU", gic, vgic::DIST_REGS, mpidr << 32 | offset);
        }
    }
    for offset in [
        0x0, 0x4, 0x8, 0xc, 0x10, 0x14, 0x40, 0x70, 0x74, 0x78, 0x80, 0xffe8, 0xfffc, 0x1_0080, 0x1_0100, 0x1_0180,
        0x1_0200, 0x1_0280, 0x1_0300, 0x1_0380, 0x1_0400, 0x1_041c, 0x1_0c00, 0x1_0c04, 0x1_0d00, 0x1_0e00, 0x2_0000,
        1, 2,
    ] {
        script.has("GICR", gic, vgic::REDIST_REGS, offset);
        script.get("GICR", gic, vgic::REDIST_REGS, offset);
        script.set("GICR", gic, vgic::REDIST_REGS, offset, Data::U32(0xffff_ffff));
        script.get("GICR written", gic, vgic::REDIST_REGS, offset);
    }
    script.part("v3-interface");
    let registers = [
        0xc230, 0xc640, 0xc643, 0xc644, 0xc645, 0xc646, 0xc647, 0xc648, 0xc649, 0xc64a, 0xc64b, 0xc659, 0xc663, 0xc664,
        0xc665, 0xc666, 0xc667, 0xc668, 0xe640, 0xffff,
    ];
    for register in registers {
        script.has("ICC", gic, vgic::CPU_SYSREGS, register);
        script.get("ICC", gic, vgic::CPU_SYSREGS, register);
        for value in [u64::MAX, 0, 1, 7, 0xf8] {
            if register != 0xc664 {
                script.set("ICC", gic, vgic::CPU_SYSREGS, register, Data::U64(value));
                script.get("ICC", gic, vgic::CPU_SYSREGS, register);
            }
        }
    }
    // ICC_CTLR_EL1: fields that are the interface's own cannot say more than there is.
    let control = script.get("ICC_CTLR", gic, vgic::CPU_SYSREGS, 0xc664);
    for (name, value) in [
        ("as it is", control),
        ("CBPR", control | 1),
        ("EOImode", control | 2),
        ("more priority bits", control | 7 << 8),
        ("more INTID bits", control | 7 << 11),
        ("SEIS", control ^ 1 << 14),
        ("A3V", control ^ 1 << 15),
        ("reserved", control | 1 << 32),
        ("no priority bits", control & !(7 << 8)),
    ] {
        let mut word = [value];
        let attribute = crate::uapi::DeviceAttr {
            flags: 0,
            group: vgic::CPU_SYSREGS,
            attr: 0xc664,
            addr: crate::handle::address_mut(&mut word),
        };
        script.write(format_args!("ICC_CTLR {name}"), gic, number::SET_DEVICE_ATTR, &attribute);
        script.get(format_args!("ICC_CTLR after {name}"), gic, vgic::CPU_SYSREGS, 0xc664);
        // With CBPR the second binary point is the first's.
        script.set("ICC_BPR1", gic, vgic::CPU_SYSREGS, 0xc663, Data::U64(3));
        script.get("ICC_BPR1", gic, vgic::CPU_SYSREGS, 0xc663);
    }
    for mpidr in [1_u64, 2, 0x100, 0x8000_0000] {
        script.get("ICC of a vCPU", gic, vgic::CPU_SYSREGS, mpidr << 32 | 0xc230);
    }
    script.part("v3-level");
    for info in [0, 32, 64, 224, 256, 992, 1, 33, 0x400, 0x8000_0000, 1 << 32, 1 << 32 | 32, 2 << 32] {
        script.has("LEVEL", gic, vgic::LEVEL_INFO, info);
        script.get("LEVEL", gic, vgic::LEVEL_INFO, info);
        script.set("LEVEL", gic, vgic::LEVEL_INFO, info, Data::U32(0xffff_ffff));
        script.get("LEVEL written", gic, vgic::LEVEL_INFO, info);
        script.set("LEVEL", gic, vgic::LEVEL_INFO, info, Data::U32(0));
    }
    latches(script, vm, gic);
    script.set("PENDING TABLES", gic, vgic::CTRL, 3, Data::At(0));
    script.get("CPU_REGS", gic, vgic::CPU_REGS, 0);
    script.set("CPU_REGS", gic, vgic::CPU_REGS, 0, Data::U32(0));
    vcpus.into_iter().chain([gic, vm]).for_each(|handle| script.close(handle));
}

/// A line, its latch, its level.
fn latches<B: Backend>(script: &mut Script<'_, B>, vm: u64, gic: u64) {
    script.part("v3-latch");
    let level_of = |script: &mut Script<'_, B>| {
        script.get("LEVEL", gic, vgic::LEVEL_INFO, 32);
        script.get("GICD_ISPENDR", gic, vgic::DIST_REGS, 0x204);
        script.get("GICD_ICPENDR", gic, vgic::DIST_REGS, 0x284);
    };
    // Level-sensitive 36 and edge-triggered 37.
    script.set("GICD_ICFGR", gic, vgic::DIST_REGS, 0xc08, Data::U32(2 << 10));
    script.get("GICD_ICFGR", gic, vgic::DIST_REGS, 0xc08);
    script.set("GICD_ISPENDR", gic, vgic::DIST_REGS, 0x204, Data::U32(0));
    for irq in [36_u64, 37] {
        for level in [1_u64, 1, 0, 1, 0] {
            let mut words = [0x0100_0000 | irq | level << 32];
            script.read(format_args!("IRQ_LINE {irq} {level}"), vm, number::IRQ_LINE, &mut words);
            level_of(script);
        }
        for value in [1 << (irq - 32), 0_u32] {
            script.set("GICD_ISPENDR", gic, vgic::DIST_REGS, 0x204, Data::U32(value));
            level_of(script);
        }
        for value in [1 << (irq - 32), 0_u32] {
            script.set("LEVEL", gic, vgic::LEVEL_INFO, 32, Data::U32(value));
            level_of(script);
        }
    }
}

fn addresses_v2<B: Backend>(script: &mut Script<'_, B>) {
    script.part("v2-address");
    for created in ["device", "irqchip"] {
        let vm = script.vm();
        let gic = if created == "device" {
            script.device(format_args!("CREATE_DEVICE"), vm, device::VGIC_V2, 0)
        } else {
            script.call(format_args!("CREATE_IRQCHIP"), vm, number::CREATE_IRQCHIP, 0);
            NOBODY
        };
        for (id, addr) in [
            (2, 0x0800_0000),
            (1 << 16, 0x0800_0000),
            (0, 1),
            (0, 0x800),
            (0, 1 << 40),
            (0, u64::MAX - 0xfff),
            (0, 0x0800_0000),
            (0, 0x0800_0000),
            (1 << 32, 0x0800_0000),
            (1, 0x0801_0800),
            (1, (1 << 40) - 0x1000),
            (1 << 32 | 1, 0x0801_0000),
            (1, 0x0801_0000),
        ] {
            let argument = DeviceAddr { id, addr };
            script.write(
                format_args!("{created}: ARM_SET_DEVICE_ADDR {id:#x} {addr:#x}"),
                vm,
                number::ARM_SET_DEVICE_ADDR,
                &argument,
            );
        }
        for kind in 0..6 {
            script.get(created, gic, vgic::ADDR, kind);
            script.set(created, gic, vgic::ADDR, kind, Data::U64(0x0c00_0000));
        }
        script.close(gic);
        script.close(vm);
    }
}

fn registers_v2<B: Backend>(script: &mut Script<'_, B>) {
    script.part("v2-register");
    let vm = script.vm();
    let gic = script.device(format_args!("CREATE_DEVICE"), vm, device::VGIC_V2, 0);
    let vcpus = [script.vcpu(vm, 0), script.vcpu(vm, 1)];
    for vcpu in vcpus {
        script.initialise(vcpu, feature::PSCI_0_2);
    }
    for offset in [
        0x0, 0x4, 0x8, 0xc, 0x80, 0x84, 0x100, 0x104, 0x180, 0x200, 0x204, 0x280, 0x284, 0x300, 0x304, 0x380, 0x400,
        0x420, 0x800, 0x820, 0x8fc, 0xc00, 0xc04, 0xc08, 0xd00, 0xf00, 0xf10, 0xf20, 0xfd0, 0xfe8, 0x1000, 1, 2,
    ] {
        script.has("GICD", gic, vgic::DIST_REGS, offset);
        script.get("GICD", gic, vgic::DIST_REGS, offset);
        if offset != 8 {
            script.set("GICD", gic, vgic::DIST_REGS, offset, Data::U32(0xffff_ffff));
            script.get("GICD written", gic, vgic::DIST_REGS, offset);
        }
    }
    for value in [0x4b00_043b, 0x4b00_143b, 0x4b00_243b, 0x4b00_343b, 0x4b00_443b, 0] {
        script.set("IIDR", gic, vgic::DIST_REGS, 8, Data::U32(value));
        script.get("IIDR", gic, vgic::DIST_REGS, 8);
    }
    for offset in [0x0, 0x4, 0x8, 0xc, 0x10, 0x14, 0x18, 0x1c, 0xd0, 0xd4, 0xd8, 0xdc, 0xe0, 0xfc, 0x1000, 1, 2] {
        script.has("GICC", gic, vgic::CPU_REGS, offset);
        script.get("GICC", gic, vgic::CPU_REGS, offset);
        for value in [0xffff_ffff, 0] {
            script.set("GICC", gic, vgic::CPU_REGS, offset, Data::U32(value));
            script.get("GICC", gic, vgic::CPU_REGS, offset);
        }
    }
    for vcpu in [1_u64, 2, 255] {
        script.get("GICC of a vCPU", gic, vgic::CPU_REGS, vcpu << 32 | 4);
        script.get("GICD of a vCPU", gic, vgic::DIST_REGS, vcpu << 32 | 0x100);
    }
    for group in [vgic::REDIST_REGS, vgic::CPU_SYSREGS, vgic::LEVEL_INFO] {
        script.get("vGICv2", gic, group, 0);
        script.set("vGICv2", gic, group, 0, Data::U32(0));
    }
    vcpus.into_iter().chain([gic, vm]).for_each(|handle| script.close(handle));
}

/// The first KVM_RUN of a machine whose interrupt controller is not complete; what follows on a VM that died of it.
fn first_run<B: Backend>(script: &mut Script<'_, B>) {
    script.part("first-run");
    for stage in [
        "no address",
        "no redistributor",
        "no distributor",
        "no INIT",
        "an overlap",
        "a later overlap",
        "one vCPU too many",
    ] {
        let vm = script.vm();
        let gic = script.gic(vm);
        let vcpu = script.vcpu(vm, 0);
        let second = if stage == "one vCPU too many" { script.vcpu(vm, 1) } else { NOBODY };
        let (first, other) =
            if script.has_gicv3 { (vgic::V3_DIST, vgic::V3_REDIST) } else { (vgic::V2_DIST, vgic::V2_CPU) };
        let beside = if stage.ends_with("overlap") { 0x0800_0000 } else { 0x080a_0000 };
        let region = stage == "one vCPU too many" && script.has_gicv3;
        let mut addresses = [
            (first, 0x0800_0000, stage != "no address" && stage != "no distributor"),
            if region {
                (vgic::V3_REDIST_REGION, 1 << 52 | beside, true)
            } else {
                (other, beside, stage != "no address" && stage != "no redistributor")
            },
        ];
        if stage == "a later overlap" {
            addresses.reverse();
        }
        for (kind, address, _) in addresses.into_iter().filter(|(.., given)| *given) {
            script.set(stage, gic, vgic::ADDR, kind, Data::U64(address));
        }
        if stage != "no INIT" {
            script.quiet_set(gic, vgic::CTRL, vgic::INIT, 0);
        }
        script.initialise(vcpu, feature::PSCI_0_2);
        RUN[0].clear();
        // It must not start where nothing is, should it start.
        RUN[0].write(crate::uapi::run::IMMEDIATE_EXIT, 1, 1);
        for _ in 0..2 {
            script.run_vcpu(format_args!("RUN with {stage}"), vcpu, &RUN[0]);
        }
        script.call(format_args!("CHECK_EXTENSION after {stage}"), vm, number::CHECK_EXTENSION, 70);
        script.open(format_args!("CREATE_VCPU after {stage}"), vm, number::CREATE_VCPU, 5);
        script.read(format_args!("GET_MP_STATE after {stage}"), vcpu, number::GET_MP_STATE, &mut [super::FILL]);
        script.get("after", gic, vgic::NR_IRQS, 0);
        script.call(format_args!("unknown number after {stage}"), gic, 0xae02, 0);
        RUN[0].clear();
        [vcpu, second, gic, vm].into_iter().for_each(|handle| script.close(handle));
    }
}

fn its<B: Backend>(script: &mut Script<'_, B>) {
    script.part("its");
    let vm = script.vm();
    let gic = script.gic(vm);
    let vcpu = script.vcpu(vm, 0);
    let its = script.device(format_args!("CREATE_DEVICE"), vm, device::VGIC_ITS, 0);
    script.call(format_args!("CHECK_EXTENSION 131"), vm, number::CHECK_EXTENSION, 131);
    for group in [0, 1, 3, 4, 8, 9] {
        for attr in [0, 1, 2, 3, 4, 5] {
            script.has("ITS", its, group, attr);
        }
    }
    script.get("ITS", its, vgic::ADDR, vgic::ITS);
    for address in [1, 0x8000, 1 << 40, (1 << 40) - 0x1_0000, u64::MAX - 0xffff, 0x0808_0000, 0x0808_0000, 1] {
        script.set("ITS", its, vgic::ADDR, vgic::ITS, Data::U64(address));
    }
    for kind in [0, 2, 3, 5] {
        script.set("ITS", its, vgic::ADDR, kind, Data::U64(0x0808_0000));
        script.get("ITS", its, vgic::ADDR, kind);
    }
    script.get("ITS", its, vgic::ADDR, vgic::ITS);
    script.set("ITS", its, vgic::ADDR, vgic::ITS, Data::At(NOWHERE[0]));
    for command in [3, 5, 99] {
        script.set("ITS", its, vgic::CTRL, command, Data::At(0));
    }
    script.set("ITS", its, vgic::CTRL, vgic::INIT, Data::At(0));
    script.set("ITS", its, vgic::CTRL, vgic::INIT, Data::At(0));
    script.complete(gic);
    script.set("complete ITS", its, vgic::CTRL, vgic::INIT, Data::At(0));
    for offset in [
        0x0, 0x4, 0x8, 0xc, 0x10, 0x80, 0x84, 0x88, 0x90, 0x98, 0x100, 0x108, 0x110, 0x138, 0xffd0, 0xffe0, 0xffe8,
        0xfffc, 0x1_0000, 0x1_0040, 1, 2,
    ] {
        script.has("ITS", its, vgic::ITS_REGS, offset);
        script.get("ITS", its, vgic::ITS_REGS, offset);
        if !matches!(offset, 0 | 4) {
            script.set("ITS", its, vgic::ITS_REGS, offset, Data::U64(0));
            script.get("ITS", its, vgic::ITS_REGS, offset);
        }
    }
    for (address, flags, devid) in [
        (0x0808_0040_u32, 1, 0),
        (0x0808_0040, 0, 0),
        (0x0809_0040, 1, 0),
        (0x0809_0040, 0, 0),
        (0x0809_0040, 2, 0),
        (0, 1, 0),
        (0x0809_0040, 1, 99),
    ] {
        let message = Msi { address_lo: address, flags, devid, ..Msi::default() };
        script.write(format_args!("SIGNAL_MSI {address:#x} {flags} {devid}"), vm, number::SIGNAL_MSI, &message);
    }
    for command in [1, 2, 4] {
        script.set("ITS tables", its, vgic::CTRL, command, Data::At(0));
    }
    [its, vcpu, gic, vm].into_iter().for_each(|handle| script.close(handle));
}
