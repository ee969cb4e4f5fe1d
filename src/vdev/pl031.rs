//! The PL031 real-time clock: a guest's wall clock and alarm.
//!
//! Source: Arm DDI 0224, PrimeCell Real Time Clock (PL031) Technical Reference Manual, section 3; as in QEMU's `virt`
//! machine the clock always runs, so writes of RTCCR change nothing. The clock has no time source of its own: every
//! call is told `now`, seconds of a monotonic clock that all calls share, and the owner asks [`Pl031::next_alarm`] when
//! to call [`Pl031::advance`] next.

use super::mmio::{AccessSize, read_words, write_words};

/// Bytes of address space the device decodes.
pub const LENGTH: u64 = 0x1000;

/// Register offsets (DDI 0224, table 3-1).
mod offset {
    pub const DR: u64 = 0x000;
    pub const MR: u64 = 0x004;
    pub const LR: u64 = 0x008;
    pub const CR: u64 = 0x00c;
    pub const IMSC: u64 = 0x010;
    pub const RIS: u64 = 0x014;
    pub const MIS: u64 = 0x018;
    pub const ICR: u64 = 0x01c;
    pub const ID: u64 = 0xfe0;
}

/// RTCPeriphID0 to 3, then RTCPCellID0 to 3: part 0x031, designer Arm, revision 1 (3.3.9 to 3.3.16).
const IDENTIFICATION: [u8; 8] = [0x31, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

/// Seconds after which the counter repeats itself.
const PERIOD: u64 = 1 << 32;

/// One clock.
#[derive(Clone, Debug)]
pub struct Pl031 {
    /// Counter minus the low 32 bits of `now`.
    ahead: u32,
    loaded: u32,
    matched: u32,
    /// When, in seconds of `now`, the counter next becomes equal to `matched`.
    alarm: u64,
    mask: bool,
    raw: bool,
}

impl Pl031 {
    /// A clock that shows `wall_clock`, seconds since 1970, at `now`.
    pub const fn new(wall_clock: u64, now: u64) -> Self {
        let ahead = (wall_clock as u32).wrapping_sub(now as u32);
        let mut clock = Self { ahead, loaded: 0, matched: 0, alarm: 0, mask: false, raw: false };
        clock.reset(now);
        clock
    }

    /// Back to the state after reset, but for the time, which goes on: the device has a battery.
    pub const fn reset(&mut self, now: u64) {
        (self.loaded, self.matched, self.mask, self.raw) = (0, 0, false, false);
        self.alarm = now.saturating_add(match self.until_match(now) {
            0 => PERIOD,
            seconds => seconds,
        });
    }

    /// The level of the interrupt, RTCINTR, as of the last call that was told the time.
    #[inline]
    pub fn line(&self) -> bool {
        self.raw && self.mask
    }

    /// When, in seconds of `now`, [`Self::line`] will rise if nothing is written before; `None` if it will not.
    pub fn next_alarm(&self) -> Option<u64> {
        (self.mask && !self.raw).then_some(self.alarm)
    }

    /// Tells the time: an alarm that is due is raised.
    pub fn advance(&mut self, now: u64) {
        if now >= self.alarm {
            self.raw = true;
            // A match missed for longer than a period is the same match.
            self.alarm = now.saturating_add(match self.until_match(now) {
                0 => PERIOD,
                seconds => seconds,
            });
        }
    }

    /// Answers a load of `size` at `offset` from the start of the device; [`read_words`] has the rules.
    pub fn read(&mut self, offset: u64, size: AccessSize, now: u64) -> u64 {
        self.advance(now);
        read_words(offset, size, |offset| self.read_word(offset, now))
    }

    /// Obeys a store of `size` at `offset`; [`write_words`] has the rules.
    pub fn write(&mut self, offset: u64, size: AccessSize, value: u64, now: u64) {
        self.advance(now);
        write_words(offset, size, value, |offset, value| self.write_word(offset, value, now));
        self.advance(now);
    }

    fn read_word(&self, offset: u64, now: u64) -> u32 {
        match offset {
            offset::DR => self.counter(now),
            offset::MR => self.matched,
            offset::LR => self.loaded,
            offset::CR => 1,
            offset::IMSC => self.mask.into(),
            offset::RIS => self.raw.into(),
            offset::MIS => self.line().into(),
            offset::ID.. => IDENTIFICATION.get(((offset - offset::ID) / 4) as usize).map_or(0, |byte| u32::from(*byte)),
            _ => 0,
        }
    }

    fn write_word(&mut self, offset: u64, value: u32, now: u64) {
        match offset {
            offset::MR => self.matched = value,
            offset::LR => {
                self.loaded = value;
                self.ahead = value.wrapping_sub(now as u32);
            }
            offset::IMSC => self.mask = value & 1 != 0,
            offset::ICR => self.raw &= value & 1 == 0,
            _ => {}
        }
        if matches!(offset, offset::MR | offset::LR) {
            self.alarm = now.saturating_add(self.until_match(now));
        }
    }

    const fn counter(&self, now: u64) -> u32 {
        self.ahead.wrapping_add(now as u32)
    }

    /// Seconds until the counter is equal to RTCMR; 0 when it is now.
    const fn until_match(&self, now: u64) -> u64 {
        self.matched.wrapping_sub(self.counter(now)) as u64
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::offset::*;
    use super::*;

    const WALL: u64 = 1_750_000_000;
    const WORD: AccessSize = AccessSize::Word;

    #[test]
    fn tells_the_time() {
        let mut clock = Pl031::new(WALL, 1000);
        assert_eq!(clock.read(DR, WORD, 1000), WALL);
        assert_eq!(clock.read(DR, WORD, 1042), WALL + 42);
        clock.write(DR, WORD, 5, 1042);
        assert_eq!(clock.read(DR, WORD, 1042), WALL + 42);
        clock.write(LR, WORD, 100, 1050);
        assert_eq!(clock.read(LR, WORD, 1051), 100);
        assert_eq!(clock.read(DR, WORD, 1060), 110);
        clock.reset(1060);
        assert_eq!(clock.read(DR, WORD, 1061), 111);
    }

    #[test]
    fn reset_values_and_identification() {
        let mut clock = Pl031::new(0, 0);
        for (offset, value) in [(MR, 0), (LR, 0), (CR, 1), (IMSC, 0), (RIS, 0), (MIS, 0), (ICR, 0), (0x20, 0)] {
            assert_eq!(clock.read(offset, WORD, 0), value, "{offset:#x}");
        }
        clock.write(CR, WORD, 0, 0);
        assert_eq!(clock.read(CR, WORD, 0), 1);
        let bytes: Vec<u64> = (0xfe0..0x1000).step_by(4).map(|offset| clock.read(offset, WORD, 0)).collect();
        assert_eq!(bytes, [0x31, 0x10, 0x14, 0x00, 0x0d, 0xf0, 0x05, 0xb1]);
    }

    #[test]
    fn alarm() {
        let mut clock = Pl031::new(WALL, 1000);
        clock.write(MR, WORD, WALL + 10, 1000);
        assert_eq!(clock.next_alarm(), None, "masked");
        clock.write(IMSC, WORD, 0xffff_ffff, 1000);
        assert_eq!(clock.read(IMSC, WORD, 1000), 1);
        assert_eq!(clock.next_alarm(), Some(1010));
        clock.advance(1009);
        assert!(!clock.line());
        clock.advance(1010);
        assert!(clock.line());
        assert_eq!(clock.next_alarm(), None);
        assert_eq!((clock.read(RIS, WORD, 1011), clock.read(MIS, WORD, 1011)), (1, 1));
        clock.write(ICR, WORD, 0, 1011);
        assert!(clock.line());
        clock.write(ICR, WORD, 1, 1011);
        assert!(!clock.line());
        assert_eq!(clock.next_alarm(), Some(1010 + PERIOD));
    }

    #[test]
    fn a_match_is_remembered_while_masked() {
        let mut clock = Pl031::new(WALL, 0);
        clock.write(MR, WORD, WALL + 3, 0);
        assert_eq!(clock.read(RIS, WORD, 3), 1);
        assert_eq!(clock.read(MIS, WORD, 3), 0);
        clock.write(IMSC, WORD, 1, 4);
        assert!(clock.line());
    }

    #[test]
    fn an_alarm_for_now_is_at_once_and_one_in_the_past_far_ahead() {
        let mut clock = Pl031::new(WALL, 0);
        clock.write(IMSC, WORD, 1, 0);
        clock.write(MR, WORD, WALL - 1, 0);
        assert!(!clock.line());
        assert_eq!(clock.next_alarm(), Some(PERIOD - 1));
        clock.write(MR, WORD, WALL + 7, 7);
        assert!(clock.line());
    }

    #[test]
    fn setting_the_time_moves_the_alarm() {
        let mut clock = Pl031::new(WALL, 0);
        clock.write(IMSC, WORD, 1, 0);
        clock.write(MR, WORD, WALL + 100, 0);
        clock.write(LR, WORD, WALL + 90, 5);
        assert_eq!(clock.next_alarm(), Some(15));
        clock.write(LR, WORD, WALL + 100, 6);
        assert!(clock.line());
    }

    #[test]
    fn time_beyond_2106_wraps() {
        let mut clock = Pl031::new(PERIOD + 5, 3);
        assert_eq!(clock.read(DR, WORD, 4), 6);
        assert_eq!(clock.read(DR, AccessSize::Byte, 4), 6);
        assert_eq!(Pl031::new(PERIOD - 1, 0).read(DR, WORD, 2), 1);
    }

    proptest! {
        /// Against the definition: the raw interrupt is set exactly when the counter was equal to RTCMR at some second
        /// since the last clear or write of a register that decides it.
        #[test]
        fn matches_exactly(start in any::<u64>(), wall in any::<u32>(), ahead in 0u32..20, steps in 0u64..40) {
            let start = start >> 1;
            let mut clock = Pl031::new(wall.into(), start);
            clock.write(MR, WORD, wall.wrapping_add(ahead).into(), start);
            clock.advance(start + steps);
            prop_assert_eq!(clock.read(RIS, WORD, start + steps) == 1, steps >= u64::from(ahead));
        }

        #[test]
        fn any_sequence(
            steps in proptest::collection::vec((any::<bool>(), 0u64..0x30, 0u64..4, any::<u64>(), any::<u64>()), 0..100)
        ) {
            let mut clock = Pl031::new(WALL, 0);
            for (write, offset, size, value, now) in steps {
                let size = AccessSize::from_log2(size);
                if write { clock.write(offset, size, value, now) } else { clock.read(offset, size, now); }
                prop_assert!(!(clock.line() && clock.next_alarm().is_some()));
            }
        }
    }
}
