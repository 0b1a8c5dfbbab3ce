/* y = x W^T where most of W is zero: of each panel of 32 columns and each input a bitmap says which weights there are, and their
 * values lie one after another.
 *
 * Every output is one sum that takes its inputs in order, one fused product each; an input whose weight is not there leaves it as it
 * is. So a row is bitwise the same whatever rows it comes with, whichever of the three ways below is taken, and the same as a dense
 * product of the same floats gives (for finite inputs; a row with others goes one way always).
 *
 * - spread: the values of eight columns are expanded to their lanes by a table of permutations (AVX-512: by its own instruction),
 *   and multiplied for up to three rows. Work follows the size of the matrix; bytes read follow the weights there are.
 * - dense: a piece of a panel is spread into the innermost cache once, for any number of rows.
 * - walk: each weight there is multiplies a strip of rows, which lie side by side: work follows the weights there are.
 */
#include "lithe.h"
#include "simd.h"

enum { AUTO, SPREAD, DENSE, WALK };
enum { WIDE = 64, SPREAD_ROWS = 3, DENSE_ROWS = LANES == 16 ? 8 : LANES == 8 ? 6 : 4 };
#define AHEAD 2048 /* bytes that values are asked for before they are needed */

/* bitmap: [panels][k] words, bit c of a word is column c's. values: fp32 or bf16, of each panel by input, then by column;
 * 64 bytes more may be read behind them. starts: of each panel the number of its first value, and the number of all. */
typedef struct {
    const uint32_t *bitmap;
    const void *values;
    const int64_t *starts;
    int32_t kind, n, k;
} Sparse;

typedef struct {
    const Sparse *w;
    const float *x, *bias;
    float *y, *side;    /* side: the rows of x side by side [k][wide], of each strip of them */
    int64_t x_stride, y_stride;
    int32_t rows, way;
    _Atomic int odd;    /* whether an input is infinite or no number */
} Job;

INLINE float one_fma(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_NEON)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

INLINE float value_at(int kind, const void *values, int64_t i) {
    return kind == FP32 ? ((const float *)values)[i] : bf16_f32(((const uint16_t *)values)[i]);
}
INLINE const void *moved(int kind, const void *values, int64_t by) { return (const char *)values + by * (kind == FP32 ? 4 : 2); }

/* ---- eight, sixteen or four columns of one input as a vector, zeros where there is no weight ------------------------ */

#if LANES == 8
static int32_t lanes_of[256][8] __attribute__((aligned(64)));  /* for each byte: which value each lane takes, below 0 for none */
static uint8_t bytes_of[256][32] __attribute__((aligned(64))); /* the same for bfloat16 as bytes, in the high halves of lanes */

__attribute__((constructor)) static void fill(void) {
    memset(bytes_of, 0x80, sizeof bytes_of);
    for (int mask = 0; mask < 256; mask++)
        for (int c = 0, at = 0; c < 8; c++) {
            const int there = mask >> c & 1;
            lanes_of[mask][c] = there ? (int32_t)(0x80000000u | (unsigned)at) : 0;
            if (there) bytes_of[mask][4 * c + 2] = (uint8_t)(2 * at), bytes_of[mask][4 * c + 3] = (uint8_t)(2 * at + 1);
            at += there;
        }
}

INLINE vf spread(const int kind, const void *values, uint32_t mask) {
    if (kind == FP32) {
        __m256i from = _mm256_load_si256((const __m256i *)lanes_of[mask]);
        __m256 all = _mm256_permutevar8x32_ps(_mm256_loadu_ps(values), from);
        return (vf)_mm256_blendv_ps(_mm256_setzero_ps(), all, _mm256_castsi256_ps(from)); /* by the sign */
    }
    __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128(values));
    return (vf)_mm256_shuffle_epi8(both, _mm256_load_si256((const __m256i *)bytes_of[mask]));
}
#elif LANES == 16
INLINE vf spread(const int kind, const void *values, uint32_t mask) {
    if (kind == FP32) return (vf)_mm512_maskz_expand_ps((__mmask16)mask, _mm512_loadu_ps(values));
    return (vf)_mm512_maskz_expand_ps((__mmask16)mask, (__m512)vf_from_bf16(values));
}
#else
INLINE vf spread(const int kind, const void *values, uint32_t mask) {
    vf out = vf_set1(0);
    for (int c = 0, at = 0; c < LANES; c++)
        if (mask >> c & 1) out[c] = value_at(kind, values, at++);
    return out;
}
#endif
#define PART ((uint32_t)((1ull << LANES) - 1))

