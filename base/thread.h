// A fixed pool of threads for work that would stall a reactor (TLS handshakes, large JSON bodies,
// libpq).
#ifndef BASE_THREAD_H
#define BASE_THREAD_H
#include <stddef.h>

typedef struct pool pool;

pool *pool_new(const char *name, int n_threads); // fatal when threads cannot be made
// Queues run(ctx). Entered by any thread, left by a pool thread. -1 when max_queued wait already
// (nothing is queued).
int pool_submit(pool *p, void (*run)(void *ctx), void *ctx);
void pool_set_limit(pool *p, size_t max_queued); // default 4,096
size_t pool_waiting(pool *p);
void pool_free(pool *p); // finishes what is queued, joins

#endif
