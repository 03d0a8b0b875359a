// The front end over real sockets, plain and TLS: answers, streams, keep-alive, pipelining, bodies.
#include "tests/support/http_stage.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define HOST " HTTP/1.1\r\nHost: localhost\r\n"

static int open_plain(void **state) {
    http_stage *s = calloc(1, sizeof *s);
    stage_open(s, echo_options(), false);
    *state = s;
    return 0;
}

static int open_tls(void **state) {
    http_stage *s = calloc(1, sizeof *s);
    http_options o = echo_options();
    o.n_reactors = 2;
    stage_open(s, o, true);
    *state = s;
    return 0;
}

static int close_stage(void **state) {
    stage_close(*state);
    free(*state);
    return 0;
}

static void expect_body(wire *w, int status, const char *text) {
    buf body = {0};
    assert_int_equal(wire_answer(w, &body), status);
    buf_put(&body, "", 0);
    assert_string_equal(body.data, text);
    buf_release(&body);
}

// ---- answers

static void a_request_is_answered_with_its_id(void **state) {
    wire w = stage_wire(*state);
    wire_puts(&w, "GET /a%20b?q=1%2B1&z=3" HOST "X-Test: seen\r\n\r\n");
    assert_non_null(wire_until(&w, "\r\n\r\n"));
    assert_non_null(strcasestr(w.in.data, "\r\nx-request-id: 0"));
    assert_non_null(strcasestr(w.in.data, "\r\nx-one: 1\r\n"));
    assert_non_null(strcasestr(w.in.data, "\r\nx-two: 2\r\n"));
    expect_body(&w, 200, "GET /a b x-test=seen q=1+1 body=0 peer=127.0.0.1");
    wire_close(&w);
}

static void a_connection_is_kept_over_many_requests(void **state) {
    wire w = stage_wire(*state);
    for (int i = 0; i < 50; i++) {
        wire_puts(&w, "POST /echo" HOST "Content-Length: 5\r\n\r\nhello");
        expect_body(&w, 200, "hello");
        wire_puts(&w, "GET /later?ms=1" HOST "\r\n");
        expect_body(&w, 200, "later");
    }
    wire_close(&w);
}

static void an_idle_connection_serves_after_its_half_was_given_back(void **state) {
    wire w = stage_wire(*state);
    wire_puts(&w, "GET /later" HOST "\r\n");
    expect_body(&w, 200, "later");
    clock_sleep_ms(1400);
    wire_puts(&w, "GET /later" HOST "\r\n");
    expect_body(&w, 200, "later");
    wire_close(&w);
}

static void connection_close_is_honoured(void **state) {
    wire w = stage_wire(*state);
    wire_puts(&w, "GET /later" HOST "Connection: close\r\n\r\n");
    expect_body(&w, 200, "later");
    assert_true(wire_to_end(&w));
    wire_close(&w);
}

static void http10_is_closed_after_its_answer(void **state) {
    wire w = stage_wire(*state);
    wire_puts(&w, "GET /later HTTP/1.0\r\nHost: x\r\n\r\n");
    expect_body(&w, 200, "later");
    assert_true(wire_to_end(&w));
    wire_close(&w);
}

static void http10_streams_without_chunks_until_the_end(void **state) {
    wire w = stage_wire(*state);
    wire_puts(&w, "GET /stream?n=2&bytes=1 HTTP/1.0\r\nHost: x\r\n\r\n");
    assert_true(wire_to_end(&w));
    const char *body = strstr(w.in.data, "\r\n\r\n");
    assert_non_null(body);
    assert_string_equal(body + 4, "data: x\n\ndata: x\n\n");
    wire_close(&w);
}

static void head_gets_the_head_only(void **state) {
    wire w = stage_wire(*state);
    wire_puts(&w, "HEAD /big?bytes=100" HOST "\r\nGET /later" HOST "\r\n");
    assert_non_null(wire_until(&w, "later"));
    assert_non_null(strcasestr(w.in.data, "content-length: 100\r\n"));
    assert_null(strstr(w.in.data, "bbbbbbbbbbbbbbbbbbbb")); // longer than what ids may hold
    wire_close(&w);
}

static void a_head_request_of_a_stream_ends_it(void **state) {
    wire w = stage_wire(*state);
    wire_puts(&w, "HEAD /stream?n=1000&ms=5" HOST "\r\n");
    assert_non_null(wire_until(&w, "\r\n\r\n"));
    assert_true(stage_wait_quiet(*state));
    wire_close(&w);
}

static void a_big_answer_arrives_whole(void **state) {
    wire w = stage_wire(*state);
    for (int i = 0; i < 2; i++) {
        buf body = {0};
        wire_puts(&w, "GET /big?bytes=3000000" HOST "\r\n");
        assert_int_equal(wire_answer(&w, &body), 200);
        assert_int_equal(body.len, 3000000);
        buf_release(&body);
    }
    wire_close(&w);
}

// ---- bodies

