// The end of a request: line F, settle, the client, the recorder. The router's loop. All ends go
// through request_close; the client hears "complete" only after a settlement with our own values
// (R7), and the row goes on its way when the client was told.
#include "router/request_internal.h"
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PROGRESS_MOST 256

// ---- values

static int handed_tokens(const request *q) {
    int n = 0;
    for (int i = 0; i < q->spec->n_choices; i++)
        n += q->choices[i].handed;
    return n;
}

// Did a limit end it? One that stopped by itself was not limited, whatever was granted.
static bool is_cut(const request *q) {
    for (int i = 0; q->limited_by[0] && i < q->spec->n_choices; i++)
        if (q->choices[i].finish == FINISH_LENGTH)
            return true;
    return false;
}

static void fill_trace(request *q) {
    usage_row *w = q->row;
    const request_spec *s = q->spec;
    for (int i = 0; i < s->n_choices; i++)
        w->made += q->choices[i].n;
    for (int i = 0; i < s->n_choices; i++)
        w->steps = q->choices[i].n_steps > w->steps ? q->choices[i].n_steps : w->steps;
    w->queue_steps = q->queue_steps;
    w->granted = q->granted;
    w->held_tokens = s->n_prompt + (int64_t)s->n_choices * q->granted;
    w->held_money =
        s->n_prompt * q->meta->price_in + (int64_t)s->n_choices * q->granted * q->meta->price_out;
    if (q->worker)
        snprintf(w->worker, sizeof w->worker, "%016" PRIx64, q->worker);
    if (is_cut(q))
        snprintf(w->limited_by, sizeof w->limited_by, "%s", q->limited_by);
}

static void fill_row(request *q) {
    usage_row *w = q->row;
    fill_trace(q);
    w->at_ms = clock_unix_ms(); // until settle says it
    snprintf(w->outcome, sizeof w->outcome, "%s", request_outcome_name(q->outcome));
    w->attempts = q->n_lost + 1;
    w->prompt = q->is_prefilled ? q->spec->n_prompt : 0;
    w->cached = q->cached < w->prompt ? q->cached : w->prompt;
    w->completion = handed_tokens(q);
    w->money = usage_money(q->meta, w->prompt, w->cached, w->completion);
    w->queue_ms = q->queue_ms;
    w->total_ms = request_age_ms(q);
    w->engine_us = q->engine_us;
    w->first_token_ms = q->first_token_ms;
}

static void fill_end(request *q, const err *e) {
    request_end *end = q->end;
    end->outcome = q->outcome;
    if (e)
        end->error = *e;
    for (int i = 0; i < q->spec->n_choices; i++)
        end->finish[i] = q->choices[i].finish;
    end->prompt_tokens = q->row->prompt;
    end->cached_tokens = q->row->cached;
    end->completion_tokens = q->row->completion;
    end->limited_by = is_cut(q) ? quota_kind_words(q->limited_by) : NULL;
    end->rates = q->rates;
}

// The client must not take it for complete.
static void end_is_failed(request *q, const char *why) {
    if (q->end->outcome != OUTCOME_OK)
        return;
    q->end->outcome = OUTCOME_FAILED;
    err_set(&q->end->error, ERR_DEPENDENCY, NULL, "%s", why);
}

// ---- settling

static void send_settle(request *q);

static bool is_own(const request *q, const quota_settlement *s) {
    const usage_row *w = q->row;
    return s->prompt == w->prompt && s->completion == w->completion && s->money == w->money &&
           strcmp(s->outcome, w->outcome) == 0;
}

static void on_settled(void *ctx, const redis_value *v) {
    request *q = ctx;
    quota_settlement s;
    quota_verdict verdict = quota_read_settlement(v, &s);
    q->is_settling = false;
    if (q->state != CLOSING)
        goto done;
    if (verdict == QUOTA_OK) {
        if (!is_own(q, &s))
            end_is_failed(q, "the request was closed by another gateway");
        usage_row_settle(q->row, &s);
    } else if (verdict == QUOTA_GONE) {
        end_is_failed(q, "the request's record is lost");
    } else {
        if (verdict == QUOTA_NO_CALL)
            lease_load_libraries(q->r);
        goto done; // again with the next tick
    }
    q->is_settled = true;
    failpoint("settle.after"); // H
    request_tell_if_due(q);
done:
    request_unref(q);
}

