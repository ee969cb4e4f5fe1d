//! Where things are: the source tree and the build products.
//!
//! The tool is always built from the tree it serves, so the tree's root is known at compile time; running from any
//! directory works, and relative paths on the command line stay relative to the caller.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// The target keel and its test kernel are compiled for.
pub const TARGET: &str = "aarch64-unknown-none-softfloat";

/// The target of programs that run on the Linux in QEMU: static, and linked by the linker that comes with Rust.
pub const LINUX_TARGET: &str = "aarch64-unknown-linux-musl";

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

/// Writes a file, with its folders, unless it already has these contents.
///
/// The file appears with all of its contents at once, so that a QEMU that is starting never reads half of it.
///
/// # Errors
///
/// The error names the file.
pub fn store(path: &Path, contents: &[u8]) -> io::Result<()> {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    if std::fs::read(path).is_ok_and(|old| old == contents) {
        return Ok(());
    }
    let fault = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let folder = path.parent().unwrap_or(Path::new(""));
    std::fs::create_dir_all(folder).map_err(fault)?;
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let partial = folder.join(format!(".partial-{}-{serial}", std::process::id()));
    let written = std::fs::write(&partial, contents).and_then(|()| std::fs::rename(&partial, path));
    written.map_err(|error| {
        let _ = std::fs::remove_file(&partial);
        fault(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_the_same_contents_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        store(&path, b"one").unwrap();
        let first = std::fs::metadata(&path).unwrap().modified().unwrap();
        store(&path, b"one").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), first);
        store(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(folder.path().join("a")).unwrap().count(), 1, "nothing is left behind");
        let error = store(&path.join("below-a-file"), b"x").unwrap_err().to_string();
        assert!(error.contains("below-a-file"), "{error}");
    }
}
