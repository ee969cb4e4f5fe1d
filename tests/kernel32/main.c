// The 32-bit test kernel: what a guest whose EL1 is AArch32 finds, good input and bad.
//
// The boot arguments say what is underneath: `hyp=keel`, `hyp=kvm`, or nothing for a bare CPU, where the cases skip that only
// hold under a hypervisor. `only=TEXT` runs the cases whose name has TEXT in it. It prints as the 64-bit one does.
#include "main.h"

u32 boot_tree;
volatile struct taken taken;
volatile bool expected;
// Under keel or KVM; under KVM, whose aborts do not say that they were stores, or of a walk, which goes by the register that
// QEMU's CPU reports for a load, the instruction's and not the mode's, and which takes minutes for some 20 000 exits there, and which takes any odd number for DBGOSLAR's key.
static bool under_keel, under_kvm;
static char arguments[128];
static u32 cpus;

// What the compiler calls.
void *memset(void *to, int value, size_t size) {
    for (volatile u8 *at = to; size--; at++)
        *at = value;
    return to;
}

void *memcpy(void *to, const void *from, size_t size) {
    volatile u8 *at = to;
    for (const u8 *source = from; size--; at++, source++)
        *at = *source;
    return to;
}

// ---- Output

static void put(char letter) {
    while (*word(UART + 0x18) & 0x20)
        ;
    *byte(UART) = letter;
}

static void print(const char *text) {
    for (; *text; text++) {
        if (*text == '\n')
            put('\r');
        put(*text);
    }
}

static void print_hex(u32 value) {
    print("0x");
    for (int shift = 28; shift >= 0; shift -= 4)
        put("0123456789abcdef"[value >> shift & 15]);
}

static void print_number(u32 value) {
    if (value >= 10)
        print_number(value / 10);
    put('0' + value % 10);
}

// ---- Calls

#define PSCI_VERSION 0x84000000
#define CPU_OFF 0x84000002
#define CPU_ON 0x84000003
#define AFFINITY_INFO 0x84000004
#define SYSTEM_OFF 0x84000008
#define PSCI_FEATURES 0x8400000a
#define SMCCC_VERSION 0x80000000
#define NOT_SUPPORTED 0xffffffff

typedef void call_fn(u32 r[13]);

static u32 call(call_fn *by, u32 function, u32 a, u32 b, u32 c) {
    u32 r[13] = {function, a, b, c};
    by(r);
    return r[0];
}

static void power_off(void) {
    call(call_hvc, SYSTEM_OFF, 0, 0, 0);
    for (;;)
        ;
}

// ---- Exceptions

void exception(enum kind kind, struct frame *frame) {
    if (kind == IRQ) {
        gic_handle();
        return;
    }
    u32 cpsr;
    asm volatile("mrs %0, cpsr" : "=r"(cpsr));
    bool thumb = frame->spsr & 0x20;
    u32 pc = kind == UNDEFINED ? frame->pc - (thumb ? 2 : 4) : frame->pc;
    if (!expected) {
        static const char *names[] = {"?", "undefined instruction", "supervisor call", "prefetch abort", "data abort"};
        print("\nunexpected ");
        print(names[kind]);
        print(" at ");
        print_hex(pc);
        print(" DFSR ");
        print_hex(READ(0, 5, 0, 0));
        print(" DFAR ");
        print_hex(READ(0, 6, 0, 0));
        print("\n");
        power_off();
    }
    taken = (struct taken){kind, taken.count + 1, pc, frame->spsr, cpsr, READ(0, 5, 0, 0), READ(0, 6, 0, 0),
                           READ(0, 5, 0, 1), READ(0, 6, 0, 2)};
    if (kind == SUPERVISOR) {
        frame->spsr = (frame->spsr & ~0x1fu) | 0x13;
        taken.count--;
    } else if (kind == PREFETCH) {
        frame->pc = frame->lr & ~1u;
        frame->spsr = (frame->spsr & ~0x20u) | (frame->lr & 1) << 5;
    } else {
        frame->pc = pc + (thumb && *half(pc) < 0xe800 ? 2 : 4);
    }
}

