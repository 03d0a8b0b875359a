// Identifiers, short texts and token ids in the codecs. Owns nothing; any thread. Reading never
// trusts a count before the bytes for it are known to be there.
#include "router/wire.h"
#include "base/err.h"
#include <string.h>

#define UUID_BYTES 16

static bool is_dash(size_t i) { return i == 8 || i == 13 || i == 18 || i == 23; }
static bool is_hex(char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); }

bool wire_is_uuid(const char *text, size_t n) {
    if (n != ID_UUID_TEXT - 1)
        return false;
    for (size_t i = 0; i < n; i++)
        if (is_dash(i) ? text[i] != '-' : !is_hex(text[i]))
            return false;
    return true;
}

void wire_put_uuid(buf *b, const char *text) {
    char digits[2 * UUID_BYTES + 1];
    size_t n = 0;
    if (!wire_is_uuid(text, strnlen(text, ID_UUID_TEXT)))
        fatal("\"%.40s\" is not a UUID", text);
    for (size_t i = 0; i < ID_UUID_TEXT - 1; i++)
        if (!is_dash(i))
            digits[n++] = text[i];
    digits[n] = '\0';
    id_unhex(digits, buf_extend(b, UUID_BYTES), UUID_BYTES);
}

void wire_uuid(cursor *c, char out[ID_UUID_TEXT]) {
    const void *bytes = cursor_bytes(c, UUID_BYTES);
    char digits[2 * UUID_BYTES + 1];
    out[0] = '\0';
    if (!bytes)
        return;
    id_hex(bytes, UUID_BYTES, digits);
    size_t n = 0;
    for (size_t i = 0; i < ID_UUID_TEXT - 1; i++)
        out[i] = is_dash(i) ? '-' : digits[n++];
    out[ID_UUID_TEXT - 1] = '\0';
}

void wire_put_text(buf *b, const char *text) {
    size_t n = strlen(text);
    if (n > UINT8_MAX)
        fatal("a name of %zu bytes does not fit a message", n);
    buf_put_u8(b, (uint8_t)n);
    buf_put(b, text, n);
}

void wire_text(cursor *c, char *out, size_t cap) {
    size_t n = cursor_u8(c);
    const char *p = cursor_bytes(c, n);
    out[0] = '\0';
    if (!p)
        return;
    if (n >= cap || memchr(p, '\0', n)) {
        c->failed = true;
        return;
    }
    memcpy(out, p, n);
    out[n] = '\0';
}

void wire_put_ids(buf *b, const int32_t *ids, int n) {
    buf_put_u32(b, (uint32_t)n);
    for (int i = 0; i < n; i++)
        buf_put_u32(b, (uint32_t)ids[i]);
}

int32_t *wire_ids(cursor *c, arena *a, int *n) {
    uint32_t count = cursor_u32(c);
    *n = 0;
    if (count > cursor_left(c) / 4) {
        c->failed = true;
        return NULL;
    }
    if (!count)
        return NULL;
    int32_t *ids = arena_alloc(a, count * sizeof *ids);
    for (uint32_t i = 0; i < count; i++) {
        ids[i] = (int32_t)cursor_u32(c);
        if (ids[i] < 0)
            c->failed = true;
    }
    *n = (int)count;
    return ids;
}
