// Rows on their way to the ledger. Owns its thread, its connections to Postgres and Redis, and the
// entries from recorder_push until they are told. The queue is entered by any thread and left by
// the recorder's; a batch is retried with back-off until Postgres has it. COMMIT comes first, then
// the record in Redis goes, then C: whoever repeats any of it changes nothing.
#include "router/recorder.h"
#include "base/clock.h"
#include "base/failpoint.h"
#include "base/log.h"
#include "base/metric.h"
#include "base/thread.h"
#include "router/command.h"
#include "router/quota.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define GATHER_MS 20
#define BACKOFF_MIN_MS 100
#define BACKOFF_MAX_MS 2000
#define REDIS_MS 2000
#define REDIS_AGAIN_MS 1000

struct recorder {
    const config *c;
    journal *j;
    pthread_t thread;
    pthread_mutex_t mutex; // guards first, last, n, is_stopping
    pthread_cond_t some;
    recorder_entry *first, *last; // entered by any thread, left by the recorder's
    int n;
    bool is_stopping;
    int64_t give_up_ms; // monotonic, when stopping
    _Atomic int64_t waiting;
    _Atomic int64_t oldest_ms; // monotonic: since when the first of the batch waits; 0: no batch
    _Atomic bool is_behind;
    // the recorder's thread only
    pg *db;
    redis *cache;
    int64_t cache_again_ms;
    metric *rows, *repeats, *retries, *waiting_gauge;
};

static void free_entry(recorder_entry *x) {
    mailbox_unref(x->owner);
    free(x);
}

void recorder_push(recorder *r, recorder_entry *x) {
    x->next = NULL;
    x->pushed_ms = clock_mono_ms();
    metric_set(r->waiting_gauge, atomic_fetch_add(&r->waiting, 1) + 1);
    pthread_mutex_lock(&r->mutex);
    if (r->last)
        r->last->next = x;
    else
        r->first = x;
    r->last = x;
    r->n++;
    if (r->n == 1 || r->n == USAGE_BATCH) // in between it gathers
        pthread_cond_signal(&r->some);
    pthread_mutex_unlock(&r->mutex);
}

int64_t recorder_waiting(const recorder *r) {
    return atomic_load(&((recorder *)(uintptr_t)r)->waiting);
}

int64_t recorder_oldest_ms(const recorder *r) {
    int64_t since_ms = atomic_load(&((recorder *)(uintptr_t)r)->oldest_ms);
    return since_ms ? clock_mono_ms() - since_ms : 0;
}

bool recorder_is_behind(const recorder *r) {
    return atomic_load(&((recorder *)(uintptr_t)r)->is_behind);
}

// ---- Redis, best effort

static redis *reach_cache(recorder *r) {
    if (r->cache || clock_mono_ms() < r->cache_again_ms)
        return r->cache;
    if (redis_connect(r->c->redis_address, REDIS_MS, &r->cache, NULL)) {
        r->cache = NULL;
        r->cache_again_ms = clock_mono_ms() + REDIS_AGAIN_MS;
    }
    return r->cache;
}

static void lose_cache(recorder *r) {
    redis_close(r->cache);
    r->cache = NULL;
    r->cache_again_ms = clock_mono_ms() + REDIS_AGAIN_MS;
}

static bool is_skipped(const recorder_entry *x, bool drop) {
    return drop ? x->is_refused : x->is_settled;
}

static void put_settle(const usage_row *row, bool drop, command *c) {
    quota_settlement own = {
        .prompt = row->prompt, .completion = row->completion, .money = row->money};
    quota_settle_command(&row->meta, row->id, &own, row->outcome, drop, c);
}

// Settles the entries that are not, or drops all, in one pipeline. GONE: their own values stand.
static void settle_all(recorder *r, recorder_entry *const *batch, int n, bool drop) {
    command c = {0};
    int sent = 0;
    redis *cache = reach_cache(r);
    for (; cache && sent < n; sent++) {
        if (is_skipped(batch[sent], drop))
            continue;
        put_settle(&batch[sent]->row, drop, &c);
        if (command_append(&c, cache, NULL))
            break;
    }
    for (int i = 0; cache && i < sent; i++) {
        redis_reply_box *box = NULL;
        quota_settlement got;
        if (is_skipped(batch[i], drop))
            continue;
        if (redis_get_reply(cache, &box, NULL)) {
            lose_cache(r);
            break;
        }
        if (!drop && quota_read_settlement(redis_reply_value(box), &got) == QUOTA_OK)
            usage_row_settle(&batch[i]->row, &got);
        redis_reply_free(box);
    }
    command_release(&c);
}

// ---- Postgres

// Will the same statement succeed later? Lost connections, and transactions that met another.
static bool is_passing(const recorder *r, const err *e) {
    return e->code == ERR_DEPENDENCY || strncmp(pg_sqlstate(r->db), "40", 2) == 0;
}

// Rows that are there already keep their values, which these take over: what others counted is
// righted by them.
static int insert_rows(recorder *r, usage_row **rows, int n, err *e) {
    int fresh = 0, found;
    if (usage_insert(r->db, (const usage_row *const *)rows, n, &fresh, e) ||
        (fresh < n && usage_read_back(r->db, rows, n, &found, e)))
        return -1;
    metric_add(r->rows, fresh);
    metric_add(r->repeats, n - fresh);
    return 0;
}

// One by one, after a batch was refused as a whole: a row that Postgres will never take must not
// stop the others. It stays in the journal and in its record.
static int insert_singly(recorder *r, recorder_entry **batch, int n, err *e) {
    for (int i = 0; i < n; i++) {
        usage_row *row = &batch[i]->row;
        if (!insert_rows(r, &row, 1, e))
            continue;
        if (is_passing(r, e))
            return -1;
        buf text = {0};
        usage_row_put(row, &text);
        log_event(LOG_ERROR, "usage.refused", "{s:s,s:s,s:s}", "id", row->id, "error", e->message,
                  "row", text.data);
        buf_release(&text);
        batch[i]->is_refused = true;
    }
    return 0;
}

