// A thread that LISTENs. Owns its thread and connection; callbacks run on that thread. After a
// second of silence it asks the server for a sign of life, so that a connection that hears nothing
// any more is noticed within about three seconds.
#include "base/buf.h"
#include "base/log.h"
#include "base/pg.h"
#include "base/pg_internal.h"
#include "base/thread.h"
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define SILENCE_MS 1000
#define ANSWER_MS 2000
#define BACKOFF_MIN_MS 50
#define BACKOFF_MAX_MS 1000

struct pg_listen {
    pthread_t thread;
    int stop_fd; // readable once pg_listen_free was called
    _Atomic bool is_connected;
    char *url;
    char **channels;
    int n_channels;
    void (*fn)(void *ctx, const char *channel, const char *payload);
    void *ctx;
};

static int listen_to_all(pg_listen *l, pg *p, err *e) {
    for (int i = 0; i < l->n_channels; i++) {
        buf sql = {0};
        char *name = PQescapeIdentifier(p->c, l->channels[i], strlen(l->channels[i]));
        if (!name)
            return err_set(e, ERR_INVALID, NULL, "\"%s\" is no channel", l->channels[i]);
        buf_printf(&sql, "LISTEN %s", name);
        PQfreemem(name);
        int rc = pg_query(p, sql.data, 0, NULL, NULL, e);
        buf_release(&sql);
        if (rc)
            return -1;
    }
    return 0;
}

static void tell_all(pg_listen *l, pg *p) {
    for (PGnotify *n; (n = PQnotifies(p->c));) {
        l->fn(l->ctx, n->relname, n->extra);
        PQfreemem(n);
    }
}

// Waits for the stop (1), something to read (0) or the end of ms (-1). fd may be -1.
static int wait_for(const pg_listen *l, int fd, int ms) {
    struct pollfd fds[2] = {{.fd = l->stop_fd, .events = POLLIN}, {.fd = fd, .events = POLLIN}};
    int n = poll(fds, 2, ms);
    if (n > 0 && fds[0].revents)
        return 1;
    return n > 0 ? 0 : -1;
}

// Until the stop (returns true) or the loss of the connection.
static bool hear(pg_listen *l, pg *p, err *e) {
    for (;;) {
        tell_all(l, p);
        int what = wait_for(l, PQsocket(p->c), SILENCE_MS);
        if (what == 1)
            return true;
        if (what == 0 && !PQconsumeInput(p->c)) {
            err_set(e, ERR_DEPENDENCY, NULL, "the connection was closed");
            return false;
        }
        if (what == -1 && pg_query(p, "SELECT 1", 0, NULL, NULL, e))
            return false;
        if (p->n_connects != 1) {
            err_set(e, ERR_DEPENDENCY, NULL, "the connection was replaced");
            return false;
        }
    }
}

// One connection's life; returns true when it is time to stop.
static bool serve(pg_listen *l, bool *was_connected) {
    err e = {0};
    pg *p = NULL;
    bool is_over = false;
    if (!pg_connect(l->url, &p, &e)) {
        pg_set_limit(p, ANSWER_MS);
        if (!listen_to_all(l, p, &e)) {
            atomic_store(&l->is_connected, true);
            *was_connected = true;
            l->fn(l->ctx, NULL, NULL);
            is_over = hear(l, p, &e);
            atomic_store(&l->is_connected, false);
        }
    }
    if (!is_over)
        log_event(LOG_WARN, "postgres.listen_lost", "{s:s}", "why", e.message);
    pg_close(p);
    return is_over;
}

static void *run(void *ctx) {
    pg_listen *l = ctx;
    int backoff_ms = BACKOFF_MIN_MS;
    for (;;) {
        bool was_connected = false;
        if (serve(l, &was_connected))
            return NULL;
        if (was_connected)
            backoff_ms = BACKOFF_MIN_MS;
        if (wait_for(l, -1, backoff_ms) == 1)
            return NULL;
        backoff_ms = backoff_ms * 2 < BACKOFF_MAX_MS ? backoff_ms * 2 : BACKOFF_MAX_MS;
    }
}

static void *must(void *p) {
    if (!p)
        fatal("out of memory for a database listener");
    return p;
}

pg_listen *pg_listen_new(const char *url, const char *const *channels, int n,
                         void (*fn)(void *ctx, const char *channel, const char *payload),
                         void *ctx) {
    pg_listen *l = must(calloc(1, sizeof *l));
    l->url = must(strdup(url));
    l->channels = must(calloc((size_t)n + 1, sizeof(char *)));
    for (int i = 0; i < n; i++)
        l->channels[i] = must(strdup(channels[i]));
    l->n_channels = n;
    l->fn = fn;
    l->ctx = ctx;
    l->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (l->stop_fd < 0)
        fatal("cannot start a database listener: %s", strerror(errno));
    thread_start(&l->thread, "pg-listen", run, l);
    return l;
}

bool pg_listen_connected(const pg_listen *l) {
    return atomic_load(&((pg_listen *)(uintptr_t)l)->is_connected);
}

void pg_listen_free(pg_listen *l) {
    if (!l)
        return;
    uint64_t one = 1;
    while (write(l->stop_fd, &one, sizeof one) < 0 && errno == EINTR)
        ;
    pthread_join(l->thread, NULL);
    close(l->stop_fd);
    for (int i = 0; i < l->n_channels; i++)
        free(l->channels[i]);
    free(l->channels);
    free(l->url);
    free(l);
}
