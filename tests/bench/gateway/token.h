// The token that both upstreams make: a 't' and the monotonic clock in nanoseconds, so that whoever
// reads it on the same machine knows how long it was on its way.
#ifndef TESTS_BENCH_GATEWAY_TOKEN_H
#define TESTS_BENCH_GATEWAY_TOKEN_H
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#define TOKEN_CHARS 20  // 't' and 19 digits
#define ANSWER_TOKENS 8 // of an answer that does not stream

static inline int64_t bench_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline void bench_put_token(char out[TOKEN_CHARS + 1]) {
    snprintf(out, TOKEN_CHARS + 1, "t%019" PRId64, bench_now_ns());
}

#endif
