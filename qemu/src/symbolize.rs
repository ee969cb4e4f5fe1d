//! `cargo keel symbolize`: a panic report's addresses become functions and lines.
//!
//! keel runs where the loader put it, so a report starts with `image base 0xADDR`; each line of its backtrace is
//! `  #N 0xADDR`. An address minus the base, plus what the ELF file was linked at, is the address the debugging
//! information knows. Inlined functions are shown, innermost first. Every other line is passed through.

use std::path::Path;

use anyhow::{Context, Result};

use crate::elf;

/// Turns addresses of one ELF file into text.
pub struct Symbols {
    loader: addr2line::Loader,
    link_base: u64,
}

impl Symbols {
    /// Reads the debugging information of an ELF file.
    ///
    /// # Errors
    ///
    /// It cannot be read or is no ELF file.
    pub fn open(path: &Path) -> Result<Self> {
        let contents = std::fs::read(path)
            .with_context(|| format!("{}: run `make image`, or name the file with --elf", path.display()))?;
        let link_base = elf::link_base(&contents).with_context(|| path.display().to_string())?;
        let loader = addr2line::Loader::new(path).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))?;
        Ok(Symbols { loader, link_base })
    }

    /// The functions an offset into the image lies in, innermost first, each with its file and line.
    fn frames(&self, offset: u64) -> Vec<String> {
        let Some(address) = self.link_base.checked_add(offset) else { return Vec::new() };
        let mut shown = Vec::new();
        if let Ok(mut frames) = self.loader.find_frames(address) {
            while let Ok(Some(frame)) = frames.next() {
                let name = frame.function.and_then(|function| function.demangle().ok().map(String::from));
                let place = frame
                    .location
                    .map(|place| format!(" at {}:{}", place.file.unwrap_or("?"), place.line.unwrap_or(0)));
                if name.is_some() || place.is_some() {
                    shown.push(format!("{}{}", name.unwrap_or("?".into()), place.unwrap_or_default()));
                }
            }
        }
        if shown.is_empty()
            && let Some(symbol) = self.loader.find_symbol(address)
        {
            shown.push(symbol.to_string());
        }
        shown
    }
}

/// Rewrites a console log.
pub fn symbolize(log: &str, symbols: &Symbols) -> String {
    rewrite(log, |offset| symbols.frames(offset))
}

fn rewrite(log: &str, frames: impl Fn(u64) -> Vec<String>) -> String {
    let mut base = None;
    let mut text = String::new();
    for line in log.lines() {
        text.push_str(line);
        text.push('\n');
        if let Some((_, rest)) = line.split_once("image base ") {
            base = hexadecimal(rest).or(base);
        } else if let Some((number, address)) = frame(line) {
            let Some(offset) = base.and_then(|base| address.checked_sub(base)) else { continue };
            // A return address points after the call; the call itself is what the reader looks for.
            let found = frames(if number == 0 { offset } else { offset.saturating_sub(4) });
            for place in &found {
                text.push_str(&format!("       {place}\n"));
            }
        }
    }
    text
}

/// The number and address of a line `#N 0xADDR`, whatever stands before it.
fn frame(line: &str) -> Option<(u32, u64)> {
    let (number, rest) = line.split_once('#')?.1.split_once(' ')?;
    Some((number.parse().ok()?, hexadecimal(rest)?))
}

fn hexadecimal(text: &str) -> Option<u64> {
    let digits = text.trim_start().strip_prefix("0x")?;
    let end = digits.find(|letter: char| !letter.is_ascii_hexdigit()).unwrap_or(digits.len());
    u64::from_str_radix(&digits[..end], 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_relative_to_the_image() {
        let log =
            "noise # 1\nkeel: panic: broken\nimage base 0x40200000\n  #0 0x40200100\n  #1 0x40200204 x\n #2 0x10\n";
        let text = rewrite(log, |offset| vec![format!("at {offset:#x}")]);
        assert_eq!(
            text,
            "noise # 1\nkeel: panic: broken\nimage base 0x40200000\n  #0 0x40200100\n       at 0x100\n  #1 0x40200204 x\n       at 0x200\n #2 0x10\n"
        );
    }

    #[test]
    fn without_a_base_nothing_is_invented() {
        assert_eq!(rewrite("  #0 0x100\n", |_| vec!["wrong".into()]), "  #0 0x100\n");
    }

    #[test]
    fn this_test_finds_itself() {
        // The test program's own debugging information stands in for keel's.
        let path = std::env::current_exe().unwrap();
        let Ok(symbols) = Symbols::open(&path) else { return };
        let contents = std::fs::read(&path).unwrap();
        let file = object::File::parse(&*contents).unwrap();
        use object::{Object, ObjectSymbol};
        let symbol = file
            .symbols()
            .find(|symbol| symbol.name().is_ok_and(|name| name.contains("without_a_base_nothing_is_invented")))
            .map(|symbol| symbol.address());
        // macOS keeps debugging information outside the executable.
        let Some(address) = symbol else { return };
        let log = format!("image base {:#x}\n  #0 {address:#x}\n", symbols.link_base);
        let text = symbolize(&log, &symbols);
        assert!(text.contains("symbolize.rs:") && text.contains("without_a_base"), "{text}");
    }
}
