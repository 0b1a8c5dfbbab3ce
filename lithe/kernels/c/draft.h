/* What drafts share, mirrored by kernels/draft.py and kernels/copying.py. */
#ifndef DRAFT_H
#define DRAFT_H

#include <stdint.h>

typedef struct {
    int32_t token, parent, depth, voices, rank, reach;
} Node;

typedef struct {
    double right, asked;
} Count;

/* A text that goes on: its number, `count` new tokens behind the first `from`, its last token, and how deep a draft may be. */
typedef struct {
    int64_t number;
    const int32_t *ids;
    int32_t from, count, root, most;
} Asked;

/* What a pass told of a tree: its tokens, the nodes that were accepted, the token behind them, and the rows' scores, or NULL. */
typedef struct {
    const int32_t *tokens, *path;
    const float *scores;
    int64_t stride;
    int32_t size, steps, token, width;
} Seen;

/* A draft: how many guesses it makes, or a number below 0 where it cannot; into `told` `most` tokens, as many parents with the root as
 * 0, and who speaks: of a single draft which of its two voices. */
typedef struct {
    int32_t (*propose)(void *state, const Asked *asked, int32_t *told);
    void (*seen)(void *state, const Seen *seen); /* or NULL */
    void *state;
    int32_t most, voices[2];
} Voice;

void lithe_top(const float *scores, int64_t stride, const int32_t *of, const int32_t *places, int32_t rows, int32_t width,
               int32_t k, int32_t *table);
int32_t lithe_merge(int32_t root, int32_t most, int32_t trees, const int32_t *sizes, const int32_t *tokens,
                    const int32_t *parents, const int32_t *voices, Count *table, const double *costs, int32_t keep,
                    Node *nodes, int32_t *merged, int32_t *order, int32_t *told);
void lithe_learn(const Node *nodes, int32_t n, const int32_t *truth, int32_t tokens, Count *table);

#endif
