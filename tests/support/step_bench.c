// See step_bench.h. Owns the model that all benches of a program share.
#include "tests/support/step_bench.h"
#include "base/clock.h"
#include "tests/support/servers.h"
#include "tests/support/tiny_model.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

model *bench_model;
int32_t bench_prompt[512];

int bench_setup(void **state) {
    (void)state;
    char path[64];
    err e = {0};
    int fd = tiny_model_file(tiny_model_find("llama"));
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (model_open(path, "", &bench_model, &e))
        fail_msg("%s", e.message);
    close(fd);
    for (int i = 0; i < 512; i++)
        bench_prompt[i] = 97 + (i * 7 + i / 5) % 26;
    return 0;
}

int bench_teardown(void **state) {
    (void)state;
    model_close(bench_model);
    return 0;
}

static void open_engine(bench *b, const model *m, int slots, int step_tokens, size_t kv_bytes) {
    err e = {0};
    int context = model_get_shape(m)->context;
    engine_config c = {.n_threads = 1,
                       .max_seqs = slots,
                       .max_context = context < BENCH_CONTEXT ? context : BENCH_CONTEXT,
                       .max_rows = step_tokens < slots ? slots : step_tokens,
                       .kv_bytes = kv_bytes};
    if (engine_open(m, &c, &b->g, &e))
        fail_msg("%s", e.message);
}

// Bytes that a position takes in the KV cache depend on model and backend: a first engine tells.
enum { MEASURED_BYTES = 64 << 20 };

void bench_open_model(bench *b, const model *m, int slots, int step_tokens, int kv_tokens) {
    static uint64_t gateway = 100;
    static const model *of;
    static size_t position_bytes;
    err e = {0};
    *b = (bench){.last = &b->runs, .lane = LANE_INTERACTIVE};
    if (of != m) {
        open_engine(b, m, 1, 1, MEASURED_BYTES);
        position_bytes = MEASURED_BYTES / (size_t)engine_kv_tokens_free(b->g);
        engine_close(b->g);
        of = m;
    }
    open_engine(b, m, slots, step_tokens, position_bytes * (size_t)kv_tokens);
    assert_int_equal(engine_kv_tokens_free(b->g), kv_tokens);
    if (redis_connect(test_redis()->address, 2000, &b->r, &e))
        fail_msg("%s", e.message);
    stepper_init(&b->s, b->g, m, slots, step_tokens, 0, 0);
    b->o = outbox_new(7);
    letterbox_open(&b->m, test_redis()->address, ++gateway);
}

void bench_open(bench *b, int slots, int step_tokens, int kv_tokens) {
    bench_open_model(b, bench_model, slots, step_tokens, kv_tokens);
}

void bench_close(bench *b) {
    while (b->runs) {
        run *r = b->runs;
        b->runs = r->next;
        run_free(r, b->g);
    }
    outbox_free(b->o);
    stepper_release(&b->s);
    engine_close(b->g);
    redis_close(b->r);
    letterbox_close(&b->m);
}

run *bench_add(bench *b, job *j) {
    j->gateway = b->m.gateway;
    queue_claimed claimed = {.lane = b->lane, .weight = 1};
    arena a; // the job's arrays are the test's
    arena_init(&a);
    run *r = run_new(&a, j, ++b->n_runs, &claimed, b->s.m, b->salt);
    r->arrived_us = clock_mono_us();
    *b->last = r;
    b->last = &r->next;
    told *t = letterbox_find(&b->m, j->id);
    for (int i = 0; i < j->n_choices; i++)
        t->choices[i].n = j->so_far[i].n;
    return r;
}

static void gone(void *ctx, uint64_t gateway) {
    (void)ctx, (void)gateway;
    fail_msg("the letterbox is there");
}

static void charge(void *ctx, const run *r, int n) {
    (void)r;
    *(int *)ctx += n;
}

uint64_t bench_seats(const bench *b, int *used) {
    uint64_t bits = 0;
    int at = 0;
    *used = 0;
    for (const run *r = b->runs; r; r = r->next)
        for (int i = 0; i < r->j.n_choices; i++, at++)
            if (r->choices[i].seq) {
                bits |= 1ull << at;
                ++*used;
            }
    return bits;
}

void bench_step(bench *b) {
    err e = {0};
    int used, before;
    uint64_t had = bench_seats(b, &before);
    int live = 0;
    if (stepper_step(&b->s, b->runs, b->o, charge, &b->charged, &e) ||
        outbox_send(b->o, b->r, gone, NULL, &e))
        fail_msg("%s", e.message);
    uint64_t has = bench_seats(b, &used);
    int at = 0;
    for (const run *r = b->runs; r; r = r->next) {
        live += r->n_live;
        for (int i = 0; i < r->j.n_choices; i++, at++)
            b->n_preempted += had >> at & 1 && !(has >> at & 1) && !r->choices[i].done;
    }
    b->most_used = used > b->most_used ? used : b->most_used;
    assert_true(live >= used);
}

void bench_run(bench *b) {
    for (int steps = 0;; steps++) {
        int live = 0;
        for (const run *r = b->runs; r; r = r->next)
            live += r->n_live;
        if (!live)
            break;
        assert_in_range(steps, 0, 5000);
        bench_step(b);
    }
    letterbox_read(&b->m);
}

told *bench_told(bench *b, const job *j) { return letterbox_find(&b->m, j->id); }

void bench_ignore(void *ctx) { (void)ctx; }

adapter *bench_wait(adapters *s, adapter *a) {
    for (; !a->a && !a->why.code; clock_sleep_ms(1))
        adapters_settle(s);
    return a;
}

// ---- comparing

static void same_choice(const told_choice *a, const told_choice *b) {
    assert_int_equal(a->n, b->n);
    assert_memory_equal(a->ids, b->ids, (size_t)a->n * sizeof *a->ids);
    assert_int_equal(a->finish, b->finish);
    assert_int_equal(a->text.len, b->text.len);
    if (a->text.len)
        assert_memory_equal(a->text.data, b->text.data, a->text.len);
}

void bench_same(const told *a, const told *b, int n_choices) {
    for (int i = 0; i < n_choices; i++)
        same_choice(&a->choices[i], &b->choices[i]);
}

void bench_alone(bench *b, job *j) {
    bench_open(b, 1, 512, BENCH_ROOMY);
    bench_add(b, j);
    bench_run(b);
}

job bench_job(const letterbox *m, int number, int from, int n_prompt, int max_tokens) {
    job j = letterbox_job(m, number, bench_prompt + from, n_prompt, max_tokens);
    j.sampling.temperature = 1;
    j.sampling.seed = (uint64_t)number;
    return j;
}
