//! What the device tree says: CPUs, memory, and the boot arguments that select what the kernel does.

use crate::{arch, console, platform, power};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use fdt::Fdt;

/// The machine as described by the device tree.
#[derive(Debug)]
pub struct Machine {
    /// `/chosen/bootargs`, empty if there are none.
    pub bootargs: &'static str,
    /// First byte of RAM.
    pub memory_base: usize,
    /// Bytes of RAM.
    pub memory_size: usize,
    /// The first byte after all RAM, if there is more than this piece.
    pub memory_end: usize,
    /// Address of the device tree.
    pub tree: usize,
    /// Bytes of the device tree.
    pub tree_size: usize,
    /// Whether the interrupt controller is a GICv3.
    pub has_gicv3: bool,
    /// Whether it is a GICv2 at the platform's addresses.
    pub has_gicv2: bool,
    /// Whether it has an ITS.
    pub has_its: bool,
    /// The hyp stub underneath: its memory, and the address of its vectors.
    pub stub: Option<Stub>,
    mpidrs: [u64; platform::MAX_CPUS],
    /// The word that a spin-table CPU waits for, 0 for one that PSCI starts.
    release: [usize; platform::MAX_CPUS],
    count: usize,
}

/// What the device tree says of the hyp stub.
#[derive(Clone, Copy, Debug)]
pub struct Stub {
    /// First byte of the memory it keeps.
    pub base: usize,
    /// Bytes of it.
    pub size: usize,
    /// Address of its vectors.
    pub vectors: u64,
    /// Whether nobody is to map its memory.
    pub no_map: bool,
}

static LEFT: AtomicBool = AtomicBool::new(false);

static MACHINE: spin::Mutex<Machine> = spin::Mutex::new(Machine {
    bootargs: "",
    memory_base: platform::RAM,
    memory_size: 0,
    memory_end: 0,
    tree: 0,
    tree_size: 0,
    has_gicv3: true,
    has_gicv2: false,
    has_its: false,
    stub: None,
    mpidrs: [0; platform::MAX_CPUS],
    release: [0; platform::MAX_CPUS],
    count: 0,
});

impl Machine {
    /// Reads the tree at `tree`, or at the base of RAM if `tree` is 0, and names the calling CPU number 0.
    ///
    /// Called once, on the boot CPU. Panics, on the console, if there is no tree or no memory node.
    pub fn discover(tree: u64) -> &'static Machine {
        arch::set_cpu(0);
        console::init();
        let tree = if tree == 0 { platform::RAM } else { tree as usize };
        // SAFETY: a tree at x0 is the boot protocol of arm64, one at the base of RAM that of QEMU for ELF files;
        // all of RAM is mapped, the header is checked, and nobody writes to it.
        let fdt = match unsafe { Fdt::from_ptr(tree as *const u8) } {
            Ok(fdt) => fdt,
            Err(error) => panic!("no device tree at {tree:#x}: {error:?}"),
        };
        let mut machine = MACHINE.lock();
        machine.tree = tree;
        machine.tree_size = fdt.total_size();
        machine.bootargs = fdt.chosen().bootargs().unwrap_or("");
        if machine.value("console") == Some("semihosting") {
            console::use_semihosting();
        }
        if let Some(region) = fdt.memory().regions().next() {
            machine.memory_base = region.starting_address as usize;
            machine.memory_size = region.size.unwrap_or(0);
        }
        let ends = fdt.find_all_nodes("/memory").filter_map(|node| node.reg()).flatten();
        let ends = ends.map(|region| region.starting_address as usize + region.size.unwrap_or(0));
        machine.memory_end = ends.max().unwrap_or(machine.memory_base + machine.memory_size);
        machine.has_gicv3 = fdt.find_compatible(&["arm,gic-v3"]).is_some();
        let gicv2 = fdt.find_compatible(&["arm,cortex-a15-gic"]).and_then(|node| node.reg()?.next());
        machine.has_gicv2 = gicv2.is_some_and(|region| region.starting_address as usize == platform::GICD);
        machine.has_its = fdt.find_compatible(&["arm,gic-v3-its"]).is_some();
        machine.stub = fdt.find_compatible(&["keel,hyp-stub"]).and_then(|node| {
            let region = node.reg()?.next()?;
            let vectors = node.property("keel,vectors")?.as_usize()? as u64;
            let no_map = node.property("no-map").is_some();
            Some(Stub { base: region.starting_address as usize, size: region.size?, vectors, no_map })
        });
        let psci = fdt.find_compatible(&["arm,psci-1.0", "arm,psci-0.2", "arm,psci"]);
        if let Some(method) = psci.and_then(|node| node.property("method")?.as_str()) {
            power::set_method(method);
        }
        let boot = crate::mrs!("mpidr_el1") & MPIDR_AFFINITY;
        machine.mpidrs[0] = boot;
        machine.count = 1;
        for cpu in fdt.cpus() {
            let mpidr = cpu.ids().first() as u64;
            let next = machine.count;
            if mpidr != boot && next < platform::MAX_CPUS {
                machine.mpidrs[next] = mpidr;
                let method = cpu.property("enable-method").and_then(|method| method.as_str());
                let word = cpu.property("cpu-release-addr").and_then(|address| address.as_usize());
                machine.release[next] = word.filter(|_| method == Some("spin-table")).unwrap_or(0);
                machine.count += 1;
            }
        }
        // From here on it is only read.
        spin::MutexGuard::leak(machine)
    }

    /// MPIDR affinity of every CPU; the boot CPU is the first.
    pub fn cpus(&self) -> &[u64] {
        &self.mpidrs[..self.count]
    }

    /// Address of the word that CPU `cpu` waits for, if it is started by spin-table.
    pub fn release_word(&self, cpu: usize) -> Option<usize> {
        self.release.get(cpu).copied().filter(|&word| word != 0)
    }

    /// Whether the boot arguments have the word `name`.
    pub fn has(&self, name: &str) -> bool {
        self.bootargs.split_whitespace().any(|word| word == name)
    }

    /// Value of the boot argument `name=value`.
    pub fn value(&self, name: &str) -> Option<&'static str> {
        self.bootargs.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }

    /// Whether the hyp stub is under the kernel: it was told so (`hyp=stub`), or it has sent keel away.
    pub fn over_stub(&self) -> bool {
        self.value("hyp") == Some("stub") || self.is_root() && LEFT.load(Relaxed)
    }

    /// Notes that keel, under which the kernel owned the machine, has left it.
    pub fn set_left(&self) {
        LEFT.store(true, Relaxed);
    }

    /// Whether the kernel was told that it owns the machine under keel (`hyp=root`).
    pub fn is_root(&self) -> bool {
        self.value("hyp") == Some("root")
    }

    /// Whether the kernel was told that it runs under keel (`hyp=keel`), or under KVM (`hyp=kvm`), whose guest interface
    /// is the same.
    pub fn under_keel(&self) -> bool {
        matches!(self.value("hyp"), Some("keel" | "kvm"))
    }
}

/// The affinity fields of MPIDR_EL1: Aff3 39:32, Aff2 to Aff0 23:0.
pub const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;
