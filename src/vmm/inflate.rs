//! gzip, RFC 1952, unpacked as a stream.
//!
//! The unpacked bytes are handed on a window at a time, so that a kernel goes straight into its guest's RAM and never
//! exists a second time in keel's. The member's CRC and length are checked; nothing is handed on beyond the length
//! the trailer promises, so a caller that made room for [`Gzip::size`] bytes cannot be overrun.

use alloc::boxed::Box;
use alloc::vec;

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress, inflate_flags};

/// The first two bytes of a member (RFC 1952 §2.3.1).
pub const MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Deflate refers back at most this far (RFC 1951 §3.2.5); the decompressor wants a power of two.
const WINDOW: usize = 32 << 10;
/// Fixed part of the header, and the trailer (RFC 1952 §2.3).
const HEADER: usize = 10;
const TRAILER: usize = 8;

// FLG bits (RFC 1952 §2.3.1).
const FHCRC: u8 = 1 << 1;
const FEXTRA: u8 = 1 << 2;
const FNAME: u8 = 1 << 3;
const FCOMMENT: u8 = 1 << 4;
const RESERVED: u8 = 0xe0;

/// What is wrong with a gzip member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GzipError {
    /// The first bytes are not a gzip header.
    #[error("does not begin with a gzip header")]
    NotGzip,
    /// The bytes end too early.
    #[error("the gzip data ends too early")]
    Truncated,
    /// The compressed data is damaged.
    #[error("the gzip data is damaged after {0:#x} unpacked bytes")]
    Damaged(u64),
    /// The trailer's length is not what was unpacked.
    #[error("the gzip trailer says {expected:#x} bytes, at least {found:#x} came out")]
    WrongSize {
        /// ISIZE of the trailer.
        expected: u64,
        /// Bytes unpacked when that showed.
        found: u64,
    },
    /// The trailer's CRC is not that of the unpacked bytes.
    #[error("the gzip trailer says CRC {expected:#010x}, the unpacked bytes have {found:#010x}")]
    WrongCrc {
        /// CRC32 of the trailer.
        expected: u32,
        /// CRC-32 of the bytes.
        found: u32,
    },
    /// Something follows the member.
    #[error("{0} bytes follow the end of the gzip data; keel reads a single member")]
    TrailingBytes(usize),
}

/// A gzip member whose header has been read.
#[derive(Clone, Copy, Debug)]
pub struct Gzip<'a> {
    deflate: &'a [u8],
    size: u32,
}

impl<'a> Gzip<'a> {
    /// Reads the header and the length at the end.
    ///
    /// # Errors
    ///
    /// [`GzipError::NotGzip`] and [`GzipError::Truncated`].
    pub fn parse(data: &'a [u8]) -> Result<Self, GzipError> {
        if data.get(..2) != Some(&MAGIC) {
            return Err(GzipError::NotGzip);
        }
        let fixed = data.get(..HEADER).ok_or(GzipError::Truncated)?;
        let flags = fixed[3];
        // CM 8 is deflate, the only method there is.
        if fixed[2] != 8 || flags & RESERVED != 0 {
            return Err(GzipError::NotGzip);
        }
        let mut rest = &data[HEADER..];
        if flags & FEXTRA != 0 {
            let length = rest.first_chunk().map(|bytes| u16::from_le_bytes(*bytes)).ok_or(GzipError::Truncated)?;
            rest = rest.get(2 + usize::from(length)..).ok_or(GzipError::Truncated)?;
        }
        for text in [FNAME, FCOMMENT] {
            if flags & text != 0 {
                let end = rest.iter().position(|&byte| byte == 0).ok_or(GzipError::Truncated)?;
                rest = &rest[end + 1..];
            }
        }
        if flags & FHCRC != 0 {
            rest = rest.get(2..).ok_or(GzipError::Truncated)?;
        }
        if rest.len() < TRAILER {
            return Err(GzipError::Truncated);
        }
        let size = rest.last_chunk().map(|bytes| u32::from_le_bytes(*bytes)).ok_or(GzipError::Truncated)?;
        Ok(Self { deflate: rest, size })
    }

    /// Length of the unpacked bytes, as the trailer has it.
    pub fn size(&self) -> u64 {
        u64::from(self.size)
    }

    /// Unpacks the beginning into `head` and returns how many bytes came out: fewer than its length only if there
    /// are no more.
    ///
    /// # Errors
    ///
    /// [`GzipError::Damaged`].
    pub fn head(&self, head: &mut [u8]) -> Result<usize, GzipError> {
        let flags = inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        let mut state = Box::<DecompressorOxide>::default();
        let (status, _, produced) = decompress(&mut state, self.deflate, head, 0, flags);
        match status {
            TINFLStatus::Done | TINFLStatus::HasMoreOutput => Ok(produced),
            _ => Err(GzipError::Damaged(produced as u64)),
        }
    }

