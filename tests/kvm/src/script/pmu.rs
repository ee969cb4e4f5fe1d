//! The PMU's registers by ONE_REG: which there are, what they take, what the number of counters changes, and what a guest
//! finds and leaves in them.

use super::{
    NOBODY, Script,
    machine::{Controller, Machine},
};
use crate::{
    Backend,
    handle::address_mut,
    number,
    uapi::{feature, reg, vcpu_group, vgic},
};

/// A system register by the low half of its id.
const fn system(low: u64) -> u64 {
    reg::ARM64 | reg::U64 | reg::SYSREG | low
}

const INTERRUPT_SET: u64 = system(0xc4f1);
const INTERRUPT_CLEAR: u64 = system(0xc4f2);
const CONTROL: u64 = system(0xdce0);
const ENABLE_SET: u64 = system(0xdce1);
const ENABLE_CLEAR: u64 = system(0xdce2);
const OVERFLOW_CLEAR: u64 = system(0xdce3);
const SOFTWARE_INCREMENT: u64 = system(0xdce4);
const SELECT: u64 = system(0xdce5);
const CYCLES: u64 = system(0xdce8);
const USER_ENABLE: u64 = system(0xdcf0);
const OVERFLOW_SET: u64 = system(0xdcf3);
const CYCLE_FILTER: u64 = system(0xdf7f);

const fn counter(n: u64) -> u64 {
    system(0xdf40 + n)
}

const fn event_type(n: u64) -> u64 {
    system(0xdf60 + n)
}

/// All of them, and what is none: PMCEIDn, PMXEVTYPER, PMXEVCNTR, PMMIR, and counter 31.
const REGISTERS: [u64; 29] = [
    INTERRUPT_SET,
    INTERRUPT_CLEAR,
    CONTROL,
    ENABLE_SET,
    ENABLE_CLEAR,
    OVERFLOW_CLEAR,
    SOFTWARE_INCREMENT,
    SELECT,
    CYCLES,
    USER_ENABLE,
    OVERFLOW_SET,
    counter(0),
    counter(1),
    counter(5),
    counter(6),
    counter(30),
    event_type(0),
    event_type(1),
    event_type(5),
    event_type(6),
    event_type(30),
    CYCLE_FILTER,
    system(0xdce6),
    system(0xdce7),
    system(0xdce9),
    system(0xdcea),
    system(0xc4f6),
    counter(31),
    system(0xdcf4),
];

/// PMCR_EL0: E, P, C, and N.
const E: u64 = 1 << 0;
const P: u64 = 1 << 1;
const C: u64 = 1 << 2;
const N_SHIFT: u32 = 11;

/// MSR or MRS of a register, by its id.
const fn access(id: u64, is_read: bool, transfer: u32) -> u32 {
    0xd500_0000 | (is_read as u32) << 21 | 1 << 20 | (id as u32 & 0x7fff) << 5 | transfer
}

const ISB: u32 = 0xd503_3fdf;

pub(super) fn run<B: Backend>(script: &mut Script<'_, B>) {
    let machine = script.machine_with(Controller::None, feature::PSCI_0_2 | feature::PMU_V3);
    let other = script.vcpu(machine.vm, 1);
    script.initialise(other, feature::PSCI_0_2 | feature::PMU_V3);
    list(script, machine.vcpu);
    values(script, machine.vcpu);
    numbers(script, [machine.vcpu, other]);
    script.close(other);
    script.drop_machine(&machine);
    guests(script);
}

fn list<B: Backend>(script: &mut Script<'_, B>, vcpu: u64) {
    script.part("pmu-list");
    let mut list = [0; 600];
    list[0] = 599;
    script.quiet(vcpu, number::GET_REG_LIST, address_mut(&mut list));
    let ids = || list[1..].iter().take(list[0] as usize).filter(|&id| id >> 52 == 0x603);
    for (name, range) in [
        ("of EL1", 0x13_c4f0..0x13_c500),
        ("of EL0", 0x13_dc00..0x13_dd00),
        ("counters", 0x13_df40..0x13_df60),
        ("event types", 0x13_df60..0x13_df80),
    ] {
        let among = ids().filter(|&&id| range.contains(&(id & 0xffff_ffff)));
        let (count, sum) = among.fold((0_u32, 0_u64), |(count, sum), &id| (count + 1, sum.rotate_left(7) ^ id));
        script.line(format_args!("GET_REG_LIST, {name}"), format_args!("{count} sum {sum:#x}"));
    }
    for id in REGISTERS {
        script.get_reg("at reset", vcpu, id, false);
    }
}

