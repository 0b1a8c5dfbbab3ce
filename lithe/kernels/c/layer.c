/* A decoder layer for all rows of a pass: norm, q k v, rotary positions, cache write, attention, output, gated FFN.
 *
 * The twin of model/decoder.py's Block for RMSNorm before, rotary positions, grouped queries and a SiLU-gated FFN. Rows meet
 * only in attention, and there a row's result depends on which keys it sees, in order, and on nothing else: it takes them in
 * chunks of CHUNK, each with its own softmax, merged one after another. So a row is bitwise the same alone, in a batch, in a
 * tree (its ancestors being the keys it sees) and however the prompt was cut.
 */
#include "lithe.h"
#include "simd.h"

#include <math.h>

enum { CHUNK = 256 };
#define HEADS_MAX (LANES == 16 ? 4 : 2) /* query heads that share each load of a key or value */

typedef struct {
    Packed q, k, v, o, gate, up, down;
    const float *attn_norm, *mlp_norm, *q_norm, *k_norm, *q_bias, *k_bias, *v_bias, *o_bias; /* NULL where there is none */
    int32_t width, heads, kv_heads, head_dim, rotated, ffn;
    float eps, scale;
} Layer;

typedef struct {
    const float *x; /* [batch * rows][width] */
    float *out;
    const float *cos, *sin;  /* [batch * rows][rotated] */
    const uint8_t *visible;  /* [rows][slots] of each sequence; NULL: a row sees every slot up to its own */
    int64_t visible_stride;  /* from one sequence to the next; 0 where all share one */
    void *k, *v;             /* [batch][kv_heads][capacity][head_dim], FP32 or BF16 */
    int64_t batch_stride, head_stride;
    const int32_t *lengths;  /* [batch]: the slot of a sequence's first row */
    int32_t batch, rows, slots, cache_kind, attn, mlp, threads;
} Pass;

typedef struct {
    const Layer *layer;
    const Pass *pass;
    int rows, padded_head;
    float *normed, *q, *k, *v, *mixed, *gate, *up;
    char *room;  /* activations as a product reads them */
    float *own;  /* each thread's room for attention */
    int64_t own_floats;
} Job;

/* x / rms(x) * weight */
static void rms_norm(const float *x, const float *weight, float *out, int width, float eps) {
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
    float by = 1.0f / sqrtf(vf_sum(sum) / (float)width + eps);
    for (i = 0; i < width; i++) out[i] = x[i] * by * weight[i];
}

static Rows rows_of(const Job *job, const Packed *w, const float *x) {
    return rows_at(w->kind, x, w->k, job->rows, padded(w), w->k, job->room);
}

static void prepare_row(const Packed *w, const Rows *into, const float *x, int row) {
    prepare(w->kind, x + (int64_t)row * w->k, padded(w), w->k, into, row);
}

/* ---- heads: norm, rotation, cache ----------------------------------------------------------------------------------- */

