//! keel, installed late: a kernel that runs over the stub puts keel under itself, works, sends it away, and again.
//!
//! The RAM disk is a `newc` archive with the file `keel.img`. Each time the image is copied afresh to the memory that keel is
//! given, as a boot loader would, and its late entry takes over from the stub's vectors. With `beside` among the boot
//! arguments there is a bundle too, `vms.itb`, whose VMs run beside this kernel.

use super::{
    root::{self, ACTIVE, PENDING, SPI, interface, is_set, is_under_keel, over_the_stub, pend_spi, set_up_spi, timers},
    stub::{HVC_STUB_ERR, RESET_VECTORS, SET_VECTORS, answer, call, while_on_cpus},
};
use crate::{
    check, check_eq,
    harness::{self, Case, Check, Under::*, case, eventually, eventually_with_irqs, failed, skip},
    restart,
};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use fdt::Fdt;
use keel_test_kernel::{
    arch, irq,
    machine::Machine,
    time::{self, Timer},
};
use spin::Mutex;

/// The cases.
pub const CASES: &[Case] = &[
    case("late/refused", 1, Stub, refused),
    case("late/in_a_handler", 1, Stub, in_a_handler),
    case("late/again_and_again", 1, Stub, again_and_again),
    case("late/vms_beside", 1, Stub, vms_beside),
];

const KEEL_INSTALL: u64 = 0xc600_0300;
const MAGIC: u64 = u64::from_le_bytes(*b"keelins1");
const EINVAL: u64 = -22_i64 as u64;

/// Bytes of memory for keel, and of the guards around it.
const MEMORY: usize = 8 << 20;
const GUARD: usize = 64 << 10;
/// Bytes of memory for keel with VMs.
const MEMORY_WITH_VMS: usize = 64 << 20;
/// How often keel comes and goes.
const ROUNDS: u64 = 100;

/// What keel is told: the layout is `InstallBlock`'s.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Block([u64; 8]);
const OF_MEMORY: usize = 1;
const OF_SIZE: usize = 2;
const OF_TREE: usize = 3;
const OF_BUNDLE: usize = 4;
const OF_STUB: usize = 6;
const OF_FLAGS: usize = 7;

/// Where everything is.
#[derive(Clone, Copy)]
struct Setup {
    image: &'static [u8],
    memory: usize,
    vectors: u64,
    block: Block,
}

static BLOCK: Mutex<Block> = Mutex::new(Block([0; 8]));
/// Where keel's memory begins, once it has been found.
static MEMORY_AT: AtomicUsize = AtomicUsize::new(0);

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |word| u64::from_le_bytes(word.try_into().expect("8 bytes")))
}

/// Finds the image and memory for it.
fn find(machine: &'static Machine) -> Check<Setup> {
    // SAFETY: `Machine::discover` read the same tree, which nobody has written to since.
    let tree = unsafe { Fdt::from_ptr(machine.tree as *const u8) }.expect("the tree was read before");
    let archive = restart::ramdisk(&tree);
    // SAFETY: RAM, by the tree, and mapped; nobody writes to it.
    let bytes = unsafe { core::slice::from_raw_parts(archive.start as *const u8, archive.len()) };
    let image = restart::file(bytes, "keel.img");
    check!(&image[64..72] == b"KEELLATE", "the image has no late entry");
    let size = word(image, 16) as usize;
    check!(size + machine.tree_size + (2 << 20) < MEMORY, "an image of {size:#x} bytes");
    if MEMORY_AT.load(Relaxed) == 0 {
        let guarded = MEMORY + (4 << 20);
        MEMORY_AT.store(restart::place(machine, &tree, &archive, guarded) + (2 << 20), Relaxed);
    }
    let memory = MEMORY_AT.load(Relaxed);
    let Some(stub) = machine.stub else { return Err(failed(format_args!("no stub in the tree"))) };
    let vectors = memory as u64 + word(image, 72);
    let tree = (memory + size).next_multiple_of(4096) as u64;
    let block = Block([MAGIC, memory as u64, MEMORY as u64, tree, 0, 0, stub.vectors, 1]);
    Ok(Setup { image, memory, vectors, block })
}

impl Setup {
    /// Fills keel's memory: the image, zeros behind it, the tree; all of it in memory and not in caches.
    fn load(&self, machine: &Machine) {
        // SAFETY: free RAM that `find` has found, mapped; the image and the tree are elsewhere.
        unsafe {
            core::ptr::write_bytes(self.memory as *mut u8, 0x5a, MEMORY);
            core::ptr::copy_nonoverlapping(self.image.as_ptr(), self.memory as *mut u8, self.image.len());
            let tree = self.block.0[OF_TREE] as usize;
            core::ptr::copy_nonoverlapping(machine.tree as *const u8, tree as *mut u8, machine.tree_size);
        }
        arch::flush_dcache(self.memory, MEMORY);
    }

