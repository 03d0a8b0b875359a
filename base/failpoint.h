// Named points at which a test makes this process die, stop, dawdle or fail, armed by the
// environment alone:
//
//   TIERGATE_FAILPOINTS="settle.before=kill@3,commit.after=sleep:200,accept.after=error%5,seed=7"
//
// Actions: kill (SIGKILL), stop (SIGSTOP), sleep:MS, error (the caller takes its way for a failure,
// where it has one). @N: at the N-th time only. %P: with a probability of P per cent, from seed.
// Neither: each time. Unset, a point costs one relaxed load. A wrong list ends the process at its
// start. Points are named in the code only; docs of each: `grep -rn 'failpoint("'`.
#ifndef BASE_FAILPOINT_H
#define BASE_FAILPOINT_H
#include <stdatomic.h>
#include <stdbool.h>

extern atomic_bool failpoint_armed; // set before main, then only read

bool failpoint_hit(const char *name);

// Any thread. True: the action is `error`.
static inline bool failpoint(const char *name) {
    return atomic_load_explicit(&failpoint_armed, memory_order_relaxed) && failpoint_hit(name);
}

#endif
