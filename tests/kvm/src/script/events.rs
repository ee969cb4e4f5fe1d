//! Events: stores that are one, and interrupts that come of one (KVM_IOEVENTFD, KVM_IRQFD).

use super::{
    NOBODY, NOWHERE, Script,
    machine::{Controller, DEVICE, Machine},
};
use crate::{
    Backend, number,
    page::PAGE,
    uapi::{Ioeventfd, IrqRouting, IrqRoutingEntry, Irqfd, ioeventfd, irqfd, reg, routing},
};

/// What stands in a call where Linux has the number of an eventfd.
pub trait Events {
    /// The number of the `n`th, from 0 to 7.
    fn number(&self, n: u32) -> u32;
    /// It happens, and whoever is bound to it is told.
    fn happen(&self, n: u32);
    /// Others may make it happen: an interrupt is enabled.
    fn prepare(&self, n: u32);
    /// Whether it has happened since this was last asked. Only for one that nothing is bound to.
    fn has_happened(&self, n: u32) -> bool;
}

/// The interrupt of the guest's that events are, and its pin.
const INTID: u32 = 40;
const PIN: u32 = INTID - 32;
const DOORBELL: u64 = DEVICE + 0x100;
const GICD: u64 = 0x0800_0000;

pub(super) fn run<B: Backend>(script: &mut Script<'_, B>) {
    stores(script);
    guests_stores(script);
    interrupts(script);
    routing(script);
    // What its guests do is a GICv3's.
    if script.has_gicv3 {
        guests_interrupts(script);
        guests_routing(script);
    }
}

impl<B: Backend> Script<'_, B> {
    fn ioeventfd(&mut self, vm: u64, addr: u64, len: u32, data: Option<u64>, flags: u32, event: u32) -> i64 {
        let flags = flags | if data.is_some() { ioeventfd::DATAMATCH } else { 0 };
        let datamatch = data.unwrap_or_default();
        let argument = Ioeventfd { addr, len, flags, datamatch, fd: self.events.number(event), ..Ioeventfd::default() };
        let name = format_args!("IOEVENTFD {event} at {addr:#x} of {len} for {datamatch:#x}, flags {flags:#x}");
        self.write(name, vm, number::IOEVENTFD, &argument)
    }

    fn irqfd(&mut self, what: &str, vm: u64, event: u32, gsi: u32, flags: u32, resample: u32) -> i64 {
        let (fd, resamplefd) = (self.events.number(event), self.events.number(resample));
        let argument = Irqfd { fd, gsi, flags, resamplefd, ..Irqfd::default() };
        let name = format_args!("{what} IRQFD {event} as {gsi:#x}, flags {flags:#x}, resample {resample}");
        self.write(name, vm, number::IRQFD, &argument)
    }

    fn happened(&mut self, what: core::fmt::Arguments<'_>, events: &[u32]) {
        for &event in events {
            let happened = self.events.has_happened(event);
            self.line(format_args!("event {event} {what}"), format_args!("{happened}"));
        }
    }
}

/// Numbers of no file, and of no interrupt.
const NO_EVENT: [u32; 3] = [NOBODY as u32, u32::MAX, 1 << 31];

