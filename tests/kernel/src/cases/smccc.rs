//! The calling convention: versions, features, unknown calls, and what a call leaves alone.

use crate::{
    check, check_eq,
    harness::{Case, Check, Under::*, case},
};
use keel_test_kernel::{
    exec::{self, Outcome},
    machine::Machine,
    power,
};

/// The cases.
pub const CASES: &[Case] = &[
    case("smccc/version", 1, Keel, version),
    case("smccc/arch_features", 1, Keel, arch_features),
    case("smccc/workarounds", 1, Keel, workarounds),
    case("smccc/unknown", 1, Any, unknown),
    case("smccc/stub_numbers", 1, Keel, stub_numbers),
    case("smccc/preserves", 1, Any, preserves),
    case("smccc/sve_hint", 1, Keel, sve_hint),
    case("smccc/high_half_ignored", 1, Keel, high_half_ignored),
    case("smccc/hvc_immediate", 1, Keel, hvc_immediate),
    case("smccc/smc", 1, Keel, smc),
    case("smccc/smc_immediate", 1, Keel, smc_immediate),
    case("smccc/smc_workarounds", 1, Keel, smc_workarounds),
];

const HVC_STUB_ERR: u64 = 0x0bad_ca11;
const NOT_SUPPORTED: u64 = -1_i64 as u64;
const WORKAROUNDS: [u32; 3] = [0x8000_8000, 0x8000_7fff, 0x8000_3fff];

fn version(_: &Machine) -> Check {
    check_eq!(power::hvc(power::SMCCC_VERSION, [0; 3]), [0x10001, 0, 0, 0], "SMCCC_VERSION");
    Ok(())
}

fn arch_features(_: &Machine) -> Check {
    let query = |id: u32| power::hvc(power::SMCCC_ARCH_FEATURES, [id.into(), 0, 0])[0] as i64;
    // 1: not needed on this CPU, 0: call it, -1: vulnerable and no help; -2 of WORKAROUND_2: not required.
    let [first, second, third] = WORKAROUNDS.map(query);
    check!((-1..=1).contains(&first), "WORKAROUND_1: {first}");
    check!((-2..=1).contains(&second), "WORKAROUND_2: {second}");
    check!((-1..=1).contains(&third), "WORKAROUND_3: {third}");
    // These two may say 0 (SMCCC) or -1 (KVM).
    for id in [power::SMCCC_VERSION, power::SMCCC_ARCH_FEATURES] {
        check!((-1..=0).contains(&query(id)), "{id:#x}: {}", query(id));
    }
    for id in [0x8000_0002, 0x8000_0003, 0x8000_ffff, 0xc000_8000, power::PSCI_VERSION, 0, 0xffff_ffff] {
        check_eq!(query(id), -1, "ARCH_FEATURES({id:#x})");
    }
    // The argument is 32 bits wide; x1's upper half does not matter.
    let wide = power::hvc(power::SMCCC_ARCH_FEATURES, [0xdead_beef_8000_8000, 0, 0])[0] as i64;
    check_eq!(wide, first, "WORKAROUND_1 with an upper half");
    Ok(())
}

/// x4 and up, v0 to v31, flags and sp as before.
fn kept(outcome: &Outcome, what: &str) -> Check {
    check!(outcome.trap.is_none(), "{what}: trapped: {:x?}", outcome.trap);
    if let Some((bank, number, before, after)) = outcome.changed(&[0, 1, 2, 3]) {
        check!(false, "{what}: {bank}{number} was {before:#x}, is {after:#x}");
    }
    Ok(())
}

fn workarounds(_: &Machine) -> Check {
    for id in WORKAROUNDS {
        let outcome = exec::run_with(exec::hvc(0), &[(0, id.into())]);
        check_eq!(outcome.after.x[0], 0, "{id:#x}: x0");
        kept(&outcome, "workaround")?;
    }
    Ok(())
}

/// Numbers no revision defines, of each owner, fast and yielding, 32 and 64 bits.
fn unknown_ids() -> impl Iterator<Item = u32> {
    let owners = [0, 1, 2, 3, 4, 5, 6, 7, 8, 31, 47, 48, 49, 50, 63];
    let kinds = [0x8000_0000_u32, 0xc000_0000, 0x0000_0000, 0x4000_0000];
    owners.into_iter().flat_map(move |owner: u32| {
        kinds.into_iter().flat_map(move |kind| [0xabc, 0x7ffe, 0xffff].map(|number| kind | owner << 24 | number))
    })
}

