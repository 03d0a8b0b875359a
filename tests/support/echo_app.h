// A small application over server/http.h for tests and the soak: echoes, delays, streams, and
// counts what it hears of its clients. One per process. Header-only, so that each test program
// carries it.
#ifndef TESTS_SUPPORT_ECHO_APP_H
#define TESTS_SUPPORT_ECHO_APP_H
#include "base/clock.h"
#include "server/http.h"
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct echo_counts {
    atomic_int heads, requests, gone, taken, ended, stopped, stopped_short;
    atomic_llong last_mark;
} echo_counts;

static echo_counts echo_seen;

// One waiting or streaming exchange.
typedef struct echo_job {
    exchange *x;
    loop_timer *timer;
    int ms;
    int left, bytes, burst;
    uint64_t mark;
    int stops;
    bool is_stream, is_flood;
} echo_job;

static inline void echo_end(echo_job *j) {
    if (j->timer)
        loop_timer_remove(reactor_loop(exchange_reactor(j->x)), j->timer);
    atomic_fetch_add(&echo_seen.ended, 1);
    free(j);
}

static inline void echo_gone(void *ctx) {
    echo_job *j = ctx;
    atomic_fetch_add(&echo_seen.gone, 1);
    exchange *x = j->x;
    echo_end(j);
    exchange_abandon(x);
}

static inline void echo_event(echo_job *j) {
    buf b = {0};
    buf_puts(&b, "data: ");
    memset(buf_extend(&b, (size_t)j->bytes), 'x', (size_t)j->bytes);
    buf_puts(&b, "\n\n");
    exchange_stream_write(j->x, b.data, b.len, ++j->mark);
    buf_release(&b);
    if (j->stops == 2 && j->left > 1)
        exchange_stream_stop(j->x);
    if (j->stops != 1 || !atomic_load(&echo_seen.taken)) // not before the head is gone
        return;
    exchange_stream_stop(j->x);
    atomic_fetch_add(&echo_seen.stopped, 1);
    if (atomic_load(&echo_seen.last_mark) != (long long)j->mark)
        atomic_fetch_add(&echo_seen.stopped_short, 1);
}

static inline void echo_finish(echo_job *j) {
    exchange *x = j->x;
    bool is_stream = j->is_stream;
    echo_end(j);
    if (is_stream)
        exchange_stream_end(x);
    else
        exchange_reply(x, 200, "text/plain", "later", 5);
}

static inline void echo_taken(void *ctx, uint64_t mark) {
    echo_job *j = ctx;
    atomic_store(&echo_seen.last_mark, (long long)mark);
    atomic_fetch_add(&echo_seen.taken, 1);
    if (j->is_flood && mark == j->mark)
        for (int i = 0; i < 4; i++)
            echo_event(j);
}

static inline void echo_step(void *ctx) {
    echo_job *j = ctx;
    if (j->is_stream && j->left > 0) {
        for (int i = 0; i < j->burst; i++)
            echo_event(j);
        j->left--;
        return;
    }
    if (!j->is_stream)
        j->timer = NULL; // a one-shot timer dies by firing
    echo_finish(j);
}

static inline int echo_number(const exchange *x, const char *name, int otherwise) {
    const char *v = exchange_query(x, name);
    return v ? atoi(v) : otherwise;
}

static inline void echo_begin(void *ctx) {
    echo_job *j = ctx;
    loop *l = reactor_loop(exchange_reactor(j->x));
    j->timer = NULL; // a one-shot timer dies by firing
    exchange_stream_begin(j->x, 200, "text/event-stream");
    if (j->ms > 0) {
        j->timer = loop_timer_add(l, j->ms, true, echo_step, j);
        return;
    }
    for (j->left *= j->burst; j->left > 0; j->left--) // everything at once
        echo_event(j);
    if (!j->is_flood)
        echo_finish(j);
}

