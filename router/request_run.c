// Frames: the fence (R1), their order, the events of the caller, silence (R2). The router's loop.
// Attempt and run are compared here and nowhere else; a frame that does not belong is dropped and
// its worker told to stop, once a second per run.
#include "router/request_internal.h"
#include "base/clock.h"
#include "base/cursor.h"
#include "base/failpoint.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FENCE_MS 1000

// ---- the fence

static void tell_to_stop(router *r, uint64_t worker, const reply_frame *f) {
    uint64_t mixed = (f->run + worker) * 0x9e3779b97f4a7c15u;
    fence_slot *slot = &r->fences[(mixed >> 32) % FENCE_SLOTS];
    int64_t now_ms = clock_mono_ms();
    metric_add(r->s->metrics.fenced, 1);
    if (slot->run == f->run && slot->worker == worker && now_ms - slot->told_ms < FENCE_MS)
        return;
    *slot = (fence_slot){worker, f->run, now_ms};
    queue_stop_command(worker, f->id, f->attempt, f->run, &r->c);
    command_send(&r->c, r->calls, NULL, NULL);
}

// The first CLAIM of the current attempt sets the run, which is a number of its worker; a refusal
// may come instead of it.
static bool is_returned(const reply_frame *f) {
    return (f->flags & REPLY_RETURNED) == REPLY_RETURNED;
}

static bool passes(const request *q, uint64_t worker, const reply_frame *f) {
    if (!request_is_open(q) || f->attempt != q->place.attempt || f->choice >= q->spec->n_choices)
        return false;
    if (!q->has_run)
        return (f->flags & (REPLY_CLAIM | REPLY_REFUSED)) != 0 && !is_returned(f);
    return f->run == q->run && worker == q->worker;
}

// ---- what a frame brings

static void take_claim(request *q, uint64_t worker, const reply_frame *f) {
    failpoint("claim_frame.before"); // D
    q->has_run = true;
    q->run = f->run;
    q->worker = worker;
    q->left_queue_ms = 0;
    q->resume_until_ms = 0;
    if (!q->n_lost && !q->is_begun)
        q->queue_ms = f->queue_ms;
    request_move(q, RUNNING);
}

static void take_begun(request *q, const reply_frame *f) {
    if (q->n_lost || q->is_begun)
        return;
    q->is_begun = true;
    q->queue_ms = f->queue_ms;
    q->queue_steps = f->queue_steps;
    metric_observe(q->r->s->metrics.queue_seconds, f->queue_ms / 1000.0);
    metric_observe(q->r->s->metrics.queue_steps, f->queue_steps);
}

static void append_ids(request_choice *c, const reply_frame *f) {
    if (c->n + f->n_tokens > c->cap) {
        c->cap = (c->n + f->n_tokens) * 2;
        c->ids = realloc(c->ids, (size_t)c->cap * sizeof *c->ids);
        if (!c->ids)
            fatal("out of memory for a request's tokens");
    }
    for (int i = 0; i < f->n_tokens; i++)
        c->ids[c->n++] = f->tokens[i].id;
    c->n_steps += f->n_tokens > 0 && !(f->flags & REPLY_AGAIN);
}

static void end_choice(request_choice *c, reply_finish why) {
    c->is_last = true;
    c->finish = why;
}

// Tokens of the prompt, for echo. A later attempt sends them again: what was passed on is skipped.
static void take_prompt(request *q, const reply_frame *f) {
    request_choice *c = &q->choices[f->choice];
    if (f->from > c->n_prompt_frames) {
        request_redeliver(q, "gap");
    } else if (f->from == c->n_prompt_frames) {
        c->n_prompt_frames += f->n_tokens;
        q->events.frame(q->ctx, f);
    }
}

static void take_tokens(request *q, const reply_frame *f) {
    request_choice *c = &q->choices[f->choice];
    if (c->is_last || f->from < c->n) // had it; never repeated (P6)
        return;
    if (f->from > c->n) {
        request_redeliver(q, "gap");
        return;
    }
    if (c->n + f->n_tokens > q->granted) { // no room left and none to be had
        end_choice(c, FINISH_LENGTH);
        q->must_stop = true;
        return;
    }
    if (f->n_tokens && q->first_token_ms < 0) {
        q->first_token_ms = request_age_ms(q);
        metric_observe(q->r->s->metrics.first_token_seconds, (double)q->first_token_ms / 1000.0);
    }
    failpoint(c->n ? "frame.middle" : "frame.first"); // F, E
    append_ids(c, f);
    if (f->flags & REPLY_LAST)
        end_choice(c, f->finish);
    else if (c->n == q->granted && q->granted == q->most && q->most < q->asked) {
        end_choice(c, FINISH_LENGTH); // the worker would go on
        q->must_stop = true;
    }
    if (f->n_tokens || f->n_text || f->flags & REPLY_LAST)
        q->events.frame(q->ctx, f);
}

static int furthest(const request *q) {
    int n = 0;
    for (int i = 0; i < q->spec->n_choices; i++)
        n = q->choices[i].n > n ? q->choices[i].n : n;
    return n;
}

