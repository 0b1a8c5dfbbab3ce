/* Drafts that copy, each asked by one call: what most often followed the longest match (suffix automata), what followed the same
 * words, the runners-up of earlier passes; and several of them asked, merged and learnt of by one. The same guesses, to the last, as
 * ops/suffix.py, decode/grams.py and the methods have without kernels. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "draft.h"

enum { ANYWHERE = -1, GONE = -2 }; /* every text; one that is not where its new tokens begin */
enum { HELD = 256 };               /* bytes that copying.py leaves for what is a draft's own */

static void *more(void *old, size_t bytes) {
    void *made = realloc(old, bytes);
    if (!made) abort();
    return made;
}

/* ---- A suffix automaton: states with links, lengths and counts; their edges in the order they came, found by a hash table. */

typedef struct {
    int32_t link, length, count, first, last; /* first, last: edges, -1 none */
} State;

typedef struct {
    int32_t token, from, to, next;
} Edge;

typedef struct {
    State *states;
    Edge *edges;
    int32_t *slots; /* edge + 1 by hash of state and token, 0 free */
    int32_t size, room, edge_count, edge_room, slot_count, last;
} Index;

static int32_t new_state(Index *a, int32_t length, int32_t count) {
    if (a->size == a->room) a->states = more(a->states, sizeof(State) * (a->room = a->room ? 2 * a->room : 256));
    a->states[a->size] = (State){-1, length, count, -1, -1};
    return a->size++;
}

static void empty(Index *a) {
    free(a->states), free(a->edges), free(a->slots);
    memset(a, 0, sizeof *a);
    new_state(a, 0, 0);
}

static uint32_t slot_of(const Index *a, int32_t state, int32_t token) {
    const uint64_t mixed = ((uint64_t)(uint32_t)state << 32 | (uint32_t)token) * 0x9e3779b97f4a7c15u;
    return (uint32_t)(mixed >> 32) & (uint32_t)(a->slot_count - 1);
}

/* The edge of a state by a token, or -1. */
static int32_t edge(const Index *a, int32_t state, int32_t token) {
    if (!a->slot_count) return -1;
    for (uint32_t at = slot_of(a, state, token);; at = (at + 1) & (uint32_t)(a->slot_count - 1)) {
        const int32_t found = a->slots[at] - 1;
        if (found < 0 || (a->edges[found].from == state && a->edges[found].token == token)) return found;
    }
}

static void enter(Index *a, int32_t which) {
    uint32_t at = slot_of(a, a->edges[which].from, a->edges[which].token);
    while (a->slots[at]) at = (at + 1) & (uint32_t)(a->slot_count - 1);
    a->slots[at] = which + 1;
}

static void new_edge(Index *a, int32_t from, int32_t token, int32_t to) {
    if (a->edge_count == a->edge_room) a->edges = more(a->edges, sizeof(Edge) * (a->edge_room = a->edge_room ? 2 * a->edge_room : 256));
    if (2 * (a->edge_count + 1) > a->slot_count) {
        free(a->slots);
        a->slot_count = a->slot_count ? 2 * a->slot_count : 1024;
        a->slots = calloc(a->slot_count, sizeof *a->slots);
        if (!a->slots) abort();
        for (int32_t i = 0; i < a->edge_count; i++) enter(a, i);
    }
    const int32_t made = a->edge_count++;
    a->edges[made] = (Edge){token, from, to, -1};
    State *state = a->states + from;
    if (state->last < 0) state->first = made;
    else a->edges[state->last].next = made;
    state->last = made;
    enter(a, made);
}

/* The state after `token` whose longest string is just one longer: split off where the present one's is longer. */
static int32_t exact(Index *a, int32_t state, int32_t token) {
    const int32_t after = a->edges[edge(a, state, token)].to;
    if (a->states[after].length == a->states[state].length + 1) return after;
    const int32_t split = new_state(a, a->states[state].length + 1, a->states[after].count);
    for (int32_t e = a->states[after].first; e >= 0; e = a->edges[e].next) new_edge(a, split, a->edges[e].token, a->edges[e].to);
    a->states[split].link = a->states[after].link, a->states[after].link = split;
    for (int32_t e; state >= 0 && (e = edge(a, state, token)) >= 0 && a->edges[e].to == after; state = a->states[state].link)
        a->edges[e].to = split;
    return split;
}

