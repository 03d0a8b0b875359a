// The team: one job at a time, published by a generation counter. Owns the worker threads; the
// engine thread is the only caller. Members wait by spinning for some microseconds (a step is a
// chain of short jobs) and then on a condition variable, because a spinning idle worker would take
// the processor from whoever has the data we wait for. Does not pin threads: ops_pin does.
#include "kernels/team.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

enum { SPINS = 4000, MAX_THREADS = 256 };

struct team {
    int n; // members, the caller included
    pthread_t *threads;
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    atomic_uint generation; // job number
    atomic_int running;     // members that have not finished the job
    atomic_int sleepers;    // members in wake's wait
    atomic_bool stop;
    team_fn *fn;
    void *ctx;
};

typedef struct member {
    team *t;
    int part;
} member;

static void relax(void) { __builtin_ia32_pause(); }

// Waits for a generation other than `seen` and returns it.
static unsigned wait_job(team *t, unsigned seen) {
    for (int i = 0; i < SPINS; i++) {
        unsigned g = atomic_load_explicit(&t->generation, memory_order_acquire);
        if (g != seen)
            return g;
        relax();
    }
    pthread_mutex_lock(&t->lock);
    atomic_fetch_add(&t->sleepers, 1);
    unsigned g;
    while ((g = atomic_load(&t->generation)) == seen)
        pthread_cond_wait(&t->wake, &t->lock);
    atomic_fetch_sub(&t->sleepers, 1);
    pthread_mutex_unlock(&t->lock);
    return g;
}

static void finish_job(team *t) {
    if (atomic_fetch_sub(&t->running, 1) != 1)
        return;
    pthread_mutex_lock(&t->lock);
    pthread_cond_signal(&t->done);
    pthread_mutex_unlock(&t->lock);
}

static void *member_main(void *arg) {
    member m = *(member *)arg;
    free(arg);
    for (unsigned seen = 0;;) {
        seen = wait_job(m.t, seen);
        if (atomic_load(&m.t->stop))
            return NULL;
        m.t->fn(m.t->ctx, m.part, m.t->n);
        finish_job(m.t);
    }
}

static void publish(team *t) {
    atomic_fetch_add(&t->generation, 1);
    if (atomic_load(&t->sleepers) == 0)
        return;
    pthread_mutex_lock(&t->lock);
    pthread_cond_broadcast(&t->wake);
    pthread_mutex_unlock(&t->lock);
}

void team_run(team *t, team_fn *fn, void *ctx) {
    if (t->n == 1) {
        fn(ctx, 0, 1);
        return;
    }
    t->fn = fn;
    t->ctx = ctx;
    atomic_store(&t->running, t->n - 1);
    publish(t);
    fn(ctx, 0, t->n);
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&t->running, memory_order_acquire) == 0)
            return;
        relax();
    }
    pthread_mutex_lock(&t->lock);
    while (atomic_load(&t->running) > 0)
        pthread_cond_wait(&t->done, &t->lock);
    pthread_mutex_unlock(&t->lock);
}

int team_size(const team *t) { return t->n; }

// Processors' worth of time that the control group grants (containers: cpu.max is "QUOTA PERIOD" or
// "max PERIOD"); MAX_THREADS when it sets no limit. More threads than that would spin while the
// group is throttled.
static int group_limit(void) {
    long long quota = 0, period = 0;
    FILE *f = fopen("/sys/fs/cgroup/cpu.max", "re");
    if (f) {
        if (fscanf(f, "%lld %lld", &quota, &period) != 2)
            quota = 0;
        fclose(f);
    }
    return quota > 0 && period > 0 && quota / period < MAX_THREADS
               ? (int)((quota + period - 1) / period)
               : MAX_THREADS;
}

static int processors(void) {
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1,
        limit = group_limit();
    return n < 1 ? 1 : n < limit ? n : limit;
}

static int start_member(team *t, int part) {
    member *m = malloc(sizeof *m);
    if (!m)
        return -1;
    *m = (member){.t = t, .part = part};
    if (pthread_create(&t->threads[part], NULL, member_main, m) == 0)
        return 0;
    free(m);
    return -1;
}

int team_open(int n_threads, team **out, err *e) {
    if (n_threads < 0 || n_threads > MAX_THREADS)
        return err_set(e, ERR_INVALID, "n_threads", "threads: %d is outside 0..%d", n_threads,
                       (int)MAX_THREADS);
    int n = n_threads ? n_threads : processors();
    team *t = calloc(1, sizeof *t);
    if (!t || !(t->threads = calloc((size_t)n, sizeof *t->threads))) {
        free(t);
        return err_set(e, ERR_INTERNAL, NULL, "no memory for %d threads", n);
    }
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->wake, NULL);
    pthread_cond_init(&t->done, NULL);
    for (t->n = 1; t->n < n; t->n++)
        if (start_member(t, t->n)) {
            int made = t->n;
            team_close(t);
            return err_set(e, ERR_INTERNAL, NULL, "thread %d of %d cannot be started", made + 1, n);
        }
    *out = t;
    return 0;
}

void team_close(team *t) {
    if (!t)
        return;
    atomic_store(&t->stop, true);
    publish(t);
    for (int i = 1; i < t->n; i++)
        pthread_join(t->threads[i], NULL);
    pthread_cond_destroy(&t->done);
    pthread_cond_destroy(&t->wake);
    pthread_mutex_destroy(&t->lock);
    free(t->threads);
    free(t);
}