// QEMU has the SPSR of the current mode apart from what AArch64 calls SPSR_abt and so on, and does not bring the two together when
// EL2, in AArch64, enters another mode than it left: the handler of an exception that was injected reads the SPSR of the mode
// before. The kernel finds that out, and goes by what it has put there.
static bool spsr_follows = true;

// The code that follows takes an exception, in Supervisor mode.
static void expect_from(bool thumb) {
    taken = (struct taken){NONE};
    asm volatile("msr spsr_fsxc, %0" ::"r"(thumb ? 0x1f3 : 0x1d3));
    expected = true;
    asm volatile("" ::: "memory");
}

static void expect(void) { expect_from(false); }

// ---- Cases

static const char *complaint;
static u32 found, wanted;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            complaint = #condition;                                                                                    \
            return false;                                                                                              \
        }                                                                                                              \
    } while (0)
#define EQUAL(left, right)                                                                                             \
    do {                                                                                                               \
        found = (u32)(left), wanted = (u32)(right);                                                                    \
        if (found != wanted) {                                                                                         \
            complaint = #left;                                                                                         \
            return false;                                                                                              \
        }                                                                                                              \
    } while (0)

// The statement is undefined.
#define UNDEFINED_BY(statement)                                                                                        \
    do {                                                                                                               \
        expect();                                                                                                      \
        statement;                                                                                                     \
        expected = false;                                                                                              \
        if (taken.kind != UNDEFINED || taken.count != 1) {                                                             \
            complaint = #statement " is undefined";                                                                    \
            found = taken.kind, wanted = UNDEFINED;                                                                    \
            return false;                                                                                              \
        }                                                                                                              \
    } while (0)

static bool answers(call_fn *by) {
    EQUAL(call(by, PSCI_VERSION, 0, 0, 0), 0x10001);
    EQUAL(call(by, 0xc4000003, 0, 0, 0), NOT_SUPPORTED); // CPU_ON of the 64-bit convention
    EQUAL(call(by, AFFINITY_INFO, READ(0, 0, 0, 5) & 0xffffff, 0, 0), 0);
    if (!under_keel)
        return true;
    EQUAL(call(by, SMCCC_VERSION, 0, 0, 0), 0x10001);
    EQUAL(call(by, 0x8400ff00, 0, 0, 0), NOT_SUPPORTED);
    EQUAL(call(by, 0xc600ffff, 0, 0, 0), NOT_SUPPORTED);
    EQUAL(call(by, 0xc5000020, 0, 0, 0), NOT_SUPPORTED); // PV_TIME_FEATURES
    EQUAL(call(by, 0xc6000100, 0, 0, 0), NOT_SUPPORTED); // a generic hypercall of 64 bits
    EQUAL(call(by, PSCI_FEATURES, CPU_ON, 0, 0), 0);
    EQUAL(call(by, PSCI_FEATURES, 0xc4000003, 0, 0), NOT_SUPPORTED);
    u32 workaround = call(by, 0x80000001, 0x80008000, 0, 0);
    CHECK(workaround <= 1 || workaround == NOT_SUPPORTED);
    return true;
}

static bool hvc_a32(void) { return answers(call_hvc); }
static bool hvc_t32(void) { return answers(call_hvc_t32); }
static bool hvc_immediate(void) {
    EQUAL(call(call_hvc_immediate, PSCI_VERSION, 0, 0, 0), 0x10001);
    return true;
}
static bool smc_a32(void) { return answers(call_smc); }
static bool smc_t32(void) { return answers(call_smc_t32); }

// A call changes r0 to r3 and nothing else; results are of 32 bits.
static bool call_keeps(void) {
    u32 r[13] = {SMCCC_VERSION};
    for (u32 n = 1; n < 13; n++)
        r[n] = 0x80000000 | n;
    call_hvc(r);
    EQUAL(r[0], 0x10001);
    for (u32 n = 1; n < 4; n++)
        EQUAL(r[n], 0);
    for (u32 n = 4; n < 13; n++)
        EQUAL(r[n], 0x80000000 | n);
    return true;
}

