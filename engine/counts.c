// A small hash table from token id to counts, with its items packed, so that applying penalties
// costs what the sequence is long and not what the vocabulary is wide. Owned by the engine's
// thread. Never grows: a sequence has at most as many different ids as positions.
#include "engine/counts.h"
#include "base/err.h"
#include <stdlib.h>
#include <string.h>

token_counts *counts_new(int max_distinct) {
    token_counts *c = calloc(1, sizeof *c);
    if (!c)
        fatal("out of memory");
    c->cap = max_distinct;
    c->n_slots = 2;
    while (c->n_slots < 2 * (uint32_t)max_distinct)
        c->n_slots *= 2;
    c->items = calloc((size_t)max_distinct, sizeof *c->items);
    c->slots = calloc(c->n_slots, sizeof *c->slots);
    if (!c->items || !c->slots)
        fatal("out of memory");
    return c;
}

void counts_free(token_counts *c) {
    if (!c)
        return;
    free(c->items);
    free(c->slots);
    free(c);
}

void counts_copy(token_counts *to, const token_counts *from) {
    to->n = from->n;
    memcpy(to->items, from->items, (size_t)from->n * sizeof *from->items);
    memcpy(to->slots, from->slots, from->n_slots * sizeof *from->slots);
}

// The slot that holds id, or the free one where it belongs.
static int32_t *slot_of(const token_counts *c, int32_t id) {
    uint32_t i = (uint32_t)id * 2654435761u; // Knuth's multiplicative hash
    for (i ^= i >> 15;; i++) {
        int32_t *slot = &c->slots[i & (c->n_slots - 1)];
        if (*slot == 0 || c->items[*slot - 1].id == id)
            return slot;
    }
}

token_count *counts_find(const token_counts *c, int32_t id) {
    int32_t slot = *slot_of(c, id);
    return slot ? &c->items[slot - 1] : NULL;
}

void counts_add(token_counts *c, int32_t id, bool generated) {
    int32_t *slot = slot_of(c, id);
    if (*slot == 0) {
        if (c->n == c->cap)
            fatal("token counts: more than %d different tokens", c->cap);
        c->items[c->n] = (token_count){.id = id};
        *slot = ++c->n;
    }
    token_count *t = &c->items[*slot - 1];
    t->seen++;
    t->made += generated;
}

void counts_undo(token_counts *c, int32_t id, bool generated) {
    int32_t *slot = slot_of(c, id);
    token_count *t = &c->items[*slot - 1];
    t->seen--;
    t->made -= generated;
    if (t->seen == 0) { // it came last, so no other id was placed past its slot
        *slot = 0;
        c->n--;
    }
}
