// A blocking client on the wire for tests: raw bytes over TCP or TLS, with time limits.
// Header-only.
#ifndef TESTS_SUPPORT_WIRE_H
#define TESTS_SUPPORT_WIRE_H
#include "base/buf.h"
#include "base/clock.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define WIRE_WAIT_MS 10000

typedef struct wire {
    int fd;
    SSL *ssl;
    buf in;
    bool ended; // the server's end was seen
} wire;

// How long a read or write may take.
static inline void wire_wait(wire *w, int ms) {
    struct timeval limit = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
    setsockopt(w->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    setsockopt(w->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
}

// receive_bytes > 0: SO_RCVBUF, for slow readers.
static inline int wire_connect(wire *w, uint16_t port, SSL_CTX *tls, int receive_bytes) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    *w = (wire){.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (receive_bytes)
        setsockopt(w->fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof receive_bytes);
    wire_wait(w, WIRE_WAIT_MS);
    if (connect(w->fd, (struct sockaddr *)&to, sizeof to))
        return -1;
    if (!tls)
        return 0;
    w->ssl = SSL_new(tls);
    SSL_set_fd(w->ssl, w->fd);
    SSL_set_tlsext_host_name(w->ssl, "localhost");
    return SSL_connect(w->ssl) == 1 ? 0 : -1;
}

static inline void wire_close(wire *w) {
    SSL_free(w->ssl);
    if (w->fd >= 0)
        close(w->fd);
    buf_release(&w->in);
    *w = (wire){.fd = -1};
}

static inline void wire_reset(wire *w) {
    struct linger hard = {.l_onoff = 1};
    setsockopt(w->fd, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
    wire_close(w);
}

static inline int wire_send(wire *w, const void *p, size_t n) {
    const char *at = p;
    while (n > 0) {
        ssize_t k = w->ssl ? SSL_write(w->ssl, at, (int)n) : send(w->fd, at, n, MSG_NOSIGNAL);
        if (k <= 0)
            return -1;
        at += k;
        n -= (size_t)k;
    }
    return 0;
}

static inline int wire_puts(wire *w, const char *s) { return wire_send(w, s, strlen(s)); }

// Reads once. false: the end (or the time limit, then `ended` stays false).
static inline bool wire_more(wire *w) {
    char p[16384];
    if (w->ended)
        return false;
    ssize_t n = w->ssl ? SSL_read(w->ssl, p, sizeof p) : recv(w->fd, p, sizeof p, 0);
    if (n > 0) {
        buf_put(&w->in, p, (size_t)n);
        return true;
    }
    if (w->ssl) {
        int why = SSL_get_error(w->ssl, (int)n);
        w->ended = why != SSL_ERROR_WANT_READ;
    } else {
        w->ended = n == 0 || (errno != EAGAIN && errno != EWOULDBLOCK);
    }
    return false;
}

// Until text stands in what was read. NULL: it did not come.
static inline const char *wire_until(wire *w, const char *text) {
    for (;;) {
        const char *at = w->in.len ? memmem(w->in.data, w->in.len, text, strlen(text)) : NULL;
        if (at || !wire_more(w))
            return at;
    }
}

// Until the server closes. false: it did not within the limit.
static inline bool wire_to_end(wire *w) {
    while (wire_more(w))
        ;
    return w->ended;
}

// Reads one answer with Content-Length or chunks and takes it from `in`; status, or -1. body may be
// NULL, else the decoded body is appended.
static inline int wire_answer(wire *w, buf *body) {
    const char *end = wire_until(w, "\r\n\r\n");
    if (!end)
        return -1;
    size_t n_head = (size_t)(end - w->in.data) + 4;
    int status = atoi(w->in.data + 9);
    const char *length = strcasestr(w->in.data, "\r\ncontent-length:");
    const char *chunked = strcasestr(w->in.data, "\r\ntransfer-encoding: chunked");
    if (length && length < end) {
        size_t n = strtoul(length + 17, NULL, 10);
        while (w->in.len < n_head + n)
            if (!wire_more(w))
                return -1;
        if (body)
            buf_put(body, w->in.data + n_head, n);
        buf_consume(&w->in, n_head + n);
        return status;
    }
    if (!chunked || chunked > end)
        return status == 100 ? (buf_consume(&w->in, n_head), status) : -1;
    buf_consume(&w->in, n_head);
    for (;;) {
        const char *line = wire_until(w, "\r\n");
        if (!line)
            return -1;
        size_t n = strtoul(w->in.data, NULL, 16), n_line = (size_t)(line - w->in.data) + 2;
        while (w->in.len < n_line + n + 2)
            if (!wire_more(w))
                return -1;
        if (memcmp(w->in.data + n_line + n, "\r\n", 2))
            return -1;
        if (body)
            buf_put(body, w->in.data + n_line, n);
        buf_consume(&w->in, n_line + n + 2);
        if (n == 0)
            return status;
    }
}

#endif
