//! The memory map of QEMU's `virt` board, which is the machine a guest of keel sees.
//!
//! Addresses are physical (intermediate physical under a hypervisor) and mapped one to one by [`crate::boot`].

/// Distributor: 64 KiB of a GICv3, 4 KiB of a GICv2.
pub const GICD: usize = 0x0800_0000;
/// GICv2 CPU interface, 8 KiB.
pub const GICC: usize = 0x0801_0000;
/// GICv3 ITS: control frame and translation frame, 128 KiB.
pub const ITS: usize = 0x0808_0000;
/// First GICv3 redistributor; each CPU has two frames of 64 KiB.
pub const GICR: usize = 0x080a_0000;
/// Bytes from one CPU's redistributor to the next.
pub const GICR_STRIDE: usize = 0x2_0000;
/// Offset of the SGI and PPI registers within a redistributor.
pub const GICR_SGI: usize = 0x1_0000;
/// PL011 UART.
pub const PL011: usize = 0x0900_0000;
/// Interrupt of the UART: SPI 1.
pub const PL011_INTID: u32 = 33;
/// PL031 real-time clock.
pub const PL031: usize = 0x0901_0000;
/// Interrupt of the real-time clock: SPI 2.
pub const PL031_INTID: u32 = 34;
/// First byte of RAM. The device tree is here when the loader passes none in x0 (QEMU with an ELF file).
pub const RAM: usize = 0x4000_0000;
/// Where the kernels are loaded and linked.
pub const LOAD_OFFSET: usize = 0x20_0000;
/// EL1 virtual timer: PPI 11.
pub const VIRTUAL_TIMER_INTID: u32 = 27;
/// EL1 non-secure physical timer: PPI 14.
pub const PHYSICAL_TIMER_INTID: u32 = 30;
/// Overflow interrupt of the PMU: PPI 7.
pub const PMU_INTID: u32 = 23;
/// An address in the device gigabyte where `virt` has nothing (between platform bus and PCIe).
pub const HOLE: usize = 0x0f00_0000;
/// CPUs the kernels can drive.
pub const MAX_CPUS: usize = 8;