// Query: ms between events (0: all at once), n events (or bursts of so many) of so many bytes;
// after: ms to the begin; stops: exchange_stream_stop after each event; 2: but
// the last, also before the head is gone.
static inline void echo_wait(exchange *x, bool is_stream) {
    static const exchange_events events = {.taken = echo_taken, .gone = echo_gone};
    loop *l = reactor_loop(exchange_reactor(x));
    echo_job *j = calloc(1, sizeof *j);
    *j = (echo_job){.x = x, .is_stream = is_stream, .left = echo_number(x, "n", 3)};
    j->bytes = echo_number(x, "bytes", 16);
    j->burst = echo_number(x, "burst", 1);
    j->ms = echo_number(x, "ms", 1);
    j->stops = echo_number(x, "stops", 0);
    j->is_flood = strcmp(exchange_path(x), "/flood") == 0;
    exchange_watch(x, &events, j);
    int after = echo_number(x, "after", 0);
    if (strcmp(exchange_path(x), "/never") == 0)
        return;
    if (!is_stream)
        j->timer = loop_timer_add(l, j->ms, false, echo_step, j);
    else if (after)
        j->timer = loop_timer_add(l, after, false, echo_begin, j);
    else
        echo_begin(j);
}

static inline void echo_info(exchange *x) {
    buf b = {0};
    size_t n;
    exchange_body(x, &n);
    const char *h = exchange_header(x, "X-Test"), *q = exchange_query(x, "q");
    buf_printf(&b, "%s %s x-test=%s q=%s body=%zu peer=%s", exchange_method(x), exchange_path(x),
               h ? h : "(none)", q ? q : "(none)", n, exchange_peer(x));
    exchange_set_header(x, "x-one", "1");
    exchange_set_header(x, "x-two", "2");
    exchange_reply(x, 200, "text/plain", b.data, b.len);
    buf_release(&b);
}

static inline void echo_big(exchange *x) {
    size_t n = (size_t)echo_number(x, "bytes", 1000);
    char *p = malloc(n + 1);
    memset(p, 'b', n);
    exchange_reply(x, 200, "text/plain", p, n);
    free(p);
}

static inline void echo_on_head(exchange *x) {
    atomic_fetch_add(&echo_seen.heads, 1);
    if (strcmp(exchange_path(x), "/early") == 0)
        exchange_reply(x, 401, "application/json", "{\"early\":true}", 14);
    else if (strcmp(exchange_path(x), "/drop") == 0)
        exchange_abandon(x);
}

static inline void echo_on_request(exchange *x) {
    const char *path = exchange_path(x);
    size_t n;
    const char *body = exchange_body(x, &n);
    atomic_fetch_add(&echo_seen.requests, 1);
    if (strcmp(path, "/echo") == 0)
        exchange_reply(x, 200, "application/octet-stream", body, n);
    else if (strcmp(path, "/later") == 0 || strcmp(path, "/never") == 0)
        echo_wait(x, false);
    else if (strcmp(path, "/stream") == 0 || strcmp(path, "/flood") == 0)
        echo_wait(x, true);
    else if (strcmp(path, "/big") == 0)
        echo_big(x);
    else if (strcmp(path, "/abandon") == 0) {
        exchange_stream_begin(x, 200, "text/event-stream");
        exchange_stream_write(x, "data: 1\n\n", 9, 1);
        exchange_abandon(x);
    } else
        echo_info(x);
}

static inline void echo_error_body(int status, const err *e, buf *out) {
    buf_printf(out, "{\"error\":{\"message\":");
    buf_put_json(out, e->message, strlen(e->message));
    buf_printf(out, ",\"type\":\"invalid_request_error\",\"param\":\"%s\",\"code\":%d}}", e->param,
               status);
}

static inline http_options echo_options(void) {
    return (http_options){.listen = {.host = "127.0.0.1"},
                          .n_reactors = 1,
                          .max_connections = 64,
                          .body_bytes = 1 << 20,
                          .head_bytes = 16384,
                          .stream_buffer_bytes = 256 << 10,
                          .head_ms = 2000,
                          .on_head = echo_on_head,
                          .on_request = echo_on_request,
                          .error_body = echo_error_body};
}

#endif
