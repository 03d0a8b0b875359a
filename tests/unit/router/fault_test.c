// What dies, and what is left: Redis, its data, the lease, Postgres, the gateway itself. Each test
// is a row of the table "each fault" in the protocol, as far as one process and a child can play
// it.
#include "base/clock.h"
#include "router/journal.h"
#include "router/quota.h"
#include "router/record.h"
#include "tests/support/router_life.h"
#include "tests/support/servers.h"
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

static life f;

static int setup(void **state) {
    (void)state;
    char dir[128];
    static int n;
    life_empty();
    snprintf(dir, sizeof dir, "%s/fault%d", test_dir(), n++);
    life_configure(&f, dir);
    return 0;
}

static void submit(life_client *c) {
    err e = {0};
    if (life_submit(c, &e))
        fail_msg("refused: %s", e.message);
}

static void call(redis *r, int argc, const char *const *argv) {
    redis_reply_box *box = NULL;
    if (!redis_call(r, argc, argv, NULL, &box, NULL))
        redis_reply_free(box);
}

static void assert_row(const char *want) {
    char *row = life_text(&f, "SELECT concat_ws(' ', outcome, prompt_tokens, completion_tokens) "
                              "FROM usage");
    assert_non_null(row);
    assert_string_equal(row, want);
    free(row);
    assert_int_equal(life_number(&f, "SELECT count(*) FROM usage"), 1);
    assert_int_equal(life_number(&f, "SELECT tokens FROM quota_used WHERE scope = 't'"),
                     life_number(&f, "SELECT prompt_tokens + completion_tokens FROM usage"));
}

// Streams two tokens, then only says that it is alive.
static void two_then_alive(life_worker *w) {
    if (!life_claim(w, 5000))
        return;
    life_send_claim(w);
    for (int i = 0; i < 2; i++)
        life_send(w, i ? 0 : REPLY_PREFILLED, 0, i, 1, "x");
    for (int i = 0; i < 100 && w->is_alive; i++) {
        clock_sleep_ms(100);
        life_send(w, REPLY_HOLD, 0, 0, 0, "");
    }
}

static void answer_4(life_worker *w) {
    if (life_claim(w, 8000))
        life_answer(w, 4);
}

static bool has_two(void *ctx) { return ((life_client *)ctx)->n[0] == 2; }

static life_worker *start_stream(life_client *c) {
    life_open(&f);
    life_client_init(c, &f, 100);
    life_worker *w = life_worker_start(&f, two_then_alive, NULL);
    submit(c);
    assert_true(life_run(&f, has_two, c, 5000));
    return w;
}

static void assert_serves_again(void) {
    life_client c;
    err e = {0};
    life_client_init(&c, &f, 4);
    for (int i = 0; i < 50 && life_submit(&c, &e); i++)
        life_wait(&f, 100);
    life_worker *w = life_worker_start(&f, answer_4, NULL);
    assert_true(life_run(&f, life_client_ended, &c, 8000));
    life_worker_join(w);
    assert_int_equal(c.end.outcome, OUTCOME_OK);
}

// ---- what a stranger finds

static bool is_known_as_accepted(void *client) {
    const life_client *c = client;
    quota_record k;
    bool found;
    return !record_find(f.redis, request_id(c->q), &k, &found, NULL) && found && k.is_accepted;
}

static void who_waits_in_the_queue_is_known_as_accepted(void **state) {
    (void)state;
    life_client c;
    life_open(&f);
    life_client_init(&c, &f, 10);
    submit(&c);
    assert_true(life_run(&f, is_known_as_accepted, &c, 5000));
    request_cancel(c.q, OUTCOME_CLIENT_GONE);
    assert_true(life_wait_rows(&f, 1, 5000));
    assert_row("client_gone 0 0");
    life_close(&f);
}

// ---- Redis

