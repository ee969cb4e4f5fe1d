//! The console: the first thing that is found, in whatever state the tree is.
//!
//! [`console_only`] goes through the tokens of a tree without heap and stops where they make no sense, so that keel
//! can say what is wrong with the rest. It obeys `stdout-path` of /chosen, a path or an alias, with or without
//! `:115200n8` (Devicetree Specification 0.4 §3.6); only when that names nothing does the first UART of a known kind
//! stand in for it. [`parse`] adds what needs the whole tree.

use alloc::format;
use alloc::string::{String, ToString};

use super::bus::{Interrupt, interrupts, registers, take, translate_one};
use super::error::HostError;
use crate::mm::Pa;
use crate::vmm::tree::{DEPTH_MAX, Node, Property, Token, Tokens, Tree, TreeError, string, strings, words};

/// The kinds of UART there are drivers for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UartModel {
    /// Arm PL011, or the subset of it that SBSA calls Generic UART.
    Pl011,
}

/// What each kind is called (bindings: serial/pl011.yaml, arm,sbsa-uart.yaml).
const MODELS: [(&str, UartModel); 2] = [("arm,pl011", UartModel::Pl011), ("arm,sbsa-uart", UartModel::Pl011)];

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
    let mut tokens = tokens;
    let mut levels = [Level::default(); DEPTH_MAX];
    let mut depth = 0usize;
    let mut first = None;
    loop {
        let token = tokens.step();
        if let Ok(Some(Token::Property(property))) = token {
            if let Some(level) = depth.checked_sub(1).and_then(|top| levels.get_mut(top)) {
                note(level, property);
            }
            continue;
        }
        // Anything but a property: the properties of the newest node are complete.
        if let Some((node, above)) = levels.get(..depth).and_then(|open| open.split_last()) {
            let found = examine(above, node);
            if node.rest == Some("") {
                if let Some(result) = found {
                    return result;
                }
            } else if let (None, Some(Ok(uart))) = (first, found) {
                first = Some(uart);
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
fn descend<'p>(path: &'p str, name: &str) -> Option<&'p str> {
    let (component, rest) = path.split_once('/').unwrap_or((path, ""));
    let base = name.split_once('@').map_or(name, |(base, _)| base);
    (!component.is_empty() && (component == name || component == base)).then_some(rest)
}

fn note<'a>(level: &mut Level<'a>, property: Property<'a>) {
    let cell = || property.value.try_into().ok().map(u32::from_be_bytes);
    match property.name {
        "#address-cells" => level.address_cells = cell(),
        "#size-cells" => level.size_cells = cell(),
        "ranges" => level.ranges = Some(property.value),
        "reg" => level.reg = property.value,
        "compatible" => level.compatible = property.value,
        "status" => level.status = Some(property.value),
        _ => {}
    }
}

/// The UART that `node`, inside the nodes `above`, describes; `None` if it does not look like a device at all.
fn examine<'a>(above: &[Level<'a>], node: &Level<'a>) -> Option<Result<Uart, ConsoleError<'a>>> {
    let mut compatibles = strings(node.compatible);
    let compatible = compatibles.clone().next()?;
    let model = compatibles.find_map(|name| MODELS.iter().find(|(known, _)| *known == name));
    let Some(&(_, model)) = model else { return Some(Err(ConsoleError::Unsupported { compatible })) };
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
    let mut depth = 0;
    let mut inside = false;
    loop {
        match tokens.step().ok()?? {
            Token::Begin(name) => {
                depth += 1;
                inside = depth == 2 && name == node;
            }
            Token::End => {
                depth -= 1;
                inside = false;
            }
            Token::Property(found) if inside && found.name == property => return string(found.value),
            Token::Property(_) => {}
        }
    }
}

/// The console of a readable tree.
pub(super) fn parse(tree: &Tree) -> Result<Console, HostError> {
    let uart = console_only(tree.bytes()).map_err(|error| {
        let expected = format!("compatible with one of {:?}", MODELS.map(|(name, _)| name));
        match error {
            ConsoleError::NoTree(_) | ConsoleError::NotFound => HostError::MissingNode {
                node: "UART",
                expected,
                remedy: "keel is silent from here on: use a machine with such a UART, or add a driver",
            },
            ConsoleError::Unsupported { .. } | ConsoleError::NoRegisters => HostError::BadProperty {
                node: String::from("/chosen"),
                property: "stdout-path",
                found: error.to_string(),
                expected: format!("a UART {expected}"),
                remedy: "name such a UART there, or add a driver for this one",
            },
        }
    })?;
    let is_it = |node: &Node| {
        MODELS.iter().any(|(name, _)| node.is_compatible(name))
            && registers(*node).is_ok_and(|registers| registers.first().is_some_and(|span| span.base == uart.base))
    };
    let node = tree.nodes().find(is_it);
    Ok(Console {
        uart,
        path: node.map_or(String::new(), |node| node.path()),
        interrupt: node.and_then(|node| interrupts(tree, node).ok()?.first().copied().flatten()),
    })
}
