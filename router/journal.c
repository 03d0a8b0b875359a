// Appending to the journal and making it durable. Owns the directory's lock, the segments and the
// sync thread. Lines enter on any thread under the mutex, a write(2) a call; the sync thread takes
// the descriptors, calls fdatasync outside the mutex and posts to the watchers that asked. A write
// that fails refuses new requests (journal_trouble) but never stops those that run: their record in
// Redis is the other copy.
#include "router/journal_internal.h"
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/file.h"
#include "base/log.h"
#include "base/thread.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#define SEGMENT_BYTES (8 << 20)
#define SYNC_MS 5     // what nobody waits for is durable after so long
#define SHARE_US 200  // for each further line that a sync served, the next one may wait for more
#define RETRY_MS 1000 // after a failed write, how long nothing is accepted

struct journal_watch {
    journal_watch *next;
    mailbox *m;
    mailbox_fn *fn;
    bool wants; // under the journal's mutex
};

struct journal {
    char dir[400];
    int64_t limit_bytes;
    int lock_fd, dir_fd;
    pthread_t thread;
    pthread_mutex_t mutex; // guards everything below
    pthread_cond_t dirty;
    journal_files segments; // the last one is being written
    int fd;
    int *old_fds; // full segments that wait for their last fdatasync
    size_t n_old_fds;
    uint64_t written;                   // bytes appended in this life
    uint64_t wanted;                    // somebody waits until these are durable
    int n_wanted;                       // wishes since the last sync
    bool is_torn, is_stopping, is_idle; // is_idle: the thread waits for the next line
    journal_watch *watches;
    _Atomic uint64_t durable;
    _Atomic int64_t bytes;         // of all segments
    _Atomic int64_t refused_until; // monotonic ms, after a failed write
    _Atomic bool has_failed;       // fdatasync failed: nothing more is promised
};

// ---- segments

static journal_file *current(journal *j) { return &j->segments.items[j->segments.n - 1]; }

static int start_segment(journal *j, uint64_t number, err *e) {
    char path[512];
    journal_file_path(j->dir, number, path, sizeof path);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_set(e, ERR_IO, NULL, "%s: %s", path, strerror(errno));
    fsync(j->dir_fd); // best effort: the name of the file
    journal_file_add(&j->segments, (journal_file){.number = number});
    j->fd = fd;
    j->is_torn = false;
    return 0;
}

static void rotate_locked(journal *j) {
    int full = j->fd;
    err e = {0};
    if (start_segment(j, current(j)->number + 1, &e)) {
        log_event(LOG_WARN, "journal.rotate", "{s:s}", "error", e.message);
        return; // goes on in the full one
    }
    j->old_fds = realloc(j->old_fds, (j->n_old_fds + 1) * sizeof *j->old_fds);
    if (!j->old_fds)
        fatal("out of memory for the journal");
    j->old_fds[j->n_old_fds++] = full;
}

// Removes segments from the front that nobody needs any more.
static void remove_done_locked(journal *j) {
    size_t n = 0;
    while (n + 1 < j->segments.n && j->segments.items[n].n_open == 0) {
        char path[512];
        journal_file_path(j->dir, j->segments.items[n].number, path, sizeof path);
        unlink(path);
        atomic_fetch_sub(&j->bytes, j->segments.items[n].bytes);
        n++;
    }
    if (!n)
        return;
    j->segments.n -= n;
    memmove(j->segments.items, j->segments.items + n, j->segments.n * sizeof *j->segments.items);
}

// ---- appending

static int write_failed(journal *j, err *e) {
    j->is_torn = true;
    atomic_store(&j->refused_until, clock_mono_ms() + RETRY_MS);
    err_set(e, ERR_DEPENDENCY, NULL, "the journal cannot be written: %s", strerror(errno));
    if (e)
        e->retry_ms = RETRY_MS;
    return -1;
}

static int write_locked(journal *j, const char *p, size_t n, err *e) {
    while (n > 0) {
        ssize_t done = write(j->fd, p, n);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return write_failed(j, e);
        p += done;
        n -= (size_t)done;
        j->written += (uint64_t)done;
        current(j)->bytes += done;
        atomic_fetch_add(&j->bytes, done);
    }
    return 0;
}

static int append_locked(journal *j, const buf *line, err *e) {
    if (current(j)->bytes >= SEGMENT_BYTES)
        rotate_locked(j);
    if (j->is_torn && write_locked(j, "\n", 1, e)) // ends the torn line
        return -1;
    j->is_torn = false;
    if (write_locked(j, line->data, line->len, e))
        return -1;
    if (j->is_idle)
        pthread_cond_signal(&j->dirty);
    j->is_idle = false;
    return 0;
}

