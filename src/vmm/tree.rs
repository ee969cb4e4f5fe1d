//! Flattened device trees, read once into an index.
//!
//! The host's tree, the bundle (a FIT is a tree) and a tree that a bundle brings for its guest are all read with
//! this. The reader accepts what boot loaders and Linux's own trees contain (NOP tokens, names longer than the
//! specification's 31 characters), borrows every name and value from the file, and never panics: a tree is wholly
//! checked by [`Tree::parse`] or refused. Format: Devicetree Specification 0.4, chapter 5.

use alloc::string::String;
use alloc::vec::Vec;
use core::str;

/// First word of a flattened device tree (§5.2).
pub const MAGIC: u32 = 0xd00d_feed;
/// Nesting that is accepted. FITs have 4 levels, the deepest board trees about 10.
pub const DEPTH_MAX: usize = 32;
/// Nodes and properties that are accepted together, so that a damaged file cannot eat the heap.
pub const ENTRIES_MAX: usize = 1 << 16;

const HEADER: usize = 40;
/// The version that added the last header field (§5.2).
const VERSION: u32 = 17;

// Structure-block tokens (§5.4.1).
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const END: u32 = 9;

/// Why a tree cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// It does not begin with the magic number.
    #[error("begins with {0:#010x}, expected 0xd00dfeed, the magic of a flattened device tree")]
    NotATree(u32),
    /// There are fewer bytes than the header says.
    #[error("the header says {expected} bytes, but there are {found}")]
    Truncated {
        /// `totalsize` of the header.
        expected: u64,
        /// Bytes there are.
        found: u64,
    },
    /// A format this reader does not know.
    #[error("is of version {0}, expected one compatible with version 17")]
    Version(u32),
    /// A field of the header points outside, or the reservation list does not end.
    #[error("the header's {0} points outside the file")]
    Header(&'static str),
    /// The structure block makes no sense.
    #[error("{what} at offset {offset:#x} of the structure block")]
    Structure {
        /// What was found.
        what: &'static str,
        /// Where, bytes from the start of the structure block.
        offset: usize,
    },
    /// Too many nodes and properties.
    #[error("has more than 65536 nodes and properties")]
    TooLarge,
}

/// One step through a structure block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token<'a> {
    /// A node begins; its name.
    Begin(&'a str),
    /// A property of the node that began last.
    Property(Property<'a>),
    /// The node ends.
    End,
}

/// A property: its name and its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Property<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its bytes.
    pub value: &'a [u8],
}

/// The structure block, token by token, as far as it makes sense. Needs no heap, so the earliest boot code can look
/// for a console even in a tree that [`Tree::parse`] refuses.
#[derive(Clone, Debug)]
pub struct Tokens<'a> {
    structure: &'a [u8],
    strings: &'a [u8],
    at: usize,
}

struct Header<'a> {
    bytes: &'a [u8],
    reservations: &'a [u8],
    tokens: Tokens<'a>,
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// Reads the header; `strict` refuses what a tolerant reader can do without.
fn header(data: &[u8], strict: bool) -> Result<Header<'_>, TreeError> {
    let field = |index: usize| word(data, 4 * index).unwrap_or(0);
    if field(0) != MAGIC {
        return Err(TreeError::NotATree(field(0)));
    }
    let total = field(1) as usize;
    let truncated = TreeError::Truncated { expected: total.max(HEADER) as u64, found: data.len() as u64 };
    let bytes = match data.get(..total) {
        Some(bytes) => bytes,
        None if strict => return Err(truncated),
        None => data,
    };
    if bytes.len() < HEADER {
        return Err(truncated);
    }
    if strict && (field(5) < VERSION || field(6) > VERSION) {
        return Err(TreeError::Version(field(5)));
    }
    let block = |name, start: u32, size: u32| {
        let rest = bytes.get(start as usize..).ok_or(TreeError::Header(name))?;
        match rest.get(..size as usize) {
            Some(block) => Ok(block),
            None if strict => Err(TreeError::Header(name)),
            None => Ok(rest),
        }
    };
    let structure = block("off_dt_struct", field(2), field(9))?;
    if strict && !field(2).is_multiple_of(4) {
        return Err(TreeError::Header("off_dt_struct"));
    }
    if strict && word(structure, 0) != Some(BEGIN_NODE) {
        return Err(TreeError::Structure { what: "no root node", offset: 0 });
    }
    let strings = block("off_dt_strings", field(3), field(8))?;
    let reservations = bytes.get(field(4) as usize..).unwrap_or_default();
    Ok(Header { bytes, reservations, tokens: Tokens { structure, strings, at: 0 } })
}

