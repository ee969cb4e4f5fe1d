//! The error numbers of KVM's calls (Linux, uapi `asm-generic/errno-base.h`, `errno.h`).

use core::fmt;

/// An error number, positive.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

macro_rules! errnos {
    ($($name:ident = $number:literal, $doc:literal;)*) => {
        impl Errno {
            $(#[doc = $doc] pub const $name: Self = Self($number);)*

            /// Its name, if it is one that KVM answers with.
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    EPERM = 1, "Operation not permitted.";
    ENOENT = 2, "No such register, slot or feature.";
    EINTR = 4, "KVM_RUN was interrupted.";
    EIO = 5, "The VM is dead.";
    ENXIO = 6, "No such device, attribute or address.";
    E2BIG = 7, "Too big, or beyond the IPA space.";
    ENOEXEC = 8, "The vCPU has not been initialised.";
    EBADF = 9, "Not a handle.";
    EAGAIN = 11, "Not ready yet.";
    ENOMEM = 12, "Out of memory.";
    EACCES = 13, "Access denied.";
    EFAULT = 14, "Bad address.";
    EBUSY = 16, "Already configured, or running.";
    EEXIST = 17, "Already there.";
    ENODEV = 19, "No such device.";
    EINVAL = 22, "Invalid argument.";
    EMFILE = 24, "Too many handles.";
    ENOTTY = 25, "Not a call of this device.";
    ENOSYS = 38, "Not implemented.";
    EOPNOTSUPP = 95, "Not supported.";
}

impl fmt::Display for Errno {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => formatter.write_str(name),
            None => write!(formatter, "errno {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl core::error::Error for Errno {}

/// The result of a call: not negative, or an error number negated.
pub fn result(answer: i64) -> Result<u64, Errno> {
    // Error numbers are at most 4095; what else is negative is no answer of KVM's.
    u64::try_from(answer).map_err(|_| Errno(i32::try_from(answer.saturating_neg()).unwrap_or(i32::MAX)))
}
