//! The host tool's library: everything `cargo keel` and the QEMU tests share.
//!
//! The command line (`main.rs`) only parses arguments; what a command does is a module here, so that the tests in
//! `tests/qemu` build images, write bundles and boot machines with exactly the code a user runs.
//!
//! | module | what it does |
//! |---|---|
//! | [`tree`] | where the sources and the build products are |
//! | [`image`] | compiles keel and the test kernel, flattens ELF files into raw images ([`elf`]) |
//! | [`vms`] → [`fit`] | `vms.toml` → a FIT bundle |
//! | [`machine`], [`qemu`] | the boards QEMU models, and a QEMU process with its console |
//! | [`verdict`] | what a console transcript says about how keel ended |
//! | [`run`], [`debug`], [`mod@bench`], [`symbolize`] | the commands |
//! | [`oracle`] | the same machine on keel and on Linux's KVM |
//! | [`fetch`], [`initramfs`], [`cpio`] | Debian's kernels and a small user space for them |

pub mod bench;
pub mod cpio;
pub mod debug;
pub mod elf;
pub mod fetch;
pub mod fit;
pub mod image;
pub mod initramfs;
pub mod machine;
pub mod oracle;
pub mod qemu;
pub mod run;
pub mod symbolize;
pub mod tree;
pub mod verdict;
pub mod vms;

/// The command line or a file it names is at fault: the process ends with status 2 and this text.
///
/// Everything else that goes wrong (a compiler error, a full disk) is an ordinary [`anyhow::Error`] and ends with 1.
#[derive(Debug)]
pub struct BadInput(pub String);

impl std::fmt::Display for BadInput {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for BadInput {}

/// Shorthand for a [`BadInput`] with a formatted message.
#[macro_export]
macro_rules! bad_input {
    ($($argument:tt)*) => { $crate::BadInput(format!($($argument)*)) };
}
