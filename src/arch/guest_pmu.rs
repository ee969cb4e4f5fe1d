//! A guest's PMU (PMUv3): its registers while its vCPU has no CPU, and which counters of this CPU it may have.
//!
//! A guest has the event counters below MDCR_EL2.HPMN and the cycle counter, and programs them directly: PMCR_EL0.N reads as
//! HPMN, and nothing it does to them exits. They move when a CPU changes vCPU. In between they stand still: PMCR_EL0.E is
//! 0 while no guest with a PMU is loaded, so that nothing counts and no overflow interrupts for one that is not there, and a
//! guest without a PMU, for which every access traps (MDCR_EL2.TPM), finds nothing of it either.
//!
//! EL2 is not counted, whatever a guest writes to PMEVTYPERn_EL0.NSH, which nothing keeps it from: by MDCR_EL2.HPMD and HCCD.
//! Before FEAT_PMUv3p5 (HCCD) and FEAT_PMUv3p1 (HPMD) hardware cannot do that for the cycle counter, and for any. A guest that asks
//! for it there counts what its own exits cost as well, but nothing that its CPU does for others: [`pause`] and [`resume`]
//! stand around that. (Trapping the PMU instead would make every read of a counter an exit.)

use super::{
    features, pmu,
    pmuv3::{
        CYCLE_COUNTER, EventSet, GuestPmu, MAX_COUNTERS, PMCR_C, PMCR_E, PMCR_LC, PMCR_N_SHIFT, PMCR_P, PmuRegister,
    },
    sysreg::{isb, read_sysreg, write_sysreg},
};

/// PMCR_EL0.LP: event counters overflow at 64 bits (FEAT_PMUv3p5).
const PMCR_LP: u64 = 1 << 7;
const PMCR_N: u64 = 0x1f << PMCR_N_SHIFT;
/// PMEVTYPERn_EL0.P, U: EL1, EL0 are not counted; NSH: EL2 is.
const FILTER_P: u64 = 1 << 31;
const FILTER_U: u64 = 1 << 30;
const NSH: u64 = 1 << 27;
/// HDFGRTR_EL2 and HDFGWTR_EL2: PMEVTYPERn_EL0 and PMXEVTYPER_EL0, and PMCCFILTR_EL0, trap.
const FGT_EVENTS: u64 = 1 << 13 | 1 << 14;
/// HDFGRTR_EL2: PMCEIDn_EL0 traps.
const FGT_COMMON_EVENTS: u64 = 1 << 58;
/// PMUSERENR_EL0.EN: EL0 may do everything, that is: nothing traps to EL1. (The finer bits would change nothing, but in QEMU
/// they let EL0 past MDCR_EL2.TPM.)
const EL0_ALLOWED: u64 = 1 << 0;
/// PMUSERENR_EL0: EN, SW, CR, ER.
const EL0_ENABLES: u64 = 0xf;

macro_rules! counters {
    ($($n:literal $counter:literal $event:literal)*) => {
        impl GuestPmu {
            fn save_counters(&mut self, count: usize) {
                $(if $n < count {
                    self.counters[$n][0] = read_sysreg!($counter);
                    if !self.is_filtered {
                        self.counters[$n][1] = read_sysreg!($event);
                    }
                })*
            }

            fn load_counters(&self, count: usize, events: Option<&EventSet>) {
                $(if $n < count {
                    let [counter, event] = self.counters[$n];
                    write_sysreg!($counter, counter);
                    write_sysreg!($event, events.map_or(event, |events| events.event_type(event)));
                })*
            }
        }
    };
}