static void push(Index *a, int32_t token) {
    int32_t state = a->last;
    a->last = new_state(a, a->states[state].length + 1, 0);
    for (; state >= 0 && edge(a, state, token) < 0; state = a->states[state].link) new_edge(a, state, token, a->last);
    const int32_t link = state < 0 ? 0 : exact(a, state, token);
    a->states[a->last].link = link;
    for (state = a->last; state > 0; state = a->states[state].link) a->states[state].count++;
}

/* ---- Texts by number, each read on as it grows. */

typedef struct {
    int64_t number;
    int32_t *ids;
    int32_t size, room;
    Index index;                     /* where a suffix is looked for */
    int32_t ended, read, state, length; /* its match among finished outputs: how many these were, and how far it was read */
} Text;

typedef struct {
    Text **held;
    int32_t count, room;
} Texts;

static void drop(Texts *all, int32_t which) {
    Text *text = all->held[which];
    free(text->ids), free(text->index.states), free(text->index.edges), free(text->index.slots), free(text);
    all->held[which] = all->held[--all->count];
}

static void forget(Texts *all, int64_t number) {
    for (int32_t i = all->count - 1; i >= 0; i--)
        if (number < 0 || all->held[i]->number == number) drop(all, i);
}

/* The text of that number with what is new of it; NULL where that does not begin where it ends. */
static Text *read_on(Texts *all, const Asked *asked) {
    Text *text = NULL;
    if (!asked->from) forget(all, asked->number);
    for (int32_t i = 0; i < all->count && !text; i++)
        if (all->held[i]->number == asked->number) text = all->held[i];
    if (!text && !asked->from) {
        if (all->count == all->room) all->held = more(all->held, sizeof(Text *) * (all->room = all->room ? 2 * all->room : 8));
        text = all->held[all->count++] = calloc(1, sizeof *text);
        if (!text) abort();
        text->number = asked->number, text->ended = -1;
    }
    if (!text || text->size != asked->from) return NULL;
    if (text->size + asked->count > text->room) {
        text->room = 2 * (text->size + asked->count);
        text->ids = more(text->ids, sizeof(int32_t) * text->room);
    }
    memcpy(text->ids + text->size, asked->ids, sizeof(int32_t) * asked->count);
    text->size += asked->count;
    return text;
}

/* Guess i of `most`. */
static void say(int32_t *told, int32_t most, int32_t i, int32_t token, int32_t parent, int32_t who) {
    told[i] = token, told[most + i] = parent, told[2 * most + i] = who;
}

/* ---- What most often followed the longest match. */

typedef struct {
    double chance;
    int32_t depth, parent, token, state;
} Guess;

typedef struct {
    Guess *all;
    int32_t count, room;
} Heap;

typedef struct {
    double alpha, offset, floor;
    const double *costs; /* of 0, 1, ... guesses, to draft what pays; or NULL */
    int32_t cost_count, depth, most, tree, outputs, limit;
    /* from here on its own */
    Texts texts;
    Index ended_index;
    int32_t ended;
    Heap heap;
    Guess *found, *best, *text_best;
} Suffixes;

_Static_assert(sizeof(Suffixes) - offsetof(Suffixes, texts) <= HELD, "copying.py leaves too little room");

static int before(const Guess *a, const Guess *b) {
    if (a->chance != b->chance) return a->chance > b->chance;
    if (a->depth != b->depth) return a->depth < b->depth;
    return a->parent != b->parent ? a->parent < b->parent : a->token < b->token;
}

static void put(Heap *heap, Guess guess) {
    if (heap->count == heap->room) heap->all = more(heap->all, sizeof(Guess) * (heap->room = heap->room ? 2 * heap->room : 64));
    int32_t at = heap->count++;
    for (; at && before(&guess, heap->all + (at - 1) / 2); at = (at - 1) / 2) heap->all[at] = heap->all[(at - 1) / 2];
    heap->all[at] = guess;
}

static Guess take(Heap *heap) {
    const Guess first = heap->all[0], last = heap->all[--heap->count];
    int32_t at = 0;
    for (int32_t below; (below = 2 * at + 1) < heap->count; at = below) {
        if (below + 1 < heap->count && before(heap->all + below + 1, heap->all + below)) below++;
        if (!before(heap->all + below, &last)) break;
        heap->all[at] = heap->all[below];
    }
    heap->all[at] = last;
    return first;
}

