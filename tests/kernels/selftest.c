/* Runs every kind, group and row count on buffers of exactly the right size, against plain loops. Meant to be built with
 * sanitizers, which then see each step outside a buffer and each undefined operation; its exit code tells of wrong numbers. */
#include "../../lithe/kernels/c/lithe.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void lithe_linear(const Packed *w, const float *x, int64_t x_stride, const float *bias, float *y, int64_t y_stride,
                  int32_t rows, int32_t threads);

int64_t lithe_rows(const Packed *w, const int64_t *rows, int64_t count, float *out);
int32_t lithe_best(const float *scores, int32_t width);

static uint32_t dice = 1;
static uint32_t roll(void) { return dice = dice * 1664525u + 1013904223u; }
static float uniform(void) { return (float)(roll() >> 8) / 8388608.0f - 1.0f; }
static void *exactly(size_t bytes) { /* aligned as tensors are, with nothing behind it */
    void *p = NULL;
    if (posix_memalign(&p, 64, bytes)) exit(2);
    return p;
}

static size_t tile_bytes(int kind, int64_t k, int group) {
    return ((k + group - 1) / group * 32 + 63) / 64 * 64 + (size_t)k * 16 * (kind == INT8 ? 2 : 1) / 2;
}

/* Weights of random bits; returns what each stands for. */
static float *weights(Packed *w, int64_t k) {
    int columns = (w->n + 31) / 32 * 32;
    size_t bytes = w->kind == FP32 ? columns * k * 4 : w->kind == BF16 ? columns * k * 2
                 : columns / 16 * tile_bytes(w->kind, k, w->group);
    uint8_t *data = exactly(bytes);
    float *plain = calloc((size_t)columns * k, sizeof(float));
    memset(data, 0, bytes);
    for (int n = 0; n < columns; n++)
        for (int64_t i = 0; i < k; i++) {
            float value = uniform();
            uint32_t bits;
            memcpy(&bits, &value, 4);
            if (w->kind == FP32) {
                ((float *)data)[(n / 32 * k + i) * 32 + n % 32] = value;
            } else if (w->kind == BF16) {
                ((uint16_t *)data)[((n / 32 * (k / 2) + i / 2) * 32 + n % 32) * 2 + i % 2] = (uint16_t)(bits >> 16);
                bits &= 0xffff0000;
                memcpy(&value, &bits, 4);
            } else {
                uint8_t *tile = data + n / 16 * tile_bytes(w->kind, k, w->group);
                uint8_t *blocks = tile + tile_bytes(w->kind, k, w->group) - k * 16 * (w->kind == INT8 ? 2 : 1) / 2;
                ((uint16_t *)tile)[i / w->group * 16 + n % 16] = 0x2800; /* 2^-5 */
                int q = i % 32 / 4, level = w->kind == INT8 ? (int)(roll() % 255) - 127 : (int)(roll() % 16) - 8;
                if (w->kind == INT8) blocks[i / 32 * 512 + q * 64 + n % 16 * 4 + i % 4] = (uint8_t)(level + 128);
                else blocks[i / 32 * 256 + q % 4 * 64 + n % 16 * 4 + i % 4] |= (uint8_t)(level + 8) << (q < 4 ? 0 : 4);
                value = (float)level / 32;
            }
            plain[n * k + i] = value;
        }
    w->data = data;
    return plain;
}

static int check(int kind, int n, int k, int group, int rows, int threads) {
    int64_t unit = kind == FP32 ? 1 : kind == BF16 ? 2 : 32, inputs = (k + unit - 1) / unit * unit;
    Packed w = {NULL, kind, n, k, group == -1 ? (int)inputs : group};
    float *plain = weights(&w, inputs), *x = exactly(sizeof(float) * rows * k), *y = exactly(sizeof(float) * rows * n);
    float *bias = exactly(sizeof(float) * n), *one = exactly(sizeof(float) * n);
    int wrong = 0;
    for (int i = 0; i < rows * k; i++) x[i] = uniform();
    for (int i = 0; i < n; i++) bias[i] = uniform();
    lithe_linear(&w, x, k, bias, y, n, rows, threads);
    int64_t some[] = {n - 1, 0, n / 2}, none[] = {0, n};
    float *rows_out = exactly(sizeof(float) * 3 * k);
    wrong += lithe_rows(&w, some, 3, rows_out) != -1 || lithe_rows(&w, none, 2, rows_out) != 1;
    lithe_rows(&w, some, 3, rows_out);
    for (int i = 0; i < 3 * k; i++) wrong += rows_out[i] != plain[some[i / k] * inputs + i % k];
    free(rows_out);
    for (int r = 0; r < rows; r++) {
        lithe_linear(&w, x + r * k, k, bias, one, n, 1, 1);
        wrong += memcmp(one, y + r * n, sizeof(float) * n) != 0;
        for (int c = 0; c < n; c++) {
            double sum = bias[c], size = 0;
            for (int i = 0; i < k; i++) sum += (double)x[r * k + i] * plain[c * inputs + i], size += fabs(plain[c * inputs + i]);
            wrong += !(fabs(sum - y[r * n + c]) <= size * (kind == FP32 ? 1e-6 : 6e-3) + 1e-6);
        }
    }
    if (wrong) printf("kind %d, %d x %d, group %d, %d rows, %d threads: %d wrong\n", kind, n, k, group, rows, threads, wrong);
    free((void *)w.data), free(plain), free(x), free(y), free(bias), free(one);
    return wrong;
}