counters! {
    0 "S3_3_C14_C8_0" "S3_3_C14_C12_0"
    1 "S3_3_C14_C8_1" "S3_3_C14_C12_1"
    2 "S3_3_C14_C8_2" "S3_3_C14_C12_2"
    3 "S3_3_C14_C8_3" "S3_3_C14_C12_3"
    4 "S3_3_C14_C8_4" "S3_3_C14_C12_4"
    5 "S3_3_C14_C8_5" "S3_3_C14_C12_5"
    6 "S3_3_C14_C8_6" "S3_3_C14_C12_6"
    7 "S3_3_C14_C8_7" "S3_3_C14_C12_7"
    8 "S3_3_C14_C9_0" "S3_3_C14_C13_0"
    9 "S3_3_C14_C9_1" "S3_3_C14_C13_1"
    10 "S3_3_C14_C9_2" "S3_3_C14_C13_2"
    11 "S3_3_C14_C9_3" "S3_3_C14_C13_3"
    12 "S3_3_C14_C9_4" "S3_3_C14_C13_4"
    13 "S3_3_C14_C9_5" "S3_3_C14_C13_5"
    14 "S3_3_C14_C9_6" "S3_3_C14_C13_6"
    15 "S3_3_C14_C9_7" "S3_3_C14_C13_7"
    16 "S3_3_C14_C10_0" "S3_3_C14_C14_0"
    17 "S3_3_C14_C10_1" "S3_3_C14_C14_1"
    18 "S3_3_C14_C10_2" "S3_3_C14_C14_2"
    19 "S3_3_C14_C10_3" "S3_3_C14_C14_3"
    20 "S3_3_C14_C10_4" "S3_3_C14_C14_4"
    21 "S3_3_C14_C10_5" "S3_3_C14_C14_5"
    22 "S3_3_C14_C10_6" "S3_3_C14_C14_6"
    23 "S3_3_C14_C10_7" "S3_3_C14_C14_7"
    24 "S3_3_C14_C11_0" "S3_3_C14_C15_0"
    25 "S3_3_C14_C11_1" "S3_3_C14_C15_1"
    26 "S3_3_C14_C11_2" "S3_3_C14_C15_2"
    27 "S3_3_C14_C11_3" "S3_3_C14_C15_3"
    28 "S3_3_C14_C11_4" "S3_3_C14_C15_4"
    29 "S3_3_C14_C11_5" "S3_3_C14_C15_5"
    30 "S3_3_C14_C11_6" "S3_3_C14_C15_6"
}

/// How many event counters the guest on this CPU has, MDCR_EL2.HPMN, and the bits of what it has in the registers with a bit
/// for each counter.
fn owned() -> (usize, u64) {
    let count = pmu::guest_counters();
    (count, CYCLE_COUNTER | ((1 << count) - 1))
}

impl GuestPmu {
    /// As after reset, but that nothing is left UNKNOWN.
    pub fn reset() -> Self {
        // Where EL0 has no AArch32 the bit is RES1 (Arm ARM, PMCR_EL0.LC).
        let control = if features::has_aarch32_el0() { 0 } else { PMCR_LC };
        Self { control, ..Self::default() }
    }

    /// Takes the guest's PMU out of this CPU, which counts nothing for guests from here on.
    pub(super) fn save(&mut self) {
        if !features::has_pmu() {
            return;
        }
        let (count, mask) = owned();
        self.control = read_sysreg!("pmcr_el0");
        write_sysreg!("pmcr_el0", self.control & !PMCR_E);
        isb();
        self.enabled = read_sysreg!("pmcntenset_el0") & mask;
        self.interrupts = read_sysreg!("pmintenset_el1") & mask;
        self.overflows = read_sysreg!("pmovsset_el0") & mask;
        self.select = read_sysreg!("pmselr_el0");
        self.user = read_sysreg!("pmuserenr_el0");
        self.cycles = read_sysreg!("pmccntr_el0");
        if !self.is_filtered {
            self.cycle_filter = read_sysreg!("pmccfiltr_el0");
        }
        self.save_counters(count);
        // The next guest may have fewer counters, and EL2 the others.
        write_sysreg!("pmcntenclr_el0", mask);
        // The line falls with PMCR_EL0.E already; QEMU sees to that only when one of the other registers is written.
        write_sysreg!("pmintenclr_el1", mask);
        if self.is_filtered && features::has_fgt() {
            write_sysreg!("S3_4_C3_C1_4", 0);
            write_sysreg!("S3_4_C3_C1_5", 0);
        }
        hide();
    }

    /// Puts the guest's PMU into this CPU, which has its MDCR_EL2 already. What it finds there of another guest is
    /// overwritten, counter by counter. With `events` it counts only those.
    pub(super) fn load(&mut self, events: Option<&EventSet>) {
        self.is_filtered = events.is_some();
        if !features::has_pmu() {
            return;
        }
        let (count, mask) = owned();
        if self.control & (PMCR_P | PMCR_C) != 0 {
            self.reset_counters(count);
        }
        write_sysreg!("pmcntenclr_el0", mask);
        write_sysreg!("pmintenclr_el1", mask);
        write_sysreg!("pmovsclr_el0", mask);
        self.load_counters(count, events);
        write_sysreg!("pmccntr_el0", self.cycles);
        write_sysreg!(
            "pmccfiltr_el0",
            events.map_or(self.cycle_filter, |events| events.cycle_filter(self.cycle_filter))
        );
        if self.is_filtered && features::has_fgt() {
            write_sysreg!("S3_4_C3_C1_4", FGT_EVENTS | FGT_COMMON_EVENTS);
            write_sysreg!("S3_4_C3_C1_5", FGT_EVENTS);
        }
        write_sysreg!("pmselr_el0", self.select);
        write_sysreg!("pmuserenr_el0", self.user);
        write_sysreg!("pmovsset_el0", self.overflows & mask);
        write_sysreg!("pmcr_el0", self.control);
        // Nothing may count, or interrupt, before all of it is there.
        isb();
        write_sysreg!("pmcntenset_el0", self.enabled & mask);
        write_sysreg!("pmintenset_el1", self.interrupts & mask);
        isb();
    }

