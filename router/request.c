// Requests of one router: the table, the lists and the calls of the API. Everything runs on the
// router's loop; other threads reach it by its mailbox only. What happens inside a state is told in
// request_hold.c, request_attempt.c, request_run.c and request_close.c.
//
// States are lists; who enters and who leaves, always on the loop's thread:
//
//   submit -> HOLDING --- hold OK, line A ---> QUEUED --- its CLAIM ---> RUNNING
//                |  ^                            |  ^                      |  |
//                |  +- MISS: load, again         |  +-- silence, gap, -----+  |
//                |                               |      REFUSED               |
//                | NO, IDEM, cancelled:          | FULL, cancel,   LAST handed, extend refused,
//                | told, no row                  | deadline        cancel, deadline, revoked
//                v                               v                            v
//               gone <--- COMMIT, drop, C --- UNRECORDED <--- settled, --- CLOSING
//                                                             told
//
//   list        entered by                              left by
//   HOLDING     router_submit, before hold is sent      hold's answer
//   QUEUED      line A appended, enqueue sent; silence  CLAIM; FULL, cancel, deadline, 3rd silence,
//                                                       no CLAIM for a begun stream in resume_ms
//   RUNNING     CLAIM of the current attempt            the last token handed; any end; silence
//   CLOSING     line F appended, settle sent            settle's answer, or 2 s without one
//   UNRECORDED  the client was told, row pushed         the recorder's letter after COMMIT
#include "router/request_internal.h"
#include "base/clock.h"
#include "base/memory.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TICK_MS 250
#define DEADLINE_MOST_MS 86400000

static const char *const outcome_names[] = {
    [OUTCOME_OK] = "ok",
    [OUTCOME_CLIENT_GONE] = "client_gone",
    [OUTCOME_DEADLINE] = "deadline",
    [OUTCOME_OVERLOADED] = "overloaded",
    [OUTCOME_WORKER_LOST] = "worker_lost",
    [OUTCOME_DEAD_LETTER] = "dead_letter",
    [OUTCOME_REVOKED] = "revoked",
    [OUTCOME_SUPERSEDED] = "superseded",
    [OUTCOME_GATEWAY_LOST] = "gateway_lost",
    [OUTCOME_FAILED] = "failed",
    [OUTCOME_UNKNOWN] = "unknown",
};

const char *request_outcome_name(request_outcome o) { return outcome_names[o]; }

// ---- table and lists

static size_t bucket(const char *id) { // the tail of a UUIDv7 is random
    uint64_t h = 1469598103934665603u;
    for (const char *p = id + 24; *p; p++)
        h = (h ^ (unsigned char)*p) * 1099511628211u;
    return (size_t)(h ^ h >> 29) & (sizeof((router *)0)->table / sizeof(request *) - 1);
}

request *request_find(router *r, const char *id) {
    request *q = r->table[bucket(id)];
    while (q && strcmp(q->id, id) != 0)
        q = q->chain;
    return q;
}

static void list_add(request_list *l, request *q) {
    q->prev = l->last;
    q->next = NULL;
    if (l->last)
        l->last->next = q;
    else
        l->first = q;
    l->last = q;
    l->n++;
}

static void list_remove(request_list *l, request *q) {
    if (q->prev)
        q->prev->next = q->next;
    else
        l->first = q->next;
    if (q->next)
        q->next->prev = q->prev;
    else
        l->last = q->prev;
    l->n--;
}

void request_move(request *q, request_state to) {
    router *r = q->r;
    list_remove(&r->lists[q->state], q);
    metric_add(r->s->metrics.states[q->state], -1);
    q->state = to;
    list_add(&r->lists[to], q);
    metric_add(r->s->metrics.states[to], 1);
}

void request_ref(request *q) { q->refs++; }

// What only the run needs goes when the client was told.
void request_release_work(request *q) {
    for (int i = 0; q->choices && i < q->spec->n_choices; i++)
        free(q->choices[i].ids);
    q->choices = NULL;
    q->spec = NULL;
    q->limits = NULL;
    q->end = NULL;
    buf_release(&q->kept);
    arena_release(&q->a);
}

