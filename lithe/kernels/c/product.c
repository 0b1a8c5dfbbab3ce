/* y = x W^T for few rows and many.
 *
 * Row i is bitwise the same whatever rows it is computed with, on any number of threads: every output is one lane of one
 * accumulator that walks over the inputs in order. Rows and columns only decide which registers are busy. For that
 * reason there are no sums across lanes, no splitting of the inputs, and no other kernel for other row counts.
 *
 * A panel of 32 columns is read in pieces that fit the innermost cache: the row blocks go over a piece, and meanwhile ask for
 * the next one, so that reading and multiplying overlap whatever the number of rows. Where rows are many, as many of them as the
 * next cache holds go over all panels before the others do.
 */
#include "lithe.h"
#include "simd.h"

enum {
    AHEAD = 8192,   /* bytes that weights are asked for before they are needed: enough to cover memory's delay */
    PIECE = 20480,  /* bytes of floats that all row blocks of a turn go over, from the innermost cache: at most */
    SHARES = 4,     /* row blocks that share the asking for the next piece */
    TURN = 64,      /* rows of a turn: they take a piece's sums up and put them away */
    NEAR = 1 << 18  /* bytes of activations that all panels go over before the next rows have their turns: the next cache holds them */
};

#if LANES == 8
#define BLOCK_BYTES (3 * BLOCK) /* of a row's block of 32 whole numbers: as bytes, then as halves */
#else
#define BLOCK_BYTES BLOCK
#endif

static int64_t scale_bytes(const Packed *w, int64_t k) { /* of a tile, rounded up to whole vectors of 64 bytes */
    const int64_t groups = ((uint32_t)k + (uint32_t)w->group - 1) / (uint32_t)w->group;
    return (groups * TILE * 2 + 63) / 64 * 64;
}

/* Rows go in equal blocks of at most `most`: with eight, nine are four and five. */
static int block_count(const Rows *x) { return (int)(((uint32_t)x->rows + (uint32_t)x->most - 1) / (uint32_t)x->most); }
static int block_start(int block, const Rows *x) {
    return !block ? 0 : x->rows <= x->most ? (int)x->rows : (int)(x->rows * block / block_count(x));
}
static int block_of(int row, const Rows *x) {
    return x->rows <= x->most ? 0 : (int)(((row + 1) * (int64_t)block_count(x) - 1) / x->rows);
}

/* ---- activations -------------------------------------------------------------------------------------------------- */

static int is_direct(int32_t kind, int64_t rows) { return kind == FP32 && rows == 1; } /* packed is as it was */

size_t rows_bytes(int32_t kind, int rows, int64_t k) {
    return (size_t)rows * (kind >= INT8 ? (size_t)(k / BLOCK) * (BLOCK_BYTES + 8) : (size_t)k * 4) + 64;
}

Rows rows_at(int32_t kind, const float *x, int rows, int64_t k, void *room) {
    if (kind < INT8) return (Rows){is_direct(kind, rows) ? (const void *)x : room, rows, ROWS_MAX, NULL, NULL};
    const float *scale = (const float *)((const int8_t *)room + (size_t)rows * (k / BLOCK) * BLOCK_BYTES);
    return (Rows){room, rows, INT_ROWS, scale, (const int32_t *)(scale + (size_t)rows * (k / BLOCK))};
}

/* A block's whole numbers as bytes, on AVX2 then as halves, each quad's entries in the order 0 2 1 3; their sum. */
#if LANES == 8
INLINE int32_t spread(const vi *whole, int8_t *q) {
    __m256i half[2], sum = _mm256_setzero_si256();
    UNROLL for (int i = 0; i < 2; i++) { /* packing goes by halves of registers; the permutation puts quads in order */
        half[i] = _mm256_permute4x64_epi64(_mm256_packs_epi32((__m256i)whole[2 * i], (__m256i)whole[2 * i + 1]), 0xd8);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(half[i], _mm256_set1_epi16(1)));
        __m256i wide = _mm256_shufflehi_epi16(_mm256_shufflelo_epi16(half[i], 0xd8), 0xd8);
        _mm256_storeu_si256((__m256i *)(q + BLOCK) + i, wide);
    }
    _mm256_storeu_si256((__m256i *)q, _mm256_permute4x64_epi64(_mm256_packs_epi16(half[0], half[1]), 0xd8));
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
#elif LANES == 16
INLINE int32_t spread(const vi *whole, int8_t *q) {
    UNROLL for (int i = 0; i < 2; i++) _mm_storeu_si128((__m128i *)q + i, _mm512_cvtepi32_epi8((__m512i)whole[i]));
    return _mm512_reduce_add_epi32((__m512i)(whole[0] + whole[1]));
}
#else
INLINE int32_t spread(const vi *whole, int8_t *q) {
    int32_t all[BLOCK], total = 0;
    memcpy(all, whole, sizeof all);
    for (int i = 0; i < BLOCK; i++) q[i] = (int8_t)all[i], total += all[i];
    return total;
}
#endif

