//! `cargo keel debug`: QEMU stopped at its first instruction, and a debugger with keel's symbols.
//!
//! keel is position independent and the boot loader chooses where it runs, so the debugger is told the distance
//! between the addresses of the ELF file and those of the machine.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::qemu::{self, Board};
use crate::{elf, tree};

/// The debuggers that are looked for, best first.
const DEBUGGERS: &[&str] = &["gdb-multiarch", "aarch64-linux-gnu-gdb", "aarch64-none-elf-gdb", "gdb", "lldb"];

/// Where QEMU's gdb server listens.
const PORT: u16 = 1234;

/// Writes the debugger's script and returns its path.
fn script(folder: &Path, elf: &Path, offset: u64, debugger: &str) -> Result<PathBuf> {
    let elf = elf.display();
    let (name, text) = if debugger.ends_with("lldb") {
        (
            "debug.lldb",
            format!(
                "target create {elf}\ntarget modules load --file {elf} --slide {offset:#x}\n\
                 gdb-remote localhost:{PORT}\n"
            ),
        )
    } else {
        (
            "debug.gdb",
            format!(
                "set architecture aarch64\nset pagination off\nset confirm off\nadd-symbol-file {elf} -o {offset:#x}\n\
                 target remote localhost:{PORT}\n"
            ),
        )
    };
    let path = folder.join(name);
    fs::write(&path, text).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// The first debugger that is installed and can read aarch64 code.
fn debugger() -> Option<&'static str> {
    DEBUGGERS.iter().copied().find(|name| {
        let mut probe = Command::new(name);
        if *name == "gdb" {
            // A gdb for the host only knows no aarch64.
            probe.args(["-batch", "-ex", "set architecture aarch64"]);
        } else {
            probe.arg("--version");
        }
        probe.stdin(Stdio::null()).stdout(Stdio::null());
        probe.output().is_ok_and(|output| output.status.success() && output.stderr.is_empty())
    })
}

/// Runs `board` under a debugger; with `wait`, or when there is none, QEMU has the terminal and the commands that
/// attach a debugger from another one are printed.
///
/// # Errors
///
/// QEMU or the debugger cannot be started, or the image cannot be read.
pub fn debug(board: &Board, elf: &Path, wait: bool) -> Result<()> {
    let contents = fs::read(elf).with_context(|| elf.display().to_string())?;
    let offset = board.machine.image_address.wrapping_sub(elf::link_base(&contents)?);
    let debugger = debugger();
    let script = script(&tree::build(), elf, offset, debugger.unwrap_or("gdb"))?;
    let mut command = board.command();
    command.args(["-S", "-gdb", &format!("tcp:localhost:{PORT}")]);
    let source = if debugger == Some("lldb") { "-s" } else { "-x" };
    let Some(debugger) = debugger.filter(|_| !wait) else {
        println!("QEMU waits for a debugger; in another terminal: gdb-multiarch -x {}", tree::show(&script));
        println!("(or with lldb: gdb-remote localhost:{PORT}; keel runs {offset:#x} above its ELF addresses)");
        command.args(["-serial", "mon:stdio"]);
        let status = command.status().with_context(|| format!("cannot start {}", qemu::PROGRAM))?;
        anyhow::ensure!(status.success(), "QEMU ended with {status}");
        return Ok(());
    };
    let log = tree::product("debug.log");
    command.args(["-monitor", "none", "-serial", &format!("file:{}", log.display())]);
    println!("{}", qemu::shown(&command));
    println!("the guest's console goes to {}", tree::show(&log));
    // A process group of its own, so that Ctrl-C in the debugger interrupts the guest and not QEMU.
    let mut child = command.process_group(0).stdin(Stdio::null()).spawn().context("cannot start QEMU")?;
    std::thread::sleep(std::time::Duration::from_millis(300));
    let status = Command::new(debugger).arg(source).arg(&script).status();
    qemu::stop(&mut child);
    status.with_context(|| format!("cannot start {debugger}"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_loads_symbols_where_the_image_runs() {
        let folder = tempfile::tempdir().unwrap();
        let path = script(folder.path(), Path::new("/x/keel.elf"), 0x4020_0000, "gdb").unwrap();
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains("add-symbol-file /x/keel.elf -o 0x40200000"), "{text}");
        assert!(text.contains("target remote localhost:1234"), "{text}");
    }
}
