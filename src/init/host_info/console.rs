//! The console: the first thing that is found, in whatever state the tree is.
//!
//! [`console_only`] goes through the tokens of a tree without heap and stops where they make no sense, so that keel
//! can say what is wrong with the rest. It obeys `stdout-path` of /chosen, a path or an alias, with or without
//! `:115200n8` (Devicetree Specification 0.4 §3.6); only when that names nothing does the first UART of a known kind
//! stand in for it. [`parse`] adds what needs the whole tree.

use alloc::format;
use alloc::string::String;

use super::bus::{Interrupt, Span, interrupts, registers, take, translate_one};
use super::devices::{Devices, Kind, kind, names};
use super::error::{CORRECT_THE_TREE, HostError};
use crate::mm::Pa;
use crate::vmm::tree::{
    DEPTH_MAX, Node, Strings, Token, Tokens, Tree, TreeError, describe, is_called, string, strings, words,
};

/// The kinds of UART there are drivers for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UartModel {
    /// Arm PL011, or the subset of it that SBSA calls Generic UART.
    Pl011,
}

/// The kind of UART a node with this list of compatible strings is (bindings: serial/pl011.yaml, arm,sbsa-uart.yaml).
fn model(compatible: &[u8]) -> Option<UartModel> {
    matches!(kind(compatible), Some(Kind::Uart)).then_some(UartModel::Pl011)
}

/// A UART that can be written to. Firmware has set its speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uart {
    /// Its kind.
    pub model: UartModel,
    /// Its registers.
    pub base: Pa,
    /// Bytes they take.
    pub size: u64,
}

/// The console's UART with what is known of it once the whole tree is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Console {
    /// The UART.
    pub uart: Uart,
    /// Path of its node.
    pub path: String,
    /// Its interrupt, if it goes to the GIC.
    pub interrupt: Option<Interrupt>,
}

/// Why there is no console.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConsoleError<'a> {
    /// There is no tree.
    #[error("device tree: {0}")]
    NoTree(TreeError),
    /// No node describes a UART keel has a driver for.
    #[error("no UART of a known kind")]
    NotFound,
    /// `stdout-path` names a UART that keel has no driver for.
    #[error("the path of a {compatible}")]
    Unsupported {
        /// The first of its compatible strings.
        compatible: &'a str,
    },
    /// `stdout-path` names a UART whose registers the tree does not place.
    #[error("the path of a UART without usable reg")]
    NoRegisters,
}

/// A node that has begun: what decides whether it is the console, and what its children's addresses mean.
#[derive(Clone, Copy, Default)]
struct Level<'a> {
    address_cells: Option<u32>,
    size_cells: Option<u32>,
    ranges: Option<&'a [u8]>,
    reg: &'a [u8],
    compatible: &'a [u8],
    status: Option<&'a [u8]>,
    /// The rest of `stdout-path` if this node is on it: empty when it is the node itself.
    rest: Option<&'a str>,
}

impl Level<'_> {
    fn cells(&self) -> (usize, usize) {
        (self.address_cells.unwrap_or(2) as usize, self.size_cells.unwrap_or(1) as usize)
    }
}

/// Finds the console's UART in the tree at the start of `dtb`, as far as it can be read. Needs no heap.
///
/// # Errors
///
/// [`ConsoleError`]: nobody can be told, unless keel knows a console from elsewhere.
pub fn console_only(dtb: &[u8]) -> Result<Uart, ConsoleError<'_>> {
    let tokens = Tokens::tolerant(dtb).map_err(ConsoleError::NoTree)?;
    let target = stdout(&tokens);
    let strings = tokens.strings();
    let mut tokens = tokens;
    let mut levels = [Level::default(); DEPTH_MAX];
    let mut depth = 0usize;
    let mut first = None;
    loop {
        let token = tokens.step();
        if let Ok(Some(Token::Property(name, value))) = token {
            if let Some(level) = depth.checked_sub(1).and_then(|top| levels.get_mut(top)) {
                note(level, strings, name, value);
            }
            continue;
        }
        // Anything but a property: the properties of the newest node are complete.
        if let Some((node, above)) = levels.get(..depth).and_then(|open| open.split_last()) {
            if node.rest == Some("") {
                if let Some(result) = examine(above, node) {
                    return result;
                }
            } else if first.is_none() && model(node.compatible).is_some() {
                first = examine(above, node).and_then(Result::ok);
            }
        }
        match token {
            Ok(Some(Token::Begin(name))) => {
                let rest = match depth.checked_sub(1).and_then(|top| levels.get(top)) {
                    None => target.map(|path| path.trim_matches('/')),
                    Some(parent) => parent.rest.and_then(|rest| descend(rest, name)),
                };
                let Some(level) = levels.get_mut(depth) else { break };
                *level = Level { rest, ..Level::default() };
                depth += 1;
            }
            Ok(Some(Token::End)) => {
                let Some(up) = depth.checked_sub(1) else { break };
                depth = up;
                // Do not look at the parent a second time when its next child begins.
                if let Some(parent) = up.checked_sub(1).and_then(|top| levels.get_mut(top)) {
                    parent.compatible = &[];
                    parent.rest = parent.rest.filter(|rest| !rest.is_empty());
                }
            }
            _ => break,
        }
    }
    first.ok_or(ConsoleError::NotFound)
}

/// The rest of the path below a node called `name`, if `path` begins with it.
fn descend<'p>(path: &'p str, name: &[u8]) -> Option<&'p str> {
    let (component, rest) = path.split_once('/').unwrap_or((path, ""));
    (!component.is_empty() && is_called(name, component)).then_some(rest)
}

