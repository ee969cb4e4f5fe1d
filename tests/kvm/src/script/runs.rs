//! KVM_RUN of small guests: each exit, and how the guest goes on.

use super::{
    NOBODY, RAM, RUN, Script, Value,
    machine::{BASE, Controller, DEVICE, Machine},
};
use crate::{
    Backend,
    handle::address,
    number,
    page::PAGE,
    run::{Exit, RunPage},
    uapi::{EnableCap, GuestDebug, IrqLevel, SmcccFilter, UserMemoryRegion, VcpuEvents, cap, feature, mp_state, reg},
};

const RUN_0: RunPage = RunPage(&RUN[0]);

pub(super) fn run<B: Backend>(script: &mut Script<'_, B>) {
    loads_and_stores(script);
    undescribed(script);
    aborts(script);
    calls(script);
    system_events(script);
    immediate(script);
    states(script);
    debug(script);
    serrors(script);
    levels(script);
    after(script);
}

/// Loads and stores that hardware describes, with what a device answers.
fn loads_and_stores<B: Backend>(script: &mut Script<'_, B>) {
    script.part("mmio");
    let machine = script.machine(Controller::Own);
    for (name, instruction) in [
        ("ldrb w", 0x3940_0020),
        ("ldrh w", 0x7940_0020),
        ("ldr w", 0xb940_0020),
        ("ldr x", 0xf940_0020),
        ("ldrsb x", 0x3980_0020),
        ("ldrsb w", 0x39c0_0020),
        ("ldrsh x", 0x7980_0020),
        ("ldrsh w", 0x79c0_0020),
        ("ldrsw x", 0xb980_0020),
        ("ldr wzr", 0xb940_003f),
        ("ldr xzr", 0xf940_003f),
        ("ldar w", 0x88df_fc20),
        ("strb w", 0x3900_0020),
        ("strh w", 0x7900_0020),
        ("str w", 0xb900_0020),
        ("str x", 0xf900_0020),
        ("str xzr", 0xf900_003f),
        ("stlr w", 0x889f_fc20),
    ] {
        for answer in [0x0123_4567_89ab_cdef, 0x7f7f_7f7f_7f7f_7f7f] {
            script.load(&machine, &[instruction]);
            let exit = script.go(format_args!("{name}"), &machine);
            // The instruction is done when the next run begins.
            script.look(format_args!("{name} before {answer:#x}"), &machine);
            if let Exit::MmioRead { .. } = exit {
                RUN_0.answer(answer);
            }
            script.go(format_args!("{name} after {answer:#x}"), &machine);
            script.look(format_args!("{name} after {answer:#x}"), &machine);
        }
    }
    // Addresses: not aligned, beyond the VM's, of the interrupt controller, in a page's last bytes.
    for address in [0, 0xfff, DEVICE + 4, 0x4000_4000, 0xff_ffff_fff8, 1 << 40, 1 << 41, 1 << 47] {
        for (name, instruction) in [("ldr w", 0xb940_0020), ("str w", 0xb900_0020)] {
            script.load(&machine, &[instruction]);
            script.quiet_reg(machine.vcpu, reg::x(1), address & !3);
            script.go(format_args!("{name} at {:#x}", address & !3), &machine);
            script.go(format_args!("{name} at {:#x}, then", address & !3), &machine);
        }
    }
    // A register that is changed between the exit and the next run, and one that the load then changes.
    script.load(&machine, &[0xb940_0020]);
    script.go(format_args!("ldr w whose caller writes X0"), &machine);
    script.set_reg("during MMIO", machine.vcpu, reg::x(0), 5);
    script.set_reg("during MMIO", machine.vcpu, reg::x(27), super::machine::DONE + 8);
    RUN_0.answer(0xffff_ffff_0000_0007);
    script.go(format_args!("after X0 was written"), &machine);
    script.look(format_args!("after X0 was written"), &machine);
    script.drop_machine(&machine);

    script.part("read-only");
    let machine = script.machine(Controller::Own);
    let region = UserMemoryRegion {
        slot: 1,
        flags: crate::uapi::memory::READONLY,
        guest_phys_addr: 0x8000_0000,
        memory_size: PAGE as u64,
        userspace_addr: RAM[16].address(),
    };
    script.write(format_args!("SET_USER_MEMORY_REGION"), machine.vm, number::SET_USER_MEMORY_REGION, &region);
    RAM[16].write(8, 8, 0x5555_6666_7777_8888);
    (script.clean)(&RAM[16]);
    for (name, instruction) in [("ldr x", 0xf940_0020), ("str x", 0xf900_0020), ("strb w", 0x3900_0020)] {
        script.load(&machine, &[instruction]);
        script.quiet_reg(machine.vcpu, reg::x(1), 0x8000_0008);
        script.go(format_args!("{name}"), &machine);
        script.look(format_args!("{name}"), &machine);
        script.go(format_args!("{name}, then"), &machine);
    }
    let value = RAM[16].read(8, 8);
    script.line(format_args!("the read-only memory"), format_args!("{value:#x}"));
    script.drop_machine(&machine);
}

