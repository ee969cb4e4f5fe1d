//! The end of keel: panics and exceptions at EL2, reported with registers and a backtrace.
//!
//! The report goes straight to the UART: whoever holds the console's lock may be what broke. Lines have a fixed form that
//! `cargo keel symbolize` turns into functions and lines.

use super::host_info::Crash;
use crate::{
    arch::{cpu, esr, features, image, serror::Syndrome, sysreg, uart},
    mm::Pa,
};
use core::{
    fmt::{self, Write},
    panic::PanicInfo,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

static UART: AtomicU64 = AtomicU64::new(0);
static REPORTING: AtomicBool = AtomicBool::new(false);

/// Says where the console's PL011 is, for reports.
pub fn set_uart(base: Pa) {
    UART.store(base.0, Ordering::Relaxed);
}

struct Report(Option<uart::Console>);

impl Report {
    fn new() -> Self {
        let base = UART.load(Ordering::Relaxed);
        // SAFETY: `set_uart` was given the console's PL011, mapped as a device. Nothing else uses it any more: this CPU
        // does not return, and the others only write bytes that may mix with the report.
        Self(if base == 0 { None } else { unsafe { uart::Console::pl011(Pa(base)) } })
    }
}

impl Write for Report {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if let Some(uart) = &mut self.0 {
            for byte in text.bytes() {
                if byte == b'\n' {
                    uart.write(b'\r');
                }
                uart.write(byte);
            }
        }
        Ok(())
    }
}

/// Prints the return addresses that the frame records from `frame` on lead to (AAPCS64, 6.4.6), as far as they lie in the
/// image and go upwards.
fn backtrace(out: &mut Report, first: Option<u64>, mut frame: u64) {
    let (whole, text) = (image::whole(), image::text());
    let _ = writeln!(out, "image base {:#x}", whole.start.0);
    let mut number = 0;
    if let Some(pc) = first {
        let _ = writeln!(out, "  #0 {pc:#x}");
        number = 1;
    }
    while number < 32 && whole.contains(&Pa(frame)) && frame.is_multiple_of(8) {
        // SAFETY: two words inside the image's own memory; unmapped guard pages end in the fatal handler, which reports
        // only once.
        let (next, link) =
            unsafe { ((frame as *const u64).read_volatile(), ((frame + 8) as *const u64).read_volatile()) };
        if !text.contains(&Pa(link)) {
            break;
        }
        let _ = writeln!(out, "  #{number} {link:#x}");
        if next <= frame {
            break;
        }
        (frame, number) = (next, number + 1);
    }
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    if REPORTING.swap(true, Ordering::SeqCst) {
        cpu::halt();
    }
    let mut out = Report::new();
    let _ = writeln!(out, "\nkeel: panic: CPU {}: {}", cpu::index(), info.message());
    if let Some(location) = info.location() {
        let _ = writeln!(out, "at {location}");
    }
    let (frame, sp): (u64, u64);
    // SAFETY: reads two registers.
    unsafe {
        core::arch::asm!("mov {}, x29", "mov {}, sp", out(reg) frame, out(reg) sp, options(nomem, nostack, preserves_flags))
    };
    // What the CPU was at: the guest it holds, and its last exception.
    let _ = writeln!(
        out,
        "ESR_EL2 {:#018x} FAR_EL2 {:#018x} ELR_EL2 {:#018x} SPSR_EL2 {:#018x}\n\
         HCR_EL2 {:#018x} VTTBR_EL2 {:#018x} SCTLR_EL2 {:#018x} VBAR_EL2 {:#018x}\n\
         x29 {frame:#018x} sp  {sp:#018x}",
        sysreg::read_sysreg!("esr_el2"),
        sysreg::read_sysreg!("far_el2"),
        sysreg::read_sysreg!("elr_el2"),
        sysreg::read_sysreg!("spsr_el2"),
        sysreg::read_sysreg!("hcr_el2"),
        sysreg::read_sysreg!("vttbr_el2"),
        sysreg::read_sysreg!("sctlr_el2"),
        sysreg::read_sysreg!("vbar_el2"),
    );
    backtrace(&mut out, None, frame);
    stop(&mut out);
}

