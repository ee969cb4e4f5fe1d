// What the parts of the 32-bit test kernel know of each other.
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define UART 0x09000000
#define HOLE 0x0b000000

// Where an exception goes back to; start.S makes it.
struct frame {
    u32 r[13], lr, pc, spsr;
};

enum kind { NONE, UNDEFINED, SUPERVISOR, PREFETCH, DATA, IRQ };

// The last exception that was not an interrupt.
struct taken {
    enum kind kind;
    u32 count, pc, spsr, cpsr, dfsr, dfar, ifsr, ifar;
};
extern volatile struct taken taken;
// Exceptions are part of the case that runs.
extern volatile bool expected;
extern volatile u32 timer_interrupts, sgi_interrupts;

#define READ(opc1, crn, crm, opc2)                                                                                     \
    ({                                                                                                                 \
        u32 value_;                                                                                                    \
        asm volatile("mrc p15, " #opc1 ", %0, c" #crn ", c" #crm ", " #opc2 : "=r"(value_));                           \
        value_;                                                                                                        \
    })
#define WRITE(opc1, crn, crm, opc2, value)                                                                             \
    asm volatile("mcr p15, " #opc1 ", %0, c" #crn ", c" #crm ", " #opc2 "\n isb" ::"r"((u32)(value)) : "memory")
#define READ64(opc1, crm)                                                                                              \
    ({                                                                                                                 \
        u64 value_;                                                                                                    \
        asm volatile("mrrc p15, " #opc1 ", %Q0, %R0, c" #crm : "=r"(value_));                                          \
        value_;                                                                                                        \
    })

static inline volatile u32 *word(u32 address) { return (volatile u32 *)address; }
static inline volatile u16 *half(u32 address) { return (volatile u16 *)address; }
static inline volatile u8 *byte(u32 address) { return (volatile u8 *)address; }

// start.S
void call_hvc(u32 r[13]), call_hvc_t32(u32 r[13]), call_hvc_immediate(u32 r[13]);
void call_smc(u32 r[13]), call_smc_t32(u32 r[13]), call_smc_immediate(u32 r[13]);
void smc_if_equal(u32 r[3], u32 equal);
u32 mrc_if_equal(u32 equal), in_it_block(u32 equal, u32 address), undefined_t32(void), load_t32(u32 address);
u32 read_into_lr(void), user_load(u32 address), load_pair(u32 address), load_post(u32 address);
void load_into_each(u32 address, u32 out[8]), jump_to(u32 address);
void fill_state(u32 seed);
u32 check_state(u32 seed), with_mmu(u32 ttbr, u32 ttbcr, u32 address);
void second_a32(void), second_t32(void);

// gic.c
extern bool gicv3;
void gic_init_cpu(u32 cpu), gic_send_sgi(u32 cpu), gic_handle(void);
