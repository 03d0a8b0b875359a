// Framing policy on raw head bytes. Works on borrowed bytes, keeps nothing, any thread. Refuses
// rather than repairs; does not decode or store anything of a request (libmicrohttpd does), so the
// bytes that pass are the bytes that are parsed.
#include "server/gate.h"
#include <string.h>
#include <strings.h>

#define METHOD_BYTES 16

typedef struct field {
    const char *name, *value;
    size_t n_name, n_value;
} field;

typedef struct seen_fields {
    int n, n_host, n_length, n_coding;
} seen_fields;

static int refuse(int *status, int code, err *e, const char *param, const char *message) {
    *status = code;
    return err_set(e, ERR_INVALID, param, "%s", message);
}

// ---- characters (RFC 9110 section 5.6.2, RFC 3986)

static bool is_alnum(unsigned char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

static bool is_token(unsigned char c) { return is_alnum(c) || (c && strchr("!#$%&'*+-.^_`|~", c)); }

static bool is_value(unsigned char c) { return c == '\t' || (c >= 0x20 && c != 0x7f); }

static bool is_host(unsigned char c) {
    return is_alnum(c) || (c && strchr("-._~%!$&'()*+;=:[]", c));
}

static bool is_hex(char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

static bool is_same(const char *p, size_t n, const char *text) {
    return n == strlen(text) && strncasecmp(p, text, n) == 0;
}

// ---- the end of the head

int gate_find_end(const char *p, size_t n, size_t limit, size_t *seen, size_t *bytes, int *status,
                  err *e) {
    for (size_t i = *seen; i < n; i++) {
        *seen = i + 1;
        if (i >= limit)
            return refuse(status, 431, e, NULL, "the request's head is too large");
        if (p[i] == '\0')
            return refuse(status, 400, e, NULL, "a NUL byte in the request's head");
        if (p[i] == '\n' && (i == 0 || p[i - 1] != '\r'))
            return refuse(status, 400, e, NULL, "a line of the request's head ends without CR LF");
        if (i > 0 && p[i - 1] == '\r' && p[i] != '\n')
            return refuse(status, 400, e, NULL, "a bare CR in the request's head");
        if (p[i] == '\n' && i >= 3 && p[i - 2] == '\n') {
            *bytes = i + 1;
            return 1;
        }
    }
    return 0;
}

// ---- the request line

static int check_escapes(const char *p, size_t n, int *status, err *e) {
    for (size_t i = 0; i < n; i++) {
        if (p[i] != '%')
            continue;
        if (i + 2 >= n || !is_hex(p[i + 1]) || !is_hex(p[i + 2]))
            return refuse(status, 400, e, NULL, "a malformed % escape in the request's target");
        if (p[i + 1] == '0' && p[i + 2] == '0')
            return refuse(status, 400, e, NULL, "%00 in the request's target");
    }
    return 0;
}

static int check_target(const char *p, size_t n, bool is_options, int *status, err *e) {
    if (is_options && n == 1 && p[0] == '*')
        return 0;
    if (n == 0 || p[0] != '/')
        return refuse(status, 400, e, NULL, "the request's target must be a path");
    int n_arguments = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)p[i];
        if (c <= 0x20 || c >= 0x7f || c == '#')
            return refuse(status, 400, e, NULL, "a character that no request target may hold");
        n_arguments += c == '?' || c == '&';
    }
    if (n_arguments > GATE_ARGUMENTS)
        return refuse(status, 400, e, NULL, "too many query parameters");
    return check_escapes(p, n, status, e);
}

static int check_request_line(const char *p, size_t n, gate_head *out, int *status, err *e) {
    size_t n_method = 0;
    while (n_method < n && is_token((unsigned char)p[n_method]))
        n_method++;
    if (n_method == 0 || n_method > METHOD_BYTES || n_method == n || p[n_method] != ' ')
        return refuse(status, 400, e, NULL, "malformed request line");
    const char *target = p + n_method + 1, *end = p + n;
    const char *space = memchr(target, ' ', (size_t)(end - target));
    if (!space)
        return refuse(status, 400, e, NULL, "the request line has no HTTP version");
    size_t n_version = (size_t)(end - space - 1);
    if (n_version != 8 || (memcmp(space + 1, "HTTP/1.1", 8) && memcmp(space + 1, "HTTP/1.0", 8)))
        return refuse(status, 400, e, NULL, "the HTTP version must be 1.1 or 1.0");
    out->is_http10 = end[-1] == '0';
    bool is_options = n_method == 7 && memcmp(p, "OPTIONS", 7) == 0;
    return check_target(target, (size_t)(space - target), is_options, status, e);
}