/// Instructions that hardware does not describe.
fn undescribed<B: Backend>(script: &mut Script<'_, B>) {
    let instructions = [
        ("ldp", 0xa940_1023),
        ("stp", 0xa900_1023),
        ("ldr post", 0xb840_4420),
        ("str post", 0xb800_4420),
        ("ldr q", 0x3dc0_0020),
        ("str q", 0x3d80_0020),
        ("dc civac", 0xd50b_7e21),
        ("dc ivac", 0xd508_7621),
        ("prfm", 0xf980_0020),
    ];
    for enabled in [false, true] {
        script.part(if enabled { "nisv" } else { "no-nisv" });
        let machine = script.machine(Controller::Own);
        if enabled {
            let argument = EnableCap { cap: cap::ARM_NISV_TO_USER, ..EnableCap::default() };
            script.write(format_args!("ENABLE_CAP 177"), machine.vm, number::ENABLE_CAP, &argument);
        }
        for (name, instruction) in instructions {
            script.load(&machine, &[instruction]);
            script.go(format_args!("{name}"), &machine);
            script.look(format_args!("{name}"), &machine);
            // As a caller would that steps over it.
            if script.register(machine.vcpu, reg::PC) == BASE {
                script.quiet_reg(machine.vcpu, reg::PC, BASE + 4);
            }
            script.go(format_args!("{name}, then"), &machine);
        }
        script.drop_machine(&machine);
    }
}

/// External aborts that the caller asks for, and what has no memory.
fn aborts<B: Backend>(script: &mut Script<'_, B>) {
    script.part("abort");
    let machine = script.machine(Controller::Own);
    for (name, instruction) in [("ldr w", 0xb940_0020), ("str w", 0xb900_0020)] {
        script.load(&machine, &[instruction]);
        script.go(format_args!("{name}"), &machine);
        let argument = VcpuEvents { ext_dabt_pending: 1, ..VcpuEvents::default() };
        script.write(format_args!("SET_VCPU_EVENTS after {name}"), machine.vcpu, number::SET_VCPU_EVENTS, &argument);
        script.read(
            format_args!("GET_VCPU_EVENTS after {name}"),
            machine.vcpu,
            number::GET_VCPU_EVENTS,
            &mut [super::FILL; 8],
        );
        script.go(format_args!("{name} with an abort"), &machine);
        for (register, id) in [
            ("FAR", reg::system(3, 0, 6, 0, 0)),
            ("ESR", reg::system(3, 0, 5, 2, 0)),
            ("ELR", reg::ARM64 | reg::U64 | reg::CORE | 0x46),
        ] {
            script.get_reg(register, machine.vcpu, id, false);
        }
    }
    // An instruction from where nothing is, from a device, from beyond the VM's addresses.
    for address in [DEVICE, 0, 0x5000_0000, 1 << 40] {
        script.load(&machine, &[0xd61f_0020]);
        script.quiet_reg(machine.vcpu, reg::x(1), address);
        script.go(format_args!("br to {address:#x}"), &machine);
        script.get_reg("FAR", machine.vcpu, reg::system(3, 0, 6, 0, 0), false);
    }
    // Memory that goes while the guest is stopped.
    script.load(&machine, &[]);
    script.go(format_args!("before the memory goes"), &machine);
    let region = UserMemoryRegion { slot: 0, ..UserMemoryRegion::default() };
    script.write(format_args!("SET_USER_MEMORY_REGION, removed"), machine.vm, number::SET_USER_MEMORY_REGION, &region);
    script.drop_machine(&machine);
    // Memory whose backing is not there.
    let machine = script.machine(Controller::Own);
    let region = UserMemoryRegion {
        slot: 1,
        flags: 0,
        guest_phys_addr: 0x8000_0000,
        memory_size: PAGE as u64,
        userspace_addr: super::NOWHERE[0],
    };
    script.write(
        format_args!("SET_USER_MEMORY_REGION of nothing"),
        machine.vm,
        number::SET_USER_MEMORY_REGION,
        &region,
    );
    script.load(&machine, &[0xb940_0020]);
    script.quiet_reg(machine.vcpu, reg::x(1), 0x8000_0000);
    script.go(format_args!("ldr of nothing"), &machine);
    script.drop_machine(&machine);
}

