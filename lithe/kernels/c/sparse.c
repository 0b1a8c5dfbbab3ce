/* y = x W^T where most of W is zero.
 *
 * Every output is one sum that takes its inputs in order, one fused product each; an input whose weight is not there leaves it as it
 * is. So a row is bitwise the same whatever rows it comes with, in either form of the weights, and the same as a dense product of
 * the same floats gives (for finite inputs).
 *
 * As a bitmap, work follows the size of the matrix and bytes read follow the weights there are: the values of eight columns are
 * expanded to their lanes by a table of permutations (AVX-512: by its own instruction) and multiplied for up to three rows; for
 * more, a piece is spread into the innermost cache once.
 * As strips, work follows the weights there are: each has its input's number, and multiplies a strip of rows that lie side by side
 * (Elsen et al. 2020), or, of eight outputs, what it reads of a single row.
 */
#include "lithe.h"
#include "simd.h"

#define AHEAD 2048 /* bytes that values are asked for before they are needed */
enum { GROUP = 8, SPREAD_ROWS = 3, DENSE_ROWS = LANES == 16 ? 8 : LANES == 8 ? 6 : 4 };

/* Values are fp32 or bf16; 64 bytes more may be read behind them and behind places.
 * bitmap: places are [panels][k] words, bit c of a word is column c's; values of each panel by input, then by column; starts: of
 * each panel the number of its first value.
 * strips: outputs in groups of eight, each [steps][8] values and inputs' numbers in 16 bits; shorter outputs end with zeros at input
 * 0; starts: of each group the number of its first step, and that of all. */
typedef struct {
    const void *places, *values;
    const int64_t *starts;
    int32_t kind, n, k, strips;
} Sparse;

typedef struct {
    const Sparse *w;
    const float *x, *bias;
    float *y, *side; /* side: the rows of x side by side [k][some vectors], of each strip of them */
    int64_t x_stride, y_stride;
    int32_t rows;
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

/* part: a mask of eight columns times 32, which is where its entries lie in the tables. */
INLINE vf spread(const int kind, const void *values, uint64_t part) {
    if (kind == FP32) {
        __m256i from = _mm256_load_si256((const __m256i *)((const char *)lanes_of + part));
        __asm__("" : "+x"(from)); /* or gcc loads it twice */
        __m256 all = _mm256_permutevar8x32_ps(_mm256_loadu_ps(values), from);
        __asm__("vblendvps %2, %0, %1, %0" : "+x"(all) : "x"(_mm256_setzero_ps()), "x"(from)); /* by the sign; gcc would take two */
        return (vf)all;
    }
    __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128(values));
    return (vf)_mm256_shuffle_epi8(both, _mm256_load_si256((const __m256i *)((const char *)bytes_of + part)));
}
INLINE uint64_t part_of(uint64_t mask, const int v) { return (v ? mask >> (8 * v - 5) : mask << 5) & 0x1fe0; }
#else
INLINE uint64_t part_of(uint64_t mask, const int v) { return mask >> v * LANES & ((1ull << LANES) - 1); }
#if LANES == 16
INLINE vf spread(const int kind, const void *values, uint64_t mask) {
    if (kind == FP32) return (vf)_mm512_maskz_expand_ps((__mmask16)mask, (__m512)vf_load(values));
    return (vf)_mm512_maskz_expand_ps((__mmask16)mask, (__m512)vf_from_bf16(values));
}
#else
INLINE vf spread(const int kind, const void *values, uint64_t mask) {
    vf out = vf_set1(0);
    for (int c = 0, at = 0; c < LANES; c++)
        if (mask >> c & 1) out[c] = value_at(kind, values, at++);
    return out;
}
#endif
#endif

/* ---- spread: up to three rows ---------------------------------------------------------------------------------------- */

INLINE void spread_panel(const int kind, const int rows, const Sparse *w, int panel, const float *x, int64_t stride, float *out) {
    enum { V = PANEL / LANES };
    const uint32_t *word = (const uint32_t *)w->places + (int64_t)panel * w->k;
    const char *at = moved(kind, w->values, w->starts[panel]);
    const int size = kind == FP32 ? 4 : 2;
    vf sum[SPREAD_ROWS][V];
    UNROLL for (int m = 0; m < rows; m++) UNROLL for (int v = 0; v < V; v++) sum[m][v] = vf_set1(0);
    for (int64_t i = 0; i < w->k; i++) {
        const uint64_t mask = word[i];
        vf by[SPREAD_ROWS];
        __builtin_prefetch(at + AHEAD, 0, 2);
        UNROLL for (int m = 0; m < rows; m++) by[m] = vf_set1(x[m * stride + i]);
        UNROLL for (int v = 0; v < V; v++) {
            const uint64_t part = part_of(mask, v);
            const vf weight = spread(kind, at, part);
            at += size * (int64_t)__builtin_popcountll(part);
            UNROLL for (int m = 0; m < rows; m++) sum[m][v] = vf_fma(by[m], weight, sum[m][v]);
        }
    }
    UNROLL for (int m = 0; m < rows; m++) UNROLL for (int v = 0; v < V; v++) vf_store(out + m * PANEL + v * LANES, sum[m][v]);
}

