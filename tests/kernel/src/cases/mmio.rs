//! Loads and stores to devices and to nothing: every form of instruction, every width.

use crate::{
    check, check_eq,
    harness::{Case, Check, Under::*, case, skip},
};
use keel_test_kernel::{
    boot,
    exec::{self, EC_DATA_ABORT, EC_INSTRUCTION_ABORT, FSC_EXTERNAL, Outcome},
    irq,
    machine::Machine,
    mmio, mrs, msr,
    platform::{GICD, GICR, HOLE, PL011, PL031},
};

/// The cases.
pub const CASES: &[Case] = &[
    case("mmio/loads", 1, Any, loads),
    case("mmio/load_every_register", 1, Any, load_every_register),
    case("mmio/stores", 1, Any, stores),
    case("mmio/store_every_register", 1, Any, store_every_register),
    case("mmio/64_bit", 1, Any, double_word),
    case("mmio/no_syndrome", 1, Keel, no_syndrome),
    case("mmio/hole", 1, Any, hole),
    case("mmio/hole_every_form", 1, Any, hole_every_form),
    case("mmio/hole_between_devices", 1, Keel, hole_between_devices),
    case("mmio/fetch_from_hole", 1, Any, fetch_from_hole),
    case("mmio/fetch_from_device", 1, Keel, fetch_from_device),
    case("mmio/beyond_memory", 1, Any, beyond_memory),
    case("mmio/beyond_physical_size", 1, Keel, beyond_physical_size),
    case("mmio/table_in_hole", 1, Any, table_in_hole),
    case("mmio/table_in_device", 1, Keel, table_in_device),
    case("mmio/cache_maintenance", 1, Keel, cache_maintenance),
    case("mmio/across_the_end", 1, Keel, across_the_end),
];

/// Base register of the probes.
const BASE: u32 = 10;
/// Offset register.
const OFFSET: u32 = 11;
/// Data register.
const DATA: u32 = 9;

/// A word (SPI 32 to 35's priorities) whose bytes differ and have their top bits set or clear.
pub const WORD_AT: usize = GICD + 0x420;
pub const WORD: u32 = 0xf800_9878;

/// Loads: name, opcode with Rt = Rn = 0, bytes, sign-extended to (0 not, 32, 64).
pub const LOADS: [(&str, u32, u32, u32); 20] = [
    ("ldrb w", 0x3940_0000, 1, 0),
    ("ldrsb w", 0x39c0_0000, 1, 32),
    ("ldrsb x", 0x3980_0000, 1, 64),
    ("ldurb w", 0x3840_0000, 1, 0),
    ("ldursb x", 0x3880_0000, 1, 64),
    ("ldrb w, [x, x]", 0x3860_6800 | OFFSET << 16, 1, 0),
    ("ldrsb x, [x, x]", 0x38a0_6800 | OFFSET << 16, 1, 64),
    ("ldarb w", 0x08df_fc00, 1, 0),
    ("ldr w", 0xb940_0000, 4, 0),
    ("ldrsw x", 0xb980_0000, 4, 64),
    ("ldur w", 0xb840_0000, 4, 0),
    ("ldursw x", 0xb880_0000, 4, 64),
    ("ldr w, [x, x]", 0xb860_6800 | OFFSET << 16, 4, 0),
    ("ldrsw x, [x, x]", 0xb8a0_6800 | OFFSET << 16, 4, 64),
    ("ldar w", 0x88df_fc00, 4, 0),
    ("ldtr w", 0xb840_0800, 4, 0),
    ("ldrh w", 0x7940_0000, 2, 0),
    ("ldrsh w", 0x79c0_0000, 2, 32),
    ("ldrsh x", 0x7980_0000, 2, 64),
    ("ldurh w", 0x7840_0000, 2, 0),
];

fn run(opcode: u32, data: u32, address: usize) -> Outcome {
    exec::run_with(opcode | BASE << 5 | data, &[(BASE as usize, address as u64), (OFFSET as usize, 0)])
}

fn extend(value: u64, bytes: u32, to: u32) -> u64 {
    let unused = 64 - 8 * bytes;
    match to {
        0 => value,
        32 => ((value << unused) as i64 >> unused) as u32 as u64,
        _ => ((value << unused) as i64 >> unused) as u64,
    }
}

