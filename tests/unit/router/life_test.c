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

static void a_row_keeps_what_explains_it(void **state) {
    (void)state;
    life_client c;
    life_open(&f);
    life_client_init(&c, &f, 10);
    c.spec.route = "tier=135m; why=\"quoted\" \\ {brace}";
    life_worker *w = life_worker_start(&f, answer_4, NULL);
    submit(&c);
    assert_true(life_run(&f, life_client_ended, &c, 5000));
    char worker[20];
    snprintf(worker, sizeof worker, "%016llx", (unsigned long long)w->id);
    life_worker_join(w);
    assert_true(life_wait_rows(&f, 1, 3000));
    char *row = life_text(&f, "SELECT concat_ws(' ', trace->>'steps', trace->>'granted', "
                              "trace->>'held_tokens', trace->>'held_money', trace->>'price_in', "
                              "trace->>'price_cached', trace->>'price_out', "
                              "length(trace->>'gateway'), trace->>'limited_by') FROM usage");
    assert_string_equal(row, "4 10 15 350 10 2 30 16");
    free(row);
    row = life_text(&f, "SELECT trace->>'route' FROM usage");
    assert_string_equal(row, c.spec.route);
    free(row);
    row = life_text(&f, "SELECT trace->>'worker' FROM usage");
    assert_string_equal(row, worker);
    free(row);
    life_close(&f);
}

static void an_answer_that_is_not_streamed_counts_when_its_last_token_is_there(void **state) {
    (void)state;
    life_client c;
    life_open(&f);
    life_client_init(&c, &f, 4);
    c.spec.streamed = false;
    c.takes = false;
    life_worker *w = life_worker_start(&f, answer_4, NULL);
    submit(&c);
    assert_true(life_run(&f, life_client_ended, &c, 5000));
    life_worker_join(w);
    assert_int_equal(c.end.outcome, OUTCOME_OK);
    assert_int_equal(c.end.completion_tokens, 4);
    assert_true(life_wait_rows(&f, 1, 3000));
    life_close(&f);
}

static void a_stream_is_not_complete_before_the_socket_took_all(void **state) {
    (void)state;
    life_client c;
    life_open(&f);
    life_client_init(&c, &f, 4);
    c.takes = false;
    life_worker *w = life_worker_start(&f, answer_4, NULL);
    submit(&c);
    life_wait(&f, 400);
    life_worker_join(w);
    assert_int_equal(c.n[0], 4);
    assert_false(c.is_ended);
    request_handed(c.q, 0, 3);
    life_wait(&f, 50);
    assert_false(c.is_ended);
    request_handed(c.q, 0, 4);
    assert_true(life_run(&f, life_client_ended, &c, 1000));
    assert_int_equal(c.end.outcome, OUTCOME_OK);
    life_close(&f);
}

static void two_choices(life_worker *w) {
    if (!life_claim(w, 3000))
        return;
    life_send_claim(w);
    life_send(w, REPLY_PREFILLED, 0, 0, 1, "a");
    life_send(w, 0, 1, 0, 2, "bb");
    life_send(w, REPLY_LAST, 0, 1, 1, "a");
    life_send(w, REPLY_LAST, 1, 2, 0, "");
}

static void choices_are_counted_apart_and_together(void **state) {
    (void)state;
    life_client c;
    life_open(&f);
    life_client_init(&c, &f, 4);
    c.spec.n_choices = 2;
    life_worker *w = life_worker_start(&f, two_choices, NULL);
    submit(&c);
    assert_true(life_run(&f, life_client_ended, &c, 5000));
    life_worker_join(w);
    assert_int_equal(c.end.outcome, OUTCOME_OK);
    assert_int_equal(c.end.completion_tokens, 4);
    assert_true(c.n[0] == 2 && c.n[1] == 2);
    life_close(&f);
}

static void answer_20(life_worker *w) {
    if (life_claim(w, 3000))
        life_answer(w, 20);
}

static void an_absent_max_tokens_grows_by_extensions(void **state) {
    (void)state;
    life_client c;
    f.c.default_max_tokens = 8;
    life_open(&f);
    life_client_init(&c, &f, 0);
    life_worker *w = life_worker_start(&f, answer_20, NULL);
    submit(&c);
    assert_true(life_run(&f, life_client_ended, &c, 5000));
    life_worker_join(w);
    assert_int_equal(c.end.outcome, OUTCOME_OK);
    assert_int_equal(c.end.completion_tokens, 20);
    life_close(&f);
}

// ---- the fence

