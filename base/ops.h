// The operations listener: plain HTTP for probes and Prometheus on an address of its own (loopback
// by default). GET /healthz: 200 while the process runs; /readyz: 200, or 503 and why not;
// /metrics.
#ifndef BASE_OPS_H
#define BASE_OPS_H
#include <stdint.h>
#include "base/config.h"
#include "base/err.h"

typedef struct ops ops;

// Why this process should get no work now: a static text, or NULL when it is ready. Called on the
// listener's thread.
typedef const char *ops_not_ready_fn(void *ctx);

// Serves on a thread of its own until ops_stop. not_ready may be NULL: always ready. port 0: the
// kernel chooses. ERR_IO names address and reason.
int ops_start(const config_listen *listen, ops_not_ready_fn *not_ready, void *ctx, ops **out,
              err *e);
uint16_t ops_port(const ops *o);
void ops_stop(ops *o); // NULL: nothing

#endif
