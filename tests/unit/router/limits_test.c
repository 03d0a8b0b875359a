// Limits in force, from the table to what a client is told: every kind in every scope, loading from
// the ledger, grants that shrink, extensions that are refused. What one hold decides is in
// quota_test.c.
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

static life f;

static int setup(void **state) {
    (void)state;
    char dir[128];
    static int n;
    life_empty();
    snprintf(dir, sizeof dir, "%s/limits%d", test_dir(), n++);
    life_configure(&f, dir);
    return 0;
}

static void submit(life_client *c) {
    err e = {0};
    if (life_submit(c, &e))
        fail_msg("refused: %s", e.message);
}

static bool is_held(void *client) {
    life_client *c = client;
    return c->is_ended || request_granted(c->q) > 0;
}

// Submits and waits until hold has answered.
static void submit_held(life_client *c, int max_tokens) {
    life_client_init(c, &f, max_tokens);
    submit(c);
    assert_true(life_run(&f, is_held, c, 5000));
}

static void cancel(life_client *c) {
    if (!c->is_ended)
        request_cancel(c->q, OUTCOME_CLIENT_GONE);
    assert_true(life_run(&f, life_client_ended, c, 3000));
}

static void assert_says(const err *e, const char *words) {
    if (!strstr(e->message, words))
        fail_msg("'%s' does not say '%s'", e->message, words);
}

static void await_young_minute(void) { // no window may roll in the next seconds
    while (clock_unix_ms() % 60000 > 55000)
        clock_sleep_ms(200);
}

// ---- every kind in every scope; a request is 5 + 10 tokens and 350 of money

typedef struct kind {
    const char *column, *words;
    int64_t limit;
    err_code code;
    const char *told, *reset; // in the message
} kind;

static const kind kinds[] = {
    {"requests_per_minute", "requests per minute", 1, ERR_RATE, "1", "window ends in"},
    {"tokens_per_minute", "tokens per minute", 20, ERR_RATE, "20", "window ends in"},
    {"concurrent_requests", "concurrent requests", 1, ERR_RATE, "1", ""},
    {"tokens_per_day", "tokens per day", 20, ERR_QUOTA, "20", "window ends at"},
    {"tokens_per_month", "tokens per month", 20, ERR_QUOTA, "20", "window ends at"},
    {"money_per_month", "money per month", 500, ERR_QUOTA, "0.0000005", "window ends at"},
};

static const struct {
    const char *scope, *words;
} scopes[] = {{"t", "your tenant"},
              {"u:" LIFE_USER, "your user"},
              {"k:" LIFE_KEY, "your key"},
              {"m:small", "your tenant for this model"}};

static void refuses_the_second(const kind *k, const char *scope, const char *whose) {
    life_client one, two;
    char said[64];
    setup(NULL);
    life_limit(&f, scope, k->column, k->limit);
    await_young_minute();
    life_open(&f);
    submit_held(&one, 10);
    assert_false(one.is_ended);
    submit_held(&two, 10);
    assert_true(two.is_ended);
    assert_int_equal(two.end.error.code, k->code);
    assert_true(k->code == ERR_QUOTA
                    ? two.end.error.retry_ms == 0
                    : two.end.error.retry_ms > 0 && two.end.error.retry_ms <= 60000);
    snprintf(said, sizeof said, ": limit %s,", k->told);
    assert_says(&two.end.error, k->words);
    assert_says(&two.end.error, whose);
    assert_says(&two.end.error, said);
    assert_says(&two.end.error, k->reset);
    cancel(&one);
    assert_true(life_wait_rows(&f, 1, 3000)); // the refused one has none
    life_close(&f);
}

static void every_kind_in_every_scope_refuses_and_says_so(void **state) {
    (void)state;
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (size_t s = 0; s < sizeof scopes / sizeof *scopes; s++)
            refuses_the_second(&kinds[k], scopes[s].scope, scopes[s].words);
}

static void what_no_limit_names_is_not_limited_and_shows_no_rates(void **state) {
    (void)state;
    life_client c;
    life_limit(&f, "u:" LIFE_TENANT, "tokens_per_day", 0); // somebody else
    life_limit(&f, "m:large", "tokens_per_day", 0);
    life_open(&f);
    submit_held(&c, 10);
    assert_false(c.is_ended);
    rates r = request_rates(c.q);
    assert_true(r.requests.limit == -1 && r.tokens.limit == -1);
    cancel(&c);
    life_close(&f);
}

static void rates_travel_with_the_request_and_its_end(void **state) {
    (void)state;
    life_client c;
    life_limit(&f, "t", "tokens_per_day", 1000);
    life_limit(&f, "k:" LIFE_KEY, "tokens_per_day", 100);
    life_limit(&f, "t", "requests_per_minute", 7);
    life_open(&f);
    submit_held(&c, 10);
    rates r = request_rates(c.q);
    assert_true(r.tokens.limit == 100 && r.tokens.left == 85);
    assert_true(r.requests.limit == 7 && r.requests.left == 6);
    cancel(&c);
    assert_true(c.end.rates.tokens.left == 85);
    life_close(&f);
}

