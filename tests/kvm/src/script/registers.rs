//! ONE_REG: every register of the list, ids that are none, values that cannot be.

use super::{FILL, NOWHERE, Script, machine::Controller};
use crate::{
    Backend,
    handle::{address, address_mut},
    number,
    uapi::{OneReg, reg},
};

/// Room for the list.
const ROOM: usize = 600;

/// A system register by the low half of its id.
const fn system(encoding: u64) -> u64 {
    reg::ARM64 | reg::U64 | reg::SYSREG | encoding
}

/// Whose values are the machine's, or the moment's.
fn is_masked(id: u64) -> bool {
    let low = id & 0xffff;
    let system_group = id & 0xffff_0000 == reg::SYSREG;
    // MIDR, REVIDR, AIDR, CLIDR, CTR; ID registers; counters, and the compare values, which KVM starts at the machine's time.
    (system_group
        && (matches!(low, 0xc000 | 0xc006 | 0xc807 | 0xc801 | 0xd801)
            || (0xc008..0xc040).contains(&low)
            || matches!(low, 0xdf01 | 0xdf1a)))
        // CCSIDR, and MIDR_EL1 in a group that is none, where KVM has it.
        || id & 0xffff_0000 == reg::DEMUX
        || id & 0xffff_ffff == 0x0012_c000
}

pub(super) fn run<B: Backend>(script: &mut Script<'_, B>) {
    let machine = script.machine(Controller::Own);
    list(script, machine.vcpu);
    ids(script, machine.vcpu);
    values(script, machine.vcpu);
    timers(script, machine.vcpu);
    identification(script, machine.vcpu);
    pointers(script, machine.vcpu);
    script.drop_machine(&machine);
}

/// KVM_GET_REG_LIST, and each register in it read and written back.
fn list<B: Backend>(script: &mut Script<'_, B>, vcpu: u64) {
    script.part("list");
    let mut list = [FILL; ROOM + 1];
    list[0] = 0;
    let answer = script.quiet(vcpu, number::GET_REG_LIST, address_mut(&mut list));
    let count = list[0] as usize;
    let untouched = list[1..].iter().all(|&id| id == FILL);
    script.line(format_args!("GET_REG_LIST of none"), format_args!("{answer} {count} untouched {untouched}"));
    list = [FILL; ROOM + 1];
    list[0] = (count as u64).wrapping_sub(1);
    let answer = script.quiet(vcpu, number::GET_REG_LIST, address_mut(&mut list));
    let untouched = list[1..].iter().all(|&id| id == FILL);
    script.line(format_args!("GET_REG_LIST of one less"), format_args!("{answer} {} untouched {untouched}", list[0]));
    list = [FILL; ROOM + 1];
    list[0] = ROOM as u64;
    let answer = script.quiet(vcpu, number::GET_REG_LIST, address_mut(&mut list));
    script.line(format_args!("GET_REG_LIST of all"), format_args!("{answer} {}", list[0]));
    let count = count.min(ROOM);
    // Grouped, so that a register that only one side has is one line.
    for (name, group) in [
        ("core", reg::CORE),
        ("demux", reg::DEMUX),
        ("system", reg::SYSREG),
        ("firmware", reg::FIRMWARE),
        ("bitmaps", reg::BITMAPS),
        ("SVE", reg::SVE),
    ] {
        let ids = list[1..=count].iter().filter(|&id| id & 0xffff_0000 == group);
        let (number, sum) = ids.fold((0_u32, 0_u64), |(number, sum), &id| (number + 1, sum.rotate_left(7) ^ id));
        script.line(format_args!("GET_REG_LIST, {name}"), format_args!("{number} sum {sum:#x}"));
    }
    // The list is the caller's to know: what is asked is the same everywhere.
    script.part("register");
    let core = (0..=0x50).step_by(2).map(|n| reg::ARM64 | reg::U64 | reg::CORE | n);
    let vectors = (0..32).map(|n| reg::ARM64 | reg::U128 | reg::CORE | (0x54 + 4 * n));
    let status = [0xd4, 0xd5].map(|n| reg::ARM64 | reg::U32 | reg::CORE | n);
    let caches = (0..14).map(|n| reg::ARM64 | reg::U32 | reg::DEMUX | n);
    let firmware = (0..4).map(|n| reg::ARM64 | reg::U64 | reg::FIRMWARE | n);
    let bitmaps = (0..4).map(|n| reg::ARM64 | reg::U64 | reg::BITMAPS | n);
    let debug = (0..16).flat_map(|n| (4..8).map(move |kind| system(0x8000 + 8 * n + kind)));
    let identification = (0..64).map(|n| system(0xc000 + n));
    let others = SYSTEM_REGISTERS.iter().map(|&low| system(low));
    let timers = [0xdf19, 0xdf02, 0xdf1a, 0xdf11, 0xdf12, 0xdf01].map(system);
    let all = core
        .chain(vectors)
        .chain(status)
        .chain(caches)
        .chain(firmware)
        .chain(bitmaps)
        .chain(debug)
        .chain(identification)
        .chain(others)
        .chain(timers);
    for id in all {
        let value = script.get_reg("vCPU", vcpu, id, is_masked(id));
        if id & 0xffff == 0xdf01 || id & 0xffff == 0xdf1a {
            continue;
        }
        // What was read can be written.
        let one = OneReg { id, addr: address(&value) };
        script.write(format_args!("vCPU SET_ONE_REG {id:#x} as it is"), vcpu, number::SET_ONE_REG, &one);
    }
}