void request_unref(request *q) {
    if (--q->refs)
        return;
    request_release_work(q);
    mailbox_unref(q->entry ? q->entry->owner : NULL);
    free(q->entry);
    free(q);
}

void request_forget(request *q) {
    router *r = q->r;
    request **at = &r->table[bucket(q->id)];
    while (*at != q)
        at = &(*at)->chain;
    *at = q->chain;
    session_leave(q);
    list_remove(&r->lists[q->state], q);
    metric_add(r->s->metrics.states[q->state], -1);
    loop_timer_remove(r->l, q->deadline);
    q->deadline = NULL;
    request_unref(q);
}

bool request_is_open(const request *q) { return q->state == QUEUED || q->state == RUNNING; }

int64_t request_age_ms(const request *q) { return (clock_mono_us() - q->accepted_us) / 1000; }

// ---- submitting

static void *dup_or_null(arena *a, const void *p, size_t n) {
    return n ? arena_dup(a, p, n) : NULL;
}

static void copy_spec(request *q, const request_spec *spec) {
    request_spec *s = q->spec = arena_dup(&q->a, spec, sizeof *spec);
    s->prompt = dup_or_null(&q->a, spec->prompt, (size_t)spec->n_prompt * sizeof *spec->prompt);
    for (int i = 0; i < spec->n_stops; i++)
        s->stops[i].text = dup_or_null(&q->a, spec->stops[i].text, spec->stops[i].n);
    if (spec->session)
        s->session = arena_strdup(&q->a, spec->session);
    if (!(s->weight > 0))
        s->weight = 1;
    if (s->deadline_ms <= 0)
        s->deadline_ms = q->r->s->c->request_ms;
    if (s->deadline_ms > DEADLINE_MOST_MS)
        s->deadline_ms = DEADLINE_MOST_MS;
}

static void fill_meta(request *q) {
    const request_spec *s = q->spec;
    const config_model *m = s->model->config;
    usage_meta *meta = q->meta;
    memcpy(meta->tenant, s->tenant, sizeof meta->tenant);
    memcpy(meta->user, s->user, sizeof meta->user);
    memcpy(meta->key, s->key, sizeof meta->key);
    meta->accepted_ms = clock_unix_ms();
    snprintf(meta->endpoint, sizeof meta->endpoint, "%s", s->endpoint);
    snprintf(meta->task, sizeof meta->task, "%s", s->task);
    snprintf(meta->model, sizeof meta->model, "%s", m->name);
    snprintf(meta->adapter, sizeof meta->adapter, "%s", s->adapter);
    snprintf(meta->tier, sizeof meta->tier, "%s", m->tier);
    memcpy(meta->idem, s->idem, sizeof meta->idem);
    snprintf(meta->route, sizeof meta->route, "%s", s->route ? s->route : "");
    meta->price_in = m->price_in;
    meta->price_cached = m->price_cached;
    meta->price_out = m->price_out;
}

static void on_deadline(void *ctx) {
    request *q = ctx;
    q->deadline = NULL;
    err e = {0};
    err_set(&e, ERR_DEADLINE, NULL, "the request was not finished within %lld ms",
            (long long)q->spec->deadline_ms);
    if (q->state == HOLDING)
        q->outcome = OUTCOME_DEADLINE; // hold's answer ends it
    else
        request_close(q, OUTCOME_DEADLINE, &e);
}

static int check_spec(const request_spec *s, err *e) {
    if (s->n_prompt < 1)
        return err_set(e, ERR_INVALID, "prompt", "the prompt has no tokens");
    if (s->n_choices < 1 || s->n_choices > JOB_CHOICES)
        return err_set(e, ERR_INVALID, "n", "n must be between 1 and %d", JOB_CHOICES);
    if (s->n_prompt >= s->model->max_context)
        return err_set(e, ERR_CONTEXT_LENGTH, "prompt",
                       "the prompt has %d tokens, the model takes %d with its answer", s->n_prompt,
                       s->model->max_context);
    return 0;
}