fn unknown(machine: &Machine) -> Check {
    for id in unknown_ids().chain([0x8000_0002, 0x8000_0004, 0x8400_fffe, 0x8202_0000, 0x1234_5678]) {
        let outcome = exec::run_with(exec::hvc(0), &[(0, id.into())]);
        // The owner of the machine has the stub's calls too: what is no function of SMCCC is one of those.
        let stub = machine.is_root() && (id >> 31 == 0 || id & 0x00fe_0000 != 0);
        check_eq!(outcome.after.x[0], if stub { HVC_STUB_ERR } else { NOT_SUPPORTED }, "{id:#x}: x0");
        if machine.under_keel() {
            check_eq!(&outcome.after.x[1..4], &[0, 0, 0], "{id:#x}: x1 to x3");
        }
        kept(&outcome, "unknown call")?;
    }
    Ok(())
}

/// The stub's calls are for the kernel that owns the machine; for a guest they are unknown functions.
fn stub_numbers(_: &Machine) -> Check {
    for immediate in [0, 1, 0xffff] {
        for number in (0..8).chain([0xfff, 1 << 32, 1 << 32 | 1, 1 << 32 | 2, 1 << 63]) {
            let outcome = exec::run_with(exec::hvc(immediate), &[(0, number), (1, 0x4020_0000)]);
            check_eq!(&outcome.after.x[..4], &[NOT_SUPPORTED, 0, 0, 0], "stub call {number:#x} by HVC #{immediate:#x}");
            kept(&outcome, "a stub call")?;
        }
    }
    Ok(())
}

fn preserves(_: &Machine) -> Check {
    for id in [power::PSCI_VERSION, power::SMCCC_VERSION, power::MIGRATE_INFO_TYPE, power::PSCI_FEATURES] {
        kept(&exec::run_with(exec::hvc(0), &[(0, id.into())]), "a call")?;
    }
    // Many in a row: an interrupt of the hypervisor's own may come in between.
    for round in 0..2000 {
        let id = if round % 2 == 0 { power::PSCI_VERSION } else { 0xc600_ffff };
        kept(&exec::run_with(exec::hvc(0), &[(0, id.into())]), "a call in a row")?;
    }
    Ok(())
}

fn sve_hint(_: &Machine) -> Check {
    // A 1.1 implementation knows no hint: the id is another, unknown one.
    for id in [power::PSCI_VERSION | 1 << 16, power::SMCCC_VERSION | 1 << 16] {
        check_eq!(power::hvc(id, [0; 3])[0], NOT_SUPPORTED, "{id:#x}");
    }
    Ok(())
}

fn high_half_ignored(_: &Machine) -> Check {
    let plain = power::hvc(power::PSCI_VERSION, [0; 3])[0];
    let outcome = exec::run_with(exec::hvc(0), &[(0, 0xdead_beef_0000_0000 | u64::from(power::PSCI_VERSION))]);
    check_eq!(outcome.after.x[0], plain, "PSCI_VERSION with an upper half");
    Ok(())
}

fn hvc_immediate(_: &Machine) -> Check {
    for immediate in [1, 7, 0x1234, 0xffff] {
        for (id, expected) in
            [(power::PSCI_VERSION, 0x10001), (power::SMCCC_VERSION, 0x10001), (0xc600_ffff, NOT_SUPPORTED)]
        {
            let outcome = exec::run_with(exec::hvc(immediate), &[(0, id.into())]);
            check_eq!(outcome.after.x[0], expected, "hvc #{immediate:#x} of {id:#x}");
            kept(&outcome, "hvc with an immediate")?;
        }
    }
    Ok(())
}

fn smc(_: &Machine) -> Check {
    for (id, expected) in
        [(power::PSCI_VERSION, 0x10001), (power::SMCCC_VERSION, 0x10001), (0xc600_ffff, NOT_SUPPORTED)]
    {
        let outcome = exec::run_with(exec::smc(0), &[(0, id.into())]);
        check_eq!(outcome.after.x[0], expected, "smc of {id:#x}");
        check_eq!(&outcome.after.x[1..4], &[0, 0, 0], "smc of {id:#x}: x1 to x3");
        kept(&outcome, "smc")?;
    }
    Ok(())
}

fn smc_immediate(_: &Machine) -> Check {
    for immediate in [1, 0x8000, 0xffff] {
        let outcome = exec::run_with(exec::smc(immediate), &[(0, power::PSCI_VERSION.into())]);
        check!(outcome.trap.is_none(), "smc #{immediate:#x} trapped: {:x?}", outcome.trap);
        check_eq!(outcome.after.x[0], NOT_SUPPORTED, "smc #{immediate:#x}: x0");
        check!(outcome.changed(&[0]).is_none(), "smc #{immediate:#x} changed {:x?}", outcome.changed(&[0]));
    }
    Ok(())
}

fn smc_workarounds(_: &Machine) -> Check {
    for id in WORKAROUNDS {
        check_eq!(power::smc(id, [0; 3])[0], NOT_SUPPORTED, "smc of {id:#x}");
    }
    Ok(())
}
