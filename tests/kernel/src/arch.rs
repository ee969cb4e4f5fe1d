//! System registers, barriers and hints: one instruction each.

/// Reads a system register by the assembler's name or `S<op0>_<op1>_C<n>_C<m>_<op2>`.
#[macro_export]
macro_rules! mrs {
    ($name:literal) => {{
        let value: u64;
        // SAFETY: reading the registers this kernel names changes no memory and no state the compiler relies on.
        unsafe { ::core::arch::asm!(concat!("mrs {}, ", $name), out(reg) value, options(nostack)) };
        value
    }};
}

/// Writes a system register and synchronises the context.
#[macro_export]
macro_rules! msr {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        // SAFETY: the kernel writes interrupt, timer and debug registers this way, none of which changes the
        // translation or the calling convention the compiler relies on.
        unsafe { ::core::arch::asm!(concat!("msr ", $name, ", {}"), "isb", in(reg) value, options(nostack)) };
    }};
}

macro_rules! instruction {
    ($(#[$doc:meta])* $name:ident, $text:literal) => {
        $(#[$doc])*
        #[inline(always)]
        pub fn $name() {
            // SAFETY: a barrier, hint or interrupt mask; it orders accesses but makes none.
            unsafe { core::arch::asm!($text, options(nostack)) };
        }
    };
}

instruction!(
    /// Instruction synchronisation barrier.
    isb, "isb"
);
instruction!(
    /// Full-system data synchronisation barrier.
    dsb, "dsb sy"
);
instruction!(
    /// Waits for an interrupt, whether masked in PSTATE or not.
    wfi, "wfi"
);
instruction!(
    /// Waits for an event.
    wfe, "wfe"
);
instruction!(
    /// Sends an event to all CPUs.
    sev, "sev"
);
instruction!(
    /// Says that the CPU spins. (`core::hint::spin_loop` is an ISB on arm64, which does not let QEMU run another CPU.)
    relax, "yield"
);
instruction!(
    /// Lets IRQs in.
    irq_enable, "msr daifclr, #2"
);
instruction!(
    /// Lets SErrors in.
    serror_enable, "msr daifclr, #4"
);
instruction!(
    /// Keeps SErrors out.
    serror_disable, "msr daifset, #4"
);
instruction!(
    /// Error synchronization barrier, which is a NOP without FEAT_RAS.
    esb, "hint #16"
);
instruction!(
    /// Keeps IRQs out.
    irq_disable, "msr daifset, #2"
);

/// Has the debugger print `text`, which ends with a 0 (Arm semihosting for AArch64, SYS_WRITE0).
pub fn semihosting_write0(text: &[u8]) {
    assert!(text.contains(&0), "SYS_WRITE0 prints up to a 0");
    // SAFETY: the debugger reads `text` up to its 0 and writes x0.
    unsafe { core::arch::asm!("hlt #0xf000", inout("x0") 4_u64 => _, in("x1") text.as_ptr(), options(nostack)) };
}

/// Runs `f` with IRQs let in.
pub fn with_irqs<R>(f: impl FnOnce() -> R) -> R {
    irq_enable();
    isb();
    let result = f();
    irq_disable();
    result
}

/// Index of this CPU in [`crate::machine::Machine::cpus`], kept in TPIDR_EL1.
#[inline]
pub fn cpu() -> usize {
    let index: usize;
    // SAFETY: reading TPIDR_EL1 has no side effect.
    unsafe { core::arch::asm!("mrs {}, tpidr_el1", out(reg) index, options(nomem, nostack)) };
    index
}

/// Sets what [`cpu`] answers on this CPU.
pub fn set_cpu(index: usize) {
    msr!("tpidr_el1", index as u64);
}

/// Cleans and invalidates the data cache lines of `[start, start + len)` to the point of coherency.
pub fn flush_dcache(start: usize, len: usize) {
    // 16 bytes is the smallest line CTR_EL0.DminLine can name; a finer step than needed does no harm.
    let mut line = start & !15;
    while line < start + len {
        // SAFETY: maintenance by address of memory that is mapped does not change its contents.
        unsafe { core::arch::asm!("dc civac, {}", in(reg) line, options(nostack)) };
        line += 16;
    }
    dsb();
}
