// JSON lines on stderr, one write(2) each, so that lines of several threads and processes do not
// mix. Owns the role and the level; any thread. What cannot be packed is still logged, with an
// "error" field. Does not rotate or buffer.
#include "base/log.h"
#include "base/buf.h"
#include <errno.h>
#include <jansson.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LINE_BYTES 512 // most lines fit

static char log_role[32];
static _Atomic int log_least = LOG_INFO;

void log_init(const char *role, log_level least) {
    snprintf(log_role, sizeof log_role, "%s", role);
    log_set_level(least);
}

void log_set_level(log_level least) { atomic_store(&log_least, (int)least); }

#define TIME_TEXT 25 // "2026-01-31T12:00:00.000Z" and a NUL

// The second is spelt once a thread.
static const char *time_text(char out[TIME_TEXT]) {
    static _Thread_local time_t spelt;
    static _Thread_local char second[24];
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    if (now.tv_sec != spelt) {
        gmtime_r(&now.tv_sec, &utc);
        strftime(second, sizeof second, "%Y-%m-%dT%H:%M:%S", &utc);
        spelt = now.tv_sec;
    }
    unsigned ms = (unsigned)(now.tv_nsec / 1000000) % 1000;
    snprintf(out, TIME_TEXT, "%.19s.%03uZ", second, ms);
    return out;
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

// ---- the usual line: flat fields of ASCII text and whole numbers, written without a tree

static bool is_own_name(const char *name) {
    return strcmp(name, "ts") == 0 || strcmp(name, "level") == 0 || strcmp(name, "event") == 0 ||
           strcmp(name, "role") == 0;
}

static bool is_ascii(const char *s) {
    while (*s && (unsigned char)*s < 0x80)
        s++;
    return !*s;
}

static bool put_value(buf *b, char kind, va_list *args) {
    const char *text;
    if (kind == 'i') {
        buf_put_int(b, va_arg(*args, int));
    } else if (kind == 'I') {
        buf_put_int(b, va_arg(*args, json_int_t));
    } else {
        text = va_arg(*args, const char *);
        if (!text || !is_ascii(text))
            return false;
        buf_put_json(b, text, strlen(text));
    }
    return true;
}

// false: it is another kind of line.
static bool put_usual(buf *b, const char *format, va_list *args) {
    while (*format && *format != '}') {
        format++; // '{' or ','
        if (strlen(format) < 4 || memcmp(format, "s:", 2) != 0 || !strchr("siI", format[2]) ||
            !strchr(",}", format[3]))
            return false;
        const char *name = va_arg(*args, const char *);
        if (is_own_name(name))
            return false;
        buf_put(b, ",", 1);
        buf_put_json(b, name, strlen(name));
        buf_put(b, ":", 1);
        if (!put_value(b, format[2], args))
            return false;
        format += 3;
    }
    return strcmp(format, "}") == 0;
}

static void put_head(buf *b, const char *level, const char *event) {
    char text[TIME_TEXT];
    buf_extend(b, LINE_BYTES);
    buf_clear(b);
    buf_printf(b, "{\"ts\":\"%s\",\"level\":\"%s\",\"event\":\"%s\"", time_text(text), level,
               event);
    if (log_role[0])
        buf_printf(b, ",\"role\":\"%s\"", log_role);
}

// ---- any line

static void write_tree(const char *level, const char *event, const char *fields, va_list args) {
    char text[TIME_TEXT];
    json_t *line = json_object();
    json_object_set_new(line, "ts", json_string(time_text(text)));
    json_object_set_new(line, "level", json_string(level));
    json_object_set_new(line, "event", json_string(event));
    if (log_role[0])
        json_object_set_new(line, "role", json_string(log_role));
    put_fields(line, fields, args);
    write_json(line, event);
    json_decref(line);
}

void log_event(log_level level, const char *event, const char *fields, ...) {
    static const char *const names[] = {"debug", "info", "warn", "error"};
    va_list args, again;
    buf line = {0};
    if ((int)level < atomic_load(&log_least))
        return;
    va_start(args, fields);
    va_copy(again, args);
    put_head(&line, names[level], event);
    if (!fields || put_usual(&line, fields, &again)) {
        buf_puts(&line, "}\n");
        write_line(line.data, line.len);
    } else {
        write_tree(names[level], event, fields, args);
    }
    buf_release(&line);
    va_end(again);
    va_end(args);
}
