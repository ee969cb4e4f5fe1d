//! Logs of dirty pages: read, cleared, of slots that have none.

use super::{
    FILL, NOWHERE, RAM, Script,
    machine::{Controller, DONE, Machine},
};
use crate::{
    Backend,
    handle::{address, address_mut},
    number,
    page::PAGE,
    run::Exit,
    uapi::{ClearDirtyLog, DirtyLog, EnableCap, UserMemoryRegion, cap, memory, reg},
};

/// Where the memory with a log is, and how many pages.
const DATA: u64 = 0x8000_0000;
const PAGES: usize = 130;
/// Behind the program's.
const FIRST: usize = 8;

/// `str x0, [x1]`
const STORE: u32 = 0xf900_0020;

pub(super) fn run<B: Backend>(script: &mut Script<'_, B>) {
    script.part("log");
    let machine = script.machine(Controller::Own);
    errors(script, &machine);
    writes(script, &machine, false);
    script.drop_machine(&machine);
    script.part("log2");
    for value in [1, 3] {
        let machine = script.machine(Controller::Own);
        let argument =
            EnableCap { cap: cap::MANUAL_DIRTY_LOG_PROTECT2, args: [value, 0, 0, 0], ..EnableCap::default() };
        script.write(format_args!("ENABLE_CAP 168 of {value}"), machine.vm, number::ENABLE_CAP, &argument);
        writes(script, &machine, true);
        script.drop_machine(&machine);
    }
}

fn slot<B: Backend>(script: &mut Script<'_, B>, vm: u64, flags: u32, pages: usize) {
    let region = UserMemoryRegion {
        slot: 1,
        flags,
        guest_phys_addr: DATA,
        memory_size: (pages * PAGE) as u64,
        userspace_addr: RAM[FIRST].address(),
    };
    script.write(
        format_args!("SET_USER_MEMORY_REGION {flags} of {pages} pages"),
        vm,
        number::SET_USER_MEMORY_REGION,
        &region,
    );
}

/// KVM_GET_DIRTY_LOG.
fn log<B: Backend>(script: &mut Script<'_, B>, what: &str, vm: u64, slot: u32) {
    let mut bitmap = [FILL; 4];
    let argument = DirtyLog { slot, padding1: 0, dirty_bitmap: address_mut(&mut bitmap) };
    let answer = script.quiet(vm, number::GET_DIRTY_LOG, address(&argument));
    script.line(format_args!("{what} GET_DIRTY_LOG {slot:#x}"), format_args!("{answer}{}", super::Words(&bitmap)));
}

fn clear<B: Backend>(script: &mut Script<'_, B>, vm: u64, slot: u32, first_page: u64, num_pages: u32, bits: u64) {
    let bitmap = [bits; 4];
    let mut argument = ClearDirtyLog { slot, num_pages, first_page, dirty_bitmap: address(&bitmap) };
    let answer = script.quiet(vm, number::CLEAR_DIRTY_LOG, address_mut(&mut argument));
    script.line(format_args!("CLEAR_DIRTY_LOG {slot:#x} {first_page} {num_pages} {bits:#x}"), format_args!("{answer}"));
}

fn errors<B: Backend>(script: &mut Script<'_, B>, machine: &Machine) {
    let vm = machine.vm;
    // A slot without a log, none, and no number of one.
    for slot in [0, 1, 32766, 32767, 0xffff, 0x1_0000] {
        log(script, "early", vm, slot);
        clear(script, vm, slot, 0, 64, 0);
    }
    slot(script, vm, 0, PAGES);
    log(script, "no flag", vm, 1);
    slot(script, vm, memory::LOG_DIRTY_PAGES, PAGES);
    let argument = DirtyLog { slot: 1, padding1: 0, dirty_bitmap: NOWHERE[0] };
    script.write(format_args!("GET_DIRTY_LOG to nowhere"), vm, number::GET_DIRTY_LOG, &argument);
    slot(script, vm, 0, PAGES);
    slot(script, vm, 0, 0);
    log(script, "removed", vm, 1);
}

fn writes<B: Backend>(script: &mut Script<'_, B>, machine: &Machine, manual: bool) {
    let vm = machine.vm;
    slot(script, vm, memory::LOG_DIRTY_PAGES, PAGES);
    log(script, "fresh", vm, 1);
    if manual {
        clear(script, vm, 1, 0, PAGES as u32, u64::MAX);
        log(script, "cleared", vm, 1);
    }
    for round in 0..3_u64 {
        for page in [0, 1, 63, 64, 100, 129, 100] {
            script.load(machine, &[STORE]);
            let at = DATA + page * PAGE as u64 + 8 * round;
            script.quiet_reg(machine.vcpu, reg::x(1), at);
            let exit = script.go(format_args!("store to page {page}, round {round}"), machine);
            debug_assert!(matches!(exit, Exit::MmioWrite { address: DONE, .. } | Exit::Other(_)));
            let written = RAM[FIRST + page as usize].read(8 * round as usize, 8);
            script.line(format_args!("what was stored to page {page}, round {round}"), format_args!("{written:#x}"));
        }
        log(script, "written", vm, 1);
        log(script, "again", vm, 1);
        if manual {
            // Some, the rest, bits beyond the end.
            clear(script, vm, 1, 0, 64, 1 | 1 << 63);
            log(script, "partly cleared", vm, 1);
            clear(script, vm, 1, 64, 64, 1);
            log(script, "more cleared", vm, 1);
            clear(script, vm, 1, 128, 2, u64::MAX);
            log(script, "the end cleared", vm, 1);
            clear(script, vm, 1, 0, PAGES as u32, u64::MAX);
            log(script, "all cleared", vm, 1);
        }
    }
    if manual {
        for (first, count) in [
            (1, 64),
            (63, 64),
            (0, 1),
            (0, 63),
            (0, 129),
            (64, 66),
            (128, 1),
            (128, 64),
            (192, 64),
            (0, 0),
            (0, 192),
            (u64::MAX - 63, 64),
        ] {
            clear(script, vm, 1, first, count, 0);
        }
        let mut argument = ClearDirtyLog { slot: 1, num_pages: 64, first_page: 0, dirty_bitmap: NOWHERE[0] };
        let answer = script.quiet(vm, number::CLEAR_DIRTY_LOG, address_mut(&mut argument));
        script.line(format_args!("CLEAR_DIRTY_LOG from nowhere"), format_args!("{answer}"));
    } else {
        clear(script, vm, 1, 0, 64, 0);
    }
    // What the caller itself writes is in no log.
    RAM[FIRST].write(0, 8, 1);
    log(script, "written by the caller", vm, 1);
    slot(script, vm, 0, PAGES);
    log(script, "no flag", vm, 1);
    slot(script, vm, memory::LOG_DIRTY_PAGES, PAGES);
    log(script, "a new log", vm, 1);
    slot(script, vm, 0, 0);
    log(script, "removed", vm, 1);
}
