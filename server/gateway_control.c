// What reaches a running gateway from outside its listeners: signals and revoked keys. Main thread
// (its own loop with a signalfd), but for gateway_key_revoked. SIGTERM and SIGINT drain and end
// (SIGINT without the grace for balancers); a second one ends at once; SIGHUP reloads configuration
// and certificate.
#include "server/gateway_internal.h"
#include "base/log.h"
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define FLUSH_POLL_MS 20
#define GIVE_UP_MS 5000 // to settle and to say so

// ---- revoked keys

typedef struct revoked {
    seat *seat;
    char key[ID_UUID_TEXT];
} revoked;

static void cancel_key(void *ctx) {
    revoked *r = ctx;
    if (!r->seat->is_stopping)
        seat_revoke(r->seat, r->key);
    free(r);
}

void gateway_key_revoked(void *ctx, const char *key_id) {
    gateway *g = ctx;
    pthread_mutex_lock(&g->mutex);
    for (int i = 0; i < g->n_seats; i++) {
        revoked *r = calloc(1, sizeof *r);
        if (!r)
            fatal("out of memory while a key is revoked");
        r->seat = g->seats[i];
        strncpy(r->key, key_id, sizeof r->key - 1);
        loop_post(r->seat->loop, cancel_key, r);
    }
    pthread_mutex_unlock(&g->mutex);
}

// ---- the end

static void stop_now(void *ctx) {
    gateway *g = ctx;
    loop_stop(g->loop);
}

static void one_drained(void *ctx) {
    gateway *g = ctx;
    g->n_undrained--;
}

static void on_drained(void *ctx) { // the seat's thread
    gateway *g = ctx;
    loop_post(g->loop, one_drained, g);
}

static void drain_router(void *ctx) { // the seat's thread
    gateway_drain *d = ctx;
    router_drain(d->seat->router, on_drained, d->g);
}

static void end_requests(void *ctx) { // the seat's thread
    gateway_drain *d = ctx;
    router_end_requests(d->seat->router);
}

static void drain_routers(gateway *g) {
    if (g->drains_routers)
        return;
    g->drains_routers = true;
    for (int i = 0; i < g->n_seats; i++) {
        g->drains[i] = (gateway_drain){g, g->seats[i]};
        g->n_undrained++;
        loop_post(g->seats[i]->loop, drain_router, &g->drains[i]);
    }
}

// Clients first: as long as a connection is open, what comes on it is served.
static void go_on_draining(void *ctx) {
    gateway *g = ctx;
    if (http_open_connections(g->api) == 0)
        drain_routers(g);
    if (g->drains_routers && g->n_undrained == 0 && http_open_exchanges(g->api) == 0)
        loop_stop(g->loop);
}

// The time is over: every request ends with an error, is settled, and its worker is told.
static void give_up(void *ctx) {
    gateway *g = ctx;
    log_event(LOG_WARN, "gateway.gives_up", "{s:i}", "open", http_open_exchanges(g->api));
    drain_routers(g);
    for (int i = 0; i < g->n_seats; i++)
        loop_post(g->seats[i]->loop, end_requests, &g->drains[i]);
    loop_timer_add(g->loop, GIVE_UP_MS, false, stop_now, g);
}

static void stop_accepting(void *ctx) {
    gateway *g = ctx;
    http_stop_accepting(g->api);
    loop_timer_add(g->loop, FLUSH_POLL_MS, true, go_on_draining, g);
    loop_timer_add(g->loop, (int)g->c->drain_ms, false, give_up, g);
}

// For grace_ms everything is served and /readyz says 503, so that a balancer looks away before the
// first connection is refused.
static void begin_drain(gateway *g, int64_t grace_ms) {
    g->is_draining = true;
    log_event(LOG_INFO, "gateway.drain", "{s:i,s:I}", "open", http_open_exchanges(g->api),
              "grace_ms", (json_int_t)grace_ms);
    http_leave(g->api);
    if (grace_ms > 0)
        loop_timer_add(g->loop, (int)grace_ms, false, stop_accepting, g);
    else
        stop_accepting(g);
}

// ---- reload

// All reactors stand while the configuration changes, so that they read it without locks.
typedef struct standstill {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int n_standing;
    bool is_over;
} standstill;

