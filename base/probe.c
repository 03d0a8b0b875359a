// The operations listener on libmicrohttpd's own polling thread. Owns its socket and that thread.
// Answers few, small, trusted clients: no TLS, no keys, no bodies. Does not know what readiness
// means; its caller's function does, on this listener's thread.
#include "base/probe.h"
#include "base/buf.h"
#include "base/metric.h"
#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST_CONNECTIONS 64u
#define IDLE_SECONDS 15u
#define BACKLOG 64

struct probe {
    struct MHD_Daemon *daemon;
    probe_not_ready_fn *not_ready;
    void *ctx;
    uint16_t port;
};

// ---- answers

static enum MHD_Result answer(struct MHD_Connection *mhd, unsigned status, const char *type,
                              buf *body) {
    struct MHD_Response *r =
        MHD_create_response_from_buffer(body->len, body->data, MHD_RESPMEM_MUST_COPY);
    buf_release(body);
    if (!r)
        return MHD_NO;
    MHD_add_response_header(r, "Content-Type", type);
    MHD_add_response_header(r, "Cache-Control", "no-store");
    if (status == MHD_HTTP_METHOD_NOT_ALLOWED)
        MHD_add_response_header(r, "Allow", "GET, HEAD");
    enum MHD_Result done = MHD_queue_response(mhd, status, r);
    MHD_destroy_response(r);
    return done;
}

static enum MHD_Result on_request(void *ctx, struct MHD_Connection *mhd, const char *url,
                                  const char *method, const char *version, const char *data,
                                  size_t *n_data, void **request) {
    static int seen;
    probe *o = ctx;
    buf body = {0};
    (void)version, (void)data, (void)n_data;
    bool is_read = strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0;
    if (is_read && !*request) { // the answer may not come in the first call of a kept connection
        *request = &seen;
        return MHD_YES;
    }
    if (!is_read) {
        buf_puts(&body, "only GET is served here\n");
        return answer(mhd, MHD_HTTP_METHOD_NOT_ALLOWED, "text/plain", &body);
    }
    if (strcmp(url, "/metrics") == 0) {
        buf_put(&body, "", 0);
        metric_render(&body);
        return answer(mhd, MHD_HTTP_OK, "text/plain; version=0.0.4; charset=utf-8", &body);
    }
    bool is_ready = strcmp(url, "/readyz") == 0, is_health = strcmp(url, "/healthz") == 0;
    const char *why = is_ready && o->not_ready ? o->not_ready(o->ctx) : NULL;
    buf_puts(&body, why                     ? why
                    : is_ready || is_health ? "ok"
                                            : "served here: /healthz /readyz /metrics");
    buf_puts(&body, "\n");
    unsigned status = why                     ? MHD_HTTP_SERVICE_UNAVAILABLE
                      : is_ready || is_health ? MHD_HTTP_OK
                                              : MHD_HTTP_NOT_FOUND;
    return answer(mhd, status, "text/plain", &body);
}

// ---- the listener

static int bind_first(const struct addrinfo *found, uint16_t port, uint16_t *bound) {
    for (const struct addrinfo *a = found; a; a = a->ai_next) {
        struct sockaddr_storage at = {0};
        socklen_t n = a->ai_addrlen;
        int one = 1, fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fd < 0)
            continue;
        in_port_t *to = a->ai_family == AF_INET6 ? &((struct sockaddr_in6 *)&at)->sin6_port
                                                 : &((struct sockaddr_in *)&at)->sin_port;
        memcpy(&at, a->ai_addr, n);
        *to = htons(port);
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        if (bind(fd, (struct sockaddr *)&at, n) == 0 && listen(fd, BACKLOG) == 0 &&
            getsockname(fd, (struct sockaddr *)&at, &n) == 0) {
            *bound = ntohs(*to);
            return fd;
        }
        int why = errno;
        close(fd);
        errno = why;
    }
    return -1;
}

static int open_listener(const config_listen *l, uint16_t *bound, int *out, err *e) {
    struct addrinfo wanted = {.ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM}, *found = NULL;
    int rc = getaddrinfo(l->host[0] ? l->host : NULL, "0", &wanted, &found);
    if (rc)
        return err_set(e, ERR_IO, NULL, "operations listener %s: %s", l->host, gai_strerror(rc));
    *out = bind_first(found, l->port, bound);
    int why = errno;
    freeaddrinfo(found);
    if (*out < 0)
        return err_set(e, ERR_IO, NULL, "operations listener %s:%u: %s", l->host, l->port,
                       strerror(why));
    return 0;
}

int probe_start(const config_listen *listen, probe_not_ready_fn *not_ready, void *ctx, probe **out,
                err *e) {
    int fd = -1;
    probe *o = calloc(1, sizeof *o);
    if (!o)
        return err_set(e, ERR_INTERNAL, NULL, "out of memory for the operations listener");
    o->not_ready = not_ready;
    o->ctx = ctx;
    if (open_listener(listen, &o->port, &fd, e)) {
        free(o);
        return -1;
    }
    o->daemon = MHD_start_daemon(MHD_USE_EPOLL_INTERNAL_THREAD, o->port, NULL, NULL, on_request, o,
                                 MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT,
                                 MOST_CONNECTIONS, MHD_OPTION_CONNECTION_TIMEOUT, IDLE_SECONDS,
                                 MHD_OPTION_PER_IP_CONNECTION_LIMIT, 0u, MHD_OPTION_END);
    if (!o->daemon) {
        close(fd);
        free(o);
        return err_set(e, ERR_INTERNAL, NULL, "the operations listener cannot start its thread");
    }
    *out = o;
    return 0;
}

uint16_t probe_port(const probe *o) { return o->port; }

void probe_stop(probe *o) {
    if (!o)
        return;
    MHD_stop_daemon(o->daemon); // closes the socket and joins the thread
    free(o);
}
