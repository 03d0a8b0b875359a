// Loaded adapters: read once, found by tenant and id, given up by last use but never while held or
// loading; a file that is not the one its id names is refused. And jobs with adapters side by side,
// of which one may wait for its adapter: its file is a FIFO then, and it comes when the test says.
#include "base/file.h"
#include "tests/support/servers.h"
#include "tests/support/step_bench.h"
#include "tests/support/tiny_lora.h"
#include "worker/adapters.h"
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#define TENANT_A "01900000-0000-7000-8000-00000000000a"
#define TENANT_B "01900000-0000-7000-8000-00000000000b"

static char dir[64];

static int setup(void **state) {
    snprintf(dir, sizeof dir, "/tmp/tiergate-adapters-XXXXXX");
    alarm(120); // a load that nobody ends
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

typedef struct slow { // an adapter whose file comes when slow_end() says so
    char id[64], path[256];
    buf bytes;
    int fd; // -1: nobody reads it yet, as far as is known
} slow;

static void slow_put(slow *f, const char *name, uint32_t seed) {
    *f = (slow){.fd = -1};
    err e = {0};
    put(TENANT_A, name, seed, f->id);
    snprintf(f->path, sizeof f->path, "%s/" TENANT_A "/%s.gguf", dir, f->id);
    assert_int_equal(file_read(f->path, 1 << 20, &f->bytes, &e) | unlink(f->path), 0);
    assert_int_equal(mkfifo(f->path, 0600), 0);
}

static void slow_end(slow *f) { // the loader reads it, or will
    if (f->fd < 0)
        f->fd = open(f->path, O_WRONLY | O_CLOEXEC);
    assert_int_equal(write(f->fd, f->bytes.data, f->bytes.len), f->bytes.len);
    close(f->fd);
    unlink(f->path);
    buf_release(&f->bytes);
}

static adapters *open_adapters(const bench *b, size_t bytes) {
    return adapters_new(b->g, dir, bytes, bench_ignore, NULL);
}

static adapter *hold(adapters *s, const char *tenant, const char *id) {
    adapter *a = bench_wait(s, adapters_hold(s, tenant, id));
    if (!a->a)
        fail_msg("%s", a->why.message);
    return a;
}

static void expect_refused(adapters *s, const char *tenant, const char *id, err_code code) {
    adapter *a = bench_wait(s, adapters_hold(s, tenant, id));
    assert_int_equal(a->why.code, code);
    assert_null(a->a);
    adapter_let_go(a);
}

static void the_least_recently_used_goes_and_none_that_is_held(void **state) {
    (void)state;
    bench b;
    char one[64], two[64], three[64];
    bench_open(&b, 2, 64, BENCH_ROOMY);
    put(TENANT_A, "one", 1, one);
    put(TENANT_A, "two", 2, two);
    put(TENANT_A, "three", 3, three);
    adapters *s = open_adapters(&b, 1); // nothing idle may stay
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
    s = open_adapters(&b, 2 * bytes);
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
    adapters *s = open_adapters(&b, 1 << 20);
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

// ---- while one is loaded

static void who_wants_one_that_is_being_loaded_waits_for_the_same(void **state) {
    (void)state;
    bench b;
    slow f;
    bench_open(&b, 2, 64, BENCH_ROOMY);
    slow_put(&f, "slow", 11);
    adapters *s = open_adapters(&b, 1 << 20);
    adapter *one = adapters_hold(s, TENANT_A, f.id), *two = adapters_hold(s, TENANT_A, f.id);
    adapters_settle(s);
    assert_ptr_equal(one, two);
    assert_null(one->a);
    assert_int_equal(one->why.code, ERR_NONE);
    assert_int_equal(adapters_get_stats(s).loaded, 0);
    slow_end(&f);
    bench_wait(s, one);
    assert_non_null(one->a);
    assert_int_equal(adapters_get_stats(s).loads, 1);
    adapter_let_go(one);
    adapter_let_go(two);
    adapters_free(s);
    bench_close(&b);
}

// Whoever wanted it may have gone meanwhile: it is loaded all the same, and idle then.
static void one_that_is_being_loaded_is_not_given_up(void **state) {
    (void)state;
    bench b;
    slow f;
    char first[64], last[64];
    bench_open(&b, 2, 64, BENCH_ROOMY);
    put(TENANT_A, "first", 12, first);
    slow_put(&f, "left", 13);
    put(TENANT_A, "last", 14, last);
    adapters *s = open_adapters(&b, 1);
    adapter *a = hold(s, TENANT_A, first), *left = adapters_hold(s, TENANT_A, f.id);
    adapter_let_go(left);
    adapter *c = adapters_hold(s, TENANT_A, last);
    adapters_settle(s);
    assert_ptr_equal(adapters_hold(s, TENANT_A, f.id), left);
    adapter_let_go(left);
    slow_end(&f);
    bench_wait(s, c);
    assert_int_equal(adapters_get_stats(s).loads, 3);
    assert_int_equal(adapters_get_stats(s).loaded, 2);
    adapter_let_go(a);
    adapter_let_go(c);
    adapters_free(s);
    bench_close(&b);
}

static void a_load_that_failed_is_told_to_all_and_tried_anew(void **state) {
    (void)state;
    bench b;
    slow f;
    char id[64];
    bench_open(&b, 2, 64, BENCH_ROOMY);
    slow_put(&f, "late", 15);
    f.bytes.data[f.bytes.len - 1] ^= 1;
    adapters *s = open_adapters(&b, 1 << 20);
    adapter *one = adapters_hold(s, TENANT_A, f.id), *two = adapters_hold(s, TENANT_A, f.id);
    slow_end(&f);
    bench_wait(s, one);
    assert_ptr_equal(one, two);
    assert_int_equal(one->why.code, ERR_FORMAT);
    put(TENANT_A, "late", 15, id);
    adapter *again = hold(s, TENANT_A, id);
    assert_ptr_not_equal(again, one);
    assert_int_equal(one->why.code, ERR_FORMAT);
    assert_int_equal(adapters_get_stats(s).loaded, 1);
    adapter_let_go(one);
    adapter_let_go(two);
    adapter_let_go(again);
    adapters_free(s);
    bench_close(&b);
}

static void *end_slow(void *f) {
    slow_end(f);
    return NULL;
}

static void the_end_waits_for_the_load_under_way(void **state) {
    (void)state;
    bench b;
    slow f;
    char next[64];
    pthread_t ender;
    bench_open(&b, 2, 64, BENCH_ROOMY);
    slow_put(&f, "last", 15);
    put(TENANT_A, "next", 16, next);
    adapters *s = open_adapters(&b, 1 << 20);
    adapter_let_go(adapters_hold(s, TENANT_A, f.id));
    adapter_let_go(adapters_hold(s, TENANT_A, next));
    while (f.fd < 0) // until the loader reads
        f.fd = open(f.path, O_WRONLY | O_CLOEXEC | O_NONBLOCK);
    fcntl(f.fd, F_SETFL, 0);
    assert_int_equal(pthread_create(&ender, NULL, end_slow, &f), 0);
    adapters_free(s);
    pthread_join(ender, NULL);
    bench_close(&b);
}

// Jobs before and behind it are answered meanwhile; then it gets what it gets alone.
static void a_job_waits_for_its_adapter_and_holds_up_no_other(void **state) {
    (void)state;
    bench b, one;
    slow f;
    job j[3];
    run *r[3];
    bench_open(&b, 2, 32, BENCH_ROOMY);
    slow_put(&f, "waits", 17);
    adapters *s = open_adapters(&b, 1 << 20);
    for (int i = 0; i < 3; i++) {
        j[i] = bench_job(&b.m, i + 1, i, 20, 30);
        r[i] = bench_add(&b, &j[i]);
    }
    r[1]->adapter = adapters_hold(s, TENANT_A, f.id);
    r[1]->salt[0] = 1;
    while (r[0]->n_live || r[2]->n_live) {
        bench_step(&b);
        adapters_settle(s);
        assert_null(r[1]->choices[0].seq);
    }
    bench_step(&b); // nothing to do
    slow_end(&f);
    bench_wait(s, r[1]->adapter);
    bench_run(&b);
    put(TENANT_A, "waits", 17, f.id);
    for (int i = 0; i < 3; i++) {
        bench_open(&one, 1, 512, BENCH_ROOMY);
        adapters *t = open_adapters(&one, 1 << 20);
        run *alone = bench_add(&one, &j[i]);
        if (i == 1)
            alone->adapter = hold(t, TENANT_A, f.id);
        bench_run(&one);
        bench_same(bench_told(&b, &j[i]), bench_told(&one, &j[i]), 1);
        run_free(one.runs, one.g);
        one.runs = NULL;
        adapters_free(t);
        bench_close(&one);
    }
    adapter_let_go(r[1]->adapter);
    r[1]->adapter = NULL;
    adapters_free(s);
    bench_close(&b);
}

// ---- side by side

// Jobs of two adapters and of none, with guesses, too few places and little KV: each as alone.
static void jobs_with_adapters_get_what_they_get_alone(void **state) {
    (void)state;
    bench b;
    char id[2][64];
    bench_open(&b, 3, 32, 208);
    b.s.draft_rows = 8;
    put(TENANT_A, "one", 1, id[0]);
    put(TENANT_B, "one", 9, id[1]);
    adapters *s = open_adapters(&b, 1 << 20);
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
        adapters *t = open_adapters(&one, 1 << 20);
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
        cmocka_unit_test(who_wants_one_that_is_being_loaded_waits_for_the_same),
        cmocka_unit_test(one_that_is_being_loaded_is_not_given_up),
        cmocka_unit_test(a_load_that_failed_is_told_to_all_and_tried_anew),
        cmocka_unit_test(the_end_waits_for_the_load_under_way),
        cmocka_unit_test(a_job_waits_for_its_adapter_and_holds_up_no_other),
        cmocka_unit_test(jobs_with_adapters_get_what_they_get_alone),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
