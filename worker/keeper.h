// The keeper thread: says HOLD for every run that had no frame for a second (a long step, a full
// house), so that its gateway can tell slow from dead. It falls silent when one step has run for 60
// s: slow is alive, hung is dead.
#ifndef WORKER_KEEPER_H
#define WORKER_KEEPER_H
#include <stdint.h>
#include "base/id.h"
#include "worker/inbox.h"

typedef struct keeper keeper;

typedef struct keeper_run { // what the keeper must know of a run
    char id[ID_UUID_TEXT];
    int attempt;
    uint64_t run, gateway;
    int64_t last_ms; // monotonic: when its last frame was sent
} keeper_run;

keeper *keeper_start(const char *redis_address, uint64_t worker, inbox *to);
void keeper_stop(keeper *k);
// Called by the step thread: all runs that are alive (copied; last_ms is raised to the keeper's own
// HOLD), and that a step begins now. n may be 0.
void keeper_note(keeper *k, keeper_run *runs, int n);

#endif
