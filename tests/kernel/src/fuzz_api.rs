//! A hostile root: random calls of KVM's API, on all CPUs at once.
//!
//! Calls are near enough to good ones to get somewhere: handles that are mostly open, numbers that are mostly known,
//! structures with addresses, ids and sizes that mean something. What is kept from chance is the root's own memory: whatever is an
//! address is in an arena, or nowhere. Guests run whatever is in the arena. When all is over every handle is closed, and
//! keel has to have as much memory as before.

use crate::fuzz::Random;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering::SeqCst};
use keel_kvm::{
    Backend, Hypercall, SYSTEM, number,
    page::{PAGE, Page},
};
use keel_test_kernel::{
    arch, irq,
    machine::{MPIDR_AFFINITY, Machine},
    mmio,
    platform::GICD,
    println, smp, time,
};

/// Memory for guests, structures and pages of `struct kvm_run`.
const PAGES: usize = 256;
static ARENA: [Page; PAGES] = [const { Page::ZERO }; PAGES];

static SEED: AtomicU64 = AtomicU64::new(0);
static CALLS: AtomicU64 = AtomicU64::new(0);
/// Calls that were answered with no error, and runs among them.
static GOOD: AtomicU64 = AtomicU64::new(0);
static RUNS: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);

/// Shared interrupts that no device of `virt` has.
const EVENTS: [u32; 5] = [90, 91, 92, 93, 94];

/// More than a root can have.
const HANDLES: u64 = 5000;

const NUMBERS: &[u32] = &[
    number::GET_API_VERSION,
    number::CREATE_VM,
    number::CREATE_VM,
    number::CHECK_EXTENSION,
    number::GET_VCPU_MMAP_SIZE,
    number::CREATE_VCPU,
    number::CREATE_VCPU,
    number::CREATE_VCPU,
    number::GET_DIRTY_LOG,
    number::SET_USER_MEMORY_REGION,
    number::SET_USER_MEMORY_REGION,
    number::SET_USER_MEMORY_REGION,
    number::SET_USER_MEMORY_REGION2,
    number::CREATE_IRQCHIP,
    number::IRQ_LINE,
    number::IRQ_LINE,
    number::IRQ_LINE_STATUS,
    number::SET_GSI_ROUTING,
    number::IRQFD,
    number::IRQFD,
    number::IOEVENTFD,
    number::IOEVENTFD,
    number::ENABLE_CAP,
    number::SIGNAL_MSI,
    number::ARM_SET_DEVICE_ADDR,
    number::ARM_PREFERRED_TARGET,
    number::ARM_MTE_COPY_TAGS,
    number::ARM_SET_COUNTER_OFFSET,
    number::ARM_GET_REG_WRITABLE_MASKS,
    number::CLEAR_DIRTY_LOG,
    number::CREATE_DEVICE,
    number::CREATE_DEVICE,
    number::SET_DEVICE_ATTR,
    number::SET_DEVICE_ATTR,
    number::SET_DEVICE_ATTR,
    number::GET_DEVICE_ATTR,
    number::HAS_DEVICE_ATTR,
    number::RUN,
    number::RUN,
    number::RUN,
    number::RUN,
    number::SET_SIGNAL_MASK,
    number::GET_MP_STATE,
    number::SET_MP_STATE,
    number::SET_GUEST_DEBUG,
    number::GET_VCPU_EVENTS,
    number::SET_VCPU_EVENTS,
    number::GET_ONE_REG,
    number::SET_ONE_REG,
    number::SET_ONE_REG,
    number::ARM_VCPU_INIT,
    number::ARM_VCPU_INIT,
    number::ARM_VCPU_INIT,
    number::GET_REG_LIST,
    number::ARM_VCPU_FINALIZE,
    number::CLOSE,
    number::CLOSE,
    number::SET_RUN_PAGE,
    number::SET_RUN_PAGE,
    number::FREE_MEMORY,
];

/// What each handle is likely to be: [`NONE`] to [`DEVICE`].
static KINDS: [AtomicU8; 512] = [const { AtomicU8::new(NONE) }; 512];
const NONE: u8 = 0;
const VM: u8 = 1;
const VCPU: u8 = 2;
const DEVICE: u8 = 3;

/// What a number is usually called on.
fn kind_of(number: u32) -> u8 {
    match number {
        number::CREATE_VM | number::FREE_MEMORY | number::GET_API_VERSION | number::GET_VCPU_MMAP_SIZE => NONE,
        number::RUN
        | number::SET_SIGNAL_MASK
        | number::GET_MP_STATE
        | number::SET_MP_STATE
        | number::SET_GUEST_DEBUG
        | number::GET_VCPU_EVENTS
        | number::SET_VCPU_EVENTS
        | number::GET_ONE_REG
        | number::SET_ONE_REG
        | number::ARM_VCPU_INIT
        | number::GET_REG_LIST
        | number::ARM_VCPU_FINALIZE
        | number::SET_RUN_PAGE => VCPU,
        number::SET_DEVICE_ATTR | number::GET_DEVICE_ATTR | number::HAS_DEVICE_ATTR => DEVICE,
        _ => VM,
    }
}