static bool smc_conditional(void) {
    u32 r[3] = {PSCI_VERSION, 0, 0};
    smc_if_equal(r, 0);
    EQUAL(r[0], PSCI_VERSION);
    smc_if_equal(r, 1);
    EQUAL(r[0], 0x10001);
    return true;
}

static bool mrc_conditional(void) {
    EQUAL(mrc_if_equal(1), READ(0, 0, 1, 0));
    EQUAL(mrc_if_equal(0), 0);
    EQUAL(in_it_block(1, UART + 0x18), 1);
    EQUAL(in_it_block(0, UART + 0x18), 2);
    return true;
}

// The other CPUs: what each is to do, and has done.
enum { IDLE, REPORT, STATE };
static volatile u32 second_job, second_stage, second_thumb, second_mpidr, second_errors, second_rounds, second_cpsr;
static volatile u32 first_rounds;
static u32 state_rounds(u32 seed, volatile u32 *own, volatile u32 *other, u32 rounds);

void second_main(u32 cpu, u32 thumb) {
    asm volatile("mrs %0, cpsr" : "=r"(second_cpsr));
    second_thumb = thumb;
    second_mpidr = READ(0, 0, 0, 5);
    if (second_job == STATE)
        second_errors = state_rounds(0x5000, &second_rounds, &first_rounds, 30);
    else if (second_job == REPORT) {
        gic_init_cpu(cpu);
        second_stage = 1;
        while (!sgi_interrupts) {
            asm volatile("wfi" ::: "memory");
            asm volatile("cpsie i\n isb\n cpsid i" ::: "memory");
        }
    }
    second_stage = 2;
    call(call_hvc, CPU_OFF, 0, 0, 0);
}

static u32 affinity_of(u32 cpu) { return cpu; }

static bool start_second(void (*entry)(void), u32 job) {
    second_job = job, second_stage = 0;
    asm volatile("dsb" ::: "memory");
    while (call(call_hvc, AFFINITY_INFO, affinity_of(1), 0, 0) != 1)
        ;
    EQUAL(call(call_hvc, CPU_ON, affinity_of(1), (u32)entry, 1), 0);
    return true;
}

static bool finish_second(void) {
    while (second_stage != 2)
        ;
    while (call(call_hvc, AFFINITY_INFO, affinity_of(1), 0, 0) != 1)
        ;
    return true;
}

static bool cpu_on_in(void (*entry)(void), u32 thumb) {
    sgi_interrupts = 0;
    CHECK(start_second(entry, REPORT));
    while (!second_stage)
        ;
    EQUAL(call(call_hvc, CPU_ON, affinity_of(1), (u32)entry, 1), -4);
    EQUAL(second_thumb, thumb);
    EQUAL(second_mpidr, 0x80000000 | affinity_of(1));
    EQUAL(second_cpsr & 0x3ff, 0x1d3); // Supervisor mode, little-endian, A, I and F masked, A32 by now
    gic_send_sgi(1);
    CHECK(finish_second());
    EQUAL(sgi_interrupts, 1);
    return true;
}

static bool cpu_on_a32(void) { return cpu_on_in(second_a32, 0); }
static bool cpu_on_t32(void) { return cpu_on_in(second_t32, 1); }
static bool cpu_on_bad(void) {
    EQUAL(call(call_hvc, CPU_ON, 0x77, 0, 0), -2);
    EQUAL(call(call_hvc, CPU_ON, 0x01000000, 0, 0), -2);
    EQUAL(call(call_hvc, CPU_ON, affinity_of(0), 0, 0), -4);
    return true;
}

// Writes all the state there is, gives the CPU away, and looks whether it is still there.
static u32 state_rounds(u32 seed, volatile u32 *own, volatile u32 *other, u32 rounds) {
    u32 errors = 0;
    for (u32 round = 1; round <= rounds; round++) {
        fill_state(seed + round * 64);
        *own = round;
        // Until the other has written its own, by the turn of a time slice if there is one CPU.
        for (u32 wait = 0; *other < round && wait < 200000000; wait++)
            ;
        errors += check_state(seed + round * 64);
        errors += *other < round;
    }
    return errors;
}