    /// Makes the two HVCs on this CPU with another block; x0 and x1.
    fn install_with(&self, block: Block) -> Check<[u64; 2]> {
        let at = {
            let mut shared = BLOCK.lock();
            *shared = block;
            core::ptr::from_ref(&*shared) as usize
        };
        arch::flush_dcache(at, size_of::<Block>());
        check_eq!(answer(&[(0, SET_VECTORS), (1, self.vectors)])?, 0, "SET_VECTORS(late entry)");
        check_eq!(answer(&[(0, RESET_VECTORS)])?, HVC_STUB_ERR, "RESET_VECTORS of the late entry");
        let after = call(0, &[(0, KEEL_INSTALL), (1, at as u64)])?;
        Ok([after.x[0], after.x[1]])
    }

    /// keel comes under this CPU. Bytes that it has free.
    fn install(&self) -> Check<u64> {
        let [result, free] = self.install_with(self.block)?;
        check_eq!(result, 0, "KEEL_INSTALL on CPU {}", arch::cpu());
        check!(is_under_keel(), "keel does not answer on CPU {}", arch::cpu());
        check_eq!(answer(&[(0, SET_VECTORS), (1, 0x4020_0000)])?, HVC_STUB_ERR, "SET_VECTORS of keel");
        Ok(free)
    }

    /// Guards around keel's memory.
    fn guards(&self) -> [usize; 2] {
        [self.memory - GUARD, self.memory + MEMORY]
    }

    fn set_guards(&self) {
        for guard in self.guards() {
            // SAFETY: free RAM: more than keel's memory was asked for.
            unsafe { core::ptr::write_bytes(guard as *mut u8, 0xa5, GUARD) };
        }
    }

    fn check_guards(&self) -> Check {
        for guard in self.guards() {
            for at in (guard..guard + GUARD).step_by(8) {
                // SAFETY: as above.
                let value = unsafe { (at as *const u64).read_volatile() };
                check_eq!(value, 0xa5a5_a5a5_a5a5_a5a5, "the word at {at:#x}, beside keel's memory");
            }
        }
        Ok(())
    }
}

fn leave() -> Check {
    check_eq!(answer(&[(0, RESET_VECTORS)])?, 0, "RESET_VECTORS of keel on CPU {}", arch::cpu());
    over_the_stub("after keel")
}

/// Blocks that make no sense, one after the other with the same copy of the image, which then works.
fn refused(machine: &'static Machine) -> Check {
    let setup = find(machine)?;
    let stub = setup.block.0[OF_STUB];
    setup.load(machine);
    let changed = |change: fn(&mut [u64; 8])| {
        let mut block = setup.block;
        change(&mut block.0);
        block
    };
    let bad: [(&str, Block); 12] = [
        ("another magic", changed(|block| block[0] ^= 1)),
        ("memory that begins behind the image", changed(|block| block[OF_MEMORY] += 4096)),
        ("memory that is misaligned", changed(|block| block[OF_MEMORY] -= 8)),
        ("memory that is too small", changed(|block| block[OF_SIZE] = 4096)),
        ("memory that wraps", changed(|block| block[OF_SIZE] = !0xfff)),
        ("a tree outside", changed(|block| block[OF_TREE] = block[OF_MEMORY] - 4096)),
        ("no tree", changed(|block| block[OF_TREE] = 0)),
        ("a tree in the image", changed(|block| block[OF_TREE] = block[OF_MEMORY] + 8)),
        ("a bundle outside", changed(|block| (block[OF_BUNDLE], block[5]) = (block[OF_MEMORY] + block[OF_SIZE], 4096))),
        (
            "a bundle that is none",
            changed(|block| (block[OF_BUNDLE], block[5]) = (block[OF_MEMORY] + block[OF_SIZE] - 8192, 4096)),
        ),
        ("a stub that is misaligned", changed(|block| block[OF_STUB] += 0x400)),
        ("unknown flags", changed(|block| block[OF_FLAGS] = 2)),
    ];
    for (what, block) in bad {
        let [result, _] = setup.install_with(block)?;
        check_eq!(result, EINVAL, "KEEL_INSTALL, {what}");
        // The late entry is there, and the way back from it.
        check_eq!(answer(&[(0, 5)])?, HVC_STUB_ERR, "call 5 of the late entry, {what}");
        check_eq!(answer(&[(0, SET_VECTORS), (1, stub)])?, 0, "back to the stub, {what}");
        over_the_stub(what)?;
    }
    // No block at all.
    check_eq!(answer(&[(0, SET_VECTORS), (1, setup.vectors)])?, 0, "SET_VECTORS(late entry)");
    for at in [0, 4, 8] {
        check_eq!(answer(&[(0, KEEL_INSTALL), (1, at)])?, EINVAL, "KEEL_INSTALL({at:#x})");
    }
    check_eq!(answer(&[(0, SET_VECTORS), (1, stub)])?, 0, "back to the stub");
    setup.install()?;
    leave()
}