/// Registers at an exception that EL2 took from itself, as `boot/vectors.S` stores them.
#[repr(C)]
pub struct FatalFrame {
    /// x0-x30.
    gpr: [u64; 31],
    /// SP.
    sp: u64,
}

/// Reports an exception taken to the stub's vectors: `slot` is the number of the vector (Arm ARM D1.3.1.5).
pub(super) fn unexpected(slot: u64) {
    let mut out = Report::new();
    let from = ["EL2 with SP_EL0", "EL2", "EL1 or EL0", "AArch32"][(slot / 4 % 4) as usize];
    let what = ["synchronous exception", "IRQ", "FIQ", "SError"][(slot % 4) as usize];
    let esr = sysreg::read_sysreg!("esr_el2");
    let _ = writeln!(
        out,
        "\nkeel-stub: CPU {:#x}: unexpected {what} from {from}: {}",
        cpu::mpidr(),
        esr::class_name(esr::class(esr))
    );
    let _ = writeln!(
        out,
        "ESR_EL2 {esr:#018x} FAR_EL2 {:#018x} ELR_EL2 {:#018x} SPSR_EL2 {:#018x}",
        sysreg::read_sysreg!("far_el2"),
        sysreg::read_sysreg!("elr_el2"),
        sysreg::read_sysreg!("spsr_el2")
    );
    let _ = writeln!(out, "keel-stub: this CPU is stopped");
}

#[unsafe(no_mangle)]
extern "C" fn keel_fatal(kind: u64, frame: &FatalFrame) -> ! {
    REPORTING.store(true, Ordering::SeqCst);
    let mut out = Report::new();
    let esr = sysreg::read_sysreg!("esr_el2");
    let what = ["synchronous exception", "IRQ", "FIQ", "SError"][kind as usize % 4];
    let _ = writeln!(out, "\nkeel: panic: CPU {}: {what} at EL2: {}", cpu::index(), esr::class_name(esr::class(esr)));
    if esr::class(esr) == esr::ec::SERROR {
        let _ = writeln!(out, "{}", Syndrome { esr, has_ras: features::has_ras() });
    }
    let elr = sysreg::read_sysreg!("elr_el2");
    let _ = writeln!(
        out,
        "ESR_EL2 {esr:#018x} FAR_EL2 {:#018x} ELR_EL2 {elr:#018x} SPSR_EL2 {:#018x}",
        sysreg::read_sysreg!("far_el2"),
        sysreg::read_sysreg!("spsr_el2")
    );
    let far = Pa(sysreg::read_sysreg!("far_el2"));
    let own_guard = image::stack(cpu::index()).map(|stack| Pa(stack.start.0 - image::GUARD)..stack.start);
    if [Some(image::stack_guard()), own_guard].iter().flatten().any(|guard| guard.contains(&far)) {
        let _ = writeln!(out, "the stack has overflowed: FAR_EL2 is in the guard page below it");
    }
    for (number, value) in frame.gpr.iter().enumerate() {
        let end = if number % 4 == 3 { "\n" } else { " " };
        let _ = write!(out, "x{number:<2} {value:#018x}{end}");
    }
    let _ = writeln!(out, "sp  {:#018x}", frame.sp);
    backtrace(&mut out, Some(elr), frame.gpr[29]);
    stop(&mut out);
}

/// Ends on purpose, as `keel.crash=` asks.
pub(super) fn crash(how: Crash) -> ! {
    match how {
        Crash::Panic => panic!("keel.crash=panic asked for this"),
        Crash::Stack => {
            let depth = use_stack(0);
            panic!("there was no end of the stack after {depth} calls");
        }
    }
}

/// Recurses until the stack ends, or for more calls than any stack has room for.
#[inline(never)]
fn use_stack(depth: u64) -> u64 {
    let room = core::hint::black_box([depth; 32]);
    if depth == 1 << 20 { depth } else { use_stack(depth + 1).max(room[0]) }
}

fn stop(out: &mut Report) -> ! {
    let _ = writeln!(out, "keel: stopped");
    if let Some(uart) = &mut out.0 {
        uart.flush();
    }
    crate::arch::smc::system_off();
    cpu::halt();
}
