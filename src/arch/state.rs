//! A guest's registers that stay in the machine while it runs: saved and loaded only when a CPU changes vCPU.
//!
//! One list names the registers that every CPU has (`registers`); optional ones (pointer-authentication keys, debug
//! registers) follow their ID fields. FP and SIMD move in assembly (`boot/fpsimd.S`), since keel is built without them.

use super::{
    features, guest_pmu, hcr,
    pmuv3::{EventSet, GuestPmu},
    registers::{
        self, Aarch32Registers, Debug, Debugger, El1Registers, FpState, Keys, Parked, Timers, with_el1_registers,
    },
    sysreg::{isb, read_sysreg, write_sysreg},
};

core::arch::global_asm!(include_str!("../../boot/fpsimd.S"));

unsafe extern "C" {
    fn fpsimd_save(state: *mut FpState);
    fn fpsimd_restore(state: *const FpState);
}

/// Reads system registers into words of memory in a row, from `$offset` bytes after `$at` on, two at a time.
macro_rules! save_pairs {
    ($at:ident, $offset:expr,) => {};
    ($at:ident, $offset:expr, $first:literal) => {
        let value = read_sysreg!($first);
        // SAFETY: `$at` points to as many words as the list has registers.
        unsafe { $at.byte_add($offset).write(value) };
    };
    ($at:ident, $offset:expr, $first:literal $second:literal $($rest:literal)*) => {
        // SAFETY: MRS of registers that exist on this CPU; `$at` points to as many words as the list has registers.
        unsafe {
            core::arch::asm!(
                concat!("mrs {0}, ", $first),
                concat!("mrs {1}, ", $second),
                "stp {0}, {1}, [{2}, {3}]",
                out(reg) _, out(reg) _, in(reg) $at, const $offset,
                options(nostack, preserves_flags)
            );
        }
        save_pairs!($at, $offset + 16, $($rest)*);
    };
}

/// The other way round.
macro_rules! load_pairs {
    ($at:ident, $offset:expr,) => {};
    ($at:ident, $offset:expr, $first:literal) => {
        // SAFETY: `$at` points to as many words as the list has registers.
        let value = unsafe { $at.byte_add($offset).read() };
        write_sysreg!($first, value);
    };
    ($at:ident, $offset:expr, $first:literal $second:literal $($rest:literal)*) => {
        // SAFETY: MSR of registers of the guest's that exist on this CPU; `$at` points to as many words as the list has
        // registers.
        unsafe {
            core::arch::asm!(
                "ldp {0}, {1}, [{2}, {3}]",
                concat!("msr ", $first, ", {0}"),
                concat!("msr ", $second, ", {1}"),
                out(reg) _, out(reg) _, in(reg) $at, const $offset,
                options(nostack, preserves_flags, readonly)
            );
        }
        load_pairs!($at, $offset + 16, $($rest)*);
    };
}

macro_rules! moves {
    ($($field:ident $name:literal $encoding:tt)*) => {
        const _: () = assert!(size_of::<El1Registers>() == 8 * [$($name),*].len());

        // The fields are words in the order of the list (`repr(C)`).
        impl El1Registers {
            fn save(&mut self) {
                let words = core::ptr::from_mut(self).cast::<u64>();
                save_pairs!(words, 0, $($name)*);
            }

            fn load(&self) {
                let words = core::ptr::from_ref(self).cast::<u64>();
                load_pairs!(words, 0, $($name)*);
            }
        }
    };
}

with_el1_registers!(moves);

macro_rules! keys {
    ($($name:literal)*) => {
        const _: () = assert!(size_of::<Keys>() == 8 * [$($name),*].len());

        impl Keys {
            fn save(&mut self) {
                let words = self.0.as_mut_ptr();
                save_pairs!(words, 0, $($name)*);
            }

            fn load(&self) {
                let words = self.0.as_ptr();
                load_pairs!(words, 0, $($name)*);
            }
        }
    };
}

