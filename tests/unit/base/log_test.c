// Log lines and metrics.
#include "base/log.h"
#include "base/metric.h"
#include "base/err.h"
#include <jansson.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

// Catches standard error while body runs; the lines, each parsed.
static json_t *caught(void (*body)(void)) {
    char text[65536];
    int pipes[2], keep = dup(STDERR_FILENO);
    assert_int_equal(pipe(pipes), 0);
    dup2(pipes[1], STDERR_FILENO);
    close(pipes[1]);
    body();
    dup2(keep, STDERR_FILENO);
    close(keep);
    size_t n = 0;
    for (ssize_t got; (got = read(pipes[0], text + n, sizeof text - 1 - n)) > 0;)
        n += (size_t)got;
    close(pipes[0]);
    text[n] = '\0';
    json_t *lines = json_array();
    char *rest = text;
    for (char *line; (line = strsep(&rest, "\n"));)
        if (*line) {
            json_t *parsed = json_loads(line, JSON_REJECT_DUPLICATES, NULL);
            if (!parsed)
                fail_msg("no JSON: %s", line);
            json_array_append_new(lines, parsed);
        }
    return lines;
}

static const char *field(json_t *lines, size_t i, const char *name) {
    return json_string_value(json_object_get(json_array_get(lines, i), name));
}

static void log_some(void) {
    log_init("tester", LOG_INFO);
    log_event(LOG_DEBUG, "not.logged", NULL);
    log_event(LOG_INFO, "plain", NULL);
    log_event(LOG_WARN, "with.fields", "{s:s,s:i,s:s}", "name", "a \"b\"\n", "n", 7, "event",
              "forged");
    log_set_level(LOG_ERROR);
    log_event(LOG_WARN, "not.logged", NULL);
    log_set_level(LOG_INFO);
}

static void a_line_holds_time_level_event_role_and_fields(void **state) {
    (void)state;
    json_t *lines = caught(log_some);
    assert_int_equal(json_array_size(lines), 2);
    assert_string_equal(field(lines, 0, "event"), "plain");
    assert_string_equal(field(lines, 0, "level"), "info");
    assert_string_equal(field(lines, 0, "role"), "tester");
    assert_int_equal(strlen(field(lines, 0, "ts")), strlen("2026-01-01T00:00:00.000Z"));
    assert_string_equal(field(lines, 1, "event"), "with.fields");
    assert_string_equal(field(lines, 1, "name"), "a \"b\"\n");
    assert_int_equal(json_integer_value(json_object_get(json_array_get(lines, 1), "n")), 7);
    json_decref(lines);
}

static void log_badly(void) {
    log_event(LOG_INFO, "one", "{s:s}", "text", "\xff\xfe");
    log_event(LOG_INFO, "two", "[i]", 3);
    log_event(LOG_INFO, "three", "{s:", "text");
    log_event(LOG_INFO, "four", "{s:s}", "text", NULL);
}

static void what_cannot_be_packed_is_logged_with_an_error(void **state) {
    (void)state;
    json_t *lines = caught(log_badly);
    static const char *const events[] = {"one", "two", "three", "four"};
    assert_int_equal(json_array_size(lines), 4);
    for (size_t i = 0; i < 4; i++) {
        assert_string_equal(field(lines, i, "event"), events[i]);
        assert_non_null(strstr(field(lines, i, "error"), "fields were not logged"));
    }
    json_decref(lines);
}

static void *log_many(void *ctx) {
    for (int i = 0; i < 50; i++)
        log_event(LOG_INFO, "thread", "{s:i}", "i", i);
    return ctx;
}

static void log_from_threads(void) {
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, log_many, NULL);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
}

static void lines_of_several_threads_do_not_mix(void **state) {
    (void)state;
    json_t *lines = caught(log_from_threads);
    assert_int_equal(json_array_size(lines), 200);
    json_decref(lines);
}

