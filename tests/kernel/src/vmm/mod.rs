//! A machine monitor: the root runs Debian as a guest of its own, copies it while it works, and lets the copy go on.
//!
//! The RAM disk is a `newc` archive with the files `Image`, an arm64 kernel, and `initramfs`, user space with a shell and
//! the program `work`. The machine has two vCPUs, each on a CPU of the root's, a vGICv3 and a PL011 that is emulated here.
//! What is typed at its shell, and when it is copied, is in [`script`]. What the guest writes is printed, each line behind
//! `debian: `.
//!
//! What is *saved* is all registers of all vCPUs, the interrupt controller, the UART and the memory; then the machine is
//! closed, which must give keel back all memory that the machine had cost, its memory is filled with a pattern, and another
//! machine is made from what was saved. What is *migrated* is the same, but memory is copied while the guest runs, and what
//! it writes meanwhile again, by the dirty log; when the machine has stopped, its memory and the copy have to be the same.

mod heap;
mod machine;
mod memory;
mod script;
pub mod state;
mod tree;
mod uart;

use self::{
    machine::{Machine, Running},
    memory::Piece,
    uart::Uart,
};
use crate::{
    cases::well,
    check, check_eq,
    harness::{Check, Verdict, failed, reason, skip},
    restart,
};
use alloc::{sync::Arc, vec, vec::Vec};
use core::mem;
use fdt::Fdt;
use keel_kvm::{
    Backend, Hypercall, SYSTEM, Vm, number,
    page::PAGE,
    uapi::{cap, memory as flags, reg},
};
use keel_test_kernel::{arch, irq, machine::Machine as Board, platform, println, time};

pub use heap::init;

/// The guest's machine: vCPUs, and where things are.
const CPUS: usize = 2;
const RAM: u64 = 0x4000_0000;
const GICD: u64 = 0x0800_0000;
const GICR: u64 = 0x080a_0000;
const UART: u64 = 0x0900_0000;
const UART_SPI: u32 = 1;
const CLOCK_HZ: u32 = 24_000_000;
/// A page for structures of stolen time.
const PVTIME: u64 = 0x090b_0000;

/// Bytes of its memory.
const MEMORY: usize = 160 << 20;
/// The unit in which a kernel is placed (Linux, Documentation/arch/arm64/booting).
const ALIGNMENT: usize = 2 << 20;
/// How long a text of the guest's may take, in microseconds.
const PATIENCE_US: u64 = 120_000_000;
/// How often the monitor looks, in microseconds.
const LOOK_US: u64 = 2000;
/// So few dirty pages are copied while the machine stands.
const FEW: usize = 600;
/// Pages that are cleared in a log at once, a multiple of 64.
const CLEARED: usize = 4096;
/// KVM_REG_ARM_TIMER_CNT.
const COUNTER: u64 = reg::system(3, 3, 14, 3, 2);

/// How pages are found that the guest has written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Log {
    /// KVM_GET_DIRTY_LOG forgets them.
    Automatic,
    /// KVM_CLEAR_DIRTY_LOG does; the argument of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, of which bit 1 has logs begin full.
    Manual(u64),
}

/// The monitor.
struct Monitor {
    board: &'static Board,
    /// The guest's memory, and as much for its copy.
    memory: [Piece; 2],
    copy: [Piece; 2],
    running: Option<Arc<Running>>,
    /// keel's free memory without a machine.
    free: i64,
}

fn free() -> i64 {
    Hypercall.call(SYSTEM, number::FREE_MEMORY, 0)
}

/// Sleeps for so many microseconds.
fn sleep(us: u64) {
    let deadline = time::now() + time::micros(us);
    while time::now() < deadline {
        time::Timer::Virtual.set_compare(deadline);
        time::Timer::Virtual.set_control(time::ENABLE);
        arch::wfi();
    }
    time::Timer::Virtual.stop();
}

