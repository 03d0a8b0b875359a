// Identifiers and random bytes from the kernel. Keeps the last UUID's time in one atomic word; any
// thread. Does not check that a text is a UUID: ids that come from outside are compared as text.
#include "base/id.h"
#include "base/err.h"
#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

void id_random(void *out, size_t n) {
    for (uint8_t *p = out; n > 0;) {
        ssize_t got = getrandom(p, n, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            fatal("the kernel gives no random bytes: %s", strerror(errno));
        p += got;
        n -= (size_t)got;
    }
}

uint64_t id_random_u64(void) {
    uint64_t v;
    id_random(&v, sizeof v);
    return v;
}

// 48 bits of milliseconds and 12 bits of their fraction (RFC 9562 section 6.2, method 3), never
// twice the same in a process.
static uint64_t next_tick(void) {
    static _Atomic uint64_t last;
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    uint64_t ms = (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
    uint64_t tick = ms << 12 | ((uint64_t)t.tv_nsec % 1000000) * 4096 / 1000000;
    uint64_t seen = atomic_load(&last);
    uint64_t mine;
    do
        mine = tick > seen ? tick : seen + 1;
    while (!atomic_compare_exchange_weak(&last, &seen, mine));
    return mine;
}

void id_uuid7(char out[ID_UUID_TEXT]) {
    uint64_t tick = next_tick();
    uint64_t high = (tick >> 12) << 16 | 0x7000 | (tick & 0xfff);
    uint64_t low = (id_random_u64() & 0x3fffffffffffffffu) | 0x8000000000000000u;
    char text[33];
    id_hex_u64(high, 16, text);
    id_hex_u64(low, 16, text + 16);
    for (int i = 0, at = 0; i < 32; i++) {
        if (i == 8 || i == 12 || i == 16 || i == 20)
            out[at++] = '-';
        out[at++] = text[i];
    }
    out[ID_UUID_TEXT - 1] = '\0';
}

static const char hex_digits[] = "0123456789abcdef";

void id_hex_u64(uint64_t v, int n, char *out) {
    for (int i = n - 1; i >= 0; i--, v >>= 4)
        out[i] = hex_digits[v & 15];
    out[n] = '\0';
}

void id_hex(const void *p, size_t n, char *out) {
    const uint8_t *bytes = p;
    for (size_t i = 0; i < n; i++) {
        out[2 * i] = hex_digits[bytes[i] >> 4];
        out[2 * i + 1] = hex_digits[bytes[i] & 15];
    }
    out[2 * n] = '\0';
}

static int digit_value(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

int id_unhex(const char *text, void *out, size_t n) {
    uint8_t *bytes = out;
    if (strnlen(text, 2 * n + 1) != 2 * n)
        return -1;
    for (size_t i = 0; i < n; i++) {
        int high = digit_value(text[2 * i]), low = digit_value(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return -1;
        bytes[i] = (uint8_t)(high << 4 | low);
    }
    return 0;
}
