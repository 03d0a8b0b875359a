// The listener thread: Redis subscriptions (the tier's bell, our cancel channel) and the process's
// signals, passed on to the inbox.
#ifndef WORKER_LISTEN_H
#define WORKER_LISTEN_H
#include <stdint.h>
#include "worker/inbox.h"

typedef struct listener listener;

// SIGTERM and SIGINT must be blocked in all threads before. fatal when the thread cannot be made.
listener *listener_start(const char *redis_address, const char *tier, uint64_t worker, inbox *to);
void listener_stop(listener *l);

#endif
