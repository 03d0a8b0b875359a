// Holds against a real Redis: what is taken, shrunk, refused, given back, and that nothing counts
// twice. The oracle for races is arithmetic on the answers, not the counters of the script.
#include "base/clock.h"
#include "router/library.h"
#include "router/quota.h"
#include "tests/support/servers.h"
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define GATEWAY 0xabcdefu

static redis *r;
static usage_meta m;
static quota_limits limits;
static const char *body = ""; // hash of the next hold's body

static void call_words(redis *to, int argc, const char *const *argv) {
    redis_reply_box *box = NULL;
    assert_int_equal(redis_call(to, argc, argv, NULL, &box, NULL), 0);
    redis_reply_free(box);
}

static void no_limits(quota_limits *l) {
    for (int i = 0; i < USAGE_SCOPES; i++)
        for (int k = 0; k < N_QUOTA_KINDS; k++)
            l->limit[i][k] = -1;
}

static int setup(void **state) {
    (void)state;
    err e = {0};
    assert_int_equal(redis_connect(test_redis()->address, 2000, &r, &e), 0);
    call_words(r, 1, (const char *const[]){"FLUSHALL"});
    assert_int_equal(library_load(r, LIBRARY_QUOTA, &e), 0);
    m = (usage_meta){.tenant = "01900000-0000-7000-8000-00000000000a",
                     .user = "01900000-0000-7000-8000-00000000000b",
                     .key = "01900000-0000-7000-8000-00000000000c",
                     .model = "small",
                     .price_in = 3,
                     .price_out = 15,
                     .scopes = "tk"};
    no_limits(&limits);
    body = "";
    return 0;
}

static int teardown(void **state) {
    (void)state;
    redis_close(r);
    return 0;
}

static quota_answer ask(redis *to, command *c) {
    redis_reply_box *box = NULL;
    quota_answer a;
    assert_int_equal(command_call(c, to, &box, NULL), 0);
    quota_read_answer(redis_reply_value(box), &a);
    redis_reply_free(box);
    return a;
}

static void load_zero(redis *to, const quota_answer *miss) {
    command c = {0};
    quota_counters zero = {.minute = miss->now_s / 60, .day = miss->now_s / 86400};
    zero.month = 12 * 2026 + 10; // months only roll forward
    quota_load_command(&m, miss->scope, miss->nonce, &zero, &c);
    redis_reply_box *box = NULL;
    assert_int_equal(command_call(&c, to, &box, NULL), 0);
    redis_reply_free(box);
    command_release(&c);
}

static quota_answer hold_with(redis *to, const char *id, int prompt, int want, int need, int n) {
    command c = {0};
    quota_demand d = {.prompt = prompt, .want = want, .need = need, .n_choices = n};
    quota_answer a;
    for (;;) {
        quota_hold_command(&m, id, GATEWAY, body, &d, &limits, &c);
        a = ask(to, &c);
        if (a.verdict != QUOTA_MISS)
            break;
        load_zero(to, &a);
    }
    command_release(&c);
    return a;
}

static quota_answer hold(const char *id, int prompt, int want, int need) {
    return hold_with(r, id, prompt, want, need, 1);
}

static quota_answer extend(const char *id, int from, int slice, int n) {
    command c = {0};
    quota_extend_command(&m, id, from, slice, n, &limits, &c);
    quota_answer a = ask(r, &c);
    command_release(&c);
    return a;
}

static quota_verdict settle_with(redis *to, const char *id, const quota_settlement *s, bool drop,
                                 quota_settlement *out) {
    command c = {0};
    redis_reply_box *box = NULL;
    quota_settle_command(&m, id, s, s && s->outcome[0] ? s->outcome : "ok", drop, &c);
    assert_int_equal(command_call(&c, to, &box, NULL), 0);
    quota_verdict v = quota_read_settlement(redis_reply_value(box), out);
    redis_reply_free(box);
    command_release(&c);
    return v;
}

