//! What an executable for AArch32 wants: [`kernel`](super::kernel) for VMs whose EL1 is 32-bit.
//!
//! Three formats again: Linux's `zImage` (Linux `arch/arm` booting document; magic at 0x24), ELF32 for Arm (System V gABI),
//! and anything else, a flat binary. A zImage moves and unpacks itself, to the first 32 KiB multiple behind the start of
//! its 128 MiB of RAM; that document asks that it is in the first 128 MiB, and better above 32 MiB.

use alloc::format;
use alloc::vec::Vec;

use super::error::ConfigError;
use super::image::Image;
use super::kernel::{
    ELF_DATA_LITTLE, ELF_MAGIC, Executable, Format, PT_LOAD, Segment, is_arm64_image, read_u16, read_u32,
};
use crate::mm::Ipa;

/// Distance from the start of RAM of a flat image, and of a zImage where there is little RAM (Linux, kvmtool: TEXT_OFFSET).
pub const FLAT_OFFSET: u64 = 0x8000;
/// Distance from the start of RAM of a zImage: where it does not have to move before it unpacks itself.
const ZIMAGE_OFFSET: u64 = (32 << 20) + FLAT_OFFSET;
/// What a zImage needs behind itself to unpack: its stack, its heap of 64 KiB and its variables.
const ZIMAGE_ROOM: u64 = 1 << 20;

// Offsets in zImage's header.
const ZIMAGE_MAGIC: usize = 0x24;
const ZIMAGE_START: usize = 0x28;
const ZIMAGE_END: usize = 0x2c;
const ZIMAGE_ENDIANNESS: usize = 0x30;
const ZIMAGE_MAGIC_VALUE: u32 = 0x016f_2818;
const ZIMAGE_LITTLE: u32 = 0x0403_0201;

// ELF32 (gABI).
const ELF_CLASS_32: u8 = 1;
const ELF_MACHINE_ARM: u16 = 40;
const ELF_HEADER: usize = 52;
const ELF_PROGRAM_HEADER: usize = 32;

const EXPECTED: &str = "a 32-bit Arm zImage, an ELF32 executable for Arm, or a flat binary";
const ELF_EXPECTED: &str = "an ELF32 executable for Arm, little endian, with its program headers in the first 4 KiB";
const ZIMAGE_EXPECTED: &str = "a whole little-endian zImage";

/// Whether the file that begins with `head` is a zImage.
pub(super) fn is_zimage(head: &[u8]) -> bool {
    read_u32(head, ZIMAGE_MAGIC) == Some(ZIMAGE_MAGIC_VALUE)
}

/// The executable, but for its image's own wishes.
pub(super) fn examine(
    image: &Image,
    head: &[u8],
    size: u64,
    ram_base: Ipa,
    memory: u64,
) -> Result<Executable, ConfigError> {
    if head.starts_with(&ELF_MAGIC) {
        return elf(image, head, size);
    }
    if is_arm64_image(head) {
        return Err(image.bad("is an arm64 Image", EXPECTED));
    }
    if !is_zimage(head) {
        let address = Ipa(image.load.unwrap_or(ram_base.0 + FLAT_OFFSET));
        return Ok(single(Format::Flat, size, address, size));
    }
    let field = |offset| read_u32(head, offset).ok_or_else(|| image.bad("ends inside its header", ZIMAGE_EXPECTED));
    let (start, end) = (field(ZIMAGE_START)?, field(ZIMAGE_END)?);
    if u64::from(end.wrapping_sub(start)) > size {
        return Err(image.bad(format!("is {size:#x} bytes of {:#x}", end.wrapping_sub(start)), ZIMAGE_EXPECTED));
    }
    // Kernels before 4.11 do not say.
    if ![0, ZIMAGE_LITTLE].contains(&field(ZIMAGE_ENDIANNESS)?) {
        return Err(image.bad("is not said to be little endian", ZIMAGE_EXPECTED));
    }
    let room = size.saturating_add(ZIMAGE_ROOM);
    let offset = if memory / 2 >= ZIMAGE_OFFSET + room { ZIMAGE_OFFSET } else { FLAT_OFFSET };
    Ok(single(Format::ZImage, size, Ipa(image.load.unwrap_or(ram_base.0 + offset)), room))
}

fn single(format: Format, size: u64, address: Ipa, memory: u64) -> Executable {
    let segment = Segment { file: 0..size, address, memory, zero: false };
    Executable { format, segments: [segment].into(), entry: address }
}