impl<'a> Tokens<'a> {
    /// The tokens of a tree that may be damaged.
    ///
    /// # Errors
    ///
    /// [`TreeError`] if not even the header can be used.
    pub fn tolerant(data: &'a [u8]) -> Result<Self, TreeError> {
        Ok(header(data, false)?.tokens)
    }

    /// The next token; `None` at the end of the tree.
    ///
    /// # Errors
    ///
    /// [`TreeError::Structure`] where the block makes no sense. The next call says so again.
    pub fn step(&mut self) -> Result<Option<Token<'a>>, TreeError> {
        loop {
            let start = self.at;
            let damage = |what| TreeError::Structure { what, offset: start };
            let token = word(self.structure, start).ok_or(damage("a premature end"))?;
            let body = start + 4;
            let (token, end) = match token {
                NOP => {
                    self.at = body;
                    continue;
                }
                END => return Ok(None),
                END_NODE => (Token::End, body),
                BEGIN_NODE => {
                    let rest = self.structure.get(body..).unwrap_or_default();
                    let name = text(rest).ok_or(damage("a damaged node name"))?;
                    (Token::Begin(name), body + name.len() + 1)
                }
                PROP => {
                    let length = word(self.structure, body).ok_or(damage("a premature end"))? as usize;
                    let name = word(self.structure, body + 4).ok_or(damage("a premature end"))? as usize;
                    let name = self.strings.get(name..).and_then(text).filter(|name| !name.is_empty());
                    let name = name.ok_or(damage("a damaged property name"))?;
                    let rest = self.structure.get(body + 8..).unwrap_or_default();
                    let value = rest.get(..length).ok_or(damage("a property longer than the tree"))?;
                    (Token::Property(Property { name, value }), body + 8 + length)
                }
                _ => return Err(damage("an unknown token")),
            };
            self.at = end.next_multiple_of(4);
            return Ok(Some(token));
        }
    }
}

/// The string that ends at the first NUL of `bytes`; printable ASCII only, so that it can go into a message.
fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    let bytes = bytes.get(..end)?;
    if !bytes.iter().all(u8::is_ascii_graphic) {
        return None;
    }
    str::from_utf8(bytes).ok()
}

#[derive(Clone, Copy, Debug)]
struct Row<'a> {
    name: &'a str,
    parent: usize,
    /// Its properties' indices.
    properties: (usize, usize),
    /// Index of the first node that is not below this one.
    next: usize,
}

/// A device tree, checked and indexed.
#[derive(Clone, Debug)]
pub struct Tree<'a> {
    bytes: &'a [u8],
    reservations: Vec<(u64, u64)>,
    rows: Vec<Row<'a>>,
    properties: Vec<Property<'a>>,
}

impl<'a> Tree<'a> {
    /// Reads the tree at the start of `data`; what follows it is ignored.
    ///
    /// # Errors
    ///
    /// [`TreeError`] at the first thing that is wrong.
    pub fn parse(data: &'a [u8]) -> Result<Self, TreeError> {
        let Header { bytes, reservations, tokens } = header(data, true)?;
        let mut tree = Self {
            bytes,
            reservations: reservation_list(reservations)?,
            rows: Vec::with_capacity(64),
            properties: Vec::with_capacity(256),
        };
        tree.read(tokens)?;
        Ok(tree)
    }

    fn read(&mut self, mut tokens: Tokens<'a>) -> Result<(), TreeError> {
        let mut open = Vec::with_capacity(DEPTH_MAX);
        loop {
            let damage = |what, at| TreeError::Structure { what, offset: at };
            let at = tokens.at;
            match tokens.step()? {
                None if open.is_empty() && !self.rows.is_empty() => return Ok(()),
                None => return Err(damage("a premature end", at)),
                Some(Token::Begin(name)) => {
                    if open.len() == DEPTH_MAX {
                        return Err(damage("a node nested too deeply", at));
                    }
                    let parent = match open.last() {
                        Some(&parent) if !name.is_empty() => parent,
                        None if name.is_empty() && self.rows.is_empty() => 0,
                        _ => return Err(damage("a second root or a node without a name", at)),
                    };
                    let first = self.properties.len();
                    open.push(self.rows.len());
                    self.rows.push(Row { name, parent, properties: (first, first), next: usize::MAX });
                }
                Some(Token::Property(property)) => {
                    let last = self.rows.len().wrapping_sub(1);
                    // Properties come before subnodes (§5.4.2): the open node must be the newest one.
                    if open.last() != Some(&last) {
                        return Err(damage("a property outside a node or behind a subnode", at));
                    }
                    self.properties.push(property);
                    if let Some(row) = self.rows.last_mut() {
                        row.properties.1 = self.properties.len();
                    }
                }
                Some(Token::End) => {
                    let index = open.pop().ok_or(damage("the end of a node that did not begin", at))?;
                    let next = self.rows.len();
                    if let Some(row) = self.rows.get_mut(index) {
                        row.next = next;
                    }
                }
            }
            if self.rows.len() + self.properties.len() > ENTRIES_MAX {
                return Err(TreeError::TooLarge);
            }
        }
    }