static quota_verdict settle(const char *id, int prompt, int completion, bool drop,
                            quota_settlement *out) {
    quota_settlement own = {.prompt = prompt,
                            .completion = completion,
                            .money = prompt * m.price_in + completion * m.price_out};
    quota_settlement got;
    return settle_with(r, id, &own, drop, out ? out : &got);
}

// Counters of the scope 't', as packed: 2 minute tokens, 4 day tokens, 7 month money, 8.. held.
static double counter(int k) {
    redis_reply_box *box = NULL;
    char key[96];
    size_t n;
    double v = -1;
    snprintf(key, sizeof key, "tg:{%s}:s:t", m.tenant);
    assert_int_equal(redis_call(r, 2, (const char *const[]){"GET", key}, NULL, &box, NULL), 0);
    const char *text = redis_value_str(redis_reply_value(box), &n);
    if (text && n == 88)
        memcpy(&v, text + 8 * k, sizeof v);
    redis_reply_free(box);
    return v;
}
enum { DAY_TOKENS = 4, MONTH_MONEY = 7, HELD_REQUESTS = 8, HELD_TOKENS = 9, HELD_MONEY = 10 };

// ---- one request

static void a_repeated_hold_takes_once(void **state) {
    (void)state;
    limits.limit[0][QUOTA_TPD] = 1000;
    assert_int_equal(hold("a", 50, 200, 1).verdict, QUOTA_OK);
    quota_answer again = hold("a", 50, 200, 1);
    assert_int_equal(again.verdict, QUOTA_OK);
    assert_int_equal(again.granted, 200);
    assert_true(counter(HELD_REQUESTS) == 1 && counter(HELD_TOKENS) == 250);
    assert_true(counter(HELD_MONEY) == 50 * 3 + 200 * 15);
}

static void the_first_settler_decides_and_nothing_counts_twice(void **state) {
    (void)state;
    quota_settlement s;
    limits.limit[0][QUOTA_TPD] = 1000;
    hold("a", 50, 200, 1);
    assert_int_equal(settle("a", 50, 7, false, NULL), QUOTA_OK);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(settle_with(r, "a", NULL, false, &s), QUOTA_OK);
        assert_true(s.prompt == 50 && s.completion == 7 && s.money == 255);
        assert_string_equal(s.outcome, "ok");
    }
    assert_true(counter(HELD_REQUESTS) == 0 && counter(HELD_TOKENS) == 0);
    assert_true(counter(DAY_TOKENS) == 57 && counter(MONTH_MONEY) == 255);
    assert_int_equal(settle("a", 50, 7, true, NULL), QUOTA_OK); // drop
    assert_int_equal(settle("a", 50, 7, true, NULL), QUOTA_GONE);
    assert_true(counter(DAY_TOKENS) == 57 && counter(HELD_TOKENS) == 0);
}

static void a_drop_settles_what_a_failover_had_undone(void **state) {
    (void)state;
    limits.limit[0][QUOTA_TPD] = 1000;
    hold("a", 50, 200, 1);
    assert_int_equal(settle("a", 50, 9, true, NULL), QUOTA_OK);
    assert_true(counter(HELD_TOKENS) == 0 && counter(DAY_TOKENS) == 59);
}

static void a_drop_rights_what_was_settled_with_other_values(void **state) {
    (void)state;
    quota_settlement s;
    limits.limit[0][QUOTA_TPD] = 1000;
    hold("a", 50, 200, 1);
    hold("b", 50, 200, 1);
    assert_int_equal(settle_with(r, "a", NULL, false, &s), QUOTA_OK); // nothing was reported
    assert_int_equal(settle("b", 50, 200, false, NULL), QUOTA_OK);
    assert_true(counter(DAY_TOKENS) == 250);
    assert_int_equal(settle("a", 50, 9, true, NULL), QUOTA_OK);
    assert_true(counter(DAY_TOKENS) == 309 && counter(MONTH_MONEY) == 50 * 6 + 209 * 15);
    assert_int_equal(settle("b", 50, 3, true, NULL), QUOTA_OK);
    assert_true(counter(DAY_TOKENS) == 112 && counter(MONTH_MONEY) == 50 * 6 + 12 * 15);
    assert_int_equal(settle("b", 50, 3, true, NULL), QUOTA_GONE);
    assert_true(counter(DAY_TOKENS) == 112 && counter(HELD_TOKENS) == 0);
}