/* Layers over a batch whose buffers end where they should: rows together, one by one and with what they see spelled out. */
typedef struct {
    Packed q, k, v, o, gate, up, down;
    const float *attn_norm, *mlp_norm, *q_norm, *k_norm, *q_bias, *k_bias, *v_bias, *o_bias, *attn_out_norm,
        *mlp_out_norm;
    int32_t width, heads, kv_heads, head_dim, rotated, ffn, gelu;
    float eps, scale, cap;
} Layer;
typedef struct {
    void *k, *v;
    const float *cos, *sin;
    int64_t batch_stride, head_stride;
    int32_t cache_kind, window;
} Place;
typedef struct {
    const float *x;
    float *out;
    const int64_t *pos;
    const int32_t *lengths, *starts, *owners, *order, *spans, *tables;
    const uint8_t *among;
    const int64_t *among_at;
    int64_t table_stride;
    int32_t batch, rows, groups, shift, attn, mlp, threads;
} Pass;
void lithe_layers(const Layer *const *layers, const Place *places, int32_t count, const Pass *pass);
static float *numbers(int count) {
    float *p = exactly(sizeof(float) * count);
    for (int i = 0; i < count; i++) p[i] = uniform();
    return p;
}
static Packed matrix(int kind, int n, int k) {
    int unit = kind == FP32 ? 1 : kind == BF16 ? 2 : 32;
    Packed w = {NULL, kind, n, k, kind >= INT8 ? 32 : 0};
    free(weights(&w, (k + unit - 1) / unit * unit));
    return w;
}

/* The same pass on pages of four slots that lie backwards, both sequences' rows in one span and in turn. */
static int check_pages(const Layer *const *layers, const Place *places, const Pass *pass, const float *right, int batch, int past,
                       int rows, int kv_heads, int D, int size) {
    enum { COUNT = 2, PAGE = 4 };
    const int each = (past + rows + PAGE - 1) / PAGE, capacity = past + rows, width = layers[0]->width;
    const size_t bytes = (size_t)kv_heads * batch * each * PAGE * D * size, head = (size_t)batch * each * PAGE * D * size;
    int32_t *tables = exactly(sizeof(int32_t) * batch * each), *order = exactly(sizeof(int32_t) * batch * rows), span[] = {0, batch * rows};
    float *out = exactly(sizeof(float) * batch * rows * width);
    Place paged[COUNT];
    for (int i = 0; i < batch * each; i++) tables[i] = batch * each - 1 - i;
    for (int i = 0; i < batch * rows; i++) order[i] = i % batch * rows + i / batch;
    for (int l = 0; l < COUNT; l++) {
        char *from[] = {places[l].k, places[l].v}, *to[2];
        for (int i = 0; i < 2; i++) {
            to[i] = exactly(bytes);
            for (int b = 0; b < batch; b++)
                for (int g = 0; g < kv_heads; g++)
                    for (int s = 0; s < past; s++)
                        memcpy(to[i] + g * head + (size_t)(tables[b * each + s / PAGE] * PAGE + s % PAGE) * D * size,
                               from[i] + ((size_t)(b * kv_heads + g) * capacity + s) * D * size, (size_t)D * size);
        }
        paged[l] = places[l], paged[l].k = to[0], paged[l].v = to[1];
        paged[l].batch_stride = 0, paged[l].head_stride = (int64_t)(head / size);
    }
    int32_t lengths[] = {past, past};
    Pass other = *pass;
    other.out = out, other.lengths = lengths, other.order = order, other.spans = span, other.groups = 1;
    other.tables = tables, other.table_stride = each, other.shift = 2;
    lithe_layers(layers, paged, COUNT, &other);
    int wrong = memcmp(out, right, sizeof(float) * batch * rows * width) != 0;
    for (int l = 0; l < COUNT; l++) free(paged[l].k), free(paged[l].v);
    free(tables), free(order), free(out);
    return wrong;
}