static void turn(float *x, const float *cos, const float *sin, int rotated) {
    for (int i = 0, half = rotated / 2; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

static void keep(const Pass *pass, void *store, int b, int g, int slot, const float *x, int width) {
    int64_t at = b * pass->batch_stride + g * pass->head_stride + (int64_t)slot * width;
    if (pass->cache_kind == FP32) memcpy((float *)store + at, x, sizeof(float) * width);
    else for (int i = 0; i < width; i++) ((uint16_t *)store)[at + i] = f32_bf16(x[i]);
}

static void finish_heads(const Job *job, int row) {
    const Layer *layer = job->layer;
    const Pass *pass = job->pass;
    const int b = row / pass->rows, slot = pass->lengths[b] + row % pass->rows, D = layer->head_dim, G = layer->kv_heads;
    const float *cos = pass->cos + (int64_t)row * layer->rotated, *sin = pass->sin + (int64_t)row * layer->rotated;
    for (int h = 0; h < layer->heads; h++) {
        float *q = job->q + ((int64_t)row * layer->heads + h) * D;
        if (layer->q_norm) rms_norm(q, layer->q_norm, q, D, layer->eps);
        turn(q, cos, sin, layer->rotated);
        for (int i = 0; i < D; i++) q[i] *= layer->scale;
    }
    for (int g = 0; g < G; g++) {
        float *k = job->k + ((int64_t)row * G + g) * D;
        if (layer->k_norm) rms_norm(k, layer->k_norm, k, D, layer->eps);
        turn(k, cos, sin, layer->rotated);
        keep(pass, pass->k, b, g, slot, k, D);
        keep(pass, pass->v, b, g, slot, job->v + ((int64_t)row * G + g) * D, D);
    }
}

/* ---- attention of one row and one key-value head -------------------------------------------------------------------- */

INLINE vf cached(const int kind, const void *store, int64_t at) {
    return kind == FP32 ? vf_load((const float *)store + at) : vf_from_bf16((const uint16_t *)store + at);
}
INLINE vf cached_part(const int kind, const void *store, int64_t at, int count) {
    return kind == FP32 ? vf_load_part((const float *)store + at, count)
                        : vf_from_bf16_part((const uint16_t *)store + at, count);
}

/* scores[r][j] = q[r] . key of slots[j], four slots at a time; q is padded to whole vectors with zeros. What stands in the
 * scores behind `count`, up to a multiple of four, is without meaning. */
INLINE void scores_of(const int heads, const int kind, const void *keys, const int32_t *slots, int count, const float *q,
                      int padded_head, int D, float *scores) {
    for (int j = 0; j < count; j += 4) {
        int64_t at[4];
        vf sum[HEADS_MAX][4];
        UNROLL for (int n = 0; n < 4; n++) at[n] = (int64_t)slots[j + n < count ? j + n : count - 1] * D;
        UNROLL for (int r = 0; r < heads; r++) UNROLL for (int n = 0; n < 4; n++) sum[r][n] = vf_set1(0);
        for (int i = 0; i < D; i += LANES) {
            vf key[4];
            UNROLL for (int n = 0; n < 4; n++)
                key[n] = i + LANES <= D ? cached(kind, keys, at[n] + i) : cached_part(kind, keys, at[n] + i, D - i);
            UNROLL for (int r = 0; r < heads; r++) {
                vf query = vf_load(q + r * padded_head + i);
                UNROLL for (int n = 0; n < 4; n++) sum[r][n] = vf_fma(query, key[n], sum[r][n]);
            }
        }
        UNROLL for (int r = 0; r < heads; r++) vf_sum4(sum[r], scores + r * CHUNK + j);
    }
}

/* `vectors` vectors of out[r] from entry i on: out * old[r] + new[r] * sum over j of p[r][j] * value of slots[j] */
INLINE void mix(const int heads, const int vectors, const int kind, const void *values, const int32_t *slots, int count,
                const float *p, int padded_head, int D, int i, const float *old, const float *new, float *out) {
    vf sum[HEADS_MAX][4];
    const int part = D - i < LANES ? D - i : 0;
    UNROLL for (int r = 0; r < heads; r++) UNROLL for (int n = 0; n < vectors; n++) sum[r][n] = vf_set1(0);
    for (int j = 0; j < count; j++) {
        int64_t at = (int64_t)slots[j] * D + i;
        vf value[4];
        UNROLL for (int n = 0; n < vectors; n++)
            value[n] = part ? cached_part(kind, values, at, part) : cached(kind, values, at + n * LANES);
        UNROLL for (int r = 0; r < heads; r++) {
            vf by = vf_set1(p[r * CHUNK + j]);
            UNROLL for (int n = 0; n < vectors; n++) sum[r][n] = vf_fma(by, value[n], sum[r][n]);
        }
    }
    UNROLL for (int r = 0; r < heads; r++) UNROLL for (int n = 0; n < vectors; n++) {
        float *at = out + r * padded_head + i + n * LANES;
        vf_store(at, vf_fma(vf_load(at), vf_set1(old[r]), sum[r][n] * new[r]));
    }
}

/* Scores to weights e^(score - top), in place; their sum, taken lane by lane. */
static float weights_of(float *scores, int count, float *top) {
    for (int j = count; j % LANES; j++) scores[j] = -INFINITY;
    vf high = vf_load(scores), sum = vf_set1(0);
    for (int j = LANES; j < count; j += LANES) high = vf_max(high, vf_load(scores + j));
    *top = vf_top(high);
    for (int j = 0; j < count; j += LANES) {
        vf_store(scores + j, vf_exp(vf_load(scores + j) - *top));
        for (int past = count; past < j + LANES; past++) scores[past] = 0;
        sum = sum + vf_load(scores + j);
    }
    return vf_sum(sum);
}

static float exp1(float x) { float t[LANES]; vf_store(t, vf_exp(vf_set1(x))); return t[0]; }

/* One chunk for `heads` query heads; state: their tops and sums so far. */
INLINE void chunk(const int heads, const int kind, const void *keys, const void *values, const int32_t *slots, int count,
                  const float *q, int padded_head, int D, float *scores, float *tops, float *sums, float *out) {
    float old[HEADS_MAX], new[HEADS_MAX];
    scores_of(heads, kind, keys, slots, count, q, padded_head, D, scores);
    for (int r = 0; r < heads; r++) {
        float top, sum = weights_of(scores + r * CHUNK, count, &top);
        float most = top > tops[r] ? top : tops[r];
        old[r] = sums[r] == 0 ? 0 : exp1(tops[r] - most);
        new[r] = exp1(top - most);
        sums[r] = sums[r] * old[r] + sum * new[r];
        tops[r] = most;
    }
    int i = 0;
    for (; i + 4 * LANES <= D; i += 4 * LANES)
        mix(heads, 4, kind, values, slots, count, scores, padded_head, D, i, old, new, out);
    for (; i < D; i += LANES) mix(heads, 1, kind, values, slots, count, scores, padded_head, D, i, old, new, out);
}

typedef void (*Chunk)(const void *, const void *, const int32_t *, int, const float *, int, int, float *, float *, float *,
                      float *);
#define MAKE(R) \
    static void fp32_##R(const void *k, const void *v, const int32_t *s, int n, const float *q, int p, int D, float *t, \
                         float *m, float *l, float *o) { chunk(R, FP32, k, v, s, n, q, p, D, t, m, l, o); } \
    static void bf16_##R(const void *k, const void *v, const int32_t *s, int n, const float *q, int p, int D, float *t, \
                         float *m, float *l, float *o) { chunk(R, BF16, k, v, s, n, q, p, D, t, m, l, o); }
