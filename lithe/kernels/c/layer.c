/* Decoder layers for all rows of a pass: norm, q k v, rotary positions, cache write, attention, output, gated FFN.
 *
 * The twin of model/decoder.py's Block for RMSNorm before a half and perhaps behind it, rotary positions, grouped queries,
 * perhaps capped scores, and an FFN gated by SiLU or by GELU in its tanh form. Rows meet
 * only in attention, and there a row's result depends on which keys it sees, in order, and on nothing else: it takes them in
 * chunks of CHUNK, each with its own softmax, merged one after another. So a row is bitwise the same alone, in a batch, in a
 * tree (its ancestors being the keys it sees) and however the prompt was cut.
 */
#include "lithe.h"
#include "simd.h"

#include <math.h>
#include <stdatomic.h>

#define HEADS_MAX (LANES == 16 ? 4 : LANES == 8 ? 3 : 2) /* queries that share each load of a key or value */
enum {
    CHUNK = 256,
    TWO = 2 * LANES,   /* keys of a tile, entries of a panel of values */
    SPAN = CHUNK + TWO, /* from one query's scores to the next's: they are written in fours or by tiles */
    QUERIES = 12,      /* query heads of neighbouring rows that go over the keys together where rows are few, */
    QUERIES_MOST = 96, /* and where they are many, */
    TOGETHER = 32,     /* of as many rows at most */
    TILED = 6 * HEADS_MAX, /* queries from which on keys and values are brought into tiles first */
    FURTHER = 32,      /* slots that keys are asked for before they are read */
    DEALT = 8,         /* pieces of attention that each thread should find */
    PRIVATE = 2,       /* rows so few that each thread norms them for itself rather than wait for another, */
    COLUMNS = 16       /* and so few that threads share out inputs, each finding all rows' norms for itself */
};

typedef struct {
    Packed q, k, v, o, gate, up, down;
    const float *attn_norm, *mlp_norm, *q_norm, *k_norm, *q_bias, *k_bias, *v_bias, *o_bias, *attn_out_norm,
        *mlp_out_norm; /* NULL where there is none */
    int32_t width, heads, kv_heads, head_dim, rotated, ffn, gelu;
    float eps, scale, cap; /* cap: scores become cap * tanh(score / cap); 0: they stay */
} Layer;

typedef struct { /* what of a pass differs from layer to layer */
    void *k, *v;            /* [batch][kv_heads][capacity][head_dim], FP32 or BF16 */
    const float *cos, *sin; /* [positions][rotated] */
    int64_t batch_stride, head_stride;
    int32_t cache_kind, window; /* window: keys this far away or farther are not seen; 0: all are */
} Place;

typedef struct {
    const float *x; /* [rows][width]: the rows of all sequences, one sequence after another */
    float *out;
    const int64_t *pos;      /* [rows]; a cached key's position is its slot */
    const int32_t *lengths;  /* [batch]: the slot of a sequence's first row, up to which all that is cached is seen */
    const int32_t *starts;   /* [batch + 1]: the first row of each sequence, and the end */
    const int32_t *owners;   /* [rows]: the sequence of each row */
    const int32_t *order;    /* [rows]: attention takes rows in this order; NULL: as they come */
    const int32_t *spans;    /* [groups + 1]: places in that order; rows between two of them may share the loads of keys */
    const int32_t *tables;   /* [batch][table_stride]: the page that holds each 2^shift slots; NULL: slots lie as counted */
    const uint8_t *among;    /* which rows of its sequence a row sees, a square of so many rows for each sequence, */
    const int64_t *among_at; /* [batch] which begins here; below 0: a row sees those up to itself */
    int64_t table_stride;
    int32_t batch, rows, groups, shift, attn, mlp, threads;
} Pass;

enum { QKV, O, GATED, DOWN, PRODUCTS }; /* what of a layer is dealt out by panels */

typedef struct { /* the layer under way, as one thread sees it */
    const Layer *layer;
    const Place *place;
    const Pass *pass;
    const float *x; /* its input; pass->out is its output, and may be the same */
    int rows, wide; /* wide: head_dim in whole pairs of vectors */
    int block, blocks, chunks, units; /* attention: rows taken together, such blocks, chunks dealt out one by one */
    float *normed, *q, *k, *v, *mixed, *gate, *up, *parts, *post, *own;
    char *room;       /* activations as a product reads them */
    char *normed_room; /* the same, of what `normed` holds */
    _Atomic int *next;
    Deal *deals[PRODUCTS]; /* one a thread that the pass asks for */
} Job;

/* 1 / rms(x) */
static float rms_inverse(const float *x, int width, float eps) {
    vf sum = vf_set1(0);
    int i = 0;
    for (; i + LANES <= width; i += LANES) {
        vf v = vf_load(x + i);
        sum = vf_fma(v, v, sum);
    }
    if (i < width) {
        vf v = vf_load_part(x + i, width - i);
        sum = vf_fma(v, v, sum);
    }
    return 1.0f / sqrtf(vf_sum(sum) / (float)width + eps);
}

/* x / rms(x) * weight */
static void rms_norm(const float *x, const float *weight, float *out, int width, float eps) {
    const float by = rms_inverse(x, width, eps);
    for (int i = 0; i < width; i++) out[i] = x[i] * by * weight[i];
}

typedef struct { int first, last; int64_t from, to; } Part; /* of rows [first, last) the inputs [from, to) */

/* A thread's of all: of many rows some, of few some inputs of each. */
static Part part_of_rows(int rows, int64_t k, int thread, int threads) {
    Part part = {0, rows, 0, k};
    if (rows > COLUMNS) share(rows, thread, threads, &part.first, &part.last);
    else share_inputs(k, thread, threads, &part.from, &part.to);
    if (part.from >= part.to) part.last = part.first;
    return part;
}

/* The same of some rows, and as a product by w reads them; `alone`: by each thread for itself. */
static void norm_rows(const float *x, const float *weight, float eps, const Packed *w, float *normed, const Rows *into, int alone,
                      int thread, int threads) {
    const int width = w->k;
    Part part = {0, (int)into->rows, 0, padded(w)};
    if (!alone) part = part_of_rows(part.last, part.to, thread, threads);
    for (int64_t r = part.first; r < part.last; r++) {
        const float *row = x + r * width, by = rms_inverse(row, width, eps);
        const int64_t end = part.to < width ? part.to : width;
        for (int64_t i = part.from; i < end; i++) normed[r * width + i] = row[i] * by * weight[i];
        prepare(w->kind, normed + r * width, padded(w), width, into, (int)r, part.from, part.to);
    }
}

static Rows rows_of(const Job *job, const Packed *w, const float *x, void *room) {
    return rows_at(w->kind, x, job->rows, padded(w), room);
}

/* ---- heads: norm, rotation, cache ----------------------------------------------------------------------------------- */