static int check_layers(int kind, int cache_kind, int D, int heads, int kv_heads, int past, int rows, int window, int threads) {
    enum { BATCH = 2, C = 40, F = 50, COUNT = 2 };
    int capacity = past + rows, N = BATCH * rows, wrong = 0, size = cache_kind == FP32 ? 4 : 2;
    size_t bytes = (size_t)BATCH * kv_heads * capacity * D * size;
    Layer layer = {matrix(kind, heads * D, C), matrix(kind, kv_heads * D, C), matrix(kind, kv_heads * D, C),
                   matrix(kind, C, heads * D), matrix(kind, F, C), matrix(kind, F, C), matrix(kind, C, F),
                   numbers(C), numbers(C), numbers(D), numbers(D), NULL, NULL, NULL, NULL, NULL, NULL, C, heads, kv_heads, D, D, F, 0, 1e-5f,
                   0.3f, 0};
    if (window > 3) layer.attn_out_norm = layer.attn_norm, layer.mlp_out_norm = layer.mlp_norm, layer.gelu = 1, layer.cap = 2;
    float *x = numbers(N * C), *out = exactly(sizeof(float) * N * C), *one = exactly(sizeof(float) * BATCH * C);
    float *cos = numbers(capacity * D), *sin = numbers(capacity * D), *step = exactly(sizeof(float) * BATCH * C);
    char *store[COUNT][2], *store1[COUNT][2];
    uint8_t *among = exactly((size_t)rows * rows);
    int64_t *pos = exactly(sizeof(int64_t) * N), pos1[BATCH];
    int32_t lengths[BATCH] = {past, past}, starts[] = {0, rows, 2 * rows}, owners[1024], ones[] = {0, 1, 2}, all[] = {0, 2};
    int64_t among_at[BATCH] = {0, 0};
    for (int i = 0; i < N; i++) owners[i] = i >= rows;
    const Layer *layers[COUNT] = {&layer, &layer};
    Place places[COUNT], places1[COUNT];
    for (int l = 0; l < COUNT; l++) {
        for (int i = 0; i < 2; i++) {
            store[l][i] = exactly(bytes), store1[l][i] = exactly(bytes);
            memset(store[l][i], 0, bytes), memset(store1[l][i], 0, bytes);
        }
        places[l] = (Place){store[l][0], store[l][1], cos, sin, (int64_t)kv_heads * capacity * D, (int64_t)capacity * D, cache_kind,
                            l ? window : 0};
        places1[l] = places[l], places1[l].k = store1[l][0], places1[l].v = store1[l][1];
    }
    for (int i = 0; i < rows * rows; i++) among[i] = i % rows <= i / rows;
    for (int i = 0; i < N; i++) pos[i] = past + i % rows;
    Pass pass = {x, out, pos, lengths, starts, owners, NULL, starts, NULL, among, among_at, 0, BATCH, N, BATCH, 0, 1, 1, threads};
    lithe_layers(layers, places, COUNT, &pass);
    for (int t = 0; t < rows; t++) {
        for (int b = 0; b < BATCH; b++) {
            memcpy(step + b * C, x + (b * rows + t) * C, sizeof(float) * C);
            lengths[b] = past + t, pos1[b] = past + t;
        }
        Pass single = {step, one, pos1, lengths, ones, ones, NULL, ones, NULL, NULL, NULL, 0, BATCH, BATCH, BATCH, 0, 1, 1, 1};
        lithe_layers(layers, places1, COUNT, &single);
        for (int b = 0; b < BATCH; b++) wrong += memcmp(one + b * C, out + (b * rows + t) * C, sizeof(float) * C) != 0;
    }
    wrong += check_pages(layers, places, &pass, out, BATCH, past, rows, kv_heads, D, size);
    for (int l = 0; l < COUNT; l++)
        for (int i = 0; i < 2; i++) {
            wrong += memcmp(store[l][i], store1[l][i], bytes) != 0;
            free(store[l][i]), free(store1[l][i]);
        }
    if (wrong) printf("layers of kind %d, heads %d of %d, %d past, %d rows: %d wrong\n", kind, heads, D, past, rows, wrong);
    const Packed *matrices[] = {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down};
    for (int i = 0; i < 7; i++) free((void *)matrices[i]->data);
    free((void *)layer.attn_norm), free((void *)layer.mlp_norm), free((void *)layer.q_norm), free((void *)layer.k_norm);
    free(x), free(out), free(one), free(cos), free(sin), free(step), free(among), free(pos);
    return wrong;
}

