// Inside base only: the body of a connection, for the pool and the listener.
#ifndef BASE_PG_INTERNAL_H
#define BASE_PG_INTERNAL_H
#include <libpq-fe.h>
#include "base/pg.h"

#define PG_LIMIT_MS 5000 // of a statement, unless set

struct pg {
    char *url;
    PGconn *c; // NULL: not connected
    int limit_ms;
    char sqlstate[6];
    unsigned n_connects; // tells a listener that its LISTENs died with the connection before
};

int pg_ensure(
    pg *p,
    err *e); // connected, or ERR_DEPENDENCY; notices a connection that broke while it was idle
void pg_drop(pg *p); // closes the connection, keeps the struct

#endif