static void turn(float *x, const float *cos, const float *sin, int rotated) {
    for (int i = 0, half = rotated / 2; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

/* Where a sequence's slot lies in its store. */
INLINE int32_t slot_at(const Pass *pass, int b, int64_t slot) {
    if (!pass->tables) return (int32_t)slot;
    const int32_t page = pass->tables[b * pass->table_stride + (slot >> pass->shift)];
    return (page << pass->shift) + (int32_t)(slot & ((1 << pass->shift) - 1));
}

static void keep(const Place *place, void *store, int b, int g, int slot, const float *x, int width) {
    int64_t at = b * place->batch_stride + g * place->head_stride + (int64_t)slot * width;
    if (place->cache_kind == FP32) memcpy((float *)store + at, x, sizeof(float) * width);
    else for (int i = 0; i < width; i++) ((uint16_t *)store)[at + i] = f32_bf16(x[i]);
}

/* A key-value head of a row and the query heads that read it. */
static void finish_heads(const Job *job, int row, int g) {
    const Layer *layer = job->layer;
    const Place *place = job->place;
    const Pass *pass = job->pass;
    const int b = pass->owners[row], slot = slot_at(pass, b, pass->lengths[b] + row - pass->starts[b]);
    const int D = layer->head_dim, G = layer->kv_heads, R = layer->heads / G;
    const int64_t angle = pass->pos[row] * layer->rotated;
    const float *cos = place->cos + angle, *sin = place->sin + angle;
    for (int h = g * R; h < (g + 1) * R; h++) {
        float *q = job->q + ((int64_t)row * layer->heads + h) * D;
        if (layer->q_norm) rms_norm(q, layer->q_norm, q, D, layer->eps);
        turn(q, cos, sin, layer->rotated);
        for (int i = 0; i < D; i++) q[i] *= layer->scale;
        for (int i = 0; place->cache_kind == BF16 && i < D; i++) q[i] = bf16_f32(f32_bf16(q[i])); /* as keys are */
    }
    float *k = job->k + ((int64_t)row * G + g) * D;
    if (layer->k_norm) rms_norm(k, layer->k_norm, k, D, layer->eps);
    turn(k, cos, sin, layer->rotated);
    keep(place, place->k, b, g, slot, k, D);
    keep(place, place->v, b, g, slot, job->v + ((int64_t)row * G + g) * D, D);
}

/* ---- attention: queries against the keys of a list of slots ------------------------------------------------------------ */

INLINE vf cached(const int kind, const void *store, int64_t at) {
    return kind == FP32 ? vf_load((const float *)store + at) : vf_from_bf16((const uint16_t *)store + at);
}
INLINE vf cached_part(const int kind, const void *store, int64_t at, int count) {
    return kind == FP32 ? vf_load_part((const float *)store + at, count)
                        : vf_from_bf16_part((const uint16_t *)store + at, count);
}

/* Ask for rows of `bytes` bytes of four slots. */
INLINE void fetch_rows(const void *store, const int32_t *slots, int from, int count, int bytes) {
    for (int j = from; j < from + 4 && j < count; j++)
        for (int i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)store + (int64_t)slots[j] * bytes + i);
}

/* scores[r][j] = q[r] . key of slots[j], four slots at a time; q is padded to whole vectors with zeros. What stands in the
 * scores behind `count`, up to a multiple of four, is without meaning. Where values are given, they and keys are asked for. */
INLINE void scores_of(const int queries, const int kind, const void *keys, const void *values, const int32_t *slots, int count,
                      const float *q, const int wide, const int D, float *scores) {
    for (int j = 0; j < count; j += 4) {
        int64_t at[4];
        if (values) {
            fetch_rows(keys, slots, j + FURTHER, count, (kind == FP32 ? 4 : 2) * D);
            fetch_rows(values, slots, j, count, (kind == FP32 ? 4 : 2) * D);
        }
        vf sum[HEADS_MAX][4];
        UNROLL for (int n = 0; n < 4; n++) at[n] = (int64_t)slots[j + n < count ? j + n : count - 1] * D;
        UNROLL for (int r = 0; r < queries; r++) UNROLL for (int n = 0; n < 4; n++) sum[r][n] = vf_set1(0);
        UNROLL_4 for (int i = 0; i < D; i += LANES) {
            vf query[HEADS_MAX];
            UNROLL for (int r = 0; r < queries; r++) query[r] = vf_load(q + r * wide + i);
            UNROLL for (int n = 0; n < 4; n++) {
                vf key = i + LANES <= D ? cached(kind, keys, at[n] + i) : cached_part(kind, keys, at[n] + i, D - i);
                UNROLL for (int r = 0; r < queries; r++) vf_add_product(&sum[r][n], query[r], key);
            }
        }
        UNROLL for (int r = 0; r < queries; r++) vf_sum4(sum[r], scores + r * SPAN + j);
    }
}

#if NATIVE_BF16
/* The same by pairs of bfloat16s, which queries are as well. */
INLINE void pair_scores(const int queries, const uint16_t *keys, const void *values, const int32_t *slots, int count, const float *q,
                        const int wide, const int D, float *scores) {
    for (int j = 0; j < count; j += 4) {
        const uint16_t *at[4];
        if (values) fetch_rows(keys, slots, j + FURTHER, count, 2 * D), fetch_rows(values, slots, j, count, 2 * D);
        vf sum[HEADS_MAX][4];
        UNROLL for (int n = 0; n < 4; n++) at[n] = keys + (int64_t)slots[j + n < count ? j + n : count - 1] * D;
        UNROLL for (int r = 0; r < queries; r++) UNROLL for (int n = 0; n < 4; n++) sum[r][n] = vf_set1(0);
        UNROLL_2 for (int i = 0; i < D; i += TWO) {
            vf query[HEADS_MAX];
            UNROLL for (int r = 0; r < queries; r++) query[r] = vf_load(q + r * wide + i / 2);
            UNROLL for (int n = 0; n < 4; n++) {
                const __mmask32 real = D - i < TWO ? (1u << (D - i)) - 1 : ~0u;
                const vf key = i + TWO <= D ? (vf)vi_load(at[n] + i) : (vf)_mm512_maskz_loadu_epi16(real, at[n] + i);
                UNROLL for (int r = 0; r < queries; r++) vf_add_pairs(&sum[r][n], query[r], key);
            }
        }
        UNROLL for (int r = 0; r < queries; r++) vf_sum4(sum[r], scores + r * SPAN + j);
    }
}

INLINE vf vf_pair(vf first, vf second) { /* two bfloat16s as floats each, the first being the odd one, which is added first */
    return (vf)_mm512_or_epi32((__m512i)first, _mm512_srli_epi32((__m512i)second, 16));
}

/* sums[r] of 64 entries + sum over j of p[r][j] * value of slots[j], two slots at a time. */
INLINE void mix_64(const int queries, const uint16_t *values, const int32_t *slots, int count, const float *p, int wide, int D, int i,
                   float *sums) {
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27); /* as entries get unpacked */
    const __m512i back = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i four = _mm512_set1_epi32(4), eight = _mm512_set1_epi32(8);
    vf sum[HEADS_MAX][4];
    UNROLL for (int r = 0; r < queries; r++) UNROLL for (int n = 0; n < 4; n += 2) {
        const __m512 a = (__m512)vf_load(sums + r * wide + i + n * LANES), b = (__m512)vf_load(sums + r * wide + i + (n + 1) * LANES);
        sum[r][n] = (vf)_mm512_permutex2var_ps(a, low, b);
        sum[r][n + 1] = (vf)_mm512_permutex2var_ps(a, _mm512_add_epi32(low, four), b);
    }
    for (int j = 0; j < count; j += 2) {
        const int two = j + 1 < count;
        const uint16_t *first = values + (int64_t)slots[j] * D + i, *second = values + (int64_t)slots[j + two] * D + i;
        vf by[HEADS_MAX];
        UNROLL for (int r = 0; r < queries; r++) by[r] = vf_set1(p[r * SPAN + j]);
        if (two) UNROLL for (int r = 0; r < queries; r++) by[r] = vf_pair(by[r], vf_set1(p[r * SPAN + j + 1]));
        UNROLL for (int n = 0; n < 4; n += 2) {
            const __m512i a = (__m512i)vi_load(first + n * LANES), b = two ? (__m512i)vi_load(second + n * LANES) : _mm512_setzero_si512();
            const vf value[2] = {(vf)_mm512_unpacklo_epi16(b, a), (vf)_mm512_unpackhi_epi16(b, a)};
            if (two) UNROLL for (int v = 0; v < 2; v++) UNROLL for (int r = 0; r < queries; r++) vf_add_pairs(&sum[r][n + v], by[r], value[v]);
            else UNROLL for (int v = 0; v < 2; v++) UNROLL for (int r = 0; r < queries; r++) vf_add_product(&sum[r][n + v], by[r], value[v]);
        }
    }
    UNROLL for (int r = 0; r < queries; r++) UNROLL for (int n = 0; n < 4; n += 2) {
        const __m512 a = (__m512)sum[r][n], b = (__m512)sum[r][n + 1];
        vf_store(sums + r * wide + i + n * LANES, (vf)_mm512_permutex2var_ps(a, back, b));
        vf_store(sums + r * wide + i + (n + 1) * LANES, (vf)_mm512_permutex2var_ps(a, _mm512_add_epi32(back, eight), b));
    }
}
#elif LANES == 16
/* The same of 64 bfloat16s: as 32 are read they are neighbours, so even entries and odd ones have sums of their own meanwhile. */
INLINE void mix_64(const int queries, const uint16_t *values, const int32_t *slots, int count, const float *p, int wide, int D, int i,
                   float *sums) {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i one = _mm512_set1_epi32(1), eight = _mm512_set1_epi32(8);
    vf sum[HEADS_MAX][4];
    UNROLL for (int r = 0; r < queries; r++) UNROLL for (int n = 0; n < 4; n += 2) {
        const __m512 a = (__m512)vf_load(sums + r * wide + i + n * LANES), b = (__m512)vf_load(sums + r * wide + i + (n + 1) * LANES);
        sum[r][n] = (vf)_mm512_permutex2var_ps(a, even, b);
        sum[r][n + 1] = (vf)_mm512_permutex2var_ps(a, _mm512_add_epi32(even, one), b);
    }
    for (int j = 0; j < count; j++) {
        const uint16_t *at = values + (int64_t)slots[j] * D + i;
        vf by[HEADS_MAX];
        UNROLL for (int r = 0; r < queries; r++) by[r] = vf_set1(p[r * SPAN + j]);
        UNROLL for (int n = 0; n < 4; n += 2) {
            const vi both = vi_load(at + n * LANES);
            const vf value[2] = {(vf)(both << 16), (vf)(both & (int32_t)0xffff0000)};
            UNROLL for (int v = 0; v < 2; v++) UNROLL for (int r = 0; r < queries; r++) vf_add_product(&sum[r][n + v], by[r], value[v]);
        }
    }
    UNROLL for (int r = 0; r < queries; r++) UNROLL for (int n = 0; n < 4; n += 2) {
        const __m512 a = (__m512)sum[r][n], b = (__m512)sum[r][n + 1];
        vf_store(sums + r * wide + i + n * LANES, (vf)_mm512_permutex2var_ps(a, low, b));
        vf_store(sums + r * wide + i + (n + 1) * LANES, (vf)_mm512_permutex2var_ps(a, _mm512_add_epi32(low, eight), b));
    }
}
#endif

