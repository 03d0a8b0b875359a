// A backend's threads. The caller is member 0 and works too; the others spin briefly for the next
// job and then sleep, so that an idle engine costs nothing. Jobs are split statically by the
// caller's function, so results never depend on timing.
#ifndef KERNELS_TEAM_H
#define KERNELS_TEAM_H
#include "base/err.h"

typedef struct team team;
typedef void team_fn(void *ctx, int part, int n_parts);

int team_open(int n_threads, team **out,
              err *e); // n_threads 0: all processors this process may use (affinity, control group)
void team_close(team *t); // NULL does nothing
int team_size(const team *t);
// Runs fn(ctx, part, team_size) once per member and waits for all. One caller at a time; fn must
// not call it again.
void team_run(team *t, team_fn *fn, void *ctx);

// The share [*from, *to) of n items, in units of `unit`, that part takes.
static inline void team_share(int n, int unit, int part, int n_parts, int *from, int *to) {
    int units = (n + unit - 1) / unit;
    *from = (int)((long)units * part / n_parts) * unit;
    *to = (int)((long)units * (part + 1) / n_parts) * unit;
    if (*to > n)
        *to = n;
    if (*from > n)
        *from = n;
}

#endif