/* ---- spread: up to three rows ---------------------------------------------------------------------------------------- */

INLINE void spread_panel(const int kind, const int rows, const Sparse *w, int panel, const float *x, int64_t stride, float *out) {
    enum { V = PANEL / LANES };
    const uint32_t *word = w->bitmap + (int64_t)panel * w->k;
    const char *at = moved(kind, w->values, w->starts[panel]);
    const int size = kind == FP32 ? 4 : 2;
    vf sum[SPREAD_ROWS][V];
    UNROLL for (int m = 0; m < rows; m++) UNROLL for (int v = 0; v < V; v++) sum[m][v] = vf_set1(0);
    for (int64_t i = 0; i < w->k; i++) {
        const uint32_t mask = word[i];
        vf by[SPREAD_ROWS];
        __builtin_prefetch(at + AHEAD, 0, 2);
        UNROLL for (int m = 0; m < rows; m++) by[m] = vf_set1(x[m * stride + i]);
        UNROLL for (int v = 0; v < V; v++) {
            const uint32_t part = mask >> v * LANES & PART;
            const vf weight = spread(kind, at, part);
            at += size * __builtin_popcount(part);
            UNROLL for (int m = 0; m < rows; m++) sum[m][v] = vf_fma(by[m], weight, sum[m][v]);
        }
    }
    UNROLL for (int m = 0; m < rows; m++) UNROLL for (int v = 0; v < V; v++) vf_store(out + m * PANEL + v * LANES, sum[m][v]);
}

/* ---- dense: a piece spread once, for many rows ----------------------------------------------------------------------- */

/* Inputs [from, to) of a panel as plain floats [to - from][PANEL]. Returns where the values of the next input lie. */
INLINE const void *spread_piece(const int kind, const Sparse *w, int panel, int64_t from, int64_t to, const void *at, float *into) {
    const uint32_t *word = w->bitmap + (int64_t)panel * w->k;
    const int size = kind == FP32 ? 4 : 2;
    for (int64_t i = from; i < to; i++, into += PANEL) {
        const uint32_t mask = word[i];
        __builtin_prefetch((const char *)at + AHEAD, 0, 2);
        UNROLL for (int v = 0; v < PANEL / LANES; v++) {
            const uint32_t part = mask >> v * LANES & PART;
            vf_store(into + v * LANES, spread(kind, at, part));
            at = (const char *)at + size * __builtin_popcount(part);
        }
    }
    return at;
}

INLINE void dense_piece(const int rows, const float *piece, int64_t count, const float *x, int64_t stride, float *out) {
    for (int c = 0; c < PANEL; c += 2 * LANES) {
        vf sum[DENSE_ROWS][2];
        UNROLL for (int m = 0; m < rows; m++) UNROLL for (int v = 0; v < 2; v++) sum[m][v] = vf_load(out + m * PANEL + c + v * LANES);
        for (int64_t i = 0; i < count; i++) {
            vf one = vf_load(piece + i * PANEL + c), two = vf_load(piece + i * PANEL + c + LANES);
            UNROLL for (int m = 0; m < rows; m++) {
                vf by = vf_set1(x[m * stride + i]);
                sum[m][0] = vf_fma(by, one, sum[m][0]), sum[m][1] = vf_fma(by, two, sum[m][1]);
            }
        }
        UNROLL for (int m = 0; m < rows; m++) UNROLL for (int v = 0; v < 2; v++) vf_store(out + m * PANEL + c + v * LANES, sum[m][v]);
    }
}

/* ---- walk: a strip of rows side by side ------------------------------------------------------------------------------ */