static void redis_killed_ends_streams_by_the_lease_and_the_row_is_exact(void **state) {
    (void)state;
    life_client c, late;
    err e = {0};
    life_worker *w = start_stream(&c);
    test_server_kill(test_redis(), SIGKILL);
    int64_t began = clock_mono_ms();
    life_wait(&f, 100);
    life_client_init(&late, &f, 4);
    assert_int_equal(life_submit(&late, &e), -1);
    assert_int_equal(e.code, ERR_DEPENDENCY);
    assert_true(life_run(&f, life_client_ended, &c, 9000));
    assert_in_range(clock_mono_ms() - began, 2000, 7000); // trusted for 4 s, then 2 s for settle
    assert_int_equal(c.end.outcome, OUTCOME_GATEWAY_LOST);
    assert_int_equal(c.end.error.code, ERR_DEPENDENCY);
    life_worker_join(w);
    assert_true(life_wait_rows(&f, 1, 5000)); // Postgres is there
    assert_row("gateway_lost 5 2");
    test_server_start(test_redis());
    redis_close(f.redis);
    f.redis = NULL;
    assert_int_equal(redis_connect(f.c.redis_address, 2000, &f.redis, NULL), 0);
    assert_serves_again();
    life_close(&f);
}

static int64_t redis_number(int argc, const char *const *argv) {
    redis_reply_box *box = NULL;
    if (redis_call(f.redis, argc, argv, NULL, &box, NULL))
        return -1;
    int64_t v = redis_value_int(redis_reply_value(box));
    redis_reply_free(box);
    return v;
}

// What a router sends in front of a hold was executed, and no record stands.
static bool has_held_and_released(void *ctx) {
    (void)ctx;
    return redis_number(2, (const char *const[]){"EXISTS", "tg:tenants"}) == 1 &&
           redis_number(2, (const char *const[]){"SCARD", "tg:{" LIFE_TENANT "}:open"}) == 0;
}

// Redis reads it when it goes on, long after its sender gave up. The sweep would take over 5 s.
static void a_hold_whose_answer_was_lost_is_given_back_and_leaves_no_row(void **state) {
    (void)state;
    life_client c;
    life_open(&f);
    life_client_init(&c, &f, 10);
    test_server_kill(test_redis(), SIGSTOP);
    submit(&c);
    assert_true(life_run(&f, life_client_ended, &c, 3500));
    assert_int_equal(c.end.error.code, ERR_DEPENDENCY);
    test_server_kill(test_redis(), SIGCONT);
    assert_true(life_run(&f, has_held_and_released, NULL, 4000));
    assert_int_equal(life_number(&f, "SELECT count(*) FROM usage"), 0);
    assert_serves_again();
    life_close(&f);
}

static void redis_wiped_ends_streams_and_the_owner_inserts_its_own_values(void **state) {
    (void)state;
    life_client c;
    life_worker *w = start_stream(&c);
    call(f.redis, 1, (const char *const[]){"FLUSHALL"});
    assert_true(life_run(&f, life_client_ended, &c, 4000));
    assert_int_equal(c.end.outcome, OUTCOME_GATEWAY_LOST);
    life_worker_join(w);
    assert_true(life_wait_rows(&f, 1, 3000));
    assert_row("gateway_lost 5 2");
    assert_serves_again();
    life_close(&f);
}

static void a_wipe_during_the_last_token_is_never_called_complete(void **state) {
    (void)state;
    life_client c;
    life_worker *w = start_stream(&c);
    c.takes = false;
    char key[96];
    snprintf(key, sizeof key, "tg:{" LIFE_TENANT "}:r:%s", request_id(c.q));
    call(f.redis, 2, (const char *const[]){"DEL", key}); // the record alone
    request_cancel(c.q, OUTCOME_OK);                     // as if the last token had been handed
    assert_true(life_run(&f, life_client_ended, &c, 3000));
    assert_int_equal(c.end.outcome, OUTCOME_FAILED); // R7
    life_worker_join(w);
    life_close(&f);
}

static void a_settlement_that_is_not_ours_decides_the_row_and_denies_the_end(void **state) {
    (void)state;
    life_client c;
    command k = {0};
    life_worker *w = start_stream(&c);
    usage_meta m = {.tenant = LIFE_TENANT};
    quota_settlement theirs = {.prompt = 5, .completion = 1, .money = 80};
    redis_reply_box *box = NULL;
    quota_settle_command(&m, request_id(c.q), &theirs, "gateway_lost", false, &k);
    assert_int_equal(command_call(&k, f.redis, &box, NULL), 0);
    redis_reply_free(box);
    command_release(&k);
    request_cancel(c.q, OUTCOME_OK);
    assert_true(life_run(&f, life_client_ended, &c, 3000));
    assert_int_equal(c.end.outcome, OUTCOME_FAILED);
    life_worker_join(w);
    assert_true(life_wait_rows(&f, 1, 3000));
    assert_row("gateway_lost 5 1");
    life_close(&f);
}

