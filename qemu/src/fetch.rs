//! `cargo keel fetch debian`: Debian's kernels and busybox, without touching the host's package database.
//!
//! They are arm64's, and armhf's for machines whose EL1 is AArch32. apt runs with directories of its own under
//! `build/guests/apt` (`apt-armhf`) and the architecture set; its sources are the Debian mirrors the machine already uses (no
//! mirror is named here), with Debian 12 and its backports added, because those carry the kernels the tests want. Packages
//! are unpacked, never installed, and are kept, so that a second run only looks whether everything is there.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{initramfs, tree};

/// Kernel series that are fetched: the folder under `build/guests` and how its release starts.
pub const KERNELS: &[(&str, &str)] = &[("linux-6.1", "6.1."), ("linux-6.12", "6.12.")];

/// Device trees of boards that QEMU models without having one: the file under `build/guests`, and its name in the package
/// of the kernel 6.12.
pub const BOARD_TREES: &[(&str, &str)] =
    &[("bcm2711-rpi-4-b.dtb", "./usr/lib/linux-image-*/broadcom/bcm2711-rpi-4-b.dtb")];

/// The folder under `build/guests` of Debian's 32-bit kernel, and how its release starts.
pub const KERNEL_ARMHF: (&str, &str) = ("linux-armhf", "6.1.");

/// The 32-bit kernel.
pub fn kernel_path_armhf() -> PathBuf {
    tree::guest(KERNEL_ARMHF.0).join("zImage")
}

/// The archive that goes with it.
pub fn initramfs_path_armhf() -> PathBuf {
    tree::guest(KERNEL_ARMHF.0).join("initramfs.cpio")
}

/// What is missing of it, as a reason to skip.
pub fn missing_armhf() -> Option<String> {
    absent(&[kernel_path_armhf(), initramfs_path_armhf()])
}

/// Where the archive is that all kernels share.
pub fn initramfs_path() -> PathBuf {
    tree::guest("initramfs.cpio")
}

/// The kernel of a folder of [`KERNELS`].
pub fn kernel_path(folder: &str) -> PathBuf {
    tree::guest(folder).join("Image")
}

/// What is missing, as a reason to skip; `None` when a kernel and the archive are there.
pub fn missing(folder: &str) -> Option<String> {
    absent(&[kernel_path(folder), initramfs_path()])
}

/// The same for a tree of [`BOARD_TREES`] and the kernel 6.12.
pub fn missing_board(tree: &str) -> Option<String> {
    absent(&[kernel_path("linux-6.12"), initramfs_path(), tree::guest(tree)])
}

fn absent(files: &[PathBuf]) -> Option<String> {
    let absent = files.iter().find(|file| !file.exists())?;
    Some(format!("{} is not there; `cargo keel fetch debian` brings it", tree::show(absent)))
}

/// The suites that carry the kernels.
const SUITES: &[&str] = &["bookworm", "bookworm-backports"];

/// The keyring that vouches for them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Fetches what is missing; `mirror` overrides the machine's own.
///
/// # Errors
///
/// There is no apt, no Debian mirror, no network, or the packages are not found: the message says which.
pub fn debian(mirror: Option<&str>, again: bool) -> Result<()> {
    let busybox = tree::guest("busybox");
    let complete = |folder: &str| kernel_path(folder).exists() && module(folder).is_some();
    let wanted: Vec<_> = KERNELS.iter().filter(|(folder, _)| again || !complete(folder)).collect();
    if !wanted.is_empty() || again || !busybox.exists() {
        let apt = Apt::new(mirror, "arm64")?;
        apt.update()?;
        for (folder, series) in wanted {
            let package = apt.kernel_package("linux-image-arm64", series)?;
            let deb = apt.download(&package)?;
            let image = read_member(&deb, "./boot/vmlinuz-*")?;
            tree::store(&kernel_path(folder), &image)?;
            for suffix in ["ko", "ko.xz"] {
                let name = format!("{MODULE}.{suffix}");
                if let Ok(contents) = read_member(&deb, &format!("*/{name}")) {
                    tree::store(&tree::guest(folder).join(name), &contents)?;
                }
            }
            tree::store(&tree::guest(folder).join("package"), format!("{package}\n").as_bytes())?;
            println!("{}: {package}, {} bytes", tree::show(&kernel_path(folder)), image.len());
        }
        let deb = apt.download("busybox-static")?;
        tree::store(&busybox, &read_member(&deb, "./bin/busybox")?)?;
    }
    for (file, pattern) in BOARD_TREES {
        let path = tree::guest(file);
        if again || !path.exists() {
            let package = std::fs::read_to_string(tree::guest("linux-6.12").join("package"))?;
            let deb = only_deb(&tree::guest("apt").join("debs").join(package.trim()))
                .with_context(|| format!("the package {} is gone; fetch it again with --again", package.trim()))?;
            tree::store(&path, &read_member(&deb, pattern)?)?;
            println!("{}: from {}", tree::show(&path), package.trim());
        }
    }
    let modules: Vec<_> = KERNELS.iter().filter_map(|(folder, _)| module(folder)).collect();
    let archive = initramfs::pack(&std::fs::read(&busybox)?, &modules);
    if std::fs::read(initramfs_path()).ok().as_deref() != Some(&archive[..]) {
        tree::store(&initramfs_path(), &archive)?;
        println!("{}: {} bytes", tree::show(&initramfs_path()), archive.len());
    }
    armhf(mirror, again)?;
    for folder in KERNELS.iter().map(|(folder, _)| folder).chain([&KERNEL_ARMHF.0]) {
        let package = std::fs::read_to_string(tree::guest(folder).join("package")).unwrap_or_default();
        println!("{}: ready ({})", tree::show(&tree::guest(folder)), package.trim());
    }
    Ok(())
}