/* out [PANEL][wide] += each weight there is times its input's strip; `wide` is 1, or a multiple of LANES. */
INLINE void walk_panel(const int kind, const int wide, const Sparse *w, int panel, const float *side, float *out) {
    const uint32_t *word = w->bitmap + (int64_t)panel * w->k;
    const char *at = moved(kind, w->values, w->starts[panel]);
    for (int64_t i = 0; i < w->k; i++, side += wide) {
        vf by[WIDE / LANES];
        __builtin_prefetch(at + AHEAD, 0, 2);
        if (wide > 1) UNROLL for (int v = 0; v < wide / LANES; v++) by[v] = vf_load(side + v * LANES);
        for (uint32_t mask = word[i]; mask; mask &= mask - 1, at += kind == FP32 ? 4 : 2) {
            float *sum = out + __builtin_ctz(mask) * wide;
            const float value = value_at(kind, at, 0);
            if (wide == 1) *sum = one_fma(*side, value, *sum);
            else UNROLL for (int v = 0; v < wide / LANES; v++)
                vf_store(sum + v * LANES, vf_fma(by[v], vf_set1(value), vf_load(sum + v * LANES)));
        }
    }
}

/* ---- all of it --------------------------------------------------------------------------------------------------------- */

/* Floats of a strip that so many rows are in: one row is alone, others fill vectors. */
static int strip_of(int rows) {
    return rows == 1 ? 1 : rows <= LANES ? LANES : rows <= 2 * LANES || LANES == 16 ? 2 * LANES : 4 * LANES;
}

static void finish(const Job *job, int panel, int first, int rows, const float *tile, int row_step, int column_step) {
    const int column = panel * PANEL, wide = job->w->n - column < PANEL ? job->w->n - column : PANEL;
    for (int m = 0; m < rows; m++) {
        float *y = job->y + (first + m) * job->y_stride + column;
        for (int c = 0; c < wide; c++) y[c] = tile[m * row_step + c * column_step] + (job->bias ? job->bias[column + c] : 0.0f);
    }
}

#define EACH_KIND(call_fp32, call_bf16) do { if (w->kind == FP32) call_fp32; else call_bf16; } while (0)

static void by_spread(const Job *job, int panel) {
    const Sparse *w = job->w;
    float tile[SPREAD_ROWS * PANEL] __attribute__((aligned(64)));
    for (int first = 0; first < job->rows; first += SPREAD_ROWS) {
        const int rows = job->rows - first < SPREAD_ROWS ? job->rows - first : SPREAD_ROWS;
        const float *x = job->x + first * job->x_stride;
        const int64_t s = job->x_stride;
        if (rows == 1) EACH_KIND(spread_panel(FP32, 1, w, panel, x, s, tile), spread_panel(BF16, 1, w, panel, x, s, tile));
        if (rows == 2) EACH_KIND(spread_panel(FP32, 2, w, panel, x, s, tile), spread_panel(BF16, 2, w, panel, x, s, tile));
        if (rows == 3) EACH_KIND(spread_panel(FP32, 3, w, panel, x, s, tile), spread_panel(BF16, 3, w, panel, x, s, tile));
        finish(job, panel, first, rows, tile, PANEL, 1);
    }
}

typedef void (*DensePiece)(const float *, int64_t, const float *, int64_t, float *);
#define DENSE_OF(R) static void dense_##R(const float *p, int64_t n, const float *x, int64_t s, float *o) { dense_piece(R, p, n, x, s, o); }
DENSE_OF(1) DENSE_OF(2) DENSE_OF(3) DENSE_OF(4)
#if LANES >= 8
DENSE_OF(5) DENSE_OF(6)
#endif
#if LANES == 16
DENSE_OF(7) DENSE_OF(8)
static const DensePiece dense_of[] = {dense_1, dense_2, dense_3, dense_4, dense_5, dense_6, dense_7, dense_8};
#elif LANES == 8
static const DensePiece dense_of[] = {dense_1, dense_2, dense_3, dense_4, dense_5, dense_6};
#else
static const DensePiece dense_of[] = {dense_1, dense_2, dense_3, dense_4};
#endif

static void by_dense(const Job *job, int panel) {
    enum { INPUTS = 64, TURN = 64 }; /* 8 KB of weights; rows whose sums stay in the cache */
    const Sparse *w = job->w;
    float piece[INPUTS * PANEL] __attribute__((aligned(64))), tile[TURN * PANEL] __attribute__((aligned(64)));
    for (int first = 0; first < job->rows; first += TURN) {
        const int turn = job->rows - first < TURN ? job->rows - first : TURN;
        const void *at = moved(w->kind, w->values, w->starts[panel]);
        memset(tile, 0, sizeof(float) * turn * PANEL);
        for (int64_t from = 0; from < w->k; from += INPUTS) {
            const int64_t to = from + INPUTS < w->k ? from + INPUTS : w->k;
            EACH_KIND(at = spread_piece(FP32, w, panel, from, to, at, piece), at = spread_piece(BF16, w, panel, from, to, at, piece));
            for (int m = 0; m < turn; m += DENSE_ROWS) {
                const int rows = turn - m < DENSE_ROWS ? turn - m : DENSE_ROWS;
                dense_of[rows - 1](piece, to - from, job->x + (first + m) * job->x_stride + from, job->x_stride, tile + m * PANEL);
            }
        }
        finish(job, panel, first, turn, tile, PANEL, 1);
    }
}

