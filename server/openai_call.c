// The way of an API exchange from its head to its log line: route, key, handler, answer. A call
// lives in its exchange's arena, so whoever still works for it (authentication, a pool thread, the
// router) keeps the exchange by not ending it: when the client goes, call_abandon waits for them.
// Reactor's thread. Does not parse bodies.
#include "server/openai_call.h"
#include "base/clock.h"
#include "base/log.h"
#include "server/openai_error.h"
#include "server/openai_meter.h"
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define STATUS_GONE 499 // in logs only: the client left
#define STATUS_CUT 503  // in logs only: this gateway went before the answer began
#define JSON "application/json"

// ---- the end of a call

static void log_end(const call *c, int status, int64_t total_us) {
    const call_record *r = &c->record;
    const char *outcome = r->outcome ? r->outcome : status < 400 ? "ok" : "refused";
    int64_t first_us = r->first_token_us ? r->first_token_us - exchange_started_us(c->x) : 0;
    log_event(LOG_INFO, "http.access", "{s:s,s:s,s:i,s:s,s:s,s:s,s:s,s:i,s:i,s:i,s:I,s:I}",
              "request_id", exchange_id(c->x), "route", c->route ? c->route->name : "none",
              "status", status, "outcome", outcome, "tenant", c->who.tenant, "key", c->who.key,
              "model", r->model ? r->model : "", "prompt_tokens", r->prompt_tokens, "cached_tokens",
              r->cached_tokens, "completion_tokens", r->completion_tokens, "first_token_ms",
              (json_int_t)(first_us / 1000), "ms", (json_int_t)(total_us / 1000));
}

// Everything but the exchange itself, which the caller ends right after.
static void end(call *c, int status) {
    int64_t total_us = clock_mono_us() - exchange_started_us(c->x);
    log_end(c, status, total_us);
    meter_ended(c->route, status, total_us);
    meter_tokens(c->record.prompt_tokens, c->record.completion_tokens);
    if (c->is_streaming)
        meter_stream(-1);
    if (!c->is_counted)
        return;
    seat *s = c->seat;
    s->n_calls--;
    if (s->is_stopping && s->n_calls == 0)
        loop_stop(s->loop);
}

void call_reply(call *c, int status, const buf *json) {
    end(c, status);
    exchange_reply(c->x, status, JSON, json->data, json->len);
}

static void set_error_headers(exchange *x, const openai_error *told) {
    char text[32];
    if (told->is_permanent)
        exchange_set_header(x, "x-should-retry", "false");
    if (told->retry_ms > 0) {
        snprintf(text, sizeof text, "%d", told->retry_ms);
        exchange_set_header(x, "retry-after-ms", text);
        snprintf(text, sizeof text, "%d", (told->retry_ms - 1) / 1000 + 1);
        exchange_set_header(x, "retry-after", text);
    }
    if (told->status == 401)
        exchange_set_header(x, "www-authenticate", "Bearer");
}

void call_fail(call *c, const err *e) {
    openai_error told = openai_error_of(e);
    if (told.status == 500)
        log_event(LOG_ERROR, "http.failed", "{s:s,s:s}", "request_id", exchange_id(c->x), "message",
                  e->message);
    set_error_headers(c->x, &told);
    buf body = {0};
    openai_error_body(e, &body);
    call_reply(c, told.status, &body);
    buf_release(&body);
}

void call_abandon(call *c) {
    bool is_cut = c->seat->is_cut;
    int refused = exchange_refused(c->x);
    if (!c->record.outcome && !refused)
        c->record.outcome = is_cut ? "gateway_lost" : "client_gone";
    end(c, refused ? refused : !is_cut ? STATUS_GONE : c->is_streaming ? 200 : STATUS_CUT);
    exchange_abandon(c->x);
}

void call_stream_begin(call *c) {
    c->is_streaming = true;
    meter_stream(1);
    exchange_set_header(c->x, "x-accel-buffering", "no");
    exchange_set_header(c->x, "cache-control", "no-store");
    exchange_stream_begin(c->x, 200, "text/event-stream");
}

void call_stream_end(call *c) {
    end(c, 200);
    exchange_stream_end(c->x);
}

// ---- work on the pool

static void work_done(void *ctx) {
    call *c = ctx;
    c->is_working = false;
    c->after(c);
}

static void work(void *ctx) {
    call *c = ctx;
    loop *l = c->seat->loop;
    c->work(c);
    loop_post(l, work_done, c);
}

int call_run(call *c, void (*fn)(call *c), void (*after)(call *c), err *e) {
    c->work = fn;
    c->after = after;
    c->is_working = true;
    if (pool_submit(c->seat->pool, work, c) == 0)
        return 0;
    c->is_working = false;
    return err_set(e, ERR_OVERLOADED, NULL, "The server is overloaded; please try again soon.");
}

// ---- revoked keys

void seat_revoke(seat *s, const char *key) {
    snprintf(s->revoked[s->n_revoked++ % REVOKED_KEPT], ID_UUID_TEXT, "%s", key);
    router_cancel_key(s->router, key);
}

