//! The VM that owns the machine under keel: what of the stub's calls it may make, and how keel leaves it the machine, with
//! every interrupt that is pending, active or on its way.

use super::stub::{
    FINALISE_EL2, GET_ICH_VTR_EL2, HVC_STUB_ERR, RESET_VECTORS, SET_VECTORS, SOFT_RESTART, answer, call, is_relayed,
    on_cpu, on_every_cpu, probe,
};
use crate::{
    check, check_eq,
    harness::{self, Case, Check, Under::*, case, eventually, eventually_with_irqs, failed, join, skip},
};
use core::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use keel_test_kernel::{
    arch, irq,
    machine::Machine,
    mmio::{read32, write32, write64},
    mrs,
    platform::{GICD, GICR, GICR_SGI, GICR_STRIDE},
    power,
    time::Timer,
};
use spin::Mutex;

/// The cases while keel stays.
pub const CASES: &[Case] = &[
    case("root/numbers", 1, Root, |machine| on_every_cpu(machine, numbers)),
    case("root/functions", 1, Root, |machine| on_every_cpu(machine, functions)),
    case("root/kept_interrupts", 1, Root, kept_interrupts),
    case("root/refused_beside_others", 1, Root, refused_beside_others),
];

/// The cases in which keel leaves.
pub const LEAVING: &[Case] =
    &[case("root/cpus_leave_one_by_one", 2, Root, one_by_one), case("root/leaves_in_a_handler", 1, Root, leaves)];

const SMCCC_VERSION: u64 = 0x8000_0000;
const VERSION_1_1: u64 = 0x1_0001;

/// An SPI without a device on QEMU's virt, edge-triggered here.
pub(super) const SPI: u32 = 77;
/// SGIs: the one that is being handled, one that is pending, and for calls between CPUs.
pub(super) const ACTIVE: u32 = 7;
pub(super) const PENDING: u32 = 5;
const CALL: u32 = 3;

const ENABLE: usize = 0x100;
pub(super) const PEND: usize = 0x200;
pub(super) const ACTIVATE: usize = 0x300;
const CONFIGURE: usize = 0xc00;
const ROUTER: usize = 0x6000;

pub(super) fn private(cpu: usize, register: usize) -> usize {
    GICR + cpu * GICR_STRIDE + GICR_SGI + register
}

/// Calls that keel does not honour, and those of the stub that it has but that are not made right.
fn numbers(_: &'static Machine) -> Check {
    for immediate in [0, 1, 0xffff] {
        for number in [
            SET_VECTORS,
            FINALISE_EL2,
            GET_ICH_VTR_EL2,
            5,
            6,
            0xfff,
            0x1000,
            0x7fff_ffff,
            1 << 32,
            1 << 32 | RESET_VECTORS,
            1 << 32 | SOFT_RESTART,
            1 << 63,
            u64::MAX,
        ] {
            let after = call(immediate, &[(0, number), (1, 0x4020_0000)])?;
            check_eq!(after.x[0], HVC_STUB_ERR, "call {number:#x} by HVC #{immediate:#x}");
        }
        for entry in [1, 2, 3, 0x4020_0001, u64::MAX] {
            let after = call(immediate, &[(0, SOFT_RESTART), (1, entry)])?;
            check_eq!(after.x[0], HVC_STUB_ERR, "SOFT_RESTART({entry:#x})");
        }
    }
    Ok(())
}

/// SMCCC and PSCI are there by both conduits; the stub's numbers are no functions of an SMC.
fn functions(machine: &'static Machine) -> Check {
    for conduit in [power::hvc, power::smc] {
        check_eq!(conduit(SMCCC_VERSION as u32, [0; 3])[0], VERSION_1_1, "SMCCC_VERSION");
        check!(conduit(power::PSCI_VERSION, [0; 3])[0] >= 0x1_0000, "PSCI_VERSION");
        let own = machine.cpus()[arch::cpu()];
        check_eq!(conduit(power::AFFINITY_INFO, [own, 0, 0])[0], 0, "AFFINITY_INFO of this CPU");
    }
    for number in [SET_VECTORS, RESET_VECTORS, 5] {
        check_eq!(power::smc(number as u32, [0; 3])[0], -1_i64 as u64, "SMC {number}");
    }
    // The CPU is the machine's own.
    check_eq!(mrs!("mpidr_el1") & 0xff_00ff_ffff, machine.cpus()[arch::cpu()], "MPIDR_EL1");
    Ok(())
}

