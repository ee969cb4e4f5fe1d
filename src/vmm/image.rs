//! Images of a bundle: their bytes, how they are stored, and their hashes.
//!
//! An [`Image`] borrows the bundle. Nothing is unpacked or hashed until a VM that uses the image is loaded; a hash is
//! computed once, also when several VMs share the image or one restarts. In instructions a byte, as the libraries do
//! it without vector registers (callgrind, x86): SHA-256 about 50, gzip about 24, CRC-32 about 2. A FIT's hashes are
//! not signed, so both find damage and neither finds malice; for large images CRC-32 is the better bargain.

use alloc::borrow::Cow;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

use super::config;
use super::error::ConfigError;
use super::inflate::{Gzip, GzipError};

/// How an image's bytes are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// As they are.
    None,
    /// gzip, RFC 1952.
    Gzip,
}

/// A digest the image's stored bytes must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// CRC-32 of gzip and zlib.
    Crc32(u32),
    /// SHA-256, FIPS 180-4.
    Sha256([u8; 32]),
}

/// One hash node of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hash {
    /// Path of the node.
    pub node: String,
    /// The digest.
    pub expected: Expected,
}

/// An image of the bundle.
#[derive(Debug)]
pub struct Image<'a> {
    /// Path of its node.
    pub node: String,
    /// Its bytes as stored.
    pub data: &'a [u8],
    /// How they are stored.
    pub compression: Compression,
    /// Guest address it asks to be loaded at.
    pub load: Option<u64>,
    /// Guest address it asks to be started at.
    pub entry: Option<u64>,
    /// What its stored bytes must hash to.
    pub hashes: Vec<Hash>,
    /// Whether the hashes have been found right. Bundles are never written to, so once is enough.
    pub(super) verified: AtomicBool,
}

/// Why [`Image::stream`] stopped.
enum Stop {
    Gzip(GzipError),
    Sink(ConfigError),
}

impl From<GzipError> for Stop {
    fn from(error: GzipError) -> Self {
        Self::Gzip(error)
    }
}

impl<'a> Image<'a> {
    /// An image without hashes or wishes.
    pub fn new(node: impl Into<String>, data: &'a [u8]) -> Self {
        Self {
            node: node.into(),
            data,
            compression: Compression::None,
            load: None,
            entry: None,
            hashes: Vec::new(),
            verified: AtomicBool::new(false),
        }
    }

    /// Checks the hashes, the first time it is called.
    ///
    /// # Errors
    ///
    /// [`ConfigError::HashMismatch`] with both digests.
    pub fn verify(&self) -> Result<(), ConfigError> {
        if self.verified.load(Ordering::Relaxed) {
            return Ok(());
        }
        for hash in &self.hashes {
            let mismatch =
                |algo, found, expected| ConfigError::HashMismatch { node: hash.node.clone(), algo, found, expected };
            match &hash.expected {
                Expected::Crc32(expected) => {
                    let found = crc32fast::hash(self.data);
                    if found != *expected {
                        return Err(mismatch(config::CRC32, format!("{found:08x}"), format!("{expected:08x}")));
                    }
                }
                Expected::Sha256(expected) => {
                    let found = Sha256::digest(self.data);
                    if found.as_slice() != expected {
                        return Err(mismatch(config::SHA256, hexadecimal(&found), hexadecimal(expected)));
                    }
                }
            }
        }
        self.verified.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Length in bytes once unpacked, as far as the image itself says; [`stream`](Self::stream) hands on no more.
    ///
    /// # Errors
    ///
    /// [`ConfigError::BadImage`] if the gzip header is wrong.
    pub fn size(&self) -> Result<u64, ConfigError> {
        match self.compression {
            Compression::None => Ok(self.data.len() as u64),
            Compression::Gzip => Ok(self.gzip()?.size()),
        }
    }

    /// The beginning of the unpacked bytes: everything there is of an uncompressed image, at most `length` bytes of a
    /// compressed one.
    ///
    /// # Errors
    ///
    /// [`ConfigError::BadImage`] if the gzip data is wrong.
    pub fn head(&self, length: usize) -> Result<Cow<'a, [u8]>, ConfigError> {
        match self.compression {
            Compression::None => Ok(Cow::Borrowed(self.data)),
            Compression::Gzip => {
                let mut head = vec![0; length];
                let count = self.gzip()?.head(&mut head).map_err(|error| self.bad_gzip(error))?;
                head.truncate(count);
                Ok(Cow::Owned(head))
            }
        }
    }

