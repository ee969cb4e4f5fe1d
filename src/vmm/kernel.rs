//! What an executable image wants: which of its bytes go where, and where it starts.
//!
//! Three formats are known, told apart by their first bytes: arm64's `Image` (Linux `arch/arm64` booting document;
//! magic at 0x38), ELF64 for AArch64 (System V gABI), and anything else, a flat binary. Only the head of the file is
//! looked at, so a compressed one need not be unpacked twice. Every number in it is the bundle's and is distrusted.

use alloc::format;
use alloc::vec::Vec;
use core::ops::Range;

use super::config;
use super::error::ConfigError;
use super::image::Image;
use super::kernel_aarch32;
use crate::mm::Ipa;
use crate::mm::addr::BLOCK_2M;

/// Bytes of the file that must hold every header: 70 ELF program headers.
const HEAD: usize = 4096;
/// Distance from the start of RAM of a flat image, and of an `Image` too old to say (QEMU `hw/arm/boot.c`, kvmtool).
pub const FLAT_OFFSET: u64 = 0x8_0000;

// Offsets in arm64's Image header.
const IMAGE_TEXT_OFFSET: usize = 0x08;
const IMAGE_SIZE: usize = 0x10;
const IMAGE_FLAGS: usize = 0x18;
const IMAGE_MAGIC: usize = 0x38;
const IMAGE_MAGIC_VALUE: [u8; 4] = *b"ARM\x64";
const IMAGE_HEADER: usize = 0x40;
const IMAGE_FLAG_BIG_ENDIAN: u64 = 1 << 0;

// ELF64 (gABI, "ELF Header" and "Program Header").
pub(super) const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
const ELF_CLASS_64: u8 = 2;
pub(super) const ELF_DATA_LITTLE: u8 = 1;
const ELF_MACHINE_AARCH64: u16 = 183;
const ELF_HEADER: usize = 64;
const ELF_PROGRAM_HEADER: usize = 56;
pub(super) const PT_LOAD: u32 = 1;

const ELF_EXPECTED: &str =
    "an ELF64 executable for AArch64, little endian, with its program headers in the first 4 KiB";
const IMAGE_EXPECTED: &str = "a little-endian arm64 Image";

/// The format of an executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// arm64's `Image`.
    Arm64Image,
    /// 32-bit Arm's `zImage`.
    ZImage,
    /// ELF64.
    Elf,
    /// Raw bytes.
    Flat,
}

/// A piece of the file and where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Offsets in the (unpacked) file.
    pub file: Range<u64>,
    /// Where its first byte goes.
    pub address: Ipa,
    /// Bytes it takes in memory, at least those of the file.
    pub memory: u64,
    /// Whether what follows the file's bytes has to be zeroed by the loader (an arm64 kernel does that itself).
    pub zero: bool,
}

impl Segment {
    /// The part of `bytes`, which are the file's from `offset` on, that belongs to this segment, and where it goes.
    pub fn part<'b>(&self, offset: u64, bytes: &'b [u8]) -> Option<(Ipa, &'b [u8])> {
        let start = self.file.start.max(offset);
        let end = self.file.end.min(offset.checked_add(bytes.len() as u64)?);
        if start >= end {
            return None;
        }
        let part = bytes.get((start - offset) as usize..(end - offset) as usize)?;
        Some((self.address.checked_add(start - self.file.start)?, part))
    }
}

/// An executable, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executable {
    /// Its format.
    pub format: Format,
    /// What to load, at least one.
    pub segments: Vec<Segment>,
    /// Where to start.
    pub entry: Ipa,
}

impl Executable {
    /// Reads the headers of `image` for a VM whose RAM begins at `ram_base` (2 MiB aligned). That the segments are
    /// inside RAM and apart from each other is the caller's to check.
    ///
    /// # Errors
    ///
    /// [`ConfigError::BadImage`] or [`ConfigError::BadProperty`] (`load`, `entry`), naming the image.
    pub fn examine(image: &Image, ram_base: Ipa) -> Result<Self, ConfigError> {
        Self::examine_as(image, |head, size| {
            if head.starts_with(&ELF_MAGIC) {
                elf(image, head, size)
            } else if is_arm64_image(head) {
                arm64_image(image, head, size, ram_base)
            } else if kernel_aarch32::is_zimage(head) {
                Err(image.bad("is a 32-bit Arm zImage", "a kernel for arm64, or keel,features = \"aarch32\""))
            } else {
                let address = Ipa(image.load.unwrap_or(ram_base.0 + FLAT_OFFSET));
                Ok(single(Format::Flat, size, address, size))
            }
        })
    }