static void send_settle(request *q) {
    router *r = q->r;
    quota_settlement own = {
        .prompt = q->row->prompt, .completion = q->row->completion, .money = q->row->money};
    q->is_settling = true;
    if (q->meta->idem[0] && q->outcome == OUTCOME_OK && !q->spec->streamed)
        quota_settle_answered_command(q->meta, q->id, &own, q->row->outcome, &r->c);
    else
        quota_settle_command(q->meta, q->id, &own, q->row->outcome, false, &r->c);
    request_ref(q);
    command_send(&r->c, r->calls, on_settled, q);
}

void request_check_closing(router *r, int64_t now_ms) {
    for (request *q = r->lists[CLOSING].first, *next; q; q = next) {
        next = q->next;
        if (q->is_settled)
            continue; // waits for the journal
        if (now_ms >= q->settle_until_ms) {
            q->has_given_up = true;
            request_tell_if_due(q);
        } else if (!q->is_settling && aredis_connected(r->calls)) {
            send_settle(q);
        }
    }
}

// ---- the way into CLOSING

static bool worker_is_done(const request *q) {
    for (int i = 0; i < q->spec->n_choices; i++)
        if (!q->choices[i].is_last)
            return false;
    return !q->must_stop;
}

static void stop_work(request *q) {
    router *r = q->r;
    if (q->has_run && !worker_is_done(q))
        queue_stop_command(q->worker, q->id, q->place.attempt, q->run, &r->c);
    else if (!q->has_run)
        queue_cancel_command(&q->place, &r->c);
    else
        return;
    command_send(&r->c, r->calls, NULL, NULL);
}

void request_close(request *q, request_outcome why, const err *e) {
    router *r = q->r;
    err lost = {0};
    if (request_is_open(q) && why != OUTCOME_OK && q->events.stop)
        q->events.stop(q->ctx); // P3: the row has what the socket took; that may complete it
    if (!request_is_open(q))
        return;
    q->outcome = why;
    log_event(LOG_DEBUG, "request.closing", "{s:s,s:s,s:I}", "id", q->id, "outcome",
              request_outcome_name(why), "us", (long long)clock_mono_us());
    session_leave(q);
    fill_row(q);
    fill_end(q, e);
    stop_work(q);
    loop_timer_remove(r->l, q->deadline);
    q->deadline = NULL;
    if (journal_finish(r->s->j, q->row, &lost)) // its record in Redis is the other copy
        log_event(LOG_WARN, "journal.finish", "{s:s,s:s}", "id", q->id, "error", lost.message);
    failpoint("settle.before"); // G
    buf_release(&q->kept);
    request_move(q, CLOSING);
    q->settle_until_ms = clock_mono_ms() + SETTLE_MS;
    send_settle(q);
}

// ---- telling

static void log_end(const request *q) {
    const usage_row *w = q->row;
    log_event(LOG_INFO, "request.end", "{s:s,s:s,s:s,s:s,s:i,s:i,s:i,s:I,s:I,s:I}", "id", q->id,
              "outcome", request_outcome_name(q->end->outcome), "model", w->meta.model, "endpoint",
              w->meta.endpoint, "attempts", w->attempts, "prompt", w->prompt, "completion",
              w->completion, "queue_ms", (long long)w->queue_ms, "first_token_ms",
              (long long)w->first_token_ms, "total_ms", (long long)w->total_ms);
}

// COMMIT, drop and C are done.
static void on_recorded(router *r, void *arg) {
    recorder_entry *x = arg;
    request *q = r ? request_find(r, x->row.id) : NULL;
    if (q)
        request_forget(q);
    free(x);
}

static void push_row(request *q) {
    recorder_entry *x = q->entry;
    x->is_settled = q->is_settled;
    x->owner = mailbox_ref(q->r->slot->box);
    x->recorded = on_recorded;
    q->entry = NULL;
    q->meta = NULL;
    q->row = NULL;
    recorder_push(q->r->s->recorder, x);
}

