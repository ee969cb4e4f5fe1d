//! This CPU: its index, identity, ID registers, and waiting.

use super::{
    features,
    sysreg::{isb, read_sysreg, write_sysreg},
};
use aarch64_cpu::registers::{MIDR_EL1, MPIDR_EL1};
use tock_registers::interfaces::Readable;

/// MPIDR_EL1's affinity fields: Aff3 39:32, Aff2 23:16, Aff1 15:8, Aff0 7:0.
pub const MPIDR_AFFINITY: u64 = 0xff_00ff_ffff;

/// The index of this CPU (TPIDR_EL2), the order in which the host's tree lists them; 0 until set.
#[inline(always)]
pub fn index() -> usize {
    read_sysreg!("tpidr_el2") as usize
}

/// Sets this CPU's index.
pub fn set_index(index: usize) {
    write_sysreg!("tpidr_el2", index as u64);
}

/// This CPU's affinity.
pub fn mpidr() -> u64 {
    MPIDR_EL1.get() & MPIDR_AFFINITY
}

/// MIDR_EL1.
pub fn midr() -> u64 {
    MIDR_EL1.get()
}

/// REVIDR_EL1.
pub fn revidr() -> u64 {
    read_sysreg!("revidr_el1")
}

/// AIDR_EL1.
pub fn aidr() -> u64 {
    read_sysreg!("aidr_el1")
}

/// Line, sets and size (bytes) of the level-1 data and instruction caches, if they are separate (CLIDR_EL1.Ctype1 = 3;
/// CCSIDR_EL1, Arm ARM D24.2.26).
pub fn l1_caches() -> Option<[[u32; 3]; 2]> {
    if read_sysreg!("clidr_el1") & 7 != 3 {
        return None;
    }
    // CSSELR_EL1 belongs to the guest that this CPU holds: for bring-up, when there is none.
    let cache = |selector: u64| {
        write_sysreg!("csselr_el1", selector);
        isb();
        let ccsidr = read_sysreg!("ccsidr_el1");
        let line = 16 << (ccsidr & 7);
        let (ways, sets) = if features::has_ccidx() {
            ((ccsidr >> 3 & 0x1f_ffff) + 1, (ccsidr >> 32 & 0xff_ffff) + 1)
        } else {
            ((ccsidr >> 3 & 0x3ff) + 1, (ccsidr >> 13 & 0x7fff) + 1)
        };
        let size = u32::try_from(line * ways * sets).ok()?;
        Some([line as u32, sets as u32, size])
    };
    Some([cache(0)?, cache(1)?])
}

/// What a CPU says about its caches.
#[derive(Clone, Copy, Debug)]
pub struct CacheRegisters {
    /// CLIDR_EL1.
    pub clidr: u64,
    /// CTR_EL0.
    pub ctr: u64,
    /// The low half of CCSIDR_EL1 for each cache that CSSELR_EL1 can name: level in 3:1, instructions in bit 0. 0 for one
    /// that there is not.
    pub ccsidr: [u32; 14],
}

/// Reads them; CSSELR_EL1 stays as it is.
pub fn cache_registers() -> CacheRegisters {
    let (clidr, selected) = (read_sysreg!("clidr_el1"), read_sysreg!("csselr_el1"));
    let ccsidr = core::array::from_fn(|selector| {
        // CLIDR_EL1.Ctype<n>: 1 instructions, 2 data, 3 both, 4 unified.
        let kind = clidr >> (selector / 2 * 3) & 7;
        let is_there = if selector % 2 == 1 { kind & 1 != 0 } else { kind >= 2 };
        if !is_there {
            return 0;
        }
        write_sysreg!("csselr_el1", selector as u64);
        isb();
        read_sysreg!("ccsidr_el1") as u32
    });
    write_sysreg!("csselr_el1", selected);
    CacheRegisters { clidr, ctr: read_sysreg!("ctr_el0"), ccsidr }
}

/// Waits until an interrupt is pending; interrupts stay masked, so it is not taken.
pub fn wait_for_interrupt() {
    // SAFETY: DSB and WFI change no state.
    unsafe { core::arch::asm!("dsb sy", "wfi", options(nostack, preserves_flags)) };
}

/// Stops this CPU for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: WFE changes no state.
        unsafe { core::arch::asm!("wfe", options(nostack, preserves_flags)) };
    }
}

macro_rules! id_space {
    ($($crm:literal: $($op2:literal)*;)*) => {
        /// Reads the whole ID space, op0 = 3, op1 = 0, CRn = 0, CRm = 1..=7, op2 = 0..=7: index `(CRm - 1) * 8 + op2`.
        /// Encodings that name no register read as zero (Arm ARM D24.3.1).
        pub fn id_registers() -> [u64; 56] {
            [$($({
                let value: u64;
                // SAFETY: reads of the ID space never trap at EL2 and only write `value`.
                unsafe {
                    core::arch::asm!(
                        concat!("mrs {}, S3_0_C0_C", $crm, "_", $op2),
                        out(reg) value,
                        options(nomem, nostack, preserves_flags)
                    )
                };
                value
            },)*)*]
        }
    };
}

id_space! {
    1: 0 1 2 3 4 5 6 7;
    2: 0 1 2 3 4 5 6 7;
    3: 0 1 2 3 4 5 6 7;
    4: 0 1 2 3 4 5 6 7;
    5: 0 1 2 3 4 5 6 7;
    6: 0 1 2 3 4 5 6 7;
    7: 0 1 2 3 4 5 6 7;
}
