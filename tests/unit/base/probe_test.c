// The operations listener over real sockets.
#include "base/metric.h"
#include "base/probe.h"
#include "tests/support/wire.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static const char *not_ready(void *ctx) { return *(const char **)ctx; }

static void ask(uint16_t port, const char *request, int status, const char *text) {
    wire w;
    buf body = {0};
    assert_int_equal(wire_connect(&w, port, NULL, 0), 0);
    wire_puts(&w, request);
    wire_puts(&w, " HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_int_equal(wire_answer(&w, &body), status);
    if (text && !strstr(body.data, text))
        fail_msg("%s: \"%s\" is not in \"%s\"", request, text, body.data);
    buf_release(&body);
    wire_close(&w);
}

static void probes_and_metrics_are_served(void **state) {
    (void)state;
    const char *why = NULL;
    config_listen listen = {.host = "127.0.0.1"};
    probe *o = NULL;
    err e = {0};
    metric_add(metric_counter("ops_test_total", "", "For this test"), 7);
    assert_int_equal(probe_start(&listen, not_ready, &why, &o, &e), 0);
    uint16_t port = probe_port(o);
    assert_int_not_equal(port, 0);
    ask(port, "GET /healthz", 200, "ok");
    ask(port, "GET /readyz", 200, "ok");
    why = "no connection to Redis";
    ask(port, "GET /readyz", 503, "no connection to Redis");
    ask(port, "GET /healthz", 200, "ok");
    ask(port, "GET /metrics", 200, "\nops_test_total 7\n");
    ask(port, "GET /", 404, "/healthz");
    ask(port, "POST /metrics", 405, "GET");
    probe_stop(o);
}

static void without_a_question_it_is_always_ready(void **state) {
    (void)state;
    config_listen listen = {.host = "127.0.0.1"};
    probe *o = NULL;
    assert_int_equal(probe_start(&listen, NULL, NULL, &o, NULL), 0);
    ask(probe_port(o), "GET /readyz", 200, "ok");
    probe_stop(o);
}

static void a_taken_port_is_named(void **state) {
    (void)state;
    config_listen listen = {.host = "127.0.0.1"};
    probe *o = NULL, *second = NULL;
    err e = {0};
    assert_int_equal(probe_start(&listen, NULL, NULL, &o, &e), 0);
    listen.port = probe_port(o);
    assert_int_equal(probe_start(&listen, NULL, NULL, &second, &e), -1);
    assert_int_equal(e.code, ERR_IO);
    assert_non_null(strstr(e.message, "in use"));
    probe_stop(o);
    probe_stop(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(probes_and_metrics_are_served),
        cmocka_unit_test(without_a_question_it_is_always_ready),
        cmocka_unit_test(a_taken_port_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
