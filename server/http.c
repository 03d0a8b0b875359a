// The front end's start and end: listeners, reactors and their threads, certificates. Owns the
// server, its reactors and TLS context. http_* functions may be called from any thread that is not
// a reactor's. Does not look at requests.
#include "server/http_internal.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/memory.h"
#include "base/metric.h"
#include "base/thread.h"
#include "server/tls.h"
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define BACKLOG 4096
#define ACCEPTS_A_TURN 32
#define ROUNDS_A_TURN 4
#define IDLE_MS 75000
#define STALL_MS 30000
#define STOP_ROUNDS 1000
#define FLUSH_MS 1000
#define FLUSH_STEP_MS 5

// ---- what others ask

uint16_t http_port(const http_server *s) { return s->port; }

int http_open_exchanges(const http_server *s) {
    return atomic_load(&((http_server *)(uintptr_t)s)->n_exchanges);
}

int http_open_connections(const http_server *s) {
    return atomic_load(&((http_server *)(uintptr_t)s)->n_connections);
}

loop *reactor_loop(const reactor *r) { return r->loop; }
void reactor_set_user(reactor *r, void *user) { r->user = user; }
void *reactor_user(const reactor *r) { return r->user; }
int reactor_index(const reactor *r) { return r->index; }

void server_count_refusal(int status) {
    char label[32];
    snprintf(label, sizeof label, "code=\"%d\"", status);
    metric_add(metric_counter("tiergate_http_refused_total", label,
                              "Requests answered by the transport itself"),
               1);
}

static http_metrics register_metrics(void) {
    return (http_metrics){
        .connections = metric_gauge("tiergate_http_connections", "", "Open client connections"),
        .accepted = metric_counter("tiergate_http_accepted_total", "", "Accepted connections"),
        .shed = metric_counter("tiergate_http_shed_total", "",
                               "Connections closed for want of file descriptors"),
        .handshakes_failed = metric_counter("tiergate_http_handshakes_failed_total", "",
                                            "TLS handshakes that failed or took too long"),
        .exchanges = metric_gauge("tiergate_http_exchanges", "", "Requests in progress"),
        .gone = metric_counter("tiergate_http_gone_total", "",
                               "Clients that vanished before their answer was whole"),
    };
}

SSL_CTX *server_tls(http_server *s) {
    pthread_mutex_lock(&s->mutex);
    SSL_CTX *ctx = s->tls;
    if (ctx)
        SSL_CTX_up_ref(ctx);
    pthread_mutex_unlock(&s->mutex);
    return ctx;
}

int http_reload_tls(http_server *s, err *e) {
    SSL_CTX *fresh = NULL;
    if (!s->o.tls)
        return 0;
    if (tls_context_new(s->cert_path, s->key_path, &fresh, e))
        return -1;
    pthread_mutex_lock(&s->mutex);
    SSL_CTX *old = s->tls;
    s->tls = fresh;
    pthread_mutex_unlock(&s->mutex);
    SSL_CTX_free(old);
    return 0;
}

// ---- listeners

static int listen_on(const struct addrinfo *a, uint16_t port, bool is_shared, int *out) {
    struct sockaddr_storage address;
    int one = 1, fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    memcpy(&address, a->ai_addr, a->ai_addrlen);
    if (a->ai_family == AF_INET6)
        ((struct sockaddr_in6 *)&address)->sin6_port = htons(port);
    else
        ((struct sockaddr_in *)&address)->sin_port = htons(port);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (is_shared)
        setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, a->ai_addrlen) || listen(fd, BACKLOG)) {
        int why = errno;
        close(fd);
        errno = why;
        return -1;
    }
    *out = fd;
    return 0;
}

static uint16_t port_of(int fd) {
    struct sockaddr_storage a;
    socklen_t n = sizeof a;
    if (getsockname(fd, (struct sockaddr *)&a, &n))
        return 0;
    return ntohs(a.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&a)->sin6_port
                                         : ((struct sockaddr_in *)&a)->sin_port);
}

// One listener for each reactor on one address. A first one without SO_REUSEPORT finds out whether
// another server has the port, which sharing would hide.
static int listen_all(http_server *s, const struct addrinfo *a) {
    int probe;
    if (listen_on(a, s->o.listen.port, false, &probe))
        return -1;
    s->port = port_of(probe);
    close(probe);
    for (int i = 0; i < s->o.n_reactors; i++)
        if (listen_on(a, s->port, true, &s->reactors[i].listen_fd))
            return -1;
    return 0;
}