/// System registers besides those that the architecture numbers in rows.
const SYSTEM_REGISTERS: &[u64] = &[
    0x8010, 0x8012, 0x808c, 0xa038, 0xc080, 0xc081, 0xc082, 0xc083, 0xc090, 0xc100, 0xc101, 0xc102, 0xc103, 0xc108,
    0xc109, 0xc10a, 0xc10b, 0xc110, 0xc111, 0xc118, 0xc288, 0xc289, 0xc290, 0xc300, 0xc3a0, 0xc4f1, 0xc4f2, 0xc510,
    0xc512, 0xc513, 0xc514, 0xc518, 0xc600, 0xc609, 0xc681, 0xc684, 0xc687, 0xc708, 0xc801, 0xc804, 0xc807, 0xd000,
    0xd801, 0xd807, 0xda10, 0xda20, 0xda21, 0xdce0, 0xdce1, 0xdce2, 0xdce3, 0xdce4, 0xdce5, 0xdce6, 0xdce8, 0xdcf0,
    0xdcf3, 0xde82, 0xde83, 0xde85, 0xdf00, 0xdf40, 0xdf60, 0xdf7f, 0xe180, 0xe281, 0xe298, 0xe200, 0xe208, 0xc230,
    0xc660, 0xc664, 0xc667, 0xe088, 0xe708, 0xd080, 0x9808, 0xffff, 0x0000, 0x4000,
];

