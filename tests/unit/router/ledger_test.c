// Rows in Postgres: once and only once, whoever sends them and how often; sums always equal to the
// rows; a row that cannot be stored stops no other.
#include "base/clock.h"
#include "router/library.h"
#include "router/quota.h"
#include "router/recorder.h"
#include "tests/support/router_life.h"
#include "tests/support/servers.h"
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static life f; // configuration and connections; no router
static journal *j;

static int n_found;
static char found_id[ID_UUID_TEXT];

static void on_found(void *ctx, const journal_open_id *id) {
    (void)ctx;
    n_found++;
    memcpy(found_id, id->row.id, sizeof found_id);
}

static int setup(void **state) {
    (void)state;
    char dir[160];
    static int n;
    err e = {0};
    life_empty();
    snprintf(dir, sizeof dir, "%s/ledger%d", test_dir(), n++);
    life_configure(&f, dir);
    assert_int_equal(pg_connect(f.c.postgres_url, &f.db, &e), 0);
    assert_int_equal(journal_open(dir, 1 << 30, on_found, NULL, &j, &e), 0);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    journal_close(j);
    pg_close(f.db);
    return 0;
}

static usage_row make_row(int tokens) {
    usage_row r = {.outcome = "ok",
                   .attempts = 1,
                   .prompt = 5,
                   .completion = tokens,
                   .money = 10,
                   .at_ms = 1795514430123,
                   .first_token_ms = -1};
    usage_meta *m = &r.meta;
    id_uuid7(r.id);
    snprintf(m->tenant, sizeof m->tenant, LIFE_TENANT);
    snprintf(m->user, sizeof m->user, LIFE_USER);
    snprintf(m->key, sizeof m->key, LIFE_KEY);
    snprintf(m->endpoint, sizeof m->endpoint, "chat");
    snprintf(m->task, sizeof m->task, "chat");
    snprintf(m->model, sizeof m->model, "small");
    snprintf(m->tier, sizeof m->tier, LIFE_TIER);
    m->accepted_ms = 1795514430000;
    return r;
}

static void assert_sums_equal_rows(void) {
    assert_int_equal(life_number(&f, "SELECT count(*) FROM (SELECT scope, sum(requests) r, "
                                     "sum(tokens) t, sum(money) m FROM quota_used GROUP BY 1) q, "
                                     "(SELECT count(*) r, sum(prompt_tokens + completion_tokens) "
                                     "t, sum(money) m FROM usage) u WHERE (q.r, q.t, q.m) IS "
                                     "DISTINCT FROM (u.r, u.t, u.m)"),
                     0);
}

static void a_row_sent_again_changes_nothing(void **state) {
    (void)state;
    usage_row one = make_row(3), two = make_row(4), again = one;
    int fresh = 0;
    err e = {0};
    again.completion = 99; // a later opinion
    const usage_row *batch[] = {&one, &two, &one};
    assert_int_equal(usage_insert(f.db, batch, 3, &fresh, &e), 0);
    assert_int_equal(fresh, 2);
    const usage_row *late[] = {&again};
    assert_int_equal(usage_insert(f.db, late, 1, &fresh, &e), 0);
    assert_int_equal(fresh, 0);
    assert_int_equal(life_number(&f, "SELECT sum(completion_tokens) FROM usage"), 7);
    assert_sums_equal_rows();
}

static void what_is_odd_in_a_name_arrives_as_it_is(void **state) {
    (void)state;
    usage_row one = make_row(3);
    int fresh = 0;
    err e = {0};
    snprintf(one.meta.model, sizeof one.meta.model, "a\"b\\c,{d}'; NULL \xc3\xa9");
    snprintf(one.meta.adapter, sizeof one.meta.adapter, "NULL");
    const usage_row *batch[] = {&one};
    if (usage_insert(f.db, batch, 1, &fresh, &e))
        fail_msg("%s", e.message);
    char *names = life_text(&f, "SELECT model || '|' || adapter FROM usage");
    assert_string_equal(names, "a\"b\\c,{d}'; NULL \xc3\xa9|NULL");
    free(names);
    char *at = life_text(&f, "SELECT concat_ws(' ', at AT TIME ZONE 'UTC', first_token_ms IS NULL,"
                             " (SELECT min(day) FROM quota_used)) FROM usage");
    assert_string_equal(at, "2026-11-24 10:00:30.123 t 2026-11-24");
    free(at);
}

static void what_an_earlier_version_wrote_is_read(void **state) {
    (void)state;
    static const char row[] = "{\"at_ms\":1,\"outcome\":\"ok\",\"attempts\":1,\"prompt\":5,"
                              "\"cached\":0,\"completion\":4,\"money\":7,\"queue_ms\":1,"
                              "\"total_ms\":2,\"engine_us\":3,\"first_token_ms\":-1}";
    usage_row r = {0};
    err e = {0};
    assert_int_equal(usage_row_parse(row, strlen(row), &r, &e), 0);
    assert_true(r.completion == 4 && r.held_tokens == 0 && !r.gateway[0]);
    assert_int_equal(usage_row_parse("{\"at_ms\":1}", 11, &r, &e), -1);
    assert_string_equal(e.param, "outcome");
}

