/* One vector of LANES floats, the same few operations on every processor.
 *
 * Arithmetic is written with the compilers' vector types, so only what they cannot say is an intrinsic: fused
 * multiply-add, conversions from half precision, and the dot products of bytes and of bfloat16 pairs.
 */
#ifndef LITHE_SIMD_H
#define LITHE_SIMD_H

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__)
#define LANES 16
#define ROWS_MAX 8 /* rows of a register block: 16 of 32 registers accumulate */
#define INT_ROWS 6 /* so many that sums of whole numbers and of floats both stay in registers */
#elif defined(__AVX2__)
#define LANES 8
#define ROWS_MAX 6 /* 12 of 16 */
#define INT_ROWS 4 /* whole numbers take registers to be multiplied */
#else
#define LANES 4
#define ROWS_MAX 4
#define INT_ROWS 4
#endif

#if defined(__AVX512BF16__)
#define NATIVE_BF16 1
#else
#define NATIVE_BF16 0
#endif

typedef float vf __attribute__((vector_size(4 * LANES)));
typedef int32_t vi __attribute__((vector_size(4 * LANES)));
typedef float vf_any __attribute__((vector_size(4 * LANES), aligned(1), may_alias));
typedef int32_t vi_any __attribute__((vector_size(4 * LANES), aligned(1), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#define UNROLL_2 _Pragma("GCC unroll 2")
#define UNROLL_4 _Pragma("GCC unroll 4")

INLINE vf vf_load(const float *p) { return *(const vf_any *)p; }
INLINE void vf_store(float *p, vf x) { *(vf_any *)p = x; }
INLINE vi vi_load(const void *p) { return *(const vi_any *)p; }
#if LANES == 16 /* a sum with zero would not do: -0 + 0 is 0, so the compiler could not fold it into a broadcast */
INLINE vf vf_set1(float x) { return _mm512_set1_ps(x); }
#elif LANES == 8
INLINE vf vf_set1(float x) { return _mm256_set1_ps(x); }
#else
INLINE vf vf_set1(float x) { return (vf){x, x, x, x}; }
#endif
INLINE vi vi_set1(int32_t x) { return (vi){} + x; }
INLINE vf vi_to_vf(vi x) { return __builtin_convertvector(x, vf); }
INLINE int32_t read_i32(const void *p) { int32_t x; memcpy(&x, p, 4); return x; }
INLINE float bits_f32(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }
INLINE float bf16_f32(uint16_t h) { return bits_f32((uint32_t)h << 16); }

/* Nearest bfloat16, ties to even; a NaN stays one. */
INLINE uint16_t f32_bf16(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return x != x ? 0x7fc0 : (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

INLINE float half_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = h & 0x7fff;
    if (rest >= 0x7c00) return bits_f32(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    if (rest < 0x400) return (sign ? -1.0f : 1.0f) * (float)rest * 5.9604644775390625e-8f; /* 2^-24 */
    return bits_f32(sign | ((rest << 13) + 0x38000000));
}

/* The first `count` < LANES entries; zeros behind them. */
INLINE vf vf_load_part(const float *p, int count) {
    float t[LANES] = {0};
    memcpy(t, p, sizeof(float) * count);
    return vf_load(t);
}
INLINE void vf_store_part(float *p, vf x, int count) {
    float t[LANES];
    vf_store(t, x);
    memcpy(p, t, sizeof(float) * count);
}

INLINE vf vf_from_bf16(const uint16_t *p);
INLINE vf vf_from_bf16_part(const uint16_t *p, int count) {
    uint16_t t[LANES] = {0};
    memcpy(t, p, sizeof(uint16_t) * count);
    return vf_from_bf16(t);
}

/* dot(s, w, x): lane c of s plus w[4c..4c+3] . x[0..3], exact in int32. Weights are unsigned: the caller takes their offset
 * off. AVX2 and VNNI have their own ways in product.c. */
#if LANES == 16
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vf vf_max(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf vf_half(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE vf vf_from_bf16(const uint16_t *p) {
    return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
}
/* f32_bf16 of a vector */
INLINE void vf_to_bf16(uint16_t *p, vf x) {
    const __m512i u = (__m512i)x, one = _mm512_set1_epi32(1), half = _mm512_set1_epi32(0x7fff);
    const __m512i up = _mm512_add_epi32(half, _mm512_and_epi32(_mm512_srli_epi32(u, 16), one));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(u, up), 16);
    rounded = _mm512_mask_set1_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), 0x7fc0);
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(rounded));
}
INLINE float vf_sum(vf x) { return _mm512_reduce_add_ps(x); }
/* Four sums at once: half the shuffles of four alone. */
INLINE void vf_sum4(const vf *x, float *out) {
    __m512 a = _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
    __m512 b = _mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
    __m512d c = (__m512d)a, d = (__m512d)b;
    __m512 all = _mm512_add_ps((__m512)_mm512_unpacklo_pd(c, d), (__m512)_mm512_unpackhi_pd(c, d));
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), (__m256)_mm512_extractf64x4_pd((__m512d)all, 1));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}
#if !defined(__AVX512VNNI__)
INLINE vi dot(vi s, vi w, const int8_t *x) {
    __m512i b = _mm512_set1_epi32(read_i32(x)), even = _mm512_srai_epi16(_mm512_slli_epi16(b, 8), 8);
    __m512i low = _mm512_and_si512((__m512i)w, _mm512_set1_epi16(255)), high = _mm512_srli_epi16((__m512i)w, 8);
    return s + (vi)_mm512_madd_epi16(low, even) + (vi)_mm512_madd_epi16(high, _mm512_srai_epi16(b, 8));
}
#endif