    /// The file, without what may follow it.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The memory reservation block (§5.3): address and length in bytes.
    pub fn reservations(&self) -> &[(u64, u64)] {
        &self.reservations
    }

    /// The root node.
    pub fn root(&self) -> Node<'_, 'a> {
        Node { tree: self, index: 0 }
    }

    /// Every node, parents before their children.
    pub fn nodes(&self) -> impl Iterator<Item = Node<'_, 'a>> {
        (0..self.rows.len()).map(|index| Node { tree: self, index })
    }

    /// The node at `path`, which begins with `/`. A component without unit address matches a node with any.
    pub fn find(&self, path: &str) -> Option<Node<'_, 'a>> {
        let mut node = self.root();
        for component in path.strip_prefix('/')?.split('/').filter(|component| !component.is_empty()) {
            node = node.child(component)?;
        }
        Some(node)
    }

    /// The node whose `phandle` (or `linux,phandle`) is `phandle`.
    pub fn by_phandle(&self, phandle: u32) -> Option<Node<'_, 'a>> {
        self.nodes().find(|node| node.phandle() == Some(phandle))
    }
}

fn reservation_list(bytes: &[u8]) -> Result<Vec<(u64, u64)>, TreeError> {
    let mut list = Vec::new();
    for entry in bytes.as_chunks::<16>().0 {
        let entry = u128::from_be_bytes(*entry);
        if entry == 0 {
            return Ok(list);
        }
        if list.len() == ENTRIES_MAX {
            return Err(TreeError::TooLarge);
        }
        list.push(((entry >> 64) as u64, entry as u64));
    }
    Err(TreeError::Header("off_mem_rsvmap"))
}

/// A node of a [`Tree`].
#[derive(Clone, Copy, Debug)]
pub struct Node<'t, 'a> {
    tree: &'t Tree<'a>,
    index: usize,
}

impl PartialEq for Node<'_, '_> {
    fn eq(&self, other: &Self) -> bool {
        core::ptr::eq(self.tree, other.tree) && self.index == other.index
    }
}

impl<'t, 'a> Node<'t, 'a> {
    fn row(&self) -> &'t Row<'a> {
        // The index came from the tree, which never loses a row.
        &self.tree.rows[self.index]
    }

    /// Its name with the unit address; empty for the root.
    pub fn name(&self) -> &'a str {
        self.row().name
    }

    /// Its name without the unit address.
    pub fn base_name(&self) -> &'a str {
        let name = self.name();
        name.split_once('@').map_or(name, |(base, _)| base)
    }

    /// Its path from the root.
    pub fn path(&self) -> String {
        if self.index == 0 {
            return String::from("/");
        }
        let mut names = Vec::new();
        let mut node = Some(*self);
        while let Some(current) = node.filter(|node| node.index != 0) {
            names.push(current.name());
            node = current.parent();
        }
        let mut path = String::new();
        for name in names.iter().rev() {
            path.push('/');
            path.push_str(name);
        }
        path
    }

    /// The node it is in; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        (self.index != 0).then(|| Self { tree: self.tree, index: self.row().parent })
    }

    /// The nodes in it.
    pub fn children(&self) -> impl Iterator<Item = Self> + use<'t, 'a> {
        let (tree, end) = (self.tree, self.row().next);
        let mut index = self.index + 1;
        core::iter::from_fn(move || {
            if index >= end {
                return None;
            }
            let child = Self { tree, index };
            index = child.row().next;
            Some(child)
        })
    }

    /// The node in it named `name`; without unit address, the first with any.
    pub fn child(&self, name: &str) -> Option<Self> {
        let whole = name.contains('@');
        self.children().find(|child| if whole { child.name() == name } else { child.base_name() == name })
    }

    /// Its properties.
    pub fn properties(&self) -> &'t [Property<'a>] {
        let (start, end) = self.row().properties;
        &self.tree.properties[start..end]
    }

    /// The bytes of the property `name`.
    pub fn property(&self, name: &str) -> Option<&'a [u8]> {
        self.properties().iter().find(|property| property.name == name).map(|property| property.value)
    }

    /// The property `name`, if it is one big-endian word.
    pub fn u32(&self, name: &str) -> Option<u32> {
        self.property(name)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// The property `name`, if it is one string.
    pub fn string(&self, name: &str) -> Option<&'a str> {
        string(self.property(name)?)
    }

    /// The strings of the list `name`; none if there is no such property.
    pub fn strings(&self, name: &str) -> impl Iterator<Item = &'a str> + use<'a> {
        strings(self.property(name).unwrap_or_default())
    }

    /// Whether `compatible` is one of its compatible strings.
    pub fn is_compatible(&self, compatible: &str) -> bool {
        self.strings("compatible").any(|string| string == compatible)
    }

    /// Its phandle.
    pub fn phandle(&self) -> Option<u32> {
        self.u32("phandle").or_else(|| self.u32("linux,phandle"))
    }

    /// Whether its `status` lets it be used: absent, `okay` or `ok` (§2.3.4).
    pub fn is_okay(&self) -> bool {
        self.property("status").is_none_or(|status| matches!(string(status), Some("okay" | "ok")))
    }
}

