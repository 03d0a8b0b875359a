// Tables in memory. Owns the rows, the connection that reads them and the listener whose thread
// reads them again. The write lock is held only to swap the rows.
#include "base/pg_table.h"
#include "base/log.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct pg_table {
    const pg_table_spec *spec;
    pg *db; // of pg_table_open, then of the listener's thread
    pg_listen *listener;
    pthread_rwlock_t lock; // guards rows, n
    char *rows;
    size_t n;
};

static int read_rows(pg_table *t, char **rows, size_t *n, err *e) {
    pg_result *r = NULL;
    if (pg_query(t->db, t->spec->sql, 0, NULL, &r, e))
        return -1;
    *n = (size_t)pg_rows(r);
    *rows = calloc(*n + 1, t->spec->row_bytes);
    if (!*rows)
        fatal("out of memory for %zu rows of %s", *n, t->spec->channel);
    for (size_t i = 0; i < *n; i++)
        t->spec->fill(r, (int)i, *rows + i * t->spec->row_bytes);
    pg_result_free(r);
    qsort(*rows, *n, t->spec->row_bytes, t->spec->order);
    return 0;
}

static int reload(pg_table *t, err *e) {
    char *rows;
    size_t n;
    if (read_rows(t, &rows, &n, e))
        return -1;
    pthread_rwlock_wrlock(&t->lock);
    char *old = t->rows;
    t->rows = rows;
    t->n = n;
    pthread_rwlock_unlock(&t->lock);
    free(old);
    return 0;
}

static void on_notify(void *ctx, const char *channel, const char *payload) {
    pg_table *t = ctx;
    (void)channel;
    (void)payload;
    err e = {0};
    if (reload(t, &e)) // the listener calls again when it has reconnected
        log_event(LOG_WARN, "table.reload", "{s:s,s:s}", "table", t->spec->channel, "error",
                  e.message);
}

int pg_table_open(const char *url, const pg_table_spec *spec, pg_table **out, err *e) {
    pg_table *t = calloc(1, sizeof *t);
    if (!t)
        return err_set(e, ERR_INTERNAL, NULL, "out of memory");
    t->spec = spec;
    pthread_rwlock_init(&t->lock, NULL);
    if (pg_connect(url, &t->db, e) || reload(t, e)) {
        pg_table_close(t);
        return -1;
    }
    t->listener = pg_listen_new(url, &spec->channel, 1, on_notify, t);
    *out = t;
    return 0;
}

void pg_table_close(pg_table *t) {
    if (!t)
        return;
    if (t->listener)
        pg_listen_free(t->listener);
    pg_close(t->db);
    free(t->rows);
    pthread_rwlock_destroy(&t->lock);
    free(t);
}

bool pg_table_find(pg_table *t, const void *key, void *out) {
    pthread_rwlock_rdlock(&t->lock);
    const void *row = bsearch(key, t->rows, t->n, t->spec->row_bytes, t->spec->order);
    if (row)
        memcpy(out, row, t->spec->row_bytes);
    pthread_rwlock_unlock(&t->lock);
    return row != NULL;
}

void pg_table_each(pg_table *t, bool (*each)(void *ctx, const void *row), void *ctx) {
    pthread_rwlock_rdlock(&t->lock);
    for (size_t i = 0; i < t->n && each(ctx, t->rows + i * t->spec->row_bytes); i++)
        ;
    pthread_rwlock_unlock(&t->lock);
}

void pg_table_text(const pg_result *r, int i, int column, char *out, size_t n) {
    const char *text = pg_text(r, i, column);
    snprintf(out, n, "%s", text ? text : "");
}