static int check_router(router *r, const request_spec *spec, err *e) {
    const char *trouble = journal_trouble(r->s->j);
    int rc = 0;
    if (r->is_draining || r->is_closing)
        rc = err_set(e, ERR_OVERLOADED, NULL, "this gateway is going out of service");
    else if (memory_is_short())
        rc = err_set(e, ERR_OVERLOADED, NULL, "this gateway has no memory for more requests");
    else if (!aredis_connected(r->calls) || !r->has_lease || !lease_is_trusted(r))
        rc = err_set(e, ERR_DEPENDENCY, NULL, "the queue cannot be reached");
    else if (trouble)
        rc = err_set(e, ERR_DEPENDENCY, NULL, "%s", trouble);
    else
        return router_is_full(r, spec, e) ? -1 : 0;
    if (e)
        e->retry_ms = 1000;
    return rc;
}

static request *make(router *r, const request_spec *spec, const request_events *events, void *ctx) {
    request *q = calloc(1, sizeof *q);
    recorder_entry *entry = calloc(1, sizeof *entry);
    if (!q || !entry)
        fatal("out of memory for a request");
    q->r = r;
    q->entry = entry;
    q->row = &entry->row;
    q->meta = &entry->row.meta;
    q->refs = 1;
    q->events = *events;
    q->ctx = ctx;
    q->outcome = OUTCOME_OK;
    q->accepted_us = clock_mono_us();
    q->first_token_ms = -1;
    if (spec->id[0])
        memcpy(q->id, spec->id, sizeof q->id);
    else
        id_uuid7(q->id);
    memcpy(q->row->id, q->id, sizeof q->id);
    copy_spec(q, spec);
    fill_meta(q);
    q->rates = RATES_NONE;
    snprintf(q->row->gateway, sizeof q->row->gateway, "%016" PRIx64, r->gateway);
    q->limits = arena_alloc(&q->a, sizeof *q->limits);
    limits_apply(r->s->limits, q->meta, q->limits);
    q->end = arena_alloc(&q->a, sizeof *q->end);
    q->choices = arena_alloc(&q->a, (size_t)spec->n_choices * sizeof *q->choices);
    q->place = (queue_place){.tier = q->meta->tier,
                             .tenant = q->meta->tenant,
                             .id = q->id,
                             .lane = spec->lane,
                             .cost = spec->n_prompt,
                             .weight = q->spec->weight,
                             .allow_ms = q->spec->deadline_ms};
    return q;
}

int router_submit(router *r, const request_spec *spec, const request_events *events, void *ctx,
                  request **out, err *e) {
    if (check_spec(spec, e) || check_router(r, spec, e)) {
        metric_add(r->s->metrics.refused, 1);
        return -1;
    }
    request *q = make(r, spec, events, ctx);
    size_t at = bucket(q->id);
    q->chain = r->table[at];
    r->table[at] = q;
    q->state = HOLDING;
    list_add(&r->lists[HOLDING], q);
    metric_add(r->s->metrics.states[HOLDING], 1);
    q->deadline = loop_timer_add(r->l, (int)q->spec->deadline_ms, false, on_deadline, q);
    session_enter(q);
    request_hold(q);
    *out = q;
    return 0;
}

const char *request_id(const request *q) { return q->id; }

int request_granted(const request *q) { return q->granted; }

bool request_is_accepted(const request *q) { return q->is_durable; }

rates request_rates(const request *q) { return q->rates; }

void request_handed(request *q, int choice, int total) {
    if (choice < 0 || choice >= q->spec->n_choices || !request_is_open(q))
        return;
    request_choice *c = &q->choices[choice];
    int most = total < c->n ? total : c->n;
    if (most > c->handed)
        c->handed = most;
    request_finish_if_complete(q);
}

void request_describe(request_outcome why, err *e) {
    switch (why) {
    case OUTCOME_CLIENT_GONE:
        err_set(e, ERR_CANCELLED, NULL, "the client went away");
        break;
    case OUTCOME_REVOKED:
        err_set(e, ERR_KEY, NULL, "the key was revoked");
        break;
    case OUTCOME_SUPERSEDED:
        err_set(e, ERR_SUPERSEDED, NULL, "a newer request of its session took its place");
        break;
    case OUTCOME_DEADLINE:
        err_set(e, ERR_DEADLINE, NULL, "the request took too long");
        break;
    default:
        err_set(e, ERR_DEPENDENCY, NULL, "the gateway gave the request up");
    }
}

