// Loaded adapters: read once, found by tenant and id, given up by last use but never while held; a
// file that is not the one its id names is refused. And jobs with adapters side by side.
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

#define TENANT_A "01900000-0000-7000-8000-00000000000a"
#define TENANT_B "01900000-0000-7000-8000-00000000000b"

static char dir[64];

static int setup(void **state) {
    snprintf(dir, sizeof dir, "/tmp/tiergate-adapters-XXXXXX");
    return mkdtemp(dir) ? bench_setup(state) : -1;
}

static int teardown(void **state) {
    char line[96];
    snprintf(line, sizeof line, "rm -r %s", dir);
    return system(line) || bench_teardown(state);
}

static void put(const char *tenant, const char *name, uint32_t seed, char *id) {
    tiny_lora_put(dir, tenant, tiny_model_find("llama"), name, seed, id);
}

static adapter *hold(adapters *s, const char *tenant, const char *id) {
    adapter *a = NULL;
    err e = {0};
    if (adapters_hold(s, tenant, id, &a, &e))
        fail_msg("%s", e.message);
    return a;
}

static void expect_refused(adapters *s, const char *tenant, const char *id, err_code code) {
    adapter *a = NULL;
    err e = {0};
    assert_int_equal(adapters_hold(s, tenant, id, &a, &e), -1);
    assert_int_equal(e.code, code);
    assert_null(a);
}

static void the_least_recently_used_goes_and_none_that_is_held(void **state) {
    (void)state;
    bench b;
    char one[64], two[64], three[64];
    bench_open(&b, 2, 64, BENCH_ROOMY);
    put(TENANT_A, "one", 1, one);
    put(TENANT_A, "two", 2, two);
    put(TENANT_A, "three", 3, three);
    adapters *s = adapters_new(b.g, dir, 1); // nothing idle may stay
    adapter *a = hold(s, TENANT_A, one), *again = hold(s, TENANT_A, one);
    assert_ptr_equal(a, again);
    assert_int_equal(adapters_get_stats(s).loads, 1);
    size_t bytes = adapters_get_stats(s).bytes;
    assert_true(bytes > 0);
    adapter *c = hold(s, TENANT_A, two); // both are held
    assert_int_equal(adapters_get_stats(s).loaded, 2);
    adapter_let_go(a);
    adapter *d = hold(s, TENANT_A, three);
    assert_int_equal(adapters_get_stats(s).loaded, 3); // one is still held by `again`
    adapter_let_go(again);
    adapter_let_go(c);
    adapter_let_go(d);
    adapters_free(s);
    s = adapters_new(b.g, dir, 2 * bytes);
    adapter_let_go(hold(s, TENANT_A, one));
    adapter_let_go(hold(s, TENANT_A, two));
    adapter_let_go(hold(s, TENANT_A, one));
    adapter_let_go(hold(s, TENANT_A, three)); // two goes
    assert_int_equal(adapters_get_stats(s).loads, 3);
    adapter_let_go(hold(s, TENANT_A, one));
    assert_int_equal(adapters_get_stats(s).loads, 3);
    adapter_let_go(hold(s, TENANT_A, two));
    assert_int_equal(adapters_get_stats(s).loads, 4);
    assert_int_equal(adapters_get_stats(s).bytes, 2 * bytes);
    adapters_free(s);
    bench_close(&b);
}

static void only_the_tenants_own_file_with_its_own_content_is_loaded(void **state) {
    (void)state;
    bench b;
    char one[64], other[64], path[300], copy[400];
    bench_open(&b, 2, 64, BENCH_ROOMY);
    put(TENANT_A, "one", 1, one);
    put(TENANT_A, "other", 2, other);
    adapters *s = adapters_new(b.g, dir, 1 << 20);
    expect_refused(s, TENANT_B, one, ERR_IO);
    expect_refused(s, TENANT_A, "one-0000000000000000", ERR_IO);
    expect_refused(s, TENANT_A, "", ERR_INVALID);
    snprintf(path, sizeof path, "../" TENANT_A "/%.50s", one);
    expect_refused(s, TENANT_B, path, ERR_INVALID);
    expect_refused(s, "..", one, ERR_INVALID);
    snprintf(copy, sizeof copy, "cp %s/" TENANT_A "/%s.gguf %s/" TENANT_A "/%s.gguf", dir, other,
             dir, one);
    assert_int_equal(system(copy), 0);
    expect_refused(s, TENANT_A, one, ERR_FORMAT);
    assert_int_equal(adapters_get_stats(s).loaded, 0);
    adapter_let_go(hold(s, TENANT_A, other));
    adapters_free(s);
    bench_close(&b);
}

// Jobs of two adapters and of none, with guesses, too few places and little KV: each as alone.
static void jobs_with_adapters_get_what_they_get_alone(void **state) {
    (void)state;
    bench b;
    char id[2][64];
    bench_open(&b, 3, 32, 208);
    b.s.draft_rows = 8;
    put(TENANT_A, "one", 1, id[0]);
    put(TENANT_B, "one", 9, id[1]);
    adapters *s = adapters_new(b.g, dir, 1 << 20);
    job j[6];
    for (int i = 0; i < 6; i++) {
        j[i] = bench_job(&b.m, i + 1, i, 20, 40);
        j[i].n_choices = 1 + (i == 1);
        run *r = bench_add(&b, &j[i]);
        r->salt[0] = (uint8_t)(i % 3); // as run_salt tells adapters apart
        if (i % 3)
            r->adapter = hold(s, i % 3 == 1 ? TENANT_A : TENANT_B, id[i % 3 - 1]);
    }
    bench_run(&b);
    for (int i = 0; i < 6; i++) {
        bench one;
        bench_open(&one, 1, 512, BENCH_ROOMY);
        adapters *t = adapters_new(one.g, dir, 1 << 20);
        run *r = bench_add(&one, &j[i]);
        if (i % 3)
            r->adapter = hold(t, i % 3 == 1 ? TENANT_A : TENANT_B, id[i % 3 - 1]);
        bench_run(&one);
        bench_same(bench_told(&b, &j[i]), bench_told(&one, &j[i]), j[i].n_choices);
        run_free(one.runs, one.g);
        one.runs = NULL;
        adapters_free(t);
        bench_close(&one);
    }
    assert_int_equal(adapters_get_stats(s).loads, 2);
    while (b.runs) {
        run *r = b.runs;
        b.runs = r->next;
        run_free(r, b.g);
    }
    adapters_free(s);
    bench_close(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_least_recently_used_goes_and_none_that_is_held),
        cmocka_unit_test(only_the_tenants_own_file_with_its_own_content_is_loaded),
        cmocka_unit_test(jobs_with_adapters_get_what_they_get_alone),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
