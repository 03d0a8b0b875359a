// The steps of sample.h, one item at a time. With as many items as threads each thread takes whole
// items; with fewer, all threads share an item's vocabulary; the result is the same. Owns one
// sample_part per thread; called by the engine's thread. Does not know grammars or stop strings.
#include "engine/sample_internal.h"
#include "engine/philox.h"
#include <math.h>
#include <stdlib.h>

struct sampler {
    ops *o;
    int n_vocab, n_parts, n_blocks;
    sample_part *parts;
    uint64_t *block_mass; // [n_parts][n_blocks]
    int *first_bad;       // [n_parts]
};

typedef struct run_job {
    const sampler *s;
    const sample_item *items;
    int n;
    int *first_bad; // [n_parts]: the part's first item with a logit that is not finite, or n
} run_job;

void sample_run(const sample_crew *c, void (*fn)(void *ctx, int part, int n_parts), void *ctx) {
    if (c->o)
        c->o->parallel(c->o, fn, ctx);
    else
        fn(ctx, 0, 1);
}

void sample_range(int n_vocab, int part, int n_parts, int *from, int *to) {
    int64_t blocks = (n_vocab + SAMPLE_BLOCK - 1) / SAMPLE_BLOCK;
    int64_t last = blocks * (part + 1) / n_parts * SAMPLE_BLOCK;
    *from = (int)(blocks * part / n_parts * SAMPLE_BLOCK);
    *to = last < n_vocab ? (int)last : n_vocab;
    if (*from > n_vocab)
        *from = n_vocab;
}

typedef struct scan_job {
    const sample_crew *crew;
    const float *logits;
    int n_top;
} scan_job;

// Keeps the n greatest, the lower id first among equals; ids must come ascending or decide ties.
static void top_insert(sample_scan *s, int n, int32_t id, float logit) {
    int at = s->n_top;
    while (at > 0 && (logit > s->top[at - 1].logprob ||
                      (logit == s->top[at - 1].logprob && id < s->top[at - 1].id)))
        at--;
    if (at >= n)
        return;
    if (s->n_top < n)
        s->n_top++;
    memmove(&s->top[at + 1], &s->top[at], (size_t)(s->n_top - 1 - at) * sizeof *s->top);
    s->top[at] = (token_logprob){.id = id, .logprob = logit};
}

typedef float four __attribute__((vector_size(16)));
typedef int32_t four_bits __attribute__((vector_size(16)));

typedef struct greatest { // of four chains
    four value;
    four_bits bad; // a value is not finite
} greatest;

static inline void greatest_add(greatest *g, four v) {
    four_bits u = (four_bits)v, more = v > g->value;
    g->bad |= (u & 0x7f800000) == 0x7f800000;
    g->value = (four)((u & more) | ((four_bits)g->value & ~more));
}

// The greatest of n values, -inf of none; *bad: one of them is not finite. Sixteen at once, since
// one that waits for the one before takes five times as long.
static float greatest_of(const float *l, int n, bool *bad) {
    const four none = (four){0} - INFINITY;
    greatest g[4] = {{.value = none}, {.value = none}, {.value = none}, {.value = none}};
    int i = 0;
    for (; i + 16 <= n; i += 16)
        for (int k = 0; k < 4; k++) {
            four v;
            memcpy(&v, l + i + 4 * k, sizeof v);
            greatest_add(&g[k], v);
        }
    for (; i < n; i++)
        greatest_add(&g[0], (four){0} + l[i]);
    float max = -INFINITY;
    *bad = false;
    for (int k = 0; k < 16; k++) {
        *bad |= g[k / 4].bad[k % 4] != 0;
        max = g[k / 4].value[k % 4] > max ? g[k / 4].value[k % 4] : max;
    }
    return max;
}

static void scan_block(sample_scan *s, const float *l, int from, int to, int n_top) {
    bool bad;
    float max = greatest_of(l + from, to - from, &bad);
    s->finite &= !bad;
    if (bad)
        return;
    if (max > s->max) {
        s->max = max;
        for (s->max_id = from; l[s->max_id] != max; s->max_id++)
            ;
    }
    if (n_top > 0 && (s->n_top < n_top || max > s->top[n_top - 1].logprob))
        for (int i = from; i < to; i++)
            if (s->n_top < n_top || l[i] > s->top[n_top - 1].logprob)
                top_insert(s, n_top, i, l[i]);
}