/// Ids that are none, and sizes that are not the register's.
fn ids<B: Backend>(script: &mut Script<'_, B>, vcpu: u64) {
    script.part("id");
    let sized = |low: u64| (0..9).map(move |size| reg::ARM64 | size << reg::SIZE_SHIFT | low);
    let sizes = [
        reg::CORE,
        reg::CORE | 0x42,
        reg::CORE | 0x54,
        reg::CORE | 0xd4,
        reg::CORE | 0xd5,
        reg::DEMUX,
        reg::SYSREG | 0xc080,
        reg::SYSREG | 0xdf19,
        reg::FIRMWARE,
        reg::BITMAPS,
        reg::SVE,
        reg::SVE | 0xffff,
    ];
    let odd = [1, 3, 0x3f, 0x41, 0x51, 0x52, 0x53, 0x55, 0x56, 0x57, 0xd0, 0xd2, 0xd6, 0xd7, 0xd8, 0xff, 0x100, 0xffff]
        .map(|low| reg::ARM64 | reg::U64 | reg::CORE | low);
    let odd_words = [0, 1, 0x52, 0x54, 0xd3, 0xd6, 0xd7, 0xd8].map(|low| reg::ARM64 | reg::U32 | reg::CORE | low);
    let odd_vectors = [0x50, 0x52, 0x55, 0xd0, 0xd4, 0xd8].map(|low| reg::ARM64 | reg::U128 | reg::CORE | low);
    let demux = [0xd, 0xe, 0xf, 0x10, 0xff, 0x100, 0x8000].map(|low| reg::ARM64 | reg::U32 | reg::DEMUX | low);
    let firmware = [4, 5, 0x100, 0xffff].map(|low| reg::ARM64 | reg::U64 | reg::FIRMWARE | low);
    let bitmaps = [4, 5, 0x100, 0xffff].map(|low| reg::ARM64 | reg::U64 | reg::BITMAPS | low);
    let groups = [0x00, 0x0f, 0x12, 0x15, 0x17, 0x18, 0x80, 0xfff].map(|group| reg::ARM64 | reg::U64 | group << 16);
    let others = [
        0,
        1,
        u64::MAX,
        // The form of 2013, with 32 more in the size.
        0x6002_0000_0010_0000,
        0x6003_0000_0010_0000,
        0x6002_0000_0013_c080,
        0x6002_0000_0011_0000,
        // Other architectures.
        0x4030_0000_0010_0000,
        0x0030_0000_0010_0000,
        0x2030_0000_0010_0000,
        0x8030_0000_0010_0000,
        // Bits that are reserved.
        0x6030_0000_1010_0000,
        0x6030_0000_8013_c080,
        0x6030_0001_0010_0000,
        0x6030_8000_0013_c080,
        0x6031_0000_0010_0000,
        // A system register's bits in the wrong place.
        0x6030_0000_0013_0000,
        0x6030_0000_0013_ffff,
        // MIDR_EL1 in a group that is none.
        0x6030_0000_0012_c000,
    ];
    let all = sizes
        .into_iter()
        .flat_map(sized)
        .chain(odd)
        .chain(odd_words)
        .chain(odd_vectors)
        .chain(demux)
        .chain(firmware)
        .chain(bitmaps)
        .chain(groups)
        .chain(others);
    for id in all {
        let mut read = [FILL; 256];
        let one = OneReg { id, addr: address_mut(&mut read) };
        let answer = script.quiet(vcpu, number::GET_ONE_REG, address(&one));
        let value = if is_masked(id) || answer != 0 { 0 } else { read[0] };
        script.line(format_args!("GET_ONE_REG {id:#x}"), format_args!("{answer} {value:#x}"));
        // What was read, or nothing that means anything.
        let one = OneReg { id, addr: address(&read) };
        script.write(format_args!("SET_ONE_REG {id:#x}"), vcpu, number::SET_ONE_REG, &one);
    }
}