/* The likeliest continuations of a state, parents first; their number is returned. */
static int32_t expand(Suffixes *s, const Index *a, int32_t state, int32_t budget, int32_t most) {
    int32_t n = 0;
    s->heap.count = 0;
    put(&s->heap, (Guess){1.0, 0, -1, -1, state});
    while (s->heap.count) {
        const Guess one = take(&s->heap);
        if (one.depth) s->found[n++] = one;
        if (n == budget) break;
        int64_t total = 0;
        int32_t heaviest = -1;
        for (int32_t e = a->states[one.state].first; e >= 0; e = a->edges[e].next) {
            total += a->states[a->edges[e].to].count;
            if (heaviest < 0 || a->states[a->edges[e].to].count > a->states[a->edges[heaviest].to].count) heaviest = e;
        }
        if (one.depth == most || !total) continue;
        for (int32_t e = s->tree ? a->states[one.state].first : heaviest; e >= 0; e = s->tree ? a->edges[e].next : -1) {
            const double chance = one.chance * a->states[a->edges[e].to].count / (double)total;
            if (chance >= s->floor && a->edges[e].token >= 0)
                put(&s->heap, (Guess){chance, one.depth + 1, n - 1, a->edges[e].token, a->edges[e].to});
        }
    }
    return n;
}

/* The best draft over a match of that length and its suffixes, into s->best; expected tokens are returned. */
static double best_of(Suffixes *s, const Index *a, int32_t state, int32_t length, int32_t most, int32_t *size) {
    double best = 0.0;
    *size = 0;
    for (; state > 0; state = a->states[state].link) {
        int32_t matched = a->states[state].length < length ? a->states[state].length : length;
        if (matched > s->depth) matched = s->depth;
        const double wanted = s->alpha * matched + s->offset;
        const int32_t budget = wanted < s->most ? (int32_t)wanted : s->most;
        if (budget <= best) break;
        const int32_t n = expand(s, a, state, budget, most);
        double sum = 0.0;
        for (int32_t i = 0; i < n; i++) sum += s->found[i].chance;
        if (sum > best) {
            Guess *spare = s->best;
            best = sum, *size = n, s->best = s->found, s->found = spare;
        }
    }
    return best;
}

/* The longest end of the text that outputs hold; only new tokens are read. */
static void match(Suffixes *s, Text *text) {
    const Index *a = &s->ended_index;
    if (text->ended != s->ended) { /* an index that has grown may have split the state */
        text->read = text->size > s->depth ? text->size - s->depth : 0;
        text->state = text->length = 0;
    }
    for (; text->read < text->size; text->read++) {
        const int32_t token = text->ids[text->read];
        int32_t e;
        while ((e = edge(a, text->state, token)) < 0 && text->state) {
            text->state = a->states[text->state].link;
            text->length = a->states[text->state].length;
        }
        if (e >= 0) text->state = a->edges[e].to, text->length++;
    }
    while (text->state && a->states[a->states[text->state].link].length >= s->depth) text->state = a->states[text->state].link;
    text->ended = s->ended;
}

/* Voices: 0 where the text itself was copied, 1 where outputs were. */
int32_t lithe_suffix(void *state, const Asked *asked, int32_t *told) {
    Suffixes *s = state;
    Text *text = read_on(&s->texts, asked);
    if (!text) return GONE;
    if (!text->index.size) empty(&text->index);
    for (int32_t i = text->size - asked->count; i < text->size; i++) push(&text->index, text->ids[i]);
    int32_t size, further = 0, which = 0;
    const State *states = text->index.states;
    const int32_t link = states[text->index.last].link; /* the longest suffix that occurs earlier as well */
    const double own = link < 0 ? (size = 0, 0.0) : best_of(s, &text->index, link, states[link].length, asked->most, &size);
    const Guess *guesses = s->best;
    if (s->outputs) {
        Guess *kept = s->best;
        s->best = s->text_best, s->text_best = kept;
        match(s, text);
        if (best_of(s, &s->ended_index, text->state, text->length, asked->most, &further) > own)
            which = 1, size = further, guesses = s->best;
        else guesses = s->text_best;
    }
    if (s->costs) { /* the likeliest come first */
        double expected = 1.0, gain = 1.0 / s->costs[0];
        int32_t pays = 0;
        for (int32_t n = 1; n <= size && n < s->cost_count; n++) {
            expected += guesses[n - 1].chance;
            if (expected / s->costs[n] > gain) gain = expected / s->costs[n], pays = n;
        }
        size = pays;
    }
    for (int32_t i = 0; i < size; i++) say(told, s->most, i, guesses[i].token, guesses[i].parent + 1, which);
    return size;
}

