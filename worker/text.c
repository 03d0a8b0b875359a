// Text of an answer, one per choice. Bytes wait in `held` until they are certain. Owner: the step
// thread.
#include "worker/text.h"
#include <string.h>
#include <utf8proc.h>

void text_init(text_stream *s, const tokenizer *t, const job_stop *stops, int n_stops) {
    *s = (text_stream){.t = t, .stops = stops, .n_stops = n_stops};
}

void text_release(text_stream *s) { buf_release(&s->held); }

// Appends n bytes as valid UTF-8: each byte that fits nowhere becomes U+FFFD.
static void put_valid(buf *out, const char *p, size_t n) {
    while (n) {
        utf8proc_int32_t code;
        utf8proc_ssize_t len =
            utf8proc_iterate((const utf8proc_uint8_t *)p, (utf8proc_ssize_t)n, &code);
        if (len > 0)
            buf_put(out, p, (size_t)len);
        else
            buf_puts(out, "\xef\xbf\xbd");
        p += len > 0 ? len : 1;
        n -= len > 0 ? (size_t)len : 1;
    }
}

// Where the first stop string begins in held, looking from `from`; held.len when there is none.
static size_t stop_find(const text_stream *s, size_t from) {
    size_t first = s->held.len;
    for (int i = 0; i < s->n_stops; i++) {
        const char *at =
            memmem(s->held.data + from, s->held.len - from, s->stops[i].text, s->stops[i].n);
        if (at && (size_t)(at - s->held.data) < first)
            first = (size_t)(at - s->held.data);
    }
    return first;
}

// How many bytes at the end of held could be the beginning of a stop string.
static size_t stop_hold(const text_stream *s) {
    size_t most = 0;
    for (int i = 0; i < s->n_stops; i++) {
        size_t n = s->stops[i].n - 1 < s->held.len ? s->stops[i].n - 1 : s->held.len;
        while (n > most && memcmp(s->held.data + s->held.len - n, s->stops[i].text, n))
            n--;
        if (n > most)
            most = n;
    }
    return most;
}

bool text_add(text_stream *s, int32_t id, buf *out) {
    size_t n, longest = 1, before = s->held.len;
    const char *piece = tokenizer_piece(s->t, id, false, &n);
    if (!n)
        return false;
    buf_put(&s->held, piece, n);
    for (int i = 0; i < s->n_stops; i++)
        longest = s->stops[i].n > longest ? s->stops[i].n : longest;
    size_t stop = stop_find(s, before >= longest ? before - longest + 1 : 0);
    if (stop < s->held.len) {
        put_valid(out, s->held.data, stop);
        buf_clear(&s->held);
        return true;
    }
    size_t certain = utf8_whole(s->held.data, s->held.len - stop_hold(s));
    put_valid(out, s->held.data, certain);
    buf_consume(&s->held, certain);
    return false;
}

void text_flush(text_stream *s, buf *out) {
    put_valid(out, s->held.data, s->held.len);
    buf_clear(&s->held);
}
