//! The interrupt translation service and LPIs (IHI 0069 chapters 5 and 6), as far as the cases drive them.
//!
//! Tables and queue are in the last 4 MiB of RAM, where nothing of the program is. arm-gic knows no ITS, so this is ours:
//! plain stores, and commands as four words each.

use crate::{
    arch,
    machine::Machine,
    mmio::{read32, read64, write32, write64},
    platform::{GICR, GICR_STRIDE, ITS, MAX_CPUS},
    time,
};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// The first LPI.
pub const LPI: u32 = 8192;

/// GITS_CTLR.
pub const CTLR: usize = ITS;
/// GITS_IIDR.
pub const IIDR: usize = ITS + 0x4;
/// GITS_TYPER.
pub const TYPER: usize = ITS + 0x8;
/// GITS_CBASER.
pub const CBASER: usize = ITS + 0x80;
/// GITS_CWRITER.
pub const CWRITER: usize = ITS + 0x88;
/// GITS_CREADR.
pub const CREADR: usize = ITS + 0x90;
/// GITS_BASER0.
pub const BASER: usize = ITS + 0x100;
/// GITS_TRANSLATER.
pub const TRANSLATER: usize = ITS + 0x1_0040;

/// GICR_CTLR.
pub const GICR_CTLR: usize = 0;
/// GICR_PROPBASER.
pub const PROPBASER: usize = 0x70;
/// GICR_PENDBASER.
pub const PENDBASER: usize = 0x78;
/// GICR_INVLPIR.
pub const INVLPIR: usize = 0xa0;
/// GICR_INVALLR.
pub const INVALLR: usize = 0xb0;

/// Valid, of a command, a GITS_BASER, or GITS_CBASER.
pub const VALID: u64 = 1 << 63;
/// GITS_BASER.Indirect.
const INDIRECT: u64 = 1 << 62;
/// Inner shareable, inner write-back, as each of the registers has them: where the first is 7 bits, where they are 59.
const SHAREABLE: u64 = 1 << 10;
const REDISTRIBUTOR_CACHE: u64 = 7 << 7;
const ITS_CACHE: u64 = 7 << 59;
/// GITS_BASER.Page_Size: 64 KiB.
const PAGE_64K: u64 = 2 << 8;

/// Bytes of a command.
pub const COMMAND_BYTES: usize = 32;
/// Bytes of the largest queue.
pub const QUEUE_MAX: usize = 1 << 20;

// The area, from its start.
const QUEUE: usize = 0;
const DEVICES: usize = QUEUE + QUEUE_MAX;
const DEVICES_2: usize = DEVICES + 0x1_0000;
const COLLECTIONS: usize = DEVICES_2 + 0x1_0000;
const CONFIG: usize = COLLECTIONS + 0x1_0000;
const PENDING: usize = CONFIG + 0x1_0000;
const ITTS: usize = PENDING + MAX_CPUS * 0x1_0000;
const ITT_BYTES: usize = 0x4_0000;
const ITT_COUNT: usize = 4;
const AREA: usize = 4 << 20;
const _: () = assert!(ITTS + ITT_COUNT * ITT_BYTES <= AREA);

static BASE: AtomicUsize = AtomicUsize::new(0);
static QUEUE_BYTES: AtomicUsize = AtomicUsize::new(0);
static STARTED: AtomicBool = AtomicBool::new(false);

/// The commands.
pub mod command {
    use super::VALID;

