//! The command line from outside: exit statuses and messages a user meets.

use std::process::{Command, Output};

use keel_qemu::tree;
use libtest_mimic::Trial;

use crate::Outcome;
use crate::trial::test;

/// The tool, as cargo built it beside these tests.
fn keel(arguments: &[&str]) -> std::io::Result<Output> {
    Command::new(env!("CARGO_BIN_EXE_keel-qemu")).args(arguments).stdin(std::process::Stdio::null()).output()
}

/// Runs the tool and requires its status and a text on either output.
fn expect(arguments: &[&str], status: i32, text: &str) -> Outcome {
    let output = keel(arguments)?;
    let shown = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.code() != Some(status) || !shown.contains(text) {
        return Err(
            format!("{arguments:?}: expected status {status} and `{text}`, got {}:\n{shown}", output.status).into()
        );
    }
    Ok(())
}

pub fn trials() -> Vec<Trial> {
    vec![
        test("tool::bad_arguments_end_with_2", || {
            expect(&["run", "--kernle", "x"], 2, "--kernel")?;
            expect(&["run", "--cpus", "2"], 2, "--cpus needs --kernel")?;
            expect(&["run", "--machine", "sbsa-ref"], 2, "known machines: virt")?;
            expect(&["run", "--kernel", "/nonexistent/Image"], 2, "/nonexistent/Image")?;
            expect(&["run", "/nonexistent/vms.toml"], 2, "/nonexistent/vms.toml")?;
            expect(&["run", "--timeout=-1"], 2, "seconds")
        }),
        test("tool::bad_lists_name_the_file_and_the_key", || {
            let folder = tempfile::tempdir()?;
            let list = folder.path().join("vms.toml");
            let output = folder.path().join("vms.itb");
            std::fs::write(&list, "[[vm]]\nname = \"a\"\nkernel = \"Image\"\nmemroy = \"1G\"\n")?;
            let arguments = ["bundle", &list.display().to_string(), "-o", &output.display().to_string()];
            expect(&arguments, 2, "vms.toml")?;
            expect(&arguments, 2, "memroy")?;
            std::fs::write(&list, "[[vm]]\nname = \"a\"\nkernel = \"Image\"\n")?;
            // The path is relative to the list, not to where the tool runs.
            expect(&arguments, 2, &folder.path().join("Image").display().to_string())?;
            if output.exists() {
                return Err("a bundle was written all the same".into());
            }
            Ok(())
        }),
        test("tool::help_shows_examples", || {
            expect(&["--help"], 0, "bundle")?;
            expect(&["run", "--help"], 0, "cargo keel run --kernel Image")?;
            expect(&["bundle", "--help"], 0, "[[vm]]")
        }),
        test("tool::time_out_ends_with_124", || {
            crate::images()?;
            // An endless guest: two instructions, `wfi` and a branch back to it.
            let kernel = tree::product("test-endless.bin");
            tree::store(&kernel, &[0x7f, 0x20, 0x03, 0xd5, 0xff, 0xff, 0xff, 0x17])?;
            expect(&["run", "--kernel", &kernel.display().to_string(), "--timeout", "5"], 124, "the time was up")
        }),
    ]
}
