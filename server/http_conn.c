// A client's connection: its states and deadlines, what is read from it, what is written to it.
// Owns the socket, the TLS state and both buffers. The reactor's thread. Does not parse requests:
// the gate finds where each ends, http_half.c hands it to libmicrohttpd.
#include "server/http_internal.h"
#include "base/clock.h"
#include "base/id.h"
#include "base/log.h"
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define READS_A_TURN 8
#define KEEP_BYTES 4096 // buffers up to this size stay with an idle connection

static int64_t now_ms(const conn *c) { return loop_now_ms(c->reactor->loop); }

static const http_options *options(const conn *c) { return &c->reactor->server->o; }

static void shrink(buf *b) {
    if (b->cap > KEEP_BYTES)
        buf_release(b);
    else
        buf_clear(b);
}

// ---- start and end

static void enter_head(conn *c, bool is_first) {
    c->state = CONN_HEAD;
    c->is_idle = !is_first;
    c->seen = 0;
    c->since_ms = now_ms(c);
    if (!is_first)
        c->deadline_ms = c->since_ms + options(c)->idle_ms;
}

static void on_event(void *ctx, uint32_t events);

static void refuse_full(conn *c) {
    err e = {0};
    err_set(&e, ERR_OVERLOADED, NULL, "no room for another connection");
    e.retry_ms = 1000;
    conn_refuse(c, 503, &e);
}

void conn_open(reactor *r, int fd, const char *peer, bool is_refused) {
    conn *c = calloc(1, sizeof *c);
    SSL_CTX *tls = c ? server_tls(r->server) : NULL;
    if (!c || (r->server->o.tls && (!tls || !(c->ssl = SSL_new(tls)) || !SSL_set_fd(c->ssl, fd))))
        goto failed;
    c->reactor = r;
    c->fd = fd;
    c->is_refused = is_refused;
    c->state = CONN_HANDSHAKE;
    c->deadline_ms = loop_now_ms(r->loop) + r->server->o.head_ms;
    strncpy(c->peer, peer, sizeof c->peer - 1);
    c->io = loop_io_add(r->loop, fd, EPOLLIN | EPOLLRDHUP, on_event, c);
    if (!c->io)
        goto failed;
    SSL_CTX_free(tls);
    c->next = r->conns;
    if (r->conns)
        r->conns->prev = c;
    r->conns = c;
    atomic_fetch_add(&r->server->n_connections, 1);
    metric_add(r->server->metrics.connections, 1);
    conn_settle(c);
    return;
failed:
    SSL_CTX_free(tls);
    if (c)
        SSL_free(c->ssl);
    free(c);
    close(fd);
}

static void unlink_conn(conn *c) {
    reactor *r = c->reactor;
    if (c->prev)
        c->prev->next = c->next;
    else
        r->conns = c->next;
    if (c->next)
        c->next->prev = c->prev;
    c->prev = NULL;
    c->next = r->dead_conns;
    r->dead_conns = c;
}

// What was not sent yet is thrown away with a reset, so that the kernel keeps nothing for a client
// that does not read.
static void close_socket(conn *c) {
    if (c->is_cut || conn_pending(c) > 0)
        setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &(struct linger){.l_onoff = 1},
                   sizeof(struct linger));
    SSL_free(c->ssl);
    c->ssl = NULL;
    close(c->fd);
}

void conn_close(conn *c) {
    if (c->state == CONN_CLOSED)
        return;
    http_server *s = c->reactor->server;
    if (c->state == CONN_HANDSHAKE)
        metric_add(s->metrics.handshakes_failed, 1);
    c->state = CONN_CLOSED;
    unlink_conn(c);
    loop_io_remove(c->reactor->loop, c->io);
    if (c->half)
        half_detach(c->half);
    close_socket(c);
    buf_release(&c->in);
    buf_release(&c->out);
    atomic_fetch_sub(&s->n_connections, 1);
    metric_add(s->metrics.connections, -1);
    exchange *x = c->x;
    c->x = NULL;
    if (x)
        exchange_gone(x);
}

void conn_mark_dirty(conn *c) {
    if (c->is_dirty)
        return;
    c->is_dirty = true;
    c->next_dirty = c->reactor->dirty;
    c->reactor->dirty = c;
}

// ---- output

int64_t conn_pending(const conn *c) { return (int64_t)(c->out.len - c->out_at); }

bool conn_is_full(const conn *c) { return c->out.len - c->out_at >= OUT_HIGH_BYTES; }

void conn_put(conn *c, const void *p, size_t n) {
    if (c->state == CONN_CLOSED || n == 0)
        return;
    if (conn_pending(c) == 0)
        c->wrote_ms = now_ms(c);
    buf_put(&c->out, p, n);
    c->n_queued += n;
    conn_mark_dirty(c);
}

int conn_drain(conn *c) {
    while (conn_pending(c) > 0) {
        size_t took;
        io_result r = io_write(c, c->out.data + c->out_at, (size_t)conn_pending(c), &took);
        if (r == IO_AGAIN)
            break;
        if (r != IO_OK)
            return -1;
        c->out_at += took;
        c->n_taken += took;
        c->wrote_ms = now_ms(c);
    }
    if (conn_pending(c) == 0) {
        shrink(&c->out);
        c->out_at = 0;
    } else if (c->out_at >= OUT_HIGH_BYTES) {
        buf_consume(&c->out, c->out_at);
        c->out_at = 0;
    }
    return 0;
}

