/* The AVX-512 intrinsics that the kernels use (VNNI and BF16 left aside), as plain loops: included before the sources, it has them
 * built for 16 lanes, to run on a processor without. It says nothing about speed. */
#define _GNU_SOURCE
#include <immintrin.h>
#include <math.h>
#include <string.h>

#define __AVX512F__ 1
#define __AVX512BW__ 1
typedef float e_f __attribute__((vector_size(64)));
typedef double e_d __attribute__((vector_size(64)));
typedef int e_i __attribute__((vector_size(64)));
typedef short e_h __attribute__((vector_size(64)));
#define EACH(n) for (int i = 0; i < n; i++)

static inline __m512 e_fma(__m512 a, __m512 b, __m512 c) { e_f r; EACH(16) r[i] = fmaf(((e_f)a)[i], ((e_f)b)[i], ((e_f)c)[i]); return (__m512)r; }
static inline __m512 e_max(__m512 a, __m512 b) { e_f r, x = (e_f)a, y = (e_f)b; EACH(16) r[i] = x[i] > y[i] ? x[i] : y[i]; return (__m512)r; }
static inline __m512 e_half(__m256i p) {
    __m256 low = _mm256_cvtph_ps(_mm256_castsi256_si128(p)), high = _mm256_cvtph_ps(_mm256_extracti128_si256(p, 1));
    e_f r;
    memcpy(&r, &low, 32), memcpy((char *)&r + 32, &high, 32);
    return (__m512)r;
}
static inline __m512i e_widen(__m256i p) { unsigned short t[16]; memcpy(t, &p, 32); e_i r; EACH(16) r[i] = t[i]; return (__m512i)r; }
static inline float e_sum(__m512 a) { /* halves onto each other, as the processor's compilers do */
    e_f x = (e_f)a;
    for (int half = 8; half; half /= 2) EACH(half) x[i] = x[i] + x[i + half];
    return x[0];
}
static inline __m512 e_unpack(__m512 a, __m512 b, int from) {
    e_f r, x = (e_f)a, y = (e_f)b;
    EACH(4) r[4 * i] = x[4 * i + from], r[4 * i + 1] = y[4 * i + from], r[4 * i + 2] = x[4 * i + from + 1], r[4 * i + 3] = y[4 * i + from + 1];
    return (__m512)r;
}
static inline __m512d e_pairs(__m512d a, __m512d b, int from) {
    e_d r, x = (e_d)a, y = (e_d)b;
    EACH(4) r[2 * i] = x[2 * i + from], r[2 * i + 1] = y[2 * i + from];
    return (__m512d)r;
}
static inline __m256 e_low(__m512 a) { __m256 r; memcpy(&r, &a, 32); return r; }
static inline __m256d e_part(__m512d a, int part) { __m256d r; memcpy(&r, (char *)&a + 32 * part, 32); return r; }
static inline __m512i e_madd(__m512i a, __m512i b) {
    e_i r;
    e_h x = (e_h)a, y = (e_h)b;
    EACH(16) r[i] = (int)x[2 * i] * y[2 * i] + (int)x[2 * i + 1] * y[2 * i + 1];
    return (__m512i)r;
}

