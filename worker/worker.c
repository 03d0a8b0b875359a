// The worker role: opens model, engine and Redis, then the step loop: notes from other threads,
// claim, step, send. Owns the list of runs. This is the step thread; listener and keeper are its
// helpers. It knows nothing of tenants' quotas and writes nothing durable.
#include "worker/worker.h"
#include <jansson.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "base/metric.h"
#include "base/probe.h"
#include "base/redis.h"
#include "base/secret.h"
#include "router/queue.h"
#include "worker/inbox.h"
#include "worker/keeper.h"
#include "worker/listen.h"
#include "worker/outbox.h"
#include "worker/step.h"

enum {
    REDIS_MS = 2000, // a Redis that does not answer for so long is lost
    CLAIM_MS = 1000, // asked again without a bell
    SHARE_MS = 100,  // the same while others wait beside a tenant that has more than its share
    RETRY_MS = 200,  // after a lost connection
    KEEP_MS = 4000,  // unsent replies are given up after (their gateways have noticed by then)
    CLAIM_MOST = 64,
    CHARGES = 256,
};

typedef struct worker {
    const config *c;
    const config_model *conf;
    uint64_t id; // incarnation
    model *m;
    engine *g;
    secret_ring cluster;
    redis *r;        // NULL: to be connected again
    int64_t lost_ms; // since when; 0: connected
    inbox *in;
    listener *ears;
    keeper *keep;
    outbox *out;
    stepper step;
    adapters *adapters;
    run *runs, **last; // in order of arrival
    uint64_t n_runs;   // numbers given
    int64_t claim_ms;  // when the next claim is due
    bool is_hungry;    // the last claim found too little: the bell tells of more
    bool is_contended; // it left several tenants waiting
    queue_charge charges[CHARGES];
    char charge_tenants[CHARGES][ID_UUID_TEXT];
    int n_charges;
    keeper_run *kept; // scratch, [kept_cap]
    int kept_cap;
    atomic_bool ready; // Redis answers
    engine_stats told; // as of the last measure()
    int64_t told_loads;
    metric *m_steps, *m_tokens, *m_claims, *m_active, *m_waiting, *m_kv_free, *m_step_s;
    metric *m_hits, *m_misses, *m_evicted, *m_cached, *m_guessed, *m_right, *m_preempted;
    metric *m_adapters, *m_adapter_bytes, *m_adapter_loads;
} worker;

// ---- the list of runs

static void runs_add(worker *w, run *r) {
    *w->last = r;
    w->last = &r->next;
}

// Removes and frees the runs that match.
static int runs_drop(worker *w, bool (*match)(const run *r, const void *what), const void *what) {
    int n = 0;
    run **at = &w->runs;
    while (*at) {
        run *r = *at;
        if (match(r, what)) {
            *at = r->next;
            run_free(r, w->g);
            n++;
        } else {
            at = &r->next;
        }
    }
    w->last = at;
    return n;
}

static bool is_over(const run *r, const void *what) {
    (void)what;
    return r->n_live == 0;
}

static bool is_of_gateway(const run *r, const void *gateway) {
    return r->j.gateway == *(const uint64_t *)gateway;
}

static bool is_cancelled(const run *r, const void *what) {
    const note *n = what;
    return !strcmp(r->j.id, n->id) && r->j.attempt == n->attempt &&
           (!n->run || r->number == n->run);
}

static void drop_gateway(void *ctx, uint64_t gateway) {
    worker *w = ctx;
    int n = runs_drop(w, is_of_gateway, &gateway);
    if (n)
        log_event(LOG_WARN, "worker.gateway_gone", "{s:i}", "runs_dropped", n);
}

// A run none of whose choices ever came into the engine: another worker may have it.
static bool is_unbegun(const run *r, const void *what) {
    (void)what;
    for (int i = 0; i < r->j.n_choices; i++)
        if (r->choices[i].seq)
            return false;
    return choice_made(r, &r->choices[0]) == r->j.so_far[0].n && !r->prefilled;
}

static int count_waiting(const worker *w) {
    int n = 0;
    for (const run *r = w->runs; r; r = r->next)
        n += is_unbegun(r, NULL);
    return n;
}

// ---- Redis

