// The prefix cache in the worker: what a prompt finds there is neither fed again nor counted
// against the room it needs, is told to the gateway once, and changes no token; who shares is
// decided by tenant, model, adapter and type of KV under the cluster's key.
#include "tests/support/servers.h"
#include "tests/support/step_bench.h"
#include "tests/support/tiny_model.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

static int64_t hits(const bench *b) { return engine_get_stats(b->g).prefix_hits; }

// Runs j in b, then asserts that it got what it gets alone.
static const told *run_checked(bench *b, job *j) {
    bench one;
    bench_add(b, j);
    bench_run(b);
    bench_alone(&one, j);
    bench_same(bench_told(b, j), bench_told(&one, j), j->n_choices);
    bench_close(&one);
    return bench_told(b, j);
}

// ---- what is found

static void a_prompt_seen_before_is_fed_from_where_the_cache_ends(void **state) {
    (void)state;
    bench b;
    bench_open(&b, 2, 64, BENCH_ROOMY);
    job j = bench_job(&b.m, 1, 0, 50, 12), k = bench_job(&b.m, 2, 0, 50, 12),
        l = bench_job(&b.m, 3, 0, 40, 12);
    assert_int_equal(run_checked(&b, &j)->cached, 0);
    bench_add(&b, &k);
    bench_step(&b);
    assert_int_equal(b.s.plan.n_tokens, 2); // 48 were there
    assert_int_equal(run_checked(&b, &l)->cached, 32);
    assert_int_equal(bench_told(&b, &k)->cached, 48);
    assert_int_equal(bench_told(&b, &k)->n_prefilled, 1);
    assert_int_equal(hits(&b), 3 + 2);
    bench_close(&b);
}

static void another_salt_finds_nothing(void **state) {
    (void)state;
    bench b;
    bench_open(&b, 2, 64, BENCH_ROOMY);
    job j = bench_job(&b.m, 1, 0, 50, 12), k = bench_job(&b.m, 2, 0, 50, 12);
    run_checked(&b, &j);
    b.salt[31] = 1;
    assert_int_equal(run_checked(&b, &k)->cached, 0);
    assert_int_equal(hits(&b), 0);
    bench_close(&b);
}

static void choices_fork_behind_what_was_found(void **state) {
    (void)state;
    static const int lengths[] = {16, 17, 33, 45}; // 17 and 33: all but the last token is found
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        bench b;
        bench_open(&b, 4, 16, BENCH_ROOMY);
        job j = bench_job(&b.m, 1, 0, lengths[i], 3), k = bench_job(&b.m, 2, 0, lengths[i], 20);
        k.n_choices = 4;
        run_checked(&b, &j);
        assert_int_equal(run_checked(&b, &k)->cached, (lengths[i] - 1) / 16 * 16);
        assert_int_equal(hits(&b), (lengths[i] - 1) / 16); // the others forked
        bench_close(&b);
    }
}

static void a_prompt_that_is_to_be_described_is_computed_in_whole(void **state) {
    (void)state;
    bench b;
    bench_open(&b, 2, 16, BENCH_ROOMY);
    job j = bench_job(&b.m, 1, 0, 50, 4), k = bench_job(&b.m, 2, 0, 50, 4);
    run_checked(&b, &j);
    k.echo_logprobs = true;
    const told *t = run_checked(&b, &k);
    assert_int_equal(t->cached, 0);
    assert_int_equal(t->choices[0].n_prompt, 50);
    bench_close(&b);
}

// What an earlier attempt made is found too, but only the prompt's part is told.
static void another_attempt_finds_what_the_first_one_left(void **state) {
    (void)state;
    bench b;
    bench_open(&b, 2, 64, BENCH_ROOMY);
    job j = bench_job(&b.m, 1, 0, 35, 60);
    const told_choice *all = &run_checked(&b, &j)->choices[0];
    job again = j;
    again.attempt = 2;
    again.so_far[0].ids = all->ids;
    again.so_far[0].n = 40;
    snprintf(again.id, sizeof again.id, "01900000-0000-7000-8000-00000000000b");
    bench_add(&b, &again);
    bench_step(&b);
    assert_int_equal(b.s.plan.n_tokens, 35 + 40 - 64);
    bench_run(&b);
    const told *t = bench_told(&b, &again);
    assert_int_equal(t->cached, 35);
    assert_memory_equal(t->choices[0].ids + 40, all->ids + 40, 20 * sizeof(int32_t));
    bench_close(&b);
}

// ---- room

// Whether the second of two jobs that begin alike gets a place beside the first.
static bool gets_a_place(bool same_salt) {
    bench b;
    bench_open(&b, 2, 128, 160); // ten pages; the first takes six and may want one
    job j = bench_job(&b.m, 1, 0, 80, 20), k = bench_job(&b.m, 2, 0, 65, 2);
    bench_add(&b, &j);
    bench_step(&b);
    b.salt[0] = !same_salt;
    run *r = bench_add(&b, &k);
    bench_step(&b);
    bool placed = r->n_live == 0 || r->choices[0].seq;
    bench_run(&b);
    assert_int_equal(b.n_preempted, 0);
    assert_int_equal(bench_told(&b, &k)->cached, same_salt ? 64 : 0);
    bench_close(&b);
    return placed;
}