keys! {
    "S3_0_C2_C1_0" "S3_0_C2_C1_1" "S3_0_C2_C1_2" "S3_0_C2_C1_3" "S3_0_C2_C2_0"
    "S3_0_C2_C2_1" "S3_0_C2_C2_2" "S3_0_C2_C2_3" "S3_0_C2_C3_0" "S3_0_C2_C3_1"
}

macro_rules! debug_registers {
    ($($n:literal $bvr:literal $bcr:literal $wvr:literal $wcr:literal)*) => {
        impl Debug {
            fn save(&mut self) {
                let (breakpoints, watchpoints) = features::debug_registers();
                $(if $n < breakpoints {
                    self.breakpoints[$n] = [read_sysreg!($bvr), read_sysreg!($bcr)];
                }
                if $n < watchpoints {
                    self.watchpoints[$n] = [read_sysreg!($wvr), read_sysreg!($wcr)];
                })*
            }

            fn load(&self) {
                let (breakpoints, watchpoints) = features::debug_registers();
                $(if $n < breakpoints {
                    write_sysreg!($bvr, self.breakpoints[$n][0]);
                    write_sysreg!($bcr, self.breakpoints[$n][1]);
                }
                if $n < watchpoints {
                    write_sysreg!($wvr, self.watchpoints[$n][0]);
                    write_sysreg!($wcr, self.watchpoints[$n][1]);
                })*
            }
        }
    };
}

debug_registers! {
    0 "S2_0_C0_C0_4" "S2_0_C0_C0_5" "S2_0_C0_C0_6" "S2_0_C0_C0_7"
    1 "S2_0_C0_C1_4" "S2_0_C0_C1_5" "S2_0_C0_C1_6" "S2_0_C0_C1_7"
    2 "S2_0_C0_C2_4" "S2_0_C0_C2_5" "S2_0_C0_C2_6" "S2_0_C0_C2_7"
    3 "S2_0_C0_C3_4" "S2_0_C0_C3_5" "S2_0_C0_C3_6" "S2_0_C0_C3_7"
    4 "S2_0_C0_C4_4" "S2_0_C0_C4_5" "S2_0_C0_C4_6" "S2_0_C0_C4_7"
    5 "S2_0_C0_C5_4" "S2_0_C0_C5_5" "S2_0_C0_C5_6" "S2_0_C0_C5_7"
    6 "S2_0_C0_C6_4" "S2_0_C0_C6_5" "S2_0_C0_C6_6" "S2_0_C0_C6_7"
    7 "S2_0_C0_C7_4" "S2_0_C0_C7_5" "S2_0_C0_C7_6" "S2_0_C0_C7_7"
    8 "S2_0_C0_C8_4" "S2_0_C0_C8_5" "S2_0_C0_C8_6" "S2_0_C0_C8_7"
    9 "S2_0_C0_C9_4" "S2_0_C0_C9_5" "S2_0_C0_C9_6" "S2_0_C0_C9_7"
    10 "S2_0_C0_C10_4" "S2_0_C0_C10_5" "S2_0_C0_C10_6" "S2_0_C0_C10_7"
    11 "S2_0_C0_C11_4" "S2_0_C0_C11_5" "S2_0_C0_C11_6" "S2_0_C0_C11_7"
    12 "S2_0_C0_C12_4" "S2_0_C0_C12_5" "S2_0_C0_C12_6" "S2_0_C0_C12_7"
    13 "S2_0_C0_C13_4" "S2_0_C0_C13_5" "S2_0_C0_C13_6" "S2_0_C0_C13_7"
    14 "S2_0_C0_C14_4" "S2_0_C0_C14_5" "S2_0_C0_C14_6" "S2_0_C0_C14_7"
    15 "S2_0_C0_C15_4" "S2_0_C0_C15_5" "S2_0_C0_C15_6" "S2_0_C0_C15_7"
}