// Its minute, day and month are over.
static void only_windows_that_still_run_are_righted(void **state) {
    (void)state;
    quota_settlement s;
    char key[96], old[32], at[32];
    redis_reply_box *box = NULL;
    limits.limit[0][QUOTA_TPD] = 1000;
    hold("a", 50, 200, 1);
    settle_with(r, "a", NULL, false, &s);
    snprintf(key, sizeof key, "tg:{%s}:r:a", m.tenant);
    snprintf(old, sizeof old, " %lld ", (long long)s.at_ms);
    snprintf(at, sizeof at, " %lld ", (long long)s.at_ms % 86400000); // of 1970
    assert_int_equal(redis_call(r, 2, (const char *const[]){"GET", key}, NULL, &box, NULL), 0);
    char *record = strdup(redis_value_str(redis_reply_value(box), NULL)),
         *found = strstr(record, old), changed[1024], *later;
    if (found && (later = strstr(found + 1, old)) != NULL) // held in the same millisecond
        found = later;
    redis_reply_free(box);
    assert_non_null(found);
    snprintf(changed, sizeof changed, "%.*s%s%s", (int)(found - record), record, at,
             found + strlen(old));
    call_words(r, 3, (const char *const[]){"SET", key, changed});
    free(record);
    assert_int_equal(settle("a", 50, 9, true, NULL), QUOTA_OK);
    assert_true(counter(2) == 0 && counter(DAY_TOKENS) == 0 && counter(MONTH_MONEY) == 0);
}

static void a_stranger_settles_with_the_last_report(void **state) {
    (void)state;
    quota_settlement s;
    command c = {0};
    redis_reply_box *box = NULL;
    hold("a", 50, 200, 1);
    quota_sent sent[] = {{"a", 12, true}, {"gone", 9, true}};
    quota_progress_command(m.tenant, sent, 2, &c);
    assert_int_equal(command_call(&c, r, &box, NULL), 0);
    assert_int_equal(redis_value_int(redis_reply_value(box)), 1); // one is not open
    redis_reply_free(box);
    command_release(&c);
    assert_int_equal(settle_with(r, "a", NULL, false, &s), QUOTA_OK);
    assert_true(s.prompt == 50 && s.completion == 12 && s.money == 330);
    assert_true(s.at_ms > clock_unix_ms() - 5000 && s.at_ms < clock_unix_ms() + 5000);
}

static quota_verdict release(const char *id) {
    command c = {0};
    redis_reply_box *box = NULL;
    quota_settlement s;
    quota_release_command(&m, id, &c);
    assert_int_equal(command_call(&c, r, &box, NULL), 0);
    quota_verdict v = quota_read_settlement(redis_reply_value(box), &s);
    redis_reply_free(box);
    command_release(&c);
    return v;
}

static bool has_record(const char *id) {
    redis_reply_box *box = NULL;
    char key[96];
    snprintf(key, sizeof key, "tg:{%s}:r:%s", m.tenant, id);
    assert_int_equal(redis_call(r, 2, (const char *const[]){"EXISTS", key}, NULL, &box, NULL), 0);
    bool yes = redis_value_int(redis_reply_value(box)) == 1;
    redis_reply_free(box);
    return yes;
}

static void a_hold_can_be_released_until_its_request_is_accepted(void **state) {
    (void)state;
    command c = {0};
    redis_reply_box *box = NULL;
    quota_settlement s;
    hold("a", 50, 200, 1);
    hold("b", 50, 200, 1);
    assert_int_equal(release("a"), QUOTA_OK);
    assert_int_equal(release("a"), QUOTA_GONE);
    assert_false(has_record("a"));
    assert_true(counter(HELD_REQUESTS) == 1 && counter(HELD_TOKENS) == 250 &&
                counter(DAY_TOKENS) == 0);
    quota_sent nothing_yet = {"b", 0, false};
    quota_progress_command(m.tenant, &nothing_yet, 1, &c);
    assert_int_equal(command_call(&c, r, &box, NULL), 0);
    redis_reply_free(box);
    command_release(&c);
    assert_int_equal(release("b"), QUOTA_GONE);
    assert_int_equal(settle_with(r, "b", NULL, false, &s), QUOTA_OK);
    assert_int_equal(release("b"), QUOTA_GONE);
    assert_true(has_record("b") && s.prompt == 0 && s.completion == 0);
}

