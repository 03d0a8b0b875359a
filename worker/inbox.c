// A small mailbox with one reader. Owns its notes; one mutex.
#include "worker/inbox.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "base/err.h"

struct inbox {
    pthread_mutex_t lock;
    pthread_cond_t news;
    note *notes;
    int n, cap;
    bool rang;
    int stops, stops_seen;
};

inbox *inbox_new(void) {
    inbox *b = calloc(1, sizeof *b);
    if (!b)
        fatal("no memory for the inbox");
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&b->news, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&b->lock, NULL);
    return b;
}

void inbox_free(inbox *b) {
    pthread_cond_destroy(&b->news);
    pthread_mutex_destroy(&b->lock);
    free(b->notes);
    free(b);
}

void inbox_put(inbox *b, const note *n) {
    pthread_mutex_lock(&b->lock);
    if (b->n == b->cap) {
        b->cap = b->cap ? 2 * b->cap : 64;
        b->notes = realloc(b->notes, (size_t)b->cap * sizeof *b->notes);
        if (!b->notes)
            fatal("no memory for %d notes", b->cap);
    }
    b->notes[b->n++] = *n;
    pthread_cond_signal(&b->news);
    pthread_mutex_unlock(&b->lock);
}

void inbox_ring(inbox *b) {
    pthread_mutex_lock(&b->lock);
    b->rang = true;
    pthread_cond_signal(&b->news);
    pthread_mutex_unlock(&b->lock);
}

void inbox_stop(inbox *b) {
    pthread_mutex_lock(&b->lock);
    b->stops++;
    pthread_cond_signal(&b->news);
    pthread_mutex_unlock(&b->lock);
}

bool inbox_take(inbox *b, note *out) {
    pthread_mutex_lock(&b->lock);
    bool any = b->n > 0;
    if (any) {
        *out = b->notes[0];
        memmove(b->notes, b->notes + 1, (size_t)--b->n * sizeof *b->notes);
    }
    pthread_mutex_unlock(&b->lock);
    return any;
}

bool inbox_rang(inbox *b) {
    pthread_mutex_lock(&b->lock);
    bool rang = b->rang;
    b->rang = false;
    pthread_mutex_unlock(&b->lock);
    return rang;
}

int inbox_stops(inbox *b) {
    pthread_mutex_lock(&b->lock);
    int stops = b->stops_seen = b->stops;
    pthread_mutex_unlock(&b->lock);
    return stops;
}

void inbox_wait(inbox *b, int ms) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += ms / 1000;
    until.tv_nsec += ms % 1000 * 1000000L;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000L;
    }
    pthread_mutex_lock(&b->lock);
    while (!b->n && !b->rang && b->stops == b->stops_seen)
        if (pthread_cond_timedwait(&b->news, &b->lock, &until))
            break;
    pthread_mutex_unlock(&b->lock);
}