static bool state_is_kept(void) {
    first_rounds = second_rounds = 0;
    CHECK(start_second(second_a32, STATE));
    u32 errors = state_rounds(0x9000, &first_rounds, &second_rounds, 30);
    CHECK(finish_second());
    EQUAL(errors, 0);
    EQUAL(second_errors, 0);
    return true;
}

static bool mmio_sizes(void) {
    EQUAL(*byte(UART + 0xfe0), 0x11);
    EQUAL(*half(UART + 0xfe0), 0x11);
    EQUAL(*word(UART + 0xfe0), 0x11);
    EQUAL(*(volatile int8_t *)(UART + 0xff0 + 12), (u32)(int8_t)0xb1);
    u32 before = *word(UART + 0x24);
    *half(UART + 0x24) = 0x1234;
    EQUAL(*word(UART + 0x24), 0x1234);
    *word(UART + 0x24) = before;
    EQUAL(load_t32(UART + 0xfe0), 0x11);
    return true;
}

static bool mmio_banked(void) {
    u32 out[8] = {0};
    load_into_each(UART + 0xfe0, out);
    for (u32 n = 0; n < 8; n++)
        EQUAL(out[n], 0x11);
    EQUAL(read_into_lr(), READ(0, 0, 1, 0));
    return true;
}

#define EXTERNAL 0x1000 // DFSR.ExT: the machine's to say

static bool no_syndrome(void) {
    u32 (*loads[])(u32) = {load_pair, load_post};
    for (u32 n = 0; n < 2; n++) {
        expect();
        loads[n](UART + 0xfe0);
        expected = false;
        EQUAL(taken.kind, DATA);
        EQUAL(taken.pc, loads[n]);
        EQUAL(taken.dfar, UART + 0xfe0);
    }
    return true;
}

static bool data_abort_in(u32 ttbcr, u32 status) {
    WRITE(0, 2, 0, 2, ttbcr);
    WRITE(0, 6, 0, 2, 0x1234); // IFAR
    expect();
    (void)*word(HOLE + 4);
    struct taken load = taken;
    *word(HOLE + 8) = 1;
    struct taken store = taken;
    *byte(HOLE + 1) = 1;
    expected = false;
    WRITE(0, 2, 0, 2, 0);
    EQUAL(load.kind, DATA);
    EQUAL(load.count, 1);
    EQUAL(load.dfsr & ~EXTERNAL, status);
    EQUAL(load.dfar, HOLE + 4);
    EQUAL(load.ifar, 0x1234);
    EQUAL(load.spsr & 0x3f, 0x13);
    EQUAL(load.cpsr & 0x1ff, 0x1c0 | 0x13); // start.S has gone on in Supervisor mode
    EQUAL(*word(load.pc) >> 20 & 0xff, 0x59); // ldr, immediate
    EQUAL(store.count, 2);
    EQUAL(store.dfsr & ~EXTERNAL, status | (under_kvm ? 0 : 0x800));
    EQUAL(store.dfar, HOLE + 8);
    EQUAL(taken.count, 3);
    EQUAL(taken.dfar, HOLE + 1);
    return true;
}

static bool data_abort_short(void) { return data_abort_in(0, 0x008); }
static bool data_abort_long(void) { return data_abort_in(1u << 31, 0x210); }
static bool data_abort_t32(void) {
    expect_from(true);
    load_t32(HOLE);
    expected = false;
    EQUAL(taken.kind, DATA);
    EQUAL(taken.pc, (u32)load_t32 & ~1u);
    EQUAL(taken.spsr & 0x3f, 0x33);
    return true;
}

static bool data_abort_user(void) {
    expect();
    user_load(HOLE);
    expected = false;
    EQUAL(taken.kind, SUPERVISOR); // the SVC that follows
    EQUAL(taken.count, 1);
    EQUAL(taken.dfar, HOLE);
    EQUAL(taken.spsr & 0x1f, 0x10);
    return true;
}