/// CNTHCTL_EL2.EL1PCTEN and EL1PCEN: EL1 and EL0 reach the physical counter and timer (Arm ARM D24.10.2).
const CNTHCTL_EL1PCTEN_EL1PCEN: u64 = 0b11;

/// All of it.
#[derive(Clone, Debug)]
pub struct GuestState {
    /// System registers.
    pub el1: El1Registers,
    /// FP and SIMD.
    pub fp: FpState,
    /// Timers.
    pub timers: Timers,
    /// Its PMU, if it has one.
    pub pmu: Option<GuestPmu>,
    keys: Keys,
    debug: Debug,
    /// While a CPU holds the guest: it holds `debug` and `claims`, too.
    has_debug: bool,
    os_lock: bool,
    /// The debug claim tags that are set, DBGCLAIMCLR_EL1.
    claims: u64,
    /// The physical counter and timer trap.
    traps_counter: bool,
    /// The guest's DISR_EL1: VDISR_EL2 while it has virtual SErrors, else DISR_EL1 itself.
    deferred_serror: u64,
    /// The machine holds it already: nothing is loaded the first time.
    in_machine: bool,
}

/// EL2 registers that make the machine this guest's: they come from the VM and the vCPU.
#[derive(Clone, Copy, Debug)]
pub struct GuestConfig {
    /// HCR_EL2.
    pub hcr: u64,
    /// VSESR_EL2, the syndrome of the virtual SError that `hcr` makes pending.
    pub serror: Option<u64>,
    /// VTTBR_EL2: VMID and stage-2 tables.
    pub vttbr: u64,
    /// VTCR_EL2.
    pub vtcr: u64,
    /// VMPIDR_EL2: the MPIDR_EL1 that the guest reads.
    pub vmpidr: u64,
    /// CNTVOFF_EL2: what the virtual counter is behind the physical one.
    pub cntvoff: u64,
    /// MDCR_EL2.
    pub mdcr: u64,
    /// `mdcr` keeps the guest from its debug registers, which may stay where they are.
    pub traps_debug: bool,
    /// CPTR_EL2.
    pub cptr: u64,
    /// The physical counter and timer trap.
    pub traps_counter: bool,
}

impl GuestState {
    /// The state of a CPU after reset, as KVM gives it: SCTLR_EL1 has its RES1 bits, the OS lock is open. `pmu`: it has a PMU.
    pub fn reset(pmu: bool) -> Self {
        Self {
            el1: El1Registers { sctlr: 0x00c5_0078, ..El1Registers::default() },
            fp: FpState { v: [[0; 2]; 32], fpsr: 0, fpcr: 0 },
            timers: Timers::default(),
            pmu: pmu.then(GuestPmu::reset),
            keys: Keys::default(),
            debug: Debug::default(),
            has_debug: false,
            os_lock: false,
            claims: 0,
            traps_counter: false,
            deferred_serror: 0,
            in_machine: false,
        }
    }

