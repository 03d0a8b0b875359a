// One request and its answer, as the handlers above see it. Owns copies of everything the request
// said, so that it does not depend on libmicrohttpd's memory, and the answer until it is handed on.
// The reactor's thread, which is asserted. Streamed bytes are framed here and put straight into the
// connection's output; libmicrohttpd writes only the head before them and the last chunk.
#include "server/http_internal.h"
#include "base/clock.h"
#include "base/id.h"
#include "base/log.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define HEX_MOST 16      // digits of a chunk's size
#define READER_BLOCK 256 // libmicrohttpd never gets a streamed byte from us

static void must_own(const exchange *x) {
    if (!loop_is_here(x->reactor->loop))
        fatal("exchange %s was touched outside its reactor's thread", x->id);
}

// ---- the request

typedef struct pairs {
    arena *arena;
    pair *items;
    int n, cap;
} pairs;

static enum MHD_Result count_pair(void *ctx, enum MHD_ValueKind kind, const char *name,
                                  const char *value) {
    (void)kind, (void)name, (void)value;
    ((pairs *)ctx)->cap++;
    return MHD_YES;
}

static enum MHD_Result take_pair(void *ctx, enum MHD_ValueKind kind, const char *name,
                                 const char *value) {
    (void)kind;
    pairs *p = ctx;
    if (p->n < p->cap)
        p->items[p->n++] = (pair){arena_strdup(p->arena, name ? name : ""),
                                  arena_strdup(p->arena, value ? value : "")};
    return MHD_YES;
}

static pair *copy_pairs(exchange *x, enum MHD_ValueKind kind, int *n) {
    pairs p = {.arena = &x->arena};
    MHD_get_connection_values(x->half->mhd, kind, count_pair, &p);
    if (p.cap)
        p.items = arena_alloc(&x->arena, (size_t)p.cap * sizeof(pair));
    MHD_get_connection_values(x->half->mhd, kind, take_pair, &p);
    *n = p.n;
    return p.items;
}

exchange *exchange_new(half *h, const char *url, const char *method, const char *version) {
    exchange *x = calloc(1, sizeof *x);
    if (!x)
        fatal("out of memory for a request");
    reactor *r = h->reactor;
    *x = (exchange){.reactor = r, .half = h, .conn = h->conn, .started_us = clock_mono_us()};
    h->x = x;
    h->conn->x = x;
    arena_init(&x->arena);
    id_uuid7(x->id);
    x->method = arena_strdup(&x->arena, method);
    x->path = arena_strdup(&x->arena, url);
    x->peer = arena_strdup(&x->arena, h->conn->peer);
    x->is_http10 = strcmp(version, "HTTP/1.0") == 0;
    x->headers = copy_pairs(x, MHD_HEADER_KIND, &x->n_headers);
    x->arguments = copy_pairs(x, MHD_GET_ARGUMENT_KIND, &x->n_arguments);
    x->next = r->exchanges;
    if (r->exchanges)
        r->exchanges->prev = x;
    r->exchanges = x;
    atomic_fetch_add(&r->server->n_exchanges, 1);
    metric_add(r->server->metrics.exchanges, 1);
    return x;
}

void exchange_free(exchange *x) {
    reactor *r = x->reactor;
    if (x->prev)
        x->prev->next = x->next;
    else
        r->exchanges = x->next;
    if (x->next)
        x->next->prev = x->prev;
    if (x->response)
        MHD_destroy_response(x->response);
    buf_release(&x->body);
    buf_release(&x->early);
    buf_release(&x->marks);
    arena_release(&x->arena);
    free(x);
    atomic_fetch_sub(&r->server->n_exchanges, 1);
    metric_add(r->server->metrics.exchanges, -1);
}

void exchange_let_go(exchange *x) {
    if (x->is_done && !x->half && !x->conn)
        exchange_free(x);
}

static const char *find_pair(const pair *items, int n, const char *name) {
    for (int i = 0; i < n; i++)
        if (strcasecmp(items[i].name, name) == 0)
            return items[i].value;
    return NULL;
}

