// Sequences and steps: checks what the caller planned, takes pages, runs the graph, scores and
// samples the kept rows slice by slice. A step that fails leaves every sequence as it was. Owns the
// backend, the weights, the KV pool, the sequences and the last result; one thread drives it. Does
// not plan: which sequences run, and how long a chunk is, is the worker's business.
#include "engine/engine.h"
#include "engine/counts.h"
#include "engine/graph.h"
#include "engine/kv.h"
#include "engine/lora.h"
#include "engine/prefix.h"
#include "engine/sample.h"
#include "engine/weights.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct engine_seq {
    bool taken, in_step;
    int choice;
    int length;   // positions stored
    int n_prompt; // positions from here on are the answer
    kv_table table;
    prefix prefix;
    token_counts *counts; // NULL without penalties
    float *pending;       // [dim] hidden state that predicts position `length`
    bool has_pending;     // ... of a chunk that asked for prompt_logprobs
    const lora *adapter;  // NULL: none
    sampling_params params;
};

struct engine {
    const model *m;
    const model_shape *s;
    engine_config c;
    int max_context, head_rows;
    ops *o;
    weights *w;
    kv_pool *kv;
    graph *graph;
    sampler *sampler;
    engine_seq *seqs;    // [max_seqs]
    float *pendings;     // [max_seqs, dim]
    float *logits;       // [head_rows, n_vocab]
    sample_item *items;  // [max_rows + max_seqs], one per hidden row; out NULL: not scored
    int *item_rows;      // the engine_row an item belongs to
    sample_item *slice;  // [head_rows]
    int *slice_rows;     // ... likewise
    int32_t *ids, *keep; // [max_rows]
    seq_span *spans, *tails;
    lora_span *loras, *kept_loras;   // [max_seqs]
    engine_sampled *sampled, *first; // [max_seqs]
    engine_sampled *prompt_items;    // [max_rows]
    engine_sampled **prompt;         // [max_seqs], into prompt_items, as drafts
    engine_sampled **drafts;         // [max_seqs]
    int *n_right;                    // [max_seqs]
    engine_result result;
};

static void *take(size_t n, size_t size) {
    void *p = calloc(n ? n : 1, size);
    if (!p)
        fatal("out of memory");
    return p;
}

enum { MOST_GROUP = 32 }; // query heads of a KV head: attention_args in kernels/ops.h

static int check_shape(const model_shape *s, err *e) {
    if (s->n_heads / s->n_kv_heads > MOST_GROUP)
        return err_set(e, ERR_UNSUPPORTED, NULL,
                       "%d query heads on %d KV heads are not supported: at most %d on each are",
                       s->n_heads, s->n_kv_heads, MOST_GROUP);
    return 0;
}

static int check_config(engine *g, err *e) {
    const engine_config *c = &g->c;
    if (c->max_seqs < 1 || c->max_seqs > 4096)
        return err_set(e, ERR_INVALID, "max_seqs", "max_seqs must be between 1 and 4096");
    if (c->max_rows < 1 || c->max_rows > 65536)
        return err_set(e, ERR_INVALID, "max_rows", "max_rows must be between 1 and 65536");
    if (c->max_context < 0 || c->max_context > g->s->context)
        return err_set(e, ERR_INVALID, "max_context",
                       "max_context %d exceeds the model's %d tokens", c->max_context,
                       g->s->context);
    g->max_context = c->max_context ? c->max_context : g->s->context;
    return 0;
}

static int open_kv(engine *g, err *e) {
    kv_shape shape = {.type = ops_kv_type(g->o),
                      .n_layers = g->s->n_layers,
                      .n_kv_heads = g->s->n_kv_heads,
                      .head_dim = g->s->head_dim};
    const char *wanted = g->c.kv_type;
    if (wanted && *wanted && !kv_type_find(wanted, &shape.type))
        return err_set(e, ERR_INVALID, "kv_type", "kv_type: \"%s\" is none of f16, bf16, f32, q8",
                       wanted);
    size_t least = kv_page_bytes(&shape) * (size_t)kv_pages_for(g->max_context);
    if (g->c.kv_bytes < least)
        return err_set(e, ERR_INVALID, "kv_bytes",
                       "the KV cache needs %zu bytes for one sequence of %d tokens, not %zu", least,
                       g->max_context, g->c.kv_bytes);
    return kv_pool_open(&shape, g->c.kv_bytes, &g->kv, e);
}

