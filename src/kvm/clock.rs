//! The wall clock that guests can ask for: seconds of the board's clock, taken once, carried on by the counter.
//!
//! Time and counter are of one instant by construction: the one is computed from the other.

const SECOND: u128 = 1_000_000_000;

/// Nanoseconds in `ticks` of a counter of `frequency` Hz, rounded down.
pub fn nanoseconds(ticks: u64, frequency: u64) -> u64 {
    (u128::from(ticks) * SECOND / u128::from(frequency.max(1))) as u64
}

/// Nanoseconds since 1970 at `ticks`, where `epoch` is seconds since 1970 at tick 0.
pub fn wall(epoch: u64, ticks: u64, frequency: u64) -> u64 {
    epoch.saturating_mul(SECOND as u64).saturating_add(nanoseconds(ticks, frequency))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_values() {
        assert_eq!(nanoseconds(62_500_000, 62_500_000), 1_000_000_000);
        assert_eq!(nanoseconds(1, 62_500_000), 16);
        assert_eq!(nanoseconds(2, 3), 666_666_666);
        assert_eq!(nanoseconds(5, 0), 5_000_000_000, "a counter that says nothing of its frequency is no trap");
        assert_eq!(wall(1_700_000_000, 25, 100), 1_700_000_000_250_000_000);
        assert_eq!(wall(u64::MAX, u64::MAX, 1), u64::MAX);
    }

    proptest! {
        #[test]
        fn never_goes_back(epoch in 0u64..1 << 33, ticks in 0u64..1 << 56, more in 0u64..1 << 40, frequency in 1_000_000u64..1 << 30) {
            prop_assert!(wall(epoch, ticks, frequency) <= wall(epoch, ticks + more, frequency));
        }

        /// Summing rounded totals loses less than a nanosecond in all.
        #[test]
        fn parts_sum_up(parts in proptest::collection::vec(0u64..1 << 30, 1..50), frequency in 1_000_000u64..1 << 30) {
            let (mut ticks, mut given) = (0, 0);
            for part in &parts {
                ticks += part;
                given += nanoseconds(ticks, frequency) - given;
            }
            prop_assert_eq!(given, nanoseconds(parts.iter().sum(), frequency));
        }
    }
}