static void a_record_tells_a_stranger_whose_it_is(void **state) {
    (void)state;
    redis_reply_box *box = NULL;
    quota_record record;
    char key[96];
    size_t n;
    err e = {0};
    snprintf(m.adapter, sizeof m.adapter, "a b\"c"); // whatever it holds
    hold("a", 50, 200, 1);
    snprintf(key, sizeof key, "tg:{%s}:r:a", m.tenant);
    redis_call(r, 2, (const char *const[]){"GET", key}, NULL, &box, NULL);
    const char *text = redis_value_str(redis_reply_value(box), &n);
    assert_int_equal(quota_read_record(text, n, &record, &e), 0);
    assert_true(record.gateway == GATEWAY && record.prompt == 50 && !record.prefilled);
    assert_string_equal(record.meta.adapter, m.adapter);
    assert_string_equal(record.meta.scopes, "tk");
    for (size_t cut = 0; cut < n; cut++)
        assert_int_equal(quota_read_record(text, cut, &record, &e), -1);
    redis_reply_free(box);
}

// ---- limits

static void an_explicit_demand_is_refused_whole_and_an_absent_one_shrinks(void **state) {
    (void)state;
    limits.limit[0][QUOTA_TPD] = 1000;
    quota_answer a = hold("a", 50, 951, 951);
    assert_int_equal(a.verdict, QUOTA_NO);
    assert_string_equal(a.kind, "tpd");
    assert_int_equal(a.retry_ms, -1);
    assert_true(a.limit == 1000 && a.used == 0 && a.demand == 1001);
    a = hold("b", 50, 951, 1);
    assert_true(a.verdict == QUOTA_OK && a.granted == 950);
    assert_string_equal(a.kind, "tpd"); // it shrank the grant
    assert_int_equal(hold("c", 1, 1, 1).verdict, QUOTA_NO);
    assert_int_equal(settle("b", 50, 100, true, NULL), QUOTA_OK);
    a = hold("c", 50, 800, 800); // 150 + 850
    assert_true(a.verdict == QUOTA_OK && a.granted == 800);
}

static void the_tightest_scope_binds_and_names_itself(void **state) {
    (void)state;
    limits.limit[0][QUOTA_TPO] = 10000;
    limits.limit[1][QUOTA_MPO] = 3 * 50 + 15 * 10;
    quota_answer a = hold("a", 50, 100, 1);
    assert_true(a.verdict == QUOTA_OK && a.granted == 10);
    a = hold("b", 50, 100, 1);
    assert_int_equal(a.verdict, QUOTA_NO);
    assert_int_equal(a.scope, 1);
    assert_string_equal(a.kind, "mpo");
}

static void requests_a_minute_and_open_requests_are_counted(void **state) {
    (void)state;
    limits.limit[0][QUOTA_RPM] = 3;
    limits.limit[0][QUOTA_CONCURRENT] = 2;
    while (clock_unix_ms() % 60000 > 57000) // the window must not roll meanwhile
        clock_sleep_ms(200);
    assert_int_equal(hold("a", 1, 1, 1).verdict, QUOTA_OK);
    assert_int_equal(hold("b", 1, 1, 1).verdict, QUOTA_OK);
    quota_answer a = hold("c", 1, 1, 1);
    assert_true(a.verdict == QUOTA_NO && a.retry_ms == 1000);
    assert_string_equal(a.kind, "conc");
    settle("a", 1, 1, true, NULL);
    assert_int_equal(hold("c", 1, 1, 1).verdict, QUOTA_OK);
    settle("b", 1, 1, true, NULL);
    a = hold("d", 1, 1, 1);
    assert_string_equal(a.kind, "rpm");
    assert_in_range(a.retry_ms, 1, 60000);
}