    /// Unpacks everything, handing each piece to `sink` with its offset. What `sink` got is only good if the answer
    /// is: the CRC is known at the end.
    ///
    /// # Errors
    ///
    /// Any of [`GzipError`], or the error of `sink`.
    pub fn unpack<E: From<GzipError>>(&self, mut sink: impl FnMut(u64, &[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut state = Box::<DecompressorOxide>::default();
        let mut window = vec![0; WINDOW];
        let mut crc = crc32fast::Hasher::new();
        let mut input = self.deflate;
        let mut total = 0u64;
        loop {
            let position = total as usize % WINDOW;
            let (status, consumed, produced) = decompress(&mut state, input, &mut window, position, 0);
            let piece = window.get(position..position + produced).ok_or(GzipError::Damaged(total))?;
            let end = total + produced as u64;
            if end > self.size() {
                return Err(GzipError::WrongSize { expected: self.size(), found: end }.into());
            }
            crc.update(piece);
            sink(total, piece)?;
            total = end;
            input = input.get(consumed..).unwrap_or_default();
            match status {
                TINFLStatus::Done => break,
                TINFLStatus::HasMoreOutput => {}
                _ => return Err(GzipError::Damaged(total).into()),
            }
        }
        let Some((trailer, rest)) = input.split_first_chunk::<TRAILER>() else {
            return Err(GzipError::Truncated.into());
        };
        if !rest.is_empty() {
            return Err(GzipError::TrailingBytes(rest.len()).into());
        }
        if total != self.size() {
            return Err(GzipError::WrongSize { expected: self.size(), found: total }.into());
        }
        let [a, b, c, d, ..] = *trailer;
        let (expected, found) = (u32::from_le_bytes([a, b, c, d]), crc.finalize());
        if expected != found {
            return Err(GzipError::WrongCrc { expected, found }.into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;
    use crate::vmm::test_support::gzip;

    fn unpack(data: &[u8]) -> Result<Vec<u8>, GzipError> {
        let mut out = Vec::new();
        Gzip::parse(data)?.unpack(|offset, bytes| {
            assert_eq!(offset, out.len() as u64);
            out.extend_from_slice(bytes);
            Ok::<_, GzipError>(())
        })?;
        Ok(out)
    }

    fn sample(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i * i / 7 + i / 300) as u8).collect()
    }

    #[test]
    fn round_trip_across_windows() {
        for length in [0, 1, 100, WINDOW - 1, WINDOW, WINDOW + 1, 5 * WINDOW + 17] {
            let plain = sample(length);
            assert_eq!(unpack(&gzip(&plain)), Ok(plain));
        }
    }

    #[test]
    fn head_stops_where_asked() {
        let plain = sample(3 * WINDOW);
        let packed = gzip(&plain);
        let mut head = [0; 4096];
        assert_eq!(Gzip::parse(&packed).unwrap().head(&mut head), Ok(4096));
        assert_eq!(head, plain[..4096]);
        let packed = gzip(&plain[..100]);
        assert_eq!(Gzip::parse(&packed).unwrap().head(&mut head), Ok(100));
    }

    #[test]
    fn optional_header_fields_are_skipped() {
        let packed = gzip(b"hello");
        let mut named = packed[..HEADER].to_vec();
        named[3] = FEXTRA | FNAME | FCOMMENT | FHCRC;
        named.extend_from_slice(b"\x03\x00abcname\0comment\0\x12\x34");
        named.extend_from_slice(&packed[HEADER..]);
        assert_eq!(unpack(&named).unwrap(), b"hello");
    }

    #[test]
    fn every_fault_is_named() {
        let plain = sample(2 * WINDOW);
        let packed = gzip(&plain);
        assert_eq!(unpack(b"hello world"), Err(GzipError::NotGzip));
        assert_eq!(unpack(&packed[..12]), Err(GzipError::Truncated));
        let mut crc = packed.clone();
        let at = crc.len() - TRAILER;
        crc[at] ^= 1;
        assert!(matches!(unpack(&crc), Err(GzipError::WrongCrc { .. })));
        let mut size = packed.clone();
        let at = size.len() - 4;
        size[at] ^= 1;
        assert!(matches!(unpack(&size), Err(GzipError::WrongSize { .. })));
        let mut longer = packed.clone();
        longer.extend_from_slice(&packed[packed.len() - 4..]);
        assert_eq!(unpack(&longer), Err(GzipError::TrailingBytes(4)));
        for cut in (HEADER..packed.len()).step_by(packed.len() / 50) {
            assert!(unpack(&packed[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_bomb_is_stopped_at_its_promised_size() {
        let mut packed = gzip(&vec![0; 64 << 20]);
        let at = packed.len() - 4;
        packed[at..].copy_from_slice(&100u32.to_le_bytes());
        let mut seen = 0;
        let result = Gzip::parse(&packed).unwrap().unpack(|_, bytes| {
            seen += bytes.len();
            Ok::<_, GzipError>(())
        });
        assert!(matches!(result, Err(GzipError::WrongSize { expected: 100, .. })));
        assert!(seen <= 100);
    }
}