static void a_lease_that_is_gone_never_comes_back(void **state) {
    (void)state;
    life_client c;
    life_worker *w = start_stream(&c);
    char key[64];
    queue_key_gateway(key, sizeof key, w->job.gateway);
    call(f.redis, 2, (const char *const[]){"DEL", key});
    assert_true(life_run(&f, life_client_ended, &c, 3000));
    assert_int_equal(c.end.outcome, OUTCOME_GATEWAY_LOST);
    life_worker_join(w);
    assert_serves_again();
    redis_reply_box *box = NULL;
    const char *exists[] = {"EXISTS", key};
    assert_int_equal(redis_call(f.redis, 2, exists, NULL, &box, NULL), 0);
    assert_int_equal(redis_value_int(redis_reply_value(box)), 0);
    redis_reply_free(box);
    life_close(&f);
}

static void a_gateway_that_slept_through_its_lease_writes_nothing_more(void **state) {
    (void)state;
    life_client c;
    life_worker *w = start_stream(&c);
    uint64_t was = w->job.gateway;
    char key[64];
    queue_key_gateway(key, sizeof key, was);
    clock_sleep_ms(4500); // stopped: longer than it may trust its lease, shorter than that lives
    int64_t run = (int64_t)w->run;
    reply_token t = {.id = life_token(0, 2), .logprob = 0};
    reply_frame late = {.attempt = 1, .run = (uint64_t)run, .from = 2, .tokens = &t, .n_tokens = 1};
    memcpy(late.id, request_id(c.q), sizeof late.id);
    reply m = {.worker = w->id, .frames = &late, .n_frames = 1};
    buf b = {0};
    int alive = 0;
    reply_encode(&m, &b);
    assert_int_equal(queue_send_reply(f.redis, was, b.data, b.len, &alive, NULL), 0);
    assert_int_equal(alive, 1);
    buf_release(&b);
    assert_true(life_run(&f, life_client_ended, &c, 3000));
    assert_int_equal(c.end.outcome, OUTCOME_GATEWAY_LOST);
    assert_int_equal(c.n[0], 2);
    life_worker_join(w);
    assert_true(life_wait_rows(&f, 1, 3000));
    assert_row("gateway_lost 5 2");
    life_close(&f);
}

static void noise_in_the_reply_stream_harms_nobody(void **state) {
    (void)state;
    life_client c;
    life_worker *w = start_stream(&c);
    char key[64];
    queue_key_gateway(key, sizeof key, w->job.gateway);
    call(f.redis, 5, (const char *const[]){"XADD", key, "*", "r", "not a reply"});
    call(f.redis, 5, (const char *const[]){"XADD", key, "*", "other", "field"});
    life_wait(&f, 200);
    assert_false(c.is_ended);
    request_cancel(c.q, OUTCOME_CLIENT_GONE);
    assert_true(life_run(&f, life_client_ended, &c, 3000));
    life_worker_join(w);
    life_close(&f);
}

static void what_was_read_leaves_the_reply_stream(void **state) {
    (void)state;
    life_client c;
    life_worker *w = start_stream(&c);
    char key[64];
    queue_key_gateway(key, sizeof key, w->job.gateway);
    life_wait(&f, 1500);
    redis_reply_box *box = NULL;
    assert_int_equal(redis_call(f.redis, 2, (const char *const[]){"XLEN", key}, NULL, &box, NULL),
                     0);
    assert_in_range(redis_value_int(redis_reply_value(box)), 0, 12); // of 15 and more
    redis_reply_free(box);
    request_cancel(c.q, OUTCOME_CLIENT_GONE);
    assert_true(life_run(&f, life_client_ended, &c, 3000));
    life_worker_join(w);
    life_close(&f);
}

// ---- Postgres

