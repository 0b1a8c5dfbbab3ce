/* Rounds of one greedy text by one call: a draft is asked, one pass reads its tree, the likeliest tokens are followed, rows that came
 * true move up behind the text, and the draft is told. As decode/loop.py has it, whose rounds leave 100 us of Python between passes.
 */
#include "draft.h"
#include "express.h"

void lithe_move(void *const *stores, const int64_t *head_strides, const int32_t *heads, const int64_t *row_bytes,
                int32_t stores_count, const int64_t *from, const int64_t *to, int64_t count);

enum { CANNOT = -2 }; /* a round that is left to Python */

/* A pass of one text, and where the numbers of its rows are written. */
typedef struct {
    Express *pass;
    int64_t *ids, *pos;                            /* [most] */
    int32_t *lengths, *parents, *starts, *rows;    /* [1], [most], [2], [1]: the last two of the pass's own */
    int32_t most, room, positions;                 /* rows that fit; slots of the cache; positions that have rotations */
} Slate;

typedef struct { /* what a cache keeps, as lithe_move takes it */
    void *const *stores;
    const int64_t *head_strides;
    const int32_t *heads;
    const int64_t *row_bytes;
    int64_t count;
} Stores;

typedef struct {
    float draft, verify, walk, observe; /* seconds */
    int32_t tokens, nodes;
} Round;

typedef struct {
    const Voice *draft;
    const Slate *slate;
    const Stores *stores;
    Asked *asked;            /* for the first round; then what is new since what was last read */
    int32_t *told;           /* [3][draft->most] */
    int32_t *found, *voices; /* [most * (draft->most + 1)]: tokens in turn, and who guessed each; -1: nobody */
    Round *rounds;           /* [most] */
    const int32_t *ends;     /* [end_count]: tokens behind which nothing follows */
    double seconds;          /* no round follows one that ended later */
    int32_t length, left, most, end_count; /* cached tokens; how many may still come; most rounds */
} Rounds;

/* Whether rows that stand behind `length` tokens, down to `deepest` further, have room. */
static int fits(const Slate *slate, int32_t length, int32_t rows, int32_t deepest) {
    return rows <= slate->most && length + rows <= slate->room && length + deepest < slate->positions;
}

/* So many rows behind `length` tokens; logits of all, or of the last alone. */
static void set(const Slate *slate, int32_t length, int32_t rows, int32_t tree, int32_t all) {
    Express *pass = slate->pass;
    slate->lengths[0] = length, slate->starts[0] = 0, slate->starts[1] = *slate->rows = rows;
    pass->row_count = pass->span = rows, pass->tree = tree;
    pass->first = all ? 0 : rows - 1, pass->many = all ? rows : 1;
}

/* What is guessed goes to the slate; returns how many rows that is, or CANNOT. tokens: of all rows. */
static int32_t lay(const Rounds *all, int32_t size, int32_t *tokens) {
    const Slate *slate = all->slate;
    const int32_t *parents = all->told + all->draft->most;
    int32_t tree = 0, deepest = 0;
    if (size + 1 > slate->most) return CANNOT;
    slate->ids[0] = tokens[0] = all->asked->root, slate->pos[0] = all->length, slate->parents[0] = -1;
    for (int32_t i = 1; i <= size; i++) {
        const int32_t above = parents[i - 1];
        slate->ids[i] = tokens[i] = all->told[i - 1], slate->parents[i] = above, slate->pos[i] = slate->pos[above] + 1;
        tree |= above != i - 1;
        if (slate->pos[i] - all->length > deepest) deepest = (int32_t)(slate->pos[i] - all->length);
    }
    if (!fits(slate, all->length, size + 1, deepest)) return CANNOT;
    set(slate, all->length, size + 1, tree, 1);
    return size + 1;
}

/* Down the tree as long as it holds the likeliest token: the nodes, and the token behind them, -1 where logits leave none. */
static int32_t follow(const Slate *slate, const int32_t *tokens, int32_t rows, int32_t *path, int32_t *token) {
    const int32_t width = slate->pass->end->n;
    int32_t steps = 0, node = 0;
    for (;;) {
        *token = lithe_best(slate->pass->y + (int64_t)node * width, width);
        int32_t below = node + 1;
        while (below < rows && (slate->parents[below] != node || tokens[below] != *token)) below++;
        if (*token < 0 || below == rows) return steps;
        path[steps++] = node = below;
    }
}