    /// The registers, which no CPU holds.
    pub fn parked(&mut self) -> Parked<'_> {
        Parked {
            el1: &mut self.el1,
            fp: &mut self.fp,
            timers: &mut self.timers,
            keys: &mut self.keys,
            debug: &mut self.debug,
            os_lock: &mut self.os_lock,
            pmu: self.pmu.as_mut(),
            deferred_serror: &mut self.deferred_serror,
        }
    }

    /// The state of a kernel that runs on this CPU now, wherever it is.
    pub fn in_machine() -> Self {
        Self { in_machine: true, ..Self::reset(features::has_pmu()) }
    }

    /// Takes the guest's state out of this CPU and stops its timers.
    pub fn save(&mut self) {
        self.save_registers();
        self.save_fp();
        without_guest();
    }

    /// Puts the guest's state into this CPU; the timers run from here on.
    /// With `events`, a PMU counts only those.
    pub fn load(&mut self, config: &GuestConfig, events: Option<&EventSet>) {
        self.configure(config);
        if core::mem::take(&mut self.in_machine) {
            return;
        }
        self.load_fp();
        self.load_registers(config.hcr, events);
    }

    /// Whether [`set_aside`](Self::set_aside) and [`replace`](Self::replace) move all that it has beside FP.
    #[inline(always)]
    pub fn is_plain(&self) -> bool {
        self.pmu.is_none() && !self.traps_counter
    }

    /// As [`save`](Self::save), for a guest that another one stands in for. FP, SIMD and the keys of pointer authentication stay,
    /// and so does DISR_EL1. This CPU is the guest's until the other is [put there](Self::replace).
    #[inline(always)]
    pub fn set_aside(&mut self) {
        self.save_timers();
        self.el1.save();
        self.save_debug();
    }

    /// As [`load`](Self::load), in the stead of a guest that was [set aside](Self::set_aside), or instead of one that stood in.
    #[inline(always)]
    pub fn replace(&mut self, config: &GuestConfig) {
        write_sysreg!("vtcr_el2", config.vtcr);
        write_sysreg!("vttbr_el2", config.vttbr);
        write_sysreg!("vmpidr_el2", config.vmpidr);
        write_sysreg!("cntvoff_el2", config.cntvoff);
        write_sysreg!("mdcr_el2", config.mdcr);
        write_sysreg!("cptr_el2", config.cptr);
        write_sysreg!("hcr_el2", config.hcr);
        // None of these changes what EL2's own writes of the following do.
        self.has_debug = !config.traps_debug;
        self.el1.load();
        self.load_debug();
        self.load_timers();
    }

    /// The keys of pointer authentication out of this CPU, which has them.
    pub fn save_keys(&mut self) {
        self.keys.save();
    }

    /// And into it.
    pub fn load_keys(&self) {
        self.keys.load();
    }

    /// DISR_EL1 out of this CPU, which has FEAT_RAS; `is_virtual`: the guest has virtual SErrors (HCR_EL2.AMO).
    #[inline(always)]
    pub fn save_deferred_serror(&mut self, is_virtual: bool) {
        self.deferred_serror = take_deferred_serror(is_virtual);
    }

    /// And into it.
    #[inline(always)]
    pub fn load_deferred_serror(&self, is_virtual: bool) {
        set_deferred_serror(is_virtual, self.deferred_serror);
    }

    /// FP and SIMD out of this CPU; its guest's accesses do not trap.
    pub fn save_fp(&mut self) {
        save_fp(&mut self.fp);
    }

    /// FP and SIMD into this CPU; its guest's accesses do not trap.
    pub fn load_fp(&self) {
        // SAFETY: `fp` is a whole FpState; see `save_fp`.
        unsafe { fpsimd_restore(&self.fp) };
    }

    /// And stops them.
    #[inline(always)]
    fn save_timers(&mut self) {
        self.timers.virtual_control = read_sysreg!("cntv_ctl_el0");
        self.timers.virtual_compare = read_sysreg!("cntv_cval_el0");
        self.timers.physical_control = read_sysreg!("cntp_ctl_el0");
        self.timers.physical_compare = read_sysreg!("cntp_cval_el0");
        write_sysreg!("cntv_ctl_el0", 0);
        write_sysreg!("cntp_ctl_el0", 0);
        isb();
    }

    #[inline(always)]
    fn load_timers(&self) {
        write_sysreg!("cntv_cval_el0", self.timers.virtual_compare);
        write_sysreg!("cntp_cval_el0", self.timers.physical_compare);
        isb();
        write_sysreg!("cntv_ctl_el0", self.timers.virtual_control);
        write_sysreg!("cntp_ctl_el0", self.timers.physical_control);
        isb();
    }

    fn save_registers(&mut self) {
        self.save_timers();
        if let Some(pmu) = &mut self.pmu {
            pmu.save();
        }
        self.el1.save();
        if features::has_pauth() {
            self.keys.save();
        }
        self.save_debug();
        if core::mem::take(&mut self.traps_counter) {
            write_sysreg!("cnthctl_el2", read_sysreg!("cnthctl_el2") | CNTHCTL_EL1PCTEN_EL1PCEN);
        }
        if features::has_ras() {
            self.deferred_serror = take_deferred_serror(read_sysreg!("hcr_el2") & hcr::HCR_AMO != 0);
        }
    }

    /// Makes this CPU the guest's, but for its registers.
    fn configure(&mut self, config: &GuestConfig) {
        write_sysreg!("vtcr_el2", config.vtcr);
        write_sysreg!("vttbr_el2", config.vttbr);
        write_sysreg!("vmpidr_el2", config.vmpidr);
        write_sysreg!("vpidr_el2", super::cpu::midr());
        write_sysreg!("cntvoff_el2", config.cntvoff);
        write_sysreg!("mdcr_el2", config.mdcr);
        write_sysreg!("cptr_el2", config.cptr);
        if let Some(syndrome) = config.serror {
            set_serror_syndrome(syndrome);
        }
        write_sysreg!("hcr_el2", config.hcr);
        self.traps_counter = config.traps_counter;
        if config.traps_counter {
            write_sysreg!("cnthctl_el2", read_sysreg!("cnthctl_el2") & !CNTHCTL_EL1PCTEN_EL1PCEN);
        }
        isb();
        self.has_debug = !config.traps_debug;
    }

    fn load_registers(&mut self, hcr: u64, events: Option<&EventSet>) {
        self.el1.load();
        if features::has_pauth() {
            self.keys.load();
        }
        self.load_debug();
        if features::has_ras() {
            set_deferred_serror(hcr & hcr::HCR_AMO != 0, self.deferred_serror);
        }
        if let Some(pmu) = &mut self.pmu {
            pmu.load(events);
        }
        self.load_timers();
    }
}

