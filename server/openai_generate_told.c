// Chat and completions from the router's first frame to the end of the answer. A stream's head is
// held back until its first token, so that an early failure still has its status; each frame
// becomes one event, and tokens count as handed when the socket took their event. Reactor's thread.
// The router may call end() from inside request_cancel and request_handed, therefore everything is
// closed from the loop, never from within a callback.
#include "base/clock.h"
#include "server/openai_error.h"
#include "server/openai_generate.h"
#include "server/openai_meter.h"
#include "server/openai_rates.h"
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define HOLD_BACK_MS 10000
#define SILENCE_MS 15000
#define RETRY_MS 250

// ---- events on their way

static void ring_grow(generation *g) {
    uint32_t cap = g->ring_cap ? 2 * g->ring_cap : 16, n = g->ring_in - g->ring_out;
    written *grown = malloc(cap * sizeof *grown);
    if (!grown)
        fatal("out of memory for %u events on their way", cap);
    for (uint32_t i = 0; i < n; i++)
        grown[i] = g->ring[(g->ring_out + i) & (g->ring_cap - 1)];
    free(g->ring);
    g->ring = grown;
    g->ring_cap = cap;
    g->ring_out = 0;
    g->ring_in = n;
}

static void ring_put(generation *g, const part *p, int choice, int total) {
    if (g->ring_in - g->ring_out == g->ring_cap)
        ring_grow(g);
    g->ring[g->ring_in++ & (g->ring_cap - 1)] =
        (written){.mark = ++g->mark, .part = p->index, .choice = choice, .total = total};
}

void generation_taken(call *c, uint64_t mark) {
    generation *g = c->user;
    while (g->ring_out != g->ring_in) {
        written w = g->ring[g->ring_out & (g->ring_cap - 1)];
        if (w.mark > mark)
            return;
        g->ring_out++;
        if (!g->parts[w.part].has_ended)
            request_handed(g->parts[w.part].request, w.choice, w.total);
    }
}

// ---- a stream's head and its silences

static void on_timer(void *ctx);

static void arm(generation *g, int64_t ms) {
    g->timer = loop_timer_add(g->c->seat->loop, ms < 1 ? 1 : (int)ms, false, on_timer, g);
}

static void write_out(generation *g, const buf *b) {
    g->wrote_ms = loop_now_ms(g->c->seat->loop);
    exchange_stream_write(g->c->x, b->data, b->len, g->mark);
}

static void set_rate_headers(generation *g) {
    rates all = RATES_NONE;
    if (g->has_rates)
        return;
    g->has_rates = true;
    for (int i = 0; i < g->n_parts; i++) {
        const part *p = &g->parts[i];
        if (p->request)
            all = rates_tighter(all, p->has_ended ? p->end.rates : request_rates(p->request));
    }
    rates_set_headers(g->c->x, &all);
}

static void begin(generation *g) {
    g->is_begun = true;
    set_rate_headers(g);
    call_stream_begin(g->c);
}

// Not even the head of an answer leaves before each of its requests is accepted.
static bool is_accepted(const generation *g) {
    for (int i = 0; i < g->n_parts; i++)
        if (g->parts[i].request && !g->parts[i].has_ended &&
            !request_is_accepted(g->parts[i].request))
            return false;
    return true;
}

static void on_timer(void *ctx) {
    generation *g = ctx;
    int64_t now = loop_now_ms(g->c->seat->loop);
    g->timer = NULL;
    if (g->c->is_gone)
        return;
    if (!g->is_begun && !is_accepted(g)) {
        arm(g, RETRY_MS);
        return;
    }
    if (!g->is_begun) {
        begin(g);
        g->wrote_ms = now;
    } else if (now - g->wrote_ms >= SILENCE_MS) {
        buf *b = &g->c->seat->scratch;
        buf_puts(b, ": keep-alive\n\n");
        write_out(g, b);
        buf_clear(b);
    }
    arm(g, g->wrote_ms + SILENCE_MS - now);
}

// ---- the router's events

