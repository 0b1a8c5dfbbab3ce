/* Sparse products of both forms on buffers of exactly the right size, against plain loops: meant for sanitizers, as selftest.c. */
#include "../../lithe/kernels/c/lithe.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const void *places, *values;
    const int64_t *starts;
    int32_t kind, n, k, strips;
} Sparse;
void lithe_sparse(const Sparse *w, const float *x, int64_t x_stride, const float *bias, float *y, int64_t y_stride, int32_t rows,
                  int32_t threads);

static uint32_t dice = 1;
static uint32_t roll(void) { return dice = dice * 1664525u + 1013904223u; }
static float uniform(void) { return (float)(roll() >> 8) / 8388608.0f - 1.0f; }
static void *exactly(size_t bytes) {
    void *p = NULL;
    if (posix_memalign(&p, 64, bytes ? bytes : 1)) exit(2);
    return p;
}
static float keep_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4), bits &= 0xffff0000, memcpy(&value, &bits, 4);
    return value;
}
static void put(const Sparse *w, void *values, int64_t at, float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (w->kind == FP32) ((float *)values)[at] = value;
    else ((uint16_t *)values)[at] = (uint16_t)(bits >> 16);
}

/* The matrix in one form; values end with the 64 bytes that may be read behind them. */
static void lay_out(Sparse *w, const float *plain) {
    const int size = w->kind == FP32 ? 4 : 2, each = w->strips ? 8 : 32, parts = (w->n + each - 1) / each;
    int64_t *starts = exactly(sizeof(int64_t) * (parts + 1)), total = 0;
    for (int p = 0; p < parts; p++) {
        int64_t most = 0, all = 0;
        for (int c = p * each; c < (p + 1) * each && c < w->n; c++) {
            int64_t own = 0;
            for (int i = 0; i < w->k; i++) own += plain[c * w->k + i] != 0;
            most = own > most ? own : most, all += own;
        }
        starts[p] = total, total += w->strips ? most : all;
    }
    starts[parts] = total;
    const int64_t room = w->strips ? total * 8 : total;
    void *values = exactly(room * size + 64);
    memset(values, 0, room * size + 64);
    uint32_t *words = w->strips ? NULL : exactly(sizeof(uint32_t) * parts * w->k);
    uint16_t *index = w->strips ? exactly(room * 2 + 64) : NULL;
    if (index) memset(index, 0, room * 2 + 64);
    if (words) memset(words, 0, sizeof(uint32_t) * parts * w->k);
    for (int p = 0; p < parts; p++) {
        int64_t at = starts[p];
        if (w->strips)
            for (int c = 0; c < 8 && p * 8 + c < w->n; c++)
                for (int64_t i = 0, step = starts[p]; i < w->k; i++) {
                    const float value = plain[(p * 8 + c) * w->k + i];
                    if (value != 0) put(w, values, step * 8 + c, value), index[step++ * 8 + c] = (uint16_t)i;
                }
        else
            for (int64_t i = 0; i < w->k; i++)
                for (int c = 0; c < 32 && p * 32 + c < w->n; c++) {
                    const float value = plain[(p * 32 + c) * w->k + i];
                    if (value != 0) put(w, values, at++, value), words[p * w->k + i] |= 1u << c;
                }
    }
    w->starts = starts, w->values = values, w->places = w->strips ? (void *)index : (void *)words;
}

static int check(int kind, int strips, int n, int k, int left, int rows, int threads) {
    Sparse w = {NULL, NULL, NULL, kind, n, k, strips};
    float *plain = exactly(sizeof(float) * n * k), *x = exactly(sizeof(float) * rows * k), *y = exactly(sizeof(float) * rows * n);
    float *bias = exactly(sizeof(float) * n), *one = exactly(sizeof(float) * n);
    int wrong = 0;
    for (int i = 0; i < n * k; i++) plain[i] = (int)(roll() >> 8) % 100 < left ? keep_bf16(uniform()) : 0;
    for (int i = 0; i < rows * k; i++) x[i] = uniform();
    for (int i = 0; i < n; i++) bias[i] = uniform();
    lay_out(&w, plain);
    lithe_sparse(&w, x, k, bias, y, n, rows, threads);
    for (int r = 0; r < rows; r++) {
        lithe_sparse(&w, x + r * k, k, bias, one, n, 1, 1);
        wrong += memcmp(one, y + r * n, sizeof(float) * n) != 0;
        for (int c = 0; c < n; c++) {
            double sum = bias[c], size = 0;
            for (int i = 0; i < k; i++) sum += (double)x[r * k + i] * plain[c * k + i], size += fabs(plain[c * k + i]);
            wrong += !(fabs(sum - y[r * n + c]) <= size * 1e-6 + 1e-6);
        }
    }
    if (wrong) printf("kind %d, strips %d, %d x %d, %d rows: %d wrong\n", kind, strips, n, k, rows, wrong);
    free((void *)w.places), free((void *)w.values), free((void *)w.starts);
    free(plain), free(x), free(y), free(bias), free(one);
    return wrong;
}

int main(void) {
    const int shapes[][2] = {{1, 1}, {32, 32}, {33, 31}, {48, 130}, {95, 70}}, left[] = {0, 5, 50, 100};
    int wrong = 0;
    for (int s = 0; s < 5; s++)
        for (int l = 0; l < 4; l++)
            for (int rows = 1; rows <= 33; rows += rows < 9 ? 1 : 8)
                for (int form = 0; form < 4; form++)
                    wrong += check(form & 1, form >> 1, shapes[s][0], shapes[s][1], left[l], rows, 1 + rows % 3);
    return wrong != 0;
}
