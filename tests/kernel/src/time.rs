//! The generic timer: the counter, deadlines, and EL1's two timers.

use crate::{arch, mrs, msr, platform};

/// Virtual counter, ordered after everything before it.
#[inline(always)]
pub fn now() -> u64 {
    arch::isb();
    mrs!("cntvct_el0")
}

/// Ticks in a second.
pub fn frequency() -> u64 {
    mrs!("cntfrq_el0")
}

/// Ticks in so many microseconds.
pub fn micros(count: u64) -> u64 {
    (u128::from(count) * u128::from(frequency()) / 1_000_000) as u64
}

/// How long a test waits for what must happen. Generous: a loaded machine may stop a CPU for a long time.
pub const PATIENCE_US: u64 = 20_000_000;

/// The longest time that passes between two looks of a CPU that runs. What is more was taken by the machine below, and from
/// the other CPUs too: it is no time in which they could have done something.
const LOOK_US: u64 = 10_000;

/// Spins until `done`, for at most [`PATIENCE_US`] of time in which this CPU ran; says whether it happened.
pub fn wait_until(mut done: impl FnMut() -> bool) -> bool {
    let (mut left, longest) = (micros(PATIENCE_US), micros(LOOK_US));
    let mut before = now();
    while !done() {
        let after = now();
        let Some(rest) = left.checked_sub((after - before).min(longest)) else { return done() };
        (left, before) = (rest, after);
        arch::relax();
    }
    true
}

/// Spins for so many microseconds.
pub fn delay(us: u64) {
    let deadline = now() + micros(us);
    while now() < deadline {
        arch::relax();
    }
}

/// CNTx_CTL_EL0.ENABLE.
pub const ENABLE: u64 = 1;
/// CNTx_CTL_EL0.IMASK.
pub const IMASK: u64 = 2;
/// CNTx_CTL_EL0.ISTATUS.
pub const ISTATUS: u64 = 4;

/// EL1's two timers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// CNTV_*.
    Virtual,
    /// CNTP_*.
    Physical,
}

impl Timer {
    /// The PPI the timer raises.
    pub fn intid(self) -> u32 {
        match self {
            Timer::Virtual => platform::VIRTUAL_TIMER_INTID,
            Timer::Physical => platform::PHYSICAL_TIMER_INTID,
        }
    }

    /// The counter this timer compares with.
    pub fn counter(self) -> u64 {
        arch::isb();
        match self {
            Timer::Virtual => mrs!("cntvct_el0"),
            Timer::Physical => mrs!("cntpct_el0"),
        }
    }

    /// CTL register.
    pub fn control(self) -> u64 {
        match self {
            Timer::Virtual => mrs!("cntv_ctl_el0"),
            Timer::Physical => mrs!("cntp_ctl_el0"),
        }
    }

    /// Writes the CTL register.
    pub fn set_control(self, value: u64) {
        match self {
            Timer::Virtual => msr!("cntv_ctl_el0", value),
            Timer::Physical => msr!("cntp_ctl_el0", value),
        }
    }

    /// CVAL register.
    pub fn compare(self) -> u64 {
        match self {
            Timer::Virtual => mrs!("cntv_cval_el0"),
            Timer::Physical => mrs!("cntp_cval_el0"),
        }
    }

    /// Writes the CVAL register.
    pub fn set_compare(self, value: u64) {
        match self {
            Timer::Virtual => msr!("cntv_cval_el0", value),
            Timer::Physical => msr!("cntp_cval_el0", value),
        }
    }

    /// TVAL register.
    pub fn value(self) -> u64 {
        match self {
            Timer::Virtual => mrs!("cntv_tval_el0"),
            Timer::Physical => mrs!("cntp_tval_el0"),
        }
    }

    /// Writes the TVAL register.
    pub fn set_value(self, value: u64) {
        match self {
            Timer::Virtual => msr!("cntv_tval_el0", value),
            Timer::Physical => msr!("cntp_tval_el0", value),
        }
    }

    /// Fires in so many microseconds.
    pub fn arm(self, us: u64) {
        self.set_compare(self.counter() + micros(us));
        self.set_control(ENABLE);
    }

    /// Off.
    pub fn stop(self) {
        self.set_control(0);
    }
}
