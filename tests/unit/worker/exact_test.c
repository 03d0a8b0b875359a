// All at once: sixteen requests of different lengths side by side, greedy and sampled, of two
// tenants, of two adapters and of none, beginning alike, with guesses and without, prompts in
// chunks and a KV cache too small for them: each makes the tokens, log-probabilities and text that
// it makes alone in an engine of its own. On a tiny model and, where its file is, on the real one.
// What is said to happen is counted.
#include "base/file.h"
#include "tests/support/servers.h"
#include "tests/support/step_bench.h"
#include "tests/support/tiny_lora.h"
#include "worker/adapters.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

enum { N = 16, GROUPS = 4, SLOTS = 16, ADAPTER_BYTES = 64 << 20 };

#define TENANT_A "01900000-0000-7000-8000-00000000000a"
#define TENANT_B "01900000-0000-7000-8000-00000000000b"

// Who may share a prefix: a tenant's requests of one adapter (index of place.ids; -1: of none).
static const struct {
    const char *tenant;
    int adapter;
} groups[GROUPS] = {{TENANT_A, -1}, {TENANT_A, 0}, {TENANT_A, 1}, {TENANT_B, -1}};

typedef struct place { // a model, its adapters, and sizes that make it tight
    const model *m;
    const tiny_model *shape;
    int unit; // lengths of prompts and the KV cache are multiples of it
    int kv_tokens, step_tokens;
    char dir[64], ids[2][64];
    bench alone[N];
    adapters *adapters[N];
} place;

static const secret_ring ring = {.keys = {{.id = 1, .key = {7}}}, .n = 1};

// ---- the requests

// The first of each group are the longest; lengths lie on and around the borders of pages.
static job make_job(const letterbox *m, int i, int unit) {
    static const int lengths[N] = {70, 64, 65, 71, 1, 15, 16, 17, 31, 32, 33, 47, 48, 49, 63, 50};
    job j =
        bench_job(m, i + 1, 0, i < GROUPS ? lengths[i] * unit : lengths[i] * unit - i % 3 % unit,
                  44 + i % 5 * 3);
    snprintf(j.tenant, sizeof j.tenant, "%s", groups[i % GROUPS].tenant);
    j.sampling.n_top_logprobs = 1;
    if (i % 2)
        j.sampling.temperature = 0;
    if (i % 3) { // repeats itself, so that it can be guessed
        j.sampling.n_bias = 2;
        j.sampling.bias[0] = (logit_bias){'a', 20};
        j.sampling.bias[1] = (logit_bias){'b', 19};
    } else {
        j.sampling.frequency_penalty = 0.3f;
        j.sampling.top_p = 0.9f;
    }
    j.n_choices = i == 6 ? 2 : 1;
    return j;
}

static run *add(place *p, bench *b, adapters *s, job *j, int group) {
    int at = groups[group].adapter;
    snprintf(j->adapter, sizeof j->adapter, "%s", at < 0 ? "" : p->ids[at]);
    run_salt(&ring, j, "revision", engine_kv_name(b->g), b->salt);
    run *r = bench_add(b, j);
    if (at >= 0)
        r->adapter = bench_wait(s, adapters_hold(s, j->tenant, j->adapter));
    return r;
}

static void close_all(bench *b, adapters *s) { // runs hold adapters, these the engine
    while (b->runs) {
        run *r = b->runs;
        b->runs = r->next;
        run_free(r, b->g);
    }
    adapters_free(s);
    bench_close(b);
}

// ---- alone

static void run_alone(place *p, int i) {
    bench *one = &p->alone[i];
    bench_open_model(one, p->m, i == 6 ? 2 : 1, 1024, BENCH_ROOMY);
    p->adapters[i] = adapters_new(one->g, p->dir, ADAPTER_BYTES, bench_ignore, NULL);
    job j = make_job(&one->m, i, p->unit);
    add(p, one, p->adapters[i], &j, i % GROUPS);
    bench_run(one);
    assert_int_equal(bench_told(one, &j)->n_holds,
                     j.n_choices > 1); // its prompt in one piece, then the fork
    assert_int_equal(one->s.n_guessed + engine_get_stats(one->g).prefix_hits + one->s.n_evicted, 0);
}

// ---- together

typedef struct passes { // what they were like
    int mixed;          // passes with rows of both adapters and of none
    int prompts;        // passes with rows that decode and parts of prompts
    int most;           // rows of a pass
} passes;

static void look(const step_plan *p, passes *s) {
    const adapter *one = NULL, *other = NULL;
    bool has_base = false;
    for (int i = 0; i < p->n; i++) {
        const adapter *a = p->runs[i]->adapter;
        has_base |= !a;
        other = a && one && a != one ? a : other;
        one = a && !one ? a : one;
    }
    s->mixed += has_base && other;
    s->prompts += p->n_decode > 0 && p->n_decode < p->n;
    s->most = p->n > s->most ? p->n : s->most;
}

static bool is_live(const run *runs) {
    for (const run *r = runs; r; r = r->next)
        if (r->n_live)
            return true;
    return false;
}