/* Whole numbers -127 to 127 with one scale a block of 32: scale = largest / 127, ties to even. */
static void quantize(const float *x, int64_t k, int64_t real_k, const Rows *into, int row, int64_t from, int64_t to) {
    const int block = block_of(row, into), first = block_start(block, into), count = block_start(block + 1, into) - first;
    for (int64_t g = from / BLOCK, at = first * (k / BLOCK) + g * count + row - first; g < to / BLOCK; g++, at += count) {
        float t[BLOCK] __attribute__((aligned(64))) = {0};
        const float *real = x + g * BLOCK;
        if (real_k - g * BLOCK < BLOCK) real = memcpy(t, real, sizeof(float) * (real_k - g * BLOCK));
        vf most = vf_set1(0);
        vi whole[BLOCK / LANES];
        UNROLL for (int i = 0; i < BLOCK; i += LANES) most = vf_max(vf_max(vf_load(real + i), -vf_load(real + i)), most);
        float top = vf_top(most), inverse = top > 1e-30f ? 127.0f / top : 0;
        UNROLL for (int i = 0; i < BLOCK / LANES; i++) /* 1.5 * 2^23 rounds to a whole number */
            whole[i] = (vi)(vf_load(real + i * LANES) * inverse + 12582912.0f) - 0x4b400000;
        int32_t total = spread(whole, (int8_t *)into->x + at * BLOCK_BYTES);
        ((float *)into->scale)[at] = top > 1e-30f ? top / 127.0f : 0;
        ((int32_t *)into->start)[at] = -128 * total;
    }
}

/* Inputs [from, to) of a row x; both are multiples of BLOCK or the end. */
void prepare(int32_t kind, const float *x, int64_t k, int64_t real_k, const Rows *into, int row, int64_t from, int64_t to) {
    if (is_direct(kind, into->rows)) return;
    if (kind >= INT8) {
        quantize(x, k, real_k, into, row, from, to);
        return;
    }
    const int block = block_of(row, into), first = block_start(block, into), count = block_start(block + 1, into) - first;
#if NATIVE_BF16
    if (kind == BF16) {
        uint32_t *out = (uint32_t *)into->x + (first * k >> 1) + row - first; /* a pair of inputs each */
        int64_t i = from;
        for (; i + 2 * LANES <= to && i + 2 * LANES <= real_k; i += 2 * LANES) {
            uint32_t pairs[LANES] __attribute__((aligned(64)));
            vf_to_bf16((uint16_t *)pairs, vf_load(x + i));
            vf_to_bf16((uint16_t *)pairs + LANES, vf_load(x + i + LANES));
            UNROLL for (int n = 0; n < LANES; n++) out[(i / 2 + n) * count] = pairs[n];
        }
        for (; i < to; i++) ((uint16_t *)out)[i / 2 * 2 * count + i % 2] = i < real_k ? f32_bf16(x[i]) : 0;
        return;
    }
#endif
    {
        float *out = (float *)into->x + first * k + row - first;
        for (int64_t i = from; i < to; i++) out[i * count] = i >= real_k ? 0 : kind == BF16 ? bf16_f32(f32_bf16(x[i])) : x[i];
    }
}

/* ---- register blocks: `rows` is a constant in each of the functions made below ------------------------------------- */

/* What a row block does at once: inputs [from, to) of a panel for rows from `first` on. Of as many bytes, `ahead` of them, it asks
 * for the share `part` of `parts`; none where parts is 0. */
typedef struct {
    int panel, first, part, parts, ahead;
    int64_t from, to;
} Piece;

/* Ask for weights that will be needed soon. */
INLINE void fetch(const void *p, const int bytes) {
    UNROLL for (int i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)p + i, 0, 3);
}

/* Where floats are asked for by the strip that starts at column c, and how many bytes further with every vector of inputs. */
INLINE const char *soon(const void *column, const Piece *at, int c, const int wide, int64_t turns, int64_t *step) {
    const int strips = PANEL / (wide * LANES), line = 4 * PANEL, parts = at->parts * strips;
    const char *start = (const char *)column - 4 * c;
    *step = parts ? line / parts : 0;
    return parts ? start + at->ahead + (at->part * strips + c / (wide * LANES)) * turns * *step : start;
}

/* Vectors of columns that accumulate at once: few rows alone would wait for each sum before the next. */
INLINE int at_once(const int rows) { return LANES == 16 || rows > 2 ? 2 : 4; }

/* One of several inputs that a turn of the loop takes */
INLINE void fp32_input(const int rows, const int wide, const float *column, const float *entry, vf sum[ROWS_MAX][4]) {
    vf weight[4];
    UNROLL for (int v = 0; v < wide; v++) weight[v] = vf_load(column + v * LANES);
    UNROLL for (int m = 0; m < rows; m++) {
        vf s = vf_set1(entry[m]);
        UNROLL for (int v = 0; v < wide; v++) vf_add_product(&sum[m][v], s, weight[v]);
    }
}

