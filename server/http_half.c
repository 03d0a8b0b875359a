// The libmicrohttpd half of a connection: a socketpair and an MHD connection in external mode,
// which parses requests that passed the gate and writes heads and plain answers. Owns the halves.
// The reactor's thread. Streamed bodies do not pass here: they go from the exchange straight to the
// client's socket. libmicrohttpd's own error pages never reach a client.
#include "server/http_internal.h"
#include "base/log.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static const char continue_line[] = "HTTP/1.1 100 Continue\r\n\r\n";

// ---- life of a half

static void free_half(half *h) {
    if (h->mhd || h->conn || h->is_touched)
        return;
    free(h);
}

static void remember_fd(reactor *r, half *h) {
    size_t fd = (size_t)h->mhd_fd;
    if (fd >= r->n_by_fd) {
        size_t n = fd + 256;
        half **grown = realloc(r->by_fd, n * sizeof(half *));
        if (!grown)
            fatal("out of memory for %zu connections", n);
        memset(grown + r->n_by_fd, 0, (n - r->n_by_fd) * sizeof(half *));
        r->by_fd = grown;
        r->n_by_fd = n;
    }
    r->by_fd[fd] = h;
}

static void on_half_event(void *ctx, uint32_t events) {
    half *h = ctx;
    conn *c = h->conn;
    if (events & EPOLLOUT) {
        if (half_forward(c)) {
            conn_close(c);
            return;
        }
        conn_mark_dirty(c); // more input may be taken now
    }
    if (h->conn && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
        half_pump(h);
}

static void watch(half *h) {
    if (!h->io)
        h->io = loop_io_add(h->reactor->loop, h->fd, EPOLLIN, on_half_event, h);
    if (!h->io)
        fatal("cannot watch a socketpair: %s", strerror(errno));
    loop_io_set(h->reactor->loop, h->io, h->wants_write ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

int half_open(conn *c) {
    int fds[2];
    reactor *r = c->reactor;
    half *h = calloc(1, sizeof *h);
    if (!h || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds)) {
        free(h);
        return -1;
    }
    *h = (half){.reactor = r, .conn = c, .fd = fds[0], .mhd_fd = fds[1]};
    c->half = h;
    remember_fd(r, h);
    struct sockaddr unnamed = {.sa_family = AF_UNIX};
    r->runs_mhd = true;
    if (MHD_add_connection(r->mhd, fds[1], &unnamed, sizeof unnamed) != MHD_YES) {
        half_detach(h); // fds[1] was closed by libmicrohttpd
        return -1;
    }
    watch(h);
    return 0;
}

void half_detach(half *h) {
    reactor *r = h->reactor;
    h->conn->half = NULL;
    h->conn = NULL;
    loop_io_remove(r->loop, h->io);
    h->io = NULL;
    close(h->fd);
    h->fd = -1;
    r->runs_mhd = true;
    if (h->x) {
        h->x->is_aborted = true;
        half_resume(h->x);
    }
    if (!h->mhd)
        r->by_fd[h->mhd_fd] = NULL;
    free_half(h);
}

void half_resume(exchange *x) {
    if (!x->is_suspended)
        return;
    x->is_suspended = false;
    x->reactor->runs_mhd = true;
    MHD_resume_connection(x->half->mhd);
}

// libmicrohttpd took a connection in, or closed it.
static void on_connection(void *ctx, struct MHD_Connection *mhd, void **socket_context,
                          enum MHD_ConnectionNotificationCode what) {
    reactor *r = ctx;
    if (what == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *info =
            MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
        half *h = r->by_fd[info->connect_fd];
        r->by_fd[info->connect_fd] = NULL;
        *socket_context = h;
        if (h) {
            h->mhd = mhd;
            r->n_halves++;
        }
        return;
    }
    half *h = *socket_context;
    if (h) {
        h->mhd = NULL;
        r->n_halves--;
        free_half(h); // else our end reads the end of file
    }
}

// ---- bytes to libmicrohttpd

int half_forward(conn *c) {
    half *h = c->half;
    if (!h)
        return c->approved ? -1 : 0;
    size_t sent = 0;
    h->wants_write = false;
    while (sent < c->approved) {
        ssize_t n = send(h->fd, c->in.data + sent, c->approved - sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EPIPE || errno == ECONNRESET)) {
            sent = c->approved; // it closed early; what it wrote before is still to be read
            c->discards = true;
            half_touch(h);
            break;
        }
        if (n < 0 && errno != EAGAIN)
            return -1;
        if (n < 0) {
            h->wants_write = true;
            break;
        }
        sent += (size_t)n;
    }
    if (sent > 0) {
        h->reactor->runs_mhd = true;
        c->approved -= sent;
        buf_consume(&c->in, sent);
    }
    if (h->io)
        watch(h);
    return 0;
}

// ---- bytes from libmicrohttpd

// It answered by itself (its HTML is dropped) or closed without an answer.
static void refuse_for(half *h, const char *p, size_t n) {
    int status = 400;
    if (n >= 12 && strncmp(p, "HTTP/1.", 7) == 0)
        status = atoi(p + 9);
    err e = {0};
    if (status == 413 || status == 414 || status == 431)
        err_set(&e, ERR_TOO_LARGE, NULL, "the request's head is too large");
    else if (status < 500)
        err_set(&e, ERR_INVALID, NULL, "malformed request");
    else
        err_set(&e, ERR_INTERNAL, NULL, "the request could not be read");
    conn_refuse(h->conn, status >= 400 && status < 600 ? status : 400, &e);
}

static void on_end(half *h) {
    conn *c = h->conn;
    bool is_answered = c->x && c->x->status;
    if (h->is_complete) {
        c->is_ending = c->discards = true;
        half_detach(h);
        conn_mark_dirty(c);
    } else if (is_answered) { // broken off in the middle of an answer
        c->is_cut = true;
        conn_mark_dirty(c);
        half_detach(h);
    } else if (c->state == CONN_HEAD) {
        half_detach(h); // between requests: the next one gets a new half
    } else {
        refuse_for(h, NULL, 0);
    }
}

// false: the half is gone.
static bool take_output(half *h, const char *p, size_t n) {
    conn *c = h->conn;
    size_t n_continue = sizeof continue_line - 1;
    bool is_continue = c->x && n == n_continue && memcmp(p, continue_line, n) == 0;
    if (h->is_complete || is_continue || (c->x && c->x->status)) {
        conn_put(c, p, n);
        return true;
    }
    refuse_for(h, p, n);
    return false;
}

void half_pump(half *h) {
    conn *c = h->conn;
    for (;;) {
        if (conn_is_full(c)) {
            loop_io_remove(h->reactor->loop, h->io);
            h->io = NULL;
            return;
        }
        ssize_t n = recv(h->fd, h->reactor->scratch, SCRATCH_BYTES, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR))
            break;
        if (n <= 0) {
            on_end(h);
            return;
        }
        if (!take_output(h, h->reactor->scratch, (size_t)n))
            return;
    }
    if (h->is_complete) {
        h->is_complete = false;
        conn_next_request(c);
    } else if (c->x && c->x->is_head_sent && !c->x->is_direct) {
        exchange_go_direct(c->x);
    }
}

