// Checks the keys of requests. Owns the cache of known keys, a table of keys refused of late, and
// one refresher thread, which keeps the cache true: woken by NOTIFY api_keys, by the clock while
// notifications are down, and to end keys whose time is over. Look-ups that miss run on the
// caller's pool. A database outage leaves what is cached valid.
#include "auth/auth.h"
#include "auth/apikey.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/pg.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    N_BUCKETS = 16384, // of the cache
    CHAIN = 8,         // entries a bucket holds at most; the oldest goes
    N_REFUSED = 4096,
    REFUSED_MS = 10000,   // a refused key is not looked up again for so long
    POLL_MS = 2000,       // re-read while notifications are down
    TICK_MS = 500,        // expiry is noticed within
    LAST_USED_MS = 60000, // last_used_at is written that often
    DB_CONNECTIONS = 4,
};

typedef enum key_state { KEY_LIVE, KEY_REVOKED, KEY_EXPIRED, KEY_SUSPENDED } key_state;

typedef struct entry {
    struct entry *next; // the chain of its bucket, the newest first
    char public_id[9];
    uint32_t pepper_id;
    uint8_t hash[32];
    principal who;
    int64_t expires_ms; // wall clock; 0: never
    key_state state;
    atomic_bool used; // since last_used_at was written
} entry;

typedef struct refusal {
    uint8_t digest[16];
    int64_t until_ms;
} refusal;

struct auth {
    secret_ring pepper;
    pool *workers;
    pg_pool *db;
    pg_listen *listener;
    pthread_rwlock_t lock; // buckets, refused, revoked_fn
    entry *buckets[N_BUCKETS];
    refusal refused[N_REFUSED];
    void (*revoked_fn)(void *ctx, const char *key_id);
    void *revoked_ctx;
    atomic_uint n_news; // notifications heard
    // refresher
    pthread_t thread;
    pthread_mutex_t wake_lock;
    pthread_cond_t wake;
    bool stale, stop;
};

static const char KEY_COLUMNS[] =
    "SELECT k.public_id, k.pepper_id, encode(k.hash, 'hex'), k.id, k.name, u.id, u.name, t.id, "
    "t.name, k.roles, "
    "t.weight, coalesce(floor(extract(epoch FROM k.expires_at) * 1000)::bigint, 0), k.revoked_at "
    "IS NOT NULL, "
    "(u.suspended_at IS NOT NULL OR t.suspended_at IS NOT NULL) "
    "FROM api_keys k JOIN users u ON u.id = k.user_id JOIN tenants t ON t.id = u.tenant_id ";

static void text_column(const pg_result *r, int row, int c, char *out, size_t n) {
    snprintf(out, n, "%s", pg_text(r, row, c));
}

static int entry_read(const pg_result *r, int row, entry *k) {
    text_column(r, row, 0, k->public_id, sizeof k->public_id);
    k->pepper_id = (uint32_t)pg_int(r, row, 1);
    if (id_unhex(pg_text(r, row, 2), k->hash, sizeof k->hash))
        return -1;
    text_column(r, row, 3, k->who.key, sizeof k->who.key);
    text_column(r, row, 4, k->who.key_name, sizeof k->who.key_name);
    text_column(r, row, 5, k->who.user, sizeof k->who.user);
    text_column(r, row, 6, k->who.user_name, sizeof k->who.user_name);
    text_column(r, row, 7, k->who.tenant, sizeof k->who.tenant);
    text_column(r, row, 8, k->who.tenant_name, sizeof k->who.tenant_name);
    k->who.roles = (unsigned)pg_int(r, row, 9);
    k->who.weight = strtod(pg_text(r, row, 10), NULL);
    k->expires_ms = pg_int(r, row, 11);
    bool revoked = *pg_text(r, row, 12) == 't', suspended = *pg_text(r, row, 13) == 't';
    k->state = revoked ? KEY_REVOKED : suspended ? KEY_SUSPENDED : KEY_LIVE;
    return 0;
}

// ---- cache; the callers hold the lock

