/* Copying drafts over random texts, under sanitizers: every access within what was allocated, nothing left at the end. */
#include "../../lithe/kernels/c/draft.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VOCAB = 12, LONGEST = 900, MOST = 16, K = 4 };

int32_t lithe_suffix(void *state, const Asked *asked, int32_t *told);
int32_t lithe_lookup(void *state, const Asked *asked, int32_t *told);
int32_t lithe_recycle(void *state, const Asked *asked, int32_t *told);
void lithe_recycle_seen(void *state, const Seen *seen);
void lithe_suffix_keep(void *state, const int32_t *tokens, int32_t count);
void lithe_suffix_forget(void *state, int64_t number);
void lithe_suffix_begin(void *state);
void lithe_suffix_end(void *state);
void lithe_lookup_forget(void *state, int64_t number);
void lithe_lookup_end(void *state);
int32_t lithe_blend(void *state, const Asked *asked, int32_t *told);
void lithe_blend_seen(void *state, const Seen *seen);

/* As copying.py has them. */
typedef struct {
    double alpha, offset, floor;
    const double *costs;
    int32_t cost_count, depth, most, tree, outputs, limit;
    int64_t held[32];
} Suffixes;
typedef struct {
    int32_t ngram, most, last;
    int64_t held[32];
} Lookup;
typedef struct {
    int32_t *table;
    const int32_t *slots;
    double *right, *tested;
    int32_t vocab, k, most, slot_count, levels, accepted;
} Recycled;
typedef struct {
    const Voice *all;
    Count *table;
    const double *costs;
    Node *nodes;
    int32_t *order;
    int32_t many, keep, merged, learns;
} Blend;

int main(void) {
    static Count table[(1 << 6) * 4 * 6 * 5];
    static int32_t candidates[VOCAB * K], ids[LONGEST];
    static double right[2 * K], tested[2] = {1.0, 1.0};
    static const int32_t slots[] = {-1, 0, 1, -1, 1, 1, 0, 0, 2, 2, 3, 3};
    double costs[MOST + 1];
    float scores[(MOST + 1) * VOCAB];
    Node nodes[3 * MOST + 1];
    int32_t order[MOST], told[3 * MOST], path[MOST], tokens[MOST + 1];
    Suffixes suffix = {2.0, 1.0, 0.0, NULL, 0, 20, MOST, 1, 1, 500, {0}};
    Lookup lookup = {3, MOST, 0, {0}};
    Recycled recycled = {candidates, slots, right, tested, VOCAB, K, MOST, 4, 2, 0};
    const Voice all[] = {{lithe_suffix, NULL, &suffix, MOST, {1, 2}},
                         {lithe_lookup, NULL, &lookup, MOST, {4, 4}},
                         {lithe_recycle, lithe_recycle_seen, &recycled, MOST, {8, 8}}};
    Blend blend = {all, table, costs, nodes, order, 3, MOST, 0, 1};
    int drafted = 0;
    srand(1);
    for (int n = 0; n <= MOST; n++) costs[n] = 1.0 + 0.01 * n;
    lithe_suffix_begin(&suffix);
    for (int64_t text = 0; text < 12; text++) {
        int32_t from = 0;
        for (int i = 0; i < LONGEST; i++) ids[i] = i > 40 && rand() % 5 ? ids[i - 7 - rand() % 2] : rand() % VOCAB;
        for (int32_t end = 1; end < LONGEST; end += 1 + rand() % 40) {
            int32_t *given = malloc(sizeof *given * (end - from));
            memcpy(given, ids + from, sizeof *given * (end - from));
            const Asked asked = {text, given, from, end - from, ids[end - 1], 1 + rand() % MOST};
            const int32_t kept = lithe_blend(&blend, &asked, told);
            free(given);
            if (kept < 0 || kept > MOST) return printf("%d guesses\n", kept), 1;
            tokens[0] = ids[end - 1];
            for (int32_t i = 0; i < kept; i++) {
                tokens[i + 1] = told[i];
                if (told[MOST + i] < 0 || told[MOST + i] > i) return printf("node %d follows %d\n", i, told[MOST + i]), 1;
            }
            for (int32_t i = 0; i < (kept + 1) * VOCAB; i++) scores[i] = (float)rand();
            path[0] = 1;
            const Seen seen = {tokens, path, scores, VOCAB, kept + 1, kept > 0, rand() % VOCAB, VOCAB};
            lithe_blend_seen(&blend, &seen);
            drafted += kept, from = end;
        }
        const Asked behind = {text, ids, from + 1, 1, 0, 4};
        if (lithe_suffix(&suffix, &behind, told) >= 0) return printf("a text with a gap was read\n"), 1;
        lithe_suffix_keep(&suffix, ids, LONGEST);
        if (text % 2) lithe_suffix_forget(&suffix, text), lithe_lookup_forget(&lookup, text);
    }
    lithe_suffix_end(&suffix), lithe_lookup_end(&lookup);
    return drafted < 1000;
}
