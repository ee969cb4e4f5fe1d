//! Attributes of vCPUs: the PMU, the timers' interrupts, the place of stolen time.

use super::{Data, NOBODY, NOWHERE, RAM, RUN, Script};
use crate::{
    Backend,
    handle::address,
    number,
    page::PAGE,
    uapi::{UserMemoryRegion, feature, reg, vcpu_group},
};

/// What the PMU's attributes are.
const IRQ: u64 = 0;
const INIT: u64 = 1;
const FILTER: u64 = 2;
const SET_PMU: u64 = 3;

pub(super) fn run<B: Backend>(script: &mut Script<'_, B>) {
    pmu(script);
    timers(script);
    same_timers(script);
    stolen_time(script);
}

fn pmu<B: Backend>(script: &mut Script<'_, B>) {
    script.part("pmu");
    for (name, features) in [("no PMU", 0), ("a PMU", feature::PMU_V3)] {
        for stage in ["no vGIC", "a vGIC", "a complete vGIC"] {
            let vm = script.vm();
            let gic = if stage == "no vGIC" { NOBODY } else { script.gic(vm) };
            let vcpus = [script.vcpu(vm, 0), script.vcpu(vm, 1)];
            if stage == "a complete vGIC" {
                script.complete(gic);
            }
            for vcpu in vcpus {
                let answer = script.initialise(vcpu, feature::PSCI_0_2 | features);
                script.line(format_args!("{name}, {stage}, ARM_VCPU_INIT"), format_args!("{answer}"));
            }
            let [first, second] = vcpus;
            let what = match (name, stage) {
                ("no PMU", "no vGIC") => "no PMU, no vGIC",
                ("no PMU", "a vGIC") => "no PMU, vGIC",
                ("no PMU", _) => "no PMU, complete",
                (_, "no vGIC") => "with PMU, no vGIC",
                (_, "a vGIC") => "with PMU, vGIC",
                _ => "with PMU, complete",
            };
            for attr in 0..5 {
                script.has(what, first, vcpu_group::PMU, attr);
                script.get(what, first, vcpu_group::PMU, attr);
            }
            script.set(what, first, vcpu_group::PMU, INIT, Data::At(0));
            for irq in [0, 15, 32 + 988, 1 << 31, 23, 23, 24, 40, 20] {
                script.set(what, first, vcpu_group::PMU, IRQ, Data::U32(irq));
            }
            script.set(what, first, vcpu_group::PMU, IRQ, Data::At(NOWHERE[0]));
            for irq in [24, 40, 23, 23] {
                script.set(what, second, vcpu_group::PMU, IRQ, Data::U32(irq));
            }
            script.get(what, first, vcpu_group::PMU, IRQ);
            script.get(what, second, vcpu_group::PMU, IRQ);
            // base_event, nevents, action, in the order of the structure.
            for (base, count, action) in [
                (0x11_u64, 1_u64, 0_u64),
                (0xffff, 1, 0),
                (0xffff, 2, 0),
                (0, 0, 0),
                (0x11, 1, 2),
                (8, 1, 1),
                (0, 0xffff, 1),
            ] {
                script.set(what, first, vcpu_group::PMU, FILTER, Data::U64(base | count << 16 | action << 32));
            }
            script.set(what, first, vcpu_group::PMU, FILTER, Data::At(NOWHERE[0]));
            for id in [0xffff, u32::MAX] {
                script.set(what, first, vcpu_group::PMU, SET_PMU, Data::U32(id));
            }
            script.set(what, first, vcpu_group::PMU, 4, Data::U32(1));
            script.set(what, first, vcpu_group::PMU, 9, Data::U32(1));
            for vcpu in [first, first, second] {
                script.set(what, vcpu, vcpu_group::PMU, INIT, Data::At(0));
            }
            script.set(what, first, vcpu_group::PMU, IRQ, Data::U32(23));
            script.set(what, first, vcpu_group::PMU, FILTER, Data::U64(0));
            script.get(what, first, vcpu_group::PMU, IRQ);
            for low in [0xdce0, 0xdce1, 0xdce4, 0xdce8, 0xdf40, 0xdf7f, 0xc4f1] {
                script.get_reg(what, first, reg::ARM64 | reg::U64 | reg::SYSREG | low, low == 0xdce0);
            }
            vcpus.into_iter().chain([gic, vm]).for_each(|handle| script.close(handle));
        }
    }
    // Interrupts that are other things': a timer's, two vCPUs' own, more than there are.
    let vm = script.vm();
    let gic = script.gic(vm);
    let vcpus = [script.vcpu(vm, 0), script.vcpu(vm, 1)];
    script.complete(gic);
    for vcpu in vcpus {
        script.initialise(vcpu, feature::PSCI_0_2 | feature::PMU_V3);
    }
    for irq in [1020, 1019, 40, 41] {
        script.set("first", vcpus[0], vcpu_group::PMU, IRQ, Data::U32(irq));
    }
    script.set("first", vcpus[0], vcpu_group::PMU, INIT, Data::At(0));
    for irq in [1019, 40, 23] {
        script.set("second", vcpus[1], vcpu_group::PMU, IRQ, Data::U32(irq));
    }
    script.set("second", vcpus[1], vcpu_group::PMU, INIT, Data::At(0));
    vcpus.into_iter().chain([gic, vm]).for_each(|handle| script.close(handle));
}