/// A handle of this kind, if chance finds one.
fn handle_of(kind: u8, random: &mut Random) -> u64 {
    if kind == NONE {
        return SYSTEM;
    }
    let mut handles = (0..64).map(|_| random.below(KINDS.len() as u64));
    handles.find(|&handle| KINDS[handle as usize].load(SeqCst) == kind).unwrap_or(1)
}

/// Takes note of what a call has made.
fn note(number: u32, handle: u64, argument: u64, answer: i64) {
    let (made, kind) = match number {
        _ if answer < 0 => return,
        number::CREATE_VM => (answer as u64, VM),
        number::CREATE_VCPU => (answer as u64, VCPU),
        number::CREATE_DEVICE => match ARENA.iter().find(|page| page.address() == argument) {
            Some(page) => (page.read(4, 4), DEVICE),
            None => return,
        },
        number::CLOSE => (handle, NONE),
        _ => return,
    };
    if let Some(slot) = KINDS.get(made as usize) {
        slot.store(kind, SeqCst);
    }
}

/// Makes a VM that can run, as far as the others let it, so that chance has something to spoil. There are few at a time.
fn whole_machine(random: &mut Random) {
    let open = |kind| (1..KINDS.len()).filter(move |&n| KINDS[n].load(SeqCst) == kind);
    if open(VM).count() >= 8 {
        for handle in 1..KINDS.len() as u64 {
            if random.below(3) != 0 && Hypercall.call(handle, number::CLOSE, 0) == 0 {
                KINDS[handle as usize].store(NONE, SeqCst);
            }
        }
    }
    let at = &ARENA[random.below(PAGES as u64) as usize];
    let call = |handle: u64, number: u32, words: &[u64]| {
        words.iter().enumerate().for_each(|(n, word)| at.write(8 * n, 8, *word));
        let argument = if words.is_empty() { 0 } else { at.address() };
        let answer = Hypercall.call(handle, number, argument);
        note(number, handle, argument, answer);
        answer.max(0) as u64
    };
    let vm = call(SYSTEM, number::CREATE_VM, &[]);
    call(vm, number::SET_USER_MEMORY_REGION, &[random.below(2) << 32, 0x0100_0000, 64 << 12, ARENA[0].address()]);
    let has_gic = random.below(4) != 0;
    let mut gic = 0;
    if has_gic && call(vm, number::CREATE_DEVICE, &[7, 0]) == 0 {
        gic = at.read(4, 4);
    }
    let vcpu = call(vm, number::CREATE_VCPU, &[]);
    if has_gic {
        // Redistributors in one region, or in several that may be too few or in the way.
        if random.below(3) == 0 {
            for index in 0..1 + random.below(4) {
                let base = random.pick(&[0x080a_0000, 0x080c_0000, 0x0900_0000, 0x0802_0000, 0x07fe_0000]);
                let region = random.below(3) << 52 | base | index;
                call(gic, number::SET_DEVICE_ATTR, &[0, 5, at.address() + 24, region]);
            }
        }
        for (group, attribute, value) in [(0, 2, 0x0800_0000), (0, 3, 0x080a_0000), (4, 0, 0)] {
            call(gic, number::SET_DEVICE_ATTR, &[group << 32, attribute, at.address() + 24, value]);
        }
    }
    let has_pmu = random.below(3) == 0;
    // KVM_ARM_VCPU_PSCI_0_2, PMU_V3.
    let features: u64 = if has_pmu { 1 << 2 | 1 << 3 } else { 1 << 2 };
    call(vcpu, number::ARM_VCPU_INIT, &[5 | features << 32, 0, 0, 0]);
    if has_pmu {
        for (attribute, value) in [(0, 23), (1, 0)].into_iter().skip(usize::from(!has_gic)) {
            call(vcpu, number::SET_DEVICE_ATTR, &[0, attribute, at.address() + 24, value]);
        }
        for _ in 0..8 {
            call(
                vcpu,
                number::SET_ONE_REG,
                &[pmu_register(random), at.address() + 16, random.next() >> random.below(64)],
            );
        }
    }
    call(
        vcpu,
        number::SET_ONE_REG,
        &[0x6030_0000_0010_0040, at.address() + 16, 0x0100_0000 + 4 * random.below(1 << 16)],
    );
    Hypercall.call(vcpu, number::SET_RUN_PAGE, ARENA[PAGES - 1 - random.below(64) as usize].address());
}