fn loads(machine: &Machine) -> Check {
    mmio::write32(WORD_AT, WORD);
    check_eq!(mmio::read32(WORD_AT), WORD, "the word that was written");
    for (name, opcode, bytes, to) in LOADS {
        if name == "ldtr w" {
            // An unprivileged load: with PAN off and no EL0 permission it faults in the guest's own stage 1.
            continue;
        }
        for byte in (0..4).step_by(bytes as usize) {
            let outcome = run(opcode, DATA, WORD_AT + byte);
            check!(outcome.trap.is_none(), "{name} at +{byte}: {:x?}", outcome.trap);
            let plain = u64::from(WORD) >> (8 * byte) & (u64::MAX >> (64 - 8 * bytes));
            let found = outcome.after.x[DATA as usize];
            // The GIC has no halfword registers: it may say 0.
            let wrong_width = bytes == 2 && (machine.under_keel() || found == 0);
            let expected = if wrong_width { 0 } else { extend(plain, bytes, to) };
            check_eq!(found, expected, "{name} at +{byte}");
            let changed = outcome.changed(&[DATA as usize]);
            check!(changed.is_none(), "{name} changed {changed:x?}");
        }
    }
    mmio::write32(WORD_AT, 0x8080_8080);
    Ok(())
}

fn load_every_register(_: &Machine) -> Check {
    mmio::write32(WORD_AT, WORD);
    for target in (0..31).filter(|&target| target != BASE) {
        let outcome = run(0xb940_0000, target, WORD_AT);
        check_eq!(outcome.after.x[target as usize], WORD.into(), "ldr w{target}");
        let changed = outcome.changed(&[target as usize]);
        check!(changed.is_none(), "ldr w{target} changed {changed:x?}");
    }
    // Into the base register itself, and into nowhere.
    check_eq!(run(0xb940_0000, BASE, WORD_AT).after.x[BASE as usize], WORD.into(), "ldr w{BASE}, [x{BASE}]");
    for opcode in [0xb940_0000, 0x3980_0000, 0xb980_0000] {
        let outcome = run(opcode, 31, WORD_AT);
        check!(outcome.trap.is_none(), "load to zr: {:x?}", outcome.trap);
        let changed = outcome.changed(&[]);
        check!(changed.is_none(), "load to zr changed {changed:x?}");
    }
    mmio::write32(WORD_AT, 0x8080_8080);
    Ok(())
}

/// Stores: name, opcode, bytes.
pub const STORES: [(&str, u32, u32); 8] = [
    ("strb w", 0x3900_0000, 1),
    ("sturb w", 0x3800_0000, 1),
    ("strb w, [x, x]", 0x3820_6800 | OFFSET << 16, 1),
    ("stlrb w", 0x089f_fc00, 1),
    ("str w", 0xb900_0000, 4),
    ("stur w", 0xb800_0000, 4),
    ("str w, [x, x]", 0xb820_6800 | OFFSET << 16, 4),
    ("stlr w", 0x889f_fc00, 4),
];

fn store(opcode: u32, data: u32, address: usize, value: u64) -> Outcome {
    let all = [(OFFSET as usize, 0), (BASE as usize, address as u64), (data as usize, value)];
    // Register 31 is the zero register: there is nothing to set.
    let values = if data == 31 { &all[..2] } else { &all[..] };
    exec::run_with(opcode | BASE << 5 | data, values)
}

fn stores(_: &Machine) -> Check {
    let value = 0xdead_beef_a890_5848_u64;
    for (name, opcode, bytes) in STORES {
        for byte in (0..4).step_by(bytes as usize) {
            mmio::write32(WORD_AT, 0);
            let outcome = store(opcode, DATA, WORD_AT + byte, value);
            check!(outcome.trap.is_none(), "{name} at +{byte}: {:x?}", outcome.trap);
            let changed = outcome.changed(&[]);
            check!(changed.is_none(), "{name} changed {changed:x?}");
            let mask = u32::MAX >> (32 - 8 * bytes);
            // 5 bits of priority are there at least; 0x48 and 0x58 keep theirs.
            let expected = (value as u32 & mask) << (8 * byte);
            check_eq!(mmio::read32(WORD_AT) & 0xf8f8_f8f8, expected & 0xf8f8_f8f8, "the word after {name} at +{byte}");
        }
    }
    mmio::write32(WORD_AT, 0x8080_8080);
    Ok(())
}

