// The interrupt controller: a GICv3 by CP15 registers, or a GICv2; two interrupts, an SGI and the virtual timer's.
#include "main.h"

#define GICD 0x08000000
#define GICC 0x08010000
#define GICR 0x080a0000
#define SGI 5
#define VIRTUAL_TIMER 27

bool gicv3;
volatile u32 timer_interrupts, sgi_interrupts;

void gic_init_cpu(u32 cpu) {
    const u32 enabled = 1 << SGI | 1 << VIRTUAL_TIMER;
    if (!gicv3) {
        *word(GICD) = 1;
        *word(GICD + 0x100) = enabled;
        *word(GICC + 4) = 0xff;
        *word(GICC) = 1;
        return;
    }
    u32 rd = GICR + cpu * 0x20000;
    *word(GICD) = 0x12; // ARE, EnableGrp1
    *word(rd + 0x14) &= ~2u;
    while (*word(rd + 0x14) & 4)
        ;
    *word(rd + 0x10080) = ~0u;
    *word(rd + 0x10100) = enabled;
    WRITE(0, 12, 12, 5, READ(0, 12, 12, 5) | 1); // ICC_SRE
    WRITE(0, 4, 6, 0, 0xff);                     // ICC_PMR
    WRITE(0, 12, 12, 7, 1);                      // ICC_IGRPEN1
}

// To one CPU, by affinity level 0.
void gic_send_sgi(u32 cpu) {
    asm volatile("dsb" ::: "memory");
    if (gicv3)
        asm volatile("mcrr p15, 0, %0, %1, c12\n isb" ::"r"(SGI << 24 | 1u << cpu), "r"(0));
    else
        *word(GICD + 0xf00) = 1u << (16 + cpu) | SGI;
}

void gic_handle(void) {
    u32 acknowledged = gicv3 ? READ(0, 12, 12, 0) : *word(GICC + 0xc);
    u32 intid = acknowledged & 0x3ff;
    if (intid == VIRTUAL_TIMER) {
        WRITE(0, 14, 3, 1, 2); // CNTV_CTL: masked
        timer_interrupts++;
    } else if (intid == SGI) {
        sgi_interrupts++;
    }
    if (intid >= 1020)
        return;
    if (gicv3)
        WRITE(0, 12, 12, 1, acknowledged);
    else
        *word(GICC + 0x10) = acknowledged;
}