/// The id of one of the PMU's registers.
fn pmu_register(random: &mut Random) -> u64 {
    let counter = 0xdf40 + random.below(64);
    0x6030_0000_0013_0000
        | random
            .pick(&[0xc4f1, 0xc4f2, 0xdce0, 0xdce0, 0xdce1, 0xdce3, 0xdce5, 0xdce8, 0xdcf0, 0xdcf3, counter, counter])
}

/// What structures are made of.
fn word(random: &mut Random) -> u64 {
    match random.below(16) {
        0..=2 => address(random),
        3 => random.below(8),
        4 => random.below(64) << 12,
        5 => 0x4000_0000 ^ 1 << 63,
        // Guest addresses: of memory, of the interrupt controller. Below the root's memory, so that no call takes them for its.
        6 => 0x0100_0000 + (random.below(64) << 12),
        7 => random.pick(&[0x0800_0000, 0x080a_0000, 0x0808_0000, 0x0801_0000]),
        // A structure's two halves of 32 bits.
        8 => random.below(8) << 32 | random.below(8),
        9 => random.below(4) << 32 | random.pick(&[0, 4, 8, 0x100, 0x104, 0x200, 0x10080, 0x10100, 0xc230, 0xc664]),
        // Registers: the core's, system registers, timers, firmware's.
        10 => 0x6030_0000_0010_0000 + 2 * random.below(40),
        11 if random.below(2) == 0 => pmu_register(random),
        11 => 0x6030_0000_0013_0000 | random.below(1 << 16),
        12 => 0x6030_0000_0014_0000 | random.below(4),
        13 => 1 << 63 | random.next() >> 1,
        14 => 5 | random.below(16) << 34,
        _ => 0,
    }
}

/// An address in the arena; sometimes one at its end, misaligned, or where there is nothing.
fn address(random: &mut Random) -> u64 {
    let page = ARENA[random.below(PAGES as u64) as usize].address();
    match random.below(12) {
        0 => page + random.below(PAGE as u64),
        1 => page + PAGE as u64 - 8,
        2 => random.pick(&[0, 8, 0x0900_0000, 1 << 47, 1 << 63, u64::MAX, u64::MAX - 7]),
        _ => page,
    }
}