fn store_every_register(_: &Machine) -> Check {
    for source in (0..31).filter(|&source| source != BASE) {
        let value = 0x0808_0808 * u64::from(source % 29 + 1);
        let outcome = store(0xb900_0000, source, WORD_AT, value);
        check!(outcome.trap.is_none(), "str w{source}: {:x?}", outcome.trap);
        check_eq!(u64::from(mmio::read32(WORD_AT)), value & 0xf8f8_f8f8, "the word after str w{source}");
    }
    mmio::write32(WORD_AT, 0x8080_8080);
    let outcome = store(0xb900_0000, 31, WORD_AT, 0);
    check!(outcome.trap.is_none(), "str wzr: {:x?}", outcome.trap);
    check_eq!(mmio::read32(WORD_AT), 0, "the word after str wzr");
    mmio::write32(WORD_AT, 0x8080_8080);
    Ok(())
}

fn double_word(machine: &Machine) -> Check {
    if irq::is_v2() {
        return skip("a GICv2 has no register of 64 bits");
    }
    for cpu in 0..machine.cpus().len() {
        let typer = GICR + cpu * 0x2_0000 + 8;
        let whole = mmio::read64(typer);
        let halves = u64::from(mmio::read32(typer)) | u64::from(mmio::read32(typer + 4)) << 32;
        check_eq!(whole, halves, "GICR_TYPER of CPU {cpu}, whole and in halves");
    }
    // GICD_IROUTER40 as one and as two.
    let router = GICD + 0x6000 + 8 * 40;
    mmio::write64(router, machine.cpus()[0]);
    check_eq!(mmio::read64(router), machine.cpus()[0], "GICD_IROUTER40");
    check_eq!(u64::from(mmio::read32(router)), machine.cpus()[0] & 0xffff_ffff, "its low half");
    Ok(())
}

/// Instructions for which the CPU gives a hypervisor no syndrome: name, opcode.
const NO_SYNDROME: [(&str, u32); 14] = [
    ("ldp w, w", 0x2940_0000 | 12 << 10),
    ("stp w, w", 0x2900_0000 | 12 << 10),
    ("ldp x, x", 0xa940_0000 | 12 << 10),
    ("ldr w, [x], #4", 0xb840_4400),
    ("ldr w, [x, #0]!", 0xb840_0c00),
    ("str w, [x], #4", 0xb800_4400),
    ("str w, [x, #0]!", 0xb800_0c00),
    ("ldr q", 0x3dc0_0000),
    ("str q", 0x3d80_0000),
    ("ldr s", 0xbd40_0000),
    ("ldxr w", 0x885f_7c00),
    ("ldxp w, w", 0x887f_0000 | 12 << 10),
    ("ldadd w", 0xb820_0000 | 12 << 16),
    ("swp w", 0xb820_8000 | 12 << 16),
];

/// Those of [`NO_SYNDROME`] that this CPU has: the last two came with FEAT_LSE.
pub fn no_syndrome_forms() -> impl Iterator<Item = (&'static str, u32)> {
    let atomics = mrs!("id_aa64isar0_el1") >> 20 & 15 >= 2;
    NO_SYNDROME.into_iter().take(if atomics { 14 } else { 12 })
}

/// An external abort at `address`, and nothing changed.
fn external(what: &str, outcome: &Outcome, address: u64) -> Check {
    let Some(trap) = outcome.trap else {
        check!(false, "{what}: no abort");
        return Ok(());
    };
    check!(!trap.serror, "{what}: an SError, ESR {:#x}", trap.esr);
    check_eq!(trap.class(), EC_DATA_ABORT, "{what}: class of ESR {:#x}", trap.esr);
    check_eq!(trap.status(), FSC_EXTERNAL, "{what}: fault status of ESR {:#x}", trap.esr);
    // FnV: FAR may be declared invalid only when it is.
    check_eq!(trap.esr >> 10 & 1, 0, "{what}: FnV of ESR {:#x}", trap.esr);
    check_eq!(trap.far, address, "{what}: FAR");
    let changed = outcome.changed(&[]);
    check!(changed.is_none(), "{what} changed {changed:x?}");
    Ok(())
}

fn no_syndrome(_: &Machine) -> Check {
    for address in [GICD + 0x400, irq::private_frame() + 0x400, PL011 + 0x40, PL031 + 0x10] {
        for (name, opcode) in no_syndrome_forms() {
            external(name, &run(opcode, DATA, address), address as u64)?;
        }
    }
    Ok(())
}

