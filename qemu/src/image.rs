//! Building: the test kernel, the bundle linked into keel, and keel's two images.
//!
//! The order matters: the demonstration guest is compiled first, bundled into `build/demo.itb`, and keel is compiled
//! with `KEEL_BUNDLE` naming that file. cargo decides what is stale, so building twice is cheap, and a file of
//! `build/` is only touched when its contents change.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::vms::{MemorySize, VmSpec};
use crate::{elf, fit, tree};

/// The guests that are built from this tree.
#[derive(Clone, Debug)]
pub struct Guests {
    /// `build/demo`: the guest linked into keel; `build/demo.elf` is the same with symbols.
    pub demo: PathBuf,
    /// `build/test-kernel`; `build/test-kernel.elf` is the same with symbols.
    pub test_kernel: PathBuf,
    /// `build/spin-table.img`: firmware that holds CPUs in a spin-table pen, as an arm64 Image.
    pub spin_table: PathBuf,
    /// `build/work`: a Linux program that checks memory, registers and clocks round after round, on two CPUs.
    pub work: PathBuf,
    /// `build/ptp-time`: a Linux program that prints the time of /dev/ptp0.
    pub ptp_time: PathBuf,
    /// `build/perf-count`: a Linux program that counts itself with the PMU.
    pub perf_count: PathBuf,
}

/// What was built, and how large it is.
#[derive(Clone, Debug)]
pub struct Images {
    /// `build/keel.img`: the raw arm64 Image.
    pub keel: PathBuf,
    /// `build/keel.elf`: the same with symbols.
    pub keel_elf: PathBuf,
    /// `build/keel-stub.img`.
    pub stub: PathBuf,
    /// `build/keel-stub.elf`.
    pub stub_elf: PathBuf,
    /// `build/demo.itb`: the bundle linked into keel.
    pub demo_bundle: PathBuf,
    /// The guests.
    pub guests: Guests,
    /// Bytes of the raw image.
    pub keel_bytes: u64,
    /// Bytes of code in it.
    pub text_bytes: u64,
    /// Bytes of the stub's raw image.
    pub stub_bytes: u64,
    /// Bytes of the bundle linked in, part of `keel_bytes`.
    pub bundle_bytes: u64,
}

/// Builds the guests that are not up to date.
///
/// # Errors
///
/// The compiler fails (it has said why), or a product cannot be written.
pub fn build_guests() -> Result<Guests> {
    let kernels = cargo_build("keel-test-kernel", tree::TARGET, &[])?;
    let guest = |artifact: &str, name: &str| {
        let file = read_artifact(&kernels, artifact)?;
        keep(&format!("{name}.elf"), &file)?;
        keep(name, &elf::strip(&file).with_context(|| artifact.to_string())?)
    };
    let firmware = flatten(&read_artifact(&kernels, "spin-table")?, "spin-table")?;
    Ok(Guests {
        demo: guest("demo", "demo")?,
        test_kernel: guest("keel-test-kernel", "test-kernel")?,
        spin_table: keep("spin-table.img", &firmware)?,
        // As it was linked: Linux maps its segments from the file, page by page.
        work: keep("work", &read_artifact(&kernels, "work")?)?,
        ptp_time: keep("ptp-time", &read_artifact(&kernels, "ptp-time")?)?,
        perf_count: keep("perf-count", &read_artifact(&kernels, "perf-count")?)?,
    })
}

/// Builds everything that is not up to date.
///
/// # Errors
///
/// The compiler fails (it has said why), or a product cannot be written.
pub fn build() -> Result<Images> {
    let guests = build_guests()?;
    let mut vm = VmSpec::new("demo", &guests.demo);
    vm.description = Some("Prints what it finds and powers off".into());
    vm.cpus = 2;
    vm.memory = MemorySize(32 << 20);
    let bundle = fit::write(&[vm])?;
    fit::check(&bundle)?;
    let demo_bundle = keep("demo.itb", &bundle)?;

    let bins = cargo_build("keel", tree::TARGET, &[("KEEL_BUNDLE", &demo_bundle)])?;
    let keel = read_artifact(&bins, "keel")?;
    let stub = read_artifact(&bins, "keel-stub")?;
    let (keel_raw, stub_raw) = (flatten(&keel, "keel")?, flatten(&stub, "keel-stub")?);
    Ok(Images {
        keel: keep("keel.img", &keel_raw)?,
        keel_elf: keep("keel.elf", &keel)?,
        stub: keep("keel-stub.img", &stub_raw)?,
        stub_elf: keep("keel-stub.elf", &stub)?,
        demo_bundle,
        guests,
        keel_bytes: keel_raw.len() as u64,
        text_bytes: elf::text_bytes(&keel)?,
        stub_bytes: stub_raw.len() as u64,
        bundle_bytes: elf::section_bytes(&keel, ".bundle")?,
    })
}

/// Whether the toolchain of this tree can build for `target`.
pub fn has_target(target: &str) -> bool {
    let mut command = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    let output = command.current_dir(tree::root()).args(["--print", "target-libdir", "--target", target]).output();
    output.is_ok_and(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir())
}