fn calls(cpu: usize) {
    let mut random = Random(SEED.load(SeqCst).wrapping_add(cpu as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    while CALLS.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
        if random.below(150) == 0 {
            whole_machine(&mut random);
        }
        if random.below(20) == 0 {
            // One that is bound is a guest's; of the others this CPU takes what has come.
            irq::pend(EVENTS[random.below(5) as usize]);
            arch::with_irqs(arch::isb);
        }
        let number = match random.below(20) {
            0 => random.next() as u32,
            1 => random.pick(NUMBERS) ^ 1 << random.below(32),
            _ => random.pick(NUMBERS),
        };
        let handle = match random.below(20) {
            0 => random.next(),
            1 => 1 << random.below(64),
            2..5 => random.below(64),
            _ => handle_of(kind_of(number), &mut random),
        };
        let argument = match (number, random.below(10)) {
            (number::CREATE_VM | number::RUN, 0..=7) => 0,
            (number::CREATE_VCPU, 0..=7) => random.below(4),
            (number::CHECK_EXTENSION, _) => random.below(256),
            (_, 0) => random.below(64),
            _ => {
                let at = &ARENA[random.below(PAGES as u64) as usize];
                (0..20).for_each(|n| at.write(8 * n, 8, word(&mut random)));
                if random.below(3) == 0 {
                    usual(number, at, &mut random)
                }
                if random.below(30) == 0 { address(&mut random) } else { at.address() }
            }
        };
        // What ends the run of a guest that sleeps, or does not end.
        if number == number::RUN {
            time::Timer::Virtual.arm(random.below(300));
        }
        let answer = Hypercall.call(handle, number, argument);
        time::Timer::Virtual.stop();
        note(number, handle, argument, answer);
        if answer >= 0 {
            GOOD.fetch_add(1, SeqCst);
        }
        if number == number::RUN && matches!(answer, 0 | -4) {
            RUNS.fetch_add(1, SeqCst);
        }
    }
    DONE.fetch_add(1, SeqCst);
}

/// The structure of a call as it usually is.
fn usual(number: u32, at: &Page, random: &mut Random) {
    let words: &[u64] = match number {
        number::SET_USER_MEMORY_REGION => {
            let pages = 1 + random.below(16);
            let user = ARENA[random.below(PAGES as u64 - pages) as usize].address();
            &[random.below(3) | random.below(2) << 32, 0x0100_0000 + (random.below(32) << 12), pages << 12, user]
        }
        number::ARM_VCPU_INIT => &[5 | random.pick(&[0, 1, 4, 5, 12, 0x65]) << 32, 0, 0, 0],
        number::CREATE_DEVICE => &[random.pick(&[5, 7, 7, 7, 8]), 0],
        number::SET_DEVICE_ATTR => match random.below(4) {
            0 => &[0, 2, at.address() + 64],
            1 => &[0, 3, at.address() + 72],
            2 => &[4 << 32, 0, at.address() + 64],
            _ => &[random.below(10) << 32, word(random), at.address() + 80],
        },
        number::SET_ONE_REG => &[0x6030_0000_0010_0040, at.address() + 88],
        // [`EVENTS`], and some that are none.
        number::IOEVENTFD => {
            let address = random.pick(&[0x0900_0000, 0x0900_0008, 0x0a00_0000]);
            let event = random.pick(&[90, 91, 92, 93, 94, 31, 1020]);
            let len = random.pick(&[0, 1, 2, 4, 4, 4, 8, 3]);
            &[random.below(2), address, len | event << 32, random.below(8)]
        }
        number::IRQFD => {
            let events = [90, 90, 91, 92, 93, 94, 31, 1020];
            let (event, resample) = (random.pick(&events), random.pick(&events));
            &[event | random.below(16) << 32, random.below(4) | resample << 32, 0, 0]
        }
        number::SET_GSI_ROUTING => {
            let kind = 1 + random.below(2);
            &[1, random.below(16) | kind << 32, 0, random.below(40) << 32, 0]
        }
        number::IRQ_LINE => &[random.below(4) << 24 | random.below(64) | random.below(2) << 32],
        _ => return,
    };
    words.iter().enumerate().for_each(|(n, word)| at.write(8 * n, 8, *word));
    [0x0800_0000, 0x080a_0000, random.below(256), 0x0100_0000]
        .iter()
        .enumerate()
        .for_each(|(n, word)| at.write(64 + 8 * n, 8, *word));
}

fn free() -> i64 {
    Hypercall.call(SYSTEM, number::FREE_MEMORY, 0)
}

/// `SEED,COUNT`: so many calls.
pub fn run(machine: &'static Machine, argument: &str) {
    let mut numbers = argument.split(',').map(|text| text.parse::<u64>());
    let (Some(Ok(seed)), Some(Ok(count))) = (numbers.next(), numbers.next()) else {
        println!("api: FAILED: fuzz-api={argument}: SEED,COUNT are two numbers");
        return;
    };
    let cpus = machine.cpus().len();
    SEED.store(seed, SeqCst);
    CALLS.store(count, SeqCst);
    // Random instructions, and loops and sleeps among them.
    let mut random = Random(seed | 1);
    for page in &ARENA {
        for offset in (0..PAGE).step_by(4) {
            let any = random.next() as u32;
            let instruction = random.pick(&[any, 0xd503_207f, 0xf900_0020, 0xd400_0002, 0x17ff_fff0]);
            page.write(offset, 4, instruction.into());
        }
    }
    for (n, intid) in EVENTS.into_iter().enumerate() {
        // Most are edge-triggered.
        if n != 0 {
            let register = GICD + 0xc00 + intid as usize / 16 * 4;
            mmio::write32(register, mmio::read32(register) | 2 << (intid % 16 * 2));
        }
        irq::route(intid, machine.cpus()[n % cpus] & MPIDR_AFFINITY);
        irq::enable(intid, 0);
    }
    let before = free();
    println!("api: {count} calls on {cpus} CPUs, seed {seed}; keel has {before} bytes");
    for cpu in 1..cpus {
        if let Err(error) = smp::start(machine, cpu, calls, cpu) {
            println!("api: FAILED: CPU_ON of CPU {cpu}: {error}");
            return;
        }
    }
    calls(0);
    for cpu in 1..cpus {
        if !smp::join(machine, cpu) {
            println!("api: FAILED: CPU {cpu} did not come to an end");
            return;
        }
    }
    let closed = (1..HANDLES).filter(|&handle| Hypercall.call(handle, number::CLOSE, 0) == 0).count();
    let after = free();
    let (good, runs) = (GOOD.load(SeqCst), RUNS.load(SeqCst));
    println!("api: {good} calls were good, {runs} runs; {closed} handles were open at the end; keel has {after} bytes");
    if after != before || DONE.load(SeqCst) != cpus as u64 || runs == 0 || closed == 0 {
        println!("api: FAILED: keel had {before} bytes before, has {after}");
        return;
    }
    println!("1 passed, 0 failed, 0 skipped");
}