    /// MAPD: device, bits of its EventIDs, its table.
    pub fn mapd(device: u32, bits: u32, itt: usize) -> [u64; 4] {
        [u64::from(device) << 32 | 0x08, u64::from(bits) - 1, itt as u64 | VALID, 0]
    }
    /// MAPD that unmaps.
    pub fn unmapd(device: u32) -> [u64; 4] {
        [u64::from(device) << 32 | 0x08, 0, 0, 0]
    }
    /// MAPC: collection, CPU.
    pub fn mapc(collection: u16, cpu: usize) -> [u64; 4] {
        [0x09, 0, (cpu as u64) << 16 | u64::from(collection) | VALID, 0]
    }
    /// MAPC that unmaps.
    pub fn unmapc(collection: u16) -> [u64; 4] {
        [0x09, 0, collection.into(), 0]
    }
    /// MAPTI: device, event, LPI, collection.
    pub fn mapti(device: u32, event: u32, lpi: u32, collection: u16) -> [u64; 4] {
        [u64::from(device) << 32 | 0x0a, u64::from(lpi) << 32 | u64::from(event), collection.into(), 0]
    }
    /// MAPI: device, event which is the LPI, collection.
    pub fn mapi(device: u32, event: u32, collection: u16) -> [u64; 4] {
        [u64::from(device) << 32 | 0x0b, event.into(), collection.into(), 0]
    }
    /// MOVI: device, event, collection.
    pub fn movi(device: u32, event: u32, collection: u16) -> [u64; 4] {
        [u64::from(device) << 32 | 0x01, event.into(), collection.into(), 0]
    }
    /// MOVALL: from one CPU to another.
    pub fn movall(from: usize, to: usize) -> [u64; 4] {
        [0x0e, 0, (from as u64) << 16, (to as u64) << 16]
    }
    /// INT: device, event.
    pub fn int(device: u32, event: u32) -> [u64; 4] {
        [u64::from(device) << 32 | 0x03, event.into(), 0, 0]
    }
    /// CLEAR: device, event.
    pub fn clear(device: u32, event: u32) -> [u64; 4] {
        [u64::from(device) << 32 | 0x04, event.into(), 0, 0]
    }
    /// DISCARD: device, event.
    pub fn discard(device: u32, event: u32) -> [u64; 4] {
        [u64::from(device) << 32 | 0x0f, event.into(), 0, 0]
    }
    /// INV: device, event.
    pub fn inv(device: u32, event: u32) -> [u64; 4] {
        [u64::from(device) << 32 | 0x0c, event.into(), 0, 0]
    }
    /// INVALL: collection.
    pub fn invall(collection: u16) -> [u64; 4] {
        [0x0d, 0, collection.into(), 0]
    }
    /// SYNC: CPU.
    pub fn sync(cpu: usize) -> [u64; 4] {
        [0x05, 0, (cpu as u64) << 16, 0]
    }
}

/// How the ITS is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Pages of 4 KiB that the queue has, at most 256.
    pub queue_pages: usize,
    /// Two levels of device tables, of which the first page of the second is there.
    pub indirect: bool,
}

/// What most cases want.
pub const USUAL: Setup = Setup { queue_pages: 16, indirect: false };

fn store(offset: usize, value: u64) {
    // SAFETY: inside the area, which is RAM, mapped, aligned, and nothing of the program's.
    unsafe { ((BASE.load(Relaxed) + offset) as *mut u64).write_volatile(value) };
}

fn clear(offset: usize, bytes: usize) {
    (0..bytes / 8).for_each(|word| store(offset + 8 * word, 0));
}

fn base() -> usize {
    BASE.load(Relaxed)
}

/// Address of the first page of the device table's second level.
pub fn second_level() -> usize {
    base() + DEVICES_2
}

/// Address of interrupt translation table `number`, of 4; each has room for 16384 events.
pub fn itt(number: usize) -> usize {
    assert!(number < ITT_COUNT);
    base() + ITTS + number * ITT_BYTES
}

/// GITS_BASER's value for a table at `address` of one page.
pub fn baser(address: usize) -> u64 {
    VALID | ITS_CACHE | SHAREABLE | PAGE_64K | address as u64
}

/// Address of a CPU's redistributor register.
pub fn gicr(cpu: usize, register: usize) -> usize {
    GICR + cpu * GICR_STRIDE + register
}

/// Waits until the ITS has carried out what is in its queue; false if it does not.
#[must_use]
pub fn finished() -> bool {
    time::wait_until(|| read64(CREADR) == read64(CWRITER))
}

/// Adds commands to the queue, and lets the ITS know when they are all there.
pub fn push(commands: impl IntoIterator<Item = [u64; 4]>) {
    let mut at = read64(CWRITER) as usize;
    for command in commands {
        command.into_iter().enumerate().for_each(|(n, word)| store(QUEUE + at + 8 * n, word));
        at = (at + COMMAND_BYTES) % QUEUE_BYTES.load(Relaxed);
    }
    arch::dsb();
    write64(CWRITER, at as u64);
}

/// As [`push`], and waits for the end; false if it does not come.
#[must_use]
pub fn run(commands: impl IntoIterator<Item = [u64; 4]>) -> bool {
    push(commands);
    finished()
}