fn hole(_: &Machine) -> Check {
    for (name, opcode, write) in
        [("ldr w", 0xb940_0000, 0), ("str w", 0xb900_0000, 1), ("ldrb w", 0x3940_0000, 0), ("str x", 0xf900_0000, 1)]
    {
        for address in [HOLE, HOLE + 0xff8, HOLE + 0x12_3458] {
            let outcome = run(opcode, DATA, address);
            external(name, &outcome, address as u64)?;
            let esr = outcome.trap.map_or(0, |trap| trap.esr);
            check_eq!(esr >> 6 & 1, write, "{name}: WnR of ESR {esr:#x}");
        }
    }
    Ok(())
}

fn hole_every_form(_: &Machine) -> Check {
    for (name, opcode, ..) in LOADS.into_iter().filter(|(name, ..)| *name != "ldtr w") {
        external(name, &run(opcode, DATA, HOLE), HOLE as u64)?;
        external(name, &run(opcode, 31, HOLE), HOLE as u64)?;
    }
    for (name, opcode, _) in STORES {
        external(name, &run(opcode, DATA, HOLE), HOLE as u64)?;
    }
    for (name, opcode) in no_syndrome_forms() {
        // QEMU on its own gives exclusives on a device what it likes.
        if !name.starts_with("ldx") {
            external(name, &run(opcode, DATA, HOLE), HOLE as u64)?;
        }
    }
    Ok(())
}

fn hole_between_devices(machine: &Machine) -> Check {
    let after_redistributors = GICR + if irq::is_v2() { 0 } else { machine.cpus().len() * 0x2_0000 };
    let all =
        [0, 0x07ff_fff8, after_redistributors, PL011 + 0x1000, PL031 + 0x1000, 0x0b00_0000, 0x1000_0000, 0x3fff_fff0];
    for address in all {
        external("ldr w", &run(0xb940_0000, DATA, address), address as u64)?;
        external("str w", &run(0xb900_0000, DATA, address), address as u64)?;
    }
    Ok(())
}

/// `br x10` to an address: the exception it ends in.
fn jump(address: usize) -> Outcome {
    exec::run_with(0xd61f_0000 | BASE << 5, &[(BASE as usize, address as u64)])
}

fn fetch_fault(what: &str, address: usize) -> Check {
    let outcome = jump(address);
    let Some(trap) = outcome.trap else {
        check!(false, "{what}: no abort");
        return Ok(());
    };
    check_eq!(trap.class(), EC_INSTRUCTION_ABORT, "{what}: class of ESR {:#x}", trap.esr);
    check_eq!(trap.status(), FSC_EXTERNAL, "{what}: fault status of ESR {:#x}", trap.esr);
    check_eq!(trap.far, address as u64, "{what}: FAR");
    check_eq!(trap.elr, address as u64, "{what}: ELR");
    Ok(())
}

/// First address behind RAM, in the gigabytes mapped as executable memory.
pub fn behind_memory(machine: &Machine) -> usize {
    machine.memory_end
}

fn fetch_from_hole(machine: &Machine) -> Check {
    for address in [behind_memory(machine), behind_memory(machine) + 0x1000_0004, 0xb000_0000] {
        fetch_fault("a jump", address)?;
    }
    Ok(())
}

/// Runs `f` with the translation of `slot` (a gigabyte of virtual addresses) replaced.
pub fn with_descriptor<R>(slot: usize, descriptor: u64, f: impl FnOnce() -> R) -> R {
    let table = (mrs!("ttbr0_el1") & 0xffff_ffff_f000) as *mut u64;
    let flush = || {
        // SAFETY: TLB maintenance; the table it rereads is valid.
        unsafe { core::arch::asm!("dsb ishst", "tlbi vmalle1is", "dsb ish", "isb", options(nostack)) };
    };
    // SAFETY: the table is aarch64-rt's initial one, 512 entries in RAM that is mapped writable; the slots used here
    // are in use for nothing else, and the table walker reads what is written after the barrier.
    let old = unsafe { table.add(slot).read_volatile() };
    // SAFETY: as above.
    unsafe { table.add(slot).write_volatile(descriptor) };
    flush();
    let result = f();
    // SAFETY: as above.
    unsafe { table.add(slot).write_volatile(old) };
    flush();
    result
}

/// A slot of the first page table that maps nothing.
pub const FREE_SLOT: usize = 200;

fn fetch_from_device(_: &Machine) -> Check {
    // The first gigabyte again, as executable memory.
    let normal = 0b01 | 1 << 10 | 1 << 2 | 3 << 8;
    with_descriptor(FREE_SLOT, normal, || {
        for device in [GICD, PL011, PL011 + 0x18, HOLE] {
            fetch_fault("a jump into a device", (FREE_SLOT << 30) + device)?;
        }
        Ok(())
    })
}

