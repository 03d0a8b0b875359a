// Records of requests in Redis, for tools that only look: who is open, what is settled and waits
// for its row. Blocking, the caller's connection and thread.
#ifndef ROUTER_RECORD_H
#define ROUTER_RECORD_H
#include <stdbool.h>
#include "base/redis.h"
#include "router/quota.h"

// The record of a request, whoever's it is. *found false: there is none.
int record_find(redis *r, const char *id, quota_record *out, bool *found, err *e);
// Calls each(ctx, id, record) for every record of every tenant; one that cannot be read has record
// NULL.
int record_each(redis *r, void (*each)(void *ctx, const char *id, const quota_record *record),
                void *ctx, err *e);
// Is this gateway's lease alive?
int record_gateway_is_alive(redis *r, uint64_t gateway, bool *out, err *e);
// Redis' clock in milliseconds of unix time.
int record_clock_ms(redis *r, int64_t *out, err *e);

#endif
