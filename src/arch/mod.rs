//! The machine: registers, barriers, TLB and caches, ID registers, ESR decoding, host GIC, timer, PMU and SMC.