/// The DISR_EL1 of the guest that is loaded, out of this CPU.
#[inline(always)]
fn take_deferred_serror(is_virtual: bool) -> u64 {
    if is_virtual {
        return read_sysreg!("S3_4_C12_C1_1"); // VDISR_EL2
    }
    let deferred = read_sysreg!("S3_0_C12_C1_1"); // DISR_EL1
    write_sysreg!("S3_0_C12_C1_1", 0);
    deferred
}

#[inline(always)]
fn set_deferred_serror(is_virtual: bool, deferred: u64) {
    if is_virtual {
        write_sysreg!("S3_4_C12_C1_1", deferred);
    } else {
        write_sysreg!("S3_0_C12_C1_1", deferred);
    }
}

/// FP and SIMD out of this CPU, on which they do not trap.
pub fn save_fp(state: &mut FpState) {
    // SAFETY: `state` is ours and large enough; FP accesses from EL2 do not trap (CPTR_EL2.TFP = 0).
    unsafe { fpsimd_save(state) };
}

/// Sets CPTR_EL2 of the guest that is loaded, at once: it holds for EL2, too.
pub fn set_cptr(cptr: u64) {
    write_sysreg!("cptr_el2", cptr);
    isb();
}

/// MDSCR_EL1.SS: software step.
const MDSCR_SS: u64 = 1 << 0;
/// MDSCR_EL1, as its number in `S2_op1_CRn_CRm_op2`.
const MDSCR: [u8; 5] = [2, 0, 0, 2, 2];

/// MDSCR_EL1.MDE: breakpoints and watchpoints make exceptions (Arm ARM D2.4).
const MDSCR_MDE: u64 = 1 << 15;

