/* What this processor can do, as bits: 1 AVX2 with FMA and half conversion, 2 AVX-512 F, BW, VL, 4 VNNI and BF16.
 * Built alone and first: the answer says how the rest is to be built. */
#if defined(__x86_64__)
#include <cpuid.h>

static unsigned long long states(void) { /* which registers the system saves */
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (unsigned long long)high << 32 | low;
}

int lithe_cpu(void) {
    unsigned a, b, c, d, wide_b, wide_c, more_a, found = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 27 & 1)) return 0;
    unsigned long long saved = states();
    unsigned fma = c >> 12 & 1, half = c >> 29 & 1;
    if (!__get_cpuid_count(7, 0, &a, &wide_b, &wide_c, &d)) return 0;
    unsigned leaves = a;
    if ((saved & 6) == 6 && fma && half && wide_b >> 5 & 1) found |= 1;
    if (found && (saved & 0xe6) == 0xe6 && wide_b >> 16 & 1 && wide_b >> 30 & 1 && wide_b >> 31 & 1) found |= 2;
    if (found & 2 && wide_c >> 11 & 1 && leaves >= 1 && __get_cpuid_count(7, 1, &more_a, &b, &c, &d) && more_a >> 5 & 1)
        found |= 4;
    return (int)found;
}
#else
int lithe_cpu(void) { return 0; }
#endif
