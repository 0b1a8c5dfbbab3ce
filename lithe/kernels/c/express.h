/* A whole pass as one call, and several of them: mirrored by kernels/express.py. */
#ifndef EXPRESS_H
#define EXPRESS_H

#include "lithe.h"

/* Layers that follow each other, with the same halves of each; behind them the stream is copied to a place among the taps. */
typedef struct {
    const void *layers, *places;
    int32_t count, attn, mlp, tap; /* tap: -1 where nobody looks */
} Leg;

typedef struct {
    const Packed *embed, *end;          /* embed: NULL where the embeddings are a plain `table` */
    const void *table;                  /* [ids_most][width] */
    const Leg *legs;                    /* [leg_count] */
    const void *rows;                   /* the pass, which reads x and writes to x */
    int32_t *halves;                    /* its attn and mlp */
    const int64_t *ids;                 /* [row_count] */
    const float *start;                 /* [row_count][width] to begin from instead of embeddings; or NULL */
    const int32_t *parents;             /* of each row among those of its sequence, or -1 */
    uint8_t *among;                     /* [row_count][span]: room for who sees whom */
    const uint8_t **sees;               /* where the pass says who does: NULL where a row sees those up to itself */
    const float *norm, *bias;
    float *x, *y, *taps; /* [row_count][width], [many][end->n], [taps][row_count][width] */
    float eps;
    int32_t width, ids_most, leg_count, row_count, rounded; /* rounded: embeddings are bfloat16 */
    int32_t first, many, threads, final;                    /* logits of `many` rows from `first`; the tap that is normed, or -1 */
    int32_t span, tree;                                     /* rows of a sequence; whether they are a tree by `parents` */
} Express;

/* Passes one after the other: `first`, then `next` over the likeliest token behind the last row of each sequence. */
typedef struct {
    const Express *first, *next; /* next: one row of each sequence; the same as first where that has no more */
    int64_t *ids, *pos;          /* [count], of next: as they would be if first had had its last rows alone */
    int32_t *lengths;            /* [count], likewise */
    int32_t *found;              /* [most][count]: the tokens */
    const int32_t *ends;         /* [end_count]: tokens behind which nothing follows */
    double floor, seconds;       /* no step follows a token less likely than floor, nor one found after so many seconds */
    int32_t count, most, known, end_count; /* known: how many of the logits count */
} Run;

/* Returns the first place whose id has no embedding, -1 where all is well, -2 for what is no tree. */
int64_t lithe_express(const Express *all);
int32_t lithe_best(const float *scores, int32_t width);
/* Returns how many steps were found; -1 - the first place whose id has no embedding. A tap of one sequence gets row after row. */
int64_t lithe_run(const Run *run);
double lithe_clock(void); /* seconds */

#endif