static bool prefetch_abort_in(u32 ttbcr, u32 status) {
    WRITE(0, 2, 0, 2, ttbcr);
    WRITE(0, 6, 0, 0, 0x1234); // DFAR
    for (u32 thumb = 0; thumb < 2; thumb++) {
        expect_from(thumb);
        jump_to(HOLE + 0x100 + thumb);
        expected = false;
        if (taken.kind != PREFETCH || (taken.ifsr & ~EXTERNAL) != status)
            WRITE(0, 2, 0, 2, 0);
        EQUAL(taken.kind, PREFETCH);
        EQUAL(taken.ifsr & ~EXTERNAL, status);
        EQUAL(taken.ifar, HOLE + 0x100);
        EQUAL(taken.dfar, 0x1234);
        EQUAL(taken.pc, HOLE + 0x100);
        EQUAL(taken.spsr & 0x20, thumb << 5);
    }
    WRITE(0, 2, 0, 2, 0);
    return true;
}

static bool prefetch_abort_short(void) { return prefetch_abort_in(0, 0x008); }
static bool prefetch_abort_long(void) { return prefetch_abort_in(1u << 31, 0x210); }

// Translation tables with one entry that leads to where no table can be.
static u32 short_table[4096] __attribute__((aligned(0x4000)));
static u64 long_table[4] __attribute__((aligned(32)));

static bool walk_abort(void) {
    for (u32 n = 0; n < 4096; n++)
        short_table[n] = n << 20 | 0xc02 | (n < 0x400 ? 0x10 : 0); // a section, read and write; devices never execute
    short_table[0x800] = HOLE | 1;
    expect();
    with_mmu((u32)short_table, 0, 0x80001000);
    expected = false;
    EQUAL(taken.kind, DATA);
    EQUAL(taken.dfsr & ~EXTERNAL & 0xf0f, 0x00e);
    EQUAL(taken.dfar, 0x80001000);
    long_table[0] = 0x00000401ull | 1ull << 54;
    long_table[1] = 0x40000401ull;
    long_table[2] = HOLE | 3;
    expect();
    with_mmu((u32)long_table, 1u << 31, 0x80001000);
    expected = false;
    EQUAL(taken.kind, DATA);
    CHECK((taken.dfsr & ~(EXTERNAL | 3)) == 0x214);
    EQUAL(taken.dfar, 0x80001000);
    return true;
}

// ID_DFR0.PerfMon: PMUv3.
static bool has_pmu(void) {
    u32 version = READ(0, 0, 1, 2) >> 24 & 15;
    return version >= 3 && version != 15;
}

static bool undefined_registers(void) {
    UNDEFINED_BY(READ(4, 1, 1, 0)); // HCR
    EQUAL(taken.spsr & 0x3f, 0x13);
    EQUAL(taken.cpsr & 0x80, 0x80);
    UNDEFINED_BY(WRITE(0, 0, 1, 0, 0)); // ID_PFR0
    if (!under_keel)
        return true;
    UNDEFINED_BY(READ(1, 9, 0, 2)); // L2CTLR
    UNDEFINED_BY(READ(0, 15, 0, 0));
    if (!has_pmu()) {
        UNDEFINED_BY(READ(0, 9, 12, 0)); // PMCR
        UNDEFINED_BY(READ64(0, 9));      // PMCCNTR
    }
    UNDEFINED_BY(asm volatile("mrc p14, 1, r0, c0, c0, 0" ::: "r0")); // trace
    UNDEFINED_BY(asm volatile("mcr p14, 0, %0, c1, c1, 4" ::"r"(0))); // DBGOSLSR is read-only
    expect_from(true);
    undefined_t32();
    expected = false;
    EQUAL(taken.kind, UNDEFINED);
    EQUAL(taken.pc, (u32)undefined_t32 & ~1u);
    EQUAL(taken.spsr & 0x3f, 0x33);
    if (!gicv3) {
        UNDEFINED_BY(READ(0, 12, 12, 5));
        UNDEFINED_BY(asm volatile("mcrr p15, 0, %0, %0, c12" ::"r"(0)));
    }
    return true;
}

