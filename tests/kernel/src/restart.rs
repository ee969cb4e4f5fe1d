//! From EL1 to a kernel at EL2: HVC_SOFT_RESTART as a boot loader would use it.
//!
//! The RAM disk is a `newc` archive with the files `Image`, an arm64 kernel, and `initramfs`. The kernel is copied to free
//! RAM, the device tree is pointed at the initramfs, and whoever has EL2 is asked to give it to the kernel, which finds
//! what the boot protocol promises (Linux, Documentation/arch/arm64/booting). The boot arguments are passed on; a kernel
//! ignores words it does not know. With the word `started` all other CPUs ran here before, and are off again.
//!
//! Nothing is known here but what the tree says, so this works on the bare machine over keel-stub and wherever else the call
//! is answered. What goes wrong is a panic that says what.

use core::{arch::asm, ops::Range};
use fdt::{Fdt, node::FdtNode};
use keel_test_kernel::{
    arch,
    boot::{self, MAPPED},
    irq,
    machine::Machine,
    println, smp,
    time::Timer,
};

/// HVC_SOFT_RESTART.
const SOFT_RESTART: u64 = 1;
/// The boot protocol's alignment of a kernel's base.
const ALIGNMENT: usize = 2 << 20;
/// Bytes of the header of an arm64 Image.
const HEADER: usize = 64;

/// Restarts into the kernel of the RAM disk.
pub fn run(machine: &'static Machine) -> ! {
    if machine.has("started") {
        start_and_stop(machine);
    }
    // SAFETY: `Machine::discover` read the same tree, which nobody has written to since.
    let tree = unsafe { Fdt::from_ptr(machine.tree as *const u8) }.expect("the tree was read before");
    let archive = ramdisk(&tree);
    // SAFETY: RAM, by the tree, and mapped; nobody writes to it.
    let bytes = unsafe { core::slice::from_raw_parts(archive.start as *const u8, archive.len()) };
    let image = file(bytes, "Image");
    let initramfs = file(bytes, "initramfs");
    let (offset, size) = placement(image);

    let base = place(machine, &tree, &archive, offset + size);
    let entry = base + offset;
    // SAFETY: free RAM, which `place` found, and mapped; as large as the header says, which is at least the file.
    unsafe { core::ptr::copy_nonoverlapping(image.as_ptr(), entry as *mut u8, image.len()) };
    let initrd = initramfs.as_ptr() as usize;
    println!("restart: kernel at {entry:#x}, initramfs at {initrd:#x}, tree at {:#x}", machine.tree);
    set_chosen(machine, &tree, [initrd, initrd + initramfs.len()]);
    // The kernel starts with its caches off. The rest of the image's memory must not be in caches either: a line that is
    // written back later would overwrite what it puts there.
    arch::flush_dcache(entry, size);
    arch::flush_dcache(machine.tree, machine.tree_size);
    arch::flush_dcache(archive.start, archive.len());

    arch::irq_disable();
    Timer::Virtual.stop();
    Timer::Physical.stop();
    irq::stop(machine);
    leave(entry, machine.tree)
}

/// Lets every other CPU run, and go off again.
fn start_and_stop(machine: &Machine) {
    for cpu in 1..machine.cpus().len() {
        if let Err(error) = smp::start(machine, cpu, |_| println!("restart: CPU {} is at EL1", arch::cpu()), 0) {
            panic!("CPU_ON of CPU {cpu}: {error}");
        }
        assert!(smp::join(machine, cpu), "CPU {cpu} did not turn itself off");
    }
}

/// A property of /chosen that is an address in one or two cells: where its value is, and what it says.
fn chosen_address(tree: &Fdt<'static>, name: &str) -> (Range<usize>, usize) {
    let property = tree.find_node("/chosen").and_then(|chosen| chosen.property(name));
    let Some((at, value)) = property.and_then(|found| Some((found.value.as_ptr_range(), found.as_usize()?))) else {
        panic!("/chosen has no address in {name}");
    };
    (at.start as usize..at.end as usize, value)
}

/// Where the RAM disk is.
pub fn ramdisk(tree: &Fdt<'static>) -> Range<usize> {
    let [start, end] = ["linux,initrd-start", "linux,initrd-end"].map(|name| chosen_address(tree, name).1);
    assert!(MAPPED.start <= start && start < end && end <= MAPPED.end, "a RAM disk at {start:#x} to {end:#x}");
    start..end
}

