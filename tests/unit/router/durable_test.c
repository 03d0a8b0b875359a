// No byte of an answer leaves before line A is on the disk: the journal's disk is slow here, by a
// failpoint, which is armed before main and therefore by starting this program once more.
#include "base/clock.h"
#include "tests/support/router_life.h"
#include "tests/support/servers.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define DISK_MS 300

static life f;

static void answer_4(life_worker *w) {
    if (life_claim(w, 3000))
        life_answer(w, 4);
}

static bool has_any(void *ctx) { return ((life_client *)ctx)->n[0] > 0; }

static void submit(life_client *c) {
    char dir[128];
    err e = {0};
    static int n;
    life_empty();
    snprintf(dir, sizeof dir, "%s/durable%d", test_dir(), n++);
    life_configure(&f, dir);
    life_open(&f);
    life_client_init(c, &f, 4);
    if (life_submit(c, &e))
        fail_msg("refused: %s", e.message);
}

static void frames_wait_until_the_acceptance_is_on_the_disk(void **state) {
    (void)state;
    life_client c;
    submit(&c);
    int64_t began = clock_mono_ms();
    life_worker *w = life_worker_start(&f, answer_4, NULL);
    assert_true(life_run(&f, has_any, &c, 5000));
    assert_true(clock_mono_ms() - began >= DISK_MS);
    assert_true(life_run(&f, life_client_ended, &c, 5000));
    life_worker_join(w);
    assert_int_equal(c.end.outcome, OUTCOME_OK);
    assert_string_equal(c.text, "xxxx");
    life_close(&f);
}

static void an_error_waits_too(void **state) {
    (void)state;
    life_client c;
    submit(&c);
    int64_t began = clock_mono_ms();
    life_wait(&f, 50);
    request_cancel(c.q, OUTCOME_FAILED);
    assert_true(life_run(&f, life_client_ended, &c, 5000));
    assert_true(clock_mono_ms() - began >= DISK_MS);
    life_close(&f);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frames_wait_until_the_acceptance_is_on_the_disk),
        cmocka_unit_test(an_error_waits_too),
    };
    (void)argc;
    if (!getenv("TIERGATE_FAILPOINTS")) {
        setenv("TIERGATE_FAILPOINTS", "journal.sync=sleep:300", 1);
        execv("/proc/self/exe", argv);
        return 1;
    }
    if (!test_has_redis() || !test_has_postgres()) {
        puts("skip: redis-server or PostgreSQL is not installed");
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