/* `vectors` vectors of sums[r] from entry i on: + sum over j of p[r][j] * value of slots[j] */
INLINE void mix(const int queries, const int vectors, const int kind, const void *values, const int32_t *slots, int count,
                const float *p, int wide, int D, int i, float *sums) {
    vf sum[HEADS_MAX][4];
    const int part = D - i < LANES ? D - i : 0;
    UNROLL for (int r = 0; r < queries; r++)
        UNROLL for (int n = 0; n < vectors; n++) sum[r][n] = vf_load(sums + r * wide + i + n * LANES);
    for (int j = 0; j < count; j++) {
        int64_t at = (int64_t)slots[j] * D + i;
        vf by[HEADS_MAX];
        UNROLL for (int r = 0; r < queries; r++) by[r] = vf_set1(p[r * SPAN + j]);
        UNROLL for (int n = 0; n < vectors; n++) {
            vf value = part ? cached_part(kind, values, at, part) : cached(kind, values, at + n * LANES);
            UNROLL for (int r = 0; r < queries; r++) vf_add_product(&sum[r][n], by[r], value);
        }
    }
    UNROLL for (int r = 0; r < queries; r++)
        UNROLL for (int n = 0; n < vectors; n++) vf_store(sums + r * wide + i + n * LANES, sum[r][n]);
}

INLINE void mixes(const int queries, const int kind, const void *values, const int32_t *slots, int count, const float *p,
                  int wide, int D, float *sums) {
    int i = 0;
#if LANES == 16
    for (; kind == BF16 && i + 64 <= D; i += 64) mix_64(queries, values, slots, count, p, wide, D, i, sums);
#endif
    for (; i + 4 * LANES <= D; i += 4 * LANES) mix(queries, 4, kind, values, slots, count, p, wide, D, i, sums);
    for (; i < D; i += LANES) mix(queries, 1, kind, values, slots, count, p, wide, D, i, sums);
}

INLINE void any_scores(const int queries, const int kind, const void *keys, const void *values, const int32_t *slots, int count,
                       const float *q, const int wide, const int D, float *scores) {
#if NATIVE_BF16
    if (kind == BF16) {
        pair_scores(queries, keys, values, slots, count, q, wide, D, scores);
        return;
    }
#endif
    scores_of(queries, kind, keys, values, slots, count, q, wide, D, scores);
}

typedef void (*Scores)(const void *, const void *, const int32_t *, int, const float *, int, int, float *);
#define MAKE_FOR(kind, K, Q) \
    static void scores_##kind##_##Q(const void *k, const void *v, const int32_t *s, int n, const float *q, int w, int D, float *o) { \
        if (w == 64 && D == 64) any_scores(Q, K, k, v, s, n, q, 64, 64, o); else any_scores(Q, K, k, v, s, n, q, w, D, o); } \
    static void mix_##kind##_##Q(const void *v, const void *next, const int32_t *s, int n, const float *p, int w, int D, float *o) { \
        (void)next, mixes(Q, K, v, s, n, p, w, D, o); }
#define MAKE(Q) MAKE_FOR(fp32, FP32, Q) MAKE_FOR(bf16, BF16, Q)
MAKE(1) MAKE(2)
#if LANES == 16
MAKE(3) MAKE(4)
#define TABLE(name) {name##_1, name##_2, name##_3, name##_4}
#elif LANES == 8
MAKE(3)
#define TABLE(name) {name##_1, name##_2, name##_3}
#else
#define TABLE(name) {name##_1, name##_2}
#endif
static const Scores score_table[2][HEADS_MAX] = {TABLE(scores_fp32), TABLE(scores_bf16)};
static const Scores mix_table[2][HEADS_MAX] = {TABLE(mix_fp32), TABLE(mix_bf16)};

/* Either of them for any number of queries; `from` counts what each query has already done, `next` is what is read after. */
static void each(const Scores *table, int queries, const void *store, const void *next, const int32_t *slots, int from, int count,
                 const float *in, int in_stride, int in_from, int wide, int D, float *out, int out_stride, int out_from) {
    if (count > from)
        for (int r = 0; r < queries; r += HEADS_MAX) {
            int some = queries - r < HEADS_MAX ? queries - r : HEADS_MAX;
            table[some - 1](store, r ? NULL : next, slots + from, count - from, in + r * in_stride + in_from, wide, D,
                            out + r * out_stride + out_from);
        }
}

/* ---- the same for many queries: keys and values as floats in tiles that the innermost cache holds --------------------- */

/* Some of the entries of a key or value as floats: a vector from entry i on, zeros behind the last. */
INLINE vf entries(const int kind, const void *store, int64_t at, int i, int D) {
    return i + LANES <= D ? cached(kind, store, at + i) : i < D ? cached_part(kind, store, at + i, D - i) : vf_set1(0);
}

/* tile[i][n] = entry i of the key in slots[n], or pair i of bfloat16s where they are multiplied so; `room` is for as many keys as
 * floats. What stands behind `count` is without meaning. */
INLINE void turn_keys(const int kind, const void *keys, const int32_t *slots, int count, int wide, int D, float *tile, float *room) {
    const int pairs = NATIVE_BF16 && kind == BF16, units = pairs ? wide / 2 : wide;
    const float *row[TWO];
    for (int n = 0; n < TWO; n++) {
        const int64_t at = (int64_t)slots[n < count ? n : count - 1] * D;
        row[n] = pairs ? (const float *)((const uint16_t *)keys + at) : (const float *)keys + at;
        if ((pairs || kind == FP32) && D == wide) continue;
        row[n] = room + n * units;
        if (pairs) memcpy(memset(room + n * units, 0, 4 * units), (const uint16_t *)keys + at, 2 * D);
        else for (int i = 0; i < wide; i += LANES) vf_store(room + n * wide + i, entries(kind, keys, at, i, D));
    }
    for (int n = 0; n < TWO; n += TURNED)
        for (int i = 0; i < units; i += 4) turn_four(row + n, i, tile + i * TWO + n, TWO);
}

