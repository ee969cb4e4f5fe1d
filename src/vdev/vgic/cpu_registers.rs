//! The virtual CPU interface's registers for save and restore, as a table: ICC_* as KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS has them.
//!
//! A vCPU that no CPU holds keeps its CPU interface in ICH_VMCR_EL2's and ICH_AP*R_EL2's form; these registers are other
//! views of that. The checks are KVM's (Linux, Documentation/virt/kvm/devices/arm-vgic-v3.rst).

use super::lr::{VMCR_ENG0, VMCR_ENG1, VMCR_EOIM, VMCR_PMR_SHIFT, VgicCpu};
use super::registers::UserAccessError;

/// ICH_VMCR_EL2.VCBPR: BPR0 is for both groups.
const VMCR_CBPR: u64 = 1 << 4;
/// ICH_VMCR_EL2.VBPR1, 20:18.
const VMCR_BPR1_SHIFT: u32 = 18;
/// ICH_VMCR_EL2.VBPR0, 23:21.
const VMCR_BPR0_SHIFT: u32 = 21;
/// Bits of a binary point.
const BPR: u64 = 7;

/// ICC_CTLR_EL1.CBPR.
const CTLR_CBPR: u64 = 1 << 0;
/// ICC_CTLR_EL1.EOImode.
const CTLR_EOI_MODE: u64 = 1 << 1;
/// ICC_CTLR_EL1.PRIbits, 10:8, one less.
const CTLR_PRIORITY_BITS_SHIFT: u32 = 8;
/// ICC_CTLR_EL1.IDbits, 13:11.
const CTLR_ID_BITS_SHIFT: u32 = 11;
/// ICC_CTLR_EL1.SEIS and A3V.
const CTLR_SEIS_A3V: u64 = 1 << 14 | 1 << 15;

/// ICC_SRE_EL1 as a guest has it: SRE, DFB, DIB.
const SRE: u64 = 7;

/// What the machine's CPU interfaces can do, from ICH_VTR_EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities(pub u64);

impl Abilities {
    /// PRIbits, 31:29, one less than there are.
    pub(super) fn priority_bits(self) -> u64 {
        self.0 >> 29 & 7
    }

    /// IDbits, 25:23.
    fn id_bits(self) -> u64 {
        self.0 >> 23 & 7
    }

    /// SEIS, 22, and A3V, 21, as ICC_CTLR_EL1 has them.
    fn seis_a3v(self) -> u64 {
        (self.0 >> 22 & 1) << 14 | (self.0 >> 21 & 1) << 15
    }

    /// Bits of a priority that count for preemption: PREbits, 28:26, and one.
    pub(super) fn preemption_bits(self) -> u64 {
        (self.0 >> 26 & 7) + 1
    }

    /// Registers of active priorities for each group.
    fn active_priority_registers(self) -> usize {
        match self.preemption_bits() {
            0..=5 => 1,
            6 => 2,
            _ => 4,
        }
    }
}

type Read = fn(&VgicCpu, Abilities, usize) -> Result<u64, UserAccessError>;
type Write = fn(&mut VgicCpu, Abilities, usize, u64) -> Result<(), UserAccessError>;

/// Registers of consecutive encodings: the first (op0 15:14, op1 13:11, CRn 10:7, CRm 6:3, op2 2:0), how many, and what a
/// read and a write do.
struct Row(u16, usize, Read, Write);

const ROWS: &[Row] = &[
    /* PMR     */
    Row(
        0xc230,
        1,
        |cpu, _, _| Ok(field(cpu, VMCR_PMR_SHIFT, 0xff)),
        |cpu, _, _, value| put(cpu, VMCR_PMR_SHIFT, 0xff, value),
    ),
    /* BPR0    */
    Row(
        0xc643,
        1,
        |cpu, _, _| Ok(field(cpu, VMCR_BPR0_SHIFT, BPR)),
        |cpu, _, _, value| put(cpu, VMCR_BPR0_SHIFT, BPR, value),
    ),
    /* AP0R0–3 */
    Row(
        0xc644,
        4,
        |cpu, has, n| priorities(&cpu.ap0r, has, n),
        |cpu, has, n, value| set_priorities(&mut cpu.ap0r, has, n, value),
    ),
    /* AP1R0–3 */
    Row(
        0xc648,
        4,
        |cpu, has, n| priorities(&cpu.ap1r, has, n),
        |cpu, has, n, value| set_priorities(&mut cpu.ap1r, has, n, value),
    ),
    /* BPR1    */ Row(0xc663, 1, |cpu, _, _| Ok(bpr1(cpu)), set_bpr1),
    /* CTLR    */ Row(0xc664, 1, |cpu, has, _| Ok(ctlr(cpu.vmcr, has)), set_ctlr),
    /* SRE     */
    Row(
        0xc665,
        1,
        |_, _, _| Ok(SRE),
        |_, _, _, value| if value & 1 != 0 { Ok(()) } else { Err(UserAccessError::Invalid) },
    ),
    /* IGRPEN0 */
    Row(
        0xc666,
        1,
        |cpu, _, _| Ok(u64::from(cpu.vmcr & VMCR_ENG0 != 0)),
        |cpu, _, _, value| put(cpu, VMCR_ENG0.trailing_zeros(), 1, value),
    ),
    /* IGRPEN1 */
    Row(
        0xc667,
        1,
        |cpu, _, _| Ok(u64::from(cpu.vmcr & VMCR_ENG1 != 0)),
        |cpu, _, _, value| put(cpu, VMCR_ENG1.trailing_zeros(), 1, value),
    ),
];

