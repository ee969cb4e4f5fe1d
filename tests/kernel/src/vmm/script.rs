//! What is typed at the guest's shell, and when the guest is copied.
//!
//! Two programs work meanwhile: `work`, which has a process on each CPU that checks its memory, its registers and the clocks and
//! says so at its end, and loops of the shell that start programs again and again.

use super::{LOOK_US, Log, Monitor, sleep};
use crate::{check, harness::Check};
use keel_kvm::uapi::event;
use keel_test_kernel::println;

type Script = fn(&mut Monitor) -> Check;

/// A script by its name.
pub fn find(name: &str) -> Option<Script> {
    const SCRIPTS: [(&str, Script); 2] = [("restore", restore), ("migrate", migrate)];
    SCRIPTS.iter().find(|(known, _)| *known == name).map(|(_, script)| *script)
}

/// Lines of output while the guest is stopped.
const LINES: usize = 300;

impl Monitor {
    /// Types a command, and waits until it has gone well.
    fn shell(&self, command: &str) -> Check {
        // The shell's echo has no numbers in it.
        for text in [command, "; echo status=$?=\n"] {
            self.enter(text)?;
        }
        // It begins a line, unlike the echo.
        self.wait("\nstatus=")?;
        let went_well = || self.running().map(|running| running.with_uart(|uart| uart.next()));
        while went_well()?.is_none() {
            sleep(LOOK_US);
        }
        check!(went_well()? == Some(b'0'), "`{command}` failed");
        Ok(())
    }

    /// The shell is there.
    fn log_in(&self) -> Check {
        self.wait("KEEL-SHELL")?;
        self.wait("# ")?;
        self.shell("test $(nproc) = 2")?;
        // The UART's interrupt is to come to the second CPU, and to no other from here on.
        self.shell("for i in /proc/irq/*; do test -d $i/uart-pl011 && echo 2 >$i/smp_affinity; done; sleep 0.1")?;
        self.shell(
            "count() { awk '/uart-pl011/ { print $'$1' }' /proc/interrupts; }; first=$(count 2) second=$(count 3)",
        )
    }

    /// Starts what works in the background, and lets it get going.
    fn start_work(&self) -> Check {
        self.enter("work &\n")?;
        self.enter("while [ ! -e /tmp/stop ]; do sha256sum /bin/busybox || echo failed; done >/tmp/sums &\n")?;
        self.enter("while [ ! -e /tmp/stop ]; do /bin/true || echo failed; done >/tmp/failed &\n")?;
        self.progress()
    }

    /// Waits until the program has gone on, on both CPUs.
    fn progress(&self) -> Check {
        for cpu in ["work 0: round", "work 1: round"] {
            self.forget()?;
            self.wait(cpu)?;
        }
        Ok(())
    }

    /// Ends what works in the background, checks what it found, and switches the machine off.
    fn finish(&mut self) -> Check {
        self.progress()?;
        self.forget()?;
        self.enter("touch /tmp/stop; wait; echo ended=$?=\n")?;
        self.wait("ended=0=")?;
        self.shell("cat /tmp/work0 /tmp/work1")?;
        self.shell("grep -q ' 0 errors' /tmp/work0 && grep -q ' 0 errors' /tmp/work1")?;
        self.shell("test ! -s /tmp/failed")?;
        self.shell("test $(wc -l </tmp/sums) -ge 3 && sort -u /tmp/sums && test $(sort -u /tmp/sums | wc -l) = 1")?;
        self.shell("grep -e arch_timer -e uart-pl011 -e IPI /proc/interrupts")?;
        self.shell("test $(count 2) = $first -a $(count 3) -gt $second")?;
        self.shell("test $(nproc) = 2")?;
        self.shell("cat /proc/uptime; echo WARNINGS-BEGIN; dmesg -r | grep '^<[0-4]>'; echo WARNINGS-END")?;
        self.enter("poweroff -f\n")?;
        self.end(event::SHUTDOWN)
    }
}

/// The guest is saved, destroyed and restored at moments that differ in what it is at.
fn restore(monitor: &mut Monitor) -> Check {
    monitor.log_in()?;
    sleep(300_000);
    monitor.save_and_restore("while both CPUs sleep")?;
    monitor.shell("test $((6 * 7)) = 42")?;

    monitor.start_work()?;
    monitor.save_and_restore("while both CPUs work")?;
    monitor.progress()?;

    // The echo has no numbers in it here, either.
    monitor.enter("i=0; while [ $i -lt 300 ]; do i=$((i + 1)); echo line=$i=; done\n")?;
    for piece in ["line=60=", "line=190="] {
        monitor.wait(piece)?;
        monitor.save_and_restore("in the middle of output")?;
    }
    monitor.wait("line=300=")?;
    monitor.check_lines()?;

    monitor.enter("echo half=$((40")?;
    sleep(50_000);
    monitor.save_and_restore("in the middle of a line")?;
    monitor.enter("+2))\n")?;
    monitor.wait("half=42")?;

    monitor.enter("sleep 1; echo slept=$((6 * 7))\n")?;
    sleep(300_000);
    for delay in [0, 3_000, 11_000] {
        monitor.save_and_restore("before a timer")?;
        sleep(delay);
    }
    monitor.wait("slept=42")?;
    monitor.finish()
}

/// The guest is copied while it runs.
fn migrate(monitor: &mut Monitor) -> Check {
    monitor.log_in()?;
    monitor.start_work()?;
    for log in [Log::Automatic, Log::Manual(1), Log::Manual(3)] {
        monitor.migrate(log)?;
        monitor.progress()?;
    }
    monitor.finish()
}

impl Monitor {
    /// Checks that each line was written, once and in order.
    fn check_lines(&self) -> Check {
        let right = self.running()?.with_uart(|uart| {
            let numbers =
                uart.lines().filter_map(|line| line.split_once("line=")?.1.strip_suffix("=")?.parse::<usize>().ok());
            numbers.eq(1..=LINES)
        });
        check!(right, "some of {LINES} lines of output are missing, or twice there");
        println!("monitor: {LINES} lines of output are whole");
        Ok(())
    }
}
