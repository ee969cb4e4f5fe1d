//! The interrupt translation service: which LPI, at which vCPU, an event of a device is (IHI 0069 chapter 5).
//!
//! **The guest's memory is the state.** The device, collection and interrupt translation tables are where GITS_BASER and
//! MAPD say, in the format in which KVM saves them, and each command reads and writes them there, as hardware does. So
//! keel keeps nothing for each device or event, a guest needs no allowance for them, and there is no limit but the
//! guest's own tables. What a table says is checked each time it is read: an entry that a guest made up leads to no more
//! than an LPI of its own. As the architecture asks (IHI 0069 §5.2), software zeroes a table before it gives it.
//!
//! **One vCPU at a time** carries out commands, whoever writes GITS_CWRITER when nobody does; nobody waits for another.
//! It stops after a few commands and lets its CPU take interrupts; what is left it
//! [carries on](crate::vdev::vgic::VgicHost::carry_on) with before it enters its guest again. So the time that a guest can
//! keep a CPU is bounded, whatever is in its queue.
//!
//! **Commands that cannot be carried out** are skipped (IHI 0069 §6.3.2, the choice of KVM): nothing stalls, so
//! GITS_CREADR.Stalled is never set.

mod commands;
mod registers;
mod tables;

use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use super::memory::GuestMemory;
use super::vgic::{Vgic, VgicHost};
use registers::{BASER_VALID, COLLECTIONS, DEVICES, baser_reset, queue_bytes};
pub use registers::{LENGTH, RegisterError};

/// What is done at once before the CPU's interrupts have a turn: commands, of which INVALL and MOVALL count as
/// [`LONG_COMMAND`].
const COMMANDS_AT_ONCE: u32 = 32;
/// What a command counts that looks at everything.
const LONG_COMMAND: u32 = 16;

/// The ITS of one VM. All methods may be called from any CPU at once.
#[derive(Debug)]
pub struct Its {
    memory: Arc<dyn GuestMemory>,
    /// GITS_CTLR.Enabled.
    enabled: AtomicBool,
    cbaser: AtomicU64,
    /// Offset in the queue of the next command.
    creadr: AtomicU64,
    /// Offset in the queue after the last command.
    cwriter: AtomicU64,
    /// GITS_BASER0, the devices, and GITS_BASER1, the collections.
    basers: [AtomicU64; 2],
    /// Somebody carries commands out.
    busy: AtomicBool,
}

impl Its {
    /// An ITS in its reset state, whose tables and queue are in `memory`.
    pub fn new(memory: Arc<dyn GuestMemory>) -> Self {
        Self {
            memory,
            enabled: AtomicBool::new(false),
            cbaser: AtomicU64::new(0),
            creadr: AtomicU64::new(0),
            cwriter: AtomicU64::new(0),
            basers: [DEVICES, COLLECTIONS].map(|table| AtomicU64::new(baser_reset(table))),
            busy: AtomicBool::new(false),
        }
    }

    /// Back to the reset state (KVM_DEV_ARM_ITS_CTRL_RESET); the tables are forgotten, not cleared.
    pub fn reset(&self) {
        self.enabled.store(false, SeqCst);
        self.cbaser.store(0, SeqCst);
        self.creadr.store(0, SeqCst);
        self.cwriter.store(0, SeqCst);
        for (baser, table) in self.basers.iter().zip([DEVICES, COLLECTIONS]) {
            baser.store(baser_reset(table), SeqCst);
        }
    }

    /// The device with DeviceID `device` sends an MSI with `event` as its data, as if it wrote GITS_TRANSLATER. Whether it
    /// was translated.
    pub fn send_msi(&self, device: u32, event: u32, vgic: &Vgic, host: &dyn VgicHost) -> bool {
        self.enabled.load(SeqCst) && self.translate_and_pend(device, event, vgic, host).is_some()
    }

    /// GITS_CTLR.Enabled.
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(SeqCst)
    }

    /// Whether there are commands to carry out. A CWRITER outside the queue, which a vCPU can only leave by writing it while
    /// another one writes CBASER, says of none: no CREADR would ever reach it.
    fn has_commands(&self) -> bool {
        let cwriter = self.cwriter.load(SeqCst);
        let inside = cwriter < queue_bytes(self.cbaser.load(SeqCst));
        self.enabled.load(SeqCst) && inside && self.creadr.load(SeqCst) != cwriter
    }

    /// Carries out commands, for vCPU `by`, which is on this CPU; some of them, if there are many.
    pub fn carry_on(&self, by: usize, vgic: &Vgic, host: &dyn VgicHost) {
        let mut budget = COMMANDS_AT_ONCE;
        while self.has_commands() {
            if budget == 0 {
                vgic.expect_commands(by, host);
                return;
            }
            if self.busy.swap(true, SeqCst) {
                // Whoever is at it looks again when it has done all it saw.
                return;
            }
            self.carry_out(&mut budget, vgic, host);
            self.busy.store(false, SeqCst);
        }
    }

    /// Carries out all commands, while no vCPU runs.
    fn finish(&self, vgic: &Vgic, host: &dyn VgicHost) {
        while self.has_commands() {
            self.carry_out(&mut COMMANDS_AT_ONCE.clone(), vgic, host);
        }
    }

    fn carry_out(&self, budget: &mut u32, vgic: &Vgic, host: &dyn VgicHost) {
        while *budget != 0 && self.has_commands() {
            let cbaser = self.cbaser.load(SeqCst);
            let at = self.creadr.load(SeqCst);
            let mut words = [0; 4];
            let mut cost = 1;
            // A command in what is no memory is skipped, too.
            if self.memory.read(registers::queue_address(cbaser) + at, &mut words) {
                cost = self.execute(&words, vgic, host);
            }
            *budget = budget.saturating_sub(cost);
            let next =
                if at + commands::COMMAND_BYTES >= queue_bytes(cbaser) { 0 } else { at + commands::COMMAND_BYTES };
            // The guest may have disabled the ITS and given it another queue meanwhile.
            let _ = self.creadr.compare_exchange(at, next, SeqCst, SeqCst);
        }
    }

    fn is_ready(&self) -> bool {
        let valid = |register: &AtomicU64| register.load(SeqCst) & BASER_VALID != 0;
        valid(&self.cbaser) && self.basers.iter().all(valid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Nothing;

    impl GuestMemory for Nothing {
        fn read(&self, _: u64, _: &mut [u64]) -> bool {
            false
        }
        fn write(&self, _: u64, _: &[u64]) -> bool {
            false
        }
    }

    #[test]
    fn a_writer_outside_the_queue_asks_for_nothing() {
        let its = Its::new(Arc::new(Nothing));
        its.enabled.store(true, SeqCst);
        // One page, as another vCPU has just made it, and an offset in what it was before.
        its.cbaser.store(BASER_VALID, SeqCst);
        its.cwriter.store(0x2000, SeqCst);
        assert!(!its.has_commands());
        its.cwriter.store(0xfe0, SeqCst);
        assert!(its.has_commands());
    }
}