int call_check_revoked(const call *c, err *e) {
    const seat *s = c->seat;
    for (uint64_t i = c->n_revoked; i < s->n_revoked; i++)
        if (strcmp(s->revoked[i % REVOKED_KEPT], c->who.key) == 0)
            return err_set(e, ERR_KEY, NULL, "This API key was revoked.");
    return 0;
}

// ---- what the exchange tells

static void on_gone(void *ctx) {
    call *c = ctx;
    c->is_gone = true;
    if (c->gone && !c->is_working)
        c->gone(c);
}

static void on_taken(void *ctx, uint64_t mark) {
    call *c = ctx;
    if (c->taken)
        c->taken(c, mark);
}

static const exchange_events events = {.taken = on_taken, .gone = on_gone};

// ---- the head

// The key as the client sent it, in one of three headers; NULL: none.
static const char *find_key(const exchange *x, size_t *n) {
    const char *key = exchange_header(x, "authorization");
    if (key && strncasecmp(key, "Bearer ", 7) == 0)
        key += 7;
    else
        key = exchange_header(x, "x-api-key");
    if (!key)
        key = exchange_header(x, "api-key");
    if (!key)
        return NULL;
    key += strspn(key, " \t");
    *n = strlen(key);
    while (*n && strchr(" \t", key[*n - 1]))
        (*n)--;
    return *n ? key : NULL;
}

static int check_key_given(const exchange *x, err *e) {
    size_t n;
    if (find_key(x, &n))
        return 0;
    return err_set(e, ERR_KEY, NULL,
                   "You didn't provide an API key. Send it as 'Authorization: Bearer KEY', "
                   "'x-api-key: KEY' or 'api-key: KEY'.");
}

static int check_length(const exchange *x, const openai_limits *limits, err *e) {
    const char *length = exchange_header(x, "content-length");
    if (!length || strtoull(length, NULL, 10) <= limits->body_bytes)
        return 0;
    return err_set(e, ERR_TOO_LARGE, NULL, "The body is larger than %zu bytes.",
                   limits->body_bytes);
}

static int check_coding(const exchange *x, err *e) {
    const char *coding = exchange_header(x, "content-encoding");
    if (coding && strcasecmp(coding, "identity") != 0)
        return err_set(e, ERR_UNSUPPORTED, "content-encoding",
                       "A body with content-encoding '%.40s' is not supported.", coding);
    return 0;
}

static call *call_new(exchange *x) {
    seat *s = reactor_user(exchange_reactor(x));
    call *c = arena_alloc(exchange_arena(x), sizeof *c);
    *c = (call){.x = x, .seat = s, .limits = s->limits, .rest = "", .gone = call_abandon};
    exchange_set_user(x, c);
    exchange_watch(x, &events, c);
    return c;
}

static void reply_options(call *c, const char *allow) {
    exchange_set_header(c->x, "allow", allow);
    call_reply(c, 204, &(buf){0});
}

void call_on_head(exchange *x) {
    call *c = call_new(x);
    err e = {0};
    char allow[64] = "";
    c->route = route_find(exchange_method(x), exchange_path(x), &c->rest, allow, &e);
    if (allow[0] && strcmp(exchange_method(x), "OPTIONS") == 0) {
        reply_options(c, allow);
        return;
    }
    if (e.code == ERR_METHOD)
        exchange_set_header(x, "allow", allow);
    if (!c->route || check_key_given(x, &e) || check_length(x, &c->limits, &e) ||
        check_coding(x, &e))
        call_fail(c, &e);
}

// ---- the request

static void dispatch(call *c, const principal *who) {
    err e = {0};
    c->who = *who;
    c->n_revoked = c->seat->n_revoked;
    c->gone = call_abandon; // until the handler has work of its own
    if (c->is_gone) {
        call_abandon(c);
    } else if (!(who->roles & c->route->role)) {
        err_set(&e, ERR_PERMISSION, NULL, "This API key may not use this path.");
        call_fail(c, &e);
    } else {
        c->route->handler(c);
    }
}

static void deny(call *c, const err *e) {
    if (c->is_gone)
        call_abandon(c);
    else
        call_fail(c, e);
}

static void authenticated(void *ctx, auth_answer answer, const principal *p, const err *e) {
    if (answer == AUTH_OK)
        dispatch(ctx, p);
    else
        deny(ctx, e);
}

void call_on_request(exchange *x) {
    call *c = exchange_user(x);
    principal who;
    err e = {0};
    size_t n;
    const char *key = find_key(x, &n);
    c->is_counted = true;
    c->seat->n_calls++;
    c->gone = NULL; // until the key's check has answered
    switch (auth_check(c->seat->auth, key, n, c->seat->loop, authenticated, c, &who, &e)) {
    case AUTH_OK:
        dispatch(c, &who);
        break;
    case AUTH_DENIED:
        deny(c, &e);
        break;
    case AUTH_PENDING:
        break;
    }
}