reactor *exchange_reactor(const exchange *x) { return x->reactor; }
arena *exchange_arena(exchange *x) { return &x->arena; }
const char *exchange_id(const exchange *x) { return x->id; }
const char *exchange_method(const exchange *x) { return x->method; }
const char *exchange_path(const exchange *x) { return x->path; }
const char *exchange_peer(const exchange *x) { return x->peer; }
int64_t exchange_started_us(const exchange *x) { return x->started_us; }
int exchange_refused(const exchange *x) { return x->refused; }
void exchange_set_user(exchange *x, void *user) { x->user = user; }
void *exchange_user(const exchange *x) { return x->user; }

const char *exchange_header(const exchange *x, const char *name) {
    return find_pair(x->headers, x->n_headers, name);
}

const char *exchange_query(const exchange *x, const char *name) {
    for (int i = 0; i < x->n_arguments; i++)
        if (strcmp(x->arguments[i].name, name) == 0)
            return x->arguments[i].value;
    return NULL;
}

const char *exchange_body(const exchange *x, size_t *n) {
    *n = x->body.len;
    return x->body.data ? x->body.data : "";
}

void exchange_watch(exchange *x, const exchange_events *events, void *ctx) {
    must_own(x);
    x->events = events;
    x->events_ctx = ctx;
}

// ---- the end of the client or of the handler

// Before on_request the exchange ends here; after it, the handler ends it.
void exchange_gone(exchange *x) {
    x->conn = NULL;
    if (!x->is_done) {
        bool is_handlers = x->is_asked || x->status;
        void (*gone)(void *) = x->events ? x->events->gone : NULL;
        x->is_done = !is_handlers;
        if (!x->refused)
            metric_add(x->reactor->server->metrics.gone, 1);
        if (gone)
            gone(x->events_ctx); // may end it
        if (is_handlers)
            return;
    }
    exchange_let_go(x);
}

static void finish(exchange *x) {
    x->is_done = true;
    exchange_let_go(x);
}

void exchange_abandon(exchange *x) {
    must_own(x);
    if (x->is_done)
        return;
    conn *c = x->conn;
    if (c) {
        c->x = NULL;
        x->conn = NULL;
        x->is_done = true; // half_detach must not find a handler to tell
        conn_end(c);
    }
    finish(x);
}

// ---- plain answers

void exchange_set_header(exchange *x, const char *name, const char *value) {
    must_own(x);
    if ((x->n_set_headers & (x->n_set_headers - 1)) == 0) { // grow at powers of two
        size_t n = x->n_set_headers ? 2 * (size_t)x->n_set_headers : 4;
        pair *grown = arena_alloc(&x->arena, n * sizeof(pair));
        if (x->n_set_headers)
            memcpy(grown, x->set_headers, (size_t)x->n_set_headers * sizeof(pair));
        x->set_headers = grown;
    }
    x->set_headers[x->n_set_headers++] =
        (pair){arena_strdup(&x->arena, name), arena_strdup(&x->arena, value)};
}

static void add_header(exchange *x, const char *name, const char *value) {
    if (MHD_add_response_header(x->response, name, value) != MHD_YES)
        log_event(LOG_ERROR, "http.bad_header", "{s:s,s:s}", "request", x->id, "header", name);
}

// false: there is nobody to answer, or it was answered before.
static bool may_answer(exchange *x) {
    must_own(x);
    if (x->status || x->is_done) {
        log_event(LOG_ERROR, "http.second_answer", "{s:s}", "request", x->id);
        return false;
    }
    return x->conn && x->half;
}

static void start_answer(exchange *x, int status, const char *content_type) {
    if (!x->response)
        fatal("out of memory for an answer");
    if (content_type)
        add_header(x, "Content-Type", content_type);
    add_header(x, "x-request-id", x->id);
    for (int i = 0; i < x->n_set_headers; i++)
        add_header(x, x->set_headers[i].name, x->set_headers[i].value);
    if (atomic_load(&x->reactor->server->is_leaving))
        add_header(x, "Connection", "close");
    x->status = status;
}

void exchange_reply(exchange *x, int status, const char *content_type, const void *p, size_t n) {
    if (may_answer(x)) {
        union {
            const void *in;
            void *out;
        } bytes = {.in = p}; // copied; the parameter lacks a const
        x->response = MHD_create_response_from_buffer(n, n ? bytes.out : "", MHD_RESPMEM_MUST_COPY);
        start_answer(x, status, content_type);
        buf_release(&x->body);
        half_resume(x);
    }
    finish(x);
}

// ---- streams