MAKE(1) MAKE(2)
#if LANES == 16
MAKE(3) MAKE(4)
static const Chunk chunks[2][HEADS_MAX] = {{fp32_1, fp32_2, fp32_3, fp32_4}, {bf16_1, bf16_2, bf16_3, bf16_4}};
#else
static const Chunk chunks[2][HEADS_MAX] = {{fp32_1, fp32_2}, {bf16_1, bf16_2}};
#endif

/* The next visible slots from *at on, CHUNK at most. */
static int next_slots(const uint8_t *seen, int end, int *at, int32_t *slots) {
    int count = 0, i = *at;
    while (i < end && count < CHUNK) {
        uint64_t eight = 0;
        if (seen && i + 8 <= end) memcpy(&eight, seen + i, 8);
        if (count + 8 <= CHUNK && i + 8 <= end && (!seen || eight == 0x0101010101010101u)) {
            for (int n = 0; n < 8; n++) slots[count + n] = i + n;
            count += 8, i += 8;
        } else {
            if (!seen || seen[i]) slots[count++] = i;
            i++;
        }
    }
    *at = i;
    return count;
}

static void attend(const Job *job, int b, int t, int g, float *own) {
    const Layer *layer = job->layer;
    const Pass *pass = job->pass;
    const int D = layer->head_dim, R = layer->heads / layer->kv_heads, wide = job->padded_head;
    const int64_t row = (int64_t)b * pass->rows + t, store = b * pass->batch_stride + g * pass->head_stride;
    const size_t size = pass->cache_kind == FP32 ? 4 : 2;
    const char *keys = (const char *)pass->k + store * size, *values = (const char *)pass->v + store * size;
    const uint8_t *seen = pass->visible ? pass->visible + b * pass->visible_stride + (int64_t)t * pass->slots : NULL;
    float *q = own, *out = q + R * wide, *tops = out + R * wide, *sums = tops + R, *scores = sums + R;
    int32_t slots[CHUNK];
    memset(q, 0, sizeof(float) * 2 * R * wide);
    for (int r = 0; r < R; r++) {
        memcpy(q + r * wide, job->q + (row * layer->heads + g * R + r) * D, sizeof(float) * D);
        tops[r] = -INFINITY, sums[r] = 0;
    }
    int end = seen ? pass->slots : pass->lengths[b] + t + 1;
    for (int at = 0, count; (count = next_slots(seen, end, &at, slots));)
        for (int r = 0; r < R; r += HEADS_MAX) {
            int heads = R - r < HEADS_MAX ? R - r : HEADS_MAX;
            chunks[pass->cache_kind][heads - 1](keys, values, slots, count, q + r * wide, wide, D, scores, tops + r, sums + r,
                                                out + r * wide);
        }
    for (int r = 0; r < R; r++) { /* a row that sees nothing gives zeros */
        float *mixed = job->mixed + (row * layer->heads + g * R + r) * D, by = sums[r] > 0 ? 1.0f / sums[r] : 0;
        for (int i = 0; i < D; i++) mixed[i] = out[r * wide + i] * by;
    }
}

