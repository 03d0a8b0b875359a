// The router under test. See router_life.h; no state but the migration flag.
#include "tests/support/router_life.h"
#include "base/clock.h"
#include "base/file.h"
#include "tests/support/servers.h"
#include <glob.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static const int32_t prompt[] = {1, 2, 3, 4, 5};
static const queue_room one = {.max = 1, .lanes = {4, 4, 4, 1}};

int32_t life_token(int choice, int position) { return 1000 * (choice + 1) + position; }

// ---- servers

static void migrate(pg *db) {
    static bool is_done;
    glob_t found;
    if (is_done)
        return;
    assert_int_equal(glob("migrations/*.sql", 0, NULL, &found), 0);
    for (size_t i = 0; i < found.gl_pathc; i++) {
        buf sql = {0};
        err e = {0};
        assert_int_equal(file_read(found.gl_pathv[i], 1 << 20, &sql, &e), 0);
        if (pg_exec(db, sql.data, &e))
            fail_msg("%s: %s", found.gl_pathv[i], e.message);
        buf_release(&sql);
    }
    globfree(&found);
    is_done = true;
}

static void flush_redis(redis *r) {
    redis_reply_box *box = NULL;
    assert_int_equal(redis_call(r, 1, (const char *const[]){"FLUSHALL"}, NULL, &box, NULL), 0);
    redis_reply_free(box);
}

void life_empty(void) {
    pg *db = NULL;
    redis *r = NULL;
    err e = {0};
    if (pg_connect(test_postgres()->address, &db, &e) ||
        redis_connect(test_redis()->address, 2000, &r, &e))
        fail_msg("%s", e.message);
    migrate(db);
    assert_int_equal(pg_exec(db, "TRUNCATE usage, quota_used, limits", &e), 0);
    flush_redis(r);
    redis_close(r);
    pg_close(db);
}

// ---- the router

void life_configure(life *f, const char *data_dir) {
    memset(f, 0, sizeof *f);
    config *c = &f->c;
    snprintf(c->data_dir, sizeof c->data_dir, "%s", data_dir);
    snprintf(c->redis_address, sizeof c->redis_address, "%s", test_redis()->address);
    snprintf(c->postgres_url, sizeof c->postgres_url, "%s", test_postgres()->address);
    c->default_max_tokens = 512;
    c->request_ms = 60000;
    c->resume_ms = 15000;
    c->queue_per_tenant = 1000;
    c->queue_per_tier = 10000;
    c->journal_bytes = 1 << 30;
    c->n_models = 1;
    c->models[0] = (config_model){
        .name = "small", .tier = LIFE_TIER, .price_in = 10, .price_cached = 2, .price_out = 30};
    f->entry = (catalogue_entry){.config = &c->models[0], .max_context = 2048};
    f->ring = (secret_ring){.n = 1};
    f->ring.keys[0].id = 1;
}

static void stop_loop(void *ctx) { loop_stop(ctx); }

static bool has_lease(void *ctx) { return !router_not_ready(((life *)ctx)->s); }

void life_open(life *f) {
    err e = {0};
    if (redis_connect(f->c.redis_address, 2000, &f->redis, &e) ||
        pg_connect(f->c.postgres_url, &f->db, &e) || router_shared_open(&f->c, &f->ring, &f->s, &e))
        fail_msg("%s", e.message);
    f->l = loop_new();
    if (router_open(f->s, f->l, &f->r, &e))
        fail_msg("%s", e.message);
    assert_true(life_run(f, has_lease, f, 5000));
}

void life_close(life *f) {
    router_close(f->r);
    life_wait(f, 20); // letters under way
    router_shared_close(f->s);
    loop_free(f->l);
    redis_close(f->redis);
    pg_close(f->db);
}

typedef struct waiting {
    life *f;
    bool (*done)(void *ctx);
    void *ctx;
    bool is_done;
} waiting;

static void check(void *ctx) {
    waiting *w = ctx;
    w->is_done = w->done(w->ctx);
    if (w->is_done)
        loop_stop(w->f->l);
}