/// Builds the runner that takes a bundle's machine to Linux's KVM, for user space of arm64 Linux; returns its bytes.
///
/// # Errors
///
/// The compiler fails (it has said why), for instance because Rust's standard library for that target is missing.
pub fn build_oracle() -> Result<Vec<u8>> {
    let bins = cargo_build("keel-oracle", tree::LINUX_TARGET, &[])?;
    read_artifact(&bins, "keel-oracle")
}

/// The C compiler of the 32-bit test kernel: no target of this tree's toolchain makes AArch32 code.
pub const ARM_COMPILER: &str = "arm-linux-gnueabihf-gcc";

/// Builds `build/test-kernel-32`, an ELF32 file, from `tests/kernel32`; `None` where there is no compiler for it.
///
/// # Errors
///
/// The compiler fails, or the product cannot be written.
pub fn build_kernel32() -> Result<Option<PathBuf>> {
    const FLAGS: &[&str] = &[
        "-march=armv7ve",
        "-marm",
        "-mfloat-abi=soft",
        // With the MMU off all memory is Device memory.
        "-mno-unaligned-access",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-ffreestanding",
        "-fno-pic",
        "-nostdlib",
        "-static",
        "-s",
        "-Wl,--build-id=none,-zmax-page-size=4096,--no-warn-rwx-segments",
    ];
    let folder = tree::root().join("tests/kernel32");
    let output = tree::product(&format!(".test-kernel-32.{}", std::process::id()));
    let mut command = Command::new(ARM_COMPILER);
    command.current_dir(&folder).args(FLAGS).args(["-T", "kernel.ld", "start.S", "main.c", "gic.c", "-o"]).arg(&output);
    let result = match command.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        result => result.with_context(|| format!("cannot start {ARM_COMPILER}"))?,
    };
    if !result.status.success() {
        bail!("{ARM_COMPILER} failed:\n{}", String::from_utf8_lossy(&result.stderr));
    }
    let file = std::fs::read(&output)?;
    std::fs::remove_file(&output)?;
    keep("test-kernel-32", &file).map(Some)
}

fn flatten(file: &[u8], name: &str) -> Result<Vec<u8>> {
    elf::flatten(file).with_context(|| format!("cannot make a raw image of {name}"))
}

/// Runs `cargo build` for an arm64 target; returns the executables by name.
fn cargo_build(package: &str, target: &str, environment: &[(&str, &Path)]) -> Result<Vec<(String, PathBuf)>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(tree::root()).args(["build", "--release", "--bins", "--target", target]);
    command.args(["--package", package, "--message-format", "json-render-diagnostics"]);
    // Someone who watches wants to see that it is at work; a log does not.
    if !std::io::stderr().is_terminal() {
        command.arg("--quiet");
    }
    command.envs(environment.iter().copied());
    // What `cargo run` and `cargo test` set for the tool itself must not leak into the nested build's fingerprints.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let of_this_package =
            text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST") || text == "RUSTFLAGS";
        if of_this_package {
            command.env_remove(&name);
        }
    }
    let output = command.stderr(std::process::Stdio::inherit()).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo build --package {package} --target {target} failed");
    }
    Ok(executables(&String::from_utf8_lossy(&output.stdout)))
}

/// The (name, path) of each executable in cargo's JSON messages.
///
/// Only two string fields of a flat, machine-written line are needed; a JSON library for that would be the tool's
/// largest dependency.
fn executables(messages: &str) -> Vec<(String, PathBuf)> {
    messages
        .lines()
        .filter(|line| line.contains(r#""reason":"compiler-artifact""#))
        .filter_map(|line| {
            let path = PathBuf::from(json_string(line, r#""executable":"#)?);
            Some((path.file_name()?.to_string_lossy().into_owned(), path))
        })
        .collect()
}

/// The string after `key` in a line of JSON; `None` when it is absent or null.
fn json_string(line: &str, key: &str) -> Option<String> {
    let rest = line.split_once(key)?.1.strip_prefix('"')?;
    let mut text = String::new();
    let mut letters = rest.chars();
    loop {
        match letters.next()? {
            '"' => return Some(text),
            '\\' => text.push(letters.next()?),
            letter => text.push(letter),
        }
    }
}

fn read_artifact(artifacts: &[(String, PathBuf)], name: &str) -> Result<Vec<u8>> {
    let (_, path) =
        artifacts.iter().find(|(known, _)| known == name).with_context(|| format!("cargo built no `{name}`"))?;
    std::fs::read(path).with_context(|| path.display().to_string())
}

/// Stores a product of the build; returns its path.
fn keep(name: &str, contents: &[u8]) -> Result<PathBuf> {
    let path = tree::product(name);
    tree::store(&path, contents)?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_there_or_not() {
        assert!(has_target(tree::TARGET));
        assert!(!has_target("pdp11-unknown-none"));
    }

    #[test]
    fn executables_are_found_in_cargo_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"x"},"executable":null,"fresh":true}"#,
            "\n",
            r#"{"reason":"compiler-artifact","executable":"/a \"b\"/keel","fresh":true}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(executables(messages), [("keel".to_string(), PathBuf::from("/a \"b\"/keel"))]);
    }
}
