// Redis at the wire, blocking and on a loop, against a real server.
#include "base/redis.h"
#include "base/clock.h"
#include "base/log.h"
#include "tests/support/servers.h"
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define ARGV(...)                                                                                  \
    (int)(sizeof((const char *[]){__VA_ARGS__}) / sizeof(char *)), (const char *const[]) {         \
        __VA_ARGS__                                                                                \
    }

// ---- blocking

static redis *connected(int timeout_ms) {
    err e = {0};
    redis *r = NULL;
    if (redis_connect(test_redis()->address, timeout_ms, &r, &e))
        fail_msg("%s", e.message);
    return r;
}

static void addresses_are_checked_before_use(void **state) {
    (void)state;
    const char *good[] = {"unix:/run/redis.sock", "localhost:6379", "10.0.0.1:1", "[::1]:65535"};
    const char *bad[] = {"",           "unix:",    "unix:relative", "localhost", ":6379", "host:0",
                         "host:65536", "host:12x", "host: 12",      "::1:6379",  "[]:1",  "[::1:1"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_int_equal(redis_check_address(good[i], NULL), 0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        err e = {0};
        assert_int_equal(redis_check_address(bad[i], &e), -1);
        assert_int_equal(e.code, ERR_INVALID);
    }
    char path[200] = "unix:/";
    memset(path + 6, 'x', 150);
    assert_int_equal(redis_check_address(path, NULL), -1);
}

static void every_kind_of_value_is_read(void **state) {
    (void)state;
    redis *r = connected(2000);
    redis_reply_box *box = NULL;
    err e = {0};
    const char script[] = "return {1, '17', redis.status_reply('FINE'), false, {'a', 'b'}, "
                          "redis.error_reply('BAD x')}";
    assert_int_equal(redis_call(r, ARGV("EVAL", script, "0"), NULL, &box, &e), 0);
    const redis_value *v = redis_reply_value(box);
    size_t n = 0;
    assert_int_equal(redis_value_kind(v), REDIS_ARRAY);
    assert_int_equal(redis_value_len(v), 6);
    assert_int_equal(redis_value_int(redis_value_at(v, 0)), 1);
    assert_int_equal(redis_value_int(redis_value_at(v, 1)), 17);
    assert_true(redis_value_is(redis_value_at(v, 2), "FINE"));
    assert_int_equal(redis_value_kind(redis_value_at(v, 3)), REDIS_NIL);
    assert_int_equal(redis_value_len(redis_value_at(v, 4)), 2);
    assert_string_equal(redis_value_str(redis_value_at(redis_value_at(v, 4), 1), &n), "b");
    assert_int_equal(n, 1);
    assert_int_equal(redis_value_kind(redis_value_at(v, 5)), REDIS_ERROR);
    assert_string_equal(redis_value_str(redis_value_at(v, 5), NULL), "BAD x");
    assert_false(redis_value_is(redis_value_at(v, 5), "BAD x"));
    assert_null(redis_value_at(v, 6));
    assert_int_equal(redis_value_kind(NULL), REDIS_ERROR);
    assert_null(redis_value_str(NULL, &n));
    redis_reply_free(box);
    redis_close(r);
}

static void bytes_travel_as_they_are(void **state) {
    (void)state;
    redis *r = connected(2000);
    err e = {0};
    redis_reply_box *box = NULL;
    size_t lengths[] = {3, 3, 5};
    assert_int_equal(redis_call(r, ARGV("ECHO", "\0\r\n\xff\0"), (size_t[]){4, 5}, &box, &e), 0);
    size_t n;
    const char *s = redis_value_str(redis_reply_value(box), &n);
    assert_int_equal(n, 5);
    assert_memory_equal(s, "\0\r\n\xff\0", 5);
    redis_reply_free(box);
    assert_int_equal(redis_append(r, ARGV("SET", "a\0b", "12345"), lengths, &e), 0);
    assert_int_equal(redis_append(r, ARGV("STRLEN", "a\0b"), (size_t[]){6, 3}, &e), 0);
    assert_int_equal(redis_get_reply(r, NULL, &e), 0);
    assert_int_equal(redis_get_reply(r, &box, &e), 0);
    assert_int_equal(redis_value_int(redis_reply_value(box)), 5);
    redis_reply_free(box);
    redis_close(r);
}

static void a_late_answer_is_an_error_and_never_taken_for_the_next_one(void **state) {
    (void)state;
    redis *r = connected(150);
    err e = {0};
    redis_reply_box *box = NULL;
    int64_t before = clock_mono_ms();
    assert_int_equal(redis_call(r, ARGV("BLPOP", "nothing_comes", "1"), NULL, &box, &e), -1);
    assert_in_range(clock_mono_ms() - before, 100, 900);
    assert_int_equal(e.code, ERR_DEPENDENCY);
    assert_non_null(strstr(e.message, "timed out"));
    assert_int_equal(redis_call(r, ARGV("PING"), NULL, &box, &e), -1);
    assert_null(box);
    redis_close(r);
}

static void no_server_is_a_dependency_error_that_names_the_address(void **state) {
    (void)state;
    redis *r = NULL;
    err e = {0};
    assert_int_equal(redis_connect("unix:/nonexistent/redis.sock", 100, &r, &e), -1);
    assert_int_equal(e.code, ERR_DEPENDENCY);
    assert_non_null(strstr(e.message, "unix:/nonexistent/redis.sock"));
    assert_true(e.retry_ms > 0);
    assert_null(r);
}

// ---- on a loop

typedef struct scene {
    loop *l;
    aredis *r;
    int n_up, n_down, n_answers, n_lost, n_wanted;
    bool in_call, was_inside; // was a callback made inside aredis_call?
    char last[64];
} scene;

static void on_state(void *ctx, bool connected) {
    scene *s = ctx;
    if (connected)
        s->n_up++;
    else
        s->n_down++;
    loop_stop(s->l);
}

static void on_value(void *ctx, const redis_value *v) {
    scene *s = ctx;
    s->was_inside = s->was_inside || s->in_call;
    if (!v)
        s->n_lost++;
    else
        s->n_answers++;
    const redis_value *text = redis_value_len(v) ? redis_value_at(v, redis_value_len(v) - 1) : v;
    const char *str = redis_value_str(text, NULL);
    snprintf(s->last, sizeof s->last, "%s", str ? str : "");
    if (s->n_answers + s->n_lost == s->n_wanted)
        loop_stop(s->l);
}

static void give_up(void *ctx) {
    (void)ctx;
    fail_msg("nothing happened for ten seconds");
}

static void run(scene *s) {
    loop_timer *t = loop_timer_add(s->l, 10000, false, give_up, s);
    loop_run(s->l);
    loop_timer_remove(s->l, t);
}

static void stop(void *ctx) { loop_stop(((scene *)ctx)->l); }

static void run_for(scene *s, int ms) {
    loop_timer_add(s->l, ms, false, stop, s);
    run(s);
}

static scene begin(void) {
    test_redis();
    scene s = {.l = loop_new()};
    return s;
}

static void open_scene(scene *s) {
    s->r = aredis_open(s->l, test_redis()->address, on_state, s);
    run(s);
    assert_true(aredis_connected(s->r));
}

static void end(scene *s) {
    aredis_close(s->r);
    loop_free(s->l);
}

static void ask(scene *s, int argc, const char *const *argv) {
    s->in_call = true;
    aredis_call(s->r, on_value, s, argc, argv, NULL);
    s->in_call = false;
}

static void thousands_of_calls_are_answered_in_order(void **state) {
    (void)state;
    scene s = begin();
    open_scene(&s);
    s.n_wanted = 5000;
    for (int i = 0; i < 5000; i++) {
        char text[16];
        snprintf(text, sizeof text, "%d", i);
        ask(&s, ARGV("ECHO", text));
    }
    run(&s);
    assert_int_equal(s.n_answers, 5000);
    assert_string_equal(s.last, "4999");
    assert_false(s.was_inside);
    end(&s);
}

static void a_call_while_disconnected_gets_null_once_from_the_loop(void **state) {
    (void)state;
    scene s = begin();
    s.r = aredis_open(s.l, "unix:/nonexistent/redis.sock", on_state, &s);
    s.n_wanted = 3;
    for (int i = 0; i < 3; i++)
        ask(&s, ARGV("PING"));
    assert_int_equal(s.n_lost, 0);
    run(&s);
    assert_int_equal(s.n_lost, 3);
    assert_false(s.was_inside);
    run_for(&s, 200);
    assert_int_equal(s.n_lost, 3);
    assert_int_equal(s.n_up + s.n_down, 0);
    end(&s);
}

static void at_a_loss_each_pending_call_gets_null_once_and_the_connection_returns(void **state) {
    (void)state;
    scene s = begin();
    open_scene(&s);
    for (int i = 0; i < 3; i++)
        ask(&s, ARGV("BLPOP", "nothing_comes", "0"));
    run_for(&s, 50);
    assert_int_equal(s.n_lost, 0);
    test_server_kill(test_redis(), SIGKILL);
    run(&s);
    assert_int_equal(s.n_down, 1);
    assert_int_equal(s.n_lost, 3);
    assert_false(aredis_connected(s.r));
    run_for(&s, 300);
    test_server_start(test_redis());
    run(&s);
    assert_int_equal(s.n_up, 2);
    assert_int_equal(s.n_lost, 3);
    s.n_wanted = 4;
    ask(&s, ARGV("PING"));
    run(&s);
    assert_string_equal(s.last, "PONG");
    end(&s);
}

static void closing_gives_every_pending_call_its_null(void **state) {
    (void)state;
    scene s = begin();
    open_scene(&s);
    ask(&s, ARGV("BLPOP", "nothing_comes", "0"));
    ask(&s, ARGV("PING"));
    aredis_close(s.r);
    assert_int_equal(s.n_lost, 2);
    assert_int_equal(s.n_down, 0);
    loop_free(s.l);
}

static void close_at_once(void *ctx, const redis_value *v) {
    scene *s = ctx;
    if (v)
        aredis_close(s->r);
}

static void a_callback_may_close_the_connection(void **state) {
    (void)state;
    scene s = begin();
    open_scene(&s);
    aredis_call(s.r, close_at_once, &s, ARGV("PING"), NULL);
    ask(&s, ARGV("PING"));
    run_for(&s, 100);
    assert_int_equal(s.n_lost, 1);
    loop_free(s.l);
}

static void close_in_state(void *ctx, bool connected) {
    (void)connected;
    scene *s = ctx;
    aredis_close(s->r);
    loop_stop(s->l);
}

static void a_state_callback_may_close_the_connection(void **state) {
    (void)state;
    scene s = begin();
    s.r = aredis_open(s.l, test_redis()->address, close_in_state, &s);
    run(&s);
    run_for(&s, 50);
    loop_free(s.l);
}

static void a_subscription_hears_every_message_and_the_loss_once(void **state) {
    (void)state;
    scene s = begin();
    open_scene(&s);
    redis *other = connected(2000);
    s.n_wanted = 2; // two confirmations
    ask(&s, ARGV("SUBSCRIBE", "bell", "horn"));
    run(&s);
    for (int i = 0; i < 3; i++)
        redis_call(other, ARGV("PUBLISH", i % 2 ? "horn" : "bell", "ding"), NULL, NULL, NULL);
    s.n_wanted = 5;
    run(&s);
    assert_string_equal(s.last, "ding");
    aredis_call(s.r, NULL, NULL, ARGV("UNSUBSCRIBE", "bell"), NULL);
    s.n_wanted = 6;
    run(&s);
    redis_call(other, ARGV("CLIENT", "KILL", "TYPE", "pubsub"), NULL, NULL, NULL);
    run(&s);
    assert_int_equal(s.n_down, 1);
    assert_int_equal(s.n_lost, 1);
    assert_int_equal(s.n_answers, 6);
    redis_close(other);
    end(&s);
}

static void a_subscription_that_was_ended_hears_no_loss(void **state) {
    (void)state;
    scene s = begin();
    open_scene(&s);
    ask(&s, ARGV("PSUBSCRIBE", "b*", "h*"));
    s.n_wanted = 2;
    run(&s);
    aredis_call(s.r, NULL, NULL, ARGV("PUNSUBSCRIBE", "b*", "h*"), NULL);
    s.n_wanted = 4;
    run(&s);
    end(&s);
    assert_int_equal(s.n_lost, 0);
}

static void a_hung_server_is_lost_after_the_limit(void **state) {
    (void)state;
    scene s = begin();
    open_scene(&s);
    aredis_set_limit(s.r, 200);
    test_server_kill(test_redis(), SIGSTOP);
    ask(&s, ARGV("PING"));
    int64_t before = clock_mono_ms();
    run(&s);
    int64_t took = clock_mono_ms() - before;
    test_server_kill(test_redis(), SIGCONT);
    assert_int_equal(s.n_down, 1);
    assert_int_equal(s.n_lost, 1);
    assert_in_range(took, 200, 2000);
    run(&s);
    assert_int_equal(s.n_up, 2);
    end(&s);
}

static void call_again(void *ctx, const redis_value *v) {
    scene *s = ctx;
    if (!v && s->n_lost++ < 3)
        aredis_call(s->r, call_again, s, ARGV("PING"), NULL);
    if (s->n_lost == 4)
        loop_stop(s->l);
}

static void a_call_made_from_a_lost_one_gets_its_own_null(void **state) {
    (void)state;
    scene s = begin();
    s.r = aredis_open(s.l, "unix:/nonexistent/redis.sock", NULL, NULL);
    aredis_call(s.r, call_again, &s, ARGV("PING"), NULL);
    run(&s);
    assert_int_equal(s.n_lost, 4);
    end(&s);
}

int main(void) {
    if (!test_has_redis()) {
        puts("skip: redis-server is not installed");
        return 0;
    }
    log_init("test", LOG_ERROR);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(addresses_are_checked_before_use),
        cmocka_unit_test(every_kind_of_value_is_read),
        cmocka_unit_test(bytes_travel_as_they_are),
        cmocka_unit_test(a_late_answer_is_an_error_and_never_taken_for_the_next_one),
        cmocka_unit_test(no_server_is_a_dependency_error_that_names_the_address),
        cmocka_unit_test(thousands_of_calls_are_answered_in_order),
        cmocka_unit_test(a_call_while_disconnected_gets_null_once_from_the_loop),
        cmocka_unit_test(at_a_loss_each_pending_call_gets_null_once_and_the_connection_returns),
        cmocka_unit_test(closing_gives_every_pending_call_its_null),
        cmocka_unit_test(a_callback_may_close_the_connection),
        cmocka_unit_test(a_state_callback_may_close_the_connection),
        cmocka_unit_test(a_subscription_hears_every_message_and_the_loss_once),
        cmocka_unit_test(a_subscription_that_was_ended_hears_no_loss),
        cmocka_unit_test(a_hung_server_is_lost_after_the_limit),
        cmocka_unit_test(a_call_made_from_a_lost_one_gets_its_own_null),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
