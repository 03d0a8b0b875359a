// A small table of Postgres kept in memory: read whole at open, and again whenever its channel is
// notified (or the listener was away). Readers from any thread hold the current rows for the time
// of one call.
#ifndef BASE_PG_TABLE_H
#define BASE_PG_TABLE_H
#include <stdbool.h>
#include <stddef.h>
#include "base/err.h"
#include "base/pg.h"

typedef struct pg_table pg_table;

typedef struct pg_table_spec { // static
    const char *sql;           // without parameters
    const char *channel;
    size_t row_bytes;
    void (*fill)(const pg_result *r, int i, void *row); // row i; *row is zeroed
    int (*order)(const void *a, const void *b);         // rows are sorted by it, looked up by it
} pg_table_spec;

// ERR_DEPENDENCY when the first read fails. Later failures keep the rows and are logged.
int pg_table_open(const char *url, const pg_table_spec *spec, pg_table **out, err *e);
void pg_table_close(pg_table *t); // NULL: nothing
// The row equal to key by the spec's order is copied to out.
bool pg_table_find(pg_table *t, const void *key, void *out);
// Calls each(ctx, row) in order until it returns false. Keep it short: a reload waits.
void pg_table_each(pg_table *t, bool (*each)(void *ctx, const void *row), void *ctx);
// Copies a text column into a fixed field, cut to its size; SQL NULL becomes "".
void pg_table_text(const pg_result *r, int i, int column, char *out, size_t n);

#endif
