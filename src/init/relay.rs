//! What the stub does while its payload runs, besides the calls in assembly: SMCs are relayed, surprises reported.
//!
//! Called from `boot/stub_resident.S` on the CPU's own stack with EL2's MMU off, so nothing here takes a lock or
//! allocates. What becomes of a call is decided in [`crate::hypercall::relay`]; `arch::stub` holds the state.

use super::panic;
use crate::{
    arch::{
        cpu,
        stub::{self, Resident, SmcFrame},
        sysreg,
    },
    hypercall::relay::{
        ALREADY_ON, INVALID_ADDRESS, INVALID_PARAMETERS, NOT_SUPPORTED, OwnerPsci, Relay, SUCCESS, plain, route,
    },
    vcpu::{context::VcpuContext, fault::GuestFault, switch},
};
use core::sync::atomic::Ordering;

/// PSCI 1.0, the version that knows INVALID_ADDRESS.
const V1_0: u32 = 0x1_0000;

fn psci(resident: &Resident) -> OwnerPsci {
    let [version, legacy @ ..] = resident.psci.each_ref().map(|word| word.load(Ordering::Relaxed) as u32);
    OwnerPsci { version, legacy }
}

/// Calls firmware with x0 to x3 of `arguments`; x0 of its answer.
fn firmware(arguments: [u64; 4]) -> u64 {
    let mut registers = [0; 18];
    registers[..4].copy_from_slice(&arguments);
    if stub::forward(&mut registers) { registers[0] } else { NOT_SUPPORTED }
}

fn cpu_on(resident: &Resident, psci: &OwnerPsci, [function, target, entry, context]: [u64; 4]) -> u64 {
    // A CPU without a row has no stack: its SMCs never get here.
    let Some(caller) = resident.index(cpu::mpidr()) else { return NOT_SUPPORTED };
    let Some(block) = resident.index(target).and_then(|target| resident.start(caller, target)) else {
        return INVALID_PARAMETERS;
    };
    if !entry.is_multiple_of(4) {
        return if psci.version >= V1_0 { INVALID_ADDRESS } else { INVALID_PARAMETERS };
    }
    if block.is_pending() {
        return ALREADY_ON;
    }
    block.fill(entry, context, stub::page());
    let answer = firmware([function, target, stub::entry_address().0, block.address().0]);
    if answer != SUCCESS {
        block.clear();
    }
    answer
}

fn suspend(resident: &Resident, psci: &OwnerPsci, mut arguments: [u64; 4], at: usize) -> u64 {
    let Some(block) = resident.index(cpu::mpidr()).and_then(|index| resident.suspend(index)) else {
        return NOT_SUPPORTED;
    };
    let Some([entry, context]) = arguments.get_mut(at..at + 2).and_then(|pair| <&mut [u64; 2]>::try_from(pair).ok())
    else {
        return NOT_SUPPORTED;
    };
    if !entry.is_multiple_of(4) {
        return if psci.version >= V1_0 { INVALID_ADDRESS } else { INVALID_PARAMETERS };
    }
    block.fill(*entry, *context, stub::page());
    (*entry, *context) = (stub::entry_address().0, block.address().0);
    // Comes back only if the CPU kept its state: a standby state, or a refusal.
    let answer = firmware(arguments);
    block.clear();
    answer
}

/// An SMC of the payload.
#[unsafe(no_mangle)]
extern "C" fn stub_smc(frame: &mut SmcFrame) {
    let resident = stub::resident();
    let psci = psci(resident);
    // ESR_EL2.ISS bits 15:0: the SMC's immediate. SMCCC (DEN0028 §2.9) has only 0.
    let immediate = sysreg::read_sysreg!("esr_el2") & 0xffff;
    let [x0, x1, x2, x3, ..] = frame.x;
    // Firmware compares all of x0 in places, so it gets the number alone.
    let arguments = [plain(x0 as u32, &psci).into(), x1, x2, x3];
    let answer = match route(x0 as u32, &psci) {
        _ if immediate != 0 => NOT_SUPPORTED,
        Relay::Verbatim => {
            if stub::forward(&mut frame.x) {
                frame.elr = frame.elr.wrapping_add(4);
            } else {
                // No firmware: the instruction does not exist.
                let mut context = VcpuContext { pc: frame.elr, pstate: frame.spsr, ..VcpuContext::reset() };
                switch::inject(&mut context, GuestFault::Undefined);
                (frame.elr, frame.spsr) = (context.pc, context.pstate);
            }
            return;
        }
        Relay::Firmware => firmware(arguments),
        Relay::CpuOn => cpu_on(resident, &psci, arguments),
        Relay::Suspend { entry } => suspend(resident, &psci, arguments, entry),
        Relay::NotSupported => NOT_SUPPORTED,
    };
    frame.x[..4].copy_from_slice(&[answer, 0, 0, 0]);
    frame.elr = frame.elr.wrapping_add(4);
}

/// An exception at EL2 that nobody expects: `slot` is the number of its vector. Comes back to park the CPU.
#[unsafe(no_mangle)]
extern "C" fn stub_report(slot: u64) {
    panic::unexpected(slot);
}