// -1: the connection is broken.
static int write_out(conn *c) {
    if (conn_drain(c))
        return -1;
    if (c->x)
        exchange_tell_taken(c->x);
    return 0;
}

bool conn_flush(conn *c) { return write_out(c) == 0 && conn_pending(c) == 0; }

void conn_end(conn *c) {
    if (c->half)
        half_detach(c->half);
    c->state = CONN_ANSWER;
    c->is_ending = c->discards = true;
    c->approved = 0;
    buf_release(&c->in);
    conn_mark_dirty(c);
}

// An answer of the transport itself: the request, if one is in progress, is over.
void conn_refuse(conn *c, int status, const err *e) {
    buf body = {0}, head = {0};
    char id[ID_UUID_TEXT];
    exchange *x = c->x;
    c->x = NULL;
    conn_end(c);
    id_uuid7(id);
    if (x) {
        memcpy(id, x->id, sizeof id);
        x->refused = status;
        exchange_gone(x);
    }
    server_count_refusal(status);
    log_event(LOG_DEBUG, "http.refused", "{s:s,s:i,s:s}", "peer", c->peer, "status", status,
              "message", e->message);
    options(c)->error_body(status, e, &body);
    buf_printf(&head,
               "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n"
               "Connection: close\r\nx-request-id: %s\r\n",
               status, MHD_get_reason_phrase_for((unsigned)status), body.len, id);
    if (e->retry_ms)
        buf_printf(&head, "retry-after-ms: %d\r\nretry-after: %d\r\n", e->retry_ms,
                   (e->retry_ms + 999) / 1000);
    buf_puts(&head, "\r\n");
    conn_put(c, head.data, head.len);
    conn_put(c, body.data, body.len);
    buf_release(&head);
    buf_release(&body);
}

static void start_linger(conn *c) {
    io_end_writing(c);
    c->state = CONN_LINGER;
    c->discards = true;
    c->deadline_ms = now_ms(c) + LINGER_MS;
    if (c->fin || (c->read_ended && !c->ssl))
        conn_close(c);
}

// ---- input

static bool may_read(const conn *c) {
    if (c->read_ended || c->state == CONN_CLOSED)
        return false;
    return c->discards || c->in.len < IN_HIGH_BYTES;
}

// 1: progress, 0: more bytes are needed or the connection is answered.
static int take_head(conn *c) {
    while (c->in.len >= 2 && memcmp(c->in.data, "\r\n", 2) == 0) {
        buf_consume(&c->in, 2); // empty lines before a request line (RFC 9112 section 2.2)
        c->seen = 0;
    }
    if (c->in.len == 0)
        return 0;
    if (c->is_idle) {
        c->is_idle = false;
        c->deadline_ms = now_ms(c) + options(c)->head_ms;
    }
    gate_head head;
    size_t n = 0;
    int status = 0;
    err e = {0};
    int r = gate_find_end(c->in.data, c->in.len, options(c)->head_bytes, &c->seen, &n, &status, &e);
    if (r == 0)
        return 0;
    if (r < 0 || gate_check(c->in.data, n, &head, &status, &e) ||
        gate_body_start(&c->body, &head, options(c)->body_bytes, &status, &e)) {
        conn_refuse(c, status, &e);
        return 0;
    }
    if (!c->half && half_open(c)) {
        refuse_full(c);
        return 0;
    }
    c->approved = n;
    c->n_body = 0;
    c->since_ms = now_ms(c);
    c->state = c->body.is_done ? CONN_ANSWER : CONN_BODY;
    return 1;
}

static int take_body(conn *c) {
    size_t used = 0;
    int status = 0;
    err e = {0};
    if (c->half->wants_write || c->in.len == c->approved)
        return 0;
    if (gate_body_scan(&c->body, c->in.data + c->approved, c->in.len - c->approved, &used, &status,
                       &e)) {
        conn_refuse(c, status, &e);
        return 0;
    }
    c->approved += used;
    c->n_body += used;
    if (c->body.is_done) {
        c->state = CONN_ANSWER;
        c->since_ms = now_ms(c);
    }
    return 1;
}

static void take_input(conn *c) {
    int progress = 1;
    while (progress) {
        progress = c->state == CONN_HEAD ? take_head(c) : c->state == CONN_BODY ? take_body(c) : 0;
        if (progress && half_forward(c))
            conn_close(c);
    }
    if (c->in.len == 0)
        shrink(&c->in);
}

// -1: the connection is broken.
static int read_in(conn *c) {
    for (int i = 0; i < READS_A_TURN && may_read(c); i++) {
        size_t got;
        io_result r = io_read(c, c->reactor->scratch, SCRATCH_BYTES, &got);
        if (r == IO_BROKEN)
            return -1;
        if (r == IO_END)
            c->read_ended = true;
        if (r != IO_OK)
            return 0;
        if (!c->discards) {
            buf_put(&c->in, c->reactor->scratch, got);
            take_input(c);
        }
        if (c->state == CONN_CLOSED || (got < SCRATCH_BYTES && !io_has_more(c)))
            return 0; // there is no more now, or the loop tells
    }
    return 0;
}

