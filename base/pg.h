// PostgreSQL at the wire, and nobody else: blocking connections used from pool or own threads, and
// a listener thread.
#ifndef BASE_PG_H
#define BASE_PG_H
#include <stdbool.h>
#include <stddef.h>
#include "base/err.h"

// One connection, one thread at a time; reconnects at the next call after a loss.
typedef struct pg pg;
typedef struct pg_result pg_result; // text format

int pg_check_url(const char *url, err *e); // can libpq read it? ERR_INVALID
int pg_connect(const char *url, pg **out, err *e);
void pg_close(pg *p);
// An answer that takes longer than the limit (5 s unless set; 0: none) ends the connection, so that
// a hung server is noticed.
void pg_set_limit(pg *p, int ms);
// params: text or NULL values, n of them ($1..$n). ERR_DEPENDENCY: no connection or it was lost
// (the outcome of a write is then unknown); ERR_INTERNAL: the server refused the statement
// (pg_sqlstate tells why). *out may be NULL when rows are not wanted.
int pg_query(pg *p, const char *sql, int n, const char *const *params, pg_result **out, err *e);
// Both refuse to go on silently outside a transaction that was lost: that call fails, the next one
// reconnects.
int pg_exec(pg *p, const char *sql, err *e); // several statements, no parameters, no limit of time
const char *pg_sqlstate(const pg *p);        // of the last failure, "" otherwise
int pg_rows(const pg_result *r);
int pg_affected(const pg_result *r);
const char *pg_text(const pg_result *r, int row, int column); // NULL for SQL NULL; borrowed from r
long long pg_int(const pg_result *r, int row, int column);
void pg_result_free(pg_result *r);

// Connections shared by the threads of a process.
typedef struct pg_pool pg_pool;
pg_pool *pg_pool_new(const char *url, int size);
pg *pg_pool_take(pg_pool *p, err *e); // blocks for a free one; NULL: cannot connect
void pg_pool_give(pg_pool *p, pg *c);
void pg_pool_free(pg_pool *p);

// A thread that LISTENs on channels and calls fn(channel, payload) there; after every (re)connect
// fn(NULL, NULL) is called, for what was missed while away. Ends with pg_listen_free.
typedef struct pg_listen pg_listen;
pg_listen *pg_listen_new(const char *url, const char *const *channels, int n,
                         void (*fn)(void *ctx, const char *channel, const char *payload),
                         void *ctx);
bool pg_listen_connected(const pg_listen *l);
void pg_listen_free(pg_listen *l);

#endif