static int count_published(redis *ear) {
    redis_reply_box *box = NULL;
    int n = 0;
    while (!redis_get_reply(ear, &box, NULL)) {
        n++;
        redis_reply_free(box);
    }
    return n;
}

static redis *listen_for(const life_worker *w, int ms) {
    redis *ear = NULL;
    redis_reply_box *box = NULL;
    char channel[64];
    queue_key_cancel(channel, sizeof channel, w->id);
    assert_int_equal(redis_connect(f.c.redis_address, ms, &ear, NULL), 0);
    redis_call(ear, 2, (const char *const[]){"SUBSCRIBE", channel}, NULL, &box, NULL);
    redis_reply_free(box);
    return ear;
}

static void foreign_frames_between(life_worker *w) {
    int *n_cancels = w->ctx;
    redis *ear = listen_for(w, 300);
    if (!life_claim(w, 3000))
        return;
    life_send_claim(w);
    life_send(w, REPLY_PREFILLED, 0, 0, 1, "x");
    uint64_t own = w->run;
    w->run = own + 1; // the same attempt, claimed twice
    life_send(w, REPLY_CLAIM, 0, 0, 0, "");
    for (int i = 0; i < 5; i++)
        life_send(w, 0, 0, 1, 1, "BAD");
    w->run = own;
    uint64_t self = w->id;
    w->id = self + 1; // another worker, whose claims have the same numbers
    life_send(w, 0, 0, 1, 1, "BAD");
    w->id = self;
    w->attempt_shift = 1; // an attempt that does not exist
    life_send(w, REPLY_LAST, 0, 1, 1, "BAD");
    w->attempt_shift = 0;
    char id = w->claimed.id[35];
    w->claimed.id[35] = id == '0' ? '1' : '0'; // a request nobody knows
    w->run = own + 2;
    life_send(w, 0, 0, 1, 1, "BAD");
    w->run = own;
    w->claimed.id[35] = id;
    for (int i = 1; i < 4; i++)
        life_send(w, i == 3 ? REPLY_LAST : 0, 0, i, 1, "x");
    *n_cancels = count_published(ear);
    redis_close(ear);
}

static void frames_of_another_run_attempt_or_request_are_dropped_and_answered_once(void **state) {
    (void)state;
    int n_cancels = 0;
    life_client c;
    life_open(&f);
    life_client_init(&c, &f, 4);
    life_worker *w = life_worker_start(&f, foreign_frames_between, &n_cancels);
    submit(&c);
    assert_true(life_run(&f, life_client_ended, &c, 5000));
    life_wait(&f, 100);
    life_worker_join(w);
    assert_int_equal(c.end.outcome, OUTCOME_OK);
    assert_string_equal(c.text, "xxxx");
    assert_int_equal(n_cancels, 3); // one per run, not one per frame
    life_close(&f);
}

// ---- who goes away

static void stream_until_cancelled(life_worker *w) {
    redis *ear = listen_for(w, 2000);
    int *is_told = w->ctx;
    if (life_claim(w, 3000)) {
        redis_reply_box *box = NULL;
        life_send_claim(w);
        for (int i = 0; i < 3; i++)
            life_send(w, i ? 0 : REPLY_PREFILLED, 0, i, 1, "x");
        if (!redis_get_reply(ear, &box, NULL)) {
            char id[ID_UUID_TEXT];
            int attempt;
            uint64_t run;
            size_t n;
            const char *text = redis_value_str(redis_value_at(redis_reply_value(box), 2), &n);
            *is_told = !queue_cancel_parse(text, n, id, &attempt, &run) && attempt == 1 &&
                       run == w->run && strcmp(id, w->claimed.id) == 0;
            redis_reply_free(box);
        }
    }
    redis_close(ear);
}

static void a_client_that_goes_away_stops_its_worker_and_pays_what_it_got(void **state) {
    (void)state;
    int is_told = 0;
    life_client c;
    life_open(&f);
    life_client_init(&c, &f, 100);
    c.cancel_at = 3; // the last it sends: nothing but the cancel itself can tell it
    life_worker *w = life_worker_start(&f, stream_until_cancelled, &is_told);
    submit(&c);
    assert_true(life_run(&f, life_client_ended, &c, 5000));
    life_wait(&f, 100);
    life_worker_join(w);
    assert_int_equal(c.end.outcome, OUTCOME_CLIENT_GONE);
    assert_int_equal(c.end.error.code, ERR_CANCELLED);
    assert_true(is_told);
    assert_true(life_wait_rows(&f, 1, 3000));
    char *row = life_text(&f, "SELECT concat_ws(' ', outcome, prompt_tokens, completion_tokens) "
                              "FROM usage");
    assert_string_equal(row, "client_gone 5 3");
    free(row);
    life_close(&f);
}

