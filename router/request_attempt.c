// Attempts of a request: its sealed job and its entry in the queue, and the next attempt when a
// worker fell silent (R2, R3). The router's loop. An enqueue whose answer was lost is never
// repeated: the queue is asked whether it knows the entry.
#include "router/request_internal.h"
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include <stdlib.h>
#include <string.h>

#define PAYLOAD_GRACE_MS 60000
#define RETRY_UNKNOWN_MS 5000 // nobody claims: say so much
#define POISON_MS 600000      // so long a body that killed its workers is refused
#define FULL_MOST_MS 1000     // so long a full queue is refused without asking
#define SCORES_MOST 256       // entries that one call asks the queue for

// ---- tenants whose queue was full a moment ago

bool router_is_full(router *r, const request_spec *spec, err *e) {
    int64_t now_ms = clock_mono_ms();
    for (int i = 0; i < FULL_SLOTS; i++) {
        const full_slot *f = &r->fulls[i];
        if (f->until_ms > now_ms && strcmp(f->tenant, spec->tenant) == 0 &&
            strcmp(f->tier, spec->model->config->tier) == 0) {
            err_set(e, ERR_OVERLOADED, NULL, "the queue is full");
            if (e)
                e->retry_ms = (int)f->retry_ms;
            return true;
        }
    }
    return false;
}

static void note_full(request *q, int64_t retry_ms) {
    router *r = q->r;
    full_slot *f = &r->fulls[r->next_full++ % FULL_SLOTS];
    memcpy(f->tenant, q->meta->tenant, sizeof f->tenant);
    memcpy(f->tier, q->meta->tier, sizeof f->tier);
    f->retry_ms = retry_ms;
    f->until_ms = clock_mono_ms() + (retry_ms < FULL_MOST_MS ? retry_ms : FULL_MOST_MS);
}

// ---- enqueue

typedef struct attempt_call { // a call under way speaks for one attempt
    request *q;
    int attempt;
} attempt_call;

static attempt_call *note(request *q) {
    attempt_call *x = malloc(sizeof *x);
    if (!x)
        fatal("out of memory for a request");
    request_ref(q);
    *x = (attempt_call){q, q->place.attempt};
    return x;
}

// Does the answer still concern the request?
static request *current(const attempt_call *x) {
    request *q = x->q;
    return q->state == QUEUED && q->place.attempt == x->attempt && !q->has_run ? q : NULL;
}

static void forget(attempt_call *x) {
    request_unref(x->q);
    free(x);
}

static void fill_job(const request *q, job *j) {
    const request_spec *s = q->spec;
    int64_t left = s->deadline_ms - request_age_ms(q);
    *j = (job){.attempt = q->place.attempt,
               .gateway = q->r->gateway,
               .ms_left = left > 0 ? left : 0,
               .prompt = s->prompt,
               .n_prompt = s->n_prompt,
               .n_choices = s->n_choices,
               .max_tokens = q->asked,
               .sampling = s->sampling,
               .n_stops = s->n_stops,
               .ignore_end = s->ignore_end,
               .fim = s->fim,
               .echo_logprobs = s->echo_logprobs};
    memcpy(j->id, q->id, sizeof j->id);
    memcpy(j->tenant, q->meta->tenant, sizeof j->tenant);
    memcpy(j->model, q->meta->model, sizeof j->model);
    memcpy(j->adapter, q->meta->adapter, sizeof j->adapter);
    memcpy(j->stops, s->stops, sizeof j->stops);
    for (int i = 0; i < s->n_choices; i++) {
        j->so_far[i].ids = q->choices[i].ids;
        j->so_far[i].n = q->choices[i].n;
        j->so_far[i].finished = q->choices[i].is_last;
    }
}

static void send_payload(request *q, const buf *sealed) {
    router *r = q->r;
    char key[160];
    int64_t left = q->spec->deadline_ms - request_age_ms(q);
    queue_key_payload(key, sizeof key, q->place.tier, q->id, q->place.attempt);
    command_text(&r->c, "SET");
    command_text(&r->c, key);
    command_bytes(&r->c, sealed->data, sealed->len);
    command_text(&r->c, "PX");
    command_int(&r->c, (left > 0 ? left : 0) + PAYLOAD_GRACE_MS);
    command_send(&r->c, r->calls, NULL, NULL);
}

static void close_full(request *q, const redis_value *v) {
    int64_t retry_ms = redis_value_int(redis_value_at(v, 3));
    err e = {0};
    retry_ms = retry_ms < 0 ? RETRY_UNKNOWN_MS : retry_ms < 1 ? 1 : retry_ms;
    err_set(&e, ERR_OVERLOADED, NULL, "the queue of this %s is full",
            redis_value_is(redis_value_at(v, 1), "tier") ? "model" : "tenant");
    e.retry_ms = (int)retry_ms;
    note_full(q, retry_ms);
    request_close(q, OUTCOME_OVERLOADED, &e);
}

static void on_enqueued(void *ctx, const redis_value *v) {
    attempt_call *x = ctx;
    request *q = current(x);
    err e = {0};
    if (q && redis_value_is(redis_value_at(v, 0), "FULL")) {
        close_full(q, v);
    } else if (q && v && redis_value_kind(v) == REDIS_ERROR) { // not executed
        lease_load_libraries(q->r);
        log_event(LOG_WARN, "queue.refused", "{s:s,s:s}", "id", q->id, "error",
                  redis_value_str(v, NULL));
        err_set(&e, ERR_DEPENDENCY, NULL, "the queue cannot take the request");
        e.retry_ms = 1000;
        request_close(q, OUTCOME_FAILED, &e);
    }
    forget(x);
}

