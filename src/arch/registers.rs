//! A guest's registers as values: what of them stays in the machine while it runs, and where each is by its encoding.
//!
//! Only structures, so that what works on a vCPU that no CPU holds can be tested anywhere. The module `state` moves them
//! into and out of a CPU.

use super::pmuv3::GuestPmu;

/// The encoding of a system register: op0 in bits 15:14, op1 in 13:11, CRn in 10:7, CRm in 6:3, op2 in 2:0.
pub(super) const fn encoding([op0, op1, crn, crm, op2]: [u16; 5]) -> u16 {
    op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2
}

/// V0-V31, FPSR and FPCR.
#[repr(C, align(16))]
#[derive(Clone, Debug, Default)]
pub struct FpState {
    /// V0-V31, two words each, the low one first.
    pub v: [[u64; 2]; 32],
    /// FPSR.
    pub fpsr: u64,
    /// FPCR.
    pub fpcr: u64,
}

/// Applies a macro to the list of EL1 and EL0 system registers that every AArch64 CPU has: field, name, encoding.
macro_rules! with_el1_registers {
    ($apply:ident) => {
        $apply! {
            sctlr "sctlr_el1" (3, 0, 1, 0, 0)
            cpacr "cpacr_el1" (3, 0, 1, 0, 2)
            ttbr0 "ttbr0_el1" (3, 0, 2, 0, 0)
            ttbr1 "ttbr1_el1" (3, 0, 2, 0, 1)
            tcr "tcr_el1" (3, 0, 2, 0, 2)
            esr "esr_el1" (3, 0, 5, 2, 0)
            afsr0 "afsr0_el1" (3, 0, 5, 1, 0)
            afsr1 "afsr1_el1" (3, 0, 5, 1, 1)
            far "far_el1" (3, 0, 6, 0, 0)
            mair "mair_el1" (3, 0, 10, 2, 0)
            amair "amair_el1" (3, 0, 10, 3, 0)
            vbar "vbar_el1" (3, 0, 12, 0, 0)
            contextidr "contextidr_el1" (3, 0, 13, 0, 1)
            tpidr_el1 "tpidr_el1" (3, 0, 13, 0, 4)
            tpidr_el0 "tpidr_el0" (3, 3, 13, 0, 2)
            tpidrro_el0 "tpidrro_el0" (3, 3, 13, 0, 3)
            par "par_el1" (3, 0, 7, 4, 0)
            csselr "csselr_el1" (3, 2, 0, 0, 0)
            cntkctl "cntkctl_el1" (3, 0, 14, 1, 0)
            elr "elr_el1" (3, 0, 4, 0, 1)
            spsr "spsr_el1" (3, 0, 4, 0, 0)
            sp_el0 "sp_el0" (3, 0, 4, 1, 0)
            sp_el1 "sp_el1" (3, 4, 4, 1, 0)
            mdscr "mdscr_el1" (2, 0, 0, 2, 2)
            mdccint "mdccint_el1" (2, 0, 0, 2, 0)
        }
    };
}
// Only what moves them needs the list beside this module.
#[cfg_attr(not(target_os = "none"), expect(unused_imports, reason = "hosts have no such registers to move"))]
pub(super) use with_el1_registers;

macro_rules! el1_registers {
    ($($field:ident $name:literal ($op0:literal, $op1:literal, $crn:literal, $crm:literal, $op2:literal))*) => {
        /// EL1 and EL0 system registers that every AArch64 CPU has, in the order of the list.
        #[repr(C)]
        #[derive(Clone, Debug, Default)]
        pub struct El1Registers {
            $(#[doc = concat!("`", $name, "`.")] pub $field: u64,)*
        }

        impl El1Registers {
            fn find(&mut self, register: u16) -> Option<&mut u64> {
                $(if register == encoding([$op0, $op1, $crn, $crm, $op2]) {
                    return Some(&mut self.$field);
                })*
                None
            }
        }
    };
}

with_el1_registers!(el1_registers);

/// The keys of pointer authentication, low and high half of IA, IB, DA, DB, GA.
#[derive(Clone, Debug, Default)]
pub struct Keys(pub [u64; 10]);

impl Keys {
    /// APIAKeyLo_EL1 and what follows it: CRm 1 to 3, of the last only GA's two.
    fn find(&mut self, register: u16) -> Option<&mut u64> {
        let first = encoding([3, 0, 2, 1, 0]);
        let (crm, op2) = register.checked_sub(first).map(|offset| (offset / 8, offset % 8))?;
        if crm > 2 || op2 > 3 {
            return None;
        }
        self.0.get_mut(usize::from(crm * 4 + op2))
    }
}

/// Breakpoints and watchpoints: (value, control) of each.
#[derive(Clone, Debug, Default)]
pub struct Debug {
    /// DBGBVRn_EL1, DBGBCRn_EL1.
    pub breakpoints: [[u64; 2]; 16],
    /// DBGWVRn_EL1, DBGWCRn_EL1.
    pub watchpoints: [[u64; 2]; 16],
}

impl Debug {
    /// n is CRm; op2 4 to 7 are the four of each.
    pub(super) fn find(&mut self, register: u16) -> Option<&mut u64> {
        let offset = usize::from(register.checked_sub(encoding([2, 0, 0, 0, 0]))?);
        let (n, op2) = (offset / 8, offset % 8);
        let group = match op2 {
            4 | 5 => &mut self.breakpoints,
            6 | 7 => &mut self.watchpoints,
            _ => return None,
        };
        group.get_mut(n)?.get_mut(op2 % 2)
    }
}

/// A debugger of a guest's, outside it.
#[derive(Clone, Debug)]
pub struct Debugger {
    /// The guest stops after each instruction.
    pub steps: bool,
    /// Breakpoints and watchpoints that the CPU has instead of the guest's.
    pub hardware: Option<Debug>,
}

/// The EL1 timers, as the guest set them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timers {
    /// CNTV_CTL_EL0.
    pub virtual_control: u64,
    /// CNTV_CVAL_EL0.
    pub virtual_compare: u64,
    /// CNTP_CTL_EL0.
    pub physical_control: u64,
    /// CNTP_CVAL_EL0.
    pub physical_compare: u64,
}