/* ---- the layer's halves --------------------------------------------------------------------------------------------- */

static void attention_half(const Job *job, int thread, int threads) {
    const Layer *layer = job->layer;
    const Pass *pass = job->pass;
    const int G = layer->kv_heads, D = layer->head_dim;
    int from, to;
    share(job->rows, thread, threads, &from, &to);
    Rows x = rows_of(job, &layer->q, job->normed);
    for (int r = from; r < to; r++) {
        rms_norm(pass->x + (int64_t)r * layer->width, layer->attn_norm, job->normed + (int64_t)r * layer->width, layer->width,
                 layer->eps);
        prepare_row(&layer->q, &x, job->normed, r);
    }
    pool_barrier(threads);
    Product qkv[] = {{&layer->q, x, job->q, layer->q_bias, NULL, (int64_t)layer->heads * D},
                     {&layer->k, x, job->k, layer->k_bias, NULL, (int64_t)G * D},
                     {&layer->v, x, job->v, layer->v_bias, NULL, (int64_t)G * D}};
    products(qkv, 3, job->rows, thread, threads);
    pool_barrier(threads);
    for (int r = from; r < to; r++) finish_heads(job, r);
    pool_barrier(threads);
    /* Neighbouring rows read the same keys; dealing them out in turn gives threads equal work under a causal mask. */
    for (int unit = thread; unit < job->rows * G; unit += threads) {
        int b = unit / (pass->rows * G), g = unit / pass->rows % G, t = unit % pass->rows;
        attend(job, b, t, g, job->own + thread * job->own_floats);
    }
    pool_barrier(threads);
    Rows mixed = rows_of(job, &layer->o, job->mixed);
    for (int r = from; r < to; r++) prepare_row(&layer->o, &mixed, job->mixed, r);
    pool_barrier(threads);
    Product out = {&layer->o, mixed, pass->out, layer->o_bias, pass->x, layer->width};
    products(&out, 1, job->rows, thread, threads);
}