// The first of each group come a little before the others, who find what these have stored.
static void run_together(place *p, bench *b, adapters *s, job *j, passes *seen) {
    for (int i = 0; i < GROUPS; i++) {
        j[i] = make_job(&b->m, i, p->unit);
        add(p, b, s, &j[i], i);
    }
    while (!b->runs->prefilled || !b->runs->next->next->next->prefilled)
        bench_step(b);
    for (int i = GROUPS; i < N; i++) {
        j[i] = make_job(&b->m, i, p->unit);
        add(p, b, s, &j[i], i % GROUPS);
    }
    for (int steps = 0; is_live(b->runs); steps++) {
        assert_in_range(steps, 0, 5000);
        bench_step(b);
        look(&b->s.plan, seen);
    }
    letterbox_read(&b->m);
}

static void assert_same(const told *a, const told *b, int n_choices) {
    bench_same(a, b, n_choices);
    for (int i = 0; i < n_choices; i++)
        assert_memory_equal(a->choices[i].logprobs, b->choices[i].logprobs,
                            (size_t)a->choices[i].n * sizeof(float));
}

static void assert_it_happened(const bench *b, const passes *seen, const int *cached, int n_holds) {
    assert_true(seen->mixed > 0 && seen->prompts > 0 && seen->most > 7);
    // With guesses the sequences last shorter, how much shorter the machine's kernels decide.
    assert_true(b->n_preempted > 0 || (b->s.draft_rows > 0 && b->s.m != bench_model));
    assert_true(n_holds > 4); // prompts cut somewhere
    assert_true(cached[1] > 0 && cached[2] > 0 && cached[0] + cached[3] > 0);
    assert_int_equal(b->s.n_guessed > 0, b->s.draft_rows > 0);
    assert_int_equal(b->s.n_right > 0, b->s.draft_rows > 0);
    assert_true(engine_get_stats(b->g).prefix_hits > 0 &&
                engine_get_stats(b->g).prefix_evicted > 0);
}

static void all_get_what_each_gets_alone(place *p, int draft_rows) {
    bench b;
    passes seen = {0};
    job j[N];
    int cached[GROUPS] = {0}, n_holds = 0;
    bench_open_model(&b, p->m, SLOTS, p->step_tokens, p->kv_tokens);
    b.s.draft_rows = draft_rows;
    adapters *s = adapters_new(b.g, p->dir, ADAPTER_BYTES, bench_ignore, NULL);
    run_together(p, &b, s, j, &seen);
    for (int i = 0; i < N; i++) {
        const told *t = bench_told(&b, &j[i]);
        assert_same(t, bench_told(&p->alone[i], &j[i]), j[i].n_choices);
        cached[i % GROUPS] += t->cached;
        n_holds += t->n_holds;
    }
    printf("%d draft rows: %d rows at most, %d passes with both adapters and none, preempted %d, "
           "guessed %d, right %d, cached %d+%d+%d+%d, chunks %d\n",
           draft_rows, seen.most, seen.mixed, b.n_preempted, (int)b.s.n_guessed, (int)b.s.n_right,
           cached[0], cached[1], cached[2], cached[3], n_holds);
    assert_it_happened(&b, &seen, cached, n_holds);
    assert_int_equal(engine_kv_tokens_free(b.g), p->kv_tokens);
    close_all(&b, s);
}

static void check(place *p) {
    snprintf(p->dir, sizeof p->dir, "/tmp/tiergate-exact-XXXXXX");
    assert_non_null(mkdtemp(p->dir));
    tiny_lora_put(p->dir, TENANT_A, p->shape, "one", 1, p->ids[0]);
    tiny_lora_put(p->dir, TENANT_A, p->shape, "two", 2, p->ids[1]);
    for (int i = 0; i < N; i++)
        run_alone(p, i);
    all_get_what_each_gets_alone(p, 0);
    all_get_what_each_gets_alone(p, 8);
    if (p->m == bench_model)
        all_get_what_each_gets_alone(p, 64); // guesses beside a full company too
    for (int i = 0; i < N; i++)
        close_all(&p->alone[i], p->adapters[i]);
    char line[96];
    snprintf(line, sizeof line, "rm -r %s", p->dir);
    assert_int_equal(system(line), 0);
}

static void each_of_sixteen_gets_what_it_gets_alone(void **state) {
    (void)state;
    static place p;
    p = (place){.m = bench_model,
                .shape = tiny_model_find("llama"),
                .unit = 1,
                .kv_tokens = 480,
                .step_tokens = 24};
    check(&p);
}

static void so_it_is_with_the_real_model(void **state) {
    (void)state;
    const char *path = getenv("TIERGATE_TEST_MODEL");
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    path = NULL; // it takes minutes, and the tiny one runs the same code
#endif
    if (!path || !file_exists(path)) {
        puts("skip: no model file (make model-file), or a sanitizer");
        skip();
    }
    static const tiny_model shape = {.arch = ARCH_LLAMA,
                                     .dim = 576,
                                     .n_heads = 9,
                                     .n_kv_heads = 3,
                                     .head_dim = 64,
                                     .intermediate = 1536};
    static place p;
    model *m = NULL;
    err e = {0};
    if (model_open(path, "", &m, &e))
        fail_msg("%s", e.message);
    p = (place){.m = m, .shape = &shape, .unit = 2, .kv_tokens = 592, .step_tokens = 32};
    check(&p);
    model_close(m);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_of_sixteen_gets_what_it_gets_alone),
        cmocka_unit_test(so_it_is_with_the_real_model),
    };
    if (!test_has_redis()) {
        puts("skip: redis-server is not installed");
        return 0;
    }
    return cmocka_run_group_tests(tests, bench_setup, bench_teardown);
}
