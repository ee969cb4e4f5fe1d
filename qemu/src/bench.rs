//! `cargo keel bench`: how many instructions things cost.
//!
//! Under `-icount shift=0` with `-cpu max` a counter tick is an instruction, so the figures are exact and the same on
//! every run and every host. The test kernel times operations from inside a guest and keel reports what only it can
//! see; both print `bench NAME VALUE insn`. A peer is measured by the same kernel on the same QEMU. What a limit is named for and was not measured is a failure too.

mod plot;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

use crate::machine::Gic;
use crate::oracle::{self, Host, Hypervisor};
use crate::qemu::{self, Board};
use crate::verdict::Verdict;
use crate::vms::{MemorySize, VmSpec};
use crate::{fetch, image, run, tree};

/// The most a figure may be: (name, instructions).
pub const LIMITS: &[(&str, u64)] = &[
    ("hvc_fast", 22),
    ("hvc_rust", 110),
    ("gicd_read", 150),
    ("mmio_read", 180),
    ("ipi", 1100),
    ("timer_irq", 600),
    ("pmu_read", 6),
    ("lpi", 2000),
    ("kvm_run_exit", 900),
    ("stub_call", 12),
    ("entry_to_guest", 290_000),
    ("vcpu_start", 3013),
];

/// keel's instructions for each 1000 of the guest's while Debian boots: at most one.
pub const LINUX_LIMIT_PERCENT: f64 = 0.1;

/// CPU models on which Debian's boot is measured.
pub const LINUX_CPUS: &[&str] = &["max", "neoverse-n1", "cortex-a72"];

/// One measured figure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// How much.
    pub value: u64,
    /// `insn` or `bytes`.
    pub unit: String,
}

impl Figure {
    /// The most it may be, if there is a limit.
    pub fn limit(&self) -> Option<u64> {
        LIMITS.iter().find(|(name, _)| *name == self.name).map(|&(_, limit)| limit)
    }
}

impl std::fmt::Display for Figure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "bench {} {} {}", self.name, self.value, self.unit)
    }
}

/// The lines `bench NAME VALUE UNIT` of a console, wherever in the line they start.
pub fn figures(console: &str) -> Vec<Figure> {
    console
        .lines()
        .filter_map(|line| {
            let mut words = line[line.find("bench ")?..].split_whitespace().skip(1);
            let figure =
                Figure { name: words.next()?.into(), value: words.next()?.parse().ok()?, unit: words.next()?.into() };
            matches!(figure.unit.as_str(), "insn" | "bytes").then_some(figure)
        })
        .collect()
}

/// The lines `keel: stats VM NAME VALUE` of a console, for a run of one machine.
pub fn statistics(console: &str) -> BTreeMap<String, u64> {
    let values = console.lines().filter_map(|line| {
        let mut words = line.split_once("keel: stats ")?.1.split_whitespace().skip(1);
        Some((words.next()?.to_string(), words.next()?.parse().ok()?))
    });
    values.collect()
}

/// The limits that are exceeded or were not measured, each as a sentence.
pub fn failures(figures: &[Figure]) -> Vec<String> {
    let mut failures = Vec::new();
    for (name, limit) in LIMITS {
        match figures.iter().find(|figure| figure.name == *name) {
            None => failures.push(format!("{name} was not measured")),
            Some(figure) if figure.value > *limit => {
                failures.push(format!("{name} is {}, over its limit of {limit}", figure.value));
            }
            Some(_) => {}
        }
    }
    failures
}

/// Another hypervisor to be measured beside keel, by the same kernel on the same board.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Peer {
    /// Debian's KVM as it likes: with Linux itself at EL2 where the CPU has FEAT_VHE
    Kvm,
    /// The same with Linux at EL1, as on CPUs without FEAT_VHE
    KvmNvhe,
}