/// Registers that only AArch32's EL1 has. A CPU holds them while such a vCPU runs; for others they are only remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aarch32Registers {
    /// SPSR_abt, SPSR_und, SPSR_irq, SPSR_fiq. (SPSR_svc is SPSR_EL1.)
    pub spsr: [u64; 4],
    /// DBGVCR32_EL2.
    pub dbgvcr: u64,
    /// DACR32_EL2.
    pub dacr: u64,
    /// IFSR32_EL2.
    pub ifsr: u64,
    /// FPEXC32_EL2.
    pub fpexc: u64,
}

impl Aarch32Registers {
    /// Which of [`spsr`](Self::spsr) is SPSR_abt.
    pub const SPSR_ABT: usize = 0;
    /// Which of [`spsr`](Self::spsr) is SPSR_und.
    pub const SPSR_UND: usize = 1;

    /// After reset, as KVM has it: FPEXC32_EL2 has its RES1 bits.
    pub const RESET: Self = Self { spsr: [0; 4], dbgvcr: 0, dacr: 0, ifsr: 0, fpexc: 0x700 };
}

/// The registers of a vCPU that no CPU holds, wherever each is kept.
#[derive(Debug)]
pub struct Parked<'a> {
    /// System registers.
    pub el1: &'a mut El1Registers,
    /// FP and SIMD.
    pub fp: &'a mut FpState,
    /// Timers.
    pub timers: &'a mut Timers,
    /// Pointer authentication.
    pub keys: &'a mut Keys,
    /// Breakpoints and watchpoints.
    pub debug: &'a mut Debug,
    /// OSLSR_EL1.OSLK.
    pub os_lock: &'a mut bool,
    /// Its PMU, if it has one.
    pub pmu: Option<&'a mut GuestPmu>,
    /// DISR_EL1.
    pub deferred_serror: &'a mut u64,
}

impl Parked<'_> {
    /// The system register with this encoding (op0 in bits 15:14, op1 in 13:11, CRn in 10:7, CRm in 6:3, op2 in 2:0), if it
    /// is a value of the guest's own.
    pub fn system(&mut self, register: u16) -> Option<&mut u64> {
        if register == encoding([3, 0, 12, 1, 1]) {
            return Some(self.deferred_serror);
        }
        match register >> 14 {
            // MDSCR_EL1 and MDCCINT_EL1 lie among the breakpoints, with op2 of their own.
            2 => self.el1.find(register).or_else(|| self.debug.find(register)),
            _ => self.el1.find(register).or_else(|| self.keys.find(register)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_has_a_place_of_its_own() {
        let (mut el1, mut fp, mut timers) = (El1Registers::default(), FpState::default(), Timers::default());
        let (mut keys, mut debug) = (Keys::default(), Debug::default());
        let (mut os_lock, mut deferred_serror) = (false, 0);
        let mut parked = Parked {
            el1: &mut el1,
            fp: &mut fp,
            timers: &mut timers,
            keys: &mut keys,
            debug: &mut debug,
            os_lock: &mut os_lock,
            pmu: None,
            deferred_serror: &mut deferred_serror,
        };
        let all: Vec<u16> = (0..=u16::MAX).filter(|&register| parked.system(register).is_some()).collect();
        // 25 of EL1, ten halves of keys, four for each of 16 pairs of debug registers, DISR_EL1.
        assert_eq!(all.len(), 25 + 10 + 64 + 1);
        for &register in &all {
            *parked.system(register).unwrap() = u64::from(register);
        }
        for &register in &all {
            assert_eq!(*parked.system(register).unwrap(), u64::from(register), "{register:#x}");
        }
        assert_eq!((el1.sctlr, el1.mdscr, keys.0[9], deferred_serror), (0xc080, 0x8012, 0xc119, 0xc609));
        assert_eq!(
            (keys.0[0], keys.0[4], debug.breakpoints[15], debug.watchpoints[2]),
            (0xc108, 0xc110, [0x807c, 0x807d], [0x8016, 0x8017])
        );
    }
}