static void three_at_once(life_worker *w) {
    if (!life_claim(w, 3000))
        return;
    life_send_claim(w);
    life_send(w, REPLY_PREFILLED, 0, 0, 3, "xxx");
}

static void what_was_received_but_not_handed_is_not_paid(void **state) {
    (void)state;
    life_client c;
    life_open(&f);
    life_client_init(&c, &f, 100);
    c.takes = false;
    life_worker *w = life_worker_start(&f, three_at_once, NULL);
    submit(&c);
    life_wait(&f, 300);
    life_worker_join(w);
    assert_int_equal(c.n[0], 3);
    request_handed(c.q, 0, 1);
    request_cancel(c.q, OUTCOME_CLIENT_GONE);
    assert_true(life_run(&f, life_client_ended, &c, 3000));
    assert_true(life_wait_rows(&f, 1, 3000));
    assert_int_equal(life_number(&f, "SELECT completion_tokens FROM usage"), 1);
    life_close(&f);
}

static void what_the_socket_takes_at_an_early_end_is_paid(void **state) {
    (void)state;
    life_client c;
    life_open(&f);
    life_client_init(&c, &f, 100);
    c.takes = false;
    c.takes_late = 2;
    life_worker *w = life_worker_start(&f, three_at_once, NULL);
    submit(&c);
    life_wait(&f, 300);
    life_worker_join(w);
    router_cancel_key(f.r, LIFE_KEY);
    assert_true(life_run(&f, life_client_ended, &c, 3000));
    assert_int_equal(c.end.outcome, OUTCOME_REVOKED);
    assert_true(life_wait_rows(&f, 1, 3000));
    assert_int_equal(life_number(&f, "SELECT completion_tokens FROM usage"), 2);
    life_close(&f);
}

static void what_completes_at_an_early_end_is_complete(void **state) {
    (void)state;
    life_client c;
    life_open(&f);
    life_client_init(&c, &f, 4);
    c.takes = false;
    c.takes_late = 4;
    life_worker *w = life_worker_start(&f, answer_4, NULL);
    submit(&c);
    life_wait(&f, 300);
    life_worker_join(w);
    assert_false(c.is_ended);
    router_cancel_key(f.r, LIFE_KEY);
    assert_true(life_run(&f, life_client_ended, &c, 3000));
    assert_int_equal(c.end.outcome, OUTCOME_OK);
    assert_int_equal(c.end.completion_tokens, 4);
    life_close(&f);
}

static void a_client_that_goes_away_while_it_waits_leaves_the_queue(void **state) {
    (void)state;
    life_client c;
    life_open(&f);
    life_client_init(&c, &f, 4);
    submit(&c);
    life_wait(&f, 100);
    request_cancel(c.q, OUTCOME_CLIENT_GONE);
    assert_true(life_run(&f, life_client_ended, &c, 2000));
    assert_true(life_wait_rows(&f, 1, 3000));
    assert_int_equal(life_number(&f, "SELECT prompt_tokens + completion_tokens FROM usage"), 0);
    queue_claimed got;
    queue_claims claims = {.entries = &got};
    static const queue_room one = {.max = 1, .lanes = {1, 1, 1, 1}};
    assert_int_equal(queue_claim(f.redis, LIFE_TIER, &one, NULL, 0, &claims, NULL), 0);
    assert_int_equal(claims.n, 0);
    life_close(&f);
}

static void a_client_that_goes_away_at_once_leaves_nothing(void **state) {
    (void)state;
    life_client c;
    life_open(&f);
    life_client_init(&c, &f, 4);
    submit(&c);
    request_cancel(c.q, OUTCOME_CLIENT_GONE); // hold is under way
    assert_true(life_run(&f, life_client_ended, &c, 2000));
    assert_int_equal(c.end.outcome, OUTCOME_CLIENT_GONE);
    life_wait(&f, 100);
    assert_true(life_wait_rows(&f, 0, 1000)); // no record is left
    assert_int_equal(life_number(&f, "SELECT count(*) FROM usage"), 0);
    life_close(&f);
}

