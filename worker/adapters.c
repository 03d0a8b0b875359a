// A short list in order of use: a worker has tens of adapters, not thousands. An entry's `own` and
// `failure` are the loader's until it is in `done`; all else is the step thread's. What is being
// loaded is never given up, held or not.
#include "worker/adapters.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "base/clock.h"
#include "base/file.h"
#include "base/id.h"
#include "base/log.h"
#include "base/secret.h"

enum { MOST_BYTES = 1 << 30, ID_TEXT = 64, DIGITS = 16 };

typedef struct entry {
    struct entry *next;  // used longer ago
    struct entry *after; // in jobs or done
    adapter held;
    bool is_loading; // until settled
    engine_adapter *own;
    err failure;
    int64_t took_us;
    char tenant[ID_UUID_TEXT], id[ID_TEXT];
} entry;

struct adapters {
    engine *g;
    char *dir;
    size_t most;
    void (*news)(void *ctx);
    void *ctx;
    entry *newest;
    adapters_stats stats;
    pthread_t loader;
    pthread_mutex_t lock; // of what follows
    pthread_cond_t wanted;
    entry *jobs, **last_job; // first in, first out
    entry *done;
    bool stop;
};

static void drop(adapters *s, entry **at) {
    entry *n = *at;
    *at = n->next;
    if (n->held.a) {
        s->stats.loaded--;
        s->stats.bytes -= engine_adapter_bytes(n->own);
    }
    engine_adapter_close(n->own);
    free(n);
}

static bool is_idle(const entry *n) { return !n->held.holders && !n->is_loading; }

// The one that is idle and was used longest ago; NULL: there is none.
static entry **oldest_idle(adapters *s) {
    entry **found = NULL;
    for (entry **at = &s->newest; *at; at = &(*at)->next)
        if (is_idle(*at))
            found = at;
    return found;
}

static void make_room(adapters *s) {
    entry **at = &s->newest;
    while (*at)
        if (is_idle(*at) && (*at)->held.why.code)
            drop(s, at);
        else
            at = &(*at)->next;
    while (s->stats.bytes > s->most && (at = oldest_idle(s)))
        drop(s, at);
}

// ---- the loader

// Names become a path: nothing but what import makes.
static bool is_name(const char *text) {
    return *text && *text != '.' &&
           !text[strspn(text, "abcdefghijklmnopqrstuvwxyz"
                              "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")];
}

static int check_digest(const char *id, const buf *bytes, err *e) {
    uint8_t digest[32];
    char text[DIGITS + 1];
    size_t n = strlen(id);
    secret_sha256(bytes->data, bytes->len, digest);
    for (int i = 0; i < DIGITS / 2; i++)
        snprintf(text + 2 * i, 3, "%02x", digest[i]);
    if (n < DIGITS || strcmp(id + n - DIGITS, text))
        return err_set(e, ERR_FORMAT, NULL, "adapter %s: its file has another content", id);
    return 0;
}

static int load(adapters *s, entry *n, err *e) {
    char path[4096];
    buf bytes = {0};
    gguf *file = NULL;
    if (!is_name(n->tenant) || !is_name(n->id))
        return err_set(e, ERR_INVALID, NULL, "an adapter of that name cannot be");
    snprintf(path, sizeof path, "%s/%s/%s.gguf", s->dir, n->tenant, n->id);
    int rc = file_read(path, MOST_BYTES, &bytes, e) || check_digest(n->id, &bytes, e) ||
                     gguf_open_memory(bytes.data, bytes.len, &file, e) ||
                     engine_adapter_open(s->g, file, &n->own, e)
                 ? -1
                 : 0;
    gguf_close(file);
    buf_release(&bytes);
    return rc;
}