// Every MRC of CP14 and CP15 that there is reads, or is undefined.
static bool every_read(void) {
    static u32 code[2] __attribute__((aligned(8)));
    u32 reads = 0, undefined = 0;
    code[1] = 0xe12fff1e; // bx lr
    for (u32 fields = 0; fields < 1 << 15; fields++) {
        // opc1, CRn, CRm, opc2, and which coprocessor.
        u32 opc1 = fields & 7, crn = fields >> 3 & 15, crm = fields >> 7 & 15, opc2 = fields >> 11 & 7;
        u32 coprocessor = 14 | (fields >> 14 & 1);
        // CP14 beyond debug and trace is Jazelle's and ThumbEE's.
        if (coprocessor == 14 && opc1 > 1)
            continue;
        code[0] = 0xee100010 | opc1 << 21 | crn << 16 | coprocessor << 8 | opc2 << 5 | crm;
        asm volatile("dsb\n mcr p15, 0, %0, c7, c5, 0\n dsb\n isb" ::"r"(0) : "memory");
        expect();
        ((void (*)(void))code)();
        expected = false;
        if (taken.count > 1 || (taken.count == 1 && taken.kind != UNDEFINED)) {
            found = code[0], wanted = taken.kind;
            complaint = "an MRC is undefined or reads";
            return false;
        }
        reads += !taken.count;
        undefined += taken.count;
    }
    CHECK(reads > 100 && undefined > 10000);
    return true;
}

static bool id_registers(void) {
    EQUAL(READ(0, 0, 1, 0) & 0xff, 0x31);     // ID_PFR0: A32, T32 with Thumb-2
    // ID_PFR1: no EL2, which KVM does not hide, no EL3, generic timer.
    EQUAL(READ(0, 0, 1, 1) & (under_kvm ? 0xf00f0 : 0xff0f0), 0x10000);
    CHECK((READ(0, 0, 1, 4) & 0xf) >= 5);     // ID_MMFR0: long descriptors
    CHECK(READ(0, 0, 2, 0) != 0 && READ(0, 0, 2, 4) != 0);
    CHECK((READ(0, 0, 0, 5) & 0x80ffffff) == 0x80000000); // MPIDR
    CHECK(READ(0, 0, 0, 0) != 0);                         // MIDR
    u32 mvfr0, fpsid;
    asm volatile(".fpu neon-vfpv4\n vmrs %0, mvfr0\n vmrs %1, fpsid" : "=r"(mvfr0), "=r"(fpsid));
    EQUAL(mvfr0 & 0xf, 2);
    CHECK(fpsid != 0);
    if (!under_keel)
        return true;
    // Reserved, and no register of AArch64's.
    EQUAL(READ(0, 0, 3, 0) | READ(0, 0, 3, 7) | READ(0, 0, 4, 0) | READ(0, 0, 7, 2), 0);
    EQUAL(READ(0, 0, 0, 2) | READ(0, 0, 0, 3), 0); // TCMTR, TLBTR
    WRITE(0, 1, 0, 1, 0x40);
    EQUAL(READ(0, 1, 0, 1), 0); // ACTLR
    if (gicv3)
        EQUAL(READ(0, 12, 12, 5), 7); // ICC_SRE
    return true;
}

// The cycle counter counts. (QEMU's CPUs do not have it as a register of 64 bits.)
static bool pmu_counts(void) {
    WRITE(0, 9, 12, 5, 31); // PMSELR: the cycle counter
    WRITE(0, 9, 13, 1, 0);  // PMXEVTYPER: at every level
    WRITE(0, 9, 12, 1, 1u << 31);
    WRITE(0, 9, 12, 0, 1 << 6 | 1 << 2 | 1); // PMCR: LC, C, E
    u32 low = READ(0, 9, 13, 0);
    for (volatile u32 n = 0; n < 1000; n++)
        ;
    CHECK(READ(0, 9, 13, 0) != low);
    WRITE(0, 9, 12, 0, 0);
    return true;
}

