// JSON lines on stderr, one write(2) each, so that lines of several threads and processes do not
// mix. Owns the role and the level; any thread. What cannot be packed is still logged, with an
// "error" field. Does not rotate or buffer.
#include "base/log.h"
#include <errno.h>
#include <jansson.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static char log_role[32];
static _Atomic int log_least = LOG_INFO;

void log_init(const char *role, log_level least) {
    snprintf(log_role, sizeof log_role, "%s", role);
    log_set_level(least);
}

void log_set_level(log_level least) { atomic_store(&log_least, (int)least); }

static void put_time(json_t *line) {
    struct timespec now;
    struct tm utc;
    char text[64];
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    size_t n = strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(text + n, sizeof text - n, ".%03ldZ", now.tv_nsec / 1000000);
    json_object_set_new(line, "ts", json_string(text));
}

// Adds the caller's fields; the line's own names win. Says why in "error" when they cannot be
// packed.
static void put_fields(json_t *line, const char *format, va_list args) {
    json_error_t why = {0};
    json_t *fields = json_vpack_ex(&why, 0, format, args);
    if (json_is_object(fields))
        json_object_update_missing(line, fields);
    else
        json_object_set_new(
            line, "error",
            json_sprintf("fields were not logged: %s", fields ? "not an object" : why.text));
    json_decref(fields);
}

static void write_line(const char *text, size_t n) {
    while (n > 0) {
        ssize_t done = write(STDERR_FILENO, text, n);
        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0)
            return; // nobody left to tell
        text += done;
        n -= (size_t)done;
    }
}

static void write_json(const json_t *line, const char *event) {
    char *text = json_dumps(line, JSON_COMPACT);
    size_t n = text ? strlen(text) : 0;
    if (text) {
        text[n] = '\n'; // in the place of the NUL
        write_line(text, n + 1);
    } else {
        char plain[256];
        int m =
            snprintf(plain, sizeof plain,
                     "{\"level\":\"error\",\"event\":\"log.lost\",\"lost\":\"%.100s\"}\n", event);
        write_line(plain, (size_t)m);
    }
    free(text);
}

void log_event(log_level level, const char *event, const char *fields, ...) {
    static const char *const names[] = {"debug", "info", "warn", "error"};
    if ((int)level < atomic_load(&log_least))
        return;
    json_t *line = json_object();
    put_time(line);
    json_object_set_new(line, "level", json_string(names[level]));
    json_object_set_new(line, "event", json_string(event));
    if (log_role[0])
        json_object_set_new(line, "role", json_string(log_role));
    if (fields) {
        va_list args;
        va_start(args, fields);
        put_fields(line, fields, args);
        va_end(args);
    }
    write_json(line, event);
    json_decref(line);
}