    /// Carries out an access that trapped, for the guest that this CPU holds: a load, or a store of `value`. `None` if it is
    /// undefined.
    pub fn access(&mut self, register: PmuRegister, value: Option<u64>, events: Option<&EventSet>) -> Option<u64> {
        let (count, mask) = owned();
        // The register that PMXEVCNTR_EL0 or PMXEVTYPER_EL0 stands for.
        let selected = (read_sysreg!("pmselr_el0") & 0x1f) as u8;
        let register = match register {
            PmuRegister::SelectedCounter => PmuRegister::Counter(selected),
            PmuRegister::SelectedType if selected == 31 => PmuRegister::CycleFilter,
            PmuRegister::SelectedType => PmuRegister::EventType(selected),
            register => register,
        };
        match value {
            None => self.read(register, count, mask, events),
            Some(value) => self.write(register, value, count, mask, events).then_some(0),
        }
    }

    fn read(&self, register: PmuRegister, count: usize, mask: u64, events: Option<&EventSet>) -> Option<u64> {
        let seen = |n: u8, value: u64| events.map_or(value, |events| events.common_events(n, value));
        Some(match register {
            PmuRegister::Control => read_sysreg!("pmcr_el0") & !PMCR_N | (count as u64) << PMCR_N_SHIFT,
            PmuRegister::EnableSet | PmuRegister::EnableClear => read_sysreg!("pmcntenset_el0") & mask,
            PmuRegister::InterruptSet | PmuRegister::InterruptClear => read_sysreg!("pmintenset_el1") & mask,
            PmuRegister::OverflowSet | PmuRegister::OverflowClear => read_sysreg!("pmovsset_el0") & mask,
            PmuRegister::Select => read_sysreg!("pmselr_el0"),
            PmuRegister::CommonEvents(0) => seen(0, read_sysreg!("pmceid0_el0")),
            PmuRegister::CommonEvents(_) => seen(1, read_sysreg!("pmceid1_el0")),
            PmuRegister::MachineIdentification if features::has_pmmir() => read_sysreg!("S3_0_C9_C14_6"),
            PmuRegister::UserEnable => read_sysreg!("pmuserenr_el0"),
            PmuRegister::Cycles => read_sysreg!("pmccntr_el0"),
            PmuRegister::CycleFilter if events.is_some() => self.cycle_filter,
            PmuRegister::CycleFilter => read_sysreg!("pmccfiltr_el0"),
            PmuRegister::Counter(n) if usize::from(n) < count => with_selected(n, || read_sysreg!("pmxevcntr_el0")),
            PmuRegister::EventType(n) if usize::from(n) < count => match events {
                Some(_) => self.counters.get(usize::from(n))?[1],
                None => with_selected(n, || read_sysreg!("pmxevtyper_el0")),
            },
            _ => return None,
        })
    }

    /// `false` if it is undefined.
    fn write(&mut self, register: PmuRegister, value: u64, count: usize, mask: u64, events: Option<&EventSet>) -> bool {
        match register {
            PmuRegister::Control => {
                if value & PMCR_P != 0 {
                    // Written at EL2 the bit would reset keel's counters too.
                    (0..count as u8).for_each(|n| with_selected(n, || write_sysreg!("pmxevcntr_el0", 0)));
                }
                write_sysreg!("pmcr_el0", value & !PMCR_P);
            }
            PmuRegister::EnableSet => write_sysreg!("pmcntenset_el0", value & mask),
            PmuRegister::EnableClear => write_sysreg!("pmcntenclr_el0", value & mask),
            PmuRegister::InterruptSet => write_sysreg!("pmintenset_el1", value & mask),
            PmuRegister::InterruptClear => write_sysreg!("pmintenclr_el1", value & mask),
            PmuRegister::OverflowSet => write_sysreg!("pmovsset_el0", value & mask),
            PmuRegister::OverflowClear => write_sysreg!("pmovsclr_el0", value & mask),
            PmuRegister::SoftwareIncrement => self.increment(value & mask & !CYCLE_COUNTER),
            PmuRegister::Select => write_sysreg!("pmselr_el0", value & 0x1f),
            PmuRegister::UserEnable => write_sysreg!("pmuserenr_el0", value & EL0_ENABLES),
            PmuRegister::Cycles => write_sysreg!("pmccntr_el0", value),
            PmuRegister::CycleFilter => {
                self.cycle_filter = value & !NSH;
                write_sysreg!("pmccfiltr_el0", events.map_or(value, |events| events.cycle_filter(value)));
            }
            PmuRegister::Counter(n) if usize::from(n) < count => {
                with_selected(n, || write_sysreg!("pmxevcntr_el0", value));
            }
            PmuRegister::EventType(n) if usize::from(n) < count => {
                if let Some(slot) = self.counters.get_mut(usize::from(n)) {
                    slot[1] = value & !NSH;
                }
                let held = events.map_or(value, |events| events.event_type(value));
                with_selected(n, || write_sysreg!("pmxevtyper_el0", held));
            }
            _ => return false,
        }
        isb();
        true
    }