static size_t bucket_of(const char *public_id) {
    uint64_t h = 1469598103934665603u; // FNV-1a
    for (const char *p = public_id; *p; p++)
        h = (h ^ (uint8_t)*p) * 1099511628211u;
    return h % N_BUCKETS;
}

static entry *cache_find_locked(const auth *a, const char *public_id) {
    entry *k = a->buckets[bucket_of(public_id)];
    while (k && strcmp(k->public_id, public_id))
        k = k->next;
    return k;
}

static void cache_put_locked(auth *a, const entry *fresh) {
    entry *k = cache_find_locked(a, fresh->public_id);
    if (k) {
        entry *next = k->next;
        *k = *fresh;
        k->next = next;
        return;
    }
    entry **head = &a->buckets[bucket_of(fresh->public_id)];
    entry *copy = malloc(sizeof *copy);
    if (!copy)
        return; // it is looked up again next time
    *copy = *fresh;
    copy->next = *head;
    *head = copy;
    entry *last = copy;
    for (int n = 1; n < CHAIN && last; n++)
        last = last->next;
    if (last && last->next) {
        free(last->next);
        last->next = NULL;
    }
}

// ---- one key against its entry

static key_state state_now(const entry *k) {
    if (k->state == KEY_LIVE && k->expires_ms && clock_unix_ms() >= k->expires_ms)
        return KEY_EXPIRED;
    return k->state;
}

static const secret *pepper_find(const auth *a, uint32_t id) {
    for (int i = 0; i < a->pepper.n; i++)
        if (a->pepper.keys[i].id == id)
            return &a->pepper.keys[i];
    return NULL;
}

static int deny_unknown(err *e) {
    return err_set(e, ERR_KEY, NULL,
                   "Incorrect API key provided. Ask your administrator for a key (tg_live_...).");
}

static int entry_admits(const auth *a, const entry *k, const char *key, err *e) {
    const secret *pepper = pepper_find(a, k->pepper_id);
    if (!pepper) {
        log_event(LOG_ERROR, "auth.pepper_missing", "{s:i}", "pepper_id", (int)k->pepper_id);
        return err_set(e, ERR_DEPENDENCY, NULL,
                       "keys cannot be verified now; the operator must restore secret pepper %u",
                       k->pepper_id);
    }
    uint8_t digest[32];
    apikey_hash(pepper, key, digest);
    if (!secret_equal(digest, k->hash, sizeof digest))
        return deny_unknown(e);
    switch (state_now(k)) {
    case KEY_LIVE:
        return 0;
    case KEY_REVOKED:
        return err_set(e, ERR_KEY, NULL, "This API key was revoked.");
    case KEY_EXPIRED:
        return err_set(e, ERR_KEY, NULL, "This API key has expired.");
    case KEY_SUSPENDED:
        return err_set(e, ERR_KEY, NULL, "The account of this API key is suspended.");
    }
    return deny_unknown(e);
}

// ---- keys refused of late: a stranger who repeats a well-formed key costs no query

static refusal *refusal_slot(auth *a, const char *key, uint8_t digest[32]) {
    secret_sha256(key, APIKEY_TEXT - 1, digest);
    uint32_t at;
    memcpy(&at, digest + 16, sizeof at);
    return &a->refused[at % N_REFUSED];
}

static bool is_refused_locked(auth *a, const char *key) {
    uint8_t digest[32];
    const refusal *slot = refusal_slot(a, key, digest);
    return slot->until_ms > clock_mono_ms() && !memcmp(slot->digest, digest, sizeof slot->digest);
}

static void refuse_locked(auth *a, const char *key) {
    uint8_t digest[32];
    refusal *slot = refusal_slot(a, key, digest);
    memcpy(slot->digest, digest, sizeof slot->digest);
    slot->until_ms = clock_mono_ms() + REFUSED_MS;
}

// ---- a look-up that missed the cache: made on the reactor, run on the pool, answered on the loop

typedef struct lookup {
    auth *a;
    char key[APIKEY_TEXT], public_id[9];
    loop *home;
    auth_done *done;
    void *ctx;
    auth_answer answer;
    principal who;
    err error;
} lookup;

