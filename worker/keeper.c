// Owns a copy of the list of runs and a Redis connection. The step thread replaces the list before
// every step.
#include "worker/keeper.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/clock.h"
#include "base/log.h"
#include "base/redis.h"
#include "router/queue.h"

enum { TICK_MS = 250, SILENT_MS = 1000, HUNG_MS = 60000, REDIS_MS = 1000 };

struct keeper {
    pthread_t thread;
    pthread_mutex_t lock; // all below but address, worker, to
    pthread_cond_t wake;
    bool stop;
    int64_t noted_ms; // when the step thread came by last
    keeper_run *runs;
    int n, cap;
    char *address;
    uint64_t worker;
    inbox *to;
    redis *r; // the keeper thread's
};

static bool is_due(const keeper *k, int i, int64_t now) {
    return now - k->runs[i].last_ms >= SILENT_MS;
}

// Frames for all due runs of the gateway of run i; they count as sent.
static int collect_locked(keeper *k, int i, int64_t now, reply_frame *frames) {
    uint64_t gateway = k->runs[i].gateway;
    int n = 0;
    for (; i < k->n; i++) {
        keeper_run *run = &k->runs[i];
        if (run->gateway != gateway || !is_due(k, i, now))
            continue;
        frames[n] = (reply_frame){.attempt = run->attempt, .run = run->run, .flags = REPLY_HOLD};
        memcpy(frames[n++].id, run->id, sizeof run->id);
        run->last_ms = now;
    }
    return n;
}

static void send_hold(keeper *k, uint64_t gateway, reply_frame *frames, int n) {
    buf message = {0};
    err e = {0};
    int alive = 1;
    reply_encode(&(reply){.worker = k->worker, .frames = frames, .n_frames = n}, &message);
    if (!k->r && redis_connect(k->address, REDIS_MS, &k->r, &e))
        k->r = NULL;
    if (k->r && queue_send_reply(k->r, gateway, message.data, message.len, &alive, &e)) {
        redis_close(k->r);
        k->r = NULL;
    }
    if (!alive)
        inbox_put(k->to, &(note){.kind = NOTE_GATEWAY_GONE, .gateway = gateway});
    buf_release(&message);
}

// One gateway's due runs are taken and sent, until none is due.
static void hold_all(keeper *k) {
    for (;;) {
        int64_t now = clock_mono_ms();
        pthread_mutex_lock(&k->lock);
        int i = 0, n = 0;
        while (i < k->n && !is_due(k, i, now))
            i++;
        bool due = i < k->n && now - k->noted_ms < HUNG_MS;
        reply_frame *frames = due ? calloc((size_t)k->n, sizeof *frames) : NULL;
        uint64_t gateway = due ? k->runs[i].gateway : 0;
        if (frames)
            n = collect_locked(k, i, now, frames);
        pthread_mutex_unlock(&k->lock);
        if (n)
            send_hold(k, gateway, frames, n);
        free(frames);
        if (!n)
            return;
    }
}

static void *run(void *ctx) {
    keeper *k = ctx;
    for (;;) {
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += TICK_MS * 1000000L;
        until.tv_sec += until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        pthread_mutex_lock(&k->lock);
        if (!k->stop)
            pthread_cond_timedwait(&k->wake, &k->lock, &until);
        bool stop = k->stop;
        pthread_mutex_unlock(&k->lock);
        if (stop)
            return NULL;
        hold_all(k);
    }
}

keeper *keeper_start(const char *redis_address, uint64_t worker, inbox *to) {
    keeper *k = calloc(1, sizeof *k);
    if (!k || !(k->address = strdup(redis_address)))
        fatal("no memory for the keeper");
    k->worker = worker;
    k->to = to;
    k->noted_ms = clock_mono_ms();
    pthread_mutex_init(&k->lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC); // a clock that is set stops nobody
    pthread_cond_init(&k->wake, &attr);
    pthread_condattr_destroy(&attr);
    if (pthread_create(&k->thread, NULL, run, k))
        fatal("the keeper's thread cannot be made");
    return k;
}

// When we ourselves last named this run, if that is later than its last frame.
static int64_t held_at(const keeper *k, const keeper_run *run) {
    for (int i = 0; i < k->n; i++)
        if (k->runs[i].run == run->run && k->runs[i].last_ms > run->last_ms)
            return k->runs[i].last_ms;
    return run->last_ms;
}

void keeper_note(keeper *k, keeper_run *runs, int n) {
    pthread_mutex_lock(&k->lock);
    for (int i = 0; i < n; i++)
        runs[i].last_ms = held_at(k, &runs[i]);
    if (n > k->cap) {
        k->cap = n + 16;
        k->runs = realloc(k->runs, (size_t)k->cap * sizeof *k->runs);
        if (!k->runs)
            fatal("no memory for %d runs", n);
    }
    if (n)
        memcpy(k->runs, runs, (size_t)n * sizeof *runs);
    k->n = n;
    k->noted_ms = clock_mono_ms();
    pthread_mutex_unlock(&k->lock);
}

void keeper_stop(keeper *k) {
    pthread_mutex_lock(&k->lock);
    k->stop = true;
    pthread_cond_signal(&k->wake);
    pthread_mutex_unlock(&k->lock);
    pthread_join(k->thread, NULL);
    redis_close(k->r);
    pthread_mutex_destroy(&k->lock);
    pthread_cond_destroy(&k->wake);
    free(k->runs);
    free(k->address);
    free(k);
}