static void the_last_token_can_be_had_and_not_one_more(void **state) {
    (void)state;
    limits.limit[0][QUOTA_TPD] = 1000;
    limits.limit[0][QUOTA_TPM] = 1000;
    limits.limit[1][QUOTA_TPO] = 1000;
    assert_int_equal(hold("a", 50, 900, 900).verdict, QUOTA_OK); // 50 are left
    assert_int_equal(hold("b", 40, 11, 11).verdict, QUOTA_NO);
    assert_int_equal(hold_with(r, "b", 48, 1, 1, 3).verdict, QUOTA_NO); // three choices
    quota_answer a = hold("b", 49, 512, 1);
    assert_true(a.verdict == QUOTA_OK && a.granted == 1);
    assert_true(hold("c", 0, 1, 1).verdict == QUOTA_NO);
    settle("b", 49, 0, true, NULL);
    assert_int_equal(extend("a", 900, 512, 1).granted, 901); // what b gave back
    assert_int_equal(extend("a", 901, 1, 1).verdict, QUOTA_NO);
}

static void the_last_money_can_be_had_and_not_one_more(void **state) {
    (void)state;
    limits.limit[1][QUOTA_MPO] = 3 * 50 + 15 * 20; // prices 3 and 15
    assert_int_equal(hold("a", 50, 21, 21).verdict, QUOTA_NO);
    assert_int_equal(hold("a", 50, 20, 20).verdict, QUOTA_OK);
    assert_int_equal(hold("b", 1, 1, 1).verdict, QUOTA_NO);
    settle("a", 50, 18, true, NULL); // 30 are left: five prompt tokens and one more
    assert_int_equal(hold("b", 6, 1, 1).verdict, QUOTA_NO);
    assert_int_equal(hold("b", 5, 512, 1).granted, 1);
}

static void rates_are_those_of_the_limit_that_leaves_least(void **state) {
    (void)state;
    quota_answer a = hold("a", 50, 100, 1);
    assert_true(a.rates.requests.limit == -1 && a.rates.tokens.limit == -1);
    limits.limit[0][QUOTA_TPD] = 10000;
    limits.limit[1][QUOTA_TPO] = 1000; // a held 150
    limits.limit[1][QUOTA_RPM] = 5;
    a = hold("b", 50, 100, 1);
    assert_true(a.rates.tokens.limit == 1000 && a.rates.tokens.left == 700);
    assert_in_range(a.rates.tokens.reset_ms, 1, 31 * 86400000LL);
    assert_true(a.rates.requests.limit == 5 && a.rates.requests.left == 3);
    assert_in_range(a.rates.requests.reset_ms, 1, 60000);
    a = hold("c", 50, 1000, 1000); // refused, and told all the same
    assert_true(a.verdict == QUOTA_NO && a.rates.tokens.left == 700);
    limits.limit[0][QUOTA_TPD] = 500;
    a = hold("d", 50, 100, 1);
    assert_true(a.rates.tokens.limit == 500 && a.rates.tokens.left == 50);
    assert_in_range(a.rates.tokens.reset_ms, 1, 86400000);
}

// ---- Idempotency-Key and poison

static quota_verdict settle_answered(const char *id) {
    command c = {0};
    redis_reply_box *box = NULL;
    quota_settlement own = {.prompt = 1}, got;
    quota_settle_answered_command(&m, id, &own, "ok", &c);
    assert_int_equal(command_call(&c, r, &box, NULL), 0);
    quota_verdict v = quota_read_settlement(redis_reply_value(box), &got);
    redis_reply_free(box);
    command_release(&c);
    return v;
}

static void store(const char *id, const char *answer) {
    command c = {0};
    redis_reply_box *box = NULL;
    quota_answer_command(m.tenant, m.idem, id, answer, strlen(answer), &c);
    assert_int_equal(command_call(&c, r, &box, NULL), 0);
    redis_reply_free(box);
    command_release(&c);
}