    /// The same for a VM whose EL1 is AArch32, and which has `memory` bytes of RAM.
    ///
    /// # Errors
    ///
    /// As [`examine`](Self::examine).
    pub fn examine_aarch32(image: &Image, ram_base: Ipa, memory: u64) -> Result<Self, ConfigError> {
        Self::examine_as(image, |head, size| kernel_aarch32::examine(image, head, size, ram_base, memory))
    }

    fn examine_as(
        image: &Image,
        read: impl FnOnce(&[u8], u64) -> Result<Self, ConfigError>,
    ) -> Result<Self, ConfigError> {
        let size = image.size()?;
        let head = image.head(HEAD)?;
        if size == 0 || head.is_empty() {
            return Err(image.bad("is empty", "an executable"));
        }
        let mut executable = read(&head, size)?;
        if let Some(entry) = image.entry {
            if !executable.contains(Ipa(entry)) {
                return Err(ConfigError::BadProperty {
                    node: image.node.clone(),
                    property: config::ENTRY.into(),
                    found: format!("{entry:#x}"),
                    expected: "an address inside the loaded image".into(),
                });
            }
            executable.entry = Ipa(entry);
        }
        Ok(executable)
    }

    fn contains(&self, address: Ipa) -> bool {
        self.segments
            .iter()
            .any(|segment| address.0.checked_sub(segment.address.0).is_some_and(|offset| offset < segment.memory))
    }
}

pub(super) fn is_arm64_image(head: &[u8]) -> bool {
    head.get(IMAGE_MAGIC..IMAGE_HEADER - 4) == Some(&IMAGE_MAGIC_VALUE)
}

fn single(format: Format, size: u64, address: Ipa, memory: u64) -> Executable {
    let segment = Segment { file: 0..size, address, memory, zero: false };
    Executable { format, segments: [segment].into(), entry: address }
}

fn arm64_image(image: &Image, head: &[u8], size: u64, ram_base: Ipa) -> Result<Executable, ConfigError> {
    let field = |offset| read_u64(head, offset).ok_or_else(|| image.bad("ends inside its header", IMAGE_EXPECTED));
    let image_size = field(IMAGE_SIZE)?;
    // Kernels before 3.17 leave image_size 0 and mean text_offset 0x80000, whatever the field says.
    let text_offset = if image_size == 0 { FLAT_OFFSET } else { field(IMAGE_TEXT_OFFSET)? };
    if field(IMAGE_FLAGS)? & IMAGE_FLAG_BIG_ENDIAN != 0 {
        return Err(image.bad("is big endian (bit 0 of its header's flags)", IMAGE_EXPECTED));
    }
    let address = match image.load {
        None => ram_base.checked_add(text_offset).ok_or_else(|| {
            image.bad(format!("has text_offset {text_offset:#x} in its header"), "an offset inside the VM's RAM")
        })?,
        Some(load) if load.checked_sub(text_offset).is_some_and(|base| base.is_multiple_of(BLOCK_2M)) => Ipa(load),
        Some(load) => {
            return Err(ConfigError::BadProperty {
                node: image.node.clone(),
                property: config::LOAD.into(),
                found: format!("{load:#x}"),
                expected: format!("a multiple of 2 MiB plus {text_offset:#x}, the text_offset of its header"),
            });
        }
    };
    Ok(single(Format::Arm64Image, size, address, image_size.max(size)))
}

