//! Flattened device trees, written front to back.
//!
//! A guest's tree is written on every start, so this is a plain appender: no model in between, names not shared. To
//! change a tree, start with [`TreeWriter::like`] it and copy the nodes that stay; they keep their names' offsets.
//! Format: Devicetree Specification 0.4, chapter 5.

use alloc::vec::Vec;

use super::tree::{BEGIN_NODE, END, END_NODE, HEADER, MAGIC, Node, PROP, Tree, VERSION};

/// `last_comp_version` of what is written (§5.2).
const COMPATIBLE_VERSION: u32 = 16;

/// A tree being written.
#[derive(Debug, Default)]
pub struct TreeWriter {
    reservations: Vec<(u64, u64)>,
    structure: Vec<u8>,
    strings: Vec<u8>,
}

impl TreeWriter {
    /// An empty tree, with room for a guest's.
    pub fn new() -> Self {
        Self { reservations: Vec::new(), structure: Vec::with_capacity(4096), strings: Vec::with_capacity(1024) }
    }

    /// An empty tree with the reservations of `tree`, and ready for copies of its nodes.
    pub fn like(tree: &Tree) -> Self {
        Self {
            reservations: tree.reservations().to_vec(),
            structure: Vec::with_capacity(tree.bytes().len()),
            strings: tree.string_block().to_vec(),
        }
    }

    /// Begins a node in the current one; the root's name is empty. Every `begin` needs its [`end`](Self::end).
    pub fn begin(&mut self, name: &str) {
        self.word(BEGIN_NODE);
        self.structure.extend_from_slice(name.as_bytes());
        self.structure.push(0);
        self.pad();
    }

    /// Ends the current node.
    pub fn end(&mut self) {
        self.word(END_NODE);
    }

    /// A property of the current node, which has no subnode yet.
    pub fn property(&mut self, name: &str, value: &[u8]) {
        let offset = self.strings.len() as u32;
        self.strings.extend_from_slice(name.as_bytes());
        self.strings.push(0);
        self.raw(offset, value);
    }

    /// A property without value.
    pub fn flag(&mut self, name: &str) {
        self.property(name, &[]);
    }

    /// A property of one cell.
    pub fn cell(&mut self, name: &str, value: u32) {
        self.property(name, &value.to_be_bytes());
    }

    /// A property of several cells.
    pub fn cells(&mut self, name: &str, values: &[u32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_be_bytes()).collect();
        self.property(name, &bytes);
    }

    /// A property of numbers of two cells.
    pub fn wide(&mut self, name: &str, values: &[u64]) {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_be_bytes()).collect();
        self.property(name, &bytes);
    }

    /// A property of one string.
    pub fn text(&mut self, name: &str, value: &str) {
        self.list(name, &[value]);
    }

    /// A property of several strings.
    pub fn list(&mut self, name: &str, values: &[&str]) {
        let mut bytes = Vec::with_capacity(64);
        for value in values {
            bytes.extend_from_slice(value.as_bytes());
            bytes.push(0);
        }
        self.property(name, &bytes);
    }

    /// The properties of `node`, which is of the tree this one is [`like`](Self::like), except those called `except`.
    pub fn copy_properties(&mut self, node: Node, except: &[&str]) {
        for (name, value) in node.raw_properties() {
            if !except.iter().any(|except| node.strings_block().is(*name, except)) {
                self.raw(*name, value);
            }
        }
    }

    /// `node`, which is of the tree this one is [`like`](Self::like), with everything in it. Trees are read to a
    /// limited depth, so recursion is.
    pub fn copy(&mut self, node: Node) {
        self.begin(node.name());
        self.copy_properties(node, &[]);
        for child in node.children() {
            self.copy(child);
        }
        self.end();
    }

    /// The finished file. All nodes must have ended, the root last.
    pub fn finish(mut self) -> Vec<u8> {
        self.word(END);
        let reservations = HEADER;
        let structure = reservations + 16 * (self.reservations.len() + 1);
        let strings = structure + self.structure.len();
        let total = strings + self.strings.len();
        let header = [
            MAGIC,
            total as u32,
            structure as u32,
            strings as u32,
            reservations as u32,
            VERSION,
            COMPATIBLE_VERSION,
            0, // boot_cpuid_phys: a guest starts on CPU 0
            self.strings.len() as u32,
            self.structure.len() as u32,
        ];
        let mut out = Vec::with_capacity(total);
        out.extend(header.iter().flat_map(|word| word.to_be_bytes()));
        for (address, size) in self.reservations.iter().chain(&[(0, 0)]) {
            out.extend_from_slice(&address.to_be_bytes());
            out.extend_from_slice(&size.to_be_bytes());
        }
        out.extend_from_slice(&self.structure);
        out.extend_from_slice(&self.strings);
        out
    }

    fn raw(&mut self, name: u32, value: &[u8]) {
        self.word(PROP);
        self.word(value.len() as u32);
        self.word(name);
        self.structure.extend_from_slice(value);
        self.pad();
    }

    fn word(&mut self, word: u32) {
        self.structure.extend_from_slice(&word.to_be_bytes());
    }

    fn pad(&mut self) {
        while !self.structure.len().is_multiple_of(4) {
            self.structure.push(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::test_support::dts;

    #[test]
    fn what_is_written_is_read() {
        let mut writer = TreeWriter::new();
        writer.begin("");
        writer.cell("one", 1);
        writer.begin("node@1");
        writer.list("texts", &["a", "bcd"]);
        writer.wide("wide", &[1 << 40]);
        writer.flag("flag");
        writer.begin("in-it");
        writer.end();
        writer.end();
        writer.end();
        let blob = writer.finish();
        let tree = Tree::parse(&blob).unwrap();
        assert_eq!(tree.root().u32("one"), Some(1));
        let node = tree.find("/node").unwrap();
        assert_eq!(node.strings("texts").collect::<Vec<_>>(), ["a", "bcd"]);
        assert_eq!(node.property("wide").unwrap(), (1u64 << 40).to_be_bytes());
        assert_eq!(node.property("flag"), Some(&[][..]));
        assert_eq!(tree.find("/node/in-it").unwrap().path(), "/node@1/in-it");
        assert_eq!(tree.reservations(), []);
        // dtoolkit, which is strict, sees no fault in it.
        assert!(dtoolkit::fdt::Fdt::new(&blob).is_ok());
    }

    #[test]
    fn copies_are_the_same() {
        let blob = dts("/memreserve/ 1 2; / { a = <1>; b = <2>; n@1 { a = \"x\"; m { c; }; }; n@2 { }; };");
        let tree = Tree::parse(&blob).unwrap();
        let mut writer = TreeWriter::like(&tree);
        writer.copy(tree.root());
        assert_eq!(writer.finish(), blob);
        let mut writer = TreeWriter::like(&tree);
        writer.begin("");
        writer.copy_properties(tree.root(), &["a"]);
        writer.cell("z", 9);
        writer.copy(tree.find("/n@2").unwrap());
        writer.end();
        let changed = writer.finish();
        let changed = Tree::parse(&changed).unwrap();
        assert_eq!(
            (changed.root().u32("a"), changed.root().u32("b"), changed.root().u32("z")),
            (None, Some(2), Some(9))
        );
        assert_eq!(changed.reservations(), [(1, 2)]);
        assert_eq!(changed.nodes().count(), 2);
    }
}