// ---- what the ledger says, Redis having lost it

static void a_scope_is_loaded_from_the_ledger(void **state) {
    (void)state;
    life_client fits, late;
    char *unused = NULL;
    life_limit(&f, "t", "tokens_per_day", 1000);
    life_limit(&f, "u:" LIFE_USER, "tokens_per_month", 1000000);
    life_limit(&f, "k:" LIFE_KEY, "requests_per_minute", 100);
    life_limit(&f, "m:small", "money_per_month", 1000000);
    life_open(&f);
    unused = life_text(&f, "INSERT INTO quota_used VALUES ('" LIFE_TENANT
                           "', 't', (now() AT TIME ZONE 'UTC')::date, 1, 980, 0)");
    free(unused);
    submit_held(&fits, 10);
    assert_false(fits.is_ended); // 980 + 15
    assert_int_equal(request_rates(fits.q).tokens.left, 5);
    submit_held(&late, 10);
    assert_true(late.is_ended);
    assert_says(&late.end.error, "tokens per day of your tenant: limit 1000, used or held 995");
    cancel(&fits);
    life_close(&f);
}

static void a_changed_limit_is_heard(void **state) {
    (void)state;
    life_client c;
    bool is_refused = false;
    life_limit(&f, "t", "tokens_per_day", 1000);
    life_open(&f);
    submit_held(&c, 10);
    cancel(&c);
    life_limit(&f, "t", "tokens_per_day", 3);
    for (int i = 0; i < 50 && !is_refused; i++) {
        submit_held(&c, 10);
        is_refused = c.end.error.code == ERR_QUOTA;
        cancel(&c);
        life_wait(&f, 20);
    }
    assert_true(is_refused);
    life_close(&f);
}

static void answer_4(life_worker *w) {
    if (life_claim(w, 5000))
        life_answer(w, 4);
}

// 5 + 4 used while the scope had no limit: the next limit knows it.
static void a_limit_taken_away_and_given_back_missed_nothing(void **state) {
    (void)state;
    life_client c;
    life_limit(&f, "t", "tokens_per_day", 1000);
    life_open(&f);
    submit_held(&c, 10);
    cancel(&c);
    free(life_text(&f, "UPDATE limits SET tokens_per_day = NULL"));
    while (true) {
        submit_held(&c, 10);
        if (request_rates(c.q).tokens.limit < 0)
            break;
        cancel(&c);
        life_wait(&f, 20);
    }
    life_worker *w = life_worker_start(&f, answer_4, NULL);
    assert_true(life_run(&f, life_client_ended, &c, 5000));
    life_worker_join(w);
    life_limit(&f, "t", "tokens_per_day", 1000);
    while (true) {
        submit_held(&c, 10);
        if (request_rates(c.q).tokens.limit == 1000)
            break;
        cancel(&c);
        life_wait(&f, 20);
    }
    assert_int_equal(request_rates(c.q).tokens.left, 1000 - 9 - 15);
    cancel(&c);
    life_close(&f);
}

// Fifty at once miss four scopes each.
static void many_that_miss_are_all_served(void **state) {
    (void)state;
    static life_client c[50];
    life_limit(&f, "t", "tokens_per_day", 100000);
    life_limit(&f, "u:" LIFE_USER, "tokens_per_day", 100000);
    life_limit(&f, "k:" LIFE_KEY, "tokens_per_day", 100000);
    life_limit(&f, "m:small", "tokens_per_day", 100000);
    life_open(&f);
    for (int i = 0; i < 50; i++) {
        life_client_init(&c[i], &f, 10);
        submit(&c[i]);
    }
    for (int i = 0; i < 50; i++) {
        assert_true(life_run(&f, is_held, &c[i], 5000));
        assert_false(c[i].is_ended);
    }
    for (int i = 0; i < 50; i++)
        cancel(&c[i]);
    life_close(&f);
}

// ---- grants

static void an_absent_max_tokens_shrinks_to_the_headroom(void **state) {
    (void)state;
    life_client c, explicit;
    life_limit(&f, "t", "tokens_per_day", 105);
    life_open(&f);
    submit_held(&explicit, 101);
    assert_int_equal(explicit.end.error.code, ERR_QUOTA);
    submit_held(&c, 0);
    assert_false(c.is_ended);
    assert_int_equal(request_granted(c.q), 100);
    cancel(&c);
    life_close(&f);
}

static void make_tokens(life_worker *w) {
    int *n = w->ctx;
    if (life_claim(w, 5000))
        life_answer(w, *n);
}