static void open_memory(engine *g) {
    size_t seqs = (size_t)g->c.max_seqs, rows = (size_t)g->c.max_rows, dim = (size_t)g->s->dim;
    g->head_rows = g->c.max_seqs < 16 ? 16 : g->c.max_seqs > 64 ? 64 : g->c.max_seqs;
    g->seqs = take(seqs, sizeof *g->seqs);
    g->pendings = take(seqs * dim, sizeof *g->pendings);
    for (size_t i = 0; i < seqs; i++) {
        g->seqs[i].pending = g->pendings + i * dim;
        kv_table_init(&g->seqs[i].table, g->max_context);
    }
    g->logits = take((size_t)g->head_rows * (size_t)g->s->n_vocab, sizeof *g->logits);
    g->items = take(rows + seqs, sizeof *g->items);
    g->item_rows = take(rows + seqs, sizeof *g->item_rows);
    g->slice = take((size_t)g->head_rows, sizeof *g->slice);
    g->slice_rows = take((size_t)g->head_rows, sizeof *g->slice_rows);
    g->ids = take(rows, sizeof *g->ids);
    g->keep = take(rows, sizeof *g->keep);
    g->spans = take(seqs, sizeof *g->spans);
    g->tails = take(seqs, sizeof *g->tails);
    g->loras = take(seqs, sizeof *g->loras);
    g->kept_loras = take(seqs, sizeof *g->kept_loras);
    g->sampled = take(seqs, sizeof *g->sampled);
    g->first = take(seqs, sizeof *g->first);
    g->prompt_items = take(rows, sizeof *g->prompt_items);
    g->prompt = take(seqs, sizeof(engine_sampled *));
    g->drafts = take(seqs, sizeof(engine_sampled *));
    g->n_right = take(seqs, sizeof *g->n_right);
}

int engine_open(const model *m, const engine_config *c, engine **out, err *e) {
    engine *g = take(1, sizeof *g);
    g->m = m;
    g->s = model_get_shape(m);
    g->c = *c;
    if (check_shape(g->s, e) || check_config(g, e) ||
        ops_open(c->backend, c->n_threads, &g->o, e) || (c->pin && ops_pin(g->o, e)) ||
        open_kv(g, e) || weights_load(m, g->o, c->progress, c->progress_ctx, &g->w, e)) {
        engine_close(g);
        return -1;
    }
    g->graph = graph_open(m, g->w, g->kv, g->o, c->max_rows, c->max_seqs);
    g->sampler = sampler_open(g->o, g->s->n_vocab);
    open_memory(g);
    *out = g;
    return 0;
}

static void close_memory(engine *g) {
    for (int i = 0; g->seqs && i < g->c.max_seqs; i++)
        kv_table_release(&g->seqs[i].table);
    free(g->seqs);
    free(g->pendings);
    free(g->logits);
    free(g->items);
    free(g->item_rows);
    free(g->slice);
    free(g->slice_rows);
    free(g->ids);
    free(g->keep);
    free(g->spans);
    free(g->tails);
    free(g->loras);
    free(g->kept_loras);
    free(g->sampled);
    free(g->first);
    free(g->prompt_items);
    free(g->prompt);
    free(g->drafts);
    free(g->n_right);
}

void engine_close(engine *g) {
    if (!g)
        return;
    close_memory(g);
    sampler_close(g->sampler);
    graph_close(g->graph);
    weights_free(g->w);
    kv_pool_close(g->kv);
    if (g->o)
        g->o->close(g->o);
    free(g);
}

const char *engine_backend(const engine *g) { return g->o->name; }
int engine_max_context(const engine *g) { return g->max_context; }
size_t engine_weight_bytes(const engine *g) { return g->w->bytes; }
int engine_seq_length(const engine_seq *s) { return s->length; }
// Penalties make each token depend on those guessed before it.
bool engine_seq_may_draft(const engine_seq *s) { return !s->counts; }