INLINE void fp32_block(const int rows, const Packed *w, const Rows *x, const Piece *at, float *out) {
    const int64_t k = w->k;
    const int wide = at_once(rows);
    for (int c = 0; c < PANEL; c += wide * LANES) {
        const float *column = (const float *)w->data + (at->panel * k + at->from) * PANEL + c;
        const float *entry = (const float *)x->x + at->first * k + at->from * rows;
        int64_t step;
        const char *next = soon(column, at, c, wide, at->to - at->from, &step);
        vf sum[ROWS_MAX][4];
        UNROLL for (int m = 0; m < rows; m++)
            UNROLL for (int v = 0; v < wide; v++) sum[m][v] = at->from ? vf_load(out + m * PANEL + c + v * LANES) : vf_set1(0);
        int64_t i = at->from;
        if (4 * step <= 64) /* a line at most for four inputs */
            for (; i + 4 <= at->to; i += 4, column += 4 * PANEL, entry += 4 * rows, next += 4 * step) {
                fetch(next, 64);
                UNROLL for (int u = 0; u < 4; u++) fp32_input(rows, wide, column + u * PANEL, entry + u * rows, sum);
            }
        for (; i < at->to; i++, column += PANEL, entry += rows, next += step) {
            vf weight[4];
            UNROLL for (int v = 0; v < wide; v++) weight[v] = vf_load(column + v * LANES);
            fetch(next, 4 * wide * LANES);
            UNROLL for (int m = 0; m < rows; m++) {
                vf s = vf_set1(entry[m]);
                UNROLL for (int v = 0; v < wide; v++) sum[m][v] = vf_fma(s, weight[v], sum[m][v]);
            }
        }
        UNROLL for (int m = 0; m < rows; m++)
            UNROLL for (int v = 0; v < wide; v++) vf_store(out + m * PANEL + c + v * LANES, sum[m][v]);
    }
}

INLINE void bf16_block(const int rows, const Packed *w, const Rows *x, const Piece *at, float *out) {
    const int64_t k = padded(w);
    const int wide = at_once(rows);
    for (int c = 0; c < PANEL; c += wide * LANES) {
        const uint16_t *column = (const uint16_t *)w->data + (at->panel * k + at->from) * PANEL + 2 * c;
        int64_t step;
        const char *next = soon(column, at, c, wide, (at->to - at->from) / 2, &step);
        vf sum[ROWS_MAX][4];
        UNROLL for (int m = 0; m < rows; m++)
            UNROLL for (int v = 0; v < wide; v++) sum[m][v] = at->from ? vf_load(out + m * PANEL + c + v * LANES) : vf_set1(0);
#if NATIVE_BF16
        const uint16_t *entry = (const uint16_t *)x->x + at->first * k + at->from * rows;
#else
        const float *entry = (const float *)x->x + at->first * k + at->from * rows;
#endif
        for (int64_t i = at->from; i < at->to; i += 2, column += 2 * PANEL, entry += 2 * rows, next += step) {
            vi pair[4];
            fetch(next, 4 * wide * LANES);
            UNROLL for (int v = 0; v < wide; v++) pair[v] = vi_load(column + 2 * v * LANES);
#if NATIVE_BF16
            UNROLL for (int m = 0; m < rows; m++) {
                __m512bh s = (__m512bh)vi_set1(read_i32(entry + 2 * m));
                UNROLL for (int v = 0; v < wide; v++)
                    sum[m][v] = (vf)_mm512_dpbf16_ps((__m512)sum[m][v], s, (__m512bh)pair[v]);
            }
#else
            vf half[4]; /* the even inputs, then the odd ones: both at once would not fit the registers */
            UNROLL for (int v = 0; v < wide; v++) half[v] = (vf)(pair[v] << 16);
            UNROLL for (int m = 0; m < rows; m++) {
                vf s = vf_set1(entry[m]);
                UNROLL for (int v = 0; v < wide; v++) vf_add_product(&sum[m][v], s, half[v]);
            }
            UNROLL for (int v = 0; v < wide; v++) half[v] = (vf)(vi_load(column + 2 * v * LANES) & (int32_t)0xffff0000);
            UNROLL for (int m = 0; m < rows; m++) {
                vf s = vf_set1(entry[rows + m]);
                UNROLL for (int v = 0; v < wide; v++) vf_add_product(&sum[m][v], s, half[v]);
            }
#endif
        }
        UNROLL for (int m = 0; m < rows; m++)
            UNROLL for (int v = 0; v < wide; v++) vf_store(out + m * PANEL + c + v * LANES, sum[m][v]);
    }
}

#if LANES == 8
/* half[v] += neighbours' products of low[v] and the four entries `near`, of high[v] and `far`. Written as assembly: gcc would add both
 * products up first, and run out of registers for it. */
INLINE void add_nibbles(__m256i *half, const __m256i *low, const __m256i *high, const int8_t *near, const int8_t *far) {
    __m256i entries, product;
    __asm__("vpbroadcastd %8, %2\n\t"
            "vpmaddubsw %2, %4, %3\n\tvpaddw %3, %0, %0\n\tvpmaddubsw %2, %5, %3\n\tvpaddw %3, %1, %1\n\t"
            "vpbroadcastd %9, %2\n\t"
            "vpmaddubsw %2, %6, %3\n\tvpaddw %3, %0, %0\n\tvpmaddubsw %2, %7, %3\n\tvpaddw %3, %1, %1"
            : "+x"(half[0]), "+x"(half[1]), "=&x"(entries), "=&x"(product)
            : "x"(low[0]), "x"(low[1]), "x"(high[0]), "x"(high[1]), "m"(*(const int8_t(*)[4])near), "m"(*(const int8_t(*)[4])far));
}

