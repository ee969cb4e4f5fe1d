//! A Linux program that has something to lose: a process on each of two CPUs, which checks all that it has, round after round.
//!
//! A process is bound to its CPU. It fills 4 MiB with numbers that follow from their place and the round, and finds in each
//! round those of the round before. Through a round it keeps patterns in all vector registers and in TPIDR_EL0. The virtual
//! counter and CLOCK_MONOTONIC never go back, the latter on both CPUs together, and a sleep takes at least as long as it
//! was to. Every 16th round it says where it is: `work N: round R`.
//!
//! It ends when there is a file /tmp/stop, and writes to /tmp/workN: `work N: R rounds, E errors, first K in round Q`.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod program {
    use core::{
        arch::asm,
        fmt::Write,
        sync::atomic::{AtomicU64, Ordering::SeqCst},
    };

    // arm64's numbers (Linux, uapi asm-generic/unistd.h).
    const FACCESSAT: u64 = 48;
    const OPENAT: u64 = 56;
    const WRITE: u64 = 64;
    const EXIT: u64 = 93;
    const NANOSLEEP: u64 = 101;
    const CLOCK_GETTIME: u64 = 113;
    const SCHED_SETAFFINITY: u64 = 122;
    const CLONE: u64 = 220;
    const MMAP: u64 = 222;
    const WAIT4: u64 = 260;
    const AT_FDCWD: u64 = -100_i64 as u64;
    const CLOCK_MONOTONIC: u64 = 1;
    const SIGCHLD: u64 = 17;
    /// O_WRONLY, O_CREAT, O_TRUNC.
    const CREATE: u64 = 0o1101;
    /// PROT_READ | PROT_WRITE; MAP_SHARED or MAP_PRIVATE, and MAP_ANONYMOUS.
    const READ_WRITE: u64 = 3;
    const SHARED: u64 = 0x21;
    const PRIVATE: u64 = 0x22;

    /// Numbers of a process.
    const NUMBERS: usize = (4 << 20) / 8;
    /// Words of the vector registers.
    const VECTORS: usize = 64;
    /// A sleep, in nanoseconds.
    const SLEEP: u64 = 3_000_000;

    fn call(number: u64, [a, b, c, d, e, f]: [u64; 6]) -> i64 {
        let result: i64;
        // SAFETY: a system call keeps all registers but x0; the memory that these calls read or write is named by
        // pointers to live objects of at least the size that the call uses, or mapped by the call.
        unsafe {
            asm!(
                "svc #0", in("x8") number, inlateout("x0") a as i64 => result, in("x1") b, in("x2") c, in("x3") d,
                in("x4") e, in("x5") f, options(nostack)
            )
        };
        result
    }

    fn exit(code: u64) -> ! {
        loop {
            call(EXIT, [code, 0, 0, 0, 0, 0]);
        }
    }

    /// A file, by its descriptor.
    struct File(u64);

    impl Write for File {
        fn write_str(&mut self, text: &str) -> core::fmt::Result {
            let written = call(WRITE, [self.0, text.as_ptr() as u64, text.len() as u64, 0, 0, 0]);
            if written == text.len() as i64 { Ok(()) } else { Err(core::fmt::Error) }
        }
    }

    /// A line, so that it is written at once.
    struct Line {
        text: [u8; 96],
        size: usize,
    }

    impl Write for Line {
        fn write_str(&mut self, text: &str) -> core::fmt::Result {
            let to = self.text.get_mut(self.size..self.size + text.len()).ok_or(core::fmt::Error)?;
            to.copy_from_slice(text.as_bytes());
            self.size += text.len();
            Ok(())
        }
    }

    fn say(file: u64, text: core::fmt::Arguments) {
        let mut line = Line { text: [0; 96], size: 0 };
        let whole = line.write_fmt(text).is_ok();
        let text = core::str::from_utf8(&line.text[..line.size]).unwrap_or("?\n");
        if !whole || File(file).write_str(text).is_err() {
            exit(4);
        }
    }

    fn map<T>(bytes: usize, flags: u64) -> &'static [T] {
        let address = call(MMAP, [0, bytes as u64, READ_WRITE, flags, u64::MAX, 0]);
        if address < 0 {
            exit(5);
        }
        // SAFETY: fresh memory of that size, mapped for good, of a type for which zeros are a value (atomics, here).
        unsafe { core::slice::from_raw_parts(address as *const T, bytes / size_of::<T>()) }
    }

    fn monotonic() -> u64 {
        let mut time = [0_u64; 2];
        call(CLOCK_GETTIME, [CLOCK_MONOTONIC, time.as_mut_ptr() as u64, 0, 0, 0, 0]);
        time[0] * 1_000_000_000 + time[1]
    }

    fn counter() -> u64 {
        let value: u64;
        // SAFETY: reading the counter, which Linux allows, changes nothing.
        unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) value, options(nostack)) };
        value
    }

    /// Finalizer of SplitMix64.
    fn mix(value: u64) -> u64 {
        let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }

    fn number(cpu: u64, round: u64, at: usize) -> u64 {
        mix(cpu << 56 | round << 24 | at as u64)
    }

    macro_rules! vectors {
        ($instruction:literal, $pointer:expr) => {
            // SAFETY: the program is compiled without floating point, so that nobody else uses these registers; the words are
            // as many as the instructions move.
            unsafe {
                asm!(
                    ".arch_extension fp",
                    ".arch_extension simd",
                    concat!($instruction, " {{v0.2d-v3.2d}}, [{0}], #64"),
                    concat!($instruction, " {{v4.2d-v7.2d}}, [{0}], #64"),
                    concat!($instruction, " {{v8.2d-v11.2d}}, [{0}], #64"),
                    concat!($instruction, " {{v12.2d-v15.2d}}, [{0}], #64"),
                    concat!($instruction, " {{v16.2d-v19.2d}}, [{0}], #64"),
                    concat!($instruction, " {{v20.2d-v23.2d}}, [{0}], #64"),
                    concat!($instruction, " {{v24.2d-v27.2d}}, [{0}], #64"),
                    concat!($instruction, " {{v28.2d-v31.2d}}, [{0}]"),
                    inout(reg) $pointer => _,
                    options(nostack)
                )
            }
        };
    }

    fn set_thread(value: u64) {
        // SAFETY: there is no thread-local storage in this program.
        unsafe { asm!("msr tpidr_el0, {}", in(reg) value, options(nostack)) };
    }

    fn thread() -> u64 {
        let value: u64;
        // SAFETY: reading it changes nothing.
        unsafe { asm!("mrs {}, tpidr_el0", out(reg) value, options(nostack)) };
        value
    }

    /// What was wrong: how often, what first, and in which round.
    #[derive(Default)]
    struct Errors {
        count: u64,
        first: u64,
        round: u64,
    }

    impl Errors {
        fn check(&mut self, holds: bool, kind: u64, round: u64) {
            if !holds {
                self.count += 1;
                if self.first == 0 {
                    (self.first, self.round) = (kind, round);
                }
            }
        }
    }

    /// The work of one process. `latest` is the latest time that any has seen.
    fn work(cpu: u64, latest: &AtomicU64) -> ! {
        let mask = 1_u64 << cpu;
        if call(SCHED_SETAFFINITY, [0, 8, &raw const mask as u64, 0, 0, 0]) != 0 {
            exit(6);
        }
        let numbers = map::<AtomicU64>(8 * NUMBERS, PRIVATE);
        for (at, place) in numbers.iter().enumerate() {
            place.store(number(cpu, 0, at), SeqCst);
        }
        let (mut errors, mut round, mut ticks) = (Errors::default(), 0, counter());
        while call(FACCESSAT, [AT_FDCWD, c"/tmp/stop".as_ptr() as u64, 0, 0, 0, 0]) != 0 {
            let before = round;
            round += 1;
            let pattern: [u64; VECTORS] = core::array::from_fn(|at| number(cpu + 2, round, at));
            vectors!("ld1", pattern.as_ptr());
            set_thread(pattern[0]);
            for (at, place) in numbers.iter().enumerate() {
                let found = place.load(core::sync::atomic::Ordering::Relaxed);
                errors.check(found == number(cpu, before, at), 1, round);
                place.store(number(cpu, round, at), core::sync::atomic::Ordering::Relaxed);
            }
            let mut found = [0_u64; VECTORS];
            vectors!("st1", found.as_mut_ptr());
            errors.check(found == pattern, 2, round);
            errors.check(thread() == pattern[0], 3, round);

            let now = counter();
            errors.check(now >= ticks, 4, round);
            ticks = now;
            let known = latest.load(SeqCst);
            let now = monotonic();
            errors.check(now >= known, 5, round);
            latest.fetch_max(now, SeqCst);
            if round % 4 == 0 {
                let request = [0, SLEEP];
                let result = call(NANOSLEEP, [request.as_ptr() as u64, 0, 0, 0, 0, 0]);
                errors.check(result == 0 && monotonic() >= now + SLEEP, 6, round);
            }
            if round % 16 == 0 {
                say(1, format_args!("work {cpu}: round {round}\n"));
            }
        }
        let name = if cpu == 0 { c"/tmp/work0" } else { c"/tmp/work1" };
        let file = call(OPENAT, [AT_FDCWD, name.as_ptr() as u64, CREATE, 0o644, 0, 0]);
        let Errors { count, first, round: when } = errors;
        say(file as u64, format_args!("work {cpu}: {round} rounds, {count} errors, first {first} in round {when}\n"));
        exit(0)
    }

    /// Where Linux starts it; the linker script knows the name.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = ".head")]
    extern "C" fn image_head() -> ! {
        let latest = &map::<AtomicU64>(4096, SHARED)[0];
        // A process like fork's: the stack is copied.
        let child = call(CLONE, [SIGCHLD, 0, 0, 0, 0, 0]);
        if child == 0 {
            work(1, latest);
        }
        let other = call(CLONE, [SIGCHLD, 0, 0, 0, 0, 0]);
        if other == 0 {
            work(0, latest);
        }
        let mut failed = u64::from(child < 0 || other < 0);
        for _ in 0..2 {
            let mut status = 0_u64;
            if call(WAIT4, [u64::MAX, &raw mut status as u64, 0, 0, 0, 0]) < 0 || status as u32 != 0 {
                failed = 1;
            }
        }
        exit(failed)
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo) -> ! {
        exit(3)
    }
}