fn note<'a>(level: &mut Level<'a>, strings: Strings, name: u32, value: &'a [u8]) {
    let cell = || value.try_into().ok().map(u32::from_be_bytes);
    // Most properties are none of these, which the first letter shows.
    match strings.first(name) {
        b'r' if strings.is(name, "reg") => level.reg = value,
        b'r' if strings.is(name, "ranges") => level.ranges = Some(value),
        b'c' if strings.is(name, "compatible") => level.compatible = value,
        b's' if strings.is(name, "status") => level.status = Some(value),
        b'#' if strings.is(name, "#address-cells") => level.address_cells = cell(),
        b'#' if strings.is(name, "#size-cells") => level.size_cells = cell(),
        _ => {}
    }
}

/// The UART that `node`, inside the nodes `above`, describes; `None` if it does not look like a device at all.
fn examine<'a>(above: &[Level<'a>], node: &Level<'a>) -> Option<Result<Uart, ConsoleError<'a>>> {
    let Some(model) = model(node.compatible) else {
        let compatible = strings(node.compatible).next()?;
        return Some(Err(ConsoleError::Unsupported { compatible }));
    };
    if node.status.is_some_and(|status| !matches!(string(status), Some("okay" | "ok"))) {
        return None;
    }
    Some(
        place(above, node.reg)
            .map(|(base, size)| Uart { model, base: Pa(base), size })
            .ok_or(ConsoleError::NoRegisters),
    )
}

/// The first entry of `reg`, through the `ranges` of the buses above.
fn place(above: &[Level], reg: &[u8]) -> Option<(u64, u64)> {
    let (mut bus, mut buses) = above.split_last()?;
    let (address_cells, size_cells) = bus.cells();
    if address_cells > 2 || size_cells > 2 {
        return None;
    }
    let mut cells = words(reg)?;
    let mut address = take(&mut cells, address_cells)?;
    let size = take(&mut cells, size_cells)?;
    while let Some((parent, rest)) = buses.split_last() {
        match bus.ranges {
            Some([]) => {}
            Some(ranges) => {
                let (child_cells, size_cells) = bus.cells();
                address = translate_one(ranges, (child_cells, parent.cells().0, size_cells), address)?;
            }
            None => return None,
        }
        (bus, buses) = (parent, rest);
    }
    address.checked_add(size).map(|_| (address, size))
}

/// The absolute path that /chosen's `stdout-path` means.
fn stdout<'a>(tokens: &Tokens<'a>) -> Option<&'a str> {
    let path =
        ["stdout-path", "linux,stdout-path"].iter().find_map(|name| top_level(tokens.clone(), "chosen", name))?;
    let path = path.split_once(':').map_or(path, |(path, _)| path);
    if path.starts_with('/') {
        return Some(path);
    }
    top_level(tokens.clone(), "aliases", path)
}

/// The string `property` of the root's child `node`.
fn top_level<'a>(mut tokens: Tokens<'a>, node: &str, property: &str) -> Option<&'a str> {
    let strings = tokens.strings();
    let mut depth = 0;
    let mut inside = false;
    loop {
        match tokens.step().ok()?? {
            Token::Begin(name) => {
                depth += 1;
                inside = depth == 2 && name == node.as_bytes();
            }
            Token::End => {
                depth -= 1;
                inside = false;
            }
            Token::Property(name, value) if inside && strings.is(name, property) => return string(value),
            Token::Property(..) => {}
        }
    }
}

/// The console of a readable tree: the UART that [`console_only`] finds.
pub(super) fn parse(tree: &Tree, devices: &Devices) -> Result<Console, HostError> {
    let expected = || format!("compatible one of {}", names(&[Kind::Uart]));
    let node = named(tree).or_else(|| devices.get(Kind::Uart)).ok_or_else(|| HostError::MissingNode {
        node: "UART",
        expected: expected(),
        remedy: "keel is silent from here on: use a machine with such a UART, or add a driver",
    })?;
    let path = node.path();
    let compatible = node.property("compatible").unwrap_or_default();
    let Some(model) = model(compatible) else {
        return Err(HostError::BadProperty {
            node: String::from("/chosen"),
            property: "stdout-path",
            found: format!("the path of {path}, compatible {}", describe(compatible)),
            expected: format!("a UART {}", expected()),
            remedy: "name such a UART there, or add a driver for this one",
        });
    };
    let registers = registers(node)?;
    let Some(&Span { base, size }) = registers.first() else {
        return Err(HostError::missing(node, "reg", "the address of its registers", CORRECT_THE_TREE));
    };
    // Without its interrupt the console still prints.
    let interrupt = interrupts(tree, node).ok().and_then(|list| list.first().copied().flatten());
    Ok(Console { uart: Uart { model, base, size }, path, interrupt })
}

/// The device that /chosen's `stdout-path` means, if there is one.
fn named<'t, 'a>(tree: &'t Tree<'a>) -> Option<Node<'t, 'a>> {
    let chosen = tree.root().child("chosen")?;
    let path = chosen.string("stdout-path").or_else(|| chosen.string("linux,stdout-path"))?;
    let path = path.split_once(':').map_or(path, |(path, _)| path);
    let path = if path.starts_with('/') { path } else { tree.root().child("aliases")?.string(path)? };
    let is_device = |node: &Node| node.strings("compatible").next().is_some();
    // A UART that is switched off is no console, one without driver is an error.
    tree.find(path)
        .filter(is_device)
        .filter(|node| node.is_okay() || model(node.property("compatible").unwrap_or_default()).is_none())
}