/* The exact sums of a block of 32 inputs for the 16 columns of a tile, AVX2's way. Bytes are taken apart into halves, which
 * multiply and add in pairs without overflow: two instructions for 32 products where bytes times bytes would take four. The
 * products of nibbles and bytes fit sums of 16 bits for a whole block: 8 * 2 * 15 * 127 < 2^15. */
INLINE void tile_sums(const int rows, const int bits, const uint8_t *weights, const int8_t *x, const int32_t *start, vi s[][2]) {
    const vi low_byte = vi_set1(0x00ff00ff), low_nibble = vi_set1(0x0f0f0f0f);
    if (bits == 8) {
        UNROLL for (int m = 0; m < rows; m++) s[m][0] = s[m][1] = vi_set1(start[m]);
        UNROLL_2 for (int q = 0; q < 8; q++) {
            __m256i even[2], odd[2];
            UNROLL for (int v = 0; v < 2; v++) {
                vi w = vi_load(weights + q * TILE * 4 + v * 32);
                even[v] = (__m256i)(w & low_byte), odd[v] = _mm256_srli_epi16((__m256i)w, 8);
            }
            UNROLL for (int m = 0; m < rows; m++) {
                const int8_t *at = x + m * BLOCK_BYTES + BLOCK + q * 8;
                __m256i x02 = (__m256i)vi_set1(read_i32(at)), x13 = (__m256i)vi_set1(read_i32(at + 4));
                UNROLL for (int v = 0; v < 2; v++)
                    s[m][v] = s[m][v] + (vi)_mm256_madd_epi16(even[v], x02) + (vi)_mm256_madd_epi16(odd[v], x13);
            }
        }
    } else {
        __m256i half[INT_ROWS][2];
        UNROLL for (int m = 0; m < rows; m++) half[m][0] = half[m][1] = _mm256_setzero_si256();
        UNROLL_2 for (int q = 0; q < 4; q++) {
            __m256i low[2], high[2];
            UNROLL for (int v = 0; v < 2; v++) {
                vi w = vi_load(weights + q * TILE * 4 + v * 32);
                low[v] = (__m256i)(w & low_nibble), high[v] = (__m256i)(w >> 4 & low_nibble);
            }
            UNROLL for (int m = 0; m < rows; m++) {
                const int8_t *at = x + m * BLOCK_BYTES + q * 4;
                add_nibbles(half[m], low, high, at, at + 16);
            }
        }
        UNROLL for (int m = 0; m < rows; m++) UNROLL for (int v = 0; v < 2; v++)
            s[m][v] = (vi)_mm256_madd_epi16(half[m][v], _mm256_set1_epi16(1)) + (vi_set1(start[m]) >> 4); /* 128 to 8 */
    }
}

/* Blocks add up in order under their activation scales, groups under the weights'. */
INLINE void int_block(const int rows, const int bits, const int one, const Packed *w, const Rows *x, const Piece *at, float *out) {
    const int64_t k = padded(w), blocks = k / BLOCK;
    const int64_t block_bytes = BLOCK * TILE * bits / 8, scales = scale_bytes(w, k), tile_bytes = scales + blocks * block_bytes;
    const int64_t per_group = one ? 1 : (uint32_t)w->group / BLOCK;
    for (int c = 0; c < PANEL; c += TILE) {
        const uint16_t *scale = (const uint16_t *)(w->data + (2 * at->panel + c / TILE) * tile_bytes);
        const uint8_t *weights = (const uint8_t *)scale + scales;
        const int8_t *q0 = (const int8_t *)x->x + at->first * blocks * BLOCK_BYTES;
        const float *x_scale = x->scale + at->first * blocks;
        const int32_t *start = x->start + at->first * blocks;
        float sums[INT_ROWS][TILE] __attribute__((aligned(64))) = {0}, inner[INT_ROWS][TILE] __attribute__((aligned(64)));
        for (int64_t g = 0; g < blocks; scale += TILE) {
            const int64_t end = one ? g + 1 : g + per_group < blocks ? g + per_group : blocks;
            vf by[2] = {vf_half(scale), vf_half(scale + LANES)};
            if (!one) memset(inner, 0, sizeof inner);
            for (; g < end; g++, weights += block_bytes, q0 += rows * BLOCK_BYTES, x_scale += rows, start += rows) {
                vi s[INT_ROWS][2];
                if (at->parts && !at->part) fetch(weights + AHEAD, (int)(bits * TILE * BLOCK / 8));
                tile_sums(rows, bits, weights, q0, start, s);
                UNROLL for (int m = 0; m < rows; m++) UNROLL for (int v = 0; v < 2; v++) {
                    vf exact = vi_to_vf(s[m][v]), mine = vf_set1(x_scale[m]);
                    float *sum = sums[m] + v * LANES, *part = inner[m] + v * LANES;
                    if (one) vf_store(sum, vf_fma(exact * mine, by[v], vf_load(sum)));
                    else vf_store(part, vf_fma(exact, mine, vf_load(part)));
                }
                if (bits == 4) __asm__("" : "+m"(sums), "+m"(inner)); /* in memory they stay: registers are for the sums above */
            }
            if (!one) UNROLL for (int m = 0; m < rows; m++) UNROLL for (int v = 0; v < 2; v++) {
                float *sum = sums[m] + v * LANES;
                vf_store(sum, vf_fma(vf_load(inner[m] + v * LANES), by[v], vf_load(sum)));
            }
        }
        UNROLL for (int m = 0; m < rows; m++) memcpy(out + m * PANEL + c, sums[m], sizeof sums[m]);
    }
}