// The connection, made again at most every RETRY_MS; NULL while there is none.
static redis *connection(worker *w) {
    err e = {0};
    if (w->r || clock_mono_ms() < w->claim_ms)
        return w->r;
    if (redis_connect(w->c->redis_address, REDIS_MS, &w->r, &e)) {
        w->r = NULL;
        w->claim_ms = clock_mono_ms() + RETRY_MS;
    } else {
        w->lost_ms = 0;
        atomic_store(&w->ready, true);
    }
    return w->r;
}

static void connection_lost(worker *w, const err *e) {
    if (!w->lost_ms)
        log_event(LOG_ERROR, "worker.redis_lost", "{s:s}", "reason", e->message);
    redis_close(w->r);
    w->r = NULL;
    atomic_store(&w->ready, false);
    w->lost_ms = w->lost_ms ? w->lost_ms : clock_mono_ms();
    w->claim_ms = clock_mono_ms() + RETRY_MS;
}

static void send_all(worker *w) {
    err e = {0};
    redis *r = connection(w);
    if (r && outbox_send(w->out, r, drop_gateway, w, &e))
        connection_lost(w, &e);
    if (!w->r && w->lost_ms && clock_mono_ms() - w->lost_ms > KEEP_MS)
        outbox_drop(w->out);
}

// ---- claiming

// What the next claim says of r's tenant and lane; NULL: CHARGES of them are there already.
static queue_charge *charge_of(worker *w, const run *r) {
    for (int i = 0; i < w->n_charges; i++)
        if (w->charges[i].lane == r->lane && !strcmp(w->charge_tenants[i], r->j.tenant))
            return &w->charges[i];
    if (w->n_charges == CHARGES)
        return NULL; // more tenants than slots x lanes within a second: the rest goes unsaid
    int i = w->n_charges++;
    memcpy(w->charge_tenants[i], r->j.tenant, ID_UUID_TEXT);
    w->charges[i] = (queue_charge){.lane = r->lane, .tenant = w->charge_tenants[i]};
    return &w->charges[i];
}

// Service is charged with the next claim; a tenant's tokens of a lane add up.
static void charge(void *ctx, const run *r, int n) {
    queue_charge *c = charge_of(ctx, r);
    if (c)
        c->amount += n / (r->weight > 0 ? r->weight : 1);
}

// The places of each tenant at the next step, free ones going to those that wait here. -> how many
// could change hands: all but one of each.
static int count_seats(worker *w) {
    int free = w->step.slots - stepper_used(w->runs), n = 0;
    for (int i = 0; i < w->n_charges; i++)
        w->charges[i].seats = 0;
    for (const run *r = w->runs; r; r = r->next) {
        queue_charge *c = charge_of(w, r);
        for (int i = 0; i < r->j.n_choices && c; i++)
            if (r->choices[i].seq || (choice_waits(&r->choices[i]) && free-- > 0))
                n += c->seats++ > 0;
    }
    return n;
}

static void refuse(worker *w, const queue_claimed *c, const job *j, const char *why) {
    log_event(LOG_WARN, "worker.refused", "{s:s,s:i,s:s}", "request", c->id, "attempt", c->attempt,
              "reason", why);
    if (j) // its gateway is known only from the job
        outbox_add(w->out, j->gateway, c->id, c->attempt, ++w->n_runs, 0)->flags = REPLY_REFUSED;
}

// Fetches, opens and checks a claimed job; the run joins the list and its CLAIM frame the outbox.
static int take_job(worker *w, const queue_claimed *c, int64_t arrived_us, err *e) {
    buf sealed = {0};
    arena a;
    job j = {0};
    uint8_t salt[ENGINE_SALT_BYTES];
    int found, rc = -1;
    arena_init(&a);
    if (queue_take_payload(w->r, w->conf->tier, c->id, c->attempt, &sealed, &found, e))
        goto done;
    rc = 0;
    err why = {0};
    failpoint("worker.payload.after");
    if (!found) {
        refuse(w, c, NULL, "its payload is gone");
    } else if (job_open(sealed.data, sealed.len, c->id, c->attempt, &w->cluster, &a, &j, &why)) {
        refuse(w, c, NULL, why.message);
    } else if (strcmp(j.model, w->conf->name) || j.n_prompt >= engine_max_context(w->g)) {
        refuse(w, c, &j, "this worker does not serve it");
    } else {
        reply_frame *f = outbox_add(w->out, j.gateway, j.id, j.attempt, ++w->n_runs, 0);
        f->flags = REPLY_CLAIM;
        f->queue_ms = (int)c->waited_ms;
        run_salt(&w->cluster, &j, model_revision(w->m), engine_kv_name(w->g), salt);
        run *r = run_new(&a, &j, w->n_runs, c, w->m, salt);
        if (*j.adapter)
            r->adapter = adapters_hold(w->adapters, j.tenant, j.adapter);
        r->last_ms = clock_mono_ms();
        r->arrived_us = arrived_us;
        runs_add(w, r);
    }
done:
    arena_release(&a);
    buf_release(&sealed);
    return rc;
}