const char *engine_kv_name(const engine *g) { return kv_type_name(kv_pool_layer(g->kv, 0)->type); }

engine_stats engine_get_stats(const engine *g) {
    kv_stats s = kv_pool_stats(g->kv);
    return (engine_stats){.prefix_hits = s.hits,
                          .prefix_misses = s.misses,
                          .prefix_evicted = s.evicted,
                          .prefix_pages = s.published};
}

int64_t engine_kv_tokens_free(const engine *g) {
    return (int64_t)kv_pool_n_free(g->kv) * KV_PAGE_TOKENS;
}

// ---- sequences

static int check_ids(const engine *g, const int32_t *ids, int n, err *e) {
    for (int i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= g->s->n_vocab)
            return err_set(e, ERR_INVALID, NULL, "token %d of %d is %d: the vocabulary has %d", i,
                           n, ids[i], g->s->n_vocab);
    return 0;
}

static engine_seq *take_seq(engine *g, err *e) {
    for (int i = 0; i < g->c.max_seqs; i++)
        if (!g->seqs[i].taken) {
            g->seqs[i].taken = true;
            return &g->seqs[i];
        }
    err_set(e, ERR_OVERLOADED, NULL, "all %d sequences of the engine are taken", g->c.max_seqs);
    return NULL;
}

static void start_seq(engine *g, engine_seq *s, const sampling_params *params, int choice) {
    s->params = *params;
    s->adapter = NULL;
    s->choice = choice;
    s->length = 0;
    s->n_prompt = 0;
    s->has_pending = false;
    int distinct = g->max_context < g->s->n_vocab ? g->max_context : g->s->n_vocab;
    s->counts = sampling_has_penalty(params) ? counts_new(distinct) : NULL;
}

int engine_seq_new(engine *g, const sampling_params *params, int choice, const int32_t *prompt,
                   int n, int already, const uint8_t *salt, engine_seq **out, err *e) {
    if (n < 0 || already < 0 || already > n)
        return err_set(e, ERR_INVALID, NULL, "a prompt of %d tokens of which %d were generated", n,
                       already);
    if (n > g->max_context)
        return err_set(e, ERR_CONTEXT_LENGTH, NULL, "the prompt has %d tokens, the model takes %d",
                       n, g->max_context);
    if (check_ids(g, prompt, n, e) || sampling_check(params, g->s->n_vocab, e))
        return -1;
    engine_seq *s = take_seq(g, e);
    if (!s)
        return -1;
    start_seq(g, s, params, choice);
    s->n_prompt = n;
    for (int i = 0; s->counts && i < n; i++)
        counts_add(s->counts, prompt[i], i >= n - already);
    prefix_init(&s->prefix, salt);
    s->length = prefix_attach(&s->prefix, g->kv, &s->table, prompt, n);
    *out = s;
    return 0;
}

int engine_adapter_open(engine *g, const gguf *file, engine_adapter **out, err *e) {
    return lora_load(file, g->m, g->o, out, e);
}

void engine_adapter_close(engine_adapter *a) { lora_free(a); }
size_t engine_adapter_bytes(const engine_adapter *a) { return a->bytes; }
void engine_seq_adapt(engine_seq *s, const engine_adapter *a) { s->adapter = a; }

int engine_kv_tokens_in_use(const engine *g, const uint8_t *salt, const int32_t *prompt, int n) {
    return prefix_in_use(salt, g->kv, prompt, n);
}

int engine_seq_fork(engine *g, const engine_seq *from, int choice, engine_seq **out, err *e) {
    engine_seq *s = take_seq(g, e);
    if (!s)
        return -1;
    if (kv_table_fork(g->kv, &from->table, from->length, &s->table, e)) {
        s->taken = false;
        return -1;
    }
    start_seq(g, s, &from->params, choice);
    s->adapter = from->adapter;
    s->prefix = from->prefix;
    s->length = from->length;
    s->n_prompt = from->n_prompt;
    s->has_pending = from->has_pending;
    memcpy(s->pending, from->pending, (size_t)g->s->dim * sizeof *s->pending);
    if (s->counts)
        counts_copy(s->counts, from->counts);
    *out = s;
    return 0;
}

