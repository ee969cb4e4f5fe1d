//! The generic timer as EL2 uses it: the counter, and the EL2 physical timer (CNTHP, PPI 26) as keel's only tick.

use super::sysreg::{isb, read_sysreg, write_sysreg};
use aarch64_cpu::registers::{CNTFRQ_EL0, CNTHP_CTL_EL2, CNTP_CTL_EL0, CNTPCT_EL0, CNTV_CTL_EL0};
use tock_registers::interfaces::{Readable, Writeable};

/// The physical counter. The ISB keeps the read from being hoisted over what it times.
#[inline]
pub fn now() -> u64 {
    isb();
    CNTPCT_EL0.get()
}

/// Ticks of the counter per second.
pub fn frequency() -> u64 {
    CNTFRQ_EL0.get()
}

/// Makes the EL2 physical timer fire at `deadline`, or not at all.
pub fn set_deadline(deadline: Option<u64>) {
    match deadline {
        Some(at) => {
            write_sysreg!("cnthp_cval_el2", at);
            CNTHP_CTL_EL2.write(CNTHP_CTL_EL2::ENABLE::SET);
        }
        None => CNTHP_CTL_EL2.set(0),
    }
    isb();
}

/// When it fires, if it is to and has not.
pub fn deadline() -> Option<u64> {
    CNTHP_CTL_EL2.is_set(CNTHP_CTL_EL2::ENABLE).then(|| read_sysreg!("cnthp_cval_el2"))
}

/// Whether a CNTx_CTL_EL0 value says that the timer's output is high: ENABLE, not IMASK, ISTATUS.
pub const fn output(control: u64) -> bool {
    control & 0b111 == 0b101
}

/// The output of the EL1 virtual timer that the guest on this CPU programmed.
pub fn virtual_output() -> bool {
    output(CNTV_CTL_EL0.get())
}

/// The output of the EL1 physical timer that the guest on this CPU programmed.
pub fn physical_output() -> bool {
    output(CNTP_CTL_EL0.get())
}

/// The output of the EL2 physical timer.
pub fn hypervisor_output() -> bool {
    output(CNTHP_CTL_EL2.get())
}

/// Carries out a trapped access of EL1's physical counter or timer, for a guest whose physical counter is `offset` ticks
/// behind the machine's: a load, or a store of `value`. `None` if the register with this op0, op1, CRn, CRm and op2 is none
/// of them, or read-only. The timer's comparator is kept in the machine's time, so that it fires without help.
pub fn offset_access(fields: [u8; 5], value: Option<u64>, offset: u64) -> Option<u64> {
    Some(match (fields, value) {
        // CNTPCT_EL0, CNTPCTSS_EL0.
        ([3, 3, 14, 0, 1 | 5], None) => now().wrapping_sub(offset),
        // CNTP_TVAL_EL0: a distance.
        ([3, 3, 14, 2, 0], None) => read_sysreg!("cntp_tval_el0") & 0xffff_ffff,
        ([3, 3, 14, 2, 0], Some(value)) => {
            write_sysreg!("cntp_tval_el0", value);
            0
        }
        // CNTP_CTL_EL0.
        ([3, 3, 14, 2, 1], None) => read_sysreg!("cntp_ctl_el0"),
        ([3, 3, 14, 2, 1], Some(value)) => {
            write_sysreg!("cntp_ctl_el0", value);
            0
        }
        // CNTP_CVAL_EL0.
        ([3, 3, 14, 2, 2], None) => read_sysreg!("cntp_cval_el0").wrapping_sub(offset),
        ([3, 3, 14, 2, 2], Some(value)) => {
            write_sysreg!("cntp_cval_el0", value.wrapping_add(offset));
            0
        }
        _ => return None,
    })
}