static inline __m512 e_expand(unsigned mask, __m512 a) {
    e_f r = {0}, x = (e_f)a;
    int at = 0;
    EACH(16) if (mask >> i & 1) r[i] = x[at++];
    return (__m512)r;
}
static inline __m512 e_set1(float x) { e_f r; EACH(16) r[i] = x; return (__m512)r; }
#define _mm512_set1_ps e_set1
#define _mm512_maskz_expand_ps e_expand
#define _mm512_fmadd_ps e_fma
#define _mm512_max_ps e_max
#define _mm512_cvtph_ps e_half
#define _mm512_cvtepu16_epi32 e_widen
#undef _mm512_slli_epi32
#define _mm512_slli_epi32(a, n) ((__m512i)((e_i)(a) << (n)))
#define _mm512_reduce_add_ps e_sum
#define _mm512_add_ps(a, b) ((__m512)((e_f)(a) + (e_f)(b)))
#define _mm512_unpacklo_ps(a, b) e_unpack(a, b, 0)
#define _mm512_unpackhi_ps(a, b) e_unpack(a, b, 2)
#define _mm512_unpacklo_pd(a, b) e_pairs(a, b, 0)
#define _mm512_unpackhi_pd(a, b) e_pairs(a, b, 1)
#define _mm512_castps512_ps256 e_low
#undef _mm512_extractf64x4_pd
#define _mm512_extractf64x4_pd e_part
#define _mm512_set1_epi32(x) ((__m512i)((e_i){0} + (int)(x)))
#define _mm512_set1_epi16(x) ((__m512i)((e_h){0} + (short)(x)))
#undef _mm512_slli_epi16
#define _mm512_slli_epi16(a, n) ((__m512i)((e_h)(a) << (n)))
#undef _mm512_srai_epi16
#define _mm512_srai_epi16(a, n) ((__m512i)((e_h)(a) >> (n)))
#undef _mm512_srli_epi16
#define _mm512_srli_epi16(a, n) ((__m512i)((unsigned short __attribute__((vector_size(64))))(a) >> (n)))
#define _mm512_and_si512(a, b) ((__m512i)((e_i)(a) & (e_i)(b)))
#define _mm512_madd_epi16 e_madd
static inline float e_top(__m512 a) { e_f x = (e_f)a; float r = x[0]; EACH(16) r = x[i] > r ? x[i] : r; return r; }
static inline int e_total(__m512i a) { e_i x = (e_i)a; int r = 0; EACH(16) r += x[i]; return r; }
static inline __m512 e_permute(__m512 a, __m512i at, __m512 b) {
    e_f r, x = (e_f)a, y = (e_f)b;
    e_i n = (e_i)at;
    EACH(16) r[i] = n[i] & 16 ? y[n[i] & 15] : x[n[i] & 15];
    return (__m512)r;
}
static inline __m512i e_setr(const int *n) { e_i r; EACH(16) r[i] = n[i]; return (__m512i)r; }
static inline __m256i e_words(__m512i a) { unsigned short t[16]; e_i x = (e_i)a; __m256i r; EACH(16) t[i] = (unsigned short)x[i]; memcpy(&r, t, 32); return r; }
static inline __m128i e_bytes(__m512i a) { unsigned char t[16]; e_i x = (e_i)a; __m128i r; EACH(16) t[i] = (unsigned char)x[i]; memcpy(&r, t, 16); return r; }
static inline __m512i e_put(__m512i a, unsigned mask, int n) { e_i r = (e_i)a; EACH(16) r[i] = mask >> i & 1 ? n : r[i]; return (__m512i)r; }
static inline unsigned e_unordered(__m512 a, __m512 b) { unsigned r = 0; e_f x = (e_f)a, y = (e_f)b; EACH(16) r |= (unsigned)(x[i] != x[i] || y[i] != y[i]) << i; return r; }
#define _mm512_reduce_max_ps e_top
#define _mm512_reduce_add_epi32 e_total
#define _mm512_permutex2var_ps e_permute
#undef _mm512_setr_epi32
#define _mm512_setr_epi32(...) e_setr((const int[16]){__VA_ARGS__})
#define _mm512_cvtepi32_epi16 e_words
#define _mm512_cvtepi32_epi8 e_bytes
#define _mm512_mask_set1_epi32 e_put
#undef _mm512_cmp_ps_mask
#define _mm512_cmp_ps_mask(a, b, unordered) e_unordered(a, b)
#define _mm512_add_epi32(a, b) ((__m512i)((e_i)(a) + (e_i)(b)))
#define _mm512_and_epi32(a, b) ((__m512i)((e_i)(a) & (e_i)(b)))
#undef _mm512_srli_epi32
#define _mm512_srli_epi32(a, n) ((__m512i)((unsigned __attribute__((vector_size(64))))(a) >> (n)))
