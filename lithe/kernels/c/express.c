/* A whole pass in one call: the embeddings of its tokens (or states that are given), its layers, copies of the stream behind those
 * that are looked at, the final norm and the head of the rows asked for. What calls it prepares little more than numbers, so that a
 * pass of few rows is little more than its kernels.
 */
#define _GNU_SOURCE
#include "express.h"
#include "simd.h"

#include <math.h>
#include <time.h>

/* layer.c and product.c, as Python calls them: what their pointers lead to is not looked at here. */
void lithe_layers(const void *layers, const void *places, int32_t count, const void *pass);
void lithe_head(const Packed *w, const float *x, const float *weight, float eps, const float *bias, float *y, int32_t rows,
                int32_t threads);
int64_t lithe_rows(const Packed *w, const int64_t *rows, int64_t count, float *out);
void lithe_norm(const float *x, const float *weight, float *out, int32_t width, int32_t rows, float eps);

/* The embeddings of all ids into x; returns the first place whose id has none, or -1. */
static int64_t embed(const Express *all) {
    const int64_t width = all->width;
    if (all->embed) {
        const int64_t wrong = lithe_rows(all->embed, all->ids, all->row_count, all->x);
        for (int64_t i = 0; all->rounded && i < all->row_count * width; i++) all->x[i] = bf16_f32(f32_bf16(all->x[i]));
        return wrong;
    }
    for (int64_t r = 0; r < all->row_count; r++) {
        const int64_t id = all->ids[r];
        if (id < 0 || id >= all->ids_most) return r;
        if (!all->rounded) memcpy(all->x + r * width, (const float *)all->table + id * width, sizeof(float) * width);
        else for (int64_t i = 0; i < width; i++) all->x[r * width + i] = bf16_f32(((const uint16_t *)all->table)[id * width + i]);
    }
    return -1;
}

/* Each row sees what the one above it does, and itself; returns whether all have theirs before them. */
static int see(const Express *all) {
    const int64_t span = all->span;
    for (int64_t r = 0; r < all->row_count; r++) {
        const int64_t i = r % span, parent = all->parents[r];
        if (parent >= i || parent < -1) return 0;
        if (parent >= 0) memcpy(all->among + r * span, all->among + (r - i + parent) * span, span);
        else memset(all->among + r * span, 0, span);
        all->among[r * span + i] = 1;
    }
    return 1;
}

int64_t lithe_express(const Express *all) {
    const int64_t width = all->width, size = all->row_count * width, wrong = all->start ? -1 : embed(all);
    if (wrong >= 0) return wrong;
    if (all->tree && !see(all)) return -2;
    *all->sees = all->tree ? all->among : NULL;
    if (all->start) memcpy(all->x, all->start, sizeof(float) * size);
    for (const Leg *leg = all->legs; leg < all->legs + all->leg_count; leg++) {
        all->halves[0] = leg->attn, all->halves[1] = leg->mlp;
        lithe_layers(leg->layers, leg->places, leg->count, all->rows);
        if (leg->tap >= 0) memcpy(all->taps + leg->tap * size, all->x, sizeof(float) * size);
    }
    if (all->final >= 0) lithe_norm(all->x, all->norm, all->taps + all->final * size, all->width, all->row_count, all->eps);
    if (all->many)
        lithe_head(all->end, all->x + all->first * width, all->norm, all->eps, all->bias, all->y, all->many, all->threads);
    return -1;
}

/* The lowest id among the largest of scores [width]; -1 where that is infinite or one is no number. */
int32_t lithe_best(const float *scores, int32_t width) {
    enum { PIECE = 32 };
    float best = -INFINITY;
    int32_t found = -1;
    for (int32_t at = 0; at < width; at += PIECE) {
        const int32_t end = at + PIECE < width ? at + PIECE : width;
        int any = 0;
        for (int32_t i = at; i < end; i++) any |= !(scores[i] <= best);
        for (int32_t i = at; any && i < end; i++) {
            if (scores[i] != scores[i]) return -1;
            if (scores[i] > best) best = scores[found = i];
        }
    }
    return best == INFINITY ? -1 : found;
}

double lithe_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

/* The chance of the largest of the scores. */
static float chance(const float *scores, int32_t width, float top) {
    vf sum = vf_set1(0);
    int32_t i = 0;
    for (; i + LANES <= width; i += LANES) sum += vf_exp_low(vf_load(scores + i) - top);
    float rest[LANES];
    for (int32_t l = 0; l < LANES; l++) rest[l] = i + l < width ? scores[i + l] - top : -INFINITY;
    return 1 / vf_sum(sum + vf_exp_low(vf_load(rest)));
}

/* Notes step `step` of each sequence; returns whether another may follow, or -1 where some logits leave no token. */
static int note(const Run *run, int32_t step) {
    int more = 1;
    for (int32_t b = 0; b < run->count; b++) {
        const float *scores = run->next->y + (int64_t)b * run->next->end->n;
        const int32_t token = run->found[step * run->count + b] = lithe_best(scores, run->known);
        if (token < 0) return -1;
        for (int32_t e = 0; e < run->end_count; e++) more &= token != run->ends[e];
        if (run->floor > 0) more &= chance(scores, run->known, scores[token]) >= run->floor;
        run->ids[b] = token;
    }
    return more;
}

int64_t lithe_run(const Run *run) {
    const double until = lithe_clock() + run->seconds;
    Express next = *run->next;
    for (int32_t step = 0; step < run->most; step++) {
        for (int32_t b = 0; step && b < run->count; b++) run->pos[b]++, run->lengths[b]++;
        next.taps = run->first->taps + (int64_t)(run->first->row_count - 1 + step) * next.width;
        const int64_t wrong = lithe_express(step ? &next : run->first);
        if (wrong >= 0) return -1 - wrong;
        const int more = note(run, step);
        if (more < 0) return step;
        if (!more || lithe_clock() >= until) return step + 1;
    }
    return run->most;
}
