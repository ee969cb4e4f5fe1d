//! KVM_IRQ_LINE: which line the number in `struct kvm_irq_level` names (Linux, Documentation/virt/kvm/api.rst, 4.25).

use super::super::Errno;

/// A line of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// A pin of a vCPU, where there is no interrupt controller.
    Cpu {
        /// Its index.
        vcpu: usize,
        /// Which.
        pin: Pin,
    },
    /// A shared interrupt.
    Shared(u32),
    /// A private interrupt of a vCPU.
    Private {
        /// Its index.
        vcpu: usize,
        /// 16 to 31.
        intid: u32,
    },
}

/// A CPU's pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// IRQ.
    Irq,
    /// FIQ.
    Fiq,
}

/// The line that `irq` names, of a VM with `vcpus` vCPUs and an interrupt controller of so many INTIDs, if it has one.
///
/// # Errors
///
/// `ENXIO` for a pin of the CPU itself, which an interrupt controller drives, and for a line of one that is not there;
/// `EINVAL` for what is not there.
pub fn decode(irq: u32, vcpus: usize, interrupts: Option<u32>) -> Result<Line, Errno> {
    let number = irq & 0xffff;
    let vcpu = (irq >> 28) as usize * 256 + (irq >> 16 & 0xff) as usize;
    match (irq >> 24 & 0xf, interrupts) {
        (0, Some(_)) | (1 | 2, None) => Err(Errno::ENXIO),
        (0, None) if vcpu < vcpus && number < 2 => {
            Ok(Line::Cpu { vcpu, pin: if number == 0 { Pin::Irq } else { Pin::Fiq } })
        }
        (1, Some(interrupts)) if (32..interrupts).contains(&number) => Ok(Line::Shared(number)),
        (2, Some(_)) if vcpu < vcpus && (16..32).contains(&number) => Ok(Line::Private { vcpu, intid: number }),
        _ => Err(Errno::EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        for (irq, expected) in [
            (0x0000_0000, Err(Errno::ENXIO)),
            (0x0000_0007, Err(Errno::ENXIO)),
            (0x0100_0020, Ok(Line::Shared(32))),
            // The vCPU means nothing there.
            (0xf1ff_00ff, Ok(Line::Shared(255))),
            (0x0100_001f, Err(Errno::EINVAL)),
            (0x0100_0100, Err(Errno::EINVAL)),
            (0x0200_0010, Ok(Line::Private { vcpu: 0, intid: 16 })),
            (0x0201_001f, Ok(Line::Private { vcpu: 1, intid: 31 })),
            (0x0202_0010, Err(Errno::EINVAL)),
            (0x1200_0010, Err(Errno::EINVAL)),
            (0x0200_000f, Err(Errno::EINVAL)),
            (0x0200_0020, Err(Errno::EINVAL)),
            (0x0300_0020, Err(Errno::EINVAL)),
            (0x0f00_0020, Err(Errno::EINVAL)),
        ] {
            assert_eq!(decode(irq, 2, Some(256)), expected, "{irq:#x}");
        }
    }

    #[test]
    fn pins() {
        for (irq, expected) in [
            (0, Ok(Line::Cpu { vcpu: 0, pin: Pin::Irq })),
            (0x0001_0001, Ok(Line::Cpu { vcpu: 1, pin: Pin::Fiq })),
            (2, Err(Errno::EINVAL)),
            (0x0002_0000, Err(Errno::EINVAL)),
            (0x0100_0020, Err(Errno::ENXIO)),
            (0x0200_0010, Err(Errno::ENXIO)),
            (0x0300_0000, Err(Errno::EINVAL)),
        ] {
            assert_eq!(decode(irq, 2, None), expected, "{irq:#x}");
        }
    }
}
