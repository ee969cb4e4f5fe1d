//! `struct kvm_run`: why a run ended, and what user space answers.

use crate::{
    page::Page,
    uapi::{exit, run},
};

/// The page in which KVM_RUN says why it ended.
#[derive(Clone, Copy, Debug)]
pub struct RunPage(pub &'static Page);

/// Why KVM_RUN ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest reads something that is not memory: [`RunPage::answer`] it, and run on.
    MmioRead {
        /// Guest physical address.
        address: u64,
        /// 1, 2, 4 or 8 bytes.
        size: u32,
    },
    /// The guest has written something that is not memory.
    MmioWrite {
        /// Guest physical address.
        address: u64,
        /// 1, 2, 4 or 8 bytes.
        size: u32,
        /// What it wrote; zeros above its size.
        value: u64,
    },
    /// A call that the filter of the VM hands to user space; its arguments are registers.
    Hypercall {
        /// Function identifier.
        function: u64,
        /// Bit 0: it came by SMC.
        flags: u64,
    },
    /// An exception that belongs to the debugger (KVM_SET_GUEST_DEBUG).
    Debug {
        /// ESR_EL2, its low half.
        syndrome: u32,
        /// FAR_EL2, of a watchpoint.
        far: u64,
    },
    /// The VM as a whole: KVM_SYSTEM_EVENT_*.
    SystemEvent {
        /// Which ([`crate::uapi::event`]).
        kind: u32,
        /// How much more there is to it, 0 or 1.
        count: u32,
        /// What more there is.
        data: u64,
    },
    /// An access to what is not memory that hardware does not describe (KVM_CAP_ARM_NISV_TO_USER).
    NoSyndrome {
        /// Bits of the syndrome that are known.
        iss: u64,
        /// Guest physical address.
        address: u64,
    },
    /// Interrupted, which [`crate::Errno::EINTR`] says, too.
    Interrupted,
    /// The vCPU could not be run.
    FailEntry {
        /// Why.
        reason: u64,
    },
    /// The hypervisor cannot go on.
    InternalError {
        /// KVM_INTERNAL_ERROR_*.
        kind: u32,
    },
    /// Another exit reason.
    Other(u32),
}

impl RunPage {
    /// Why the last run ended.
    pub fn exit(self) -> Exit {
        let page = self.0;
        let union = |offset: usize, size: usize| page.read(run::UNION + offset, size);
        match self.reason() {
            exit::MMIO => {
                let (address, value, size) = (union(0, 8), union(8, 8), union(16, 4) as u32);
                match union(20, 1) {
                    0 => Exit::MmioRead { address, size },
                    _ => Exit::MmioWrite { address, size, value: low(value, size) },
                }
            }
            exit::HYPERCALL => Exit::Hypercall { function: union(0, 8), flags: union(64, 8) },
            exit::DEBUG => Exit::Debug { syndrome: union(0, 4) as u32, far: union(8, 8) },
            exit::SYSTEM_EVENT => {
                let (kind, count) = (union(0, 4) as u32, union(4, 4) as u32);
                Exit::SystemEvent { kind, count, data: if count > 0 { union(8, 8) } else { 0 } }
            }
            exit::ARM_NISV => Exit::NoSyndrome { iss: union(0, 8), address: union(8, 8) },
            exit::INTR => Exit::Interrupted,
            exit::FAIL_ENTRY => Exit::FailEntry { reason: union(0, 8) },
            exit::INTERNAL_ERROR => Exit::InternalError { kind: union(0, 4) as u32 },
            reason => Exit::Other(reason),
        }
    }

    /// KVM_EXIT_*, the number.
    pub fn reason(self) -> u32 {
        self.0.read(run::EXIT_REASON, 4) as u32
    }

    /// What the guest reads, after [`Exit::MmioRead`].
    pub fn answer(self, value: u64) {
        self.0.write(run::UNION + 8, 8, value);
    }

    /// Has the next KVM_RUN end before the guest runs, with `EINTR`, or not.
    pub fn set_immediate_exit(self, exit: bool) {
        self.0.write(run::IMMEDIATE_EXIT, 1, exit.into());
    }

    /// The levels of timers and PMU, of a VM without an interrupt controller (KVM_CAP_ARM_USER_IRQ).
    pub fn device_irq_level(self) -> u64 {
        self.0.read(run::DEVICE_IRQ_LEVEL, 8)
    }
}

/// The low `size` bytes.
fn low(value: u64, size: u32) -> u64 {
    u64::MAX.checked_shr(64_u32.saturating_sub(size.saturating_mul(8))).map_or(0, |mask| value & mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(fields: &[(usize, usize, u64)]) -> RunPage {
        let page: &'static Page = Box::leak(Box::default());
        for &(offset, size, value) in fields {
            page.write(offset, size, value);
        }
        RunPage(page)
    }

    #[test]
    fn exits() {
        let store = page(&[(8, 4, 6), (32, 8, 0x900_0000), (40, 8, 0xffff_ffff_1234_5678), (48, 4, 4), (52, 1, 1)]);
        assert_eq!(store.exit(), Exit::MmioWrite { address: 0x900_0000, size: 4, value: 0x1234_5678 });
        let load = page(&[(8, 4, 6), (32, 8, 8), (48, 4, 8)]);
        assert_eq!(load.exit(), Exit::MmioRead { address: 8, size: 8 });
        load.answer(77);
        assert_eq!(load.0.read(40, 8), 77);
        let off = page(&[(8, 4, 24), (32, 4, 1), (36, 4, 1), (40, 8, 5)]);
        assert_eq!(off.exit(), Exit::SystemEvent { kind: 1, count: 1, data: 5 });
        let suspend = page(&[(8, 4, 24), (32, 4, 5), (40, 8, 5)]);
        assert_eq!(suspend.exit(), Exit::SystemEvent { kind: 5, count: 0, data: 0 });
        assert_eq!(
            page(&[(8, 4, 3), (32, 8, 0x8400_0000), (96, 8, 1)]).exit(),
            Exit::Hypercall { function: 0x8400_0000, flags: 1 }
        );
        assert_eq!(page(&[(8, 4, 28), (32, 8, 0x47), (40, 8, 9)]).exit(), Exit::NoSyndrome { iss: 0x47, address: 9 });
        assert_eq!(page(&[(8, 4, 77)]).exit(), Exit::Other(77));
    }

    #[test]
    fn the_flag_is_one_byte() {
        let run = page(&[(0, 8, u64::MAX)]);
        run.set_immediate_exit(false);
        assert_eq!(run.0.read(0, 8), 0xffff_ffff_ffff_00ff);
        run.set_immediate_exit(true);
        assert_eq!(run.0.read(0, 8), 0xffff_ffff_ffff_01ff);
    }

    #[test]
    fn sizes_that_are_none() {
        assert_eq!(
            (low(u64::MAX, 0), low(u64::MAX, 1), low(u64::MAX, 8), low(u64::MAX, 99)),
            (0, 0xff, u64::MAX, u64::MAX)
        );
    }
}