static void a_stranger_that_settled_made_no_token_cheaper(void **state) {
    (void)state;
    usage_row r = make_row(4);
    r.meta.price_in = 10;
    r.meta.price_cached = 2;
    r.cached = 3;
    quota_settlement own = {.prompt = 5, .completion = 4, .money = 2 * 10 + 3 * 2};
    usage_row_settle(&r, &own);
    assert_int_equal(r.cached, 3);
    quota_settlement strange = {.prompt = 5, .completion = 2, .money = 50};
    usage_row_settle(&r, &strange);
    assert_true(r.cached == 0 && r.money == usage_money(&r.meta, r.prompt, r.cached, 2));
}

static void a_stranger_learns_from_the_money_what_was_cached(void **state) {
    (void)state;
    usage_row r = make_row(5);
    r.meta.price_in = 10;
    r.meta.price_cached = 2;
    quota_settlement owners = {.prompt = 5, .completion = 4, .money = 2 * 10 + 3 * 2};
    usage_row_settle(&r, &owners);
    assert_int_equal(r.cached, 3);
    assert_int_equal(r.money, usage_money(&r.meta, r.prompt, r.cached, r.completion));
}

static void no_rows_are_no_error(void **state) {
    (void)state;
    int fresh = 1;
    assert_int_equal(usage_insert(f.db, NULL, 0, &fresh, NULL), 0);
    assert_int_equal(fresh, 0);
}

#define SENDERS 4
#define ROWS 2000

static usage_row rows[ROWS];

static void *send_all(void *ctx) {
    recorder *r = ctx;
    for (int i = 0; i < ROWS; i++) {
        recorder_entry *x = calloc(1, sizeof *x);
        x->row = rows[i];
        x->is_settled = true;
        recorder_push(r, x);
    }
    return NULL;
}

static void rows_sent_by_many_recorders_come_once(void **state) {
    (void)state;
    pthread_t threads[SENDERS];
    recorder *recorders[SENDERS];
    for (int i = 0; i < ROWS; i++)
        rows[i] = make_row(i % 7);
    for (int i = 0; i < SENDERS; i++)
        recorders[i] = recorder_open(&f.c, j);
    for (int i = 0; i < SENDERS; i++)
        pthread_create(&threads[i], NULL, send_all, recorders[i]);
    for (int i = 0; i < SENDERS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < SENDERS; i++)
        recorder_close(recorders[i], 20000);
    assert_int_equal(life_number(&f, "SELECT count(*) FROM usage"), ROWS);
    assert_sums_equal_rows();
}

static void a_row_that_is_not_settled_is_settled_before_it_is_inserted(void **state) {
    (void)state;
    usage_row one = make_row(3);
    command c = {0};
    redis_reply_box *box = NULL;
    quota_demand d = {.prompt = 5, .want = 10, .need = 10, .n_choices = 1};
    quota_limits none = {0};
    quota_settlement theirs = {.prompt = 5, .completion = 1, .money = 80};
    redis *r = NULL;
    assert_int_equal(redis_connect(f.c.redis_address, 2000, &r, NULL), 0);
    assert_int_equal(library_load(r, LIBRARY_QUOTA, NULL), 0);
    quota_hold_command(&one.meta, one.id, 7, "", &d, &none, &c);
    assert_int_equal(command_call(&c, r, &box, NULL), 0);
    redis_reply_free(box);
    quota_settle_command(&one.meta, one.id, &theirs, "gateway_lost", false, &c);
    assert_int_equal(command_call(&c, r, &box, NULL), 0); // somebody was faster
    redis_reply_free(box);
    recorder *w = recorder_open(&f.c, j);
    recorder_entry *x = calloc(1, sizeof *x);
    x->row = one;
    recorder_push(w, x);
    recorder_close(w, 5000);
    char *row = life_text(&f, "SELECT outcome || ' ' || completion_tokens FROM usage");
    assert_string_equal(row, "gateway_lost 1");
    free(row);
    command_words(&c, 2, (const char *const[]){"SCARD", "tg:{" LIFE_TENANT "}:open"});
    assert_int_equal(command_call(&c, r, &box, NULL), 0);
    assert_int_equal(redis_value_int(redis_reply_value(box)), 0); // and dropped
    redis_reply_free(box);
    command_release(&c);
    redis_close(r);
}

static void call(redis *r, command *c) {
    redis_reply_box *box = NULL;
    assert_int_equal(command_call(c, r, &box, NULL), 0);
    redis_reply_free(box);
}

