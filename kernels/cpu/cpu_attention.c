// Plans attention for the team: one item per span, KV head and block of query rows, and, when a few
// long sequences decode, per chunk of keys, whose partial sums are merged in order afterwards.
// Threads take items from a counter, the costly ones first; which thread takes which item changes
// nothing, because an item's result is the same anywhere and chunks are merged the same way when
// nobody split them.
#include "kernels/cpu/cpu.h"
#include <stdatomic.h>

typedef struct attention_job {
    const cpu *b;
    attention_item *items; // those to compute, then those to merge
    int n_items, n_merges;
    float *scratch;
    size_t scratch_floats;
    atomic_int next;
} attention_job;

static int min_int(int a, int b) { return a < b ? a : b; }
static int chunks(int keys) { return (keys + CHUNK - 1) / CHUNK; }

static int rows_per_item(const attention_args *a) {
    int rows = ATTENTION_QUERIES / (a->n_heads / a->kv->n_kv_heads);
    if (rows < 1)
        fatal("attention: %d query heads share a KV head, at most %d can",
              a->n_heads / a->kv->n_kv_heads, (int)ATTENTION_QUERIES);
    return rows;
}

static int blocks_of(const seq_span *s, int rows) { return (s->n_rows + rows - 1) / rows; }

static void attend_part(void *ctx, int part, int n_parts) {
    (void)n_parts;
    attention_job *j = ctx;
    for (int i; (i = atomic_fetch_add(&j->next, 1)) < j->n_items;)
        j->b->isa->attend(&j->items[i], j->scratch + (size_t)part * j->scratch_floats);
}

static void merge_part(void *ctx, int part, int n_parts) {
    (void)n_parts;
    attention_job *j = ctx;
    for (int i; (i = atomic_fetch_add(&j->next, 1)) < j->n_merges;)
        j->b->isa->attend_merge(&j->items[j->n_items + i],
                                j->scratch + (size_t)part * j->scratch_floats);
}

// The items of one KV head and block of rows. split: one item per chunk, and one to merge them.
static void add_block(attention_job *j, const attention_item *it, bool split,
                      attention_item *merges, float **partial) {
    if (!split) {
        j->items[j->n_items++] = *it;
        return;
    }
    const kv_layer *kv = it->args->kv;
    int n = it->n_rows * (it->args->n_heads / kv->n_kv_heads);
    merges[j->n_merges] = *it;
    merges[j->n_merges++].partial = *partial;
    for (int c = 0; c < it->last_chunk;
         c++, *partial += attention_partial_floats(n, kv->head_dim)) {
        attention_item one = *it;
        one.first_chunk = c;
        one.last_chunk = c + 1;
        one.partial = *partial;
        j->items[j->n_items++] = one;
    }
}

// Head by head, so that one head's K and V stay in the second cache for all its rows.
static void add_span(attention_job *j, const attention_args *a, const seq_span *s, int rows,
                     bool split, attention_item *merges, float **partial) {
    for (int head = 0; head < a->kv->n_kv_heads; head++)
        for (int first = (blocks_of(s, rows) - 1) * rows; first >= 0; first -= rows) {
            attention_item it = {.args = a,
                                 .span = s,
                                 .kv_head = head,
                                 .first_row = first,
                                 .n_rows = min_int(rows, s->n_rows - first)};
            it.last_chunk = chunks(s->first + first + it.n_rows);
            add_block(j, &it, split, merges, partial);
        }
}

typedef struct plan_size {
    int items, split_items, split_merges;
    size_t partial_floats;
} plan_size;

static plan_size measure(const attention_args *a, int rows) {
    plan_size p = {0};
    int group = a->n_heads / a->kv->n_kv_heads;
    for (int s = 0; s < a->n_spans; s++) {
        int blocks = blocks_of(&a->spans[s], rows),
            n = chunks(a->spans[s].first + a->spans[s].n_rows);
        p.items += blocks * a->kv->n_kv_heads;
        p.split_items += blocks * a->kv->n_kv_heads * n;
        p.split_merges += blocks * a->kv->n_kv_heads;
        p.partial_floats +=
            (size_t)(blocks * a->kv->n_kv_heads * n) *
            attention_partial_floats(min_int(rows, a->spans[s].n_rows) * group, a->kv->head_dim);
    }
    return p;
}

static void plan(cpu *b, attention_job *j, const attention_args *a) {
    int rows = rows_per_item(a);
    plan_size size = measure(a, rows);
    bool split = team_size(b->team) > 1 && size.items < 4 * team_size(b->team) &&
                 size.split_items > size.items;
    int n_items = split ? size.split_items : size.items, n_merges = split ? size.split_merges : 0;
    j->items = cpu_grow(b, CPU_ITEMS, (size_t)(n_items + n_merges + 1) * sizeof *j->items);
    float *partial =
        split ? cpu_grow(b, CPU_PARTIALS, size.partial_floats * sizeof *partial) : NULL;
    attention_item *merges = j->items + n_items;
    for (int s = 0; s < a->n_spans; s++)
        add_span(j, a, &a->spans[s], rows, split, merges, &partial);
    if (split) // rows of a block may see fewer chunks than measured: close the gap
        for (int i = 0; i < n_merges; i++)
            j->items[j->n_items + i] = merges[i];
}

void cpu_attention(ops *o, const attention_args *a) {
    cpu *b = (cpu *)o;
    attention_job j = {.b = b, .scratch_floats = attention_scratch_floats(a->kv->head_dim)};
    j.scratch =
        cpu_grow(b, CPU_SCRATCH, (size_t)team_size(b->team) * j.scratch_floats * sizeof(float));
    plan(b, &j, a);
    if (j.n_items == 0)
        return;
    if (j.n_items == 1)
        attend_part(&j, 0, 1);
    else
        team_run(b->team, attend_part, &j);
    if (j.n_merges) {
        atomic_store(&j.next, 0);
        team_run(b->team, merge_part, &j);
    }
}