void half_unblock(half *h) {
    if (h->io)
        return;
    watch(h);
    half_pump(h);
}

void half_touch(half *h) {
    if (h->is_touched)
        return;
    h->is_touched = true;
    h->next_touched = h->reactor->touched;
    h->reactor->touched = h;
}

void half_run_touched(reactor *r) {
    while (r->touched) {
        half *h = r->touched;
        r->touched = h->next_touched;
        h->is_touched = false;
        if (h->conn && h->io)
            half_pump(h);
        else
            free_half(h);
    }
}

// ---- libmicrohttpd's callbacks for a request

static enum MHD_Result answer(exchange *x, struct MHD_Connection *mhd) {
    enum MHD_Result r = MHD_queue_response(mhd, (unsigned)x->status, x->response);
    half_touch(x->half);
    return r;
}

static enum MHD_Result on_head(exchange *x) {
    x->reactor->server->o.on_head(x);
    if (x->is_aborted)
        return MHD_NO;
    // With the whole request here, the answer waits for the last call, which keeps the connection.
    conn *c = x->conn;
    if (!x->status || (c->state != CONN_BODY && c->approved == 0))
        return MHD_YES;
    c->state = CONN_ANSWER;
    c->discards = true;
    c->approved = 0;
    buf_release(&c->in);
    return answer(x, x->half->mhd);
}

static enum MHD_Result on_whole(exchange *x, struct MHD_Connection *mhd) {
    if (!x->is_asked && !x->status && !x->is_aborted) {
        x->is_asked = true;
        x->reactor->server->o.on_request(x);
    }
    if (x->is_aborted)
        return MHD_NO;
    if (x->status)
        return answer(x, mhd);
    x->is_suspended = true;
    MHD_suspend_connection(mhd);
    return MHD_YES;
}

static enum MHD_Result on_access(void *ctx, struct MHD_Connection *mhd, const char *url,
                                 const char *method, const char *version, const char *data,
                                 size_t *n, void **request_context) {
    (void)ctx;
    exchange *x = *request_context;
    if (!x) {
        const union MHD_ConnectionInfo *info =
            MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
        half *h = info->socket_context;
        if (!h || !h->conn)
            return MHD_NO;
        *request_context = x = exchange_new(h, url, method, version);
        return on_head(x);
    }
    if (*n == 0)
        return on_whole(x, mhd);
    if (!x->status && !x->is_aborted)
        buf_put(&x->body, data, *n);
    *n = 0;
    return MHD_YES;
}

static void on_completed(void *ctx, struct MHD_Connection *mhd, void **request_context,
                         enum MHD_RequestTerminationCode why) {
    (void)ctx, (void)mhd;
    exchange *x = *request_context;
    if (!x)
        return;
    *request_context = NULL;
    half *h = x->half;
    x->half = NULL;
    h->x = NULL;
    if (why == MHD_REQUEST_TERMINATED_COMPLETED_OK && x->conn) {
        h->is_complete = true;
        half_touch(h);
        x->conn->x = NULL;
        exchange_gone(x); // silent when the handler is done with it
    } else {
        exchange_let_go(x);
    }
}

static void log_mhd(void *ctx, const char *format, va_list args)
    __attribute__((format(printf, 2, 0)));
static void log_mhd(void *ctx, const char *format, va_list args) {
    (void)ctx;
    char text[256];
    vsnprintf(text, sizeof text, format, args);
    text[strcspn(text, "\n")] = '\0';
    log_event(LOG_DEBUG, "http.parser", "{s:s}", "message", text);
}

struct MHD_Daemon *half_daemon(reactor *r) {
    // Room for the head, its table of fields, an answer's head and a piece of a body.
    size_t pool = 2 * r->server->o.head_bytes + 24 * 1024;
    return MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_NO_LISTEN_SOCKET | MHD_USE_ERROR_LOG, 0,
        NULL, NULL, on_access, r, MHD_OPTION_EXTERNAL_LOGGER, log_mhd, NULL,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, r, MHD_OPTION_NOTIFY_COMPLETED, on_completed,
        r, MHD_OPTION_CONNECTION_LIMIT, (unsigned)r->server->o.max_connections * 2u + 64u,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, pool, MHD_OPTION_CONNECTION_TIMEOUT, 0u,
        MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_END);
}
