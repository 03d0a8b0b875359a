// Metrics registry in the Prometheus text format 0.0.4. Metrics are registered once at start-up and
// updated without locks from any thread. Labels never hold a tenant's name, a key or text of a
// request.
#ifndef BASE_METRIC_H
#define BASE_METRIC_H
#include <stdint.h>
#include "base/buf.h"

typedef struct metric metric;

// labels: "" or `route="chat",code="200"`. Registering the same name and labels again returns the
// same metric.
metric *metric_counter(const char *name, const char *labels, const char *help);
metric *metric_gauge(const char *name, const char *labels, const char *help);
// bounds: n ascending upper bounds (seconds for times), +Inf is added.
metric *metric_histogram(const char *name, const char *labels, const char *help,
                         const double *bounds, int n);
void metric_add(metric *m, int64_t by);    // counter, gauge
void metric_set(metric *m, int64_t value); // gauge
void metric_observe(metric *m, double value);
int64_t metric_value(const metric *m);
void metric_render(buf *out);

#endif
