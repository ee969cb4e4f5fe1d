//! From ELF to what a boot loader wants: one flat piece of memory.
//!
//! keel is linked as an ELF file, for its symbols; boot loaders take a raw arm64 Image. The raw image is the loadable
//! segments at their distances from the lowest physical address. What has no bytes in the file (`.bss`) is left out:
//! the Image header's `image_size` announces it and the entry code clears it.

use anyhow::{Context, Result, bail};
use object::elf::PT_LOAD;
use object::read::elf::{FileHeader, ProgramHeader};
use object::{Object, ObjectSection, SectionKind};

/// The most a raw image may be; segments farther apart are a linker script's mistake.
const LARGEST_IMAGE: u64 = 1 << 30;

/// Flattens the loadable segments of a 64-bit ELF file.
///
/// # Errors
///
/// The file is no 64-bit ELF file, has no loadable bytes, or its segments overlap or lie over 1 GiB apart.
pub fn flatten(file: &[u8]) -> Result<Vec<u8>> {
    let header = object::elf::FileHeader64::<object::Endianness>::parse(file).context("not a 64-bit ELF file")?;
    let endian = header.endian()?;
    let mut segments = Vec::new();
    for segment in header.program_headers(endian, file)? {
        if segment.p_type(endian) == PT_LOAD && segment.p_filesz(endian) > 0 {
            let Ok(bytes) = segment.data(endian, file) else {
                bail!("a segment's bytes lie outside the file");
            };
            segments.push((segment.p_paddr(endian), bytes));
        }
    }
    segments.sort_by_key(|&(address, _)| address);
    let Some(&(base, _)) = segments.first() else { bail!("no loadable segment has bytes in the file") };
    let mut image = Vec::new();
    for (address, bytes) in segments {
        let offset = address - base;
        if offset > LARGEST_IMAGE {
            bail!("the segment at {address:#x} lies more than 1 GiB above the first, at {base:#x}");
        }
        let offset = offset as usize;
        if offset < image.len() {
            bail!("the segment at {address:#x} overlaps the one before it");
        }
        image.resize(offset, 0);
        image.extend_from_slice(bytes);
    }
    Ok(image)
}

/// An executable with the same loadable segments and entry and nothing else: no symbols, no sections.
///
/// What a bundle carries is copied into memory by firmware and need not bring half a megabyte of debugging information.
///
/// # Errors
///
/// The file is no 64-bit little-endian ELF file or a segment lies outside it.
pub fn strip(file: &[u8]) -> Result<Vec<u8>> {
    /// `sizeof(Elf64_Ehdr)` and `sizeof(Elf64_Phdr)`.
    const HEADER: usize = 64;
    const SEGMENT: usize = 56;
    let header = object::elf::FileHeader64::<object::Endianness>::parse(file).context("not a 64-bit ELF file")?;
    let endian = header.endian()?;
    if endian != object::Endianness::Little {
        bail!("a big-endian file");
    }
    let loadable = header.program_headers(endian, file)?.iter().filter(|segment| segment.p_type(endian) == PT_LOAD);
    let segments: Vec<_> = loadable.collect();
    let mut stripped = file.get(..HEADER).context("the header is cut off")?.to_vec();
    let mut put = |offset: usize, bytes: &[u8]| stripped[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0x20, &(HEADER as u64).to_le_bytes()); // e_phoff
    put(0x28, &0_u64.to_le_bytes()); // e_shoff
    put(0x38, &(segments.len() as u16).to_le_bytes()); // e_phnum
    put(0x3c, &[0; 4]); // e_shnum, e_shstrndx
    let mut data = Vec::new();
    let start = (HEADER + SEGMENT * segments.len()).next_multiple_of(16);
    for segment in segments {
        let Ok(bytes) = segment.data(endian, file) else { bail!("a segment's bytes lie outside the file") };
        // p_type and p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
        stripped.extend_from_slice(&segment.p_type(endian).0.to_le_bytes());
        stripped.extend_from_slice(&segment.p_flags(endian).0.to_le_bytes());
        for value in [
            (start + data.len()) as u64,
            segment.p_vaddr(endian),
            segment.p_paddr(endian),
            segment.p_filesz(endian),
            segment.p_memsz(endian),
            16,
        ] {
            stripped.extend_from_slice(&value.to_le_bytes());
        }
        data.extend_from_slice(bytes);
        data.resize(data.len().next_multiple_of(16), 0);
    }
    stripped.resize(start, 0);
    stripped.extend_from_slice(&data);
    Ok(stripped)
}