impl Monitor {
    /// Makes the machine and lets it boot.
    fn boot(board: &'static Board) -> Check<Self> {
        if board.cpus().len() <= CPUS {
            return skip("needs 3 CPUs");
        }
        // SAFETY: `Machine::discover` read the same tree, which nobody has written to since.
        let host = unsafe { Fdt::from_ptr(board.tree as *const u8) }
            .map_err(|error| failed(format_args!("the device tree: {error:?}")))?;
        let archive = restart::ramdisk(&host);
        // SAFETY: RAM, by the tree, and mapped; nobody writes to it.
        let files = unsafe { core::slice::from_raw_parts(archive.start as *const u8, archive.len()) };
        let (image, initramfs) = (restart::file(files, "Image"), restart::file(files, "initramfs"));
        let base = restart::place(board, &host, &archive, 2 * (MEMORY + ALIGNMENT));
        let [memory, copy] = [base, base + MEMORY + ALIGNMENT].map(|base| {
            // SAFETY: free RAM, which `place` found, and mapped.
            unsafe { [Piece::new(RAM, base, MEMORY), Piece::new(PVTIME, base + MEMORY, PAGE)] }
        });

        // The tree, the kernel, the RAM disk, each at a boundary.
        let (offset, size) = restart::placement(image);
        let initrd = ALIGNMENT + (offset + size).next_multiple_of(ALIGNMENT);
        check!(initrd + initramfs.len() <= MEMORY, "the files do not fit into the guest's memory");
        let initrd_at = RAM + initrd as u64;
        let initrd_ends = initrd_at + initramfs.len() as u64;
        let tree = tree::build(MEMORY as u64, "console=ttyAMA0 quiet", initrd_at..initrd_ends, time::now());
        for (offset, bytes) in [(0, &tree[..]), (ALIGNMENT + offset, image), (initrd, initramfs)] {
            memory[0].write(offset, bytes);
        }
        memory.iter().for_each(Piece::clean);

        irq::enable(platform::VIRTUAL_TIMER_INTID, 0);
        let free = free();
        let machine = Machine::new(&memory)?;
        machine.boot(RAM + (ALIGNMENT + offset) as u64, RAM)?;
        println!("monitor: {} MiB, tree of {} bytes, keel has {free} bytes", MEMORY >> 20, tree.len());
        let running = Some(Running::start(board, machine, Uart::default())?);
        Ok(Self { board, memory, copy, running, free })
    }

    fn running(&self) -> Check<&Arc<Running>> {
        self.running.as_ref().ok_or_else(|| failed(format_args!("no machine runs")))
    }

    /// Waits for a text behind the last one.
    fn wait(&self, text: &str) -> Check {
        let running = self.running()?;
        let deadline = time::now() + time::micros(PATIENCE_US);
        while !running.with_uart(|uart| uart.find(text)) {
            if let Some(end) = running.ended() {
                let kind = end?;
                return Err(failed(format_args!("system event {kind} instead of `{text}`")));
            }
            if time::now() > deadline {
                let line = running.with_uart(|uart| heapless::String::<80>::try_from(uart.rest()).unwrap_or_default());
                return Err(failed(format_args!("no `{text}`; the line is `{line}`")));
            }
            sleep(LOOK_US);
        }
        Ok(())
    }

    fn enter(&self, text: &str) -> Check {
        self.running()?.with_uart(|uart| uart.enter(text));
        Ok(())
    }

    /// Does not look at what was written before.
    fn forget(&self) -> Check {
        self.running()?.with_uart(Uart::forget);
        Ok(())
    }

    /// Stops the machine, which has not ended.
    fn stop(&mut self) -> Check<(Machine, Uart)> {
        let running = self.running.take().ok_or_else(|| failed(format_args!("no machine runs")))?;
        running.stop(self.board)
    }

    /// Stops the machine, copies it, destroys it, and lets the copy go on.
    fn save_and_restore(&mut self, when: &str) -> Check {
        let (machine, uart) = self.stop()?;
        let state = state::save(&machine.vcpus, &machine.gic)?;
        for (copy, memory) in self.copy.iter().zip(&self.memory) {
            copy.copy(memory);
        }
        self.replace(machine, uart, &state)?;
        println!("monitor: saved and restored {when}");
        Ok(())
    }