/* Index a finished output; a token no model has keeps it apart from the next. */
void lithe_suffix_keep(void *state, const int32_t *tokens, int32_t count) {
    Suffixes *s = state;
    if (!s->ended_index.size || s->ended_index.size > 2 * (int64_t)s->limit) empty(&s->ended_index);
    s->ended++;
    for (int32_t i = 0; i < count; i++) push(&s->ended_index, tokens[i]);
    push(&s->ended_index, -s->ended);
}

void lithe_suffix_forget(void *state, int64_t number) { forget(&((Suffixes *)state)->texts, number); }
int32_t lithe_suffix_states(const void *state) { return ((const Suffixes *)state)->ended_index.size; }

void lithe_suffix_begin(void *state) {
    Suffixes *s = state;
    empty(&s->ended_index);
    s->found = more(NULL, sizeof(Guess) * s->most), s->best = more(NULL, sizeof(Guess) * s->most);
    s->text_best = more(NULL, sizeof(Guess) * s->most);
}

void lithe_suffix_end(void *state) {
    Suffixes *s = state;
    forget(&s->texts, ANYWHERE);
    free(s->texts.held), free(s->ended_index.states), free(s->ended_index.edges), free(s->ended_index.slots);
    free(s->heap.all), free(s->found), free(s->best), free(s->text_best);
}

/* ---- What followed the same words. */

typedef struct {
    int32_t ngram, most, last;
    Texts texts; /* its own */
} Lookup;

/* Behind which place the longest of the endings of up to `ngram` tokens stood first, or last; 0 where none did. */
static int32_t place(const int32_t *ids, int32_t size, int32_t ngram, int32_t last) {
    enum { PIECE = 32 };
    int32_t best = 0, found = 0;
    const int32_t token = ids[size - 1];
    for (int32_t from = 0; from < size - 1; from += PIECE) {
        const int32_t to = from + PIECE < size - 1 ? from + PIECE : size - 1;
        int any = 0;
        for (int32_t i = from; i < to; i++) any |= ids[i] == token;
        for (int32_t i = from; any && i < to; i++) {
            int32_t n = 0;
            while (n < ngram && n <= i && ids[i - n] == ids[size - 1 - n]) n++;
            if (n > best || (last && n && n == best)) best = n, found = i + 1;
            if (best == ngram && !last) return found;
        }
    }
    return found;
}

int32_t lithe_lookup(void *state, const Asked *asked, int32_t *told) {
    Lookup *s = state;
    const Text *text = read_on(&s->texts, asked);
    if (!text) return GONE;
    const int32_t at = place(text->ids, text->size, s->ngram, s->last);
    int32_t size = at ? text->size - at : 0;
    if (size > asked->most) size = asked->most;
    if (size > s->most) size = s->most;
    for (int32_t i = 0; i < size; i++) say(told, s->most, i, text->ids[at + i], i, 0);
    return size;
}

void lithe_lookup_forget(void *state, int64_t number) { forget(&((Lookup *)state)->texts, number); }
void lithe_lookup_end(void *state) {
    forget(&((Lookup *)state)->texts, ANYWHERE);
    free(((Lookup *)state)->texts.held);
}

/* ---- The runners-up of earlier passes. */

typedef struct {
    int32_t *table;       /* [vocab][k]: candidates, 0 where there is none */
    const int32_t *slots; /* [slot_count][3]: the slot above, -1 the root; rank; depth */
    double *right, *tested; /* [levels][k], [levels] */
    int32_t vocab, k, most, slot_count, levels, accepted; /* accepted: only rows of accepted nodes are noted */
} Recycled;