/// Values, good and bad.
fn values<B: Backend>(script: &mut Script<'_, B>, vcpu: u64) {
    script.part("value");
    for mode in (0..32).map(|mode| 0x3c0 | mode).chain([0x8000_03c5, 0xf000_03c5, 0x1_0000_03c5, 0x3c5]) {
        script.set_reg("PSTATE", vcpu, reg::PSTATE, mode);
        script.get_reg("PSTATE", vcpu, reg::PSTATE, false);
    }
    let vector = reg::ARM64 | reg::U128 | reg::CORE | 0xd0;
    let words = [0x0123_4567_89ab_cdef_u64, 0xfedc_ba98_7654_3210];
    let one = OneReg { id: vector, addr: address(&words) };
    script.write(format_args!("SET_ONE_REG of V31"), vcpu, number::SET_ONE_REG, &one);
    script.get_reg("V31", vcpu, vector, false);
    for (name, id, values) in [
        ("X0", reg::x(0), &[u64::MAX, 0][..]),
        ("X30", reg::x(30), &[0x1234_5678_9abc_def0]),
        ("SP_EL0", reg::SP, &[3, u64::MAX]),
        ("PC", reg::PC, &[1, u64::MAX, 0x4000_0000]),
        ("SP_EL1", reg::ARM64 | reg::U64 | reg::CORE | 0x44, &[5]),
        ("ELR_EL1", reg::ARM64 | reg::U64 | reg::CORE | 0x46, &[7]),
        ("SPSR_EL1", reg::ARM64 | reg::U64 | reg::CORE | 0x48, &[0x3c5, u64::MAX]),
        ("SPSR_ABT", reg::ARM64 | reg::U64 | reg::CORE | 0x4a, &[0x1d3]),
        ("SPSR_FIQ", reg::ARM64 | reg::U64 | reg::CORE | 0x50, &[0x1d1]),
        ("FPSR", reg::ARM64 | reg::U32 | reg::CORE | 0xd4, &[0x1f, 0xffff_ffff]),
        ("FPCR", reg::ARM64 | reg::U32 | reg::CORE | 0xd5, &[0x0300_0000, 0]),
        ("OSLSR_EL1", system(0x808c), &[0, 1, 2, 8, 9, 0xa, 0xc, 8 | 1 << 32, 8]),
        ("MIDR_EL1", system(0xc000), &[0, 1]),
        ("MPIDR_EL1", system(0xc005), &[0x8000_0000, 0x8000_0001, 0, 0x8000_0000]),
        ("CSSELR_EL1", system(0xd000), &[0, 1, 0xf, u64::MAX]),
        ("SCTLR_EL1", system(0xc080), &[0, 0xc5_0078]),
        ("TTBR0_EL1", system(0xc100), &[u64::MAX, 0]),
        ("MDSCR_EL1", system(0x8012), &[0x8000, 0]),
        ("DISR_EL1", system(0xc609), &[0x8000_0011, u64::MAX, 0]),
        ("PAR_EL1", system(0xc3a0), &[0x800, 1]),
        ("CCSIDR 0", reg::ARM64 | reg::U32 | reg::DEMUX, &[0xf000_0000, u64::MAX]),
        (
            "PSCI_VERSION",
            reg::ARM64 | reg::U64 | reg::FIRMWARE,
            &[0, 1, 2, 3, 0x1_0000, 0x1_0004, 0x2_0000, 1 << 32 | 2, 0x1_0001, 0x1_0002, 0x1_0003, 0x1_0001],
        ),
        ("WORKAROUND_1", reg::ARM64 | reg::U64 | reg::FIRMWARE | 1, &[3, 4, u64::MAX]),
        ("WORKAROUND_2", reg::ARM64 | reg::U64 | reg::FIRMWARE | 2, &[4, 0x20, u64::MAX]),
        ("STD_BMAP", reg::ARM64 | reg::U64 | reg::BITMAPS, &[0, 1, 2, u64::MAX, 1]),
        ("STD_HYP_BMAP", reg::ARM64 | reg::U64 | reg::BITMAPS | 1, &[0, 1, 2, 1]),
        ("VENDOR_HYP_BMAP", reg::ARM64 | reg::U64 | reg::BITMAPS | 2, &[0, 1, 2, 3, 4, 3]),
    ] {
        for &value in values {
            script.set_reg(name, vcpu, id, value);
            // The machine's own MIDR is nobody else's business.
            script.get_reg(format_args!("{name} after {value:#x}"), vcpu, id, is_masked(id));
        }
    }
}

