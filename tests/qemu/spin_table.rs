//! Boards whose firmware holds the CPUs in a spin-table pen.
//!
//! QEMU's `virt` has no such firmware, so it gets one: `spin-table.img` of the test kernel's package puts CPUs into its pen
//! and then starts an image, as a boot loader does. `virt`'s own device tree is changed to match. PSCI stays in it: it is
//! how such a machine is powered off.

use std::path::{Path, PathBuf};

use keel::vmm::tree::{Node, Tree};
use keel::vmm::tree_writer::TreeWriter;
use keel_qemu::machine::{self, Gic};
use keel_qemu::qemu::{Board, Event, Session};
use keel_qemu::{fetch, initramfs, tree};
use libtest_mimic::{Completion, Failed, Trial};

use crate::trial::{ignorable_test, test};
use crate::{LIMIT, Outcome, board, debian, expect, failure, guests, kernel, run_well, stub};

/// The tree of the Raspberry Pi 4 that `cargo keel fetch debian` brings.
const BOARD_TREE: &str = "bcm2711-rpi-4-b.dtb";

/// Where the firmware is (its text_offset says so), where it looks for an image, and where its words are.
const FIRMWARE: u64 = 0x47e0_0000;
const IMAGE: u64 = 0x4400_0000;
const TABLE: u64 = FIRMWARE + 0x1000;
/// The number of CPUs to hold, and whether all wait for the first word of the table.
const COUNT: u64 = FIRMWARE + 0x2000;
const IS_SHARED: u64 = FIRMWARE + 0x2008;
/// Bytes it keeps.
const SIZE: u64 = 0x2000;

/// How the tree reserves the firmware.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reserved {
    /// `/memreserve/`.
    Block,
    /// A node of `/reserved-memory`.
    Node,
    /// The same with `no-map`.
    NoMap,
}

/// What is special about a board: how many CPUs firmware holds (the others are off, and PSCI starts them), how it is
/// reserved, whether all have the same word, and a CPU for which the tree names another one, or none.
#[derive(Clone, Copy, Debug)]
struct Pens {
    held: u32,
    reserved: Reserved,
    is_shared: bool,
    wrong: Option<(u32, Option<u64>)>,
}

/// The board's own tree, with the CPUs in pens.
fn tree_of(board: &Board, pens: Pens, name: &str) -> Result<PathBuf, Failed> {
    let file = tree::product(&format!("test-spin-{name}.dtb"));
    let mut command = board.command();
    command.arg("-machine").arg(format!("dumpdtb={}", file.display()));
    let output = command.output()?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
    }
    let blob = std::fs::read(&file)?;
    let old = Tree::parse(&blob).map_err(|error| error.to_string())?;
    let root = old.root();
    let mut new = TreeWriter::like(&old);
    new.begin("");
    new.copy_properties(root, &[]);
    for node in root.children() {
        if node.name() == "cpus" { copy_cpus(&mut new, node, pens) } else { new.copy(node) }
    }
    if pens.reserved != Reserved::Block {
        new.begin("reserved-memory");
        new.cell("#address-cells", 2);
        new.cell("#size-cells", 2);
        new.flag("ranges");
        new.begin(&format!("firmware@{FIRMWARE:x}"));
        new.wide("reg", &[FIRMWARE, SIZE]);
        if pens.reserved == Reserved::NoMap {
            new.flag("no-map");
        }
        new.end();
        new.end();
    }
    new.end();
    let mut blob = new.finish();
    if pens.reserved == Reserved::Block {
        reserve(&mut blob, FIRMWARE, SIZE);
    }
    tree::store(&file, &blob)?;
    Ok(file)
}

fn copy_cpus(new: &mut TreeWriter, cpus: Node, pens: Pens) {
    new.begin(cpus.name());
    new.copy_properties(cpus, &[]);
    for node in cpus.children() {
        let number = node.name().strip_prefix("cpu@").and_then(|unit| u32::from_str_radix(unit, 16).ok());
        let Some(number) = number.filter(|&number| number <= pens.held) else {
            new.copy(node);
            continue;
        };
        new.begin(node.name());
        new.copy_properties(node, &["enable-method"]);
        new.text("enable-method", "spin-table");
        let index = if pens.is_shared { 0 } else { u64::from(number) };
        let word = match pens.wrong {
            Some((cpu, wrong)) if cpu == number => wrong,
            _ => Some(TABLE + 8 * index),
        };
        if let Some(word) = word {
            new.wide("cpu-release-addr", &[word]);
        }
        node.children().for_each(|child| new.copy(child));
        new.end();
    }
    new.end();
}