int journal_accept(journal *j, const char *id, const usage_meta *m, journal_mark *mark, err *e) {
    const char *trouble = journal_trouble(j);
    if (trouble) {
        err_set(e, ERR_DEPENDENCY, NULL, "%s", trouble);
        if (e)
            e->retry_ms = RETRY_MS;
        return -1;
    }
    buf text = {0}, line = {0};
    usage_meta_put(m, &text);
    journal_format_line(&line, 'A', id, text.data);
    pthread_mutex_lock(&j->mutex);
    int rc = append_locked(j, &line, e);
    if (!rc) {
        current(j)->n_open++;
        *mark = (journal_mark){.segment = current(j)->number, .end = j->written};
    }
    pthread_mutex_unlock(&j->mutex);
    buf_release(&text);
    buf_release(&line);
    return rc;
}

int journal_finish(journal *j, const usage_row *r, err *e) {
    buf text = {0}, line = {0};
    usage_row_put(r, &text);
    journal_format_line(&line, 'F', r->id, text.data);
    pthread_mutex_lock(&j->mutex);
    int rc = append_locked(j, &line, e);
    pthread_mutex_unlock(&j->mutex);
    buf_release(&text);
    buf_release(&line);
    return rc;
}

void journal_commit(journal *j, const journal_closed *closed, int n) {
    buf lines = {0};
    if (n == 0)
        return;
    for (int i = 0; i < n; i++)
        journal_format_line(&lines, 'C', closed[i].id, NULL);
    pthread_mutex_lock(&j->mutex);
    append_locked(j, &lines, NULL); // lost: the next start closes them once more, without effect
    for (int i = 0; i < n; i++) {
        journal_file *s = journal_file_find(&j->segments, closed[i].segment);
        if (s)
            s->n_open--;
    }
    remove_done_locked(j);
    pthread_mutex_unlock(&j->mutex);
    buf_release(&lines);
}

// ---- durability

static void tell_watchers_locked(journal *j) {
    for (journal_watch *w = j->watches; w; w = w->next)
        if (w->wants) {
            w->wants = false;
            mailbox_post(w->m, w->fn, NULL);
        }
}

// Takes what is to be synced, syncs without the mutex, tells. Called and returns with the mutex.
// Only this thread closes descriptors, so that the current one is good even if it is rotated now.
static void sync_locked(journal *j) {
    int *old = j->old_fds, fd = j->fd, failed = 0;
    size_t n_old = j->n_old_fds;
    uint64_t upto = j->written;
    j->old_fds = NULL;
    j->n_old_fds = 0;
    pthread_mutex_unlock(&j->mutex);
    failed |= failpoint("journal.sync");
    for (size_t i = 0; i < n_old; i++) {
        failed |= fdatasync(old[i]) != 0;
        close(old[i]);
    }
    failed |= fdatasync(fd) != 0;
    free(old);
    pthread_mutex_lock(&j->mutex);
    if (failed && !atomic_exchange(&j->has_failed, true))
        log_event(LOG_ERROR, "journal.sync", "{s:s}", "error", strerror(errno));
    if (!failed)
        atomic_store(&j->durable, upto);
    tell_watchers_locked(j);
}

static bool is_behind(const journal *j, uint64_t upto) {
    return journal_durable(j) < upto && !journal_has_failed(j);
}

// Until a line that somebody waits for is not durable, or any line for SYNC_MS. false: the end.
static bool wait_locked(journal *j) {
    while (!is_behind(j, j->written)) {
        if (j->is_stopping)
            return false;
        j->is_idle = true;
        pthread_cond_wait(&j->dirty, &j->mutex);
    }
    j->is_idle = false;
    if (!is_behind(j, j->wanted) && !j->is_stopping)
        thread_cond_wait_us(&j->dirty, &j->mutex, SYNC_MS * 1000);
    return true;
}

// The more wishes a sync answers, the longer the next one waits for company: one at a time nobody
// waits for the clock, under load a sync serves many.
static void *run_sync(void *ctx) {
    journal *j = ctx;
    pthread_mutex_lock(&j->mutex);
    while (wait_locked(j)) {
        int rest_us = j->is_stopping ? 0 : (j->n_wanted - 1) * SHARE_US;
        j->n_wanted = 0;
        sync_locked(j);
        pthread_mutex_unlock(&j->mutex);
        if (rest_us > 0)
            clock_sleep_us(rest_us < SYNC_MS * 1000 ? rest_us : SYNC_MS * 1000);
        pthread_mutex_lock(&j->mutex);
    }
    pthread_mutex_unlock(&j->mutex);
    return NULL;
}

journal_watch *journal_watch_new(journal *j, mailbox *m, mailbox_fn *fn) {
    journal_watch *w = calloc(1, sizeof *w);
    if (!w)
        fatal("out of memory for the journal");
    *w = (journal_watch){.m = mailbox_ref(m), .fn = fn};
    pthread_mutex_lock(&j->mutex);
    w->next = j->watches;
    j->watches = w;
    pthread_mutex_unlock(&j->mutex);
    return w;
}