static void a_revoked_key_ends_its_requests_and_no_others(void **state) {
    (void)state;
    life_client mine, other;
    life_open(&f);
    life_client_init(&mine, &f, 4);
    life_client_init(&other, &f, 4);
    memcpy(other.spec.key, LIFE_USER, sizeof LIFE_USER);
    submit(&mine);
    submit(&other);
    life_wait(&f, 50);
    router_cancel_key(f.r, LIFE_KEY);
    assert_true(life_run(&f, life_client_ended, &mine, 2000));
    assert_int_equal(mine.end.outcome, OUTCOME_REVOKED);
    assert_int_equal(mine.end.error.code, ERR_KEY);
    assert_false(other.is_ended);
    request_cancel(other.q, OUTCOME_CLIENT_GONE);
    assert_true(life_run(&f, life_client_ended, &other, 2000));
    life_close(&f);
}

static void one_two_whole_and_three(life_worker *w) {
    for (int i = 0; i < 3 && life_claim(w, 3000); i++) {
        if (i == 1) {
            life_answer(w, 4);
            continue;
        }
        life_send_claim(w);
        life_send(w, REPLY_PREFILLED, 0, 0, 1, "x");
    }
}

static void a_revoked_key_ends_all_though_one_completes_meanwhile(void **state) {
    (void)state;
    life_client c[3];
    life_open(&f);
    for (int i = 0; i < 3; i++) {
        life_client_init(&c[i], &f, 4);
        c[i].takes = false;
        submit(&c[i]);
    }
    c[0].takes_for = &c[1]; // two prompts of one stream: the last bytes are of both
    c[0].takes_late = 4;
    life_worker *w = life_worker_start(&f, one_two_whole_and_three, NULL);
    life_wait(&f, 300);
    life_worker_join(w);
    router_cancel_key(f.r, LIFE_KEY);
    for (int i = 0; i < 3; i++) {
        assert_true(life_run(&f, life_client_ended, &c[i], 3000));
        assert_int_equal(c[i].end.outcome, i == 1 ? OUTCOME_OK : OUTCOME_REVOKED);
    }
    life_close(&f);
}

static void work_that_cannot_start_in_time_ends_with_504(void **state) {
    (void)state;
    life_client c;
    life_open(&f);
    life_client_init(&c, &f, 4);
    c.spec.deadline_ms = 200;
    submit(&c);
    assert_true(life_run(&f, life_client_ended, &c, 2000));
    assert_int_equal(c.end.outcome, OUTCOME_DEADLINE);
    assert_int_equal(c.end.error.code, ERR_DEADLINE);
    assert_true(life_wait_rows(&f, 1, 3000));
    life_close(&f);
}

static void a_full_queue_is_told_and_then_refused_without_asking(void **state) {
    (void)state;
    life_client c, second;
    err e = {0};
    f.c.queue_per_tenant = 0;
    life_open(&f);
    life_client_init(&c, &f, 4);
    life_client_init(&second, &f, 4);
    submit(&c);
    assert_true(life_run(&f, life_client_ended, &c, 2000));
    assert_int_equal(c.end.outcome, OUTCOME_OVERLOADED);
    assert_int_equal(c.end.error.code, ERR_OVERLOADED);
    assert_int_equal(c.end.error.retry_ms, 5000); // nobody claims
    assert_int_equal(life_submit(&second, &e), -1);
    assert_int_equal(e.code, ERR_OVERLOADED);
    assert_true(life_wait_rows(&f, 1, 3000));
    char *outcome = life_text(&f, "SELECT outcome FROM usage");
    assert_string_equal(outcome, "overloaded");
    free(outcome);
    life_close(&f);
}

// ---- workers that fail

static void two_then_silence(life_worker *w) {
    if (!life_claim(w, 3000))
        return;
    life_send_claim(w);
    for (int i = 0; i < 2; i++)
        life_send(w, i ? 0 : REPLY_PREFILLED, 0, i, 1, "x");
}

static void continue_to_4(life_worker *w) {
    job *seen = w->ctx;
    if (!life_claim(w, 12000))
        return;
    *seen = w->job;
    seen->so_far[0].ids = NULL;
    life_answer(w, 4);
}

static void a_silent_worker_is_replaced_and_the_answer_goes_on_where_it_was(void **state) {
    (void)state;
    life_client c;
    job seen = {0};
    life_open(&f);
    life_client_init(&c, &f, 4);
    life_worker *w = life_worker_start(&f, two_then_silence, NULL);
    submit(&c);
    life_wait(&f, 300);
    life_worker_join(w);
    w = life_worker_start(&f, continue_to_4, &seen);
    int64_t began = clock_mono_ms();
    assert_true(life_run(&f, life_client_ended, &c, 12000));
    assert_in_range(clock_mono_ms() - began, 4000, 7500);
    life_worker_join(w);
    assert_int_equal(c.end.outcome, OUTCOME_OK);
    assert_true(seen.attempt == 2 && seen.so_far[0].n == 2);
    for (int i = 0; i < 4; i++)
        assert_int_equal(c.ids[0][i], life_token(0, i));
    assert_true(life_wait_rows(&f, 1, 3000));
    assert_int_equal(life_number(&f, "SELECT attempts * 100 + completion_tokens FROM usage"), 204);
    life_close(&f);
}