void conn_next_request(conn *c) {
    if (c->approved > 0 || c->is_ending) { // libmicrohttpd did not want all of the request
        c->is_ending = true;
        conn_mark_dirty(c);
        return;
    }
    enter_head(c, false);
    conn_mark_dirty(c);
}

// ---- the turn of one connection

// false: the handshake goes on or failed.
static bool shake_hands(conn *c) {
    io_result r = io_handshake(c);
    if (r == IO_AGAIN)
        return false;
    if (r != IO_OK) {
        conn_close(c);
        return false;
    }
    enter_head(c, true);
    if (c->is_refused)
        refuse_full(c);
    return true;
}

static void set_interest(conn *c) {
    uint32_t events = c->fin ? 0 : EPOLLRDHUP;
    if (may_read(c))
        events |= EPOLLIN;
    if (c->wants_write)
        events |= EPOLLOUT;
    loop_io_set(c->reactor->loop, c->io, events);
}

// The client ended its side. In the middle of a request or with none, nothing more will be asked.
static bool is_over(const conn *c) {
    if (!c->read_ended || c->is_ending)
        return false;
    return c->state == CONN_BODY || (c->state == CONN_HEAD && conn_pending(c) == 0);
}

static void settle(conn *c, bool is_readable) {
    if (c->state == CONN_CLOSED)
        return;
    c->wants_write = false;
    if (c->is_cut) {
        conn_close(c);
        return;
    }
    if (c->state == CONN_HANDSHAKE && !shake_hands(c)) {
        if (c->state != CONN_CLOSED)
            set_interest(c);
        return;
    }
    take_input(c); // what a kept connection had sent ahead
    if ((is_readable && read_in(c)) || (c->state != CONN_CLOSED && write_out(c))) {
        conn_close(c);
        return;
    }
    if (c->state == CONN_CLOSED)
        return;
    if (c->half && !conn_is_full(c))
        half_unblock(c->half);
    if (c->is_ending && c->state != CONN_LINGER && conn_pending(c) == 0)
        start_linger(c);
    else if (is_over(c) || (c->state == CONN_LINGER && c->read_ended && !c->ssl))
        conn_close(c);
    if (c->state != CONN_CLOSED)
        set_interest(c);
}

// Does not read: what the client sends, the loop tells.
void conn_settle(conn *c) { settle(c, false); }

// The client's FIN: over TLS it is gone, whatever stands unread. On a plain listener it may have
// closed its writing side only, which is believed right after a request's end; the write error will
// tell otherwise.
static bool is_goodbye(const conn *c) {
    if (c->ssl || c->state == CONN_LINGER || c->state == CONN_HANDSHAKE)
        return true;
    return c->state == CONN_ANSWER && c->x && !c->x->is_done &&
           now_ms(c) - c->since_ms > HALF_CLOSE_MS;
}

static void on_event(void *ctx, uint32_t events) {
    conn *c = ctx;
    if (events & (EPOLLERR | EPOLLHUP)) {
        conn_close(c);
        return;
    }
    if ((events & EPOLLRDHUP) && !c->fin) {
        c->fin = true;
        if (is_goodbye(c)) {
            conn_close(c);
            return;
        }
    }
    settle(c, true);
}

// ---- deadlines

static void refuse_slow(conn *c, const char *what) {
    err e = {0};
    err_set(&e, ERR_INVALID, NULL, "the request's %s came too slowly", what);
    conn_refuse(c, 408, &e);
}

static void sweep_head(conn *c, int64_t now) {
    bool is_leaving = atomic_load(&c->reactor->server->is_leaving);
    if (now > c->deadline_ms && c->in.len > 0)
        refuse_slow(c, "head");
    else if (now > c->deadline_ms ||
             (is_leaving && c->in.len == 0 && now > c->since_ms + HALF_IDLE_MS))
        conn_end(c);
    else if (c->is_idle && c->half && now > c->since_ms + HALF_IDLE_MS)
        half_detach(c->half);
}

static void sweep_conn(conn *c, int64_t now) {
    int stall_ms = options(c)->stall_ms;
    if (conn_pending(c) > 0 && now > c->wrote_ms + stall_ms) {
        conn_close(c);
        return;
    }
    switch (c->state) {
    case CONN_HANDSHAKE:
    case CONN_LINGER:
        if (now > c->deadline_ms)
            conn_close(c);
        break;
    case CONN_HEAD:
        sweep_head(c, now);
        break;
    case CONN_BODY:
        if (now > c->since_ms + stall_ms + (int64_t)(c->n_body * 1000 / 1024))
            refuse_slow(c, "body");
        break;
    default:
        break;
    }
}

void conn_sweep(reactor *r) {
    int64_t now = loop_now_ms(r->loop);
    for (conn *c = r->conns, *next; c; c = next) {
        next = c->next;
        sweep_conn(c, now);
    }
}
