// The front end under bad, slow and vanishing clients: what each is answered, that the handler
// hears of it, and that the next request is served. Nothing else than what a test is about would
// end its wait within WIRE_WAIT_MS; no test asserts that anything comes early, which a busy machine
// breaks.
#include "tests/support/http_stage.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <pthread.h>

#define HOST " HTTP/1.1\r\nHost: localhost\r\n"
#define DRIP_MS 40

static http_options quick_options(void) {
    http_options o = echo_options();
    o.head_ms = 400;
    o.stall_ms = 600;
    o.idle_ms = 900;
    o.head_bytes = 4096;
    o.body_bytes = 65536;
    o.stream_buffer_bytes = 64 << 10;
    o.max_connections = 4;
    return o;
}

static int open_plain(void **state) {
    http_stage *s = calloc(1, sizeof *s);
    stage_open(s, quick_options(), false);
    *state = s;
    return 0;
}

static int open_tls(void **state) {
    http_stage *s = calloc(1, sizeof *s);
    stage_open(s, quick_options(), true);
    *state = s;
    return 0;
}

// So patient that only the cap can cut a client.
static int open_patient(void **state) {
    http_stage *s = calloc(1, sizeof *s);
    http_options o = quick_options();
    o.stall_ms = 60000;
    stage_open(s, o, false);
    *state = s;
    return 0;
}

static int open_patient_tls(void **state) {
    http_stage *s = calloc(1, sizeof *s);
    http_options o = quick_options();
    o.stall_ms = 60000;
    stage_open(s, o, true);
    *state = s;
    return 0;
}

static int close_stage(void **state) {
    stage_close(*state);
    free(*state);
    return 0;
}

static void expect_served(http_stage *s) {
    wire w = stage_wire(s);
    wire_puts(&w, "GET /later" HOST "\r\n");
    assert_int_equal(wire_answer(&w, NULL), 200);
    wire_close(&w);
}

// One JSON error with that status, then the end of the connection.
static void expect_refused(wire *w, int status, const char *what) {
    buf body = {0};
    int got = wire_answer(w, &body);
    if (got != status)
        fail_msg("%s: answered %d instead of %d", what, got, status);
    assert_memory_equal(body.data, "{\"error\":{\"message\":\"", 21);
    if (!wire_to_end(w) || w->in.len)
        fail_msg("%s: the connection was not closed", what);
    buf_release(&body);
    wire_close(w);
}

// ---- framing

typedef struct shape {
    const char *name, *bytes;
    int status;
    size_t n;
} shape;

