//! Error numbers that KVM's API answers with, Linux's values (uapi `asm-generic/errno*.h`).

/// An error of the KVM API. The hypercall transport returns it negated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Errno {
    /// Operation not permitted.
    EPERM = 1,
    /// No such register, slot or feature.
    ENOENT = 2,
    /// Interrupted.
    EINTR = 4,
    /// The VM is dead.
    EIO = 5,
    /// No such device, attribute or address.
    ENXIO = 6,
    /// Too big, or beyond the IPA size.
    E2BIG = 7,
    /// The vCPU has not been initialised.
    ENOEXEC = 8,
    /// Bad handle.
    EBADF = 9,
    /// Not ready yet.
    EAGAIN = 11,
    /// Out of memory.
    ENOMEM = 12,
    /// Access denied.
    EACCES = 13,
    /// Bad address.
    EFAULT = 14,
    /// Busy: already configured, or running.
    EBUSY = 16,
    /// Already exists.
    EEXIST = 17,
    /// No such device.
    ENODEV = 19,
    /// Invalid argument.
    EINVAL = 22,
    /// Too many handles.
    EMFILE = 24,
    /// Not an ioctl of this device.
    ENOTTY = 25,
    /// No room for more bindings.
    ENOSPC = 28,
    /// Not implemented.
    ENOSYS = 38,
}

impl Errno {
    /// As calls return it.
    pub const fn negated(self) -> i64 {
        -(self as i64)
    }
}