void journal_watch_free(journal *j, journal_watch *w) {
    if (!w)
        return;
    pthread_mutex_lock(&j->mutex);
    for (journal_watch **at = &j->watches; *at; at = &(*at)->next)
        if (*at == w) {
            *at = w->next;
            break;
        }
    pthread_mutex_unlock(&j->mutex);
    mailbox_unref(w->m);
    free(w);
}

static void wish_locked(journal *j, journal_watch *w, uint64_t end) {
    w->wants = true;
    j->n_wanted++;
    if (end > j->wanted)
        j->wanted = end;
    pthread_cond_signal(&j->dirty);
}

// The line may have become durable before the wish was known: then the watcher hears at once.
void journal_want(journal *j, journal_watch *w, uint64_t end) {
    pthread_mutex_lock(&j->mutex);
    if (atomic_load(&j->durable) >= end || atomic_load(&j->has_failed))
        mailbox_post(w->m, w->fn, NULL);
    else
        wish_locked(j, w, end);
    pthread_mutex_unlock(&j->mutex);
}

uint64_t journal_durable(const journal *j) {
    return atomic_load(&((journal *)(uintptr_t)j)->durable);
}

const char *journal_trouble(const journal *k) {
    journal *j = (journal *)(uintptr_t)k; // atomics want it without const
    if (atomic_load(&j->has_failed))
        return "the journal's disk has failed";
    if (atomic_load(&j->bytes) >= j->limit_bytes)
        return "the journal is full";
    if (clock_mono_ms() < atomic_load(&j->refused_until))
        return "the journal cannot be written";
    return NULL;
}

bool journal_has_failed(const journal *j) {
    return atomic_load(&((journal *)(uintptr_t)j)->has_failed);
}

int64_t journal_bytes(const journal *j) { return atomic_load(&((journal *)(uintptr_t)j)->bytes); }

// ---- start and end

static int lock_dir(journal *j, err *e) {
    char path[512];
    snprintf(path, sizeof path, "%s/lock", j->dir);
    j->dir_fd = open(j->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    j->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (j->dir_fd < 0 || j->lock_fd < 0)
        return err_set(e, ERR_IO, NULL, "%s: %s", path, strerror(errno));
    if (flock(j->lock_fd, LOCK_EX | LOCK_NB))
        return err_set(e, ERR_IO, NULL, "%s: another gateway uses this journal", path);
    return 0;
}

static int open_files(journal *j, void (*found)(void *ctx, const journal_open_id *id), void *ctx,
                      err *e) {
    if (file_mkdirs(j->dir, 0700, e) || lock_dir(j, e) ||
        journal_replay(j->dir, &j->segments, found, ctx, e))
        return -1;
    for (size_t i = 0; i < j->segments.n; i++)
        atomic_fetch_add(&j->bytes, j->segments.items[i].bytes);
    uint64_t next = j->segments.n ? current(j)->number + 1 : 1;
    if (start_segment(j, next, e))
        return -1;
    remove_done_locked(j); // nobody else is there yet
    return 0;
}

static void release(journal *j) {
    if (j->fd >= 0)
        close(j->fd);
    if (j->lock_fd >= 0)
        close(j->lock_fd);
    if (j->dir_fd >= 0)
        close(j->dir_fd);
    pthread_cond_destroy(&j->dirty);
    pthread_mutex_destroy(&j->mutex);
    for (size_t i = 0; i < j->n_old_fds; i++)
        close(j->old_fds[i]);
    free(j->segments.items);
    free(j->old_fds);
    free(j);
}

int journal_open(const char *dir, int64_t limit_bytes,
                 void (*found)(void *ctx, const journal_open_id *id), void *ctx, journal **out,
                 err *e) {
    journal *j = calloc(1, sizeof *j);
    if (!j)
        fatal("out of memory for the journal");
    j->fd = j->lock_fd = j->dir_fd = -1;
    j->limit_bytes = limit_bytes;
    pthread_mutex_init(&j->mutex, NULL);
    thread_cond_init(&j->dirty);
    int n = snprintf(j->dir, sizeof j->dir, "%s", dir);
    if (n < 0 || (size_t)n >= sizeof j->dir) {
        release(j);
        return err_set(e, ERR_INVALID, NULL, "the journal's path is too long: %s", dir);
    }
    if (open_files(j, found, ctx, e)) {
        release(j);
        return -1;
    }
    thread_start(&j->thread, "journal", run_sync, j);
    *out = j;
    return 0;
}

void journal_close(journal *j) {
    if (!j)
        return;
    pthread_mutex_lock(&j->mutex);
    j->is_stopping = true;
    pthread_cond_signal(&j->dirty);
    pthread_mutex_unlock(&j->mutex);
    pthread_join(j->thread, NULL);
    release(j);
}
