// PostgreSQL at the wire, against a real server.
#include "base/pg.h"
#include "base/clock.h"
#include "base/log.h"
#include "tests/support/servers.h"
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static const char *url(void) { return test_postgres()->address; }

#define OK(call)                                                                                   \
    do {                                                                                           \
        if ((call) != 0)                                                                           \
            fail_msg("%s: %s", #call, e.message);                                                  \
    } while (0)

static pg *connected(void) {
    err e = {0};
    pg *p = NULL;
    OK(pg_connect(url(), &p, &e));
    return p;
}

static void parameters_travel_as_text_and_null_stays_null(void **state) {
    (void)state;
    pg *p = connected();
    err e = {0};
    pg_result *r = NULL;
    const char *params[] = {"41", "o'brien \xe2\x82\xac", NULL};
    OK(pg_query(p, "SELECT $1::int + 1, $2::text, $3::text", 3, params, &r, &e));
    assert_int_equal(pg_rows(r), 1);
    assert_int_equal(pg_int(r, 0, 0), 42);
    assert_string_equal(pg_text(r, 0, 1), "o'brien \xe2\x82\xac");
    assert_null(pg_text(r, 0, 2));
    assert_int_equal(pg_int(r, 0, 2), 0);
    pg_result_free(r);
    pg_close(p);
}

static void a_refused_statement_tells_its_sqlstate_and_keeps_the_connection(void **state) {
    (void)state;
    pg *p = connected();
    err e = {0};
    assert_int_equal(pg_query(p, "SELECT * FROM nothing_here", 0, NULL, NULL, &e), -1);
    assert_int_equal(e.code, ERR_INTERNAL);
    assert_string_equal(pg_sqlstate(p), "42P01");
    assert_non_null(strstr(e.message, "nothing_here"));
    OK(pg_query(p, "SELECT 1", 0, NULL, NULL, &e));
    assert_string_equal(pg_sqlstate(p), "");
    pg_close(p);
}

static void several_statements_run_in_one_call_and_the_first_error_is_told(void **state) {
    (void)state;
    pg *p = connected();
    err e = {0};
    pg_result *r = NULL;
    assert_int_equal(
        pg_exec(p, "CREATE TABLE several (a int); INSERT INTO several VALUES (1), (2)", &e), 0);
    OK(pg_query(p, "UPDATE several SET a = a + 1", 0, NULL, &r, &e));
    assert_int_equal(pg_affected(r), 2);
    pg_result_free(r);
    assert_int_equal(pg_exec(p, "SELECT 1; SELECT 1/0; SELECT 1", &e), -1);
    assert_string_equal(pg_sqlstate(p), "22012");
    OK(pg_exec(p, "", &e));
    assert_int_equal(pg_exec(p, "COPY several FROM STDIN", &e), -1);
    assert_non_null(strstr(e.message, "COPY"));
    OK(pg_exec(p, "SELECT 1", &e));
    pg_close(p);
}

static void a_large_parameter_arrives_whole(void **state) {
    (void)state;
    pg *p = connected();
    err e = {0};
    pg_result *r = NULL;
    size_t n = 8 << 20;
    char *text = malloc(n + 1);
    memset(text, 'x', n);
    text[n] = '\0';
    const char *params[] = {text};
    OK(pg_query(p, "SELECT length($1), $1", 1, params, &r, &e));
    assert_int_equal(pg_int(r, 0, 0), n);
    assert_string_equal(pg_text(r, 0, 1), text);
    pg_result_free(r);
    free(text);
    pg_close(p);
}

static void no_server_is_a_dependency_error_that_says_when_to_retry(void **state) {
    (void)state;
    pg *p = NULL;
    err e = {0};
    assert_int_equal(pg_connect("postgresql:///x?host=/nonexistent", &p, &e), -1);
    assert_int_equal(e.code, ERR_DEPENDENCY);
    assert_true(e.retry_ms > 0);
    assert_null(p);
}

static void an_idle_connection_that_broke_is_replaced_before_the_next_statement(void **state) {
    (void)state;
    pg *p = connected();
    err e = {0};
    test_server_kill(test_postgres(), SIGQUIT);
    assert_int_equal(pg_query(p, "SELECT 1", 0, NULL, NULL, &e), -1);
    assert_int_equal(e.code, ERR_DEPENDENCY);
    test_server_start(test_postgres());
    OK(pg_query(p, "SELECT 1", 0, NULL, NULL, &e));
    pg *killer = connected();
    OK(pg_exec(killer,
               "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
               "pid <> pg_backend_pid() AND backend_type = 'client backend'",
               &e));
    clock_sleep_ms(200);
    OK(pg_query(p, "SELECT 1", 0, NULL, NULL, &e));
    pg_close(killer);
    pg_close(p);
}

static void a_transaction_that_was_lost_is_never_continued_outside(void **state) {
    (void)state;
    pg *p = connected();
    err e = {0};
    assert_int_equal(
        pg_exec(p, "CREATE TABLE lost (a int); BEGIN; INSERT INTO lost VALUES (1)", &e), 0);
    test_server_kill(test_postgres(), SIGQUIT);
    test_server_start(test_postgres());
    assert_int_equal(pg_exec(p, "INSERT INTO lost VALUES (2)", &e), -1);
    assert_int_equal(e.code, ERR_DEPENDENCY);
    pg_result *r = NULL;
    OK(pg_query(p, "SELECT count(*) FROM pg_class WHERE relname = 'lost'", 0, NULL, &r, &e));
    assert_int_equal(pg_int(r, 0, 0), 0);
    pg_result_free(r);
    pg_close(p);
}

static void a_hung_server_is_noticed_within_the_limit(void **state) {
    (void)state;
    pg *p = connected();
    err e = {0};
    pg_set_limit(p, 300);
    test_server_kill(test_postgres(), SIGSTOP); // the postmaster; the session itself still serves
    OK(pg_query(p, "SELECT 1", 0, NULL, NULL, &e));
    int64_t before = clock_mono_ms();
    assert_int_equal(pg_query(p, "SELECT pg_sleep(30)", 0, NULL, NULL, &e), -1);
    int64_t took = clock_mono_ms() - before;
    test_server_kill(test_postgres(), SIGCONT);
    assert_int_equal(e.code, ERR_DEPENDENCY);
    assert_non_null(strstr(e.message, "in time"));
    assert_in_range(took, 300, 3000);
    pg_close(p);
}

typedef struct user {
    pg_pool *pool;
    _Atomic int at_once, most, done;
} user;

static void *use_pool(void *ctx) {
    user *u = ctx;
    for (int i = 0; i < 20; i++) {
        err e = {0};
        pg *c = pg_pool_take(u->pool, &e);
        if (!c)
            continue;
        int now = atomic_fetch_add(&u->at_once, 1) + 1;
        if (now > atomic_load(&u->most))
            atomic_store(&u->most, now);
        if (!pg_query(c, "SELECT 1", 0, NULL, NULL, &e))
            atomic_fetch_add(&u->done, 1);
        atomic_fetch_sub(&u->at_once, 1);
        pg_pool_give(u->pool, c);
    }
    return NULL;
}

static void a_pool_never_lends_more_than_its_size(void **state) {
    (void)state;
    user u = {.pool = pg_pool_new(url(), 3)};
    pthread_t threads[8];
    for (int i = 0; i < 8; i++)
        pthread_create(&threads[i], NULL, use_pool, &u);
    for (int i = 0; i < 8; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(u.done, 160);
    assert_in_range(u.most, 1, 3);
    pg_pool_free(u.pool);
}

static void a_connection_comes_back_without_its_transaction(void **state) {
    (void)state;
    pg_pool *pool = pg_pool_new(url(), 1);
    err e = {0};
    pg *c = pg_pool_take(pool, &e);
    assert_int_equal(pg_exec(c, "BEGIN; CREATE TABLE half_done (a int)", &e), 0);
    pg_pool_give(pool, c);
    c = pg_pool_take(pool, &e);
    assert_non_null(c);
    assert_int_equal(pg_exec(c, "SELECT * FROM half_done", &e), -1);
    assert_string_equal(pg_sqlstate(c), "42P01");
    pg_pool_give(pool, c);
    pg_pool_free(pool);
}

static void a_pool_without_a_server_says_so_and_recovers(void **state) {
    (void)state;
    pg_pool *pool = pg_pool_new(url(), 2);
    err e = {0};
    pg_pool_give(pool, pg_pool_take(pool, &e));
    test_server_kill(test_postgres(), SIGQUIT);
    for (int i = 0; i < 3; i++) {
        assert_null(pg_pool_take(pool, &e));
        assert_int_equal(e.code, ERR_DEPENDENCY);
    }
    test_server_start(test_postgres());
    pg *c = pg_pool_take(pool, &e);
    assert_non_null(c);
    pg_pool_give(pool, c);
    pg_pool_free(pool);
}

typedef struct heard {
    _Atomic int n_reconnects, n_messages;
    char last[64]; // written before n_messages
} heard;

static void hear(void *ctx, const char *channel, const char *payload) {
    heard *h = ctx;
    if (!channel) {
        atomic_fetch_add(&h->n_reconnects, 1);
        return;
    }
    snprintf(h->last, sizeof h->last, "%s/%s", channel, payload);
    atomic_fetch_add(&h->n_messages, 1);
}

static bool comes_to(_Atomic int *n, int least) {
    for (int i = 0; i < 1000 && atomic_load(n) < least; i++)
        clock_sleep_ms(10);
    return atomic_load(n) >= least;
}

static void a_listener_hears_and_after_a_loss_is_told_to_look_again(void **state) {
    (void)state;
    heard h = {0};
    pg *p = connected();
    err e = {0};
    const char *channels[] = {"one", "Two words"};
    pg_listen *l = pg_listen_new(url(), channels, 2, hear, &h);
    assert_true(comes_to(&h.n_reconnects, 1));
    assert_true(pg_listen_connected(l));
    OK(pg_exec(p, "NOTIFY \"Two words\", 'hello'", &e));
    assert_true(comes_to(&h.n_messages, 1));
    assert_string_equal(h.last, "Two words/hello");
    OK(pg_exec(p,
               "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
               "pid <> pg_backend_pid() AND backend_type = 'client backend'",
               &e));
    assert_true(comes_to(&h.n_reconnects, 2));
    OK(pg_exec(p, "NOTIFY one, 'again'", &e));
    assert_true(comes_to(&h.n_messages, 2));
    assert_string_equal(h.last, "one/again");
    pg_listen_free(l);
    pg_close(p);
}

static void a_silent_listener_asks_for_a_sign_of_life_and_still_hears(void **state) {
    (void)state;
    heard h = {0};
    pg *p = connected();
    err e = {0};
    const char *channels[] = {"quiet"};
    pg_listen *l = pg_listen_new(url(), channels, 1, hear, &h);
    assert_true(comes_to(&h.n_reconnects, 1));
    clock_sleep_ms(2500);
    pg_result *r = NULL;
    OK(pg_query(p,
                "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT 1' AND "
                "pid <> pg_backend_pid() AND query_start > now() - interval '2 s'",
                0, NULL, &r, &e));
    assert_int_equal(pg_int(r, 0, 0), 1);
    pg_result_free(r);
    OK(pg_exec(p, "NOTIFY quiet", &e));
    assert_true(comes_to(&h.n_messages, 1));
    assert_int_equal(h.n_reconnects, 1);
    pg_listen_free(l);
    pg_close(p);
}

int main(void) {
    if (!test_has_postgres()) {
        puts("skip: PostgreSQL is not installed");
        return 0;
    }
    log_init("test", LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parameters_travel_as_text_and_null_stays_null),
        cmocka_unit_test(a_refused_statement_tells_its_sqlstate_and_keeps_the_connection),
        cmocka_unit_test(several_statements_run_in_one_call_and_the_first_error_is_told),
        cmocka_unit_test(a_large_parameter_arrives_whole),
        cmocka_unit_test(no_server_is_a_dependency_error_that_says_when_to_retry),
        cmocka_unit_test(an_idle_connection_that_broke_is_replaced_before_the_next_statement),
        cmocka_unit_test(a_transaction_that_was_lost_is_never_continued_outside),
        cmocka_unit_test(a_hung_server_is_noticed_within_the_limit),
        cmocka_unit_test(a_pool_never_lends_more_than_its_size),
        cmocka_unit_test(a_connection_comes_back_without_its_transaction),
        cmocka_unit_test(a_pool_without_a_server_says_so_and_recovers),
        cmocka_unit_test(a_listener_hears_and_after_a_loss_is_told_to_look_again),
        cmocka_unit_test(a_silent_listener_asks_for_a_sign_of_life_and_still_hears),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
