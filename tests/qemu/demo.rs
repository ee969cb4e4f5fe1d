//! The image alone: keel with the bundle linked into it.

use std::process::{Command, Stdio};

use keel_qemu::machine::Gic;
use keel_qemu::qemu::{Board, run_to_end};
use keel_qemu::symbolize::{Symbols, symbolize};
use keel_qemu::tree;
use keel_qemu::verdict::Verdict;
use libtest_mimic::{Failed, Trial};

use crate::trial::test;
use crate::{LIMIT, Outcome, board, expect, failure, images, run_well};

/// What the demonstration says, in order.
const LINES: &[&str] = &[
    "Hello from the demonstration guest.",
    "exception level   EL1",
    "says hello",
    "tick 5",
    "PSCI_VERSION",
    "Done: powering off.",
];

fn says_its_lines(console: &str) -> Outcome {
    let mut rest = console;
    for line in LINES {
        let Some((_, after)) = rest.split_once(line) else {
            return Err(format!("no `{line}` in its place in the console:\n{console}").into());
        };
        rest = after;
    }
    Ok(())
}

/// Makes keel crash; the report, with functions and lines as `cargo keel symbolize` finds them.
fn crash(how: &str) -> Result<String, Failed> {
    let mut board = board("", &[])?;
    board.append = format!("keel.crash={how}");
    let ending = run_to_end(&board, LIMIT)?;
    if ending.verdict != Verdict::Panicked {
        return Err(failure(&ending, &format!("keel did not crash: {}", ending.verdict)));
    }
    Ok(symbolize(&ending.output, &Symbols::open(&images()?.keel_elf)?))
}

pub fn trials() -> Vec<Trial> {
    let mut trials = vec![
        test("demo::cargo_keel_run_exits_0", || {
            let log = tree::product("test-demo.log");
            let output = Command::new(env!("CARGO_BIN_EXE_keel-qemu"))
                .args(["run", "--timeout", "120", "--log"])
                .arg(&log)
                .stdin(Stdio::null())
                .output()?;
            let console = String::from_utf8_lossy(&output.stdout);
            if !output.status.success() {
                return Err(format!("{}\n{console}{}", output.status, String::from_utf8_lossy(&output.stderr)).into());
            }
            says_its_lines(&console)?;
            expect(&String::from_utf8_lossy(&std::fs::read(&log)?), "Done: powering off.")
        }),
        test("demo::a_run_under_icount_repeats", || {
            let mut board = board("", &[])?;
            board.icount = true;
            let first = run_well(&board)?;
            says_its_lines(&first)?;
            let second = run_well(&board)?;
            if first != second {
                return Err(format!("two runs differ:\n{first}\n{second}").into());
            }
            Ok(())
        }),
        test("demo::debug_level_tells_each_stage", || {
            let mut board = board("", &[])?;
            board.append = "keel.loglevel=debug".into();
            let loud = run_well(&board)?;
            board.append = "keel.loglevel=error".into();
            let quiet = run_well(&board)?;
            if loud.lines().count() <= quiet.lines().count() {
                return Err(format!("debug level adds nothing:\n{loud}").into());
            }
            Ok(())
        }),
        test("demo::a_panic_is_reported", || {
            let report = crash("panic")?;
            expect(&report, "keel.crash=panic asked for this")?;
            expect(&report, "HCR_EL2 0x")?;
            expect(&report, "keel::init::panic::crash at ")?;
            expect(&report, "src/init/start.rs:")
        }),
        test("demo::a_full_stack_is_reported", || {
            let report = crash("stack")?;
            expect(&report, "synchronous exception at EL2: data abort")?;
            expect(&report, "the stack has overflowed")?;
            expect(&report, "x30 0x")?;
            expect(&report, "keel::init::panic::use_stack at ")
        }),
        test("demo::entered_at_el1_says_so", || {
            let mut board = Board::virt(&images()?.keel);
            board.el2 = false;
            let ending = run_to_end(&board, std::time::Duration::from_secs(10))?;
            // It stops after its message, so the end is a time-out or a power-off; either is right.
            if ending.output.contains("EL1") && ending.output.contains("EL2") {
                Ok(())
            } else {
                Err(failure(&ending, "no message that names the exception levels found and expected"))
            }
        }),
    ];
    for cpu in ["max", "cortex-a72", "cortex-a53", "neoverse-n1", "neoverse-v1"] {
        for smp in [1, 4] {
            trials.push(test(format!("demo::{cpu}_{smp}_cpus"), move || {
                let mut board = board("", &[])?;
                (board.cpu, board.smp) = (cpu.into(), smp);
                says_its_lines(&run_well(&board)?)
            }));
        }
    }
    trials.push(test("demo::gicv2_board_runs_or_says_what_is_missing", || {
        let mut board = board("", &[])?;
        (board.gic, board.cpu) = (Gic::V2, "cortex-a72".into());
        let ending = run_to_end(&board, LIMIT)?;
        match ending.verdict {
            Verdict::Well => says_its_lines(&ending.output),
            _ => expect(&ending.output, "GICv2"),
        }
    }));
    trials
}