bool life_run(life *f, bool (*done)(void *ctx), void *ctx, int ms) {
    waiting w = {.f = f, .done = done, .ctx = ctx};
    if (done(ctx))
        return true;
    loop_timer *poll = loop_timer_add(f->l, 2, true, check, &w);
    loop_timer *end = loop_timer_add(f->l, ms, true, stop_loop, f->l);
    loop_run(f->l);
    loop_timer_remove(f->l, poll);
    loop_timer_remove(f->l, end);
    return w.is_done;
}

static bool never(void *ctx) {
    (void)ctx;
    return false;
}

void life_wait(life *f, int ms) { life_run(f, never, NULL, ms); }

// ---- the ledger

char *life_text(life *f, const char *sql) {
    pg_result *r = NULL;
    err e = {0};
    if (pg_query(f->db, sql, 0, NULL, &r, &e))
        fail_msg("%s: %s", sql, e.message);
    const char *text = pg_rows(r) ? pg_text(r, 0, 0) : NULL;
    char *copy = text ? strdup(text) : NULL;
    pg_result_free(r);
    return copy;
}

int64_t life_number(life *f, const char *sql) {
    char *text = life_text(f, sql);
    int64_t n = text ? atoll(text) : -1;
    free(text);
    return n;
}

static int64_t open_records(life *f) {
    static const char *const argv[] = {"SCARD", "tg:{" LIFE_TENANT "}:open"};
    redis_reply_box *box = NULL;
    if (redis_call(f->redis, 2, argv, NULL, &box, NULL))
        return 0; // Redis is away in this test
    int64_t n = redis_value_int(redis_reply_value(box));
    redis_reply_free(box);
    return n;
}

typedef struct rows_wanted {
    life *f;
    int n;
} rows_wanted;

static bool has_rows(void *ctx) {
    rows_wanted *w = ctx;
    return life_number(w->f, "SELECT count(*) FROM usage") >= w->n && open_records(w->f) == 0;
}

bool life_wait_rows(life *f, int n, int ms) {
    rows_wanted w = {f, n};
    return life_run(f, has_rows, &w, ms);
}

void life_limit(life *f, const char *scope, const char *column, int64_t value) {
    char sql[512];
    pg *db = NULL;
    err e = {0};
    snprintf(sql, sizeof sql,
             "INSERT INTO tenants (id, name) VALUES ('" LIFE_TENANT "', 'life') ON CONFLICT DO "
             "NOTHING; INSERT INTO limits (tenant_id, scope, %s) VALUES ('" LIFE_TENANT
             "', '%s', %lld) ON CONFLICT (tenant_id, scope) DO UPDATE SET %s = excluded.%s",
             column, scope, (long long)value, column, column);
    if (pg_connect(f->c.postgres_url, &db, &e) || pg_exec(db, sql, &e))
        fail_msg("%s", e.message);
    pg_close(db);
}

// ---- a client

static void on_frame(void *ctx, const reply_frame *frame) {
    life_client *c = ctx;
    int k = frame->choice;
    if (frame->flags & REPLY_PROMPT)
        return;
    for (int i = 0; i < frame->n_tokens; i++) {
        assert_int_equal(frame->from + i, c->n[k]); // 0, 1, 2, ... (P6)
        c->ids[k][c->n[k]++] = frame->tokens[i].id;
    }
    strncat(c->text, frame->text, frame->n_text);
    if (c->takes)
        request_handed(c->q, k, c->n[k]);
    if (c->cancel_at && c->n[k] >= c->cancel_at)
        request_cancel(c->q, (request_outcome)c->cancel_why);
}

static void on_stop(void *ctx) {
    life_client *c = ctx;
    request_handed(c->takes_for ? c->takes_for->q : c->q, 0, c->takes_late);
}

static void on_end(void *ctx, const request_end *end) {
    life_client *c = ctx;
    assert_false(c->is_ended); // exactly once
    c->is_ended = true;
    c->end = *end;
}

void life_client_init(life_client *c, life *f, int max_tokens) {
    *c = (life_client){.f = f, .takes = true, .cancel_why = OUTCOME_CLIENT_GONE};
    c->spec = (request_spec){.tenant = LIFE_TENANT,
                             .user = LIFE_USER,
                             .key = LIFE_KEY,
                             .model = &f->entry,
                             .lane = LANE_INTERACTIVE,
                             .endpoint = "chat",
                             .task = "chat",
                             .prompt = prompt,
                             .n_prompt = 5,
                             .n_choices = 1,
                             .max_tokens = max_tokens,
                             .streamed = true};
    c->spec.sampling = (sampling_params){.top_p = 1, .repetition_penalty = 1, .n_top_logprobs = -1};
}