static bool runs_third_attempt(const worker *w) {
    for (const run *r = w->runs; r; r = r->next)
        if (r->lane == LANE_LAST)
            return true;
    return false;
}

// Free places + 1, so that the next one is at hand when a place frees; nothing else waits here.
// Places that lack KV are not free.
static int room(const worker *w) {
    int n = w->step.short_seats < 0 ? w->step.slots - stepper_used(w->runs) : 0;
    n += 1 - stepper_wanted(w->runs);
    return n < 0 ? 0 : n > CLAIM_MOST ? CLAIM_MOST : n;
}

// What the next claim asks for. Who waits for KV here and has no place at all lets nobody by.
static queue_room claim_room(worker *w) {
    int max = room(w), more = count_seats(w);
    if (w->step.short_seats == 0)
        more = 0;
    return (queue_room){.max = max,
                        .more = more > CLAIM_MOST ? CLAIM_MOST : more,
                        .lanes = {max, max, max, !runs_third_attempt(w)}};
}

// Each second, at a bell, and as soon as there is room while more may wait.
static bool claim_is_due(const worker *w, int64_t now) {
    return now >= w->claim_ms || (!w->is_hungry && w->r && room(w) > 0);
}

// When the next claim is due without a bell. What is charged meanwhile changes who is entitled.
static void plan_claim(worker *w, const queue_room *asked, const queue_claims *got) {
    bool is_full = got->n >= asked->max && asked->max > 0;
    bool at_once = is_full || (got->thrown && !got->n);
    if (asked->max > 0)
        w->is_hungry = !is_full;
    if (asked->more > 0)
        w->is_contended = got->tenants > 1;
    bool soon = asked->more > 0 && w->is_contended;
    w->claim_ms = clock_mono_ms() + (at_once ? 0 : soon ? SHARE_MS : CLAIM_MS);
}

static void claim(worker *w) {
    queue_claimed entries[2 * CLAIM_MOST];
    queue_claims got = {.entries = entries};
    queue_room asked = claim_room(w);
    err e = {0};
    redis *r = connection(w);
    int64_t now_us = clock_mono_us();
    if (!r)
        return;
    if (queue_claim(r, w->conf->tier, &asked, w->charges, w->n_charges, &got, &e)) {
        connection_lost(w, &e);
        return;
    }
    w->n_charges = 0;
    metric_add(w->m_claims, got.n);
    if (got.n)
        failpoint("worker.claim.after");
    for (int i = 0; i < got.n; i++)
        if (take_job(w, &entries[i], now_us - entries[i].waited_ms * 1000, &e)) {
            connection_lost(w,
                            &e); // what was popped and not taken: its gateway notices the silence
            return;
        }
    plan_claim(w, &asked, &got);
    if (got.n)
        send_all(w); // CLAIM frames leave at once
    if (got.n)
        failpoint("worker.claim_frame.after");
}

// ---- adapters

static void tell_adapters(void *ctx) {
    worker *w = ctx;
    inbox_put(w->in, &(note){.kind = NOTE_ADAPTERS});
}

static bool lacks_adapter(const run *r, const void *what) {
    (void)what;
    return r->adapter && r->adapter->why.code;
}

// Runs whose adapter came can go on, those whose never will end: the base model's answer would be a
// wrong one.
static void settle_adapters(worker *w) {
    adapters_settle(w->adapters);
    for (const run *r = w->runs; r; r = r->next) {
        if (!lacks_adapter(r, NULL))
            continue;
        log_event(LOG_ERROR, "worker.adapter_failed", "{s:s,s:s,s:s}", "request", r->j.id,
                  "adapter", r->j.adapter, "reason", r->adapter->why.message);
        reply_frame *f = outbox_add(w->out, r->j.gateway, r->j.id, r->j.attempt, r->number, 0);
        f->flags = REPLY_FAILED | REPLY_LAST;
        f->finish = FINISH_ERROR;
    }
    runs_drop(w, lacks_adapter, NULL);
}

