// Queue depth. Owns its list of tiers and their gauges; whoever calls brings the connection.
#include "router/depth.h"
#include "base/metric.h"
#include "router/queue.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct tier_depth {
    char tier[16];
    metric *waiting[N_LANES];
} tier_depth;

struct depth {
    tier_depth tiers[CONFIG_MODELS];
    int n;
};

static void add_tier(depth *d, const char *tier) {
    static const char *const lanes[N_LANES] = {"completion", "interactive", "batch", "last"};
    for (int i = 0; i < d->n; i++)
        if (strcmp(d->tiers[i].tier, tier) == 0)
            return;
    tier_depth *t = &d->tiers[d->n++];
    snprintf(t->tier, sizeof t->tier, "%s", tier);
    for (int i = 0; i < N_LANES; i++) {
        char labels[96];
        snprintf(labels, sizeof labels, "tier=\"%s\",lane=\"%s\"", t->tier, lanes[i]);
        t->waiting[i] = metric_gauge("tiergate_queue_waiting", labels,
                                     "Requests that wait in the queue of a tier.");
    }
}

depth *depth_open(const config *c) {
    depth *d = calloc(1, sizeof *d);
    if (!d)
        fatal("out of memory for the queue's depth");
    for (int i = 0; i < c->n_models; i++)
        add_tier(d, c->models[i].tier);
    return d;
}

void depth_close(depth *d) { free(d); }

void depth_measure(depth *d, redis *r) {
    for (int i = 0; i < d->n; i++) {
        int64_t n[N_LANES];
        if (queue_depth(r, d->tiers[i].tier, n, NULL))
            return; // the connection's owner notices with its next call
        for (int k = 0; k < N_LANES; k++)
            metric_set(d->tiers[i].waiting[k], n[k]);
    }
}
