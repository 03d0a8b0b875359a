// Plans attention for the team: one item per span, KV head and block of query rows. An item that is
// a large part of all, as a long sequence that decodes or a long prompt beside short ones has, is
// split into chunks of keys, whose partial sums are merged in order afterwards. Threads take items
// from a counter; which thread takes which item changes nothing, because an item's result is the
// same anywhere and chunks are merged the same way when nobody split them.
#include "kernels/cpu/cpu.h"
#include <stdatomic.h>

typedef struct attention_job {
    const cpu *b;
    attention_item *items, *merges; // merges: of items that are split; NULL while they are counted
    float *partials;                // of all split items
    int n_items, n_merges;
    size_t n_partials;  // floats
    int64_t most_whole; // the cost from which on an item is split
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
        j->b->isa->attend_merge(&j->merges[i], j->scratch + (size_t)part * j->scratch_floats);
}

static int64_t cost(const attention_item *it) { return (int64_t)it->n_rows * it->last_chunk; }

// Counts, and writes unless the list is NULL.
static void add(attention_item *list, int *n, attention_item it) {
    if (list)
        list[*n] = it;
    ++*n;
}

// One item for all its keys, or one per chunk and one that merges them.
static void add_block(attention_job *j, attention_item it) {
    const attention_args *a = it.args;
    int n = it.last_chunk;
    if (n < 2 || cost(&it) < j->most_whole) {
        add(j->items, &j->n_items, it);
        return;
    }
    size_t floats =
        attention_partial_floats(it.n_rows * (a->n_heads / a->kv->n_kv_heads), a->kv->head_dim);
    it.partial = j->partials ? j->partials + j->n_partials : NULL;
    j->n_partials += (size_t)n * floats;
    add(j->merges, &j->n_merges, it);
    for (it.last_chunk = 1; it.first_chunk < n; it.first_chunk++, it.last_chunk++) {
        add(j->items, &j->n_items, it);
        it.partial = it.partial ? it.partial + floats : NULL;
    }
}

// Head by head, so that one head's K and V stay in the second cache for all its rows.
static void add_blocks(attention_job *j, const attention_args *a, int rows) {
    j->n_items = j->n_merges = 0;
    j->n_partials = 0;
    for (int i = 0; i < a->n_spans; i++) {
        const seq_span *s = &a->spans[i];
        for (int head = 0; head < a->kv->n_kv_heads; head++)
            for (int first = (blocks_of(s, rows) - 1) * rows; first >= 0; first -= rows) {
                int n = min_int(rows, s->n_rows - first);
                add_block(j, (attention_item){.args = a,
                                              .span = s,
                                              .kv_head = head,
                                              .first_row = first,
                                              .n_rows = n,
                                              .last_chunk = chunks(s->first + first + n)});
            }
    }
}

static int64_t cost_of_all(const attention_args *a, int rows) {
    int64_t all = 0;
    for (int i = 0; i < a->n_spans; i++)
        for (int first = 0; first < a->spans[i].n_rows; first += rows) {
            int n = min_int(rows, a->spans[i].n_rows - first);
            all += (int64_t)n * chunks(a->spans[i].first + first + n);
        }
    return all * a->kv->n_kv_heads;
}

// Counts, takes memory, and fills it.
static void plan(cpu *b, attention_job *j, const attention_args *a) {
    int rows = rows_per_item(a), n = team_size(b->team);
    j->most_whole = n == 1 ? INT64_MAX : cost_of_all(a, rows) / (4 * n) + 1;
    add_blocks(j, a, rows);
    j->items = cpu_grow(b, CPU_ITEMS, (size_t)(j->n_items + j->n_merges + 1) * sizeof *j->items);
    j->merges = j->items + j->n_items;
    j->partials = cpu_grow(b, CPU_PARTIALS, j->n_partials * sizeof *j->partials);
    add_blocks(j, a, rows);
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
