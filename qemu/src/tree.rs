//! Where things are: the source tree and the build products.
//!
//! The tool is always built from the tree it serves, so the tree's root is known at compile time; running from any
//! directory works, and relative paths on the command line stay relative to the caller.

use std::path::{Path, PathBuf};

/// The target keel and its test kernel are compiled for.
pub const TARGET: &str = "aarch64-unknown-none-softfloat";

/// The root of the source tree.
pub fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest)
}

/// `build/`, where images, bundles and fetched guests are put.
pub fn build() -> PathBuf {
    root().join("build")
}

/// A file in `build/`.
pub fn product(name: &str) -> PathBuf {
    build().join(name)
}

/// `build/guests/NAME`, where [`crate::fetch`] puts a foreign kernel.
pub fn guest(name: &str) -> PathBuf {
    build().join("guests").join(name)
}

/// `path` as a user would like to read it: relative to the current directory when it lies below.
pub fn show(path: &Path) -> String {
    let current = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&current).unwrap_or(path).display().to_string()
}