/// keel's own PPIs are out of reach: its timer's and the maintenance interrupt.
fn kept_interrupts(_: &'static Machine) -> Check {
    const KEPT: u32 = 1 << 25 | 1 << 26;
    for register in [ENABLE, 0x180, PEND, 0x280, ACTIVATE, 0x380] {
        write32(private(0, register), KEPT);
        check_eq!(read32(private(0, register)) & KEPT, 0, "register {register:#x}");
    }
    // GICR_IPRIORITYR6, GICR_ICFGR1.
    write32(private(0, 0x418), 0x2030_4050);
    check_eq!(read32(private(0, 0x418)) & 0x00ff_ff00, 0, "their priorities");
    write32(private(0, CONFIGURE + 4), !0);
    check_eq!(read32(private(0, CONFIGURE + 4)) >> 18 & 0xf, 0, "their configuration");
    write32(private(0, CONFIGURE + 4), 0);
    Ok(())
}

/// Where other VMs are, keel stays.
fn refused_beside_others(machine: &'static Machine) -> Check {
    if !machine.has("beside") {
        return skip("needs another VM (beside)");
    }
    check_eq!(answer(&[(0, RESET_VECTORS)])?, HVC_STUB_ERR, "RESET_VECTORS");
    check_eq!(answer(&[(0, SOFT_RESTART), (1, 0x4020_0000)])?, HVC_STUB_ERR, "SOFT_RESTART");
    check_eq!(power::hvc(SMCCC_VERSION as u32, [0; 3])[0], VERSION_1_1, "SMCCC_VERSION afterwards");
    Ok(())
}

/// Whether keel answers on this CPU.
pub(super) fn is_under_keel() -> bool {
    power::hvc(SMCCC_VERSION as u32, [0; 3])[0] == VERSION_1_1
}

pub(super) fn over_the_stub(what: &str) -> Check {
    check_eq!(answer(&[(0, RESET_VECTORS)])?, 0, "RESET_VECTORS of the stub, {what}");
    check_eq!(answer(&[(0, SMCCC_VERSION)])?, HVC_STUB_ERR, "SMCCC_VERSION by HVC, {what}");
    check!(is_relayed()?, "SMCs are not relayed, {what}");
    Ok(())
}

/// This CPU's interface: ICC_PMR, BPR1, CTLR, IGRPEN1, RPR.
pub(super) fn interface() -> [u64; 5] {
    [
        mrs!("S3_0_C4_C6_0"),
        mrs!("S3_0_C12_C12_3"),
        mrs!("S3_0_C12_C12_4") & 3,
        mrs!("S3_0_C12_C12_7"),
        mrs!("S3_0_C12_C11_3"),
    ]
}

/// EL1's timers and counter offset, as far as they stand still.
pub(super) fn timers() -> [u64; 5] {
    [mrs!("cntv_ctl_el0"), mrs!("cntv_cval_el0"), mrs!("cntp_ctl_el0") & 3, mrs!("cntp_cval_el0"), mrs!("cntkctl_el1")]
}

static IN_HANDLER: Mutex<Option<Check>> = Mutex::new(None);

pub(super) fn set_up_spi(mpidr: u64) {
    let edge = read32(GICD + CONFIGURE + SPI as usize / 16 * 4) | 2 << (SPI % 16 * 2);
    write32(GICD + CONFIGURE + SPI as usize / 16 * 4, edge);
    write64(GICD + ROUTER + 8 * SPI as usize, mpidr & 0xff_00ff_ffff);
    irq::set_priority(SPI, 0, 0xa0);
    irq::enable(SPI, 0);
}

pub(super) fn pend_spi() {
    write32(GICD + PEND + SPI as usize / 32 * 4, 1 << (SPI % 32));
}

pub(super) fn is_set(register: usize, intid: u32) -> bool {
    read32(register + if intid < 32 { 0 } else { intid as usize / 32 * 4 }) >> (intid % 32) & 1 != 0
}

