// How many requests wait, per tier and lane, as metrics. Every gateway measures the same queue.
// Internal to router/; the sweeper's thread.
#ifndef ROUTER_DEPTH_H
#define ROUTER_DEPTH_H
#include "base/config.h"
#include "base/redis.h"

typedef struct depth depth;

depth *depth_open(const config *c);     // a gauge per tier of the configuration and lane
void depth_close(depth *d);             // NULL: nothing
void depth_measure(depth *d, redis *r); // what Redis does not answer stays as it was

#endif
