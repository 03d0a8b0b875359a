// UTF-8 checks and JSON spellings for bytes from clients and from tokens, which may end inside a
// character. Pure functions, any thread. Does not parse JSON.
#include "server/openai_text.h"

static bool is_continuation(char c) { return ((unsigned char)c & 0xc0) == 0x80; }

size_t text_character(const char *p, size_t n) {
    if (!n)
        return 0;
    unsigned char c = (unsigned char)*p;
    if (c < 0x80)
        return 1;
    size_t len = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
    if (c < 0xc2 || c > 0xf4 || n < len)
        return 0;
    for (size_t i = 1; i < len; i++)
        if (!is_continuation(p[i]))
            return 0;
    unsigned char second = (unsigned char)p[1];
    bool is_overlong = (c == 0xe0 && second < 0xa0) || (c == 0xf0 && second < 0x90);
    bool is_surrogate = c == 0xed && second > 0x9f;
    bool is_beyond = c == 0xf4 && second > 0x8f;
    return is_overlong || is_surrogate || is_beyond ? 0 : len;
}

// Bytes at the front that are whole characters.
static size_t valid_prefix(const char *p, size_t n) {
    size_t i = 0;
    while (i < n) {
        size_t len = text_character(p + i, n - i);
        if (!len)
            break;
        i += len;
    }
    return i;
}

bool text_is_utf8(const char *p, size_t n) { return valid_prefix(p, n) == n; }

size_t text_count_characters(const char *p, size_t n) {
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        count += !is_continuation(p[i]);
    return count;
}

void text_put_json(buf *out, const char *p, size_t n) {
    size_t good = valid_prefix(p, n);
    if (good == n) {
        buf_put_json(out, p, n);
        return;
    }
    buf fixed = {0};
    while (n) {
        buf_put(&fixed, p, good);
        p += good;
        n -= good;
        if (n) {
            buf_puts(&fixed, "\xef\xbf\xbd");
            p++;
            n--;
        }
        good = valid_prefix(p, n);
    }
    buf_put_json(out, fixed.data, fixed.len);
    buf_release(&fixed);
}

void text_put_byte_array(buf *out, const char *p, size_t n) {
    buf_puts(out, "[");
    for (size_t i = 0; i < n; i++)
        buf_printf(out, i ? ",%u" : "%u", (unsigned char)p[i]);
    buf_puts(out, "]");
}
