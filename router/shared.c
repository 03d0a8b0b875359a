// What the routers of a process share: journal, recorder, sweeper, quota loader, metrics. Opened
// and closed by the main thread; the parts have threads of their own. Closes what the journal of an
// earlier life left open before anything new is accepted.
#include "router/request_internal.h"
#include "base/clock.h"
#include "router/library.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define REDIS_MS 2000
#define LAST_COMMIT_MS 5000

static const char *const state_names[N_STATES] = {"holding", "queued", "running", "closing",
                                                  "unrecorded"};

static void register_metrics(router_metrics *m) {
    static const double seconds[] = {0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5,
                                     1,     2.5,   5,    10,   30,  60};
    static const double steps[] = {0, 1, 2, 3, 5, 10, 20, 50, 100, 1000};
    const int n = (int)(sizeof seconds / sizeof *seconds);
    char labels[48];
    for (int i = 0; i <= OUTCOME_UNKNOWN; i++) {
        snprintf(labels, sizeof labels, "outcome=\"%s\"", request_outcome_name((request_outcome)i));
        m->outcomes[i] = metric_counter("tiergate_outcomes_total", labels,
                                        "Accepted requests by how they ended.");
    }
    for (int i = 0; i < N_STATES; i++) {
        snprintf(labels, sizeof labels, "state=\"%s\"", state_names[i]);
        m->states[i] = metric_gauge("tiergate_requests", labels, "Requests of this gateway.");
    }
    m->fenced = metric_counter("tiergate_frames_fenced_total", "",
                               "Frames of another attempt, run or request.");
    m->redelivered =
        metric_counter("tiergate_redeliveries_total", "", "Attempts that were given up.");
    m->leases_lost =
        metric_counter("tiergate_leases_lost_total", "", "Incarnations that ended by their lease.");
    m->refused = metric_counter("tiergate_refused_total", "", "Requests never accepted.");
    m->replayed = metric_counter("tiergate_replayed_total", "",
                                 "Requests answered with what an earlier one had got.");
    m->queue_seconds =
        metric_histogram("tiergate_queue_seconds", "",
                         "Wait of a first attempt until a worker began it.", seconds, n);
    m->queue_steps =
        metric_histogram("tiergate_queue_steps", "", "Passes its worker ended meanwhile.", steps,
                         sizeof steps / sizeof *steps);
    m->first_token_seconds = metric_histogram("tiergate_accepted_first_token_seconds", "",
                                              "From acceptance to the first token.", seconds, n);
}

// ---- ids the journal found, kept until the recorder runs

typedef struct found_ids {
    journal_open_id *items;
    size_t n, cap;
} found_ids;

static void on_found(void *ctx, const journal_open_id *id) {
    found_ids *f = ctx;
    if (f->n == f->cap) {
        f->cap = f->cap ? f->cap * 2 : 64;
        f->items = realloc(f->items, f->cap * sizeof *f->items);
        if (!f->items)
            fatal("out of memory for the journal");
    }
    f->items[f->n++] = *id;
}

static int prepare_redis(router_shared *s, redis **out, err *e) {
    if (redis_connect(s->c->redis_address, REDIS_MS, out, e))
        return -1;
    return queue_prepare(*out, e) || library_load(*out, LIBRARY_QUOTA, e) ? -1 : 0;
}

int router_shared_open(const config *c, const secret_ring *cluster, router_shared **out, err *e) {
    char dir[CONFIG_TEXT + 16];
    redis *r = NULL;
    found_ids found = {0};
    router_shared *s = calloc(1, sizeof *s);
    if (!s)
        return err_set(e, ERR_INTERNAL, NULL, "out of memory");
    s->c = c;
    s->cluster = *cluster;
    pthread_mutex_init(&s->mutex, NULL);
    register_metrics(&s->metrics);
    snprintf(dir, sizeof dir, "%s/journal", c->data_dir);
    int rc = prepare_redis(s, &r, e);
    if (!rc)
        rc = limits_open(c->postgres_url, &s->limits, e);
    if (!rc)
        rc = journal_open(dir, c->journal_bytes, on_found, &found, &s->j, e);
    if (!rc)
        s->recorder = recorder_open(c, s->j);
    for (size_t i = 0; !rc && i < found.n; i++)
        rc = sweep_journaled(r, &found.items[i], s->recorder, e);
    free(found.items);
    redis_close(r);
    if (rc) {
        router_shared_close(s);
        return -1;
    }
    s->loader = quota_loader_open(c);
    s->sweeper = sweeper_open(s);
    *out = s;
    return 0;
}

void router_shared_close(router_shared *s) {
    if (!s)
        return;
    sweeper_close(s->sweeper);
    quota_loader_close(s->loader);
    recorder_close(s->recorder, LAST_COMMIT_MS);
    journal_close(s->j);
    limits_close(s->limits);
    pthread_mutex_destroy(&s->mutex);
    secret_wipe(&s->cluster, sizeof s->cluster);
    free(s);
}

const char *router_not_ready(const router_shared *k) {
    router_shared *s = (router_shared *)(uintptr_t)k; // the mutex
    const char *why = journal_trouble(s->j);
    bool is_draining = false, is_trusted = false;
    int64_t now_ms = clock_mono_ms();
    pthread_mutex_lock(&s->mutex);
    for (router_slot *slot = s->slots; slot; slot = slot->next) {
        is_draining |= atomic_load(&slot->is_draining);
        is_trusted |= atomic_load(&slot->trusted_until_ms) > now_ms;
    }
    pthread_mutex_unlock(&s->mutex);
    if (is_draining)
        return "draining";
    if (!is_trusted)
        return "the queue (Redis) cannot be reached";
    return why;
}
