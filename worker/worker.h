// A worker: one model replica. Claims jobs of its tier, plans steps, drives the engine, sends one
// reply message per step and gateway. Stateless but for its active sequences. Threads: the step
// thread (everything), a listener (bell and cancel), a keeper (HOLD frames, operations), a loader
// (adapters).
#ifndef WORKER_WORKER_H
#define WORKER_WORKER_H
#include "base/config.h"
#include "base/err.h"

// Runs until SIGTERM or SIGINT (stop claiming, finish what is active for drain_ms at most, end) or
// a second one (end now). ready_fd >= 0: one line of JSON
// {"worker":"<incarnation>","model":…,"backend":…,"ops_url":…} is written there once it claims.
int worker_run(const config *c, const char *model_name, int ready_fd, err *e);

#endif
