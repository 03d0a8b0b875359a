// Rate headers, in the words that OpenAI's clients know. Owns nothing; reactor's thread.
#include "server/openai_rates.h"
#include <inttypes.h>
#include <stdio.h>

void rates_format_reset(int64_t ms, char *out, size_t n) {
    int64_t s = ms > 0 ? (ms + 999) / 1000 : 0;
    if (s >= 3600)
        snprintf(out, n, "%" PRId64 "h%" PRId64 "m%" PRId64 "s", s / 3600, s / 60 % 60, s % 60);
    else if (s >= 60)
        snprintf(out, n, "%" PRId64 "m%" PRId64 "s", s / 60, s % 60);
    else
        snprintf(out, n, "%" PRId64 "s", s);
}

static rate tighter(rate a, rate b) {
    return a.limit < 0 || (b.limit >= 0 && b.left < a.left) ? b : a;
}

rates rates_tighter(rates a, rates b) {
    return (rates){tighter(a.requests, b.requests), tighter(a.tokens, b.tokens)};
}

static void set(exchange *x, const char *what, const char *of, const char *value) {
    char name[48];
    snprintf(name, sizeof name, "x-ratelimit-%s-%s", what, of);
    exchange_set_header(x, name, value);
}

static void set_rate(exchange *x, const char *of, const rate *r) {
    char text[64];
    if (r->limit < 0)
        return;
    snprintf(text, sizeof text, "%" PRId64, r->limit);
    set(x, "limit", of, text);
    snprintf(text, sizeof text, "%" PRId64, r->left);
    set(x, "remaining", of, text);
    rates_format_reset(r->reset_ms, text, sizeof text);
    set(x, "reset", of, text);
}

void rates_set_headers(exchange *x, const rates *r) {
    set_rate(x, "requests", &r->requests);
    set_rate(x, "tokens", &r->tokens);
}
