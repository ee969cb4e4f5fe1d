//! The user space foreign kernels are tested with: busybox and one script.
//!
//! What the script does is chosen by a word on the kernel's command line, so one archive serves every test:
//!
//! | word | what happens |
//! |---|---|
//! | `keel.test=1` | a report between markers, then power off |
//! | `keel.test=reboot` | the first marker, then reboot |
//! | `keel.test=bench` | the first marker, then power off |
//! | none | an interactive shell with job control |

use crate::cpio::Archive;

/// Printed when user space is reached.
pub const INIT: &str = "KEEL-INIT";

/// Printed when the report is complete.
pub const DONE: &str = "KEEL-DONE";

/// Printed by the shell's prompt script before it hands over to the user.
pub const SHELL: &str = "KEEL-SHELL";

/// The `/init` script.
const SCRIPT: &str = r#"#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp
/bin/busybox mount -t proc proc /proc
mode=shell
for word in $(/bin/busybox cat /proc/cmdline); do
    case $word in keel.test=*) mode=${word#keel.test=} ;; esac
done
# Nothing below the marker belongs to the boot that is measured.
case $mode in
bench)
    echo KEEL-INIT
    exec /bin/busybox poweroff -f ;;
reboot)
    echo KEEL-INIT
    exec /bin/busybox reboot -f ;;
esac
export PATH=/bin HOME=/ TERM=vt100
/bin/busybox --install -s /bin
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
if [ "$mode" = shell ]; then
    echo
    echo "$(uname -srm) on $(nproc) CPU(s). Type 'poweroff -f' to end, 'reboot -f' to start again."
    echo KEEL-SHELL
    # A shell that is left is started again; job control needs a terminal of its own.
    while true; do setsid cttyhack sh; done
fi
echo KEEL-INIT
count=$(nproc)
echo "nproc=$count"
echo "uname=$(uname -srm)"
echo "date=$(date -u +%s)"
# Each CPU in turn sleeps and computes, so that its own timer must have fired.
cpu=0
while [ $cpu -lt $count ]; do
    mask=$(printf %x $((1 << cpu)))
    taskset $mask sh -c 'sleep 0.05; i=0; while [ $i -lt 2000 ]; do i=$((i + 1)); done' && echo "cpu$cpu=ok"
    cpu=$((cpu + 1))