fn find(encoding: u16) -> Result<(&'static Row, usize), UserAccessError> {
    let place = |row: &'static Row| Some((row, usize::from(encoding.checked_sub(row.0)?)));
    ROWS.iter().filter_map(place).find(|(row, n)| *n < row.1).ok_or(UserAccessError::Unknown)
}

/// Whether there is a register of this encoding.
pub fn exists(encoding: u16) -> bool {
    find(encoding).is_ok()
}

/// Reads a register of a vCPU that no CPU holds.
///
/// # Errors
///
/// [`UserAccessError::Unknown`]; [`UserAccessError::Invalid`] for active priorities that the machine does not have.
pub fn read(cpu: &VgicCpu, machine: Abilities, encoding: u16) -> Result<u64, UserAccessError> {
    let (row, n) = find(encoding)?;
    row.2(cpu, machine, n)
}

/// Writes a register of a vCPU that no CPU holds.
///
/// # Errors
///
/// [`UserAccessError::Unknown`]; [`UserAccessError::Invalid`] for what the machine does not have: more bits of priorities or
/// INTIDs, other SEIS or A3V, no SRE, active priorities.
pub fn write(cpu: &mut VgicCpu, machine: Abilities, encoding: u16, value: u64) -> Result<(), UserAccessError> {
    let (row, n) = find(encoding)?;
    row.3(cpu, machine, n, value)
}

fn field(cpu: &VgicCpu, shift: u32, mask: u64) -> u64 {
    cpu.vmcr >> shift & mask
}

fn put(cpu: &mut VgicCpu, shift: u32, mask: u64, value: u64) -> Result<(), UserAccessError> {
    cpu.vmcr = cpu.vmcr & !(mask << shift) | (value & mask) << shift;
    Ok(())
}

/// With CBPR it follows BPR0 (IHI 0069 §12.2.6).
fn bpr1(cpu: &VgicCpu) -> u64 {
    if cpu.vmcr & VMCR_CBPR != 0 {
        (field(cpu, VMCR_BPR0_SHIFT, BPR) + 1).min(BPR)
    } else {
        field(cpu, VMCR_BPR1_SHIFT, BPR)
    }
}

fn set_bpr1(cpu: &mut VgicCpu, _: Abilities, _: usize, value: u64) -> Result<(), UserAccessError> {
    if cpu.vmcr & VMCR_CBPR == 0 { put(cpu, VMCR_BPR1_SHIFT, BPR, value) } else { Ok(()) }
}

/// ICC_CTLR_EL1 of a guest whose ICH_VMCR_EL2 this is.
pub(super) fn ctlr(vmcr: u64, machine: Abilities) -> u64 {
    machine.priority_bits() << CTLR_PRIORITY_BITS_SHIFT
        | machine.id_bits() << CTLR_ID_BITS_SHIFT
        | machine.seis_a3v()
        | if vmcr & VMCR_CBPR != 0 { CTLR_CBPR } else { 0 }
        | if vmcr & VMCR_EOIM != 0 { CTLR_EOI_MODE } else { 0 }
}

/// ICH_VMCR_EL2 after a write of `value` to ICC_CTLR_EL1, as far as that can be written.
pub(super) fn vmcr_with_ctlr(vmcr: u64, value: u64) -> u64 {
    vmcr & !(VMCR_CBPR | VMCR_EOIM)
        | if value & CTLR_CBPR != 0 { VMCR_CBPR } else { 0 }
        | if value & CTLR_EOI_MODE != 0 { VMCR_EOIM } else { 0 }
}

fn set_ctlr(cpu: &mut VgicCpu, machine: Abilities, _: usize, value: u64) -> Result<(), UserAccessError> {
    let fits = value >> CTLR_PRIORITY_BITS_SHIFT & 7 <= machine.priority_bits()
        && value >> CTLR_ID_BITS_SHIFT & 7 <= machine.id_bits()
        && value & CTLR_SEIS_A3V == machine.seis_a3v();
    if !fits {
        return Err(UserAccessError::Invalid);
    }
    cpu.vmcr = vmcr_with_ctlr(cpu.vmcr, value);
    Ok(())
}

fn priorities(registers: &[u32; 4], machine: Abilities, n: usize) -> Result<u64, UserAccessError> {
    let implemented = registers.iter().take(machine.active_priority_registers());
    implemented.skip(n).copied().map(u64::from).next().ok_or(UserAccessError::Invalid)
}