static void hold_for_6_seconds(life_worker *w) {
    if (!life_claim(w, 3000))
        return;
    life_send_claim(w);
    life_send(w, REPLY_PREFILLED, 0, 0, 1, "x");
    for (int i = 0; i < 6; i++) {
        clock_sleep_ms(1000);
        life_send(w, REPLY_HOLD, 0, 0, 0, "");
    }
    for (int i = 1; i < 4; i++)
        life_send(w, i == 3 ? REPLY_LAST : 0, 0, i, 1, "x");
}

static void a_slow_worker_that_says_so_is_left_alone(void **state) {
    (void)state;
    life_client c;
    life_open(&f);
    life_client_init(&c, &f, 4);
    life_worker *w = life_worker_start(&f, hold_for_6_seconds, NULL);
    submit(&c);
    assert_true(life_run(&f, life_client_ended, &c, 9000));
    life_worker_join(w);
    assert_int_equal(c.end.outcome, OUTCOME_OK);
    assert_true(life_wait_rows(&f, 1, 3000));
    assert_int_equal(life_number(&f, "SELECT attempts FROM usage"), 1);
    life_close(&f);
}

static void claim_and_vanish(life_worker *w) { life_claim(w, 3000); }

static void what_was_popped_and_never_claimed_is_delivered_again(void **state) {
    (void)state;
    life_client c;
    job seen = {0};
    life_open(&f);
    life_client_init(&c, &f, 4);
    life_worker *w = life_worker_start(&f, claim_and_vanish, NULL);
    submit(&c);
    life_wait(&f, 300);
    life_worker_join(w);
    w = life_worker_start(&f, continue_to_4, &seen);
    assert_true(life_run(&f, life_client_ended, &c, 12000));
    life_worker_join(w);
    assert_int_equal(c.end.outcome, OUTCOME_OK);
    assert_int_equal(seen.attempt, 2);
    life_close(&f);
}

static void a_stream_that_no_worker_takes_over_ends_with_what_it_has(void **state) {
    (void)state;
    life_client c;
    f.c.resume_ms = 700;
    life_open(&f);
    life_client_init(&c, &f, 4);
    life_worker *w = life_worker_start(&f, two_then_silence, NULL);
    submit(&c);
    life_wait(&f, 300);
    life_worker_join(w);
    int64_t began = clock_mono_ms();
    assert_true(life_run(&f, life_client_ended, &c, 9000));
    assert_in_range(clock_mono_ms() - began, 5000, 7000); // 5 s of silence, then 0.7 s
    assert_int_equal(c.end.outcome, OUTCOME_WORKER_LOST);
    assert_int_equal(c.end.error.code, ERR_OVERLOADED);
    assert_true(life_wait_rows(&f, 1, 3000));
    char *row = life_text(&f, "SELECT concat_ws(' ', outcome, attempts, completion_tokens) "
                              "FROM usage");
    assert_string_equal(row, "worker_lost 2 2");
    free(row);
    life_close(&f);
}

static void lose_it_twice(life_worker *w) {
    for (int i = 0; i < 2; i++) {
        if (!life_claim(w, 3000))
            return;
        life_send_claim(w);
        if (i == 0)
            life_send(w, REPLY_PREFILLED, 0, 0, 1, "x");
        life_send(w, 0, 0, 9, 1, "BAD"); // a gap: it is delivered again at once
        clock_sleep_ms(1500);
    }
    if (life_claim(w, 3000))
        life_answer(w, 4);
}

static void each_loss_of_a_stream_has_its_own_wait(void **state) {
    (void)state;
    life_client c;
    f.c.resume_ms = 2000;
    life_open(&f);
    life_client_init(&c, &f, 4);
    life_worker *w = life_worker_start(&f, lose_it_twice, NULL);
    submit(&c);
    assert_true(life_run(&f, life_client_ended, &c, 9000));
    life_worker_join(w);
    assert_int_equal(c.end.outcome, OUTCOME_OK);
    assert_string_equal(c.text, "xxxx");
    life_close(&f);
}

