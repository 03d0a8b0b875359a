// Records nobody closes any more (R5). Owns a thread, its connections to Redis and to Postgres and
// its memory of missing gateways. Records of a gateway that lives in this process are shown to that
// router by letter; the ones it does not know come back (orphans, under the mutex) and are closed
// at the next sweep. Everything it does may be done twice, by others too.
#include "router/sweep.h"
#include "base/clock.h"
#include "base/log.h"
#include "router/depth.h"
#include "router/request_internal.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SWEEP_MS 5000
#define MISSING_MS 10000
#define REDIS_MS 2000
#define RECORDS_AT_ONCE 256
#define GATEWAYS_MOST 256 // missing ones remembered at a time

typedef struct missing_gateway {
    uint64_t gateway;
    int64_t since_ms; // 0: it is there
    uint64_t sweep;   // the sweep that looked
} missing_gateway;

typedef struct orphan {
    struct orphan *next;
    char tenant[ID_UUID_TEXT], id[ID_UUID_TEXT];
} orphan;

struct sweeper {
    router_shared *s;
    pthread_t thread;
    pthread_mutex_t mutex; // guards orphans and is_stopping
    pthread_cond_t stop;
    bool is_stopping;
    orphan *orphans; // entered by a router's loop, left by the sweeper's thread
    // the thread's own
    redis *cache;
    pg *db;
    missing_gateway gateways[GATEWAYS_MOST];
    int n_gateways;
    uint64_t n_sweeps;
    depth *depth;
    metric *closed, *released, *journal_bytes, *oldest_s, *holds;
    int64_t n_holds; // found by this sweep so far
};

static redis_reply_box *call(sweeper *w, command *c) {
    redis_reply_box *box = NULL;
    if (command_call(c, w->cache, &box, NULL)) {
        redis_close(w->cache);
        w->cache = NULL;
        return NULL;
    }
    return box;
}

// ---- closing

static recorder_entry *make_entry(const char *id, const usage_meta *m, const quota_record *known) {
    recorder_entry *x = calloc(1, sizeof *x);
    if (!x)
        fatal("out of memory for a row");
    memcpy(x->row.id, id, sizeof x->row.id);
    x->row.meta = *m;
    x->row.first_token_ms = -1;
    x->is_settled = true;
    if (known) {
        snprintf(x->row.gateway, sizeof x->row.gateway, "%016" PRIx64, known->gateway);
        x->row.granted = known->granted;
        x->row.held_tokens = known->held_tokens;
        x->row.held_money = known->held_money;
    }
    return x;
}

// Settles with what the record knows and takes over the answer. 1: there is no record.
static int settle_unknown(redis *r, usage_row *row, request_outcome why, err *e) {
    command c = {0};
    redis_reply_box *box = NULL;
    quota_settlement s;
    quota_settle_command(&row->meta, row->id, NULL, request_outcome_name(why), false, &c);
    int rc = command_call(&c, r, &box, e);
    command_release(&c);
    if (rc)
        return -1;
    quota_verdict verdict = quota_read_settlement(redis_reply_value(box), &s);
    if (verdict == QUOTA_OK) {
        usage_row_settle(row, &s);
        row->total_ms = s.at_ms > row->meta.accepted_ms ? s.at_ms - row->meta.accepted_ms : 0;
    } else if (verdict != QUOTA_GONE) {
        rc = err_set(e, ERR_DEPENDENCY, NULL, "Redis cannot settle: %s",
                     redis_value_str(redis_reply_value(box), NULL));
    }
    redis_reply_free(box);
    return rc ? -1 : verdict == QUOTA_GONE;
}

// Its gateway held and went away, or lost the answer, before it accepted: no row.
static void release_record(sweeper *w, const char *id, const quota_record *known) {
    command c = {0};
    quota_release_command(&known->meta, id, &c);
    redis_reply_box *box = call(w, &c);
    if (redis_value_is(redis_value_at(redis_reply_value(box), 0), "OK")) {
        log_event(LOG_INFO, "sweep.released", "{s:s}", "id", id);
        metric_add(w->released, 1);
    }
    redis_reply_free(box);
    command_release(&c);
}