done
echo KEEL-INTERRUPTS-BEGIN
cat /proc/interrupts
echo KEEL-INTERRUPTS-END
dmesg -r | grep '^<[0-4]>' >/tmp/warnings
echo KEEL-WARNINGS-BEGIN
cat /tmp/warnings
echo KEEL-WARNINGS-END
# Kernels that have the driver as a module.
for module in /lib/modules/$(uname -r)/*; do
    case $module in *.xz) xzcat $module >/tmp/module.ko; module=/tmp/module.ko ;; esac
    [ -e $module ] && insmod $module
done
echo "rng=$(cat /sys/class/misc/hw_random/rng_available)"
echo "rng-bytes=$(dd if=/dev/hwrng bs=16 count=4 2>/dev/null | wc -c)"
echo "ptp=$(cat /sys/class/ptp/ptp0/clock_name)"
[ -x /bin/ptp-time ] && echo "ptp-time=$(/bin/ptp-time) date=$(date -u +%s)"
echo "services=$(dmesg | grep -c 'KVM: hypervisor services detected')"
echo "stolen-time=$(dmesg | grep -c 'arm-pv: using stolen time PV')"
set -- $(head -n 1 /proc/stat)
echo "steal=$9"
echo "warnings=$(wc -l </tmp/warnings)"
echo "el=$(dmesg | grep -o 'CPU(s) started at EL[0-9]')"
echo KEEL-DONE
poweroff -f
sleep 60
"#;

/// A kernel module that is loaded for the report.
#[derive(Clone, Debug)]
pub struct Module {
    /// The kernel's release, as `uname -r` says it.
    pub release: String,
    /// The file's name; one that ends in `.xz` is compressed.
    pub name: String,
    /// The file.
    pub contents: Vec<u8>,
}

/// Packs the archive around a static arm64 busybox.
pub fn pack(busybox: &[u8], modules: &[Module]) -> Vec<u8> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "proc", "sys", "tmp", "lib", "lib/modules"] {
        archive.directory(folder);
    }
    for Module { release, name, contents } in modules {
        archive.directory(&format!("lib/modules/{release}"));
        archive.file(&format!("lib/modules/{release}/{name}"), contents);
    }
    // The kernel opens /dev/console for init before anything can be mounted there.
    archive.device("dev/console", 5, 1);
    archive.device("dev/null", 1, 3);
    archive.program("bin/busybox", busybox);
    archive.link("bin/sh", "busybox");
    archive.program("init", SCRIPT.as_bytes());
    archive.finish()
}

/// An archive of one program in /bin. Linux unpacks archives that follow one another as one.
pub fn program(name: &str, contents: &[u8]) -> Vec<u8> {
    let mut archive = Archive::default();
    archive.program(&format!("bin/{name}"), contents);
    archive.finish()
}

/// What the report of `keel.test=1` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Number of CPUs Linux brought up.
    pub nproc: u32,
    /// Kernel release.
    pub uname: String,
    /// Seconds since 1970 by the guest's clock.
    pub date: u64,
    /// CPUs on which a process slept and computed.
    pub working_cpus: u32,
    /// Per CPU, the count of the architected timer's interrupts.
    pub timer_counts: Vec<u64>,
    /// Kernel messages of level warning and worse.
    pub warnings: Vec<String>,
    /// What the kernel found of the hypervisor.
    pub services: Services,
}

/// What a kernel found of KVM's guest interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Services {
    /// "KVM: hypervisor services detected" is in the log.
    pub detected: bool,
    /// "using stolen time PV" is in the log.
    pub stolen_time: bool,
    /// Time stolen from all CPUs, in USER_HZ (1/100 s).
    pub steal: u64,
    /// Names of the hardware random number generators.
    pub generators: String,
    /// Bytes that /dev/hwrng gave, of 64.
    pub random_bytes: u64,
    /// Name of the first PTP clock.
    pub ptp: String,
    /// Seconds since 1970 by the PTP clock and by the system's, where the program is there that asks.
    pub ptp_time: Option<(u64, u64)>,
}

/// Reads the report from a console transcript.
///
/// # Errors
///
/// Says which part is missing.
pub fn parse_report(console: &str) -> Result<Report, String> {
    let text = console.replace('\r', "");
    let Some((_, text)) = text.split_once(INIT) else { return Err(format!("user space was not reached ({INIT})")) };
    let Some((text, _)) = text.split_once(DONE) else { return Err(format!("the report has no end ({DONE})")) };
    let value = |key: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        found.ok_or(format!("the report has no line {key}="))
    };
    let section = |name: &str| {
        let after = text.split_once(&format!("KEEL-{name}-BEGIN\n"));
        let found = after.and_then(|(_, rest)| rest.split_once(&format!("KEEL-{name}-END"))).map(|(lines, _)| lines);
        found.ok_or(format!("the report has no section {name}"))
    };
    let number = |key: &str| value(key)?.trim().parse::<u64>().map_err(|error| format!("{key}: {error}"));
    let timer = section("INTERRUPTS")?.lines().find(|line| line.contains("arch_timer"));
    let timer = timer.ok_or("/proc/interrupts has no arch_timer")?;
    let counts = timer.split_whitespace().skip(1).map_while(|word| word.parse().ok()).collect();
    let ptp_time = value("ptp-time").ok().and_then(|times| {
        let (ptp, date) = times.split_once(" date=")?;
        Some((ptp.trim().parse().ok()?, date.trim().parse().ok()?))
    });
    let services = Services {
        detected: number("services")? > 0,
        stolen_time: number("stolen-time")? > 0,
        steal: number("steal")?,
        generators: value("rng")?.trim().into(),
        random_bytes: number("rng-bytes")?,
        ptp: value("ptp")?.trim().into(),
        ptp_time,
    };
    Ok(Report {
        services,
        nproc: number("nproc")? as u32,
        uname: value("uname")?.into(),
        date: number("date")?,
        working_cpus: text.lines().filter(|line| line.starts_with("cpu") && line.ends_with("=ok")).count() as u32,
        timer_counts: counts,
        warnings: section("WARNINGS")?.lines().map(str::to_string).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_read() {
        let console = "boot\r\nKEEL-INIT\r\nnproc=2\r\nuname=Linux 6.1 aarch64\r\ndate=1700000000\r\ncpu0=ok\r\ncpu1=ok\r\n\
            KEEL-INTERRUPTS-BEGIN\r\n           CPU0       CPU1\r\n 11:        571        608     GICv3  27 Level     \
            arch_timer\r\nKEEL-INTERRUPTS-END\r\nKEEL-WARNINGS-BEGIN\r\n<4>[ 0.1] odd\r\nKEEL-WARNINGS-END\r\nwarnings=1\r\n\
            services=1\r\nstolen-time=0\r\nsteal=7\r\nrng=smccc_trng\r\nrng-bytes=64\r\nptp=KVM virtual PTP\r\n\
            ptp-time=1700000001 date=1700000002\r\nKEEL-DONE\r\n";
        let report = parse_report(console).unwrap();
        assert_eq!((report.nproc, report.working_cpus, report.date), (2, 2, 1_700_000_000));
        assert_eq!(report.timer_counts, [571, 608]);
        assert_eq!(report.warnings, ["<4>[ 0.1] odd"]);
        let services = report.services;
        assert_eq!((services.detected, services.stolen_time, services.steal), (true, false, 7));
        assert_eq!((services.generators.as_str(), services.random_bytes), ("smccc_trng", 64));
        assert_eq!(
            (services.ptp.as_str(), services.ptp_time),
            ("KVM virtual PTP", Some((1_700_000_001, 1_700_000_002)))
        );
    }

    #[test]
    fn incomplete_reports_say_what_is_missing() {
        assert!(parse_report("Kernel panic").unwrap_err().contains("KEEL-INIT"));
        assert!(parse_report("KEEL-INIT\nnproc=1\n").unwrap_err().contains("KEEL-DONE"));
        assert!(parse_report("KEEL-INIT\nnproc=1\nKEEL-DONE\n").is_err());
    }

    #[test]
    fn the_archive_has_init_and_a_console() {
        let module = Module { release: "6.1".into(), name: "a.ko.xz".into(), contents: vec![1] };
        let archive = pack(b"\x7fELF", &[module]);
        for name in ["init\0", "bin/busybox\0", "dev/console\0", "lib/modules/6.1/a.ko.xz\0"] {
            assert!(archive.windows(name.len()).any(|window| window == name.as_bytes()), "{name}");
        }
    }
}
