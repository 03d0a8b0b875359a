// The sampler against the same steps done naively in double with a full sort: which tokens survive,
// how often they are drawn, log-probabilities, penalties, ties, seeds, and that threads and company
// change nothing.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "engine/philox.h"
#include "engine/sample_internal.h"

enum { MAX_VOCAB = 5000, MOST_VOCAB = 152064, N_BLOCKS = MAX_VOCAB / SAMPLE_BLOCK + 1 };

static uint64_t random_state = 88172645463325252u;

static uint64_t next_random(void) { // xorshift
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    return random_state ^= random_state << 17;
}

static float uniform(void) { return (float)(next_random() >> 40) / (float)(1 << 24); }

// Logits with about the spread of a real model's; with `ties` on a coarse grid.
static void fill_logits(float *l, int n, bool ties) {
    for (int i = 0; i < n; i++) {
        l[i] = (uniform() + uniform() + uniform() + uniform() - 2) * 8;
        if (ties)
            l[i] = floorf(l[i] * 2) / 2;
    }
}

static sampling_params plain(void) {
    return (sampling_params){
        .temperature = 1, .top_p = 1, .repetition_penalty = 1, .n_top_logprobs = -1};
}

// ---- the naive way

typedef struct ranked {
    int32_t id;
    double x, p; // logit / temperature, probability relative to the greatest
} ranked;

static int by_rank(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    if (x->x != y->x)
        return x->x < y->x ? 1 : -1;
    return x->id - y->id;
}

// Sorts into out and returns how many survive.
static int naive_survivors(const float *l, int n, const sampling_params *p, ranked *out) {
    double sum = 0, reached = 0;
    for (int i = 0; i < n; i++)
        out[i] = (ranked){.id = i, .x = (double)l[i] / (double)p->temperature};
    qsort(out, (size_t)n, sizeof *out, by_rank);
    int kept = p->top_k > 0 && p->top_k < n ? p->top_k : n, nucleus = 0;
    for (int i = 0; i < n; i++)
        out[i].p = exp(out[i].x - out[0].x);
    for (int i = 0; i < kept; i++)
        sum += out[i].p;
    while (nucleus < kept && reached < (double)p->top_p * sum)
        reached += out[nucleus++].p;
    kept = p->top_p < 1 ? nucleus : kept;
    while (kept > 1 && out[kept - 1].p < (double)p->min_p)
        kept--;
    return kept;
}

// ---- which tokens survive

typedef struct bench { // a crew of the calling thread
    sample_part part;
    uint64_t block_mass[N_BLOCKS];
    sample_crew crew;
} bench;

static bench *new_bench(int n_vocab) {
    bench *b = calloc(1, sizeof *b);
    b->crew = (sample_crew){
        .parts = &b->part, .n_parts = 1, .block_mass = b->block_mass, .n_vocab = n_vocab};
    return b;
}

// A token at the very edge may fall on either side, as probabilities are rounded.
static void check_survivors(const float *l, int n, const sampling_params *p) {
    static ranked order[MAX_VOCAB];
    bench *b = new_bench(n);
    int kept = naive_survivors(l, n, p, order), ours = 0;
    sample_dist d = {.logits = l,
                     .max = l[order[0].id],
                     .temperature = p->temperature,
                     .cut = {.last_id = INT32_MAX}};
    sample_truncate(&b->crew, &d, p);
    for (int i = 0; i < n; i++)
        ours += sample_alive(&d.cut, sample_key(l[i]), i);
    for (int i = 0; i < ours; i++) // a prefix of the same order
        assert_true(sample_alive(&d.cut, sample_key(l[order[i].id]), order[i].id));
    if (p->top_p == 1)
        assert_int_equal(ours, kept);
    else
        assert_in_range(ours, kept > 1 ? kept - 1 : 1, kept + 1);
    free(b);
}

static void survivors_equal_those_of_a_full_sort(void **state) {
    (void)state;
    static const int sizes[] = {1, 2, 10, 1023, 1024, 1025, 5000};
    static const int32_t top_ks[] = {0, 1, 2, 40, 1000, 5001};
    static const float top_ps[] = {1, 0.99f, 0.9f, 0.5f, 0.01f}, min_ps[] = {0, 0.001f, 0.1f, 0.9f};
    static float l[MAX_VOCAB];
    for (int round = 0; round < 7 * 6 * 5 * 4 * 2; round++) {
        int at = round, n = sizes[at % 7];
        sampling_params p = plain();
        p.top_k = top_ks[(at /= 7) % 6];
        p.top_p = top_ps[(at /= 6) % 5];
        p.min_p = min_ps[(at /= 5) % 4];
        p.temperature = 0.3f + uniform();
        fill_logits(l, n, at / 4 % 2 == 0);
        check_survivors(l, n, &p);
    }
}

