//! The layers: each folder of `src/` may use only those above it in the design's table.
//!
//! Reads the sources as text. What counts as a use is a path that starts at the crate's root (`crate::mm::…`,
//! `use crate::{arch, mm}`, `keel::…` never occurs inside the library); comments and strings do not count. The same
//! walk checks where `unsafe` may stand, which the table says too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Highest first: a layer may use itself and those before it. The number: how many files may contain `unsafe`.
const LAYERS: &[(&str, usize)] =
    &[("arch", usize::MAX), ("mm", 2), ("vcpu", 1), ("vdev", 0), ("hypercall", 0), ("kvm", 0), ("vmm", 0), ("init", 7)];

/// The one layer that may name the crates of machine registers.
const REGISTER_CRATES: (&str, [&str; 2]) = ("arch", ["aarch64_cpu", "tock_registers"]);

fn source_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../src")
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
    files
}

/// The code with comments and the contents of string and character literals blanked.
fn strip(source: &str) -> String {
    let bytes: Vec<char> = source.chars().collect();
    let mut code = String::with_capacity(source.len());
    let mut at = 0;
    let starts = |at: usize, text: &str| text.chars().enumerate().all(|(i, letter)| bytes.get(at + i) == Some(&letter));
    while at < bytes.len() {
        if starts(at, "//") {
            while at < bytes.len() && bytes[at] != '\n' {
                at += 1;
            }
        } else if starts(at, "/*") {
            let mut depth = 0;
            loop {
                if starts(at, "/*") {
                    depth += 1;
                    at += 2;
                } else if starts(at, "*/") {
                    depth -= 1;
                    at += 2;
                } else {
                    code.extend(bytes.get(at).filter(|letter| **letter == '\n'));
                    at += 1;
                }
                if depth == 0 || at >= bytes.len() {
                    break;
                }
            }
        } else if let Some(hashes) = raw_string(&bytes, at) {
            let end = format!("\"{}", "#".repeat(hashes));
            at += 2 + hashes;
            while at < bytes.len() && !starts(at, &end) {
                at += 1;
            }
            at += end.len();
            code.push_str("\"\"");
        } else if bytes[at] == '"' {
            at += 1;
            while at < bytes.len() && bytes[at] != '"' {
                at += if bytes[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
            code.push_str("\"\"");
        } else if bytes[at] == '\'' && (bytes.get(at + 1) == Some(&'\\') || bytes.get(at + 2) == Some(&'\'')) {
            // A character literal; anything else after a quote is a lifetime.
            at += if bytes.get(at + 1) == Some(&'\\') { 3 } else { 2 };
            while at < bytes.len() && bytes[at] != '\'' {
                at += 1;
            }
            at += 1;
            code.push_str("' '");
        } else {
            code.push(bytes[at]);
            at += 1;
        }
    }
    code
}

/// The number of `#` of a raw string literal that starts at `at`.
fn raw_string(text: &[char], at: usize) -> Option<usize> {
    let before = at.checked_sub(1).map(|before| text[before]);
    if text[at] != 'r' || before.is_some_and(|letter| letter.is_alphanumeric() && letter != 'b') {
        return None;
    }
    let hashes = text[at + 1..].iter().take_while(|letter| **letter == '#').count();
    (text.get(at + 1 + hashes) == Some(&'"')).then_some(hashes)
}

/// The modules of the crate's root that a piece of code names: after `crate::`, also inside braces.
fn root_modules(code: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for (position, _) in code.match_indices("crate::") {
        let preceded =
            code[..position].ends_with(|letter: char| letter.is_alphanumeric() || letter == '_' || letter == '$');
        if preceded && !code[..position].ends_with('$') {
            continue;
        }
        let rest = &code[position + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => modules.push(identifier(rest)),
            Some(group) => modules.extend(group_heads(group)),
        }
    }
    modules.retain(|module| !module.is_empty());
    modules
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|letter| letter.is_alphanumeric() || *letter == '_').collect()
}

/// The first identifiers of the members of `{a::b, c::{d, e}, f}`, given the text after the opening brace.
fn group_heads(text: &str) -> Vec<String> {
    let mut heads = Vec::new();
    let mut depth = 0;
    let mut at_head = true;
    for (position, letter) in text.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_head = true,
            _ if at_head && !letter.is_whitespace() => {
                heads.push(identifier(&text[position..]));
                at_head = false;
            }
            _ => {}
        }
    }
    heads
}

/// Whether `word` occurs as a whole word.
fn has_word(code: &str, word: &str) -> bool {
    code.match_indices(word).any(|(position, _)| {
        let is_part = |letter: char| letter.is_alphanumeric() || letter == '_';
        !code[..position].ends_with(is_part) && !code[position + word.len()..].starts_with(is_part)
    })
}

/// (layer, file, code) of every source file in a layer's folder.
fn layered_sources() -> Vec<(usize, String, String)> {
    let root = source_folder();
    let mut sources = Vec::new();
    for (index, (layer, _)) in LAYERS.iter().enumerate() {
        for file in rust_files(&root.join(layer)) {
            let code = strip(&std::fs::read_to_string(&file).unwrap());
            sources.push((index, file.strip_prefix(&root).unwrap_or(&file).display().to_string(), code));
        }
    }
    assert!(sources.len() > LAYERS.len(), "the sources were not found below {}", root.display());
    sources
}

#[test]
fn each_layer_uses_only_those_above_it() {
    let mut faults = Vec::new();
    for (index, file, code) in layered_sources() {
        for module in root_modules(&code) {
            let Some(used) = LAYERS.iter().position(|(layer, _)| *layer == module) else { continue };
            if used > index {
                faults.push(format!("src/{file} (layer {}) uses crate::{module}, a lower layer", LAYERS[index].0));
            }
        }
    }
    faults.dedup();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn unsafe_code_stands_only_where_the_design_has_it() {
    let mut files: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for (index, file, code) in layered_sources() {
        if has_word(&code, "unsafe") {
            files.entry(index).or_default().push(file);
        }
    }
    for (index, files) in files {
        let (layer, most) = LAYERS[index];
        assert!(files.len() <= most, "layer {layer} may have unsafe code in {most} file(s), and has: {files:?}");
    }
}

#[test]
fn only_arch_names_the_register_crates() {
    let (owner, crates) = REGISTER_CRATES;
    for (index, file, code) in layered_sources() {
        let named = crates.iter().find(|name| has_word(&code, name));
        assert!(LAYERS[index].0 == owner || named.is_none(), "src/{file} names {named:?}; only src/{owner}/ may");
    }
}

#[test]
fn every_folder_is_a_layer() {
    for entry in std::fs::read_dir(source_folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let known = name == "bin" || LAYERS.iter().any(|(layer, _)| *layer == name);
        assert!(!path.is_dir() || known, "src/{name}/ is no layer of the design");
    }
}

#[test]
fn the_reader_reads_rust() {
    let code = strip(
        "use crate::mm; // crate::vmm\n/* crate::kvm /* */ crate::kvm */ let s = \"crate::init\"; 'a' '\\'' r#\"crate::vdev\"# &'static crate::arch::x",
    );
    assert_eq!(root_modules(&code), ["mm", "arch"]);
    assert_eq!(root_modules("use crate::{arch::{a, b}, mm, vdev::x::{y}};"), ["arch", "mm", "vdev"]);
    assert_eq!(root_modules("pub(crate) fn f(x: mycrate::vmm) {}"), [""; 0]);
    assert!(has_word("unsafe {", "unsafe") && !has_word("forbid(unsafe_code)", "unsafe"));
}
