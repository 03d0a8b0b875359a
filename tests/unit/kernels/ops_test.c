// How a backend is chosen, and the team of threads behind it.
#include <sched.h>
#include <stdatomic.h>
#include <time.h>
#include "tests/kernels/support.h"

static void an_unknown_backend_is_an_error_that_names_where_it_was_given(void **state) {
    (void)state;
    ops *o = NULL;
    err e = {0};
    assert_int_equal(ops_open("cuda9", 1, &o, &e), -1);
    assert_int_equal(e.code, ERR_INVALID);
    assert_string_equal(e.param, "backend");
    setenv("TIERGATE_CPU", "sse2", 1);
    assert_int_equal(ops_open(NULL, 1, &o, &e), -1);
    assert_string_equal(e.param, "TIERGATE_CPU");
    assert_non_null(strstr(e.message, "sse2"));
    unsetenv("TIERGATE_CPU");
    assert_false(ops_supported("sse2"));
}

static void the_environment_forces_a_backend_and_a_name_wins_over_it(void **state) {
    (void)state;
    ops *o = NULL;
    err e = {0};
    setenv("TIERGATE_CPU", "ref", 1);
    assert_int_equal(ops_open("", 1, &o, &e), 0);
    assert_string_equal(o->name, "ref");
    assert_int_equal(ops_kv_type(o), KV_F32);
    o->close(o);
    if (ops_supported("avx2")) {
        assert_int_equal(ops_open("avx2", 1, &o, &e), 0);
        assert_string_equal(o->name, "avx2");
        assert_int_equal(ops_kv_type(o), KV_F16);
        o->close(o);
    } else {
        printf("skip: this processor has no avx2\n");
    }
    unsetenv("TIERGATE_CPU");
}

static void the_best_backend_of_the_processor_is_the_default(void **state) {
    (void)state;
    ops *o = NULL;
    err e = {0};
    assert_int_equal(ops_open(NULL, 0, &o, &e), 0);
    assert_string_equal(o->name, ops_supported("avx512") ? "avx512"
                                 : ops_supported("avx2") ? "avx2"
                                                         : "ref");
    o->close(o);
}

static void a_senseless_number_of_threads_is_refused(void **state) {
    (void)state;
    ops *o = NULL;
    err e = {0};
    assert_int_equal(ops_open("ref", -1, &o, &e), -1);
    assert_int_equal(ops_open("ref", 100000, &o, &e), -1);
    assert_string_equal(e.param, "n_threads");
}

enum { PARTS = 5 };

static void count_part(void *ctx, int part, int n_parts) {
    assert_int_equal(n_parts, PARTS);
    ((int *)ctx)[part]++; // a part belongs to one thread, so no atomics
}

static void every_member_runs_each_job_once_also_after_sleeping(void **state) {
    (void)state;
    ops *o = NULL;
    err e = {0};
    assert_int_equal(ops_open("ref", PARTS, &o, &e), 0);
    int counts[PARTS] = {0};
    for (int i = 0; i < 600; i++) {
        if (i % 200 == 199) // longer than members spin
            nanosleep(&(struct timespec){0, 20000000}, NULL);
        o->parallel(o, count_part, counts);
    }
    for (int i = 0; i < PARTS; i++)
        assert_int_equal(counts[i], 600);
    o->close(o);
}

static void an_idle_team_uses_no_processor_time(void **state) {
    (void)state;
    ops *o = NULL;
    err e = {0};
    assert_int_equal(ops_open("ref", PARTS, &o, &e), 0);
    int counts[PARTS] = {0};
    o->parallel(o, count_part, counts);
    nanosleep(&(struct timespec){0, 50000000}, NULL); // until all sleep
    clock_t before = clock();
    nanosleep(&(struct timespec){0, 200000000}, NULL);
    assert_within((double)(clock() - before) / CLOCKS_PER_SEC, 0.05);
    o->close(o);
}

static void tell_processors(void *ctx, int part, int n_parts) {
    (void)n_parts;
    sched_getaffinity(0, sizeof(cpu_set_t), &((cpu_set_t *)ctx)[part]);
}

static void pinned_threads_have_a_processor_each_and_the_caller_keeps_all(void **state) {
    (void)state;
    ops *o = NULL;
    err e = {0};
    cpu_set_t before, after[CPU_SETSIZE], all;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    int n = CPU_COUNT(&before);
    assert_int_equal(ops_open("ref", n, &o, &e) | ops_pin(o, &e), 0);
    o->parallel(o, tell_processors, after);
    assert_true(CPU_EQUAL(&after[0], &before));
    CPU_ZERO(&all);
    for (int i = 1; i < n; i++) {
        assert_int_equal(CPU_COUNT(&after[i]), 1);
        CPU_OR(&all, &all, &after[i]);
    }
    assert_int_equal(CPU_COUNT(&all), n - 1);
    CPU_AND(&all, &all, &before);
    assert_int_equal(CPU_COUNT(&all), n - 1);
    o->close(o);
}

static void more_threads_than_processors_are_not_pinned(void **state) {
    (void)state;
    ops *o = NULL;
    err e = {0};
    cpu_set_t before;
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    assert_int_equal(ops_open("ref", CPU_COUNT(&before) + 1, &o, &e), 0);
    assert_int_equal(ops_pin(o, &e), -1);
    assert_int_equal(e.code, ERR_INVALID);
    assert_string_equal(e.param, "pin");
    o->close(o);
}

static void shares_cover_every_item_once(void **state) {
    (void)state;
    for (int n = 0; n < 70; n++)
        for (int parts = 1; parts < 9; parts++)
            for (int unit = 1; unit < 5; unit++) {
                int at = 0;
                for (int p = 0; p < parts; p++) {
                    int from, to;
                    team_share(n, unit, p, parts, &from, &to);
                    assert_int_equal(from, at);
                    assert_true(to >= from && (to == n || to % unit == 0));
                    at = to;
                }
                assert_int_equal(at, n);
            }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_unknown_backend_is_an_error_that_names_where_it_was_given),
        cmocka_unit_test(the_environment_forces_a_backend_and_a_name_wins_over_it),
        cmocka_unit_test(the_best_backend_of_the_processor_is_the_default),
        cmocka_unit_test(a_senseless_number_of_threads_is_refused),
        cmocka_unit_test(every_member_runs_each_job_once_also_after_sleeping),
        cmocka_unit_test(an_idle_team_uses_no_processor_time),
        cmocka_unit_test(pinned_threads_have_a_processor_each_and_the_caller_keeps_all),
        cmocka_unit_test(more_threads_than_processors_are_not_pinned),
        cmocka_unit_test(shares_cover_every_item_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