/// Puts an entry into the reservation block of a tree whose other blocks come after it (Devicetree Specification, 5.2).
fn reserve(blob: &mut Vec<u8>, start: u64, size: u64) {
    let word = |blob: &[u8], at: usize| u32::from_be_bytes(blob[at..at + 4].try_into().expect("four bytes"));
    let block = word(blob, 16) as usize;
    // totalsize, off_dt_struct, off_dt_strings
    for at in [4, 8, 12] {
        let moved = word(blob, at) + 16;
        blob[at..at + 4].copy_from_slice(&moved.to_be_bytes());
    }
    let entry = [start, size].map(u64::to_be_bytes).concat();
    blob.splice(block..block, entry);
}

/// Puts the firmware in front of the board's image.
fn behind_firmware(board: &mut Board, pens: Pens, name: &str) -> Outcome {
    let tree = tree_of(board, pens, name)?;
    let image = std::mem::replace(&mut board.kernel, guests()?.spin_table.clone());
    let loader = |image: &Path| format!("loader,file={},addr={IMAGE:#x},force-raw=on", image.display());
    board.extra.extend(["-dtb".into(), tree.into(), "-device".into(), loader(&image).into()]);
    for (at, value) in [(COUNT, u64::from(pens.held)), (IS_SHARED, pens.is_shared.into())] {
        board.extra.extend(["-device".into(), format!("loader,addr={at:#x},data={value},data-len=8").into()]);
    }
    Ok(())
}

/// `node` with everything in it, and with `changes`: a path below it, a property, and its new text.
fn copy_with(new: &mut TreeWriter, node: Node, changes: &[(&str, &str, &str)]) {
    let own = || changes.iter().filter(|(path, ..)| *path == node.path());
    new.begin(node.name());
    new.copy_properties(node, &own().map(|(_, property, _)| *property).collect::<Vec<_>>());
    own().for_each(|(_, property, text)| new.text(property, text));
    node.children().for_each(|child| copy_with(new, child, changes));
    new.end();
}

/// The Raspberry Pi 4, whose pens are QEMU's: as Debian describes it, but that its console is the PL011, which firmware gives
/// to Bluetooth, and without the devices that QEMU does not model and Linux dies of.
fn raspberry_pi_4() -> Outcome {
    const ABSENT: &[&str] =
        &["/soc/clock@7ef00000", "/soc/interrupt-controller@7ef00100", "/soc/i2c@7ef04500", "/soc/i2c@7ef09500"];
    let blob = std::fs::read(tree::guest(BOARD_TREE))?;
    let old = Tree::parse(&blob).map_err(|error| error.to_string())?;
    let mut new = TreeWriter::like(&old);
    let mut changes = vec![("/chosen", "stdout-path", "serial0:115200n8")];
    changes.extend(ABSENT.iter().map(|path| (*path, "status", "disabled")));
    copy_with(&mut new, old.root(), &changes);
    let file = tree::product("test-raspi4b.dtb");
    tree::store(&file, &new.finish())?;

    let folder = "linux-6.12";
    let vm = debian::vm(folder, "earlycon=pl011,mmio32,0xfe201000 keel.test=1", 1);
    let mut board = stub::board("raspi4b", &[vm])?;
    board.machine = machine::find("raspi4b")?;
    (board.cpu, board.smp) = (board.machine.cpu.into(), 4);
    board.extra = vec!["-dtb".into(), file.into(), "-audio".into(), "none".into()];
    let mut session = Session::start(&board, LIMIT)?;
    for text in [
        "keel-stub: 3 CPUs from firmware's spin-table pens: in the stub's, at EL1",
        "smp: Brought up 1 node, 4 CPUs",
        "CPU: All CPU(s) started at EL1",
        initramfs::INIT,
        "nproc=4",
        "cpu3=ok",
        initramfs::DONE,
    ] {
        if session.wait_for(text) != Event::Seen {
            return Err(format!("no `{text}`: {}\n{}", session.command(), session.output()).into());
        }
    }
    Ok(())
}

/// All cases of the stub.
fn cases(cpu: &str, gic: Gic, smp: u32, pens: Pens) -> Outcome {
    let name = format!("cases-{cpu}-{smp}-{}", pens.held);
    let mut board = stub::board(&format!("spin-{name}"), &[stub::test_kernel("hyp=stub")?])?;
    (board.cpu, board.gic, board.smp) = (cpu.into(), gic, smp);
    behind_firmware(&mut board, pens, &name)?;
    let ending = stub::run_off(&board)?;
    expect(&ending.output, &format!("{} CPUs from firmware's spin-table pens: in the stub's, at EL1", pens.held))?;
    expect(&ending.output, "test stub/cpus_on_and_off ... ok")?;
    kernel::judge(&ending.output).map_err(|error| failure(&ending, error.message().unwrap_or("failed")))
}

/// Debian over the stub.
fn debian_over_stub(cpu: &str, gic: Gic, pens: Pens) -> Outcome {
    let (folder, name) = ("linux-6.12", format!("debian-{cpu}"));
    let mut board = stub::board(&format!("debian-{cpu}"), &[debian::vm(folder, "keel.test=1", 1)])?;
    (board.cpu, board.gic, board.smp) = (cpu.into(), gic, 4);
    behind_firmware(&mut board, pens, &name)?;
    let ending = stub::run_off(&board)?;
    expect(&ending.output, "All CPU(s) started at EL1")?;
    debian::judge(&ending.output, folder, 4, &[debian::QEMU_ALONE, debian::HOST_IS_BUSY])
}

