// Growable byte buffer: doubling growth, one spare byte for the NUL. The struct belongs to its
// holder; one thread at a time. Running out of memory is fatal, so that writers need no checks.
// Does not validate what is put.
#include "base/buf.h"
#include "base/err.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PRINT_BYTES 64 // most of what is printed fits

// Makes room for n more bytes and a NUL; returns where they go.
static char *reserve(buf *b, size_t n) {
    if (n > SIZE_MAX / 4 || b->len > SIZE_MAX / 4)
        fatal("a buffer was asked for %zu more bytes", n);
    size_t need = b->len + n + 1;
    if (need > b->cap) {
        size_t cap = b->cap * 2 > need ? b->cap * 2 : need < 64 ? 64 : need;
        char *data = realloc(b->data, cap);
        if (!data)
            fatal("out of memory: a buffer wants %zu bytes", cap);
        b->data = data;
        b->cap = cap;
    }
    return b->data + b->len;
}

static void grown(buf *b, size_t n) {
    b->len += n;
    b->data[b->len] = '\0';
}

void buf_put(buf *b, const void *p, size_t n) {
    char *to = reserve(b, n);
    if (n)
        memcpy(to, p, n);
    grown(b, n);
}

void *buf_extend(buf *b, size_t n) {
    char *at = reserve(b, n);
    grown(b, n);
    return at;
}

void buf_puts(buf *b, const char *s) { buf_put(b, s, strlen(s)); }

void buf_vprintf(buf *b, const char *format, va_list args) {
    va_list again;
    va_copy(again, args);
    char *to = reserve(b, PRINT_BYTES);
    size_t room = b->cap - b->len;
    int n = vsnprintf(to, room, format, args);
    if (n < 0)
        fatal("buf_vprintf cannot format \"%s\"", format);
    if ((size_t)n >= room)
        vsnprintf(reserve(b, (size_t)n), (size_t)n + 1, format, again);
    va_end(again);
    grown(b, (size_t)n);
}

void buf_printf(buf *b, const char *format, ...) {
    va_list args;
    va_start(args, format);
    buf_vprintf(b, format, args);
    va_end(args);
}

static void put_escaped(buf *b, unsigned char c) {
    static const char named[] = "\"\"\\\\\bb\ff\nn\rr\tt"; // pairs: the character, its letter
    for (const char *p = named; *p; p += 2)
        if ((unsigned char)*p == c) {
            buf_put(b, (char[]){'\\', p[1]}, 2);
            return;
        }
    buf_printf(b, "\\u%04x", c);
}

void buf_put_json(buf *b, const char *s, size_t n) {
    buf_put(b, "\"", 1);
    size_t plain = 0; // start of the run that needs no escape
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c >= 0x20 && c != '"' && c != '\\')
            continue;
        buf_put(b, s + plain, i - plain);
        put_escaped(b, c);
        plain = i + 1;
    }
    buf_put(b, s + plain, n - plain);
    buf_put(b, "\"", 1);
}

size_t buf_int_text(int64_t v, char out[BUF_INT_TEXT]) {
    char digits[BUF_INT_TEXT];
    size_t n = 0, at = 0;
    uint64_t left = v < 0 ? 0 - (uint64_t)v : (uint64_t)v;
    do
        digits[n++] = (char)('0' + left % 10);
    while ((left /= 10) > 0);
    if (v < 0)
        out[at++] = '-';
    while (n > 0)
        out[at++] = digits[--n];
    out[at] = '\0';
    return at;
}

void buf_put_int(buf *b, int64_t v) {
    char text[BUF_INT_TEXT];
    buf_put(b, text, buf_int_text(v, text));
}

static void put_little(buf *b, uint64_t v, size_t n) {
    uint8_t bytes[8];
    for (size_t i = 0; i < n; i++)
        bytes[i] = (uint8_t)(v >> (8 * i));
    buf_put(b, bytes, n);
}

void buf_put_u8(buf *b, uint8_t v) { put_little(b, v, 1); }
void buf_put_u16(buf *b, uint16_t v) { put_little(b, v, 2); }
void buf_put_u32(buf *b, uint32_t v) { put_little(b, v, 4); }
void buf_put_u64(buf *b, uint64_t v) { put_little(b, v, 8); }

void buf_put_f32(buf *b, float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    buf_put_u32(b, bits);
}

void buf_put_bytes(buf *b, const void *p, size_t n) {
    if (n > UINT32_MAX)
        fatal("buf_put_bytes was given %zu bytes", n);
    buf_put_u32(b, (uint32_t)n);
    buf_put(b, p, n);
}

void buf_consume(buf *b, size_t n) {
    if (n > b->len)
        fatal("buf_consume of %zu bytes, %zu are there", n, b->len);
    if (!n)
        return;
    memmove(b->data, b->data + n, b->len - n + 1);
    b->len -= n;
}

void buf_cut(buf *b, size_t len) {
    if (len > b->len)
        fatal("buf_cut at %zu of %zu bytes", len, b->len);
    b->len = len;
    if (b->data)
        b->data[len] = '\0';
}

void buf_clear(buf *b) {
    b->len = 0;
    if (b->data)
        b->data[0] = '\0';
}

void buf_release(buf *b) {
    free(b->data);
    *b = (buf){0};
}

char *buf_take(buf *b) {
    reserve(b, 0);
    grown(b, 0);
    char *data = b->data;
    *b = (buf){0};
    return data;
}