static void a_body_split_at_every_byte_arrives_whole(void **state) {
    static const char request[] = "POST /echo" HOST "Transfer-Encoding: chunked\r\n\r\n"
                                  "3\r\nabc\r\n00a\r\n0123456789\r\n0\r\n\r\n";
    for (size_t cut = 1; cut < sizeof request - 1; cut += 1) {
        wire w = stage_wire(*state);
        wire_send(&w, request, cut);
        if (cut % 8 == 0)
            clock_sleep_ms(1);
        wire_send(&w, request + cut, sizeof request - 1 - cut);
        expect_body(&w, 200, "abc0123456789");
        wire_close(&w);
    }
}

static void a_request_byte_by_byte_arrives_whole(void **state) {
    static const char request[] = "POST /echo" HOST "Transfer-Encoding: chunked\r\n\r\n"
                                  "3\r\nabc\r\na\r\n0123456789\r\n0\r\n\r\n";
    wire w = stage_wire(*state);
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < sizeof request - 1; i++)
            wire_send(&w, request + i, 1);
        expect_body(&w, 200, "abc0123456789");
    }
    wire_close(&w);
}

static void a_large_body_arrives_whole(void **state) {
    enum { SIZE = 1 << 20 };
    char *p = malloc(SIZE), head[200];
    for (size_t i = 0; i < SIZE; i++)
        p[i] = (char)(i * 7 + i / 251);
    wire w = stage_wire(*state);
    snprintf(head, sizeof head, "POST /echo" HOST "Content-Length: %d\r\n\r\n", SIZE);
    for (int i = 0; i < 2; i++) {
        buf body = {0};
        wire_puts(&w, head);
        assert_int_equal(wire_send(&w, p, SIZE), 0);
        assert_int_equal(wire_answer(&w, &body), 200);
        assert_int_equal(body.len, SIZE);
        assert_memory_equal(body.data, p, SIZE);
        buf_release(&body);
    }
    wire_close(&w);
    free(p);
}

static void expect_100_is_answered_before_the_body(void **state) {
    wire w = stage_wire(*state);
    wire_puts(&w, "POST /echo" HOST "Content-Length: 2\r\nExpect: 100-continue\r\n\r\n");
    assert_int_equal(wire_answer(&w, NULL), 100);
    wire_puts(&w, "ok");
    expect_body(&w, 200, "ok");
    wire_close(&w);
}

static void pipelined_requests_are_answered_in_order(void **state) {
    wire w = stage_wire(*state);
    wire_puts(&w, "POST /echo" HOST "Content-Length: 3\r\n\r\none"
                  "GET /later?ms=30" HOST "\r\n"
                  "POST /echo" HOST "Transfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n"
                  "GET /stream?n=2&bytes=1" HOST "\r\n"
                  "\r\nPOST /echo" HOST "Content-Length: 5\r\n\r\nthree"
                  "POST /echo" HOST "Content-Length: 0\r\n\r\n");
    expect_body(&w, 200, "one");
    expect_body(&w, 200, "later");
    expect_body(&w, 200, "two");
    expect_body(&w, 200, "data: x\n\ndata: x\n\n");
    expect_body(&w, 200, "three");
    expect_body(&w, 200, "");
    wire_close(&w);
}

static void a_hundred_requests_in_one_write_are_all_answered(void **state) {
    wire w = stage_wire(*state);
    buf all = {0};
    for (int i = 0; i < 100; i++)
        buf_printf(&all, "POST /echo" HOST "Content-Length: 4\r\n\r\n%04d", i);
    wire_send(&w, all.data, all.len);
    for (int i = 0; i < 100; i++) {
        char text[16];
        snprintf(text, sizeof text, "%04d", i);
        expect_body(&w, 200, text);
    }
    buf_release(&all);
    wire_close(&w);
}

// A smuggled request inside a body is body.
static void a_request_inside_a_body_is_not_served(void **state) {
    wire w = stage_wire(*state);
    wire_puts(&w,
              "POST /echo" HOST "Content-Length: 33\r\n\r\nGET /smug HTTP/1.1\r\nHost: x\r\n\r\n..."
              "GET /later" HOST "\r\n");
    buf body = {0};
    assert_int_equal(wire_answer(&w, &body), 200);
    assert_int_equal(body.len, 33);
    expect_body(&w, 200, "later");
    buf_release(&body);
    wire_close(&w);
}

// ---- answers in the head

static void an_early_answer_keeps_a_connection_without_a_body(void **state) {
    wire w = stage_wire(*state);
    for (int i = 0; i < 2; i++) {
        wire_puts(&w, "GET /early" HOST "\r\n");
        expect_body(&w, 401, "{\"early\":true}");
    }
    wire_close(&w);
}

static void an_early_answer_arrives_although_the_body_is_not_read(void **state) {
    wire w = stage_wire(*state);
    char *junk = calloc(1, 700000);
    wire_puts(&w, "POST /early" HOST "Content-Length: 1000000\r\n\r\n");
    wire_send(&w, junk, 700000);
    expect_body(&w, 401, "{\"early\":true}");
    assert_true(wire_to_end(&w));
    free(junk);
    wire_close(&w);
}