/// The masks of counters, each of which has a register that sets bits and one that clears them.
const MASKS: [[u64; 2]; 3] =
    [[INTERRUPT_SET, INTERRUPT_CLEAR], [ENABLE_SET, ENABLE_CLEAR], [OVERFLOW_SET, OVERFLOW_CLEAR]];

/// Those that are just values.
fn plain() -> impl Iterator<Item = u64> {
    REGISTERS.into_iter().filter(|id| *id != CONTROL && !MASKS.as_flattened().contains(id))
}

impl<B: Backend> Script<'_, B> {
    /// Sets a mask, whether its registers set and clear bits or are written as they are.
    fn assign(&mut self, what: &str, vcpu: u64, [set, clear]: [u64; 2], value: u64) {
        self.quiet_reg(vcpu, clear, u64::MAX);
        self.set_reg(what, vcpu, set, value);
    }
}

fn values<B: Backend>(script: &mut Script<'_, B>, vcpu: u64) {
    script.part("pmu-value");
    for value in [u64::MAX, 0x8000_0001, 0x1234_5678_9abc_def0, 0x2a, 0] {
        for id in plain() {
            script.set_reg("vCPU", vcpu, id, value);
            script.get_reg(format_args!("after {value:#x}"), vcpu, id, false);
        }
    }
    for mask in MASKS {
        for value in [u64::MAX, 0x8000_0001, 0x1234_5678_9abc_def0, 0x2a] {
            script.assign("vCPU", vcpu, mask, value);
            mask.into_iter().for_each(|id| {
                script.get_reg(format_args!("after {value:#x}"), vcpu, id, false);
            });
        }
    }
    script.part("pmu-clear");
    for mask in MASKS {
        let [set, clear] = mask;
        script.assign("one of two", vcpu, mask, 5);
        script.get_reg("one of two is", vcpu, clear, false);
        script.set_reg("the other", vcpu, clear, 3);
        script.get_reg("the other made it", vcpu, set, false);
    }
}

/// PMCR_EL0, and how many counters there are.
fn numbers<B: Backend>(script: &mut Script<'_, B>, vcpus: [u64; 2]) {
    script.part("pmu-number");
    let [first, second] = vcpus;
    for mask in MASKS {
        script.assign("all", first, mask, u64::MAX);
    }
    script.set_reg("counter", first, counter(3), 0x33);
    script.set_reg("event", first, event_type(3), 0x44);
    for n in [6, 31, 7, 5, 2, 1, 0, 4] {
        script.set_reg("vCPU", first, CONTROL, n << N_SHIFT);
        script.get_reg(format_args!("with {n}"), first, CONTROL, false);
        script.get_reg(format_args!("with {n}, the other vCPU"), second, CONTROL, false);
        for id in [ENABLE_SET, INTERRUPT_CLEAR, OVERFLOW_SET, counter(3), event_type(3)] {
            script.get_reg(format_args!("with {n}"), first, id, false);
        }
        script.assign("masked", first, [ENABLE_SET, ENABLE_CLEAR], 0xff);
        script.get_reg(format_args!("with {n}, masked"), first, ENABLE_SET, false);
    }
    for low in [E, P, C, E | P | C, 0xf8, 0xff, 0xffff_ffff_ffff_0700] {
        script.set_reg("bits", first, CONTROL, 4 << N_SHIFT | low);
        script.get_reg(format_args!("bits {low:#x}"), first, CONTROL, false);
        script.get_reg(format_args!("bits {low:#x}"), first, counter(3), false);
    }
    script.get_reg("the other vCPU's bits", second, CONTROL, false);
    // Its number stays, unlike its bits.
    script.initialise(first, feature::PSCI_0_2 | feature::PMU_V3);
    script.get_reg("initialised again", first, CONTROL, false);
}

