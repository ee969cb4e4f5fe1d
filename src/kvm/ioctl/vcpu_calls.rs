//! KVM's calls on a vCPU: decoding, and nothing else.

use super::{
    super::{
        Errno, guest_debug,
        memory::Slots,
        registers::{Value, size_to_set},
        uapi::{MpState, VcpuEvents, VcpuInit, vcpu},
    },
    api::UserVcpu,
    attribute::Attribute,
    numbers::Call,
    user::{UserMemory, copy_in, copy_out, field32, field64},
};
use crate::mm::{Ipa, addr::PAGE_SIZE, frame::SharedPage};
use alloc::vec::Vec;

/// Bytes of Linux's `sigset_t`.
const SIGNALS: u32 = 8;

/// Bytes of data of an attribute.
fn size(group: u32, attribute: u64) -> usize {
    match (group, attribute) {
        (vcpu::GROUP_PMU, vcpu::PMU_INIT) => 0,
        (vcpu::GROUP_PMU, vcpu::PMU_FILTER) | (vcpu::GROUP_PVTIME, _) => 8,
        _ => 4,
    }
}

/// `page`: of the vCPU, which the caller has for itself.
pub(super) fn vcpu_call(
    user: &UserVcpu,
    page: &mut Option<SharedPage>,
    call: Call,
    argument: u64,
    caller: &Slots,
) -> Result<u64, Errno> {
    let (vm, this) = (&user.vm.vm, &*user.vcpu);
    // Before the argument is read.
    if matches!(call, Call::ArmVcpuFinalize | Call::GetOneReg | Call::SetOneReg | Call::GetRegList)
        && !this.is_initialised()
    {
        return Err(Errno::ENOEXEC);
    }
    match call {
        Call::ArmVcpuInit => {
            let bytes = copy_in::<32>(caller, argument)?;
            let features = core::array::from_fn(|n| field32(&bytes, 4 + 4 * n));
            this.init(vm, &VcpuInit { target: field32(&bytes, 0), features }).map(|()| 0)
        }
        Call::ArmVcpuFinalize => {
            let what = i32::from_le_bytes(copy_in::<4>(caller, argument)?);
            this.finalize(what).map(|()| 0)
        }
        Call::GetOneReg => {
            let bytes = copy_in::<16>(caller, argument)?;
            let value = this.get_one_reg(vm, field64(&bytes, 0))?;
            let data = value.to_bytes();
            copy_out(caller, field64(&bytes, 8), data.get(..value.size()).unwrap_or(&data)).map(|()| 0)
        }
        Call::SetOneReg => {
            let bytes = copy_in::<16>(caller, argument)?;
            this.one_reg_settable()?;
            let (id, address) = (field64(&bytes, 0), field64(&bytes, 8));
            let mut data = [0; 16];
            let data = data.get_mut(..size_to_set(id)?).ok_or(Errno::EINVAL)?;
            if !caller.read(address, data) {
                return Err(Errno::EFAULT);
            }
            this.set_one_reg(vm, id, Value::from_bytes(data).ok_or(Errno::EINVAL)?).map(|()| 0)
        }
        Call::GetRegList => {
            let ids: Vec<u64> = this.reg_list(vm)?.collect();
            let room = u64::from_le_bytes(copy_in::<8>(caller, argument)?);
            copy_out(caller, argument, &(ids.len() as u64).to_le_bytes())?;
            if room < ids.len() as u64 {
                return Err(Errno::E2BIG);
            }
            for (n, id) in ids.iter().enumerate() {
                copy_out(caller, argument.wrapping_add(8 + 8 * n as u64), &id.to_le_bytes())?;
            }
            Ok(0)
        }
        Call::GetMpState => copy_out(caller, argument, &(this.mp_state() as u32).to_le_bytes()).map(|()| 0),
        Call::SetMpState => {
            let number = u32::from_le_bytes(copy_in::<4>(caller, argument)?);
            this.set_mp_state(MpState::new(number).ok_or(Errno::EINVAL)?);
            Ok(0)
        }
        Call::GetVcpuEvents => {
            let events = this.get_vcpu_events()?;
            let mut bytes = [0; 64];
            for (word, chunk) in events.words().iter().zip(bytes.chunks_exact_mut(8)) {
                chunk.copy_from_slice(&word.to_le_bytes());
            }
            copy_out(caller, argument, &bytes).map(|()| 0)
        }
        Call::SetVcpuEvents => {
            let bytes = copy_in::<64>(caller, argument)?;
            let mut events = VcpuEvents::from_words([field64(&bytes, 0), field64(&bytes, 8), 0]);
            events.reserved = core::array::from_fn(|n| field32(&bytes, 16 + 4 * n));
            this.set_vcpu_events(&events).map(|()| 0)
        }
        Call::SetGuestDebug => {
            let bytes = copy_in::<{ guest_debug::BYTES }>(caller, argument)?;
            let debugger = guest_debug::parse(|at| field64(&bytes, at))?;
            this.set_debugger(debugger).map(|()| 0)
        }
        Call::SetSignalMask => {
            // There are no signals, so any mask of theirs is as good as another.
            if argument != 0 && u32::from_le_bytes(copy_in::<4>(caller, argument)?) != SIGNALS {
                return Err(Errno::EINVAL);
            }
            Ok(0)
        }
        Call::HasDeviceAttr => {
            let attr = Attribute::read(caller, argument)?;
            this.has_device_attr(vm, attr.group, attr.attr).map(|()| 0)
        }
        Call::SetDeviceAttr => {
            let attr = Attribute::read(caller, argument)?;
            this.may_set_device_attr(vm, attr.group)?;
            let value = attr.data(caller, size(attr.group, attr.attr))?;
            this.set_device_attr(vm, attr.group, attr.attr, value).map(|()| 0)
        }
        Call::GetDeviceAttr => {
            let attr = Attribute::read(caller, argument)?;
            let value = this.get_device_attr(vm, attr.group, attr.attr)?;
            attr.put(caller, size(attr.group, attr.attr), value).map(|()| 0)
        }
        Call::SetRunPage => {
            if !argument.is_multiple_of(PAGE_SIZE) {
                return Err(Errno::EINVAL);
            }
            let (memory, offset) = caller.locate(Ipa(argument), PAGE_SIZE).ok_or(Errno::EFAULT)?;
            *page = Some(SharedPage::new(memory, offset).ok_or(Errno::EFAULT)?);
            Ok(0)
        }
        _ => Err(Errno::EINVAL),
    }
}