fn elf(image: &Image, head: &[u8], size: u64) -> Result<Executable, ConfigError> {
    let bad = |reason: &str| image.bad(reason, ELF_EXPECTED);
    let short = || bad("ends inside its ELF headers");
    let header = head.get(..ELF_HEADER).ok_or_else(short)?;
    if header[4] != ELF_CLASS_64 || header[5] != ELF_DATA_LITTLE {
        return Err(bad("is an ELF file of another class or byte order"));
    }
    let machine = read_u16(header, 18).ok_or_else(short)?;
    if machine != ELF_MACHINE_AARCH64 {
        return Err(image.bad(format!("is an ELF file for machine {machine}"), ELF_EXPECTED));
    }
    let entry = read_u64(header, 24).ok_or_else(short)?;
    let table = read_u64(header, 32).ok_or_else(short)?;
    let entry_size = read_u16(header, 54).ok_or_else(short)?;
    let count = read_u16(header, 56).ok_or_else(short)?;
    if usize::from(entry_size) != ELF_PROGRAM_HEADER {
        return Err(image.bad(format!("has program headers of {entry_size} bytes"), ELF_EXPECTED));
    }

    let mut segments = Vec::new();
    let mut start = None;
    for index in 0..u64::from(count) {
        let at = usize::try_from(table.saturating_add(index * ELF_PROGRAM_HEADER as u64)).unwrap_or(usize::MAX);
        let program = at.checked_add(ELF_PROGRAM_HEADER).and_then(|end| head.get(at..end)).ok_or_else(short)?;
        let field = |offset| read_u64(program, offset).ok_or_else(short);
        let (offset, virt, physical, in_file, in_memory) = (field(8)?, field(16)?, field(24)?, field(32)?, field(40)?);
        if read_u32(program, 0) != Some(PT_LOAD) || in_memory == 0 {
            continue;
        }
        let end = offset.checked_add(in_file).filter(|&end| end <= size);
        let Some(end) = end else {
            return Err(image.bad(
                format!("segment {index} is {in_file:#x} bytes at {offset:#x} of a file of {size:#x}"),
                ELF_EXPECTED,
            ));
        };
        if in_file > in_memory {
            return Err(image.bad(
                format!("segment {index} has {in_file:#x} bytes in the file but {in_memory:#x} in memory"),
                ELF_EXPECTED,
            ));
        }
        // e_entry is a virtual address; the guest starts with its MMU off, so it is the physical one that counts.
        if let Some(inside) = entry.checked_sub(virt).filter(|&inside| inside < in_memory) {
            start = physical.checked_add(inside).map(Ipa).or(start);
        }
        segments.push(Segment { file: offset..end, address: Ipa(physical), memory: in_memory, zero: true });
    }
    if segments.is_empty() {
        return Err(bad("has nothing to load (no PT_LOAD segment)"));
    }
    let entry = start.ok_or_else(|| image.bad(format!("starts at {entry:#x}, outside its segments"), ELF_EXPECTED))?;
    Ok(Executable { format: Format::Elf, segments, entry })
}