static bool any_ready(const worker *w) {
    for (const run *r = w->runs; r; r = r->next)
        if (run_is_ready(r))
            return true;
    return false;
}

// ---- the loop

static void read_notes(worker *w) {
    note n;
    while (inbox_take(w->in, &n)) {
        if (n.kind == NOTE_GATEWAY_GONE)
            drop_gateway(w, n.gateway);
        else if (n.kind == NOTE_ADAPTERS)
            settle_adapters(w);
        else if (runs_drop(w, is_cancelled, &n))
            log_event(LOG_DEBUG, "worker.cancelled", "{s:s}", "request", n.id);
    }
    if (inbox_rang(w->in))
        w->claim_ms = w->r ? 0 : w->claim_ms;
}

static void tell_keeper(worker *w) {
    int n = 0;
    for (const run *r = w->runs; r; r = r->next)
        n++;
    if (n > w->kept_cap) {
        w->kept_cap = n + 16;
        w->kept = realloc(w->kept, (size_t)w->kept_cap * sizeof *w->kept);
        if (!w->kept)
            fatal("no memory for %d runs", n);
    }
    n = 0;
    for (const run *r = w->runs; r; r = r->next) {
        keeper_run *k = &w->kept[n++];
        *k = (keeper_run){.attempt = r->j.attempt,
                          .run = r->number,
                          .gateway = r->j.gateway,
                          .last_ms = r->last_ms};
        memcpy(k->id, r->j.id, sizeof k->id);
    }
    keeper_note(w->keep, w->kept, n);
}

static void measure(worker *w) {
    metric_set(w->m_active, stepper_used(w->runs));
    metric_set(w->m_waiting, count_waiting(w));
    metric_set(w->m_kv_free, engine_kv_tokens_free(w->g));
    engine_stats now = engine_get_stats(w->g);
    metric_add(w->m_hits, now.prefix_hits - w->told.prefix_hits);
    metric_add(w->m_misses, now.prefix_misses - w->told.prefix_misses);
    metric_add(w->m_evicted, now.prefix_evicted - w->told.prefix_evicted);
    metric_set(w->m_cached, now.prefix_pages);
    w->told = now;
    adapters_stats a = adapters_get_stats(w->adapters);
    metric_set(w->m_adapters, a.loaded);
    metric_set(w->m_adapter_bytes, (int64_t)a.bytes);
    metric_add(w->m_adapter_loads, a.loads - w->told_loads);
    w->told_loads = a.loads;
}

// A prompt that kills its worker, for tests: its point is named by its length.
static void fail_by_prompt(const worker *w) {
    char name[32];
    for (const run *r = w->runs; r; r = r->next) {
        snprintf(name, sizeof name, "worker.prompt.%d", r->j.n_prompt);
        failpoint(name);
    }
}

static int step(worker *w, err *e) {
    int64_t begun = clock_mono_us(), made = w->step.n_made;
    int64_t guessed = w->step.n_guessed, right = w->step.n_right;
    int64_t evicted = w->step.n_evicted;
    tell_keeper(w);
    failpoint("worker.step.before");
    if (atomic_load_explicit(&failpoint_armed, memory_order_relaxed))
        fail_by_prompt(w);
    if (stepper_step(&w->step, w->runs, w->out, charge, w, e))
        return -1;
    metric_add(w->m_steps, 1);
    metric_add(w->m_tokens, w->step.n_made - made);
    metric_add(w->m_guessed, w->step.n_guessed - guessed);
    metric_add(w->m_right, w->step.n_right - right);
    metric_add(w->m_preempted, w->step.n_evicted - evicted);
    metric_observe(w->m_step_s, (double)(clock_mono_us() - begun) * 1e-6);
    if (runs_drop(w, is_over, NULL) && w->is_contended && w->r)
        w->claim_ms = 0;
    failpoint("worker.step.after");
    send_all(w);
    failpoint("worker.send.after");
    measure(w);
    return 0;
}

static bool is_any(const run *r, const void *what) {
    (void)r;
    (void)what;
    return true;
}

