//! Trials, with a second attempt.
//!
//! The CPUs of QEMU's boards are threads of a host that others use too, and some trials need two of them to make progress
//! within some seconds. So a trial that fails is run once more. It has failed if it fails again; if it does not, the run says at its end which
//! trial it was and where the first failure is written, because it may be a race of keel's own.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use keel_qemu::tree;
use libtest_mimic::{Completion, Failed, Trial};

/// What passed only at the second attempt.
static UNSTEADY: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// More than this in one run is no accident: the rest fail at their first failure.
const SECOND_ATTEMPTS: usize = 5;

fn twice<T>(name: &str, run: impl Fn() -> Result<T, Failed>) -> Result<T, Failed> {
    static USED: AtomicUsize = AtomicUsize::new(0);
    let first = match run() {
        Err(failed) if USED.fetch_add(1, Relaxed) < SECOND_ATTEMPTS => failed,
        result => return result,
    };
    let log = tree::product(&format!("test-first-failure-{}.log", name.replace("::", "-")));
    let text = first.message().unwrap_or("no message");
    std::fs::write(&log, text)?;
    let second = run().map_err(|failed| {
        let second = failed.message().unwrap_or("no message");
        Failed::from(format!("{second}\n\nthe attempt before failed with:\n{text}"))
    })?;
    let mut unsteady = UNSTEADY.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    unsteady.push(format!("{name}: first failure in {}", log.display()));
    Ok(second)
}

/// A trial called `name`.
pub fn test(name: impl Into<String>, run: impl Fn() -> Result<(), Failed> + Send + 'static) -> Trial {
    let name = name.into();
    Trial::test(name.clone(), move || twice(&name, run))
}

/// A trial that may say that it cannot be run here.
pub fn ignorable_test(name: impl Into<String>, run: impl Fn() -> Result<Completion, Failed> + Send + 'static) -> Trial {
    let name = name.into();
    Trial::ignorable_test(name.clone(), move || twice(&name, run))
}

/// Says which trials needed their second attempt.
pub fn report() {
    let unsteady = UNSTEADY.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if !unsteady.is_empty() {
        println!("passed at the second attempt only:\n    {}", unsteady.join("\n    "));
    }
}
