// Time from the kernel. Owns nothing; any thread. Does not cache: a loop that wants one time a turn
// keeps it itself.
#include "base/clock.h"
#include <errno.h>
#include <time.h>

static int64_t now_us(clockid_t which) {
    struct timespec t;
    clock_gettime(which, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

int64_t clock_mono_ms(void) { return now_us(CLOCK_MONOTONIC) / 1000; }
int64_t clock_mono_us(void) { return now_us(CLOCK_MONOTONIC); }
int64_t clock_unix_ms(void) { return now_us(CLOCK_REALTIME) / 1000; }

void clock_sleep_us(int64_t us) {
    struct timespec left = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000};
    while (us > 0 && nanosleep(&left, &left) != 0 && errno == EINTR)
        ;
}

void clock_sleep_ms(int ms) { clock_sleep_us((int64_t)ms * 1000); }