/* Rows of the root and of a path stay behind what is cached. */
static void keep(Rounds *all, const int32_t *path, int32_t steps) {
    const Stores *s = all->stores;
    int64_t from[steps + 1], to[steps + 1];
    int apart = 0;
    for (int32_t i = 0; i < steps; i++) {
        from[i] = all->length + path[i], to[i] = all->length + 1 + i;
        apart |= from[i] != to[i];
    }
    if (apart) lithe_move(s->stores, s->head_strides, s->heads, s->row_bytes, (int32_t)s->count, from, to, steps);
    all->length += steps + 1;
}

/* Note what was found; what is new of the text begins there. Returns whether the text goes on. */
static int note(Rounds *all, const int32_t *tokens, const int32_t *path, int32_t steps, int32_t token) {
    const int32_t *who = all->told + 2 * all->draft->most;
    Asked *asked = all->asked;
    int more = 1;
    asked->ids = all->found, asked->count = steps + 1, asked->root = token;
    for (int32_t i = 0; i <= steps; i++) {
        const int32_t one = i < steps ? tokens[path[i]] : token;
        *all->found++ = one, *all->voices++ = i < steps ? who[path[i] - 1] : -1;
        for (int32_t e = 0; e < all->end_count; e++) more &= one != all->ends[e];
    }
    all->left -= steps + 1, asked->most = all->left - 1;
    return more && all->left > 0;
}

/* One round; returns whether another may follow, CANNOT where there was none. */
static int one(Rounds *all, Round *round) {
    const Voice *draft = all->draft;
    const double begun = lithe_clock();
    const int32_t size = draft->propose(draft->state, all->asked, all->told);
    if (size < 0) return CANNOT;
    all->asked->from += all->asked->count, all->asked->ids += all->asked->count, all->asked->count = 0;
    int32_t tokens[size + 1], path[size + 1], token;
    const int32_t rows = lay(all, size, tokens);
    const double drafted = lithe_clock();
    if (rows < 0 || lithe_express(all->slate->pass) != -1) return CANNOT;
    const double verified = lithe_clock();
    const int32_t steps = follow(all->slate, tokens, rows, path, &token);
    if (token < 0) return CANNOT;
    keep(all, path, steps);
    const int more = note(all, tokens, path, steps, token);
    const double walked = lithe_clock();
    const int32_t width = all->slate->pass->end->n;
    const Seen seen = {tokens, path, all->slate->pass->y, width, rows, steps, token, width};
    if (draft->seen) draft->seen(draft->state, &seen);
    *round = (Round){(float)(drafted - begun), (float)(verified - drafted), (float)(walked - verified),
                     (float)(lithe_clock() - walked), steps + 1, rows};
    return more;
}

/* Returns how many rounds there were. */
int32_t lithe_rounds(Rounds *all) {
    const double until = lithe_clock() + all->seconds;
    for (int32_t n = 0; n < all->most; n++) {
        const int more = one(all, all->rounds + n);
        if (more == CANNOT) return n;
        if (!more || lithe_clock() >= until) return n + 1;
    }
    return all->most;
}

/* ---- A model that drafts the likeliest tokens in turn. */

typedef struct {
    const Slate *wide, *single; /* of what it has not read, and of one token */
    int32_t *guesses;           /* [most]: the last ones */
    double floor;               /* none follows one less likely */
    int32_t most, known, read, held; /* known: ids that count; read: tokens of the text; held: guesses cached behind them */
} Chain;

int32_t lithe_chain(void *state, const Asked *asked, int32_t *told) {
    Chain *s = state;
    const Slate *wide = s->wide, *single = s->single;
    const int32_t most = asked->most < s->most ? asked->most : s->most;
    if (most <= 0) return 0;
    int32_t same = 0;
    while (same < s->held && same < asked->count - 1 && s->guesses[same] == asked->ids[same]) same++;
    const int32_t rows = asked->count - same, length = asked->from + same, last = length + rows - 1;
    if (asked->from != s->read || rows < 1 || !fits(wide, length, rows, rows + most - 2) || last + most > single->room) return CANNOT;
    for (int32_t i = 0; i < rows; i++) wide->ids[i] = asked->ids[same + i], wide->pos[i] = length + i;
    set(wide, length, rows, 0, 0);
    set(single, last, 1, 0, 0);
    single->ids[0] = asked->ids[asked->count - 1], single->pos[0] = last;
    const Run run = {wide->pass, single->pass, single->ids, single->pos, single->lengths, s->guesses, NULL, s->floor, 3600.0,
                     1, most, s->known, 0};
    const int64_t size = lithe_run(&run);
    if (size < 0) return CANNOT;
    for (int32_t i = 0; i < size; i++) told[i] = s->guesses[i], told[s->most + i] = i, told[2 * s->most + i] = 0;
    s->read = asked->from + asked->count, s->held = size ? (int32_t)size - 1 : 0;
    return (int32_t)size;
}
