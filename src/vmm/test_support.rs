//! What the tests of trees and images share: tree sources compiled in the test, gzip, and mutants.

use alloc::sync::Arc;
use alloc::vec::Vec;

use dtoolkit::memreserve::MemoryReservation;
use dtoolkit::model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty};

use super::config::{OnCrash, VmConfig};
use super::image::Image;

/// Compiles the part of dtc's language the tests use: nodes, strings, `<cells>`, `[bytes]`, `/memreserve/`. Property
/// names may be quoted. Panics on anything else.
pub(crate) fn dts(source: &str) -> Vec<u8> {
    let mut parser = Parser { words: split(source), at: 0 };
    let mut tree = DeviceTree::new();
    while parser.take_if("/memreserve/") {
        let [address, size] = [parser.number(), parser.number()];
        parser.expect(";");
        tree.memory_reservations.push(MemoryReservation::new(address, size));
    }
    parser.expect("/");
    parser.node(&mut tree.root);
    assert_eq!(parser.at, parser.words.len(), "something follows the tree");
    tree.to_dtb()
}

/// Words of a source: punctuation, `"strings"` with their quotes, and everything else up to space or punctuation.
fn split(source: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = source.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '{' | '}' | ';' | '=' | '<' | '>' | '[' | ']' => 1,
            '"' => rest[1..].find('"').expect("a closing quote") + 2,
            _ => rest.find(|c: char| c.is_whitespace() || "{};=<>[]\"".contains(c)).unwrap_or(rest.len()),
        };
        let word = &rest[..length];
        if word != "," {
            words.push(word);
        }
        rest = rest[length..].trim_start();
        if first == '"' || first == '>' || first == ']' {
            rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
        }
    }
    words
}

struct Parser<'s> {
    words: Vec<&'s str>,
    at: usize,
}

impl<'s> Parser<'s> {
    fn next(&mut self) -> &'s str {
        let word = self.words.get(self.at).expect("more source");
        self.at += 1;
        word
    }

    fn take_if(&mut self, word: &str) -> bool {
        let found = self.words.get(self.at) == Some(&word);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, word: &str) {
        let found = self.next();
        assert_eq!(found, word, "word {} of the source", self.at);
    }

    fn number(&mut self) -> u64 {
        let word = self.next();
        match word.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).expect(word),
            None => word.parse().expect(word),
        }
    }

    fn node(&mut self, node: &mut DeviceTreeNode) {
        self.expect("{");
        while !self.take_if("}") {
            let name = self.next().trim_matches('"');
            if self.words[self.at] == "{" {
                // `add_child_mut` returns the first of two nodes of one name; a mutant can have two, a source cannot.
                self.node(node.add_child_mut(DeviceTreeNode::new_unchecked(name)));
                continue;
            }
            let mut value = Vec::new();
            if self.take_if("=") {
                while self.words[self.at] != ";" {
                    self.value(&mut value);
                }
            }
            self.expect(";");
            node.add_property(DeviceTreeProperty::new_unchecked(name, value.as_slice()));
        }
        self.expect(";");
    }

    fn value(&mut self, value: &mut Vec<u8>) {
        match self.next() {
            "<" => {
                while !self.take_if(">") {
                    let cell = u32::try_from(self.number()).expect("a cell of 32 bits");
                    value.extend_from_slice(&cell.to_be_bytes());
                }
            }
            "[" => {
                while !self.take_if("]") {
                    value.push(u8::from_str_radix(self.next(), 16).expect("a byte"));
                }
            }
            text => {
                let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).expect(text);
                value.extend_from_slice(text.as_bytes());
                value.push(0);
            }
        }
    }
}

/// `data` as a gzip member.
pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    out.extend(miniz_oxide::deflate::compress_to_vec(data, 1));
    out.extend(crc32fast::hash(data).to_le_bytes());
    out.extend((data.len() as u32).to_le_bytes());
    out
}

/// Repeatable random numbers (xorshift64*).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 16) as usize % limit
    }
}