/// The 32-bit kernel for CPUs with long descriptors, and a busybox for it.
fn armhf(mirror: Option<&str>, again: bool) -> Result<()> {
    let (folder, series) = KERNEL_ARMHF;
    if !again && missing_armhf().is_none() {
        return Ok(());
    }
    let apt = Apt::new(mirror, "armhf")?;
    apt.update()?;
    let package = apt.kernel_package("linux-image-armmp-lpae", series)?;
    let image = read_member(&apt.download(&package)?, "./boot/vmlinuz-*")?;
    tree::store(&kernel_path_armhf(), &image)?;
    let busybox = read_member(&apt.download("busybox-static")?, "./bin/busybox")?;
    tree::store(&initramfs_path_armhf(), &initramfs::pack(&busybox, &[]))?;
    tree::store(&tree::guest(folder).join("package"), format!("{package}\n").as_bytes())?;
    println!("{}: {package}, {} bytes", tree::show(&kernel_path_armhf()), image.len());
    Ok(())
}

/// The driver of the TRNG calls, which Debian's kernels have as a module.
const MODULE: &str = "arm_smccc_trng";

/// That module of a folder of [`KERNELS`]; the release is the package's name without its beginning.
fn module(folder: &str) -> Option<initramfs::Module> {
    let package = std::fs::read_to_string(tree::guest(folder).join("package")).ok()?;
    let release = package.trim().strip_prefix("linux-image-")?.to_string();
    ["ko", "ko.xz"].into_iter().find_map(|suffix| {
        let name = format!("{MODULE}.{suffix}");
        let contents = std::fs::read(tree::guest(folder).join(&name)).ok()?;
        Some(initramfs::Module { release: release.clone(), name, contents })
    })
}

