//! Plain loads and stores to device registers, of every width.
//!
//! Inline assembly, so that the compiler can neither merge them nor choose an addressing mode (write-back, pair) for
//! which a hypervisor gets no syndrome.

macro_rules! access {
    ($read:ident, $write:ident, $type:ty, $load:literal, $store:literal) => {
        /// Reads a device register.
        #[inline(always)]
        pub fn $read(address: usize) -> $type {
            let value: $type;
            // SAFETY: callers name device registers of the platform, all of which are mapped; devices own no memory
            // of the program.
            unsafe { core::arch::asm!($load, in(reg) address, out(reg) value, options(nostack), ) };
            value
        }
        /// Writes a device register.
        #[inline(always)]
        pub fn $write(address: usize, value: $type) {
            // SAFETY: as above; no device here has DMA.
            unsafe { core::arch::asm!($store, in(reg) address, in(reg) value, options(nostack)) };
        }
    };
}

access!(read32, write32, u32, "ldr {1:w}, [{0}]", "str {1:w}, [{0}]");
access!(read64, write64, u64, "ldr {1:x}, [{0}]", "str {1:x}, [{0}]");
access!(read16, write16, u16, "ldrh {1:w}, [{0}]", "strh {1:w}, [{0}]");
access!(read8, write8, u8, "ldrb {1:w}, [{0}]", "strb {1:w}, [{0}]");
