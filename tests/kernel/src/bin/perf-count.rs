//! A Linux program that counts itself: cycles and instructions through perf_event_open, and samples by the PMU's interrupt.
//!
//! It runs as the first program (`rdinit=/bin/perf-count`), prints a line for each thing and powers the machine off. The
//! lines: `perf cycles=N`, `perf instructions=N` or `=none` (of a loop of `ROUNDS` rounds of two instructions), `perf
//! samples=N bytes`, then the lines of /proc/interrupts that are the PMU's, and `perf done`.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod program {
    use core::arch::asm;

    // arm64's numbers (Linux, uapi asm-generic/unistd.h).
    const IOCTL: u64 = 29;
    const MOUNT: u64 = 40;
    const OPENAT: u64 = 56;
    const READ: u64 = 63;
    const WRITE: u64 = 64;
    const REBOOT: u64 = 142;
    const MMAP: u64 = 222;
    const PERF_EVENT_OPEN: u64 = 241;
    const AT_FDCWD: u64 = -100_i64 as u64;

    /// Rounds of the loop that is counted.
    const ROUNDS: u64 = 20_000_000;
    /// Cycles from one sample to the next.
    const PERIOD: u64 = 1_000_000;

    /// `struct perf_event_attr`, its first version (uapi linux/perf_event.h).
    #[repr(C)]
    struct Attributes {
        kind: u32,
        size: u32,
        config: u64,
        sample_period: u64,
        sample_type: u64,
        read_format: u64,
        flags: u64,
        wakeup_events: u32,
        breakpoint_type: u32,
        config1: u64,
    }

    const _: () = assert!(size_of::<Attributes>() == 64);

    /// PERF_COUNT_HW_CPU_CYCLES and PERF_COUNT_HW_INSTRUCTIONS of PERF_TYPE_HARDWARE.
    const CYCLES: u64 = 0;
    const INSTRUCTIONS: u64 = 1;
    /// disabled, exclude_kernel.
    const FLAGS: u64 = 1 << 0 | 1 << 5;
    /// PERF_SAMPLE_IP.
    const SAMPLE_IP: u64 = 1;
    /// PERF_EVENT_IOC_ENABLE and DISABLE.
    const ENABLE: u64 = 0x2400;
    const DISABLE: u64 = 0x2401;
    /// PROT_READ | PROT_WRITE, MAP_SHARED.
    const READ_WRITE: u64 = 3;
    const SHARED: u64 = 1;
    /// `data_head` of `struct perf_event_mmap_page`.
    const DATA_HEAD: usize = 1024;
    const PAGE: u64 = 4096;
    /// LINUX_REBOOT_MAGIC1, MAGIC2, CMD_POWER_OFF.
    const POWER_OFF: [u64; 3] = [0xfee1_dead, 672_274_793, 0x4321_fedc];

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

    /// A line, written at once: other machines write to the same console.
    struct Line {
        text: [u8; 256],
        length: usize,
    }

    impl Line {
        fn new(start: &[u8]) -> Self {
            let mut line = Self { text: [0; 256], length: 0 };
            line.push(b"perf ");
            line.push(start);
            line
        }

        fn push(&mut self, text: &[u8]) {
            for (slot, &byte) in self.text[self.length..].iter_mut().zip(text) {
                *slot = byte;
                self.length += 1;
            }
        }

        fn push_number(&mut self, mut left: u64) {
            let mut digits = [b'0'; 20];
            let mut at = 20;
            while left > 0 {
                at -= 1;
                digits[at] = b'0' + (left % 10) as u8;
                left /= 10;
            }
            self.push(&digits[at.min(19)..]);
        }

        fn end(mut self) {
            self.length = self.length.min(255);
            self.push(b"\n");
            call(WRITE, [1, self.text.as_ptr() as u64, self.length as u64, 0, 0, 0]);
        }
    }

    /// Opens an event of this process, switched off; negative if there is no such event.
    fn open(config: u64, sample_period: u64) -> i64 {
        let attributes = Attributes {
            kind: 0,
            size: 64,
            config,
            sample_period,
            sample_type: if sample_period == 0 { 0 } else { SAMPLE_IP },
            read_format: 0,
            flags: FLAGS,
            wakeup_events: 1,
            breakpoint_type: 0,
            config1: 0,
        };
        let any_cpu = -1_i64 as u64;
        call(PERF_EVENT_OPEN, [&raw const attributes as u64, 0, any_cpu, any_cpu, 0, 0])
    }

    fn work() {
        // SAFETY: one register of its own.
        unsafe { asm!("2:", "subs {0}, {0}, #1", "b.ne 2b", inout(reg) ROUNDS => _, options(nostack)) };
    }

    /// Works while `event` counts.
    fn measure(event: i64) {
        call(IOCTL, [event as u64, ENABLE, 0, 0, 0, 0]);
        work();
        call(IOCTL, [event as u64, DISABLE, 0, 0, 0, 0]);
    }

    fn count(name: &[u8], config: u64) {
        let mut line = Line::new(name);
        let event = open(config, 0);
        if event < 0 {
            line.push(b"=none");
            return line.end();
        }
        measure(event);
        let mut value = 0_u64;
        call(READ, [event as u64, &raw mut value as u64, 8, 0, 0, 0]);
        line.push(b"=");
        line.push_number(value);
        line.end();
    }

    fn sample() {
        let mut line = Line::new(b"samples=");
        let event = open(CYCLES, PERIOD);
        let ring = call(MMAP, [0, 2 * PAGE, READ_WRITE, SHARED, event as u64, 0]);
        if event < 0 || ring < 0 {
            line.push(b"none");
            return line.end();
        }
        measure(event);
        // SAFETY: the kernel has mapped two pages there; the word is its to write and ours to read.
        let head = unsafe { ((ring as usize + DATA_HEAD) as *const u64).read_volatile() };
        line.push_number(head);
        line.push(b" bytes");
        line.end();
    }

    /// Prints the lines of /proc/interrupts that have "pmu".
    fn interrupts() {
        call(MOUNT, [c"proc".as_ptr() as u64, c"/proc".as_ptr() as u64, c"proc".as_ptr() as u64, 0, 0, 0]);
        let file = call(OPENAT, [AT_FDCWD, c"/proc/interrupts".as_ptr() as u64, 0, 0, 0, 0]);
        let mut text = [0_u8; 16 << 10];
        let mut length = 0;
        while length < text.len() {
            let rest = &mut text[length..];
            let read = call(READ, [file as u64, rest.as_mut_ptr() as u64, rest.len() as u64, 0, 0, 0]);
            if read <= 0 {
                break;
            }
            length += read as usize;
        }
        for found in text[..length].split(|&byte| byte == b'\n') {
            if found.windows(3).any(|word| word == b"pmu") {
                let mut line = Line::new(b"interrupts ");
                line.push(found);
                line.end();
            }
        }
    }

    /// Where Linux starts it; the linker script knows the name.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = ".head")]
    extern "C" fn image_head() -> ! {
        for _ in 0..4 {
            count(b"cycles", CYCLES);
            count(b"instructions", INSTRUCTIONS);
        }
        sample();
        interrupts();
        Line::new(b"done").end();
        power_off()
    }

    fn power_off() -> ! {
        loop {
            call(REBOOT, [POWER_OFF[0], POWER_OFF[1], POWER_OFF[2], 0, 0, 0]);
        }
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo) -> ! {
        power_off()
    }
}
