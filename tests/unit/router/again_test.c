// Requests that were seen before: by their Idempotency-Key, and bodies that killed their workers.
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
    snprintf(dir, sizeof dir, "%s/again%d", test_dir(), n++);
    life_configure(&f, dir);
    return 0;
}

static void submit(life_client *c) {
    err e = {0};
    if (life_submit(c, &e))
        fail_msg("refused: %s", e.message);
}

static void answer_4(life_worker *w) {
    if (life_claim(w, 3000))
        life_answer(w, 4);
}

// ---- poison

static void refuse_three_times(life_worker *w) {
    for (int i = 0; i < 3 && life_claim(w, 3000); i++)
        life_send(w, REPLY_REFUSED, 0, 0, 0, "");
}

static void a_dead_letter_refuses_its_body_for_a_while(void **state) {
    (void)state;
    life_client c, same, other;
    life_open(&f);
    life_client_init(&c, &f, 4);
    snprintf(c.spec.body_hash, sizeof c.spec.body_hash, "b1");
    life_worker *w = life_worker_start(&f, refuse_three_times, NULL);
    submit(&c);
    assert_true(life_run(&f, life_client_ended, &c, 5000));
    life_worker_join(w);
    same = c;
    same.is_ended = false;
    submit(&same);
    assert_true(life_run(&f, life_client_ended, &same, 2000));
    assert_int_equal(same.end.error.code, ERR_POISON);
    life_client_init(&other, &f, 4);
    snprintf(other.spec.body_hash, sizeof other.spec.body_hash, "b2");
    w = life_worker_start(&f, answer_4, NULL);
    submit(&other);
    assert_true(life_run(&f, life_client_ended, &other, 5000));
    life_worker_join(w);
    assert_int_equal(other.end.outcome, OUTCOME_OK);
    assert_true(life_wait_rows(&f, 2, 3000)); // the refused one has none
    assert_int_equal(life_number(&f, "SELECT count(*) FROM usage"), 2);
    life_close(&f);
}

// ---- Idempotency-Key

static void submit_with_key(life_client *c, const char *body) {
    life_client_init(c, &f, 4);
    c->spec.streamed = false;
    snprintf(c->spec.idem, sizeof c->spec.idem, "aa");
    snprintf(c->spec.body_hash, sizeof c->spec.body_hash, "%s", body);
    submit(c);
}

static void a_key_is_in_progress_then_replayed_and_never_another_row(void **state) {
    (void)state;
    life_client c, again;
    char id[ID_UUID_TEXT];
    life_open(&f);
    submit_with_key(&c, "b1");
    memcpy(id, request_id(c.q), sizeof id);
    life_wait(&f, 100);
    submit_with_key(&again, "b1");
    assert_true(life_run(&f, life_client_ended, &again, 2000));
    assert_int_equal(again.end.error.code, ERR_IN_PROGRESS);
    assert_int_equal(again.end.error.retry_ms, 1000);
    submit_with_key(&again, "b2");
    assert_true(life_run(&f, life_client_ended, &again, 2000));
    assert_int_equal(again.end.error.code, ERR_IDEM_MISMATCH);
    life_worker *w = life_worker_start(&f, answer_4, NULL);
    assert_true(life_run(&f, life_client_ended, &c, 5000));
    life_worker_join(w);
    router_store_answer(f.r, LIFE_TENANT, "aa", id, "the answer", 10);
    submit_with_key(&again, "b1");
    assert_true(life_run(&f, life_client_ended, &again, 2000));
    assert_true(again.end.outcome == OUTCOME_OK && again.end.n_replay == 10);
    assert_true(life_wait_rows(&f, 1, 3000));
    assert_int_equal(life_number(&f, "SELECT count(*) FROM usage"), 1);
    life_close(&f);
}

static void an_answer_too_large_to_keep_frees_its_key(void **state) {
    (void)state;
    life_client c, again;
    char id[ID_UUID_TEXT];
    char *large = calloc(1, REQUEST_ANSWER_BYTES + 1);
    assert_non_null(large);
    life_open(&f);
    submit_with_key(&c, "b1");
    memcpy(id, request_id(c.q), sizeof id);
    life_worker *w = life_worker_start(&f, answer_4, NULL);
    assert_true(life_run(&f, life_client_ended, &c, 5000));
    life_worker_join(w);
    submit_with_key(&again, "b1"); // what it will be answered is on its way
    assert_true(life_run(&f, life_client_ended, &again, 2000));
    assert_int_equal(again.end.error.code, ERR_IN_PROGRESS);
    router_store_answer(f.r, LIFE_TENANT, "aa", id, large, REQUEST_ANSWER_BYTES + 1);
    w = life_worker_start(&f, answer_4, NULL);
    submit_with_key(&again, "b1");
    assert_true(life_run(&f, life_client_ended, &again, 5000));
    life_worker_join(w);
    assert_true(again.end.outcome == OUTCOME_OK && !again.end.replay);
    free(large);
    life_close(&f);
}

static void a_stream_frees_its_key(void **state) {
    (void)state;
    life_client c, again;
    life_open(&f);
    for (int i = 0; i < 2; i++) {
        life_client_init(&c, &f, 4);
        snprintf(c.spec.idem, sizeof c.spec.idem, "aa");
        snprintf(c.spec.body_hash, sizeof c.spec.body_hash, "b1");
        life_worker *w = life_worker_start(&f, answer_4, NULL);
        submit(&c);
        assert_true(life_run(&f, life_client_ended, &c, 5000));
        life_worker_join(w);
        assert_true(c.end.outcome == OUTCOME_OK && !c.end.replay);
    }
    submit_with_key(&again, "b2"); // not even another body is a mismatch
    life_wait(&f, 100);
    assert_false(again.is_ended);
    request_cancel(again.q, OUTCOME_CLIENT_GONE);
    assert_true(life_run(&f, life_client_ended, &again, 2000));
    life_close(&f);
}

static void a_key_whose_request_failed_runs_again(void **state) {
    (void)state;
    life_client c, again;
    life_open(&f);
    submit_with_key(&c, "b1");
    life_wait(&f, 100);
    request_cancel(c.q, OUTCOME_CLIENT_GONE);
    assert_true(life_run(&f, life_client_ended, &c, 2000));
    submit_with_key(&again, "b1");
    life_worker *w = life_worker_start(&f, answer_4, NULL);
    assert_true(life_run(&f, life_client_ended, &again, 5000));
    life_worker_join(w);
    assert_true(again.end.outcome == OUTCOME_OK && !again.end.replay);
    assert_true(life_wait_rows(&f, 2, 3000)); // each with its own id and row
    life_close(&f);
}

int main(void) {
#define LIFE(test) cmocka_unit_test_setup(test, setup)
    const struct CMUnitTest tests[] = {
        LIFE(a_dead_letter_refuses_its_body_for_a_while),
        LIFE(a_key_is_in_progress_then_replayed_and_never_another_row),
        LIFE(an_answer_too_large_to_keep_frees_its_key),
        LIFE(a_stream_frees_its_key),
        LIFE(a_key_whose_request_failed_runs_again),
    };
    if (!test_has_redis() || !test_has_postgres()) {
        puts("skip: redis-server or PostgreSQL is not installed");
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