fn set_priorities(registers: &mut [u32; 4], machine: Abilities, n: usize, value: u64) -> Result<(), UserAccessError> {
    let mut implemented = registers.iter_mut().take(machine.active_priority_registers());
    *implemented.nth(n).ok_or(UserAccessError::Invalid)? = value as u32;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// QEMU's: 5 bits of priorities, 24 of INTIDs, A3V.
    const MACHINE: Abilities = Abilities(4 << 29 | 4 << 26 | 1 << 23 | 1 << 21 | 3);
    const PMR: u16 = 0xc230;
    const BPR0: u16 = 0xc643;
    const AP0R0: u16 = 0xc644;
    const AP1R0: u16 = 0xc648;
    const BPR1: u16 = 0xc663;
    const CTLR: u16 = 0xc664;
    const SRE_EL1: u16 = 0xc665;
    const IGRPEN0: u16 = 0xc666;
    const IGRPEN1: u16 = 0xc667;

    #[test]
    fn values_come_back() {
        let mut cpu = VgicCpu::new();
        let values = [(PMR, 0xf8), (BPR0, 2), (BPR1, 5), (IGRPEN0, 1), (IGRPEN1, 1), (AP0R0, 0x55), (AP1R0, 0xaa)];
        for (encoding, value) in values {
            assert_eq!(read(&cpu, MACHINE, encoding), Ok(0), "{encoding:#x}");
            write(&mut cpu, MACHINE, encoding, value).unwrap();
        }
        for (encoding, value) in values {
            assert_eq!(read(&cpu, MACHINE, encoding), Ok(value), "{encoding:#x}");
        }
        assert_eq!(cpu.vmcr, 0xf8 << 24 | 2 << 21 | 5 << 18 | 1 << 3 | 3);
        assert_eq!((cpu.ap0r[0], cpu.ap1r[0]), (0x55, 0xaa));
        write(&mut cpu, MACHINE, PMR, u64::MAX).unwrap();
        assert_eq!(cpu.vmcr & !(0xff << 24), 2 << 21 | 5 << 18 | 1 << 3 | 3, "a value is as wide as its field");
    }

    #[test]
    fn control_shows_and_checks_what_the_machine_has() {
        let mut cpu = VgicCpu::new();
        let fixed = 4 << 8 | 1 << 11 | 1 << 15;
        assert_eq!(read(&cpu, MACHINE, CTLR), Ok(fixed));
        for (value, result) in [
            (fixed | 3, Ok(())),
            (fixed & !(1 << 15), Err(UserAccessError::Invalid)),
            (fixed | 1 << 14, Err(UserAccessError::Invalid)),
            (fixed | 5 << 8, Err(UserAccessError::Invalid)),
            (fixed | 2 << 11, Err(UserAccessError::Invalid)),
        ] {
            assert_eq!(write(&mut cpu, MACHINE, CTLR, value), result, "{value:#x}");
        }
        assert_eq!(read(&cpu, MACHINE, CTLR), Ok(fixed | 3));
        assert_eq!(cpu.vmcr & (VMCR_CBPR | VMCR_EOIM), VMCR_CBPR | VMCR_EOIM);
        // Fewer bits are fine.
        assert_eq!(write(&mut cpu, MACHINE, CTLR, 1 << 15), Ok(()));
        assert_eq!(cpu.vmcr & (VMCR_CBPR | VMCR_EOIM), 0);
    }

    #[test]
    fn the_common_binary_point_hides_the_other() {
        let mut cpu = VgicCpu::new();
        write(&mut cpu, MACHINE, BPR0, 3).unwrap();
        write(&mut cpu, MACHINE, BPR1, 6).unwrap();
        write(&mut cpu, MACHINE, CTLR, 1 << 15 | 1).unwrap();
        assert_eq!(read(&cpu, MACHINE, BPR1), Ok(4));
        write(&mut cpu, MACHINE, BPR1, 1).unwrap();
        write(&mut cpu, MACHINE, BPR0, 7).unwrap();
        assert_eq!(read(&cpu, MACHINE, BPR1), Ok(7));
        write(&mut cpu, MACHINE, CTLR, 1 << 15).unwrap();
        assert_eq!(read(&cpu, MACHINE, BPR1), Ok(6));
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let mut cpu = VgicCpu::new();
        for encoding in [AP0R0 + 1, AP0R0 + 3, AP1R0 + 1] {
            assert!(exists(encoding));
            assert_eq!(read(&cpu, MACHINE, encoding), Err(UserAccessError::Invalid));
            assert_eq!(write(&mut cpu, MACHINE, encoding, 0), Err(UserAccessError::Invalid));
        }
        let seven_bits = Abilities(6 << 29 | 6 << 26);
        assert_eq!(read(&cpu, seven_bits, AP1R0 + 3), Ok(0));
        for encoding in [0, PMR + 1, AP1R0 + 4, IGRPEN1 + 1, u16::MAX] {
            assert!(!exists(encoding));
            assert_eq!(read(&cpu, MACHINE, encoding), Err(UserAccessError::Unknown));
        }
        assert_eq!(read(&cpu, MACHINE, SRE_EL1), Ok(7));
        assert_eq!(write(&mut cpu, MACHINE, SRE_EL1, 6), Err(UserAccessError::Invalid));
        assert_eq!(write(&mut cpu, MACHINE, SRE_EL1, 1), Ok(()));
    }
}