/// Self-hosted debug, but for MDSCR_EL1 and MDCCINT_EL1, which are in the list of registers.
///
/// Breakpoints and watchpoints do nothing while MDSCR_EL1.MDE is 0. A guest that has it so is kept from all of these
/// registers, MDSCR_EL1 among them (MDCR_EL2.TDA), and they stay in memory until its first access. What the CPU has
/// meanwhile is another guest's, of no effect and out of reach.
impl GuestState {
    /// Whether the guest, which no CPU holds, can be kept from its debug registers for now.
    pub fn may_trap_debug(&self) -> bool {
        self.el1.mdscr & MDSCR_MDE == 0 && !self.in_machine
    }

    /// Takes them out of this CPU, and leaves the locks open: with the OS lock closed, MDSCR_EL1 of the next guest would
    /// write what belongs to an external debugger.
    #[inline(always)]
    fn save_debug(&mut self) {
        if self.has_debug {
            return self.save_all_debug();
        }
        // Closed from EL2 alone (MDCR_EL2.TDOSA).
        if self.os_lock {
            write_sysreg!("oslar_el1", 0);
        }
    }

    #[inline(never)]
    fn save_all_debug(&mut self) {
        self.debug.save();
        self.claims = read_sysreg!("dbgclaimclr_el1");
        write_sysreg!("dbgclaimclr_el1", self.claims);
        self.os_lock = read_sysreg!("oslsr_el1") & OSLK != 0;
        write_sysreg!("oslar_el1", 0);
        // What one guest has left in the communications channel, which these two read back, is not for the next one.
        write_sysreg!("osdtrrx_el1", 0);
        write_sysreg!("osdtrtx_el1", 0);
    }

    #[inline(always)]
    fn load_debug(&mut self) {
        if self.has_debug {
            self.load_all_debug();
        }
        // A CPU comes out of reset with the lock closed.
        write_sysreg!("oslar_el1", u64::from(self.os_lock));
    }

    #[inline(never)]
    fn load_all_debug(&self) {
        self.debug.load();
        write_sysreg!("dbgclaimset_el1", self.claims);
    }

    /// The guest, which has just been loaded with its debug registers trapped, has a debugger: what the CPU has is the debugger's.
    pub fn attach(&self, debugger: &Debugger) {
        let mut mdscr = self.el1.mdscr & !MDSCR_SS;
        if debugger.steps {
            mdscr |= MDSCR_SS;
        }
        match &debugger.hardware {
            Some(hardware) => {
                hardware.load();
                mdscr |= MDSCR_MDE;
            }
            None => self.debug.load(),
        }
        write_sysreg!("mdscr_el1", mdscr);
        isb();
    }

    /// Before it is saved: MDSCR_EL1 is its own again.
    pub fn detach(&self) {
        write_sysreg!("mdscr_el1", self.el1.mdscr);
        isb();
    }

    /// An access of the guest, which has a debugger, to a debug register (op0 = 2), by its number: `value` is written, or what is
    /// read is returned. `None` for one that is not there. Those that say what the CPU can do, and channels to the outside, read
    /// as zero and ignore writes.
    pub fn access_debug(&mut self, number: [u8; 5], value: Option<u64>, debugger: &Debugger) -> Option<u64> {
        let [op0, op1, crn, crm, op2] = number;
        if op0 != 2 || op1 != 0 {
            return None;
        }
        let register = if number == MDSCR {
            Some(&mut self.el1.mdscr)
        } else if crn == 0 {
            self.debug.find(registers::encoding([op0, op1, crn, crm, op2].map(u16::from)))
        } else {
            None
        };
        let Some(register) = register else { return Some(0) };
        if let Some(value) = value {
            *register = value;
            self.attach(debugger);
            return Some(0);
        }
        Some(*register)
    }

    /// OSLAR_EL1 of the guest, which this CPU holds: closes (bit 0) or opens its OS lock.
    pub fn set_os_lock(&mut self, value: u64) {
        self.os_lock = value & 1 != 0;
        write_sysreg!("oslar_el1", value & 1);
        isb();
    }