#elif defined(__AVX512VNNI__)
/* sums[0] += neighbours' products of weights[0] and the four entries at `x`, sums[1] of weights[1]: one load for both. Written as
 * assembly: gcc keeps broadcasts in registers and spills for them. */
INLINE void add_quads(vi *sums, const vi *weights, const int8_t *x) {
    vi entries;
    __asm__("vpbroadcastd %5, %2\n\tvpdpbusd %2, %3, %0\n\tvpdpbusd %2, %4, %1"
            : "+v"(sums[0]), "+v"(sums[1]), "=&v"(entries)
            : "v"(weights[0]), "v"(weights[1]), "m"(*(const int8_t(*)[4])x));
}

/* Both tiles at once, so that each load of an entry serves two products, and all rows, so that no product waits for another. Inside a
 * block of 32 the sum is exact; blocks add up in order under their activation scales, groups under the weights'. */
INLINE void int_block(const int rows, const int bits, const int one, const Packed *w, const Rows *x, const Piece *at, float *out) {
    const int64_t k = padded(w), blocks = k / BLOCK;
    const int64_t block_bytes = BLOCK * TILE * bits / 8, scales = scale_bytes(w, k), tile_bytes = scales + blocks * block_bytes;
    const int64_t per_group = one ? 1 : (uint32_t)w->group / BLOCK, ahead = bits == 8 ? 8 : 32; /* blocks asked for */
    const uint8_t *tile = w->data + 2 * at->panel * tile_bytes, *weights = tile + scales;
    const uint16_t *scale = (const uint16_t *)tile;
    const int8_t *q0 = (const int8_t *)x->x + at->first * k;
    const float *x_scale = x->scale + at->first * blocks;
    const int32_t *start = x->start + at->first * blocks;
    vf sums[INT_ROWS][2], inner[INT_ROWS][2];
    UNROLL for (int m = 0; m < rows; m++) sums[m][0] = sums[m][1] = vf_set1(0);
    for (int64_t g = 0; g < blocks; scale += TILE) {
        const int64_t end = one ? g + 1 : g + per_group < blocks ? g + per_group : blocks;
        const vf by[2] = {vf_half(scale), vf_half(scale + tile_bytes / 2)};
        if (!one) UNROLL for (int m = 0; m < rows; m++) inner[m][0] = inner[m][1] = vf_set1(0);
        for (; g < end; g++, weights += block_bytes, q0 += rows * BLOCK, x_scale += rows, start += rows) {
            const uint8_t *column[2] = {weights, weights + tile_bytes};
            vi s[INT_ROWS][2];
            __asm__("" : "+r"(q0), "+r"(column[0]), "+r"(column[1])); /* otherwise gcc keeps a pointer for every address below */
            if (at->parts == 1) { /* past the end of a tile comes the next panel's */
                const int64_t later = g + ahead < blocks ? 0 : 2 * tile_bytes - blocks * block_bytes;
                UNROLL for (int v = 0; v < 2; v++) fetch(column[v] + later + ahead * block_bytes, bits * TILE * BLOCK / 8);
            } else if (at->parts) { /* row blocks share the asking for the next panel */
                for (int64_t i = 64 * at->part; i < block_bytes; i += 64 * at->parts)
                    UNROLL for (int v = 0; v < 2; v++) fetch(column[v] + 2 * tile_bytes + i, 64);
            }
            UNROLL for (int m = 0; m < rows; m++) s[m][0] = s[m][1] = vi_set1(start[m]) >> (bits == 8 ? 0 : 4); /* 128 to 8 */
            UNROLL for (int q = 0; q < 4; q++) {
                vi low[2], high[2]; /* quads q and q + 4 */
                UNROLL for (int v = 0; v < 2; v++) {
                    const uint8_t *p = column[v] + q * TILE * 4;
                    low[v] = vi_load(p);
                    if (bits == 4) high[v] = low[v] >> 4 & 0x0f0f0f0f, low[v] = low[v] & 0x0f0f0f0f;
                    else high[v] = vi_load(p + 4 * TILE * 4);
                }
                UNROLL for (int m = 0; m < rows; m++) add_quads(s[m], low, q0 + m * BLOCK + q * 4);
                UNROLL for (int m = 0; m < rows; m++) add_quads(s[m], high, q0 + m * BLOCK + q * 4 + 16);
            }
            UNROLL for (int m = 0; m < rows; m++) UNROLL for (int v = 0; v < 2; v++) {
                const vf exact = vi_to_vf(s[m][v]), mine = vf_set1(x_scale[m]);
                if (one) sums[m][v] = vf_fma(exact * mine, by[v], sums[m][v]);
                else inner[m][v] = vf_fma(exact, mine, inner[m][v]);
            }
        }
        if (!one)
            UNROLL for (int m = 0; m < rows; m++) UNROLL for (int v = 0; v < 2; v++) sums[m][v] = vf_fma(inner[m][v], by[v], sums[m][v]);
    }
    UNROLL for (int m = 0; m < rows; m++) UNROLL for (int v = 0; v < 2; v++) vf_store(out + m * PANEL + v * LANES, sums[m][v]);
}