/* panel[j] = entries [i, i + TWO) of the value in slots[j]; of pairs: of slots[2 * j], and of the one behind it */
INLINE void panel_of(const int kind, const void *values, const int32_t *slots, int count, int D, int i, float *panel) {
#if NATIVE_BF16
    for (int j = 0; kind == BF16 && j < count; j += 2)
        UNROLL for (int v = 0; v < 2; v++, panel += LANES) {
            const vf first = entries(BF16, values, (int64_t)slots[j] * D, i + v * LANES, D);
            vf_store(panel, j + 1 < count ? vf_pair(first, entries(BF16, values, (int64_t)slots[j + 1] * D, i + v * LANES, D)) : first);
        }
    if (kind == BF16) return;
#endif
    for (int j = 0; j < count; j++, panel += TWO) {
        vf_store(panel, entries(kind, values, (int64_t)slots[j] * D, i, D));
        vf_store(panel + LANES, entries(kind, values, (int64_t)slots[j] * D, i + LANES, D));
    }
}

INLINE void vf_add(const int pairs, vf *sum, vf a, vf b) {
    if (pairs) vf_add_pairs(sum, a, b);
    else vf_add_product(sum, a, b);
}

/* scores[r][n] = q[r] . key n of a tile, added up as scores_of does it: what is a lane there has a sum of its own here, and sums are
 * added two by two as vf_sum4 does. */
INLINE void tile_scores(const int queries, const int pairs, const int wide_known, const float *tile, const float *q, int wide, int D,
                        float *scores) {
    vf sum[ROWS_MAX][2], kept[4][ROWS_MAX][2];
    const int once = pairs ? TWO : LANES, end = (D + once - 1) / once;
    for (int n = 0; n < LANES; n++) {
        const float *key = tile + sum_order(n) * TWO, *query = q + sum_order(n);
        UNROLL for (int r = 0; r < queries; r++) UNROLL for (int v = 0; v < 2; v++) {
            const vf by = vf_set1(query[r * wide]), first = vf_load(key + v * LANES);
            sum[r][v] = pairs ? vf_set1(0) : first * by;
            if (pairs) vf_add_pairs(&sum[r][v], by, first);
        }
#define TURN(i) { \
            vf a = vf_load(key + (i) * LANES * TWO), b = vf_load(key + (i) * LANES * TWO + LANES); \
            UNROLL for (int r = 0; r < queries; r++) { \
                vf by = vf_set1(query[r * wide + (i) * LANES]); \
                vf_add(pairs, &sum[r][0], by, a); \
                vf_add(pairs, &sum[r][1], by, b); \
            } }
        if (wide_known) UNROLL for (int i = 1; i < wide_known / once; i++) TURN(i)
        else for (int i = 1; i < end; i++) TURN(i)
        int at = 0;
        for (; n >> at & 1; at++)
            UNROLL for (int r = 0; r < queries; r++) UNROLL for (int v = 0; v < 2; v++) sum[r][v] = kept[at][r][v] + sum[r][v];
        if (n < LANES - 1)
            UNROLL for (int r = 0; r < queries; r++) UNROLL for (int v = 0; v < 2; v++) kept[at][r][v] = sum[r][v];
    }
    UNROLL for (int r = 0; r < queries; r++) UNROLL for (int v = 0; v < 2; v++) vf_store(scores + r * SPAN + v * LANES, sum[r][v]);
}

/* sums[r] + sum over j from `from` to `to` of p[r][j] * panel[j], in order as mix does it */
INLINE void panel_mix(const int queries, const float *panel, int from, int to, const float *p, int wide, float *sums) {
    vf sum[ROWS_MAX][2];
    UNROLL for (int r = 0; r < queries; r++) UNROLL for (int v = 0; v < 2; v++) sum[r][v] = vf_load(sums + r * wide + v * LANES);
    for (int j = from; j < to; j++) {
        vf a = vf_load(panel + j * TWO), b = vf_load(panel + j * TWO + LANES);
        UNROLL for (int r = 0; r < queries; r++) {
            vf by = vf_set1(p[r * SPAN + j]);
            vf_add_product(&sum[r][0], by, a);
            vf_add_product(&sum[r][1], by, b);
        }
    }
    UNROLL for (int r = 0; r < queries; r++) UNROLL for (int v = 0; v < 2; v++) vf_store(sums + r * wide + v * LANES, sum[r][v]);
}

#if NATIVE_BF16
/* The same with a panel of pairs: one of which only the second or the first is asked for is taken apart. */
INLINE void pair_mix(const int queries, const float *panel, int from, int to, const float *p, int wide, float *sums) {
    vf sum[ROWS_MAX][2];
    UNROLL for (int r = 0; r < queries; r++) UNROLL for (int v = 0; v < 2; v++) sum[r][v] = vf_load(sums + r * wide + v * LANES);
    for (int j = from, next; j < to; j = next) {
        const int second = j & 1, both = !second && j + 1 < to;
        vi value[2] = {vi_load(panel + j / 2 * TWO), vi_load(panel + j / 2 * TWO + LANES)};
        next = j + 1 + both;
        if (!both) UNROLL for (int v = 0; v < 2; v++) value[v] = second ? value[v] << 16 : value[v] & (int32_t)0xffff0000;
        UNROLL for (int r = 0; r < queries; r++) {
            vf by = vf_set1(p[r * SPAN + j]);
            if (both) by = vf_pair(by, vf_set1(p[r * SPAN + j + 1]));
            UNROLL for (int v = 0; v < 2; v++) vf_add(both, &sum[r][v], by, (vf)value[v]);
        }
    }
    UNROLL for (int r = 0; r < queries; r++) UNROLL for (int v = 0; v < 2; v++) vf_store(sums + r * wide + v * LANES, sum[r][v]);
}
#else
#define pair_mix panel_mix
#endif

typedef void (*TileScores)(const float *, const float *, int, int, float *);
typedef void (*PanelMix)(const float *, int, int, const float *, int, float *);
#define MAKE_TILES_FOR(kind, PAIRS, MIX, Q) \
    static void tile_scores_##kind##_##Q(const float *t, const float *q, int w, int D, float *o) { \
        if (w == 64 && D == 64) tile_scores(Q, PAIRS, 64, t, q, 64, 64, o); else tile_scores(Q, PAIRS, 0, t, q, w, D, o); } \
    static void panel_mix_##kind##_##Q(const float *v, int from, int to, const float *p, int w, float *o) { MIX(Q, v, from, to, p, w, o); }
#define MAKE_TILES(Q) MAKE_TILES_FOR(fp32, 0, panel_mix, Q) MAKE_TILES_FOR(bf16, NATIVE_BF16, pair_mix, Q)
MAKE_TILES(1) MAKE_TILES(2) MAKE_TILES(3) MAKE_TILES(4)
#if ROWS_MAX == 8
MAKE_TILES(5) MAKE_TILES(6) MAKE_TILES(7) MAKE_TILES(8)
#define TILES(name) {name##_1, name##_2, name##_3, name##_4, name##_5, name##_6, name##_7, name##_8}
#elif ROWS_MAX == 6
MAKE_TILES(5) MAKE_TILES(6)
#define TILES(name) {name##_1, name##_2, name##_3, name##_4, name##_5, name##_6}
#else
#define TILES(name) {name##_1, name##_2, name##_3, name##_4}
#endif
static const TileScores tile_table[2][ROWS_MAX] = {TILES(tile_scores_fp32), TILES(tile_scores_bf16)};
static const PanelMix panel_table[2][ROWS_MAX] = {TILES(panel_mix_fp32), TILES(panel_mix_bf16)};