// 1: its gateway, which could not reach Redis, has committed a row, which row now is; 0: there is
// none.
static int find_row(sweeper *w, usage_row *row, err *e) {
    int found;
    if ((!w->db && pg_connect(w->s->c->postgres_url, &w->db, e)) ||
        usage_read_back(w->db, &row, 1, &found, e)) {
        pg_close(w->db);
        w->db = NULL;
        return -1;
    }
    return found;
}

// A row that is there decides at once. One that is committed just now is righted by its drop.
static void close_record(sweeper *w, const char *id, const quota_record *known) {
    recorder_entry *x = make_entry(id, &known->meta, known);
    err e = {0};
    int found = find_row(w, &x->row, &e);
    if (found < 0 || (!found && settle_unknown(w->cache, &x->row, OUTCOME_GATEWAY_LOST, &e))) {
        free(x); // somebody else was faster, or the next sweep tries again
        return;
    }
    log_event(LOG_INFO, "sweep.closed", "{s:s,s:s,s:i}", "id", id, "outcome", x->row.outcome,
              "completion", x->row.completion);
    metric_add(w->closed, 1);
    recorder_push(w->s->recorder, x);
}

int sweep_journaled(redis *r, const journal_open_id *id, recorder *to, err *e) {
    recorder_entry *x = make_entry(id->row.id, &id->row.meta, NULL);
    x->segment = id->segment;
    if (id->is_finished) {
        x->row = id->row;
        x->is_settled = false; // the recorder settles with these values first
    } else {
        snprintf(x->row.outcome, sizeof x->row.outcome, "%s",
                 request_outcome_name(OUTCOME_UNKNOWN));
        x->row.at_ms = clock_unix_ms(); // if Redis does not know it either
        if (settle_unknown(r, &x->row, OUTCOME_GATEWAY_LOST, e) < 0) {
            free(x);
            return -1;
        }
    }
    recorder_push(to, x);
    return 0;
}

// ---- records of routers in this process

typedef struct question {
    sweeper *w;
    char tenant[ID_UUID_TEXT], id[ID_UUID_TEXT];
} question;

static void answer(router *r, void *arg) { // on the router's loop
    question *x = arg;
    if (r && !request_find(r, x->id)) {
        orphan *o = calloc(1, sizeof *o);
        if (!o)
            fatal("out of memory for a sweep");
        memcpy(o->tenant, x->tenant, sizeof o->tenant);
        memcpy(o->id, x->id, sizeof o->id);
        pthread_mutex_lock(&x->w->mutex);
        o->next = x->w->orphans;
        x->w->orphans = o;
        pthread_mutex_unlock(&x->w->mutex);
    }
    free(x);
}

// Is it a gateway of ours? Then its router is asked.
static bool ask_own(sweeper *w, uint64_t gateway, const char *tenant, const char *id) {
    mailbox *box = NULL;
    pthread_mutex_lock(&w->s->mutex);
    for (router_slot *s = w->s->slots; s && !box; s = s->next)
        if (atomic_load(&s->gateway) == gateway)
            box = mailbox_ref(s->box);
    pthread_mutex_unlock(&w->s->mutex);
    if (!box)
        return false;
    question *x = calloc(1, sizeof *x);
    if (!x)
        fatal("out of memory for a sweep");
    x->w = w;
    memcpy(x->tenant, tenant, sizeof x->tenant);
    memcpy(x->id, id, sizeof x->id);
    mailbox_post(box, answer, x);
    mailbox_unref(box);
    return true;
}

// ---- gateways elsewhere

