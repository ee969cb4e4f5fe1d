//! The machine a guest sees, written down once.
//!
//! QEMU's `virt` board is what operating systems are already ported to, so its memory map and interrupt numbers are
//! the guest's. The guest's device tree, the MMIO bus and the vGIC are all made from [`GuestMachine`]: an address
//! that is not in this file does not exist for a guest. Source: QEMU `hw/arm/virt.c` (memory map and irqmap),
//! checked by a test of `vmm::guest_tree` against the tree QEMU itself writes.

use crate::mm::Ipa;

/// First INTID of the private peripheral interrupts (GICv3, IHI 0069 §2.2.1); a tree's PPI number is relative to it.
pub const PPI_BASE: u32 = 16;
/// First INTID of the shared peripheral interrupts (GICv3, IHI 0069 §2.2.1); a tree's SPI number is relative to it.
pub const SPI_BASE: u32 = 32;
/// vCPUs a guest may have. The redistributor window below ends at the UART and has room for 123.
pub const MAX_VCPUS: usize = 64;

/// Bytes of [`GuestMachine::pv_time`] for each vCPU.
pub const PV_TIME_STRIDE: u64 = 64;

/// A stretch of a guest's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First address, 4 KiB aligned.
    pub base: Ipa,
    /// Length in bytes, a multiple of 4 KiB.
    pub size: u64,
}

impl Region {
    const fn new(base: u64, size: u64) -> Self {
        Self { base: Ipa(base), size }
    }

    /// The first address after the region.
    pub const fn end(&self) -> u64 {
        self.base.0 + self.size
    }

    /// Whether `address` lies inside.
    #[inline]
    pub const fn contains(&self, address: Ipa) -> bool {
        address.0 >= self.base.0 && address.0 - self.base.0 < self.size
    }
}

/// An emulated device with one shared interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its registers.
    pub region: Region,
    /// INTID of its interrupt, level-triggered, active high.
    pub intid: u32,
}

/// INTIDs of the generic timers' interrupts (BSA, DEN0094 §6: 29, 30, 27, 26).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimerIntids {
    /// EL3's physical timer: described because the binding asks for it, never raised.
    pub secure: u32,
    /// EL1's physical timer (CNTP).
    pub physical: u32,
    /// EL1's virtual timer (CNTV).
    pub virt: u32,
    /// EL2's physical timer: described because the binding asks for it, never raised.
    pub hypervisor: u32,
}

/// A level-1 cache, as the tree describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Bytes of a line.
    pub line: u32,
    /// Sets.
    pub sets: u32,
    /// Bytes in all.
    pub size: u32,
}

/// Where everything is in a guest's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestMachine {
    /// First byte of RAM; 1 GiB aligned. Its size is the VM's own.
    pub ram_base: Ipa,
    /// Bytes of RAM that fit before the next thing in the map.
    pub ram_max: u64,
    /// The distributor.
    pub gicd: Region,
    /// GICv2 CPU interface, of a machine that has a GICv2 and no redistributors.
    pub gicc: Option<Region>,
    /// ITS, for a VM that has one: control frame and translation frame.
    pub its: Region,
    /// Window of the GICv3 redistributors, one after the other.
    pub gicr: Region,
    /// Bytes of one redistributor: RD and SGI frames of 64 KiB each (IHI 0069 §12.10).
    pub gicr_stride: u64,
    /// PL011 UART.
    pub uart: Device,
    /// Clock of the PL011 and of every AMBA device's bus, in Hz.
    pub uart_clock_hz: u32,
    /// PL031 real-time clock.
    pub rtc: Device,
    /// The vCPUs' PV time structures: memory that is no RAM, and in no tree; each vCPU asks for its own (DEN0057).
    pub pv_time: Region,
    /// Generic timers.
    pub timers: TimerIntids,
    /// The PMUs' overflow interrupt, an INTID that is private to each vCPU; none if they cannot interrupt.
    pub pmu: Option<u32>,
    /// The CPUs' level-1 data and instruction caches, where the machine has them apart.
    pub l1: Option<[Cache; 2]>,
}

