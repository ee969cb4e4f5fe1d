//! A writer for `newc` archives, the format of a Linux initial RAM disk.
//!
//! Written here because the archive must hold device nodes, which no unprivileged `cpio` can be made to pack.
//! Format: `Documentation/driver-api/early-userspace/buffer-format` of Linux: a header of 13 fields of 8 hexadecimal
//! digits, the name, the contents, each padded to four bytes.

/// File types of `st_mode`.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// An archive that is being written.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// Adds a directory; its parents come before it.
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, (0, 0), b"");
    }

    /// Adds an executable file.
    pub fn program(&mut self, path: &str, contents: &[u8]) {
        self.entry(path, REGULAR | 0o755, (0, 0), contents);
    }

    /// Adds a file of data.
    pub fn file(&mut self, path: &str, contents: &[u8]) {
        self.entry(path, REGULAR | 0o644, (0, 0), contents);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes());
    }

    /// Adds a character device.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER | 0o600, (major, minor), b"");
    }

    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), contents: &[u8]) {
        self.inode += 1;
        let size = contents.len() as u32;
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, path.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), b"");
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout_is_newc() {
        let mut archive = Archive::default();
        archive.directory("d");
        archive.program("d/x", b"abcde");
        archive.device("c", 5, 1);
        let bytes = archive.finish();
        // Header 110 bytes, "d\0" makes 112: aligned, no contents.
        assert_eq!(&bytes[..14], b"07070100000001");
        assert_eq!(&bytes[14..22], b"000041ED");
        assert_eq!(&bytes[110..112], b"d\0");
        let second = &bytes[112..];
        assert_eq!(&second[..6], b"070701");
        assert_eq!(&second[54..62], b"00000005", "file size");
        assert_eq!(&second[110..114], b"d/x\0");
        assert_eq!(&second[116..124], b"abcde\0\0\0", "name and contents padded to four");
        let third = &second[124..];
        assert_eq!(&third[78..94], b"0000000500000001", "device numbers");
        assert_eq!(bytes.len() % 4, 0);
        assert!(bytes.windows(10).any(|window| window == b"TRAILER!!!"));
    }

    #[test]
    fn a_foreign_reader_agrees() {
        let mut archive = Archive::default();
        archive.directory("d");
        archive.file("d/data", b"contents");
        archive.link("l", "d/data");
        let bytes = archive.finish();
        let Ok(mut reader) = std::process::Command::new("cpio")
            .args(["-it", "--quiet"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
        else {
            println!("skipped: no cpio here");
            return;
        };
        std::io::Write::write_all(&mut reader.stdin.take().unwrap(), &bytes).unwrap();
        let output = reader.wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "d\nd/data\nl\n");
    }
}