static void of_equal_tokens_the_lower_ids_survive(void **state) {
    (void)state;
    enum { N = 3000 };
    static float l[N];
    bench *b = new_bench(N);
    sampling_params p = plain();
    sample_dist d = {.logits = l, .temperature = 1, .cut = {.last_id = INT32_MAX}};
    p.top_k = 1500;
    sample_truncate(&b->crew, &d, &p);
    assert_int_equal(d.cut.last_id, 1499);
    p.top_p = 0.5f;
    sample_truncate(&b->crew, &d, &p);
    assert_int_equal(d.cut.last_id, 749);
    l[10] = -0.0f; // equal to 0
    sample_truncate(&b->crew, &d, &p);
    assert_true(sample_alive(&d.cut, sample_key(l[10]), 10));
    free(b);
}

static void weights_are_exponentials_within_a_ten_millionth(void **state) {
    (void)state;
    for (float x = 0; x > -87; x -= 0.0137f)
        assert_true(fabs((double)sample_exp(x) / exp((double)x) - 1) < 3e-7);
    assert_true(sample_exp(0) == 1);
    assert_true(sample_exp(-1e30f) < 1e-37f);
    assert_true(sample_exp(-INFINITY) < 1e-37f);
}

// ---- drawing

static engine_sampled sample_one(sampler *s, const float *l, int n, const sampling_params *p,
                                 int choice, int position) {
    static float copy[MOST_VOCAB];
    engine_sampled out;
    err e = {0};
    int bad;
    memcpy(copy, l, (size_t)n * sizeof *copy);
    sample_item it = {.logits = copy,
                      .params = p,
                      .choice = choice,
                      .position = position,
                      .given = -1,
                      .out = &out};
    if (sampler_run(s, &it, 1, &bad, &e))
        fail_msg("%s", e.message);
    return out;
}

// Chi-square of 20,000 draws against the naive distribution; tokens expected less than 8 times are
// one cell. The limit is about five standard deviations above the mean, and the draws are always
// the same.
static void check_distribution(const float *l, int n, const sampling_params *p) {
    enum { DRAWS = 20000 };
    static ranked order[MAX_VOCAB];
    static int drawn[MAX_VOCAB];
    sampler *s = sampler_open(NULL, n);
    int kept = naive_survivors(l, n, p, order), cells = 0;
    double sum = 0, chi = 0, rare_expected = 0, rare_drawn = 0;
    memset(drawn, 0, sizeof drawn);
    for (int i = 0; i < DRAWS; i++)
        drawn[sample_one(s, l, n, p, i % 3, i).id]++;
    for (int i = 0; i < kept; i++)
        sum += order[i].p;
    for (int i = 0; i < n; i++) {
        double expected = i < kept ? DRAWS * order[i].p / sum : 0, got = drawn[order[i].id];
        if (i > kept) // one token at the edge may be ours
            assert_int_equal(got, 0);
        if (expected < 8) {
            rare_expected += expected;
            rare_drawn += got;
            continue;
        }
        chi += (got - expected) * (got - expected) / expected;
        cells++;
    }
    if (rare_expected >= 8) {
        chi += (rare_drawn - rare_expected) * (rare_drawn - rare_expected) / rare_expected;
        cells++;
    }
    double freedom = cells - 1;
    if (chi > freedom + 5 * sqrt(2 * freedom) + 5)
        fail_msg("chi-square %.1f with %.0f degrees of freedom", chi, freedom);
    sampler_close(s);
}

static void draws_follow_the_distribution(void **state) {
    (void)state;
    static float l[2000];
    static const struct {
        float temperature, top_p, min_p;
        int32_t top_k;
    } settings[] = {
        {1, 1, 0, 0},     {0.7f, 1, 0, 0},         {2, 1, 0, 0},    {1, 0.9f, 0, 0}, {1, 1, 0, 12},
        {1, 1, 0.05f, 0}, {1.5f, 0.8f, 0.02f, 50}, {1, 0.5f, 0, 40}};
    fill_logits(l, 2000, false);
    for (size_t i = 0; i < sizeof settings / sizeof *settings; i++) {
        sampling_params p = plain();
        p.seed = 4711;
        p.temperature = settings[i].temperature;
        p.top_p = settings[i].top_p;
        p.min_p = settings[i].min_p;
        p.top_k = settings[i].top_k;
        check_distribution(l, 2000, &p);
    }
}