static void postgres_away_delays_rows_and_nothing_else(void **state) {
    (void)state;
    life_client c;
    life_open(&f);
    test_server_kill(test_postgres(), SIGKILL);
    life_client_init(&c, &f, 4);
    life_worker *w = life_worker_start(&f, answer_4, NULL);
    submit(&c);
    assert_true(life_run(&f, life_client_ended, &c, 5000));
    life_worker_join(w);
    assert_int_equal(c.end.outcome, OUTCOME_OK);
    assert_null(router_not_ready(f.s));
    life_wait(&f, 500);
    test_server_start(test_postgres());
    pg_close(f.db);
    f.db = NULL;
    assert_int_equal(pg_connect(f.c.postgres_url, &f.db, NULL), 0);
    assert_true(life_wait_rows(&f, 1, 8000));
    assert_row("ok 5 4");
    life_close(&f);
}

// ---- the gateway

typedef enum moment { STREAMING, REPORTED, ENDED_WITHOUT_POSTGRES } moment;

// A gateway in a child process that is killed at a moment of its request's life. Servers are the
// parent's to stop: the child says when its stream runs and waits for a word.
static void run_child(moment when, int from_parent, int to_parent) {
    life_client c;
    char word;
    life_worker *w = start_stream(&c);
    if (when == REPORTED)
        life_wait(&f, 1500);
    if (write(to_parent, "1", 1) != 1 || read(from_parent, &word, 1) != 1)
        _exit(1);
    request_cancel(c.q, OUTCOME_CLIENT_GONE);
    life_run(&f, life_client_ended, &c, 5000);
    life_wait(&f, 100);
    if (write(to_parent, "2", 1) != 1)
        _exit(1);
    life_wait(&f, 60000);
    life_worker_join(w);
    _exit(0);
}

static void kill_gateway_at(moment when) {
    int down[2], up[2], status;
    char c;
    assert_int_equal(pipe(down) | pipe(up), 0);
    pid_t child = fork();
    if (child == 0)
        run_child(when, down[0], up[1]);
    close(up[1]);
    assert_int_equal(read(up[0], &c, 1), 1);
    if (when == ENDED_WITHOUT_POSTGRES) {
        test_server_kill(test_postgres(), SIGKILL);
        assert_int_equal(write(down[1], "!", 1), 1);
        assert_int_equal(read(up[0], &c, 1), 1);
    }
    kill(child, SIGKILL);
    waitpid(child, &status, 0);
    close(up[0]);
    close(down[0]);
    close(down[1]);
}

static void count_open(void *ctx, const journal_open_id *id) {
    (void)id;
    ++*(int *)ctx;
}

// Ids without C in the journal of a router that is closed.
static int open_in_journal(void) {
    char dir[300];
    int n = 0;
    journal *j = NULL;
    snprintf(dir, sizeof dir, "%s/journal", f.c.data_dir);
    assert_int_equal(journal_open(dir, 1 << 30, count_open, &n, &j, NULL), 0);
    journal_close(j);
    return n;
}

static void a_killed_gateway_that_restarts_closes_with_the_last_report(void **state) {
    (void)state;
    kill_gateway_at(REPORTED);
    assert_int_equal(open_in_journal(), 1);
    life_open(&f);
    assert_true(life_wait_rows(&f, 1, 3000));
    assert_row("gateway_lost 5 2");
    life_close(&f);
    assert_int_equal(open_in_journal(), 0);
    life_open(&f); // C is written: nothing is closed twice
    life_wait(&f, 300);
    assert_row("gateway_lost 5 2");
    life_close(&f);
}

static void a_killed_gateway_whose_redis_was_wiped_leaves_a_row_of_nothing(void **state) {
    (void)state;
    kill_gateway_at(STREAMING);
    redis *r = NULL;
    assert_int_equal(redis_connect(f.c.redis_address, 2000, &r, NULL), 0);
    call(r, 1, (const char *const[]){"FLUSHALL"});
    redis_close(r);
    life_open(&f);
    assert_true(life_wait_rows(&f, 1, 3000));
    assert_row("unknown 0 0");
    life_close(&f);
}

static void a_gateway_killed_before_its_commit_inserts_the_exact_row_at_restart(void **state) {
    (void)state;
    kill_gateway_at(ENDED_WITHOUT_POSTGRES);
    redis *r = NULL;
    assert_int_equal(redis_connect(f.c.redis_address, 2000, &r, NULL), 0);
    call(r, 1, (const char *const[]){"FLUSHALL"}); // the journal alone is left
    redis_close(r);
    test_server_start(test_postgres());
    life_open(&f);
    assert_true(life_wait_rows(&f, 1, 3000));
    assert_row("client_gone 5 2");
    life_close(&f);
}