static void an_idempotency_key_is_taken_until_its_request_ends(void **state) {
    (void)state;
    snprintf(m.idem, sizeof m.idem, "aa");
    body = "b1";
    assert_int_equal(hold("a", 1, 1, 1).verdict, QUOTA_OK);
    assert_int_equal(hold("a", 1, 1, 1).verdict, QUOTA_OK); // the call itself repeated
    assert_int_equal(hold("b", 1, 1, 1).verdict, QUOTA_OPEN);
    body = "b2";
    assert_int_equal(hold("b", 1, 1, 1).verdict, QUOTA_OTHER);
    body = "b1";
    settle("a", 1, 1, false, NULL); // failed, or streamed: it may run again
    assert_int_equal(hold("b", 1, 1, 1).verdict, QUOTA_OK);
    settle("a", 1, 1, true, NULL);
    assert_int_equal(hold("c", 1, 1, 1).verdict, QUOTA_OPEN);
}

static void a_key_that_another_took_over_is_not_freed(void **state) {
    (void)state;
    char key[128];
    snprintf(m.idem, sizeof m.idem, "aa");
    body = "b1";
    hold("a", 1, 1, 1);
    snprintf(key, sizeof key, "tg:{%s}:idem:aa", m.tenant);
    call_words(r, 2, (const char *const[]){"DEL", key}); // its hour is over
    assert_int_equal(hold("b", 1, 1, 1).verdict, QUOTA_OK);
    settle("a", 1, 1, false, NULL);
    assert_int_equal(hold("c", 1, 1, 1).verdict, QUOTA_OPEN); // b's
}

static void a_stored_answer_is_told_to_the_same_body_only(void **state) {
    (void)state;
    command c = {0};
    redis_reply_box *box = NULL;
    quota_answer a;
    quota_demand d = {.prompt = 1, .want = 1, .need = 1, .n_choices = 1};
    snprintf(m.idem, sizeof m.idem, "aa");
    body = "b1";
    hold("a", 1, 1, 1);
    assert_int_equal(settle_answered("a"), QUOTA_OK);
    assert_int_equal(hold("b", 1, 1, 1).verdict, QUOTA_OPEN); // the answer is on its way
    store("other", "not mine");
    store("a", "{\"x\": 1}\n second line");
    quota_hold_command(&m, "b", GATEWAY, body, &d, &limits, &c);
    assert_int_equal(command_call(&c, r, &box, NULL), 0);
    quota_read_answer(redis_reply_value(box), &a);
    assert_int_equal(a.verdict, QUOTA_DONE);
    assert_int_equal(a.n_answer, strlen("{\"x\": 1}\n second line"));
    assert_memory_equal(a.answer, "{\"x\": 1}\n second line", a.n_answer);
    redis_reply_free(box);
    command_release(&c);
    body = "b2";
    assert_int_equal(hold("b", 1, 1, 1).verdict, QUOTA_OTHER);
    snprintf(m.idem, sizeof m.idem, "bb");
    hold("c", 1, 1, 1);
    settle_answered("c");
    store("c", ""); // there is nothing to keep
    assert_int_equal(hold("d", 1, 1, 1).verdict, QUOTA_OK);
}

static void a_poisoned_body_is_refused_for_its_tenant_alone(void **state) {
    (void)state;
    command c = {0};
    redis_reply_box *box = NULL;
    quota_poison_command(m.tenant, "b1", 600000, &c);
    assert_int_equal(command_call(&c, r, &box, NULL), 0);
    redis_reply_free(box);
    command_release(&c);
    body = "b2";
    assert_int_equal(hold("a", 1, 1, 1).verdict, QUOTA_OK);
    body = "b1";
    quota_answer a = hold("b", 1, 1, 1);
    assert_int_equal(a.verdict, QUOTA_POISON);
    assert_in_range(a.retry_ms, 590000, 600000);
    m.tenant[35] = 'f';
    assert_int_equal(hold("b", 1, 1, 1).verdict, QUOTA_OK);
}