fn timers<B: Backend>(script: &mut Script<'_, B>) {
    script.part("timer-irq");
    for (what, controller) in [("no vGIC", false), ("vGIC", true)] {
        let vm = script.vm();
        let gic = if controller { script.gic(vm) } else { NOBODY };
        let vcpus = [script.vcpu(vm, 0), script.vcpu(vm, 1)];
        if controller {
            script.complete(gic);
        }
        for attr in 0..6 {
            script.has(what, vcpus[0], vcpu_group::TIMER, attr);
            script.get(what, vcpus[0], vcpu_group::TIMER, attr);
        }
        for attr in 0..5 {
            for irq in [0, 15, 32, u32::MAX, 16, 31, 20 + attr as u32] {
                script.set(what, vcpus[0], vcpu_group::TIMER, attr, Data::U32(irq));
            }
            script.set(what, vcpus[0], vcpu_group::TIMER, attr, Data::At(NOWHERE[0]));
            script.get(what, vcpus[0], vcpu_group::TIMER, attr);
            // All vCPUs have the same.
            script.get("second", vcpus[1], vcpu_group::TIMER, attr);
        }
        for group in [3, 99] {
            script.has(what, vcpus[0], group, 0);
            script.get(what, vcpus[0], group, 0);
            script.set(what, vcpus[0], group, 0, Data::U32(0));
        }
        vcpus.into_iter().chain([gic, vm]).for_each(|handle| script.close(handle));
    }
}

/// Timers with the same interrupt do not run; what moved cannot be moved again once it has run.
fn same_timers<B: Backend>(script: &mut Script<'_, B>) {
    script.part("timer-run");
    let machine = script.machine(super::machine::Controller::Own);
    script.load(&machine, &[]);
    for (vtimer, ptimer) in [(20, 20), (30, 30), (21, 22)] {
        script.set("vCPU", machine.vcpu, vcpu_group::TIMER, 0, Data::U32(vtimer));
        script.set("vCPU", machine.vcpu, vcpu_group::TIMER, 1, Data::U32(ptimer));
        script.run_vcpu(format_args!("RUN with {vtimer} and {ptimer}"), machine.vcpu, &RUN[0]);
    }
    for attr in 0..5 {
        script.set("a vCPU that ran", machine.vcpu, vcpu_group::TIMER, attr, Data::U32(25));
        script.get("a vCPU that ran", machine.vcpu, vcpu_group::TIMER, attr);
    }
    script.set("a vCPU that ran", machine.vcpu, vcpu_group::TIMER, 0, Data::U32(15));
    script.set("a vCPU that ran", machine.vcpu, vcpu_group::TIMER, 0, Data::At(NOWHERE[0]));
    script.drop_machine(&machine);
}

fn stolen_time<B: Backend>(script: &mut Script<'_, B>) {
    script.part("pvtime");
    let vm = script.vm();
    let vcpus = [script.vcpu(vm, 0), script.vcpu(vm, 1)];
    for attr in 0..3 {
        script.has("vCPU", vcpus[0], vcpu_group::PVTIME, attr);
        script.get("vCPU", vcpus[0], vcpu_group::PVTIME, attr);
    }
    let base = 0x4000_0000;
    for address in [base, 0, 1, 32, base + 1, base + 32, u64::MAX, 1 << 40] {
        script.set("without memory", vcpus[0], vcpu_group::PVTIME, 0, Data::U64(address));
    }
    let region = UserMemoryRegion {
        slot: 0,
        flags: 0,
        guest_phys_addr: base,
        memory_size: PAGE as u64,
        userspace_addr: RAM[0].address(),
    };
    script.quiet(vm, number::SET_USER_MEMORY_REGION, address(&region));
    for (place, ipa) in [
        (0, base + 8),
        (0, base + 4096),
        (0, base - 64),
        (0, base + 64),
        (0, base + 64),
        (0, base + 8),
        (1, base + 4032),
        (1, base),
    ] {
        script.set(["first", "second"][place], vcpus[place], vcpu_group::PVTIME, 0, Data::U64(ipa));
    }
    script.set("first", vcpus[0], vcpu_group::PVTIME, 0, Data::At(NOWHERE[0]));
    script.set("first", vcpus[0], vcpu_group::PVTIME, 1, Data::U64(base));
    for vcpu in vcpus {
        script.get("vCPU", vcpu, vcpu_group::PVTIME, 0);
    }
    vcpus.into_iter().chain([vm]).for_each(|handle| script.close(handle));
}
