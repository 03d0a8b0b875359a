// The sweeper (R5): one thread of the process that looks through all records of all tenants every
// 5 s and closes those whose gateway has been missing for 10 s, or whose gateway is here and does
// not know them. Also closes what the journal of an earlier life left open. Internal to router/.
#ifndef ROUTER_SWEEP_H
#define ROUTER_SWEEP_H
#include "base/err.h"
#include "base/redis.h"
#include "router/journal.h"
#include "router/recorder.h"

typedef struct sweeper sweeper;

sweeper *sweeper_open(router_shared *s);
void sweeper_close(sweeper *w);

// An id that was open when the process before this one ended: settles it (F: with its own values,
// otherwise with what the record knows) and hands its row to the recorder.
int sweep_journaled(redis *r, const journal_open_id *id, recorder *to, err *e);

#endif