static void scan_part(void *ctx, int part, int n_parts) {
    const scan_job *j = ctx;
    sample_scan *s = &j->crew->parts[part].scan;
    int from, to;
    *s = (sample_scan){.max = -INFINITY, .max_id = -1, .finite = true};
    sample_range(j->crew->n_vocab, part, n_parts, &from, &to);
    for (int b = from; b < to; b += SAMPLE_BLOCK)
        scan_block(s, j->logits, b, b + SAMPLE_BLOCK < to ? b + SAMPLE_BLOCK : to, j->n_top);
}

static sample_scan scan(const sample_crew *c, const float *logits, int n_top) {
    scan_job j = {.crew = c, .logits = logits, .n_top = n_top};
    sample_run(c, scan_part, &j);
    sample_scan all = c->parts[0].scan;
    for (int p = 1; p < c->n_parts; p++) { // parts hold ascending ids: the first of equals stays
        const sample_scan *s = &c->parts[p].scan;
        all.finite &= s->finite;
        if (s->max > all.max) {
            all.max = s->max;
            all.max_id = s->max_id;
        }
        for (int i = 0; i < s->n_top; i++)
            top_insert(&all, n_top, s->top[i].id, s->top[i].logprob);
    }
    return all;
}

// The logarithm of the sum over the raw distribution, by which a logit becomes a log-probability.
static double log_total(const sample_crew *c, const float *logits, float max) {
    sample_dist raw = {
        .logits = logits, .max = max, .temperature = 1, .cut = {.last_id = INT32_MAX}};
    return (double)max + log((double)sample_mass(c, &raw)) - 40 * M_LN2;
}

static float logprob_of(float logit, double total) {
    double v = (double)logit - total;
    return (float)(v < 0 ? v : 0);
}

static void apply_bias(const sampling_params *p, float *logits, float *originals) {
    for (int i = 0; i < p->n_bias; i++)
        originals[i] = logits[p->bias[i].id];
    for (int i = 0; i < p->n_bias; i++)
        logits[p->bias[i].id] += p->bias[i].bias;
}

static void apply_penalties(const sampling_params *p, token_counts *c, float *logits) {
    for (int i = 0; i < c->n; i++) {
        token_count *t = &c->items[i];
        float *l = &logits[t->id];
        t->original = *l;
        if (t->seen > 0)
            *l = *l > 0 ? *l / p->repetition_penalty : *l * p->repetition_penalty;
        if (t->made > 0)
            *l -= (float)t->made * p->frequency_penalty + p->presence_penalty;
    }
}

// What the logit of id was before apply_bias and apply_penalties.
static float original_logit(const sample_item *it, const float *bias_originals, int32_t id) {
    for (int i = 0; i < it->params->n_bias; i++)
        if (it->params->bias[i].id == id)
            return bias_originals[i];
    const token_count *t = it->counts ? counts_find(it->counts, id) : NULL;
    return t ? t->original : it->logits[id];
}

// Step 8: the token at which the sum over ascending ids passes a random share of the total.
static int32_t draw(const sample_crew *c, const sample_dist *d, uint64_t random) {
    uint64_t total = sample_mass(c, d);
    uint64_t rest = (uint64_t)((unsigned __int128)random * total >> 64); // in [0, total)
    int block = 0;
    while (rest >= c->block_mass[block])
        rest -= c->block_mass[block++];
    for (int32_t i = block * SAMPLE_BLOCK;; i++) {
        if (!sample_alive(&d->cut, sample_key(d->logits[i]), i))
            continue;
        uint64_t w = sample_weight(d->logits[i], d->max, d->temperature);
        if (rest < w)
            return i;
        rest -= w;
    }
}

// Steps 4 to 8; -1 when bias or penalties made a logit overflow.
static int32_t choose(const sample_crew *c, const sample_item *it, sample_scan found, bool edited) {
    const sampling_params *p = it->params;
    if (edited)
        found = scan(c, it->logits, 0);
    if (!found.finite)
        return -1;
    if (p->temperature == 0)
        return found.max_id;
    sample_dist d = {.logits = it->logits,
                     .max = found.max,
                     .temperature = p->temperature,
                     .cut = {.last_id = INT32_MAX}};
    sample_truncate(c, &d, p);
    return draw(c, &d, philox_token(p->seed, (uint32_t)it->choice, (uint32_t)it->position));
}

