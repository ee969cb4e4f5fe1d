//! Late installation: the assembly and the data by which a kernel at EL1 puts keel under itself (`boot/late.S`).

use super::{
    addr::Pa,
    boot::{self, SecondaryBlock},
    hcr,
};
use core::mem::offset_of;

/// x0 of the HVC that installs keel on the calling CPU: a vendor-specific hypervisor call (SMCCC, owner 6).
pub const KEEL_INSTALL: u64 = 0xc600_0300;
/// What the late entry answers to other numbers (hyp-stub ABI).
const HVC_STUB_ERR: u64 = 0x0bad_ca11;

core::arch::global_asm!(
    include_str!("../../boot/macros.S"),
    include_str!("../../boot/late.S"),
    install = const KEEL_INSTALL,
    stub_error = const HVC_STUB_ERR,
    sctlr_el2_mmu_off = const hcr::SCTLR_EL2_MMU_OFF,
    frame_size = const size_of::<LateFrame>(),
    spin_blocks = sym boot::SPIN_BLOCKS,
    sb_mair = const offset_of!(SecondaryBlock, mair),
    sb_ttbr0 = const offset_of!(SecondaryBlock, ttbr0),
    sb_stack = const offset_of!(SecondaryBlock, stack),
    sb_index = const offset_of!(SecondaryBlock, index),
    sb_mpidr = const offset_of!(SecondaryBlock, mpidr),
    sb_next = const offset_of!(SecondaryBlock, next),
);

/// The registers of the kernel that called, below the top of the CPU's stack.
#[repr(C, align(16))]
#[derive(Debug)]
pub struct LateFrame {
    /// x0–x30; x9 and x10 are lost.
    pub gpr: [u64; 31],
    /// ELR_EL2: behind the HVC.
    pub elr: u64,
    /// SPSR_EL2.
    pub spsr: u64,
}

const _: () = assert!(offset_of!(LateFrame, elr) == 16 * 15 + 8 && offset_of!(LateFrame, spsr) == 16 * 16);

/// What the kernel says: little-endian words of 8 bytes, at an address that is a multiple of 8, clean to the point of
/// coherency.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InstallBlock {
    /// [`InstallBlock::MAGIC`].
    pub magic: u64,
    /// First byte of the memory that is keel's until it leaves, page aligned. It holds the image at its place, the tree
    /// and the bundle; the rest is keel's heap.
    pub memory: u64,
    /// Bytes of it, a multiple of the page size.
    pub memory_size: u64,
    /// A copy of the machine's device tree, 8-byte aligned, in that memory.
    pub tree: u64,
    /// A bundle in that memory, with VMs to run beside the kernel; 0 for none.
    pub bundle: u64,
    /// Its size in bytes.
    pub bundle_size: u64,
    /// The vectors of the stub that is to be back when keel leaves.
    pub stub: u64,
    /// Bit 0: that stub relays PSCI, so that SMCs are to trap again. All others 0.
    pub flags: u64,
}

impl InstallBlock {
    /// "keelinst", and the version of this layout.
    pub const MAGIC: u64 = u64::from_le_bytes(*b"keelins1");
    /// [`flags`](Self::flags): the stub relays PSCI.
    pub const RELAYS: u64 = 1;

    /// Reads the one at `at`, with the MMU off.
    ///
    /// # Safety
    ///
    /// It must be memory: the kernel that calls owns the machine, and says so.
    pub unsafe fn read(at: Pa) -> Option<Self> {
        if at.0 == 0 || !at.is_aligned(8) {
            return None;
        }
        // SAFETY: the caller vouches for the memory; all bytes are values of the type.
        let block = unsafe { (at.0 as *const Self).read_volatile() };
        (block.magic == Self::MAGIC).then_some(block)
    }
}
