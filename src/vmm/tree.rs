//! Flattened device trees, read once into an index.
//!
//! The host's tree, the bundle (a FIT is a tree) and a tree that a bundle brings for its guest are all read with
//! this. The reader accepts what boot loaders leave behind (NOP tokens) and what Linux's own trees contain (names
//! longer than the specification's 31 characters: more than half of its arm64 trees have them), borrows every name
//! and value from the file, and never panics: a tree is wholly checked by [`Tree::parse`] or refused. It reads a tree
//! once, front to back, because a start of keel is counted in instructions. Format: Devicetree Specification 0.4,
//! chapter 5.

use alloc::string::String;
use alloc::vec::Vec;
use core::str;

/// First word of a flattened device tree (§5.2).
pub const MAGIC: u32 = 0xd00d_feed;
/// Nesting that is accepted. FITs have 4 levels, the deepest board trees about 10.
pub const DEPTH_MAX: usize = 32;
/// Nodes and properties that are accepted together, so that a damaged file cannot eat the heap.
pub const ENTRIES_MAX: usize = 1 << 16;

pub(super) const HEADER: usize = 40;
/// The version that added the last header field (§5.2).
pub(super) const VERSION: u32 = 17;

// Structure-block tokens (§5.4.1).
pub(super) const BEGIN_NODE: u32 = 1;
pub(super) const END_NODE: u32 = 2;
pub(super) const PROP: u32 = 3;
const NOP: u32 = 4;
pub(super) const END: u32 = 9;

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

/// The strings block, which holds the names of properties.
#[derive(Clone, Copy, Debug)]
pub struct Strings<'a>(&'a [u8]);

impl<'a> Strings<'a> {
    /// The names that end in `block`.
    fn new(block: &'a [u8]) -> Self {
        let end = block.iter().rposition(|&byte| byte == 0).map_or(0, |last| last + 1);
        Self(block.get(..end).unwrap_or_default())
    }

    /// Whether the name at `offset` is `name`. Cheaper than reading it: lookups are most of the work with a tree.
    #[inline]
    pub fn is(&self, offset: u32, name: &str) -> bool {
        let start = offset as usize;
        let bytes = self.0.get(start..start.saturating_add(name.len() + 1));
        matches!(bytes.and_then(<[u8]>::split_last), Some((0, found)) if found == name.as_bytes())
    }

    /// The first byte of the name at `offset`.
    #[inline]
    pub fn first(&self, offset: u32) -> u8 {
        self.0.get(offset as usize).copied().unwrap_or(0)
    }

    /// The name at `offset`, `?` if it is none.
    pub fn get(&self, offset: u32) -> &'a str {
        let name = self.0.get(offset as usize..).and_then(node_name);
        name.and_then(|name| str::from_utf8(name).ok()).unwrap_or("?")
    }
}

/// One step through a structure block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token<'a> {
    /// A node begins; its name, which is printable ASCII.
    Begin(&'a [u8]),
    /// A property of the node that began last: where its name is among the [`Strings`], and its bytes.
    Property(u32, &'a [u8]),
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
    strings: Strings<'a>,
    /// What has not been read yet of `length` bytes.
    rest: &'a [u8],
    length: usize,
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
    Ok(Header {
        bytes,
        reservations,
        tokens: Tokens { strings: Strings::new(strings), rest: structure, length: structure.len() },
    })
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

    /// The names of its properties.
    pub fn strings(&self) -> Strings<'a> {
        self.strings
    }

    /// The next token; `None` at the end of the tree.
    ///
    /// # Errors
    ///
    /// [`TreeError::Structure`] where the block makes no sense. The next call says so again.
    #[inline]
    pub fn step(&mut self) -> Result<Option<Token<'a>>, TreeError> {
        loop {
            let Some((token, rest)) = self.rest.split_first_chunk() else { return Err(self.damage("a premature end")) };
            let (token, length) = match u32::from_be_bytes(*token) {
                PROP => {
                    let Some((head, rest)) = rest.split_first_chunk() else {
                        return Err(self.damage("a premature end"));
                    };
                    let head = u64::from_be_bytes(*head);
                    let (length, name) = ((head >> 32) as usize, head as u32);
                    if self.strings.first(name) == 0 {
                        return Err(self.damage("a damaged property name"));
                    }
                    let Some(value) = rest.get(..length) else {
                        return Err(self.damage("a property longer than the tree"));
                    };
                    (Token::Property(name, value), 12 + length)
                }
                BEGIN_NODE => match node_name(rest) {
                    Some(name) => (Token::Begin(name), 4 + name.len() + 1),
                    None => return Err(self.damage("a damaged node name")),
                },
                END_NODE => (Token::End, 4),
                NOP => {
                    self.rest = rest;
                    continue;
                }
                END => return Ok(None),
                _ => return Err(self.damage("an unknown token")),
            };
            // The last thing may end without its padding.
            self.rest = self.rest.get((length + 3) & !3..).unwrap_or_default();
            return Ok(Some(token));
        }
    }

    /// Bytes read so far.
    fn position(&self) -> usize {
        self.length - self.rest.len()
    }

    #[cold]
    fn damage(&self, what: &'static str) -> TreeError {
        TreeError::Structure { what, offset: self.position() }
    }
}

/// The string that ends at the first NUL of `bytes`, if it is printable ASCII and so fit for a message and a path.
fn node_name(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().position(|&byte| !byte.is_ascii_graphic() || byte == b'/')?;
    let (name, rest) = bytes.split_at(end);
    (rest.first() == Some(&0)).then_some(name)
}

#[derive(Clone, Copy, Debug)]
struct Row<'a> {
    name: &'a [u8],
    parent: u32,
    /// Its properties' indices.
    properties: (u32, u32),
    /// Index of the first node that is not below this one.
    next: u32,
}