#define POST "POST /echo" HOST
static const shape shapes[] = {
    {"CL+TE",
     POST "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smug" HOST "\r\n",
     400, 0},
    {"two lengths", POST "Content-Length: 0\r\nContent-Length: 5\r\n\r\nAAAAAGET /smug" HOST "\r\n",
     400, 0},
    {"xchunked", POST "Transfer-Encoding: xchunked\r\nContent-Length: 3\r\n\r\nabc", 400, 0},
    {"identity, chunked", POST "Transfer-Encoding: identity, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
     400, 0},
    {"bare LF", "GET /a HTTP/1.1\nHost: x\n\n", 400, 0},
    {"folded header", "GET /a" HOST "X: a\r\n b\r\n\r\n", 400, 0},
    {"space before colon", POST "Content-Length : 3\r\n\r\nabc", 400, 0},
    {"no Host", "GET /a HTTP/1.1\r\n\r\n", 400, 0},
    {"two Hosts", "GET /a" HOST "Host: y\r\n\r\n", 400, 0},
    {"negative length", POST "Content-Length: -1\r\n\r\n", 400, 0},
    {"length with plus", POST "Content-Length: +3\r\n\r\nabc", 400, 0},
    {"huge length", POST "Content-Length: 99999999999999999999999\r\n\r\n", 400, 0},
    {"chunk extension and LF", POST "Transfer-Encoding: chunked\r\n\r\n3;a=b\nabc\n0\n\n", 400, 0},
    {"chunk extension", POST "Transfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\n\r\n", 400, 0},
    {"chunk too long", POST "Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n", 400, 0},
    {"chunk size of letters", POST "Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400, 0},
    {"bad chunk after good ones",
     POST "Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n1\r\nb\r\n-1\r\n", 400, 0},
    {"trailer", POST "Transfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n", 400, 0},
    {"NUL in a header", "GET /a HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n", 400, 36},
    {"HTTP/0.9", "GET /a\r\n\r\n", 400, 0},
    {"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, 0},
    {"absolute target", "GET http://localhost/a" HOST "\r\n", 400, 0},
    {"CONNECT", "CONNECT localhost:1 HTTP/1.1\r\nHost: x\r\n\r\n", 400, 0},
    {"%00", "GET /a%00" HOST "\r\n", 400, 0},
    {"length over the limit", POST "Content-Length: 65537\r\n\r\n", 413, 0},
    {"chunk over the limit", POST "Transfer-Encoding: chunked\r\n\r\n10001\r\n", 413, 0},
};

static void bad_framing_is_one_json_error_and_the_end(void **state) {
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const shape *s = &shapes[i];
        wire w = stage_wire(*state);
        wire_send(&w, s->bytes, s->n ? s->n : strlen(s->bytes));
        expect_refused(&w, s->status, s->name);
        expect_served(*state);
    }
}

static void bad_framing_after_a_good_request_is_refused_too(void **state) {
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const shape *s = &shapes[i];
        wire w = stage_wire(*state);
        wire_puts(&w, POST "Content-Length: 2\r\n\r\nok");
        wire_send(&w, s->bytes, s->n ? s->n : strlen(s->bytes));
        assert_int_equal(wire_answer(&w, NULL), 200);
        expect_refused(&w, s->status, s->name);
    }
}