static int fatal_status;
static void die_in_a_child(void) {
    pid_t pid = fork();
    if (pid == 0)
        fatal("cannot go on: %s", "\xff no UTF-8");
    int status = 0;
    waitpid(pid, &status, 0);
    fatal_status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void fatal_logs_its_message_and_exits_with_1(void **state) {
    (void)state;
    json_t *lines = caught(die_in_a_child);
    assert_int_equal(fatal_status, 1);
    assert_int_equal(json_array_size(lines), 1);
    assert_string_equal(field(lines, 0, "event"), "fatal");
    assert_string_equal(field(lines, 0, "level"), "error");
    assert_string_equal(field(lines, 0, "message"), "cannot go on: ? no UTF-8");
    json_decref(lines);
}

// ---- metrics

static void metrics_are_written_by_family_in_prometheus_form(void **state) {
    (void)state;
    const double bounds[] = {0.005, 0.1, 2.5};
    metric *ok = metric_counter("t_requests_total", "code=\"200\"", "Requests\nby \\ code.");
    metric *depth = metric_gauge("t_depth", "", "Waiting.");
    metric *bad = metric_counter("t_requests_total", "code=\"500\"", "Requests.");
    metric *time = metric_histogram("t_seconds", "route=\"chat\"", "Time.", bounds, 3);
    assert_ptr_equal(ok, metric_counter("t_requests_total", "code=\"200\"", "again"));
    metric_add(ok, 3);
    metric_add(bad, 1);
    metric_set(depth, 9);
    metric_add(depth, -11);
    double values[] = {0.005, 0.0051, 2.5, 99, 1};
    for (int i = 0; i < 5; i++)
        metric_observe(time, values[i]);
    assert_int_equal(metric_value(ok), 3);
    assert_int_equal(metric_value(time), 5);
    buf out = {0};
    metric_render(&out);
    assert_string_equal(out.data, "# HELP t_requests_total Requests\\nby \\\\ code.\n"
                                  "# TYPE t_requests_total counter\n"
                                  "t_requests_total{code=\"200\"} 3\n"
                                  "t_requests_total{code=\"500\"} 1\n"
                                  "# HELP t_depth Waiting.\n"
                                  "# TYPE t_depth gauge\n"
                                  "t_depth -2\n"
                                  "# HELP t_seconds Time.\n"
                                  "# TYPE t_seconds histogram\n"
                                  "t_seconds_bucket{route=\"chat\",le=\"0.005\"} 1\n"
                                  "t_seconds_bucket{route=\"chat\",le=\"0.1\"} 2\n"
                                  "t_seconds_bucket{route=\"chat\",le=\"2.5\"} 4\n"
                                  "t_seconds_bucket{route=\"chat\",le=\"+Inf\"} 5\n"
                                  "t_seconds_sum{route=\"chat\"} 102.5101\n"
                                  "t_seconds_count{route=\"chat\"} 5\n");
    buf_release(&out);
}

static void *count(void *ctx) {
    for (int i = 0; i < 20000; i++) {
        metric_add(ctx, 1);
        metric_observe(metric_histogram("t_many_seconds", "", "Many.", (double[]){1}, 1), 0.5);
    }
    return NULL;
}

static void no_update_of_any_thread_is_lost(void **state) {
    (void)state;
    metric *n = metric_counter("t_many_total", "", "Many.");
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, count, n);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    buf out = {0};
    metric_render(&out);
    assert_int_equal(metric_value(n), 80000);
    assert_non_null(strstr(out.data, "t_many_seconds_sum 40000\n"));
    assert_non_null(strstr(out.data, "t_many_seconds_count 80000\n"));
    buf_release(&out);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_line_holds_time_level_event_role_and_fields),
        cmocka_unit_test(what_cannot_be_packed_is_logged_with_an_error),
        cmocka_unit_test(lines_of_several_threads_do_not_mix),
        cmocka_unit_test(fatal_logs_its_message_and_exits_with_1),
        cmocka_unit_test(metrics_are_written_by_family_in_prometheus_form),
        cmocka_unit_test(no_update_of_any_thread_is_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
