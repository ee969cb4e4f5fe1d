//! The stub's calls, as keel answers them to the VM that owns the machine (hyp-stub ABI).
//!
//! A resident hypervisor honours two of them, by giving EL2 back, and answers all others with an error. They are told from
//! SMCCC's functions by their numbers: SMCCC has bit 31 set for a fast call, which all of keel's are, and bits 23:17 clear
//! (Arm DEN0028, 2.5).

/// What is answered to a call that is not honoured; not an errno, and positive.
pub const HVC_STUB_ERR: u64 = 0x0bad_ca11;

const SOFT_RESTART: u64 = 1;
const RESET_VECTORS: u64 = 2;

/// A call of the stub's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StubCall {
    /// HVC_SOFT_RESTART: EL2 is left for `entry`, which runs there with `arguments` in x0 to x2.
    SoftRestart {
        /// Physical address of the first instruction, 4-byte aligned.
        entry: u64,
        /// Its x0 to x2.
        arguments: [u64; 3],
    },
    /// HVC_RESET_VECTORS: the initial stub is back, the caller goes on at EL1.
    ResetVectors,
    /// Anything else: [`HVC_STUB_ERR`].
    Refused,
}

/// Bits of w0 that tell SMCCC's fast calls, once bit 31 is inverted: none of them is set in one.
const NOT_SMCCC: u32 = 0x80fe_0000;

/// Whether x0 holds a number that is no function identifier of SMCCC's fast calls.
#[inline]
pub const fn is_stub_number(x0: u64) -> bool {
    (x0 as u32 ^ 1 << 31) & NOT_SMCCC != 0
}

/// Decodes a call with [such a number](is_stub_number) in x0.
pub fn decode(registers: &[u64; 18]) -> StubCall {
    let [number, x1, x2, x3, x4, ..] = *registers;
    match number {
        SOFT_RESTART if x1.is_multiple_of(4) => StubCall::SoftRestart { entry: x1, arguments: [x2, x3, x4] },
        RESET_VECTORS => StubCall::ResetVectors,
        _ => StubCall::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypercall::table::FUNCTIONS;
    use proptest::prelude::*;

    #[test]
    fn numbers_of_the_stub() {
        for number in [0, 1, 2, 3, 4, 5, 0xfff, 0x7fff_ffff, u64::MAX, 0x1_0000_0002, 0x80fe_0000] {
            assert!(is_stub_number(number), "{number:#x}");
        }
    }

    #[test]
    fn no_function_is_one() {
        // But KVM's private ids of PSCI 0.1, which no owner of a machine has.
        for row in FUNCTIONS.iter().filter(|row| row.id.0 >> 16 != 0x95c1) {
            // Callers may leave anything in the upper half, and the SVE hint set.
            for x0 in [u64::from(row.id.0), u64::from(row.id.0) | 0xffff_ffff << 32, u64::from(row.id.0) | 1 << 16] {
                assert!(!is_stub_number(x0), "{} {x0:#x}", row.name);
            }
        }
    }

    fn call(number: u64, x1: u64) -> StubCall {
        let mut registers = [0; 18];
        registers[..5].copy_from_slice(&[number, x1, 22, 33, 44]);
        decode(&registers)
    }

    #[test]
    fn two_calls_are_honoured() {
        let arguments = [22, 33, 44];
        assert_eq!(call(1, 0x4020_0000), StubCall::SoftRestart { entry: 0x4020_0000, arguments });
        assert_eq!(call(1, 0x4020_0002), StubCall::Refused);
        assert_eq!(call(2, 0), StubCall::ResetVectors);
        // The number is all of x0.
        assert_eq!(call(0x1_0000_0002, 0), StubCall::Refused);
    }

    proptest! {
        #[test]
        fn every_other_number_is_refused(number: u64, x1: u64) {
            prop_assume!(number != 1 && number != 2);
            prop_assert_eq!(call(number, x1), StubCall::Refused);
        }
    }
}