fn stores<B: Backend>(script: &mut Script<'_, B>) {
    const DEASSIGN: u32 = ioeventfd::DEASSIGN;
    script.part("ioeventfd");
    let vm = script.vm();
    for at in NOWHERE {
        script.call(format_args!("IOEVENTFD at {at:#x}"), vm, number::IOEVENTFD, at);
    }
    for fd in NO_EVENT {
        for (len, flags) in [(4, 0), (4, DEASSIGN), (3, 0), (3, DEASSIGN), (4, 1 << 5), (4, 1 << 5 | DEASSIGN)] {
            let argument = Ioeventfd { addr: DOORBELL, len, fd, flags, ..Ioeventfd::default() };
            let name = format_args!("IOEVENTFD of nobody, {fd:#x}, of {len}, flags {flags:#x}");
            script.write(name, vm, number::IOEVENTFD, &argument);
        }
    }
    // Lengths, alone and with a value; each goes at once.
    for len in (0..10).chain([16, 32, 1 << 31, u32::MAX]) {
        for data in [None, Some(1)] {
            script.ioeventfd(vm, DOORBELL, len, data, 0, 0);
            script.ioeventfd(vm, DOORBELL, len, data, DEASSIGN, 0);
        }
    }
    for (addr, len) in [
        (u64::MAX, 0),
        (u64::MAX, 1),
        (u64::MAX - 1, 1),
        (u64::MAX - 7, 8),
        (u64::MAX - 8, 8),
        (0, 8),
        (1, 8),
        (DOORBELL + 1, 4),
    ] {
        script.ioeventfd(vm, addr, len, None, 0, 0);
        script.ioeventfd(vm, addr, len, None, DEASSIGN, 0);
    }
    for bit in (1..32).filter(|bit| 1 << bit != DEASSIGN) {
        script.ioeventfd(vm, DOORBELL, 4, None, 1 << bit, 0);
        script.ioeventfd(vm, DOORBELL, 4, None, 1 << bit | DEASSIGN, 0);
    }
    // What is in another's way: by address, length and value, whosever event it is.
    script.line(format_args!("in the way"), format_args!("from here on"));
    let requests = [
        (DOORBELL, 4, None, 0),
        (DOORBELL, 4, Some(1), 0),
        (DOORBELL, 2, None, 1),
        (DOORBELL, 0, None, 1),
        (DOORBELL + 4, 4, Some(1), 0),
        (DOORBELL + 4, 4, Some(1), 1),
        (DOORBELL + 4, 4, Some(2), 0),
        (DOORBELL + 4, 4, None, 2),
        (DOORBELL + 4, 8, Some(1), 2),
        (DOORBELL + 8, 0, None, 0),
        (DOORBELL + 8, 1, Some(1), 1),
        (DOORBELL + 8, 0, None, 1),
        (DOORBELL + 6, 2, None, 1),
    ];
    for (addr, len, data, event) in requests {
        script.ioeventfd(vm, addr, len, data, 0, event);
    }
    for bus in [ioeventfd::PIO, 1 << 3, 1 << 4, ioeventfd::PIO | 1 << 3] {
        script.ioeventfd(vm, DOORBELL, 4, None, bus, 3);
        script.ioeventfd(vm, DOORBELL, 4, Some(1), bus, 3);
    }
    // Only what is there goes.
    for (addr, len, data, event) in requests {
        script.ioeventfd(vm, addr, len, data, DEASSIGN, event);
    }
    for bus in [ioeventfd::PIO, 1 << 3, 1 << 4] {
        script.ioeventfd(vm, DOORBELL, 4, None, bus | DEASSIGN, 2);
        script.ioeventfd(vm, DOORBELL, 4, None, bus | DEASSIGN, 3);
    }
    script.close(vm);
}

