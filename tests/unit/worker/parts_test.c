// The worker's helpers beside its step thread, on a real Redis: inbox, outbox, keeper, listener.
#include "base/clock.h"
#include "router/queue.h"
#include "tests/support/letterbox.h"
#include "tests/support/servers.h"
#include "worker/inbox.h"
#include "worker/keeper.h"
#include "worker/listen.h"
#include "worker/outbox.h"
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define ID_A "01900000-0000-7000-8000-0000000000a1"
#define ID_B "01900000-0000-7000-8000-0000000000b2"
#define WORKER 0x1234u

static const char *address(void) { return test_redis()->address; }

static redis *connected(void) {
    redis *r = NULL;
    err e = {0};
    if (redis_connect(address(), 2000, &r, &e))
        fail_msg("%s", e.message);
    return r;
}

static void call(redis *r, int n, const char *const *argv) {
    redis_reply_box *box = NULL;
    err e = {0};
    if (redis_call(r, n, argv, NULL, &box, &e))
        fail_msg("%s", e.message);
    redis_reply_free(box);
}

// ---- inbox

static void notes_leave_in_the_order_they_came(void **state) {
    (void)state;
    inbox *b = inbox_new();
    note n;
    assert_false(inbox_take(b, &n));
    for (int i = 0; i < 200; i++)
        inbox_put(b, &(note){.kind = NOTE_CANCEL, .attempt = i});
    for (int i = 0; i < 200; i++) {
        assert_true(inbox_take(b, &n));
        assert_int_equal(n.attempt, i);
    }
    assert_false(inbox_take(b, &n));
    inbox_free(b);
}

static void a_bell_is_heard_once_and_stops_are_counted(void **state) {
    (void)state;
    inbox *b = inbox_new();
    inbox_ring(b);
    inbox_ring(b);
    assert_true(inbox_rang(b));
    assert_false(inbox_rang(b));
    assert_int_equal(inbox_stops(b), 0);
    inbox_stop(b);
    inbox_stop(b);
    assert_int_equal(inbox_stops(b), 2);
    assert_int_equal(inbox_stops(b), 2);
    inbox_free(b);
}

static void *ring_later(void *ctx) {
    clock_sleep_ms(50);
    inbox_ring(ctx);
    return NULL;
}

static void a_wait_ends_with_news_or_with_its_time(void **state) {
    (void)state;
    inbox *b = inbox_new();
    int64_t begun = clock_mono_ms();
    inbox_wait(b, 120);
    assert_in_range(clock_mono_ms() - begun, 110, 1000);
    pthread_t t;
    begun = clock_mono_ms();
    pthread_create(&t, NULL, ring_later, b);
    inbox_wait(b, 5000);
    assert_in_range(clock_mono_ms() - begun, 30, 2000);
    pthread_join(t, NULL);
    begun = clock_mono_ms();
    inbox_wait(b, 5000); // rang, not read yet
    assert_in_range(clock_mono_ms() - begun, 0, 1000);
    assert_true(inbox_rang(b));
    inbox_stop(b);
    inbox_wait(b, 5000);
    assert_int_equal(inbox_stops(b), 1);
    inbox_wait(b, 10); // a stop that was seen wakes nobody
    inbox_free(b);
}

// ---- outbox

static int n_gone;
static uint64_t gone_gateway;

static void gone(void *ctx, uint64_t gateway) {
    (void)ctx;
    n_gone++;
    gone_gateway = gateway;
}

static void put_token(outbox *o, uint64_t gateway, const char *id, int from) {
    reply_frame *f = outbox_add(o, gateway, id, 1, 5, 0);
    f->from = from;
    f->n_tokens = 1;
    f->tokens = arena_alloc(outbox_arena(o), sizeof *f->tokens);
    f->tokens[0] = (reply_token){.id = 100 + from};
    f->text = "t";
    f->n_text = 1;
}

static void send_ok(outbox *o, redis *r) {
    err e = {0};
    if (outbox_send(o, r, gone, NULL, &e))
        fail_msg("%s", e.message);
}