    /// PMSWINC_EL0: written here it would count at EL2, where nothing counts. Only counters of SW_INCR at the guest's own
    /// level are to count; their filters say so, and EL1 is what mostly asks.
    fn increment(&self, counters: u64) {
        let counting = read_sysreg!("pmcntenset_el0") & counters;
        if read_sysreg!("pmcr_el0") & PMCR_E == 0 {
            return;
        }
        let from_el0 = read_sysreg!("spsr_el2") & 0xf == 0;
        let excluded = if from_el0 { FILTER_U } else { FILTER_P };
        let long = features::pmu_version() >= features::PMU_V3P5 && read_sysreg!("pmcr_el0") & PMCR_LP != 0;
        for n in (0..MAX_COUNTERS as u8).filter(|n| counting >> n & 1 != 0) {
            let event = with_selected(n, || read_sysreg!("pmxevtyper_el0"));
            if event & 0xffff != 0 || event & excluded != 0 {
                continue;
            }
            let before = with_selected(n, || read_sysreg!("pmxevcntr_el0"));
            let after = if long {
                before.wrapping_add(1)
            } else {
                before & !0xffff_ffff | u64::from((before as u32).wrapping_add(1))
            };
            with_selected(n, || write_sysreg!("pmxevcntr_el0", after));
            if (long && after == 0) || (!long && after as u32 == 0) {
                write_sysreg!("pmovsset_el0", 1 << n);
            }
        }
    }
}

/// Does something with PMXEVCNTR_EL0 and PMXEVTYPER_EL0 of counter `n`, and selects again what the guest had selected.
fn with_selected<T>(n: u8, access: impl FnOnce() -> T) -> T {
    let selected = read_sysreg!("pmselr_el0");
    write_sysreg!("pmselr_el0", u64::from(n));
    isb();
    let result = access();
    write_sysreg!("pmselr_el0", selected);
    isb();
    result
}

/// Whether the guest on this CPU asks for its overflow interrupt.
#[cold]
#[inline(never)]
pub fn output() -> bool {
    let (_, mask) = owned();
    let asked = || read_sysreg!("pmovsset_el0") & read_sysreg!("pmintenset_el1") & mask;
    features::has_pmu() && read_sysreg!("pmcr_el0") & PMCR_E != 0 && asked() != 0
}

/// The overflow interrupt came, although no guest asks for it: by the time it came, nobody did any more. Writing a register with
/// what it holds changes nothing, but makes QEMU look at the line, which it does not when PMCR_EL0.E changes.
pub fn refresh_output() {
    if features::has_pmu() {
        write_sysreg!("pmintenset_el1", read_sysreg!("pmintenset_el1"));
        isb();
    }
}

/// This CPU's PMU as guests without one need it: every access of EL0 is EL2's to see, as those of EL1 are (MDCR_EL2.TPM).
fn hide() {
    write_sysreg!("pmuserenr_el0", EL0_ALLOWED);
}

/// Whatever firmware or a boot loader left counting stops.
pub(super) fn prepare_cpu() {
    if features::has_pmu() {
        write_sysreg!("pmcr_el0", read_sysreg!("pmcr_el0") & !PMCR_E);
        write_sysreg!("pmcntenclr_el0", pmu::not_kept());
        write_sysreg!("pmintenclr_el1", u64::from(u32::MAX));
        write_sysreg!("pmovsclr_el0", u64::from(u32::MAX));
        hide();
    }
}

/// The kernel that this CPU is given back to decides on EL0's accesses itself.
pub fn give_back() {
    if features::has_pmu() {
        write_sysreg!("pmuserenr_el0", 0);
    }
}

/// Whether the counters have to be [paused](pause) while EL2 works for them to count nothing of it.
pub fn needs_pause() -> bool {
    features::pmu_version() < features::PMU_V3P5
}

/// Stops the guest's counters. Returns those that counted, for [`resume`]; overflows that have happened stay.
#[inline]
pub fn pause() -> u64 {
    let counting = read_sysreg!("pmcntenset_el0") & owned().1;
    write_sysreg!("pmcntenclr_el0", counting);
    counting
}

/// Lets them count again: from the guest's next instruction on, which a return from an exception synchronizes.
#[inline]
pub fn resume(counting: u64) {
    write_sysreg!("pmcntenset_el0", counting);
}