fn guests_stores<B: Backend>(script: &mut Script<'_, B>) {
    script.part("ioeventfd-guest");
    let machine = script.machine(Controller::Own);
    for (addr, len, data, event) in [
        (DOORBELL, 4, Some(7), 0),
        (DOORBELL, 2, None, 1),
        (DOORBELL + 8, 0, None, 2),
        (DOORBELL + 0x10, 8, Some(1 << 63), 3),
        (DOORBELL + 0x20, 1, Some(0x107), 3),
    ] {
        script.ioeventfd(machine.vm, addr, len, data, 0, event);
    }
    script.ioeventfd(machine.vm, DOORBELL + 0x30, 4, None, ioeventfd::PIO, 3);
    for (name, instruction) in [
        ("strb w3", 0x3900_0043),
        ("strh w3", 0x7900_0043),
        ("str w3", 0xb900_0043),
        ("str x3", 0xf900_0043),
        ("ldr w0", 0xb940_0040),
    ] {
        for (address, value) in [
            (DOORBELL, 7),
            (DOORBELL, 0x1_0000_0007),
            (DOORBELL, 8),
            (DOORBELL + 1, 7),
            (DOORBELL + 8, 0),
            (DOORBELL + 0x10, 1 << 63),
            (DOORBELL + 0x10, 0),
            (DOORBELL + 0x20, 0x107),
            (DOORBELL + 0x30, 7),
        ] {
            script.load(&machine, &[instruction]);
            script.quiet_reg(machine.vcpu, reg::x(2), address);
            script.quiet_reg(machine.vcpu, reg::x(3), value);
            script.go(format_args!("{name} of {value:#x} at {address:#x}"), &machine);
            script.happened(format_args!("after {name} of {value:#x} at {address:#x}"), &[0, 1, 2, 3]);
        }
    }
    // Twice is once.
    script.load(&machine, &[0xb900_0043, 0xb900_0043]);
    script.quiet_reg(machine.vcpu, reg::x(2), DOORBELL);
    script.quiet_reg(machine.vcpu, reg::x(3), 7);
    script.go(format_args!("two stores"), &machine);
    script.happened(format_args!("after two stores"), &[0]);
    script.happened(format_args!("asked again"), &[0]);
    script.drop_machine(&machine);
}

fn interrupts<B: Backend>(script: &mut Script<'_, B>) {
    const DEASSIGN: u32 = irqfd::DEASSIGN;
    const RESAMPLE: u32 = irqfd::RESAMPLE;
    script.part("irqfd");
    for stage in ["no vGIC", "a vGIC", "a complete vGIC"] {
        // An incomplete vGICv2 is completed by whoever needs it.
        if stage == "a vGIC" && !script.has_gicv3 {
            continue;
        }
        let vm = script.vm();
        let gic = if stage == "no vGIC" { NOBODY } else { script.gic(vm) };
        let vcpu = script.vcpu(vm, 0);
        if stage == "a complete vGIC" {
            script.complete(gic);
        }
        for at in NOWHERE {
            script.call(format_args!("{stage} IRQFD at {at:#x}"), vm, number::IRQFD, at);
        }
        for fd in NO_EVENT {
            for flags in [0, DEASSIGN, RESAMPLE, 4] {
                let argument = Irqfd { fd, gsi: PIN, flags, resamplefd: fd, ..Irqfd::default() };
                script.write(format_args!("{stage} IRQFD of nobody, {fd:#x} {flags}"), vm, number::IRQFD, &argument);
            }
            let fd_0 = script.events.number(0);
            let argument = Irqfd { fd: fd_0, gsi: PIN, flags: RESAMPLE, resamplefd: fd, ..Irqfd::default() };
            script.write(format_args!("{stage} IRQFD, resampling nobody, {fd:#x}"), vm, number::IRQFD, &argument);
        }
        for bit in 2..32 {
            script.irqfd(stage, vm, 0, PIN, 1 << bit, 0);
            script.irqfd(stage, vm, 0, PIN, 1 << bit | DEASSIGN, 0);
        }
        script.irqfd(stage, vm, 0, PIN, DEASSIGN, 0);
        script.irqfd(stage, vm, 0, PIN, 0, 0);
        script.irqfd(stage, vm, 0, PIN, 0, 1);
        script.irqfd(stage, vm, 0, PIN + 1, 0, 0);
        script.irqfd(stage, vm, 0, PIN, RESAMPLE, 1);
        script.irqfd(stage, vm, 1, PIN, 0, 0);
        script.irqfd(stage, vm, 2, PIN + 2, RESAMPLE, 3);
        script.irqfd(stage, vm, 2, PIN + 3, RESAMPLE, 3);
        for (event, gsi) in [(4, 223), (5, 224), (6, 1020), (7, u32::MAX)] {
            script.irqfd(stage, vm, event, gsi, 0, 0);
        }
        // The end of another's, and of nobody's, is none; after its own end it can be bound again.
        script.irqfd(stage, vm, 0, PIN + 1, DEASSIGN, 0);
        script.irqfd(stage, vm, 0, PIN + 2, 0, 0);
        script.irqfd(stage, vm, 0, PIN, DEASSIGN | RESAMPLE, 0);
        script.irqfd(stage, vm, 0, PIN + 4, 0, 0);
        script.irqfd(stage, vm, 3, PIN, DEASSIGN, 0);
        // With the VM's handle they all go.
        [vm, vcpu, gic].into_iter().for_each(|handle| script.close(handle));
    }
}

