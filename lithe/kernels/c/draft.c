// What drafts do each round beside passes: the largest scores of rows; trees of several sources merged, learnt of, and cut to
// what pays. The same as ops/rank.py and ops/merge.py, to the last bit where numbers are concerned.
#include <stdint.h>
#include <string.h>

#include "draft.h"

enum { RANKS = 4, REACHES = 6, DEPTHS = 4, MOST_RANKED = 64, BLOCK = 32 };
static const double PRIOR = 3.0, MEMORY = 0.985;

// The k <= 64 largest scores of each of some rows, falling, row of[r]'s into row places[r] of the table, in turn; among equals the lower id first.
void lithe_top(const float *scores, int64_t stride, const int32_t *of, const int32_t *places, int32_t rows, int32_t width,
               int32_t k, int32_t *table) {
    for (int32_t r = 0; r < rows; r++) {
        const float *x = scores + of[r] * stride;
        int32_t *ids = table + (int64_t)places[r] * k;
        float best[MOST_RANKED];
        int32_t n = 0;
        for (int32_t at = 0; at < width; at += BLOCK) {
            int32_t end = at + BLOCK < width ? at + BLOCK : width;
            if (n == k) {
                int any = 0;
                for (int32_t i = at; i < end; i++) any |= !(x[i] <= best[k - 1]);
                if (!any) continue;
            }
            for (int32_t i = at; i < end; i++) {
                if (n == k && x[i] <= best[k - 1]) continue;
                int32_t place = n < k ? n++ : k - 1;
                for (; place > 0 && x[i] > best[place - 1]; place--) {
                    best[place] = best[place - 1];
                    ids[place] = ids[place - 1];
                }
                best[place] = x[i];
                ids[place] = i;
            }
        }
    }
}

// Counts of a node's kind, and at depth 0 of its family.
static Count *counts(Count *table, const Node *node, int32_t depth) {
    return table + (((int64_t)node->voices * RANKS + node->rank) * REACHES + node->reach) * (DEPTHS + 1) + depth;
}

static double chance(Count *table, const Node *node) {
    const Count *kind = counts(table, node, node->depth < DEPTHS ? node->depth : DEPTHS), *kin = counts(table, node, 0);
    double missed = 1.0, first;
    for (int32_t bits = node->voices; bits; bits &= bits - 1) missed *= 0.5;
    first = 1.0 - missed;
    for (int32_t rank = 0; rank < node->rank; rank++) first *= 0.5;
    return (kind->right + PRIOR * (kin->right + first) / (kin->asked + 1.0)) / (kind->asked + PRIOR);
}

// Add a tree down to `most` tokens deep; returns how many nodes there are then.
static int32_t add(Node *nodes, int32_t n, const int32_t *tokens, const int32_t *parents, const int32_t *voices, int32_t size,
                   int32_t most) {
    int32_t place[size], seen[size], reach = 0, deepest = 0;
    memset(seen, 0, sizeof seen);
    place[0] = 0;
    for (int32_t i = 1; i < size; i++) {
        int32_t rank = seen[parents[i]]++, above = place[parents[i]], here;
        place[i] = -1;
        if (above < 0 || nodes[above].depth >= most) continue;
        for (here = above + 1; here < n && (nodes[here].parent != above || nodes[here].token != tokens[i]); here++) {}
        if (here == n) nodes[n++] = (Node){tokens[i], above, nodes[above].depth + 1, 0, RANKS - 1, 0};
        nodes[here].voices |= voices[i];
        if (rank < nodes[here].rank) nodes[here].rank = rank;
        if (nodes[here].depth > deepest) deepest = nodes[here].depth;
        place[i] = here;
    }
    for (; deepest; deepest >>= 1) reach++;
    if (reach > REACHES - 1) reach = REACHES - 1;
    for (int32_t i = 1; i < size; i++)
        if (place[i] > 0 && nodes[place[i]].reach < reach) nodes[place[i]].reach = reach;
    return n;
}

// Merge trees, of sizes[i] nodes each, one behind the other in tokens, parents and voices, over one root. order: the nodes
// that give the most tokens for their time, parents first, of which there are as many as is returned; told: their tokens, their
// parents' numbers among them with the root as 0, and their voices, `keep` of each. costs: of 0 to `keep`.
int32_t lithe_merge(int32_t root, int32_t most, int32_t trees, const int32_t *sizes, const int32_t *tokens,
                    const int32_t *parents, const int32_t *voices, Count *table, const double *costs, int32_t keep,
                    Node *nodes, int32_t *merged, int32_t *order, int32_t *told) {
    int32_t n = 1, kept = 0, best = 0;
    nodes[0] = (Node){root, -1, 0, 0, 0, 0};
    for (int32_t t = 0; t < trees; tokens += sizes[t], parents += sizes[t], voices += sizes[t], t++)
        n = add(nodes, n, tokens, parents, voices, sizes[t], most);
    double paths[n], expected = 1.0, gain = 1.0 / costs[0];
    paths[0] = 1.0;
    for (int32_t i = 1; i < n; i++) {
        paths[i] = paths[nodes[i].parent] * chance(table, &nodes[i]);
        if (kept == keep && !(paths[i] > paths[order[kept - 1]])) continue;
        int32_t place = kept < keep ? kept++ : keep - 1;
        for (; place > 0 && paths[i] > paths[order[place - 1]]; place--) order[place] = order[place - 1];
        order[place] = i;
    }
    for (int32_t size = 1; size <= kept; size++) {
        expected += paths[order[size - 1]];
        if (expected / costs[size] > gain) {
            gain = expected / costs[size];
            best = size;
        }
    }
    int32_t number[n];
    number[0] = 0;
    for (int32_t i = 0; i < best; i++) {
        const Node *node = &nodes[order[i]];
        number[order[i]] = i + 1;
        told[i] = node->token, told[keep + i] = number[node->parent], told[2 * keep + i] = node->voices;
    }
    *merged = n;
    return best;
}

// Down the text as it came to be: the children of every node on it were right or wrong.
void lithe_learn(const Node *nodes, int32_t n, const int32_t *truth, int32_t tokens, Count *table) {
    int32_t seen[n]; // of a node that came true, how much of the text it has seen
    seen[0] = 0;
    for (int32_t i = 1; i < n; i++) {
        int32_t at = seen[nodes[i].parent];
        seen[i] = -1;
        if (at < 0 || at >= tokens) continue;
        int right = nodes[i].token == truth[at];
        for (int32_t family = 0; family < 2; family++) {
            Count *known = counts(table, &nodes[i], family ? 0 : nodes[i].depth < DEPTHS ? nodes[i].depth : DEPTHS);
            known->right = MEMORY * known->right + right;
            known->asked = MEMORY * known->asked + 1.0;
        }
        if (right) seen[i] = at + 1;
    }
}