static IN_HANDLER: Mutex<Option<Check>> = Mutex::new(None);

/// keel comes and goes on CPU 0 while it handles an SGI, with an SPI, an SGI and a timer pending.
fn in_a_handler(machine: &'static Machine) -> Check {
    fn come_and_go(machine: &'static Machine) -> Check {
        let setup = find(machine)?;
        setup.load(machine);
        pend_spi();
        irq::send(PENDING, machine.cpus()[0]);
        Timer::Virtual.arm(1);
        eventually("the timer's PPI is pending", || is_set(root::private(0, root::PEND), Timer::Virtual.intid()))?;
        let state = || {
            let pending = [
                is_set(keel_test_kernel::platform::GICD + root::PEND, SPI),
                is_set(root::private(0, root::PEND), PENDING),
                is_set(root::private(0, root::PEND), Timer::Virtual.intid()),
            ];
            let active = is_set(root::private(0, root::ACTIVATE), ACTIVE);
            (pending, active, interface(), timers())
        };
        let before = state();
        setup.install()?;
        check_eq!(state(), before, "pending, active, interface and timers under keel");
        leave()?;
        check_eq!(state(), before, "pending, active, interface and timers without keel");
        // And it stays this time, until the handler has ended.
        setup.load(machine);
        setup.install()?;
        check_eq!(state(), before, "pending, active, interface and timers under keel again");
        Ok(())
    }
    static THE: Mutex<Option<&'static Machine>> = Mutex::new(None);
    fn handler(intid: u32) {
        let machine = *THE.lock();
        match (intid, machine) {
            (ACTIVE, Some(machine)) => *IN_HANDLER.lock() = Some(come_and_go(machine)),
            (intid, _) if intid == Timer::Virtual.intid() => Timer::Virtual.stop(),
            _ => {}
        }
    }
    *THE.lock() = Some(machine);
    set_up_spi(machine.cpus()[0]);
    for intid in [ACTIVE, PENDING, Timer::Virtual.intid()] {
        irq::set_priority(intid, 0, 0xa0);
        irq::enable(intid, 0);
    }
    irq::set_handler(Some(handler));
    irq::send(ACTIVE, machine.cpus()[0]);
    eventually_with_irqs("four interrupts", || irq::total(0) >= 4)?;
    match IN_HANDLER.lock().take() {
        Some(Err(harness::Verdict::Failed)) => return Err(failed(format_args!("{}", harness::reason()))),
        Some(other) => other?,
        None => check!(false, "the handler did not run"),
    }
    arch::with_irqs(|| time::delay(2000));
    let counts = || [ACTIVE, SPI, PENDING, Timer::Virtual.intid()].map(|intid| irq::count(0, intid));
    check_eq!(counts(), [1; 4], "taken: the handled SGI, SPI, SGI, timer");
    check!(irq::spurious(0) == 0, "{} spurious interrupts", irq::spurious(0));
    leave()?;
    pend_spi();
    irq::send(PENDING, machine.cpus()[0]);
    eventually_with_irqs("two more", || irq::total(0) >= 6)?;
    check_eq!(counts(), [1, 2, 2, 1], "taken in all");
    Ok(())
}

/// Whose turn it is: 1000 for each round, and a step for each CPU that comes, works, and goes.
static TURN: AtomicU64 = AtomicU64::new(0);
/// Set when something went wrong anywhere: nobody waits any more.
static WRONG: AtomicU64 = AtomicU64::new(0);

fn wait_for(turn: u64) -> Check {
    arch::with_irqs(|| eventually("the other CPU's turn", || TURN.load(Acquire) >= turn || WRONG.load(Acquire) != 0))?;
    check!(WRONG.load(Acquire) == 0, "another CPU failed");
    Ok(())
}

/// Goes from `end` to `start` together with all others; CPU 0 says when.
fn next_part(end: u64, start: u64) -> Check {
    if arch::cpu() == 0 {
        wait_for(end)?;
        TURN.store(start, Release);
    }
    wait_for(start)
}

/// What each CPU does; CPU 0 loads the image before.
fn rounds(machine: &'static Machine) -> Check {
    let result = each_round(machine);
    if result.is_err() {
        WRONG.store(1, Release);
    }
    result
}