    /// Whether the guest that this CPU holds has them.
    pub fn has_debug(&self) -> bool {
        self.has_debug
    }

    /// The guest that this CPU holds is about to have them: the caller ends the trap.
    pub fn give_debug(&mut self) {
        if !core::mem::replace(&mut self.has_debug, true) {
            self.load_all_debug();
        }
    }
}

impl Aarch32Registers {
    /// Takes them out of this CPU, which has an AArch32 EL1.
    pub fn save(&mut self) {
        *self = Self {
            spsr: [
                read_sysreg!("spsr_abt"),
                read_sysreg!("spsr_und"),
                read_sysreg!("spsr_irq"),
                read_sysreg!("spsr_fiq"),
            ],
            dbgvcr: read_sysreg!("dbgvcr32_el2"),
            dacr: read_sysreg!("dacr32_el2"),
            ifsr: read_sysreg!("ifsr32_el2"),
            fpexc: read_sysreg!("fpexc32_el2"),
        };
    }

    /// Puts them into it; an exception return synchronizes.
    pub fn load(&self) {
        write_sysreg!("spsr_abt", self.spsr[Self::SPSR_ABT]);
        write_sysreg!("spsr_und", self.spsr[Self::SPSR_UND]);
        write_sysreg!("spsr_irq", self.spsr[2]);
        write_sysreg!("spsr_fiq", self.spsr[3]);
        write_sysreg!("dbgvcr32_el2", self.dbgvcr);
        write_sysreg!("dacr32_el2", self.dacr);
        write_sysreg!("ifsr32_el2", self.ifsr);
        write_sysreg!("fpexc32_el2", self.fpexc);
    }
}

/// EL1 of the guest that is loaded is AArch32.
pub fn is_el1_aarch32() -> bool {
    read_sysreg!("hcr_el2") & hcr::HCR_RW == 0
}

/// OSLSR_EL1.OSLK: the OS lock is closed.
const OSLK: u64 = 1 << 1;

/// OSLSR_EL1 of the guest that is loaded.
pub fn os_lock_status() -> u64 {
    read_sysreg!("oslsr_el1")
}

/// Says what the virtual SError of the guest that is loaded reads in ESR_EL1.ISS: VSESR_EL2, which is there with FEAT_RAS.
/// Elsewhere the CPU makes a syndrome up.
pub fn set_serror_syndrome(syndrome: u64) {
    if features::has_ras() {
        write_sysreg!("S3_4_C5_C2_3", syndrome);
    }
}

/// Whether the virtual SError of the guest that is loaded is still pending: hardware clears HCR_EL2.VSE when it is taken or
/// deferred.
pub fn is_serror_pending() -> bool {
    read_sysreg!("hcr_el2") & hcr::HCR_VSE != 0
}

/// No guest is loaded: stage 2 is off, so that nothing walks tables that may be on their way back to the allocator.
/// Interrupts stay routed to EL2.
fn without_guest() {
    write_sysreg!("hcr_el2", hcr::HCR_EL2_HOST | hcr::HCR_FMO_IMO_AMO);
    isb();
    write_sysreg!("vttbr_el2", 0);
    isb();
}

/// A CPU that nobody used before keel, or whose user is gone: nothing is left of what it had set up for itself.
pub fn clear_cpu() {
    guest_pmu::prepare_cpu();
}