static int open_listeners(http_server *s, err *e) {
    struct addrinfo wanted = {.ai_flags = AI_PASSIVE, .ai_socktype = SOCK_STREAM}, *found = NULL;
    const char *host = s->o.listen.host;
    int rc = getaddrinfo(host[0] ? host : NULL, "0", &wanted, &found);
    if (rc)
        return err_set(e, ERR_IO, NULL, "cannot listen on %s: %s", host, gai_strerror(rc));
    rc = -1;
    for (const struct addrinfo *a = found; a && rc; a = a->ai_next)
        rc = listen_all(s, a);
    int why = errno;
    freeaddrinfo(found);
    if (rc == 0)
        return 0;
    if (why == EADDRINUSE)
        return err_set(e, ERR_IO, NULL,
                       "cannot listen on %s:%u: address already in use (`ss -ltnp` shows by whom)",
                       host, s->o.listen.port);
    return err_set(e, ERR_IO, NULL, "cannot listen on %s:%u: %s", host, s->o.listen.port,
                   strerror(why));
}

// ---- accepting

static void set_keepalive(int fd) {
    int one = 1, idle = 30, interval = 10, count = 3;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
}

// No descriptor is left: the spare one is given up to take the client off the backlog and close it,
// else the listener would stay readable and the loop spin.
static void shed_client(reactor *r) {
    close(r->spare_fd);
    int fd = accept4(r->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd >= 0)
        close(fd);
    r->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    metric_add(r->server->metrics.shed, 1);
}

static void accept_client(reactor *r, int fd, const struct sockaddr *from, socklen_t n) {
    http_server *s = r->server;
    char peer[PEER_BYTES];
    int open_now = atomic_load(&s->n_connections), most = s->o.max_connections;
    if (getnameinfo(from, n, peer, sizeof peer, NULL, 0, NI_NUMERICHOST))
        strcpy(peer, "?");
    metric_add(s->metrics.accepted, 1);
    set_keepalive(fd);
    if (open_now >= most + most / 8 + 16) { // not even a refusal is affordable
        close(fd);
        server_count_refusal(503);
        return;
    }
    conn_open(r, fd, peer, open_now >= most || memory_is_short());
}

// false: nobody waits.
static bool accept_some(reactor *r) {
    for (int i = 0; i < ACCEPTS_A_TURN; i++) {
        struct sockaddr_storage from;
        socklen_t n = sizeof from;
        int fd = accept4(r->listen_fd, (struct sockaddr *)&from, &n, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0)
            accept_client(r, fd, (struct sockaddr *)&from, n);
        else if (errno == EMFILE || errno == ENFILE)
            shed_client(r);
        else if (errno != ECONNABORTED && errno != EINTR)
            return false;
    }
    return true;
}

static void on_listener(void *ctx, uint32_t events) {
    (void)events;
    accept_some(ctx);
}

static void close_listener(reactor *r) {
    if (r->listen_fd < 0)
        return;
    for (int i = 0; i < BACKLOG / ACCEPTS_A_TURN && accept_some(r); i++)
        ; // who waits in the backlog would be reset
    loop_io_remove(r->loop, r->listen_io);
    close(r->listen_fd);
    r->listen_io = NULL;
    r->listen_fd = -1;
}

// ---- a reactor's turn

static void on_mhd(void *ctx, uint32_t events) {
    (void)events;
    ((reactor *)ctx)->runs_mhd = true;
}

static void run_mhd(reactor *r) {
    MHD_UNSIGNED_LONG_LONG ms;
    r->runs_mhd = false;
    MHD_run(r->mhd);
    if (MHD_get_timeout(r->mhd, &ms) == MHD_YES && ms == 0)
        r->runs_mhd = true;
}

static void settle_dirty(reactor *r) {
    conn *c = r->dirty;
    r->dirty = NULL;
    while (c) {
        conn *next = c->next_dirty;
        c->is_dirty = false;
        conn_settle(c); // may mark it, or others, for the next round
        c = next;
    }
}

