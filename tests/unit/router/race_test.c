// The last tokens of a budget: 200 clients on two gateways, none of which names max_tokens. Nothing
// is overspent, and nobody is refused while there is room for its prompt and one token. The oracle
// is the ledger and what clients were handed.
#include "base/clock.h"
#include "tests/support/router_life.h"
#include "tests/support/servers.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define GATEWAYS 2
#define CLIENTS 200
#define WORKERS 3
#define BUDGET 20000
#define PROMPT 5 // of a life_client

static life gateways[GATEWAYS];

typedef struct racer {
    life_client c;
    bool is_open;
} racer;

typedef struct race {
    racer racers[CLIENTS];
    int n_open, n_ok, n_refused;
    int64_t used; // as told to clients
} race;

static void answer_until_told(life_worker *w) {
    unsigned seed = (unsigned)w->id;
    while (!atomic_load((atomic_bool *)w->ctx))
        if (life_claim(w, 100))
            life_answer(w, 1 + rand_r(&seed) % 40);
}

static void enter(race *x, int i) {
    racer *one = &x->racers[i];
    err e = {0};
    life_client_init(&one->c, &gateways[i % GATEWAYS], 0);
    if (life_submit(&one->c, &e))
        fail_msg("refused at once: %s", e.message);
    one->is_open = true;
    x->n_open++;
}

static void assert_had_no_room(const err *e) {
    long long limit, used, needs;
    const char *numbers = strstr(e->message, "limit ");
    assert_int_equal(e->code, ERR_QUOTA);
    assert_non_null(numbers);
    assert_int_equal(sscanf(numbers, "limit %lld, used or held %lld, this request needs %lld",
                            &limit, &used, &needs),
                     3);
    assert_true(limit == BUDGET && needs == PROMPT + 1);
    assert_true(used + needs > limit);
}

// Who got an answer asks again at once; who was refused waits for the others.
static void take_ended(race *x, int i) {
    racer *one = &x->racers[i];
    if (!one->is_open || !one->c.is_ended)
        return;
    one->is_open = false;
    x->n_open--;
    if (one->c.end.outcome == OUTCOME_OK) {
        x->n_ok++;
        x->used += one->c.end.prompt_tokens + one->c.end.completion_tokens;
        assert_int_equal(one->c.end.completion_tokens, one->c.n[0]);
        assert_true(x->used <= BUDGET);
        enter(x, i);
    } else {
        x->n_refused++;
        assert_had_no_room(&one->c.end.error);
    }
}

static void run_until_all_are_refused(race *x) {
    for (int i = 0; i < CLIENTS; i++)
        enter(x, i);
    while (x->n_open) {
        for (int g = 0; g < GATEWAYS; g++)
            life_wait(&gateways[g], 3);
        for (int i = 0; i < CLIENTS; i++)
            take_ended(x, i);
    }
}

static void the_last_tokens_are_all_given_and_none_twice(void **state) {
    (void)state;
    static race x;
    atomic_bool must_stop = false;
    life_worker *workers[WORKERS];
    life_empty();
    for (int g = 0; g < GATEWAYS; g++) {
        char dir[128];
        snprintf(dir, sizeof dir, "%s/race%d", test_dir(), g);
        life_configure(&gateways[g], dir);
    }
    life_limit(&gateways[0], "t", "tokens_per_month", BUDGET);
    for (int g = 0; g < GATEWAYS; g++)
        life_open(&gateways[g]);
    for (int i = 0; i < WORKERS; i++)
        workers[i] = life_worker_start(&gateways[0], answer_until_told, &must_stop);
    int n_ok = -1;
    while (n_ok < x.n_ok) { // a last round without an answer: nothing is held, and none fits
        n_ok = x.n_ok;
        run_until_all_are_refused(&x);
    }
    must_stop = true;
    for (int i = 0; i < WORKERS; i++)
        life_worker_join(workers[i]);
    assert_in_range(x.used, BUDGET - PROMPT, BUDGET);
    assert_true(life_wait_rows(&gateways[0], x.n_ok, 5000));
    assert_int_equal(life_number(&gateways[0], "SELECT count(*) FROM usage"), x.n_ok);
    assert_int_equal(life_number(&gateways[0], "SELECT tokens FROM quota_used WHERE scope = 't'"),
                     x.used);
    printf("%d answers, %d refusals, %lld of %d tokens\n", x.n_ok, x.n_refused, (long long)x.used,
           BUDGET);
    for (int g = 0; g < GATEWAYS; g++)
        life_close(&gateways[g]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_last_tokens_are_all_given_and_none_twice),
    };
    if (!test_has_redis() || !test_has_postgres()) {
        puts("skip: redis-server or PostgreSQL is not installed");
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