static void note_first_token(generation *g) {
    call *c = g->c;
    if (c->record.first_token_us)
        return;
    c->record.first_token_us = clock_mono_us();
    meter_first_token(c->route, c->record.first_token_us - exchange_started_us(c->x));
}

static void stream_frame(part *p, const reply_frame *f) {
    generation *g = p->g;
    buf *b = &g->c->seat->scratch;
    if (!g->is_begun)
        begin(g);
    int total = answer_take(g->answer, p->index * g->q.n_choices + f->choice, f, b);
    ring_put(g, p, f->choice, total);
    write_out(g, b);
    buf_clear(b);
}

static void on_frame(void *ctx, const reply_frame *f) {
    part *p = ctx;
    generation *g = p->g;
    if (g->c->is_gone || g->failed.code)
        return;
    if (f->flags & REPLY_PROMPT) {
        answer_take_prompt(g->answer, p->index, f);
        return;
    }
    if (!f->n_tokens && !f->n_text)
        return;
    note_first_token(g);
    if (g->q.stream)
        stream_frame(p, f);
    else
        answer_take(g->answer, p->index * g->q.n_choices + f->choice, f, NULL);
}

static void on_end(void *ctx, const request_end *end) {
    part *p = ctx;
    generation *g = p->g;
    p->end = *end;
    p->has_ended = true;
    g->n_open--;
    if (end->replay) {
        g->n_replay = end->n_replay;
        g->replay = arena_dup(exchange_arena(g->c->x), end->replay, end->n_replay);
    }
    if (end->outcome != OUTCOME_OK && !g->failed.code) {
        g->failed = end->error;
        if (!g->failed.code)
            err_set(&g->failed, ERR_INTERNAL, NULL, "the request ended as %s",
                    request_outcome_name(end->outcome));
        g->c->record.outcome = request_outcome_name(end->outcome);
        generation_cancel(g, OUTCOME_FAILED);
    }
    if (g->n_open == 0)
        generation_close_soon(g);
}

static void on_stop(void *ctx) {
    generation *g = ((part *)ctx)->g;
    if (g->q.stream && g->is_begun && !g->c->is_gone)
        exchange_stream_stop(g->c->x);
}

const request_events generation_events = {.frame = on_frame, .stop = on_stop, .end = on_end};

void generation_cancel(generation *g, request_outcome why) {
    for (int i = 0; i < g->n_parts; i++)
        if (!g->parts[i].has_ended)
            request_cancel(g->parts[i].request, why);
}

static void on_gone(call *c) {
    generation_cancel(c->user, c->seat->is_cut ? OUTCOME_GATEWAY_LOST : OUTCOME_CLIENT_GONE);
}

// ---- from opening to closing

void generation_open(generation *g) {
    call *c = g->c;
    answer_options o = {
        .is_chat = g->q.kind == OPENAI_CHAT,
        .id = exchange_id(c->x),
        .model = g->target.adapter[0] ? g->target.name : g->target.model->config->name,
        .fingerprint = model_revision(g->target.model->model),
        .created = (int64_t)time(NULL),
        .n_prompts = g->n_parts,
        .n_choices = g->q.n_choices,
        .has_usage = g->q.include_usage,
        .has_tier = g->q.wants_tier,
        .has_logprobs = g->q.has_logprobs,
        .tokenizer = model_tokenizer(g->target.model->model),
    };
    g->answer = answer_new(&o);
    for (int i = 0; i < g->n_parts; i++)
        if (g->parts[i].echo)
            answer_echo(g->answer, i, g->parts[i].echo, g->parts[i].n_echo);
    c->gone = on_gone;
    c->taken = generation_taken;
    if (g->q.stream)
        arm(g, HOLD_BACK_MS);
}

// An echo with log-probabilities needs those of the whole prompt.
static void check_prompts(generation *g) {
    bool wants = g->q.echo && g->q.has_logprobs && !g->failed.code;
    for (int i = 0; wants && i < g->n_parts; i++) {
        int taken = answer_prompt_taken(g->answer, i);
        if (taken == g->parts[i].n_prompt)
            continue;
        err_set(&g->failed, ERR_INTERNAL, NULL,
                "the worker sent log-probabilities of %d of %d prompt tokens", taken,
                g->parts[i].n_prompt);
        g->c->record.outcome = request_outcome_name(OUTCOME_FAILED);
    }
}

