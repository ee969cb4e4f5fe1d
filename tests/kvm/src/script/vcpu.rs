//! vCPUs: initialisation, power state, pending exceptions, debugging.

use super::{FILL, NOWHERE, RUN, Script, machine::Controller};
use crate::{
    Backend,
    handle::address,
    number,
    uapi::{GuestDebug, OneReg, VcpuEvents, VcpuInit, feature, reg},
};

pub(super) fn run<B: Backend>(script: &mut Script<'_, B>) {
    before(script);
    targets(script);
    again(script);
    power(script);
    events(script);
    debug(script);
}

/// Calls on a vCPU that has not been initialised.
fn before<B: Backend>(script: &mut Script<'_, B>) {
    script.part("before");
    let vm = script.vm();
    let vcpu = script.vcpu(vm, 0);
    for argument in [0, 1] {
        script.run_or_call(vcpu, argument);
    }
    for id in [reg::PC, reg::x(0), reg::FIRMWARE | reg::ARM64 | reg::U64, 0, 0x6002_0000_0010_0000] {
        script.get_reg("vCPU", vcpu, id, false);
        script.set_reg("vCPU", vcpu, id, 0);
    }
    let mut list = [0; 2];
    script.read(format_args!("GET_REG_LIST"), vcpu, number::GET_REG_LIST, &mut list);
    script.call(format_args!("GET_REG_LIST at {:#x}", NOWHERE[0]), vcpu, number::GET_REG_LIST, NOWHERE[0]);
    for what in [-1_i32, 0, 4, 5] {
        script.write(format_args!("ARM_VCPU_FINALIZE {what}"), vcpu, number::ARM_VCPU_FINALIZE, &what);
    }
    let mut state = [FILL];
    script.read(format_args!("GET_MP_STATE"), vcpu, number::GET_MP_STATE, &mut state);
    for state in [5_u32, 0, 1, 10, 0] {
        script.write(format_args!("SET_MP_STATE {state}"), vcpu, number::SET_MP_STATE, &state);
    }
    script.read(format_args!("GET_VCPU_EVENTS"), vcpu, number::GET_VCPU_EVENTS, &mut [FILL; 8]);
    script.write(format_args!("SET_VCPU_EVENTS"), vcpu, number::SET_VCPU_EVENTS, &VcpuEvents::default());
    for control in [0, 1, 4] {
        let debug = GuestDebug { control, ..GuestDebug::default() };
        script.write(format_args!("SET_GUEST_DEBUG {control}"), vcpu, number::SET_GUEST_DEBUG, &debug);
    }
    for (group, attr) in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 4), (2, 0), (2, 1), (3, 0), (99, 0)] {
        script.has("vCPU", vcpu, group, attr);
    }
    for (length, set) in [(8, 0), (7, 0), (0, 0), (16, 0), (u32::MAX, 0)] {
        let argument = [length, set, set, set];
        script.write(format_args!("SET_SIGNAL_MASK of {length}"), vcpu, number::SET_SIGNAL_MASK, &argument);
    }
    script.call(format_args!("SET_SIGNAL_MASK of none"), vcpu, number::SET_SIGNAL_MASK, 0);
    for at in NOWHERE.into_iter().chain([0]) {
        for (name, number) in [
            ("ARM_VCPU_INIT", number::ARM_VCPU_INIT),
            ("GET_ONE_REG", number::GET_ONE_REG),
            ("SET_ONE_REG", number::SET_ONE_REG),
            ("GET_MP_STATE", number::GET_MP_STATE),
            ("SET_MP_STATE", number::SET_MP_STATE),
            ("GET_VCPU_EVENTS", number::GET_VCPU_EVENTS),
            ("SET_VCPU_EVENTS", number::SET_VCPU_EVENTS),
            ("SET_GUEST_DEBUG", number::SET_GUEST_DEBUG),
            ("ARM_VCPU_FINALIZE", number::ARM_VCPU_FINALIZE),
            ("SET_DEVICE_ATTR", number::SET_DEVICE_ATTR),
            ("GET_DEVICE_ATTR", number::GET_DEVICE_ATTR),
            ("HAS_DEVICE_ATTR", number::HAS_DEVICE_ATTR),
        ] {
            script.call(format_args!("{name} at {at:#x}"), vcpu, number, at);
        }
    }
    script.close(vcpu);
    script.close(vm);
}