static void many_small_chunks_over_the_limit_are_413(void **state) {
    wire w = stage_wire(*state);
    buf b = {0};
    buf_puts(&b, POST "Transfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 65537 / 64 + 1; i++)
        buf_puts(&b, "40\r\n0123456789012345678901234567890123456789012345678901234567890123\r\n");
    wire_send(&w, b.data, b.len);
    expect_refused(&w, 413, "chunks");
    buf_release(&b);
    expect_served(*state);
}

static void a_large_head_is_431(void **state) {
    wire w = stage_wire(*state);
    char junk[5000];
    memset(junk, 'a', sizeof junk);
    wire_puts(&w, "GET /a" HOST "X: ");
    wire_send(&w, junk, sizeof junk);
    expect_refused(&w, 431, "head");
    expect_served(*state);
}

// What passes the gate must fit into libmicrohttpd's pool as well.
static void the_largest_head_of_the_most_fields_is_served(void **state) {
    buf b = {0};
    buf_puts(&b, "GET /a?a=1");
    for (int i = 0; i < 98; i++)
        buf_puts(&b, "&a=1");
    buf_puts(&b, HOST "Cookie: a=1");
    for (int i = 0; i < 200; i++)
        buf_puts(&b, ";b=1");
    buf_puts(&b, "\r\n");
    for (int i = 0; i < 97; i++)
        buf_puts(&b, "ABC: d\r\n");
    buf_puts(&b, "X: ");
    while (b.len < 4096 - 4)
        buf_puts(&b, "y");
    buf_puts(&b, "\r\n\r\n");
    assert_int_equal(b.len, 4096);
    wire w = stage_wire(*state);
    wire_send(&w, b.data, b.len);
    assert_int_equal(wire_answer(&w, NULL), 200);
    wire_close(&w);
    buf_release(&b);
}

// ---- slow clients

// The beginning of a request on a new connection; *start is before it. A server that heard nothing
// in time would say nothing, so a beginning that this machine made late is made again.
static wire begin_in_time(http_stage *s, const char *text, int64_t *start) {
    for (;;) {
        *start = clock_mono_ms();
        wire w = stage_wire(s);
        wire_puts(&w, text);
        if (clock_mono_ms() - *start < quick_options().head_ms / 2)
            return w;
        wire_close(&w);
    }
}

// Adds a byte again and again: that must not put the end off. Then the end comes, not before its
// time.
static void drip_until_408(http_stage *s, const char *beginning, int wait_ms, const char *what) {
    int64_t start;
    wire w = begin_in_time(s, beginning, &start);
    wire_wait(&w, DRIP_MS);
    while (!wire_more(&w) && !w.ended) {
        assert_true(clock_mono_ms() - start < WIRE_WAIT_MS);
        wire_puts(&w, "a");
    }
    wire_wait(&w, WIRE_WAIT_MS);
    assert_true(clock_mono_ms() - start >= wait_ms);
    expect_refused(&w, 408, what);
}

static void a_slow_head_is_408(void **state) {
    drip_until_408(*state, "GET /", quick_options().head_ms, "slow head");
}

static void a_slow_body_is_408(void **state) {
    drip_until_408(*state, POST "Content-Length: 1000\r\n\r\n", quick_options().stall_ms,
                   "slow body");
    assert_int_equal(atomic_load(&echo_seen.requests), 0);
    assert_true(stage_wait_quiet(*state));
}

static void silence_after_connecting_is_closed(void **state) {
    http_stage *s = *state;
    wire w;
    int64_t start = clock_mono_ms();
    assert_int_equal(wire_connect(&w, s->port, NULL, 0), 0); // over TLS: no handshake
    assert_true(wire_to_end(&w));
    assert_int_equal(w.in.len, 0);
    assert_true(clock_mono_ms() - start >= quick_options().head_ms);
    wire_close(&w);
}

static void an_idle_kept_connection_is_closed(void **state) {
    wire w = stage_wire(*state);
    int64_t start = clock_mono_ms();
    wire_puts(&w, "GET /later" HOST "\r\n");
    assert_int_equal(wire_answer(&w, NULL), 200);
    assert_true(wire_to_end(&w));
    assert_int_equal(w.in.len, 0);
    assert_true(clock_mono_ms() - start >= quick_options().idle_ms);
    wire_close(&w);
}

// ---- vanished clients

static void expect_gone(void) {
    assert_true(stage_wait(&echo_seen.gone, 1));
    assert_int_equal(atomic_load(&echo_seen.ended), 1);
}

static void leave(http_stage *s, const char *request, bool is_reset) {
    wire w = stage_wire(s);
    wire_puts(&w, request);
    assert_true(stage_wait(&echo_seen.requests, 1));
    clock_sleep_ms(150); // past the time in which a FIN may be a half-close
    if (is_reset)
        wire_reset(&w);
    else
        wire_close(&w);
    expect_gone();
    assert_true(stage_wait_quiet(s));
    expect_served(s);
}

static void a_fin_while_the_answer_is_awaited_is_heard(void **state) {
    leave(*state, "GET /never" HOST "\r\n", false);
}

static void a_reset_while_the_answer_is_awaited_is_heard(void **state) {
    leave(*state, "GET /never" HOST "\r\n", true);
}

static void a_fin_in_a_silent_stream_is_heard(void **state) {
    leave(*state, "GET /stream?n=3&ms=60000" HOST "\r\n", false);
}

static void a_reset_in_a_silent_stream_is_heard(void **state) {
    leave(*state, "GET /stream?n=3&ms=60000" HOST "\r\n", true);
}

static void a_fin_behind_pipelined_requests_is_heard(void **state) {
    leave(*state, "GET /never" HOST "\r\nGET /later" HOST "\r\nGET /later" HOST "\r\n", false);
}

static void close_notify_and_fin_are_heard(void **state) {
    wire w = stage_wire(*state);
    wire_puts(&w, "GET /never" HOST "\r\n");
    assert_true(stage_wait(&echo_seen.requests, 1));
    SSL_shutdown(w.ssl);
    shutdown(w.fd, SHUT_WR);
    expect_gone();
    wire_close(&w);
}

// More stands in front of the FIN than the server reads ahead, but no more than its kernel takes.
static void a_fin_over_tls_is_heard_behind_unread_bytes(void **state) {
    wire w = stage_wire(*state);
    buf b = {0};
    buf_puts(&b, "GET /never" HOST "\r\n");
    while (b.len < 100000)
        buf_puts(&b, "GET /later" HOST "\r\n");
    wire_send(&w, b.data, b.len);
    assert_true(stage_wait(&echo_seen.requests, 1));
    shutdown(w.fd, SHUT_WR);
    expect_gone();
    assert_int_equal(atomic_load(&echo_seen.requests), 1);
    wire_close(&w);
    buf_release(&b);
}

static void a_client_that_goes_in_its_body_leaves_nothing(void **state) {
    for (int i = 0; i < 4; i++) {
        wire w = stage_wire(*state);
        wire_puts(&w, POST "Content-Length: 100\r\n\r\nabc");
        assert_true(stage_wait(&echo_seen.heads, i + 1));
        if (i % 2)
            wire_reset(&w);
        else
            wire_close(&w);
    }
    assert_true(stage_wait_quiet(*state));
    assert_int_equal(atomic_load(&echo_seen.requests), 0);
    expect_served(*state);
}

// ---- half-closed clients

static void a_half_close_right_after_the_request_is_answered(void **state) {
    wire w = stage_wire(*state);
    wire_puts(&w, "GET /later?ms=300" HOST "\r\n");
    shutdown(w.fd, SHUT_WR);
    assert_int_equal(wire_answer(&w, NULL), 200);
    assert_true(wire_to_end(&w));
    assert_int_equal(atomic_load(&echo_seen.gone), 0);
    wire_close(&w);
}

static void a_half_close_right_after_the_request_gets_its_stream(void **state) {
    wire w = stage_wire(*state);
    wire_puts(&w, "GET /stream?n=5&ms=60" HOST "\r\n");
    shutdown(w.fd, SHUT_WR);
    buf body = {0};
    assert_int_equal(wire_answer(&w, &body), 200);
    assert_int_equal(body.len, 5 * 24);
    buf_release(&body);
    wire_close(&w);
}

static void a_half_closed_client_that_then_goes_is_heard(void **state) {
    wire w = stage_wire(*state);
    wire_puts(&w, "GET /never" HOST "\r\n");
    shutdown(w.fd, SHUT_WR);
    assert_true(stage_wait(&echo_seen.requests, 1));
    clock_sleep_ms(200);
    assert_int_equal(atomic_load(&echo_seen.gone), 0);
    wire_reset(&w);
    expect_gone();
}

static void a_half_close_late_in_the_wait_is_a_goodbye(void **state) {
    wire w = stage_wire(*state);
    wire_puts(&w, "GET /never" HOST "\r\n");
    assert_true(stage_wait(&echo_seen.requests, 1));
    clock_sleep_ms(200);
    shutdown(w.fd, SHUT_WR);
    expect_gone();
    assert_true(wire_to_end(&w));
    wire_close(&w);
}

static void close_notify_alone_gets_its_answer(void **state) {
    wire w = stage_wire(*state);
    wire_puts(&w, "GET /stream?n=5&ms=60" HOST "\r\n");
    assert_true(stage_wait(&echo_seen.requests, 1));
    SSL_shutdown(w.ssl); // sends close_notify; the TCP connection stays
    buf body = {0};
    assert_int_equal(wire_answer(&w, &body), 200);
    assert_int_equal(body.len, 5 * 24);
    assert_int_equal(atomic_load(&echo_seen.gone), 0);
    buf_release(&body);
    wire_close(&w);
}

static void a_fin_over_tls_is_a_clean_close(void **state) {
    wire w = stage_wire(*state);
    wire_puts(&w, "GET /never" HOST "\r\n");
    assert_true(stage_wait(&echo_seen.requests, 1));
    shutdown(w.fd, SHUT_WR);
    expect_gone();
    assert_true(wire_to_end(&w));
    wire_close(&w);
}

static void a_half_close_inside_the_head_is_a_clean_close(void **state) {
    wire w = stage_wire(*state);
    wire_puts(&w, "GET /later HTTP");
    shutdown(w.fd, SHUT_WR);
    assert_true(wire_to_end(&w));
    assert_int_equal(w.in.len, 0);
    wire_close(&w);
}

// ---- clients that do not read, and one that does

static void expect_stream(http_stage *s, const char *request, size_t n) {
    wire w = stage_wire(s);
    buf body = {0};
    wire_puts(&w, request);
    assert_int_equal(wire_answer(&w, &body), 200);
    assert_int_equal(body.len, n);
    assert_int_equal(atomic_load(&echo_seen.gone), 0);
    buf_release(&body);
    wire_close(&w);
}

#define BURST_BYTES (40 * (5000 + 8)) // three times the cap, and less than a socket takes at once

static void a_burst_over_the_cap_in_one_turn_cuts_nobody_who_reads(void **state) {
    expect_stream(*state, "GET /stream?n=3&ms=20&burst=40&bytes=5000" HOST "\r\n", 3 * BURST_BYTES);
    expect_stream(*state, "GET /stream?n=40&ms=0&bytes=5000" HOST "\r\n", BURST_BYTES);
    expect_stream(*state, "GET /stream?n=1&ms=20&bytes=199992" HOST "\r\n", 200000);
}

static void a_client_that_does_not_read_its_stream_is_cut_at_the_cap(void **state) {
    http_stage *s = *state;
    wire w;
    assert_int_equal(wire_connect(&w, s->port, s->client, 4096), 0);
    wire_puts(&w, "GET /stream?n=100000&ms=1&bytes=30000" HOST "\r\n");
    assert_true(stage_wait(&echo_seen.gone, 1));
    assert_true(stage_wait_quiet(s));
    expect_served(s);  // while the slow one is still connected
    char bytes[16384]; // what reached it, then a reset: the kernel was left nothing to send
    ssize_t n;
    while ((n = recv(w.fd, bytes, sizeof bytes, 0)) > 0)
        ;
    assert_int_equal(n, -1);
    assert_int_equal(errno, ECONNRESET);
    wire_close(&w);
}

static void what_is_written_before_a_stop_is_taken_or_never_sent(void **state) {
    http_stage *s = *state;
    wire w = stage_wire(s);
    wire_puts(&w, "GET /stream?n=20&stops=1" HOST "\r\n");
    assert_non_null(wire_until(&w, "\r\n0\r\n\r\n")); // who reads gets all of it
    wire_close(&w);
    assert_true(atomic_load(&echo_seen.stopped) > 0);
    assert_int_equal(atomic_load(&echo_seen.stopped_short), 0);
    assert_int_equal(wire_connect(&w, s->port, s->client, 4096), 0);
    wire_puts(&w, "GET /stream?n=100000&bytes=30000&stops=1" HOST "\r\n");
    assert_true(stage_wait(&echo_seen.gone, 1));
    assert_int_equal(atomic_load(&echo_seen.stopped_short), 1);
    assert_true(stage_wait_quiet(s));
    wire_close(&w);
}

static void what_a_stop_finds_before_the_head_is_forgotten_and_the_rest_comes(void **state) {
    http_stage *s = *state;
    wire w = stage_wire(s);
    wire_puts(&w, "GET /stream?n=3&ms=0&stops=2" HOST "\r\n");
    buf body = {0};
    assert_int_equal(wire_answer(&w, &body), 200);
    assert_int_equal(body.len, strlen("data: xxxxxxxxxxxxxxxx\n\n")); // the last event alone
    buf_release(&body);
    assert_true(stage_wait_quiet(s));
    wire_close(&w);
}

static void a_client_that_takes_nothing_is_cut_after_the_stall_time(void **state) {
    http_stage *s = *state;
    wire w;
    int64_t start = clock_mono_ms();
    assert_int_equal(wire_connect(&w, s->port, s->client, 4096), 0);
    wire_puts(&w, "GET /big?bytes=8000000" HOST "\r\n"); // a plain answer: no cap, but no progress
    assert_true(stage_wait(&echo_seen.requests, 1));
    assert_true(stage_wait_quiet(s));
    assert_true(clock_mono_ms() - start >= quick_options().stall_ms);
    wire_close(&w);
}

// ---- too many

static void a_connection_over_the_most_gets_503_and_the_others_serve(void **state) {
    wire w[4];
    for (int i = 0; i < 4; i++) {
        w[i] = stage_wire(*state);
        wire_puts(&w[i], "GET /never" HOST "\r\n");
    }
    assert_true(stage_wait(&echo_seen.requests, 4));
    wire more = stage_wire(*state);
    assert_non_null(wire_until(&more, "\r\n\r\n"));
    assert_non_null(strcasestr(more.in.data, "\r\nretry-after-ms: 1000\r\n"));
    expect_refused(&more, 503, "one more");
    clock_sleep_ms(150); // past the time in which a FIN may be a half-close
    wire_close(&w[0]);
    assert_true(stage_wait(&echo_seen.gone, 1));
    expect_served(*state);
    for (int i = 1; i < 4; i++)
        wire_close(&w[i]);
}

// ---- start, reload, stop

static void a_taken_port_is_named(void **state) {
    http_stage *s = *state;
    http_options o = quick_options();
    http_server *second = NULL;
    err e = {0};
    o.listen.port = s->port;
    assert_int_equal(http_start(&o, &second, &e), -1);
    assert_int_equal(e.code, ERR_IO);
    assert_non_null(strstr(e.message, "address already in use"));
    assert_non_null(strstr(e.message, "127.0.0.1:"));
}

static void an_unknown_host_is_named(void **state) {
    (void)state;
    http_options o = quick_options();
    http_server *s = NULL;
    err e = {0};
    strcpy(o.listen.host, "256.0.0.1.invalid");
    assert_int_equal(http_start(&o, &s, &e), -1);
    assert_int_equal(e.code, ERR_IO);
    assert_non_null(strstr(e.message, "256.0.0.1.invalid"));
}

static int refuse_start(reactor *r, void *ctx, err *e) {
    (void)ctx;
    return reactor_index(r) == 1 ? err_set(e, ERR_DEPENDENCY, NULL, "not today") : 0;
}

static void a_reactor_that_cannot_start_ends_the_start(void **state) {
    (void)state;
    http_options o = quick_options();
    http_server *s = NULL;
    err e = {0};
    o.n_reactors = 3;
    o.reactor_start = refuse_start;
    assert_int_equal(http_start(&o, &s, &e), -1);
    assert_string_equal(e.message, "not today");
}

static void serial_of(wire *w, char out[64]) {
    X509 *cert = SSL_get1_peer_certificate(w->ssl);
    BIGNUM *n = ASN1_INTEGER_to_BN(X509_get0_serialNumber(cert), NULL);
    char *text = BN_bn2hex(n);
    snprintf(out, 64, "%s", text);
    OPENSSL_free(text);
    BN_free(n);
    X509_free(cert);
}

static void a_reload_shows_new_connections_the_new_certificate(void **state) {
    http_stage *s = *state;
    char before[64], after[64];
    err e = {0};
    bool renewed = false;
    wire old = stage_wire(s);
    serial_of(&old, before);
    assert_int_equal(
        tls_cert_ensure(s->dir, "localhost,127.0.0.1,new.example", &s->paths, &renewed, &e), 0);
    assert_true(renewed);
    assert_int_equal(http_reload_tls(s->server, &e), 0);
    wire fresh = stage_wire(s);
    serial_of(&fresh, after);
    assert_string_not_equal(before, after);
    wire_puts(&old, "GET /later" HOST "\r\n");
    assert_int_equal(wire_answer(&old, NULL), 200);
    wire_close(&old);
    wire_close(&fresh);
}

static void an_unreadable_certificate_changes_nothing(void **state) {
    http_stage *s = *state;
    err e = {0};
    char keep[600];
    snprintf(keep, sizeof keep, "%s.keep", s->paths.cert);
    assert_int_equal(rename(s->paths.cert, keep), 0);
    assert_int_equal(http_reload_tls(s->server, &e), -1);
    assert_non_null(strstr(e.message, "server.pem"));
    expect_served(s);
    assert_int_equal(rename(keep, s->paths.cert), 0);
}

static void a_tls_session_is_resumed_by_ticket(void **state) {
    http_stage *s = *state;
    wire w = stage_wire(s);
    wire_puts(&w, "GET /later" HOST "\r\n");
    assert_int_equal(wire_answer(&w, NULL), 200);
    SSL_SESSION *session = SSL_get1_session(w.ssl);
    SSL_shutdown(w.ssl);
    wire_close(&w);
    assert_int_equal(wire_connect(&w, s->port, NULL, 0), 0);
    w.ssl = SSL_new(s->client);
    SSL_set_fd(w.ssl, w.fd);
    SSL_set_session(w.ssl, session);
    assert_int_equal(SSL_connect(w.ssl), 1);
    assert_true(SSL_session_reused(w.ssl));
    SSL_SESSION_free(session);
    wire_close(&w);
}

static void tls_below_12_is_refused(void **state) {
    http_stage *s = *state;
    wire w;
    SSL_CTX_set_min_proto_version(s->client, TLS1_VERSION);
    SSL_CTX_set_max_proto_version(s->client, TLS1_1_VERSION);
    SSL_CTX_set_security_level(s->client, 0);
    assert_int_equal(wire_connect(&w, s->port, s->client, 0), -1);
    wire_close(&w);
}

static void tls_12_is_served(void **state) {
    http_stage *s = *state;
    SSL_CTX_set_max_proto_version(s->client, TLS1_2_VERSION);
    expect_served(s);
}

static void plain_http_on_the_tls_port_is_a_clean_close(void **state) {
    http_stage *s = *state;
    wire w;
    assert_int_equal(wire_connect(&w, s->port, NULL, 0), 0);
    wire_puts(&w, "GET /later" HOST "\r\n");
    assert_true(wire_to_end(&w));
    wire_close(&w);
    expect_served(s);
}

static void after_stop_accepting_answers_end_their_connections(void **state) {
    http_stage *s = *state;
    wire idle = stage_wire(s), busy = stage_wire(s), late;
    wire_puts(&idle, "GET /later" HOST "\r\n");
    assert_int_equal(wire_answer(&idle, NULL), 200);
    wire_puts(&busy, "GET /later?ms=300" HOST "\r\n");
    assert_true(stage_wait(&echo_seen.requests, 2));
    http_stop_accepting(s->server);
    assert_int_equal(wire_connect(&late, s->port, NULL, 0), -1);
    wire_close(&late);
    assert_non_null(wire_until(&busy, "later"));
    assert_non_null(strcasestr(busy.in.data, "\r\nconnection: close\r\n"));
    assert_true(wire_to_end(&busy));
    wire_puts(&idle, "GET /later" HOST "\r\n"); // still served within the grace
    assert_int_equal(wire_answer(&idle, NULL), 200);
    assert_true(wire_to_end(&idle));
    wire_close(&idle);
    wire_close(&busy);
}

static void stopping_ends_waiting_and_streaming_clients(void **state) {
    http_stage *s = *state;
    wire w[3];
    static const char *const requests[] = {"GET /never" HOST "\r\n",
                                           "GET /stream?n=9&ms=60000" HOST "\r\n",
                                           POST "Content-Length: 9\r\n\r\n"};
    for (int i = 0; i < 3; i++) {
        w[i] = stage_wire(s);
        wire_puts(&w[i], requests[i]);
    }
    assert_true(stage_wait(&echo_seen.heads, 3));
    assert_true(stage_wait(&echo_seen.requests, 2));
    http_stop(s->server);
    s->server = NULL;
    assert_int_equal(atomic_load(&echo_seen.gone), 2);
    for (int i = 0; i < 3; i++) {
        assert_true(wire_to_end(&w[i]));
        wire_close(&w[i]);
    }
}

static void *stop_server(void *ctx) {
    http_stage *s = ctx;
    http_stop(s->server);
    s->server = NULL;
    return NULL;
}

// A large answer that was given before the stop is written to its end.
static void stopping_writes_what_was_answered(void **state) {
    http_stage *s = *state;
    wire w;
    buf body = {0};
    assert_int_equal(wire_connect(&w, s->port, s->client, 8192), 0);
    wire_puts(&w, "GET /big?bytes=3000000" HOST "\r\n");
    assert_true(stage_wait(&echo_seen.requests, 1));
    pthread_t stopper;
    pthread_create(&stopper, NULL, stop_server, s);
    assert_int_equal(wire_answer(&w, &body), 200);
    assert_int_equal(body.len, 3000000);
    pthread_join(stopper, NULL);
    buf_release(&body);
    wire_close(&w);
}

#define PLAIN(test) cmocka_unit_test_setup_teardown(test, open_plain, close_stage)
#define TLS(test) cmocka_unit_test_setup_teardown(test, open_tls, close_stage)
#define BOTH(test) PLAIN(test), TLS(test)

int main(void) {
    const struct CMUnitTest tests[] = {
        BOTH(bad_framing_is_one_json_error_and_the_end),
        BOTH(bad_framing_after_a_good_request_is_refused_too),
        BOTH(many_small_chunks_over_the_limit_are_413),
        BOTH(a_large_head_is_431),
        BOTH(the_largest_head_of_the_most_fields_is_served),
        BOTH(a_slow_head_is_408),
        BOTH(a_slow_body_is_408),
        BOTH(silence_after_connecting_is_closed),
        BOTH(an_idle_kept_connection_is_closed),
        BOTH(a_fin_while_the_answer_is_awaited_is_heard),
        BOTH(a_reset_while_the_answer_is_awaited_is_heard),
        BOTH(a_fin_in_a_silent_stream_is_heard),
        BOTH(a_reset_in_a_silent_stream_is_heard),
        BOTH(a_fin_behind_pipelined_requests_is_heard),
        TLS(close_notify_and_fin_are_heard),
        TLS(a_fin_over_tls_is_heard_behind_unread_bytes),
        BOTH(a_client_that_goes_in_its_body_leaves_nothing),
        PLAIN(a_half_close_right_after_the_request_is_answered),
        PLAIN(a_half_close_right_after_the_request_gets_its_stream),
        PLAIN(a_half_closed_client_that_then_goes_is_heard),
        PLAIN(a_half_close_late_in_the_wait_is_a_goodbye),
        TLS(close_notify_alone_gets_its_answer),
        TLS(a_fin_over_tls_is_a_clean_close),
        BOTH(a_half_close_inside_the_head_is_a_clean_close),
        BOTH(a_burst_over_the_cap_in_one_turn_cuts_nobody_who_reads),
        cmocka_unit_test_setup_teardown(a_client_that_does_not_read_its_stream_is_cut_at_the_cap,
                                        open_patient, close_stage),
        cmocka_unit_test_setup_teardown(a_client_that_does_not_read_its_stream_is_cut_at_the_cap,
                                        open_patient_tls, close_stage),
        cmocka_unit_test_setup_teardown(what_is_written_before_a_stop_is_taken_or_never_sent,
                                        open_patient, close_stage),
        cmocka_unit_test_setup_teardown(
            what_a_stop_finds_before_the_head_is_forgotten_and_the_rest_comes, open_patient,
            close_stage),
        cmocka_unit_test_setup_teardown(what_is_written_before_a_stop_is_taken_or_never_sent,
                                        open_patient_tls, close_stage),
        cmocka_unit_test_setup_teardown(
            what_a_stop_finds_before_the_head_is_forgotten_and_the_rest_comes, open_patient_tls,
            close_stage),
        BOTH(a_client_that_takes_nothing_is_cut_after_the_stall_time),
        BOTH(a_connection_over_the_most_gets_503_and_the_others_serve),
        BOTH(a_taken_port_is_named),
        PLAIN(an_unknown_host_is_named),
        PLAIN(a_reactor_that_cannot_start_ends_the_start),
        TLS(a_reload_shows_new_connections_the_new_certificate),
        TLS(an_unreadable_certificate_changes_nothing),
        TLS(a_tls_session_is_resumed_by_ticket),
        TLS(tls_below_12_is_refused),
        TLS(tls_12_is_served),
        TLS(plain_http_on_the_tls_port_is_a_clean_close),
        BOTH(after_stop_accepting_answers_end_their_connections),
        BOTH(stopping_ends_waiting_and_streaming_clients),
        BOTH(stopping_writes_what_was_answered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