impl<B: Backend> Script<'_, B> {
    /// Runs the machine on behind the store that it left for.
    fn proceed(&mut self, what: &str, machine: &Machine) {
        let pc = self.register(machine.vcpu, reg::PC);
        self.quiet_reg(machine.vcpu, reg::PC, pc + 4);
        self.go(format_args!("{what}"), machine);
    }
}

/// Puts a program in, with registers from x2 on.
fn load<B: Backend>(script: &mut Script<'_, B>, machine: &Machine, program: &[u32], registers: &[u64]) {
    script.load(machine, program);
    for (n, value) in (2..).zip(registers) {
        script.quiet_reg(machine.vcpu, reg::x(n), *value);
    }
}

const CONFIGURATION: u64 = GICD + 0xc00 + 4 * (INTID / 16) as u64;
const PENDING: u64 = GICD + 0x200 + 4 * (INTID / 32) as u64;
const ENABLE: u64 = GICD + 0x100 + 4 * (INTID / 32) as u64;
const BIT: u64 = 1 << (INTID % 32);
/// Edge-triggered.
const EDGE: u64 = 2 << (INTID % 16 * 2);

fn guests_interrupts<B: Backend>(script: &mut Script<'_, B>) {
    script.part("irqfd-guest");
    let machine = script.machine(Controller::Own);
    script.irqfd("edge", machine.vm, 0, PIN, 0, 0);
    // What the guest has after an event: pending, once.
    let program = [
        0xb900_0043, // str w3, [x2]
        0xb900_003f, // str wzr, [x1]
        0xb940_0080, // ldr w0, [x4]
        0x34ff_ffe0, // cbz w0, .-4
        0xb900_0420, // str w0, [x1, #4]
        0xb900_00a0, // str w0, [x5], GICD_ICPENDR
        0xb940_0080, // ldr w0, [x4]
        0xb900_0820, // str w0, [x1, #8]
    ];
    load(script, &machine, &program, &[CONFIGURATION, EDGE, PENDING, PENDING + 0x80]);
    script.go(format_args!("edge, ready"), &machine);
    script.events.happen(0);
    for what in ["edge, pending", "edge, not pending", "edge, done"] {
        script.proceed(what, &machine);
    }
    script.irqfd("edge", machine.vm, 0, PIN, irqfd::DEASSIGN, 0);
    script.drop_machine(&machine);

    // Resampled: acknowledged, ended, and told.
    let machine = script.machine(Controller::Own);
    script.irqfd("level", machine.vm, 1, PIN, irqfd::RESAMPLE, 2);
    let program = [
        0xb900_0043, // str w3, [x2]
        0xb900_0085, // str w5, [x4]
        0xb900_00c7, // str w7, [x6]
        0xd280_1e09, // mov x9, #0xf0
        0xd518_4609, // msr icc_pmr_el1, x9
        0xd280_0029, // mov x9, #1
        0xd518_cce9, // msr icc_igrpen1_el1, x9
        0xd503_3fdf, // isb
        0xb900_003f, // str wzr, [x1]
        0xd538_cc00, // mrs x0, icc_iar1_el1
        0x710f_fc1f, // cmp w0, #1023
        0x54ff_ffc0, // b.eq .-8
        0xb900_0420, // str w0, [x1, #4]
        0xd518_cc20, // msr icc_eoir1_el1, x0
        0xd503_3fdf, // isb
        0xb900_083f, // str wzr, [x1, #8]
        0xd538_cc00, // mrs x0, icc_iar1_el1
        0xb900_0c20, // str w0, [x1, #12]
    ];
    load(script, &machine, &program, &[CONFIGURATION, 0, ENABLE, BIT, GICD, 2]);
    script.go(format_args!("level, ready"), &machine);
    script.events.happen(1);
    script.proceed("level, acknowledged", &machine);
    script.happened(format_args!("level, acknowledged"), &[2]);
    script.proceed("level, ended", &machine);
    script.happened(format_args!("level, ended"), &[2]);
    script.proceed("level, no other", &machine);
    script.happened(format_args!("level, no other"), &[2]);
    script.proceed("level, done", &machine);
    script.drop_machine(&machine);

    // One VM's stores are another's interrupts.
    let listener = script.machine(Controller::Own);
    script.irqfd("between", listener.vm, 3, PIN, 0, 0);
    script.ioeventfd(listener.vm, DOORBELL, 4, None, 0, 3);
    let program = [
        0xb900_0043, // str w3, [x2]
        0xb900_00df, // str wzr, [x6]: the doorbell
        0xb940_0080, // ldr w0, [x4]
        0x34ff_ffe0, // cbz w0, .-4
        0xb900_0420, // str w0, [x1, #4]
    ];
    load(script, &listener, &program, &[CONFIGURATION, EDGE, PENDING, 0, DOORBELL]);
    script.events.prepare(3);
    script.go(format_args!("its own doorbell"), &listener);
    script.proceed("its own doorbell, done", &listener);
    script.drop_machine(&listener);
}