static void stand(void *ctx) {
    standstill *s = ctx;
    pthread_mutex_lock(&s->mutex);
    s->n_standing++;
    pthread_cond_broadcast(&s->changed);
    while (!s->is_over)
        pthread_cond_wait(&s->changed, &s->mutex);
    s->n_standing--;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->mutex);
}

static int reload_config(gateway *g, int *n_changed, buf *needs_restart, err *e) {
    standstill s = {.mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
    for (int i = 0; i < g->n_seats; i++)
        loop_post(g->seats[i]->loop, stand, &s);
    pthread_mutex_lock(&s.mutex);
    while (s.n_standing < g->n_seats)
        pthread_cond_wait(&s.changed, &s.mutex);
    int rc = config_reload(g->c, g->config_path, g->sets, g->n_sets, n_changed, needs_restart, e);
    for (int i = 0; i < g->n_seats; i++)
        g->seats[i]->limits = gateway_limits(g->c);
    s.is_over = true;
    pthread_cond_broadcast(&s.changed);
    while (s.n_standing > 0)
        pthread_cond_wait(&s.changed, &s.mutex);
    pthread_mutex_unlock(&s.mutex);
    return rc;
}

static void apply_log_level(const config *c) {
    static const char *const names[] = {"debug", "info", "warn", "error"};
    for (int i = 0; i < 4; i++)
        if (strcmp(c->log_level, names[i]) == 0)
            log_set_level((log_level)i);
}

// A made certificate is renewed when it is due; a configured one is read again from its files.
static void reload_cert(gateway *g) {
    tls_cert_paths before = g->cert;
    err e = {0};
    bool failed = gateway_find_cert(g, &e) != 0;
    bool moved = strcmp(before.cert, g->cert.cert) != 0 || strcmp(before.key, g->cert.key) != 0;
    if (moved) { // listeners know the paths they were started with
        log_event(LOG_WARN, "gateway.needs_restart", "{s:s}", "keys",
                  "gateway.tls_cert, gateway.tls_key");
        g->cert = before;
    }
    failed = failed || (!g->c->plain_http && http_reload_tls(g->api, &e)) ||
             http_reload_tls(g->admin, &e);
    if (failed)
        log_event(LOG_ERROR, "gateway.certificate_kept", "{s:s}", "message", e.message);
}

static void reload(gateway *g) {
    buf needs_restart = {0};
    int n_changed = 0;
    err e = {0};
    if (reload_config(g, &n_changed, &needs_restart, &e)) {
        log_event(LOG_ERROR, "gateway.reload_failed", "{s:s}", "message", e.message);
    } else {
        apply_log_level(g->c);
        log_event(LOG_INFO, "gateway.reloaded", "{s:i,s:s}", "changed", n_changed, "needs_restart",
                  needs_restart.len ? needs_restart.data : "");
        reload_cert(g);
    }
    buf_release(&needs_restart);
}

// ---- signals

static const int watched[] = {SIGTERM, SIGINT, SIGHUP};

static sigset_t watched_set(void) {
    sigset_t set;
    sigemptyset(&set);
    for (size_t i = 0; i < sizeof watched / sizeof *watched; i++)
        sigaddset(&set, watched[i]);
    return set;
}

void gateway_block_signals(void) {
    sigset_t set = watched_set();
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static void on_signal(void *ctx, uint32_t events) {
    (void)events;
    gateway *g = ctx;
    struct signalfd_siginfo info;
    while (read(g->signal_fd, &info, sizeof info) == sizeof info) {
        if (info.ssi_signo == SIGHUP)
            reload(g);
        else if (g->is_draining)
            loop_stop(g->loop);
        else
            begin_drain(g, info.ssi_signo == SIGTERM ? g->c->drain_grace_ms : 0);
    }
}

int gateway_watch_signals(gateway *g, err *e) {
    sigset_t set = watched_set();
    g->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (g->signal_fd < 0 || !loop_io_add(g->loop, g->signal_fd, EPOLLIN, on_signal, g))
        return err_set(e, ERR_IO, NULL, "cannot watch signals: %s", strerror(errno));
    return 0;
}