// Room for QEMU's `virt`, so that the usual tree is indexed without moving anything.
const ROWS: usize = 128;
const PROPERTIES: usize = 512;

/// A device tree, checked and indexed.
#[derive(Clone, Debug)]
pub struct Tree<'a> {
    bytes: &'a [u8],
    reservations: Vec<(u64, u64)>,
    strings: Strings<'a>,
    rows: Vec<Row<'a>>,
    /// Name and value of every property.
    properties: Vec<(u32, &'a [u8])>,
    /// Phandles and the nodes that have them.
    phandles: Vec<(u32, u32)>,
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
            strings: tokens.strings(),
            rows: Vec::with_capacity(ROWS),
            properties: Vec::with_capacity(PROPERTIES),
            phandles: Vec::new(),
        };
        tree.read(tokens)?;
        Ok(tree)
    }

    fn read(&mut self, mut tokens: Tokens<'a>) -> Result<(), TreeError> {
        let mut open: Vec<u32> = Vec::with_capacity(DEPTH_MAX);
        loop {
            match tokens.step()? {
                None if open.is_empty() && !self.rows.is_empty() => return Ok(()),
                None => return Err(tokens.damage("a premature end")),
                Some(Token::Begin(name)) => {
                    if open.len() == DEPTH_MAX {
                        return Err(tokens.damage("a node nested too deeply"));
                    }
                    let parent = match open.last() {
                        Some(&parent) if !name.is_empty() => parent,
                        None if name.is_empty() && self.rows.is_empty() => 0,
                        _ => return Err(tokens.damage("a second root or a node without a name")),
                    };
                    // Both fit: ENTRIES_MAX sees to that.
                    let first = self.properties.len() as u32;
                    open.push(self.rows.len() as u32);
                    self.rows.push(Row { name, parent, properties: (first, first), next: u32::MAX });
                }
                Some(Token::Property(name, value)) => {
                    let last = (self.rows.len() as u32).wrapping_sub(1);
                    // Properties come before subnodes (§5.4.2): the open node must be the newest one.
                    if open.last() != Some(&last) {
                        return Err(tokens.damage("a property outside a node or behind a subnode"));
                    }
                    let is_phandle = match self.strings.first(name) {
                        b'p' => self.strings.is(name, "phandle"),
                        b'l' => self.strings.is(name, "linux,phandle"),
                        _ => false,
                    };
                    if is_phandle {
                        self.phandles.extend(value.try_into().map(|value| (u32::from_be_bytes(value), last)));
                    }
                    self.properties.push((name, value));
                    if let Some(row) = self.rows.last_mut() {
                        row.properties.1 += 1;
                    }
                }
                Some(Token::End) => {
                    let next = self.rows.len() as u32;
                    let row = open.pop().and_then(|index| self.rows.get_mut(index as usize));
                    let row = row.ok_or_else(|| tokens.damage("the end of a node that did not begin"))?;
                    row.next = next;
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

    /// The names of all properties, one after the other (§5.5).
    pub(super) fn string_block(&self) -> &'a [u8] {
        self.strings.0
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
        let (_, index) = self.phandles.iter().find(|(found, _)| *found == phandle)?;
        Some(Node { tree: self, index: *index as usize })
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
        str::from_utf8(self.row().name).unwrap_or("?")
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
        (self.index != 0).then(|| Self { tree: self.tree, index: self.row().parent as usize })
    }

    /// The nodes in it.
    pub fn children(&self) -> impl Iterator<Item = Self> + use<'t, 'a> {
        let (tree, end) = (self.tree, self.row().next as usize);
        let mut index = self.index + 1;
        core::iter::from_fn(move || {
            if index >= end {
                return None;
            }
            let child = Self { tree, index };
            index = child.row().next as usize;
            Some(child)
        })
    }

    /// The node in it named `name`; if there is none and `name` has no unit address, the first with any.
    pub fn child(&self, name: &str) -> Option<Self> {
        let exact = self.children().find(|child| child.row().name == name.as_bytes());
        exact.or_else(|| self.children().find(|child| is_called(child.row().name, name)))
    }

    pub(super) fn strings_block(&self) -> Strings<'a> {
        self.tree.strings
    }

    /// Its properties, with their names' places among [`strings_block`](Self::strings_block).
    pub(super) fn raw_properties(&self) -> &'t [(u32, &'a [u8])] {
        let (start, end) = self.row().properties;
        &self.tree.properties[start as usize..end as usize]
    }

    /// Its properties.
    pub fn properties(&self) -> impl Iterator<Item = Property<'a>> + use<'t, 'a> {
        let strings = self.tree.strings;
        self.raw_properties().iter().map(move |&(name, value)| Property { name: strings.get(name), value })
    }

    /// The bytes of the property `name`.
    pub fn property(&self, name: &str) -> Option<&'a [u8]> {
        let strings = self.tree.strings;
        self.raw_properties().iter().find(|(found, _)| strings.is(*found, name)).map(|(_, value)| *value)
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
        self.property("compatible").is_some_and(|list| contains(list, compatible))
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

/// Whether the node called `node` is meant by `name`, which may leave out the unit address.
pub fn is_called(node: &[u8], name: &str) -> bool {
    matches!(node.strip_prefix(name.as_bytes()), Some([] | [b'@', ..]))
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

/// Whether `text` is one of the NUL-terminated strings of `list`.
pub fn contains(list: &[u8], text: &str) -> bool {
    list.split(|&byte| byte == 0).any(|found| found == text.as_bytes())
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
                        let _ = (node.children().count(), node.phandle(), node.is_okay());
                        // Not found if a brother of one above has the same name.
                        if let Some(found) = tree.find(&node.path()) {
                            assert_eq!(found.path(), node.path());
                        }
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
