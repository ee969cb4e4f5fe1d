//! The caller's memory, from which arguments are copied once and to which results go.

use super::super::Errno;

/// The memory of whoever makes the calls, by its own addresses. It changes whenever its owner likes: what was read is what
/// is checked and used.
pub trait UserMemory {
    /// Reads all of `bytes`; `false` if some of that is not memory.
    fn read(&self, address: u64, bytes: &mut [u8]) -> bool;
    /// Writes all of `bytes`, or nothing and `false`.
    fn write(&self, address: u64, bytes: &[u8]) -> bool;
}

/// Reads a structure of `N` bytes.
///
/// # Errors
///
/// `EFAULT`.
pub fn copy_in<const N: usize>(memory: &impl UserMemory, address: u64) -> Result<[u8; N], Errno> {
    let mut bytes = [0; N];
    if memory.read(address, &mut bytes) { Ok(bytes) } else { Err(Errno::EFAULT) }
}

/// Writes a structure.
///
/// # Errors
///
/// `EFAULT`.
pub fn copy_out(memory: &impl UserMemory, address: u64, bytes: &[u8]) -> Result<(), Errno> {
    if memory.write(address, bytes) { Ok(()) } else { Err(Errno::EFAULT) }
}

/// The 32-bit field at `offset`; 0 outside.
pub fn field32(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..).and_then(<[u8]>::first_chunk).map_or(0, |field| u32::from_le_bytes(*field))
}

/// The 64-bit field at `offset`; 0 outside.
pub fn field64(bytes: &[u8], offset: usize) -> u64 {
    bytes.get(offset..).and_then(<[u8]>::first_chunk).map_or(0, |field| u64::from_le_bytes(*field))
}
