/* What the kernels share. A plain C interface: integers, floats and pointers, mirrored by library.py. */
#ifndef LITHE_H
#define LITHE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define PANEL 32 /* output columns of a panel */
#define TILE 16  /* columns of a tile of byte or nibble weights: two tiles a panel */
#define BLOCK 32 /* inputs that share an activation scale */

enum { FP32, BF16, INT8, INT4 };

/* A matrix [n outputs, k inputs] laid out as pack.py says. group: inputs that share a weight scale. */
typedef struct {
    const uint8_t *data;
    int32_t kind, n, k, group;
} Packed;

/* Activations of `rows` rows in the form that a kind of weights reads: by row blocks of `most` rows at most (product.c), in them by
 * input, floats, pairs of bfloat16 or blocks of int8: the kernel finds what it needs next at fixed distances from one pointer. */
typedef struct {
    const void *x;        /* of each row block [inputs, pairs or blocks][its rows][1, 2 or BLOCK] */
    int64_t rows, most;
    const float *scale;   /* int8 only: of each row block [blocks][its rows] */
    const int32_t *start; /* as scale: -128 times the sum of a block, as weights are stored with 128 added */
} Rows;

/* pool.c: `work` runs on threads 0 to threads - 1, the caller being 0, or on the caller alone where the others are kept from their
 * cores. One job at a time; others wait. */
typedef void (*Work)(void *job, int thread, int threads);
void pool_run(Work work, void *job, int threads);
void pool_barrier(int thread, int threads);
void *pool_scratch(size_t bytes); /* of the job under way; valid until the next call. Only before the job starts. */
void pool_lock(void);
void pool_unlock(void);

/* product.c */
static inline int64_t padded(const Packed *w) { /* k as the weights are stored */
    const int64_t unit = w->kind == FP32 ? 1 : w->kind == BF16 ? 2 : BLOCK;
    return (w->k + unit - 1) & -unit;
}
size_t rows_bytes(int32_t kind, int rows, int64_t k);   /* room that prepare() needs */
Rows rows_at(int32_t kind, const float *x, int rows, int64_t k, void *room);
void prepare(int32_t kind, const float *x, int64_t k, int64_t real_k, const Rows *into, int row, int64_t from, int64_t to);
/* y [rows, n] = x W^T, plus a bias [n] and what is to be added (as y lies; it may be y itself) where they are given. */
typedef struct {
    const Packed *w;
    Rows x;
    float *y;
    const float *bias, *add;
    int64_t stride;
} Product;
/* The panels [first, end) that a thread still has of some products, in the halves of one number. It takes them from the front; one that
 * has done its own takes them from the back: cores are not equally fast, and one late thread would keep all waiting. */
typedef struct {
    _Alignas(64) _Atomic uint64_t left;
} Deal;
static inline int panels_of(const Packed *w) { return (int)(((unsigned)w->n + PANEL - 1) / PANEL); }
static inline int hands(int threads) { return threads < 1 ? 1 : threads; } /* that work is dealt out to */
void deal_out(Deal *deals, int panels, int threads);
void products(const Product *list, int count, Deal *deals, int dealt, int thread, int threads); /* dealt out to so many threads */

/* A share [from, to) of `total` units for one thread. */
static inline void share(int total, int thread, int threads, int *from, int *to) {
    *from = (int)((int64_t)total * thread / threads);
    *to = (int)((int64_t)total * (thread + 1) / threads);
}

/* Of the inputs of all rows: what rows of a block are prepared as lies side by side, so threads that share out rows would write to
 * the same lines. */
static inline void share_inputs(int64_t k, int thread, int threads, int64_t *from, int64_t *to) {
    int first, last;
    share((int)((k + BLOCK - 1) / BLOCK), thread, threads, &first, &last);
    *from = (int64_t)first * BLOCK;
    *to = (int64_t)last * BLOCK < k ? (int64_t)last * BLOCK : k;
}

#endif