impl Peer {
    /// The host its machine runs on.
    fn host(self) -> Result<&'static Host, crate::BadInput> {
        oracle::find(match self {
            Peer::Kvm => "max",
            Peer::KvmNvhe => "max-nvhe",
        })
    }

    fn title(self) -> &'static str {
        match self {
            Peer::Kvm => "KVM (VHE)",
            Peer::KvmNvhe => "KVM (nVHE)",
        }
    }

    fn measure(self) -> Result<Vec<Figure>> {
        let host = self.host()?;
        // Linux boots, and then has nothing to do but the machine.
        let options = oracle::Options { icount: true, settle: 10, ..Default::default() };
        let hypervisor = Hypervisor::Kvm(host.mode);
        let mut vm = machine(&image::build_guests()?, "hyp=kvm");
        // KVM's other figures are the same with an ITS.
        vm.features.push("its".into());
        let mut measured = figures(&oracle::console(host, hypervisor, &vm, options)?);
        vm.bootargs = "bench-switch hyp=kvm".into();
        vm.features.clear();
        for (suffix, feature) in [("", None), ("_pmu", Some("pmu"))] {
            vm.features.extend(feature.map(String::from));
            let mut board = oracle::board(host, hypervisor, &vm, options)?;
            board.smp = 1;
            let figures = figures(&oracle::run(&board, hypervisor)?).into_iter();
            measured.extend(figures.map(|figure| Figure { name: figure.name + suffix, ..figure }));
        }
        ensure!(!measured.is_empty(), "{} measured nothing", self.title());
        Ok(measured)
    }
}

/// The machine that measures.
fn machine(guests: &image::Guests, hypervisor: &str) -> VmSpec {
    let mut vm = VmSpec::new("bench", &guests.test_kernel);
    vm.bootargs = format!("bench {hypervisor}");
    vm.cpus = 2;
    vm.memory = MemorySize(64 << 20);
    vm.features = vec!["pmu".into()];
    vm
}

/// Measures the operations, prints them, beside those of `peers`, and draws them into `plot`; returns what exceeds its limit.
///
/// # Errors
///
/// Building fails, a run does not end well, or the drawing cannot be written.
pub fn bench(peers: &[Peer], plot: Option<&Path>) -> Result<Vec<String>> {
    let figures = bench_keel()?;
    for figure in &figures {
        println!("{figure}");
    }
    let mut columns = Vec::new();
    for &peer in peers {
        columns.push((peer.title(), peer.measure()?));
    }
    let titles: Vec<_> = columns.iter().map(|(title, _)| *title).collect();
    let mut table = table(&[&["", "keel", "limit"][..], &titles, &[""]].concat());
    for figure in &figures {
        let limit = figure.limit().map(|limit| limit.to_string()).unwrap_or_default();
        let mut row = vec![figure.name.clone(), figure.value.to_string(), limit];
        row.extend(columns.iter().map(|(_, others)| match value(others, &figure.name) {
            Some(value) => value.to_string(),
            None => "–".into(),
        }));
        row.push(figure.unit.clone());
        table.add_row(row);
    }
    println!("{table}");
    if let Some(path) = plot {
        columns.insert(0, ("keel", figures.clone()));
        plot::draw(path, &columns).with_context(|| path.display().to_string())?;
        println!("{}: drawn", path.display());
    }
    Ok(failures(&figures))
}

/// The value of a figure, if it was measured.
pub fn value(figures: &[Figure], name: &str) -> Option<u64> {
    figures.iter().find(|figure| figure.name == name).map(|figure| figure.value)
}

