//! A Linux program: prints the time of /dev/ptp0 in seconds since 1970, by clock_gettime of the dynamic clock.
//!
//! busybox has no program that asks a PTP clock. This one is static, needs no library, and is built like the kernels.

#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(not(target_os = "none"))]
fn main() {}

#[cfg(target_os = "none")]
mod program {
    use core::arch::asm;

    // arm64's numbers (Linux, uapi asm-generic/unistd.h).
    const OPENAT: u64 = 56;
    const WRITE: u64 = 64;
    const EXIT: u64 = 93;
    const CLOCK_GETTIME: u64 = 113;
    const AT_FDCWD: u64 = -100_i64 as u64;

    fn call(number: u64, [a, b, c]: [u64; 3]) -> i64 {
        let result: i64;
        // SAFETY: a system call keeps all registers but x0; the memory that these calls read or write is named by
        // pointers to live objects of at least the size that the call uses.
        unsafe {
            asm!("svc #0", in("x8") number, inlateout("x0") a as i64 => result, in("x1") b, in("x2") c, options(nostack))
        };
        result
    }

    fn print(text: &[u8]) {
        call(WRITE, [1, text.as_ptr() as u64, text.len() as u64]);
    }

    fn exit(code: u64) -> ! {
        loop {
            call(EXIT, [code, 0, 0]);
        }
    }

    /// Where Linux starts it; the linker script knows the name.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = ".head")]
    extern "C" fn image_head() -> ! {
        let clock = call(OPENAT, [AT_FDCWD, c"/dev/ptp0".as_ptr() as u64, 0]);
        if clock < 0 {
            print(b"no /dev/ptp0\n");
            exit(1);
        }
        // The clock id of a file descriptor (Linux, Documentation/driver-api/ptp.rst).
        let id = (!clock << 3 | 3) as i32 as u64;
        let mut time = [0_i64; 2];
        if call(CLOCK_GETTIME, [id, time.as_mut_ptr() as u64, 0]) != 0 {
            print(b"clock_gettime failed\n");
            exit(2);
        }
        let mut digits = [b'\n'; 21];
        let (mut at, mut left) = (20, time[0].unsigned_abs());
        while left > 0 && at > 0 {
            at -= 1;
            digits[at] = b'0' + (left % 10) as u8;
            left /= 10;
        }
        print(&digits[at..]);
        exit(0)
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo) -> ! {
        exit(3)
    }
}