static void ffn_half(const Job *job, const float *x, int thread, int threads) {
    const Layer *layer = job->layer;
    int from, to;
    share(job->rows, thread, threads, &from, &to);
    Rows normed = rows_of(job, &layer->gate, job->normed);
    for (int r = from; r < to; r++) {
        rms_norm(x + (int64_t)r * layer->width, layer->mlp_norm, job->normed + (int64_t)r * layer->width, layer->width,
                 layer->eps);
        prepare_row(&layer->gate, &normed, job->normed, r);
    }
    pool_barrier(threads);
    Product both[] = {{&layer->gate, normed, job->gate, NULL, NULL, layer->ffn},
                      {&layer->up, normed, job->up, NULL, NULL, layer->ffn}};
    products(both, 2, job->rows, thread, threads);
    pool_barrier(threads);
    Rows inner = rows_of(job, &layer->down, job->gate);
    for (int r = from; r < to; r++) {
        float *gate = job->gate + (int64_t)r * layer->ffn, *up = job->up + (int64_t)r * layer->ffn;
        int i = 0;
        for (; i + LANES <= layer->ffn; i += LANES) {
            vf g = vf_load(gate + i);
            vf_store(gate + i, g / (vf_exp(-g) + 1.0f) * vf_load(up + i));
        }
        if (i < layer->ffn) {
            vf g = vf_load_part(gate + i, layer->ffn - i);
            vf_store_part(gate + i, g / (vf_exp(-g) + 1.0f) * vf_load_part(up + i, layer->ffn - i), layer->ffn - i);
        }
        prepare_row(&layer->down, &inner, job->gate, r);
    }
    pool_barrier(threads);
    Product down = {&layer->down, inner, job->pass->out, NULL, x, layer->width};
    products(&down, 1, job->rows, thread, threads);
}

static void layer_job(void *with, int thread, int threads) {
    const Job *job = with;
    if (job->pass->attn) attention_half(job, thread, threads);
    if (job->pass->attn && job->pass->mlp) pool_barrier(threads);
    if (job->pass->mlp) ffn_half(job, job->pass->attn ? job->pass->out : job->pass->x, thread, threads);
}

static size_t most(size_t a, size_t b) { return a > b ? a : b; }

/* Run one layer: the attention half, the FFN half or both, as the pass asks. */
void lithe_layer(const Layer *layer, const Pass *pass) {
    const int rows = pass->batch * pass->rows, wide = (layer->head_dim + LANES - 1) / LANES * LANES;
    const int64_t D = layer->head_dim, R = pass->attn ? layer->heads / layer->kv_heads : 0;
    if (rows < 1 || !(pass->attn || pass->mlp)) return;
    size_t counts[] = {(size_t)rows * layer->width, (size_t)rows * layer->heads * D, (size_t)rows * layer->kv_heads * D,
                       (size_t)rows * layer->kv_heads * D, (size_t)rows * layer->heads * D, (size_t)rows * layer->ffn,
                       (size_t)rows * layer->ffn};
    size_t at[8] = {0}, room = 0, own = (size_t)(R * (2 * wide + 2) + HEADS_MAX * CHUNK + 15) / 16 * 16;
    const Packed *inputs[] = {&layer->q, &layer->o, &layer->gate, &layer->down};
    for (int i = 0; i < 7; i++) at[i + 1] = at[i] + (counts[i] + 15) / 16 * 16;
    for (int i = 0; i < 4; i++)
        if (inputs[i]->data) room = most(room, rows_bytes(inputs[i]->kind, rows, padded(inputs[i])));
    pool_lock();
    float *base = pool_scratch(sizeof(float) * (at[7] + own * pass->threads) + room);
    Job job = {layer, pass, rows, wide, base, base + at[1], base + at[2], base + at[3], base + at[4], base + at[5],
               base + at[6], (char *)(base + at[7] + own * pass->threads), base + at[7], (int64_t)own};
    pool_run(layer_job, &job, pass->threads);
    pool_unlock();
}

/* ---- a norm alone, for the head -------------------------------------------------------------------------------------- */

typedef struct {
    const float *x, *weight;
    float *out;
    int width, rows;
    float eps;
} Norm;

static void norm_job(void *with, int thread, int threads) {
    const Norm *job = with;
    int from, to;
    share(job->rows, thread, threads, &from, &to);
    for (int r = from; r < to; r++)
        rms_norm(job->x + (int64_t)r * job->width, job->weight, job->out + (int64_t)r * job->width, job->width, job->eps);
}

void lithe_norm(const float *x, const float *weight, float *out, int32_t width, int32_t rows, float eps) {
    Norm job = {x, weight, out, width, rows, eps};
    pool_lock();
    pool_run(norm_job, &job, 1); /* one thread, but the rounding that all jobs share */
    pool_unlock();
}