void request_cancel(request *q, request_outcome why) {
    err e = {0};
    request_describe(why, &e);
    if (q->state == HOLDING)
        q->outcome = why; // hold's answer ends it
    else
        request_close(q, why, &e);
}

void router_cancel_key(router *r, const char *key) {
    static const request_state states[] = {HOLDING, QUEUED, RUNNING};
    for (size_t i = 0; i < sizeof states / sizeof *states; i++)
        for (request *q = r->lists[states[i]].first, *next; q; q = next) {
            next = q->next;
            if (strcmp(q->meta->key, key) == 0)
                request_cancel(q, OUTCOME_REVOKED);
            if (next && next->state != states[i])
                next = r->lists[states[i]].first; // q's last bytes completed it: another list
        }
}

// ---- the router

static void on_tick(void *ctx) {
    router *r = ctx;
    int64_t now_ms = clock_mono_ms();
    lease_check(r);
    lease_trim(r); // often: the cost of a call is the number of messages that go
    request_check_silence(r, now_ms);
    request_check_closing(r, now_ms);
    if (++r->n_ticks % (1000 / TICK_MS))
        return;
    lease_renew(r);
    request_check_waiting(r);
    request_report_progress(r);
    router_release_holds(r);
}

int router_open(router_shared *s, loop *l, router **out, err *e) {
    router *r = calloc(1, sizeof *r);
    if (!r)
        return err_set(e, ERR_INTERNAL, NULL, "out of memory");
    r->s = s;
    r->l = l;
    r->slot = calloc(1, sizeof *r->slot);
    if (!r->slot)
        fatal("out of memory for a router");
    r->slot->box = mailbox_new(l, r);
    r->watch = journal_watch_new(s->j, r->slot->box, router_take_durable);
    pthread_mutex_lock(&s->mutex);
    r->slot->next = s->slots;
    s->slots = r->slot;
    pthread_mutex_unlock(&s->mutex);
    lease_open(r);
    r->tick = loop_timer_add(l, TICK_MS, true, on_tick, r);
    *out = r;
    return 0;
}

static void leave_shared(router *r) {
    pthread_mutex_lock(&r->s->mutex);
    for (router_slot **at = &r->s->slots; *at; at = &(*at)->next)
        if (*at == r->slot) {
            *at = r->slot->next;
            break;
        }
    pthread_mutex_unlock(&r->s->mutex);
}

void router_close(router *r) {
    if (!r)
        return;
    r->is_closing = true;
    loop_timer_remove(r->l, r->tick);
    for (int state = HOLDING; state <= CLOSING; state++)
        while (r->lists[state].first)
            request_close_now(r->lists[state].first);
    lease_close(r); // calls under way let go of their requests
    while (r->lists[UNRECORDED].first)
        request_forget(r->lists[UNRECORDED].first);
    router_let_go_undurable(r);
    router_let_go_unreleased(r);
    leave_shared(r);
    journal_watch_free(r->s->j, r->watch);
    mailbox_close(r->slot->box);
    free(r->slot);
    command_release(&r->c);
    arena_release(&r->scratch);
    free(r);
}

void router_check_drained(router *r) {
    bool is_open =
        r->lists[HOLDING].n || r->lists[QUEUED].n || r->lists[RUNNING].n || r->lists[CLOSING].n;
    if (!r->drained || is_open)
        return;
    void (*drained)(void *ctx) = r->drained;
    r->drained = NULL;
    drained(r->drained_ctx);
}

static void check_drained_later(router *r, void *arg) {
    (void)arg;
    if (r)
        router_check_drained(r);
}

void router_drain(router *r, void (*drained)(void *ctx), void *ctx) {
    r->is_draining = true;
    atomic_store(&r->slot->is_draining, true);
    r->drained = drained;
    r->drained_ctx = ctx;
    mailbox_post(r->slot->box, check_drained_later, NULL);
}
