//! Memory slots: every check, flags, moves, overlaps, the limits.

use super::{NOWHERE, RAM, Script};
use crate::{
    Backend, number,
    page::PAGE,
    uapi::{UserMemoryRegion, UserMemoryRegion2, memory},
};

const P: u64 = PAGE as u64;
const LOG: u32 = memory::LOG_DIRTY_PAGES;
const READONLY: u32 = memory::READONLY;

/// A request: slot, flags, guest address, size, and where in the script's memory.
type Request = (u32, u32, u64, u64, u64);

pub(super) fn run<B: Backend>(script: &mut Script<'_, B>) {
    slots(script);
    limits(script);
    second(script);
}

fn set<B: Backend>(script: &mut Script<'_, B>, vm: u64, (slot, flags, guest, size, offset): Request) {
    let region = UserMemoryRegion {
        slot,
        flags,
        guest_phys_addr: guest,
        memory_size: size,
        userspace_addr: RAM[0].address().wrapping_add(offset),
    };
    let what = format_args!("SET_USER_MEMORY_REGION {slot:#x} {flags:#x} {guest:#x} {size:#x} +{offset:#x}");
    script.write(what, vm, number::SET_USER_MEMORY_REGION, &region);
}

fn slots<B: Backend>(script: &mut Script<'_, B>) {
    script.part("slot");
    let vm = script.vm();
    let base = 0x4000_0000;
    let requests: &[Request] = &[
        // Nothing is there to be removed.
        (0, 0, 0, 0, 0),
        (1, 0, base, 0, 0),
        (32766, 0, 0, 0, 0),
        (32767, 0, 0, 0, 0),
        (0xffff, 0, 0, 0, 0),
        (0x1_0000, 0, 0, 0, 0),
        // A slot; again; with flags; without.
        (0, 0, base, 4 * P, 0),
        (0, 0, base, 4 * P, 0),
        (0, LOG, base, 4 * P, 0),
        (0, LOG, base, 4 * P, 0),
        (0, 0, base, 4 * P, 0),
        (0, READONLY, base, 4 * P, 0),
        (0, LOG | READONLY, base, 4 * P, 0),
        // What cannot change.
        (0, 0, base, 5 * P, 0),
        (0, 0, base, 3 * P, 0),
        (0, 0, base, 4 * P, P),
        (0, 0, base + P, 8 * P, P),
        // Bad flags.
        (0, 4, base, 4 * P, 0),
        (2, 4, base, 4 * P, 0),
        (2, 8, base, 4 * P, 0),
        (2, 1 << 31, base, 4 * P, 0),
        // Bad numbers.
        (32767, 0, 2 * base, P, 0),
        (0xffff, 0, 2 * base, P, 0),
        (0x1_0001, 0, 2 * base, P, 0),
        (0xffff_0001, 0, 2 * base, P, 0),
        // Not aligned.
        (2, 0, 2 * base + 1, P, 0),
        (2, 0, 2 * base + 0x800, P, 0),
        (2, 0, 2 * base, P + 1, 0),
        (2, 0, 2 * base, 0x800, 0),
        (2, 0, 2 * base, P, 8),
        (2, 0, 2 * base, P, 0x800),
        // Overlaps.
        (1, 0, base, 4 * P, 0),
        (1, 0, base, P, 0),
        (1, 0, base + 3 * P, 4 * P, 0),
        (1, 0, base - 3 * P, 4 * P, 0),
        (1, 0, base - P, 8 * P, 0),
        (1, 0, base + P, P, 0),
        // Beside it.
        (1, 0, base + 4 * P, 4 * P, 4 * P),
        (2, 0, base - 4 * P, 4 * P, 8 * P),
        // The same memory once more.
        (3, 0, 2 * base, 4 * P, 0),
        // Moves: to a free place, over another, over itself, back.
        (3, 0, 2 * base + 8 * P, 4 * P, 0),
        (3, 0, base + 2 * P, 4 * P, 0),
        (3, 0, base - P, 4 * P, 0),
        (3, 0, 2 * base + 6 * P, 4 * P, 0),
        (3, LOG, 2 * base + 16 * P, 4 * P, 0),
        (3, READONLY, 2 * base, 4 * P, 0),
        (3, 0, 2 * base, 4 * P, 0),
        (3, 0, 1 << 40, 4 * P, 0),
        (3, 0, (1 << 40) - 2 * P, 4 * P, 0),
        // Read-only, and what cannot become of it.
        (4, READONLY, 3 * base, P, 0),
        (4, 0, 3 * base, P, 0),
        (4, READONLY | LOG, 3 * base, P, 0),
        (4, READONLY, 3 * base, P, 0),
        (4, READONLY, 3 * base + P, P, 0),
        // Removals: what else is said does not matter.
        (4, 0, 0, 0, 0),
        (4, 0, 0, 0, 0),
        (3, READONLY, 77 * P, 0, 5 * P),
        (2, 4, 0, 0, 0),
        (2, 0, 1, 0, 0),
        (2, 0, 0, 0, 1),
        (2, 0, 0, 0, 0),
        (0x1_0001, 0, 0, 0, 0),
        // What was removed is free.
        (5, 0, base - 4 * P, 4 * P, 0),
        (3, 0, 2 * base, 4 * P, 0),
        (32766, 0, 4 * base, P, 0),
        (32766, 0, 0, 0, 0),
    ];
    for &request in requests {
        set(script, vm, request);
    }
    script.close(vm);
}