static bool is_all_last(const request *q) {
    for (int i = 0; i < q->spec->n_choices; i++)
        if (!q->choices[i].is_last)
            return false;
    return true;
}

static void take_frame(request *q, const reply_frame *f) {
    err e = {0};
    q->engine_us += f->engine_us;
    if (f->flags & REPLY_BEGUN)
        take_begun(q, f);
    if (f->flags & REPLY_PREFILLED) {
        q->is_prefilled = true;
        q->cached = f->cached;
    }
    if (is_returned(f)) {
        if (!is_all_last(q)) // else the client only has to read what there is
            request_give_back(q);
    } else if (f->flags & REPLY_REFUSED) {
        request_redeliver(q, "refused");
    } else if (f->flags & REPLY_FAILED) {
        err_set(&e, ERR_INTERNAL, NULL, "the engine could not run this request");
        request_close(q, OUTCOME_FAILED, &e);
    } else if (f->flags & REPLY_PROMPT) {
        take_prompt(q, f);
    } else {
        take_tokens(q, f);
    }
    if (!request_is_open(q))
        return;
    if (furthest(q) + SLICE_EARLY >= q->granted)
        request_extend(q);
    request_finish_if_complete(q);
}

// ---- frames that must wait

static bool must_wait(const request *q, const reply_frame *f) {
    bool is_beyond = !(f->flags & REPLY_PROMPT) && f->from + f->n_tokens > q->granted;
    return !q->is_durable || (is_beyond && q->granted < q->most);
}

// The tick asks again when an extension was not answered.
static void keep(request *q, uint64_t worker, const reply_frame *f) {
    reply one = {.worker = worker, .frames = (reply_frame *)(uintptr_t)f, .n_frames = 1};
    buf bytes = {0};
    reply_encode(&one, &bytes);
    buf_put_bytes(&q->kept, bytes.data, bytes.len);
    buf_release(&bytes);
    if (q->is_durable)
        request_extend(q);
}

// In order, until one has to wait again (that one is put back with all behind it).
void request_take_kept(request *q) {
    buf waiting = q->kept;
    arena a;
    q->kept = (buf){0};
    arena_init(&a);
    cursor c = cursor_over(waiting.data, waiting.len);
    while (cursor_left(&c) && request_is_open(q)) {
        size_t n;
        reply m;
        const char *bytes = cursor_counted(&c, &n);
        if (!bytes || reply_decode(bytes, n, &a, &m, NULL))
            fatal("a kept frame cannot be read");
        if (!passes(q, m.worker, m.frames))
            ; // of a run that was given up meanwhile
        else if (q->kept.len || must_wait(q, m.frames))
            buf_put_bytes(&q->kept, bytes, n);
        else
            take_frame(q, m.frames);
        arena_clear(&a);
    }
    arena_release(&a);
    buf_release(&waiting);
    if (q->kept.len && q->is_durable && request_is_open(q))
        request_extend(q);
}

// ---- a message

static void take(router *r, uint64_t worker, const reply_frame *f) {
    request *q = request_find(r, f->id);
    if (!q || !passes(q, worker, f)) {
        tell_to_stop(r, worker, f);
        return;
    }
    request_ref(q);
    q->heard_ms = clock_mono_ms();
    if (f->flags & REPLY_CLAIM && !q->has_run)
        take_claim(q, worker, f);
    else if (f->flags & (REPLY_CLAIM | REPLY_HOLD))
        ; // alive
    else if (!q->kept.len && !must_wait(q, f))
        take_frame(q, f);
    else
        keep(q, worker, f);
    request_unref(q);
}

void router_take_reply(router *r, const reply *m) {
    for (int i = 0; i < m->n_frames; i++)
        take(r, m->worker, &m->frames[i]);
}

// ---- ends and silences

void request_finish_if_complete(request *q) {
    if (!request_is_open(q) || !is_all_last(q))
        return;
    for (int i = 0; i < q->spec->n_choices; i++) {
        request_choice *c = &q->choices[i];
        if (!q->spec->streamed)
            c->handed = c->n; // its one write is decided now
        if (c->handed < c->n)
            return;
    }
    request_close(q, OUTCOME_OK, NULL);
}

static void give_up_resuming(request *q) {
    err e = {0};
    err_set(&e, ERR_OVERLOADED, NULL, "no worker took the stream over within %lld ms",
            (long long)q->r->s->c->resume_ms);
    request_close(q, OUTCOME_WORKER_LOST, &e);
}

void request_check_silence(router *r, int64_t now_ms) {
    for (request *q = r->lists[RUNNING].first, *next; q; q = next) {
        next = q->next;
        if (now_ms - q->heard_ms > SILENCE_MS && !is_all_last(q))
            request_redeliver(q, "silence");
        else if (q->kept.len && q->is_durable)
            request_extend(q); // an answer was lost
    }
    for (request *q = r->lists[QUEUED].first, *next; q; q = next) {
        next = q->next;
        if (q->resume_until_ms && now_ms >= q->resume_until_ms)
            give_up_resuming(q);
        else if (q->left_queue_ms && now_ms - q->left_queue_ms > SILENCE_MS)
            request_redeliver(q, "never claimed");
    }
}
