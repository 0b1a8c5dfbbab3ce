/* y = x W^T for few rows and many.
 *
 * Row i is bitwise the same whatever rows it is computed with, on any number of threads: every output is one lane of one
 * accumulator that walks over the inputs in order. Rows and columns only decide which registers are busy. For that
 * reason there are no sums across lanes, no splitting of the inputs, and no other kernel for other row counts.
 *
 * A panel of 32 columns is read from memory once; the row blocks that follow find it in the cache.
 */
#include "lithe.h"
#include "simd.h"

#if defined(__AVX512BF16__)
#define NATIVE_BF16 1
#else
#define NATIVE_BF16 0 /* activations are rounded all the same, but kept as floats */
#endif

#define AHEAD 8192 /* bytes that weights are asked for before they are needed: enough to cover memory's delay */
#define STRIPS (PANEL / LANES / 2) /* pairs of vectors in a panel */

int64_t padded(const Packed *w) {
    int unit = w->kind == FP32 ? 1 : w->kind == BF16 ? 2 : BLOCK;
    return ((int64_t)w->k + unit - 1) / unit * unit;
}

static int64_t scale_bytes(const Packed *w, int64_t k) { /* of a tile, rounded up to whole vectors of 64 bytes */
    int64_t groups = (k + w->group - 1) / w->group;
    return (groups * TILE * 2 + 63) / 64 * 64;
}

/* Rows go in equal blocks of at most ROWS_MAX: nine are four and five. */
static int block_count(int64_t rows) { return (int)((rows + ROWS_MAX - 1) / ROWS_MAX); }
static int block_start(int block, int64_t rows) { return (int)(rows * block / block_count(rows)); }
static int block_of(int row, int64_t rows) { return (int)(((row + 1) * (int64_t)block_count(rows) - 1) / rows); }

/* ---- activations -------------------------------------------------------------------------------------------------- */

static int is_direct(int32_t kind, int64_t k, int64_t real_k) { return kind == FP32 && k == real_k; }

size_t rows_bytes(int32_t kind, int rows, int64_t k) {
    return (size_t)rows * (kind >= INT8 ? (size_t)k + (size_t)(k / BLOCK) * 8 : (size_t)k * 4) + 64;
}

Rows rows_at(int32_t kind, const float *x, int64_t stride, int rows, int64_t k, int64_t real_k, void *room) {
    if (is_direct(kind, k, real_k)) return (Rows){x, stride, rows, NULL, NULL};
    if (kind < INT8) return (Rows){room, k, rows, NULL, NULL};
    const float *scale = (const float *)((const int8_t *)room + (size_t)rows * k);
    return (Rows){room, k, rows, scale, (const int32_t *)(scale + (size_t)rows * (k / BLOCK))};
}

/* Whole numbers -127 to 127 with one scale a block of 32: scale = largest / 127, ties to even. */
static void quantize(const float *x, int64_t k, int64_t real_k, const Rows *into, int row) {
    int b = block_of(row, into->rows), first = block_start(b, into->rows), count = block_start(b + 1, into->rows) - first;
    for (int64_t g = 0; g < k / BLOCK; g++) {
        int64_t at = first * (k / BLOCK) + g * count + row - first;
        int8_t *q = (int8_t *)into->x + at * BLOCK;
        float t[BLOCK] = {0}, top = 0;
        int64_t count = real_k - g * BLOCK < BLOCK ? real_k - g * BLOCK : BLOCK;
        memcpy(t, x + g * BLOCK, sizeof(float) * count);
        for (int i = 0; i < BLOCK; i++) {
            float size = t[i] < 0 ? -t[i] : t[i];
            top = size > top ? size : top;
        }
        float inverse = top > 1e-30f ? 127.0f / top : 0;
        int32_t total = 0;
        for (int i = 0; i < BLOCK; i++) {
            float shifted = t[i] * inverse + 12582912.0f; /* 1.5 * 2^23: rounds to a whole number */
            uint32_t bits;
            memcpy(&bits, &shifted, 4);
            int8_t whole = (int8_t)(bits - 0x4b400000u);
            q[i] = whole;
            total += whole;
        }
        ((float *)into->scale)[at] = top > 1e-30f ? top / 127.0f : 0;
        ((int32_t *)into->start)[at] = -128 * total;
    }
}