fn beyond_memory(machine: &Machine) -> Check {
    // The last word of RAM is there, the next is not.
    let end = behind_memory(machine);
    check!(run(0xb940_0000, DATA, end - 4).trap.is_none(), "the last word of RAM");
    for address in [end, end + 0x20_0000, 0xc000_0000 - 4] {
        external("ldr w", &run(0xb940_0000, DATA, address), address as u64)?;
        external("str w", &run(0xb900_0000, DATA, address), address as u64)?;
        external("ldp x, x", &run(0xa940_0000 | 12 << 10, DATA, address), address as u64)?;
    }
    Ok(())
}

fn beyond_physical_size(_: &Machine) -> Check {
    let range = mrs!("id_aa64mmfr0_el1") as usize & 15;
    let bits = [32, 36, 40, 42, 44, 48, 52, 56].get(range).copied().unwrap_or(48);
    for bit in 36..48 {
        let address = boot::window(bit) + 0x1230;
        let outcome = run(0xb940_0000, DATA, address);
        if bit < bits {
            external("ldr w", &outcome, address as u64)?;
            external("str w", &run(0xb900_0000, DATA, address), address as u64)?;
        } else {
            // Not an address at all: the guest's own translation says so (address size fault, level 1).
            let status = outcome.trap.map(|trap| (trap.class(), trap.status()));
            check_eq!(status, Some((EC_DATA_ABORT, 1)), "a load from bit {bit} of {bits}");
        }
    }
    Ok(())
}

/// A load whose translation table is at `table`, where there is no memory.
fn walk(table: usize) -> Check {
    let address = (FREE_SLOT << 30) + 0x4_5678;
    let outcome = with_descriptor(FREE_SLOT, table as u64 | 0b11, || run(0xb940_0000, DATA, address));
    let Some(trap) = outcome.trap else {
        check!(false, "a walk through {table:#x}: no abort");
        return Ok(());
    };
    check_eq!(trap.class(), EC_DATA_ABORT, "a walk through {table:#x}: class of ESR {:#x}", trap.esr);
    // External abort on a translation table walk, level 2; a hypervisor may leave the level out.
    let status = trap.status();
    check!(
        status == 0x16 || status == FSC_EXTERNAL || (0x14..=0x17).contains(&status),
        "a walk through {table:#x}: fault status of ESR {:#x}",
        trap.esr
    );
    Ok(())
}

fn table_in_hole(machine: &Machine) -> Check {
    walk(HOLE & !0xfff)?;
    walk(behind_memory(machine))
}

fn table_in_device(_: &Machine) -> Check {
    walk(GICD)?;
    walk(PL011)
}

fn cache_maintenance(_: &Machine) -> Check {
    // DC CIVAC, CVAC, CVAU, IVAC and IC IVAU by an address at which there is no memory.
    for (name, word) in [
        ("dc civac", 0xd50b_7e20),
        ("dc cvac", 0xd50b_7a20),
        ("dc cvau", 0xd50b_7b20),
        ("dc ivac", 0xd508_7620),
        ("ic ivau", 0xd50b_7520),
    ] {
        for address in [HOLE, GICD, PL011] {
            let outcome = exec::run_with(word | BASE, &[(BASE as usize, address as u64)]);
            check!(outcome.trap.is_none(), "{name} at {address:#x}: {:x?}", outcome.trap);
        }
    }
    msr!("par_el1", 0);
    Ok(())
}

fn across_the_end(_: &Machine) -> Check {
    // Unaligned on device memory: the guest's own alignment fault, wherever it points. QEMU finds it only when it has the
    // page in its TLB; otherwise stage 2 refuses first, and the access is nobody's.
    for address in [PL011 + 0xffd, HOLE + 1] {
        let outcome = run(0xb940_0000, DATA, address);
        let status = outcome.trap.map(|trap| (trap.class(), trap.status()));
        if status != Some((EC_DATA_ABORT, 0x21)) {
            external("an unaligned ldr w", &outcome, address as u64)?;
        }
    }
    // Aligned, 8 bytes, the last of a device: claimed by it or by nobody, but answered.
    let outcome = run(0xf940_0000, DATA, PL011 + 0xff8);
    if outcome.trap.is_some() {
        external("ldr x", &outcome, (PL011 + 0xff8) as u64)?;
    }
    Ok(())
}
