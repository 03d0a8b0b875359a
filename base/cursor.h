// Length-checked reader over untrusted bytes (little-endian). After a short read `failed` is set,
// every later read returns zero or NULL, and the caller checks once at the end.
#ifndef BASE_CURSOR_H
#define BASE_CURSOR_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct cursor {
    const uint8_t *p, *end;
    bool failed;
} cursor;

cursor cursor_over(const void *p, size_t n);
size_t cursor_left(const cursor *c);
uint8_t cursor_u8(cursor *c);
uint16_t cursor_u16(cursor *c);
uint32_t cursor_u32(cursor *c);
uint64_t cursor_u64(cursor *c);
float cursor_f32(cursor *c);
double cursor_f64(cursor *c);
const void *cursor_bytes(cursor *c, size_t n); // borrowed; NULL when fewer are left
const char *cursor_counted(cursor *c,
                           size_t *n); // u32 length, then bytes (buf_put_bytes); borrowed
bool cursor_done(const cursor *c);     // nothing failed and nothing is left

#endif