// Their gateways offer them to another worker, which goes on at the next token.
static void give_back(worker *w, bool (*which)(const run *r, const void *what)) {
    for (const run *r = w->runs; r; r = r->next)
        if (which(r, NULL))
            outbox_add(w->out, r->j.gateway, r->j.id, r->j.attempt, r->number, 0)->flags =
                REPLY_RETURNED;
    runs_drop(w, which, NULL);
    send_all(w);
}

static int serve(worker *w, err *e) {
    int64_t drain_until = 0;
    for (;;) {
        int stops = inbox_stops(w->in);
        int64_t now = clock_mono_ms();
        read_notes(w);
        if (stops && !drain_until) {
            log_event(LOG_INFO, "worker.draining", NULL);
            drain_until = now + w->c->worker_drain_ms;
            give_back(w, is_unbegun);
        }
        if (drain_until && (!w->runs || stops > 1 || now > drain_until)) {
            give_back(w, is_any);
            return 0;
        }
        if (!drain_until && claim_is_due(w, now))
            claim(w);
        if (any_ready(w)) {
            if (step(w, e))
                return -1;
            continue;
        }
        tell_keeper(w);
        send_all(w);
        measure(w);
        int64_t wait = w->claim_ms - clock_mono_ms();
        inbox_wait(w->in, wait < 0 ? 0 : wait > CLAIM_MS ? CLAIM_MS : (int)wait);
    }
}

// ---- start and end

static void load_progress(void *ctx, double fraction) {
    int *last = ctx, percent = (int)(fraction * 100);
    if (percent / 10 != *last / 10)
        log_event(LOG_INFO, "worker.loading", "{s:i}", "percent", percent);
    *last = percent;
}

static int open_engine(worker *w, err *e) {
    int percent = 0, own;
    if (model_open(w->conf->path, w->conf->template_name, &w->m, e))
        return -1;
    own = model_get_shape(w->m)->context;
    int64_t most = w->c->max_context > 0 ? w->c->max_context : own;
    if (w->conf->max_context > 0 && w->conf->max_context < most)
        most = w->conf->max_context;
    engine_config ec = {
        .backend = w->c->cpu,
        .n_threads = (int)w->c->threads,
        .pin = w->c->pin,
        .max_seqs = (int)w->c->slots,
        .max_context = most < own ? (int)most : own,
        .max_rows = (int)(w->c->step_tokens > w->c->slots ? w->c->step_tokens : w->c->slots),
        .kv_bytes = (size_t)w->c->kv_bytes,
        .kv_type = w->c->kv_type,
        .progress = load_progress,
        .progress_ctx = &percent,
    };
    return engine_open(w->m, &ec, &w->g, e);
}

static void open_metrics(worker *w) {
    static const double bounds[] = {0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5};
    w->m_steps = metric_counter("tiergate_worker_steps_total", "", "Passes of the engine.");
    w->m_tokens = metric_counter("tiergate_worker_tokens_total", "", "Tokens sampled.");
    w->m_claims = metric_counter("tiergate_worker_claims_total", "", "Jobs claimed.");
    w->m_active = metric_gauge("tiergate_worker_sequences", "", "Sequences in the engine.");
    w->m_waiting = metric_gauge("tiergate_worker_waiting", "", "Claimed jobs that have not begun.");
    w->m_kv_free =
        metric_gauge("tiergate_worker_kv_free_tokens", "", "Positions free in the KV cache.");
    w->m_hits = metric_counter("tiergate_worker_prefix_hit_pages_total", "",
                               "Pages of 16 prompt tokens found in the prefix cache.");
    w->m_misses = metric_counter("tiergate_worker_prefix_miss_pages_total", "",
                                 "Pages of 16 prompt tokens not found in the prefix cache.");
    w->m_evicted = metric_counter("tiergate_worker_prefix_evicted_pages_total", "",
                                  "Pages the prefix cache gave up for other tokens.");
    w->m_cached =
        metric_gauge("tiergate_worker_prefix_pages", "", "Pages in the prefix cache, used or not.");
    w->m_adapters = metric_gauge("tiergate_worker_adapters", "", "Adapters that are loaded.");
    w->m_adapter_bytes =
        metric_gauge("tiergate_worker_adapter_bytes", "", "Memory of the loaded adapters.");
    w->m_adapter_loads = metric_counter("tiergate_worker_adapter_loads_total", "",
                                        "Adapters read because a request wanted them.");
    w->m_guessed = metric_counter("tiergate_worker_draft_tokens_total", "",
                                  "Tokens guessed from the text so far.");
    w->m_right = metric_counter("tiergate_worker_draft_accepted_tokens_total", "",
                                "Guessed tokens that were the model's own.");
    w->m_preempted = metric_counter("tiergate_worker_preempted_total", "",
                                    "Sequences that gave their place up.");
    w->m_step_s = metric_histogram("tiergate_worker_step_seconds", "", "Time of a pass.", bounds,
                                   sizeof bounds / sizeof *bounds);
}