/* Scores to weights e^(score - top), in place, rounded where values are bfloat16s; their sum, taken lane by lane. */
static __attribute__((noinline)) float weights_of(float *scores, int count, float cap, int kind, float *top) {
    for (int j = 0; cap > 0 && j < count; j += LANES) { /* tanh(x) = 1 - 2 / (e^2x + 1) */
        vf twice = vf_exp(vf_load(scores + j) * (2.0f / cap));
        vf_store(scores + j, cap - 2.0f * cap / (twice + 1.0f));
    }
    for (int j = count; j % LANES; j++) scores[j] = -INFINITY;
    vf high = vf_load(scores), sum = vf_set1(0);
    for (int j = LANES; j < count; j += LANES) high = vf_max(high, vf_load(scores + j));
    const float most = *top = vf_top(high);
    int j = 0;
    for (; j + LANES <= count; j += LANES) {
        vf weight = vf_exp_low(vf_load(scores + j) - most);
        if (kind == BF16) weight = vf_rounded(weight);
        vf_store(scores + j, weight);
        sum = sum + weight;
    }
    if (j < count) {
        vf weight = vf_exp_low(vf_load(scores + j) - most);
        vf_store(scores + j, kind == BF16 ? vf_rounded(weight) : weight);
        for (int past = count; past < j + LANES; past++) scores[past] = 0;
        sum = sum + vf_load(scores + j);
    }
    return vf_sum(sum);
}

static float exp1(float x) { float t[LANES]; vf_store(t, vf_exp_low(vf_set1(x))); return t[0]; }

typedef struct { float top, sum; } Soft; /* of a chunk, or of the chunks so far; sum 0: of none */

/* Another chunk, `values` being its weighted values, onto those before. */
static void merge(Soft *all, float *out, Soft one, const float *values, int wide) {
    if (one.sum == 0) return;
    if (all->sum == 0) {
        *all = one;
        memcpy(out, values, sizeof(float) * wide);
        return;
    }
    const int higher = one.top > all->top; /* e^0 is 1 */
    const float old = higher ? exp1(all->top - one.top) : 1, new = higher ? 1 : exp1(one.top - all->top);
    *all = (Soft){higher ? one.top : all->top, all->sum * old + one.sum * new};
    for (int i = 0; i < wide; i += LANES)
        vf_store(out + i, vf_fma(vf_load(out + i), vf_set1(old), vf_load(values + i) * new));
}

static void finish(const Job *job, int64_t row, int h, Soft all, const float *out) { /* a row that sees nothing gives zeros */
    const int D = job->layer->head_dim;
    float *mixed = job->mixed + (row * job->layer->heads + h) * D, by = all.sum > 0 ? 1.0f / all.sum : 0;
    for (int i = 0; i < D; i++) mixed[i] = out[i] * by;
}

/* Which slots a row sees, in order: those of chunk c. Returns how many. */
static int slots_of(const Job *job, int row, int c, int32_t *slots) {
    const Pass *pass = job->pass;
    const int b = pass->owners[row], first = pass->starts[b], t = row - first, rows = pass->starts[b + 1] - first;
    const int64_t *pos = pass->pos + first, window = job->place->window, square = pass->among ? pass->among_at[b] : -1;
    const uint8_t *among = square < 0 ? NULL : pass->among + square + (int64_t)t * rows;
    if (!among && !window) { /* all slots up to its own */
        const int64_t first = (int64_t)c * CHUNK, left = pass->lengths[b] + t + 1 - first;
        const int some = left < 0 ? 0 : left < CHUNK ? (int)left : CHUNK;
        if (pass->tables) for (int i = 0; i < some; i++) slots[i] = slot_at(pass, b, first + i);
        else for (int i = 0; i < some; i++) slots[i] = (int32_t)first + i;
        return some;
    }
    int64_t low = window && pos[t] - window + 1 > 0 ? pos[t] - window + 1 : 0, high = pass->lengths[b];
    if (window && pos[t] + window < high) high = pos[t] + window;
    int64_t past = high > low ? high - low : 0, skip = (int64_t)c * CHUNK - past;
    int count = skip >= 0 ? 0 : -skip < CHUNK ? (int)-skip : CHUNK;
    low += (int64_t)c * CHUNK;
    if (pass->tables) for (int i = 0; i < count; i++) slots[i] = slot_at(pass, b, low + i);
    else for (int i = 0; i < count; i++) slots[i] = (int32_t)low + i;
    for (int j = 0, end = among ? rows : t + 1; j < end && count < CHUNK; j++) {
        int64_t away = pos[t] > pos[j] ? pos[t] - pos[j] : pos[j] - pos[t];
        if ((among && !among[j]) || (window && away >= window)) continue;
        if (skip > 0) skip--;
        else slots[count++] = slot_at(pass, b, pass->lengths[b] + j);
    }
    return count;
}

/* Rows [row, end) take slots of the list of row `of`, which is theirs as well, from place `from` up to stop[their own]. */
typedef struct {
    int row, end, of, from;
    int16_t stop[TOGETHER];
} Shared;

/* How rows [row, end) go over their lists from place `from` on: each as far as its list is that of the longest, then in turn each run
 * of neighbours that go on alike, down to the single row. Returns the end of what it wrote, one a row at most. */
static Shared *shares(const int32_t (*slots)[CHUNK], const int *counts, int row, int end, int from, Shared *into) {
    Shared *run = into++;
    int of = row;
    for (int r = row + 1; r < end; r++) of = counts[r] > counts[of] ? r : of;
    run->row = row, run->end = end, run->of = of, run->from = from;
    for (int r = row; r < end; r++) {
        int same = r == of ? counts[of] : from;
        while (same + LANES <= counts[r] && !memcmp(slots[r] + same, slots[of] + same, 4 * LANES)) same += LANES;
        while (same < counts[r] && slots[r][same] == slots[of][same]) same++;
        run->stop[r] = (int16_t)same;
    }
    for (int r = row, next; r < end; r = next) {
        const int to = run->stop[r];
        for (next = r + 1; next < end && to < counts[r] && run->stop[next] == to && to < counts[next] && slots[next][to] == slots[r][to];)
            next++;
        if (to < counts[r]) into = shares(slots, counts, r, next, to, into);
    }
    return into;
}

static float *part_of(const Job *job, int64_t row, int h, int c) { /* of a chunk dealt out alone: Soft, then its values */
    return job->parts + ((row * job->layer->heads + h) * job->chunks + c) * (job->wide + 2);
}

typedef struct { /* a key-value head, and the rows that go over it together */
    const char *keys, *values;
    int kind, R, D, wide;
    float *q, *sums, *scores, *tile, *room;
} Sight;

/* Queries so many and lists so long that tiles pay: a tile costs as much as some queries. */
static int in_tiles(const Sight *on, const Shared *run) {
    return (run->end - run->row) * on->R >= TILED && run->stop[run->of] - run->from >= LANES;
}

/* Neighbours of row r that stop where it does. */
static int alike(const Shared *run, int r) {
    int next = r + 1;
    while (next < run->end && run->stop[next] == run->stop[r]) next++;
    return next;
}