static void seed_choice_and_position_alone_decide_the_draw(void **state) {
    (void)state;
    static float l[1000];
    int same = 0;
    sampler *s = sampler_open(NULL, 1000);
    sampling_params p = plain(), q = plain();
    p.temperature = q.temperature = 2;
    p.seed = 1;
    q.seed = 2;
    fill_logits(l, 1000, false);
    for (int i = 0; i < 200; i++) {
        int32_t id = sample_one(s, l, 1000, &p, 0, i).id;
        assert_int_equal(id, sample_one(s, l, 1000, &p, 0, i).id);
        same += id == sample_one(s, l, 1000, &q, 0, i).id;
        same += id == sample_one(s, l, 1000, &p, 1, i).id;
        same += id == sample_one(s, l, 1000, &p, 0, i + 1).id;
    }
    assert_true(same < 60); // 600 chances
    sampler_close(s);
}

static void temperature_zero_takes_the_greatest_and_the_lowest_id_of_equals(void **state) {
    (void)state;
    static float l[MAX_VOCAB];
    ops *o;
    sampling_params p = plain();
    p.temperature = 0;
    assert_int_equal(ops_open("ref", 3, &o, NULL), 0);
    sampler *s = sampler_open(o, MAX_VOCAB);
    fill_logits(l, MAX_VOCAB, false);
    static const int32_t at[] = {4999, 4000, 1024, 1023, 5, 0};
    for (int i = 0; i < 6; i++) { // an equal one further in front each time
        l[at[i]] = 50;
        assert_int_equal(sample_one(s, l, MAX_VOCAB, &p, 0, i).id, at[i]);
    }
    sampler_close(s);
    o->close(o);
}

static void a_tiny_temperature_is_as_good_as_none(void **state) {
    (void)state;
    static float l[1000];
    static const float cold[] = {1e-3f, 1e-6f, 1e-38f, 1e-44f};
    sampler *s = sampler_open(NULL, 1000);
    sampling_params p = plain();
    fill_logits(l, 1000, false);
    l[77] = 20;
    for (int i = 0; i < 4; i++) {
        p.temperature = cold[i];
        p.top_p = 0.9f;
        p.min_p = 0.1f;
        assert_int_equal(sample_one(s, l, 1000, &p, 0, i).id, 77);
    }
    sampler_close(s);
}

// ---- threads and company

enum { COMPANY = 7, WIDE = 4500 };

static void run_company(sampler *s, const float *logits, const sampling_params *p, int n_at_once,
                        engine_sampled *out) {
    static float copy[COMPANY * WIDE];
    sample_item items[COMPANY];
    int bad;
    memcpy(copy, logits, sizeof copy);
    for (int i = 0; i < COMPANY; i++)
        items[i] = (sample_item){.logits = copy + (size_t)i * WIDE,
                                 .params = &p[i],
                                 .position = i,
                                 .given = i == 3 ? 42 : -1,
                                 .out = &out[i]};
    for (int i = 0; i < COMPANY; i += n_at_once)
        assert_int_equal(sampler_run(s, items + i,
                                     COMPANY - i < n_at_once ? COMPANY - i : n_at_once, &bad, NULL),
                         0);
}

static void threads_and_company_do_not_change_a_draw(void **state) {
    (void)state;
    static float logits[COMPANY * WIDE];
    engine_sampled alone[COMPANY], other[COMPANY];
    sampling_params p[COMPANY];
    for (int i = 0; i < COMPANY; i++) {
        p[i] = plain();
        p[i].seed = (uint64_t)i;
        p[i].n_top_logprobs = 3 * i;
        p[i].top_p = i % 2 ? 0.95f : 1;
        p[i].top_k = i % 3 ? 50 : 0;
        fill_logits(logits + (size_t)i * WIDE, WIDE, i == 5);
    }
    memset(alone, 0, sizeof alone);
    sampler *s = sampler_open(NULL, WIDE);
    run_company(s, logits, p, 1, alone);
    sampler_close(s);
    for (int threads = 1; threads <= 4; threads++) {
        ops *o;
        assert_int_equal(ops_open("ref", threads, &o, NULL), 0);
        s = sampler_open(o, WIDE);
        for (int at_once = 1; at_once <= COMPANY; at_once += 2) {
            memset(other, 0, sizeof other);
            run_company(s, logits, p, at_once, other);
            assert_memory_equal(alone, other, sizeof alone);
        }
        sampler_close(s);
        o->close(o);
    }
}