/// Measures keel and the stub.
fn bench_keel() -> Result<Vec<Figure>> {
    let images = image::build()?;
    let mut figures = bench_machine(&images, "bench", &["pmu"], Gic::V3)?;
    // What an ITS is needed for, on a machine of its own: the figures above are of one without.
    let with_its = bench_machine(&images, "bench-its", &["its"], Gic::V3)?;
    figures.extend(with_its.into_iter().filter(|figure| figure.name == "lpi"));
    figures.extend(bench_switch(&images, &[])?);
    for mut figure in bench_switch(&images, &["pmu".into()])? {
        figure.name += "_pmu";
        figures.push(figure);
    }
    figures.extend(bench_root(&images)?);
    figures.extend(bench_stub(&images)?);
    let mut bytes = |name: &str, value| figures.push(Figure { name: name.into(), value, unit: "bytes".into() });
    bytes("image_bytes", images.keel_bytes.saturating_sub(images.bundle_bytes));
    bytes("text_bytes", images.text_bytes);
    Ok(figures)
}

/// Measures the operations with a GICv2, and prints them. They have no limits.
///
/// # Errors
///
/// As [`bench()`].
pub fn bench_gicv2() -> Result<()> {
    for figure in bench_machine(&image::build()?, "bench-gicv2", &["pmu"], Gic::V2)? {
        println!("{figure}");
    }
    Ok(())
}

/// Measures keel on a board with this interrupt controller, with a machine that has these optional features.
fn bench_machine(images: &image::Images, name: &str, features: &[&str], gic: Gic) -> Result<Vec<Figure>> {
    let mut vm = machine(&images.guests, "hyp=keel");
    vm.features = features.iter().map(ToString::to_string).collect();
    let bundle = run::write_bundle(&[vm], &tree::product(&format!("{name}.itb")))?;
    let mut board = Board::virt(&images.keel);
    board.initrd = Some(bundle);
    board.gic = gic;
    board.icount = true;
    board.append = "keel.stats=1".into();
    measure(&board)
}

/// Measures two vCPUs that hand one CPU over to each other, of a machine with these features.
fn bench_switch(images: &image::Images, features: &[String]) -> Result<Vec<Figure>> {
    let mut vm = machine(&images.guests, "hyp=keel");
    vm.bootargs = "bench-switch hyp=keel".into();
    vm.features = features.to_vec();
    let mut board = Board::virt(&images.keel);
    board.initrd = Some(run::write_bundle(&[vm], &tree::product("bench-switch.itb"))?);
    (board.icount, board.smp) = (true, 1);
    measure(&board)
}

/// Measures a VM that the owner of the machine makes and runs.
fn bench_root(images: &image::Images) -> Result<Vec<Figure>> {
    let mut vm = machine(&images.guests, "hyp=root");
    vm.bootargs = "bench-kvm hyp=root".into();
    (vm.root, vm.cpus) = (true, 1);
    vm.features.clear();
    let mut board = Board::virt(&images.keel);
    board.initrd = Some(run::write_bundle(&[vm], &tree::product("bench-root.itb"))?);
    (board.icount, board.smp) = (true, 1);
    measure(&board)
}

/// The figures of a run that must end well.
fn measure(board: &Board) -> Result<Vec<Figure>> {
    let ending = qemu::run_to_end(board, Duration::from_secs(300))?;
    if ending.verdict != Verdict::Well {
        bail!("{}\n{}{}\n{}", ending.command, ending.diagnostics, ending.output, ending.verdict);
    }
    Ok(figures(&ending.output))
}

