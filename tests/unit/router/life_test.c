// The life of a request, as protocol.md tells it, on a real Redis and a real Postgres with a worker
// that follows a script. Each test is one way a request may go.
#include "base/clock.h"
#include "tests/support/router_life.h"
#include "tests/support/servers.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static life f;

static int setup(void **state) {
    (void)state;
    char dir[128];
    static int n;
    life_empty();
    snprintf(dir, sizeof dir, "%s/life%d", test_dir(), n++);
    life_configure(&f, dir);
    return 0;
}

static void answer_4(life_worker *w) {
    if (life_claim(w, 3000))
        life_answer(w, 4);
}

static void submit(life_client *c) {
    err e = {0};
    if (life_submit(c, &e))
        fail_msg("refused: %s", e.message);
}

// ---- the good case

static void a_row_equals_what_the_client_was_handed(void **state) {
    (void)state;
    life_client c;
    life_open(&f);
    life_client_init(&c, &f, 4);
    life_worker *w = life_worker_start(&f, answer_4, NULL);
    submit(&c);
    assert_true(life_run(&f, life_client_ended, &c, 5000));
    life_worker_join(w);
    assert_int_equal(c.end.outcome, OUTCOME_OK);
    assert_int_equal(c.end.finish[0], FINISH_STOP);
    assert_int_equal(c.n[0], 4);
    assert_string_equal(c.text, "xxxx");
    assert_int_equal(c.end.prompt_tokens, 5);
    assert_int_equal(c.end.completion_tokens, 4);
    assert_true(life_wait_rows(&f, 1, 3000));
    char *row = life_text(&f, "SELECT concat_ws(' ', outcome, attempts, prompt_tokens, "
                              "completion_tokens, money, model, tier, endpoint) FROM usage");
    assert_string_equal(row, "ok 1 5 4 170 small " LIFE_TIER " chat");
    free(row);
    assert_int_equal(life_number(&f, "SELECT count(*) FROM quota_used WHERE requests = 1 AND "
                                     "tokens = 9 AND money = 170"),
                     4); // tenant, user, key, model
    life_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(a_row_equals_what_the_client_was_handed, setup),
    };
    if (!test_has_redis() || !test_has_postgres()) {
        puts("skip: redis-server or PostgreSQL is not installed");
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
