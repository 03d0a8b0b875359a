// Supersession, on a real Redis and a real Postgres: within a router, between routers of a process,
// between gateways. Nobody claims unless a test says so: requests wait in the queue until they end.
#include "base/clock.h"
#include "tests/support/router_life.h"
#include "tests/support/servers.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static life f, g; // g: another gateway

static int setup(void **state) {
    (void)state;
    char dir[128];
    static int n;
    life_empty();
    snprintf(dir, sizeof dir, "%s/session%d", test_dir(), n++);
    life_configure(&f, dir);
    snprintf(dir, sizeof dir, "%s/session%d", test_dir(), n++);
    life_configure(&g, dir);
    return 0;
}

static void submit(life_client *c, life *at, const char *session) {
    err e = {0};
    life_client_init(c, at, 4);
    c->spec.session = session;
    if (life_submit(c, &e))
        fail_msg("refused: %s", e.message);
}

static void assert_superseded(life_client *c) {
    assert_true(life_run(c->f, life_client_ended, c, 10000));
    assert_int_equal(c->end.outcome, OUTCOME_SUPERSEDED);
    assert_int_equal(c->end.error.code, ERR_SUPERSEDED);
}

static void end(life_client *c) {
    request_cancel(c->q, OUTCOME_CLIENT_GONE);
    assert_true(life_run(c->f, life_client_ended, c, 10000));
    assert_int_equal(c->end.outcome, OUTCOME_CLIENT_GONE);
}

static int waiting(life *at) {
    int64_t depth[N_LANES];
    int n = 0;
    assert_int_equal(queue_depth(at->redis, LIFE_TIER, depth, NULL), 0);
    for (int i = 0; i < N_LANES; i++)
        n += (int)depth[i];
    return n;
}

static void a_newer_request_of_the_session_takes_the_older_out_of_the_queue(void **state) {
    (void)state;
    life_client older, newer;
    life_open(&f);
    submit(&older, &f, "editor-1");
    life_wait(&f, 100);
    assert_int_equal(waiting(&f), 1);
    submit(&newer, &f, "editor-1");
    assert_superseded(&older);
    life_wait(&f, 100);
    assert_int_equal(waiting(&f), 1);
    assert_false(newer.is_ended);
    end(&newer);
    assert_true(life_wait_rows(&f, 2, 3000));
    assert_int_equal(life_number(&f, "SELECT count(*) FROM usage WHERE outcome = 'superseded' AND "
                                     "prompt_tokens + completion_tokens = 0"),
                     1);
    life_close(&f);
}

static void another_session_task_or_key_and_none_is_left_alone(void **state) {
    (void)state;
    life_client same, session, task, key, none, newest;
    err e = {0};
    life_open(&f);
    submit(&same, &f, "editor-1");
    submit(&session, &f, "editor-2");
    submit(&none, &f, NULL);
    life_client_init(&task, &f, 4);
    task.spec.session = "editor-1";
    task.spec.task = "completion";
    assert_int_equal(life_submit(&task, &e), 0);
    life_client_init(&key, &f, 4);
    key.spec.session = "editor-1";
    memcpy(key.spec.key, LIFE_USER, sizeof LIFE_USER);
    assert_int_equal(life_submit(&key, &e), 0);
    life_wait(&f, 100);
    assert_false(same.is_ended);
    submit(&newest, &f, "editor-1");
    assert_superseded(&same);
    life_wait(&f, 100);
    assert_false(session.is_ended || task.is_ended || key.is_ended || none.is_ended);
    end(&session);
    end(&task);
    end(&key);
    end(&none);
    end(&newest);
    life_close(&f);
}

static void of_many_sessions_only_one_is_meant(void **state) {
    (void)state;
    enum { N = 300 }; // more than there are chains
    static life_client others[N], newest;
    char name[24];
    f.c.queue_per_tenant = 2 * N;
    life_open(&f);
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "editor-%d", i);
        submit(&others[i], &f, name);
    }
    life_wait(&f, 100);
    submit(&newest, &f, "editor-42");
    assert_superseded(&others[42]); // its chain has four more
    life_wait(&f, 100);
    for (int i = 0; i < N; i++)
        assert_int_equal(others[i].is_ended, i == 42);
    life_close(&f);
}

static void one_whose_hold_is_under_way_ends_without_a_row(void **state) {
    (void)state;
    life_client older, newer;
    life_open(&f);
    submit(&older, &f, "editor-1");
    submit(&newer, &f, "editor-1");
    assert_superseded(&older);
    end(&newer);
    assert_true(life_wait_rows(&f, 1, 3000));
    assert_int_equal(life_number(&f, "SELECT count(*) FROM usage"), 1);
    life_close(&f);
}

static void what_the_older_held_is_free_for_the_newer(void **state) {
    (void)state;
    life_client older, newer;
    life_limit(&f, "t", "concurrent_requests", 1);
    life_open(&f);
    submit(&older, &f, "editor-1");
    life_wait(&f, 200);
    submit(&newer, &f, "editor-1");
    assert_superseded(&older);
    life_wait(&f, 100);
    assert_false(newer.is_ended); // not refused
    end(&newer);
    life_close(&f);
}

static void one_and_no_more(life_worker *w) {
    if (!life_claim(w, 3000))
        return;
    life_send_claim(w);
    life_send(w, REPLY_PREFILLED, 0, 0, 2, "xx");
    clock_sleep_ms(300);
    life_send(w, 0, 0, 2, 1, "x"); // fenced
}

