// Length-checked reader over bytes nobody has vouched for. Borrows them; the struct belongs to its
// holder. Does not interpret: a value out of range is for the caller to refuse.
#include "base/cursor.h"
#include <string.h>

cursor cursor_over(const void *p, size_t n) {
    static const uint8_t none[1];
    const uint8_t *start = p ? p : none;
    return (cursor){.p = start, .end = start + (p ? n : 0), .failed = !p && n > 0};
}

size_t cursor_left(const cursor *c) { return c->failed ? 0 : (size_t)(c->end - c->p); }

const void *cursor_bytes(cursor *c, size_t n) {
    if (c->failed || n > cursor_left(c)) {
        c->failed = true;
        return NULL;
    }
    const uint8_t *p = c->p;
    c->p += n;
    return p;
}

static uint64_t read_little(cursor *c, size_t n) {
    const uint8_t *p = cursor_bytes(c, n);
    uint64_t v = 0;
    for (size_t i = 0; p && i < n; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

uint8_t cursor_u8(cursor *c) { return (uint8_t)read_little(c, 1); }
uint16_t cursor_u16(cursor *c) { return (uint16_t)read_little(c, 2); }
uint32_t cursor_u32(cursor *c) { return (uint32_t)read_little(c, 4); }
uint64_t cursor_u64(cursor *c) { return read_little(c, 8); }

float cursor_f32(cursor *c) {
    uint32_t bits = cursor_u32(c);
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

double cursor_f64(cursor *c) {
    uint64_t bits = cursor_u64(c);
    double v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

const char *cursor_counted(cursor *c, size_t *n) {
    uint32_t length = cursor_u32(c);
    const char *p = cursor_bytes(c, length);
    *n = p ? length : 0;
    return p;
}

bool cursor_done(const cursor *c) { return !c->failed && c->p == c->end; }