void engine_seq_free(engine *g, engine_seq *s) {
    if (!s)
        return;
    kv_table_shrink(g->kv, &s->table, 0);
    counts_free(s->counts);
    s->counts = NULL;
    s->taken = false;
}

// ---- one step

static int check_draft(const engine_row *r, err *e) {
    if (r->n_draft < 0 || r->n_draft >= r->n)
        return err_set(e, ERR_INVALID, NULL, "a row of %d tokens of which %d are guesses", r->n,
                       r->n_draft);
    if (r->n_draft && (!r->sample || r->prompt_logprobs || !engine_seq_may_draft(r->seq)))
        return err_set(e, ERR_INVALID, NULL, "guesses in a row that %s",
                       !r->sample           ? "is not sampled"
                       : r->prompt_logprobs ? "has prompt_logprobs"
                                            : "has penalties");
    return 0;
}

static int check_row(const engine *g, const engine_row *r, err *e) {
    if (r->seq->in_step)
        return err_set(e, ERR_INVALID, NULL, "a sequence is twice in one step");
    if (r->n < 1)
        return err_set(e, ERR_INVALID, NULL, "a row of %d tokens", r->n);
    if (r->prompt_logprobs && r->seq->prefix.shares)
        return err_set(e, ERR_INVALID, NULL, "prompt_logprobs of a sequence that shares a prefix");
    if (r->n > g->max_context - r->seq->length)
        return err_set(e, ERR_CONTEXT_LENGTH, NULL, "%d tokens after %d exceed the context of %d",
                       r->n, r->seq->length, g->max_context);
    return check_draft(r, e) ? -1 : check_ids(g, r->tokens, r->n, e);
}

static int check_rows(const engine *g, const engine_row *rows, int n_rows, err *e) {
    int64_t total = 0;
    int rc = 0, i = 0;
    if (n_rows < 0 || n_rows > g->c.max_seqs)
        return err_set(e, ERR_INVALID, NULL, "%d rows in a step of at most %d", n_rows,
                       g->c.max_seqs);
    for (; i < n_rows && rc == 0; i++) {
        rc = check_row(g, &rows[i], e);
        if (rc == 0) {
            rows[i].seq->in_step = true;
            total += rows[i].n;
        }
    }
    if (rc == 0 && total > g->c.max_rows)
        rc = err_set(e, ERR_INVALID, NULL, "%lld tokens in a step of at most %d", (long long)total,
                     g->c.max_rows);
    for (int k = 0; k < i; k++)
        rows[k].seq->in_step = false;
    return rc;
}

static void drop_pages(engine *g, const engine_row *rows, int n_rows) {
    for (int i = 0; i < n_rows; i++)
        kv_table_shrink(g->kv, &rows[i].seq->table, rows[i].seq->length);
}

// All or none: a step that cannot run gives up nothing of the prefix cache.
static int take_pages(engine *g, const engine_row *rows, int n_rows, err *e) {
    int n = 0;
    for (int i = 0; i < n_rows; i++)
        n += kv_pages_for(rows[i].seq->length + rows[i].n) - rows[i].seq->table.n;
    if (kv_pool_want(g->kv, n, e))
        return -1;
    for (int i = 0; i < n_rows; i++)
        if (kv_table_grow(g->kv, &rows[i].seq->table, rows[i].seq->length + rows[i].n, e))
            fatal("KV pages that were free are not");
    return 0;
}

// The answer's tokens count for the penalties once they are appended, the prompt's did in seq_new.
static void count_tokens(const engine_row *rows, int n_rows) {
    for (int i = 0; i < n_rows; i++) {
        const engine_row *r = &rows[i];
        int answer = r->seq->n_prompt - r->seq->length;
        for (int k = answer > 0 ? answer : 0; r->seq->counts && k < r->n; k++)
            counts_add(r->seq->counts, r->tokens[k], true);
    }
}

