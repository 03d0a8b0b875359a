// Normalisation form C as Hugging Face's tokenizers make it: that of Unicode 9. utf8proc decomposes
// and composes; the canonical order between is made here, because utf8proc's takes quadratic time
// on a long run of combining marks. Keeps nothing; any thread. Does not validate UTF-8.
#include "model/tokenizer_internal.h"
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

typedef struct range {
    utf8proc_int32_t first, last;
} range;

// Code points that stand alone: they neither decompose nor move nor combine. Most are marks that
// Unicode got after version 9; U+11938 is a letter with a decomposition (U+11935 U+11930) of
// version 13, and utf8proc joins U+11A7 to a Hangul syllable, which Unicode does not.
static const range alone[] = {
    {0x7fd, 0x7fd},     {0x898, 0x89f},     {0x8ca, 0x8d3},     {0x9fe, 0x9fe},
    {0xc3c, 0xc3c},     {0xd3b, 0xd3c},     {0xeba, 0xeba},     {0x11a7, 0x11a7},
    {0x1715, 0x1715},   {0x1abf, 0x1ace},   {0x1df6, 0x1dfa},   {0xa82c, 0xa82c},
    {0x10d24, 0x10d27}, {0x10eab, 0x10eac}, {0x10efd, 0x10eff}, {0x10f46, 0x10f50},
    {0x10f82, 0x10f85}, {0x11070, 0x11070}, {0x1133b, 0x1133b}, {0x1145e, 0x1145e},
    {0x11839, 0x1183a}, {0x11930, 0x11930}, {0x11938, 0x11938}, {0x1193d, 0x1193e},
    {0x11943, 0x11943}, {0x119e0, 0x119e0}, {0x11a34, 0x11a34}, {0x11a47, 0x11a47},
    {0x11a99, 0x11a99}, {0x11d42, 0x11d42}, {0x11d44, 0x11d45}, {0x11d97, 0x11d97},
    {0x11f41, 0x11f42}, {0x16ff0, 0x16ff1}, {0x1e08f, 0x1e08f}, {0x1e130, 0x1e136},
    {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef}, {0x1e4ec, 0x1e4ef},
};

static bool stands_alone(utf8proc_int32_t c) {
    size_t low = 0, high = sizeof alone / sizeof *alone;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (c > alone[middle].last)
            low = middle + 1;
        else
            high = middle;
    }
    return low < sizeof alone / sizeof *alone && c >= alone[low].first;
}

typedef struct points { // the code points of a run, and as much spare room behind them
    utf8proc_int32_t *p, *spare;
    size_t n;
} points;

static unsigned class_of(utf8proc_int32_t c) {
    return (unsigned)utf8proc_get_property(c)->combining_class & 255;
}

static void order_marks(utf8proc_int32_t *p, size_t n, utf8proc_int32_t *spare) {
    size_t at[256] = {0}, sum = 0;
    for (size_t i = 0; i < n; i++)
        at[class_of(p[i])]++;
    for (int k = 0; k < 256; k++) {
        size_t count = at[k];
        at[k] = sum;
        sum += count;
    }
    for (size_t i = 0; i < n; i++)
        spare[at[class_of(p[i])]++] = p[i];
    memcpy(p, spare, n * sizeof *p);
}

static void order_canonically(const points *s) {
    for (size_t i = 0; i < s->n;) {
        size_t end = i;
        bool sorted = true;
        for (unsigned before = 0, k; end < s->n && (k = class_of(s->p[end])); end++, before = k)
            sorted = sorted && k >= before;
        if (!sorted)
            order_marks(s->p + i, end - i, s->spare);
        i = end + (end == i);
    }
}

static void put_point(utf8proc_int32_t c, buf *out) {
    utf8proc_uint8_t bytes[4];
    buf_put(out, bytes, (size_t)utf8proc_encode_char(c, bytes));
}

// Composes what has been collected and empties it.
static void flush(points *s, buf *out) {
    order_canonically(s);
    utf8proc_ssize_t n =
        utf8proc_normalize_utf32(s->p, (utf8proc_ssize_t)s->n, UTF8PROC_COMPOSE | UTF8PROC_STABLE);
    for (utf8proc_ssize_t i = 0; i < n; i++)
        put_point(s->p[i], out);
    s->n = 0;
}

// A code point of 2 or more bytes has at most 4 in its decomposition, one of 1 byte is its own: 2 n
// are enough.
static void put_run(const char *text, size_t n, buf *out) {
    utf8proc_int32_t *memory = malloc((4 * n + 4) * sizeof *memory);
    if (!memory)
        fatal("out of memory: %zu bytes to normalise", n);
    points s = {memory, memory + 2 * n + 4, 0};
    while (n) {
        utf8proc_int32_t c;
        int bound = 0;
        utf8proc_ssize_t used =
            utf8proc_iterate((const utf8proc_uint8_t *)text, (utf8proc_ssize_t)n, &c);
        if (stands_alone(c)) {
            flush(&s, out);
            put_point(c, out);
        } else {
            s.n += (size_t)utf8proc_decompose_char(c, s.p + s.n, 4,
                                                   UTF8PROC_COMPOSE | UTF8PROC_STABLE, &bound);
        }
        text += used;
        n -= (size_t)used;
    }
    flush(&s, out);
    free(memory);
}

// Below U+0300 (first byte 0xcc) nothing decomposes for good or combines.
bool nfc_may_change(const char *p, size_t n) {
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)p[i] >= 0xcc)
            return true;
    return false;
}

// ASCII characters never combine with what stands before them, so text is normalised in runs that
// start with one.
void nfc_put(const char *p, size_t n, buf *out) {
    for (size_t i = 0; i < n;) {
        size_t ascii = i;
        while (ascii < n && !(p[ascii] & 0x80))
            ascii++;
        size_t run = ascii < n && ascii > i ? ascii - 1 : ascii;
        buf_put(out, p + i, run - i);
        size_t end = ascii;
        while (end < n && (p[end] & 0x80))
            end++;
        if (nfc_may_change(p + run, end - run))
            put_run(p + run, end - run, out);
        else
            buf_put(out, p + run, end - run);
        i = end;
    }
}