#else
/* The eight vectors of a block's weights: quad q holds inputs 4q to 4q + 3 of LANES columns. A nibble vector holds quad q
 * in its low halves and quad q + 4 in its high ones. */
INLINE void block_weights(const int bits, const uint8_t *p, vi *w) {
    if (bits == 8) {
        UNROLL for (int q = 0; q < 8; q++) w[q] = vi_load(p + q * TILE * 4);
    } else {
        UNROLL for (int q = 0; q < 4; q++) {
            vi both = vi_load(p + q * TILE * 4);
            w[q] = both & 0x0f0f0f0f;
            w[q + 4] = both >> 4 & 0x0f0f0f0f;
        }
    }
}

/* Inside a block of 32 the sum is exact; blocks add up in order under their activation scales, groups under the weights'. */
INLINE void int_block(const int rows, const int bits, const int one, const Packed *w, const Rows *x, const Piece *at, float *out) {
    const int64_t k = padded(w), blocks = k / BLOCK;
    const int64_t block_bytes = BLOCK * TILE * bits / 8, scales = scale_bytes(w, k), tile_bytes = scales + blocks * block_bytes;
    const int64_t per_group = one ? 1 : (uint32_t)w->group / BLOCK;
    const int together = 4; /* rows whose dot products are under way at once */
    for (int c = 0; c < PANEL; c += LANES) {
        const uint8_t *tile = w->data + (2 * at->panel + c / TILE) * tile_bytes;
        const uint16_t *scale = (const uint16_t *)tile + c % TILE;
        const uint8_t *weights = tile + scales + c % TILE * 4;
        const int8_t *q0 = (const int8_t *)x->x + at->first * k;
        const float *x_scale = x->scale + at->first * blocks;
        const int32_t *start = x->start + at->first * blocks;
        vf sums[INT_ROWS], inner[INT_ROWS];
        UNROLL for (int m = 0; m < rows; m++) sums[m] = vf_set1(0);
        for (int64_t g = 0; g < blocks; scale += TILE) {
            UNROLL for (int m = 0; m < rows; m++) inner[m] = vf_set1(0);
            const int64_t end = one ? g + 1 : g + per_group < blocks ? g + per_group : blocks;
            for (; g < end; g++, weights += block_bytes, q0 += rows * BLOCK, x_scale += rows, start += rows) {
                vi v[8];
                if (one) __asm__("" : "+r"(q0), "+r"(weights)); /* otherwise gcc keeps a pointer for every address below */
                if (at->parts && !at->part) fetch(weights + AHEAD, bits * LANES * BLOCK / 8);
                block_weights(bits, weights, v);
                UNROLL for (int m0 = 0; m0 < rows; m0 += together) {
                    const int m1 = m0 + together < rows ? m0 + together : rows;
                    vi s[4];
                    UNROLL for (int m = m0; m < m1; m++)
                        s[m - m0] = vi_set1(start[m]) >> (bits == 8 ? 0 : 4); /* 128 to 8 */
                    UNROLL for (int q = 0; q < 8; q++)
                        UNROLL for (int m = m0; m < m1; m++)
                            s[m - m0] = dot(s[m - m0], v[q], q0 + m * BLOCK + q * 4);
                    UNROLL for (int m = m0; m < m1; m++) {
                        vf exact = vi_to_vf(s[m - m0]), by = vf_set1(x_scale[m]);
                        inner[m] = one ? exact * by : vf_fma(exact, by, inner[m]);
                    }
                }
            }
            vf by = vf_half(scale);
            UNROLL for (int m = 0; m < rows; m++) sums[m] = vf_fma(inner[m], by, sums[m]);
        }
        UNROLL for (int m = 0; m < rows; m++) vf_store(out + m * PANEL + c, sums[m]);
    }
}

#endif

/* One function for each number of rows: all in one, the compiler would spill the accumulators. */
typedef void (*Block)(const Packed *, const Rows *, const Piece *, float *);
#define FLOATS(R) \
    static void fp32_##R(const Packed *w, const Rows *x, const Piece *at, float *o) { fp32_block(R, w, x, at, o); } \
    static void bf16_##R(const Packed *w, const Rows *x, const Piece *at, float *o) { bf16_block(R, w, x, at, o); }
