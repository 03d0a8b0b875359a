// The two Redis function libraries, embedded in the binary at build time: router/queue.lua
// (tiergate_queue1) and router/quota.lua (tiergate3). A changed library gets a new name, so that
// two versions of the product can run side by side.
#ifndef ROUTER_LIBRARY_H
#define ROUTER_LIBRARY_H
#include <stdbool.h>
#include <stddef.h>
#include "base/err.h"
#include "base/redis.h"

typedef enum library { LIBRARY_QUEUE, LIBRARY_QUOTA } library;

const char *library_source(library l, size_t *n); // Lua text
// Loads it unless the server has the same source already.
int library_load(redis *r, library l, err *e);
// Does this error reply say that the library is not there (Redis was restarted without its data)?
bool library_is_missing(const redis_value *v);

#endif
