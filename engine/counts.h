// Which tokens a sequence holds and how often, for the penalties. One per sequence that has a
// penalty; owned by the engine's thread.
#ifndef ENGINE_COUNTS_H
#define ENGINE_COUNTS_H
#include <stdbool.h>
#include <stdint.h>

typedef struct token_count {
    int32_t id;
    int32_t seen;   // times in prompt and answer
    int32_t made;   // of these, times generated
    float original; // scratch of the sampler: the logit before penalties
} token_count;

typedef struct token_counts {
    token_count *items;
    int n, cap;
    int32_t *slots;   // open addressing: index into items + 1, 0 = free
    uint32_t n_slots; // a power of two, at least 2 cap
} token_counts;

// Room for max_distinct different ids: nothing is allocated later.
token_counts *counts_new(int max_distinct);
void counts_free(token_counts *c);
void counts_copy(token_counts *to, const token_counts *from); // of the same max_distinct
void counts_add(token_counts *c, int32_t id, bool generated);
// Takes back the latest counts_add that was not taken back yet.
void counts_undo(token_counts *c, int32_t id, bool generated);
token_count *counts_find(const token_counts *c, int32_t id); // NULL: never seen

#endif