#define INTS(R) \
    static void byte_##R(const Packed *w, const Rows *x, const Piece *at, float *o) { int_block(R, 8, 0, w, x, at, o); } \
    static void byte32_##R(const Packed *w, const Rows *x, const Piece *at, float *o) { int_block(R, 8, 1, w, x, at, o); } \
    static void nibble_##R(const Packed *w, const Rows *x, const Piece *at, float *o) { int_block(R, 4, 0, w, x, at, o); } \
    static void nibble32_##R(const Packed *w, const Rows *x, const Piece *at, float *o) { int_block(R, 4, 1, w, x, at, o); }
#define UP_TO_4(name) name##_1, name##_2, name##_3, name##_4
FLOATS(1) FLOATS(2) FLOATS(3) FLOATS(4) INTS(1) INTS(2) INTS(3) INTS(4)
#if ROWS_MAX == 8
FLOATS(5) FLOATS(6) FLOATS(7) FLOATS(8)
#define FLOAT_TABLE(name) {UP_TO_4(name), name##_5, name##_6, name##_7, name##_8}
#elif ROWS_MAX == 6
FLOATS(5) FLOATS(6)
#define FLOAT_TABLE(name) {UP_TO_4(name), name##_5, name##_6}
#else
#define FLOAT_TABLE(name) {UP_TO_4(name)}
#endif
#if INT_ROWS == 6
INTS(5) INTS(6)
#define INT_TABLE(name) {UP_TO_4(name), name##_5, name##_6}
#else
#define INT_TABLE(name) {UP_TO_4(name)}
#endif
static const Block table[][ROWS_MAX] = {FLOAT_TABLE(fp32), FLOAT_TABLE(bf16), INT_TABLE(byte), INT_TABLE(nibble), INT_TABLE(byte32),
                                        INT_TABLE(nibble32)};

static int64_t float_line(const Packed *w) { return PANEL * (w->kind == FP32 ? 4 : 2); } /* bytes of a panel an input */

/* Inputs a piece, all alike: PIECE bytes of floats at most; all of them where weights are read but once, or where multiplying takes
 * far longer. */
static int64_t piece_of(const Packed *w, int64_t k, const Rows *x) {
    const int once = block_count(x) == 1 && at_once((int)x->rows) * LANES == PANEL;
    if (w->kind >= INT8 || once) return k;
    const int64_t pieces = (k * float_line(w) + PIECE - 1) / PIECE;
    return ((k + pieces - 1) / pieces + 1) / 2 * 2;
}

/* Columns [PANEL * panel, + PANEL) of row blocks [b, b_end) into out[their rows][PANEL]. */
static void panel_product(const Packed *w, const Rows *x, int panel, int b, int b_end, float *out) {
    const Block *block = table[w->kind + 2 * (w->kind >= INT8 && w->group == BLOCK)];
    const int64_t k = padded(w), piece = piece_of(w, k, x);
    const int base = block_start(b, x), most = piece < k || w->kind >= INT8 ? SHARES : 1, parts = b_end - b < most ? b_end - b : most;
    const int ahead = piece < k ? (int)(piece * float_line(w)) : AHEAD;
    for (int64_t from = 0; from < k; from += piece)
        for (int i = b; i < b_end; i++) {
            const int first = block_start(i, x), count = block_start(i + 1, x) - first;
            Piece at = {panel, first, i - b, i - b < parts ? parts : 0, ahead, from, from + piece < k ? from + piece : k};
            block[count - 1](w, x, &at, out + (first - base) * PANEL);
        }
}

/* ---- products of the same rows, shared out over threads by panels ---------------------------------------------------- */

static void store(const Product *p, int column, int first, int count, const float *tile) {
    const int wide = p->w->n - column < PANEL ? p->w->n - column : PANEL, whole = wide / LANES * LANES;
    const float *bias = p->bias ? p->bias + column : NULL;
    for (int m = 0; m < count; m++, tile += PANEL) {
        const int64_t at = (first + m) * p->stride + column;
        const float *add = p->add ? p->add + at : NULL;
        float *y = p->y + at;
        for (int c = 0; c < whole; c += LANES) {
            vf sum = bias ? vf_load(tile + c) + vf_load(bias + c) : vf_load(tile + c);
            vf_store(y + c, add ? vf_load(add + c) + sum : sum);
        }
        for (int c = whole; c < wide; c++) {
            const float sum = bias ? tile[c] + bias[c] : tile[c];
            y[c] = add ? add[c] + sum : sum;
        }
    }
}

/* Row blocks of a turn, and of as many turns as fit NEAR. */
static int turn_blocks(const Rows *x) { return (int)(TURN / x->most); }
static int near_blocks(const Packed *w, const Rows *x) {
    const size_t bytes = rows_bytes(w->kind, TURN, padded(w));
    return turn_blocks(x) * (bytes < NEAR ? (int)(NEAR / bytes) : 1);
}

void deal_out(Deal *deals, int panels, int threads) {
    for (int t = 0, from, to; t < threads; t++) {
        share(panels, t, threads, &from, &to);
        atomic_init(&deals[t].left, (uint64_t)from << 32 | (uint32_t)to);
    }
}

