//! The numbers of KVM's calls (Linux, uapi `linux/kvm.h`), and of keel's own beside them.
//!
//! A number means something only together with the kind of object it is used on: 0x4010_aeab is
//! KVM_ARM_SET_DEVICE_ADDR on a VM and KVM_GET_ONE_REG on a vCPU. So this is one table, and a row has both.

use super::super::Errno;

/// What a handle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What /dev/kvm is to a Linux process.
    System,
    /// A VM.
    Vm,
    /// A vCPU.
    Vcpu,
    /// A device of a VM.
    Device,
}

/// A call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "KVM's names, in its case; documented by the kernel (virt/kvm/api.rst)")]
pub enum Call {
    GetApiVersion,
    CreateVm,
    CheckExtension,
    GetVcpuMmapSize,
    CreateVcpu,
    GetDirtyLog,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
    CreateIrqchip,
    IrqLine,
    IrqLineStatus,
    ArmSetDeviceAddr,
    ArmSetCounterOffset,
    ArmGetRegWritableMasks,
    ArmPreferredTarget,
    CreateDevice,
    SetDeviceAttr,
    GetDeviceAttr,
    HasDeviceAttr,
    ClearDirtyLog,
    EnableCap,
    SignalMsi,
    SetGsiRouting,
    Irqfd,
    Ioeventfd,
    Run,
    SetSignalMask,
    GetMpState,
    SetMpState,
    SetGuestDebug,
    GetVcpuEvents,
    SetVcpuEvents,
    GetOneReg,
    SetOneReg,
    ArmVcpuInit,
    GetRegList,
    ArmVcpuFinalize,
    /// keel's own: gives a handle back, and what it stands for with the last one.
    Close,
    /// keel's own: bytes of memory that keel has left.
    FreeMemory,
    /// keel's own: the page in which KVM_RUN exchanges `struct kvm_run`; what `mmap` of a vCPU is on Linux.
    SetRunPage,
}

/// One call on one kind of object.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The kind of object.
    pub kind: Kind,
    /// The whole number: direction, size, type and sequence.
    pub number: u32,
    /// What it is.
    pub call: Call,
}

const fn row(kind: Kind, number: u32, call: Call) -> Row {
    Row { kind, number, call }
}

/// Every call.
pub static CALLS: &[Row] = {
    use Kind::{Device, System, Vcpu, Vm};
    &[
        // The busiest first.
        row(Vcpu, RUN, Call::Run),
        row(Vcpu, 0x4004_ae8b, Call::SetSignalMask),
        row(Vcpu, 0x8004_ae98, Call::GetMpState),
        row(Vcpu, 0x4004_ae99, Call::SetMpState),
        row(Vcpu, 0x4208_ae9b, Call::SetGuestDebug),
        row(Vcpu, 0x8040_ae9f, Call::GetVcpuEvents),
        row(Vcpu, 0x4040_aea0, Call::SetVcpuEvents),
        row(Vcpu, 0x4010_aeab, Call::GetOneReg),
        row(Vcpu, 0x4010_aeac, Call::SetOneReg),
        row(Vcpu, 0x4020_aeae, Call::ArmVcpuInit),
        row(Vcpu, 0xc008_aeb0, Call::GetRegList),
        row(Vcpu, 0x4004_aec2, Call::ArmVcpuFinalize),
        row(Vcpu, 0x4018_aee1, Call::SetDeviceAttr),
        row(Vcpu, 0x4018_aee2, Call::GetDeviceAttr),
        row(Vcpu, 0x4018_aee3, Call::HasDeviceAttr),
        row(Vcpu, KEEL_SET_RUN_PAGE, Call::SetRunPage),
        row(System, 0x0000_ae00, Call::GetApiVersion),
        row(System, 0x0000_ae01, Call::CreateVm),
        row(System, 0x0000_ae03, Call::CheckExtension),
        row(System, 0x0000_ae04, Call::GetVcpuMmapSize),
        row(System, KEEL_FREE_MEMORY, Call::FreeMemory),
        row(Vm, 0x0000_ae03, Call::CheckExtension),
        row(Vm, 0x0000_ae41, Call::CreateVcpu),
        row(Vm, 0x4010_ae42, Call::GetDirtyLog),
        row(Vm, 0x4020_ae46, Call::SetUserMemoryRegion),
        row(Vm, 0x40a0_ae49, Call::SetUserMemoryRegion2),
        row(Vm, 0x0000_ae60, Call::CreateIrqchip),
        row(Vm, 0x4008_ae61, Call::IrqLine),
        row(Vm, 0xc008_ae67, Call::IrqLineStatus),
        row(Vm, 0x4008_ae6a, Call::SetGsiRouting),
        row(Vm, 0x4020_ae76, Call::Irqfd),
        row(Vm, 0x4040_ae79, Call::Ioeventfd),
        row(Vm, 0x4020_aea5, Call::SignalMsi),
        row(Vm, 0x4010_aeab, Call::ArmSetDeviceAddr),
        row(Vm, 0x4010_aeb5, Call::ArmSetCounterOffset),
        row(Vm, 0x8040_aeb6, Call::ArmGetRegWritableMasks),
        row(Vm, 0x8020_aeaf, Call::ArmPreferredTarget),
        row(Vm, 0xc00c_aee0, Call::CreateDevice),
        row(Vm, 0x4018_aee1, Call::SetDeviceAttr),
        row(Vm, 0x4018_aee3, Call::HasDeviceAttr),
        row(Vm, 0xc018_aec0, Call::ClearDirtyLog),
        row(Vm, 0x4068_aea3, Call::EnableCap),
        row(Device, 0x4018_aee1, Call::SetDeviceAttr),
        row(Device, 0x4018_aee2, Call::GetDeviceAttr),
        row(Device, 0x4018_aee3, Call::HasDeviceAttr),
    ]
};