/// What holds for every guest on this CPU, once: features that guests are not shown trap, where it is not a bit of the
/// registers that [`GuestState::load`] writes. All of these are zero for "trap" (the names begin with n or En) or for
/// "does not exist" (Arm ARM D24.2).
pub fn prepare_cpu() {
    if features::has_hcx() {
        write_sysreg!("S3_4_C1_C2_2", 0); // HCRX_EL2: TCR2, MOPS, LS64, GCS, PFAR …
    }
    if features::has_fgt() {
        write_sysreg!("S3_4_C1_C1_4", 0); // HFGRTR_EL2: PIR, POR, TPIDR2, SMPRI, GCS, RCWMASK …
        write_sysreg!("S3_4_C1_C1_5", 0); // HFGWTR_EL2
        write_sysreg!("S3_4_C1_C1_6", 0); // HFGITR_EL2
        write_sysreg!("S3_4_C3_C1_4", 0); // HDFGRTR_EL2: BRBE, PMSNEVFR
        write_sysreg!("S3_4_C3_C1_5", 0); // HDFGWTR_EL2
    }
    if features::has_fgt2() {
        write_sysreg!("S3_4_C3_C1_0", 0); // HDFGRTR2_EL2
        write_sysreg!("S3_4_C3_C1_1", 0); // HDFGWTR2_EL2
        write_sysreg!("S3_4_C3_C1_2", 0); // HFGRTR2_EL2
        write_sysreg!("S3_4_C3_C1_3", 0); // HFGWTR2_EL2
        write_sysreg!("S3_4_C3_C1_7", 0); // HFGITR2_EL2
    }
    if features::has_mpam() {
        write_sysreg!("S3_4_C10_C5_0", (1 << 48) | (1 << 49)); // MPAM2_EL2.TRAPMPAM1EL1, TRAPMPAM0EL1
    }
    without_guest();
}

/// CPTR_EL2 and MDCR_EL2 as they are now.
pub fn owner_traps() -> [u64; 2] {
    [read_sysreg!("cptr_el2"), read_sysreg!("mdcr_el2")]
}

/// Sets MDCR_EL2 of the guest that is loaded: from its next instruction on, which a return from an exception synchronizes.
pub fn set_mdcr(mdcr: u64) {
    write_sysreg!("mdcr_el2", mdcr);
}

/// Sets HCR_EL2 of the guest that is loaded.
#[inline]
pub fn set_hcr(hcr: u64) {
    write_sysreg!("hcr_el2", hcr);
    isb();
}

/// What is needed of EL1 to make the guest that is loaded take an exception.
#[derive(Clone, Copy, Debug)]
pub struct ExceptionState {
    /// VBAR_EL1.
    pub vbar: u64,
    /// SCTLR_EL1.
    pub sctlr: u64,
}

/// Reads it.
pub fn exception_state() -> ExceptionState {
    ExceptionState { vbar: read_sysreg!("vbar_el1"), sctlr: read_sysreg!("sctlr_el1") }
}

/// TCR_EL1, whose low half is TTBCR, and FAR_EL1, which is DFAR and IFAR.
pub fn aarch32_exception_state() -> [u64; 2] {
    [read_sysreg!("tcr_el1"), read_sysreg!("far_el1")]
}

/// Writes what an exception to an AArch32 EL1 leaves behind: DFSR, IFSR, DFAR and IFAR, and the SPSR of Undefined or Abort mode.
pub fn set_aarch32_exception_registers(dfsr: Option<u64>, ifsr: Option<u64>, far: u64, spsr: (usize, u64)) {
    if let Some(dfsr) = dfsr {
        write_sysreg!("esr_el1", dfsr);
    }
    if let Some(ifsr) = ifsr {
        write_sysreg!("ifsr32_el2", ifsr);
    }
    write_sysreg!("far_el1", far);
    if spsr.0 == Aarch32Registers::SPSR_UND {
        write_sysreg!("spsr_und", spsr.1);
    } else {
        write_sysreg!("spsr_abt", spsr.1);
    }
}

/// Writes what the exception leaves behind.
pub fn set_exception_registers(esr: u64, far: Option<u64>, elr: u64, spsr: u64) {
    write_sysreg!("esr_el1", esr);
    if let Some(far) = far {
        write_sysreg!("far_el1", far);
    }
    write_sysreg!("elr_el1", elr);
    write_sysreg!("spsr_el1", spsr);
}