static void a_refused_extension_ends_with_length_and_names_the_limit(void **state) {
    (void)state;
    life_client c;
    int n = 60; // the worker would go on
    life_limit(&f, "k:" LIFE_KEY, "tokens_per_day", 55);
    life_open(&f);
    life_client_init(&c, &f, 0);
    life_worker *w = life_worker_start(&f, make_tokens, &n);
    submit(&c);
    assert_true(life_run(&f, life_client_ended, &c, 5000));
    life_worker_join(w);
    assert_int_equal(c.end.outcome, OUTCOME_OK);
    assert_int_equal(c.n[0], 50); // all that was granted, and no more
    assert_int_equal(c.end.finish[0], FINISH_LENGTH);
    assert_string_equal(c.end.limited_by, "tokens per day");
    assert_true(life_wait_rows(&f, 1, 3000));
    assert_int_equal(life_number(&f, "SELECT tokens FROM quota_used WHERE scope = 't'"), 55);
    life_close(&f);
}

static void one_then_more(life_worker *w) {
    if (!life_claim(w, 5000))
        return;
    life_send_claim(w);
    life_send(w, REPLY_PREFILLED, 0, 0, 1, "x");
    while (!atomic_load((atomic_bool *)w->ctx))
        clock_sleep_ms(5);
    for (int i = 1; i < 600; i++)
        life_send(w, 0, 0, i, 1, "x");
}

static bool has_one(void *client) { return ((life_client *)client)->n[0] == 1; }

static void a_limit_that_is_lowered_holds_for_the_next_extension(void **state) {
    (void)state;
    life_client c, probe;
    atomic_bool goes_on = false;
    f.c.default_max_tokens = 100;
    life_limit(&f, "t", "tokens_per_day", 100000);
    life_open(&f);
    life_client_init(&c, &f, 0);
    life_worker *w = life_worker_start(&f, one_then_more, &goes_on);
    submit(&c);
    assert_true(life_run(&f, has_one, &c, 5000));
    life_limit(&f, "t", "tokens_per_day", 110); // 105 are held
    do {
        life_wait(&f, 20);
        submit_held(&probe, 10);
        cancel(&probe);
    } while (probe.end.error.code != ERR_QUOTA);
    goes_on = true;
    assert_true(life_run(&f, life_client_ended, &c, 5000));
    life_worker_join(w);
    assert_int_equal(c.end.outcome, OUTCOME_OK);
    assert_int_equal(c.n[0], 105); // 5 more were to be had
    assert_string_equal(c.end.limited_by, "tokens per day");
    life_close(&f);
}

static void an_answer_that_ends_by_itself_was_not_limited(void **state) {
    (void)state;
    life_client c;
    int n = 20;
    life_limit(&f, "t", "tokens_per_day", 55);
    life_open(&f);
    life_client_init(&c, &f, 0);
    life_worker *w = life_worker_start(&f, make_tokens, &n);
    submit(&c);
    assert_true(life_run(&f, life_client_ended, &c, 5000));
    life_worker_join(w);
    assert_int_equal(c.end.finish[0], FINISH_STOP);
    assert_null(c.end.limited_by);
    life_close(&f);
}

static void make_what_it_may(life_worker *w) {
    if (!life_claim(w, 5000))
        return;
    w->finish = FINISH_LENGTH;
    *(int *)w->ctx = w->job.max_tokens;
    life_answer(w, w->job.max_tokens);
}

static void an_explicit_max_tokens_that_may_shrink_does(void **state) {
    (void)state;
    life_client c;
    int asked = 0;
    life_limit(&f, "t", "tokens_per_minute", 55);
    life_open(&f);
    life_client_init(&c, &f, 100);
    c.spec.allow_truncate = true;
    life_worker *w = life_worker_start(&f, make_what_it_may, &asked);
    submit(&c);
    assert_true(life_run(&f, life_client_ended, &c, 5000));
    life_worker_join(w);
    assert_int_equal(asked, 50);
    assert_int_equal(c.end.completion_tokens, 50);
    assert_string_equal(c.end.limited_by, "tokens per minute");
    life_close(&f);
}

int main(void) {
#define LIFE(test) cmocka_unit_test_setup(test, setup)
    const struct CMUnitTest tests[] = {
        LIFE(every_kind_in_every_scope_refuses_and_says_so),
        LIFE(what_no_limit_names_is_not_limited_and_shows_no_rates),
        LIFE(rates_travel_with_the_request_and_its_end),
        LIFE(a_scope_is_loaded_from_the_ledger),
        LIFE(a_changed_limit_is_heard),
        LIFE(a_limit_taken_away_and_given_back_missed_nothing),
        LIFE(many_that_miss_are_all_served),
        LIFE(an_absent_max_tokens_shrinks_to_the_headroom),
        LIFE(a_refused_extension_ends_with_length_and_names_the_limit),
        LIFE(a_limit_that_is_lowered_holds_for_the_next_extension),
        LIFE(an_answer_that_ends_by_itself_was_not_limited),
        LIFE(an_explicit_max_tokens_that_may_shrink_does),
    };
    if (!test_has_redis() || !test_has_postgres()) {
        puts("skip: redis-server or PostgreSQL is not installed");
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
