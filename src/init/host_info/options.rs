//! keel's own command line: words that begin with `keel.`; the rest is somebody else's.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use log::LevelFilter;

/// What the command line asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeelOptions {
    /// `keel.loglevel=error|warn|info|debug|trace`, `info` when absent.
    pub log_level: LevelFilter,
    /// `keel.stats=1`: print what keel itself cost when a VM ends.
    pub stats: bool,
    /// `keel.crash=panic|stack`: end in a panic, or by running out of stack, to see what a report looks like.
    pub crash: Option<Crash>,
}

/// A way to end on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// A panic.
    Panic,
    /// The stack's guard page.
    Stack,
}

impl Default for KeelOptions {
    fn default() -> Self {
        Self { log_level: LevelFilter::Info, stats: false, crash: None }
    }
}

const LEVELS: [(&str, LevelFilter); 5] = [
    ("error", LevelFilter::Error),
    ("warn", LevelFilter::Warn),
    ("info", LevelFilter::Info),
    ("debug", LevelFilter::Debug),
    ("trace", LevelFilter::Trace),
];

impl KeelOptions {
    /// Reads `bootargs`; a `keel.` word that makes no sense changes nothing and becomes a warning.
    pub(super) fn parse(bootargs: &str, warnings: &mut Vec<String>) -> Self {
        let mut options = Self::default();
        for word in bootargs.split_ascii_whitespace().filter(|word| word.starts_with("keel.")) {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            let expected = match name {
                "keel.loglevel" => match LEVELS.iter().find(|(level, _)| *level == value) {
                    Some(&(_, level)) => {
                        options.log_level = level;
                        continue;
                    }
                    None => "error, warn, info, debug or trace",
                },
                "keel.stats" => match value {
                    "0" | "1" => {
                        options.stats = value == "1";
                        continue;
                    }
                    _ => "0 or 1",
                },
                "keel.crash" => match value {
                    "panic" | "stack" => {
                        options.crash = Some(if value == "panic" { Crash::Panic } else { Crash::Stack });
                        continue;
                    }
                    _ => "panic or stack",
                },
                _ => {
                    warnings.push(format!(
                        "/chosen: bootargs: unknown option {word}, known are keel.loglevel, keel.stats and keel.crash"
                    ));
                    continue;
                }
            };
            warnings.push(format!("/chosen: bootargs: {name} is \"{value}\", expected {expected}; ignored"));
        }
        options
    }
}