static void what_a_running_sequence_holds_needs_no_room(void **state) {
    (void)state;
    assert_true(gets_a_place(true));
    assert_false(gets_a_place(false));
}

static void what_only_the_cache_holds_is_room(void **state) {
    (void)state;
    bench b;
    bench_open(&b, 2, 128, 160);
    job j = bench_job(&b.m, 1, 0, 100, 20), k = bench_job(&b.m, 2, 200, 60, 20),
        l = bench_job(&b.m, 3, 150, 40, 20);
    run_checked(&b, &j); // leaves seven of ten pages in the cache
    run *first = bench_add(&b, &k), *second = bench_add(&b, &l);
    bench_step(&b);
    assert_true(first->choices[0].seq && second->choices[0].seq);
    bench_run(&b);
    assert_true(engine_get_stats(b.g).prefix_evicted > 0);
    assert_int_equal(b.n_preempted, 0);
    bench_close(&b);
}

static void a_choice_that_lost_its_place_comes_back_to_its_own_pages(void **state) {
    (void)state;
    bench b;
    bench_open(&b, 4, 32, 160); // 10 pages; each job ends with 5 or 6
    job j[3] = {bench_job(&b.m, 1, 0, 20, 70), bench_job(&b.m, 2, 9, 25, 60),
                bench_job(&b.m, 3, 30, 12, 75)};
    for (int i = 0; i < 3; i++)
        bench_add(&b, &j[i]);
    bench_run(&b);
    assert_true(b.n_preempted > 0);
    assert_true(hits(&b) > 0); // the prompts have nothing in common: these are its own
    for (int i = 0; i < 3; i++) {
        bench one;
        bench_alone(&one, &j[i]);
        bench_same(bench_told(&b, &j[i]), bench_told(&one, &j[i]), 1);
        assert_int_equal(bench_told(&b, &j[i])->cached, 0); // as it first got a place
        bench_close(&one);
    }
    assert_int_equal(engine_kv_tokens_free(b.g), 160);
    bench_close(&b);
}

// It loses its place in the middle of its prompt and then finds what it had fed itself.
static void what_a_request_left_itself_is_not_told_as_found(void **state) {
    (void)state;
    bench b;
    bench_open(&b, 2, 2, 160); // a token of the second job for each of the first
    job j = bench_job(&b.m, 1, 0, 20, 100), k = bench_job(&b.m, 2, 200, 79, 5);
    bench_add(&b, &j);
    run *r = bench_add(&b, &k);
    while (!b.n_preempted) {
        bench_step(&b);
        assert_false(r->prefilled);
    }
    bench_run(&b);
    assert_true(hits(&b) > 0);
    assert_int_equal(bench_told(&b, &k)->n_prefilled, 1);
    assert_int_equal(bench_told(&b, &k)->cached, 0);
    bench_close(&b);
}

// ---- who shares

static void all_that_may_not_be_shared_is_in_the_salt(void **state) {
    (void)state;
    secret_ring ring = {.keys = {{.id = 2, .key = {7}}, {.id = 1, .key = {8}}}, .n = 2};
    secret_ring other = ring;
    job j = bench_job(&(letterbox){0}, 1, 0, 5, 5), same = j, tenant = j, adapted = j;
    uint8_t salts[7][ENGINE_SALT_BYTES], again[ENGINE_SALT_BYTES];
    same.prompt = NULL;
    same.n_prompt = 0;
    strcpy(same.id, "another");
    tenant.tenant[35] ^= 1;
    strcpy(adapted.adapter, "f16");
    other.keys[0].key[31] = 1;
    run_salt(&ring, &j, "revision", "f32", salts[0]);
    run_salt(&ring, &tenant, "revision", "f32", salts[1]);
    run_salt(&ring, &adapted, "revision", "f32", salts[2]);
    run_salt(&ring, &j, "revision", "f16", salts[3]);
    run_salt(&ring, &j, "revisionf32", "", salts[4]); // parts do not run together
    run_salt(&other, &j, "revision", "f32", salts[5]);
    run_salt(&ring, &j, "another", "f32", salts[6]);
    for (int a = 0; a < 7; a++)
        for (int b = 0; b < a; b++)
            assert_memory_not_equal(salts[a], salts[b], sizeof salts[a]);
    other = ring;
    other.keys[1].key[0] = 9; // the older key has no part in it
    run_salt(&other, &same, "revision", "f32", again);
    assert_memory_equal(salts[0], again, sizeof again);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_prompt_seen_before_is_fed_from_where_the_cache_ends),
        cmocka_unit_test(another_salt_finds_nothing),
        cmocka_unit_test(choices_fork_behind_what_was_found),
        cmocka_unit_test(a_prompt_that_is_to_be_described_is_computed_in_whole),
        cmocka_unit_test(another_attempt_finds_what_the_first_one_left),
        cmocka_unit_test(what_a_running_sequence_holds_needs_no_room),
        cmocka_unit_test(what_only_the_cache_holds_is_room),
        cmocka_unit_test(a_choice_that_lost_its_place_comes_back_to_its_own_pages),
        cmocka_unit_test(what_a_request_left_itself_is_not_told_as_found),
        cmocka_unit_test(all_that_may_not_be_shared_is_in_the_salt),
    };
    if (!test_has_redis()) {
        puts("skip: redis-server is not installed");
        return 0;
    }
    return cmocka_run_group_tests(tests, bench_setup, bench_teardown);
}
