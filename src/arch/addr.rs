//! Addresses as types: a physical address cannot be used where a guest's is meant.
//!
//! No bare `u64` address crosses a module. Arithmetic on guest addresses is checked: [`Ipa::checked_add`].

use core::fmt;

/// log2 of the translation granule, 4 KiB (Arm ARM D8.2, TG0 = 0b00).
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// Bytes mapped by a level-2 block, 2 MiB.
pub const BLOCK_2M: u64 = 2 << 20;
/// Bytes mapped by a level-1 block, 1 GiB.
pub const BLOCK_1G: u64 = 1 << 30;

macro_rules! address {
    ($(#[$meta:meta])* $name:ident) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The address `bytes` further on, or `None` if that wraps.
            #[inline]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(address) => Some(Self(address)),
                    None => None,
                }
            }

            /// Whether the address is a multiple of `alignment`, a power of two in bytes.
            #[inline]
            pub const fn is_aligned(self, alignment: u64) -> bool {
                self.0 & (alignment - 1) == 0
            }

            /// The address rounded down to a multiple of `alignment`, a power of two in bytes.
            #[inline]
            pub const fn align_down(self, alignment: u64) -> Self {
                Self(self.0 & !(alignment - 1))
            }

            /// The address rounded up to a multiple of `alignment`, a power of two in bytes, or `None` if that wraps.
            #[inline]
            pub const fn align_up(self, alignment: u64) -> Option<Self> {
                match self.0.checked_add(alignment - 1) {
                    Some(address) => Some(Self(address & !(alignment - 1))),
                    None => None,
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address! {
    /// A physical address of the machine.
    Pa
}
address! {
    /// An intermediate physical address: what a guest believes to be physical.
    Ipa
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding() {
        assert_eq!(Ipa(0x1fff).align_down(PAGE_SIZE), Ipa(0x1000));
        assert_eq!(Ipa(0x1001).align_up(PAGE_SIZE), Some(Ipa(0x2000)));
        assert_eq!(Ipa(u64::MAX).align_up(PAGE_SIZE), None);
        assert_eq!(Ipa(u64::MAX).checked_add(1), None);
        assert!(Pa(0x20_0000).is_aligned(BLOCK_2M));
    }
}