void request_enqueue(request *q, const queue_place *old) {
    router *r = q->r;
    job j;
    buf sealed = {0};
    err e = {0};
    q->asked = q->most;
    fill_job(q, &j);
    if (job_seal(&j, &r->s->cluster, &sealed, &e)) {
        request_close(q, OUTCOME_FAILED, &e);
        goto done;
    }
    request_report(q); // accepted: whatever a worker may run leaves a row
    send_payload(q, &sealed);
    queue_enqueue_command(&q->place, old, request_age_ms(q), r->s->c->queue_per_tenant,
                          r->s->c->queue_per_tier, &r->c);
    command_send(&r->c, r->calls, on_enqueued, note(q));
    failpoint("enqueue.after"); // C
done:
    buf_release(&sealed);
}

// ---- does the queue still know it?

typedef struct scores_call { // entries that one call asks for
    int n;
    attempt_call *of[SCORES_MOST];
} scores_call;

static void take_score(attempt_call *x, const redis_value *v) {
    request *q = current(x);
    if (q && redis_value_kind(v) == REDIS_NIL) {
        if (!q->left_queue_ms)
            q->left_queue_ms = clock_mono_ms();
    } else if (q && redis_value_kind(v) == REDIS_STRING) {
        q->left_queue_ms = 0;
    }
    forget(x);
}

static void on_scores(void *ctx, const redis_value *v) {
    scores_call *x = ctx;
    for (int i = 0; i < x->n; i++)
        take_score(x->of[i], redis_value_at(v, (size_t)i));
    free(x);
}

// Asks for q and those behind it that wait in the same queue. -> the next one
static request *check_some(request *q) {
    const queue_place *places[SCORES_MOST];
    router *r = q->r;
    scores_call *x = calloc(1, sizeof *x);
    if (!x)
        fatal("out of memory for a check of the queue");
    for (; q && x->n < SCORES_MOST; q = q->next) {
        if (x->n && !queue_is_same(&q->place, places[0]))
            break;
        places[x->n] = &q->place;
        x->of[x->n++] = note(q);
    }
    queue_scores_command(places, x->n, &r->c);
    command_send(&r->c, r->calls, on_scores, x);
    return q;
}

void request_check_waiting(router *r) {
    if (!aredis_connected(r->calls))
        return;
    for (request *q = r->lists[QUEUED].first; q;)
        q = check_some(q);
}

// ---- the next attempt

static void close_dead(request *q) {
    err e = {0};
    bool has_output = false;
    for (int i = 0; i < q->spec->n_choices; i++)
        has_output |= q->choices[i].handed > 0;
    if (has_output)
        err_set(&e, ERR_INTERNAL, NULL, "the workers of this request were lost %d times",
                ATTEMPTS_MOST);
    else
        err_set(&e, ERR_POISON, NULL, "%d workers were lost with this request", ATTEMPTS_MOST);
    if (!has_output && q->spec->body_hash[0]) {
        quota_poison_command(q->meta->tenant, q->spec->body_hash, POISON_MS, &q->r->c);
        command_send(&q->r->c, q->r->calls, NULL, NULL);
    }
    request_close(q, OUTCOME_DEAD_LETTER, &e);
}

static void drop_attempt(request *q) {
    router *r = q->r;
    char key[160];
    if (q->has_run) {
        queue_stop_command(q->worker, q->id, q->place.attempt, q->run, &r->c);
        command_send(&r->c, r->calls, NULL, NULL);
    }
    queue_key_payload(key, sizeof key, q->place.tier, q->id, q->place.attempt);
    command_words(&r->c, 2, (const char *const[]){"UNLINK", key});
    command_send(&r->c, r->calls, NULL, NULL);
    buf_clear(&q->kept); // of the old run; the next one makes them again
    q->has_run = false;
    q->left_queue_ms = 0;
}

static bool has_begun(const request *q) {
    for (int i = 0; i < q->spec->n_choices; i++)
        if (q->choices[i].n > 0)
            return q->spec->streamed;
    return false;
}

static void leave_run(request *q) {
    drop_attempt(q);
    if (!q->resume_until_ms && has_begun(q)) // somebody reads and sees nothing come
        q->resume_until_ms = clock_mono_ms() + q->r->s->c->resume_ms;
    if (q->state == RUNNING)
        request_move(q, QUEUED);
}

// Always with a number of its own, so that no frame of an earlier run passes the fence.
static void enqueue_next(request *q) {
    queue_place old = q->place;
    leave_run(q);
    q->place.attempt++;
    if (q->n_lost == ATTEMPTS_MOST - 1)
        q->place.lane = LANE_LAST;
    request_enqueue(q, &old);
}

void request_redeliver(request *q, const char *why) {
    log_event(LOG_WARN, "request.redeliver", "{s:s,s:s,s:i}", "id", q->id, "why", why, "attempt",
              q->place.attempt);
    metric_add(q->r->s->metrics.redelivered, 1);
    if (q->n_lost == ATTEMPTS_MOST - 1) {
        close_dead(q);
        return;
    }
    q->n_lost++;
    enqueue_next(q);
}

void request_give_back(request *q) {
    if (++q->n_returned > RETURNS_MOST) { // whoever takes it goes: there must be an end
        request_redeliver(q, "given back too often");
        return;
    }
    log_event(LOG_INFO, "request.returned", "{s:s,s:i}", "id", q->id, "attempt", q->place.attempt);
    enqueue_next(q);
}