static u32 os_lock(void) {
    u32 status;
    asm volatile("isb\n mrc p14, 0, %0, c1, c1, 4" : "=r"(status));
    return status & 2;
}

static bool debug_registers(void) {
    asm volatile("mcr p14, 0, %0, c1, c0, 4" ::"r"(1));
    EQUAL(os_lock(), 0);
    asm volatile("mcr p14, 0, %0, c1, c0, 4" ::"r"(0xc5acce55));
    EQUAL(os_lock(), 2);
    asm volatile("mcr p14, 0, %0, c1, c0, 4" ::"r"(0));
    EQUAL(os_lock(), 0);
    asm volatile("mcr p14, 0, %0, c1, c3, 4" ::"r"(0)); // DBGOSDLR
    return true;
}

static bool wait_for(volatile u32 *counter) {
    for (u32 wait = 0; !*counter && wait < 1000; wait++) {
        asm volatile("wfi" ::: "memory");
        asm volatile("cpsie i\n isb\n cpsid i" ::: "memory");
    }
    return *counter == 1;
}

static bool timer_interrupt(void) {
    u32 frequency = READ(0, 14, 0, 0);
    CHECK(frequency != 0);
    for (u32 round = 0; round < 5; round++) {
        timer_interrupts = 0;
        u64 start = READ64(1, 14);
        WRITE(0, 14, 3, 0, frequency / 1000);
        WRITE(0, 14, 3, 1, 1);
        CHECK(wait_for(&timer_interrupts));
        CHECK(READ64(1, 14) - start >= frequency / 1000);
    }
    CHECK(READ64(0, 14) != 0);
    return true;
}

static bool sgi_to_self(void) {
    sgi_interrupts = 0;
    gic_send_sgi(0);
    CHECK(wait_for(&sgi_interrupts));
    return true;
}

struct test {
    const char *name;
    enum where { ANY, KEEL, SPSR, PMU, NOT_KVM } where; // SPSR: where an SPSR is that of the mode
    u32 cpus;
    bool (*run)(void);
};

static const struct test tests[] = {
    {"hvc/a32", ANY, 1, hvc_a32},
    {"hvc/t32", ANY, 1, hvc_t32},
    {"hvc/immediate", KEEL, 1, hvc_immediate},
    {"hvc/keeps", KEEL, 1, call_keeps},
    {"smc/a32", KEEL, 1, smc_a32},
    {"smc/t32", KEEL, 1, smc_t32},
    {"smc/conditional", KEEL, 1, smc_conditional},
    {"conditional/registers_and_devices", ANY, 1, mrc_conditional},
    {"psci/cpu_on_a32", ANY, 2, cpu_on_a32},
    {"psci/cpu_on_t32", ANY, 2, cpu_on_t32},
    {"psci/cpu_on_bad", ANY, 1, cpu_on_bad},
    {"mmio/sizes", ANY, 1, mmio_sizes},
    {"mmio/banked", NOT_KVM, 1, mmio_banked},
    {"mmio/no_syndrome", KEEL, 1, no_syndrome},
    {"abort/data_short", ANY, 1, data_abort_short},
    {"abort/data_long", ANY, 1, data_abort_long},
    {"abort/data_t32", ANY, 1, data_abort_t32},
    {"abort/data_user", SPSR, 1, data_abort_user},
    {"abort/prefetch_short", ANY, 1, prefetch_abort_short},
    {"abort/prefetch_long", ANY, 1, prefetch_abort_long},
    {"abort/walk", NOT_KVM, 1, walk_abort},
    {"sysreg/undefined", ANY, 1, undefined_registers},
    {"sysreg/every_read", NOT_KVM, 1, every_read},
    {"sysreg/id", ANY, 1, id_registers},
    {"sysreg/debug", NOT_KVM, 1, debug_registers},
    {"pmu/counts", PMU, 1, pmu_counts},
    {"timer/virtual", ANY, 1, timer_interrupt},
    {"gic/sgi", ANY, 1, sgi_to_self},
    {"state/kept", KEEL, 2, state_is_kept},
};