impl<B: Backend> Script<'_, B> {
    /// KVM_RUN with an argument.
    fn run_or_call(&mut self, vcpu: u64, argument: u64) {
        self.call(format_args!("RUN {argument}"), vcpu, number::RUN, argument);
    }

    /// KVM_ARM_VCPU_INIT.
    fn init(&mut self, what: &str, vcpu: u64, target: u32, word: usize, features: u32) -> i64 {
        let mut init = VcpuInit { target, ..VcpuInit::default() };
        init.features[word] = features;
        let what = format_args!("{what} ARM_VCPU_INIT {target} {word}:{features:#x}");
        self.write(what, vcpu, number::ARM_VCPU_INIT, &init)
    }
}

/// Each target and feature, on a new vCPU of a new VM.
fn targets<B: Backend>(script: &mut Script<'_, B>) {
    script.part("init");
    let bits = (0..32).map(|bit| (5, 0, 1 << bit));
    let words = (1..7).map(|word| (5, word, 1));
    let targets = (0..9).chain([u32::MAX]).map(|target| (target, 0, feature::PSCI_0_2));
    let pairs = [0, 0x60, 0x64, 0x65, 0x6c, 0x0c, 0x0d, 0x05, 0x24, 0x44, 0x06, 0x07, 0x80, 0x180, 0xffff_ffff];
    let pairs = pairs.into_iter().map(|features| (5, 0, features));
    // Which of two mistakes is answered.
    let both = [(6, 0, 1 << 9), (6, 1, 1), (5, 0, 1 << 9 | 1 << 5), (6, 0, 1 << 5)];
    for (target, word, features) in bits.chain(words).chain(targets).chain(pairs).chain(both) {
        let vm = script.vm();
        let vcpu = script.vcpu(vm, 0);
        script.init("new", vcpu, target, word, features);
        let what = format_args!("GET_MP_STATE of {target} {word}:{features:#x}");
        script.read(what, vcpu, number::GET_MP_STATE, &mut [FILL]);
        script.close(vcpu);
        script.close(vm);
    }
}

/// A second initialisation, and that of a second vCPU.
fn again<B: Backend>(script: &mut Script<'_, B>) {
    script.part("again");
    let vm = script.vm();
    let vcpus = [script.vcpu(vm, 0), script.vcpu(vm, 1)];
    let psci = feature::PSCI_0_2;
    script.init("first", vcpus[0], 5, 0, psci);
    script.set_reg("first", vcpus[0], reg::x(3), 77);
    script.set_reg("first", vcpus[0], reg::PC, 0x4000_0000);
    for features in
        [psci, psci | feature::POWER_OFF, psci, 0, psci | feature::PMU_V3, psci | feature::EL1_32BIT, 1 << 9]
    {
        script.init("first", vcpus[0], 5, 0, features);
        let mut state = [FILL];
        script.read(format_args!("GET_MP_STATE"), vcpus[0], number::GET_MP_STATE, &mut state);
        script.get_reg("first", vcpus[0], reg::x(3), false);
    }
    for features in [0, psci | feature::PMU_V3, feature::POWER_OFF, psci | feature::POWER_OFF, psci] {
        script.init("second", vcpus[1], 5, 0, features);
    }
    script.init("second", vcpus[1], 6, 0, psci);
    script.init("second", vcpus[1], 5, 3, 1);
    for id in [reg::PC, reg::PSTATE, reg::x(0), reg::SP] {
        script.get_reg("second", vcpus[1], id, false);
    }
    vcpus.into_iter().chain([vm]).for_each(|handle| script.close(handle));
}

