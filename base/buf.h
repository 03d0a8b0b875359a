// Growable byte buffer. Always NUL-terminated past `len` once something was put. Not thread-safe.
#ifndef BASE_BUF_H
#define BASE_BUF_H
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

typedef struct buf {
    char *data;
    size_t len, cap;
} buf; // zero-initialised is empty

void buf_put(buf *b, const void *p, size_t n);
void buf_puts(buf *b, const char *s);
void buf_printf(buf *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
void buf_vprintf(buf *b, const char *format, va_list args);
#define BUF_INT_TEXT 21                                 // "-9223372036854775808" and a NUL
size_t buf_int_text(int64_t v, char out[BUF_INT_TEXT]); // decimal; the number of characters
void buf_put_int(buf *b, int64_t v);
// A JSON string with its quotes; s is valid UTF-8.
void buf_put_json(buf *b, const char *s, size_t n);
void buf_put_u8(buf *b, uint8_t v); // little-endian writers, the twins of cursor.h
void buf_put_u16(buf *b, uint16_t v);
void buf_put_u32(buf *b, uint32_t v);
void buf_put_u64(buf *b, uint64_t v);
void buf_put_f32(buf *b, float v);
void buf_put_bytes(buf *b, const void *p, size_t n); // u32 length, then the bytes
void buf_consume(buf *b, size_t n);                  // drops n bytes from the front
void *buf_extend(buf *b, size_t n);                  // appends n bytes for the caller to fill
void buf_cut(buf *b, size_t len);                    // drops what stands behind len
void buf_clear(buf *b);                              // len = 0, memory kept
void buf_release(buf *b);
char *buf_take(buf *b); // caller frees; b is empty after

#endif