static missing_gateway *remember(sweeper *w, uint64_t gateway) {
    missing_gateway *oldest = &w->gateways[0];
    for (int i = 0; i < w->n_gateways; i++) {
        if (w->gateways[i].gateway == gateway)
            return &w->gateways[i];
        if (w->gateways[i].sweep < oldest->sweep)
            oldest = &w->gateways[i];
    }
    if (w->n_gateways < GATEWAYS_MOST)
        oldest = &w->gateways[w->n_gateways++];
    *oldest = (missing_gateway){.gateway = gateway};
    return oldest;
}

// Has it been missing for long, by our own clock? Asked once a sweep.
static bool is_long_missing(sweeper *w, uint64_t gateway) {
    missing_gateway *g = remember(w, gateway);
    if (g->sweep != w->n_sweeps) {
        char key[64];
        command c = {0};
        queue_key_gateway(key, sizeof key, gateway);
        command_words(&c, 2, (const char *const[]){"EXISTS", key});
        redis_reply_box *box = w->cache ? call(w, &c) : NULL;
        const redis_value *v = redis_reply_value(box);
        if (v && redis_value_kind(v) == REDIS_INT) {
            g->since_ms = redis_value_int(v) ? 0 : g->since_ms ? g->since_ms : clock_mono_ms();
            g->sweep = w->n_sweeps;
        }
        redis_reply_free(box);
        command_release(&c);
    }
    return g->sweep == w->n_sweeps && g->since_ms && clock_mono_ms() - g->since_ms >= MISSING_MS;
}

// ---- a sweep

static void look_at(sweeper *w, const char *tenant, const char *id, const redis_value *v,
                    bool is_orphan) {
    size_t n;
    const char *text = redis_value_kind(v) == REDIS_STRING ? redis_value_str(v, &n) : NULL;
    quota_record record;
    err e = {0};
    if (!text)
        return; // dropped meanwhile
    if (quota_read_record(text, n, &record, &e)) {
        log_event(LOG_WARN, "sweep.record", "{s:s,s:s}", "id", id, "error", e.message);
        return;
    }
    if (is_orphan ||
        (!ask_own(w, record.gateway, tenant, id) && is_long_missing(w, record.gateway)))
        (record.is_open && !record.is_accepted ? release_record : close_record)(w, id, &record);
}

static void look_at_some(sweeper *w, const char *tenant, const redis_value *ids, size_t from,
                         size_t n) {
    command c = {0};
    command_text(&c, "MGET");
    for (size_t i = 0; i < n; i++)
        command_printf(&c, "tg:{%s}:r:%s", tenant,
                       redis_value_str(redis_value_at(ids, from + i), NULL));
    redis_reply_box *box = call(w, &c);
    for (size_t i = 0; box && w->cache && i < n; i++)
        look_at(w, tenant, redis_value_str(redis_value_at(ids, from + i), NULL),
                redis_value_at(redis_reply_value(box), i), false);
    redis_reply_free(box);
    command_release(&c);
}

static bool is_id(const redis_value *v) {
    size_t n;
    const char *text = redis_value_str(v, &n);
    return text && n == ID_UUID_TEXT - 1;
}

static void sweep_tenant(sweeper *w, const char *tenant) {
    command c = {0};
    command_text(&c, "SMEMBERS");
    command_printf(&c, "tg:{%s}:open", tenant);
    redis_reply_box *box = call(w, &c);
    const redis_value *ids = redis_reply_value(box);
    size_t n = redis_value_len(ids);
    w->n_holds += (int64_t)n;
    for (size_t at = 0; w->cache && at < n; at += RECORDS_AT_ONCE)
        look_at_some(w, tenant, ids, at, n - at < RECORDS_AT_ONCE ? n - at : RECORDS_AT_ONCE);
    redis_reply_free(box);
    command_release(&c);
}

static orphan *take_orphans(sweeper *w) {
    pthread_mutex_lock(&w->mutex);
    orphan *all = w->orphans;
    w->orphans = NULL;
    pthread_mutex_unlock(&w->mutex);
    return all;
}