// Those that are still in the dirty list wait for the next turn.
static void free_dead(reactor *r) {
    for (conn **at = &r->dead_conns; *at;) {
        conn *c = *at;
        if (c->is_dirty) {
            at = &c->next;
            continue;
        }
        *at = c->next;
        free(c);
    }
}

// After all events of a turn: what handlers answered in it is parsed, framed and written together.
static int turn(void *ctx) {
    reactor *r = ctx;
    for (int i = 0; i < ROUNDS_A_TURN && (r->runs_mhd || r->touched || r->dirty); i++) {
        if (r->runs_mhd)
            run_mhd(r);
        half_run_touched(r);
        settle_dirty(r);
    }
    free_dead(r);
    return r->runs_mhd || r->touched || r->dirty ? 0 : -1;
}

static void on_sweep(void *ctx) { conn_sweep(ctx); }

// ---- a reactor's life

static int prepare(reactor *r, err *e) {
    http_server *s = r->server;
    r->loop = loop_new();
    r->spare_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    r->mhd = half_daemon(r);
    if (!r->mhd)
        return err_set(e, ERR_INTERNAL, NULL, "libmicrohttpd does not start");
    int mhd_fd = MHD_get_daemon_info(r->mhd, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
    r->mhd_io = loop_io_add(r->loop, mhd_fd, EPOLLIN, on_mhd, r);
    loop_set_tick(r->loop, turn, r);
    r->sweep = loop_timer_add(r->loop, SWEEP_MS, true, on_sweep, r);
    if (s->o.reactor_start && s->o.reactor_start(r, s->o.ctx, e))
        return -1;
    r->listen_io = loop_io_add(r->loop, r->listen_fd, EPOLLIN, on_listener, r);
    if (!r->mhd_io || !r->listen_io)
        return err_set(e, ERR_IO, NULL, "cannot watch the listener: %s", strerror(errno));
    return 0;
}

// What was answered before the stop is still written, if its client takes it.
static bool has_answers(const reactor *r) {
    for (const conn *c = r->conns; c; c = c->next)
        if (conn_pending(c) > 0 || (c->x && c->x->is_done))
            return true;
    return false;
}

static void stop_when_written(void *ctx) {
    reactor *r = ctx;
    if (!has_answers(r) || loop_now_ms(r->loop) > r->stop_ms)
        loop_stop(r->loop);
}

static void begin_stop(void *ctx) {
    reactor *r = ctx;
    close_listener(r);
    r->stop_ms = loop_now_ms(r->loop) + FLUSH_MS;
    loop_timer_add(r->loop, FLUSH_STEP_MS, true, stop_when_written, r);
    stop_when_written(r);
}

// Ends every connection; handlers hear that their clients are gone.
static void end_connections(reactor *r) {
    close_listener(r);
    while (r->conns)
        conn_close(r->conns);
    for (int i = 0; i < STOP_ROUNDS && r->n_halves > 0; i++) {
        run_mhd(r);
        half_run_touched(r);
        settle_dirty(r);
    }
}

static void release(reactor *r) {
    while (r->exchanges) { // of handlers that never ended theirs
        r->exchanges->half = NULL;
        exchange_free(r->exchanges);
    }
    if (r->mhd)
        MHD_stop_daemon(r->mhd);
    settle_dirty(r);
    free_dead(r);
    if (r->listen_fd >= 0)
        close(r->listen_fd);
    r->listen_fd = -1;
    if (r->spare_fd >= 0)
        close(r->spare_fd);
    free(r->by_fd);
}

static void *reactor_main(void *ctx) {
    reactor *r = ctx;
    http_server *s = r->server;
    err e = {0};
    bool failed = prepare(r, &e) != 0;
    pthread_mutex_lock(&s->mutex);
    if (failed) {
        s->n_failed++;
        s->start_error = e;
    } else {
        s->n_started++;
    }
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
    if (!failed) {
        loop_run(r->loop);
        end_connections(r);
        if (s->o.reactor_stop)
            s->o.reactor_stop(r, s->o.ctx);
        end_connections(r);
    }
    release(r);
    return NULL;
}

static int start_reactors(http_server *s, err *e) {
    int n = 0;
    for (; n < s->o.n_reactors && s->n_failed == 0; n++) {
        thread_start(&s->reactors[n].thread, "reactor", reactor_main, &s->reactors[n]);
        pthread_mutex_lock(&s->mutex);
        while (s->n_started + s->n_failed <= n)
            pthread_cond_wait(&s->changed, &s->mutex);
        pthread_mutex_unlock(&s->mutex);
    }
    if (s->n_failed == 0)
        return 0;
    for (int i = 0; i < n; i++) {
        if (i < n - 1)
            loop_stop(s->reactors[i].loop);
        pthread_join(s->reactors[i].thread, NULL);
    }
    *e = s->start_error;
    return -1;
}

// ---- start and end

static void raise_descriptor_limit(const http_server *s) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit))
        return;
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    rlim_t wanted = (rlim_t)s->o.max_connections * 3 + 256; // a socket and a socketpair each
    if (limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < wanted)
        log_event(LOG_WARN, "http.few_descriptors", "{s:I,s:I}", "limit",
                  (json_int_t)limit.rlim_cur, "wanted", (json_int_t)wanted);
}