static void an_extension_takes_what_is_left_and_counts_once(void **state) {
    (void)state;
    limits.limit[0][QUOTA_TPD] = 1000;
    quota_answer a = hold_with(r, "a", 50, 300, 1, 2);
    assert_true(a.granted == 300 && counter(HELD_TOKENS) == 650);
    assert_int_equal(extend("a", 300, 100, 2).granted, 400);
    assert_int_equal(extend("a", 300, 100, 2).granted, 400); // a repeated call
    assert_true(counter(HELD_TOKENS) == 850);
    assert_int_equal(extend("a", 400, 512, 2).granted, 475);
    a = extend("a", 475, 512, 2);
    assert_int_equal(a.verdict, QUOTA_NO);
    assert_string_equal(a.kind, "tpd");
    assert_true(counter(HELD_TOKENS) == 1000 && counter(HELD_REQUESTS) == 1);
    settle("a", 50, 900, false, NULL);
    assert_int_equal(extend("a", 475, 1, 2).verdict, QUOTA_GONE);
    assert_true(counter(HELD_TOKENS) == 0 && counter(DAY_TOKENS) == 950);
}

// ---- loading

static quota_answer first_ask(const char *id) {
    command c = {0};
    quota_demand d = {.prompt = 1, .want = 1, .need = 1, .n_choices = 1};
    quota_hold_command(&m, id, GATEWAY, body, &d, &limits, &c);
    quota_answer a = ask(r, &c);
    command_release(&c);
    return a;
}

static void a_load_whose_nonce_died_in_a_wipe_is_refused(void **state) {
    (void)state;
    quota_answer miss = first_ask("a");
    assert_int_equal(miss.verdict, QUOTA_MISS);
    call_words(r, 1, (const char *const[]){"FLUSHALL"});
    load_zero(r, &miss);
    quota_answer again = first_ask("a");
    assert_true(again.verdict == QUOTA_MISS && again.scope == miss.scope); // nothing was loaded
}

static void two_that_miss_share_the_first_nonce(void **state) {
    (void)state;
    quota_answer one = first_ask("a"), two = first_ask("b");
    assert_string_equal(one.nonce, two.nonce);
}

static void a_missing_library_is_told_apart_from_a_lost_answer(void **state) {
    (void)state;
    call_words(r, 2, (const char *const[]){"FUNCTION", "FLUSH"});
    assert_int_equal(first_ask("a").verdict, QUOTA_NO_CALL);
}

static void the_ledger_is_cut_into_windows_at_the_second_redis_named(void **state) {
    (void)state;
    pg *db = NULL;
    quota_counters c;
    err e = {0};
    if (!test_has_postgres())
        skip();
    assert_int_equal(pg_connect(test_postgres()->address, &db, &e), 0);
    assert_int_equal(
        pg_exec(
            db,
            "DROP SCHEMA IF EXISTS q CASCADE; CREATE SCHEMA q; SET search_path = q;"
            "CREATE TABLE quota_used (tenant_id uuid, scope text, day date, requests bigint,"
            " tokens bigint, money bigint);"
            "CREATE TABLE usage (tenant_id uuid, user_id uuid, key_id uuid, model text,"
            " at timestamptz, prompt_tokens bigint, completion_tokens bigint);"
            "INSERT INTO quota_used SELECT '01900000-0000-7000-8000-00000000000a', 't', d, 1,"
            " 100, 1000 FROM unnest('{2026-10-31,2026-11-01,2026-11-24}'::date[]) d;"
            "INSERT INTO usage SELECT '01900000-0000-7000-8000-00000000000a', gen_random_uuid(),"
            " gen_random_uuid(), 'small', t, 3, 4 FROM unnest('{2026-11-24 10:00:01+00,"
            "2026-11-24 09:59:59+00}'::timestamptz[]) t",
            &e),
        0);
    assert_int_equal(quota_read_ledger(db, &m, 0, 1795514430, &c, &e), 0); // 2026-11-24 10:00:30
    assert_true(c.minute_requests == 1 && c.minute_tokens == 7);
    assert_true(c.day_tokens == 100 && c.month_tokens == 200 && c.month_money == 2000);
    assert_true(c.month == 12 * 2026 + 10 && c.day == 1795514430 / 86400);
    pg_exec(db, "DROP SCHEMA q CASCADE", NULL);
    pg_close(db);
}