// libmicrohttpd asks for the stream's bytes: after the head, and when it is resumed to end it.
static ssize_t read_stream(void *ctx, uint64_t position, char *p, size_t n) {
    exchange *x = ctx;
    (void)position, (void)p, (void)n;
    if (x->is_aborted)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    if (x->is_direct && x->is_ended)
        return MHD_CONTENT_READER_END_OF_STREAM;
    x->is_head_sent = true;
    x->is_suspended = true;
    MHD_suspend_connection(x->half->mhd);
    half_touch(x->half);
    return 0;
}

void exchange_stream_begin(exchange *x, int status, const char *content_type) {
    if (!may_answer(x)) {
        x->status = status;
        return;
    }
    x->response =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, READER_BLOCK, read_stream, x, NULL);
    start_answer(x, status, content_type);
    x->is_streaming = true;
    buf_release(&x->body);
    half_resume(x);
}

static void put_stream(exchange *x, const void *p, size_t n) {
    if (x->is_direct)
        conn_put(x->conn, p, n);
    else
        buf_put(&x->early, p, n);
}

static void put_framed(exchange *x, const void *p, size_t n) {
    char size[2 + HEX_MOST + 1];
    if (x->is_http10) {
        put_stream(x, p, n);
        return;
    }
    int digits = 1;
    while (digits < HEX_MOST && n >> (4 * digits))
        digits++;
    id_hex_u64(n, digits, size);
    memcpy(size + digits, "\r\n", 2);
    put_stream(x, size, (size_t)digits + 2);
    put_stream(x, p, n);
    put_stream(x, "\r\n", 2);
}

// With n bytes more, too much waits for a client that did not even take what came before; more than
// that may come in one turn. -1 of the socket: it is broken, which is no better.
static bool is_over_cap(exchange *x, size_t n) {
    conn *c = x->conn;
    size_t most = x->reactor->server->o.stream_buffer_bytes;
    if ((size_t)conn_pending(c) + x->early.len + n <= most)
        return false;
    if (conn_drain(c))
        return true;
    return conn_pending(c) > 0 && (size_t)conn_pending(c) + x->early.len + n > most;
}

void exchange_stream_write(exchange *x, const void *p, size_t n, uint64_t mark) {
    must_own(x);
    conn *c = x->conn;
    if (!c || c->is_cut || !x->is_streaming || x->is_done)
        return;
    if (is_over_cap(x, n)) {
        c->is_cut = true;
        conn_mark_dirty(c);
        return;
    }
    if (n)
        put_framed(x, p, n);
    stream_mark m = {.at = x->is_direct ? c->n_queued : x->early.len, .mark = mark};
    buf_put(&x->marks, &m, sizeof m);
    conn_mark_dirty(c);
}

// The head has passed: what was written before it follows, and its marks count from there.
void exchange_go_direct(exchange *x) {
    conn *c = x->conn;
    stream_mark *marks = (stream_mark *)(void *)x->marks.data;
    for (size_t i = 0; i < x->marks.len / sizeof *marks; i++)
        marks[i].at += c->n_queued;
    x->is_direct = true;
    conn_put(c, x->early.data, x->early.len);
    buf_release(&x->early);
    if (x->is_ended)
        half_resume(x);
}

void exchange_tell_taken(exchange *x) {
    if (!x->is_direct || x->is_done)
        return;
    const stream_mark *marks = (const stream_mark *)(const void *)x->marks.data;
    size_t n = x->marks.len / sizeof *marks, first = x->marks_at, at = first;
    while (at < n && marks[at].at <= x->conn->n_taken)
        at++;
    if (at == first)
        return;
    uint64_t mark = marks[at - 1].mark;
    x->marks_at = at;
    if (at == n) {
        buf_clear(&x->marks);
        x->marks_at = 0;
    }
    if (x->events && x->events->taken)
        x->events->taken(x->events_ctx, mark);
}

void exchange_stream_stop(exchange *x) {
    must_own(x);
    conn *c = x->conn;
    if (!c || x->is_done)
        return;
    if (!x->is_direct) { // nothing of it was sent
        buf_clear(&x->early);
        buf_clear(&x->marks);
    } else if (!conn_flush(c)) {
        c->is_cut = true;
        conn_mark_dirty(c);
    }
}

void exchange_stream_end(exchange *x) {
    must_own(x);
    if (x->is_done)
        return;
    x->is_ended = true;
    if (x->conn && x->half && x->is_direct)
        half_resume(x);
    finish(x);
}