static void refuse_and_take_again(life_worker *w) {
    job *seen = w->ctx;
    if (!life_claim(w, 3000))
        return;
    life_send(w, REPLY_REFUSED, 0, 0, 0, "");
    clock_sleep_ms(1500);
    if (!life_claim(w, 3000))
        return;
    *seen = w->job;
    seen->so_far[0].ids = NULL;
    life_answer(w, 4);
}

static void what_has_not_begun_waits_for_its_deadline(void **state) {
    (void)state;
    life_client c;
    job seen = {0};
    f.c.resume_ms = 200;
    life_open(&f);
    life_client_init(&c, &f, 4);
    life_worker *w = life_worker_start(&f, refuse_and_take_again, &seen);
    submit(&c);
    assert_true(life_run(&f, life_client_ended, &c, 6000));
    life_worker_join(w);
    assert_int_equal(c.end.outcome, OUTCOME_OK);
    assert_int_equal(seen.attempt, 2);
    life_close(&f);
}

static void with_a_gap(life_worker *w) {
    if (!life_claim(w, 3000))
        return;
    life_send_claim(w);
    life_send(w, REPLY_PREFILLED, 0, 0, 1, "x");
    life_send(w, 0, 0, 2, 1, "BAD"); // position 1 was trimmed away
    if (life_claim(w, 3000))
        life_answer(w, 4);
}

static void a_gap_is_made_again_by_another_attempt(void **state) {
    (void)state;
    life_client c;
    life_open(&f);
    life_client_init(&c, &f, 4);
    life_worker *w = life_worker_start(&f, with_a_gap, NULL);
    submit(&c);
    assert_true(life_run(&f, life_client_ended, &c, 5000));
    life_worker_join(w);
    assert_int_equal(c.end.outcome, OUTCOME_OK);
    assert_string_equal(c.text, "xxxx");
    life_close(&f);
}

static void refuse_three_times(life_worker *w) {
    lane *lanes = w->ctx;
    for (int i = 0; i < 3 && life_claim(w, 3000); i++) {
        lanes[i] = w->claimed.lane;
        life_send(w, REPLY_REFUSED, 0, 0, 0, "");
    }
}

static void after_three_attempts_it_is_a_dead_letter(void **state) {
    (void)state;
    life_client c;
    lane lanes[3] = {0};
    life_open(&f);
    life_client_init(&c, &f, 4);
    life_worker *w = life_worker_start(&f, refuse_three_times, lanes);
    submit(&c);
    assert_true(life_run(&f, life_client_ended, &c, 5000));
    life_worker_join(w);
    assert_int_equal(c.end.outcome, OUTCOME_DEAD_LETTER);
    assert_int_equal(c.end.error.code, ERR_POISON);
    assert_int_equal(lanes[1], LANE_INTERACTIVE);
    assert_int_equal(lanes[2], LANE_LAST);
    assert_true(life_wait_rows(&f, 1, 3000));
    assert_int_equal(life_number(&f, "SELECT attempts FROM usage WHERE outcome = 'dead_letter'"),
                     3);
    life_close(&f);
}

#define RETURNS 4 // more than attempts may be lost

// One token each time, then it goes; a late frame of an earlier run comes between.
static void return_it_often(life_worker *w) {
    for (int i = 0; i <= RETURNS && life_claim(w, 3000); i++) {
        job *seen = w->ctx;
        seen[i] = w->job;
        if (i) {
            w->attempt_shift = seen[i - 1].attempt - seen[i].attempt;
            w->run--;
            life_send_claim(w);
            w->run++;
            w->attempt_shift = 0;
        }
        life_send_claim(w);
        w->begun_ms = 10007 + i;
        life_send(w, REPLY_BEGUN | (i ? 0 : REPLY_PREFILLED), 0, i, 1, "x");
        if (i < RETURNS)
            life_send(w, REPLY_RETURNED, 0, 0, 0, "");
    }
    life_send(w, REPLY_LAST, 0, RETURNS + 1, 1, "x");
}

static void what_workers_give_back_is_the_next_attempt_and_counts_as_none(void **state) {
    (void)state;
    life_client c;
    job seen[RETURNS + 1] = {0};
    life_open(&f);
    life_client_init(&c, &f, RETURNS + 2);
    life_worker *w = life_worker_start(&f, return_it_often, seen);
    submit(&c);
    assert_true(life_run(&f, life_client_ended, &c, 6000));
    life_worker_join(w);
    assert_int_equal(c.end.outcome, OUTCOME_OK);
    assert_string_equal(c.text, "xxxxxx");
    for (int i = 0; i <= RETURNS; i++)
        assert_true(seen[i].attempt == i + 1 && seen[i].so_far[0].n == i);
    assert_true(life_wait_rows(&f, 1, 3000));
    assert_int_equal(life_number(&f, "SELECT attempts FROM usage"), 1);
    assert_int_equal(life_number(&f, "SELECT queue_ms FROM usage"), 10007); // until it first began
    life_close(&f);
}