/// [`Call::Run`].
pub const RUN: u32 = 0x0000_ae80;
/// [`Call::Close`], on any handle but the system's. Type 'k', which KVM's numbers do not have.
pub const KEEL_CLOSE: u32 = 0x0000_6b00;
/// [`Call::FreeMemory`].
pub const KEEL_FREE_MEMORY: u32 = 0x0000_6b02;
/// [`Call::SetRunPage`].
pub const KEEL_SET_RUN_PAGE: u32 = 0x0000_6b01;

/// Which call a number is on an object of this kind.
///
/// # Errors
///
/// As Linux's: `ENOTTY` for one that a device does not have, `EINVAL` on any other object.
pub fn find(kind: Kind, number: u32) -> Result<Call, Errno> {
    let found = CALLS.iter().find(|row| row.kind == kind && row.number == number);
    match (found, kind) {
        (Some(row), _) => Ok(row.call),
        (None, Kind::System) => Err(Errno::EINVAL),
        (None, _) if number == KEEL_CLOSE => Ok(Call::Close),
        (None, Kind::Device) => Err(Errno::ENOTTY),
        (None, _) => Err(Errno::EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_there_once_for_each_kind() {
        for (n, row) in CALLS.iter().enumerate() {
            let first = CALLS.iter().position(|other| other.kind == row.kind && other.number == row.number);
            assert_eq!(first, Some(n), "{row:?}");
        }
    }

    #[test]
    fn the_kind_decides() {
        assert_eq!(find(Kind::Vm, 0x4010_aeab), Ok(Call::ArmSetDeviceAddr));
        assert_eq!(find(Kind::Vcpu, 0x4010_aeab), Ok(Call::GetOneReg));
        assert_eq!(find(Kind::System, 0xae03), Ok(Call::CheckExtension));
        assert_eq!(find(Kind::Vcpu, 0xae03), Err(Errno::EINVAL));
    }

    #[test]
    fn unknown_numbers() {
        assert_eq!(find(Kind::System, 0xae02), Err(Errno::EINVAL));
        assert_eq!(find(Kind::Vm, 0xae80), Err(Errno::EINVAL));
        // KVM_GET_REGS, GET_SREGS, GET_FPU, INTERRUPT, TRANSLATE: not on arm64.
        for number in [0x8360_ae81, 0x8000_ae83, 0x8000_ae8c, 0x4004_ae86, 0xc018_ae85] {
            assert_eq!(find(Kind::Vcpu, number), Err(Errno::EINVAL));
        }
        assert_eq!(find(Kind::Device, 0xae80), Err(Errno::ENOTTY));
        // The direction and the size are part of the number.
        assert_eq!(find(Kind::Vcpu, 0xc010_aeab), Err(Errno::EINVAL));
        assert_eq!(find(Kind::Vcpu, 0x4018_aeab), Err(Errno::EINVAL));
    }

    #[test]
    fn only_what_was_opened_is_closed() {
        assert_eq!(find(Kind::System, KEEL_CLOSE), Err(Errno::EINVAL));
        for kind in [Kind::Vm, Kind::Vcpu, Kind::Device] {
            assert_eq!(find(kind, KEEL_CLOSE), Ok(Call::Close));
        }
    }
}