// ---- the last tokens

#define THREADS 8
#define LAST_TOKENS 6000

static void *take_last(void *ctx) {
    long taken = 0, k = (long)(intptr_t)ctx;
    unsigned seed = (unsigned)k;
    redis *own = NULL;
    if (redis_connect(test_redis()->address, 5000, &own, NULL))
        return (void *)-1;
    for (int i = 0;; i++) {
        char id[32];
        quota_settlement s, got;
        snprintf(id, sizeof id, "%ld-%d", k, i);
        int prompt = 1 + rand_r(&seed) % 20;
        quota_answer a = hold_with(own, id, prompt, 1 + rand_r(&seed) % 60, 1, 1);
        if (a.verdict == QUOTA_NO && prompt == 1)
            break; // not even one token is left
        if (a.verdict != QUOTA_OK)
            continue;
        s = (quota_settlement){.prompt = prompt, .completion = rand_r(&seed) % (a.granted + 1)};
        settle_with(own, id, &s, true, &got);
        taken += s.prompt + s.completion;
    }
    redis_close(own);
    return (void *)(intptr_t)taken;
}

static void the_last_tokens_are_never_overspent(void **state) {
    (void)state;
    pthread_t threads[THREADS];
    long taken = 0;
    limits.limit[0][QUOTA_TPD] = LAST_TOKENS;
    for (long i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, take_last, (void *)(intptr_t)(i + 1));
    for (int i = 0; i < THREADS; i++) {
        void *mine;
        pthread_join(threads[i], &mine);
        assert_true((long)(intptr_t)mine >= 0);
        taken += (long)(intptr_t)mine;
    }
    assert_in_range(taken, LAST_TOKENS - 1, LAST_TOKENS);
    assert_true(counter(DAY_TOKENS) == taken);
    assert_true(counter(HELD_TOKENS) == 0 && counter(HELD_REQUESTS) == 0);
}

int main(void) {
#define WITH_REDIS(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        WITH_REDIS(a_repeated_hold_takes_once),
        WITH_REDIS(the_first_settler_decides_and_nothing_counts_twice),
        WITH_REDIS(a_drop_settles_what_a_failover_had_undone),
        WITH_REDIS(a_drop_rights_what_was_settled_with_other_values),
        WITH_REDIS(only_windows_that_still_run_are_righted),
        WITH_REDIS(a_stranger_settles_with_the_last_report),
        WITH_REDIS(a_hold_can_be_released_until_its_request_is_accepted),
        WITH_REDIS(a_record_tells_a_stranger_whose_it_is),
        WITH_REDIS(an_explicit_demand_is_refused_whole_and_an_absent_one_shrinks),
        WITH_REDIS(the_tightest_scope_binds_and_names_itself),
        WITH_REDIS(requests_a_minute_and_open_requests_are_counted),
        WITH_REDIS(the_last_token_can_be_had_and_not_one_more),
        WITH_REDIS(the_last_money_can_be_had_and_not_one_more),
        WITH_REDIS(rates_are_those_of_the_limit_that_leaves_least),
        WITH_REDIS(an_idempotency_key_is_taken_until_its_request_ends),
        WITH_REDIS(a_key_that_another_took_over_is_not_freed),
        WITH_REDIS(a_stored_answer_is_told_to_the_same_body_only),
        WITH_REDIS(a_poisoned_body_is_refused_for_its_tenant_alone),
        WITH_REDIS(an_extension_takes_what_is_left_and_counts_once),
        WITH_REDIS(a_load_whose_nonce_died_in_a_wipe_is_refused),
        WITH_REDIS(two_that_miss_share_the_first_nonce),
        WITH_REDIS(a_missing_library_is_told_apart_from_a_lost_answer),
        WITH_REDIS(the_ledger_is_cut_into_windows_at_the_second_redis_named),
        WITH_REDIS(the_last_tokens_are_never_overspent),
    };
    if (!test_has_redis()) {
        puts("skip: redis-server is not installed");
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