/// The contents of a file of a `newc` archive: entries of 6 bytes of magic and 13 fields of 8 hexadecimal digits, the name
/// and the contents, both padded to four bytes.
pub fn file(archive: &'static [u8], wanted: &str) -> &'static [u8] {
    let mut rest = archive;
    loop {
        let entry = (|| {
            let header = rest.get(..110)?;
            let field = |number: usize| {
                let digits = core::str::from_utf8(header.get(6 + 8 * number..14 + 8 * number)?).ok()?;
                usize::from_str_radix(digits, 16).ok()
            };
            let (size, name_size) = (field(6)?, field(11)?);
            let name = rest.get(110..110 + name_size)?.strip_suffix(&[0])?;
            let start = (110 + name_size).next_multiple_of(4);
            let contents = rest.get(start..start + size)?;
            let after = rest.get((start + size).next_multiple_of(4)..)?;
            (header.starts_with(b"070701") && name != b"TRAILER!!!").then_some((name, contents, after))
        })();
        let Some((name, contents, after)) = entry else {
            panic!("the RAM disk is no newc archive with a file {wanted}")
        };
        if name == wanted.as_bytes() {
            return contents;
        }
        rest = after;
    }
}

/// The offset of an Image from a 2 MiB boundary, and the bytes it takes from there.
pub fn placement(image: &[u8]) -> (usize, usize) {
    let word =
        |at: usize| image.get(at..at + 8).map(|bytes| u64::from_le_bytes(bytes.try_into().expect("8 bytes")) as usize);
    let (Some(offset), Some(size)) = (word(8), word(16)) else { panic!("the Image has {} bytes", image.len()) };
    assert!(image.len() >= HEADER && &image[56..60] == b"ARM\x64", "the Image has no arm64 header");
    assert!(offset < ALIGNMENT && (image.len()..1 << 30).contains(&size), "text_offset {offset:#x}, size {size:#x}");
    (offset, size)
}

/// The ranges of a node's `reg`.
fn ranges<'a>(node: FdtNode<'_, 'a>) -> impl Iterator<Item = Range<usize>> + use<'a> {
    node.reg().into_iter().flatten().filter_map(|region| {
        let start = region.starting_address as usize;
        Some(start..start.checked_add(region.size?)?)
    })
}

/// A 2 MiB boundary with `size` free bytes after it.
pub fn place(machine: &Machine, tree: &Fdt<'static>, archive: &Range<usize>, size: usize) -> usize {
    let mut taken = heapless::Vec::<Range<usize>, 64>::new();
    let mut take = |range| taken.push(range).expect("at most 61 reservations");
    take(boot::program());
    take(machine.tree..machine.tree + machine.tree_size);
    take(archive.clone());
    for reserved in tree.memory_reservations() {
        let start = reserved.address() as usize;
        take(start..start.saturating_add(reserved.size()));
    }
    tree.find_node("/reserved-memory").into_iter().flat_map(|node| node.children()).flat_map(ranges).for_each(take);
    let memory = tree.all_nodes().filter(|node| {
        node.property("device_type").and_then(|kind| kind.as_str()).is_some_and(|kind| kind == "memory")
    });
    for ram in memory.flat_map(ranges) {
        let end = ram.end.min(MAPPED.end);
        let mut base = ram.start.max(MAPPED.start).next_multiple_of(ALIGNMENT);
        while base + size <= end {
            match taken.iter().find(|range| range.start < base + size && base < range.end) {
                Some(range) => base = range.end.next_multiple_of(ALIGNMENT),
                None => return base,
            }
        }
    }
    panic!("no {size:#x} bytes of RAM are free")
}

/// Puts `initrd` into the tree, in place.
fn set_chosen(machine: &Machine, tree: &Fdt<'static>, initrd: [usize; 2]) {
    for (name, address) in ["linux,initrd-start", "linux,initrd-end"].into_iter().zip(initrd) {
        let (at, _) = chosen_address(tree, name);
        assert!(at.start >= machine.tree && at.end <= machine.tree + machine.tree_size, "{name} is not in the tree");
        let value = (address as u64).to_be_bytes();
        // A value of one cell has the low half, which is all there is: what is mapped is below 4 GiB.
        for (to, byte) in at.rev().zip(value.into_iter().rev()) {
            // SAFETY: a byte of the property's value, in the tree, which is RAM that is mapped. Nobody reads it again.
            unsafe { (to as *mut u8).write_volatile(byte) };
        }
    }
}

/// Turns the MMU and the caches off and makes the call.
fn leave(entry: usize, tree: usize) -> ! {
    let answer: u64;
    // SAFETY: the program is mapped one to one, so that it goes on when translation ends; it uses no memory after that.
    unsafe {
        asm!(
            "ic     iallu",
            "dsb    sy",
            "isb",
            "mrs    x9, sctlr_el1",
            "bic    x9, x9, #(1 << 0)",     // M
            "bic    x9, x9, #(1 << 2)",     // C
            "bic    x9, x9, #(1 << 12)",    // I
            "msr    sctlr_el1, x9",
            "isb",
            "hvc    #0",
            // Refused. Back to memory as the program knows it, to say so.
            "orr    x9, x9, #(1 << 0)",
            "orr    x9, x9, #(1 << 2)",
            "msr    sctlr_el1, x9",
            "isb",
            inout("x0") SOFT_RESTART => answer,
            inout("x1") entry => _,
            inout("x2") tree => _,
            inout("x3") 0_u64 => _,
            inout("x4") 0_u64 => _,
            out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _, out("x10") _, out("x11") _,
            out("x12") _, out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _,
            options(nostack)
        );
    }
    panic!("SOFT_RESTART answered {answer:#x}");
}