/// `value` as one NUL-terminated string.
pub fn string(value: &[u8]) -> Option<&str> {
    let (&last, text) = value.split_last()?;
    if last != 0 || text.contains(&0) {
        return None;
    }
    str::from_utf8(text).ok()
}

/// `value` as a list of NUL-terminated strings; what is not UTF-8 is left out.
pub fn strings(value: &[u8]) -> impl Iterator<Item = &str> + Clone {
    value.split(|&byte| byte == 0).filter(|text| !text.is_empty()).filter_map(|text| str::from_utf8(text).ok())
}

/// `value` as one number: a u32 or a u64, by its length.
pub fn number(value: &[u8]) -> Option<u64> {
    match value.len() {
        4 => word(value, 0).map(u64::from),
        8 => value.first_chunk().map(|bytes| u64::from_be_bytes(*bytes)),
        _ => None,
    }
}

/// `value` as words; `None` unless it is a whole number of them.
pub fn words(value: &[u8]) -> Option<impl Iterator<Item = u32> + Clone> {
    let (words, rest) = value.as_chunks::<4>();
    rest.is_empty().then(|| words.iter().map(|word| u32::from_be_bytes(*word)))
}

/// `value` as a person would write it in a tree's source, cut off after 32 bytes.
pub fn describe(value: &[u8]) -> String {
    use core::fmt::Write;

    const SHOWN: usize = 32;
    let mut out = String::new();
    // Writing to a string cannot fail.
    if value.is_empty() {
        out.push_str("empty");
    } else if value.last() == Some(&0)
        && strings(value).map(|text| text.len() + 1).sum::<usize>() == value.len()
        && value.iter().all(|&byte| byte == 0 || byte == b' ' || byte.is_ascii_graphic())
    {
        for (index, text) in strings(value).enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            let _ = write!(out, "{separator}\"{text}\"");
        }
    } else if let Some(words) = words(value) {
        out.push('<');
        for (index, word) in words.take(SHOWN / 4).enumerate() {
            let _ = write!(out, "{}{word:#x}", if index == 0 { "" } else { " " });
        }
        out.push_str(if value.len() > SHOWN { " ...>" } else { ">" });
    } else {
        out.push('[');
        for (index, byte) in value.iter().take(SHOWN).enumerate() {
            let _ = write!(out, "{}{byte:02x}", if index == 0 { "" } else { " " });
        }
        out.push_str(if value.len() > SHOWN { " ...]" } else { "]" });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::test_support::{Mutations, dts};

    const SAMPLE: &str = r#"
        /memreserve/ 0x1000 0x2000;
        / {
            #address-cells = <2>;
            a@1 { compatible = "x,y", "z"; b { reg = <0 1>; }; c@2 { phandle = <7>; }; };
            a@10 { status = "disabled"; };
            d { bytes = [01 02 03]; empty; "a-name-of-more-than-thirty-one-characters" = "ok"; };
        };"#;

    #[test]
    fn a_tree_is_indexed() {
        let blob = dts(SAMPLE);
        let tree = Tree::parse(&blob).unwrap();
        assert_eq!(tree.reservations(), [(0x1000, 0x2000)]);
        assert_eq!(tree.root().u32("#address-cells"), Some(2));
        let names: Vec<_> = tree.root().children().map(|node| node.name()).collect();
        assert_eq!(names, ["a@1", "a@10", "d"]);
        assert_eq!(tree.find("/a/b").unwrap().path(), "/a@1/b");
        assert_eq!(tree.find("/a@10").unwrap().path(), "/a@10");
        assert!(tree.find("/a@10/b").is_none());
        assert_eq!(tree.by_phandle(7).unwrap().path(), "/a@1/c@2");
        assert!(tree.find("/a").unwrap().is_compatible("z"));
        assert!(!tree.find("/a@10").unwrap().is_okay());
        assert_eq!(tree.find("/").unwrap().path(), "/");
        assert_eq!(tree.nodes().count(), 6);
    }

    #[test]
    fn what_follows_the_tree_is_ignored() {
        let mut blob = dts(SAMPLE);
        let length = blob.len();
        blob.extend_from_slice(&[0xaa; 100]);
        assert_eq!(Tree::parse(&blob).unwrap().bytes().len(), length);
    }

    #[test]
    fn nops_of_a_boot_loader_are_skipped() {
        let mut blob = dts("/ { a = <1>; b = <2>; c { d = <3>; }; };");
        // What fdt_nop_property() leaves: four words of NOP where `b` was.
        let needle = [3u32, 4, 2, 2].map(u32::to_be_bytes).concat();
        let at = blob.windows(16).position(|window| window == needle).unwrap();
        for word in 0..4 {
            blob[at + 4 * word..][..4].copy_from_slice(&NOP.to_be_bytes());
        }
        let tree = Tree::parse(&blob).unwrap();
        assert_eq!(tree.root().property("b"), None);
        assert_eq!(tree.find("/c").unwrap().u32("d"), Some(3));
    }

    #[test]
    fn faults_are_told_apart() {
        let blob = dts(SAMPLE);
        assert_eq!(Tree::parse(&[]).unwrap_err(), TreeError::NotATree(0));
        assert_eq!(Tree::parse(b"PK\x03\x04").unwrap_err(), TreeError::NotATree(0x504b_0304));
        let cut = Tree::parse(&blob[..blob.len() - 1]).unwrap_err();
        assert!(matches!(cut, TreeError::Truncated { .. }), "{cut}");
        let mut old = blob.clone();
        old[23] = 16;
        assert_eq!(Tree::parse(&old).unwrap_err(), TreeError::Version(16));
        let deep = |levels| dts(&format!("/ {{ {} {} }};", "n {".repeat(levels), "};".repeat(levels)));
        assert!(Tree::parse(&deep(DEPTH_MAX - 1)).is_ok());
        assert!(matches!(Tree::parse(&deep(DEPTH_MAX)).unwrap_err(), TreeError::Structure { .. }));
        let wide: String = (0..ENTRIES_MAX).map(|i| format!("n{i} {{}};")).collect();
        assert_eq!(Tree::parse(&dts(&format!("/ {{ {wide} }};"))).unwrap_err(), TreeError::TooLarge);
    }

    #[test]
    fn values_are_described_as_in_source() {
        assert_eq!(describe(b""), "empty");
        assert_eq!(describe(b"a\0b\0"), "\"a\", \"b\"");
        assert_eq!(describe(&[0, 0, 0, 1, 0, 0, 0x10, 0]), "<0x1 0x1000>");
        assert_eq!(describe(&[1, 2, 3]), "[01 02 03]");
        assert_eq!(describe(&[0; 64]), "<0x0 0x0 0x0 0x0 0x0 0x0 0x0 0x0 ...>");
    }

    #[test]
    fn damaged_trees_never_panic() {
        let blob = dts(SAMPLE);
        let mut refused = 0;
        for mutant in Mutations::new(&blob, 10_000) {
            match Tree::parse(&mutant) {
                Err(_) => refused += 1,
                Ok(tree) => {
                    for node in tree.nodes() {
                        let _ = (node.path(), node.children().count(), node.phandle(), node.is_okay());
                        assert_eq!(tree.find(&node.path()).map(|found| found.base_name()), Some(node.base_name()));
                    }
                }
            }
            if let Ok(mut tokens) = Tokens::tolerant(&mutant) {
                while let Ok(Some(_)) = tokens.step() {}
            }
        }
        assert!(refused > 1000, "only {refused} of the mutants were refused");
    }
}