// false: a logit is not finite.
static bool run_item(const sample_crew *c, const sample_item *it) {
    const sampling_params *p = it->params;
    int n_top = p->n_top_logprobs > 0 ? p->n_top_logprobs : 0;
    bool describe = p->n_top_logprobs >= 0 || it->given >= 0;
    float bias_originals[SAMPLING_MAX_BIAS];
    sample_scan found = scan(c, it->logits, n_top);
    if (!found.finite)
        return false;
    double total = describe ? log_total(c, it->logits, found.max) : 0;
    *it->out = (engine_sampled){.id = it->given, .n_top = found.n_top};
    for (int i = 0; i < found.n_top; i++)
        it->out->top[i] = (token_logprob){.id = found.top[i].id,
                                          .logprob = logprob_of(found.top[i].logprob, total)};
    if (it->given >= 0) {
        it->out->logprob = logprob_of(it->logits[it->given], total);
        return true;
    }
    apply_bias(p, it->logits, bias_originals);
    if (it->counts)
        apply_penalties(p, it->counts, it->logits);
    it->out->id = choose(c, it, found, p->n_bias > 0 || it->counts);
    if (it->out->id < 0)
        return false;
    if (describe)
        it->out->logprob = logprob_of(original_logit(it, bias_originals, it->out->id), total);
    return true;
}

// Whole items, one thread each.
static void run_items(void *ctx, int part, int n_parts) {
    const run_job *j = ctx;
    const sampler *s = j->s;
    sample_crew alone = {.parts = &s->parts[part],
                         .n_parts = 1,
                         .block_mass = s->block_mass + (size_t)part * (size_t)s->n_blocks,
                         .n_vocab = s->n_vocab};
    j->first_bad[part] = j->n;
    for (int i = part; i < j->n; i += n_parts)
        if (!run_item(&alone, &j->items[i]) && i < j->first_bad[part])
            j->first_bad[part] = i;
}

// Items one after the other, each shared by all threads.
static int run_shared(const sampler *s, const sample_item *items, int n) {
    sample_crew all = {.o = s->o,
                       .parts = s->parts,
                       .n_parts = s->n_parts,
                       .block_mass = s->block_mass,
                       .n_vocab = s->n_vocab};
    for (int i = 0; i < n; i++)
        if (!run_item(&all, &items[i]))
            return i;
    return n;
}

int sampler_run(sampler *s, const sample_item *items, int n, int *bad, err *e) {
    run_job j = {.s = s, .items = items, .n = n, .first_bad = s->first_bad};
    if (s->o && n < s->n_parts) {
        s->first_bad[0] = run_shared(s, items, n);
    } else if (s->o) {
        s->o->parallel(s->o, run_items, &j);
        for (int p = 1; p < s->n_parts; p++)
            if (s->first_bad[p] < s->first_bad[0])
                s->first_bad[0] = s->first_bad[p];
    } else {
        run_items(&j, 0, 1);
    }
    if (s->first_bad[0] == n)
        return 0;
    *bad = s->first_bad[0];
    return err_set(e, ERR_INTERNAL, NULL, "the model's logits are not finite");
}

static void count_parts(void *ctx, int part, int n_parts) {
    if (part == 0)
        *(int *)ctx = n_parts;
}

sampler *sampler_open(ops *o, int n_vocab) {
    sampler *s = calloc(1, sizeof *s);
    if (!s)
        fatal("out of memory");
    s->o = o;
    s->n_vocab = n_vocab;
    s->n_parts = 1;
    s->n_blocks = (n_vocab + SAMPLE_BLOCK - 1) / SAMPLE_BLOCK;
    if (o)
        o->parallel(o, count_parts, &s->n_parts);
    size_t parts = (size_t)s->n_parts;
    s->parts = calloc(parts, sizeof *s->parts);
    s->block_mass = calloc(parts * (size_t)s->n_blocks, sizeof *s->block_mass);
    s->first_bad = calloc(parts, sizeof *s->first_bad);
    if (!s->parts || !s->block_mass || !s->first_bad)
        fatal("out of memory");
    return s;
}

void sampler_close(sampler *s) {
    if (!s)
        return;
    free(s->parts);
    free(s->block_mass);
    free(s->first_bad);
    free(s);
}