/// QEMU's `virt` with a GICv3.
pub const VIRT: GuestMachine = GuestMachine {
    ram_base: Ipa(0x4000_0000),
    ram_max: 255 << 30,
    gicd: Region::new(0x0800_0000, 0x1_0000),
    gicc: None,
    its: Region::new(0x0808_0000, 0x2_0000),
    gicr: Region::new(0x080A_0000, 0xF6_0000),
    gicr_stride: 0x2_0000,
    uart: Device { region: Region::new(0x0900_0000, 0x1000), intid: SPI_BASE + 1 },
    uart_clock_hz: 24_000_000,
    rtc: Device { region: Region::new(0x0901_0000, 0x1000), intid: SPI_BASE + 2 },
    pv_time: Region::new(0x090A_0000, 0x1000),
    timers: TimerIntids {
        secure: PPI_BASE + 13,
        physical: PPI_BASE + 14,
        virt: PPI_BASE + 11,
        hypervisor: PPI_BASE + 10,
    },
    pmu: Some(PPI_BASE + 7),
    l1: None,
};

/// QEMU's `virt` with a GICv2, whose frames are no longer than their registers.
pub const VIRT_V2: GuestMachine = GuestMachine {
    gicd: Region::new(0x0800_0000, 0x1000),
    gicc: Some(Region::new(0x0801_0000, 0x2000)),
    gicr: Region::new(0x080A_0000, 0),
    ..VIRT
};

const _: () = assert!(VIRT.pv_time.size / PV_TIME_STRIDE >= MAX_VCPUS as u64);
const _: () = assert!(VIRT.gicr.size / VIRT.gicr_stride >= MAX_VCPUS as u64);

impl GuestMachine {
    /// Affinity fields of MPIDR_EL1 for vCPU `index` (Aff3 in bits 39:32, Aff2..Aff0 in 23:0; no other bit set).
    /// Sixteen vCPUs share an Aff1, because ICC_SGI1R_EL1's target list has sixteen bits; KVM and QEMU do the same.
    pub const fn affinity(&self, index: usize) -> u64 {
        let index = index as u64;
        (index & 0xf) | ((index >> 4) & 0xff) << 8
    }

    /// The frames of vCPU `index`'s redistributor, or `None` beyond the window.
    pub const fn redistributor(&self, index: usize) -> Option<Region> {
        if index as u64 >= self.gicr.size / self.gicr_stride {
            return None;
        }
        Some(Region::new(self.gicr.base.0 + index as u64 * self.gicr_stride, self.gicr_stride))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_do_not_overlap() {
        let ram = Region::new(VIRT.ram_base.0, 1);
        let gicc = VIRT_V2.gicc.unwrap();
        let mut regions = [VIRT.gicd, gicc, VIRT.gicr, VIRT.uart.region, VIRT.rtc.region, VIRT.pv_time, ram];
        regions.sort_by_key(|region| region.base);
        for pair in regions.windows(2) {
            assert!(pair[0].end() <= pair[1].base.0, "{:?} runs into {:?}", pair[0], pair[1]);
        }
    }

    #[test]
    fn a_gicv2_has_no_redistributors() {
        assert_eq!(VIRT_V2.redistributor(0), None);
        assert!(VIRT_V2.gicd.end() <= VIRT_V2.gicc.unwrap().base.0);
    }

    #[test]
    fn sixteen_cpus_share_an_affinity_group() {
        assert_eq!(VIRT.affinity(0), 0);
        assert_eq!(VIRT.affinity(15), 0xf);
        assert_eq!(VIRT.affinity(16), 0x100);
        assert_eq!(VIRT.affinity(63), 0x30f);
    }

    #[test]
    fn redistributors_stay_in_their_window() {
        assert_eq!(VIRT.redistributor(1), Some(Region::new(0x080C_0000, 0x2_0000)));
        assert_eq!(VIRT.redistributor(123), None);
        assert!(VIRT.redistributor(MAX_VCPUS - 1).is_some_and(|region| region.end() <= VIRT.uart.region.base.0));
    }
}