fn elf(image: &Image, head: &[u8], size: u64) -> Result<Executable, ConfigError> {
    let bad = |reason: &str| image.bad(reason, ELF_EXPECTED);
    let short = || bad("ends inside its ELF headers");
    let header = head.get(..ELF_HEADER).ok_or_else(short)?;
    if header[4] != ELF_CLASS_32 || header[5] != ELF_DATA_LITTLE {
        return Err(bad("is an ELF file of another class or byte order"));
    }
    let machine = read_u16(header, 18).ok_or_else(short)?;
    if machine != ELF_MACHINE_ARM {
        return Err(image.bad(format!("is an ELF file for machine {machine}"), ELF_EXPECTED));
    }
    let word = |bytes: &[u8], offset| read_u32(bytes, offset).map(u64::from).ok_or_else(short);
    // Bit 0 says that it is of T32 (AAELF32, 5.2.1).
    let (entry, thumb) = (word(header, 24)? & !1, word(header, 24)? & 1);
    let table = word(header, 28)?;
    let entry_size = read_u16(header, 42).ok_or_else(short)?;
    let count = read_u16(header, 44).ok_or_else(short)?;
    if usize::from(entry_size) != ELF_PROGRAM_HEADER {
        return Err(image.bad(format!("has program headers of {entry_size} bytes"), ELF_EXPECTED));
    }
    let mut segments = Vec::new();
    let mut start = None;
    for index in 0..u64::from(count) {
        let at = usize::try_from(table + index * ELF_PROGRAM_HEADER as u64).unwrap_or(usize::MAX);
        let program = at.checked_add(ELF_PROGRAM_HEADER).and_then(|end| head.get(at..end)).ok_or_else(short)?;
        let [kind, offset, virt, physical, in_file, in_memory] = [0, 4, 8, 12, 16, 20].map(|at| word(program, at));
        let (offset, virt, physical, in_file, in_memory) = (offset?, virt?, physical?, in_file?, in_memory?);
        if kind? != u64::from(PT_LOAD) || in_memory == 0 {
            continue;
        }
        if offset + in_file > size || in_file > in_memory {
            return Err(image.bad(
                format!("segment {index} is {in_file:#x} bytes at {offset:#x} of a file of {size:#x}, {in_memory:#x} in memory"),
                ELF_EXPECTED,
            ));
        }
        // As for AArch64: the MMU is off, so the physical address counts.
        if let Some(inside) = entry.checked_sub(virt).filter(|&inside| inside < in_memory) {
            start = Some(Ipa((physical + inside) | thumb));
        }
        segments.push(Segment {
            file: offset..offset + in_file,
            address: Ipa(physical),
            memory: in_memory,
            zero: true,
        });
    }
    if segments.is_empty() {
        return Err(bad("has nothing to load (no PT_LOAD segment)"));
    }
    let entry = start.ok_or_else(|| image.bad(format!("starts at {entry:#x}, outside its segments"), ELF_EXPECTED))?;
    Ok(Executable { format: Format::Elf, segments, entry })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::test_support::arm64_image;

    const BASE: Ipa = Ipa(0x4000_0000);
    const MIB: u64 = 1 << 20;

    fn examine(data: &[u8], memory: u64) -> Result<Executable, ConfigError> {
        Executable::examine_aarch32(&Image::new("/images/k", data), BASE, memory)
    }

    fn message(data: &[u8]) -> String {
        examine(data, 512 * MIB).unwrap_err().to_string()
    }

    fn zimage(size: usize, said: u32) -> Vec<u8> {
        let mut data = vec![0; size];
        for (at, word) in [(0x24, ZIMAGE_MAGIC_VALUE), (0x28, 0x100), (0x2c, 0x100 + said), (0x30, ZIMAGE_LITTLE)] {
            data[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        data
    }

    /// An executable with one segment, of which half is in the file.
    fn elf32(entry: u32, virt: u32, physical: u32, size: u32) -> Vec<u8> {
        let mut data = vec![0; 84 + size as usize / 2];
        data[..6].copy_from_slice(b"\x7fELF\x01\x01");
        data[18] = 40;
        for (at, word) in
            [(24, entry), (28, 52), (52, 1), (56, 84), (60, virt), (64, physical), (68, size / 2), (72, size)]
        {
            data[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        (data[42], data[44]) = (32, 1);
        data
    }

    #[test]
    fn zimages() {
        let found = examine(&zimage(0x9000, 0x9000), 512 * MIB).unwrap();
        assert_eq!((found.format, found.entry), (Format::ZImage, Ipa(0x4200_8000)));
        assert_eq!((found.segments[0].file.clone(), found.segments[0].memory), (0..0x9000, 0x9000 + MIB));
        assert_eq!(examine(&zimage(0x9000, 0x9000), 64 * MIB).unwrap().entry, Ipa(0x4000_8000), "little RAM");
        assert!(message(&zimage(0x9000, 0x9001)).contains("is 0x9000 bytes of 0x9001"));
        let mut big = zimage(0x9000, 0x9000);
        big[0x30..0x34].copy_from_slice(&ZIMAGE_LITTLE.to_be_bytes());
        assert!(message(&big).contains("little endian"));
        assert!(message(&zimage(0x9000, 0x9000)[..0x2a]).contains("ends inside its header"));
    }

    #[test]
    fn the_other_state_s_kernels_are_refused() {
        assert!(message(&arm64_image(0, MIB, 0x1000)).contains("is an arm64 Image"));
        assert!(message(&crate::vmm::test_support::elf(0, &[(0, 0, 8, 8)])).contains("another class"));
        let refused = Executable::examine(&Image::new("/images/k", &zimage(0x9000, 0x9000)), BASE).unwrap_err();
        assert!(refused.to_string().contains("is a 32-bit Arm zImage"), "{refused}");
    }

    #[test]
    fn elf_files_and_flat_binaries() {
        let found = examine(&elf32(0x11, 0, 0x4000_0000, 0x200), 64 * MIB).unwrap();
        assert_eq!((found.format, found.entry), (Format::Elf, Ipa(0x4000_0011)), "T32");
        assert_eq!(found.segments, [Segment { file: 84..84 + 0x100, address: BASE, memory: 0x200, zero: true }]);
        assert!(message(&elf32(0x200, 0, 0x4000_0000, 0x200)).contains("starts at 0x200, outside"));
        let whole = elf32(0, 0, 0x4000_0000, 0x200);
        assert!(message(&whole[..whole.len() - 1]).contains("segment 0 is 0x100 bytes at 0x54"));
        assert!(message(&whole[..60]).contains("ends inside its ELF headers"));
        let flat = examine(&[1, 2, 3], 64 * MIB).unwrap();
        assert_eq!((flat.format, flat.entry), (Format::Flat, Ipa(0x4000_8000)));
    }
}
