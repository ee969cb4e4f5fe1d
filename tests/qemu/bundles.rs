//! Bad bundles: the machine at fault is refused with its node and the reason, the others run.
//!
//! The writer refuses to write most of these, so a good bundle is written and then damaged.

use keel_qemu::qemu::{Board, run_to_end};
use keel_qemu::verdict::Verdict;
use keel_qemu::vms::{MemorySize, VmSpec};
use keel_qemu::{fit, tree};
use libtest_mimic::{Failed, Trial};

use crate::trial::test;
use crate::{LIMIT, Outcome, failure, guests, images};

/// What the good machine prints.
const GOOD: &str = "Done: powering off.";

/// A bundle of a good machine and one that a test makes bad.
fn bundle(change: impl FnOnce(&mut VmSpec)) -> Result<Vec<u8>, Failed> {
    let mut good = VmSpec::new("good", &guests()?.demo);
    good.memory = MemorySize(32 << 20);
    let mut bad = VmSpec::new("evil", &guests()?.test_kernel);
    bad.memory = MemorySize(64 << 20);
    bad.bootargs = "only=none".into();
    change(&mut bad);
    Ok(fit::write(&[good, bad])?)
}

/// Replaces one occurrence of `from` by `to`, which is as long.
fn replace(bundle: &mut [u8], from: &[u8], to: &[u8]) -> Outcome {
    assert_eq!(from.len(), to.len(), "a tree's offsets must stay");
    let position = bundle.windows(from.len()).position(|window| window == from);
    let position = position.ok_or("the bundle does not contain what was to be damaged")?;
    bundle[position..position + to.len()].copy_from_slice(to);
    Ok(())
}

/// Boots a bundle; the console must have every text, and the run must end by itself without a panic.
fn boots(name: &str, bundle: &[u8], texts: &[&str]) -> Outcome {
    let file = tree::product(&format!("test-bad-{name}.itb"));
    tree::store(&file, bundle)?;
    let mut board = Board::virt(&images()?.keel);
    board.initrd = Some(file);
    let ending = run_to_end(&board, LIMIT)?;
    if !matches!(ending.verdict, Verdict::Well | Verdict::Crashed(_)) {
        return Err(failure(&ending, &ending.verdict.to_string()));
    }
    for text in texts {
        if !ending.output.contains(text) {
            return Err(failure(&ending, &format!("no `{text}`")));
        }
    }
    Ok(())
}

pub fn trials() -> Vec<Trial> {
    vec![
        test("bundles::unchanged_runs_both", || boots("none", &bundle(|_| {})?, &[GOOD, "0 failed"])),
        test("bundles::truncated", || {
            let bundle = bundle(|_| {})?;
            boots("truncated", &bundle[..bundle.len() / 2], &["bundle"])
        }),
        test("bundles::no_bundle_at_all", || boots("text", b"this is no bundle, but a line of text\n", &["bundle"])),
        test("bundles::wrong_hash", || {
            let mut bundle = bundle(|_| {})?;
            // A text that is only in the test kernel's image.
            replace(&mut bundle, b"keel test kernel", b"keel tesT kernel")?;
            boots("hash", &bundle, &[GOOD, "/images/kernel-2", "sha256"])
        }),
        test("bundles::unknown_property", || {
            let mut bundle = bundle(|vm| vm.cpu_affinity = vec![0])?;
            replace(&mut bundle, b"keel,cpu-affinity\0", b"keel,cpu-afinitty\0")?;
            boots("property", &bundle, &[GOOD, "/configurations/evil", "keel,cpu-afinitty", "keel,cpu-affinity"])
        }),
        test("bundles::more_memory_than_there_is", || {
            let bundle = bundle(|vm| vm.memory = MemorySize(1 << 40))?;
            boots("memory", &bundle, &[GOOD, "/configurations/evil", "keel,memory"])
        }),
        test("bundles::image_outside_ram", || {
            let big = tree::product("test-big-initrd");
            tree::store(&big, &[0; 8 << 20])?;
            let bundle = bundle(|vm| {
                vm.initrd = Some(big);
                vm.memory = MemorySize(8 << 20);
            })?;
            boots("outside", &bundle, &[GOOD, "evil", "memory"])
        }),
        test("bundles::two_of_one_name", || {
            let mut bundle = bundle(|_| {})?;
            replace(&mut bundle, b"\0\0\0\x01evil\0\0\0\0", b"\0\0\0\x01good\0\0\0\0")?;
            boots("name", &bundle, &[GOOD, "/configurations/good", "already"])
        }),
        test("bundles::too_many_cpus", || {
            let bundle = bundle(|vm| vm.cpus = 100_000)?;
            boots("cpus", &bundle, &[GOOD, "/configurations/evil", "keel,cpus"])
        }),
        test("bundles::unknown_feature", || {
            let bundle = bundle(|vm| vm.features = vec!["warp-drive".into()])?;
            boots("feature", &bundle, &[GOOD, "/configurations/evil", "warp-drive"])
        }),
    ]
}