fn each_round(machine: &'static Machine) -> Check {
    const CALL: u32 = 3;
    let setup = find(machine)?;
    let (cpu, cpus) = (arch::cpu() as u64, machine.cpus().len() as u64);
    irq::set_priority(CALL, cpu as usize, 0xa0);
    irq::enable(CALL, cpu as usize);
    let mut free = 0;
    for round in 0..ROUNDS {
        let base = round * 1000;
        wait_for(base + cpu)?;
        if cpu == 0 {
            setup.load(machine);
        }
        let now = setup.install()?;
        if cpu == 0 {
            check!(now > 1 << 20, "{now:#x} bytes are free");
            check!(free == 0 || free == now, "{now:#x} bytes are free in round {round}, {free:#x} in the first");
            free = now;
        }
        let before = irq::count(cpu as usize, CALL);
        TURN.store(base + cpu + 1, Release);
        // All are there: each calls the next one.
        next_part(base + cpus, base + 100)?;
        irq::send(CALL, machine.cpus()[(cpu as usize + 1) % cpus as usize]);
        eventually_with_irqs("an SGI", || irq::count(cpu as usize, CALL) == before + 1)?;
        TURN.fetch_add(1, Release);
        next_part(base + 100 + cpus, base + 300)?;
        // They leave in another order each time.
        wait_for(base + 300 + (cpu + round) % cpus)?;
        leave()?;
        TURN.fetch_add(1, Release);
        next_part(base + 300 + cpus, base + 1000)?;
    }
    Ok(())
}

fn again_and_again(machine: &'static Machine) -> Check {
    let setup = find(machine)?;
    setup.set_guards();
    TURN.store(0, Relaxed);
    WRONG.store(0, Relaxed);
    while_on_cpus(machine, rounds, || rounds(machine))?;
    setup.check_guards()
}

/// Finds the bundle, and more memory.
fn find_with_vms(machine: &'static Machine) -> Check<(Setup, &'static [u8])> {
    let mut setup = find(machine)?;
    // SAFETY: as in `find`.
    let tree = unsafe { Fdt::from_ptr(machine.tree as *const u8) }.expect("the tree was read before");
    let archive = restart::ramdisk(&tree);
    // SAFETY: as in `find`.
    let bytes = unsafe { core::slice::from_raw_parts(archive.start as *const u8, archive.len()) };
    let bundle = restart::file(bytes, "vms.itb");
    let memory = restart::place(machine, &tree, &archive, MEMORY_WITH_VMS);
    let moved = (memory - setup.memory) as u64;
    (setup.memory, setup.vectors) = (memory, setup.vectors.wrapping_add(moved));
    let block = &mut setup.block.0;
    (block[OF_MEMORY], block[OF_SIZE]) = (memory as u64, MEMORY_WITH_VMS as u64);
    block[OF_TREE] = block[OF_TREE].wrapping_add(moved);
    (block[OF_BUNDLE], block[5]) = (memory as u64 + (6 << 20), bundle.len() as u64);
    Ok((setup, bundle))
}

/// keel with a VM beside this kernel: it stays until that has ended.
fn vms_beside(machine: &'static Machine) -> Check {
    fn part(machine: &'static Machine) -> Check {
        let result = with_vms(machine);
        if result.is_err() {
            WRONG.store(1, Release);
        }
        result
    }
    if !machine.has("beside") {
        return skip("needs a bundle (beside)");
    }
    let (setup, bundle) = find_with_vms(machine)?;
    setup.load(machine);
    let at = setup.block.0[OF_BUNDLE] as usize;
    // SAFETY: in keel's memory, which `load` filled, behind the image and the tree.
    unsafe { core::ptr::copy_nonoverlapping(bundle.as_ptr(), at as *mut u8, bundle.len()) };
    arch::flush_dcache(at, bundle.len());
    harness::noise();
    TURN.store(0, Relaxed);
    WRONG.store(0, Relaxed);
    while_on_cpus(machine, part, || part(machine))
}

fn with_vms(machine: &'static Machine) -> Check {
    let (setup, _) = find_with_vms(machine)?;
    let (cpu, cpus) = (arch::cpu() as u64, machine.cpus().len() as u64);
    wait_for(cpu)?;
    setup.install()?;
    TURN.store(cpu + 1, Release);
    next_part(cpus, 1000)?;
    // The first CPU stays as long as it has to; the others follow it.
    wait_for(1000 + cpu)?;
    let mut refusals = 0;
    while answer(&[(0, RESET_VECTORS)])? == HVC_STUB_ERR {
        refusals += 1;
        time::delay(1000);
    }
    check!(refusals > 0 || cpu != 0, "keel left although a VM was there");
    over_the_stub("after keel and its VMs")?;
    TURN.fetch_add(1, Release);
    Ok(())
}