// ---- header fields

static int split_field(const char *p, size_t n, field *out, int *status, err *e) {
    if (p[0] == ' ' || p[0] == '\t')
        return refuse(status, 400, e, NULL, "a folded header line");
    size_t i = 0;
    while (i < n && is_token((unsigned char)p[i]))
        i++;
    if (i == 0 || i == n || p[i] != ':')
        return refuse(status, 400, e, NULL, "a malformed header name");
    *out = (field){.name = p, .n_name = i, .value = p + i + 1, .n_value = n - i - 1};
    while (out->n_value && (*out->value == ' ' || *out->value == '\t')) {
        out->value++;
        out->n_value--;
    }
    while (out->n_value &&
           (out->value[out->n_value - 1] == ' ' || out->value[out->n_value - 1] == '\t'))
        out->n_value--;
    for (i = 0; i < out->n_value; i++)
        if (!is_value((unsigned char)out->value[i]))
            return refuse(status, 400, e, NULL, "a control character in a header value");
    return 0;
}

static int check_host(const field *f, int *status, err *e) {
    for (size_t i = 0; i < f->n_value; i++)
        if (!is_host((unsigned char)f->value[i]))
            return refuse(status, 400, e, "host", "malformed Host");
    if (f->n_value == 0)
        return refuse(status, 400, e, "host", "an empty Host");
    return 0;
}

static int read_length(const field *f, uint64_t *out, int *status, err *e) {
    uint64_t v = 0;
    for (size_t i = 0; i < f->n_value; i++) {
        char c = f->value[i];
        if (c < '0' || c > '9' || v > (UINT64_MAX >> 1) / 10 - 9)
            return refuse(status, 400, e, "content-length", "malformed Content-Length");
        v = v * 10 + (uint64_t)(c - '0');
    }
    if (f->n_value == 0)
        return refuse(status, 400, e, "content-length", "an empty Content-Length");
    *out = v;
    return 0;
}

static int take_field(const field *f, seen_fields *seen, gate_head *out, int *status, err *e) {
    if (++seen->n > GATE_HEADERS)
        return refuse(status, 431, e, NULL, "too many header fields");
    if (is_same(f->name, f->n_name, "host")) {
        if (++seen->n_host > 1)
            return refuse(status, 400, e, "host", "more than one Host");
        return check_host(f, status, e);
    }
    if (is_same(f->name, f->n_name, "content-length")) {
        if (++seen->n_length > 1)
            return refuse(status, 400, e, "content-length", "more than one Content-Length");
        return read_length(f, &out->length, status, e);
    }
    if (is_same(f->name, f->n_name, "transfer-encoding")) {
        if (++seen->n_coding > 1 || !is_same(f->value, f->n_value, "chunked"))
            return refuse(status, 400, e, "transfer-encoding",
                          "Transfer-Encoding must be exactly chunked");
    }
    return 0;
}

static int settle_framing(const seen_fields *seen, gate_head *out, int *status, err *e) {
    if (seen->n_host == 0)
        return refuse(status, 400, e, "host", "the Host header is missing");
    if (seen->n_coding && seen->n_length)
        return refuse(status, 400, e, "content-length",
                      "Content-Length and Transfer-Encoding in one request");
    if (seen->n_coding && out->is_http10)
        return refuse(status, 400, e, "transfer-encoding", "Transfer-Encoding with HTTP/1.0");
    out->framing = seen->n_coding ? GATE_CHUNKED : seen->n_length ? GATE_LENGTH : GATE_NO_BODY;
    return 0;
}