static void lookup_answer(void *ctx) {
    lookup *l = ctx;
    l->done(l->ctx, l->answer, l->answer == AUTH_OK ? &l->who : NULL, &l->error);
    free(l);
}

static int fetch(auth *a, const char *public_id, entry *out, bool *found, err *e) {
    char sql[sizeof KEY_COLUMNS + 32];
    snprintf(sql, sizeof sql, "%sWHERE k.public_id = $1", KEY_COLUMNS);
    pg *db = pg_pool_take(a->db, e);
    if (!db)
        return -1;
    pg_result *r = NULL;
    int rc = pg_query(db, sql, 1, &public_id, &r, e);
    if (!rc && (*found = pg_rows(r) == 1) && entry_read(r, 0, out))
        rc = err_set(e, ERR_INTERNAL, NULL, "the row of key %s is malformed", public_id);
    pg_result_free(r);
    pg_pool_give(a->db, db);
    return rc;
}

static void refresher_wake(auth *a) {
    pthread_mutex_lock(&a->wake_lock);
    a->stale = true;
    pthread_cond_signal(&a->wake);
    pthread_mutex_unlock(&a->wake_lock);
}

// A row that changes between its reading and its entry in the cache is missed by the refresher: a
// notification in between makes it look again.
static auth_answer lookup_decide(lookup *l) {
    auth *a = l->a;
    entry k = {0};
    bool found = false;
    unsigned news = atomic_load(&a->n_news);
    if (fetch(a, l->public_id, &k, &found, &l->error)) {
        err_set(&l->error, ERR_DEPENDENCY, NULL, "API keys cannot be looked up now; try again");
        l->error.retry_ms = 1000;
        return AUTH_DENIED;
    }
    int rc = found ? entry_admits(a, &k, l->key, &l->error) : deny_unknown(&l->error);
    pthread_rwlock_wrlock(&a->lock);
    atomic_init(&k.used, rc == 0);
    if (found)
        cache_put_locked(a, &k);
    if (rc && l->error.code == ERR_KEY)
        refuse_locked(a, l->key);
    pthread_rwlock_unlock(&a->lock);
    if (atomic_load(&a->n_news) != news)
        refresher_wake(a);
    l->who = k.who;
    return rc ? AUTH_DENIED : AUTH_OK;
}

static void lookup_run(void *ctx) {
    lookup *l = ctx;
    l->answer = lookup_decide(l);
    secret_wipe(l->key, sizeof l->key);
    loop_post(l->home, lookup_answer, l);
}

static auth_answer lookup_start(auth *a, const char *key, const char *public_id, loop *home,
                                auth_done *done, void *ctx, err *e) {
    lookup *l = calloc(1, sizeof *l);
    if (l) {
        *l = (lookup){.a = a, .home = home, .done = done, .ctx = ctx};
        memcpy(l->key, key, APIKEY_TEXT - 1);
        memcpy(l->public_id, public_id, sizeof l->public_id);
        if (!pool_submit(a->workers, lookup_run, l))
            return AUTH_PENDING;
        secret_wipe(l->key, sizeof l->key);
        free(l);
    }
    err_set(e, ERR_OVERLOADED, NULL, "too many API keys are being looked up; try again");
    e->retry_ms = 500;
    return AUTH_DENIED;
}

auth_answer auth_check(auth *a, const char *key, size_t n, loop *l, auth_done *done, void *ctx,
                       principal *out, err *e) {
    char public_id[9];
    if (!apikey_well_formed(key, n, public_id)) {
        deny_unknown(e);
        return AUTH_DENIED;
    }
    pthread_rwlock_rdlock(&a->lock);
    entry *k = cache_find_locked(a, public_id);
    bool refused = !k && is_refused_locked(a, key);
    int rc = k ? entry_admits(a, k, key, e) : 0;
    if (k && !rc) {
        atomic_store_explicit(&k->used, true, memory_order_relaxed);
        *out = k->who;
    }
    pthread_rwlock_unlock(&a->lock);
    if (refused)
        rc = deny_unknown(e);
    if (k || refused)
        return rc ? AUTH_DENIED : AUTH_OK;
    return lookup_start(a, key, public_id, l, done, ctx, e);
}