// A draw as sample.h says it, one thread, by a full sort.
static int32_t naive_draw(const float *l, int n, const sampling_params *p, int position) {
    ranked *order = malloc((size_t)n * sizeof *order);
    for (int i = 0; i < n; i++)
        order[i] = (ranked){.id = i, .x = (double)l[i]};
    qsort(order, (size_t)n, sizeof *order, by_rank);
    int32_t found = order[0].id;
    if (p->temperature == 0) {
        free(order);
        return found;
    }
    int kept = p->top_k > 0 ? p->top_k : n;
    uint64_t mass = 0, reached = 0;
    for (int i = 0; i < kept; i++)
        mass += sample_weight(l[order[i].id], l[order[0].id], p->temperature);
    uint64_t target = p->top_p < 1 ? (uint64_t)((double)p->top_p * (double)mass) : mass;
    bool *is_in = calloc((size_t)n, sizeof *is_in);
    for (int i = 0; i < kept && reached < target; i++) {
        is_in[order[i].id] = true;
        reached += sample_weight(l[order[i].id], l[order[0].id], p->temperature);
    }
    uint64_t random = philox_token(p->seed, 0, (uint32_t)position);
    uint64_t rest = (uint64_t)((unsigned __int128)random * reached >> 64);
    for (int i = 0;; i++) {
        uint64_t w = is_in[i] ? sample_weight(l[i], l[order[0].id], p->temperature) : 0;
        found = i;
        if (rest < w)
            break;
        rest -= w;
    }
    free(is_in);
    free(order);
    return found;
}

static void a_whole_vocabulary_gives_the_naive_draw_on_any_number_of_threads(void **state) {
    (void)state;
    enum { N = MOST_VOCAB, CASES = 6 };
    static const int thread_counts[] = {1, 2, 3, 5};
    static float l[N];
    sampling_params p[CASES];
    int32_t naive[CASES];
    for (int i = 0; i < CASES; i++) {
        p[i] = plain();
        p[i].seed = (uint64_t)i;
        p[i].temperature = i ? 0.5f + 0.3f * (float)i : 0;
        p[i].top_p = i == 2 || i == 5 ? 0.9f : 1;
        p[i].top_k = i == 3 || i == 5 ? 40 : 0;
    }
    fill_logits(l, N, true); // ties at the cuts
    for (int i = 0; i < CASES; i++)
        naive[i] = naive_draw(l, N, &p[i], i);
    for (int k = 0; k < 4; k++) {
        ops *o;
        assert_int_equal(ops_open("ref", thread_counts[k], &o, NULL), 0);
        sampler *s = sampler_open(o, N);
        for (int i = 0; i < CASES; i++)
            assert_int_equal(sample_one(s, l, N, &p[i], 0, i).id, naive[i]);
        sampler_close(s);
        o->close(o);
    }
}

// ---- log-probabilities

static void logprobs_are_of_the_raw_distribution(void **state) {
    (void)state;
    enum { N = 3000 };
    static float l[N];
    static ranked order[MAX_VOCAB];
    double sum = 0;
    sampler *s = sampler_open(NULL, N);
    sampling_params p = plain(), raw = plain();
    fill_logits(l, N, true);
    naive_survivors(l, N, &raw, order);
    for (int i = 0; i < N; i++)
        sum += order[i].p;
    p.n_top_logprobs = ENGINE_TOP;
    p.temperature = 0.5f;
    p.top_k = 3;
    p.n_bias = 2;
    p.bias[0] = (logit_bias){.id = order[0].id, .bias = -100};
    p.bias[1] = (logit_bias){.id = order[2500].id, .bias = 90};
    engine_sampled out = sample_one(s, l, N, &p, 0, 0);
    assert_int_equal(out.id, order[2500].id); // the bias decides, the log-probability ignores it
    assert_true(fabs((double)out.logprob - log(order[2500].p / sum)) < 1e-5);
    assert_int_equal(out.n_top, ENGINE_TOP);
    for (int i = 0; i < ENGINE_TOP; i++) {
        assert_int_equal(out.top[i].id, order[i].id); // equals by lower id
        assert_true(fabs((double)out.top[i].logprob - log(order[i].p / sum)) < 1e-5);
    }
    sampler_close(s);
}