static void score_run(const Sight *on, const Shared *run, const int32_t (*slots)[CHUNK]) {
    const int R = on->R, wide = on->wide, D = on->D, from = run->from, to = run->stop[run->of], end = run->end * R;
    if (!in_tiles(on, run)) {
        for (int r = run->row, next; r < run->end; r = next) {
            next = alike(run, r);
            each(score_table[on->kind], (next - r) * R, on->keys, on->values, slots[r], from, run->stop[r], on->q + r * R * wide, wide, 0,
                 wide, D, on->scores + r * R * SPAN, SPAN, from);
        }
        return;
    }
    for (int j = from; j < to; j += TWO) {
        if (on->kind == FP32) turn_keys(FP32, on->keys, slots[run->of] + j, to - j, wide, D, on->tile, on->room);
        else turn_keys(BF16, on->keys, slots[run->of] + j, to - j, wide, D, on->tile, on->room);
        for (int n = run->row * R; n < end; n += ROWS_MAX) {
            const int some = end - n < ROWS_MAX ? end - n : ROWS_MAX;
            int most = 0;
            for (int r = n / R; r <= (n + some - 1) / R; r++) most = run->stop[r] > most ? run->stop[r] : most;
            if (most > j) tile_table[on->kind][some - 1](on->tile, on->q + n * wide, wide, D, on->scores + n * SPAN + j);
        }
    }
}

static void mix_run(const Sight *on, const Shared *run, const int32_t (*slots)[CHUNK]) {
    const int R = on->R, wide = on->wide, D = on->D, from = run->from, to = run->stop[run->of], end = run->end * R;
    if (!in_tiles(on, run)) {
        for (int r = run->row, next; r < run->end; r = next) {
            next = alike(run, r);
            each(mix_table[on->kind], (next - r) * R, on->values, NULL, slots[r], from, run->stop[r], on->scores + r * R * SPAN, SPAN,
                 from, wide, D, on->sums + r * R * wide, wide, 0);
        }
        return;
    }
    for (int i = 0; i < D; i += TWO) {
        if (on->kind == FP32) panel_of(FP32, on->values, slots[run->of] + from, to - from, D, i, on->tile);
        else panel_of(BF16, on->values, slots[run->of] + from, to - from, D, i, on->tile);
        for (int n = run->row * R; n < end; n += ROWS_MAX) {
            const int some = end - n < ROWS_MAX ? end - n : ROWS_MAX;
            int least = to;
            for (int r = n / R; r <= (n + some - 1) / R; r++) least = run->stop[r] < least ? run->stop[r] : least;
            const PanelMix *mixes = panel_table[on->kind];
            mixes[some - 1](on->tile, 0, least - from, on->scores + n * SPAN + from, wide, on->sums + n * wide + i);
            for (int m = n, next; m < n + some; m = next) { /* those that see more, by rows */
                const int stop = run->stop[m / R];
                next = (m / R + 1) * R < n + some ? (m / R + 1) * R : n + some;
                if (stop > least)
                    mixes[next - m - 1](on->tile, least - from, stop - from, on->scores + m * SPAN + from, wide, on->sums + m * wide + i);
            }
        }
    }
}

/* A query as scores are taken with it. */
INLINE void put_query(int kind, float *to, const float *from, int D) {
#if NATIVE_BF16
    for (int i = 0; kind == BF16 && i < D; i += LANES)
        vf_to_bf16((uint16_t *)to + i, i + LANES <= D ? vf_load(from + i) : vf_load_part(from + i, D - i));
    if (kind == BF16) return;
#endif
    (void)kind;
    memcpy(to, from, sizeof(float) * D);
}

/* Chunks [c, c_end) of some rows for the query heads of key-value head g. The rows share the loads of what they have in
 * common: nearly everything under a causal mask and in a tree, and between sequences what lies on the same pages. */
static void attend(const Job *job, const int32_t *which, int rows, int g, int c, int c_end, float *own) {
    const Layer *layer = job->layer;
    const Place *place = job->place;
    const int D = layer->head_dim, R = layer->heads / layer->kv_heads, wide = job->wide, all = rows * R;
    const int64_t store = job->pass->owners[which[0]] * place->batch_stride + g * place->head_stride;
    const size_t size = place->cache_kind == FP32 ? 4 : 2;
    float *q = own, *out = q + all * wide, *sums = out + all * wide, *scores = sums + all * wide, *tile = scores + all * SPAN;
    float *room = tile + (CHUNK > wide ? CHUNK : wide) * TWO;
    const Sight on = {(const char *)place->k + store * size, (const char *)place->v + store * size, place->cache_kind, R, D, wide,
                        q, sums, scores, tile, room};
    Soft *soft = (Soft *)(room + TWO * wide), *one = soft + all;
    int32_t slots[TOGETHER][CHUNK];
    Shared runs[TOGETHER];
    memset(q, 0, sizeof(float) * 2 * all * wide);
    for (int n = 0; n < all; n++) {
        put_query(on.kind, q + n * wide, job->q + ((int64_t)which[n / R] * layer->heads + g * R + n % R) * D, D);
        soft[n] = (Soft){-INFINITY, 0};
    }
    for (int some = 1; c < c_end && some; c++) {
        const int32_t (*lists)[CHUNK] = (const int32_t(*)[CHUNK])slots;
        int counts[TOGETHER];
        some = 0;
        for (int r = 0; r < rows; r++) some |= counts[r] = slots_of(job, which[r], c, slots[r]);
        const Shared *end = some ? shares(lists, counts, 0, rows, 0, runs) : runs;
        memset(sums, 0, sizeof(float) * all * wide);
        for (const Shared *run = runs; run < end; run++) score_run(&on, run, lists);
        for (int n = 0; n < all; n++) {
            one[n] = (Soft){-INFINITY, 0};
            if (counts[n / R]) one[n].sum = weights_of(scores + n * SPAN, counts[n / R], layer->cap, on.kind, &one[n].top);
        }
        for (const Shared *run = runs; run < end; run++) mix_run(&on, run, lists);
        for (int n = 0; n < all; n++) {
            if (!job->chunks) {
                merge(&soft[n], out + n * wide, one[n], sums + n * wide, wide);
                continue;
            }
            float *part = part_of(job, which[n / R], g * R + n % R, c);
            memcpy(part, &one[n], sizeof *one);
            memcpy(part + 2, sums + n * wide, sizeof(float) * wide);
        }
    }
    if (!job->chunks)
        for (int n = 0; n < all; n++) finish(job, which[n / R], g * R + n % R, soft[n], out + n * wide);
}

/* The rows of a block: `which` holds them, or room for them; returns how many. */
static int rows_of_block(const Job *job, int block, int32_t *which) {
    const Pass *pass = job->pass;
    for (int group = 0;; group++) {
        const int from = pass->spans[group], end = pass->spans[group + 1], blocks = (end - from + job->block - 1) / job->block;
        if (block >= blocks) {
            block -= blocks;
            continue;
        }
        const int at = from + block * job->block, rows = end - at < job->block ? end - at : job->block;
        for (int r = 0; r < rows; r++) which[r] = pass->order ? pass->order[at + r] : at + r;
        return rows;
    }
}

/* ---- the layer's halves --------------------------------------------------------------------------------------------- */

/* The norm of a half's input, as its first products read it. */
static Rows normed_rows(const Job *job, const float *x, const float *weight, const Packed *w, int thread, int threads) {
    Rows into = rows_of(job, w, job->normed, job->normed_room);
    norm_rows(x, weight, job->layer->eps, w, job->normed, &into, job->rows <= PRIVATE, thread, threads);
    if (job->rows > PRIVATE) pool_barrier(thread, threads);
    return into;
}

/* The end of a half: its last product, normed where that is asked for, is added to the residual stream. */
static void add_up(const Job *job, const Packed *w, Deal *deals, Rows from_rows, const float *bias, const float *to, const float *norm,
                   int thread, int threads) {
    const int width = job->layer->width;
    Product last = {w, from_rows, norm ? job->post : job->pass->out, bias, norm ? NULL : to, width};
    products(&last, 1, deals, hands(job->pass->threads), thread, threads);
    if (!norm) return;
    pool_barrier(thread, threads);
    int from, end;
    share(job->rows, thread, threads, &from, &end);
    for (int64_t r = from; r < end; r++) {
        float *row = job->post + r * width;
        rms_norm(row, norm, row, width, job->layer->eps);
        for (int i = 0; i < width; i++) job->pass->out[r * width + i] = to[r * width + i] + row[i];
    }
}

