// What the tightest limits leave, as of one hold: for the x-ratelimit headers. Plain data.
#ifndef ROUTER_RATE_H
#define ROUTER_RATE_H
#include <stdint.h>

typedef struct rate {
    int64_t limit; // -1: nothing limits
    int64_t left;
    int64_t reset_ms; // until the limit's window rolls
} rate;

typedef struct rates {
    rate requests, tokens;
} rates;

#define RATES_NONE                                                                                 \
    (rates) { .requests.limit = -1, .tokens.limit = -1 }

#endif