static void return_it_for_ever(life_worker *w) {
    for (int *n = w->ctx; life_claim(w, *n < 19 ? 3000 : 300); ++*n) {
        life_send_claim(w);
        life_send(w, REPLY_RETURNED, 0, 0, 0, "");
    }
}

static void what_every_worker_gives_back_is_a_dead_letter_in_the_end(void **state) {
    (void)state;
    life_client c;
    int n = 0;
    life_open(&f);
    life_client_init(&c, &f, 4);
    life_worker *w = life_worker_start(&f, return_it_for_ever, &n);
    submit(&c);
    assert_true(life_run(&f, life_client_ended, &c, 9000));
    life_worker_join(w);
    assert_int_equal(c.end.outcome, OUTCOME_DEAD_LETTER);
    assert_int_equal(n, 16 + 3);
    assert_true(life_wait_rows(&f, 1, 3000));
    assert_int_equal(life_number(&f, "SELECT attempts FROM usage"), 3);
    life_close(&f);
}

// Its answer is whole for the gateway, which takes no more than it granted; then it goes.
static void make_5_and_go(life_worker *w) {
    if (!life_claim(w, 3000))
        return;
    life_send_claim(w);
    for (int i = 0; i < 5; i++)
        life_send(w, i ? 0 : REPLY_PREFILLED, 0, i, 1, "x");
    life_send(w, REPLY_RETURNED, 0, 0, 0, "");
}

static void what_is_given_back_with_nothing_left_to_make_only_waits_for_its_reader(void **state) {
    (void)state;
    life_client c;
    f.c.resume_ms = 200;
    life_open(&f);
    life_client_init(&c, &f, 4);
    c.takes = false;
    life_worker *w = life_worker_start(&f, make_5_and_go, NULL);
    submit(&c);
    life_wait(&f, 1000);
    life_worker_join(w);
    assert_true(!c.is_ended && c.n[0] == 4);
    request_handed(c.q, 0, 4);
    assert_true(life_run(&f, life_client_ended, &c, 3000));
    assert_int_equal(c.end.outcome, OUTCOME_OK);
    assert_int_equal(c.end.finish[0], FINISH_LENGTH);
    life_close(&f);
}

static void fail_it(life_worker *w) {
    if (!life_claim(w, 3000))
        return;
    life_send_claim(w);
    life_send(w, REPLY_FAILED, 0, 0, 0, "");
}

static void an_engine_that_fails_ends_the_request(void **state) {
    (void)state;
    life_client c;
    life_open(&f);
    life_client_init(&c, &f, 4);
    life_worker *w = life_worker_start(&f, fail_it, NULL);
    submit(&c);
    assert_true(life_run(&f, life_client_ended, &c, 5000));
    life_worker_join(w);
    assert_int_equal(c.end.outcome, OUTCOME_FAILED);
    assert_int_equal(c.end.error.code, ERR_INTERNAL);
    life_close(&f);
}

// ---- drain and close

static bool is_true(void *ctx) { return *(bool *)ctx; }
static void set_true(void *ctx) { *(bool *)ctx = true; }

static void a_drained_router_takes_nothing_new_and_finishes_the_rest(void **state) {
    (void)state;
    life_client c, late;
    bool drained = false;
    err e = {0};
    life_open(&f);
    life_client_init(&c, &f, 4);
    life_client_init(&late, &f, 4);
    submit(&c);
    life_wait(&f, 50);
    router_drain(f.r, set_true, &drained);
    assert_int_equal(life_submit(&late, &e), -1);
    assert_int_equal(e.code, ERR_OVERLOADED);
    assert_string_equal(router_not_ready(f.s), "draining");
    life_wait(&f, 50);
    assert_false(drained);
    life_worker *w = life_worker_start(&f, answer_4, NULL);
    assert_true(life_run(&f, is_true, &drained, 5000));
    assert_true(c.is_ended && c.end.outcome == OUTCOME_OK);
    life_worker_join(w);
    life_close(&f);
}