// Waits for the next; NULL: it shall stop.
static entry *take_wanted(adapters *s) {
    pthread_mutex_lock(&s->lock);
    while (!s->jobs && !s->stop)
        pthread_cond_wait(&s->wanted, &s->lock);
    entry *n = s->stop ? NULL : s->jobs;
    if (n && !(s->jobs = n->after))
        s->last_job = &s->jobs;
    pthread_mutex_unlock(&s->lock);
    return n;
}

static void *load_all(void *arg) {
    adapters *s = arg;
    for (entry *n; (n = take_wanted(s));) {
        int64_t begun = clock_mono_us();
        load(s, n, &n->failure);
        n->took_us = clock_mono_us() - begun;
        pthread_mutex_lock(&s->lock);
        n->after = s->done;
        s->done = n;
        pthread_mutex_unlock(&s->lock);
        s->news(s->ctx);
    }
    return NULL;
}

adapters *adapters_new(engine *g, const char *dir, size_t bytes, void (*news)(void *ctx),
                       void *ctx) {
    adapters *s = calloc(1, sizeof *s);
    if (!s || !(s->dir = strdup(dir)))
        fatal("no memory for adapters");
    s->g = g;
    s->most = bytes;
    s->news = news;
    s->ctx = ctx;
    s->last_job = &s->jobs;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->wanted, NULL);
    if (pthread_create(&s->loader, NULL, load_all, s))
        fatal("no thread for adapters");
    return s;
}

void adapters_free(adapters *s) {
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    s->stop = true;
    pthread_cond_signal(&s->wanted);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->loader, NULL);
    while (s->newest)
        drop(s, &s->newest);
    pthread_cond_destroy(&s->wanted);
    pthread_mutex_destroy(&s->lock);
    free(s->dir);
    free(s);
}

// ---- the step thread

static entry *take_out(adapters *s, const char *tenant, const char *id) {
    for (entry **at = &s->newest; *at; at = &(*at)->next)
        if (!(*at)->held.why.code && !strcmp((*at)->tenant, tenant) && !strcmp((*at)->id, id)) {
            entry *found = *at;
            *at = found->next;
            return found;
        }
    return NULL;
}

static entry *load_new(adapters *s, const char *tenant, const char *id) {
    entry *n = calloc(1, sizeof *n);
    if (!n)
        fatal("no memory for an adapter");
    snprintf(n->tenant, sizeof n->tenant, "%s", tenant);
    snprintf(n->id, sizeof n->id, "%s", id);
    n->is_loading = true;
    pthread_mutex_lock(&s->lock);
    *s->last_job = n;
    s->last_job = &n->after;
    pthread_cond_signal(&s->wanted);
    pthread_mutex_unlock(&s->lock);
    return n;
}

adapter *adapters_hold(adapters *s, const char *tenant, const char *id) {
    entry *n = take_out(s, tenant, id);
    if (!n)
        n = load_new(s, tenant, id);
    n->next = s->newest;
    s->newest = n;
    n->held.holders++;
    make_room(s);
    return &n->held;
}

static void settle(adapters *s, entry *n) {
    n->is_loading = false;
    n->held.a = n->own;
    n->held.why = n->failure;
    if (!n->own)
        return;
    s->stats.loads++;
    s->stats.loaded++;
    s->stats.bytes += engine_adapter_bytes(n->own);
    log_event(LOG_INFO, "worker.adapter_loaded", "{s:s,s:s,s:I,s:I}", "tenant", n->tenant,
              "adapter", n->id, "bytes", (long long)engine_adapter_bytes(n->own), "us",
              (long long)n->took_us);
}

void adapters_settle(adapters *s) {
    pthread_mutex_lock(&s->lock);
    entry *done = s->done;
    s->done = NULL;
    pthread_mutex_unlock(&s->lock);
    for (; done; done = done->after)
        settle(s, done);
    make_room(s);
}

void adapter_let_go(adapter *a) {
    if (a)
        a->holders--;
}

adapters_stats adapters_get_stats(const adapters *s) { return s->stats; }