/* The next panel for a thread; -1 where none is left. */
static int claim(Deal *deals, int dealt, int thread) {
    for (int i = 0; i < dealt; i++) {
        _Atomic uint64_t *left = &deals[(thread + i) % dealt].left;
        uint64_t now = atomic_load_explicit(left, memory_order_relaxed), rest;
        while (now >> 32 < (uint32_t)now) {
            rest = i ? now - 1 : now + (1ull << 32);
            if (atomic_compare_exchange_weak_explicit(left, &now, rest, memory_order_relaxed, memory_order_relaxed))
                return (int)(i ? (uint32_t)rest : now >> 32);
        }
    }
    return -1;
}

/* Row blocks [b, end) of one panel, counted over all products of a list. */
static void do_panel(const Product *p, int panel, int b, int end) {
    for (; panel >= panels_of(p->w); p++) panel -= panels_of(p->w);
    for (const int some = turn_blocks(&p->x); b < end; b += some) {
        float tile[TURN * PANEL] __attribute__((aligned(64)));
        const int stop = b + some < end ? b + some : end, first = block_start(b, &p->x);
        panel_product(p->w, &p->x, panel, b, stop, tile);
        store(p, panel * PANEL, first, block_start(stop, &p->x) - first, tile);
    }
}

void products(const Product *list, int count, Deal *deals, int dealt, int thread, int threads) {
    const int all = block_count(&list->x), near = near_blocks(list->w, &list->x);
    int total = 0, from, to;
    if (all <= near) {
        for (int panel; (panel = claim(deals, dealt, thread)) >= 0;) do_panel(list, panel, 0, all);
        return;
    }
    for (int i = 0; i < count; i++) total += panels_of(list[i].w);
    share(total, thread, threads, &from, &to);
    for (int start = 0; start < all; start += near) /* so much work that threads end alike, and each goes over its panels many times */
        for (int panel = from; panel < to; panel++) do_panel(list, panel, start, start + near < all ? start + near : all);
}

/* ---- the linear layer ---------------------------------------------------------------------------------------------- */

typedef struct {
    Product product;
    const float *x;
    int64_t x_stride;
    Deal *deals;
    int rows, dealt;
} Linear;

static void linear_job(void *with, int thread, int threads) {
    const Linear *job = with;
    const Packed *w = job->product.w;
    int64_t from, to;
    share_inputs(padded(w), thread, threads, &from, &to);
    for (int r = 0; r < job->rows; r++) prepare(w->kind, job->x + r * job->x_stride, padded(w), w->k, &job->product.x, r, from, to);
    pool_barrier(thread, threads);
    products(&job->product, 1, job->deals, job->dealt, thread, threads);
}

/* y [rows, n] = x [rows, k] W^T + bias. bias may be NULL; strides count floats. */
void lithe_linear(const Packed *w, const float *x, int64_t x_stride, const float *bias, float *y, int64_t y_stride,
                  int32_t rows, int32_t threads) {
    if (rows < 1 || w->n < 1) return;
    pool_lock();
    const int dealt = hands(threads);
    Deal *deals = pool_scratch(sizeof *deals * dealt + rows_bytes(w->kind, rows, padded(w)));
    Rows prepared = rows_at(w->kind, x, rows, padded(w), deals + dealt);
    Linear job = {{w, prepared, y, bias, NULL, y_stride}, x, x_stride, deals, rows, dealt};
    deal_out(deals, panels_of(w), dealt);
    pool_run(linear_job, &job, threads);
    pool_unlock();
}

/* out [count, k] = the rows of W that `rows` names, as floats. Returns the first place that names none, or -1. */
int64_t lithe_rows(const Packed *w, const int64_t *rows, int64_t count, float *out) {
    const int64_t k = padded(w), bits = w->kind == INT8 ? 8 : 4;
    for (int64_t i = 0; i < count; i++, out += w->k) {
        const int64_t n = rows[i], column = n % PANEL;
        if (n < 0 || n >= w->n) return i;
        if (w->kind == FP32) {
            const float *p = (const float *)w->data + n / PANEL * k * PANEL + column;
            for (int64_t j = 0; j < w->k; j++) out[j] = p[j * PANEL];
        } else if (w->kind == BF16) {
            const uint16_t *p = (const uint16_t *)w->data + n / PANEL * k * PANEL + 2 * column;
            for (int64_t j = 0; j < w->k; j++) out[j] = bf16_f32(p[j / 2 * 2 * PANEL + j % 2]);
        } else {
            const int64_t scales = scale_bytes(w, k), tile_bytes = scales + k * TILE * bits / 8;
            const uint8_t *tile = w->data + n / TILE * tile_bytes, *weights = tile + scales + n % TILE * 4;
            const uint16_t *scale = (const uint16_t *)tile + n % TILE;
            for (int64_t j = 0; j < w->k; j++) {
                int64_t block = j / BLOCK, quad = j % BLOCK / 4;
                float by = half_f32(scale[j / w->group * TILE]);
                if (bits == 8) out[j] = (float)(weights[(block * 8 + quad) * TILE * 4 + j % 4] - 128) * by;
                else out[j] = (float)((weights[(block * 4 + quad % 4) * TILE * 4 + j % 4] >> (quad < 4 ? 0 : 4) & 15) - 8) * by;
            }
        }
    }
    return -1;
}