/// A program that makes a call by HVC or SMC; the function is x0.
fn call_program(smc: bool) -> [u32; 1] {
    [if smc { 0xd400_0003 } else { 0xd400_0002 }]
}

fn calls<B: Backend>(script: &mut Script<'_, B>) {
    script.part("call");
    let machine = script.machine(Controller::Own);
    for (base, nr_functions, action) in
        [(0xc600_0100, 4, 2), (0x8400_0050, 1, 1), (0x8400_0053, 1, 2), (0x8400_0000, 1, 2), (0xc200_0000, 1, 0)]
    {
        let argument = SmcccFilter { base, nr_functions, action, pad: [0; 15] };
        let attribute = crate::uapi::DeviceAttr { addr: address(&argument), ..Default::default() };
        script.write(format_args!("SMCCC_FILTER {base:#x} {action}"), machine.vm, number::SET_DEVICE_ATTR, &attribute);
    }
    for smc in [false, true] {
        let conduit = if smc { "SMC" } else { "HVC" };
        for function in [
            0xc600_0100_u64,
            0xc600_0103,
            0xc600_0104,
            0x8400_0050,
            0x8400_0053,
            0x8400_0000,
            0x8000_0000,
            0xc200_0000,
            0x1_8400_0000,
            0xffff_ffff_c600_0101,
        ] {
            script.load(&machine, &call_program(smc));
            script.quiet_reg(machine.vcpu, reg::x(0), function);
            let exit = script.go(format_args!("{conduit} {function:#x}"), &machine);
            script.look(format_args!("{conduit} {function:#x}"), &machine);
            if let Exit::Hypercall { .. } = exit {
                script.quiet_reg(machine.vcpu, reg::x(0), 0x77);
            }
            script.go(format_args!("{conduit} {function:#x} answered"), &machine);
            script.look(format_args!("{conduit} {function:#x} done"), &machine);
        }
    }
    let argument = SmcccFilter { base: 0xc700_0000, nr_functions: 1, action: 2, pad: [0; 15] };
    let attribute = crate::uapi::DeviceAttr { addr: address(&argument), ..Default::default() };
    script.write(format_args!("SMCCC_FILTER of a VM that ran"), machine.vm, number::SET_DEVICE_ATTR, &attribute);
    script.drop_machine(&machine);
}

fn system_events<B: Backend>(script: &mut Script<'_, B>) {
    script.part("system-event");
    for (name, function, x1) in [
        ("SYSTEM_OFF", 0x8400_0008_u64, 0_u64),
        ("SYSTEM_RESET", 0x8400_0009, 0),
        ("SYSTEM_RESET2", 0x8400_0012, 0),
        ("SYSTEM_RESET2 of SMC64", 0xc400_0012, 0),
        ("SYSTEM_RESET2 of a vendor", 0x8400_0012, 0x8000_0000),
        ("SYSTEM_RESET2 of another kind", 0x8400_0012, 1),
        ("SYSTEM_SUSPEND", 0xc400_000e, BASE),
        ("CPU_OFF of nobody else", 0x8400_0005, 0),
        ("MIGRATE_INFO_TYPE", 0x8400_0006, 0),
    ] {
        for suspend in [false, true] {
            let machine = script.machine(Controller::Own);
            if suspend {
                let argument = EnableCap { cap: cap::ARM_SYSTEM_SUSPEND, ..EnableCap::default() };
                script.quiet(machine.vm, number::ENABLE_CAP, address(&argument));
            }
            script.load(&machine, &call_program(false));
            script.quiet_reg(machine.vcpu, reg::x(0), function);
            script.quiet_reg(machine.vcpu, reg::x(1), x1);
            script.go(format_args!("{name} with 216 {suspend}"), &machine);
            script.look(format_args!("{name} with 216 {suspend}"), &machine);
            let what = format_args!("GET_MP_STATE after {name} with 216 {suspend}");
            script.read(what, machine.vcpu, number::GET_MP_STATE, &mut [super::FILL]);
            // As a caller that ignores it.
            script.quiet(machine.vcpu, number::SET_MP_STATE, address(&mp_state::RUNNABLE));
            script.go(format_args!("{name} ignored with 216 {suspend}"), &machine);
            script.look(format_args!("{name} ignored with 216 {suspend}"), &machine);
            // And one that starts it again.
            script.initialise(machine.vcpu, feature::PSCI_0_2);
            script.look(format_args!("{name}, initialised with 216 {suspend}"), &machine);
            script.drop_machine(&machine);
        }
    }
}

