// Assignments in memory. Owns the rows (sorted by tenant and name), a connection for reading them
// and the listener whose thread reads them again. Readers hold the read lock for one call; the
// listener's thread holds the write lock only to swap. Does not know keys or quotas.
#include "router/assign.h"
#include "base/log.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct row {
    char tenant[40], name[64], model[64], adapter[64];
} row;

typedef struct rows {
    row *items;
    size_t n;
} rows;

struct assign {
    const catalogue *c;
    pg *db; // of assign_open, then of the listener's thread
    pg_listen *listener;
    pthread_rwlock_t lock; // guards rows
    rows rows;
};

static int by_name(const void *a, const void *b) {
    const row *x = a, *y = b;
    int order = strcmp(x->tenant, y->tenant);
    return order ? order : strcmp(x->name, y->name);
}

// ---- reading

static void copy_column(const pg_result *result, int i, int column, char *out, size_t n) {
    const char *text = pg_text(result, i, column);
    snprintf(out, n, "%s", text ? text : "");
}

static int read_rows(pg *db, rows *out, err *e) {
    pg_result *result = NULL;
    if (pg_query(db, "SELECT tenant_id, name, model, adapter FROM assignments", 0, NULL, &result,
                 e))
        return -1;
    int n = pg_rows(result);
    *out = (rows){.items = calloc((size_t)n + 1, sizeof(row)), .n = (size_t)n};
    if (!out->items)
        fatal("out of memory for %d assignments", n);
    for (int i = 0; i < n; i++) {
        row *to = &out->items[i];
        copy_column(result, i, 0, to->tenant, sizeof to->tenant);
        copy_column(result, i, 1, to->name, sizeof to->name);
        copy_column(result, i, 2, to->model, sizeof to->model);
        copy_column(result, i, 3, to->adapter, sizeof to->adapter);
    }
    pg_result_free(result);
    qsort(out->items, out->n, sizeof(row), by_name);
    return 0;
}

static int reload(assign *a, err *e) {
    rows fresh;
    if (read_rows(a->db, &fresh, e))
        return -1;
    pthread_rwlock_wrlock(&a->lock);
    rows old = a->rows;
    a->rows = fresh;
    pthread_rwlock_unlock(&a->lock);
    free(old.items);
    return 0;
}

static void on_notify(void *ctx, const char *channel, const char *payload) {
    (void)channel;
    (void)payload;
    err e = {0};
    if (reload(ctx, &e)) // the listener calls again when it has reconnected
        log_event(LOG_WARN, "assign.reload", "{s:s}", "error", e.message);
}

int assign_open(const char *postgres_url, const catalogue *c, assign **out, err *e) {
    static const char *const channels[] = {"assignments"};
    assign *a = calloc(1, sizeof *a);
    if (!a)
        return err_set(e, ERR_INTERNAL, NULL, "out of memory");
    a->c = c;
    pthread_rwlock_init(&a->lock, NULL);
    if (pg_connect(postgres_url, &a->db, e) || reload(a, e)) {
        assign_close(a);
        return -1;
    }
    a->listener = pg_listen_new(postgres_url, channels, 1, on_notify, a);
    *out = a;
    return 0;
}

void assign_close(assign *a) {
    if (!a)
        return;
    if (a->listener)
        pg_listen_free(a->listener);
    pg_close(a->db);
    free(a->rows.items);
    pthread_rwlock_destroy(&a->lock);
    free(a);
}

// ---- asking

static bool fill(const assign *a, const row *from, assign_target *out) {
    *out = (assign_target){.model = catalogue_find(a->c, from->model)};
    memcpy(out->name, from->name, sizeof out->name);
    memcpy(out->adapter, from->adapter, sizeof out->adapter);
    return out->model != NULL;
}

int assign_find(const assign *k, const char *tenant, const char *name, assign_target *out, err *e) {
    assign *a = (assign *)(uintptr_t)k; // the lock
    row key = {0};
    bool is_found = false;
    if (strlen(name) < sizeof key.name) {
        snprintf(key.tenant, sizeof key.tenant, "%s", tenant);
        snprintf(key.name, sizeof key.name, "%s", name);
        pthread_rwlock_rdlock(&a->lock);
        const row *r = bsearch(&key, a->rows.items, a->rows.n, sizeof key, by_name);
        is_found = r && fill(a, r, out);
        pthread_rwlock_unlock(&a->lock);
    }
    if (is_found)
        return 0;
    if (catalogue_find(a->c, name))
        return err_set(e, ERR_MODEL_DENIED, "model", "this key may not use the model '%.64s'",
                       name);
    return err_set(e, ERR_MODEL_UNKNOWN, "model", "there is no model '%.64s'", name);
}

int assign_list(const assign *k, const char *tenant, assign_target *out, int max) {
    assign *a = (assign *)(uintptr_t)k; // the lock
    int n = 0;
    pthread_rwlock_rdlock(&a->lock);
    for (size_t i = 0; i < a->rows.n && n < max; i++)
        if (strcmp(a->rows.items[i].tenant, tenant) == 0 && fill(a, &a->rows.items[i], &out[n]))
            n++;
    pthread_rwlock_unlock(&a->lock);
    return n;
}