void prepare(int32_t kind, const float *x, int64_t k, int64_t real_k, const Rows *into, int row) {
    if (is_direct(kind, k, real_k)) return;
    if (kind >= INT8) {
        quantize(x, k, real_k, into, row);
    } else if (kind == BF16 && NATIVE_BF16) {
        uint16_t *out = (uint16_t *)into->x + row * into->stride;
        for (int64_t i = 0; i < k; i++) out[i] = i < real_k ? f32_bf16(x[i]) : 0;
    } else {
        float *out = (float *)into->x + row * into->stride;
        for (int64_t i = 0; i < k; i++) out[i] = i >= real_k ? 0 : kind == BF16 ? bf16_f32(f32_bf16(x[i])) : x[i];
    }
}

/* ---- register blocks: `rows` is a constant in each of the functions made below ------------------------------------- */

/* Ask for weights that will be needed soon. */
INLINE void fetch(const void *p, const int bytes) {
    UNROLL for (int i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)p + i, 0, 2);
}

INLINE void fp32_block(const int rows, const Packed *w, const Rows *x, int panel, int first, int ahead, float *out) {
    const float *x0 = (const float *)x->x + first * x->stride;
    const int64_t k = w->k, stride = x->stride;
    for (int strip = 0; strip < STRIPS; strip++) {
        const float *column = (const float *)w->data + panel * k * PANEL + strip * 2 * LANES;
        vf a[ROWS_MAX], b[ROWS_MAX];
        UNROLL for (int m = 0; m < rows; m++) a[m] = b[m] = vf_set1(0);
        for (int64_t i = 0; i < k; i++, column += PANEL) {
            vf left = vf_load(column), right = vf_load(column + LANES);
            if (ahead) fetch((const char *)column + ahead, 8 * LANES);
            UNROLL for (int m = 0; m < rows; m++) {
                vf s = vf_set1(x0[m * stride + i]);
                a[m] = vf_fma(s, left, a[m]);
                b[m] = vf_fma(s, right, b[m]);
            }
        }
        UNROLL for (int m = 0; m < rows; m++) {
            vf_store(out + m * PANEL + strip * 2 * LANES, a[m]);
            vf_store(out + m * PANEL + strip * 2 * LANES + LANES, b[m]);
        }
    }
}

INLINE void bf16_block(const int rows, const Packed *w, const Rows *x, int panel, int first, int ahead, float *out) {
    const int64_t k = padded(w), stride = x->stride;
    for (int strip = 0; strip < STRIPS; strip++) {
        const uint16_t *column = (const uint16_t *)w->data + panel * k * PANEL + strip * 4 * LANES;
        vf a[ROWS_MAX], b[ROWS_MAX];
        UNROLL for (int m = 0; m < rows; m++) a[m] = b[m] = vf_set1(0);
#if NATIVE_BF16
        const uint16_t *x0 = (const uint16_t *)x->x + first * stride;
        for (int64_t i = 0; i < k; i += 2, column += 2 * PANEL) {
            if (ahead) fetch((const char *)column + ahead, 8 * LANES);
            __m512bh left = (__m512bh)vi_load(column), right = (__m512bh)vi_load(column + 2 * LANES);
            UNROLL for (int m = 0; m < rows; m++) {
                __m512bh s = (__m512bh)vi_set1(read_i32(x0 + m * stride + i));
                a[m] = (vf)_mm512_dpbf16_ps((__m512)a[m], s, left);
                b[m] = (vf)_mm512_dpbf16_ps((__m512)b[m], s, right);
            }
        }
#else
        const float *x0 = (const float *)x->x + first * stride;
        for (int64_t i = 0; i < k; i += 2, column += 2 * PANEL) {
            if (ahead) fetch((const char *)column + ahead, 8 * LANES);
            vi left = vi_load(column), right = vi_load(column + 2 * LANES);
            vf l0 = (vf)(left << 16), l1 = (vf)(left & (int32_t)0xffff0000);
            vf r0 = (vf)(right << 16), r1 = (vf)(right & (int32_t)0xffff0000);
            UNROLL for (int m = 0; m < rows; m++) {
                vf s0 = vf_set1(x0[m * stride + i]), s1 = vf_set1(x0[m * stride + i + 1]);
                a[m] = vf_fma(s1, l1, vf_fma(s0, l0, a[m]));
                b[m] = vf_fma(s1, r1, vf_fma(s0, r0, b[m]));
            }
        }
#endif
        UNROLL for (int m = 0; m < rows; m++) {
            vf_store(out + m * PANEL + strip * 2 * LANES, a[m]);
            vf_store(out + m * PANEL + strip * 2 * LANES + LANES, b[m]);
        }
    }
}

