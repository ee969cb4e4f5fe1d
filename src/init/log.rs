//! keel's messages: the `log` facade on the machine's console.

use crate::vmm::console;
use log::{Level, LevelFilter, Log, Metadata, Record};

struct Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let label = match record.level() {
            Level::Error => "error: ",
            Level::Warn => "warning: ",
            Level::Info => "",
            Level::Debug | Level::Trace => "debug: ",
        };
        console::line(format_args!("keel: {label}{}", record.args()));
    }

    fn flush(&self) {
        console::flush();
    }
}

/// Starts logging, at first with `info`.
pub fn start() {
    // Only a second call fails, and then the logger is this one already.
    let _ = log::set_logger(&Logger);
    set_level(LevelFilter::Info);
}

/// Sets what is logged (`keel.loglevel=`).
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}