#elif LANES == 8
INLINE vf vf_fma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf vf_max(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf vf_half(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE vf vf_from_bf16(const uint16_t *p) {
    return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
}
INLINE float vf_sum(vf x) {
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
}
/* Neighbours of both added up, those of `a` first, in either half: a horizontal addition by cheaper instructions. */
INLINE __m256 vf_pairs(__m256 a, __m256 b) {
    return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
}
INLINE void vf_sum4(const vf *x, float *out) {
    __m256 all = vf_pairs(vf_pairs(x[0], x[1]), vf_pairs(x[2], x[3]));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1)));
}

#else
#if defined(__ARM_NEON)
INLINE vf vf_fma(vf a, vf b, vf c) { return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#else
INLINE vf vf_fma(vf a, vf b, vf c) { return a * b + c; }
#endif
INLINE vf vf_max(vf a, vf b) {
    vi more = a > b;
    return (vf)((more & (vi)a) | (~more & (vi)b));
}
INLINE vf vf_half(const uint16_t *p) { return (vf){half_f32(p[0]), half_f32(p[1]), half_f32(p[2]), half_f32(p[3])}; }
INLINE vf vf_from_bf16(const uint16_t *p) { return (vf){bf16_f32(p[0]), bf16_f32(p[1]), bf16_f32(p[2]), bf16_f32(p[3])}; }
INLINE float vf_sum(vf x) { return (x[0] + x[2]) + (x[1] + x[3]); }
INLINE void vf_sum4(const vf *x, float *out) {
    for (int i = 0; i < 4; i++) out[i] = vf_sum(x[i]);
}
INLINE vi dot(vi s, vi w, const int8_t *x) {
    return s + (w & 255) * x[0] + ((w >> 8) & 255) * x[1] + ((w >> 16) & 255) * x[2] + ((w >> 24) & 255) * x[3];
}
#endif

/* sum += a * b. Written as assembly where registers are few: gcc would put a sum where the factor was, and run out of them. */
INLINE void vf_add_product(vf *sum, vf a, vf b) {
#if LANES == 8
    __asm__("vfmadd231ps %2, %1, %0" : "+x"(*sum) : "x"(a), "x"(b));
#else
    *sum = vf_fma(a, b, *sum);
#endif
}

/* Nearest bfloat16s as floats, of what is no NaN. */
INLINE vf vf_rounded(vf x) {
    vi u = (vi)x;
    return (vf)((u + 0x7fff + (u >> 16 & 1)) & (int32_t)0xffff0000);
}

/* sum += a * b of pairs of bfloat16s: of the odd one, then of the even one, each as a fused multiply-add. */
INLINE void vf_add_pairs(vf *sum, vf a, vf b) {
#if NATIVE_BF16
    *sum = (vf)_mm512_dpbf16_ps((__m512)*sum, (__m512bh)a, (__m512bh)b);
#else
    (void)sum, (void)a, (void)b;
#endif
}

/* The lanes in the order in which vf_sum4 adds them: neighbours, then the sums of neighbours, and so on. */
INLINE int sum_order(int n) { return LANES == 8 ? n : (n & 5) << 1 | (n >> 1 & 5); }

/* out[k][n] = rows[n][i + k] for TURNED rows and k below 4; `stride` floats from one k to the next. */
#if LANES >= 8
#define TURNED 8
INLINE void turn_four(const float *const *rows, int i, float *out, int stride) {
    __m256 x[4], low[2], high[2];
    UNROLL for (int n = 0; n < 4; n++)
        x[n] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(rows[n] + i)), _mm_loadu_ps(rows[n + 4] + i), 1);
    UNROLL for (int n = 0; n < 2; n++) {
        low[n] = _mm256_unpacklo_ps(x[2 * n], x[2 * n + 1]);
        high[n] = _mm256_unpackhi_ps(x[2 * n], x[2 * n + 1]);
    }
    _mm256_storeu_ps(out, _mm256_shuffle_ps(low[0], low[1], 0x44));
    _mm256_storeu_ps(out + stride, _mm256_shuffle_ps(low[0], low[1], 0xee));
    _mm256_storeu_ps(out + 2 * stride, _mm256_shuffle_ps(high[0], high[1], 0x44));
    _mm256_storeu_ps(out + 3 * stride, _mm256_shuffle_ps(high[0], high[1], 0xee));
}
#else
#define TURNED 4
INLINE void turn_four(const float *const *rows, int i, float *out, int stride) {
    UNROLL for (int k = 0; k < 4; k++) vf_store(out + k * stride, (vf){rows[0][i + k], rows[1][i + k], rows[2][i + k], rows[3][i + k]});
}
#endif