fn immediate<B: Backend>(script: &mut Script<'_, B>) {
    script.part("immediate");
    let machine = script.machine(Controller::Own);
    script.load(&machine, &[0xb940_0020]);
    script.call(format_args!("RUN 1"), machine.vcpu, number::RUN, 1);
    script.call(format_args!("RUN of all ones"), machine.vcpu, number::RUN, u64::MAX);
    RUN_0.set_immediate_exit(true);
    for _ in 0..2 {
        script.go(format_args!("at once"), &machine);
        script.look(format_args!("at once"), &machine);
    }
    RUN_0.set_immediate_exit(false);
    script.go(format_args!("ldr"), &machine);
    // The load is completed, and nothing more.
    RUN_0.set_immediate_exit(true);
    RUN_0.answer(42);
    script.go(format_args!("at once after the load"), &machine);
    script.look(format_args!("at once after the load"), &machine);
    RUN_0.answer(43);
    script.go(format_args!("at once again"), &machine);
    script.look(format_args!("at once again"), &machine);
    // Any value but 0.
    RUN[0].write(crate::uapi::run::IMMEDIATE_EXIT, 1, 0x80);
    script.go(format_args!("at once, another value"), &machine);
    RUN_0.set_immediate_exit(false);
    script.go(format_args!("to the end"), &machine);
    script.look(format_args!("at the end"), &machine);
    script.drop_machine(&machine);
}

/// What cannot be run, and what can be set only before.
fn states<B: Backend>(script: &mut Script<'_, B>) {
    script.part("state");
    // Of a suspended vCPU: an interrupt wakes it.
    let machine = script.machine(Controller::Own);
    script.load(&machine, &[]);
    script.go(format_args!("once"), &machine);
    // What is frozen now.
    for (name, low) in [("ID_AA64PFR0_EL1", 0xc020), ("ID_AA64MMFR0_EL1", 0xc038)] {
        let id = reg::ARM64 | reg::U64 | reg::SYSREG | low;
        let value = script.register(machine.vcpu, id);
        for (how, value) in [("as it is", value), ("less", value & !0xf), ("other", value ^ 0xf << 28)] {
            let answer = script.quiet_reg(machine.vcpu, id, value);
            script.line(
                format_args!("SET_ONE_REG of {name} after a run, {how}"),
                format_args!("{}", Value(answer as u64)),
            );
        }
    }
    for (name, id, value) in [
        ("PSCI_VERSION", reg::ARM64 | reg::U64 | reg::FIRMWARE, 0x1_0001),
        ("STD_BMAP", reg::ARM64 | reg::U64 | reg::BITMAPS, 1),
        ("STD_BMAP", reg::ARM64 | reg::U64 | reg::BITMAPS, 0),
        ("VENDOR_HYP_BMAP", reg::ARM64 | reg::U64 | reg::BITMAPS | 2, 1),
    ] {
        script.set_reg(name, machine.vcpu, id, value);
    }
    for (name, number) in [("CREATE_IRQCHIP", number::CREATE_IRQCHIP), ("CREATE_VCPU 1", number::CREATE_VCPU)] {
        script.call(format_args!("{name} after a run"), machine.vm, number, 1);
    }
    script.device(format_args!("CREATE_DEVICE 8 after a run"), machine.vm, 8, 0);
    script.initialise(machine.vcpu, feature::PSCI_0_2);
    script.look(format_args!("after another ARM_VCPU_INIT"), &machine);
    script.load(&machine, &[]);
    script.go(format_args!("after another ARM_VCPU_INIT"), &machine);
    script.drop_machine(&machine);
    // Without a page there is nothing to say it in, and without ARM_VCPU_INIT nobody to run.
    let vm = script.vm();
    let vcpu = script.vcpu(vm, 0);
    script.call(format_args!("RUN before ARM_VCPU_INIT"), vcpu, number::RUN, 0);
    script.close(vcpu);
    script.close(vm);
}