static int insert_batch(recorder *r, recorder_entry **batch, int n, err *e) {
    usage_row *rows[USAGE_BATCH];
    for (int i = 0; i < n; i++)
        rows[i] = &batch[i]->row;
    if (!r->db && pg_connect(r->c->postgres_url, &r->db, e))
        return -1;
    if (insert_rows(r, rows, n, e))
        return is_passing(r, e) ? -1 : insert_singly(r, batch, n, e);
    return 0;
}

static bool must_give_up(recorder *r) {
    pthread_mutex_lock(&r->mutex);
    bool yes = r->is_stopping && clock_mono_ms() >= r->give_up_ms;
    pthread_mutex_unlock(&r->mutex);
    return yes;
}

// Until Postgres has the batch. -1: the process ends first.
static int insert_patiently(recorder *r, recorder_entry **batch, int n) {
    int pause_ms = BACKOFF_MIN_MS;
    for (;;) {
        err e = {0};
        if (!insert_batch(r, batch, n, &e)) {
            atomic_store(&r->is_behind, false);
            return 0;
        }
        if (!atomic_exchange(&r->is_behind, true))
            log_event(LOG_WARN, "recorder.waits", "{s:s,s:i}", "error", e.message, "rows", n);
        metric_add(r->retries, 1);
        for (int slept = 0; slept < pause_ms; slept += 20) {
            if (must_give_up(r))
                return -1;
            clock_sleep_ms(20);
        }
        pause_ms = pause_ms * 2 < BACKOFF_MAX_MS ? pause_ms * 2 : BACKOFF_MAX_MS;
    }
}

// ---- the thread

// Waits for the first row, then a little for more. 0: the end.
static int gather(recorder *r, recorder_entry **batch) {
    pthread_mutex_lock(&r->mutex);
    while (!r->n && !r->is_stopping)
        pthread_cond_wait(&r->some, &r->mutex);
    int64_t until = clock_mono_ms() + GATHER_MS;
    while (r->n < USAGE_BATCH && !r->is_stopping && clock_mono_ms() < until)
        thread_cond_wait_us(&r->some, &r->mutex, (until - clock_mono_ms()) * 1000);
    int n = 0;
    for (; r->first && n < USAGE_BATCH; n++) {
        batch[n] = r->first;
        r->first = r->first->next;
    }
    if (!r->first)
        r->last = NULL;
    r->n -= n;
    pthread_mutex_unlock(&r->mutex);
    return n;
}

static void commit_lines(recorder *r, recorder_entry *const *batch, int n) {
    journal_closed closed[USAGE_BATCH];
    int k = 0;
    for (int i = 0; i < n; i++)
        if (batch[i]->segment && !batch[i]->is_refused)
            closed[k++] = (journal_closed){batch[i]->row.id, batch[i]->segment};
    journal_commit(r->j, closed, k);
}

static void tell(recorder *r, recorder_entry *x) {
    metric_set(r->waiting_gauge, atomic_fetch_sub(&r->waiting, 1) - 1);
    if (!x->owner) {
        free_entry(x);
        return;
    }
    mailbox *owner = x->owner;
    x->owner = NULL;
    mailbox_post(owner, x->recorded, x);
    mailbox_unref(owner);
}

static void *run(void *ctx) {
    recorder *r = ctx;
    recorder_entry *batch[USAGE_BATCH];
    for (int n; (n = gather(r, batch)) > 0;) {
        atomic_store(&r->oldest_ms, batch[0]->pushed_ms);
        settle_all(r, batch, n, false);
        failpoint("commit.before"); // H
        if (insert_patiently(r, batch, n)) {
            log_event(LOG_WARN, "recorder.left", "{s:i}", "rows", n);
            for (int i = 0; i < n; i++)
                free_entry(batch[i]);
            continue;
        }
        failpoint("commit.after");
        settle_all(r, batch, n, true);
        failpoint("drop.after");
        commit_lines(r, batch, n);
        for (int i = 0; i < n; i++)
            tell(r, batch[i]);
        atomic_store(&r->oldest_ms, 0);
    }
    redis_close(r->cache);
    pg_close(r->db);
    return NULL;
}

recorder *recorder_open(const config *c, journal *j) {
    recorder *r = calloc(1, sizeof *r);
    if (!r)
        fatal("out of memory for the recorder");
    r->c = c;
    r->j = j;
    pthread_mutex_init(&r->mutex, NULL);
    thread_cond_init(&r->some);
    r->rows = metric_counter("tiergate_usage_rows_total", "", "Usage rows committed.");
    r->repeats = metric_counter("tiergate_usage_repeats_total", "",
                                "Usage rows that were in the ledger already.");
    r->retries = metric_counter("tiergate_usage_retries_total", "",
                                "Batches of usage rows that had to be sent again.");
    r->waiting_gauge =
        metric_gauge("tiergate_usage_waiting", "", "Usage rows that wait for their commit.");
    thread_start(&r->thread, "recorder", run, r);
    return r;
}

void recorder_close(recorder *r, int ms) {
    if (!r)
        return;
    pthread_mutex_lock(&r->mutex);
    r->is_stopping = true;
    r->give_up_ms = clock_mono_ms() + ms;
    pthread_cond_signal(&r->some);
    pthread_mutex_unlock(&r->mutex);
    pthread_join(r->thread, NULL);
    pthread_mutex_destroy(&r->mutex);
    pthread_cond_destroy(&r->some);
    free(r);
}