/* The eight vectors of a block's weights: quad q holds inputs 4q to 4q + 3 of LANES columns. A nibble vector holds quad q
 * in its low halves and quad q + 4 in its high ones. */
INLINE void block_weights(const int bits, const uint8_t *p, vi *w) {
    if (bits == 8) {
        UNROLL for (int q = 0; q < 8; q++) w[q] = less_offset(vi_load(p + q * TILE * 4), 128);
    } else {
        UNROLL for (int q = 0; q < 4; q++) {
            vi both = vi_load(p + q * TILE * 4);
            w[q] = less_offset(both & 0x0f0f0f0f, 8);
            w[q + 4] = less_offset(both >> 4 & 0x0f0f0f0f, 8);
        }
    }
}

/* Inside a block of 32 the sum is exact; blocks add up in order under their activation scales, groups under the weights'. */
INLINE void int_block(const int rows, const int bits, const int one, const Packed *w, const Rows *x, int panel, int first,
                      int ahead, float *out) {
    const int64_t k = padded(w), blocks = k / BLOCK;
    const int64_t block_bytes = BLOCK * TILE * bits / 8, scales = scale_bytes(w, k), tile_bytes = scales + blocks * block_bytes;
    const int64_t per_group = one ? 1 : w->group / BLOCK;
    const int together = 4; /* rows whose dot products are under way at once */
    for (int c = 0; c < PANEL; c += LANES) {
        const uint8_t *tile = w->data + (2 * panel + c / TILE) * tile_bytes;
        const uint16_t *scale = (const uint16_t *)tile + c % TILE;
        const uint8_t *weights = tile + scales + c % TILE * 4;
        const int8_t *q0 = (const int8_t *)x->x + first * k;
        const float *x_scale = x->scale + first * blocks;
        const int32_t *start = x->start + first * blocks;
        vf sums[ROWS_MAX], inner[ROWS_MAX];
        UNROLL for (int m = 0; m < rows; m++) sums[m] = vf_set1(0);
        for (int64_t g = 0; g < blocks; scale += TILE) {
            UNROLL for (int m = 0; m < rows; m++) inner[m] = vf_set1(0);
            const int64_t end = one ? g + 1 : g + per_group < blocks ? g + per_group : blocks;
            for (; g < end; g++, weights += block_bytes, q0 += rows * BLOCK, x_scale += rows, start += rows) {
                vi v[8];
                if (one) __asm__("" : "+r"(q0), "+r"(weights)); /* otherwise gcc keeps a pointer for every address below */
                if (ahead) fetch(weights + ahead, bits * LANES * BLOCK / 8);
                block_weights(bits, weights, v);
                UNROLL for (int m0 = 0; m0 < rows; m0 += together) {
                    const int m1 = m0 + together < rows ? m0 + together : rows;
                    vi s[4];
                    UNROLL for (int m = m0; m < m1; m++)
                        s[m - m0] = vi_set1(DOT_IS_SIGNED ? 0 : start[m]) >> (bits == 8 ? 0 : 4); /* 128 to 8 */
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

/* One function for each number of rows: all in one, the compiler would spill the accumulators. */
typedef void (*Block)(const Packed *, const Rows *, int, int, int, float *);
#define MAKE(R) \
    static void fp32_##R(const Packed *w, const Rows *x, int p, int f, int a, float *o) { fp32_block(R, w, x, p, f, a, o); } \
    static void bf16_##R(const Packed *w, const Rows *x, int p, int f, int a, float *o) { bf16_block(R, w, x, p, f, a, o); } \
    static void byte_##R(const Packed *w, const Rows *x, int p, int f, int a, float *o) { int_block(R, 8, 0, w, x, p, f, a, o); } \
    static void byte32_##R(const Packed *w, const Rows *x, int p, int f, int a, float *o) { int_block(R, 8, 1, w, x, p, f, a, o); } \
    static void nibble_##R(const Packed *w, const Rows *x, int p, int f, int a, float *o) { int_block(R, 4, 0, w, x, p, f, a, o); } \
    static void nibble32_##R(const Packed *w, const Rows *x, int p, int f, int a, float *o) { int_block(R, 4, 1, w, x, p, f, a, o); }
MAKE(1) MAKE(2) MAKE(3) MAKE(4)
#if ROWS_MAX == 8
MAKE(5) MAKE(6) MAKE(7) MAKE(8)
#define TABLE(name) {name##_1, name##_2, name##_3, name##_4, name##_5, name##_6, name##_7, name##_8}
#else
#define TABLE(name) {name##_1, name##_2, name##_3, name##_4}
#endif
static const Block table[][ROWS_MAX] = {TABLE(fp32), TABLE(bf16), TABLE(byte), TABLE(nibble), TABLE(byte32), TABLE(nibble32)};

/* Columns [PANEL * panel, + PANEL) of `count` <= ROWS_MAX rows from `first` on, into out[count][PANEL]. */
static void panel_product(const Packed *w, const Rows *x, int panel, int first, int count, int ahead,
                          float *out) {
    const int one = w->kind >= INT8 && w->group == BLOCK;
    table[w->kind + 2 * one][count - 1](w, x, panel, first, ahead, out);
}

/* ---- products of the same rows, shared out over threads by panels ---------------------------------------------------- */

static void store(const Product *p, int column, int first, int count, const float *tile) {
    int wide = p->w->n - column < PANEL ? p->w->n - column : PANEL;
    for (int m = 0; m < count; m++, tile += PANEL) {
        float *y = p->y + (first + m) * p->stride + column;
        if (!p->bias && !p->add) {
            memcpy(y, tile, sizeof(float) * wide);
            continue;
        }
        const float *add = p->add ? p->add + (first + m) * p->stride + column : NULL;
        for (int c = 0; c < wide; c++) {
            float sum = p->bias ? tile[c] + p->bias[column + c] : tile[c];
            y[c] = add ? add[c] + sum : sum;
        }
    }
}

void products(const Product *list, int count, int rows, int thread, int threads) {
    int total = 0, from, to, before = 0;
    for (int i = 0; i < count; i++) total += (list[i].w->n + PANEL - 1) / PANEL;
    share(total, thread, threads, &from, &to);
    for (int i = 0; i < count; i++) {
        const Product *p = &list[i];
        int panels = (p->w->n + PANEL - 1) / PANEL;
        for (int at = from > before ? from : before; at < to && at < before + panels; at++)
            for (int b = 0; b < block_count(rows); b++) {
                float tile[ROWS_MAX * PANEL] __attribute__((aligned(64)));
                int first = block_start(b, rows), end = block_start(b + 1, rows);
                panel_product(p->w, &p->x, at - before, first, end - first, b ? 0 : AHEAD, tile);
                store(p, (at - before) * PANEL, first, end - first, tile);
            }
        before += panels;
    }
}

/* ---- the linear layer ---------------------------------------------------------------------------------------------- */

typedef struct {
    Product product;
    const float *x;
    int64_t x_stride;
    int rows;
} Linear;

static void linear_job(void *with, int thread, int threads) {
    const Linear *job = with;
    const Packed *w = job->product.w;
    int from, to;
    share(job->rows, thread, threads, &from, &to);
    for (int r = from; r < to; r++) prepare(w->kind, job->x + r * job->x_stride, padded(w), w->k, &job->product.x, r);
    pool_barrier(threads);
    products(&job->product, 1, job->rows, thread, threads);
}

/* y [rows, n] = x [rows, k] W^T + bias. bias may be NULL; strides count floats. */
void lithe_linear(const Packed *w, const float *x, int64_t x_stride, const float *bias, float *y, int64_t y_stride,
                  int32_t rows, int32_t threads) {
    if (rows < 1 || w->n < 1) return;
    pool_lock();
    void *room = pool_scratch(rows_bytes(w->kind, rows, padded(w)));
    Rows prepared = rows_at(w->kind, x, x_stride, rows, padded(w), w->k, room);
    Linear job = {{w, prepared, y, bias, NULL, y_stride}, x, x_stride, rows};
    pool_run(linear_job, &job, threads);
    pool_unlock();
}