/// One file of a package, by a pattern that matches only it.
fn read_member(deb: &Path, pattern: &str) -> Result<Vec<u8>> {
    let mut unpack = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start dpkg-deb")?;
    let archive = unpack.stdout.take().context("dpkg-deb has no output")?;
    let output = Command::new("tar")
        .args(["-x", "-O", "-f", "-", "--wildcards", pattern])
        .stdin(archive)
        .output()
        .context("cannot start tar")?;
    let _ = unpack.wait();
    if output.stdout.is_empty() {
        bail!("{} has no {pattern}: {}", deb.display(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

/// apt with directories of its own.
struct Apt {
    folder: PathBuf,
    architecture: &'static str,
}

impl Apt {
    fn new(mirror: Option<&str>, architecture: &'static str) -> Result<Self> {
        for program in ["apt-get", "apt-cache", "dpkg-deb", "tar"] {
            let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
            if found.is_err() {
                bail!("there is no `{program}` here; Debian's packages can be fetched on Debian and Ubuntu hosts only");
            }
        }
        let sources = match mirror {
            Some(mirror) => vec![format!("{mirror}\t{KEYRING}")],
            None => debian_mirrors(Path::new("/etc/apt")),
        };
        if sources.is_empty() {
            bail!(
                "this machine's apt sources name no Debian mirror (an Ubuntu or other host?); \
                 name one with --mirror URL and install debian-archive-keyring"
            );
        }
        let folder = tree::guest(if architecture == "arm64" { "apt" } else { "apt-armhf" });
        for sub in ["state/lists/partial", "cache/archives/partial", "debs"] {
            std::fs::create_dir_all(folder.join(sub))?;
        }
        std::fs::write(folder.join("status"), "")?;
        let mut list = String::new();
        for source in &sources {
            let (mirror, keyring) = source.split_once('\t').unwrap_or((source, KEYRING));
            for suite in SUITES {
                list.push_str(&format!("deb [arch={architecture} signed-by={keyring}] {mirror} {suite} main\n"));
            }
        }
        std::fs::write(folder.join("sources.list"), list)?;
        Ok(Apt { folder: folder.canonicalize()?, architecture })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let mut option = |name: &str, value: &str| {
            command.arg("-o").arg(format!("{name}={value}"));
        };
        let at = |name: &str| self.folder.join(name).display().to_string();
        option("Dir::State", &at("state"));
        option("Dir::State::status", &at("status"));
        option("Dir::Cache", &at("cache"));
        option("Dir::Etc::SourceList", &at("sources.list"));
        option("Dir::Etc::SourceParts", "/dev/null");
        option("Dir::Etc::Preferences", "/dev/null");
        option("Dir::Etc::PreferencesParts", "/dev/null");
        option("APT::Architecture", self.architecture);
        option("APT::Architectures::", self.architecture);
        option("Acquire::Languages", "none");
        option("Acquire::Retries", "2");
        // The sandbox user cannot write below a user's directory; these directories are all apt may touch.
        option("APT::Sandbox::User", "root");
        option("APT::Get::Assume-Yes", "true");
        command.env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    fn update(&self) -> Result<()> {
        let bar = spinner("reading Debian's package lists");
        let output = self.command("apt-get").arg("update").output().context("cannot start apt-get")?;
        bar.finish_and_clear();
        let lists = std::fs::read_dir(self.folder.join("state/lists"))?;
        let any = lists.filter_map(Result::ok).any(|entry| entry.file_name().to_string_lossy().contains("Packages"));
        if !any {
            bail!(
                "Debian's mirror cannot be reached (offline?); the kernels are not fetched. apt said:\n{}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        if !output.status.success() {
            eprintln!("not every suite could be read: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// The package behind the newest `name` of a series.
    fn kernel_package(&self, name: &str, series: &str) -> Result<String> {
        let output = self.command("apt-cache").args(["show", name]).output()?;
        newest_kernel(&String::from_utf8_lossy(&output.stdout), series)
            .with_context(|| format!("no {name} {series}* in {}", SUITES.join(", ")))
    }

    fn download(&self, package: &str) -> Result<PathBuf> {
        let folder = self.folder.join("debs").join(package);
        if let Some(deb) = only_deb(&folder) {
            return Ok(deb);
        }
        let partial = self.folder.join("debs").join(format!(".{package}"));
        let _ = std::fs::remove_dir_all(&partial);
        std::fs::create_dir_all(&partial)?;
        let bar = ProgressBar::new(100).with_message(package.to_string());
        let style = ProgressStyle::with_template("{spinner} {msg} [{bar:40}] {percent}%");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(100));
        if bar.is_hidden() {
            println!("fetching {package}");
        }
        let mut command = self.command("apt-get");
        command.current_dir(&partial).args(["-o", "APT::Status-Fd=1", "-qq", "download", package]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        if let Some(status) = child.stdout.take() {
            // "dlstatus:ITEM:PERCENT:text" on the status descriptor.
            for line in std::io::BufRead::lines(std::io::BufReader::new(status)).map_while(Result::ok) {
                let percent = line.strip_prefix("dlstatus:").and_then(|rest| rest.split(':').nth(1));
                if let Some(percent) = percent.and_then(|percent| percent.parse::<f64>().ok()) {
                    bar.set_position(percent as u64);
                }
            }
        }
        let output = child.wait_with_output()?;
        bar.finish_and_clear();
        if !output.status.success() {
            bail!("cannot fetch {package}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::rename(&partial, &folder)?;
        only_deb(&folder).with_context(|| format!("apt left no package in {}", folder.display()))
    }
}

fn spinner(message: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(message.to_string());
    bar.enable_steady_tick(Duration::from_millis(100));
    if bar.is_hidden() {
        println!("{message}");
    }
    bar
}

fn only_deb(folder: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    entries.filter_map(Result::ok).map(|entry| entry.path()).find(|path| path.extension().is_some_and(|e| e == "deb"))
}

/// The first real package of a series that a kernel's stanza depends on; stanzas come newest first.
fn newest_kernel(stanzas: &str, series: &str) -> Option<String> {
    let depends = stanzas.lines().filter_map(|line| line.strip_prefix("Depends: "));
    let packages = depends.flat_map(|list| list.split(',')).filter_map(|item| item.split_whitespace().next());
    packages.filter(|name| name.starts_with(&format!("linux-image-{series}"))).map(str::to_string).next()
}

/// The Debian mirrors of a machine, each as `URL<TAB>KEYRING`, in the order its sources name them.
///
/// A mirror is taken for Debian's when its suite is a Debian code name and its component is `main`; security and
/// third-party archives are left out.
fn debian_mirrors(etc: &Path) -> Vec<String> {
    let mut files = vec![etc.join("sources.list")];
    let mut parts: Vec<_> = std::fs::read_dir(etc.join("sources.list.d"))
        .map(|entries| entries.filter_map(Result::ok).map(|entry| entry.path()).collect())
        .unwrap_or_default();
    parts.sort();
    files.extend(parts);
    let mut mirrors = Vec::new();
    for file in files {
        let Ok(text) = std::fs::read_to_string(&file) else { continue };
        let found = match file.extension().and_then(|extension| extension.to_str()) {
            Some("sources") => deb822_mirrors(&text),
            _ => one_line_mirrors(&text),
        };
        for mirror in found {
            if !mirrors.contains(&mirror) {
                mirrors.push(mirror);
            }
        }
    }
    mirrors
}

/// Debian's code names, with which a mirror of Debian is told from another distribution's.
const CODE_NAMES: &[&str] =
    &["bullseye", "bookworm", "trixie", "forky", "sid", "stable", "testing", "unstable", "oldstable"];

fn is_debian(uri: &str, suites: &str, components: &str) -> bool {
    let debian = suites.split_whitespace().any(|suite| {
        let base = suite.strip_suffix("-backports").or(suite.strip_suffix("-updates")).unwrap_or(suite);
        CODE_NAMES.contains(&base)
    });
    let fetchable = ["http://", "https://", "file:", "mirror+"].iter().any(|scheme| uri.starts_with(scheme));
    debian && fetchable && components.split_whitespace().any(|component| component == "main")
}

fn deb822_mirrors(text: &str) -> Vec<String> {
    let mut mirrors = Vec::new();
    for stanza in text.split("\n\n") {
        let field = |name: &str| {
            let line = stanza.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")))?;
            Some(line.split_once(':')?.1.trim().to_string())
        };
        let (Some(uris), Some(suites)) = (field("uris"), field("suites")) else { continue };
        let keyring = field("signed-by").filter(|keyring| keyring.starts_with('/')).unwrap_or(KEYRING.into());
        let enabled = field("enabled").is_none_or(|value| value != "no");
        for uri in uris.split_whitespace() {
            if enabled && is_debian(uri, &suites, &field("components").unwrap_or_default()) {
                mirrors.push(format!("{}\t{keyring}", uri.trim_end_matches('/')));
            }
        }
    }
    mirrors
}

fn one_line_mirrors(text: &str) -> Vec<String> {
    let mut mirrors = Vec::new();
    for line in text.lines() {
        let Some(rest) = line.trim().strip_prefix("deb ") else { continue };
        let (options, rest) = match rest.trim_start().strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((options, rest)) => (options, rest),
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else { continue };
        let components: Vec<_> = words.take_while(|word| !word.starts_with('#')).collect();
        let keyring = options.split_whitespace().find_map(|option| option.strip_prefix("signed-by="));
        if is_debian(uri, suite, &components.join(" ")) {
            mirrors.push(format!("{}\t{}", uri.trim_end_matches('/'), keyring.unwrap_or(KEYRING)));
        }
    }
    mirrors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_read_from_both_formats() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("sources.list.d")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write(
            "sources.list",
            "# comment\ndeb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian/ bookworm main contrib\n\
             deb http://security.example/debian-security bookworm-security main\ndeb-src http://x.example/ sid main\n",
        );
        write(
            "sources.list.d/debian.sources",
            "Types: deb\n# old: http://no.example\nURIs: http://other.example/debian\nSuites: trixie trixie-updates\n\
             Components: main\nSigned-By: /usr/share/keyrings/x.gpg\n\nTypes: deb\nURIs: https://node.example/x\n\
             Suites: nodistro\nComponents: main\n\nEnabled: no\nURIs: http://off.example\nSuites: sid\nComponents: main\n",
        );
        assert_eq!(
            debian_mirrors(folder.path()),
            ["http://mirror.example/debian\t/k.gpg", "http://other.example/debian\t/usr/share/keyrings/x.gpg"]
        );
    }

    #[test]
    fn ubuntu_has_no_debian_mirror() {
        assert!(one_line_mirrors("deb http://archive.example/ubuntu noble main universe\n").is_empty());
    }

    #[test]
    fn the_newest_kernel_of_each_series_is_chosen() {
        let stanzas = "Package: linux-image-arm64\nDepends: linux-image-6.12.95+deb12-arm64 (= 6.12.95-1~bpo12+1)\n\n\
            Depends: linux-image-6.1.0-50-arm64 (= 6.1.176-1)\n\nDepends: linux-image-6.1.0-49-arm64 (= 6.1.170-1)\n";
        assert_eq!(newest_kernel(stanzas, "6.12.").as_deref(), Some("linux-image-6.12.95+deb12-arm64"));
        assert_eq!(newest_kernel(stanzas, "6.1.").as_deref(), Some("linux-image-6.1.0-50-arm64"));
        assert_eq!(newest_kernel(stanzas, "6.99."), None);
    }
}