static void a_handler_may_drop_a_client_at_its_head(void **state) {
    wire w = stage_wire(*state);
    wire_puts(&w, "GET /drop" HOST "\r\n");
    assert_true(wire_to_end(&w));
    assert_int_equal(w.in.len, 0);
    assert_true(stage_wait_quiet(*state));
    wire_close(&w);
}

// ---- streams

static void a_stream_arrives_event_by_event_and_keeps_the_connection(void **state) {
    wire w = stage_wire(*state);
    for (int i = 0; i < 3; i++) {
        wire_puts(&w, "GET /stream?n=3&ms=2&bytes=2" HOST "\r\n");
        expect_body(&w, 200, "data: xx\n\ndata: xx\n\ndata: xx\n\n");
        wire_puts(&w, "GET /stream?n=2&ms=0&bytes=2" HOST "\r\n");
        expect_body(&w, 200, "data: xx\n\ndata: xx\n\n");
        wire_puts(&w, "GET /stream?n=0&ms=0" HOST "\r\n");
        expect_body(&w, 200, "");
    }
    wire_close(&w);
}

static void a_stream_may_begin_long_after_its_request(void **state) {
    wire w = stage_wire(*state);
    for (int i = 0; i < 3; i++) {
        wire_puts(&w, "POST /stream?after=40&n=2&ms=2&bytes=2" HOST "Content-Length: 2\r\n\r\nab");
        expect_body(&w, 200, "data: xx\n\ndata: xx\n\n");
        wire_puts(&w, "GET /stream?after=5&n=2&ms=0&bytes=2" HOST "\r\n");
        expect_body(&w, 200, "data: xx\n\ndata: xx\n\n");
    }
    wire_close(&w);
}

static void every_event_is_told_when_the_socket_took_it(void **state) {
    wire w = stage_wire(*state);
    wire_puts(&w, "GET /stream?n=20&ms=3" HOST "\r\n");
    assert_int_equal(wire_answer(&w, NULL), 200);
    assert_true(atomic_load(&echo_seen.taken) >= 10); // events of one turn are told together
    assert_int_equal(atomic_load(&echo_seen.last_mark), 20);
    assert_int_equal(atomic_load(&echo_seen.gone), 0);
    wire_close(&w);
}

static void a_fast_stream_to_a_reading_client_is_not_cut(void **state) {
    wire w = stage_wire(*state);
    wire_puts(&w, "GET /flood?n=4&ms=0&bytes=10000" HOST "\r\n");
    size_t got = 0;
    while (got < 20000000 && wire_more(&w)) {
        got += w.in.len;
        buf_clear(&w.in);
    }
    assert_true(got >= 20000000);
    assert_int_equal(atomic_load(&echo_seen.gone), 0);
    wire_close(&w);
    assert_true(stage_wait(&echo_seen.gone, 1));
}

static void an_abandoned_stream_ends_without_its_last_chunk(void **state) {
    wire w = stage_wire(*state);
    wire_puts(&w, "GET /abandon" HOST "\r\n");
    assert_int_equal(wire_answer(&w, NULL), -1);
    assert_true(w.ended);
    wire_close(&w);
}

#define BOTH(test)                                                                                 \
    cmocka_unit_test_setup_teardown(test, open_plain, close_stage),                                \
        cmocka_unit_test_setup_teardown(test, open_tls, close_stage)

int main(void) {
    const struct CMUnitTest tests[] = {
        BOTH(a_request_is_answered_with_its_id),
        BOTH(a_connection_is_kept_over_many_requests),
        BOTH(an_idle_connection_serves_after_its_half_was_given_back),
        BOTH(connection_close_is_honoured),
        BOTH(http10_is_closed_after_its_answer),
        BOTH(http10_streams_without_chunks_until_the_end),
        BOTH(head_gets_the_head_only),
        BOTH(a_head_request_of_a_stream_ends_it),
        BOTH(a_big_answer_arrives_whole),
        BOTH(a_body_split_at_every_byte_arrives_whole),
        BOTH(a_request_byte_by_byte_arrives_whole),
        BOTH(a_large_body_arrives_whole),
        BOTH(expect_100_is_answered_before_the_body),
        BOTH(pipelined_requests_are_answered_in_order),
        BOTH(a_hundred_requests_in_one_write_are_all_answered),
        BOTH(a_request_inside_a_body_is_not_served),
        BOTH(an_early_answer_keeps_a_connection_without_a_body),
        BOTH(an_early_answer_arrives_although_the_body_is_not_read),
        BOTH(a_handler_may_drop_a_client_at_its_head),
        BOTH(a_stream_arrives_event_by_event_and_keeps_the_connection),
        BOTH(a_stream_may_begin_long_after_its_request),
        BOTH(every_event_is_told_when_the_socket_took_it),
        BOTH(a_fast_stream_to_a_reading_client_is_not_cut),
        BOTH(an_abandoned_stream_ends_without_its_last_chunk),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