fn set_debug<B: Backend>(script: &mut Script<'_, B>, machine: &Machine, debug: &GuestDebug) {
    let control = debug.control;
    script.write(format_args!("SET_GUEST_DEBUG {control:#x}"), machine.vcpu, number::SET_GUEST_DEBUG, debug);
}

fn debug<B: Backend>(script: &mut Script<'_, B>) {
    script.part("debugger");
    let machine = script.machine(Controller::Own);
    // nop; brk #7; ldr x3, [x1]
    let program = [0xd503_201f, 0xd420_00e0, 0xf940_0023];
    // brk is the guest's own.
    script.load(&machine, &program);
    script.go(format_args!("brk of the guest"), &machine);
    for control in [1, 0x1_0001] {
        set_debug(script, &machine, &GuestDebug { control, ..GuestDebug::default() });
        script.load(&machine, &program);
        script.go(format_args!("brk of the debugger {control:#x}"), &machine);
        script.look(format_args!("brk of the debugger {control:#x}"), &machine);
    }
    // Step by step.
    set_debug(script, &machine, &GuestDebug { control: 3, ..GuestDebug::default() });
    script.load(&machine, &[0xd503_201f, 0xd503_201f, 0xf940_0023]);
    for n in 0..3 {
        script.go(format_args!("step {n}"), &machine);
        script.look(format_args!("step {n}"), &machine);
    }
    RUN_0.answer(9);
    script.go(format_args!("step over the load"), &machine);
    script.look(format_args!("step over the load"), &machine);
    // A breakpoint at the second instruction, and a watchpoint on the data page.
    let mut hardware = GuestDebug { control: 0x2_0001, ..GuestDebug::default() };
    hardware.dbg_bvr[0] = BASE + 4;
    hardware.dbg_bcr[0] = 0x1e7;
    set_debug(script, &machine, &hardware);
    script.load(&machine, &[0xd503_201f, 0xd503_201f]);
    script.go(format_args!("breakpoint"), &machine);
    script.look(format_args!("breakpoint"), &machine);
    let mut hardware = GuestDebug { control: 0x2_0001, ..GuestDebug::default() };
    hardware.dbg_wvr[0] = BASE + 0x2000;
    // Loads and stores of 8 bytes, EL1 and EL0.
    hardware.dbg_wcr[0] = 0xff << 5 | 3 << 3 | 3 << 1 | 1;
    set_debug(script, &machine, &hardware);
    script.load(&machine, &[0xf900_0020]);
    script.quiet_reg(machine.vcpu, reg::x(1), BASE + 0x2000);
    script.go(format_args!("watchpoint"), &machine);
    script.look(format_args!("watchpoint"), &machine);
    set_debug(script, &machine, &GuestDebug::default());
    script.go(format_args!("without a debugger"), &machine);
    script.look(format_args!("without a debugger"), &machine);
    script.drop_machine(&machine);
}

/// A pending SError, masked, unmasked, deferred.
fn serrors<B: Backend>(script: &mut Script<'_, B>) {
    script.part("serror");
    for (name, has_esr, esr) in [("no syndrome", 0, 0), ("0xc11", 1, 0xc11), ("IDS", 1, 1 << 24)] {
        for (kind, program) in [
            ("masked", &[0xd503_201f][..]),
            // msr daifclr, #4; nop
            ("unmasked", &[0xd503_44ff, 0xd503_201f]),
            // esb; mrs x0, disr_el1 is x0 = DISR: mrs x0
            ("deferred", &[0xd503_221f, 0xd538_c120]),
        ] {
            let machine = script.machine(Controller::Own);
            script.load(&machine, program);
            let argument =
                VcpuEvents { serror_pending: 1, serror_has_esr: has_esr, serror_esr: esr, ..VcpuEvents::default() };
            script.write(
                format_args!("{name}, {kind}: SET_VCPU_EVENTS"),
                machine.vcpu,
                number::SET_VCPU_EVENTS,
                &argument,
            );
            script.go(format_args!("{name}, {kind}"), &machine);
            script.look(format_args!("{name}, {kind}"), &machine);
            script.read(
                format_args!("{name}, {kind}: GET_VCPU_EVENTS"),
                machine.vcpu,
                number::GET_VCPU_EVENTS,
                &mut [super::FILL; 8],
            );
            script.drop_machine(&machine);
        }
    }
}

