/* What the machine could do at most: reading memory, and multiplying and adding in registers.
 *
 * Each peak is of the very instructions that a product of that kind runs on in product.c, without loads, scales and rounding.
 * A multiply and an add count as two operations. Chains are enough in number to hide the latency.
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

/* The same in bfloat16 pairs, where the processor has such dot products; else a vector of pairs is widened and four rows
 * multiply with both halves. */
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
#elif defined(__AVX2__)
    vf c[8] = {0}, s = {0};
    vi pair = {0};
    __asm__ volatile("" : "+x"(s));
    for (int64_t t = 0; t < turns; t++) {
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) {
            __asm__ volatile("" : "+x"(pair));
#if defined(__AVX512F__)
            vf even = (vf)_mm512_slli_epi32(pair, 16), odd = (vf)_mm512_and_si512(pair, _mm512_set1_epi32(~0xffff));
#else
            vf even = (vf)_mm256_slli_epi32(pair, 16), odd = (vf)_mm256_and_si256(pair, _mm256_set1_epi32(~0xffff));
#endif
#pragma GCC unroll 4
            for (int i = 4 * v; i < 4 * v + 4; i++) {
                c[i] = fma_(s, odd, fma_(s, even, c[i]));
                __asm__ volatile("" : "+x"(c[i]));
            }
        }
    }
    return turns * 8 * LANES * 4;
#else
    return probe_fp32(turns);
#endif
}

#if defined(__AVX512VNNI__)
#define STEP(c, a, b) c = _mm512_dpbusd_epi32(c, a, b)
#elif defined(__AVX512BW__)
#define STEP(c, a, b) c = _mm512_add_epi32(_mm512_add_epi32(c, _mm512_madd_epi16(a, a)), _mm512_madd_epi16(b, b))
#elif defined(__AVX2__)
#define STEP(c, a, b) c = _mm256_add_epi32(_mm256_add_epi32(c, _mm256_madd_epi16(a, a)), _mm256_madd_epi16(b, b))
#endif

/* The same in bytes, four products to a lane: one instruction with VNNI; else two products of halves and two sums, as bytes
 * times bytes would not fit; and where there are no such products floats are not beaten. */
int64_t probe_int8(int64_t turns) {
#if defined(STEP)
    vi c[CHAINS] = {0}, a = {0}, b = {0};
    for (int64_t t = 0; t < turns; t++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) {
            __asm__ volatile("" : "+x"(a), "+x"(b)); /* or the product, ever the same, would be made once */
            STEP(c[i], a, b);
            __asm__ volatile("" : "+x"(c[i]));
        }
    }
    return turns * CHAINS * LANES * 8;
#else
    return probe_fp32(turns);
#endif
}

/* The same in bytes times nibbles, whose sums fit halves for a while: with AVX2 one product and one sum. */
int64_t probe_int4(int64_t turns) {
#if defined(__AVX2__) && !defined(__AVX512BW__)
    vi c[CHAINS] = {0}, a = {0}, b = {0};
    for (int64_t t = 0; t < turns; t++) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) {
            __asm__ volatile("" : "+x"(a), "+x"(b));
            c[i] = _mm256_add_epi16(c[i], _mm256_maddubs_epi16(a, b));
            __asm__ volatile("" : "+x"(c[i]));
        }
    }
    return turns * CHAINS * LANES * 8;
#else
    return probe_int8(turns);
#endif
}