static void a_given_token_is_described_and_nothing_is_drawn(void **state) {
    (void)state;
    enum { N = 100 };
    float l[N];
    double sum = 0;
    int bad;
    engine_sampled out;
    sampler *s = sampler_open(NULL, N);
    sampling_params p = plain();
    fill_logits(l, N, false);
    for (int i = 0; i < N; i++)
        sum += exp((double)l[i]);
    double expected = (double)l[60] - log(sum);
    sample_item it = {.logits = l, .params = &p, .given = 60, .out = &out};
    assert_int_equal(sampler_run(s, &it, 1, &bad, NULL), 0);
    assert_int_equal(out.id, 60);
    assert_true(fabs((double)out.logprob - expected) < 1e-5);
    assert_int_equal(out.n_top, 0);
    sampler_close(s);
}

static void a_vocabulary_smaller_than_the_alternatives_is_listed_whole(void **state) {
    (void)state;
    const float l[3] = {1, 3, 2};
    sampler *s = sampler_open(NULL, 3);
    sampling_params p = plain();
    p.n_top_logprobs = ENGINE_TOP;
    engine_sampled out = sample_one(s, l, 3, &p, 0, 0);
    assert_int_equal(out.n_top, 3);
    assert_int_equal(out.top[0].id, 1);
    assert_int_equal(out.top[2].id, 0);
    sampler_close(s);
}

// ---- bias and penalties

static void penalties_follow_their_formulas(void **state) {
    (void)state;
    float l[] = {2, -2, 2, -2, 1, 0.5f};
    int bad;
    engine_sampled out;
    sampler *s = sampler_open(NULL, 6);
    token_counts *c = counts_new(6);
    sampling_params p = plain();
    p.temperature = 0;
    p.n_top_logprobs = 0;
    p.presence_penalty = 0.25f;
    p.frequency_penalty = 0.5f;
    p.repetition_penalty = 1.25f;
    p.n_bias = 1;
    p.bias[0] = (logit_bias){.id = 5, .bias = 1.5f};
    counts_add(c, 0, false); // prompt only: repetition alone
    counts_add(c, 1, false);
    for (int i = 0; i < 3; i++) { // three times in the answer
        counts_add(c, 2, true);
        counts_add(c, 3, true);
    }
    counts_add(c, 5, true);
    sample_item it = {.logits = l, .params = &p, .counts = c, .given = -1, .out = &out};
    double raw_total = log(2 * exp(2) + 2 * exp(-2) + exp(1) + exp(0.5));
    assert_int_equal(sampler_run(s, &it, 1, &bad, NULL), 0);
    const float expected[] = {2 / 1.25f,
                              -2 * 1.25f,
                              2 / 1.25f - 3 * 0.5f - 0.25f,
                              -2 * 1.25f - 3 * 0.5f - 0.25f,
                              1,
                              2 / 1.25f - 0.5f - 0.25f}; // the bias comes first
    for (int i = 0; i < 6; i++)
        assert_true(fabsf(l[i] - expected[i]) < 1e-6f);
    assert_int_equal(out.id, 0);
    assert_true(fabs((double)out.logprob - (2 - raw_total)) < 1e-5);
    counts_free(c);
    sampler_close(s);
}

static void a_strong_bias_forces_or_bans_a_token(void **state) {
    (void)state;
    static float l[1000];
    sampler *s = sampler_open(NULL, 1000);
    sampling_params p = plain();
    fill_logits(l, 1000, false);
    p.n_bias = 1;
    p.bias[0] = (logit_bias){.id = 999, .bias = 100};
    for (int i = 0; i < 20; i++)
        assert_int_equal(sample_one(s, l, 1000, &p, 0, i).id, 999);
    l[999] = 30;
    p.bias[0].bias = -100;
    for (int i = 0; i < 20; i++)
        assert_int_not_equal(sample_one(s, l, 1000, &p, 0, i).id, 999);
    sampler_close(s);
}

// ---- errors