pub(super) fn read_u16(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

pub(super) fn read_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn read_u64(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::image::Compression;
    use crate::vmm::test_support::{Mutations, arm64_image, elf, gzip};

    const BASE: Ipa = Ipa(0x4000_0000);

    fn examine(data: &[u8]) -> Result<Executable, ConfigError> {
        Executable::examine(&Image::new("/images/k", data), BASE)
    }

    fn message(data: &[u8]) -> String {
        examine(data).unwrap_err().to_string()
    }

    #[test]
    fn arm64_images() {
        let image = examine(&arm64_image(0, 0x20_0000, 0x1_0000)).unwrap();
        assert_eq!(image.format, Format::Arm64Image);
        assert_eq!(image.entry, BASE);
        let segment = Segment { file: 0..0x1_0000, address: BASE, memory: 0x20_0000, zero: false };
        assert_eq!(image.segments, [segment]);
        assert_eq!(examine(&arm64_image(0x8_0000, 0x20_0000, 100)).unwrap().entry, Ipa(0x4008_0000));
        // Before 3.17: no size, and text_offset does not count.
        let old = examine(&arm64_image(0x1234, 0, 0x1_0000)).unwrap();
        assert_eq!((old.entry, old.segments[0].memory), (Ipa(0x4008_0000), 0x1_0000));
        // A file longer than its image_size still has to fit.
        assert_eq!(examine(&arm64_image(0, 0x1000, 0x1_0000)).unwrap().segments[0].memory, 0x1_0000);
        let mut big = arm64_image(0, 0x1000, 100);
        big[IMAGE_FLAGS] |= 1;
        assert!(message(&big).contains("big endian"));
        assert!(message(&arm64_image(u64::MAX, 0x1000, 100)).contains("text_offset 0xffffffffffffffff"));
    }

    #[test]
    fn load_addresses_are_obeyed_or_refused() {
        let data = arm64_image(0x8_0000, 0x20_0000, 0x100);
        let mut image = Image::new("/images/k", &data);
        image.load = Some(0x4068_0000);
        assert_eq!(Executable::examine(&image, BASE).unwrap().entry, Ipa(0x4068_0000));
        image.load = Some(0x4060_0000);
        let error = Executable::examine(&image, BASE).unwrap_err().to_string();
        assert_eq!(
            error,
            "/images/k: property load is 0x40600000, expected a multiple of 2 MiB plus 0x80000, the text_offset of \
             its header; correct it"
        );
        let mut flat = Image::new("/images/k", b"flat");
        flat.load = Some(0x5000_0000);
        flat.entry = Some(0x5000_0002);
        let executable = Executable::examine(&flat, BASE).unwrap();
        assert_eq!((executable.segments[0].address, executable.entry), (Ipa(0x5000_0000), Ipa(0x5000_0002)));
        flat.entry = Some(0x5000_0004);
        let error = Executable::examine(&flat, BASE).unwrap_err().to_string();
        assert_eq!(
            error,
            "/images/k: property entry is 0x50000004, expected an address inside the loaded image; correct it"
        );
    }

    #[test]
    fn flat_binaries() {
        let flat = examine(&[0; 10]).unwrap();
        assert_eq!((flat.format, flat.entry), (Format::Flat, Ipa(0x4008_0000)));
        assert_eq!(message(&[]), "/images/k: is empty; expected an executable: build the image again");
    }

    #[test]
    fn elf_files() {
        let data =
            elf(0xffff_0010, &[(0xffff_0000, 0x4020_0000, 0x100, 0x100), (0xffff_1000, 0x4020_1000, 0x80, 0x400)]);
        let found = examine(&data).unwrap();
        assert_eq!((found.format, found.entry), (Format::Elf, Ipa(0x4020_0010)));
        let places: Vec<_> = found.segments.iter().map(|one| (one.address.0, one.memory, one.file.clone())).collect();
        let start = data.len() as u64 - 0x180;
        assert_eq!(
            places,
            [(0x4020_0000, 0x100, start..start + 0x100), (0x4020_1000, 0x400, start + 0x100..start + 0x180)]
        );
    }

    #[test]
    fn bad_elf_files() {
        let good = elf(0x4020_0000, &[(0x4020_0000, 0x4020_0000, 0x100, 0x100)]);
        let with = |offset: usize, bytes: &[u8]| {
            let mut data = good.clone();
            data[offset..offset + bytes.len()].copy_from_slice(bytes);
            message(&data)
        };
        assert!(with(4, &[1]).contains("another class or byte order"));
        assert!(with(18, &[62, 0]).contains("is an ELF file for machine 62"));
        assert!(with(54, &[32, 0]).contains("has program headers of 32 bytes"));
        assert!(with(56, &[0, 0]).contains("has nothing to load"));
        assert!(with(56, &[0xff, 0xff]).contains("ends inside its ELF headers"));
        assert!(with(32, &[0xff; 8]).contains("ends inside its ELF headers"));
        assert!(with(24, &[0; 8]).contains("starts at 0x0, outside its segments"));
        assert!(with(64 + 8, &[0xff; 8]).contains("segment 0 is 0x100 bytes at 0xffffffffffffffff"));
        assert!(with(64 + 32, &[0, 2]).contains("segment 0 is 0x200 bytes at "));
        assert!(with(64 + 40, &[0x80, 0]).contains("has 0x100 bytes in the file but 0x80 in memory"));
        assert!(message(&good[..20]).contains("ends inside its ELF headers"));
    }

    #[test]
    fn a_compressed_executable_is_the_same() {
        for plain in
            [arm64_image(0, 0x20_0000, 0x1_0000), elf(0x4020_0000, &[(0x4020_0000, 0x4020_0000, 0x9000, 0xa000)])]
        {
            let packed = gzip(&plain);
            let mut image = Image::new("/images/k", &packed);
            image.compression = Compression::Gzip;
            assert_eq!(Executable::examine(&image, BASE), examine(&plain));
        }
    }

    #[test]
    fn segments_take_their_part() {
        let segment = Segment { file: 10..20, address: BASE, memory: 10, zero: true };
        let data: Vec<u8> = (0..30).collect();
        assert_eq!(segment.part(0, &data), Some((BASE, &data[10..20])));
        assert_eq!(segment.part(15, &data[15..17]), Some((Ipa(BASE.0 + 5), &data[15..17])));
        assert_eq!(segment.part(0, &data[..10]), None);
        assert_eq!(segment.part(20, &data[20..]), None);
        assert_eq!(segment.part(u64::MAX, &data), None);
    }

    #[test]
    fn mutants_do_not_panic() {
        let good = elf(0x4020_0000, &[(0x4020_0000, 0x4020_0000, 0x40, 0x40), (0x4021_0000, 0x4021_0000, 0x40, 0x80)]);
        for mutant in Mutations::new(&good, 10_000).chain(Mutations::new(&arm64_image(0, 0x1000, 0x80), 10_000)) {
            let _ = examine(&mutant);
        }
    }
}
