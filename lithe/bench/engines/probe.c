/* What the machine could do at most: reading memory, and multiplying and adding in registers.
 *
 * Each peak is of the instructions that a product of that kind runs on: fused multiply-adds for floats, byte dot products for
 * whole numbers. A multiply and an add count as two operations. Chains are long enough in number to hide the latency.
 */
#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

enum { CHAINS = 12 };

#if defined(__AVX512F__)
typedef __m512 vf;
typedef __m512i vi;
enum { LANES = 16 };
static inline vf fma_(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
#elif defined(__AVX2__)
typedef __m256 vf;
typedef __m256i vi;
enum { LANES = 8 };
static inline vf fma_(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
#else
enum { LANES = 4 };
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));
#if defined(__ARM_NEON)
static inline vf fma_(vf a, vf b, vf c) { return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#else
static inline vf fma_(vf a, vf b, vf c) { return a * b + c; }
#endif
#endif

/* Sum of n floats (a multiple of 64) at x, aligned to 64 bytes, read `times` over: the sum keeps the reads. */
float probe_read(const float *x, int64_t n, int32_t times) {
    vf sum[8] = {0};
    for (int t = 0; t < times; t++) {
        const vf *p = (const vf *)x;
        int64_t count = n / LANES;
        for (int64_t i = 0; i + 8 <= count; i += 8)
            for (int j = 0; j < 8; j++) sum[j] += p[i + j];
        __asm__ volatile("" ::: "memory");
    }
    float total = 0;
    for (int j = 0; j < 8; j++)
        for (int k = 0; k < LANES; k++) total += sum[j][k];
    return total;
}

/* Operations done in `turns` turns of fused multiply-adds. */
int64_t probe_fp32(int64_t turns) {
    vf c[CHAINS] = {0}, a = {0}, b = {0};
    __asm__ volatile("" : "+x"(a), "+x"(b));
    for (int64_t t = 0; t < turns; t++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) {
            c[i] = fma_(a, b, c[i]);
            __asm__ volatile("" : "+x"(c[i]));
        }
    }
    return turns * CHAINS * LANES * 2;
}

/* The same in bfloat16 pairs, where the processor has such dot products; else weights are widened, so fp32 it is. */
int64_t probe_bf16(int64_t turns) {
#if defined(__AVX512BF16__)
    vf c[CHAINS] = {0};
    vi a = {0}, b = {0};
    __asm__ volatile("" : "+x"(a), "+x"(b));
    for (int64_t t = 0; t < turns; t++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) {
            c[i] = _mm512_dpbf16_ps(c[i], (__m512bh)a, (__m512bh)b);
            __asm__ volatile("" : "+x"(c[i]));
        }
    }
    return turns * CHAINS * LANES * 4;
#else
    return probe_fp32(turns);
#endif
}

/* The same in bytes, four products to a lane: one instruction with VNNI, three with AVX2, and else floats are not beaten. */
int64_t probe_int8(int64_t turns) {
#if defined(__AVX512VNNI__) || defined(__AVX2__)
    vi c[CHAINS] = {0}, a = {0}, b = {0};
    __asm__ volatile("" : "+x"(a), "+x"(b));
    for (int64_t t = 0; t < turns; t++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) {
#if defined(__AVX512VNNI__)
            c[i] = _mm512_dpbusd_epi32(c[i], a, b);
#elif defined(__AVX512BW__)
            c[i] = _mm512_add_epi32(c[i], _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), _mm512_set1_epi16(1)));
            __asm__ volatile("" : "+x"(a));
#else
            c[i] = _mm256_add_epi32(c[i], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
            __asm__ volatile("" : "+x"(a)); /* or the product, ever the same, would be made once */
#endif
            __asm__ volatile("" : "+x"(c[i]));
        }
    }
    return turns * CHAINS * LANES * 8;
#else
    return probe_fp32(turns);
#endif
}