/* The likeliest of scores with many ties, the end of which is the end of their memory. */
static int check_best(int width) {
    float *scores = exactly(sizeof(float) * width);
    int best = 0;
    for (int i = 0; i < width; i++) {
        scores[i] = (float)(roll() >> 30);
        if (scores[i] > scores[best]) best = i;
    }
    int wrong = lithe_best(scores, width) != best;
    scores[roll() % width] = NAN;
    wrong += lithe_best(scores, width) != -1;
    if (wrong) printf("the best of %d: wrong\n", width);
    free(scores);
    return wrong;
}

/* What is dealt out to three threads, of which only the second ever comes: it does all panels of all matrices. */
static int check_deals(void) {
    int wrong = 0;
    Packed w[] = {matrix(FP32, 40, 30), matrix(FP32, 3, 30), matrix(FP32, 97, 30)};
    float *x = numbers(5 * 30), *y[3], *right[3];
    void *room = exactly(rows_bytes(FP32, 5, 30));
    Product list[3];
    Deal deals[3];
    const Rows rows = rows_at(FP32, x, 5, 30, room);
    for (int r = 0; r < 5; r++) prepare(FP32, x + r * 30, 30, 30, &rows, r, 0, 30);
    for (int i = 0; i < 3; i++) {
        y[i] = numbers(5 * w[i].n), right[i] = numbers(5 * w[i].n);
        lithe_linear(&w[i], x, 30, NULL, right[i], w[i].n, 5, 2);
        list[i] = (Product){&w[i], rows, y[i], NULL, NULL, w[i].n};
    }
    deal_out(deals, 2 + 1 + 4, 3);
    products(list, 3, deals, 3, 1, 3);
    for (int i = 0; i < 3; i++) wrong += memcmp(y[i], right[i], sizeof(float) * 5 * w[i].n) != 0;
    memset(y[0], 0, sizeof(float) * 5 * 40);
    products(list, 3, deals, 3, 0, 3); /* nothing is left */
    for (int i = 0; i < 5 * 40; i++) wrong += y[0][i] != 0;
    if (wrong) printf("dealt out: %d wrong\n", wrong);
    for (int i = 0; i < 3; i++) free((void *)w[i].data), free(y[i]), free(right[i]);
    free(x), free(room);
    return wrong;
}

int main(void) {
    int wrong = check_deals();
    for (int width = 1; width < 100; width++) wrong += check_best(width);
    for (int kind = FP32; kind <= INT4; kind++)
        for (int cache_kind = FP32; cache_kind <= BF16; cache_kind++) {
            wrong += check_layers(kind, cache_kind, 10, 3, 1, 0, 5, 3, 2) + check_layers(kind, cache_kind, 64, 4, 2, 250, 9, 100, 3);
            wrong += check_layers(kind, cache_kind, 20, 5, 1, 13, 1, 0, 1) + check_layers(kind, cache_kind, 16, 2, 2, 520, 2, 300, 2);
            wrong += check_layers(kind, cache_kind, 64, 9, 3, 241, 33, 0, 1) + check_layers(kind, cache_kind, 20, 5, 1, 3, 41, 30, 1);
        }
    const int shapes[][2] = {{1, 1}, {32, 32}, {33, 31}, {48, 130}, {95, 200}};
    for (int s = 0; s < 5; s++)
        for (int rows = 1; rows <= 33; rows += rows < 9 ? 1 : 8)
            for (int threads = 1; threads <= 3; threads += 2) {
                int n = shapes[s][0], k = shapes[s][1];
                wrong += check(FP32, n, k, 0, rows, threads) + check(BF16, n, k, 0, rows, threads);
                for (int kind = INT8; kind <= INT4; kind++)
                    wrong += check(kind, n, k, 32, rows, threads) + check(kind, n, k, 128, rows, threads)
                           + check(kind, n, k, -1, rows, threads);
            }
    return wrong != 0;
}
