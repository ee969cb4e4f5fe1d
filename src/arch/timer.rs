//! The generic timer as EL2 uses it: the counter, and the EL2 physical timer (CNTHP, PPI 26) as keel's only tick.

use super::sysreg::{isb, read_sysreg, write_sysreg};

/// The physical counter. The ISB keeps the read from being hoisted over what it times.
#[inline]
pub fn now() -> u64 {
    isb();
    read_sysreg!("cntpct_el0")
}

/// Ticks of the counter per second.
pub fn frequency() -> u64 {
    read_sysreg!("cntfrq_el0")
}

/// Makes the EL2 physical timer fire at `deadline`, or not at all.
pub fn set_deadline(deadline: Option<u64>) {
    match deadline {
        Some(at) => {
            write_sysreg!("cnthp_cval_el2", at);
            write_sysreg!("cnthp_ctl_el2", 1);
        }
        None => write_sysreg!("cnthp_ctl_el2", 0),
    }
    isb();
}

/// Whether a CNTx_CTL_EL0 value says that the timer's output is high: ENABLE, not IMASK, ISTATUS.
pub const fn output(control: u64) -> bool {
    control & 0b111 == 0b101
}

/// The output of the EL1 virtual timer that the guest on this CPU programmed.
pub fn virtual_output() -> bool {
    output(read_sysreg!("cntv_ctl_el0"))
}

/// The output of the EL1 physical timer that the guest on this CPU programmed.
pub fn physical_output() -> bool {
    output(read_sysreg!("cntp_ctl_el0"))
}