int life_submit(life_client *c, err *e) {
    static const request_events events = {.frame = on_frame, .stop = on_stop, .end = on_end};
    return router_submit(c->f->r, &c->spec, &events, c, &c->q, e);
}

bool life_client_ended(void *client) { return ((life_client *)client)->is_ended; }

// ---- a worker

static void *run_worker(void *ctx) {
    life_worker *w = ctx;
    w->script(w);
    return NULL;
}

life_worker *life_worker_start(const life *f, life_script *script, void *ctx) {
    life_worker *w = calloc(1, sizeof *w);
    assert_non_null(w);
    w->f = f;
    w->script = script;
    w->ctx = ctx;
    w->id = id_random_u64();
    w->is_alive = true;
    arena_init(&w->a);
    assert_int_equal(redis_connect(f->c.redis_address, 2000, &w->r, NULL), 0);
    assert_int_equal(pthread_create(&w->thread, NULL, run_worker, w), 0);
    return w;
}

void life_worker_join(life_worker *w) {
    pthread_join(w->thread, NULL);
    redis_close(w->r);
    arena_release(&w->a);
    free(w);
}

bool life_claim(life_worker *w, int ms) {
    int64_t until = clock_mono_ms() + ms;
    buf sealed = {0};
    err e = {0};
    queue_claims got = {.entries = &w->claimed};
    for (int found; clock_mono_ms() < until; clock_sleep_ms(5)) {
        if (queue_claim(w->r, LIFE_TIER, &one, NULL, 0, &got, &e))
            break;
        if (!got.n)
            continue;
        w->run = id_random_u64();
        arena_clear(&w->a);
        bool is_open = !queue_take_payload(w->r, LIFE_TIER, w->claimed.id, w->claimed.attempt,
                                           &sealed, &found, &e) &&
                       found &&
                       !job_open(sealed.data, sealed.len, w->claimed.id, w->claimed.attempt,
                                 &w->f->ring, &w->a, &w->job, &e);
        buf_release(&sealed);
        return is_open;
    }
    return false;
}

void life_send(life_worker *w, unsigned flags, int choice, int from, int n, const char *text) {
    reply_token tokens[64];
    for (int i = 0; i < n && i < 64; i++)
        tokens[i] = (reply_token){.id = life_token(choice, from + i), .logprob = NAN};
    reply_frame f = {.choice = choice,
                     .attempt = w->claimed.attempt + w->attempt_shift,
                     .run = w->run,
                     .flags = flags,
                     .from = from,
                     .tokens = tokens,
                     .n_tokens = n,
                     .text = text,
                     .n_text = strlen(text),
                     .finish = !(flags & REPLY_LAST) ? FINISH_NONE
                               : w->finish           ? w->finish
                                                     : FINISH_STOP,
                     .queue_ms = flags & REPLY_CLAIM   ? (int)w->claimed.waited_ms
                                 : flags & REPLY_BEGUN ? w->begun_ms
                                                       : 0,
                     .engine_us = 100};
    memcpy(f.id, w->claimed.id, sizeof f.id);
    reply m = {.worker = w->id, .frames = &f, .n_frames = 1};
    buf b = {0};
    int alive = 0;
    reply_encode(&m, &b);
    if (queue_send_reply(w->r, w->job.gateway, b.data, b.len, &alive, NULL))
        alive = 0;
    w->is_alive = alive;
    buf_release(&b);
}

void life_send_claim(life_worker *w) { life_send(w, REPLY_CLAIM, 0, 0, 0, ""); }

void life_answer(life_worker *w, int n) {
    life_send_claim(w);
    for (int i = w->job.so_far[0].n; i < n; i++)
        life_send(w, (i == 0 ? REPLY_PREFILLED : 0) | (i == n - 1 ? REPLY_LAST : 0), 0, i, 1, "x");
}
