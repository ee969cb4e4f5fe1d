//! Where the stub's image goes: to the top of the RAM it was loaded into.
//!
//! Payloads are linked for the start of RAM, which is where boot loaders put an image too; the stub, which runs
//! anywhere, makes room. That is before there is a heap, so the tree is read token by token, once for each obstacle in the
//! way. A tree that makes no sense yields no place; what is wrong with it is said later, by those who read it whole.

use core::ops::Range;

use super::bus::take;
use crate::mm::Pa;
use crate::mm::addr::BLOCK_2M;
use crate::vmm::tree::{Token, Tokens, is_called, number, string, words};

/// What a range of addresses is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ram,
    /// In use: reserved, or the initrd.
    Taken,
}

/// The highest place, 2 MiB aligned, for an image of `size` bytes that runs at `current`: in the same RAM, clear of the
/// tree, which is at `at`, of the initrd and of everything reserved. `None` if there is none, or the tree does not tell.
pub fn resting_place(tree: &[u8], at: Pa, current: Pa, size: u64) -> Option<Pa> {
    let mut ram = None;
    scan(tree, &mut |kind, range| {
        if kind == Kind::Ram && range.contains(&current.0) {
            ram = Some(range);
        }
    })?;
    let ram: Range<u64> = ram?;
    let mut place = ram.end.checked_sub(size)? & !(BLOCK_2M - 1);
    // Each round goes down, so this ends.
    while place >= ram.start {
        let end = place + size;
        let mut obstacle = None;
        let mut check = |range: Range<u64>| {
            if range.start < end && place < range.end {
                obstacle = Some(range.start);
            }
        };
        check(at.0..at.0.saturating_add(tree.len() as u64));
        scan(tree, &mut |kind, range| {
            if kind == Kind::Taken {
                check(range);
            }
        })?;
        let Some(obstacle) = obstacle else { return Some(Pa(place)) };
        place = obstacle.checked_sub(size)? & !(BLOCK_2M - 1);
    }
    None
}

/// What is known of a node whose properties are being read.
#[derive(Clone, Copy, Default)]
struct Open<'a> {
    reg: &'a [u8],
    is_memory: bool,
    is_off: bool,
}