static void tell(request *q) {
    router *r = q->r;
    request_ref(q);
    request_move(q, UNRECORDED);
    metric_add(r->s->metrics.outcomes[q->end->outcome], 1);
    log_end(q);
    q->events.end(q->ctx, q->end);
    request_release_work(q);
    push_row(q);
    request_unref(q);
    router_check_drained(r);
}

void request_tell_if_due(request *q) {
    if (q->state != CLOSING || !q->is_durable || !(q->is_settled || q->has_given_up))
        return;
    if (!q->is_settled)
        end_is_failed(q, "the request could not be settled");
    tell(q);
}

static void tell_unaccepted(request *q) {
    router *r = q->r;
    request_ref(q);
    request_forget(q);
    q->events.end(q->ctx, q->end);
    request_unref(q);
    router_check_drained(r);
}

void request_refuse(request *q, request_outcome why, const err *e) {
    q->outcome = why;
    fill_end(q, e);
    metric_add(q->r->s->metrics.refused, 1);
    tell_unaccepted(q);
}

void request_replay(request *q, const char *answer, size_t n) {
    fill_end(q, NULL);
    q->end->replay = answer;
    q->end->n_replay = n;
    metric_add(q->r->s->metrics.replayed, 1);
    tell_unaccepted(q);
}

void router_store_answer(router *r, const char *tenant, const char *idem, const char *id,
                         const void *p, size_t n) {
    quota_answer_command(tenant, idem, id, p, n <= REQUEST_ANSWER_BYTES ? n : 0, &r->c);
    command_send(&r->c, r->calls, NULL, NULL);
}

void router_close_requests(router *r, const err *e) {
    for (int state = QUEUED; state <= RUNNING; state++)
        while (r->lists[state].first)
            request_close(r->lists[state].first, OUTCOME_GATEWAY_LOST, e);
    for (request *q = r->lists[HOLDING].first; q; q = q->next)
        q->outcome = OUTCOME_GATEWAY_LOST; // hold's answer ends it
}

static void say_leaving(err *e) {
    err_set(e, ERR_OVERLOADED, NULL, "this gateway is going out of service");
}

void router_end_requests(router *r) {
    err e = {0};
    say_leaving(&e);
    router_close_requests(r, &e);
}

void request_close_now(request *q) {
    err e = {0};
    say_leaving(&e);
    if (q->state == HOLDING) {
        request_refuse(q, OUTCOME_FAILED, &e);
        return;
    }
    request_close(q, OUTCOME_FAILED, &e);
    end_is_failed(q, e.message);
    tell(q);
}

// ---- progress: what a stranger would find in the record

static int by_tenant(const void *a, const void *b) {
    const request *x = *(request *const *)a, *y = *(request *const *)b;
    return strcmp(x->meta->tenant, y->meta->tenant);
}

static size_t collect_changed(router *r, request **out) {
    size_t n = 0;
    for (request *q = r->lists[RUNNING].first; q; q = q->next)
        if (handed_tokens(q) != q->reported || q->is_prefilled != q->reported_prefilled)
            out[n++] = q;
    return n;
}

static size_t report_some(router *r, request **from, size_t n) {
    quota_sent sent[PROGRESS_MOST];
    size_t k = 0;
    for (; k < n && k < PROGRESS_MOST && by_tenant(&from[k], &from[0]) == 0; k++) {
        request *q = from[k];
        q->reported = handed_tokens(q);
        q->reported_prefilled = q->is_prefilled;
        sent[k] = (quota_sent){q->id, q->reported, q->is_prefilled};
    }
    quota_progress_command(from[0]->meta->tenant, sent, (int)k, &r->c);
    command_send(&r->c, r->calls, NULL, NULL);
    return k;
}

void request_report(request *q) { report_some(q->r, &q, 1); }

void request_report_progress(router *r) {
    if (!r->lists[RUNNING].n || !aredis_connected(r->calls))
        return;
    request **changed = malloc((size_t)r->lists[RUNNING].n * sizeof *changed);
    if (!changed)
        fatal("out of memory for a report of progress");
    size_t n = collect_changed(r, changed);
    if (n)
        qsort(changed, n, sizeof *changed, by_tenant);
    for (size_t at = 0; at < n;)
        at += report_some(r, changed + at, n - at);
    free(changed);
}