static answer_usage sum_usage(generation *g) {
    answer_usage u = {0};
    for (int i = 0; i < g->n_parts; i++) {
        const request_end *end = &g->parts[i].end;
        u.prompt_tokens += end->prompt_tokens;
        u.cached_tokens += end->cached_tokens;
        u.completion_tokens += end->completion_tokens;
    }
    g->c->record.prompt_tokens = u.prompt_tokens;
    g->c->record.cached_tokens = u.cached_tokens;
    g->c->record.completion_tokens = u.completion_tokens;
    return u;
}

static const char *limited_by(const generation *g) {
    for (int i = 0; i < g->n_parts; i++)
        if (g->parts[i].end.limited_by)
            return g->parts[i].end.limited_by;
    return NULL;
}

static void end_stream(generation *g, const answer_usage *u) {
    buf *b = &g->c->seat->scratch;
    if (!g->is_begun)
        begin(g);
    for (int i = 0; i < g->n_parts && !g->failed.code; i++)
        for (int k = 0; k < g->q.n_choices; k++)
            answer_put_finish(g->answer, i * g->q.n_choices + k, g->parts[i].end.finish[k],
                              g->parts[i].end.limited_by, b);
    if (g->failed.code)
        answer_put_error_event(&g->failed, b);
    else
        answer_put_done(g->answer, u, b);
    write_out(g, b);
    buf_clear(b);
    call_stream_end(g->c);
}

// For later requests with the same Idempotency-Key, also when this client went meanwhile.
static void keep_answer(const generation *g, const buf *body) {
    const call *c = g->c;
    if (g->idem[0])
        router_store_answer(c->seat->router, c->who.tenant, g->idem, exchange_id(c->x), body->data,
                            body->len);
}

static void reply_whole(generation *g, const answer_usage *u) {
    reply_finish finish[JOB_CHOICES];
    const char *limit = limited_by(g);
    buf body = {0};
    for (int i = 0; i < g->n_parts * g->q.n_choices; i++)
        finish[i] = g->parts[i / g->q.n_choices].end.finish[i % g->q.n_choices];
    if (limit)
        exchange_set_header(g->c->x, "x-tiergate-limited-by", limit);
    answer_put_body(g->answer, finish, u, limit, &body);
    keep_answer(g, &body);
    if (g->c->is_gone)
        call_abandon(g->c);
    else
        call_reply(g->c, 200, &body);
    buf_release(&body);
}

static void reply_again(generation *g) {
    buf body = {0};
    buf_put(&body, g->replay, g->n_replay);
    exchange_set_header(g->c->x, "x-tiergate-idempotent-replay", "1");
    call_reply(g->c, 200, &body);
    buf_release(&body);
}

// What g holds outside the arena; the exchange may be gone afterwards.
static void release(generation *g) {
    for (int i = 0; i < g->n_parts; i++)
        token_list_release(&g->parts[i].prompt);
    if (g->timer)
        loop_timer_remove(g->c->seat->loop, g->timer);
    free(g->ring);
    g->timer = NULL;
    g->ring = NULL;
}

static void close_now(void *ctx) {
    generation *g = ctx;
    answer *a = g->answer;
    answer_usage u = sum_usage(g);
    check_prompts(g);
    bool is_whole = !g->q.stream && !g->failed.code && !g->replay;
    release(g);
    set_rate_headers(g); // unless the head is gone
    if (g->c->is_gone && !is_whole)
        call_abandon(g->c);
    else if (g->replay)
        reply_again(g);
    else if (g->failed.code && !g->is_begun)
        call_fail(g->c, &g->failed);
    else if (g->q.stream)
        end_stream(g, &u);
    else
        reply_whole(g, &u);
    answer_free(a);
}

void generation_close_soon(generation *g) {
    if (g->is_closing)
        return;
    g->is_closing = true;
    loop_post(g->c->seat->loop, close_now, g);
}