/// Measures the calls of the stub.
fn bench_stub(images: &image::Images) -> Result<Vec<Figure>> {
    let mut vm = VmSpec::new("bench", &images.guests.test_kernel);
    vm.bootargs = "bench hyp=stub".into();
    let mut board = Board::virt(&images.stub);
    board.initrd = Some(run::write_bundle(&[vm], &tree::product("bench-stub.itb"))?);
    (board.stub, board.icount, board.smp) = (true, true, 1);
    let ending = qemu::run_to_end(&board, Duration::from_secs(300))?;
    if ending.verdict != Verdict::PoweredOff {
        bail!("{}\n{}{}\n{}", ending.command, ending.diagnostics, ending.output, ending.verdict);
    }
    Ok(figures(&ending.output))
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(header);
    for column in table.column_iter_mut().skip(1).take(header.len().saturating_sub(2).max(1)) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Measures Debian's boot on each CPU model: keel's own instructions against the guest's.
///
/// # Errors
///
/// The kernel is not fetched, building fails, or a run does not end well.
pub fn bench_linux() -> Result<Vec<String>> {
    let folder = "linux-6.12";
    if let Some(reason) = fetch::missing(folder) {
        bail!("{reason}");
    }
    let images = image::build()?;
    let mut vm = VmSpec::new("linux", fetch::kernel_path(folder));
    vm.initrd = Some(fetch::initramfs_path());
    vm.bootargs = "console=ttyAMA0 quiet keel.test=bench".into();
    vm.hash = crate::vms::Hash::None;
    let bundle = run::write_bundle(&[vm], &tree::product("bench-linux.itb"))?;
    let mut failures = Vec::new();
    for cpu in LINUX_CPUS {
        let mut board = Board::virt(&images.keel);
        board.initrd = Some(bundle.clone());
        board.icount = true;
        board.smp = 1;
        board.cpu = (*cpu).into();
        board.append = "keel.stats=1".into();
        println!("Debian 6.12, quiet, 1 vCPU, {cpu}");
        let ending = qemu::run_to_end(&board, Duration::from_secs(600))?;
        if ending.verdict != Verdict::Well {
            bail!("{}\n{}{}\n{}", ending.command, ending.diagnostics, ending.output, ending.verdict);
        }
        let statistics = statistics(&ending.output);
        let mut table = table(&["keel: stats", "value"]);
        for (name, value) in &statistics {
            table.add_row([name.clone(), value.to_string()]);
        }
        println!("{table}");
        match share(&statistics) {
            None => failures.push(format!("{cpu}: keel did not print el2_instructions and guest_instructions")),
            Some(percent) => {
                println!(
                    "{cpu}: keel needs {percent:.4} % of the guest's instructions (at most {LINUX_LIMIT_PERCENT} %)"
                );
                if percent > LINUX_LIMIT_PERCENT {
                    failures.push(format!("{cpu}: {percent:.4} % is over {LINUX_LIMIT_PERCENT} %"));
                }
            }
        }
    }
    Ok(failures)
}

/// keel's instructions as a percentage of the guest's.
fn share(statistics: &BTreeMap<String, u64>) -> Option<f64> {
    let (keel, guest) = (*statistics.get("el2_instructions")?, *statistics.get("guest_instructions")?);
    (guest > 0).then(|| keel as f64 * 100.0 / guest as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &str, value: u64) -> Figure {
        Figure { name: name.into(), value, unit: "insn".into() }
    }

    #[test]
    fn lines_are_found_anywhere() {
        let found =
            figures("x\n[vm] bench hvc_fast 31 insn\r\nbench entry_to_guest 400001 insn\nbench broken\nworkbench x\n");
        assert_eq!(found, [figure("hvc_fast", 31), figure("entry_to_guest", 400_001)]);
        assert_eq!(found[0].limit(), Some(22));
        assert_eq!(found[0].to_string(), "bench hvc_fast 31 insn");
    }

    #[test]
    fn limits_and_gaps_fail() {
        let all: Vec<_> = LIMITS.iter().map(|&(name, limit)| figure(name, limit)).collect();
        assert!(failures(&all).is_empty());
        assert_eq!(failures(&all[1..]), ["hvc_fast was not measured"]);
        let mut over = all.clone();
        over[2].value += 1;
        assert_eq!(failures(&over), ["gicd_read is 151, over its limit of 150"]);
    }

    #[test]
    fn shares() {
        let statistics = statistics(
            "keel: stats vm el2_instructions 1000\r\nkeel: stats vm guest_instructions 1000000\nkeel: stats vm exits_hvc 3",
        );
        assert_eq!(statistics["exits_hvc"], 3);
        assert_eq!(share(&statistics), Some(0.1));
        assert_eq!(share(&BTreeMap::new()), None);
    }
}