static double tokens_of_the_day(redis *r) {
    redis_reply_box *box = NULL;
    double v = -1;
    size_t n;
    const char *key = "tg:{" LIFE_TENANT "}:s:t";
    assert_int_equal(redis_call(r, 2, (const char *const[]){"GET", key}, NULL, &box, NULL), 0);
    const char *text = redis_value_str(redis_reply_value(box), &n);
    if (text && n == 88) // packed: router/quota.lua
        memcpy(&v, text + 32, sizeof v);
    redis_reply_free(box);
    return v;
}

// Its gateway could not reach Redis and committed a row; a sweep settled with less.
static void what_redis_counts_follows_the_row_that_was_there_first(void **state) {
    (void)state;
    usage_row own = make_row(7), theirs;
    const usage_row *first = &own;
    command c = {0};
    redis_reply_box *box = NULL;
    quota_demand d = {.prompt = 5, .want = 10, .need = 10, .n_choices = 1};
    quota_limits limits = {.limit = {{-1, -1, -1, 1000, -1, -1}}};
    quota_answer miss;
    redis *r = NULL;
    int fresh;
    snprintf(own.meta.scopes, sizeof own.meta.scopes, "t");
    theirs = own;
    assert_int_equal(redis_connect(f.c.redis_address, 2000, &r, NULL), 0);
    assert_int_equal(library_load(r, LIBRARY_QUOTA, NULL), 0);
    quota_hold_command(&own.meta, own.id, 7, "", &d, &limits, &c);
    assert_int_equal(command_call(&c, r, &box, NULL), 0);
    quota_read_answer(redis_reply_value(box), &miss);
    quota_counters zero = {.minute = miss.now_s / 60, .day = miss.now_s / 86400, .month = 24321};
    quota_load_command(&own.meta, miss.scope, miss.nonce, &zero, &c);
    redis_reply_free(box);
    call(r, &c);
    quota_hold_command(&own.meta, own.id, 7, "", &d, &limits, &c);
    call(r, &c);
    assert_int_equal(usage_insert(f.db, &first, 1, &fresh, NULL), 0);
    quota_settle_command(&own.meta, own.id, NULL, "gateway_lost", false, &c);
    call(r, &c);
    assert_true(tokens_of_the_day(r) == 0);
    theirs.prompt = theirs.completion = 0;
    theirs.money = 0;
    recorder *w = recorder_open(&f.c, j);
    recorder_entry *x = calloc(1, sizeof *x);
    x->row = theirs;
    x->is_settled = true;
    recorder_push(w, x);
    recorder_close(w, 5000);
    assert_int_equal(life_number(&f, "SELECT sum(completion_tokens) FROM usage"), 7);
    assert_true(tokens_of_the_day(r) == 12);
    assert_sums_equal_rows();
    command_release(&c);
    redis_close(r);
}

static void a_row_that_postgres_refuses_stops_no_other_and_stays_in_the_journal(void **state) {
    (void)state;
    usage_row good = make_row(3), bad = make_row(4);
    journal_mark of_bad, of_good;
    err e = {0};
    bad.money = -1; // CHECK (money >= 0)
    assert_int_equal(journal_accept(j, bad.id, &bad.meta, &of_bad, &e), 0);
    assert_int_equal(journal_accept(j, good.id, &good.meta, &of_good, &e), 0);
    recorder *w = recorder_open(&f.c, j);
    const usage_row *both[] = {&bad, &good};
    for (int i = 0; i < 2; i++) {
        recorder_entry *x = calloc(1, sizeof *x);
        x->row = *both[i];
        x->segment = of_bad.segment;
        x->is_settled = true;
        recorder_push(w, x);
    }
    recorder_close(w, 5000);
    assert_int_equal(life_number(&f, "SELECT count(*) FROM usage"), 1);
    assert_sums_equal_rows();
    char dir[CONFIG_TEXT];
    snprintf(dir, sizeof dir, "%s", f.c.data_dir);
    journal_close(j);
    n_found = 0;
    assert_int_equal(journal_open(dir, 1 << 30, on_found, NULL, &j, &e), 0);
    assert_int_equal(n_found, 1);
    assert_string_equal(found_id, bad.id);
}

int main(void) {
#define LEDGER(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        LEDGER(a_row_sent_again_changes_nothing),
        LEDGER(what_an_earlier_version_wrote_is_read),
        LEDGER(a_stranger_that_settled_made_no_token_cheaper),
        LEDGER(a_stranger_learns_from_the_money_what_was_cached),
        LEDGER(what_is_odd_in_a_name_arrives_as_it_is),
        LEDGER(no_rows_are_no_error),
        LEDGER(rows_sent_by_many_recorders_come_once),
        LEDGER(a_row_that_is_not_settled_is_settled_before_it_is_inserted),
        LEDGER(what_redis_counts_follows_the_row_that_was_there_first),
        LEDGER(a_row_that_postgres_refuses_stops_no_other_and_stays_in_the_journal),
    };
    if (!test_has_redis() || !test_has_postgres()) {
        puts("skip: redis-server or PostgreSQL is not installed");
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