const fn entry(gsi: u32, kind: u32, flags: u32, words: [u32; 4]) -> IrqRoutingEntry {
    let [first, second, third, fourth] = words;
    let words = [first as u64 | (second as u64) << 32, third as u64 | (fourth as u64) << 32, 0, 0];
    IrqRoutingEntry { gsi, kind, flags, pad: 0, words }
}

/// One that is good.
const PIN_8: IrqRoutingEntry = entry(3, routing::IRQCHIP, 0, [0, 8, 0, 0]);

fn routing<B: Backend>(script: &mut Script<'_, B>) {
    use routing::{IRQCHIP, MSI, VALID_DEVID};
    script.part("routing");
    for stage in ["no vGIC", "a complete vGIC"] {
        let vm = script.vm();
        let gic = if stage == "no vGIC" { NOBODY } else { script.gic(vm) };
        let vcpu = script.vcpu(vm, 0);
        script.complete(gic);
        for at in NOWHERE {
            script.call(format_args!("{stage} SET_GSI_ROUTING at {at:#x}"), vm, number::SET_GSI_ROUTING, at);
        }
        for (nr, flags) in [(0, 0), (0, 1), (1, 1), (1, 1 << 31), (4097, 0), (u32::MAX, 0), (1, 0)] {
            let argument = IrqRouting { nr, flags, entries: [PIN_8] };
            let name = format_args!("{stage} SET_GSI_ROUTING of {nr}, flags {flags:#x}");
            script.write(name, vm, number::SET_GSI_ROUTING, &argument);
        }
        for one in [
            entry(0, IRQCHIP, 0, [0, 0, 0, 0]),
            entry(0, IRQCHIP, 0, [0, 223, 0, 0]),
            entry(0, IRQCHIP, 0, [0, 224, 0, 0]),
            entry(0, IRQCHIP, 0, [0, 987, 0, 0]),
            entry(0, IRQCHIP, 0, [0, 988, 0, 0]),
            entry(0, IRQCHIP, 0, [0, u32::MAX, 0, 0]),
            entry(0, IRQCHIP, 0, [1, 0, 0, 0]),
            entry(0, IRQCHIP, 0, [2, 0, 0, 0]),
            entry(0, IRQCHIP, 1, [0, 0, 0, 0]),
            entry(4095, IRQCHIP, 0, [0, 0, 0, 0]),
            entry(4096, IRQCHIP, 0, [0, 0, 0, 0]),
            entry(u32::MAX, MSI, 0, [0, 0, 0, 0]),
            entry(5, MSI, 0, [0x0808_0040, 0, 1, 2]),
            entry(5, MSI, VALID_DEVID, [0x0808_0040, 0, 1, 2]),
            entry(5, MSI, 2, [0x0808_0040, 0, 1, 2]),
            entry(5, MSI, 3, [0x0808_0040, 0, 1, 2]),
            entry(5, 0, 0, [0, 0, 0, 0]),
            entry(5, 3, 0, [0, 0, 0, 0]),
            entry(5, 4, 0, [0, 0, 0, 0]),
            entry(5, 5, 0, [0, 0, 0, 0]),
            entry(5, u32::MAX, 0, [0, 0, 0, 0]),
        ] {
            let argument = IrqRouting { nr: 1, flags: 0, entries: [one] };
            let IrqRoutingEntry { gsi, kind, flags, words, .. } = one;
            let name = format_args!("{stage} SET_GSI_ROUTING {gsi:#x} {kind:#x} {flags} {:x?}", &words[..2]);
            script.write(name, vm, number::SET_GSI_ROUTING, &argument);
        }
        // Two of one number, two numbers of one pin.
        for (name, second) in [
            ("pin and pin", entry(3, IRQCHIP, 0, [0, 9, 0, 0])),
            ("pin and message", entry(3, MSI, 0, [0; 4])),
            ("the same", PIN_8),
            ("another number", entry(4, IRQCHIP, 0, [0, 8, 0, 0])),
            ("a bad one", entry(4, 0, 0, [0; 4])),
        ] {
            let argument = IrqRouting { nr: 2, flags: 0, entries: [PIN_8, second] };
            script.write(
                format_args!("{stage} SET_GSI_ROUTING of two, {name}"),
                vm,
                number::SET_GSI_ROUTING,
                &argument,
            );
        }
        // As many as there can be, and the last ones nowhere.
        let room = &super::RAM[..50];
        room[0].write(0, 8, 4096);
        for n in 0..4096 {
            for (word, value) in [n, u64::from(IRQCHIP), 0, 0, 0, n % 988].into_iter().enumerate() {
                let at = 8 + 48 * n as usize + 4 * word;
                room[at / PAGE].write(at % PAGE, 4, value);
            }
        }
        let at = room[0].address();
        script.call(format_args!("{stage} SET_GSI_ROUTING of 4096"), vm, number::SET_GSI_ROUTING, at);
        [vm, vcpu, gic].into_iter().for_each(|handle| script.close(handle));
    }
}