/* ---- dense: a piece spread once, for many rows ----------------------------------------------------------------------- */

/* Inputs [from, to) of a panel as plain floats [to - from][PANEL]. Returns where the values of the next input lie. */
INLINE const void *spread_piece(const int kind, const Sparse *w, int panel, int64_t from, int64_t to, const void *at, float *into) {
    const uint32_t *word = (const uint32_t *)w->places + (int64_t)panel * w->k;
    const int size = kind == FP32 ? 4 : 2;
    for (int64_t i = from; i < to; i++, into += PANEL) {
        const uint64_t mask = word[i];
        __builtin_prefetch((const char *)at + AHEAD, 0, 2);
        UNROLL for (int v = 0; v < PANEL / LANES; v++) {
            const uint64_t part = part_of(mask, v);
            vf_store(into + v * LANES, spread(kind, at, part));
            at = (const char *)at + size * (int64_t)__builtin_popcountll(part);
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

/* ---- strips: every weight there is, with its input's number ------------------------------------------------------------ */

/* The eight values of a step as floats, where they lie or in `room`. */
INLINE const float *floats_of(const int kind, const char *at, float *room) {
    if (kind == FP32) return (const float *)at;
    for (int c = 0; c < GROUP; c++) room[c] = value_at(BF16, at, c);
    return room;
}

/* The sums of a group's eight outputs for one row. What they read is put together by hand: a gather takes three times as long. */
INLINE void strip_of_one(const int kind, const uint16_t *index, const char *at, int64_t steps, const float *x, float *out) {
    const int size = kind == FP32 ? 4 : 2;
    float room[GROUP] __attribute__((aligned(32)));
    vf sum[GROUP / 4];
    for (int v = 0; v < GROUP / 4; v++) sum[v] = vf_set1(0);
#if LANES == 8
    for (int64_t j = 0; j < steps; j++, index += GROUP, at += GROUP * size) {
        uint64_t a, b;
        memcpy(&a, index, 8), memcpy(&b, index + 4, 8);
        __builtin_prefetch(at + AHEAD, 0, 2), __builtin_prefetch((const char *)index + AHEAD / 2, 0, 2);
        vf by = {x[a & 65535], x[a >> 16 & 65535], x[a >> 32 & 65535], x[a >> 48], x[b & 65535], x[b >> 16 & 65535],
                 x[b >> 32 & 65535], x[b >> 48]};
        sum[0] = vf_fma(by, kind == FP32 ? vf_load((const float *)at) : vf_from_bf16((const uint16_t *)at), sum[0]);
    }
    vf_store(out, sum[0]);
    (void)room;
#else
    (void)sum;
    memset(out, 0, sizeof(float) * GROUP);
    for (int64_t j = 0; j < steps; j++, index += GROUP, at += GROUP * size) {
        const float *value = floats_of(kind, at, room);
        for (int c = 0; c < GROUP; c++) out[c] = one_fma(x[index[c]], value[c], out[c]);
    }
#endif
}

/* The same for `wide` vectors of rows, which lie side by side: out [GROUP][wide * LANES]. Eight sums are under way at once. */
INLINE void strip_of_many(const int kind, const int wide, const uint16_t *index, const char *at, int64_t steps, const float *side,
                          float *out) {
    const int size = kind == FP32 ? 4 : 2, together = GROUP / wide;
    float room[GROUP] __attribute__((aligned(32)));
    for (int first = 0; first < GROUP; first += together) {
        vf sum[GROUP];
        UNROLL for (int i = 0; i < GROUP; i++) sum[i] = vf_set1(0);
        const uint16_t *from = index + first;
        const char *next = at;
        for (int64_t j = 0; j < steps; j++, from += GROUP, next += GROUP * size) {
            const float *value = floats_of(kind, next, room) + first;
            __builtin_prefetch(next + AHEAD, 0, 2), __builtin_prefetch((const char *)from + AHEAD / 2, 0, 2);
            UNROLL for (int c = 0; c < together; c++) {
                const float *x = side + (size_t)from[c] * (wide * LANES);
                const vf weight = vf_set1(value[c]);
                UNROLL for (int v = 0; v < wide; v++) sum[c * wide + v] = vf_fma(weight, vf_load(x + v * LANES), sum[c * wide + v]);
            }
        }
        UNROLL for (int i = 0; i < GROUP; i++) vf_store(out + first * wide * LANES + i * LANES, sum[i]);
    }
}

/* ---- all of it --------------------------------------------------------------------------------------------------------- */

static void finish(const Job *job, int column, int columns, int first, int rows, const float *tile, int row_step, int column_step) {
    const int wide = job->w->n - column < columns ? job->w->n - column : columns;
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
        finish(job, panel * PANEL, PANEL, first, rows, tile, PANEL, 1);
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
        finish(job, panel * PANEL, PANEL, first, turn, tile, PANEL, 1);
    }
}

static void bitmap_job(void *with, int thread, int threads) {
    const Job *job = with;
    int from, to;
    share((job->w->n + PANEL - 1) / PANEL, thread, threads, &from, &to);
    for (int panel = from; panel < to; panel++) job->rows <= SPREAD_ROWS ? by_spread(job, panel) : by_dense(job, panel);
}

/* Vectors of rows that are side by side: rows fill them, one alone needs none. */
static int strip_width(int rows) { return rows == 1 ? 0 : rows <= LANES ? 1 : rows <= 2 * LANES ? 2 : 4; }

/* Some inputs of all rows side by side, zeros behind the last row. */
static void lay(const Job *job, int64_t from, int64_t to) {
    const int wide = strip_width(job->rows) * LANES;
    for (int first = 0; first < job->rows; first += wide)
        for (int m = 0; m < wide; m++) {
            const float *x = job->x + (first + m) * job->x_stride;
            float *out = job->side + first * (int64_t)job->w->k + m;
            for (int64_t i = from; i < to; i++) out[i * wide] = first + m < job->rows ? x[i] : 0.0f;
        }
}

static void strips_job(void *with, int thread, int threads) {
    const Job *job = with;
    const Sparse *w = job->w;
    const int width = strip_width(job->rows), floats = width ? width * LANES : 1;
    float tile[GROUP * 4 * LANES] __attribute__((aligned(64)));
    int from, to;
    if (width) {
        share(w->k, thread, threads, &from, &to);
        lay(job, from, to);
        pool_barrier(thread, threads);
    }
    share((w->n + GROUP - 1) / GROUP, thread, threads, &from, &to);
    for (int group = from; group < to; group++)
        for (int first = 0; first < job->rows; first += floats) {
            const int64_t start = w->starts[group], steps = w->starts[group + 1] - start;
            const uint16_t *index = (const uint16_t *)w->places + start * GROUP;
            const char *at = moved(w->kind, w->values, start * GROUP);
            const float *side = width ? job->side + first * (int64_t)w->k : job->x + first * job->x_stride;
            const int rows = job->rows - first < floats ? job->rows - first : floats;
            if (!width) EACH_KIND(strip_of_one(FP32, index, at, steps, side, tile), strip_of_one(BF16, index, at, steps, side, tile));
            if (width == 1) EACH_KIND(strip_of_many(FP32, 1, index, at, steps, side, tile), strip_of_many(BF16, 1, index, at, steps, side, tile));
            if (width == 2) EACH_KIND(strip_of_many(FP32, 2, index, at, steps, side, tile), strip_of_many(BF16, 2, index, at, steps, side, tile));
            if (width == 4) EACH_KIND(strip_of_many(FP32, 4, index, at, steps, side, tile), strip_of_many(BF16, 4, index, at, steps, side, tile));
            finish(job, group * GROUP, GROUP, first, rows, tile, 1, floats);
        }
}

/* y [rows, n] = x [rows, k] W^T + bias. bias may be NULL; strides count floats. */
void lithe_sparse(const Sparse *w, const float *x, int64_t x_stride, const float *bias, float *y, int64_t y_stride, int32_t rows,
                  int32_t threads) {
    if (rows < 1 || w->n < 1) return;
    const int64_t floats = strip_width(rows) * LANES, strips = floats ? (rows + floats - 1) / floats : 0;
    pool_lock();
    Job job = {w, x, bias, y, NULL, x_stride, y_stride, rows};
    if (w->strips && strips) job.side = pool_scratch(sizeof(float) * (size_t)(w->k * strips * floats));
    pool_run(w->strips ? strips_job : bitmap_job, &job, threads);
    pool_unlock();
}