int gate_check(const char *p, size_t n, gate_head *out, int *status, err *e) {
    seen_fields seen = {0};
    *out = (gate_head){.bytes = n};
    const char *end = p + n - 2; // before the empty line
    for (const char *line = p; line < end;) {
        const char *cr = memchr(line, '\r', (size_t)(end - line));
        if (!cr)
            return refuse(status, 400, e, NULL, "malformed request head");
        size_t n_line = (size_t)(cr - line);
        field f = {0};
        if (line == p) {
            if (check_request_line(line, n_line, out, status, e))
                return -1;
        } else if (split_field(line, n_line, &f, status, e) ||
                   take_field(&f, &seen, out, status, e)) {
            return -1;
        }
        line = cr + 2;
    }
    return settle_framing(&seen, out, status, e);
}

// ---- bodies

enum chunk_state {
    CHUNK_SIZE,
    CHUNK_SIZE_LF,
    CHUNK_DATA,
    CHUNK_DATA_CR,
    CHUNK_DATA_LF,
    CHUNK_END_CR,
    CHUNK_END_LF
};
#define CHUNK_DIGITS 15

static int over_limit(int *status, err *e, uint64_t limit) {
    *status = 413;
    return err_set(e, ERR_TOO_LARGE, NULL, "the request's body is larger than %llu bytes",
                   (unsigned long long)limit);
}

int gate_body_start(gate_body *b, const gate_head *head, uint64_t limit, int *status, err *e) {
    *b = (gate_body){.framing = head->framing, .state = CHUNK_SIZE, .limit = limit};
    if (head->framing == GATE_LENGTH) {
        b->left = b->total = head->length;
        if (head->length > limit)
            return over_limit(status, e, limit);
    }
    b->is_done = head->framing != GATE_CHUNKED && b->left == 0;
    return 0;
}

static int hex_value(char c) {
    if (c >= '0' && c <= '9')
        return c - '0';
    return (c | 0x20) - 'a' + 10;
}

static int size_byte(gate_body *b, char c, int *status, err *e) {
    if (is_hex(c) && b->n_digits < CHUNK_DIGITS) {
        b->left = b->left << 4 | (uint64_t)hex_value(c);
        b->n_digits++;
        return 0;
    }
    if (c == ';')
        return refuse(status, 400, e, NULL, "chunk extensions are not accepted");
    if (c != '\r' || b->n_digits == 0)
        return refuse(status, 400, e, NULL, "a malformed chunk size");
    b->state = CHUNK_SIZE_LF;
    return 0;
}

static int start_chunk(gate_body *b, int *status, err *e) {
    b->n_digits = 0;
    b->state = b->left ? CHUNK_DATA : CHUNK_END_CR;
    if (b->left > b->limit - b->total)
        return over_limit(status, e, b->limit);
    b->total += b->left;
    return 0;
}

// One byte of chunk framing, outside the data.
static int framing_byte(gate_body *b, char c, int *status, err *e) {
    static const char wanted[] = {[CHUNK_SIZE_LF] = '\n',
                                  [CHUNK_DATA_CR] = '\r',
                                  [CHUNK_DATA_LF] = '\n',
                                  [CHUNK_END_CR] = '\r',
                                  [CHUNK_END_LF] = '\n'};
    if (b->state == CHUNK_SIZE)
        return size_byte(b, c, status, e);
    if (c != wanted[b->state])
        return refuse(status, 400, e, NULL,
                      b->state == CHUNK_END_CR ? "trailers are not accepted"
                                               : "malformed chunk framing");
    switch (b->state) {
    case CHUNK_SIZE_LF:
        return start_chunk(b, status, e);
    case CHUNK_DATA_CR:
        b->state = CHUNK_DATA_LF;
        break;
    case CHUNK_DATA_LF:
        b->state = CHUNK_SIZE;
        break;
    case CHUNK_END_CR:
        b->state = CHUNK_END_LF;
        break;
    default:
        b->is_done = true;
    }
    return 0;
}

int gate_body_scan(gate_body *b, const char *p, size_t n, size_t *used, int *status, err *e) {
    size_t at = 0;
    while (at < n && !b->is_done) {
        bool is_data = b->framing == GATE_LENGTH || b->state == CHUNK_DATA;
        if (!is_data) {
            if (framing_byte(b, p[at++], status, e))
                return -1;
            continue;
        }
        size_t take = n - at < b->left ? n - at : (size_t)b->left;
        at += take;
        b->left -= take;
        if (b->left == 0 && b->framing == GATE_LENGTH)
            b->is_done = true;
        else if (b->left == 0)
            b->state = CHUNK_DATA_CR;
    }
    *used = at;
    return 0;
}