// ---- refresher

// Calls fn for every entry; it may change the entry.
static void each_locked(auth *a, void (*fn)(entry *k, void *ctx), void *ctx) {
    for (int b = 0; b < N_BUCKETS; b++)
        for (entry *k = a->buckets[b]; k; k = k->next)
            fn(k, ctx);
}

typedef struct id_list { // a PostgreSQL array of key ids: "{a,b}"
    buf text;
    bool used_only;
} id_list;

static void id_list_add(entry *k, void *ctx) {
    id_list *ids = ctx;
    if (ids->used_only && !atomic_exchange(&k->used, false))
        return;
    buf_puts(&ids->text, ids->text.len ? "," : "{");
    buf_puts(&ids->text, k->who.key);
}

// true when there is any.
static bool id_list_make(auth *a, bool used_only, id_list *out) {
    *out = (id_list){.used_only = used_only};
    pthread_rwlock_rdlock(&a->lock);
    each_locked(a, id_list_add, out);
    pthread_rwlock_unlock(&a->lock);
    if (!out->text.len)
        return false;
    buf_puts(&out->text, "}");
    return true;
}

static void id_note(entry *k, buf *ended) { buf_put(ended, k->who.key, sizeof k->who.key); }

// Takes one re-read row over; a key that may no longer be used is noted in ended.
static void refresh_one(auth *a, const pg_result *r, int row, buf *ended) {
    entry fresh = {0};
    if (entry_read(r, row, &fresh))
        return;
    pthread_rwlock_wrlock(&a->lock);
    entry *k = cache_find_locked(a, fresh.public_id);
    if (k) {
        bool was_live = k->state == KEY_LIVE;
        fresh.used = k->used;
        cache_put_locked(a, &fresh);
        if (was_live && state_now(k) != KEY_LIVE) {
            k->state = state_now(k);
            id_note(k, ended);
        }
    }
    pthread_rwlock_unlock(&a->lock);
}

static int refresh_all(auth *a, buf *ended) {
    id_list ids;
    if (!id_list_make(a, false, &ids))
        return 0;
    char sql[sizeof KEY_COLUMNS + 48];
    snprintf(sql, sizeof sql, "%sWHERE k.id = ANY ($1::uuid[])", KEY_COLUMNS);
    err e = {0};
    pg_result *r = NULL;
    pg *db = pg_pool_take(a->db, &e);
    int rc = db ? pg_query(db, sql, 1, (const char *[]){ids.text.data}, &r, &e) : -1;
    for (int i = 0; !rc && i < pg_rows(r); i++)
        refresh_one(a, r, i, ended);
    pg_result_free(r);
    if (db)
        pg_pool_give(a->db, db);
    buf_release(&ids.text);
    return rc;
}

static void expire_one(entry *k, void *ended) {
    if (k->state == KEY_LIVE && state_now(k) == KEY_EXPIRED) {
        k->state = KEY_EXPIRED;
        id_note(k, ended);
    }
}

static void tell_ended(auth *a, buf *ended) {
    pthread_rwlock_rdlock(&a->lock);
    void (*fn)(void *, const char *) = a->revoked_fn;
    void *ctx = a->revoked_ctx;
    pthread_rwlock_unlock(&a->lock);
    for (size_t at = 0; at < ended->len; at += ID_UUID_TEXT) {
        log_event(LOG_INFO, "auth.key_ended", "{s:s}", "key", ended->data + at);
        if (fn)
            fn(ctx, ended->data + at);
    }
    buf_clear(ended);
}

static void write_last_used(auth *a) {
    id_list ids;
    if (!id_list_make(a, true, &ids))
        return;
    err e = {0};
    pg *db = pg_pool_take(a->db, &e);
    if (db) {
        pg_query(db, "UPDATE api_keys SET last_used_at = now() WHERE id = ANY ($1::uuid[])", 1,
                 (const char *[]){ids.text.data}, NULL, &e);
        pg_pool_give(a->db, db);
    }
    buf_release(&ids.text);
}

