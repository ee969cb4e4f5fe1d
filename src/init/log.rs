//! An image's messages: the `log` facade on the machine's console, each line with the image's name.

use crate::vmm::console;
use log::{Level, LevelFilter, Log, Metadata, Record};

/// Where log records go, under a name.
pub struct Logger(&'static str);

/// Messages of `keel`.
pub static KEEL: Logger = Logger("keel");
/// Messages of `keel-stub`.
pub static STUB: Logger = Logger("keel-stub");

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
        console::line(format_args!("{}: {label}{}", self.0, record.args()));
    }

    fn flush(&self) {
        console::flush();
    }
}

/// Starts logging, at first with `info`.
pub fn start(logger: &'static Logger) {
    // Only a second call fails, and then there is a logger already.
    let _ = log::set_logger(logger);
    set_level(LevelFilter::Info);
}

/// Sets what is logged (`keel.loglevel=`).
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}
