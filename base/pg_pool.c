// Connections to PostgreSQL shared by the threads of a process. Owns up to `size` of them, made
// when first needed; one mutex. A connection is in exactly one place: idle, or with the thread that
// took it.
#include "base/log.h"
#include "base/pg.h"
#include "base/pg_internal.h"
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define WAIT_S 10 // longer than a statement may take

struct pg_pool {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    char *url;
    int size, n_made, n_idle;
    pg *idle[]; // entered by pg_pool_give, left by pg_pool_take, both by any thread; the last one
                // is taken first
};

pg_pool *pg_pool_new(const char *url, int size) {
    size_t n = size > 0 ? (size_t)size : 1;
    pg_pool *p = calloc(1, sizeof *p + n * sizeof(pg *));
    if (!p || !(p->url = strdup(url)))
        fatal("out of memory for a pool of database connections");
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&p->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&p->mutex, NULL);
    p->size = (int)n;
    return p;
}

// Takes an idle connection, or the right to make one (*out NULL). -1: none came free in time.
static int take_place(pg_pool *p, pg **out) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += WAIT_S;
    int rc = 0;
    *out = NULL;
    pthread_mutex_lock(&p->mutex);
    while (!rc && p->n_idle == 0 && p->n_made == p->size)
        rc = pthread_cond_timedwait(&p->changed, &p->mutex, &until) == ETIMEDOUT ? -1 : 0;
    if (p->n_idle > 0) {
        *out = p->idle[--p->n_idle];
        rc = 0;
    } else if (p->n_made < p->size) {
        p->n_made++;
        rc = 0;
    }
    pthread_mutex_unlock(&p->mutex);
    return rc;
}

// c NULL: the place is free again, its connection is not there any more.
static void give_place(pg_pool *p, pg *c) {
    pthread_mutex_lock(&p->mutex);
    if (c)
        p->idle[p->n_idle++] = c;
    else
        p->n_made--;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->mutex);
}

pg *pg_pool_take(pg_pool *p, err *e) {
    pg *c;
    if (take_place(p, &c)) {
        err_set(e, ERR_DEPENDENCY, NULL, "all %d database connections are busy", p->size);
        if (e)
            e->retry_ms = 1000;
        return NULL;
    }
    if (c ? pg_ensure(c, e) == 0 : pg_connect(p->url, &c, e) == 0)
        return c;
    pg_close(c);
    give_place(p, NULL);
    return NULL;
}

// A connection comes back without a transaction and with the usual limit.
void pg_pool_give(pg_pool *p, pg *c) {
    if (!c)
        return;
    if (c->c && PQtransactionStatus(c->c) != PQTRANS_IDLE) {
        log_event(LOG_WARN, "postgres.rollback", NULL);
        pg_drop(c); // its end rolls back whatever was open, also when the server hangs
    }
    c->limit_ms = PG_LIMIT_MS;
    give_place(p, c);
}

void pg_pool_free(pg_pool *p) {
    if (!p)
        return;
    pthread_mutex_lock(&p->mutex);
    while (p->n_idle < p->n_made) // those taken come back first
        pthread_cond_wait(&p->changed, &p->mutex);
    pthread_mutex_unlock(&p->mutex);
    for (int i = 0; i < p->n_idle; i++)
        pg_close(p->idle[i]);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->mutex);
    free(p->url);
    free(p);
}