// Waits for a notification or the tick. -> true when the cache must be re-read; *stop when the
// thread must end.
static bool refresher_wait(auth *a, bool *stop) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += TICK_MS * 1000000L;
    until.tv_sec += until.tv_nsec / 1000000000L;
    until.tv_nsec %= 1000000000L;
    pthread_mutex_lock(&a->wake_lock);
    if (!a->stale && !a->stop)
        pthread_cond_timedwait(&a->wake, &a->wake_lock, &until);
    bool stale = a->stale;
    a->stale = false;
    *stop = a->stop;
    pthread_mutex_unlock(&a->wake_lock);
    return stale;
}

static void *refresher(void *ctx) {
    auth *a = ctx;
    buf ended = {0};
    int64_t read_at = clock_mono_ms(), used_at = read_at;
    bool owed = false, stop = false;
    for (;;) {
        owed = refresher_wait(a, &stop) || owed;
        if (stop)
            break;
        int64_t now = clock_mono_ms();
        if (owed || (!pg_listen_connected(a->listener) && now - read_at >= POLL_MS)) {
            owed = refresh_all(a, &ended) != 0; // Postgres away: again at the next tick
            read_at = now;
        }
        pthread_rwlock_wrlock(&a->lock);
        each_locked(a, expire_one, &ended);
        pthread_rwlock_unlock(&a->lock);
        tell_ended(a, &ended);
        if (now - used_at >= LAST_USED_MS) {
            write_last_used(a);
            used_at = now;
        }
    }
    write_last_used(a);
    buf_release(&ended);
    return NULL;
}

// On the listener's thread: something changed, or may have while we were away.
static void on_notify(void *ctx, const char *channel, const char *payload) {
    auth *a = ctx;
    (void)channel, (void)payload; // one query re-reads all cached keys: changes are rare
    atomic_fetch_add(&a->n_news, 1);
    refresher_wake(a);
}

// ---- life

int auth_open(const config *c, const secret_ring *pepper, pool *p, auth **out, err *e) {
    auth *a = calloc(1, sizeof *a);
    if (!a)
        return err_set(e, ERR_INTERNAL, NULL, "no memory for the key cache");
    a->pepper = *pepper;
    a->workers = p;
    a->db = pg_pool_new(c->postgres_url, DB_CONNECTIONS);
    pthread_rwlock_init(&a->lock, NULL);
    pthread_mutex_init(&a->wake_lock, NULL);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&a->wake, &attr);
    pthread_condattr_destroy(&attr);
    a->listener = pg_listen_new(c->postgres_url, (const char *[]){"api_keys"}, 1, on_notify, a);
    if (pthread_create(&a->thread, NULL, refresher, a))
        fatal("the key refresher's thread cannot be made");
    *out = a;
    return 0;
}

void auth_close(auth *a) {
    if (!a)
        return;
    pthread_mutex_lock(&a->wake_lock);
    a->stop = true;
    pthread_cond_signal(&a->wake);
    pthread_mutex_unlock(&a->wake_lock);
    pthread_join(a->thread, NULL); // it asks the listener whether it is connected
    pg_listen_free(a->listener);
    pg_pool_free(a->db);
    for (int b = 0; b < N_BUCKETS; b++)
        for (entry *k = a->buckets[b], *next; k; k = next) {
            next = k->next;
            free(k);
        }
    pthread_rwlock_destroy(&a->lock);
    pthread_mutex_destroy(&a->wake_lock);
    pthread_cond_destroy(&a->wake);
    secret_wipe(a, sizeof *a);
    free(a);
}

void auth_on_revoked(auth *a, void (*fn)(void *ctx, const char *key_id), void *ctx) {
    pthread_rwlock_wrlock(&a->lock);
    a->revoked_fn = fn;
    a->revoked_ctx = ctx;
    pthread_rwlock_unlock(&a->lock);
}
