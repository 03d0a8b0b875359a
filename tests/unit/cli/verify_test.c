// `tiergate usage verify` and the walk through the records: a ledger that adds up is called equal,
// and each way in which it may not is found and named.
#include "cli/usage_verify.h"
#include "base/clock.h"
#include "router/library.h"
#include "router/record.h"
#include "tests/support/router_life.h"
#include "tests/support/servers.h"
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

static life f; // configuration and connections; no router
static usage_row rows[3];

static usage_row make_row(int prompt, int cached, int completion) {
    usage_row r = {.outcome = "ok",
                   .attempts = 1,
                   .prompt = prompt,
                   .cached = cached,
                   .completion = completion,
                   .at_ms = clock_unix_ms(),
                   .held_tokens = prompt + completion,
                   .first_token_ms = 3};
    usage_meta *m = &r.meta;
    id_uuid7(r.id);
    *m = (usage_meta){.price_in = 10, .price_cached = 2, .price_out = 30};
    snprintf(m->tenant, sizeof m->tenant, LIFE_TENANT);
    snprintf(m->user, sizeof m->user, LIFE_USER);
    snprintf(m->key, sizeof m->key, LIFE_KEY);
    snprintf(m->model, sizeof m->model, "small");
    m->accepted_ms = r.at_ms - 10;
    r.money = usage_money(m, prompt, cached, completion);
    return r;
}

static void call(int argc, const char *const *argv) {
    redis_reply_box *box = NULL;
    assert_int_equal(redis_call(f.redis, argc, argv, NULL, &box, NULL), 0);
    if (redis_value_kind(redis_reply_value(box)) == REDIS_ERROR)
        fail_msg("%s", redis_value_str(redis_reply_value(box), NULL));
    redis_reply_free(box);
}

static int setup(void **state) {
    (void)state;
    err e = {0};
    int fresh;
    const usage_row *all[3];
    life_empty();
    life_configure(&f, test_dir());
    assert_int_equal(pg_connect(f.c.postgres_url, &f.db, &e), 0);
    assert_int_equal(redis_connect(f.c.redis_address, 2000, &f.redis, &e), 0);
    assert_int_equal(library_load(f.redis, LIBRARY_QUOTA, &e), 0);
    call(3, (const char *const[]){"SADD", "tg:tenants", LIFE_TENANT});
    for (int i = 0; i < 3; i++) {
        rows[i] = make_row(5 + i, i, 4);
        all[i] = &rows[i];
    }
    assert_int_equal(usage_insert(f.db, all, 3, &fresh, &e), 0);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    redis_close(f.redis);
    pg_close(f.db);
    return 0;
}

// What verify prints; *rc its result. Caller frees.
static char *verify(int *rc, err *e) {
    buf text = {0};
    char path[128], piece[4096];
    snprintf(path, sizeof path, "%s/said", test_dir());
    fflush(stdout);
    int saved = dup(STDOUT_FILENO);
    FILE *to = fopen(path, "w+");
    assert_non_null(to);
    dup2(fileno(to), STDOUT_FILENO);
    *rc = usage_verify(&f.c, false, e);
    fflush(stdout);
    dup2(saved, STDOUT_FILENO);
    close(saved);
    rewind(to);
    for (size_t n; (n = fread(piece, 1, sizeof piece, to)) > 0;)
        buf_put(&text, piece, n);
    fclose(to);
    return buf_take(&text);
}

static void assert_equal(void) {
    err e = {0};
    int rc;
    char *said = verify(&rc, &e);
    if (rc)
        fail_msg("%s: %s", e.message, said);
    assert_non_null(strstr(said, " 0 differences"));
    free(said);
}

static void assert_finds(const char *what) {
    err e = {0};
    int rc;
    char *said = verify(&rc, &e);
    if (rc != -1 || e.code != ERR_FORMAT || !strstr(said, what))
        fail_msg("%d %s: '%s' is not in: %s", rc, e.message, what, said);
    free(said);
}

static void sql(const char *format, const char *id) {
    char text[512];
    err e = {0};
    snprintf(text, sizeof text, format, id);
    if (pg_exec(f.db, text, &e))
        fail_msg("%s: %s", text, e.message);
}

static void rows_that_add_up_are_equal(void **state) {
    (void)state;
    assert_equal();
}

static void a_sum_that_is_wrong_missing_or_too_many_is_named(void **state) {
    (void)state;
    sql("UPDATE quota_used SET tokens = tokens + 1 WHERE scope = 't'%s", "");
    assert_finds("sums: tenant " LIFE_TENANT ", scope t,");
    sql("UPDATE quota_used SET tokens = tokens - 1 WHERE scope = 't'%s", "");
    assert_equal();
    sql("INSERT INTO quota_used VALUES ('" LIFE_TENANT "', 'm:other', '2026-01-01', 1, 1, 1)%s",
        "");
    assert_finds("scope m:other, day 2026-01-01");
    sql("DELETE FROM quota_used WHERE scope <> 't'%s", "");
    assert_finds("scope u:" LIFE_USER);
}