/// keel with all CPUs, and a guest on each of them.
fn under_keel(cpu: &str, pens: Pens) -> Outcome {
    let name = format!("keel-{cpu}-{}", pens.held);
    let mut board = board(&format!("spin-{name}"), &[kernel::vm("hyp=keel only=psci", 4)?])?;
    (board.cpu, board.smp) = (cpu.into(), 4);
    behind_firmware(&mut board, pens, &name)?;
    let console = run_well(&board)?;
    expect(&console, "keel: 4 of 4 CPUs up")?;
    kernel::judge(&console)
}

/// A CPU whose release address is `wrong` stays off, with `problem`; the others work.
fn one_is_wrong(is_stub: bool, name: &str, wrong: Option<u64>, problem: &str) -> Outcome {
    let pens = Pens { held: 3, reserved: Reserved::Node, is_shared: false, wrong: Some((2, wrong)) };
    let name = format!("{name}-{}", if is_stub { "stub" } else { "keel" });
    let mut board = if is_stub {
        stub::board("spin-wrong", &[stub::test_kernel("hyp=stub only=numbers")?])?
    } else {
        board("spin-wrong", &[kernel::vm("hyp=keel only=psci", 3)?])?
    };
    board.smp = 4;
    behind_firmware(&mut board, pens, &name)?;
    let mut session = Session::start(&board, LIMIT)?;
    let rest = if is_stub { "keel-stub: 2 CPUs from firmware's spin-table pens" } else { "keel: 3 of 4 CPUs up" };
    for text in ["/cpus/cpu@2: ", problem, rest] {
        if session.wait_for(text) != Event::Seen {
            return Err(format!("no `{text}`:\n{}", session.output()).into());
        }
    }
    Ok(())
}

pub fn trials() -> Vec<Trial> {
    let pens = |held, reserved| Pens { held, reserved, is_shared: false, wrong: None };
    let shared = Pens { held: 3, reserved: Reserved::Block, is_shared: true, wrong: None };
    vec![
        test("spin_table::cases_max_4_cpus", move || cases("max", Gic::V3, 4, pens(3, Reserved::NoMap))),
        test("spin_table::cases_cortex-a72_4_cpus", move || cases("cortex-a72", Gic::V2, 4, pens(3, Reserved::Block))),
        test("spin_table::cases_3_cpus_and_1_by_psci", move || {
            cases("cortex-a72", Gic::V3, 4, pens(2, Reserved::Node))
        }),
        debian::trial("spin_table::debian_max_4_cpus".into(), "linux-6.12", move || {
            debian_over_stub("max", Gic::V3, pens(3, Reserved::NoMap))
        }),
        debian::trial("spin_table::debian_cortex-a72_4_cpus".into(), "linux-6.12", move || {
            debian_over_stub("cortex-a72", Gic::V2, pens(3, Reserved::Block))
        }),
        ignorable_test("spin_table::debian_raspberry_pi_4", || match fetch::missing_board(BOARD_TREE) {
            Some(reason) => Ok(Completion::ignored_with(reason)),
            None => raspberry_pi_4().map(|()| Completion::Completed),
        }),
        test("spin_table::keel_max_4_cpus", move || under_keel("max", pens(3, Reserved::Block))),
        test("spin_table::keel_cortex-a72_3_cpus_and_1_by_psci", move || {
            under_keel("cortex-a72", pens(2, Reserved::NoMap))
        }),
        test("spin_table::cases_3_cpus_share_a_word", move || cases("cortex-a57", Gic::V2, 4, shared)),
        test("spin_table::keel_3_cpus_share_a_word", move || under_keel("neoverse-n1", shared)),
        test("spin_table::a_wrong_address_is_named", || {
            let missing = "property cpu-release-addr is missing, expected an address";
            let image = "its cpu-release-addr, 0x44100000, is in the image";
            let bundle = "its cpu-release-addr, 0x48000000, is in the device tree or the bundle";
            let far = "its cpu-release-addr, 0x4000000000000, is beyond the CPU's physical address space";
            one_is_wrong(true, "missing", None, missing)?;
            one_is_wrong(true, "bundle", Some(0x4800_0000), bundle)?;
            one_is_wrong(true, "far", Some(1 << 50), far)?;
            one_is_wrong(false, "missing", None, missing)?;
            one_is_wrong(false, "image", Some(IMAGE + 0x10_0000), image)?;
            one_is_wrong(false, "bundle", Some(0x4800_0000), bundle)?;
            one_is_wrong(false, "far", Some(1 << 50), far)
        }),
    ]
}