static void logits_that_are_not_finite_are_an_error(void **state) {
    (void)state;
    static float l[4 * MAX_VOCAB];
    static const float odd[] = {NAN, INFINITY, -INFINITY};
    ops *o;
    engine_sampled out[4];
    sample_item items[4];
    sampling_params p = plain();
    assert_int_equal(ops_open("ref", 2, &o, NULL), 0);
    sampler *s = sampler_open(o, MAX_VOCAB);
    for (int round = 0; round < 3 * 4; round++) {
        err e = {0};
        int bad = -1, at = round % 4;
        for (int i = 0; i < 4; i++) {
            fill_logits(l + i * MAX_VOCAB, MAX_VOCAB, false);
            items[i] = (sample_item){
                .logits = l + i * MAX_VOCAB, .params = &p, .given = -1, .out = &out[i]};
        }
        l[at * MAX_VOCAB + 1 + 1600 * at] = odd[round / 4];
        assert_int_equal(sampler_run(s, items, 4, &bad, &e), -1);
        assert_int_equal(e.code, ERR_INTERNAL);
        assert_int_equal(bad, at);
        assert_int_equal(sampler_run(s, items + at, 1, &bad, &e), -1);
        assert_int_equal(bad, 0);
    }
    sampler_close(s);
    o->close(o);
}

static void a_logit_that_a_penalty_overflows_is_an_error(void **state) {
    (void)state;
    float l[] = {3e38f, 0};
    int bad;
    engine_sampled out;
    sampler *s = sampler_open(NULL, 2);
    token_counts *c = counts_new(2);
    sampling_params p = plain();
    p.repetition_penalty = 0.1f;
    counts_add(c, 0, false);
    sample_item it = {.logits = l, .params = &p, .counts = c, .given = -1, .out = &out};
    assert_int_equal(sampler_run(s, &it, 1, &bad, NULL), -1);
    counts_free(c);
    sampler_close(s);
}

static void expect_param(sampling_params p, const char *name) {
    err e = {0};
    assert_int_equal(sampling_check(&p, 100, &e), -1);
    assert_int_equal(e.code, ERR_INVALID);
    assert_string_equal(e.param, name);
}

static void a_parameter_out_of_range_is_named(void **state) {
    (void)state;
    sampling_params ok = plain(), p;
    assert_int_equal(sampling_check(&ok, 100, NULL), 0);
#define REFUSED(field, value, name) (p = ok, p.field = (value), expect_param(p, name))
    REFUSED(temperature, -0.1f, "temperature");
    REFUSED(temperature, NAN, "temperature");
    REFUSED(top_p, 0, "top_p");
    REFUSED(top_p, 1.1f, "top_p");
    REFUSED(min_p, 1.1f, "min_p");
    REFUSED(top_k, -1, "top_k");
    REFUSED(presence_penalty, 2.1f, "presence_penalty");
    REFUSED(frequency_penalty, NAN, "frequency_penalty");
    REFUSED(repetition_penalty, 0, "repetition_penalty");
    REFUSED(n_top_logprobs, ENGINE_TOP + 1, "top_logprobs");
    REFUSED(n_top_logprobs, -2, "top_logprobs");
    REFUSED(n_bias, SAMPLING_MAX_BIAS + 1, "logit_bias");
#undef REFUSED
    p = ok;
    p.n_bias = 1;
    p.bias[0] = (logit_bias){.id = 100, .bias = 1};
    expect_param(p, "logit_bias");
    p.bias[0] = (logit_bias){.id = 99, .bias = 101};
    expect_param(p, "logit_bias");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(survivors_equal_those_of_a_full_sort),
        cmocka_unit_test(of_equal_tokens_the_lower_ids_survive),
        cmocka_unit_test(weights_are_exponentials_within_a_ten_millionth),
        cmocka_unit_test(draws_follow_the_distribution),
        cmocka_unit_test(seed_choice_and_position_alone_decide_the_draw),
        cmocka_unit_test(temperature_zero_takes_the_greatest_and_the_lowest_id_of_equals),
        cmocka_unit_test(a_tiny_temperature_is_as_good_as_none),
        cmocka_unit_test(threads_and_company_do_not_change_a_draw),
        cmocka_unit_test(a_whole_vocabulary_gives_the_naive_draw_on_any_number_of_threads),
        cmocka_unit_test(logprobs_are_of_the_raw_distribution),
        cmocka_unit_test(a_given_token_is_described_and_nothing_is_drawn),
        cmocka_unit_test(a_vocabulary_smaller_than_the_alternatives_is_listed_whole),
        cmocka_unit_test(penalties_follow_their_formulas),
        cmocka_unit_test(a_strong_bias_forces_or_bans_a_token),
        cmocka_unit_test(logits_that_are_not_finite_are_an_error),
        cmocka_unit_test(a_logit_that_a_penalty_overflows_is_an_error),
        cmocka_unit_test(a_parameter_out_of_range_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
