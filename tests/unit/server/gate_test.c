// Table-driven: which heads and bodies the framing gate lets through, and with which status it
// refuses the others.
#include "base/buf.h"
#include "server/gate.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

typedef struct shape {
    const char *name, *head; // status 0: passes
    int status;
    size_t n; // of head when it holds a NUL
} shape;

#define GET "GET /a HTTP/1.1\r\n"
#define POST "POST /a HTTP/1.1\r\nHost: x\r\n"

static const shape shapes[] = {
    {"a plain GET", GET "Host: x\r\n\r\n", 0, 0},
    {"HTTP/1.0", "GET /a HTTP/1.0\r\nHost: x\r\n\r\n", 0, 0},
    {"a host with port", GET "Host: example.org:8443\r\n\r\n", 0, 0},
    {"an IPv6 host", GET "Host: [::1]:8443\r\n\r\n", 0, 0},
    {"no space after the colon", GET "Host:x\r\n\r\n", 0, 0},
    {"spaces around a value", GET "Host: \t x \t\r\n\r\n", 0, 0},
    {"an empty value", GET "Host: x\r\nX-A:\r\n\r\n", 0, 0},
    {"UTF-8 in a value", GET "Host: x\r\nX-A: \xc3\xa9\r\n\r\n", 0, 0},
    {"every token character in a name", GET "Host: x\r\n!#$%&'*+-.^_`|~09azAZ: v\r\n\r\n", 0, 0},
    {"a query", "GET /a?b=c&d=%20 HTTP/1.1\r\nHost: x\r\n\r\n", 0, 0},
    {"OPTIONS of the server", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 0, 0},
    {"Content-Length 0", POST "Content-Length: 0\r\n\r\n", 0, 0},
    {"leading zeros in a length", POST "Content-Length: 0003\r\n\r\n", 0, 0},
    {"chunked in capitals", POST "Transfer-Encoding: CHUNKED\r\n\r\n", 0, 0},
    {"an unknown method", "BREW /pot HTTP/1.1\r\nHost: x\r\n\r\n", 0, 0},

    {"Content-Length with Transfer-Encoding",
     POST "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n", 400, 0},
    {"Transfer-Encoding with Content-Length",
     POST "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n", 400, 0},
    {"two different lengths", POST "Content-Length: 0\r\nContent-Length: 5\r\n\r\n", 400, 0},
    {"two equal lengths", POST "Content-Length: 5\r\nContent-Length: 5\r\n\r\n", 400, 0},
    {"a list of lengths", POST "Content-Length: 5, 5\r\n\r\n", 400, 0},
    {"a negative length", POST "Content-Length: -1\r\n\r\n", 400, 0},
    {"a length with a plus", POST "Content-Length: +3\r\n\r\n", 400, 0},
    {"a huge length", POST "Content-Length: 99999999999999999999999\r\n\r\n", 400, 0},
    {"a length that wraps 64 bits", POST "Content-Length: 18446744073709551617\r\n\r\n", 400, 0},
    {"a hexadecimal length", POST "Content-Length: 0x3\r\n\r\n", 400, 0},
    {"an empty length", POST "Content-Length:\r\n\r\n", 400, 0},
    {"a space inside a length", POST "Content-Length: 1 2\r\n\r\n", 400, 0},
    {"a fraction as length", POST "Content-Length: 3.0\r\n\r\n", 400, 0},
    {"xchunked", POST "Transfer-Encoding: xchunked\r\n\r\n", 400, 0},
    {"identity, chunked", POST "Transfer-Encoding: identity, chunked\r\n\r\n", 400, 0},
    {"chunked, identity", POST "Transfer-Encoding: chunked, identity\r\n\r\n", 400, 0},
    {"gzip, chunked", POST "Transfer-Encoding: gzip, chunked\r\n\r\n", 400, 0},
    {"chunked twice in one", POST "Transfer-Encoding: chunked, chunked\r\n\r\n", 400, 0},
    {"chunked twice", POST "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400,
     0},
    {"quoted chunked", POST "Transfer-Encoding: \"chunked\"\r\n\r\n", 400, 0},
    {"chunked with a parameter", POST "Transfer-Encoding: chunked;q=1\r\n\r\n", 400, 0},
    {"an empty coding", POST "Transfer-Encoding:\r\n\r\n", 400, 0},
    {"identity", POST "Transfer-Encoding: identity\r\n\r\n", 400, 0},
    {"vertical tab before chunked",
     POST "Transfer-Encoding: \x0b"
          "chunked\r\n\r\n",
     400, 0},
    {"chunked with HTTP/1.0", "POST /a HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
     400, 0},
    {"no Host", GET "\r\n", 400, 0},
    {"no Host with HTTP/1.0", "GET /a HTTP/1.0\r\n\r\n", 400, 0},
    {"two Hosts", GET "Host: x\r\nHost: y\r\n\r\n", 400, 0},
    {"two equal Hosts", GET "Host: x\r\nhost: x\r\n\r\n", 400, 0},
    {"an empty Host", GET "Host:\r\n\r\n", 400, 0},
    {"two names in a Host", GET "Host: a, b\r\n\r\n", 400, 0},
    {"a path in a Host", GET "Host: a/b\r\n\r\n", 400, 0},
    {"a user in a Host", GET "Host: a@b\r\n\r\n", 400, 0},
    {"bare LF after the request line", "GET /a HTTP/1.1\nHost: x\r\n\r\n", 400, 0},
    {"bare LF everywhere", "GET /a HTTP/1.1\nHost: x\n\n", 400, 0},
    {"bare LF in a header", GET "Host: x\nX: y\r\n\r\n", 400, 0},
    {"bare LF as the empty line", GET "Host: x\r\n\n", 400, 0},
    {"bare CR in a value", GET "Host: x\r\nX: a\rb\r\n\r\n", 400, 0},
    {"bare CR in the request line", "GET /a\r HTTP/1.1\r\nHost: x\r\n\r\n", 400, 0},
    {"two CRs", GET "Host: x\r\r\n\r\n", 400, 0},
    {"a folded header with a space", GET "Host: x\r\nX: a\r\n b\r\n\r\n", 400, 0},
    {"a folded header with a tab", GET "Host: x\r\nX: a\r\n\tb\r\n\r\n", 400, 0},
    {"a space before the first header", GET " Host: x\r\n\r\n", 400, 0},
    {"a space before the colon", POST "Content-Length : 3\r\n\r\n", 400, 0},
    {"a tab before the colon", POST "Content-Length\t: 3\r\n\r\n", 400, 0},
    {"a space in a name", GET "Host: x\r\nX Y: a\r\n\r\n", 400, 0},
    {"no colon", GET "Host: x\r\nXY\r\n\r\n", 400, 0},
    {"an empty name", GET "Host: x\r\n: a\r\n\r\n", 400, 0},
    {"parentheses in a name", GET "Host: x\r\nX(Y): a\r\n\r\n", 400, 0},
    {"UTF-8 in a name", GET "Host: x\r\nX\xc3\xa9: a\r\n\r\n", 400, 0},
    {"a NUL in a value", GET "Host: x\r\nX: a\0b\r\n\r\n", 400, sizeof(GET) - 1 + 18},
    {"a NUL in a name", GET "Host: x\r\nX\0Y: ab\r\n\r\n", 400, sizeof(GET) - 1 + 19},
    {"a bell in a value", GET "Host: x\r\nX: a\x07\r\n\r\n", 400, 0},
    {"DEL in a value", GET "Host: x\r\nX: a\x7f\r\n\r\n", 400, 0},
    {"HTTP/0.9", "GET /a\r\n\r\n", 400, 0},
    {"HTTP/2.0", "GET /a HTTP/2.0\r\nHost: x\r\n\r\n", 400, 0},
    {"the HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\n", 400, 0},
    {"HTTP/1.2", "GET /a HTTP/1.2\r\nHost: x\r\n\r\n", 400, 0},
    {"HTTP/1.10", "GET /a HTTP/1.10\r\nHost: x\r\n\r\n", 400, 0},
    {"http in lower case", "GET /a http/1.1\r\nHost: x\r\n\r\n", 400, 0},
    {"a space after the version", "GET /a HTTP/1.1 \r\nHost: x\r\n\r\n", 400, 0},
    {"two spaces after the method", "GET  /a HTTP/1.1\r\nHost: x\r\n\r\n", 400, 0},
    {"two spaces before the version", "GET /a  HTTP/1.1\r\nHost: x\r\n\r\n", 400, 0},
    {"a tab for a space", "GET\t/a HTTP/1.1\r\nHost: x\r\n\r\n", 400, 0},
    {"a space in front", " GET /a HTTP/1.1\r\nHost: x\r\n\r\n", 400, 0},
    {"a space in the target", "GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400, 0},
    {"no target", "GET HTTP/1.1\r\nHost: x\r\n\r\n", 400, 0},
    {"a method with parentheses", "G(T /a HTTP/1.1\r\nHost: x\r\n\r\n", 400, 0},
    {"a very long method", "GETGETGETGETGETGET /a HTTP/1.1\r\nHost: x\r\n\r\n", 400, 0},
    {"a control character in the target", "GET /a\x01 HTTP/1.1\r\nHost: x\r\n\r\n", 400, 0},
    {"a raw byte over 127 in the target", "GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n", 400, 0},
    {"a fragment in the target", "GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n", 400, 0},
    {"%00 in the target", "GET /a%00b HTTP/1.1\r\nHost: x\r\n\r\n", 400, 0},
    {"a broken escape", "GET /a%2 HTTP/1.1\r\nHost: x\r\n\r\n", 400, 0},
    {"an escape of letters", "GET /a%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400, 0},
    {"an absolute target", "GET http://x/a HTTP/1.1\r\nHost: x\r\n\r\n", 400, 0},
    {"an absolute target of another host", "GET http://y/a HTTP/1.1\r\nHost: x\r\n\r\n", 400, 0},
    {"CONNECT", "CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400, 0},
    {"a star with GET", "GET * HTTP/1.1\r\nHost: x\r\n\r\n", 400, 0},
    {"a TLS client hello", "\x16\x03\x01\x02\r\n\r\n", 400, 0},
    {"an empty request line", "\r\n\r\n", 400, 0},
};

static int judge(const char *p, size_t n, size_t limit, err *e) {
    size_t seen = 0, bytes = 0;
    int status = 0;
    gate_head head;
    int r = gate_find_end(p, n, limit, &seen, &bytes, &status, e);
    if (r == 0)
        return -1;
    if (r > 0 && gate_check(p, bytes, &head, &status, e) == 0)
        return 0;
    return status;
}

static void heads_pass_or_are_refused_as_the_table_says(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const shape *s = &shapes[i];
        err e = {0};
        int status = judge(s->head, s->n ? s->n : strlen(s->head), 16384, &e);
        if (status != s->status)
            fail_msg("%s: %d instead of %d (%s)", s->name, status, s->status, e.message);
        if (s->status)
            assert_string_not_equal(e.message, "");
    }
}

static void a_head_split_at_any_byte_is_judged_alike(void **state) {
    (void)state;
    static const char head[] = POST "X-A: b\r\nContent-Length: 3\r\n\r\nabc";
    for (size_t cut = 0; cut < sizeof head - 1; cut++) {
        size_t seen = 0, bytes = 0;
        int status = 0;
        int r = gate_find_end(head, cut, 1000, &seen, &bytes, &status, NULL);
        assert_int_equal(r, cut >= sizeof head - 4 ? 1 : 0);
        if (r == 0)
            assert_int_equal(
                gate_find_end(head, sizeof head - 1, 1000, &seen, &bytes, &status, NULL), 1);
        assert_int_equal(bytes, sizeof head - 4);
    }
}

static void a_head_over_the_limit_is_431(void **state) {
    (void)state;
    char head[2000];
    err e = {0};
    memset(head, 'a', sizeof head);
    memcpy(head, GET "X: ", sizeof(GET "X: ") - 1);
    memcpy(head + sizeof head - 4, "\r\n\r\n", 4);
    assert_int_equal(judge(head, sizeof head, 1999, &e), 431);
    assert_int_equal(judge(head, sizeof head, 2000, &e), 400); // fits; has no Host
}

static void too_many_fields_are_431(void **state) {
    (void)state;
    buf b = {0};
    err e = {0};
    buf_puts(&b, GET "Host: x\r\n");
    for (int i = 1; i < GATE_HEADERS; i++)
        buf_puts(&b, "A: b\r\n");
    size_t n = b.len;
    buf_puts(&b, "\r\n");
    assert_int_equal(judge(b.data, b.len, 100000, &e), 0);
    buf_cut(&b, n);
    buf_puts(&b, "A: b\r\n\r\n");
    assert_int_equal(judge(b.data, b.len, 100000, &e), 431);
    buf_release(&b);
}

static void too_many_query_parameters_are_400(void **state) {
    (void)state;
    buf b = {0};
    err e = {0};
    buf_puts(&b, "GET /a?a");
    for (int i = 1; i <= GATE_ARGUMENTS; i++)
        buf_puts(&b, "&a");
    buf_puts(&b, " HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_int_equal(judge(b.data, b.len, 100000, &e), 400);
    buf_release(&b);
}

// ---- chunks

typedef struct chunks {
    const char *name, *body;
    int status;
    size_t used;
} chunks;

static const chunks chunk_shapes[] = {
    {"none", "0\r\n\r\n", 0, 5},
    {"one", "3\r\nabc\r\n0\r\n\r\n", 0, 13},
    {"two", "3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n", 0, 28},
    {"leading zeros", "0003\r\nabc\r\n0\r\n\r\n", 0, 16},
    {"what follows is the next request's", "0\r\n\r\nGET", 0, 5},
    {"an extension", "3;a=b\r\nabc\r\n0\r\n\r\n", 400, 0},
    {"an extension and bare LF", "3;a=b\nabc\n0\n\n", 400, 0},
    {"a space after the size", "3 \r\nabc\r\n0\r\n\r\n", 400, 0},
    {"a space before the size", " 3\r\nabc\r\n0\r\n\r\n", 400, 0},
    {"a plus", "+3\r\nabc\r\n0\r\n\r\n", 400, 0},
    {"a minus", "-3\r\nabc\r\n0\r\n\r\n", 400, 0},
    {"0x", "0x3\r\nabc\r\n0\r\n\r\n", 400, 0},
    {"an underscore", "1_0\r\n", 400, 0},
    {"no size", "\r\nabc\r\n", 400, 0},
    {"a letter that is no digit", "g\r\n", 400, 0},
    {"bare LF after the size", "3\nabc\r\n0\r\n\r\n", 400, 0},
    {"bare CR after the size", "3\rabc\r\n0\r\n\r\n", 400, 0},
    {"bare LF after the data", "3\r\nabc\n0\r\n\r\n", 400, 0},
    {"data longer than its size", "3\r\nabcd\r\n0\r\n\r\n", 400, 0},
    {"data shorter than its size", "4\r\nabc\r\n0\r\n\r\n", 400, 0},
    {"a trailer", "3\r\nabc\r\n0\r\nX: y\r\n\r\n", 400, 0},
    {"bare LF at the end", "0\r\n\n", 400, 0},
    {"a size of 16 digits", "fffffffffffffff1\r\n", 400, 0},
    {"a size over the limit", "401\r\n", 413, 0},
    {"a size of 15 digits", "fffffffffffffff\r\n", 413, 0},
};

static int scan(const char *p, size_t n, size_t step, size_t *used, bool *is_done) {
    gate_head head = {.framing = GATE_CHUNKED};
    gate_body b;
    int status = 0;
    *used = 0;
    assert_int_equal(gate_body_start(&b, &head, 1024, &status, NULL), 0);
    for (size_t at = 0; at < n && !b.is_done; at += step) {
        size_t one = 0, k = n - at < step ? n - at : step;
        if (gate_body_scan(&b, p + at, k, &one, &status, NULL))
            return status;
        *used += one;
    }
    *is_done = b.is_done;
    return 0;
}

static void chunks_are_followed_strictly_however_they_are_split(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof chunk_shapes / sizeof *chunk_shapes; i++) {
        const chunks *c = &chunk_shapes[i];
        for (size_t step = 1; step <= strlen(c->body); step++) {
            size_t used = 0;
            bool is_done = false;
            int status = scan(c->body, strlen(c->body), step, &used, &is_done);
            if (status != c->status || (!status && (!is_done || used != c->used)))
                fail_msg("%s in steps of %zu: status %d, %zu used", c->name, step, status, used);
        }
    }
}

static void chunks_together_over_the_limit_are_413(void **state) {
    (void)state;
    buf b = {0};
    size_t used;
    bool is_done;
    for (int i = 0; i < 1025; i++)
        buf_puts(&b, "1\r\na\r\n");
    assert_int_equal(scan(b.data, 1024 * 6, 100, &used, &is_done), 0);
    assert_int_equal(scan(b.data, b.len, 100, &used, &is_done), 413);
    buf_release(&b);
}

static void a_length_over_the_limit_is_413_before_any_byte(void **state) {
    (void)state;
    gate_body b;
    int status = 0;
    gate_head head = {.framing = GATE_LENGTH, .length = 1025};
    assert_int_equal(gate_body_start(&b, &head, 1024, &status, NULL), -1);
    assert_int_equal(status, 413);
    head.length = 1024;
    assert_int_equal(gate_body_start(&b, &head, 1024, &status, NULL), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(heads_pass_or_are_refused_as_the_table_says),
        cmocka_unit_test(a_head_split_at_any_byte_is_judged_alike),
        cmocka_unit_test(a_head_over_the_limit_is_431),
        cmocka_unit_test(too_many_fields_are_431),
        cmocka_unit_test(too_many_query_parameters_are_400),
        cmocka_unit_test(chunks_are_followed_strictly_however_they_are_split),
        cmocka_unit_test(chunks_together_over_the_limit_are_413),
        cmocka_unit_test(a_length_over_the_limit_is_413_before_any_byte),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
