// Errors and the last resort. Fills the caller's `err`; keeps nothing of its own; any thread.
// Messages may quote bytes from files or clients, so what is stored is always valid UTF-8. Does not
// decide about HTTP statuses (server/openai_error.c).
#include "base/err.h"
#include "base/log.h"
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <utf8proc.h>

// Replaces what is not UTF-8 (bytes that were quoted, a character cut at the end) by '?'.
static void make_utf8(char *s) {
    for (utf8proc_ssize_t left = (utf8proc_ssize_t)strlen(s); left > 0;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)s, left, &c);
        if (n <= 0) {
            *s = '?';
            n = 1;
        }
        s += n;
        left -= n;
    }
}

int err_set(err *e, err_code code, const char *param, const char *format, ...) {
    if (!e)
        return -1;
    err made = {.code = code}; // apart, because arguments may point into *e
    va_list args;
    va_start(args, format);
    vsnprintf(made.message, sizeof made.message, format, args);
    va_end(args);
    make_utf8(made.message);
    if (param)
        snprintf(made.param, sizeof made.param, "%s", param);
    make_utf8(made.param);
    *e = made;
    return -1;
}

int err_wrap(err *e, const char *format, ...) {
    if (!e)
        return -1;
    char context[sizeof e->message];
    va_list args;
    va_start(args, format);
    int n = vsnprintf(context, sizeof context, format, args);
    va_end(args);
    size_t used = n < 0 ? 0 : (size_t)n < sizeof context ? (size_t)n : sizeof context - 1;
    const char *const parts[] = {": ", e->message};
    for (int i = 0; i < 2; i++) { // what does not fit is cut
        size_t left = sizeof context - 1 - used, length = strlen(parts[i]);
        memcpy(context + used, parts[i], length < left ? length : left);
        used += length < left ? length : left;
    }
    context[used] = '\0';
    make_utf8(context);
    memcpy(e->message, context, sizeof context);
    return -1;
}

void fatal(const char *format, ...) {
    char message[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    make_utf8(message);
    log_event(LOG_ERROR, "fatal", "{s:s}", "message", message);
    _exit(1); // not exit(): other threads still use what exit handlers would free
}
