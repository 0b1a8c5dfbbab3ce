/* Runs every kind, group and row count on buffers of exactly the right size, against plain loops. Meant to be built with
 * sanitizers, which then see each step outside a buffer and each undefined operation; its exit code tells of wrong numbers. */
#include "../../lithe/kernels/c/lithe.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void lithe_linear(const Packed *w, const float *x, int64_t x_stride, const float *bias, float *y, int64_t y_stride,
                  int32_t rows, int32_t threads);

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

/* A layer over a batch whose buffers end where they should: rows together, one by one and with what they see spelled out. */
typedef struct {
    Packed q, k, v, o, gate, up, down;
    const float *attn_norm, *mlp_norm, *q_norm, *k_norm, *q_bias, *k_bias, *v_bias, *o_bias;
    int32_t width, heads, kv_heads, head_dim, rotated, ffn;
    float eps, scale;
} Layer;
typedef struct {
    const float *x;
    float *out;
    const float *cos, *sin;
    const uint8_t *visible;
    int64_t visible_stride;
    void *k, *v;
    int64_t batch_stride, head_stride;
    const int32_t *lengths;
    int32_t batch, rows, slots, cache_kind, attn, mlp, threads;
} Pass;
void lithe_layer(const Layer *layer, const Pass *pass);

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

static int check_layer(int kind, int cache_kind, int D, int heads, int kv_heads, int past, int rows, int threads) {
    enum { BATCH = 2, C = 40, F = 50 };
    int capacity = past + rows, N = BATCH * rows, wrong = 0, size = cache_kind == FP32 ? 4 : 2;
    size_t bytes = (size_t)BATCH * kv_heads * capacity * D * size;
    Layer layer = {matrix(kind, heads * D, C), matrix(kind, kv_heads * D, C), matrix(kind, kv_heads * D, C),
                   matrix(kind, C, heads * D), matrix(kind, F, C), matrix(kind, F, C), matrix(kind, C, F),
                   numbers(C), numbers(C), numbers(D), numbers(D), NULL, NULL, NULL, NULL, C, heads, kv_heads, D, D, F, 1e-5f, 0.3f};
    float *x = numbers(N * C), *out = exactly(sizeof(float) * N * C), *one = exactly(sizeof(float) * BATCH * C);
    float *cos = numbers(N * D), *sin = numbers(N * D), *step = exactly(sizeof(float) * BATCH * (C + 2 * D));
    char *k = exactly(bytes), *v = exactly(bytes), *k1 = exactly(bytes), *v1 = exactly(bytes);
    uint8_t *seen = exactly((size_t)rows * capacity);
    int32_t lengths[BATCH] = {past, past};
    memset(k, 0, bytes), memset(v, 0, bytes);
    for (int i = 0; i < rows * capacity; i++) seen[i] = i % capacity <= past + i / capacity;
    memcpy(k1, k, bytes), memcpy(v1, v, bytes);
    Pass pass = {x, out, cos, sin, seen, 0, k, v, (int64_t)kv_heads * capacity * D, (int64_t)capacity * D, lengths, BATCH, rows,
                 capacity, cache_kind, 1, 1, threads};
    lithe_layer(&layer, &pass);
    for (int t = 0; t < rows; t++) {
        for (int b = 0; b < BATCH; b++) {
            memcpy(step + b * C, x + (b * rows + t) * C, sizeof(float) * C);
            memcpy(step + BATCH * C + b * D, cos + (b * rows + t) * D, sizeof(float) * D);
            memcpy(step + BATCH * (C + D) + b * D, sin + (b * rows + t) * D, sizeof(float) * D);
            lengths[b] = past + t;
        }
        Pass single = pass;
        single.x = step, single.out = one, single.cos = step + BATCH * C, single.sin = step + BATCH * (C + D);
        single.visible = NULL, single.k = k1, single.v = v1, single.rows = 1, single.threads = 1;
        lithe_layer(&layer, &single);
        for (int b = 0; b < BATCH; b++) wrong += memcmp(one + b * C, out + (b * rows + t) * C, sizeof(float) * C) != 0;
    }
    wrong += memcmp(k, k1, bytes) != 0 || memcmp(v, v1, bytes) != 0;
    if (wrong) printf("layer of kind %d, heads %d of %d, %d past, %d rows: %d wrong\n", kind, heads, D, past, rows, wrong);
    const Packed *matrices[] = {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down};
    for (int i = 0; i < 7; i++) free((void *)matrices[i]->data);
    free((void *)layer.attn_norm), free((void *)layer.mlp_norm), free((void *)layer.q_norm), free((void *)layer.k_norm);
    free(x), free(out), free(one), free(cos), free(sin), free(step), free(k), free(v), free(k1), free(v1), free(seen);
    return wrong;
}

int main(void) {
    int wrong = 0;
    for (int kind = FP32; kind <= INT4; kind++)
        for (int cache_kind = FP32; cache_kind <= BF16; cache_kind++) {
            wrong += check_layer(kind, cache_kind, 10, 3, 1, 0, 5, 2) + check_layer(kind, cache_kind, 64, 4, 2, 250, 9, 3);
            wrong += check_layer(kind, cache_kind, 20, 5, 1, 13, 1, 1);
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