// The reactors' threads were joined. Their loops live until here, because other threads may post.
static void free_server(http_server *s) {
    for (int i = 0; i < s->o.n_reactors; i++) {
        if (s->reactors[i].listen_fd >= 0)
            close(s->reactors[i].listen_fd);
        loop_free(s->reactors[i].loop);
    }
    SSL_CTX_free(s->tls);
    pthread_mutex_destroy(&s->mutex);
    pthread_cond_destroy(&s->changed);
    free(s->reactors);
    free(s->cert_path);
    free(s->key_path);
    free(s);
}

static http_server *new_server(const http_options *o) {
    http_server *s = calloc(1, sizeof *s);
    reactor *reactors = calloc((size_t)(o->n_reactors > 0 ? o->n_reactors : 1), sizeof *reactors);
    if (!s || !reactors)
        fatal("out of memory for the front end");
    *s = (http_server){.o = *o, .reactors = reactors, .metrics = register_metrics()};
    s->o.n_reactors = o->n_reactors > 0 ? o->n_reactors : 1;
    s->o.idle_ms = o->idle_ms ? o->idle_ms : IDLE_MS;
    s->o.stall_ms = o->stall_ms ? o->stall_ms : STALL_MS;
    s->cert_path = o->cert_path ? strdup(o->cert_path) : NULL;
    s->key_path = o->key_path ? strdup(o->key_path) : NULL;
    pthread_mutex_init(&s->mutex, NULL);
    pthread_cond_init(&s->changed, NULL);
    for (int i = 0; i < s->o.n_reactors; i++) {
        reactors[i].server = s;
        reactors[i].index = i;
        reactors[i].listen_fd = reactors[i].spare_fd = -1;
    }
    return s;
}

int http_start(const http_options *o, http_server **out, err *e) {
    if (o->tls && (!o->cert_path || !o->key_path))
        return err_set(e, ERR_INVALID, NULL, "TLS needs a certificate and a key");
    http_server *s = new_server(o);
    signal(SIGPIPE, SIG_IGN); // OpenSSL writes without MSG_NOSIGNAL
    raise_descriptor_limit(s);
    if (http_reload_tls(s, e) || open_listeners(s, e) || start_reactors(s, e)) {
        free_server(s);
        return -1;
    }
    *out = s;
    return 0;
}

static void drain(void *ctx) {
    reactor *r = ctx;
    http_server *s = r->server;
    close_listener(r);
    pthread_mutex_lock(&s->mutex);
    s->n_quiet++;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
}

void http_leave(http_server *s) { atomic_store(&s->is_leaving, true); }

void http_stop_accepting(http_server *s) {
    http_leave(s);
    if (atomic_exchange(&s->is_deaf, true))
        return;
    for (int i = 0; i < s->o.n_reactors; i++)
        loop_post(s->reactors[i].loop, drain, &s->reactors[i]);
    pthread_mutex_lock(&s->mutex);
    while (s->n_quiet < s->o.n_reactors)
        pthread_cond_wait(&s->changed, &s->mutex);
    pthread_mutex_unlock(&s->mutex);
}

void http_stop(http_server *s) {
    if (!s)
        return;
    for (int i = 0; i < s->o.n_reactors; i++)
        loop_post(s->reactors[i].loop, begin_stop, &s->reactors[i]);
    for (int i = 0; i < s->o.n_reactors; i++)
        pthread_join(s->reactors[i].thread, NULL);
    free_server(s);
}