static void uncount_tokens(const engine_row *rows, int n_rows) {
    for (int i = 0; i < n_rows; i++) {
        const engine_row *r = &rows[i];
        int answer = r->seq->n_prompt - r->seq->length;
        for (int k = r->n - 1; r->seq->counts && k >= 0 && k >= answer; k--)
            counts_undo(r->seq->counts, r->tokens[k], true);
    }
}

static seq_span span_of(const engine_row *r, int row, int n) {
    return (seq_span){.row = row,
                      .n_rows = n,
                      .first = r->seq->length + r->n - n,
                      .pages = r->seq->table.pages,
                      .n_pages = r->seq->table.n};
}

// Rows row .. row + n of a batch use l; neighbours with the same one become one span.
static int add_lora_span(lora_span *spans, int n_spans, int row, int n, const lora *l) {
    lora_span *last = n_spans ? &spans[n_spans - 1] : NULL;
    if (!l || !n)
        return n_spans;
    if (last && last->l == l && last->row + last->n_rows == row) {
        last->n_rows += n;
        return n_spans;
    }
    spans[n_spans] = (lora_span){.row = row, .n_rows = n, .l = l};
    return n_spans + 1;
}

static graph_batch make_batch(engine *g, const engine_row *rows, int n_rows) {
    graph_batch b = {.ids = g->ids,
                     .spans = g->spans,
                     .keep = g->keep,
                     .tails = g->tails,
                     .loras = g->loras,
                     .kept_loras = g->kept_loras};
    for (int i = 0; i < n_rows; i++) {
        const engine_row *r = &rows[i];
        int wanted = r->prompt_logprobs ? r->n : r->sample ? 1 + r->n_draft : 0;
        memcpy(g->ids + b.n_rows, r->tokens, (size_t)r->n * sizeof *r->tokens);
        g->spans[b.n_spans++] = span_of(r, b.n_rows, r->n);
        const lora *l = r->seq->adapter;
        b.n_loras = add_lora_span(g->loras, b.n_loras, b.n_rows, r->n, l);
        b.n_kept_loras = add_lora_span(g->kept_loras, b.n_kept_loras, b.n_keep, wanted, l);
        b.n_rows += r->n;
        if (wanted)
            g->tails[b.n_tails++] = span_of(r, b.n_keep, wanted);
        for (int k = wanted; k > 0; k--)
            g->keep[b.n_keep++] = b.n_rows - k;
    }
    return b;
}

// Draws the token before the last n_behind of the row, or describes the given one.
static sample_item new_item(const engine_row *r, int n_behind, int32_t given, engine_sampled *out) {
    return (sample_item){.params = &r->seq->params,
                         .counts = r->seq->counts,
                         .choice = r->seq->choice,
                         .position = r->seq->length + r->n - n_behind,
                         .given = given,
                         .out = out};
}

// One item per kept hidden row, in their order, then those of pending rows, which are put behind
// them.
static int plan_items(engine *g, const engine_row *rows, int n_rows, float *hidden) {
    size_t dim = (size_t)g->s->dim;
    int n = 0, n_prompt = 0;
    for (int i = 0; i < n_rows; i++) {
        const engine_row *r = &rows[i];
        g->first[i].id = -1;
        g->prompt[i] = r->prompt_logprobs ? &g->prompt_items[n_prompt] : NULL;
        for (int k = 0; r->prompt_logprobs && k + 1 < r->n; k++, n++) {
            g->item_rows[n] = i;
            g->items[n] = new_item(r, r->n - 1 - k, r->tokens[k + 1], &g->prompt_items[n_prompt++]);
        }
        g->drafts[i] = &g->prompt_items[n_prompt];
        for (int left = r->n_draft; left > 0; left--, n++) {
            g->item_rows[n] = i;
            g->items[n] = new_item(r, left, -1, &g->prompt_items[n_prompt++]);
        }
        if (r->prompt_logprobs || r->sample) {
            g->item_rows[n] = i;
            g->items[n++] = new_item(r, 0, -1, r->sample ? &g->sampled[i] : NULL);
        }
    }
    for (int i = 0; i < n_rows; i++) {
        const engine_row *r = &rows[i];
        if (!r->prompt_logprobs || !r->seq->has_pending)
            continue;
        memcpy(hidden + (size_t)n * dim, r->seq->pending, dim * sizeof *hidden);
        g->item_rows[n] = i;
        g->items[n++] = new_item(r, r->n, r->tokens[0], &g->first[i]);
    }
    return n;
}