static void a_step_is_one_message_per_gateway(void **state) {
    (void)state;
    letterbox a, b;
    redis *r = connected();
    outbox *o = outbox_new(WORKER);
    letterbox_open(&a, address(), 1);
    letterbox_open(&b, address(), 2);
    for (int step = 0; step < 2; step++) {
        for (int i = 0; i < 20; i++) // more than a parcel's first room
            put_token(o, 1, ID_A, 20 * step + i);
        put_token(o, 2, ID_B, step);
        send_ok(o, r);
    }
    send_ok(o, r); // nothing to send
    letterbox_read(&a);
    letterbox_read(&b);
    assert_int_equal(a.n_replies, 2);
    assert_int_equal(b.n_replies, 2);
    assert_int_equal(a.worker, WORKER);
    assert_int_equal(letterbox_find(&a, ID_A)->choices[0].n, 40);
    assert_int_equal(letterbox_find(&b, ID_B)->choices[0].ids[1], 101);
    letterbox_close(&a);
    letterbox_close(&b);
    outbox_free(o);
    redis_close(r);
}

static void a_gateway_whose_lease_is_over_is_told_and_nobody_else(void **state) {
    (void)state;
    letterbox a, b;
    redis *r = connected();
    outbox *o = outbox_new(WORKER);
    letterbox_open(&a, address(), 3);
    letterbox_open(&b, address(), 4);
    letterbox_end(&a);
    n_gone = 0;
    put_token(o, 3, ID_A, 0);
    put_token(o, 4, ID_B, 0);
    send_ok(o, r);
    assert_int_equal(n_gone, 1);
    assert_int_equal(gone_gateway, 3);
    letterbox_read(&b);
    assert_int_equal(b.n_replies, 1);
    letterbox_read(&a); // its stream was not made anew
    assert_int_equal(a.n_replies, 0);
    letterbox_close(&a);
    letterbox_close(&b);
    outbox_free(o);
    redis_close(r);
}

static void what_was_not_acknowledged_is_sent_again_in_order(void **state) {
    (void)state;
    letterbox m;
    redis *r = connected();
    outbox *o = outbox_new(WORKER);
    letterbox_open(&m, address(), 5);
    put_token(o, 5, ID_A, 0);
    send_ok(o, r);
    letterbox_read(&m);
    call(m.r, 4, (const char *[]){"CLIENT", "KILL", "TYPE", "normal"}); // every one but its own
    put_token(o, 5, ID_A, 1);
    err e = {0};
    assert_int_equal(outbox_send(o, r, gone, NULL, &e), -1);
    assert_int_equal(e.code, ERR_DEPENDENCY);
    put_token(o, 5, ID_A, 2);
    redis_close(r);
    r = connected();
    send_ok(o, r);
    letterbox_read(&m);
    assert_int_equal(letterbox_find(&m, ID_A)->choices[0].n, 3);
    assert_int_equal(m.n_replies, 3);
    letterbox_close(&m);
    outbox_free(o);
    redis_close(r);
}

static void what_is_dropped_is_not_sent(void **state) {
    (void)state;
    letterbox m;
    redis *r = connected();
    outbox *o = outbox_new(WORKER);
    letterbox_open(&m, address(), 6);
    put_token(o, 6, ID_A, 0);
    outbox_drop(o);
    put_token(o, 6, ID_B, 0);
    send_ok(o, r);
    letterbox_read(&m);
    assert_int_equal(m.n_replies, 1);
    assert_string_equal(m.requests[0]->id, ID_B);
    letterbox_close(&m);
    outbox_free(o);
    redis_close(r);
}

// ---- keeper

static keeper_run run_of(uint64_t gateway, const char *id, uint64_t number, int64_t last_ms) {
    keeper_run k = {.attempt = 2, .run = number, .gateway = gateway, .last_ms = last_ms};
    snprintf(k.id, sizeof k.id, "%s", id);
    return k;
}

static void a_silent_run_is_named_after_a_second_and_each_second_again(void **state) {
    (void)state;
    letterbox m;
    inbox *in = inbox_new();
    letterbox_open(&m, address(), 10);
    keeper *k = keeper_start(address(), WORKER, in);
    keeper_run runs[2] = {run_of(10, ID_A, 1, clock_mono_ms()),
                          run_of(10, ID_B, 2, clock_mono_ms())};
    keeper_note(k, runs, 2);
    clock_sleep_ms(800);
    letterbox_read(&m);
    assert_int_equal(m.n_replies, 0);
    runs[1].last_ms = clock_mono_ms(); // this one had a frame
    keeper_note(k, runs, 2);
    clock_sleep_ms(700);
    letterbox_read(&m);
    assert_int_equal(m.n_replies, 1);
    assert_int_equal(letterbox_find(&m, ID_A)->n_holds, 1);
    assert_int_equal(letterbox_find(&m, ID_B)->n_holds, 0);
    assert_int_equal(letterbox_find(&m, ID_A)->run, 1);
    clock_sleep_ms(2100);
    letterbox_read(&m);
    assert_in_range(letterbox_find(&m, ID_A)->n_holds, 2, 4);
    assert_in_range(letterbox_find(&m, ID_B)->n_holds, 1, 3);
    keeper_note(k, runs, 0); // nothing is alive any more
    int n = m.n_replies;
    clock_sleep_ms(1300);
    letterbox_read(&m);
    assert_int_equal(m.n_replies, n);
    keeper_stop(k);
    inbox_free(in);
    letterbox_close(&m);
}