    /// Hands the unpacked bytes to `sink`, in order, with their offsets: an uncompressed image in one piece.
    ///
    /// # Errors
    ///
    /// [`ConfigError::BadImage`] if the gzip data is wrong (pieces may have been handed on by then), or the error of
    /// `sink`.
    pub fn stream(&self, mut sink: impl FnMut(u64, &[u8]) -> Result<(), ConfigError>) -> Result<(), ConfigError> {
        match self.compression {
            Compression::None => sink(0, self.data),
            Compression::Gzip => {
                let unpacked = self.gzip()?.unpack(|offset, bytes| sink(offset, bytes).map_err(Stop::Sink));
                unpacked.map_err(|stop| match stop {
                    Stop::Gzip(error) => self.bad_gzip(error),
                    Stop::Sink(error) => error,
                })
            }
        }
    }

    /// The unpacked bytes in one piece, if they are no more than `limit`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::BadImage`] if they are more, or the gzip data is wrong.
    pub fn contents(&self, limit: u64, expected: &'static str) -> Result<Cow<'a, [u8]>, ConfigError> {
        let size = self.size()?;
        if size > limit {
            return Err(self.bad(format!("is {size:#x} bytes long"), expected));
        }
        if self.compression == Compression::None {
            return Ok(Cow::Borrowed(self.data));
        }
        let mut contents = Vec::with_capacity(size as usize);
        self.stream(|_, bytes| {
            contents.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(Cow::Owned(contents))
    }

    /// The error that says what is wrong with this image's own format.
    pub(super) fn bad(&self, reason: impl Into<String>, expected: &'static str) -> ConfigError {
        ConfigError::BadImage { image: self.node.clone(), reason: reason.into(), expected }
    }

    fn gzip(&self) -> Result<Gzip<'a>, ConfigError> {
        Gzip::parse(self.data).map_err(|error| self.bad_gzip(error))
    }

    fn bad_gzip(&self, error: GzipError) -> ConfigError {
        self.bad(error.to_string(), "a single gzip member, as compression = \"gzip\" promises")
    }
}

/// `bytes` as lower-case hexadecimal digits.
fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::test_support::gzip;

    fn image(data: &[u8]) -> Image<'_> {
        Image::new("/images/k", data)
    }

    #[test]
    fn hashes_are_checked_once() {
        let mut right = image(b"123456789");
        // The check values of CRC-32 (RFC 1952 §8's polynomial) and SHA-256 of the nine digits.
        right.hashes.push(Hash { node: "/images/k/hash-1".into(), expected: Expected::Crc32(0xcbf4_3926) });
        let sha = [
            0x15, 0xe2, 0xb0, 0xd3, 0xc3, 0x38, 0x91, 0xeb, 0xb0, 0xf1, 0xef, 0x60, 0x9e, 0xc4, 0x19, 0x42, 0x0c, 0x20,
            0xe3, 0x20, 0xce, 0x94, 0xc6, 0x5f, 0xbc, 0x8c, 0x33, 0x12, 0x44, 0x8e, 0xb2, 0x25,
        ];
        right.hashes.push(Hash { node: "/images/k/hash-2".into(), expected: Expected::Sha256(sha) });
        assert_eq!(right.verify(), Ok(()));
        right.hashes.clear();
        right.hashes.push(Hash { node: "/images/k/hash-1".into(), expected: Expected::Crc32(0) });
        assert_eq!(right.verify(), Ok(()), "the first answer stands");
    }

    #[test]
    fn a_mismatch_shows_both_digests() {
        let mut wrong = image(b"123456788");
        wrong.hashes.push(Hash { node: "/images/k/hash-1".into(), expected: Expected::Crc32(0xcbf4_3926) });
        let message = wrong.verify().unwrap_err().to_string();
        assert!(message.starts_with("/images/k/hash-1: the image's crc32 is "), "{message}");
        assert!(message.contains("expected cbf43926"), "{message}");
        assert!(wrong.verify().is_err(), "and again");
    }

    #[test]
    fn compressed_and_plain_stream_alike() {
        let plain: Vec<u8> = (0..100_000u32).map(|i| (i >> 3) as u8).collect();
        let packed = gzip(&plain);
        let mut squeezed = image(&packed);
        squeezed.compression = Compression::Gzip;
        for image in [image(&plain), squeezed] {
            assert_eq!(image.size(), Ok(100_000));
            assert_eq!(image.head(64).unwrap()[..64], plain[..64]);
            assert_eq!(image.contents(100_000, "").unwrap(), plain);
            assert!(image.contents(99_999, "less").is_err());
        }
    }

    #[test]
    fn a_wrong_compression_is_said() {
        let mut image = image(b"not gzip at all");
        image.compression = Compression::Gzip;
        let message = image.size().unwrap_err().to_string();
        assert_eq!(
            message,
            "/images/k: does not begin with a gzip header; expected a single gzip member, as compression = \"gzip\" \
             promises: build the image again"
        );
    }
}