/* What is left to do between attention and the output product: chunks dealt out alone are merged, and rows made as the product reads
 * them. Threads share out heads where a head's entries are whole blocks of inputs, and rows otherwise. */
static void mixed_rows(const Job *job, const Rows *into, int thread, int threads) {
    const Layer *layer = job->layer;
    const int D = layer->head_dim, heads = layer->heads, by_heads = D % BLOCK == 0;
    const int64_t k = padded(&layer->o);
    int from, to;
    share(by_heads ? heads : job->rows, thread, threads, &from, &to);
    const int h_from = by_heads ? from : 0, h_to = by_heads ? to : heads;
    const int64_t i_to = by_heads ? (int64_t)to * D : k;
    for (int r = by_heads ? 0 : from, last = by_heads ? job->rows : to; r < last && from < to; r++) {
        for (int h = h_from; h < h_to && job->chunks; h++) {
            float *out = job->own;
            Soft all = {-INFINITY, 0}, one;
            memset(out, 0, sizeof(float) * job->wide);
            for (int c = 0; c < job->chunks; c++) {
                const float *part = part_of(job, r, h, c);
                memcpy(&one, part, sizeof one);
                merge(&all, out, one, part + 2, job->wide);
            }
            finish(job, r, h, all, out);
        }
        prepare(layer->o.kind, job->mixed + (int64_t)r * layer->o.k, k, layer->o.k, into, r, (int64_t)h_from * D, i_to);
    }
}

static void attention_half(const Job *job, int thread, int threads) {
    const Layer *layer = job->layer;
    const int G = layer->kv_heads, D = layer->head_dim, dealt = job->chunks ? job->chunks : 1;
    int from, to;
    Rows x = normed_rows(job, job->x, layer->attn_norm, &layer->q, thread, threads);
    Product qkv[] = {{&layer->q, x, job->q, layer->q_bias, NULL, (int64_t)layer->heads * D},
                     {&layer->k, x, job->k, layer->k_bias, NULL, (int64_t)G * D},
                     {&layer->v, x, job->v, layer->v_bias, NULL, (int64_t)G * D}};
    products(qkv, 3, job->deals[QKV], hands(job->pass->threads), thread, threads);
    pool_barrier(thread, threads);
    share(job->rows * G, thread, threads, &from, &to);
    for (int i = from; i < to; i++) finish_heads(job, i / G, i % G);
    pool_barrier(thread, threads);
    for (int unit; (unit = atomic_fetch_add(job->next, 1)) < job->units;) {
        int32_t which[TOGETHER];
        const int c = unit % dealt, g = unit / dealt / job->blocks; /* what takes longest first: the last rows see most */
        const int rows = rows_of_block(job, job->blocks - 1 - unit / dealt % job->blocks, which);
        attend(job, which, rows, g, c, job->chunks ? c + 1 : INT32_MAX, job->own);
    }
    pool_barrier(thread, threads);
    Rows mixed = rows_of(job, &layer->o, job->mixed, job->room);
    const int nothing = !job->chunks && mixed.x == job->mixed; /* is left to do: the product reads floats as they are */
    if (!nothing) {
        mixed_rows(job, &mixed, thread, threads);
        pool_barrier(thread, threads);
    }
    add_up(job, &layer->o, job->deals[O], mixed, layer->o_bias, job->x, layer->attn_out_norm, thread, threads);
}

/* silu(x) = x / (1 + e^-x); gelu in its tanh form is the same of z = sqrt(8 / pi) (x + 0.044715 x^3) in the exponent. */
INLINE vf activated(vf g, int gelu) {
    vf z = gelu ? g * vf_fma(g * g, vf_set1(0.0713548162726f), vf_set1(1.59576912161f)) : g;
    return g / (vf_exp(-z) + 1.0f);
}

/* activation(gate) * up for some of a row's inner units, in place of the gate. */
static void gated(float *gate, const float *up, int i, int end, int gelu) {
    for (; i + LANES <= end; i += LANES) vf_store(gate + i, activated(vf_load(gate + i), gelu) * vf_load(up + i));
    if (i < end)
        vf_store_part(gate + i, activated(vf_load_part(gate + i, end - i), gelu) * vf_load_part(up + i, end - i), end - i);
}

static void ffn_half(const Job *job, const float *x, int thread, int threads) {
    const Layer *layer = job->layer;
    Rows normed = normed_rows(job, x, layer->mlp_norm, &layer->gate, thread, threads);
    Product both[] = {{&layer->gate, normed, job->gate, NULL, NULL, layer->ffn},
                      {&layer->up, normed, job->up, NULL, NULL, layer->ffn}};
    products(both, 2, job->deals[GATED], hands(job->pass->threads), thread, threads);
    pool_barrier(thread, threads);
    Rows inner = rows_of(job, &layer->down, job->gate, job->room);
    const Part part = part_of_rows(job->rows, padded(&layer->down), thread, threads);
    for (int64_t r = part.first; r < part.last; r++) {
        float *gate = job->gate + r * layer->ffn;
        const int end = (int)(part.to < layer->ffn ? part.to : layer->ffn);
        gated(gate, job->up + r * layer->ffn, (int)part.from, end, layer->gelu);
        prepare(layer->down.kind, gate, padded(&layer->down), layer->ffn, &inner, (int)r, part.from, part.to);
    }
    pool_barrier(thread, threads);
    add_up(job, &layer->down, job->deals[DOWN], inner, NULL, x, layer->mlp_out_norm, thread, threads);
}

/* ---- a stack of layers ------------------------------------------------------------------------------------------------ */

enum { NORMED, NORMED_ROOM, Q, K, V, MIXED, GATE, UP, PARTS, POST, ROOM, OWN, NEXT, DEALS, BUFFERS };

typedef struct {
    const Layer *const *layers;
    const Place *places;
    const Pass *pass;
    int count;
    size_t at[BUFFERS], step[BUFFERS]; /* in floats: from base, and from one thread's to the next's */
    float *base;
} Stack;

/* How attention's work is cut. Chunks are dealt out one by one only where few rows leave threads without work otherwise. */
static void deal(const Pass *pass, const Layer *layer, Job *job) {
    int R = layer->heads / layer->kv_heads, longest = 0;
    for (int b = 0; b < pass->batch; b++) {
        int past = pass->lengths[b] + pass->starts[b + 1] - pass->starts[b];
        longest = past > longest ? past : longest;
    }
    const int low = R >= QUERIES ? 1 : QUERIES / R, high = R >= QUERIES_MOST ? 1 : QUERIES_MOST / R;
    const int even = (int)((int64_t)pass->rows * layer->kv_heads / ((int64_t)DEALT * pass->threads));
    job->block = even < low ? low : even < high ? even : high;
    if (job->block > TOGETHER) job->block = TOGETHER;
    job->blocks = 0;
    for (int i = 0; i < pass->groups; i++) job->blocks += (pass->spans[i + 1] - pass->spans[i] + job->block - 1) / job->block;
    job->units = layer->kv_heads * job->blocks;
    job->chunks = 0;
    if (job->units < 4 * pass->threads && longest > CHUNK) {
        job->chunks = (longest + CHUNK - 1) / CHUNK;
        job->units *= job->chunks;
    }
}

static size_t most(size_t a, size_t b) { return a > b ? a : b; }
static int has_attention(const Pass *pass, const Layer *layer) { return pass->attn && layer->q.data; }
static int has_ffn(const Pass *pass, const Layer *layer) { return pass->mlp && layer->up.data; }
static int whole_pairs(int n) { return (n + TWO - 1) / TWO * TWO; }