/// Shows `visit` every range of RAM and every one that is taken. `None` if the tree makes no sense.
fn scan(tree: &[u8], visit: &mut dyn FnMut(Kind, Range<u64>)) -> Option<()> {
    let mut entries = |kind, reg: &[u8], cells: (usize, usize)| {
        let mut cells_left = words(reg)?;
        if cells.0 > 2 || cells.1 > 2 || cells.0 == 0 {
            return None;
        }
        while let Some(start) = take(&mut cells_left, cells.0) {
            let size = take(&mut cells_left, cells.1)?;
            visit(kind, start..start.checked_add(size)?);
        }
        Some(())
    };
    // The reservation block (Devicetree Specification 0.4 §5.3), whose offset is the header's fifth word.
    let offset = words(tree.get(16..20)?)?.next()?;
    for entry in tree.get(offset as usize..)?.chunks_exact(16) {
        if entry.iter().all(|&byte| byte == 0) {
            break;
        }
        entries(Kind::Taken, entry, (2, 2))?;
    }

    let mut tokens = Tokens::tolerant(tree).ok()?;
    let strings = tokens.strings();
    let mut depth = 0;
    // The child of the root that is open, and the cell sizes of the root and of /reserved-memory.
    let mut section: &[u8] = &[];
    let mut cells = [(2, 1); 2];
    let mut open = Open::default();
    let mut initrd = [None; 2];
    while let Some(token) = tokens.step().ok()? {
        let reserved = section == b"reserved-memory";
        if let Token::Property(name, value) = token {
            let is = |known| strings.is(name, known);
            let cell = || value.try_into().ok().map(|bytes| u32::from_be_bytes(bytes) as usize);
            let bus = match depth {
                1 => cells.first_mut(),
                2 if reserved => cells.last_mut(),
                _ => None,
            };
            match bus {
                Some(cells) if is("#address-cells") => cells.0 = cell()?,
                Some(cells) if is("#size-cells") => cells.1 = cell()?,
                _ if is("reg") => open.reg = value,
                _ if is("device_type") => open.is_memory = string(value) == Some("memory"),
                _ if is("status") => open.is_off = !matches!(string(value), Some("okay" | "ok")),
                _ if depth == 2 && section == b"chosen" && is("linux,initrd-start") => initrd[0] = number(value),
                _ if depth == 2 && section == b"chosen" && is("linux,initrd-end") => initrd[1] = number(value),
                _ => {}
            }
            continue;
        }
        // All properties of the node are known.
        let node = core::mem::take(&mut open);
        if depth == 2 && node.is_memory && !node.is_off {
            entries(Kind::Ram, node.reg, cells[0])?;
        } else if depth == 3 && reserved && !node.is_off {
            entries(Kind::Taken, node.reg, cells[1])?;
        }
        if let Token::Begin(name) = token {
            depth += 1;
            if depth == 2 {
                section = if is_called(name, "reserved-memory") { b"reserved-memory" } else { name };
            }
        } else {
            depth -= 1;
        }
    }
    if let [Some(start), Some(end)] = initrd {
        visit(Kind::Taken, start..end);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmm::test_support::{Mutations, dts};

    const MIB: u64 = 1 << 20;
    const BASE: u64 = 0x4000_0000;

    fn tree(more: &str) -> std::vec::Vec<u8> {
        dts(&std::format!(
            "{} / {{ #address-cells = <2>; #size-cells = <2>; memory@40000000 {{ reg = <0 0x40000000 0 0x10000000>; \
             device_type = \"memory\"; }}; memory@80000000 {{ device_type = \"memory\"; reg = <0 0x80000000 0 \
             0x10000000>; }}; {} }};",
            more.split_once('|').map_or("", |(before, _)| before),
            more.split_once('|').map_or(more, |(_, after)| after),
        ))
    }

    fn place(more: &str) -> Option<u64> {
        resting_place(&tree(more), Pa(BASE), Pa(BASE + 2 * MIB), 3 * MIB).map(|place| place.0 - BASE)
    }

    #[test]
    fn the_top_of_its_own_ram() {
        assert_eq!(place(""), Some(252 * MIB));
        let other = resting_place(&tree(""), Pa(BASE), Pa(0x8020_0000), MIB).unwrap();
        assert_eq!(other, Pa(0x8000_0000 + 254 * MIB));
        assert_eq!(resting_place(&tree(""), Pa(BASE), Pa(0x2000_0000), MIB), None, "not RAM at all");
    }

    #[test]
    fn obstacles_are_avoided() {
        assert_eq!(
            place("chosen { linux,initrd-start = <0x4fe00000>; linux,initrd-end = <0 0x4fe00001>; };"),
            Some(250 * MIB)
        );
        assert_eq!(place("/memreserve/ 0x4ff00000 0x1000;|"), Some(252 * MIB));
        assert_eq!(place("/memreserve/ 0x4fe00000 0x1000;|"), Some(250 * MIB));
        let reserved = "reserved-memory { #address-cells = <1>; #size-cells = <1>; ranges; \
                        a@4f000000 { reg = <0x4f000000 0x1000000>; no-map; }; b { size = <0x1000>; }; \
                        c { reg = <0x4e000000 0x1000000>; status = \"disabled\"; }; };";
        assert_eq!(place(reserved), Some(236 * MIB));
        let all = place("/memreserve/ 0x40000000 0x10000000;|");
        assert_eq!(all, None);
    }

    #[test]
    fn the_tree_is_an_obstacle() {
        let blob = tree("");
        let found = resting_place(&blob, Pa(BASE + 253 * MIB), Pa(BASE), 3 * MIB);
        assert_eq!(found, Some(Pa(BASE + 250 * MIB)));
    }

    #[test]
    fn too_large_is_none() {
        assert_eq!(resting_place(&tree(""), Pa(BASE), Pa(BASE), 257 * MIB), None);
        assert_eq!(resting_place(&tree(""), Pa(BASE), Pa(BASE), 256 * MIB), None, "the tree is there");
        assert_eq!(resting_place(&tree(""), Pa(0), Pa(BASE), 256 * MIB), Some(Pa(BASE)));
    }

    #[test]
    fn mutants_do_not_panic() {
        let good = tree("chosen { linux,initrd-start = <0x4fe00000>; linux,initrd-end = <0 0x4fe00001>; };");
        for mutant in Mutations::new(&good, 10_000) {
            if let Some(place) = resting_place(&mutant, Pa(BASE), Pa(BASE + 2 * MIB), 3 * MIB) {
                assert!(place.is_aligned(BLOCK_2M));
            }
        }
    }
}
