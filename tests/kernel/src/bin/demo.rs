//! The guest linked into keel: prints what it finds, and powers off.
//!
//! It is the first thing a newcomer sees a guest do, so it says in plain words what each line shows.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod kernel {
    use core::sync::atomic::{AtomicUsize, Ordering};
    use keel_test_kernel::{
        arch, irq, kernel,
        machine::Machine,
        mmio, mrs, platform, power, println, smp,
        time::{self, Timer},
    };

    kernel!(main);

    fn main(machine: &'static Machine) -> ! {
        println!();
        println!("Hello from the demonstration guest.");
        println!("  exception level   EL{}", mrs!("CurrentEL") >> 2);
        describe_cpu();
        println!(
            "  memory            {} MiB at {:#x}, device tree of {} bytes at {:#x}",
            machine.memory_size >> 20,
            machine.memory_base,
            machine.tree_size,
            machine.tree
        );
        describe_gic(machine);
        irq::init(machine);
        start_cpus(machine);
        tick();
        call_firmware();
        println!("Done: powering off.");
        power::off()
    }

    /// Implementer and part of the CPUs QEMU models and keel was tried on (Arm ARM, MIDR_EL1).
    fn model(midr: u64) -> &'static str {
        match (midr >> 24 & 0xff, midr >> 4 & 0xfff) {
            (0x41, 0xd03) => "Cortex-A53",
            (0x41, 0xd04) => "Cortex-A35",
            (0x41, 0xd05) => "Cortex-A55",
            (0x41, 0xd07) => "Cortex-A57",
            (0x41, 0xd08) => "Cortex-A72",
            (0x41, 0xd0b) => "Cortex-A76",
            (0x41, 0xd0c) => "Neoverse N1",
            (0x41, 0xd40) => "Neoverse V1",
            (0x41, 0xd47) => "Cortex-A710",
            (0x41, 0xd49) => "Neoverse N2",
            (0x00, 0x051) => "QEMU max",
            _ => "unknown model",
        }
    }

    fn describe_cpu() {
        let midr = mrs!("midr_el1");
        println!("  processor         {} (MIDR_EL1 {midr:#010x})", model(midr));
        let memory = mrs!("id_aa64mmfr0_el1");
        let bits = [32, 36, 40, 42, 44, 48, 52, 56].get(memory as usize & 15).copied().unwrap_or(0);
        println!("  physical address  {bits} bits");
    }

    fn describe_gic(machine: &Machine) {
        let typer = mmio::read32(platform::GICD + 4);
        let iidr = mmio::read32(platform::GICD + 8);
        // A GICv2's distributor ends before this register.
        let version = if machine.has_gicv2 { 2 } else { mmio::read32(platform::GICD + 0xffe8) >> 4 & 15 };
        println!(
            "  interrupts        GICv{version}, {} lines (GICD_TYPER {typer:#010x}, GICD_IIDR {iidr:#010x})",
            ((typer & 0x1f) + 1) * 32
        );
    }

    fn hello(cpu: usize) {
        println!("  CPU {cpu}             says hello, MPIDR_EL1 {:#x}", mrs!("mpidr_el1"));
    }

    fn start_cpus(machine: &Machine) {
        println!("Processors: 1 running, {} to bring up through PSCI.", machine.cpus().len() - 1);
        hello(0);
        for cpu in 1..machine.cpus().len() {
            match smp::start(machine, cpu, hello, cpu) {
                Ok(()) if smp::join(machine, cpu) => {}
                Ok(()) => println!("  CPU {cpu}             was started, but did not turn itself off"),
                Err(error) => println!("  CPU {cpu}             did not start: {error}"),
            }
        }
    }

    static TICKS: AtomicUsize = AtomicUsize::new(0);
    const TICK_US: u64 = 10_000;

    fn on_irq(_: u32) {
        let tick = TICKS.fetch_add(1, Ordering::Relaxed) + 1;
        if tick < 5 {
            // From the last deadline, not from now: a late tick does not delay the next.
            let next = Timer::Virtual.compare() + time::micros(TICK_US);
            Timer::Virtual.set_compare(next);
        } else {
            Timer::Virtual.stop();
        }
        println!("  tick {tick}            CNTVCT_EL0 {}", time::now());
    }

    fn tick() {
        println!("Timer: {} Hz, five ticks of {} ms.", time::frequency(), TICK_US / 1000);
        irq::set_handler(Some(on_irq));
        irq::enable(Timer::Virtual.intid(), 0);
        Timer::Virtual.arm(TICK_US);
        let ticked = arch::with_irqs(|| time::wait_until(|| TICKS.load(Ordering::Relaxed) == 5));
        if !ticked {
            println!("  only {} ticks came", TICKS.load(Ordering::Relaxed));
        }
    }

    fn call_firmware() {
        const CALLS: [(&str, u32, u64); 8] = [
            ("PSCI_VERSION", power::PSCI_VERSION, 0),
            ("PSCI_FEATURES(CPU_ON)", power::PSCI_FEATURES, power::CPU_ON as u64),
            ("PSCI_FEATURES(SMCCC_VERSION)", power::PSCI_FEATURES, power::SMCCC_VERSION as u64),
            ("MIGRATE_INFO_TYPE", power::MIGRATE_INFO_TYPE, 0),
            ("SMCCC_VERSION", power::SMCCC_VERSION, 0),
            ("ARCH_FEATURES(WORKAROUND_1)", power::SMCCC_ARCH_FEATURES, 0x8000_8000),
            ("CPU_ON(no such CPU)", power::CPU_ON, 0xff_ffff),
            ("an unknown call", 0xc600_ffff, 0),
        ];
        println!("Hypercalls:");
        for (name, id, argument) in CALLS {
            let answer = power::hvc(id, [argument, 0, 0])[0] as i64;
            if answer < 0 {
                println!("  {id:#010x}        {name} = {answer}");
            } else {
                println!("  {id:#010x}        {name} = {answer:#x}");
            }
        }
    }
}