fn limits<B: Backend>(script: &mut Script<'_, B>) {
    script.part("limit");
    for bits in [32, 36, 40] {
        let vm = script.quiet_open(crate::SYSTEM, number::CREATE_VM, bits);
        let end = 1_u64 << bits;
        for (guest, size) in [
            (end - P, P),
            (end, P),
            (end - P, 2 * P),
            (end - 2 * P, 2 * P),
            (0, P),
            (u64::MAX - P + 1, P),
            (u64::MAX - P + 1, 2 * P),
            (u64::MAX - 2 * P + 1, P),
            (1 << 52, P),
            (0, 1 << 43),
            (0, u64::MAX - P + 1),
            (0, (1 << 43) - P),
        ] {
            for slot in [0, 1] {
                let region = UserMemoryRegion {
                    slot,
                    flags: 0,
                    guest_phys_addr: guest,
                    memory_size: size,
                    userspace_addr: RAM[0].address(),
                };
                // What is larger than the script's memory is not there on every machine.
                if size <= 2 * P || guest.checked_add(size).is_none_or(|sum| sum > end) {
                    let what = format_args!("SET_USER_MEMORY_REGION of {bits} bits {slot} {guest:#x} {size:#x}");
                    script.write(what, vm, number::SET_USER_MEMORY_REGION, &region);
                }
                let region = UserMemoryRegion { slot, ..UserMemoryRegion::default() };
                script.quiet(vm, number::SET_USER_MEMORY_REGION, crate::handle::address(&region));
            }
        }
        for at in NOWHERE.into_iter().chain([1 << 55, 1 << 63, u64::MAX - P + 1]) {
            let region = UserMemoryRegion { slot: 0, flags: 0, guest_phys_addr: 0, memory_size: P, userspace_addr: at };
            let what = format_args!("SET_USER_MEMORY_REGION of {bits} bits from {at:#x}");
            script.write(what, vm, number::SET_USER_MEMORY_REGION, &region);
        }
        script.close(vm);
    }
}

/// KVM_SET_USER_MEMORY_REGION2.
fn second<B: Backend>(script: &mut Script<'_, B>) {
    script.part("slot2");
    let vm = script.vm();
    let good = UserMemoryRegion2 {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0x4000_0000,
        memory_size: P,
        userspace_addr: RAM[0].address(),
        ..UserMemoryRegion2::default()
    };
    let mut padded = UserMemoryRegion2 { pad1: 1, ..good };
    padded.pad2[13] = 1;
    for (name, region) in [
        ("good", good),
        ("again", good),
        ("with a log", UserMemoryRegion2 { flags: LOG, ..good }),
        ("with guest_memfd", UserMemoryRegion2 { slot: 1, flags: 4, ..good }),
        ("with an unknown flag", UserMemoryRegion2 { slot: 1, flags: 8, ..good }),
        ("over another", UserMemoryRegion2 { slot: 1, ..good }),
        ("with something in the padding", UserMemoryRegion2 { slot: 1, guest_phys_addr: 0x8000_0000, ..padded }),
        ("with a file", UserMemoryRegion2 { slot: 2, guest_phys_addr: 0x9000_0000, guest_memfd: 77, ..good }),
        ("not aligned", UserMemoryRegion2 { slot: 3, guest_phys_addr: 1, ..good }),
        ("removed", UserMemoryRegion2 { slot: 0, ..UserMemoryRegion2::default() }),
        ("removed again", UserMemoryRegion2 { slot: 0, ..UserMemoryRegion2::default() }),
    ] {
        script.write(format_args!("SET_USER_MEMORY_REGION2 {name}"), vm, number::SET_USER_MEMORY_REGION2, &region);
    }
    script.close(vm);
}
