// Frames on their way out: one message per step and gateway. Owner: the step thread.
#ifndef WORKER_OUTBOX_H
#define WORKER_OUTBOX_H
#include <stdint.h>
#include "base/arena.h"
#include "base/redis.h"
#include "router/reply.h"

typedef struct outbox outbox;

outbox *outbox_new(uint64_t worker);
void outbox_free(outbox *o);
// A frame for a gateway; f's tokens and text must live until outbox_send (outbox_arena is emptied
// there).
reply_frame *outbox_add(outbox *o, uint64_t gateway, const char *id, int attempt, uint64_t run,
                        int choice);
arena *outbox_arena(outbox *o);
// Sends everything. A gateway whose lease is over is told to gone(). -1: the connection was lost;
// what was not acknowledged is kept and sent again by the next call (a gateway drops repeats).
int outbox_send(outbox *o, redis *r, void (*gone)(void *ctx, uint64_t gateway), void *ctx, err *e);
void outbox_drop(outbox *o); // gives up on what is waiting

#endif
