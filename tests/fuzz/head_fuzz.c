// The framing gate on arbitrary bytes: what passes must be framed unambiguously, and how the bytes
// are split must not matter. The first byte chooses the split.
#include "server/gate.h"
#include <stdlib.h>
#include <string.h>

#define HEAD_LIMIT 4096
#define BODY_LIMIT 10000

static void must(int is_true) {
    if (!is_true)
        abort();
}

// What the gate promises of a head that it let through.
static void check_head(const char *p, const gate_head *h) {
    must(h->bytes <= HEAD_LIMIT && h->bytes >= 4);
    must(memcmp(p + h->bytes - 4, "\r\n\r\n", 4) == 0);
    must(memchr(p, '\0', h->bytes) == NULL);
    for (size_t i = 0; i < h->bytes; i++) {
        must(p[i] != '\n' || (i > 0 && p[i - 1] == '\r'));
        must(p[i] != '\r' || p[i + 1] == '\n');
    }
    must(h->framing != GATE_CHUNKED || !h->is_http10);
}

static int find_in_steps(const char *p, size_t n, size_t step, size_t *bytes, int *status) {
    size_t seen = 0;
    for (size_t have = 0; have < n;) {
        have = n - have < step ? n : have + step;
        int r = gate_find_end(p, have, HEAD_LIMIT, &seen, bytes, status, NULL);
        if (r)
            return r;
    }
    return 0;
}

static int scan_in_steps(const gate_head *h, const char *p, size_t n, size_t step, size_t *used) {
    gate_body b;
    int status = 0;
    *used = 0;
    if (gate_body_start(&b, h, BODY_LIMIT, &status, NULL)) {
        must(status == 413);
        return status;
    }
    for (size_t at = 0; at < n && !b.is_done;) {
        size_t take = n - at < step ? n - at : step, one = 0;
        if (gate_body_scan(&b, p + at, take, &one, &status, NULL)) {
            must(status == 400 || status == 413);
            return status;
        }
        must(one <= take && (one == take || b.is_done));
        must(b.total <= BODY_LIMIT);
        at += take;
        *used += one;
    }
    return b.is_done;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2)
        return 0;
    size_t step = data[0] ? data[0] : 1, n = size - 1, bytes = 0, other = 0, used, used_other;
    const char *p = (const char *)data + 1;
    int status = 0, status_other = 0;
    gate_head h;
    err e = {0};
    int r = find_in_steps(p, n, n, &bytes, &status);
    must(r == find_in_steps(p, n, step, &other, &status_other));
    must(status == status_other && bytes == other);
    if (r <= 0)
        return 0;
    if (gate_check(p, bytes, &h, &status, &e)) {
        must((status == 400 || status == 431) && e.message[0]);
        return 0;
    }
    check_head(p, &h);
    int whole = scan_in_steps(&h, p + bytes, n - bytes, n, &used);
    must(whole == scan_in_steps(&h, p + bytes, n - bytes, step, &used_other));
    must(whole > 1 || used == used_other);
    return 0;
}
