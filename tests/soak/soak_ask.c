// What the soak's clients say, for the echo application and for a real gateway, and how they read
// an answer. Pure functions; the random choices come from the soak's generator.
#include "tests/soak/soak.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void put_head(const soak *s, buf *out, const char *method, const char *path) {
    const soak_target *t = &s->target;
    buf_printf(out, "%s %s%s HTTP/1.1\r\nHost: %s\r\n", method, t->prefix, path, t->host);
    if (t->key)
        buf_printf(out, "Authorization: Bearer %s\r\n", t->key);
}

static void put_get(const soak *s, buf *out, const char *path) {
    put_head(s, out, "GET", path);
    buf_puts(out, "\r\n");
}

static void put_chat(const soak *s, buf *out, int n_tokens, bool is_stream) {
    char body[512];
    int n = snprintf(body, sizeof body,
                     "{\"model\":\"%s\",\"max_tokens\":%d,\"stream\":%s,"
                     "\"messages\":[{\"role\":\"user\",\"content\":\"Count to ten.\"}]}",
                     s->target.model, n_tokens, is_stream ? "true" : "false");
    put_head(s, out, "POST", "/chat/completions");
    buf_printf(out, "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", n, body);
}

void ask_short(soak *s, buf *out) {
    if (s->target.model) {
        put_get(s, out, "/models");
    } else if (soak_random(s, 2)) {
        put_get(s, out, "/info?q=1");
    } else {
        put_head(s, out, "POST", "/echo");
        if (soak_random(s, 2))
            buf_puts(out, "Content-Length: 11\r\n\r\nhello there");
        else
            buf_puts(out,
                     "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n there\r\n0\r\n\r\n");
    }
}

void ask_stream(soak *s, buf *out) {
    if (s->target.model)
        put_chat(s, out, 4, true);
    else
        put_get(s, out, soak_random(s, 2) ? "/stream?n=10&ms=100" : "/stream?n=10&ms=0");
}

void ask_slow(soak *s, buf *out) {
    if (s->target.model)
        put_chat(s, out, 64, soak_random(s, 2));
    else
        put_get(s, out, soak_random(s, 2) ? "/later?ms=8000" : "/stream?n=100000&ms=200");
}

void ask_much(soak *s, buf *out) {
    if (s->target.model)
        put_chat(s, out, 512, true);
    else
        put_get(s, out,
                soak_random(s, 2) ? "/stream?n=100000&ms=10&bytes=30000" : "/big?bytes=4000000");
}

void ask_body_only_half(soak *s, buf *out) {
    put_head(s, out, "POST", s->target.model ? "/chat/completions" : "/echo");
    if (soak_random(s, 2))
        buf_puts(out, "Content-Length: 1000\r\n\r\n{\"model\":");
    else
        buf_puts(out, "Transfer-Encoding: chunked\r\n\r\n9\r\n{\"mod");
}

void ask_badly(soak *s, buf *out) {
    static const char *const shapes[] = {
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Content-Length: 0\r\nContent-Length: 5\r\n\r\nAAAAA",
        "Transfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n",
        "X: a\r\n b\r\n\r\n",
        "X: a\nY: b\r\n\r\n",
        "Content-Length : 3\r\n\r\nabc",
        "Content-Length: 99999999999999999999999\r\n\r\n",
        "Content-Length: 999999999\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n3;a=b\nabc\n0\n\n",
    };
    put_head(s, out, "POST", "/echo");
    buf_puts(out, shapes[soak_random(s, sizeof shapes / sizeof *shapes)]);
}

// ---- reading

static const char *find(const char *p, size_t n, const char *text) {
    return memmem(p, n, text, strlen(text));
}

static bool has_field(const char *p, size_t n, const char *field, const char **value) {
    for (const char *line = p; (line = find(line, n - (size_t)(line - p), "\r\n"));) {
        line += 2;
        if ((size_t)(line - p) + strlen(field) < n && !strncasecmp(line, field, strlen(field))) {
            *value = line + strlen(field);
            return true;
        }
    }
    return false;
}

static long chunk_bytes(const char *p, size_t n) {
    for (size_t at = 0; at < n;) {
        const char *end = find(p + at, n - at, "\r\n");
        if (!end)
            return 0;
        size_t size = strtoul(p + at, NULL, 16);
        at = (size_t)(end - p) + 2 + size + 2;
        if (at > n)
            return 0;
        if (memcmp(p + at - 2, "\r\n", 2))
            return -1;
        if (size == 0)
            return (long)at;
    }
    return 0;
}

long ask_answer_bytes(const char *p, size_t n, int *status) {
    const char *end = n ? find(p, n, "\r\n\r\n") : NULL, *value;
    if (n >= 5 && memcmp(p, "HTTP/", 5))
        return -1;
    if (!end)
        return 0;
    size_t n_head = (size_t)(end - p) + 4;
    *status = atoi(p + 9);
    if (has_field(p, n_head, "content-length:", &value)) {
        size_t whole = n_head + strtoul(value, NULL, 10);
        return n >= whole ? (long)whole : 0;
    }
    if (!has_field(p, n_head, "transfer-encoding: chunked", &value))
        return -1;
    long body = chunk_bytes(p + n_head, n - n_head);
    return body > 0 ? (long)n_head + body : body;
}