static int open_all(worker *w, err *e) {
    char dir[CONFIG_TEXT + 16];
    snprintf(dir, sizeof dir, "%s/secrets", w->c->data_dir);
    if (secret_ring_load(dir, "cluster", false, &w->cluster, e))
        return -1;
    if (redis_connect(w->c->redis_address, REDIS_MS, &w->r, e) || queue_prepare(w->r, e))
        return -1;
    return open_engine(w, e);
}

static void tell_ready(const worker *w, int fd, const probe *o) {
    char id[17], url[128], *text;
    snprintf(id, sizeof id, "%016llx", (unsigned long long)w->id);
    snprintf(url, sizeof url, "http://%s:%u", w->c->worker_ops_listen.host, probe_port(o));
    log_event(LOG_INFO, "worker.ready", "{s:s,s:s,s:s,s:s,s:s,s:I}", "worker", id, "model",
              w->conf->name, "backend", engine_backend(w->g), "tier", w->conf->tier, "kv_type",
              engine_kv_name(w->g), "kv_tokens", (json_int_t)engine_kv_tokens_free(w->g));
    if (fd < 0)
        return;
    json_t *ready = json_pack("{s:s,s:s,s:s,s:s}", "worker", id, "model", w->conf->name, "backend",
                              engine_backend(w->g), "ops_url", url);
    text = json_dumps(ready, JSON_COMPACT);
    dprintf(fd, "%s\n", text);
    free(text);
    json_decref(ready);
    close(fd);
}

static void close_all(worker *w) {
    if (w->g) {
        stepper_release(&w->step);
        engine_close(w->g);
    }
    model_close(w->m);
    redis_close(w->r);
    free(w->kept);
    secret_wipe(&w->cluster, sizeof w->cluster);
}

// Not ready while Redis is away: its jobs wait for other workers.
static const char *not_ready(void *ctx) {
    const worker *w = ctx;
    return atomic_load(&w->ready) ? NULL : "Redis does not answer";
}

static void run_threads(worker *w, probe *o, int ready_fd, err *e, int *rc) {
    char dir[CONFIG_TEXT + 16];
    config_adapters_dir(w->c, dir, sizeof dir);
    w->in = inbox_new();
    w->adapters = adapters_new(w->g, dir, (size_t)w->c->adapter_bytes, tell_adapters, w);
    w->out = outbox_new(w->id);
    w->ears = listener_start(w->c->redis_address, w->conf->tier, w->id, w->in);
    w->keep = keeper_start(w->c->redis_address, w->id, w->in);
    atomic_store(&w->ready, true);
    tell_ready(w, ready_fd, o);
    *rc = serve(w, e);
    atomic_store(&w->ready, false);
    keeper_stop(w->keep);
    listener_stop(w->ears);
    runs_drop(w, is_any, NULL);
    adapters_free(w->adapters);
    outbox_free(w->out);
    inbox_free(w->in);
}

int worker_run(const config *c, const char *model_name, int ready_fd, err *e) {
    worker w = {.c = c, .conf = config_find_model(c, model_name), .id = id_random_u64()};
    probe *o = NULL;
    sigset_t set;
    if (!w.conf)
        return err_set(e, ERR_INVALID, "model", "no [model %s] is configured", model_name);
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, NULL); // the listener reads them
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN); // nothing of a worker changes while it runs
    w.last = &w.runs;
    open_metrics(&w);
    int rc = open_all(&w, e) || probe_start(&c->worker_ops_listen, not_ready, &w, &o, e) ? -1 : 0;
    if (!rc) {
        stepper_init(&w.step, w.g, w.m, (int)c->slots, (int)c->step_tokens, (int)c->draft_rows,
                     (int)c->prefill_percent);
        run_threads(&w, o, ready_fd, e, &rc);
        log_event(LOG_INFO, "worker.stopped", NULL);
    }
    probe_stop(o);
    close_all(&w);
    return rc;
}