static void a_gateway_that_never_returns_is_swept_by_another(void **state) {
    (void)state;
    char dir[300];
    kill_gateway_at(REPORTED);
    snprintf(dir, sizeof dir, "%s-other", f.c.data_dir);
    life_configure(&f, dir);
    int64_t began = clock_mono_ms();
    life_open(&f);
    assert_true(life_wait_rows(&f, 1, 30000));
    assert_in_range(clock_mono_ms() - began, 10000, 27000);
    assert_row("gateway_lost 5 2");
    life_close(&f);
}

// A record that names a living gateway, which does not know it.
static void make_unknown_record(uint64_t gateway, bool is_accepted) {
    command k = {0};
    char id[ID_UUID_TEXT];
    id_uuid7(id);
    usage_meta m = {.tenant = LIFE_TENANT, .user = LIFE_USER, .key = LIFE_KEY};
    snprintf(m.endpoint, sizeof m.endpoint, "chat");
    m.accepted_ms = clock_unix_ms();
    quota_demand d = {.prompt = 5, .want = 10, .need = 10, .n_choices = 1};
    quota_limits none = {0};
    redis_reply_box *box = NULL;
    quota_hold_command(&m, id, gateway, "", &d, &none, &k);
    assert_int_equal(command_call(&k, f.redis, &box, NULL), 0);
    assert_true(redis_value_is(redis_value_at(redis_reply_value(box), 0), "OK"));
    redis_reply_free(box);
    quota_progress_command(LIFE_TENANT, &(quota_sent){.id = id}, 1, &k);
    if (is_accepted)
        assert_int_equal(command_call(&k, f.redis, NULL, NULL), 0);
    command_release(&k);
}

static void
what_its_gateway_does_not_know_is_closed_and_has_a_row_if_it_was_accepted(void **state) {
    (void)state;
    life_client c;
    life_worker *w = start_stream(&c);
    make_unknown_record(w->job.gateway, true);
    make_unknown_record(w->job.gateway, false);
    life_wait(&f, 5500);
    request_cancel(c.q, OUTCOME_CLIENT_GONE); // so that nothing else stays open
    assert_true(life_wait_rows(&f, 2, 15000));
    assert_int_equal(life_number(&f, "SELECT count(*) FROM usage WHERE outcome = 'gateway_lost' "
                                     "AND prompt_tokens + completion_tokens = 0"),
                     1);
    life_worker_join(w);
    life_close(&f);
}

int main(void) {
#define FAULT(test) cmocka_unit_test_setup(test, setup)
    const struct CMUnitTest tests[] = {
        FAULT(who_waits_in_the_queue_is_known_as_accepted),
        FAULT(redis_killed_ends_streams_by_the_lease_and_the_row_is_exact),
        FAULT(a_hold_whose_answer_was_lost_is_given_back_and_leaves_no_row),
        FAULT(redis_wiped_ends_streams_and_the_owner_inserts_its_own_values),
        FAULT(a_wipe_during_the_last_token_is_never_called_complete),
        FAULT(a_settlement_that_is_not_ours_decides_the_row_and_denies_the_end),
        FAULT(a_lease_that_is_gone_never_comes_back),
        FAULT(a_gateway_that_slept_through_its_lease_writes_nothing_more),
        FAULT(noise_in_the_reply_stream_harms_nobody),
        FAULT(what_was_read_leaves_the_reply_stream),
        FAULT(postgres_away_delays_rows_and_nothing_else),
        FAULT(a_killed_gateway_that_restarts_closes_with_the_last_report),
        FAULT(a_killed_gateway_whose_redis_was_wiped_leaves_a_row_of_nothing),
        FAULT(a_gateway_killed_before_its_commit_inserts_the_exact_row_at_restart),
        FAULT(a_gateway_that_never_returns_is_swept_by_another),
        FAULT(what_its_gateway_does_not_know_is_closed_and_has_a_row_if_it_was_accepted),
    };
    if (!test_has_redis() || !test_has_postgres()) {
        puts("skip: redis-server or PostgreSQL is not installed");
        return 0;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