/* Room for the largest of the layers; returns all of it in floats. */
static size_t measure(Stack *stack) {
    const Pass *pass = stack->pass;
    const size_t rows = (size_t)pass->rows;
    size_t size[BUFFERS] = {0};
    for (int i = 0; i < stack->count; i++) {
        const Layer *layer = stack->layers[i];
        const int D = layer->head_dim, wide = whole_pairs(D);
        size[NORMED] = most(size[NORMED], rows * layer->width);
        if (layer->attn_out_norm || layer->mlp_out_norm) size[POST] = most(size[POST], rows * layer->width);
        if (has_attention(pass, layer)) {
            Job job;
            deal(pass, layer, &job);
            size_t all = (size_t)job.block * (layer->heads / layer->kv_heads);
            size[Q] = most(size[Q], rows * layer->heads * D), size[MIXED] = size[Q];
            size[K] = most(size[K], rows * layer->kv_heads * D), size[V] = size[K];
            size[PARTS] = most(size[PARTS], rows * layer->heads * job.chunks * (wide + 2));
            size[OWN] = most(size[OWN], all * (3 * wide + SPAN + 4) + (size_t)TWO * (most(CHUNK, wide) + wide));
            size[NORMED_ROOM] = most(size[NORMED_ROOM], rows_bytes(layer->q.kind, (int)rows, padded(&layer->q)) / 4);
            size[ROOM] = most(size[ROOM], rows_bytes(layer->o.kind, (int)rows, padded(&layer->o)) / 4);
        }
        if (has_ffn(pass, layer)) {
            size[GATE] = most(size[GATE], rows * layer->ffn), size[UP] = size[GATE];
            size[NORMED_ROOM] = most(size[NORMED_ROOM], rows_bytes(layer->gate.kind, (int)rows, padded(&layer->gate)) / 4);
            size[ROOM] = most(size[ROOM], rows_bytes(layer->down.kind, (int)rows, padded(&layer->down)) / 4);
        }
    }
    size[NEXT] = stack->count;
    size[DEALS] = sizeof(Deal) / 4 * PRODUCTS * hands(pass->threads) * stack->count;
    size_t total = 0, copies = rows > PRIVATE ? 1 : (size_t)pass->threads;
    for (int i = 0; i < BUFFERS; i++) {
        size_t many = i == OWN ? (size_t)pass->threads : i <= NORMED_ROOM ? copies : 1;
        size[i] = (size[i] + 31) / 16 * 16;
        stack->at[i] = total, stack->step[i] = many > 1 ? size[i] : 0;
        total += size[i] * many;
    }
    return total;
}

static void stack_job(void *with, int thread, int threads) {
    const Stack *stack = with;
    const Pass *pass = stack->pass;
    float *at[BUFFERS];
    const float *x = pass->x;
    for (int i = 0; i < BUFFERS; i++) at[i] = stack->base + stack->at[i] + stack->step[i] * thread;
    for (int i = 0; i < stack->count; i++) {
        const Layer *layer = stack->layers[i];
        const int attn = has_attention(pass, layer), ffn = has_ffn(pass, layer);
        Job job = {.layer = layer, .place = &stack->places[i], .pass = pass, .x = x, .rows = pass->rows,
                   .wide = whole_pairs(layer->head_dim), .normed = at[NORMED], .q = at[Q], .k = at[K], .v = at[V],
                   .mixed = at[MIXED], .gate = at[GATE], .up = at[UP], .parts = at[PARTS], .post = at[POST], .own = at[OWN],
                   .room = (char *)at[ROOM], .normed_room = (char *)at[NORMED_ROOM], .next = (_Atomic int *)at[NEXT] + i};
        for (int p = 0; p < PRODUCTS; p++) job.deals[p] = (Deal *)at[DEALS] + (i * PRODUCTS + p) * hands(pass->threads);
        if (x == pass->out && (attn || ffn)) pool_barrier(thread, threads); /* the layer before is whole */
        if (attn) {
            deal(pass, layer, &job);
            attention_half(&job, thread, threads);
            x = pass->out;
        }
        if (attn && ffn) pool_barrier(thread, threads);
        if (ffn) {
            ffn_half(&job, x, thread, threads);
            x = pass->out;
        }
    }
    if (x != pass->out && thread == 0) /* nothing was to be done */
        memcpy(pass->out, x, sizeof(float) * pass->rows * (stack->count ? stack->layers[0]->width : 0));
}

/* Run layers one after another: the attention half, the FFN half or both of each, as the pass asks. */
void lithe_layers(const Layer *const *layers, const Place *places, int32_t count, const Pass *pass) {
    if (pass->batch < 1 || pass->rows < 1 || count < 1) return;
    Stack stack = {.layers = layers, .places = places, .pass = pass, .count = count};
    size_t floats = measure(&stack);
    pool_lock();
    stack.base = pool_scratch(sizeof(float) * floats);
    for (int i = 0; i < count; i++) {
        const Layer *l = layers[i];
        const int panels[] = {panels_of(&l->q) + panels_of(&l->k) + panels_of(&l->v), panels_of(&l->o),
                              panels_of(&l->gate) + panels_of(&l->up), panels_of(&l->down)};
        Deal *deals = (Deal *)(stack.base + stack.at[DEALS]) + i * PRODUCTS * hands(pass->threads);
        for (int p = 0; p < PRODUCTS; p++) deal_out(deals + p * hands(pass->threads), panels[p], hands(pass->threads));
        atomic_init((_Atomic int *)(stack.base + stack.at[NEXT]) + i, 0);
    }
    pool_run(stack_job, &stack, pass->threads);
    pool_unlock();
}

/* ---- the end of a decoder: the final norm, and the output matrix ------------------------------------------------------ */

typedef struct {
    const float *x, *weight;
    float *normed;
    float eps;
    int width, rows, dealt;
    Deal *deals;
    Product product; /* w is NULL where the norm is all */
} Head;

static void head_job(void *with, int thread, int threads) {
    const Head *job = with;
    for (int64_t r = 0; r < job->rows && !job->product.w; r++) /* one thread */
        rms_norm(job->x + r * job->width, job->weight, job->normed + r * job->width, job->width, job->eps);
    if (!job->product.w) return;
    norm_rows(job->x, job->weight, job->eps, job->product.w, job->normed, &job->product.x, 0, thread, threads);
    pool_barrier(thread, threads);
    products(&job->product, 1, job->deals, job->dealt, thread, threads);
}

/* out [rows, width] = the norm of x */
void lithe_norm(const float *x, const float *weight, float *out, int32_t width, int32_t rows, float eps) {
    Head job = {.x = x, .weight = weight, .normed = out, .eps = eps, .width = width, .rows = rows};
    pool_lock();
    pool_run(head_job, &job, 1); /* one thread, but the rounding that all jobs share */
    pool_unlock();
}

/* y [rows, n] = norm(x) W^T + bias, x being [rows, k] */
void lithe_head(const Packed *w, const float *x, const float *weight, float eps, const float *bias, float *y, int32_t rows,
                int32_t threads) {
    if (rows < 1) return;
    const size_t size = ((size_t)rows * w->k + 15) / 16 * 16;
    const int dealt = hands(threads);
    pool_lock();
    Deal *deals = pool_scratch(sizeof *deals * dealt + sizeof(float) * size + rows_bytes(w->kind, rows, padded(w)));
    float *normed = (float *)(deals + dealt);
    Rows prepared = rows_at(w->kind, normed, rows, padded(w), normed + size);
    Head job = {x, weight, normed, eps, w->k, rows, dealt, deals, {w, prepared, y, bias, NULL, w->n}};
    deal_out(deals, panels_of(w), dealt);
    pool_run(head_job, &job, threads);
    pool_unlock();
}

/* Move rows of every head from slots from[0..count) to slots to[0..count), in this order. */
void lithe_move(void *const *stores, const int64_t *head_strides, const int32_t *heads, const int64_t *row_bytes,
                int32_t stores_count, const int64_t *from, const int64_t *to, int64_t count) {
    for (int s = 0; s < stores_count; s++)
        for (int h = 0; h < heads[s]; h++) {
            char *head = (char *)stores[s] + h * head_strides[s];
            for (int64_t i = 0; i < count; i++)
                if (from[i] != to[i]) memcpy(head + to[i] * row_bytes[s], head + from[i] * row_bytes[s], (size_t)row_bytes[s]);
        }
}