// Head and sampler over hidden rows [from, from + n).
static int score_slice(engine *g, const float *hidden, int from, int n, err *e) {
    size_t dim = (size_t)g->s->dim, n_vocab = (size_t)g->s->n_vocab;
    int used = 0, bad;
    graph_head(g->graph, hidden + (size_t)from * dim, n, g->logits);
    for (int i = 0; i < n; i++) {
        if (!g->items[from + i].out)
            continue;
        g->slice[used] = g->items[from + i];
        g->slice[used].logits = g->logits + (size_t)i * n_vocab;
        g->slice_rows[used++] = g->item_rows[from + i];
    }
    if (sampler_run(g->sampler, g->slice, used, &bad, e) == 0)
        return 0;
    char param[32];
    snprintf(param, sizeof param, "rows[%d]", g->slice_rows[bad]);
    return err_set(e, ERR_INTERNAL, param, "%s: the model's logits are not finite", param);
}

static int score(engine *g, const engine_row *rows, int n_rows, float *hidden, err *e) {
    int n = plan_items(g, rows, n_rows, hidden);
    for (int from = 0; from < n; from += g->head_rows)
        if (score_slice(g, hidden, from, n - from < g->head_rows ? n - from : g->head_rows, e))
            return -1;
    return 0;
}

// What was sampled in the place of the first wrong guess is the row's token.
static void judge_drafts(engine *g, const engine_row *rows, int n_rows) {
    for (int i = 0; i < n_rows; i++) {
        const engine_row *r = &rows[i];
        const int32_t *guesses = r->tokens + r->n - r->n_draft;
        int right = 0;
        while (right < r->n_draft && g->drafts[i][right].id == guesses[right])
            right++;
        if (right < r->n_draft)
            g->sampled[i] = g->drafts[i][right];
        g->n_right[i] = right;
    }
}

static void commit(engine *g, const engine_row *rows, const graph_batch *b, const float *hidden) {
    size_t dim = (size_t)g->s->dim;
    for (int i = 0, tail = 0; i < b->n_spans; i++) {
        engine_seq *s = rows[i].seq;
        int n = rows[i].n - rows[i].n_draft + g->n_right[i];
        prefix_append(&s->prefix, g->kv, &s->table, s->length, rows[i].tokens, n);
        s->length += n;
        kv_table_shrink(g->kv, &s->table, s->length);
        s->has_pending = rows[i].prompt_logprobs;
        if (!rows[i].prompt_logprobs && !rows[i].sample)
            continue;
        const seq_span *t = &b->tails[tail++];
        if (s->has_pending)
            memcpy(s->pending, hidden + (size_t)(t->row + t->n_rows - 1) * dim,
                   dim * sizeof *s->pending);
    }
}

int engine_step(engine *g, const engine_row *rows, int n_rows, const engine_result **out, err *e) {
    if (check_rows(g, rows, n_rows, e) || take_pages(g, rows, n_rows, e))
        return -1;
    g->result = (engine_result){.sampled = g->sampled,
                                .n_right = g->n_right,
                                .drafts = g->drafts,
                                .prompt = g->prompt,
                                .first = g->first};
    *out = &g->result;
    if (n_rows == 0)
        return 0;
    graph_batch b = make_batch(g, rows, n_rows);
    float *hidden = graph_forward(g->graph, &b);
    count_tokens(rows, n_rows);
    if (score(g, rows, n_rows, hidden, e)) {
        uncount_tokens(rows, n_rows);
        drop_pages(g, rows, n_rows);
        return -1;
    }
    judge_drafts(g, rows, n_rows);
    commit(g, rows, &b, hidden);
    return 0;
}