/// Damaged copies of a file: flipped bits, interesting words, swapped and repeated pieces, and cut ends.
pub(crate) struct Mutations<'a> {
    original: &'a [u8],
    random: Random,
    left: usize,
}

impl<'a> Mutations<'a> {
    pub(crate) fn new(original: &'a [u8], count: usize) -> Self {
        Self { original, random: Random(0x6b65_656c), left: count }
    }
}

impl Iterator for Mutations<'_> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        self.left = self.left.checked_sub(1)?;
        let mut data = self.original.to_vec();
        let random = &mut self.random;
        for _ in 0..=random.below(4) {
            let at = random.below(data.len());
            match random.below(6) {
                0 | 1 => data[at] ^= 1 << random.below(8),
                2 => {
                    let words = [0, 1, 2, 3, 4, 9, 0x7fff_ffff, 0xffff_ffff, 0xffff_fffc, data.len() as u32];
                    let word = words[random.below(words.len())];
                    let at = at & !3;
                    if let Some(target) = data.get_mut(at..at + 4) {
                        target.copy_from_slice(&word.to_be_bytes());
                    }
                }
                3 => {
                    let (from, to) = (random.below(data.len()) & !3, at & !3);
                    let length = (4 * random.below(16)).min(data.len() - from.max(to));
                    data.copy_within(from..from + length, to);
                }
                4 => data[at] = random.next() as u8,
                // Most cuts would only be refused for their length.
                _ if random.below(8) == 0 => data.truncate(at.max(1)),
                _ => data[at] = 0,
            }
        }
        Some(data)
    }
}

/// An arm64 `Image` of `length` bytes with these header fields and a pattern behind the header.
pub(crate) fn arm64_image(text_offset: u64, image_size: u64, length: usize) -> Vec<u8> {
    let mut data: Vec<u8> = (0..length.max(64)).map(|i| (i * 7 / 5) as u8).collect();
    data[..64].fill(0);
    data[0x08..0x10].copy_from_slice(&text_offset.to_le_bytes());
    data[0x10..0x18].copy_from_slice(&image_size.to_le_bytes());
    data[0x38..0x3c].copy_from_slice(b"ARM\x64");
    data
}

/// An ELF64 executable for AArch64 whose segments are (virtual address, physical address, bytes in the file, bytes in
/// memory), filled with a pattern.
pub(crate) fn elf(entry: u64, segments: &[(u64, u64, u64, u64)]) -> Vec<u8> {
    let mut data = b"\x7fELF\x02\x01\x01".to_vec();
    data.resize(16, 0);
    data.extend(2u16.to_le_bytes());
    data.extend(183u16.to_le_bytes());
    data.extend(1u32.to_le_bytes());
    data.extend(entry.to_le_bytes());
    data.extend(64u64.to_le_bytes());
    data.extend([0; 12]);
    data.extend(64u16.to_le_bytes());
    data.extend(56u16.to_le_bytes());
    data.extend((segments.len() as u16).to_le_bytes());
    data.extend([0; 6]);
    let mut offset = 64 + 56 * segments.len() as u64;
    for &(virt, physical, in_file, in_memory) in segments {
        data.extend(1u32.to_le_bytes());
        data.extend(5u32.to_le_bytes());
        for field in [offset, virt, physical, in_file, in_memory, 0x1000] {
            data.extend(field.to_le_bytes());
        }
        offset += in_file;
    }
    while (data.len() as u64) < offset {
        data.push((data.len() * 11 / 3) as u8);
    }
    data
}

/// A VM with this kernel and nothing else.
pub(crate) fn vm(kernel: Image<'_>, memory: u64) -> VmConfig<'_> {
    VmConfig {
        name: "test",
        description: "",
        kernel: Arc::new(kernel),
        ramdisk: None,
        fdt: None,
        bootargs: None,
        memory,
        cpus: 1,
        affinity: Vec::new(),
        features: Vec::new(),
        on_crash: OnCrash::Stop,
        autostart: true,
        root: false,
    }
}
