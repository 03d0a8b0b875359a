// A fixed pool of threads over one queue. Owns its threads and the queue (one mutex). The threads
// block all signals, which belong to the main thread. Does not order, cancel or time what it runs.
#include "base/thread.h"
#include "base/err.h"
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define DEFAULT_LIMIT 4096

typedef struct task {
    struct task *next;
    void (*run)(void *ctx);
    void *ctx;
} task;

void thread_cond_init(pthread_cond_t *c) {
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(c, &attr);
    pthread_condattr_destroy(&attr);
}

void thread_cond_wait_us(pthread_cond_t *c, pthread_mutex_t *m, int64_t us) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += us % 1000000 * 1000;
    until.tv_sec += us / 1000000 + until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_cond_timedwait(c, m, &until);
}

struct pool {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    task *first, **last; // entered by pool_submit (any thread), left by a pool thread
    size_t n_waiting, limit;
    bool is_ending;
    int n_threads;
    pthread_t threads[];
};

static task *take_task(pool *p) {
    pthread_mutex_lock(&p->mutex);
    while (!p->first && !p->is_ending)
        pthread_cond_wait(&p->changed, &p->mutex);
    task *t = p->first;
    if (t) {
        p->first = t->next;
        p->n_waiting--;
        if (!p->first)
            p->last = &p->first;
    }
    pthread_mutex_unlock(&p->mutex);
    return t;
}

static void *work(void *ctx) {
    for (task *t; (t = take_task(ctx));) {
        t->run(t->ctx);
        free(t);
    }
    return NULL;
}

void thread_start(pthread_t *out, const char *name, void *(*run)(void *ctx), void *ctx) {
    sigset_t all, before;
    char title[16]; // the kernel's limit
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    int failed = pthread_create(out, NULL, run, ctx);
    if (failed)
        fatal("cannot start thread %s: %s", name, strerror(failed));
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    snprintf(title, sizeof title, "%.15s", name);
    pthread_setname_np(*out, title);
}

pool *pool_new(const char *name, int n_threads) {
    size_t n = n_threads > 0 ? (size_t)n_threads : 1;
    pool *p = calloc(1, sizeof *p + n * sizeof(pthread_t));
    if (!p)
        fatal("out of memory for pool %s", name);
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->changed, NULL);
    p->last = &p->first;
    p->limit = DEFAULT_LIMIT;
    p->n_threads = (int)n;
    for (int i = 0; i < p->n_threads; i++) {
        char title[32]; // thread_start cuts it
        snprintf(title, sizeof title, "%.12s-%d", name, i);
        thread_start(&p->threads[i], title, work, p);
    }
    return p;
}

int pool_submit(pool *p, void (*run)(void *ctx), void *ctx) {
    task *t = malloc(sizeof *t);
    if (!t)
        return -1;
    *t = (task){.run = run, .ctx = ctx};
    pthread_mutex_lock(&p->mutex);
    bool is_full = p->n_waiting >= p->limit || p->is_ending;
    if (!is_full) {
        *p->last = t;
        p->last = &t->next;
        p->n_waiting++;
        pthread_cond_signal(&p->changed);
    }
    pthread_mutex_unlock(&p->mutex);
    if (is_full)
        free(t);
    return is_full ? -1 : 0;
}

void pool_set_limit(pool *p, size_t max_queued) {
    pthread_mutex_lock(&p->mutex);
    p->limit = max_queued;
    pthread_mutex_unlock(&p->mutex);
}

size_t pool_waiting(pool *p) {
    pthread_mutex_lock(&p->mutex);
    size_t n = p->n_waiting;
    pthread_mutex_unlock(&p->mutex);
    return n;
}

void pool_free(pool *p) {
    if (!p)
        return;
    pthread_mutex_lock(&p->mutex);
    p->is_ending = true;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->mutex);
    for (int i = 0; i < p->n_threads; i++)
        pthread_join(p->threads[i], NULL);
    pthread_cond_destroy(&p->changed);
    pthread_mutex_destroy(&p->mutex);
    free(p);
}