    /// The same, with memory copied while the machine runs.
    fn migrate(&mut self, log: Log) -> Check {
        let running = self.running()?.clone();
        let vm = &running.machine.vm;
        let mut is_full = false;
        if let Log::Manual(argument) = log {
            well("KVM_ENABLE_CAP", vm.enable_cap(cap::MANUAL_DIRTY_LOG_PROTECT2, [argument, 0, 0, 0]))?;
            is_full = argument & 2 != 0;
        }
        for (slot, piece) in (0..).zip(&self.memory) {
            let result = vm.set_memory(slot, flags::LOG_DIRTY_PAGES, piece.guest, piece.pages);
            well("KVM_SET_USER_MEMORY_REGION", result)?;
        }
        if !is_full {
            self.copy.iter().zip(&self.memory).for_each(|(copy, memory)| copy.copy(memory));
        }
        let mut counts = Vec::new();
        loop {
            let count = self.copy_dirty(vm, log)?;
            counts.push(count);
            if count <= FEW || counts.len() >= 6 {
                break;
            }
        }
        drop(running);
        let (machine, uart) = self.stop()?;
        let state = state::save(&machine.vcpus, &machine.gic)?;
        let last = self.copy_dirty(&machine.vm, log)?;
        for (memory, copy) in self.memory.iter().zip(&self.copy) {
            memory.check_same(copy)?;
        }
        self.replace(machine, uart, &state)?;
        println!("monitor: migrated with {log:?}: dirty pages {counts:?}, {last} at the end");
        check!(counts.iter().sum::<usize>() > 0, "the guest has written to no page");
        Ok(())
    }

    /// Copies the pages that were written to since the last time; how many.
    fn copy_dirty(&self, vm: &Vm<Hypercall>, log: Log) -> Check<usize> {
        let mut count = 0;
        for ((slot, memory), copy) in (0..).zip(&self.memory).zip(&self.copy) {
            let pages = memory.pages.len();
            let mut bitmap = vec![0_u64; pages.div_ceil(64)];
            well("KVM_GET_DIRTY_LOG", vm.dirty_log(slot, pages, &mut bitmap))?;
            for (first, words) in (0..pages).step_by(CLEARED).zip(bitmap.chunks(CLEARED / 64)) {
                if matches!(log, Log::Manual(_)) {
                    let here = CLEARED.min(pages - first) as u32;
                    well("KVM_CLEAR_DIRTY_LOG", vm.clear_dirty_log(slot, first as u64, here, words))?;
                }
                // A page that is written to from here on is in the next log.
                for (page, word) in (first..).step_by(64).zip(words) {
                    for page in (0..64).filter(|bit| word >> bit & 1 != 0).map(|bit| page + bit) {
                        copy.copy_page(memory, page);
                        count += 1;
                    }
                }
            }
        }
        Ok(count)
    }

    /// Destroys the machine and its memory, and lets the copy go on.
    fn replace(&mut self, machine: Machine, uart: Uart, state: &state::State) -> Check {
        drop(machine);
        check_eq!(free(), self.free, "keel's free memory without the machine");
        self.memory.iter().for_each(Piece::poison);
        self.copy.iter().for_each(Piece::clean);
        mem::swap(&mut self.memory, &mut self.copy);
        let machine = Machine::new(&self.memory)?;
        state::restore(state, &machine.vcpus, &machine.gic)?;
        let saved = state.vcpus.first().and_then(|vcpu| vcpu.registers.iter().find(|(id, _)| *id == COUNTER));
        let (_, bytes) = saved.ok_or_else(|| failed(format_args!("the counter is in no list")))?;
        let saved = u128::from_le_bytes(*bytes) as u64;
        let now = well("KVM_GET_ONE_REG", machine.vcpus[0].register(COUNTER))?;
        check!((saved..saved + time::frequency()).contains(&now), "the counter was {saved}, is {now}");
        self.running = Some(Running::start(self.board, machine, uart)?);
        Ok(())
    }

    /// The machine has ended with a system event.
    fn end(&mut self, wanted: u32) -> Check {
        let deadline = time::now() + time::micros(PATIENCE_US);
        let kind = loop {
            if let Some(end) = self.running()?.ended() {
                break end?;
            }
            check!(time::now() < deadline, "no system event");
            sleep(LOOK_US);
        };
        check_eq!(kind, wanted, "the system event");
        drop(self.stop()?);
        check_eq!(free(), self.free, "keel's free memory at the end");
        Ok(())
    }
}

/// `NAME` of a script.
pub fn run(board: &'static Board, argument: &str) {
    let result = script::find(argument)
        .ok_or_else(|| failed(format_args!("monitor={argument}: there is no such script")))
        .and_then(|script| script(&mut Monitor::boot(board)?));
    match result {
        Ok(()) => println!("1 passed, 0 failed, 0 skipped"),
        Err(Verdict::Failed) => println!("monitor: FAILED: {}\n0 passed, 1 failed, 0 skipped", reason()),
        Err(Verdict::Skipped(reason)) => println!("monitor: skipped: {reason}\n0 passed, 0 failed, 1 skipped"),
    }
}