static void a_router_that_closes_tells_its_clients_and_their_rows_come(void **state) {
    (void)state;
    life_client running, waiting, holding;
    life_open(&f);
    life_client_init(&running, &f, 100);
    life_client_init(&waiting, &f, 100);
    life_client_init(&holding, &f, 100);
    life_worker *w = life_worker_start(&f, two_then_silence, NULL);
    submit(&running);
    life_wait(&f, 200);
    life_worker_join(w);
    submit(&waiting);
    life_wait(&f, 50);
    submit(&holding);
    life_close(&f);
    assert_true(running.is_ended && waiting.is_ended && holding.is_ended);
    assert_int_equal(running.end.outcome, OUTCOME_FAILED);
    pg *db = NULL;
    pg_result *rows = NULL;
    assert_int_equal(pg_connect(f.c.postgres_url, &db, NULL), 0);
    assert_int_equal(
        pg_query(db, "SELECT completion_tokens FROM usage ORDER BY 1", 0, NULL, &rows, NULL), 0);
    assert_int_equal(pg_rows(rows), 2);
    assert_int_equal(pg_int(rows, 0, 0), 0);
    assert_int_equal(pg_int(rows, 1, 0), 2);
    pg_result_free(rows);
    pg_close(db);
}

static void a_request_the_model_cannot_take_is_refused_at_once(void **state) {
    (void)state;
    life_client c;
    err e = {0};
    life_open(&f);
    life_client_init(&c, &f, 4);
    f.entry.max_context = 5;
    assert_int_equal(life_submit(&c, &e), -1);
    assert_int_equal(e.code, ERR_CONTEXT_LENGTH);
    life_client_init(&c, &f, 4);
    c.spec.n_choices = JOB_CHOICES + 1;
    assert_int_equal(life_submit(&c, &e), -1);
    assert_string_equal(e.param, "n");
    life_close(&f);
}

int main(void) {
#define LIFE(test) cmocka_unit_test_setup(test, setup)
    const struct CMUnitTest tests[] = {
        LIFE(a_row_equals_what_the_client_was_handed),
        LIFE(a_row_keeps_what_explains_it),
        LIFE(an_answer_that_is_not_streamed_counts_when_its_last_token_is_there),
        LIFE(a_stream_is_not_complete_before_the_socket_took_all),
        LIFE(choices_are_counted_apart_and_together),
        LIFE(an_absent_max_tokens_grows_by_extensions),
        LIFE(frames_of_another_run_attempt_or_request_are_dropped_and_answered_once),
        LIFE(a_client_that_goes_away_stops_its_worker_and_pays_what_it_got),
        LIFE(what_was_received_but_not_handed_is_not_paid),
        LIFE(what_the_socket_takes_at_an_early_end_is_paid),
        LIFE(what_completes_at_an_early_end_is_complete),
        LIFE(a_revoked_key_ends_all_though_one_completes_meanwhile),
        LIFE(a_client_that_goes_away_while_it_waits_leaves_the_queue),
        LIFE(a_client_that_goes_away_at_once_leaves_nothing),
        LIFE(a_revoked_key_ends_its_requests_and_no_others),
        LIFE(work_that_cannot_start_in_time_ends_with_504),
        LIFE(a_full_queue_is_told_and_then_refused_without_asking),
        LIFE(a_silent_worker_is_replaced_and_the_answer_goes_on_where_it_was),
        LIFE(a_slow_worker_that_says_so_is_left_alone),
        LIFE(what_was_popped_and_never_claimed_is_delivered_again),
        LIFE(a_stream_that_no_worker_takes_over_ends_with_what_it_has),
        LIFE(each_loss_of_a_stream_has_its_own_wait),
        LIFE(what_has_not_begun_waits_for_its_deadline),
        LIFE(a_gap_is_made_again_by_another_attempt),
        LIFE(after_three_attempts_it_is_a_dead_letter),
        LIFE(what_workers_give_back_is_the_next_attempt_and_counts_as_none),
        LIFE(what_every_worker_gives_back_is_a_dead_letter_in_the_end),
        LIFE(what_is_given_back_with_nothing_left_to_make_only_waits_for_its_reader),
        LIFE(an_engine_that_fails_ends_the_request),
        LIFE(a_drained_router_takes_nothing_new_and_finishes_the_rest),
        LIFE(a_router_that_closes_tells_its_clients_and_their_rows_come),
        LIFE(a_request_the_model_cannot_take_is_refused_at_once),
    };
    if (!test_has_redis() || !test_has_postgres()) {
        puts("skip: redis-server or PostgreSQL is not installed");
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