#if LANES == 16
INLINE float vf_top(vf x) { return _mm512_reduce_max_ps(x); }
#else
INLINE float vf_top(vf x) {
    float t[LANES], top;
    vf_store(t, x);
    top = t[0];
    for (int i = 1; i < LANES; i++) top = t[i] > top ? t[i] : top;
    return top;
}
#endif

/* e^x within two units in the last place for x up to 88; below -87 the result is that of -87. Cephes' polynomial. */
INLINE vf vf_exp_low(vf x) {
    x = vf_max(x, vf_set1(-87.0f));
    const float round = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number */
    vf shifted = vf_fma(x, vf_set1(1.44269504088896341f), vf_set1(round));
    vi whole = (vi)shifted - (vi)vf_set1(round);
    vf n = shifted - round;
    x = vf_fma(n, vf_set1(-0.693359375f), x);
    x = vf_fma(n, vf_set1(2.12194440e-4f), x);
    vf y = vf_set1(1.9875691500e-4f);
    y = vf_fma(y, x, vf_set1(1.3981999507e-3f));
    y = vf_fma(y, x, vf_set1(8.3334519073e-3f));
    y = vf_fma(y, x, vf_set1(4.1665795894e-2f));
    y = vf_fma(y, x, vf_set1(1.6666665459e-1f));
    y = vf_fma(y, x, vf_set1(5.0000001201e-1f));
    y = vf_fma(y, x * x, x) + 1.0f;
    return (vf)((vi)y + (whole << 23));
}

INLINE vf vf_exp(vf x) { return vf_exp_low(-vf_max(-x, vf_set1(-88.0f))); } /* the same above 88 */

#endif