static void a_note_of_the_same_silence_does_not_repeat_the_hold(void **state) {
    (void)state;
    letterbox m;
    inbox *in = inbox_new();
    letterbox_open(&m, address(), 11);
    keeper *k = keeper_start(address(), WORKER, in);
    int64_t last = clock_mono_ms() - 5000;
    keeper_run first = run_of(11, ID_A, 1, last);
    keeper_note(k, &first, 1);
    for (int i = 0; i < 8; i++) { // steps that give this run no frame
        keeper_run again = run_of(11, ID_A, 1, last);
        clock_sleep_ms(100);
        keeper_note(k, &again, 1);
    }
    letterbox_read(&m);
    assert_int_equal(letterbox_find(&m, ID_A)->n_holds, 1);
    keeper_stop(k);
    inbox_free(in);
    letterbox_close(&m);
}

static void the_keeper_notices_a_gateway_that_is_gone(void **state) {
    (void)state;
    inbox *in = inbox_new();
    keeper *k = keeper_start(address(), WORKER, in);
    keeper_run runs[2] = {run_of(12, ID_A, 1, clock_mono_ms() - 5000),
                          run_of(12, ID_B, 2, clock_mono_ms() - 5000)};
    note n = {0};
    keeper_note(k, runs, 2);
    inbox_wait(in, 3000);
    assert_true(inbox_take(in, &n));
    assert_int_equal(n.kind, NOTE_GATEWAY_GONE);
    assert_int_equal(n.gateway, 12);
    assert_false(inbox_take(in, &n)); // both runs in one message
    keeper_stop(k);
    inbox_free(in);
}

static void the_keeper_comes_back_after_redis(void **state) {
    (void)state;
    letterbox m;
    inbox *in = inbox_new();
    letterbox_open(&m, address(), 13);
    keeper *k = keeper_start(address(), WORKER, in);
    keeper_run run = run_of(13, ID_A, 1, clock_mono_ms() - 5000);
    keeper_note(k, &run, 1);
    clock_sleep_ms(600);
    letterbox_read(&m);
    assert_int_equal(letterbox_find(&m, ID_A)->n_holds, 1);
    call(m.r, 4, (const char *[]){"CLIENT", "KILL", "TYPE", "normal"});
    clock_sleep_ms(2800); // one attempt finds out, the next is heard
    letterbox_read(&m);
    assert_true(letterbox_find(&m, ID_A)->n_holds >= 2);
    keeper_stop(k);
    inbox_free(in);
    letterbox_close(&m);
}

// ---- listener

static bool wait_ring(inbox *in, int ms) {
    int64_t until = clock_mono_ms() + ms;
    while (clock_mono_ms() < until) {
        inbox_wait(in, 50);
        if (inbox_rang(in))
            return true;
    }
    return false;
}

static void the_bell_and_cancels_of_this_worker_are_heard(void **state) {
    (void)state;
    redis *r = connected();
    inbox *in = inbox_new();
    listener *l = listener_start(address(), "7b", WORKER, in);
    char bell[96];
    command stop = {0};
    redis_reply_box *box = NULL;
    err e = {0};
    note n;
    assert_true(wait_ring(in, 3000)); // connected: what was missed is made up for
    clock_sleep_ms(100);
    queue_key_bell(bell, sizeof bell, "7b");
    call(r, 3, (const char *[]){"PUBLISH", bell, ""});
    assert_true(wait_ring(in, 2000));
    queue_key_bell(bell, sizeof bell, "14b");
    call(r, 3, (const char *[]){"PUBLISH", bell, ""});
    assert_false(wait_ring(in, 150));
    queue_stop_command(WORKER + 1, ID_A, 1, 2, &stop);
    assert_int_equal(command_call(&stop, r, &box, &e), 0);
    redis_reply_free(box);
    queue_stop_command(WORKER, ID_B, 3, 77, &stop);
    assert_int_equal(command_call(&stop, r, &box, &e), 0);
    redis_reply_free(box);
    inbox_wait(in, 2000);
    assert_true(inbox_take(in, &n));
    assert_int_equal(n.kind, NOTE_CANCEL);
    assert_string_equal(n.id, ID_B);
    assert_int_equal(n.attempt, 3);
    assert_int_equal(n.run, 77);
    command_release(&stop);
    listener_stop(l);
    inbox_free(in);
    redis_close(r);
}