fn timers<B: Backend>(script: &mut Script<'_, B>, vcpu: u64) {
    script.part("timer");
    for (name, control, compare) in [("virtual", 0xdf19, 0xdf02), ("physical", 0xdf11, 0xdf12)] {
        for (ctl, cval) in
            [(0, u64::MAX), (1, u64::MAX), (3, u64::MAX), (2, 0), (3, 0), (7, u64::MAX), (0xff, 0), (0, 0)]
        {
            script.set_reg(name, vcpu, system(compare), cval);
            script.set_reg(name, vcpu, system(control), ctl);
            script.get_reg(format_args!("{name} after {cval:#x}"), vcpu, system(compare), false);
            script.get_reg(format_args!("{name} after {ctl:#x}"), vcpu, system(control), false);
        }
    }
    // A counter that was set goes on from there.
    for (name, counter) in [("virtual", 0xdf1a), ("physical", 0xdf01)] {
        for value in [0, 1 << 50] {
            script.set_reg(name, vcpu, system(counter), value);
            let now = script.register(vcpu, system(counter));
            let soon = now.wrapping_sub(value) < 1 << 40;
            script.line(format_args!("{name} counter after {value:#x}"), format_args!("soon after {soon}"));
        }
    }
}

/// ID registers: what they are on a vCPU is the machine's, but what can be written follows from it.
fn identification<B: Backend>(script: &mut Script<'_, B>, vcpu: u64) {
    script.part("identification");
    for low in [0xc020, 0xc021, 0xc028, 0xc029, 0xc030, 0xc031, 0xc032, 0xc038, 0xc039, 0xc03a, 0xc03b, 0xc022, 0xc03f]
    {
        let id = system(low);
        let value = script.register(vcpu, id);
        for (name, value) in [("as it is", value), ("all ones", u64::MAX)] {
            let one = OneReg { id, addr: address(&value) };
            script.write(format_args!("SET_ONE_REG {id:#x} {name}"), vcpu, number::SET_ONE_REG, &one);
        }
    }
    // EL0 and EL1 without AArch32, AdvSIMD and FP are as they were: a field that only says more than there is.
    let id = system(0xc020);
    let value = script.register(vcpu, id);
    for (name, value) in [("EL3", value ^ 2 << 12), ("RME", value | 1 << 52), ("CSV2 0", value & !(0xf << 56))] {
        let one = OneReg { id, addr: address(&value) };
        script.write(format_args!("SET_ONE_REG of ID_AA64PFR0_EL1, {name}"), vcpu, number::SET_ONE_REG, &one);
    }
    for (name, debug) in [("5", 5), ("15", 15)] {
        let id = system(0xc028);
        let value = script.register(vcpu, id) & !0xf | debug;
        let one = OneReg { id, addr: address(&value) };
        let what = format_args!("SET_ONE_REG of ID_AA64DFR0_EL1, DebugVer {name}");
        script.write(what, vcpu, number::SET_ONE_REG, &one);
    }
    for what in [-1_i32, 0, 1, 3, 4, 5, 1 << 30] {
        script.write(format_args!("ARM_VCPU_FINALIZE {what}"), vcpu, number::ARM_VCPU_FINALIZE, &what);
    }
}

/// Pointers inside the structure.
fn pointers<B: Backend>(script: &mut Script<'_, B>, vcpu: u64) {
    script.part("pointer");
    for at in NOWHERE.into_iter().chain([0, 1, u64::MAX - 3]) {
        for id in [
            reg::x(0),
            reg::ARM64 | reg::U128 | reg::CORE | 0x54,
            reg::ARM64 | reg::U32 | reg::CORE | 0x54,
            system(0xc080),
            system(0x4000),
            system(0xdf19),
            reg::ARM64 | reg::U32 | reg::DEMUX,
            reg::ARM64 | reg::U32 | reg::DEMUX | 0xe,
            reg::ARM64 | reg::U64 | reg::FIRMWARE,
            reg::ARM64 | reg::U64 | reg::FIRMWARE | 9,
            reg::ARM64 | reg::U64 | reg::BITMAPS,
            0,
        ] {
            for (name, number) in [("GET", number::GET_ONE_REG), ("SET", number::SET_ONE_REG)] {
                let one = OneReg { id, addr: at };
                script.write(format_args!("{name}_ONE_REG {id:#x} at {at:#x}"), vcpu, number, &one);
            }
        }
    }
}