/// A guest that increments counter 0 twice.
fn guests<B: Backend>(script: &mut Script<'_, B>) {
    script.part("pmu-guest");
    let machine = script.machine_with(Controller::Own, feature::PSCI_0_2 | feature::PMU_V3);
    for (attribute, value) in [(0, 23), (1, 0)] {
        script.quiet_set(machine.vcpu, vcpu_group::PMU, attribute, value);
    }
    for id in plain() {
        script.quiet_reg(machine.vcpu, id, 0);
    }
    for mask in MASKS {
        script.assign("guest", machine.vcpu, mask, 0);
    }
    script.set_reg("guest", machine.vcpu, CONTROL, 4 << N_SHIFT | P | C);
    script.set_reg("guest", machine.vcpu, counter(0), 0xffff);
    script.set_reg("guest", machine.vcpu, counter(1), 0xfff_ffff);
    script.set_reg("guest", machine.vcpu, CYCLES, 0x7777);
    script.set_reg("guest", machine.vcpu, counter(5), 0x99);
    script.set_reg("guest", machine.vcpu, USER_ENABLE, 0x5);
    script.set_reg("guest", machine.vcpu, SELECT, 0x3);
    script.assign("guest", machine.vcpu, [OVERFLOW_SET, OVERFLOW_CLEAR], 0x4);
    let increment = [access(SOFTWARE_INCREMENT, false, 2), access(SOFTWARE_INCREMENT, false, 2), ISB];
    let program = [
        // x2 = 1: PMEVTYPER0_EL0 is SW_INCR, at EL1.
        0xd280_0022,
        access(event_type(0), false, 31),
        access(ENABLE_SET, false, 2),
        access(CONTROL, false, 2),
        ISB,
        increment[0],
        increment[1],
        increment[2],
        access(counter(0), true, 0),
        access(USER_ENABLE, true, 4),
        access(SELECT, true, 5),
        access(OVERFLOW_SET, true, 6),
        access(counter(1), true, 7),
    ];
    script.load(&machine, &program);
    script.go(format_args!("that increments"), &machine);
    look(script, "incremented", &machine);
    // It goes on from what it is given.
    for (name, value, enabled, interrupts) in [
        ("below an overflow", 0xffff_fffd_u64, 1, 1),
        ("over it", 0xffff_fffe, 1, 1),
        ("again, not cleared", 0x10, 1, 1),
        ("not enabled", 0x20, 0, 1),
        ("without its interrupt", 0x30, 1, 0),
        ("with it again", 0x40, 1, 1),
    ] {
        script.set_reg(name, machine.vcpu, counter(0), value);
        script.assign(name, machine.vcpu, [ENABLE_SET, ENABLE_CLEAR], enabled);
        script.assign(name, machine.vcpu, [INTERRUPT_SET, INTERRUPT_CLEAR], interrupts);
        // As it was saved: what had its turn is not had again.
        let control = script.register(machine.vcpu, CONTROL);
        script.set_reg(name, machine.vcpu, CONTROL, control);
        script.load(&machine, &[increment[0], increment[1], ISB, access(counter(0), true, 0)]);
        script.go(format_args!("{name}"), &machine);
        look(script, name, &machine);
    }
    script.assign("not any more", machine.vcpu, [OVERFLOW_SET, OVERFLOW_CLEAR], 0);
    script.load(&machine, &[ISB, access(OVERFLOW_SET, true, 0)]);
    script.go(format_args!("without an overflow"), &machine);
    look(script, "without an overflow", &machine);
    script.assign("made by hand", machine.vcpu, [OVERFLOW_SET, OVERFLOW_CLEAR], 1);
    script.load(&machine, &[ISB, access(OVERFLOW_SET, true, 0)]);
    script.go(format_args!("with one that was set"), &machine);
    look(script, "with one that was set", &machine);
    // The number of counters is settled.
    script.set_reg("after a run", machine.vcpu, CONTROL, 2 << N_SHIFT);
    script.get_reg("after a run", machine.vcpu, CONTROL, false);
    script.initialise(machine.vcpu, feature::PSCI_0_2 | feature::PMU_V3);
    script.get_reg("initialised again", machine.vcpu, CONTROL, false);
    script.drop_machine(&machine);
}

fn look<B: Backend>(script: &mut Script<'_, B>, what: &str, machine: &Machine) {
    script.look(format_args!("{what}"), machine);
    let found = [4, 5, 6, 7].map(|n| script.register(machine.vcpu, reg::x(n)));
    script.line(
        format_args!("found, {what}"),
        format_args!("{:#x} {:#x} {:#x} {:#x}", found[0], found[1], found[2], found[3]),
    );
    for id in [CONTROL, ENABLE_SET, INTERRUPT_SET, OVERFLOW_SET, SELECT, counter(0), counter(5), event_type(0)] {
        script.get_reg(what, machine.vcpu, id, false);
    }
    if machine.gic != NOBODY && script.has_gicv3 {
        script.get(format_args!("{what} levels"), machine.gic, vgic::LEVEL_INFO, 0);
    }
}