static void close_orphans(sweeper *w) {
    for (orphan *o = take_orphans(w), *next; o; o = next) {
        command c = {0};
        next = o->next;
        command_text(&c, "GET");
        command_printf(&c, "tg:{%s}:r:%s", o->tenant, o->id);
        redis_reply_box *box = w->cache ? call(w, &c) : NULL;
        if (box)
            look_at(w, o->tenant, o->id, redis_reply_value(box), true);
        redis_reply_free(box);
        command_release(&c);
        free(o);
    }
}

static void sweep(sweeper *w) {
    command c = {0};
    metric_set(w->journal_bytes, journal_bytes(w->s->j));
    metric_set(w->oldest_s, recorder_oldest_ms(w->s->recorder) / 1000);
    if (!w->cache && redis_connect(w->s->c->redis_address, REDIS_MS, &w->cache, NULL)) {
        w->cache = NULL;
        return;
    }
    depth_measure(w->depth, w->cache);
    if (recorder_is_behind(w->s->recorder))
        return; // what it would close waits for Postgres already
    w->n_sweeps++;
    w->n_holds = 0;
    close_orphans(w);
    if (!w->cache)
        return;
    command_words(&c, 2, (const char *const[]){"SMEMBERS", "tg:tenants"});
    redis_reply_box *box = call(w, &c);
    const redis_value *tenants = redis_reply_value(box);
    for (size_t i = 0; w->cache && i < redis_value_len(tenants); i++)
        if (is_id(redis_value_at(tenants, i)))
            sweep_tenant(w, redis_value_str(redis_value_at(tenants, i), NULL));
    if (w->cache)
        metric_set(w->holds, w->n_holds);
    redis_reply_free(box);
    command_release(&c);
}

// Waits for the next sweep; false: the end.
static bool wait_next(sweeper *w) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += SWEEP_MS / 1000;
    pthread_mutex_lock(&w->mutex);
    int rc = 0;
    while (!w->is_stopping && rc == 0)
        rc = pthread_cond_timedwait(&w->stop, &w->mutex, &until);
    bool goes_on = !w->is_stopping;
    pthread_mutex_unlock(&w->mutex);
    return goes_on;
}

static void *run(void *ctx) {
    sweeper *w = ctx;
    while (wait_next(w))
        sweep(w);
    return NULL;
}

sweeper *sweeper_open(router_shared *s) {
    sweeper *w = calloc(1, sizeof *w);
    if (!w)
        fatal("out of memory for the sweeper");
    w->s = s;
    w->depth = depth_open(s->c);
    w->closed = metric_counter("tiergate_swept_total", "",
                               "Requests closed for a gateway that was lost or forgot them.");
    w->journal_bytes =
        metric_gauge("tiergate_journal_bytes", "", "Size of the journal, measured every 5 s.");
    w->oldest_s = metric_gauge("tiergate_usage_oldest_seconds", "",
                               "How long the oldest row waits for its commit, measured every 5 s.");
    w->holds =
        metric_gauge("tiergate_holds", "", "Records in Redis, of all gateways, counted every 5 s.");
    w->released = metric_counter("tiergate_swept_holds_total", "",
                                 "Holds released whose request was never accepted.");
    pthread_mutex_init(&w->mutex, NULL);
    thread_cond_init(&w->stop);
    if (pthread_create(&w->thread, NULL, run, w))
        fatal("cannot start the sweeper's thread");
    return w;
}

void sweeper_close(sweeper *w) {
    if (!w)
        return;
    pthread_mutex_lock(&w->mutex);
    w->is_stopping = true;
    pthread_cond_signal(&w->stop);
    pthread_mutex_unlock(&w->mutex);
    pthread_join(w->thread, NULL);
    for (orphan *o = take_orphans(w), *next; o; o = next) {
        next = o->next;
        free(o);
    }
    redis_close(w->cache);
    pg_close(w->db);
    depth_close(w->depth);
    pthread_mutex_destroy(&w->mutex);
    pthread_cond_destroy(&w->stop);
    free(w);
}