static void by_walk(const Job *job, int panel) {
    const Sparse *w = job->w;
    const int wide = strip_of(job->rows);
    float tile[WIDE * PANEL] __attribute__((aligned(64)));
    for (int first = 0; first < job->rows; first += wide) {
        const float *side = job->side + first * (int64_t)w->k;
        const int rows = job->rows - first < wide ? job->rows - first : wide;
        memset(tile, 0, sizeof(float) * wide * PANEL);
        if (wide == 1) EACH_KIND(walk_panel(FP32, 1, w, panel, side, tile), walk_panel(BF16, 1, w, panel, side, tile));
        else if (wide == LANES)
            EACH_KIND(walk_panel(FP32, LANES, w, panel, side, tile), walk_panel(BF16, LANES, w, panel, side, tile));
        else if (wide == 2 * LANES)
            EACH_KIND(walk_panel(FP32, 2 * LANES, w, panel, side, tile), walk_panel(BF16, 2 * LANES, w, panel, side, tile));
        else EACH_KIND(walk_panel(FP32, 4 * LANES, w, panel, side, tile), walk_panel(BF16, 4 * LANES, w, panel, side, tile));
        finish(job, panel, first, rows, tile, 1, wide);
    }
}

/* Some inputs of all rows side by side, zeros behind the last row; whether one of them is odd. */
static int lay(const Job *job, int64_t from, int64_t to) {
    const int wide = strip_of(job->rows);
    int odd = 0;
    for (int first = 0; first < job->rows; first += wide)
        for (int m = 0; m < wide; m++) {
            const float *x = job->x + (first + m) * job->x_stride;
            float *out = job->side + first * (int64_t)job->w->k + m;
            for (int64_t i = from; i < to; i++) {
                const float value = first + m < job->rows ? x[i] : 0.0f;
                odd |= value - value != 0.0f;
                out[i * wide] = value;
            }
        }
    return odd;
}

/* Which way is the quickest: measured on Zen 3 at 576 to 1536 inputs and outputs. */
static int quickest(const Sparse *w, int rows) {
    const double there = (double)w->starts[(w->n + PANEL - 1) / PANEL] / ((double)w->n * w->k);
    if (rows <= SPREAD_ROWS) return there > 0.12 ? SPREAD : WALK;
    return there > 0.5 ? DENSE : WALK;
}

static void sparse_job(void *with, int thread, int threads) {
    Job *job = with;
    int from, to, way = job->way;
    if (way == WALK) {
        share(job->w->k, thread, threads, &from, &to);
        if (lay(job, from, to)) job->odd = 1;
        pool_barrier(thread, threads);
        if (job->odd) way = DENSE; /* what is not finite makes zeros no zeros: always the same way with it */
    }
    share((job->w->n + PANEL - 1) / PANEL, thread, threads, &from, &to);
    for (int panel = from; panel < to; panel++) {
        if (way == SPREAD) by_spread(job, panel);
        else if (way == DENSE) by_dense(job, panel);
        else by_walk(job, panel);
    }
}

/* y [rows, n] = x [rows, k] W^T + bias. bias may be NULL; strides count floats. way: AUTO, or how; no bit depends on it. */
void lithe_sparse(const Sparse *w, const float *x, int64_t x_stride, const float *bias, float *y, int64_t y_stride, int32_t rows,
                  int32_t threads, int32_t way) {
    if (rows < 1 || w->n < 1) return;
    const int wide = strip_of(rows);
    pool_lock();
    Job job = {w, x, bias, y, NULL, x_stride, y_stride, rows, way == AUTO ? quickest(w, rows) : way, 0};
    if (job.way == WALK) job.side = pool_scratch(sizeof(float) * (size_t)w->k * (size_t)((rows + wide - 1) / wide * wide));
    pool_run(sparse_job, &job, threads);
    pool_unlock();
}
