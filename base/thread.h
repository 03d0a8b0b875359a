// Threads: one of its own, or a fixed pool for work that would stall a reactor (TLS handshakes,
// large JSON bodies, libpq).
#ifndef BASE_THREAD_H
#define BASE_THREAD_H
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

// Starts a thread of its own with all signals blocked (they belong to the main thread); fatal when
// it cannot. name: what ps and top show, cut to 15 characters.
void thread_start(pthread_t *out, const char *name, void *(*run)(void *ctx), void *ctx);

// A condition whose timed waits take times of CLOCK_MONOTONIC: a clock that is set changes nothing.
void thread_cond_init(pthread_cond_t *c);
// Until it is signalled, us at most; m is held.
void thread_cond_wait_us(pthread_cond_t *c, pthread_mutex_t *m, int64_t us);

typedef struct pool pool;

pool *pool_new(const char *name, int n_threads); // fatal when threads cannot be made
// Queues run(ctx). Entered by any thread, left by a pool thread. -1 when max_queued wait already
// (nothing is queued).
int pool_submit(pool *p, void (*run)(void *ctx), void *ctx);
void pool_set_limit(pool *p, size_t max_queued); // default 4,096
size_t pool_waiting(pool *p);
void pool_free(pool *p); // finishes what is queued, joins

#endif