static void a_stream_ends_and_pays_what_it_was_handed(void **state) {
    (void)state;
    life_client older, newer;
    life_open(&f);
    life_worker *w = life_worker_start(&f, one_and_no_more, NULL);
    submit(&older, &f, "editor-1");
    life_wait(&f, 200);
    assert_int_equal(older.n[0], 2);
    submit(&newer, &f, "editor-1");
    assert_superseded(&older);
    life_wait(&f, 200);
    life_worker_join(w);
    assert_int_equal(older.n[0], 2);
    end(&newer);
    assert_true(life_wait_rows(&f, 2, 3000));
    assert_int_equal(life_number(&f, "SELECT prompt_tokens * 10 + completion_tokens FROM usage "
                                     "WHERE outcome = 'superseded'"),
                     52);
    life_close(&f);
}

static void answer_4(life_worker *w) {
    if (life_claim(w, 3000))
        life_answer(w, 4);
}

static bool has_4(void *ctx) { return ((life_client *)ctx)->n[0] == 4; }

static void one_that_just_finished_stays_whole(void **state) {
    (void)state;
    life_client older, newer;
    life_open(&f);
    life_worker *w = life_worker_start(&f, answer_4, NULL);
    submit(&older, &f, "editor-1");
    assert_true(life_run(&f, has_4, &older, 3000)); // handed; its settlement is under way
    submit(&newer, &f, "editor-1");
    assert_true(life_run(&f, life_client_ended, &older, 3000));
    assert_int_equal(older.end.outcome, OUTCOME_OK);
    life_worker_join(w);
    end(&newer);
    life_close(&f);
}

static void routers_of_one_process_tell_each_other(void **state) {
    (void)state;
    life_client first, second, third;
    err e = {0};
    life_open(&f);
    life other = f;
    assert_int_equal(router_open(f.s, f.l, &other.r, &e), 0);
    life_wait(&f, 500); // it has its lease
    submit(&first, &f, "editor-1");
    submit(&second, &other, "editor-1"); // each to its own router in the same turn
    submit(&third, &f, "editor-1");
    assert_superseded(&first);
    assert_superseded(&second);
    life_wait(&f, 200);
    assert_false(third.is_ended);
    end(&third);
    router_close(other.r);
    life_close(&f);
}

static void gateways_tell_each_other(void **state) {
    (void)state;
    life_client first, second, third;
    life_open(&f);
    life_open(&g);
    submit(&first, &f, "editor-1");
    life_wait(&f, 100);
    submit(&second, &g, "editor-1");
    life_wait(&g, 100);
    assert_superseded(&first);
    submit(&third, &f, "editor-1");
    life_wait(&f, 100);
    assert_superseded(&second);
    life_wait(&f, 100);
    assert_false(third.is_ended);
    end(&third);
    life_close(&g);
    life_close(&f);
}

static void delete_sessions(life *at) {
    static const char *const argv[] = {
        "EVAL", "for _, k in ipairs(redis.call('KEYS', 'tg:*:sess:*')) do redis.call('DEL', k) end",
        "0"};
    redis_reply_box *box = NULL;
    assert_int_equal(redis_call(at->redis, 3, argv, NULL, &box, NULL), 0);
    redis_reply_free(box);
}

static void a_redis_that_forgot_the_session_ends_nothing(void **state) {
    (void)state;
    life_client older, newer;
    life_open(&f);
    life_open(&g);
    submit(&older, &f, "editor-1");
    life_wait(&f, 100);
    delete_sessions(&f);
    submit(&newer, &g, "editor-1");
    life_wait(&g, 100);
    life_wait(&f, 100);
    assert_false(older.is_ended || newer.is_ended);
    end(&older);
    end(&newer);
    life_close(&g);
    life_close(&f);
}

static int64_t calls_of(life *at, const char *name) {
    char pattern[64];
    redis_reply_box *box = NULL;
    snprintf(pattern, sizeof pattern, "cmdstat_%s:calls=", name);
    assert_int_equal(
        redis_call(at->redis, 2, (const char *const[]){"INFO", "commandstats"}, NULL, &box, NULL),
        0);
    const char *at_name = strstr(redis_value_str(redis_reply_value(box), NULL), pattern);
    int64_t n = at_name ? atoll(at_name + strlen(pattern)) : 0;
    redis_reply_free(box);
    return n;
}

static void only_a_request_that_names_a_session_asks_redis(void **state) {
    (void)state;
    life_client c;
    int64_t sets[2];
    life_open(&f);
    for (int i = 0; i < 2; i++) {
        int64_t before = calls_of(&f, "set");
        submit(&c, &f, i ? "editor-1" : NULL);
        life_wait(&f, 100);
        sets[i] = calls_of(&f, "set") - before; // its job, and what the libraries do
        end(&c);
    }
    assert_int_equal(sets[1], sets[0] + 1);
    life_close(&f);
}

#define LIFE(test) cmocka_unit_test_setup(test, setup)

int main(void) {
    const struct CMUnitTest tests[] = {
        LIFE(a_newer_request_of_the_session_takes_the_older_out_of_the_queue),
        LIFE(another_session_task_or_key_and_none_is_left_alone),
        LIFE(of_many_sessions_only_one_is_meant),
        LIFE(one_whose_hold_is_under_way_ends_without_a_row),
        LIFE(what_the_older_held_is_free_for_the_newer),
        LIFE(a_stream_ends_and_pays_what_it_was_handed),
        LIFE(one_that_just_finished_stays_whole),
        LIFE(routers_of_one_process_tell_each_other),
        LIFE(gateways_tell_each_other),
        LIFE(a_redis_that_forgot_the_session_ends_nothing),
        LIFE(only_a_request_that_names_a_session_asks_redis),
    };
    if (!test_has_redis() || !test_has_postgres()) {
        puts("skip: redis-server or PostgreSQL is not installed");
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