fn power<B: Backend>(script: &mut Script<'_, B>) {
    script.part("power");
    let machine = script.machine(Controller::Own);
    let vcpu = machine.vcpu;
    for state in (0..13).chain([0xffff_ffff, 0]) {
        script.write(format_args!("SET_MP_STATE {state}"), vcpu, number::SET_MP_STATE, &u32::to_le(state));
        let mut read = [FILL];
        script.read(format_args!("GET_MP_STATE after {state}"), vcpu, number::GET_MP_STATE, &mut read);
    }
    // A vCPU that is off, and one that is suspended, with a caller that does not want to wait.
    for state in [5_u32, 10, 0] {
        script.quiet(vcpu, number::SET_MP_STATE, address(&state));
        RUN[0].write(crate::uapi::run::IMMEDIATE_EXIT, 1, 1);
        script.run_vcpu(format_args!("RUN at once in state {state}"), vcpu, &RUN[0]);
        RUN[0].write(crate::uapi::run::IMMEDIATE_EXIT, 1, 0);
    }
    script.drop_machine(&machine);
}

fn events<B: Backend>(script: &mut Script<'_, B>) {
    script.part("event");
    let machine = script.machine(Controller::Own);
    let vcpu = machine.vcpu;
    script.read(format_args!("GET_VCPU_EVENTS"), vcpu, number::GET_VCPU_EVENTS, &mut [FILL; 8]);
    for (pending, has_esr, esr) in [
        (0, 0, 0),
        (0, 1, 0),
        (0, 1, 1 << 25),
        (0, 0, u64::MAX),
        (0, 255, u64::MAX),
        (1, 1, 1 << 25),
        (1, 1, 1 << 32),
        (1, 1, 1 << 63),
        (1, 1, u64::MAX),
        (0, 0, 0),
        (1, 0, u64::MAX),
        (0, 0, 0),
        (1, 1, 0x1ff_ffff),
        (1, 1, 1 << 24),
        (1, 1, 0xc11),
        (255, 255, 0xbe0011),
        (2, 0, 0),
        (1, 2, 0x11),
        (0, 0, 0),
    ] {
        let argument =
            VcpuEvents { serror_pending: pending, serror_has_esr: has_esr, serror_esr: esr, ..VcpuEvents::default() };
        let what = format_args!("SET_VCPU_EVENTS {pending} {has_esr} {esr:#x}");
        script.write(what, vcpu, number::SET_VCPU_EVENTS, &argument);
        let what = format_args!("GET_VCPU_EVENTS after {pending} {has_esr} {esr:#x}");
        script.read(what, vcpu, number::GET_VCPU_EVENTS, &mut [FILL; 8]);
    }
    for place in 0..5 {
        let mut argument = VcpuEvents::default();
        argument.pad[place] = 1;
        script.write(format_args!("SET_VCPU_EVENTS pad {place}"), vcpu, number::SET_VCPU_EVENTS, &argument);
    }
    for place in 0..12 {
        let mut argument = VcpuEvents::default();
        argument.reserved[place] = 1 << place;
        script.write(format_args!("SET_VCPU_EVENTS reserved {place}"), vcpu, number::SET_VCPU_EVENTS, &argument);
    }
    // A new initialisation takes it away.
    script.initialise(vcpu, feature::PSCI_0_2);
    script.read(format_args!("GET_VCPU_EVENTS of a new start"), vcpu, number::GET_VCPU_EVENTS, &mut [FILL; 8]);
    script.drop_machine(&machine);
}

fn debug<B: Backend>(script: &mut Script<'_, B>) {
    script.part("debug");
    let machine = script.machine(Controller::Own);
    let vcpu = machine.vcpu;
    for control in (0..32).map(|bit| 1 << bit).chain([0, 3, 0x1_0001, 0x2_0001, 0x3_0003, 0x3_0002, 0x4_0001]) {
        let argument = GuestDebug { control, pad: 0x1234, ..GuestDebug::default() };
        script.write(format_args!("SET_GUEST_DEBUG {control:#x}"), vcpu, number::SET_GUEST_DEBUG, &argument);
    }
    script.write(format_args!("SET_GUEST_DEBUG off"), vcpu, number::SET_GUEST_DEBUG, &GuestDebug::default());
    let one = OneReg { id: reg::PC, addr: NOWHERE[0] };
    script.write(format_args!("GET_ONE_REG to nowhere"), vcpu, number::GET_ONE_REG, &one);
    script.drop_machine(&machine);
}
