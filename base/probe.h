// The operations listener: plain HTTP for probes and Prometheus on an address of its own (loopback
// by default). GET /healthz: 200 while the process runs; /readyz: 200, or 503 and why not;
// /metrics.
#ifndef BASE_PROBE_H
#define BASE_PROBE_H
#include <stdint.h>
#include "base/config.h"
#include "base/err.h"

typedef struct probe probe;

// Why this process should get no work now: a static text, or NULL when it is ready. Called on the
// listener's thread.
typedef const char *probe_not_ready_fn(void *ctx);

// Serves on a thread of its own until probe_stop. not_ready may be NULL: always ready. port 0: the
// kernel chooses. ERR_IO names address and reason.
int probe_start(const config_listen *listen, probe_not_ready_fn *not_ready, void *ctx, probe **out,
                err *e);
uint16_t probe_port(const probe *o);
void probe_stop(probe *o); // NULL: nothing

#endif