/// A VM without an interrupt controller: its caller has the lines (KVM_CAP_ARM_USER_IRQ).
fn levels<B: Backend>(script: &mut Script<'_, B>) {
    script.part("user-irq");
    let machine = script.machine(Controller::None);
    for level in [1, 0] {
        for line in [0_u32, 1] {
            // msr daifclr, #2 or #1 to let it in; nop
            let program = [if line == 0 { 0xd503_42ff } else { 0xd503_41ff }, 0xd503_201f];
            script.load(&machine, &program);
            let argument = IrqLevel { irq: line, level };
            script.write(format_args!("IRQ_LINE {line} {level}"), machine.vm, number::IRQ_LINE, &argument);
            script.go(format_args!("line {line} at {level}"), &machine);
            script.look(format_args!("line {line} at {level}"), &machine);
            let argument = IrqLevel { irq: line, level: 0 };
            script.quiet(machine.vm, number::IRQ_LINE, address(&argument));
        }
    }
    // A timer that fires is the caller's to see: first the level, then the guest goes on.
    for (name, set) in [
        // msr cntv_cval_el0, xzr; mov w0, #1; msr cntv_ctl_el0, x0; isb; nop
        ("virtual", [0xd51b_e35f, 0x5280_0020, 0xd51b_e320, 0xd503_3fdf, 0xd503_201f]),
        ("physical", [0xd51b_e25f, 0x5280_0020, 0xd51b_e220, 0xd503_3fdf, 0xd503_201f]),
    ] {
        script.load(&machine, &set);
        for n in 0..3 {
            script.go(format_args!("{name} timer, run {n}"), &machine);
        }
        let level = RUN_0.device_irq_level();
        script.line(format_args!("{name} timer, level"), format_args!("{level:#x}"));
        // And off again.
        let control = if name == "virtual" { 0xdf19 } else { 0xdf11 };
        script.set_reg(name, machine.vcpu, reg::ARM64 | reg::U64 | reg::SYSREG | control, 0);
        script.load(&machine, &[]);
        for n in 0..3 {
            script.go(format_args!("{name} timer off, run {n}"), &machine);
        }
        let level = RUN_0.device_irq_level();
        script.line(format_args!("{name} timer off, level"), format_args!("{level:#x}"));
    }
    // The guest has no interrupt controller: mrs x0, icc_pmr_el1 is undefined there.
    script.load(&machine, &[0xd538_4600]);
    script.go(format_args!("ICC_PMR_EL1"), &machine);
    let identification = script.register(machine.vcpu, reg::system(3, 0, 0, 4, 0));
    script.line(format_args!("ID_AA64PFR0_EL1.GIC"), format_args!("{:#x}", identification >> 24 & 0xf));
    script.drop_machine(&machine);
}

/// Handles that are closed while others of the VM are open.
fn after<B: Backend>(script: &mut Script<'_, B>) {
    script.part("close");
    let machine = script.machine(Controller::Own);
    script.load(&machine, &[0xb940_0020]);
    script.call(format_args!("the VM"), machine.vm, number::CLOSE, 0);
    script.call(format_args!("CHECK_EXTENSION of the VM"), machine.vm, number::CHECK_EXTENSION, 70);
    script.go(format_args!("without the VM's handle"), &machine);
    script.call(format_args!("the vGIC"), machine.gic, number::CLOSE, 0);
    RUN_0.answer(3);
    script.go(format_args!("without the vGIC's handle"), &machine);
    script.look(format_args!("without the vGIC's handle"), &machine);
    script.call(format_args!("the vCPU"), machine.vcpu, number::CLOSE, 0);
    script.call(format_args!("RUN of the vCPU"), machine.vcpu, number::RUN, 0);
    script.call(format_args!("the vCPU again"), machine.vcpu, number::CLOSE, 0);
    script.call(format_args!("nobody"), NOBODY, number::CLOSE, 0);
    // A vCPU's number is taken as long as the VM is there.
    let vm = script.vm();
    let vcpu = script.vcpu(vm, 0);
    script.close(vcpu);
    script.open(format_args!("CREATE_VCPU 0 after closing it"), vm, number::CREATE_VCPU, 0);
    script.close(vm);
}