/// Bytes of code: the sum of the sections that hold instructions.
///
/// # Errors
///
/// The file is no object file.
pub fn text_bytes(file: &[u8]) -> Result<u64> {
    let file = object::File::parse(file)?;
    Ok(file.sections().filter(|section| section.kind() == SectionKind::Text).map(|section| section.size()).sum())
}

/// Bytes of one section; 0 when there is none of that name.
///
/// # Errors
///
/// The file is no object file.
pub fn section_bytes(file: &[u8], name: &str) -> Result<u64> {
    let file = object::File::parse(file)?;
    Ok(file.section_by_name(name).map_or(0, |section| section.size()))
}

/// The lowest address of a loadable segment: what address 0 of the raw image is linked at.
///
/// # Errors
///
/// The file is no 64-bit ELF file or has no loadable segment.
pub fn link_base(file: &[u8]) -> Result<u64> {
    let header = object::elf::FileHeader64::<object::Endianness>::parse(file).context("not a 64-bit ELF file")?;
    let endian = header.endian()?;
    header
        .program_headers(endian, file)?
        .iter()
        .filter(|segment| segment.p_type(endian) == PT_LOAD && segment.p_filesz(endian) > 0)
        .map(|segment| segment.p_vaddr(endian))
        .min()
        .context("no loadable segment")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A little-endian AArch64 ELF file with the given (paddr, file bytes, memory size) segments.
    fn elf(segments: &[(u64, &[u8], u64)]) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        let header = |file: &mut Vec<u8>, value: u64, width: usize| {
            file.extend_from_slice(&value.to_le_bytes()[..width]);
        };
        // e_type .. e_shstrndx of Elf64_Ehdr.
        for (value, width) in
            [(2, 2), (183, 2), (1, 4), (0, 8), (64, 8), (0, 8), (0, 4), (64, 2), (56, 2), (segments.len() as u64, 2)]
        {
            header(&mut file, value, width);
        }
        file.resize(64, 0);
        let mut data = 64 + 56 * segments.len() as u64;
        for &(address, bytes, memory) in segments {
            // p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align of Elf64_Phdr.
            for (value, width) in
                [(1, 4), (5, 4), (data, 8), (address, 8), (address, 8), (bytes.len() as u64, 8), (memory, 8), (1, 8)]
            {
                header(&mut file, value, width);
            }
            data += bytes.len() as u64;
        }
        for (_, bytes, _) in segments {
            file.extend_from_slice(bytes);
        }
        file
    }

    #[test]
    fn gaps_are_zero_and_bss_is_left_out() {
        let file = elf(&[(0x108, b"data", 0x1000), (0x100, b"text", 4)]);
        assert_eq!(flatten(&file).unwrap(), b"text\0\0\0\0data");
        assert_eq!(link_base(&file).unwrap(), 0x100);
    }

    #[test]
    fn stripping_keeps_what_is_loaded() {
        let mut file = elf(&[(0x1000, b"text", 4), (0x3000, b"", 64), (0x2000, b"data!", 0x100)]);
        file.extend_from_slice(&[0xdb; 10_000]);
        let stripped = strip(&file).unwrap();
        assert!(stripped.len() < 500);
        assert_eq!(flatten(&stripped).unwrap(), flatten(&file).unwrap());
        assert_eq!(strip(&stripped).unwrap(), stripped);
        let header = object::elf::FileHeader64::<object::Endianness>::parse(&*stripped).unwrap();
        let segments = header.program_headers(object::Endianness::Little, &*stripped).unwrap();
        let sizes: Vec<_> = segments.iter().map(|segment| segment.p_memsz(object::Endianness::Little)).collect();
        assert_eq!(sizes, [4, 64, 0x100]);
        assert!(strip(b"MZ").is_err() && strip(&file[..70]).is_err());
    }

    #[test]
    fn bad_files_are_refused() {
        assert!(flatten(b"MZ").is_err());
        assert!(flatten(&elf(&[])).is_err());
        assert!(flatten(&elf(&[(0, b"", 16)])).is_err());
        let overlap = flatten(&elf(&[(0, b"12345678", 8), (4, b"x", 1)])).unwrap_err();
        assert!(overlap.to_string().contains("overlaps"), "{overlap}");
        let far = flatten(&elf(&[(0, b"1", 1), (1 << 40, b"x", 1)])).unwrap_err();
        assert!(far.to_string().contains("1 GiB"), "{far}");
        let mut truncated = elf(&[(0, b"12345678", 8)]);
        truncated.truncate(truncated.len() - 1);
        assert!(flatten(&truncated).is_err());
    }
}