static void a_malformed_cancel_is_passed_over(void **state) {
    (void)state;
    redis *r = connected();
    inbox *in = inbox_new();
    listener *l = listener_start(address(), "7b", WORKER, in);
    char key[64];
    note n;
    assert_true(wait_ring(in, 3000));
    clock_sleep_ms(100);
    queue_key_cancel(key, sizeof key, WORKER);
    static const char *const bad[] = {"", "x", ID_A, ID_A " 1", ID_A " one 2", ID_A " 1 2 3"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        call(r, 3, (const char *[]){"PUBLISH", key, bad[i]});
    inbox_wait(in, 200);
    assert_false(inbox_take(in, &n));
    listener_stop(l);
    inbox_free(in);
    redis_close(r);
}

static void a_lost_subscription_comes_back_and_rings(void **state) {
    (void)state;
    redis *r = connected();
    inbox *in = inbox_new();
    listener *l = listener_start(address(), "7b", WORKER, in);
    char bell[96];
    assert_true(wait_ring(in, 3000));
    clock_sleep_ms(100);
    call(r, 4, (const char *[]){"CLIENT", "KILL", "TYPE", "pubsub"});
    assert_true(wait_ring(in, 3000));
    clock_sleep_ms(100);
    queue_key_bell(bell, sizeof bell, "7b");
    call(r, 3, (const char *[]){"PUBLISH", bell, ""});
    assert_true(wait_ring(in, 2000));
    listener_stop(l);
    inbox_free(in);
    redis_close(r);
}

static int wait_stops(inbox *in, int n) {
    for (int i = 0; i < 400 && inbox_stops(in) < n; i++)
        clock_sleep_ms(5);
    return inbox_stops(in);
}

static void a_signal_stops(void **state) {
    (void)state;
    inbox *in = inbox_new();
    listener *l = listener_start(address(), "7b", WORKER, in);
    kill(getpid(), SIGTERM);
    assert_int_equal(wait_stops(in, 1), 1);
    kill(getpid(), SIGINT);
    assert_int_equal(wait_stops(in, 2), 2);
    listener_stop(l);
    inbox_free(in);
}

int main(void) {
    const struct CMUnitTest alone[] = {
        cmocka_unit_test(notes_leave_in_the_order_they_came),
        cmocka_unit_test(a_bell_is_heard_once_and_stops_are_counted),
        cmocka_unit_test(a_wait_ends_with_news_or_with_its_time),
    };
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_step_is_one_message_per_gateway),
        cmocka_unit_test(a_gateway_whose_lease_is_over_is_told_and_nobody_else),
        cmocka_unit_test(what_was_not_acknowledged_is_sent_again_in_order),
        cmocka_unit_test(what_is_dropped_is_not_sent),
        cmocka_unit_test(a_silent_run_is_named_after_a_second_and_each_second_again),
        cmocka_unit_test(a_note_of_the_same_silence_does_not_repeat_the_hold),
        cmocka_unit_test(the_keeper_notices_a_gateway_that_is_gone),
        cmocka_unit_test(the_keeper_comes_back_after_redis),
        cmocka_unit_test(the_bell_and_cancels_of_this_worker_are_heard),
        cmocka_unit_test(a_malformed_cancel_is_passed_over),
        cmocka_unit_test(a_lost_subscription_comes_back_and_rings),
        cmocka_unit_test(a_signal_stops),
    };
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    int failed = cmocka_run_group_tests(alone, NULL, NULL);
    if (!test_has_redis()) {
        puts("skip: redis-server is not installed");
        return failed;
    }
    test_redis();
    pthread_sigmask(SIG_BLOCK, &set, NULL); // the listener reads them
    return failed + cmocka_run_group_tests(tests, NULL, NULL);
}