/// A number is what it was said to be, and those of which nothing was said are nothing.
fn guests_routing<B: Backend>(script: &mut Script<'_, B>) {
    const BOTH_EDGES: u64 = EDGE | EDGE << 2;
    script.part("routing-guest");
    let machine = script.machine(Controller::Own);
    // Bound before, and after.
    script.irqfd("before", machine.vm, 0, PIN, 0, 0);
    script.irqfd("before", machine.vm, 1, 3, 0, 0);
    let argument = IrqRouting { nr: 1, flags: 0, entries: [entry(3, routing::IRQCHIP, 0, [0, PIN + 1, 0, 0])] };
    script.write(format_args!("SET_GSI_ROUTING"), machine.vm, number::SET_GSI_ROUTING, &argument);
    script.irqfd("after", machine.vm, 2, PIN, irqfd::DEASSIGN, 0);
    script.irqfd("after", machine.vm, 2, PIN, 0, 0);
    let program = [
        0xb900_0043, // str w3, [x2]
        0xb900_003f, // str wzr, [x1]
        0xb940_0080, // ldr w0, [x4]
        0x34ff_ffe0, // cbz w0, .-4
        0xb900_0420, // str w0, [x1, #4]
    ];
    load(script, &machine, &program, &[CONFIGURATION, BOTH_EDGES, PENDING]);
    script.go(format_args!("ready"), &machine);
    for event in [0, 2, 1] {
        script.events.happen(event);
    }
    script.proceed("pending", &machine);
    script.drop_machine(&machine);
}