/// keel leaves CPU 0 while it handles an SGI, with an SPI, an SGI and a timer pending: nothing is lost, nothing comes twice.
fn leaves(machine: &'static Machine) -> Check {
    fn leave(machine: &'static Machine) -> Check {
        pend_spi();
        irq::send(PENDING, machine.cpus()[0]);
        Timer::Virtual.arm(1);
        eventually("the timer's PPI is pending", || is_set(private(0, PEND), Timer::Virtual.intid()))?;
        let pending = || {
            [
                is_set(GICD + PEND, SPI),
                is_set(private(0, PEND), PENDING),
                is_set(private(0, PEND), Timer::Virtual.intid()),
            ]
        };
        check_eq!(pending(), [true; 3], "pending under keel: SPI, SGI, timer");
        check!(is_set(private(0, ACTIVATE), ACTIVE), "the SGI is not active under keel");
        let before = (interface(), timers());
        check_eq!(answer(&[(0, RESET_VECTORS)])?, 0, "RESET_VECTORS");
        check_eq!((interface(), timers()), before, "CPU interface and timers");
        check_eq!(pending(), [true; 3], "pending afterwards: SPI, SGI, timer");
        check!(is_set(private(0, ACTIVATE), ACTIVE), "the SGI is not active afterwards");
        check!(is_set(private(0, ENABLE), Timer::Virtual.intid()), "the timer's PPI is not enabled");
        over_the_stub("in the handler")
    }
    static THE: Mutex<Option<&'static Machine>> = Mutex::new(None);
    fn handler(intid: u32) {
        let machine = *THE.lock();
        match (intid, machine) {
            (ACTIVE, Some(machine)) => *IN_HANDLER.lock() = Some(leave(machine)),
            (intid, _) if intid == Timer::Virtual.intid() => Timer::Virtual.stop(),
            _ => {}
        }
    }
    if machine.has("beside") {
        return skip("another VM is there (beside)");
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
    machine.set_left();
    match IN_HANDLER.lock().take() {
        Some(Err(harness::Verdict::Failed)) => return Err(failed(format_args!("{}", harness::reason()))),
        Some(other) => other?,
        None => check!(false, "the handler did not run"),
    }
    let counts = || [ACTIVE, SPI, PENDING, Timer::Virtual.intid()].map(|intid| irq::count(0, intid));
    check_eq!(counts(), [1; 4], "taken: the handled SGI, SPI, SGI, timer");
    // And all of it goes on.
    pend_spi();
    irq::send(PENDING, machine.cpus()[0]);
    Timer::Virtual.arm(100);
    eventually_with_irqs("three more", || irq::total(0) >= 7)?;
    arch::with_irqs(|| keel_test_kernel::time::delay(2000));
    check_eq!(counts(), [1, 2, 2, 2], "taken in all");
    check!(irq::spurious(0) == 0, "{} spurious interrupts", irq::spurious(0));
    over_the_stub("after the handler")
}

/// What the CPUs are at: see [`one_by_one`].
static PHASE: AtomicU64 = AtomicU64::new(0);

/// CPU 1 leaves keel first and works with CPU 0, which stays; then others come and go.
fn one_by_one(machine: &'static Machine) -> Check {
    fn first_to_leave(machine: &'static Machine) -> Check {
        let done = leave_first(machine);
        PHASE.store(u64::MAX, Release);
        done
    }
    fn leave_first(machine: &'static Machine) -> Check {
        check!(is_under_keel(), "keel is not there");
        for intid in [CALL, PENDING] {
            irq::set_priority(intid, 1, 0xa0);
            irq::enable(intid, 1);
        }
        // By way of EL2: the payload there comes back.
        let [_, _, sctlr] = probe()?;
        check_eq!(sctlr & 0xffff_ffff, 0x30c5_0830, "SCTLR_EL2");
        over_the_stub("after SOFT_RESTART")?;
        PHASE.store(1, Release);
        eventually_with_irqs("CPU 0's SGI", || irq::count(1, CALL) == 1)?;
        irq::send(PENDING, machine.cpus()[0]);
        // An SPI that this CPU, by hardware, sends to CPU 0, which is under keel.
        set_up_spi(machine.cpus()[0]);
        pend_spi();
        eventually("CPU 0 is done", || PHASE.load(Acquire) == 2)?;
        // The SPI comes here once it is told to.
        set_up_spi(machine.cpus()[1]);
        pend_spi();
        eventually_with_irqs("the SPI", || irq::count(1, SPI) == 1)?;
        check_eq!(irq::count(1, CALL), 1, "SGIs of CPU 0");
        Ok(())
    }
    fn started_by_keel(_: &'static Machine) -> Check {
        over_the_stub("on a CPU that keel started while leaving")
    }
    if machine.has("beside") {
        return skip("another VM is there (beside)");
    }
    for intid in [CALL, PENDING] {
        irq::set_priority(intid, 0, 0xa0);
        irq::enable(intid, 0);
    }
    PHASE.store(0, Relaxed);
    let here = || {
        eventually("CPU 1 has left", || PHASE.load(Acquire) != 0)?;
        check!(is_under_keel(), "keel has left CPU 0 too");
        irq::send(CALL, machine.cpus()[1]);
        eventually_with_irqs("CPU 1's SGI and SPI", || irq::count(0, PENDING) == 1 && irq::count(0, SPI) == 1)?;
        PHASE.store(2, Release);
        Ok(())
    };
    super::stub::while_on_cpu(machine, 1, first_to_leave, here)?;
    check!(is_under_keel(), "keel has left CPU 0 too");
    // CPU 1 turned itself off over the stub. Started from under keel, it and the others come up over the stub.
    for cpu in 1..machine.cpus().len() {
        on_cpu(machine, cpu, started_by_keel)?;
        join(machine, cpu)?;
    }
    Ok(())
}