/// Sets an LPI's configuration in the table. The ITS need not see it before it is invalidated.
pub fn configure(lpi: u32, priority: u8, enabled: bool) {
    // SAFETY: as in `store`.
    unsafe {
        ((base() + CONFIG + (lpi - LPI) as usize) as *mut u8).write_volatile(priority & 0xfc | 2 | u8::from(enabled))
    };
    arch::dsb();
}

/// Sets an LPI's bit in the pending table of a CPU.
pub fn set_in_pending_table(cpu: usize, lpi: u32) {
    let offset = PENDING + cpu * 0x1_0000 + lpi as usize / 64 * 8;
    store(offset, 1 << (lpi % 64));
    arch::dsb();
}

/// Sets the tables of LPIs of a CPU, which has them disabled.
pub fn give_tables(cpu: usize, zero: bool) {
    write64(gicr(cpu, PROPBASER), (base() + CONFIG) as u64 | SHAREABLE | REDISTRIBUTOR_CACHE | 15);
    let pending = base() + PENDING + cpu * 0x1_0000;
    write64(gicr(cpu, PENDBASER), pending as u64 | SHAREABLE | REDISTRIBUTOR_CACHE | u64::from(zero) << 62);
}

/// Enables or disables the LPIs of a CPU.
pub fn enable(cpu: usize, enable: bool) {
    arch::dsb();
    write32(gicr(cpu, GICR_CTLR), u32::from(enable));
    arch::dsb();
}

/// Disables the ITS and LPIs, if they are not.
pub fn stop(machine: &Machine) {
    if STARTED.swap(false, Relaxed) {
        disable();
        (0..machine.cpus().len()).for_each(|cpu| enable(cpu, false));
    }
}

/// Disables the ITS.
pub fn disable() {
    write32(CTLR, 0);
    // A machine whose ITS never comes to rest fails in what follows.
    let _ = time::wait_until(|| read32(CTLR) >> 31 == 1);
}

/// Starts from nothing: all tables empty, LPIs enabled on every CPU, collection n on CPU n.
pub fn start(machine: &Machine, setup: Setup) -> bool {
    BASE.store((machine.memory_base + machine.memory_size - AREA) & !0xffff, Relaxed);
    QUEUE_BYTES.store(setup.queue_pages * 0x1000, Relaxed);
    STARTED.store(true, Relaxed);
    disable();
    clear(DEVICES, ITTS - DEVICES);
    for number in 0..ITT_COUNT {
        // Small tables, and what MAPI needs of a large one.
        clear(ITTS + number * ITT_BYTES, 0x1000);
        clear(ITTS + number * ITT_BYTES + LPI as usize * 8, 0x1_0000);
    }
    for cpu in 0..machine.cpus().len() {
        enable(cpu, false);
        clear(PENDING + cpu * 0x1_0000, 0x2000);
        give_tables(cpu, true);
        enable(cpu, true);
    }
    // KVM forgets what is mapped when a table goes.
    write64(BASER, 0);
    write64(BASER + 8, 0);
    if setup.indirect {
        store(DEVICES, second_level() as u64 | VALID);
        write64(BASER, baser(base() + DEVICES) | INDIRECT);
    } else {
        write64(BASER, baser(base() + DEVICES));
    }
    write64(BASER + 8, baser(base() + COLLECTIONS));
    write64(CBASER, VALID | ITS_CACHE | SHAREABLE | (base() + QUEUE) as u64 | (setup.queue_pages as u64 - 1));
    write64(CWRITER, 0);
    arch::dsb();
    write32(CTLR, 1);
    run((0..machine.cpus().len()).map(|cpu| command::mapc(cpu as u16, cpu)))
}

/// Fills the queue with one command, for who lets the ITS know by himself; gives its size in bytes.
pub fn fill(command: [u64; 4]) -> usize {
    let bytes = QUEUE_BYTES.load(Relaxed);
    for at in (0..bytes).step_by(COMMAND_BYTES) {
        command.into_iter().enumerate().for_each(|(n, word)| store(QUEUE + at + 8 * n, word));
    }
    arch::dsb();
    bytes
}

/// Address of the queue.
pub fn queue() -> usize {
    base() + QUEUE
}