int32_t lithe_recycle(void *state, const Asked *asked, int32_t *told) {
    const Recycled *s = state;
    int32_t number[s->slot_count + 1], size = 0;
    if (asked->root < 0 || asked->root >= s->vocab) return 0;
    number[0] = 0; /* by slot + 1, -1 where it stayed empty */
    for (int32_t i = 0; i < s->slot_count; i++) {
        const int32_t above = number[s->slots[3 * i] + 1];
        number[i + 1] = -1;
        if (above < 0 || s->slots[3 * i + 2] > asked->most) continue;
        const int32_t token = s->table[(int64_t)(above ? told[above - 1] : asked->root) * s->k + s->slots[3 * i + 1]];
        if (!token) continue;
        say(told, s->most, size, token, above, 0);
        number[i + 1] = ++size;
    }
    return size;
}

/* Along the walk the true next tokens are known: at which rank the table had them. Then rows write their candidates to it. */
void lithe_recycle_seen(void *state, const Seen *seen) {
    Recycled *s = state;
    int32_t rows[seen->size], places[seen->size];
    for (int32_t i = 0; i < seen->size; i++)
        if (seen->tokens[i] < 0 || seen->tokens[i] >= s->vocab) return;
    for (int32_t d = 0; d <= seen->steps; d++) {
        const int32_t here = d ? seen->path[d - 1] : 0, truth = d < seen->steps ? seen->tokens[seen->path[d]] : seen->token;
        const int32_t level = d < s->levels ? d : s->levels - 1, *row = s->table + (int64_t)seen->tokens[here] * s->k;
        s->tested[level] += 1.0;
        for (int32_t rank = 0; truth && rank < s->k; rank++) {
            if (row[rank] != truth) continue;
            s->right[level * s->k + rank] += 1.0;
            break;
        }
    }
    const int32_t count = s->accepted ? seen->steps + 1 : seen->size;
    for (int32_t i = 0; i < count; i++) {
        rows[i] = s->accepted ? (i ? seen->path[i - 1] : 0) : i;
        places[i] = seen->tokens[rows[i]];
    }
    if (seen->scores)
        lithe_top(seen->scores, seen->stride, rows, places, count, seen->width, s->k, s->table);
}

/* ---- Several at once. */

typedef struct {
    const Voice *all;
    Count *table;
    const double *costs; /* of 0 to `keep` guesses */
    Node *nodes;         /* of the text: all that was proposed, from then until what came of it is seen */
    int32_t *order;      /* [keep] */
    int32_t many, keep, merged, learns; /* merged: how many nodes there are; learns: whether chances are */
} Blend;

/* Ask each for a draft and merge them, as lithe_merge has it; voices: a bit of each one's two. */
int32_t lithe_blend(void *state, const Asked *asked, int32_t *told) {
    Blend *s = state;
    int32_t room = 0, widest = 0, at = 0, sizes[s->many];
    for (int32_t v = 0; v < s->many; v++) {
        room += s->all[v].most + 1;
        if (s->all[v].most > widest) widest = s->all[v].most;
    }
    int32_t tokens[room], parents[room], voices[room], said[3 * widest];
    for (int32_t v = 0; v < s->many; v++) {
        const Voice *voice = s->all + v;
        const int32_t size = voice->propose(voice->state, asked, said);
        if (size < 0) return size;
        sizes[v] = size + 1;
        tokens[at] = asked->root, parents[at] = -1, voices[at] = 0;
        for (int32_t i = 0; i < size; i++) {
            tokens[at + 1 + i] = said[i], parents[at + 1 + i] = said[voice->most + i];
            voices[at + 1 + i] = voice->voices[said[2 * voice->most + i]];
        }
        at += size + 1;
    }
    return lithe_merge(asked->root, asked->most, s->many, sizes, tokens, parents, voices, s->table, s->costs, s->keep, s->nodes,
                       &s->merged, s->order, told);
}

/* Tell all what came of it: those that learn from passes, and the chances. */
void lithe_blend_seen(void *state, const Seen *seen) {
    Blend *s = state;
    int32_t truth[seen->steps + 1];
    for (int32_t i = 0; i < seen->steps; i++) truth[i] = seen->tokens[seen->path[i]];
    truth[seen->steps] = seen->token;
    if (s->learns) lithe_learn(s->nodes, s->merged, truth, seen->steps + 1, s->table);
    for (int32_t v = 0; v < s->many; v++)
        if (s->all[v].seen) s->all[v].seen(s->all[v].state, seen);
}