static void a_row_without_an_outcome_is_named(void **state) {
    (void)state;
    sql("UPDATE usage SET outcome = '' WHERE request_id = '%s'", rows[1].id);
    assert_finds(rows[1].id);
    assert_finds("outcome: ");
}

static void money_that_is_not_prices_times_tokens_is_named(void **state) {
    (void)state;
    sql("UPDATE usage SET money = money + 1 WHERE request_id = '%s';"
        "UPDATE quota_used SET money = money + 1",
        rows[2].id);
    assert_finds("money: request");
    assert_finds(rows[2].id);
}

static void more_than_was_held_is_named(void **state) {
    (void)state;
    sql("UPDATE usage SET trace = jsonb_set(trace, '{held_tokens}', '3') WHERE request_id = '%s'",
        rows[0].id);
    assert_finds("tokens: request");
}

// ---- records

static void put_record(const char *id, char state, int64_t t, int64_t at, int completion,
                       int64_t money) {
    char key[128];
    buf text = {0}, meta = {0};
    usage_meta_put(&rows[0].meta, &meta);
    buf_printf(&text,
               "%c 000000002 1 10 5 15 350 10 30 %" PRId64 " %" PRId64 " 5 %d %" PRId64
               " ok 00000000000000ab %s",
               state, t, at, completion, money, meta.data);
    snprintf(key, sizeof key, "tg:{" LIFE_TENANT "}:r:%s", id);
    call(3, (const char *const[]){"SET", key, text.data});
    call(3, (const char *const[]){"SADD", "tg:{" LIFE_TENANT "}:open", id});
    buf_release(&text);
    buf_release(&meta);
}

static void a_settled_record_equals_its_row_or_is_named(void **state) {
    (void)state;
    int64_t now = clock_unix_ms();
    put_record(rows[0].id, 's', now, now, 4, rows[0].money);
    assert_equal();
    put_record(rows[0].id, 's', now, now, 3, rows[0].money - 30);
    assert_finds("settled 5 + 3 tokens");
}

static void a_settled_record_without_a_row_is_named_when_it_is_old(void **state) {
    (void)state;
    int64_t now = clock_unix_ms();
    char id[ID_UUID_TEXT];
    id_uuid7(id);
    put_record(id, 's', now, now - 1000, 4, 1);
    assert_equal();
    put_record(id, 's', now, now - 60000, 4, 1);
    assert_finds("there is no row");
}

static void an_open_record_whose_gateway_is_gone_is_named_after_the_sweep(void **state) {
    (void)state;
    int64_t now = clock_unix_ms();
    char id[ID_UUID_TEXT];
    id_uuid7(id);
    put_record(id, 'o', now - 1000, 0, 0, 0);
    assert_equal();
    put_record(id, 'o', now - 60000, 0, 0, 0);
    assert_finds("open: request");
    call(5, (const char *const[]){"XADD", "tg:g:00000000000000ab", "*", "begin", "1"});
    assert_equal(); // it lives: a long request
}

static void a_record_that_cannot_be_read_is_named(void **state) {
    (void)state;
    call(3, (const char *const[]){"SET", "tg:{" LIFE_TENANT "}:r:x", "o 1 2"});
    call(3, (const char *const[]){"SADD", "tg:{" LIFE_TENANT "}:open", "x"});
    assert_finds("record: request x");
}

static void a_record_is_found_whoever_it_belongs_to(void **state) {
    (void)state;
    quota_record k;
    bool found;
    err e = {0};
    char id[ID_UUID_TEXT];
    id_uuid7(id);
    call(3, (const char *const[]){"SADD", "tg:tenants", LIFE_USER});
    put_record(id, 'o', 7, 0, 0, 0);
    assert_int_equal(record_find(f.redis, id, &k, &found, &e), 0);
    assert_true(found && k.is_open && k.gateway == 0xab && k.sent == 2 && k.prefilled);
    assert_true(k.granted == 10 && k.held_tokens == 15 && k.held_money == 350 && k.held_ms == 7);
    assert_string_equal(k.meta.user, LIFE_USER);
    assert_int_equal(record_find(f.redis, LIFE_KEY, &k, &found, &e), 0);
    assert_false(found);
}

int main(void) {
#define VERIFY(t) cmocka_unit_test_setup_teardown(t, setup, teardown)
    const struct CMUnitTest tests[] = {
        VERIFY(rows_that_add_up_are_equal),
        VERIFY(a_sum_that_is_wrong_missing_or_too_many_is_named),
        VERIFY(a_row_without_an_outcome_is_named),
        VERIFY(money_that_is_not_prices_times_tokens_is_named),
        VERIFY(more_than_was_held_is_named),
        VERIFY(a_settled_record_equals_its_row_or_is_named),
        VERIFY(a_settled_record_without_a_row_is_named_when_it_is_old),
        VERIFY(an_open_record_whose_gateway_is_gone_is_named_after_the_sweep),
        VERIFY(a_record_that_cannot_be_read_is_named),
        VERIFY(a_record_is_found_whoever_it_belongs_to),
    };
    if (!test_has_redis() || !test_has_postgres()) {
        puts("skip: redis-server or PostgreSQL is not installed");
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