// ---- Start

static bool has(const char *text, const char *part) {
    for (; *text; text++) {
        const char *a = text, *b = part;
        while (*b && *a == *b)
            a++, b++;
        if (!*b)
            return true;
    }
    return !*part;
}

static bool same(const char *a, const char *b) {
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

static u32 cell(const u8 *at) { return (u32)at[0] << 24 | at[1] << 16 | at[2] << 8 | at[3]; }

// The boot arguments, and how many CPUs there are (Devicetree Specification 0.4, 5.4).
static void read_tree(const u8 *tree) {
    const u8 *at = tree + cell(tree + 8), *strings = tree + cell(tree + 12);
    for (;;) {
        u32 token = cell(at);
        at += 4;
        if (token == 1) {
            const char *name = (const char *)at;
            cpus += has(name, "cpu@");
            while (*at++)
                ;
        } else if (token == 3) {
            u32 size = cell(at);
            const char *name = (const char *)strings + cell(at + 4);
            at += 8;
            if (same(name, "bootargs"))
                for (u32 n = 0; n < size && n < sizeof(arguments) - 1; n++)
                    arguments[n] = at[n];
            at += size;
        } else if (token == 9) {
            return;
        }
        at = (const u8 *)(((u32)at + 3) & ~3u);
    }
}

static void find_spsr(void) {
    taken = (struct taken){NONE};
    asm volatile("msr spsr_fsxc, %0" ::"r"(0x100001d3)); // V is not what the flags are
    expected = true;
    asm volatile("cmp r0, r0\n mrc p15, 4, r0, c1, c1, 0" ::: "r0", "cc"); // HCR
    if (under_keel)
        asm volatile("cmp r0, r0\n mrc p15, 1, r0, c9, c0, 2" ::: "r0", "cc"); // L2CTLR
    expected = false;
    spsr_follows = !(taken.spsr & 0x10000000);
    if (!spsr_follows)
        print("an exception that is injected finds the SPSR of the mode before\n");
}

void main(void) {
    // Linux's boot protocol, or, without it, where QEMU's `virt` has it.
    const u8 *tree = (const u8 *)boot_tree;
    if (boot_tree < 0x40000000 || cell(tree) != 0xd00dfeed)
        tree = (const u8 *)0x40000000;
    if (cell(tree) == 0xd00dfeed)
        read_tree(tree);
    under_kvm = has(arguments, "hyp=kvm");
    under_keel = under_kvm || has(arguments, "hyp=keel");
    const char *only = "";
    for (const char *at = arguments; *at; at++)
        if (has(at, "only=") && at[0] == 'o' && at[4] == '=')
            only = at + 5;
    gicv3 = READ(0, 0, 1, 1) >> 28 == 1;
    print("32-bit test kernel: ");
    print_number(cpus);
    print(" CPUs, GICv");
    print_number(gicv3 ? 3 : 2);
    print(", arguments `");
    print(arguments);
    print("`\n");
    gic_init_cpu(0);
    find_spsr();
    u32 passed = 0, failed = 0, skipped = 0;
    for (u32 n = 0; n < sizeof(tests) / sizeof(tests[0]); n++) {
        const struct test *test = &tests[n];
        if (!has(test->name, only))
            continue;
        print("test ");
        print(test->name);
        print(" ... ");
        if ((test->where == KEEL && !under_keel) || (test->where == SPSR && !spsr_follows) ||
            (test->where == PMU && !has_pmu()) || (test->where == NOT_KVM && under_kvm) || test->cpus > cpus) {
            print("skipped\n");
            skipped++;
            continue;
        }
        complaint = NULL;
        if (test->run()) {
            print("ok\n");
            passed++;
            continue;
        }
        expected = false;
        failed++;
        print("FAILED: ");
        print(complaint);
        print(" (found ");
        print_hex(found);
        print(", wanted ");
        print_hex(wanted);
        print(")\n");
    }
    print_number(passed);
    print(" passed, ");
    print_number(failed);
    print(" failed, ");
    print_number(skipped);
    print(" skipped\n");
    power_off();
}
